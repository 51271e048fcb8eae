//! Tracks the messages of each queue in the log: offsets, counts, the watermark and requeue counts.
//!
//! # Invariants
//! - An offset is given to one message only.
//! - The counts are those of unsettled messages in the log or in the pending-write buffer.
//! - The watermark never falls while the broker runs.

use leveret_amqp::field::{Table, Value};
use leveret_core::batch::Batch;
use leveret_core::command::QueueId;
use leveret_storage::Target;

/// The messages that the log has of a queue, at start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Contents {
    /// Unsettled messages.
    pub count: u64,
    /// Bytes that unsettled messages take in the log.
    pub bytes: u64,
    /// Offset of the next message.
    pub next_offset: u64,
    /// Messages with smaller offsets may have been delivered.
    pub delivered_below: u64,
    /// Highest watermark in the log. It may exceed `delivered_below`, because it is written ahead of deliveries.
    pub watermark: u64,
}

/// The watermark is up to this many offsets ahead of the deliveries. After a power cut, up to this many
/// messages that were never delivered are marked as redelivered.
const WATERMARK_STEP: u64 = 256;
/// The step of the watermark in a queue that a bridge forwards. Most messages of such a queue are settled before
/// they are written to the log, so that most log entries of the queue are watermarks. The larger step makes them
/// fewer.
const WATERMARK_STEP_FORWARDED: u64 = 1024;

/// Offsets and counts of a queue's messages in the log; all 0 for a queue that is not durable.
#[derive(Debug, Default)]
pub struct DurableIndex {
    /// Number that identifies the queue in the log, never reused; 0 when nothing of the queue is logged.
    incarnation: u64,
    /// The batch with which the definition of the queue is durable.
    defined: Batch,
    /// Offset of the next durable message.
    next_offset: u64,
    /// Number of unsettled messages in the log.
    count: u64,
    /// Bytes that unsettled messages take in the log.
    bytes: u64,
    /// Messages with smaller offsets may have been delivered in an earlier run of the process.
    redelivered_below: u64,
    /// The durable watermark. Only messages with smaller offsets may be delivered now: for these the log already
    /// records that they may have been delivered.
    watermark: u64,
    /// The watermark that was last requested, durable or not. `watermark` reaches it when all pending writes are
    /// durable.
    watermark_requested: u64,
    /// The highest watermark that earlier runs of the process wrote to the log, even if a clean stop corrected it
    /// afterwards (see [`Self::watermark_reset`]).
    watermark_before: u64,
    /// Messages that left the front of the queue, in this run or an earlier one, have smaller offsets, as far as is
    /// known.
    taken_below: u64,
}

impl DurableIndex {
    /// Returns the empty index of a queue. `incarnation` is the number that identifies the queue in the log, or 0 if
    /// the queue is not durable.
    pub fn as_incarnation(incarnation: u64) -> Self {
        Self { incarnation, ..Self::default() }
    }

    /// Returns the number that identifies the queue in the log; 0 when nothing of it is logged.
    pub const fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// Returns whether the queue is in the log.
    #[inline]
    pub const fn is_logged(&self) -> bool {
        self.incarnation != 0
    }

    /// Returns the batch with which the definition of the queue is durable.
    pub const fn defined(&self) -> Batch {
        self.defined
    }

    /// Notes that the queue's definition is written with this batch.
    pub(crate) const fn set_defined(&mut self, batch: Batch) {
        self.defined = batch;
    }

    /// Returns the number of unsettled messages in the log.
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// Returns the bytes that unsettled messages take in the log.
    #[inline]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Sets, at start, the counts that recovery found in the log.
    pub fn restore(&mut self, contents: &Contents) {
        self.count = contents.count;
        self.bytes = contents.bytes;
        self.next_offset = contents.next_offset;
        // The watermark may be higher than the next offset. Offsets that no message has yet do not count as
        // delivered.
        self.redelivered_below = contents.delivered_below.min(contents.next_offset);
        self.watermark = contents.delivered_below;
        self.watermark_requested = contents.delivered_below;
        self.taken_below = self.redelivered_below;
        self.watermark_before = contents.watermark;
    }

