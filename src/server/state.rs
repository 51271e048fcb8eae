//! Everything that runs, reserved at once, and what whoever runs it may see of it and set.

use leveret_bridge::Origin;
use leveret_broker::Broker;
use leveret_config::Config;
use leveret_config::bridge::Bridge as BridgeConfig;
use leveret_connection::{Context, Identity, Names, Pools, Settings};
use leveret_core::command::ConnectionId;
use leveret_core::journal::Journal;
use leveret_core::limits::Limits;
use leveret_core::log_limiter::LogLimiter;
use leveret_core::mem::Messages;
use leveret_core::time::{Deadline, Now};
use leveret_management::request_context::Process;
use leveret_management::samples::Samples;

use super::admission::{Admission, Listeners};
use super::blocked_publishers::RoomOffers;
use super::bridges::{self, Bridges};
use super::idle_memory::IdleMemory;
use super::lists::Lists;
use super::operators::{Operators, sampled_places};
use super::peer::PeerId;
use super::peer::Peers;
use super::platform::Platform;
use super::storage_driver::StoreDriver;
use super::stream::Buffers;
use super::turn::TurnBudget;
use super::worker::{CertificateState, WorkerQueue};

/// What an engine is made from.
#[derive(Clone, Debug)]
pub struct Setup {
    /// How much there may be of everything; all of it is reserved.
    pub limits: Limits,
    /// What peers are told of the broker.
    pub identity: Identity,
    /// Accepted connections that may wait for a place, at most [`WAITING_MAX`](crate::WAITING_MAX).
    pub waiting_max: usize,
    /// Listeners for AMQP, by their places: whether whoever comes in there speaks TLS.
    pub listeners: Vec<bool>,
    /// Listeners of the management API and behind them those for metrics, by their places: whether whoever comes in
    /// there speaks TLS.
    pub management_listeners: Vec<bool>,
    /// How many of them are for metrics without a login.
    pub metrics_listeners: usize,
    /// What our certificates are good for as things stand.
    pub certificates: CertificateState,
    /// Links of bridges that may speak TLS at once.
    pub tls_links: usize,
    /// All memory is locked: nothing is given back.
    pub is_memory_locked: bool,
    /// What an operator is told of the process.
    pub process: Process,
    /// The user that the process runs as; besides root, the only one who gets at the control socket.
    pub own_uid: u32,
}

/// Everything that runs but for the system: what all parts are lent, and the parts.
pub struct Engine<P: Platform> {
    pub(super) shared: Shared<P>,
    /// The store, unless it cannot be used at all.
    pub(super) store: Option<StoreDriver>,
    /// What is known of the publishers that wait for room.
    pub(super) room: RoomOffers,
    pub(super) idle_memory: IdleMemory,
    pub(super) operators: Operators,
    pub(super) bridges: Bridges,
}

impl<P: Platform> Engine<P> {
    /// Reserves everything. Nobody can come in before the first turn; a store comes by [`Self::set_store`].
    pub fn new(setup: Setup, broker: Broker, platform: P) -> Self {
        let limits = setup.limits;
        let connections = limits.connection_records();
        let (bridges_max, frame_max) = (limits.bridges_max as usize, limits.frame_max as usize);
        let mut broker = broker;
        // Those of the file take theirs when they are known, see `set_bridges`.
        broker.set_shovel_places(bridges_max);
        broker.set_parameter_check(bridges::check);
        let has_tls_room = setup.tls_links > 0;
        let called = (&*setup.process.node, &*setup.identity.version);
        let bridges = Bridges::new(bridges_max, frame_max, called, broker.chance(), has_tls_room);
        let peers = Peers::<P::Socket>::places_max(connections);
        let listeners = Listeners {
            amqp: setup.listeners,
            management: setup.management_listeners,
            metrics: setup.metrics_listeners,
        };
        let with_tls = listeners.amqp.contains(&true);
        let manages_tls = listeners.management.contains(&true);
        let tls_others =
            setup.tls_links + if manages_tls { limits.management_clients_max as usize } else { 0 };
        let has_api = listeners.management.len() > listeners.metrics;
        let samples = if has_api { Samples::new(sampled_places(&limits)) } else { Samples::default() };
        let shared = Shared {
            now: Now::from_ms(0),
            stopping: None,
            platform,
            admission: Admission::new(&listeners, limits.handshakes_max as usize, setup.waiting_max),
            peers: Peers::with_capacity(connections),
            lists: Lists::with_capacity(peers),
            supplies: Supplies {
                settings: Settings::new(&limits, &setup.identity),
                pools: Pools::new(&limits),
                messages: Messages::new(limits.message_limits()),
                log: LogLimiter::default(),
            },
            broker,
            journal: Journal::new(limits.messages_max as usize),
            worker: WorkerQueue::new(&limits, with_tls, (setup.certificates, tls_others)),
            buffers: Buffers::new(&limits, with_tls, tls_others),
            scratch: Scratch::new(&limits),
            budget: TurnBudget::default(),
            limits,
        };
        Self {
            shared,
            store: None,
            room: RoomOffers::new(),
            idle_memory: IdleMemory::new(setup.is_memory_locked),
            operators: Operators::closed(setup.process, setup.own_uid, samples),
            bridges,
        }
    }

