//! What queues give up, in bounded steps: what was rejected, and what is too much for them.
//!
//! Without dead letters it is dropped at once. With them it goes on (`dead_letter`), and that may need room,
//! or the message may have to be read back first; then its queue is on a list, which is gone through in
//! every turn as long as something comes of it, and then again when room was made.
//!
//! Always true: a message that has nowhere to go yet is in its queue, as it was, or among those that are
//! rejected, which nobody is given any more; what is dropped by the length rules is dropped from the front.

use crate::command::QueueId;
use crate::journal::Journal;
use crate::mem::{MessageId, Messages};

use super::arguments::Overflow;
use super::backlog::First;
use super::death::Reason;
use super::expire::Patience;
use super::place::Place;
use super::queue::Front;
use super::shedding::take_step;
use super::{Broker, Context};

/// Messages that a turn gives up; some are more work than one ([`take_step`]).
const SHED_STEP: u32 = 512;
/// Messages that a command gives up at once.
const COMMAND_STEP: u32 = 8;
/// Queues that a turn looks at.
const QUEUES_STEP: usize = 64;

impl Broker {
    /// Whether some queue has to give up something, and may be able to.
    pub fn may_shed(&self, journal: &Journal, messages: &Messages) -> bool {
        self.next_expiry_ms().is_some_and(|at| at <= journal.time_ms())
            || self.shedding.is_due(|| self.room_count(journal, messages))
            || self.may_rouse(journal, messages)
    }

    pub(super) fn room_count(&self, journal: &Journal, messages: &Messages) -> u64 {
        self.room_made() + journal.room_made() + messages.room_made()
    }

    /// The queue has something to give up that it cannot give up now, or not all of it at once.
    pub(super) fn note_shed(&mut self, queue: QueueId) {
        if !core::mem::replace(&mut self.queues[queue.index()].is_shedding, true) {
            self.shedding.push(queue);
            self.shedding.note_change();
        }
    }

    /// The queue has something else to give up: on the list already it may be for what was rejected and has
    /// no room, which says nothing of this.
    pub(super) fn note_shed_anew(&mut self, queue: QueueId) {
        self.note_shed(queue);
        self.shedding.note_change();
    }

    /// Lets queues give up what they have to, as much as a turn has time for.
    pub(super) fn shed(&mut self, cx: &mut Context<'_>) {
        self.take_due(cx.journal);
        if !self.may_shed(cx.journal, cx.messages) {
            return;
        }
        if self.may_rouse(cx.journal, cx.messages) {
            self.rouse(cx);
        }
        let mut left = SHED_STEP;
        let room = self.room_count(cx.journal, cx.messages);
        self.shedding.begin(room);
        for _ in 0..self.shedding.len().min(QUEUES_STEP) {
            let Some(queue) = self.shedding.pop() else { break };
            let before = left;
            self.queues[queue.index()].is_shedding = false;
            let is_done = self.shed_from(cx, queue, &mut left);
            if !is_done && !core::mem::replace(&mut self.queues[queue.index()].is_shedding, true) {
                self.shedding.push(queue);
            }
            self.shedding.note_step(is_done || left < before);
            if left == 0 {
                break;
            }
        }
        let room = self.room_count(cx.journal, cx.messages);
        self.shedding.end(room);
    }

    /// `false`: there is more to be given up.
    fn shed_from(&mut self, cx: &mut Context<'_>, queue: QueueId, left: &mut u32) -> bool {
        if self.queues[queue.index()].dying {
            return true;
        }
        if self.is_unused_for_too_long(cx.journal, queue) {
            return self.expire_queue(cx, queue);
        }
        // Each has an end of its own: a letter without room may stand before others that need none.
        let is_buried = self.bury_all(cx, queue, left);
        let has_expired = self.expire_by(cx, queue, left, Patience::OneTurn);
        let is_trimmed = self.trim_by(cx, queue, left);
        // Whoever is rejected waits apart: what stands first may go, whether there is room for those or not.
        if has_expired && self.queues[queue.index()].is_picky_by_time() {
            self.schedule(cx, queue);
            if self.queues[queue.index()].front == Front::Expired {
                self.unstall(queue);
            }
        }
        if !self.is_first_level(queue) {
            self.look_at_first_level(queue);
        }
        is_buried && has_expired && is_trimmed
    }

