//! The index of one queue: which segment holds which of its offsets, and which are live.
//!
//! A queue's messages are grouped in *runs*: ascending offsets in one segment. A queue therefore needs one run per
//! segment, however many messages it has, and a run takes a few bytes (layout in `runs`). A gap of settled offsets
//! does not end a run: messages consumed before their commit are never written, and the gaps that they leave must
//! take no memory. When the compactor copies a message, the index moves the message to a run of the new segment.
//!
//! # Invariants
//! - An offset in a run is live and lies in the run's segment, or it is settled.
//! - Runs are ascending, do not overlap, and contain at least one live offset.
//! - `live` is the number of offsets in runs that are not settled.

use std::collections::BTreeMap;

use super::record::Range;
use super::runs::{Run, Runs, share_of};
use super::settled::SettledSet;

/// Corrects a delivered watermark that is higher than the offset up to which messages were really delivered. A clean
/// stop writes it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(super) struct WatermarkReset {
    /// The highest watermark at the clean stop. The correction is void if the log contains a higher watermark.
    pub(super) watermark: u64,
    /// The first offset that was certainly not delivered.
    pub(super) offset: u64,
}

/// The index of one queue.
#[derive(Clone, Debug)]
pub struct QueueIndex {
    /// Locations of its live messages.
    pub runs: Runs,
    /// Settled offsets.
    pub settled: SettledSet,
    /// Number of live messages.
    pub live: u64,
    /// The highest watermark in the log: messages with smaller offsets may have been delivered. 0 if there is no
    /// watermark.
    pub watermark: u64,
    /// The correction of `watermark` by the last clean stop.
    pub(super) watermark_reset: WatermarkReset,
    /// Whether the queue is deleted.
    pub gone: bool,
    /// The oldest segment with settlements or watermarks of this queue.
    pub(super) settled_since: u64,
    /// The first and the last segment with messages of this queue, settled messages included. If there are no
    /// messages, the first is above the last.
    segment_bounds: (u64, u64),
    /// One above the highest offset of a message that was seen.
    messages_end: u64,
    /// `None` if all its values are those of an ordinary queue.
    rare: Option<Box<RareParts>>,
}

/// What most queues do not have: a deletion, and live messages with chunked bodies.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct RareParts {
    /// The newest two segments that contain the deletion of the queue, newest first; 0 for none.
    deletion_segments: [u64; 2],
    /// Live messages with chunked bodies: the body's id by offset.
    large: BTreeMap<u64, u64>,
    /// Bytes of the chunks of those bodies.
    large_bytes: u64,
}

impl Default for QueueIndex {
    fn default() -> Self {
        Self {
            runs: Runs::default(),
            settled: SettledSet::default(),
            live: 0,
            watermark: 0,
            watermark_reset: WatermarkReset::default(),
            gone: false,
            settled_since: u64::MAX,
            segment_bounds: (u64::MAX, 0),
            messages_end: 0,
            rare: None,
        }
    }
}

/// The effect of a message record on a queue index.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum AddOutcome {
    /// The message is settled, or its queue is deleted.
    Dead,
    /// The index already contains a copy in the same segment.
    Again,
    /// The index contained a copy in another segment, which the new copy replaces. Contains the old copy's segment
    /// and bytes.
    Moved(u64, u32),
    /// The message is new to the index.
    New,
}

/// The effect of a settlement.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum SettleEffect {
    /// Live messages were settled. Contains their segment, their number and their bytes.
    Live(u64, u32, u32),
    /// Contains offsets that were not settled before.
    Offsets(Range),
}

/// The messages that one fetch reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct FetchPlan {
    pub segment: u64,
    /// End of the offsets that this fetch covers, exclusive.
    pub end: u64,
    /// The offsets of the run, from which the search in the footer estimates where an offset lies.
    pub hint: Range,
}

impl QueueIndex {
    /// Returns the next free offset: no message, settlement or delivery has used it.
    pub fn next_offset(&self) -> u64 {
        self.messages_end.max(self.settled.end()).max(self.watermark)
    }

    /// Returns the watermark, corrected by the last clean stop: messages from this offset on were certainly not
    /// delivered.
    pub fn delivered_below(&self) -> u64 {
        let WatermarkReset { watermark, offset } = self.watermark_reset;
        if watermark == self.watermark { offset } else { self.watermark }
    }

