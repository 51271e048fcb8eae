//! The state of one connection, and the pools and settings that all connections share.
//!
//! The other files of this package each contain an `impl Connection` about one subject.
//!
//! # Invariants
//! - Channels are opened only on an open connection. While a connection is being closed, it has only channels with
//!   unsent confirms.
//! - [`Connection::teardown`] returns all memory that the connection has from pools, in every phase.

use core::fmt::{self, Write as _};
use core::net::SocketAddr;

use leveret_amqp::field::Table;
use leveret_amqp::{Full, Method, TableWriter, Writer};
use leveret_core::batch::Batch;
use leveret_core::command::{ChannelId, ConnectionId, Name, ReplyOrder};
use leveret_core::error::Fault;
use leveret_core::limits::{FRAME_BYTES_MIN, Limits};
use leveret_core::log_limiter::{LogKind, LogLimiter, LogSource};
use leveret_core::mem::{ByteChain, BytePool, Class, HeapBytes, Memory, Messages, Share};
use leveret_core::time::{Deadline, Now};

use super::channel::{ChannelState, Channels, ConfirmList, NONE, OwnChannels, Slot};
use super::deliveries::Begun;
use super::handshake::{ClientPool, ClientProperties};
use super::input::BodyFrame;
use super::methods::{Mechanism, Pending};
use super::mqtt::MqttSettings;
use super::output::Blocked;

/// Time limit in milliseconds for a client to close its socket after the last frame was sent.
pub(super) const SOCKET_CLOSE_TIMEOUT_MS: u64 = 3_000;

/// Facts about a client that are known before it sends anything.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Peer {
    /// The client has connected from this machine.
    pub from_loopback: bool,
    /// The source whose rate limit applies to log lines about the client.
    pub source: LogSource,
    /// The port of the client; 0 if it has none. It distinguishes connections from one address in the log.
    pub port: u16,
}

/// Maximum length of the names in a log line, in bytes. Longer names are truncated.
const NAMES_BYTES_MAX: usize = 62;

/// Identifies a connection in a log line: `10.0.0.7:51234 user meter vhost plant`, with the parts that are known.
#[derive(Debug)]
pub struct Caller<'c> {
    /// The address of the client.
    pub peer: Peer,
    names: &'c str,
    /// The name of a client property, and its value; an empty value without it.
    label: (&'static str, &'c str),
}

/// Number of characters of a client property in a log line.
const LABEL_SHOWN: usize = 48;

impl<'c> Caller<'c> {
    /// Returns the identification of a client, with its property `label`.
    pub(super) fn new(peer: Peer, names: &'c LogNames, label: &'static str, client: Table<'c>) -> Self {
        let value = client.get(label).and_then(|value| value.as_str()).unwrap_or_default();
        Self { peer, names: &names.0, label: (label, value) }
    }
}

/// User and virtual host as text for the log; empty until both are known.
#[derive(Debug, Default)]
pub(super) struct LogNames(heapless::String<NAMES_BYTES_MAX>);

impl LogNames {
    /// Sets the user and the virtual host.
    pub(super) fn set(&mut self, user: &str, vhost: &str) {
        self.0.clear();
        let named = [(" user ", user), (" vhost ", vhost)];
        let characters = named.iter().flat_map(|(what, name)| what.chars().chain(name.escape_debug()));
        for character in characters {
            if self.0.push(character).is_err() {
                break;
            }
        }
    }
}

impl fmt::Display for Caller<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.peer.source, self.peer.port) {
            (LogSource::Address(address), port) if port > 0 => SocketAddr::new(address, port).fmt(f)?,
            (source, _) => source.fmt(f)?,
        }
        f.write_str(self.names)?;
        let (name, value) = self.label;
        if value.is_empty() {
            return Ok(());
        }
        write!(f, " {name} ")?;
        let shown = value.chars().take(LABEL_SHOWN);
        shown.flat_map(char::escape_debug).try_for_each(|character| f.write_char(character))
    }
}

