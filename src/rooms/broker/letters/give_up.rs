//! What queues give up, in bounded steps: what was rejected, and what is too much for them.
//!
//! Without dead letters it is dropped at once. With them it goes on (`dead_letter`), and that may need room,
//! or the message may have to be read back first; then its queue is on a list, which is gone through in
//! every turn as long as something comes of it, and then again when room was made.
//!
//! Always true: a message that has nowhere to go yet is in its queue, as it was, or among those that are
//! rejected, which nobody is given any more; what is dropped by the length rules is dropped from the front.

use crate::command::QueueId;
use crate::mem::{MessageFlags, MessageId};

use super::death::Reason;
use super::state::Post;
use crate::broker::Context;
use crate::broker::queues::{Front, Patience, take_step};

/// Messages that a consumer's turn may find expired.
const DELIVER_STEP: u32 = 64;
/// Messages that a turn gives up; some are more work than one ([`take_step`]).
const SHED_STEP: u32 = 512;
/// Messages that a command gives up at once.
const COMMAND_STEP: u32 = 8;
/// Queues that a turn looks at.
const QUEUES_STEP: usize = 64;

/// How far the giving up of one turn has come.
#[derive(Debug)]
pub(crate) struct Turn {
    has_begun: bool,
    /// Queues that are still to be asked.
    queues: usize,
    /// Messages that may still be given up.
    left: u32,
}

impl Turn {
    pub(crate) const fn new() -> Self {
        Self { has_begun: false, queues: 0, left: SHED_STEP }
    }
}

/// Whether what stands first has not expired.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Cleared {
    Yes,
    /// There was more than a step takes.
    NotYet,
    /// What has expired has nowhere to go now.
    No,
}

