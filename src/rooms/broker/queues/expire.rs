//! Messages that waited too long, and queues that nobody had a use for.
//!
//! As in RabbitMQ's classic queues a message expires when it stands first, with priorities in all levels of
//! its queue together; messages behind it have to wait. So a queue has one time at which it is looked at
//! (`expiry`), that of its first message. Times are those of the broker, added up over its lives, so nothing
//! here depends on a clock that a board may not have.
//!
//! ```text
//! first message in memory:  arrival, own time, queue's time ──→ looked at then
//! only the log has it:      peek (its record alone is read) ──→ looked at then ──→ read back when due
//! ```
//!
//! Always true: an expired message is given to nobody, not even while there is no room for its dead letter; a
//! queue is looked at no later than its first message expires, and reads that time from the log where it is
//! not known; a message that waits to expire takes no memory for that.

use crate::command::QueueId;
use crate::journal::Journal;
use crate::mem::{MessageFlags, MessageId};
use crate::wire::props::Properties;

use super::backlog::First;
use super::page_in::{Fetch, Page};
use super::place::{Lane, Place};
use super::queue::{Peeked, Queue};
use super::state::Queues;
use crate::broker::Context;
use crate::broker::properties::expiration_ms;

/// Queues with something expired that one turn takes up.
const DUE_STEP: u32 = 512;
/// Bytes of properties whose reading is as much work as one step.
const BYTES_PER_UNIT: usize = 512;

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
    /// Whether some message in the log may expire, first or behind others, so that the broker time has to be
    /// told to the next life.
    pub fn has_stored_deadline(&self) -> bool {
        let waits = |queue: &Queue| queue.settings.may_expire || queue.sleeps_for.is_some();
        self.slab.iter().any(|(_, queue)| waits(queue) && queue.logged.count() > 0)
    }

    /// Whether the broker had any message or queue so far that may expire.
    pub const fn has_deadlines(&self) -> bool {
        self.has_deadlines
    }

    /// Takes up the queues that have a message to expire, or expire themselves.
    pub(crate) fn take_due(&mut self, journal: &Journal) {
        for _ in 0..DUE_STEP {
            let Some((at, queue)) = self.expiry.pop(journal.time_ms()) else { return };
            let record = self.slab.get_mut(queue.index());
            if let Some(record) =
                record.filter(|record| record.times.due_ms == at && record.sleeps_for.is_none())
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
        let record = &self.slab[queue.index()];
        if record.sleeps_for.is_some() {
            return self.note_sleeper(cx, message);
        }
        let is_first_to = expires && !record.settings.may_expire;
        if !expires && !record.settings.may_expire {
            return;
        }
        if is_first_to {
            self.note_may_expire(queue);
        }
        if cx.messages.arrived_ms(message) == 0 {
            cx.messages.set_arrived_ms(message, cx.journal.time_ms().max(1));
        }
        // Behind others the message has to wait, and its queue is looked at for those.
        if is_first_to || self.slab[queue.index()].backlog.ready() == 1 {
            self.schedule(cx, queue);
        }
    }

    /// Schedules the next look at a queue: when its first message expires, or the unused queue itself.
    #[cold]
    pub(crate) fn schedule(&mut self, cx: &mut Context<'_>, queue: QueueId) {
        let mut due_ms = self.unused_until_ms(cx.journal, queue);
        if self.slab[queue.index()].settings.may_expire {
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
        let record = &self.slab[queue.index()];
        let is_returning = record.returning > 0 || self.slab[self.whole(queue).index()].returning > 0;
        if record.dying || is_returning || !self.is_first_level(queue) {
            return Head::Nothing;
        }
        let message = match self.first(queue) {
            None => return Head::Nothing,
            Some(First::Absent(offset)) => {
                return self.absent_head(cx.journal, queue, (Lane::Durable, offset));
            }
            Some(First::At(_, Place::Stored(lane, offset, _))) => {
                return self.absent_head(cx.journal, queue, (lane, offset));
            }
            // A consumer had the message already, so that no turn is left for a waiting one.
            Some(First::CameBack) => {
                patience = Patience::No;
                record.backlog.first_returned(&self.pool, &self.deliveries).0
            }
            Some(First::At(
                _,
                Place::Plain(message) | Place::Spilled(message, _) | Place::Logged(message, _),
            )) => message,
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

    fn absent_head(&self, journal: &Journal, queue: QueueId, (lane, offset): (Lane, u64)) -> Head {
        let peeked = self.slab[queue.index()].times.peeked;
        match () {
            () if !peeked.is_of(lane, offset) => Head::Unknown,
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
        cx.work.charge(properties.len() / BYTES_PER_UNIT);
        // The expiration was checked when the message came.
        expiration_ms(&Properties::trusted(properties)).ok().flatten().unwrap_or(u64::MAX)
    }

    // ---- messages that only the log has

    /// At a start, or when messages in the log got a queue: looks at when they expire, for nobody may come
    /// for them, and until then they fill the log. The queue's arguments do not suffice: a message may have a
    /// time to live of its own.
    #[cold]
    pub(crate) fn look_at_stored(&mut self, queue: QueueId) {
        match self.slab[queue.index()].sleeps_for {
            Some(_) => self.note_slot_restored(queue),
            None => self.want_peek(queue),
        }
    }

    /// Notes the expiry of the first message, whose record was read from the log.
    #[cold]
    pub(crate) fn peeked(&mut self, fetch: &Fetch, lane: Lane, page: &Page<'_>) {
        if self.slab[fetch.queue.index()].sleeps_for.is_some() {
            self.slab[fetch.queue.index()].times.peeked = Peeked::of(lane, page.offset, u64::MAX);
            return self.slot_peeked(fetch.queue, page);
        }
        let own_ttl_ms = expiration_ms(&Properties::trusted(page.properties)).ok().flatten();
        if own_ttl_ms.is_some() {
            self.note_may_expire(fetch.queue);
        }
        let record = &mut self.slab[fetch.queue.index()];
        let ttl_ms = own_ttl_ms.unwrap_or(u64::MAX).min(record.settings.message_ttl_ms);
        record.times.peeked = Peeked::of(lane, page.offset, page.enqueued_ms.saturating_add(ttl_ms));
    }

    // ---- queues that nobody uses
}
