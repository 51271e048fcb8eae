//! The front of a queue: which message is next, whether it may be delivered now, and what happens to a taken
//! message.
//!
//! # Invariants
//! - A message that the log has is delivered only when the log says that it may have been delivered. After a
//!   power cut it is then marked as redelivered, and its offset is never reused. Exception: if no other
//!   broker knows the message by its offset, the message's own commit may record this.
//! - A message that replaces another, as a dead letter does, is delivered only when the settlement of the
//!   original is durable.
//! - A message that leaves a queue is in memory.

use leveret_core::command::{ChannelId, ConnectionId, QueueId};
use leveret_core::error::Fault;
use leveret_core::mem::{MessageFlags, MessageId, Messages};
use leveret_core::pending_writes::{Mode, PendingWrites, Settled, Target};

use super::{PendingWatermark, Queues};
use crate::Context;
use crate::deliveries::{Carrier, Delivered, NewDelivery};
use crate::queue_records::{First, Front, Place, QueuePart, Size, Taken, block_bytes};
use crate::republish::Reason;

/// Bytes of memory that must be free for reading ahead.
const READ_AHEAD_FREE_BYTES: usize = 16 << 10;

impl Queues {
    #[inline]
    pub(crate) fn first(&self, queue: QueueId) -> Option<First> {
        self.records[queue].backlog.first(&self.pool, &self.deliveries)
    }

    /// Returns the first message if it can be delivered now. Otherwise what it waits for has been requested.
    pub(crate) fn first_to_go(&mut self, cx: &mut Context<'_>, queue: QueueId) -> Option<First> {
        let first = self.first(queue)?;
        let may_go = match first {
            First::At(_, Place::Plain(_)) => true,
            First::Requeued if self.records[queue].is_forwarded => self.may_forward_returned(cx, queue),
            First::Requeued => true,
            First::Absent(_) | First::At(_, Place::Stored(..)) => {
                self.want_pages(queue);
                false
            }
            First::At(_, Place::Logged(message, offset)) => {
                if cx.messages.flags(message).has(MessageFlags::WITHHELD) {
                    self.await_move(cx.pending_writes, queue, offset);
                    false
                } else {
                    // Another broker learns the message's offset, so the offset must never be reused. A
                    // watermark above it in the log ensures that, whether the log has the message or not.
                    let is_forwarded = self.records[queue].is_forwarded;
                    !is_forwarded && cx.pending_writes.is_pending_write(cx.messages, message)
                        || self.is_below_watermark(cx.pending_writes, queue, offset)
                }
            }
        };
        if !may_go {
            self.records[queue].front = Front::Blocked;
        }
        may_go.then_some(first)
    }

    /// Returns whether a requeued first message may go to another broker. It was delivered to a local client,
    /// which does not know its offset.
    #[cold]
    fn may_forward_returned(&mut self, cx: &mut Context<'_>, queue: QueueId) -> bool {
        let backlog = &self.records[queue].backlog;
        let (message, logged) = backlog.first_returned(&self.pool, &self.deliveries);
        logged.is_none_or(|offset| {
            !cx.pending_writes.is_pending_write(cx.messages, message)
                || self.is_below_watermark(cx.pending_writes, queue, offset)
        })
    }

    /// Returns whether a message of the log is below the watermark, so that it may be delivered. Requests a
    /// higher watermark ahead of need.
    fn is_below_watermark(
        &mut self,
        pending_writes: &mut PendingWrites,
        queue: QueueId,
        offset: u64,
    ) -> bool {
        if pending_writes.mode() != Mode::On {
            return true;
        }
        let record = &mut self.records[queue];
        let (is_forwarded, logged) = (record.is_forwarded, &mut record.logged);
        if let Some(through) = logged.ask_watermark(offset, is_forwarded) {
            let incarnation = logged.incarnation();
            let fact = pending_writes.set_delivered_watermark(incarnation, through);
            self.awaited.watermarks.push_back(PendingWatermark { fact, queue, incarnation, through });
        }
        self.records[queue].logged.is_below_watermark(offset)
    }

