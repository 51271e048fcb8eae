//! A simulation of the whole server in memory: the production engine, clients connected by byte streams, and a clock that
//! jumps.
//!
//! Timing such as a full window, a late byte or a day of heartbeats can be reproduced exactly here.
//!
//! | file      | contents |
//! |-----------|------------|
//! | `platform` | the platform of the engine: lines instead of sockets, no operating system |
//! | `meanwhile` | operations of one helper during a job of another |
//! | `line` | one connection: fragments, windows, breaks |
//! | `client`  | the simulated client |
//! | `checker` | the checks of a client on what it receives |
//! | `mqtt` | an MQTT client that a test drives packet by packet |
//! | `websocket` | the client's side of WebSocket for that client |
//! | `hostile` | arbitrary bytes as AMQP clients, for the fuzzer |
//! | `hostile_http` | arbitrary bytes as requests to the management API |
//!
//! # Invariants
//! - The same calls give the same run.
//! - A simulation that never comes to rest is a failure, because the event loop would use a whole processor.
//! - It is also a failure if the simulation rests while a client could proceed. The engine checks that before
//!   every sleep, in builds with assertions.

pub mod checker;
pub mod client;
pub mod hostile;
pub mod hostile_http;
pub mod line;
pub mod meanwhile;
pub mod mqtt;
pub mod platform;
pub mod websocket;

use std::cell::{RefCell, RefMut};
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::rc::Rc;

use leveret_amqp::{Method, Table};
use leveret_broker::{Broker, Gauges, OpenedLog, restore};
use leveret_connection::{Identity, MqttSettings};
use leveret_core::limits::Limits;
use leveret_core::mem;
use leveret_core::password::PasswordHash;
use leveret_core::time::{Deadline, Now};
use leveret_management::request::{Endurance, Machine, Process, StoreView};
use leveret_server::{
    BridgeSizes, Engine, EngineSetup, ListenerId, PeerAddress, StorageDriver, WAITING_SOCKETS_MAX,
};
use leveret_storage::{Identity as StoreIdentity, Log, Settings};

use crate::random::Random;
use crate::simulated_disk::{Mutant, SimDisk, Trouble};
pub use checker::{Phase, Said};
pub use client::{Client, Manners, Silence, content_frames, frame, method_frame};
pub use line::{Line, Shape};
pub use platform::{Helpers, Memory};

/// Hash of the password `guest` with one iteration. The broker's number of iterations would take two thirds
/// of the time of many tests.
const GUEST: PasswordHash = PasswordHash::Pbkdf2 {
    iterations: NonZeroU32::MIN,
    salt: *b"guest of leveret",
    digest: [
        0xc7, 0xbb, 0x0b, 0x19, 0x67, 0x9c, 0x64, 0x67, 0x11, 0x54, 0xdf, 0x10, 0x19, 0xcd, 0x14, 0xc9, 0x06,
        0x89, 0xb5, 0x17, 0x05, 0x7f, 0x43, 0x3c, 0xcd, 0xa4, 0x06, 0x66, 0x71, 0xcf, 0x3c, 0x1f,
    ],
};

/// Time after which the broker drops a lost peer that is blocked for capacity, in milliseconds: 30 s, and once more if some
/// of its input was handled in between. A peer is lost when its input has ended.
pub const LOST_MS: u64 = 61_000;
/// A connection that waits for a handshake slot is checked at this interval, and has one after at most
/// `ADMIT_TRIES` checks.
const ADMIT_MS: u64 = 20;
const ADMIT_TRIES: u32 = 5;
/// Rounds at one time after which a simulation that still moves is considered to loop forever.
const ROUNDS_MAX: u64 = 3_000_000;

/// Tests give the size of a memory in units of 16 KiB, whatever the size of an extent.
const EXTENTS_PER_UNIT: usize = (16 << 10) / mem::EXTENT_BYTES;
/// Units of memory for clients, or for definitions, that no test with a small memory for messages reaches.
pub const OTHER_EXTENTS: usize = 1_000;

