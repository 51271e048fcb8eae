//! Expiry, length limits and purging of queues.
//!
//! As in RabbitMQ's classic queues, an expired message is removed only when it is the first message of its
//! queue, on all levels. Each queue therefore has one time at which it is examined (`schedule`): the expiry
//! time of its first message. Times are broker time: the sum of the run times of the process. They need no
//! real-time clock, which a board may not have.
//!
//! ```text
//! first message in memory:  arrival + lower of its own and the queue's time to live ──→ examined at that time
//! only in the log:          peek (reads its record only) ──→ examined at that time ──→ read back when due
//! ```
//!
//! # Invariants
//! - A message that is dead-lettered leaves its queue only when the dead letter is routed. Until then the
//!   message stays in its queue or, if it was rejected, among the queue's rejected messages, which are not
//!   delivered.
//! - An expired message is not delivered, not even while there is no capacity for its dead letter.
//! - A queue is examined at the latest when its first message expires. If the expiry time is unknown, it is
//!   read from the log.
//! - A message that will expire needs no memory for a timer.

use std::collections::VecDeque;

use leveret_amqp::props::Properties;
use leveret_core::command::QueueId;
use leveret_core::mem::{MessageFlags, MessageId};
use leveret_core::work::Work;
use leveret_storage::{Context, PendingWrites};

use super::Queues;
use super::page_in::{LogRead, ReadMessage};
use crate::expiration::expiration_ms;
use crate::records::{EntryContent, First, PeekedExpiry, Purged, PurgedItem};

/// Maximum number of messages that one command drops from a queue that is over its length limit.
const DROP_STEP: u32 = 512;
/// A queue with a ready consumer may exceed its length limit by this many messages, which the consumer may
/// take.
const BURST_MESSAGES: u64 = 2_048;
/// Maximum number of due queues that one turn puts on the trim list.
const DUE_STEP: u32 = 512;

/// The time after its expiry for which a message may still be delivered, in milliseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ExpiryGrace {
    /// No time: for a `basic.get`, and for a requeued message.
    No = 0,
    /// The turn in which the message arrived: as in RabbitMQ, a waiting consumer gets even a message with a
    /// time to live of 0.
    OneTurn = 1,
}

/// Whether, and when, a queue's first message expires.
enum FrontExpiry {
    Nothing,
    /// Only the log has the message, and its expiry is unknown.
    Unknown,
    /// Only the log has the message, and it has expired.
    DueAbsent,
    /// The message expires at this broker time in milliseconds; `u64::MAX` for never.
    At(u64),
}

impl Queues {
    /// Returns whether any queue has messages to expire or trim and may be able to do so. `capacity_freed`
    /// returns the counter of freed capacity.
    pub fn may_expire_or_trim(
        &self,
        pending_writes: &PendingWrites,
        capacity_freed: impl Fn() -> u64,
    ) -> bool {
        self.next_expiry_ms().is_some_and(|at| at <= pending_writes.time_ms())
            || self.trim_list.is_due(&capacity_freed)
            || self.may_release_delayed(pending_writes, capacity_freed)
    }

    /// Returns whether a delayed message is due and may be moved or routed. `capacity_freed` returns the
    /// counter of freed capacity.
    pub fn may_release_delayed(
        &self,
        pending_writes: &PendingWrites,
        capacity_freed: impl Fn() -> u64,
    ) -> bool {
        self.delay_wheel.is_due(pending_writes.time_ms(), capacity_freed)
    }

    /// Drops the oldest messages of a queue without dead letters that is over its length limit.
    pub fn drop_excess(&mut self, cx: &mut Context<'_>, queue: QueueId) {
        let queue = self.records.queue_of_level(queue);
        assert!(!self.records.has_dead_letters(queue), "the queue dead-letters its excess messages");
        // More than one message is over the limit only when the limit was lowered.
        for _ in 0..DROP_STEP {
            let level = self.records.first_level(queue);
            if !self.records.is_over_length(queue) || !self.drop_first(cx, level) {
                return;
            }
            self.count_dropped(queue);
            self.examine_next_level(queue, level);
        }
        self.relist_for_trim(queue);
    }

    /// Counts a message that was dropped because of the length limit of its queue.
    pub fn count_dropped(&mut self, queue: QueueId) {
        let record = &mut self.records[queue];
        record.dropped_count = record.dropped_count.wrapping_add(1);
        self.session_messages_dropped += u64::from(record.session().is_some());
    }

