//! Deliveries: messages that have left their queue and are not settled, and messages that were requeued.
//!
//! A delivery has the same record in the outbox of the connection, while it is unacknowledged, and after it
//! was requeued. Only the list that contains the record changes. So requeueing never fails for lack of
//! memory. Exception: when half of all records are those of requeued messages, a message is requeued as a
//! queue entry, if there is capacity for an entry.
//!
//! ```text
//! queue ──deliver──> outbox of the connection ──written──> unacknowledged list of the channel ──ack──> free
//!   ^                                                              │
//!   └──────── requeued heap of the queue, in order <──requeue─────┘
//! ```
//!
//! An acknowledgement has the channel and the delivery tag. Its record is usually the first of the channel's
//! unacknowledged list. If not, it is found in a hash table that all channels share. Consecutive tags of a
//! channel are in consecutive buckets, so they do not collide.

use core::ops::{Index, IndexMut};

use leveret_core::command::{ChannelId, ConsumerId, QueueId, Settlement, SubscriptionDelivery};
use leveret_core::mem::{Class, Links, List, Memory, MessageId, Slab, sort_by_key};

/// The requeued messages of one queue, ordered by [`Delivered::order`]: a leftist heap whose nodes are the delivery
/// records. Adding a message, and removing the one with the lowest order, takes logarithmic time in any
/// order.
///
/// # Invariants
/// - A record in a heap is in no other heap, in no outbox, and on no unacknowledged list.
/// - The first record has the lowest order.
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

    /// Returns the requeued delivery with the lowest order.
    pub(crate) fn first(&self) -> Option<usize> {
        (self.root != 0).then(|| self.root as usize - 1)
    }

    pub(crate) fn insert(&mut self, pool: &mut Deliveries, index: usize) {
        pool.slab[index].is_requeued = true;
        pool.slab[index].heap = HeapLinks { left: 0, right: 0, rank: 1 };
        self.root = merge(&mut pool.slab, self.root, index as u32 + 1);
        self.len += 1;
        pool.requeued_count += 1;
    }

    /// Returns all requeued deliveries of the heap, lowest order first.
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
        sort_by_key(&mut found, |index| pool.slab[*index].order);
        found
    }

    /// Removes these deliveries of the heap, wherever they are. The records are not freed.
    #[cold]
    pub(crate) fn remove_all(&mut self, pool: &mut Deliveries, removed: &[usize]) {
        let all = self.in_order(pool);
        pool.requeued_count -= self.len as usize;
        (self.root, self.len) = (0, 0);
        for index in all {
            pool.slab[index].heap = HeapLinks::default();
            if !removed.contains(&index) {
                self.insert(pool, index);
            }
        }
    }

    /// Removes and returns the delivery with the lowest order.
    pub(crate) fn pop(&mut self, pool: &mut Deliveries) -> Option<usize> {
        let first = self.first()?;
        let HeapLinks { left, right, .. } = core::mem::take(&mut pool.slab[first].heap);
        self.root = merge(&mut pool.slab, left, right);
        self.len -= 1;
        pool.requeued_count -= 1;
        Some(first)
    }
}

/// Merges two heaps along their right spines. Each spine has at most log2(n) + 1 records, so the recursion is
/// shallow.
fn merge(slab: &mut Slab<Delivered>, one: u32, two: u32) -> u32 {
    if one == 0 || two == 0 {
        return one.max(two);
    }
    let in_order = slab[one as usize - 1].order <= slab[two as usize - 1].order;
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

/// The method of AMQP, or the packet of MQTT, that transports a message to the client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeliveryMethod {
    /// `basic.deliver`.
    Deliver,
    /// `basic.get-ok`, with the number of messages that are still in the queue.
    Get(u32),
    /// `basic.return`. Such a message is in no queue and is never acknowledged.
    Return,
    /// PUBLISH of MQTT.
    Publish(SubscriptionDelivery),
}

