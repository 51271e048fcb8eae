//! The record of one connection: where in its life it is, and its parts.
//!
//! What it does stands in the files above: each is an `impl Connection` about one subject, and the parts that
//! belong to it.
//!
//! Always true: only an open connection has channels that are in use; what is held in pools is given back by
//! `teardown` whatever the connection was doing.

use core::fmt::{self, Write as _};
use core::net::SocketAddr;

use super::channel::{ConfirmList, NONE, OwnChannels, Slot, State};
use super::client_properties::ClientProperties;
use super::context::Context;
use super::deliveries::Begun;
use super::output::Blocked;
use super::pending::{Mechanism, Pending};
use super::settings::Settings;
use super::step::BodyFrame;

use leveret_amqp::field::Table;
use leveret_core::command::{ChannelId, ConnectionId, ReplyOrder};
use leveret_core::error::Fault;
use leveret_core::log_limiter::{LogKind, LogSource};
use leveret_core::mem::ByteChain;
use leveret_core::time::{Deadline, Now};

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
