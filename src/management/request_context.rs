//! What a request is answered from: the broker, and what only the loop knows of sockets and of the process.
//!
//! Always true: it is lent for one step and changes nothing but through the broker; what the loop itself must
//! do (stop) is noted in [`Orders`] and done by the loop.

use std::net::SocketAddr;

use super::samples::Samples;
use super::web_page::Tokens;
use leveret_amqp::field::Table;
use leveret_broker::{Broker, DiskFacts, Waiters};
use leveret_core::command::ConnectionId;
use leveret_core::journal::{Batch, Journal};
use leveret_core::mem::Messages;

/// Lent to a client's machine for one step.
pub struct RequestContext<'s> {
    /// The broker that is asked or changed.
    pub broker: &'s mut Broker,
    /// What it has said that is to be written.
    pub journal: &'s mut Journal,
    /// All messages in memory.
    pub messages: &'s mut Messages,
    /// What its calls cost.
    pub work: &'s mut leveret_broker::Work,
    /// The connections' sockets.
    pub sockets: &'s dyn Sockets,
    /// The bridges.
    pub bridges: &'s dyn Bridges,
    /// The process.
    pub process: &'s Process,
    /// The files of the store, if there is one, for the one client that asks.
    pub files: Option<&'s mut dyn Files>,
    /// What the loop is to do.
    pub orders: &'s mut Orders,
    /// Who is logged in by a token.
    pub tokens: &'s mut Tokens,
    /// What was counted in the last minutes.
    pub samples: &'s Samples,
}

/// The files of the store while somebody copies them.
pub trait Files {
    /// Holds what is durable at this moment still, for this client alone: each file's number, how many bytes
    /// of it to copy, and how long it is, the rest being zeros. `None`: not now, ask again.
    fn pin_for_backup(&mut self) -> Option<Vec<(u32, u32, u32)>>;
    /// Whether that still holds.
    fn is_pinned_for_backup(&self) -> bool;
    /// The files need not be held still any more.
    fn release(&mut self);
}

impl core::fmt::Debug for RequestContext<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("RequestContext").field("broker", &self.broker).finish_non_exhaustive()
    }
}

impl RequestContext<'_> {
    /// Everything up to this batch is durable.
    pub const fn durable(&self) -> Batch {
        self.journal.durable()
    }

    /// The broker, and what it works with.
    pub const fn broker(&mut self) -> (&mut Broker, leveret_broker::Context<'_>) {
        (self.broker, leveret_broker::Context::new(self.journal, self.messages, self.work))
    }

    /// The same without the means to change anything.
    pub const fn context(&self) -> ReadContext<'_> {
        let Self { broker, sockets, bridges, samples, process, .. } = self;
        ReadContext { broker, sockets: *sockets, bridges: *bridges, samples, node: process.node.as_str() }
    }
}

/// What rows are written from.
#[derive(Clone, Copy)]
pub struct ReadContext<'s> {
    /// The broker that is shown.
    pub broker: &'s Broker,
    /// The connections' sockets.
    pub sockets: &'s dyn Sockets,
    /// The bridges.
    pub bridges: &'s dyn Bridges,
    /// What was counted in the last minutes.
    pub samples: &'s Samples,
    /// What this node is called.
    pub node: &'s str,
}

/// The bridges, as far as an operator is told of them.
pub trait Bridges {
    /// Places of links.
    fn places(&self) -> usize;
    /// Bridges that there may be.
    fn places_max(&self) -> usize;
    /// The link in a place.
    fn at(&self, place: usize) -> Option<BridgeLinkView<'_>>;
    /// Whether there is a bridge of this name.
    fn is_known(&self, bridge: &str) -> bool;
}

/// What bytes of a link are counted for, and which way they went.
pub const PRICE_KINDS: usize = 3;

