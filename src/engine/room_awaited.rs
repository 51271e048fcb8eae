//! Since when publishers wait for room, and whether the log has it.
//!
//! Always true: there is a deadline only while somebody waits and it has not been told.

use crate::time::{Deadline, Now};

/// A wait of so many milliseconds is told.
const LASTS_MS: u64 = 2_000;

/// Whether somebody waits for room.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum RoomAwaited {
    /// Nobody does.
    No,
    /// Somebody has, all the time since then.
    Since(Now),
    /// And it is in the log.
    Told,
}

impl RoomAwaited {
    /// When it is to be told.
    pub(super) const fn deadline(self) -> Deadline {
        match self {
            Self::Since(since) => since.after_ms(LASTS_MS),
            Self::No | Self::Told => Deadline::NEVER,
        }
    }
}
