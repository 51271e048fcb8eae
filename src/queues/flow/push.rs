//! Adds messages to queues: chooses the level of a message, checks the capacity, and appends the message to
//! the queue and, if it is persistent, to the log.
//!
//! A queue has capacity for a message if there is a queue entry, memory in the queue's share, and space in
//! the log.
//!
//! # Invariants
//! - A capacity check changes nothing. The capacity of all target queues is checked before the message is
//!   pushed to any of them.
//! - A publisher waits only for capacity that other connections can free.
//! - The message is stored once, whatever the number of target queues.

use leveret_amqp::delay::delay_ms;
use leveret_amqp::field::Table;
use leveret_amqp::props::Properties;
use leveret_core::batch::Batch;
use leveret_core::command::QueueId;
use leveret_core::error::{Fault, ReplyCode, no_memory_for, out_of};
use leveret_core::mem::{ENTRIES_PER_CHUNK, MessageFlags, MessageId, Messages, Share};
use leveret_core::quota::{Declarer, OpenLogBytes, Quota};
use leveret_storage::faults::{unwritable_for_messages, waited_too_long};
use leveret_storage::{Appended, Context, Mode, NoCapacity, PendingWrites, Urgency};

use super::Queues;
use super::head::log_bytes;
use crate::records::{
    FreeMemory, MessageMemory, Queue, Rank, Size, TIMES_FREE_DISK, TIMES_FREE_MEMORY,
    TIMES_FREE_MEMORY_FOR_HOLDERS,
};
use crate::shortage::{Pool, Shortage};

/// Messages that the broker moves go into queues beyond their shares while 1/8 of the memory and of the log is free for
/// publishers. The same part of the log is kept for queues that have few bytes in it.
const FREE_PART_DIVISOR: u64 = 8;
/// A kept MQTT session may have 1/16 of the log's limit, and up to this many times what is free: half as much as another queue.
const SESSION_DISK_DIVISOR: u64 = 16;
const SESSION_TIMES_FREE: u64 = TIMES_FREE_DISK / 2;
/// Number of queues with few bytes in the log among which that part is divided.
const SMALL_QUEUES: u64 = 16;
/// Maximum number of queues in a cycle of dead letters that is found. Queues in a longer one may wait for each other.
const WAIT_CHAIN_MAX: usize = 16;

/// Why a valid message cannot be published now.
pub enum CannotPublish {
    /// The publisher waits, because other connections can free the missing capacity.
    Wait(Shortage),
    /// The publisher is refused.
    Fault(Fault),
}

/// The capacity that a publisher may use, and what happens if there is none.
#[derive(Clone, Copy, Debug)]
pub struct Claim {
    /// The part of the pools that the publisher may use.
    pub share: Share,
    /// What happens if the log or a queue is full.
    pub on_full: OnFull,
}

/// A copy of a message that the broker is about to publish in place of the message, with other properties.
#[derive(Clone, Copy, Debug)]
pub struct PlannedCopy {
    /// The message.
    pub message: MessageId,
    /// The length of the copy in the log in bytes.
    pub bytes: u64,
}

/// What happens to a message for which the log or a queue is full.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnFull {
    /// The publisher waits.
    Wait,
    /// The publisher has waited too long for the disk or for a queue, and is refused.
    Refuse,
    /// The broker moves the message, and waits only for the log. For the share of a queue there is another rule:
    /// [`Queues::queue_too_full_for_moved`].
    WaitForLog,
    /// The message is published. `tx.commit` checks the log for all its messages before it publishes the first one, and
    /// the shares of queues were checked when the messages were published.
    Publish,
}

impl OnFull {
    /// Returns whether the share of a queue limits the publisher.
    const fn counts_shares(self) -> bool {
        matches!(self, Self::Wait | Self::Refuse)
    }
}

