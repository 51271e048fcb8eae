//! When a commit is due: what waits for it, how long it may gather, and what the card can stand.
//!
//! ```text
//! appended, by urgency ──→ due at: now, or a window from now ─┐
//! cleaner, room, start, clean stop ───────────────────────────┼─→ is_due → next_commit
//! token bucket of syncs: empty → what is awaited gathers too ─┘
//! ```
//!
//! Always true: whatever is appended makes a commit due within the window of its urgency; nothing is due
//! while a commit is on its way; what nobody awaits, and frees no file, takes no
//! token.

use crate::journal::Urgency;
use crate::time::{Deadline, Now};

use super::log::Log;

impl Log {
    /// Nothing may gather for long: the cleaner waits for room.
    pub(super) const fn hurry(&mut self) {
        self.schedule.hurry();
    }

    /// Segments are to leave: at once when their room is needed or the sync budget has one left, else with
    /// what is written anyway.
    pub(super) fn hurry_to_leave(&mut self) {
        let must_leave = self.must_leave(self.schedule.asked_at());
        self.schedule.note_leaving(must_leave);
    }

    /// Makes the next commit due at once, for a clean stop.
    pub fn flush(&mut self, now: Now) {
        if !self.is_idle() {
            self.schedule.set_due(now);
        }
    }

    /// Whether nothing is gathered and nothing is on its way.
    pub fn is_idle(&self) -> bool {
        self.in_flight.is_none() && !self.has_gathered() && self.settling.is_empty()
    }

    /// When [`Log::next_commit`] should be asked again if nothing else happens.
    pub fn deadline(&self) -> Deadline {
        if self.in_flight.is_some() || self.failed { Deadline::NEVER } else { self.schedule.due_at() }
    }

    /// Something of this urgency waits elsewhere to be appended when the next commit is made.
    pub fn note(&mut self, urgency: Urgency, now: Now) {
        self.schedule.note(urgency, now);
    }

    /// When the log should say how late it is, for those who wait for that over restarts.
    pub const fn time_deadline(&self) -> Deadline {
        self.schedule.time_deadline()
    }

    /// Whether what waits elsewhere should be appended now, for a commit is about to be made.
    pub fn is_time(&self, now: Now) -> bool {
        let hurry = self.must_leave(now) || self.is_cleaning_done_copying() || self.schedule.is_starting();
        !self.failed && self.in_flight.is_none() && (self.schedule.due_at().is_due(now) || hurry)
    }

    /// Nothing waits after all.
    pub const fn rest(&mut self) {
        self.schedule.rest();
    }

    /// Whether a commit is made even if it is empty.
    pub(super) const fn must_commit(&self) -> bool {
        self.schedule.must_commit() || self.ends_active_early()
    }

    /// Whether a commit should be made now.
    pub(super) fn is_due(&mut self, now: Now) -> bool {
        self.schedule.note_asked(now);
        if self.failed || self.in_flight.is_some() {
            return false;
        }
        let has_gathered = self.has_gathered() && !self.gathers_copies_only();
        let something =
            self.must_commit() || has_gathered || !self.settling.is_empty() || self.drain.is_some();
        let hurry = self.must_leave(now) || self.is_cleaning_done_copying();
        something && (self.schedule.due_at().is_due(now) || hurry)
    }

    /// Whether nothing gathers but copies, and more of them are to come: whoever awaits a commit has nothing in
    /// this one and waits for a few reads, where a commit for each would take as much as the segment gives.
    fn gathers_copies_only(&self) -> bool {
        self.is_copying() && self.gathering.has_only_copies() && !self.access.is_due()
    }

    /// A segment is on its way out, and its room is needed or a sync for it is to be had.
    fn must_leave(&self, now: Now) -> bool {
        self.drain.is_some() && (self.needs_room() || self.wants_files() || self.schedule.has_sync(now))
    }

    pub(super) fn has_only_lazy_settlements(&self) -> bool {
        self.has_only_settlements() && !self.schedule.is_awaited()
    }

    pub(super) fn has_only_settlements(&self) -> bool {
        !self.has_gathered() && self.drain.is_none() && !self.schedule.is_starting()
    }

    /// A commit was handed out: what is still there gathers for the next one.
    pub(super) fn after_handing_out(&mut self, now: Now) {
        let frees = self.in_flight.as_ref().is_some_and(|commit| !commit.drained.is_empty());
        let has_more = !self.settling.is_empty() || self.has_gathered();
        self.schedule.note_handed_out(frees, has_more, now);
    }
}
