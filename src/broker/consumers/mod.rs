//! The records of connections, channels and consumers, and the choice of the consumer for the next message of
//! a queue.
//!
//! Of the consumers of a queue that can take a message, those with the highest priority get its messages in
//! turn. A consumer is left out while its prefetch, the socket of its connection, or the connection's share of
//! deliveries does not allow another message.
//!
//! | file | content |
//! |---|---|
//! | `mod` | the records; starting and ending consumers; opening and freeing channels and connections |
//! | `login` | the commands that open a connection: the login, the virtual host, the channels |
//! | `commands` | the commands about consumers and the mode of their channel |
//! | `credit` | checks whether a consumer can take another message; the lists of eligible and paused consumers |
//! | `outbox` | deliveries that are not written to the socket yet, and unacknowledged deliveries of a channel |
//!
//! # Invariants
//! - A consumer that can take a message is on its queue's list of eligible consumers, unless it waits behind a
//!   single active consumer. A consumer with credit whose connection takes no more is on the connection's list
//!   of paused consumers. All others are on neither list.
//! - A record is freed only when no other record refers to it.

mod commands;
mod credit;
mod login;
mod outbox;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use leveret_core::command::{
    ChannelId, ConnectionId, ExchangeId, Name, QueueId, ReplyOrder, SessionId, VhostId,
};
use leveret_core::error::{Fault, ReplyCode, no_memory_for};
use leveret_core::limits::Limits;
use leveret_core::mem::{Class, IndexTable, Links, List, Memory, MessageId, Slab};
use leveret_core::quota::{Pool, Quota};
use leveret_core::work::Work;
use leveret_queues::{Queues, RetryList};
use leveret_routing::RouteCache;

use crate::access::Identity;
use crate::counters::ChannelCounters;
use crate::state::{CHANNEL_SIDE_BYTES, CONNECTION_SIDE_BYTES};

pub(crate) use commands::ConsumeRequest;

/// Connections, channels and consumers.
///
/// # Invariants
/// - A record is freed only when no other record refers to it.
/// - A consumer is on its channel's list until its record is freed, and on its queue's list only while it is
///   active.
/// - A cancelled consumer keeps its record until its last unacknowledged message is settled, because the
///   record has the queue of the message.
/// - A closed channel keeps its record until all its deliveries are requeued.
/// - The client is notified of every consumer that the broker ends (`basic.cancel`).
#[derive(Debug)]
pub(crate) struct Consumers {
    connections: Slab<Connection>,
    channels: Slab<Channel>,
    slab: Slab<Consumer>,
    /// Consumers by their channel and tag.
    table: IndexTable,
    /// Connections whose output must be processed in this turn.
    output: VecDeque<ConnectionId>,
    /// Connections that must be closed by force.
    forced: VecDeque<ConnectionId>,
    /// Connections that have paused consumers because they have used up their share of deliveries.
    over_share: RetryList<ConnectionId>,
    /// Approximate maximum number of bytes in the outbox of a connection.
    output_budget_bytes: u64,
}

/// The number of records of a type.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fill {
    /// Number of existing records.
    pub(crate) used: usize,
    /// Maximum number of records.
    pub(crate) max: usize,
}

impl Fill {
    /// Returns the same with fewer records, which are not shown to operators.
    pub(crate) fn without(self, spare: usize) -> Self {
        let max = self.max.saturating_sub(spare);
        Self { used: self.used.min(max), max }
    }

    fn of<T>(slab: &Slab<T>) -> Self {
        Self { used: slab.len(), max: slab.len() + slab.free_count() }
    }

    /// Returns how many more records can exist.
    pub(crate) const fn free_count(self) -> usize {
        self.max - self.used
    }
}