/// Limits small enough to be reached in a test.
pub fn small_limits() -> Limits {
    Limits {
        connections_max: 600,
        handshakes_max: 600,
        channels_max: 1200,
        consumers_max: 512,
        queues_max: 512,
        exchanges_max: 32,
        bindings_max: 512,
        messages_max: 2_000,
        queue_entries_max: 32_000,
        unacknowledged_max: 2_048,
        body_bytes_max: 4 << 20,
        assembly_bytes_max: 3 << 20,
        message_size_max: 1 << 20,
        input_backlog_bytes_max: 1 << 20,
        ..Limits::default()
    }
}

/// Limits of pools that no test with a small memory reaches.
pub fn wide_limits() -> Limits {
    Limits {
        messages_max: 40_000,
        queue_entries_max: 320_000,
        unacknowledged_max: 40_000,
        body_bytes_max: 64 << 20,
        ..small_limits()
    }
}

/// Returns a memory in which clients and messages have these numbers of units of 16 KiB, and definitions have [`OTHER_EXTENTS`]. No
/// class can take what another one leaves.
pub fn memory_of(clients: usize, messages: usize) -> mem::Memory {
    let floors = [clients, OTHER_EXTENTS, messages].map(|units| units * EXTENTS_PER_UNIT);
    mem::Memory::new(floors.iter().sum::<usize>() + mem::COMMAND_EXTENTS, floors)
}

/// The flags and properties of a publish.
#[derive(Clone, Copy, Debug)]
pub struct Publish<'a> {
    pub exchange: &'a str,
    pub key: &'a str,
    pub mandatory: bool,
    pub properties: &'a [u8],
    /// Bytes of body per frame.
    pub piece: usize,
}

impl Default for Publish<'_> {
    fn default() -> Self {
        Self { exchange: "", key: "", mandatory: false, properties: &[0, 0], piece: 4088 }
    }
}

/// Clients, lines, engine and clock.
#[derive(Debug)]
pub struct Simulation {
    pub engine: Engine<Memory>,
    pub clients: Vec<Client>,
    pub lines: Vec<Rc<RefCell<Line>>>,
    /// Lines of clients of the management and metrics listeners.
    pub operators: Vec<Rc<RefCell<Line>>>,
    pub now: Now,
    limits: Limits,
    /// Number of turns so far.
    pub turns: u64,
}

impl Simulation {
    pub fn new(limits: Limits) -> Self {
        Self::with_seed(limits, &mem::Memory::unlimited(), 1)
    }

    /// Starts a broker whose pools share `units` × 16 KiB of memory.
    pub fn with_extents(limits: Limits, units: usize) -> Self {
        Self::in_memory(limits, &mem::Memory::new(units * EXTENTS_PER_UNIT + mem::COMMAND_EXTENTS, [0; 3]))
    }

    /// Starts a broker in which messages have `units` × 16 KiB of memory. The limits are those of [`wide_limits`], and clients
    /// and definitions have memory of their own.
    pub fn with_message_extents(units: usize) -> Self {
        Self::in_memory(wide_limits(), &memory_of(OTHER_EXTENTS, units))
    }

    /// Starts a broker whose pools have this memory.
    pub fn in_memory(limits: Limits, memory: &mem::Memory) -> Self {
        Self::with_seed(limits, memory, 1)
    }

    /// Starts a broker that sends `$SYS` topics at this interval.
    pub fn with_system_topics(limits: Limits, interval_ms: u64) -> Self {
        Self::with(limits, &mem::Memory::unlimited(), 1, interval_ms)
    }

    fn with_seed(limits: Limits, memory: &mem::Memory, seed: u64) -> Self {
        Self::with(limits, memory, seed, 0)
    }

    fn with(limits: Limits, memory: &mem::Memory, seed: u64, sys_interval_ms: u64) -> Self {
        let mut random = Random::new(seed);
        let entropy = move |bytes: &mut [u8]| bytes.fill_with(|| random.below(256) as u8);
        let mut broker =
            Broker::in_memory(&limits, memory, Box::new(entropy)).expect("the limits have room for a broker");
        broker.set_first_user(Some(("guest", GUEST)));
        let setup = EngineSetup {
            limits: limits.clone(),
            waiting_sockets_max: WAITING_SOCKETS_MAX,
            identity: Identity { product: "Leveret".into(), version: "0".into(), ..Identity::default() },
            listeners: vec![false],
            mqtt_listeners: vec![false],
            mqtt: MqttSettings { vhost: "/".into(), sys_interval_ms, ..MqttSettings::default() },
            tls_session_bytes: 0,
            bridge_sizes: BridgeSizes::default(),
            has_shovels: true,
            management_listeners: vec![false, false],
            metrics_listeners: 1,
            certificates: Default::default(),
            process: process(),
            own_uid: 0,
        };
        Self {
            engine: Engine::new(setup, broker, Memory::default()),
            clients: Vec::new(),
            lines: Vec::new(),
            operators: Vec::new(),
            now: Now::from_ms(0),
            limits,
            turns: 0,
        }
    }

