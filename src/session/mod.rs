//! OWNS ONE PEER: the server's side of one AMQP connection, without a socket, a clock or a broker.
//!
//! Bytes, time and answers are handed in; [`Command`]s and bytes come out. So a connection can be driven in
//! memory, one byte at a time, a day in a millisecond, and the bridge can hold the other end of one.
//!
//! | file         | what it does |
//! |--------------|--------------|
//! | `settings`   | what every connection is told and held to |
//! | `handshake`  | protocol header, login, negotiation, connection.open |
//! | `input`      | the frames of an open connection, and who handles each; connections that close |
//! | `content`    | publishes: method, header and body into one message |
//! | `whole`      | publishes and acknowledgements that are all there: the usual case |
//! | `methods`    | methods on channels into commands |
//! | `replies`    | the broker's answers into methods, kept until they may be written |
//! | `confirms`   | publisher confirms of a channel, as numbers |
//! | `channel`    | the records of all channels |
//! | `output`     | what is written when |
//! | `marks`      | what has been written, and what a socket did not take |
//! | `deliveries` | one delivery's frames, from any byte of them on |
//! | `timers`     | heartbeats and everything else that has its time |
//! | `erlang`     | octets in error texts, as RabbitMQ shows them |
//!
//! How it is used, once per turn:
//!
//! ```text
//!   loop { next() ─ Command → the broker ─ Outcome → answer()
//!                 ─ NeedMore, Suspended, Finished → done }
//!   fill() → the socket → written()
//! ```
//!
//! Always true:
//! - What a peer sends can end its channel or its connection and nothing else.
//! - Nothing is begun whose answer might not fit: replies have a fixed room per connection, the last of it
//!   for a close. Input stands still instead.
//! - A reply never stands between the frames of a content on its own channel, and follows the deliveries it
//!   must follow; after channel.close nothing more is written on that channel.
//! - No part of a frame is stored: what a socket did not take is written again from the state it came from,
//!   but for the rest of one small frame.
//! - Nothing here allocates once a connection exists.

#![allow(
    clippy::result_large_err,
    clippy::large_enum_variant,
    reason = "a fault carries its text, for nothing may be allocated for it; it ends something, so it is rare"
)]

mod channel;
mod confirms;
mod content;
mod deliveries;
mod erlang;
mod handshake;
mod input;
mod marks;
mod methods;
mod output;
mod replies;
mod settings;
mod timers;
mod whole;

use core::fmt;

use crate::command::{ChannelId, Command, ConnectionId, Name, ReplyOrder};
use crate::error::{Fault, ReplyCode};
use crate::journal::Batch;
use crate::limits::Limits;
use crate::log_limiter::{LogKind, LogLimiter, LogSource};
use crate::mem::{ByteChain, BytePool, Draw, Messages, Owner, Share};
use crate::time::{Deadline, Now};

use channel::{Channels, ConfirmList, NONE, OwnChannels, Slot};
use deliveries::Begun;
use handshake::Mechanism;
use input::BodyFrame;
pub use marks::Marks;
use marks::Rest;
use replies::Pending;
pub use settings::{Identity, Settings};
pub use timers::Timeout;

/// What sessions hold beyond their own records.
#[derive(Debug)]
pub struct Pools {
    channels: Channels,
    replies: BytePool,
    /// The consumer tag of the basic.cancel under way. There is one at most: a command is answered before
    /// any connection is asked for its next.
    cancelled_tag: Name,
}

impl Pools {
    /// Reserves the pools without touching them.
    pub fn new(limits: &Limits) -> Self {
        let replies = limits.connections_max as usize * limits.replies_bytes_max as usize;
        Self {
            channels: Channels::new(limits.channels_max as usize),
            replies: BytePool::with_bytes(replies),
            cancelled_tag: Name::new(),
        }
    }

    /// Bytes of a channel's record, for the memory table.
    pub const fn channel_record_bytes() -> usize {
        Channels::RECORD_BYTES
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
    queue: Name,
    exchange: Name,
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
    /// Whose memory its messages take.
    pub owner: Owner,
    /// Everything up to this batch is durable.
    pub durable: Batch,
    /// What is logged of peers goes through it.
    pub log: &'p mut LogLimiter,
}

impl Context<'_> {
    /// Where the memory for a content comes from.
    const fn draw(&self) -> Draw {
        Draw { share: self.share, owner: self.owner }
    }
}

