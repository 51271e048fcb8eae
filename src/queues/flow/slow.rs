//! The queues of MQTT sessions whose connected clients do not keep up with their messages.
//!
//! ```text
//! InTime ── over its limits ──→ Behind ←── over ── within ──→ CatchingUp
//!    ↑                             │ over 10 s after the first time
//!    └── within half of them ── Dropping
//! ```
//!
//! A client that takes a little now and then, or that connects again and again, does not begin the 10 s anew. They begin anew
//! only after its queue was within half of its limits.
//!
//! The messages that a client has not acknowledged do not count in these limits, but they can use up its queue's share of the
//! memory. Then publishers cannot go on at all, AMQP publishers too. They wait 10 s for the queue, and afterwards the session
//! gets no message while it is over its share. That ends when the queue uses so much less that publishers may go on.
//!
//! # Invariants
//! - A queue is in `SlowQueues::slow` exactly while its pace is not [`Pace::InTime`], from one check to the next.

use leveret_core::command::{ConnectionId, QueueId};

use super::Queues;
use crate::records::{FreeMemory, Pace, QueueKind, SessionPart};

/// The longest time that publishers wait for a slow client, in milliseconds. Afterwards its session drops messages until the
/// client has caught up, so that one slow client cannot stop all publishers again and again.
const WAIT_MS_MAX: u64 = 10_000;

/// The most slow clients that publishers wait for. The sessions of further ones drop messages from twice their limits on.
const SLOW_CLIENTS_MAX: usize = 256;

/// The most publishers that wait for one slow client. More may come if clients connect, publish and leave in a loop.
const PUBLISHERS_MAX: usize = 4096;

/// The queue of a slow client.
#[derive(Debug)]
struct SlowQueue {
    queue: QueueId,
    /// The queue's [`serial`](crate::records::Queue), because another queue may get its place.
    serial: u64,
    /// When the client fell behind, in milliseconds of broker time.
    since_ms: u64,
    /// Publishers whose acknowledgements wait for the queue.
    publishers: Vec<ConnectionId>,
}

/// The queue of a session that was over its share of the memory, and does not yet use so much less that publishers may go on.
#[derive(Debug)]
struct FullQueue {
    queue: QueueId,
    serial: u64,
    /// When a publisher found it full, in milliseconds of broker time.
    since_ms: u64,
    /// Publishers have waited long enough, and were told so.
    has_waited: bool,
}

/// The queues of slow clients.
#[derive(Debug, Default)]
pub(super) struct SlowQueues {
    /// Queues over the limits of their sessions, and those that catch up.
    slow: Vec<SlowQueue>,
    /// Queues over their share of the memory.
    full: Vec<FullQueue>,
}

/// What a check of the slow queues has found.
#[derive(Debug, Default)]
pub struct PaceChanges {
    /// Publishers that wait no longer.
    pub released: Vec<(ConnectionId, QueueId)>,
    /// Queues that may be over limits that are lower than before.
    pub to_trim: Vec<QueueId>,
}

impl Queues {
    /// Returns whether any connected client of MQTT does not keep up.
    #[inline]
    pub const fn has_slow_clients(&self) -> bool {
        !self.slow.slow.is_empty() || !self.slow.full.is_empty()
    }

    /// Notes that a publisher found the queue of a session over its share of the memory. Returns whether the session gets no
    /// message: publishers have waited long enough for it, or there are too many such sessions to wait for.
    pub fn drops_for_share(&mut self, queue: QueueId, now_ms: u64) -> bool {
        let serial = self.records[queue].serial;
        let full = &mut self.slow.full;
        if let Some(full) = full.iter().find(|full| full.queue == queue && full.serial == serial) {
            return full.has_waited;
        }
        let has_room = full.len() < SLOW_CLIENTS_MAX;
        if has_room {
            full.push(FullQueue { queue, serial, since_ms: now_ms, has_waited: false });
        }
        !has_room
    }