impl Consumers {
    pub(crate) fn new(limits: &Limits, memory: &Memory, seed: u64) -> Self {
        let (connections, consumers) = (limits.connection_records(), limits.consumers_max as usize);
        let channels = limits.channels_max as usize + limits.bridge_links() + limits.bridges_max as usize;
        Self {
            connections: Slab::in_memory(connections, memory, Class::Clients)
                .with_side_bytes(CONNECTION_SIDE_BYTES),
            channels: Slab::in_memory(channels, memory, Class::Clients).with_side_bytes(CHANNEL_SIDE_BYTES),
            slab: Slab::in_memory(consumers, memory, Class::Clients),
            table: IndexTable::in_memory(consumers, memory, Class::Clients, seed),
            output: VecDeque::with_capacity(connections),
            forced: VecDeque::with_capacity(limits.connection_places() as usize),
            over_share: RetryList::with_capacity(connections),
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

    /// Returns a connection; `None` if there is none.
    pub(crate) fn find_connection_mut(&mut self, connection: ConnectionId) -> Option<&mut Connection> {
        self.connections.get_mut(connection.index())
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

    pub(crate) fn connections_fill(&self) -> Fill {
        Fill::of(&self.connections)
    }

    pub(crate) fn channels_fill(&self) -> Fill {
        Fill::of(&self.channels)
    }

    pub(crate) fn consumers_fill(&self) -> Fill {
        Fill::of(&self.slab)
    }

    /// Returns the upper bound of the indices of channels: the number of indices ever used.
    pub(crate) const fn channel_places(&self) -> usize {
        self.channels.places()
    }

    /// Returns the upper bound of the indices of consumers: the number of indices ever used.
    pub(crate) const fn consumer_places(&self) -> usize {
        self.slab.places()
    }

    /// Returns the number of open channels on which a message was published.
    pub(crate) fn publishers(&self) -> usize {
        self.channels.iter().filter(|(_, channel)| channel.has_published && !channel.is_closed()).count()
    }

    /// Returns all existing connections.
    pub(crate) fn connection_ids(&self) -> impl Iterator<Item = ConnectionId> + use<> {
        let existing: Vec<ConnectionId> =
            self.connections.iter().map(|(index, _)| ConnectionId::from_index(index)).collect();
        existing.into_iter()
    }

    // ---- memory

    /// Returns roughly the bytes of the pools that are unused but not returned to the operating system.
    pub(crate) const fn idle_bytes(&self) -> usize {
        self.slab.idle_bytes() + self.channels.idle_bytes() + self.connections.idle_bytes()
    }

    /// Returns the number of connections that there can be: every index is below it.
    pub(crate) const fn connections_capacity(&self) -> usize {
        self.connections.capacity()
    }

    /// Returns whether a connection is closed whose record still exists.
    pub(crate) fn is_clearing_connections(&self) -> bool {
        self.connections.iter().any(|(_, connection)| connection.is_released)
    }

    /// Returns whether there are records for `count` more connections, but no memory for them.
    pub(crate) fn lacks_memory_for_connections(&self, count: usize) -> bool {
        let records_free = self.connections.capacity() - self.connections.len();
        self.connections.free_count() < count.min(records_free)
    }

    /// Charges `bytes` of memory for each connection in addition.
    pub(crate) fn add_connection_bytes(&mut self, bytes: usize) {
        self.connections.add_side_bytes(bytes);
    }

    /// Returns unused memory to the operating system.
    pub(crate) fn trim(&mut self) {
        self.slab.trim();
        self.table.trim(self.slab.touched());
        self.channels.trim();
        self.connections.trim();
    }
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) identity: Identity,
    pub(crate) vhost: Option<VhostId>,
    /// The session of an MQTT client.
    pub(crate) session: Option<SessionId>,
    /// The fault with which the connection must be closed by force; `None` if it need not be.
    forced: Option<Fault>,
    channels: List,
    pub(crate) exclusive_queues: List,
    /// Deliveries that are not completely written, in the order of writing.
    pub(crate) outbox: List,
    pub(crate) outbox_bytes: u64,
    /// Sequence number of the last delivery put into the outbox.
    pub(crate) sequence: u64,
    /// The socket can take more output: everything written so far has left.
    pub(crate) writable: bool,
    /// Consumers with credit that are not eligible because the connection takes no more messages.
    paused: List,
    /// Cancelled consumers for which the client must get a `basic.cancel`.
    cancelled: List,
    /// The full queue for which the connection's publish waits, if it waits for a queue.
    pub(crate) waits_for: Option<FullQueue>,
    /// How long the answers to this connection's messages have waited for MQTT clients that do not keep up; `None` if they never
    /// have.
    pub(crate) client_wait: Option<Box<ClientWait>>,
    /// The message with RETAIN whose content was written, and which is not published yet.
    pub(crate) retained_first: Option<MessageId>,
    /// Number of open transactions that are not empty.
    pub(crate) open_transactions: u32,
    /// The connection has waited too long for the disk: its next publish is refused instead of waiting again.
    pub(crate) has_timed_out: bool,
    /// What became of the next publish, if an assertion asks for that.
    #[cfg(debug_assertions)]
    pub(crate) watched_publish: WatchedPublish,
    /// Number of jobs begun by the connection's last command; the connection is not read until they are done.
    pub(crate) jobs: u32,
    /// The connection is in `Consumers::output`.
    is_on_output_list: bool,
    /// The connection is in `Consumers::over_share`.
    waits_for_share: bool,
    /// The connection is lost; its deliveries are being requeued.
    pub(crate) is_lost: bool,
    /// The connection's deliveries are all requeued.
    pub(crate) is_cleared: bool,
    /// The socket is closed: the connection's id may be given to another connection.
    pub(crate) is_released: bool,
}

/// The waiting of a publisher for MQTT clients that do not keep up. Times are broker time in milliseconds.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct ClientWait {
    /// The queue of the client for which the publisher waits now.
    pub(crate) queue: Option<QueueId>,
    pub(crate) since_ms: u64,
    /// When the period began in which `waited_ms` is counted.
    pub(crate) period_ms: u64,
    pub(crate) waited_ms: u64,
}

/// What became of a connection's next publish; see [`Broker::watch_publish`](crate::Broker::watch_publish).
#[cfg(debug_assertions)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum WatchedPublish {
    /// The publish is not watched, or was not refused.
    No,
    /// There was no publish yet.
    Awaited,
    Refused,
}

