//! Deliveries, from the moment a message leaves its queue until it is settled or back in its queue.
//!
//! One record serves a message all that time: on its way to a socket, waiting for an acknowledgement, or
//! requeued. Only the list that the record is on changes, so this path needs no memory that might be missing.
//! Exception: when half of all records serve requeued messages, a message is requeued as a queue entry, if
//! there is capacity for that.
//!
//! ```text
//! queue ──deliver──> outbox of the connection ──written──> unacknowledged list of the channel ──ack──> free
//!   ^                                                              │
//!   └──────── requeued heap of the queue, by offset <──requeue─────┘
//! ```
//!
//! Acknowledgements find their record by channel and delivery tag. Nearly always it is the head of the
//! channel's list. Otherwise it is found through one table of buckets shared by all channels. Consecutive
//! tags are in consecutive buckets, so the table behaves like one ring, however sparse a channel's tags
//! become.

use core::ops::{Index, IndexMut};

use leveret_core::command::{ChannelId, ConsumerId, QueueId, Settlement};
use leveret_core::mem::{Links, List, MessageId, Slab, sort_by_key};

use crate::republish::Reason;

/// The requeued messages of one queue, lowest offset first: a leftist heap through the records. Requeueing
/// and taking the first are both logarithmic, whatever the order.
///
/// # Invariants
/// - A record is in at most one heap, and on no list that needs it elsewhere.
/// - The first record is the one with the lowest offset.
#[derive(Debug, Default)]
pub(crate) struct RequeuedHeap {
    root: u32,
    len: u32,
}

impl RequeuedHeap {
    pub(crate) const fn len(&self) -> u32 {
        self.len
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the requeued delivery with the lowest offset.
    pub(crate) fn first(&self) -> Option<usize> {
        (self.root != 0).then(|| self.root as usize - 1)
    }

    pub(crate) fn insert(&mut self, pool: &mut Deliveries, index: usize) {
        pool.slab[index].returned = true;
        pool.slab[index].heap = HeapLinks { left: 0, right: 0, rank: 1 };
        self.root = merge(&mut pool.slab, self.root, index as u32 + 1);
        self.len += 1;
        pool.returned += 1;
    }

    /// Returns all requeued deliveries of the heap, lowest offset first.
    pub(crate) fn in_order(&self, pool: &Deliveries) -> Vec<usize> {
        let (mut found, mut open) = (Vec::with_capacity(self.len as usize), vec![self.root]);
        while let Some(place) = open.pop() {
            if place > 0 {
                let index = place as usize - 1;
                let HeapLinks { left, right, .. } = pool.slab[index].heap;
                found.push(index);
                open.extend([left, right]);
            }
        }
        sort_by_key(&mut found, |index| pool.slab[*index].offset);
        found
    }

    /// Takes the delivery with the lowest offset.
    pub(crate) fn pop(&mut self, pool: &mut Deliveries) -> Option<usize> {
        let first = self.first()?;
        let HeapLinks { left, right, .. } = core::mem::take(&mut pool.slab[first].heap);
        self.root = merge(&mut pool.slab, left, right);
        self.len -= 1;
        pool.returned -= 1;
        Some(first)
    }
}

/// Merges two heaps along their right spines. Each spine has at most log2(n) + 1 records, so the recursion is
/// shallow.
fn merge(slab: &mut Slab<Delivered>, one: u32, two: u32) -> u32 {
    if one == 0 || two == 0 {
        return one.max(two);
    }
    let in_order = slab[one as usize - 1].offset <= slab[two as usize - 1].offset;
    let (upper, lower) = if in_order { (one, two) } else { (two, one) };
    let right = merge(slab, slab[upper as usize - 1].heap.right, lower);
    let left = slab[upper as usize - 1].heap.left;
    let (left_rank, right_rank) = (rank(slab, left), rank(slab, right));
    let links = &mut slab[upper as usize - 1].heap;
    (links.left, links.right) = if left_rank >= right_rank { (left, right) } else { (right, left) };
    links.rank = left_rank.min(right_rank) + 1;
    upper
}

fn rank(slab: &Slab<Delivered>, heap: u32) -> u16 {
    match heap {
        0 => 0,
        above => slab[above as usize - 1].heap.rank,
    }
}

/// The method that carries the message to the client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Carrier {
    /// `basic.deliver`.
    Deliver,
    /// `basic.get-ok` with the number of messages left.
    Get(u32),
    /// `basic.return`: without a queue, and never acknowledged.
    Return,
}