    /// Returns the target for the next durable message, which takes `bytes` in the log; `None` for a queue
    /// that is not in the log.
    #[inline]
    pub(crate) fn next_target(&mut self, bytes: u64) -> Option<Target> {
        if !self.is_logged() {
            return None;
        }
        let target = Target { queue: self.incarnation, offset: self.next_offset };
        self.next_offset += 1;
        self.count += 1;
        self.bytes += bytes;
        Some(target)
    }

    /// Returns the offset that [`Self::next_target`] returned last.
    #[inline]
    pub(crate) const fn last_offset(&self) -> u64 {
        self.next_offset - 1
    }

    /// Uses up `count` offsets without messages. Returns the first of them.
    ///
    /// Only the simulator uses it, to reach large offsets quickly.
    #[cfg(debug_assertions)]
    pub const fn pass_offsets(&mut self, count: u64) -> u64 {
        let start = self.next_offset;
        self.next_offset += count;
        start
    }

    /// Subtracts a settled message that took `bytes` in the log.
    #[inline]
    pub const fn settle(&mut self, bytes: u64) {
        self.count -= 1;
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    /// Subtracts `count` settled messages of unknown size.
    pub(crate) fn settle_absent(&mut self, count: u64) {
        // The average size is subtracted.
        let share = u128::from(self.bytes) * u128::from(count) / u128::from(self.count.max(1));
        self.bytes = self.bytes.saturating_sub(share as u64);
        self.count = self.count.saturating_sub(count);
    }

    // ---- the watermark

    /// Notes that a message leaves the front for the first time: delivered, expired or dropped. Returns
    /// whether it may have been delivered in an earlier run of the process.
    #[inline]
    pub fn note_taken(&mut self, offset: u64) -> bool {
        self.taken_below = self.taken_below.max(offset + 1);
        offset < self.redelivered_below
    }

    /// Returns the offset below which messages may have been delivered in an earlier run of the process.
    pub const fn redelivered_below(&self) -> u64 {
        self.redelivered_below
    }

    /// Returns whether this offset is below the durable watermark, so that its message may be delivered.
    #[inline]
    pub(crate) const fn is_below_watermark(&self, offset: u64) -> bool {
        offset < self.watermark
    }

    /// Returns a higher watermark to write, if this offset is within half a step of the requested watermark;
    /// otherwise `None`.
    #[inline]
    pub(crate) fn request_watermark(&mut self, offset: u64, is_forwarded: bool) -> Option<u64> {
        let step = if is_forwarded { WATERMARK_STEP_FORWARDED } else { WATERMARK_STEP };
        if offset + step / 2 < self.watermark_requested {
            return None;
        }
        // A clean stop writes a reset, which corrects the watermark downwards. The reset is valid only while the log
        // contains no watermark above the one that it corrects. The new watermark is above all watermarks of earlier
        // runs, so that it ends an earlier reset.
        self.watermark_requested = (offset + step).max(self.watermark_before + 1);
        Some(self.watermark_requested)
    }

    /// Raises the watermark to one that is durable.
    pub(crate) fn raise_watermark(&mut self, below: u64) {
        self.watermark = self.watermark.max(below);
    }

    /// If the watermark in the log is ahead of the deliveries, returns the correct watermark and the one in
    /// the log.
    pub(crate) fn watermark_reset(&self) -> Option<(u64, u64)> {
        let watermark = self.watermark_requested.max(self.watermark_before);
        (self.count > 0 && watermark > self.taken_below).then_some((self.taken_below, watermark))
    }
}

/// Maximum number of ranges with a requeue count in one queue. They take at most 5 KiB in the queue's
/// definition.
const RANGES_MAX: usize = 256;
/// Bytes of an entry in the argument `leveret-returns` (see [`RequeueCounts`]).
const ENTRY_BYTES: usize = 8 + 2;
/// Marks an entry as the last offset of a range. No log reaches such an offset.
const RANGE_END: u64 = 1 << 63;
/// Name and type of the argument `leveret-returns`.
const ARGUMENT: &[u8] = b"\x0fleveret-returnsx";
const NAME: &str = "leveret-returns";

/// Neighbouring messages that were requeued equally often.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Range {
    /// Log offset of the first message.
    first: u64,
    /// Log offset of the last message.
    last: u64,
    /// How often each of them was requeued.
    count: u16,
}

