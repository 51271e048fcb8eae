//! Channels of all connections: one small record each, in one pool.
//!
//! Why it exists: a board has memory for so many channels, whoever opens them; so they lie in a pool of that
//! size, found by connection and number through chained buckets that never grow. A connection that uses one
//! channel remembers its place and never searches.
//!
//! Always true: a record is in exactly one bucket and on the list of its connection; a record without a
//! broker's channel is either about to get one or waits for the peer to be done with it.

use core::hash::BuildHasher as _;

use foldhash::fast::RandomState;
use leveret_amqp::Method;
use leveret_core::command::{ChannelId, ConnectionId, Name, ReplyOrder};
use leveret_core::journal::Batch;
use leveret_core::mem::Slab;
use leveret_core::time::Now;

use super::publish::Content;

/// The place of a record in the pool; [`NONE`] where there is none.
pub(super) type Slot = u32;
pub(super) const NONE: Slot = u32::MAX;

/// One channel as its session sees it.
#[derive(Debug)]
pub(super) struct Channel {
    connection: ConnectionId,
    number: u16,
    pub(super) state: State,
    pub(super) content: Content,
    /// When the content grew last.
    pub(super) progress: Now,
    /// When its body began.
    pub(super) begun: Now,
    pub(super) confirms: Confirms,
    /// The next channel of the connection on the same list of those with confirms.
    next_to_confirm: Slot,
    /// The list of those with confirms that the channel is on.
    pub(super) listed: Listed,
    /// What an empty queue name stands for.
    pub(super) last_queue: Name,
    next_in_bucket: Slot,
    next: Slot,
    previous: Slot,
}

/// Whether a channel has confirms.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Listed {
    /// The channel has no confirms to send.
    No,
    /// Some may be told as far as the disk is concerned.
    ToConfirm,
    /// The first waits for the disk.
    ToBeStored,
}

/// A list of channels of one connection with confirms.
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
pub(super) enum State {
    /// The broker is being asked for it.
    Opening,
    /// The channel is in use, under this id at the broker.
    Open(ChannelId),
    /// We closed it; everything but channel.close-ok is ignored.
    Closing,
    /// The peer has agreed, in the middle of a content that we had refused: the rest of it may still come.
    Ended,
}

impl State {
    /// Whether we closed it and the peer may not have noticed.
    pub(super) const fn is_closed(self) -> bool {
        matches!(self, Self::Closing | Self::Ended)
    }
}

impl Channel {
    pub(super) const fn number(&self) -> u16 {
        self.number
    }
}

/// All records of all connections.
#[derive(Debug)]
pub(super) struct Channels {
    records: Slab<Channel>,
    buckets: Box<[Slot]>,
    hasher: RandomState,
}

/// A connection's own channels.
#[derive(Clone, Copy, Debug)]
pub(super) struct OwnChannels {
    pub(super) first: Slot,
    pub(super) count: u16,
    /// Those that hold a message which is not complete or not taken yet.
    pub(super) contents: u16,
    /// The one used last: number and place.
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

    /// A new record in state [`State::Opening`]; `None` when the pool is full.
    pub(super) fn open(&mut self, own: &mut OwnChannels, owner: ConnectionId, number: u16) -> Option<Slot> {
        let bucket = self.bucket(owner, number);
        let record = Channel {
            connection: owner,
            number,
            state: State::Opening,
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

    /// Gives the record back.
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

    /// Bytes of records that nobody uses and the system holds memory for, about.
    pub(super) const fn idle_bytes(&self) -> usize {
        self.records.idle_bytes()
    }

    /// Gives them back to the system.
    pub(super) fn trim(&mut self) {
        self.records.trim();
    }

    /// The channel of the same connection after this one.
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

// Publisher confirms of one channel, as state: which numbers may be told, not bytes that tell them.
//
// Why it exists: a publisher that sends a million messages and reads none of its confirms must cost no more
// than one that sends none. Neighbouring confirms of one kind are one [`Run`], told by one frame with
// `multiple`, however long it has grown when there is room on the wire.
//
// ```text
//   numbers   1 2 3 4 5 6 7 8 9 10 11
//             |told|  run  | run |    |
//              up to  ack   nack   next: 11
//              told   ..7   ..10
// ```
//
// Always true: runs follow each other without gaps, from `told` on; a run is told only after every return
// put into the outbox before it (its order) is written and everything in it is durable; a run at the front
// never grows later in order or batch, so it cannot be overtaken for ever.

/// Confirms of one kind that follow each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Run {
    /// The last number in it; the first is the one after the run before.
    pub(super) upto: u64,
    /// Every delivery up to this sequence goes before it.
    pub(super) order: ReplyOrder,
    /// Everything in it is durable when this batch is.
    pub(super) batch: Batch,
    /// Refused (basic.nack) instead of taken (basic.ack).
    pub(super) refused: bool,
}

const RUNS_MAX: usize = 5;

/// The numbering of one channel.
#[derive(Clone, Debug, Default)]
pub(super) struct Confirms {
    /// The number of the next publish; 0 while the channel is not in confirm mode.
    next: u64,
    /// Everything up to this number has been written.
    told: u64,
    runs: heapless::Vec<Run, RUNS_MAX>,
}

impl Confirms {
    /// confirm.select: later publishes are numbered, from 1. A second one changes nothing.
    pub(super) fn select(&mut self) {
        self.next = self.next.max(1);
    }

    /// Whether a further publish can be numbered; there is not when its answer might need a run that has no
    /// place.
    pub(super) fn has_room(&self) -> bool {
        self.next == 0 || !self.runs.is_full()
    }

    /// The next publish was taken care of, durably so when `batch` is durable. Says whether there is
    /// something to tell.
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

    /// The run to be told next.
    pub(super) fn front(&self) -> Option<Run> {
        self.runs.first().copied()
    }

    /// Takes the front run to send it; also returns the number confirmed before it.
    pub(super) fn take(&mut self) -> Option<(Run, u64)> {
        let run = self.front()?;
        self.runs.remove(0);
        Some((run, core::mem::replace(&mut self.told, run.upto)))
    }

    /// Drops the runs from the first on that waits for a delivery or for the disk.
    pub(super) fn drop_waiting(&mut self, durable: Batch) {
        let kept = self.runs.iter().take_while(|run| run.order == 0 && run.batch <= durable).count();
        self.runs.truncate(kept);
    }

    /// Drops the runs from the first on that waits for the disk.
    pub(super) fn drop_stored_later(&mut self, durable: Batch) {
        let kept = self.runs.iter().take_while(|run| run.batch <= durable).count();
        self.runs.truncate(kept);
    }
}

impl Run {
    /// How many messages it says are taken, when everything up to `told_before` was told.
    pub(super) const fn taken_after(self, told_before: u64) -> u64 {
        if self.refused { 0 } else { self.upto - told_before }
    }

    /// The method that tells it, when everything up to `told_before` was told.
    pub(super) fn method(self, told_before: u64) -> Method<'static> {
        let (delivery_tag, multiple) = (self.upto, self.upto - told_before > 1);
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

    fn told(confirms: &mut Confirms) -> Vec<Method<'static>> {
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
        assert_eq!(told(&mut confirms), [ack(3, true), nack(4, false), ack(5, false)]);
        confirms.settle(true, 0, Batch::NONE);
        confirms.settle(true, 0, Batch::NONE);
        assert_eq!(told(&mut confirms), [nack(7, true)]);
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
