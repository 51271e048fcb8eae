//! When an on-demand link is opened: one that is paid for by the byte or costs power.
//!
//! # Invariants
//! - A link is opened for the number of waiting messages, for the age of the oldest one, for publishers that wait
//!   for capacity, for the time since the last connection, and for a time of day.
//! - The last two are delayed by a random span of each device, so that a whole fleet does not connect at once.

use leveret_config::bridge::OnDemand;
use leveret_core::time::{Deadline, Now};

/// The interval is lengthened by at most this part of it.
const SPREAD_PART: u64 = 8;
/// A time of day is delayed by at most this, in milliseconds.
const SPREAD_MS_MAX: u64 = 600_000;
/// The clock is read at least this often, because it may be set, in milliseconds.
const LOOK_MS: u64 = 600_000;
/// A day in milliseconds.
const DAY_MS: u64 = 24 * 3_600_000;

/// Why a link is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    /// Enough messages wait.
    Messages,
    /// A message has waited long enough.
    Age,
    /// Publishers wait for capacity that a connection would free.
    Room,
    /// The last connection was long enough ago.
    Interval,
    /// A configured time of day has come.
    Time,
}

impl Reason {
    /// Returns the reason as it is logged.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Messages => "as many messages wait as connect_messages says",
            Self::Age => "messages have waited for connect_age",
            Self::Room => "publishers wait for room",
            Self::Interval => "connect_interval is over",
            Self::Time => "it is a time of connect_at",
        }
    }
}

/// The state of a bridge's on-demand links while they are closed.
#[derive(Clone, Debug)]
pub struct Demand {
    config: OnDemand,
    /// When the last connection ended.
    since: Now,
    /// Since when something has waited.
    waiting_since: Option<Now>,
    /// The date of the last look, in milliseconds since 1970.
    unix_ms: u64,
    looked: Now,
    spread: u64,
}

impl Demand {
    /// Creates the state; no link is closed yet.
    pub const fn new(config: OnDemand, now: Now) -> Self {
        Self { config, since: now, waiting_since: None, unix_ms: 0, looked: now, spread: 0 }
    }

    /// Returns how long a link transfers nothing before it is closed, in milliseconds.
    pub const fn rest_after_ms(&self) -> u64 {
        self.config.rest_after_ms as u64
    }

    /// Records that a link was closed; `chance` is any random number.
    pub const fn rest(&mut self, now: Now, unix_ms: u64, chance: u64) {
        (self.since, self.waiting_since) = (now, None);
        (self.unix_ms, self.looked, self.spread) = (unix_ms, now, chance);
    }

    /// Returns whether a look with `waiting` messages would find something that the last one did not.
    pub const fn is_news(&self, waiting: u64) -> bool {
        waiting >= self.config.messages as u64 || (waiting > 0) != self.waiting_since.is_some()
    }

    /// Returns whether a link has to be opened, given the number of waiting messages and whether publishers wait
    /// behind them.
    pub fn look(&mut self, now: Now, unix_ms: u64, (waiting, has_room): (u64, bool)) -> Option<Reason> {
        self.waiting_since = (waiting > 0).then(|| self.waiting_since.unwrap_or(now));
        // The clock may have been set forward since the last look.
        let ms_since = unix_ms.saturating_sub(self.unix_ms);
        let has_struck = self.ms_to_time().is_some_and(|ms| ms_since >= ms);
        (self.unix_ms, self.looked) = (unix_ms, now);
        if waiting >= self.config.messages.into() {
            Some(Reason::Messages)
        } else if waiting > 0 && !has_room {
            Some(Reason::Room)
        } else if self.age_due().is_due(now) {
            Some(Reason::Age)
        } else if self.interval_due().is_due(now) {
            Some(Reason::Interval)
        } else {
            has_struck.then_some(Reason::Time)
        }
    }

    /// Returns when a link has to be opened if no more messages arrive and the clock is not set.
    pub fn due(&self) -> Deadline {
        let time = self.ms_to_time().map_or(Deadline::NEVER, |ms| self.looked.after_ms(ms));
        self.age_due().earlier(self.interval_due()).earlier(time)
    }

    /// Returns when to look again.
    pub fn deadline(&self) -> Deadline {
        match self.config.times.is_empty() {
            true => self.due(),
            false => self.due().earlier(self.looked.after_ms(LOOK_MS)),
        }
    }

    /// Returns when the oldest message has waited long enough.
    fn age_due(&self) -> Deadline {
        self.waiting_since.map_or(Deadline::NEVER, |since| since.after_ms(self.config.age_ms.into()))
    }

    /// Returns when the last connection was long enough ago.
    fn interval_due(&self) -> Deadline {
        match u64::from(self.config.interval_ms) {
            0 => Deadline::NEVER,
            ms => self.since.after_ms(ms + self.spread % (ms / SPREAD_PART + 1)),
        }
    }

