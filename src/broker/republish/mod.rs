//! Publishes copies of messages: dead letters, due delayed messages, parked messages and firehose copies.
//!
//! A queue removes a message when it is rejected, expired, over a limit, parked by a bridge or due after a delay. In
//! each case a copy of the message is published, if it has a destination, and the original is settled, in these steps:
//!
//! ```text
//! first message, reason ──→ copy written, routed, capacity checked ──→ pushed to its queues ──→ original removed
//! ```
//!
//! | file | content |
//! |---|---|
//! | `dead_letter` | writes, routes and publishes a dead letter; the `x-death` header |
//! | `parked` | writes the copies of messages that the broker at the other end of a bridge has refused |
//! | `expire` | removes messages in bounded steps: rejected, expired, over the length limit |
//! | `delayed_release` | routes the messages of delayed exchanges when they are due |
//! | `firehose` | publishes copies of published and delivered messages for an operator |
//!
//! # Invariants
//! - A message that has a copy leaves its queue only when there is capacity for the copy in all queues that accept it.
//!   Until then it stays in its queue, so it is late but not lost. Only a message whose copy would reach no queue or
//!   cannot be written is dropped (`Republication::Dropped`). Firehose copies, which have no original, are omitted if
//!   there is no capacity.
//! - If the log has both the original and the copy, publishing the copy and settling the original are one group in the
//!   log.

mod dead_letter;
mod delayed_release;
mod expire;
mod firehose;
mod parked;

use leveret_core::command::QueueId;
use leveret_core::mem::Messages;
use leveret_core::quota::Quota;
use leveret_queues::Queues;
use leveret_routing::Topology;
use leveret_storage::PendingWrites;

use crate::access::Access;
use crate::clients::Clients;
use crate::counters::Counters;
use crate::policy::Policies;
use crate::publish::CommitReservation;
use crate::sessions::Sessions;

pub(super) use dead_letter::Parking;
pub(super) use expire::{ExpiryResult, TrimTurn};
pub use parked::{ParkedFrom, parked_from, write_parked_properties, write_unparked_properties};

/// State kept between calls of the [`Republisher`].
#[derive(Debug, Default)]
pub(crate) struct RepublishState {
    /// The causes for which bridges parked messages, with the queues for these messages.
    parkings: Vec<Parking>,
    /// Buffer for the target queues of a copy. A publish has its own buffer, which may be in use at the same
    /// time.
    targets: Vec<QueueId>,
    /// Capacity that the `tx.commit` being carried out may still need.
    reservation: CommitReservation,
    /// Time of this turn in seconds since 1970: the `time` of dead letters.
    unix_s: u64,
    /// Minute in which a dropped dead letter was logged last.
    dropped_logged_minute: Option<u32>,
    /// The minute in which a message with shortened headers was last logged.
    shortened_logged_minute: Option<u32>,
    /// Hidden queues and slots from which held messages were settled. If they are deleted, their records may
    /// be unreferenced now.
    maybe_unreferenced: Vec<QueueId>,
}

impl RepublishState {
    /// Reserves the buffer for up to `queues` target queues.
    pub(crate) fn with_capacity(queues: usize) -> Self {
        Self { targets: Vec::with_capacity(queues), ..Self::default() }
    }

    /// Sets the capacity that a `tx.commit` may still need; nothing when it is done.
    pub(crate) const fn set_reservation(&mut self, reservation: CommitReservation) {
        self.reservation = reservation;
    }

    /// Returns the date in seconds since 1970; 0 until it was set.
    pub(crate) const fn unix_s(&self) -> u64 {
        self.unix_s
    }

    /// Sets the date in seconds since 1970. It is only written into headers; no decision depends on it.
    pub(crate) const fn set_unix_s(&mut self, unix_s: u64) {
        self.unix_s = unix_s;
    }

    /// Removes and returns the next hidden queue or slot whose record may be unreferenced.
    pub(crate) fn next_maybe_unreferenced(&mut self) -> Option<QueueId> {
        self.maybe_unreferenced.pop()
    }
}

/// The parts of the broker that republishing needs, borrowed for one call.
pub(crate) struct Republisher<'b> {
    pub(crate) republish: &'b mut RepublishState,
    pub(crate) firehose: &'b mut Firehose,
    pub(crate) queues: &'b mut Queues,
    pub(crate) topology: &'b mut Topology,
    pub(crate) quota: &'b mut Quota,
    pub(crate) counters: &'b mut Counters,
    pub(crate) policies: &'b Policies,
    pub(crate) access: &'b Access,
    pub(crate) clients: &'b Clients,
    pub(crate) sessions: &'b mut Sessions,
}

impl Republisher<'_> {
    /// Returns a counter that rises when capacity becomes free or routes change. Blocked messages are retried
    /// when it rises.
    fn freed_count(&self, pending_writes: &PendingWrites, messages: &Messages) -> u64 {
        let revision = self.topology.revision() + self.access.revision();
        self.queues.capacity_freed() + revision + pending_writes.capacity_freed() + messages.capacity_freed()
    }
}

/// A connection's name: two IPv6 addresses with their ports, and an arrow.
pub(crate) type TracedName = heapless::String<104>;

/// State of the firehose. While the firehose is off, it has no names of connections and takes no memory for
/// them.
#[derive(Debug, Default)]
pub(crate) struct Firehose {
    /// Whether any virtual host is traced.
    pub(crate) is_on: bool,
    /// The broker's node name, which is written into the copies.
    pub(crate) node: Box<str>,
    /// Names of connections, which are written into the copies, indexed by connection; empty while the
    /// firehose is off.
    pub(crate) names: Vec<TracedName>,
    /// Minute in which omitted copies were logged last.
    pub(crate) omitted_logged_minute: Option<u32>,
}
