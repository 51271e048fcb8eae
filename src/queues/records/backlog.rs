//! The messages waiting in a queue, in order, in memory or only in the log.
//!
//! ```text
//! requeued           │ head │ middle                     │ fifo
//!   records, entries │ read │ only in the log,           │ the newest messages
//!                    │ back │ and transient ones between │
//! ```
//!
//! While memory is not short, a queue has only its `fifo`. When memory is short, messages that the log has
//! are moved from the front of the `fifo` to the `middle` and removed from memory. In the `middle` any number
//! of messages with successive offsets are one entry. Before their delivery they are read back into the
//! `head`. Transient messages stay in memory.
//!
//! # Invariants
//! - The messages of `head`, `middle` and `fifo`, in this order of the parts, are in the order of arrival.
//! - Requeued messages precede all others.
//! - Counts and bytes always match the messages in the parts.

use leveret_core::command::QueueId;
use leveret_core::mem::{Fifo, FifoPool, MESSAGE_SLOT_BYTES, MessageId, Messages, QueueEntry};

use super::record::{Front, Rank, Records};
use crate::deliveries::{Delivered, Deliveries, RequeuedHeap};

/// Maximum number of messages in the middle of one queue. It leaves room in the 32 bits of `queue.declare-ok`
/// for the messages of the other parts.
const ABSENT_MAX: u32 = u32::MAX / 2;
/// Messages are read back when the head has fewer messages than this.
const HEAD_LOW: u32 = 32;

/// Bytes of the pool slot that each message takes.
pub const SLOT_BYTES: u64 = MESSAGE_SLOT_BYTES as u64;

/// Returns the bytes of pool blocks that a message takes beyond its slot.
#[inline]
pub fn block_bytes(messages: &Messages, message: MessageId) -> u64 {
    u64::from(messages.footprint_bytes(message)) - SLOT_BYTES
}

/// The size of a message.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Bytes of pool memory.
    pub footprint: u64,
    /// Bytes of the message body.
    pub body_len: u64,
    is_persistent: bool,
}

impl Size {
    /// Returns the size of a message in memory.
    #[inline]
    pub fn of(messages: &Messages, message: MessageId) -> Self {
        let (footprint, body_len, is_persistent) = messages.size(message);
        Self { footprint: footprint.into(), body_len: body_len.into(), is_persistent }
    }
}

/// The message that leaves a queue next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum First {
    /// A requeued message that is in memory.
    Requeued,
    /// A requeued message that only the log has, with its log offset.
    Absent(u64),
    /// A message that was never delivered, in this part of the queue.
    At(QueuePart, EntryContent),
}

/// A part of a queue with messages that wait for their first delivery.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum QueuePart {
    /// Messages in memory, in front of all others.
    Head,
    /// Messages that only the log has.
    Middle,
    /// The newest messages.
    Fifo,
}

/// A message taken out of its queue.
pub struct Taken {
    /// The message. The caller has its reference.
    pub message: MessageId,
    /// Number of the message in its queue, in the order of first departure, by which requeued messages are
    /// sorted. Not its log offset.
    pub order: u64,
    /// Log offset of the message, if the log has it.
    pub log_offset: Option<u64>,
    /// The next delivery of the message is marked as redelivered.
    pub redelivered: bool,
    /// How often the message was requeued.
    pub requeues: u16,
}

/// All messages that a purge took out of a queue. A job drops them in steps.
#[derive(Debug)]
pub struct Purged {
    fifos: [Fifo; 4],
    requeued: RequeuedHeap,
}

/// One item of a purged queue.
pub enum PurgedItem {
    /// A requeued message, whose delivery record is free now.
    Delivered(Delivered),
    /// The messages of one queue entry.
    Entry(EntryContent),
}

/// The messages of a queue.
#[derive(Debug, Default)]
pub struct Backlog {
    /// Requeued messages that have a delivery record.
    requeued: RequeuedHeap,
    /// Further requeued messages as entries, in the order in which they were requeued. Used when half of all
    /// delivery records belong to requeued messages.
    requeued_entries: Fifo,
    /// Number of requeued messages that only the log has.
    requeued_absent: u32,
    /// Bytes of the bodies of requeued messages that only the log has.
    requeued_absent_bytes: u64,
    /// Rejected messages that cannot be dead-lettered yet. They are not delivered any more and not counted as
    /// ready.
    rejected: RequeuedHeap,
    /// Number of rejected messages that only the log has.
    rejected_absent: u32,
    /// Bytes of pool memory that rejected messages occupy.
    rejected_bytes: u64,
    /// Messages that were read back from the log or kept in memory at the front.
    head: Fifo,
    /// Messages still to be read back from the log, and transient ones between them.
    middle: Fifo,
    /// The newest messages of the queue.
    fifo: Fifo,
    /// Number of messages in the middle, those in memory included.
    middle_messages: u32,
    /// Number of messages in the middle that only the log has.
    middle_absent: u32,
    /// Bytes of the bodies of messages in the middle that only the log has.
    middle_absent_bytes: u64,
    /// Bytes of pool memory that the ready messages occupy.
    bytes: u64,
    /// Bytes of the bodies of the ready messages that are in memory: of transient ones, and of persistent ones.
    body_bytes: [u64; 2],
    /// Number of messages taken from the front for the first time. Its value numbers the messages in the
    /// order of arrival.
    taken: u64,
    /// Number of times that requeued messages were taken again.
    retaken: u64,
    /// Number of messages taken but not delivered: purged, expired, or over the length limit.
    dropped: u64,
}

