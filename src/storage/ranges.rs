//! Sets of offsets as ranges: what gathers to be settled.
//!
//! Always true: the ranges rise, are not empty and do not touch each other; so a queue that is consumed in
//! order costs one range however long it lives.

use super::record::Range;

/// A set of offsets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeSet {
    ranges: Vec<Range>,
}

impl RangeSet {
    /// The ranges, rising.
    pub fn ranges(&self) -> &[Range] {
        &self.ranges
    }

    /// Whether nothing is in it.
    pub const fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Whether `offset` is in it.
    #[inline]
    pub fn contains(&self, offset: u64) -> bool {
        let at = self.ranges.partition_point(|range| range.end <= offset);
        self.ranges.get(at).is_some_and(|range| range.start <= offset)
    }

    /// The end of the last range; 0 when there is none.
    pub fn end(&self) -> u64 {
        self.ranges.last().map_or(0, |range| range.end)
    }

    /// Adds `range` and calls `fresh` with each part of it that was not in the set. One without offsets adds
    /// nothing: written down it would be no record, and end its commit for whoever reads that.
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

    /// Bytes it takes on the heap.
    pub(super) const fn heap_bytes(&self) -> usize {
        self.ranges.capacity() * size_of::<Range>()
    }

    /// Gives back room beyond that for `count` ranges.
    pub(super) fn shrink_to(&mut self, count: usize) {
        self.ranges.shrink_to(count);
    }

    /// Forgets the first `count` ranges.
    pub(super) fn drop_first(&mut self, count: usize) {
        self.ranges.drain(..count);
    }
}

#[cfg(test)]
mod tests {
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
