//! Finds the records of a pool by the hash of their keys, without a copy of the keys.
//!
//! ```text
//! buckets  | 3 | 0 | 1 |            the first record of each bucket, counted from 1; 0 for none
//! entries  | hash, 0 | - | hash, 1 |   per record: the hash of its key, and the next record of its bucket
//! ```
//!
//! The table grows and shrinks by one bucket at a time (linear hashing). So no insertion moves many records, and the memory
//! follows the number of records. With 2^n buckets and more, but fewer than 2^(n+1), the lowest n + 1 bits of a hash select a
//! bucket. If that one does not exist yet, its records are still in the bucket that the lowest n bits select.
//!
//! # Invariants
//! - Each record of the table is in the bucket of its hash, once.
//! - There are at most twice as many buckets as records, and at least as many, unless the table is empty.

use core::hash::{BuildHasher, Hash};

use bytemuck::Zeroable;
use foldhash::quality::FixedState;

use super::mapped::Region;
use super::memory::{Account, Class, EXTENT_BYTES, Memory};
use super::places::Touched;

#[derive(Clone, Copy, Debug, Zeroable)]
struct Entry {
    hash: u32,
    /// The next record of the bucket, as its index plus 1; 0 for none.
    next: u32,
}

/// An index of the records of one pool.
#[derive(Debug)]
pub struct HashIndex {
    buckets: Table<u32>,
    entries: Table<Entry>,
    /// Number of buckets in use.
    count: usize,
    /// Selects the bits of a hash that select its bucket.
    mask: u32,
    /// Number of records.
    len: usize,
}

impl HashIndex {
    /// Bytes per record, with one bucket for each.
    pub const ENTRY_BYTES: usize = size_of::<Entry>() + size_of::<u32>();

    /// Reserves addresses for `capacity` records, whose extents are taken from `memory`.
    pub fn in_memory(capacity: usize, memory: &Memory, class: Class) -> Self {
        Self {
            buckets: Table::in_memory(capacity.max(1), memory, class),
            entries: Table::in_memory(capacity, memory, class),
            count: 0,
            mask: 0,
            len: 0,
        }
    }

    /// Returns the index of the record with this hash for which `is_it` is true.
    #[inline]
    pub fn find(&self, hash: u64, is_it: impl Fn(usize) -> bool) -> Option<usize> {
        if self.len == 0 {
            return None;
        }
        let hash = hash as u32;
        let mut link = self.buckets.values[self.bucket_of(hash)];
        while link != 0 {
            let index = link as usize - 1;
            let entry = self.entries.values[index];
            if entry.hash == hash && is_it(index) {
                return Some(index);
            }
            link = entry.next;
        }
        None
    }

    /// Adds a record, which must not be in the table yet. `touched` are the places of its pool.
    ///
    /// The table takes memory for all records that the pool can have in its touched extents. It does so together with the
    /// command for which the pool touched the extent: a later one finds a free place in the pool, and checks for no memory.
    ///
    /// # Panics
    /// Panics if the memory has no extent for it. The caller has checked the capacity of its pool, which leaves
    /// [`COMMAND_EXTENTS`](super::COMMAND_EXTENTS).
    pub fn insert(&mut self, hash: u64, index: usize, touched: Touched) {
        self.cover(touched);
        if self.len == self.count {
            self.split();
        }
        let hash = hash as u32;
        let bucket = self.bucket_of(hash);
        let first = &mut self.buckets.values[bucket];
        self.entries.values[index] = Entry { hash, next: *first };
        *first = index as u32 + 1;
        self.len += 1;
    }

    /// Takes the memory for these places of the pool. Called after a record was added to the pool that is not in the table:
    /// otherwise a later command would need the memory for many extents of the pool at once.
    ///
    /// # Panics
    /// As [`Self::insert`].
    pub fn cover(&mut self, touched: Touched) {
        let is_covered = self.buckets.cover(touched.count) && self.entries.cover(touched.end);
        assert!(is_covered, "a command checks for the memory that it needs");
    }

