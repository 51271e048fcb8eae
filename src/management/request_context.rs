//! The state that requests read and change: the broker, and the event loop's view of sockets, bridges and the process.
//!
//! # Invariants
//! - A [`RequestContext`] is lent for one step. It changes nothing except through the broker.
//! - What the event loop itself must do, such as stopping, is noted in [`Orders`].

use std::net::SocketAddr;

use super::samples::Samples;
use super::web_page::Tokens;
use leveret_amqp::field::Table;
use leveret_broker::{Broker, DiskFacts, Waiters};
use leveret_core::command::ConnectionId;
use leveret_core::mem::Messages;
use leveret_core::pending_writes::{Batch, PendingWrites};

/// The state that a session may use in one step.
pub struct RequestContext<'s> {
    /// The broker.
    pub broker: &'s mut Broker,
    /// The buffer of log entries to be written.
    pub pending_writes: &'s mut PendingWrites,
    /// All messages in memory.
    pub messages: &'s mut Messages,
    /// The counter of the work done by calls.
    pub work: &'s mut leveret_broker::Work,
    /// The connections' sockets.
    pub sockets: &'s dyn Sockets,
    /// The bridges.
    pub bridges: &'s dyn Bridges,
    /// The process.
    pub process: &'s Process,
    /// The store's files for a backup, if there is a store. Only one client can use them.
    pub files: Option<&'s mut dyn Files>,
    /// Requests to the event loop.
    pub orders: &'s mut Orders,
    /// The logins with tokens.
    pub tokens: &'s mut Tokens,
    /// The samples of the last minutes.
    pub samples: &'s Samples,
}

/// The store's files during a backup.
pub trait Files {
    /// Pins what is durable now, for this client alone. Returns each file's number, how many bytes of it to copy, and
    /// its length; the rest are zeros. Returns `None` if that is impossible now; the caller tries again.
    fn pin_for_backup(&mut self) -> Option<Vec<(u32, u32, u32)>>;
    /// Returns whether the files are still pinned.
    fn is_pinned_for_backup(&self) -> bool;
    /// Ends the pinning of the files.
    fn release(&mut self);
}

impl core::fmt::Debug for RequestContext<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("RequestContext").field("broker", &self.broker).finish_non_exhaustive()
    }
}

impl RequestContext<'_> {
    /// Returns the batch up to which everything is durable.
    pub const fn durable(&self) -> Batch {
        self.pending_writes.durable()
    }

    /// Returns the broker and the context for its calls.
    pub const fn broker(&mut self) -> (&mut Broker, leveret_broker::Context<'_>) {
        (self.broker, leveret_broker::Context::new(self.pending_writes, self.messages, self.work))
    }

    /// Returns the part of the context that rows are written from.
    pub const fn context(&self) -> ReadContext<'_> {
        let Self { broker, sockets, bridges, samples, process, .. } = self;
        ReadContext { broker, sockets: *sockets, bridges: *bridges, samples, node: process.node.as_str() }
    }
}

/// The state that rows are written from, which they cannot change.
#[derive(Clone, Copy)]
pub struct ReadContext<'s> {
    /// The broker that is shown.
    pub broker: &'s Broker,
    /// The connections' sockets.
    pub sockets: &'s dyn Sockets,
    /// The bridges.
    pub bridges: &'s dyn Bridges,
    /// The samples of the last minutes.
    pub samples: &'s Samples,
    /// This node's name.
    pub node: &'s str,
}

/// The operator's view of the bridges.
pub trait Bridges {
    /// Returns the number of positions of links.
    fn places(&self) -> usize;
    /// Returns the most bridges that there can be.
    fn places_max(&self) -> usize;
    /// Returns the link at a position.
    fn at(&self, place: usize) -> Option<BridgeLinkView<'_>>;
    /// Returns whether a bridge of this name exists.
    fn is_known(&self, bridge: &str) -> bool;
}

/// The number of categories of a link's traffic.
pub const TRAFFIC_CATEGORIES: usize = 3;

