//! Messages go into queues, through them, out of memory and back, and are given up.
//!
//! Why it exists: everything that is done with a message while it is in a queue is decided here, over the records of
//! `queue`; who gets it, and where its dead letter goes, is decided outside.
//!
//! | file | what |
//! |---|---|
//! | `state` | all of it; queues get other settings, and end |
//! | `push` | is there room for one more, on which level; a message comes in |
//! | `head`, `gets` | what stands first, whether it may go, what becomes of it; gets that wait |
//! | `shed`, `shedding` | what a queue gives up: what is too much, expired, rejected or purged; when to ask it again |
//! | `schedules`, `expiry` | when to look at which queue, and what for |
//! | `delayed`, `delay_wheel` | what delayed exchanges keep until its time; when that is |
//! | `spill`, `page_in`, `fetch`, `paging`, `read_back_room` | queues deeper than memory: the way out, the way in, what is read for it, who waits, the room for it |
//! | `browses` | messages read for somebody who looks at them |
//!
//! Always true: a queue with something to give up, to read back or to expire is on the list that says so; a message is
//! counted where it is, in the queue, among the deliveries or among what only the log has, and nowhere else.

mod delayed;
mod expiry;
mod head;
mod page_in;
mod push;
mod shed;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use leveret_core::command::QueueId;
use leveret_core::error::Fault;
use leveret_core::journal::{Batch, Journal};
use leveret_core::limits::Limits;
use leveret_core::mem::FifoPool;
use page_in::LostMessages;
use page_in::Paging;
use shed::Shedding;

use crate::arguments::QueueSettings;
use crate::deliveries::Deliveries;
use crate::queue::{Browsed, Queue, Records};
use crate::recovery::Contents;
use crate::shortage::Shortage;
use crate::waiters::Waiters;

pub(super) use delayed::{DelayWheel, Held, NARROWEST_PUBLISHED, Next, Slot, delay_ms};
pub(super) use expiry::Expiry;
pub(super) use head::Getting;
pub use page_in::Browses;
pub use page_in::{Fetch, FetchFrom, Page, PageIn};
pub use push::disk_shortage;
pub(super) use push::{Claim, Hindrance, LevelChoice};
pub(super) use shed::Patience;
pub(super) use shed::take_step;

// All that messages on their way through queues need: the records, the pool of entries, the deliveries, the schedules.
//
// Always true: a message is in one place of one queue, or in one delivery of it.

/// Buffers for reading properties; taken out while in use.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    pub(crate) properties: Box<[u8]>,
    pub(crate) rewritten: Box<[u8]>,
}

/// Settings of the broker that queues go by.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) output_budget_bytes: u64,
    /// The largest size of a frame, in bytes.
    pub(crate) frame_max: usize,
    /// Chunks of queue entries that ordinary publishers leave free.
    pub(crate) chunks_reserve: usize,
    /// The most bytes of the log that publishers leave free for dead letters.
    pub(crate) letters_log_bytes: u64,
    /// Every message to a durable queue counts as persistent, whatever its delivery mode.
    pub(crate) persist_all: bool,
    /// Message slots that ordinary publishers may use.
    pub(crate) messages: u32,
    /// Bytes of message blocks that ordinary publishers may use.
    pub(crate) body_bytes: u64,
}

/// The minute of a turn, for what is logged once in a minute at most.
#[derive(Debug, Default)]
struct Minutes {
    /// The minute of this turn, since the start of the process.
    now: u32,
    /// The minute in which a lack of room for a level was logged last.
    no_level_logged: Option<u32>,
}

/// Queues whose first message waits for a commit.
#[derive(Debug, Default)]
struct AwaitedCommits {
    /// Watermarks that are being written, in the order of their batches.
    watermarks: VecDeque<PendingWatermark>,
    /// Queues whose first message took the place of another: the batch durable when they asked, the queue.
    moves: Vec<(Batch, QueueId)>,
}

/// A watermark that is being written.
#[derive(Clone, Copy, Debug)]
struct PendingWatermark {
    /// The number of the write.
    fact: u64,
    queue: QueueId,
    /// The number that the log knew the queue by.
    incarnation: u64,
    /// Messages with offsets below may be delivered then.
    through: u64,
}

/// All queues.
#[derive(Debug)]
pub struct Queues {
    settings: Settings,
    records: Records,
    /// The entries of all queues.
    pool: FifoPool,
    /// Unsettled deliveries.
    deliveries: Deliveries,
    /// When to look at which queue for expired messages.
    expiry: Expiry,
    /// The timing wheel of the delayed exchanges.
    delay_wheel: DelayWheel,
    /// Queues that have messages to give up.
    shedding: Shedding,
    /// Queues that read messages from the log, or move them out of memory.
    paging: Paging,
    /// Reads for operators who look at messages.
    browses: Browses,
    /// Gets that wait for their message to be read.
    gets: Waiters<Getting>,
    /// Queues whose first message waits for a commit.
    awaited: AwaitedCommits,
    scratch: Scratch,
    /// Bytes that all messages take in the log, and the batch that was durable when they were counted; `None` while
    /// more than half of the log is free.
    live_log_bytes: Option<(Batch, u64)>,
    /// Counts messages that left memory or an outbox; a publisher that waits for room asks again when it
    /// rises.
    releases: u64,
    /// The messages that the last read did not find.
    lost: Option<LostMessages>,
    minutes: Minutes,
}

