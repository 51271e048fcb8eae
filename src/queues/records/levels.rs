//! Queues with priorities: a level for each priority that has had a message. The slots of a delayed exchange are levels of
//! its hidden queue.
//!
//! ```text
//! queue, x-max-priority 9 ── highest ──→ level 9 ── below ──→ level 4 ── below ──→ the queue itself: 0
//! ```
//!
//! A level has a queue record of its own, so that the code for order, log, memory, requeueing and expiry is
//! the same with and without priorities. This file has the functions that concern a queue with all its
//! levels: the first message, and sums over the levels. It also stores the target queues of messages in a transaction.
//!
//! # Invariants
//! - A level is created for the first message of its priority. It has no name, consumer or binding, is not
//!   shown to clients or operators, and is deleted with its queue.
//! - The levels of a queue form a chain from the highest down to the queue itself, which is the lowest.
//! - The incarnations of all levels are reserved when the queue is declared, so nothing is written when a
//!   level is created.
//! - If there is no capacity for a level, its messages are added to the next lower level.

use core::ops::Range;

use leveret_amqp::delay::DELAYED;
use leveret_amqp::field::Table;
use leveret_core::command::{QueueId, VhostId};
use leveret_core::definition::Definition;
use leveret_core::error::{Fault, no_memory_for};
use leveret_core::mem::{MessageFlags, MessageId, Messages, Share};
use leveret_core::quota::{Declared, Declarer, FreeCapacity, Quota};
use leveret_core::work::Work;
use leveret_storage::PendingWrites;

use super::durable_index::DurableIndex;
use super::record::{Queue, QueueKind, QueueState, Rank, Records};
use crate::settings::{QueueSettings, max_priority};

/// Slots of the timing wheel of delayed messages; each is a level of a delayed exchange's hidden queue.
pub const SLOTS: u8 = 88;
/// Iterating over this many levels counts as one unit of work.
const LEVELS_PER_UNIT: u32 = 16;

/// Returns the incarnations that a definition reserves: for a queue those of its levels, from priority 1, for
/// a delayed exchange those of its slots. Empty for other definitions.
///
/// The incarnation of an exchange's hidden queue is the exchange's own version.
pub fn levels_of(definition: &Definition<'_>) -> Range<u64> {
    match *definition {
        Definition::Queue(queue) if queue.priorities_from != 0 => {
            let max_priority = max_priority(Table::trusted(queue.arguments));
            queue.priorities_from..queue.priorities_from + u64::from(max_priority)
        }
        Definition::Exchange(exchange) if exchange.kind == DELAYED => {
            exchange.version + 1..exchange.version + 1 + u64::from(SLOTS)
        }
        _ => 0..0,
    }
}

/// Returns the rank of a queue without levels above it. `priorities_from` is the first incarnation of its
/// levels in the log; 0 for a new queue, for which incarnations are reserved if it is durable.
pub fn first_rank(pending_writes: &mut PendingWrites, record: &Queue, priorities_from: u64) -> Rank {
    let max_priority = record.settings.max_priority;
    let priorities_from = match priorities_from {
        _ if max_priority == 0 => return Rank::Plain,
        _ if !record.durable_index.is_logged() => 0,
        0 => pending_writes.next_versions(max_priority.into()),
        known => known,
    };
    Rank::Lowest { highest: None, priorities_from }
}

impl Queue {
    /// Returns the record of a delayed exchange's hidden queue. `version` is the exchange's version, which is
    /// the incarnation of the queue; 0 for an exchange that is not in the log.
    pub fn delayed_queue(
        pending_writes: &mut PendingWrites,
        vhost: VhostId,
        settings: QueueSettings,
        version: u64,
        durable: bool,
    ) -> Self {
        let settings = QueueSettings { max_priority: SLOTS, ..settings };
        let mut record = Self::new(vhost, "", &[], settings);
        record.declared.durable = durable;
        record.durable_index = DurableIndex::as_incarnation(version);
        record.rank = first_rank(pending_writes, &record, version + u64::from(version != 0));
        record
    }
}

impl Records {
    /// Returns the queue of a level; for any other queue, the queue itself.
    #[inline]
    pub fn queue_of_level(&self, queue: QueueId) -> QueueId {
        match self.slab[queue.index()].rank {
            Rank::Level { queue, .. } => queue,
            Rank::Plain | Rank::Lowest { .. } => queue,
        }
    }