/// The requeue counts of messages in one quorum queue, as they are written to the log; most queues have none.
///
/// A message that makes its consumer crash each time must reach its delivery limit even if the power fails
/// between deliveries. The counts are therefore stored in the queue's definition, as an additional last
/// argument:
///
/// ```text
/// | arguments | 15 "leveret-returns" x | length u32 | length ÷ 10 × (offset u64, count u16) |
/// ```
///
/// All numbers are big-endian. Neighbouring messages with the same count are one range, written as two
/// entries: the first offset, then the last offset with [`RANGE_END`] set. Older versions read the first of
/// the two and drop the second. Programs that do not know the argument ignore it.
///
/// # Invariants
/// - Ranges are ascending, do not overlap, and neighbours with the same count are one range.
/// - A queue has at most [`RANGES_MAX`] ranges. Beyond that, the ranges with the lowest count are dropped, so
///   that the messages nearest to the delivery limit still reach it.
/// - At most one write of a queue's requeue counts is pending. Later changes wait for the next write, so
///   thousands of requeues in a second cost one write for each commit.
/// - When a power cut loses a message, a new message at the same offset does not get the lost message's
///   count.
#[derive(Debug, Default)]
pub struct RequeueCounts {
    ranges: Vec<Range>,
    /// The counts changed since they were last written.
    is_due: bool,
}

/// Queues whose requeue counts are to be written.
#[derive(Debug, Default)]
pub(crate) struct RequeueCountsDue {
    queues: Vec<QueueId>,
    /// The batch with which the last write is durable.
    written: Batch,
}

impl RequeueCountsDue {
    /// Returns whether counts are to be written and the last write is durable.
    #[inline]
    pub(crate) fn may_be_written(&self, durable: Batch) -> bool {
        !self.queues.is_empty() && self.written <= durable
    }

    /// Adds a queue whose counts are to be written.
    pub(crate) fn push(&mut self, queue: QueueId) {
        self.queues.push(queue);
    }

    /// Takes the queues whose counts are to be written.
    pub(crate) fn take(&mut self) -> Vec<QueueId> {
        core::mem::take(&mut self.queues)
    }

    /// Notes the batch of a write.
    pub(crate) fn note_written(&mut self, batch: Batch) {
        self.written = batch;
    }
}

/// Returns the arguments that a queue was declared with, out of those in its definition.
pub fn declared_arguments(arguments: &[u8]) -> &[u8] {
    let counts = last_list(arguments).map_or(0, |list| ARGUMENT.len() + 4 + list.len());
    &arguments[..arguments.len() - counts]
}

impl RequeueCounts {
    /// Splits the arguments of a queue's definition into those without the requeue counts, and the counts.
    pub fn split(arguments: &[u8]) -> (&[u8], Self) {
        let Some(list) = last_list(arguments) else { return (arguments, Self::default()) };
        let mut counts = Self::default();
        let mut before = None;
        for [offset @ .., high, low] in list.as_chunks::<ENTRY_BYTES>().0 {
            let (offset, count) = (u64::from_be_bytes(*offset), u16::from_be_bytes([*high, *low]));
            let first = if offset < RANGE_END { offset } else { before.unwrap_or(offset) };
            counts.set(Range { first, last: offset & !RANGE_END, count });
            before = (offset < RANGE_END).then_some(offset);
        }
        (declared_arguments(arguments), counts)
    }

    /// Returns whether no message has a count.
    pub const fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Returns the arguments of a queue's definition with the requeue counts.
    pub fn join(&self, arguments: &[u8]) -> Vec<u8> {
        let mut joined = arguments.to_vec();
        // If the client's own last argument looks like the counts, counts are appended even if there are none. So
        // `split` takes the appended ones, not the client's argument.
        if self.ranges.is_empty() && last_list(arguments).is_none() {
            return joined;
        }
        joined.extend_from_slice(ARGUMENT);
        let length_at = joined.len();
        joined.extend_from_slice(&[0; 4]);
        for Range { first, last, count } in &self.ranges {
            let end = (last > first).then_some(last | RANGE_END);
            for offset in [*first].into_iter().chain(end) {
                joined.extend_from_slice(&offset.to_be_bytes());
                joined.extend_from_slice(&count.to_be_bytes());
            }
        }
        let length = (joined.len() - length_at - 4) as u32;
        joined[length_at..length_at + 4].copy_from_slice(&length.to_be_bytes());
        joined
    }

