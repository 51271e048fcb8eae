//! Monotonic time, which is passed in as a value and never read here.
//!
//! The daemon reads the clock after each poll, and passes the time as a [`Now`]. So all code in a turn has
//! the same time, and a test can simulate a day in a millisecond. Other clocks (for the duration of a sync,
//! the date of an HTTP reply, the expiry of a certificate) affect no deadline of the event loop, except for
//! bridges with a time of day.
//!
//! [`Now`] is monotonic. A board without a real-time clock boots in 1970, and its system clock jumps later;
//! this has no effect on [`Now`].

/// An instant in monotonic milliseconds since the process started.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash)]
pub struct Now(u64);

impl Now {
    /// Returns the instant `ms` milliseconds after the start of the process.
    pub const fn from_ms(ms: u64) -> Self {
        Self(ms)
    }

    /// Returns the milliseconds since the start of the process.
    pub const fn as_ms(self) -> u64 {
        self.0
    }

    /// Returns the milliseconds from `earlier` until this instant; 0 if `earlier` is in the future.
    pub const fn ms_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// Returns the deadline `ms` milliseconds after this instant.
    pub const fn after_ms(self, ms: u64) -> Deadline {
        Deadline(self.0.saturating_add(ms))
    }
}

/// The instant at which something must be done; [`Deadline::NEVER`] if there is nothing to do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct Deadline(u64);

impl Default for Deadline {
    /// Returns [`Deadline::NEVER`].
    fn default() -> Self {
        Self::NEVER
    }
}

impl Deadline {
    /// Later than every other deadline.
    pub const NEVER: Self = Self(u64::MAX);

    /// Returns whether the deadline has been reached.
    pub const fn is_due(self, now: Now) -> bool {
        now.0 >= self.0
    }

    /// Returns the deadline moved `ms` milliseconds later.
    #[must_use]
    pub const fn later_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }

    /// Returns the earlier of the two.
    #[must_use]
    pub fn earlier(self, other: Self) -> Self {
        self.min(other)
    }

    /// Returns the milliseconds until the deadline; 0 if it is due, `None` for [`Deadline::NEVER`].
    pub const fn ms_left(self, now: Now) -> Option<u64> {
        match self.0 {
            u64::MAX => None,
            at => Some(at.saturating_sub(now.0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_due_at_its_instant_and_never_is_never_due() {
        let now = Now::from_ms(1_000);
        assert!(!now.after_ms(5).is_due(Now::from_ms(1_004)));
        assert!(now.after_ms(5).is_due(Now::from_ms(1_005)));
        assert!(!Deadline::NEVER.is_due(Now::from_ms(u64::MAX - 1)));
        assert_eq!(Deadline::NEVER.ms_left(now), None);
        assert_eq!(now.after_ms(5).earlier(Deadline::NEVER).ms_left(now), Some(5));
    }
}
