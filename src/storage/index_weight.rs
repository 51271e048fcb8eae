//! What memory knows of the log, held against what it may take.
//!
//! What definitions and empty queues take holds no publisher back. It has room of its own, for as many as the
//! other limits allow; what they take beyond that, with very long names, counts too, so that the memory of
//! both is bounded. Deleted definitions and queues count until their segments have left the log. The active
//! segment does not leave, so it ends early when it has much of what is deleted while the index is full.
//!
//! Always true: it is weighed after every change of segments, at each commit once it is nearly full, and at the
//! latest when [`DELETED_PER_WEIGHING`] queues and definitions were deleted; so what is written beyond the
//! limit is one segment at most.

use super::index::Index;
use super::settings::Settings;

/// While no more than one of so many parts of the limit is left, it is left to what makes room by being written:
/// dead letters.
const LAST_PART: usize = 8;
/// Between two weighings so many queues and definitions are deleted at most, each some hundred bytes.
const DELETED_PER_WEIGHING: usize = 256;
/// The active segment ends early when what is deleted in it takes one of so many parts of the limit.
const DELETED_PART: usize = 8;

/// Bytes of the index, as they were weighed last.
#[derive(Debug)]
pub(super) struct IndexWeight {
    /// Beside what stands.
    bytes: usize,
    /// Of those, deleted queues and definitions.
    deleted_bytes: usize,
    /// How often one was deleted in the active segment.
    deleted_in_active: usize,
    bytes_max: usize,
    /// The room of what stands.
    standing_max: usize,
    /// At so many, beside what is deleted, the cleaner waits: its copies may cut runs in pieces, and each takes
    /// memory.
    crowded_bytes: usize,
    is_full: bool,
    ends_active: bool,
    overflow: Option<usize>,
}

impl IndexWeight {
    /// What a start found.
    pub(super) fn new(index: &Index, settings: &Settings) -> Self {
        let mut weight = Self {
            bytes: 0,
            deleted_bytes: 0,
            deleted_in_active: 0,
            bytes_max: settings.index_bytes,
            standing_max: settings.standing_bytes,
            crowded_bytes: 0,
            is_full: false,
            ends_active: false,
            overflow: None,
        };
        weight.set(index);
        weight.crowded_bytes = weight.bytes.max(weight.bytes_max) / 4 * 5;
        weight.overflow = None;
        weight
    }

    /// It is like this now.
    pub(super) fn set(&mut self, index: &Index) {
        let was_full = self.is_full;
        let (deleted, deleted_bytes) = index.deleted();
        self.bytes = index.bytes() - index.standing_bytes().min(self.standing_max);
        self.deleted_bytes = deleted_bytes;
        self.deleted_in_active = index.deleted_in_last();
        self.is_full = self.bytes > self.bytes_max;
        // One that is made and deleted again and again lies there once.
        let in_active_bytes = deleted_bytes / deleted.max(1) * self.deleted_in_active.min(deleted);
        self.ends_active = self.is_full && in_active_bytes > self.bytes_max / DELETED_PART;
        if self.is_full && !was_full {
            self.overflow = Some(self.bytes);
        }
    }

    /// Whether so much was deleted since it was weighed that it should be weighed again.
    pub(super) const fn is_stale(&self, index: &Index) -> bool {
        index.deleted_in_last() >= self.deleted_in_active + DELETED_PER_WEIGHING
    }

    /// Whether it takes as much as it may.
    pub(super) const fn is_full(&self) -> bool {
        self.is_full
    }

    /// Whether the last of it is used, or all.
    pub(super) const fn is_tight(&self) -> bool {
        self.bytes > self.bytes_max - self.bytes_max / LAST_PART
    }

    /// Whether it would not be full without what is deleted.
    pub(super) const fn is_full_of_deleted(&self) -> bool {
        self.is_full && self.bytes.saturating_sub(self.deleted_bytes) <= self.bytes_max
    }

    /// Whether the active segment should end, so that what is deleted in it can leave.
    pub(super) const fn ends_active(&self) -> bool {
        self.ends_active
    }

    /// Whether it takes so much that the cleaner waits; not for what is deleted, for only the cleaner makes that leave.
    pub(super) const fn is_crowded(&self) -> bool {
        self.bytes.saturating_sub(self.deleted_bytes) >= self.crowded_bytes
    }

    /// How many bytes it took when it became full, once each time.
    pub(super) const fn take_overflow(&mut self) -> Option<usize> {
        self.overflow.take()
    }
}
