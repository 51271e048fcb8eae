//! The front of a queue: which message goes next, whether it may go now, and what becomes of the one taken.
//!
//! Always true: a message that the log has is delivered only when it is written down that it may have been
//! (or when its own commit will say so), so that after a power cut it is marked as redelivered; what leaves
//! a queue is in memory.

use crate::command::QueueId;
use crate::journal::{Journal, Mode, Settled, Target};
use crate::mem::{MessageId, Messages};

use super::divisions::owner_of;
use super::queue::{Lane, Place};
use super::{Broker, Context};

/// Offsets that are marked as delivered ahead of time: so many at most are called redelivered after a power
/// cut that never were.
const WATERMARK_STEP: u64 = 256;
/// Messages in the head below which more are read back.
const HEAD_LOW: u32 = 32;
/// Memory that must be there for reading ahead, in bytes.
const HEAD_BYTES: usize = 16 << 10;

/// A message taken out of its queue.
pub(super) struct Taken {
    pub(super) message: MessageId,
    /// Its place among those that came back.
    pub(super) offset: u64,
    /// Its place in the log.
    pub(super) logged: Option<u64>,
    pub(super) redelivered: bool,
}

/// What stands first in a queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum First {
    /// It was delivered before.
    CameBack,
    /// It was, and only the log has it.
    Absent(u64),
    /// It waits in this part of the queue.
    At(QueuePart, Place),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum QueuePart {
    Head,
    Middle,
    Leaving,
    Fifo,
}

impl Broker {
    pub(super) fn first(&self, queue: QueueId) -> Option<First> {
        let record = &self.queues[queue.index()];
        if let Some(index) = record.returned.first() {
            let delivery = &self.deliveries.slab[index];
            let absent = delivery.logged.filter(|_| delivery.message.is_none());
            return Some(absent.map_or(First::CameBack, First::Absent));
        }
        if let Some(entry) = record.spilled.front(&self.fifo_pool) {
            return Some(match Place::of(entry) {
                Place::Stored(_, offset, _) => First::Absent(offset),
                _ => First::CameBack,
            });
        }
        let parts = [
            (QueuePart::Head, &record.deep.head),
            (QueuePart::Middle, &record.deep.middle),
            (QueuePart::Leaving, &record.deep.leaving),
            (QueuePart::Fifo, &record.fifo),
        ];
        let found = parts.into_iter().find_map(|(part, fifo)| Some((part, fifo.front(&self.fifo_pool)?)));
        found.map(|(part, entry)| First::At(part, Place::of(entry)))
    }

    /// Whether the first message can go now. If not, what it waits for has been asked for.
    pub(super) fn first_may_go(&mut self, cx: &mut Context<'_>, queue: QueueId) -> bool {
        let may_go = match self.first(queue) {
            None => return false,
            Some(First::CameBack | First::At(_, Place::Plain(_) | Place::Spilled(..))) => true,
            Some(First::Absent(_) | First::At(_, Place::Stored(..))) => {
                self.want_pages(queue);
                false
            }
            Some(First::At(_, Place::Logged(message, offset))) => {
                cx.journal.is_gathering(cx.messages, message)
                    || self.is_below_watermark(cx.journal, queue, offset)
            }
        };
        if !may_go {
            self.queues[queue.index()].stalled = true;
        }
        may_go
    }

    /// Whether a message of the log may be delivered; if not, that is asked for. Asks ahead of need.
    fn is_below_watermark(&mut self, journal: &mut Journal, queue: QueueId, offset: u64) -> bool {
        if journal.mode() != Mode::On {
            return true;
        }
        let logged = &mut self.queues[queue.index()].logged;
        if offset + WATERMARK_STEP / 2 >= logged.watermark_asked {
            // Above all marks before, so that what rested is void.
            let through = (offset + WATERMARK_STEP).max(logged.watermark_before + 1);
            let incarnation = logged.incarnation;
            logged.watermark_asked = through;
            let fact = journal.set_delivered_watermark(incarnation, through);
            self.marking.push_back((fact, queue, incarnation, through));
        }
        offset < self.queues[queue.index()].logged.watermark
    }

