//! The store's side of the journal: what it fetches for a commit, and what it says when that is durable.
//!
//! Always true: what is fetched comes in the order in which it was said; a batch is covered only when nothing
//! of it is left here.

use super::{Batch, Fact, Front, Journal, Mode, Settled, Target, Urgency};
use crate::mem::{MessageFlags, Messages};

impl Journal {
    /// How urgent what was said since the last question is.
    pub fn take_urgency(&mut self) -> Option<Urgency> {
        self.urgency.take()
    }

    /// Whether something was said since the last question.
    pub const fn has_news(&self) -> bool {
        self.urgency.is_some()
    }

    /// The next fact; first those that the last commit has.
    pub fn fact(&self) -> Option<&Fact> {
        if self.repeats_ready > 0 {
            return self.repeats.front().map(|(_, _, fact)| fact);
        }
        self.facts.front().map(|(_, fact)| fact)
    }

    /// The fact went into a commit.
    pub fn pop_fact(&mut self) {
        if let Some(ready) = self.repeats_ready.checked_sub(1) {
            self.repeats_ready = ready;
            if let Some((_, _, fact)) = self.repeats.pop_front() {
                self.fact_bytes -= fact.bytes();
            }
        } else if let Some((batch, fact)) = self.facts.pop_front() {
            self.facts_handed += 1;
            if fact.is_access() {
                self.repeats.push_back((batch, self.facts_handed, fact));
            } else {
                self.fact_bytes -= fact.bytes();
            }
        }
        self.room_made += 1;
    }

    /// Gives all settlements, merged and in order.
    pub fn drain_settles(&mut self, each: impl FnMut(Settled)) {
        self.merge_settles();
        self.settles_matter = false;
        self.settles.drain(..).for_each(each);
    }

    /// Hands out the watermarks that go along, one for each queue, until `each` has no room for one; says
    /// whether all of them are handed out.
    pub fn drain_riding(&mut self, mut each: impl FnMut(u64, u64) -> bool) -> bool {
        self.merge_riding();
        while let Some(&(queue, offset)) = self.riding.last() {
            if !each(queue, offset) {
                return false;
            }
            self.riding.pop();
        }
        true
    }

    /// The next message to write, with its places in `targets`.
    pub fn front(&mut self, messages: &mut Messages, targets: &mut Vec<Target>) -> Option<Front> {
        loop {
            self.pop_dead();
            let pending = *self.pending.front()?;
            let number = self.first;
            self.places(number, 0..pending.targets as usize, targets);
            if targets.is_empty() {
                self.pending_bytes -= u64::from(pending.bytes);
                self.live -= 1;
                messages.set_mark(pending.message, 0);
                messages.release(pending.message);
                self.pop();
                continue;
            }
            return Some(Front { message: pending.message, number });
        }
    }

    /// The places of message `number` that still exist; it has those in `range` of all that wait.
    pub(super) fn places(&self, number: u64, range: core::ops::Range<usize>, targets: &mut Vec<Target>) {
        targets.clear();
        targets.extend(self.targets.range(range).filter(|target| {
            !self.gone.iter().any(|(queue, before)| *queue == target.queue && number < *before)
        }));
    }

    /// Forgets messages at the front that nobody wants any more.
    #[inline]
    pub(super) fn pop_dead(&mut self) {
        while self.pending.front().is_some_and(|pending| pending.live == 0) {
            self.pop();
        }
    }

    /// The front message went into a commit.
    pub fn hand_over(&mut self, messages: &mut Messages) {
        if let Some(pending) = self.pending.front().copied().filter(|pending| pending.live > 0) {
            messages.set_mark(pending.message, 0);
            self.pending_bytes -= u64::from(pending.bytes);
            self.live -= 1;
            self.handed.push_back(pending.message);
            self.pop();
        }
    }

    fn pop(&mut self) {
        if let Some(pending) = self.pending.pop_front() {
            self.targets.drain(..pending.targets as usize);
            self.targets_before += u64::from(pending.targets);
            self.first += 1;
            self.room_made += 1;
            let first = self.first;
            while self.gone.front().is_some_and(|(_, before)| *before <= first) {
                self.gone.pop_front();
            }
        }
    }

    /// A commit is made of everything fetched: the batch up to which it covers everything.
    /// `settles_left` says that some settlements had no room in it.
    pub fn cover(&mut self, settles_left: bool) -> Batch {
        self.repeats_ready = self.repeats.len();
        if !settles_left && !self.settles_matter {
            self.settles_awaited = None;
        }
        self.pop_dead();
        let message = self.pending.front().map(|pending| pending.batch);
        let fact = self.facts.iter().map(|(batch, _)| *batch).min();
        let repeat = self.repeats.front().map(|(batch, _, _)| *batch);
        let group = self.groups.batch();
        let first = [message, fact, repeat, group, self.settles_awaited].into_iter().flatten().min();
        match first {
            Some(batch) => batch.before(),
            None => {
                if self.is_open_used {
                    self.close_batch();
                }
                self.open.before()
            }
        }
    }

    /// Everything up to `batch` is durable; so is every message and every fact that was handed over.
    pub fn stored(&mut self, messages: &mut Messages, batch: Batch) {
        while let Some(message) = self.handed.pop_front() {
            messages.add_flags(message, MessageFlags::STORED);
            messages.release(message);
        }
        self.durable = self.durable.max(batch);
        self.latency.note_durable(self.durable, self.time_ms);
        self.release_moved(messages);
        self.facts_stored = self.facts_handed;
        self.facts_safe = self.repeats.front().map_or(self.facts_handed, |(_, number, _)| number - 1);
        self.room_made += 1;
    }

    /// Nothing is on its way to the disk: what left the journal again is waited for no longer.
    pub fn advance(&mut self, messages: &mut Messages) -> bool {
        if self.mode != Mode::On || !self.handed.is_empty() {
            return false;
        }
        let before = self.durable;
        let settles_left = self.settles_awaited.is_some();
        self.durable = self.durable.max(self.cover(settles_left));
        self.latency.note_durable(self.durable, self.time_ms);
        self.release_moved(messages);
        self.durable > before
    }

    /// So many bytes may still be written of so many when the log is empty; what says so is the disk limit, or a
    /// file system that is full before that.
    pub const fn set_disk_room(&mut self, (bytes, bytes_max): (u64, u64), is_file_system_full: bool) {
        // Of less in all, less is kept for others, too.
        let is_divided_anew = bytes_max != self.disk_bytes_max;
        if bytes > self.disk_room_bytes || is_divided_anew {
            self.room_made += 1;
            self.freed += 1;
        }
        self.is_file_system_full = is_file_system_full;
        self.disk_bytes_max = bytes_max;
        self.disk_room_bytes = bytes;
    }

    pub(super) const fn close_batch(&mut self) {
        self.open = self.open.after();
        self.open_bytes = 0;
        self.is_open_used = false;
    }
}
