//! When a commit is due, and how much it may take: what waits for it, how long it may gather, what the card can stand,
//! and who may use the last of the room.
//!
//! ```text
//! appended, by urgency ──→ due at: now, or a window from now ─┐
//! cleaner, room, start, clean stop ───────────────────────────┼─→ is_due → next_commit
//! token bucket of syncs: empty → what is awaited gathers too ─┘
//! ```
//!
//! Settlements and facts may open the first of the two segments that publishers leave; the last only the cleaner, or
//! settlements that leave some segment so empty that the cleaner can free it, the active one included: one that holds
//! nothing but settlements is freed when they are written again, merged; or facts, when the cleaner has no use for it.
//!
//! Always true: whatever is appended makes a commit due within the window of its urgency; nothing is due while a commit
//! is on its way; what nobody awaits, and frees no file, takes no token. A segment leaves the log by a record in a
//! durable commit, so none has to be opened for that; a file beyond the limit is made only when neither a start nor the
//! cleaner could write otherwise.

use leveret_core::time::Now;

use super::cleaning::Cleaning;
use super::commit::padded;
use super::disk::is_full;
use super::jobs::{PrepareDone, PrepareJob};
use super::log::{Failed, Log};
use super::slots::{SEGMENTS_EMERGENCY, SEGMENTS_RESERVED, Slot};

/// Zeros written in one step, in bytes.
const PREPARE_STEP_BYTES: u32 = 256 << 10;

impl Log {
    /// Whether what waits elsewhere should be appended now, for a commit is about to be made.
    pub fn is_time(&self, now: Now) -> bool {
        let hurry = self.must_leave(now) || self.cleaner.is_done_copying() || self.schedule.is_starting();
        !self.failed && self.in_flight.is_none() && (self.schedule.due_at().is_due(now) || hurry)
    }

    /// Whether a commit is made even if it is empty.
    pub(super) const fn must_commit(&self) -> bool {
        self.schedule.must_commit() || self.space.ends_active_early()
    }

    /// Whether a commit should be made now.
    pub(super) fn is_due(&mut self, now: Now) -> bool {
        self.schedule.note_asked(now);
        if self.failed || self.in_flight.is_some() {
            return false;
        }
        let has_gathered = self.has_gathered() && !self.gathers_copies_only();
        let something =
            self.must_commit() || has_gathered || !self.settling.is_empty() || self.cleaner.drain.is_some();
        let hurry = self.must_leave(now) || self.cleaner.is_done_copying();
        something && (self.schedule.due_at().is_due(now) || hurry)
    }

    /// Whether nothing gathers but copies, and more of them are to come: whoever awaits a commit has nothing in
    /// this one and waits for a few reads, where a commit for each would take as much as the segment gives.
    fn gathers_copies_only(&self) -> bool {
        self.is_copying() && self.gathering.has_only_copies() && !self.access.is_due()
    }

    /// A segment is on its way out, and its room is needed or a sync for it is to be had.
    fn must_leave(&self, now: Now) -> bool {
        self.cleaner.drain.is_some()
            && (self.space.needs_room() || self.space.wants_files() || self.schedule.has_sync(now))
    }

    pub(super) fn has_only_lazy_settlements(&self) -> bool {
        self.has_only_settlements() && !self.schedule.is_awaited()
    }

    pub(super) fn has_only_settlements(&self) -> bool {
        !self.has_gathered() && self.cleaner.drain.is_none() && !self.schedule.is_starting()
    }

    /// A commit was handed out: what is still there gathers for the next one.
    pub(super) fn after_handing_out(&mut self, now: Now) {
        let frees = self.in_flight.as_ref().is_some_and(|commit| !commit.drained.is_empty());
        let has_more = !self.settling.is_empty() || self.has_gathered();
        self.schedule.note_handed_out(frees, has_more, now);
    }

    /// Segments are to leave: at once when their room is needed or the sync budget has one left, else with
    /// what is written anyway.
    pub(super) fn hurry_to_leave(&mut self) {
        let must_leave = self.must_leave(self.schedule.asked_at());
        self.schedule.note_leaving(must_leave);
    }

    /// Whether the cleaner goes on with what it copies though no other commit is made.
    pub(super) fn is_copying(&self) -> bool {
        let is_going =
            |cleaning: &Cleaning| cleaning.copied.is_none() && cleaning.waits_for != self.writer.number + 1;
        !self.space.weight.is_crowded() && self.cleaner.cleaning.as_ref().is_some_and(is_going)
    }

    /// The most bytes of the next commit; `None` while what gathers has to wait for room.
    pub(super) fn commit_bytes_max(&self) -> Option<usize> {
        let most = self.settings.commit_bytes as usize;
        let spare = self.space.slots.spare();
        // Who awaits something that finds no room must not have every settlement take a block of the last
        // one, before the cleaner has made any.
        let is_lazy = self.has_only_lazy_settlements() || (self.is_copying() && self.has_only_settlements());
        // What the cleaner has copied leaves the log when everything said before it is durable.
        let may_wait =
            !self.cleaner.is_done_copying() && (self.cleaner.is_cleaning() || !self.would_leave_half());
        if spare == 0 && is_lazy && may_wait {
            return None;
        }
        if self.space.fits_active(most) || (self.space.slots.free() > 0 && self.may_open()) {
            let filling = self.space.filling_room().min(most);
            let fills =
                self.gathering.records() > 0 && self.gathering.len() + self.space.settle_share() <= filling;
            return Some(if fills { filling } else { most });
        }
        let room = self.space.active_room().min(most);
        (padded(self.gathering.len() + 1) <= room).then_some(room)
    }

