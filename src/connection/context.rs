//! What a session is lent for one call, and what all sessions hold together.

use super::channel::Channels;
use super::client_properties::{self, ClientPool};
use super::settings::Settings;
use leveret_core::command::{Name, ReplyOrder};
use leveret_core::journal::Batch;
use leveret_core::limits::Limits;
use leveret_core::log_limiter::LogLimiter;
use leveret_core::mem::{BytePool, Messages, Share};
use leveret_core::time::Now;

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
        client_properties::BYTES_PER_CONNECTION
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
