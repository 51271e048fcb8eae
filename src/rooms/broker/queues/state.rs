//! All queues with their messages, the unsettled deliveries, and the schedules over them.
//!
//! Always true: a message is in one place of one queue, or in one delivery of it.

use core::cell::Cell;
use std::collections::VecDeque;

use super::deliveries::Deliveries;
use super::expiry::Expiry;
use super::gets::Getting;
use super::looks::Looks;
use super::paging::Paging;
use super::queue::Queue;
use super::returns::ReturnsDue;
use super::shedding::Shedding;
use super::sleepers::Sleepers;
use crate::broker::consumers::Audience;
use crate::broker::names::IndexTable;
use crate::broker::waiters::Waiters;
use crate::command::QueueId;
use crate::journal::Batch;
use crate::limits::Limits;
use crate::mem::{FifoPool, List, Slab};

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

/// All queues.
#[derive(Debug)]
pub struct Queues {
    pub(super) settings: Settings,
    pub(super) slab: Slab<Queue>,
    pub(super) table: IndexTable,
    /// The entries of all queues.
    pub(super) pool: FifoPool,
    /// Unsettled deliveries.
    pub(super) deliveries: Deliveries,
    /// The ready list: queues that can deliver now.
    pub(super) ready: List,
    /// When to look at which queue for expired messages.
    pub(super) expiry: Expiry,
    /// The timing wheel of the delayed exchanges.
    pub(crate) sleepers: Sleepers,
    /// Queues that have messages to give up.
    pub(crate) shedding: Shedding,
    /// Queues that read messages from the log, or move them out of memory.
    pub(super) paging: Paging,
    /// Reads for operators who look at messages.
    pub(super) looks: Looks,
    /// Gets that wait for their message to be read.
    pub(super) gets: Waiters<Getting>,
    /// Quorum queues whose delivery counts are to be written.
    pub(super) returns_due: ReturnsDue,
    /// Watermarks being written, in the order of their batches: batch, queue, incarnation, watermark.
    pub(super) watermarks_pending: VecDeque<(u64, QueueId, u64, u64)>,
    /// Queues that wait until the move of their first message is durable: the batch durable when they asked,
    /// the queue.
    pub(super) moves_awaited: Vec<(Batch, QueueId)>,
    /// Durable queues and levels that have dead letters.
    pub(super) dead_lettering: u32,
    /// Whether there ever was a message or queue that may expire.
    pub(super) has_deadlines: bool,
    pub(super) scratch: Scratch,
    /// Queues ever made, which numbers them.
    serial: u64,
    /// Counts messages that left memory or an outbox; a publisher that waits for room asks again when it
    /// rises.
    pub(super) releases: u64,
    /// Levels of queues with priorities that were walked through and not charged as work yet.
    pub(super) levels_walked: Cell<u32>,
    /// The minute of this turn, since the start of the process.
    pub(super) minute: u32,
    /// The minute in which a lack of room for a level was logged last.
    pub(super) no_level_logged_minute: Option<u32>,
}

