//! State of publishing kept from one message to the next, and the room promised to a commit that is being
//! carried out.
//!
//! Why it exists: a commit changes queues step by step, and dead letters that it causes must not take the
//! room promised to its later steps.

use leveret_core::command::QueueId;

use super::shortage::Shortage;

/// The room that a commit being carried out still needs at most: dead letters leave that much, or the commit
/// would end half-way.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Promised {
    /// Chunks for queue entries.
    pub(crate) chunks: usize,
    /// Messages for the log.
    pub(crate) logged: usize,
}

/// State kept from one publish to the next.
#[derive(Debug)]
pub(crate) struct Publishing {
    /// Buffer for the target queues of a message; taken out while one is routed and pushed.
    pub(crate) targets: Vec<QueueId>,
    /// What the publish waits for that was last answered with a wait.
    pub(crate) shortage: Shortage,
}

impl Publishing {
    /// A buffer for messages to as many queues as there can be.
    pub(crate) fn with_capacity(queues: usize) -> Self {
        Self { targets: Vec::with_capacity(queues), shortage: Shortage::Commit }
    }
}
