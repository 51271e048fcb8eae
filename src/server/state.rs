//! The engine: the state of the event loop, and its interface to the daemon.
//!
//! The parts of the engine are AMQP sessions, worker jobs, bridges, operator clients and the disk. One of
//! them runs at a time and borrows [`Shared`]. `Shared` contains no bridges, operator clients or disk. Work
//! that concerns several parts is in methods of [`Engine`].

use crate::bridges::BridgeSizes;
use leveret_bridge::Origin;
use leveret_broker::Broker;
use leveret_config::Config;
use leveret_config::bridge::Bridge as BridgeConfig;
use leveret_connection::{Context, Identity, MqttSettings, Names, Pools, Settings};
use leveret_core::command::ConnectionId;
use leveret_core::limits::Limits;
use leveret_core::log_limiter::LogLimiter;
use leveret_core::mem::Messages;
use leveret_core::time::{Deadline, Now};
use leveret_management::parameters::cluster_name;
use leveret_management::request::Process;
use leveret_management::samples::Samples;
use leveret_storage::PendingWrites;

use super::admission::{Admission, Listeners};
use super::blocked_publishers::BlockedPublishers;
use super::bridges::{self, Bridges};
use super::idle_memory::IdleMemory;
use super::lists::Lists;
use super::operators::{Operators, sampled_places};
use super::peer::PeerId;
use super::peer::{Peers, TotalTraffic};
use super::platform::Platform;
use super::storage_driver::StorageDriver;
use super::stream::Buffers;
use super::system_topics::SystemTopics;
use super::turn::TurnBudget;
use super::worker::{CertificateState, WorkerQueue};

/// The values from which an [`Engine`] is made.
#[derive(Clone, Debug)]
pub struct EngineSetup {
    /// The limits. All resources are reserved at start.
    pub limits: Limits,
    /// The name and version of the broker that are sent to clients.
    pub identity: Identity,
    /// Maximum number of accepted sockets that wait for a slot, at most [`WAITING_SOCKETS_MAX`](crate::WAITING_SOCKETS_MAX).
    pub waiting_sockets_max: usize,
    /// Listeners for AMQP, by index: whether TLS is used.
    pub listeners: Vec<bool>,
    /// Listeners for MQTT, by index: whether TLS is used.
    pub mqtt_listeners: Vec<bool>,
    /// The settings of MQTT.
    pub mqtt: MqttSettings,
    /// Listeners of the management API, followed by those for metrics, by index: whether TLS is used.
    pub management_listeners: Vec<bool>,
    /// Number of `management_listeners` that serve metrics without a login.
    pub metrics_listeners: usize,
    /// The state of the broker's certificates at start.
    pub certificates: CertificateState,
    /// Bytes of memory that a connection over TLS takes in addition.
    pub tls_session_bytes: usize,
    /// The memory that a bridge takes.
    pub bridge_sizes: BridgeSizes,
    /// Whether shovels can be defined.
    pub has_shovels: bool,
    /// The description of the process for operators.
    pub process: Process,
    /// The user that the process runs as. Only this user and root may use the control socket.
    pub own_uid: u32,
}

impl EngineSetup {
    /// Returns whether a listener for clients uses TLS. Metrics listeners use none.
    fn serves_clients_with_tls(&self) -> bool {
        let has_websocket_tls = self.manages_with_tls() && self.process.mqtt_websocket_origins.is_some();
        self.listeners.contains(&true) || self.mqtt_listeners.contains(&true) || has_websocket_tls
    }

    fn manages_with_tls(&self) -> bool {
        self.management_listeners.contains(&true)
    }

    /// Returns the maximum number of links of bridges and management clients, which may use TLS too.
    fn other_tls_peers_max(&self) -> usize {
        let clients_max =
            if self.manages_with_tls() { self.limits.management_clients_max as usize } else { 0 };
        self.limits.bridge_links() + clients_max
    }

