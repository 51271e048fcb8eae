//! What memory knows of one queue: which segment holds which of its offsets, and which are live.
//!
//! A queue's messages come in *runs*: rising offsets in one segment, so a queue costs a run per segment
//! however many messages it has, and a run costs a few bytes (drawn in `runs`). Offsets that were settled
//! before the next one was written do not end a run: what was consumed before its commit is never written at
//! all, and such holes must cost nothing. A message that the cleaner copies leaves its run for one of the
//! segment it is copied to.
//!
//! Always true: an offset of a run is live, and lies in the run's segment, or it is settled; runs rise, do
//! not overlap, and have something live in them; `live` is the number of offsets in runs that are not
//! settled.

use std::collections::BTreeMap;

use super::record::Range;
use super::runs::{Run, Runs, share_of};
use super::settled::SettledSet;

/// Up to where a queue had been delivered when the broker was stopped, although a mark ran ahead.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(super) struct WatermarkReset {
    /// The highest mark of then; a higher one makes this void.
    pub(super) watermark: u64,
    /// The first offset that surely was not delivered.
    pub(super) offset: u64,
}

/// What is known of one queue.
#[derive(Clone, Debug)]
pub struct QueueIndex {
    /// Where its live messages lie.
    pub runs: Runs,
    /// Settled offsets.
    pub settled: SettledSet,
    /// Live messages.
    pub live: u64,
    /// The highest mark: nothing from there on was delivered; 0 when there is none.
    pub delivered_through: u64,
    /// What the last clean stop said of that.
    pub(super) watermark_reset: WatermarkReset,
    /// The queue is deleted.
    pub gone: bool,
    /// The newest two segments that say so; 0 for none.
    gone_in: [u64; 2],
    /// Settlements and marks lie in this segment and later ones.
    pub(super) settled_since: u64,
    /// The first and the last segment with messages of this queue, dead ones too; none when the first is
    /// behind the last.
    held: (u64, u64),
    /// Live messages whose bodies are chunks.
    pub(super) large: BTreeMap<u64, u64>,
    /// Bytes of those chunks.
    pub(super) large_bytes: u64,
    next_offset: u64,
}

impl Default for QueueIndex {
    fn default() -> Self {
        Self {
            runs: Runs::default(),
            settled: SettledSet::default(),
            live: 0,
            delivered_through: 0,
            watermark_reset: WatermarkReset::default(),
            gone: false,
            gone_in: [0; 2],
            settled_since: u64::MAX,
            held: (u64::MAX, 0),
            large: BTreeMap::new(),
            large_bytes: 0,
            next_offset: 0,
        }
    }
}

/// What a record means for a queue that already knows some.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Seen {
    /// The message is settled.
    Dead,
    /// Another copy in the same segment is known.
    Again,
    /// Another copy, in the segment named, was its place until now, for so many bytes.
    Moved(u64, u32),
    /// It was not known.
    New,
}

/// What a settlement costs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Lost {
    /// A segment loses so many live messages of so many bytes.
    Live(u64, u32, u32),
    /// These offsets were not settled before.
    Offsets(Range),
}

/// What one fetch reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Plan {
    pub segment: u64,
    /// Where the offsets that this fetch covers end.
    pub through: u64,
    /// The offsets that the part is likely to be about.
    pub hint: Range,
}

impl QueueIndex {
    /// The offset that the next message may take: no message, settlement or delivery ever had it.
    pub fn next_offset(&self) -> u64 {
        self.next_offset.max(self.settled.end()).max(self.delivered_through)
    }

    /// The first offset that surely was not delivered.
    pub fn delivered_below(&self) -> u64 {
        let WatermarkReset { watermark, offset } = self.watermark_reset;
        if watermark == self.delivered_through { offset } else { self.delivered_through }
    }

    /// Bytes of the log that its live messages take, chunks included: exact after a start, later as exact as
    /// [`Run::bytes`].
    pub fn live_bytes(&self) -> u64 {
        self.runs.iter().map(|run| u64::from(run.bytes)).sum::<u64>() + self.large_bytes
    }

    /// Bytes it takes on the heap when all its messages are settled, itself included.
    pub(super) const STANDING_BYTES: usize = size_of::<Self>() + 3 * ALLOCATION_BYTES;

