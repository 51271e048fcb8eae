//! Letters: messages that the broker itself sends on.
//!
//! Why it exists: a queue decides which message it gives up and why; where that goes is a matter of routing,
//! like a publish. So messages rejected, expired, over a limit, parked by a bridge, due after a delay or
//! copied for an operator go one way:
//!
//! ```text
//! queue: what stands first, reason ──→ letter written, routed, room found ──→ pushed to its queues ──→ taken out of its own
//! ```
//!
//! | file | what |
//! |---|---|
//! | `state` | what is borrowed for it, and the little that is kept |
//! | `write`, `death` | a dead letter; what it carries of why, when and from where |
//! | `parked` | what a bridge's other side does not take |
//! | `give_up` | what queues give up, in steps: what is rejected, what is too much, what has expired |
//! | `awaken` | what delayed exchanges keep wakes up |
//! | `copies`, `traced` | copies of what is published and delivered, for an operator; what they name |
//!
//! Always true: nothing leaves its queue before there is room for it where it goes, and both are one thing to
//! the log; without room a message stays, late but never lost.

mod awaken;
mod copies;
mod give_up;
mod parked;
mod write;

use leveret_core::command::QueueId;
use leveret_core::journal::Journal;
use leveret_core::mem::Messages;

use crate::access::Access;
use crate::consumers::Consumers;
use crate::policy::Policies;
use crate::publish::Promised;
use crate::queues::Queues;
use crate::quota::Quota;
use crate::state::Counters;
use crate::topology::Topology;

pub(super) use give_up::{Cleared, Turn};
pub(super) use give_up::{Parking, Reason};
pub use parked::{came_from, parked, unparked};

// The parts of the broker borrowed to send a letter, and the little that is kept between letters.
//
// Always true: a letter is written and put into its queues before its message is taken out of its own.

/// State kept from one letter to the next.
#[derive(Debug, Default)]
pub(crate) struct Letters {
    /// Why bridges parked messages, and where those go.
    parkings: Vec<Parking>,
    /// Buffer for the target queues of a letter; that of a publish may be in use.
    targets: Vec<QueueId>,
    /// The room that the commit being carried out may still need.
    promised: Promised,
    /// The second of this turn since 1970: the time in dead letters.
    unix_s: u64,
    /// The minute in which a dropped dead letter was logged last.
    dropped_logged_minute: Option<u32>,
    /// Levels that messages were taken out of, whose records may be free to go.
    perhaps_done: Vec<QueueId>,
}

impl Letters {
    /// Buffers for letters to as many queues as there can be.
    pub(crate) fn with_capacity(queues: usize) -> Self {
        Self { targets: Vec::with_capacity(queues), ..Self::default() }
    }

    /// Notes the room that a commit was found to need at most, when one begins, or none when it is over.
    pub(crate) const fn promise(&mut self, promised: Promised) {
        self.promised = promised;
    }

    /// The date, in seconds since 1970; 0 until it was set.
    pub(crate) const fn unix_s(&self) -> u64 {
        self.unix_s
    }

    /// Sets the date, in seconds since 1970: it is written into headers, and nothing depends on it.
    pub(crate) const fn set_unix_s(&mut self, unix_s: u64) {
        self.unix_s = unix_s;
    }

    /// The next level that messages were taken out of, whose record may be free to go.
    pub(crate) fn next_perhaps_done(&mut self) -> Option<QueueId> {
        self.perhaps_done.pop()
    }
}

/// The parts of the broker that sending a letter takes, borrowed for one call.
pub(crate) struct Post<'b> {
    pub(crate) letters: &'b mut Letters,
    pub(crate) firehose: &'b mut Firehose,
    pub(crate) queues: &'b mut Queues,
    pub(crate) topology: &'b mut Topology,
    pub(crate) quota: &'b mut Quota,
    pub(crate) counters: &'b mut Counters,
    pub(crate) policies: &'b Policies,
    pub(crate) access: &'b Access,
    pub(crate) consumers: &'b Consumers,
}

impl Post<'_> {
    /// Rises when room is made that a letter may wait for.
    fn room_count(&self, journal: &Journal, messages: &Messages) -> u64 {
        let revision = self.topology.revision() + self.access.revision();
        self.queues.room_made() + revision + journal.room_made() + messages.room_made()
    }
}

// The state of the firehose: whether it is on, and the names that stand in its copies.
//
// Always true: while the firehose is off it takes no memory; the memory table counts a name for each
// connection.

/// A connection's name: two addresses of IPv6 with their ports, and an arrow.
pub(crate) type TracedName = heapless::String<104>;

/// The state of the firehose.
#[derive(Debug, Default)]
pub(crate) struct Firehose {
    /// Whether some virtual host is traced.
    pub(crate) is_on: bool,
    /// The name of this broker in the copies.
    pub(crate) node: Box<str>,
    /// Names of connections in the copies, by the connections' places; none while the firehose is off.
    pub(crate) names: Vec<TracedName>,
    /// The minute in which copies left out were logged last.
    pub(crate) left_out_logged_minute: Option<u32>,
}
