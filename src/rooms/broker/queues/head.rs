//! The front of a queue: which message goes next, whether it may go now, and what becomes of the one taken.
//!
//! Always true: a message that the log has is delivered only when it is written down that it may have been
//! (or when its own commit will say so, where nobody but this broker knows it by its place), so that after a
//! power cut it is marked as redelivered, and its place is given to no other; a message that took the place
//! of another, as a dead letter does, only when the end of that other is durable; a message that leaves a
//! queue is in memory.

use crate::command::QueueId;
use crate::journal::{Journal, Mode, Settled, Target};
use crate::mem::{MessageFlags, MessageId, Messages};

use super::backlog::{First, QueuePart, Size, Taken};
use super::place::{Lane, Place};
use super::queue::Front;
use super::state::Queues;
use crate::broker::Context;
use crate::broker::quota::owner_of;

/// Bytes of memory that must be free for reading ahead.
const HEAD_BYTES: usize = 16 << 10;

impl Queues {
    #[inline]
    pub(crate) fn first(&self, queue: QueueId) -> Option<First> {
        self.slab[queue.index()].backlog.first(&self.pool, &self.deliveries)
    }

    /// The first message, if it can go now; otherwise whatever it waits for has been asked for.
    pub(crate) fn first_to_go(&mut self, cx: &mut Context<'_>, queue: QueueId) -> Option<First> {
        let first = self.first(queue)?;
        let may_go = match first {
            First::At(_, Place::Plain(_) | Place::Spilled(..)) => true,
            First::CameBack if self.slab[queue.index()].is_named => self.may_name_returned(cx, queue),
            First::CameBack => true,
            First::Absent(_) | First::At(_, Place::Stored(..)) => {
                self.want_pages(queue);
                false
            }
            First::At(_, Place::Logged(message, offset)) => {
                if cx.messages.flags(message).has(MessageFlags::MOVING) {
                    self.await_move(cx.journal, queue, offset);
                    false
                } else {
                    // The place of a message is told to another broker, so it must never be given again: a
                    // watermark above it in the log sees to that, whether the log has the message or not.
                    let is_named = self.slab[queue.index()].is_named;
                    !is_named && cx.journal.is_gathering(cx.messages, message)
                        || self.is_below_watermark(cx.journal, queue, offset)
                }
            }
        };
        if !may_go {
            self.slab[queue.index()].front = Front::Blocked;
        }
        may_go.then_some(first)
    }

    /// Whether a requeued first message may go to another broker: it was given to a client here, who knows it
    /// by no place.
    #[cold]
    fn may_name_returned(&mut self, cx: &mut Context<'_>, queue: QueueId) -> bool {
        let backlog = &self.slab[queue.index()].backlog;
        let (message, logged) = backlog.first_returned(&self.pool, &self.deliveries);
        logged.is_none_or(|offset| {
            !cx.journal.is_gathering(cx.messages, message)
                || self.is_below_watermark(cx.journal, queue, offset)
        })
    }

    /// Whether a message of the log is below the watermark, so that it may be delivered; asks for a higher
    /// one ahead of need.
    fn is_below_watermark(&mut self, journal: &mut Journal, queue: QueueId, offset: u64) -> bool {
        if journal.mode() != Mode::On {
            return true;
        }
        let record = &mut self.slab[queue.index()];
        let (is_named, logged) = (record.is_named, &mut record.logged);
        if let Some(through) = logged.ask_watermark(offset, is_named) {
            let incarnation = logged.incarnation();
            let fact = journal.set_delivered_watermark(incarnation, through);
            self.watermarks_pending.push_back((fact, queue, incarnation, through));
        }
        self.slab[queue.index()].logged.is_below_watermark(offset)
    }

    /// Notes that a queue waits for a message that took the place of another: it goes when the log has both.
    #[cold]
    fn await_move(&mut self, journal: &mut Journal, queue: QueueId, offset: u64) {
        // The watermark is written along, so that the message need not wait for it afterwards.
        let _ = self.is_below_watermark(journal, queue, offset);
        journal.hurry();
        self.moves_awaited.push((journal.durable(), queue));
    }