    /// What is durable goes there from now on; the broker knows already what it holds.
    pub fn set_store(&mut self, mut store: StoreDriver) {
        let disk_limit = &mut self.operators.process.disk_limit_bytes;
        if *disk_limit == 0 {
            *disk_limit = store.keeper.log_mut().space().limit_bytes();
        }
        self.store = Some(store);
    }

    /// What is durable is there, if there is a disk.
    pub const fn store(&self) -> Option<&StoreDriver> {
        self.store.as_ref()
    }

    /// The world outside.
    pub const fn platform(&self) -> &P {
        &self.shared.platform
    }

    /// See [`Self::platform`].
    pub const fn platform_mut(&mut self) -> &mut P {
        &mut self.shared.platform
    }

    /// The broker and what it works with, for a start that declares what there is to be, and for whoever
    /// looks.
    pub const fn broker_mut(&mut self) -> (&mut Broker, leveret_broker::Context<'_>) {
        self.shared.broker_mut()
    }

    /// The broker.
    pub const fn broker(&self) -> &Broker {
        &self.shared.broker
    }

    /// What the broker has said that is to be written.
    pub const fn journal(&self) -> &Journal {
        &self.shared.journal
    }

    /// All messages in memory.
    pub const fn messages(&self) -> &Messages {
        &self.shared.supplies.messages
    }

    /// What the sessions share.
    pub const fn pools(&self) -> &Pools {
        &self.shared.supplies.pools
    }

    /// Bytes of input that wait, of all peers.
    pub const fn input_bytes_waiting(&self) -> usize {
        self.shared.buffers.bytes_used()
    }

    /// What was last set by `set_now`.
    pub const fn now(&self) -> Now {
        self.shared.now
    }

    /// Whether there is a bridge.
    pub const fn has_bridges(&self) -> bool {
        !self.bridges.is_empty()
    }

    /// Sets whose messages leave this broker: those of a store, in one of its lives.
    pub const fn set_origin(&mut self, store: [u8; 16], life: u32) {
        self.bridges.set_origin(Origin { store, life });
    }

    /// These bridges of the configuration are to be there from now on, beside those of parameters: those that
    /// are there as they are stay as they are.
    #[cold]
    pub fn set_bridges(&mut self, said: &[BridgeConfig]) {
        self.bridges.set(&mut self.shared, said);
    }

    /// What of bridges is to be written down; `None`: there are none.
    #[cold]
    pub fn bridge_notes(&mut self) -> Option<String> {
        self.bridges.notes(&self.shared)
    }

    /// Takes up what was written down; the bridges are there already, and nothing has been done with them.
    #[cold]
    pub fn restore_bridges(&mut self, notes: &str) {
        self.bridges.restore(notes, self.shared.now);
    }

    /// Lets the operator's clients in from now on.
    pub const fn open_control_socket(&mut self) {
        self.operators.is_open = true;
    }

    /// What an operator is told of the configuration from now on.
    pub fn set_environment(&mut self, shown: String) {
        self.operators.process.environment = shown;
    }

    /// Raises the alarm that the file of `load_definitions` could not be read.
    pub fn set_definitions_unread(&mut self) {
        self.operators.process.are_definitions_unread = true;
    }

