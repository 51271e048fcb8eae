//! The places of a pool, and which extents of its memory they are in.
//!
//! ```text
//! groups   | 1 ...                    a clear bit: that word below is 0
//! words    | 0 1 0 0 1 0 ...          a clear bit: that word below is 0
//! bits     | ... | 0 0 1 1 0 | ...    a set bit: that place is free and in a touched extent
//! touched  | 1 1 0 1 0 ...            a set bit: that extent was taken from the shared memory
//! ```
//!
//! The lowest free place of a touched extent is taken first. Used places therefore stay in few extents, and after a burst
//! most extents can be returned. The bits are separate from the places, so a free place contains nothing that must be kept.
//!
//! # Invariants
//! - A place is used, or its bit is set, or its extent is not touched.
//! - No bit is set below the word `low`.
//! - Freeing a place accesses three words. Taking one does too, plus those words of the upper levels whose
//!   bits are outdated: a bit is cleared only when a search finds that its word is 0.

use core::ops::Range;

use super::mapped::lazy_zeroed;
use super::memory::{Account, EXTENT_BYTES};

const BITS: usize = usize::BITS as usize;

/// The places of one pool.
#[derive(Debug)]
pub(super) struct Places {
    bits: Box<[usize]>,
    words: Box<[usize]>,
    groups: Box<[usize]>,
    /// The lowest word of `bits` that may be non-zero.
    low: usize,
    /// Number of set bits.
    free: usize,
    /// Number of places that the pool can have.
    max: usize,
    /// Number of places freed since the start.
    given: u64,
    extents: Extents,
}

/// The places of a pool's touched extents.
#[derive(Clone, Copy, Debug)]
pub struct Touched {
    /// All of them are below this one.
    pub(super) end: usize,
    pub(super) count: usize,
}

/// The extents of a pool.
///
/// The size of a record rarely divides that of the memory's extents. So an extent of a pool is the smallest number of
/// places that are at least as long as one of the memory, and costs those extents of the memory that it overlaps. One that
/// two neighbours overlap is counted once.
#[derive(Debug)]
struct Extents {
    account: Account,
    /// Bytes that are returned to the system together: an extent of the memory, or a page if that is larger.
    unit_bytes: usize,
    place_bytes: usize,
    /// Number of places in an extent.
    places_each: usize,
    /// The most that touching an extent costs, in extents of the memory.
    cost_max: usize,
    touched: Box<[usize]>,
    touched_count: usize,
    /// All touched extents are below this one.
    end: usize,
    /// Number of places in touched extents.
    places: usize,
}

impl Places {
    /// Returns `max` places of `place_bytes` bytes each, none of which is in a touched extent.
    pub(super) fn new(max: usize, place_bytes: usize, account: Account) -> Self {
        let level = |below: usize| lazy_zeroed::<usize>(below.div_ceil(BITS));
        let bits = level(max);
        let words = level(bits.len());
        let groups = level(words.len());
        let unit_bytes = rustix::param::page_size().max(EXTENT_BYTES);
        let places_each = unit_bytes.div_ceil(place_bytes);
        let touched = level(max.div_ceil(places_each));
        let mut extents = Extents {
            account,
            unit_bytes,
            place_bytes,
            places_each,
            cost_max: 0,
            touched,
            touched_count: 0,
            end: 0,
            places: 0,
        };
        extents.set_cost_max();
        Self { bits, words, groups, low: 0, free: 0, max, given: 0, extents }
    }

    /// Returns the number of used places.
    #[inline]
    pub(super) const fn used(&self) -> usize {
        self.extents.places - self.free
    }

    /// Returns the number of free places in touched extents.
    #[inline]
    pub(super) const fn free(&self) -> usize {
        self.free
    }

    /// Returns the number of places freed since the start. A caller that waits for a place retries when it
    /// rises.
    pub(super) const fn given(&self) -> u64 {
        self.given
    }

    /// Returns the number of places that the pool can have.
    #[inline]
    pub(super) const fn max(&self) -> usize {
        self.max
    }