impl Queues {
    pub(crate) fn new(limits: &Limits, seed: u64) -> Self {
        let (queues, frame) = (limits.queues_max as usize, limits.frame_max as usize);
        let pool = FifoPool::with_entries(limits.queue_entries_max as usize);
        Self {
            settings: Settings {
                output_budget_bytes: u64::from(limits.output_buffer_bytes),
                frame_max: frame,
                chunks_reserve: pool.chunks_max() / 16,
                letters_log_bytes: limits.segment_bytes.into(),
                persist_all: false,
                messages: limits.messages_max - limits.messages_max / 16,
                body_bytes: limits.body_bytes_max - limits.body_bytes_max / 16,
            },
            records: Records::with_capacity(queues, seed),
            pool,
            deliveries: Deliveries::with_capacity(limits.unacknowledged_max as usize),
            expiry: Expiry::with_capacity(queues),
            delay_wheel: DelayWheel::new(queues, limits.messages_max as usize),
            shedding: Shedding::with_capacity(queues),
            paging: Paging::new(limits),
            browses: Browses::default(),
            gets: Waiters::with_capacity(0),
            awaited: AwaitedCommits::default(),
            scratch: Scratch {
                properties: vec![0; frame].into_boxed_slice(),
                rewritten: vec![0; frame + 256].into_boxed_slice(),
            },
            live_log_bytes: None,
            releases: 0,
            lost: None,
            minutes: Minutes::default(),
        }
    }

    /// Sets whether messages to durable queues count as persistent whatever their delivery mode.
    pub const fn set_persist_all(&mut self, persist_all: bool) {
        self.settings.persist_all = persist_all;
    }

    /// Bytes that a frame has at most.
    pub(crate) const fn frame_max(&self) -> usize {
        self.settings.frame_max
    }

    /// Space for looking into properties, to be returned.
    pub(crate) fn lend_scratch(&mut self) -> Scratch {
        core::mem::take(&mut self.scratch)
    }

    /// The space for looking into properties is not needed any more.
    pub(crate) fn return_scratch(&mut self, scratch: Scratch) {
        self.scratch = scratch;
    }

    /// Space for looking into properties, for who needs nothing else of queues meanwhile.
    pub(crate) const fn scratch_mut(&mut self) -> &mut Scratch {
        &mut self.scratch
    }

    /// The records of all queues.
    #[inline]
    pub(crate) const fn records(&self) -> &Records {
        &self.records
    }

    /// The records of all queues, to be changed.
    #[inline]
    pub(crate) const fn records_mut(&mut self) -> &mut Records {
        &mut self.records
    }

    /// How many more queues and levels fit.
    pub const fn room(&self) -> usize {
        self.records.room()
    }

    /// Whether the broker had any message or queue so far that may expire.
    pub const fn has_deadlines(&self) -> bool {
        self.records.has_deadlines()
    }

    /// Whether some message in the log may expire, so that the broker time has to be told to the next life.
    pub fn has_stored_deadline(&self) -> bool {
        self.records.has_stored_deadline()
    }

    /// Counts the messages that left the queue which a publisher waits for; `None`: he waits for something else.
    /// While the count rises he need not give up.
    pub fn left_queue_of(&self, shortage: Shortage) -> Option<u64> {
        self.records.left_queue_of(shortage)
    }

    /// A queue that can deliver now and is not on the ready list, so that nobody would look at it.
    #[cfg(debug_assertions)]
    pub fn forgotten_queue(&self) -> Option<usize> {
        self.records.forgotten_queue()
    }

    /// Uses up offsets, as if as many messages had come to every durable queue and gone before they were written. For
    /// the simulator, which has no days to wait for that.
    #[cfg(debug_assertions)]
    pub fn pass_offsets(&mut self, journal: &mut Journal, count: u64) {
        self.records.pass_offsets(journal, count);
    }

    /// The timing wheel of the delayed exchanges.
    pub(crate) const fn delay_wheel(&self) -> &DelayWheel {
        &self.delay_wheel
    }

    /// The timing wheel of the delayed exchanges, to be moved on.
    pub(crate) const fn delay_wheel_mut(&mut self) -> &mut DelayWheel {
        &mut self.delay_wheel
    }

    /// Queues that have messages to give up, to be asked.
    pub(crate) const fn shedding_mut(&mut self) -> &mut Shedding {
        &mut self.shedding
    }

    /// Reads for operators who look at messages.
    pub const fn browses(&self) -> &Browses {
        &self.browses
    }

    /// Reads for operators who look at messages, to be asked for.
    pub const fn browses_mut(&mut self) -> &mut Browses {
        &mut self.browses
    }

    /// Gets that wait for their message.
    #[inline]
    pub(crate) const fn gets(&self) -> &Waiters<Getting> {
        &self.gets
    }

