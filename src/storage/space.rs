//! Room on the disk: the files, the segment that is written, and how much may be written.
//!
//! Publishers stop while two segments are still free; who may use those stands in `due`. With none left, only what fits
//! into the active segment is written, the room for its footer included: a segment without one is read commit by commit
//! at a start.
//!
//! Always true: a publisher's commit leaves the reserve alone. A file system that is full is asked again, less and less
//! often, until it has room for a segment; while it had none even for a commit, only what is written already goes on.

use leveret_core::journal::IndexRoom;
use leveret_core::time::{Deadline, Now};

use super::active_segment::ActiveSegment;
use super::commit::{BLOCK_BYTES, COMMIT_HEADER_BYTES};
use super::disk::Disk;
use super::index::Index;
use super::index_weight::IndexWeight;
use super::names::Naming;
use super::settings::Settings;
use super::slots::{SEGMENTS_READY, SEGMENTS_RESERVED, Slot, Slots};
use super::spares::SegmentSpares;

/// The files, the segment that is written, and how much may be written.
#[derive(Debug)]
pub struct Space {
    segment_bytes: u32,
    commit_bytes: u32,
    pub(super) slots: Slots,
    pub(super) active: ActiveSegment,
    /// What memory knows of the log, held against what it may take.
    pub(super) weight: IndexWeight,
    pub(super) spares: SegmentSpares,
    /// Which queues were named last in a footer.
    pub(super) naming: Naming,
}

impl Space {
    /// What a start found.
    pub(super) fn new(settings: &Settings, slots: Slots, active: ActiveSegment, index: &Index) -> Self {
        Self {
            segment_bytes: settings.segment_bytes,
            commit_bytes: settings.commit_bytes,
            slots,
            active,
            weight: IndexWeight::new(index, settings),
            spares: SegmentSpares::new(settings.segment_bytes),
            naming: Naming::default(),
        }
    }

    /// When a full file system is to be asked for room again.
    pub(super) fn ask_deadline(&self) -> Deadline {
        self.slots.full_until.unwrap_or(Deadline::NEVER)
    }

    /// Takes note that there was no room to write a commit, which was last asked for at this time.
    pub(super) fn note_no_commit_room(&mut self, asked_at: Now) {
        self.slots.note_full(asked_at);
        self.slots.has_no_commit_room = true;
    }

    /// Gives back the room of files beyond the limit, which was lowered. What is in use stays until it is
    /// free and the broker starts again. A disk that keeps a file is no reason not to start.
    pub(super) fn remove_surplus(&mut self, disk: &mut impl Disk) {
        while let Some(slot) = self.slots.surplus() {
            if disk.remove(slot).is_err() {
                return;
            }
            self.slots.set(slot, Slot::Unusable);
        }
    }

    /// Segments ready to be opened.
    pub const fn segments_free(&self) -> usize {
        self.slots.free()
    }

    /// Whether segments should leave at once: somebody waits for their room, or soon will.
    pub(super) const fn needs_room(&self) -> bool {
        self.slots.spare() <= SEGMENTS_RESERVED + SEGMENTS_READY || self.weight.is_full()
    }

    /// Whether a file would be made next: one that is used already does as well, and wears nothing.
    pub(super) const fn wants_files(&self) -> bool {
        self.slots.free() < SEGMENTS_RESERVED + SEGMENTS_READY
    }

    /// Whether only what makes room may open another segment.
    pub(super) const fn is_short(&self) -> bool {
        self.slots.spare() <= SEGMENTS_RESERVED
    }

    /// Whether all of the reserve is there.
    pub(super) const fn leaves_reserve_alone(&self) -> bool {
        self.slots.spare() >= SEGMENTS_RESERVED
    }

    /// Whether a publisher's commit of so many bytes leaves the reserve alone.
    #[inline]
    pub(super) fn has_disk_room(&self, commit_bytes: usize) -> bool {
        let spare = self.slots.spare();
        !self.weight.is_full()
            && !self.slots.has_no_commit_room
            && spare >= SEGMENTS_RESERVED
            && (self.fits_active(commit_bytes) || self.slots.free() > SEGMENTS_RESERVED)
    }

