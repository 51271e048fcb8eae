//! What a queue gives up: messages beyond its length, expired, rejected or purged; and queues that nobody uses.
//!
//! As in RabbitMQ's classic queues a message expires when it stands first, with priorities in all levels of its queue
//! together; messages behind it have to wait. So a queue has one time at which it is looked at (`expiry`), that of its
//! first message. Times are those of the broker, added up over its lives, so nothing here depends on a clock that a
//! board may not have.
//!
//! ```text
//! first message in memory:  arrival, own time, queue's time ──→ looked at then
//! only the log has it:      peek (its record alone is read) ──→ looked at then ──→ read back when due
//! ```
//!
//! Always true: a message that goes on as a dead letter leaves its queue only when the letter is routed; until then it
//! is in its queue, as it was, or among the rejected messages, which nobody is given any more; an expired message is
//! given to nobody, not even while there is no room for its dead letter; a queue is looked at no later than its first
//! message expires, and reads that time from the log where it is not known; waiting to expire takes no memory.

use std::collections::VecDeque;

use leveret_amqp::props::Properties;
use leveret_core::command::{ChannelId, ConnectionId, QueueId};
use leveret_core::journal::{Journal, Mode};
use leveret_core::mem::{MessageFlags, MessageId, Messages};

use super::Queues;
use super::page_in::{Fetch, Page};
use crate::Context;
use crate::arguments::expiration_ms;
use crate::context::Work;
use crate::queue::{First, Peeked, Place, Purged, PurgedItem, Queue, Size, block_bytes};
use crate::quota::Quota;

/// Messages that one command makes a queue drop at most, when its length limit has become smaller.
const DROP_STEP: u32 = 512;
/// Messages beyond its length limit that a queue keeps for a consumer that is ready for them.
const BURST_MESSAGES: u64 = 2_048;
/// Queues with something expired that one turn takes up.
const DUE_STEP: u32 = 512;

/// How long an expired message may still be delivered, in milliseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Patience {
    /// No consumer waits for the message.
    No = 0,
    /// A waiting consumer may have the message in the turn in which it came.
    OneTurn = 1,
}

/// Whether, and when, a queue's first message expires.
enum Head {
    Nothing,
    /// Only the log has the message, and its expiry is not known.
    Unknown,
    /// Only the log has the message, and it has expired.
    DueAbsent,
    /// The message expires then, in milliseconds of broker time; the largest number for never.
    At(u64),
}

impl Queues {
    /// Whether some queue has messages to give up, and may be able to, with this count of room made.
    pub(crate) fn may_give_up(&self, journal: &Journal, room_made: impl Fn() -> u64) -> bool {
        self.next_expiry_ms().is_some_and(|at| at <= journal.time_ms())
            || self.shedding.is_due(&room_made)
            || self.may_wake(journal, room_made)
    }

    /// Whether a delayed message is due and may be moved, with this count of room made.
    pub(crate) fn may_wake(&self, journal: &Journal, room_made: impl Fn() -> u64) -> bool {
        self.delay_wheel.is_due(journal.time_ms(), room_made)
    }

    /// Drops the oldest messages of a queue without dead letters that is over its length limit.
    pub(crate) fn drop_excess(&mut self, cx: &mut Context<'_>, queue: QueueId) {
        let queue = self.records.queue_of_level(queue);
        assert!(!self.records.has_dead_letters(queue), "what goes on is not dropped");
        // More messages are too many only when the limit has become smaller.
        for _ in 0..DROP_STEP {
            let level = self.records.first_level(queue);
            if !self.records.is_over_length(queue) || !self.drop_first(cx, level) {
                return;
            }
            self.note_taken_off(queue, level);
        }
        self.note_shed_anew(queue);
    }

    /// Checks the length limit of each queue that a dead letter came into; dead letters that this causes are
    /// seen to later, for one at a time is being written.
    #[cold]
    pub(crate) fn enforce_limits_after_letter(
        &mut self,
        cx: &mut Context<'_>,
        message: MessageId,
        queues: &[QueueId],
    ) {
        for &queue in queues {
            self.note_arrival(cx, queue, message);
        }
        for &queue in queues {
            let is_over = self.is_over_after_push(queue);
            if is_over && self.records.has_dead_letters(queue) {
                self.note_shed_anew(queue);
            } else if is_over {
                self.drop_excess(cx, queue);
            }
            if is_over && self.records[queue].settings.may_expire {
                self.schedule(cx, queue);
            }
        }
    }

