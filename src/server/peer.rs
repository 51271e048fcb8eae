//! A peer as the loop sees it: its socket, its session of whatever kind, and what it waits for.
//!
//! Why it exists: a client of AMQP, the operator's client, and whatever else is connected one day are peers
//! in the same lists. Reading, writing, closing, deadlines and budgets know no kinds; what a kind makes of
//! its bytes is behind [`Session`].
//!
//! Always true: which kind a peer is of, and whether the broker has a record of it, never changes.

use leveret_broker::Shortage;
use leveret_core::command::{Outcome, ReplyOrder};
use leveret_core::journal::Batch;
use leveret_core::time::{Deadline, Now};

use super::address::PeerAddress;
use super::operator_client::OperatorClient;
use super::platform::Socket;
use super::room_awaited::Need;
use super::stream::Stream;

/// Why a connection is not read.
///
/// Who ends the waiting, and why none of it can be missed: what is looked at before every sleep cannot be
/// forgotten by whoever changed it.
///
/// | waits for | is over when | the loop notices by |
/// |---|---|---|
/// | `Replies` | some of its output was written | the socket's next report, at which all is written |
/// | `Room` | something was given back | what the pools count: `Engine::has_room_to_offer` |
/// | `Job` | the broker is not busy with it | `Broker::has_work`, as long as it is |
/// | `Handshake` | the helper gave it back | the helper's waker |
/// | `Worker` | the same, or its address may try again | that waker, and `PasswordChecks::deadline` |
/// | `Disk` | the batch is durable | the helper's waker: `Engine::note_durable` |
///
/// Besides, a connection that is read may need more of the stashes than is free (`for_stash`): it asks how
/// much is free now, `Engine::has_stash_to_offer`. A connection that waits for a place is looked at in the same
/// way (`Engine::may_admit`), and so is a journal that is crowded (`Engine::has_work`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Waiting {
    /// The peer waits for nothing and is read.
    No,
    /// The peer's replies have to be written first.
    Replies,
    /// There is no room for its message.
    Room,
    /// The peer's last command is still being carried out.
    Job,
    /// A step of its handshake of TLS comes back when the worker's job with this ticket is done.
    Handshake(u64),
    /// The answer to its last command leaves when this is durable.
    Disk(Batch),
    /// The answer to its last command comes when the worker's job with this ticket is done.
    Worker(u64),
}

/// Whether a connection is alive, and which step of its end it is at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ending {
    /// The connection is alive.
    No,
    /// The session is done: what it has to say is written, then writing is shut down.
    Flushing,
    /// Everything is said; input is read and forgotten until the peer hangs up, because closing with input
    /// unread would destroy what is still on its way to the peer.
    Draining(Deadline),
    /// To be closed at the end of the turn.
    Now,
}

/// What is spoken with a peer.
#[derive(Debug)]
pub(super) enum Session {
    /// A client of AMQP, which has a record at the broker under the same id.
    Amqp(leveret_connection::Connection),
    /// An operator's client, which has none.
    Operator(OperatorClient),
    /// An upstream broker, whose record is that of our own publisher: what its bridge says it needs.
    Bridge(Needs),
}

/// What the loop has to know of a link of a bridge.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Needs {
    /// The link has something to say by itself.
    pub(super) has_output: bool,
    /// The link was cut short in something that it says.
    pub(super) has_remainder: bool,
    /// Something that it is to say leaves when the disk has caught up.
    pub(super) awaits_disk: bool,
    /// The body that has been coming in for longest has done so since then.
    pub(super) body_since: Option<Now>,
    /// The earliest deadline that input can still move.
    pub(super) input_deadline: Deadline,
}

impl Session {
    /// The session of a peer that the broker has a record of.
    #[inline]
    pub(super) fn amqp(&mut self) -> &mut leveret_connection::Connection {
        match self {
            Self::Amqp(session) => session,
            Self::Operator(_) | Self::Bridge(_) => {
                unreachable!("only clients of AMQP are asked for by that name")
            }
        }
    }

    /// Whether it is a link of a bridge.
    #[inline]
    pub(super) const fn is_bridge(&self) -> bool {
        matches!(self, Self::Bridge(_))
    }

    /// When it wants to be called.
    pub(super) fn deadline(&self) -> Deadline {
        match self {
            Self::Amqp(session) => session.deadline(),
            Self::Operator(client) => client.deadline(),
            // It says itself when it was looked at.
            Self::Bridge(_) => Deadline::NEVER,
        }
    }

    /// Returns the earliest deadline that input can still move.
    pub(super) fn input_deadline(&self) -> Deadline {
        match self {
            Self::Amqp(session) => session.input_deadline(),
            Self::Operator(client) => client.deadline(),
            Self::Bridge(needs) => needs.input_deadline,
        }
    }