    /// Returns the milliseconds from the last look to the next time of day, with the random delay.
    fn ms_to_time(&self) -> Option<u64> {
        let (late, of_day) = (self.spread % SPREAD_MS_MAX, self.unix_ms % DAY_MS);
        let times = self.config.times.iter().map(|time| (u64::from(time.0) * 60_000 + late) % DAY_MS);
        times.map(|time| (time + DAY_MS - of_day - 1) % DAY_MS + 1).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use leveret_config::bridge::TimeOfDay;

    const HOUR_MS: u64 = 3_600_000;
    /// Some midnight.
    const MIDNIGHT_MS: u64 = 20_000 * DAY_MS;

    const fn at(ms: u64) -> Now {
        Now::from_ms(ms)
    }

    fn demand(times: &[u16], chance: u64) -> Demand {
        let times = times.iter().map(|minutes| TimeOfDay(*minutes)).collect();
        let config = OnDemand { messages: 10, age_ms: 60_000, interval_ms: 0, times, rest_after_ms: 1_000 };
        let mut demand = Demand::new(config, at(0));
        demand.rest(at(0), MIDNIGHT_MS, chance);
        demand
    }

    #[test]
    fn a_contact_is_due_for_messages_their_age_and_for_room() {
        let mut rested = demand(&[], 0);
        assert_eq!(rested.deadline(), Deadline::NEVER);
        assert_eq!(rested.look(at(5), 0, (0, false)), None, "a contact would make no room");
        assert_eq!(rested.look(at(10), 0, (1, true)), None);
        assert_eq!(rested.look(at(20), 0, (1, false)), Some(Reason::Room));
        assert_eq!(rested.look(at(30), 0, (9, true)), None);
        assert_eq!(rested.deadline(), at(10).after_ms(60_000), "of the first that waits");
        assert!(rested.is_news(0) && rested.is_news(10) && !rested.is_news(3));
        assert_eq!(rested.look(at(40), 0, (10, true)), Some(Reason::Messages));
        assert_eq!(rested.look(at(60_009), 0, (3, true)), None);
        assert_eq!(rested.look(at(60_010), 0, (3, true)), Some(Reason::Age));
        assert_eq!(rested.look(at(60_011), 0, (0, true)), None, "somebody else took them");
        assert_eq!(rested.look(at(60_012), 0, (1, true)), None);
        assert_eq!(rested.deadline(), at(60_012).after_ms(60_000));
    }

    #[test]
    fn an_interval_is_spread_over_an_eighth_of_it() {
        for (chance, ms) in [(0, HOUR_MS), (HOUR_MS / 8, HOUR_MS + HOUR_MS / 8), (HOUR_MS / 8 + 1, HOUR_MS)] {
            let mut rested = demand(&[], chance);
            rested.config.interval_ms = HOUR_MS as u32;
            assert_eq!(rested.due().ms_left(at(0)), Some(ms));
            assert_eq!(rested.look(at(ms - 1), 0, (0, true)), None);
            assert_eq!(rested.look(at(ms), 0, (0, true)), Some(Reason::Interval));
        }
    }

    #[test]
    fn a_time_of_day_comes_once_whatever_the_clock_does() {
        let look = |rested: &mut Demand, now_ms, unix_ms| rested.look(at(now_ms), unix_ms, (0, true));
        let mut rested = demand(&[150, 60], 0);
        assert_eq!(rested.due().ms_left(at(0)), Some(HOUR_MS));
        assert_eq!(rested.deadline(), at(LOOK_MS).after_ms(0), "the clock may be set");
        assert_eq!(look(&mut rested, 1, MIDNIGHT_MS + HOUR_MS - 1), None);
        assert_eq!(look(&mut rested, 2, MIDNIGHT_MS + HOUR_MS), Some(Reason::Time));
        assert_eq!(look(&mut rested, 3, MIDNIGHT_MS + HOUR_MS), None, "once");
        assert_eq!(rested.due().ms_left(at(3)), Some(HOUR_MS * 3 / 2));
        assert_eq!(look(&mut rested, 4, MIDNIGHT_MS), None, "the clock was set back");
        assert_eq!(look(&mut rested, 5, MIDNIGHT_MS + HOUR_MS), Some(Reason::Time));
        assert_eq!(look(&mut rested, 6, MIDNIGHT_MS + 900 * DAY_MS), Some(Reason::Time), "set forward");
        assert_eq!(look(&mut rested, 7, MIDNIGHT_MS + 900 * DAY_MS), None);
        let mut late = demand(&[0], SPREAD_MS_MAX - 1);
        assert_eq!(late.due().ms_left(at(0)), Some(SPREAD_MS_MAX - 1));
        assert_eq!(look(&mut late, 1, MIDNIGHT_MS + SPREAD_MS_MAX - 1), Some(Reason::Time));
        assert_eq!(late.due().ms_left(at(1)), Some(DAY_MS), "at the same time of the next day");
    }
}