/// One unsettled delivery.
#[derive(Debug)]
pub(crate) struct Delivered {
    pub(crate) tag: u64,
    /// Position of the message in the order in which messages left the queue.
    pub(crate) offset: u64,
    /// Log offset of the message, if the log has it.
    pub(crate) logged: Option<u64>,
    /// Sequence number of the delivery in the outbox of its connection.
    pub(crate) sequence: u64,
    /// The message; `None` after it was evicted, which happens only after it was written to the socket.
    pub(crate) message: Option<MessageId>,
    /// Bytes of the message body.
    pub(crate) body_len: u32,
    pub(crate) channel: ChannelId,
    /// The consumer, or the record for `basic.get`; `None` for returns.
    pub(crate) consumer: Option<ConsumerId>,
    pub(crate) queue: Option<QueueId>,
    /// Bytes that the delivery counts for in the outbox.
    pub(crate) wire_bytes: u32,
    /// When it was delivered, in seconds since the start of the process.
    pub(crate) delivered_s: u32,
    pub(crate) carrier: Carrier,
    pub(crate) redelivered: bool,
    /// How often the message was requeued, up to the largest number.
    pub(crate) requeues: u16,
    /// Why the queue removes the message, if it does.
    pub(crate) death: Option<Reason>,
    /// Automatic acknowledgement: the delivery is settled when it is written.
    pub(crate) no_ack: bool,
    /// The delivery was written: the client has it, or it is on its way there.
    pub(crate) is_sent: bool,
    /// The message is back in its queue.
    returned: bool,
    /// The delivery is on the list of those whose messages may be evicted.
    is_pageable: bool,
    /// The channel closed while the delivery was in the outbox: when it has been written, the message is
    /// requeued.
    pub(crate) is_detached: bool,
    /// The channel closed, and the delivery is dropped unless a part of it was written.
    pub(crate) is_withdrawn: bool,
    /// What `tx.commit` will do with the delivery, in an open transaction.
    decided: Option<Settlement>,
    links: Links,
    /// Links in the outbox, and afterwards in the list of deliveries whose messages may be evicted.
    outbox_links: Links,
    bucket_next: u32,
    heap: HeapLinks,
}

/// The links of a record in the heap of its queue.
#[derive(Clone, Copy, Debug, Default)]
struct HeapLinks {
    left: u32,
    right: u32,
    rank: u16,
}

/// The properties of a new delivery.
pub(crate) struct NewDelivery {
    pub(crate) tag: u64,
    pub(crate) offset: u64,
    pub(crate) logged: Option<u64>,
    pub(crate) message: MessageId,
    pub(crate) channel: ChannelId,
    pub(crate) consumer: Option<ConsumerId>,
    pub(crate) queue: Option<QueueId>,
    pub(crate) carrier: Carrier,
    pub(crate) redelivered: bool,
    pub(crate) requeues: u16,
    pub(crate) no_ack: bool,
}

/// The pool of deliveries.
#[derive(Debug)]
pub(crate) struct Deliveries {
    slab: Slab<Delivered>,
    buckets: Box<[u32]>,
    /// Number of delivery records in the requeued heaps of all queues.
    returned: usize,
    /// Deliveries, written or requeued, whose messages the log has too and that may be evicted; the oldest
    /// first.
    pageable: List,
}

