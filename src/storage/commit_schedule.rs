//! Decides when a commit is due, how many bytes it may take, and whether it may open a reserved segment.
//!
//! ```text
//! appended, by urgency ──→ due at: now, or a window from now ──────┐
//! compactor, space, start, clean stop ─────────────────────────────┼─→ is_due → next_commit
//! token bucket of syncs: empty → confirmed messages are delayed too ┘
//! ```
//!
//! Publishers leave two segments free: the reserved segments. Settlements and entries (definitions, deletions,
//! watermarks) may open the first reserved segment. The last one may be opened by:
//!
//! - the first commit of an epoch;
//! - a commit that deletes a queue, because that frees space;
//! - the compactor;
//! - settlements that leave some segment so empty that the compactor can free it. This includes the active segment:
//!   if it contains only settlements, it is freed when they are merged and rewritten;
//! - entries, when the compactor cannot use the last segment.
//!
//! # Invariants
//! - Whatever is appended makes a commit due within the window of its urgency; at once if a client waits for it.
//! - If the sync budget is used up, a commit that a client waits for is delayed until the budget has a sync again. The
//!   delay is at least the confirm window.
//! - Nothing is due while a commit is in flight.
//! - A commit takes a token only if a publisher waits for it or it frees a file.
//! - Removing a segment does not require a new one, because the removal is a record in a normal commit.
//! - A file beyond the limit is created only if otherwise a start, the compactor or settlements that free space would
//!   have no space to write.

use crate::pending_writes::Urgency;
use leveret_core::time::{Deadline, Now};
use leveret_core::token_bucket::{NS_PER_MS, TokenBucket};

use super::commit::padded;
use super::compaction::Compaction;
use super::disk::is_full;
use super::disk_jobs::{PrepareDone, PrepareJob};
use super::log::{Failed, Log, Settings};
use super::space::{SEGMENTS_EMERGENCY, SEGMENTS_RESERVED, SlotUse};

/// Zeros written in one step, in bytes.
const PREPARE_STEP_BYTES: u32 = 256 << 10;

impl Log {
    /// Returns whether the caller should append waiting entries now, because a commit is about to be built.
    pub fn is_time(&self, now: Now) -> bool {
        let must_commit_now =
            self.must_remove(now) || self.compactor.is_done_copying() || self.schedule.is_starting;
        !self.failed && self.in_flight.is_none() && (self.schedule.due_at().is_due(now) || must_commit_now)
    }

    /// Returns whether a commit is made even if it is empty.
    pub(super) const fn must_commit(&self) -> bool {
        self.schedule.is_starting || self.space.ends_active_early()
    }

    /// Returns whether a commit is due. If nothing waits, none is due, unless it `may_be_empty` or must be made
    /// ([`Self::must_commit`]).
    pub(super) fn is_due(&mut self, now: Now, may_be_empty: bool) -> bool {
        self.schedule.requested_at = now;
        if self.failed || self.in_flight.is_some() {
            return false;
        }
        let has_pending_records = self.has_pending_records() && !self.has_only_pending_copies();
        let has_work = may_be_empty
            || self.must_commit()
            || has_pending_records
            || !self.settlements.is_empty()
            || self.compactor.drain.is_some();
        let must_commit_now = self.must_remove(now) || self.compactor.is_done_copying();
        has_work && (self.schedule.due_at().is_due(now) || must_commit_now)
    }

    /// Returns whether only copies are pending and more are to follow.
    ///
    /// Such a commit is delayed until more copies are appended: one commit per read would take as much space as the
    /// compaction frees. No publisher is delayed, because the commit contains no message of a publisher.
    fn has_only_pending_copies(&self) -> bool {
        self.is_copying() && self.pending.has_only_copies() && !self.access.is_due()
    }

    /// Returns whether a commit must be made now to remove segments: segments are being removed, and their space is
    /// needed or the sync budget allows a sync.
    fn must_remove(&self, now: Now) -> bool {
        self.compactor.drain.is_some()
            && (self.space.needs_room() || self.space.wants_files() || self.schedule.has_sync(now))
    }

    /// Returns whether only settlements wait.
    pub(super) fn has_only_settlements(&self) -> bool {
        !self.has_pending_records() && self.compactor.drain.is_none() && !self.schedule.is_starting
    }

