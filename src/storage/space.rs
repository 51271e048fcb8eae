//! The segment files, the active segment, and how many bytes may still be written.
//!
//! Publishers must stop when only two segments are left; `commit_schedule` decides which records may use these reserved
//! segments. If no segment is free, commits must fit into the active segment, and may use the space of its footer. A
//! start then reads this segment commit by commit, which is slower.
//!
//! # Invariants
//! - A publisher's commit leaves the reserved segments alone.
//! - While the file system is full, the store tries at growing intervals to create or prepare a segment. If there
//!   is no space even for a commit, only retries of that commit are written.

use std::collections::VecDeque;

use crate::pending_writes::IndexCapacity;
use leveret_core::time::{Deadline, Now};

use super::commit::{BLOCK_BYTES, COMMIT_HEADER_BYTES};
use super::commit_builder::{ActiveSegment, SegmentBuffers};
use super::disk::Disk;
use super::disk_jobs::DeletableFile;
use super::index::Index;
use super::index::IndexMemory;
use super::log::Settings;
use super::queue_names::NameProgress;

/// The segment files, the active segment, and how many bytes may still be written.
#[derive(Debug)]
pub struct Space {
    segment_bytes: u32,
    commit_bytes: u32,
    pub(super) slots: Slots,
    pub(super) active: ActiveSegment,
    /// Memory use of the index, compared with its limit.
    pub(super) index_memory: IndexMemory,
    pub(super) buffers: SegmentBuffers,
    /// The progress of writing queue names into footers.
    pub(super) naming: NameProgress,
}

impl Space {
    /// Creates the state from the files and the index that a start found.
    pub(super) fn new(settings: &Settings, slots: Slots, active: ActiveSegment, index: &Index) -> Self {
        Self {
            segment_bytes: settings.segment_bytes,
            commit_bytes: settings.commit_bytes,
            slots,
            active,
            index_memory: IndexMemory::new(index, settings),
            buffers: SegmentBuffers::new(settings.segment_bytes, settings.commit_bytes),
            naming: NameProgress::default(),
        }
    }

    /// Returns when the store tries again to get space from a full file system; never if it is not full.
    pub(super) fn ask_deadline(&self) -> Deadline {
        self.slots.full_until.unwrap_or(Deadline::NEVER)
    }

    /// Records that the file system had no space for a commit. `requested_at` is when a commit was last requested,
    /// which is about now.
    pub(super) fn note_no_commit_room(&mut self, requested_at: Now) {
        self.slots.note_full(requested_at);
        self.slots.has_no_commit_room = true;
    }

    /// Deletes free files beyond a lowered `disk_limit`. Files in use stay until they are free and the broker
    /// starts again. A file that cannot be deleted does not prevent the start.
    pub(super) fn remove_surplus(&mut self, disk: &mut impl Disk) {
        while let Some(slot) = self.slots.surplus() {
            if disk.remove(slot).is_err() {
                return;
            }
            self.slots.set(slot, SlotUse::Unusable);
        }
    }

    /// Returns the number of segments that are ready to be opened.
    pub const fn segments_free(&self) -> usize {
        self.slots.free()
    }

    /// Returns whether segments should be removed at once, because their space is needed or soon will be.
    pub(super) const fn needs_room(&self) -> bool {
        self.slots.available() <= SEGMENTS_RESERVED + SEGMENTS_READY || self.index_memory.is_full()
    }

    /// Returns whether a new file would be prepared next. Removing a segment instead avoids the wear of preparing a
    /// file, because its file can be reused.
    pub(super) const fn wants_files(&self) -> bool {
        self.slots.free() < SEGMENTS_RESERVED + SEGMENTS_READY
    }

    /// Returns whether no more than the reserved segments are available.
    pub(super) const fn is_scarce(&self) -> bool {
        self.slots.available() <= SEGMENTS_RESERVED
    }

    /// Returns whether the whole reserve is free.
    pub(super) const fn has_whole_reserve(&self) -> bool {
        self.slots.available() >= SEGMENTS_RESERVED
    }

    /// Returns whether a publisher's commit of `commit_bytes` leaves the reserve alone.
    #[inline]
    pub(super) fn has_disk_room(&self, commit_bytes: usize) -> bool {
        let available = self.slots.available();
        !self.index_memory.is_full()
            && !self.slots.has_no_commit_room
            && available >= SEGMENTS_RESERVED
            && (self.fits_active(commit_bytes) || self.slots.free() > SEGMENTS_RESERVED)
    }

