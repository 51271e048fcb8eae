//! Blocks for message bytes that do not fit into the message's slot. All blocks are in one region; those of a
//! message form a chain.
//!
//! ```text
//! region   | page 0 (4 KiB)                | page 1                        | page 2 ...
//! whole    | ############################# one block of 4096 bytes ####### |
//! split    | u0 | u1 | u2 | ......... | u15|    sixteen blocks of 256 bytes
//! ```
//!
//! A block is identified by its first unit, counted from 1; 0 ends a chain. A chain takes a whole page while
//! at least half a page of data is left, and units for the rest. So at most 255 bytes of its last block are
//! unused if that is a unit, and at most half of it if that is a page.
//!
//! # Invariants
//! - Every unit is in exactly one chain or free.
//! - A page is whole, split or free. A split page becomes free when its last unit is freed.
//! - The lowest free page of a touched extent is taken first. After a burst most extents are therefore free and can be
//!   returned to the system.

use bytemuck::Zeroable;

use super::mapped::Region;
use super::memory::Account;
use super::places::Places;

/// Bytes of the smaller block.
pub const BLOCK_UNIT_BYTES: usize = 256;
/// Bytes of the larger block. Memory is returned to the system in whole pages.
pub const PAGE_BYTES: usize = 4096;
const UNITS_PER_PAGE: usize = PAGE_BYTES / BLOCK_UNIT_BYTES;
const ALL_UNITS_FREE: u16 = u16::MAX;
/// Extents checked in one step of returning memory (16 MiB).
const TRIM_EXTENTS: usize = 1024;
/// If at least this many bytes are left, a chain takes a whole page for them.
const WHOLE_PAGE_FROM_BYTES: usize = PAGE_BYTES / 2;

/// The first unit of a block, counted from 1; 0 for none.
pub(super) type BlockId = u32;

/// The use of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Zeroable)]
#[repr(u8)]
enum PageUse {
    Free = 0,
    /// One block of [`PAGE_BYTES`].
    Whole,
    /// Blocks of [`BLOCK_UNIT_BYTES`].
    Split,
}

#[derive(Clone, Copy, Debug, Zeroable)]
struct PageState {
    kind: PageUse,
    /// A set bit is a free unit; only used in split pages.
    free_units: u16,
    /// Neighbours on the list of split pages with free units, counted from 1.
    next: u32,
    previous: u32,
    /// Per unit: the next block of the chain.
    next_blocks: [BlockId; UNITS_PER_PAGE],
}

/// The region, and how its pages are used.
#[derive(Debug)]
pub(super) struct Blocks {
    bytes: Region<u8>,
    pages: Region<PageState>,
    places: Places,
    /// First page of the list of split pages with free units, counted from 1; 0 for none.
    split_free_head: u32,
    /// The extent at which the next step of returning memory begins.
    trim_at: usize,
}

impl Blocks {
    /// Bytes of bookkeeping per page.
    pub(super) const PAGE_OVERHEAD_BYTES: usize = size_of::<PageState>();

    /// Reserves addresses for `pages_max` pages.
    pub(super) fn with_pages(pages_max: usize, account: Account) -> Self {
        Self {
            bytes: Region::reserve(pages_max * PAGE_BYTES),
            pages: Region::reserve(pages_max),
            places: Places::new(pages_max, PAGE_BYTES, account),
            split_free_head: 0,
            trim_at: 0,
        }
    }

    /// Returns how many pages there are, how many are used, and how many can be.
    pub(super) const fn places(&self) -> &Places {
        &self.places
    }

    #[inline]
    pub(super) const fn pages_used(&self) -> usize {
        self.places.used()
    }

    /// Returns whether a split page has free units.
    pub(super) const fn has_free_units(&self) -> bool {
        self.split_free_head != 0
    }

    /// Returns the number of free pages that may be resident in memory.
    pub(super) const fn pages_idle(&self) -> usize {
        self.places.free()
    }