    /// Notes that a queue waits for a message that replaces another: it is delivered when the log has both.
    #[cold]
    fn await_move(&mut self, pending_writes: &mut PendingWrites, queue: QueueId, offset: u64) {
        // The watermark is written with it, so that the message need not wait for it afterwards.
        let _ = self.is_below_watermark(pending_writes, queue, offset);
        pending_writes.hurry();
        self.awaited.moves.push((pending_writes.durable(), queue));
    }

    /// Wakes the queues whose first message replaces another, if that is durable now.
    #[cold]
    fn note_moved(&mut self, pending_writes: &PendingWrites) {
        let mut awaited = core::mem::take(&mut self.awaited.moves);
        awaited.retain(|&(before, queue)| {
            let is_new = before < pending_writes.durable();
            // The queue may have been deleted since.
            if is_new
                && let Some(record) = self.records.get_mut(queue.index())
                && record.front == Front::Blocked
            {
                record.front = Front::Free;
                self.records.wake(queue);
                self.gets.note_change();
            }
            !is_new
        });
        self.awaited.moves = awaited;
    }

    /// Wakes the queues that waited for a watermark or a move that may have become durable.
    pub fn note_durable(&mut self, pending_writes: &PendingWrites) {
        if !self.awaited.moves.is_empty() {
            self.note_moved(pending_writes);
        }
        let durable = pending_writes.entries_durable();
        while let Some(&PendingWatermark { fact, queue, incarnation, through }) =
            self.awaited.watermarks.front()
        {
            if fact > durable {
                return;
            }
            self.awaited.watermarks.pop_front();
            // The queue may have been deleted since.
            let Some(record) = self.records.get_mut(queue.index()) else { continue };
            if record.logged.incarnation() == incarnation {
                record.logged.raise_watermark(through);
                record.front = Front::Free;
                self.records.wake(queue);
                self.gets.note_change();
            }
        }
    }

