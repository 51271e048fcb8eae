//! So many bytes a day, for a link that is paid by the byte.
//!
//! A day is 24 hours of this broker's own time, for a board without a clock knows no midnight. How much of it
//! is gone, and what was used, is handed out to be written down and taken in again after a restart; the time
//! that the broker was off counts as nothing, so that a restart never gives a new budget.
//!
//! Always true: what is over is made up for by no later day, and nothing unused is carried over; whoever is
//! not held back is counted all the same.

use leveret_core::time::{Deadline, Now};

/// In milliseconds.
pub(super) const DAY_MS: u64 = 24 * 3_600_000;
/// It is to be written down after so many parts of the budget: a power cut gives back no more.
const NOTED_PARTS: u64 = 16;

/// What may go today.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DayBudget {
    /// `None`: it is only counted.
    bytes_max: Option<u64>,
    used: u64,
    yesterday: u64,
    /// When the day began, and how much of it was gone by then.
    since: Now,
    gone_ms: u64,
    noted: u64,
}

impl DayBudget {
    /// A day that begins now.
    pub const fn new(bytes_max: Option<u64>, now: Now) -> Self {
        Self { bytes_max, used: 0, yesterday: 0, since: now, gone_ms: 0, noted: 0 }
    }

    /// Goes on with a day of which so much was gone.
    pub fn restore(&mut self, now: Now, [used, yesterday, gone_ms]: [u64; 3]) {
        (self.used, self.noted, self.yesterday) = (used, used, yesterday);
        (self.since, self.gone_ms) = (now, gone_ms.min(DAY_MS));
    }

    /// What [`Self::restore`] wants: used today, used the day before, milliseconds gone.
    pub fn numbers(&self, now: Now) -> [u64; 3] {
        [self.used, self.yesterday, self.gone_ms(now).min(DAY_MS)]
    }

    const fn gone_ms(&self, now: Now) -> u64 {
        self.gone_ms.saturating_add(now.ms_since(self.since))
    }

    /// The day ends when it is over. `true`: it did.
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

    /// So many bytes went.
    pub const fn note(&mut self, bytes: u64) {
        self.used = self.used.saturating_add(bytes);
    }

    /// Whether those are held back that the budget is for.
    pub fn is_spent(&self) -> bool {
        self.bytes_max.is_some_and(|max| self.used >= max)
    }

    /// When the next day begins.
    pub const fn next_day(&self) -> Deadline {
        self.since.after_ms(DAY_MS.saturating_sub(self.gone_ms))
    }

    /// The same day, with another budget.
    pub const fn with_max(self, bytes_max: Option<u64>) -> Self {
        Self { bytes_max, ..self }
    }

    /// Whether so much went since this was last asked that it is to be written down.
    pub fn is_to_note(&mut self) -> bool {
        let step = self.bytes_max.map_or(u64::MAX, |max| (max / NOTED_PARTS).max(1));
        let is_due = self.used - self.noted >= step;
        if is_due {
            self.noted = self.used;
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
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