/// The phase of a connection, as far as the server needs to know it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// The user is not authenticated yet.
    Unauthenticated,
    /// The user has logged in and has not opened a virtual host yet.
    LoggedIn,
    /// The connection is in use.
    Open,
    /// The connection was refused, or is being closed.
    Over,
}

/// The result of the negotiation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Negotiated {
    /// Maximum size of a frame in bytes.
    pub frame_max: u32,
    /// Maximum number of channels.
    pub channel_max: u16,
    /// Heartbeat interval in milliseconds; 0 means none.
    pub heartbeat_ms: u32,
}

/// The exact phase of the protocol. Channels are opened only in `Open`. In later phases only channels with unsent
/// confirms remain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    /// The protocol header is expected.
    Header { due: Deadline },
    /// connection.start is sent or will be; start-ok is expected.
    Start { due: Deadline },
    /// connection.tune is sent or will be; tune-ok is expected.
    Tune { due: Deadline },
    /// connection.open is expected.
    Opening { due: Deadline },
    /// The client was refused. Its socket is closed after a delay, which slows down guessing passwords. With `answer`,
    /// connection.close is sent instead when the delay is over; its text names this mechanism.
    Refused { until: Deadline, answer: Option<Mechanism> },
    /// The connection is in use.
    Open,
    /// The broker has sent connection.close, and ignores all input except close-ok. With `ignores_input`, it ignores
    /// close-ok as well, because the input is not a sequence of valid frames.
    Closing { until: Deadline, ignores_input: bool },
    /// The broker has sent close-ok. The client is expected to close the socket.
    Ending { until: Deadline },
    /// The socket is closed as soon as the pending output is sent.
    Finished { until: Deadline },
}

/// Capabilities that the client announced.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Capabilities {
    pub(super) authentication_failure_close: bool,
    pub(super) consumer_cancel_notify: bool,
    pub(super) connection_blocked: bool,
}

/// The state of the input.
#[derive(Debug)]
pub(super) struct Input {
    /// The command whose outcome the broker has not returned yet.
    pub(super) pending: Pending,
    /// A channel for which channel.close was queued because of an error. The next command closes it in the broker.
    pub(super) release: Option<(Slot, ChannelId)>,
    /// The channel with a complete message for which the broker had no capacity; [`NONE`] if there is none.
    pub(super) retry_publish: Slot,
    /// The body frame that is arriving.
    pub(super) body: BodyFrame,
    /// No input is handled at present.
    pub(super) is_suspended: bool,
}

/// All output except the deliveries in the outbox.
#[derive(Debug)]
pub(super) struct Output {
    /// The replies that are not written yet.
    pub(super) replies: ByteChain,
    /// The protocol header of AMQP 0-9-1 must be sent, because the client has sent another one.
    pub(super) is_protocol_header_due: bool,
    /// Number of bytes of `connection.start` that are not written yet.
    pub(super) start_left: u16,
    /// The position in the first delivery of the outbox, if a part of this delivery was written.
    pub(super) begun: Option<Begun>,
    pub(super) is_heartbeat_due: bool,
    /// The channel whose content stays incomplete because the connection is being closed; 0 if there is none.
    pub(super) cut_channel: u16,
}

/// The channels with confirms that are not sent yet.
#[derive(Debug)]
pub(super) struct Confirming {
    /// Channels whose first confirm may be sent: its messages are durable, or need not be.
    pub(super) sendable: ConfirmList,
    /// Channels whose first confirm is for messages that are not durable yet.
    pub(super) awaits_disk: ConfirmList,
}

/// Times of the last events.
#[derive(Debug)]
pub(super) struct Timing {
    /// When the client last sent something.
    pub(super) last_received: Now,
    /// When reading was last resumed after the broker had stopped it.
    pub(super) resumed: Now,
    /// When output was last written.
    pub(super) last_written: Now,
    /// The deadline until which more of an incomplete content or frame must arrive.
    pub(super) content_due: Deadline,
    /// Number of bytes of an incomplete frame after the last input was handled.
    pub(super) unhandled_bytes: u32,
    /// Since when `unhandled_bytes` has not changed.
    pub(super) unhandled_since: Now,
}

