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

use super::fetch::{Fetch, Page};
use super::state::Queues;
use crate::Context;
use crate::properties::expiration_ms;
use crate::queue::{First, Peeked, Place, Purged, PurgedItem};
use leveret_amqp::props::Properties;
use leveret_core::command::QueueId;
use leveret_core::journal::Journal;
use leveret_core::mem::{MessageFlags, MessageId};

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
