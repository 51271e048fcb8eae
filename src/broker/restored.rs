//! What the log has of a queue at a start, and the result of putting back a definition.

use leveret_core::command::QueueId;

/// The messages that the log has of a queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Contents {
    /// Unsettled messages.
    pub count: u64,
    /// Bytes that unsettled messages take in the log.
    pub bytes: u64,
    /// The offset of the next message.
    pub next_offset: u64,
    /// Messages with offsets below may have been delivered.
    pub delivered_through: u64,
    /// The watermark in the log, which ran ahead of the deliveries.
    pub marked_through: u64,
}

/// The result of putting back a definition at a start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Restored {
    /// The thing exists again; a queue can take its messages now.
    Exists(Option<QueueId>),
    /// The things that the definition needs do not exist: a deletion was interrupted.
    Orphaned,
    /// Today's limits have no room for the thing, or for one that it needs.
    NoRoom,
    /// This version does not know the type of the thing.
    Unknown,
}
