//! The record of one connection: where in its life it is, and its parts.
//!
//! What it does stands in the files above: each is an `impl Connection` about one subject, and the parts that
//! belong to it.
//!
//! Always true: only an open connection has channels that are in use; what is held in pools is given back by
//! `teardown` whatever the connection was doing.

use core::fmt::{self, Write as _};
use core::net::SocketAddr;

use leveret_amqp::field::Table;
use leveret_amqp::{Full, Method, TableWriter, Writer};
use leveret_core::command::{ChannelId, ConnectionId, Name, ReplyOrder};
use leveret_core::error::Fault;
use leveret_core::journal::Batch;
use leveret_core::limits::Limits;
use leveret_core::log_limiter::{LogKind, LogLimiter, LogSource};
use leveret_core::mem::{ByteChain, BytePool, Messages, Share};
use leveret_core::time::{Deadline, Now};

use super::channel::{Channels, ConfirmList, NONE, OwnChannels, Slot, State};
use super::deliveries::Begun;
use super::handshake::{self, ClientPool, ClientProperties};
use super::input::BodyFrame;
use super::methods::{Mechanism, Pending};
use super::output::Blocked;

/// How long a peer may take to close its socket when all has been said.
pub(super) const PARTING_MS: u64 = 3_000;

/// What is known of the other end before it spoke.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Peer {
    /// It connected from this very machine.
    pub from_loopback: bool,
    /// Whose budget lines about it in the log are on.
    pub source: LogSource,
    /// Its port, by which the log tells connections of one address apart; 0 has none.
    pub port: u16,
}

/// Bytes of the names by which the log tells who a connection belongs to; longer ones are cut.
const NAMES_BYTES_MAX: usize = 62;

/// Who a line of the log is about: `10.0.0.7:51234 user meter vhost plant`, as far as it is known.
#[derive(Debug)]
pub struct Caller<'c> {
    /// The other end.
    pub peer: Peer,
    names: &'c str,
    /// What the client calls the connection; empty if it does not.
    connection_name: &'c str,
}

/// Characters of a `connection_name` that a line of the log shows.
const CONNECTION_NAME_SHOWN: usize = 48;

impl fmt::Display for Caller<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.peer.source, self.peer.port) {
            (LogSource::Address(address), port) if port > 0 => SocketAddr::new(address, port).fmt(f)?,
            (source, _) => source.fmt(f)?,
        }
        f.write_str(self.names)?;
        if self.connection_name.is_empty() {
            return Ok(());
        }
        f.write_str(" connection_name ")?;
        let shown = self.connection_name.chars().take(CONNECTION_NAME_SHOWN);
        shown.flat_map(char::escape_debug).try_for_each(|letter| f.write_char(letter))
    }
}

/// How far a connection has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// Nobody has logged in yet.
    Unproven,
    /// Somebody has, and has not opened a virtual host yet.
    LoggedIn,
    /// The connection is in use.
    Open,
    /// It was refused, or is being closed.
    Over,
}

/// What a handshake agrees on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Negotiated {
    /// Bytes of a frame at most.
    pub frame_max: u32,
    /// Channels at most.
    pub channel_max: u16,
    /// Heartbeat interval in milliseconds; 0 is none.
    pub heartbeat_ms: u32,
}

/// Where in its life a connection is. Only the open one knows channels.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    /// The eight octets come first.
    Header { due: Deadline },
    /// connection.start is sent or on its way: start-ok is expected.
    Start { due: Deadline },
    /// connection.tune is sent or on its way: tune-ok is expected.
    Tune { due: Deadline },
    /// connection.open is expected.
    Opening { due: Deadline },
    /// It was refused and is left waiting, against guessing; then it is told so, if it can be.
    Refused { until: Deadline, tell: Option<Mechanism> },
    /// The connection is in use.
    Open,
    /// We sent connection.close: everything but close-ok is ignored. A deaf one does not even look for
    /// that, because its input is not frames.
    Closing { until: Deadline, is_deaf: bool },
    /// We sent close-ok: closing the socket is up to the peer.
    Ending { until: Deadline },
    /// To be closed when what there is to write is written.
    Finished { until: Deadline },
}