/// One direction of a bridge.
#[derive(Clone, Debug)]
pub struct BridgeLinkView<'a> {
    /// The bridge's name.
    pub bridge: &'a str,
    /// `forward` or `fetch`.
    pub direction: &'static str,
    /// The state: `running`, `held`, `budget used`, `blocked`, `connecting`, `waiting`, `resting`, `paused` or
    /// `ending`.
    pub state: &'static str,
    /// The local virtual host.
    pub vhost: &'a str,
    /// The current or next address, without its password.
    pub upstream: String,
    /// Number of messages that the other side has accepted since the bridge was created.
    pub moved: u64,
    /// Number of messages in flight.
    pub pending: u64,
    /// The local queues that are forwarded.
    pub queues: Option<Vec<&'a str>>,
    /// Number of messages sent that may have been sent before.
    pub repeats: u64,
    /// The local parking queue for refused messages, reported with the first of the bridge's links.
    pub parked_queue: Option<&'a str>,
    /// Number of messages that arrived to be forwarded, and the milliseconds in which they arrived.
    pub inflow: (u64, u64),
    /// The part of the queues' arrival counters that is already counted in `inflow`, or precedes it.
    pub inflow_counted: u64,
    /// Number of messages that the link carried today and the day before, and the bytes of their bodies.
    pub sent_since_yesterday: (u64, u64),
    /// Free bytes in the log, if there is one.
    pub log_free_bytes: Option<u64>,
    /// There is an alarm if the disk has no capacity for an outage of this many days.
    pub outage_days_min: Option<u16>,
    /// The result of the last `retry_parked` as a sentence; empty if there was none.
    pub retried: String,
    /// Number of messages that this broker cannot accept and that remain at the upstream.
    pub held: u64,
    /// The link's traffic of today, by category.
    pub today: [(&'static str, u64); TRAFFIC_CATEGORIES],
    /// The link's traffic of the day before, by category.
    pub yesterday: [(&'static str, u64); TRAFFIC_CATEGORIES],
    /// Bytes of the bridge's links today, in both directions.
    pub day_bytes: u64,
    /// The daily budget in bytes. When it is used up, only urgent rules continue.
    pub day_bytes_max: Option<u64>,
    /// Bytes of the bridge's links the day before.
    pub yesterday_bytes: u64,
    /// Number of rules of this direction that wait for the next day, or until their error is corrected.
    pub held_rules: u64,
    /// The state of each rule of this direction, by its queue.
    pub rules: Vec<(&'a str, &'static str)>,
    /// Whether the daily budget is used up.
    pub is_day_spent: bool,
    /// How often the link came up.
    pub connected: u64,
    /// How often the link failed to come up, or went down.
    pub failed: u64,
    /// The last error, and its age in milliseconds.
    pub last_error: Option<(&'a str, u64)>,
    /// Milliseconds since the link came up.
    pub up_for_ms: Option<u64>,
    /// Milliseconds since the link last went down.
    pub down_for_ms: Option<u64>,
    /// Milliseconds until the next attempt to connect.
    pub retry_in_ms: Option<u64>,
    /// The shovel, if the link is one of RabbitMQ's shovels.
    pub shovel: Option<ShovelView<'a>>,
    /// Time of the last change of state, in milliseconds since 1970 by the board's clock.
    pub changed_at_ms: u64,
    /// Whether the bridge is paused by the operator.
    pub is_paused: bool,
}

/// A shovel.
#[derive(Clone, Debug)]
pub struct ShovelView<'a> {
    /// The name of its parameter.
    pub name: &'a str,
    /// The virtual host of the parameter.
    pub vhost: &'a str,
    /// The source of messages.
    pub source: ShovelEndView<'a>,
    /// The destination of messages.
    pub destination: ShovelEndView<'a>,
    /// Number of messages that it has still to move, if that is limited.
    pub left: Option<u64>,
}

/// One end of a shovel.
#[derive(Clone, Debug)]
pub struct ShovelEndView<'a> {
    /// The current address, without user and password.
    pub uri: &'a str,
    /// The queue, if the end is one.
    pub queue: Option<&'a str>,
    /// The exchange, if the end is one.
    pub exchange: Option<&'a str>,
    /// The routing key, if there is one.
    pub key: Option<&'a str>,
}

impl BridgeLinkView<'_> {
    /// Returns the number of local messages that wait to be forwarded, if the link forwards.
    pub fn backlog(&self, broker: &Broker) -> Option<u64> {
        let depths = self.queues.as_ref()?.iter().filter_map(|queue| broker.queue_depth(self.vhost, queue));
        Some(depths.map(u64::from).sum())
    }

    /// Returns the number of parked messages that are still in the bridge's parking queue.
    pub fn parked(&self, broker: &Broker) -> u64 {
        let depth = self.parked_queue.and_then(|queue| broker.queue_depth(self.vhost, queue));
        depth.unwrap_or(0).into()
    }
}

/// The operator's view of the sockets of AMQP connections.
pub trait Sockets {
    /// Returns the number of positions of connections that were ever used.
    fn places(&self) -> usize;
    /// Returns the connection at a position.
    fn at(&self, connection: ConnectionId) -> Option<SocketView<'_>>;
}

/// One connection's socket.
#[derive(Clone, Copy, Debug)]
pub struct SocketView<'s> {
    /// The connection's number: connections are numbered as they are opened.
    pub number: u64,
    /// The addresses of both ends.
    pub ends: Ends,
    /// Whether the connection is encrypted.
    pub is_tls: bool,
    /// When the connection was opened, in milliseconds since 1970 by the board's clock.
    pub connected_at_ms: u64,
    /// `running`, `blocked` or `closing`.
    pub state: &'static str,
    /// The negotiated maximum frame size, in bytes.
    pub frame_max: u32,
    /// The most channels of the connection.
    pub channel_max: u16,
    /// Heartbeat interval in seconds; 0: no heartbeats.
    pub heartbeat_s: u32,
    /// The authentication mechanism.
    pub mechanism: &'static str,
    /// The client properties that were kept.
    pub client_properties: Table<'s>,
    /// Bytes received, without the overhead of TLS, and the number of reads.
    pub received: (u64, u64),
    /// Bytes sent, and the number of writes.
    pub sent: (u64, u64),
}