    /// Returns whether a session gets no messages while it is over its share of the memory.
    pub fn is_dropping_for_share(&self, queue: QueueId) -> bool {
        self.slow.full.iter().any(|full| full.queue == queue && full.has_waited)
    }

    /// Notes which sessions publishers have waited for long enough, and which are not full any more.
    fn check_full(&mut self, now_ms: u64, free: FreeMemory) {
        let Self { records, slow, .. } = self;
        let before = slow.full.len();
        slow.full.retain(|full| {
            let record = records.get(full.queue.index());
            let is_there = record.is_some_and(|record| record.serial == full.serial && !record.is_deleted());
            is_there && !records.is_well_within_share(free, full.queue)
        });
        let is_due = |full: &&mut FullQueue| !full.has_waited && now_ms >= full.since_ms + WAIT_MS_MAX;
        let due_count = slow.full.iter_mut().filter(is_due).map(|full| full.has_waited = true).count();
        if due_count > 0 || slow.full.len() < before {
            self.note_release();
        }
    }

    fn has_full_changes(&self, now_ms: u64) -> bool {
        self.slow.full.iter().any(|full| !full.has_waited && now_ms >= full.since_ms + WAIT_MS_MAX)
    }

    /// Returns the queues of sessions that drop messages, because publishers have waited long enough for their clients.
    pub fn dropping_queues(&self) -> impl Iterator<Item = QueueId> {
        let is_dropping = |queue: &QueueId| self.records[*queue].pace() == Pace::Dropping;
        // A queue that is on both lists is named once.
        let is_there = |full: &&FullQueue| {
            let record = self.records.get(full.queue.index());
            let record = record.filter(|record| record.serial == full.serial && !record.is_deleted());
            full.has_waited && record.is_some_and(|record| record.pace() != Pace::Dropping)
        };
        let full = self.slow.full.iter().filter(is_there).map(|full| full.queue);
        self.connected_slow_clients().filter(is_dropping).chain(full)
    }

    /// Returns the number of connected clients that do not keep up.
    pub fn slow_clients_count(&self) -> usize {
        self.connected_slow_clients().filter(|queue| self.records.is_of_slow_client(*queue)).count()
    }

    fn connected_slow_clients(&self) -> impl Iterator<Item = QueueId> {
        let existing = self.slow.slow.iter().filter(|slow| self.pace_of(slow).is_some());
        existing.map(|slow| slow.queue).filter(|queue| !self.records[*queue].queue_consumers.is_empty())
    }

    /// Notes that a client has fallen behind, if its queue exceeds its limits now.
    pub(super) fn note_pace(&mut self, queue: QueueId, now_ms: u64) {
        let record = &self.records[queue];
        let (pace, serial) = (record.pace(), record.serial);
        let is_noted = match pace {
            Pace::InTime => self.slow.slow.len() == SLOW_CLIENTS_MAX,
            Pace::CatchingUp => false,
            Pace::Behind | Pace::Dropping => true,
        };
        if is_noted || !self.records.exceeds_session_limits(queue, SessionPart::Whole, true) {
            return;
        }
        if pace == Pace::InTime {
            self.slow.slow.push(SlowQueue { queue, serial, since_ms: now_ms, publishers: Vec::new() });
        }
        let listed = self.slow.slow.iter().find(|slow| slow.queue == queue && slow.serial == serial);
        let has_waited = listed.is_none_or(|slow| now_ms >= slow.since_ms + WAIT_MS_MAX);
        self.set_pace(queue, if has_waited { Pace::Dropping } else { Pace::Behind });
    }

    /// Removes the queues of slow clients from the targets of a message with QoS 0, and counts the message as dropped.
    pub fn drop_for_slow_clients(&mut self, targets: &mut Vec<QueueId>) {
        targets.retain(|queue| {
            let is_refused = self.records.refuses_transient(*queue);
            if is_refused {
                self.count_dropped(*queue);
            }
            !is_refused
        });
    }

