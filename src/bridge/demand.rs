//! Decides when an on-demand link is opened. Such a link is usually closed, because it costs money by the byte or
//! electric power.
//!
//! Connections by interval and by time of day are delayed at random, so that the devices of a fleet do not all connect at
//! the same moment.

use leveret_config::bridge::OnDemand;
use leveret_core::time::{Deadline, Now};

/// The random delay of an interval is at most one eighth of the interval.
const INTERVAL_DELAY_DIVISOR: u64 = 8;
/// The random delay of a time of day is shorter than this, in milliseconds.
const TIME_DELAY_MS_MAX: u64 = 600_000;
/// Maximum time between two checks in milliseconds if times of day are configured: the system's clock may be set at
/// any moment.
const CLOCK_CHECK_MS: u64 = 600_000;
/// A day in milliseconds.
const DAY_MS: u64 = 24 * 3_600_000;

// Why a link is opened, for the log.
const MESSAGES: &str = "the number of waiting messages has reached connect_messages";
const AGE: &str = "the oldest message has waited for connect_age";
const CAPACITY: &str = "publishers are blocked until waiting messages are forwarded";
const INTERVAL: &str = "connect_interval has passed since the last connection";
const TIME: &str = "a time of day in connect_at has come";

/// The state from which a bridge decides when to open its on-demand links.
#[derive(Clone, Debug)]
pub struct Demand {
    config: OnDemand,
    /// When the last connection ended.
    last_closed: Now,
    /// Since when at least one message has waited, as far as [`Self::reason_to_connect`] has seen.
    waiting_since: Option<Now>,
    /// The system's clock at the last check, in milliseconds since 1970.
    unix_ms_at_check: u64,
    /// The monotonic time of the last check.
    last_check: Now,
    /// A random number, from which the random delays until the next connection are computed.
    random: u64,
}

impl Demand {
    /// Creates the state of links that were not open yet.
    pub const fn new(config: OnDemand, now: Now) -> Self {
        Self {
            config,
            last_closed: now,
            waiting_since: None,
            unix_ms_at_check: 0,
            last_check: now,
            random: 0,
        }
    }

    /// Returns the milliseconds without traffic after which an open link is closed.
    pub const fn rest_after_ms(&self) -> u64 {
        self.config.rest_after_ms as u64
    }

    /// Records that the links were closed. `unix_ms` is the system's clock, and `random` a random number.
    pub const fn note_closed(&mut self, now: Now, unix_ms: u64, random: u64) {
        (self.last_closed, self.waiting_since) = (now, None);
        (self.unix_ms_at_check, self.last_check, self.random) = (unix_ms, now, random);
    }

    /// Returns whether the number of `waiting` messages has changed in a way that requires a check before
    /// [`Self::deadline`].
    pub const fn needs_check(&self, waiting: u64) -> bool {
        waiting >= self.config.messages as u64 || (waiting > 0) != self.waiting_since.is_some()
    }

