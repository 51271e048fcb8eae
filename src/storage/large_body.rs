//! Where the pieces of a large body lie, and who still needs it.
//!
//! Always true: it is dead from when nobody needs it any more, and goes when the last segment with a piece of
//! it has left the log.

use std::collections::BTreeMap;

use super::place::Place;
use super::queue_index::tree_bytes;
use super::segment_index::Segment;

/// A body over 64 KiB.
#[derive(Clone, Debug, Default)]
pub(super) struct LargeBody {
    /// Place by index.
    pub(super) chunks: BTreeMap<u32, Place>,
    /// Messages in queues that have it.
    pub(super) holders: u64,
    /// Those of them that are done with it, but not durably.
    pub(super) pending: u64,
    /// Whether no live message needs the body.
    pub(super) dead: bool,
}

impl LargeBody {
    /// Bytes of all that is known of it, in the log.
    pub(super) fn bytes(&self) -> u64 {
        self.chunks.values().map(|place| u64::from(place.bytes)).sum()
    }

    /// Bytes that it takes in memory beside its own record.
    pub(super) fn heap_bytes(&self) -> usize {
        tree_bytes::<u32, Place>(self.chunks.len())
    }

    /// Nobody needs it any more: its segments lose its pieces.
    pub(super) fn bury(&mut self, segments: &mut BTreeMap<u64, Segment>) {
        if core::mem::replace(&mut self.dead, true) {
            return;
        }
        for place in self.chunks.values() {
            if let Some(segment) = segments.get_mut(&place.segment) {
                segment.lose(1, place.bytes.into());
            }
        }
    }
}
