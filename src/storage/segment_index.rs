//! What memory knows of one segment of the log.

use super::spans::Spans;

/// A segment that is part of the log.
#[derive(Clone, Debug)]
pub struct Segment {
    /// Its file.
    pub slot: u32,
    /// Targets, definitions and chunks whose place it is.
    pub live: u64,
    /// Their bytes; a message for several queues is shared by them.
    pub live_bytes: u64,
    /// Those that are settled, but not durably, and about how many bytes they have.
    pub(super) pending: u64,
    pub(super) pending_bytes: u64,
    /// Bytes in use, header included.
    pub bytes: u32,
    /// The cleaner could not read all that is live in it.
    pub stuck: bool,
    /// Where the queues' parts of its footer lie.
    pub(super) spans: Spans,
}

impl Segment {
    pub(super) const fn lose(&mut self, count: u64, bytes: u64) {
        assert!(self.live >= count, "a segment loses more than it has");
        self.live -= count;
        self.live_bytes = self.live_bytes.saturating_sub(bytes);
    }
}
