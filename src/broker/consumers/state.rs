//! All connections, channels and consumers, and which connections the event loop must process.
//!
//! # Invariants
//! - A record is freed only when nothing refers to it any more.
//! - A cancelled consumer keeps its record until its last unacknowledged message is settled, because the
//!   record tells which queue the message came from.
//! - A closed channel keeps its record until all its deliveries are requeued.

use std::collections::VecDeque;

use leveret_core::command::{ChannelId, ConnectionId, ExchangeId, Name, QueueId, VhostId};
use leveret_core::limits::Limits;
use leveret_core::mem::{Links, List, MessageId, Slab};

use crate::access::Identity;
use crate::state::ChannelCounters;
use crate::state::IndexTable;
use crate::topology::RouteCache;
use crate::waiters::Waiters;

/// Connections, channels and consumers.
#[derive(Debug)]
pub(crate) struct Consumers {
    pub(super) connections: Slab<Connection>,
    pub(super) channels: Slab<Channel>,
    pub(super) slab: Slab<Consumer>,
    /// Consumers by their channel and tag.
    pub(super) table: IndexTable,
    /// Connections whose outbox was empty and is not any more.
    pub(super) output: VecDeque<ConnectionId>,
    /// Connections that are to be closed by force.
    pub(super) forced: VecDeque<ConnectionId>,
    /// Connections with a consumer that was refused because the connection has used up its share of
    /// deliveries.
    pub(super) over_share: Waiters<ConnectionId>,
    /// Approximate maximum number of bytes in the outbox of a connection.
    pub(super) output_budget_bytes: u64,
}

/// How many records of a kind exist, and how many can exist.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fill {
    pub(crate) used: usize,
    pub(crate) max: usize,
}

impl Fill {
    pub(super) const fn of<T>(slab: &Slab<T>) -> Self {
        Self { used: slab.len(), max: slab.len() + slab.room() }
    }

    /// Returns how many more records can exist.
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

    /// Returns an existing connection.
    #[inline]
    pub(crate) fn connection(&self, connection: ConnectionId) -> &Connection {
        &self.connections[connection.index()]
    }

    /// Returns an existing connection mutably.
    #[inline]
    pub(crate) fn connection_mut(&mut self, connection: ConnectionId) -> &mut Connection {
        &mut self.connections[connection.index()]
    }

    /// Returns a connection, if it exists.
    pub(crate) fn find_connection(&self, connection: ConnectionId) -> Option<&Connection> {
        self.connections.get(connection.index())
    }

    /// Returns an existing channel.
    #[inline]
    pub(crate) fn channel(&self, channel: ChannelId) -> &Channel {
        &self.channels[channel.index()]
    }

    /// Returns an existing channel mutably.
    #[inline]
    pub(crate) fn channel_mut(&mut self, channel: ChannelId) -> &mut Channel {
        &mut self.channels[channel.index()]
    }

    /// Returns a channel, if it exists.
    pub(crate) fn find_channel(&self, channel: ChannelId) -> Option<&Channel> {
        self.channels.get(channel.index())
    }

    /// Returns the connection of an existing channel.
    #[inline]
    pub(crate) fn connection_of(&self, channel: ChannelId) -> ConnectionId {
        self.channels[channel.index()].connection
    }

    /// Returns an existing consumer.
    #[inline]
    pub(crate) fn at(&self, consumer: usize) -> &Consumer {
        &self.slab[consumer]
    }

    /// Returns an existing consumer mutably.
    #[inline]
    pub(crate) fn at_mut(&mut self, consumer: usize) -> &mut Consumer {
        &mut self.slab[consumer]
    }

    /// Returns a consumer, if it exists.
    pub(crate) fn get(&self, consumer: usize) -> Option<&Consumer> {
        self.slab.get(consumer)
    }

    // ---- counts

    pub(crate) const fn connections_fill(&self) -> Fill {
        Fill::of(&self.connections)
    }

    pub(crate) const fn channels_fill(&self) -> Fill {
        Fill::of(&self.channels)
    }

    pub(crate) const fn consumers_fill(&self) -> Fill {
        Fill::of(&self.slab)
    }

    /// Returns the number of places of channels that were ever used.
    pub(crate) const fn channel_places(&self) -> usize {
        self.channels.places()
    }

    /// Returns the number of places of consumers that were ever used.
    pub(crate) const fn consumer_places(&self) -> usize {
        self.slab.places()
    }

    /// Returns the number of channels on which something was published.
    pub(crate) fn publishers(&self) -> usize {
        self.channels.iter().filter(|(_, channel)| channel.has_published && !channel.is_closed()).count()
    }

    /// Returns all existing connections.
    pub(crate) fn connection_ids(&self) -> impl Iterator<Item = ConnectionId> + use<> {
        let there: Vec<ConnectionId> =
            self.connections.iter().map(|(index, _)| ConnectionId::from_index(index)).collect();
        there.into_iter()
    }