/// The properties of a message that determine its level.
#[derive(Clone, Copy, Debug)]
pub struct LevelChoice {
    /// The property `priority`; 0 without it.
    pub priority: u8,
    /// Delay of the message in milliseconds: see [`delay_ms`].
    pub delay_ms: u64,
    /// Arrival of the message in milliseconds of broker time; 0 for a message that arrives now.
    pub arrived_ms: u64,
}

impl LevelChoice {
    /// Reads the properties of a message.
    pub fn of(properties: &Properties<'_>, arrived_ms: u64) -> Self {
        let priority = properties.priority().unwrap_or(0);
        Self { priority, delay_ms: delay_ms(properties.headers().unwrap_or(Table::EMPTY)), arrived_ms }
    }
}

impl Queues {
    /// Pushes a message that the broker itself publishes: a dead letter, or a firehose copy.
    ///
    /// If a target queue has a dead-letter exchange, its length limit is applied later by the trim list: a
    /// dead letter must not cause further dead letters while it is being published.
    pub fn push_copy(&mut self, cx: &mut Context<'_>, message: MessageId, targets: &[QueueId]) {
        if self.push(cx, message, targets, Urgency::Window) {
            self.enforce_limits_after_copy(cx, message, targets);
        }
    }

    /// Pushes a message to queues. Returns whether the length limit or the expiry of any target queue must be
    /// checked afterwards.
    pub fn push(
        &mut self,
        cx: &mut Context<'_>,
        message: MessageId,
        targets: &[QueueId],
        urgency: Urgency,
    ) -> bool {
        cx.work.charge(targets.len().saturating_sub(1));
        let mut has_rules = cx.messages.flags(message).has(MessageFlags::EXPIRES);
        let appended = self.append_pending_write(cx, message, targets, urgency);
        // Only now the message has its flag of persistence.
        let size = Size::of(cx.messages, message);
        for &queue in targets {
            cx.messages.retain(message);
            let record = &mut self.records[queue];
            record.push(&mut self.pool, &appended, size);
            has_rules |= record.has_rules();
            self.records.wake(queue);
        }
        has_rules
    }

    /// Appends the message to the pending-write buffer if it must be logged, with the next offset of each durable
    /// target queue.
    ///
    /// In a quorum queue every message is persistent, as in RabbitMQ. The message then stays persistent in its other
    /// queues, and as a dead letter.
    fn append_pending_write(
        &mut self,
        cx: &mut Context<'_>,
        message: MessageId,
        targets: &[QueueId],
        urgency: Urgency,
    ) -> Appended {
        if !self.needs_log(cx, message, targets) {
            return PendingWrites::transient(message);
        }
        cx.messages.add_flags(message, MessageFlags::PERSISTENT);
        let bytes = log_bytes(cx.messages, message);
        let records = &mut self.records;
        let places = targets.iter().filter_map(|queue| records[*queue].durable_index.next_target(bytes));
        let appended = cx.pending_writes.append(cx.messages, message, places, urgency);
        if appended.targets() > 0 {
            if let Some((_, live)) = &mut self.live_log_bytes {
                *live += bytes * u64::from(appended.targets());
            }
            if urgency == Urgency::Awaited {
                cx.await_batch(appended.batch());
            }
        }
        appended
    }

    /// Returns whether the message is written to the log when it enters a durable queue.
    #[inline]
    fn needs_log(&self, cx: &Context<'_>, message: MessageId, targets: &[QueueId]) -> bool {
        let is_persistent =
            self.settings.persist_all || cx.messages.flags(message).has(MessageFlags::PERSISTENT);
        let is_in_quorum_queue = |queue: &QueueId| self.records[*queue].is_quorum();
        (is_persistent || targets.iter().any(is_in_quorum_queue)) && cx.pending_writes.mode() != Mode::Off
    }

    /// Returns the number of target queues for which this message is written to the log.
    pub fn logged_target_count(&self, cx: &Context<'_>, message: MessageId, targets: &[QueueId]) -> usize {
        if !self.needs_log(cx, message, targets) {
            return 0;
        }
        targets.iter().filter(|queue| self.records[**queue].durable_index.is_logged()).count()
    }