impl Post<'_> {
    /// Lets queues give up what they have to, as much as a turn has time for, or up to one that nobody has had a use for
    /// for too long: whoever asked deletes that, and asks again.
    pub(crate) fn shed(&mut self, cx: &mut Context<'_>, turn: &mut Turn) -> Option<QueueId> {
        if !turn.has_begun {
            turn.has_begun = true;
            self.queues.take_due(cx.journal);
            if !self.queues.may_give_up(cx.journal, || self.room_count(cx.journal, cx.messages)) {
                return None;
            }
            if self.queues.may_wake(cx.journal, || self.room_count(cx.journal, cx.messages)) {
                self.rouse(cx);
            }
            let room = self.room_count(cx.journal, cx.messages);
            self.queues.shedding.begin(room);
            turn.queues = self.queues.shedding.len().min(QUEUES_STEP);
        }
        while turn.queues > 0 && turn.left > 0 {
            turn.queues -= 1;
            let Some(queue) = self.queues.shedding.pop() else { break };
            let before = turn.left;
            self.queues.at_mut(queue).listed.is_shedding = false;
            let is_unused = self.queues.is_unused_for_too_long(cx.journal, queue);
            if is_unused && !self.queues.at(queue).dying && !cx.journal.is_crowded() {
                self.queues.shedding.note_step(true);
                return Some(queue);
            }
            let is_done = self.shed_from(cx, queue, is_unused, &mut turn.left);
            if !is_done && !core::mem::replace(&mut self.queues.at_mut(queue).listed.is_shedding, true) {
                self.queues.shedding.push(queue);
            }
            self.queues.shedding.note_step(is_done || turn.left < before);
        }
        let room = self.room_count(cx.journal, cx.messages);
        self.queues.shedding.end(room);
        None
    }

    /// `false`: there is more to be given up.
    fn shed_from(&mut self, cx: &mut Context<'_>, queue: QueueId, is_unused: bool, left: &mut u32) -> bool {
        if self.queues.at(queue).dying {
            return true;
        }
        if is_unused {
            // Too much is to be written now for it to be deleted.
            return false;
        }
        // Each has an end of its own: a letter without room may stand before others that need none.
        let is_buried = self.bury_all(cx, queue, left);
        let has_expired = self.expire_by(cx, queue, left, Patience::OneTurn);
        let is_trimmed = self.trim_by(cx, queue, left);
        // Whoever is rejected waits apart: what stands first may go, whether there is room for those or not.
        if has_expired && self.queues.at(queue).is_picky_by_time() {
            self.queues.schedule(cx, queue);
            if self.queues.at(queue).front == Front::Expired {
                self.queues.unstall(queue);
            }
        }
        if !self.queues.is_first_level(queue) {
            self.queues.look_at_first_level(queue);
        }
        is_buried && has_expired && is_trimmed
    }

    // ---- what is too much

    /// The length rules: the oldest make room for the newest. In the middle of a transaction dead letters
    /// wait for its end: what it publishes has been promised room.
    pub(crate) fn trim_length(&mut self, cx: &mut Context<'_>, queue: QueueId) {
        let (queue, mut left) = (self.queues.whole(queue), COMMAND_STEP);
        if !self.queues.has_dead_letters(queue) {
            self.queues.drop_excess(cx, queue);
        } else if cx.journal.is_grouping() || !self.trim_by(cx, queue, &mut left) {
            self.queues.note_shed_anew(queue);
        }
    }

    /// A message went, or came back: there may be too many, and another may stand first.
    #[cold]
    pub(crate) fn look_after(&mut self, cx: &mut Context<'_>, queue: QueueId) {
        if self.queues.at(queue).settings.limits_length {
            self.trim_length(cx, queue);
        }
        if self.queues.at(queue).settings.may_expire {
            self.queues.schedule(cx, queue);
        }
    }

    /// A message came in, and stands in all of these queues: what is too much for one goes, or has expired already.
    #[cold]
    pub(crate) fn look_after_push(&mut self, cx: &mut Context<'_>, message: MessageId, queues: &[QueueId]) {
        for &queue in queues {
            self.queues.note_arrival(cx, queue, message);
        }
        for &queue in queues {
            let is_over = self.queues.is_over_after_push(queue);
            if is_over {
                self.trim_length(cx, queue);
            }
            let has_expired = self.expire_arrival(cx, queue, message);
            if self.queues.at(queue).settings.may_expire && (is_over || has_expired) {
                self.queues.schedule(cx, queue);
            }
        }
    }

    /// These queues refused a message. Who sent it is told, so what there is no room for is dropped.
    pub(crate) fn bury_refused(&mut self, cx: &mut Context<'_>, message: MessageId, queues: &[QueueId]) {
        for &queue in queues {
            if let Some(letter) = self.write_letter(cx, queue, message, Reason::MaxLength) {
                self.post_letter(cx, letter);
            }
        }
    }

    fn trim_by(&mut self, cx: &mut Context<'_>, queue: QueueId, left: &mut u32) -> bool {
        let queue = self.queues.whole(queue);
        while self.queues.is_over_length(queue) {
            let (before, level) = (cx.work.units(), self.queues.first_level(queue));
            let is_gone = *left > 0
                && match self.queues.has_dead_letters(queue) {
                    true => self.bury_first(cx, level, Reason::MaxLength),
                    false => self.queues.drop_first(cx, level),
                };
            if !is_gone {
                return false;
            }
            self.queues.note_taken_off(queue, level);
            self.queues.charge_levels(cx.work);
            take_step(left, before, cx.work);
        }
        true
    }

    /// Gives up the first message; `false`: not now.
    pub(crate) fn bury_first(&mut self, cx: &mut Context<'_>, queue: QueueId, reason: Reason) -> bool {
        if self.queues.first(queue).is_none() {
            return true;
        }
        let Some((_, message, is_logged)) = self.queues.first_in_memory(queue) else {
            self.queues.want_pages(queue);
            return false;
        };
        let Some(letter) = self.write_letter(cx, queue, message, reason) else { return false };
        let has_begun = self.begin_burial(cx, &letter, is_logged);
        self.post_letter(cx, letter);
        let Some(first) = self.queues.first(queue) else { panic!("a letter takes nothing from its queue") };
        let taken = self.queues.take_first(cx, queue, first);
        self.queues.forget_taken(cx, queue, &taken);
        self.end_burial(cx, has_begun);
        true
    }

    // ---- what is rejected

    /// A delivery that its consumer does not want, or that came back too often: off every list, and counted
    /// for nobody any more.
    pub(crate) fn bury_delivery(
        &mut self,
        cx: &mut Context<'_>,
        queue: QueueId,
        index: usize,
        reason: Reason,
    ) {
        self.queues.reject(cx.messages, queue, index, reason);
        let mut left = COMMAND_STEP;
        if self.queues.at(queue).listed.is_shedding || !self.bury_all(cx, queue, &mut left) {
            self.queues.note_shed(queue);
        }
    }

    fn bury_all(&mut self, cx: &mut Context<'_>, queue: QueueId, left: &mut u32) -> bool {
        while let Some(index) = self.queues.at(queue).backlog.first_rejected() {
            let before = cx.work.units();
            if *left == 0 || !self.bury_rejected(cx, queue, index) {
                return false;
            }
            take_step(left, before, cx.work);
        }
        true
    }

    fn bury_rejected(&mut self, cx: &mut Context<'_>, queue: QueueId, index: usize) -> bool {
        let delivery = &self.queues.deliveries()[index];
        let (is_logged, reason) = (delivery.logged.is_some(), delivery.death.unwrap_or(Reason::Rejected));
        let Some(message) = delivery.message else {
            self.queues.want_pages(queue);
            return false;
        };
        let Some(letter) = self.write_letter(cx, queue, message, reason) else { return false };
        let has_begun = self.begin_burial(cx, &letter, is_logged);
        self.post_letter(cx, letter);
        self.queues.drop_rejected(cx, queue);
        self.end_burial(cx, has_begun);
        true
    }

    // ---- what has expired

    /// A message that is due at once came to a queue, and nobody waits there: it has expired if it stands
    /// first. Says whether that was looked at.
    pub(crate) fn expire_arrival(
        &mut self,
        cx: &mut Context<'_>,
        queue: QueueId,
        message: MessageId,
    ) -> bool {
        let record = self.queues.at(queue);
        let is_due =
            cx.messages.flags(message).has(MessageFlags::DUE_AT_ONCE) || record.settings.message_ttl_ms == 0;
        // In the middle of a transaction its letter waits for the end: what that publishes has been promised
        // room.
        let waits = cx.journal.is_grouping() && record.settings.dead_letters;
        let looks = is_due && !self.queues.whole_of(queue).audience.is_ready();
        if looks && waits {
            self.queues.note_shed_anew(queue);
        } else if looks {
            self.expire_by(cx, queue, &mut 1, Patience::No);
        }
        looks
    }

    /// Gives up what has expired at the front; `false`: not all of it now.
    #[inline(never)]
    pub(crate) fn expire_by(
        &mut self,
        cx: &mut Context<'_>,
        queue: QueueId,
        left: &mut u32,
        patience: Patience,
    ) -> bool {
        while self.queues.at(queue).settings.may_expire {
            if !self.queues.has_expired(cx, queue, patience) {
                break;
            }
            let before = cx.work.units();
            cx.work.charge(1);
            let is_gone = *left > 0
                && match self.queues.has_dead_letters(queue) {
                    true => self.bury_first(cx, queue, Reason::Expired),
                    false => self.queues.drop_first(cx, queue),
                };
            if !is_gone {
                return false;
            }
            // What came to nothing is no step, or the queue would be asked again at once.
            take_step(left, before, cx.work);
        }
        true
    }

    /// The same before a message goes to somebody.
    pub(crate) fn expire_before_delivery(
        &mut self,
        cx: &mut Context<'_>,
        queue: QueueId,
        patience: Patience,
    ) -> Cleared {
        let mut left = DELIVER_STEP;
        if self.expire_by(cx, queue, &mut left, patience) {
            return Cleared::Yes;
        }
        self.queues.at_mut(queue).front = Front::Expired;
        self.queues.note_shed(queue);
        if left < DELIVER_STEP { Cleared::NotYet } else { Cleared::No }
    }

    /// A message was taken: what stood behind it may have expired, and does not count any more.
    #[cold]
    pub(crate) fn expire_behind(&mut self, cx: &mut Context<'_>, queue: QueueId) {
        self.expire_by(cx, queue, &mut { DELIVER_STEP }, Patience::No);
        self.queues.schedule(cx, queue);
    }
}
