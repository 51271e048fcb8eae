//! The memory that is kept free for what has to come back into it.

use crate::limits::Limits;

/// The memory that is kept to read back the largest message that only the log has: it may stand before
/// transient ones that fill all the rest.
#[derive(Debug)]
pub(super) struct ReadBackRoom {
    /// Bytes of that message, or of one that has left since; 0 when the log alone has none.
    pub(super) bytes: u64,
    /// Bytes of the largest message there can be.
    pub(super) message_bytes_max: u64,
    /// Bytes that names and properties may add to a body.
    pub(super) frame_bytes: u64,
    /// Where the search for a message that only the log has goes on, and the places in a row without one.
    pub(super) hand: usize,
    pub(super) clear: usize,
}

impl ReadBackRoom {
    pub(super) fn new(limits: &Limits) -> Self {
        // Exchange and routing key are short strings.
        let frame_bytes = u64::from(limits.frame_max) + 512;
        let message_bytes_max = u64::from(limits.message_size_max) + frame_bytes;
        Self { bytes: 0, message_bytes_max, frame_bytes, hand: 0, clear: 0 }
    }

    /// From now on only the log has a message of so many bytes.
    pub(super) fn need(&mut self, bytes: u64) {
        self.bytes = self.bytes.max(bytes);
        self.clear = 0;
    }
}
