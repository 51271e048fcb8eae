//! Puts queues on the lists from which they are processed, and on the schedule of expiry times.
//!
//! | list | queues on it |
//! |---|---|
//! | trim list | queues with messages to remove (rejected, expired, or over a length limit), and expired queues |
//! | list of reads | queues with messages to be read back from the log |
//! | ready list | queues with a message and a consumer that can take it |
//!
//! # Invariants
//! - A queue has at most one valid time in the schedule: the one that is also in its record (`due_ms`). Outdated
//!   times are skipped when they are reached.
//! - The schedule never has more than 1.5 times as many entries as there can be queues.
//! - When a waiting queue may be able to continue, it is put on the list from which it is processed.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use leveret_core::command::QueueId;
use leveret_storage::PendingWrites;

use super::Queues;
use crate::records::PeekedExpiry;

/// A time as two halves, the high one first, and its queue. A `u64` would need 4 bytes of padding.
type Time = (u32, u32, QueueId);

/// The times at which queues are examined, the earliest first.
#[derive(Debug)]
pub struct QueueSchedule {
    times: BinaryHeap<Reverse<Time>>,
    entries_max: usize,
}

fn time(at_ms: u64, queue: QueueId) -> Reverse<Time> {
    Reverse(((at_ms >> 32) as u32, at_ms as u32, queue))
}

impl QueueSchedule {
    /// The memory of the schedule in bytes, divided by the maximum number of queues.
    pub const QUEUE_BYTES: usize = size_of::<Reverse<Time>>() * 3 / 2;

    /// Creates an empty schedule. It has at most 3/2 times as many entries as there are queues.
    pub fn with_capacity(queues: usize) -> Self {
        let entries_max = queues * 3 / 2;
        Self { times: BinaryHeap::with_capacity(entries_max), entries_max }
    }

    /// Returns the earliest time in the schedule, in milliseconds of broker time. The time may be outdated.
    pub fn next_ms(&self) -> Option<u64> {
        self.times.peek().map(|Reverse((high, low, _))| u64::from(*high) << 32 | u64::from(*low))
    }

    /// Adds a time for a queue. A full schedule is rebuilt from `all`, which returns the current times of all
    /// queues, the new one included.
    pub fn add<I>(&mut self, at_ms: u64, queue: QueueId, all: impl FnOnce() -> I)
    where
        I: Iterator<Item = (u64, QueueId)>,
    {
        if self.times.len() < self.entries_max {
            self.times.push(time(at_ms, queue));
        } else {
            self.times.clear();
            all().for_each(|(at_ms, queue)| self.times.push(time(at_ms, queue)));
        }
    }

    /// Returns the earliest time with its queue.
    pub fn first(&self) -> Option<(u64, QueueId)> {
        self.next_ms().zip(self.times.peek().map(|Reverse((.., queue))| *queue))
    }

    /// Removes and returns the earliest time and its queue, if that time has come.
    pub fn pop(&mut self, now_ms: u64) -> Option<(u64, QueueId)> {
        let at_ms = self.next_ms().filter(|at_ms| *at_ms <= now_ms)?;
        self.times.pop().map(|Reverse((.., queue))| (at_ms, queue))
    }
}

impl Queues {
    // ---- deliveries

    /// Notes that a job which blocks this queue has requeued or dropped all messages that it had from the queue.
    /// Delivery resumes when no other job blocks the queue.
    pub fn end_blocking_job(&mut self, queue: QueueId) {
        let record = &mut self.records[queue];
        record.blocking_jobs -= 1;
        if record.settings.may_expire {
            self.relist_for_trim(queue);
        }
        self.gets.note_change();
        self.records.wake(queue);
    }

    /// Examines a queue that has priorities, after messages were removed from one of its levels. The new first
    /// message may have to expire, or may be deliverable although the previous one was not.
    #[cold]
    pub fn examine_first_level(&mut self, level: QueueId) {
        let queue = self.records.queue_of_level(level);
        let first = self.records.first_level(queue);
        if self.records[first].settings.may_expire {
            self.relist_for_trim(first);
        }
        self.records.wake(queue);
    }

    // ---- removed messages

    /// Puts a queue with messages to remove on the trim list, unless it is there already.
    pub fn list_for_trim(&mut self, queue: QueueId) {
        if !core::mem::replace(&mut self.records[queue].listed.is_listed_for_trim, true) {
            self.trim_list.push(queue);
            self.trim_list.note_change();
        }
    }

