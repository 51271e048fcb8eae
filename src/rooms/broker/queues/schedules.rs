//! When to look at which queue: to deliver, to give messages up, to read messages back, or because something
//! expires.
//!
//! Always true: a queue is on the ready list exactly when it has a message, a consumer that can take it, and nothing
//! that has to come first; whoever changes what a queue waits for puts it on the list where somebody looks.

use super::queue::{Peeked, Queue, Rank};
use super::state::Queues;
use crate::command::QueueId;
use crate::journal::{Journal, Mode};

impl Queues {
    // ---- deliveries

    /// Takes the next queue that has something to deliver off the ready list.
    #[inline]
    pub(crate) fn pop_ready(&mut self) -> Option<QueueId> {
        let queue = self.ready.pop_front(&mut self.slab, |queue| &mut queue.listed.ready_links)?;
        self.slab[queue].listed.is_ready = false;
        Some(QueueId::from_index(queue))
    }

    /// Takes a queue off the ready list, if it is there.
    pub(crate) fn leave_ready(&mut self, queue: QueueId) -> bool {
        let was_ready = core::mem::take(&mut self.slab[queue.index()].listed.is_ready);
        if was_ready {
            self.ready.remove(&mut self.slab, queue.index(), |queue| &mut queue.listed.ready_links);
        }
        was_ready
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
            self.wake_whole(queue);
        }
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

    /// A queue that can deliver now and is not on the ready list, so that nobody would look at it.
    #[cfg(debug_assertions)]
    pub fn forgotten_queue(&self) -> Option<usize> {
        let wants = |index: usize| self.wanted_level(QueueId::from_index(index)).is_some();
        let is_forgotten =
            |index: usize, queue: &Queue| !queue.listed.is_ready && !queue.is_level() && wants(index);
        self.slab.iter().find(|(index, queue)| is_forgotten(*index, queue)).map(|(index, _)| index)
    }

    /// Notes that a job begins to requeue messages of a queue: until the job is done nothing is delivered
    /// from it.
    pub(crate) fn begin_returning(&mut self, queue: QueueId) {
        self.slab[queue.index()].returning += 1;
    }

    /// Notes that a job has requeued all its messages of a queue: the first message is the right one again.
    pub(crate) fn end_returning(&mut self, queue: QueueId) {
        let record = &mut self.slab[queue.index()];
        record.returning -= 1;
        if record.settings.may_expire {
            self.note_shed_anew(queue);
        }
        self.gets.note_change();
        self.wake(queue);
    }

    /// Puts a whole queue on the ready list if it can deliver now, because a message came, or may go.
    #[cold]
    pub(crate) fn wake_whole(&mut self, queue: QueueId) {
        let queue = self.whole(queue);
        if !self.slab[queue.index()].listed.is_ready && self.level_to_deliver(queue).is_some() {
            self.slab[queue.index()].listed.is_ready = true;
            self.ready.push_back(&mut self.slab, queue.index(), |queue| &mut queue.listed.ready_links);
        }
    }

    /// Looks at a queue with priorities of which messages went: its first message may have to expire, or may
    /// go where the first before had to wait.
    #[cold]
    pub(crate) fn look_at_first_level(&mut self, queue: QueueId) {
        let whole = self.whole(queue);
        let first = self.first_level(whole);
        if self.slab[first.index()].settings.may_expire {
            self.note_shed_anew(first);
        }
        self.wake(whole);
    }

    // ---- messages given up

    /// Notes that a queue has messages to give up that it cannot give up now, or not all at once.
    pub(crate) fn note_shed(&mut self, queue: QueueId) {
        if !core::mem::replace(&mut self.slab[queue.index()].listed.is_shedding, true) {
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
        match self.dead_lettering {
            0 => 0,
            _ => journal.kept_for_letters(self.settings.letters_log_bytes),
        }
    }

    // ---- messages read back

    /// Asks that messages at the front of the middle be read back.
    pub(crate) fn want_pages(&mut self, queue: QueueId) {
        let record = &mut self.slab[queue.index()];
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
        if !self.slab[queue.index()].listed.is_fetching {
            self.want_pages(queue);
            self.slab[queue.index()].times.peeked = Peeked::WANTED;
        }
    }

    // ---- times

    /// When the next message or queue may expire, or a delayed message is due, in milliseconds of broker
    /// time.
    pub fn next_expiry_ms(&self) -> Option<u64> {
        [self.expiry.next_ms(), self.sleepers.next_ms()].into_iter().flatten().min()
    }

    /// Notes that messages of the queue may expire from now on.
    pub(crate) fn note_may_expire(&mut self, queue: QueueId) {
        // Delayed messages expire only after they are routed.
        let record = &mut self.slab[queue.index()];
        record.settings.may_expire = record.sleeps_for.is_none();
        self.has_deadlines = true;
    }

    /// Schedules a look at the queue at this time, if none comes before.
    #[cold]
    pub(super) fn note_due(&mut self, queue: QueueId, at_ms: u64) {
        let record = &mut self.slab[queue.index()];
        if at_ms < record.times.due_ms {
            record.times.due_ms = at_ms;
            let queues = &self.slab;
            self.expiry.add(at_ms, queue, || {
                let all = queues.iter().filter(|(_, record)| record.sleeps_for.is_none());
                let all = all.map(|(index, record)| (record.times.due_ms, QueueId::from_index(index)));
                all.filter(|(at, _)| *at != u64::MAX)
            });
        }
    }

    /// Notes that a client used the queue, so that it expires later.
    #[cold]
    pub(crate) fn touch_queue(&mut self, journal: &Journal, queue: QueueId) {
        let record = &mut self.slab[queue.index()];
        if record.settings.expires() && !record.dying {
            record.times.unused_until_ms = journal.time_ms().saturating_add(record.settings.expires_ms);
            let due_ms = self.unused_until_ms(journal, queue);
            self.note_due(queue, due_ms);
        }
    }

    /// When the queue expires if nobody uses it.
    pub(super) fn unused_until_ms(&self, journal: &Journal, queue: QueueId) -> u64 {
        let record = &self.slab[queue.index()];
        // A queue whose deletion cannot be written down stays.
        let may_go =
            record.audience.is_empty() && !(record.logged.is_on() && journal.mode() == Mode::Unwritable);
        if may_go { record.times.unused_until_ms } else { u64::MAX }
    }

    pub(crate) fn is_unused_for_too_long(&self, journal: &Journal, queue: QueueId) -> bool {
        self.unused_until_ms(journal, queue) <= journal.time_ms()
    }
}
