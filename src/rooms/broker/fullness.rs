//! Whether a queue takes one message more: by its own arguments, and by its share of the memory.
//!
//! Always true: what a queue with priorities may have, all its levels have together; a publisher that waits
//! for a full queue is asked again only when that has fallen well below its share.

use crate::command::{ChannelId, ConnectionId, QueueId};
use crate::mem::{MessageFlags, MessageId, Messages, Share};

use super::arguments::Overflow;
use super::consumers::FullQueue;
use super::{Broker, Context};

impl Broker {
    /// Puts levels in the places of queues with priorities, and leaves out queues that take no more by their
    /// own policy, and for a message that is due at once those where nobody waits for it and from which it
    /// goes nowhere. Says how many stay, in front of those that refuse it and dead-letter that, and whether a
    /// policy refused it.
    #[inline]
    pub(super) fn leave_out_unwilling(
        &mut self,
        cx: &mut Context<'_>,
        message: MessageId,
        targets: &mut Vec<QueueId>,
    ) -> (usize, bool) {
        let due = cx.messages.flags(message).has(MessageFlags::DUE_AT_ONCE);
        let picky = |&queue: &QueueId| self.queues.at(queue).is_picky_or_ranked();
        if !due && !targets.iter().any(picky) {
            return (targets.len(), false);
        }
        self.queues.choose_levels(cx, &mut self.quota, message, targets);
        for &queue in &*targets {
            if self.queues.at(queue).settings.overflow != Overflow::DropHead {
                self.catch_up(cx, queue);
            }
        }
        self.keep_willing(cx.messages, message, targets)
    }

    fn keep_willing(
        &self,
        messages: &Messages,
        message: MessageId,
        targets: &mut Vec<QueueId>,
    ) -> (usize, bool) {
        let due = messages.flags(message).has(MessageFlags::DUE_AT_ONCE);
        let (mut kept, mut end, mut refused) = (0, 0, false);
        for at in 0..targets.len() {
            let queue = targets[at];
            let refuses = self.queues.refuses(messages, queue, message);
            refused |= refuses;
            let due = due || self.queues.at(queue).settings.message_ttl_ms == 0;
            let stays = !refuses && (!due || self.stays_though_due(queue));
            let is_buried = refuses && self.queues.buries_refused(queue);
            if stays || is_buried {
                targets.swap(end, at);
                end += 1;
            }
            if stays {
                targets.swap(kept, end - 1);
                kept += 1;
            }
        }
        targets.truncate(end);
        (kept, refused)
    }

    /// Whether a message that is due at once is put into the queue: it goes on from there, or sleeps first.
    fn stays_though_due(&self, queue: QueueId) -> bool {
        let sleeps = self.queues.at(queue).sleeps_for.is_some();
        sleeps
            || self.queues.has_dead_letters(queue)
            || self.consumers.take_at_once(&self.queues, &self.quota, queue)
    }

    // ---- the share of memory

    /// Remembers for which queue the channel's connection waits, if it is one that has its share.
    pub(super) fn note_wait(&mut self, messages: &Messages, targets: &[QueueId], channel: ChannelId) {
        let full = targets.iter().copied().find(|&queue| !self.queues.within_share(messages, queue));
        let connection = self.consumers.connection_of(channel);
        self.consumers.connection_mut(connection).waits_for = full.map(|queue| FullQueue {
            queue,
            serial: self.queues.at(queue).serial,
            revision: self.revision(),
        });
    }

    /// Whether the connection waits for a queue that has not fallen well below its share yet, so that trying
    /// again is in vain: on and off are apart here too.
    pub fn is_kept_waiting(&mut self, messages: &Messages, connection: ConnectionId) -> bool {
        let Some(full) = self.consumers.connection(connection).waits_for else { return false };
        let record = self.queues.get(full.queue.index());
        let is_there = record.is_some_and(|record| record.serial == full.serial && !record.dying)
            && self.revision() == full.revision;
        let is_full = is_there && !self.queues.is_well_within_share(messages, full.queue);
        // Who holds what others wait for meanwhile does not wait for them.
        let is_kept = is_full && self.publish_share(connection) == Share::Ordinary;
        if !is_kept {
            self.consumers.connection_mut(connection).waits_for = None;
        }
        is_kept
    }
}
