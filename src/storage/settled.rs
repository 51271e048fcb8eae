//! Sets of offsets: the settled offsets of one queue, compressed ([`SettledSet`]), and settlements that wait to be
//! written ([`RangeSet`]). Also the approximate locations of a footer's parts ([`Spans`]).
//!
//! A message that stays in the queue while later ones are acknowledged splits a range. So there is one range more for
//! each such message, for example if consumers acknowledge out of order, or requeue.
//!
//! ```text
//! chunk | first offset | end | length | gap | length | gap | ... | length |
//! ```
//!
//! Lengths and gaps are varints, so a range takes two or three bytes. The last range is kept uncompressed:
//! consumption in order only extends this range, so it causes no compression.
//!
//! # Invariants
//! - Ranges are ascending, not empty, and do not touch each other. No chunk is empty.
//! - A change affects only the chunks that contain its offsets.
//! - The memory of one freed chunk is kept for the next new chunk.

use super::parts::BodyPart;
use super::record::Range;
use super::varint::{self, Input};

/// Maximum number of ranges per chunk.
const CHUNK_RANGES: usize = 64;
/// Two neighbouring chunks are merged if together they have at most this number of ranges.
const MERGED_RANGES_MAX: usize = CHUNK_RANGES / 2;
/// The list of chunks keeps memory for at least this number of chunks.
const CHUNKS_KEPT: usize = 4;
/// Number of bytes by which a chunk's memory grows at once.
const GROWTH_BYTES: usize = 32;

/// A compressed set of offsets.
#[derive(Clone, Debug, Default)]
pub struct SettledSet {
    chunks: Vec<Chunk>,
    /// The last range, whose offsets are above those of all chunks; empty if nothing is settled.
    last: Range,
    count: usize,
    /// The memory of a freed chunk, for reuse.
    spare: Vec<u8>,
}

#[derive(Clone, Debug)]
struct Chunk {
    first: u64,
    end: u64,
    ranges: usize,
    bytes: Vec<u8>,
}

/// Space for the ranges of two chunks and one range between them.
type Unpacked = heapless::Vec<Range, { 2 * CHUNK_RANGES + 1 }>;

impl Chunk {
    fn of(ranges: &[Range], mut bytes: Vec<u8>) -> Self {
        bytes.clear();
        let first = ranges.first().map_or(0, |range| range.start);
        let mut chunk = Self { first, end: first, ranges: 0, bytes };
        ranges.iter().for_each(|range| chunk.push(*range));
        chunk
    }

    /// Appends a range.
    fn push(&mut self, range: Range) {
        if self.ranges > 0 {
            self.put(range.start - self.end);
        }
        self.put(range.end - range.start);
        self.end = range.end;
        self.ranges += 1;
    }

    fn put(&mut self, number: u64) {
        if self.bytes.capacity() < self.bytes.len() + varint::bytes(number) {
            self.bytes.reserve_exact(GROWTH_BYTES);
        }
        varint::put(&mut self.bytes, number);
    }

    /// Appends the ranges of the next chunk.
    fn join(&mut self, next: &Self) {
        self.put(next.first - self.end);
        self.bytes.reserve_exact(next.bytes.len());
        self.bytes.extend_from_slice(&next.bytes);
        self.end = next.end;
        self.ranges += next.ranges;
    }

    fn iter(&self) -> impl Iterator<Item = Range> + '_ {
        let (mut input, mut at) = (Input::new(&self.bytes), self.first);
        let mut is_first = true;
        core::iter::from_fn(move || {
            if input.is_empty() {
                return None;
            }
            if !core::mem::take(&mut is_first) {
                at += input.varint()?;
            }
            let start = at;
            at += input.varint()?;
            Some(Range { start, end: at })
        })
    }
}

impl SettledSet {
    /// Returns the number of ranges.
    pub const fn len(&self) -> usize {
        self.count
    }