    /// Returns the end: all used places are below it.
    pub(super) const fn end(&self) -> usize {
        let end = self.extents.end * self.extents.places_each;
        if end < self.max { end } else { self.max }
    }

    /// Returns the account of the pool.
    #[inline]
    pub(super) const fn account(&self) -> &Account {
        &self.extents.account
    }

    /// Sets the number of extents of the memory that only this pool can take. They are at least those that touching an extent
    /// of the pool can cost, so there can always be a place.
    pub(super) fn set_floor(&mut self, extents: usize) {
        self.extents.account.set_floor(extents.max(self.extents.cost_max));
    }

    /// Returns the number of places in extents that are not touched.
    #[inline]
    pub(super) const fn untouched(&self) -> usize {
        self.max - self.extents.places
    }

    /// Returns the places of the touched extents.
    pub(super) const fn touched(&self) -> Touched {
        Touched { end: self.end(), count: self.extents.places }
    }

    /// Returns how many more places can be used with the memory that is available now.
    pub(super) fn obtainable(&self) -> usize {
        self.obtainable_with(self.extents.account.available())
    }

    /// Returns how many more places can be used if the pool takes up to `extents` extents of the memory.
    pub(super) fn obtainable_with(&self, extents: usize) -> usize {
        self.obtainable_beside(extents, 0)
    }

    /// Returns how many more places can be used if each takes `side_bytes` bytes in addition, and all take up to `extents`
    /// extents of the memory.
    pub(super) fn obtainable_beside(&self, extents: usize, side_bytes: usize) -> usize {
        // An extent of the pool is taken whole.
        if extents < self.extents.cost_max {
            return self.free;
        }
        let places = extents.saturating_mul(EXTENT_BYTES) / (self.extents.place_bytes + side_bytes);
        self.free + places.min(self.untouched())
    }

    /// Takes the lowest free place. If the touched extents have none, touches another one.
    #[inline]
    pub(super) fn take(&mut self) -> Option<usize> {
        if self.free == 0 && !self.touch(Account::take) {
            return None;
        }
        self.take_touched()
    }

    /// Takes the lowest free place for a command that has checked all its pools. The pool may take one of
    /// [`COMMAND_EXTENTS`](super::COMMAND_EXTENTS).
    #[inline]
    pub(super) fn take_checked(&mut self) -> Option<usize> {
        if self.free == 0 && !self.touch(Account::take_checked) {
            return None;
        }
        self.take_touched()
    }

    /// Touches extents until at least `count` places are free, for a command that has checked all its pools. Returns
    /// whether they are.
    pub(super) fn touch_checked(&mut self, count: usize) -> bool {
        while self.free < count {
            if !self.touch(Account::take_checked) {
                return false;
            }
        }
        true
    }

