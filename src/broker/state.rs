//! The broker's state and its creation, and the sizes of its records.
//!
//! The other files implement the methods of [`Broker`]. The rules of each part of the state are in its module
//! (`access`, `policy` and others), and for queues and exchanges in `leveret-queues` and `leveret-routing`.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use leveret_amqp::reply_text::QueueText;
use leveret_core::command::{ChannelId, ConnectionId, ExchangeId, Name, QueueId, VhostId};
use leveret_core::error::{Fault, no_memory_for};
use leveret_core::limits::Limits;
use leveret_core::mem::{ALLOCATION_BYTES, IndexTable, Memory, Slab};
use leveret_core::quota::{ClientRecordBytes, Declared, Declarer, Quota};
use leveret_core::work::Work;
use leveret_queues::{
    AcknowledgementTimeout, DelayWheel, Deliveries, FLOOR_PART, Getting, Queue, Queues, Shortage,
};
use leveret_routing::{ExchangeDeclaration, NewExchange, Topology};
use leveret_storage::{PendingWrites, UNDELIVERED};

use super::Context;
use super::access::{
    self, Access, FIRST_VHOST, Identity, Load, PREDECLARED, PREDECLARED_EXCHANGES, Resource, Right,
};
use super::clients::{Channel, Clients, Connection, Consumer, ConsumerState};
use super::counters::Counters;
use super::job::{Begun, Job, Jobs};
use super::orphans::{self, LeftOut, Recovery};
use super::parameters::Parameters;
use super::policy::Policies;
use super::publish::Publishing;
use super::republish::{Firehose, RepublishState, Republisher, TracedName};
use super::retained::{Replay, Retained};
use super::sessions::{CANDIDATE_BYTES, Sessions};
use super::views::Views;
use super::wills::Wills;
use crate::operator_fault::OperatorFault;

/// The pseudo-queue of direct reply-to, and the prefix of its tokens.
pub(crate) const REPLY_TO: &str = "amq.rabbitmq.reply-to";

/// How much of the pools is in use. All values are 0 when all objects are deleted and all connections closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Gauges {
    /// Connections, including lost ones that are still being cleared.
    pub connections: usize,
    /// Channels.
    pub channels: usize,
    /// Consumers.
    pub consumers: usize,
    /// Queues.
    pub queues: usize,
    /// Exchanges that clients declared.
    pub exchanges: usize,
    /// Bindings.
    pub bindings: usize,
    /// Unsettled deliveries.
    pub deliveries: usize,
    /// Chunks of queue entries in use.
    pub chunks: usize,
    /// Bytes of names and arguments.
    pub names_bytes: usize,
    /// Jobs that are not done.
    pub jobs: usize,
    /// Bytes of blocks of the messages of unsettled deliveries.
    pub unsettled_bytes: u64,
    /// Messages in open transactions.
    pub open_messages: u32,
    /// Bytes of blocks of messages in open transactions.
    pub open_bytes: u64,
    /// Unsettled or requeued messages that are only in the log, not in memory.
    pub absent: u32,
    /// Number of virtual hosts and users for which the quota counts anything.
    pub holders: usize,
}

/// The broker.
pub struct Broker {
    /// The memory of all pools.
    memory: Memory,
    pub(crate) entropy: Entropy,
    pub(crate) access: Access,
    pub(crate) policies: Policies,
    pub(crate) parameters: Parameters,
    pub(crate) topology: Topology,
    pub(crate) queues: Queues,
    pub(crate) clients: Clients,
    pub(crate) sessions: Sessions,
    pub(crate) retained: Retained,
    pub(crate) wills: Wills,
    pub(crate) recovery: Recovery,
    pub(crate) jobs: Jobs,
    pub(crate) publishing: Publishing,
    pub(crate) ack_timeout: AcknowledgementTimeout,
    /// How much of the shared pools each connection, user and virtual host uses, and the limits.
    pub(crate) quota: Quota,
    pub(crate) counters: Counters,
    pub(crate) firehose: Firehose,
    pub(crate) republish: RepublishState,
}

impl core::fmt::Debug for Broker {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Broker").field("gauges", &self.gauges()).finish_non_exhaustive()
    }
}

fn draw_seed(entropy: &mut Entropy) -> u64 {
    let mut seed = [0; 8];
    entropy(&mut seed);
    u64::from_ne_bytes(seed)
}