    /// Returns the record of the queue of a level; for any other queue, its own record.
    #[inline]
    pub fn record_of_queue(&self, queue: QueueId) -> &Queue {
        &self[self.queue_of_level(queue)]
    }

    /// Returns the levels of a queue, the highest first and the queue itself last.
    pub fn levels(&self, queue: QueueId) -> impl Iterator<Item = QueueId> {
        core::iter::successors(Some(self.highest_level(queue)), |level| {
            self.levels_walked.set(self.levels_walked.get().saturating_add(1));
            self.below(*level)
        })
    }

    pub(crate) fn highest_level(&self, queue: QueueId) -> QueueId {
        match self.slab[queue.index()].rank {
            Rank::Lowest { highest: Some(highest), .. } => highest,
            Rank::Plain | Rank::Lowest { highest: None, .. } | Rank::Level { .. } => queue,
        }
    }

    /// Returns the next lower level; `None` for the lowest one and for a queue without priorities.
    pub fn below(&self, level: QueueId) -> Option<QueueId> {
        match self.slab[level.index()].rank {
            Rank::Level { below, .. } => Some(below),
            Rank::Plain | Rank::Lowest { .. } => None,
        }
    }

    /// Marks all levels of a queue as forwarded: from now on a bridge sends the offsets of their messages to
    /// another broker.
    #[cold]
    pub fn note_forwarded(&mut self, queue: QueueId) {
        let mut at = Some(self.highest_level(queue));
        while let Some(level) = at {
            self.slab[level.index()].is_forwarded = true;
            at = self.below(level);
        }
    }

    /// Returns the sum of `of` over all levels of a queue, which is given by itself or by one of its levels.
    #[inline]
    pub fn sum_over_levels(&self, queue: QueueId, of: impl Fn(&Queue) -> u64) -> u64 {
        let record = &self.slab[queue.index()];
        if record.rank == Rank::Plain {
            return of(record);
        }
        self.levels(self.queue_of_level(queue)).map(|level| of(&self.slab[level.index()])).sum()
    }

    /// Returns the number of ready messages on all levels of a queue.
    #[inline]
    pub fn ready_in(&self, queue: QueueId) -> u32 {
        self.sum_over_levels(queue, |record| record.backlog.ready().into()) as u32
    }

    /// Returns the number of ready messages of a queue that precede a new message of this level: those of
    /// this level and of higher ones.
    pub(crate) fn ready_before(&self, level: QueueId) -> u32 {
        let mut before = 0;
        for higher in self.levels(self.queue_of_level(level)) {
            before += self.slab[higher.index()].backlog.ready();
            if higher == level {
                break;
            }
        }
        before
    }

    /// Charges the work for the levels that were iterated over since the last call.
    #[inline]
    pub fn charge_walked_levels(&self, work: &mut Work) {
        work.charge((self.levels_walked.take() / LEVELS_PER_UNIT) as usize);
    }

    /// Returns the highest level of a queue that has a message; the queue itself if none has.
    #[inline]
    pub fn first_level(&self, queue: QueueId) -> QueueId {
        if self.slab[queue.index()].rank == Rank::Plain {
            return queue;
        }
        let mut levels = self.levels(queue);
        levels.find(|level| self.slab[level.index()].backlog.ready() > 0).unwrap_or(queue)
    }

    /// Returns whether this level is the highest one of its queue that has a message.
    pub fn is_first_level(&self, level: QueueId) -> bool {
        self.slab[level.index()].rank == Rank::Plain || self.first_level(self.queue_of_level(level)) == level
    }

    pub(crate) fn priority_of(&self, level: QueueId) -> u8 {
        match self.slab[level.index()].rank {
            Rank::Level { priority, .. } => priority,
            Rank::Plain | Rank::Lowest { .. } => 0,
        }
    }

    /// Returns the number of delayed messages in a hidden queue.
    pub fn delayed_in(&self, queue: QueueId) -> u64 {
        self.sum_over_levels(queue, |record| {
            u64::from(record.backlog.ready()) + u64::from(record.unsettled.count)
        })
    }