/// The server's side of one connection.
#[derive(Debug)]
pub struct Connection {
    pub(super) id: ConnectionId,
    pub(super) peer: Peer,
    /// The name in the client's verified certificate.
    pub(super) certificate_name: Option<Box<str>>,
    pub(super) client: ClientProperties,
    /// The mechanism of the login; empty before the login.
    pub(super) mechanism: &'static str,
    names: LogNames,
    pub(super) phase: Phase,
    pub(super) is_logged_in: bool,
    pub(super) capabilities: Capabilities,
    pub(super) blocked: Blocked,
    pub(super) negotiated: Negotiated,
    pub(super) channels: OwnChannels,
    pub(super) input: Input,
    pub(super) output: Output,
    pub(super) confirms: Confirming,
    pub(super) timing: Timing,
}

impl Connection {
    /// Logs a warning about an event that this client has caused. `text` is appended to [`Self::caller`].
    pub(super) fn warn(&self, context: &mut Context<'_>, kind: LogKind, text: fmt::Arguments<'_>) {
        context.log.warn(context.now, self.peer.source, kind, format_args!("{}{text}", self.caller()));
    }

    /// Returns the stored client properties.
    pub fn client_properties(&self) -> Table<'_> {
        self.client.table()
    }

    /// Returns the mechanism of the login: `PLAIN`, `AMQPLAIN` or `EXTERNAL`; empty before the login.
    pub const fn mechanism(&self) -> &'static str {
        self.mechanism
    }

    /// Returns the text that identifies the connection in the log.
    pub fn caller(&self) -> Caller<'_> {
        Caller::new(self.peer, &self.names, "connection_name", self.client.table())
    }

    /// Sets the user and the virtual host that the log shows.
    pub fn set_names(&mut self, user: &str, vhost: &str) {
        self.names.set(user, vhost);
    }

    /// Creates the state of a connection that was accepted at `now`.
    pub fn new(now: Now, id: ConnectionId, peer: Peer, settings: &Settings) -> Self {
        Self {
            id,
            peer,
            client: ClientProperties::default(),
            mechanism: "",
            names: LogNames::default(),
            certificate_name: None,
            phase: Phase::Header { due: now.after_ms(settings.handshake_timeout_ms) },
            is_logged_in: false,
            capabilities: Capabilities::default(),
            blocked: Blocked::default(),
            negotiated: Negotiated { frame_max: FRAME_BYTES_MIN, channel_max: 0, heartbeat_ms: 0 },
            channels: OwnChannels::NONE,
            input: Input {
                pending: Pending::Nothing,
                release: None,
                retry_publish: NONE,
                body: BodyFrame::NONE,
                is_suspended: false,
            },
            output: Output {
                replies: ByteChain::default(),
                is_protocol_header_due: false,
                start_left: 0,
                begun: None,
                is_heartbeat_due: false,
                cut_channel: 0,
            },
            confirms: Confirming { sendable: ConfirmList::EMPTY, awaits_disk: ConfirmList::EMPTY },
            timing: Timing {
                last_received: now,
                resumed: now,
                last_written: now,
                content_due: Deadline::NEVER,
                unhandled_bytes: 0,
                unhandled_since: now,
            },
        }
    }

    /// Sets the name in the client's verified certificate. The client may log in as this user by SASL EXTERNAL.
    pub fn set_certificate_name(&mut self, name: &str) {
        self.certificate_name = Some(name.into());
    }

    /// Returns the stage of the connection.
    pub const fn stage(&self) -> Stage {
        match self.phase {
            Phase::Header { .. } | Phase::Start { .. } => Stage::Unauthenticated,
            Phase::Tune { .. } | Phase::Opening { .. } => Stage::LoggedIn,
            Phase::Open => Stage::Open,
            Phase::Refused { .. } | Phase::Closing { .. } | Phase::Ending { .. } | Phase::Finished { .. } => {
                Stage::Over
            }
        }
    }

    /// Returns whether the broker has accepted a login. The result remains `true` after the connection was
    /// closed.
    pub const fn is_logged_in(&self) -> bool {
        self.is_logged_in
    }

    /// Returns the limits as negotiated so far.
    pub const fn negotiated(&self) -> Negotiated {
        self.negotiated
    }

    /// Returns whether the broker may remove its state of the connection before the socket is closed: no more commands
    /// come, and no delivery of the outbox is needed.
    pub const fn may_leave_broker(&self) -> bool {
        let ends = matches!(
            self.phase,
            Phase::Refused { .. } | Phase::Closing { .. } | Phase::Ending { .. } | Phase::Finished { .. }
        );
        ends && self.output.begun.is_none()
    }

    /// Closes the connection with this error: sends connection.close, and waits for close-ok for a limited time. A
    /// client that has not sent connection.tune-ok is disconnected without a frame.
    pub fn close(&mut self, context: &mut Context<'_>, fault: &Fault) {
        match self.phase {
            Phase::Open | Phase::Opening { .. } => self.close_connection(context, fault, (0, 0)),
            Phase::Closing { .. } | Phase::Ending { .. } | Phase::Finished { .. } => {}
            Phase::Header { .. } | Phase::Start { .. } | Phase::Tune { .. } | Phase::Refused { .. } => {
                self.finish(context.now);
            }
        }
    }

    /// Sends basic.cancel to notify the client that a consumer was cancelled, after the deliveries up to `order`. Returns
    /// `false` if there is no capacity for the notification now. Returns `true` without sending it if the client does not
    /// support it or has closed the channel.
    pub fn server_cancel(
        &mut self,
        context: &mut Context<'_>,
        channel_number: u16,
        consumer_tag: &str,
        order: ReplyOrder,
    ) -> bool {
        if !self.capabilities.consumer_cancel_notify || !self.is_channel_open(context, channel_number) {
            return true;
        }
        // While the outcome of a command is pending, the rest of the capacity is reserved for its reply.
        if !self.has_reply_room() || self.expects_answer() {
            return false;
        }
        let cancel = leveret_amqp::Method::BasicCancel { consumer_tag, no_wait: true };
        self.push_reply(context, channel_number, &cancel, order);
        true
    }

    /// Notes that this publisher waits for memory, or with `is_for_disk` for disk space. `connection.blocked`
    /// is sent once, if the client supports it.
    pub const fn block(&mut self, now: Now, is_for_disk: bool) {
        if !self.blocked.is_waiting {
            (self.blocked.is_waiting, self.blocked.since, self.blocked.is_stable) = (true, now, true);
            if !self.blocked.is_client_notified {
                self.blocked.is_for_disk = is_for_disk;
            }
        }
    }

    /// Notes that this publisher no longer waits. `connection.unblocked` is sent only after a delay, because
    /// the publisher may have to wait again at once.
    pub const fn unblock(&mut self, now: Now) {
        if self.blocked.is_waiting {
            (self.blocked.is_waiting, self.blocked.since, self.blocked.is_stable) = (false, now, false);
        }
    }

    /// Returns all memory from pools, because the socket is closed. The caller also removes the connection from the
    /// broker.
    pub fn teardown(&mut self, context: &mut Context<'_>) {
        context.pools.clients.give_back(core::mem::take(&mut self.client));
        self.drop_channels(context);
        self.output.replies.clear(&mut context.pools.replies);
        self.output.begun = None;
        self.output.is_protocol_header_due = false;
        self.output.start_left = 0;
        self.finish(context.now);
    }

    /// Removes the records of all channels, and incomplete messages.
    pub(super) fn drop_channels(&mut self, context: &mut Context<'_>) {
        while self.channels.first != NONE {
            let slot = self.channels.first;
            self.drop_content(context, slot);
            context.pools.channels.close(&mut self.channels, slot);
        }
        (self.confirms.sendable, self.confirms.awaits_disk) = (ConfirmList::EMPTY, ConfirmList::EMPTY);
        self.input.retry_publish = NONE;
        self.input.release = None;
        self.input.body.slot = NONE;
    }

    pub(super) fn finish(&mut self, now: Now) {
        self.output.is_heartbeat_due = false;
        self.blocked = Blocked::default();
        self.phase = Phase::Finished { until: now.after_ms(SOCKET_CLOSE_TIMEOUT_MS) };
    }

    pub(super) fn is_channel_open(&mut self, context: &Context<'_>, number: u16) -> bool {
        let channels = &context.pools.channels;
        self.phase == Phase::Open
            && channels
                .find(&mut self.channels, self.id, number)
                .is_some_and(|slot| matches!(channels[slot].state, ChannelState::Open(_)))
    }
}