    /// Returns the maximum number of new chunks of queue entries that one message may take in all its target
    /// queues.
    pub const fn fan_out_max(&self) -> usize {
        self.pool.chunks_max() - self.settings.chunks_reserve
    }

    // ---- choosing the level

    /// Replaces each target queue that has priorities by its level for this message.
    #[cold]
    pub fn choose_levels(
        &mut self,
        cx: &mut Context<'_>,
        quota: &mut Quota,
        message: MessageId,
        targets: &mut [QueueId],
    ) {
        if targets.iter().all(|target| self.records[*target].rank == Rank::Plain) {
            return;
        }
        let properties = cx.messages.properties(message, &mut self.scratch.properties);
        cx.work.charge_octets(properties.len());
        let choice = LevelChoice::of(&Properties::trusted(properties), cx.messages.arrived_ms(message));
        self.choose_levels_for(cx, quota, choice, targets);
    }

    /// Replaces each target queue that has priorities by its level for this priority and delay.
    #[cold]
    pub fn choose_levels_for(
        &mut self,
        cx: &mut Context<'_>,
        quota: &mut Quota,
        choice: LevelChoice,
        targets: &mut [QueueId],
    ) {
        for target in targets {
            let record = &self.records[*target];
            if record.delayed_exchange().is_some() {
                *target = self.slot_for(cx, quota, *target, choice);
            } else if let Rank::Lowest { .. } = record.rank {
                let priority = choice.priority.min(record.settings.max_priority);
                // A level counts as a queue in the share of the connection that declared its queue.
                let declarer = record.declared.declarer.unwrap_or_else(Declarer::none);
                *target = self.level_for(quota, *target, priority, Some(declarer));
            }
        }
    }

    /// Returns the level of a queue for this priority. If there is no capacity for that level, returns the
    /// next lower one.
    fn level_for(
        &mut self,
        quota: &mut Quota,
        queue: QueueId,
        priority: u8,
        declarer: Option<Declarer>,
    ) -> QueueId {
        self.records.level_at(quota, queue, priority, declarer).unwrap_or_else(|at| {
            self.log_no_level(queue, priority);
            at
        })
    }

    /// Logs, at most once a minute, that messages are queued with a lower priority because there is no
    /// memory for a level.
    fn log_no_level(&mut self, queue: QueueId, priority: u8) {
        if self.should_log_level_shortage() {
            log::warn!(
                "queue '{}': there is no memory for another queue, and priority {priority} counts like a queue: its messages are \
                 queued with the next lower priority; raise memory_limit",
                self.records[queue].name.escape_debug()
            );
        }
    }

    /// Returns, at start, the level of a restored queue for this priority, of which the log has messages.
    /// `None` if there is no capacity for the level.
    pub fn restore_level(&mut self, quota: &mut Quota, queue: QueueId, priority: u8) -> Option<QueueId> {
        let level = self.level_for(quota, queue, priority, None);
        (self.records.priority_of(level) == priority).then_some(level)
    }

    // ---- capacity

    /// Returns the free memory for messages, and how much of it a queue may use for messages of publishers with
    /// this share.
    #[inline]
    pub fn free_memory(&self, messages: &Messages, share: Share) -> FreeMemory {
        let of = |chunks: usize, (slots, bytes): (usize, usize), memory: usize| MessageMemory {
            entries: (chunks * ENTRIES_PER_CHUNK) as u64,
            messages: slots as u64,
            bytes: bytes as u64,
            memory: memory as u64,
        };
        let chunks = self.pool.chunks_free();
        let (ordinary_bytes, reserve_bytes) = messages.memory_free();
        let chunks_left = chunks.saturating_sub(self.settings.chunks_reserve);
        let ordinary = of(chunks_left, messages.ordinary_free(), ordinary_bytes);
        match share {
            Share::Ordinary => {
                FreeMemory { ordinary, reserve: MessageMemory::default(), queue_times: TIMES_FREE_MEMORY }
            }
            Share::Transaction | Share::Reserve | Share::ReadBack | Share::DeadLetter => {
                let chunks = chunks.min(self.settings.chunks_reserve);
                let reserve = of(chunks, messages.reserve_free(), reserve_bytes);
                FreeMemory { ordinary, reserve, queue_times: TIMES_FREE_MEMORY_FOR_HOLDERS }
            }
        }
    }

