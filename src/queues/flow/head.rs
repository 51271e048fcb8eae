//! The front of a queue: finds the first message, checks whether it may be delivered now, takes it, and
//! settles it.
//!
//! # Invariants
//! - A message that the log has is delivered only when the durable watermark is above its offset. After a
//!   power cut the message is then marked as redelivered, and its offset is never reused. Exception: a
//!   message that is still a pending write is delivered at once, and its own commit records the delivery. The
//!   exception does not apply if another broker knows the messages of the queue by their offsets.
//! - A withheld message is delivered only when its batch is durable. Two kinds of messages are withheld: those
//!   that replace another message in the log, for example dead letters, and those of a transaction.
//! - A message that is taken out of a queue is in memory.

use leveret_core::command::{ChannelId, ConnectionId, QueueId};
use leveret_core::error::Fault;
use leveret_core::mem::{MessageFlags, MessageId, Messages};
use leveret_storage::{Context, Mode, PendingWrites, Settled, Target};

use super::{PendingWatermark, Queues};
use crate::deliveries::{Delivered, DeliveryMethod, NewDelivery, Reason};
use crate::records::{EntryContent, First, Front, QueuePart, Size, Taken, block_bytes};

/// Bytes of message memory that must be free before messages are read back ahead of need.
const READ_AHEAD_FREE_BYTES: usize = 16 << 10;

impl Queues {
    /// Returns the message that leaves a queue or level next.
    #[inline]
    pub fn first(&self, queue: QueueId) -> Option<First> {
        self.records[queue].backlog.first(&self.pool, &self.deliveries)
    }

