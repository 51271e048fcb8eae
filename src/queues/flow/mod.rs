//! Moves messages into queues, through them, out of memory and back, and removes them.
//!
//! This module decides what happens to a message while it is in a queue, using the records of
//! [`crate::records`]. The caller chooses the consumer of a message, and routes its dead letter.
//!
//! | file | content |
//! |---|---|
//! | `mod` | the state of all queues; changing their settings; freeing their records |
//! | `push` | checks the capacity for a new message, chooses its level, adds it |
//! | `head` | checks whether the first message may be delivered; takes and settles it; waiting `basic.get`s |
//! | `expiry` | expiry, length limits, rejected and purged messages; the list of queues to trim |
//! | `schedule` | puts queues on the lists and the schedule by which they are examined |
//! | `selected` | finds and removes messages that an operator selected |
//! | `delayed` | the messages of delayed exchanges and their timing wheel |
//! | `slow` | the queues of MQTT clients that do not keep up, and publishers that wait for these |
//! | `evict` | moves messages out of memory |
//! | `page_in` | reads messages back from the log: requests, waiting queues, reserved memory; reads for browsing |
//!
//! # Invariants
//! - A queue with messages to remove (rejected, expired, or over a length limit) is on the trim list. One with
//!   messages to read back is on the list of reads, and one with an expiry time is in the schedule.
//! - A ready message is counted as in memory or as absent (only in the log), never as both. Delivered messages are
//!   counted separately; `unsettled.absent` is the part of them that only the log has.

mod delayed;
mod evict;
mod expiry;
mod head;
mod page_in;
mod push;
mod schedule;
mod selected;
mod slow;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use leveret_core::batch::Batch;
use leveret_core::command::QueueId;
use leveret_core::error::Fault;
use leveret_core::limits::Limits;
use leveret_core::mem::{FifoPool, Memory, Messages};
use leveret_storage::PendingWrites;
use page_in::Paging;
use slow::SlowQueues;

use crate::deliveries::Deliveries;
use crate::records::{Browsed, Contents, EntryPools, MessageKeys, Queue, Records};
use crate::retry_list::RetryList;
use crate::settings::QueueSettings;
use crate::shortage::Shortage;

pub use delayed::{DelayWheel, DueItem, HeldMessage, NARROWEST_PUBLISHED, Slot};
pub use expiry::{ExpiryGrace, TrimList, subtract_steps};
pub use head::Getting;

pub use page_in::{BrowseRequests, LogRead, LostMessages, PageInOutcome, ReadMessage, ReadPosition};
pub use push::{CannotPublish, Claim, LevelChoice, OnFull, PlannedCopy, disk_shortage};
pub use schedule::QueueSchedule;
pub use slow::PaceChanges;

/// Buffers for the properties of one message. They are empty while [`Queues::lend_scratch`] has lent them.
#[derive(Debug, Default)]
pub struct Scratch {
    /// The properties as they were received. As long as a frame.
    pub properties: Box<[u8]>,
    /// The properties of a copy. Longer than a frame, so that a change that exceeds a frame is noticed.
    pub rewritten: Box<[u8]>,
}

/// Broker settings that queues depend on. Ordinary publishers have no unacknowledged deliveries and no open transaction
/// (`Share::Ordinary`).
#[derive(Debug)]
pub(crate) struct Settings {
    /// Maximum size of a frame in bytes.
    pub frame_max: usize,
    /// Chunks of queue entries that ordinary publishers leave free.
    pub(crate) chunks_reserve: usize,
    /// Maximum bytes of the log that publishers leave free for dead letters.
    pub(crate) dead_letter_log_bytes: u64,
    /// Every message in a durable queue counts as persistent, whatever its delivery mode.
    pub persist_all: bool,
    /// Message slots that ordinary publishers may use.
    pub messages: u32,
    /// Bytes of message blocks that ordinary publishers may use.
    pub body_bytes: u64,
}

/// The minute of the current turn, for log lines that are written at most once a minute.
#[derive(Debug, Default)]
struct Minutes {
    /// Minute of this turn since the start of the process.
    now: u32,
    /// Minute in which missing capacity for a level or a delay slot was logged last.
    level_shortage_logged: Option<u32>,
}

/// Queues whose first message waits for a commit.
#[derive(Debug, Default)]
struct AwaitedCommits {
    /// Watermarks being written, in the order of their batches.
    watermarks: VecDeque<PendingWatermark>,
    /// Queues whose first message is withheld: the newest durable batch when the wait began, and the queue.
    withheld: Vec<(Batch, QueueId)>,
}

