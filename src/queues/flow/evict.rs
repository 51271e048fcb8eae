//! Removes messages that the log has from memory when memory is short (eviction). `page_in` reads them back.
//! `Messages::is_above_spill_mark` in `leveret-core` says when the memory of messages is short.
//!
//! ```text
//! evict: fifo ──→ middle (messages with successive offsets become one entry); messages of unsettled
//! deliveries
//! ```
//!
//! # Invariants
//! - Order is kept.
//! - A message is evicted only when it is durable in the log.
//! - A message that cannot be evicted keeps its place in the order and does not block the messages behind it.
//! - While a message is only in the log, publishers cannot use the memory that is needed to read it back.

use leveret_core::command::{ChannelId, ConnectionId, QueueId};
use leveret_core::mem::{MessageFlags, MessageId, Messages};
use leveret_core::quota::Quota;
use leveret_storage::{Context, Mode, PendingWrites};

use super::Queues;
use crate::records::{EntryContent, Queue, Size, block_bytes};

/// Maximum number of messages that one step evicts.
const EVICT_STEP: u32 = 512;
/// Maximum number of deliveries that one step examines.
const DELIVERED_STEP: u32 = 128;
/// Maximum number of queues that one step examines.
const EVICT_QUEUES: usize = 64;
/// In a queue with consumers, this many messages at the front stay in memory, before the first evicted
/// message.
const WINDOW: u32 = 64;
/// Eviction takes no new chunk of queue entries while fewer chunks than this are free.
const CHUNKS_LEFT: usize = 4;

impl Queues {
    /// Sets, at start, the bytes of the largest body in the log; 0 when the log has no message.
    pub fn set_largest_stored_body(&mut self, body_bytes: u64) {
        self.paging.set_largest_stored_body(body_bytes);
    }

    /// Evicts a bounded number of messages that the log has, if memory is short. Returns whether there is
    /// more to do, so that the caller must call again without waiting for an event.
    pub fn evict(
        &mut self,
        cx: &mut Context<'_>,
        quota: &mut Quota,
        connection_of: impl Fn(ChannelId) -> ConnectionId,
    ) -> bool {
        let (slab, places) = (&self.records, self.records.places());
        let has_absent = |index: usize| slab.get(index).is_some_and(Queue::has_absent);
        let is_searching = self.paging.keep_read_back_reserve(cx.messages, places, has_absent);
        if cx.pending_writes.mode() != Mode::On || !self.is_short(cx.messages) {
            return is_searching;
        }
        // Only durable messages can be evicted.
        cx.pending_writes.request_commit_now();
        let mut left = EVICT_STEP;
        if self.evict_delivered(cx.messages, quota, connection_of) {
            return true;
        }
        for _ in 0..EVICT_QUEUES.min(places) {
            let index = self.paging.next_place(places);
            let may_evict = self
                .records
                .get(index)
                .is_some_and(|queue| !queue.is_deleted() && queue.durable_index.count() > 0);
            if may_evict && self.evict_from_queue(cx, QueueId::from_index(index), &mut left) {
                // Either the maximum number of messages for this step is evicted, or memory is no longer
                // short.
                return true;
            }
            self.paging.skip_place();
        }
        left < EVICT_STEP || is_searching
    }

    fn is_short(&self, messages: &Messages) -> bool {
        messages.is_above_spill_mark() || self.pool.chunks_free() < self.pool.chunks_max() / 2
    }

    /// Evicts the messages of unsettled deliveries, before those that wait in queues: the former are needed
    /// again only if they are requeued.
    ///
    /// Returns whether any was evicted.
    fn evict_delivered(
        &mut self,
        messages: &mut Messages,
        quota: &mut Quota,
        connection_of: impl Fn(ChannelId) -> ConnectionId,
    ) -> bool {
        let mut has_evicted = false;
        for _ in 0..DELIVERED_STEP {
            let Some(index) = self.deliveries.first_evictable() else { break };
            let delivery = &self.deliveries[index];
            let (Some(queue), Some(message)) = (delivery.queue, delivery.message) else {
                panic!("an evictable delivery has its message in memory, and a queue");
            };
            // A requeued message of a queue with consumers stays in memory, because it will soon be
            // delivered. The exception: some queue is blocked because there is no memory to read its first
            // message back.
            let is_wanted = delivery.is_requeued()
                && !self.paging.is_short_of_memory()
                && !self.records[self.records.queue_of_level(queue)].queue_consumers.is_empty();
            if is_wanted || messages.is_shared(message) {
                // Evicting this message would not free memory (another reference shares it), or not for long.
                // The delivery moves to the end of the list.
                self.deliveries.forbid_eviction(index);
                self.deliveries.allow_eviction(index);
                continue;
            }
            if !messages.flags(message).has(MessageFlags::STORED) {
                break;
            }
            let (channel, bytes) = (delivery.channel, messages.footprint_bytes(message).into());
            if !delivery.is_requeued() {
                quota.give_delivered_memory_back(connection_of(channel), bytes);
            }
            self.evict_delivery(messages, index, queue, message);
            has_evicted = true;
        }
        has_evicted
    }

