//! Queues with priorities: a level for each priority that messages came with.
//!
//! ```text
//! queue, x-max-priority 9 ── highest ──→ level 9 ── below ──→ level 4 ── below ──→ the queue itself: 0
//! ```
//!
//! Why it exists: a level is a queue record of its own, so that nothing done with its messages (order, log,
//! memory, requeueing, expiry) knows of priorities. Questions about the whole queue are answered here: which
//! message goes first, how many there are in all.
//!
//! Always true: a level has no name, no consumer and no binding, is shown nowhere, and goes with its queue;
//! the levels of a queue stand on its chain, from the highest down to the queue itself, which is the lowest.
//! The log knows levels by numbers that were kept for them when the queue was declared, so that nothing is to
//! be written when the first message of a priority comes. Where there is no room for a level, its messages go
//! to the next lower one.

use super::queue::{Front, Queue, Rank};
use super::state::Queues;
use crate::broker::work::Work;
use crate::command::QueueId;

/// Levels walked through that are as much work as one step.
const LEVELS_PER_UNIT: u32 = 16;

impl Queues {
    /// The queue that this is a level of; a queue without priorities is its own.
    #[inline]
    pub(crate) fn whole(&self, queue: QueueId) -> QueueId {
        match self.slab[queue.index()].rank {
            Rank::Level { queue, .. } => queue,
            Rank::Plain | Rank::Lowest { .. } => queue,
        }
    }

    /// The record of the queue that this is a level of; a queue without priorities is its own.
    #[inline]
    pub(crate) fn whole_of(&self, queue: QueueId) -> &Queue {
        self.at(self.whole(queue))
    }

    /// The levels of a whole queue, from the highest on; a queue without priorities is its only level.
    pub(crate) fn levels(&self, queue: QueueId) -> impl Iterator<Item = QueueId> {
        core::iter::successors(Some(self.highest_level(queue)), |level| {
            self.levels_walked.set(self.levels_walked.get().saturating_add(1));
            self.below(*level)
        })
    }

    pub(super) fn highest_level(&self, queue: QueueId) -> QueueId {
        match self.slab[queue.index()].rank {
            Rank::Lowest { highest: Some(highest), .. } => highest,
            Rank::Plain | Rank::Lowest { highest: None, .. } | Rank::Level { .. } => queue,
        }
    }

    pub(super) fn below(&self, level: QueueId) -> Option<QueueId> {
        match self.slab[level.index()].rank {
            Rank::Level { below, .. } => Some(below),
            Rank::Plain | Rank::Lowest { .. } => None,
        }
    }

    /// Notes that the places of the queue's messages, on all levels, are told to another broker from now on.
    #[cold]
    pub(crate) fn note_named(&mut self, queue: QueueId) {
        let mut at = Some(self.highest_level(queue));
        while let Some(level) = at {
            self.slab[level.index()].is_named = true;
            at = self.below(level);
        }
    }

    /// The sum over all levels of the queue that this is, or is a level of.
    #[inline]
    pub(crate) fn in_all(&self, queue: QueueId, of: impl Fn(&Queue) -> u64) -> u64 {
        let record = &self.slab[queue.index()];
        if record.rank == Rank::Plain {
            return of(record);
        }
        self.levels(self.whole(queue)).map(|level| of(&self.slab[level.index()])).sum()
    }

    /// Ready messages of a queue, on all its levels.
    #[inline]
    pub(crate) fn ready_in(&self, queue: QueueId) -> u32 {
        self.in_all(queue, |record| record.backlog.ready().into()) as u32
    }

    /// Ready messages, on all levels, that go before a new message of this level.
    pub(crate) fn ready_before(&self, level: QueueId) -> u32 {
        let mut before = 0;
        for higher in self.levels(self.whole(level)) {
            before += self.slab[higher.index()].backlog.ready();
            if higher == level {
                break;
            }
        }
        before
    }

    /// Charges the levels that were walked through since this was last called.
    #[inline]
    pub(crate) fn charge_levels(&self, work: &mut Work) {
        work.charge((self.levels_walked.take() / LEVELS_PER_UNIT) as usize);
    }

    /// The highest level of a whole queue that has a message; the queue itself if none has.
    #[inline]
    pub(crate) fn first_level(&self, queue: QueueId) -> QueueId {
        if self.slab[queue.index()].rank == Rank::Plain {
            return queue;
        }
        let mut levels = self.levels(queue);
        levels.find(|level| self.slab[level.index()].backlog.ready() > 0).unwrap_or(queue)
    }

    /// The level of a whole queue with priorities whose first message can be delivered now, if any.
    #[cold]
    pub(crate) fn level_to_deliver(&self, queue: QueueId) -> Option<QueueId> {
        let whole = &self.slab[queue.index()];
        let level = self.first_level(queue);
        let first = &self.slab[level.index()];
        let may_go = first.backlog.ready() > 0 && first.returning == 0 && first.front == Front::Free;
        let is_wanted = whole.audience.is_ready() && whole.returning == 0 && !whole.dying;
        (may_go && is_wanted).then_some(level)
    }

    /// Whether the first message of this level is the first of its queue.
    pub(crate) fn is_first_level(&self, level: QueueId) -> bool {
        self.slab[level.index()].rank == Rank::Plain || self.first_level(self.whole(level)) == level
    }

    pub(super) fn priority_of(&self, level: QueueId) -> u8 {
        match self.slab[level.index()].rank {
            Rank::Level { priority, .. } => priority,
            Rank::Plain | Rank::Lowest { .. } => 0,
        }
    }
}
