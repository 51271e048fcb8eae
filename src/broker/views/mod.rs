//! The records of the broker as shown to operators. Each kind of record is listed by place in its pool.
//!
//! A listing visits the places in ascending order and may pause after each. A record that exists during the
//! whole listing is shown exactly once. A record that is created or deleted meanwhile may or may not be
//! shown. [`Explained`] is the text that explains why publishers wait.
//!
//! # Invariants
//! - A view changes nothing and allocates nothing: it borrows from the records.

mod memory;
mod mqtt;
#[cfg(test)]
mod tests;

use core::fmt;

use leveret_amqp::field::Table;
use leveret_core::command::{ChannelId, ConnectionId, QueueId};
use leveret_core::definition::{Parameter, Policy};
use leveret_core::limits::{CONNECTIONS_SPARE, Megabytes};
use leveret_core::mem::{ENTRIES_PER_CHUNK, Memory, Messages, Share};
use leveret_core::quota::Quota;
use leveret_queues::{Pool, Queue, Queues, Shortage, WaitingPublishers};
use leveret_routing::{Destination, Topology};
use leveret_storage::PendingWrites;

use crate::access::Access;
use crate::clients::{Clients, ConsumerState, Fill, Mode};
use crate::counters::ChannelCounters;
use crate::objects::{Objects, objects};
use crate::parameters::Parameters;
use crate::policy::{AppliedView, Policies};
use crate::retained::Retained;
use crate::sessions::Sessions;
use crate::state::QUEUE_BYTES;

pub use memory::{ClassView, Holder};
pub use mqtt::{RetainedView, SessionView};

/// Number of pools in [`Views::pools`].
pub const POOLS: usize = 13;

/// Read-only access to the parts of the broker that operators may see.
#[derive(Clone, Copy)]
pub struct Views<'b> {
    pub(crate) access: &'b Access,
    pub(crate) policies: &'b Policies,
    pub(crate) parameters: &'b Parameters,
    pub(crate) topology: &'b Topology,
    pub(crate) queues: &'b Queues,
    pub(crate) clients: &'b Clients,
    pub(crate) quota: &'b Quota,
    pub(crate) sessions: &'b Sessions,
    pub(crate) retained: &'b Retained,
    pub(crate) memory: &'b Memory,
}

impl core::fmt::Debug for Views<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Views").finish_non_exhaustive()
    }
}

impl<'b> Views<'b> {
    /// Returns the bytes that unsettled messages take in the log. Settled messages whose space was not yet
    /// freed are not counted.
    pub fn live_log_bytes(self) -> u64 {
        let queues = self.queues.records().iter().filter(|(_, queue)| !queue.is_deleted());
        queues.map(|(_, queue)| queue.log_bytes()).sum()
    }

    /// Returns why messages wait that the broker moves: dead letters, delayed or parked messages. `None` if none waits.
    pub fn shortage_for_moved(self, pending_writes: &PendingWrites, messages: &Messages) -> Option<Shortage> {
        self.queues.full_for_moved(pending_writes, messages, self.quota)
    }

    /// Returns the number of open channels on which a message was published.
    pub fn publishers(self) -> u64 {
        self.clients.publishers() as u64
    }

