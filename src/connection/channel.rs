//! Channels of all connections, and the publisher confirms of each.
//!
//! All records are in one pool of `channels_max` records. A record is found by connection and channel number
//! through a hash table with chained buckets that never grows. A connection remembers the channel it used last,
//! so a client with one channel needs no lookup.
//!
//! # Invariants
//! - A record is in exactly one bucket and on the list of its connection.
//! - A record without a channel of the broker is either being opened or waits for the client's channel.close-ok.

use core::hash::BuildHasher as _;

use foldhash::fast::RandomState;
use leveret_amqp::Method;
use leveret_core::command::{ChannelId, ConnectionId, Name, ReplyOrder};
use leveret_core::mem::Slab;
use leveret_core::pending_writes::Batch;
use leveret_core::time::Now;

use super::publish::Content;

/// The index of a record in the pool, or [`NONE`].
pub(super) type Slot = u32;
pub(super) const NONE: Slot = u32::MAX;

/// One channel.
#[derive(Debug)]
pub(super) struct Channel {
    connection: ConnectionId,
    number: u16,
    pub(super) state: ChannelState,
    pub(super) content: Content,
    /// When the content last grew.
    pub(super) progress: Now,
    /// When the body began.
    pub(super) begun: Now,
    pub(super) confirms: Confirms,
    /// The next channel on the same [`ConfirmList`].
    next_to_confirm: Slot,
    /// The [`ConfirmList`] that the channel is on.
    pub(super) listed: Listed,
    /// The queue that an empty queue name refers to.
    pub(super) last_queue: Name,
    next_in_bucket: Slot,
    next: Slot,
    previous: Slot,
}

/// Which [`ConfirmList`] a channel is on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Listed {
    /// None: the channel has no confirms to send.
    No,
    /// The list of channels whose first confirm does not wait for the disk.
    ToConfirm,
    /// The list of channels whose first confirm waits for the disk.
    ToBeStored,
}

/// A list of channels of one connection that have confirms to send.
#[derive(Clone, Copy, Debug)]
pub(super) struct ConfirmList {
    pub(super) first: Slot,
    last: Slot,
}

impl ConfirmList {
    pub(super) const EMPTY: Self = Self { first: NONE, last: NONE };

    pub(super) const fn is_empty(&self) -> bool {
        self.first == NONE
    }

    pub(super) fn push(&mut self, channels: &mut Channels, slot: Slot) {
        channels[slot].next_to_confirm = NONE;
        match self.last {
            NONE => self.first = slot,
            last => channels[last].next_to_confirm = slot,
        }
        self.last = slot;
    }

    pub(super) fn remove(&mut self, channels: &mut Channels, slot: Slot) {
        let next = channels[slot].next_to_confirm;
        let mut before = NONE;
        let mut at = self.first;
        while at != slot {
            before = at;
            at = channels[at].next_to_confirm;
        }
        match before {
            NONE => self.first = next,
            before => channels[before].next_to_confirm = next,
        }
        if self.last == slot {
            self.last = before;
        }
    }

    pub(super) fn after(channels: &Channels, slot: Slot) -> Slot {
        channels[slot].next_to_confirm
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ChannelState {
    /// The broker is opening it.
    Opening,
    /// The channel is in use; the broker knows it by this id.
    Open(ChannelId),
    /// The broker has closed it. Everything except channel.close-ok is ignored.
    Closing,
    /// The client has answered channel.close in the middle of a content that was refused. The rest of the content may
    /// still arrive.
    Ended,
}

impl ChannelState {
    /// Returns whether the broker has closed the channel and the client may not know yet.
    pub(super) const fn is_closed(self) -> bool {
        matches!(self, Self::Closing | Self::Ended)
    }
}

impl Channel {
    pub(super) const fn number(&self) -> u16 {
        self.number
    }
}

/// The records of all channels.
#[derive(Debug)]
pub(super) struct Channels {
    records: Slab<Channel>,
    buckets: Box<[Slot]>,
    hasher: RandomState,
}

/// The channels of one connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct OwnChannels {
    pub(super) first: Slot,
    pub(super) count: u16,
    /// Number of channels with a message that is incomplete or was not taken yet.
    pub(super) contents: u16,
    /// The channel used last: number and index.
    cached: (u16, Slot),
}

impl OwnChannels {
    pub(super) const NONE: Self = Self { first: NONE, count: 0, contents: 0, cached: (0, NONE) };
}

/// Refused channels, over all connections, that wait for the channel.close-ok of their clients while every channel
/// record is in use. A channel.open beyond these closes its connection.
const REFUSED_MAX: usize = 64;

impl Channels {
    /// Bytes of the records for refused channels.
    pub(super) const REFUSED_BYTES: usize = REFUSED_MAX * Self::RECORD_BYTES;
    pub(super) const RECORD_BYTES: usize = Slab::<Channel>::record_bytes() + size_of::<Slot>() * 2;

