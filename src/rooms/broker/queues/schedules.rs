//! When to look at which queue: for a delivery, for what it has to give up, for what is to be read back, for its time.
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

    /// Whether some queue has something to deliver.
    #[inline]
    pub(crate) const fn is_any_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Puts the queue on the ready list if it has something to do there.
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

    /// The queue itself if it is to deliver now, or the level of it that is.
    #[inline(always)]
    pub(crate) fn wanted_level(&self, queue: QueueId) -> Option<QueueId> {
        let record = &self.slab[queue.index()];
        match record.wants_delivery() {
            true => Some(queue),
            false if record.rank == Rank::Plain => None,
            false => self.level_to_deliver(queue),
        }
    }

    /// A queue that has something to deliver and to whom, and is not on the ready list: nobody would look at
    /// it.
    #[cfg(debug_assertions)]
    pub fn forgotten_queue(&self) -> Option<usize> {
        let wants = |index: usize| self.wanted_level(QueueId::from_index(index)).is_some();
        let is_forgotten =
            |index: usize, queue: &Queue| !queue.listed.is_ready && !queue.is_level() && wants(index);
        self.slab.iter().find(|(index, queue)| is_forgotten(*index, queue)).map(|(index, _)| index)
    }

    /// A job begins to give messages back to a queue: until it is done nothing is delivered from it.
    pub(crate) fn begin_returning(&mut self, queue: QueueId) {
        self.slab[queue.index()].returning += 1;
    }

    /// One job less whose messages the queue waits for: what stands first now stays so.
    pub(crate) fn end_returning(&mut self, queue: QueueId) {
        let record = &mut self.slab[queue.index()];
        record.returning -= 1;
        if record.settings.may_expire {
            self.note_shed_anew(queue);
        }
        self.gets.note_change();
        self.wake(queue);
    }

    /// A message came, or may go: puts the whole queue on the ready list if it has something to do there.
    #[cold]
    pub(crate) fn wake_whole(&mut self, queue: QueueId) {
        let queue = self.whole(queue);
        if !self.slab[queue.index()].listed.is_ready && self.level_to_deliver(queue).is_some() {
            self.slab[queue.index()].listed.is_ready = true;
            self.ready.push_back(&mut self.slab, queue.index(), |queue| &mut queue.listed.ready_links);
        }
    }

    /// Messages of a queue with priorities went: what stands first now may have to expire, or may go where
    /// what stood first before had to wait.
    #[cold]
    pub(crate) fn look_at_first_level(&mut self, queue: QueueId) {
        let whole = self.whole(queue);
        let first = self.first_level(whole);
        if self.slab[first.index()].settings.may_expire {
            self.note_shed_anew(first);
        }
        self.wake(whole);
    }

    // ---- what is given up

    /// The queue has something to give up that it cannot give up now, or not all of it at once.
    pub(crate) fn note_shed(&mut self, queue: QueueId) {
        if !core::mem::replace(&mut self.slab[queue.index()].listed.is_shedding, true) {
            self.shedding.push(queue);
            self.shedding.note_change();
        }
    }

    /// The queue has something else to give up: on the list already it may be for what was rejected and has
    /// no room, which says nothing of this.
    pub(crate) fn note_shed_anew(&mut self, queue: QueueId) {
        self.note_shed(queue);
        self.shedding.note_change();
    }

    /// Bytes of the log that publishers leave to dead letters. A letter takes room before the message that it
    /// comes of gives any, and a log that is full of what has to go on would be full for ever.
    pub(crate) fn kept_for_letters(&self, journal: &Journal) -> u64 {
        match self.dead_lettering {
            0 => 0,
            _ => journal.kept_for_letters(self.settings.letters_log_bytes),
        }
    }

    // ---- what is read back

    /// Asks that the front of the middle be read back.
    pub(crate) fn want_pages(&mut self, queue: QueueId) {
        let record = &mut self.slab[queue.index()];
        if record.times.peeked.is_wanted() {
            record.times.peeked = Peeked::NOTHING;
        }
        if !core::mem::replace(&mut record.listed.is_fetching, true) {
            self.paging.want(queue);
        }
    }

    /// Asks until when the first message may wait, which only the log has.
    #[cold]
    pub(crate) fn want_peek(&mut self, queue: QueueId) {
        if !self.slab[queue.index()].listed.is_fetching {
            self.want_pages(queue);
            self.slab[queue.index()].times.peeked = Peeked::WANTED;
        }
    }

    // ---- times

    /// When something may expire or wake up, in milliseconds of broker time.
    pub fn next_expiry_ms(&self) -> Option<u64> {
        [self.expiry.next_ms(), self.sleepers.next_ms()].into_iter().flatten().min()
    }

    /// Messages of the queue may expire from now on.
    pub(crate) fn note_may_expire(&mut self, queue: QueueId) {
        // What sleeps expires when it is awake.
        let record = &mut self.slab[queue.index()];
        record.settings.may_expire = record.sleeps_for.is_none();
        self.has_deadlines = true;
    }

    /// The queue is to be looked at then, if not before.
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

    /// Somebody has a use for the queue, or had until now.
    #[cold]
    pub(crate) fn touch_queue(&mut self, journal: &Journal, queue: QueueId) {
        let record = &mut self.slab[queue.index()];
        if record.settings.expires() && !record.dying {
            record.times.unused_until_ms = journal.time_ms().saturating_add(record.settings.expires_ms);
            let due_ms = self.unused_until_ms(journal, queue);
            self.note_due(queue, due_ms);
        }
    }

    /// Until when the queue stays if nobody has a use for it.
    pub(super) fn unused_until_ms(&self, journal: &Journal, queue: QueueId) -> u64 {
        let record = &self.slab[queue.index()];
        // What cannot be written down stays.
        let may_go =
            record.audience.is_empty() && !(record.logged.is_on() && journal.mode() == Mode::Unwritable);
        if may_go { record.times.unused_until_ms } else { u64::MAX }
    }

    pub(crate) fn is_unused_for_too_long(&self, journal: &Journal, queue: QueueId) -> bool {
        self.unused_until_ms(journal, queue) <= journal.time_ms()
    }
}
