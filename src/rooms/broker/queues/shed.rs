//! Which message a queue gives up, and whether it goes on as a dead letter.
//!
//! Always true: a message that is given up leaves its queue only when its dead letter is routed; until then
//! it is in its queue, as it was, or among the rejected messages, which nobody is given any more.

use super::backlog::First;
use super::place::Place;
use super::state::Queues;
use crate::broker::Context;
use crate::broker::arguments::Overflow;
use crate::broker::letters::Death;
use crate::broker::work::Work;
use crate::command::{QueueId, VhostId};
use crate::journal::Journal;
use crate::mem::{MessageId, Messages};

/// Messages that one command makes a queue drop at most, when its length limit has become smaller.
const DROP_STEP: u32 = 512;
/// The number of no route.
const NEVER_ROUTED: u64 = u64::MAX;

impl Queues {
    /// Whether some queue has messages to give up, and may be able to, with this count of room made.
    pub(crate) fn may_give_up(&self, journal: &Journal, room_made: impl Fn() -> u64) -> bool {
        self.next_expiry_ms().is_some_and(|at| at <= journal.time_ms())
            || self.shedding.is_due(&room_made)
            || self.may_wake(journal, room_made)
    }

    /// Whether a delayed message is due and may be moved, with this count of room made.
    pub(crate) fn may_wake(&self, journal: &Journal, room_made: impl Fn() -> u64) -> bool {
        self.sleepers.is_due(journal.time_ms(), room_made)
    }

    /// Drops the oldest messages of a queue without dead letters that is over its length limit.
    pub(crate) fn drop_excess(&mut self, cx: &mut Context<'_>, queue: QueueId) {
        let queue = self.whole(queue);
        assert!(!self.has_dead_letters(queue), "what goes on is not dropped");
        // More messages are too many only when the limit has become smaller.
        for _ in 0..DROP_STEP {
            let level = self.first_level(queue);
            if !self.is_over_length(queue) || !self.drop_first(cx, level) {
                return;
            }
            self.note_taken_off(queue, level);
        }
        self.note_shed_anew(queue);
    }

    /// Checks the length limit of each queue that a dead letter came into; dead letters that this causes are
    /// seen to later, for one at a time is being written.
    #[cold]
    pub(crate) fn look_after_letter(&mut self, cx: &mut Context<'_>, message: MessageId, queues: &[QueueId]) {
        for &queue in queues {
            self.note_arrival(cx, queue, message);
        }
        for &queue in queues {
            let is_over = self.is_over_after_push(queue);
            if is_over && self.has_dead_letters(queue) {
                self.note_shed_anew(queue);
            } else if is_over {
                self.drop_excess(cx, queue);
            }
            if is_over && self.slab[queue.index()].settings.may_expire {
                self.schedule(cx, queue);
            }
        }
    }

    /// Whether a queue is over its length limit after a message came in.
    pub(crate) fn is_over_after_push(&self, queue: QueueId) -> bool {
        let whole = &self.slab[self.whole(queue).index()];
        if !whole.settings.limits_length {
            return false;
        }
        // With a consumer ready the message may still go before the queue is over its length.
        match whole.audience.is_ready() {
            true => self.is_far_over_length(queue),
            false => self.is_over_length(queue),
        }
    }

    /// Notes that the first message of a level is gone: with the last one of a level another level is the
    /// first.
    pub(crate) fn note_taken_off(&mut self, queue: QueueId, level: QueueId) {
        if self.first_level(queue) != level {
            self.look_at_first_level(queue);
        }
    }

    /// The first message if it is in memory, and whether the log has it too.
    pub(crate) fn first_in_memory(&self, queue: QueueId) -> Option<(First, MessageId, bool)> {
        let first = self.first(queue)?;
        let (message, is_logged) = match first {
            First::Absent(_) | First::At(_, Place::Stored(..)) => return None,
            First::CameBack => {
                let backlog = &self.slab[queue.index()].backlog;
                let (message, logged) = backlog.first_returned(&self.pool, &self.deliveries);
                (message, logged.is_some())
            }
            First::At(_, Place::Plain(message) | Place::Spilled(message, _)) => (message, false),
            First::At(_, Place::Logged(message, _)) => (message, true),
        };
        Some((first, message, is_logged))
    }

    /// Whether a message that the queue refuses for its length limit is dead-lettered.
    pub(crate) fn buries_refused(&self, queue: QueueId) -> bool {
        let overflow = self.slab[queue.index()].settings.overflow;
        overflow == Overflow::RejectPublishDlx && self.has_dead_letters(queue)
    }

    /// Settles the first rejected message; `false` when there is none.
    pub(crate) fn drop_rejected(&mut self, cx: &mut Context<'_>, queue: QueueId) -> bool {
        let backlog = &mut self.slab[queue.index()].backlog;
        let Some(delivery) = backlog.take_rejected(&mut self.deliveries, cx.messages) else { return false };
        self.settle_delivered(cx, queue, &delivery);
        self.releases += 1;
        true
    }

    /// Whether messages that this queue gives up are dead-lettered.
    pub(crate) fn has_dead_letters(&self, queue: QueueId) -> bool {
        let record = &self.slab[queue.index()];
        record.settings.dead_letters && !record.dying
    }

    /// Leaves out the full queues. Says how many take the letter, in front of those that dead-letter it.
    pub(crate) fn leave_out_full(
        &self,
        messages: &Messages,
        message: MessageId,
        targets: &mut Vec<QueueId>,
    ) -> usize {
        let refuses = |queue: &QueueId| self.refuses(messages, *queue, message);
        targets.retain(|queue| !refuses(queue) || self.buries_refused(*queue));
        let mut kept = 0;
        for at in 0..targets.len() {
            if !refuses(&targets[at]) {
                targets.swap(kept, at);
                kept += 1;
            }
        }
        kept
    }

    /// Leaves out the queues that the dead letter has passed before without being rejected. Its publisher may
    /// have made up any number of deaths, so each is looked at once, whatever the number of queues.
    pub(crate) fn leave_out_passed(
        &mut self,
        work: &mut Work,
        vhost: VhostId,
        death: &Death<'_>,
        targets: &mut Vec<QueueId>,
    ) {
        let deaths = death.each_passed(&mut |queue| {
            if let Some(queue) = self.find_queue(vhost, queue) {
                self.slab[queue.index()].routed_at = NEVER_ROUTED;
            }
        });
        work.charge(deaths);
        targets.retain(|queue| self.slab[queue.index()].routed_at != NEVER_ROUTED);
    }
}
