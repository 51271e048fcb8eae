//! Removes messages from queues in bounded steps: rejected, expired, or over the length limit.
//!
//! Without a dead-letter exchange such a message is dropped at once. With one it is republished
//! (`dead_letter`). That may need capacity, or the message may have to be read back into memory first. Its
//! queue is then on a list. The list is processed in every turn as long as messages are removed, and after
//! that again whenever capacity becomes free.
//!
//! # Invariants
//! - A message that cannot be republished yet is unchanged in its queue, or among the rejected messages,
//!   which are not delivered any more.
//! - A length limit removes messages from the front.

use leveret_core::command::QueueId;
use leveret_core::mem::{MessageFlags, MessageId};

use super::Republisher;
use super::dead_letter::{Reason, Republication};
use crate::Context;
use crate::queue_flow::{ExpiryGrace, subtract_steps};
use crate::queue_records::Front;

/// Maximum number of expired messages that one delivery turn of a queue removes.
const DELIVER_STEP: u32 = 64;
/// Steps per turn for removing messages; a message may take several steps ([`subtract_steps`]).
const STEPS_PER_TURN: u32 = 512;
/// Maximum number of messages that one command removes at once.
const COMMAND_STEP: u32 = 8;
/// Maximum number of queues that one turn processes.
const QUEUES_STEP: usize = 64;

/// What one turn may still do to expire and trim messages.
#[derive(Debug)]
pub(crate) struct TrimTurn {
    has_begun: bool,
    /// Number of queues still to be processed.
    queues: usize,
    /// Number of steps left.
    left: u32,
}

impl TrimTurn {
    pub(crate) const fn new() -> Self {
        Self { has_begun: false, queues: 0, left: STEPS_PER_TURN }
    }
}

/// Whether the expired messages at the front of a queue have been removed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ExpiryResult {
    Done,
    /// Some expired messages remain for the next step.
    More,
    /// An expired message remains because there is no capacity for its dead letter now.
    Blocked,
}