impl Deliveries {
    /// Bytes per delivery record, including its buckets (up to two for each record).
    pub(crate) const RECORD_BYTES: usize = Slab::<Delivered>::record_bytes() + 2 * size_of::<u32>();

    pub(crate) fn with_capacity(capacity: usize) -> Self {
        let buckets = capacity.next_power_of_two();
        Self {
            slab: Slab::with_capacity(capacity),
            buckets: vec![0; buckets].into_boxed_slice(),
            returned: 0,
            pageable: List::default(),
        }
    }

    /// Creates a delivery record, with its position in the outbox and its bytes there; `None` when the pool
    /// is full.
    pub(crate) fn insert(
        &mut self,
        new: NewDelivery,
        sequence: u64,
        (wire_bytes, body_len): (u32, u32),
    ) -> Option<usize> {
        let findable = !new.no_ack && new.carrier != Carrier::Return;
        let record = Delivered {
            tag: new.tag,
            offset: new.offset,
            logged: new.logged,
            sequence,
            message: Some(new.message),
            body_len,
            channel: new.channel,
            consumer: new.consumer,
            queue: new.queue,
            wire_bytes,
            delivered_s: 0,
            carrier: new.carrier,
            redelivered: new.redelivered,
            requeues: new.requeues,
            death: None,
            no_ack: new.no_ack,
            is_sent: false,
            returned: false,
            is_pageable: false,
            is_detached: false,
            is_withdrawn: false,
            decided: None,
            links: Links::default(),
            outbox_links: Links::default(),
            bucket_next: 0,
            heap: HeapLinks::default(),
        };
        let index = self.slab.insert(record).ok()?;
        if findable {
            self.remember_tag(index);
        }
        Some(index)
    }

    /// Returns the unsettled delivery with this tag.
    pub(crate) fn find(&self, channel: ChannelId, tag: u64) -> Option<usize> {
        let mut at = self.buckets[self.bucket(channel, tag)];
        while at != 0 {
            let record = &self.slab[at as usize - 1];
            if record.tag == tag && record.channel == channel {
                return Some(at as usize - 1);
            }
            at = record.bucket_next;
        }
        None
    }

    /// Removes the tag of a delivery, which the client no longer knows; the record itself stays.
    fn forget_tag(&mut self, index: usize) {
        let (channel, tag) = (self.slab[index].channel, self.slab[index].tag);
        let bucket = self.bucket(channel, tag);
        let this = index as u32 + 1;
        let next = core::mem::take(&mut self.slab[index].bucket_next);
        let mut at = self.buckets[bucket];
        if at == this {
            self.buckets[bucket] = next;
            return;
        }
        while at != 0 {
            let record = &mut self.slab[at as usize - 1];
            if record.bucket_next == this {
                record.bucket_next = next;
                return;
            }
            at = record.bucket_next;
        }
    }

    /// Adds the tag of a delivery that the client knows, for the first time or again (a transaction was
    /// rolled back).
    #[inline]
    fn remember_tag(&mut self, index: usize) {
        let bucket = self.bucket(self.slab[index].channel, self.slab[index].tag);
        self.slab[index].bucket_next = self.buckets[bucket];
        self.buckets[bucket] = index as u32 + 1;
    }

    /// Frees a delivery record. If a client had its tag, the tag must have been forgotten.
    #[inline]
    pub(crate) fn remove(&mut self, index: usize) -> Delivered {
        self.keep(index);
        self.slab.remove(index)
    }

    // ---- the outbox of a connection

    /// Appends a delivery to an outbox.
    #[inline]
    pub(crate) fn enter_outbox(&mut self, outbox: &mut List, index: usize) {
        outbox.push_back(&mut self.slab, index, |delivery| &mut delivery.outbox_links);
    }

    /// Removes a delivery from an outbox, whatever its position there.
    #[inline]
    pub(crate) fn leave_outbox(&mut self, outbox: &mut List, index: usize) {
        outbox.remove(&mut self.slab, index, |delivery| &mut delivery.outbox_links);
    }

