//! What publishing keeps from one message to the next, and what a commit that is being carried out was promised.
//!
//! Why it exists: a commit changes queues step by step, and what is given up meanwhile must not take the room that its
//! later steps were found to have.

use crate::command::QueueId;

use super::shortage::Shortage;

/// What a commit that goes on has been found to need at most: what is given up meanwhile leaves that much, or
/// the commit would end half-way.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Promised {
    /// Chunks for entries.
    pub(crate) chunks: usize,
    /// Messages for the log.
    pub(crate) logged: usize,
}

/// What is kept from one publish to the next.
#[derive(Debug)]
pub(crate) struct Publishing {
    /// Room for the queues of a message; it is taken out while one is routed and pushed.
    pub(crate) targets: Vec<QueueId>,
    /// What the publish waits for that was answered last with a wait.
    pub(crate) shortage: Shortage,
}

impl Publishing {
    /// Room for the targets of a message to as many queues as there can be.
    pub(crate) fn with_capacity(queues: usize) -> Self {
        Self { targets: Vec::with_capacity(queues), shortage: Shortage::Commit }
    }
}
