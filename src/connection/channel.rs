//! Channels of all connections, and the publisher confirms of each.
//!
//! The state of each channel is a record in one pool for all connections. A hash table with chained buckets, which never
//! grows, finds a record by connection and channel number. Each connection caches the channel that it used last, so that
//! a client with one channel needs no lookup.
//!
//! # Invariants
//! - A record is in exactly one bucket and in the list of its connection.
//! - If the broker has no channel for a record, the channel is being opened, or the client has not sent
//!   channel.close-ok yet.

use core::hash::BuildHasher as _;

use foldhash::fast::RandomState;
use leveret_amqp::Method;
use leveret_core::batch::Batch;
use leveret_core::command::{ChannelId, ConnectionId, Name, ReplyOrder};
use leveret_core::mem::{Class, Memory, Slab};
use leveret_core::time::Now;

use super::publish::Content;

/// The index of a record in the pool of channels, or [`NONE`].
pub(super) type Slot = u32;
pub(super) const NONE: Slot = u32::MAX;

/// The state of one channel.
#[derive(Debug)]
pub(super) struct Channel {
    connection: ConnectionId,
    number: u16,
    pub(super) state: ChannelState,
    pub(super) content: Content,
    /// When a frame of the current content last arrived.
    pub(super) progress: Now,
    /// When the header of the current content arrived.
    pub(super) body_begun: Now,
    pub(super) confirms: Confirms,
    /// The next channel on the same [`ConfirmList`].
    next_to_confirm: Slot,
    /// Which [`ConfirmList`] contains the channel.
    pub(super) confirm_list: ConfirmListKind,
    /// The queue that was last declared on the channel, to which an empty queue name refers.
    pub(super) last_queue: Name,
    next_in_bucket: Slot,
    next: Slot,
    previous: Slot,
}

/// The list of channels with confirms that contains a channel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ConfirmListKind {
    /// No list: the channel has no confirms to send.
    None,
    /// The list of channels whose first confirm is for messages that are durable or need not be.
    Sendable,
    /// The list of channels whose first confirm is for messages that are not durable yet.
    AwaitsDisk,
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

    /// Appends a channel.
    pub(super) fn push(&mut self, channels: &mut Channels, slot: Slot) {
        channels[slot].next_to_confirm = NONE;
        match self.last {
            NONE => self.first = slot,
            last => channels[last].next_to_confirm = slot,
        }
        self.last = slot;
    }

    /// Removes a channel, which must be in the list.
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

    /// Returns the channel after `slot` in its list, or [`NONE`].
    pub(super) fn after(channels: &Channels, slot: Slot) -> Slot {
        channels[slot].next_to_confirm
    }
}

/// Whether a channel is open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ChannelState {
    /// The broker has not handled channel.open yet.
    Opening,
    /// The channel is open. This is its identifier in the broker.
    Open(ChannelId),
    /// The broker has sent channel.close. All input except channel.close-ok is ignored.
    Closing,
    /// The client has sent channel.close-ok between the frames of a refused content, whose other frames may still arrive.
    Ended,
}

impl ChannelState {
    /// Returns whether the broker has closed the channel. The client may still send frames on it.
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
    /// The first record of each bucket plus 1; 0 ([`NONE`] plus 1) for an empty one, so that the table takes no memory before
    /// it is used.
    buckets: Box<[Slot]>,
    hasher: RandomState,
}

/// The channels of one connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct OwnChannels {
    pub(super) first: Slot,
    pub(super) count: u16,
    /// Number of channels with a message that is incomplete, or that the broker has not accepted yet.
    pub(super) contents: u16,
    /// Number and record of the channel that was used last.
    cached: (u16, Slot),
}

impl OwnChannels {
    pub(super) const NONE: Self = Self { first: NONE, count: 0, contents: 0, cached: (0, NONE) };
}

/// Number of additional records, for channels that the broker has refused because `channels_max` are in use.
/// Such a channel needs a record until its client sends channel.close-ok. If no record is free, channel.open
/// closes the connection.
const REFUSED_MAX: usize = 64;

