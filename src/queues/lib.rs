//! The queues and the messages in them.
//!
//! | file | content |
//! |---|---|
//! | `settings` | the settings of a queue, from its arguments and policies |
//! | `expiration` | the message property `expiration`, and the flags of a message |
//! | `deliveries` | unsettled deliveries, and requeued messages |
//! | `consumers` | the lists of a queue's consumers |
//! | `records` | the records of all queues: messages, names, levels, limits, counts in the log |
//! | `flow` | adds, takes, expires, evicts and reads back messages |
//! | `shortage` | the causes why publishers wait |
//! | `retry_list` | lists of requests that are retried after a change |
//!
//! `records` has the data, and `flow` decides what happens to a message while it is in a queue. The caller chooses the
//! queues that get a message, and the consumer to which it is delivered.

#![warn(clippy::unwrap_used)]

mod consumers;
mod deliveries;
mod expiration;
mod flow;
mod records;
mod retry_list;
mod settings;
mod shortage;

use leveret_core::command::QueueId;
use leveret_core::mem::ALLOCATION_BYTES;

pub use consumers::QueueConsumers;
pub use deliveries::{
    AcknowledgementTimeout, Delivered, Deliveries, DeliveryMethod, FLOOR_PART, NewDelivery, Reason,
};
pub use expiration::{MILLISECONDS_MAX, copy_flags, expiration_ms, expiry_flags};
pub use flow::{
    BrowseRequests, CannotPublish, Claim, DelayWheel, DueItem, ExpiryGrace, Getting, HeldMessage,
    LevelChoice, LogRead, LostMessages, NARROWEST_PUBLISHED, OnFull, PaceChanges, PageInOutcome, PlannedCopy,
    QueueSchedule, Queues, ReadMessage, ReadPosition, Scratch, Slot, TrimList, disk_shortage, subtract_steps,
};
pub use records::{
    BROWSED_MAX, Backlog, BrowseResult, Browsed, BrowsedMessage, Contents, Declared, DurableIndex,
    EntryContent, First, FreeMemory, Front, Listed, LogRun, MESSAGE_KEYS_BYTES, MessageKey, MessageKeys,
    Pace, PeekedExpiry, Purged, PurgedItem, Queue, QueueKind, QueuePart, QueueState, Rank, Records,
    RefusedBy, RequeueCounts, SLOT_BYTES, SLOTS, SelectedMessage, SessionPart, Size, Taken, Times, Unsettled,
    block_bytes, declared_arguments, first_rank, levels_of,
};
pub use retry_list::RetryList;
pub use settings::{EffectivePolicy, Overflow, QueueSettings, is_quorum, max_priority};
pub use shortage::{Pool, SHORTAGE_KINDS, Shortage, WaitingByKind, WaitingPublishers};

/// Bytes that a queue takes here besides its record.
///
/// These are its entries in several lists: queues to trim, times (twice), watermarks and reads. Reads count double, because
/// their list grows by doubling. The size includes the allocator's overhead for the names of the queue, and its entries in
/// the index of the log.
pub const QUEUE_SIDE_BYTES: usize = size_of::<QueueId>()
    + 2 * (size_of::<(u64, QueueId, u64, u64)>() + 2 * size_of::<QueueId>() + 2 * size_of::<(u64, u64)>())
    + QueueSchedule::QUEUE_BYTES
    + DelayWheel::QUEUE_BYTES
    + 2 * ALLOCATION_BYTES
    + leveret_storage::EMPTY_QUEUE_BYTES
    + leveret_storage::DEFINITION_BYTES;
