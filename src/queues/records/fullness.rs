//! Checks of a queue against its limits: the length limit, and the queue's share of the memory and of the
//! log.
//!
//! The limits of a queue with priorities apply to all its levels together.

use leveret_core::command::QueueId;
use leveret_core::mem::{CHUNK_BYTES, ENTRIES_PER_CHUNK, MessageFlags, MessageId, Messages};

use super::backlog::{SLOT_BYTES, block_bytes};
use super::record::{Pace, Queue, Rank, Records};
use crate::settings::Overflow;
use crate::shortage::{Pool, Shortage};

/// A queue may use up to this many times the memory for messages that is still free. One queue alone can
/// therefore use two thirds of the memory. Three full queues use two sevenths each and leave one seventh
/// free.
pub(crate) const TIMES_FREE_MEMORY: u64 = 2;
/// The same for messages from connections with unsettled deliveries or open transactions: others may wait until
/// such a connection continues. One queue alone can then use four fifths of the memory.
pub(crate) const TIMES_FREE_MEMORY_FOR_HOLDERS: u64 = 4;
/// A queue may use up to this many times the free space of the log: one queue alone can use four fifths of
/// the log.
pub(crate) const TIMES_FREE_DISK: u64 = 4;
/// The publishers that wait for a queue continue when the queue uses at most this many quarters of its share.
const RESUME_QUARTERS: u64 = 3;

/// The kind of queues that refused a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RefusedBy {
    /// No queue refused it, or only sessions did while other queues accepted it.
    NoQueue,
    /// The length limit of a queue refused it.
    LengthLimit,
    /// No queue accepts it, because it is too large for MQTT sessions.
    Sessions,
}

/// A part of the limits of a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SessionPart {
    /// Half of the limits.
    Half,
    /// The limits.
    Whole,
    /// Twice the limits.
    Double,
}

/// An amount of the memory for messages.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct MessageMemory {
    /// Queue entries.
    pub entries: u64,
    /// Message slots.
    pub messages: u64,
    /// Bytes of blocks, beyond the slots.
    pub bytes: u64,
    /// Bytes of all three together, because they share their memory.
    pub memory: u64,
}

/// The memory for messages that is free, and how much of it a queue may use.
#[derive(Clone, Copy, Debug)]
pub struct FreeMemory {
    /// The memory that ordinary publishers can still use.
    pub(crate) ordinary: MessageMemory,
    /// The free part of the reserve; 0 for ordinary publishers.
    pub(crate) reserve: MessageMemory,
    /// A queue may use up to this many times the ordinary free memory, or as much as the free part of the reserve if
    /// that is more.
    pub(crate) queue_times: u64,
}

impl FreeMemory {
    /// Returns the free memory including the memory of this message, which arrived but is not in a queue yet.
    #[inline]
    pub fn with(mut self, messages: &Messages, message: MessageId) -> Self {
        let bytes = block_bytes(messages, message);
        self.ordinary.messages += 1;
        self.ordinary.bytes += bytes;
        self.ordinary.memory = self.ordinary.memory.saturating_add(SLOT_BYTES + bytes);
        self
    }
}

impl Records {
    /// Returns whether the queue refuses the message because of its length limit (`reject-publish`). Assumes
    /// that its consumers have no credit.
    pub fn refuses(&self, messages: &Messages, queue: QueueId, message: MessageId) -> bool {
        self.refuses_body(queue, messages.body_len(message), 0)
    }

