//! The rate limit of a bridge, and the delays between connection attempts.

use leveret_config::bridge::DrainRate;
use leveret_core::time::{Deadline, Now};
use leveret_core::token_bucket::{NS_PER_MS, TokenBucket};

/// Capacity of the token bucket: 100 ms of the rate, in nanoseconds. After a pause, a burst is limited to what the rate
/// permits in this time.
const CAPACITY_NS: u64 = 100 * NS_PER_MS;

/// The rate limit of a bridge for all messages that it forwards, in messages or bytes per second: a token bucket.
///
/// After an outage, the messages that have accumulated could occupy a slow link for hours, and other programs of the
/// device could not use it.
///
/// # Invariants
/// - A message may be sent as soon as the bucket is not empty, even if it costs more than is left. The bucket's value
///   then becomes negative, and the next message waits until it is positive again.
/// - While messages always wait, the rate is exceeded by at most one message. After a pause, a burst of up to 100 ms of
///   the rate is sent in addition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RateLimit {
    rate: Option<DrainRate>,
    bucket: TokenBucket,
}

impl RateLimit {
    /// Creates a limit; `None` means no limit.
    pub const fn new(rate: Option<DrainRate>, now: Now) -> Self {
        Self { rate, bucket: TokenBucket::nearly_empty(now, CAPACITY_NS) }
    }

    /// Returns whether a message may be sent at `now`.
    pub fn may_send(&self, now: Now) -> bool {
        self.rate.is_none() || self.bucket.has(now, 1, CAPACITY_NS)
    }

    /// Returns by how many nanoseconds of the rate a message of `bytes` on the wire lowers the bucket's value.
    pub fn cost(&self, bytes: u64) -> i64 {
        let (units, per_s) = match self.rate {
            None => return 0,
            Some(DrainRate::Messages(per_s)) => (1, per_s),
            Some(DrainRate::Bytes(per_s)) => (bytes, per_s),
        };
        let cost_ns = u128::from(units) * 1_000 * u128::from(NS_PER_MS) / u128::from(per_s.max(1));
        i64::try_from(cost_ns).unwrap_or(i64::MAX)
    }

    /// Subtracts the cost of a sent message of `bytes` on the wire.
    pub fn note_sent(&mut self, now: Now, bytes: u64) {
        self.bucket.take(now, self.cost(bytes) as u64);
    }

    /// Returns when the next message may be sent; [`Deadline::NEVER`] if one may be sent now.
    pub fn deadline(&self, now: Now) -> Deadline {
        if self.may_send(now) { Deadline::NEVER } else { self.bucket.due(1, CAPACITY_NS) }
    }
}

/// Upper limit of the delay after the first failure, in milliseconds.
const FIRST_DELAY_MS_MAX: u64 = 1_000;
/// Minimum delay, in milliseconds.
const DELAY_MS_MIN: u64 = 200;
/// A link that was open for at least this long counts as stable, in milliseconds.
const STABLE_MS: u64 = 60_000;