    /// Returns whether the set is empty.
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Returns the end of the last range; 0 if there is none.
    pub const fn end(&self) -> u64 {
        self.last.end
    }

    /// Returns whether `offset` is in the set.
    #[inline]
    pub fn contains(&self, offset: u64) -> bool {
        self.around(offset).is_some()
    }

    /// Returns whether every offset of `range` is in the set; true for an empty range.
    pub fn contains_all(&self, range: Range) -> bool {
        range.is_empty() || self.around(range.start).is_some_and(|around| around.end >= range.end)
    }

    /// Returns the number of offsets of `range` that are in the set.
    pub fn count_in(&self, range: Range) -> u64 {
        let within = self.iter_from(range.start).take_while(|old| old.start < range.end);
        within.map(|old| old.end.min(range.end) - old.start.max(range.start)).sum()
    }

    /// Returns the range that contains `offset`; `None` if `offset` is not in the set.
    #[inline]
    fn around(&self, offset: u64) -> Option<Range> {
        if offset >= self.last.start {
            return (offset < self.last.end).then_some(self.last);
        }
        let chunk = self.chunks.get(self.chunks.partition_point(|chunk| chunk.end <= offset))?;
        if chunk.first > offset {
            return None;
        }
        chunk.iter().find(|range| range.end > offset).filter(|range| range.start <= offset)
    }

