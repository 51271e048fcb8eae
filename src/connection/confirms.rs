//! Publisher confirms of one channel, as state: which numbers may be told, not bytes that tell them.
//!
//! Why it exists: a publisher that sends a million messages and reads none of its confirms must cost no more
//! than one that sends none. Neighbouring confirms of one kind are one [`Run`], told by one frame with
//! `multiple`, however long it has grown when there is room on the wire.
//!
//! ```text
//!   numbers   1 2 3 4 5 6 7 8 9 10 11
//!             |told|  run  | run |    |
//!              up to  ack   nack   next: 11
//!              told   ..7   ..10
//! ```
//!
//! Always true: runs follow each other without gaps, from `told` on; a run is told only after every return
//! put into the outbox before it (its order) is written and everything in it is durable; a run at the front
//! never grows later in order or batch, so it cannot be overtaken for ever.

use leveret_amqp::Method;
use leveret_core::command::ReplyOrder;
use leveret_core::journal::Batch;

/// Confirms of one kind that follow each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Run {
    /// The last number in it; the first is the one after the run before.
    pub(super) upto: u64,
    /// Every delivery up to this sequence goes before it.
    pub(super) order: ReplyOrder,
    /// Everything in it is durable when this batch is.
    pub(super) batch: Batch,
    /// Refused (basic.nack) instead of taken (basic.ack).
    pub(super) refused: bool,
}

const RUNS_MAX: usize = 5;

/// The numbering of one channel.
#[derive(Clone, Debug, Default)]
pub(super) struct Confirms {
    /// The number of the next publish; 0 while the channel is not in confirm mode.
    next: u64,
    /// Everything up to this number has been written.
    told: u64,
    runs: heapless::Vec<Run, RUNS_MAX>,
}

impl Confirms {
    /// confirm.select: later publishes are numbered, from 1. A second one changes nothing.
    pub(super) fn select(&mut self) {
        self.next = self.next.max(1);
    }

    /// Whether a further publish can be numbered; there is not when its answer might need a run that has no
    /// place.
    pub(super) fn has_room(&self) -> bool {
        self.next == 0 || !self.runs.is_full()
    }

    /// The next publish was taken care of, durably so when `batch` is durable. Says whether there is
    /// something to tell.
    pub(super) fn settle(&mut self, refused: bool, order: ReplyOrder, batch: Batch) -> bool {
        if self.next == 0 {
            return false;
        }
        let upto = self.next;
        self.next += 1;
        let nearly_full = self.runs.len() + 1 >= RUNS_MAX;
        match self.runs.last_mut() {
            Some(last)
                if last.refused == refused && (order <= last.order && batch <= last.batch || nearly_full) =>
            {
                last.upto = upto;
                last.order = last.order.max(order);
                last.batch = last.batch.max(batch);
            }
            _ => {
                let pushed = self.runs.push(Run { upto, order, batch, refused });
                assert!(pushed.is_ok(), "has_room was asked before the publish began");
            }
        }
        true
    }

    /// The run to be told next.
    pub(super) fn front(&self) -> Option<Run> {
        self.runs.first().copied()
    }

    /// Takes the front run to send it; also returns the number confirmed before it.
    pub(super) fn take(&mut self) -> Option<(Run, u64)> {
        let run = self.front()?;
        self.runs.remove(0);
        Some((run, core::mem::replace(&mut self.told, run.upto)))
    }

    /// Drops the runs from the first on that waits for a delivery or for the disk.
    pub(super) fn drop_waiting(&mut self, durable: Batch) {
        let kept = self.runs.iter().take_while(|run| run.order == 0 && run.batch <= durable).count();
        self.runs.truncate(kept);
    }

    /// Drops the runs from the first on that waits for the disk.
    pub(super) fn drop_stored_later(&mut self, durable: Batch) {
        let kept = self.runs.iter().take_while(|run| run.batch <= durable).count();
        self.runs.truncate(kept);
    }
}

impl Run {
    /// How many messages it says are taken, when everything up to `told_before` was told.
    pub(super) const fn taken_after(self, told_before: u64) -> u64 {
        if self.refused { 0 } else { self.upto - told_before }
    }

    /// The method that tells it, when everything up to `told_before` was told.
    pub(super) fn method(self, told_before: u64) -> Method<'static> {
        let (delivery_tag, multiple) = (self.upto, self.upto - told_before > 1);
        if self.refused {
            Method::BasicNack { delivery_tag, multiple, requeue: false }
        } else {
            Method::BasicAck { delivery_tag, multiple }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(confirms: &mut Confirms) -> Vec<Method<'static>> {
        core::iter::from_fn(|| confirms.take().map(|(run, before)| run.method(before))).collect()
    }

    const fn ack(delivery_tag: u64, multiple: bool) -> Method<'static> {
        Method::BasicAck { delivery_tag, multiple }
    }

    const fn nack(delivery_tag: u64, multiple: bool) -> Method<'static> {
        Method::BasicNack { delivery_tag, multiple, requeue: false }
    }

    #[test]
    fn neighbours_of_one_kind_are_told_together() {
        let mut confirms = Confirms::default();
        assert!(!confirms.settle(false, 0, Batch::NONE) && confirms.has_room());
        confirms.select();
        confirms.select();
        for refused in [false, false, false, true, false] {
            assert!(confirms.has_room() && confirms.settle(refused, 0, Batch::NONE));
        }
        assert_eq!(told(&mut confirms), [ack(3, true), nack(4, false), ack(5, false)]);
        confirms.settle(true, 0, Batch::NONE);
        confirms.settle(true, 0, Batch::NONE);
        assert_eq!(told(&mut confirms), [nack(7, true)]);
    }

    #[test]
    fn a_run_that_waits_for_its_returns_keeps_its_place_while_others_come() {
        let mut confirms = Confirms::default();
        confirms.select();
        for order in 1..=100 {
            assert!(confirms.has_room());
            confirms.settle(false, order, Batch::NONE);
        }
        let orders: Vec<(u64, u64)> =
            core::iter::from_fn(|| confirms.take().map(|(run, _)| (run.upto, run.order))).collect();
        assert_eq!(orders, [(1, 1), (2, 2), (3, 3), (100, 100)]);
    }
}