    /// Creates the bridges, and tells the broker what it must know about them.
    fn create_bridges<P: Platform>(&self, broker: &mut Broker) -> Bridges {
        let common = bridges::Common::new(&self.process.node, &self.identity.version, broker.random_u64());
        let bridges = Bridges::new(&self.limits, common, self.bridge_sizes, self.has_shovels);
        // Bridges of the configuration file take their places with `set_bridges`.
        broker.set_shovel_places(bridges.shovels_max(), bridges.least_bytes::<P::Socket>());
        bridges
    }
}

/// The event loop: its parts, and the resources that these share.
pub struct Engine<P: Platform> {
    pub(super) shared: Shared<P>,
    /// The storage driver; `None` if there is no usable storage.
    pub(super) store: Option<StorageDriver>,
    /// The state of the publishers that wait for capacity.
    pub(super) blocked: BlockedPublishers,
    pub(super) idle_memory: IdleMemory,
    pub(super) operators: Operators,
    pub(super) bridges: Bridges,
    pub(super) system_topics: SystemTopics,
}

impl<P: Platform> Engine<P> {
    /// Creates the engine and reserves its memory. No connection is accepted before the first turn.
    /// [`Self::set_store`] adds the storage.
    pub fn new(setup: EngineSetup, broker: Broker, platform: P) -> Self {
        let mut broker = broker;
        let bridges = setup.create_bridges::<P>(&mut broker);
        let with_tls = setup.serves_clients_with_tls();
        let other_tls_peers_max = setup.other_tls_peers_max();
        let limits = setup.limits;
        let connections = limits.connection_records();
        let system_topics = SystemTopics::new(setup.mqtt.sys_interval_ms);
        if system_topics.are_offered() {
            broker.offer_system_topics();
        }
        let peers = Peers::<P::Socket>::slots_max(connections);
        let listeners = Listeners {
            amqp: setup.listeners,
            mqtt: setup.mqtt_listeners,
            management: setup.management_listeners,
            metrics: setup.metrics_listeners,
        };
        let has_api = listeners.management.len() > listeners.metrics;
        let samples = if has_api { Samples::new(sampled_places(&limits)) } else { Samples::default() };
        let shared = Shared {
            now: Now::from_ms(0),
            stopping: None,
            platform,
            admission: Admission::new(
                &listeners,
                limits.handshakes_max as usize,
                setup.waiting_sockets_max,
                broker.memory(),
                setup.tls_session_bytes,
            ),
            peers: Peers::with_capacity(connections),
            lists: Lists::with_capacity(peers),
            resources: SharedResources {
                settings: Settings::new(&limits, &setup.identity).with_mqtt(setup.mqtt),
                pools: Pools::in_memory(&limits, broker.memory()),
                messages: Messages::in_memory(limits.message_limits(), broker.memory()),
                log: LogLimiter::default(),
            },
            broker,
            pending_writes: PendingWrites::new(limits.messages_max as usize),
            worker: WorkerQueue::new(&limits, with_tls, setup.certificates, other_tls_peers_max),
            buffers: Buffers::new(&limits, with_tls, other_tls_peers_max),
            identity: setup.identity,
            scratch: Scratch::new(&limits),
            budget: TurnBudget::default(),
            traffic: TotalTraffic::default(),
            limits,
        };
        Self {
            shared,
            store: None,
            blocked: BlockedPublishers::new(),
            idle_memory: IdleMemory::new(),
            operators: Operators::new(setup.process, setup.own_uid, samples),
            bridges,
            system_topics,
        }
    }

    /// Sets the storage driver, which from now on writes the log entries of the broker. The broker has been
    /// restored from this storage already.
    pub fn set_store(&mut self, mut store: StorageDriver) {
        let disk_limit = &mut self.operators.process.disk_limit_bytes;
        if *disk_limit == 0 {
            *disk_limit = store.commit_writer.log_mut().space().limit_bytes();
        }
        self.store = Some(store);
    }

    /// Returns the storage driver; `None` if there is no usable storage.
    pub const fn store(&self) -> Option<&StorageDriver> {
        self.store.as_ref()
    }

    /// Returns the platform.
    pub const fn platform(&self) -> &P {
        &self.shared.platform
    }

