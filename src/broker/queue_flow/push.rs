//! Adds messages to queues: chooses the level, checks capacity, and appends to memory and, for persistent
//! messages, to the log.
//!
//! Capacity means queue entries, a share of the memory, and the log.
//!
//! # Invariants
//! - A capacity check changes nothing. Capacity in all target queues is checked before anything is pushed.
//! - A publisher waits only for what others can free.
//! - The message is stored once, whatever the number of target queues.

use super::Queues;
use super::delayed::delay_ms;
use super::head::log_bytes;
use crate::Context;
use crate::queue_records::{FreeMemory, Queue, Rank, Size, TIMES_FREE_DISK};
use crate::quota::{Declarer, Quota};
use crate::reply_text::{out_of, unwritable_for_messages, waited_too_long};
use crate::shortage::{Pool, Shortage};
use leveret_amqp::field::Table;
use leveret_amqp::props::Properties;
use leveret_core::command::{ConnectionId, QueueId};
use leveret_core::error::Fault;
use leveret_core::mem::{ENTRIES_PER_CHUNK, MessageFlags, MessageId, Messages, Share};
use leveret_core::pending_writes::{Appended, Batch, Mode, NoCapacity, PendingWrites, Urgency};

/// Why a message that is valid in itself cannot be published now.
pub(crate) enum CannotPublish {
    /// Others will free the missing capacity: the publisher waits.
    Wait(Shortage),
    Fault(Fault),
}

/// The capacity that a publisher may use, and whether it can be made to wait.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Claim {
    /// The part of the pools that the publisher may use.
    pub(crate) share: Share,
    /// Whether the publisher can be made to wait; not in the middle of a commit.
    pub(crate) may_wait: bool,
    /// The publisher has waited too long for the disk and is refused now: see
    /// [`crate::Broker::time_out_waiting`].
    pub(crate) has_timed_out: bool,
}

/// The properties of a message that determine its level.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LevelChoice {
    pub(crate) priority: u8,
    /// Delay of the message in milliseconds: see [`delay_ms`].
    pub(crate) delay_ms: u64,
    /// Arrival of the message in milliseconds of broker time; 0 for now.
    pub(crate) came_ms: u64,
}

impl LevelChoice {
    pub(crate) fn of(properties: &Properties<'_>, came_ms: u64) -> Self {
        let priority = properties.priority().unwrap_or(0);
        Self { priority, delay_ms: delay_ms(properties.headers().unwrap_or(Table::EMPTY)), came_ms }
    }
}

impl Queues {
    /// Pushes a message that the broker itself publishes: a dead letter, or a firehose copy.
    ///
    /// Where messages are dead-lettered, length limits are checked later, because dead letters may cause dead
    /// letters.
    pub(crate) fn push_copy(&mut self, cx: &mut Context<'_>, message: MessageId, targets: &[QueueId]) {
        if self.push(cx, message, targets, Urgency::Window) {
            self.enforce_limits_after_copy(cx, message, targets);
        }
    }

    /// Pushes a message to queues. Returns whether limits or expiry of one of them must be checked
    /// afterwards.
    pub(crate) fn push(
        &mut self,
        cx: &mut Context<'_>,
        message: MessageId,
        targets: &[QueueId],
        urgency: Urgency,
    ) -> bool {
        let size = Size::of(cx.messages, message);
        cx.work.charge(targets.len().saturating_sub(1));
        let mut has_rules = cx.messages.flags(message).has(MessageFlags::EXPIRES);
        let appended = self.append_to_journal(cx, message, targets, urgency);
        for &queue in targets {
            cx.messages.retain(message);
            let record = &mut self.records[queue];
            record.push(&mut self.pool, &appended, size);
            has_rules |= record.has_rules();
            self.records.wake(queue);
        }
        has_rules
    }