    /// Removes a record, if it is in the table.
    pub fn remove(&mut self, hash: u64, index: usize) {
        if self.len == 0 {
            return;
        }
        let bucket = self.bucket_of(hash as u32);
        let wanted = index as u32 + 1;
        let mut link = self.buckets.values[bucket];
        if link == wanted {
            self.buckets.values[bucket] = self.entries.values[index].next;
        } else {
            while link != 0 && self.entries.values[link as usize - 1].next != wanted {
                link = self.entries.values[link as usize - 1].next;
            }
            if link == 0 {
                return;
            }
            self.entries.values[link as usize - 1].next = self.entries.values[index].next;
        }
        self.len -= 1;
        // Two for each removed record, so that the buckets become fewer as fast as the records.
        for _ in 0..2 {
            if self.count > 1 && self.count > 2 * self.len {
                self.merge();
            }
        }
    }

    /// Returns memory to the system that is not needed for the `touched` places of the pool.
    pub fn trim(&mut self, touched: Touched) {
        self.buckets.uncover(self.count.max(touched.count));
        self.entries.uncover(touched.end);
    }

    #[inline]
    fn bucket_of(&self, hash: u32) -> usize {
        let bucket = (hash & self.mask) as usize;
        if bucket < self.count { bucket } else { bucket & self.mask as usize >> 1 }
    }

    fn set_count(&mut self, count: usize) {
        self.count = count;
        self.mask = (count + 1).next_power_of_two() as u32 - 1;
    }

    /// Adds a bucket, and moves records to it from the bucket in which they were.
    fn split(&mut self) {
        let new = self.count;
        self.buckets.values[new] = 0;
        self.set_count(new + 1);
        if new == 0 {
            return;
        }
        let old = parent_of(new);
        let mut link = core::mem::take(&mut self.buckets.values[old]);
        while link != 0 {
            let index = link as usize - 1;
            let Entry { hash, next } = self.entries.values[index];
            let bucket = self.bucket_of(hash);
            self.entries.values[index].next = self.buckets.values[bucket];
            self.buckets.values[bucket] = link;
            link = next;
        }
    }

    /// Removes the last bucket, and moves its records to the bucket from which it was split.
    fn merge(&mut self) {
        let last = self.count - 1;
        let parent = parent_of(last);
        let mut link = core::mem::take(&mut self.buckets.values[last]);
        while link != 0 {
            let next = self.entries.values[link as usize - 1].next;
            self.entries.values[link as usize - 1].next = self.buckets.values[parent];
            self.buckets.values[parent] = link;
            link = next;
        }
        self.set_count(last);
    }
}

/// Returns the bucket from which this one is split: the one without the highest bit. `bucket` is at least 1.
const fn parent_of(bucket: usize) -> usize {
    bucket & !(1 << bucket.ilog2())
}

/// An array of which the beginning is used, in extents of the memory.
#[derive(Debug)]
struct Table<T> {
    values: Region<T>,
    account: Account,
}

impl<T: Zeroable> Table<T> {
    fn in_memory(max: usize, memory: &Memory, class: Class) -> Self {
        Self { values: Region::reserve(max), account: memory.account(class, 0) }
    }

    /// Makes at least the first `count` values usable. Returns `false` if the memory has no extent for them.
    fn cover(&mut self, count: usize) -> bool {
        let extents = Self::extents_of(count);
        (extents <= self.account.held() || self.account.take_checked(extents - self.account.held()))
            && self.values.open(count)
    }

    /// Returns the extents beyond the first `count` values to the system.
    fn uncover(&mut self, count: usize) {
        let extents = Self::extents_of(count);
        if extents < self.account.held() {
            self.values.give_back(count..self.account.held() * EXTENT_BYTES / size_of::<T>());
            self.account.give(self.account.held() - extents);
        }
    }