    /// Returns free extents to the system, one bounded part per call. Returns whether it reached the end.
    pub(super) fn trim(&mut self) -> bool {
        let bytes = &mut self.bytes;
        let give_back = |run: core::ops::Range<usize>| {
            bytes.give_back(run.start * PAGE_BYTES..run.end * PAGE_BYTES);
        };
        let next = self.places.trim(self.trim_at, TRIM_EXTENTS, 0, give_back);
        self.trim_at = next.unwrap_or(0);
        next.is_none()
    }

    /// Returns the maximum number of free pages that a chain for `bytes` bytes takes.
    pub(super) const fn pages_for(bytes: usize) -> usize {
        bytes.div_ceil(PAGE_BYTES)
    }

    /// Returns the bytes of all blocks of a chain for `bytes` bytes.
    pub(super) const fn bytes_for(bytes: usize) -> usize {
        let rest = bytes % PAGE_BYTES;
        let last =
            if rest < WHOLE_PAGE_FROM_BYTES { rest.next_multiple_of(BLOCK_UNIT_BYTES) } else { PAGE_BYTES };
        bytes - rest + last
    }

    /// Allocates a chain of blocks for `bytes` bytes (at least 1); `None`, without any change, if too few
    /// blocks are free.
    pub(super) fn allocate_chain(&mut self, bytes: usize) -> Option<BlockId> {
        let mut left = bytes;
        let first = self.allocate_block(left)?;
        let mut last = first;
        left = left.saturating_sub(self.block_len(first));
        while left > 0 {
            let Some(block) = self.allocate_block(left) else {
                self.free_chain(first);
                return None;
            };
            self.set_next(last, block);
            last = block;
            left = left.saturating_sub(self.block_len(block));
        }
        Some(first)
    }

    /// Appends `chain` to `block`, which is the last block of its chain.
    pub(super) fn link(&mut self, block: BlockId, chain: BlockId) {
        debug_assert!(self.next(block) == 0, "only the end of a chain is continued");
        self.set_next(block, chain);
    }

    /// Frees the first block of a chain and returns the next one.
    pub(super) fn unlink_first(&mut self, first: BlockId) -> BlockId {
        let next = self.next(first);
        self.free_block(first);
        next
    }

    /// Frees a chain.
    #[inline]
    pub(super) fn free_chain(&mut self, first: BlockId) {
        let mut block = first;
        while block != 0 {
            let next = self.next(block);
            self.free_block(block);
            block = next;
        }
    }

    /// Returns the next block of the chain; 0 at the end.
    #[inline]
    pub(super) fn next(&self, block: BlockId) -> BlockId {
        let unit = block as usize - 1;
        self.pages[unit / UNITS_PER_PAGE].next_blocks[unit % UNITS_PER_PAGE]
    }

    #[inline]
    fn set_next(&mut self, block: BlockId, next: BlockId) {
        let unit = block as usize - 1;
        self.pages[unit / UNITS_PER_PAGE].next_blocks[unit % UNITS_PER_PAGE] = next;
    }

    /// Returns the bytes of a block.
    #[inline]
    pub(super) fn bytes(&self, block: BlockId) -> &[u8] {
        let start = (block as usize - 1) * BLOCK_UNIT_BYTES;
        &self.bytes[start..start + self.block_len(block)]
    }

    /// Returns the bytes of a block for writing.
    #[inline]
    pub(super) fn bytes_mut(&mut self, block: BlockId) -> &mut [u8] {
        let start = (block as usize - 1) * BLOCK_UNIT_BYTES;
        let len = self.block_len(block);
        &mut self.bytes[start..start + len]
    }

    #[inline]
    fn block_len(&self, block: BlockId) -> usize {
        match self.pages[(block as usize - 1) / UNITS_PER_PAGE].kind {
            PageUse::Whole => PAGE_BYTES,
            PageUse::Split => BLOCK_UNIT_BYTES,
            PageUse::Free => panic!("block {block} lies in a free page"),
        }
    }

    fn allocate_block(&mut self, wanted_bytes: usize) -> Option<BlockId> {
        let block = if wanted_bytes >= WHOLE_PAGE_FROM_BYTES {
            let page = self.take_page(PageUse::Whole)?;
            (page * UNITS_PER_PAGE) as BlockId + 1
        } else {
            self.take_unit()?
        };
        self.set_next(block, 0);
        Some(block)
    }