    /// Returns the maximum number of bytes that the messages of one queue may take in the log now. `u64::MAX`
    /// while more than half of the log is free.
    ///
    /// An eighth of the log is kept for queues with few bytes. Otherwise each forgotten queue would leave a fifth of what was
    /// free before it, and after some of them less would be left than the log needs for itself.
    pub fn queue_log_bytes_max(&self, pending_writes: &PendingWrites, quota: &Quota) -> u64 {
        let Some(left) = self.log_bytes_left(pending_writes, quota) else { return u64::MAX };
        let kept = pending_writes.disk_bytes_max() / FREE_PART_DIVISOR;
        (left.saturating_sub(kept) * TIMES_FREE_DISK).max(kept / SMALL_QUEUES)
    }

    /// Returns the bytes of the log that publishers may not use: they are reserved for dead letters and for the messages
    /// of open transactions.
    fn reserved_log_bytes(&self, pending_writes: &PendingWrites, quota: &Quota) -> u64 {
        self.reserved_for_dead_letters(pending_writes) + quota.open_log_bytes()
    }

    /// Returns the bytes of the log that messages do not take and publishers may use; `None` while more than half of the log
    /// is free.
    fn log_bytes_left(&self, pending_writes: &PendingWrites, quota: &Quota) -> Option<u64> {
        let (_, live) = self.live_log_bytes?;
        let used = live + self.reserved_log_bytes(pending_writes, quota);
        Some(pending_writes.disk_bytes_max().saturating_sub(used))
    }

    /// Returns the target queue that cannot get a message now which the broker moves: a dead letter, a delayed message that
    /// is due, or one that a bridge parks.
    ///
    /// Such a message leaves another queue, so no publisher waits for the share of its new queue. A queue that is never read
    /// could thereby take the whole memory or log, and all publishers would wait. Beyond its share a queue gets such messages
    /// only while an eighth is free for publishers.
    ///
    /// `source` is the queue that the message leaves; `None` for a copy of a bridge. Queues that dead-letter to each other
    /// could wait for each other for ever. So a message does not wait if its target waits for its source.
    pub fn queue_too_full_for_moved(
        &mut self,
        cx: &mut Context<'_>,
        quota: &Quota,
        source: Option<QueueId>,
        copy: PlannedCopy,
        targets: &[QueueId],
    ) -> Option<QueueId> {
        let mut full = self.find_too_full_for_moved(cx, quota, copy, targets);
        if let Some(source) = source.map(|source| self.records.queue_of_level(source)) {
            full = full.filter(|full| !self.waits_for(*full, source));
            self.records[source].waits_for = full;
        }
        let before = core::mem::replace(&mut self.full_for_moved, full);
        if let Some(queue) = full.filter(|_| before.is_none()) {
            log::warn!(
                "queue '{}': messages that are dead-lettered, delayed or parked wait, because it has used its share: consume \
                 or purge it",
                self.records[queue].name.escape_debug()
            );
        }
        full
    }

    /// Returns whether messages that leave `queue` wait for `other`, directly or because they wait for a queue whose messages
    /// do. Also `true` if both are the same queue.
    fn waits_for(&self, queue: QueueId, other: QueueId) -> bool {
        let next = |queue: &QueueId| self.records.get(queue.index()).and_then(|record| record.waits_for);
        core::iter::successors(Some(queue), next).take(WAIT_CHAIN_MAX).any(|queue| queue == other)
    }