impl Broker {
    /// Returns the memory of all pools.
    pub const fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Returns the queues with their messages and unsettled deliveries.
    pub const fn queues(&self) -> &Queues {
        &self.queues
    }

    /// Returns the definitions and messages that could not be restored at start as they were.
    pub const fn recovery(&self) -> &Recovery {
        &self.recovery
    }

    /// Returns the definitions and messages that could not be restored at start, for changes by the storage.
    pub const fn recovery_mut(&mut self) -> &mut Recovery {
        &mut self.recovery
    }

    /// Returns the queues, for changes by the storage and by operators that concern no other part of the
    /// broker.
    pub const fn queues_mut(&mut self) -> &mut Queues {
        &mut self.queues
    }

    /// Creates the broker of a new store, with `/` and the user guest. Reserves all memory.
    ///
    /// # Errors
    /// The limits are too low for `/` with its predeclared exchanges, or for guest.
    pub fn new(limits: &Limits, entropy: Entropy) -> Result<Self, Fault> {
        Self::in_memory(limits, &Memory::unlimited(), entropy)
    }

    /// Creates the broker of a new store, whose pools have this memory. See [`Self::new`].
    ///
    /// # Errors
    /// The limits are too low for `/` with its predeclared exchanges, or for guest.
    pub fn in_memory(limits: &Limits, memory: &Memory, mut entropy: Entropy) -> Result<Self, Fault> {
        let seed = draw_seed(&mut entropy);
        let vhosts = limits.vhosts_max as usize;
        let exchanges = limits.exchanges_max as usize + vhosts * PREDECLARED_EXCHANGES;
        let (queues, connections) = (limits.queues_max as usize, limits.connection_records());
        let frame = limits.frame_max as usize;
        let topology = leveret_routing::Capacity {
            exchanges,
            bindings: limits.bindings_max as usize,
            exchange_side_bytes: EXCHANGE_SIDE_BYTES,
            binding_side_bytes: BINDING_SIDE_BYTES,
        };
        let access = Access::new(limits, memory, &mut *entropy, seed);
        let mut broker = Self {
            memory: memory.clone(),
            entropy,
            access,
            policies: Policies::with_capacity(limits.policies_max as usize, memory),
            parameters: Parameters::with_capacity(limits.parameters_max as usize, memory, seed),
            topology: Topology::with_capacity(topology, frame, memory, seed),
            queues: Queues::new(limits, memory, seed, QUEUE_SIDE_BYTES),
            clients: Clients::new(limits, memory, seed),
            sessions: Sessions::new(limits, memory, seed),
            retained: Retained::new(limits, memory, seed),
            wills: Wills::default(),
            recovery: Recovery::new(queues + limits.exchanges_max as usize, seed),
            jobs: Jobs::with_capacity(queues + exchanges + 2 * connections + vhosts + 16),
            publishing: Publishing::with_capacity(queues),
            ack_timeout: AcknowledgementTimeout::new(limits.consumer_timeout_ms),
            quota: Quota::new(limits, memory),
            counters: Counters::default(),
            firehose: Firehose::default(),
            republish: RepublishState::with_capacity(queues),
        };
        broker.begin_access()?;
        Ok(broker)
    }

    /// If memory is short, evicts a bounded number of messages that are in the log too. Returns whether the
    /// caller should call it again at once.
    pub fn evict(&mut self, cx: &mut Context<'_>) -> bool {
        let before = self.quota.pinned().unsettled_bytes;
        let connection_of = |channel| self.clients.connection_of(channel);
        let goes_on = self.queues.evict(cx, &mut self.quota, connection_of);
        if self.quota.pinned().unsettled_bytes < before {
            self.clients.note_settled();
        }
        goes_on
    }

    /// Reports the messages that the last read from the log did not find: stores a line about them for the
    /// alarm about damage.
    pub fn note_lost_messages(&mut self, cx: &mut Context<'_>) {
        let Some(lost) = self.queues.take_lost() else { return };
        if self.queues.records().get(lost.queue.index()).is_none() {
            return;
        }
        let queue = self.queues.at(self.queues.records().queue_of_level(lost.queue));
        let (name, first, last) =
            (self.queue_text(queue.vhost, &queue.name).to_string(), lost.first, lost.last);
        let line =
            format!("{UNDELIVERED}{first} to {last} of {} could not be read back", name.escape_debug());
        self.recovery.note_lost_messages(cx.pending_writes, &line);
    }