/// One direction of a bridge.
#[derive(Clone, Debug)]
pub struct BridgeLinkView<'a> {
    /// The bridge's name.
    pub bridge: &'a str,
    /// `forward` or `fetch`.
    pub direction: &'static str,
    /// `running`, `held`, `budget used`, `blocked`, `connecting`, `waiting`, `resting`, `paused` or `ending`.
    pub state: &'static str,
    /// The virtual host here.
    pub vhost: &'a str,
    /// The address that is used, or tried next, without its password.
    pub upstream: String,
    /// Messages that the other side has taken over, since the bridge is there.
    pub moved: u64,
    /// Messages on their way.
    pub pending: u64,
    /// The queues here that wait to be forwarded.
    pub queues: Option<Vec<&'a str>>,
    /// Messages sent that may have been sent before.
    pub repeats: u64,
    /// The queue here for messages that were refused, with the first of the bridge's links.
    pub parked_queue: Option<&'a str>,
    /// Messages that came in to be forwarded, and the milliseconds in which they did.
    pub inflow: (u64, u64),
    /// How many of all that the queues say came in are among them, or were there before.
    pub inflow_counted: u64,
    /// Messages that went over it today and the day before, and the bytes of their bodies.
    pub sent_lately: (u64, u64),
    /// Bytes that the log has room for, if there is one.
    pub disk_room: Option<u64>,
    /// An outage of so many days has to have room, or there is an alarm.
    pub outage_days_min: Option<u16>,
    /// What came of `retry_parked`, as a sentence; empty when it was never asked for.
    pub retried: String,
    /// Messages that nothing here can take, and the upstream keeps.
    pub held: u64,
    /// What the link costs today.
    pub today: [(&'static str, u64); PRICE_KINDS],
    /// What it cost the day before.
    pub yesterday: [(&'static str, u64); PRICE_KINDS],
    /// Bytes that went over the bridge's links today, both ways.
    pub day_bytes: u64,
    /// As many may, before only urgent rules go on.
    pub day_bytes_max: Option<u64>,
    /// Bytes of the day before.
    pub yesterday_bytes: u64,
    /// Rules of this direction that wait for the next day, or for what holds them to be mended.
    pub held_rules: u64,
    /// The state of each rule of this direction, by its queue.
    pub rules: Vec<(&'a str, &'static str)>,
    /// The bytes of the day are used.
    pub is_day_spent: bool,
    /// Times that messages could flow.
    pub connected: u64,
    /// Times that they could not, or not any more.
    pub failed: u64,
    /// The last error, and how many milliseconds ago it was.
    pub last_error: Option<(&'a str, u64)>,
    /// How long messages have been able to flow, in milliseconds.
    pub up_for_ms: Option<u64>,
    /// How long they have not, after they last were, in milliseconds.
    pub down_for_ms: Option<u64>,
    /// When it is tried again, in milliseconds from now.
    pub retry_in_ms: Option<u64>,
    /// What it is besides, if it is one of RabbitMQ's shovels.
    pub shovel: Option<ShovelView<'a>>,
    /// When its state changed last, in milliseconds since 1970 as far as the board knows the time.
    pub changed_at_ms: u64,
    /// Somebody has paused its bridge.
    pub is_paused: bool,
}

/// A shovel.
#[derive(Clone, Debug)]
pub struct ShovelView<'a> {
    /// Its parameter's name.
    pub name: &'a str,
    /// The virtual host that the parameter is in.
    pub vhost: &'a str,
    /// Where messages come from.
    pub source: ShovelEndView<'a>,
    /// Where they go.
    pub destination: ShovelEndView<'a>,
    /// Messages that it has still to move, if it ends.
    pub left: Option<u64>,
}

/// One end of a shovel.
#[derive(Clone, Debug)]
pub struct ShovelEndView<'a> {
    /// The address that is used, without who logs in there.
    pub uri: &'a str,
    /// A queue.
    pub queue: Option<&'a str>,
    /// Or an exchange.
    pub exchange: Option<&'a str>,
    /// And a key.
    pub key: Option<&'a str>,
}

impl BridgeLinkView<'_> {
    /// Messages here that wait to be forwarded, if it forwards any.
    pub fn backlog(&self, broker: &Broker) -> Option<u64> {
        let depths = self.queues.as_ref()?.iter().filter_map(|queue| broker.queue_depth(self.vhost, queue));
        Some(depths.map(u64::from).sum())
    }

    /// Messages set aside by its bridge that nobody has taken yet.
    pub fn parked(&self, broker: &Broker) -> u64 {
        let depth = self.parked_queue.and_then(|queue| broker.queue_depth(self.vhost, queue));
        depth.unwrap_or(0).into()
    }
}

/// The sockets of AMQP connections, as far as an operator is told of them.
pub trait Sockets {
    /// Places of connections that were ever used.
    fn places(&self) -> usize;
    /// The connection in a place.
    fn at(&self, connection: ConnectionId) -> Option<SocketView<'_>>;
}

/// One connection's socket.
#[derive(Clone, Copy, Debug)]
pub struct SocketView<'s> {
    /// Connections are numbered in the order of their coming.
    pub number: u64,
    /// The addresses of both ends.
    pub ends: Ends,
    /// Whether the connection is encrypted.
    pub is_tls: bool,
    /// Since when, in milliseconds since 1970 as far as the board knows the time.
    pub connected_at_ms: u64,
    /// `running`, `blocked` or `closing`.
    pub state: &'static str,
    /// The longest frame that was agreed upon, in bytes.
    pub frame_max: u32,
    /// Channels it may have.
    pub channel_max: u16,
    /// Heartbeat interval in seconds; 0 is none.
    pub heartbeat_s: u32,
    /// How its user logged in.
    pub mechanism: &'static str,
    /// What the client says of itself, as far as it is kept.
    pub client_properties: Table<'s>,
    /// Bytes that came, without what TLS adds, and in how many reads.
    pub received: (u64, u64),
    /// Bytes that went, and in how many writes.
    pub sent: (u64, u64),
}