    /// Stores durable data in a new store on a simulated disk.
    pub fn keep_on_disk(&mut self, settings: Settings) -> SimDisk {
        let identity = StoreIdentity { id: *b"0123456789abcdef", secret: 0x5EC2E7 };
        let mut disk = SimDisk::new(1, Mutant::None, identity);
        let (log, _) = Log::open(&mut disk, settings, identity, self.now).expect("the disk is new");
        let (_, context) = self.engine.broker_mut();
        context.pending_writes.start(log.epoch(), true, log.space().record_bytes_max() as u64);
        self.engine.platform_mut().helpers = Helpers::new(Some(disk.clone()), (1, 1), 0);
        self.engine.set_store(StorageDriver::new(log, self.limits.frame_max as usize));
        disk
    }

    /// Starts a broker with the store on a disk whose power was cut or whose broker is gone. Its random numbers differ
    /// from those of the first broker.
    pub fn restarted(limits: Limits, disk: &SimDisk, settings: Settings) -> Self {
        Self::restarted_in(limits, &mem::Memory::unlimited(), disk, settings)
    }

    /// As [`Self::restarted`], with this memory for the pools.
    pub fn restarted_in(limits: Limits, memory: &mem::Memory, disk: &SimDisk, settings: Settings) -> Self {
        let mut simulation = Self::with_seed(limits, memory, 2);
        let mut disk = disk.clone();
        disk.start(Trouble::Never);
        let identity = StoreIdentity { id: *b"0123456789abcdef", secret: 0x5EC2E7 };
        let (log, report) =
            Log::open(&mut disk, settings, identity, simulation.now).expect("the store opens");
        let (broker, mut context) = simulation.engine.broker_mut();
        context.pending_writes.start(log.epoch(), true, log.space().record_bytes_max() as u64);
        let opened =
            OpenedLog { log: &log, disk: &mut disk, access: report.access, damage: report.reported_damage };
        let first = Some(("guest", GUEST));
        restore(broker, &mut context, opened, first, simulation.now).expect("it is restored");
        simulation.engine.platform_mut().helpers = Helpers::new(Some(disk), (1, 2), 0);
        simulation.engine.set_store(StorageDriver::new(log, simulation.limits.frame_max as usize));
        simulation
    }

    /// Connects a client from an address of its own. Returns its number.
    pub fn connect(&mut self, manners: Manners, shape: Shape) -> usize {
        let [_, a, b, c] = (self.lines.len() as u32 + 1).to_be_bytes();
        self.connect_from(manners, shape, [127, a, b, c])
    }

    /// Connects a client from this address. Returns its number.
    pub fn connect_from(&mut self, manners: Manners, shape: Shape, address: [u8; 4]) -> usize {
        let number = self.lines.len();
        let line = Rc::new(RefCell::new(Line::new(shape)));
        self.engine.platform_mut().arrive(&line, SocketAddr::from((address, 7)));
        self.lines.push(line);
        self.clients.push(Client::new(manners));
        number
    }

    /// Connects a program to the operator's socket as this user. Returns its number among the operators.
    pub fn connect_operator(&mut self, shape: Shape, uid: u32) -> usize {
        let line = Rc::new(RefCell::new(Line::new(shape)));
        self.engine.open_control_socket();
        self.engine.platform_mut().arrive_operator(&line, uid);
        self.operators.push(line);
        self.operators.len() - 1
    }

