//! When the next commit is due, as far as what was said and the syncs that the card can stand decide it.
//!
//! Always true: whatever is noted makes a commit due within the window of its urgency; a moment that is due
//! moves forward only when a commit was handed out or nothing waits after all.

use leveret_core::journal::Urgency;
use leveret_core::time::{Deadline, Now};

use super::settings::Settings;
use super::sync_budget::SyncBudget;

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