impl Backlog {
    // ---- counts

    /// Returns the number of messages ready for delivery.
    #[inline]
    pub const fn ready(&self) -> u32 {
        self.resident() + self.middle_absent + self.requeued_absent
    }

    /// Returns the number of ready messages that are in memory.
    #[inline]
    pub const fn resident(&self) -> u32 {
        let deep = self.head.len() + self.middle_messages - self.middle_absent;
        let requeued = self.requeued.len() + self.requeued_entries.len() - self.requeued_absent;
        self.fifo.len() + requeued + deep
    }

    /// Returns the number of entries of the queue.
    #[inline]
    pub const fn entries(&self) -> u64 {
        self.requeued_entries.len() as u64
            + self.head.len() as u64
            + self.middle.len() as u64
            + self.fifo.len() as u64
    }

    /// Returns the number of ready messages that were never taken.
    const fn fresh(&self) -> u32 {
        self.fifo.len() + self.head.len() + self.middle_messages
    }

    /// Returns the number of messages that arrived since the queue exists in this process, including those
    /// recovered from the log at start.
    pub const fn arrived_count(&self) -> u64 {
        self.taken + self.fresh() as u64
    }

    /// Returns the number of messages taken for delivery; a message counts once for each delivery.
    pub const fn taken_count(&self) -> u64 {
        (self.taken + self.retaken).saturating_sub(self.dropped)
    }

    /// Notes that a message was taken and not delivered.
    pub(crate) const fn note_dropped(&mut self) {
        self.dropped += 1;
    }

    /// Returns whether only the log has some messages of this queue.
    pub(crate) const fn has_absent(&self) -> bool {
        self.middle_absent > 0 || self.requeued_absent > 0 || self.rejected_absent > 0
    }

    /// Returns the number of requeued messages that only the log has.
    pub(crate) const fn requeued_absent(&self) -> u32 {
        self.requeued_absent
    }

    /// Returns the bytes of pool memory that the ready and the rejected messages occupy.
    #[inline]
    pub const fn bytes(&self) -> u64 {
        self.bytes + self.rejected_bytes
    }

    /// Returns the bytes of all bodies, in memory or not: what `x-max-length-bytes` limits.
    pub const fn body_bytes(&self) -> u64 {
        self.body_bytes[0] + self.body_bytes[1] + self.middle_absent_bytes + self.requeued_absent_bytes
    }

    /// Returns the bytes of the bodies of transient messages.
    pub(crate) const fn transient_bytes(&self) -> u64 {
        self.body_bytes[0]
    }

    /// Returns whether the next message needs a new chunk.
    #[inline]
    pub const fn needs_chunk(&self) -> bool {
        self.fifo.needs_chunk()
    }

    /// Returns whether the middle can count one more message.
    pub(crate) const fn can_evict(&self) -> bool {
        self.middle_messages < ABSENT_MAX
    }

    #[inline]
    const fn add_size(&mut self, size: Size) {
        self.bytes += size.footprint;
        self.body_bytes[size.is_persistent as usize] += size.body_len;
    }

    #[inline]
    const fn subtract_size(&mut self, size: Size) {
        self.bytes -= size.footprint;
        self.body_bytes[size.is_persistent as usize] -= size.body_len;
    }

    // ---- adding and taking

    /// Adds a new message. The caller has checked the capacity.
    #[inline]
    pub fn push(&mut self, pool: &mut FifoPool, content: EntryContent, size: Size) {
        let pushed = self.fifo.push(pool, content.entry());
        assert!(pushed, "the caller checked that a chunk is free for every target queue");
        self.add_size(size);
    }

