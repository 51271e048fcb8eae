//! How much comes in that is to be forwarded: what an operator wants to know of an outage before there is one.
//!
//! Always true: counters of queues only rise while a queue is there.

/// Messages that came into the queues of a bridge.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Inflow {
    /// What their counters say altogether, when that was looked at last.
    counted: u64,
    /// This day, until then.
    today: u64,
    yesterday: u64,
}

impl Inflow {
    /// The queues' counters say so much; they begin again when a queue does.
    pub const fn note(&mut self, counted: u64) {
        self.today = self.today.saturating_add(counted.saturating_sub(self.counted));
        self.counted = counted;
    }

    /// The counters say so much already, and that is nothing that came.
    pub const fn begin(&mut self, counted: u64) {
        self.counted = counted;
    }

    /// Another day begins.
    pub const fn end_day(&mut self) {
        (self.yesterday, self.today) = (self.today, 0);
    }

    /// What [`Self::note`] was last told.
    pub const fn counted(&self) -> u64 {
        self.counted
    }

    /// What is to be written down: of this day and of the one before.
    pub const fn numbers(&self) -> [u64; 2] {
        [self.today, self.yesterday]
    }

    /// Goes on with what was.
    pub const fn restore(&mut self, [today, yesterday]: [u64; 2]) {
        (self.today, self.yesterday) = (today, yesterday);
    }

    /// Messages, and the milliseconds in which they came; `gone_ms`: of this day.
    pub const fn span(&self, gone_ms: u64) -> (u64, u64) {
        match self.yesterday {
            0 => (self.today, gone_ms),
            yesterday => (self.today + yesterday, gone_ms + super::day_budget::DAY_MS),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_is_counted_by_days_over_restarts_and_new_queues() {
        let mut inflow = Inflow::default();
        inflow.begin(500);
        inflow.note(600);
        inflow.note(30);
        inflow.note(50);
        assert_eq!((inflow.numbers(), inflow.span(7)), ([120, 0], (120, 7)), "a queue was deleted between");
        inflow.end_day();
        inflow.note(51);
        assert_eq!(inflow.span(7), (121, 86_400_007));
        let mut after = Inflow::default();
        after.restore(inflow.numbers());
        after.begin(9);
        after.note(10);
        assert_eq!(after.numbers(), [2, 120]);
        after.end_day();
        assert_eq!(after.numbers(), [0, 2]);
    }
}
