//! Records of one type in a pool that is sized once.
//!
//! Always true: an index stays with its record until the record is removed; the lowest free place is used
//! first, so that what is above the highest record can go back to the system after a burst; inserting never
//! allocates.

use super::give_back::give_back_room;
use super::places::Places;

/// A pool of at most `capacity` records.
#[derive(Debug)]
pub struct Slab<T> {
    records: Vec<Option<T>>,
    places: Places,
    /// So many records from the first on were touched since they were given back last.
    touched: usize,
}

impl<T> Slab<T> {
    /// Reserves room for `capacity` records without touching it.
    pub fn with_capacity(capacity: usize) -> Self {
        Self { records: Vec::with_capacity(capacity), places: Places::new(capacity), touched: 0 }
    }

    /// Bytes that one record takes, with its bit among the free places.
    pub const fn record_bytes() -> usize {
        size_of::<Option<T>>() + 1
    }

    /// How many records there are.
    pub const fn len(&self) -> usize {
        self.places.used()
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether no further record fits.
    pub const fn is_full(&self) -> bool {
        self.room() == 0
    }

    /// How many more records fit.
    pub const fn room(&self) -> usize {
        self.places.max() - self.places.used()
    }

    /// Puts a record into a free place; gives it back when the pool is full.
    pub fn insert(&mut self, record: T) -> Result<usize, T> {
        let Some(index) = self.places.take() else { return Err(record) };
        match self.records.get_mut(index) {
            Some(place) => *place = Some(record),
            None => self.records.push(Some(record)),
        }
        Ok(index)
    }

    /// Rises with every record that is taken out.
    pub const fn given(&self) -> u64 {
        self.places.given()
    }

    /// Takes the record out of its place.
    ///
    /// # Panics
    /// When the place is free: its owner has lost count.
    #[inline]
    pub fn remove(&mut self, index: usize) -> T {
        self.places.give(index);
        match self.records[index].take() {
            Some(record) => record,
            None => panic!("slab place {index} was freed twice"),
        }
    }

    /// Bytes above the highest record that the system may still hold memory for.
    pub const fn idle_bytes(&self) -> usize {
        let touched = if self.touched > self.records.len() { self.touched } else { self.records.len() };
        (touched - self.places.used()) * size_of::<Option<T>>()
    }

    /// Gives the room above the highest record back to the system.
    pub fn trim(&mut self) {
        self.touched = self.touched.max(self.records.len());
        self.places.shrink();
        self.records.truncate(self.places.end());
        let touched = self.touched - self.records.len();
        give_back_room(&mut self.records.spare_capacity_mut()[..touched]);
        self.touched = self.records.len();
    }

    /// The record, if the place holds one.
    pub fn get(&self, index: usize) -> Option<&T> {
        match self.records.get(index) {
            Some(Some(record)) => Some(record),
            _ => None,
        }
    }

    /// The record to change, if the place holds one.
    pub fn get_mut(&mut self, index: usize) -> Option<&mut T> {
        match self.records.get_mut(index) {
            Some(Some(record)) => Some(record),
            _ => None,
        }
    }

    /// Places that were ever used: every index in use is below.
    pub const fn places(&self) -> usize {
        self.places.end()
    }

    /// All records with their indices, in index order.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn freed_places_are_used_before_fresh_ones() {
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
    fn a_double_free_is_our_own_mistake() {
        let mut slab = Slab::with_capacity(1);
        let index = slab.insert(1).unwrap();
        slab.remove(index);
        slab.remove(index);
    }
}