    /// Returns the message that leaves the queue next.
    #[inline]
    pub fn first(&self, pool: &FifoPool, deliveries: &Deliveries) -> Option<First> {
        if let Some(index) = self.requeued.first() {
            let delivery = &deliveries[index];
            let absent = delivery.log_offset.filter(|_| delivery.message.is_none());
            return Some(absent.map_or(First::Requeued, First::Absent));
        }
        if let Some(entry) = self.requeued_entries.front(pool) {
            return Some(match EntryContent::of(entry) {
                EntryContent::AbsentRun(offset, _) => First::Absent(offset),
                _ => First::Requeued,
            });
        }
        let at = |part, fifo: &Fifo| fifo.front(pool).map(|entry| First::At(part, EntryContent::of(entry)));
        at(QueuePart::Head, &self.head)
            .or_else(|| at(QueuePart::Middle, &self.middle))
            .or_else(|| at(QueuePart::Fifo, &self.fifo))
    }

    /// Calls `each` with the content of every entry in queue order, until `each` returns `false`. For a
    /// requeued message, `each` also receives whether the message counts as redelivered; for others `None`.
    #[cold]
    pub(crate) fn for_each_entry(
        &self,
        pool: &FifoPool,
        deliveries: &Deliveries,
        each: &mut dyn FnMut(EntryContent, Option<bool>) -> bool,
    ) {
        for index in self.requeued.in_order(deliveries) {
            let delivery = &deliveries[index];
            let content = match (delivery.message, delivery.log_offset) {
                (Some(message), None) => EntryContent::InMemory(message),
                (Some(message), Some(offset)) => EntryContent::InMemoryAndLog(message, offset),
                (None, Some(offset)) => EntryContent::AbsentRun(offset, 1),
                (None, None) => panic!("every message is in memory or in the log"),
            };
            if !each(content, Some(delivery.redelivered)) {
                return;
            }
        }
        let was_requeued =
            self.requeued_entries.for_each(pool, &mut |entry| each(EntryContent::of(entry), Some(true)));
        let parts = [&self.head, &self.middle, &self.fifo];
        let mut rest = parts.into_iter();
        if was_requeued {
            rest.all(|part| part.for_each(pool, &mut |entry| each(EntryContent::of(entry), None)));
        }
    }

    /// Takes the first message of a part, which is in memory. Returns the number for [`Taken::order`].
    #[inline]
    pub(crate) fn take_from_part(&mut self, pool: &mut FifoPool, part: QueuePart, size: Size) -> u64 {
        self.pop(pool, part);
        self.subtract_size(size);
        let number = self.taken;
        self.taken += 1;
        number
    }

    /// Takes the first requeued message, which is in memory.
    pub(crate) fn take_requeued(
        &mut self,
        pool: &mut FifoPool,
        deliveries: &mut Deliveries,
        messages: &Messages,
    ) -> Taken {
        let taken = if let Some(index) = self.requeued.pop(deliveries) {
            let old = deliveries.remove(index);
            let message = old.message.expect("the caller checked that the first message is in memory");
            let (order, log_offset, redelivered) = (old.order, old.log_offset, old.redelivered);
            Taken { message, order, log_offset, redelivered, requeues: old.requeues }
        } else {
            let (order, entry) =
                self.requeued_entries.pop(pool).expect("the caller checked that there is a requeued message");
            let log_offset = match EntryContent::of(entry) {
                EntryContent::InMemoryAndLog(_, offset) => Some(offset),
                EntryContent::InMemory(_) => None,
                EntryContent::AbsentRun(..) => {
                    panic!("the caller checked that the first message is in memory")
                }
            };
            // An entry has no requeue count; the queue's requeue counts may have it.
            Taken { message: entry.message, order, log_offset, redelivered: true, requeues: 1 }
        };
        self.retaken += 1;
        self.subtract_size(Size::of(messages, taken.message));
        taken
    }

    #[inline]
    fn pop(&mut self, pool: &mut FifoPool, part: QueuePart) {
        let fifo = match part {
            QueuePart::Head => &mut self.head,
            QueuePart::Middle => {
                self.middle_messages -= 1;
                &mut self.middle
            }
            QueuePart::Fifo => &mut self.fifo,
        };
        let popped = fifo.pop(pool);
        assert!(popped.is_some(), "the caller checked that this part has a message");
    }

    /// Takes all ready messages out of the queue. Returns their number, and the messages, which the caller
    /// must drop.
    pub fn take_all(&mut self) -> (u32, Purged) {
        let count = self.ready();
        // Each of these messages has a number, as if it had been taken singly.
        let fresh = u64::from(self.fresh());
        (self.taken, self.dropped) = (self.taken + fresh, self.dropped + fresh);
        (self.bytes, self.body_bytes) = (0, [0; 2]);
        (self.requeued_absent, self.requeued_absent_bytes) = (0, 0);
        (self.middle_messages, self.middle_absent, self.middle_absent_bytes) = (0, 0, 0);
        let fifos = [&mut self.requeued_entries, &mut self.head, &mut self.middle, &mut self.fifo];
        (count, Purged { fifos: fifos.map(Fifo::detach), requeued: core::mem::take(&mut self.requeued) })
    }

