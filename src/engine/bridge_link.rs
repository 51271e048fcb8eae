//! A link of a bridge: the peer that is an upstream broker, and the consumer or publisher it is here.
//!
//! Always true: a link is one direction of one bridge; what it holds of messages it gives back when it ends.

use crate::bridge::{Arrivals, Cause, Client, Drain, Flights, OwnId};
use crate::command::{ChannelId, ConnectionId};
use crate::config::bridge::RULES_MAX;
use crate::mem::{MessageId, Messages};
use crate::time::{Deadline, Now};

use super::bridge_course::Appetite;

/// Which way messages go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Direction {
    /// From here to there.
    Forward,
    /// From there to here.
    Fetch,
}

impl Direction {
    pub(super) const BOTH: [Self; 2] = [Self::Forward, Self::Fetch];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Fetch => "fetch",
        }
    }
}

/// Which link of which bridge.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct LinkId {
    /// The number of the bridge, which no other had since the start.
    pub(super) bridge: u64,
    pub(super) direction: Direction,
}

/// A link with a socket.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) id: LinkId,
    pub(super) client: Client,
    /// The channel here, once messages flow.
    pub(super) channel: Option<ChannelId>,
    pub(super) flow: Flow,
    /// When messages began to flow.
    pub(super) ready_since: Option<Now>,
    /// Why it ends.
    pub(super) cause: Option<Cause>,
    /// Something of a message went or came since this was last asked.
    pub(super) has_moved: bool,
    /// Nothing more is taken; it ends when what is under way is settled.
    pub(super) is_draining: bool,
    /// When the message or frame that the upstream has begun went on last; `None`: none is begun, or we do
    /// not read.
    pub(super) begun: Option<Now>,
}

/// What it does.
#[derive(Debug)]
pub(super) enum Flow {
    Forward(Forward),
    Fetch(Fetch),
}

/// What is under way to the upstream.
#[derive(Debug)]
pub(super) struct Forward {
    pub(super) flights: Flights,
    /// Octets of the first message in the outbox that were written, and not all.
    pub(super) begun: u64,
    /// How fast messages have been leaving since something is under way.
    pub(super) drain: Drain,
    /// When the upstream last confirmed something, or was last owed nothing.
    pub(super) progress: Now,
    /// What each rule's consumer here takes.
    pub(super) taking: [Appetite; RULES_MAX],
}

/// What is under way from the upstream.
#[derive(Debug)]
pub(super) struct Fetch {
    pub(super) arrivals: Arrivals,
    pub(super) incoming: Option<Incoming>,
    /// Messages that the broker here cannot take at all, and the upstream keeps.
    pub(super) held: u32,
}

/// A message that comes in.
#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) tag: u64,
    pub(super) rule: usize,
    pub(super) redelivered: bool,
    pub(super) since: Now,
    pub(super) exchange: heapless::String<255>,
    pub(super) key: heapless::Vec<u8, 255>,
    pub(super) content: Received,
    /// Neither its queue nor the one for parked messages takes it: it is tried again then.
    pub(super) again: Deadline,
    /// A part of where it goes has it, so only the rest of its way is to park it.
    pub(super) only_parks: bool,
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

impl Link {
    /// When it wants to be called. `is_read`: it is not kept waiting by us.
    pub(super) fn deadline(&self, is_read: bool, (confirm_ms, content_ms): (u64, u64)) -> Deadline {
        let ours = self.again().earlier(self.confirm_deadline(confirm_ms));
        self.client.deadline(is_read).earlier(ours).earlier(self.content_deadline(content_ms))
    }

    /// When what the upstream has begun has stood still for too long.
    pub(super) fn content_deadline(&self, content_timeout_ms: u64) -> Deadline {
        self.begun.map_or(Deadline::NEVER, |since| since.after_ms(content_timeout_ms))
    }

    /// When the message that nothing here takes is tried again.
    pub(super) fn again(&self) -> Deadline {
        match &self.flow {
            Flow::Fetch(Fetch { incoming: Some(incoming), .. }) => incoming.again,
            _ => Deadline::NEVER,
        }
    }

    /// All that was there is handled, but for so much; `has_come`: some of it was new.
    pub(super) fn note_begun(&mut self, now: Now, has_come: bool, left: usize) {
        let is_begun = left > 0 || self.client.is_in_content();
        self.begun = is_begun.then(|| self.begun.filter(|_| !has_come).unwrap_or(now));
    }

    /// Whether a body has been coming in for so long, however much of it came.
    pub(super) fn has_body_for(&self, now: Now, ms: u64) -> bool {
        match &self.flow {
            Flow::Fetch(Fetch { incoming: Some(incoming), .. }) => {
                matches!(incoming.content, Received::Part(..)) && incoming.since.after_ms(ms).is_due(now)
            }
            _ => false,
        }
    }

    /// When the upstream has confirmed nothing for too long.
    pub(super) fn confirm_deadline(&self, confirm_timeout_ms: u64) -> Deadline {
        match &self.flow {
            Flow::Forward(forward) if !forward.flights.is_empty() && !self.client.is_blocked() => {
                forward.progress.after_ms(confirm_timeout_ms)
            }
            _ => Deadline::NEVER,
        }
    }

    /// The upstream has time to confirm from now on: it was blocked until now.
    pub(super) const fn restart_confirm_timeout(&mut self, now: Now) {
        if let Flow::Forward(forward) = &mut self.flow {
            forward.progress = now;
        }
    }

    /// Whether something waits for the disk.
    pub(super) fn awaits_disk(&self) -> bool {
        matches!(&self.flow, Flow::Fetch(fetch) if !fetch.arrivals.is_empty())
    }

    /// Whether something of a message was written, and not all.
    pub(super) const fn has_begun(&self) -> bool {
        matches!(&self.flow, Flow::Forward(Forward { begun, .. }) if *begun > 0)
    }

    /// Whether nothing is under way, so that it can end.
    pub(super) fn is_idle(&self) -> bool {
        match &self.flow {
            Flow::Forward(forward) => forward.flights.is_empty() && forward.begun == 0,
            Flow::Fetch(fetch) => fetch.arrivals.is_empty(),
        }
    }

    /// Whether a whole message waits for room.
    pub(super) const fn has_whole(&self) -> bool {
        match &self.flow {
            Flow::Fetch(Fetch { incoming: Some(incoming), .. }) => {
                matches!(incoming.content, Received::Whole(_))
            }
            _ => false,
        }
    }

    /// Gives back what it holds of messages.
    pub(super) fn teardown(&mut self, messages: &mut Messages) {
        if let Flow::Fetch(fetch) = &mut self.flow
            && let Some(Incoming { content: Received::Part(message, _) | Received::Whole(message), .. }) =
                fetch.incoming.take()
        {
            messages.release(message);
        }
    }
}

/// A message that is set aside when it comes by the next time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Condemned {
    pub(super) id: OwnId,
    pub(super) why: crate::bridge::Refusal,
}

/// What was set aside, on its way back.
#[derive(Debug)]
pub(super) struct Retry {
    pub(super) connection: ConnectionId,
    pub(super) channel: ChannelId,
    /// Messages that were not looked at yet.
    pub(super) left: u32,
    pub(super) moved: u32,
    pub(super) stayed: u32,
    /// Why the last of those stayed.
    pub(super) why: Option<Cause>,
}