    /// Takes the first message of a queue, which is in memory.
    pub(crate) fn take_first(&mut self, cx: &mut Context<'_>, queue: QueueId, first: First) -> Taken {
        let taken = match first {
            First::Requeued => {
                let record = &mut self.records[queue];
                let mut taken =
                    record.backlog.take_returned(&mut self.pool, &mut self.deliveries, cx.messages);
                if let Some(offset) = taken.logged {
                    taken.requeues = taken.requeues.max(record.requeues.count_of(offset));
                }
                taken
            }
            First::At(part, Place::Plain(message)) => self.take_from(cx, (queue, part), message, None),
            First::At(part, Place::Logged(message, offset)) => {
                self.take_from(cx, (queue, part), message, Some(offset))
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
        let record = &mut self.records[queue];
        let offset = record.backlog.take_from(&mut self.pool, part, Size::of(cx.messages, message));
        let redelivered = logged.is_some_and(|offset| record.logged.taken(offset));
        let requeues = logged.map_or(0, |offset| record.requeues.count_of(offset));
        let is_to_spare = || cx.messages.has_ordinary_room(READ_AHEAD_FREE_BYTES);
        if part == QueuePart::Head && record.backlog.is_head_low(is_to_spare) {
            self.want_pages(queue);
        }
        Taken { message, offset, logged, redelivered, requeues }
    }

    /// Notes in the pending commit that one of its messages is already being sent to a consumer.
    pub(crate) fn note_delivery(&mut self, cx: &mut Context<'_>, queue: QueueId, taken: &Taken) {
        if let Some(offset) = taken.logged
            && cx.pending_writes.is_pending_write(cx.messages, taken.message)
        {
            cx.pending_writes.note_delivered_early(self.records[queue].logged.incarnation(), offset + 1);
        }
    }

    /// Drops a message that was taken and is not delivered.
    pub(crate) fn forget_taken(&mut self, cx: &mut Context<'_>, queue: QueueId, taken: &Taken) {
        self.records[queue].backlog.note_dropped();
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
        let record = &mut self.records[queue];
        record.logged.settled(log_bytes(cx.messages, message));
        record.requeues.note_settled(offset, offset);
        if record.is_deleted() {
            cx.pending_writes.drop_target(cx.messages, message);
        } else {
            let target = Target { queue: record.logged.incarnation(), offset };
            cx.pending_writes.settle(cx.messages, target, message);
        }
    }

    /// Drops the first message, in memory or not. Returns `false` if there is none.
    pub(crate) fn drop_first(&mut self, cx: &mut Context<'_>, queue: QueueId) -> bool {
        match self.first(queue) {
            None => false,
            Some(First::Absent(offset)) => {
                self.leave_absent(queue);
                self.settle_run(cx.pending_writes, queue, offset, 1);
                true
            }
            Some(First::At(part, Place::Stored(start, count))) => {
                assert_eq!(part, QueuePart::Middle, "only the middle has what is not in memory");
                let count = if self.records[queue].is_deleted() { count } else { 1 };
                self.settle_run(cx.pending_writes, queue, start, count);
                self.records[queue].backlog.leave_stored(&mut self.pool, count);
                true
            }
            Some(first) => {
                let taken = self.take_first(cx, queue, first);
                self.forget_taken(cx, queue, &taken);
                true
            }
        }
    }

    /// Removes the first requeued message without reading it.
    pub(crate) fn leave_absent(&mut self, queue: QueueId) {
        self.records[queue].backlog.drop_absent(&mut self.pool, &mut self.deliveries);
    }

    /// Settles the first `count` messages of a run that only the log has, without reading them.
    pub(crate) fn settle_run(
        &mut self,
        pending_writes: &mut PendingWrites,
        queue: QueueId,
        start: u64,
        count: u32,
    ) {
        let record = &mut self.records[queue];
        record.logged.settled_unread(count.into());
        if count > 0 {
            record.requeues.note_settled(start, start + u64::from(count) - 1);
        }
        // The virtual host of the queue has fewer bytes in the log now.
        self.releases += 1;
        let record = &self.records[queue];
        if !record.is_deleted() {
            let end = start + u64::from(count);
            pending_writes.settle_stored(Settled { queue: record.logged.incarnation(), start, end });
        }
    }

    // ---- what happens to a taken message

    /// Returns how often the message was requeued, for queues that report it.
    ///
    /// As in RabbitMQ, on a first delivery only `basic.get-ok` reports it. After a restart the broker knows
    /// that the message was delivered, but not how often.
    #[inline]
    pub(crate) fn delivery_count(&self, delivery: &Delivered) -> Option<u16> {
        if delivery.carrier == Carrier::Deliver && !delivery.redelivered {
            return None;
        }
        let tells = self.records[delivery.queue?].settings.tells_requeues;
        tells.then(|| delivery.requeues.max(delivery.redelivered.into()))
    }

    /// Settles the message of a delivery, which leaves the queue for good.
    #[inline]
    pub(crate) fn settle_delivered(&mut self, cx: &mut Context<'_>, queue: QueueId, delivery: &Delivered) {
        match (delivery.message, delivery.logged) {
            (Some(message), logged) => {
                self.settle_logged(cx, queue, logged, message);
                cx.messages.release(message);
            }
            (None, Some(offset)) => self.settle_run(cx.pending_writes, queue, offset, 1),
            (None, None) => {}
        }
    }

    /// Returns whether the queue cannot have a message for a `basic.get` yet. An expired first message is
    /// examined again, because nothing else may do so.
    pub(crate) fn cannot_get_yet(&self, queue: QueueId) -> bool {
        let record = &self.records[self.records.first_level(queue)];
        record.front == Front::Blocked && !record.is_deleted()
    }

    /// Counts a delivery as unsettled in its queue. The caller has checked the capacity of the pool.
    pub(crate) fn count_delivery(&mut self, messages: &Messages, new: &NewDelivery) {
        let Some(queue) = new.queue else { return };
        let record = &mut self.records[queue];
        record.unsettled.count += 1;
        record.unsettled.body_bytes += u64::from(messages.body_len(new.message));
        record.unsettled.bytes += block_bytes(messages, new.message);
    }

    /// Removes a settled delivery from its queue's counts. Returns the bytes of blocks that its message
    /// occupies.
    pub(crate) fn uncount_delivery(&mut self, messages: &Messages, index: usize) -> u64 {
        let delivery = &self.deliveries[index];
        let bytes = delivery.message.map_or(0, |message| block_bytes(messages, message));
        if let Some(queue) = delivery.queue {
            let record = &mut self.records[queue];
            record.unsettled.count -= 1;
            record.unsettled.body_bytes -= u64::from(delivery.body_len);
            match delivery.message {
                Some(_) => record.unsettled.bytes -= bytes,
                None => record.unsettled.absent -= 1,
            }
            debug_assert!(record.unsettled.count > 0 || record.unsettled.body_bytes == 0, "counted alike");
        }
        bytes
    }

    /// Counts one more requeue of a delivery. Returns whether that exceeds the delivery limit of its queue.
    pub(crate) fn count_requeue_in_queue(&mut self, index: usize) -> bool {
        let delivery = &mut self.deliveries[index];
        delivery.requeues = delivery.requeues.saturating_add(1);
        let queue = delivery.queue.map(|queue| &self.records[queue]);
        queue.is_some_and(|record| {
            !record.is_deleted() && u32::from(delivery.requeues) > record.settings.delivery_limit
        })
    }

    /// Requeues, at its old position, a delivery that no longer counts for any consumer.
    pub(crate) fn put_back(&mut self, messages: &Messages, queue: QueueId, index: usize) {
        let backlog = &mut self.records[queue].backlog;
        backlog.put_back(&mut self.pool, &mut self.deliveries, messages, index);
        // The requeued message precedes the one that the queue waits for, and may take the very memory that
        // this one needs.
        self.unblock_front(queue);
    }

    /// Rejects, for this reason, a delivery that no longer counts for any consumer. It is kept apart until it
    /// is dead-lettered.
    pub(crate) fn reject(&mut self, messages: &Messages, queue: QueueId, index: usize, reason: Reason) {
        self.deliveries.keep(index);
        self.deliveries[index].death = Some(reason);
        self.records[queue].backlog.reject(&mut self.deliveries, messages, index);
    }

    /// Notes that what the first message of a queue waited for may have happened: deliveries and gets try
    /// again.
    pub(crate) fn unblock_front(&mut self, queue: QueueId) {
        self.records[queue].front = Front::Free;
        self.trim_list.note_change();
        if self.records[queue].delayed_exchange.is_some() {
            return self.slot_fetched(queue);
        }
        if self.records[queue].settings.may_expire {
            self.relist_for_trim(queue);
        }
        if !self.records.is_first_level(queue) {
            self.examine_first_level(queue);
        }
        self.gets.note_change();
        self.records.wake(queue);
    }
}

/// Returns roughly how many bytes a message takes in the log: always the same number for the same message.
#[inline]
pub(crate) fn log_bytes(messages: &Messages, message: MessageId) -> u64 {
    const RECORD_BYTES: u64 = 40;
    messages.stream_len(message) as u64 + RECORD_BYTES
}

/// A `basic.get` that waits for its message to be read back. A connection has at most one.
#[derive(Debug)]
pub(crate) struct Getting {
    pub(crate) connection: ConnectionId,
    pub(crate) channel: ChannelId,
    pub(crate) queue: QueueId,
    /// Serial number of the queue's declaration: its id may be given to another queue.
    pub(crate) serial: u64,
    pub(crate) no_ack: bool,
    /// The result of the get when it is over: whether there was a message, or why not.
    pub(crate) outcome: Option<Result<bool, Fault>>,
}