impl Connection {
    /// Returns the number of channels of the connection, closed ones included.
    pub(crate) const fn channels_len(&self) -> u32 {
        self.channels.len()
    }

    /// Returns whether any consumer of the connection is paused.
    pub(crate) const fn has_paused_consumers(&self) -> bool {
        !self.paused.is_empty()
    }

    fn new() -> Self {
        Self {
            identity: Identity::default(),
            vhost: None,
            session: None,
            forced: None,
            channels: List::default(),
            exclusive_queues: List::default(),
            outbox: List::default(),
            outbox_bytes: 0,
            sequence: 0,
            writable: true,
            paused: List::default(),
            cancelled: List::default(),
            waits_for: None,
            client_wait: None,
            retained_first: None,
            open_transactions: 0,
            has_timed_out: false,
            #[cfg(debug_assertions)]
            watched_publish: WatchedPublish::No,
            jobs: 0,
            is_on_output_list: false,
            waits_for_share: false,
            is_lost: false,
            is_cleared: false,
            is_released: false,
        }
    }
}

/// Returns the fault for a connection that an operator closes, with this reason.
pub(crate) fn forced(reason: &str) -> Fault {
    Fault::connection(ReplyCode::ConnectionForced, format_args!("{reason}"))
}

/// A queue that had used up its share of the memory when a publish had to wait.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FullQueue {
    pub(crate) queue: QueueId,
    /// Serial number of the queue, which distinguishes it from others with the same id.
    pub(crate) serial: u64,
    /// The revision of routes and permissions at that time. With a later revision the message may not be
    /// routed to this queue.
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
    /// Tag of the last delivery that was written. An acknowledgement of all deliveries (tag 0, multiple) ends
    /// there.
    pub(crate) last_sent: u64,
    /// Consumers of the channel, including cancelled ones with unsettled deliveries and the records for
    /// `basic.get`s.
    pub(crate) consumers: List,
    /// The prefetch from `basic.qos` for consumers that are started later; 0 is unlimited.
    pub(crate) prefetch_count: u16,
    /// The prefetch from `basic.qos` with global=true, for all consumers of the channel together; 0 is
    /// unlimited.
    pub(crate) global_prefetch_count: u16,
    /// Number of unsettled deliveries to consumers with manual acknowledgement.
    pub(crate) consumer_unsettled: u32,
    pub(crate) mode: Mode,
    pub(crate) route_cache: RouteCache,
    /// The exchange to which this channel was last allowed to publish. Valid while the revision is
    /// `may_write_until`.
    pub(crate) may_write: Option<ExchangeId>,
    /// The revision for which `may_write` is valid.
    pub(crate) may_write_until: u64,
    /// A message was published on the channel.
    pub(crate) has_published: bool,
    /// Number of deliveries of the channel still in the outbox.
    pub(crate) outbox_len: u32,
    /// Sequence number of the channel's last delivery in the outbox.
    pub(crate) outbox_last: u64,
    pub(crate) state: ChannelState,
    /// Number of the channel, unique among all channels ever opened.
    pub(crate) serial: u64,
    pub(crate) counters: ChannelCounters,
    links: Links,
}

