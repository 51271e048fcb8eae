//! Room on the disk: which files there are, and who may use the last of them.
//!
//! Publishers stop while two segments are still free. Settlements and facts may open the first of them; the
//! last only the cleaner, or settlements that leave some segment so empty that the cleaner can free it, the
//! active one included: one that holds nothing but settlements is freed when they are written again, merged;
//! or facts, when the cleaner has no use for it.
//! With none left, only what fits into the active segment is written, the room for its footer included: a
//! segment without one is read commit by commit at a start.
//!
//! Always true: a segment leaves the log by a record in a durable commit, so none has to be opened for that;
//! a file beyond the limit is made only when neither a start nor the cleaner could write otherwise. A file
//! system that is full is asked again, less and less often, until it has room for a segment; while it had
//! none even for a commit, only what is written already goes on.

use crate::journal::IndexRoom;
use crate::time::Deadline;

use super::commit::{BLOCK_BYTES, padded};
use super::disk::{Disk, is_full};
use super::jobs::{PrepareDone, PrepareJob};
use super::log::{Failed, Log};
use super::slots::{SEGMENTS_EMERGENCY, SEGMENTS_READY, SEGMENTS_RESERVED, Slot};

/// Zeros written in one step, in bytes.
const PREPARE_STEP_BYTES: u32 = 256 << 10;

impl Log {
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

    /// Segments that the cleaner has given up, for some of what is live in them cannot be read.
    pub fn segments_stuck(&self) -> usize {
        self.index.stuck()
    }

    /// Segments ready to be opened.
    pub const fn segments_free(&self) -> usize {
        self.slots.free()
    }

    /// Whether segments should leave at once: somebody waits for their room, or soon will.
    pub(super) const fn needs_room(&self) -> bool {
        self.slots.spare() <= SEGMENTS_RESERVED + SEGMENTS_READY + self.segments_kept
            || self.index_weight.is_full()
    }

    /// So many bytes are kept for others than those who wait for room: what makes room does so beside them.
    pub(super) fn keep_room(&mut self, bytes: u64) {
        let segments = bytes.div_ceil(u64::from(self.settings.segment_bytes / 16 * 15)) as usize;
        // Whoever came to wait may wait for what nobody has looked for yet.
        self.may_clean |= segments > self.segments_kept;
        self.segments_kept = segments;
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
        !self.index_weight.is_full()
            && !self.slots.has_no_commit_room
            && spare >= SEGMENTS_RESERVED
            && (self.fits_active(commit_bytes) || self.slots.free() > SEGMENTS_RESERVED)
    }

    /// Bytes that may still be appended before the disk limit, roughly and rather too few; none while what
    /// memory knows of the log is as large as it may be.
    pub fn room_bytes(&self) -> u64 {
        if self.index_weight.is_full() || self.slots.has_no_commit_room {
            return 0;
        }
        let Some(free) = self.slots.spare().checked_sub(SEGMENTS_RESERVED) else { return 0 };
        let segment = u64::from(self.settings.segment_bytes);
        free as u64 * (segment / 16 * 15) + self.active.room_bytes(self.settings.commit_bytes)
    }

    /// What all of its files may take up.
    pub const fn limit_bytes(&self) -> u64 {
        self.slots.limit() as u64 * self.settings.segment_bytes as u64
    }

    /// What [`Self::room_bytes`] is at most, when the log is empty.
    pub const fn most_bytes(&self) -> u64 {
        let segment = self.settings.segment_bytes as u64;
        let segments = (self.slots.limit() as u64).saturating_sub(SEGMENTS_RESERVED as u64);
        (segments * (segment / 16 * 15)).saturating_sub(2 * self.settings.commit_bytes as u64)
    }

    /// Whether a commit of so many bytes can still go into the active segment, its footer's room left free.
    pub(super) fn fits_active(&self, commit_bytes: usize) -> bool {
        self.active.fits(commit_bytes)
    }

    /// The most bytes of a commit that goes into the active segment.
    fn active_room(&self) -> usize {
        self.active.commit_room(self.slots.spare() == 0)
    }

    /// About the most bytes of a commit that fills the active segment up; 0 when that is not worth its sync.
    #[inline]
    pub(super) fn filling_room(&self) -> usize {
        self.active.filling_room(self.settings.commit_bytes as usize)
    }

    /// The most bytes that may gather.
    pub(super) fn gather_bytes_max(&self) -> usize {
        let most = self.settings.commit_bytes as usize;
        if self.slots.spare() > 0 { most } else { self.active_room().min(most) }
    }