    /// Makes the acknowledgements of a publisher wait until the client of this queue has caught up. Returns whether it waits.
    pub fn wait_for_client(&mut self, queue: QueueId, publisher: ConnectionId) -> bool {
        let at = self.slow.slow.iter().position(|slow| slow.queue == queue && self.pace_of(slow).is_some());
        let slow = at.map(|at| &mut self.slow.slow[at]);
        let Some(slow) = slow.filter(|slow| slow.publishers.len() < PUBLISHERS_MAX) else { return false };
        slow.publishers.push(publisher);
        true
    }

    /// Returns whether [`Self::check_pace`] would change something.
    pub fn has_pace_changes(&self, now_ms: u64) -> bool {
        self.has_full_changes(now_ms)
            || self
                .slow
                .slow
                .iter()
                .any(|slow| self.next_pace(slow, now_ms).is_none_or(|next| Some(next) != self.pace_of(slow)))
    }

    /// Returns when publishers have waited long enough for a slow client, in milliseconds of broker time.
    pub fn next_pace_change_ms(&self) -> Option<u64> {
        let behind = self.slow.slow.iter().filter(|slow| self.pace_of(slow) == Some(Pace::Behind));
        let full = self.slow.full.iter().filter(|full| !full.has_waited).map(|full| full.since_ms);
        behind.map(|slow| slow.since_ms).chain(full).min().map(|since_ms| since_ms + WAIT_MS_MAX)
    }

    /// Updates the pace of all slow clients.
    pub fn check_pace(&mut self, now_ms: u64, free: FreeMemory) -> PaceChanges {
        self.check_full(now_ms, free);
        let (mut changes, mut list) = (PaceChanges::default(), core::mem::take(&mut self.slow.slow));
        list.retain_mut(|slow| {
            let next = self.next_pace(slow, now_ms);
            if next.is_some() && next == self.pace_of(slow) {
                return true;
            }
            changes.released.extend(slow.publishers.drain(..).map(|publisher| (publisher, slow.queue)));
            let Some(next) = next else { return false };
            self.set_pace(slow.queue, next);
            let record = &self.records[slow.queue];
            if next == Pace::Dropping || next == Pace::InTime && record.queue_consumers.is_empty() {
                changes.to_trim.push(slow.queue);
            }
            next != Pace::InTime
        });
        self.slow.slow = list;
        changes
    }

    /// Returns the pace of a queue that was put on the list; `None` if it does not exist any more. A queue that is no longer
    /// that of a session is deleted.
    fn pace_of(&self, slow: &SlowQueue) -> Option<Pace> {
        let record = self.records.get(slow.queue.index())?;
        (record.serial == slow.serial && !record.is_deleted()).then_some(record.pace())
    }

    fn set_pace(&mut self, queue: QueueId, next: Pace) {
        if let QueueKind::MqttSession { pace, .. } = &mut self.records[queue].kind {
            *pace = next;
        }
    }

    fn next_pace(&self, slow: &SlowQueue, now_ms: u64) -> Option<Pace> {
        let pace = self.pace_of(slow)?;
        let record = &self.records[slow.queue];
        let exceeds = |part| self.records.exceeds_session_limits(slow.queue, part, true);
        let has_waited = now_ms >= slow.since_ms + WAIT_MS_MAX;
        Some(match pace {
            Pace::InTime => Pace::InTime,
            _ if !exceeds(SessionPart::Half) => Pace::InTime,
            Pace::Dropping => Pace::Dropping,
            Pace::Behind | Pace::CatchingUp if !exceeds(SessionPart::Whole) => Pace::CatchingUp,
            Pace::Behind | Pace::CatchingUp if has_waited => Pace::Dropping,
            // Publishers do not wait for a client that is away.
            Pace::Behind if !record.queue_consumers.is_empty() => Pace::Behind,
            Pace::Behind | Pace::CatchingUp => Pace::CatchingUp,
        })
    }
}
