//! Queues that have to give up something, and whether it is worth while to ask them again; what they give up
//! stands in `shed`.
//!
//! Always true: a queue is on the list once; when none of them could give up anything, they are asked again
//! only when room was made since, or something that they wait for was read back.

use std::collections::VecDeque;

use crate::command::QueueId;

use crate::broker::work::Work;

/// As many units of work are a step more.
const UNITS_PER_STEP: u32 = 16;

/// The list, and how far it was gone through in vain.
#[derive(Debug)]
pub(crate) struct Shedding {
    queues: VecDeque<QueueId>,
    /// How many in a row could give up nothing, since something changed that they may wait for.
    stuck: usize,
    /// What the count of room made was when some were asked last.
    room_seen: u64,
    /// What the count of room made was when all of them could give up nothing.
    stuck_at: Option<u64>,
}

impl Shedding {
    pub(crate) fn with_capacity(queues: usize) -> Self {
        Self { queues: VecDeque::with_capacity(queues), stuck: 0, room_seen: 0, stuck_at: None }
    }

    pub(crate) fn len(&self) -> usize {
        self.queues.len()
    }

    /// Whether some of them are to be asked, when so much room was made.
    pub(crate) fn is_due(&self, room_made: impl FnOnce() -> u64) -> bool {
        !self.queues.is_empty() && self.stuck_at.is_none_or(|stuck_at| stuck_at != room_made())
    }

    pub(crate) fn push(&mut self, queue: QueueId) {
        self.queues.push_back(queue);
    }

    pub(crate) fn pop(&mut self) -> Option<QueueId> {
        self.queues.pop_front()
    }

    /// Something happened that they may wait for: who was asked before is to be asked again.
    pub(crate) const fn note_change(&mut self) {
        self.stuck_at = None;
        self.stuck = 0;
    }

    /// Some are asked, and so much room was made by now.
    pub(crate) const fn begin(&mut self, room_made: u64) {
        if room_made != self.room_seen {
            self.stuck = 0;
        }
    }

    /// One of them was asked; says whether something came of it.
    pub(crate) const fn note_step(&mut self, has_shed: bool) {
        self.stuck = if has_shed { 0 } else { self.stuck + 1 };
    }

    /// So many were asked as there is time for, and so much room was made by now.
    pub(crate) fn end(&mut self, room_made: u64) {
        self.room_seen = room_made;
        self.stuck_at = (self.stuck >= self.queues.len()).then_some(room_made);
        if self.stuck_at.is_some() {
            self.stuck = 0;
        }
    }

    /// The queue is no more.
    pub(crate) fn forget(&mut self, queue: QueueId) {
        self.queues.retain(|other| *other != queue);
    }
}

/// A step was taken, which was more than one if it was more work than a message usually is: large bodies are
/// copied, and letters routed.
pub(crate) const fn take_step(left: &mut u32, units_before: u32, work: &Work) {
    let units = work.units().saturating_sub(units_before);
    *left = left.saturating_sub(1 + units / UNITS_PER_STEP);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Asks as many as a turn has time for, in vain; whether more are to be asked.
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

    /// A change between two turns of a round concerns those that were asked in the first.
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
