//! Pools of records of one type ([`Slab`]) and of plain data, and doubly linked lists of records.
//!
//! # Invariants
//! - A record is on at most one list per [`Links`] field.
//! - Adding, removing and moving a whole list to another owner take constant time and no memory.

use bytemuck::{Pod, Zeroable};

use super::mapped::{Place, Region, lazy_zeroed};
use super::memory::{Account, Class, HeapBytes, Memory};
use super::places::{Places, Touched};

/// A pool of records of one type, addressed by index.
///
/// # Invariants
/// - The index of a record does not change until the record is removed.
/// - The lowest free index of a touched extent is used first. After a burst, most memory can therefore be
///   returned to the system.
/// - Inserting never allocates.
pub struct Slab<T> {
    records: Region<Place<T>>,
    places: Places,
    side: HeapBytes,
    /// Bytes that each record takes outside the pool.
    side_each: usize,
}

impl<T> Slab<T> {
    /// Reserves addresses for `capacity` records, with a memory of their own.
    pub fn with_capacity(capacity: usize) -> Self {
        Self::in_memory(capacity, &Memory::unlimited(), Class::Clients)
    }

    /// Reserves addresses for `capacity` records, whose extents are taken from `memory`.
    pub fn in_memory(capacity: usize, memory: &Memory, class: Class) -> Self {
        let places = Places::new(capacity, size_of::<Place<T>>(), memory.account(class, 0));
        let side = HeapBytes::in_memory(memory, class);
        Self { records: Region::reserve(capacity), places, side, side_each: 0 }
    }

    /// Charges `bytes` for each record in addition, which it can take outside the pool: for its names in the heap, and for its
    /// entries in tables.
    ///
    /// # Panics
    /// Panics if there are records already.
    #[must_use]
    pub fn with_side_bytes(mut self, bytes: usize) -> Self {
        self.add_side_bytes(bytes);
        self
    }

    /// Sets the number of extents of the memory that only this pool can take. They are enough for at least one record.
    #[must_use]
    pub fn with_floor(mut self, extents: usize) -> Self {
        self.places.set_floor(extents);
        self
    }

    /// Charges `bytes` more for each record.
    ///
    /// # Panics
    /// Panics if there are records already.
    pub fn add_side_bytes(&mut self, bytes: usize) {
        assert!(self.is_empty(), "the bytes of a record do not change while there are records");
        self.side_each += bytes;
    }

    /// Returns the bytes of one record, with its bit among the places.
    pub const fn record_bytes() -> usize {
        size_of::<Place<T>>() + 1
    }

    /// Returns the number of records.
    pub const fn len(&self) -> usize {
        self.places.used()
    }

    /// Returns whether there are no records.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the number of records that there can be while nothing else uses memory.
    pub const fn capacity(&self) -> usize {
        self.places.max()
    }

    /// Returns whether no further record fits.
    pub fn is_full(&self) -> bool {
        self.free_count() == 0
    }

    /// Returns how many more records fit, so that [`COMMAND_EXTENTS`](super::COMMAND_EXTENTS) stay available.
    ///
    /// A command checks all pools that it needs, and then takes from them. It takes few extents, so that none of its takes
    /// fails after the first one has succeeded.
    #[inline]
    pub fn free_count(&self) -> usize {
        match self.side_each {
            0 => self.places.obtainable(),
            each => {
                let extents = self.places.account().available();
                self.places.obtainable_beside(extents, each).min(self.side.free() / each)
            }
        }
    }

    /// Returns how many more records may be added to an object that was restored already. That is [`Self::free_count`], but at a
    /// start the object is never left half restored: then only the number of places counts.
    pub fn free_count_of_begun(&self) -> usize {
        match self.places.account().is_restoring() {
            true => self.capacity() - self.len(),
            false => self.free_count(),
        }
    }

    /// Inserts a record at the lowest free index. Returns the record if [`Self::free_count`] is 0.
    pub fn insert(&mut self, record: T) -> Result<usize, T> {
        // Most records find a free place, and need no memory.
        let is_free = self.side_each == 0 && self.places.free() > 0;
        if !is_free && self.free_count() == 0 {
            self.places.account().note_refusal();
            return Err(record);
        }
        Ok(self.insert_checked(record))
    }

    /// Inserts a record for which the caller has checked [`Self::free_count`]. It may take one of the extents that the check
    /// leaves, if the same command has taken others for other pools.
    ///
    /// # Panics
    /// Panics if the pool is full, which is a bug of the caller.
    pub fn insert_checked(&mut self, record: T) -> usize {
        if self.side_each > 0 {
            self.side.add(self.side_each);
        }
        let index = self.places.take_checked();
        match self.put(index, record) {
            Ok(index) => index,
            Err(_) => panic!("a command checks for the capacity that it needs"),
        }
    }

