//! Messages that waited too long, and queues that nobody had a use for.
//!
//! As in RabbitMQ's classic queues a message expires when it stands first, with priorities in all levels of
//! its queue together; what is behind it has to wait.
//! So a queue has one time at which it is looked at (`expiry`), that of its first message. Times are those of
//! the broker, added up over its lives, so nothing here depends on a clock that a board may not have.
//!
//! ```text
//! first message in memory:  arrival, own time, queue's time ──→ looked at then
//! only the log has it:      peek (its record alone is read) ──→ looked at then ──→ read back when due
//! ```
//!
//! Always true: what has expired is given to nobody, not even while there is no room for its dead letter; a
//! queue is looked at no later than its first message expires, as far as that is known, and asks for it where
//! it is not; a message that waits takes no memory for that.

use crate::command::QueueId;
use crate::journal::{Journal, Mode};
use crate::mem::{MessageFlags, MessageId};
use crate::wire::props::Properties;

use super::backlog::First;
use super::death::Reason;
use super::job::Job;
use super::page_in::{Fetch, Page};
use super::place::{Lane, Place};
use super::publish::expiration_ms;
use super::queue::{Front, Peeked, Queue};
use super::shedding::take_step;
use super::{Broker, Context};

/// Queues whose time has come that a turn takes up.
const DUE_STEP: u32 = 512;
/// Messages that a consumer's turn may find expired.
const DELIVER_STEP: u32 = 64;
/// Bytes of properties that are as much work as one step, when they are looked into.
const BYTES_PER_UNIT: usize = 512;

/// How long a message that is due at once may still go to somebody, in milliseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Patience {
    /// Nobody waits for it.
    No = 0,
    /// A consumer that waits has this turn.
    OneTurn = 1,
}

/// Whether what stands first has not expired.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Cleared {
    Yes,
    /// There was more than a step takes.
    NotYet,
    /// What has expired has nowhere to go now.
    No,
}

/// What is known of a queue's first message.
enum Head {
    Nothing,
    /// Only the log has it, and nobody knows until when it may wait.
    Unknown,
    /// Only the log has it, and it has expired.
    DueAbsent,
    /// It expires then, in milliseconds of broker time; never with the largest number.
    At(u64),
}

impl Broker {
    /// When something may expire or wake up, in milliseconds of broker time.
    pub fn next_expiry_ms(&self) -> Option<u64> {
        [self.expiry.next_ms(), self.sleepers.next_ms()].into_iter().flatten().min()
    }

    /// Whether something in the log waits for its time, first or behind others, so that this has to be told
    /// to the next life.
    pub fn has_stored_deadline(&self) -> bool {
        let waits = |queue: &Queue| queue.settings.may_expire || queue.sleeps_for.is_some();
        self.queues.iter().any(|(_, queue)| waits(queue) && queue.logged.count() > 0)
    }

    /// Whether there was anything so far that may expire.
    pub const fn minds_time(&self) -> bool {
        self.minds_time
    }

    /// Messages of the queue may expire from now on.
    pub(super) fn note_may_expire(&mut self, queue: QueueId) {
        // What sleeps expires when it is awake.
        let record = &mut self.queues[queue.index()];
        record.settings.may_expire = record.sleeps_for.is_none();
        self.minds_time = true;
    }

    /// Takes up the queues whose time has come.
    pub(super) fn take_due(&mut self, journal: &Journal) {
        for _ in 0..DUE_STEP {
            let Some((at, queue)) = self.expiry.pop(journal.time_ms()) else { return };
            let record = self.queues.get_mut(queue.index());
            if let Some(record) = record.filter(|record| record.due_ms == at && record.sleeps_for.is_none()) {
                record.due_ms = u64::MAX;
                self.note_shed_anew(queue);
            }
        }
    }

    /// The queue is to be looked at then, if not before.
    #[cold]
    fn note_due(&mut self, queue: QueueId, at_ms: u64) {
        let record = &mut self.queues[queue.index()];
        if at_ms < record.due_ms {
            record.due_ms = at_ms;
            let queues = &self.queues;
            self.expiry.add(at_ms, queue, || {
                let all = queues.iter().filter(|(_, record)| record.sleeps_for.is_none());
                let all = all.map(|(index, record)| (record.due_ms, QueueId::from_index(index)));
                all.filter(|(at, _)| *at != u64::MAX)
            });
        }
    }