impl Channel {
    /// Returns whether the channel is closed, cleared or not.
    pub(crate) const fn is_closed(&self) -> bool {
        !matches!(self.state, ChannelState::Open)
    }

    fn new(number: u16, connection: ConnectionId, vhost: VhostId) -> Self {
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
    /// The channel is closed. It accepts no commands, and a job requeues its deliveries.
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
    /// The first published message. Each message is linked to its route, if it has one, and that to the next
    /// message.
    pub(crate) first: Option<MessageId>,
    pub(crate) last: Option<MessageId>,
    /// Number of messages that were published.
    pub(crate) messages: u32,
    /// Number of message slots that the messages and their routes occupy.
    pub(crate) slots: u32,
    /// Bytes of blocks that messages and their routes occupy.
    pub(crate) bytes: u64,
    /// When a message or settlement was last added, in seconds since the start of the process.
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
    /// Not a consumer: the record counts the deliveries by `basic.get` of a channel from one queue.
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
    /// Number of unsettled deliveries. With automatic acknowledgement a delivery is settled when it is
    /// written.
    pub(crate) unsettled: u32,
    /// Number of unsettled deliveries that the client must acknowledge: those that the prefetch limits.
    pub(crate) unacknowledged: u32,
    /// The consumer of an MQTT session gets no message, because too many exchanges of packets are not complete.
    pub(crate) is_held: bool,
    /// The consumer is on its queue's list of eligible consumers.
    is_eligible: bool,
    /// The consumer is on its connection's list of paused consumers.
    is_paused: bool,
    /// The consumer is on its connection's list of cancelled consumers for which the client must get a
    /// `basic.cancel`.
    pub(crate) needs_cancel_notice: bool,
    /// The consumer's messages are being requeued. Its queue counts this in `blocking_jobs`.
    pub(crate) is_requeueing: bool,
    channel_links: Links,
    queue_links: Links,
    eligible_links: Links,
    /// Links in the connection's list of paused or of cancelled consumers; never of both.
    connection_links: Links,
}

impl Consumer {
    fn new(channel: ChannelId, queue: QueueId, state: ConsumerState) -> Self {
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
            unacknowledged: 0,
            is_held: false,
            is_eligible: false,
            is_paused: false,
            needs_cancel_notice: false,
            is_requeueing: false,
            channel_links: Links::default(),
            queue_links: Links::default(),
            eligible_links: Links::default(),
            connection_links: Links::default(),
        }
    }
}

/// The properties of a consumer to be started.
pub(crate) struct NewConsumer {
    pub(crate) tag: Name,
    pub(crate) priority: i32,
    pub(crate) no_ack: bool,
    pub(crate) exclusive: bool,
}

impl Consumers {
    // ---- consumers

    /// Returns the consumer of a channel that has this tag.
    pub(crate) fn find(&self, channel: ChannelId, tag: &str) -> Option<usize> {
        let is_it = |index: usize| self.slab[index].channel == channel && self.slab[index].tag == tag;
        self.table.find((channel, tag), is_it)
    }

    /// Adds a consumer record to its channel's list: for a consumer that [`Self::start`] will start, or for
    /// the `basic.get`s of the channel from this queue. Returns its index.
    ///
    /// # Errors
    /// There is no capacity, or the connection has used up its share.
    pub(crate) fn add(
        &mut self,
        quota: &mut Quota,
        channel: ChannelId,
        queue: QueueId,
        state: ConsumerState,
    ) -> Result<usize, Fault> {
        let connection = self.connection_of(channel);
        self.check_capacity(quota, connection)?;
        let record = Consumer::new(channel, queue, state);
        let index = self.slab.insert(record);
        let index = index.map_err(|_| no_memory_for("another consumer"))?;
        quota.take(connection, Pool::Consumers);
        let list = &mut self.channels[channel.index()].consumers;
        list.push_back(&mut self.slab, index, |consumer| &mut consumer.channel_links);
        Ok(index)
    }

