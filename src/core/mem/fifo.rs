//! Queue entries: twelve bytes each, in chunks that all queues share.
//!
//! ```text
//! chunk   | entry 0 | entry 1 | ... | entry 20 | next |  -->  | entry 0 | ...
//!               ^ head                                            ^ tail (next to write)
//! ```
//!
//! # Invariants
//! - An empty `Fifo` owns no chunk.
//! - The offset of an entry is not stored. It is the offset of the first entry plus the number of entries
//!   before it.

use bytemuck::{Pod, Zeroable};

use super::MessageId;
use super::memory::{Class, EXTENT_BYTES, Memory, POOL_EXTENTS};
use super::pool::PlainPool;

/// Entries in one chunk.
pub const ENTRIES_PER_CHUNK: usize = 21;
/// Additional chunks, only for messages that are read back from the disk. Without them, all chunks could
/// belong to queues that need a chunk to read messages back, and none of these queues could continue.
pub const READ_BACK_CHUNKS: usize = 2;
/// Bytes of one chunk with its link.
pub const CHUNK_BYTES: usize = size_of::<Chunk>();

/// An entry: one message in one queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct QueueEntry {
    /// The message; the queue holds one reference.
    pub message: MessageId,
    /// State of the message in this queue; the broker defines the bits.
    pub flags: u64,
}

/// An entry in a chunk. The message is stored as the index of its slot, so that zeroed memory is a valid
/// value. The flags are stored in two halves, because a `u64` would need four more bytes for alignment.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct StoredEntry {
    message: u32,
    flags: [u32; 2],
}

#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct Chunk {
    entries: [StoredEntry; ENTRIES_PER_CHUNK],
    /// The next chunk, as its index plus 1; 0 for none.
    next: u32,
}

const _: () = assert!(CHUNK_BYTES == 256, "no chunk spans two extents");
const CHUNKS_PER_EXTENT: usize = EXTENT_BYTES / CHUNK_BYTES;

/// The chunks of all queues.
#[derive(Debug)]
pub struct FifoPool {
    chunks: PlainPool<Chunk>,
    /// Number of chunks that there can be while nothing else uses memory, without those for reading back.
    chunks_max: usize,
    /// Number of chunks that messages of ordinary publishers may not use.
    reserve: usize,
    /// Number of extents that the entries of new messages leave for messages that are read back.
    kept_extents: usize,
}

/// The entries of one queue, first in, first out.
#[derive(Debug, Default)]
pub struct Fifo {
    /// First and last chunk, as index plus 1; 0 if there are no entries.
    head_chunk: u32,
    tail_chunk: u32,
    /// Position of the first entry in the first chunk.
    head_at: u8,
    /// Position of the next entry in the last chunk.
    tail_at: u8,
    len: u32,
    /// Offset of the first entry in its queue.
    head_offset: u64,
}

impl FifoPool {
    /// Creates a pool that only the number of entries limits.
    pub fn with_entries(entries_max: usize) -> Self {
        Self::in_memory(entries_max, &Memory::unlimited())
    }

    /// Creates a pool for up to `entries_max` entries that shares `memory` with others.
    pub fn in_memory(entries_max: usize, memory: &Memory) -> Self {
        // The pool always has an extent.
        let account = memory.account(Class::Messages, POOL_EXTENTS);
        let chunks_in = |extents: usize| extents.saturating_mul(CHUNKS_PER_EXTENT);
        let extents = account.class_max();
        let all = (entries_max.div_ceil(ENTRIES_PER_CHUNK) + READ_BACK_CHUNKS).min(chunks_in(extents));
        let chunks_max = all.saturating_sub(READ_BACK_CHUNKS);
        Self {
            // Half of the part that ordinary publishers leave of the memory for slots and blocks: messages whose content is
            // complete wait for their entries, and hold memory meanwhile.
            reserve: (chunks_max / 16).min(chunks_in(extents / 32)),
            kept_extents: all / CHUNKS_PER_EXTENT / 64,
            chunks_max,
            chunks: PlainPool::new(all, account),
        }
    }

    /// Returns the bytes of all extents of a pool for `entries_max` entries.
    pub fn bytes(entries_max: usize) -> usize {
        let chunks = entries_max.div_ceil(ENTRIES_PER_CHUNK) + READ_BACK_CHUNKS;
        (chunks * CHUNK_BYTES).next_multiple_of(EXTENT_BYTES)
    }

