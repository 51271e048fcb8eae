//! The messages of a queue that the log has.
//!
//! Always true: an offset is given to one message only; the counts are of unsettled messages in the log or on
//! their way there; the delivered watermark never falls.

use crate::restored::Contents;
use leveret_core::journal::{Batch, Target};

/// Offsets by which the watermark goes ahead of the deliveries: at most as many undelivered messages are
/// called redelivered after a power cut.
const WATERMARK_STEP: u64 = 256;
/// The step of the watermark in a queue that is forwarded: most of its messages leave without ever being
/// written, and each watermark is a write.
const WATERMARK_STEP_FORWARDED: u64 = 1024;

/// What a queue has in the log; all 0 for a queue that does not outlive the broker.
#[derive(Debug, Default)]
pub(crate) struct Logged {
    /// The number that the log knows the queue by, never used again for another; 0 when nothing of the queue
    /// is logged.
    incarnation: u64,
    /// The batch with which the definition of the queue is durable.
    defined: Batch,
    /// The offset of the next durable message.
    next_offset: u64,
    /// Unsettled messages in the log.
    count: u64,
    /// Bytes that unsettled messages take in the log.
    bytes: u64,
    /// Messages with offsets below were perhaps delivered in another life of the broker.
    redelivered_below: u64,
    /// Messages with offsets below may be delivered: the log notes that they perhaps were.
    watermark: u64,
    /// The watermark once all that is being written is durable.
    watermark_asked: u64,
    /// The highest watermark of other lives of the broker.
    watermark_before: u64,
    /// No message at or above this offset has left the front of the queue, as far as is known, in this life of the
    /// broker or another.
    taken_below: u64,
}

impl Logged {
    /// Nothing yet, of a queue that the log is to know by this number; 0 for a queue that does not outlive the
    /// broker.
    pub(crate) fn as_incarnation(incarnation: u64) -> Self {
        Self { incarnation, ..Self::default() }
    }

    /// The number that the log knows the queue by; 0 when nothing of it is logged.
    pub(crate) const fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// Whether the queue is in the log.
    #[inline]
    pub(crate) const fn is_on(&self) -> bool {
        self.incarnation != 0
    }

    /// The batch with which the definition of the queue is durable.
    pub(crate) const fn defined(&self) -> Batch {
        self.defined
    }

    /// Notes that the queue's definition is written anew with this batch.
    pub(crate) const fn set_defined(&mut self, batch: Batch) {
        self.defined = batch;
    }

    /// Unsettled messages in the log.
    pub(crate) const fn count(&self) -> u64 {
        self.count
    }

    /// Bytes that unsettled messages take in the log.
    #[inline]
    pub(crate) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// At a start: takes over what the log has for the queue.
    pub(crate) fn restore(&mut self, contents: &Contents) {
        self.count = contents.count;
        self.bytes = contents.bytes;
        self.next_offset = contents.next_offset;
        // The watermark runs ahead of the deliveries, but nobody has seen a message that was not even
        // published.
        self.redelivered_below = contents.delivered_through.min(contents.next_offset);
        self.watermark = contents.delivered_through;
        self.watermark_asked = contents.delivered_through;
        self.taken_below = self.redelivered_below;
        self.watermark_before = contents.marked_through;
    }

    /// The place of the next durable message, which takes `bytes` in the log; none for a queue that is not in
    /// the log.
    #[inline]
    pub(crate) fn next_target(&mut self, bytes: u64) -> Option<Target> {
        if !self.is_on() {
            return None;
        }
        let target = Target { queue: self.incarnation, offset: self.next_offset };
        self.next_offset += 1;
        self.count += 1;
        self.bytes += bytes;
        Some(target)
    }

    /// The offset that [`Self::next_target`] gave last.
    #[inline]
    pub(crate) const fn last_offset(&self) -> u64 {
        self.next_offset - 1
    }

    /// Uses up `count` offsets without messages; gives the first of them.
    #[cfg(debug_assertions)]
    pub(crate) const fn pass_offsets(&mut self, count: u64) -> u64 {
        let start = self.next_offset;
        self.next_offset += count;
        start
    }

    /// Counts out a settled message that took `bytes` in the log.
    #[inline]
    pub(crate) const fn settled(&mut self, bytes: u64) {
        self.count -= 1;
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    /// Counts out `count` settled messages that were not in memory.
    pub(crate) fn settled_unread(&mut self, count: u64) {
        // The size of each is not known: it counts with the average.
        let share = u128::from(self.bytes) * u128::from(count) / u128::from(self.count.max(1));
        self.bytes = self.bytes.saturating_sub(share as u64);
        self.count = self.count.saturating_sub(count);
    }

    // ---- the watermark

    /// Notes that a message leaves the front for the first time, delivered, expired or dropped; says whether it was
    /// perhaps delivered in another life of the broker.
    #[inline]
    pub(crate) fn taken(&mut self, offset: u64) -> bool {
        self.taken_below = self.taken_below.max(offset + 1);
        offset < self.redelivered_below
    }

    /// Messages with offsets below this were perhaps delivered in another life of the broker.
    pub(crate) const fn delivered_below(&self) -> u64 {
        self.redelivered_below
    }

    /// Whether a message is below the watermark, so that it may be delivered.
    #[inline]
    pub(crate) const fn is_below_watermark(&self, offset: u64) -> bool {
        offset < self.watermark
    }

    /// The watermark to write, if the message is near the one being written; asks ahead of need.
    #[inline]
    pub(crate) fn ask_watermark(&mut self, offset: u64, is_forwarded: bool) -> Option<u64> {
        let step = if is_forwarded { WATERMARK_STEP_FORWARDED } else { WATERMARK_STEP };
        if offset + step / 2 < self.watermark_asked {
            return None;
        }
        // The watermark goes above all earlier ones, so that a reset of those is void.
        self.watermark_asked = (offset + step).max(self.watermark_before + 1);
        Some(self.watermark_asked)
    }

    /// Raises the watermark to one that is durable.
    pub(crate) fn raise_watermark(&mut self, through: u64) {
        self.watermark = self.watermark.max(through);
    }

    /// Where the watermark belongs, and the watermark in the log, if it ran ahead of the deliveries.
    pub(crate) fn watermark_reset(&self) -> Option<(u64, u64)> {
        let watermark = self.watermark_asked.max(self.watermark_before);
        (self.count > 0 && watermark > self.taken_below).then_some((self.taken_below, watermark))
    }
}
