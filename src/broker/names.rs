//! Name tables: from a name to the record that has it, without a second copy of the name.
//!
//! Always true: a table is sized once and holds indices with their hashes; the records own the names. The
//! hash is keyed with a seed drawn at start, so no client can choose names that collide.

use core::hash::{BuildHasher, Hash};

use foldhash::quality::FixedState;
use hashbrown::HashTable;

/// Fills a buffer with random bytes, for names that nobody may guess.
pub type Entropy = Box<dyn FnMut(&mut [u8])>;

/// One table from a key to the index of a record.
#[derive(Debug)]
pub(crate) struct IndexTable {
    table: HashTable<(u64, u32)>,
    hasher: FixedState,
}

impl IndexTable {
    /// Bytes per record: an entry and its control byte at the table's usual filling.
    pub(crate) const ENTRY_BYTES: usize = (size_of::<(u64, u32)>() + 1) * 16 / 7;

    pub(crate) fn with_capacity(capacity: usize, seed: u64) -> Self {
        Self { table: HashTable::with_capacity(capacity), hasher: FixedState::with_seed(seed) }
    }

    /// The record with this key; `is_it` compares the key of a candidate.
    pub(crate) fn find(&self, key: impl Hash, is_it: impl Fn(usize) -> bool) -> Option<usize> {
        let hash = self.hasher.hash_one(key);
        let found = self.table.find(hash, |&(other, index)| other == hash && is_it(index as usize))?;
        Some(found.1 as usize)
    }

    /// Adds a record; its key must not be in the table yet.
    pub(crate) fn insert(&mut self, key: impl Hash, index: usize) {
        let hash = self.hasher.hash_one(key);
        self.table.insert_unique(hash, (hash, index as u32), |&(hash, _)| hash);
    }

    /// Takes a record out of the table.
    pub(crate) fn remove(&mut self, key: impl Hash, index: usize) {
        let hash = self.hasher.hash_one(key);
        if let Ok(entry) = self.table.find_entry(hash, |&(_, other)| other as usize == index) {
            entry.remove();
        }
    }
}
