//! Memory that a burst left idle, or the start, and when it goes back to the system.
//!
//! Always true: while nothing is idle beyond what stays for the next burst, there is no deadline; what could not be
//! given back, because something in use lies between, is not tried again before something changed.

use leveret_core::mem;
use leveret_core::time::{Deadline, Now};

/// How long memory lies idle before it is given back: the next burst may be near.
const TRIM_AFTER_MS: u64 = 1_000;
/// So much idle memory stays for the next burst.
const IDLE_BYTES_KEPT: usize = 1 << 20;

/// When idle memory goes back.
#[derive(Debug)]
pub(super) struct IdleMemory {
    /// All memory is locked: nothing is given back.
    is_locked: bool,
    due: Deadline,
    /// The start's code is still mapped.
    is_fresh: bool,
    /// Idle bytes that were left when some were given back last.
    left_bytes: usize,
}

impl IdleMemory {
    /// What the start left idle goes back as well, unless all memory is locked.
    pub(super) const fn new(is_locked: bool) -> Self {
        let due = if is_locked { Deadline::NEVER } else { Now::from_ms(0).after_ms(TRIM_AFTER_MS) };
        Self { is_locked, due, is_fresh: true, left_bytes: 0 }
    }

    /// When some is to be given back.
    pub(super) const fn deadline(&self) -> Deadline {
        self.due
    }

    /// Whether some is to be given back now, a bounded part at a time; notes how much is idle if nothing is due.
    pub(super) fn is_due(&mut self, now: Now, idle_bytes: usize) -> bool {
        if self.is_locked {
            return false;
        }
        if self.due == Deadline::NEVER {
            if idle_bytes > IDLE_BYTES_KEPT && idle_bytes != self.left_bytes {
                self.due = now.after_ms(TRIM_AFTER_MS);
            }
            return false;
        }
        self.due.is_due(now)
    }

    /// Notes that the last part was given back, and how many bytes stay idle.
    pub(super) fn note_given_back(&mut self, left_bytes: usize) {
        if core::mem::replace(&mut self.is_fresh, false) {
            mem::let_go_of_start();
        }
        (self.due, self.left_bytes) = (Deadline::NEVER, left_bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_idle_goes_back_after_a_while_and_what_cannot_is_left_alone() {
        let at = Now::from_ms;
        let mut idle = IdleMemory::new(false);
        assert!(!idle.is_due(at(10), 0), "memory lies idle for a while first");
        assert!(idle.is_due(at(1_000), 0), "what the start left");
        idle.note_given_back(2 << 20);
        assert!(!idle.is_due(at(1_001), 2 << 20), "it could not be given back");
        assert_eq!(idle.deadline(), Deadline::NEVER);
        assert!(!idle.is_due(at(2_000), 3 << 20));
        assert_eq!(idle.deadline(), at(2_000).after_ms(TRIM_AFTER_MS));
        assert!(idle.is_due(at(3_000), 0));
        idle.note_given_back(5);
        assert!(!idle.is_due(at(9_000), IDLE_BYTES_KEPT), "so much stays for the next burst");
        assert_eq!(idle.deadline(), Deadline::NEVER);
    }

    #[test]
    fn of_locked_memory_nothing_goes_back() {
        let mut idle = IdleMemory::new(true);
        assert!(!idle.is_due(Now::from_ms(9_000), usize::MAX));
        assert_eq!(idle.deadline(), Deadline::NEVER);
    }
}
