//! What a commit that is being carried out was promised.
//!
//! Why it exists: a commit changes queues step by step, and what is given up meanwhile must not take the room that its
//! later steps were found to have.

/// What a commit that goes on has been found to need at most: what is given up meanwhile leaves that much, or
/// the commit would end half-way.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Promised {
    /// Chunks for entries.
    pub(super) chunks: usize,
    /// Messages for the log.
    pub(super) logged: usize,
}
