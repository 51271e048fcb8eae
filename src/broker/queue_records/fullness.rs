//! Limits of a queue: its length limit, and its share of the memory and of the log.
//!
//! The limits of a queue with priorities apply to all its levels together.

use super::backlog::{SLOT_BYTES, block_bytes};
use super::record::Records;
use super::record::{Queue, Rank};
use crate::arguments::Overflow;
use crate::shortage::{Pool, Shortage};
use leveret_core::command::QueueId;
use leveret_core::mem::{MessageFlags, MessageId, Messages};

/// A queue may use up to this many times the memory for messages that is still free. One queue alone can
/// therefore use two thirds, and three queues without consumers leave one seventh to all others.
const TIMES_FREE_MEMORY: u64 = 2;
/// A queue may use up to this many times the free space of the log: one queue alone four fifths.
pub(crate) const TIMES_FREE_DISK: u64 = 4;
/// A queue must have fallen to this many quarters of its share before the publishers that wait for it
/// continue.
const LOW_QUARTERS: u64 = 3;

/// The memory for messages that ordinary publishers can still use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FreeMemory {
    /// Queue entries.
    pub(crate) entries: u64,
    /// Message slots.
    pub(crate) messages: u64,
    /// Bytes of blocks, beyond the slots.
    pub(crate) bytes: u64,
}

impl FreeMemory {
    /// Counts the memory of an incoming message as free, because it is not in a queue yet.
    #[inline]
    pub(crate) fn with(self, messages: &Messages, message: MessageId) -> Self {
        let bytes = self.bytes + block_bytes(messages, message);
        Self { messages: self.messages + 1, bytes, ..self }
    }
}

impl Records {
    /// Returns whether the queue refuses the message because of its length limit (`reject-publish`), ignoring
    /// the credit of its consumers.
    pub(crate) fn refuses(&self, messages: &Messages, queue: QueueId, message: MessageId) -> bool {
        self.refuses_body(queue, messages.body_len(message), 0)
    }

    /// Returns whether the queue refuses a message with a body of this many bytes because of its length limit
    /// (`reject-publish`).
    ///
    /// `credit` is the number of messages that its consumers can take now. These do not count towards the
    /// limit, although messages of a transaction are delivered only after their sync.
    pub(crate) fn refuses_body(&self, queue: QueueId, body_len: u32, credit: u64) -> bool {
        let settings = &self.slab[queue.index()].settings;
        let ready = u64::from(self.ready_in(queue));
        if settings.overflow == Overflow::DropHead || credit > ready {
            return false;
        }
        let body_bytes = self.sum_over_levels(queue, |record| record.backlog.body_bytes());
        let bytes = body_bytes + u64::from(body_len);
        ready - credit >= settings.max_length || bytes > settings.max_length_bytes
    }

    /// Returns whether the queue is over its length limit.
    pub(crate) fn is_over_length(&self, queue: QueueId) -> bool {
        self.is_over_length_by(queue, 0, 0)
    }

    /// Returns whether the queue is over its length limit by more than this many messages, or bytes of
    /// bodies.
    pub(crate) fn is_over_length_by(&self, queue: QueueId, messages: u64, bytes: u64) -> bool {
        let settings = &self.slab[queue.index()].settings;
        let ready = self.ready_in(queue);
        // A queue with reject-publish keeps requeued messages even over its length limit.
        if settings.overflow != Overflow::DropHead || ready == 0 {
            return false;
        }
        let body_bytes = || self.sum_over_levels(queue, |record| record.backlog.body_bytes());
        u64::from(ready) > settings.max_length.saturating_add(messages)
            || body_bytes() > settings.max_length_bytes.saturating_add(bytes)
    }

    /// Returns whether a queue is within its share of the memory for messages, unsettled deliveries included.
    #[inline]
    pub(crate) fn within_share(&self, free: FreeMemory, queue: QueueId) -> bool {
        self.is_within(free, queue, 4)
    }

    /// Returns whether a queue has fallen well below its share of the memory for messages.
    pub(crate) fn is_well_within_share(&self, free: FreeMemory, queue: QueueId) -> bool {
        self.is_within(free, queue, LOW_QUARTERS)
    }

    /// Returns whether a queue uses at most this many quarters of its share.
    #[inline]
    fn is_within(&self, free: FreeMemory, queue: QueueId, quarters: u64) -> bool {
        let most = |free: u64| free * TIMES_FREE_MEMORY * quarters / 4;
        let used = self.taken_by(queue);
        // No other queue can use the rest of a chunk of entries.
        let has_entries = !self.slab[queue.index()].backlog.needs_chunk();
        used.messages <= most(free.messages)
            && used.bytes <= most(free.bytes)
            && (has_entries || used.entries <= most(free.entries))
    }

    #[inline]
    fn taken_by(&self, queue: QueueId) -> Used {
        let record = &self.slab[queue.index()];
        match record.rank {
            Rank::Plain => Used::by(record),
            Rank::Lowest { .. } | Rank::Level { .. } => {
                let levels = self.levels(self.queue_of_level(queue));
                levels.fold(Used::default(), |taken, level| taken.with(&self.slab[level.index()]))
            }
        }
    }

    /// Returns the pool of whose share the queue uses most, and how much it uses.
    pub(crate) fn fullest_pool(&self, free: FreeMemory, queue: QueueId) -> (Pool, u64) {
        let used = self.taken_by(queue);
        let pools = [
            (Pool::Messages, used.messages, free.messages),
            (Pool::Bodies, used.bytes, free.bytes),
            (Pool::Entries, used.entries, free.entries),
        ];
        let [first, others @ ..] = pools;
        let (pool, used, _) = others.into_iter().fold(first, |most, other| {
            let is_fuller = u128::from(other.1) * u128::from(most.2.max(1))
                > u128::from(most.1) * u128::from(other.2.max(1));
            if is_fuller { other } else { most }
        });
        (pool, used)
    }

