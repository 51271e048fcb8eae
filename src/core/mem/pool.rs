//! Pools of records of one type ([`Slab`]) and of plain data, and doubly linked lists of records.
//!
//! # Invariants
//! - A record is on at most one list per [`Links`] field.
//! - Adding, removing and moving a whole list to another owner take constant time and no memory.

use bytemuck::{Pod, Zeroable};

use super::give_back::{give_back, give_back_uninit, lazy_zeroed};

/// A pool of records of one type, sized once and addressed by index.
///
/// # Invariants
/// - The index of a record does not change until the record is removed.
/// - The lowest free index is used first. After a burst, the memory above the highest record can therefore be
///   returned to the system.
/// - Inserting never allocates.
#[derive(Debug)]
pub struct Slab<T> {
    records: Vec<Option<T>>,
    places: FreePlaces,
    /// Number of places, from the first one, whose memory was used since the last `trim`.
    touched: usize,
}

impl<T> Slab<T> {
    /// Reserves memory for `capacity` records without touching it.
    pub fn with_capacity(capacity: usize) -> Self {
        Self { records: Vec::with_capacity(capacity), places: FreePlaces::new(capacity), touched: 0 }
    }

    /// Returns the bytes of one record, with its bit among the free places.
    pub const fn record_bytes() -> usize {
        size_of::<Option<T>>() + 1
    }

    /// Returns the number of records.
    pub const fn len(&self) -> usize {
        self.places.used()
    }

    /// Returns whether there are no records.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns whether no further record fits.
    pub const fn is_full(&self) -> bool {
        self.free_count() == 0
    }

    /// Returns how many more records fit.
    pub const fn free_count(&self) -> usize {
        self.places.max() - self.places.used()
    }

    /// Inserts a record at the lowest free index. Returns the record if the pool is full.
    pub fn insert(&mut self, record: T) -> Result<usize, T> {
        let Some(index) = self.places.take() else { return Err(record) };
        match self.records.get_mut(index) {
            Some(place) => *place = Some(record),
            None => self.records.push(Some(record)),
        }
        Ok(index)
    }

    /// Returns the number of records removed since the start.
    pub const fn given(&self) -> u64 {
        self.places.given()
    }

    /// Removes and returns the record.
    ///
    /// # Panics
    /// Panics if the index is free, which is a bug of the caller.
    #[inline]
    pub fn remove(&mut self, index: usize) -> T {
        self.places.give(index);
        match self.records[index].take() {
            Some(record) => record,
            None => panic!("slab place {index} was freed twice"),
        }
    }

    /// Returns the bytes above the highest record that may be resident in memory.
    pub const fn idle_bytes(&self) -> usize {
        let touched = if self.touched > self.records.len() { self.touched } else { self.records.len() };
        (touched - self.places.used()) * size_of::<Option<T>>()
    }

    /// Returns the memory above the highest record to the system.
    pub fn trim(&mut self) {
        self.touched = self.touched.max(self.records.len());
        self.places.shrink();
        self.records.truncate(self.places.end());
        let touched = self.touched - self.records.len();
        give_back_uninit(&mut self.records.spare_capacity_mut()[..touched]);
        self.touched = self.records.len();
    }

    /// Returns the record at this index, if there is one.
    pub fn get(&self, index: usize) -> Option<&T> {
        match self.records.get(index) {
            Some(Some(record)) => Some(record),
            _ => None,
        }
    }

    /// Returns the record at this index for changing, if there is one.
    pub fn get_mut(&mut self, index: usize) -> Option<&mut T> {
        match self.records.get_mut(index) {
            Some(Some(record)) => Some(record),
            _ => None,
        }
    }

    /// Returns the end of the used indices: every record is below it.
    pub const fn places(&self) -> usize {
        self.places.end()
    }

    /// Returns all records with their indices, in index order.
    pub fn iter(&self) -> impl Iterator<Item = (usize, &T)> + Clone {
        self.records.iter().enumerate().filter_map(|(index, record)| Some((index, record.as_ref()?)))
    }
}

impl<T> core::ops::Index<usize> for Slab<T> {
    type Output = T;

    #[inline]
    fn index(&self, index: usize) -> &T {
        match &self.records[index] {
            Some(record) => record,
            None => panic!("slab place {index} is free"),
        }
    }
}

impl<T> core::ops::IndexMut<usize> for Slab<T> {
    #[inline]
    fn index_mut(&mut self, index: usize) -> &mut T {
        match &mut self.records[index] {
            Some(record) => record,
            None => panic!("slab place {index} is free"),
        }
    }
}

/// The links of a record to its neighbours on one list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Links {
    /// Indices of the neighbours plus 1; 0 for none.
    previous: u32,
    next: u32,
}