    /// Drops, at start, the counts from this offset on: a power cut lost their messages, and new messages get
    /// these offsets. Returns whether the counts must be written.
    pub(crate) fn forget_from(&mut self, next_offset: u64) -> bool {
        let Some(end) = self.ranges.last().map(|range| range.last) else { return self.is_due };
        if end >= next_offset {
            self.drop_counts(next_offset, end);
            self.is_due = true;
        }
        self.is_due
    }

    /// Returns how often the message at this log offset was requeued; 0 if no count is stored.
    #[inline]
    pub(crate) fn count_of(&self, offset: u64) -> u16 {
        let at = self.ranges.partition_point(|range| range.last < offset);
        self.ranges.get(at).filter(|range| range.first <= offset).map_or(0, |range| range.count)
    }

    /// Sets how often the message at this log offset was requeued. Returns whether the caller must add the
    /// queue to [`RequeueCountsDue`].
    pub fn note(&mut self, offset: u64, count: u16) -> bool {
        self.set(Range { first: offset, last: offset, count });
        !core::mem::replace(&mut self.is_due, true)
    }

    /// Drops the counts of settled messages, from offset `first` to `last`, unless that would split a range.
    /// In the log the counts remain until the next write.
    #[inline]
    pub fn note_settled(&mut self, first: u64, last: u64) {
        if self.ranges.is_empty() {
            return;
        }
        let at = self.ranges.partition_point(|range| range.last < first);
        if !self.ranges.get(at).is_some_and(|range| range.first < first && last < range.last) {
            self.drop_counts(first, last);
        }
    }

    /// Returns whether the counts must be written, and clears that mark.
    pub fn take_due(&mut self) -> bool {
        core::mem::take(&mut self.is_due)
    }

    /// Sets the count of these messages.
    fn set(&mut self, range: Range) {
        if range.first > range.last || range.last >= RANGE_END {
            return;
        }
        self.drop_counts(range.first, range.last);
        let mut at = self.ranges.partition_point(|other| other.last < range.first);
        self.ranges.insert(at, range);
        if at > 0 && self.joins(at - 1) {
            at -= 1;
            self.join_next(at);
        }
        if self.joins(at) {
            self.join_next(at);
        }
        while self.ranges.len() > RANGES_MAX {
            let lowest = self.ranges.iter().enumerate().min_by_key(|(_, range)| range.count);
            let Some((lowest, _)) = lowest else { break };
            self.ranges.remove(lowest);
        }
    }

    /// Drops the counts of these messages.
    fn drop_counts(&mut self, first: u64, last: u64) {
        let mut at = self.ranges.partition_point(|range| range.last < first);
        while let Some(range) = self.ranges.get_mut(at).filter(|range| range.first <= last) {
            let before = *range;
            range.last = first.saturating_sub(1);
            let keeps_start = before.first < first;
            if before.last > last {
                let rest = Range { first: last + 1, ..before };
                if keeps_start {
                    self.ranges.insert(at + 1, rest);
                } else {
                    self.ranges[at] = rest;
                }
                return;
            }
            if keeps_start {
                at += 1;
            } else {
                self.ranges.remove(at);
            }
        }
    }

    /// Returns whether a range and the next one are neighbours with the same count.
    fn joins(&self, at: usize) -> bool {
        self.ranges.get(at + 1).is_some_and(|next| {
            let range = self.ranges[at];
            range.last + 1 == next.first && range.count == next.count
        })
    }

    fn join_next(&mut self, at: usize) {
        self.ranges[at].last = self.ranges.remove(at + 1).last;
    }
}

/// Returns the list of counts, if it is the last argument.
fn last_list(arguments: &[u8]) -> Option<&[u8]> {
    match Table::trusted(arguments).iter().last()? {
        (name, Value::Binary(list)) if name == NAME.as_bytes() => Some(list),
        _ => None,
    }
}

#[cfg(test)]
mod requeue_counts_tests {
    use super::*;
    use leveret_amqp::Writer;

    fn arguments() -> Vec<u8> {
        let mut bytes = [0; 100];
        let mut writer = Writer::new(&mut bytes);
        writer.table(|table| table.text("x-queue-type", "quorum")).expect("it fits");
        writer.written()[4..].to_vec()
    }

