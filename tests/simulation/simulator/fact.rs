//! Whether an object that clients create and delete exists, as far as clients can know.
//!
//! # Invariants
//! - The state is known only from answers that no concurrent request contradicts.
//! - A request of a broken connection may or may not have happened.

/// The existence of one object.
#[derive(Clone, Debug, Default)]
pub struct LogEntry {
    /// Whether the object exists; `None` if unknown.
    pub is_there: Option<bool>,
    /// Number of unanswered requests; what they all ask for; and whether they contradict each other.
    open: u32,
    wants: bool,
    is_mixed: bool,
    was_answered: bool,
    /// Number of requests to delete the object.
    pub epoch: u32,
}

impl LogEntry {
    pub fn known(is_there: bool) -> Self {
        Self { is_there: Some(is_there), ..Self::default() }
    }

    /// Notes a request to create the object (`wants`) or to delete it.
    pub fn ask(&mut self, wants: bool) {
        if self.open == 0 {
            (self.wants, self.is_mixed, self.was_answered) = (wants, false, false);
        }
        self.is_mixed |= self.wants != wants;
        self.open += 1;
        self.epoch += u32::from(!wants);
        if self.is_there != Some(wants) {
            self.is_there = None;
        }
    }

    /// Notes that a request was answered or never will be.
    pub fn settle(&mut self, is_answered: bool) {
        self.open = self.open.saturating_sub(1);
        self.was_answered |= is_answered;
        if self.open > 0 {
            return;
        }
        if self.is_mixed {
            self.is_there = None;
        } else if self.was_answered {
            self.is_there = Some(self.wants);
        }
    }

    /// Notes an observation of the object.
    pub const fn learn(&mut self, is_there: bool) {
        if self.open == 0 {
            self.is_there = Some(is_there);
        }
    }

    /// Returns whether the object exists and no deletion is under way.
    pub const fn is_sure(&self) -> bool {
        matches!(self.is_there, Some(true)) && !self.is_changing()
    }

    /// Returns whether the object may have changed without an answer.
    pub const fn is_changing(&self) -> bool {
        self.open > 0 && (self.is_mixed || !self.wants)
    }

    pub const fn is_quiet(&self) -> bool {
        self.open == 0
    }

    /// Ends all requests as unanswered.
    pub fn forget_requests(&mut self) {
        while self.open > 0 {
            self.settle(false);
        }
    }
}