    /// Returns which places are in touched extents: an index of the records has memory for all of them.
    pub const fn touched(&self) -> Touched {
        self.places.touched()
    }

    fn put(&mut self, index: Option<usize>, record: T) -> Result<usize, T> {
        let Some(index) = index else { return Err(record) };
        if index >= self.records.len() && !self.records.open(index + 1) {
            self.places.give(index);
            return Err(record);
        }
        self.records[index].put(record);
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
        match self.records[index].take() {
            Some(record) => {
                self.places.give(index);
                if self.side_each > 0 {
                    self.side.subtract(self.side_each);
                }
                record
            }
            None => panic!("slab place {index} was freed twice"),
        }
    }

    /// Returns the bytes of unused places that may be resident in memory.
    pub const fn idle_bytes(&self) -> usize {
        self.places.free() * size_of::<Place<T>>()
    }

    /// Returns the memory of unused extents to the system.
    pub fn trim(&mut self) {
        let records = &mut self.records;
        self.places.trim(0, usize::MAX, 0, |run| records.give_back(run));
    }

    /// Returns the record at this index, if there is one.
    #[inline]
    pub fn get(&self, index: usize) -> Option<&T> {
        self.records.get(index).and_then(Place::get)
    }

    /// Returns the record at this index for changing, if there is one.
    #[inline]
    pub fn get_mut(&mut self, index: usize) -> Option<&mut T> {
        self.records.get_mut(index).and_then(Place::get_mut)
    }

    /// Returns the end of the used indices: every record is below it.
    pub const fn places(&self) -> usize {
        self.places.end()
    }

    /// Returns all records with their indices, in index order.
    pub fn iter(&self) -> impl Iterator<Item = (usize, &T)> + Clone {
        (0..self.places().min(self.records.len()))
            .filter_map(|index| Some((index, self.records[index].get()?)))
    }
}

impl<T> Drop for Slab<T> {
    fn drop(&mut self) {
        for index in 0..self.places().min(self.records.len()) {
            drop(self.records[index].take());
        }
    }
}

impl<T: core::fmt::Debug> core::fmt::Debug for Slab<T> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<T> core::ops::Index<usize> for Slab<T> {
    type Output = T;

    #[inline]
    fn index(&self, index: usize) -> &T {
        match self.records[index].get() {
            Some(record) => record,
            None => panic!("slab place {index} is free"),
        }
    }
}

