//! Out of memory: when memory is short, messages that the log has leave it (`page_in` is the way back).
//!
//! ```text
//! spill: fifo ──→ middle (neighbours become one entry); deliveries that are not settled
//! ```
//!
//! Always true: order is kept; a message is given up only when its commit is durable; a message that cannot
//! leave keeps its place in the order, and does not keep back the messages behind it; as long as the log alone
//! has a message, the memory to read it back is kept free of messages that cannot leave, whatever is published
//! meanwhile.

use super::state::Queues;
use crate::Context;
use crate::queue::{Place, Queue, Size, block_bytes};
use crate::quota::Quota;
use leveret_core::command::{ChannelId, ConnectionId, QueueId};
use leveret_core::journal::{Journal, Mode};
use leveret_core::mem::{MessageFlags, MessageId, Messages};

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