impl Channels {
    /// Memory of a channel in bytes, without the hash table.
    pub(super) const RECORD_BYTES: usize = Slab::<Channel>::record_bytes();

    /// Returns the bytes of the hash table for this many channels.
    pub(super) const fn table_bytes(channels_max: usize) -> usize {
        Self::bucket_count(channels_max) * size_of::<Slot>()
    }

    /// Returns the number of buckets: a quarter of the channels, because all of them are rarely there at once.
    const fn bucket_count(channels_max: usize) -> usize {
        channels_max.div_ceil(4).next_power_of_two()
    }

    pub(super) fn new(channels_max: usize, memory: &Memory) -> Self {
        Self {
            records: Slab::in_memory(channels_max + REFUSED_MAX, memory, Class::Clients),
            buckets: vec![0; Self::bucket_count(channels_max)].into_boxed_slice(),
            hasher: RandomState::default(),
        }
    }

    /// Returns the record of a connection's channel, if there is one.
    #[inline]
    pub(super) fn find(&self, own: &mut OwnChannels, owner: ConnectionId, number: u16) -> Option<Slot> {
        if own.cached.0 == number && own.cached.1 != NONE {
            return Some(own.cached.1);
        }
        let mut slot = self.first_in(self.bucket(owner, number));
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

    /// Returns the number of messages whose confirms were not sent yet, for operators.
    pub(super) fn unconfirmed(&self, owner: ConnectionId, number: u16) -> u64 {
        let slot = self.find(&mut OwnChannels::NONE.clone(), owner, number);
        slot.map_or(0, |slot| self.records[slot as usize].confirms.unsent())
    }

    /// Creates a record in state [`ChannelState::Opening`]. Returns `None` when the pool is full.
    pub(super) fn open(&mut self, own: &mut OwnChannels, owner: ConnectionId, number: u16) -> Option<Slot> {
        let bucket = self.bucket(owner, number);
        let record = Channel {
            connection: owner,
            number,
            state: ChannelState::Opening,
            content: Content::None,
            progress: Now::default(),
            body_begun: Now::default(),
            confirms: Confirms::default(),
            next_to_confirm: NONE,
            confirm_list: ConfirmListKind::None,
            last_queue: Name::new(),
            next_in_bucket: self.first_in(bucket),
            next: own.first,
            previous: NONE,
        };
        let slot = self.records.insert(record).ok()? as Slot;
        if own.first != NONE {
            self.records[own.first as usize].previous = slot;
        }
        self.buckets[bucket] = slot.wrapping_add(1);
        own.first = slot;
        own.count += 1;
        own.cached = (number, slot);
        Some(slot)
    }

    /// Removes the record of a channel.
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

    /// Removes a record from its bucket.
    fn leave_bucket(&mut self, slot: Slot, record: &Channel) {
        let bucket = self.bucket(record.connection, record.number);
        let mut at = self.first_in(bucket);
        if at == slot {
            self.buckets[bucket] = record.next_in_bucket.wrapping_add(1);
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

    /// Returns approximately how many bytes of memory unused records occupy, which [`Self::trim`] would free.
    pub(super) const fn idle_bytes(&self) -> usize {
        self.records.idle_bytes()
    }

    /// Returns the memory of unused records to the operating system.
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

    #[inline]
    fn first_in(&self, bucket: usize) -> Slot {
        self.buckets[bucket].wrapping_sub(1)
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

/// Consecutive confirms of one channel that are all acknowledgements or all refusals.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Run {
    /// The last publish number of the run. The first one is that after the previous run.
    pub(super) upto: u64,
    /// Deliveries and returns up to this sequence number must be written before the run.
    pub(super) order: ReplyOrder,
    /// All messages of the run are durable when this batch is durable.
    pub(super) batch: Batch,
    /// The broker has refused the messages (basic.nack); otherwise it has accepted them (basic.ack).
    pub(super) is_refused: bool,
}

/// Maximum number of runs of a channel.
const RUNS_MAX: usize = 5;

/// The publisher confirms of one channel that are not sent yet.
///
/// The confirms of a publisher that does not read them must take only little memory. Consecutive confirms of
/// the same kind are therefore merged into one [`Run`], which is sent as one frame with `multiple`. If the
/// number of runs reaches its limit, later confirms are merged into the last run, which is then sent when the
/// last of its messages is durable.
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
/// - A run is sent only after all deliveries and returns up to its order are written and all of its messages are durable.
/// - The order and the batch of the first run do not increase, so that it is sent eventually.
#[derive(Clone, Debug, Default)]
pub(super) struct Confirms {
    /// The publish number of the next message; 0 if the channel is not in confirm mode.
    next: u64,
    /// Confirms up to this publish number were sent.
    sent: u64,
    runs: heapless::Vec<Run, RUNS_MAX>,
}

impl Confirms {
    /// Handles confirm.select: later messages are numbered from 1. A second confirm.select has no effect.
    pub(super) fn select(&mut self) {
        self.next = self.next.max(1);
    }

    /// Returns the number of messages whose confirms were not sent yet.
    const fn unsent(&self) -> u64 {
        self.next.saturating_sub(1).saturating_sub(self.sent)
    }

    /// Returns whether there is space for another run, which the confirm of the next message may need.
    pub(super) fn has_room(&self) -> bool {
        self.next == 0 || !self.runs.is_full()
    }

    /// Adds the confirm of the next message, which is durable with `batch`. Returns whether the channel is in confirm
    /// mode, so that there is a confirm to send.
    pub(super) fn settle(&mut self, is_refused: bool, order: ReplyOrder, batch: Batch) -> bool {
        if self.next == 0 {
            return false;
        }
        let upto = self.next;
        self.next += 1;
        let nearly_full = self.runs.len() + 1 >= RUNS_MAX;
        match self.runs.last_mut() {
            Some(last)
                if last.is_refused == is_refused
                    && (order <= last.order && batch <= last.batch || nearly_full) =>
            {
                last.upto = upto;
                last.order = last.order.max(order);
                last.batch = last.batch.max(batch);
            }
            _ => {
                let pushed = self.runs.push(Run { upto, order, batch, is_refused });
                assert!(pushed.is_ok(), "has_room was checked before the publish began");
            }
        }
        true
    }

    /// Returns the run to be sent next.
    pub(super) fn front(&self) -> Option<Run> {
        self.runs.first().copied()
    }

    /// Removes the first run, which the caller sends. Also returns the publish number up to which confirms were sent
    /// before.
    pub(super) fn take(&mut self) -> Option<(Run, u64)> {
        let run = self.front()?;
        self.runs.remove(0);
        Some((run, core::mem::replace(&mut self.sent, run.upto)))
    }

    /// Drops the first run that must follow a delivery or is not durable yet, and all runs after it.
    pub(super) fn keep_sendable(&mut self, durable: Batch) {
        let kept = self.runs.iter().take_while(|run| run.order == 0 && run.batch <= durable).count();
        self.runs.truncate(kept);
    }

    /// Drops the first run that is not durable yet, and all runs after it.
    pub(super) fn keep_durable(&mut self, durable: Batch) {
        let kept = self.runs.iter().take_while(|run| run.batch <= durable).count();
        self.runs.truncate(kept);
    }
}

impl Run {
    /// Returns the number of messages that the run acknowledges; 0 if it refuses them. `sent_before` is the publish
    /// number up to which confirms were sent before.
    pub(super) const fn acknowledged_after(self, sent_before: u64) -> u64 {
        if self.is_refused { 0 } else { self.upto - sent_before }
    }

    /// Returns the method that sends the run. `sent_before` is as in [`Self::acknowledged_after`].
    pub(super) fn method(self, sent_before: u64) -> Method<'static> {
        let (delivery_tag, multiple) = (self.upto, self.upto - sent_before > 1);
        if self.is_refused {
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
        let mut channels = Channels::new(128 - REFUSED_MAX, &Memory::unlimited());
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