    /// Returns whether `chunks` chunks can be taken so that `reserve` chunks remain free.
    #[inline]
    pub fn may_take(&self, chunks: usize, reserve: usize) -> bool {
        chunks + reserve <= self.chunks_free()
    }

    /// Returns the number of free chunks, without those for reading back.
    #[inline]
    pub fn chunks_free(&self) -> usize {
        let (places, account) = (self.chunks.places(), self.chunks.places().account());
        let in_extents =
            account.available().saturating_sub(self.kept_extents).saturating_mul(CHUNKS_PER_EXTENT);
        (places.free() + in_extents.min(places.untouched())).saturating_sub(READ_BACK_CHUNKS)
    }

    /// Returns whether at most half of the chunks are in use.
    #[inline]
    pub const fn is_half_free(&self) -> bool {
        self.chunks.used() <= self.chunks_max / 2
    }

    /// Returns the number of chunks that messages of ordinary publishers may not use.
    pub const fn reserve(&self) -> usize {
        self.reserve
    }

    /// Returns whether a chunk is free for a message that is read back.
    pub fn has_read_back_chunk(&self) -> bool {
        self.chunks.places().obtainable() > 0
    }

    /// Returns how many chunks, and extents of the memory, were freed since the start.
    pub fn given(&self) -> u64 {
        self.chunks.places().given() + self.chunks.places().account().given()
    }

    /// Returns the number of chunks, without those for reading back.
    pub const fn chunks_max(&self) -> usize {
        self.chunks_max
    }

    /// Returns the number of chunks in use; 0 if every queue is empty.
    pub const fn chunks_used(&self) -> usize {
        self.chunks.used()
    }

    /// Returns about how many unused bytes are resident in memory.
    pub const fn idle_bytes(&self) -> usize {
        self.chunks.idle_bytes()
    }

    /// Returns one bounded part of the idle memory to the system. Returns whether that was the last part.
    pub fn trim(&mut self) -> bool {
        self.chunks.trim(READ_BACK_CHUNKS)
    }

    /// Makes sure that `count` chunks can be taken, and leaves [`READ_BACK_CHUNKS`] free ones. The caller has checked
    /// [`Self::may_take`]. Returns whether they can.
    pub fn touch_checked(&mut self, count: usize) -> bool {
        self.chunks.touch_checked(count + READ_BACK_CHUNKS)
    }

    /// Takes a chunk, which may be one of [`READ_BACK_CHUNKS`].
    fn take(&mut self) -> Option<u32> {
        let chunk = self.chunks.take_checked()?;
        self.chunks[chunk].next = 0;
        Some(chunk as u32 + 1)
    }

    fn give(&mut self, chunk: u32) {
        self.chunks.give(chunk as usize - 1);
    }

    #[inline]
    fn get(&self, chunk: u32, at: u8) -> QueueEntry {
        let StoredEntry { message, flags: [low, high] } =
            self.chunks[chunk as usize - 1].entries[at as usize];
        QueueEntry {
            message: MessageId::from_index(message as usize),
            flags: u64::from(high) << 32 | u64::from(low),
        }
    }

    #[inline]
    fn set(&mut self, chunk: u32, at: u8, entry: QueueEntry) {
        let flags = [entry.flags as u32, (entry.flags >> 32) as u32];
        let stored = StoredEntry { message: entry.message.index() as u32, flags };
        self.chunks[chunk as usize - 1].entries[at as usize] = stored;
    }
}

impl Fifo {
    /// Returns the number of entries.
    pub const fn len(&self) -> u32 {
        self.len
    }

    /// Returns whether there are no entries.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the offset of the first entry, or of the next one if it is empty.
    pub const fn head_offset(&self) -> u64 {
        self.head_offset
    }

    /// Returns whether the next push takes a new chunk from the pool.
    pub const fn needs_chunk(&self) -> bool {
        self.len == 0 || self.tail_at as usize == ENTRIES_PER_CHUNK
    }

    /// Appends an entry. Returns `false` if the pool has no chunk for it.
    #[must_use]
    pub fn push(&mut self, pool: &mut FifoPool, entry: QueueEntry) -> bool {
        if self.needs_chunk() && !pool.touch_checked(1) {
            return false;
        }
        self.push_read_back(pool, entry)
    }

