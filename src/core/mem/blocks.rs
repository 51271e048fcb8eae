//! Message bytes beyond what a slot holds inline: chained blocks out of one region.
//!
//! ```text
//! region   | page 0 (4 KiB)                | page 1                        | page 2 ...
//! whole    | ############################# one block of 4096 bytes ####### |
//! split    | u0 | u1 | u2 | ......... | u15|    sixteen blocks of 256 bytes
//! ```
//!
//! A block is named by its first unit, counted from 1; 0 ends a chain. A chain takes whole pages as long as
//! at least half a page is still needed, and units for the rest, so no message wastes more than 255 bytes.
//!
//! Always true: every unit is in exactly one chain or free; a page is whole, split or free; a page whose
//! last unit is freed is free at once, and the lowest free page is taken first, so what a burst took can be
//! given back page by page.

use super::give_back::{give_back, untouched};
use super::places::Places;

/// The smaller block.
pub const BLOCK_UNIT_BYTES: usize = 256;
/// The larger block, and what memory is given back by.
pub const PAGE_BYTES: usize = 4096;
const UNITS_PER_PAGE: usize = PAGE_BYTES / BLOCK_UNIT_BYTES;
const ALL_UNITS_FREE: u16 = u16::MAX;
/// Runs of free pages shorter than this are not worth a call to the system: 32 KiB.
const TRIM_RUN_PAGES_MIN: usize = 8;
/// Pages looked at in one step of giving memory back: 16 MiB, a few calls to the system.
pub(super) const TRIM_PAGES: usize = 4096;
/// From this many bytes on, a whole page is the better block.
const WHOLE_PAGE_FROM_BYTES: usize = PAGE_BYTES / 2;

/// The first unit of a block, from 1; 0 is "none".
pub(super) type BlockId = u32;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    Free,
    Whole,
    Split,
}

#[derive(Debug)]
struct Page {
    kind: Use,
    /// The system holds memory for it.
    resident: bool,
    /// A set bit is a free unit; meaningful in split pages.
    free_units: u16,
    /// Neighbours on the list of split pages that have room; from 1.
    next: u32,
    previous: u32,
}

/// The region and who has which part of it.
#[derive(Debug)]
pub(super) struct Blocks {
    bytes: Box<[u8]>,
    /// The next block of the chain, per unit.
    next: Box<[BlockId]>,
    pages: Vec<Page>,
    places: Places,
    split_with_room_head: u32,
    /// Free pages that the system holds memory for.
    pages_idle: usize,
    /// Where the search for idle pages goes on.
    trim_at: usize,
}

impl Blocks {
    /// Bytes of bookkeeping per page.
    pub(super) const PAGE_OVERHEAD_BYTES: usize = size_of::<Page>() + UNITS_PER_PAGE * size_of::<BlockId>();

    /// Reserves `pages_max` pages without touching them.
    pub(super) fn with_pages(pages_max: usize) -> Self {
        Self {
            bytes: untouched(pages_max * PAGE_BYTES),
            next: untouched(pages_max * UNITS_PER_PAGE),
            pages: Vec::with_capacity(pages_max),
            places: Places::new(pages_max),
            split_with_room_head: 0,
            pages_idle: 0,
            trim_at: 0,
        }
    }

    pub(super) const fn pages_used(&self) -> usize {
        self.places.used()
    }

    /// Free pages that still cost memory.
    pub(super) const fn pages_idle(&self) -> usize {
        self.pages_idle
    }

    /// Looks at the next `count` pages and gives idle ones back to the system, neighbours together; says
    /// whether it came to the end.
    pub(super) fn trim(&mut self, count: usize) -> bool {
        let start = self.trim_at;
        let end = (start + count).min(self.pages.len());
        let mut run = start..start;
        for index in start..end {
            if self.pages[index].kind == Use::Free {
                run.end = index + 1;
            } else {
                self.give_back(run);
                run = index + 1..index + 1;
            }
        }
        self.give_back(run);
        let is_end = end == self.pages.len();
        // The next search begins in front again, however many pages there are by then.
        self.trim_at = if is_end { 0 } else { end };
        is_end
    }

    /// Gives back what of a run of free pages is whole pages of the system; those at its ends may not be.
    fn give_back(&mut self, run: core::ops::Range<usize>) {
        let is_idle = self.pages[run.clone()].iter().any(|page| page.resident);
        if !is_idle || run.len() < TRIM_RUN_PAGES_MIN {
            return;
        }
        let given = give_back(&mut self.bytes[run.start * PAGE_BYTES..run.end * PAGE_BYTES]);
        let (first, end) = (given.start.div_ceil(PAGE_BYTES), given.end / PAGE_BYTES);
        for page in &mut self.pages[run.start + first.min(end)..run.start + end] {
            self.pages_idle -= usize::from(core::mem::replace(&mut page.resident, false));
        }
    }