    // ---- what is too much

    /// The length rules: the oldest make room for the newest. In the middle of a transaction dead letters
    /// wait for its end: what it publishes has been promised room.
    pub(super) fn trim_length(&mut self, cx: &mut Context<'_>, queue: QueueId) {
        let (queue, mut left) = (self.whole(queue), COMMAND_STEP);
        if !self.has_dead_letters(queue) {
            // More than that is too much only when the limit has become smaller.
            for _ in 0..SHED_STEP {
                let level = self.first_level(queue);
                if !self.is_over_length(queue) || !self.drop_first(cx, level) {
                    return;
                }
                self.note_taken_off(queue, level);
            }
            self.note_shed_anew(queue);
        } else if cx.journal.is_grouping() || !self.trim_by(cx, queue, &mut left) {
            self.note_shed_anew(queue);
        }
    }

    /// A message went, or came back: there may be too many, and another may stand first.
    #[cold]
    pub(super) fn look_after(&mut self, cx: &mut Context<'_>, queue: QueueId) {
        if self.queues[queue.index()].settings.limits_length {
            self.trim_length(cx, queue);
        }
        if self.queues[queue.index()].settings.may_expire {
            self.schedule(cx, queue);
        }
    }

    /// The same behind a message that came in, when it stands in all of these.
    #[cold]
    pub(super) fn look_after_push(
        &mut self,
        cx: &mut Context<'_>,
        message: MessageId,
        queues: &[QueueId],
        is_letter: bool,
    ) {
        for &queue in queues {
            self.note_arrival(cx, queue, message);
        }
        for &queue in queues {
            let is_trimmed = self.trim_after_push(cx, queue, is_letter);
            // One letter at a time is being written.
            let has_expired = !is_letter && self.expire_arrival(cx, queue, message);
            if self.queues[queue.index()].settings.may_expire && (is_trimmed || has_expired) {
                self.schedule(cx, queue);
            }
        }
    }

    /// The length rules behind a message that came in; says whether they had anything to say.
    fn trim_after_push(&mut self, cx: &mut Context<'_>, queue: QueueId, is_letter: bool) -> bool {
        let whole = &self.queues[self.whole(queue).index()];
        if !whole.settings.limits_length {
            return false;
        }
        // With a consumer ready the message may still go before the queue is over its length.
        let is_over = match whole.eligible.is_empty() {
            true => self.is_over_length(queue),
            false => self.is_far_over_length(queue),
        };
        if !is_over {
            return false;
        }
        if is_letter && self.has_dead_letters(queue) {
            self.note_shed_anew(queue);
        } else {
            self.trim_length(cx, queue);
        }
        true
    }

    /// Whether a message that the queue refuses for its length goes where its dead letters go.
    pub(super) fn buries_refused(&self, queue: QueueId) -> bool {
        let overflow = self.queues[queue.index()].settings.overflow;
        overflow == Overflow::RejectPublishDlx && self.has_dead_letters(queue)
    }

    /// These queues refused a message. Who sent it is told, so what there is no room for is dropped.
    pub(super) fn bury_refused(&mut self, cx: &mut Context<'_>, message: MessageId, queues: &[QueueId]) {
        for &queue in queues {
            if let Some(letter) = self.write_letter(cx, queue, message, Reason::MaxLength) {
                self.post_letter(cx, letter);
            }
        }
    }

    fn trim_by(&mut self, cx: &mut Context<'_>, queue: QueueId, left: &mut u32) -> bool {
        let queue = self.whole(queue);
        while self.is_over_length(queue) {
            let (before, level) = (cx.work.units(), self.first_level(queue));
            let is_gone = *left > 0
                && match self.has_dead_letters(queue) {
                    true => self.bury_first(cx, level, Reason::MaxLength),
                    false => self.drop_first(cx, level),
                };
            if !is_gone {
                return false;
            }
            self.note_taken_off(queue, level);
            self.charge_levels(cx.work);
            take_step(left, before, cx.work);
        }
        true
    }