/// A list of records. Its methods take a function that returns the field of the record with the links.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct List {
    /// Indices of the first and the last record plus 1; 0 for none.
    head: u32,
    tail: u32,
    len: u32,
}

/// Returns the field of the record that has the links.
pub type LinksOf<T> = fn(&mut T) -> &mut Links;

impl List {
    /// Returns `count` empty lists, which take no memory until they are used.
    pub fn table(count: usize) -> Box<[Self]> {
        lazy_zeroed(count)
    }

    /// Returns the number of records on the list.
    pub const fn len(&self) -> u32 {
        self.len
    }

    /// Returns whether no record is on the list.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the first record.
    pub const fn front(&self) -> Option<usize> {
        place(self.head)
    }

    /// Returns the last record.
    pub const fn back(&self) -> Option<usize> {
        place(self.tail)
    }

    /// Returns the record after `index`.
    #[inline]
    pub fn after<T>(slab: &Slab<T>, index: usize, links: fn(&T) -> &Links) -> Option<usize> {
        place(links(&slab[index]).next)
    }

    /// Returns the record before `index`.
    pub fn before<T>(slab: &Slab<T>, index: usize, links: fn(&T) -> &Links) -> Option<usize> {
        place(links(&slab[index]).previous)
    }

    /// Appends the record.
    pub fn push_back<T>(&mut self, slab: &mut Slab<T>, index: usize, links: LinksOf<T>) {
        self.insert_after(slab, self.back(), index, links);
    }

    /// Inserts the record after `after`, or at the front if that is `None`.
    #[inline]
    pub fn insert_after<T>(
        &mut self,
        slab: &mut Slab<T>,
        after: Option<usize>,
        index: usize,
        links: LinksOf<T>,
    ) {
        let this = index as u32 + 1;
        let (previous, next) = match after {
            Some(after) => (after as u32 + 1, links(&mut slab[after]).next),
            None => (0, self.head),
        };
        *links(&mut slab[index]) = Links { previous, next };
        match place(previous) {
            Some(previous) => links(&mut slab[previous]).next = this,
            None => self.head = this,
        }
        match place(next) {
            Some(next) => links(&mut slab[next]).previous = this,
            None => self.tail = this,
        }
        self.len += 1;
    }

    /// Removes the record from this list.
    pub fn remove<T>(&mut self, slab: &mut Slab<T>, index: usize, links: LinksOf<T>) {
        let Links { previous, next } = core::mem::take(links(&mut slab[index]));
        match place(previous) {
            Some(previous) => links(&mut slab[previous]).next = next,
            None => self.head = next,
        }
        match place(next) {
            Some(next) => links(&mut slab[next]).previous = previous,
            None => self.tail = previous,
        }
        self.len -= 1;
    }

    /// Removes and returns the first record.
    pub fn pop_front<T>(&mut self, slab: &mut Slab<T>, links: LinksOf<T>) -> Option<usize> {
        let index = self.front()?;
        self.remove(slab, index, links);
        Some(index)
    }

    /// Sorts the records by their keys. The sort is stable.
    ///
    /// Merges runs of doubling length, so it needs no memory and n log n steps.
    pub fn sort_by_key<T>(&mut self, slab: &mut Slab<T>, key: fn(&T) -> u64, links: LinksOf<T>) {
        // Bin n holds a sorted run of 2^n records, or none.
        let mut bins = [Self::default(); u32::BITS as usize];
        while let Some(index) = self.pop_front(slab, links) {
            let mut run = Self::default();
            run.push_back(slab, index, links);
            for bin in &mut bins {
                if bin.is_empty() {
                    *bin = run;
                    break;
                }
                run = Self::merged(slab, core::mem::take(bin), run, key, links);
            }
        }
        for bin in bins {
            *self = Self::merged(slab, bin, *self, key, links);
        }
    }

    /// Merges two sorted lists. Records of `first` precede those of `second` with equal keys.
    fn merged<T>(
        slab: &mut Slab<T>,
        mut first: Self,
        mut second: Self,
        key: fn(&T) -> u64,
        links: LinksOf<T>,
    ) -> Self {
        let mut all = Self::default();
        loop {
            let from = match (first.front(), second.front()) {
                (Some(one), Some(other)) if key(&slab[other]) < key(&slab[one]) => &mut second,
                (Some(_), _) => &mut first,
                (None, _) => &mut second,
            };
            let Some(index) = from.pop_front(slab, links) else { return all };
            all.push_back(slab, index, links);
        }
    }

