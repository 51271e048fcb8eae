//! The syncs that a card can stand: a token bucket.

use crate::time::Now;

/// Syncs that may still be done at once: a bucket that fills with time.
#[derive(Debug)]
pub(super) struct SyncBudget {
    /// Milliseconds that one sync costs; 0 is free.
    cost_ms: u64,
    most_ms: u64,
    left_ms: u64,
    filled_at: Now,
}

impl SyncBudget {
    pub(super) fn new(syncs_per_s: u32, burst: u32) -> Self {
        let cost_ms = if syncs_per_s == 0 { 0 } else { (1000 / u64::from(syncs_per_s)).max(1) };
        let most_ms = cost_ms * u64::from(burst.max(1));
        Self { cost_ms, most_ms, left_ms: most_ms, filled_at: Now::default() }
    }

    pub(super) fn left_ms(&self, now: Now) -> u64 {
        (self.left_ms + now.ms_since(self.filled_at)).min(self.most_ms)
    }

    pub(super) fn has_one(&self, now: Now) -> bool {
        self.left_ms(now) >= self.cost_ms
    }

    pub(super) fn take_one(&mut self, now: Now) {
        let left_ms = self.left_ms(now);
        self.filled_at = now;
        self.left_ms = left_ms.checked_sub(self.cost_ms).unwrap_or(left_ms);
    }
}