/// The two ends of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ends {
    /// A network connection.
    Network {
        /// The broker's address.
        host: SocketAddr,
        /// The client's address.
        peer: SocketAddr,
    },
    /// A local program at the Unix socket.
    Local {
        /// Its process id.
        pid: i32,
        /// Its user id.
        uid: u32,
    },
}

/// The store's counters and limits.
#[derive(Clone, Copy, Default, Debug)]
pub struct StoreView {
    /// Bytes written since the start, including the zeros that prepare files.
    pub written_bytes: u64,
    /// Bytes written in all runs of the store.
    pub written_all_runs_bytes: u64,
    /// Number of syncs of the disk.
    pub syncs: u64,
    /// The most bytes that the store may use.
    pub bytes_max: u64,
    /// Bytes that can be written now.
    pub room_bytes: u64,
    /// Awaited commits that were delayed by the sync budget (`syncs_per_second`), since the start.
    pub commits_over_budget: u64,
    /// Whether a commit was delayed in the last [`SYNC_BUDGET_SHOWN_MS`].
    pub is_over_budget: bool,
}

/// How long a commit delayed by the sync budget is reported, in milliseconds.
pub const SYNC_BUDGET_SHOWN_MS: u64 = 10_000;

impl StoreView {
    /// Returns the bytes that the log uses, including settled messages.
    pub const fn log_bytes(&self) -> u64 {
        self.bytes_max.saturating_sub(self.room_bytes)
    }
}

/// The configured endurance of the flash.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Endurance {
    /// Bytes that may be written to it; 0 if not configured.
    pub bytes: u64,
    /// The alarm is raised below this many years; 0: never.
    pub years_min: u32,
}

/// The operating system's values for the process at this moment; 0 if unknown.
#[derive(Clone, Copy, Default, Debug)]
pub struct Machine {
    /// Resident memory in bytes.
    pub resident_bytes: u64,
    /// Number of open file descriptors.
    pub files_open: u64,
    /// The most open file descriptors.
    pub files_max: u64,
    /// Free bytes in the file system of the data directory.
    pub disk_free_bytes: u64,
    /// Whether the file system of the data directory has no free inodes.
    pub has_no_inodes: bool,
    /// Processor time that the process has used, in milliseconds.
    pub cpu_ms: u64,
    /// Temperature of the board in thousandths of a degree Celsius, if the kernel reports it.
    pub temperature_mc: Option<i32>,
}