    pub(super) fn new(channels_max: usize) -> Self {
        Self {
            records: Slab::with_capacity(channels_max + REFUSED_MAX),
            buckets: vec![NONE; channels_max.next_power_of_two()].into_boxed_slice(),
            hasher: RandomState::default(),
        }
    }

    #[inline]
    pub(super) fn find(&self, own: &mut OwnChannels, owner: ConnectionId, number: u16) -> Option<Slot> {
        if own.cached.0 == number && own.cached.1 != NONE {
            return Some(own.cached.1);
        }
        let mut slot = self.buckets[self.bucket(owner, number)];
        while slot != NONE {
            let record = &self.records[slot as usize];
            if record.number == number && record.connection == owner {
                own.cached = (number, slot);
                return Some(slot);
            }
            slot = record.next_in_bucket;
        }
        None
    }

    /// Creates a record in state [`ChannelState::Opening`]; `None` when the pool is full.
    pub(super) fn open(&mut self, own: &mut OwnChannels, owner: ConnectionId, number: u16) -> Option<Slot> {
        let bucket = self.bucket(owner, number);
        let record = Channel {
            connection: owner,
            number,
            state: ChannelState::Opening,
            content: Content::None,
            progress: Now::default(),
            begun: Now::default(),
            confirms: Confirms::default(),
            next_to_confirm: NONE,
            listed: Listed::No,
            last_queue: Name::new(),
            next_in_bucket: self.buckets[bucket],
            next: own.first,
            previous: NONE,
        };
        let slot = self.records.insert(record).ok()? as Slot;
        if own.first != NONE {
            self.records[own.first as usize].previous = slot;
        }
        self.buckets[bucket] = slot;
        own.first = slot;
        own.count += 1;
        own.cached = (number, slot);
        Some(slot)
    }

    /// Removes a record.
    pub(super) fn close(&mut self, own: &mut OwnChannels, slot: Slot) {
        let record = self.records.remove(slot as usize);
        match record.previous {
            NONE => own.first = record.next,
            previous => self.records[previous as usize].next = record.next,
        }
        if record.next != NONE {
            self.records[record.next as usize].previous = record.previous;
        }
        own.count -= 1;
        own.cached = (0, NONE);
        self.leave_bucket(slot, &record);
    }

    fn leave_bucket(&mut self, slot: Slot, record: &Channel) {
        let bucket = self.bucket(record.connection, record.number);
        let mut at = self.buckets[bucket];
        if at == slot {
            self.buckets[bucket] = record.next_in_bucket;
            return;
        }
        while at != NONE {
            let other = &mut self.records[at as usize];
            if other.next_in_bucket == slot {
                other.next_in_bucket = record.next_in_bucket;
                return;
            }
            at = other.next_in_bucket;
        }
    }

    /// Returns about how many bytes of unused records the system holds memory for.
    pub(super) const fn idle_bytes(&self) -> usize {
        self.records.idle_bytes()
    }

    /// Returns the memory of unused records to the system.
    pub(super) fn trim(&mut self) {
        self.records.trim();
    }

    /// Returns the next channel of the same connection.
    pub(super) fn next(&self, slot: Slot) -> Slot {
        self.records[slot as usize].next
    }

