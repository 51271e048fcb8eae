//! What memory knows of one queue: which segment holds which of its offsets, and which are live.
//!
//! A queue's messages come in *runs*: rising offsets in one segment, so a queue costs a run per segment
//! however many messages it has. Offsets that were settled before the next one was written do not end a run:
//! what was consumed before its commit is never written at all, and such holes must cost nothing. Messages
//! copied forward by the cleaner are kept one by one.
//!
//! Always true: every offset of a run that holds no record of its own is settled; runs rise and do not
//! overlap; moved messages are live; `live` is the number of offsets in runs or moved that are not settled.

use std::collections::BTreeMap;

use super::parts::Part;
use super::ranges::RangeSet;
use super::record::Range;

/// Moved messages that one fetch looks at: they are found one by one.
const FETCH_MOVED_MAX: usize = 256;

/// Offsets whose records lie in one segment; those that are missing are settled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// The offsets.
    pub offsets: Range,
    /// The segment.
    pub segment: u64,
    /// Bytes of the records.
    pub bytes: u64,
    /// The queue's part of the segment's footer.
    pub part: Part,
}

/// What is known of one queue.
#[derive(Clone, Debug)]
pub struct QueueIndex {
    /// Where its messages were first written, rising.
    pub runs: Vec<Run>,
    /// Live messages that were copied since: offset and segment.
    pub moved: BTreeMap<u64, u64>,
    /// Settled offsets.
    pub settled: RangeSet,
    /// Live messages.
    pub live: u64,
    /// The first offset that surely was not delivered; 0 when there is no mark.
    pub delivered_through: u64,
    /// The queue is deleted.
    pub gone: bool,
    /// Settlements and marks lie in this segment and later ones.
    pub(super) settled_since: u64,
    /// Segments with copies, dead ones included, and the queue's part of their footers.
    copies: Vec<(u64, Part)>,
    /// Live messages whose bodies are chunks.
    pub(super) large: BTreeMap<u64, u64>,
    next_offset: u64,
}

