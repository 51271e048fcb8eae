//! What a segment that leaves has written again: what the cleaner reckons with when it chooses one.
//!
//! Always true: nothing is reckoned too low, for it is the room that must be there.

use leveret_core::mem::sort;

use super::index::Index;

impl Index {
    /// What is settled, to know at once what a segment that leaves has written again; in the memory of
    /// `since`.
    pub(super) fn carries(&self, mut since: Vec<(u64, usize)>) -> Carries {
        let settled = self.queues().values().filter(|queue| queue.settled_since != u64::MAX);
        since.clear();
        since.extend(settled.map(|queue| (queue.settled_since, 1 + queue.settled.len())));
        sort(&mut since);
        let mut ranges = 0;
        for (_, sum) in &mut since {
            ranges += *sum;
            *sum = ranges;
        }
        let oldest = since.first().map_or(u64::MAX, |(oldest, _)| *oldest);
        Carries { since, segments: self.segments().range(oldest..).count().max(1) as u64 }
    }
}

/// What is settled, by the oldest segment that tells of it.
pub(super) struct Carries {
    /// Segments, rising, and in how many ranges is settled what they and those before them are the first to
    /// tell of.
    since: Vec<(u64, usize)>,
    /// Segments that may tell of any: when it was written again, none of them does any more.
    segments: u64,
}

impl Carries {
    /// How many ranges, about and rather too many, are written again before `segment` leaves, and for how
    /// many segments at once.
    pub(super) fn before(&self, segment: u64) -> (usize, u64) {
        let end = self.since.partition_point(|(since, _)| *since <= segment);
        let ranges = end.checked_sub(1).map_or(0, |last| self.since[last].1);
        (ranges, self.segments)
    }

    pub(super) fn into_since(self) -> Vec<(u64, usize)> {
        self.since
    }
}