    /// Returns the bytes of its live messages in the log, chunks included. Exact after a start; an estimate after
    /// messages were settled ([`Run::bytes`]).
    pub fn live_bytes(&self) -> u64 {
        self.runs.iter().map(|run| u64::from(run.bytes)).sum::<u64>() + self.large_bytes()
    }

    /// Heap bytes of a queue whose messages are all settled, this struct included.
    pub(super) const EMPTY_HEAP_BYTES: usize = size_of::<Self>() + 3 * ALLOCATION_BYTES;

    /// Returns the approximate heap bytes, this struct included.
    pub(super) fn heap_bytes(&self) -> usize {
        size_of::<Self>()
            + self.runs.heap_bytes(ALLOCATION_BYTES)
            + self.settled.heap_bytes(ALLOCATION_BYTES)
            + self.rare.as_ref().map_or(0, |rare| rare.heap_bytes())
            + 3 * ALLOCATION_BYTES
    }

    fn large_bytes(&self) -> u64 {
        self.rare.as_ref().map_or(0, |rare| rare.large_bytes)
    }

    /// Changes the rare parts, which have no memory while they have their usual values.
    fn change_rare(&mut self, change: impl FnOnce(&mut RareParts)) {
        let mut rare = self.rare.take().unwrap_or_default();
        change(&mut rare);
        self.rare = Some(rare).filter(|rare| **rare != RareParts::default());
    }

    /// Adds a live message with a chunked body. `bytes` are those of the body's chunks.
    pub(super) fn add_large(&mut self, offset: u64, body: u64, bytes: u64) {
        self.change_rare(|rare| {
            rare.large.insert(offset, body);
            rare.large_bytes += bytes;
        });
    }

    /// Removes a message with a chunked body. `bytes` are those of the body's chunks.
    pub(super) fn remove_large(&mut self, offset: u64, bytes: u64) {
        self.change_rare(|rare| {
            rare.large.remove(&offset);
            rare.large_bytes = rare.large_bytes.saturating_sub(bytes);
        });
    }