    /// Checks whether this connection may have one consumer more.
    ///
    /// # Errors
    /// There is no capacity, or the connection has used up its share.
    pub(crate) fn check_capacity(&self, quota: &mut Quota, connection: ConnectionId) -> Result<(), Fault> {
        quota.check_share(connection, Pool::Consumers, self.slab.free_count())?;
        match self.slab.free_count() {
            0 => Err(no_memory_for("another consumer")),
            _ => Ok(()),
        }
    }

    /// Starts a consumer that was added: it can now take messages.
    pub(crate) fn start(&mut self, work: &mut Work, queues: &mut Queues, index: usize, new: NewConsumer) {
        let (channel, queue) = (self.slab[index].channel, self.slab[index].queue);
        self.table.insert((channel, new.tag.as_str()), index, self.slab.touched());
        let record = &mut self.slab[index];
        record.prefetch_count = self.channels[channel.index()].prefetch_count;
        (record.tag, record.priority) = (new.tag, new.priority);
        (record.no_ack, record.exclusive) = (new.no_ack, new.exclusive);
        queues.records_mut().queue_consumers_mut(queue).has_exclusive |= new.exclusive;
        self.enter_queue(work, queues, index);
        self.make_eligible(work, queues, index);
    }

    /// Puts a consumer on its queue's list. In a queue with a single active consumer, the active one stays
    /// the first. The others are behind it by priority, in the order in which they will become active.
    fn enter_queue(&mut self, work: &mut Work, queues: &mut Queues, index: usize) {
        let queue_consumers = queues.records_mut().queue_consumers_mut(self.slab[index].queue);
        let mut after = queue_consumers.all.back();
        if let Some(active) = queue_consumers.single_active() {
            let priority = self.slab[index].priority;
            while let Some(other) = after.filter(|&other| other != active) {
                if self.slab[other].priority >= priority {
                    break;
                }
                work.charge(1);
                after = List::before(&self.slab, other, |consumer| &consumer.queue_links);
            }
        }
        queue_consumers.all.insert_after(&mut self.slab, after, index, |consumer| &mut consumer.queue_links);
    }

    /// Ends a consumer. Returns its queue if the consumer was active.
    pub(crate) fn end(&mut self, work: &mut Work, queues: &mut Queues, index: usize) -> Option<QueueId> {
        if self.slab[index].state != ConsumerState::Active {
            return None;
        }
        self.leave_eligible(queues, index);
        self.leave_paused(index);
        let consumer = &mut self.slab[index];
        consumer.state = ConsumerState::Cancelled;
        let (queue, channel, exclusive) = (consumer.queue, consumer.channel, consumer.exclusive);
        self.table.remove((channel, self.slab[index].tag.as_str()), index);
        let queue_consumers = queues.records_mut().queue_consumers_mut(queue);
        queue_consumers.all.remove(&mut self.slab, index, |consumer| &mut consumer.queue_links);
        queue_consumers.has_exclusive &= !exclusive;
        if let Some(next) = queue_consumers.single_active() {
            self.make_eligible(work, queues, next);
        }
        Some(queue)
    }

    /// Frees the record of an ended consumer if no delivery or notification refers to it. Returns its queue
    /// if the consumer was marked as requeueing: the caller ends the queue's blocking job.
    pub(crate) fn free_if_done(&mut self, quota: &mut Quota, index: usize) -> Option<QueueId> {
        // The record may have been freed already: callers also check consumers that they do not refer to any
        // more.
        let consumer = self.slab.get(index)?;
        if consumer.unsettled > 0 || consumer.state == ConsumerState::Active || consumer.needs_cancel_notice {
            return None;
        }
        let channel = consumer.channel;
        let list = &mut self.channels[channel.index()].consumers;
        list.remove(&mut self.slab, index, |consumer| &mut consumer.channel_links);
        let consumer = self.slab.remove(index);
        quota.give_back(self.connection_of(channel), Pool::Consumers);
        consumer.is_requeueing.then_some(consumer.queue)
    }