    // ---- requeued messages

    /// Requeues a delivery. It keeps its delivery record and its old position. When half of all delivery
    /// records belong to requeued messages, it becomes an entry behind them instead.
    pub fn put_back(
        &mut self,
        pool: &mut FifoPool,
        deliveries: &mut Deliveries,
        messages: &Messages,
        index: usize,
    ) {
        let delivery = &deliveries[index];
        let content = match (delivery.message, delivery.log_offset) {
            (Some(message), None) => EntryContent::InMemory(message),
            (Some(message), Some(offset)) => EntryContent::InMemoryAndLog(message, offset),
            (None, Some(offset)) => EntryContent::AbsentRun(offset, 1),
            (None, None) => panic!("every message is in memory or in the log"),
        };
        match delivery.message {
            Some(message) => self.add_size(Size::of(messages, message)),
            None => {
                self.requeued_absent += 1;
                self.requeued_absent_bytes += u64::from(delivery.body_len);
            }
        }
        let is_entry = deliveries.are_half_requeued() && self.requeued_entries.push(pool, content.entry());
        if is_entry {
            deliveries.remove(index);
        } else {
            self.requeued.insert(deliveries, index);
            // A delivery that was not sent could not be evicted. The requeued message can, because messages
            // before it may need the memory.
            deliveries.allow_eviction(index);
        }
    }

    /// Notes that a requeued message of this size was evicted: now only the log has it.
    pub(crate) fn evict_requeued(&mut self, size: Size) {
        self.subtract_size(size);
        self.requeued_absent += 1;
        self.requeued_absent_bytes += size.body_len;
    }

    /// Completes the read of the first requeued message: it is in memory again.
    pub(crate) fn requeued_paged_in(
        &mut self,
        pool: &mut FifoPool,
        deliveries: &mut Deliveries,
        message: MessageId,
        offset: u64,
        size: Size,
    ) {
        self.uncount_absent();
        self.add_size(size);
        match self.requeued.first() {
            Some(index) => deliveries[index].message = Some(message),
            None => {
                self.requeued_entries.set_front(pool, EntryContent::InMemoryAndLog(message, offset).entry())
            }
        }
    }

    /// Removes the first requeued message, which only the log has, without reading it.
    pub(crate) fn remove_first_absent(&mut self, pool: &mut FifoPool, deliveries: &mut Deliveries) {
        self.uncount_absent();
        if let Some(index) = self.requeued.pop(deliveries) {
            deliveries.remove(index);
        } else {
            let popped = self.requeued_entries.pop(pool);
            assert!(popped.is_some(), "the caller checked that there is a requeued message");
        }
    }

    /// Returns the first requeued message, which is in memory, and its log offset if the log has it.
    pub(crate) fn first_requeued(
        &self,
        pool: &FifoPool,
        deliveries: &Deliveries,
    ) -> (MessageId, Option<u64>) {
        if let Some(index) = self.requeued.first() {
            let delivery = &deliveries[index];
            return (
                delivery.message.expect("the caller checked that the first message is in memory"),
                delivery.log_offset,
            );
        }
        let entry =
            self.requeued_entries.front(pool).expect("the caller checked that there is a requeued message");
        match EntryContent::of(entry) {
            EntryContent::InMemoryAndLog(message, offset) => (message, Some(offset)),
            EntryContent::InMemory(message) => (message, None),
            EntryContent::AbsentRun(..) => panic!("the caller checked that the first message is in memory"),
        }
    }

    // ---- rejected messages

    /// Adds a delivery to the rejected messages, which are not delivered any more.
    pub fn reject(&mut self, deliveries: &mut Deliveries, messages: &Messages, index: usize) {
        match deliveries[index].message {
            Some(message) => self.rejected_bytes += Size::of(messages, message).footprint,
            None => self.rejected_absent += 1,
        }
        self.rejected.insert(deliveries, index);
    }

    /// Returns the record of the first rejected message.
    pub fn first_rejected(&self) -> Option<usize> {
        self.rejected.first()
    }

    /// Takes the first rejected message and frees its record.
    pub(crate) fn take_rejected(
        &mut self,
        deliveries: &mut Deliveries,
        messages: &Messages,
    ) -> Option<Delivered> {
        let index = self.rejected.pop(deliveries)?;
        match deliveries[index].message {
            Some(message) => self.rejected_bytes -= Size::of(messages, message).footprint,
            None => self.rejected_absent -= 1,
        }
        Some(deliveries.remove(index))
    }