    /// Whether a queue is over its length limit after a message came in.
    pub(crate) fn is_over_after_push(&self, queue: QueueId) -> bool {
        let whole = &self.records[self.records.queue_of_level(queue)];
        if !whole.settings.limits_length {
            return false;
        }
        // With a consumer ready the message may still go before the queue is over its length.
        match whole.audience.is_ready() {
            true => self.is_far_over_length(queue),
            false => self.records.is_over_length(queue),
        }
    }

    /// Notes that the first message of a level is gone: with the last one of a level another level is the
    /// first.
    pub(crate) fn note_taken_off(&mut self, queue: QueueId, level: QueueId) {
        if self.records.first_level(queue) != level {
            self.look_at_first_level(queue);
        }
    }

    /// The first message if it is in memory, and whether the log has it too.
    pub(crate) fn first_in_memory(&self, queue: QueueId) -> Option<(First, MessageId, bool)> {
        let first = self.first(queue)?;
        let (message, is_logged) = match first {
            First::Absent(_) | First::At(_, Place::Stored(..)) => return None,
            First::CameBack => {
                let backlog = &self.records[queue].backlog;
                let (message, logged) = backlog.first_returned(&self.pool, &self.deliveries);
                (message, logged.is_some())
            }
            First::At(_, Place::Plain(message)) => (message, false),
            First::At(_, Place::Logged(message, _)) => (message, true),
        };
        Some((first, message, is_logged))
    }

    /// Settles the first rejected message; `false` when there is none.
    pub(crate) fn drop_rejected(&mut self, cx: &mut Context<'_>, queue: QueueId) -> bool {
        let backlog = &mut self.records[queue].backlog;
        let Some(delivery) = backlog.take_rejected(&mut self.deliveries, cx.messages) else { return false };
        self.settle_delivered(cx, queue, &delivery);
        self.releases += 1;
        true
    }

    /// Whether the queue is so far over its length limit that it does not wait for its consumer: by more than
    /// a consumer is given in a turn or two, or by a quarter of the memory.
    pub(crate) fn is_far_over_length(&self, queue: QueueId) -> bool {
        let settings = &self.settings;
        let messages = BURST_MESSAGES.min(u64::from(settings.messages) / 4);
        self.records.is_over_length_by(
            queue,
            messages,
            settings.output_budget_bytes.min(settings.body_bytes / 4),
        )
    }

    // ---- purged

    /// Takes all ready messages out of a queue and its levels, each part for the caller to drop; says how
    /// many.
    pub(crate) fn purge(&mut self, queue: QueueId) -> (u32, Vec<(QueueId, Box<Purged>)>) {
        let (mut level, mut count, mut parts) = (self.records.highest_level(queue), 0, Vec::new());
        loop {
            let (messages, taken) = self.detach_messages(level);
            if messages > 0 || level == queue {
                count += messages;
                parts.push((level, taken));
            } else {
                self.end_returning(level);
            }
            let Some(below) = self.records.below(level) else { return (count, parts) };
            level = below;
        }
    }

    /// Takes all ready messages out of a queue or a level, for a job to drop.
    pub(crate) fn detach_messages(&mut self, queue: QueueId) -> (u32, Box<Purged>) {
        let record = &mut self.records[queue];
        let (count, parts) = record.backlog.detach();
        // The queue stays until all its messages are dropped.
        record.returning += 1;
        (count, Box::new(parts))
    }

    fn purge_place(&mut self, cx: &mut Context<'_>, queue: QueueId, place: Place) {
        match place {
            Place::Plain(message) => cx.messages.release(message),
            Place::Logged(message, offset) => {
                self.settle_logged(cx, queue, Some(offset), message);
                cx.messages.release(message);
            }
            Place::Stored(start, count) => self.settle_run(cx.journal, queue, start, count),
        }
    }

    /// Drops the next piece of a purged queue; `false`: there was none.
    pub(crate) fn drop_purged(&mut self, cx: &mut Context<'_>, queue: QueueId, parts: &mut Purged) -> bool {
        let item = parts.pop(&mut self.pool, &mut self.deliveries);
        match item {
            Some(PurgedItem::Delivered(delivery)) => self.settle_delivered(cx, queue, &delivery),
            Some(PurgedItem::Place(place)) => self.purge_place(cx, queue, place),
            None => return false,
        }
        self.releases += 1;
        true
    }

    // ---- expired

