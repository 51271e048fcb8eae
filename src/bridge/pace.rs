//! How fast messages leave: so many a second, or so many bytes.
//!
//! After an outage a backlog would fill a thin or metered link for hours, and with it go the device's own
//! programs; so a rate may be set. What was not used is kept for a tenth of a second only, so that a pause
//! does not turn into a burst.
//!
//! Always true: a message is sent whole as soon as anything is left, and what it takes too much is made up
//! for by waiting: over any span, the rate holds but for one message.

use leveret_config::bridge::DrainRate;
use leveret_core::time::{Deadline, Now};
use leveret_core::token_bucket::{NS_PER_MS, TokenBucket};

/// What is kept of what was not used.
const CAPACITY_NS: u64 = 100 * NS_PER_MS;

/// What may be sent now, and how that grows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pace {
    rate: Option<DrainRate>,
    bucket: TokenBucket,
}

impl Pace {
    /// `None`: as fast as the link takes it.
    pub const fn new(rate: Option<DrainRate>, now: Now) -> Self {
        Self { rate, bucket: TokenBucket::nearly_empty(now, CAPACITY_NS) }
    }

    /// What may be sent by `now`, in nanoseconds of the rate. A message may go while it is above zero, and
    /// [`Self::cost`] is taken off.
    pub fn left(&self, now: Now) -> i64 {
        if self.rate.is_none() { i64::MAX } else { self.bucket.left_ns(now, CAPACITY_NS) }
    }

    /// What a message of so many bytes on the wire takes.
    pub fn cost(&self, bytes: u64) -> i64 {
        let (units, per_s) = match self.rate {
            None => return 0,
            Some(DrainRate::Messages(per_s)) => (1, per_s),
            Some(DrainRate::Bytes(per_s)) => (bytes, per_s),
        };
        let cost_ns = u128::from(units) * 1_000 * u128::from(NS_PER_MS) / u128::from(per_s.max(1));
        i64::try_from(cost_ns).unwrap_or(i64::MAX)
    }

    /// A message of so many bytes was sent.
    pub fn note_sent(&mut self, now: Now, bytes: u64) {
        self.bucket.take(now, self.cost(bytes) as u64);
    }

    /// When the next may be sent, if none may now.
    pub fn deadline(&self, now: Now) -> Deadline {
        if self.left(now) > 0 { Deadline::NEVER } else { self.bucket.due(1, CAPACITY_NS) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends messages of so many bytes whenever one may go, for so long; how many went.
    fn sent(rate: DrainRate, bytes: u64, span_ms: u64) -> u64 {
        let (mut now, end) = (Now::from_ms(5), 5 + span_ms);
        let mut pace = Pace::new(Some(rate), now);
        let mut count = 0;
        for at in 5..end {
            now = Now::from_ms(at);
            while pace.left(now) > 0 {
                assert_eq!(pace.deadline(now), Deadline::NEVER);
                pace.note_sent(now, bytes);
                count += 1;
            }
            assert!(!pace.deadline(now).is_due(now));
        }
        count
    }

    #[test]
    fn over_any_span_the_rate_holds_but_for_one_message() {
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
        // One that is larger than all of a second goes too, and is paid for.
        assert_eq!(sent(DrainRate::Bytes(1_000), 10_000, 21_000), 3);
    }

    #[test]
    fn a_pause_does_not_turn_into_a_burst() {
        let start = Now::from_ms(0);
        let mut pace = Pace::new(Some(DrainRate::Messages(100)), start);
        let late = Now::from_ms(3_600_000);
        let mut count = 0;
        while pace.left(late) > 0 {
            pace.note_sent(late, 1);
            count += 1;
        }
        assert_eq!(count, 10);
        let free = Pace::new(None, start);
        assert!(free.left(late) > 0 && free.cost(1 << 40) == 0 && free.deadline(late) == Deadline::NEVER);
    }
}