    /// Appends an entry of a message that was read back. It may take one of [`READ_BACK_CHUNKS`]. Returns
    /// `false` if no chunk is free.
    #[must_use]
    pub fn push_read_back(&mut self, pool: &mut FifoPool, entry: QueueEntry) -> bool {
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

    /// Inserts an entry before the first one. It may take one of [`READ_BACK_CHUNKS`]. Returns `false` if no
    /// chunk is free.
    #[must_use]
    pub fn push_front(&mut self, pool: &mut FifoPool, entry: QueueEntry) -> bool {
        if self.head_at == 0 || self.len == 0 {
            let Some(chunk) = pool.take() else {
                return false;
            };
            if self.len == 0 {
                (self.tail_chunk, self.tail_at) = (chunk, ENTRIES_PER_CHUNK as u8);
            } else {
                pool.chunks[chunk as usize - 1].next = self.head_chunk;
            }
            (self.head_chunk, self.head_at) = (chunk, ENTRIES_PER_CHUNK as u8);
        }
        self.head_at -= 1;
        self.head_offset = self.head_offset.wrapping_sub(1);
        self.len += 1;
        pool.set(self.head_chunk, self.head_at, entry);
        true
    }

    /// Returns the first entry.
    #[inline]
    pub fn front(&self, pool: &FifoPool) -> Option<QueueEntry> {
        (self.len > 0).then(|| pool.get(self.head_chunk, self.head_at))
    }

    /// Returns the last entry.
    pub fn back(&self, pool: &FifoPool) -> Option<QueueEntry> {
        (self.len > 0).then(|| pool.get(self.tail_chunk, self.tail_at - 1))
    }

    /// Calls `each` with the entries in order until it returns `false`. Returns whether it never did.
    pub fn for_each(&self, pool: &FifoPool, each: &mut dyn FnMut(QueueEntry) -> bool) -> bool {
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
    pub fn set_front(&self, pool: &mut FifoPool, entry: QueueEntry) {
        if self.len > 0 {
            pool.set(self.head_chunk, self.head_at, entry);
        }
    }

    /// Replaces the last entry, if there is one.
    pub fn set_back(&self, pool: &mut FifoPool, entry: QueueEntry) {
        if self.len > 0 {
            pool.set(self.tail_chunk, self.tail_at - 1, entry);
        }
    }

    /// Removes the first entry and returns it with its offset.
    pub fn pop(&mut self, pool: &mut FifoPool) -> Option<(u64, QueueEntry)> {
        let entry = self.front(pool)?;
        let offset = self.head_offset;
        self.head_offset = self.head_offset.wrapping_add(1);
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

    /// Moves all entries out. Entries added later continue the offsets.
    #[must_use]
    pub fn detach(&mut self) -> Self {
        let next_offset = self.head_offset.wrapping_add(u64::from(self.len));
        core::mem::replace(self, Self { head_offset: next_offset, ..Self::default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(number: usize) -> QueueEntry {
        QueueEntry {
            message: MessageId::from_index(number),
            flags: (number as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15),
        }
    }

    #[test]
    fn the_last_chunks_are_for_messages_that_are_read_back() {
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
    fn order_and_offsets_hold_over_many_chunks_and_all_chunks_are_returned() {
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
    fn a_full_pool_refuses_and_keeps_existing_entries() {
        let mut pool = FifoPool::with_entries(2 * ENTRIES_PER_CHUNK);
        let (mut one, mut two) = (Fifo::default(), Fifo::default());
        for number in 0..=ENTRIES_PER_CHUNK {
            assert!(one.push(&mut pool, entry(number)));
        }
        assert!(!two.push(&mut pool, entry(0)));
        assert_eq!((one.len(), two.len()), (ENTRIES_PER_CHUNK as u32 + 1, 0));
    }

    #[test]
    fn entries_inserted_at_the_front_precede_the_others() {
        let mut pool = FifoPool::with_entries(200);
        for popped in [0, 1, 20, 21, 22, 63] {
            let mut fifo = Fifo::default();
            for number in 0..63 {
                assert!(fifo.push(&mut pool, entry(number)));
            }
            for _ in 0..popped {
                fifo.pop(&mut pool);
            }
            for number in (0..popped + 30).rev() {
                assert!(fifo.push_front(&mut pool, entry(1_000 + number)));
            }
            assert!(fifo.push(&mut pool, entry(9)));
            let mut seen = Vec::new();
            fifo.for_each(&pool, &mut |entry| {
                seen.push(entry.message.index());
                true
            });
            let wanted = (1_000..1_000 + popped + 30).chain(popped..63).chain([9]);
            assert_eq!(seen, wanted.collect::<Vec<_>>());
            for number in seen {
                assert_eq!(fifo.pop(&mut pool).map(|(_, found)| found), Some(entry(number)));
            }
            assert_eq!((fifo.len(), pool.chunks_used()), (0, 0));
        }
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