    /// Returns all queues that are not hidden.
    pub fn queues(self) -> impl Objects<QueueView<'b>> {
        objects(self.queues.records().places(), move |place| {
            let records = self.queues.records();
            let record = records.get(place).filter(|record| !record.is_internal() && !record.is_deleted())?;
            let exclusive = record.queue_consumers.first().filter(|_| record.queue_consumers.has_exclusive());
            let named = |index: usize| {
                (self.clients.consumer(index).tag.as_str(), self.clients.consumer(index).channel)
            };
            let id = QueueId::from_index(place);
            let sum = |of: fn(&Queue) -> u64| records.sum_over_levels(id, of);
            let names_bytes = (record.name.len() + record.arguments.len()) as u64;
            Some(QueueView {
                place,
                serial: record.serial,
                vhost: self.access.vhost_name(record.vhost),
                name: &record.name,
                durable: record.declared.durable,
                auto_delete: record.declared.auto_delete,
                owner: record.declared.exclusive_owner,
                is_of_session: record.session().is_some(),
                arguments: Table::trusted(&record.arguments),
                applied: self.policies.applied_view(record.applied),
                messages_ready: records.ready_in(id),
                messages_ready_ram: sum(|level| level.backlog.resident().into()) as u32,
                messages_unacknowledged: sum(|level| level.unsettled.count.into()) as u32,
                messages_unacknowledged_ram: sum(|level| {
                    (level.unsettled.count - level.unsettled.absent).into()
                }) as u32,
                messages_persistent: sum(|level| level.durable_index.count()),
                message_bytes_ready: sum(|level| level.backlog.body_bytes()),
                message_bytes_unacknowledged: sum(|level| level.unsettled.body_bytes),
                consumers: record.queue_consumers.len(),
                exclusive_consumer: exclusive.map(named),
                single_active_consumer: record.queue_consumers.single_active().map(named),
                memory_bytes: names_bytes + sum(|level| QUEUE_BYTES as u64 + level.backlog.bytes()),
                arrived: sum(|level| level.backlog.arrived_count()),
                taken: sum(|level| level.backlog.taken_count()),
            })
        })
    }

    /// Returns the number of ready messages, and of unsettled deliveries, in all queues of a virtual host
    /// except hidden ones.
    pub fn depth_of(self, vhost: &str) -> (u64, u64) {
        let queues =
            self.queues.records().iter().filter(|(_, record)| !record.is_internal() && !record.is_deleted());
        let own = queues.filter(|(_, record)| self.access.vhost_name(record.vhost) == vhost);
        own.fold((0, 0), |(ready, unacknowledged), (place, _)| {
            let id = QueueId::from_index(place);
            let unsettled = self.queues.records().sum_over_levels(id, |level| level.unsettled.count.into());
            (ready + u64::from(self.queues.records().ready_in(id)), unacknowledged + unsettled)
        })
    }

    /// Returns all exchanges.
    pub fn exchanges(self) -> impl Objects<ExchangeView<'b>> {
        objects(self.topology.exchange_places(), move |place| {
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
                messages_delayed: record.delayed_queue.map(|queue| self.queues.records().delayed_in(queue)),
                place,
                serial: record.serial,
                published: record.published,
            })
        })
    }

    /// Returns all bindings.
    pub fn bindings(self) -> impl Objects<BindingView<'b>> {
        objects(self.topology.binding_places(), move |place| {
            let record = self.topology.binding_at(place)?;
            let source = self.topology.exchange_at(record.source.index())?;
            let (destination, exclusive) = match record.destination {
                Destination::Queue(queue) => {
                    let queue =
                        self.queues.records().get(queue.index()).filter(|queue| !queue.is_deleted())?;
                    let is_subscription = queue.session().is_some();
                    (&queue.name, queue.declared.exclusive_owner.is_some() || is_subscription)
                }
                Destination::Exchange(exchange) => {
                    (&self.topology.exchange_at(exchange.index())?.name, false)
                }
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
        })
    }

    /// Returns the name of the user of a connection; empty before the login.
    pub fn user_of(self, connection: ConnectionId) -> &'b str {
        self.clients.find_connection(connection).map_or("", |record| record.identity.name())
    }

    /// Returns the name of the virtual host that a connection has opened; empty before that.
    pub fn vhost_of(self, connection: ConnectionId) -> &'b str {
        let vhost = self.clients.find_connection(connection).and_then(|record| record.vhost);
        vhost.map_or("", |vhost| self.access.vhost_name(vhost))
    }

    /// Returns how full each pool is that clients can fill.
    pub fn pools(self, messages: &Messages) -> [PoolFill; POOLS] {
        let fill = |key, fill: Fill| PoolFill { key, used: fill.used as u64, max: fill.max as u64 };
        let pool = |key, used: usize, max: usize| PoolFill { key, used: used as u64, max: max as u64 };
        let declared = |key, (used, max)| pool(key, used, max);
        let [bindings, exchanges, names_bytes] = self.quota.fills();
        let chunks = self.queues.entries();
        [
            pool("messages", messages.messages_used(), messages.messages_max()),
            pool("body_bytes", messages.body_bytes_used(), messages.body_bytes_max()),
            pool("queue_entries", chunks.chunks_used(), chunks.chunks_max()),
            pool(
                "unacknowledged",
                self.queues.deliveries().len(),
                self.queues.deliveries().len() + self.queues.deliveries().free_count(),
            ),
            declared("bindings", bindings),
            declared("exchanges", exchanges),
            declared("names_bytes", names_bytes),
            fill("connections", self.clients.connections_fill().without(CONNECTIONS_SPARE as usize)),
            fill("channels", self.clients.channels_fill()),
            fill("consumers", self.clients.consumers_fill()),
            pool(
                "queues",
                self.queues.records().queue_count(),
                self.queues.records().queue_count() + self.queues.records().free_count(),
            ),
            pool("policies", self.policies.len(), self.policies.max()),
            pool("parameters", self.parameters.len(), self.parameters.max()),
        ]
    }

    /// Returns a connection; `None` if it is closed or has not opened a virtual host.
    pub fn connection_view(self, connection: ConnectionId) -> Option<ConnectionView<'b>> {
        let record = self.clients.find_connection(connection).filter(|record| !record.is_closed())?;
        Some(ConnectionView {
            user: record.identity.name(),
            vhost: self.access.vhost_name(record.vhost?),
            channels: record.channels_len(),
        })
    }

    /// Returns all channels.
    pub fn channels(self) -> impl Objects<ChannelView<'b>> {
        objects(self.clients.channel_places(), move |place| {
            let record = self
                .clients
                .find_channel(ChannelId::from_index(place))
                .filter(|record| !record.is_closed())?;
            let connection =
                self.clients.find_connection(record.connection).filter(|found| !found.is_closed())?;
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
                consumers: self.clients.active_on(ChannelId::from_index(place)),
                messages_unacknowledged: record.unacknowledged.len(),
                messages_uncommitted,
                acks_uncommitted,
                prefetch_count: record.prefetch_count,
                global_prefetch_count: record.global_prefetch_count,
                serial: record.serial,
                counters: record.counters,
            })
        })
    }

    /// Returns all consumers.
    pub fn consumers(self) -> impl Objects<ConsumerView<'b>> {
        objects(self.clients.consumer_places(), move |place| {
            let record =
                self.clients.find_consumer(place).filter(|record| record.state == ConsumerState::Active)?;
            let queue = self
                .queues
                .records()
                .get(record.queue.index())
                .filter(|queue| !queue.is_internal() && !queue.is_deleted())?;
            Some(ConsumerView {
                vhost: self.access.vhost_name(queue.vhost),
                queue: &queue.name,
                channel: record.channel,
                user: self.user_of(self.clients.channel(record.channel).connection),
                tag: &record.tag,
                ack_required: !record.no_ack,
                exclusive: record.exclusive,
                prefetch_count: record.prefetch_count,
                priority: record.priority,
                activity: match queue.settings.single_active {
                    false => ConsumerActivity::Up,
                    true if queue.queue_consumers.keeps_waiting(place) => ConsumerActivity::Waiting,
                    true => ConsumerActivity::SingleActive,
                },
            })
        })
    }

    /// Returns all policies.
    pub fn policies(self) -> impl Objects<Policy<&'b str, &'b [u8]>> {
        objects(self.policies.places(), move |place| {
            self.policies.at(place, |vhost| self.access.vhost_name(vhost))
        })
    }

    /// Returns all parameters.
    pub fn parameters(self) -> impl Objects<Parameter<&'b str, &'b [u8]>> {
        objects(self.parameters.places(), move |place| {
            self.parameters.at(place, |vhost| self.access.vhost_name(vhost))
        })
    }
}

