//! The acknowledgement timeout: when to check for overdue deliveries and transactions. `Broker::next_overdue`
//! does the check.
//!
//! Most queues use the configured consumer timeout. If a queue has a shorter one, the checks are as frequent
//! as the shortest timeout requires, so that a delivery need not know when it will be overdue.
//!
//! # Invariants
//! - There is no check before a delivery may be overdue, whether the last check saw it or it was made
//!   afterwards.

/// Minimum time between two checks, in seconds.
const CHECK_INTERVAL_MIN_S: u32 = 60;

/// When to check for overdue deliveries, and the progress of the current check.
#[derive(Debug)]
pub(crate) struct AcknowledgementTimeout {
    /// How long a delivery may be unsettled, in milliseconds, unless its queue has a timeout; 0 is unlimited.
    pub(crate) timeout_ms: u32,
    /// The shortest of all timeouts so far, in milliseconds; 0 when all are unlimited.
    shortest_ms: u32,
    /// Second of this turn since the start of the process.
    pub(crate) now_s: u32,
    /// When to check for overdue deliveries next, in seconds of broker time.
    pub(crate) next_check_s: Option<u32>,
    /// Place of the channel where the current check continues.
    pub(crate) next_place: usize,
    /// When the first delivery that the current check has seen will be overdue, in seconds.
    first_s: Option<u32>,
    /// Number of channels that may still be checked in this turn.
    pub(crate) left: u32,
}

impl AcknowledgementTimeout {
    pub(crate) const fn new(timeout_ms: u32) -> Self {
        let shortest_ms = timeout_ms;
        Self { timeout_ms, shortest_ms, now_s: 0, next_check_s: None, next_place: 0, first_s: None, left: 0 }
    }

    /// Notes the consumer timeout of a queue; `u32::MAX` is none.
    pub(crate) fn note_timeout(&mut self, timeout_ms: u32) {
        if timeout_ms == 0 || timeout_ms == u32::MAX || self.shortest_ms > 0 && timeout_ms >= self.shortest_ms
        {
            return;
        }
        self.shortest_ms = timeout_ms;
        let next_s = overdue_s(self.now_s, timeout_ms);
        self.next_check_s = Some(self.next_check_s.map_or(next_s, |next_check_s| next_check_s.min(next_s)));
    }

    /// Notes that a delivery, or a message of a transaction, is held from now on. Returns the time in
    /// seconds.
    pub(crate) const fn begin(&mut self) -> u32 {
        if self.next_check_s.is_none() && self.shortest_ms > 0 {
            self.next_check_s = Some(overdue_s(self.now_s, self.shortest_ms));
        }
        self.now_s
    }

    /// Notes a delivery or transaction seen by the check, held since `since_s` for at most `timeout_ms`.
    /// Returns whether it is overdue.
    pub(crate) fn is_overdue(&mut self, since_s: u32, timeout_ms: u32) -> bool {
        let at_s = overdue_s(since_s, timeout_ms);
        let is_for_ever = timeout_ms == 0;
        if !is_for_ever {
            self.first_s = Some(self.first_s.map_or(at_s, |first_s| first_s.min(at_s)));
        }
        !is_for_ever && at_s <= self.now_s
    }

    /// Ends a check, and sets the time of the next.
    pub(crate) fn end(&mut self) {
        let pause_s = CHECK_INTERVAL_MIN_S.min(self.shortest_ms.div_ceil(1000));
        // This check has not seen deliveries from now on.
        let next_s = |first_s: u32| first_s.min(overdue_s(self.now_s, self.shortest_ms));
        self.next_check_s =
            self.first_s.map(|first_s| next_s(first_s).max(self.now_s.saturating_add(pause_s)));
        self.first_s = None;
        self.next_place = 0;
    }
}

/// Returns the first second in which a delivery held since `since_s` is overdue. Both times are truncated, so
/// it is one second later.
const fn overdue_s(since_s: u32, timeout_ms: u32) -> u32 {
    since_s.saturating_add(timeout_ms.div_ceil(1000)).saturating_add(1)
}
