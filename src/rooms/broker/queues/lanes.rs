//! What the log knows a queue by, and what it has of it: durable messages, and transient ones that had to
//! leave memory.
//!
//! Always true: an offset is given to one message only; what is counted is what is in the log and not
//! settled, or on its way there; the delivered watermark never falls.

use crate::journal::{Batch, Target};

use crate::broker::restored::Contents;

/// Offsets that are marked as delivered ahead of time: so many at most are called redelivered after a power
/// cut that never were.
const WATERMARK_STEP: u64 = 256;
/// The same of a queue that is forwarded: most of its messages leave without ever being written, and each mark is a
/// write.
const WATERMARK_STEP_NAMED: u64 = 1024;

/// What the log knows the queue by; all 0 for one that does not outlive the broker.
#[derive(Debug, Default)]
pub(crate) struct Logged {
    /// Never used again for another queue; 0 when nothing of this one is logged.
    incarnation: u64,
    /// What says that it exists is durable with this.
    defined: Batch,
    /// The offset of the next message that is logged.
    next_offset: u64,
    /// Messages in the log and not settled, and their bytes there.
    count: u64,
    bytes: u64,
    /// Offsets below were perhaps delivered in another life.
    redelivered_below: u64,
    /// Offsets below may be delivered: it is written down that they may have been.
    watermark: u64,
    /// The same, once what was asked for is durable.
    watermark_asked: u64,
    /// Watermarks of other lives are in the log up to here.
    watermark_before: u64,
    /// Offsets below are all that were really taken to be delivered, in this life or another.
    taken_below: u64,
}

impl Logged {
    /// What the log is to know a queue by; 0 for one that does not outlive the broker.
    pub(crate) fn as_incarnation(incarnation: u64) -> Self {
        Self { incarnation, ..Self::default() }
    }

    /// What the log knows the queue by; 0 when nothing of it is logged.
    pub(crate) const fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// Whether the log has the queue.
    #[inline]
    pub(crate) const fn is_on(&self) -> bool {
        self.incarnation != 0
    }

    /// With this batch the queue's definition is durable.
    pub(crate) const fn defined(&self) -> Batch {
        self.defined
    }

    /// Its definition is written anew.
    pub(crate) const fn set_defined(&mut self, batch: Batch) {
        self.defined = batch;
    }

    /// Messages in the log and not settled.
    pub(crate) const fn count(&self) -> u64 {
        self.count
    }

    /// Bytes that they take there.
    #[inline]
    pub(crate) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// At a start: what the log has.
    pub(crate) fn restore(&mut self, contents: &Contents) {
        self.count = contents.count;
        self.bytes = contents.bytes;
        self.next_offset = contents.next_offset;
        // Watermarks run ahead of the deliveries, but nobody has seen what was not even published.
        self.redelivered_below = contents.delivered_through.min(contents.next_offset);
        self.watermark = contents.delivered_through;
        self.watermark_asked = contents.delivered_through;
        self.taken_below = self.redelivered_below;
        self.watermark_before = contents.marked_through;
    }

    /// The place of the next message, which takes so many bytes there; none for a queue that is not in the
    /// log.
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

    /// So many offsets are used up without a message; the first of them.
    #[cfg(debug_assertions)]
    pub(crate) const fn pass_offsets(&mut self, count: u64) -> u64 {
        let start = self.next_offset;
        self.next_offset += count;
        start
    }

    /// A message that takes so many bytes is done with.
    #[inline]
    pub(crate) const fn settled(&mut self, bytes: u64) {
        self.count -= 1;
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    /// So many messages are done with that are not in memory.
    pub(crate) fn settled_unread(&mut self, count: u64) {
        uncount(&mut self.count, &mut self.bytes, count);
    }

    // ---- the delivered watermark

    /// A message leaves the queue for the first time; says whether it was perhaps delivered in another life.
    #[inline]
    pub(crate) fn taken(&mut self, offset: u64) -> bool {
        self.taken_below = self.taken_below.max(offset + 1);
        offset < self.redelivered_below
    }

    /// Messages with offsets below this were perhaps delivered in another life.
    pub(crate) const fn delivered_below(&self) -> u64 {
        self.redelivered_below
    }

    /// Whether it is written down that a message may have been delivered.
    #[inline]
    pub(crate) const fn is_below_watermark(&self, offset: u64) -> bool {
        offset < self.watermark
    }

    /// The watermark to be asked for, if that of the message will soon be near; asks ahead of need.
    #[inline]
    pub(crate) fn ask_watermark(&mut self, offset: u64, is_named: bool) -> Option<u64> {
        let step = if is_named { WATERMARK_STEP_NAMED } else { WATERMARK_STEP };
        if offset + step / 2 < self.watermark_asked {
            return None;
        }
        // Above all watermarks before, so that a reset of those is void.
        self.watermark_asked = (offset + step).max(self.watermark_before + 1);
        Some(self.watermark_asked)
    }

    /// What was asked for is durable.
    pub(crate) fn raise_watermark(&mut self, through: u64) {
        self.watermark = self.watermark.max(through);
    }

    /// Where the watermark belongs and where it is, if it ran ahead of the deliveries.
    pub(crate) fn watermark_reset(&self) -> Option<(u64, u64)> {
        let watermark = self.watermark_asked.max(self.watermark_before);
        (self.count > 0 && watermark > self.taken_below).then_some((self.taken_below, watermark))
    }
}

/// What the log has of the queue's transient messages; all 0 until the first of them had to leave memory.
#[derive(Debug, Default)]
pub(crate) struct Spilled {
    /// Never used again for another queue, and of this life only.
    incarnation: u64,
    /// The offset of the next message that leaves.
    next_offset: u64,
    /// Messages in the log or on their way there, and their bytes there.
    count: u64,
    bytes: u64,
    /// With this batch the last of them is there.
    awaits: Batch,
}

impl Spilled {
    /// What the log knows them by; 0 when there never were any.
    pub(crate) const fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// Messages in the log or on their way there.
    pub(crate) const fn count(&self) -> u64 {
        self.count
    }

    /// Bytes that they take there.
    #[inline]
    pub(crate) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The place of the next message, which takes so many bytes there; `new` says what the log is to know
    /// the first by.
    pub(crate) fn next_target(&mut self, bytes: u64, new: impl FnOnce() -> u64) -> Target {
        if self.incarnation == 0 {
            self.incarnation = new();
        }
        let target = Target { queue: self.incarnation, offset: self.next_offset };
        self.next_offset += 1;
        self.count += 1;
        self.bytes += bytes;
        target
    }

    /// With this batch the last of them is in the log.
    pub(crate) const fn set_awaits(&mut self, batch: Batch) {
        self.awaits = batch;
    }

    /// With this batch the last of them is in the log.
    pub(crate) const fn awaits(&self) -> Batch {
        self.awaits
    }

    /// So many messages are done with that are not in memory.
    pub(crate) fn settled_unread(&mut self, count: u64) {
        uncount(&mut self.count, &mut self.bytes, count);
    }

    /// A message that takes so many bytes stays in memory.
    pub(crate) const fn stays(&mut self, bytes: u64) {
        self.count -= 1;
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

/// So many messages leave the log unread: each counts for as much as the others on average.
fn uncount(messages: &mut u64, bytes: &mut u64, count: u64) {
    let share = u128::from(*bytes) * u128::from(count) / u128::from((*messages).max(1));
    *bytes = bytes.saturating_sub(share as u64);
    *messages = messages.saturating_sub(count);
}