    /// Whether something it is to say leaves when the disk has caught up.
    pub(super) fn awaits_disk(&self) -> bool {
        match self {
            Self::Amqp(session) => session.awaits_disk(),
            Self::Operator(client) => client.session.awaits_disk(),
            Self::Bridge(needs) => needs.awaits_disk,
        }
    }

    /// Whether it waits for a message that the broker reads back for it.
    pub(super) fn waits_for_get(&self) -> bool {
        matches!(self, Self::Operator(client) if client.session.waits())
    }

    /// Whether it has something to say by itself, not counting deliveries.
    pub(super) fn has_output(&self) -> bool {
        match self {
            Self::Amqp(session) => session.has_output(),
            Self::Operator(client) => client.session.has_output(),
            Self::Bridge(needs) => needs.has_output,
        }
    }

    /// Whether it was cut short in something it says.
    pub(super) fn has_remainder(&self) -> bool {
        match self {
            Self::Amqp(session) => session.has_remainder(),
            Self::Operator(_) => false,
            Self::Bridge(needs) => needs.has_remainder,
        }
    }
}

/// One peer.
#[derive(Debug)]
pub(super) struct Peer<S> {
    /// The broker's connections are numbered in the order of their coming; other peers have no number.
    pub(super) number: u64,
    pub(super) since: Now,
    pub(super) address: PeerAddress,
    pub(super) stream: Stream<S>,
    pub(super) traffic: Traffic,
    pub(super) session: Session,
    pub(super) waiting: Waiting,
    /// What it waits for while it waits for room.
    pub(super) need: Need,
    pub(super) ending: Ending,
    /// The answer that waits for the disk.
    pub(super) held: Option<(Outcome, ReplyOrder)>,
    /// It has not logged in and opened a virtual host.
    pub(super) shaking_hands: bool,
    /// When the broker last answered it before its login, or when it was accepted.
    pub(super) silent_since: Now,
    /// Its first message has arrived: a client of AMQP has been answered, an operator's client has sent something.
    pub(super) has_sent: bool,
    /// Deliveries wait and its socket has taken nothing: so long that may last.
    pub(super) write_stall: Deadline,
    /// When the peer, which waits for room, is to be asked whether it wants to leave.
    pub(super) leave_due: Deadline,
    /// What had been freed of what it waits for when it was looked at last, and since when that has not changed.
    pub(super) leave_seen: Option<(u64, Now)>,
    /// Until when what the peer sent, which is gone, may wait to be taken.
    pub(super) lost: Deadline,
    /// When the socket was last read, whether or not it had anything.
    pub(super) read_at: Now,
}

/// What went over a connection since it was made, without what TLS adds.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Traffic {
    pub(super) received_bytes: u64,
    /// Reads that brought something.
    pub(super) reads: u64,
    pub(super) sent_bytes: u64,
    /// Writes that took something.
    pub(super) writes: u64,
}

impl Traffic {
    pub(super) const fn received(&mut self, bytes: usize) {
        self.received_bytes += bytes as u64;
        self.reads += (bytes > 0) as u64;
    }

    pub(super) const fn sent(&mut self, bytes: usize) {
        self.sent_bytes += bytes as u64;
        self.writes += (bytes > 0) as u64;
    }
}

impl<S: Socket> Peer<S> {
    /// One that has just come in.
    pub(super) fn new(socket: S, address: PeerAddress, session: Session, now: Now) -> Self {
        Self {
            number: 0,
            since: now,
            address,
            stream: Stream::new(socket),
            traffic: Traffic::default(),
            session,
            waiting: Waiting::No,
            need: Need { shortage: Shortage::Commit, since: now },
            ending: Ending::No,
            held: None,
            shaking_hands: false,
            silent_since: now,
            has_sent: false,
            write_stall: Deadline::NEVER,
            leave_due: Deadline::NEVER,
            leave_seen: None,
            lost: Deadline::NEVER,
            read_at: now,
        }
    }

    /// When it is to be looked at if nothing happens to it.
    pub(super) fn deadline(&self) -> Deadline {
        self.session.deadline().earlier(self.lost).earlier(self.write_stall).earlier(self.leave_due)
    }

    /// Whether a deadline that input can move is due, and the socket has not been read since.
    pub(super) fn must_read_first(&self, now: Now) -> bool {
        self.waiting == Waiting::No
            && self.ending == Ending::No
            && self.read_at < now
            && self.session.input_deadline().is_due(now)
    }

    /// Whether the answer to a command comes later, and what it waits for. The confirm of a publish waits
    /// without its connection.
    pub(super) fn defer(&mut self, outcome: &Outcome, batch: Batch, durable: Batch) -> Option<Waiting> {
        let session = self.session.amqp();
        let waiting = match outcome {
            Outcome::Later => Waiting::Job,
            Outcome::Published | Outcome::PublishRefused | Outcome::Wait => return None,
            // Without an answer nothing is said that could turn out wrong.
            _ if batch <= durable || session.wants_no_answer() => return None,
            _ => Waiting::Disk(batch),
        };
        session.defer();
        Some(waiting)
    }
}