    /// Connects a program to the management API from this address. Returns its number among the operators.
    pub fn connect_management(&mut self, shape: Shape, address: [u8; 4]) -> usize {
        let line = Rc::new(RefCell::new(Line::new(shape)));
        self.engine.platform_mut().arrive_management(&line, SocketAddr::from((address, 7)));
        self.operators.push(line);
        self.operators.len() - 1
    }

    /// Connects a client to the listener for MQTT. Returns its number among the operators, whose lines a test drives.
    pub fn connect_mqtt(&mut self) -> usize {
        let line = Rc::new(RefCell::new(Line::new(Shape::WIDE)));
        let [_, a, b, c] = (self.operators.len() as u32 + 1).to_be_bytes();
        let address = PeerAddress::Network(SocketAddr::from(([127, a, b, c], 7)));
        self.engine.platform_mut().arrive_at(ListenerId::Mqtt(0), &line, address);
        self.operators.push(line);
        self.operators.len() - 1
    }

    /// Connects a program to the metrics listener without a login. Returns its number among the operators.
    pub fn connect_metrics(&mut self, shape: Shape, address: [u8; 4]) -> usize {
        let line = Rc::new(RefCell::new(Line::new(shape)));
        let address = PeerAddress::Network(SocketAddr::from((address, 7)));
        self.engine.platform_mut().arrive_at(ListenerId::Management(1), &line, address);
        self.operators.push(line);
        self.operators.len() - 1
    }