    /// Returns the delivery behind this one in the outbox.
    #[inline]
    pub(crate) fn next_in_outbox(&self, index: usize) -> Option<usize> {
        List::after(&self.slab, index, |delivery| &delivery.outbox_links)
    }

    // ---- unacknowledged deliveries of a channel

    /// Appends a delivery to a channel's unacknowledged list.
    #[inline]
    pub(crate) fn enter_unacknowledged(&mut self, list: &mut List, index: usize) {
        list.push_back(&mut self.slab, index, |delivery| &mut delivery.links);
    }

    /// Removes an acknowledged or otherwise decided delivery from the unacknowledged list, and forgets its
    /// tag.
    #[inline]
    pub(crate) fn leave_unacknowledged(&mut self, list: &mut List, index: usize) {
        list.remove(&mut self.slab, index, |delivery| &mut delivery.links);
        self.forget_tag(index);
    }

    /// Notes how a transaction is to settle a delivery, which must have left the unacknowledged list.
    pub(crate) fn decide(&mut self, decided: &mut List, index: usize, settlement: Settlement) {
        self.slab[index].decided = Some(settlement);
        decided.push_back(&mut self.slab, index, |delivery| &mut delivery.links);
    }

    /// Takes the next delivery for which a transaction has a settlement.
    pub(crate) fn next_decided(&mut self, decided: &mut List) -> Option<(usize, Settlement)> {
        let index = decided.pop_front(&mut self.slab, |delivery| &mut delivery.links)?;
        let settlement = self.slab[index].decided.take();
        Some((index, settlement.expect("what is on this list is decided")))
    }

    /// Rolls a transaction back: its deliveries are unacknowledged again, at their old positions.
    ///
    /// It takes one pass over the list from its end. A client settles in any order, and searching each
    /// position separately would take unbounded time.
    pub(crate) fn undecide(&mut self, list: &mut List, mut decided: List) {
        decided.sort_by_key(&mut self.slab, |delivery| delivery.tag, |delivery| &mut delivery.links);
        let mut after = list.back();
        while let Some(index) = decided.back() {
            decided.remove(&mut self.slab, index, |delivery| &mut delivery.links);
            self.slab[index].decided = None;
            self.remember_tag(index);
            let tag = self.slab[index].tag;
            while let Some(other) = after.filter(|&other| self.slab[other].tag > tag) {
                after = List::before(&self.slab, other, |delivery| &delivery.links);
            }
            list.insert_after(&mut self.slab, after, index, |delivery| &mut delivery.links);
        }
    }

    // ---- eviction

    /// Allows the message of a delivery to be evicted from now on, if the log has it. The record must be in
    /// no outbox.
    pub(crate) fn allow_eviction(&mut self, index: usize) {
        let record = &mut self.slab[index];
        if record.logged.is_some() && record.message.is_some() && !record.is_pageable {
            record.is_pageable = true;
            self.pageable.push_back(&mut self.slab, index, |delivery| &mut delivery.outbox_links);
        }
    }

    /// Removes a delivery from the list of those whose messages may be evicted.
    pub(crate) fn keep(&mut self, index: usize) {
        if core::mem::take(&mut self.slab[index].is_pageable) {
            self.pageable.remove(&mut self.slab, index, |delivery| &mut delivery.outbox_links);
        }
    }

    /// Returns the first delivery whose message may be evicted.
    pub(crate) const fn first_evictable(&self) -> Option<usize> {
        self.pageable.front()
    }

    // ---- counts

    /// Returns the number of deliveries that are not settled, and returns that are not written.
    pub(crate) const fn len(&self) -> usize {
        self.slab.len()
    }

    /// Returns whether there are no deliveries.
    pub(crate) const fn is_empty(&self) -> bool {
        self.slab.is_empty()
    }

    /// Returns the number of free delivery records.
    #[inline]
    pub(crate) const fn free_count(&self) -> usize {
        self.slab.free_count()
    }

