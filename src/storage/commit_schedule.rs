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

use leveret_core::journal::Urgency;
use leveret_core::time::{Deadline, Now};
use leveret_core::token_bucket::{NS_PER_MS, TokenBucket};

use super::commit::padded;
use super::compaction::Cleaning;
use super::disk::is_full;
use super::jobs::{PrepareDone, PrepareJob};
use super::log::{Failed, Log, Settings};
use super::space::{SEGMENTS_EMERGENCY, SEGMENTS_RESERVED, Slot};

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

// When the next commit is due, as far as what was said and the syncs that the card can stand decide it.
//
// Always true: whatever is noted makes a commit due within the window of its urgency; a moment that is due
// moves forward only when a commit was handed out or nothing waits after all.

/// Between two commits that say how late it is.
const TIME_MS_MIN: u64 = 60_000;
const TIME_MS_MAX: u64 = 3_600_000;

/// Deadlines of the next commit, and why one is made even if it is empty.
#[derive(Debug)]
pub(super) struct Schedule {
    commit_window_ms: u64,
    confirm_window_ms: u64,
    settle_window_ms: u64,
    budget: SyncBudget,
    due_at: Deadline,
    /// When a commit was last asked for.
    asked_at: Now,
    /// When a commit last said how late it is.
    said_at: Now,
    /// Somebody waits for what gathers.
    is_awaited: bool,
    /// The commit that gathers is awaited, and waits for the sync budget.
    is_over_budget: bool,
    /// Awaited commits that waited for the sync budget, since the start, and when the last of them did.
    over_budget: (u64, Now),
    /// The first commit of this life is still to come.
    is_starting: bool,
    /// The next commit is the last of this life, or one that says how late it is.
    is_closing: bool,
}

