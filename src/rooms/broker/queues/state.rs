//! All queues, what waits in them, what of it is delivered and not settled, and the schedules over them.
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

/// Space for looking into properties; it is taken out while in use.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    pub(crate) properties: Box<[u8]>,
    pub(crate) rewritten: Box<[u8]>,
}

/// The numbers that queues go by at run time.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) output_budget_bytes: u64,
    /// Bytes of a frame.
    pub(crate) frame_max: usize,
    /// Chunks of queue entries that ordinary publishers leave.
    pub(crate) chunks_reserve: usize,
    /// Bytes of the log that publishers leave to dead letters, of those that there are at most.
    pub(crate) letters_log_bytes: u64,
    /// Every message to a durable queue is persistent, whatever it says.
    pub(crate) persist_all: bool,
    /// Slots and bytes of blocks that ordinary publishers may use.
    pub(crate) messages: u32,
    pub(crate) body_bytes: u64,
}

/// All queues.
#[derive(Debug)]
pub struct Queues {
    pub(super) settings: Settings,
    pub(super) slab: Slab<Queue>,
    pub(super) table: IndexTable,
    /// Entries of all queues.
    pub(super) pool: FifoPool,
    pub(super) deliveries: Deliveries,
    /// Queues with something to deliver now.
    pub(super) ready: List,
    /// When to look at which queue for what has expired.
    pub(super) expiry: Expiry,
    /// What delayed exchanges keep.
    pub(crate) sleepers: Sleepers,
    /// Queues that have to give up something.
    pub(crate) shedding: Shedding,
    pub(super) paging: Paging,
    /// What somebody waits to look at.
    pub(super) looks: Looks,
    /// Gets that wait for their message.
    pub(super) gets: Waiters<Getting>,
    /// Quorum queues of which it is to be written how often their messages came back.
    pub(super) returns_due: ReturnsDue,
    /// Watermarks that were asked for, in the order of their batches: queue, incarnation, through.
    pub(super) watermarks_pending: VecDeque<(u64, QueueId, u64, u64)>,
    /// Queues whose first message is moving, and what was durable when somebody asked for it.
    pub(super) moves_awaited: Vec<(Batch, QueueId)>,
    /// Queues and levels of the log whose dead letters go on.
    pub(super) dead_lettering: u32,
    /// There was something that may expire.
    pub(super) has_deadlines: bool,
    pub(super) scratch: Scratch,
    /// Queues there have been.
    serial: u64,
    /// Counts messages that left memory or an outbox; whoever waits for room asks again when it rises.
    pub(super) releases: u64,
    /// Levels of queues with priorities that were walked through and are not charged yet.
    pub(super) levels_walked: Cell<u32>,
    /// The minute of this turn, since the start of the process.
    pub(super) minute: u32,
    /// In which minute it was last said that there was no room for a priority of a queue.
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

    /// Whether messages to durable queues count as persistent whatever they say.
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

    /// Queues, levels and hidden ones included.
    pub(crate) const fn len(&self) -> usize {
        self.slab.len()
    }

    /// How many more queues and levels there is room for.
    pub const fn room(&self) -> usize {
        self.slab.room()
    }

    /// Places of queues that were ever used.
    pub(crate) const fn places(&self) -> usize {
        self.slab.places()
    }

    /// A queue that is there, or a level of one.
    #[inline]
    pub(crate) fn at(&self, queue: QueueId) -> &Queue {
        &self.slab[queue.index()]
    }

    /// A queue that is there, or a level of one, to be changed.
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

    /// What is delivered and not settled.
    #[inline]
    pub(crate) const fn deliveries(&self) -> &Deliveries {
        &self.deliveries
    }

    /// What is delivered and not settled, to be changed.
    #[inline]
    pub(crate) const fn deliveries_mut(&mut self) -> &mut Deliveries {
        &mut self.deliveries
    }

    /// How many more deliveries there is room for.
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

    /// Rises with everything here that a publisher may wait for: places for entries and deliveries, which
    /// their pools count themselves, what a queue has of its share, and what waits in an outbox.
    pub(crate) const fn room_made(&self) -> u64 {
        self.pool.given() + self.deliveries.given() + self.releases
    }

    /// A message left memory, an outbox or a transaction.
    pub(crate) const fn note_release(&mut self) {
        self.releases += 1;
    }

    /// Messages delivered, or back in their queues, that only the log has.
    pub(crate) fn absent(&self) -> u32 {
        self.slab.iter().map(|(_, queue)| queue.unsettled.absent + queue.backlog.returned_absent()).sum()
    }

    /// Transient messages that the log has, or will have.
    pub(crate) fn spilled_messages(&self) -> u64 {
        self.slab.iter().map(|(_, queue)| queue.spilled.count()).sum()
    }

    /// Bytes of the pools that nobody uses and the system holds memory for, about.
    pub(crate) const fn idle_bytes(&self) -> usize {
        self.pool.idle_bytes() + self.deliveries.idle_bytes() + self.slab.idle_bytes()
    }

    /// Gives idle memory back, a bounded part at a time; says whether that was the last part.
    pub(crate) fn trim(&mut self) -> bool {
        self.deliveries.trim();
        self.slab.trim();
        self.pool.trim()
    }
}