impl Default for QueueIndex {
    fn default() -> Self {
        Self {
            runs: Vec::new(),
            moved: BTreeMap::new(),
            settled: RangeSet::default(),
            live: 0,
            delivered_through: 0,
            gone: false,
            settled_since: u64::MAX,
            copies: Vec::new(),
            large: BTreeMap::new(),
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
    /// Another copy, in the segment named, was its place until now.
    Moved(u64),
    /// It was not known.
    New,
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

    /// Whether any record of this queue, dead or alive, lies in a segment that `counts`.
    pub(super) fn is_held_by(&self, counts: impl Fn(u64) -> bool) -> bool {
        self.runs.iter().any(|run| counts(run.segment))
            || self.copies.iter().any(|(segment, _)| counts(*segment))
    }

    fn run_of(&self, offset: u64) -> Option<&Run> {
        let at = self.runs.partition_point(|run| run.offsets.end <= offset);
        self.runs.get(at).filter(|run| run.offsets.start <= offset)
    }

    /// The segment that holds a live message.
    pub fn segment_of(&self, offset: u64) -> Option<u64> {
        if self.gone || self.settled.contains(offset) {
            return None;
        }
        self.moved.get(&offset).copied().or_else(|| self.run_of(offset).map(|run| run.segment))
    }

    /// Takes note of a message in `segment`.
    pub(super) fn add(&mut self, offset: u64, segment: u64, bytes: u64) -> Seen {
        let is_dead = self.gone || self.settled.contains(offset);
        if !is_dead && let Some(old) = self.segment_of(offset) {
            if old == segment {
                return Seen::Again;
            }
            self.moved.insert(offset, segment);
            self.note_copy(segment);
            return Seen::Moved(old);
        }
        if is_dead || offset < self.next_offset {
            self.note_copy(segment);
            if !is_dead {
                self.moved.insert(offset, segment);
            }
        } else {
            self.extend(offset, segment, bytes);
        }
        self.next_offset = self.next_offset.max(offset + 1);
        if is_dead {
            return Seen::Dead;
        }
        self.live += 1;
        Seen::New
    }

    fn extend(&mut self, offset: u64, segment: u64, bytes: u64) {
        let end = offset + 1;
        let settled = &self.settled;
        let is_next = |run: &&mut Run| {
            run.segment == segment && settled.contains_all(Range { start: run.offsets.end, end: offset })
        };
        if let Some(run) = self.runs.last_mut().filter(is_next) {
            run.offsets.end = end;
            run.bytes += bytes;
        } else {
            let offsets = Range { start: offset, end };
            self.runs.push(Run { offsets, segment, bytes, part: Part::default() });
        }
    }

    fn note_copy(&mut self, segment: u64) {
        // The run says already that the queue has records there.
        if self.runs.last().is_some_and(|run| run.segment == segment) {
            return;
        }
        if let Err(at) = self.copies.binary_search_by_key(&segment, |(segment, _)| *segment) {
            self.copies.insert(at, (segment, Part::default()));
        }
    }

    /// Where the queue's part of a sealed segment's footer lies.
    pub(super) fn set_part(&mut self, segment: u64, part: Part) {
        for run in self.runs.iter_mut().rev().take_while(|run| run.segment >= segment) {
            if run.segment == segment {
                run.part = part;
            }
        }
        if let Ok(at) = self.copies.binary_search_by_key(&segment, |(segment, _)| *segment) {
            self.copies[at].1 = part;
        }
    }

    fn part_of(&self, segment: u64) -> Part {
        let at = self.runs.partition_point(|run| run.segment < segment);
        let run = self.runs.get(at).filter(|run| run.segment == segment).map(|run| run.part);
        let copy = self.copies.binary_search_by_key(&segment, |(segment, _)| *segment);
        run.or_else(|| copy.ok().map(|at| self.copies[at].1)).unwrap_or_default()
    }

    /// Offsets that were live and are settled now; calls `lost` with segments and how many they lose.
    pub(super) fn lose(&mut self, part: Range, mut lost: impl FnMut(u64, u64)) {
        let first = self.runs.partition_point(|run| run.offsets.end <= part.start);
        for run in self.runs[first..].iter().take_while(|run| run.offsets.start < part.end) {
            let (start, end) = (run.offsets.start.max(part.start), run.offsets.end.min(part.end));
            let away = self.moved.range(start..end).count() as u64;
            let count = end - start - away;
            self.live -= count;
            lost(run.segment, count);
        }
        while let Some((&offset, &segment)) = self.moved.range(part.start..part.end).next() {
            self.moved.remove(&offset);
            self.live -= 1;
            lost(segment, 1);
        }
    }

    /// A segment has left the log.
    pub(super) fn forget_segment(&mut self, sequence: u64) {
        self.runs.retain(|run| run.segment != sequence);
        self.copies.retain(|(segment, _)| *segment != sequence);
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

    /// The first live offset from `at` on, and those behind it that are found in the same way.
    fn next_piece(&self, mut at: u64) -> Option<Range> {
        if self.gone {
            return None;
        }
        loop {
            let run = self.runs.get(self.runs.partition_point(|run| run.offsets.end <= at));
            let run = run.map(|run| Range { start: run.offsets.start.max(at), end: run.offsets.end });
            let moved = self.moved.range(at..).next().map(|(&at, _)| Range { start: at, end: at + 1 });
            let piece = match (run, moved) {
                (Some(run), Some(moved)) if moved.start < run.start => moved,
                (Some(run), _) => run,
                (None, moved) => moved?,
            };
            match self.settled.first_from(piece.start) {
                Some(hole) if hole.start <= piece.start => at = hole.end,
                Some(hole) => return Some(Range { end: piece.end.min(hole.start), ..piece }),
                None => return Some(piece),
            }
        }
    }

    /// What to read for the first live messages within `offsets`, all in one segment: `wanted` gets exactly
    /// the live offsets, as many ranges as it has room for. `None` when nothing is live there.
    pub(super) fn plan(&self, offsets: Range, wanted: &mut Vec<Range>) -> Option<Plan> {
        wanted.clear();
        let first = self.next_piece(offsets.start).filter(|piece| piece.start < offsets.end)?.start;
        let segment = self.segment_of(first)?;
        let part = self.part_of(segment);
        if self.moved.contains_key(&first) {
            let through = self.plan_moved(first, offsets.end, segment, wanted);
            return Some(Plan { segment, part, through, hint: Range { start: first, end: through } });
        }
        let hint = self.run_of(first)?.offsets;
        let mut through = hint.end.min(offsets.end);
        if let Some((&moved, _)) = self.moved.range(first..through).next() {
            through = moved;
        }
        let mut at = first;
        while let Some(piece) = self.next_piece(at).filter(|piece| piece.start < through) {
            if wanted.len() == wanted.capacity() {
                through = at;
                break;
            }
            at = piece.end.min(through);
            wanted.push(Range { start: piece.start, end: at });
        }
        Some(Plan { segment, part, through, hint })
    }

    fn plan_moved(&self, first: u64, end: u64, segment: u64, wanted: &mut Vec<Range>) -> u64 {
        let mut at = first;
        for _ in 0..FETCH_MOVED_MAX.min(wanted.capacity()) {
            match wanted.last_mut() {
                Some(last) if last.end == at => last.end = at + 1,
                _ => wanted.push(Range { start: at, end: at + 1 }),
            }
            match self.next_piece(at + 1).map(|piece| piece.start).filter(|next| *next < end) {
                None => return end,
                Some(next) if self.segment_of(next) != Some(segment) => return next,
                Some(next) => at = next,
            }
        }
        at
    }
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
        let mut fresh = Vec::new();
        queue.settled.insert(range, |part| fresh.push(part));
        fresh.into_iter().for_each(|part| queue.lose(part, |_, _| {}));
    }

    fn check(queue: &QueueIndex, model: &Model) {
        let listed: Vec<(u64, u64)> = queue
            .live_ranges()
            .flat_map(|range| range.start..range.end)
            .map(|offset| (offset, queue.segment_of(offset).unwrap_or(0)))
            .collect();
        assert_eq!(listed, model.live());
        assert_eq!(queue.live, listed.len() as u64);
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