    /// Bytes it takes on the heap, itself included, about.
    pub(super) fn heap_bytes(&self) -> usize {
        size_of::<Self>()
            + self.runs.heap_bytes(ALLOCATION_BYTES)
            + self.settled.heap_bytes(ALLOCATION_BYTES)
            + tree_bytes::<u64, u64>(self.large.len())
            + 3 * ALLOCATION_BYTES
    }

    /// Gives back what is kept to be used again.
    pub(super) fn give_back(&mut self) {
        self.runs.give_back();
        self.settled.give_back();
    }

    /// The segments between which every record of this queue lies, dead or alive, both included; `None` when
    /// there is none.
    pub(super) fn held_between(&self) -> Option<(u64, u64)> {
        let (first, last) = self.held;
        (first <= last).then_some(self.held)
    }

    /// The segment that holds a live message.
    pub fn segment_of(&self, offset: u64) -> Option<u64> {
        if self.settled.contains(offset) {
            return None;
        }
        self.runs.around(offset).map(|run| run.segment)
    }

    /// Takes note of a message in `segment`.
    pub(super) fn add(&mut self, offset: u64, segment: u64, bytes: u32) -> Seen {
        self.hold(segment);
        self.next_offset = self.next_offset.max(offset + 1);
        if self.gone || self.settled.contains(offset) {
            return Seen::Dead;
        }
        match self.runs.around(offset) {
            Some(run) if run.segment == segment => Seen::Again,
            Some(run) => {
                let lost = self.take_out(run, offset, bytes);
                self.put_in(Range { start: offset, end: offset + 1 }, segment, bytes);
                Seen::Moved(run.segment, lost)
            }
            None => {
                self.put_in(Range { start: offset, end: offset + 1 }, segment, bytes);
                self.live += 1;
                Seen::New
            }
        }
    }

    /// From here on every message is new: none of them was seen before, settled or deleted.
    pub(super) fn new_from(&self) -> u64 {
        if self.gone { u64::MAX } else { self.next_offset.max(self.settled.end()) }
    }

    /// Takes note of messages in `segment` from [`Self::new_from`] on.
    pub(super) fn add_new(&mut self, offsets: Range, segment: u64, bytes: u32) {
        assert!(offsets.start >= self.new_from(), "a message is noted twice");
        self.hold(segment);
        self.next_offset = offsets.end;
        self.live += offsets.end - offsets.start;
        self.put_in(offsets, segment, bytes);
    }

    /// Puts live messages that are in no run into one.
    fn put_in(&mut self, offsets: Range, segment: u64, bytes: u32) {
        let (Range { start, end }, live) = (offsets, (offsets.end - offsets.start) as u32);
        let is_free = |from| self.settled.contains_all(Range { start: from, end: start });
        let before = self.runs.before(start);
        let before = before.filter(|run| run.segment == segment && is_free(run.offsets.end));
        if let Some(run) = before.and_then(|run| self.runs.heat(run.offsets.start)) {
            run.offsets.end = end;
            run.live += live;
            run.bytes += bytes;
            return;
        }
        self.runs.insert(Run { offsets, segment, live, bytes });
    }

    /// Takes a live message out of the run that has it; the bytes that the run loses.
    fn take_out(&mut self, mut run: Run, offset: u64, bytes: u32) -> u32 {
        let start = run.offsets.start;
        let before = Range { start, end: offset };
        let after = Range { start: offset + 1, end: run.offsets.end };
        let lost = if run.live == 1 { run.bytes } else { bytes.min(run.bytes) };
        run.live -= 1;
        run.bytes -= lost;
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
        lost
    }

    /// A segment says that it is deleted.
    pub(super) const fn note_gone(&mut self, segment: u64) {
        self.gone = true;
        if self.gone_in[0] != segment {
            self.gone_in = [segment, self.gone_in[0]];
        }
    }

    /// The one segment that says that it is deleted, when there is no other and it is not `active`.
    pub(super) fn gone_only_in(&self, active: u64) -> Option<u64> {
        let [only, other] = self.gone_in;
        (self.gone && other == 0 && only != active).then_some(only)
    }