/// A queue as shown to operators.
#[derive(Clone, Copy, Debug)]
pub struct QueueView<'a> {
    /// The queue's place, for listing.
    pub place: usize,
    /// Number of the declaration, unique among all queues.
    pub serial: u64,
    /// The queue's virtual host.
    pub vhost: &'a str,
    /// The queue's name.
    pub name: &'a str,
    /// The queue is durable.
    pub durable: bool,
    /// The queue is deleted with its last consumer.
    pub auto_delete: bool,
    /// The connection that owns an exclusive queue. The queue is deleted when the connection is closed.
    pub owner: Option<ConnectionId>,
    /// The queue is that of an MQTT session.
    pub is_of_session: bool,
    /// The queue's arguments.
    pub arguments: Table<'a>,
    /// The policies that apply to the queue.
    pub applied: AppliedView<'a>,
    /// Number of messages ready for delivery.
    pub messages_ready: u32,
    /// Number of ready messages that are in memory.
    pub messages_ready_ram: u32,
    /// Number of unsettled deliveries.
    pub messages_unacknowledged: u32,
    /// Number of unsettled deliveries whose messages are in memory.
    pub messages_unacknowledged_ram: u32,
    /// Number of messages in the log.
    pub messages_persistent: u64,
    /// Bytes of the bodies of the ready messages.
    pub message_bytes_ready: u64,
    /// Bytes of the bodies of unsettled deliveries.
    pub message_bytes_unacknowledged: u64,
    /// Number of consumers.
    pub consumers: u32,
    /// The tag of the exclusive consumer, and its channel.
    pub exclusive_consumer: Option<(&'a str, ChannelId)>,
    /// The tag of the single active consumer, and its channel.
    pub single_active_consumer: Option<(&'a str, ChannelId)>,
    /// Bytes of memory that the queue and its ready messages take.
    pub memory_bytes: u64,
    /// Messages that arrived in the queue in this process, including those recovered from the log at start.
    pub arrived: u64,
    /// Messages delivered from the queue in this process; a message counts once for each delivery.
    pub taken: u64,
}

/// How full a pool is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PoolFill {
    /// The configuration key that makes the pool larger.
    pub key: &'static str,
    /// How much of the pool is used, in the unit of the memory table.
    pub used: u64,
    /// The size of the pool.
    pub max: u64,
}