    /// Returns the platform.
    pub const fn platform_mut(&mut self) -> &mut P {
        &mut self.shared.platform
    }

    /// Returns the broker and the context for its calls: for declarations at start, and for inspection.
    pub const fn broker_mut(&mut self) -> (&mut Broker, leveret_broker::Context<'_>) {
        self.shared.broker_mut()
    }

    /// Returns the broker.
    pub const fn broker(&self) -> &Broker {
        &self.shared.broker
    }

    /// Returns the pending-write buffer: the broker's log entries that are to be written.
    pub const fn pending_writes(&self) -> &PendingWrites {
        &self.shared.pending_writes
    }

    /// Returns the pool of all messages in memory.
    pub const fn messages(&self) -> &Messages {
        &self.shared.resources.messages
    }

    /// Returns the pools that the sessions share.
    pub const fn pools(&self) -> &Pools {
        &self.shared.resources.pools
    }

    /// Returns the number of bytes of input and output that are kept in memory for all peers.
    pub const fn waiting_bytes(&self) -> usize {
        self.shared.buffers.bytes_used()
    }

    /// Returns the number of messages since the start that were dropped with the connections of their publishers.
    pub const fn dropped_messages_count(&self) -> u64 {
        self.shared.admission.dropped_messages_count()
    }

    /// Returns the time that `set_now` set last.
    pub const fn now(&self) -> Now {
        self.shared.now
    }

    /// Returns whether any bridge exists.
    pub const fn has_bridges(&self) -> bool {
        !self.bridges.is_empty()
    }

    /// Sets the origin that bridges add to messages for other brokers: the id of the store and its epoch.
    pub const fn set_origin(&mut self, store: [u8; 16], epoch: u32) {
        self.bridges.set_origin(Origin { store, epoch });
    }

    /// Sets the bridges of the configuration file. Those of runtime parameters, and unchanged ones, continue
    /// without interruption.
    #[cold]
    pub fn set_bridges(&mut self, said: &[BridgeConfig]) {
        self.bridges.set(&mut self.shared, said);
    }

    /// Returns the state of the bridges that must be written to the disk; `None` if there are no bridges.
    #[cold]
    pub fn bridge_state_text(&mut self) -> Option<String> {
        self.bridges.state_text(&self.shared)
    }

    /// Restores the state of the bridges from the text that [`Self::bridge_state_text`] returned. Called
    /// after `set_bridges` and before the first turn.
    #[cold]
    pub fn restore_bridge_state(&mut self, text: &str) {
        self.bridges.restore(text, self.shared.now);
    }

    /// Accepts clients of the control socket from now on.
    pub const fn open_control_socket(&mut self) {
        self.operators.accepts_control_clients = true;
    }

    /// Sets the description of the configuration that is shown to operators.
    pub fn set_environment(&mut self, shown: String) {
        self.operators.process.environment = shown;
    }

    /// Raises the alarm that the `load_definitions` file could not be read.
    pub fn set_definitions_unreadable(&mut self) {
        self.operators.process.has_unread_definitions = true;
    }

    /// Requests that the worker read the configuration and the certificates again.
    pub fn reload(&mut self, config: Box<Config>) {
        self.shared.worker.reload = Some(config);
    }

    /// Requests that the worker read the certificates again if their files have changed.
    pub fn check_certificates(&mut self) {
        self.shared.worker.are_certificates_due = true;
    }

    /// Returns the result of a finished reload: the new configuration, or why it cannot be used. `None` if
    /// there is none.
    pub fn take_reload_result(&mut self) -> Option<Result<Config, String>> {
        self.shared.worker.reloaded.take().map(|again| *again)
    }
}

/// The pools, the messages and the log, which the parts of the engine borrow.
#[derive(Debug)]
pub(super) struct SharedResources {
    pub(super) settings: Settings,
    pub(super) pools: Pools,
    pub(super) messages: Messages,
    /// The rate-limited log, used for all lines about peers.
    pub(super) log: LogLimiter,
}