    /// Puts a queue with further messages to remove on the trim list, and makes the list be processed again.
    ///
    /// The queue may be on the list already, and waiting for capacity for its dead letters.
    pub fn relist_for_trim(&mut self, queue: QueueId) {
        self.list_for_trim(queue);
        self.trim_list.note_change();
    }

    /// Returns the bytes of the log that publishers leave free for dead letters; 0 if no durable queue has a
    /// dead-letter exchange.
    ///
    /// A dead letter needs space in the log before the settlement of its original frees space. Without the
    /// reserve, a log full of messages to be dead-lettered would stay full forever.
    pub fn reserved_for_dead_letters(&self, pending_writes: &PendingWrites) -> u64 {
        match self.records.has_dead_lettering() {
            false => 0,
            true => pending_writes.reserved_for_dead_letters(self.settings.dead_letter_log_bytes),
        }
    }

    // ---- messages read back

    /// Requests that the first absent messages of a queue be read back.
    pub fn request_read(&mut self, queue: QueueId) {
        let record = &mut self.records[queue];
        if record.times.peeked.is_wanted() {
            record.times.peeked = PeekedExpiry::NOTHING;
        }
        if !core::mem::replace(&mut record.listed.is_fetching, true) {
            self.paging.want(queue);
        }
    }

    /// Requests a peek at the first message, which only the log has: its record is read to learn its expiry time.
    #[cold]
    pub(crate) fn request_peek(&mut self, queue: QueueId) {
        if !self.records[queue].listed.is_fetching {
            self.request_read(queue);
            self.records[queue].times.peeked = PeekedExpiry::WANTED;
        }
    }

    // ---- times

    /// Returns when the next message or queue may expire, or a delayed message is due, in milliseconds of
    /// broker time.
    pub fn next_expiry_ms(&self) -> Option<u64> {
        [self.schedule.next_ms(), self.delay_wheel.next_ms()].into_iter().flatten().min()
    }

    /// Schedules that the queue is examined at this time, unless it is scheduled earlier.
    #[cold]
    pub(super) fn note_due(&mut self, queue: QueueId, at_ms: u64) {
        let record = &mut self.records[queue];
        if at_ms < record.times.due_ms {
            record.times.due_ms = at_ms;
            let queues = &self.records;
            self.schedule.add(at_ms, queue, || {
                let all = queues.iter().filter(|(_, record)| record.delayed_exchange().is_none());
                let all = all.map(|(index, record)| (record.times.due_ms, QueueId::from_index(index)));
                all.filter(|(at, _)| *at != u64::MAX)
            });
        }
    }

    /// Notes that a client used the queue: the queue's own expiry time (`x-expires`) begins anew.
    #[cold]
    pub fn touch_queue(&mut self, pending_writes: &PendingWrites, queue: QueueId) {
        let record = &mut self.records[queue];
        if record.settings.expires() && !record.is_deleted() {
            record.times.unused_until_ms =
                pending_writes.time_ms().saturating_add(record.settings.expires_ms);
            let due_ms = self.records.unused_until_ms(pending_writes, queue);
            self.note_due(queue, due_ms);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each queue is returned at its time and only once, however often times change, within the list's
    /// capacity.
    #[test]
    fn changed_times_take_no_more_memory_and_none_is_lost() {
        const QUEUES: usize = 20;
        let mut due = [u64::MAX; QUEUES];
        let mut schedule = QueueSchedule::with_capacity(QUEUES);
        let room = schedule.times.capacity();
        let mut random = 1_u64;
        for now in 0..20_000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let (queue, at) = ((random >> 33) as usize % QUEUES, now + 1 + (random >> 40) % 300);
            if at < due[queue] {
                due[queue] = at;
                let all = due.iter().enumerate().filter(|(_, at)| **at != u64::MAX);
                let all = || all.map(|(queue, at)| (*at, QueueId::from_index(queue)));
                schedule.add(at, QueueId::from_index(queue), all);
            }
            while let Some((at, queue)) = schedule.pop(now) {
                if due[queue.index()] == at {
                    due[queue.index()] = u64::MAX;
                }
            }
            assert!(due.iter().all(|at| *at > now), "a due queue was not returned");
            assert_eq!(schedule.times.capacity(), room);
        }
    }
}