    pub(super) const fn len(&self) -> usize {
        self.records.len()
    }

    fn bucket(&self, owner: ConnectionId, number: u16) -> usize {
        self.hasher.hash_one((owner, number)) as usize & (self.buckets.len() - 1)
    }
}

impl core::ops::Index<Slot> for Channels {
    type Output = Channel;

    #[inline]
    fn index(&self, slot: Slot) -> &Channel {
        &self.records[slot as usize]
    }
}

impl core::ops::IndexMut<Slot> for Channels {
    #[inline]
    fn index_mut(&mut self, slot: Slot) -> &mut Channel {
        &mut self.records[slot as usize]
    }
}

/// Consecutive confirms of one kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Run {
    /// The last publish number in the run. The run begins after the run before it.
    pub(super) upto: u64,
    /// Deliveries and returns up to this sequence number are written first.
    pub(super) order: ReplyOrder,
    /// All messages of the run are durable when this batch is.
    pub(super) batch: Batch,
    /// Refused (basic.nack) instead of taken (basic.ack).
    pub(super) refused: bool,
}

const RUNS_MAX: usize = 5;

/// The publisher confirms of one channel, as numbers.
///
/// A publisher that sends a million messages and reads none of its confirms must cost no more than one that sends
/// none. Consecutive confirms of one kind are therefore one [`Run`], which is sent as one frame with `multiple`
/// when there is space.
///
/// ```text
///   numbers   1 2 3 4 5 6 7 8 9 10 11
///             |sent |  run  | run |    |
///              up to   ack    nack   next: 11
///              sent    ..7    ..10
/// ```
///
/// # Invariants
/// - Runs follow each other without gaps, from `sent` on.
/// - A run is sent after every return up to its order is written and all of its messages are durable.
/// - The order and the batch of the first run never increase, so it is sent at some time.
#[derive(Clone, Debug, Default)]
pub(super) struct Confirms {
    /// The number of the next publish; 0 while the channel is not in confirm mode.
    next: u64,
    /// Everything up to this number was sent.
    sent: u64,
    runs: heapless::Vec<Run, RUNS_MAX>,
}

impl Confirms {
    /// Handles confirm.select: later publishes are numbered from 1. A second one changes nothing.
    pub(super) fn select(&mut self) {
        self.next = self.next.max(1);
    }

    /// Returns whether another publish can be numbered, that is, whether a free run is left for its answer.
    pub(super) fn has_room(&self) -> bool {
        self.next == 0 || !self.runs.is_full()
    }

    /// Records that the next publish was handled, and is durable with `batch`. Returns whether there is something to
    /// send.
    pub(super) fn settle(&mut self, refused: bool, order: ReplyOrder, batch: Batch) -> bool {
        if self.next == 0 {
            return false;
        }
        let upto = self.next;
        self.next += 1;
        let nearly_full = self.runs.len() + 1 >= RUNS_MAX;
        match self.runs.last_mut() {
            Some(last)
                if last.refused == refused && (order <= last.order && batch <= last.batch || nearly_full) =>
            {
                last.upto = upto;
                last.order = last.order.max(order);
                last.batch = last.batch.max(batch);
            }
            _ => {
                let pushed = self.runs.push(Run { upto, order, batch, refused });
                assert!(pushed.is_ok(), "has_room was asked before the publish began");
            }
        }
        true
    }

    /// Returns the run to be sent next.
    pub(super) fn front(&self) -> Option<Run> {
        self.runs.first().copied()
    }

    /// Removes the first run to send it. Also returns the number confirmed before it.
    pub(super) fn take(&mut self) -> Option<(Run, u64)> {
        let run = self.front()?;
        self.runs.remove(0);
        Some((run, core::mem::replace(&mut self.sent, run.upto)))
    }

    /// Drops all runs from the first one on that waits for a delivery or for the disk.
    pub(super) fn drop_waiting(&mut self, durable: Batch) {
        let kept = self.runs.iter().take_while(|run| run.order == 0 && run.batch <= durable).count();
        self.runs.truncate(kept);
    }

