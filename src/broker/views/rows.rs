//! Rows of what operators see: a queue, an exchange, a binding, a connection, a channel, a consumer, how full a pool is.
//!
//! Always true: a row borrows from the record.

use crate::counters::ChannelCounters;
use crate::policy::AppliedView;
use leveret_amqp::field::Table;
use leveret_core::command::{ChannelId, ConnectionId};

/// A queue, as operators see it.
#[derive(Clone, Copy, Debug)]
pub struct QueueView<'a> {
    /// The queue's place, for listing.
    pub place: usize,
    /// The number of the declaration, which no other queue has.
    pub serial: u64,
    /// The queue's virtual host.
    pub vhost: &'a str,
    /// The queue's name.
    pub name: &'a str,
    /// The queue is durable.
    pub durable: bool,
    /// The queue goes with its last consumer.
    pub auto_delete: bool,
    /// The connection of an exclusive queue, with which it goes.
    pub owner: Option<ConnectionId>,
    /// The queue's arguments.
    pub arguments: Table<'a>,
    /// The policies that apply to the queue.
    pub applied: AppliedView<'a>,
    /// Messages ready for delivery.
    pub messages_ready: u32,
    /// Ready messages that are in memory.
    pub messages_ready_ram: u32,
    /// Unsettled deliveries.
    pub messages_unacknowledged: u32,
    /// Unsettled deliveries whose messages are in memory.
    pub messages_unacknowledged_ram: u32,
    /// Messages that the log has.
    pub messages_persistent: u64,
    /// Bytes of the bodies of the ready messages.
    pub message_bytes_ready: u64,
    /// Bytes of the bodies of unsettled deliveries.
    pub message_bytes_unacknowledged: u64,
    /// Consumers.
    pub consumers: u32,
    /// The tag of the exclusive consumer, and its channel.
    pub exclusive_consumer: Option<(&'a str, ChannelId)>,
    /// The tag of the single active consumer, and its channel.
    pub single_active_consumer: Option<(&'a str, ChannelId)>,
    /// Bytes of memory that the queue and its ready messages take.
    pub memory_bytes: u64,
    /// Messages that came in since this process has the queue, those found in the log at a start included.
    pub came: u64,
    /// Messages delivered since this process has the queue; a message counts once for each delivery.
    pub went: u64,
}

/// How full a pool is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PoolFill {
    /// The configuration key that makes the pool larger.
    pub key: &'static str,
    /// How much of the pool is taken, in the unit of the memory table.
    pub used: u64,
    /// The size of the pool.
    pub max: u64,
}

/// An exchange, as operators see it.
#[derive(Clone, Copy, Debug)]
pub struct ExchangeView<'a> {
    /// The exchange's virtual host.
    pub vhost: &'a str,
    /// The exchange's name; empty for the default exchange.
    pub name: &'a str,
    /// The exchange's type.
    pub kind: &'static str,
    /// The exchange is durable.
    pub durable: bool,
    /// The exchange goes with its last binding.
    pub auto_delete: bool,
    /// Clients may not publish to the exchange.
    pub internal: bool,
    /// The exchange's arguments.
    pub arguments: Table<'a>,
    /// The name of the policy that applies to the exchange.
    pub policy: Option<&'a str>,
    /// Delayed messages that wait in the exchange, if it is a delayed one.
    pub messages_delayed: Option<u64>,
    /// The exchange's place, for listing.
    pub place: usize,
    /// The number of the exchange, which no other exchange of this process has.
    pub serial: u64,
    /// Messages published to the exchange, and queues that those went to, modulo 2³².
    pub published: [u32; 2],
}

/// A binding, as operators see it.
#[derive(Clone, Copy, Debug)]
pub struct BindingView<'a> {
    /// The virtual host of both ends.
    pub vhost: &'a str,
    /// The source exchange.
    pub source: &'a str,
    /// The destination: a queue or an exchange.
    pub destination: &'a str,
    /// The destination is an exchange.
    pub to_exchange: bool,
    /// The destination is an exclusive queue.
    pub exclusive: bool,
    /// The routing key of the binding.
    pub routing_key: &'a str,
    /// The binding's arguments.
    pub arguments: Table<'a>,
}

/// A connection that has opened its virtual host, as operators see it.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionView<'a> {
    /// The user who is logged in.
    pub user: &'a str,
    /// The virtual host.
    pub vhost: &'a str,
    /// How many channels the connection has.
    pub channels: u32,
}

/// A channel, as operators see it.
#[derive(Clone, Copy, Debug)]
pub struct ChannelView<'a> {
    /// The channel's connection.
    pub connection: ConnectionId,
    /// The channel's number on the wire.
    pub number: u16,
    /// The user.
    pub user: &'a str,
    /// The virtual host.
    pub vhost: &'a str,
    /// Publishes are confirmed.
    pub confirm: bool,
    /// Publishes and acknowledgements are in transactions.
    pub transactional: bool,
    /// How many consumers the channel has.
    pub consumers: u32,
    /// Unsettled deliveries.
    pub messages_unacknowledged: u32,
    /// Publishes of the open transaction.
    pub messages_uncommitted: u32,
    /// Acknowledgements of the open transaction.
    pub acks_uncommitted: u32,
    /// Prefetch of consumers started from now on; 0 is unlimited.
    pub prefetch_count: u16,
    /// Prefetch of all consumers of the channel together; 0 is unlimited.
    pub global_prefetch_count: u16,
    /// The number of the channel among all that were opened.
    pub serial: u64,
    /// What happened to messages on the channel.
    pub counters: ChannelCounters,
}

/// A consumer, as operators see it.
#[derive(Clone, Copy, Debug)]
pub struct ConsumerView<'a> {
    /// The virtual host of the consumer's queue.
    pub vhost: &'a str,
    /// The consumer's queue.
    pub queue: &'a str,
    /// The consumer's channel.
    pub channel: ChannelId,
    /// The user of the consumer's connection.
    pub user: &'a str,
    /// The consumer tag.
    pub tag: &'a str,
    /// The consumer acknowledges.
    pub ack_required: bool,
    /// The consumer is exclusive.
    pub exclusive: bool,
    /// The consumer's prefetch; 0 is unlimited.
    pub prefetch_count: u16,
    /// The consumer's priority: higher ones go first.
    pub priority: i32,
    /// Whether the consumer may take messages.
    pub activity: ConsumerActivity,
}

/// Whether a consumer may take messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ConsumerActivity {
    /// The consumer takes messages, like all others of its queue.
    Up,
    /// The consumer is the single active one of its queue.
    SingleActive,
    /// The consumer waits until the single active one has gone.
    Waiting,
}
