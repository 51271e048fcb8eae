//! What the cleaner remembers of its work: the segments on their way out, and the one that it copies.

use super::doubling::Doubling;
use super::index::Index;
use super::place::Position;
use super::reckoning::Reckoning;
use super::record::Target;
use super::spares::CleanerSpares;

/// The most that a record takes that says that a segment has left, in bytes.
pub(super) const LEFT_BYTES_MAX: usize = 16;

/// Where the cleaner stands.
#[derive(Debug)]
pub(super) struct Cleaner {
    /// Segments that leave, and the one that is copied.
    pub(super) drain: Option<Drain>,
    pub(super) cleaning: Option<Cleaning>,
    /// Definitions that are copied because they lie at one place only.
    pub(super) doubling: Doubling,
    /// The cleaner has started, and goes on until some more segments are free.
    pub(super) cleans_ahead: bool,
    /// What the cleaner learned from the segments that it has cleaned.
    pub(super) reckoning: Reckoning,
    /// Something has changed since the cleaner looked for work.
    pub(super) may_clean: bool,
    /// What was read; empty while a read is on its way.
    pub(super) buffer: Vec<u8>,
    pub(super) spares: CleanerSpares,
}

impl Cleaner {
    /// A cleaner that has not looked for work yet, and reads so many bytes at once at most.
    pub(super) fn new(buffer_bytes: usize) -> Self {
        Self {
            drain: None,
            cleaning: None,
            doubling: Doubling::due(),
            cleans_ahead: false,
            reckoning: Reckoning::default(),
            may_clean: true,
            buffer: vec![0; buffer_bytes],
            spares: CleanerSpares::default(),
        }
    }

    /// Whether a segment is on its way out.
    pub(super) const fn is_cleaning(&self) -> bool {
        self.drain.is_some() || self.cleaning.is_some()
    }

    /// Whether a segment was read to its end, and leaves when its copies are durable.
    pub(super) fn is_done_copying(&self) -> bool {
        self.cleaning.as_ref().is_some_and(|cleaning| cleaning.copied.is_some())
    }
}

/// Segments on their way out whose settlements are being carried.
#[derive(Debug)]
pub(super) struct Drain {
    /// Rising.
    pub(super) segments: Vec<u64>,
    /// Queues to carry, last first.
    pub(super) queues: Vec<u64>,
    pub(super) deletions: Vec<(Box<[u8]>, u64)>,
    /// The queue that is half carried: the end of its last range written, and the segment of its first.
    pub(super) half: Option<(u64, u64)>,
}

impl Drain {
    /// But for the first, no segment has a deletion that must be written again.
    pub(super) fn of(segments: Vec<u64>, index: &Index, mut queues: Vec<u64>) -> Self {
        let first = segments.first().copied().unwrap_or(0);
        let deletions = index.deletions_to_carry(first);
        let deletions = deletions.map(|(key, version)| (key.into(), version)).collect();
        queues.clear();
        queues.extend(index.queues_to_carry(&segments).map(|(queue, _)| queue));
        Self { segments, queues, deletions, half: None }
    }

    /// How many segments may leave with one commit of so many bytes.
    pub(super) const fn segments_max(commit_bytes: usize) -> usize {
        commit_bytes / 8 / LEFT_BYTES_MAX
    }
}

/// A segment whose live records are being copied.
#[derive(Debug)]
pub(super) struct Cleaning {
    pub(super) segment: u64,
    pub(super) slot: u32,
    /// The commit to copy next, and the bytes of its records that are done.
    pub(super) at: u32,
    pub(super) skip: usize,
    /// What of the segment is in the buffer: so many bytes from this one on.
    pub(super) read: (u32, usize),
    /// How many were asked for.
    pub(super) asked: usize,
    /// Bytes to read next.
    pub(super) wanted: usize,
    /// The disk has refused to read here: no more is read at once than one commit.
    pub(super) is_careful: bool,
    /// Live records that are not copied yet, and perhaps some that are settled meanwhile.
    pub(super) left: u64,
    /// The segment was read to its end; its copies are durable with this position.
    pub(super) copied: Option<Position>,
    pub(super) reading: bool,
    /// There was no room any more in what gathered for the commit of this number.
    pub(super) waits_for: u64,
    pub(super) targets: Vec<Target>,
}