/// An exchange as shown to operators.
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
    /// The exchange is deleted with its last binding.
    pub auto_delete: bool,
    /// Clients may not publish to the exchange.
    pub internal: bool,
    /// The exchange's arguments.
    pub arguments: Table<'a>,
    /// The name of the policy that applies to the exchange.
    pub policy: Option<&'a str>,
    /// Number of delayed messages in the exchange, if it is a delayed one.
    pub messages_delayed: Option<u64>,
    /// The exchange's place, for listing.
    pub place: usize,
    /// Number of the exchange, unique in this process.
    pub serial: u64,
    /// The number of messages published to the exchange, and the number of queues that these messages were
    /// routed to; both modulo 2³².
    pub published: [u32; 2],
}

/// A binding as shown to operators.
#[derive(Clone, Copy, Debug)]
pub struct BindingView<'a> {
    /// The virtual host of source and destination.
    pub vhost: &'a str,
    /// The source exchange.
    pub source: &'a str,
    /// The destination: a queue or an exchange.
    pub destination: &'a str,
    /// The destination is an exchange.
    pub to_exchange: bool,
    /// The destination is an exclusive queue, or that of an MQTT session.
    pub exclusive: bool,
    /// The routing key of the binding.
    pub routing_key: &'a str,
    /// The binding's arguments.
    pub arguments: Table<'a>,
}

/// A connection that has opened its virtual host, as shown to operators.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionView<'a> {
    /// The user that is logged in.
    pub user: &'a str,
    /// The virtual host.
    pub vhost: &'a str,
    /// Number of channels of the connection.
    pub channels: u32,
}

/// A channel as shown to operators.
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
    /// The channel is in confirm mode.
    pub confirm: bool,
    /// The channel is in transaction mode.
    pub transactional: bool,
    /// Number of consumers of the channel.
    pub consumers: u32,
    /// Number of unsettled deliveries.
    pub messages_unacknowledged: u32,
    /// Number of publishes of the open transaction.
    pub messages_uncommitted: u32,
    /// Number of acknowledgements of the open transaction.
    pub acks_uncommitted: u32,
    /// Prefetch for consumers that are started later; 0 is unlimited.
    pub prefetch_count: u16,
    /// Prefetch of all consumers of the channel together; 0 is unlimited.
    pub global_prefetch_count: u16,
    /// Number of the channel among all that were opened.
    pub serial: u64,
    /// Counters of the messages on the channel.
    pub counters: ChannelCounters,
}

/// A consumer as shown to operators.
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
    /// The consumer uses manual acknowledgement.
    pub ack_required: bool,
    /// The consumer is exclusive.
    pub exclusive: bool,
    /// The consumer's prefetch; 0 is unlimited.
    pub prefetch_count: u16,
    /// The consumer's priority: consumers with a higher priority get messages first.
    pub priority: i32,
    /// Whether the consumer may get messages.
    pub activity: ConsumerActivity,
}

