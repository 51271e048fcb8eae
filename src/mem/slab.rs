//! Records of one type in a pool that is sized once.
//!
//! Always true: an index stays with its record until the record is removed; the lowest part of the pool is
//! used first, and freed places before fresh ones, so the touched memory stays as small as the highest
//! tide was; inserting never allocates.

/// A pool of at most `capacity` records.
#[derive(Debug)]
pub struct Slab<T> {
    places: Vec<Place<T>>,
    capacity: usize,
    free_head: usize,
    len: usize,
}

#[derive(Debug)]
enum Place<T> {
    Taken(T),
    /// The next free place, [`NO_PLACE`] at the end.
    Free(usize),
}

const NO_PLACE: usize = usize::MAX;

impl<T> Slab<T> {
    /// Reserves room for `capacity` records without touching it.
    pub fn with_capacity(capacity: usize) -> Self {
        Self { places: Vec::with_capacity(capacity), capacity, free_head: NO_PLACE, len: 0 }
    }

    /// Bytes that one record takes.
    pub const fn record_bytes() -> usize {
        size_of::<Place<T>>()
    }

    /// How many records there are.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether no further record fits.
    pub const fn is_full(&self) -> bool {
        self.len == self.capacity
    }

    /// How many more records fit.
    pub const fn room(&self) -> usize {
        self.capacity - self.len
    }

    /// Puts a record into a free place; gives it back when the pool is full.
    pub fn insert(&mut self, record: T) -> Result<usize, T> {
        if self.free_head != NO_PLACE {
            let index = self.free_head;
            if let Place::Free(next) = self.places[index] {
                self.free_head = next;
            }
            self.places[index] = Place::Taken(record);
            self.len += 1;
            return Ok(index);
        }
        if self.places.len() == self.capacity {
            return Err(record);
        }
        self.places.push(Place::Taken(record));
        self.len += 1;
        Ok(self.places.len() - 1)
    }

    /// Takes the record out of its place.
    ///
    /// # Panics
    /// When the place is free: its owner has lost count.
    pub fn remove(&mut self, index: usize) -> T {
        match core::mem::replace(&mut self.places[index], Place::Free(self.free_head)) {
            Place::Taken(record) => {
                self.free_head = index;
                self.len -= 1;
                record
            }
            Place::Free(_) => panic!("slab place {index} was freed twice"),
        }
    }

    /// The record, if the place holds one.
    pub fn get(&self, index: usize) -> Option<&T> {
        match self.places.get(index) {
            Some(Place::Taken(record)) => Some(record),
            _ => None,
        }
    }

    /// The record to change, if the place holds one.
    pub fn get_mut(&mut self, index: usize) -> Option<&mut T> {
        match self.places.get_mut(index) {
            Some(Place::Taken(record)) => Some(record),
            _ => None,
        }
    }

    /// Places that were ever used: every index in use is below.
    pub const fn places(&self) -> usize {
        self.places.len()
    }

    /// All records with their indices, in index order.
    pub fn iter(&self) -> impl Iterator<Item = (usize, &T)> {
        self.places.iter().enumerate().filter_map(|(index, place)| match place {
            Place::Taken(record) => Some((index, record)),
            Place::Free(_) => None,
        })
    }
}

impl<T> core::ops::Index<usize> for Slab<T> {
    type Output = T;

    fn index(&self, index: usize) -> &T {
        match &self.places[index] {
            Place::Taken(record) => record,
            Place::Free(_) => panic!("slab place {index} is free"),
        }
    }
}

impl<T> core::ops::IndexMut<usize> for Slab<T> {
    fn index_mut(&mut self, index: usize) -> &mut T {
        match &mut self.places[index] {
            Place::Taken(record) => record,
            Place::Free(_) => panic!("slab place {index} is free"),
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
