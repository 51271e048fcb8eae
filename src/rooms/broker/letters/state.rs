//! What is borrowed to send something on, and the little that is kept for it.
//!
//! Always true: a letter is written and put into its queues before what it comes of is taken out of its own.

use super::death::Parking;
use super::traced::Firehose;
use crate::broker::access::Access;
use crate::broker::consumers::Consumers;
use crate::broker::counters::Counters;
use crate::broker::policy::Policies;
use crate::broker::promised::Promised;
use crate::broker::queues::Queues;
use crate::broker::quota::Quota;
use crate::broker::topology::Topology;
use crate::command::QueueId;
use crate::journal::Journal;
use crate::mem::Messages;

/// What is kept from one letter to the next.
#[derive(Debug, Default)]
pub(crate) struct Letters {
    /// Why bridges set messages aside, and where those go.
    pub(super) parkings: Vec<Parking>,
    /// Room for the queues of a letter, while the room for those of a publish may be in use.
    pub(super) targets: Vec<QueueId>,
    /// What the commit that is being carried out may still need.
    pub(super) promised: Promised,
    /// Seconds since 1970 when this second began: what dead letters say about when.
    pub(super) unix_s: u64,
    /// In which minute it was last said that a dead letter was dropped.
    pub(super) dropped_logged_minute: Option<u32>,
    /// Levels that something was taken out of, and that may be done with now.
    pub(super) perhaps_done: Vec<QueueId>,
}

impl Letters {
    /// Room for the targets of letters to as many queues as there can be.
    pub(crate) fn with_capacity(queues: usize) -> Self {
        Self { targets: Vec::with_capacity(queues), ..Self::default() }
    }

    /// A commit begins that was found to need this at most, or none is under way any more.
    pub(crate) const fn promise(&mut self, promised: Promised) {
        self.promised = promised;
    }

    /// The date, in seconds since 1970; 0 as long as nobody has said it.
    pub(crate) const fn unix_s(&self) -> u64 {
        self.unix_s
    }

    /// The date, in seconds since 1970: what is written into headers, and nothing follows from it.
    pub(crate) const fn set_unix_s(&mut self, unix_s: u64) {
        self.unix_s = unix_s;
    }

    /// The next level that something was taken out of, and that may be done with now.
    pub(crate) fn next_perhaps_done(&mut self) -> Option<QueueId> {
        self.perhaps_done.pop()
    }
}

/// All that it takes to send something on, borrowed for one call.
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
    /// Rises with whatever may make room for what has nowhere to go now.
    pub(super) fn room_count(&self, journal: &Journal, messages: &Messages) -> u64 {
        let revision = self.topology.revision() + self.access.revision();
        self.queues.room_made()
            + self.quota.room_made()
            + revision
            + journal.room_made()
            + messages.room_made()
    }
}