/// A watermark whose log entry is not known to be durable.
#[derive(Clone, Copy, Debug)]
struct PendingWatermark {
    /// Number of the log entry.
    entry: u64,
    queue: QueueId,
    /// Number that identifies the queue in the log.
    incarnation: u64,
    /// The value of the watermark: when the entry is durable, messages with smaller offsets may be delivered.
    below: u64,
}

/// All queues and their messages: records, pool of entries, deliveries and schedules.
#[derive(Debug)]
pub struct Queues {
    settings: Settings,
    records: Records,
    /// The entries of all queues.
    pool: FifoPool,
    /// Unsettled deliveries.
    deliveries: Deliveries,
    /// When each queue is examined for expired messages.
    schedule: QueueSchedule,
    /// The timing wheel of the delayed exchanges.
    delay_wheel: DelayWheel,
    /// Queues that have messages to expire, trim or dead-letter.
    trim_list: TrimList,
    /// Queues whose messages are to be read back, and the search for messages to evict.
    paging: Paging,
    /// Reads for operators who browse messages.
    browses: BrowseRequests,
    /// The keys of browsed messages.
    keys: MessageKeys,
    /// `basic.get`s that wait for their message or for the outbox.
    gets: RetryList<Getting>,
    /// Queues whose first message waits for a commit.
    awaited: AwaitedCommits,
    scratch: Scratch,
    /// Bytes that all messages take in the log, and the batch that was durable when they were counted. `None`
    /// while more than half of the log is free.
    live_log_bytes: Option<(Batch, u64)>,
    /// The queue for which a message that the broker moves had to wait last; `None` if the last one did not wait.
    full_for_moved: Option<QueueId>,
    /// Rises whenever capacity may have become free: a message left a queue, memory, the log or an outbox, or a
    /// transaction ended. Publishers that wait for capacity then retry.
    releases: u64,
    /// The messages that the last read did not find in the log.
    lost: Option<LostMessages>,
    /// The limit of bytes in the log to which all sessions were trimmed last, or twice that or more if it has risen since.
    trimmed_to: u64,
    /// The queues of MQTT clients that do not keep up.
    slow: SlowQueues,
    /// Number of messages that were dropped in the queues of MQTT sessions since the start.
    session_messages_dropped: u64,
    minutes: Minutes,
}

impl Queues {
    /// Creates the queues. `side_bytes` are the bytes that a queue takes outside of its record.
    pub fn new(limits: &Limits, memory: &Memory, seed: u64, side_bytes: usize) -> Self {
        let (queues, frame) = (limits.queues_max as usize, limits.frame_max as usize);
        let pool = FifoPool::in_memory(limits.queue_entries_max as usize, memory);
        Self {
            settings: Settings {
                frame_max: frame,
                chunks_reserve: pool.reserve(),
                dead_letter_log_bytes: limits.segment_bytes.into(),
                persist_all: false,
                messages: limits.messages_max - limits.messages_max / 16,
                body_bytes: limits.body_bytes_max - limits.body_bytes_max / 16,
            },
            records: Records::with_capacity(queues, memory, seed, side_bytes),
            pool,
            deliveries: Deliveries::with_capacity(limits.unacknowledged_max as usize, memory),
            schedule: QueueSchedule::with_capacity(queues),
            delay_wheel: DelayWheel::new(queues, limits.messages_max as usize),
            trim_list: TrimList::with_capacity(queues),
            paging: Paging::new(limits),
            browses: BrowseRequests::default(),
            keys: MessageKeys::default(),
            gets: RetryList::with_capacity(0),
            awaited: AwaitedCommits::default(),
            scratch: Scratch {
                properties: vec![0; frame].into_boxed_slice(),
                rewritten: vec![0; frame + 256].into_boxed_slice(),
            },
            live_log_bytes: None,
            full_for_moved: None,
            releases: 0,
            lost: None,
            trimmed_to: u64::MAX,
            slow: SlowQueues::default(),
            session_messages_dropped: 0,
            minutes: Minutes::default(),
        }
    }

    /// Sets whether messages to durable queues count as persistent whatever their delivery mode.
    pub const fn set_persist_all(&mut self, persist_all: bool) {
        self.settings.persist_all = persist_all;
    }

    /// Returns the maximum bytes of a frame.
    pub const fn frame_max(&self) -> usize {
        self.settings.frame_max
    }

