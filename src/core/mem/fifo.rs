//! Queue entries: twelve bytes each, in chunks that all queues share.
//!
//! ```text
//! chunk   | entry 0 | entry 1 | ... | entry 20 | next |  -->  | entry 0 | ...
//!               ^ head                                            ^ tail (next to write)
//! ```
//!
//! Always true: a fifo without entries owns no chunk; an entry's offset in its queue is implied by its
//! place (the fifo's head offset plus its distance), so it is not stored.

use bytemuck::{Pod, Zeroable};

use super::MessageId;
use super::give_back::give_back_room;
use super::places::Places;
use super::plain::Plain;

/// Entries in one chunk.
pub const ENTRIES_PER_CHUNK: usize = 21;
/// Chunks beyond those for entries, which only what is read back may take: else the queues that wait to be
/// read back could hold the last chunk between them, and each would wait for the others.
pub const READ_BACK_CHUNKS: usize = 2;
/// Bytes of one chunk with its link.
pub const CHUNK_BYTES: usize = size_of::<Chunk>();

/// One message in one queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// The message; the queue holds one reference.
    pub message: MessageId,
    /// What the queue knows of it (bits of the broker's choosing).
    pub flags: u64,
}

/// An entry as a chunk has it: the message as its place, for zeros are no message; the flags in two halves,
/// for whole they would cost four bytes more to stand at a multiple of eight.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct Kept {
    message: u32,
    flags: [u32; 2],
}

#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct Chunk {
    entries: [Kept; ENTRIES_PER_CHUNK],
    /// The chunk behind, as its place and one; 0 for none.
    next: u32,
}

const _: () = assert!(CHUNK_BYTES == 256, "no chunk lies across two groups that are given back");

/// The chunks of all queues.
#[derive(Debug)]
pub struct FifoPool {
    chunks: Plain<Chunk>,
}

/// The entries of one queue, first in, first out.
#[derive(Debug, Default)]
pub struct Fifo {
    head_chunk: u32,
    tail_chunk: u32,
    head_at: u8,
    tail_at: u8,
    len: u32,
    head_offset: u64,
}

impl FifoPool {
    /// Room for `entries_max` entries, rounded up to chunks, and for what is read back.
    pub fn with_entries(entries_max: usize) -> Self {
        let chunks_max = entries_max.div_ceil(ENTRIES_PER_CHUNK) + READ_BACK_CHUNKS;
        Self { chunks: Plain::new(chunks_max) }
    }

    /// Whether so many chunks more are free, of all but a reserve of so many.
    #[inline]
    pub const fn may_take(&self, chunks: usize, reserve: usize) -> bool {
        chunks + reserve <= self.chunks_free()
    }

    /// Chunks that could still be handed out to anybody.
    pub const fn chunks_free(&self) -> usize {
        self.chunks_max().saturating_sub(self.chunks.used())
    }

    /// Whether there is a chunk for what is read back.
    pub const fn has_read_back_chunk(&self) -> bool {
        self.chunks.used() < self.chunks.max()
    }

    /// Rises with every chunk that is given back.
    pub const fn given(&self) -> u64 {
        self.chunks.given()
    }

    /// All chunks there are for anybody.
    pub const fn chunks_max(&self) -> usize {
        self.chunks.max() - READ_BACK_CHUNKS
    }

    /// Chunks in use; 0 when every queue is empty.
    pub const fn chunks_used(&self) -> usize {
        self.chunks.used()
    }

    /// Bytes that nobody uses and the system holds memory for, about.
    pub const fn idle_bytes(&self) -> usize {
        self.chunks.idle_bytes()
    }

    /// Gives idle memory back to the system, a bounded part at a time; says whether that was the last part.
    pub fn trim(&mut self) -> bool {
        self.chunks.trim()
    }

    fn take(&mut self) -> Option<u32> {
        let chunk = self.chunks.take()?;
        self.chunks[chunk].next = 0;
        Some(chunk as u32 + 1)
    }

    fn give(&mut self, chunk: u32) {
        self.chunks.give(chunk as usize - 1);
    }

    #[inline]
    fn get(&self, chunk: u32, at: u8) -> Entry {
        let Kept { message, flags: [low, high] } = self.chunks[chunk as usize - 1].entries[at as usize];
        Entry {
            message: MessageId::from_index(message as usize),
            flags: u64::from(high) << 32 | u64::from(low),
        }
    }

    #[inline]
    fn set(&mut self, chunk: u32, at: u8, entry: Entry) {
        let flags = [entry.flags as u32, (entry.flags >> 32) as u32];
        let kept = Kept { message: entry.message.index() as u32, flags };
        self.chunks[chunk as usize - 1].entries[at as usize] = kept;
    }
}

impl Fifo {
    /// How many entries it holds.
    pub const fn len(&self) -> u32 {
        self.len
    }

    /// Whether it holds none.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The offset of the first entry, or of the next one to come when it is empty.
    pub const fn head_offset(&self) -> u64 {
        self.head_offset
    }

    /// Whether the next push takes a fresh chunk from the pool.
    pub const fn needs_chunk(&self) -> bool {
        self.len == 0 || self.tail_at as usize == ENTRIES_PER_CHUNK
    }

    /// Appends an entry; `false` when the pool has no chunk for it.
    #[must_use]
    pub fn push(&mut self, pool: &mut FifoPool, entry: Entry) -> bool {
        if self.needs_chunk() && pool.chunks_free() == 0 {
            return false;
        }
        self.push_read_back(pool, entry)
    }

