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

/// Between two commits that say how late it is.
const TIME_MS_MIN: u64 = 60_000;
const TIME_MS_MAX: u64 = 3_600_000;

impl Log {
    /// Nothing may gather for long: the cleaner waits for room.
    pub(super) const fn hurry(&mut self) {
        self.due_at = Now::from_ms(0).after_ms(0);
    }

    /// Segments are to leave: at once when their room is needed or the sync budget has one left, else with
    /// what is written anyway.
    pub(super) fn hurry_to_leave(&mut self) {
        let window_ms = if self.must_leave(self.asked_at) { 0 } else { self.settings.settle_window_ms };
        self.due_at = self.due_at.earlier(self.asked_at.after_ms(window_ms));
    }

    /// Makes the next commit due at once, for a clean stop.
    pub fn flush(&mut self, now: Now) {
        if !self.is_idle() {
            self.due_at = now.after_ms(0);
        }
    }

    /// Whether nothing is gathered and nothing is on its way.
    pub fn is_idle(&self) -> bool {
        self.in_flight.is_none() && !self.has_gathered() && self.settling.is_empty()
    }

    /// When [`Log::next_commit`] should be asked again if nothing else happens.
    pub fn deadline(&self) -> Deadline {
        if self.in_flight.is_some() || self.failed { Deadline::NEVER } else { self.due_at }
    }

    /// Something of this urgency waits elsewhere to be appended when the next commit is made.
    pub fn note(&mut self, urgency: Urgency, now: Now) {
        let window = match urgency {
            Urgency::Awaited => {
                self.awaited = true;
                if self.budget.has_one(now) { 0 } else { self.settings.confirm_window_ms }
            }
            Urgency::Window => self.settings.commit_window_ms,
            Urgency::Lazy => self.settings.settle_window_ms,
        };
        self.due_at = self.due_at.earlier(now.after_ms(window));
    }

    /// When the log should say how late it is, for those who wait for that over restarts: of a life that ends
    /// without a word, an eighth is forgotten at most, or a minute; of a long one an hour.
    pub const fn time_deadline(&self) -> Deadline {
        let eighth_ms = self.said_at.as_ms() / 8;
        let ms = if eighth_ms < TIME_MS_MAX { eighth_ms } else { TIME_MS_MAX };
        self.said_at.after_ms(if ms > TIME_MS_MIN { ms } else { TIME_MS_MIN })
    }

    /// Whether what waits elsewhere should be appended now, for a commit is about to be made.
    pub fn is_time(&self, now: Now) -> bool {
        let hurry = self.must_leave(now) || self.is_cleaning_done_copying() || self.is_starting;
        !self.failed && self.in_flight.is_none() && (self.due_at.is_due(now) || hurry)
    }

    /// Nothing waits after all.
    pub const fn rest(&mut self) {
        self.due_at = Deadline::NEVER;
        self.awaited = false;
    }

    /// Whether a commit is made even if it is empty.
    pub(super) const fn must_commit(&self) -> bool {
        self.is_starting || self.is_closing
    }

    /// Whether a commit should be made now.
    pub(super) fn is_due(&mut self, now: Now) -> bool {
        self.asked_at = now;
        if self.failed || self.in_flight.is_some() {
            return false;
        }
        let something =
            self.must_commit() || self.has_gathered() || !self.settling.is_empty() || self.drain.is_some();
        let hurry = self.must_leave(now) || self.is_cleaning_done_copying();
        something && (self.due_at.is_due(now) || hurry)
    }

    /// A segment is on its way out, and its room is needed or a sync for it is to be had.
    fn must_leave(&self, now: Now) -> bool {
        self.drain.is_some() && (self.needs_room() || self.wants_files() || self.budget.has_one(now))
    }

    pub(super) fn has_only_lazy_settlements(&self) -> bool {
        self.has_only_settlements() && !self.awaited
    }

    pub(super) fn has_only_settlements(&self) -> bool {
        !self.has_gathered() && self.drain.is_none() && !self.is_starting
    }

    /// A commit was handed out: what is still there gathers for the next one.
    pub(super) fn after_handing_out(&mut self, now: Now) {
        let frees = self.in_flight.as_ref().is_some_and(|commit| !commit.drained.is_empty());
        if core::mem::take(&mut self.awaited) || frees {
            self.budget.take_one(now);
        }
        self.frees = false;
        let has_more = !self.settling.is_empty() || self.has_gathered();
        self.due_at = if has_more { now.after_ms(0) } else { Deadline::NEVER };
    }
}