    /// Returns a counter that rises with every delivery record that becomes free.
    pub(crate) const fn given(&self) -> u64 {
        self.slab.given()
    }

    /// Returns roughly the unused bytes of the pool for which the system holds memory.
    pub(crate) const fn idle_bytes(&self) -> usize {
        self.slab.idle_bytes()
    }

    /// Returns unused memory to the system.
    pub(crate) fn trim(&mut self) {
        self.slab.trim();
    }

    /// Returns whether half of all records serve requeued messages. These may never be consumed again, and
    /// with more of them no record would be left for new deliveries.
    pub(crate) const fn are_half_requeued(&self) -> bool {
        2 * self.returned >= self.slab.len() + self.slab.free_count()
    }

    fn bucket(&self, channel: ChannelId, tag: u64) -> usize {
        // The odd factor spreads channels over the ring; tags of one channel remain neighbours.
        let start = channel.index().wrapping_mul(0x9E37_79B1);
        start.wrapping_add(tag as usize) & (self.buckets.len() - 1)
    }

    /// Returns whether any rejected delivery has this reason.
    pub(crate) fn has_death(&self, reason: Reason) -> bool {
        self.slab.iter().any(|(_, delivery)| delivery.death == Some(reason))
    }
}

impl Index<usize> for Deliveries {
    type Output = Delivered;

    #[inline]
    fn index(&self, index: usize) -> &Delivered {
        &self.slab[index]
    }
}

impl IndexMut<usize> for Deliveries {
    #[inline]
    fn index_mut(&mut self, index: usize) -> &mut Delivered {
        &mut self.slab[index]
    }
}

impl Delivered {
    /// Returns whether the message is back in its queue.
    pub(crate) const fn is_requeued(&self) -> bool {
        self.returned
    }
}

/// Minimum time between two checks, in seconds.
const CHECK_INTERVAL_MIN_S: u32 = 60;

/// When to check for overdue deliveries, and the progress of the current check.
///
/// `Broker::next_overdue` does the check.
///
/// Most queues use the configured consumer timeout. If a queue has a shorter one, the checks are as frequent
/// as the shortest timeout requires, so that a delivery need not know when it will be overdue.
///
/// # Invariants
/// - There is no check before a delivery may be overdue, whether the last check saw it or it was made
///   afterwards.
#[derive(Debug)]
pub(crate) struct AcknowledgementTimeout {
    /// How long a delivery may be unsettled, in milliseconds, unless its queue has a timeout; 0 is unlimited.
    pub(crate) timeout_ms: u32,
    /// The shortest of all timeouts so far, in milliseconds; 0 when all are unlimited.
    shortest_ms: u32,
    /// Second of this turn since the start of the process.
    pub(crate) now_s: u32,
    /// When to check for overdue deliveries next, in seconds of broker time.
    pub(crate) next_check_s: Option<u32>,
    /// Place of the channel where the current check continues.
    pub(crate) next_place: usize,
    /// When the first delivery that the current check has seen will be overdue, in seconds.
    first_s: Option<u32>,
    /// Number of channels that may still be checked in this turn.
    pub(crate) left: u32,
}

impl AcknowledgementTimeout {
    pub(crate) const fn new(timeout_ms: u32) -> Self {
        let shortest_ms = timeout_ms;
        Self { timeout_ms, shortest_ms, now_s: 0, next_check_s: None, next_place: 0, first_s: None, left: 0 }
    }

    /// Notes the consumer timeout of a queue; `u32::MAX` is none.
    pub(crate) fn note_timeout(&mut self, timeout_ms: u32) {
        if timeout_ms == 0 || timeout_ms == u32::MAX || self.shortest_ms > 0 && timeout_ms >= self.shortest_ms
        {
            return;
        }
        self.shortest_ms = timeout_ms;
        let next_s = overdue_s(self.now_s, timeout_ms);
        self.next_check_s = Some(self.next_check_s.map_or(next_s, |next_check_s| next_check_s.min(next_s)));
    }