    /// Gets that wait for their message, to be answered.
    pub(crate) const fn gets_mut(&mut self) -> &mut Waiters<Getting> {
        &mut self.gets
    }

    /// The pool of entries of all queues.
    #[inline]
    pub(crate) const fn entries(&self) -> &FifoPool {
        &self.pool
    }

    /// The minute of this turn, since the start of the process.
    pub(crate) const fn minute(&self) -> u32 {
        self.minutes.now
    }

    /// A turn begins in this minute since the start of the process.
    pub(crate) const fn set_minute(&mut self, minute: u32) {
        self.minutes.now = minute;
    }

    /// Whether it was not said in this minute that there is no room for a priority or a span of time; from now on it was.
    pub(crate) fn is_minute_to_say(&mut self) -> bool {
        self.minutes.no_level_logged.replace(self.minutes.now) != Some(self.minutes.now)
    }

    // ---- how much there is

    /// The record of an existing queue or level.
    #[inline]
    pub(crate) fn at(&self, queue: QueueId) -> &Queue {
        &self.records[queue]
    }

    /// The record of an existing queue or level, to be changed.
    #[inline]
    pub(crate) fn at_mut(&mut self, queue: QueueId) -> &mut Queue {
        &mut self.records[queue]
    }

    /// The unsettled deliveries.
    #[inline]
    pub(crate) const fn deliveries(&self) -> &Deliveries {
        &self.deliveries
    }

    /// The unsettled deliveries, to be changed.
    #[inline]
    pub(crate) const fn deliveries_mut(&mut self) -> &mut Deliveries {
        &mut self.deliveries
    }

    /// Rises when room is made that a publisher may wait for: places for entries and deliveries (their pools
    /// count these), room in the share of a queue, or room in an outbox.
    pub(crate) const fn room_made(&self) -> u64 {
        self.pool.given() + self.deliveries.given() + self.releases
    }

    /// Notes that a message left memory, an outbox or a transaction, or that a waiting publisher may be refused now.
    pub(crate) const fn note_release(&mut self) {
        self.releases += 1;
    }

    /// Bytes of the queue pools that nobody uses and the system holds memory for, about.
    pub(crate) const fn idle_bytes(&self) -> usize {
        self.pool.idle_bytes() + self.deliveries.idle_bytes() + self.records.idle_bytes()
    }

    /// Gives idle memory back to the system, a bounded part at a time; says whether that was the last part.
    pub(crate) fn trim(&mut self) -> bool {
        self.deliveries.trim();
        self.records.trim();
        self.pool.trim()
    }

    /// Messages of a queue from the one in this place on, counted from 0.
    ///
    /// # Errors
    /// The place is too far behind.
    pub(crate) fn browse(&self, queue: QueueId, from: u32, count: u32) -> Result<Vec<Browsed>, Fault> {
        self.records.browse(&self.pool, &self.deliveries, queue, from, count)
    }

    // ---- settings

    /// Gives a queue and its levels new settings.
    pub(crate) fn renew(&mut self, journal: &Journal, queue: QueueId, settings: QueueSettings) {
        self.renew_one(journal, queue, settings);
        let mut level = self.records.highest_level(queue);
        while level != queue {
            self.renew_one(journal, level, settings.of_level());
            level = self.records.below(level).unwrap_or(queue);
        }
    }

    fn renew_one(&mut self, journal: &Journal, queue: QueueId, settings: QueueSettings) {
        let expired_ms = self.records[queue].settings.expires_ms;
        if !self.records.set_settings(journal.time_ms(), queue, settings) {
            return;
        }
        if settings.expires_ms != expired_ms {
            self.touch_queue(journal, queue);
        }
        if self.records[queue].has_rules() {
            self.note_shed_anew(queue);
        }
    }

    // ---- at a start

    /// At a start: tells a queue what the log has for it.
    pub fn restore_contents(&mut self, queue: QueueId, contents: &Contents) {
        self.records.restore_contents(queue, contents);
        if contents.count > 0 {
            self.look_at_stored(queue);
        }
    }

    /// Adds messages of a queue that the log has, in order; `false` when there is no room to remember them. A queue
    /// that was deleted meanwhile gets none.
    pub fn restore_messages(&mut self, queue: QueueId, start: u64, end: u64) -> bool {
        if self.records[queue].dying {
            return true;
        }
        let mut start = start;
        while start < end {
            let count = (end - start).min(u64::from(u32::MAX / 2)) as u32;
            let backlog = &mut self.records[queue].backlog;
            if !backlog.push_stored(&mut self.pool, start, count) {
                return false;
            }
            start += u64::from(count);
        }
        true
    }

    /// Frees the record of a cleared queue, or of a level, once nothing refers to it; gives it, with the queue that it
    /// was a level of, for that may be done with now.
    pub(crate) fn take_if_done(&mut self, queue: QueueId) -> Option<(Queue, Option<QueueId>)> {
        let (record, whole) = self.records.take_if_done(queue)?;
        if record.listed.is_shedding {
            self.shedding.forget(queue);
        }
        Some((record, whole))
    }
}
