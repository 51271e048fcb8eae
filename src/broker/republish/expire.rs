//! Removes messages from queues in bounded steps: messages that are rejected, expired, or over the length
//! limit.
//!
//! In a queue without a dead-letter exchange such a message is dropped at once. Otherwise it is republished
//! (`dead_letter`), for which it may have to wait: for capacity, or until it is read back into memory. A
//! queue with such a message is on the trim list. The list is processed in every turn in which messages are
//! removed, and later whenever capacity becomes free.
//!
//! # Invariants
//! - A message that cannot be republished yet stays in its queue, or, if it was rejected, among the queue's
//!   rejected messages, which are not delivered.
//! - A length limit removes messages from the front.

use leveret_core::command::QueueId;
use leveret_core::mem::{MessageFlags, MessageId};
use leveret_queues::{ExpiryGrace, Front, Reason, subtract_steps};

use super::Republisher;
use super::dead_letter::Republication;
use crate::Context;

/// Maximum number of steps for removing expired messages before one delivery.
const DELIVER_STEP: u32 = 64;
/// Steps per turn for removing messages; a message may take several steps ([`subtract_steps`]).
const STEPS_PER_TURN: u32 = 512;
/// Maximum number of steps for removing messages within one command.
const COMMAND_STEP: u32 = 8;
/// Maximum number of queues that one turn processes.
const QUEUES_STEP: usize = 64;

/// What remains of the work that one turn may do to expire and trim messages.
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

/// The result of removing the expired messages at the front of a queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ExpiryResult {
    Done,
    /// Expired messages remain, because the maximum number of steps was taken.
    More,
    /// An expired message remains, because there is no capacity for its dead letter now.
    Blocked,
}

