//! The syncs that a card can stand: a token bucket.

use leveret_core::time::Now;
use leveret_core::token_bucket::{NS_PER_MS, TokenBucket};

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