    /// A message came to a queue, one of those in which messages may expire or one that may itself.
    pub(super) fn note_arrival(&mut self, cx: &mut Context<'_>, queue: QueueId, message: MessageId) {
        let expires = cx.messages.flags(message).has(MessageFlags::EXPIRES);
        let record = &self.queues[queue.index()];
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
        // Behind others it has to wait, and its queue is looked at for those.
        if is_first_to || self.queues[queue.index()].backlog.ready() == 1 {
            self.schedule(cx, queue);
        }
    }

    /// A message that is due at once came to a queue, and nobody waits there: it has expired if it stands
    /// first. Says whether that was looked at.
    pub(super) fn expire_arrival(
        &mut self,
        cx: &mut Context<'_>,
        queue: QueueId,
        message: MessageId,
    ) -> bool {
        let record = &self.queues[queue.index()];
        let is_due =
            cx.messages.flags(message).has(MessageFlags::DUE_AT_ONCE) || record.settings.message_ttl_ms == 0;
        // In the middle of a transaction its letter waits for the end: what that publishes has been promised
        // room.
        let waits = cx.journal.is_grouping() && record.settings.dead_letters;
        let looks = is_due && self.queues[self.whole(queue).index()].eligible.is_empty();
        if looks && waits {
            self.note_shed_anew(queue);
        } else if looks {
            self.expire_by(cx, queue, &mut 1, Patience::No);
        }
        looks
    }

    /// Gives up what has expired at the front; `false`: not all of it now.
    #[inline(never)]
    pub(super) fn expire_by(
        &mut self,
        cx: &mut Context<'_>,
        queue: QueueId,
        left: &mut u32,
        patience: Patience,
    ) -> bool {
        while self.queues[queue.index()].settings.may_expire {
            match self.head(cx, queue, patience) {
                Head::At(at) if at <= cx.journal.time_ms() => {}
                Head::Nothing | Head::Unknown | Head::DueAbsent | Head::At(_) => break,
            }
            let before = cx.work.units();
            cx.work.charge(1);
            let is_gone = *left > 0
                && match self.has_dead_letters(queue) {
                    true => self.bury_first(cx, queue, Reason::Expired),
                    false => self.drop_first(cx, queue),
                };
            if !is_gone {
                return false;
            }
            // What came to nothing is no step, or the queue would be asked again at once.
            take_step(left, before, cx.work);
        }
        true
    }

    /// The same before a message goes to somebody.
    pub(super) fn expire_before_delivery(
        &mut self,
        cx: &mut Context<'_>,
        queue: QueueId,
        patience: Patience,
    ) -> Cleared {
        let mut left = DELIVER_STEP;
        if self.expire_by(cx, queue, &mut left, patience) {
            return Cleared::Yes;
        }
        self.queues[queue.index()].front = Front::Expired;
        self.note_shed(queue);
        if left < DELIVER_STEP { Cleared::NotYet } else { Cleared::No }
    }

    /// A message was taken: what stood behind it may have expired, and does not count any more.
    #[cold]
    pub(super) fn expire_behind(&mut self, cx: &mut Context<'_>, queue: QueueId) {
        self.expire_by(cx, queue, &mut { DELIVER_STEP }, Patience::No);
        self.schedule(cx, queue);
    }

    /// Sees to it that the queue is looked at when what stands first expires, or nobody has a use for it.
    #[cold]
    pub(super) fn schedule(&mut self, cx: &mut Context<'_>, queue: QueueId) {
        let mut due_ms = self.unused_until_ms(cx.journal, queue);
        if self.queues[queue.index()].settings.may_expire {
            match self.head(cx, queue, Patience::OneTurn) {
                Head::Nothing => {}
                Head::Unknown => self.want_peek(queue),
                Head::DueAbsent => self.want_pages(queue),
                Head::At(at) => due_ms = due_ms.min(at),
            }
        }
        self.note_due(queue, due_ms);
    }