    /// Gives the message its next offset in each durable queue, if it is persistent, and passes it to the
    /// pending-write buffer.
    fn append_to_journal(
        &mut self,
        cx: &mut Context<'_>,
        message: MessageId,
        targets: &[QueueId],
        urgency: Urgency,
    ) -> Appended {
        if !self.is_for_log(cx, message) {
            return PendingWrites::transient(message);
        }
        let bytes = log_bytes(cx.messages, message);
        let records = &mut self.records;
        let places = targets.iter().filter_map(|queue| records[*queue].logged.next_target(bytes));
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

    /// Returns whether durable queues write this message to the log.
    #[inline]
    fn is_for_log(&self, cx: &Context<'_>, message: MessageId) -> bool {
        let is_persistent =
            self.settings.persist_all || cx.messages.flags(message).has(MessageFlags::PERSISTENT);
        is_persistent && cx.pending_writes.mode() != Mode::Off
    }

    /// Returns how many of the target queues write this message to the log.
    pub(crate) fn logged_targets(&self, cx: &Context<'_>, message: MessageId, targets: &[QueueId]) -> usize {
        if !self.is_for_log(cx, message) {
            return 0;
        }
        targets.iter().filter(|queue| self.records[**queue].logged.is_on()).count()
    }

    /// Returns the maximum number of new chunks that one message may take.
    pub(crate) const fn fan_out_max(&self) -> usize {
        self.pool.chunks_max() - self.settings.chunks_reserve
    }

    // ---- choosing the level

    /// Replaces each target queue that has priorities by its level for this message.
    #[cold]
    pub(crate) fn choose_levels(
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
    pub(crate) fn choose_levels_for(
        &mut self,
        cx: &mut Context<'_>,
        quota: &mut Quota,
        choice: LevelChoice,
        targets: &mut [QueueId],
    ) {
        for target in targets {
            let record = &self.records[*target];
            if record.delayed_exchange.is_some() {
                *target = self.slot_for(cx, quota, *target, choice);
            } else if let Rank::Lowest { .. } = record.rank {
                let priority = choice.priority.min(record.settings.max_priority);
                // The levels count in the share of the queue's declarer.
                let declarer = record.declared.declarer.unwrap_or_else(Declarer::nobody);
                *target = self.level_for(quota, *target, priority, Some(declarer));
            }
        }
    }

    /// Returns the level of a queue for this priority, or the next lower one if there is no capacity for
    /// another level.
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

    /// Logs, at most once a minute, why the order of priorities is not kept.
    fn log_no_level(&mut self, queue: QueueId, priority: u8) {
        if self.should_log_this_minute() {
            log::warn!(
                "queue '{}': queues_max is reached, and priority {priority} counts like a queue: its messages are \
                 queued with the next lower priority",
                self.records[queue].name.escape_debug()
            );
        }
    }

    /// Returns, at start, the level for this priority of a queue that was just declared again. The log has
    /// messages of that level.
    pub(crate) fn restore_level(
        &mut self,
        quota: &mut Quota,
        queue: QueueId,
        priority: u8,
    ) -> Option<QueueId> {
        let level = self.level_for(quota, queue, priority, None);
        (self.records.priority_of(level) == priority).then_some(level)
    }

    // ---- capacity

    /// Returns the memory for messages that ordinary publishers can still use.
    #[inline]
    pub(crate) fn free_memory(&self, messages: &Messages) -> FreeMemory {
        let chunks = self.pool.chunks_free().saturating_sub(self.settings.chunks_reserve);
        let (slots, bytes) = messages.ordinary_free();
        FreeMemory {
            entries: (chunks * ENTRIES_PER_CHUNK) as u64,
            messages: slots as u64,
            bytes: bytes as u64,
        }
    }

    /// Returns the maximum bytes that the messages of one queue may take in the log now.
    pub(crate) fn queue_log_bytes_max(&self, pending_writes: &PendingWrites) -> u64 {
        match self.live_log_bytes {
            Some((_, live)) => {
                pending_writes.disk_bytes_max().saturating_sub(live).saturating_mul(TIMES_FREE_DISK)
            }
            None => u64::MAX,
        }
    }

    /// Counts, once for each commit, the bytes that all messages take in the log, while at most half of the
    /// log is free. With more free space no queue can exceed its share.
    pub(crate) fn count_live_log_bytes(&mut self, pending_writes: &PendingWrites) {
        let (room, most, durable) =
            (pending_writes.log_free_bytes(), pending_writes.disk_bytes_max(), pending_writes.durable());
        if pending_writes.mode() != Mode::On || room > most / 2 {
            self.live_log_bytes = None;
        } else if self.live_log_bytes.is_none_or(|(counted, _)| counted != durable) {
            self.recount_live_log_bytes(durable);
        }
    }

    /// Counts the bytes that all messages take in the log, because a publisher is about to wait for space.
    #[cold]
    pub(crate) fn recount_live_log_bytes(&mut self, durable: Batch) {
        let queues = self.records.iter().filter(|(_, queue)| !queue.is_deleted());
        self.live_log_bytes = Some((durable, queues.map(|(_, queue)| queue.log_bytes()).sum()));
    }

    /// Checks whether every target queue has capacity for the message now. Changes nothing.
    pub(crate) fn reserve(
        &self,
        cx: &Context<'_>,
        quota: &Quota,
        message: MessageId,
        targets: &[QueueId],
        claim: Claim,
    ) -> Result<(), CannotPublish> {
        let share = claim.share;
        let needed = targets.iter().filter(|&&queue| self.records.needs_chunk(queue)).count();
        let reserve = match share {
            Share::Ordinary => self.settings.chunks_reserve,
            Share::Transaction | Share::Reserve | Share::ReadBack | Share::DeadLetter => 0,
        };
        if needed > self.fan_out_max() {
            return Err(CannotPublish::Fault(out_of("queue_entries_max")));
        }
        let fits = self.pool.may_take(needed, reserve);
        let free = self.free_memory(cx.messages).with(cx.messages, message);
        let within_share =
            share == Share::Reserve || targets.iter().all(|&queue| self.records.within_share(free, queue));
        match (fits && within_share, share) {
            (true, _) => self.reserve_log(cx, quota, message, targets, claim),
            (false, Share::Ordinary) => Err(CannotPublish::Wait(match fits {
                true => self.records.crowded_queue(free, targets),
                false => Shortage::Pool(Pool::Entries),
            })),
            (false, Share::Transaction | Share::Reserve | Share::ReadBack | Share::DeadLetter) => {
                Err(CannotPublish::Fault(out_of("queue_entries_max")))
            }
        }
    }

    /// Checks whether the log has capacity for the message now, if it is to be logged.
    ///
    /// Every publisher can wait for the next commit and for space on the disk. A publisher that holds
    /// deliveries itself waits for a limited time.
    fn reserve_log(
        &self,
        cx: &Context<'_>,
        quota: &Quota,
        message: MessageId,
        targets: &[QueueId],
        claim: Claim,
    ) -> Result<(), CannotPublish> {
        let logged = self.logged_targets(cx, message, targets);
        if logged == 0 {
            return Ok(());
        }
        let bytes = cx.messages.stream_len(message) as u64;
        if !cx.pending_writes.fits_commit(bytes, cx.messages.body_len(message).into(), logged) {
            return Err(CannotPublish::Fault(out_of("commit_bytes_max")));
        }
        let holds_up = claim.share == Share::Reserve && claim.may_wait;
        if holds_up && cx.pending_writes.mode() == Mode::Unwritable {
            // Others wait for what the publisher holds, and the disk will not recover by itself.
            return Err(CannotPublish::Fault(unwritable_for_messages()));
        }
        // Capacity was reserved for open transactions when their messages were published.
        let kept = self.reserved_for_dead_letters(cx.pending_writes) + quota.open_log_bytes();
        let room = cx.pending_writes.admit(bytes + kept, logged);
        let most = self.queue_log_bytes_max(cx.pending_writes);
        let within = targets
            .iter()
            .all(|&queue| self.records.sum_over_levels(queue, Queue::log_bytes) + bytes <= most);
        match room {
            Ok(()) if within => Ok(()),
            // For a commit all capacity was checked before.
            _ if !claim.may_wait => Ok(()),
            Err(NoCapacity::Commit) if cx.pending_writes.mode() == Mode::Unwritable => {
                Err(CannotPublish::Wait(Shortage::Unwritable))
            }
            Err(NoCapacity::Commit) => Err(CannotPublish::Wait(Shortage::Commit)),
            _ if claim.has_timed_out => Err(CannotPublish::Fault(waited_too_long(cx.pending_writes))),
            Ok(()) => Err(CannotPublish::Wait(self.records.longest_in_log(targets))),
            Err(NoCapacity::Disk) => Err(CannotPublish::Wait(disk_shortage(cx.pending_writes))),
        }
    }

    /// Checks whether the log will have capacity for a message of an open transaction when it is committed,
    /// beside all other open transactions. Changes nothing.
    pub(crate) fn reserve_transaction(
        &self,
        cx: &Context<'_>,
        quota: &Quota,
        connection: ConnectionId,
        (message, targets): (MessageId, &[QueueId]),
        has_timed_out: bool,
    ) -> Result<(), CannotPublish> {
        if self.logged_targets(cx, message, targets) == 0 {
            return Ok(());
        }
        let bytes = cx.messages.stream_len(message) as u64 + quota.open_log_bytes();
        // A transaction that one commit cannot hold is written twice.
        let times = if cx.pending_writes.fits_commit(bytes, 0, 0) { 1 } else { 2 };
        let own = cx.messages.stream_len(message) as u64 + quota.open_log_bytes_of(connection);
        let most = cx.pending_writes.disk_bytes_max();
        if most > 0 && times * own > most {
            // The transaction would never fit, whatever others free.
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
            Err(NoCapacity::Disk) if has_timed_out => {
                Err(CannotPublish::Fault(waited_too_long(cx.pending_writes)))
            }
            Err(NoCapacity::Disk) => Err(CannotPublish::Wait(disk_shortage(cx.pending_writes))),
        }
    }
}

/// Returns why the log has no space at all, if it has none.
#[cold]
pub fn disk_shortage(pending_writes: &PendingWrites) -> Shortage {
    match pending_writes.exhausted_limit_key() {
        _ if pending_writes.mode() != Mode::On => Shortage::Unwritable,
        _ if pending_writes.is_file_system_full() => Shortage::FileSystem,
        "disk_limit" => Shortage::DiskLimit,
        _ => Shortage::Index,
    }
}