    // ---- creating and deleting levels

    /// Returns the level of a queue for this priority, and creates it if needed.
    ///
    /// # Errors
    /// There is no capacity for another level. The error value is the next lower level that exists.
    pub(crate) fn level_at(
        &mut self,
        quota: &mut Quota,
        queue: QueueId,
        priority: u8,
        declarer: Option<Declarer>,
    ) -> Result<QueueId, QueueId> {
        let (mut above, mut at) = (None, queue);
        for level in self.levels(queue) {
            at = level;
            if self.priority_of(level) <= priority {
                break;
            }
            above = Some(level);
        }
        if self.priority_of(at) == priority {
            return Ok(at);
        }
        match self.add_level(quota, queue, priority, at, declarer) {
            Ok(level) => {
                self.link_level(queue, above, level);
                Ok(level)
            }
            Err(_) => Err(at),
        }
    }

    fn add_level(
        &mut self,
        quota: &mut Quota,
        queue: QueueId,
        priority: u8,
        below: QueueId,
        declarer: Option<Declarer>,
    ) -> Result<QueueId, Fault> {
        let queue_record = &self.slab[queue.index()];
        let vhost = queue_record.vhost;
        let mut record = Queue::new(vhost, "", &[], queue_record.settings.of_level());
        record.declared.durable = queue_record.declared.durable;
        record.times.ttl_since_ms = queue_record.times.ttl_since_ms;
        if let Rank::Lowest { priorities_from: from @ 1.., .. } = queue_record.rank {
            record.durable_index = DurableIndex::as_incarnation(from + u64::from(priority) - 1);
        }
        record.rank = Rank::Level { queue, priority, below };
        if let Some(exchange) = queue_record.delayed_exchange() {
            record.kind = QueueKind::Delayed { exchange };
        }
        record.is_forwarded = queue_record.is_forwarded;
        quota.declare(
            Declared::Queue,
            0,
            declarer,
            FreeCapacity { queues: self.slab.free_count_of_begun(), exchanges: 0, bindings: 0 },
        )?;
        record.declared.declarer = declarer;
        record.serial = self.next_serial();
        let has_dead_letters = record.dead_letters_logged();
        let index = self.slab.insert_checked(record);
        self.cover_table();
        self.dead_lettering += u32::from(has_dead_letters);
        Ok(QueueId::from_index(index))
    }

    fn link_level(&mut self, queue: QueueId, above: Option<QueueId>, level: QueueId) {
        match &mut self.slab[above.unwrap_or(queue).index()].rank {
            Rank::Lowest { highest, .. } => *highest = Some(level),
            Rank::Level { below, .. } => *below = level,
            Rank::Plain => panic!("only a queue with priorities has levels"),
        }
    }

    /// Removes a level from the chain of its queue, before the level's record is freed. Returns the queue,
    /// whose own record may be unreferenced now; `None` if this is no level.
    #[cold]
    pub(crate) fn unlink_level(&mut self, level: QueueId) -> Option<QueueId> {
        let Rank::Level { queue, below, .. } = self.slab[level.index()].rank else { return None };
        let above = self.levels(queue).find(|above| self.below(*above) == Some(level));
        match &mut self.slab[above.unwrap_or(queue).index()].rank {
            Rank::Lowest { highest, .. } => *highest = Some(below).filter(|below| *below != queue),
            Rank::Level { below: next, .. } => *next = below,
            Rank::Plain => panic!("only a queue with priorities has levels"),
        }
        Some(queue)
    }

    /// Marks the levels of a queue, but not the queue itself, as deleted. Returns these levels, whose
    /// messages the caller must delete.
    #[cold]
    pub fn retire_levels(&mut self, pending_writes: &mut PendingWrites, queue: QueueId) -> Vec<QueueId> {
        let (mut level, mut retired) = (self.highest_level(queue), Vec::new());
        while level != queue {
            let record = &mut self.slab[level.index()];
            record.state = QueueState::Deleting;
            self.dead_lettering -= u32::from(record.dead_letters_logged());
            if record.durable_index.is_logged() {
                pending_writes.append_queue_deleted(record.durable_index.incarnation());
            }
            retired.push(level);
            level = self.below(level).unwrap_or(queue);
        }
        retired
    }