    #[inline]
    fn take_touched(&mut self) -> Option<usize> {
        if self.bits[self.low] == 0 {
            self.low = self.lowest()?;
        }
        let bits = &mut self.bits[self.low];
        let place = self.low * BITS + bits.trailing_zeros() as usize;
        *bits &= *bits - 1;
        self.free -= 1;
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

    /// Frees a place.
    ///
    /// # Panics
    /// Panics if the place is free already, which is a bug of the caller.
    #[inline]
    pub(super) fn give(&mut self, place: usize) {
        let (at, bit) = (place / BITS, 1 << (place % BITS));
        let old = self.bits[at];
        assert!(place < self.max && old & bit == 0, "place {place} was freed twice");
        self.given += 1;
        self.bits[at] = old | bit;
        if old == 0 {
            self.note_word(at);
        }
        self.free += 1;
    }

    /// Notes that a word of `bits` is no longer 0.
    #[inline]
    fn note_word(&mut self, at: usize) {
        self.words[at / BITS] |= 1 << (at % BITS);
        self.groups[at / BITS / BITS] |= 1 << (at / BITS % BITS);
        self.low = self.low.min(at);
    }

    /// Touches the lowest extent that is not touched. Returns `false` if there is none, or no memory for it.
    #[cold]
    fn touch(&mut self, take: fn(&mut Account, usize) -> bool) -> bool {
        let Some(extent) = self.extents.lowest_untouched(self.max) else { return false };
        let places = self.places_of(extent);
        let cost = self.extents.cost(extent);
        if !take(&mut self.extents.account, cost) {
            return false;
        }
        self.extents.set_touched(extent, places.len());
        self.free += places.len();
        for (at, mask) in words_of(places) {
            self.bits[at] |= mask;
            self.note_word(at);
        }
        true
    }

    /// Returns the places of an extent.
    fn places_of(&self, extent: usize) -> Range<usize> {
        let start = extent * self.extents.places_each;
        start..(start + self.extents.places_each).min(self.max)
    }

    /// Returns extents without a used place, of the `count` extents from `start` on, but leaves `free_min` free places if any
    /// place is used. Calls `give_back` with the places of each run of them. Returns the end of the extents that it looked
    /// at, or `None` if no touched extent is above it.
    pub(super) fn trim(
        &mut self,
        start: usize,
        count: usize,
        free_min: usize,
        mut give_back: impl FnMut(Range<usize>),
    ) -> Option<usize> {
        let end = start.saturating_add(count).min(self.extents.end);
        let free_min = if self.used() == 0 { 0 } else { free_min };
        let mut run = start..start;
        for extent in start..end {
            let is_idle = self.extents.is_touched(extent) && self.is_unused(extent);
            if is_idle && self.free - self.places_of(extent).len() >= free_min {
                self.release(extent);
                run.end = extent + 1;
            } else {
                self.end_run(run, &mut give_back);
                run = extent + 1..extent + 1;
            }
        }
        self.end_run(run, &mut give_back);
        let is_above = end < self.extents.end;
        self.extents.lower_end();
        is_above.then_some(end)
    }

    /// Calls `give_back` with the places of a run of released extents, and of the untouched ones beside it: the pages at
    /// both ends may belong to these as well.
    fn end_run(&self, mut run: Range<usize>, give_back: &mut impl FnMut(Range<usize>)) {
        if run.is_empty() {
            return;
        }
        run.start -= usize::from(run.start > 0 && !self.extents.is_touched(run.start - 1));
        let is_last = run.end * self.extents.places_each >= self.max;
        run.end += usize::from(!is_last && !self.extents.is_touched(run.end));
        give_back(self.places_of(run.start).start..self.places_of(run.end - 1).end);
    }

    fn is_unused(&self, extent: usize) -> bool {
        words_of(self.places_of(extent)).all(|(at, mask)| self.bits[at] & mask == mask)
    }

    /// Gives an extent without a used place back to the shared memory.
    fn release(&mut self, extent: usize) {
        let places = self.places_of(extent);
        self.free -= places.len();
        self.extents.clear_touched(extent, places.len());
        let cost = self.extents.cost(extent);
        for (at, mask) in words_of(places) {
            self.bits[at] &= !mask;
        }
        self.extents.account.give(cost);
    }
}

impl Extents {
    fn set_cost_max(&mut self) {
        let (bytes, unit) = (self.places_each * self.place_bytes, self.unit_bytes);
        // One that ends within an extent of the memory can overlap another one at its beginning.
        let pages = bytes.div_ceil(unit) + usize::from(!bytes.is_multiple_of(unit));
        self.cost_max = pages * (unit / EXTENT_BYTES);
    }

    fn is_touched(&self, extent: usize) -> bool {
        self.touched[extent / BITS] & 1 << (extent % BITS) != 0
    }

    fn set_touched(&mut self, extent: usize, places: usize) {
        self.touched[extent / BITS] |= 1 << (extent % BITS);
        self.touched_count += 1;
        self.end = self.end.max(extent + 1);
        self.places += places;
    }

    fn clear_touched(&mut self, extent: usize, places: usize) {
        self.touched[extent / BITS] &= !(1 << (extent % BITS));
        self.touched_count -= 1;
        self.places -= places;
    }

    /// Lowers the end to just above the highest touched extent.
    fn lower_end(&mut self) {
        while self.end > 0 && !self.is_touched(self.end - 1) {
            self.end -= 1;
        }
    }