    fn extents_of(count: usize) -> usize {
        let unit = rustix::param::page_size().max(EXTENT_BYTES);
        (count * size_of::<T>()).div_ceil(unit) * (unit / EXTENT_BYTES)
    }
}

/// A hash table from a key to the index of a record. The key is stored in the record only.
///
/// The hash has a random seed, so clients cannot choose names that collide.
#[derive(Debug)]
pub struct IndexTable {
    index: HashIndex,
    hasher: FixedState,
}

impl IndexTable {
    /// Bytes per record.
    pub const ENTRY_BYTES: usize = HashIndex::ENTRY_BYTES;

    /// Creates a table for a pool with at most this many records, whose memory belongs to `class`.
    pub fn in_memory(capacity: usize, memory: &Memory, class: Class, seed: u64) -> Self {
        Self { index: HashIndex::in_memory(capacity, memory, class), hasher: FixedState::with_seed(seed) }
    }

    /// Returns the index of the record with this key. `is_it` returns whether the record with an index has
    /// the key.
    pub fn find(&self, key: impl Hash, is_it: impl Fn(usize) -> bool) -> Option<usize> {
        self.index.find(self.hasher.hash_one(key), is_it)
    }

    /// Adds a record. Its key must not be in the table yet. `touched` are the places of the pool that has the record.
    pub fn insert(&mut self, key: impl Hash, index: usize, touched: Touched) {
        self.index.insert(self.hasher.hash_one(key), index, touched);
    }

    /// Takes the memory for these places of the pool. Called after a record was added to the pool that is not in the table.
    pub fn cover(&mut self, touched: Touched) {
        self.index.cover(touched);
    }

    /// Removes a record from the table.
    pub fn remove(&mut self, key: impl Hash, index: usize) {
        self.index.remove(self.hasher.hash_one(key), index);
    }

    /// Returns memory to the system that is not needed for the `touched` places of the pool.
    pub fn trim(&mut self, touched: Touched) {
        self.index.trim(touched);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn hash_of(key: u64) -> u64 {
        key.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 29
    }

    /// Random operations give the same results as a map, the buckets follow the number of records, and the memory is
    /// returned.
    #[test]
    fn behaves_like_a_map_while_it_grows_and_shrinks() {
        let memory = Memory::new(1_000, [0; 3]);
        let mut table = HashIndex::in_memory(20_000, &memory, Class::Definitions);
        let mut keys = BTreeMap::new();
        let mut random = super::super::random(0);
        for step in 0..60_000 {
            // Few keys, so that most hashes collide with others in their low bits.
            let index = random(20_000);
            let is_filling = step / 20_000 % 2 == 0;
            let key = (index as u64 / 3) * 64;
            if !keys.contains_key(&index) && is_filling {
                table.insert(hash_of(key), index, Touched { end: index + 1, count: keys.len() + 1 });
                keys.insert(index, key);
            } else if let Some(key) = keys.remove(&index) {
                table.remove(hash_of(key), index);
                table.remove(hash_of(key), index);
            }
            assert_eq!(table.len, keys.len());
            assert!(table.count <= 2 * table.len + 2 && table.count >= table.len, "{} buckets", table.count);
            if step % 500 == 0 {
                let end = keys.last_key_value().map_or(0, |(last, _)| last + 1);
                table.trim(Touched { end, count: keys.len() });
                for probe in (0..20_000).step_by(61) {
                    let found = table.find(hash_of(probe as u64 / 3 * 64), |at| at == probe);
                    assert_eq!(found, keys.contains_key(&probe).then_some(probe));
                }
            }
        }
        for (index, key) in core::mem::take(&mut keys) {
            table.remove(hash_of(key), index);
        }
        assert_eq!((table.len, table.find(0, |_| true)), (0, None));
        table.trim(Touched { end: 0, count: 0 });
        assert!(memory.extents_used() <= 1, "one bucket may stay");
    }
}
