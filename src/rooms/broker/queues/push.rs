//! Messages enter queues: in memory, and in the log if they are to be kept.
//!
//! Always true: the caller made sure of room everywhere before anything is pushed; the message is held once, whatever
//! the fan-out.

use super::backlog::Size;
use super::queue::Queue;
use super::state::Queues;
use crate::broker::Context;
use crate::broker::quota::Quota;
use crate::broker::shortage::Shortage;
use crate::command::QueueId;
use crate::journal::{Appended, Journal, Mode, Urgency};
use crate::mem::{MessageFlags, MessageId, Messages};

use super::head::log_bytes;

impl Queues {
    /// Pushes a message that the broker itself sends on: a dead letter, or a copy for the firehose. Length
    /// limits are checked later where messages go on as dead letters, for letters may cause letters.
    pub(crate) fn push_letter(
        &mut self,
        cx: &mut Context<'_>,
        quota: &mut Quota,
        message: MessageId,
        targets: &[QueueId],
    ) {
        if self.push(cx, quota, message, targets, Urgency::Window) {
            self.look_after_letter(cx, message, targets);
        }
    }

    /// Pushes a message to queues; says whether the rules of one of them are to be checked then.
    pub(crate) fn push(
        &mut self,
        cx: &mut Context<'_>,
        quota: &mut Quota,
        message: MessageId,
        targets: &[QueueId],
        urgency: Urgency,
    ) -> bool {
        let size = Size::of(cx.messages, message);
        cx.work.charge(targets.len().saturating_sub(1));
        let mut has_rules = cx.messages.flags(message).has(MessageFlags::EXPIRES);
        let appended = self.append_to_journal(cx, quota, message, targets, urgency);
        for &queue in targets {
            cx.messages.retain(message);
            let record = &mut self.slab[queue.index()];
            record.push(&mut self.pool, &appended, size);
            has_rules |= record.is_picky();
            self.wake(queue);
        }
        has_rules
    }

    /// Gives the message its next offset in each durable queue if it is to be kept, and hands it to the
    /// journal.
    fn append_to_journal(
        &mut self,
        cx: &mut Context<'_>,
        quota: &mut Quota,
        message: MessageId,
        targets: &[QueueId],
        urgency: Urgency,
    ) -> Appended {
        if !self.is_for_log(cx, message) {
            return Journal::transient(message);
        }
        let bytes = log_bytes(cx.messages, message);
        let slab = &mut self.slab;
        let places = targets.iter().filter_map(|queue| slab[queue.index()].logged.next_target(bytes));
        let appended = cx.journal.append(cx.messages, message, places, urgency);
        if appended.targets() > 0 {
            let vhost = self.slab[targets[0].index()].vhost;
            quota.take_disk(vhost, bytes * u64::from(appended.targets()));
            if urgency == Urgency::Awaited {
                cx.await_batch(appended.batch());
            }
        }
        appended
    }

    /// Whether durable queues write this message down.
    #[inline]
    fn is_for_log(&self, cx: &Context<'_>, message: MessageId) -> bool {
        let is_persistent =
            self.settings.persist_all || cx.messages.flags(message).has(MessageFlags::PERSISTENT);
        is_persistent && cx.journal.mode() != Mode::Off
    }

    /// How many of the target queues write this message down.
    pub(crate) fn logged_targets(&self, cx: &Context<'_>, message: MessageId, targets: &[QueueId]) -> usize {
        if !self.is_for_log(cx, message) {
            return 0;
        }
        targets.iter().filter(|queue| self.slab[queue.index()].logged.is_on()).count()
    }

    /// Whether the next message that comes to a queue needs a fresh chunk.
    pub(crate) fn needs_chunk(&self, queue: QueueId) -> bool {
        self.slab[queue.index()].backlog.needs_chunk()
    }

    /// The target queue that has used up its share of the memory.
    #[cold]
    pub(crate) fn crowded_queue(&self, messages: &Messages, targets: &[QueueId]) -> Shortage {
        let full = targets.iter().copied().find(|&queue| !self.within_share(messages, queue));
        Shortage::QueueMemory(self.whole(full.unwrap_or(targets[0])))
    }

    /// The target queue with most messages in the log.
    #[cold]
    pub(crate) fn longest_in_log(&self, targets: &[QueueId]) -> Shortage {
        let longest = targets.iter().copied().max_by_key(|queue| self.in_all(*queue, Queue::log_bytes));
        Shortage::QueueDisk(self.whole(longest.unwrap_or(targets[0])))
    }

    /// Fresh chunks that one message may ever take.
    pub(crate) const fn fan_out_max(&self) -> usize {
        self.pool.chunks_max() - self.settings.chunks_reserve
    }
}
