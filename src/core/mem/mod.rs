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
mod name;
mod places;
mod plain;
mod slab;
mod sort;

pub use blocks::{BLOCK_UNIT_BYTES, PAGE_BYTES};
pub use bytes::{ByteChain, BytePool};
pub use fifo::{CHUNK_BYTES, ENTRIES_PER_CHUNK, Entry, Fifo, FifoPool, READ_BACK_CHUNKS};
pub use give_back::{let_go_of_start, would_be_given};
pub use list::{Links, LinksOf, List};
pub use messages::{
    Cursor, MESSAGE_SLOT_BYTES, MessageFlags, MessageId, MessageLimits, Messages, PoolFull, Share,
};
pub use name::{NAME_BYTES_MAX, Name};
pub use slab::Slab;
pub use sort::{sort, sort_by, sort_by_key};