    /// Takes up the queues that have a message to expire, or expire themselves.
    pub(crate) fn take_due(&mut self, journal: &Journal) {
        for _ in 0..DUE_STEP {
            let Some((at, queue)) = self.expiry.pop(journal.time_ms()) else { return };
            let record = self.records.get_mut(queue.index());
            if let Some(record) =
                record.filter(|record| record.times.due_ms == at && record.delayed_exchange.is_none())
            {
                record.times.due_ms = u64::MAX;
                self.note_shed_anew(queue);
            }
        }
    }

    /// Notes the time to live of a message that came to a queue, in which messages may expire or which may
    /// itself.
    pub(crate) fn note_arrival(&mut self, cx: &mut Context<'_>, queue: QueueId, message: MessageId) {
        let expires = cx.messages.flags(message).has(MessageFlags::EXPIRES);
        let record = &self.records[queue];
        if record.delayed_exchange.is_some() {
            return self.note_sleeper(cx, message);
        }
        let is_first_to = expires && !record.settings.may_expire;
        if !expires && !record.settings.may_expire {
            return;
        }
        if is_first_to {
            self.records.note_may_expire(queue);
        }
        if cx.messages.arrived_ms(message) == 0 {
            cx.messages.set_arrived_ms(message, cx.journal.time_ms().max(1));
        }
        // Behind others the message has to wait, and its queue is looked at for those.
        if is_first_to || self.records[queue].backlog.ready() == 1 {
            self.schedule(cx, queue);
        }
    }

    /// Schedules the next look at a queue: when its first message expires, or the unused queue itself.
    #[cold]
    pub(crate) fn schedule(&mut self, cx: &mut Context<'_>, queue: QueueId) {
        let mut due_ms = self.records.unused_until_ms(cx.journal, queue);
        if self.records[queue].settings.may_expire {
            match self.head(cx, queue, Patience::OneTurn) {
                Head::Nothing => {}
                Head::Unknown => self.want_peek(queue),
                Head::DueAbsent => self.want_pages(queue),
                Head::At(at) => due_ms = due_ms.min(at),
            }
        }
        self.note_due(queue, due_ms);
    }

    /// Whether the first message of a queue has expired, and is in memory.
    pub(crate) fn has_expired(&mut self, cx: &mut Context<'_>, queue: QueueId, patience: Patience) -> bool {
        matches!(self.head(cx, queue, patience), Head::At(at) if at <= cx.journal.time_ms())
    }

    #[inline(never)]
    fn head(&mut self, cx: &mut Context<'_>, queue: QueueId, mut patience: Patience) -> Head {
        let record = &self.records[queue];
        let is_returning =
            record.returning > 0 || self.records[self.records.queue_of_level(queue)].returning > 0;
        if record.dying || is_returning || !self.records.is_first_level(queue) {
            return Head::Nothing;
        }
        let message = match self.first(queue) {
            None => return Head::Nothing,
            Some(First::Absent(offset) | First::At(_, Place::Stored(offset, _))) => {
                return self.absent_head(cx.journal, queue, offset);
            }
            // A consumer had the message already, so that no turn is left for a waiting one.
            Some(First::CameBack) => {
                patience = Patience::No;
                record.backlog.first_returned(&self.pool, &self.deliveries).0
            }
            Some(First::At(_, Place::Plain(message) | Place::Logged(message, _))) => message,
        };
        let (queue_ttl_ms, since_ms) = (record.settings.message_ttl_ms, record.times.ttl_since_ms);
        let ttl_ms = queue_ttl_ms.min(self.own_ttl_ms(cx, message));
        if ttl_ms == u64::MAX {
            return Head::At(u64::MAX);
        }
        if cx.messages.arrived_ms(message) == 0 {
            // The message came before its queue had a time to live.
            let now_ms = cx.journal.time_ms().max(1);
            cx.messages.set_arrived_ms(message, if since_ms == 0 { now_ms } else { since_ms });
        }
        Head::At(cx.messages.arrived_ms(message).saturating_add(ttl_ms.max(patience as u64)))
    }

    fn absent_head(&self, journal: &Journal, queue: QueueId, offset: u64) -> Head {
        let peeked = self.records[queue].times.peeked;
        match () {
            () if !peeked.is_of(offset) => Head::Unknown,
            () if peeked.due_ms <= journal.time_ms() => Head::DueAbsent,
            () => Head::At(peeked.due_ms),
        }
    }