/// What is known of the other end before it spoke.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Peer {
    /// It connected from this very machine.
    pub from_loopback: bool,
    /// Whose budget lines about it in the log are on.
    pub source: LogSource,
}

/// How far a connection has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// Nobody has logged in yet.
    Unproven,
    /// Somebody has, and has not opened a virtual host yet.
    LoggedIn,
    /// In use.
    Open,
    /// It was refused, or is being closed.
    Over,
}

/// Why input stands still although there is some.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Suspension {
    /// The peer does not read its replies: go on when some of the output has been written.
    ReplySpace,
    /// There is no room for the message it publishes: go on when messages have left the broker.
    ContentRoom,
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

/// What input led to.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Step<'a> {
    /// Every whole frame has been handled.
    NeedMore,
    /// Apply it, [`Connection::answer`], and call [`Connection::next`] again.
    Command {
        /// The broker's channel; `None` for commands of the connection itself.
        channel: Option<ChannelId>,
        /// What the peer asks for.
        command: Command<'a>,
    },
    /// Input stands still for now.
    Suspended(Suspension),
    /// Nothing more will be read: write what there is to write, then close the socket.
    Finished,
}

/// Where in its life a connection is. Only the open one knows channels.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
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
    /// In use.
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
struct Capabilities {
    authentication_failure_close: bool,
    consumer_cancel_notify: bool,
    connection_blocked: bool,
}

/// connection.blocked and unblocked: told once per change, to clients that publish and want to know.
#[derive(Clone, Copy, Default, Debug)]
struct Blocked {
    now: bool,
    told: bool,
    concerned: bool,
    /// Since when it is as it is now.
    since: Now,
    /// It is so for long enough to be told: waiting counts at once.
    lasts: bool,
}

impl Blocked {
    const fn is_due(self) -> bool {
        self.lasts && self.differs()
    }

    const fn differs(self) -> bool {
        (self.now && self.concerned) != self.told
    }
}

/// The server's side of one connection.
#[derive(Debug)]
pub struct Connection {
    id: ConnectionId,
    peer: Peer,
    /// Who the peer is by its verified certificate.
    certificate_name: Option<Box<str>>,
    phase: Phase,
    is_logged_in: bool,
    capabilities: Capabilities,
    blocked: Blocked,
    // Negotiated.
    channel_max: u16,
    frame_max: u32,
    heartbeat_ms: u32,
    // Input.
    pending: Pending,
    /// The channel that a fault ended, until the broker has been told.
    release: Option<(Slot, ChannelId)>,
    /// The channel whose finished publish the broker had no room for.
    held_publish: Slot,
    body: BodyFrame,
    channels: OwnChannels,
    /// Channels that we closed and the peer has not.
    closing_channels: u16,
    /// Channels that hold a message which is not complete or not taken yet.
    contents: u16,
    // Output.
    replies: ByteChain,
    rest: Rest,
    begun: Option<Begun>,
    /// Channels with confirms that may be told, and those whose first waits for the disk.
    to_confirm: ConfirmList,
    to_be_stored: ConfirmList,
    heartbeat_due: bool,
    /// The channel on which a content will never be complete, because the connection closes; 0 if none.
    cut_channel: u16,
    // Time.
    is_suspended: bool,
    heard: Now,
    resumed: Now,
    wrote: Now,
    content_due: Deadline,
    /// Octets of an incomplete frame at the last look, and since when there are so many.
    unread: u32,
    unread_since: Now,
}

impl Connection {
    /// Logs something that this peer caused; `text` goes on where its name ends.
    fn warn(&self, context: &mut Context<'_>, kind: LogKind, text: fmt::Arguments<'_>) {
        let source = self.peer.source;
        let text = format_args!("connection {} of {source}{text}", self.id.index());
        context.log.warn(context.now, source, kind, text);
    }