    /// Lowers watermarks to the messages that were delivered. Called before a clean stop, after everything
    /// else was written. Returns whether there is anything to write.
    pub fn reset_watermarks(&mut self, pending_writes: &mut PendingWrites) -> bool {
        self.queues.records_mut().reset_watermarks(pending_writes, &self.access)
    }

    /// Returns approximately how many bytes of system memory the pools have but do not use, without the tables that find their
    /// records.
    pub const fn idle_bytes(&self) -> usize {
        self.queues.idle_bytes()
            + self.topology.idle_bytes()
            + self.clients.idle_bytes()
            + self.access.idle_bytes()
            + self.policies.idle_bytes()
            + self.parameters.idle_bytes()
            + self.sessions.idle_bytes()
            + self.retained.idle_bytes()
    }

    /// Returns a bounded part of the unused memory to the system. Returns whether it was the last part.
    pub fn trim(&mut self) -> bool {
        self.access.trim();
        self.policies.trim();
        self.parameters.trim();
        self.topology.trim();
        self.clients.trim();
        self.sessions.trim();
        self.retained.trim();
        self.queues.trim()
    }

    /// Charges `bytes` of memory for each connection in addition to its records in the broker. Called before there is a
    /// connection.
    pub fn add_connection_bytes(&mut self, bytes: usize) {
        self.clients.add_connection_bytes(bytes);
    }