    /// Wakes the queues whose first message took the place of another, if that is durable by now.
    #[cold]
    fn note_moved(&mut self, journal: &Journal) {
        let mut awaited = core::mem::take(&mut self.moves_awaited);
        awaited.retain(|&(before, queue)| {
            let is_new = before < journal.durable();
            // The queue may have been deleted since.
            if is_new
                && let Some(record) = self.slab.get_mut(queue.index())
                && record.front == Front::Blocked
            {
                record.front = Front::Free;
                self.wake(queue);
            }
            !is_new
        });
        self.moves_awaited = awaited;
    }

    /// Wakes the queues that waited for a watermark, or for a move, that may have become durable.
    pub fn note_durable(&mut self, journal: &Journal) {
        if !self.moves_awaited.is_empty() {
            self.note_moved(journal);
        }
        let durable = journal.facts_stored();
        while let Some(&(fact, queue, incarnation, through)) = self.watermarks_pending.front() {
            if fact > durable {
                return;
            }
            self.watermarks_pending.pop_front();
            // The queue may have been deleted since.
            let Some(record) = self.slab.get_mut(queue.index()) else { continue };
            if record.logged.incarnation() == incarnation {
                record.logged.raise_watermark(through);
                record.front = Front::Free;
                self.wake(queue);
            }
        }
    }

    /// Takes the first message of a queue, which is in memory.
    pub(crate) fn take_first(&mut self, cx: &mut Context<'_>, queue: QueueId, first: First) -> Taken {
        let taken = match first {
            First::CameBack => {
                let record = &mut self.slab[queue.index()];
                let mut taken =
                    record.backlog.take_returned(&mut self.pool, &mut self.deliveries, cx.messages);
                if let Some(offset) = taken.logged {
                    taken.returns = taken.returns.max(record.returns.count_of(offset));
                }
                taken
            }
            First::At(part, Place::Plain(message)) => self.take_from(cx, (queue, part), message, None),
            First::At(part, Place::Logged(message, offset)) => {
                self.take_from(cx, (queue, part), message, Some(offset))
            }
            First::At(part, Place::Spilled(message, offset)) => {
                let taken = self.take_from(cx, (queue, part), message, None);
                self.cancel_spill(cx, queue, message, offset);
                taken
            }
            First::Absent(_) | First::At(_, Place::Stored(..)) => {
                panic!("what is taken is in memory: {first:?}")
            }
        };
        self.releases += 1;
        taken
    }

    #[inline]
    fn take_from(
        &mut self,
        cx: &Context<'_>,
        (queue, part): (QueueId, QueuePart),
        message: MessageId,
        logged: Option<u64>,
    ) -> Taken {
        let record = &mut self.slab[queue.index()];
        let offset = record.backlog.take_from(&mut self.pool, part, Size::of(cx.messages, message));
        let redelivered = logged.is_some_and(|offset| record.logged.taken(offset));
        let returns = logged.map_or(0, |offset| record.returns.count_of(offset));
        let is_to_spare = || cx.messages.has_ordinary_room(owner_of(record.vhost), HEAD_BYTES);
        if part == QueuePart::Head && record.backlog.is_head_low(is_to_spare) {
            self.want_pages(queue);
        }
        Taken { message, offset, logged, redelivered, returns }
    }

    /// Notes in the commit that is being gathered that one of its messages is already on its way to a
    /// consumer.
    pub(crate) fn note_delivery(&mut self, cx: &mut Context<'_>, queue: QueueId, taken: &Taken) {
        if let Some(offset) = taken.logged
            && cx.journal.is_gathering(cx.messages, taken.message)
        {
            cx.journal.piggyback(self.slab[queue.index()].logged.incarnation(), offset + 1);
        }
    }

