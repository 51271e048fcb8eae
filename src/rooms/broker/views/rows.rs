//! Rows of what operators see: a queue, an exchange, a binding, a connection, a channel, a consumer, how full a pool is.
//!
//! Always true: a row borrows from the record.

use crate::broker::policy::AppliedView;
use crate::command::{ChannelId, ConnectionId};
use crate::wire::field::Table;

/// A queue.
#[derive(Clone, Copy, Debug)]
pub struct QueueView<'a> {
    /// Its place.
    pub place: usize,
    /// When it was declared, as a number that no other queue has.
    pub serial: u64,
    /// Its virtual host.
    pub vhost: &'a str,
    /// Its name.
    pub name: &'a str,
    /// It outlives the broker.
    pub durable: bool,
    /// It goes with its last consumer.
    pub auto_delete: bool,
    /// The connection it belongs to, and with which it goes.
    pub owner: Option<ConnectionId>,
    /// Its arguments.
    pub arguments: Table<'a>,
    /// What policies say of it.
    pub applied: AppliedView<'a>,
    /// Messages ready for delivery.
    pub messages_ready: u32,
    /// Those of them that are in memory.
    pub messages_ready_ram: u32,
    /// Deliveries not settled.
    pub messages_unacknowledged: u32,
    /// Those of them whose messages are in memory.
    pub messages_unacknowledged_ram: u32,
    /// Messages that the log has.
    pub messages_persistent: u64,
    /// Bytes of the bodies of the ready messages.
    pub message_bytes_ready: u64,
    /// Bytes of the bodies of messages delivered and not settled.
    pub message_bytes_unacknowledged: u64,
    /// Consumers.
    pub consumers: u32,
    /// The tag of the consumer that has it for itself, and that consumer's channel.
    pub exclusive_consumer: Option<(&'a str, ChannelId)>,
    /// The same of the one that is active, where there is one at a time.
    pub single_active_consumer: Option<(&'a str, ChannelId)>,
    /// Bytes of memory that it and its ready messages take.
    pub memory_bytes: u64,
    /// Messages that came in since this process has the queue, those that it found in the log counted in.
    pub came: u64,
    /// Messages delivered since then, each as often as it was.
    pub went: u64,
}

/// How full a pool is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PoolFill {
    /// The configuration's key that makes it larger.
    pub key: &'static str,
    /// What is taken of it, in what the memory table counts it in.
    pub used: u64,
    /// All of it.
    pub max: u64,
}

impl PoolFill {
    /// What of it is taken, of a hundred.
    pub const fn per_cent(&self) -> u64 {
        match self.max {
            0 => 0,
            max => self.used * 100 / max,
        }
    }
}

/// An exchange.
#[derive(Clone, Copy, Debug)]
pub struct ExchangeView<'a> {
    /// Its virtual host.
    pub vhost: &'a str,
    /// Its name; empty for the default exchange.
    pub name: &'a str,
    /// Its type.
    pub kind: &'static str,
    /// It outlives the broker.
    pub durable: bool,
    /// It goes with its last binding.
    pub auto_delete: bool,
    /// Nobody publishes to it.
    pub internal: bool,
    /// Its arguments.
    pub arguments: Table<'a>,
    /// The name of the policy that applies to it.
    pub policy: Option<&'a str>,
    /// Messages that wait for their time, when it is a delayed one.
    pub messages_delayed: Option<u64>,
}

/// A binding.
#[derive(Clone, Copy, Debug)]
pub struct BindingView<'a> {
    /// The virtual host of both ends.
    pub vhost: &'a str,
    /// The exchange it starts from.
    pub source: &'a str,
    /// The queue or exchange that gets the messages.
    pub destination: &'a str,
    /// It leads to an exchange, not to a queue.
    pub to_exchange: bool,
    /// An end of it belongs to one connection.
    pub exclusive: bool,
    /// The binding key.
    pub routing_key: &'a str,
    /// Its arguments.
    pub arguments: Table<'a>,
}

/// A connection that has opened its virtual host.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionView<'a> {
    /// The user who is logged in.
    pub user: &'a str,
    /// The virtual host.
    pub vhost: &'a str,
    /// Its channels.
    pub channels: u32,
}

/// A channel.
#[derive(Clone, Copy, Debug)]
pub struct ChannelView<'a> {
    /// Its connection.
    pub connection: ConnectionId,
    /// Its number on the wire.
    pub number: u16,
    /// The user.
    pub user: &'a str,
    /// The virtual host.
    pub vhost: &'a str,
    /// Publishes are confirmed.
    pub confirm: bool,
    /// Publishes and acknowledgements are in transactions.
    pub transactional: bool,
    /// Its consumers.
    pub consumers: u32,
    /// Deliveries not settled.
    pub messages_unacknowledged: u32,
    /// Publishes of the open transaction.
    pub messages_uncommitted: u32,
    /// Acknowledgements of the open transaction.
    pub acks_uncommitted: u32,
    /// Prefetch of consumers started from now on; 0 is unlimited.
    pub prefetch_count: u16,
    /// Prefetch of all of them together; 0 is unlimited.
    pub global_prefetch_count: u16,
}

/// A consumer.
#[derive(Clone, Copy, Debug)]
pub struct ConsumerView<'a> {
    /// The virtual host of its queue.
    pub vhost: &'a str,
    /// Its queue.
    pub queue: &'a str,
    /// Its channel.
    pub channel: ChannelId,
    /// The user who is logged in there.
    pub user: &'a str,
    /// Its tag.
    pub tag: &'a str,
    /// It acknowledges.
    pub ack_required: bool,
    /// Nobody else may take from the queue.
    pub exclusive: bool,
    /// 0 is unlimited.
    pub prefetch_count: u16,
    /// Those with a higher one go first.
    pub priority: i32,
    /// Whether it may take messages.
    pub activity: ConsumerActivity,
}

/// Whether a consumer may take messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ConsumerActivity {
    /// Like all others of its queue.
    Up,
    /// It alone: the queue has one active consumer at a time.
    SingleActive,
    /// Not until the active one has gone.
    Waiting,
}