    /// Lends the buffers for reading properties; [`Self::return_scratch`] must follow.
    pub fn lend_scratch(&mut self) -> Scratch {
        core::mem::take(&mut self.scratch)
    }

    /// Takes back the buffers for reading properties.
    pub fn return_scratch(&mut self, scratch: Scratch) {
        self.scratch = scratch;
    }

    /// Returns the buffers for reading properties. For callers that use no other part of the queues while
    /// they use a buffer.
    pub const fn scratch_mut(&mut self) -> &mut Scratch {
        &mut self.scratch
    }

    /// Returns the records of all queues.
    #[inline]
    pub const fn records(&self) -> &Records {
        &self.records
    }

    /// Returns the records of all queues mutably.
    #[inline]
    pub const fn records_mut(&mut self) -> &mut Records {
        &mut self.records
    }

    /// Returns the number of further queues and levels that fit.
    pub fn free_count(&self) -> usize {
        self.records.free_count()
    }

    /// Returns whether the broker has had any message or queue that may expire.
    pub const fn has_deadlines(&self) -> bool {
        self.records.has_deadlines()
    }

    /// Returns whether any message in the log may expire, so that broker time must be stored for the next
    /// run.
    pub fn has_stored_deadline(&self) -> bool {
        self.records.has_stored_deadline()
    }

    /// Returns the number of messages that left the queue which this publisher waits for; `None` if it waits
    /// for something else.
    ///
    /// While the number rises, the publisher need not be refused.
    pub fn departures_from_awaited_queue(&self, shortage: Shortage) -> Option<u64> {
        self.records.departures_from_awaited_queue(shortage)
    }

    /// Returns a queue that can deliver now but is missing from the ready list, so that it would be
    /// forgotten.
    #[cfg(debug_assertions)]
    pub fn forgotten_queue(&self) -> Option<usize> {
        self.records.forgotten_queue()
    }

    /// Uses up `count` offsets of every durable queue, as if `count` messages had been published to it and settled
    /// before they were written.
    ///
    /// The simulator uses it to reach large offsets quickly.
    #[cfg(debug_assertions)]
    pub fn pass_offsets(&mut self, pending_writes: &mut PendingWrites, count: u64) {
        self.records.pass_offsets(pending_writes, count);
    }

    /// Returns the timing wheel of the delayed exchanges.
    pub const fn delay_wheel(&self) -> &DelayWheel {
        &self.delay_wheel
    }

    /// Returns the timing wheel of the delayed exchanges mutably.
    pub const fn delay_wheel_mut(&mut self) -> &mut DelayWheel {
        &mut self.delay_wheel
    }

    /// Returns the list of queues that have messages to remove.
    pub const fn trim_list_mut(&mut self) -> &mut TrimList {
        &mut self.trim_list
    }

    /// Returns the reads for operators who browse messages.
    pub const fn browses(&self) -> &BrowseRequests {
        &self.browses
    }

    /// Returns the reads for operators who browse messages mutably.
    pub const fn browses_mut(&mut self) -> &mut BrowseRequests {
        &mut self.browses
    }

    /// Returns the waiting `basic.get`s.
    #[inline]
    pub const fn gets(&self) -> &RetryList<Getting> {
        &self.gets
    }

    /// Returns the waiting `basic.get`s mutably.
    pub const fn gets_mut(&mut self) -> &mut RetryList<Getting> {
        &mut self.gets
    }

    /// Returns the pool of entries of all queues.
    #[inline]
    pub const fn entries(&self) -> &FifoPool {
        &self.pool
    }

    /// Takes the memory for this many chunks of queue entries, for which there is capacity. Returns whether it could.
    pub fn touch_chunks(&mut self, count: usize) -> bool {
        count == 0 || self.pool.touch_checked(count)
    }

    /// Returns the minute of this turn since the start of the process.
    pub const fn minute(&self) -> u32 {
        self.minutes.now
    }

    /// Sets the minute of the beginning turn, since the start of the process.
    pub const fn set_minute(&mut self, minute: u32) {
        self.minutes.now = minute;
    }

    /// Returns whether missing capacity for a level or a delay slot may be logged: at most once a minute. Marks it as
    /// logged.
    pub fn should_log_level_shortage(&mut self) -> bool {
        self.minutes.level_shortage_logged.replace(self.minutes.now) != Some(self.minutes.now)
    }

    // ---- access

    /// Returns the record of an existing queue or level.
    #[inline]
    pub fn at(&self, queue: QueueId) -> &Queue {
        &self.records[queue]
    }

