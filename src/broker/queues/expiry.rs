//! When to look at which queue for expired messages; the look itself stands in `expire`.
//!
//! Always true: a queue has at most one time that counts, that of its record; other times in the list are
//! passed over when they come; the list never grows beyond half as many again as there can be queues.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use leveret_core::command::QueueId;
use leveret_core::journal::Journal;

use super::Queues;
use crate::queue::Peeked;

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

// When to look at which queue: to give messages up, to read messages back, or because something expires.
//
// Always true: whoever changes what a queue waits for puts it on the list where somebody looks.

impl Queues {
    // ---- deliveries

    /// Notes that a job has requeued all its messages of a queue: once no other job does, its first message is the
    /// right one again.
    pub(crate) fn end_returning(&mut self, queue: QueueId) {
        let record = &mut self.records[queue];
        record.returning -= 1;
        if record.settings.may_expire {
            self.note_shed_anew(queue);
        }
        self.gets.note_change();
        self.records.wake(queue);
    }

    /// Looks at a queue with priorities of which messages went: its first message may have to expire, or may
    /// go where the first before had to wait.
    #[cold]
    pub(crate) fn look_at_first_level(&mut self, queue: QueueId) {
        let whole = self.records.queue_of_level(queue);
        let first = self.records.first_level(whole);
        if self.records[first].settings.may_expire {
            self.note_shed_anew(first);
        }
        self.records.wake(whole);
    }

    // ---- messages given up

    /// Notes that a queue has messages to give up that it cannot give up now, or not all at once.
    pub(crate) fn note_shed(&mut self, queue: QueueId) {
        if !core::mem::replace(&mut self.records[queue].listed.is_shedding, true) {
            self.shedding.push(queue);
            self.shedding.note_change();
        }
    }

    /// Notes that a queue has further messages to give up: it may be on the list already, for rejected
    /// messages without room, which says nothing of these.
    pub(crate) fn note_shed_anew(&mut self, queue: QueueId) {
        self.note_shed(queue);
        self.shedding.note_change();
    }

    /// Bytes of the log that publishers leave free for dead letters. A letter takes room before its message
    /// gives any, and a log full of messages that have to go on would be full for ever.
    pub(crate) fn kept_for_letters(&self, journal: &Journal) -> u64 {
        match self.records.has_dead_lettering() {
            false => 0,
            true => journal.kept_for_letters(self.settings.letters_log_bytes),
        }
    }

    // ---- messages read back

    /// Asks that messages at the front of the middle be read back.
    pub(crate) fn want_pages(&mut self, queue: QueueId) {
        let record = &mut self.records[queue];
        if record.times.peeked.is_wanted() {
            record.times.peeked = Peeked::NOTHING;
        }
        if !core::mem::replace(&mut record.listed.is_fetching, true) {
            self.paging.want(queue);
        }
    }

    /// Asks for the expiry of the first message, which only the log has.
    #[cold]
    pub(crate) fn want_peek(&mut self, queue: QueueId) {
        if !self.records[queue].listed.is_fetching {
            self.want_pages(queue);
            self.records[queue].times.peeked = Peeked::WANTED;
        }
    }

    // ---- times

    /// When the next message or queue may expire, or a delayed message is due, in milliseconds of broker
    /// time.
    pub fn next_expiry_ms(&self) -> Option<u64> {
        [self.expiry.next_ms(), self.delay_wheel.next_ms()].into_iter().flatten().min()
    }

    /// Schedules a look at the queue at this time, if none comes before.
    #[cold]
    pub(super) fn note_due(&mut self, queue: QueueId, at_ms: u64) {
        let record = &mut self.records[queue];
        if at_ms < record.times.due_ms {
            record.times.due_ms = at_ms;
            let queues = &self.records;
            self.expiry.add(at_ms, queue, || {
                let all = queues.iter().filter(|(_, record)| record.delayed_exchange.is_none());
                let all = all.map(|(index, record)| (record.times.due_ms, QueueId::from_index(index)));
                all.filter(|(at, _)| *at != u64::MAX)
            });
        }
    }

    /// Notes that a client used the queue, so that it expires later.
    #[cold]
    pub(crate) fn touch_queue(&mut self, journal: &Journal, queue: QueueId) {
        let record = &mut self.records[queue];
        if record.settings.expires() && !record.dying {
            record.times.unused_until_ms = journal.time_ms().saturating_add(record.settings.expires_ms);
            let due_ms = self.records.unused_until_ms(journal, queue);
            self.note_due(queue, due_ms);
        }
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