    /// The time to live that a message brings itself, in milliseconds; the largest number for ever.
    fn own_ttl_ms(&mut self, cx: &mut Context<'_>, message: MessageId) -> u64 {
        if !cx.messages.flags(message).has(MessageFlags::EXPIRES) {
            return u64::MAX;
        }
        let properties = cx.messages.properties(message, &mut self.scratch.properties);
        cx.work.charge_octets(properties.len());
        // The expiration was checked when the message came.
        expiration_ms(&Properties::trusted(properties)).ok().flatten().unwrap_or(u64::MAX)
    }

    // ---- messages that only the log has

    /// At a start, or when messages in the log got a queue: looks at when they expire, for nobody may come
    /// for them, and until then they fill the log. The queue's arguments do not suffice: a message may have a
    /// time to live of its own.
    #[cold]
    pub(crate) fn look_at_stored(&mut self, queue: QueueId) {
        match self.records[queue].delayed_exchange {
            Some(_) => self.note_slot_restored(queue),
            None => self.want_peek(queue),
        }
    }

    /// Notes the expiry of the first message, whose record was read from the log.
    #[cold]
    pub(crate) fn peeked(&mut self, fetch: &Fetch, page: &Page<'_>) {
        if self.records[fetch.queue].delayed_exchange.is_some() {
            self.records[fetch.queue].times.peeked = Peeked::of(page.offset, u64::MAX);
            return self.slot_peeked(fetch.queue, page);
        }
        let own_ttl_ms = expiration_ms(&Properties::trusted(page.properties)).ok().flatten();
        if own_ttl_ms.is_some() {
            self.records.note_may_expire(fetch.queue);
        }
        let record = &mut self.records[fetch.queue];
        let ttl_ms = own_ttl_ms.unwrap_or(u64::MAX).min(record.settings.message_ttl_ms);
        record.times.peeked = Peeked::of(page.offset, page.enqueued_ms.saturating_add(ttl_ms));
    }
}

// Queues that have messages to give up, and whether it is worth while to ask them again; which messages,
// stands in `shed`.
//
// Always true: a queue is on the list once; when none of them could give up anything, they are asked again
// only when room was made since, or a message that they wait for was read back.

/// Units of work that make one more step.
const UNITS_PER_STEP: u32 = 16;

/// Queues that have messages to give up, and how far they were asked in vain.
#[derive(Debug)]
pub(crate) struct Shedding {
    queues: VecDeque<QueueId>,
    /// Queues asked in a row that could give up nothing, since the last change they may wait for.
    stuck: usize,
    /// The count of room made when a queue was asked last.
    room_seen: u64,
    /// The count of room made when no queue could give up anything.
    stuck_at: Option<u64>,
}

impl Shedding {
    pub(crate) fn with_capacity(queues: usize) -> Self {
        Self { queues: VecDeque::with_capacity(queues), stuck: 0, room_seen: 0, stuck_at: None }
    }

    pub(crate) fn len(&self) -> usize {
        self.queues.len()
    }

    /// Whether some queues are to be asked, with this count of room made.
    pub(crate) fn is_due(&self, room_made: impl FnOnce() -> u64) -> bool {
        !self.queues.is_empty() && self.stuck_at.is_none_or(|stuck_at| stuck_at != room_made())
    }

    pub(crate) fn push(&mut self, queue: QueueId) {
        self.queues.push_back(queue);
    }

    pub(crate) fn pop(&mut self) -> Option<QueueId> {
        self.queues.pop_front()
    }

    /// Notes a change that queues may wait for: those asked before are asked again.
    pub(crate) const fn note_change(&mut self) {
        self.stuck_at = None;
        self.stuck = 0;
    }

    /// Begins to ask queues, with this count of room made.
    pub(crate) const fn begin(&mut self, room_made: u64) {
        if room_made != self.room_seen {
            self.stuck = 0;
        }
    }

    /// Notes that a queue was asked; says whether it gave up anything.
    pub(crate) const fn note_step(&mut self, has_shed: bool) {
        self.stuck = if has_shed { 0 } else { self.stuck + 1 };
    }

    /// Ends the asking of a turn, with this count of room made.
    pub(crate) fn end(&mut self, room_made: u64) {
        self.room_seen = room_made;
        self.stuck_at = (self.stuck >= self.queues.len()).then_some(room_made);
        if self.stuck_at.is_some() {
            self.stuck = 0;
        }
    }

    /// Takes a deleted queue off the list.
    pub(crate) fn forget(&mut self, queue: QueueId) {
        self.queues.retain(|other| *other != queue);
    }
}