    /// Evicts the message of a delivery: afterwards only the log has this message.
    fn evict_delivery(&mut self, messages: &mut Messages, index: usize, queue: QueueId, message: MessageId) {
        self.deliveries.forbid_eviction(index);
        let delivery = &mut self.deliveries[index];
        delivery.message = None;
        let is_requeued = delivery.is_requeued();
        let record = &mut self.records[queue];
        if is_requeued {
            record.backlog.evict_requeued(Size::of(messages, message));
        } else {
            record.unsettled.absent += 1;
            record.unsettled.bytes -= block_bytes(messages, message);
        }
        self.paging.note_evicted(messages.stream_len(message) as u64);
        messages.release(message);
        self.releases += 1;
    }

    /// Evicts up to `left` messages of one queue, and subtracts their number from `left`. Returns `false` if
    /// no further message of the queue can be evicted now.
    fn evict_from_queue(&mut self, cx: &mut Context<'_>, queue: QueueId, left: &mut u32) -> bool {
        // Stops as soon as memory is not short. Where a consumer keeps up, messages evicted needlessly would
        // be read back at once.
        while *left > 0 && self.is_short(cx.messages) {
            let backlog = &self.records[queue].backlog;
            // A message whose offset continues the last run of the middle needs no new entry, and frees its
            // old one.
            if self.pool.chunks_free() < CHUNKS_LEFT && !backlog.extends_middle_run(&self.pool) {
                return false;
            }
            if !self.keep_window(queue) && !self.evict_first(cx, queue) {
                return false;
            }
            *left -= 1;
        }
        true
    }

    /// Moves the first message of the fifo to the head, where it stays in memory, if the queue has consumers
    /// and fewer than [`WINDOW`] messages precede it. Returns `false` if the message was not moved.
    fn keep_window(&mut self, queue: QueueId) -> bool {
        let record = &mut self.records[queue];
        let window = if record.queue_consumers.is_empty() { 0 } else { WINDOW };
        record.backlog.keep_in_window(&mut self.pool, window)
    }

    /// Evicts the first message of the fifo, or moves a transient one to the middle, where it stays in
    /// memory. Returns `false` if the fifo is empty or its first message is not durable yet.
    fn evict_first(&mut self, cx: &mut Context<'_>, queue: QueueId) -> bool {
        let record = &mut self.records[queue];
        let Some(content) = record.backlog.first_in_fifo(&self.pool) else { return false };
        let EntryContent::InMemoryAndLog(message, offset) = content else {
            record.backlog.keep_in_middle(&mut self.pool, content);
            return true;
        };
        if !is_evictable(cx.messages, record, message) {
            return false;
        }
        record.backlog.evict(&mut self.pool, offset, Size::of(cx.messages, message));
        self.paging.note_evicted(cx.messages.stream_len(message) as u64);
        cx.messages.release(message);
        self.releases += 1;
        true
    }

    /// Drops, at start, the transient messages that an older version of the broker had written.
    pub fn drop_transient(&mut self, pending_writes: &mut PendingWrites, incarnation: u64) {
        pending_writes.append_queue_deleted(incarnation);
    }
}

/// Returns whether the message is durable in the log and the queue can count one more evicted message.
fn is_evictable(messages: &Messages, queue: &Queue, message: MessageId) -> bool {
    let flags = messages.flags(message);
    flags.has(MessageFlags::STORED) && !flags.has(MessageFlags::WITHHELD) && queue.backlog.can_evict()
}
