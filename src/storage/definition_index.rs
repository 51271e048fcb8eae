//! Where a definition lies: the newest state of one key, at two places as a rule.
//!
//! Always true: of all states that the log has of a key this is the one with the highest version.

use leveret_core::journal::definition::ACCESS_WRITTEN_KEY;

use super::place::Place;
use super::queue_index::ALLOCATION_BYTES;

/// The newest state of one definition.
#[derive(Clone, Debug)]
pub struct DefinitionIndex {
    /// Its version.
    pub version: u64,
    /// The place of the record in the log.
    pub place: Place,
    /// Where it lies too, in another commit, and soon in another segment.
    pub second: Option<Place>,
    /// Whether the record says that the object was deleted.
    pub deleted: bool,
    /// The incarnation of the queue that it defines; 0 when it defines none, or one that a footer of version
    /// 1 does not tell.
    pub queue: u64,
    /// Segments with records of this key.
    pub(super) segments: Vec<u64>,
}

impl DefinitionIndex {
    /// Whether damage to one block, or to one sealed segment, may take it. A deletion is no loss when what it
    /// kills goes with it; a sealed segment's footer has both, the active one's blocks go one by one.
    pub(super) fn is_thin(&self, active: u64) -> bool {
        let first = self.place.segment;
        let is_alone = self.second.is_none_or(|second| second.segment == first && first != active);
        let second = self.second.map_or(first, |second| second.segment);
        let kills = || self.segments.iter().any(|segment| *segment != first && *segment != second);
        is_alone && (!self.deleted || first == active || kills())
    }

    /// Whether there is a name in it for messages.
    pub(super) const fn names_queue(&self) -> bool {
        self.queue != 0 && !self.deleted
    }

    /// Bytes it takes on the heap as a rule, itself included: there are records of it in two segments.
    pub(super) const USUAL_BYTES: usize = size_of::<Self>() + 2 * size_of::<u64>() + 2 * ALLOCATION_BYTES;

    /// Bytes it takes on the heap, itself included.
    pub(super) const fn heap_bytes(&self) -> usize {
        size_of::<Self>() + self.segments.capacity() * size_of::<u64>() + 2 * ALLOCATION_BYTES
    }

    /// Segments with records of its key.
    pub(super) fn segments(&self) -> &[u64] {
        &self.segments
    }

    /// Whether a segment has a place of it that counts.
    pub(super) fn lies_in(&self, key: &[u8], segment: u64) -> bool {
        self.place.segment == segment
            || is_twice(key) && self.second.is_some_and(|place| place.segment == segment)
    }
}

/// Whether both places of a definition count: those of what every commit repeats do not.
pub(super) fn is_twice(key: &[u8]) -> bool {
    *key != ACCESS_WRITTEN_KEY
}
