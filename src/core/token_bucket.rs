//! A token bucket: how much of something may be had at once, and how much over any length of time.
//!
//! Everything is told in the time that it takes to come back: a bucket of 10 that gets one a second holds 10 s, and a
//! token costs 1 s of that. So what is kept is one instant, at which the bucket is full again, and whoever has many
//! buckets of one kind keeps the kind once.
//!
//! Always true: over any span, what was taken is worth no more than the span and the bucket's capacity, but for what was
//! taken with [`TokenBucket::take`], which is made up for by waiting.

use super::time::{Deadline, Now};

/// Nanoseconds of a millisecond: what buckets hold is told in nanoseconds, for a byte of a fast link takes less than a
/// microsecond.
pub const NS_PER_MS: u64 = 1_000_000;

/// A bucket that fills again by itself; a new one is full.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct TokenBucket {
    full_at_ns: u64,
}

impl TokenBucket {
    /// One of this capacity that is empty but for one nanosecond.
    pub const fn nearly_empty(now: Now, capacity_ns: u64) -> Self {
        Self { full_at_ns: ns(now) + capacity_ns.saturating_sub(1) }
    }

    /// What is in it; below zero when more was taken than there was.
    pub fn left_ns(self, now: Now, capacity_ns: u64) -> i64 {
        let missing = self.full_at_ns.saturating_sub(ns(now));
        let [capacity, missing] = [capacity_ns, missing].map(|ns| i64::try_from(ns).unwrap_or(i64::MAX));
        capacity.saturating_sub(missing)
    }

    /// Whether there is so much in it.
    pub fn has(self, now: Now, cost_ns: u64, capacity_ns: u64) -> bool {
        self.full_at_ns.saturating_sub(ns(now)).saturating_add(cost_ns) <= capacity_ns
    }

    /// Takes so much out; `false`, and takes nothing, when there is less.
    pub fn try_take(&mut self, now: Now, cost_ns: u64, capacity_ns: u64) -> bool {
        let has = self.has(now, cost_ns, capacity_ns);
        if has {
            self.take(now, cost_ns);
        }
        has
    }

    /// Takes so much out, whether or not it is there.
    pub fn take(&mut self, now: Now, cost_ns: u64) {
        self.full_at_ns = self.full_at_ns.max(ns(now)).saturating_add(cost_ns);
    }

    /// When there is so much in it, if nothing is taken meanwhile.
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
    fn it_gives_its_capacity_at_once_and_then_what_comes_back() {
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
    fn what_is_taken_beyond_it_is_waited_for() {
        let mut bucket = TokenBucket::default();
        let now = Now::from_ms(50);
        bucket.take(now, 5 * SECOND);
        assert_eq!(bucket.left_ns(now, 2 * SECOND), -3 * SECOND as i64);
        assert_eq!(bucket.due(SECOND, 2 * SECOND), now.after_ms(4_000));
        assert!(!bucket.has(Now::from_ms(4_049), SECOND, 2 * SECOND));
        assert!(bucket.has(Now::from_ms(4_050), SECOND, 2 * SECOND));
    }

    #[test]
    fn a_nearly_empty_one_has_something_and_hardly_anything() {
        let bucket = TokenBucket::nearly_empty(Now::from_ms(9), SECOND);
        assert_eq!(bucket.left_ns(Now::from_ms(9), SECOND), 1);
        assert_eq!(bucket.due(SECOND, SECOND), Now::from_ms(9).after_ms(1_000));
    }
}