    /// Returns a low estimate of the bytes that may still be appended before the disk limit; 0 while the
    /// index is full.
    pub fn room_bytes(&self) -> u64 {
        if self.index_memory.is_full() || self.slots.has_no_commit_room {
            return 0;
        }
        let Some(free) = self.slots.available().checked_sub(SEGMENTS_RESERVED) else { return 0 };
        let segment = u64::from(self.segment_bytes);
        free as u64 * (segment / 16 * 15) + self.active.room_bytes(self.commit_bytes)
    }

    /// Returns the maximum bytes of all segment files.
    pub const fn limit_bytes(&self) -> u64 {
        self.slots.limit() as u64 * self.segment_bytes as u64
    }

    /// Returns the bytes that the log uses, including settled messages.
    pub fn used_bytes(&self) -> u64 {
        self.most_bytes().saturating_sub(self.room_bytes())
    }

    /// Returns the value of [`Self::room_bytes`] for an empty log.
    pub const fn most_bytes(&self) -> u64 {
        let segment = self.segment_bytes as u64;
        let segments = (self.slots.limit() as u64).saturating_sub(SEGMENTS_RESERVED as u64);
        (segments * (segment / 16 * 15)).saturating_sub(2 * self.commit_bytes as u64)
    }

    /// Returns whether a commit of `commit_bytes` fits into the active segment with its footer.
    pub(super) fn fits_active(&self, commit_bytes: usize) -> bool {
        self.active.fits(commit_bytes)
    }

    /// Returns the maximum bytes of a commit in the active segment.
    pub(super) fn active_room(&self) -> usize {
        self.active.commit_room(self.slots.available() == 0)
    }

    /// Returns about the bytes of a commit that fills the active segment up; 0 if that is not worth its sync.
    #[inline]
    pub(super) fn filling_room(&self) -> usize {
        self.active.filling_room(self.commit_bytes as usize)
    }

    /// Returns the maximum bytes of the pending commit.
    pub(super) fn pending_bytes_max(&self) -> usize {
        let most = self.commit_bytes as usize;
        if self.slots.available() > 0 { most } else { self.active_room().min(most) }
    }

    /// Returns whether the next commit opens a segment although the active one has space, because deleted
    /// objects in the active segment fill the index.
    pub(super) const fn ends_active_early(&self) -> bool {
        self.index_memory.ends_active() && self.slots.free() > SEGMENTS_RESERVED
    }

    /// Returns whether the commit that was noted in the active segment's footer opens a segment, because it would make the
    /// footer incomplete. Reserved segments are not opened for this.
    pub(super) const fn footer_ends_active(&self) -> bool {
        self.active.footer().became_incomplete() && self.slots.free() > SEGMENTS_RESERVED
    }

    /// Returns the bytes that the compactor may write before it frees a segment.
    pub(super) fn room_to_compact(&self) -> usize {
        let segment = self.segment_bytes as usize;
        self.active_room() + if self.slots.free() > 0 { segment - 2 * BLOCK_BYTES } else { 0 }
    }

    /// Returns whether the file system, not `disk_limit`, limits the space.
    pub const fn is_file_system_full(&self) -> bool {
        self.slots.full_until.is_some()
    }

    /// Records that a postponed commit was written. If all segment files exist already, the file system counts as no
    /// longer full. Otherwise it does so only when the next segment has been prepared.
    pub(super) const fn note_commit_room(&mut self) {
        if self.slots.used >= self.slots.max {
            self.slots.note_room();
        }
    }

    /// Returns how much of the index's memory is left.
    pub const fn index_capacity(&self) -> IndexCapacity {
        match (self.index_memory.is_full(), self.index_memory.has_only_last_eighth()) {
            (true, _) => IndexCapacity::Exhausted,
            (false, true) => IndexCapacity::DeadLettersOnly,
            (false, false) => IndexCapacity::Enough,
        }
    }

    /// Returns a high estimate of the bytes that copies of `live_bytes` take in commits. Every commit may leave up to
    /// a block unused, and the first and the last commit more. No commit exceeds `commit_bytes`.
    pub(super) fn copies_bytes(&self, live_bytes: u64) -> u64 {
        let most = self.commit_bytes as usize;
        let room = most - self.settle_share();
        // The records of two adjacent commits do not fit into one. So on average a commit is at least half full.
        let records_bytes = (room - BLOCK_BYTES / 2).max((room - COMMIT_HEADER_BYTES) / 2);
        let commits = live_bytes / records_bytes as u64 + 2;
        let bytes = (live_bytes + commits * BLOCK_BYTES as u64).min(commits * most as u64);
        if live_bytes == 0 { 0 } else { bytes }
    }