    #[test]
    fn joined_requeue_counts_can_be_split() {
        let own = arguments();
        let mut requeues = RequeueCounts::default();
        assert_eq!(requeues.join(&own), own, "without counts there is no argument");
        for offset in 0..40 {
            requeues.note(offset, 1);
        }
        requeues.note(9, u16::MAX);
        requeues.note(8, 7);
        let joined = requeues.join(&own);
        let (rest, read) = RequeueCounts::split(&joined);
        assert_eq!((rest, &read.ranges), (&own[..], &requeues.ranges));
        let known = [7, 8, 9, 10, 39, 40].map(|offset| read.count_of(offset));
        assert_eq!(known, [1, 7, u16::MAX, 1, 1, 0]);
        assert_eq!(read.join(rest), joined);
    }

    #[test]
    fn counts_match_a_plain_table_whatever_order_messages_are_requeued_and_settled_in() {
        let mut state = 1_u64;
        let mut next = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        for _ in 0..200 {
            let mut requeues = RequeueCounts::default();
            let mut table = [0_u16; 200];
            for _ in 0..400 {
                let offset = next(200);
                if next(4) == 0 {
                    requeues.note_settled(offset, offset);
                    // The count of a settled message is not defined any more.
                    table[offset as usize] = requeues.count_of(offset);
                } else {
                    table[offset as usize] = next(3) as u16 + 1;
                    requeues.note(offset, table[offset as usize]);
                }
                let apart = |pair: &[Range]| {
                    pair[0].last + 1 < pair[1].first
                        || pair[0].last + 1 == pair[1].first && pair[0].count != pair[1].count
                };
                assert!(requeues.ranges.windows(2).all(apart), "{:?}", requeues.ranges);
            }
            for (offset, count) in table.iter().enumerate() {
                assert_eq!(requeues.count_of(offset as u64), *count, "{:?}", requeues.ranges);
            }
            requeues.forget_from(100);
            assert!((100..200).all(|offset| requeues.count_of(offset) == 0));
            assert!((0..100).all(|offset| requeues.count_of(offset) == table[offset as usize]));
        }
    }

    #[test]
    fn messages_nearest_to_the_delivery_limit_are_kept_when_there_are_too_many_ranges() {
        let mut requeues = RequeueCounts::default();
        requeues.note(0, 5);
        for offset in 1..=1_000 {
            requeues.note(2 * offset, 1);
        }
        assert_eq!((requeues.ranges.len(), requeues.count_of(0)), (RANGES_MAX, 5));
    }

    #[test]
    fn requeue_counts_are_compatible_with_the_older_version() {
        let own = arguments();
        let entries = [(3_u64, 2_u16), (9, 1), (4, 2)];
        let list =
            entries.iter().flat_map(|(at, count)| [&at.to_be_bytes()[..], &count.to_be_bytes()].concat());
        let list: Vec<u8> = list.collect();
        let joined = [&own[..], ARGUMENT, &(list.len() as u32).to_be_bytes(), &list].concat();
        let (_, read) = RequeueCounts::split(&joined);
        assert_eq!([3, 4, 5, 9].map(|offset| read.count_of(offset)), [2, 2, 0, 1]);
        // The older version takes each entry as one message, and drops offsets that no message has yet.
        let ours = read.join(&own);
        let offsets = last_list(&ours).expect("there are counts").chunks(ENTRY_BYTES);
        let known = offsets.filter(|entry| entry[0] < 0x80).count();
        assert_eq!(known, 2);
    }

    #[test]
    fn a_clients_own_argument_of_that_name_is_kept() {
        let mut bytes = [0; 200];
        let mut writer = Writer::new(&mut bytes);
        let written = writer.table(|table| table.value(NAME.as_bytes(), Value::Binary(&[0; 25])));
        assert!(written.is_ok());
        let own = writer.written()[4..].to_vec();
        let mut requeues = RequeueCounts::default();
        for count in 0..2 {
            let joined = requeues.join(&own);
            let (rest, read) = RequeueCounts::split(&joined);
            assert_eq!((rest, read.count_of(3)), (&own[..], count));
            requeues.note(3, 1);
        }
    }
}
