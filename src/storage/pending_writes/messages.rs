//! Messages that wait for their commit, that are in a commit which is not durable yet, or that are withheld until one is.
//!
//! Messages are numbered since the start. While a message waits for its commit, it has a mark in memory, from which its
//! number follows.

use core::ops::Range;
use std::collections::VecDeque;

use leveret_core::batch::Batch;
use leveret_core::mem::{MessageFlags, MessageId, Messages};

use crate::record::{CHUNK_BODY_BYTES, Target};

/// The message to be written next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Front {
    /// The message. It stays in memory until [`super::PendingWrites::stored`].
    pub message: MessageId,
    /// The number of the message, counted since the start. Unlike its id it is never used again.
    pub number: u64,
}

/// A position among the pending messages.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Cursor {
    number: u64,
    /// Number of targets before this position, counted since the start.
    target: u64,
}

/// A message that waits for its commit.
#[derive(Clone, Copy, Debug)]
struct PendingMessage {
    message: MessageId,
    /// Number of its targets in [`PendingMessages::targets`].
    targets: u32,
    /// Number of targets that are not settled. At 0 the buffer has released the message and does not write
    /// it.
    live: u32,
    /// Upper bound of the bytes of its record.
    bytes: u32,
    batch: Batch,
}

/// All messages that wait for their commit, and those in a commit that is not durable yet.
#[derive(Debug)]
pub(super) struct PendingMessages {
    waiting: VecDeque<PendingMessage>,
    /// Bytes of the records of all waiting messages.
    pub(super) bytes: u64,
    /// Number of waiting messages that still have unsettled targets.
    pub(super) live: usize,
    /// Number of the first waiting message: the number of messages removed since the start.
    pub(super) first_number: u64,
    /// The targets of all waiting messages, in their order.
    targets: VecDeque<Target>,
    /// Number of targets removed since the start.
    targets_removed: u64,
    /// Deleted queues, each with the number of the first message that was appended after the deletion.
    deleted_queues: VecDeque<(u64, u64)>,
    /// Messages in a commit that is not durable yet.
    pub(super) in_commit: VecDeque<MessageId>,
    /// Messages that must not be delivered until the batch is durable; see `end_group`.
    withheld: VecDeque<(Batch, MessageId)>,
}

impl PendingMessages {
    /// Bytes of memory for each message, with one target.
    pub(super) const EACH_BYTES: usize = size_of::<PendingMessage>()
        + size_of::<Target>()
        + size_of::<MessageId>()
        + size_of::<(Batch, MessageId)>();