impl Republisher<'_> {
    /// Removes messages from the queues on the trim list until the steps of the turn are used up.
    ///
    /// Returns an unused queue that has expired, which the caller deletes before it calls again; `None` at
    /// the end.
    pub(crate) fn expire_and_trim(&mut self, cx: &mut Context<'_>, turn: &mut TrimTurn) -> Option<QueueId> {
        if !turn.has_begun {
            turn.has_begun = true;
            self.queues.note_memory(cx.messages, cx.pending_writes);
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
            let capacity_freed = self.freed_count(cx.pending_writes, cx.messages);
            self.queues.trim_list_mut().begin(capacity_freed);
            turn.queues = self.queues.trim_list_mut().queue_count().min(QUEUES_STEP);
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
        let capacity_freed = self.freed_count(cx.pending_writes, cx.messages);
        self.queues.trim_list_mut().end(capacity_freed);
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
            // Too many writes are pending now for the deletion of the queue.
            return false;
        }
        // Each of the three continues although another one stopped: some messages need capacity, and others
        // do not.
        let are_all_republished = self.dead_letter_rejected_all(cx, queue, left);
        let has_expired = self.expire_up_to(cx, queue, left, ExpiryGrace::OneTurn);
        // A ready consumer takes messages over the length limit. When it is not ready any more, the queue is listed again.
        let is_for_consumer = self.queues.records().record_of_queue(queue).queue_consumers.is_ready()
            && !self.queues.is_far_over_length(queue);
        let is_trimmed = is_for_consumer || self.trim_up_to(cx, queue, left);
        // The front does not depend on rejected messages: the first message may expire although a rejected
        // one waits for capacity.
        if has_expired && self.queues.at(queue).has_expiry() {
            self.queues.schedule(cx, queue);
            if self.queues.at(queue).front == Front::Expired {
                self.queues.unblock_front(queue);
            }
        }
        if !self.queues.records().is_first_level(queue) {
            self.queues.examine_first_level(queue);
        }
        are_all_republished && has_expired && is_trimmed
    }

    // ---- length limit

    /// Drops or dead-letters the oldest messages of a queue over its length limit.
    ///
    /// While `tx.commit` is carried out, the trim list does this later: the reserved capacity is for the
    /// messages of the transaction.
    pub(crate) fn trim_length(&mut self, cx: &mut Context<'_>, queue: QueueId) {
        let (queue, mut left) = (self.queues.records().queue_of_level(queue), COMMAND_STEP);
        if !self.queues.records().has_dead_letters(queue) {
            self.queues.drop_excess(cx, queue);
        } else if cx.pending_writes.is_grouping() || !self.trim_up_to(cx, queue, &mut left) {
            self.queues.relist_for_trim(queue);
        }
    }

    /// Applies the length limit and schedules expiry, because a message left the queue or was requeued and
    /// another message may be the first one.
    #[cold]
    pub(crate) fn enforce_limits(&mut self, cx: &mut Context<'_>, queue: QueueId) {
        if self.queues.at(queue).settings.limits_length {
            self.trim_length(cx, queue);
        }
        if self.queues.at(queue).settings.may_expire {
            self.queues.schedule(cx, queue);
        }
    }

    /// Applies length limits and expiry to the queues to which a message was pushed. With a time to live of 0
    /// the message expires at once.
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
            let is_over = self.queues.is_over_after_push(queue, cx.pending_writes.time_ms());
            if is_over {
                self.trim_length(cx, queue);
            }
            let has_expired = self.expire_arrival(cx, queue, message);
            if self.queues.at(queue).settings.may_expire && (is_over || has_expired) {
                self.queues.schedule(cx, queue);
            }
        }
    }

    /// Dead-letters a message that these queues refused because of their length limit.
    ///
    /// A dead letter for which there is no capacity is dropped: the publisher is notified of the refusal, and
    /// can publish the message again.
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

    fn trim_up_to(&mut self, cx: &mut Context<'_>, queue: QueueId, left: &mut u32) -> bool {
        let queue = self.queues.records().queue_of_level(queue);
        while self.queues.records().is_over_length(queue) {
            let (before, level) = (cx.work.units(), self.queues.records().first_level(queue));
            let is_removed = *left > 0 && self.remove_first(cx, level, Reason::MaxLength);
            if !is_removed {
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
            let is_dropped = self.queues.drop_first(cx, queue);
            if is_dropped && reason == Reason::MaxLength {
                self.queues.count_dropped(self.queues.records().queue_of_level(queue));
            }
            return is_dropped;
        }
        if self.queues.first(queue).is_none() {
            return true;
        }
        let Some((_, message, is_logged)) = self.queues.first_in_memory(queue) else {
            self.queues.request_read(queue);
            return false;
        };
        let Some(republication) = self.write_dead_letter(cx, queue, message, reason) else { return false };
        self.publish_and_remove_first(cx, queue, republication, is_logged);
        true
    }

    /// Publishes a copy and removes its original, the first message of a queue or level.
    pub(super) fn publish_and_remove_first(
        &mut self,
        cx: &mut Context<'_>,
        queue: QueueId,
        republication: Republication,
        is_logged: bool,
    ) {
        self.publish_and_remove(cx, republication, is_logged, |republisher, cx| {
            let Some(first) = republisher.queues.first(queue) else {
                panic!("the caller wrote the copy of the first message of this queue")
            };
            let taken = republisher.queues.take_first(cx, queue, first);
            republisher.queues.drop_taken(cx, queue, &taken);
        });
    }

    // ---- rejected messages

    /// Dead-letters the message of a delivery that was rejected or is over the delivery limit: now, or when
    /// there is capacity.
    ///
    /// The caller has removed the delivery from its channel's list and subtracted it from the counts of its
    /// consumer.
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
        let (is_logged, reason) =
            (delivery.log_offset.is_some(), delivery.dead_letter_reason.unwrap_or(Reason::Rejected));
        let Some(message) = delivery.message else {
            self.queues.request_read(queue);
            return false;
        };
        let Some(republication) = self.write_dead_letter(cx, queue, message, reason) else { return false };
        self.publish_and_remove(cx, republication, is_logged, |republisher, cx| {
            republisher.queues.drop_rejected(cx, queue);
        });
        true
    }

    // ---- expired messages

    /// Expires a message with a time to live of 0 that was just pushed, if it is the first one and no
    /// consumer is ready.
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
        // While `tx.commit` is carried out, the trim list does this later: the reserved capacity is for the
        // messages of the transaction.
        let waits = cx.pending_writes.is_grouping() && record.settings.dead_letters;
        let examines_front =
            is_due && !self.queues.records().record_of_queue(queue).queue_consumers.is_ready();
        if examines_front && waits {
            self.queues.relist_for_trim(queue);
        } else if examines_front {
            self.expire_up_to(cx, queue, &mut 1, ExpiryGrace::No);
        }
        examines_front
    }

    /// Removes the expired messages at the front of a queue. Returns `false` if some remain.
    #[inline(never)]
    pub(crate) fn expire_up_to(
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
            let is_removed = *left > 0 && self.remove_first(cx, queue, Reason::Expired);
            if !is_removed {
                return false;
            }
            // A failed attempt is not counted as a step: the caller processes a queue again at once if steps
            // were taken.
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
        if self.expire_up_to(cx, queue, &mut left, grace) {
            return ExpiryResult::Done;
        }
        self.queues.at_mut(queue).front = Front::Expired;
        self.queues.list_for_trim(queue);
        if left < DELIVER_STEP { ExpiryResult::More } else { ExpiryResult::Blocked }
    }

    /// Removes the expired messages at the front and reschedules expiry, because a `basic.get` took the
    /// message before them.
    #[cold]
    pub(crate) fn expire_behind(&mut self, cx: &mut Context<'_>, queue: QueueId) {
        self.expire_up_to(cx, queue, &mut { DELIVER_STEP }, ExpiryGrace::No);
        self.queues.schedule(cx, queue);
    }
}