    /// Notes that a delivery, or a message of a transaction, is held from now on. Returns the time in
    /// seconds.
    pub(crate) const fn begin(&mut self) -> u32 {
        if self.next_check_s.is_none() && self.shortest_ms > 0 {
            self.next_check_s = Some(overdue_s(self.now_s, self.shortest_ms));
        }
        self.now_s
    }

    /// Notes a delivery or transaction seen by the check, held since `since_s` for at most `timeout_ms`.
    /// Returns whether it is overdue.
    pub(crate) fn is_overdue(&mut self, since_s: u32, timeout_ms: u32) -> bool {
        let at_s = overdue_s(since_s, timeout_ms);
        let is_for_ever = timeout_ms == 0;
        if !is_for_ever {
            self.first_s = Some(self.first_s.map_or(at_s, |first_s| first_s.min(at_s)));
        }
        !is_for_ever && at_s <= self.now_s
    }

    /// Ends a check, and sets the time of the next.
    pub(crate) fn end(&mut self) {
        let pause_s = CHECK_INTERVAL_MIN_S.min(self.shortest_ms.div_ceil(1000));
        // This check has not seen deliveries from now on.
        let next_s = |first_s: u32| first_s.min(overdue_s(self.now_s, self.shortest_ms));
        self.next_check_s =
            self.first_s.map(|first_s| next_s(first_s).max(self.now_s.saturating_add(pause_s)));
        self.first_s = None;
        self.next_place = 0;
    }
}

/// Returns the first second in which a delivery held since `since_s` is overdue. Both times are truncated, so
/// it is one second later.
const fn overdue_s(since_s: u32, timeout_ms: u32) -> u32 {
    since_s.saturating_add(timeout_ms.div_ceil(1000)).saturating_add(1)
}

#[cfg(test)]
mod records_tests {
    use super::*;

    fn new(channel: usize, tag: u64, offset: u64) -> NewDelivery {
        NewDelivery {
            tag,
            offset,
            logged: None,
            message: MessageId::from_index(0),
            channel: ChannelId::from_index(channel),
            consumer: None,
            queue: None,
            carrier: Carrier::Deliver,
            redelivered: false,
            requeues: 0,
            no_ack: false,
        }
    }

    #[test]
    fn tags_are_found_in_any_order_while_one_stays_unacknowledged() {
        let mut pool = Deliveries::with_capacity(64);
        let sleepy = pool.insert(new(3, 1, 0), 0, (0, 0)).unwrap();
        for tag in 2..100_000_u64 {
            let index = pool.insert(new(3, tag, tag), 0, (0, 0)).unwrap();
            let other = pool.insert(new(4, tag, tag), 0, (0, 0)).unwrap();
            assert_eq!(pool.find(ChannelId::from_index(3), tag), Some(index));
            for gone in [other, index] {
                pool.forget_tag(gone);
                pool.remove(gone);
            }
            assert_eq!(pool.find(ChannelId::from_index(4), tag), None);
        }
        assert_eq!(pool.find(ChannelId::from_index(3), 1), Some(sleepy));
        assert_eq!(pool.slab.len(), 1);
    }

    #[test]
    fn requeued_messages_are_taken_by_offset_in_any_order_of_requeueing() {
        let mut pool = Deliveries::with_capacity(5000);
        let mut heap = RequeuedHeap::default();
        let mut state = 7_u64;
        for tag in 0..5000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let index = pool.insert(new(0, tag, state >> 40), 0, (0, 0)).unwrap();
            heap.insert(&mut pool, index);
        }
        let mut last = 0;
        while let Some(index) = heap.pop(&mut pool) {
            let offset = pool.slab[index].offset;
            assert!(offset >= last);
            last = offset;
            pool.forget_tag(index);
            pool.remove(index);
        }
        assert!(heap.is_empty() && pool.slab.is_empty());
    }
}