    /// Returns the connection of an operator.
    pub fn operator(&self, number: usize) -> RefMut<'_, Line> {
        self.operators[number].borrow_mut()
    }

    /// Returns the connection of a client.
    pub fn line(&self, client: usize) -> RefMut<'_, Line> {
        self.lines[client].borrow_mut()
    }

    /// Returns the number of connections that the broker has not closed.
    pub fn peers_count(&self) -> usize {
        self.lines.iter().filter(|line| line.borrow().is_held).count()
    }

    /// Connects a client and opens these channels.
    pub fn open(&mut self, channels: &[u16]) -> usize {
        self.open_with(Manners::default(), Shape::WIDE, channels)
    }

    pub fn open_with(&mut self, manners: Manners, shape: Shape, channels: &[u16]) -> usize {
        let client = self.connect(manners, shape);
        self.run();
        // A connection slot may have to be freed first. Waiting connections are checked at an interval.
        for _ in 0..ADMIT_TRIES {
            if self.clients[client].checker.phase != Phase::Open {
                self.pass_ms(ADMIT_MS);
            }
        }
        assert_eq!(self.clients[client].checker.phase, Phase::Open);
        for channel in channels {
            self.ask(client, *channel, &Method::ChannelOpen {});
        }
        self.clients[client].heard.clear();
        client
    }

    // ---- time

    /// Runs one round: all clients send and receive once, and the engine takes a turn if its loop would wake
    /// up. Returns whether anything moved.
    pub fn round(&mut self) -> bool {
        self.try_round().expect("there is no disk that could fail")
    }

    /// Like [`Self::round`] with a disk that may fail.
    fn try_round(&mut self) -> io::Result<bool> {
        let mut moved = false;
        for (client, line) in self.clients.iter_mut().zip(&self.lines) {
            moved |= client.step(&mut line.borrow_mut(), self.now);
            moved |= line.borrow_mut().arrive();
        }
        for line in &self.operators {
            moved |= line.borrow_mut().arrive();
        }
        self.engine.set_now(self.now);
        let is_woken = Memory::report(&mut self.engine);
        if is_woken || self.engine.sleep_deadline().is_none_or(|deadline| deadline.is_due(self.now)) {
            self.engine.turn()?;
            self.turns += 1;
            self.check_bounds();
            moved = true;
        }
        Ok(moved)
    }

    /// Runs for up to `ms` milliseconds. Stops when the power of this disk fails, and returns whether it failed.
    pub fn run_until_power_fails(&mut self, disk: &SimDisk, ms: u64) -> bool {
        let end = self.now.as_ms() + ms;
        while self.now.as_ms() < end {
            let moved = self.try_round();
            if disk.is_off() || moved.is_err() {
                return true;
            }
            if moved.is_ok_and(|moved| !moved) {
                self.now = Now::from_ms(self.now.as_ms() + 1);
            }
        }
        false
    }

    /// Checks after each turn that every pool is within its limit.
    fn check_bounds(&mut self) {
        let (limits, gauges) = (&self.limits, self.engine.broker().gauges());
        assert!(self.engine.messages().messages_used() <= limits.messages_max as usize);
        assert!(self.engine.messages().body_bytes_used() as u64 <= limits.body_bytes_max);
        assert!(gauges.connections <= limits.connection_places() as usize);
        assert!(gauges.channels <= limits.channels_max as usize);
        assert!(gauges.consumers <= limits.consumers_max as usize);
        assert!(gauges.queues <= limits.queues_max as usize);
        assert!(gauges.bindings <= limits.bindings_max as usize);
        assert!(gauges.deliveries <= limits.unacknowledged_max as usize);
    }

    /// Runs until nothing moves any more at this time.
    pub fn run(&mut self) {
        let mut rounds = 0;
        while self.round() {
            rounds += 1;
            assert!(rounds < ROUNDS_MAX, "the simulation does not come to rest: {:?}", self.engine);
        }
    }

    pub fn next_deadline(&self) -> Deadline {
        let clients = self.clients.iter().map(Client::next_deadline);
        clients.fold(self.engine.next_deadline(), Deadline::earlier)
    }

    /// Lets `ms` milliseconds pass, jumping from deadline to deadline.
    pub fn pass_ms(&mut self, ms: u64) {
        let end = Now::from_ms(self.now.as_ms() + ms);
        loop {
            self.run();
            let next = self.next_deadline().ms_left(self.now);
            match next.map(|left| self.now.as_ms() + left) {
                Some(at) if at <= end.as_ms() => self.now = Now::from_ms(at),
                _ => break,
            }
        }
        self.now = end;
        self.run();
    }

    /// Pauses the broker's process while clients continue to send.
    ///
    /// The first turn afterwards begins before the system has reported what arrived.
    pub fn pause_ms(&mut self, ms: u64) {
        for (client, line) in self.clients.iter_mut().zip(&self.lines) {
            client.step(&mut line.borrow_mut(), self.now);
            line.borrow_mut().arrive();
        }
        for line in &self.operators {
            line.borrow_mut().arrive();
        }
        self.now = Now::from_ms(self.now.as_ms() + ms);
        self.engine.set_now(self.now);
        self.engine.turn().expect("there is no disk that could fail");
        self.run();
    }

    // ---- what clients do

    /// Queues a method for sending; nothing moves before the simulation runs.
    pub fn send(&mut self, client: usize, channel: u16, method: &Method<'_>) {
        self.clients[client].send(channel, method);
    }

    /// Sends a method and returns its answer.
    #[track_caller]
    pub fn ask(&mut self, client: usize, channel: u16, method: &Method<'_>) -> Said {
        self.clients[client].heard.retain(|said| said.channel != channel || is_unasked(said));
        self.send(client, channel, method);
        self.run();
        let heard = &mut self.clients[client].heard;
        let place = heard.iter().position(|said| said.channel == channel && !is_unasked(said));
        let found = place.and_then(|place| heard.remove(place));
        found.unwrap_or_else(|| panic!("no answer to {method:?}, but {:?}", self.shown(client)))
    }

    pub fn publish(&mut self, client: usize, channel: u16, publish: Publish<'_>, body: &[u8]) {
        let Publish { exchange, key, mandatory, properties, piece } = publish;
        let routing_key = key.as_bytes();
        let method = Method::BasicPublish { exchange, routing_key, mandatory, immediate: false };
        self.send(client, channel, &method);
        self.clients[client].say(&content_frames(channel, properties, body, piece));
    }

    /// Publishes to a queue through the default exchange.
    pub fn publish_to(&mut self, client: usize, channel: u16, queue: &str, body: &[u8]) {
        self.publish(client, channel, Publish { key: queue, ..Publish::default() }, body);
    }

    pub fn declare(&mut self, client: usize, channel: u16, queue: &str) {
        let said = self.ask(client, channel, &declare(queue));
        assert!(matches!(said.method(), Method::QueueDeclareOk { .. }), "{}", said.shown());
    }

    /// Returns the numbers of ready messages and of consumers.
    pub fn counts(&mut self, client: usize, channel: u16, queue: &str) -> (u32, u32) {
        let said = self.ask(client, channel, &passive(queue));
        match said.method() {
            Method::QueueDeclareOk { message_count, consumer_count, .. } => (message_count, consumer_count),
            other => panic!("{other:?}"),
        }
    }

    /// Returns the number of ready messages, as seen by a new client.
    pub fn counts_from_outside(&mut self, queue: &str) -> u32 {
        let visitor = self.open(&[1]);
        let (ready, _) = self.counts(visitor, 1, queue);
        self.lose(visitor);
        self.run();
        ready
    }

    pub fn consume(&mut self, client: usize, channel: u16, queue: &str, consumer_tag: &str, no_ack: bool) {
        let said = self.ask(client, channel, &consume(queue, consumer_tag, no_ack));
        assert!(matches!(said.method(), Method::BasicConsumeOk { .. }), "{}", said.shown());
    }

    pub fn ack(&mut self, client: usize, channel: u16, delivery_tag: u64, multiple: bool) {
        self.send(client, channel, &Method::BasicAck { delivery_tag, multiple });
    }

    /// Formats the methods that the client received and no test has taken.
    pub fn shown(&self, client: usize) -> Vec<String> {
        self.clients[client].heard.iter().map(Said::shown).collect()
    }

    /// Takes the deliveries that the client received.
    pub fn deliveries(&mut self, client: usize) -> Vec<Said> {
        let heard = core::mem::take(&mut self.clients[client].heard);
        let is_delivery = |said: &Said| matches!(said.method(), Method::BasicDeliver { .. });
        let (deliveries, others): (Vec<_>, Vec<_>) = heard.into_iter().partition(is_delivery);
        self.clients[client].heard = others.into();
        deliveries
    }

    // ---- how it ends

    /// Shuts down sending of a client; what it sent still arrives.
    pub fn hang_up(&mut self, client: usize) {
        self.line(client).hang_up();
    }

    /// Breaks a client's connection.
    pub fn lose(&mut self, client: usize) {
        self.clients[client].die();
        self.line(client).lose();
    }

    /// Breaks all connections. Then only declared objects are left that outlive them.
    pub fn lose_everybody(&mut self) {
        for client in 0..self.clients.len() {
            self.lose(client);
        }
        // Blocked publishers get time for what they sent before.
        self.pass_ms(LOST_MS);
        assert_eq!(self.peers_count(), 0, "a lost peer is noticed");
    }

    /// Deletes these queues from a new client. Then every pool must be empty.
    #[track_caller]
    pub fn end(mut self, queues: &[&str]) {
        self.lose_everybody();
        let cleaner = self.open(&[1]);
        for queue in queues {
            let delete = Method::QueueDelete { queue, if_unused: false, if_empty: false, no_wait: false };
            self.ask(cleaner, 1, &delete);
        }
        self.lose_everybody();
        self.assert_empty();
    }
}