/// One unsettled delivery.
#[derive(Debug)]
pub struct Delivered {
    /// The delivery tag.
    pub tag: u64,
    /// Position of the message in the order in which messages left the queue.
    pub order: u64,
    /// Offset of the message in the log; `None` if it is not in the log.
    pub log_offset: Option<u64>,
    /// Sequence number of the delivery in the outbox of its connection.
    pub sequence: u64,
    /// The message; `None` if it was evicted, so that it is only in the log. A message is not evicted before
    /// it was written to the socket.
    pub message: Option<MessageId>,
    /// Bytes of the message body.
    pub body_len: u32,
    /// The channel to which the message is delivered.
    pub channel: ChannelId,
    /// The consumer, or the record for `basic.get`; `None` for returns.
    pub consumer: Option<ConsumerId>,
    /// The queue that the message came from; `None` for returns.
    pub queue: Option<QueueId>,
    /// Bytes for which the delivery is counted in the outbox.
    pub wire_bytes: u32,
    /// Time of the delivery, in seconds since the start of the process.
    pub delivered_s: u32,
    /// How the message is sent.
    pub method: DeliveryMethod,
    /// The message may have been delivered before.
    pub redelivered: bool,
    /// How often the message was requeued; at most `u16::MAX`.
    pub requeues: u16,
    /// The reason for which the message will be dead-lettered; `None` if it will not.
    pub dead_letter_reason: Option<Reason>,
    /// Automatic acknowledgement: the delivery is settled when it is written to the socket.
    pub no_ack: bool,
    /// The delivery has left the outbox. Nearly always this is because it was written to the socket.
    pub is_sent: bool,
    /// The message was requeued: the record is in the heap of its queue.
    is_requeued: bool,
    /// The delivery is on the list of deliveries whose messages may be evicted.
    is_evictable: bool,
    /// The channel was closed while the delivery was in the outbox. When it leaves the outbox, the message is
    /// requeued.
    pub is_detached: bool,
    /// The channel was closed. The delivery is not written any more, unless a part of it was written already.
    pub is_withdrawn: bool,
    /// How `tx.commit` will settle the delivery; `None` outside of an open transaction.
    tx_settlement: Option<Settlement>,
    links: Links,
    /// Links in the outbox, and later in the list of deliveries whose messages may be evicted.
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
pub struct NewDelivery {
    /// The delivery tag.
    pub tag: u64,
    /// Position of the message in the order in which messages left the queue.
    pub order: u64,
    /// Offset of the message in the log; `None` if it is not in the log.
    pub log_offset: Option<u64>,
    /// The message. The delivery gets the reference of the caller.
    pub message: MessageId,
    /// The channel to which the message is delivered.
    pub channel: ChannelId,
    /// The consumer, or the record for `basic.get`; `None` for returns.
    pub consumer: Option<ConsumerId>,
    /// The queue that the message came from; `None` for returns.
    pub queue: Option<QueueId>,
    /// How the message is sent.
    pub method: DeliveryMethod,
    /// The message may have been delivered before.
    pub redelivered: bool,
    /// How often the message was requeued; at most `u16::MAX`.
    pub requeues: u16,
    /// Automatic acknowledgement.
    pub no_ack: bool,
}

/// Why a queue removes a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    /// A consumer rejected the message without requeueing it.
    Rejected,
    /// The message's time to live is over.
    Expired,
    /// The queue is over its length limit.
    MaxLength,
    /// The message is over the delivery limit.
    DeliveryLimit,
    /// The other side of a bridge refuses the message; the number is the index of the cause in
    /// `RepublishState::parkings`.
    Parked(u8),
}

impl Reason {
    /// Returns the reason as it stands in the header `x-death`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rejected => "rejected",
            Self::Expired => "expired",
            Self::MaxLength => "maxlen",
            Self::DeliveryLimit => "delivery_limit",
            // A parked message has its own headers, see `parked`.
            Self::Parked(_) => "parked",
        }
    }
}

/// The part (1/8) of the floor of clients that only deliveries can take. A connection with a channel and a consumer takes more
/// than eight times the bytes of a delivery. So there is one for each of those that fit into the floor.
pub const FLOOR_PART: usize = 8;