    /// Iterates over the ranges that end after `offset`, in ascending order.
    pub fn iter_from(&self, offset: u64) -> impl Iterator<Item = Range> + '_ {
        let first = self.chunks.partition_point(|chunk| chunk.end <= offset);
        let packed = self.chunks[first..].iter().flat_map(Chunk::iter);
        let last = (self.count > 0).then_some(self.last);
        packed.chain(last).skip_while(move |range| range.end <= offset)
    }

    /// Adds `range` and calls `fresh` with each part of it that was not in the set. An empty range adds
    /// nothing.
    pub fn insert(&mut self, range: Range, mut fresh: impl FnMut(Range)) {
        if range.is_empty() {
            return;
        }
        if self.count == 0 {
            (self.last, self.count) = (range, 1);
            return fresh(range);
        }
        if range.start > self.last.end {
            self.pack(self.last);
            (self.last, self.count) = (range, self.count + 1);
            return fresh(range);
        }
        if range.start >= self.last.start {
            if range.end > self.last.end {
                let start = core::mem::replace(&mut self.last.end, range.end);
                fresh(Range { start, end: range.end });
            }
            return;
        }
        let reaches_last = range.end >= self.last.start;
        // Chunks with ranges that overlap or touch `range`.
        let low = self.chunks.partition_point(|chunk| chunk.end < range.start);
        let high = self.chunks.partition_point(|chunk| chunk.first <= range.end).max(low);
        let (mut merged, mut from, mut touched) = (range, range.start, 0);
        let packed = self.chunks[low..high].iter().flat_map(Chunk::iter);
        let touches = |old: &Range| old.end >= range.start && old.start <= range.end;
        for old in packed.filter(touches).chain(reaches_last.then_some(self.last)) {
            if from < old.start {
                fresh(Range { start: from, end: old.start });
            }
            from = from.max(old.end);
            merged = Range { start: merged.start.min(old.start), end: merged.end.max(old.end) };
            touched += 1;
        }
        if from < range.end {
            fresh(Range { start: from, end: range.end });
        }
        self.count = self.count + 1 - touched;
        if reaches_last && low == high {
            self.last = merged;
            return;
        }
        let mut ranges = Unpacked::new();
        // Only ranges before or behind `range` remain of these chunks; `merged` replaces the others.
        let at = if low == high { low.min(self.chunks.len().saturating_sub(1)) } else { low };
        let behind = high.max(at + 1).min(self.chunks.len());
        if let Some(first) = self.chunks.get(at) {
            ranges.extend(first.iter().take_while(|old| old.end < range.start));
        }
        if reaches_last {
            self.last = merged;
        } else {
            ranges.extend([merged]);
            if let Some(last) = behind.checked_sub(1).and_then(|last| self.chunks.get(last)) {
                ranges.extend(last.iter().filter(|old| old.start > range.end));
            }
        }
        self.replace(at, behind, &ranges);
    }

    /// Compresses a range behind all chunks.
    fn pack(&mut self, range: Range) {
        match self.chunks.last_mut() {
            Some(chunk) if chunk.ranges < CHUNK_RANGES => chunk.push(range),
            _ => self.put_chunk(self.chunks.len(), &[range]),
        }
    }

    /// Inserts a chunk with these ranges at index `at`.
    fn put_chunk(&mut self, at: usize, ranges: &[Range]) {
        let chunk = Chunk::of(ranges, core::mem::take(&mut self.spare));
        if self.chunks.len() == self.chunks.capacity() {
            self.chunks.reserve_exact(1 + self.chunks.len() / 4);
        }
        self.chunks.insert(at, chunk);
    }

    /// Replaces the chunks with the indexes `at..behind` by chunks with these ranges.
    fn replace(&mut self, at: usize, behind: usize, ranges: &[Range]) {
        if let Some(last) = self.chunks.drain(at..behind).next_back() {
            self.spare = last.bytes;
        }
        let each = ranges.len().div_ceil(ranges.len().div_ceil(CHUNK_RANGES).max(1)).max(1);
        for (at, part) in (at..).zip(ranges.chunks(each)) {
            self.put_chunk(at, part);
        }
        for first in [at, at.saturating_sub(1)] {
            if let Some([left, right]) = self.chunks.get_mut(first..first + 2)
                && left.ranges + right.ranges <= MERGED_RANGES_MAX
            {
                left.join(right);
                self.spare = self.chunks.remove(first + 1).bytes;
            }
        }
        self.chunks.shrink_to(CHUNKS_KEPT.max(2 * self.chunks.len()));
    }

    /// Returns the heap bytes. The allocator adds `allocation_bytes` per allocation.
    pub(super) fn heap_bytes(&self, allocation_bytes: usize) -> usize {
        let chunks = self.chunks.iter().map(|chunk| chunk.bytes.capacity() + allocation_bytes);
        self.chunks.capacity() * size_of::<Chunk>() + chunks.sum::<usize>() + self.spare.capacity()
    }

    /// Frees memory that is kept for reuse.
    pub(super) fn release_memory(&mut self) {
        self.spare = Vec::new();
        self.chunks.iter_mut().for_each(|chunk| chunk.bytes.shrink_to_fit());
        self.chunks.shrink_to_fit();
    }
}

/// A set of offsets as uncompressed ranges, for settlements that wait to be written.
///
/// The ranges are ascending, not empty, and do not touch each other. A queue that is consumed in order
/// therefore needs one range.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeSet {
    ranges: Vec<Range>,
}

impl RangeSet {
    /// Returns the ranges in ascending order.
    pub fn ranges(&self) -> &[Range] {
        &self.ranges
    }

    /// Returns whether the set is empty.
    pub const fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Returns whether `offset` is in the set.
    #[inline]
    pub fn contains(&self, offset: u64) -> bool {
        let at = self.ranges.partition_point(|range| range.end <= offset);
        self.ranges.get(at).is_some_and(|range| range.start <= offset)
    }

    /// Returns the end of the last range; 0 if there is none.
    pub fn end(&self) -> u64 {
        self.ranges.last().map_or(0, |range| range.end)
    }