    /// Moves the first `count` records, up to and including `last`, to a new list.
    #[must_use]
    pub fn split_front<T>(&mut self, slab: &mut Slab<T>, last: usize, count: u32, links: LinksOf<T>) -> Self {
        let front = Self { head: self.head, tail: last as u32 + 1, len: count };
        let next = core::mem::take(&mut links(&mut slab[last]).next);
        self.head = next;
        match place(next) {
            Some(next) => links(&mut slab[next]).previous = 0,
            None => self.tail = 0,
        }
        self.len -= count;
        front
    }
}

/// Returns the index that a link refers to.
const fn place(link: u32) -> Option<usize> {
    match link {
        0 => None,
        above => Some(above as usize - 1),
    }
}

const BITS: usize = usize::BITS as usize;

/// The free places of one pool.
///
/// ```text
/// groups  | 1 ...                    a clear bit: that word below is 0
/// words   | 0 1 0 0 1 0 ...          a clear bit: that word below is 0
/// bits    | ... | 0 0 1 1 0 | ...    a set bit: that place is free again
///                                ^ end: places from here on were never taken, or the end was lowered
/// ```
///
/// Because the lowest place is taken, used places stay at the bottom of the region. After a burst its top can be
/// returned to the system. The bits are separate from the places, so a free place contains nothing that must be
/// kept.
///
/// # Invariants
/// - A place is taken, or its bit is set, or it is at or above `end`.
/// - No bit is set below the word `low`.
/// - Freeing a place accesses three words. Taking one does too, plus those words of the upper levels whose
///   bits are outdated: a bit is cleared only when a search finds that its word is 0.
#[derive(Debug)]
pub(super) struct FreePlaces {
    /// One bit per place, set if the place was taken and is free again.
    bits: Box<[usize]>,
    /// One bit per word of `bits`, and one per word of `words`: clear if that word is 0.
    words: Box<[usize]>,
    groups: Box<[usize]>,
    /// The lowest word of `bits` that may be non-zero.
    low: usize,
    /// All taken places are below this one.
    end: usize,
    /// Number of places.
    max: usize,
    /// Number of free places below `end`.
    freed: usize,
    /// Number of places freed since the start.
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

    /// Returns the number of places freed since the start. A caller that waits for a place retries when it
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

    /// Frees a place.
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

/// Bytes of a group: the largest page size of supported boards.
const GROUP_BYTES: usize = 64 << 10;
/// Number of groups checked in one step of returning memory.
const TRIM_GROUPS: usize = 256;

/// A pool of plain values.
///
/// # Invariants
/// - The lowest free place is taken first.
/// - Taking a place never allocates.
/// - Places are grouped. A group without used places can be returned to the system and reads as zeros afterwards.
#[derive(Debug)]
pub(super) struct PlainPool<T> {
    places: FreePlaces,
    data: Box<[T]>,
    /// Per group: whether it may be resident in memory.
    resident: Box<[bool]>,
    resident_groups: usize,
    /// The group at which the next step of returning memory begins.
    trim_at: usize,
}

impl<T: Pod> PlainPool<T> {
    const GROUP: usize = GROUP_BYTES / size_of::<T>();

    /// Reserves memory for `max` values without touching it.
    pub(super) fn new(max: usize) -> Self {
        const { assert!(Self::GROUP.is_multiple_of(64), "groups are whole words of FreePlaces") };
        Self {
            places: FreePlaces::new(max),
            data: lazy_zeroed(max),
            resident: vec![false; max.div_ceil(Self::GROUP)].into_boxed_slice(),
            resident_groups: 0,
            trim_at: 0,
        }
    }

    /// Returns the number of places in use.
    #[inline]
    pub(super) const fn used(&self) -> usize {
        self.places.used()
    }

    /// Returns the number of places freed since the start.
    pub(super) const fn given(&self) -> u64 {
        self.places.given()
    }

    /// Returns the number of places.
    pub(super) const fn max(&self) -> usize {
        self.places.max()
    }

    /// Takes a place. Its value is an earlier one, or zero.
    #[inline]
    pub(super) fn take(&mut self) -> Option<usize> {
        let place = self.places.take()?;
        let resident = &mut self.resident[place / Self::GROUP];
        if !*resident {
            *resident = true;
            self.resident_groups += 1;
        }
        Some(place)
    }

    /// Frees a place.
    #[inline]
    pub(super) fn give(&mut self, place: usize) {
        self.places.give(place);
    }

    /// Returns about how many unused bytes are resident in memory.
    pub(super) const fn idle_bytes(&self) -> usize {
        (self.resident_groups * Self::GROUP).saturating_sub(self.places.used()) * size_of::<T>()
    }