/// Delays between connection attempts.
///
/// Each delay is random, up to a limit that doubles with every failure (full jitter), so that a thousand devices
/// do not reconnect at the same moment. A link that breaks shortly after it was opened counts as a further failure. Only
/// a stable link resets the limit.
///
/// # Invariants
/// - A delay is at least `DELAY_MS_MIN` and at most the configured maximum.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Records that a link broke that was open since `since`, or with `None` that it could not be opened. Returns when to
    /// try again. `delay_ms_max` is the configured maximum, and `random` a random number.
    pub fn fail(&mut self, now: Now, since: Option<Now>, delay_ms_max: u64, random: u64) -> Deadline {
        if since.is_some_and(|since| now.ms_since(since) >= STABLE_MS) {
            self.failures = 0;
        }
        let limit_ms = (FIRST_DELAY_MS_MAX << self.failures.min(30)).min(delay_ms_max).max(DELAY_MS_MIN);
        self.failures = self.failures.saturating_add(1);
        now.after_ms(DELAY_MS_MIN.max(random % (limit_ms + 1)))
    }

    /// Counts a failure without computing a delay.
    pub const fn note_failure(&mut self) {
        self.failures = self.failures.saturating_add(1);
    }

    /// Resets the limit of the delays to its first value, at the request of an operator.
    pub const fn reset(&mut self) {
        self.failures = 0;
    }

    /// Returns the number of failures since the last stable link or reset.
    pub const fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends messages of `bytes` whenever one may be sent, for `span_ms`; returns their number.
    fn sent(rate: DrainRate, bytes: u64, span_ms: u64) -> u64 {
        let (mut now, end) = (Now::from_ms(5), 5 + span_ms);
        let mut pace = RateLimit::new(Some(rate), now);
        let mut count = 0;
        for at in 5..end {
            now = Now::from_ms(at);
            while pace.may_send(now) {
                assert_eq!(pace.deadline(now), Deadline::NEVER);
                pace.note_sent(now, bytes);
                count += 1;
            }
            assert!(!pace.deadline(now).is_due(now));
        }
        count
    }

    #[test]
    fn over_any_span_the_rate_is_exceeded_by_at_most_one_message() {
        for (rate, bytes, per_s) in [
            (DrainRate::Messages(1), 9, 1),
            (DrainRate::Messages(50), 100_000, 50),
            (DrainRate::Bytes(1_000), 100, 10),
            (DrainRate::Bytes(64_000), 256, 250),
        ] {
            for span_s in [1, 7, 60] {
                let count = sent(rate, bytes, span_s * 1_000);
                assert!(
                    (per_s * span_s..=per_s * span_s + 1).contains(&count),
                    "{rate:?}: {count} in {span_s} s"
                );
            }
        }
        // A message that is larger than the allowance of a second is sent, too, and later ones wait for it.
        assert_eq!(sent(DrainRate::Bytes(1_000), 10_000, 21_000), 3);
    }

    #[test]
    fn a_pause_does_not_turn_into_a_burst() {
        let start = Now::from_ms(0);
        let mut pace = RateLimit::new(Some(DrainRate::Messages(100)), start);
        let late = Now::from_ms(3_600_000);
        let mut count = 0;
        while pace.may_send(late) {
            pace.note_sent(late, 1);
            count += 1;
        }
        assert_eq!(count, 10);
        let free = RateLimit::new(None, start);
        assert!(free.may_send(late) && free.cost(1 << 40) == 0 && free.deadline(late) == Deadline::NEVER);
    }
}

#[cfg(test)]
mod backoff_tests {
    use super::*;

    /// Returns the longest and the shortest possible delay.
    fn span(backoff: Backoff, now: Now, since: Option<Now>) -> (u64, u64) {
        let pause = |chance| {
            let at = { backoff }.fail(now, since, 60_000, chance);
            at.ms_left(now).expect("it is tried again")
        };
        let longest = (0..70_000).map(pause).max().expect("there are chances");
        (pause(0), longest)
    }

    #[test]
    fn the_limit_doubles_up_to_its_maximum_and_only_a_stable_link_resets_it() {
        let now = Now::from_ms(1_000_000);
        let mut backoff = Backoff::default();
        let mut longest = Vec::new();
        for _ in 0..8 {
            longest.push(span(backoff, now, None));
            backoff.fail(now, None, 60_000, 0);
        }
        let most: Vec<u64> = longest.iter().map(|(_, most)| *most).collect();
        assert_eq!(most, [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000]);
        assert!(longest.iter().all(|(least, _)| *least == DELAY_MS_MIN), "the jitter is full");
        let shortly = Some(Now::from_ms(now.as_ms() - STABLE_MS + 1));
        assert_eq!(span(backoff, now, shortly).1, 60_000, "a link that broke soon is no success");
        let long = Some(Now::from_ms(now.as_ms() - STABLE_MS));
        assert_eq!(span(backoff, now, long).1, 1_000);
    }

    #[test]
    fn failures_without_end_do_not_overflow() {
        let mut backoff = Backoff { failures: u32::MAX };
        let at = backoff.fail(Now::from_ms(0), None, u64::MAX - 1, u64::MAX - 7);
        assert!(at.ms_left(Now::from_ms(0)).is_some());
    }
}