    /// Schedules the next commit after one was handed out.
    pub(super) fn after_handing_out(&mut self, now: Now) {
        let frees = self.in_flight.as_ref().is_some_and(|commit| !commit.drained.is_empty());
        let has_more = !self.settlements.is_empty() || self.has_pending_records();
        self.schedule.note_handed_out(frees, has_more, now);
    }

    /// Schedules the removal of segments: at once if their space is needed or the sync budget allows a sync,
    /// otherwise with the next commit.
    pub(super) fn schedule_removal(&mut self) {
        let must_remove = self.must_remove(self.schedule.requested_at);
        self.schedule.note_removal(must_remove);
    }

    /// Returns whether the compactor continues copying without waiting for another commit.
    pub(super) fn is_copying(&self) -> bool {
        let is_running = |compaction: &Compaction| {
            compaction.copied.is_none() && compaction.waits_for_commit != self.writer.number + 1
        };
        !self.space.index_memory.pauses_compaction()
            && self.compactor.compaction.as_ref().is_some_and(is_running)
    }

    /// Returns the maximum bytes of the next commit, or `None` while the pending records must wait for space.
    pub(super) fn commit_bytes_max(&self) -> Option<usize> {
        let most = self.settings.commit_bytes as usize;
        let available = self.space.slots.available();
        // While a publisher waits for space, each settlement could otherwise cause a commit of its own, and use up
        // the blocks of the last segment before the compactor has freed any.
        let is_lazy = self.has_only_settlements() && (!self.schedule.is_awaited || self.is_copying());
        // Settlements must not wait if the compactor has copied a whole segment: the segment is removed only when
        // everything appended before is durable.
        let may_wait = !self.compactor.is_done_copying()
            && (self.compactor.is_active() || !self.would_leave_half_live());
        if available == 0 && is_lazy && may_wait {
            return None;
        }
        if self.space.fits_active(most) || (self.space.slots.free() > 0 && self.may_open()) {
            let filling = self.space.filling_room().min(most);
            let fills =
                self.pending.records() > 0 && self.pending.len() + self.space.settle_share() <= filling;
            return Some(if fills { filling } else { most });
        }
        let room = self.space.active_room().min(most);
        (padded(self.pending.len() + 1) <= room).then_some(room)
    }

    /// Returns whether the next commit may open a segment.
    fn may_open(&self) -> bool {
        let available = self.space.slots.available();
        if available > SEGMENTS_RESERVED
            || self.schedule.is_starting
            || self.compactor.is_active()
            || self.pending.frees_space
        {
            return true;
        }
        available == SEGMENTS_RESERVED || self.would_leave_half_live() || self.is_last_segment_useless()
    }

    /// Returns whether watermarks or definitions wait, and the last segment is reserved for the compactor although it
    /// has found no segment whose copies fit.
    ///
    /// If they had to wait, no message would be delivered, because its watermark must be durable before. Then no
    /// message would be settled, and the compactor would never find such a segment.
    fn is_last_segment_useless(&self) -> bool {
        !self.compactor.may_have_work && !self.has_only_settlements()
    }

    /// Returns whether some segment is at most half live when the waiting settlements are written, or the active
    /// segment already is. The compactor can free such a segment.
    fn would_leave_half_live(&self) -> bool {
        let is_worth = |live, bytes| self.space.copies_bytes(live) * 2 <= u64::from(bytes);
        self.index.would_leave(self.space.active.sequence(), is_worth)
    }

    /// Returns whether there is a sealed segment that is at most half live. With enough space, the compactor could
    /// free it.
    fn has_half_dead(&self) -> bool {
        self.half_dead_copies().next().is_some()
    }

    /// Returns whether there are segments that are at most half live, but not enough space for the copies of any of
    /// them.
    fn is_half_dead_without_room(&self) -> bool {
        let room = self.space.room_to_compact() as u64;
        self.has_half_dead() && self.half_dead_copies().all(|bytes| bytes > room)
    }