    /// Bytes that may still be appended before the disk limit, roughly and rather too few; none while what
    /// memory knows of the log is as large as it may be.
    pub fn room_bytes(&self) -> u64 {
        if self.weight.is_full() || self.slots.has_no_commit_room {
            return 0;
        }
        let Some(free) = self.slots.spare().checked_sub(SEGMENTS_RESERVED) else { return 0 };
        let segment = u64::from(self.segment_bytes);
        free as u64 * (segment / 16 * 15) + self.active.room_bytes(self.commit_bytes)
    }

    /// What all of its files may take up.
    pub const fn limit_bytes(&self) -> u64 {
        self.slots.limit() as u64 * self.segment_bytes as u64
    }

    /// What [`Self::room_bytes`] is at most, when the log is empty.
    pub const fn most_bytes(&self) -> u64 {
        let segment = self.segment_bytes as u64;
        let segments = (self.slots.limit() as u64).saturating_sub(SEGMENTS_RESERVED as u64);
        (segments * (segment / 16 * 15)).saturating_sub(2 * self.commit_bytes as u64)
    }

    /// Whether a commit of so many bytes can still go into the active segment, its footer's room left free.
    pub(super) fn fits_active(&self, commit_bytes: usize) -> bool {
        self.active.fits(commit_bytes)
    }

    /// The most bytes of a commit that goes into the active segment.
    pub(super) fn active_room(&self) -> usize {
        self.active.commit_room(self.slots.spare() == 0)
    }

    /// About the most bytes of a commit that fills the active segment up; 0 when that is not worth its sync.
    #[inline]
    pub(super) fn filling_room(&self) -> usize {
        self.active.filling_room(self.commit_bytes as usize)
    }

    /// The most bytes that may gather.
    pub(super) fn gather_bytes_max(&self) -> usize {
        let most = self.commit_bytes as usize;
        if self.slots.spare() > 0 { most } else { self.active_room().min(most) }
    }

    /// Whether the next commit opens a segment though the active one has room: what is deleted in that fills
    /// the index.
    pub(super) const fn ends_active_early(&self) -> bool {
        self.weight.ends_active() && self.slots.free() > SEGMENTS_RESERVED
    }

    /// Bytes that the cleaner may need to write before it frees a segment.
    pub(super) fn room_to_clean(&self) -> usize {
        let segment = self.segment_bytes as usize;
        self.active_room() + if self.slots.free() > 0 { segment - 2 * BLOCK_BYTES } else { 0 }
    }

    /// Whether the file system, not `disk_limit`, leaves no more room.
    pub const fn is_file_system_full(&self) -> bool {
        self.slots.full_until.is_some()
    }

    /// A commit is written for which there was no room at first. Whether there is more a segment tells that
    /// is made ready; without one to make this has to do.
    pub(super) const fn note_commit_room(&mut self) {
        if self.slots.used >= self.slots.max {
            self.slots.note_room();
        }
    }

    /// How much of what memory may know of the log is left.
    pub const fn index_room(&self) -> IndexRoom {
        match (self.weight.is_full(), self.weight.is_tight()) {
            (true, _) => IndexRoom::None,
            (false, true) => IndexRoom::Last,
            (false, false) => IndexRoom::Enough,
        }
    }

    /// What copies of so many live bytes take: every commit may waste a block, the first and the last more, but
    /// none is longer than a commit may be.
    pub(super) fn copies_bytes(&self, live_bytes: u64) -> u64 {
        let most = self.commit_bytes as usize;
        let commits = live_bytes / (most - self.settle_share() - BLOCK_BYTES / 2) as u64 + 2;
        let bytes = (live_bytes + commits * BLOCK_BYTES as u64).min(commits * most as u64);
        if live_bytes == 0 { 0 } else { bytes }
    }

    /// Bytes of each commit that only settlements use.
    pub(super) const fn settle_share(&self) -> usize {
        self.commit_bytes as usize / 8
    }

    /// The most bytes that one record may have: an old store's segments may be smaller than those of today.
    pub const fn record_bytes_max(&self) -> usize {
        self.commit_bytes as usize - self.settle_share() - COMMIT_HEADER_BYTES
    }
}