    /// The most pages a chain of `bytes` can take from the free ones.
    pub(super) const fn pages_for(bytes: usize) -> usize {
        bytes.div_ceil(PAGE_BYTES)
    }

    /// Bytes of the blocks that a chain for so many bytes is made of.
    pub(super) const fn bytes_for(bytes: usize) -> usize {
        let rest = bytes % PAGE_BYTES;
        let last =
            if rest < WHOLE_PAGE_FROM_BYTES { rest.next_multiple_of(BLOCK_UNIT_BYTES) } else { PAGE_BYTES };
        bytes - rest + last
    }

    /// A chain of blocks for `bytes` bytes (not 0), or nothing at all.
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
            self.next[last as usize - 1] = block;
            last = block;
            left = left.saturating_sub(self.block_len(block));
        }
        Some(first)
    }

    /// Makes `chain` the continuation of the single block `block`.
    pub(super) fn link(&mut self, block: BlockId, chain: BlockId) {
        debug_assert!(self.next(block) == 0, "only the end of a chain is continued");
        self.next[block as usize - 1] = chain;
    }

    /// Frees the first block of a chain and tells the one behind it.
    pub(super) fn unlink_first(&mut self, first: BlockId) -> BlockId {
        let next = self.next(first);
        self.free_block(first);
        next
    }

    /// Gives a whole chain back.
    #[inline]
    pub(super) fn free_chain(&mut self, first: BlockId) {
        let mut block = first;
        while block != 0 {
            let next = self.next[block as usize - 1];
            self.free_block(block);
            block = next;
        }
    }

    /// The block after this one in its chain, 0 at the end.
    pub(super) fn next(&self, block: BlockId) -> BlockId {
        self.next[block as usize - 1]
    }

    /// The bytes of a block.
    #[inline]
    pub(super) fn bytes(&self, block: BlockId) -> &[u8] {
        let start = (block as usize - 1) * BLOCK_UNIT_BYTES;
        &self.bytes[start..start + self.block_len(block)]
    }

    /// The bytes of a block, to write.
    #[inline]
    pub(super) fn bytes_mut(&mut self, block: BlockId) -> &mut [u8] {
        let start = (block as usize - 1) * BLOCK_UNIT_BYTES;
        let len = self.block_len(block);
        &mut self.bytes[start..start + len]
    }

    #[inline]
    fn block_len(&self, block: BlockId) -> usize {
        match self.pages[(block as usize - 1) / UNITS_PER_PAGE].kind {
            Use::Whole => PAGE_BYTES,
            Use::Split => BLOCK_UNIT_BYTES,
            Use::Free => panic!("block {block} lies in a free page"),
        }
    }

    fn allocate_block(&mut self, wanted_bytes: usize) -> Option<BlockId> {
        let block = if wanted_bytes >= WHOLE_PAGE_FROM_BYTES {
            let page = self.take_page(Use::Whole)?;
            (page * UNITS_PER_PAGE) as BlockId + 1
        } else {
            self.take_unit()?
        };
        self.next[block as usize - 1] = 0;
        Some(block)
    }

    fn take_unit(&mut self) -> Option<BlockId> {
        if self.split_with_room_head == 0 {
            let page = self.take_page(Use::Split)?;
            self.pages[page].free_units = ALL_UNITS_FREE;
            self.link_split(page);
        }
        let index = self.split_with_room_head as usize - 1;
        let page = &mut self.pages[index];
        let unit = page.free_units.trailing_zeros() as usize;
        page.free_units &= page.free_units - 1;
        if page.free_units == 0 {
            self.unlink_split(index);
        }
        Some((index * UNITS_PER_PAGE + unit) as BlockId + 1)
    }

    fn take_page(&mut self, kind: Use) -> Option<usize> {
        let index = self.places.take()?;
        if index == self.pages.len() {
            self.pages.push(Page { kind: Use::Free, resident: false, free_units: 0, next: 0, previous: 0 });
        }
        self.pages_idle -= usize::from(self.pages[index].resident);
        self.pages[index] = Page { kind, resident: true, free_units: 0, next: 0, previous: 0 };
        Some(index)
    }

    fn free_block(&mut self, block: BlockId) {
        let index = (block as usize - 1) / UNITS_PER_PAGE;
        match self.pages[index].kind {
            Use::Whole => self.give_page(index),
            Use::Split => self.free_unit(index, (block as usize - 1) % UNITS_PER_PAGE),
            Use::Free => panic!("block {block} was freed twice"),
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
        self.pages[index] = Page { kind: Use::Free, resident: true, free_units: 0, next: 0, previous: 0 };
        self.places.give(index);
        self.pages_idle += 1;
    }

    fn link_split(&mut self, index: usize) {
        let head = self.split_with_room_head;
        self.pages[index].next = head;
        self.pages[index].previous = 0;
        if head != 0 {
            self.pages[head as usize - 1].previous = index as u32 + 1;
        }
        self.split_with_room_head = index as u32 + 1;
    }

    fn unlink_split(&mut self, index: usize) {
        let (previous, next) = (self.pages[index].previous, self.pages[index].next);
        match previous {
            0 => self.split_with_room_head = next,
            _ => self.pages[previous as usize - 1].next = next,
        }
        if next != 0 {
            self.pages[next as usize - 1].previous = previous;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pages of ours in the largest page of a system: 64 KiB.
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
        let mut blocks = Blocks::with_pages(64);
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
    fn a_chain_that_does_not_fit_takes_nothing() {
        let mut blocks = Blocks::with_pages(2);
        assert_eq!(blocks.allocate_chain(3 * PAGE_BYTES), None);
        assert_eq!(blocks.pages_used(), 0);
        assert!(blocks.allocate_chain(2 * PAGE_BYTES).is_some());
    }

    #[test]
    fn idle_pages_go_back_and_read_as_zeros_when_they_are_used_again() {
        let mut blocks = Blocks::with_pages(512);
        let kept = blocks.allocate_chain(PAGE_BYTES).unwrap();
        let chain = blocks.allocate_chain(300 * PAGE_BYTES).unwrap();
        let mut block = chain;
        while block != 0 {
            blocks.bytes_mut(block).fill(7);
            block = blocks.next(block);
        }
        blocks.bytes_mut(kept).fill(9);
        blocks.free_chain(chain);
        assert_eq!(blocks.pages_idle(), 300);
        assert!(!blocks.trim(200) && blocks.trim(200));
        let at_the_ends = blocks.pages_idle();
        assert!(at_the_ends <= 4 * SYSTEM_PAGES_MAX, "{at_the_ends} pages stayed");
        assert!(blocks.bytes(kept).iter().all(|&byte| byte == 9), "a neighbour in use keeps its bytes");
        assert!(blocks.allocate_chain(300 * PAGE_BYTES).is_some());
        assert_eq!((blocks.pages_idle(), blocks.pages_used()), (0, 301));
    }

    #[test]
    fn a_larger_burst_after_a_smaller_one_goes_back_from_its_first_page_on() {
        let mut blocks = Blocks::with_pages(512);
        for pages in [200, 500] {
            let chain = blocks.allocate_chain(pages * PAGE_BYTES).unwrap();
            blocks.free_chain(chain);
            while !blocks.trim(150) {}
            let kept = blocks.pages_idle();
            assert!(kept <= 8 * SYSTEM_PAGES_MAX, "{kept} of {pages} pages stayed");
        }
    }

    #[test]
    fn what_was_given_back_in_pieces_does_not_keep_its_neighbours() {
        let mut blocks = Blocks::with_pages(512);
        let chains: Vec<_> = (0..512).map(|_| blocks.allocate_chain(PAGE_BYTES).unwrap()).collect();
        let mut idle_at_last = 0;
        for part in 0..8 {
            // Each round frees runs of eight pages with seven such runs between them; the last joins all.
            for (_, &chain) in chains.iter().enumerate().filter(|(at, _)| at / 8 % 8 == part) {
                blocks.free_chain(chain);
            }
            while !blocks.trim(200) {}
            idle_at_last = blocks.pages_idle();
        }
        assert!(idle_at_last <= 4 * SYSTEM_PAGES_MAX, "{idle_at_last} pages stayed");
    }

    /// Random lives of chains: no unit is ever in two chains, and everything comes back.
    #[test]
    fn no_leak_and_no_double_use_over_random_lives() {
        let mut blocks = Blocks::with_pages(40);
        let mut alive: Vec<(BlockId, u8, usize)> = Vec::new();
        let mut state = 0x9E37_79B9_7F4A_7C15_u64;
        let mut random = move |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % below
        };
        for step in 0..20_000_u32 {
            if random(2) == 0 || alive.is_empty() {
                let bytes = 1 + random(9_000) as usize;
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
                let (first, mark, bytes) = alive.swap_remove(random(alive.len() as u64) as usize);
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