/// Takes one step off those left, or several if the message was more work than usual: large bodies are
/// copied, and letters routed.
pub(crate) const fn take_step(left: &mut u32, units_before: u32, work: &Work) {
    let units = work.units().saturating_sub(units_before);
    *left = left.saturating_sub(1 + units / UNITS_PER_STEP);
}

// Out of memory: when memory is short, messages that the log has leave it (`page_in` is the way back).
//
// ```text
// spill: fifo ──→ middle (neighbours become one entry); deliveries that are not settled
// ```
//
// Always true: order is kept; a message is given up only when its commit is durable; a message that cannot
// leave keeps its place in the order, and does not keep back the messages behind it; as long as the log alone
// has a message, the memory to read it back is kept free of messages that cannot leave, whatever is published
// meanwhile.

/// Messages that one step takes out of memory.
const SPILL_STEP: u32 = 512;
/// Deliveries that one step looks at.
const DELIVERED_STEP: u32 = 128;
/// Queues that one step looks at.
const SPILL_QUEUES: usize = 64;
/// Messages of a queue with consumers that stay in memory before the first that is not.
const WINDOW: u32 = 64;
/// Free chunks of queue entries that spilling leaves to others.
const CHUNKS_LEFT: usize = 4;

impl Queues {
    /// At a start: the bytes of the largest body in the log; 0 when the log has no message.
    pub fn recovered_largest(&mut self, body_bytes: u64) {
        self.paging.recovered_largest(body_bytes);
    }

    /// Takes a bounded number of messages that the log has out of memory, if memory is short; says whether it
    /// is worth while to go on.
    pub(crate) fn spill(
        &mut self,
        cx: &mut Context<'_>,
        quota: &mut Quota,
        connection_of: impl Fn(ChannelId) -> ConnectionId,
    ) -> bool {
        let (slab, places) = (&self.records, self.records.places());
        let has_absent = |index: usize| slab.get(index).is_some_and(Queue::has_absent);
        let is_looking = self.paging.keep_read_back_room(cx.messages, places, has_absent);
        if cx.journal.mode() != Mode::On || !self.is_short(cx.messages) {
            return is_looking;
        }
        // Only durable messages can leave memory.
        cx.journal.hurry();
        let mut left = SPILL_STEP;
        if self.spill_delivered(cx.messages, quota, connection_of) {
            return true;
        }
        for _ in 0..SPILL_QUEUES.min(places) {
            let index = self.paging.hand(places);
            let may_spill =
                self.records.get(index).is_some_and(|queue| !queue.dying && queue.logged.count() > 0);
            if may_spill && self.spill_from(cx, QueueId::from_index(index), &mut left) {
                // The step is used up, or memory is no longer short.
                return true;
            }
            self.paging.pass_on();
        }
        left < SPILL_STEP || is_looking
    }

    fn is_short(&self, messages: &Messages) -> bool {
        messages.is_above_spill_mark() || self.pool.chunks_free() < self.pool.chunks_max() / 2
    }

    /// Takes the messages of unsettled deliveries out of memory first: they are needed again only if they are
    /// requeued. Says whether some left.
    fn spill_delivered(
        &mut self,
        messages: &mut Messages,
        quota: &mut Quota,
        connection_of: impl Fn(ChannelId) -> ConnectionId,
    ) -> bool {
        let mut has_left = false;
        for _ in 0..DELIVERED_STEP {
            let Some(index) = self.deliveries.first_pageable() else { break };
            let delivery = &self.deliveries[index];
            let (Some(queue), Some(message)) = (delivery.queue, delivery.message) else {
                panic!("what may leave memory is in it, and came from a queue");
            };
            // A requeued message that a consumer may soon ask for stays, unless the first message of some
            // queue finds no memory: that queue stands still until it does.
            let is_wanted = delivery.is_requeued()
                && !self.paging.is_short_of_memory()
                && !self.records[self.records.queue_of_level(queue)].audience.is_empty();
            if is_wanted || messages.is_shared(message) {
                // The memory of this message would not be free, or not for long: it goes behind the others.
                self.deliveries.keep(index);
                self.deliveries.allow_page_out(index);
                continue;
            }
            if !messages.flags(message).has(MessageFlags::STORED) {
                break;
            }
            let (channel, bytes) = (delivery.channel, block_bytes(messages, message));
            if !delivery.is_requeued() {
                quota.give_delivered_bytes_back(connection_of(channel), bytes);
            }
            self.spill_delivery(messages, index, queue, message);
            has_left = true;
        }
        has_left
    }

