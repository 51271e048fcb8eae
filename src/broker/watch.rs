//! When to look for deliveries and transactions that are overdue; the look itself is `Broker::next_overdue`.
//!
//! Most queues go by the consumer timeout of the configuration; where a queue has a shorter one of its own,
//! looks are as frequent as the shortest of all asks for, so that a delivery need not know when it will be
//! overdue.
//!
//! Always true: there is no look before a delivery may be overdue, seen by the last look or made after it.

/// The least time between two looks, in seconds.
const LOOK_EVERY_S: u32 = 60;

/// When to look for overdue deliveries, and how far a look has come.
#[derive(Debug)]
pub(crate) struct Watch {
    /// How long a delivery may be unsettled, in milliseconds, unless its queue has a timeout; 0 is for ever.
    pub(crate) timeout_ms: u32,
    /// The shortest of all timeouts so far, in milliseconds; 0 when all are for ever.
    shortest_ms: u32,
    /// The second of this turn, since the start of the process.
    pub(crate) now_s: u32,
    /// When to look for overdue deliveries next, in seconds of broker time.
    pub(crate) look_s: Option<u32>,
    /// The place of the channel where the look under way goes on.
    pub(crate) hand: usize,
    /// When the first delivery that the look under way has seen will be overdue, in seconds.
    first_s: Option<u32>,
    /// Channels that may still be looked at in this turn.
    pub(crate) left: u32,
}

impl Watch {
    pub(crate) const fn new(timeout_ms: u32) -> Self {
        let shortest_ms = timeout_ms;
        Self { timeout_ms, shortest_ms, now_s: 0, look_s: None, hand: 0, first_s: None, left: 0 }
    }

    /// Notes the consumer timeout of a queue; the largest number is none.
    pub(crate) fn note_timeout(&mut self, timeout_ms: u32) {
        if timeout_ms == 0 || timeout_ms == u32::MAX || self.shortest_ms > 0 && timeout_ms >= self.shortest_ms
        {
            return;
        }
        self.shortest_ms = timeout_ms;
        let next_s = overdue_s(self.now_s, timeout_ms);
        self.look_s = Some(self.look_s.map_or(next_s, |look_s| look_s.min(next_s)));
    }

    /// Notes that a delivery, or a message of a transaction, is held from now on; gives the time, in seconds.
    pub(crate) const fn begin(&mut self) -> u32 {
        if self.look_s.is_none() && self.shortest_ms > 0 {
            self.look_s = Some(overdue_s(self.now_s, self.shortest_ms));
        }
        self.now_s
    }

    /// Notes a delivery or transaction that the look has seen, held since `since_s` for `timeout_ms` at most;
    /// says whether it is overdue.
    pub(crate) fn is_overdue(&mut self, since_s: u32, timeout_ms: u32) -> bool {
        let at_s = overdue_s(since_s, timeout_ms);
        let is_for_ever = timeout_ms == 0;
        if !is_for_ever {
            self.first_s = Some(self.first_s.map_or(at_s, |first_s| first_s.min(at_s)));
        }
        !is_for_ever && at_s <= self.now_s
    }

    /// Ends a look, and sets the time of the next.
    pub(crate) fn end(&mut self) {
        let pause_s = LOOK_EVERY_S.min(self.shortest_ms.div_ceil(1000));
        // Deliveries from now on were not seen by this look.
        let next_s = |first_s: u32| first_s.min(overdue_s(self.now_s, self.shortest_ms));
        self.look_s = self.first_s.map(|first_s| next_s(first_s).max(self.now_s.saturating_add(pause_s)));
        self.first_s = None;
        self.hand = 0;
    }
}

/// The first second in which a delivery held since `since_s` is overdue: both times are cut off, so one
/// second later.
const fn overdue_s(since_s: u32, timeout_ms: u32) -> u32 {
    since_s.saturating_add(timeout_ms.div_ceil(1000)).saturating_add(1)
}
