//! When to look at who holds something for too long; what is looked at stands in `overdue`.
//!
//! Always true: nothing is looked at before the oldest that the last look saw may be overdue.

/// The least time between two looks.
const LOOK_EVERY_S: u32 = 60;

/// When to look at whom.
#[derive(Debug)]
pub(super) struct Watch {
    /// How long a delivery may wait to be settled; 0 is for ever.
    pub(super) timeout_ms: u32,
    /// The second of this turn, since the start of the process.
    pub(super) now_s: u32,
    /// When to look for overdue deliveries next, in seconds of broker time.
    pub(super) look_s: Option<u32>,
    /// Where the look under way goes on, and the oldest it has seen.
    pub(super) hand: usize,
    pub(super) oldest_s: Option<u32>,
    /// So many channels may still be looked at in this turn.
    pub(super) left: u32,
}

impl Watch {
    pub(super) const fn new(timeout_ms: u32) -> Self {
        Self { timeout_ms, now_s: 0, look_s: None, hand: 0, oldest_s: None, left: 0 }
    }

    /// Something is held from now on; says since when, in seconds.
    pub(super) const fn begin(&mut self) -> u32 {
        if self.look_s.is_none() && self.timeout_ms > 0 {
            self.look_s = Some(self.overdue_s(self.now_s));
        }
        self.now_s
    }

    /// The first second in which what is held since another is overdue: both are cut off, so one later.
    pub(super) const fn overdue_s(&self, since_s: u32) -> u32 {
        since_s.saturating_add(self.timeout_ms.div_ceil(1000)).saturating_add(1)
    }

    pub(super) const fn is_overdue(&self, since_s: u32) -> bool {
        self.overdue_s(since_s) <= self.now_s
    }

    /// The look is over: when the next one is.
    pub(super) fn end(&mut self) {
        let pause_s = LOOK_EVERY_S.min(self.timeout_ms.div_ceil(1000));
        let oldest = self.oldest_s.take();
        self.look_s = oldest.map(|since| self.overdue_s(since).max(self.now_s.saturating_add(pause_s)));
        self.hand = 0;
    }
}