    /// Appends an entry that was read back, which may have the last chunks; `false` when they are taken too.
    #[must_use]
    pub fn push_read_back(&mut self, pool: &mut FifoPool, entry: Entry) -> bool {
        if self.needs_chunk() {
            let Some(chunk) = pool.take() else {
                return false;
            };
            if self.len == 0 {
                self.head_chunk = chunk;
                self.head_at = 0;
            } else {
                pool.chunks[self.tail_chunk as usize - 1].next = chunk;
            }
            self.tail_chunk = chunk;
            self.tail_at = 0;
        }
        pool.set(self.tail_chunk, self.tail_at, entry);
        self.tail_at += 1;
        self.len += 1;
        true
    }

    /// The first entry.
    #[inline]
    pub fn front(&self, pool: &FifoPool) -> Option<Entry> {
        (self.len > 0).then(|| pool.get(self.head_chunk, self.head_at))
    }

    /// The last entry.
    pub fn back(&self, pool: &FifoPool) -> Option<Entry> {
        (self.len > 0).then(|| pool.get(self.tail_chunk, self.tail_at - 1))
    }

    /// Shows the entries in their order, until `each` says that it is enough; says whether it did not.
    pub fn look(&self, pool: &FifoPool, each: &mut dyn FnMut(Entry) -> bool) -> bool {
        let (mut chunk, mut at) = (self.head_chunk, self.head_at);
        for _ in 0..self.len {
            if at as usize == ENTRIES_PER_CHUNK {
                (chunk, at) = (pool.chunks[chunk as usize - 1].next, 0);
            }
            if !each(pool.get(chunk, at)) {
                return false;
            }
            at += 1;
        }
        true
    }

    /// Replaces the first entry, if there is one.
    pub fn set_front(&self, pool: &mut FifoPool, entry: Entry) {
        if self.len > 0 {
            pool.set(self.head_chunk, self.head_at, entry);
        }
    }

    /// Replaces the last entry, if there is one.
    pub fn set_back(&self, pool: &mut FifoPool, entry: Entry) {
        if self.len > 0 {
            pool.set(self.tail_chunk, self.tail_at - 1, entry);
        }
    }

    /// Takes the first entry, with its offset.
    pub fn pop(&mut self, pool: &mut FifoPool) -> Option<(u64, Entry)> {
        let entry = self.front(pool)?;
        let offset = self.head_offset;
        self.head_offset += 1;
        self.head_at += 1;
        self.len -= 1;
        if self.len == 0 {
            pool.give(self.head_chunk);
            (self.head_chunk, self.tail_chunk) = (0, 0);
        } else if self.head_at as usize == ENTRIES_PER_CHUNK {
            let chunk = self.head_chunk;
            self.head_chunk = pool.chunks[chunk as usize - 1].next;
            self.head_at = 0;
            pool.give(chunk);
        }
        Some((offset, entry))
    }

    /// Moves all entries out at once; what comes later continues the offsets.
    #[must_use]
    pub fn detach(&mut self) -> Self {
        let next_offset = self.head_offset + u64::from(self.len);
        core::mem::replace(self, Self { head_offset: next_offset, ..Self::default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(number: usize) -> Entry {
        Entry {
            message: MessageId::from_index(number),
            flags: (number as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15),
        }
    }

    #[test]
    fn the_last_chunks_are_for_what_is_read_back() {
        let mut pool = FifoPool::with_entries(ENTRIES_PER_CHUNK);
        let (mut fifo, mut head) = (Fifo::default(), Fifo::default());
        while fifo.push(&mut pool, entry(1)) {}
        assert_eq!((fifo.len(), pool.chunks_free()), (ENTRIES_PER_CHUNK as u32, 0));
        assert!(!head.push(&mut pool, entry(2)) && pool.has_read_back_chunk());
        while head.push_read_back(&mut pool, entry(2)) {}
        assert_eq!(head.len() as usize, READ_BACK_CHUNKS * ENTRIES_PER_CHUNK);
        assert!(!pool.has_read_back_chunk() && pool.chunks_free() == 0);
    }

    #[test]
    fn keeps_order_and_offsets_over_many_chunks_and_gives_all_back() {
        let mut pool = FifoPool::with_entries(200);
        let mut fifo = Fifo::default();
        for round in 0..50_u64 {
            for number in 0..100 {
                assert!(fifo.push(&mut pool, entry(number)));
            }
            for number in 0..100 {
                assert_eq!(fifo.pop(&mut pool), Some((round * 100 + number as u64, entry(number))));
            }
        }
        assert_eq!((fifo.pop(&mut pool), pool.chunks_used()), (None, 0));
    }

    #[test]
    fn a_full_pool_refuses_and_keeps_what_is_there() {
        let mut pool = FifoPool::with_entries(2 * ENTRIES_PER_CHUNK);
        let (mut one, mut two) = (Fifo::default(), Fifo::default());
        for number in 0..=ENTRIES_PER_CHUNK {
            assert!(one.push(&mut pool, entry(number)));
        }
        assert!(!two.push(&mut pool, entry(0)));
        assert_eq!((one.len(), two.len()), (ENTRIES_PER_CHUNK as u32 + 1, 0));
    }

    #[test]
    fn detaching_leaves_the_offsets_running() {
        let mut pool = FifoPool::with_entries(64);
        let mut fifo = Fifo::default();
        for number in 0..10 {
            assert!(fifo.push(&mut pool, entry(number)));
        }
        let mut old = fifo.detach();
        assert!(fifo.push(&mut pool, entry(77)));
        assert_eq!(old.len(), 10);
        assert_eq!(fifo.pop(&mut pool), Some((10, entry(77))));
        while old.pop(&mut pool).is_some() {}
        assert_eq!(pool.chunks_used(), 0);
    }
}

// Records of one type in a pool that is sized once.
//
// Always true: an index stays with its record until the record is removed; the lowest free place is used
// first, so that what is above the highest record can go back to the system after a burst; inserting never
// allocates.

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
mod slab_tests {
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