    /// Returns the offsets of live messages with chunked bodies in `range`, ascending, each with its body's id.
    pub(super) fn large_in(&self, range: Range) -> impl Iterator<Item = (u64, u64)> + '_ {
        let rare = self.rare.iter();
        rare.flat_map(move |rare| rare.large.range(range.start..range.end))
            .map(|(offset, body)| (*offset, *body))
    }

    /// Frees memory that is kept for reuse.
    pub(super) fn release_memory(&mut self) {
        self.runs.release_memory();
        self.settled.release_memory();
    }

    /// Returns the first and the last segment with records of this queue, live or settled; `None` if there
    /// are none.
    pub(super) fn segments_between(&self) -> Option<(u64, u64)> {
        let (first, last) = self.segment_bounds;
        (first <= last).then_some(self.segment_bounds)
    }

    /// Returns the segment that contains the message at `offset`; `None` if there is no live message at this offset.
    pub fn segment_of(&self, offset: u64) -> Option<u64> {
        if self.settled.contains(offset) {
            return None;
        }
        self.runs.around(offset).map(|run| run.segment)
    }

    /// Adds a message that was found in `segment`. `bytes` is its share of the record.
    pub(super) fn add(&mut self, offset: u64, segment: u64, bytes: u32) -> AddOutcome {
        self.extend_bounds(segment);
        self.messages_end = self.messages_end.max(offset + 1);
        if self.gone || self.settled.contains(offset) {
            return AddOutcome::Dead;
        }
        match self.runs.around(offset) {
            Some(run) if run.segment == segment => AddOutcome::Again,
            Some(run) => {
                let removed_bytes = self.remove_from_run(run, offset, bytes);
                self.add_to_run(Range { start: offset, end: offset + 1 }, segment, bytes);
                AddOutcome::Moved(run.segment, removed_bytes)
            }
            None => {
                self.add_to_run(Range { start: offset, end: offset + 1 }, segment, bytes);
                self.live += 1;
                AddOutcome::New
            }
        }
    }

    /// Returns the lowest offset such that all messages with this or a higher offset are certainly new to the index
    /// and not settled.
    pub(super) fn first_new_offset(&self) -> u64 {
        if self.gone { u64::MAX } else { self.messages_end.max(self.settled.end()) }
    }

    /// Adds contiguous messages of `segment`, whose offsets are at least [`Self::first_new_offset`].
    pub(super) fn add_new(&mut self, offsets: Range, segment: u64, bytes: u32) {
        assert!(offsets.start >= self.first_new_offset(), "a message is noted twice");
        self.extend_bounds(segment);
        self.messages_end = offsets.end;
        self.live += offsets.end - offsets.start;
        self.add_to_run(offsets, segment, bytes);
    }

    /// Adds live messages that are in no run, to the run before them or to a new run.
    fn add_to_run(&mut self, offsets: Range, segment: u64, bytes: u32) {
        let (Range { start, end }, live) = (offsets, (offsets.end - offsets.start) as u32);
        let is_free = |from| self.settled.contains_all(Range { start: from, end: start });
        let before = self.runs.before(start);
        let before = before.filter(|run| run.segment == segment && is_free(run.offsets.end));
        if let Some(run) = before.and_then(|run| self.runs.uncompress(run.offsets.start)) {
            run.offsets.end = end;
            run.live += live;
            run.bytes += bytes;
            return;
        }
        self.runs.insert(Run { offsets, segment, live, bytes });
    }

    /// Removes a live message from its run, and splits the run if necessary. Returns the number of bytes by which the
    /// run shrinks.
    fn remove_from_run(&mut self, mut run: Run, offset: u64, bytes: u32) -> u32 {
        let start = run.offsets.start;
        let before = Range { start, end: offset };
        let after = Range { start: offset + 1, end: run.offsets.end };
        let removed_bytes = if run.live == 1 { run.bytes } else { bytes.min(run.bytes) };
        run.live -= 1;
        run.bytes -= removed_bytes;
        if run.live == 0 {
            self.runs.replace(start, &[]);
        } else if self.settled.contains_all(before) {
            self.runs.replace(start, &[Run { offsets: after, ..run }]);
        } else if self.settled.contains_all(after) {
            self.runs.replace(start, &[Run { offsets: before, ..run }]);
        } else {
            let live = (before.end - before.start - self.settled.count_in(before)) as u32;
            let bytes = share_of(run.bytes, live, run.live);
            let first = Run { offsets: before, live, bytes, ..run };
            let rest = Run { offsets: after, live: run.live - live, bytes: run.bytes - bytes, ..run };
            self.runs.replace(start, &[first, rest]);
        }
        removed_bytes
    }

    /// Records that `segment` contains the deletion of the queue.
    pub(super) fn note_gone(&mut self, segment: u64) {
        self.gone = true;
        let [newest, _] = self.deletion_segments();
        if newest != segment {
            self.change_rare(|rare| rare.deletion_segments = [segment, newest]);
        }
    }

    fn deletion_segments(&self) -> [u64; 2] {
        self.rare.as_ref().map_or([0; 2], |rare| rare.deletion_segments)
    }

    /// Returns the segment that contains the deletion of the queue, if it is the only one and not `active`.
    pub(super) fn only_deletion_segment(&self, active: u64) -> Option<u64> {
        let [only, other] = self.deletion_segments();
        (self.gone && other == 0 && only != active).then_some(only)
    }

    /// Extends the range of segments with messages of this queue.
    fn extend_bounds(&mut self, segment: u64) {
        let (first, last) = self.segment_bounds;
        self.segment_bounds = (first.min(segment), last.max(segment));
    }

    /// Settles offsets and passes the effects to `report`, one for each run concerned and one for each new range.
    pub(super) fn settle(&mut self, range: Range, mut report: impl FnMut(&mut Self, SettleEffect)) {
        let mut settled = core::mem::take(&mut self.settled);
        settled.insert(range, |fresh| {
            self.remove_settled(fresh, &mut report);
            report(self, SettleEffect::Offsets(fresh));
        });
        self.settled = settled;
    }

    /// Removes newly settled offsets from their runs.
    fn remove_settled(&mut self, fresh: Range, report: &mut impl FnMut(&mut Self, SettleEffect)) {
        let mut runs = core::mem::take(&mut self.runs);
        runs.retain_in(fresh, |run| {
            // `fresh` contains no offsets that were settled before, so all its offsets within a run are live.
            let count = (run.offsets.end.min(fresh.end) - run.offsets.start.max(fresh.start)) as u32;
            let bytes = share_of(run.bytes, count, run.live);
            run.bytes -= bytes;
            run.live -= count;
            self.live -= u64::from(count);
            report(self, SettleEffect::Live(run.segment, count, bytes));
            run.live > 0
        });
        self.runs = runs;
    }

    /// Calls `each` once for each run, with the segment and a high estimate of the number and bytes of the live
    /// messages in `range`. Settled offsets in the overlap are counted as well, up to the number of live messages in
    /// the run.
    pub(super) fn for_each_live_part(&self, range: Range, mut each: impl FnMut(u64, u32, u32)) {
        let runs = self.runs.iter_from(range.start);
        for run in runs.take_while(|run| run.offsets.start < range.end) {
            let count = run.offsets.end.min(range.end) - run.offsets.start.max(range.start);
            let count = count.min(run.live.into()) as u32;
            each(run.segment, count, share_of(run.bytes, count, run.live));
        }
    }

    /// Forgets removed segments. They contain no live messages, and so no runs.
    pub(super) fn forget_segments(&mut self, are_removed: impl Fn(&u64) -> bool) {
        let before = self.deletion_segments();
        let [newer, older] = before.map(|segment| if are_removed(&segment) { 0 } else { segment });
        let left = if newer == 0 { [older, 0] } else { [newer, older] };
        if left != before {
            self.change_rare(|rare| rare.deletion_segments = left);
        }
        // Free the memory of a backlog after it was consumed.
        if self.live == 0 {
            self.release_memory();
        }
    }

    /// Returns the live offsets as ascending ranges; [`QueueIndex::live`] offsets in total.
    pub fn live_ranges(&self) -> impl Iterator<Item = Range> + '_ {
        self.live_ranges_from(0)
    }

    /// Returns the live offsets from `start` on, as ascending ranges.
    pub fn live_ranges_from(&self, start: u64) -> impl Iterator<Item = Range> + '_ {
        let mut pieces = self.pieces_from(start).map(|(piece, _)| piece).peekable();
        core::iter::from_fn(move || {
            let mut range = pieces.next()?;
            while let Some(next) = pieces.next_if(|next| next.start == range.end) {
                range.end = next.end;
            }
            Some(range)
        })
    }

    /// Returns contiguous live offsets from `start` on, each with its run.
    fn pieces_from(&self, start: u64) -> impl Iterator<Item = (Range, Run)> + '_ {
        let mut runs = self.runs.iter_from(start);
        let mut holes = self.settled.iter_from(start).peekable();
        let (mut at, mut run) = (start, runs.next());
        core::iter::from_fn(move || {
            loop {
                let this = run?;
                at = at.max(this.offsets.start);
                if at >= this.offsets.end {
                    run = runs.next();
                    continue;
                }
                while holes.next_if(|hole| hole.end <= at).is_some() {}
                let start = at;
                match holes.peek() {
                    Some(hole) if hole.start <= at => at = hole.end,
                    hole => {
                        let end = this.offsets.end;
                        at = hole.map_or(end, |hole| end.min(hole.start));
                        return Some((Range { start, end: at }, this));
                    }
                }
            }
        })
    }

    /// Plans the read of the first live messages within `offsets`, all in one segment.
    ///
    /// Stores the live offsets that the fetch reads in `wanted`, up to its capacity. Returns `None` if no offset in
    /// `offsets` is live.
    pub(super) fn plan(&self, offsets: Range, wanted: &mut Vec<Range>) -> Option<FetchPlan> {
        wanted.clear();
        let mut pieces = self.pieces_from(offsets.start).peekable();
        let (_, run) = *pieces.peek().filter(|(piece, _)| piece.start < offsets.end)?;
        let mut end = run.offsets.end.min(offsets.end);
        for (piece, _) in pieces.take_while(|(piece, _)| piece.start < end) {
            if wanted.len() == wanted.capacity() {
                end = wanted.last().map_or(end, |last| last.end);
                break;
            }
            wanted.push(Range { start: piece.start, end: piece.end.min(end) });
        }
        Some(FetchPlan { segment: run.segment, end, hint: run.offsets })
    }
}