impl Schedule {
    /// That of a life which begins: its first commit is due.
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            commit_window_ms: settings.commit_window_ms,
            confirm_window_ms: settings.confirm_window_ms,
            settle_window_ms: settings.settle_window_ms,
            budget: SyncBudget::new(settings.syncs_per_s, settings.sync_burst),
            due_at: Now::from_ms(0).after_ms(0),
            asked_at: Now::from_ms(0),
            said_at: Now::from_ms(0),
            is_awaited: true,
            is_over_budget: false,
            over_budget: (0, Now::from_ms(0)),
            is_starting: true,
            is_closing: false,
        }
    }

    /// When a commit is due.
    pub(super) const fn due_at(&self) -> Deadline {
        self.due_at
    }

    /// A commit is due at once.
    pub(super) const fn hurry(&mut self) {
        self.due_at = Now::from_ms(0).after_ms(0);
    }

    /// A commit is due at this time, not before.
    pub(super) fn set_due(&mut self, now: Now) {
        self.due_at = now.after_ms(0);
    }

    /// Something of this urgency waits.
    pub(super) fn note(&mut self, urgency: Urgency, now: Now) {
        let window_ms = match urgency {
            Urgency::Awaited => {
                self.is_awaited = true;
                let has_sync = self.budget.has_one(now);
                self.is_over_budget |= !has_sync;
                if has_sync { 0 } else { self.confirm_window_ms }
            }
            Urgency::Window => self.commit_window_ms,
            Urgency::Lazy => self.settle_window_ms,
        };
        self.due_at = self.due_at.earlier(now.after_ms(window_ms));
    }

    /// Segments are to leave: at once if they must, else within the window of settlements.
    pub(super) fn note_leaving(&mut self, must_leave: bool) {
        let window_ms = if must_leave { 0 } else { self.settle_window_ms };
        self.due_at = self.due_at.earlier(self.asked_at.after_ms(window_ms));
    }

    /// Whether somebody waits for what gathers.
    pub(super) const fn is_awaited(&self) -> bool {
        self.is_awaited
    }

    /// Whether the card can stand another sync now.
    pub(super) fn has_sync(&self, now: Now) -> bool {
        self.budget.has_one(now)
    }

    /// Returns the number of awaited commits that waited for the sync budget, since the start, and when the last of
    /// them was handed out.
    pub(super) const fn over_budget(&self) -> (u64, Now) {
        self.over_budget
    }

    /// Nothing waits after all.
    pub(super) const fn rest(&mut self) {
        self.due_at = Deadline::NEVER;
        self.is_awaited = false;
        self.is_over_budget = false;
    }

    /// A commit is asked for.
    pub(super) const fn note_asked(&mut self, now: Now) {
        self.asked_at = now;
    }

    /// When one was last asked for.
    pub(super) const fn asked_at(&self) -> Now {
        self.asked_at
    }

    /// Whether the first commit of this life is still to come; it is made even if it is empty.
    pub(super) const fn is_starting(&self) -> bool {
        self.is_starting
    }

    /// From now on, or no longer, the next commit is made as the first one of a life is.
    pub(super) const fn set_starting(&mut self, is_starting: bool) {
        self.is_starting = is_starting;
    }

    /// From now on, or no longer, the next commit is made even if it is empty.
    pub(super) const fn set_closing(&mut self, is_closing: bool) {
        self.is_closing = is_closing;
    }

    /// Whether a commit is made even if it is empty.
    pub(super) const fn must_commit(&self) -> bool {
        self.is_starting || self.is_closing
    }

    /// How late it is was said, or need not be.
    pub(super) const fn note_said(&mut self, now: Now) {
        self.said_at = now;
    }

    /// A commit is built, which says how late it is.
    pub(super) const fn note_built(&mut self, now: Now) {
        (self.is_starting, self.is_closing, self.said_at) = (false, false, now);
    }

    /// A commit was handed out: whether it has made room for files, and whether more gathers for the next.
    pub(super) fn note_handed_out(&mut self, frees_files: bool, has_more: bool, now: Now) {
        if core::mem::take(&mut self.is_over_budget) {
            self.over_budget = (self.over_budget.0 + 1, now);
        }
        if core::mem::take(&mut self.is_awaited) || frees_files {
            self.budget.take_one(now);
        }
        self.due_at = if has_more { now.after_ms(0) } else { Deadline::NEVER };
    }

    /// When the log should say how late it is, for those who wait for that over restarts: of a life that ends
    /// without a word, an eighth is forgotten at most, or a minute; of a long one an hour.
    pub(super) const fn time_deadline(&self) -> Deadline {
        let eighth_ms = self.said_at.as_ms() / 8;
        let ms = if eighth_ms < TIME_MS_MAX { eighth_ms } else { TIME_MS_MAX };
        self.said_at.after_ms(if ms > TIME_MS_MIN { ms } else { TIME_MS_MIN })
    }
}

// The syncs that a card can stand: a token bucket.

/// Syncs that may still be done at once, and how fast they come back.
#[derive(Debug)]
pub(super) struct SyncBudget {
    bucket: TokenBucket,
    /// What one sync costs; 0 is free.
    cost_ns: u64,
    capacity_ns: u64,
}

impl SyncBudget {
    pub(super) fn new(syncs_per_s: u32, burst: u32) -> Self {
        let cost_ms = if syncs_per_s == 0 { 0 } else { (1000 / u64::from(syncs_per_s)).max(1) };
        let cost_ns = cost_ms * NS_PER_MS;
        Self { bucket: TokenBucket::default(), cost_ns, capacity_ns: cost_ns * u64::from(burst.max(1)) }
    }

    pub(super) fn has_one(&self, now: Now) -> bool {
        self.bucket.has(now, self.cost_ns, self.capacity_ns)
    }

    /// Takes one; a sync that has to be done although there is none left costs nothing.
    pub(super) fn take_one(&mut self, now: Now) {
        self.bucket.try_take(now, self.cost_ns, self.capacity_ns);
    }
}