    /// Adds `range` and calls `fresh` with each part of it that was not in the set. An empty range adds nothing,
    /// because a record with an empty range would be invalid, and a reader would stop at this record.
    pub fn insert(&mut self, range: Range, mut fresh: impl FnMut(Range)) {
        if range.is_empty() {
            return;
        }
        let first = self.ranges.partition_point(|old| old.end < range.start);
        let mut last = first;
        let mut merged = range;
        let mut from = range.start;
        while let Some(old) = self.ranges.get(last).filter(|old| old.start <= range.end) {
            if from < old.start {
                fresh(Range { start: from, end: old.start });
            }
            from = from.max(old.end);
            merged = Range { start: merged.start.min(old.start), end: merged.end.max(old.end) };
            last += 1;
        }
        if from < range.end {
            fresh(Range { start: from, end: range.end });
        }
        if last == first {
            self.ranges.insert(first, merged);
        } else {
            self.ranges[first] = merged;
            self.ranges.drain(first + 1..last);
        }
    }

    /// Returns its heap bytes.
    pub(super) const fn heap_bytes(&self) -> usize {
        self.ranges.capacity() * size_of::<Range>()
    }

    /// Frees memory, but keeps enough for `count` ranges.
    pub(super) fn shrink_to(&mut self, count: usize) {
        self.ranges.shrink_to(count);
    }

    /// Removes the first `count` ranges.
    pub(super) fn drop_first(&mut self, count: usize) {
        self.ranges.drain(..count);
    }
}

/// Parts are combined into one span until it has at least this number of bytes.
const SPAN_BYTES: u32 = 2 << 10;
/// A span with at least this number of bytes contains a single part.
pub(super) const SHARED_SPAN_BYTES_MAX: u32 = 2 * SPAN_BYTES;

/// The approximate locations of the queues' parts in one segment's footer; empty if it has no footer.
///
/// Exact locations of each queue's part in each segment would take most of the index's memory. So neighbouring small
/// parts are combined into a *span*: the index contains the location of the span, and a fetch searches the span for
/// the part. A large part is a span of its own. Like parts, spans are ascending by queue and by offset, without gaps.
#[derive(Clone, Debug, Default)]
pub(super) struct Spans {
    /// The first queue of each span, and the span's offset in the segment.
    starts: Vec<(u64, u32)>,
    end: u32,
}

impl Spans {
    /// Creates the spans of these parts, which are relative to offset `base` of the segment. The memory of
    /// `spare` is reused.
    pub(super) fn of(base: u32, parts: &[(u64, BodyPart)], spare: Self) -> Self {
        let mut starts = spare.starts;
        starts.clear();
        let (mut end, mut is_large) = (base, false);
        for (queue, BodyPart { at, bytes }) in parts {
            let at = base + at;
            let is_full = starts.last().is_none_or(|(_, start)| at - start >= SPAN_BYTES);
            if is_full || is_large || *bytes >= SPAN_BYTES {
                starts.push((*queue, at));
            }
            (end, is_large) = (at + bytes, *bytes >= SPAN_BYTES);
        }
        Self { starts, end }
    }

    /// Returns the span in which a queue's part lies, if there is such a part; empty if no span can contain it.
    pub(super) fn find(&self, queue: u64) -> BodyPart {
        let behind = self.starts.partition_point(|(first, _)| *first <= queue);
        let Some((_, at)) = behind.checked_sub(1).and_then(|at| self.starts.get(at)) else {
            return BodyPart::default();
        };
        let end = self.starts.get(behind).map_or(self.end, |(_, next)| *next);
        BodyPart { at: *at, bytes: end - at }
    }