    /// Returns the number of messages that were dropped in the queues of MQTT sessions since the start.
    pub const fn session_messages_dropped(&self) -> u64 {
        self.session_messages_dropped
    }

    /// Applies the length limit of each queue to which a copy was pushed.
    ///
    /// Queues with a dead-letter exchange are put on the trim list instead: only one dead letter is published
    /// at a time.
    #[cold]
    pub(crate) fn enforce_limits_after_copy(
        &mut self,
        cx: &mut Context<'_>,
        message: MessageId,
        queues: &[QueueId],
    ) {
        for &queue in queues {
            self.note_arrival(cx, queue, message);
        }
        for &queue in queues {
            let is_over = self.is_over_after_push(queue, cx.pending_writes.time_ms());
            if is_over && self.records.has_dead_letters(queue) {
                self.relist_for_trim(queue);
            } else if is_over {
                self.drop_excess(cx, queue);
            }
            if is_over && self.records[queue].settings.may_expire {
                self.schedule(cx, queue);
            }
        }
    }

    /// Returns whether a queue is over its length limit after a message was pushed.
    pub fn is_over_after_push(&mut self, queue: QueueId, now_ms: u64) -> bool {
        let queue_record = &self.records[self.records.queue_of_level(queue)];
        if !queue_record.settings.limits_length {
            return false;
        }
        if queue_record.session().is_some() && !queue_record.queue_consumers.is_empty() {
            self.note_pace(queue, now_ms);
            return self.records.is_over_length(queue);
        }
        // A ready consumer may take the message before the queue is over its limit.
        match queue_record.queue_consumers.is_ready() {
            true => self.is_far_over_length(queue),
            false => self.records.is_over_length(queue),
        }
    }

    /// Examines the queue's new first message, if `level` lost its last message and another level is the
    /// first one now.
    pub fn examine_next_level(&mut self, queue: QueueId, level: QueueId) {
        if self.records.first_level(queue) != level {
            self.examine_first_level(queue);
        }
    }

    /// Returns the first message if it is in memory, its id, and whether the log has it too.
    pub fn first_in_memory(&self, queue: QueueId) -> Option<(First, MessageId, bool)> {
        let first = self.first(queue)?;
        let (message, is_logged) = match first {
            First::Absent(_) | First::At(_, EntryContent::AbsentRun(..)) => return None,
            First::Requeued => {
                let backlog = &self.records[queue].backlog;
                let (message, log_offset) = backlog.first_requeued(&self.pool, &self.deliveries);
                (message, log_offset.is_some())
            }
            First::At(_, EntryContent::InMemory(message)) => (message, false),
            First::At(_, EntryContent::InMemoryAndLog(message, _)) => (message, true),
        };
        Some((first, message, is_logged))
    }

    /// Settles the first rejected message. Returns `false` if there is none.
    pub fn drop_rejected(&mut self, cx: &mut Context<'_>, queue: QueueId) -> bool {
        let backlog = &mut self.records[queue].backlog;
        let Some(delivery) = backlog.take_rejected(&mut self.deliveries, cx.messages) else { return false };
        self.settle_delivered(cx, queue, &delivery);
        self.releases += 1;
        true
    }

    /// Returns whether the queue is so far over its length limit that it drops messages although a consumer
    /// is ready.
    ///
    /// That is the case from [`BURST_MESSAGES`] messages on, which a consumer gets in one or two turns, or from a quarter of
    /// the memory on. A single message is not dropped, whatever its length: the consumer takes it.
    pub fn is_far_over_length(&self, queue: QueueId) -> bool {
        let settings = &self.settings;
        let messages = BURST_MESSAGES.min(u64::from(settings.messages) / 4);
        self.records.ready_in(queue) > 1
            && self.records.is_over_length_by(queue, messages, settings.body_bytes / 4)
    }

    // ---- purging

    /// Takes all ready messages out of a queue and its levels. Returns the number of messages, and for each
    /// level with messages the parts that the caller must drop in a job.
    pub fn purge(&mut self, queue: QueueId) -> (u32, Vec<(QueueId, Box<Purged>)>) {
        let (mut level, mut count, mut parts) = (self.records.highest_level(queue), 0, Vec::new());
        loop {
            let (messages, taken) = self.detach_messages(level);
            if messages > 0 || level == queue {
                count += messages;
                parts.push((level, taken));
            } else {
                self.end_blocking_job(level);
            }
            let Some(below) = self.records.below(level) else { return (count, parts) };
            level = below;
        }
    }

