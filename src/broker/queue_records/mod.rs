//! The records of all queues: messages in order, names, levels, limits, and what the log has of them.
//!
//! This module only describes queues. [`crate::queue_flow`] decides when queues are examined, which messages
//! leave memory and which are removed. `consumers` decides which consumer gets a message.
//!
//! | file | content |
//! |---|---|
//! | `record` | the record of one queue; finding, creating, deleting and writing records |
//! | `backlog` | the messages waiting in a queue, in memory and out of it; the ready list of queues |
//! | `durable_index` | what the log has of a queue; requeue counts of quorum queues |
//! | `levels` | queues with priorities; stored routes of messages in a transaction |
//! | `fullness` | length limits and shares of memory: which queues take a message |
//! | `browse` | reading a queue's messages without changing it |
//!
//! # Invariants
//! - Offsets rise with arrival and never change. Requeued messages therefore precede everything not yet
//!   delivered, in their old order. When half of all delivery records belong to such messages, further ones
//!   are in the order of their return.
//! - A message is in one place of one queue, or in one delivery of it.

mod backlog;
mod browse;
mod durable_index;
mod fullness;
mod levels;
mod record;
#[cfg(test)]
mod tests;

pub(super) use backlog::Place;
pub(super) use backlog::{First, Purged, PurgedItem, QueuePart, SLOT_BYTES, Size, Taken, block_bytes};
pub(super) use durable_index::DurableIndex;
pub(super) use durable_index::RequeueCounts;
pub use durable_index::declared_arguments;
pub(super) use fullness::{FreeMemory, TIMES_FREE_DISK};
pub(super) use levels::Targets;
pub(super) use levels::{SLOTS, first_rank};
pub(super) use record::Records;
pub(super) use record::{Front, Peeked, Queue, QueueState, Rank};

pub use browse::{BROWSED_MAX, BrowseResult, Browsed, LogRun};
pub use levels::levels_of;