    /// Returns the first consumer of a channel, or the one behind `after`. Includes cancelled ones with
    /// unsettled deliveries and the records for `basic.get`s.
    pub(crate) fn next_of_channel(&self, channel: ChannelId, after: Option<usize>) -> Option<usize> {
        match after {
            None => self.channels[channel.index()].consumers.front(),
            Some(index) => List::after(&self.slab, index, |consumer| &consumer.channel_links),
        }
    }

    /// Returns the number of active consumers of a channel.
    pub(crate) fn active_on(&self, channel: ChannelId) -> u32 {
        let (mut count, mut at) = (0, self.next_of_channel(channel, None));
        while let Some(index) = at {
            count += u32::from(self.slab[index].state == ConsumerState::Active);
            at = self.next_of_channel(channel, Some(index));
        }
        count
    }

    // ---- consumers cancelled by the broker

    /// Puts an ended consumer, whose queue is deleted, on the list of those for which the client must get a
    /// `basic.cancel`.
    pub(crate) fn note_cancelled(&mut self, index: usize) {
        let connection = self.connection_of(self.slab[index].channel);
        let record = &mut self.connections[connection.index()];
        if !record.is_lost {
            record.cancelled.push_back(&mut self.slab, index, |consumer| &mut consumer.connection_links);
            self.slab[index].needs_cancel_notice = true;
            self.note_output(connection);
        }
    }

    /// Returns the consumer of a channel with this tag that the broker has ended and whose client has not
    /// been notified yet.
    pub(crate) fn find_cancelled(&self, channel: ChannelId, tag: &str) -> Option<usize> {
        let connection = self.connection_of(channel);
        let mut at = self.connections[connection.index()].cancelled.front();
        while let Some(index) = at {
            if self.slab[index].channel == channel && self.slab[index].tag == tag {
                return Some(index);
            }
            at = List::after(&self.slab, index, |consumer| &consumer.connection_links);
        }
        None
    }

    /// Returns the first consumer of a connection for which the client must get a `basic.cancel`.
    pub(crate) fn first_cancelled(&self, connection: ConnectionId) -> Option<usize> {
        self.connections.get(connection.index())?.cancelled.front()
    }

    /// Returns the next `basic.cancel` that the client must get: channel number, consumer tag, and the
    /// position of the method among the connection's deliveries.
    pub(crate) fn next_cancelled(&self, connection: ConnectionId) -> Option<(u16, &str, ReplyOrder)> {
        let consumer = &self.slab[self.first_cancelled(connection)?];
        let order = self.reply_order(connection, Some(consumer.channel));
        Some((self.channels[consumer.channel.index()].number, &consumer.tag, order))
    }

    /// Removes a consumer from the list of those for which the client must get a `basic.cancel`.
    pub(crate) fn leave_cancelled(&mut self, index: usize) {
        if core::mem::take(&mut self.slab[index].needs_cancel_notice) {
            let connection = self.connection_of(self.slab[index].channel);
            let list = &mut self.connections[connection.index()].cancelled;
            list.remove(&mut self.slab, index, |consumer| &mut consumer.connection_links);
        }
    }

    // ---- messages being requeued

    /// Marks the consumers of a channel before a job requeues their messages. Their queues deliver nothing
    /// until the job is done, because the first message that is requeued need not be the oldest one.
    pub(crate) fn mark_requeueing(&mut self, queues: &mut Queues, channel: ChannelId) {
        let mut at = self.channels[channel.index()].consumers.front();
        while let Some(index) = at {
            let consumer = &mut self.slab[index];
            if consumer.unsettled > 0 && !consumer.is_requeueing {
                consumer.is_requeueing = true;
                queues.records_mut().begin_blocking_job(consumer.queue);
            }
            at = List::after(&self.slab, index, |consumer| &consumer.channel_links);
        }
    }

    /// Notes that the messages of a consumer are requeued. Returns its queue if the consumer was marked as
    /// requeueing: the caller ends the queue's blocking job.
    pub(crate) fn take_requeueing(&mut self, index: usize) -> Option<QueueId> {
        let consumer = &mut self.slab[index];
        core::mem::take(&mut consumer.is_requeueing).then_some(consumer.queue)
    }

    // ---- channels