    fn take_unit(&mut self) -> Option<BlockId> {
        if self.split_free_head == 0 {
            let page = self.take_page(PageUse::Split)?;
            self.pages[page].free_units = ALL_UNITS_FREE;
            self.link_split(page);
        }
        let index = self.split_free_head as usize - 1;
        let page = &mut self.pages[index];
        let unit = page.free_units.trailing_zeros() as usize;
        page.free_units &= page.free_units - 1;
        if page.free_units == 0 {
            self.unlink_split(index);
        }
        Some((index * UNITS_PER_PAGE + unit) as BlockId + 1)
    }

    fn take_page(&mut self, kind: PageUse) -> Option<usize> {
        let index = self.places.take()?;
        if index >= self.pages.len() && !self.pages.open(index + 1)
            || (index + 1) * PAGE_BYTES > self.bytes.len() && !self.bytes.open((index + 1) * PAGE_BYTES)
        {
            self.places.give(index);
            return None;
        }
        let page = &mut self.pages[index];
        (page.kind, page.free_units) = (kind, 0);
        Some(index)
    }

    fn free_block(&mut self, block: BlockId) {
        let index = (block as usize - 1) / UNITS_PER_PAGE;
        match self.pages[index].kind {
            PageUse::Whole => self.give_page(index),
            PageUse::Split => self.free_unit(index, (block as usize - 1) % UNITS_PER_PAGE),
            PageUse::Free => panic!("block {block} was freed twice"),
        }
    }

    fn free_unit(&mut self, index: usize, unit: usize) {
        let page = &mut self.pages[index];
        let bit = 1 << unit;
        assert!(page.free_units & bit == 0, "unit {unit} of page {index} was freed twice");
        let was_full = page.free_units == 0;
        page.free_units |= bit;
        let is_empty = page.free_units == ALL_UNITS_FREE;
        if is_empty {
            if !was_full {
                self.unlink_split(index);
            }
            self.give_page(index);
        } else if was_full {
            self.link_split(index);
        }
    }

    fn give_page(&mut self, index: usize) {
        let page = &mut self.pages[index];
        (page.kind, page.free_units) = (PageUse::Free, 0);
        self.places.give(index);
    }

    fn link_split(&mut self, index: usize) {
        let head = self.split_free_head;
        self.pages[index].next = head;
        self.pages[index].previous = 0;
        if head != 0 {
            self.pages[head as usize - 1].previous = index as u32 + 1;
        }
        self.split_free_head = index as u32 + 1;
    }

