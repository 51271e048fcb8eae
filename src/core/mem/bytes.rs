//! Byte queues of single connections, for replies to be sent and for input that cannot be handled yet.
//!
//! # Invariants
//! - An empty chain owns no block.
//! - Bytes are appended completely or not at all.
//! - The pool is separate from the blocks of messages. So replies and frames can be kept even if the memory
//!   for messages is full.

use super::blocks::{BlockId, Blocks, PAGE_BYTES};
use super::memory::Account;

/// The blocks of all byte queues of one kind.
#[derive(Debug)]
pub struct BytePool {
    blocks: Blocks,
    pages_max: usize,
}

impl BytePool {
    /// Returns the bytes of a pool for `bytes` of data, for the memory table.
    pub const fn bytes(bytes: usize) -> usize {
        bytes.div_ceil(PAGE_BYTES).saturating_mul(PAGE_BYTES + Blocks::PAGE_OVERHEAD_BYTES)
    }

    /// Reserves memory for `bytes_max` bytes, rounded up to pages.
    pub fn with_bytes(bytes_max: usize) -> Self {
        let pages_max = bytes_max.div_ceil(PAGE_BYTES);
        Self { blocks: Blocks::with_pages(pages_max, Account::unlimited()), pages_max }
    }

    /// Returns the bytes of free pages.
    pub const fn bytes_free(&self) -> usize {
        (self.pages_max - self.blocks.pages_used()) * PAGE_BYTES
    }

    /// Returns the bytes in free pages that may be resident in memory.
    pub const fn idle_bytes(&self) -> usize {
        self.blocks.pages_idle() * PAGE_BYTES
    }

    /// Returns one bounded part of the idle memory to the system. Returns whether that was the last part.
    pub fn trim(&mut self) -> bool {
        self.blocks.trim()
    }

    /// Returns the bytes of pages that are not free; 0 if every chain is empty.
    pub const fn bytes_used(&self) -> usize {
        self.blocks.pages_used() * PAGE_BYTES
    }
}

/// One byte queue. Its bytes are in a [`BytePool`].
#[derive(Debug, Default)]
pub struct ByteChain {
    /// First and last block of the chain; 0 if it is empty.
    first: BlockId,
    last: BlockId,
    /// Offset of the first byte in the first block.
    read_at: u32,
    /// Offset of the next byte in the last block.
    write_at: u32,
    len: u32,
}

impl ByteChain {
    /// Returns the number of bytes in the queue.
    pub const fn len(&self) -> usize {
        self.len as usize
    }

    /// Returns whether there are no bytes.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends `bytes`. Returns `false`, and appends nothing, if the pool has no capacity.
    #[must_use]
    pub fn append(&mut self, pool: &mut BytePool, bytes: &[u8]) -> bool {
        if bytes.is_empty() {
            return true;
        }
        let tail_room = match self.last {
            0 => 0,
            last => pool.blocks.bytes(last).len() - self.write_at as usize,
        };
        if bytes.len() > tail_room {
            let Some(chain) = pool.blocks.allocate_chain(bytes.len() - tail_room) else {
                return false;
            };
            if self.last == 0 {
                (self.first, self.last) = (chain, chain);
                (self.read_at, self.write_at) = (0, 0);
            } else {
                pool.blocks.link(self.last, chain);
            }
        }
        self.len += bytes.len() as u32;
        self.copy_in(pool, bytes);
        true
    }

    fn copy_in(&mut self, pool: &mut BytePool, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let block = pool.blocks.bytes_mut(self.last);
            let at = self.write_at as usize;
            let take = bytes.len().min(block.len() - at);
            block[at..at + take].copy_from_slice(&bytes[..take]);
            bytes = &bytes[take..];
            self.write_at += take as u32;
            if !bytes.is_empty() {
                self.last = pool.blocks.next(self.last);
                self.write_at = 0;
            }
        }
    }

    /// Returns the first bytes of the queue, as many as are contiguous; an empty slice if the queue is empty.
    pub fn front<'a>(&self, pool: &'a BytePool) -> &'a [u8] {
        if self.first == 0 {
            return &[];
        }
        let block = pool.blocks.bytes(self.first);
        let end = if self.first == self.last { self.write_at as usize } else { block.len() };
        &block[self.read_at as usize..end]
    }

    /// Removes the first `count` bytes. There must be that many.
    pub fn consume(&mut self, pool: &mut BytePool, count: usize) {
        assert!(count <= self.len(), "count is at most the length");
        let mut left = count;
        self.len -= count as u32;
        while left > 0 {
            let here = self.front(pool).len();
            let take = left.min(here);
            left -= take;
            self.read_at += take as u32;
            if take == here && self.first != self.last {
                let next = pool.blocks.unlink_first(self.first);
                self.first = next;
                self.read_at = 0;
            }
        }
        if self.len == 0 {
            self.clear(pool);
        }
    }

    /// Copies the first `out.len()` bytes without removing them.
    pub fn copy_front(&self, pool: &BytePool, out: &mut [u8]) {
        let mut block = self.first;
        let mut at = self.read_at as usize;
        let mut done = 0;
        while done < out.len() {
            let bytes = &pool.blocks.bytes(block)[at..];
            let take = bytes.len().min(out.len() - done);
            out[done..done + take].copy_from_slice(&bytes[..take]);
            done += take;
            block = pool.blocks.next(block);
            at = 0;
        }
    }

    /// Removes all bytes and frees the blocks.
    pub fn clear(&mut self, pool: &mut BytePool) {
        if self.first != 0 {
            pool.blocks.free_chain(self.first);
        }
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_read_as_appended_and_the_pool_is_empty_at_the_end() {
        let mut pool = BytePool::with_bytes(64 << 10);
        let mut chain = ByteChain::default();
        let mut expected = std::collections::VecDeque::new();
        let mut next = 0_u8;
        for round in 0..4000_usize {
            let bytes: Vec<u8> = (0..(round * 37) % 700)
                .map(|_| {
                    next = next.wrapping_add(1);
                    next
                })
                .collect();
            if chain.append(&mut pool, &bytes) {
                expected.extend(&bytes);
            }
            let take = (round * 53 % 900).min(chain.len());
            let mut copy = vec![0; take];
            chain.copy_front(&pool, &mut copy);
            assert_eq!(copy, expected.drain(..take).collect::<Vec<u8>>());
            chain.consume(&mut pool, take);
            assert_eq!(chain.len(), expected.len());
        }
        chain.clear(&mut pool);
        assert_eq!(pool.bytes_used(), 0);
    }

    #[test]
    fn an_append_that_does_not_fit_adds_nothing() {
        let mut pool = BytePool::with_bytes(8 << 10);
        let mut chain = ByteChain::default();
        assert!(chain.append(&mut pool, &[1; 5000]));
        assert!(!chain.append(&mut pool, &[2; 5000]));
        assert_eq!(chain.len(), 5000);
    }
}