    /// Drops the first rejected message, which cannot be read back, and frees its record.
    pub(crate) fn lose_rejected(&mut self, deliveries: &mut Deliveries) {
        let index =
            self.rejected.pop(deliveries).expect("the message that was read is the first rejected one");
        self.rejected_absent -= 1;
        deliveries.remove(index);
    }

    /// Completes the read of the first rejected message: it is in memory again.
    pub(crate) fn rejected_paged_in(&mut self, deliveries: &mut Deliveries, message: MessageId, size: Size) {
        let index = self.rejected.first().expect("the message that was read is the first rejected one");
        deliveries[index].message = Some(message);
        self.rejected_bytes += size.footprint;
        self.rejected_absent -= 1;
    }

    // ---- removal at any position

    /// Removes ready messages at these positions. A position is the index of an entry as
    /// [`Self::for_each_entry`] visits the entries, and a message of that entry; a run of absent messages may
    /// have several of them. The positions are ascending. Returns the removed messages, which the caller must
    /// settle.
    ///
    /// Removing a message from the inside of a run makes two runs of it. The caller has checked that chunks are
    /// free for that.
    #[cold]
    pub(crate) fn remove_at(
        &mut self,
        pool: &mut FifoPool,
        deliveries: &mut Deliveries,
        messages: &Messages,
        positions: &[(u32, EntryContent)],
    ) -> Vec<PurgedItem> {
        let mut removed = Vec::with_capacity(positions.len());
        let heap_count = self.requeued.len();
        let (in_heap, mut in_entries) =
            positions.split_at(positions.partition_point(|(at, _)| *at < heap_count));
        if !in_heap.is_empty() {
            let order = self.requeued.in_order(deliveries);
            let indices: Vec<usize> = in_heap.iter().map(|(at, _)| order[*at as usize]).collect();
            self.requeued.remove_all(deliveries, &indices);
            for index in indices {
                match deliveries[index].message {
                    Some(message) => self.subtract_size(Size::of(messages, message)),
                    None => self.uncount_absent(),
                }
                (self.retaken, self.dropped) = (self.retaken + 1, self.dropped + 1);
                removed.push(PurgedItem::Delivered(deliveries.remove(index)));
            }
        }
        let mut first = heap_count;
        for part in [None, Some(QueuePart::Head), Some(QueuePart::Middle), Some(QueuePart::Fifo)] {
            let fifo = match part {
                None => &mut self.requeued_entries,
                Some(QueuePart::Head) => &mut self.head,
                Some(QueuePart::Middle) => &mut self.middle,
                Some(QueuePart::Fifo) => &mut self.fifo,
            };
            let len = fifo.len();
            let (here, behind) = in_entries.split_at(in_entries.partition_point(|(at, _)| *at - first < len));
            remove_entries(fifo, pool, first, here);
            for (_, content) in here {
                self.uncount_removed(messages, part, *content);
                removed.push(PurgedItem::Entry(*content));
            }
            (first, in_entries) = (first + len, behind);
        }
        removed
    }

    /// Subtracts a removed message from the counts. `part` is `None` for a requeued message.
    fn uncount_removed(&mut self, messages: &Messages, part: Option<QueuePart>, content: EntryContent) {
        match content {
            EntryContent::InMemory(message) | EntryContent::InMemoryAndLog(message, _) => {
                self.subtract_size(Size::of(messages, message));
            }
            EntryContent::AbsentRun(..) if part.is_none() => self.uncount_absent(),
            EntryContent::AbsentRun(_, count) => {
                self.middle_absent_bytes -= self.average_absent_bytes(count);
                self.middle_absent -= count;
            }
        }
        if part == Some(QueuePart::Middle) {
            self.middle_messages -= 1;
        }
        // The numbers of fresh messages continue as if the message had been taken from the front.
        let taken = if part.is_some() { &mut self.taken } else { &mut self.retaken };
        *taken += 1;
        self.dropped += 1;
    }

    const fn uncount_absent(&mut self) {
        // The size of a single body is unknown, so the average is subtracted.
        let share = self.requeued_absent_bytes / self.requeued_absent as u64;
        self.requeued_absent_bytes -= share;
        self.requeued_absent -= 1;
    }

    // ---- eviction

    /// Returns the first message of the fifo.
    pub(crate) fn first_in_fifo(&self, pool: &FifoPool) -> Option<EntryContent> {
        self.fifo.front(pool).map(EntryContent::of)
    }