    fn unlink_split(&mut self, index: usize) {
        let (previous, next) = (self.pages[index].previous, self.pages[index].next);
        match previous {
            0 => self.split_free_head = next,
            _ => self.pages[previous as usize - 1].next = next,
        }
        if next != 0 {
            self.pages[next as usize - 1].previous = previous;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::memory::EXTENT_BYTES;
    use super::*;

    /// Pages of this pool in the largest page of a system (64 KiB).
    const SYSTEM_PAGES_MAX: usize = 16;

    fn chain_len(blocks: &Blocks, first: BlockId) -> usize {
        let (mut block, mut len) = (first, 0);
        while block != 0 {
            len += blocks.bytes(block).len();
            block = blocks.next(block);
        }
        len
    }

    #[test]
    fn chains_waste_less_than_a_unit_below_half_a_page() {
        let mut blocks = Blocks::with_pages(64, Account::unlimited());
        for bytes in [1, 255, 256, 257, 2047, 2048, 4096, 4097, 10_000] {
            let chain = blocks.allocate_chain(bytes).unwrap();
            let waste = chain_len(&blocks, chain) - bytes;
            let tail = bytes % PAGE_BYTES;
            let bound = if tail >= WHOLE_PAGE_FROM_BYTES { PAGE_BYTES / 2 } else { BLOCK_UNIT_BYTES - 1 };
            assert!(waste <= bound, "{bytes} bytes wasted {waste}");
            blocks.free_chain(chain);
        }
        assert_eq!(blocks.pages_used(), 0);
    }

    #[test]
    fn a_chain_that_does_not_fit_allocates_nothing() {
        let mut blocks = Blocks::with_pages(2, Account::unlimited());
        assert_eq!(blocks.allocate_chain(3 * PAGE_BYTES), None);
        assert_eq!(blocks.pages_used(), 0);
        assert!(blocks.allocate_chain(2 * PAGE_BYTES).is_some());
    }

    #[test]
    fn idle_pages_are_returned_to_the_system_and_can_be_used_again() {
        let mut blocks = Blocks::with_pages(512, Account::unlimited());
        let kept = blocks.allocate_chain(PAGE_BYTES).unwrap();
        let chain = blocks.allocate_chain(300 * PAGE_BYTES).unwrap();
        let mut block = chain;
        while block != 0 {
            blocks.bytes_mut(block).fill(7);
            block = blocks.next(block);
        }
        blocks.bytes_mut(kept).fill(9);
        blocks.free_chain(chain);
        let each = EXTENT_BYTES / PAGE_BYTES;
        let partly_used = |pages: usize| pages.next_multiple_of(each) - pages;
        assert_eq!(blocks.pages_idle(), 300 + partly_used(301));
        while !blocks.trim() {}
        let at_the_ends = blocks.pages_idle();
        assert!(at_the_ends <= 4 * SYSTEM_PAGES_MAX, "{at_the_ends} pages stayed");
        assert!(blocks.bytes(kept).iter().all(|&byte| byte == 9), "a neighbour in use keeps its bytes");
        assert!(blocks.allocate_chain(300 * PAGE_BYTES).is_some());
        assert_eq!((blocks.pages_idle(), blocks.pages_used()), (partly_used(301), 301));
    }

    #[test]
    fn a_larger_burst_after_a_smaller_one_is_returned_completely() {
        let mut blocks = Blocks::with_pages(512, Account::unlimited());
        for pages in [200, 500] {
            let chain = blocks.allocate_chain(pages * PAGE_BYTES).unwrap();
            blocks.free_chain(chain);
            while !blocks.trim() {}
            let kept = blocks.pages_idle();
            assert!(kept <= 8 * SYSTEM_PAGES_MAX, "{kept} of {pages} pages stayed");
        }
    }

    #[test]
    fn runs_returned_in_pieces_do_not_keep_their_neighbours_resident() {
        let mut blocks = Blocks::with_pages(512, Account::unlimited());
        let chains: Vec<_> = (0..512).map(|_| blocks.allocate_chain(PAGE_BYTES).unwrap()).collect();
        let mut idle_at_last = 0;
        for part in 0..8 {
            // Each round frees runs of eight pages with seven such runs between them. The last round joins all of
            // them.
            for (_, &chain) in chains.iter().enumerate().filter(|(at, _)| at / 8 % 8 == part) {
                blocks.free_chain(chain);
            }
            while !blocks.trim() {}
            idle_at_last = blocks.pages_idle();
        }
        assert!(idle_at_last <= 4 * SYSTEM_PAGES_MAX, "{idle_at_last} pages stayed");
    }

    /// Random operations: no unit is ever in two chains, and all pages are free at the end.
    #[test]
    fn no_leak_and_no_double_use_in_random_operations() {
        let mut blocks = Blocks::with_pages(40, Account::unlimited());
        let mut alive: Vec<(BlockId, u8, usize)> = Vec::new();
        let mut random = super::super::random(0);
        for step in 0..20_000_u32 {
            if random(2) == 0 || alive.is_empty() {
                let bytes = 1 + random(9_000);
                if let Some(first) = blocks.allocate_chain(bytes) {
                    let mark = step as u8;
                    let mut block = first;
                    while block != 0 {
                        blocks.bytes_mut(block).fill(mark);
                        block = blocks.next(block);
                    }
                    alive.push((first, mark, bytes));
                }
            } else {
                let (first, mark, bytes) = alive.swap_remove(random(alive.len()));
                let mut block = first;
                while block != 0 {
                    assert!(blocks.bytes(block).iter().all(|&byte| byte == mark));
                    block = blocks.next(block);
                }
                assert!(chain_len(&blocks, first) >= bytes);
                blocks.free_chain(first);
            }
        }
        for (first, ..) in alive {
            blocks.free_chain(first);
        }
        assert_eq!(blocks.pages_used(), 0);
    }
}