    /// Returns its heap bytes.
    pub(super) const fn heap_bytes(&self) -> usize {
        size_of::<(u64, u32)>() * self.starts.capacity()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RangeSet;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_is_the_set_of_its_ranges(
            inserts in prop::collection::vec((0_u64..4_000, 0_u64..4, 0_u8..40), 0..1_500),
        ) {
            let (mut set, mut model) = (SettledSet::default(), RangeSet::default());
            for (start, length, kind) in inserts {
                // Some settle many offsets at once.
                let length = if kind == 0 { length * 300 } else { length };
                let range = Range { start, end: start + length };
                let (mut fresh, mut expected) = (Vec::new(), Vec::new());
                set.insert(range, |part| fresh.push(part));
                model.insert(range, |part| expected.push(part));
                prop_assert_eq!(fresh, expected);
                prop_assert_eq!((set.len(), set.end()), (model.ranges().len(), model.end()));
                for at in [start.saturating_sub(1), start, start + length] {
                    prop_assert_eq!(set.contains(at), model.contains(at), "{}", at);
                    let count = (at..at + 9).filter(|offset| model.contains(*offset)).count() as u64;
                    let range = Range { start: at, end: at + 9 };
                    prop_assert_eq!((set.count_in(range), set.contains_all(range)), (count, count == 9));
                }
            }
            prop_assert!(set.iter_from(0).eq(model.ranges().iter().copied()));
            let behind = model.ranges().iter().filter(|range| range.end > 700);
            prop_assert!(set.iter_from(700).eq(behind.copied()));
            prop_assert!(set.chunks.iter().all(|chunk| (1..=CHUNK_RANGES).contains(&chunk.ranges)));
        }
    }

    #[test]
    fn a_message_that_stays_costs_a_few_bytes() {
        let mut set = SettledSet::default();
        for at in 0..10_000 {
            set.insert(Range { start: at * 10, end: at * 10 + 9 }, |_| {});
        }
        let each = set.heap_bytes(16) as f64 / 10_000.0;
        println!("{each:.2} bytes a range");
        assert!(each < 4.0, "{each:.2} bytes a range");
        set.insert(Range { start: 0, end: u64::MAX }, |_| {});
        set.release_memory();
        assert_eq!((set.len(), set.heap_bytes(16)), (1, 0));
    }
}

#[cfg(test)]
mod ranges_tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn it_is_the_set_of_its_offsets(inserts in prop::collection::vec((0_u64..60, 0_u64..12), 0..40)) {
            let (mut set, mut model) = (RangeSet::default(), BTreeSet::new());
            for (start, length) in inserts {
                let mut fresh = BTreeSet::new();
                set.insert(Range { start, end: start + length }, |part| {
                    for offset in part.start..part.end {
                        assert!(fresh.insert(offset));
                    }
                });
                let expected: BTreeSet<u64> =
                    (start..start + length).filter(|offset| !model.contains(offset)).collect();
                prop_assert_eq!(&fresh, &expected);
                model.extend(expected);
                prop_assert!((0..80).all(|offset| set.contains(offset) == model.contains(&offset)));
                prop_assert!(set.ranges().iter().all(|range| !range.is_empty()));
                prop_assert!(set.ranges().windows(2).all(|pair| pair[0].end < pair[1].start));
            }
        }
    }
}

#[cfg(test)]
mod spans_tests {
    use super::*;

    #[test]
    fn each_part_lies_in_the_span_that_is_found_for_its_queue() {
        let mut at = 0;
        let sizes = (0..3_000_u32).map(|n| if n % 97 == 0 { 40_000 } else { 20 + n % 1_500 });
        let parts: Vec<(u64, BodyPart)> = (0..)
            .zip(sizes)
            .map(|(n, bytes): (u64, u32)| {
                let part = BodyPart { at, bytes };
                at += bytes;
                (n * 3, part)
            })
            .collect();
        let spans = Spans::of(4_096, &parts, Spans::default());
        for (queue, part) in &parts {
            let (span, start) = (spans.find(*queue), 4_096 + part.at);
            assert!(span.at <= start && start + part.bytes <= span.at + span.bytes, "{queue}");
            assert!(
                span.bytes == part.bytes || span.bytes < SHARED_SPAN_BYTES_MAX,
                "{queue}: {span:?} of {part:?}"
            );
        }
        assert!(spans.starts.len() < at as usize / SPAN_BYTES as usize + parts.len() / 40);
        assert_eq!(Spans::default().find(7), BodyPart::default());
    }
}
