//! Rate limit, retry delays, byte budget of a day, and traffic counters of a link.

use leveret_config::bridge::DrainRate;
use leveret_core::time::{Deadline, Now};
use leveret_core::token_bucket::{NS_PER_MS, TokenBucket};

/// Time for which an unused allowance is kept. It is short, so that a pause is not followed by a burst.
const CAPACITY_NS: u64 = 100 * NS_PER_MS;

/// The rate limit of a rule, in messages or bytes per second.
///
/// After an outage, a backlog would fill a slow or metered link for hours, and other programs of the device could
/// not use it.
///
/// # Invariants
/// - A message is sent completely as soon as any allowance is left, and the excess is made up for by waiting.
///   Over any span the rate is exceeded by at most one message.
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

    /// Returns the allowance at `now`, in nanoseconds of the rate. A message may be sent while it is above zero.
    /// [`Self::cost`] is subtracted then.
    pub fn left(&self, now: Now) -> i64 {
        if self.rate.is_none() { i64::MAX } else { self.bucket.left_ns(now, CAPACITY_NS) }
    }

    /// Returns the cost of a message of `bytes` on the wire.
    pub fn cost(&self, bytes: u64) -> i64 {
        let (units, per_s) = match self.rate {
            None => return 0,
            Some(DrainRate::Messages(per_s)) => (1, per_s),
            Some(DrainRate::Bytes(per_s)) => (bytes, per_s),
        };
        let cost_ns = u128::from(units) * 1_000 * u128::from(NS_PER_MS) / u128::from(per_s.max(1));
        i64::try_from(cost_ns).unwrap_or(i64::MAX)
    }

    /// Subtracts the cost of a message of `bytes`.
    pub fn note_sent(&mut self, now: Now, bytes: u64) {
        self.bucket.take(now, self.cost(bytes) as u64);
    }

    /// Returns when the next message may be sent, if none may now.
    pub fn deadline(&self, now: Now) -> Deadline {
        if self.left(now) > 0 { Deadline::NEVER } else { self.bucket.due(1, CAPACITY_NS) }
    }
}

/// Upper limit of the first delay, in milliseconds.
const SPAN_MS_FIRST: u64 = 1_000;
/// Minimum delay, in milliseconds.
pub(super) const PAUSE_MS_MIN: u64 = 200;
/// A link that was up for this long was stable, in milliseconds.
const STABLE_MS: u64 = 60_000;

/// Delays between connection attempts.
///
/// Each delay is random, up to a limit that doubles with every failure (full jitter), so that a thousand devices
/// do not reconnect at the same moment. A link that breaks shortly after it came up counts as a failure: only a
/// stable one resets the limit.
///
/// # Invariants
/// - A delay is at least `PAUSE_MS_MIN` and at most the configured maximum.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Records that the link broke (it was up since `since`) or did not come up. Returns when to try again; `chance`
    /// is any random number.
    pub fn fail(&mut self, now: Now, since: Option<Now>, span_ms_max: u64, chance: u64) -> Deadline {
        if since.is_some_and(|since| now.ms_since(since) >= STABLE_MS) {
            self.failures = 0;
        }
        let span_ms = (SPAN_MS_FIRST << self.failures.min(30)).min(span_ms_max).max(PAUSE_MS_MIN);
        self.failures = self.failures.saturating_add(1);
        now.after_ms(PAUSE_MS_MIN.max(chance % (span_ms + 1)))
    }

    /// Counts a failure without a delay.
    pub const fn note_failure(&mut self) {
        self.failures = self.failures.saturating_add(1);
    }

    /// Resets the delays on request of an operator.
    pub const fn reset(&mut self) {
        self.failures = 0;
    }

    /// Returns the number of consecutive failures.
    pub const fn failures(&self) -> u32 {
        self.failures
    }
}

/// A day in milliseconds.
pub(super) const DAY_MS: u64 = 24 * 3_600_000;
/// The state is stored each time this part of the budget was used, so a power cut gives back at most that.
const NOTED_PARTS: u64 = 16;