impl Simulation {
    /// Checks that every pool is empty: no connections, no definitions, no messages.
    #[track_caller]
    pub fn assert_empty(&self) {
        let gauges = self.engine.broker().gauges();
        assert_eq!(gauges, Gauges::default(), "something was left in a pool of the broker");
        self.assert_no_bytes();
    }

    /// Checks that no connection holds anything and that there are no messages, whatever is declared.
    #[track_caller]
    pub fn assert_no_bytes(&self) {
        let messages = self.engine.messages();
        assert_eq!(
            (messages.messages_used(), messages.body_bytes_used(), messages.assembly_bytes_used()),
            (0, 0, 0),
            "messages, bytes of bodies, bytes being assembled"
        );
        let pools = self.engine.pools();
        assert_eq!(
            (pools.channels_used(), pools.reply_bytes_used(), self.engine.waiting_bytes()),
            (0, 0, 0),
            "channels, bytes of replies, bytes of input"
        );
    }
}

/// Returns what an operator would see about the process.
fn process() -> Process {
    Process {
        environment: String::new(),
        data_dir: String::new(),
        configuration: String::new(),
        listeners: ["amqp 127.0.0.1:5672", "http 127.0.0.1:15672", "http/prometheus 127.0.0.1:15692"]
            .map(str::to_string)
            .to_vec(),
        hosts: vec!["localhost".to_string()],
        mqtt_websocket_origins: Some(vec!["https://dash.example".to_string()]),
        node: "leveret@here".to_string(),
        machine: Machine::default(),
        product: (String::new(), String::new()),
        memory_limit_bytes: 0,
        uptime_ms: 0,
        connections: 0,
        handshakes_evicted: 0,
        dropped_messages: 0,
        refusing_connections: None,
        message_size_max: 1 << 20,
        connections_opened: 0,
        confirmed: 0,
        has_refused_reads: false,
        certificates_end: None,
        is_tls_unavailable: false,
        has_unread_definitions: false,
        waiting_publishers: 0,
        waiters: leveret_queues::WaitingByKind::new(),
        disk_limit_bytes: 0,
        store: StoreView::default(),
        endurance: Endurance::default(),
        memory: Vec::new(),
    }
}

