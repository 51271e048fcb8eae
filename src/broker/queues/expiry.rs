//! When to look at which queue for expired messages; the look itself stands in `expire`.
//!
//! Always true: a queue has at most one time that counts, that of its record; other times in the list are
//! passed over when they come; the list never grows beyond half as many again as there can be queues.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use leveret_core::command::QueueId;

/// A time in two halves, the high one first (a u64 would need padding), and the queue it is for.
type Time = (u32, u32, QueueId);

/// The times at which queues are looked at, the earliest first.
#[derive(Debug)]
pub(crate) struct Expiry {
    times: BinaryHeap<Reverse<Time>>,
    most: usize,
}

fn time(at_ms: u64, queue: QueueId) -> Reverse<Time> {
    Reverse(((at_ms >> 32) as u32, at_ms as u32, queue))
}

impl Expiry {
    /// Bytes of the list for each queue that the broker may have.
    pub(crate) const QUEUE_BYTES: usize = size_of::<Reverse<Time>>() * 3 / 2;

    pub(crate) fn with_capacity(queues: usize) -> Self {
        let most = queues * 3 / 2;
        Self { times: BinaryHeap::with_capacity(most), most }
    }

    /// The earliest time in the list, in milliseconds of broker time; its queue may have another by now.
    pub(crate) fn next_ms(&self) -> Option<u64> {
        self.times.peek().map(|Reverse((high, low, _))| u64::from(*high) << 32 | u64::from(*low))
    }

    /// Adds a time for a queue; when the list is full, it is made anew of `all`, the times that count, the
    /// new one included.
    pub(crate) fn add<I>(&mut self, at_ms: u64, queue: QueueId, all: impl FnOnce() -> I)
    where
        I: Iterator<Item = (u64, QueueId)>,
    {
        if self.times.len() < self.most {
            self.times.push(time(at_ms, queue));
        } else {
            self.times.clear();
            all().for_each(|(at_ms, queue)| self.times.push(time(at_ms, queue)));
        }
    }

    /// The earliest time with its queue.
    pub(crate) fn first(&self) -> Option<(u64, QueueId)> {
        self.next_ms().zip(self.times.peek().map(|Reverse((.., queue))| *queue))
    }

    /// Takes off the next queue whose time has come.
    pub(crate) fn pop(&mut self, now_ms: u64) -> Option<(u64, QueueId)> {
        let at_ms = self.next_ms().filter(|at_ms| *at_ms <= now_ms)?;
        self.times.pop().map(|Reverse((.., queue))| (at_ms, queue))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each queue comes out at its time and none twice, however often times change, within the room there is.
    #[test]
    fn times_that_move_take_no_more_room_and_none_is_lost() {
        const QUEUES: usize = 20;
        let mut due = [u64::MAX; QUEUES];
        let mut expiry = Expiry::with_capacity(QUEUES);
        let room = expiry.times.capacity();
        let mut random = 1_u64;
        for now in 0..20_000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let (queue, at) = ((random >> 33) as usize % QUEUES, now + 1 + (random >> 40) % 300);
            if at < due[queue] {
                due[queue] = at;
                let all = due.iter().enumerate().filter(|(_, at)| **at != u64::MAX);
                let all = || all.map(|(queue, at)| (*at, QueueId::from_index(queue)));
                expiry.add(at, QueueId::from_index(queue), all);
            }
            while let Some((at, queue)) = expiry.pop(now) {
                if due[queue.index()] == at {
                    due[queue.index()] = u64::MAX;
                }
            }
            assert!(due.iter().all(|at| *at > now), "one was passed over");
            assert_eq!(expiry.times.capacity(), room);
        }
    }
}