    /// Returns, for each readable sealed segment that is at most half live, the bytes that its copies take.
    fn half_dead_copies(&self) -> impl Iterator<Item = u64> {
        let sealed =
            self.index.segments().iter().filter(|(sequence, _)| **sequence != self.space.active.sequence());
        let readable = sealed.filter(|(_, segment)| !segment.stuck);
        let copies =
            readable.map(|(_, segment)| (self.space.copies_bytes(segment.live_bytes), segment.bytes));
        copies.filter(|(copies, bytes)| copies * 2 <= u64::from(*bytes)).map(|(copies, _)| copies)
    }

    /// Returns a job that prepares another segment or a part of one. Returns `None` if none is needed, none may be
    /// created, or a prepare job is in flight.
    pub fn next_prepare(&mut self) -> Option<PrepareJob> {
        if self.failed
            || self.space.slots.prepare_in_flight.is_some()
            || !self.space.slots.may_ask(self.schedule.requested_at)
        {
            return None;
        }
        let is_stuck = self.is_stuck();
        let is_wanted = is_stuck || self.space.wants_files() || self.space.is_file_system_full();
        if self.space.slots.unready_count == 0 && !is_wanted {
            return None;
        }
        // Without a new file this start would fail, and so would every later one. One file beyond the limit suffices
        // in two cases, because a commit in it frees another file without reading: a segment without live records is
        // being removed, or waiting settlements empty a segment.
        let will_free_file = || {
            self.compactor.drain.is_some()
                || self.index.would_leave(self.space.active.sequence(), |live, _| live == 0)
        };
        let most = match is_stuck {
            true if self.schedule.is_starting || will_free_file() => self.space.slots.used + 1,
            true => self.space.slots.max + SEGMENTS_EMERGENCY + self.index.stuck(),
            false => self.space.slots.max,
        };
        let Some(slot) = self.space.slots.begin(most) else {
            // The limit is reached, so the limit and not the file system determines the available space.
            self.space.slots.note_room();
            return None;
        };
        let (prepared, segment_bytes) = (self.space.slots.prepared, self.settings.segment_bytes);
        let bytes = PREPARE_STEP_BYTES.min(segment_bytes - prepared);
        let last = prepared + bytes == segment_bytes;
        self.space.slots.prepare_in_flight = Some(slot);
        let create = (prepared == 0).then_some(segment_bytes);
        Some(PrepareJob { slot, create, from: prepared, bytes, last })
    }

    /// Returns whether a start, the compactor or settlements that free space must write, but have no space. This can
    /// happen because a segment with unreadable records cannot be freed.
    fn is_stuck(&self) -> bool {
        let is_blocked = padded(self.pending.len() + 1) > self.space.active_room();
        let must_write = self.schedule.is_starting || self.compactor.drain.is_some();
        let copying = match (self.pending.records(), &self.compactor.compaction) {
            (0, Some(compaction)) => compaction.waits_for_commit == self.writer.number + 1,
            (_, Some(_)) => is_blocked,
            (_, None) if is_blocked => {
                (self.has_settlements() && self.would_leave_half_live()) || self.has_half_dead()
            }
            // One or two blocks are left. Settlements fit into them, but other records do not, because they must
            // leave the share of settlements free.
            (0, None) if !self.has_room(1) => self.is_half_dead_without_room(),
            (_, None) => false,
        };
        self.space.slots.available() == 0 && (copying || (must_write && is_blocked))
    }

    /// Applies the result of a prepare job. If the file system has less space than `disk_limit` allows, the
    /// limit is lowered until it has some.
    ///
    /// # Errors
    /// The disk failed; this is final.
    pub fn prepare_done(&mut self, done: PrepareDone) -> Result<(), Failed> {
        self.space.slots.prepare_in_flight = None;
        let slot = done.job.slot;
        match done.outcome {
            Ok(()) => {
                self.counters.bytes_zeroed += u64::from(done.job.bytes);
                self.counters.syncs += 1;
                self.space.slots.prepared += done.job.bytes;
                if done.job.last {
                    self.space.slots.prepared = 0;
                    self.space.slots.set(slot, SlotUse::Free);
                    self.space.slots.note_room();
                    self.compactor.may_have_work = true;
                }
                Ok(())
            }
            Err(error) if is_full(&error) => {
                // The file is prepared from the beginning again.
                self.space.slots.prepared = 0;
                self.space.slots.note_full(self.schedule.requested_at);
                Ok(())
            }
            Err(error) => Err(self.fail(error)),
        }
    }