/// The two ends of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ends {
    /// Of the network: ours and the other.
    Network {
        /// Our end.
        host: SocketAddr,
        /// The client's address.
        peer: SocketAddr,
    },
    /// A program of this machine.
    Local {
        /// Its process.
        pid: i32,
        /// Its user.
        uid: u32,
    },
}

/// What the store has done, and what it may still take.
#[derive(Clone, Copy, Default, Debug)]
pub struct StoreView {
    /// Bytes written since the start, zeros that prepare files included.
    pub written_bytes: u64,
    /// The same of all lives of the store.
    pub written_ever_bytes: u64,
    /// How often the disk was asked to keep them.
    pub syncs: u64,
    /// Bytes that it may take up in all.
    pub bytes_max: u64,
    /// Bytes that it has room for now.
    pub room_bytes: u64,
    /// Awaited commits that waited for the sync budget (`syncs_per_second`), since the start.
    pub commits_over_budget: u64,
    /// Whether one did in the last [`SYNC_BUDGET_SHOWN_MS`].
    pub is_over_budget: bool,
}

/// How long after a commit that waited for the sync budget that is still shown, in milliseconds.
pub const SYNC_BUDGET_SHOWN_MS: u64 = 10_000;

impl StoreView {
    /// Returns the bytes that the log takes of what it may take, messages that are settled included.
    pub const fn log_bytes(&self) -> u64 {
        self.bytes_max.saturating_sub(self.room_bytes)
    }
}

/// What the owner says of the card.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Endurance {
    /// Bytes that may be written to it; 0 when he does not say.
    pub bytes: u64,
    /// Years below which it is an alarm; 0 for never.
    pub years_min: u32,
}

/// What the machine says of the process at this moment; 0 where it does not say.
#[derive(Clone, Copy, Default, Debug)]
pub struct Machine {
    /// Resident memory in bytes.
    pub resident_bytes: u64,
    /// File descriptors that are open.
    pub files_open: u64,
    /// The most that may be.
    pub files_max: u64,
    /// Bytes that are free where the data directory is.
    pub disk_free_bytes: u64,
    /// Whether the file system of the data directory has no free inodes.
    pub has_no_inodes: bool,
    /// Processor time that the process has used, in milliseconds.
    pub cpu_ms: u64,
    /// Temperature of the board in thousandths of a degree Celsius, where the kernel tells it.
    pub temperature_mc: Option<i32>,
}