    /// Drops a message that was taken and is not delivered.
    pub(crate) fn forget_taken(&mut self, cx: &mut Context<'_>, queue: QueueId, taken: &Taken) {
        self.slab[queue.index()].backlog.note_dropped();
        self.settle_logged(cx, queue, taken.logged, taken.message);
        cx.messages.release(taken.message);
        self.releases += 1;
    }

    /// Settles a message of a queue in the log, if the log has it.
    pub(crate) fn settle_logged(
        &mut self,
        cx: &mut Context<'_>,
        queue: QueueId,
        logged: Option<u64>,
        message: MessageId,
    ) {
        let Some(offset) = logged else { return };
        let record = &mut self.slab[queue.index()];
        record.logged.settled(log_bytes(cx.messages, message));
        if record.dying {
            cx.journal.forsake(cx.messages, record.logged.incarnation(), message);
        } else {
            let target = Target { queue: record.logged.incarnation(), offset };
            cx.journal.settle(cx.messages, target, message);
        }
    }

    /// Drops the first message, in memory or not; `false` when there is none.
    pub(crate) fn drop_first(&mut self, cx: &mut Context<'_>, queue: QueueId) -> bool {
        match self.first(queue) {
            None => false,
            Some(First::Absent(offset)) => {
                self.leave_absent(queue);
                self.settle_run(cx.journal, queue, Lane::Durable, offset, 1);
                true
            }
            Some(First::At(part, Place::Stored(lane, start, count))) => {
                assert_eq!(part, QueuePart::Middle, "only the middle has what is not in memory");
                let count = if self.slab[queue.index()].dying { count } else { 1 };
                self.settle_run(cx.journal, queue, lane, start, count);
                self.slab[queue.index()].backlog.leave_stored(&mut self.pool, count);
                true
            }
            Some(first) => {
                let taken = self.take_first(cx, queue, first);
                self.forget_taken(cx, queue, &taken);
                true
            }
        }
    }

    /// The first requeued message leaves the queue, unread.
    pub(crate) fn leave_absent(&mut self, queue: QueueId) {
        self.slab[queue.index()].backlog.drop_absent(&mut self.pool, &mut self.deliveries);
    }

    /// Settles the first `count` messages of a run that only the log has, unread.
    pub(crate) fn settle_run(
        &mut self,
        journal: &mut Journal,
        queue: QueueId,
        lane: Lane,
        start: u64,
        count: u32,
    ) {
        let record = &mut self.slab[queue.index()];
        record.uncount_stored(lane, count.into());
        // The virtual host of the queue has less in the log by now.
        self.releases += 1;
        let record = &self.slab[queue.index()];
        if !record.dying {
            let end = start + u64::from(count);
            journal.settle_stored(Settled { queue: record.incarnation(lane), start, end });
        }
    }

    /// Keeps a message in memory that was leaving: the log need not have it.
    pub(crate) fn cancel_spill(
        &mut self,
        cx: &mut Context<'_>,
        queue: QueueId,
        message: MessageId,
        offset: u64,
    ) {
        let record = &mut self.slab[queue.index()];
        record.spilled.stays(log_bytes(cx.messages, message));
        let target = Target { queue: record.spilled.incarnation(), offset };
        if record.dying {
            cx.journal.forsake(cx.messages, target.queue, message);
        } else {
            cx.journal.cancel_spill(cx.messages, target, message);
        }
    }

    /// Writes down that the transient messages of a deleted queue are gone from the log.
    pub(crate) fn append_spilled_gone(&mut self, journal: &mut Journal, index: usize) {
        let incarnation = self.slab[index].spilled.incarnation();
        if incarnation != 0 {
            journal.queue_gone(incarnation);
        }
    }
}

/// Bytes that a message takes in the log, roughly: always the same number for the same message.
#[inline]
pub(crate) fn log_bytes(messages: &Messages, message: MessageId) -> u64 {
    const RECORD_BYTES: u64 = 40;
    messages.stream_len(message) as u64 + RECORD_BYTES
}