/// Pools that all connections share.
#[derive(Debug)]
pub struct Pools {
    pub(super) channels: Channels,
    pub(super) replies: BytePool,
    pub(super) clients: ClientPool,
    /// The consumer tag of the basic.cancel in progress. There is at most one, because basic.cancel is always answered
    /// before the next command of any connection begins.
    pub(super) cancelled_tag: Name,
    /// Number of messages that were confirmed to publishers since the start.
    pub(super) confirmed: u64,
    /// The AMQP properties of the MQTT message that is being handled. Empty before the first MQTT client.
    pub(super) mqtt_properties: Box<[u8]>,
    /// The subscription identifiers of the delivery that is being written.
    pub(super) subscription_ids: Vec<u32>,
    /// How many octets of codes further long answers of MQTT may have. All connections together may have `frame_max`, the
    /// maximum length of a packet.
    pub(super) long_answer_bytes_left: usize,
    /// The memory of topic aliases.
    pub(super) alias_bytes: HeapBytes,
}

impl Pools {
    /// Reserves the pools, with a memory of their own.
    pub fn new(limits: &Limits) -> Self {
        Self::in_memory(limits, &Memory::unlimited())
    }

    /// Reserves the pools, whose extents are taken from `memory`.
    pub fn in_memory(limits: &Limits, memory: &Memory) -> Self {
        let replies = limits.replies_pool_bytes();
        Self {
            channels: Channels::new(limits.channels_max as usize, memory),
            replies: BytePool::with_bytes(replies),
            clients: ClientPool::in_memory(memory),
            cancelled_tag: Name::new(),
            confirmed: 0,
            mqtt_properties: Box::default(),
            subscription_ids: Vec::new(),
            long_answer_bytes_left: limits.frame_max as usize,
            alias_bytes: HeapBytes::in_memory(memory, Class::Clients),
        }
    }