    /// Something may have become durable: queues that waited for a mark go on.
    pub fn note_durable(&mut self, journal: &Journal) {
        let durable = journal.facts_stored();
        while let Some(&(fact, queue, incarnation, through)) = self.marking.front() {
            if fact > durable {
                return;
            }
            self.marking.pop_front();
            let Some(record) = self.queues.get_mut(queue.index()) else { continue };
            if record.logged.incarnation == incarnation {
                record.logged.watermark = record.logged.watermark.max(through);
                record.stalled = false;
                self.wake(queue);
            }
        }
    }

    /// The last thing before a clean stop, when all else is written: marks that ran ahead of the deliveries
    /// are set right, so that what nobody was sent is not called redelivered. Says whether there were any.
    pub fn rest(&mut self, journal: &mut Journal) -> bool {
        if journal.mode() != Mode::On {
            return false;
        }
        for (_, queue) in self.queues.iter() {
            let logged = &queue.logged;
            let watermark = logged.watermark_asked.max(logged.watermark_before);
            let is_ahead = logged.count > 0 && watermark > logged.taken_below && !queue.dying;
            if is_ahead && !journal.is_crowded() {
                journal.reset_watermark(logged.incarnation, logged.taken_below, watermark);
            }
        }
        !journal.is_empty()
    }

    /// Takes the first message of a queue: what came back before what is new. `None` also when the first is
    /// not in memory.
    pub(super) fn take_ready(&mut self, cx: &mut Context<'_>, queue: QueueId) -> Option<Taken> {
        let first = self.first(queue)?;
        let record = &mut self.queues[queue.index()];
        let taken = match first {
            First::CameBack => self.take_returned(queue)?,
            First::Absent(_) => return None,
            First::At(part, place) => {
                let fifo = match part {
                    QueuePart::Head => &mut record.deep.head,
                    QueuePart::Middle => &mut record.deep.middle,
                    QueuePart::Leaving => &mut record.deep.leaving,
                    QueuePart::Fifo => &mut record.fifo,
                };
                let (message, logged) = match place {
                    Place::Plain(message) | Place::Spilled(message, _) => (message, None),
                    Place::Logged(message, offset) => (message, Some(offset)),
                    Place::Stored(..) => return None,
                };
                fifo.pop(&mut self.fifo_pool)?;
                record.deep.messages -= u32::from(part == QueuePart::Middle);
                let offset = record.taken;
                record.taken += 1;
                let redelivered = logged.is_some_and(|offset| offset < record.logged.redelivered_below);
                let end = logged.map_or(0, |offset| offset + 1);
                record.logged.taken_below = record.logged.taken_below.max(end);
                let deep = &record.deep;
                // Ahead of need only when there is memory to spare.
                let wants_more = part == QueuePart::Head
                    && deep.head.len() < HEAD_LOW
                    && !deep.middle.is_empty()
                    && (deep.head.is_empty()
                        || cx.messages.has_ordinary_room(owner_of(record.vhost), HEAD_BYTES));
                if wants_more {
                    self.want_pages(queue);
                }
                if let Place::Spilled(_, offset) = place {
                    self.unshed(cx, queue, message, offset);
                }
                Taken { message, offset, logged, redelivered }
            }
        };
        let record = &mut self.queues[queue.index()];
        record.ready_bytes -= u64::from(cx.messages.footprint_bytes(taken.message));
        record.ready_body_bytes -= u64::from(cx.messages.body_len(taken.message));
        self.releases += 1;
        Some(taken)
    }

