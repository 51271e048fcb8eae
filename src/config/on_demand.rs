//! `link = "on_demand"`: when a bridge that is not always connected connects.
//!
//! Always true: what is of use on demand only is refused without it.

use std::fmt;
use std::str::FromStr;

use super::read::{Value, Wrong, read_from_text};
use super::transports::words;
use super::units::{BadValue, Count, Millis};

/// Messages that wait to be forwarded.
const MESSAGES_DEFAULT: u32 = 1_000;
/// How long one may wait, in milliseconds.
const AGE_MS_DEFAULT: u32 = 3_600_000;
/// From one contact to the next, in milliseconds.
const INTERVAL_MS_DEFAULT: u32 = 6 * 3_600_000;
/// With nothing to move, in milliseconds.
const REST_AFTER_MS_DEFAULT: u32 = 10_000;
/// A link that ends sooner may not have heard of what waits for it, in milliseconds.
const REST_AFTER_MS_MIN: u32 = 1_000;
/// Times of day that one bridge may have.
const TIMES_MAX: usize = 8;

words! {
    /// Whether links are always there.
    LinkMode of "link":
    /// They are, or are tried.
    #[default]
    Always = "always",
    /// They end when there is nothing to move, and begin again for what stands in [`OnDemand`].
    OnDemand = "on_demand",
}

/// What a bridge connects for, and when it ends its links.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OnDemand {
    /// So many messages wait to be forwarded; at least 1.
    pub messages: u32,
    /// One has waited so long, in milliseconds.
    pub age_ms: u32,
    /// The last contact was so long ago, in milliseconds; 0: that is no reason.
    pub interval_ms: u32,
    /// These times of the day have come.
    pub times: Vec<TimeOfDay>,
    /// A link ends when it has moved nothing for so long, in milliseconds.
    pub rest_after_ms: u32,
}

/// Minutes since midnight, UTC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TimeOfDay(pub u16);

impl FromStr for TimeOfDay {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        let number = |digits: &str, below: u16| {
            let is_two = digits.len() == 2 && digits.bytes().all(|octet| octet.is_ascii_digit());
            digits.parse::<u16>().ok().filter(|number| is_two && *number < below)
        };
        let parts = text.split_once(':').and_then(|(hour, minute)| number(hour, 24).zip(number(minute, 60)));
        let minutes = parts.map(|(hour, minute)| Self(60 * hour + minute));
        minutes.ok_or_else(|| {
            BadValue::new(text, "a time of day: write hours and minutes of UTC, such as \"02:30\"")
        })
    }
}

impl fmt::Display for TimeOfDay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{:02}:{:02}\"", self.0 / 60, self.0 % 60)
    }
}

read_from_text! {
    LinkMode;
    TimeOfDay;
}

/// What a file says of it.
pub(super) struct Said {
    pub(super) link: Option<LinkMode>,
    pub(super) messages: Option<Count<u32>>,
    pub(super) age: Option<Millis>,
    pub(super) interval: Option<Millis>,
    pub(super) times: Option<Vec<TimeOfDay>>,
    pub(super) rest_after: Option<Millis>,
}

impl Said {
    #[cold]
    pub(super) fn made(self, value: &Value<'_>) -> Result<Option<OnDemand>, Wrong> {
        let Self { link, messages, age, interval, times, rest_after } = self;
        if link != Some(LinkMode::OnDemand) {
            let is_said = messages.is_some()
                || times.is_some()
                || [age, interval, rest_after].iter().any(Option::is_some);
            return match is_said {
                true => Err(Wrong::value(
                    value,
                    "connect_messages, connect_age, connect_interval, connect_at and rest_after are of use \
                     with link = \"on_demand\" only",
                )),
                false => Ok(None),
            };
        }
        let ms = |said: Option<Millis>, default| said.map_or(default, |time| time.0);
        let made = OnDemand {
            messages: messages.map_or(MESSAGES_DEFAULT, |count| count.0),
            age_ms: ms(age, AGE_MS_DEFAULT),
            interval_ms: ms(interval, INTERVAL_MS_DEFAULT),
            times: times.unwrap_or_default(),
            rest_after_ms: ms(rest_after, REST_AFTER_MS_DEFAULT),
        };
        let wrong = |why: &str| Err(Wrong::value(value, why));
        if made.messages == 0 {
            return wrong("connect_messages must be at least 1: with 1 it connects for every message");
        }
        if made.rest_after_ms < REST_AFTER_MS_MIN {
            return wrong("rest_after must be at least 1s, for what the upstream has must have time to come");
        }
        if made.times.len() > TIMES_MAX {
            return wrong(&format!("connect_at may name {TIMES_MAX} times of day at most"));
        }
        Ok(Some(made))
    }
}

impl OnDemand {
    /// Whether nothing but messages here that wait makes it connect.
    pub(super) const fn is_never_without_messages(&self) -> bool {
        self.interval_ms == 0 && self.times.is_empty()
    }

    /// As a file says it.
    #[cold]
    pub(super) fn shown(&self) -> [String; 6] {
        let times: Vec<String> = self.times.iter().map(TimeOfDay::to_string).collect();
        [
            format!("link = {}", LinkMode::OnDemand),
            format!("connect_messages = {}", self.messages),
            format!("connect_age = {}", Millis(self.age_ms)),
            format!("connect_interval = {}", Millis(self.interval_ms)),
            format!("connect_at = [{}]", times.join(", ")),
            format!("rest_after = {}", Millis(self.rest_after_ms)),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_of_day_is_two_digits_and_two_digits() {
        for (text, minutes) in [("00:00", 0), ("02:30", 150), ("23:59", 1_439)] {
            let time: TimeOfDay = text.parse().expect(text);
            assert_eq!((time.0, time.to_string()), (minutes, format!("{text:?}")));
        }
        for text in ["", "24:00", "2:30", "02:60", "02:3", "+1:30", "02:30:00", "02.30", "noon"] {
            assert!(text.parse::<TimeOfDay>().is_err(), "{text}");
        }
    }
}
