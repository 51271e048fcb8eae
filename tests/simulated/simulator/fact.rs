//! Whether something that clients make and delete is there, as far as they can know.
//!
//! Always true: only what was answered, with nothing to the contrary under way beside it, is known; what a
//! connection asked for that broke may happen or not.

/// One thing that can be made and deleted.
#[derive(Clone, Debug, Default)]
pub struct Fact {
    /// Whether it is there; `None`: nobody can know.
    pub is_there: Option<bool>,
    /// Requests without an answer, what all of them want, and whether they contradict each other.
    open: u32,
    wants: bool,
    is_mixed: bool,
    was_answered: bool,
    /// Rises with every request to delete it.
    pub epoch: u32,
}

impl Fact {
    pub fn known(is_there: bool) -> Self {
        Self { is_there: Some(is_there), ..Self::default() }
    }

    /// Somebody asks for it to be there, or to be gone.
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

    /// A request has its answer, or will have none.
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

    /// Somebody has looked.
    pub const fn learn(&mut self, is_there: bool) {
        if self.open == 0 {
            self.is_there = Some(is_there);
        }
    }

    /// It is there, and nobody is about to delete it.
    pub const fn is_sure(&self) -> bool {
        matches!(self.is_there, Some(true)) && !self.is_changing()
    }

    /// Something may have happened to it that nobody was told of.
    pub const fn is_changing(&self) -> bool {
        self.open > 0 && (self.is_mixed || !self.wants)
    }

    pub const fn is_quiet(&self) -> bool {
        self.open == 0
    }

    /// Nobody waits for an answer any more.
    pub fn forget_requests(&mut self) {
        while self.open > 0 {
            self.settle(false);
        }
    }
}
