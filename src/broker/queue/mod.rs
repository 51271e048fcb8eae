//! A queue, and the records of all queues: what waits in each, in order; names, levels, limits; what the log knows.
//!
//! Why it exists: what a queue is stands here, without what is done about it. When queues are looked at, what leaves
//! memory and what is given up is decided by `queues`; who gets a message, by `consumers`.
//!
//! | file | what |
//! |---|---|
//! | `record` | the record of one queue |
//! | `backlog`, `place` | what waits in a queue, in memory and out of it; what stands at one place of it |
//! | `logged`, `requeue_counts` | what the log has of it; how often messages of quorum queues came back |
//! | `records` | the records of all queues: found, begun, ended |
//! | `levels` | queues with priorities: a level for each |
//! | `ready` | the ready list: queues that can deliver now |
//! | `fullness` | limits of length and shares of memory: which queues take a message |
//! | `definitions` | how queues are written down |
//! | `routes` | the queues of a message that waits for its commit |
//! | `browse` | a queue is looked into, and nothing of it changes |
//!
//! Always true: offsets rise with arrival and stay with a message for life, so requeued messages go before
//! everything that has not been delivered yet, in their old order (in that of their return once half of all
//! delivery records serve such messages); a message is in one place of one queue, or in one delivery of it.

mod backlog;
mod browse;
mod fullness;
mod levels;
mod logged;
mod record;
#[cfg(test)]
mod tests;

pub(super) use backlog::Place;
pub(super) use backlog::{First, Purged, PurgedItem, QueuePart, SLOT_BYTES, Size, Taken, block_bytes};
pub(super) use fullness::{FreeMemory, TIMES_FREE_DISK};
pub(super) use levels::Targets;
pub(super) use levels::{SLOTS, first_rank};
pub(super) use logged::Logged;
pub(super) use logged::RequeueCounts;
pub use logged::declared_arguments;
pub(super) use record::Records;
pub(super) use record::{Front, Peeked, Queue, Rank};

pub use browse::{BROWSED_MAX, BrowseResult, Browsed, LogRun};
pub use levels::levels_of;