/// What the client said it understands.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Capabilities {
    pub(super) authentication_failure_close: bool,
    pub(super) consumer_cancel_notify: bool,
    pub(super) connection_blocked: bool,
}

/// What is being read, and what the broker is asked for it.
#[derive(Debug)]
pub(super) struct Input {
    pub(super) pending: Pending,
    /// The channel that a fault ended, until the broker has been told.
    pub(super) release: Option<(Slot, ChannelId)>,
    /// The channel whose finished publish the broker had no room for.
    pub(super) held_publish: Slot,
    pub(super) body: BodyFrame,
    pub(super) is_suspended: bool,
}

/// What is to be written besides the outbox.
#[derive(Debug)]
pub(super) struct Output {
    pub(super) replies: ByteChain,
    /// The peer spoke another protocol, and is answered with the header of this one.
    pub(super) is_protocol_header_due: bool,
    /// Bytes of `connection.start` that are not written yet.
    pub(super) start_left: u16,
    /// How much of the front delivery of the outbox is written, if only a part of it is.
    pub(super) begun: Option<Begun>,
    pub(super) is_heartbeat_due: bool,
    /// The channel on which a content will never be complete, because the connection closes; 0 if none.
    pub(super) cut_channel: u16,
}

/// Channels with confirms.
#[derive(Debug)]
pub(super) struct Confirming {
    /// Those whose first confirm may be told.
    pub(super) to_tell: ConfirmList,
    /// Those whose first confirm waits for the disk.
    pub(super) to_be_stored: ConfirmList,
}

/// When what happened last.
#[derive(Debug)]
pub(super) struct Timing {
    /// When the peer sent something.
    pub(super) heard: Now,
    /// When input went on that we had let stand.
    pub(super) resumed: Now,
    /// When something was written.
    pub(super) wrote: Now,
    /// When a content or frame that was begun must have gone on.
    pub(super) content_due: Deadline,
    /// Octets of an incomplete frame at the last look.
    pub(super) unread: u32,
    /// Since when there are so many.
    pub(super) unread_since: Now,
}

/// The server's side of one connection.
#[derive(Debug)]
pub struct Connection {
    pub(super) id: ConnectionId,
    pub(super) peer: Peer,
    /// Who the peer is by its verified certificate.
    pub(super) certificate_name: Option<Box<str>>,
    pub(super) client: ClientProperties,
    /// How it logged in; empty before.
    pub(super) mechanism: &'static str,
    /// User and virtual host, for the log; empty until both are known.
    names: heapless::String<NAMES_BYTES_MAX>,
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
    /// Logs something that this peer caused; `text` goes on where its name ends.
    pub(super) fn warn(&self, context: &mut Context<'_>, kind: LogKind, text: fmt::Arguments<'_>) {
        context.log.warn(context.now, self.peer.source, kind, format_args!("{}{text}", self.caller()));
    }

