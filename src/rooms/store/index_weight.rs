//! What memory knows of the log, held against what it may take.
//!
//! Always true: it is weighed after every change of segments, so nothing is written beyond the limit but
//! what was already on its way.

/// Bytes of the index, as they were weighed last.
#[derive(Debug)]
pub(super) struct IndexWeight {
    bytes: usize,
    bytes_max: usize,
    /// At so many the cleaner waits: its copies may cut runs in pieces, and each takes memory.
    crowded_bytes: usize,
    is_full: bool,
    overflow: Option<usize>,
}

impl IndexWeight {
    /// What a start found.
    pub(super) fn new(bytes: usize, bytes_max: usize) -> Self {
        let crowded_bytes = bytes.max(bytes_max) / 4 * 5;
        Self { bytes, bytes_max, crowded_bytes, is_full: bytes > bytes_max, overflow: None }
    }

    /// It takes so many bytes now.
    pub(super) const fn set(&mut self, bytes: usize) {
        let was_full = self.is_full;
        (self.bytes, self.is_full) = (bytes, bytes > self.bytes_max);
        if self.is_full && !was_full {
            self.overflow = Some(bytes);
        }
    }

    /// Whether it takes as much as it may.
    pub(super) const fn is_full(&self) -> bool {
        self.is_full
    }

    /// Whether it takes so much that the cleaner waits.
    pub(super) const fn is_crowded(&self) -> bool {
        self.bytes >= self.crowded_bytes
    }

    /// How many bytes it took when it became full, once each time.
    pub(super) const fn take_overflow(&mut self) -> Option<usize> {
        self.overflow.take()
    }
}