    /// Takes all ready messages out of a queue or a level. Returns their number, and the parts, which a job
    /// must drop.
    pub(crate) fn detach_messages(&mut self, queue: QueueId) -> (u32, Box<Purged>) {
        let record = &mut self.records[queue];
        let (count, parts) = record.backlog.take_all();
        // Counts the job that will drop the messages, so that the queue's record stays until then.
        record.blocking_jobs += 1;
        (count, Box::new(parts))
    }

    pub(super) fn purge_entry(&mut self, cx: &mut Context<'_>, queue: QueueId, content: EntryContent) {
        match content {
            EntryContent::InMemory(message) => cx.messages.release(message),
            EntryContent::InMemoryAndLog(message, offset) => {
                self.settle_logged(cx, queue, Some(offset), message);
                cx.messages.release(message);
            }
            EntryContent::AbsentRun(start, count) => self.settle_run(cx.pending_writes, queue, start, count),
        }
    }

    /// Settles and releases the next item of a purged queue. Returns `false` if there is none.
    pub fn drop_purged(&mut self, cx: &mut Context<'_>, queue: QueueId, parts: &mut Purged) -> bool {
        let item = parts.pop(&mut self.pool, &mut self.deliveries);
        match item {
            Some(PurgedItem::Delivered(delivery)) => self.settle_delivered(cx, queue, &delivery),
            Some(PurgedItem::Entry(content)) => self.purge_entry(cx, queue, content),
            None => return false,
        }
        self.releases += 1;
        true
    }

    // ---- expiry

    /// Puts the queues whose time has come on the trim list: they have an expired message or are expired
    /// themselves.
    pub fn take_due(&mut self, pending_writes: &PendingWrites) {
        for _ in 0..DUE_STEP {
            let Some((at, queue)) = self.schedule.pop(pending_writes.time_ms()) else { return };
            let record = self.records.get_mut(queue.index());
            if let Some(record) =
                record.filter(|record| record.times.due_ms == at && record.delayed_exchange().is_none())
            {
                record.times.due_ms = u64::MAX;
                self.relist_for_trim(queue);
            }
        }
    }

    /// Notes the arrival of a message in a queue whose messages may expire, or of a message with its own time
    /// to live.
    pub fn note_arrival(&mut self, cx: &mut Context<'_>, queue: QueueId, message: MessageId) {
        let expires = cx.messages.flags(message).has(MessageFlags::EXPIRES);
        let record = &self.records[queue];
        if record.delayed_exchange().is_some() {
            return self.note_delayed_arrival(cx, message);
        }
        let is_first_to = expires && !record.settings.may_expire;
        if !expires && !record.settings.may_expire {
            return;
        }
        if is_first_to {
            self.records.note_may_expire(queue);
        }
        if cx.messages.arrived_ms(message) == 0 {
            cx.messages.set_arrived_ms(message, cx.pending_writes.time_ms().max(1));
        }
        // The queue is scheduled for its first message, so only a message that is the first one changes the
        // schedule.
        if is_first_to || self.records[queue].backlog.ready() == 1 {
            self.schedule(cx, queue);
        }
    }

    /// Schedules when a queue is examined next: when its first message expires, or when the queue itself
    /// expires.
    #[cold]
    pub fn schedule(&mut self, cx: &mut Context<'_>, queue: QueueId) {
        let mut due_ms = self.records.unused_until_ms(cx.pending_writes, queue);
        if self.records[queue].settings.may_expire {
            match self.front_expiry(cx, queue, ExpiryGrace::OneTurn) {
                FrontExpiry::Nothing => {}
                FrontExpiry::Unknown => self.request_peek(queue),
                FrontExpiry::DueAbsent => self.request_read(queue),
                FrontExpiry::At(at) => due_ms = due_ms.min(at),
            }
        }
        self.note_due(queue, due_ms);
    }

    /// Returns whether the first message of a queue has expired and is in memory.
    pub fn has_expired(&mut self, cx: &mut Context<'_>, queue: QueueId, grace: ExpiryGrace) -> bool {
        matches!(self.front_expiry(cx, queue, grace), FrontExpiry::At(at) if at <= cx.pending_writes.time_ms())
    }