impl Republisher<'_> {
    /// Removes messages from the listed queues until the turn's steps are used up.
    ///
    /// Returns early with an unused queue that has expired: the caller deletes it and calls again.
    pub(crate) fn expire_and_trim(&mut self, cx: &mut Context<'_>, turn: &mut TrimTurn) -> Option<QueueId> {
        if !turn.has_begun {
            turn.has_begun = true;
            self.queues.take_due(cx.pending_writes);
            if !self
                .queues
                .may_expire_or_trim(cx.pending_writes, || self.freed_count(cx.pending_writes, cx.messages))
            {
                return None;
            }
            if self
                .queues
                .may_release_delayed(cx.pending_writes, || self.freed_count(cx.pending_writes, cx.messages))
            {
                self.route_due_delayed(cx);
            }
            let room = self.freed_count(cx.pending_writes, cx.messages);
            self.queues.trim_list_mut().begin(room);
            turn.queues = self.queues.trim_list_mut().len().min(QUEUES_STEP);
        }
        while turn.queues > 0 && turn.left > 0 {
            turn.queues -= 1;
            let Some(queue) = self.queues.trim_list_mut().pop() else { break };
            let before = turn.left;
            self.queues.at_mut(queue).listed.is_listed_for_trim = false;
            let is_unused = self.queues.records().is_unused_for_too_long(cx.pending_writes, queue);
            if is_unused && !self.queues.at(queue).is_deleted() && !cx.pending_writes.is_crowded() {
                self.queues.trim_list_mut().note_step(true);
                return Some(queue);
            }
            let is_done = self.expire_and_trim_queue(cx, queue, is_unused, &mut turn.left);
            if !is_done && !core::mem::replace(&mut self.queues.at_mut(queue).listed.is_listed_for_trim, true)
            {
                self.queues.trim_list_mut().push(queue);
            }
            self.queues.trim_list_mut().note_step(is_done || turn.left < before);
        }
        let room = self.freed_count(cx.pending_writes, cx.messages);
        self.queues.trim_list_mut().end(room);
        None
    }

    /// Removes messages from one queue. Returns `false` if more remain.
    fn expire_and_trim_queue(
        &mut self,
        cx: &mut Context<'_>,
        queue: QueueId,
        is_unused: bool,
        left: &mut u32,
    ) -> bool {
        if self.queues.at(queue).is_deleted() {
            return true;
        }
        if is_unused {
            // The log has too much to write now for the queue to be deleted.
            return false;
        }
        // Each kind stops by itself: a dead letter without capacity may precede messages that need none.
        let are_all_sent = self.dead_letter_rejected_all(cx, queue, left);
        let has_expired = self.expire_by(cx, queue, left, ExpiryGrace::OneTurn);
        let is_trimmed = self.trim_by(cx, queue, left);
        // Rejected messages are kept apart: the first message may be removed whether or not they have
        // capacity.
        if has_expired && self.queues.at(queue).has_expiry() {
            self.queues.schedule(cx, queue);
            if self.queues.at(queue).front == Front::Expired {
                self.queues.unblock_front(queue);
            }
        }
        if !self.queues.records().is_first_level(queue) {
            self.queues.examine_first_level(queue);
        }
        are_all_sent && has_expired && is_trimmed
    }

    // ---- length limit

    /// Drops or dead-letters the oldest messages of a queue over its length limit.
    ///
    /// During a commit dead letters wait for its end, because capacity is reserved for the messages that the
    /// commit publishes.
    pub(crate) fn trim_length(&mut self, cx: &mut Context<'_>, queue: QueueId) {
        let (queue, mut left) = (self.queues.records().queue_of_level(queue), COMMAND_STEP);
        if !self.queues.records().has_dead_letters(queue) {
            self.queues.drop_excess(cx, queue);
        } else if cx.pending_writes.is_grouping() || !self.trim_by(cx, queue, &mut left) {
            self.queues.relist_for_trim(queue);
        }
    }

    /// Applies the length limit and schedules expiry after a message left the queue or was requeued: another
    /// message may be first.
    #[cold]
    pub(crate) fn enforce_limits(&mut self, cx: &mut Context<'_>, queue: QueueId) {
        if self.queues.at(queue).settings.limits_length {
            self.trim_length(cx, queue);
        }
        if self.queues.at(queue).settings.may_expire {
            self.queues.schedule(cx, queue);
        }
    }

    /// Applies length limit and expiry to the queues that a message was pushed to: it may have expired
    /// already.
    #[cold]
    pub(crate) fn enforce_limits_after_push(
        &mut self,
        cx: &mut Context<'_>,
        message: MessageId,
        queues: &[QueueId],
    ) {
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

    /// Dead-letters a message that these queues refused.
    ///
    /// The publisher learns of the refusal, so a dead letter without capacity is dropped.
    pub(crate) fn dead_letter_refused(
        &mut self,
        cx: &mut Context<'_>,
        message: MessageId,
        queues: &[QueueId],
    ) {
        for &queue in queues {
            if let Some(republication) = self.write_dead_letter(cx, queue, message, Reason::MaxLength) {
                self.publish_copy(cx, republication);
            }
        }
    }

    fn trim_by(&mut self, cx: &mut Context<'_>, queue: QueueId, left: &mut u32) -> bool {
        let queue = self.queues.records().queue_of_level(queue);
        while self.queues.records().is_over_length(queue) {
            let (before, level) = (cx.work.units(), self.queues.records().first_level(queue));
            let is_gone = *left > 0 && self.remove_first(cx, level, Reason::MaxLength);
            if !is_gone {
                return false;
            }
            self.queues.examine_next_level(queue, level);
            self.queues.records().charge_walked_levels(cx.work);
            subtract_steps(left, before, cx.work);
        }
        true
    }

    /// Drops or dead-letters the first message of a queue or priority level. Returns `false` if that is
    /// impossible now.
    fn remove_first(&mut self, cx: &mut Context<'_>, queue: QueueId, reason: Reason) -> bool {
        if !self.queues.records().has_dead_letters(queue) {
            return self.queues.drop_first(cx, queue);
        }
        if self.queues.first(queue).is_none() {
            return true;
        }
        let Some((_, message, is_logged)) = self.queues.first_in_memory(queue) else {
            self.queues.request_read(queue);
            return false;
        };
        let Some(republication) = self.write_dead_letter(cx, queue, message, reason) else { return false };
        self.send_first(cx, queue, republication, is_logged);
        true
    }

    /// Replaces the first message of a queue or priority level by this copy.
    pub(super) fn send_first(
        &mut self,
        cx: &mut Context<'_>,
        queue: QueueId,
        republication: Republication,
        is_logged: bool,
    ) {
        self.send(cx, republication, is_logged, |republisher, cx| {
            let Some(first) = republisher.queues.first(queue) else {
                panic!("a message that is republished is the first of its queue")
            };
            let taken = republisher.queues.take_first(cx, queue, first);
            republisher.queues.drop_taken(cx, queue, &taken);
        });
    }

    // ---- rejected messages

    /// Dead-letters a delivery that its consumer rejects or that is over the delivery limit.
    ///
    /// The delivery is on no list and counts for no consumer any more.
    pub(crate) fn dead_letter_delivery(
        &mut self,
        cx: &mut Context<'_>,
        queue: QueueId,
        index: usize,
        reason: Reason,
    ) {
        self.queues.reject(cx.messages, queue, index, reason);
        let mut left = COMMAND_STEP;
        if self.queues.at(queue).listed.is_listed_for_trim
            || !self.dead_letter_rejected_all(cx, queue, &mut left)
        {
            self.queues.list_for_trim(queue);
        }
    }

    fn dead_letter_rejected_all(&mut self, cx: &mut Context<'_>, queue: QueueId, left: &mut u32) -> bool {
        while let Some(index) = self.queues.at(queue).backlog.first_rejected() {
            let before = cx.work.units();
            if *left == 0 || !self.dead_letter_rejected(cx, queue, index) {
                return false;
            }
            subtract_steps(left, before, cx.work);
        }
        true
    }

    fn dead_letter_rejected(&mut self, cx: &mut Context<'_>, queue: QueueId, index: usize) -> bool {
        let delivery = &self.queues.deliveries()[index];
        let (is_logged, reason) = (delivery.logged.is_some(), delivery.death.unwrap_or(Reason::Rejected));
        let Some(message) = delivery.message else {
            self.queues.request_read(queue);
            return false;
        };
        let Some(republication) = self.write_dead_letter(cx, queue, message, reason) else { return false };
        self.send(cx, republication, is_logged, |republisher, cx| {
            republisher.queues.drop_rejected(cx, queue);
        });
        true
    }

    // ---- expired messages

    /// Expires a message with a time to live of 0 if no consumer is ready for it and it is the first one.
    ///
    /// Returns whether the queue's front was examined.
    pub(crate) fn expire_arrival(
        &mut self,
        cx: &mut Context<'_>,
        queue: QueueId,
        message: MessageId,
    ) -> bool {
        let record = self.queues.at(queue);
        let is_due =
            cx.messages.flags(message).has(MessageFlags::DUE_AT_ONCE) || record.settings.message_ttl_ms == 0;
        // During a commit the dead letter waits for its end, because capacity is reserved for the messages
        // that the commit publishes.
        let waits = cx.pending_writes.is_grouping() && record.settings.dead_letters;
        let looks = is_due && !self.queues.records().record_of_queue(queue).queue_consumers.is_ready();
        if looks && waits {
            self.queues.relist_for_trim(queue);
        } else if looks {
            self.expire_by(cx, queue, &mut 1, ExpiryGrace::No);
        }
        looks
    }

    /// Removes the expired messages at the front of a queue. Returns `false` if some remain.
    #[inline(never)]
    pub(crate) fn expire_by(
        &mut self,
        cx: &mut Context<'_>,
        queue: QueueId,
        left: &mut u32,
        grace: ExpiryGrace,
    ) -> bool {
        while self.queues.at(queue).settings.may_expire {
            if !self.queues.has_expired(cx, queue, grace) {
                break;
            }
            let before = cx.work.units();
            cx.work.charge(1);
            let is_gone = *left > 0 && self.remove_first(cx, queue, Reason::Expired);
            if !is_gone {
                return false;
            }
            // A failed attempt is not counted as a step, or the queue would be processed again at once.
            subtract_steps(left, before, cx.work);
        }
        true
    }

    /// Removes the expired messages at the front of a queue before a delivery.
    pub(crate) fn expire_before_delivery(
        &mut self,
        cx: &mut Context<'_>,
        queue: QueueId,
        grace: ExpiryGrace,
    ) -> ExpiryResult {
        let mut left = DELIVER_STEP;
        if self.expire_by(cx, queue, &mut left, grace) {
            return ExpiryResult::Done;
        }
        self.queues.at_mut(queue).front = Front::Expired;
        self.queues.list_for_trim(queue);
        if left < DELIVER_STEP { ExpiryResult::More } else { ExpiryResult::Blocked }
    }

    /// Removes expired messages and reschedules expiry after a message before them was taken.
    #[cold]
    pub(crate) fn expire_behind(&mut self, cx: &mut Context<'_>, queue: QueueId) {
        self.expire_by(cx, queue, &mut { DELIVER_STEP }, ExpiryGrace::No);
        self.queues.schedule(cx, queue);
    }
}
