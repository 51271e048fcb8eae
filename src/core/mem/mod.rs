//! OWNS BYTES. Everything that grows with traffic lives in a pool here, sized once at boot.
//!
//! | file       | what it holds |
//! |------------|---------------|
//! | `places`   | which places of a pool are free, the lowest first |
//! | `slab`     | records of one type, addressed by index |
//! | `plain`    | the same for plain data, of which idle parts anywhere go back to the system |
//! | `blocks`   | message bytes: 256 B units and whole 4 KiB pages out of one region |
//! | `list`     | doubly linked lists through records of a slab |
//! | `messages` | message slots: reference count, lengths, the first bytes inline, the rest in blocks |
//! | `name`     | names, kept inline |
//! | `bytes`    | byte queues of single connections, in a region of their own |
//! | `give_back` | memory back to the system |
//! | `sort`     | putting things in order, in little code |
//! | `fifo`     | queue entries in chunks of a shared pool |
//!
//! Always true: a pool reserves address space at boot and never asks the allocator again, so nothing here
//! allocates while messages flow; memory becomes resident when it is first used, so an idle broker is
//! small; a pool that is full says so to its caller, who makes the peer wait or refuses.

mod blocks;
mod bytes;
mod fifo;
mod give_back;
mod list;
mod messages;
mod places;
mod plain;

use core::cmp::Ordering;

pub use blocks::{BLOCK_UNIT_BYTES, PAGE_BYTES};
pub use bytes::{ByteChain, BytePool};
pub use fifo::Slab;
pub use fifo::{CHUNK_BYTES, ENTRIES_PER_CHUNK, Entry, Fifo, FifoPool, READ_BACK_CHUNKS};
pub use give_back::{let_go_of_start, would_be_given};
pub use list::{Links, LinksOf, List};
pub use messages::{
    Cursor, MESSAGE_SLOT_BYTES, MessageFlags, MessageId, MessageLimits, Messages, PoolFull, Share,
};

// Names, kept inline.

/// The longest name on the wire in bytes (AMQP short string).
pub const NAME_BYTES_MAX: usize = 255;

/// A name kept inline: consumer tags, server-made names, users.
pub type Name = heapless::String<NAME_BYTES_MAX>;

// Putting things in order, in little code.
//
// Why it exists: the standard library's sort is made of some ten functions that are compiled anew for each
// type, 8 KB a type on ARM: for the twenty types sorted here together a fifteenth of the program. What is
// sorted here is short, or in order already. Always true: no memory is taken; the work is at most that of
// a heapsort, n log n, in whatever order a peer has brought the items; equal items come in any order.

/// Puts items in rising order.
pub fn sort<T: Ord>(items: &mut [T]) {
    sort_by(items, Ord::cmp);
}

/// Puts items in the rising order of their keys.
pub fn sort_by_key<T, K: Ord>(items: &mut [T], key: impl Fn(&T) -> K) {
    sort_by(items, |one, other| key(one).cmp(&key(other)));
}

/// Puts items in the order that `compare` says.
pub fn sort_by<T>(items: &mut [T], compare: impl Fn(&T, &T) -> Ordering) {
    if items.is_sorted_by(|one, next| compare(one, next).is_le()) {
        return;
    }
    let len = items.len();
    // The first steps make a heap, the others take the largest from it.
    for step in (0..len + len / 2).rev() {
        let top = step.checked_sub(len);
        if top.is_none() {
            items.swap(0, step);
        }
        sink(&mut items[..step.min(len)], top.unwrap_or(0), &compare);
    }
}

/// Moves an item down to where none below it is larger.
fn sink<T>(items: &mut [T], mut at: usize, compare: &impl Fn(&T, &T) -> Ordering) {
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

#[cfg(test)]
mod sort_tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_order_is_that_of_the_standard_library(items in prop::collection::vec(0_u32..300, 0..200)) {
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