    fn find_too_full_for_moved(
        &mut self,
        cx: &mut Context<'_>,
        quota: &Quota,
        copy: PlannedCopy,
        targets: &[QueueId],
    ) -> Option<QueueId> {
        let PlannedCopy { message, bytes } = copy;
        let free = self.free_memory(cx.messages, Share::DeadLetter);
        if !self.has_free_memory_part(cx.messages, free)
            && let Some(&queue) = targets.iter().find(|queue| !self.records.is_within_share(free, **queue))
        {
            return Some(self.records.queue_of_level(queue));
        }
        self.count_live_log_bytes(cx.pending_writes);
        let left = self.log_bytes_left(cx.pending_writes, quota)?;
        let is_part_free = left >= cx.pending_writes.disk_bytes_max() / FREE_PART_DIVISOR;
        if is_part_free || self.logged_target_count(cx, message, targets) == 0 {
            return None;
        }
        let reserved = self.reserved_for_dead_letters(cx.pending_writes);
        let bytes_max = self.queue_log_bytes_max(cx.pending_writes, quota).max(reserved);
        let mut over = targets.iter().copied();
        over.find(|queue| self.records.sum_over_levels(*queue, Queue::log_bytes) + bytes > bytes_max)
            .map(|queue| self.records.queue_of_level(queue))
    }

    /// Notes whether less than half of the memory for messages is free. Only then the limit of bytes counts for an MQTT
    /// session whose client is connected: otherwise a burst would lose messages, and a slow client could take the memory.
    ///
    /// Also notes how many bytes a kept session may have in the log. The less of the log is free, the fewer: otherwise the
    /// sessions of clients that do not come back would fill it, and all publishers would wait. The limit is always below the share
    /// of a queue, for which publishers wait.
    pub fn note_memory(&mut self, messages: &Messages, pending_writes: &PendingWrites) {
        let ((slots, bytes), (slots_max, bytes_max)) = (messages.ordinary_free(), messages.ordinary_max());
        self.records.is_memory_scarce = slots < slots_max / 2 || bytes < bytes_max / 2;
        let now = match pending_writes.disk_bytes_max() {
            _ if pending_writes.mode() == Mode::Off => None,
            // Before the first report of the storage.
            0 => Some(u64::MAX),
            disk_bytes_max => Some(self.session_log_bytes_max(pending_writes, disk_bytes_max)),
        };
        self.records.session_log_bytes_max = now;
        // Sessions that get no messages must follow, too. A fall by less than an eighth does not matter.
        if now.is_some_and(|now| now < self.trimmed_to / 8 * 7) {
            self.trim_sessions();
        } else if let Some(now) = now.filter(|now| now / 2 > self.trimmed_to) {
            self.trimmed_to = now;
        }
    }

    fn session_log_bytes_max(&self, pending_writes: &PendingWrites, disk_bytes_max: u64) -> u64 {
        let part = disk_bytes_max / FREE_PART_DIVISOR;
        let left = self.live_log_bytes.map_or(u64::MAX, |(_, live)| {
            let kept = part + self.reserved_for_dead_letters(pending_writes).min(part);
            disk_bytes_max.saturating_sub(live + kept)
        });
        let of_free = left.saturating_mul(SESSION_TIMES_FREE).max(part / SMALL_QUEUES / 2);
        of_free.min(disk_bytes_max / SESSION_DISK_DIVISOR)
    }

    /// Puts the queues of sessions that exceed the limit of bytes in the log on the trim list.
    #[cold]
    fn trim_sessions(&mut self) {
        let Some(bytes_max) = self.records.session_log_bytes_max else { return };
        self.trimmed_to = bytes_max;
        let is_over = |queue: &Queue| queue.session().is_some() && queue.log_bytes() > bytes_max;
        let over = self.records.iter().filter(|(_, queue)| !queue.is_deleted() && is_over(queue));
        let over: Vec<QueueId> = over.map(|(place, _)| QueueId::from_index(place)).collect();
        for queue in over {
            self.relist_for_trim(queue);
        }
    }

