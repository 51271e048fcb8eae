//! When to try again.
//!
//! A thousand devices whose upstream comes back must not come all at once, so each pause is drawn from the
//! whole of a span that doubles with every failure (full jitter). A link that came up and broke at once is
//! no success: only one that lasted makes the span short again.
//!
//! Always true: a pause is at least [`PAUSE_MS_MIN`] and at most what was set.

use leveret_core::time::{Deadline, Now};

/// The first span, in milliseconds.
const SPAN_MS_FIRST: u64 = 1_000;
/// No pause is shorter, in milliseconds.
pub(super) const PAUSE_MS_MIN: u64 = 200;
/// A link that lasted so long was stable, in milliseconds.
const STABLE_MS: u64 = 60_000;

/// How often it failed in a row.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The link is not up any more, or did not come up; `since` then it was. When to try again, with `chance`
    /// any number.
    pub fn fail(&mut self, now: Now, since: Option<Now>, span_ms_max: u64, chance: u64) -> Deadline {
        if since.is_some_and(|since| now.ms_since(since) >= STABLE_MS) {
            self.failures = 0;
        }
        let span_ms = (SPAN_MS_FIRST << self.failures.min(30)).min(span_ms_max).max(PAUSE_MS_MIN);
        self.failures = self.failures.saturating_add(1);
        now.after_ms(PAUSE_MS_MIN.max(chance % (span_ms + 1)))
    }

    /// It counts as having failed once more, without a pause.
    pub const fn note_failure(&mut self) {
        self.failures = self.failures.saturating_add(1);
    }

    /// Somebody says that it is to be tried anew.
    pub const fn reset(&mut self) {
        self.failures = 0;
    }

    /// Failures in a row.
    pub const fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The longest and the shortest pause there can be now.
    fn span(backoff: Backoff, now: Now, since: Option<Now>) -> (u64, u64) {
        let pause = |chance| {
            let at = { backoff }.fail(now, since, 60_000, chance);
            at.ms_left(now).expect("it is tried again")
        };
        let longest = (0..70_000).map(pause).max().expect("there are chances");
        (pause(0), longest)
    }

    #[test]
    fn the_span_doubles_up_to_its_most_and_only_a_stable_link_makes_it_short() {
        let now = Now::from_ms(1_000_000);
        let mut backoff = Backoff::default();
        let mut longest = Vec::new();
        for _ in 0..8 {
            longest.push(span(backoff, now, None));
            backoff.fail(now, None, 60_000, 0);
        }
        let most: Vec<u64> = longest.iter().map(|(_, most)| *most).collect();
        assert_eq!(most, [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000]);
        assert!(longest.iter().all(|(least, _)| *least == PAUSE_MS_MIN), "the jitter is full");
        let shortly = Some(Now::from_ms(now.as_ms() - STABLE_MS + 1));
        assert_eq!(span(backoff, now, shortly).1, 60_000, "a link that broke soon is no success");
        let long = Some(Now::from_ms(now.as_ms() - STABLE_MS));
        assert_eq!(span(backoff, now, long).1, 1_000);
    }

    #[test]
    fn failures_without_end_do_not_overflow() {
        let mut backoff = Backoff { failures: u32::MAX };
        let at = backoff.fail(Now::from_ms(0), None, u64::MAX - 1, u64::MAX - 7);
        assert!(at.ms_left(Now::from_ms(0)).is_some());
    }
}