impl<T> core::ops::IndexMut<usize> for Slab<T> {
    #[inline]
    fn index_mut(&mut self, index: usize) -> &mut T {
        match self.records[index].get_mut() {
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

/// Number of extents checked in one step of returning memory.
const TRIM_EXTENTS: usize = 1024;

/// A pool of plain values.
///
/// # Invariants
/// - The lowest free place of a touched extent is taken first.
/// - Taking a place never allocates.
/// - An extent without used places can be returned to the system and reads as zeros afterwards.
#[derive(Debug)]
pub(super) struct PlainPool<T> {
    places: Places,
    data: Region<T>,
    /// The extent at which the next step of returning memory begins.
    trim_at: usize,
}

impl<T: Pod> PlainPool<T> {
    /// Reserves addresses for `max` values.
    pub(super) fn new(max: usize, account: Account) -> Self {
        Self { places: Places::new(max, size_of::<T>(), account), data: Region::reserve(max), trim_at: 0 }
    }

    /// Returns how many places there are, how many are used, and how many can be.
    #[inline]
    pub(super) const fn places(&self) -> &Places {
        &self.places
    }

    /// Returns the number of places in use.
    #[inline]
    pub(super) const fn used(&self) -> usize {
        self.places.used()
    }

    /// Takes a place. Its value is an earlier one, or zero.
    #[inline]
    pub(super) fn take(&mut self) -> Option<usize> {
        let place = self.places.take()?;
        self.open(place)
    }

    /// Takes a place for a command that has checked all its pools. See [`Places::take_checked`].
    #[inline]
    pub(super) fn take_checked(&mut self) -> Option<usize> {
        let place = self.places.take_checked()?;
        self.open(place)
    }

    /// Touches extents until at least `count` places are free. See [`Places::touch_checked`].
    pub(super) fn touch_checked(&mut self, count: usize) -> bool {
        self.places.touch_checked(count)
    }

    #[inline]
    fn open(&mut self, place: usize) -> Option<usize> {
        if place >= self.data.len() && !self.data.open(place + 1) {
            self.places.give(place);
            return None;
        }
        Some(place)
    }

    /// Frees a place.
    #[inline]
    pub(super) fn give(&mut self, place: usize) {
        self.places.give(place);
    }

    /// Returns how many unused bytes may be resident in memory.
    pub(super) const fn idle_bytes(&self) -> usize {
        self.places.free() * size_of::<T>()
    }

    /// Returns idle extents to the system, one bounded part per call, but leaves `free_min` free places if any place is
    /// used. Returns whether it reached the end.
    pub(super) fn trim(&mut self, free_min: usize) -> bool {
        let data = &mut self.data;
        let next = self.places.trim(self.trim_at, TRIM_EXTENTS, free_min, |run| data.give_back(run));
        self.trim_at = next.unwrap_or(0);
        next.is_none()
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
    use super::super::memory::{COMMAND_EXTENTS, EXTENT_BYTES};
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

    /// The memory of removed records is returned, wherever they were, and the other records stay.
    #[test]
    fn memory_between_records_is_returned() {
        let each = EXTENT_BYTES.div_ceil(size_of::<Place<[u64; 12]>>());
        let mut slab = Slab::with_capacity(100 * each);
        (0..10 * each).for_each(|number| assert_eq!(slab.insert([number as u64; 12]), Ok(number)));
        let kept = [0, 4 * each + 7, 10 * each - 1];
        for index in (0..10 * each).filter(|index| !kept.contains(index)) {
            assert_eq!(slab.remove(index)[0], index as u64);
        }
        slab.trim();
        assert!(
            slab.places.account().held() <= 6,
            "each of three extents overlaps two of the memory at most"
        );
        assert_eq!(
            slab.iter().map(|(index, record)| (index, record[0])).collect::<Vec<_>>(),
            kept.map(|index| (index, index as u64))
        );
        assert_eq!((slab.get(2 * each), slab.get(200 * each), slab.len()), (None, None, 3));
        assert_eq!(slab.insert([77; 12]), Ok(1), "a place of an extent that stayed");
        for index in kept {
            assert_eq!(slab.remove(index)[11], index as u64);
        }
    }

    /// What records take outside the pool is charged with them.
    #[test]
    fn bytes_outside_the_pool_are_charged_with_their_records() {
        // With 16 bytes for each place, an extent of the pool is one of the memory on 32 bits, too.
        const RECORD: [u32; 3] = [7; 3];
        let memory = Memory::new(10 + COMMAND_EXTENTS, [0; 3]);
        let mut slab = Slab::in_memory(10_000, &memory, Class::Definitions).with_side_bytes(1_000);
        let mut most = 0;
        while slab.free_count() > 0 {
            most = most.max(slab.len() + slab.free_count());
            assert!(slab.insert(RECORD).is_ok());
        }
        let used = slab.len();
        assert!((9 * EXTENT_BYTES / 1_008..=10 * EXTENT_BYTES / 1_008).contains(&used), "{used} records");
        assert!(most - used <= EXTENT_BYTES / 1_000, "{most}");
        assert_eq!((slab.insert(RECORD), memory.extents_used() <= 10), (Err(RECORD), true));
        slab.insert_checked(RECORD);
        (0..=used).for_each(|index| assert_eq!(slab.remove(index), RECORD));
        slab.trim();
        assert_eq!(memory.extents_used(), 0);
    }

    /// A record that the pool still has is dropped with it.
    #[test]
    fn records_are_dropped_once() {
        let record = std::rc::Rc::new(());
        let mut slab = Slab::with_capacity(10_000);
        (0..5_000).for_each(|_| drop(slab.insert(record.clone())));
        (0..4_000).for_each(|index| drop(slab.remove(index)));
        slab.trim();
        assert_eq!(std::rc::Rc::strong_count(&record), 1_001);
        drop(slab);
        assert_eq!(std::rc::Rc::strong_count(&record), 1);
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
mod plain_tests {
    use super::super::memory::EXTENT_BYTES;
    use super::*;

    #[test]
    fn unused_extents_are_returned_to_the_system_and_their_neighbours_stay() {
        let each = EXTENT_BYTES / 128;
        let mut pool = PlainPool::<[u64; 16]>::new(4_000, Account::unlimited());
        let mut places: Vec<usize> = (0..4_000).map_while(|_| pool.take()).collect();
        assert_eq!((places.len(), pool.take()), (4_000, None));
        places.iter().for_each(|&place| pool[place] = [place as u64; 16]);
        // Two places stay in use: one in the fourth extent, one near the end.
        let stragglers = [3 * each + 5, 3_999];
        places.retain(|place| !stragglers.contains(place));
        places.iter().for_each(|&place| pool.give(place));
        while !pool.trim(0) {}
        let of_the_last = 4_000 - 3_999 / each * each;
        assert_eq!(
            pool.idle_bytes() / 128,
            each + of_the_last - 2,
            "two extents stay, for two places in use"
        );
        stragglers.iter().for_each(|&place| assert_eq!(pool[place], [place as u64; 16]));
        assert_eq!(pool.take(), Some(3 * each), "the lowest place of an extent that stayed");
        while pool.take() != Some(each) {}
        assert_eq!(pool[each], [0; 16], "the second extent went back");
    }
}
