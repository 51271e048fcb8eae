//! Queues that have messages to give up, and whether it is worth while to ask them again; which messages,
//! stands in `shed`.
//!
//! Always true: a queue is on the list once; when none of them could give up anything, they are asked again
//! only when room was made since, or a message that they wait for was read back.

use std::collections::VecDeque;

use crate::work::Work;
use leveret_core::command::QueueId;

/// Units of work that make one more step.
const UNITS_PER_STEP: u32 = 16;

/// Queues that have messages to give up, and how far they were asked in vain.
#[derive(Debug)]
pub(crate) struct Shedding {
    queues: VecDeque<QueueId>,
    /// Queues asked in a row that could give up nothing, since the last change they may wait for.
    stuck: usize,
    /// The count of room made when a queue was asked last.
    room_seen: u64,
    /// The count of room made when no queue could give up anything.
    stuck_at: Option<u64>,
}

impl Shedding {
    pub(crate) fn with_capacity(queues: usize) -> Self {
        Self { queues: VecDeque::with_capacity(queues), stuck: 0, room_seen: 0, stuck_at: None }
    }

    pub(crate) fn len(&self) -> usize {
        self.queues.len()
    }

    /// Whether some queues are to be asked, with this count of room made.
    pub(crate) fn is_due(&self, room_made: impl FnOnce() -> u64) -> bool {
        !self.queues.is_empty() && self.stuck_at.is_none_or(|stuck_at| stuck_at != room_made())
    }

    pub(crate) fn push(&mut self, queue: QueueId) {
        self.queues.push_back(queue);
    }

    pub(crate) fn pop(&mut self) -> Option<QueueId> {
        self.queues.pop_front()
    }

    /// Notes a change that queues may wait for: those asked before are asked again.
    pub(crate) const fn note_change(&mut self) {
        self.stuck_at = None;
        self.stuck = 0;
    }

    /// Begins to ask queues, with this count of room made.
    pub(crate) const fn begin(&mut self, room_made: u64) {
        if room_made != self.room_seen {
            self.stuck = 0;
        }
    }

    /// Notes that a queue was asked; says whether it gave up anything.
    pub(crate) const fn note_step(&mut self, has_shed: bool) {
        self.stuck = if has_shed { 0 } else { self.stuck + 1 };
    }

    /// Ends the asking of a turn, with this count of room made.
    pub(crate) fn end(&mut self, room_made: u64) {
        self.room_seen = room_made;
        self.stuck_at = (self.stuck >= self.queues.len()).then_some(room_made);
        if self.stuck_at.is_some() {
            self.stuck = 0;
        }
    }

    /// Takes a deleted queue off the list.
    pub(crate) fn forget(&mut self, queue: QueueId) {
        self.queues.retain(|other| *other != queue);
    }
}

/// Takes one step off those left, or several if the message was more work than usual: large bodies are
/// copied, and letters routed.
pub(crate) const fn take_step(left: &mut u32, units_before: u32, work: &Work) {
    let units = work.units().saturating_sub(units_before);
    *left = left.saturating_sub(1 + units / UNITS_PER_STEP);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Asks, in vain, as many queues as a turn has time for; says whether more are to be asked.
    fn turn(list: &mut Shedding, room_made: u64) -> bool {
        list.begin(room_made);
        for _ in 0..64 {
            let queue = list.pop().expect("a queue");
            list.push(queue);
            list.note_step(false);
        }
        list.end(room_made);
        list.is_due(|| room_made)
    }

    /// A change between two turns of a round concerns the queues that were asked in the first.
    #[test]
    fn who_was_asked_before_a_change_is_asked_again() {
        let mut list = Shedding::with_capacity(100);
        (0..100).for_each(|index| list.push(QueueId::from_index(index)));
        assert_eq!([turn(&mut list, 1), turn(&mut list, 1)], [true, false], "nothing changed");
        list.note_change();
        assert!(turn(&mut list, 1));
        list.note_change();
        assert_eq!([turn(&mut list, 1), turn(&mut list, 1)], [true, false], "all were asked after it");
        assert_eq!([turn(&mut list, 2), turn(&mut list, 3)], [true; 2], "room was made before each");
        assert!(!turn(&mut list, 3));
    }
}
