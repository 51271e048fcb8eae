//! What a start is told of a queue, and what it says of a definition.

use crate::command::QueueId;

/// What the log knows of a queue's messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Contents {
    /// Messages not settled.
    pub count: u64,
    /// Their bytes in the log.
    pub bytes: u64,
    /// The offset of the next message.
    pub next_offset: u64,
    /// Offsets below may have been delivered.
    pub delivered_through: u64,
    /// What the marks in the log say, which ran ahead.
    pub marked_through: u64,
}

/// What became of a definition at a start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Restored {
    /// It exists again; a queue can take its messages now.
    Exists(Option<QueueId>),
    /// What it needs does not exist: a deletion was interrupted.
    Orphaned,
    /// Today's limits have no room for it, or for what it belongs to.
    NoRoom,
    /// This version does not know its type.
    Unknown,
}