    /// The message of a delivery leaves memory: from now on only the log has it.
    fn spill_delivery(&mut self, messages: &mut Messages, index: usize, queue: QueueId, message: MessageId) {
        self.deliveries.keep(index);
        let delivery = &mut self.deliveries[index];
        delivery.message = None;
        let returned = delivery.is_requeued();
        let record = &mut self.records[queue];
        if returned {
            record.backlog.give_up_returned(Size::of(messages, message));
        } else {
            record.unsettled.absent += 1;
            record.unsettled.bytes -= block_bytes(messages, message);
        }
        self.paging.paged_out(messages.stream_len(message) as u64);
        messages.release(message);
        self.releases += 1;
    }

    /// Takes messages of one queue out of memory, as many as are `left` for this step; `false`: the queue has none
    /// that can leave now.
    fn spill_from(&mut self, cx: &mut Context<'_>, queue: QueueId, left: &mut u32) -> bool {
        // Stops as soon as memory is not short: what left without need would be read back at once where a consumer
        // keeps up.
        while *left > 0 && self.is_short(cx.messages) {
            let backlog = &self.records[queue].backlog;
            // A message that joins a run needs no entry, and gives up its own.
            if self.pool.chunks_free() < CHUNKS_LEFT && !backlog.joins_middle(&self.pool) {
                return false;
            }
            if !self.keep_window(queue) && !self.spill_first(cx, queue) {
                return false;
            }
            *left -= 1;
        }
        true
    }

    /// Keeps the first message of the fifo in memory, whatever it is, while the queue has consumers and few stand
    /// before it; `false`: not kept.
    fn keep_window(&mut self, queue: QueueId) -> bool {
        let record = &mut self.records[queue];
        let window = if record.audience.is_empty() { 0 } else { WINDOW };
        record.backlog.keep_in_window(&mut self.pool, window)
    }

    /// The first message of the fifo leaves memory, or stays in the middle.
    fn spill_first(&mut self, cx: &mut Context<'_>, queue: QueueId) -> bool {
        let record = &mut self.records[queue];
        let Some(place) = record.backlog.first_in_fifo(&self.pool) else { return false };
        let Place::Logged(message, offset) = place else {
            record.backlog.stay(&mut self.pool, place);
            return true;
        };
        if !is_stored(cx.messages, record, message) {
            return false;
        }
        record.backlog.give_up(&mut self.pool, offset, Size::of(cx.messages, message));
        self.paging.paged_out(cx.messages.stream_len(message) as u64);
        cx.messages.release(message);
        self.releases += 1;
        true
    }

    /// At a start: drops the transient messages that an older version of the broker had written.
    pub fn forget_transient(&mut self, journal: &mut Journal, incarnation: u64) {
        journal.queue_gone(incarnation);
    }
}

/// Whether the log has the message for good, and it can be counted among those that only the log has.
fn is_stored(messages: &Messages, queue: &Queue, message: MessageId) -> bool {
    let flags = messages.flags(message);
    flags.has(MessageFlags::STORED) && !flags.has(MessageFlags::MOVING) && queue.backlog.may_give_up()
}

#[cfg(test)]
mod shedding_tests {
    use super::*;

    /// Asks, in vain, as many queues as a turn has time for; says whether more are to be asked.
    fn turn(list: &mut Shedding, room_made: u64) -> bool {
        list.begin(room_made);
        for _ in 0..64 {
            let queue = list.pop().expect("a queue");
            list.push(queue);
            list.note_step(false);
        }
        list.end(room_made);
        list.is_due(|| room_made)
    }

    /// A change between two turns of a round concerns the queues that were asked in the first.
    #[test]
    fn who_was_asked_before_a_change_is_asked_again() {
        let mut list = Shedding::with_capacity(100);
        (0..100).for_each(|index| list.push(QueueId::from_index(index)));
        assert_eq!([turn(&mut list, 1), turn(&mut list, 1)], [true, false], "nothing changed");
        list.note_change();
        assert!(turn(&mut list, 1));
        list.note_change();
        assert_eq!([turn(&mut list, 1), turn(&mut list, 1)], [true, false], "all were asked after it");
        assert_eq!([turn(&mut list, 2), turn(&mut list, 3)], [true; 2], "room was made before each");
        assert!(!turn(&mut list, 3));
    }
}
