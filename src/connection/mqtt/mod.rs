//! The protocol state of one MQTT client: the server's side of a connection, without its socket.
//!
//! | file | content |
//! |---|---|
//! | `mod` | the state of a connection; keep-alive and other deadlines; closing |
//! | `input` | packets of the client become commands; CONNECT; the payload of a PUBLISH as it arrives |
//! | `answers` | outcomes of commands become packets, which are stored until they may be sent |
//! | `output` | writes stored packets and deliveries |
//! | `aliases` | topic aliases of MQTT 5 |
//! | `properties` | the mapping between the properties of MQTT 5 and of AMQP |
//!
//! # Invariants
//! - A packet that the protocol does not allow ends the connection, and affects nothing else.
//! - A packet is passed to the broker only if there is capacity for its answer.
//! - An answer is sent when everything that it promises is durable, and answers keep the order of the requests.
//! - A PUBLISH of the client is acknowledged only after the broker has accepted its message.

mod aliases;
mod answers;
mod input;
mod output;
mod properties;

use core::fmt;

use leveret_amqp::field::Table;
use leveret_amqp::{Full, TableWriter, Writer};
use leveret_core::batch::Batch;
use leveret_core::command::{ChannelId, ConnectionId};
use leveret_core::error::{Fault, ReplyCode};
use leveret_core::limits::FRAME_BYTES_MIN;
use leveret_core::log_limiter::LogKind;
use leveret_core::mem::ByteChain;
use leveret_core::time::{Deadline, Now};
use leveret_mqtt::{ReasonCode, Version};

use super::connection::{Caller, Context, LogNames, Peer, SOCKET_CLOSE_TIMEOUT_MS, Settings, Stage};
use super::handshake::ClientProperties;
use super::timeouts::{LOGIN_TIMEOUT_MS, PAUSE_MS_MIN, Timeout};
use aliases::{Alias, TopicAliases};
use input::Input;

/// Bytes of memory that an MQTT connection may allocate in addition to its record: the state of a SUBSCRIBE.
pub const MQTT_HEAP_BYTES: usize = size_of::<input::Filters>();

/// Delay in milliseconds before a client is disconnected that will most likely send the same again.
const REPEAT_DELAY_MS: u64 = 5_000;

/// Settings for MQTT clients.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MqttSettings {
    /// The user of clients that send no user name. Empty: such clients are refused.
    pub anonymous_user: String,
    /// The virtual host of clients whose user name contains none.
    pub vhost: String,
    /// The content type of messages that a client publishes without one. Empty: none.
    pub content_type: String,
    /// The interval at which `$SYS` topics are sent, in milliseconds; 0: they are not offered.
    pub sys_interval_ms: u64,
}

/// The server's side of the connection of an MQTT client.
#[derive(Debug)]
pub struct MqttConnection {
    id: ConnectionId,
    peer: Peer,
    /// The name in the client's verified certificate.
    certificate_name: Option<Box<CertificateName>>,
    names: LogNames,
    client: ClientProperties,
    phase: Phase,
    version: Version,
    is_logged_in: bool,
    /// Number of octets of stored packets in the memory for long answers, which all connections share.
    long_answer_bytes: u16,
    /// Time without a packet after which the client is lost, in milliseconds; 0: unlimited.
    keep_alive_ms: u32,
    /// The session expiry interval of CONNECT in seconds; 0: the session ends with the connection.
    expiry_s: u32,
    client_limits: ClientLimits,
    /// The topic aliases of the client, and those for the client.
    aliases_in: TopicAliases,
    aliases_out: TopicAliases,
    input: Input,
    output: Output,
    timing: Timing,
}

/// In a box of its own, because few connections have one.
#[derive(Debug)]
struct CertificateName(Box<str>);

/// The phases of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// CONNECT is expected, or is being handled. It stays in the input until the last step is done.
    /// `len` is its length in bytes, while a part of it is missing.
    Connecting { due: Deadline, step: ConnectStep, len: u32 },
    /// The connection is in use. `channel` is the broker's channel of the session.
    Open { channel: ChannelId },
    /// The client is refused. It gets the answer after a delay, which slows down guessing passwords, and loops of connecting
    /// and being refused. `is_open`: CONNECT was answered before.
    Refused { until: Deadline, reason: ReasonCode, is_open: bool },
    /// The socket is closed when the output is sent.
    Finished { until: Deadline },
}