/// Whether a consumer may get messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ConsumerActivity {
    /// The consumer gets messages, like all others of its queue.
    Up,
    /// The consumer is the single active one of its queue.
    SingleActive,
    /// The consumer gets no messages until the single active consumer of its queue ends.
    Waiting,
}

impl<'b> Views<'b> {
    /// Returns the text about waiting publishers: how many wait, for how long, what is missing, and the
    /// remedy.
    pub const fn explain(
        self,
        pending_writes: &'b PendingWrites,
        messages: &'b Messages,
        waiters: WaitingPublishers,
        disk: DiskFacts,
    ) -> Explained<'b> {
        Explained { views: self, pending_writes, messages, waiters, disk }
    }
}

/// Facts about the disk that [`Explained`] needs from the caller, because the broker does no I/O.
#[derive(Clone, Copy, Default, Debug)]
pub struct DiskFacts {
    /// `disk_limit` in bytes; 0 if the text should not contain it.
    pub limit_bytes: u64,
    /// The file system has no free inodes.
    pub has_no_inodes: bool,
}

/// The text that explains why publishers wait.
///
/// The log, the command line, the management API and the status page all show this text. It contains the pool
/// or queue that is full, the numbers, and one remedy, which often is to raise a configuration key.
#[derive(Debug)]
pub struct Explained<'a> {
    views: Views<'a>,
    pending_writes: &'a PendingWrites,
    messages: &'a Messages,
    waiters: WaitingPublishers,
    disk: DiskFacts,
}

impl fmt::Display for Explained<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shortage = self.waiters.shortage;
        write!(f, "{}: ", shortage.kind())?;
        match shortage {
            Shortage::Pool(pool) => self.pool(f, pool),
            Shortage::QueueMemory(queue) => self.queue_memory(f, queue),
            Shortage::Returns => {
                f.write_str("a publisher does not read its returned messages")?;
                self.waiters_and_remedy(f, format_args!("make it read from its connection"))
            }
            Shortage::Commit => {
                let count = self.pending_writes.len();
                write!(f, "{count} messages wait to be written, and the disk is slower than publishers")?;
                self.waiters_and_remedy(
                    f,
                    format_args!("this ends by itself; if it lasts, publish fewer persistent messages"),
                )
            }
            Shortage::Unwritable => {
                f.write_str("it cannot be written, so no new message or definition is durable")?;
                self.waiters_and_remedy(f, format_args!("repair the disk and restart the broker"))
            }
            Shortage::DiskLimit => {
                f.write_str("disk_limit is reached, so publishers of persistent messages wait")?;
                self.disk_used(f)?;
                self.largest_user_and_remedy(f, "disk_limit")
            }
            Shortage::Index => {
                f.write_str("the memory for the index of the log is used up, so publishers of persistent messages wait")?;
                self.largest_user_and_remedy(f, "memory_limit")
            }
            Shortage::FileSystem if self.disk.has_no_inodes => {
                f.write_str(
                    "the file system of the data directory has no free inodes, whatever its free bytes",
                )?;
                self.waiters_and_remedy(f, format_args!("delete files there, also small ones"))
            }
            Shortage::FileSystem => {
                f.write_str("the file system of the data directory is full before disk_limit is reached")?;
                self.waiters_and_remedy(f, format_args!("free space there"))
            }
            Shortage::QueueDisk(queue) => {
                self.queue(f, queue)?;
                let bytes = self.sum_over_levels(queue, Queue::log_bytes);
                let (bytes, most) = (
                    Megabytes(bytes),
                    Megabytes(self.views.queues.queue_log_bytes_max(self.pending_writes, self.views.quota)),
                );
                let (of, remedy) = self.log_limit();
                write!(f, " uses its whole share of {of}: it has {bytes}")?;
                self.with_messages(f, self.sum_over_levels(queue, |record| record.durable_index.count()))?;
                write!(f, " and may have {most}, four times the free space")?;
                self.limit(f)?;
                self.waiters_and_remedy(f, format_args!("consume or purge that queue, or {remedy}"))
            }
        }
    }
}