    /// A connection that was just accepted.
    pub fn new(now: Now, id: ConnectionId, peer: Peer, settings: &Settings) -> Self {
        Self {
            id,
            peer,
            certificate_name: None,
            phase: Phase::Header { due: now.after_ms(settings.handshake_timeout_ms) },
            is_logged_in: false,
            capabilities: Capabilities::default(),
            blocked: Blocked::default(),
            channel_max: 0,
            frame_max: crate::limits::FRAME_BYTES_MIN,
            heartbeat_ms: 0,
            pending: Pending::NOTHING,
            release: None,
            held_publish: NONE,
            body: BodyFrame::NONE,
            channels: OwnChannels::NONE,
            closing_channels: 0,
            contents: 0,
            replies: ByteChain::default(),
            rest: Rest::default(),
            begun: None,
            to_confirm: ConfirmList::EMPTY,
            to_be_stored: ConfirmList::EMPTY,
            heartbeat_due: false,
            cut_channel: 0,
            is_suspended: false,
            heard: now,
            resumed: now,
            wrote: now,
            content_due: Deadline::NEVER,
            unread: 0,
            unread_since: now,
        }
    }

    /// The transport verified who the peer is, before it spoke: it may log in as that by SASL EXTERNAL.
    pub fn set_certificate_name(&mut self, name: &str) {
        self.certificate_name = Some(name.into());
    }

    /// How far it has come.
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
        Negotiated {
            frame_max: self.frame_max,
            channel_max: self.channel_max,
            heartbeat_ms: self.heartbeat_ms,
        }
    }

    /// Whether nothing more will be asked of the broker and nothing of the outbox is needed any more: it
    /// may forget the connection now, before the socket is closed.
    pub const fn is_over(&self) -> bool {
        let ends = matches!(
            self.phase,
            Phase::Refused { .. } | Phase::Closing { .. } | Phase::Ending { .. } | Phase::Finished { .. }
        );
        ends && self.begun.is_none()
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
        let cancel = crate::wire::Method::BasicCancel { consumer_tag, no_wait: true };
        self.push_reply(context, channel_number, &cancel, order);
        true
    }

    /// Whether this publisher waits for room now; told to peers that asked to be told, once per change. That
    /// it is over is told only when it has been over for a moment: room that is filled again at once is none.
    pub const fn blocked(&mut self, now: Now, blocked: bool) {
        if self.blocked.now != blocked {
            (self.blocked.now, self.blocked.since, self.blocked.lasts) = (blocked, now, blocked);
        }
    }

    /// The socket is gone: gives back everything held in pools. The broker forgets the connection apart
    /// from this.
    pub fn teardown(&mut self, context: &mut Context<'_>) {
        self.drop_channels(context);
        self.replies.clear(&mut context.pools.replies);
        self.begun = None;
        self.rest = Rest::default();
        self.finish(context.now);
    }

    /// Gives the records of all channels back, half-sent messages included.
    fn drop_channels(&mut self, context: &mut Context<'_>) {
        while self.channels.first != NONE {
            let slot = self.channels.first;
            self.drop_content(context, slot);
            context.pools.channels.close(&mut self.channels, slot);
        }
        self.closing_channels = 0;
        (self.to_confirm, self.to_be_stored) = (ConfirmList::EMPTY, ConfirmList::EMPTY);
        self.held_publish = NONE;
        self.release = None;
        self.body.slot = NONE;
    }

    fn finish(&mut self, now: Now) {
        self.heartbeat_due = false;
        self.blocked = Blocked::default();
        self.phase = Phase::Finished { until: now.after_ms(timers::PARTING_MS) };
    }

    fn is_channel_open(&mut self, context: &Context<'_>, number: u16) -> bool {
        let channels = &context.pools.channels;
        self.phase == Phase::Open
            && channels
                .find(&mut self.channels, self.id, number)
                .is_some_and(|slot| matches!(channels[slot].state, channel::State::Open(_)))
    }
}

/// A connection-scoped fault with one of the codes that end connections anyway.
fn hard_fault(code: ReplyCode, explanation: core::fmt::Arguments<'_>) -> Fault {
    Fault::connection(code, explanation)
}
