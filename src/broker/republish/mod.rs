//! Publishes messages that the broker itself sends on: dead letters, delayed messages and firehose copies.
//!
//! A queue decides which message it removes and why. Where the message goes is a matter of routing, as for a
//! publish. Messages that were rejected, expired, over a limit, parked by a bridge or due after a delay, and
//! the copies of the firehose, all take the same path:
//!
//! ```text
//! first message, reason ──→ copy written, routed, capacity checked ──→ pushed to its queues ──→ original removed
//! ```
//!
//! | file | content |
//! |---|---|
//! | `dead_letter` | writes, routes and publishes a dead letter; the `x-death` header |
//! | `parked` | messages that the other side of a bridge refuses |
//! | `expire` | removes messages in bounded steps: rejected, expired, over the length limit |
//! | `delayed_release` | routes the messages of delayed exchanges when they are due |
//! | `firehose` | copies of published and delivered messages for an operator |
//!
//! # Invariants
//! - A message leaves its queue only when there is capacity in all target queues. Without capacity it stays
//!   in its queue: late, but not lost.
//! - Publishing the copy and settling the original are one group in the log.

mod dead_letter;
mod delayed_release;
mod expire;
mod firehose;
mod parked;

use leveret_core::command::QueueId;
use leveret_core::mem::Messages;
use leveret_core::pending_writes::PendingWrites;

use crate::access::Access;
use crate::consumers::Consumers;
use crate::policy::Policies;
use crate::publish::CommitReservation;
use crate::queue_flow::Queues;
use crate::quota::Quota;
use crate::state::Counters;
use crate::topology::Topology;

pub(super) use dead_letter::{Parking, Reason};
pub(super) use expire::{ExpiryResult, TrimTurn};
pub use parked::{parked_from, write_parked_properties, write_unparked_properties};

/// State kept between calls of the [`Republisher`].
#[derive(Debug, Default)]
pub(crate) struct RepublishState {
    /// Why bridges parked messages, and the queues these messages go to.
    parkings: Vec<Parking>,
    /// Buffer for the target queues of a copy. The buffer for those of a publish may be in use.
    targets: Vec<QueueId>,
    /// Capacity that the commit being carried out may still need.
    reservation: CommitReservation,
    /// Time of this turn in seconds since 1970: the `time` of dead letters.
    unix_s: u64,
    /// Minute in which a dropped dead letter was logged last.
    dropped_logged_minute: Option<u32>,
    /// Priority levels or delay slots that lost messages and may now be empty, so that their records can be
    /// deleted.
    maybe_empty: Vec<QueueId>,
}

impl RepublishState {
    /// Reserves the buffer for up to `queues` target queues.
    pub(crate) fn with_capacity(queues: usize) -> Self {
        Self { targets: Vec::with_capacity(queues), ..Self::default() }
    }

    /// Sets the capacity that a beginning commit may need, or none when it is over.
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

    /// Returns the next priority level or delay slot that may be empty.
    pub(crate) fn next_maybe_empty(&mut self) -> Option<QueueId> {
        self.maybe_empty.pop()
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
    pub(crate) consumers: &'b Consumers,
}

impl Republisher<'_> {
    /// Returns a counter that rises when capacity becomes free or routing changes: what a blocked message may
    /// wait for.
    fn freed_count(&self, pending_writes: &PendingWrites, messages: &Messages) -> u64 {
        let revision = self.topology.revision() + self.access.revision();
        self.queues.capacity_freed() + revision + pending_writes.capacity_freed() + messages.capacity_freed()
    }
}

/// A connection's name: two IPv6 addresses with their ports, and an arrow.
pub(crate) type TracedName = heapless::String<104>;

/// State of the firehose. It takes no memory while the firehose is off; the memory table counts one name per
/// connection.
#[derive(Debug, Default)]
pub(crate) struct Firehose {
    /// Whether any virtual host is traced.
    pub(crate) is_on: bool,
    /// The broker's node name in the copies.
    pub(crate) node: Box<str>,
    /// Names of connections in the copies, indexed by connection; empty while the firehose is off.
    pub(crate) names: Vec<TracedName>,
    /// Minute in which missing copies were logged last.
    pub(crate) omitted_logged_minute: Option<u32>,
}