    /// Returns the client's properties, as far as they are kept.
    pub fn client_properties(&self) -> Table<'_> {
        self.client.table()
    }

    /// By what it logged in: `PLAIN`, `AMQPLAIN` or `EXTERNAL`; empty before.
    pub const fn mechanism(&self) -> &'static str {
        self.mechanism
    }

    /// Who it is, for the log.
    pub fn caller(&self) -> Caller<'_> {
        let name = self.client.table().get("connection_name").and_then(|value| value.as_str());
        Caller { peer: self.peer, names: &self.names, connection_name: name.unwrap_or_default() }
    }

    /// From now on the log says whose it is.
    pub fn set_names(&mut self, user: &str, vhost: &str) {
        self.names.clear();
        let named = [(" user ", user), (" vhost ", vhost)];
        let letters = named.iter().flat_map(|(what, name)| what.chars().chain(name.escape_debug()));
        for letter in letters {
            if self.names.push(letter).is_err() {
                break;
            }
        }
    }

    /// A connection that was just accepted.
    pub fn new(now: Now, id: ConnectionId, peer: Peer, settings: &Settings) -> Self {
        Self {
            id,
            peer,
            client: ClientProperties::default(),
            mechanism: "",
            names: heapless::String::new(),
            certificate_name: None,
            phase: Phase::Header { due: now.after_ms(settings.handshake_timeout_ms) },
            is_logged_in: false,
            capabilities: Capabilities::default(),
            blocked: Blocked::default(),
            negotiated: Negotiated {
                frame_max: leveret_core::limits::FRAME_BYTES_MIN,
                channel_max: 0,
                heartbeat_ms: 0,
            },
            channels: OwnChannels::NONE,
            input: Input {
                pending: Pending::NOTHING,
                release: None,
                held_publish: NONE,
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
            confirms: Confirming { to_tell: ConfirmList::EMPTY, to_be_stored: ConfirmList::EMPTY },
            timing: Timing {
                heard: now,
                resumed: now,
                wrote: now,
                content_due: Deadline::NEVER,
                unread: 0,
                unread_since: now,
            },
        }
    }

    /// The transport verified who the peer is, before it spoke: it may log in as that by SASL EXTERNAL.
    pub fn set_certificate_name(&mut self, name: &str) {
        self.certificate_name = Some(name.into());
    }

    /// How far the connection has come.
    pub const fn stage(&self) -> Stage {
        match self.phase {
            Phase::Header { .. } | Phase::Start { .. } => Stage::Unproven,
            Phase::Tune { .. } | Phase::Opening { .. } => Stage::LoggedIn,
            Phase::Open => Stage::Open,
            Phase::Refused { .. } | Phase::Closing { .. } | Phase::Ending { .. } | Phase::Finished { .. } => {
                Stage::Over
            }
        }
    }

    /// Whether the broker let its user in, whatever became of it since.
    pub const fn is_logged_in(&self) -> bool {
        self.is_logged_in
    }

    /// What was agreed on in the handshake, as far as it has come.
    pub const fn negotiated(&self) -> Negotiated {
        self.negotiated
    }

    /// Whether nothing more will be asked of the broker and nothing of the outbox is needed any more: it
    /// may forget the connection now, before the socket is closed.
    pub const fn is_over(&self) -> bool {
        let ends = matches!(
            self.phase,
            Phase::Refused { .. } | Phase::Closing { .. } | Phase::Ending { .. } | Phase::Finished { .. }
        );
        ends && self.output.begun.is_none()
    }

    /// Ends the connection from our side: connection.close with this fault, then a bounded wait. A peer
    /// that is not that far is closed without a word.
    pub fn close(&mut self, context: &mut Context<'_>, fault: &Fault) {
        match self.phase {
            Phase::Open | Phase::Opening { .. } => self.close_connection(context, fault, (0, 0)),
            Phase::Closing { .. } | Phase::Ending { .. } | Phase::Finished { .. } => {}
            Phase::Header { .. } | Phase::Start { .. } | Phase::Tune { .. } | Phase::Refused { .. } => {
                self.finish(context.now);
            }
        }
    }

    /// Tells the peer that a consumer ended. `false`: no room for it now, ask again; `true` also when the
    /// peer does not want to know.
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
        // The last room there is belongs to the answer that is on its way.
        if !self.has_reply_room(context) || self.expects_answer() {
            return false;
        }
        let cancel = leveret_amqp::Method::BasicCancel { consumer_tag, no_wait: true };
        self.push_reply(context, channel_number, &cancel, order);
        true
    }

    /// This publisher waits for room in memory or on the disk. Clients that asked for it get `connection.blocked`, once.
    pub const fn block(&mut self, now: Now, is_for_disk: bool) {
        if !self.blocked.now {
            (self.blocked.now, self.blocked.since, self.blocked.lasts) = (true, now, true);
            if !self.blocked.told {
                self.blocked.is_for_disk = is_for_disk;
            }
        }
    }

    /// This publisher does not wait any more. `connection.unblocked` follows only when that lasts, because room may be
    /// filled again at once.
    pub const fn unblock(&mut self, now: Now) {
        if self.blocked.now {
            (self.blocked.now, self.blocked.since, self.blocked.lasts) = (false, now, false);
        }
    }

    /// The socket is gone: gives back everything held in pools. The broker forgets the connection apart
    /// from this.
    pub fn teardown(&mut self, context: &mut Context<'_>) {
        context.pools.clients.give_back(core::mem::take(&mut self.client));
        self.drop_channels(context);
        self.output.replies.clear(&mut context.pools.replies);
        self.output.begun = None;
        self.output.is_protocol_header_due = false;
        self.output.start_left = 0;
        self.finish(context.now);
    }

    /// Gives the records of all channels back, half-sent messages included.
    pub(super) fn drop_channels(&mut self, context: &mut Context<'_>) {
        while self.channels.first != NONE {
            let slot = self.channels.first;
            self.drop_content(context, slot);
            context.pools.channels.close(&mut self.channels, slot);
        }
        (self.confirms.to_tell, self.confirms.to_be_stored) = (ConfirmList::EMPTY, ConfirmList::EMPTY);
        self.input.held_publish = NONE;
        self.input.release = None;
        self.input.body.slot = NONE;
    }

    pub(super) fn finish(&mut self, now: Now) {
        self.output.is_heartbeat_due = false;
        self.blocked = Blocked::default();
        self.phase = Phase::Finished { until: now.after_ms(PARTING_MS) };
    }

    pub(super) fn is_channel_open(&mut self, context: &Context<'_>, number: u16) -> bool {
        let channels = &context.pools.channels;
        self.phase == Phase::Open
            && channels
                .find(&mut self.channels, self.id, number)
                .is_some_and(|slot| matches!(channels[slot].state, State::Open(_)))
    }
}

