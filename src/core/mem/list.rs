//! Records of one type in a pool, and doubly linked lists of them.
//!
//! # Invariants
//! - A record is on at most one list per [`Links`] field.
//! - Adding, removing and moving a whole list to another owner take constant time and no memory.

use bytemuck::{Pod, Zeroable};

use super::give_back::{give_back_uninit, lazy_zeroed};
use super::places::FreePlaces;

/// A pool of records of one type, sized once and addressed by index.
///
/// # Invariants
/// - The index of a record does not change until the record is removed.
/// - The lowest free index is used first, so after a burst the memory above the highest record can be returned to
///   the system.
/// - Inserting never allocates.
#[derive(Debug)]
pub struct Slab<T> {
    records: Vec<Option<T>>,
    places: FreePlaces,
    /// Number of records at the start of the pool whose memory was touched since the last `trim`.
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
        self.room() == 0
    }

    /// Returns how many more records fit.
    pub const fn room(&self) -> usize {
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

    /// Returns how many records were removed since the start.
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

/// A list of records. Its owner knows which field of the record has the links.
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

    /// Sorts the records by their keys; stable.
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
