//! A link while it has a socket: the peer that is an upstream broker, and a lane for each rule.
//!
//! ```text
//! Shut ─ wanted → Opening ─ ready → Forward or Fetch ─ not wanted, or failed → … → Shut
//! ```
//!
//! Always true: a contact is one direction of one bridge; a lane ends and begins without the others, and what it
//! holds of messages it gives back when it ends; between two frames of one lane those of another may go, and never
//! within one.

use crate::peer::Needs;
use leveret_bridge::{Arrivals, Cause, Client, Flights, Stage};
use leveret_core::command::{ChannelId, ConnectionId};
use leveret_core::mem::MessageId;
use leveret_core::time::{Deadline, Now};

/// A link with a socket.
#[derive(Debug)]
pub(super) struct Contact {
    pub(super) peer: ConnectionId,
    pub(super) client: Client,
    /// The channel here by which what is fetched is published, once something is.
    pub(super) channel: Option<ChannelId>,
    pub(super) lanes: Vec<Lane>,
    /// The lane whose frame went in part.
    pub(super) cut: Option<usize>,
    /// The lane that has the first turn among its equals.
    pub(super) turn: usize,
    /// When the upstream last confirmed something, was last owed nothing, or was last sent some of a message.
    pub(super) progress: Now,
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

impl Contact {
    pub(super) fn new(peer: ConnectionId, client: Client, rules: usize, now: Now) -> Self {
        Self {
            peer,
            client,
            channel: None,
            lanes: (0..rules).map(|_| Lane::Shut).collect(),
            cut: None,
            turn: 0,
            progress: now,
            cause: None,
            has_moved: false,
            is_draining: false,
            begun: None,
        }
    }

    /// Whether its rules are tended: it is open, and not about to end.
    pub(super) fn is_tended(&self) -> bool {
        self.client.stage() == Stage::Open && !self.is_draining && self.cause.is_none()
    }

    /// Whether nothing of a message is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.forwards().all(Forward::is_idle) && self.fetches().all(Fetch::is_idle)
    }

    /// Whether nothing is under way any more, and nothing will be.
    pub(super) fn is_drained(&self) -> bool {
        self.is_draining && self.is_idle() && self.fetches().all(|lane| lane.is_over)
    }

    /// Messages on their way, of all rules.
    pub(super) fn pending(&self) -> usize {
        let forward: usize = self.forwards().map(|lane| lane.flights.len()).sum();
        forward + self.fetches().map(|lane| lane.arrivals.len()).sum::<usize>()
    }

    pub(super) fn forwards(&self) -> impl Iterator<Item = &Forward> {
        self.lanes.iter().filter_map(|lane| if let Lane::Forward(lane) = lane { Some(lane) } else { None })
    }

    pub(super) fn fetches(&self) -> impl Iterator<Item = &Fetch> {
        self.lanes.iter().filter_map(|lane| if let Lane::Fetch(lane) = lane { Some(lane) } else { None })
    }

    /// What a rule forwards.
    pub(super) fn forward(&self, rule: usize) -> Option<&Forward> {
        if let Lane::Forward(lane) = &self.lanes[rule] { Some(lane) } else { None }
    }

    /// What a rule fetches.
    pub(super) fn fetch(&mut self, rule: usize) -> Option<&mut Fetch> {
        if let Lane::Fetch(lane) = &mut self.lanes[rule] { Some(lane) } else { None }
    }

    /// The message of a rule that comes in.
    pub(super) fn incoming(&mut self, rule: usize) -> Option<&mut Incoming> {
        self.fetch(rule)?.incoming.as_mut()
    }

    /// What the loop has to know of it.
    pub(super) fn needs(&self) -> Needs {
        Needs {
            has_output: !self.client.pending().is_empty(),
            has_remainder: self.cut.is_some() || self.forwards().any(|lane| lane.begun > 0),
            awaits_disk: self.fetches().any(|lane| !lane.arrivals.is_empty()),
            body_since: self.fetches().filter_map(Fetch::body_since).min(),
            input_deadline: Deadline::NEVER,
        }
    }

    /// All that was there is handled, but for so much; `has_come`: some of it was new.
    pub(super) fn note_begun(&mut self, now: Now, has_come: bool, left: usize) {
        let is_begun = left > 0 || self.client.is_in_content();
        self.begun = is_begun.then(|| self.begun.filter(|_| !has_come).unwrap_or(now));
    }

    /// When what the upstream has begun has stood still for too long.
    pub(super) fn content_deadline(&self, content_timeout_ms: u64) -> Deadline {
        self.begun.map_or(Deadline::NEVER, |since| since.after_ms(content_timeout_ms))
    }

    /// When the upstream has confirmed nothing of a rule for too long.
    pub(super) fn confirm_deadline(&self, confirm_timeout_ms: u64) -> Deadline {
        if self.client.is_blocked() {
            return Deadline::NEVER;
        }
        // A rule that the upstream paused with channel.flow is owed no confirms.
        let owed = self.lanes.iter().enumerate().filter_map(|(rule, lane)| match lane {
            Lane::Forward(lane) if !lane.flights.is_empty() && !self.client.is_stopped(rule) => Some(lane),
            _ => None,
        });
        let deadlines = owed.map(|lane| {
            // Of one that ends without them nothing is owed any more but by the link.
            let since = if lane.end < End::Sent { lane.progress } else { self.progress };
            since.after_ms(confirm_timeout_ms)
        });
        deadlines.fold(Deadline::NEVER, Deadline::earlier)
    }

    /// The upstream has its time to confirm from now on.
    pub(super) fn restart_confirm_timeout(&mut self, now: Now) {
        self.progress = now;
        for lane in &mut self.lanes {
            if let Lane::Forward(lane) = lane {
                lane.progress = now;
            }
        }
    }
}

/// What a rule does over a contact.
#[derive(Debug)]
pub(super) enum Lane {
    /// The direction has no channel at the upstream, or that is being closed.
    Shut,
    /// The channel of the direction is being opened.
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
    /// The lane does not end, unless its rule wants it.
    No,
    /// The lane ends when what is under way is settled: its consumer here is no more.
    Settled,
    /// The lane ends when the message that was begun is sent as a whole: its confirms are not waited for.
    Sent,
    /// The lane ends at once, or with the end of a frame: its channel at the upstream is no more.
    AtOnce,
}

impl Forward {
    pub(super) fn is_idle(&self) -> bool {
        self.flights.is_empty() && self.begun == 0
    }

    /// Has the lane end so, or as it was to end if that is sooner.
    pub(super) fn end(&mut self, end: End) {
        self.end = self.end.max(end);
    }
}

/// What is under way of a rule from the upstream.
#[derive(Debug)]
pub(super) struct Fetch {
    pub(super) arrivals: Arrivals,
    pub(super) incoming: Option<Incoming>,
    /// The consumer at the upstream ends; with the channel it is over when nothing is under way.
    pub(super) is_ending: bool,
    /// The consumer at the upstream has ended.
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

/// How much of a delivery has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Received {
    /// The header of the content comes next.
    Nothing,
    /// So much of its body comes next.
    Part(MessageId, u64),
    /// The content is whole, and waits for room.
    Whole(MessageId),
    /// The content is not kept; so many bytes of its body are still to be read over.
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
