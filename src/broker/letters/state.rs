//! The parts of the broker borrowed to send a letter, and the little that is kept between letters.
//!
//! Always true: a letter is written and put into its queues before its message is taken out of its own.

use super::death::Parking;
use super::traced::Firehose;
use crate::access::Access;
use crate::consumers::Consumers;
use crate::counters::Counters;
use crate::policy::Policies;
use crate::promised::Promised;
use crate::queues::Queues;
use crate::quota::Quota;
use crate::topology::Topology;
use leveret_core::command::QueueId;
use leveret_core::journal::Journal;
use leveret_core::mem::Messages;

/// State kept from one letter to the next.
#[derive(Debug, Default)]
pub(crate) struct Letters {
    /// Why bridges parked messages, and where those go.
    pub(super) parkings: Vec<Parking>,
    /// Buffer for the target queues of a letter; that of a publish may be in use.
    pub(super) targets: Vec<QueueId>,
    /// The room that the commit being carried out may still need.
    pub(super) promised: Promised,
    /// The second of this turn since 1970: the time in dead letters.
    pub(super) unix_s: u64,
    /// The minute in which a dropped dead letter was logged last.
    pub(super) dropped_logged_minute: Option<u32>,
    /// Levels that messages were taken out of, whose records may be free to go.
    pub(super) perhaps_done: Vec<QueueId>,
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
    pub(super) fn room_count(&self, journal: &Journal, messages: &Messages) -> u64 {
        let revision = self.topology.revision() + self.access.revision();
        self.queues.room_made() + revision + journal.room_made() + messages.room_made()
    }
}