    #[inline(never)]
    fn head(&mut self, cx: &mut Context<'_>, queue: QueueId, mut patience: Patience) -> Head {
        let record = &self.queues[queue.index()];
        let is_returning = record.returning > 0 || self.queues[self.whole(queue).index()].returning > 0;
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
            // A consumer had it already, so that it has no turn more for one who waits.
            Some(First::CameBack) => {
                patience = Patience::No;
                record.backlog.first_returned(&self.fifo_pool, &self.deliveries).0
            }
            Some(First::At(
                _,
                Place::Plain(message) | Place::Spilled(message, _) | Place::Logged(message, _),
            )) => message,
        };
        let (queue_ttl_ms, since_ms) = (record.settings.message_ttl_ms, record.ttl_since_ms);
        let ttl_ms = queue_ttl_ms.min(self.own_ttl_ms(cx, message));
        if ttl_ms == u64::MAX {
            return Head::At(u64::MAX);
        }
        if cx.messages.arrived_ms(message) == 0 {
            // It came before that mattered.
            let now_ms = cx.journal.time_ms().max(1);
            cx.messages.set_arrived_ms(message, if since_ms == 0 { now_ms } else { since_ms });
        }
        Head::At(cx.messages.arrived_ms(message).saturating_add(ttl_ms.max(patience as u64)))
    }

    fn absent_head(&self, journal: &Journal, queue: QueueId, (lane, offset): (Lane, u64)) -> Head {
        let peeked = self.queues[queue.index()].peeked;
        match () {
            () if !peeked.is_of(lane, offset) => Head::Unknown,
            () if peeked.due_ms <= journal.time_ms() => Head::DueAbsent,
            () => Head::At(peeked.due_ms),
        }
    }

    /// How long a message may wait by itself, in milliseconds; the largest number for ever.
    fn own_ttl_ms(&mut self, cx: &mut Context<'_>, message: MessageId) -> u64 {
        if !cx.messages.flags(message).has(MessageFlags::EXPIRES) {
            return u64::MAX;
        }
        let properties = cx.messages.properties(message, &mut self.scratch.properties);
        cx.work.charge(properties.len() / BYTES_PER_UNIT);
        // It was looked at when the message came.
        expiration_ms(&Properties::trusted(properties)).ok().flatten().unwrap_or(u64::MAX)
    }

    // ---- what only the log has

    /// Asks until when the first message may wait, which only the log has.
    #[cold]
    pub(super) fn want_peek(&mut self, queue: QueueId) {
        if !self.queues[queue.index()].is_fetching {
            self.want_pages(queue);
            self.queues[queue.index()].peeked = Peeked::WANTED;
        }
    }

    /// At a start, or when messages in the log got a queue: they may have to expire without anybody coming
    /// for them, and until then they fill the log. What the queue's arguments say is not all: a message may
    /// have a time of its own.
    #[cold]
    pub(super) fn look_at_stored(&mut self, queue: QueueId) {
        match self.queues[queue.index()].sleeps_for {
            Some(_) => self.note_slot_restored(queue),
            None => self.want_peek(queue),
        }
    }

    /// The record of the first message was read.
    #[cold]
    pub(super) fn peeked(&mut self, fetch: &Fetch, lane: Lane, page: &Page<'_>) {
        if self.queues[fetch.queue.index()].sleeps_for.is_some() {
            self.queues[fetch.queue.index()].peeked = Peeked::of(lane, page.offset, u64::MAX);
            return self.slot_peeked(fetch.queue, page);
        }
        let own_ttl_ms = expiration_ms(&Properties::trusted(page.properties)).ok().flatten();
        if own_ttl_ms.is_some() {
            self.note_may_expire(fetch.queue);
        }
        let record = &mut self.queues[fetch.queue.index()];
        let ttl_ms = own_ttl_ms.unwrap_or(u64::MAX).min(record.settings.message_ttl_ms);
        record.peeked = Peeked::of(lane, page.offset, page.enqueued_ms.saturating_add(ttl_ms));
    }

    // ---- queues that nobody uses

    /// Somebody has a use for the queue, or had until now.
    #[cold]
    pub(super) fn touch_queue(&mut self, journal: &Journal, queue: QueueId) {
        let record = &mut self.queues[queue.index()];
        if record.settings.expires() && !record.dying {
            record.unused_until_ms = journal.time_ms().saturating_add(record.settings.expires_ms);
            let due_ms = self.unused_until_ms(journal, queue);
            self.note_due(queue, due_ms);
        }
    }

    /// Until when the queue stays if nobody has a use for it.
    fn unused_until_ms(&self, journal: &Journal, queue: QueueId) -> u64 {
        let record = &self.queues[queue.index()];
        // What cannot be written down stays.
        let may_go =
            record.consumers.is_empty() && !(record.logged.is_on() && journal.mode() == Mode::Unwritable);
        if may_go { record.unused_until_ms } else { u64::MAX }
    }

    pub(super) fn is_unused_for_too_long(&self, journal: &Journal, queue: QueueId) -> bool {
        self.unused_until_ms(journal, queue) <= journal.time_ms()
    }

    /// Deletes a queue that nobody had a use for for too long; `false`: too much is to be written now.
    #[cold]
    pub(super) fn expire_queue(&mut self, cx: &mut Context<'_>, queue: QueueId) -> bool {
        let may_go = !cx.journal.is_crowded();
        if may_go {
            self.retire_queue(cx, queue);
            self.queue_job(Job::Queue(queue));
        }
        may_go
    }
}
