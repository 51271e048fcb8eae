//! The ready list: queues that can deliver now.
//!
//! Always true: a queue is on the ready list exactly when it has a message, a consumer that can take it, and nothing
//! that has to come first; a queue with priorities is on it itself, never a level of it.

use super::record::{Front, Rank};
use super::records::Records;
use leveret_core::command::QueueId;

impl Records {
    /// Takes the next queue that has something to deliver off the ready list.
    #[inline]
    pub(crate) fn pop_ready(&mut self) -> Option<QueueId> {
        let queue = self.ready.pop_front(&mut self.slab, |queue| &mut queue.listed.ready_links)?;
        self.slab[queue].listed.is_ready = false;
        Some(QueueId::from_index(queue))
    }

    /// Whether some queue can deliver now.
    #[inline]
    pub(crate) const fn is_any_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Puts a queue on the ready list if it can deliver now.
    pub(crate) fn wake(&mut self, queue: QueueId) {
        let record = &mut self.slab[queue.index()];
        if record.listed.is_ready {
            return;
        }
        if record.wants_delivery() {
            record.listed.is_ready = true;
            self.ready.push_back(&mut self.slab, queue.index(), |queue| &mut queue.listed.ready_links);
        } else if record.rank != Rank::Plain {
            self.wake_queue_of_level(queue);
        }
    }

    /// Puts the queue of a level on the ready list if it can deliver now, because a message came, or may go.
    #[cold]
    pub(crate) fn wake_queue_of_level(&mut self, queue: QueueId) {
        let queue = self.queue_of_level(queue);
        if !self.slab[queue.index()].listed.is_ready && self.level_to_deliver(queue).is_some() {
            self.slab[queue.index()].listed.is_ready = true;
            self.ready.push_back(&mut self.slab, queue.index(), |queue| &mut queue.listed.ready_links);
        }
    }

    /// Notes that a job begins to requeue messages of a queue: until the job is done nothing is delivered
    /// from it.
    pub(crate) fn begin_returning(&mut self, queue: QueueId) {
        self.slab[queue.index()].returning += 1;
    }

    /// The queue itself if it can deliver now, or the level of it that can.
    #[inline(always)]
    pub(crate) fn wanted_level(&self, queue: QueueId) -> Option<QueueId> {
        let record = &self.slab[queue.index()];
        match record.wants_delivery() {
            true => Some(queue),
            false if record.rank == Rank::Plain => None,
            false => self.level_to_deliver(queue),
        }
    }

    /// The level of a queue with priorities whose first message can be delivered now, if any.
    #[cold]
    pub(crate) fn level_to_deliver(&self, queue: QueueId) -> Option<QueueId> {
        let whole = &self.slab[queue.index()];
        let level = self.first_level(queue);
        let first = &self.slab[level.index()];
        let may_go = first.backlog.ready() > 0 && first.returning == 0 && first.front == Front::Free;
        let is_wanted = whole.audience.is_ready() && whole.returning == 0 && !whole.dying;
        (may_go && is_wanted).then_some(level)
    }

    /// A queue that can deliver now and is not on the ready list, so that nobody would look at it.
    #[cfg(debug_assertions)]
    pub(crate) fn forgotten_queue(&self) -> Option<usize> {
        let wants = |index: usize| self.wanted_level(QueueId::from_index(index)).is_some();
        let mut queues = self.slab.iter().filter(|(_, queue)| !queue.listed.is_ready && !queue.is_level());
        queues.find(|(index, _)| wants(*index)).map(|(index, _)| index)
    }
}