/// The pool of deliveries.
#[derive(Debug)]
pub struct Deliveries {
    slab: Slab<Delivered>,
    buckets: Box<[u32]>,
    /// Number of delivery records in the requeued heaps of all queues.
    requeued_count: usize,
    /// Written or requeued deliveries whose messages may be evicted, because they are in the log too; the
    /// oldest first.
    evictable: List,
}

impl Deliveries {
    /// Bytes of a delivery record, without the hash table.
    pub const RECORD_BYTES: usize = Slab::<Delivered>::record_bytes();

    /// Returns the bytes of the hash table of `capacity` deliveries.
    pub const fn table_bytes(capacity: usize) -> usize {
        Self::bucket_count(capacity) * size_of::<u32>()
    }

    /// Returns the number of buckets: a quarter of the deliveries, because all of them are rarely there at once.
    const fn bucket_count(capacity: usize) -> usize {
        capacity.div_ceil(4).next_power_of_two()
    }

    /// Creates a pool for at most `capacity` deliveries.
    pub fn with_capacity(capacity: usize, memory: &Memory) -> Self {
        // Connections, channels and consumers leave this to deliveries. Otherwise a consumer could exist that never gets a
        // message.
        let floor = memory.class_floor(Class::Clients) / FLOOR_PART;
        Self {
            slab: Slab::in_memory(capacity, memory, Class::Clients).with_floor(floor),
            buckets: vec![0; Self::bucket_count(capacity)].into_boxed_slice(),
            requeued_count: 0,
            evictable: List::default(),
        }
    }

    /// Creates a delivery record; `None` if the pool is full. `sequence` is its number in the outbox,
    /// `wire_bytes` are the bytes for which it is counted there.
    pub fn insert(
        &mut self,
        new: NewDelivery,
        sequence: u64,
        wire_bytes: u32,
        body_len: u32,
    ) -> Option<usize> {
        let has_tag = !new.no_ack && new.method != DeliveryMethod::Return;
        let record = Delivered {
            tag: new.tag,
            order: new.order,
            log_offset: new.log_offset,
            sequence,
            message: Some(new.message),
            body_len,
            channel: new.channel,
            consumer: new.consumer,
            queue: new.queue,
            wire_bytes,
            delivered_s: 0,
            method: new.method,
            redelivered: new.redelivered,
            requeues: new.requeues,
            dead_letter_reason: None,
            no_ack: new.no_ack,
            is_sent: false,
            is_requeued: false,
            is_evictable: false,
            is_detached: false,
            is_withdrawn: false,
            tx_settlement: None,
            links: Links::default(),
            outbox_links: Links::default(),
            bucket_next: 0,
            heap: HeapLinks::default(),
        };
        let index = self.slab.insert(record).ok()?;
        if has_tag {
            self.add_tag(index);
        }
        Some(index)
    }