    /// Returns the bytes of each commit that are reserved for settlements.
    pub(super) const fn settle_share(&self) -> usize {
        self.commit_bytes as usize / 8
    }

    /// Returns the maximum bytes of one record. It depends on `commit_bytes`, which an existing store with small
    /// segments limits to a third of a segment.
    pub const fn record_bytes_max(&self) -> usize {
        self.commit_bytes as usize - self.settle_share() - COMMIT_HEADER_BYTES
    }
}

/// Number of segments that publishers leave free; `commit_schedule` decides what else may open them.
pub const SEGMENTS_RESERVED: usize = 2;
/// Number of segments beyond `disk_limit` that may be created for the compactor if it could never write again
/// otherwise. That happens when repeated crashes use up the reserve before any segment is freed. One more is
/// allowed for each segment that the compactor cannot read.
pub(super) const SEGMENTS_EMERGENCY: usize = 4;
/// Number of segments kept ready beyond the reserved ones.
pub(super) const SEGMENTS_READY: usize = 2;
/// Interval until the first new attempt to get space from a full file system, in milliseconds. Each further interval
/// is 1.5 times as long.
const ASK_AGAIN_MS: u64 = 1_000;
/// Maximum of that interval, in milliseconds.
const ASK_AGAIN_MS_MAX: u64 = 30_000;

/// The use of a slot's file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum SlotUse {
    /// There is no file for this slot, or the file cannot be used.
    Unusable,
    /// The file exists, but zeros must still be written to it.
    Preparing,
    /// The file is ready to become a segment.
    Free,
    /// The file is a segment of the log.
    Live,
    /// The file's segment was removed from the log, but a fetch or a backup still reads the file.
    Pinned,
}

/// The files of the log.
///
/// Invariant: the counts agree with the list. Free files have the length of a segment. They are used in the order in
/// which they became free, so that all files wear equally.
#[derive(Debug)]
pub(super) struct Slots {
    pub(super) slots: Vec<SlotUse>,
    pub(super) free: usize,
    /// Number of slots that are not [`SlotUse::Unusable`].
    pub(super) used: usize,
    /// `disk_limit` in segments.
    pub(super) max: usize,
    /// Number of prepared bytes in the file of the slot `partly_prepared`; 0 if no file is partly prepared.
    pub(super) prepared: u32,
    /// The slot whose file is being prepared in several steps.
    partly_prepared: u32,
    /// Live segment files that are missing or shorter than a segment.
    cut: Vec<u32>,
    /// The slot of the prepare job in flight, if there is one.
    pub(super) prepare_in_flight: Option<u32>,
    /// Number of slots in the state [`SlotUse::Preparing`].
    pub(super) unready_count: usize,
    /// When the next attempt to get space is made; `None` while the file system is not full.
    pub(super) full_until: Option<Deadline>,
    /// Whether the file system had no space even for a commit into an existing segment.
    pub(super) has_no_commit_room: bool,
    pub(super) ask_again_ms: u64,
    /// Free files in the order in which they became free.
    pub(super) free_slots: VecDeque<u32>,
}

impl Slots {
    /// Creates the state from the files found. `taken` is the slot of the newest segment. `cut` contains live segment
    /// files that are missing or shorter than a segment.
    pub(super) fn new(found: &[SlotUse], max: u32, taken: u32, cut: Vec<u32>) -> Self {
        let max = max as usize;
        let mut slots = Vec::with_capacity(found.len().max(max + SEGMENTS_EMERGENCY));
        slots.extend_from_slice(found);
        let mut free_slots = VecDeque::with_capacity(slots.capacity());
        let is_free = |slot: &u32| slots.get(*slot as usize) == Some(&SlotUse::Free);
        free_slots.extend((taken + 1..slots.len() as u32).filter(is_free));
        free_slots.extend((0..=taken).filter(is_free));
        let free = slots.iter().filter(|slot| **slot == SlotUse::Free).count();
        let used = slots.iter().filter(|slot| **slot != SlotUse::Unusable).count();
        let unready_count = slots.iter().filter(|slot| **slot == SlotUse::Preparing).count();
        Self {
            slots,
            free,
            used,
            max,
            prepared: 0,
            partly_prepared: 0,
            cut,
            prepare_in_flight: None,
            unready_count,
            full_until: None,
            has_no_commit_room: false,
            ask_again_ms: ASK_AGAIN_MS,
            free_slots,
        }
    }

    /// Records that the file system is full, and schedules the next attempt.
    pub(super) fn note_full(&mut self, now: Now) {
        self.full_until = Some(now.after_ms(self.ask_again_ms));
        self.ask_again_ms = (self.ask_again_ms * 3 / 2).min(ASK_AGAIN_MS_MAX);
    }