    /// Whether the next commit may open a segment.
    fn may_open(&self) -> bool {
        let spare = self.space.slots.spare();
        if spare > SEGMENTS_RESERVED
            || self.schedule.is_starting()
            || self.cleaner.is_cleaning()
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
        !self.cleaner.may_clean && !self.has_only_settlements()
    }

    /// Whether the settlements that wait leave some segment at most half live, or the active one is so: then
    /// the cleaner can free it when they are written.
    fn would_leave_half(&self) -> bool {
        let is_worth = |live, bytes| self.space.copies_bytes(live) * 2 <= u64::from(bytes);
        self.index.would_leave(self.space.active.sequence(), is_worth)
    }

    /// Whether the cleaner would free some segment by copying at most half of it, if it had room for that.
    fn has_half_dead(&self) -> bool {
        self.half_dead_copies().next().is_some()
    }

    /// The same, and it has room for none of them.
    fn is_half_dead_without_room(&self) -> bool {
        let room = self.space.room_to_clean() as u64;
        self.has_half_dead() && self.half_dead_copies().all(|bytes| bytes > room)
    }

    /// What the copies take of each segment that is at most half live.
    fn half_dead_copies(&self) -> impl Iterator<Item = u64> {
        let sealed =
            self.index.segments().iter().filter(|(sequence, _)| **sequence != self.space.active.sequence());
        let readable = sealed.filter(|(_, segment)| !segment.stuck);
        let copies =
            readable.map(|(_, segment)| (self.space.copies_bytes(segment.live_bytes), segment.bytes));
        copies.filter(|(copies, bytes)| copies * 2 <= u64::from(*bytes)).map(|(copies, _)| copies)
    }

    /// The next step towards another ready segment, if one is wanted.
    pub fn next_prepare(&mut self) -> Option<PrepareJob> {
        if self.failed
            || self.space.slots.preparing.is_some()
            || !self.space.slots.may_ask(self.schedule.asked_at())
        {
            return None;
        }
        let is_stuck = self.is_stuck();
        let is_wanted = is_stuck || self.space.wants_files() || self.space.is_file_system_full();
        if self.space.slots.unready == 0 && !is_wanted {
            return None;
        }
        // Without one a start would fail, and so would the next; and a segment with nothing in it that is on
        // its way out, or settlements that leave one so, give a file for a file, without reading anything.
        let gives_one = || {
            self.cleaner.drain.is_some()
                || self.index.would_leave(self.space.active.sequence(), |live, _| live == 0)
        };
        let most = match is_stuck {
            true if self.schedule.is_starting() || gives_one() => self.space.slots.used + 1,
            true => self.space.slots.max + SEGMENTS_EMERGENCY + self.index.stuck(),
            false => self.space.slots.max,
        };
        let Some(slot) = self.space.slots.begin(most) else {
            // The limit is reached as well, so that it is what says how much room there is.
            self.space.slots.note_room();
            return None;
        };
        let (prepared, segment_bytes) = (self.space.slots.prepared, self.settings.segment_bytes);
        let bytes = PREPARE_STEP_BYTES.min(segment_bytes - prepared);
        let last = prepared + bytes == segment_bytes;
        self.space.slots.preparing = Some(slot);
        let create = (prepared == 0).then_some(segment_bytes);
        Some(PrepareJob { slot, create, from: prepared, bytes, last })
    }

    /// Neither a start nor the cleaner can write what must be written, nor can settlements that make room:
    /// what the cleaner cannot read keeps the room that its copies should have made.
    fn is_stuck(&self) -> bool {
        let is_blocked = padded(self.gathering.len() + 1) > self.space.active_room();
        let must = self.schedule.is_starting() || self.cleaner.drain.is_some();
        let copying = match (self.gathering.records(), &self.cleaner.cleaning) {
            (0, Some(cleaning)) => cleaning.waits_for == self.writer.number + 1,
            (_, Some(_)) => is_blocked,
            (_, None) if is_blocked => {
                (self.has_settlements() && self.would_leave_half()) || self.has_half_dead()
            }
            // A block or two are left, which settlements fit into and nothing that they leave a share for.
            (0, None) if !self.has_room(1) => self.is_half_dead_without_room(),
            (_, None) => false,
        };
        self.space.slots.spare() == 0 && (copying || (must && is_blocked))
    }

    /// Takes the outcome of a prepare job. A file system with less room than promised lowers the limit until
    /// it has some.
    ///
    /// # Errors
    /// The disk failed; this is final.
    pub fn prepare_done(&mut self, done: PrepareDone) -> Result<(), Failed> {
        self.space.slots.preparing = None;
        let slot = done.job.slot;
        match done.outcome {
            Ok(()) => {
                self.counters.bytes_zeroed += u64::from(done.job.bytes);
                self.counters.syncs += 1;
                self.space.slots.prepared += done.job.bytes;
                if done.job.last {
                    self.space.slots.prepared = 0;
                    self.space.slots.set(slot, Slot::Free);
                    self.space.slots.note_room();
                    self.cleaner.may_clean = true;
                }
                Ok(())
            }
            Err(error) if is_full(&error) => {
                // Preparing the file is begun again.
                self.space.slots.prepared = 0;
                self.space.slots.note_full(self.schedule.asked_at());
                Ok(())
            }
            Err(error) => Err(self.fail(error)),
        }
    }

    /// Looks how much memory the index takes.
    pub(super) fn weigh_index(&mut self) {
        self.space.weight.set(&self.index);
        if self.space.weight.is_full() {
            self.index.give_back();
            self.space.weight.set(&self.index);
        }
        if self.space.ends_active_early() {
            self.hurry();
        }
    }
}
