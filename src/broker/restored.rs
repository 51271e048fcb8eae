//! The result of restoring a definition that a start found in the log.

use leveret_core::command::QueueId;

/// The result of restoring a definition at start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Restored {
    /// The object exists again; a queue can take its messages now.
    Exists(Option<QueueId>),
    /// The objects that the definition needs do not exist: a deletion was interrupted.
    Orphaned,
    /// Today's limits have no capacity for the object, or for one that it needs.
    NoCapacity,
    /// This version does not know the type of the object.
    Unknown,
}