    /// Records that the file system has space again.
    pub(super) const fn note_room(&mut self) {
        self.full_until = None;
        self.has_no_commit_room = false;
        self.ask_again_ms = ASK_AGAIN_MS;
    }

    /// Returns whether the store may try to get space: the file system is not known to be full, or the interval since
    /// the last attempt has passed.
    pub(super) fn may_ask(&self, now: Now) -> bool {
        self.full_until.is_none_or(|until| until.is_due(now))
    }

    /// Returns the maximum number of segments. While the file system is full, this is the number of prepared files.
    pub(super) const fn limit(&self) -> usize {
        let ready = self.used - self.unready_count;
        if self.full_until.is_some() && ready < self.max { ready } else { self.max }
    }

    /// Returns the free file that may be deleted to make space. No file may be deleted if at most one is free, because
    /// one is kept for acknowledgements.
    pub(super) fn deletable_file(&self) -> DeletableFile {
        let slot = if self.free > 1 { self.free_slots.back().copied() } else { None };
        DeletableFile { slot, deleted_slot: None }
    }

    pub(super) fn get(&self, slot: u32) -> SlotUse {
        self.slots.get(slot as usize).copied().unwrap_or(SlotUse::Unusable)
    }

    /// Changes the use of a slot, and the counts with it.
    pub(super) fn set(&mut self, slot: u32, state: SlotUse) {
        let Some(place) = self.slots.get_mut(slot as usize) else { panic!("there is no file {slot}") };
        let old = core::mem::replace(place, state);
        if old == SlotUse::Free {
            // The search is short, because it is nearly always the first file.
            if let Some(at) = self.free_slots.iter().position(|free| *free == slot) {
                self.free_slots.remove(at);
            }
        }
        if state == SlotUse::Free {
            self.free_slots.push_back(slot);
        }
        let count = |of: &mut usize, is: fn(SlotUse) -> bool| {
            *of = *of + usize::from(is(state)) - usize::from(is(old))
        };
        count(&mut self.free, |slot| slot == SlotUse::Free);
        count(&mut self.used, |slot| slot != SlotUse::Unusable);
        count(&mut self.unready_count, |slot| slot == SlotUse::Preparing);
    }

    /// Frees a file whose content is not needed any more. A truncated file is prepared again.
    pub(super) fn release(&mut self, slot: u32) {
        let cut = self.cut.iter().position(|cut| *cut == slot);
        self.set(slot, if cut.is_some() { SlotUse::Preparing } else { SlotUse::Free });
        cut.map(|at| self.cut.swap_remove(at));
    }

    /// Takes the file that has been free for longest.
    pub(super) fn take_free(&mut self) -> Option<u32> {
        let slot = self.free_slots.front().copied()?;
        self.set(slot, SlotUse::Live);
        Some(slot)
    }

    /// Returns the number of segments ready to be opened.
    pub(super) const fn free(&self) -> usize {
        self.free
    }

    /// Returns `disk_limit` as a number of segments.
    pub(super) const fn most(&self) -> usize {
        self.max
    }

    /// Returns the number of segments that are free or may still be created.
    pub(super) const fn available(&self) -> usize {
        self.free + self.limit().saturating_sub(self.used)
    }

    /// Returns a free file to delete, if there are more files than `disk_limit` allows. Enough free files are kept
    /// for the next segments.
    pub(super) fn surplus(&self) -> Option<u32> {
        let is_surplus = self.used > self.max && self.free > SEGMENTS_RESERVED + SEGMENTS_READY;
        let last = self.slots.iter().rposition(|slot| *slot == SlotUse::Free)?;
        is_surplus.then_some(last as u32)
    }

    /// Returns the slot of a file to prepare: the partly prepared file, another unprepared file, or a new one.
    /// Returns `None` if a new file is needed and there are `most` files already.
    pub(super) fn begin(&mut self, most: usize) -> Option<u32> {
        if self.prepared > 0 {
            return Some(self.partly_prepared);
        }
        let unprepared = self.slots.iter().position(|slot| *slot == SlotUse::Preparing);
        if unprepared.is_none() {
            if self.used >= most {
                return None;
            }
            self.slots.push(SlotUse::Preparing);
            (self.used, self.unready_count) = (self.used + 1, self.unready_count + 1);
        }
        self.partly_prepared = unprepared.unwrap_or(self.slots.len() - 1) as u32;
        Some(self.partly_prepared)
    }
}
