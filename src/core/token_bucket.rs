//! A token bucket: limits a rate, and allows a burst up to its capacity.
//!
//! Amounts are expressed as the time in which they are refilled. For example, a bucket with 10 tokens that
//! gains one token per second has a capacity of 10 s, and a token costs 1 s. So the only state is the time at
//! which the bucket is full again. Capacity and costs are parameters, so that many buckets need not store
//! them.
//!
//! # Invariants
//! - In any period, at most its duration plus the capacity can be taken. [`TokenBucket::take`] may take more;
//!   later calls then wait until the difference is refilled.

use super::time::{Deadline, Now};

/// Nanoseconds per millisecond. Amounts are in nanoseconds, because a byte of a fast link takes less than a
/// microsecond.
pub const NS_PER_MS: u64 = 1_000_000;

/// A bucket; a new one is full.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct TokenBucket {
    /// When the bucket is full, in nanoseconds since the start of the process.
    full_at_ns: u64,
}

impl TokenBucket {
    /// Returns a bucket of this capacity that contains only one nanosecond.
    pub const fn nearly_empty(now: Now, capacity_ns: u64) -> Self {
        Self { full_at_ns: ns(now) + capacity_ns.saturating_sub(1) }
    }

    /// Returns whether the bucket contains `cost_ns`.
    pub fn has(self, now: Now, cost_ns: u64, capacity_ns: u64) -> bool {
        self.full_at_ns.saturating_sub(ns(now)).saturating_add(cost_ns) <= capacity_ns
    }

    /// Takes `cost_ns` if the bucket contains it. Otherwise takes nothing and returns `false`.
    pub fn try_take(&mut self, now: Now, cost_ns: u64, capacity_ns: u64) -> bool {
        let has = self.has(now, cost_ns, capacity_ns);
        if has {
            self.take(now, cost_ns);
        }
        has
    }

    /// Takes `cost_ns`, whether or not the bucket contains it.
    pub fn take(&mut self, now: Now, cost_ns: u64) {
        self.full_at_ns = self.full_at_ns.max(ns(now)).saturating_add(cost_ns);
    }

    /// Returns when the bucket will contain `cost_ns` if nothing is taken meanwhile.
    pub const fn due(self, cost_ns: u64, capacity_ns: u64) -> Deadline {
        let at_ns = self.full_at_ns.saturating_sub(capacity_ns.saturating_sub(cost_ns));
        Now::from_ms(0).after_ms(at_ns.div_ceil(NS_PER_MS))
    }
}

const fn ns(now: Now) -> u64 {
    now.as_ms().saturating_mul(NS_PER_MS)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000 * NS_PER_MS;

    #[test]
    fn a_bucket_gives_its_capacity_at_once_and_then_its_rate() {
        let mut bucket = TokenBucket::default();
        let at = |ms: u64| Now::from_ms(7_000 + ms);
        let mut taken = |ms| bucket.try_take(at(ms), SECOND, 3 * SECOND);
        assert_eq!(
            [0, 0, 0, 0, 999, 1_000, 1_000].map(&mut taken),
            [true, true, true, false, false, true, false]
        );
        assert_eq!([9_000; 4].map(taken), [true, true, true, false], "a pause fills it, and no more");
    }

    #[test]
    fn amounts_taken_beyond_the_content_are_waited_for() {
        let mut bucket = TokenBucket::default();
        let now = Now::from_ms(50);
        bucket.take(now, 5 * SECOND);
        assert_eq!(bucket.due(SECOND, 2 * SECOND), now.after_ms(4_000));
        assert!(!bucket.has(Now::from_ms(4_049), SECOND, 2 * SECOND));
        assert!(bucket.has(Now::from_ms(4_050), SECOND, 2 * SECOND));
    }

    #[test]
    fn a_nearly_empty_bucket_contains_one_nanosecond() {
        let bucket = TokenBucket::nearly_empty(Now::from_ms(9), SECOND);
        let has = |cost_ns| bucket.has(Now::from_ms(9), cost_ns, SECOND);
        assert!(has(1) && !has(2));
        assert_eq!(bucket.due(SECOND, SECOND), Now::from_ms(9).after_ms(1_000));
    }
}
