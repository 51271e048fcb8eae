//! A time in words, of the calendar in UTC.
//!
//! Always true: every number is some date.

/// Milliseconds since 1970 as RabbitMQ shows a time.
pub fn date_of(unix_ms: u64) -> String {
    let s = unix_ms / 1000;
    let (year, month, day) = day_of(s / 86_400);
    let (hour, minute) = (s / 3600 % 24, s / 60 % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{:02}", s % 60)
}

/// Year, month and day of so many days after 1970 began. Years begin in March here, so that a leap day is the
/// last of its year.
pub fn day_of(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * march + 2) / 5 + 1;
    let month = if march < 10 { march + 3 } else { march - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day)
}