/// The commands for CONNECT.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum ConnectStep {
    Login,
    OpenVhost,
    OpenSession,
}

/// What a client accepts or wants, according to its CONNECT.
#[derive(Clone, Copy, Debug)]
struct ClientLimits {
    /// The largest packet, in bytes.
    packet_len_max: u32,
    /// The highest topic alias; 0: none.
    topic_alias_max: u16,
    /// Reason strings are sent in all packets. Otherwise only CONNACK and DISCONNECT have them.
    wants_problem_information: bool,
    /// The client is a bridge of another broker: see [`leveret_mqtt::Connect::is_bridge`].
    is_bridge: bool,
}

impl Default for ClientLimits {
    fn default() -> Self {
        Self {
            packet_len_max: u32::MAX,
            topic_alias_max: 0,
            wants_problem_information: true,
            is_bridge: false,
        }
    }
}

/// The output except deliveries.
#[derive(Debug)]
struct Output {
    /// The packets that are not written yet.
    packets: ByteChain,
    /// When this batch is durable, the first of them may be written.
    first_batch: Batch,
    /// The newest batch that was durable at the last look.
    durable: Batch,
    /// The next delivery waits for this batch; `NONE` if it does not wait.
    delivery_batch: Batch,
    /// The number of PINGRESP packets to be sent.
    pingresp_count: u8,
    /// Number of octets of the first packet that are left, if it was written partly; otherwise 0.
    part_left: u16,
    /// The first of `packets` is the CONNACK of a client that was accepted.
    is_connack_due: bool,
    /// PUBACKs and PUBRECs, stored like `packets`, that are withheld because an MQTT client that gets the messages does not keep
    /// up.
    withheld: Option<Box<ByteChain>>,
    /// The first delivery of the outbox, if it was written partly.
    begun: Option<Begun>,
}

/// A delivery that was written partly.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
struct Begun {
    /// Number of bytes of the packet that were written.
    sent: u64,
    /// Number of bytes of the packet before its payload.
    header_len: u32,
    /// The remaining time until the message expired when its first part was written, in seconds; `None` if it does not
    /// expire.
    expiry_s: Option<u32>,
    /// The topic alias.
    alias: Option<Alias>,
    /// The subscription identifiers are sent. Otherwise the packet would be larger than the client accepts.
    has_ids: bool,
}

#[derive(Debug)]
struct Timing {
    /// When the client last sent something.
    last_received: Now,
    /// When the payload of the last PUBLISH began to arrive.
    payload_begun: Now,
    /// Until then more of an incomplete packet must arrive.
    packet_due: Deadline,
    /// Number of bytes of an incomplete packet after the last input was handled.
    unhandled_bytes: u32,
}

impl MqttConnection {
    /// Creates the state of a connection that was accepted at `now`.
    pub(super) fn new(now: Now, id: ConnectionId, peer: Peer, settings: &Settings) -> Self {
        let due = now.after_ms(settings.handshake_timeout_ms);
        Self {
            id,
            peer,
            certificate_name: None,
            names: LogNames::default(),
            client: ClientProperties::default(),
            phase: Phase::Connecting { due, step: ConnectStep::Login, len: 0 },
            version: Version::V3_1_1,
            is_logged_in: false,
            long_answer_bytes: 0,
            keep_alive_ms: 0,
            expiry_s: 0,
            client_limits: ClientLimits::default(),
            aliases_in: TopicAliases::default(),
            aliases_out: TopicAliases::default(),
            input: Input::default(),
            output: Output {
                packets: ByteChain::default(),
                first_batch: Batch::NONE,
                durable: Batch::NONE,
                delivery_batch: Batch::NONE,
                pingresp_count: 0,
                part_left: 0,
                is_connack_due: false,
                withheld: None,
                begun: None,
            },
            timing: Timing {
                last_received: now,
                payload_begun: now,
                packet_due: Deadline::NEVER,
                unhandled_bytes: 0,
            },
        }
    }

    // ---- what the server asks

    pub(super) const fn stage(&self) -> Stage {
        match self.phase {
            Phase::Connecting { step: ConnectStep::Login, .. } => Stage::Unauthenticated,
            Phase::Connecting { .. } => Stage::LoggedIn,
            Phase::Open { .. } => Stage::Open,
            Phase::Refused { .. } | Phase::Finished { .. } => Stage::Over,
        }
    }