    /// Returns whether an eighth of the memory for messages is free for ordinary publishers.
    fn has_free_memory_part(&self, messages: &Messages, free: FreeMemory) -> bool {
        let (messages_max, bytes_max) = messages.ordinary_max();
        let entries_max = self.fan_out_max() * ENTRIES_PER_CHUNK;
        let is_free = |free: u64, most: usize| free >= most as u64 / FREE_PART_DIVISOR;
        is_free(free.ordinary.messages, messages_max)
            && is_free(free.ordinary.bytes, bytes_max)
            && is_free(free.ordinary.entries, entries_max)
    }

    /// Returns the queue for which messages that the broker moves wait, if it still has no share left.
    pub fn full_for_moved(
        &self,
        pending_writes: &PendingWrites,
        messages: &Messages,
        quota: &Quota,
    ) -> Option<Shortage> {
        let queue = self.full_for_moved?;
        self.records.get(queue.index()).filter(|record| !record.is_deleted())?;
        let free = self.free_memory(messages, Share::DeadLetter);
        if !self.has_free_memory_part(messages, free) && !self.records.is_within_share(free, queue) {
            return Some(Shortage::QueueMemory(queue));
        }
        let left = self.log_bytes_left(pending_writes, quota)?;
        let is_part_free = left >= pending_writes.disk_bytes_max() / FREE_PART_DIVISOR;
        let log_bytes = self.records.sum_over_levels(queue, Queue::log_bytes);
        let is_over = log_bytes > self.queue_log_bytes_max(pending_writes, quota);
        (!is_part_free && is_over).then_some(Shortage::QueueDisk(queue))
    }

    /// Counts the bytes that all messages take in the log, at most once for each commit. Counts nothing while
    /// more than half of the log is free, because then no queue can exceed its share.
    pub fn count_live_log_bytes(&mut self, pending_writes: &PendingWrites) {
        let (free_bytes, bytes_max, durable) =
            (pending_writes.log_free_bytes(), pending_writes.disk_bytes_max(), pending_writes.durable());
        if pending_writes.mode() != Mode::On || free_bytes > bytes_max / 2 {
            self.live_log_bytes = None;
        } else if self.live_log_bytes.is_none_or(|(counted, _)| counted != durable) {
            self.recount_live_log_bytes(durable);
        }
    }

    /// Counts the bytes that all messages take in the log. `durable` is the newest durable batch.
    #[cold]
    pub fn recount_live_log_bytes(&mut self, durable: Batch) {
        let queues = self.records.iter().filter(|(_, queue)| !queue.is_deleted());
        self.live_log_bytes = Some((durable, queues.map(|(_, queue)| queue.log_bytes()).sum()));
    }

    /// Checks whether every target queue has capacity for the message now. Changes nothing.
    ///
    /// # Errors
    /// The publisher must wait, or the message is refused.
    pub fn check_capacity(
        &self,
        cx: &Context<'_>,
        quota: &Quota,
        message: MessageId,
        targets: &[QueueId],
        claim: Claim,
    ) -> Result<(), CannotPublish> {
        let share = claim.share;
        let chunks_needed = targets.iter().filter(|&&queue| self.records.needs_chunk(queue)).count();
        let reserve = match share {
            Share::Ordinary => self.settings.chunks_reserve,
            Share::Transaction | Share::Reserve | Share::ReadBack | Share::DeadLetter => 0,
        };
        if chunks_needed > self.fan_out_max() {
            return Err(CannotPublish::Fault(no_memory_for("another entry of a queue")));
        }
        let has_chunks = self.pool.may_take(chunks_needed, reserve);
        match (has_chunks, share) {
            (true, _) => {}
            (false, Share::Ordinary) => {
                return Err(CannotPublish::Wait(Shortage::Pool(Pool::Entries)));
            }
            (false, Share::Transaction | Share::Reserve | Share::ReadBack | Share::DeadLetter) => {
                return Err(CannotPublish::Fault(no_memory_for("another entry of a queue")));
            }
        }
        if claim.on_full.counts_shares() {
            self.check_memory_shares(cx, message, targets, claim)?;
        }
        self.check_log_capacity(cx, quota, message, targets, claim)
    }