    /// The most bytes of the next commit; `None` while what gathers has to wait for room.
    pub(super) fn commit_bytes_max(&self) -> Option<usize> {
        let most = self.settings.commit_bytes as usize;
        let spare = self.slots.spare();
        // Who awaits something that finds no room must not have every settlement take a block of the last
        // one, before the cleaner has made any.
        let is_lazy = self.has_only_lazy_settlements() || (self.is_copying() && self.has_only_settlements());
        // What the cleaner has copied leaves the log when everything said before it is durable.
        let may_wait = !self.is_cleaning_done_copying() && (self.is_cleaning() || !self.would_leave_half());
        if spare == 0 && is_lazy && may_wait {
            return None;
        }
        if self.fits_active(most) || (self.slots.free() > 0 && self.may_open()) {
            let filling = self.filling_room().min(most);
            let fills = self.gathering.records() > 0 && self.gathering.len() + self.settle_share() <= filling;
            return Some(if fills { filling } else { most });
        }
        let room = self.active_room().min(most);
        (padded(self.gathering.len() + 1) <= room).then_some(room)
    }

    /// Whether the next commit may open a segment.
    fn may_open(&self) -> bool {
        let spare = self.slots.spare();
        if spare > SEGMENTS_RESERVED
            || self.schedule.is_starting()
            || self.is_cleaning()
            || self.gathering.frees()
        {
            return true;
        }
        spare == SEGMENTS_RESERVED || self.would_leave_half() || self.is_last_of_no_use()
    }

    /// Whether the last segment is kept for a cleaner that has looked and found nothing that fits into it,
    /// while marks or definitions wait: nothing is delivered without its mark, so nothing would be settled
    /// either, and the cleaner would never find anything.
    fn is_last_of_no_use(&self) -> bool {
        !self.may_clean && !self.has_only_settlements()
    }

    /// Whether the settlements that wait leave some segment at most half live, or the active one is so: then
    /// the cleaner can free it when they are written.
    fn would_leave_half(&self) -> bool {
        let is_worth = |live, bytes| self.copies_bytes(live) * 2 <= u64::from(bytes);
        self.index.would_leave(self.active.sequence(), is_worth)
    }

    /// Whether the cleaner would free some segment by copying at most half of it, if it had room for that.
    fn has_half_dead(&self) -> bool {
        self.half_dead_copies().next().is_some()
    }

    /// The same, and it has room for none of them.
    fn is_half_dead_without_room(&self) -> bool {
        let room = self.room_to_clean() as u64;
        self.has_half_dead() && self.half_dead_copies().all(|bytes| bytes > room)
    }

    /// What the copies take of each segment that is at most half live.
    fn half_dead_copies(&self) -> impl Iterator<Item = u64> {
        let sealed =
            self.index.segments().iter().filter(|(sequence, _)| **sequence != self.active.sequence());
        let readable = sealed.filter(|(_, segment)| !segment.stuck);
        let copies = readable.map(|(_, segment)| (self.copies_bytes(segment.live_bytes), segment.bytes));
        copies.filter(|(copies, bytes)| copies * 2 <= u64::from(*bytes)).map(|(copies, _)| copies)
    }

    /// What copies of so many live bytes take: every commit may waste a block, the first and the last more, but
    /// none is longer than a commit may be.
    pub(super) fn copies_bytes(&self, live_bytes: u64) -> u64 {
        let most = self.settings.commit_bytes as usize;
        let commits = live_bytes / (most - self.settle_share() - BLOCK_BYTES / 2) as u64 + 2;
        let bytes = (live_bytes + commits * BLOCK_BYTES as u64).min(commits * most as u64);
        if live_bytes == 0 { 0 } else { bytes }
    }

    /// How many bytes the index took when it became full, once each time.
    pub const fn take_index_overflow(&mut self) -> Option<usize> {
        self.index_weight.take_overflow()
    }

    /// How much of what memory may know of the log is left.
    pub const fn index_room(&self) -> IndexRoom {
        match (self.index_weight.is_full(), self.index_weight.is_tight()) {
            (true, _) => IndexRoom::None,
            (false, true) => IndexRoom::Last,
            (false, false) => IndexRoom::Enough,
        }
    }

    /// Looks how much memory the index takes.
    pub(super) fn weigh_index(&mut self) {
        self.index_weight.set(&self.index);
        if self.index_weight.is_full() {
            self.index.give_back();
            self.index_weight.set(&self.index);
        }
        if self.ends_active_early() {
            self.hurry();
        }
    }

    /// Whether the next commit opens a segment though the active one has room: what is deleted in that fills
    /// the index.
    pub(super) const fn ends_active_early(&self) -> bool {
        self.index_weight.ends_active() && self.slots.free() > SEGMENTS_RESERVED
    }

