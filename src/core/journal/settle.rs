//! What is done with: settlements, and messages that need not be written any more.
//!
//! Always true: what was not written when its last place is settled never is, but for what a group settles;
//! settlements of a group are kept apart (`group`), all others are merged before they are fetched.

use super::records::merge;
use super::{Batch, Journal, Mode, Settled, Target, Urgency};
use crate::mem::{MessageId, Messages};

impl Journal {
    /// A place of a message is done with. If that was its last one and it was not written, it never will be,
    /// unless a group settles it.
    pub fn settle(&mut self, messages: &mut Messages, target: Target, message: MessageId) {
        if self.mode != Mode::On {
            return;
        }
        if self.groups.is_open() {
            let settled = Settled { queue: target.queue, start: target.offset, end: target.offset + 1 };
            return self.groups.settle(settled);
        }
        if !self.forsake(messages, message) {
            self.settles_matter = true;
            self.note(Urgency::Lazy);
        }
        self.settle_range(Settled { queue: target.queue, start: target.offset, end: target.offset + 1 });
    }

    /// A place of a message is gone with its queue; says whether the message will not be written at all.
    pub fn forsake(&mut self, messages: &mut Messages, message: MessageId) -> bool {
        let Some(at) = self.find_waiting(messages, message) else { return false };
        let pending = &mut self.pending[at];
        pending.live -= 1;
        if pending.live > 0 {
            return false;
        }
        self.pending_bytes -= u64::from(pending.bytes);
        self.live -= 1;
        self.room_made += 1;
        messages.set_mark(message, 0);
        messages.release(message);
        true
    }

    /// Offsets that were written long ago are done with, all at once.
    pub fn settle_stored(&mut self, settled: Settled) {
        if self.groups.is_open() {
            self.groups.settle(settled);
        } else if self.mode == Mode::On {
            self.settles_matter = true;
            self.note(Urgency::Lazy);
            self.settle_range(settled);
        }
    }

    #[inline]
    fn settle_range(&mut self, settled: Settled) {
        self.freed += 1;
        if let Some(last) = self.settles.last_mut().filter(|last| last.queue == settled.queue) {
            if last.end == settled.start {
                last.end = settled.end;
                return;
            }
            if settled.end == last.start {
                last.start = settled.start;
                return;
            }
        }
        if self.settles.len() == self.settles.capacity() {
            self.merge_settles();
            if self.settles.len() > self.settles.capacity() / 2 {
                self.note(Urgency::Awaited);
            }
        }
        self.settles.push(settled);
    }

    pub(super) fn merge_settles(&mut self) {
        merge(&mut self.settles);
    }

    /// Somebody waits until all that is settled so far is written; returns the batch to wait for.
    pub fn await_settles(&mut self) -> Batch {
        if self.mode == Mode::On && self.settles_matter {
            self.settles_awaited.get_or_insert(self.open);
        }
        self.await_open()
    }
}