    /// Removes the target queues that have used their share of the memory or of the log, for a publisher that cannot wait.
    /// Returns how many these are.
    pub fn remove_full_targets(
        &mut self,
        cx: &Context<'_>,
        quota: &Quota,
        message: MessageId,
        targets: &mut Vec<QueueId>,
    ) -> usize {
        self.count_live_log_bytes(cx.pending_writes);
        let free = self.free_memory(cx.messages, Share::Ordinary).with(cx.messages, message);
        let log_bytes_max = match self.logged_target_count(cx, message, targets) {
            0 => u64::MAX,
            _ => self.queue_log_bytes_max(cx.pending_writes, quota),
        };
        let bytes = cx.messages.stream_len(message) as u64;
        let before = targets.len();
        targets.retain(|&queue| {
            let log_bytes = self.records.sum_over_levels(queue, Queue::log_bytes);
            self.records.is_within_share(free, queue) && log_bytes.saturating_add(bytes) <= log_bytes_max
        });
        before - targets.len()
    }

    /// Checks whether every target queue is within its share of the memory.
    ///
    /// # Errors
    /// The publisher must wait for a queue. If it has waited too long for that, the message is refused.
    #[inline]
    pub fn check_memory_shares(
        &self,
        cx: &Context<'_>,
        message: MessageId,
        targets: &[QueueId],
        claim: Claim,
    ) -> Result<(), CannotPublish> {
        // While half of everything is free, no queue can use more than twice that. This is the usual case, and cheaper.
        if cx.messages.is_half_free() && self.pool.is_half_free() {
            return Ok(());
        }
        let free = self.free_memory(cx.messages, claim.share).with(cx.messages, message);
        if targets.iter().all(|&queue| self.records.is_within_share(free, queue)) {
            return Ok(());
        }
        let queue = self.records.queue_over_share(free, targets);
        Err(match claim.on_full {
            OnFull::Refuse => CannotPublish::Fault(waited_too_long_for_queue(&self.records[queue].name)),
            _ => CannotPublish::Wait(Shortage::QueueMemory(queue)),
        })
    }

    /// Checks whether the log has capacity for the message now, if the message must be logged.
    ///
    /// Every publisher can wait for the next commit of the log and for space on the disk. A publisher with
    /// unsettled deliveries waits for a limited time, because the space may be taken by these deliveries.
    ///
    /// # Errors
    /// The publisher must wait, or the message is refused.
    fn check_log_capacity(
        &self,
        cx: &Context<'_>,
        quota: &Quota,
        message: MessageId,
        targets: &[QueueId],
        claim: Claim,
    ) -> Result<(), CannotPublish> {
        let logged = self.logged_target_count(cx, message, targets);
        if logged == 0 {
            return Ok(());
        }
        let bytes = cx.messages.stream_len(message) as u64;
        if !cx.pending_writes.fits_commit(bytes, cx.messages.body_len(message).into(), logged) {
            return Err(CannotPublish::Fault(out_of("commit_bytes_max")));
        }
        let holds_messages = claim.share == Share::Reserve && claim.on_full != OnFull::Publish;
        if holds_messages && cx.pending_writes.mode() == Mode::Unwritable {
            // Other publishers may wait for the messages that were delivered to this one, and a disk that
            // cannot be written does not recover by itself.
            return Err(CannotPublish::Fault(unwritable_for_messages()));
        }
        // The space for the messages of open transactions was reserved when these messages were published.
        let reserved_bytes = self.reserved_log_bytes(cx.pending_writes, quota);
        let log_capacity = cx.pending_writes.admit(bytes + reserved_bytes, logged);
        let queue_bytes_max = self.queue_log_bytes_max(cx.pending_writes, quota);
        let is_within_shares = targets
            .iter()
            .all(|&queue| self.records.sum_over_levels(queue, Queue::log_bytes) + bytes <= queue_bytes_max);
        match log_capacity {
            Ok(()) if is_within_shares => Ok(()),
            _ if claim.on_full == OnFull::Publish => Ok(()),
            Err(NoCapacity::Commit) if cx.pending_writes.mode() == Mode::Unwritable => {
                Err(CannotPublish::Wait(Shortage::Unwritable))
            }
            Err(NoCapacity::Commit) => Err(CannotPublish::Wait(Shortage::Commit)),
            _ if claim.on_full == OnFull::Refuse => {
                Err(CannotPublish::Fault(waited_too_long(cx.pending_writes)))
            }
            Ok(()) => Err(CannotPublish::Wait(self.records.queue_disk_shortage(targets))),
            Err(NoCapacity::Disk) => Err(CannotPublish::Wait(disk_shortage(cx.pending_writes))),
        }
    }

