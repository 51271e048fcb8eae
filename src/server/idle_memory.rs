//! Decides when memory that is unused after a burst or after the start is returned to the system.
//!
//! # Invariants
//! - There is no deadline while at most [`IDLE_BYTES_KEPT`] bytes are idle.
//! - Idle memory that could not be returned, because it is in the same pages as used memory, is not tried
//!   again until the number of idle bytes changes.

use leveret_core::mem::{self, EXTENT_BYTES};
use leveret_core::time::{Deadline, Now};

/// How long memory is idle before it is returned, in milliseconds. It is kept so long because another burst
/// may follow.
const TRIM_AFTER_MS: u64 = 1_000;
/// Shortest time between two returns because memory is short, in milliseconds. Each examines all pools, and a class can
/// be short for a long time.
const SHORT_TRIM_AFTER_MS: u64 = 10;
/// Idle memory that is kept for the next burst, in bytes.
const IDLE_BYTES_KEPT: usize = 1 << 20;

/// The state of the return of idle memory.
#[derive(Debug)]
pub(super) struct IdleMemory {
    due: Deadline,
    /// The code that only the start needs is still in memory.
    is_fresh: bool,
    /// Idle bytes that remained after the last return.
    left_bytes: usize,
    /// When memory may be returned again because it is short.
    short_from: Deadline,
    /// Memory was short since the last return.
    is_short: bool,
}

impl IdleMemory {
    /// Creates the state at start. Memory that the start no longer needs is returned too.
    pub(super) const fn new() -> Self {
        let now = Now::from_ms(0);
        let (due, short_from) = (now.after_ms(TRIM_AFTER_MS), now.after_ms(0));
        Self { due, is_fresh: true, left_bytes: 0, short_from, is_short: false }
    }

    /// Returns when memory must be returned.
    pub(super) const fn deadline(&self) -> Deadline {
        self.due
    }

    /// Returns whether a bounded part of the memory must be returned now. If not, sets the deadline if
    /// `idle_bytes` are more than what is kept. While memory is short, nothing is kept.
    pub(super) fn is_due(&mut self, now: Now, idle_bytes: usize, is_short: bool) -> bool {
        // The needed extents may become idle later, for example when a connection is closed.
        self.is_short |= is_short;
        if self.is_short && idle_bytes >= EXTENT_BYTES && idle_bytes != self.left_bytes {
            self.due = self.due.min(self.short_from);
            if self.short_from.is_due(now) {
                self.short_from = now.after_ms(SHORT_TRIM_AFTER_MS);
            }
        }
        if self.due == Deadline::NEVER {
            if idle_bytes > IDLE_BYTES_KEPT && idle_bytes != self.left_bytes {
                self.due = now.after_ms(TRIM_AFTER_MS);
            }
            return false;
        }
        self.due.is_due(now)
    }

    /// Notes that the last part was returned, and that `left_bytes` could not be.
    pub(super) fn note_returned(&mut self, left_bytes: usize) {
        if core::mem::replace(&mut self.is_fresh, false) {
            mem::drop_startup_pages();
        }
        (self.due, self.left_bytes, self.is_short) = (Deadline::NEVER, left_bytes, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_idle_goes_back_after_a_while_and_what_cannot_is_left_alone() {
        let at = Now::from_ms;
        let mut idle = IdleMemory::new();
        assert!(!idle.is_due(at(10), 0, false), "memory is idle for a while first");
        assert!(idle.is_due(at(1_000), 0, false), "what the start left");
        idle.note_returned(2 << 20);
        assert!(!idle.is_due(at(1_001), 2 << 20, false), "it could not be returned");
        assert_eq!(idle.deadline(), Deadline::NEVER);
        assert!(!idle.is_due(at(2_000), 3 << 20, false));
        assert_eq!(idle.deadline(), at(2_000).after_ms(TRIM_AFTER_MS));
        assert!(idle.is_due(at(3_000), 0, false));
        idle.note_returned(5);
        assert!(!idle.is_due(at(9_000), IDLE_BYTES_KEPT, false), "kept for the next burst");
        assert_eq!(idle.deadline(), Deadline::NEVER);
        assert!(idle.is_due(at(9_000), IDLE_BYTES_KEPT, true), "memory is short");
        idle.note_returned(IDLE_BYTES_KEPT);
        assert!(!idle.is_due(at(9_000), IDLE_BYTES_KEPT, true), "it could not be returned");
        assert!(!idle.is_due(at(9_001), 3 * EXTENT_BYTES, true), "not in every turn");
        assert_eq!(idle.deadline(), at(9_000).after_ms(SHORT_TRIM_AFTER_MS));
        assert!(idle.is_due(at(9_010), 3 * EXTENT_BYTES, false));
    }
}
