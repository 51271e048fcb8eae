//! Room on the disk: the files, the segment that is written, and how much may be written.
//!
//! Publishers stop while two segments are still free; who may use those stands in `due`. With none left, only what fits
//! into the active segment is written, the room for its footer included: a segment without one is read commit by commit
//! at a start.
//!
//! Always true: a publisher's commit leaves the reserve alone. A file system that is full is asked again, less and less
//! often, until it has room for a segment; while it had none even for a commit, only what is written already goes on.

use std::collections::VecDeque;

use leveret_core::journal::IndexRoom;
use leveret_core::time::{Deadline, Now};

use super::commit::{BLOCK_BYTES, COMMIT_HEADER_BYTES};
use super::commit_builder::{ActiveSegment, SegmentSpares};
use super::disk::Disk;
use super::index::Index;
use super::index::IndexWeight;
use super::log::Settings;
use super::queue_names::Naming;

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

// The files of the log: what each is used for, and how many there may be.
//
// Always true: the counts are those of the list; free ones have the length of a segment, and are taken in
// turn, so that all wear alike.

/// Segments that only the cleaner and settlements may open.
pub const SEGMENTS_RESERVED: usize = 2;
/// Segments beyond `disk_limit` that the cleaner may have made rather than never be able to write again: when
/// crash after crash has used up the reserve before it could free any. It has one more for each segment that
/// it cannot read.
pub(super) const SEGMENTS_EMERGENCY: usize = 4;
/// Segments kept ready beyond the reserved ones.
pub(super) const SEGMENTS_READY: usize = 2;
/// A file system that was full is asked for room again after this time, in milliseconds; then after half as
/// long again each time, up to the other.
const ASK_AGAIN_MS: u64 = 1_000;
const ASK_AGAIN_MS_MAX: u64 = 30_000;

/// What a slot's file is used for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Slot {
    /// There is no such file, or it is not ours to use.
    Unusable,
    /// Zeros are being written.
    Preparing,
    /// Ready to be a segment.
    Free,
    /// Part of the log.
    Live,
    /// It has left the log, but a fetch or a backup still reads it.
    Pinned,
}

/// The files.
#[derive(Debug)]
pub(super) struct Slots {
    pub(super) slots: Vec<Slot>,
    pub(super) free: usize,
    pub(super) used: usize,
    /// `disk_limit`.
    pub(super) max: usize,
    pub(super) prepared: u32,
    /// The one that those bytes are of.
    begun: u32,
    /// Files of the log that are shorter than a segment, or gone.
    cut: Vec<u32>,
    pub(super) preparing: Option<u32>,
    /// Slots with zeros still to be written.
    pub(super) unready: usize,
    /// The file system had no room, and is asked again then.
    pub(super) full_until: Option<Deadline>,
    /// Not even for what is written into a segment.
    pub(super) has_no_commit_room: bool,
    pub(super) ask_again_ms: u64,
    /// The free ones in the order in which they became so: they are taken in turn, so that all wear alike.
    pub(super) in_turn: VecDeque<u32>,
}

impl Slots {
    /// `taken` is the file of the newest segment; those that are `cut` are part of the log.
    pub(super) fn new(found: &[Slot], max: u32, taken: u32, cut: Vec<u32>) -> Self {
        let max = max as usize;
        let mut slots = Vec::with_capacity(found.len().max(max + SEGMENTS_EMERGENCY));
        slots.extend_from_slice(found);
        let mut in_turn = VecDeque::with_capacity(slots.capacity());
        let is_free = |slot: &u32| slots.get(*slot as usize) == Some(&Slot::Free);
        in_turn.extend((taken + 1..slots.len() as u32).filter(is_free));
        in_turn.extend((0..=taken).filter(is_free));
        let free = slots.iter().filter(|slot| **slot == Slot::Free).count();
        let used = slots.iter().filter(|slot| **slot != Slot::Unusable).count();
        let unready = slots.iter().filter(|slot| **slot == Slot::Preparing).count();
        Self {
            slots,
            free,
            used,
            max,
            prepared: 0,
            begun: 0,
            cut,
            preparing: None,
            unready,
            full_until: None,
            has_no_commit_room: false,
            ask_again_ms: ASK_AGAIN_MS,
            in_turn,
        }
    }