    /// Checks whether a link has to be opened. Returns the reason as text, if there is one.
    ///
    /// `unix_ms` is the system's clock, `waiting` the number of messages that wait to be forwarded, and
    /// `no_publisher_waits` whether no publisher here waits for capacity.
    pub fn reason_to_connect(
        &mut self,
        now: Now,
        unix_ms: u64,
        waiting: u64,
        no_publisher_waits: bool,
    ) -> Option<&'static str> {
        self.waiting_since = (waiting > 0).then(|| self.waiting_since.unwrap_or(now));
        // Compares clock times, not elapsed time: the clock may have been set since the last check.
        let ms_since = unix_ms.saturating_sub(self.unix_ms_at_check);
        let is_time_of_day = self.ms_to_time().is_some_and(|ms| ms_since >= ms);
        (self.unix_ms_at_check, self.last_check) = (unix_ms, now);
        if waiting >= self.config.messages.into() {
            Some(MESSAGES)
        } else if waiting > 0 && !no_publisher_waits {
            Some(CAPACITY)
        } else if self.age_due().is_due(now) {
            Some(AGE)
        } else if self.interval_due().is_due(now) {
            Some(INTERVAL)
        } else {
            is_time_of_day.then_some(TIME)
        }
    }

    /// Returns when a link will be opened, provided that no more messages arrive and the clock is not set.
    pub fn due(&self) -> Deadline {
        let time = self.ms_to_time().map_or(Deadline::NEVER, |ms| self.last_check.after_ms(ms));
        self.age_due().earlier(self.interval_due()).earlier(time)
    }

    /// Returns when [`Self::reason_to_connect`] must be called next.
    pub fn deadline(&self) -> Deadline {
        match self.config.times.is_empty() {
            true => self.due(),
            false => self.due().earlier(self.last_check.after_ms(CLOCK_CHECK_MS)),
        }
    }

    /// Returns when messages will have waited for `connect_age` without interruption. The age of a single message is
    /// not known.
    fn age_due(&self) -> Deadline {
        self.waiting_since.map_or(Deadline::NEVER, |since| since.after_ms(self.config.age_ms.into()))
    }

    /// Returns when `connect_interval`, with the random delay, will have passed since the last connection.
    fn interval_due(&self) -> Deadline {
        match u64::from(self.config.interval_ms) {
            0 => Deadline::NEVER,
            ms => self.last_closed.after_ms(ms + self.random % (ms / INTERVAL_DELAY_DIVISOR + 1)),
        }
    }

    /// Returns the milliseconds from the last check to the next time of day in `connect_at`, with the random delay;
    /// `None` without such times.
    fn ms_to_time(&self) -> Option<u64> {
        let (delay_ms, ms_of_day) = (self.random % TIME_DELAY_MS_MAX, self.unix_ms_at_check % DAY_MS);
        let times = self.config.times.iter().map(|time| (u64::from(time.0) * 60_000 + delay_ms) % DAY_MS);
        times.map(|time| (time + DAY_MS - ms_of_day - 1) % DAY_MS + 1).min()
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

    fn demand_of(times: &[u16], chance: u64) -> Demand {
        let times = times.iter().map(|minutes| TimeOfDay(*minutes)).collect();
        let config = OnDemand { messages: 10, age_ms: 60_000, interval_ms: 0, times, rest_after_ms: 1_000 };
        let mut demand = Demand::new(config, at(0));
        demand.note_closed(at(0), MIDNIGHT_MS, chance);
        demand
    }

    #[test]
    fn a_link_is_opened_for_messages_their_age_and_blocked_publishers() {
        let mut demand = demand_of(&[], 0);
        assert_eq!(demand.deadline(), Deadline::NEVER);
        assert_eq!(demand.reason_to_connect(at(5), 0, 0, false), None, "a connection would free nothing");
        assert_eq!(demand.reason_to_connect(at(10), 0, 1, true), None);
        assert_eq!(demand.reason_to_connect(at(20), 0, 1, false), Some(CAPACITY));
        assert_eq!(demand.reason_to_connect(at(30), 0, 9, true), None);
        assert_eq!(demand.deadline(), at(10).after_ms(60_000), "measured from the first waiting message");
        assert!(demand.needs_check(0) && demand.needs_check(10) && !demand.needs_check(3));
        assert_eq!(demand.reason_to_connect(at(40), 0, 10, true), Some(MESSAGES));
        assert_eq!(demand.reason_to_connect(at(60_009), 0, 3, true), None);
        assert_eq!(demand.reason_to_connect(at(60_010), 0, 3, true), Some(AGE));
        assert_eq!(
            demand.reason_to_connect(at(60_011), 0, 0, true),
            None,
            "another consumer took the messages"
        );
        assert_eq!(demand.reason_to_connect(at(60_012), 0, 1, true), None);
        assert_eq!(demand.deadline(), at(60_012).after_ms(60_000));
    }

    #[test]
    fn an_interval_is_lengthened_by_up_to_an_eighth() {
        for (chance, ms) in [(0, HOUR_MS), (HOUR_MS / 8, HOUR_MS + HOUR_MS / 8), (HOUR_MS / 8 + 1, HOUR_MS)] {
            let mut demand = demand_of(&[], chance);
            demand.config.interval_ms = HOUR_MS as u32;
            assert_eq!(demand.due().ms_left(at(0)), Some(ms));
            assert_eq!(demand.reason_to_connect(at(ms - 1), 0, 0, true), None);
            assert_eq!(demand.reason_to_connect(at(ms), 0, 0, true), Some(INTERVAL));
        }
    }

    #[test]
    fn a_time_of_day_comes_once_whatever_the_clock_does() {
        let look =
            |state: &mut Demand, now_ms, unix_ms| state.reason_to_connect(at(now_ms), unix_ms, 0, true);
        let mut demand = demand_of(&[150, 60], 0);
        assert_eq!(demand.due().ms_left(at(0)), Some(HOUR_MS));
        assert_eq!(demand.deadline(), at(CLOCK_CHECK_MS).after_ms(0), "the clock may be set");
        assert_eq!(look(&mut demand, 1, MIDNIGHT_MS + HOUR_MS - 1), None);
        assert_eq!(look(&mut demand, 2, MIDNIGHT_MS + HOUR_MS), Some(TIME));
        assert_eq!(look(&mut demand, 3, MIDNIGHT_MS + HOUR_MS), None, "once");
        assert_eq!(demand.due().ms_left(at(3)), Some(HOUR_MS * 3 / 2));
        assert_eq!(look(&mut demand, 4, MIDNIGHT_MS), None, "the clock was set back");
        assert_eq!(look(&mut demand, 5, MIDNIGHT_MS + HOUR_MS), Some(TIME));
        assert_eq!(look(&mut demand, 6, MIDNIGHT_MS + 900 * DAY_MS), Some(TIME), "set forward");
        assert_eq!(look(&mut demand, 7, MIDNIGHT_MS + 900 * DAY_MS), None);
        let mut late = demand_of(&[0], TIME_DELAY_MS_MAX - 1);
        assert_eq!(late.due().ms_left(at(0)), Some(TIME_DELAY_MS_MAX - 1));
        assert_eq!(look(&mut late, 1, MIDNIGHT_MS + TIME_DELAY_MS_MAX - 1), Some(TIME));
        assert_eq!(late.due().ms_left(at(1)), Some(DAY_MS), "at the same time of the next day");
    }
}