    // ---- memory

    /// Returns roughly the unused bytes of the pools for which the system holds memory.
    pub(crate) const fn idle_bytes(&self) -> usize {
        self.slab.idle_bytes() + self.channels.idle_bytes() + self.connections.idle_bytes()
    }

    /// Returns unused memory to the system.
    pub(crate) fn trim(&mut self) {
        self.slab.trim();
        self.channels.trim();
        self.connections.trim();
    }
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) identity: Identity,
    pub(crate) vhost: Option<VhostId>,
    /// Why the connection is to be closed by force, if it is.
    pub(super) forced: Option<Box<str>>,
    pub(super) channels: List,
    pub(crate) exclusive_queues: List,
    /// Deliveries that are not completely written, in the order of writing.
    pub(crate) outbox: List,
    pub(crate) outbox_bytes: u64,
    /// Sequence number of the last delivery put into the outbox.
    pub(crate) sequence: u64,
    /// The socket takes more: no unwritten rest waits for it.
    pub(crate) writable: bool,
    /// Consumers that would be eligible if the connection could take more.
    pub(super) parked: List,
    /// Cancelled consumers of whose end the client must be notified (`basic.cancel`).
    pub(super) cancelled: List,
    /// The queue that had used up its share when the connection last had to wait.
    pub(crate) waits_for: Option<FullQueue>,
    /// Number of open transactions that are not empty.
    pub(crate) open_transactions: u32,
    /// The connection has waited too long for the disk: its next publish is refused if it would have to wait
    /// again.
    pub(crate) has_timed_out: bool,
    /// Number of jobs begun by the connection's last command; the connection is not read until they are done.
    pub(crate) jobs: u32,
    /// The connection is on the list of those whose output the turn must process.
    pub(super) noted: bool,
    /// The connection is on the list of those with a consumer that waits for the delivery share.
    pub(super) waits_for_share: bool,
    /// The connection is lost; its deliveries are being requeued.
    pub(crate) is_lost: bool,
    /// The connection's deliveries are all requeued.
    pub(crate) is_cleared: bool,
    /// The socket is closed: the connection's id may be given to another connection.
    pub(crate) is_released: bool,
}

impl Connection {
    /// Returns the number of channels of the connection, closed ones included.
    pub(crate) const fn channels_len(&self) -> u32 {
        self.channels.len()
    }

    /// Returns whether a consumer could take a message if the connection took more.
    pub(crate) const fn has_parked_consumers(&self) -> bool {
        !self.parked.is_empty()
    }

    pub(super) fn new() -> Self {
        Self {
            identity: Identity::default(),
            vhost: None,
            forced: None,
            channels: List::default(),
            exclusive_queues: List::default(),
            outbox: List::default(),
            outbox_bytes: 0,
            sequence: 0,
            writable: true,
            parked: List::default(),
            cancelled: List::default(),
            waits_for: None,
            open_transactions: 0,
            has_timed_out: false,
            jobs: 0,
            noted: false,
            waits_for_share: false,
            is_lost: false,
            is_cleared: false,
            is_released: false,
        }
    }
}

/// A queue that had used up its share when a client wanted to publish to it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FullQueue {
    pub(crate) queue: QueueId,
    /// Serial number of the queue, which distinguishes it from others with the same id.
    pub(crate) serial: u64,
    /// The revision of the routes at that time: with a later one the message may not be routed to this queue.
    pub(crate) revision: u64,
}

/// One channel.
#[derive(Debug)]
pub(crate) struct Channel {
    pub(crate) number: u16,
    pub(crate) connection: ConnectionId,
    pub(crate) vhost: VhostId,
    /// Deliveries waiting for acknowledgement, in the order of their tags; those not yet written are last.
    pub(crate) unacknowledged: List,
    pub(crate) last_tag: u64,
    /// Tag of the last delivery that was written: the end of an acknowledgement of everything (tag 0,
    /// multiple).
    pub(crate) last_sent: u64,
    /// Consumers of the channel, including cancelled ones with unsettled deliveries and the records for
    /// `basic.get`s.
    pub(crate) consumers: List,
    /// `basic.qos` for consumers started from now on; 0 is unlimited.
    pub(crate) prefetch_count: u16,
    /// `basic.qos` with global=true: for all consumers of the channel together; 0 is unlimited.
    pub(crate) global_prefetch_count: u16,
    /// Number of unsettled deliveries to consumers that acknowledge.
    pub(crate) consumer_unsettled: u32,
    pub(crate) mode: Mode,
    pub(crate) route_cache: RouteCache,
    /// The exchange that this channel may publish to, until the topology changes.
    pub(crate) may_write: Option<ExchangeId>,
    /// The revision until which `may_write` holds.
    pub(crate) may_write_until: u64,
    /// A message was published on the channel.
    pub(crate) has_published: bool,
    /// Number of deliveries of the channel still in the outbox.
    pub(crate) outbox_len: u32,
    /// Sequence number of the channel's last delivery in the outbox.
    pub(crate) outbox_last: u64,
    pub(crate) state: ChannelState,
    /// Number of the channel among all that were opened, unique among all channels.
    pub(crate) serial: u64,
    pub(crate) counters: ChannelCounters,
    pub(super) links: Links,
}