/// Returns whether a method comes without a request.
fn is_unasked(said: &Said) -> bool {
    matches!(
        said.method(),
        Method::BasicDeliver { .. }
            | Method::BasicReturn { .. }
            | Method::BasicAck { .. }
            | Method::BasicNack { .. }
            | Method::BasicCancel { .. }
            | Method::ConnectionBlocked { .. }
            | Method::ConnectionUnblocked {}
    )
}

pub const fn declare(queue: &str) -> Method<'_> {
    declare_with(queue, false, Table::EMPTY)
}

pub const fn declare_with<'a>(queue: &'a str, durable: bool, arguments: Table<'a>) -> Method<'a> {
    Method::QueueDeclare {
        queue,
        passive: false,
        durable,
        exclusive: false,
        auto_delete: false,
        no_wait: false,
        arguments,
    }
}

pub const fn passive(queue: &str) -> Method<'_> {
    Method::QueueDeclare {
        queue,
        passive: true,
        durable: false,
        exclusive: false,
        auto_delete: false,
        no_wait: false,
        arguments: Table::EMPTY,
    }
}

pub const fn consume<'a>(queue: &'a str, consumer_tag: &'a str, no_ack: bool) -> Method<'a> {
    Method::BasicConsume {
        queue,
        consumer_tag,
        no_local: false,
        no_ack,
        exclusive: false,
        no_wait: false,
        arguments: Table::EMPTY,
    }
}

pub const fn bind<'a>(queue: &'a str, exchange: &'a str, routing_key: &'a str) -> Method<'a> {
    Method::QueueBind { queue, exchange, routing_key, no_wait: false, arguments: Table::EMPTY }
}

pub const fn close_channel() -> Method<'static> {
    Method::ChannelClose { reply_code: 200, reply_text: "", class_id: 0, method_id: 0 }
}

pub const fn close_connection() -> Method<'static> {
    Method::ConnectionClose { reply_code: 200, reply_text: "", class_id: 0, method_id: 0 }
}

pub const fn qos(prefetch_count: u16) -> Method<'static> {
    Method::BasicQos { prefetch_size: 0, prefetch_count, global: false }
}

pub const fn delete(queue: &str) -> Method<'_> {
    Method::QueueDelete { queue, if_unused: false, if_empty: false, no_wait: false }
}

pub const fn purge(queue: &str) -> Method<'_> {
    Method::QueuePurge { queue, no_wait: false }
}

/// Runs a seeded test for each seed, or for those in `LEVERET_SEED` (a number, or from..to). Prints how to
/// replay a failing seed.
pub fn for_seeds(test: &str, seeds: core::ops::Range<u64>, run: impl Fn(u64) + std::panic::RefUnwindSafe) {
    let only = std::env::var("LEVERET_SEED").ok().and_then(|seeds| {
        let (from, to) = seeds.split_once("..").unwrap_or((&seeds, ""));
        let from = from.parse().ok()?;
        Some(from..to.parse().unwrap_or(from + 1))
    });
    for seed in only.unwrap_or(seeds) {
        if let Err(panic) = std::panic::catch_unwind(|| run(seed)) {
            eprintln!(
                "replay with: LEVERET_SEED={seed} cargo test --profile checked --test in_memory {test}"
            );
            std::panic::resume_unwind(panic);
        }
    }
}