    fn hold(&mut self, segment: u64) {
        let (first, last) = self.held;
        self.held = (first.min(segment), last.max(segment));
    }

    /// Settles offsets and tells what that costs, part by part.
    pub(super) fn settle(&mut self, range: Range, mut tell: impl FnMut(&mut Self, Lost)) {
        let mut settled = core::mem::take(&mut self.settled);
        settled.insert(range, |fresh| {
            self.lose(fresh, &mut tell);
            tell(self, Lost::Offsets(fresh));
        });
        self.settled = settled;
    }

    fn lose(&mut self, fresh: Range, tell: &mut impl FnMut(&mut Self, Lost)) {
        let mut runs = core::mem::take(&mut self.runs);
        runs.retain_in(fresh, |run| {
            // All of it that was settled before is not fresh, so what is fresh is live.
            let count = (run.offsets.end.min(fresh.end) - run.offsets.start.max(fresh.start)) as u32;
            let bytes = share_of(run.bytes, count, run.live);
            run.bytes -= bytes;
            run.live -= count;
            self.live -= u64::from(count);
            tell(self, Lost::Live(run.segment, count, bytes));
            run.live > 0
        });
        self.runs = runs;
    }

    /// Calls `each` with the segments that have live messages of `range`, how many, and how many bytes.
    pub(super) fn for_each_held(&self, range: Range, mut each: impl FnMut(u64, u32, u32)) {
        let runs = self.runs.iter_from(range.start);
        for run in runs.take_while(|run| run.offsets.start < range.end) {
            let count = run.offsets.end.min(range.end) - run.offsets.start.max(range.start);
            let count = count.min(run.live.into()) as u32;
            each(run.segment, count, share_of(run.bytes, count, run.live));
        }
    }

    /// Segments have left the log. Nothing lives in one that leaves, so no run does.
    pub(super) fn forget_segments(&mut self, have_left: impl Fn(&u64) -> bool) {
        let [newer, older] = self.gone_in.map(|segment| if have_left(&segment) { 0 } else { segment });
        self.gone_in = if newer == 0 { [older, 0] } else { [newer, older] };
        // What a backlog took is given back when it is gone.
        if self.live == 0 {
            self.give_back();
        }
    }

    /// Live offsets as ranges, rising: as many offsets as [`QueueIndex::live`] says.
    pub fn live_ranges(&self) -> impl Iterator<Item = Range> + '_ {
        self.live_ranges_from(0)
    }

    /// Live offsets from `start` on.
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

    /// Live offsets from `start` on which lie together, and the run of each.
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

    /// What to read for the first live messages within `offsets`, all in one segment: `wanted` gets exactly
    /// the live offsets, as many ranges as it has room for. `None` when nothing is live there.
    pub(super) fn plan(&self, offsets: Range, wanted: &mut Vec<Range>) -> Option<Plan> {
        wanted.clear();
        let mut pieces = self.pieces_from(offsets.start).peekable();
        let (_, run) = *pieces.peek().filter(|(piece, _)| piece.start < offsets.end)?;
        let mut through = run.offsets.end.min(offsets.end);
        for (piece, _) in pieces.take_while(|(piece, _)| piece.start < through) {
            if wanted.len() == wanted.capacity() {
                through = wanted.last().map_or(through, |last| last.end);
                break;
            }
            wanted.push(Range { start: piece.start, end: piece.end.min(through) });
        }
        Some(Plan { segment: run.segment, through, hint: run.offsets })
    }
}

/// What the allocator adds to each piece it hands out, about.
pub(super) const ALLOCATION_BYTES: usize = 16;

/// Bytes of a tree's nodes, which are half full at least.
pub(super) const fn tree_bytes<K, V>(entries: usize) -> usize {
    entries * (2 * (size_of::<K>() + size_of::<V>()) + ALLOCATION_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What is known the simple way: the segment of every offset seen, and whether it is settled.
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
            assert!(!wanted.is_empty() && plan.through > at);
            planned.extend(wanted.iter().flat_map(|w| w.start..w.end).map(|at| (at, plan.segment)));
            at = plan.through;
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
                    // The next messages; some may be settled already, some never come.
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