    /// Returns whether the queue refuses a message with a body of this many bytes because of its length limit
    /// (`reject-publish`).
    ///
    /// `credit` is the number of messages that the consumers of the queue can take now. That many messages do
    /// not count towards the limit, although messages of a transaction are delivered only after the sync of
    /// their commit.
    pub fn refuses_body(&self, queue: QueueId, body_len: u32, credit: u64) -> bool {
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
    pub fn is_over_length(&self, queue: QueueId) -> bool {
        self.is_over_length_by(queue, 0, 0)
    }

    /// Returns whether the queue (`drop-head`) is over its length limit by more than `messages` messages, or
    /// by more than `bytes` bytes of bodies.
    pub(crate) fn is_over_length_by(&self, queue: QueueId, messages: u64, bytes: u64) -> bool {
        let record = &self.slab[queue.index()];
        let settings = &record.settings;
        let ready = self.ready_in(queue);
        // A queue with reject-publish drops nothing: requeued messages may put it over its length limit.
        if settings.overflow != Overflow::DropHead || ready == 0 {
            return false;
        }
        if record.session().is_some() {
            let has_slack = match record.pace() {
                Pace::InTime => !record.queue_consumers.is_empty(),
                Pace::Behind | Pace::CatchingUp => true,
                Pace::Dropping => false,
            };
            let part = if has_slack { SessionPart::Double } else { SessionPart::Whole };
            return self.exceeds_session_limits(queue, part, self.counts_session_memory(queue));
        }
        let body_bytes = || self.sum_over_levels(queue, |record| record.backlog.body_bytes());
        // The limit of bytes does not drop the only message of a queue with consumers, whose sockets may be full for a moment.
        // Without consumers the only message is dropped, as in RabbitMQ.
        let counts_bytes = record.queue_consumers.is_empty() || ready > 1;
        u64::from(ready) > settings.max_length.saturating_add(messages)
            || counts_bytes && body_bytes() > settings.max_length_bytes.saturating_add(bytes)
    }

    /// Returns whether the queue of an MQTT session exceeds this part of its limits: messages, bytes in memory, and bytes in
    /// the log. The only message never exceeds the limits of bytes.
    ///
    /// Unacknowledged messages do not count. Their part of the bytes in the log is estimated.
    ///
    /// `counts_memory` is whether the bytes in memory count.
    pub(crate) fn exceeds_session_limits(
        &self,
        queue: QueueId,
        part: SessionPart,
        counts_memory: bool,
    ) -> bool {
        let record = &self.slab[queue.index()];
        let (settings, backlog) = (&record.settings, &record.backlog);
        let ready = u64::from(backlog.ready());
        let is_exceeded = |used: u64, limit: u64| match part {
            SessionPart::Half => used > limit / 2,
            SessionPart::Whole => used > limit,
            SessionPart::Double => used > limit.saturating_mul(2),
        };
        let exceeds_bytes = || match self.session_log_bytes_max.filter(|_| record.declared.durable) {
            // Bodies of persistent messages leave the memory when it is short.
            Some(log_bytes_max) => {
                let log_bytes = record.log_bytes();
                let of_ready = || log_bytes / (ready + u64::from(record.unsettled.count)) * ready;
                is_exceeded(log_bytes, log_bytes_max) && is_exceeded(of_ready(), log_bytes_max)
                    || counts_memory && is_exceeded(backlog.transient_bytes(), settings.max_length_bytes)
            }
            None => counts_memory && is_exceeded(backlog.body_bytes(), settings.max_length_bytes),
        };
        is_exceeded(ready, settings.max_length) || ready > 1 && exceeds_bytes()
    }

    /// Returns whether a session drops messages for the limit of bytes in memory. While memory is not scarce, that of a connected
    /// client does not: the messages wait for the socket or for a commit, and soon leave the queue.
    fn counts_session_memory(&self, queue: QueueId) -> bool {
        self.slab[queue.index()].queue_consumers.is_empty() || self.is_memory_scarce
    }

    /// Returns whether a message with QoS 0 is dropped for a session, because its client does not keep up.
    pub(crate) fn refuses_transient(&self, queue: QueueId) -> bool {
        self.is_of_slow_client(queue)
            && self.exceeds_session_limits(queue, SessionPart::Whole, self.counts_session_memory(queue))
    }

    /// Returns the most bytes of bodies that the queue of an absent MQTT client keeps.
    fn absent_session_bytes_max(&self, queue: QueueId) -> u64 {
        let record = &self.slab[queue.index()];
        let in_log = self.session_log_bytes_max.filter(|_| record.declared.durable);
        in_log.unwrap_or(record.settings.max_length_bytes)
    }

    /// Returns whether the queue is that of an MQTT client that does not keep up with its messages.
    pub fn is_of_slow_client(&self, queue: QueueId) -> bool {
        matches!(self.slab[queue.index()].pace(), Pace::Behind | Pace::Dropping)
    }

    /// Returns whether a queue with `drop-head` that has messages would be over its limit of bytes with another body of
    /// this many bytes.
    pub fn would_drop_for_bytes(&self, queue: QueueId, body_len: u32) -> bool {
        let settings = &self.slab[queue.index()].settings;
        let body_bytes = || self.sum_over_levels(queue, |record| record.backlog.body_bytes());
        settings.overflow == Overflow::DropHead
            && settings.max_length_bytes != u64::MAX
            && self.ready_in(queue) > 0
            && body_bytes() + u64::from(body_len) > settings.max_length_bytes
    }

    /// Returns whether the queue of an absent MQTT client refuses a message with a body of this many bytes: it is larger than
    /// the limit of bytes, so all messages that wait would be dropped for it.
    fn exceeds_session(&self, queue: QueueId, body_len: u32) -> bool {
        self.is_of_absent_client(queue)
            && self.ready_in(queue) > 0
            && u64::from(body_len) > self.absent_session_bytes_max(queue)
    }

    /// Returns whether a queue is within its share of the memory for messages, unsettled deliveries included.
    #[inline]
    pub fn is_within_share(&self, free: FreeMemory, queue: QueueId) -> bool {
        self.is_within(free, queue, 4)
    }

    /// Returns whether a queue uses so much less than its share of the memory that waiting publishers may
    /// continue.
    pub fn is_well_within_share(&self, free: FreeMemory, queue: QueueId) -> bool {
        self.is_within(free, queue, RESUME_QUARTERS)
    }

    /// Returns whether a queue uses at most this many quarters of its share.
    #[inline]
    fn is_within(&self, free: FreeMemory, queue: QueueId, quarters: u64) -> bool {
        let share_of = |ordinary: u64, reserve: u64| {
            ordinary.saturating_mul(free.queue_times).max(reserve).saturating_mul(quarters) / 4
        };
        let FreeMemory { ordinary, reserve, .. } = free;
        let used = self.memory_usage(queue);
        // The unused entries of this queue's last chunk can be used by no other queue.
        let has_entries = !self.slab[queue.index()].backlog.needs_chunk();
        used.messages <= share_of(ordinary.messages, reserve.messages)
            && used.bytes <= share_of(ordinary.bytes, reserve.bytes)
            && used.memory() <= share_of(ordinary.memory, reserve.memory)
            && (has_entries || used.entries <= share_of(ordinary.entries, reserve.entries))
    }

    #[inline]
    fn memory_usage(&self, queue: QueueId) -> MemoryUsage {
        let record = &self.slab[queue.index()];
        match record.rank {
            Rank::Plain => MemoryUsage::of(record),
            Rank::Lowest { .. } | Rank::Level { .. } => {
                let levels = self.levels(self.queue_of_level(queue));
                levels.fold(MemoryUsage::default(), |sum, level| sum.plus(&self.slab[level.index()]))
            }
        }
    }

    /// Returns the pool in which the queue uses most of its share, and the number of units of the pool that
    /// the queue uses: messages, bytes or entries.
    pub fn fullest_pool(&self, free: FreeMemory, queue: QueueId) -> (Pool, u64) {
        let used = self.memory_usage(queue);
        let pools = [
            (Pool::Messages, used.messages, free.ordinary.messages),
            (Pool::Bodies, used.bytes, free.ordinary.bytes),
            (Pool::Entries, used.entries, free.ordinary.entries),
            (Pool::Memory, used.memory(), free.ordinary.memory),
        ];
        let [first, others @ ..] = pools;
        let (pool, used, _) = others.into_iter().fold(first, |most, other| {
            let is_fuller = u128::from(other.1) * u128::from(most.2.max(1))
                > u128::from(most.1) * u128::from(other.2.max(1));
            if is_fuller { other } else { most }
        });
        (pool, used)
    }

    /// Returns the number of messages that have left the queue of this shortage; `None` if the shortage does
    /// not concern a queue, or the queue is deleted.
    ///
    /// While the number rises, a publisher that waits for the queue need not be refused.
    pub fn departures_from_awaited_queue(&self, shortage: Shortage) -> Option<u64> {
        let (Shortage::QueueMemory(queue) | Shortage::QueueDisk(queue)) = shortage else { return None };
        // The queue may have been deleted since.
        self.slab.get(queue.index()).filter(|record| !record.is_deleted())?;
        let came = self.sum_over_levels(queue, |level| level.backlog.arrived_count());
        Some(came.wrapping_sub(self.ready_in(queue).into()))
    }

    /// Returns the shown queue with the largest sum of `value_of` over all its levels, and that sum. `None`
    /// if all sums are 0.
    pub fn queue_with_largest_sum(&self, value_of: impl Fn(&Queue) -> u64) -> Option<(QueueId, u64)> {
        let all = self.slab.iter().map(|(place, _)| QueueId::from_index(place));
        let shown = all.filter(|queue| {
            let record = &self.slab[queue.index()];
            !record.is_deleted() && !record.is_internal()
        });
        let sums = shown.map(|queue| (queue, self.sum_over_levels(queue, &value_of)));
        sums.max_by_key(|(_, sum)| *sum).filter(|(_, sum)| *sum > 0)
    }

    /// Returns whether a further message of the queue needs a new chunk of entries.
    pub fn needs_chunk(&self, queue: QueueId) -> bool {
        self.slab[queue.index()].backlog.needs_chunk()
    }

    /// Returns the first target queue of a message that has used up its share of the memory.
    #[cold]
    pub(crate) fn queue_over_share(&self, free: FreeMemory, targets: &[QueueId]) -> QueueId {
        let over_share = targets.iter().copied().find(|&queue| !self.is_within_share(free, queue));
        self.queue_of_level(over_share.unwrap_or(targets[0]))
    }

    /// Returns the shortage for a message of which a target queue has used up its share of the log: the queue
    /// with most bytes in the log.
    #[cold]
    pub(crate) fn queue_disk_shortage(&self, targets: &[QueueId]) -> Shortage {
        let longest =
            targets.iter().copied().max_by_key(|queue| self.sum_over_levels(*queue, Queue::log_bytes));
        Shortage::QueueDisk(self.queue_of_level(longest.unwrap_or(targets[0])))
    }

    // ---- which target queues accept a message

    /// Returns whether removed messages of this queue are dead-lettered.
    pub fn has_dead_letters(&self, queue: QueueId) -> bool {
        let record = &self.slab[queue.index()];
        record.settings.dead_letters && !record.is_deleted()
    }

    /// Returns whether a message that the queue refuses because of its length limit is dead-lettered.
    pub(crate) fn dead_letters_on_refusal(&self, queue: QueueId) -> bool {
        let overflow = self.slab[queue.index()].settings.overflow;
        overflow == Overflow::RejectPublishDlx && self.has_dead_letters(queue)
    }

    /// Removes the target queues that neither accept nor dead-letter the message, and sorts the others.
    ///
    /// A queue does not accept a message that its length limit refuses. A message that expires at once is
    /// accepted only by a queue whose consumers can take it now, or which has a dead-letter exchange or
    /// delays messages. A message with QoS 0 is not accepted by the queue of an MQTT client that is not connected. `credit`
    /// returns how many messages the consumers of a queue can take now. If `credit`
    /// is `None`, the length limit counts every message, and no message expires at once.
    ///
    /// Returns the number of queues at the front of `targets` that accept the message; the queues behind them
    /// refuse and dead-letter it.
    pub fn keep_accepting(
        &self,
        messages: &Messages,
        message: MessageId,
        targets: &mut Vec<QueueId>,
        credit: Option<&dyn Fn(QueueId) -> u64>,
    ) -> (usize, RefusedBy) {
        let due = messages.flags(message).has(MessageFlags::DUE_AT_ONCE);
        let is_persistent = messages.flags(message).has(MessageFlags::PERSISTENT);
        let (mut accepting_count, mut end, mut is_refused) = (0, 0, false);
        let mut is_refused_by_session = false;
        for at in 0..targets.len() {
            let queue = targets[at];
            let is_taken_at_once =
                |queue| credit.is_none_or(|credit| credit(queue) > u64::from(self.ready_before(queue)));
            let body_len = messages.body_len(message);
            let refuses = self.refuses(messages, queue, message)
                && credit.is_none_or(|credit| self.refuses_body(queue, body_len, credit(queue)));
            is_refused |= refuses;
            let exceeds_session = self.exceeds_session(queue, body_len);
            is_refused_by_session |= exceeds_session;
            let refuses = refuses || exceeds_session;
            let due = due || self[queue].settings.message_ttl_ms == 0;
            let accepts = !refuses
                && (!due || self.accepts_expired(queue) || is_taken_at_once(queue))
                && (is_persistent || !self.is_of_absent_client(queue));
            let is_dead_lettered = refuses && self.dead_letters_on_refusal(queue);
            if accepts || is_dead_lettered {
                targets.swap(end, at);
                end += 1;
            }
            if accepts {
                targets.swap(accepting_count, end - 1);
                accepting_count += 1;
            }
        }
        targets.truncate(end);
        let refused_by = match (is_refused, is_refused_by_session) {
            (true, _) => RefusedBy::LengthLimit,
            // What the session of one client cannot keep is no failure if others get it.
            (false, true) if end == 0 => RefusedBy::Sessions,
            (false, _) => RefusedBy::NoQueue,
        };
        (accepting_count, refused_by)
    }

    /// Returns whether the queue is that of an MQTT session whose client is not connected.
    fn is_of_absent_client(&self, queue: QueueId) -> bool {
        let record = &self[queue];
        record.session().is_some() && record.queue_consumers.is_empty()
    }

    /// Returns whether the queue accepts a message that expires at once although no consumer can take it: the
    /// queue dead-letters expired messages, or delays messages before they can expire.
    fn accepts_expired(&self, queue: QueueId) -> bool {
        self[queue].delayed_exchange().is_some() || self.has_dead_letters(queue)
    }
}

impl Queue {
    /// Returns the bytes of memory that the messages of a queue, or of one level, take with their entries, unsettled ones
    /// included.
    pub fn memory_bytes(&self) -> u64 {
        MemoryUsage::of(self).memory()
    }
}

/// How much of the memory for messages a queue uses.
#[derive(Clone, Copy, Default)]
struct MemoryUsage {
    /// Entries of the queue.
    entries: u64,
    /// Messages in memory, ready or delivered.
    messages: u64,
    /// Bytes of blocks of the messages in memory, beyond their slots.
    bytes: u64,
}

impl MemoryUsage {
    #[inline]
    fn of(record: &Queue) -> Self {
        let slots = u64::from(record.backlog.resident()) * SLOT_BYTES;
        Self {
            entries: record.backlog.entries(),
            messages: record.resident_messages(),
            bytes: (record.backlog.bytes() + record.unsettled.bytes).saturating_sub(slots),
        }
    }

    /// Returns the bytes of all three together.
    #[inline]
    const fn memory(&self) -> u64 {
        let entry_bytes = CHUNK_BYTES as u64 / ENTRIES_PER_CHUNK as u64;
        self.entries * entry_bytes + self.messages * SLOT_BYTES + self.bytes
    }

    fn plus(self, record: &Queue) -> Self {
        let other = Self::of(record);
        Self {
            entries: self.entries + other.entries,
            messages: self.messages + other.messages,
            bytes: self.bytes + other.bytes,
        }
    }
}
