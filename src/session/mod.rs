//! OWNS ONE PEER: the server's side of one AMQP connection, without a socket, a clock or a broker.

use crate::command::{ChannelId, Command, ConnectionId, Outbox, Outcome, ReplyOrder};
use crate::error::Fault;
use crate::limits::Limits;
use crate::mem::{BytePool, Messages, Share};
use crate::time::{Deadline, Now};

/// How the broker introduces itself in connection.start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// `product`
    pub product: String,
    /// `version`
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
pub struct Settings {}

impl Settings {
    /// The part of the limits that a session keeps, and connection.start ready to be sent.
    pub fn new(_limits: &Limits, _identity: &Identity) -> Self {
        Self {}
    }
}

/// What sessions hold beyond their own record.
#[derive(Debug)]
pub struct Pools {
    replies: BytePool,
}

impl Pools {
    /// Reserves the pools without touching them.
    pub fn new(limits: &Limits) -> Self {
        let replies = limits.connections_max as usize * limits.replies_bytes_max as usize;
        Self { replies: BytePool::with_bytes(replies) }
    }

    /// Bytes of a channel's record, for the memory table.
    pub const fn channel_record_bytes() -> usize {
        512
    }

    /// Bytes of replies on their way, in whole pages.
    pub const fn reply_bytes_used(&self) -> usize {
        self.replies.bytes_used()
    }
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
}

/// What is known of the other end before it spoke.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Peer {
    /// It connected from this very machine.
    pub from_loopback: bool,
}

/// Why input stands still although there is some.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Suspension {
    /// The peer does not read its replies: go on when some of the output has been written.
    ReplySpace,
    /// There is no room for the message it publishes: go on when messages have left the broker.
    ContentRoom,
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

/// What a deadline that passed led to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Timeout {
    /// The connection goes on; it may have something to write now.
    GoOn,
    /// The peer is gone or will not listen: close the socket at once.
    Close,
}

/// What one [`Connection::fill`] wrote, so that [`Connection::written`] can tell what has gone out.
/// The loop owns one, made once.
#[derive(Debug)]
pub struct Marks {}

impl Marks {
    /// Enough for every fill of a buffer of so many bytes.
    pub fn for_output_bytes(_bytes: usize) -> Self {
        Self {}
    }
}

/// The server's side of one connection.
#[derive(Debug)]
pub struct Connection {}

impl Connection {
    /// A connection that was just accepted.
    pub fn new(_now: Now, _id: ConnectionId, _peer: Peer, _settings: &Settings) -> Self {
        Self {}
    }

    /// Handles input from `input[*at..]`, moves `at` past what was consumed, and stops at the first thing
    /// that somebody else must decide.
    pub fn next<'a>(&mut self, _context: &mut Context<'_>, _input: &'a [u8], _at: &mut usize) -> Step<'a> {
        Step::NeedMore
    }

    /// Takes the broker's answer to the command that [`Self::next`] returned last.
    pub fn answer(&mut self, _context: &mut Context<'_>, _outcome: Outcome, _order: ReplyOrder) {}

    /// Writes what may be written now into `out`. Nothing counts as sent until [`Self::written`].
    pub fn fill<O: Outbox>(
        &mut self,
        _context: &mut Context<'_>,
        _out: &mut [u8],
        _marks: &mut Marks,
        _outbox: &mut O,
    ) -> usize {
        0
    }

    /// The socket took the first `count` bytes of the last fill (0 is fine; must follow every fill).
    /// Returns how many deliveries, the front ones of the outbox, are completely sent now.
    pub fn written(&mut self, _context: &mut Context<'_>, _count: usize, _marks: &Marks) -> u32 {
        0
    }

    /// Whether there is something to write besides what waits in the outbox.
    pub fn has_output(&self) -> bool {
        false
    }

    /// Whether something begun is not fully written. The front delivery of the outbox may be the one, so
    /// it must stay there, also when its channel is closed, until it is reported as sent.
    pub fn has_remainder(&self) -> bool {
        false
    }

    /// When [`Self::handle_timeout`] wants to be called.
    pub fn deadline(&self) -> Deadline {
        Deadline::NEVER
    }

    /// Does what is due at `context.now`.
    pub fn handle_timeout(&mut self, _context: &mut Context<'_>) -> Timeout {
        Timeout::GoOn
    }

    /// Ends the connection from our side: connection.close with this fault, then a bounded wait.
    pub fn close(&mut self, _context: &mut Context<'_>, _fault: &Fault) {}

    /// Tells the peer that a consumer ended. `false`: no room for it now, ask again; `true` also when the
    /// peer does not want to know.
    pub fn server_cancel(
        &mut self,
        _context: &mut Context<'_>,
        _channel_number: u16,
        _consumer_tag: &str,
        _order: ReplyOrder,
    ) -> bool {
        true
    }

    /// Whether publishers wait for memory now; told to peers that asked to be told, once per change.
    pub fn blocked(&mut self, _blocked: bool) {}

    /// The socket is gone: gives back everything held in pools.
    pub fn teardown(&mut self, _context: &mut Context<'_>) {}
}