    /// Borrows what [`Republisher`] needs to publish a dead letter, a due delayed message or a firehose copy.
    pub(crate) const fn republisher(&mut self) -> Republisher<'_> {
        Republisher {
            republish: &mut self.republish,
            firehose: &mut self.firehose,
            queues: &mut self.queues,
            topology: &mut self.topology,
            quota: &mut self.quota,
            counters: &mut self.counters,
            policies: &self.policies,
            access: &self.access,
            clients: &self.clients,
            sessions: &mut self.sessions,
        }
    }

    /// Begins a job for a connection. The connection is not read until the job is done. The first step of the
    /// job runs directly after the command; for nearly all jobs it is the only one.
    pub(crate) fn begin_job(&mut self, connection: ConnectionId, job: Job) {
        self.clients.connection_mut(connection).jobs += 1;
        self.jobs.begin_for(connection, job);
    }

    /// Returns the counters since the start.
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    /// Returns what was missing for the last publish with the answer `PublishAnswer::Wait`.
    pub const fn last_shortage(&self) -> Shortage {
        self.publishing.shortage
    }

    /// Returns the read-only views of the broker, for operators.
    #[inline]
    pub const fn views(&self) -> Views<'_> {
        Views {
            access: &self.access,
            policies: &self.policies,
            parameters: &self.parameters,
            topology: &self.topology,
            queues: &self.queues,
            clients: &self.clients,
            quota: &self.quota,
            sessions: &self.sessions,
            retained: &self.retained,
            memory: &self.memory,
        }
    }

    /// Returns a random number.
    pub fn random_u64(&mut self) -> u64 {
        draw_seed(&mut self.entropy)
    }

    /// Returns whether closing this connection would free capacity, or messages for other consumers: the
    /// connection has exclusive queues or unsettled deliveries.
    pub fn blocks_others(&self, connection: ConnectionId) -> bool {
        !self.clients.connection(connection).exclusive_queues.is_empty()
            || self.quota.has_deliveries(connection)
    }

    /// Returns a counter that rises when capacity becomes free that a publisher may wait for.
    ///
    /// This is capacity for queue entries and deliveries, in the share of a queue, in an outbox, or in the
    /// log. The counter also rises when routes change, because a message may then be routed to queues that
    /// have capacity.
    pub fn capacity_freed(&self) -> u64 {
        self.queues.capacity_freed() + self.revision()
    }

    /// Returns a counter that rises whenever there may be memory for a retained message.
    pub const fn retained_freed(&self) -> u64 {
        self.retained.freed_count()
    }

    /// Returns how much of the pools is in use.
    pub fn gauges(&self) -> Gauges {
        let pinned = self.quota.pinned();
        Gauges {
            connections: self.clients.connections_fill().used,
            channels: self.clients.channels_fill().used,
            consumers: self.clients.consumers_fill().used,
            queues: self.queues.records().queue_count(),
            exchanges: self.quota.exchanges(),
            bindings: self.topology.bindings_len(),
            deliveries: self.queues.deliveries().len(),
            chunks: self.queues.entries().chunks_used(),
            names_bytes: self.quota.names_bytes(),
            jobs: self.jobs.len(),
            unsettled_bytes: pinned.unsettled_bytes,
            open_messages: pinned.open_messages,
            open_bytes: pinned.open_bytes,
            absent: self.queues.records().absent(),
            holders: self.quota.holders(),
        }
    }

    /// Returns a counter that rises with every change of routes or permissions.
    #[inline]
    pub(crate) const fn revision(&self) -> u64 {
        self.topology.revision() + self.access.revision()
    }

    /// Returns the users, virtual hosts and permissions.
    pub const fn access(&self) -> &Access {
        &self.access
    }

    /// Returns the users, virtual hosts and permissions, for changes by operators that concern no other part
    /// of the broker.
    pub const fn access_mut(&mut self) -> &mut Access {
        &mut self.access
    }

    /// Creates the virtual host and the user of a new store: `/`, and guest with all permissions in it.
    pub(crate) fn begin_access(&mut self) -> Result<(), Fault> {
        self.add_vhost(FIRST_VHOST)?;
        self.access.add_guest().map_err(|fault| match fault {
            OperatorFault::NoCapacity(what) => no_memory_for(what),
            other => unreachable!("guest can be: {other}"),
        })?;
        self.note_users();
        Ok(())
    }

    /// Updates the users in the quota, after one was added or deleted.
    pub(crate) fn note_users(&mut self) {
        self.quota.note_users(self.access.user_serials());
    }

    /// Returns the number of connections and channels that a user has.
    pub(crate) fn load_of(&self, who: &Identity) -> Load {
        let (connections, channels) = who.user().map_or((0, 0), |user| self.quota.of_user(user));
        Load { connections, channels }
    }

    /// Checks whether the user of a connection has this permission.
    pub(crate) fn check(
        &self,
        work: &mut Work,
        connection: ConnectionId,
        vhost: VhostId,
        right: Right,
        thing: Resource<'_>,
    ) -> Result<(), Fault> {
        self.access.check(work, &self.clients.connection(connection).identity, vhost, right, thing)
    }

    /// Adds a virtual host with its predeclared exchanges.
    pub(crate) fn add_vhost(&mut self, name: &str) -> Result<VhostId, Fault> {
        if self.topology.free_exchanges() < PREDECLARED_EXCHANGES {
            // There are places for the exchanges of all virtual hosts, so only the memory can lack.
            return Err(no_memory_for("another virtual host"));
        }
        let vhost = self.access.add_vhost(name)?;
        self.note_users();
        for (exchange, kind, internal) in PREDECLARED {
            let declaration = ExchangeDeclaration {
                exchange,
                kind: kind.name(),
                durable: true,
                auto_delete: false,
                internal,
                arguments: &[],
            };
            self.access.add_vhost_reference(vhost);
            let new = NewExchange { vhost, declaration, version: 0, declarer: None, delayed_queue: None };
            self.topology.insert_exchange(&new);
        }
        Ok(vhost)
    }

    /// Removes the record of a virtual host to which no other record refers.
    pub(crate) fn remove_vhost(&mut self, vhost: VhostId) {
        self.access.remove_vhost(vhost);
        self.note_users();
    }

    /// Subtracts a deleted record that referred to a virtual host. If it was the last one of a deleted
    /// virtual host, removes the virtual host.
    pub(crate) fn remove_vhost_reference(&mut self, vhost: VhostId) {
        self.access.remove_vhost_reference(vhost);
        self.free_vhost_if_done(vhost);
    }

    pub(crate) fn free_vhost_if_done(&mut self, vhost: VhostId) {
        if self.access.can_remove_vhost(vhost) {
            self.remove_vhost(vhost);
        }
    }

    /// Counts an object that is about to be declared, and the bytes of its names, in the quota.
    ///
    /// # Errors
    /// There is no capacity, or the connection that declares the object has used up its share.
    pub(crate) fn declare_quota(
        &mut self,
        declared: Declared,
        names_bytes: usize,
        declarer: Option<Declarer>,
    ) -> Result<(), Fault> {
        self.quota.declare(
            declared,
            names_bytes,
            declarer,
            self.topology.free_capacity(self.queues.records()),
        )
    }

    /// Frees the record of a cleared queue if no delivery, job or level refers to it any more.
    #[inline]
    pub(crate) fn free_queue_if_done(&mut self, queue: QueueId) {
        if self.queues.records().is_done(queue) {
            self.free_queue(queue);
        }
    }

    #[cold]
    fn free_queue(&mut self, queue: QueueId) {
        let mut next = Some(queue);
        while let Some((record, queue_of_level)) = next.and_then(|queue| self.queues.take_if_done(queue)) {
            let bytes = record.name.len() + record.arguments.len();
            self.quota.undeclare(Declared::Queue, bytes, record.declared.declarer);
            if !record.is_level() {
                self.remove_vhost_reference(record.vhost);
            }
            next = queue_of_level;
        }
    }

    /// Notes that a job has requeued all messages that it had to requeue in a queue. While such a job runs,
    /// the queue delivers nothing, because messages requeued later may come first. After the last such job,
    /// delivery resumes.
    pub(crate) fn end_blocking_job(&mut self, queue: QueueId) {
        self.queues.end_blocking_job(queue);
        self.free_queue_if_done(queue);
    }

    /// Returns a new name with this prefix that cannot be guessed. As in RabbitMQ, it ends with 128 random
    /// bits in base64.
    pub(crate) fn unique_name(&mut self, prefix: &str) -> Name {
        let mut random = [0; 16];
        (self.entropy)(&mut random);
        let mut digits = [0; 22];
        let written = URL_SAFE_NO_PAD.encode_slice(random, &mut digits);
        assert_eq!(written, Ok(digits.len()), "16 bytes are 22 digits");
        let digits = core::str::from_utf8(&digits).unwrap_or_default();
        // Prefix and digits together are shorter than the longest name.
        let mut name = Name::try_from(prefix).unwrap_or_default();
        let _ = name.push_str(digits);
        name
    }

    pub(crate) fn queue_text<'a>(&'a self, vhost: VhostId, name: &'a str) -> QueueText<'a> {
        QueueText { name, vhost: self.access.vhost_name(vhost) }
    }

    /// Returns the hidden queue of this channel's consumer of `amq.rabbitmq.reply-to`, if it has one.
    pub(crate) fn reply_queue_of(&self, channel: ChannelId) -> Option<QueueId> {
        let mut at = self.clients.next_of_channel(channel, None);
        while let Some(index) = at {
            let consumer = self.clients.consumer(index);
            let queue = consumer.queue;
            if consumer.state == ConsumerState::Active && self.queues.at(queue).is_internal() {
                return Some(queue);
            }
            at = self.clients.next_of_channel(channel, Some(index));
        }
        None
    }
}

