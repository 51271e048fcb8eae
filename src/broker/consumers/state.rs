//! All connections, channels and consumers, and which connections the loop is to look at.
//!
//! Always true: a record is freed only when nothing refers to it any more.

use std::collections::VecDeque;

use super::records::{Channel, Connection, Consumer};
use crate::names::IndexTable;
use crate::waiters::Waiters;
use leveret_core::command::{ChannelId, ConnectionId};
use leveret_core::limits::Limits;
use leveret_core::mem::Slab;

/// Connections, channels and consumers.
#[derive(Debug)]
pub(crate) struct Consumers {
    pub(super) connections: Slab<Connection>,
    pub(super) channels: Slab<Channel>,
    pub(super) slab: Slab<Consumer>,
    /// Consumers by their channel and tag.
    pub(super) table: IndexTable,
    /// Connections whose outbox was empty and is no longer.
    pub(super) output: VecDeque<ConnectionId>,
    /// Connections that are to be closed by force.
    pub(super) forced: VecDeque<ConnectionId>,
    /// Connections with a consumer that was refused because the connection has used up its share of
    /// deliveries.
    pub(super) over_share: Waiters<ConnectionId>,
    /// Bytes that the outbox of a connection holds at most, about.
    pub(super) output_budget_bytes: u64,
}

/// How many records of a kind there are, and how many there can be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fill {
    pub(crate) used: usize,
    pub(crate) max: usize,
}

impl Fill {
    pub(super) const fn of<T>(slab: &Slab<T>) -> Self {
        Self { used: slab.len(), max: slab.len() + slab.room() }
    }

    /// How many more records there can be.
    pub(crate) const fn room(self) -> usize {
        self.max - self.used
    }
}

impl Consumers {
    pub(crate) fn new(limits: &Limits, seed: u64) -> Self {
        let (connections, consumers) = (limits.connection_records(), limits.consumers_max as usize);
        let channels = limits.channels_max as usize + limits.bridge_links() + limits.bridges_max as usize;
        Self {
            connections: Slab::with_capacity(connections),
            channels: Slab::with_capacity(channels),
            slab: Slab::with_capacity(consumers),
            table: IndexTable::with_capacity(consumers, seed),
            output: VecDeque::with_capacity(connections),
            forced: VecDeque::with_capacity(limits.connections_max as usize),
            over_share: Waiters::with_capacity(connections),
            output_budget_bytes: u64::from(limits.output_buffer_bytes),
        }
    }

    // ---- records

    /// An existing connection.
    #[inline]
    pub(crate) fn connection(&self, connection: ConnectionId) -> &Connection {
        &self.connections[connection.index()]
    }

    /// An existing connection, to be changed.
    #[inline]
    pub(crate) fn connection_mut(&mut self, connection: ConnectionId) -> &mut Connection {
        &mut self.connections[connection.index()]
    }

    /// A connection, if it exists.
    pub(crate) fn find_connection(&self, connection: ConnectionId) -> Option<&Connection> {
        self.connections.get(connection.index())
    }

    /// An existing channel.
    #[inline]
    pub(crate) fn channel(&self, channel: ChannelId) -> &Channel {
        &self.channels[channel.index()]
    }

    /// An existing channel, to be changed.
    #[inline]
    pub(crate) fn channel_mut(&mut self, channel: ChannelId) -> &mut Channel {
        &mut self.channels[channel.index()]
    }

    /// A channel, if it exists.
    pub(crate) fn find_channel(&self, channel: ChannelId) -> Option<&Channel> {
        self.channels.get(channel.index())
    }

    /// The connection of an existing channel.
    #[inline]
    pub(crate) fn connection_of(&self, channel: ChannelId) -> ConnectionId {
        self.channels[channel.index()].connection
    }

    /// An existing consumer.
    #[inline]
    pub(crate) fn at(&self, consumer: usize) -> &Consumer {
        &self.slab[consumer]
    }

    /// An existing consumer, to be changed.
    #[inline]
    pub(crate) fn at_mut(&mut self, consumer: usize) -> &mut Consumer {
        &mut self.slab[consumer]
    }

    /// A consumer, if it exists.
    pub(crate) fn get(&self, consumer: usize) -> Option<&Consumer> {
        self.slab.get(consumer)
    }

    // ---- how many there are

    pub(crate) const fn connections_fill(&self) -> Fill {
        Fill::of(&self.connections)
    }

    pub(crate) const fn channels_fill(&self) -> Fill {
        Fill::of(&self.channels)
    }

    pub(crate) const fn consumers_fill(&self) -> Fill {
        Fill::of(&self.slab)
    }

    /// Places of channels that were ever used.
    pub(crate) const fn channel_places(&self) -> usize {
        self.channels.places()
    }

    /// Places of consumers that were ever used.
    pub(crate) const fn consumer_places(&self) -> usize {
        self.slab.places()
    }

    /// Channels on which something was published.
    pub(crate) fn publishers(&self) -> usize {
        self.channels.iter().filter(|(_, channel)| channel.has_published && !channel.closing).count()
    }

    /// All existing connections.
    pub(crate) fn connection_ids(&self) -> impl Iterator<Item = ConnectionId> + use<> {
        let there: Vec<ConnectionId> =
            self.connections.iter().map(|(index, _)| ConnectionId::from_index(index)).collect();
        there.into_iter()
    }

    // ---- memory

    /// Bytes of the pools that nobody uses and the system holds memory for, about.
    pub(crate) const fn idle_bytes(&self) -> usize {
        self.slab.idle_bytes() + self.channels.idle_bytes() + self.connections.idle_bytes()
    }

    /// Gives idle memory back.
    pub(crate) fn trim(&mut self) {
        self.slab.trim();
        self.channels.trim();
        self.connections.trim();
    }
}