    /// Returns the lowest extent that is not touched, of a pool of `max` places.
    fn lowest_untouched(&self, max: usize) -> Option<usize> {
        let extent = if self.touched_count == self.end {
            self.end
        } else {
            let word = self.touched.iter().position(|word| *word != usize::MAX)?;
            word * BITS + self.touched[word].trailing_ones() as usize
        };
        (extent * self.places_each < max).then_some(extent)
    }

    /// Returns how many extents of the memory only this extent of the pool overlaps, and none of its touched neighbours.
    fn cost(&self, extent: usize) -> usize {
        let unit = self.unit_bytes;
        let (start, end) = (self.edge(extent), self.edge(extent + 1));
        let is_start_shared = !start.is_multiple_of(unit) && self.is_touched(extent - 1);
        let is_end_shared = !end.is_multiple_of(unit) && extent + 1 < self.end && self.is_touched(extent + 1);
        let units =
            end.div_ceil(unit) - start / unit - usize::from(is_start_shared) - usize::from(is_end_shared);
        units * (unit / EXTENT_BYTES)
    }

    /// Returns the offset of the first byte of an extent.
    const fn edge(&self, extent: usize) -> usize {
        extent * self.places_each * self.place_bytes
    }
}

/// Returns the words of a bitmap with these bits, and the bits in each.
fn words_of(bits: Range<usize>) -> impl Iterator<Item = (usize, usize)> {
    let mut at = bits.start;
    core::iter::from_fn(move || {
        (at < bits.end).then(|| {
            let (word, first) = (at / BITS, at % BITS);
            let count = (BITS - first).min(bits.end - at);
            at += count;
            (word, usize::MAX >> (BITS - count) << first)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::super::memory::{COMMAND_EXTENTS, Class, Memory};
    use super::*;
    use std::collections::BTreeSet;

    /// Returns places of which an extent has `each`, with the memory for `extents` extents.
    fn places(max: usize, each: usize, extents: usize) -> Places {
        let memory = Memory::new(extents + COMMAND_EXTENTS, [0; 3]);
        let account = memory.account(Class::Messages, 0);
        let place_bytes = EXTENT_BYTES / each;
        Places::new(max, place_bytes, account)
    }

    /// Returns the first and the last place of each run that was returned to the system.
    fn trim(places: &mut Places) -> Vec<(usize, usize)> {
        let mut runs = Vec::new();
        assert_eq!(places.trim(0, usize::MAX, 0, |run| runs.push((run.start, run.end - 1))), None);
        runs
    }

    #[test]
    fn the_lowest_place_is_taken_first() {
        let mut places = places(300, 128, 100);
        for place in 0..300 {
            assert_eq!(places.take(), Some(place));
        }
        assert_eq!(places.take(), None);
        for place in [299, 7, 200, 70, 298] {
            places.give(place);
        }
        assert_eq!((places.take(), places.take()), (Some(7), Some(70)));
        assert_eq!((places.used(), places.take(), places.take()), (297, Some(200), Some(298)));
    }

    #[test]
    #[should_panic(expected = "freed twice")]
    fn freeing_twice_panics() {
        let mut places = places(4, 128, 1);
        places.take();
        places.take();
        places.give(0);
        places.give(0);
    }

    #[test]
    fn an_extent_below_used_ones_is_returned_and_taken_again() {
        let mut places = places(1_000, 128, 3);
        assert_eq!((0..384).map_while(|_| places.take()).count(), 384);
        assert_eq!((places.take(), places.account().available()), (None, 0));
        (128..256).for_each(|place| places.give(place));
        assert_eq!(trim(&mut places), [(128, 255)]);
        assert_eq!((places.account().held(), places.free(), places.obtainable()), (2, 0, 128));
        assert_eq!((places.take(), places.used()), (Some(128), 257));
    }

    #[test]
    fn a_place_in_a_touched_extent_is_preferred_to_a_lower_one() {
        let mut places = places(1_000, 128, 100);
        assert_eq!((0..256).map_while(|_| places.take()).count(), 256);
        (0..129).for_each(|place| places.give(place));
        assert_eq!(trim(&mut places), [(0, 127)]);
        assert_eq!((places.take(), places.account().held()), (Some(128), 1));
        assert_eq!((places.take(), places.account().held()), (Some(0), 2));
    }

    /// A page at the border of two extents is returned when neither is touched, also at the top of the pool.
    #[test]
    fn a_returned_run_includes_the_untouched_extents_beside_it() {
        let mut places = Places::new(100, 1_250, account(100));
        assert_eq!(places.extents.places_each, 4);
        assert_eq!((0..12).map_while(|_| places.take()).count(), 12);
        (8..12).for_each(|place| places.give(place));
        assert_eq!(trim(&mut places), [(8, 15)]);
        (4..8).for_each(|place| places.give(place));
        assert_eq!(trim(&mut places), [(4, 11)]);
        (0..4).for_each(|place| places.give(place));
        assert_eq!(trim(&mut places), [(0, 7)]);
    }

    /// An extent of the memory that two extents of a pool overlap is counted once, and returned with the second of them.
    #[test]
    fn records_of_any_size_cost_the_extents_that_they_overlap() {
        let memory = Memory::new(1_000, [0; 3]);
        let unit = EXTENT_BYTES;
        for place_bytes in [1, 72, 1_000, 5_000, unit - 1, unit, unit + 1, 3 * unit + 7] {
            let mut places = Places::new(300, place_bytes, memory.account(Class::Messages, 0));
            for used in 1..=300 {
                places.take().unwrap();
                let resident = (used * place_bytes).div_ceil(unit);
                let whole = places.extents.places_each * place_bytes;
                let touched = used.div_ceil(places.extents.places_each) * whole;
                let held = places.account().held();
                assert!((resident..=touched.div_ceil(unit)).contains(&held), "{place_bytes}: {held}");
            }
            // Every second extent first, then the others.
            for part in [1, 0] {
                let each = places.extents.places_each;
                (0..300).filter(|place| place / each % 2 == part).for_each(|place| places.give(place));
                trim(&mut places);
            }
            assert_eq!((places.account().held(), places.used(), places.end()), (0, 0, 0), "{place_bytes}");
        }
    }

    /// Random operations give the same results as a plain set of the used places and the touched extents.
    #[test]
    fn behaves_like_a_set_of_used_places() {
        const MAX: usize = 9_000;
        let (each, extents) = (100, 60);
        let mut places = Places::new(MAX, extent_bytes_of(each), account(extents));
        let each = places.extents.places_each;
        let (mut used, mut touched) = (BTreeSet::new(), BTreeSet::new());
        let mut random = super::super::random(0);
        for step in 0..40_000 {
            // The pool fills and empties in turns.
            if random(100) < if step / 10_000 % 2 == 0 { 80 } else { 20 } {
                let is_free = |place: &usize| touched.contains(&(place / each)) && !used.contains(place);
                let free = (0..MAX).find(is_free);
                let fits = touched.len() < extents;
                let new = || (0..MAX).find(|place| fits && !touched.contains(&(place / each)));
                let expected = free.or_else(new);
                assert_eq!(places.take(), expected, "in step {step}");
                touched.extend(expected.map(|place| place / each));
                used.extend(expected);
            } else if let Some(&place) = used.iter().nth(random(used.len().max(1))) {
                places.give(place);
                used.remove(&place);
            }
            if random(500) == 0 {
                trim(&mut places);
                touched = used.iter().map(|place| place / each).collect();
                assert_eq!(places.end(), touched.last().map_or(0, |last| ((last + 1) * each).min(MAX)));
            }
            assert_eq!((places.used(), places.account().held()), (used.len(), touched.len()));
        }
    }

    fn account(extents: usize) -> Account {
        Memory::new(extents + COMMAND_EXTENTS, [0; 3]).account(Class::Messages, 0)
    }

    /// Returns the bytes of a place of which an extent has exactly `each`, which then overlap no others.
    fn extent_bytes_of(each: usize) -> usize {
        EXTENT_BYTES / each.next_power_of_two()
    }
}