    /// Bytes that the cleaner may need to write before it frees a segment.
    pub(super) fn room_to_clean(&self) -> usize {
        let segment = self.settings.segment_bytes as usize;
        self.active_room() + if self.slots.free() > 0 { segment - 2 * BLOCK_BYTES } else { 0 }
    }

    /// Whether the file system, not `disk_limit`, leaves no more room.
    pub const fn is_file_system_full(&self) -> bool {
        self.slots.full_until.is_some()
    }

    /// When a full file system is to be asked for room again.
    pub fn ask_deadline(&self) -> Deadline {
        if self.failed { Deadline::NEVER } else { self.slots.full_until.unwrap_or(Deadline::NEVER) }
    }

    /// Takes note that there was no room to write a commit, and of the file that was given up for it.
    pub(super) fn note_no_commit_room(&mut self) {
        self.slots.note_full(self.schedule.asked_at());
        self.slots.has_no_commit_room = true;
    }

    /// A commit is written for which there was no room at first. Whether there is more a segment tells that
    /// is made ready; without one to make this has to do.
    pub(super) const fn note_commit_room(&mut self) {
        if self.slots.used >= self.slots.max {
            self.slots.note_room();
        }
    }

    /// The next step towards another ready segment, if one is wanted.
    pub fn next_prepare(&mut self) -> Option<PrepareJob> {
        if self.failed || self.slots.preparing.is_some() || !self.slots.may_ask(self.schedule.asked_at()) {
            return None;
        }
        let is_stuck = self.is_stuck();
        let is_wanted = is_stuck || self.wants_files() || self.is_file_system_full();
        if self.slots.unready == 0 && !is_wanted {
            return None;
        }
        // Without one a start would fail, and so would the next; and a segment with nothing in it that is on
        // its way out, or settlements that leave one so, give a file for a file, without reading anything.
        let gives_one =
            || self.drain.is_some() || self.index.would_leave(self.active.sequence(), |live, _| live == 0);
        let most = match is_stuck {
            true if self.schedule.is_starting() || gives_one() => self.slots.used + 1,
            true => self.slots.max + SEGMENTS_EMERGENCY + self.index.stuck(),
            false => self.slots.max,
        };
        let Some(slot) = self.slots.begin(most) else {
            // The limit is reached as well, so that it is what says how much room there is.
            self.slots.note_room();
            return None;
        };
        let (prepared, segment_bytes) = (self.slots.prepared, self.settings.segment_bytes);
        let bytes = PREPARE_STEP_BYTES.min(segment_bytes - prepared);
        let last = prepared + bytes == segment_bytes;
        self.slots.preparing = Some(slot);
        let create = (prepared == 0).then_some(segment_bytes);
        Some(PrepareJob { slot, create, from: prepared, bytes, last })
    }

    /// Neither a start nor the cleaner can write what must be written, nor can settlements that make room:
    /// what the cleaner cannot read keeps the room that its copies should have made.
    fn is_stuck(&self) -> bool {
        let is_blocked = padded(self.gathering.len() + 1) > self.active_room();
        let must = self.schedule.is_starting() || self.drain.is_some();
        let copying = match (self.gathering.records(), &self.cleaning) {
            (0, Some(cleaning)) => cleaning.waits_for == self.number + 1,
            (_, Some(_)) => is_blocked,
            (_, None) if is_blocked => {
                (self.has_settlements() && self.would_leave_half()) || self.has_half_dead()
            }
            // A block or two are left, which settlements fit into and nothing that they leave a share for.
            (0, None) if !self.has_room(1) => self.is_half_dead_without_room(),
            (_, None) => false,
        };
        self.slots.spare() == 0 && (copying || (must && is_blocked))
    }

    /// Takes the outcome of a prepare job. A file system with less room than promised lowers the limit until
    /// it has some.
    ///
    /// # Errors
    /// The disk failed; this is final.
    pub fn prepare_done(&mut self, done: PrepareDone) -> Result<(), Failed> {
        self.slots.preparing = None;
        let slot = done.job.slot;
        match done.outcome {
            Ok(()) => {
                self.counters.bytes_zeroed += u64::from(done.job.bytes);
                self.counters.syncs += 1;
                self.slots.prepared += done.job.bytes;
                if done.job.last {
                    self.slots.prepared = 0;
                    self.slots.set(slot, Slot::Free);
                    self.slots.note_room();
                    self.may_clean = true;
                }
                Ok(())
            }
            Err(error) if is_full(&error) => {
                // Preparing the file is begun again.
                self.slots.prepared = 0;
                self.slots.note_full(self.schedule.asked_at());
                Ok(())
            }
            Err(error) => Err(self.fail(error)),
        }
    }
}