    #[inline(never)]
    fn front_expiry(&mut self, cx: &mut Context<'_>, queue: QueueId, mut grace: ExpiryGrace) -> FrontExpiry {
        let record = &self.records[queue];
        let has_blocking_job =
            record.blocking_jobs > 0 || self.records[self.records.queue_of_level(queue)].blocking_jobs > 0;
        if record.is_deleted() || has_blocking_job || !self.records.is_first_level(queue) {
            return FrontExpiry::Nothing;
        }
        let message = match self.first(queue) {
            None => return FrontExpiry::Nothing,
            Some(First::Absent(offset) | First::At(_, EntryContent::AbsentRun(offset, _))) => {
                return self.absent_front_expiry(cx.pending_writes, queue, offset);
            }
            // The message had its extra turn for a waiting consumer before it was delivered and requeued.
            Some(First::Requeued) => {
                grace = ExpiryGrace::No;
                record.backlog.first_requeued(&self.pool, &self.deliveries).0
            }
            Some(First::At(
                _,
                EntryContent::InMemory(message) | EntryContent::InMemoryAndLog(message, _),
            )) => message,
        };
        let (queue_ttl_ms, since_ms) = (record.settings.message_ttl_ms, record.times.ttl_since_ms);
        let ttl_ms = queue_ttl_ms.min(self.own_ttl_ms(cx, message));
        if ttl_ms == u64::MAX {
            return FrontExpiry::At(u64::MAX);
        }
        if cx.messages.arrived_ms(message) == 0 {
            // The message arrived before its queue had a time to live.
            let now_ms = cx.pending_writes.time_ms().max(1);
            cx.messages.set_arrived_ms(message, if since_ms == 0 { now_ms } else { since_ms });
        }
        FrontExpiry::At(cx.messages.arrived_ms(message).saturating_add(ttl_ms.max(grace as u64)))
    }

    fn absent_front_expiry(
        &self,
        pending_writes: &PendingWrites,
        queue: QueueId,
        offset: u64,
    ) -> FrontExpiry {
        let peeked = self.records[queue].times.peeked;
        match () {
            () if !peeked.is_of(offset) => FrontExpiry::Unknown,
            () if peeked.due_ms <= pending_writes.time_ms() => FrontExpiry::DueAbsent,
            () => FrontExpiry::At(peeked.due_ms),
        }
    }

    /// Returns the message's own time to live in milliseconds; `u64::MAX` for none.
    fn own_ttl_ms(&mut self, cx: &mut Context<'_>, message: MessageId) -> u64 {
        if !cx.messages.flags(message).has(MessageFlags::EXPIRES) {
            return u64::MAX;
        }
        let properties = cx.messages.properties(message, &mut self.scratch.properties);
        cx.work.charge_octets(properties.len());
        // The expiration was validated when the message was published.
        expiration_ms(&Properties::trusted(properties)).ok().flatten().unwrap_or(u64::MAX)
    }

    // ---- messages that only the log has

    /// Requests the expiry time of the first message of a queue that was restored with messages in the log.
    ///
    /// Without the expiry time, expired messages of a queue without consumers would never be removed from the
    /// log. The time is requested even if the queue has no time to live, because messages may have their own.
    #[cold]
    pub fn examine_stored(&mut self, queue: QueueId) {
        match self.records[queue].delayed_exchange() {
            Some(_) => self.note_slot_restored(queue),
            None => self.request_peek(queue),
        }
    }

    /// Notes the expiry time of the first message of a queue, whose record was read from the log by a peek.
    #[cold]
    pub(crate) fn note_peeked(&mut self, fetch: &LogRead, page: &ReadMessage<'_>) {
        if self.records[fetch.queue].delayed_exchange().is_some() {
            self.records[fetch.queue].times.peeked = PeekedExpiry::of(page.offset, u64::MAX);
            return self.set_slot_time(fetch.queue, page);
        }
        let own_ttl_ms = expiration_ms(&Properties::trusted(page.properties)).ok().flatten();
        if own_ttl_ms.is_some() {
            self.records.note_may_expire(fetch.queue);
        }
        let record = &mut self.records[fetch.queue];
        let ttl_ms = own_ttl_ms.unwrap_or(u64::MAX).min(record.settings.message_ttl_ms);
        record.times.peeked = PeekedExpiry::of(page.offset, page.enqueued_ms.saturating_add(ttl_ms));
    }
}

/// Removing a message counts as one step, plus one step for each of this many units of work.
const UNITS_PER_STEP: u32 = 16;