    /// Has the configuration read again, and its certificates with it.
    pub fn reload(&mut self, config: Box<Config>) {
        self.shared.worker.reload = Some(config);
    }

    /// Has the certificates read again if their files have changed.
    pub fn look_at_certificates(&mut self) {
        self.shared.worker.are_certificates_due = true;
    }

    /// What the configuration says that was read again, or why it cannot be used.
    pub fn take_reloaded(&mut self) -> Option<Result<Config, String>> {
        self.shared.worker.reloaded.take().map(|again| *again)
    }
}

// What sessions, and whoever else works for the loop, are lent: pools, messages and the log, and space to work in.
//
// Always true: there is one of each, and whoever is lent them gives them back before anybody else works.

/// What sessions are lent while they work.
#[derive(Debug)]
pub(super) struct Supplies {
    pub(super) settings: Settings,
    pub(super) pools: Pools,
    pub(super) messages: Messages,
    /// What is logged of peers goes through it.
    pub(super) log: LogLimiter,
}

/// Space for one reading or writing, which nobody keeps.
#[derive(Debug)]
pub(super) struct Scratch {
    /// What one peer has sent.
    pub(super) input: Box<[u8]>,
    /// What one peer is to be sent.
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

impl Supplies {
    #[inline(always)]
    pub(super) fn context(
        &mut self,
        now: Now,
        broker: &Broker,
        journal: &Journal,
        id: ConnectionId,
    ) -> Context<'_> {
        Context {
            now,
            pools: &mut self.pools,
            messages: &mut self.messages,
            settings: &self.settings,
            share: broker.content_share(id),
            durable: journal.durable(),
            last_delivery: broker.last_delivery(id),
            log: &mut self.log,
        }
    }
}

// What every part of the engine is lent: the peers and their lists, the broker and what it works with, budgets.
//
// The parts are the sessions of peers, the worker's jobs, bridges, operators and the disk. One of them runs at a time,
// and has all of this for as long.
//
// Always true: nothing here knows of bridges, operators or the disk: what concerns more than one part is done by
// [`Engine`](super::state::Engine), which has them.

/// What every part is lent.
pub(super) struct Shared<P: Platform> {
    pub(super) limits: Limits,
    pub(super) now: Now,
    /// By when everybody must have gone, once it is to stop.
    pub(super) stopping: Option<Deadline>,
    /// The world outside.
    pub(super) platform: P,
    pub(super) admission: Admission<P::Socket>,
    /// Whoever is connected, of whatever kind.
    pub(super) peers: Peers<P::Socket>,
    /// Who of them is to be read, written to, closed or called, and who waits for what.
    pub(super) lists: Lists,
    pub(super) supplies: Supplies,
    pub(super) broker: Broker,
    /// What the broker has said that is to be written.
    pub(super) journal: Journal,
    /// What the worker is to do.
    pub(super) worker: WorkerQueue,
    pub(super) buffers: Buffers,
    pub(super) scratch: Scratch,
    /// What this turn has read and done so far.
    pub(super) budget: TurnBudget,
}

impl<P: Platform> Shared<P> {
    pub(super) const fn is_stopping(&self) -> bool {
        self.stopping.is_some()
    }

    /// The broker, and what its calls are lent: journal, messages, and the turn's budget of work.
    pub(super) const fn broker_mut(&mut self) -> (&mut Broker, leveret_broker::Context<'_>) {
        let context = leveret_broker::Context::new(
            &mut self.journal,
            &mut self.supplies.messages,
            &mut self.budget.work,
        );
        (&mut self.broker, context)
    }

    /// Has a peer read in the next turn, unless it waits for something.
    pub(super) fn list_to_read(&mut self, id: impl Into<PeerId>) {
        self.lists.list_to_read(&self.peers, id);
    }

    /// Has a peer written to in this turn, or the next.
    pub(super) fn list_to_write(&mut self, id: impl Into<PeerId>) {
        self.lists.list_to_write(id);
    }

    /// A peer waits for nothing any more.
    pub(super) fn resume(&mut self, id: impl Into<PeerId>) {
        self.lists.resume(&mut self.peers, id);
    }

    /// Closes a peer at the end of the turn.
    pub(super) fn end_now(&mut self, id: impl Into<PeerId>) {
        self.lists.end_now(&mut self.peers, id);
    }
}
