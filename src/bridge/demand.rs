//! When a link that rests is to be there again, where a link is paid for by the byte, or costs power.
//!
//! Always true: a contact is due for what waits, for how long something has waited, for the time since the
//! last contact and for a time of day, and for nothing else; so as not to come with a whole fleet at once,
//! the last two come a little late, each device by a span of its own.

use leveret_config::bridge::OnDemand;
use leveret_core::time::{Deadline, Now};

/// The interval is longer by up to this part of it.
const SPREAD_PART: u64 = 8;
/// A time of day comes later by up to so much, in milliseconds.
const SPREAD_MS_MAX: u64 = 600_000;
/// The clock is looked at so often at least, for it may be set, in milliseconds.
const LOOK_MS: u64 = 600_000;
/// In milliseconds.
const DAY_MS: u64 = 24 * 3_600_000;

/// What a contact is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    /// Enough messages wait.
    Messages,
    /// One waits for long enough.
    Age,
    /// Publishers wait for room that a contact would make.
    Room,
    /// The last contact was long enough ago.
    Interval,
    /// It is time.
    Time,
}

impl Reason {
    /// As the log has it.
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

/// Of the links of a bridge that rest, or may.
#[derive(Clone, Debug)]
pub struct Demand {
    config: OnDemand,
    /// The last contact ended then.
    since: Now,
    /// Something has waited since then.
    waiting_since: Option<Now>,
    /// What the clock said at the last look.
    unix_ms: u64,
    looked: Now,
    spread: u64,
}

impl Demand {
    /// No link rests yet.
    pub const fn new(config: OnDemand, now: Now) -> Self {
        Self { config, since: now, waiting_since: None, unix_ms: 0, looked: now, spread: 0 }
    }

    /// How long a link moves nothing before it rests, in milliseconds.
    pub const fn rest_after_ms(&self) -> u64 {
        self.config.rest_after_ms as u64
    }

    /// A link rests from now on, whatever the clock says; `chance`: any number.
    pub const fn rest(&mut self, now: Now, unix_ms: u64, chance: u64) {
        (self.since, self.waiting_since) = (now, None);
        (self.unix_ms, self.looked, self.spread) = (unix_ms, now, chance);
    }

    /// Whether a look at so many messages that wait would find something that the last one did not.
    pub const fn is_news(&self, waiting: u64) -> bool {
        waiting >= self.config.messages as u64 || (waiting > 0) != self.waiting_since.is_some()
    }

    /// Whether a contact is due, with so many messages waiting, and publishers behind them or not.
    pub fn look(&mut self, now: Now, unix_ms: u64, (waiting, has_room): (u64, bool)) -> Option<Reason> {
        self.waiting_since = (waiting > 0).then(|| self.waiting_since.unwrap_or(now));
        // By a clock that may have been set forward since the last look.
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

    /// When a contact is due, if nothing more comes and the clock is not set.
    pub fn due(&self) -> Deadline {
        let time = self.ms_to_time().map_or(Deadline::NEVER, |ms| self.looked.after_ms(ms));
        self.age_due().earlier(self.interval_due()).earlier(time)
    }

    /// When to look again.
    pub fn deadline(&self) -> Deadline {
        match self.config.times.is_empty() {
            true => self.due(),
            false => self.due().earlier(self.looked.after_ms(LOOK_MS)),
        }
    }

    /// When something has waited for long enough.
    fn age_due(&self) -> Deadline {
        self.waiting_since.map_or(Deadline::NEVER, |since| since.after_ms(self.config.age_ms.into()))
    }

    /// When the last contact was long enough ago.
    fn interval_due(&self) -> Deadline {
        match u64::from(self.config.interval_ms) {
            0 => Deadline::NEVER,
            ms => self.since.after_ms(ms + self.spread % (ms / SPREAD_PART + 1)),
        }
    }

    /// From the last look until the next time of day, each of which is taken to come a little late.
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