/// What is known of the process.
#[derive(Clone, Debug)]
pub struct Process {
    /// Its configuration as a file would say it, without secrets.
    pub environment: String,
    /// The data directory, as an absolute path.
    pub data_dir: String,
    /// The configuration file, as an absolute path; empty without one.
    pub configuration: String,
    /// What is spoken where it listens: `amqp`, `amqp/ssl` or `amqp/local`, a space, and where.
    pub listeners: Vec<String>,
    /// Names by which browsers may call the management API, in small letters.
    pub hosts: Vec<String>,
    /// What this node is called, as RabbitMQ calls its: a name, `@` and the machine's name.
    pub node: String,
    /// What the machine says of it.
    pub machine: Machine,
    /// Product and version it announces.
    pub product: (String, String),
    /// Memory that it may use, in bytes.
    pub memory_limit_bytes: u64,
    /// The longest body of a message, in bytes.
    pub message_size_max: u32,
    /// Milliseconds since its start.
    pub uptime_ms: u64,
    /// AMQP connections that are open.
    pub connections: u32,
    /// All there have been since the start.
    pub connections_made: u64,
    /// Messages that publishers have been told are taken, since the start.
    pub confirmed: u64,
    /// Handshakes ended since the start because others wanted in.
    pub handshakes_evicted: u64,
    /// The disk has refused to read parts of the store since the start.
    pub has_refused_reads: bool,
    /// When the first of our certificates ends, in seconds since 1970, and the time of this machine; `None`:
    /// there are none.
    pub certificates_end: Option<(u64, u64)>,
    /// Nobody comes in by TLS, for the files of `[tls]` cannot be used.
    pub is_tls_shut: bool,
    /// The file of `load_definitions` could not be read to its end at the start.
    pub are_definitions_unread: bool,
    /// Clients that wait for room to publish.
    pub waiting_publishers: u32,
    /// What most of them wait for.
    pub waiters: Option<Waiters>,
    /// What the operator lets the log take, in bytes; 0 without one.
    pub disk_limit_bytes: u64,
    /// The store; nothing without one.
    pub store: StoreView,
    /// What the owner says of the card.
    pub endurance: Endurance,
    /// The lines of the memory table: what each is for, and bytes.
    pub memory: Vec<(&'static str, u64)>,
}

impl Process {
    /// The listeners that are open: protocol, a space, and the address. Those with TLS are closed while no certificate
    /// can be used.
    pub(crate) fn open_listeners(&self) -> impl Iterator<Item = &str> {
        let has_tls = |text: &str| text.starts_with("amqp/ssl ") || text.starts_with("https ");
        self.listeners.iter().map(String::as_str).filter(move |text| !self.is_tls_shut || !has_tls(text))
    }

    /// Returns what the text of an alarm says of the disk.
    pub const fn disk_facts(&self) -> DiskFacts {
        DiskFacts { limit_bytes: self.disk_limit_bytes, has_no_inodes: self.machine.has_no_inodes }
    }

    /// How little may be free where the data directory is before publishers of persistent messages wait: what
    /// is free less what the store may still take. `None`: there is no store.
    pub fn disk_free_limit(&self) -> Option<u64> {
        let limit = self.machine.disk_free_bytes.saturating_sub(self.store.room_bytes);
        (self.store.bytes_max > 0).then_some(limit)
    }
}

/// What the loop is to do.
#[derive(Debug, Default)]
pub struct Orders {
    /// The broker is to stop.
    pub stop: bool,
    /// Something is to be done with the bridge of this name.
    pub bridge: Option<(String, BridgeOrder)>,
}

/// What is to be done with a bridge.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BridgeOrder {
    /// What was set aside goes back to where it was on its way to.
    Retry,
    /// Its links are to end, and not to begin again.
    Pause,
    /// They are to begin at once.
    Resume,
    /// They are to end and to begin again.
    Restart,
}