impl Queues {
    pub(crate) fn new(limits: &Limits, seed: u64) -> Self {
        let (queues, frame) = (limits.queues_max as usize, limits.frame_max as usize);
        let pool = FifoPool::with_entries(limits.queue_entries_max as usize, limits.vhosts_max as usize);
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
            slab: Slab::with_capacity(queues),
            table: IndexTable::with_capacity(queues, seed),
            pool,
            deliveries: Deliveries::with_capacity(limits.unacknowledged_max as usize),
            ready: List::default(),
            expiry: Expiry::with_capacity(queues),
            sleepers: Sleepers::new(queues, limits.messages_max as usize),
            shedding: Shedding::with_capacity(queues),
            paging: Paging::new(limits),
            looks: Looks::default(),
            gets: Waiters::with_capacity(0),
            returns_due: ReturnsDue::default(),
            watermarks_pending: VecDeque::with_capacity(64),
            moves_awaited: Vec::with_capacity(64),
            dead_lettering: 0,
            has_deadlines: false,
            scratch: Scratch {
                properties: vec![0; frame].into_boxed_slice(),
                rewritten: vec![0; frame + 256].into_boxed_slice(),
            },
            serial: 0,
            releases: 0,
            levels_walked: Cell::new(0),
            minute: 0,
            no_level_logged_minute: None,
        }
    }

    /// A number that no other queue has.
    pub(super) const fn next_serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
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

    /// The pool of entries of all queues, which is to hear who shares it.
    pub(crate) const fn entries_mut(&mut self) -> &mut FifoPool {
        &mut self.pool
    }

    /// The minute of this turn, since the start of the process.
    pub(crate) const fn minute(&self) -> u32 {
        self.minute
    }

    /// A turn begins in this minute since the start of the process.
    pub(crate) const fn set_minute(&mut self, minute: u32) {
        self.minute = minute;
    }

    /// Whether it was not said in this minute that there is no room for a priority or a span of time; from now on it was.
    pub(crate) fn is_minute_to_say(&mut self) -> bool {
        self.no_level_logged_minute.replace(self.minute) != Some(self.minute)
    }

    // ---- how much there is

    /// Queues, their levels and hidden queues included.
    pub(crate) const fn len(&self) -> usize {
        self.slab.len()
    }

    /// How many more queues and levels fit.
    pub const fn room(&self) -> usize {
        self.slab.room()
    }

    /// Places of queues ever used.
    pub(crate) const fn places(&self) -> usize {
        self.slab.places()
    }

    /// The record of an existing queue or level.
    #[inline]
    pub(crate) fn at(&self, queue: QueueId) -> &Queue {
        &self.slab[queue.index()]
    }

    /// The record of an existing queue or level, to be changed.
    #[inline]
    pub(crate) fn at_mut(&mut self, queue: QueueId) -> &mut Queue {
        &mut self.slab[queue.index()]
    }

    /// The consumers of a queue.
    #[inline]
    pub(crate) fn audience(&self, queue: QueueId) -> &Audience {
        &self.slab[queue.index()].audience
    }

    /// The consumers of a queue, to be changed.
    #[inline]
    pub(crate) fn audience_mut(&mut self, queue: QueueId) -> &mut Audience {
        &mut self.slab[queue.index()].audience
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

    /// Free delivery records.
    #[inline]
    pub(crate) const fn deliveries_room(&self) -> usize {
        self.deliveries.room()
    }

    pub(crate) fn get(&self, place: usize) -> Option<&Queue> {
        self.slab.get(place)
    }

    pub(crate) fn get_mut(&mut self, place: usize) -> Option<&mut Queue> {
        self.slab.get_mut(place)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (usize, &Queue)> {
        self.slab.iter()
    }

    /// Rises when room is made that a publisher may wait for: places for entries and deliveries (their pools
    /// count these), room in the share of a queue, or room in an outbox.
    pub(crate) const fn room_made(&self) -> u64 {
        self.pool.given() + self.deliveries.given() + self.releases
    }

    /// Notes that a message left memory, an outbox or a transaction.
    pub(crate) const fn note_release(&mut self) {
        self.releases += 1;
    }

    /// Unsettled or requeued messages that only the log has.
    pub(crate) fn absent(&self) -> u32 {
        self.slab.iter().map(|(_, queue)| queue.unsettled.absent + queue.backlog.returned_absent()).sum()
    }

    /// Transient messages that the log has, or will have, because memory was short.
    pub(crate) fn spilled_messages(&self) -> u64 {
        self.slab.iter().map(|(_, queue)| queue.spilled.count()).sum()
    }

    /// Bytes of the queue pools that nobody uses and the system holds memory for, about.
    pub(crate) const fn idle_bytes(&self) -> usize {
        self.pool.idle_bytes() + self.deliveries.idle_bytes() + self.slab.idle_bytes()
    }

    /// Gives idle memory back to the system, a bounded part at a time; says whether that was the last part.
    pub(crate) fn trim(&mut self) -> bool {
        self.deliveries.trim();
        self.slab.trim();
        self.pool.trim()
    }
}