    /// Moves the first message of the fifo to the head, if the middle is empty and the head has fewer than
    /// `window` messages. Returns whether the message was moved.
    pub(crate) fn keep_in_window(&mut self, pool: &mut FifoPool, window: u32) -> bool {
        if !self.middle.is_empty() || self.head.len() >= window {
            return false;
        }
        let Some((_, entry)) = self.fifo.pop(pool) else { return false };
        let kept = self.head.push(pool, entry);
        assert!(kept, "the caller checked that chunks are free");
        true
    }

    /// Moves the first message of the fifo to the middle, where it stays in memory.
    pub(crate) fn keep_in_middle(&mut self, pool: &mut FifoPool, content: EntryContent) {
        self.pop(pool, QueuePart::Fifo);
        self.middle_messages += 1;
        let kept = self.middle.push(pool, content.entry());
        assert!(kept, "the caller checked that chunks are free");
    }

    /// Moves the first message of the fifo to the middle as an absent one; the caller releases its memory.
    pub fn evict(&mut self, pool: &mut FifoPool, offset: u64, size: Size) {
        self.pop(pool, QueuePart::Fifo);
        self.subtract_size(size);
        self.middle_absent_bytes += size.body_len;
        let pushed = self.push_absent_run(pool, offset, 1);
        assert!(pushed, "the caller checked that chunks are free and the middle can count the message");
    }

    /// Appends `count` absent messages, from log offset `start` on, to the middle. Returns `false` when there
    /// is no free chunk or the middle cannot count so many messages.
    pub(crate) fn push_absent_run(&mut self, pool: &mut FifoPool, start: u64, count: u32) -> bool {
        if count > ABSENT_MAX.saturating_sub(self.middle_messages) {
            return false;
        }
        let pushed = match self.extended_run(pool, start, count) {
            Some(content) => {
                self.middle.set_back(pool, content.entry());
                true
            }
            None => self.middle.push(pool, EntryContent::AbsentRun(start, count).entry()),
        };
        if pushed {
            self.middle_messages += count;
            self.middle_absent += count;
        }
        pushed
    }

    /// Returns the last run of the middle, extended by `count` messages, if the offset `start` directly
    /// follows the run.
    fn extended_run(&self, pool: &FifoPool, start: u64, count: u32) -> Option<EntryContent> {
        match EntryContent::of(self.middle.back(pool)?) {
            EntryContent::AbsentRun(first, so_far) if first + u64::from(so_far) == start => {
                Some(EntryContent::AbsentRun(first, so_far.checked_add(count)?))
            }
            _ => None,
        }
    }

    /// Returns whether the first message of the fifo can be evicted without a new entry, because it extends
    /// the last run of the middle.
    pub(crate) fn extends_middle_run(&self, pool: &FifoPool) -> bool {
        match self.first_in_fifo(pool) {
            Some(EntryContent::InMemoryAndLog(_, offset)) => self.extended_run(pool, offset, 1).is_some(),
            _ => false,
        }
    }

    /// Sets, at start, the bytes of the bodies of the messages that will be put into the middle.
    pub(crate) const fn set_middle_absent_bytes(&mut self, body_bytes: u64) {
        self.middle_absent_bytes = body_bytes;
    }

    // ---- reading back

    /// Returns first offset and length of the run at the front of the middle; `None` if the first message of
    /// the middle is in memory or the middle is empty.
    pub(crate) fn first_absent_run(&self, pool: &FifoPool) -> Option<(u64, u32)> {
        match EntryContent::of(self.middle.front(pool)?) {
            EntryContent::AbsentRun(start, count) => Some((start, count)),
            EntryContent::InMemory(_) | EntryContent::InMemoryAndLog(..) => None,
        }
    }

    /// Returns whether the head has no message.
    pub(crate) const fn is_head_empty(&self) -> bool {
        self.head.is_empty()
    }

    /// Returns whether more messages should be read back: the head is empty, or it has few messages and there
    /// is memory to spare.
    pub(crate) fn is_head_low(&self, has_memory_to_spare: impl FnOnce() -> bool) -> bool {
        self.head.len() < HEAD_LOW
            && !self.middle.is_empty()
            && (self.head.is_empty() || has_memory_to_spare())
    }

    /// Moves the first message of the middle, which is in memory again, to the end of the head.
    pub fn paged_in(&mut self, pool: &mut FifoPool, content: EntryContent, size: Size) {
        self.remove_from_absent_run(pool, 1);
        self.add_size(size);
        let pushed = self.head.push_read_back(pool, content.entry());
        assert!(pushed, "the caller checked that a chunk is free");
    }