// What a session is lent for one call, and what all sessions hold together.

/// What sessions hold beyond their own records.
#[derive(Debug)]
pub struct Pools {
    pub(super) channels: Channels,
    pub(super) replies: BytePool,
    pub(super) clients: ClientPool,
    /// The consumer tag of the basic.cancel under way. There is one at most: a command is answered before
    /// any connection is asked for its next.
    pub(super) cancelled_tag: Name,
    /// Messages that publishers have been told are taken, since the start.
    pub(super) confirmed: u64,
}

impl Pools {
    /// Reserves the pools without touching them.
    pub fn new(limits: &Limits) -> Self {
        let replies = limits.connections_max as usize * limits.replies_bytes_max as usize;
        Self {
            channels: Channels::new(limits.channels_max as usize),
            replies: BytePool::with_bytes(replies),
            clients: ClientPool::new(limits.connections_max as usize),
            cancelled_tag: Name::new(),
            confirmed: 0,
        }
    }

    /// Bytes of a channel's record, for the memory table.
    pub const fn channel_record_bytes() -> usize {
        Channels::RECORD_BYTES
    }

    /// Bytes that the properties of clients take for each connection, for the memory table.
    pub const fn client_properties_bytes() -> usize {
        handshake::BYTES_PER_CONNECTION
    }

    /// Bytes of the records for refused channels, for the memory table.
    pub const fn refused_channel_bytes() -> usize {
        Channels::REFUSED_BYTES
    }

    /// Bytes that nobody uses and the system holds memory for, about.
    pub const fn idle_bytes(&self) -> usize {
        self.channels.idle_bytes() + self.replies.idle_bytes()
    }

    /// Gives idle memory back to the system, a bounded part at a time; says whether that was the last part.
    pub fn trim(&mut self) -> bool {
        self.channels.trim();
        self.replies.trim()
    }

    /// Messages that publishers have been told are taken, since the start.
    pub const fn confirmed(&self) -> u64 {
        self.confirmed
    }

