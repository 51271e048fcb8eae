//! Time as the core sees it: a value that is handed in, never read.
//!
//! The loop's clock is read in `host`, after each poll; everything below it is given a [`Now`]. So a test can
//! run a day of heartbeats in a millisecond, and two things that happen in one turn happen at one time. Who
//! reads another clock (how long a sync took, the date of an answer, whether a certificate has run out) says
//! something with it, and no deadline of the loop follows but that of a bridge with a time of day.
//! All of [`Now`] is monotonic: a board without a clock chip boots in 1970 and jumps, and nothing here may
//! notice.

/// An instant in monotonic milliseconds since the process started.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash)]
pub struct Now(u64);

impl Now {
    /// The instant `ms` milliseconds after the start of the process.
    pub const fn from_ms(ms: u64) -> Self {
        Self(ms)
    }

    /// Milliseconds since the start of the process.
    pub const fn as_ms(self) -> u64 {
        self.0
    }

    /// Milliseconds from `earlier` until this instant; 0 when `earlier` lies in the future.
    pub const fn ms_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// The deadline `ms` milliseconds from this instant.
    pub const fn after_ms(self, ms: u64) -> Deadline {
        Deadline(self.0.saturating_add(ms))
    }
}

/// The instant at which somebody wants to be called again; [`Deadline::NEVER`] when nobody does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct Deadline(u64);

impl Default for Deadline {
    /// Not at all.
    fn default() -> Self {
        Self::NEVER
    }
}

impl Deadline {
    /// Not at all: later than every other deadline.
    pub const NEVER: Self = Self(u64::MAX);

    /// Whether the deadline has been reached.
    pub const fn is_due(self, now: Now) -> bool {
        now.0 >= self.0
    }

    /// So many milliseconds later.
    #[must_use]
    pub const fn later_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }

    /// The earlier of the two.
    #[must_use]
    pub fn earlier(self, other: Self) -> Self {
        self.min(other)
    }

    /// Milliseconds left until the deadline, 0 when it is due, `None` for [`Deadline::NEVER`].
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
    fn a_deadline_is_due_at_its_instant_and_never_never() {
        let now = Now::from_ms(1_000);
        assert!(!now.after_ms(5).is_due(Now::from_ms(1_004)));
        assert!(now.after_ms(5).is_due(Now::from_ms(1_005)));
        assert!(!Deadline::NEVER.is_due(Now::from_ms(u64::MAX - 1)));
        assert_eq!(Deadline::NEVER.ms_left(now), None);
        assert_eq!(now.after_ms(5).earlier(Deadline::NEVER).ms_left(now), Some(5));
    }
}