impl Channel {
    /// Returns whether the channel is closed, cleared or not.
    pub(crate) const fn is_closed(&self) -> bool {
        !matches!(self.state, ChannelState::Open)
    }

    pub(super) fn new(number: u16, connection: ConnectionId, vhost: VhostId) -> Self {
        Self {
            number,
            connection,
            vhost,
            unacknowledged: List::default(),
            last_tag: 0,
            last_sent: 0,
            consumers: List::default(),
            prefetch_count: 0,
            global_prefetch_count: 0,
            consumer_unsettled: 0,
            mode: Mode::Plain,
            route_cache: RouteCache::default(),
            may_write: None,
            may_write_until: 0,
            has_published: false,
            outbox_len: 0,
            outbox_last: 0,
            state: ChannelState::Open,
            serial: 0,
            counters: ChannelCounters::default(),
            links: Links::default(),
        }
    }
}

/// The state of a channel's record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ChannelState {
    /// The channel is open.
    Open,
    /// The channel is closed: nothing new starts, and its deliveries are being requeued.
    Closing,
    /// The channel's deliveries are all requeued: the record is freed when the outbox no longer refers to it.
    Cleared,
}

/// The mode of a channel: confirms and transactions exclude each other.
#[derive(Debug)]
pub(crate) enum Mode {
    Plain,
    Confirm,
    Transaction(Transaction),
}

/// An open transaction.
#[derive(Debug, Default)]
pub(crate) struct Transaction {
    /// The first published message. Each is linked to the next through its slot, behind its route if it has
    /// one.
    pub(crate) first: Option<MessageId>,
    pub(crate) last: Option<MessageId>,
    /// Number of messages that were published.
    pub(crate) messages: u32,
    /// Number of slots that messages and their routes occupy.
    pub(crate) held: u32,
    /// Bytes of blocks that messages and their routes occupy.
    pub(crate) bytes: u64,
    /// When something was last added to the transaction, in seconds since the start of the process.
    pub(crate) touched_s: u32,
    /// Deliveries whose settlement is part of the transaction.
    pub(crate) settlements: List,
}

impl Transaction {
    pub(crate) const fn is_empty(&self) -> bool {
        self.messages == 0 && self.settlements.is_empty()
    }
}

/// The state of a consumer record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ConsumerState {
    /// The consumer takes messages.
    Active,
    /// The consumer takes no more messages, but still has unsettled deliveries.
    Cancelled,
    /// Not a consumer: represents the `basic.get`s of a channel from one queue.
    Get,
}

/// One consumer.
#[derive(Debug)]
pub(crate) struct Consumer {
    pub(crate) tag: Name,
    pub(crate) channel: ChannelId,
    pub(crate) queue: QueueId,
    pub(crate) state: ConsumerState,
    pub(crate) no_ack: bool,
    pub(crate) exclusive: bool,
    pub(crate) priority: i32,
    /// The consumer's prefetch; 0 is unlimited.
    pub(crate) prefetch_count: u16,
    /// Number of unsettled deliveries; for a consumer with automatic acknowledgement, of those not yet
    /// written.
    pub(crate) unsettled: u32,
    /// The consumer is on its queue's list of those that can take a message now.
    pub(super) eligible: bool,
    /// The consumer is on its connection's list of those waiting for capacity in the output.
    pub(super) parked: bool,
    /// The consumer is on its connection's list of cancellations for the client.
    pub(crate) needs_cancel_notice: bool,
    /// The consumer counts in its queue's `returning`: its messages are being requeued.
    pub(crate) returning: bool,
    pub(super) channel_links: Links,
    pub(super) queue_links: Links,
    pub(super) eligible_links: Links,
    /// Links in the connection's list of parked or of cancelled consumers; never of both.
    pub(super) connection_links: Links,
}

impl Consumer {
    pub(super) fn new(channel: ChannelId, queue: QueueId, state: ConsumerState) -> Self {
        Self {
            tag: Name::new(),
            channel,
            queue,
            state,
            no_ack: false,
            exclusive: false,
            priority: 0,
            prefetch_count: 0,
            unsettled: 0,
            eligible: false,
            parked: false,
            needs_cancel_notice: false,
            returning: false,
            channel_links: Links::default(),
            queue_links: Links::default(),
            eligible_links: Links::default(),
            connection_links: Links::default(),
        }
    }
}