    /// Returns the unsettled delivery with this tag on this channel.
    pub fn find(&self, channel: ChannelId, tag: u64) -> Option<usize> {
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

    /// Removes a delivery from the hash table, because its tag is not valid any more. The record stays.
    fn remove_tag(&mut self, index: usize) {
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

    /// Adds a delivery to the hash table: a new one, or one whose tag is valid again after a transaction was
    /// rolled back.
    #[inline]
    fn add_tag(&mut self, index: usize) {
        let bucket = self.bucket(self.slab[index].channel, self.slab[index].tag);
        self.slab[index].bucket_next = self.buckets[bucket];
        self.buckets[bucket] = index as u32 + 1;
    }

    /// Frees a delivery record. It must not be in the hash table any more.
    #[inline]
    pub fn remove(&mut self, index: usize) -> Delivered {
        self.forbid_eviction(index);
        self.slab.remove(index)
    }

    // ---- the outbox of a connection

    /// Appends a delivery to an outbox.
    #[inline]
    pub fn enter_outbox(&mut self, outbox: &mut List, index: usize) {
        outbox.push_back(&mut self.slab, index, |delivery| &mut delivery.outbox_links);
    }

    /// Removes a delivery from an outbox, at any position.
    #[inline]
    pub fn leave_outbox(&mut self, outbox: &mut List, index: usize) {
        outbox.remove(&mut self.slab, index, |delivery| &mut delivery.outbox_links);
    }

    /// Returns the next delivery after this one in its outbox.
    #[inline]
    pub fn next_in_outbox(&self, index: usize) -> Option<usize> {
        List::after(&self.slab, index, |delivery| &delivery.outbox_links)
    }

    // ---- unacknowledged deliveries of a channel

    /// Appends a delivery to a channel's unacknowledged list.
    #[inline]
    pub fn enter_unacknowledged(&mut self, list: &mut List, index: usize) {
        list.push_back(&mut self.slab, index, |delivery| &mut delivery.links);
    }

    /// Returns the deliveries of a channel's unacknowledged list, oldest first.
    pub fn unacknowledged(&self, list: &List) -> impl Iterator<Item = usize> {
        core::iter::successors(list.front(), |index| {
            List::after(&self.slab, *index, |delivery: &Delivered| &delivery.links)
        })
    }

    /// Removes a delivery from the unacknowledged list, and its tag from the hash table. Called when it is
    /// settled, or when an open transaction will settle it.
    #[inline]
    pub fn leave_unacknowledged(&mut self, list: &mut List, index: usize) {
        list.remove(&mut self.slab, index, |delivery| &mut delivery.links);
        self.remove_tag(index);
    }

    /// Adds a delivery to the settlements of an open transaction. The caller has removed it from the
    /// unacknowledged list.
    pub fn add_to_transaction(&mut self, settlements: &mut List, index: usize, settlement: Settlement) {
        self.slab[index].tx_settlement = Some(settlement);
        settlements.push_back(&mut self.slab, index, |delivery| &mut delivery.links);
    }

    /// Removes and returns the next of a transaction's settlements.
    pub fn next_settlement(&mut self, settlements: &mut List) -> Option<(usize, Settlement)> {
        let index = settlements.pop_front(&mut self.slab, |delivery| &mut delivery.links)?;
        let settlement = self.slab[index].tx_settlement.take();
        Some((index, settlement.expect("every delivery on this list has a settlement")))
    }

    /// Rolls the settlements of a transaction back: its deliveries return to their old positions in the
    /// unacknowledged list.
    ///
    /// A client may settle in any order, so searching the position of each delivery separately could take
    /// quadratic time. Instead the settlements are sorted by tag, and merged into the list in one pass from
    /// its end.
    pub fn roll_back_settlements(&mut self, list: &mut List, mut settlements: List) {
        settlements.sort_by_key(&mut self.slab, |delivery| delivery.tag, |delivery| &mut delivery.links);
        let mut after = list.back();
        while let Some(index) = settlements.back() {
            settlements.remove(&mut self.slab, index, |delivery| &mut delivery.links);
            self.slab[index].tx_settlement = None;
            self.add_tag(index);
            let tag = self.slab[index].tag;
            while let Some(other) = after.filter(|&other| self.slab[other].tag > tag) {
                after = List::before(&self.slab, other, |delivery| &delivery.links);
            }
            list.insert_after(&mut self.slab, after, index, |delivery| &mut delivery.links);
        }
    }

    // ---- eviction

    /// Allows the message of a delivery to be evicted, if it is in the log. The delivery must be in no
    /// outbox.
    pub fn allow_eviction(&mut self, index: usize) {
        let record = &mut self.slab[index];
        if record.log_offset.is_some() && record.message.is_some() && !record.is_evictable {
            record.is_evictable = true;
            self.evictable.push_back(&mut self.slab, index, |delivery| &mut delivery.outbox_links);
        }
    }

    /// Forbids to evict the message of a delivery.
    pub(crate) fn forbid_eviction(&mut self, index: usize) {
        if core::mem::take(&mut self.slab[index].is_evictable) {
            self.evictable.remove(&mut self.slab, index, |delivery| &mut delivery.outbox_links);
        }
    }

    /// Returns the oldest delivery whose message may be evicted.
    pub(crate) const fn first_evictable(&self) -> Option<usize> {
        self.evictable.front()
    }

    // ---- counts

    /// Returns the number of delivery records in use, including those of `basic.return`.
    pub const fn len(&self) -> usize {
        self.slab.len()
    }

    /// Returns whether no delivery records are in use.
    pub const fn is_empty(&self) -> bool {
        self.slab.is_empty()
    }

    /// Returns the number of free delivery records.
    #[inline]
    pub fn free_count(&self) -> usize {
        self.slab.free_count()
    }

    /// Returns the number of delivery records freed since the start.
    pub(crate) const fn freed_total(&self) -> u64 {
        self.slab.given()
    }

    /// Returns the bytes of unused places that may be resident in memory.
    pub const fn idle_bytes(&self) -> usize {
        self.slab.idle_bytes()
    }

    /// Returns unused memory to the system.
    pub fn trim(&mut self) {
        self.slab.trim();
    }

    /// Returns whether half of all records are those of requeued messages. Such messages may stay in their
    /// queues for any time, so others must still find free records for new deliveries.
    pub(crate) fn are_half_requeued(&self) -> bool {
        2 * self.requeued_count >= self.slab.len() + self.slab.free_count()
    }

    fn bucket(&self, channel: ChannelId, tag: u64) -> usize {
        // The factor distributes the channels over the buckets. Consecutive tags of a channel have
        // consecutive buckets.
        let start = channel.index().wrapping_mul(0x9E37_79B1);
        start.wrapping_add(tag as usize) & (self.buckets.len() - 1)
    }

    /// Returns whether any delivery will be dead-lettered for this reason.
    pub fn is_dead_letter_reason_in_use(&self, reason: Reason) -> bool {
        self.slab.iter().any(|(_, delivery)| delivery.dead_letter_reason == Some(reason))
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
    /// Returns whether the message was requeued and is in the heap of its queue.
    pub const fn is_requeued(&self) -> bool {
        self.is_requeued
    }
}

/// Minimum time between two checks for overdue deliveries, in seconds.
const CHECK_INTERVAL_MIN_S: u32 = 60;

/// The schedule of the checks for overdue deliveries, and the progress of the current check.
///
/// `Broker::next_overdue` does the check.
///
/// The next check is scheduled with the shortest timeout of all queues, so the time at which a delivery will
/// be overdue need not be stored in its record. Most queues have the configured consumer timeout.
///
/// # Invariants
/// - A check is made only when a delivery can be overdue.
#[derive(Debug)]
pub struct AcknowledgementTimeout {
    /// The configured timeout in milliseconds, for queues without their own; 0 is unlimited.
    pub timeout_ms: u32,
    /// The shortest of all timeouts so far, in milliseconds; 0 when all are unlimited.
    shortest_ms: u32,
    /// Time of this turn, in seconds since the start of the process.
    pub now_s: u32,
    /// Time of the next check, in seconds since the start of the process; `None` if none is needed.
    pub next_check_s: Option<u32>,
    /// Place of the channel where the current check continues.
    pub next_place: usize,
    /// The earliest time at which a delivery examined by the current check becomes overdue, in seconds since
    /// the start of the process.
    first_s: Option<u32>,
    /// Number of channels that may still be checked in this turn.
    pub channels_left: u32,
}

impl AcknowledgementTimeout {
    /// Creates the check of the configured consumer timeout; 0 is unlimited.
    pub const fn new(timeout_ms: u32) -> Self {
        let shortest_ms = timeout_ms;
        Self {
            timeout_ms,
            shortest_ms,
            now_s: 0,
            next_check_s: None,
            next_place: 0,
            first_s: None,
            channels_left: 0,
        }
    }

    /// Notes the consumer timeout of a queue; `u32::MAX` if it has none.
    pub fn note_timeout(&mut self, timeout_ms: u32) {
        if timeout_ms == 0 || timeout_ms == u32::MAX || self.shortest_ms > 0 && timeout_ms >= self.shortest_ms
        {
            return;
        }
        self.shortest_ms = timeout_ms;
        let next_s = overdue_s(self.now_s, timeout_ms);
        self.next_check_s = Some(self.next_check_s.map_or(next_s, |next_check_s| next_check_s.min(next_s)));
    }

    /// Notes a new delivery, or new activity in a transaction. Schedules a check if none is scheduled.
    /// Returns the present time, in seconds since the start of the process.
    pub const fn note_activity(&mut self) -> u32 {
        if self.next_check_s.is_none() && self.shortest_ms > 0 {
            self.next_check_s = Some(overdue_s(self.now_s, self.shortest_ms));
        }
        self.now_s
    }

    /// Returns whether a delivery, or an open transaction, is overdue: it has existed since `since_s` and may
    /// exist for `timeout_ms`; 0 is unlimited. Also notes when it becomes overdue, for the time of the next
    /// check.
    pub fn is_overdue(&mut self, since_s: u32, timeout_ms: u32) -> bool {
        let at_s = overdue_s(since_s, timeout_ms);
        let is_unlimited = timeout_ms == 0;
        if !is_unlimited {
            self.first_s = Some(self.first_s.map_or(at_s, |first_s| first_s.min(at_s)));
        }
        !is_unlimited && at_s <= self.now_s
    }

    /// Ends a check, and schedules the next one.
    pub fn end(&mut self) {
        let pause_s = CHECK_INTERVAL_MIN_S.min(self.shortest_ms.div_ceil(1000));
        // Deliveries made after this check are overdue at the earliest after the shortest timeout.
        let next_s = |first_s: u32| first_s.min(overdue_s(self.now_s, self.shortest_ms));
        self.next_check_s =
            self.first_s.map(|first_s| next_s(first_s).max(self.now_s.saturating_add(pause_s)));
        self.first_s = None;
        self.next_place = 0;
    }
}

/// Returns the first second in which a delivery made at `since_s` is overdue. Times are truncated to seconds,
/// so one second is added.
const fn overdue_s(since_s: u32, timeout_ms: u32) -> u32 {
    since_s.saturating_add(timeout_ms.div_ceil(1000)).saturating_add(1)
}

#[cfg(test)]
mod records_tests {
    use super::*;

    fn new(channel: usize, tag: u64, order: u64) -> NewDelivery {
        NewDelivery {
            tag,
            order,
            log_offset: None,
            message: MessageId::from_index(0),
            channel: ChannelId::from_index(channel),
            consumer: None,
            queue: None,
            method: DeliveryMethod::Deliver,
            redelivered: false,
            requeues: 0,
            no_ack: false,
        }
    }

    #[test]
    fn tags_are_found_in_any_order_while_one_stays_unacknowledged() {
        let mut pool = Deliveries::with_capacity(64, &Memory::unlimited());
        let sleepy = pool.insert(new(3, 1, 0), 0, 0, 0).unwrap();
        for tag in 2..100_000_u64 {
            let index = pool.insert(new(3, tag, tag), 0, 0, 0).unwrap();
            let other = pool.insert(new(4, tag, tag), 0, 0, 0).unwrap();
            assert_eq!(pool.find(ChannelId::from_index(3), tag), Some(index));
            for gone in [other, index] {
                pool.remove_tag(gone);
                pool.remove(gone);
            }
            assert_eq!(pool.find(ChannelId::from_index(4), tag), None);
        }
        assert_eq!(pool.find(ChannelId::from_index(3), 1), Some(sleepy));
        assert_eq!(pool.slab.len(), 1);
    }

    #[test]
    fn requeued_messages_are_taken_in_their_order_however_they_are_requeued() {
        let mut pool = Deliveries::with_capacity(5000, &Memory::unlimited());
        let mut heap = RequeuedHeap::default();
        let mut state = 7_u64;
        for tag in 0..5000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let index = pool.insert(new(0, tag, state >> 40), 0, 0, 0).unwrap();
            heap.insert(&mut pool, index);
        }
        let mut last = 0;
        while let Some(index) = heap.pop(&mut pool) {
            let order = pool.slab[index].order;
            assert!(order >= last);
            last = order;
            pool.remove_tag(index);
            pool.remove(index);
        }
        assert!(heap.is_empty() && pool.slab.is_empty());
    }
}