/// The byte budget of a day, for a link that is paid by the byte.
///
/// A day is 24 hours of this broker's run time, because a board without a clock knows no midnight. The elapsed
/// time and the bytes used are stored and restored after a restart. Time that the broker was off does not count,
/// so a restart never gives a new budget.
///
/// # Invariants
/// - Unused bytes are not carried over, and excess bytes are not deducted from a later day.
/// - Urgent rules are counted although they are not stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DayBudget {
    /// `None`: bytes are only counted.
    bytes_max: Option<u64>,
    used: u64,
    yesterday: u64,
    /// When the day began, and the part of it that had elapsed before the last restart.
    since: Now,
    gone_ms: u64,
    noted: u64,
}

impl DayBudget {
    /// Begins a day at `now`.
    pub const fn new(bytes_max: Option<u64>, now: Now) -> Self {
        Self { bytes_max, used: 0, yesterday: 0, since: now, gone_ms: 0, noted: 0 }
    }

    /// Continues a stored day.
    pub fn restore(&mut self, now: Now, [used, yesterday, gone_ms]: [u64; 3]) {
        (self.used, self.noted, self.yesterday) = (used, used, yesterday);
        (self.since, self.gone_ms) = (now, gone_ms.min(DAY_MS));
    }

    /// Returns the values for [`Self::restore`]: bytes used today, bytes used the day before, milliseconds elapsed.
    pub fn numbers(&self, now: Now) -> [u64; 3] {
        [self.used, self.yesterday, self.gone_ms(now).min(DAY_MS)]
    }

    const fn gone_ms(&self, now: Now) -> u64 {
        self.gone_ms.saturating_add(now.ms_since(self.since))
    }

    /// Ends the day when it is over. Returns whether it did.
    pub const fn keep_time(&mut self, now: Now) -> bool {
        let gone = self.gone_ms(now);
        let days = gone / DAY_MS;
        if days == 0 {
            return false;
        }
        self.yesterday = if days == 1 { self.used } else { 0 };
        (self.used, self.noted, self.since, self.gone_ms) = (0, 0, now, gone % DAY_MS);
        true
    }

    /// Counts `bytes`.
    pub const fn note(&mut self, bytes: u64) {
        self.used = self.used.saturating_add(bytes);
    }

    /// Returns whether the budget is used up.
    pub fn is_spent(&self) -> bool {
        self.bytes_max.is_some_and(|max| self.used >= max)
    }

    /// Returns when the next day begins.
    pub const fn next_day(&self) -> Deadline {
        self.since.after_ms(DAY_MS.saturating_sub(self.gone_ms))
    }

    /// Returns the same day with another budget.
    pub const fn with_max(self, bytes_max: Option<u64>) -> Self {
        Self { bytes_max, ..self }
    }

    /// Returns whether enough was used since the last call that the state has to be stored.
    pub fn is_to_note(&mut self) -> bool {
        let step = self.bytes_max.map_or(u64::MAX, |max| (max / NOTED_PARTS).max(1));
        let is_due = self.used - self.noted >= step;
        if is_due {
            self.noted = self.used;
        }
        is_due
    }
}

/// Traffic of one link in one day, in bytes of its socket.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct LinkTraffic {
    /// Bytes sent, TLS included.
    pub sent: u64,
    /// Bytes received, TLS included.
    pub received: u64,
    /// Bytes of messages that may have been sent or received before.
    pub repeated: u64,
    /// Bytes of bodies that were sent or received for the first time.
    pub payload: u64,
    /// Number of messages that were sent or received for the first time.
    pub messages: u64,
}

impl LinkTraffic {
    /// Number of values in [`Self::numbers`].
    pub const NUMBERS: usize = 5;

    /// Returns all counters.
    pub const fn numbers(&self) -> [u64; Self::NUMBERS] {
        let Self { sent, received, repeated, payload, messages } = *self;
        [sent, received, repeated, payload, messages]
    }