    /// Returns whether a long answer with this number of bytes can be begun.
    pub const fn has_long_answer_room(&self, bytes: u32) -> bool {
        self.long_answer_bytes_left >= bytes as usize
    }

    /// Allocates the buffer for the AMQP properties of an MQTT message, unless it was allocated before. It has
    /// `frame_max` bytes, as the longest properties of AMQP clients.
    pub(super) fn reserve_mqtt_properties(&mut self, frame_max: u32) {
        if self.mqtt_properties.is_empty() {
            self.mqtt_properties = vec![0; frame_max as usize].into_boxed_slice();
        }
    }

    /// Returns the size of a channel's record in bytes, for the memory table.
    pub const fn channel_record_bytes() -> usize {
        Channels::RECORD_BYTES
    }

    /// Returns the bytes of the hash table of all channels, for the memory table.
    pub const fn table_bytes(limits: &Limits) -> usize {
        Channels::table_bytes(limits.channels_max as usize)
    }

    /// Returns approximately how many bytes of system memory the pools have but do not use.
    pub const fn idle_bytes(&self) -> usize {
        self.channels.idle_bytes() + self.replies.idle_bytes()
    }

    /// Returns unused memory to the system, a limited part per call. Returns whether that was the last part.
    pub fn trim(&mut self) -> bool {
        self.channels.trim();
        self.replies.trim()
    }

    /// Returns the number of messages that were confirmed to publishers since the start.
    pub const fn confirmed(&self) -> u64 {
        self.confirmed
    }

