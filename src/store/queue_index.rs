//! What memory knows of one queue: which segment holds which of its offsets, and which are live.
//!
//! A queue's messages come in *runs*: rising offsets in one segment, so a queue costs a run per segment
//! however many messages it has. Offsets that were settled before the next one was written do not end a run:
//! what was consumed before its commit is never written at all, and such holes must cost nothing. A message
//! that the cleaner copies leaves its run for one of the segment it is copied to.
//!
//! Always true: an offset of a run is live, and lies in the run's segment, or it is settled; runs rise, do
//! not overlap, and have something live in them; `live` is the number of offsets in runs that are not
//! settled.

use std::collections::BTreeMap;

use super::parts::Part;
use super::ranges::RangeSet;
use super::record::Range;

/// Offsets whose live records lie in one segment; those that are missing are settled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// The offsets.
    pub offsets: Range,
    /// The segment.
    pub segment: u64,
    /// Live messages.
    pub live: u32,
    /// Bytes of their records; a record for several queues is shared. After some were settled that is what
    /// their number makes likely.
    pub bytes: u32,
}

/// Up to where a queue had been delivered when the broker was stopped, although a mark ran ahead.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(super) struct Rested {
    /// The highest mark of then; a higher one makes this void.
    pub(super) marked: u64,
    /// The first offset that surely was not delivered.
    pub(super) offset: u64,
}

/// What is known of one queue.
#[derive(Clone, Debug)]
pub struct QueueIndex {
    /// Where its live messages lie.
    pub runs: Vec<Run>,
    /// Settled offsets.
    pub settled: RangeSet,
    /// Live messages.
    pub live: u64,
    /// The highest mark: nothing from there on was delivered; 0 when there is none.
    pub delivered_through: u64,
    /// What the last clean stop said of that.
    pub(super) rested: Rested,
    /// The queue is deleted.
    pub gone: bool,
    /// The newest two segments that say so; 0 for none.
    gone_in: [u64; 2],
    /// Settlements and marks lie in this segment and later ones.
    pub(super) settled_since: u64,
    /// Segments with messages of this queue, dead ones too, and its part of their footers.
    held: Vec<(u64, Part)>,
    /// Live messages whose bodies are chunks.
    pub(super) large: BTreeMap<u64, u64>,
    /// Bytes of those chunks.
    pub(super) large_bytes: u64,
    next_offset: u64,
}

impl Default for QueueIndex {
    fn default() -> Self {
        Self {
            runs: Vec::new(),
            settled: RangeSet::default(),
            live: 0,
            delivered_through: 0,
            rested: Rested::default(),
            gone: false,
            gone_in: [0; 2],
            settled_since: u64::MAX,
            held: Vec::new(),
            large: BTreeMap::new(),
            large_bytes: 0,
            next_offset: 0,
        }
    }
}