    /// Restores counters from [`Self::numbers`].
    pub const fn from_numbers(numbers: [u64; Self::NUMBERS]) -> Self {
        let [sent, received, repeated, payload, messages] = numbers;
        Self { sent, received, repeated, payload, messages }
    }

    /// Adds other counters.
    pub fn add(&mut self, other: Self) {
        let (mut all, other) = (self.numbers(), other.numbers());
        all.iter_mut().zip(other).for_each(|(number, more)| *number = number.saturating_add(more));
        *self = Self::from_numbers(all);
    }

    /// Returns the byte counters with the names that the operator sees.
    pub const fn kinds(&self) -> [(&'static str, u64); 3] {
        [("sent", self.sent), ("received", self.received), ("repeated", self.repeated)]
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
        // A message that is larger than the allowance of a second is sent too, and is paid for.
        assert_eq!(sent(DrainRate::Bytes(1_000), 10_000, 21_000), 3);
    }

    #[test]
    fn a_pause_does_not_turn_into_a_burst() {
        let start = Now::from_ms(0);
        let mut pace = RateLimit::new(Some(DrainRate::Messages(100)), start);
        let late = Now::from_ms(3_600_000);
        let mut count = 0;
        while pace.left(late) > 0 {
            pace.note_sent(late, 1);
            count += 1;
        }
        assert_eq!(count, 10);
        let free = RateLimit::new(None, start);
        assert!(free.left(late) > 0 && free.cost(1 << 40) == 0 && free.deadline(late) == Deadline::NEVER);
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
    fn the_span_doubles_up_to_its_most_and_only_a_stable_link_makes_it_short() {
        let now = Now::from_ms(1_000_000);
        let mut backoff = Backoff::default();
        let mut longest = Vec::new();
        for _ in 0..8 {
            longest.push(span(backoff, now, None));
            backoff.fail(now, None, 60_000, 0);
        }
        let most: Vec<u64> = longest.iter().map(|(_, most)| *most).collect();
        assert_eq!(most, [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000]);
        assert!(longest.iter().all(|(least, _)| *least == PAUSE_MS_MIN), "the jitter is full");
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

#[cfg(test)]
mod day_budget_tests {
    use super::*;

    const fn at(hours: u64) -> Now {
        Now::from_ms(hours * 3_600_000)
    }

    #[test]
    fn what_is_spent_holds_back_until_the_day_is_over_and_nothing_is_carried_over() {
        let mut budget = DayBudget::new(Some(1_000), at(5));
        budget.note(999);
        assert!(!budget.is_spent());
        budget.note(500);
        assert!(budget.is_spent() && !budget.keep_time(at(28)) && budget.is_spent());
        assert_eq!(budget.next_day().ms_left(at(28)), Some(3_600_000));
        assert!(budget.keep_time(at(29)) && !budget.is_spent());
        assert_eq!(budget.numbers(at(29)), [0, 1_499, 0]);
        assert!(budget.keep_time(at(29 + 49)));
        assert_eq!(budget.numbers(at(78)), [0, 0, 3_600_000], "a day passed with nothing");
        assert!(!DayBudget::new(None, at(0)).is_spent());
    }

    #[test]
    fn a_restart_gives_no_new_budget_and_no_longer_day() {
        let mut before = DayBudget::new(Some(100), at(0));
        before.note(100);
        let [used, yesterday, gone_ms] = before.numbers(at(20));
        let mut after = DayBudget::new(Some(100), at(0));
        after.restore(at(0), [used, yesterday, gone_ms]);
        assert!(after.is_spent() && !after.keep_time(at(3)) && after.is_spent());
        assert!(after.keep_time(at(4)) && !after.is_spent());
        after.restore(at(0), [1, 2, u64::MAX]);
        assert!(after.keep_time(at(0)), "nonsense is a day that is over");
    }

    #[test]
    fn it_is_written_down_a_few_times_a_day() {
        let mut budget = DayBudget::new(Some(1_600), at(0));
        let count = (0..1_600).filter(|_| {
            budget.note(1);
            budget.is_to_note()
        });
        assert_eq!(count.count(), 16);
    }
}