    pub(super) fn note_full(&mut self, now: Now) {
        self.full_until = Some(now.after_ms(self.ask_again_ms));
        self.ask_again_ms = (self.ask_again_ms * 3 / 2).min(ASK_AGAIN_MS_MAX);
    }

    pub(super) const fn note_room(&mut self) {
        self.full_until = None;
        self.has_no_commit_room = false;
        self.ask_again_ms = ASK_AGAIN_MS;
    }

    /// Whether the file system is not known to be full, or is to be asked again.
    pub(super) fn may_ask(&self, now: Now) -> bool {
        self.full_until.is_none_or(|until| until.is_due(now))
    }

    /// Segments that there may be: no more than there are while the file system is full.
    pub(super) const fn limit(&self) -> usize {
        let ready = self.used - self.unready;
        if self.full_until.is_some() && ready < self.max { ready } else { self.max }
    }

    /// A file that may be given up for the room it takes: one is kept, for acknowledgements.
    pub(super) fn to_give(&self) -> Option<u32> {
        if self.free > 1 { self.in_turn.back().copied() } else { None }
    }

    pub(super) fn get(&self, slot: u32) -> Slot {
        self.slots.get(slot as usize).copied().unwrap_or(Slot::Unusable)
    }

    pub(super) fn set(&mut self, slot: u32, state: Slot) {
        let Some(place) = self.slots.get_mut(slot as usize) else { panic!("there is no file {slot}") };
        let old = core::mem::replace(place, state);
        if old == Slot::Free {
            // Nearly always the first.
            if let Some(at) = self.in_turn.iter().position(|free| *free == slot) {
                self.in_turn.remove(at);
            }
        }
        if state == Slot::Free {
            self.in_turn.push_back(slot);
        }
        let count =
            |of: &mut usize, is: fn(Slot) -> bool| *of = *of + usize::from(is(state)) - usize::from(is(old));
        count(&mut self.free, |slot| slot == Slot::Free);
        count(&mut self.used, |slot| slot != Slot::Unusable);
        count(&mut self.unready, |slot| slot == Slot::Preparing);
    }

    /// Nobody needs any more what is in a file: it is ready, or made anew where it was cut.
    pub(super) fn release(&mut self, slot: u32) {
        let cut = self.cut.iter().position(|cut| *cut == slot);
        self.set(slot, if cut.is_some() { Slot::Preparing } else { Slot::Free });
        cut.map(|at| self.cut.swap_remove(at));
    }

    /// A file that is ready: the one that has been so for longest.
    pub(super) fn take_free(&mut self) -> Option<u32> {
        let slot = self.in_turn.front().copied()?;
        self.set(slot, Slot::Live);
        Some(slot)
    }

    pub(super) const fn free(&self) -> usize {
        self.free
    }

    /// `disk_limit` in segments, or what the file system has room for.
    pub(super) const fn most(&self) -> usize {
        self.max
    }

    /// Segments that are free, or may still be made.
    pub(super) const fn spare(&self) -> usize {
        self.free + self.limit().saturating_sub(self.used)
    }

    /// A file beyond the limit with nothing in it, some of which are kept for what comes next.
    pub(super) fn surplus(&self) -> Option<u32> {
        let is_surplus = self.used > self.max && self.free > SEGMENTS_RESERVED + SEGMENTS_READY;
        let last = self.slots.iter().rposition(|slot| *slot == Slot::Free)?;
        is_surplus.then_some(last as u32)
    }

    /// A new segment to prepare, or one that was begun.
    pub(super) fn begin(&mut self, most: usize) -> Option<u32> {
        if self.prepared > 0 {
            return Some(self.begun);
        }
        let unready = self.slots.iter().position(|slot| *slot == Slot::Preparing);
        if unready.is_none() {
            if self.used >= most {
                return None;
            }
            self.slots.push(Slot::Preparing);
            (self.used, self.unready) = (self.used + 1, self.unready + 1);
        }
        self.begun = unready.unwrap_or(self.slots.len() - 1) as u32;
        Some(self.begun)
    }
}