    fn take_returned(&mut self, queue: QueueId) -> Option<Taken> {
        let record = &mut self.queues[queue.index()];
        if let Some(index) = record.returned.pop(&mut self.deliveries) {
            let old = self.deliveries.remove(index);
            let (message, offset, logged) = (old.message?, old.offset, old.logged);
            return Some(Taken { message, offset, logged, redelivered: old.redelivered });
        }
        let (offset, entry) = record.spilled.pop(&mut self.fifo_pool)?;
        let logged = match Place::of(entry) {
            Place::Logged(_, offset) => Some(offset),
            Place::Plain(_) | Place::Spilled(..) | Place::Stored(..) => None,
        };
        let message = entry.message;
        Some(Taken { message, offset, logged, redelivered: true })
    }

    /// A message on its way to a consumer before its commit was made: the commit says so.
    pub(super) fn note_delivery(&mut self, cx: &mut Context<'_>, queue: QueueId, taken: &Taken) {
        if let Some(offset) = taken.logged
            && cx.journal.is_gathering(cx.messages, taken.message)
        {
            cx.journal.piggyback(self.queues[queue.index()].logged.incarnation, offset + 1);
        }
    }

    /// Drops a message that was taken and goes nowhere.
    pub(super) fn forget_taken(&mut self, cx: &mut Context<'_>, queue: QueueId, taken: &Taken) {
        self.settle_logged(cx, queue, taken.logged, taken.message);
        cx.messages.release(taken.message);
        self.releases += 1;
    }

    /// A message of a queue is done with: so it is in the log.
    pub(super) fn settle_logged(
        &mut self,
        cx: &mut Context<'_>,
        queue: QueueId,
        logged: Option<u64>,
        message: MessageId,
    ) {
        let Some(offset) = logged else { return };
        let record = &mut self.queues[queue.index()];
        record.logged.count -= 1;
        record.logged.bytes = record.logged.bytes.saturating_sub(log_bytes(cx.messages, message));
        if record.dying {
            cx.journal.forsake(cx.messages, record.logged.incarnation, message);
        } else {
            let target = Target { queue: record.logged.incarnation, offset };
            cx.journal.settle(cx.messages, target, message);
        }
    }

    /// Drops the first message, in memory or not; `false` when there is none.
    pub(super) fn drop_first(&mut self, cx: &mut Context<'_>, queue: QueueId) -> bool {
        match self.first(queue) {
            None => false,
            Some(First::Absent(offset)) => {
                self.leave_absent(queue);
                self.settle_run(cx.journal, queue, Lane::Durable, offset, 1);
                true
            }
            Some(First::At(part, Place::Stored(lane, start, count))) => {
                assert_eq!(part, QueuePart::Middle, "only the middle has what is not in memory");
                let count = if self.queues[queue.index()].dying { count } else { 1 };
                self.settle_run(cx.journal, queue, lane, start, count);
                self.leave_stored(queue, count);
                true
            }
            Some(_) => {
                let Some(taken) = self.take_ready(cx, queue) else { return false };
                self.forget_taken(cx, queue, &taken);
                true
            }
        }
    }

    /// The first of those that came back leaves the queue, unread.
    pub(super) fn leave_absent(&mut self, queue: QueueId) {
        let record = &mut self.queues[queue.index()];
        record.uncount_absent();
        if let Some(index) = record.returned.pop(&mut self.deliveries) {
            self.deliveries.remove(index);
        } else {
            record.spilled.pop(&mut self.fifo_pool);
        }
    }

    /// The first `count` messages of a run that only the log has are done with, unread.
    pub(super) fn settle_run(
        &mut self,
        journal: &mut Journal,
        queue: QueueId,
        lane: Lane,
        start: u64,
        count: u32,
    ) {
        let record = &mut self.queues[queue.index()];
        record.uncount_stored(lane, count.into());
        if !record.dying {
            let end = start + u64::from(count);
            journal.settle_stored(Settled { queue: record.incarnation(lane), start, end });
        }
    }
}

/// What a message takes in the log, roughly: the same number whenever it is asked.
pub(super) fn log_bytes(messages: &Messages, message: MessageId) -> u64 {
    const RECORD_BYTES: u64 = 40;
    messages.stream_len(message) as u64 + RECORD_BYTES
}