    /// Channels open or closing.
    pub const fn channels_used(&self) -> usize {
        self.channels.len()
    }

    /// Bytes of replies on their way, in whole pages; 0 when there are none.
    pub const fn reply_bytes_used(&self) -> usize {
        self.replies.bytes_used()
    }
}

/// Where a command's names lie when they are not in the input as they are (the queue declared last, names
/// that came with line ends). The loop owns one for all connections.
#[derive(Debug, Default)]
pub struct Names {
    pub(super) queue: Name,
    pub(super) exchange: Name,
}

/// What a session is lent for one call.
#[derive(Debug)]
pub struct Context<'p> {
    /// The time of this turn.
    pub now: Now,
    /// The sessions' pools.
    pub pools: &'p mut Pools,
    /// The messages.
    pub messages: &'p mut Messages,
    /// What all connections share.
    pub settings: &'p Settings,
    /// From which part of the pools this connection publishes.
    pub share: Share,
    /// Everything up to this batch is durable.
    pub durable: Batch,
    /// The sequence of the last delivery that was put into the connection's outbox.
    pub last_delivery: ReplyOrder,
    /// What is logged of peers goes through it.
    pub log: &'p mut LogLimiter,
}

// What every connection is told and held to.
//
// Why it exists: connection.start says the same to everybody, so it is written once, at boot, and sent from
// there; the limits a session keeps lie beside it, so that a session needs to see no more of the
// configuration than this.
//
// Always true: nothing of it changes while the broker runs, and what was told is what is held to.

/// How the broker introduces itself in connection.start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// `product`: some clients choose their behaviour by it.
    pub product: String,
    /// `version`: likewise.
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

/// What all connections share and nobody changes.
#[derive(Debug)]
pub struct Settings {
    pub(super) channel_max: u16,
    pub(super) frame_max: u32,
    pub(super) heartbeat_s: u16,
    pub(super) message_size_max: u32,
    pub(super) replies_bytes_max: usize,
    pub(super) handshake_timeout_ms: u64,
    pub(super) content_timeout_ms: u64,
    /// The frame of connection.start, ready to be sent.
    pub(super) start_frame: Box<[u8]>,
    /// The same for a peer with a client certificate.
    pub(super) start_frame_external: Box<[u8]>,
}

/// What a client may rely on; every one of them is true.
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

/// connection.start must fit into the smallest frame there is, whatever the operator calls the product.
const START_BYTES_MAX: usize = 4096;
const TEXT_BYTES_MAX: usize = 400;

impl Settings {
    /// The part of the limits that a session keeps, and connection.start ready to be sent.
    pub fn new(limits: &Limits, identity: &Identity) -> Self {
        Self {
            channel_max: limits.channels_of_a_connection(),
            frame_max: limits.frame_max,
            heartbeat_s: limits.heartbeat_s,
            message_size_max: limits.message_size_max,
            replies_bytes_max: limits.replies_bytes_max as usize,
            handshake_timeout_ms: limits.handshake_timeout_ms.into(),
            content_timeout_ms: limits.content_timeout_ms.into(),
            start_frame: start_frame(identity, b"PLAIN AMQPLAIN"),
            start_frame_external: start_frame(identity, b"PLAIN AMQPLAIN EXTERNAL"),
        }
    }
}

fn start_frame(identity: &Identity, mechanisms: &[u8]) -> Box<[u8]> {
    let mut properties = vec![0; START_BYTES_MAX];
    let mut writer = Writer::new(&mut properties);
    let mut frame = vec![0; START_BYTES_MAX];
    let mut out = Writer::new(&mut frame);
    // Both fit: six texts of at most TEXT_BYTES_MAX and nine names.
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
    debug_assert!(complete.is_ok(), "the texts are cut so that they fit");
    let len = out.at();
    frame.truncate(len);
    frame.into_boxed_slice()
}

/// In the order of RabbitMQ, which is the alphabet's.
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