    pub(super) const fn is_logged_in(&self) -> bool {
        self.is_logged_in
    }

    /// Returns how many bytes are read before the client has logged in: all of a CONNECT, once its length is known.
    pub(super) const fn login_bytes_max(&self) -> usize {
        match self.phase {
            Phase::Connecting { len, .. } if len > FRAME_BYTES_MIN => len as usize,
            _ => FRAME_BYTES_MIN as usize,
        }
    }

    /// Returns whether no packet of the client was handled yet.
    pub(super) const fn awaits_first_packet(&self) -> bool {
        matches!(self.phase, Phase::Connecting { step: ConnectStep::Login, .. })
            && !self.input.is_command_pending()
    }

    pub(super) const fn may_leave_broker(&self) -> bool {
        matches!(self.phase, Phase::Refused { .. } | Phase::Finished { .. }) && self.output.begun.is_none()
    }

    /// Returns the keep-alive time in seconds; 0: none.
    pub(super) const fn keep_alive_s(&self) -> u32 {
        self.keep_alive_ms / 1500
    }

    /// Returns the name of the protocol as in RabbitMQ.
    pub(super) const fn protocol(&self) -> &'static str {
        match self.version {
            Version::V3_1 => "MQTT 3.1.0",
            Version::V3_1_1 => "MQTT 3.1.1",
            Version::V5 => "MQTT 5.0",
        }
    }

    pub(super) fn client_properties(&self) -> Table<'_> {
        self.client.table()
    }

    pub(super) fn caller(&self) -> Caller<'_> {
        Caller::new(self.peer, &self.names, "client_id", self.client.table())
    }

    pub(super) fn set_names(&mut self, user: &str, vhost: &str) {
        self.names.set(user, vhost);
    }

    pub(super) fn set_certificate_name(&mut self, name: &str) {
        self.certificate_name = Some(Box::new(CertificateName(name.into())));
    }

    fn warn(&self, context: &mut Context<'_>, kind: LogKind, text: fmt::Arguments<'_>) {
        context.log.warn(context.now, self.peer.source, kind, format_args!("{}{text}", self.caller()));
    }

    // ---- deadlines

    /// Extends the time limit for CONNECT by `ms` milliseconds, during which the broker has not read from the client.
    pub(super) const fn postpone(&mut self, ms: u64) {
        if let Phase::Connecting { due, .. } = &mut self.phase {
            *due = due.later_ms(ms);
        }
    }

    pub(super) fn deadline(&self) -> Deadline {
        match self.phase {
            Phase::Connecting { due, .. } => due,
            Phase::Open { .. } => self.input_deadline(),
            Phase::Refused { until, .. } | Phase::Finished { until } => until,
        }
    }

    /// Returns the earliest deadline that received input postpones.
    pub(super) fn input_deadline(&self) -> Deadline {
        match self.phase {
            Phase::Connecting { due, .. } => due,
            Phase::Open { .. } if self.input.is_suspended => Deadline::NEVER,
            Phase::Open { .. } => self.keep_alive_deadline().earlier(self.timing.packet_due),
            Phase::Refused { .. } | Phase::Finished { .. } => Deadline::NEVER,
        }
    }

    fn keep_alive_deadline(&self) -> Deadline {
        match self.keep_alive_ms {
            0 => Deadline::NEVER,
            ms => self.timing.last_received.after_ms(ms.into()),
        }
    }

    /// Extends deadlines that passed long ago, because the machine was probably paused.
    pub(super) fn extend_after_pause(&mut self, now: Now, handshake_ms: u64, content_ms: u64) {
        let is_late = |due: Deadline| due.later_ms(PAUSE_MS_MIN).is_due(now);
        if let Phase::Connecting { due, .. } = &mut self.phase
            && is_late(*due)
        {
            *due = now.after_ms(handshake_ms);
        }
        if is_late(self.keep_alive_deadline()) {
            // A third of the time that the client has: half of its keep-alive.
            let left_ms = u64::from(self.keep_alive_ms / 3);
            let since = now.as_ms().saturating_sub(u64::from(self.keep_alive_ms) - left_ms);
            self.timing.last_received = Now::from_ms(since);
        }
        if is_late(self.timing.packet_due) {
            self.timing.packet_due = now.after_ms(content_ms);
        }
    }

    pub(super) fn handle_timeout(&mut self, context: &mut Context<'_>) -> Timeout {
        if !self.deadline().is_due(context.now) {
            return Timeout::GoOn;
        }
        match self.phase {
            Phase::Refused { reason, is_open, .. } => {
                let text = match reason {
                    ReasonCode::BadUserNameOrPassword => "wrong user name or password",
                    reason => reason.name(),
                };
                match is_open {
                    true => self.push_disconnect(context, reason, format_args!("{text}")),
                    false => self.push_refusal(context, reason, format_args!("{text}")),
                }
                self.finish(context.now);
                Timeout::GoOn
            }
            Phase::Finished { .. } => Timeout::Close,
            Phase::Connecting { .. } => {
                self.warn(
                    context,
                    LogKind::Timeout,
                    format_args!(": closed, CONNECT did not arrive in time"),
                );
                Timeout::Close
            }
            Phase::Open { .. } if self.keep_alive_deadline().is_due(context.now) => {
                let seconds = self.keep_alive_s();
                let text = format_args!("no packet within 1.5 times the keep-alive time of {seconds} s");
                self.end(context, ReasonCode::KeepAliveTimeout, text);
                Timeout::GoOn
            }
            Phase::Open { .. } => {
                let ms = context.settings.content_timeout_ms;
                let text = match self.input.is_in_large_packet() {
                    true => format_args!(
                        "a packet larger than frame_max was not complete after {} ms",
                        ms * input::LARGE_FILTERS_TIMES
                    ),
                    false => format_args!("a packet was begun and did not go on for {ms} ms"),
                };
                self.end(context, ReasonCode::Unspecified, text);
                Timeout::GoOn
            }
        }
    }

    /// Notes that `octets` bytes of input are not handled yet.
    fn note_input(&mut self, now: Now, octets: usize) {
        let was_suspended = core::mem::take(&mut self.input.is_suspended);
        if was_suspended || octets > self.timing.unhandled_bytes as usize {
            self.timing.last_received = now;
        }
        if was_suspended && self.input.is_in_large_packet() {
            // The rest may have arrived long ago.
            self.timing.packet_due = Deadline::NEVER;
        }
    }

    /// Notes that `unhandled` bytes of an incomplete packet are left, and sets the deadline for the rest of it.
    fn note_progress(&mut self, context: &Context<'_>, has_handled: bool, unhandled: usize) {
        let is_complete = unhandled == 0 && !self.input.has_message() && self.input.filters.is_none();
        let content_ms = context.settings.content_timeout_ms;
        if is_complete {
            self.timing.packet_due = Deadline::NEVER;
        } else if self.input.is_in_large_packet() {
            // Otherwise each filter would extend the time.
            if self.timing.packet_due == Deadline::NEVER {
                self.timing.packet_due = context.now.after_ms(content_ms * input::LARGE_FILTERS_TIMES);
            }
        } else if has_handled || unhandled as u32 != self.timing.unhandled_bytes {
            self.timing.packet_due = context.now.after_ms(content_ms);
        }
        self.timing.unhandled_bytes = unhandled as u32;
    }

    // ---- waiting

    /// Notes that the outcome of the last command comes later.
    pub(super) const fn defer(&mut self) {
        self.input.is_suspended = true;
    }

    /// Like [`Self::defer`], for a login.
    pub(super) fn defer_login(&mut self, now: Now) {
        self.input.is_suspended = true;
        let due = now.after_ms(LOGIN_TIMEOUT_MS);
        self.phase = Phase::Connecting { due, step: ConnectStep::Login, len: 0 };
    }

    pub(super) fn expects_answer(&self) -> bool {
        self.input.is_command_pending() && matches!(self.phase, Phase::Connecting { .. } | Phase::Open { .. })
    }

    /// Returns whether a payload began to arrive at least `ms` milliseconds ago and is still incomplete.
    pub(super) fn has_body_for(&self, context: &Context<'_>, ms: u64) -> bool {
        self.input.receives_payload() && self.timing.payload_begun.after_ms(ms).is_due(context.now)
    }

    // ---- closing

    /// Closes the connection with this fault.
    pub(super) fn close(&mut self, context: &mut Context<'_>, fault: &Fault) {
        let reason = reason_of(fault.code);
        match self.phase {
            Phase::Connecting { step: ConnectStep::Login, .. } | Phase::Refused { .. } => {
                self.finish(context.now)
            }
            Phase::Connecting { .. } | Phase::Open { .. } => {
                self.end(context, reason, format_args!("{}", fault.text))
            }
            Phase::Finished { .. } => {}
        }
    }

    /// Ends the connection because of an error, or because the broker or an operator closes it. An MQTT 5 client gets
    /// DISCONNECT with the reason, and a client whose CONNECT is not answered gets CONNACK.
    fn end(&mut self, context: &mut Context<'_>, reason: ReasonCode, text: fmt::Arguments<'_>) {
        self.warn(context, LogKind::Connection, format_args!(": closed: {text} ({})", reason.name()));
        match self.phase {
            Phase::Connecting { .. } => self.push_refusal(context, reason, text),
            Phase::Open { .. } => self.push_disconnect(context, reason, text),
            Phase::Refused { .. } | Phase::Finished { .. } => {}
        }
        self.finish_with(context);
    }

    /// Ends the connection because of something that the client will send again when it has connected again. That is logged
    /// once an hour, and the client is answered and disconnected after [`REPEAT_DELAY_MS`].
    /// `client_id` is the client identifier in a CONNECT that is refused.
    fn end_later(
        &mut self,
        context: &mut Context<'_>,
        reason: ReasonCode,
        text: &'static str,
        client_id: Option<&str>,
    ) {
        let is_open = match self.phase {
            Phase::Connecting { .. } => false,
            Phase::Open { .. } => true,
            Phase::Refused { .. } | Phase::Finished { .. } => return,
        };
        let (name, separator) = match client_id {
            Some(client_id) => (client_id, ", client identifier "),
            None => ("", ""),
        };
        let log_text = format_args!(
            "{separator}{}: closed: {text} ({}); it will most likely send the same again",
            name.escape_debug(),
            reason.name()
        );
        self.warn(context, LogKind::Repeated, log_text);
        self.finish_with(context);
        let until = context.now.after_ms(REPEAT_DELAY_MS);
        self.phase = Phase::Refused { until, reason, is_open };
    }

    /// Ends the connection after the stored packets are written.
    fn finish_with(&mut self, context: &mut Context<'_>) {
        self.input.drop_message(context.messages);
        self.drop_filters(context);
        if self.output.begun.take().is_some() {
            // A part of a PUBLISH was written, so no packet can follow.
            self.clear_packets(context);
        }
        self.finish(context.now);
    }

    fn finish(&mut self, now: Now) {
        self.input.forget_command();
        self.input.is_suspended = false;
        (self.output.pingresp_count, self.output.delivery_batch) = (0, Batch::NONE);
        self.phase = Phase::Finished { until: now.after_ms(SOCKET_CLOSE_TIMEOUT_MS) };
    }

    /// Returns all memory from pools, because the socket is closed.
    pub(super) fn teardown(&mut self, context: &mut Context<'_>) {
        context.pools.clients.give_back(core::mem::take(&mut self.client));
        self.clear_packets(context);
        self.output.begun = None;
        self.aliases_in.release(context.pools);
        self.aliases_out.release(context.pools);
        self.finish_with(context);
    }

    /// Stores what operators see of the client.
    fn keep_client(&mut self, context: &mut Context<'_>, client_id: &str) {
        if client_id.is_empty() {
            return;
        }
        let mut octets = [0; 4 + 128 + leveret_core::command::NAME_BYTES_MAX];
        let mut writer = Writer::new(&mut octets);
        let fill = |table: &mut TableWriter<'_, '_>| -> Result<(), Full> {
            table.text("client_id", client_id)?;
            table.text("product", "MQTT client")
        };
        if writer.table(fill).is_ok() {
            let earlier = core::mem::take(&mut self.client);
            context.pools.clients.give_back(earlier);
            let properties = Table::trusted(writer.written().get(4..).unwrap_or_default());
            self.client = context.pools.clients.keep(properties);
        }
    }
}

/// Returns MQTT's reason for a fault.
fn reason_of(code: ReplyCode) -> ReasonCode {
    ReasonCode::from_octet(code.mqtt_reason()).unwrap_or(ReasonCode::Unspecified)
}
