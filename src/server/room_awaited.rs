//! Since when publishers wait for room, and whether the log has it.
//!
//! Always true: there is a deadline only while somebody waits and it has not been told.

use leveret_broker::{Shortage, Waiters};
use leveret_core::time::{Deadline, Now};

/// A wait of so many milliseconds is told.
const LASTS_MS: u64 = 2_000;

/// Causes that are told apart; who waits for yet another is one of the others.
const CAUSES: usize = 16;

/// What one publisher waits for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Need {
    pub(super) shortage: Shortage,
    pub(super) since: Now,
}

impl Need {
    /// What most of them wait for; `None` for none.
    pub(super) fn most_awaited(needs: impl Iterator<Item = Self>, now: Now) -> Option<Waiters> {
        let mut causes: heapless::Vec<(Self, u32), CAUSES> = heapless::Vec::new();
        let mut all = 0;
        for need in needs {
            all += 1;
            match causes.iter_mut().find(|(known, _)| known.shortage == need.shortage) {
                Some((known, count)) => {
                    known.since = known.since.min(need.since);
                    *count += 1;
                }
                // One that finds no place is one of the others.
                None => drop(causes.push((need, 1))),
            }
        }
        let (most, count) =
            causes.into_iter().reduce(|most, next| if next.1 > most.1 { next } else { most })?;
        let for_ms = now.as_ms().saturating_sub(most.since.as_ms());
        Some(Waiters { shortage: most.shortage, count, for_ms, others: all - count })
    }
}

/// What is known of the publishers that wait for room.
#[derive(Debug)]
pub(super) struct RoomOffers {
    /// Since when some of them have been waiting, and whether that is in the log.
    pub(super) awaited: RoomAwaited,
    /// When it was told last that some of them wait for room on the disk.
    pub(super) disk_told: Option<Now>,
    /// How much room had been made when they last tried, as `Engine::room_made` counts.
    pub(super) seen: u64,
    /// Publishers that have not tried again since then.
    pub(super) retries_left: usize,
    /// The claim of a content that waits for others to be complete, and when they have had their time.
    pub(super) crowded: Option<(u64, Deadline)>,
}

impl RoomOffers {
    pub(super) const fn new() -> Self {
        Self { awaited: RoomAwaited::No, disk_told: None, seen: 0, retries_left: 0, crowded: None }
    }

    /// When something is to be told, or somebody to be ended.
    pub(super) fn deadline(&self) -> Deadline {
        self.crowded.map_or(Deadline::NEVER, |(_, at)| at).earlier(self.awaited.deadline())
    }
}

/// Whether somebody waits for room.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum RoomAwaited {
    /// Nobody does.
    No,
    /// Somebody has, all the time since then.
    Since(Now),
    /// Somebody waits, and the log has it.
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