    /// Returns the number of messages on a channel whose publisher confirms were not sent yet.
    pub fn unconfirmed(&self, connection: ConnectionId, channel: u16) -> u64 {
        self.channels.unconfirmed(connection, channel)
    }

    /// Returns the number of channels that are open or closing.
    pub const fn channels_used(&self) -> usize {
        self.channels.len()
    }

    /// Returns the bytes of stored replies, in whole pages.
    pub const fn reply_bytes_used(&self) -> usize {
        self.replies.bytes_used()
    }
}

/// Buffers for names in a command that are not borrowed from the input: the last declared queue, and names from which
/// line breaks were removed. The server has one `Names` for all connections.
#[derive(Debug, Default)]
pub struct Names {
    pub(super) queue: Name,
    pub(super) exchange: Name,
}

/// What the methods of [`Connection`] borrow from the server for one call.
#[derive(Debug)]
pub struct Context<'p> {
    /// The time of this turn.
    pub now: Now,
    /// The broker time of this turn in milliseconds; see `PendingWrites::time_ms`.
    pub broker_time_ms: u64,
    /// The pools of all connections.
    pub pools: &'p mut Pools,
    /// The messages.
    pub messages: &'p mut Messages,
    /// The settings of all connections.
    pub settings: &'p Settings,
    /// The share of the memory pools in which this connection's messages are stored.
    pub share: Share,
    /// The last durable batch.
    pub durable: Batch,
    /// The sequence number of the last delivery that was put into the connection's outbox.
    pub last_delivery: ReplyOrder,
    /// For answers to MQTT: those to published messages are withheld, because an MQTT client that gets the messages does not
    /// keep up.
    pub withholds_answers: bool,
    /// The rate limiter for log lines that clients cause.
    pub log: &'p mut LogLimiter,
}

/// The server properties in connection.start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// `product`: some clients change their behaviour depending on it.
    pub product: String,
    /// `version`: some clients change their behaviour depending on it.
    pub version: String,
    /// `platform`
    pub platform: String,
    /// `copyright`
    pub copyright: String,
    /// `information`
    pub information: String,
    /// `cluster_name`
    pub cluster_name: String,
}

/// Settings that all connections share. While the broker runs, only the identity may change.
#[derive(Debug)]
pub struct Settings {
    pub(super) channel_max: u16,
    pub(super) frame_max: u32,
    pub(super) heartbeat_s: u16,
    pub(super) message_size_max: u32,
    pub(super) handshake_timeout_ms: u64,
    pub(super) content_timeout_ms: u64,
    pub(super) mqtt: MqttSettings,
    /// The largest CONNECT of MQTT in bytes.
    pub(super) connect_len_max: u32,
    /// The frame of connection.start.
    pub(super) start_frame: Box<[u8]>,
    /// The frame for a client with a certificate.
    pub(super) start_frame_external: Box<[u8]>,
}

/// The announced capabilities. All of them are implemented.
const CAPABILITIES: [&str; 9] = [
    "publisher_confirms",
    "exchange_exchange_bindings",
    "basic.nack",
    "consumer_cancel_notify",
    "connection.blocked",
    "consumer_priorities",
    "authentication_failure_close",
    "per_consumer_qos",
    "direct_reply_to",
];

/// connection.start must fit into AMQP's smallest frame, however long the configured product name is.
const START_BYTES_MAX: usize = 4096;
/// Maximum length of a text in the server properties in bytes.
const TEXT_BYTES_MAX: usize = 400;

impl Settings {
    /// Returns the settings for these limits, and encodes connection.start.
    pub fn new(limits: &Limits, identity: &Identity) -> Self {
        Self {
            channel_max: limits.channels_of_a_connection(),
            frame_max: limits.frame_max,
            heartbeat_s: limits.heartbeat_s,
            message_size_max: limits.message_size_max,
            handshake_timeout_ms: limits.handshake_timeout_ms.into(),
            content_timeout_ms: limits.content_timeout_ms.into(),
            mqtt: MqttSettings::default(),
            connect_len_max: limits.connect_bytes_max(),
            start_frame: start_frame(identity, b"PLAIN AMQPLAIN"),
            start_frame_external: start_frame(identity, b"PLAIN AMQPLAIN EXTERNAL"),
        }
    }
}