impl RareParts {
    /// Returns the approximate heap bytes, this struct included.
    fn heap_bytes(&self) -> usize {
        size_of::<Self>() + ALLOCATION_BYTES + tree_bytes::<u64, u64>(self.large.len())
    }
}

/// Approximate overhead of the allocator per allocation, in bytes.
pub(super) const ALLOCATION_BYTES: usize = 16;

/// Returns a high estimate of the bytes of a tree's nodes, which are at least half full.
pub(super) const fn tree_bytes<K, V>(entries: usize) -> usize {
    entries * (2 * (size_of::<K>() + size_of::<V>()) + ALLOCATION_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A simple model: the segment of every offset seen, and whether it is settled.
    #[derive(Default)]
    struct Model {
        places: BTreeMap<u64, u64>,
        settled: BTreeMap<u64, bool>,
    }

    impl Model {
        fn live(&self) -> Vec<(u64, u64)> {
            let is_live = |offset: &u64| !self.settled.contains_key(offset);
            self.places.iter().filter(|(at, _)| is_live(at)).map(|(at, segment)| (*at, *segment)).collect()
        }
    }

    fn settle(queue: &mut QueueIndex, range: Range) {
        queue.settle(range, |_, _| {});
    }

    fn check(queue: &QueueIndex, model: &Model) {
        let listed: Vec<(u64, u64)> = queue
            .live_ranges()
            .flat_map(|range| range.start..range.end)
            .map(|offset| (offset, queue.segment_of(offset).unwrap_or(0)))
            .collect();
        assert_eq!(listed, model.live());
        assert_eq!(queue.live, listed.len() as u64);
        assert_eq!(
            (queue.live_bytes(), queue.runs.iter().map(|run| u64::from(run.live)).sum()),
            (queue.live * 10, queue.live)
        );
        let ends = queue.runs.iter().map(|run| run.offsets.end);
        assert!(ends.zip(queue.runs.iter().skip(1)).all(|(end, next)| end <= next.offsets.start));
        assert!(queue.runs.iter().all(|run| run.live > 0));
        let mut wanted = Vec::with_capacity(3);
        let (mut at, mut planned) = (0, Vec::new());
        while let Some(plan) = queue.plan(Range { start: at, end: u64::MAX }, &mut wanted) {
            assert!(!wanted.is_empty() && plan.end > at);
            planned.extend(wanted.iter().flat_map(|w| w.start..w.end).map(|at| (at, plan.segment)));
            at = plan.end;
        }
        assert_eq!(planned, listed, "every live offset is planned once, from its place");
    }

    proptest! {
        #[test]
        fn what_is_live_is_exact(
            steps in prop::collection::vec((0_u8..8, 0_u64..60, 1_u64..6), 1..120),
        ) {
            let (mut queue, mut model) = (QueueIndex::default(), Model::default());
            let (mut segment, mut next) = (1, 0);
            for (step, offset, length) in steps {
                match step {
                    // The next messages. Some may be settled already, some offsets are never written.
                    0..4 => {
                        next += if step == 3 { length } else { 0 };
                        for offset in next..next + length {
                            queue.add(offset, segment, 10);
                            model.places.insert(offset, segment);
                        }
                        next += length;
                    }
                    4 => segment += 1,
                    // A copy, or the same record seen again.
                    5 => {
                        let known = queue.segment_of(offset).is_some();
                        if known {
                            queue.add(offset, segment, 10);
                            model.places.insert(offset, segment);
                        }
                    }
                    _ => {
                        settle(&mut queue, Range { start: offset, end: offset + length });
                        model.settled.extend((offset..offset + length).map(|at| (at, true)));
                    }
                }
                check(&queue, &model);
            }
        }
    }

    #[test]
    fn holes_that_are_settled_cost_no_run() {
        let mut queue = QueueIndex::default();
        for offset in (0..1000).step_by(3) {
            settle(&mut queue, Range { start: offset + 1, end: offset + 3 });
            queue.add(offset, 1 + offset / 500, 10);
        }
        assert_eq!((queue.runs.len(), queue.live), (2, 334));
    }
}