    pub(super) fn new(capacity: usize) -> Self {
        Self {
            waiting: VecDeque::with_capacity(capacity),
            bytes: 0,
            live: 0,
            first_number: 0,
            targets: VecDeque::with_capacity(capacity),
            targets_removed: 0,
            deleted_queues: VecDeque::new(),
            in_commit: VecDeque::with_capacity(capacity),
            withheld: VecDeque::with_capacity(capacity),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Returns the number of the message that is appended next.
    pub(super) fn end_number(&self) -> u64 {
        self.first_number + self.waiting.len() as u64
    }

    /// Returns the batch of the first waiting message.
    pub(super) fn first_batch(&self) -> Option<Batch> {
        self.waiting.front().map(|pending| pending.batch)
    }

    /// Adds the targets of the message that [`Self::push`] adds next, and returns their number.
    #[inline]
    pub(super) fn push_targets(&mut self, targets: impl Iterator<Item = Target>) -> u32 {
        let before = self.targets.len();
        self.targets.extend(targets);
        (self.targets.len() - before) as u32
    }

    /// Adds a message whose record has at most `bytes` bytes, and whose targets were added before.
    #[inline]
    pub(super) fn push(
        &mut self,
        messages: &mut Messages,
        message: MessageId,
        targets: u32,
        bytes: u64,
        batch: Batch,
    ) {
        self.bytes += bytes;
        messages.retain(message);
        messages.set_mark(message, mark_of(self.end_number()));
        let bytes = bytes.min(u64::from(u32::MAX)) as u32;
        self.waiting.push_back(PendingMessage { message, targets, live: targets, bytes, batch });
        self.live += 1;
    }

    /// Returns whether the message waits and has unsettled targets.
    #[inline]
    pub(super) fn is_waiting(&self, messages: &Messages, message: MessageId) -> bool {
        self.position_of(messages, message).is_some()
    }

    /// Returns the index in `waiting` of a message that has unsettled targets.
    #[inline]
    fn position_of(&self, messages: &Messages, message: MessageId) -> Option<usize> {
        let mark = messages.mark(message);
        if mark == 0 {
            return None;
        }
        let at = marks_between(mark_of(self.first_number), mark) as usize;
        // Marks repeat after four billion messages, so the message at this position may be another one.
        let found = self.waiting.get(at).filter(|pending| pending.message == message && pending.live > 0);
        found.map(|_| at)
    }

    /// Removes one target of a message. Returns `true` if no target is left, so that the message will not be written.
    pub(super) fn drop_target(&mut self, messages: &mut Messages, message: MessageId) -> bool {
        let Some(at) = self.position_of(messages, message) else { return false };
        let pending = &mut self.waiting[at];
        pending.live -= 1;
        if pending.live > 0 {
            return false;
        }
        let pending = *pending;
        self.subtract(messages, pending);
        messages.release(message);
        true
    }

    /// Subtracts a message from the counts, and clears its mark.
    fn subtract(&mut self, messages: &mut Messages, pending: PendingMessage) {
        self.bytes -= u64::from(pending.bytes);
        self.live -= 1;
        messages.set_mark(pending.message, 0);
    }

    /// Notes that a queue is deleted, so that targets of waiting messages in it are not written.
    pub(super) fn note_queue_deleted(&mut self, queue: u64) {
        if !self.waiting.is_empty() {
            self.deleted_queues.push_back((queue, self.end_number()));
        }
    }

    /// Returns the next message to write, and puts its targets into `targets`.
    pub(super) fn front(&mut self, messages: &mut Messages, targets: &mut Vec<Target>) -> Option<Front> {
        loop {
            self.drop_settled();
            let pending = *self.waiting.front()?;
            let number = self.first_number;
            self.targets_of(number, 0..pending.targets as usize, targets);
            if targets.is_empty() {
                self.subtract(messages, pending);
                messages.release(pending.message);
                self.pop();
                continue;
            }
            return Some(Front { message: pending.message, number });
        }
    }

    /// Puts the targets of message `number` whose queues were not deleted into `targets`. `range` is the place of all
    /// its targets among those of all waiting messages.
    fn targets_of(&self, number: u64, range: Range<usize>, targets: &mut Vec<Target>) {
        targets.clear();
        targets.extend(self.targets.range(range).filter(|target| {
            !self.deleted_queues.iter().any(|(queue, before)| *queue == target.queue && number < *before)
        }));
    }

    /// Returns the first message at or after the cursor and before number `end` that must be written, and puts its
    /// targets into `targets`. Moves the cursor to that message.
    pub(super) fn peek(&self, cursor: &mut Cursor, end: u64, targets: &mut Vec<Target>) -> Option<Front> {
        if cursor.number < self.first_number {
            *cursor = Cursor { number: self.first_number, target: self.targets_removed };
        }
        while cursor.number < end {
            let pending = self.waiting.get((cursor.number - self.first_number) as usize)?;
            if pending.live > 0 {
                let from = (cursor.target - self.targets_removed) as usize;
                self.targets_of(cursor.number, from..from + pending.targets as usize, targets);
                if !targets.is_empty() {
                    return Some(Front { message: pending.message, number: cursor.number });
                }
            }
            self.step(cursor);
        }
        None
    }

    /// Moves the cursor to the next message.
    pub(super) fn step(&self, cursor: &mut Cursor) {
        let at = cursor.number.checked_sub(self.first_number).and_then(|at| self.waiting.get(at as usize));
        cursor.number += 1;
        cursor.target += at.map_or(0, |pending| u64::from(pending.targets));
    }

    /// Returns an upper bound of the bytes of the records of messages from `first` on, without bodies in chunks.
    pub(super) fn record_bytes(&self, messages: &Messages, first: u64) -> u64 {
        let members = self.waiting.range((first - self.first_number) as usize..);
        let bytes = members.map(|pending| {
            let body = if pending.live > 0 { messages.body_len(pending.message) } else { 0 };
            let chunked = if body as usize > CHUNK_BODY_BYTES { body } else { 0 };
            u64::from(pending.bytes).saturating_sub(chunked.into())
        });
        bytes.sum()
    }

    /// Removes messages at the front whose targets are all settled.
    #[inline]
    pub(super) fn drop_settled(&mut self) {
        while self.waiting.front().is_some_and(|pending| pending.live == 0) {
            self.pop();
        }
    }

    /// Notes that the message that [`Self::front`] returned is in a commit.
    pub(super) fn move_front_to_commit(&mut self, messages: &mut Messages) {
        if let Some(pending) = self.waiting.front().copied().filter(|pending| pending.live > 0) {
            self.subtract(messages, pending);
            self.in_commit.push_back(pending.message);
            self.pop();
        }
    }

    /// Removes the first waiting message with its targets.
    fn pop(&mut self) {
        if let Some(pending) = self.waiting.pop_front() {
            self.targets.drain(..pending.targets as usize);
            self.targets_removed += u64::from(pending.targets);
            self.first_number += 1;
            let first = self.first_number;
            while self.deleted_queues.front().is_some_and(|(_, before)| *before <= first) {
                self.deleted_queues.pop_front();
            }
        }
    }

    /// Marks all messages in commits as durable.
    pub(super) fn note_durable(&mut self, messages: &mut Messages) {
        while let Some(message) = self.in_commit.pop_front() {
            messages.add_flags(message, MessageFlags::STORED);
            messages.release(message);
        }
    }

    /// Keeps the messages from number `first` on from being delivered until `batch` is durable.
    pub(super) fn withhold_until(&mut self, messages: &mut Messages, first: u64, batch: Batch) {
        for pending in self.waiting.range((first - self.first_number) as usize..) {
            if pending.live > 0 {
                messages.retain(pending.message);
                messages.add_flags(pending.message, MessageFlags::WITHHELD);
                self.withheld.push_back((batch, pending.message));
            }
        }
    }

    /// Allows the delivery of messages whose batch is `durable` or older.
    pub(super) fn release_withheld(&mut self, messages: &mut Messages, durable: Batch) {
        while let Some(&(batch, message)) = self.withheld.front() {
            if batch > durable {
                return;
            }
            self.withheld.pop_front();
            messages.clear_flags(message, MessageFlags::WITHHELD);
            messages.release(message);
        }
    }
}

/// Returns the mark of the message with this number; never 0.
const fn mark_of(number: u64) -> u32 {
    (number % (u32::MAX as u64)) as u32 + 1
}

/// Returns the distance between the numbers of two marks, less than four billion.
const fn marks_between(first: u32, mark: u32) -> u32 {
    // Marks wrap around and omit 0.
    let apart = mark.wrapping_sub(first);
    if mark < first { apart - 1 } else { apart }
}
