//! How pools are divided among virtual hosts and among users, and what each of them holds.
//!
//! Always true: what a division is told that somebody took or gave back is what that one is known to hold.

use crate::command::VhostId;
use crate::journal::Batch;
use crate::mem::{Division, Owner};

use super::holdings::Holdings;

/// What one virtual host, or one user, holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Held {
    pub(super) declared: Holdings,
    pub(super) connections: u32,
    pub(super) channels: u32,
    pub(super) consumers: u32,
    /// Deliveries that are not settled; only while pools are divided.
    pub(super) unsettled: u64,
    /// Messages in open transactions, and their bytes of blocks; only while pools are divided.
    pub(super) open_messages: u64,
    pub(super) open_bytes: u64,
    /// What its messages take in the log; only while that matters (`log_shares`).
    pub(super) log_bytes: u64,
}

/// How the pools that are asked for with every message are divided; the others are worked out when asked for.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Divided {
    pub(super) unsettled: Division,
    pub(super) open_messages: Division,
    pub(super) open_bytes: Division,
}

/// Pools divided among virtual hosts, and among users.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Divisions {
    pub(super) vhosts: Divided,
    pub(super) users: Divided,
    /// There are several of one of them.
    pub(super) any: bool,
    /// The pools of messages and of entries are to hear of it.
    pub(super) changed: bool,
}

/// For whom a connection holds something.
#[derive(Clone, Copy, Debug)]
pub(super) struct Holder {
    pub(super) vhost: Option<VhostId>,
    pub(super) user: Option<usize>,
}

/// What the log may hold, divided among virtual hosts.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LogShares {
    pub(super) division: Division,
    /// What was durable when it was counted; `None` while there is plenty of room.
    pub(super) weighed: Option<Batch>,
    /// What was durable when somebody waited for room behind what is kept for others.
    pub(super) kept_at: Option<Batch>,
    /// Rises when less may be kept from one of them, for which somebody may wait.
    pub(super) room_made: u64,
}

/// Whose memory the messages of a virtual host take that no connection sends.
#[inline]
pub(super) const fn owner_of(vhost: VhostId) -> Owner {
    Owner::of_vhost(vhost.index())
}

impl Held {
    /// Whether it holds something that is to be given back.
    pub(super) fn holds_any(&self) -> bool {
        *self != Self { log_bytes: self.log_bytes, ..Self::default() }
    }

    /// What it has by connections is counted anew.
    pub(super) const fn forget_pinned(&mut self) {
        (self.unsettled, self.open_messages, self.open_bytes) = (0, 0, 0);
    }
}

impl Divided {
    pub(super) fn new<'h>(
        [unsettled, messages, bytes]: [u64; 3],
        all: impl Iterator<Item = &'h Held> + Clone,
    ) -> Self {
        Self {
            unsettled: Division::new(unsettled, all.clone().map(|held| held.unsettled)),
            open_messages: Division::new(messages, all.clone().map(|held| held.open_messages)),
            open_bytes: Division::new(bytes, all.map(|held| held.open_bytes)),
        }
    }
}