/// The list of queues that have messages to expire, trim or dead-letter.
///
/// # Invariants
/// - A queue is on the list once.
/// - When no queue on the list could remove a message, the list is processed again only after capacity became
///   free or [`TrimList::note_change`] was called.
#[derive(Debug)]
pub struct TrimList {
    queues: VecDeque<QueueId>,
    /// Number of queues that were processed in a row without removing a message, since the last change.
    stuck: usize,
    /// Value of the counter of freed capacity when a queue was processed last.
    capacity_freed_seen: u64,
    /// Value of the counter of freed capacity when no queue could remove a message; `None` if the list is to
    /// be processed.
    stuck_at: Option<u64>,
}

impl TrimList {
    /// Creates an empty list with capacity for all queues.
    pub fn with_capacity(queues: usize) -> Self {
        Self { queues: VecDeque::with_capacity(queues), stuck: 0, capacity_freed_seen: 0, stuck_at: None }
    }

    /// Returns the number of queues on the list.
    pub fn queue_count(&self) -> usize {
        self.queues.len()
    }

    /// Returns whether the list is to be processed. `capacity_freed` returns the counter of freed capacity.
    pub fn is_due(&self, capacity_freed: impl FnOnce() -> u64) -> bool {
        !self.queues.is_empty() && self.stuck_at.is_none_or(|stuck_at| stuck_at != capacity_freed())
    }

    /// Appends a queue that is not on the list.
    pub fn push(&mut self, queue: QueueId) {
        self.queues.push_back(queue);
    }

    /// Removes and returns the first queue.
    pub fn pop(&mut self) -> Option<QueueId> {
        let queue = self.queues.pop_front();
        if self.queues.is_empty() {
            // Otherwise queues that come one by one would use all places of the ring, one after the other.
            self.queues.clear();
        }
        queue
    }

    /// Makes all queues on the list be processed again, because the reason why they could remove nothing may
    /// have ended.
    pub const fn note_change(&mut self) {
        self.stuck_at = None;
        self.stuck = 0;
    }

    /// Begins to process queues in this turn. `capacity_freed` is the counter of freed capacity.
    pub const fn begin(&mut self, capacity_freed: u64) {
        if capacity_freed != self.capacity_freed_seen {
            self.stuck = 0;
        }
    }

    /// Notes that a queue was processed, and whether it removed a message.
    pub const fn note_step(&mut self, has_removed: bool) {
        self.stuck = if has_removed { 0 } else { self.stuck + 1 };
    }

    /// Ends the processing of queues in this turn. `capacity_freed` is the counter of freed capacity.
    pub fn end(&mut self, capacity_freed: u64) {
        self.capacity_freed_seen = capacity_freed;
        self.stuck_at = (self.stuck >= self.queues.len()).then_some(capacity_freed);
        if self.stuck_at.is_some() {
            self.stuck = 0;
        }
    }

    /// Removes a deleted queue from the list.
    pub fn remove(&mut self, queue: QueueId) {
        self.queues.retain(|other| *other != queue);
    }
}

/// Subtracts one step from `left`, and further steps for the work units charged since `units_before`:
/// dead-lettering a message copies its body and routes it.
pub const fn subtract_steps(left: &mut u32, units_before: u32, work: &Work) {
    let units = work.units().saturating_sub(units_before);
    *left = left.saturating_sub(1 + units / UNITS_PER_STEP);
}

#[cfg(test)]
mod trim_list_tests {
    use super::*;

    /// Processes, without success, as many queues as a turn has time for. Returns whether more are to be
    /// processed.
    fn turn(list: &mut TrimList, capacity_freed: u64) -> bool {
        list.begin(capacity_freed);
        for _ in 0..64 {
            let queue = list.pop().expect("a queue");
            list.push(queue);
            list.note_step(false);
        }
        list.end(capacity_freed);
        list.is_due(|| capacity_freed)
    }

    /// A change between two turns of a round concerns also the queues that were processed in the first.
    #[test]
    fn queues_processed_before_a_change_are_processed_again() {
        let mut list = TrimList::with_capacity(100);
        (0..100).for_each(|index| list.push(QueueId::from_index(index)));
        assert_eq!([turn(&mut list, 1), turn(&mut list, 1)], [true, false], "nothing changed");
        list.note_change();
        assert!(turn(&mut list, 1));
        list.note_change();
        assert_eq!(
            [turn(&mut list, 1), turn(&mut list, 1)],
            [true, false],
            "all queues were processed after the change"
        );
        assert_eq!(
            [turn(&mut list, 2), turn(&mut list, 3)],
            [true; 2],
            "capacity became free before each turn"
        );
        assert!(!turn(&mut list, 3));
    }
}