impl Settings {
    /// Replaces the identity that later clients are told.
    pub fn set_identity(&mut self, identity: &Identity) {
        self.start_frame = start_frame(identity, b"PLAIN AMQPLAIN");
        self.start_frame_external = start_frame(identity, b"PLAIN AMQPLAIN EXTERNAL");
    }

    /// Returns the settings with these for MQTT clients.
    #[must_use]
    pub fn with_mqtt(self, mqtt: MqttSettings) -> Self {
        Self { mqtt, ..self }
    }

    /// Returns the length of the largest MQTT packet that the broker accepts, in bytes.
    pub(super) const fn mqtt_packet_len_max(&self) -> u32 {
        self.message_size_max.saturating_add(self.frame_max)
    }
}

/// Encodes connection.start with these mechanisms.
fn start_frame(identity: &Identity, mechanisms: &[u8]) -> Box<[u8]> {
    let mut properties = vec![0; START_BYTES_MAX];
    let mut writer = Writer::new(&mut properties);
    let mut frame = vec![0; START_BYTES_MAX];
    let mut out = Writer::new(&mut frame);
    // The frame fits: it has six texts of at most `TEXT_BYTES_MAX` bytes, and nine names.
    let complete = writer.table(|table| write_properties(table, identity)).and_then(|()| {
        let start = Method::ConnectionStart {
            version_major: 0,
            version_minor: 9,
            server_properties: Table::trusted(writer.written().get(4..).unwrap_or_default()),
            mechanisms,
            locales: b"en_US",
        };
        start.emit_frame(0, &mut out)
    });
    debug_assert!(complete.is_ok(), "all texts have a maximum length");
    let len = out.at();
    frame.truncate(len);
    frame.into_boxed_slice()
}

/// Writes the server properties in alphabetical order, as RabbitMQ does.
fn write_properties(table: &mut TableWriter<'_, '_>, identity: &Identity) -> Result<(), Full> {
    table.table("capabilities", |capabilities| {
        CAPABILITIES.iter().try_for_each(|name| capabilities.bool(name, true))
    })?;
    let texts = [
        ("cluster_name", &identity.cluster_name),
        ("copyright", &identity.copyright),
        ("information", &identity.information),
        ("platform", &identity.platform),
        ("product", &identity.product),
        ("version", &identity.version),
    ];
    texts.iter().try_for_each(|(name, text)| table.text(name, cut(text)))
}

/// Returns at most the first `TEXT_BYTES_MAX` bytes of a text, only complete characters.
fn cut(text: &str) -> &str {
    let end = (0..=TEXT_BYTES_MAX.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    text.get(..end.unwrap_or(0)).unwrap_or_default()
}

#[cfg(test)]
mod settings_tests {
    use super::*;
    use leveret_amqp::next_frame;

    #[test]
    fn connection_start_fits_whatever_the_product_is_called() {
        let long = "é".repeat(4000);
        let identity = Identity {
            product: long.clone(),
            version: long.clone(),
            platform: long.clone(),
            copyright: long.clone(),
            information: long.clone(),
            cluster_name: long,
        };
        let settings = Settings::new(&Limits::default(), &identity);
        let frame = next_frame(&settings.start_frame_external, 4088).unwrap().unwrap();
        assert_eq!(frame.input_len(), settings.start_frame_external.len());
        let Method::ConnectionStart { server_properties, .. } = Method::parse(frame.payload).unwrap() else {
            panic!("connection.start");
        };
        let capabilities = server_properties.get("capabilities").and_then(|value| value.as_table()).unwrap();
        assert_eq!(capabilities.get("basic.nack").and_then(|value| value.as_bool()), Some(true));
        assert_eq!(
            server_properties.get("product").and_then(|value| value.as_str()).map(str::len),
            Some(400)
        );
    }
}