    /// Removes the first `count` messages of the run of absent messages at the front of the middle.
    pub(crate) fn remove_from_absent_run(&mut self, pool: &mut FifoPool, count: u32) {
        let Some((start, all)) = self.first_absent_run(pool) else {
            panic!("the caller checked that a run is at the front of the middle")
        };
        self.middle_absent_bytes -= self.average_absent_bytes(count);
        self.middle_messages -= count;
        self.middle_absent -= count;
        if count == all {
            self.middle.pop(pool);
        } else {
            let rest = EntryContent::AbsentRun(start + u64::from(count), all - count);
            self.middle.set_front(pool, rest.entry());
        }
    }

    /// Returns the estimated bytes of the bodies of `count` absent messages of the middle: their average,
    /// because single sizes are unknown.
    fn average_absent_bytes(&self, count: u32) -> u64 {
        if count >= self.middle_absent {
            return self.middle_absent_bytes;
        }
        (u128::from(self.middle_absent_bytes) * u128::from(count) / u128::from(self.middle_absent.max(1)))
            as u64
    }
}

/// Removes messages from the entries of a part. `first` is the position of the first entry of the part.
fn remove_entries(fifo: &mut Fifo, pool: &mut FifoPool, first: u32, removed: &[(u32, EntryContent)]) {
    let Some((last, _)) = removed.last() else { return };
    let mut kept = Vec::with_capacity((last - first + 1) as usize);
    let mut rest = removed;
    for at in first..=*last {
        let Some((_, entry)) = fifo.pop(pool) else { break };
        let (here, behind) = rest.split_at(rest.partition_point(|(position, _)| *position == at));
        rest = behind;
        match EntryContent::of(entry) {
            _ if here.is_empty() => kept.push(entry),
            EntryContent::InMemory(_) | EntryContent::InMemoryAndLog(..) => {}
            EntryContent::AbsentRun(start, count) => {
                let end = start + u64::from(count);
                let mut from = start;
                for offset in here.iter().filter_map(|(_, content)| content.absent_offset()).chain([end]) {
                    if offset > from {
                        kept.push(EntryContent::AbsentRun(from, (offset - from) as u32).entry());
                    }
                    from = offset + 1;
                }
            }
        }
    }
    for entry in kept.into_iter().rev() {
        let pushed = fifo.push_front(pool, entry);
        assert!(pushed, "the caller checked that chunks are free");
    }
}

impl Purged {
    /// Takes the next item of a purged queue, to be dropped.
    pub fn pop(&mut self, pool: &mut FifoPool, deliveries: &mut Deliveries) -> Option<PurgedItem> {
        if let Some(index) = self.requeued.pop(deliveries) {
            return Some(PurgedItem::Delivered(deliveries.remove(index)));
        }
        let entry = self.fifos.iter_mut().find_map(|fifo| fifo.pop(pool));
        entry.map(|(_, entry)| PurgedItem::Entry(EntryContent::of(entry)))
    }

    /// Returns whether all items of a purged queue are dropped.
    pub fn is_empty(&self) -> bool {
        self.requeued.is_empty() && self.fifos.iter().all(Fifo::is_empty)
    }
}

/// Flags of an entry: the lower 3 bits are the kind of its content, the upper 61 bits the log offset. No queue
/// reaches larger offsets.
const IN_MEMORY_AND_LOG: u64 = 1;
const ABSENT_RUN: u64 = 2;
const KIND: u64 = 7;
const KIND_BITS: u32 = 3;

/// The content of one entry of a queue: one message, or a run of absent messages. The flags of the entry
/// store kind and offset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EntryContent {
    /// A message that only memory has.
    InMemory(MessageId),
    /// A message in memory that the log has too, or will have.
    InMemoryAndLog(MessageId, u64),
    /// A run of messages that only the log has: first offset and count.
    AbsentRun(u64, u32),
}

impl EntryContent {
    /// Returns the content of an entry.
    pub const fn of(entry: QueueEntry) -> Self {
        let QueueEntry { message, flags } = entry;
        if flags & KIND == 0 {
            return Self::InMemory(message);
        }
        let offset = flags >> KIND_BITS;
        match flags & KIND {
            IN_MEMORY_AND_LOG => Self::InMemoryAndLog(message, offset),
            ABSENT_RUN => Self::AbsentRun(offset, message.index() as u32 + 1),
            _ => panic!("every entry is created by EntryContent::entry, with one of these kinds"),
        }
    }

    /// Returns the offset of the first message of a run of absent messages.
    const fn absent_offset(self) -> Option<u64> {
        match self {
            Self::AbsentRun(start, _) => Some(start),
            Self::InMemory(_) | Self::InMemoryAndLog(..) => None,
        }
    }