/// Bytes of memory that a connection takes: its record, and its entries in tables and lists. This and the
/// following constants are for the memory table.
pub const CONNECTION_BYTES: usize = Slab::<Connection>::record_bytes() + CONNECTION_SIDE_BYTES;
/// Bytes that a connection takes besides its record: its entries in the quota and in several lists.
pub(crate) const CONNECTION_SIDE_BYTES: usize = Quota::CONNECTION_BYTES
    + 3 * size_of::<ConnectionId>()
    + 2 * size_of::<Begun>()
    + size_of::<TracedName>();
/// Bytes of an MQTT session's record.
pub const SESSION_BYTES: usize = Sessions::SESSION_BYTES;
/// Bytes of memory that a retained message takes, without its topic and its content.
pub const RETAINED_BYTES: usize = Retained::RECORD_BYTES;
/// Bytes of memory that a subscription takes while its retained messages are sent, and while sessions are chosen for a
/// message. The list of them grows by doubling.
pub const REPLAY_BYTES: usize = 2 * size_of::<Replay>() + CANDIDATE_BYTES;
/// Bytes of a channel's record.
pub const CHANNEL_BYTES: usize = Slab::<Channel>::record_bytes() + CHANNEL_SIDE_BYTES;
/// Bytes that a channel takes besides its record: the requests to read a message for it, in a list that grows by doubling.
pub(crate) const CHANNEL_SIDE_BYTES: usize = 2 * size_of::<Getting>();
/// Bytes of a consumer's record.
pub const CONSUMER_BYTES: usize = Slab::<Consumer>::record_bytes() + IndexTable::ENTRY_BYTES;
/// Bytes of a queue's record and everything that exists once per queue, without its names.
pub const QUEUE_BYTES: usize = Slab::<Queue>::record_bytes() + IndexTable::ENTRY_BYTES + QUEUE_SIDE_BYTES;
/// Bytes that a queue takes besides its record: its entries in the targets of a message and of a dead letter, and in the jobs.
const QUEUE_SIDE_BYTES: usize =
    leveret_queues::QUEUE_SIDE_BYTES + 2 * size_of::<QueueId>() + size_of::<Begun>() + LeftOut::ENTRY_BYTES;
