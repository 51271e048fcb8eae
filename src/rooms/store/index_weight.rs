//! What memory knows of the log, held against what it may take.
//!
//! What definitions and empty queues take holds no publisher back. It has room of its own, for as many as the other limits allow; what they take beyond that, with very long names, counts too,
//! so that the memory of both is bounded. Deleted definitions and queues count until the cleaner has dealt with
//! their segments.
//!
//! Always true: it is weighed after every change of segments, and at each commit once it is full, so what is
//! written beyond the limit is one segment at most.

use super::index::Index;
use super::settings::Settings;

/// Bytes of the index, as they were weighed last.
#[derive(Debug)]
pub(super) struct IndexWeight {
    /// Beside what stands.
    bytes: usize,
    bytes_max: usize,
    /// The room of what stands.
    standing_max: usize,
    /// At so many the cleaner waits: its copies may cut runs in pieces, and each takes memory.
    crowded_bytes: usize,
    is_full: bool,
    overflow: Option<usize>,
}

impl IndexWeight {
    /// What a start found.
    pub(super) fn new(index: &Index, settings: &Settings) -> Self {
        let (bytes_max, standing_max) = (settings.index_bytes, settings.standing_bytes);
        let mut weight =
            Self { bytes: 0, bytes_max, standing_max, crowded_bytes: 0, is_full: false, overflow: None };
        weight.set(index);
        weight.crowded_bytes = weight.bytes.max(bytes_max) / 4 * 5;
        weight.overflow = None;
        weight
    }

    /// It is like this now.
    pub(super) fn set(&mut self, index: &Index) {
        let was_full = self.is_full;
        self.bytes = index.bytes() - index.standing_bytes().min(self.standing_max);
        self.is_full = self.bytes > self.bytes_max;
        if self.is_full && !was_full {
            self.overflow = Some(self.bytes);
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
