//! What time it is, on a board whose clock may say 1970.
//!
//! Why it exists: a board without a battery-backed clock starts at some time long past, and until it has
//! heard of the right one every client's certificate is "not valid yet". But it is never earlier than when
//! our own certificates were made, so that is taken as the least. Always true: the time handed out is the
//! clock's or later; that never makes an expired certificate good.

use core::fmt;
use core::time::Duration;
use std::time::SystemTime;

use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;

const DAY_S: i64 = 86_400;

/// The system's clock, but never earlier than a known time.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Clock {
    /// Seconds since 1970.
    pub(super) not_before_s: u64,
}

impl Clock {
    /// Seconds since 1970 as far as can be known.
    pub(super) fn now_s(self) -> u64 {
        system_s().max(self.not_before_s)
    }

    /// Whether the system's clock is surely wrong.
    pub(super) fn is_behind(self) -> bool {
        system_s() < self.not_before_s
    }
}

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(self.now_s())))
    }
}

/// What the system's clock says, in seconds since 1970.
pub(super) fn system_s() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Days of a date of the Gregorian calendar since 1970; the year begins in March, so that leap days come
/// last.
pub(super) const fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    year * 365 + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + day_of_year - 719_468
}

/// A time in seconds since 1970 as people write it: `2026-11-20 14:03 UTC`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Utc(pub(super) u64);

impl fmt::Display for Utc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Beyond the year 9999 nobody cares.
        let seconds = self.0.min(253_402_300_799) as i64;
        let days = seconds / DAY_S;
        let mut year = 1970 + days / 366;
        while days_since_1970(year + 1, 1, 1) <= days {
            year += 1;
        }
        let mut month = 1;
        while month < 12 && days_since_1970(year, month + 1, 1) <= days {
            month += 1;
        }
        let day = days - days_since_1970(year, month, 1) + 1;
        let (hour, minute) = (seconds % DAY_S / 3_600, seconds % 3_600 / 60);
        write!(f, "{year:04}-{month:02}-{day:02} {hour:02}:{minute:02} UTC")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_those_of_the_calendar() {
        assert_eq!(days_since_1970(1970, 1, 1), 0);
        assert_eq!(days_since_1970(2000, 3, 1), 11_017);
        assert_eq!(days_since_1970(2024, 2, 29), 19_782);
        assert_eq!(days_since_1970(2026, 11, 20), 20_777);
    }

    #[test]
    fn times_are_written_as_dates() {
        assert_eq!(Utc(0).to_string(), "1970-01-01 00:00 UTC");
        assert_eq!(Utc(2_466_633_599).to_string(), "2048-02-29 23:59 UTC");
        assert_eq!(Utc(u64::MAX).to_string(), "9999-12-31 23:59 UTC");
        for day in 0..40_000 {
            let shown = Utc(day * 86_400).to_string();
            let part = |range: core::ops::Range<usize>| shown[range].parse::<i64>().unwrap();
            assert_eq!(days_since_1970(part(0..4), part(5..7), part(8..10)), day as i64);
        }
    }

    #[test]
    fn the_time_is_never_before_what_is_known() {
        let year_3000 = 32_503_680_000;
        let clock = Clock { not_before_s: year_3000 };
        assert!(clock.is_behind() && clock.now_s() == year_3000);
        let clock = Clock { not_before_s: 0 };
        assert!(!clock.is_behind() && clock.now_s() > 1_700_000_000);
    }
}