    /// Returns the record of an existing queue or level mutably.
    #[inline]
    pub fn at_mut(&mut self, queue: QueueId) -> &mut Queue {
        &mut self.records[queue]
    }

    /// Returns the unsettled deliveries.
    #[inline]
    pub const fn deliveries(&self) -> &Deliveries {
        &self.deliveries
    }

    /// Returns the unsettled deliveries mutably.
    #[inline]
    pub const fn deliveries_mut(&mut self) -> &mut Deliveries {
        &mut self.deliveries
    }

    /// Returns a counter that rises when capacity becomes free that a publisher may wait for.
    ///
    /// It rises for freed queue entries and delivery records (counted by their pools), and with `releases`.
    pub fn capacity_freed(&self) -> u64 {
        self.pool.given() + self.deliveries.freed_total() + self.releases
    }

    /// Makes waiting publishers retry, because a message left memory, an outbox or a transaction, or because
    /// a waiting publisher must now be refused.
    pub const fn note_release(&mut self) {
        self.releases += 1;
    }

    /// Returns roughly the bytes of the queue pools that are unused but not returned to the operating system.
    pub const fn idle_bytes(&self) -> usize {
        self.pool.idle_bytes() + self.deliveries.idle_bytes() + self.records.idle_bytes()
    }

    /// Returns a bounded part of the unused memory to the operating system. Returns whether that was the last
    /// part.
    pub fn trim(&mut self) -> bool {
        self.deliveries.trim();
        self.records.trim();
        self.pool.trim()
    }

    /// Returns messages of a queue from this position on, counted from 0.
    ///
    /// # Errors
    /// The position is too far from the front.
    pub fn browse(
        &mut self,
        messages: &mut Messages,
        queue: QueueId,
        from: u32,
        count: u32,
    ) -> Result<Vec<Browsed>, Fault> {
        let pools = EntryPools { pool: &self.pool, deliveries: &self.deliveries };
        self.records.browse(pools, &mut self.keys, messages, queue, from..from.saturating_add(count))
    }

    // ---- settings

    /// Gives a queue and its levels new settings.
    pub fn renew(&mut self, pending_writes: &PendingWrites, queue: QueueId, settings: QueueSettings) {
        self.apply_settings_to_record(pending_writes, queue, settings);
        let mut level = self.records.highest_level(queue);
        while level != queue {
            self.apply_settings_to_record(pending_writes, level, settings.of_level());
            level = self.records.below(level).unwrap_or(queue);
        }
    }

    fn apply_settings_to_record(
        &mut self,
        pending_writes: &PendingWrites,
        queue: QueueId,
        settings: QueueSettings,
    ) {
        let expired_ms = self.records[queue].settings.expires_ms;
        if !self.records.set_settings(pending_writes.time_ms(), queue, settings) {
            return;
        }
        if settings.expires_ms != expired_ms {
            self.touch_queue(pending_writes, queue);
        }
        if self.records[queue].has_rules() {
            self.relist_for_trim(queue);
        }
    }

    // ---- at start

    /// Sets, at start, the counts of a queue's messages in the log.
    pub fn restore_contents(&mut self, queue: QueueId, contents: &Contents) {
        self.records.restore_contents(queue, contents);
        if contents.count > 0 {
            self.examine_stored(queue);
        }
    }

    /// Adds, at start, absent messages to a queue: those with log offsets from `start` to before `end`.
    /// Returns `false` when there is no capacity for them.
    ///
    /// Does nothing for a deleted queue.
    pub fn restore_messages(&mut self, queue: QueueId, start: u64, end: u64) -> bool {
        if self.records[queue].is_deleted() {
            return true;
        }
        let mut start = start;
        while start < end {
            let count = (end - start).min(u64::from(u32::MAX / 2)) as u32;
            let backlog = &mut self.records[queue].backlog;
            if !backlog.push_absent_run(&mut self.pool, start, count) {
                return false;
            }
            start += u64::from(count);
        }
        true
    }

    /// Frees the record of a cleared queue or level, if no delivery, job or level refers to it.
    ///
    /// Returns the record if it was freed, and for a level its queue, whose record may be unreferenced now
    /// too.
    pub fn take_if_done(&mut self, queue: QueueId) -> Option<(Queue, Option<QueueId>)> {
        let (record, queue_of_level) = self.records.take_if_done(queue)?;
        if record.listed.is_listed_for_trim {
            self.trim_list.remove(queue);
        }
        Some((record, queue_of_level))
    }
}