    /// Returns the entry with this content.
    pub fn entry(self) -> QueueEntry {
        let flags = |offset: u64, kind: u64| offset << KIND_BITS | kind;
        match self {
            Self::InMemory(message) => QueueEntry { message, flags: 0 },
            Self::InMemoryAndLog(message, offset) => {
                QueueEntry { message, flags: flags(offset, IN_MEMORY_AND_LOG) }
            }
            Self::AbsentRun(start, count) => QueueEntry {
                message: MessageId::from_index(count as usize - 1),
                flags: flags(start, ABSENT_RUN),
            },
        }
    }
}

impl Records {
    // ---- the ready list
    //
    // A queue is on this list exactly when it has a message that can be delivered now, and a consumer that
    // can take the message. Of a queue with priorities, the queue itself is on the list, never one of its
    // levels.

    /// Removes and returns the next queue that can deliver from the ready list.
    #[inline]
    pub fn pop_ready(&mut self) -> Option<QueueId> {
        let queue = self.ready.pop_front(&mut self.slab, |queue| &mut queue.listed.ready_links)?;
        self.slab[queue].listed.is_ready = false;
        Some(QueueId::from_index(queue))
    }

    /// Returns whether any queue can deliver now.
    #[inline]
    pub const fn is_any_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Puts a queue on the ready list if it can deliver now.
    pub fn wake(&mut self, queue: QueueId) {
        let record = &mut self.slab[queue.index()];
        if record.listed.is_ready {
            return;
        }
        if record.wants_delivery() {
            record.listed.is_ready = true;
            self.ready.push_back(&mut self.slab, queue.index(), |queue| &mut queue.listed.ready_links);
        } else if record.rank != Rank::Plain {
            self.wake_queue_of_level(queue);
        }
    }

    /// Puts the queue of a level on the ready list if it can deliver now. Called when a message of a level
    /// arrived or became deliverable.
    #[cold]
    pub(crate) fn wake_queue_of_level(&mut self, queue: QueueId) {
        let queue = self.queue_of_level(queue);
        if !self.slab[queue.index()].listed.is_ready && self.level_to_deliver(queue).is_some() {
            self.slab[queue.index()].listed.is_ready = true;
            self.ready.push_back(&mut self.slab, queue.index(), |queue| &mut queue.listed.ready_links);
        }
    }

    /// Notes that a job begins to requeue messages of a queue. Nothing is delivered from the queue until the
    /// job is done.
    pub fn begin_blocking_job(&mut self, queue: QueueId) {
        self.slab[queue.index()].blocking_jobs += 1;
    }

    /// Returns the level of the queue that can deliver now; the queue itself if it has no priorities; `None`
    /// if there is nothing to deliver.
    #[inline(always)]
    pub fn wanted_level(&self, queue: QueueId) -> Option<QueueId> {
        let record = &self.slab[queue.index()];
        match record.wants_delivery() {
            true => Some(queue),
            false if record.rank == Rank::Plain => None,
            false => self.level_to_deliver(queue),
        }
    }

    /// Returns the level of a queue with priorities whose first message can be delivered now, if any.
    #[cold]
    pub(crate) fn level_to_deliver(&self, queue: QueueId) -> Option<QueueId> {
        let queue_record = &self.slab[queue.index()];
        let level = self.first_level(queue);
        let first = &self.slab[level.index()];
        let may_go = first.backlog.ready() > 0 && first.blocking_jobs == 0 && first.front == Front::Free;
        let is_wanted = queue_record.queue_consumers.is_ready()
            && queue_record.blocking_jobs == 0
            && !queue_record.is_deleted();
        (may_go && is_wanted).then_some(level)
    }

    /// Returns a queue that can deliver now but is missing from the ready list, which is a fault of the
    /// broker: its messages would not be delivered.
    #[cfg(debug_assertions)]
    pub fn forgotten_queue(&self) -> Option<usize> {
        let wants = |index: usize| self.wanted_level(QueueId::from_index(index)).is_some();
        let mut queues = self.slab.iter().filter(|(_, queue)| !queue.listed.is_ready && !queue.is_level());
        queues.find(|(index, _)| wants(*index)).map(|(index, _)| index)
    }
}

#[cfg(test)]
mod place_tests {
    use super::*;

    #[test]
    fn places_read_back_whatever_the_offset() {
        let message = MessageId::from_index(5);
        assert_eq!(
            EntryContent::of(EntryContent::InMemory(message).entry()),
            EntryContent::InMemory(message)
        );
        for shift in 0..61 {
            let width = 1_u64 << shift;
            for offset in [width - 1, width, width + 1] {
                for content in [
                    EntryContent::InMemoryAndLog(message, offset),
                    EntryContent::AbsentRun(offset, u32::MAX - 1),
                ] {
                    assert_eq!(EntryContent::of(content.entry()), content);
                }
            }
        }
    }
}
