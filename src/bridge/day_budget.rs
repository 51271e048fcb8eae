//! The byte budget of a day, for links that cost money by the byte, and the traffic counters of a link.

use leveret_core::time::{Deadline, Now};

/// A day in milliseconds.
pub(super) const DAY_MS: u64 = 24 * 3_600_000;
/// The state is stored each time another sixteenth of the budget was used. After a power cut at most that much can be
/// used again.
const STORES_PER_BUDGET: u64 = 16;

/// The byte budget of a bridge for a day.
///
/// A day is 24 hours of this broker's run time, because a board without a battery-backed clock does not have the time of
/// day. The elapsed time and the bytes used are stored, and restored after a restart. Time during which the broker is
/// off does not count, so a restart never gives a new budget.
///
/// # Invariants
/// - Unused bytes are not carried over, and excess bytes are not deducted from a later day.
/// - The bytes of urgent rules count, although a used-up budget does not stop urgent rules.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DayBudget {
    /// The budget in bytes; `None`: bytes are only counted.
    bytes_max: Option<u64>,
    /// Bytes used in the current day.
    used_bytes: u64,
    /// Bytes used in the day before.
    yesterday_bytes: u64,
    /// When the day began or, if it was restored, when it was continued.
    since: Now,
    /// Milliseconds of the day that had elapsed at `since`.
    elapsed_before_ms: u64,
    /// The value of `used_bytes` when the state was last stored.
    stored_bytes: u64,
}

impl DayBudget {
    /// Begins a day at `now`.
    pub const fn new(bytes_max: Option<u64>, now: Now) -> Self {
        Self {
            bytes_max,
            used_bytes: 0,
            yesterday_bytes: 0,
            since: now,
            elapsed_before_ms: 0,
            stored_bytes: 0,
        }
    }

    /// Continues a stored day, with the values of [`Self::numbers`].
    pub fn restore(&mut self, now: Now, [used_bytes, yesterday_bytes, elapsed_ms]: [u64; 3]) {
        (self.used_bytes, self.stored_bytes, self.yesterday_bytes) =
            (used_bytes, used_bytes, yesterday_bytes);
        (self.since, self.elapsed_before_ms) = (now, elapsed_ms.min(DAY_MS));
    }

    /// Returns the values for [`Self::restore`]: bytes used today, bytes used the day before, milliseconds elapsed.
    pub fn numbers(&self, now: Now) -> [u64; 3] {
        [self.used_bytes, self.yesterday_bytes, self.elapsed_ms(now).min(DAY_MS)]
    }

    /// Returns the bytes used the day before.
    pub const fn yesterday_bytes(&self) -> u64 {
        self.yesterday_bytes
    }

    /// Returns how much of the day has elapsed, in milliseconds.
    const fn elapsed_ms(&self, now: Now) -> u64 {
        self.elapsed_before_ms.saturating_add(now.ms_since(self.since))
    }

    /// Begins a new day if the current one is over. Returns whether it was.
    pub const fn begin_day_if_due(&mut self, now: Now) -> bool {
        let elapsed_ms = self.elapsed_ms(now);
        let days = elapsed_ms / DAY_MS;
        if days == 0 {
            return false;
        }
        self.yesterday_bytes = if days == 1 { self.used_bytes } else { 0 };
        (self.used_bytes, self.stored_bytes) = (0, 0);
        (self.since, self.elapsed_before_ms) = (now, elapsed_ms % DAY_MS);
        true
    }

    /// Counts bytes of the link's socket.
    pub const fn note(&mut self, bytes: u64) {
        self.used_bytes = self.used_bytes.saturating_add(bytes);
    }

    /// Returns whether the budget is used up.
    pub fn is_spent(&self) -> bool {
        self.bytes_max.is_some_and(|max| self.used_bytes >= max)
    }

    /// Returns when the next day begins.
    pub const fn next_day(&self) -> Deadline {
        self.since.after_ms(DAY_MS.saturating_sub(self.elapsed_before_ms))
    }

    /// Returns the state of the same day with a changed budget.
    pub const fn with_max(self, bytes_max: Option<u64>) -> Self {
        Self { bytes_max, ..self }
    }

    /// Returns whether the state must be stored now, because another part of the budget was used since the last time that
    /// this function returned `true`.
    pub fn must_store(&mut self) -> bool {
        let step = self.bytes_max.map_or(u64::MAX, |max| (max / STORES_PER_BUDGET).max(1));
        let is_due = self.used_bytes - self.stored_bytes >= step;
        if is_due {
            self.stored_bytes = self.used_bytes;
        }
        is_due
    }
}

/// Traffic counters of one link for one day.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct LinkTraffic {
    /// Bytes written to the socket, TLS included.
    pub sent: u64,
    /// Bytes read from the socket, TLS included.
    pub received: u64,
    /// Bytes of messages that may have been transferred before: all frames of forwarded ones, bodies of fetched ones.
    pub repeated: u64,
    /// Bytes of the bodies of messages that were transferred for the first time.
    pub payload: u64,
    /// Number of messages that were transferred for the first time.
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

    /// Adds the counters of `other`.
    pub fn add(&mut self, other: Self) {
        let (mut all, other) = (self.numbers(), other.numbers());
        all.iter_mut().zip(other).for_each(|(number, more)| *number = number.saturating_add(more));
        *self = Self::from_numbers(all);
    }

    /// Returns the byte counters with their label values in metrics and views.
    pub const fn kinds(&self) -> [(&'static str, u64); 3] {
        [("sent", self.sent), ("received", self.received), ("repeated", self.repeated)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(hours: u64) -> Now {
        Now::from_ms(hours * 3_600_000)
    }

    #[test]
    fn a_used_up_budget_lasts_until_the_day_is_over_and_nothing_is_carried_over() {
        let mut budget = DayBudget::new(Some(1_000), at(5));
        budget.note(999);
        assert!(!budget.is_spent());
        budget.note(500);
        assert!(budget.is_spent() && !budget.begin_day_if_due(at(28)) && budget.is_spent());
        assert_eq!(budget.next_day().ms_left(at(28)), Some(3_600_000));
        assert!(budget.begin_day_if_due(at(29)) && !budget.is_spent());
        assert_eq!(budget.numbers(at(29)), [0, 1_499, 0]);
        assert!(budget.begin_day_if_due(at(29 + 49)));
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
        assert!(after.is_spent() && !after.begin_day_if_due(at(3)) && after.is_spent());
        assert!(after.begin_day_if_due(at(4)) && !after.is_spent());
        after.restore(at(0), [1, 2, u64::MAX]);
        assert!(after.begin_day_if_due(at(0)), "nonsense is a day that is over");
    }

    #[test]
    fn the_state_is_stored_sixteen_times_per_budget() {
        let mut budget = DayBudget::new(Some(1_600), at(0));
        let count = (0..1_600).filter(|_| {
            budget.note(1);
            budget.must_store()
        });
        assert_eq!(count.count(), 16);
    }
}