/// The state of the process.
#[derive(Clone, Debug)]
pub struct Process {
    /// The configuration in the format of its file, without secrets.
    pub environment: String,
    /// The data directory, as an absolute path.
    pub data_dir: String,
    /// The configuration file, as an absolute path; empty without one.
    pub configuration: String,
    /// For each listener: `amqp`, `amqp/ssl` or `amqp/local`, a space, and the address.
    pub listeners: Vec<String>,
    /// Host names by which browsers may use the management API, in lower case.
    pub hosts: Vec<String>,
    /// The name of this node, as in RabbitMQ: a name, `@` and the machine's name.
    pub node: String,
    /// The operating system's values.
    pub machine: Machine,
    /// Product and version in the server properties.
    pub product: (String, String),
    /// The memory limit, in bytes.
    pub memory_limit_bytes: u64,
    /// The longest body of a message, in bytes.
    pub message_size_max: u32,
    /// Milliseconds since the start.
    pub uptime_ms: u64,
    /// Number of open AMQP connections.
    pub connections: u32,
    /// Number of connections since the start.
    pub connections_opened: u64,
    /// Number of confirms sent to publishers since the start.
    pub confirmed: u64,
    /// Number of handshakes ended since the start in favour of other connections.
    pub handshakes_evicted: u64,
    /// Whether the disk has refused to read parts of the store since the start.
    pub has_refused_reads: bool,
    /// When the first certificate expires, and the machine's time, both in seconds since 1970. `None`: there are no
    /// certificates.
    pub certificates_end: Option<(u64, u64)>,
    /// Whether connections by TLS are refused because the files of `[tls]` cannot be used.
    pub is_tls_unavailable: bool,
    /// Whether the file of `load_definitions` could not be read to its end at the start.
    pub has_unread_definitions: bool,
    /// Number of publishers that wait for capacity.
    pub waiting_publishers: u32,
    /// The shortage that most of them wait for.
    pub waiters: Option<Waiters>,
    /// The configured limit of the log, in bytes; 0 without a store.
    pub disk_limit_bytes: u64,
    /// The store's values; all 0 without a store.
    pub store: StoreView,
    /// The configured endurance of the flash.
    pub endurance: Endurance,
    /// The lines of the memory table: purpose and bytes.
    pub memory: Vec<(&'static str, u64)>,
}

impl Process {
    /// Returns the open listeners: protocol, a space, and the address. Those with TLS are closed while no certificate
    /// can be used.
    pub(crate) fn open_listeners(&self) -> impl Iterator<Item = &str> {
        let has_tls = |text: &str| text.starts_with("amqp/ssl ") || text.starts_with("https ");
        self.listeners
            .iter()
            .map(String::as_str)
            .filter(move |text| !self.is_tls_unavailable || !has_tls(text))
    }

    /// Returns the values of the disk for the text of an alarm.
    pub const fn disk_facts(&self) -> DiskFacts {
        DiskFacts { limit_bytes: self.disk_limit_bytes, has_no_inodes: self.machine.has_no_inodes }
    }

    /// Returns the free bytes below which publishers of persistent messages are blocked: the free bytes less what the
    /// store may still write. Returns `None` without a store.
    pub fn disk_free_limit(&self) -> Option<u64> {
        let limit = self.machine.disk_free_bytes.saturating_sub(self.store.room_bytes);
        (self.store.bytes_max > 0).then_some(limit)
    }
}

/// Requests to the event loop.
#[derive(Debug, Default)]
pub struct Orders {
    /// Whether the broker is to stop.
    pub stop: bool,
    /// The name of a bridge, and what to do with it.
    pub bridge: Option<(String, BridgeOrder)>,
}

/// An order to a bridge.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BridgeOrder {
    /// Send parked messages to their original destination again.
    Retry,
    /// Close the links and do not open them again.
    Pause,
    /// Open the links at once.
    Resume,
    /// Close the links and open them again.
    Restart,
}
