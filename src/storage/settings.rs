//! How a store behaves: sizes, limits and windows.
//!
//! Always true: the largest commit is at most a third of a segment.

use leveret_core::limits::SEGMENTS_MIN;

use super::commit::BLOCK_BYTES;

/// How a store behaves. Sizes hold for a new store; an old one keeps its segment size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Bytes of a segment: a multiple of 4 KiB, from 64 KiB; best a multiple of the card's erase block.
    pub segment_bytes: u32,
    /// The largest commit in bytes, a multiple of 4 KiB: at least 4 KiB, at most a third of a segment.
    pub commit_bytes: u32,
    /// `disk_limit` in segments of `segment_bytes`, at least 4.
    pub segments_max: u32,
    /// The most memory that the index may take, in bytes: what is above it is not written any more.
    pub index_bytes: usize,
    /// The memory that definitions and empty queues may take beside that, in bytes.
    pub standing_bytes: usize,
    /// How long persistent messages that nobody awaits may gather, in milliseconds.
    pub commit_window_ms: u64,
    /// How long awaited ones gather once the sync budget is used up, in milliseconds.
    pub confirm_window_ms: u64,
    /// How long settlements alone may gather, in milliseconds.
    pub settle_window_ms: u64,
    /// Syncs a second that the card may do for ever; 0 is without limit.
    pub syncs_per_s: u32,
    /// Syncs that may be done at once after a rest.
    pub sync_burst: u32,
    /// Where there is no store, a new one is begun.
    pub may_begin: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            segment_bytes: 4 << 20,
            commit_bytes: 512 << 10,
            segments_max: 64,
            index_bytes: 2 << 20,
            standing_bytes: 2 << 20,
            commit_window_ms: 1_000,
            confirm_window_ms: 50,
            settle_window_ms: 5_000,
            syncs_per_s: 0,
            sync_burst: 200,
            may_begin: true,
        }
    }
}

impl Settings {
    /// The same for a store whose segments are of another size: its limit is one of bytes.
    pub(super) fn with_segments_of(self, segment_bytes: u32) -> Self {
        if segment_bytes == self.segment_bytes {
            return self;
        }
        let limit = u64::from(self.segments_max) * u64::from(self.segment_bytes);
        let segments = (limit / u64::from(segment_bytes)).max(SEGMENTS_MIN);
        Self {
            segment_bytes,
            segments_max: u32::try_from(segments).unwrap_or(u32::MAX),
            commit_bytes: self.commit_bytes.min(segment_bytes / 3 / BLOCK_BYTES as u32 * BLOCK_BYTES as u32),
            ..self
        }
    }
}
