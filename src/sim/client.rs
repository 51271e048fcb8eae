//! A client in memory: what it has open, what it waits for, what it has not settled yet.
//!
//! Always true: it asks for nothing while it waits for an answer, as a connection of the broker does; its
//! `outbox` is what the broker's outbox for it holds.

use std::collections::{BTreeMap, VecDeque};

use crate::command::{ChannelId, ConnectionId, ReplyOrder, Settlement};
use crate::journal::Batch;
use crate::mem::MessageId;

use super::model::{Arrival, Key, Number};

/// A message in a queue.
pub(super) type Place = (Number, Arrival);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mode {
    Plain,
    Confirm,
    Transaction,
}

/// A message as it was or will be published.
#[derive(Clone, Debug)]
pub(super) struct Content {
    pub(super) number: u64,
    pub(super) exchange: String,
    pub(super) key: String,
    pub(super) persistent: bool,
    pub(super) mandatory: bool,
    pub(super) len: u32,
}

#[derive(Debug)]
pub(super) struct Channel {
    pub(super) id: ChannelId,
    pub(super) number: u16,
    pub(super) mode: Mode,
    /// Published and not confirmed: content, batch, and the deliveries before it.
    pub(super) unconfirmed: VecDeque<(u64, Batch, ReplyOrder)>,
    /// Deliveries that the client has and has not settled.
    pub(super) unsettled: BTreeMap<u64, Place>,
    /// What the open transaction holds.
    pub(super) published: Vec<Content>,
    pub(super) decided: Vec<(u64, Place, Settlement)>,
}

/// A delivery that was not written yet.
#[derive(Debug)]
pub(super) struct Unsent {
    pub(super) sequence: u64,
    pub(super) channel: u16,
    pub(super) tag: u64,
    /// `None` for a message that is returned.
    pub(super) place: Option<Place>,
    pub(super) no_ack: bool,
    /// Its channel was closed while it was half written.
    pub(super) orphaned: bool,
}

/// What a client is told when its answer comes.
#[derive(Debug)]
pub(super) enum Reply {
    /// This definition is as it was said then.
    Defined(Key, u64),
    /// A transaction is safe: contents and settlements.
    Committed(Vec<u64>, Vec<Place>),
}

#[derive(Debug)]
pub(super) enum Waiting {
    No,
    /// To publish this, which may have been taken into memory already.
    Room(u16, Content, Option<MessageId>),
    Disk(Batch, Reply),
    /// For a get.
    Job,
}

#[derive(Debug)]
pub(super) struct Client {
    pub(super) id: ConnectionId,
    pub(super) channels: Vec<Channel>,
    pub(super) next_channel: u16,
    pub(super) waiting: Waiting,
    /// By channel and tag: the queue, and whether deliveries need no settlement.
    pub(super) consumers: BTreeMap<(u16, String), (Number, bool)>,
    /// The queue of the get under way.
    pub(super) getting: Option<(Number, bool)>,
    pub(super) outbox: VecDeque<Unsent>,
    pub(super) last_sequence: u64,
    /// It reads seldom.
    pub(super) is_slow: bool,
}

impl Client {
    pub(super) const fn new(id: ConnectionId, is_slow: bool) -> Self {
        Self {
            id,
            channels: Vec::new(),
            next_channel: 0,
            waiting: Waiting::No,
            consumers: BTreeMap::new(),
            getting: None,
            outbox: VecDeque::new(),
            last_sequence: 0,
            is_slow,
        }
    }

    pub(super) fn channel(&mut self, number: u16) -> Option<&mut Channel> {
        self.channels.iter_mut().find(|channel| channel.number == number)
    }

    pub(super) const fn is_waiting(&self) -> bool {
        !matches!(self.waiting, Waiting::No)
    }
}

impl Channel {
    pub(super) const fn new(id: ChannelId, number: u16, mode: Mode) -> Self {
        Self {
            id,
            number,
            mode,
            unconfirmed: VecDeque::new(),
            unsettled: BTreeMap::new(),
            published: Vec::new(),
            decided: Vec::new(),
        }
    }
}

/// The bytes of a body: they begin with its number, if they are enough.
pub(super) fn body_of(number: u64, len: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len as usize + 8);
    bytes.extend_from_slice(&number.to_le_bytes());
    let mut state = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    while bytes.len() < len as usize {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate((len as usize).max(8));
    bytes
}

/// The content that a body was made for; its bytes are to be compared besides.
pub(super) fn number_of(body: &[u8]) -> u64 {
    let first = body.first_chunk::<8>().copied().unwrap_or_default();
    u64::from_le_bytes(first)
}

/// The properties of a message.
pub(super) const fn properties_of(persistent: bool) -> &'static [u8] {
    if persistent { &[0x10, 0, 2] } else { &[0, 0] }
}