impl Explained<'_> {
    /// Writes how many publishers wait and for how long, and then the remedy.
    fn waiters_and_remedy(&self, f: &mut fmt::Formatter<'_>, remedy: fmt::Arguments<'_>) -> fmt::Result {
        let WaitingPublishers { count, for_ms, others, .. } = self.waiters;
        let seconds = for_ms / 1000;
        match count {
            0 => f.write_str("; no publisher waits yet")?,
            1 => write!(f, "; 1 publisher has waited for {seconds} s")?,
            _ => write!(f, "; {count} publishers have waited, the first for {seconds} s")?,
        }
        match others {
            0 => {}
            1 => f.write_str(", and 1 other for something else")?,
            _ => write!(f, ", and {others} others for something else")?,
        }
        write!(f, "; {remedy}")
    }

    /// Returns what limits the log, and how to raise that limit: `disk_limit`, or the file system. If the
    /// file system is full before `disk_limit` is reached, raising `disk_limit` would not help.
    const fn log_limit(&self) -> (&'static str, &'static str) {
        match self.pending_writes.is_file_system_full() {
            true => ("the space on the full file system", "free space there"),
            false => ("disk_limit", "raise disk_limit"),
        }
    }

    fn pool(&self, f: &mut fmt::Formatter<'_>, pool: Pool) -> fmt::Result {
        write!(f, "{} use up their part of memory_limit", pool.what())?;
        self.pool_usage(f, pool)?;
        let Some(()) = self.largest_user_of(f, pool)? else {
            return match pool {
                Pool::Assembly => self.waiters_and_remedy(
                    f,
                    format_args!("make publishers complete their messages, or raise memory_limit"),
                ),
                _ => self.waiters_and_remedy(f, format_args!("raise memory_limit")),
            };
        };
        match pool {
            Pool::Unacknowledged => self
                .waiters_and_remedy(f, format_args!("make its consumers acknowledge, or raise memory_limit")),
            _ => {
                self.waiters_and_remedy(f, format_args!("consume or purge that queue, or raise memory_limit"))
            }
        }
    }

    /// Writes the queue that uses most of a pool; returns `None`, and writes nothing, if no queue uses it.
    fn largest_user_of(&self, f: &mut fmt::Formatter<'_>, pool: Pool) -> Result<Option<()>, fmt::Error> {
        let much = |queue: &Queue| match pool {
            Pool::Messages => queue.resident_messages(),
            Pool::Memory => queue.memory_bytes(),
            Pool::Bodies => queue.backlog.bytes() + queue.unsettled.bytes,
            Pool::Entries => queue.backlog.ready().into(),
            Pool::Unacknowledged => queue.unsettled.count.into(),
            Pool::Assembly => 0,
        };
        let Some((queue, much)) = self.views.queues.records().queue_with_largest_sum(much) else {
            return Ok(None);
        };
        f.write_str(", most by ")?;
        self.queue(f, queue)?;
        match pool {
            Pool::Memory | Pool::Bodies => write!(f, ", {}", Megabytes(much))?,
            _ => write!(f, ", {much}")?,
        }
        Ok(Some(()))
    }

    /// Writes how much of a pool is used, and its size.
    fn pool_usage(&self, f: &mut fmt::Formatter<'_>, pool: Pool) -> fmt::Result {
        let (views, messages) = (self.views, self.messages);
        let bytes = |used: usize, most: usize| (Megabytes(used as u64), Megabytes(most as u64));
        let (used, most) = match pool {
            Pool::Memory => {
                let (used, most) = messages.memory_usage();
                let (used, most) = bytes(used, most);
                return write!(f, ", {used} of {most}");
            }
            Pool::Bodies => {
                let (used, most) = bytes(messages.body_bytes_used(), messages.body_bytes_max());
                return write!(f, ", {used} of {most}");
            }
            Pool::Assembly => {
                let (used, most) = bytes(messages.assembly_bytes_used(), messages.assembly_bytes_max());
                return write!(f, ", {used} of {most}");
            }
            Pool::Messages => (messages.messages_used(), messages.messages_max()),
            Pool::Entries => {
                let chunks = views.queues.entries();
                (chunks.chunks_used() * ENTRIES_PER_CHUNK, chunks.chunks_max() * ENTRIES_PER_CHUNK)
            }
            Pool::Unacknowledged => (
                views.queues.deliveries().len(),
                views.queues.deliveries().len() + views.queues.deliveries().free_count(),
            ),
        };
        write!(f, ", {used} of {most}")
    }

    fn queue_memory(&self, f: &mut fmt::Formatter<'_>, queue: QueueId) -> fmt::Result {
        self.queue(f, queue)?;
        if self.views.queues.records().get(queue.index()).is_none() {
            return self.waiters_and_remedy(f, format_args!("this ends by itself"));
        }
        let free = self.views.queues.free_memory(self.messages, Share::Ordinary);
        let (pool, used) = match self.messages.is_limited_by_memory() {
            true => (Pool::Memory, self.sum_over_levels(queue, Queue::memory_bytes)),
            false => self.views.queues.records().fullest_pool(free, queue),
        };
        write!(f, " uses its whole share of the memory for {}, ", pool.what())?;
        match pool {
            Pool::Memory | Pool::Bodies => {
                let most = match pool {
                    Pool::Memory => self.messages.memory_usage().1,
                    _ => self.messages.body_bytes_max(),
                };
                write!(f, "{} of {}", Megabytes(used), Megabytes(most as u64))?;
                self.with_messages(f, self.sum_over_levels(queue, Queue::resident_messages))?;
            }
            Pool::Entries => {
                let most = self.views.queues.entries().chunks_max() * ENTRIES_PER_CHUNK;
                write!(f, "{used} of {most}")?;
            }
            _ => write!(f, "{used} of {}", self.messages.messages_max())?,
        }
        f.write_str(" (at most twice the free part)")?;
        self.waiters_and_remedy(f, format_args!("consume or purge that queue, or raise memory_limit"))
    }

    /// Writes the remedy when the log has no space: the queue that uses most of the log, and the
    /// configuration key to raise.
    fn largest_user_and_remedy(&self, f: &mut fmt::Formatter<'_>, key: &str) -> fmt::Result {
        match self.largest_user_of_log(f)? {
            None => self.waiters_and_remedy(f, format_args!("raise {key}")),
            Some(()) => {
                self.waiters_and_remedy(f, format_args!("consume or purge that queue, or raise {key}"))
            }
        }
    }

    /// Writes the queue that uses most of the log; returns `None`, and writes nothing, if no queue uses it.
    fn largest_user_of_log(&self, f: &mut fmt::Formatter<'_>) -> Result<Option<()>, fmt::Error> {
        let Some((queue, bytes)) = self.views.queues.records().queue_with_largest_sum(Queue::log_bytes)
        else {
            return Ok(None);
        };
        f.write_str(", most by ")?;
        self.queue(f, queue)?;
        write!(f, ", {}", Megabytes(bytes))?;
        Ok(Some(()))
    }

    /// Writes how many bytes the log uses, and how many it may use.
    fn disk_used(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let usable = self.pending_writes.disk_bytes_max();
        let used = usable.saturating_sub(self.pending_writes.log_free_bytes());
        write!(f, ", {} of {} usable", Megabytes(used), Megabytes(usable))?;
        self.limit(f)
    }

    fn limit(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.disk.limit_bytes {
            0 => Ok(()),
            limit => write!(f, " (disk_limit is {})", Megabytes(limit)),
        }
    }

    fn with_messages(&self, f: &mut fmt::Formatter<'_>, count: u64) -> fmt::Result {
        let s = if count == 1 { "" } else { "s" };
        write!(f, " in {count} message{s}")
    }

    /// Writes the name of a queue. It is escaped, because clients may choose any characters.
    fn queue(&self, f: &mut fmt::Formatter<'_>, queue: QueueId) -> fmt::Result {
        let Some(record) = self.views.queues.records().get(queue.index()) else {
            return f.write_str("a queue");
        };
        let vhost = self.views.access.vhost_name(record.vhost).escape_debug();
        write!(f, "queue '{}' (virtual host '{vhost}')", record.name.escape_debug())
    }

    /// Returns the sum of `value` over a queue and its levels; 0 if the queue is deleted.
    fn sum_over_levels(&self, queue: QueueId, value: impl Fn(&Queue) -> u64) -> u64 {
        let exists = self.views.queues.records().get(queue.index()).is_some();
        if exists { self.views.queues.records().sum_over_levels(queue, value) } else { 0 }
    }
}
