//! Forecasts how long the flash lasts at the current rate of writing.
//!
//! Flash wears out by being written, often years after a setting could have been changed. The store counts the bytes
//! written in all its runs. The endurance of the flash is configured by its owner.
//!
//! # Invariants
//! - The rate is that of this process. It is unknown before the process has run for an hour.
//! - Data written by other programs is unknown, so the forecast is an upper bound.

use std::borrow::Cow;

use leveret_core::limits::Megabytes;

use super::request_context::Process;

/// A rate over a shorter time is not reliable.
const RUN_MS_MIN: u64 = 3_600_000;
const DAY_MS: u128 = 86_400_000;
/// A year of 365.25 days.
const YEAR_MS: u128 = 31_557_600_000;
/// The most tenths of a year in a forecast.
const TENTHS_MAX: u128 = 10_000;

/// The forecast.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wear {
    /// Bytes written in all runs of the store.
    pub written_bytes: u64,
    /// Bytes that this process writes per day, once that is known.
    pub bytes_per_day: Option<u64>,
    /// Tenths of years that the flash lasts at that rate, if its endurance is configured.
    pub tenths_left: Option<u64>,
}

impl Wear {
    /// Returns the forecast for a process that has a store.
    pub fn of(process: &Process) -> Option<Self> {
        let (store, up_ms) = (process.store, process.uptime_ms);
        if store.bytes_max == 0 {
            return None;
        }
        Some(Self::forecast(
            store.written_all_runs_bytes,
            store.written_bytes,
            up_ms,
            process.endurance.bytes,
        ))
    }

    /// Computes the forecast from the bytes of all runs, and the bytes of this run of `up_ms` milliseconds.
    fn forecast(ever: u64, here: u64, up_ms: u64, endurance: u64) -> Self {
        let per_day = u128::from(here) * DAY_MS / u128::from(up_ms.max(1));
        let is_known = up_ms >= RUN_MS_MIN;
        let left = u128::from(endurance.saturating_sub(ever));
        let tenths = left * u128::from(up_ms) * 10 / (u128::from(here) * YEAR_MS).max(1);
        Self {
            written_bytes: ever,
            bytes_per_day: is_known.then(|| u64::try_from(per_day).unwrap_or(u64::MAX)),
            tenths_left: (is_known && endurance > 0).then(|| tenths.min(TENTHS_MAX) as u64),
        }
    }

    /// Returns the alarm if the flash wears out too fast.
    pub fn alarm(process: &Process) -> Option<Cow<'static, str>> {
        Self::of(process)?.warning(process.endurance.years_min)
    }

    fn warning(&self, years_min: u32) -> Option<Cow<'static, str>> {
        let (tenths, per_day) = (self.tenths_left?, self.bytes_per_day?);
        (tenths < u64::from(years_min) * 10).then(|| {
            Cow::from(format!(
                "wear: {} a day are written to the card, which lasts {}.{} years more at that rate \
                 (flash_endurance, flash_years_min); publish less of it persistently, or gather longer \
                 (commit_window, settle_window)",
                Megabytes(per_day),
                tenths / 10,
                tenths % 10
            ))
        })
    }
}

/// Writes the forecast as part of the status. Unknown values are omitted.
impl core::fmt::Display for Wear {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{} by this store so far", Megabytes(self.written_bytes))?;
        match self.bytes_per_day {
            Some(per_day) => write!(f, ", {} a day", Megabytes(per_day))?,
            None => f.write_str(", the rate is known after an hour")?,
        }
        match self.tenths_left {
            Some(tenths) => write!(f, ", {}.{} years left at that rate", tenths / 10, tenths % 10),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const YEAR: u64 = YEAR_MS as u64;

    fn tenths(ever: u64, here: u64, up_ms: u64, bytes: u64) -> Option<u64> {
        Wear::forecast(ever, here, up_ms, bytes).tenths_left
    }

    #[test]
    fn years_follow_from_the_rest_and_the_rate_of_this_process() {
        // A tenth of the endurance is written in a year, and half of it was used before.
        assert_eq!(tenths(500, 100, YEAR, 1_000), Some(50));
        assert_eq!(tenths(32 << 40, 1 << 40, YEAR, 32 << 40), Some(0), "it is used up");
        assert_eq!(tenths(33 << 40, 1 << 40, YEAR, 32 << 40), Some(0), "and more than that");
        assert_eq!(
            tenths(0, 0, YEAR, 1 << 40),
            Some(10_000),
            "nothing is written: the forecast has its upper limit"
        );
        assert_eq!(tenths(5, 5, RUN_MS_MIN - 1, 1 << 40), None, "too early");
        assert_eq!(tenths(u64::MAX, u64::MAX, RUN_MS_MIN, u64::MAX), Some(0));
        assert_eq!(tenths(5, 5, YEAR, 0), None, "the endurance is not configured");
    }

    #[test]
    fn an_alarm_contains_the_known_values() {
        let fast = Wear::forecast(1 << 40, 1 << 40, YEAR, 2 << 40);
        let shown = fast.to_string();
        assert!(shown.contains("1.0 years left") && shown.contains("3010.3 MB a day"), "{shown}");
        assert!(fast.warning(2).is_some_and(|text| text.starts_with("wear: 3010.3 MB a day")));
        assert_eq!((fast.warning(1), fast.warning(0)), (None, None));
    }
}