    /// Returns whether a queue or level is cleared, and no delivery, job or level refers to it.
    #[inline]
    pub fn is_done(&self, queue: QueueId) -> bool {
        // The record may have been freed already: callers also check queues that they do not refer to any
        // more.
        self.slab.get(queue.index()).is_some_and(|record| {
            record.state == QueueState::Cleared
                && record.unsettled.count == 0
                && record.blocking_jobs == 0
                && !record.has_levels()
        })
    }

    /// Frees the record of a cleared queue or level, if no delivery, job or level refers to it.
    ///
    /// Returns the record if it was freed, and for a level its queue, whose record may be unreferenced now
    /// too.
    pub fn take_if_done(&mut self, queue: QueueId) -> Option<(Queue, Option<QueueId>)> {
        if !self.is_done(queue) {
            return None;
        }
        let queue_of_level = self.unlink_level(queue);
        Some((self.slab.remove(queue.index()), queue_of_level))
    }
}

/// Octets of a hidden queue in a stored route.
const HIDDEN_LEN: usize = 1 + 4 + 8;

impl Records {
    /// Stores the target queues of a transaction's message until the commit, as the body of a message that
    /// the caller owns.
    ///
    /// ```text
    /// | length, 1 octet, not 0 | name |   a queue that has a name
    /// | 0 | place, 4 | serial, 8 |        the hidden queue of a delayed exchange
    /// ```
    ///
    /// # Errors
    /// There is no capacity for the route.
    pub fn write_route(&mut self, messages: &mut Messages, targets: &[QueueId]) -> Result<MessageId, Fault> {
        let len_of = |queue: &QueueId| match self.slab[queue.index()].name.len() {
            0 => HIDDEN_LEN,
            len => 1 + len,
        };
        let body_len = targets.iter().map(len_of).sum::<usize>() as u32;
        let route = messages.begin("", &[], Share::Reserve).map_err(|full| no_memory_for(full.what()))?;
        let reserved = messages.reserve_whole(route, &[], MessageFlags::ROUTE, body_len, Share::Reserve);
        if let Err(full) = reserved {
            messages.discard(route);
            return Err(no_memory_for(full.what()));
        }
        for &queue in targets {
            let record = &self.slab[queue.index()];
            messages.append_body(route, &[record.name.len() as u8]);
            if record.name.is_empty() {
                messages.append_body(route, &(queue.index() as u32).to_be_bytes());
                messages.append_body(route, &record.serial.to_be_bytes());
            } else {
                messages.append_body(route, record.name.as_bytes());
            }
        }
        assert!(messages.body_missing(route) == 0, "the route has the length that was reserved for it");
        Ok(route)
    }

    /// Returns the queues of a stored route that still exist.
    pub fn read_route(
        &self,
        messages: &Messages,
        work: &mut Work,
        vhost: VhostId,
        route: MessageId,
        targets: &mut Vec<QueueId>,
    ) {
        let (mut cursor, mut left) = (messages.body_cursor(route, 0), messages.body_len(route) as usize);
        let mut octets = [0; 255];
        while left > 0 {
            work.charge(1);
            messages.read(route, &mut cursor, &mut octets[..1]);
            let len = usize::from(octets[0]);
            let rest = if len == 0 { HIDDEN_LEN - 1 } else { len };
            messages.read(route, &mut cursor, &mut octets[..rest]);
            left -= 1 + rest;
            let queue = match len {
                0 => self.hidden_queue(&octets),
                len => {
                    core::str::from_utf8(&octets[..len]).ok().and_then(|name| self.find_queue(vhost, name))
                }
            };
            targets.extend(queue.filter(|queue| !self.slab[queue.index()].is_deleted()));
        }
    }

    /// Returns the hidden queue with the index and serial number in these octets, if it still exists.
    fn hidden_queue(&self, octets: &[u8; 255]) -> Option<QueueId> {
        let (place, rest) = octets.split_first_chunk()?;
        let serial = u64::from_be_bytes(*rest.first_chunk()?);
        let place = u32::from_be_bytes(*place) as usize;
        let is_it = self.slab.get(place).is_some_and(|record| record.serial == serial);
        is_it.then(|| QueueId::from_index(place))
    }
}