    /// Measures the memory use of the index, and frees memory kept for reuse if the index is full.
    pub(super) fn measure_index(&mut self) {
        self.space.index_memory.set(&self.index);
        if self.space.index_memory.is_full() {
            self.index.release_memory();
            self.space.index_memory.set(&self.index);
        }
        if self.space.ends_active_early() {
            self.make_due();
        }
    }
}

/// Minimum interval between two commits that record the broker time.
const TIME_MS_MIN: u64 = 60_000;
/// Maximum interval between two commits that record the broker time.
const TIME_MS_MAX: u64 = 3_600_000;

/// When the next commit is due, and whether it is made even if it is empty.
///
/// # Invariants
/// - Every [`Schedule::note`] makes a commit due within the window of the given urgency, or when the budget has a sync.
/// - The due time is postponed only when a commit was handed out or nothing waits any more.
#[derive(Debug)]
pub(super) struct Schedule {
    commit_window_ms: u64,
    confirm_window_ms: u64,
    settle_window_ms: u64,
    budget: SyncBudget,
    due_at: Deadline,
    /// When a commit was last requested.
    pub(super) requested_at: Now,
    /// When a commit last recorded the broker time, or when that was last not needed.
    pub(super) time_recorded_at: Now,
    /// Whether a client waits for the pending commit.
    pub(super) is_awaited: bool,
    /// Whether a client waits for the pending commit, and the commit waits for the sync budget.
    is_over_budget: bool,
    /// Number of commits since the start that the sync budget delayed while a client waited for them, and when the last
    /// of them was handed out.
    pub(super) delayed_by_budget: (u64, Now),
    /// Whether the next commit is written even if it is empty, and may use reserved segments, like the first of an epoch.
    pub(super) is_starting: bool,
}

impl Schedule {
    /// Creates the schedule of a new epoch, whose first commit is due at once.
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            commit_window_ms: settings.commit_window_ms,
            confirm_window_ms: settings.confirm_window_ms,
            settle_window_ms: settings.settle_window_ms,
            budget: SyncBudget::new(settings.syncs_per_s, settings.sync_burst),
            due_at: Now::from_ms(0).after_ms(0),
            requested_at: Now::from_ms(0),
            time_recorded_at: Now::from_ms(0),
            is_awaited: true,
            is_over_budget: false,
            delayed_by_budget: (0, Now::from_ms(0)),
            is_starting: true,
        }
    }

    /// Returns when a commit is due.
    pub(super) const fn due_at(&self) -> Deadline {
        self.due_at
    }

    /// Makes a commit due at once.
    pub(super) const fn make_due(&mut self) {
        self.due_at = Now::from_ms(0).after_ms(0);
    }

    /// Schedules a commit for an entry of this urgency.
    pub(super) fn note(&mut self, urgency: Urgency, now: Now) {
        let window_ms = match urgency {
            Urgency::Awaited => {
                self.is_awaited = true;
                let wait_ms = self.budget.wait_ms(now);
                self.is_over_budget |= wait_ms > 0;
                if wait_ms > 0 { wait_ms.max(self.confirm_window_ms) } else { 0 }
            }
            Urgency::Window => self.commit_window_ms,
            Urgency::Lazy => self.settle_window_ms,
        };
        self.due_at = self.due_at.earlier(now.after_ms(window_ms));
    }

    /// Makes a commit that removes segments due: at once if `must_remove`, otherwise within the settle window.
    pub(super) fn note_removal(&mut self, must_remove: bool) {
        let window_ms = if must_remove { 0 } else { self.settle_window_ms };
        self.due_at = self.due_at.earlier(self.requested_at.after_ms(window_ms));
    }

    /// Returns whether the budget allows another sync now.
    pub(super) fn has_sync(&self, now: Now) -> bool {
        self.budget.wait_ms(now) == 0
    }

    /// Cancels the scheduled commit, because nothing waits after all.
    pub(super) const fn rest(&mut self) {
        self.due_at = Deadline::NEVER;
        self.is_awaited = false;
        self.is_over_budget = false;
    }

    /// Records that a commit was built, which contains the broker time.
    pub(super) const fn note_built(&mut self, now: Now) {
        (self.is_starting, self.time_recorded_at) = (false, now);
    }

    /// Records that a commit was handed out, whether it frees files, and whether more entries wait.
    pub(super) fn note_handed_out(&mut self, frees_files: bool, has_more: bool, now: Now) {
        if core::mem::take(&mut self.is_over_budget) {
            self.delayed_by_budget = (self.delayed_by_budget.0 + 1, now);
        }
        if core::mem::take(&mut self.is_awaited) || frees_files {
            self.budget.take_one(now);
        }
        self.due_at = if has_more { now.after_ms(0) } else { Deadline::NEVER };
    }

    /// Returns when the log should record the broker time, which timeouts that span restarts depend on.
    ///
    /// The interval is 1/8 of the time from the start of the epoch to the last recording, limited to 1 to 60 minutes.
    /// If the epoch ends abruptly, the broker time loses only the time since the last recording.
    pub(super) const fn time_deadline(&self) -> Deadline {
        let eighth_ms = self.time_recorded_at.as_ms() / 8;
        let ms = if eighth_ms < TIME_MS_MAX { eighth_ms } else { TIME_MS_MAX };
        self.time_recorded_at.after_ms(if ms > TIME_MS_MIN { ms } else { TIME_MS_MIN })
    }
}