    /// Returns idle groups to the system, one bounded part per call. Returns whether it reached the end.
    pub(super) fn trim(&mut self) -> bool {
        self.places.shrink();
        let groups = self.resident.len();
        let start = if self.trim_at < groups { self.trim_at } else { 0 };
        let end = (start + TRIM_GROUPS).min(groups);
        self.trim_at = end;
        let mut run = start..start;
        for group in start..end {
            let from = group * Self::GROUP;
            if self.resident[group] && self.places.are_free(from..from + Self::GROUP) {
                run.end = group + 1;
            } else {
                self.give_back(run);
                run = group + 1..group + 1;
            }
        }
        self.give_back(run);
        end == groups
    }

    fn give_back(&mut self, run: core::ops::Range<usize>) {
        if run.is_empty() {
            return;
        }
        let top = (run.end * Self::GROUP).min(self.data.len());
        give_back(bytemuck::cast_slice_mut(&mut self.data[run.start * Self::GROUP..top]));
        self.resident_groups -= run.len();
        self.resident[run].fill(false);
    }
}

impl<T> core::ops::Index<usize> for PlainPool<T> {
    type Output = T;

    #[inline]
    fn index(&self, place: usize) -> &T {
        &self.data[place]
    }
}

impl<T> core::ops::IndexMut<usize> for PlainPool<T> {
    #[inline]
    fn index_mut(&mut self, place: usize) -> &mut T {
        &mut self.data[place]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Record {
        links: Links,
    }

    fn links(record: &mut Record) -> &mut Links {
        &mut record.links
    }

    fn order(list: &List, slab: &Slab<Record>) -> Vec<usize> {
        let mut found = Vec::new();
        let mut at = list.front();
        while let Some(index) = at {
            found.push(index);
            at = List::after(slab, index, |record| &record.links);
        }
        assert_eq!(found.len(), list.len() as usize);
        found
    }

    #[test]
    fn records_are_added_removed_and_moved_in_order() {
        let mut slab = Slab::with_capacity(8);
        let mut list = List::default();
        for index in 0..6 {
            assert_eq!(slab.insert(Record { links: Links::default() }).ok(), Some(index));
            list.push_back(&mut slab, index, links);
        }
        list.remove(&mut slab, 3, links);
        list.insert_after(&mut slab, Some(0), 3, links);
        assert_eq!(order(&list, &slab), [0, 3, 1, 2, 4, 5]);
        let front = list.split_front(&mut slab, 1, 3, links);
        assert_eq!((order(&front, &slab), order(&list, &slab)), (vec![0, 3, 1], vec![2, 4, 5]));
        let mut rest = list;
        let whole = rest.split_front(&mut slab, 5, 3, links);
        assert_eq!((order(&whole, &slab), rest.is_empty(), rest.back()), (vec![2, 4, 5], true, None));
        assert_eq!(list.pop_front(&mut slab, links), Some(2));
    }
}

#[cfg(test)]
mod slab_tests {
    use super::*;

    #[test]
    fn freed_indices_are_used_before_new_ones() {
        let mut slab = Slab::with_capacity(3);
        let first = slab.insert("a").unwrap();
        let second = slab.insert("b").unwrap();
        assert_eq!(slab.remove(first), "a");
        assert_eq!(slab.insert("c"), Ok(first));
        assert_eq!(slab.insert("d"), Ok(2));
        assert_eq!(slab.insert("e"), Err("e"));
        assert_eq!((slab[second], slab.get(first), slab.len()), ("b", Some(&"c"), 3));
    }

    #[test]
    #[should_panic(expected = "freed twice")]
    fn removing_twice_panics() {
        let mut slab = Slab::with_capacity(1);
        let index = slab.insert(1).unwrap();
        slab.remove(index);
        slab.remove(index);
    }
}

#[cfg(test)]
mod places_tests {
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

#[cfg(test)]
mod plain_tests {
    use super::*;

    #[test]
    fn unused_groups_are_returned_to_the_system_and_their_neighbours_stay() {
        let mut pool = PlainPool::<[u64; 16]>::new(4_000);
        let mut places: Vec<usize> = (0..4_000).map_while(|_| pool.take()).collect();
        assert_eq!((places.len(), pool.take()), (4_000, None));
        places.iter().for_each(|&place| pool[place] = [place as u64; 16]);
        // Two places stay in use: one in the fourth group, one near the end.
        let stragglers = [3 * 512 + 5, 3_999];
        places.retain(|place| !stragglers.contains(place));
        places.iter().for_each(|&place| pool.give(place));
        while !pool.trim() {}
        assert_eq!(pool.idle_bytes() / 128, 2 * 512 - 2, "two groups stay, for two places in use");
        stragglers.iter().for_each(|&place| assert_eq!(pool[place], [place as u64; 16]));
        assert_eq!((pool.take(), pool[512]), (Some(0), [0; 16]), "the lowest; the second group went back");
    }
}
