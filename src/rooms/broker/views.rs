//! What there is, as an operator sees it: one record at a time, by its place in its pool.
//!
//! Whoever lists goes through the places in rising order and may stop between any two for as long as he
//! likes: what stays is shown exactly once, what comes or goes meanwhile may be shown or not.
//!
//! Always true: nothing is changed here, and nothing is collected; a view borrows from the record.

use crate::command::{ChannelId, ConnectionId, QueueId};
use crate::mem::{List, Messages, Slab};
use crate::wire::field::Table;

use super::policy::AppliedView;
use super::records::{ConsumerState, Mode};
use super::sizes::QUEUE_BYTES;
use super::topology::Destination;
use super::{Broker, Counters};

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

impl Broker {
    /// What has happened since the start.
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    /// Channels on which something was published.
    pub fn publishers(&self) -> u64 {
        self.channels.iter().filter(|(_, channel)| channel.has_published && !channel.closing).count() as u64
    }

    /// Places of queues that were ever used.
    pub const fn queue_places(&self) -> usize {
        self.queues.places()
    }

    /// The queue in a place, if there is one that anybody may see.
    pub fn queue_at(&self, place: usize) -> Option<QueueView<'_>> {
        let record = self.queues.get(place).filter(|record| !record.hidden && !record.dying)?;
        let exclusive = record.consumers.front().filter(|_| record.exclusively_consumed);
        let named = |index: usize| (self.consumers[index].tag.as_str(), self.consumers[index].channel);
        let id = QueueId::from_index(place);
        let names_bytes = (record.name.len() + record.arguments.len()) as u64;
        Some(QueueView {
            place,
            serial: record.serial,
            vhost: self.access.vhost_name(record.vhost),
            name: &record.name,
            durable: record.durable,
            auto_delete: record.auto_delete,
            owner: record.exclusive_owner,
            arguments: Table::trusted(&record.arguments),
            applied: self.policies.applied_view(record.applied),
            messages_ready: self.queues.ready_in(id),
            messages_ready_ram: self.queues.in_all(id, |level| level.backlog.resident().into()) as u32,
            messages_unacknowledged: self.queues.in_all(id, |level| level.unsettled.into()) as u32,
            messages_unacknowledged_ram: self
                .queues
                .in_all(id, |level| (level.unsettled - level.unsettled_absent).into())
                as u32,
            messages_persistent: self.queues.in_all(id, |level| level.logged.count()),
            message_bytes_ready: self.queues.in_all(id, |level| level.backlog.body_bytes()),
            message_bytes_unacknowledged: self.queues.in_all(id, |level| level.unsettled_body_bytes),
            consumers: record.consumers.len(),
            exclusive_consumer: exclusive.map(named),
            single_active_consumer: record.single_active_consumer().map(named),
            memory_bytes: names_bytes
                + self.queues.in_all(id, |level| QUEUE_BYTES as u64 + level.backlog.bytes()),
            came: self.queues.in_all(id, |level| level.backlog.came()),
            went: self.queues.in_all(id, |level| level.backlog.went()),
        })
    }

    /// Messages ready in all queues of a virtual host that anybody may see, and those delivered there and not
    /// settled.
    pub fn depth_of(&self, vhost: &str) -> (u64, u64) {
        let queues = self.queues.iter().filter(|(_, record)| !record.hidden && !record.dying);
        let own = queues.filter(|(_, record)| self.access.vhost_name(record.vhost) == vhost);
        own.fold((0, 0), |(ready, unacknowledged), (place, _)| {
            let id = QueueId::from_index(place);
            let unsettled = self.queues.in_all(id, |level| level.unsettled.into());
            (ready + u64::from(self.queues.ready_in(id)), unacknowledged + unsettled)
        })
    }

    /// Places of exchanges that were ever used.
    pub const fn exchange_places(&self) -> usize {
        self.topology.exchange_places()
    }

    /// The exchange in a place.
    pub fn exchange_at(&self, place: usize) -> Option<ExchangeView<'_>> {
        let record = self.topology.exchange_at(place)?;
        Some(ExchangeView {
            vhost: self.access.vhost_name(record.vhost),
            name: &record.name,
            kind: record.type_name(),
            durable: record.durable,
            auto_delete: record.auto_delete,
            internal: record.internal,
            arguments: Table::trusted(&record.arguments),
            policy: self.policies.applied_view(record.applied).policy,
            messages_delayed: record.sleepers.map(|queue| self.queues.asleep_in(queue)),
        })
    }

    /// Places of bindings that were ever used.
    pub const fn binding_places(&self) -> usize {
        self.topology.binding_places()
    }

    /// The binding in a place.
    pub fn binding_at(&self, place: usize) -> Option<BindingView<'_>> {
        let record = self.topology.binding_at(place)?;
        let source = self.topology.exchange_at(record.source.index())?;
        let (destination, exclusive) = match record.destination {
            Destination::Queue(queue) => {
                let queue = self.queues.get(queue.index()).filter(|queue| !queue.dying)?;
                (&queue.name, queue.exclusive_owner.is_some())
            }
            Destination::Exchange(exchange) => (&self.topology.exchange_at(exchange.index())?.name, false),
        };
        Some(BindingView {
            vhost: self.access.vhost_name(source.vhost),
            source: &source.name,
            destination,
            to_exchange: matches!(record.destination, Destination::Exchange(_)),
            exclusive,
            routing_key: &record.key,
            arguments: Table::trusted(&record.arguments),
        })
    }

    /// Who has logged in on a connection; nobody is empty.
    pub fn user_of(&self, connection: ConnectionId) -> &str {
        self.connections.get(connection.index()).map_or("", |record| record.identity.name())
    }

    /// The name of the virtual host that a connection has opened; empty for one that has not.
    pub fn vhost_of(&self, connection: ConnectionId) -> &str {
        let vhost = self.connections.get(connection.index()).and_then(|record| record.vhost);
        vhost.map_or("", |vhost| self.access.vhost_name(vhost))
    }

    /// How full the pools are that publishers and programs can fill, by the keys that make them larger.
    pub fn pools(&self, messages: &Messages) -> [PoolFill; 13] {
        fn slab<T>(key: &'static str, slab: &Slab<T>) -> PoolFill {
            PoolFill { key, used: slab.len() as u64, max: (slab.len() + slab.room()) as u64 }
        }
        let pool = |key, used: usize, max: usize| PoolFill { key, used: used as u64, max: max as u64 };
        let declared = |key, (used, max)| pool(key, used, max);
        let [bindings, exchanges, names_bytes] = self.quota.fills();
        let chunks = &self.queues.pool;
        [
            pool("messages_max", messages.messages_used(), messages.messages_max()),
            pool("body_bytes_max", messages.body_bytes_used(), messages.body_bytes_max()),
            pool("queue_entries_max", chunks.chunks_used(), chunks.chunks_max()),
            pool(
                "unacknowledged_max",
                self.queues.deliveries.len(),
                self.queues.deliveries.len() + self.queues.deliveries.room(),
            ),
            declared("bindings_max", bindings),
            declared("exchanges_max", exchanges),
            declared("names_bytes_max", names_bytes),
            slab("connections_max", &self.connections),
            slab("channels_max", &self.channels),
            slab("consumers_max", &self.consumers),
            pool("queues_max", self.queues.len(), self.queues.len() + self.queues.room()),
            pool("policies_max", self.policies.len(), self.policies.most()),
            pool("parameters_max", self.parameters.len(), self.parameters.most()),
        ]
    }

    /// What the broker knows of a connection that is in use.
    pub fn connection_view(&self, connection: ConnectionId) -> Option<ConnectionView<'_>> {
        let record = self.connections.get(connection.index()).filter(|record| !record.dying)?;
        Some(ConnectionView {
            user: record.identity.name(),
            vhost: self.access.vhost_name(record.vhost?),
            channels: record.channels.len(),
        })
    }

    /// Places of channels that were ever used.
    pub const fn channel_places(&self) -> usize {
        self.channels.places()
    }

    /// The channel in a place.
    pub fn channel_at(&self, place: usize) -> Option<ChannelView<'_>> {
        let record = self.channels.get(place).filter(|record| !record.closing)?;
        let connection = self.connections.get(record.connection.index()).filter(|found| !found.dying)?;
        let (messages_uncommitted, acks_uncommitted) = match &record.mode {
            Mode::Transaction(open) => (open.messages, open.settlements.len()),
            Mode::Plain | Mode::Confirm => (0, 0),
        };
        Some(ChannelView {
            connection: record.connection,
            number: record.number,
            user: connection.identity.name(),
            vhost: self.access.vhost_name(record.vhost),
            confirm: matches!(record.mode, Mode::Confirm),
            transactional: matches!(record.mode, Mode::Transaction(_)),
            consumers: self.active_consumers(place),
            messages_unacknowledged: record.unacknowledged.len(),
            messages_uncommitted,
            acks_uncommitted,
            prefetch_count: record.prefetch_count,
            global_prefetch_count: record.global_prefetch_count,
        })
    }

    fn active_consumers(&self, channel: usize) -> u32 {
        let (mut count, mut at) = (0, self.channels[channel].consumers.front());
        while let Some(index) = at {
            count += u32::from(self.consumers[index].state == ConsumerState::Active);
            at = List::after(&self.consumers, index, |consumer| &consumer.channel_links);
        }
        count
    }

    /// Places of consumers that were ever used.
    pub const fn consumer_places(&self) -> usize {
        self.consumers.places()
    }

    /// The consumer in a place.
    pub fn consumer_at(&self, place: usize) -> Option<ConsumerView<'_>> {
        let record = self.consumers.get(place).filter(|record| record.state == ConsumerState::Active)?;
        let queue = self.queues.get(record.queue.index()).filter(|queue| !queue.hidden && !queue.dying)?;
        Some(ConsumerView {
            vhost: self.access.vhost_name(queue.vhost),
            queue: &queue.name,
            channel: record.channel,
            user: self.user_of(self.channels[record.channel.index()].connection),
            tag: &record.tag,
            ack_required: !record.no_ack,
            exclusive: record.exclusive,
            prefetch_count: record.prefetch_count,
            priority: record.priority,
            activity: match queue.settings.single_active {
                false => ConsumerActivity::Up,
                true if queue.keeps_waiting(place) => ConsumerActivity::Waiting,
                true => ConsumerActivity::SingleActive,
            },
        })
    }
}