/// Bytes of an exchange's record with its root node.
pub const EXCHANGE_BYTES: usize = Topology::EXCHANGE_BYTES + EXCHANGE_SIDE_BYTES;
/// Bytes that an exchange takes besides its record and its root node, without its names: its entries in several lists, the
/// allocator's overhead for its names, and its definition in the index of the log.
pub(crate) const EXCHANGE_SIDE_BYTES: usize = size_of::<ExchangeId>()
    + size_of::<Begun>()
    + LeftOut::ENTRY_BYTES
    + 4 * ALLOCATION_BYTES
    + leveret_storage::DEFINITION_BYTES;
/// Bytes of a binding's record with its trie nodes and one indexed pair.
pub const BINDING_BYTES: usize = Topology::BINDING_BYTES + BINDING_SIDE_BYTES;
/// Bytes that a binding takes besides its record, its trie nodes and pairs: the allocator's overhead for its names, its entry in
/// the list of subscriptions that get retained messages, and its definition in the index of the log.
pub(crate) const BINDING_SIDE_BYTES: usize =
    2 * ALLOCATION_BYTES + REPLAY_BYTES + leveret_storage::DEFINITION_BYTES;
/// Bytes of a virtual host's record with its predeclared exchanges.
pub const VHOST_BYTES: usize = access::VHOST_BYTES + access::PREDECLARED_EXCHANGES * EXCHANGE_BYTES;
/// Bytes of a user's record.
pub const USER_BYTES: usize = access::USER_BYTES;
/// Bytes of a permission's record without its patterns.
pub const PERMISSION_BYTES: usize = access::PERMISSION_BYTES;
/// Bytes of a parameter's record.
pub const PARAMETER_BYTES: usize = Parameters::PARAMETER_BYTES;
/// Bytes of a policy's record without its pattern.
pub const POLICY_BYTES: usize = Policies::POLICY_BYTES;
/// Bytes of a delivery's record.
pub const DELIVERY_BYTES: usize = Deliveries::RECORD_BYTES;

const _: () = assert!(
    CONNECTION_BYTES + CHANNEL_BYTES + CONSUMER_BYTES > FLOOR_PART * DELIVERY_BYTES,
    "there is a delivery for each client that fits into the floor"
);

/// Bytes of the records of a client.
pub(crate) const CLIENT_RECORD_BYTES: ClientRecordBytes = ClientRecordBytes {
    connection: CONNECTION_BYTES,
    channel: CHANNEL_BYTES,
    consumer: CONSUMER_BYTES,
    delivery: DELIVERY_BYTES,
};

/// Returns the bytes of the buffers that exist once, and of hash tables whose size does not follow their records.
pub const fn buffer_bytes(limits: &Limits) -> usize {
    let frame_max = limits.frame_max as usize;
    let once = orphans::ORPHANS_BYTES + DelayWheel::held_bytes(limits.messages_max as usize);
    let tables = Deliveries::table_bytes(limits.unacknowledged_max as usize)
        + Topology::pair_table_bytes(limits.bindings_max as usize);
    2 * frame_max + 256 + Topology::header_positions_bytes(frame_max) + once + tables
}

/// A source of random bytes: fills the buffer. Used for seeds, keys and names that must not be guessable.
pub type Entropy = Box<dyn FnMut(&mut [u8])>;