    /// Returns the first message of a queue or level if it can be delivered now. Otherwise requests the read,
    /// watermark or commit that the message waits for, and returns `None`.
    pub fn first_deliverable(&mut self, cx: &mut Context<'_>, queue: QueueId) -> Option<First> {
        let first = self.first(queue)?;
        let may_go = match first {
            First::At(_, EntryContent::InMemory(_)) => true,
            First::Requeued if self.records[queue].is_forwarded => self.may_forward_requeued(cx, queue),
            First::Requeued => true,
            First::Absent(_) | First::At(_, EntryContent::AbsentRun(..)) => {
                self.request_read(queue);
                false
            }
            First::At(_, EntryContent::InMemoryAndLog(message, offset)) => {
                if cx.messages.flags(message).has(MessageFlags::WITHHELD) {
                    self.await_withheld(cx.pending_writes, queue, offset);
                    false
                } else {
                    // A bridge sends the offset of the message to another broker, so the offset must never be
                    // reused. A durable watermark above the offset ensures that, even if a power cut takes
                    // the message.
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

    /// Returns whether a requeued first message may be forwarded to another broker. If the message has an offset in
    /// the log, the message or a watermark above that offset must be durable. Neither may be so yet, because a first
    /// delivery to a local client waits for neither.
    #[cold]
    fn may_forward_requeued(&mut self, cx: &mut Context<'_>, queue: QueueId) -> bool {
        let backlog = &self.records[queue].backlog;
        let (message, log_offset) = backlog.first_requeued(&self.pool, &self.deliveries);
        log_offset.is_none_or(|offset| {
            cx.messages.flags(message).has(MessageFlags::STORED)
                || self.is_below_watermark(cx.pending_writes, queue, offset)
        })
    }

    /// Returns whether the offset of a logged message is below the durable watermark, so that the message may
    /// be delivered. Requests a higher watermark if the offset is near the requested one. Returns `true` at
    /// once if the log is off or cannot be written.
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
        let (is_forwarded, durable_index) = (record.is_forwarded, &mut record.durable_index);
        if let Some(below) = durable_index.request_watermark(offset, is_forwarded) {
            let incarnation = durable_index.incarnation();
            let entry = pending_writes.set_delivered_watermark(incarnation, below);
            self.awaited.watermarks.push_back(PendingWatermark { entry, queue, incarnation, below });
        }
        self.records[queue].durable_index.is_below_watermark(offset)
    }

    /// Notes that the first message of a queue is withheld until its batch is durable.
    #[cold]
    fn await_withheld(&mut self, pending_writes: &mut PendingWrites, queue: QueueId, offset: u64) {
        // Requests the watermark now, so that the message need not wait for a second commit afterwards.
        let _ = self.is_below_watermark(pending_writes, queue, offset);
        pending_writes.request_commit_now();
        self.awaited.withheld.push((pending_writes.durable(), queue));
    }

    /// Wakes the queues whose first message is withheld, if a batch became durable since they began to wait. If
    /// it was not the batch of the message, they wait again.
    #[cold]
    fn wake_withheld(&mut self, pending_writes: &PendingWrites) {
        let mut awaited = core::mem::take(&mut self.awaited.withheld);
        awaited.retain(|&(before, queue)| {
            let is_new = before < pending_writes.durable();
            // The queue may have been deleted since. Waking another queue that has its id now is harmless: its
            // first message is checked again.
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
        self.awaited.withheld = awaited;
    }

    /// Wakes the queues whose first message waited for a watermark that is durable now, and those whose first
    /// message is withheld. Called after each commit.
    pub fn note_durable(&mut self, pending_writes: &PendingWrites) {
        if !self.awaited.withheld.is_empty() {
            self.wake_withheld(pending_writes);
        }
        let durable = pending_writes.entries_durable();
        while let Some(&PendingWatermark { entry, queue, incarnation, below }) =
            self.awaited.watermarks.front()
        {
            if entry > durable {
                return;
            }
            self.awaited.watermarks.pop_front();
            // The queue may have been deleted since.
            let Some(record) = self.records.get_mut(queue.index()) else { continue };
            if record.durable_index.incarnation() == incarnation {
                record.durable_index.raise_watermark(below);
                record.front = Front::Free;
                self.records.wake(queue);
                self.gets.note_change();
            }
        }
    }

    /// Takes the first message out of a queue. `first` is that message, which must be in memory.
    pub fn take_first(&mut self, cx: &mut Context<'_>, queue: QueueId, first: First) -> Taken {
        let taken = match first {
            First::Requeued => {
                let record = &mut self.records[queue];
                let mut taken =
                    record.backlog.take_requeued(&mut self.pool, &mut self.deliveries, cx.messages);
                if let Some(offset) = taken.log_offset {
                    taken.requeues = taken.requeues.max(record.requeue_count_of(offset));
                }
                taken
            }
            First::At(part, EntryContent::InMemory(message)) => {
                self.take_from_part(cx, queue, part, message, None)
            }
            First::At(part, EntryContent::InMemoryAndLog(message, offset)) => {
                self.take_from_part(cx, queue, part, message, Some(offset))
            }
            First::Absent(_) | First::At(_, EntryContent::AbsentRun(..)) => {
                panic!("the caller checked that the first message is in memory: {first:?}")
            }
        };
        self.releases += 1;
        taken
    }

    #[inline]
    fn take_from_part(
        &mut self,
        cx: &Context<'_>,
        queue: QueueId,
        part: QueuePart,
        message: MessageId,
        log_offset: Option<u64>,
    ) -> Taken {
        let record = &mut self.records[queue];
        let order = record.backlog.take_from_part(&mut self.pool, part, Size::of(cx.messages, message));
        let redelivered = log_offset.is_some_and(|offset| record.durable_index.note_taken(offset));
        let requeues = log_offset.map_or(0, |offset| record.requeue_count_of(offset));
        let has_memory_to_spare = || cx.messages.has_ordinary_room(READ_AHEAD_FREE_BYTES);
        if part == QueuePart::Head && record.backlog.is_head_low(has_memory_to_spare) {
            self.request_read(queue);
        }
        Taken { message, order, log_offset, redelivered, requeues }
    }

    /// If the commit with this message is still pending, records in that commit that the message may have
    /// been delivered.
    pub fn note_delivery(&mut self, cx: &mut Context<'_>, queue: QueueId, taken: &Taken) {
        if let Some(offset) = taken.log_offset
            && cx.pending_writes.is_pending_write(cx.messages, taken.message)
        {
            cx.pending_writes
                .note_delivered_early(self.records[queue].durable_index.incarnation(), offset + 1);
        }
    }

    /// Settles and releases a message that was taken out of its queue and is not delivered.
    pub fn drop_taken(&mut self, cx: &mut Context<'_>, queue: QueueId, taken: &Taken) {
        self.records[queue].backlog.note_dropped();
        self.settle_logged(cx, queue, taken.log_offset, taken.message);
        cx.messages.release(taken.message);
        self.releases += 1;
    }

    /// Settles a message of a queue in the log, if the log has it.
    pub(crate) fn settle_logged(
        &mut self,
        cx: &mut Context<'_>,
        queue: QueueId,
        log_offset: Option<u64>,
        message: MessageId,
    ) {
        let Some(offset) = log_offset else { return };
        let record = &mut self.records[queue];
        record.durable_index.settle(log_bytes(cx.messages, message));
        record.note_settled_requeues(offset, offset);
        if record.is_deleted() {
            cx.pending_writes.drop_target(cx.messages, message);
        } else {
            let target = Target { queue: record.durable_index.incarnation(), offset };
            cx.pending_writes.settle(cx.messages, target, message);
        }
    }

    /// Drops the first message, whether it is in memory or not. If the queue is deleted and begins with a run of
    /// absent messages, drops the whole run. Returns `false` if the queue is empty.
    pub fn drop_first(&mut self, cx: &mut Context<'_>, queue: QueueId) -> bool {
        match self.first(queue) {
            None => false,
            Some(First::Absent(offset)) => {
                self.remove_first_absent(queue);
                self.settle_run(cx.pending_writes, queue, offset, 1);
                true
            }
            Some(First::At(part, EntryContent::AbsentRun(start, count))) => {
                assert_eq!(part, QueuePart::Middle, "runs of absent messages are only in the middle");
                let count = if self.records[queue].is_deleted() { count } else { 1 };
                self.settle_run(cx.pending_writes, queue, start, count);
                self.records[queue].backlog.remove_from_absent_run(&mut self.pool, count);
                true
            }
            Some(first) => {
                let taken = self.take_first(cx, queue, first);
                self.drop_taken(cx, queue, &taken);
                true
            }
        }
    }

    /// Removes the first requeued message, which only the log has, from the queue without reading it.
    pub(crate) fn remove_first_absent(&mut self, queue: QueueId) {
        self.records[queue].backlog.remove_first_absent(&mut self.pool, &mut self.deliveries);
    }

    /// Settles `count` messages that only the log has, from log offset `start` on, without reading them.
    pub(crate) fn settle_run(
        &mut self,
        pending_writes: &mut PendingWrites,
        queue: QueueId,
        start: u64,
        count: u32,
    ) {
        let record = &mut self.records[queue];
        record.durable_index.settle_absent(count.into());
        if count > 0 {
            record.note_settled_requeues(start, start + u64::from(count) - 1);
        }
        // The queue's messages take fewer bytes in the log now, and a publisher may wait for that.
        self.releases += 1;
        let record = &self.records[queue];
        if !record.is_deleted() {
            let end = start + u64::from(count);
            pending_writes.settle_stored(Settled { queue: record.durable_index.incarnation(), start, end });
        }
    }

    // ---- what happens to a taken message

    /// Returns how often the message was requeued, for the header `x-delivery-count`; `None` if the queue
    /// does not report it.
    ///
    /// As in RabbitMQ, only `basic.get-ok` reports the count on a first delivery. A message that was
    /// delivered before a restart counts as requeued at least once, because its exact count may be lost.
    #[inline]
    pub fn delivery_count(&self, delivery: &Delivered) -> Option<u16> {
        if delivery.method == DeliveryMethod::Deliver && !delivery.redelivered {
            return None;
        }
        let is_reported = self.records[delivery.queue?].is_quorum();
        is_reported.then(|| delivery.requeues.max(delivery.redelivered.into()))
    }

    /// Settles the message of a delivery in the log and releases its memory. The message does not return to
    /// its queue.
    #[inline]
    pub fn settle_delivered(&mut self, cx: &mut Context<'_>, queue: QueueId, delivery: &Delivered) {
        match (delivery.message, delivery.log_offset) {
            (Some(message), log_offset) => {
                self.settle_logged(cx, queue, log_offset, message);
                cx.messages.release(message);
            }
            (None, Some(offset)) => self.settle_run(cx.pending_writes, queue, offset, 1),
            (None, None) => {}
        }
    }

    /// Returns whether a `basic.get` on this queue must still wait, because the first message is blocked.
    ///
    /// The get need not wait if the first message has expired ([`Front::Expired`]): the retried get tries to remove
    /// that message itself. The trim list might do so only later, when capacity becomes free.
    pub fn cannot_get_yet(&self, queue: QueueId) -> bool {
        let record = &self.records[self.records.first_level(queue)];
        record.front == Front::Blocked && !record.is_deleted()
    }

    /// Counts a delivery as unsettled in its queue.
    pub fn count_delivery(&mut self, messages: &Messages, new: &NewDelivery) {
        let Some(queue) = new.queue else { return };
        let record = &mut self.records[queue];
        record.unsettled.count += 1;
        record.unsettled.body_bytes += u64::from(messages.body_len(new.message));
        record.unsettled.bytes += block_bytes(messages, new.message);
    }

    /// Subtracts a settled delivery from the counts of its queue. Returns the bytes of memory that the
    /// delivery's message occupies; 0 if only the log has the message.
    pub fn uncount_delivery(&mut self, messages: &Messages, index: usize) -> u64 {
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
            debug_assert!(
                record.unsettled.count > 0 || record.unsettled.body_bytes == 0,
                "no delivery, no bytes"
            );
        }
        delivery.message.map_or(0, |message| messages.footprint_bytes(message).into())
    }

    /// Counts one more requeue of a delivery. Returns whether the count now exceeds the delivery limit of the
    /// queue.
    pub fn count_requeue_in_queue(&mut self, index: usize) -> bool {
        let delivery = &mut self.deliveries[index];
        delivery.requeues = delivery.requeues.saturating_add(1);
        let queue = delivery.queue.map(|queue| &self.records[queue]);
        queue.is_some_and(|record| {
            !record.is_deleted() && u32::from(delivery.requeues) > record.settings.delivery_limit
        })
    }

    /// Requeues a delivery at its old position. The caller has subtracted it from the counts of its consumer.
    pub fn put_back(&mut self, messages: &Messages, queue: QueueId, index: usize) {
        let backlog = &mut self.records[queue].backlog;
        backlog.put_back(&mut self.pool, &mut self.deliveries, messages, index);
        // The requeued message comes before the message that blocks the queue. It may occupy the memory that
        // the blocking message waits for, so it must be delivered first.
        self.unblock_front(queue);
    }

    /// Adds a delivery to the rejected messages of its queue, where it stays until it is dead-lettered for
    /// this reason. The caller has subtracted it from the counts of its consumer.
    pub fn reject(&mut self, messages: &Messages, queue: QueueId, index: usize, reason: Reason) {
        self.deliveries.forbid_eviction(index);
        self.deliveries[index].dead_letter_reason = Some(reason);
        self.records[queue].backlog.reject(&mut self.deliveries, messages, index);
    }

    /// Notes that the first message of a queue may be deliverable now: the queue's deliveries and waiting
    /// gets are retried.
    pub fn unblock_front(&mut self, queue: QueueId) {
        self.records[queue].front = Front::Free;
        self.trim_list.note_change();
        if self.records[queue].delayed_exchange().is_some() {
            return self.note_slot_read_ended(queue);
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

/// Returns roughly the number of bytes that a message takes in the log. The number is always the same for the
/// same message, so that sums can be counted up and down.
#[inline]
pub(crate) fn log_bytes(messages: &Messages, message: MessageId) -> u64 {
    const RECORD_BYTES: u64 = 40;
    messages.stream_len(message) as u64 + RECORD_BYTES
}

/// A `basic.get` that waits because the first message cannot be delivered yet, or because the outbox is full. A
/// connection has at most one.
#[derive(Debug)]
pub struct Getting {
    /// The connection of the request.
    pub connection: ConnectionId,
    /// Its channel.
    pub channel: ChannelId,
    /// The queue to get a message from.
    pub queue: QueueId,
    /// Serial number of the queue's declaration, because another queue may get the id `queue` meanwhile.
    pub serial: u64,
    /// Automatic acknowledgement.
    pub no_ack: bool,
    /// The result of the get; `None` while it waits. `Ok` has whether there was a message.
    pub outcome: Option<Result<bool, Fault>>,
}
