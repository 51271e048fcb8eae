//! The free places of a pool. The lowest free place is taken first.
//!
//! ```text
//! groups  | 1 ...                    a clear bit: that word below is 0
//! words   | 0 1 0 0 1 0 ...          a clear bit: that word below is 0
//! bits    | ... | 0 0 1 1 0 | ...    a set bit: that place is free again
//!                                ^ end: places from here on were never taken, or the end was lowered
//! ```
//!
//! Because the lowest place is taken, used places stay at the bottom of the region. After a burst its top can be
//! returned to the system. The bits are separate from the places, so a free place contains nothing that must be
//! kept.
//!
//! # Invariants
//! - A place is taken, or its bit is set, or it is at or above `end`.
//! - No bit is set below the word `low`.
//! - Giving a place back accesses three words. So does taking one, except for bits of the upper levels that it
//!   clears while it searches: they are cleared only when their word turns out to be 0.

const BITS: usize = usize::BITS as usize;

/// The free places of one pool.
#[derive(Debug)]
pub(super) struct FreePlaces {
    /// One bit per place, set if the place was taken and is free again.
    bits: Box<[usize]>,
    /// One bit per word of `bits`, and one per word of `words`: clear if that word is 0.
    words: Box<[usize]>,
    groups: Box<[usize]>,
    /// The lowest word of `bits` that may be non-zero.
    low: usize,
    /// All taken places are below it.
    end: usize,
    /// Number of places.
    max: usize,
    /// Number of free places below `end`.
    freed: usize,
    /// Number of places given back since the start.
    given: u64,
}

impl FreePlaces {
    /// Returns `max` free places.
    pub(super) fn new(max: usize) -> Self {
        let level = |below: usize| vec![0; below.div_ceil(BITS)].into_boxed_slice();
        let bits = level(max);
        let words = level(bits.len());
        let groups = level(words.len());
        Self { bits, words, groups, low: 0, end: 0, max, freed: 0, given: 0 }
    }

    /// Returns the number of taken places.
    #[inline]
    pub(super) const fn used(&self) -> usize {
        self.end - self.freed
    }

    /// Returns how many places were given back since the start. A caller that waits for a place retries when it
    /// rises.
    pub(super) const fn given(&self) -> u64 {
        self.given
    }

    /// Returns the number of places.
    pub(super) const fn max(&self) -> usize {
        self.max
    }

    /// Returns the end: all taken places are below it.
    pub(super) const fn end(&self) -> usize {
        self.end
    }

    /// Takes the lowest free place.
    #[inline]
    pub(super) fn take(&mut self) -> Option<usize> {
        if self.freed == 0 {
            if self.end == self.max {
                return None;
            }
            self.end += 1;
            return Some(self.end - 1);
        }
        if self.bits[self.low] == 0 {
            self.low = self.lowest()?;
        }
        let bits = &mut self.bits[self.low];
        let place = self.low * BITS + bits.trailing_zeros() as usize;
        *bits &= *bits - 1;
        self.freed -= 1;
        Some(place)
    }

    /// Returns the lowest non-zero word of `bits`.
    #[cold]
    fn lowest(&mut self) -> Option<usize> {
        loop {
            let group = self.groups.iter().position(|group| *group != 0)?;
            let word = group * BITS + self.groups[group].trailing_zeros() as usize;
            match self.words[word] {
                0 => self.groups[group] &= self.groups[group] - 1,
                found => {
                    let at = word * BITS + found.trailing_zeros() as usize;
                    if self.bits[at] != 0 {
                        return Some(at);
                    }
                    self.words[word] &= found - 1;
                }
            }
        }
    }

    /// Gives a place back.
    ///
    /// # Panics
    /// Panics if the place is free already, which is a bug of the caller.
    #[inline]
    pub(super) fn give(&mut self, place: usize) {
        let (at, bit) = (place / BITS, 1 << (place % BITS));
        let old = self.bits[at];
        assert!(place < self.end && old & bit == 0, "place {place} was freed twice");
        self.given += 1;
        self.bits[at] = old | bit;
        if old == 0 {
            self.words[at / BITS] |= 1 << (at % BITS);
            self.groups[at / BITS / BITS] |= 1 << (at / BITS % BITS);
            self.low = self.low.min(at);
        }
        self.freed += 1;
    }

    /// Returns whether no place in `range` is taken. Its ends are multiples of a word, or at or above `end`.
    pub(super) fn are_free(&self, range: core::ops::Range<usize>) -> bool {
        debug_assert!(range.start.is_multiple_of(BITS), "whole words only");
        let top = range.end.min(self.end);
        let mut at = range.start;
        while at < top {
            let here = (top - at).min(BITS);
            if (self.bits[at / BITS].trailing_ones() as usize) < here {
                return false;
            }
            at += here;
        }
        true
    }

    /// Lowers the end to just above the highest taken place.
    pub(super) fn shrink(&mut self) {
        while let Some(last) = self.end.checked_sub(1) {
            let (at, bit) = (last / BITS, last % BITS);
            let run = (self.bits[at] << (BITS - 1 - bit)).leading_ones() as usize;
            if run == 0 {
                return;
            }
            let kept = (bit + 1 - run) as u32;
            self.bits[at] &= !usize::MAX.checked_shl(kept).unwrap_or(0);
            self.end -= run;
            self.freed -= run;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_lowest_is_taken_first_and_the_end_follows_the_highest() {
        let mut places = FreePlaces::new(300);
        for place in 0..300 {
            assert_eq!(places.take(), Some(place));
        }
        assert_eq!(places.take(), None);
        for place in [299, 7, 200, 70, 298] {
            places.give(place);
        }
        assert_eq!((places.take(), places.take()), (Some(7), Some(70)));
        places.shrink();
        assert_eq!((places.end(), places.used()), (298, 297));
        assert_eq!((places.take(), places.take()), (Some(200), Some(298)));
    }

    #[test]
    #[should_panic(expected = "freed twice")]
    fn freeing_twice_panics() {
        let mut places = FreePlaces::new(4);
        places.take();
        places.take();
        places.give(0);
        places.give(0);
    }

    /// Random operations give the same results as a plain set of the taken places.
    #[test]
    fn behaves_like_a_set_of_taken_places() {
        const MAX: usize = 9_000;
        let mut places = FreePlaces::new(MAX);
        let mut taken = BTreeSet::new();
        let mut state = 0x9E37_79B9_7F4A_7C15_u64;
        let mut random = move |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % below as u64) as usize
        };
        for step in 0..40_000 {
            // The pool fills and empties in turns.
            if random(100) < if step / 10_000 % 2 == 0 { 80 } else { 20 } {
                let free = (0..MAX).find(|place| !taken.contains(place));
                let place = places.take();
                assert_eq!(place, free);
                taken.extend(place);
            } else if let Some(&place) = taken.iter().nth(random(taken.len().max(1))) {
                places.give(place);
                taken.remove(&place);
            }
            if random(500) == 0 {
                places.shrink();
                assert_eq!(places.end(), taken.last().map_or(0, |last| last + 1));
            }
            if random(100) == 0 {
                let start = random(MAX / BITS) * BITS;
                let end = start + BITS * (1 + random(4));
                assert_eq!(places.are_free(start..end), taken.range(start..end).next().is_none());
            }
            assert_eq!(places.used(), taken.len());
        }
    }
}