    /// Returns the number of messages that left the queue which this publisher waits for; `None` if it waits
    /// for something else.
    ///
    /// While the number rises, the publisher need not be refused.
    pub(crate) fn departures_from_awaited_queue(&self, shortage: Shortage) -> Option<u64> {
        let (Shortage::QueueMemory(queue) | Shortage::QueueDisk(queue)) = shortage else { return None };
        // The queue may have been deleted since.
        self.slab.get(queue.index()).filter(|record| !record.is_deleted())?;
        let came = self.sum_over_levels(queue, |level| level.backlog.arrived_count());
        Some(came.wrapping_sub(self.ready_in(queue).into()))
    }

    /// Returns the queue with the largest sum of `much` over all its levels.
    pub(crate) fn fullest(&self, much: impl Fn(&Queue) -> u64) -> Option<(QueueId, u64)> {
        let whole = self.slab.iter().map(|(place, _)| QueueId::from_index(place));
        let shown = whole.filter(|queue| {
            let record = &self.slab[queue.index()];
            !record.is_deleted() && !record.hidden
        });
        let found = shown.map(|queue| (queue, self.sum_over_levels(queue, &much)));
        found.max_by_key(|(_, much)| *much).filter(|(_, much)| *much > 0)
    }

    /// Returns whether the next message of a queue needs a new chunk.
    pub(crate) fn needs_chunk(&self, queue: QueueId) -> bool {
        self.slab[queue.index()].backlog.needs_chunk()
    }

    /// Returns the target queue that has used up its share of the memory.
    #[cold]
    pub(crate) fn crowded_queue(&self, free: FreeMemory, targets: &[QueueId]) -> Shortage {
        let full = targets.iter().copied().find(|&queue| !self.within_share(free, queue));
        Shortage::QueueMemory(self.queue_of_level(full.unwrap_or(targets[0])))
    }

    /// Returns the target queue with most bytes in the log.
    #[cold]
    pub(crate) fn longest_in_log(&self, targets: &[QueueId]) -> Shortage {
        let longest =
            targets.iter().copied().max_by_key(|queue| self.sum_over_levels(*queue, Queue::log_bytes));
        Shortage::QueueDisk(self.queue_of_level(longest.unwrap_or(targets[0])))
    }

    // ---- which queues take a message

    /// Returns whether removed messages of this queue are dead-lettered.
    pub(crate) fn has_dead_letters(&self, queue: QueueId) -> bool {
        let record = &self.slab[queue.index()];
        record.settings.dead_letters && !record.is_deleted()
    }

    /// Returns whether a message that the queue refuses because of its length limit is dead-lettered.
    pub(crate) fn dead_letters_refused(&self, queue: QueueId) -> bool {
        let overflow = self.slab[queue.index()].settings.overflow;
        overflow == Overflow::RejectPublishDlx && self.has_dead_letters(queue)
    }

    /// Removes the target queues that do not take the message.
    ///
    /// A queue does not take a message that its length limit refuses. For a message that expires at once,
    /// neither does a queue whose consumers cannot take it now, unless it has a dead-letter exchange.
    /// `credit` returns how many messages the consumers of a queue can take now. Without it (`None`), the
    /// limit counts every message, and nothing expires at once.
    ///
    /// Returns how many queues at the front of `targets` take the message; those behind them refuse and
    /// dead-letter it. The Boolean tells whether a length limit refused it.
    pub(crate) fn keep_accepting(
        &self,
        messages: &Messages,
        message: MessageId,
        targets: &mut Vec<QueueId>,
        credit: Option<&dyn Fn(QueueId) -> u64>,
    ) -> (usize, bool) {
        let due = messages.flags(message).has(MessageFlags::DUE_AT_ONCE);
        let (mut kept, mut end, mut refused) = (0, 0, false);
        for at in 0..targets.len() {
            let queue = targets[at];
            let is_accepted_at_once =
                |queue| credit.is_none_or(|credit| credit(queue) > u64::from(self.ready_before(queue)));
            let refuses = self.refuses(messages, queue, message)
                && credit
                    .is_none_or(|credit| self.refuses_body(queue, messages.body_len(message), credit(queue)));
            refused |= refuses;
            let due = due || self[queue].settings.message_ttl_ms == 0;
            let stays = !refuses && (!due || self.outlives_expiry(queue) || is_accepted_at_once(queue));
            let is_dead_lettered = refuses && self.dead_letters_refused(queue);
            if stays || is_dead_lettered {
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

    /// Returns whether a message that expires at once is dead-lettered by the queue, or delayed first.
    fn outlives_expiry(&self, queue: QueueId) -> bool {
        self[queue].delayed_exchange.is_some() || self.has_dead_letters(queue)
    }
}

/// How much of the memory for messages a queue uses.
#[derive(Clone, Copy, Default)]
struct Used {
    /// Entries of the queue.
    entries: u64,
    /// Messages in memory, ready or delivered.
    messages: u64,
    /// Bytes of blocks of the messages in memory, beyond their slots.
    bytes: u64,
}

impl Used {
    #[inline]
    fn by(record: &Queue) -> Self {
        let slots = u64::from(record.backlog.resident()) * SLOT_BYTES;
        Self {
            entries: record.backlog.entries(),
            messages: record.resident_messages(),
            bytes: (record.backlog.bytes() + record.unsettled.bytes).saturating_sub(slots),
        }
    }

    fn with(self, record: &Queue) -> Self {
        let other = Self::by(record);
        Self {
            entries: self.entries + other.entries,
            messages: self.messages + other.messages,
            bytes: self.bytes + other.bytes,
        }
    }
}