    /// Opens a channel.
    ///
    /// # Errors
    /// There is no capacity, or the connection has used up its share.
    pub(crate) fn open_channel(
        &mut self,
        quota: &mut Quota,
        connection: ConnectionId,
        vhost: VhostId,
        number: u16,
    ) -> Result<ChannelId, Fault> {
        quota.check_share(connection, Pool::Channels, self.channels.free_count())?;
        let Ok(index) = self.channels.insert(Channel::new(number, connection, vhost)) else {
            return Err(Fault::new(
                ReplyCode::ResourceError,
                format_args!(
                    "this broker has no memory for another channel: close some, or raise memory_limit"
                ),
            ));
        };
        quota.take(connection, Pool::Channels);
        let list = &mut self.connections[connection.index()].channels;
        list.push_back(&mut self.channels, index, |channel| &mut channel.links);
        Ok(ChannelId::from_index(index))
    }

    /// Frees the record of a closed channel if no delivery or consumer refers to it.
    pub(crate) fn free_channel_if_done(&mut self, quota: &mut Quota, channel: ChannelId) {
        let record = &self.channels[channel.index()];
        if record.state == ChannelState::Cleared && record.outbox_len == 0 && record.consumers.is_empty() {
            let connection = record.connection;
            let list = &mut self.connections[connection.index()].channels;
            list.remove(&mut self.channels, channel.index(), |channel| &mut channel.links);
            self.channels.remove(channel.index());
            quota.give_back(connection, Pool::Channels);
        }
    }

    /// Returns the first channel of a connection, or the one behind `after`, including closed ones.
    pub(crate) fn next_channel(
        &self,
        connection: ConnectionId,
        after: Option<ChannelId>,
    ) -> Option<ChannelId> {
        let index = match after {
            None => self.connections[connection.index()].channels.front(),
            Some(channel) => List::after(&self.channels, channel.index(), |channel| &channel.links),
        };
        index.map(ChannelId::from_index)
    }

    // ---- connections

    /// Creates a connection, before its handshake; `None` if no record is free.
    pub(crate) fn connect(&mut self, quota: &mut Quota) -> Option<ConnectionId> {
        let connection = ConnectionId::from_index(self.connections.insert(Connection::new()).ok()?);
        quota.note_connection(connection);
        Some(connection)
    }

    /// Frees and returns the record of a closed connection, when everything was requeued.
    pub(crate) fn free_connection_if_done(
        &mut self,
        quota: &mut Quota,
        connection: ConnectionId,
    ) -> Option<Connection> {
        let record = &self.connections[connection.index()];
        if !record.is_cleared || !record.is_released {
            return None;
        }
        quota.note_connection_closed(connection);
        Some(self.connections.remove(connection.index()))
    }

    /// Returns whether jobs of the connection's last command are running; until they are done, the connection
    /// is not read.
    pub(crate) fn is_busy(&self, connection: ConnectionId) -> bool {
        self.connections.get(connection.index()).is_some_and(|record| record.jobs > 0)
    }

    /// Removes a deleted user from the identities of all connections: they have no permissions any more.
    pub(crate) fn forget_user(&mut self, user: usize) {
        for connection in self.connection_ids() {
            self.connections[connection.index()].identity.forget_user(user);
        }
    }

    /// Requests that the event loop close a connection with this fault.
    pub(crate) fn force_close(&mut self, connection: ConnectionId, fault: Fault) {
        let Some(record) = self.connections.get_mut(connection.index()) else { return };
        if record.forced.is_none() && !record.is_lost {
            record.forced = Some(fault);
            self.forced.push_back(connection);
        }
    }

    /// Requests that the event loop close all connections for which `is_selected` is true, with code 320 and this reason.
    pub(crate) fn force_close_all(&mut self, reason: &str, is_selected: impl Fn(&Connection) -> bool) {
        for connection in self.connection_ids() {
            if is_selected(self.connection(connection)) {
                self.force_close(connection, forced(reason));
            }
        }
    }

    /// Returns the next connection that must be closed by force, and the fault for its client.
    pub(crate) fn next_forced(&mut self) -> Option<(ConnectionId, Fault)> {
        loop {
            let connection = self.forced.pop_front()?;
            let record = self.connections.get_mut(connection.index());
            if let Some(fault) = record.and_then(|record| record.forced.take()) {
                return Some((connection, fault));
            }
        }
    }

    /// Returns whether any connection must be closed by force.
    pub(crate) fn has_forced(&self) -> bool {
        !self.forced.is_empty()
    }
}
