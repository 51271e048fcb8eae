//! When to look at which queue: to give messages up, to read messages back, or because something expires.
//!
//! Always true: whoever changes what a queue waits for puts it on the list where somebody looks.

use super::state::Queues;
use crate::queue::Peeked;
use leveret_core::command::QueueId;
use leveret_core::journal::Journal;

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