/// The syncs that the flash can sustain, as a token bucket.
#[derive(Debug)]
pub(super) struct SyncBudget {
    bucket: TokenBucket,
    /// Cost of one sync in nanoseconds, the time in which the bucket refills it; 0 means no limit.
    cost_ns: u64,
    capacity_ns: u64,
}

impl SyncBudget {
    pub(super) fn new(syncs_per_s: u32, burst: u32) -> Self {
        let cost_ms = if syncs_per_s == 0 { 0 } else { (1000 / u64::from(syncs_per_s)).max(1) };
        let cost_ns = cost_ms * NS_PER_MS;
        Self { bucket: TokenBucket::default(), cost_ns, capacity_ns: cost_ns * u64::from(burst.max(1)) }
    }

    /// Returns the time until a token is left, in milliseconds; 0 if there is one.
    pub(super) fn wait_ms(&self, now: Now) -> u64 {
        if self.bucket.has(now, self.cost_ns, self.capacity_ns) {
            return 0;
        }
        self.bucket.due(self.cost_ns, self.capacity_ns).ms_left(now).unwrap_or(0)
    }

    /// Takes a token for a sync if one is left. A sync that is done without a token takes nothing.
    pub(super) fn take_one(&mut self, now: Now) {
        self.bucket.try_take(now, self.cost_ns, self.capacity_ns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lets a client wait for each commit before it publishes the next message. Returns the number of commits in
    /// `seconds`.
    fn commits_of_a_waiting_client(settings: &Settings, seconds: u64) -> u64 {
        let mut schedule = Schedule::new(settings);
        schedule.note_handed_out(false, false, Now::from_ms(0));
        let mut count = 0;
        for ms in 0..seconds * 1000 {
            let now = Now::from_ms(ms);
            if schedule.due_at() == Deadline::NEVER {
                schedule.note(Urgency::Awaited, now);
            }
            if schedule.due_at().is_due(now) {
                schedule.note_handed_out(false, false, now);
                count += 1;
            }
        }
        count
    }

    #[test]
    fn a_client_that_waits_for_each_confirm_gets_no_more_syncs_than_the_budget_allows() {
        for (syncs_per_s, confirm_window_ms, most) in
            [(1, 50, 1), (2, 50, 2), (5, 50, 5), (10, 50, 10), (20, 50, 20), (10, 5, 10), (20, 5, 20)]
        {
            let settings = Settings { syncs_per_s, sync_burst: 1, confirm_window_ms, ..Settings::default() };
            let count = commits_of_a_waiting_client(&settings, 100);
            assert!((most * 95..=most * 100 + 1).contains(&count), "{count} with {syncs_per_s} a second");
        }
    }

    #[test]
    fn a_budget_that_was_not_used_allows_a_burst() {
        let settings =
            Settings { syncs_per_s: 5, sync_burst: 100, confirm_window_ms: 50, ..Settings::default() };
        assert!((148..=151).contains(&commits_of_a_waiting_client(&settings, 10)));
    }
}