    /// The first message of a level is gone: with its last one another level is the first.
    fn note_taken_off(&mut self, queue: QueueId, level: QueueId) {
        if self.first_level(queue) != level {
            self.look_at_first_level(queue);
        }
    }

    /// The first message if it is in memory, and whether the log has it too.
    pub(super) fn first_in_memory(&self, queue: QueueId) -> Option<(First, MessageId, bool)> {
        let first = self.first(queue)?;
        let (message, is_logged) = match first {
            First::Absent(_) | First::At(_, Place::Stored(..)) => return None,
            First::CameBack => {
                let backlog = &self.queues[queue.index()].backlog;
                let (message, logged) = backlog.first_returned(&self.fifo_pool, &self.deliveries);
                (message, logged.is_some())
            }
            First::At(_, Place::Plain(message) | Place::Spilled(message, _)) => (message, false),
            First::At(_, Place::Logged(message, _)) => (message, true),
        };
        Some((first, message, is_logged))
    }

    /// Gives up the first message; `false`: not now.
    pub(super) fn bury_first(&mut self, cx: &mut Context<'_>, queue: QueueId, reason: Reason) -> bool {
        if self.first(queue).is_none() {
            return true;
        }
        let Some((_, message, is_logged)) = self.first_in_memory(queue) else {
            self.want_pages(queue);
            return false;
        };
        let Some(letter) = self.write_letter(cx, queue, message, reason) else { return false };
        let has_begun = self.begin_burial(cx, &letter, is_logged);
        self.post_letter(cx, letter);
        let Some(first) = self.first(queue) else { panic!("a letter takes nothing from its queue") };
        let taken = self.take_first(cx, queue, first);
        self.forget_taken(cx, queue, &taken);
        self.end_burial(cx, has_begun);
        true
    }

    // ---- what is rejected

    /// A delivery that its consumer does not want, or that came back too often: off every list, and counted
    /// for nobody any more.
    pub(super) fn bury_delivery(
        &mut self,
        cx: &mut Context<'_>,
        queue: QueueId,
        index: usize,
        reason: Reason,
    ) {
        self.deliveries.keep(index);
        self.deliveries[index].death = Some(reason);
        let record = &mut self.queues[queue.index()];
        record.backlog.reject(&mut self.deliveries, cx.messages, index);
        let mut left = COMMAND_STEP;
        if record.is_shedding || !self.bury_all(cx, queue, &mut left) {
            self.note_shed(queue);
        }
    }

    fn bury_all(&mut self, cx: &mut Context<'_>, queue: QueueId, left: &mut u32) -> bool {
        while let Some(index) = self.queues[queue.index()].backlog.first_rejected() {
            let before = cx.work.units();
            if *left == 0 || !self.bury_rejected(cx, queue, index) {
                return false;
            }
            take_step(left, before, cx.work);
        }
        true
    }

    fn bury_rejected(&mut self, cx: &mut Context<'_>, queue: QueueId, index: usize) -> bool {
        let delivery = &self.deliveries[index];
        let (is_logged, reason) = (delivery.logged.is_some(), delivery.death.unwrap_or(Reason::Rejected));
        let Some(message) = delivery.message else {
            self.want_pages(queue);
            return false;
        };
        let Some(letter) = self.write_letter(cx, queue, message, reason) else { return false };
        let has_begun = self.begin_burial(cx, &letter, is_logged);
        self.post_letter(cx, letter);
        self.drop_rejected(cx, queue);
        self.end_burial(cx, has_begun);
        true
    }

    /// The first of those that were rejected is done with; `false` when there is none.
    pub(super) fn drop_rejected(&mut self, cx: &mut Context<'_>, queue: QueueId) -> bool {
        let backlog = &mut self.queues[queue.index()].backlog;
        let Some(delivery) = backlog.take_rejected(&mut self.deliveries, cx.messages) else { return false };
        self.settle_delivered(cx, queue, &delivery);
        self.releases += 1;
        true
    }
}