    /// Drops all runs from the first one on that waits for the disk.
    pub(super) fn drop_stored_later(&mut self, durable: Batch) {
        let kept = self.runs.iter().take_while(|run| run.batch <= durable).count();
        self.runs.truncate(kept);
    }
}

impl Run {
    /// Returns how many messages the run acknowledges, if everything up to `sent_before` was sent.
    pub(super) const fn taken_after(self, sent_before: u64) -> u64 {
        if self.refused { 0 } else { self.upto - sent_before }
    }

    /// Returns the method for the run, if everything up to `sent_before` was sent.
    pub(super) fn method(self, sent_before: u64) -> Method<'static> {
        let (delivery_tag, multiple) = (self.upto, self.upto - sent_before > 1);
        if self.refused {
            Method::BasicNack { delivery_tag, multiple, requeue: false }
        } else {
            Method::BasicAck { delivery_tag, multiple }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_small() {
        const { assert!(size_of::<Channel>() <= 512) };
    }

    #[test]
    fn channels_are_found_by_owner_and_number_until_they_close() {
        let mut channels = Channels::new(128 - REFUSED_MAX);
        let owners: Vec<ConnectionId> = (0..8).map(ConnectionId::from_index).collect();
        let mut own = [OwnChannels::NONE; 8];
        for (owner, own) in owners.iter().zip(&mut own) {
            for number in 1..=16 {
                assert!(channels.open(own, *owner, number * 1000).is_some());
            }
        }
        assert!(channels.open(&mut own[0], owners[0], 1).is_none(), "the pool is full");
        for (owner, own) in owners.iter().zip(&mut own) {
            for number in 1..=16 {
                let slot = channels.find(own, *owner, number * 1000).unwrap();
                assert_eq!((channels[slot].connection, channels[slot].number()), (*owner, number * 1000));
                if number % 2 == 0 {
                    channels.close(own, slot);
                    assert_eq!(channels.find(own, *owner, number * 1000), None);
                }
            }
            assert_eq!(own.count, 8);
            let mut listed = 0;
            let mut slot = own.first;
            while slot != NONE {
                listed += 1;
                slot = channels.next(slot);
            }
            assert_eq!(listed, 8);
        }
        assert_eq!(channels.len(), 64);
    }
}

#[cfg(test)]
mod confirms_tests {
    use super::*;

    fn sent(confirms: &mut Confirms) -> Vec<Method<'static>> {
        core::iter::from_fn(|| confirms.take().map(|(run, before)| run.method(before))).collect()
    }

    const fn ack(delivery_tag: u64, multiple: bool) -> Method<'static> {
        Method::BasicAck { delivery_tag, multiple }
    }

    const fn nack(delivery_tag: u64, multiple: bool) -> Method<'static> {
        Method::BasicNack { delivery_tag, multiple, requeue: false }
    }

    #[test]
    fn neighbours_of_one_kind_are_told_together() {
        let mut confirms = Confirms::default();
        assert!(!confirms.settle(false, 0, Batch::NONE) && confirms.has_room());
        confirms.select();
        confirms.select();
        for refused in [false, false, false, true, false] {
            assert!(confirms.has_room() && confirms.settle(refused, 0, Batch::NONE));
        }
        assert_eq!(sent(&mut confirms), [ack(3, true), nack(4, false), ack(5, false)]);
        confirms.settle(true, 0, Batch::NONE);
        confirms.settle(true, 0, Batch::NONE);
        assert_eq!(sent(&mut confirms), [nack(7, true)]);
    }

    #[test]
    fn a_run_that_waits_for_its_returns_keeps_its_place_while_others_come() {
        let mut confirms = Confirms::default();
        confirms.select();
        for order in 1..=100 {
            assert!(confirms.has_room());
            confirms.settle(false, order, Batch::NONE);
        }
        let orders: Vec<(u64, u64)> =
            core::iter::from_fn(|| confirms.take().map(|(run, _)| (run.upto, run.order))).collect();
        assert_eq!(orders, [(1, 1), (2, 2), (3, 3), (100, 100)]);
    }
}
