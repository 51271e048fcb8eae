//! What each rule does over a contact: its lane, and what that holds of messages.
//!
//! ```text
//! Shut ─ wanted → Opening ─ ready → Forward or Fetch ─ not wanted, or failed → … → Shut
//! ```
//!
//! Always true: a lane ends and begins without the others; what it holds of messages it gives back when it ends.

use crate::bridge::{Arrivals, Flights};
use crate::command::{ChannelId, ConnectionId};
use crate::mem::MessageId;
use crate::time::Now;

/// What a rule does over a contact.
#[derive(Debug)]
pub(super) enum Lane {
    /// It has no channel there, or that is being closed.
    Shut,
    /// Its channel is being opened.
    Opening,
    /// Messages go there.
    Forward(Forward),
    /// Messages come from there.
    Fetch(Fetch),
}

/// A connection of our own, and its one channel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Own {
    pub(super) connection: ConnectionId,
    pub(super) channel: ChannelId,
}

/// What is under way of a rule to the upstream.
#[derive(Debug)]
pub(super) struct Forward {
    /// What consumes here.
    pub(super) own: Own,
    pub(super) flights: Flights,
    /// Octets of the first message in the outbox that were written, and not all.
    pub(super) begun: u64,
    /// When the upstream last confirmed something of it, or was last sent some of a message.
    pub(super) progress: Now,
    /// No message is begun any more; it ends when what is under way is settled.
    pub(super) is_ending: bool,
    /// Whether it ends, whatever its rule wants.
    pub(super) end: End,
}

/// How a lane ends; what stands below ends it sooner.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum End {
    /// It does not, unless its rule wants it.
    No,
    /// Its consumer here is no more: when what is under way is settled.
    Settled,
    /// Its confirms are not waited for: when the message that was begun is there as a whole.
    Sent,
    /// Its channel there is no more: at once, or with the end of a frame.
    AtOnce,
}

impl Forward {
    pub(super) fn is_idle(&self) -> bool {
        self.flights.is_empty() && self.begun == 0
    }

    /// It is to end so, or as it was to end if that is sooner.
    pub(super) fn end(&mut self, end: End) {
        self.end = self.end.max(end);
    }
}

/// What is under way of a rule from the upstream.
#[derive(Debug)]
pub(super) struct Fetch {
    pub(super) arrivals: Arrivals,
    pub(super) incoming: Option<Incoming>,
    /// Its consumer there ends; with the channel it is over when nothing is under way.
    pub(super) is_ending: bool,
    /// It has ended.
    pub(super) is_over: bool,
}

/// A message that comes in.
#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) tag: u64,
    pub(super) redelivered: bool,
    pub(super) since: Now,
    pub(super) exchange: heapless::String<255>,
    pub(super) key: heapless::Vec<u8, 255>,
    pub(super) content: Received,
    /// Why its queue here does not take it: the rest of its way is to be set aside.
    pub(super) refused: Option<Box<str>>,
}

/// How far it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Received {
    /// Its header comes next.
    Nothing,
    /// So much of its body comes next.
    Part(MessageId, u64),
    /// It is whole, and waits for room.
    Whole(MessageId),
    /// It is not kept; so much of its body is read over.
    Skipped(u64),
}

impl Fetch {
    pub(super) fn is_idle(&self) -> bool {
        let is_coming = self.incoming.as_ref().is_some_and(|it| !matches!(it.content, Received::Skipped(0)));
        self.arrivals.is_empty() && !is_coming
    }

    /// Since when a body has been coming in, if one is.
    pub(super) fn body_since(&self) -> Option<Now> {
        let incoming = self.incoming.as_ref()?;
        matches!(incoming.content, Received::Part(..)).then_some(incoming.since)
    }
}
