//! How far large groups have been written: those that no commit holds at once.

use leveret_core::journal::Cursor;

use super::record::{Body, CHUNK_BODY_BYTES};

/// How far the keeper has come with groups.
#[derive(Debug, Default)]
pub(super) struct Groups {
    /// The one that no commit holds at once.
    pub(super) large: Option<Large>,
    /// Large bodies that are written, of messages that are not: numbers of messages, and ids.
    pub(super) bodies: Vec<(u64, u64)>,
    /// Settlements of the one that is being written that are in the log in their own right.
    pub(super) settled: usize,
    /// A group waits for a commit of its own.
    pub(super) is_waiting: bool,
}

/// A group that no commit holds at once.
#[derive(Debug)]
pub(super) struct Large {
    /// The number of its first message.
    pub(super) first: u64,
    pub(super) incarnation: u64,
    pub(super) body: u64,
    pub(super) parts: u32,
    pub(super) bytes: u64,
    /// The first message that is in no part yet.
    pub(super) cursor: Cursor,
    /// Settlements that are in a part.
    pub(super) settled: usize,
    /// The message that makes it exist was appended.
    pub(super) is_said: bool,
}

impl Groups {
    /// The message is written: the body is its own.
    pub(super) fn take_body(&mut self, number: u64) {
        self.bodies.retain(|(other, _)| *other != number);
    }

    /// The body of a message that was written before the message.
    pub(super) fn body_of(&self, number: u64) -> Option<u64> {
        body_of(&self.bodies, number)
    }
}

/// The body of a message, among those that are written: they are in the order of their messages.
pub(super) fn body_of(bodies: &[(u64, u64)], number: u64) -> Option<u64> {
    let at = bodies.binary_search_by_key(&number, |(number, _)| *number).ok()?;
    Some(bodies[at].1)
}

/// A body of so many bytes that is in chunks.
pub(super) const fn chunked(body: u64, bytes: usize) -> Body<'static> {
    Body::Chunked { body, chunks: bytes.div_ceil(CHUNK_BODY_BYTES) as u32, bytes: bytes as u64 }
}
