//! Memory pools for everything whose amount depends on traffic. Their addresses are reserved at start.
//!
//! | file       | contents |
//! |------------|----------|
//! | `memory`   | [`Memory`]: the memory that pools share, counted in extents |
//! | `places`   | the free places of a pool, and the extents that it has taken |
//! | `blocks`   | message bytes in 256 B units and whole 4 KiB pages of one region |
//! | `pool`     | [`Slab`]: records of one type, addressed by index, and doubly linked lists of them; pools of plain data |
//! | `messages` | message slots: reference count, lengths, the first bytes inline, the rest in blocks |
//! | `bytes`    | byte queues of single connections, in a region of their own |
//! | `fifo`     | queue entries in chunks of a shared pool |
//! | `hash_index` | [`IndexTable`]: finds records by their keys |
//! | `mapped`   | maps memory from the system, and returns it |
//!
//! # Invariants
//! - A pool reserves its address space at start, and never calls the allocator again.
//! - Memory becomes resident when it is first used, so an idle broker is small.
//! - A full pool returns an error. The caller then makes the peer wait, or refuses the request.

mod blocks;
mod bytes;
mod fifo;
mod hash_index;
mod mapped;
mod memory;
mod messages;
mod places;
mod pool;

use core::cmp::Ordering;

pub use blocks::{BLOCK_UNIT_BYTES, PAGE_BYTES};
pub use bytes::{ByteChain, BytePool};
pub use fifo::{CHUNK_BYTES, ENTRIES_PER_CHUNK, Fifo, FifoPool, QueueEntry, READ_BACK_CHUNKS};
pub use hash_index::{HashIndex, IndexTable};
pub use mapped::{can_be_mapped, can_be_reserved, drop_startup_pages, trim_heap};
pub use memory::{Account, COMMAND_EXTENTS, Class, EXTENT_BYTES, HeapBytes, Memory};
pub use messages::{
    Cursor, MESSAGE_SLOT_BYTES, MessageFlags, MessageId, MessageLimits, MessageNames, Messages, PoolFull,
    Share,
};
pub use places::Touched;
pub use pool::{Links, LinksOf, List, Slab};

/// Approximate bytes that the allocator adds to each allocation.
pub const ALLOCATION_BYTES: usize = 16;

/// Maximum length of a name in bytes (AMQP short string).
pub const NAME_BYTES_MAX: usize = 255;

/// A name without a heap allocation, for consumer tags, server-generated names and users.
pub type Name = heapless::String<NAME_BYTES_MAX>;

// Sorting.
//
// The standard library's sort is compiled for each type, with about 8 KB of code per type on ARM: for the
// twenty types sorted here 1/15 of the program. The slices here are short, or in order already, so a smaller
// heapsort suffices. It takes no memory and at most n log n steps in any order of the items. It is not
// stable.

/// Sorts the items.
pub fn sort<T: Ord>(items: &mut [T]) {
    sort_by(items, Ord::cmp);
}

/// Sorts the items by their keys.
pub fn sort_by_key<T, K: Ord>(items: &mut [T], key: impl Fn(&T) -> K) {
    sort_by(items, |one, other| key(one).cmp(&key(other)));
}

/// Sorts the items by `compare`.
pub fn sort_by<T>(items: &mut [T], compare: impl Fn(&T, &T) -> Ordering) {
    if items.is_sorted_by(|one, next| compare(one, next).is_le()) {
        return;
    }
    let len = items.len();
    // The first half of `len` steps builds a heap; each further step takes the largest item from it.
    for step in (0..len + len / 2).rev() {
        let top = step.checked_sub(len);
        if top.is_none() {
            items.swap(0, step);
        }
        sift_down(&mut items[..step.min(len)], top.unwrap_or(0), &compare);
    }
}

/// Moves an item down the heap until none of its children is larger.
fn sift_down<T>(items: &mut [T], mut at: usize, compare: &impl Fn(&T, &T) -> Ordering) {
    loop {
        let mut child = 2 * at + 1;
        if child >= items.len() {
            return;
        }
        if child + 1 < items.len() && compare(&items[child], &items[child + 1]).is_lt() {
            child += 1;
        }
        if compare(&items[at], &items[child]).is_ge() {
            return;
        }
        items.swap(at, child);
        at = child;
    }
}

/// Returns a source of pseudo-random numbers below a bound. Each test has the same numbers in each run.
#[cfg(test)]
fn random(seed: u64) -> impl FnMut(usize) -> usize {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64 ^ seed;
    move |below| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    }
}

#[cfg(test)]
mod sort_tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn sorts_as_the_standard_library(items in prop::collection::vec(0_u32..300, 0..200)) {
            let (mut sorted, mut expected) = (items.clone(), items.clone());
            sort(&mut sorted);
            expected.sort_unstable();
            prop_assert_eq!(&sorted, &expected);
            sort_by_key(&mut sorted, |item| core::cmp::Reverse(*item));
            expected.reverse();
            prop_assert_eq!(&sorted, &expected);
        }
    }
}