    /// Checks whether the log has space for this message of an open transaction, and for the messages of all
    /// open transactions so far, so that `tx.commit` will not lack space. Changes nothing.
    ///
    /// # Errors
    /// The publisher must wait, or the message is refused.
    pub fn check_transaction_capacity(
        &self,
        cx: &Context<'_>,
        open: OpenLogBytes,
        message: MessageId,
        targets: &[QueueId],
        on_full: OnFull,
    ) -> Result<(), CannotPublish> {
        if self.logged_target_count(cx, message, targets) == 0 {
            return Ok(());
        }
        let bytes = cx.messages.stream_len(message) as u64 + open.of_all;
        // A transaction that is too large for one commit of the log is written twice.
        let times = if cx.pending_writes.fits_commit(bytes, 0, 0) { 1 } else { 2 };
        let own_bytes = cx.messages.stream_len(message) as u64 + open.of_connection;
        let disk_bytes_max = cx.pending_writes.disk_bytes_max();
        if disk_bytes_max > 0 && times * own_bytes > disk_bytes_max {
            // The transaction is larger than the log may become.
            return Err(CannotPublish::Fault(out_of("disk_limit")));
        }
        match cx
            .pending_writes
            .admit(times * bytes + self.reserved_for_dead_letters(cx.pending_writes), targets.len())
        {
            Err(NoCapacity::Commit) if cx.pending_writes.mode() == Mode::Unwritable => {
                Err(CannotPublish::Fault(unwritable_for_messages()))
            }
            Ok(()) | Err(NoCapacity::Commit) => Ok(()),
            Err(NoCapacity::Disk) if on_full == OnFull::Refuse => {
                Err(CannotPublish::Fault(waited_too_long(cx.pending_writes)))
            }
            Err(NoCapacity::Disk) => Err(CannotPublish::Wait(disk_shortage(cx.pending_writes))),
        }
    }
}

/// Returns the shortage to report when the log has no space.
#[cold]
pub fn disk_shortage(pending_writes: &PendingWrites) -> Shortage {
    match pending_writes.is_index_exhausted() {
        _ if pending_writes.mode() != Mode::On => Shortage::Unwritable,
        _ if pending_writes.is_file_system_full() => Shortage::FileSystem,
        false => Shortage::DiskLimit,
        true => Shortage::Index,
    }
}

/// Returns 506: the publisher has unsettled deliveries or an open transaction, and no message has left the queue for
/// 60 s.
fn waited_too_long_for_queue(queue: &str) -> Fault {
    Fault::new(
        ReplyCode::ResourceError,
        format_args!(
            "a queue uses its whole share of the memory, and no message left it for 60 s while this connection held \
             deliveries or a transaction: raise memory_limit, acknowledge or commit earlier, or consume queue '{queue}'"
        ),
    )
}
