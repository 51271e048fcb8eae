//! Whether a queue takes one message more: by its own arguments, and by its share of the memory.
//!
//! Always true: what a queue with priorities may have, all its levels have together; a publisher that waits
//! for a full queue is asked again only when that has fallen well below its share.

use crate::command::{ChannelId, ConnectionId, QueueId};
use crate::mem::{List, MessageFlags, MessageId, Messages, Share};

use super::arguments::Overflow;
use super::queue::{Queue, Rank};
use super::records::FullQueue;
use super::shortage::Shortage;
use super::state::SLOT_BYTES;
use super::{Broker, Context};

/// Eighths of its share that a queue may take, and to which it must have fallen before those go on who wait
/// for it.
const SHARE: u64 = 8;
const LOW_SHARE: u64 = 7;
/// Consumers that are asked whether one of them takes a message that is due at once.
const WAITING_LOOKED_AT: u32 = 64;
/// Messages beyond its length that a queue keeps for a consumer who is ready for them.
const BURST_MESSAGES: u64 = 2_048;

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
        let picky = |&queue: &QueueId| self.queues[queue.index()].is_picky_or_ranked();
        if !due && !targets.iter().any(picky) {
            return (targets.len(), false);
        }
        self.choose_levels(cx, message, targets);
        for &queue in &*targets {
            if self.queues[queue.index()].settings.overflow != Overflow::DropHead {
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
            let refuses = self.refuses(messages, queue, message);
            refused |= refuses;
            let due = due || self.queues[queue.index()].settings.message_ttl_ms == 0;
            let stays = !refuses && (!due || self.stays_though_due(queue));
            let is_buried = refuses && self.buries_refused(queue);
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
        let sleeps = self.queues[queue.index()].sleeps_for.is_some();
        sleeps || self.has_dead_letters(queue) || self.goes_on_at_once(queue)
    }

    /// Whether a message that enters the queue now leaves it in this turn: whether those who wait there can
    /// have more than are before it.
    fn goes_on_at_once(&self, queue: QueueId) -> bool {
        let whole = &self.queues[self.whole(queue).index()];
        let (mut before, mut at) = (self.ready_before(queue), whole.eligible.front());
        for _ in 0..WAITING_LOOKED_AT {
            let Some(consumer) = at.filter(|_| whole.returning == 0) else { return false };
            let credit = if self.connection_can_take(consumer) { self.credit(consumer) } else { 0 };
            if credit > before {
                return true;
            }
            before -= credit;
            at = List::after(&self.consumers, consumer, |consumer| &consumer.eligible_links);
        }
        false
    }

    /// Whether a policy of the queue refuses the message.
    pub(super) fn refuses(&self, messages: &Messages, queue: QueueId, message: MessageId) -> bool {
        self.refuses_body(queue, messages.body_len(message))
    }

    /// The same of a message with a body of so many bytes.
    pub(super) fn refuses_body(&self, queue: QueueId, body_len: u32) -> bool {
        let settings = &self.queues[queue.index()].settings;
        if settings.overflow == Overflow::DropHead {
            return false;
        }
        let body_bytes = self.in_all(queue, |record| record.backlog.body_bytes());
        let bytes = body_bytes + u64::from(body_len);
        u64::from(self.ready_in(queue)) >= settings.max_length || bytes > settings.max_length_bytes
    }

    /// Whether the queue has more than its policy lets it keep.
    pub(super) fn is_over_length(&self, queue: QueueId) -> bool {
        self.is_over_length_by(queue, 0, 0)
    }

    /// Whether it is so far over its length that it cannot wait for its consumer to take what is too much: by more
    /// than he is given in a turn or two, or a quarter of the memory.
    pub(super) fn is_far_over_length(&self, queue: QueueId) -> bool {
        let settings = &self.settings;
        let messages = BURST_MESSAGES.min(u64::from(settings.messages) / 4);
        self.is_over_length_by(queue, messages, settings.output_budget_bytes.min(settings.body_bytes / 4))
    }

    fn is_over_length_by(&self, queue: QueueId, messages: u64, bytes: u64) -> bool {
        let settings = &self.queues[queue.index()].settings;
        let ready = self.ready_in(queue);
        // A queue that refuses keeps what comes back to it, over its length as well.
        if settings.overflow != Overflow::DropHead || ready == 0 {
            return false;
        }
        let body_bytes = || self.in_all(queue, |record| record.backlog.body_bytes());
        u64::from(ready) > settings.max_length.saturating_add(messages)
            || body_bytes() > settings.max_length_bytes.saturating_add(bytes)
    }

    // ---- the share of memory

    /// No single queue may take the whole pool; what is delivered from it counts too.
    pub(super) fn within_share(&self, messages: &Messages, queue: QueueId) -> bool {
        self.is_below(messages, queue, SHARE)
    }

    /// Whether a queue takes less than so many eighths of its share: of four fifths of the memory for
    /// messages.
    #[inline]
    fn is_below(&self, messages: &Messages, queue: QueueId, eighths: u64) -> bool {
        let part = |max: usize| (max / 5 * 4) as u64 * eighths / 8;
        let (messages_share, bytes_share) = (part(messages.messages_max()), part(messages.body_bytes_max()));
        let Taken { resident, messages, bytes } = self.taken_by(queue);
        messages < messages_share && bytes < bytes_share + resident * SLOT_BYTES
    }

    #[inline]
    fn taken_by(&self, queue: QueueId) -> Taken {
        let record = &self.queues[queue.index()];
        match record.rank {
            Rank::Plain => Taken::by(record),
            Rank::Lowest { .. } | Rank::Level { .. } => {
                let levels = self.levels(self.whole(queue));
                levels.fold(Taken::default(), |taken, level| taken.with(&self.queues[level.index()]))
            }
        }
    }

    /// What a queue takes of its share of the memory, of messages or of bytes, of which it has more.
    pub(super) fn share_of_memory(&self, messages: &Messages, queue: QueueId) -> MemoryShare {
        let part = |max: usize| (max / 5 * 4) as u64;
        let taken = self.taken_by(queue);
        let bytes_share = part(messages.body_bytes_max()) + taken.resident * SLOT_BYTES;
        let messages_share = part(messages.messages_max());
        let is_of_bytes = u128::from(taken.bytes) * u128::from(messages_share)
            > u128::from(taken.messages) * u128::from(bytes_share);
        match is_of_bytes {
            true => MemoryShare { is_of_bytes, used: taken.bytes, most: bytes_share },
            false => MemoryShare { is_of_bytes, used: taken.messages, most: messages_share },
        }
    }

    /// Remembers for which queue the channel's connection waits, if it is one that has its share.
    pub(super) fn note_wait(&mut self, messages: &Messages, targets: &[QueueId], channel: ChannelId) {
        let full = targets.iter().copied().find(|&queue| !self.within_share(messages, queue));
        let connection = self.channels[channel.index()].connection;
        self.connections[connection.index()].waits_for = full.map(|queue| FullQueue {
            queue,
            serial: self.queues[queue.index()].serial,
            revision: self.revision(),
        });
    }

    /// Messages that have left the queue that somebody waits for, ever; `None`: he waits for something else. While it
    /// rises he need not give up.
    pub fn left_queue_of(&self, shortage: Shortage) -> Option<u64> {
        let (Shortage::QueueMemory(queue) | Shortage::QueueDisk(queue)) = shortage else { return None };
        // It may have been deleted since.
        self.queues.get(queue.index()).filter(|record| !record.dying)?;
        let came = self.in_all(queue, |level| level.backlog.came());
        Some(came.wrapping_sub(self.ready_in(queue).into()))
    }

    /// Whether the connection waits for a queue that has not fallen well below its share yet, so that trying
    /// again is in vain: on and off are apart here too.
    pub fn is_kept_waiting(&mut self, messages: &Messages, connection: ConnectionId) -> bool {
        let Some(full) = self.connections[connection.index()].waits_for else { return false };
        let record = self.queues.get(full.queue.index());
        let is_there = record.is_some_and(|record| record.serial == full.serial && !record.dying)
            && self.revision() == full.revision;
        let is_full = is_there && !self.is_below(messages, full.queue, LOW_SHARE);
        // Who holds what others wait for meanwhile does not wait for them.
        let is_kept = is_full && self.publish_share(connection) == Share::Ordinary;
        if !is_kept {
            self.connections[connection.index()].waits_for = None;
        }
        is_kept
    }
}

/// What a queue has of what it may have of the memory for messages.
pub(super) struct MemoryShare {
    pub(super) is_of_bytes: bool,
    pub(super) used: u64,
    pub(super) most: u64,
}

/// What a queue takes of the memory for messages.
#[derive(Clone, Copy, Default)]
struct Taken {
    /// Messages that wait and are in memory.
    resident: u64,
    /// Those, and what is delivered.
    messages: u64,
    /// Their bytes of blocks.
    bytes: u64,
}

impl Taken {
    #[inline]
    fn by(record: &Queue) -> Self {
        let resident = record.backlog.resident();
        Self {
            resident: resident.into(),
            messages: record.resident_messages(),
            bytes: record.backlog.bytes() + record.unsettled_bytes,
        }
    }

    fn with(self, record: &Queue) -> Self {
        let other = Self::by(record);
        Self {
            resident: self.resident + other.resident,
            messages: self.messages + other.messages,
            bytes: self.bytes + other.bytes,
        }
    }
}