/// Buffers for a single read or write. Their content is not used afterwards.
#[derive(Debug)]
pub(super) struct Scratch {
    /// Input of one peer.
    pub(super) input: Box<[u8]>,
    /// Output for one peer.
    pub(super) output: Box<[u8]>,
    /// The names in one command.
    pub(super) names: Names,
}

impl Scratch {
    pub(super) fn new(limits: &Limits) -> Self {
        let bytes = |count: u32| vec![0; count as usize].into_boxed_slice();
        Self {
            input: bytes(limits.input_buffer_bytes),
            output: bytes(limits.output_buffer_bytes),
            names: Names::default(),
        }
    }
}

impl SharedResources {
    #[inline(always)]
    pub(super) fn context(
        &mut self,
        now: Now,
        broker: &Broker,
        pending_writes: &PendingWrites,
        id: ConnectionId,
    ) -> Context<'_> {
        Context {
            now,
            broker_time_ms: pending_writes.time_ms(),
            pools: &mut self.pools,
            messages: &mut self.messages,
            settings: &self.settings,
            share: broker.content_share(id),
            durable: pending_writes.durable(),
            last_delivery: broker.last_delivery(id),
            withholds_answers: false,
            log: &mut self.log,
        }
    }
}

/// The state that each part of the engine borrows while it runs.
pub(super) struct Shared<P: Platform> {
    pub(super) limits: Limits,
    pub(super) now: Now,
    /// During the shutdown: when the remaining connections are closed. Otherwise `None`.
    pub(super) stopping: Option<Deadline>,
    /// The interface to the operating system.
    pub(super) platform: P,
    pub(super) admission: Admission<P::Socket>,
    /// All peers, of every kind.
    pub(super) peers: Peers<P::Socket>,
    /// The lists of peers: to be read, written, closed, called at a deadline, or waiting.
    pub(super) lists: Lists,
    pub(super) resources: SharedResources,
    pub(super) broker: Broker,
    /// The pending-write buffer: the broker's log entries that are to be written.
    pub(super) pending_writes: PendingWrites,
    /// Jobs for the worker.
    pub(super) worker: WorkerQueue,
    pub(super) buffers: Buffers,
    pub(super) scratch: Scratch,
    /// The input read and the work done in the current turn.
    pub(super) budget: TurnBudget,
    pub(super) traffic: TotalTraffic,
    /// The identity in connection.start, with the node's name in place of the cluster name.
    pub(super) identity: Identity,
}

impl<P: Platform> Shared<P> {
    /// Tells later clients the cluster name that is set now.
    pub(super) fn announce_cluster_name(&mut self) {
        let cluster_name = cluster_name(&self.broker, &self.identity.cluster_name);
        self.resources.settings.set_identity(&Identity { cluster_name, ..self.identity.clone() });
    }

    pub(super) const fn is_stopping(&self) -> bool {
        self.stopping.is_some()
    }

    /// Returns the broker and the context for its calls: pending-write buffer, messages, and work counter.
    pub(super) const fn broker_mut(&mut self) -> (&mut Broker, leveret_broker::Context<'_>) {
        let context = leveret_broker::Context::new(
            &mut self.pending_writes,
            &mut self.resources.messages,
            &mut self.budget.work,
        );
        (&mut self.broker, context)
    }

    /// Lists a peer for the next read step, in this turn or the next, unless the peer waits.
    pub(super) fn list_to_read(&mut self, id: impl Into<PeerId>) {
        self.lists.list_to_read(&self.peers, id);
    }

    /// Lists a peer to be written to in this turn or the next.
    pub(super) fn list_to_write(&mut self, id: impl Into<PeerId>) {
        self.lists.list_to_write(id);
    }

    /// Ends the waiting of a peer and lists it to be read.
    pub(super) fn resume(&mut self, id: impl Into<PeerId>) {
        self.lists.resume(&mut self.peers, id);
    }

    /// Closes a peer at the end of the turn.
    pub(super) fn close_at_turn_end(&mut self, id: impl Into<PeerId>) {
        self.lists.close_at_turn_end(&mut self.peers, id);
    }
}