/// What a record means for a queue that already knows some.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Seen {
    /// It is settled.
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
    pub part: Part,
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
        let Rested { marked, offset } = self.rested;
        if marked == self.delivered_through { offset } else { self.delivered_through }
    }

    /// Bytes of the log that its live messages take, chunks included: exact after a start, later as exact as
    /// [`Run::bytes`].
    pub fn live_bytes(&self) -> u64 {
        self.runs.iter().map(|run| u64::from(run.bytes)).sum::<u64>() + self.large_bytes
    }

    /// Bytes it takes on the heap beside itself, about.
    pub(super) fn heap_bytes(&self) -> usize {
        self.runs.capacity() * size_of::<Run>()
            + self.held.capacity() * size_of::<(u64, Part)>()
            + self.settled.heap_bytes()
            + tree_bytes::<u64, u64>(self.large.len())
            + 3 * ALLOCATION_BYTES
    }

    /// How many segments have messages of this queue, dead ones too.
    pub(super) const fn held(&self) -> usize {
        self.held.len()
    }

    /// Whether any record of this queue, dead or alive, lies in a segment that `counts`.
    pub(super) fn is_held_by(&self, counts: impl Fn(u64) -> bool) -> bool {
        self.held.iter().any(|(segment, _)| counts(*segment))
    }

    /// Where the first run that ends behind `offset` is.
    fn at(&self, offset: u64) -> usize {
        self.runs.partition_point(|run| run.offsets.end <= offset)
    }

    /// The segment that holds a live message.
    pub fn segment_of(&self, offset: u64) -> Option<u64> {
        if self.settled.contains(offset) {
            return None;
        }
        let run = self.runs.get(self.at(offset)).filter(|run| run.offsets.start <= offset);
        run.map(|run| run.segment)
    }

    /// Takes note of a message in `segment`.
    pub(super) fn add(&mut self, offset: u64, segment: u64, bytes: u32) -> Seen {
        self.hold(segment);
        self.next_offset = self.next_offset.max(offset + 1);
        if self.gone || self.settled.contains(offset) {
            return Seen::Dead;
        }
        let at = self.at(offset);
        match self.runs.get(at).filter(|run| run.offsets.start <= offset).map(|run| run.segment) {
            Some(old) if old == segment => Seen::Again,
            Some(old) => {
                let lost = self.take_out(at, offset, bytes);
                self.put_in(offset, segment, bytes);
                Seen::Moved(old, lost)
            }
            None => {
                self.put_in(offset, segment, bytes);
                self.live += 1;
                Seen::New
            }
        }
    }

    /// Puts a live message that is in no run into one.
    fn put_in(&mut self, offset: u64, segment: u64, bytes: u32) {
        let at = self.at(offset);
        let end = offset + 1;
        if let Some(run) = at.checked_sub(1).and_then(|before| self.runs.get_mut(before))
            && run.segment == segment
            && self.settled.contains_all(Range { start: run.offsets.end, end: offset })
        {
            run.offsets.end = end;
            run.live += 1;
            run.bytes += bytes;
            return;
        }
        self.runs.insert(at, Run { offsets: Range { start: offset, end }, segment, live: 1, bytes });
    }

    /// Takes a live message out of the run that has it; the bytes that the run loses.
    fn take_out(&mut self, at: usize, offset: u64, bytes: u32) -> u32 {
        let run = &mut self.runs[at];
        let before = Range { start: run.offsets.start, end: offset };
        let after = Range { start: offset + 1, end: run.offsets.end };
        let lost = if run.live == 1 { run.bytes } else { bytes.min(run.bytes) };
        run.live -= 1;
        run.bytes -= lost;
        if run.live == 0 {
            self.runs.remove(at);
        } else if self.settled.contains_all(before) {
            run.offsets = after;
        } else if self.settled.contains_all(after) {
            run.offsets = before;
        } else {
            let live = (before.end - before.start - self.settled.count_in(before)) as u32;
            let bytes = share_of(run.bytes, live, run.live);
            let rest = Run { offsets: after, live: run.live - live, bytes: run.bytes - bytes, ..*run };
            *run = Run { offsets: before, live, bytes, ..*run };
            self.runs.insert(at + 1, rest);
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

    /// Whether one segment alone, which is not `active`, says that it is deleted, and another has messages of
    /// it: lost, it would have them back.
    pub(super) fn is_gone_once(&self, active: u64) -> bool {
        let [only, other] = self.gone_in;
        self.gone && other == 0 && only != active && self.is_held_by(|segment| segment != only)
    }

    fn hold(&mut self, segment: u64) {
        if self.held.last().is_some_and(|(last, _)| *last == segment) {
            return;
        }
        if let Err(at) = self.held.binary_search_by_key(&segment, |(segment, _)| *segment) {
            self.held.insert(at, (segment, Part::default()));
        }
    }

    /// Where the queue's part of a sealed segment's footer lies.
    pub(super) fn set_part(&mut self, segment: u64, part: Part) {
        if let Ok(at) = self.held.binary_search_by_key(&segment, |(segment, _)| *segment) {
            self.held[at].1 = part;
        }
    }

    fn part_of(&self, segment: u64) -> Part {
        let held = self.held.binary_search_by_key(&segment, |(segment, _)| *segment);
        held.map_or(Part::default(), |at| self.held[at].1)
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
        let first = self.at(fresh.start);
        let (mut at, mut kept) = (first, first);
        while let Some(run) = self.runs.get_mut(at).filter(|run| run.offsets.start < fresh.end) {
            // All of it that was settled before is not fresh, so what is fresh is live.
            let count = (run.offsets.end.min(fresh.end) - run.offsets.start.max(fresh.start)) as u32;
            let bytes = share_of(run.bytes, count, run.live);
            run.bytes -= bytes;
            run.live -= count;
            self.live -= u64::from(count);
            let (segment, is_dead) = (run.segment, run.live == 0);
            tell(self, Lost::Live(segment, count, bytes));
            if !is_dead {
                self.runs.swap(kept, at);
                kept += 1;
            }
            at += 1;
        }
        self.runs.drain(kept..at);
    }

    /// Calls `each` with the segments that have live messages of `range`, how many, and how many bytes.
    pub(super) fn for_each_held(&self, range: Range, mut each: impl FnMut(u64, u32, u32)) {
        let runs = &self.runs[self.at(range.start)..];
        for run in runs.iter().take_while(|run| run.offsets.start < range.end) {
            let count = run.offsets.end.min(range.end) - run.offsets.start.max(range.start);
            let count = count.min(run.live.into()) as u32;
            each(run.segment, count, share_of(run.bytes, count, run.live));
        }
    }

    /// Segments have left the log.
    pub(super) fn forget_segments(&mut self, have_left: impl Fn(&u64) -> bool) {
        self.held.retain(|(segment, _)| !have_left(segment));
        let [newer, older] = self.gone_in.map(|segment| if have_left(&segment) { 0 } else { segment });
        self.gone_in = if newer == 0 { [older, 0] } else { [newer, older] };
        self.runs.retain(|run| !have_left(&run.segment));
        // What a backlog took is given back when it is gone.
        self.held.shrink_to(2 * self.held.len());
        self.runs.shrink_to(2 * self.runs.len());
        self.settled.shrink_to(2 * self.settled.ranges().len());
    }

    /// Live offsets as ranges, rising: as many offsets as [`QueueIndex::live`] says.
    pub fn live_ranges(&self) -> impl Iterator<Item = Range> + '_ {
        self.live_ranges_from(0)
    }

    /// Live offsets from `start` on.
    pub fn live_ranges_from(&self, start: u64) -> impl Iterator<Item = Range> + '_ {
        let mut at = start;
        core::iter::from_fn(move || {
            let mut range = self.next_piece(at)?;
            while let Some(next) = self.next_piece(range.end).filter(|next| next.start == range.end) {
                range.end = next.end;
            }
            at = range.end;
            Some(range)
        })
    }

    /// The first live offset from `at` on, and those right behind it in the same run.
    fn next_piece(&self, mut at: u64) -> Option<Range> {
        loop {
            let run = self.runs.get(self.at(at))?.offsets;
            let start = run.start.max(at);
            match self.settled.first_from(start) {
                Some(hole) if hole.start <= start => at = hole.end,
                Some(hole) => return Some(Range { start, end: run.end.min(hole.start) }),
                None => return Some(Range { start, end: run.end }),
            }
        }
    }

    /// What to read for the first live messages within `offsets`, all in one segment: `wanted` gets exactly
    /// the live offsets, as many ranges as it has room for. `None` when nothing is live there.
    pub(super) fn plan(&self, offsets: Range, wanted: &mut Vec<Range>) -> Option<Plan> {
        wanted.clear();
        let first = self.next_piece(offsets.start).filter(|piece| piece.start < offsets.end)?.start;
        let run = self.runs.get(self.at(first))?;
        let mut through = run.offsets.end.min(offsets.end);
        let mut at = first;
        while let Some(piece) = self.next_piece(at).filter(|piece| piece.start < through) {
            if wanted.len() == wanted.capacity() {
                through = at;
                break;
            }
            at = piece.end.min(through);
            wanted.push(Range { start: piece.start, end: at });
        }
        let part = self.part_of(run.segment);
        Some(Plan { segment: run.segment, part, through, hint: run.offsets })
    }
}

/// What the allocator adds to each piece it hands out, about.
pub(super) const ALLOCATION_BYTES: usize = 16;

/// Bytes of a tree's nodes, which are half full at least.
pub(super) const fn tree_bytes<K, V>(entries: usize) -> usize {
    entries * (2 * (size_of::<K>() + size_of::<V>()) + ALLOCATION_BYTES)
}

/// What `count` of `all` messages take when all take `bytes`.
fn share_of(bytes: u32, count: u32, all: u32) -> u32 {
    (u64::from(bytes) * u64::from(count) / u64::from(all.max(1))) as u32
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
        assert!(queue.runs.windows(2).all(|pair| pair[0].offsets.end <= pair[1].offsets.start));
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
