//! A peer as the loop sees it: its socket, its session of whatever kind, and what it waits for.
//!
//! Why it exists: a client of AMQP, the operator's client, and whatever else is connected one day are peers
//! in the same lists. Reading, writing, closing, deadlines and budgets know no kinds; what a kind makes of
//! its bytes is behind [`Session`].
//!
//! Always true: which kind a peer is of, and whether the broker has a record of it, never changes.

use core::fmt;
use core::net::{IpAddr, SocketAddr};
use core::ops::Range;

use leveret_broker::Shortage;
use leveret_core::command::{ConnectionId, Outcome, ReplyOrder};
use leveret_core::journal::Batch;
use leveret_core::limits::{CONTROL_CLIENTS_MAX, MANAGEMENT_CLIENTS_MOST};
use leveret_core::log_limiter::LogSource;
use leveret_core::time::{Deadline, Now};

use super::blocked_publishers::Need;
use super::operators::OperatorClient;
use super::platform::Socket;
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

// A peer's name in the loop's lists: its place among all peers.
//
// ```text
// 0 .. APART_MAX          peers without a record at the broker: clients of the control socket, then those
//                         of the management API
// APART_MAX ..            connections of the broker, each at APART_MAX + its id
// ```
//
// Why it exists: the loop's lists, budgets and deadlines are the same for every kind of peer, so they need
// one name for all of them; and the broker's ids have to lead to their peers without a table.
//
// Always true: a place and a record of the broker lead to each other.

/// Peers that there may be without a record at the broker.
pub(super) const APART_MAX: usize = CONTROL_CLIENTS_MAX + MANAGEMENT_CLIENTS_MOST;

/// A peer's place among all peers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PeerId(u32);

impl PeerId {
    /// The peer in the place `index`, counted from 0.
    pub const fn from_index(index: usize) -> Self {
        assert!(index <= u32::MAX as usize, "there are fewer places than 2^32");
        Self(index as u32)
    }

    /// The place of the peer, counted from 0.
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// The broker's record of it, if it is of a kind that has one.
    #[inline]
    pub fn connection(self) -> Option<ConnectionId> {
        self.index().checked_sub(APART_MAX).map(ConnectionId::from_index)
    }
}

impl From<ConnectionId> for PeerId {
    #[inline]
    fn from(id: ConnectionId) -> Self {
        Self::from_index(APART_MAX + id.index())
    }
}

// All peers, of whatever kind, by their places.
//
// Always true: memory is touched only as far as there were ever so many connections at once.

/// The peers.
pub(super) struct Peers<S> {
    places: Vec<Option<Peer<S>>>,
    /// Peers that came in as connections of the broker.
    connections: u32,
    /// Connections of the broker that ever came in.
    connections_made: u64,
}

impl<S> Peers<S> {
    pub(super) fn with_capacity(connections_max: usize) -> Self {
        let places = Vec::with_capacity(Self::places_max(connections_max));
        Self { places, connections: 0, connections_made: 0 }
    }

    /// Places for peers of all kinds.
    pub(super) const fn places_max(connections_max: usize) -> usize {
        APART_MAX + connections_max
    }

    /// Places of the broker's connections that were ever used.
    pub(super) fn connections_seen(&self) -> usize {
        self.places.len().saturating_sub(APART_MAX)
    }

    /// Connections of the broker that came in, and are there.
    pub(super) const fn connections(&self) -> u32 {
        self.connections
    }

    /// Connections of the broker that ever came in.
    pub(super) const fn connections_made(&self) -> u64 {
        self.connections_made
    }

    /// Puts a connection of the broker that came in into its place, and numbers it.
    pub(super) fn put_connection(&mut self, id: impl Into<PeerId>, mut peer: Peer<S>) {
        self.connections_made += 1;
        peer.number = self.connections_made;
        self.put(id, peer);
        self.connections += 1;
    }

    /// Notes that a connection of the broker that came in is gone.
    pub(super) const fn note_connection_gone(&mut self) {
        self.connections -= 1;
    }

    /// `None` when the peer has gone since, which whoever holds an id over several steps of a turn may meet:
    /// a socket dies when it likes.
    #[inline]
    pub(super) fn get(&self, id: impl Into<PeerId>) -> Option<&Peer<S>> {
        self.places.get(id.into().index())?.as_ref()
    }

    /// See [`Self::get`].
    #[inline]
    pub(super) fn get_mut(&mut self, id: impl Into<PeerId>) -> Option<&mut Peer<S>> {
        self.places.get_mut(id.into().index())?.as_mut()
    }

    /// Puts a peer into its place, which is empty.
    pub(super) fn put(&mut self, id: impl Into<PeerId>, peer: Peer<S>) {
        let id = id.into();
        while self.places.len() <= id.index() {
            self.places.push(None);
        }
        let before = self.places[id.index()].replace(peer);
        assert!(before.is_none(), "the place of a new peer is empty");
    }

    pub(super) fn take(&mut self, id: impl Into<PeerId>) -> Option<Peer<S>> {
        self.places.get_mut(id.into().index())?.take()
    }

    /// An empty one of these places for peers without a record at the broker.
    pub(super) fn place_apart(&self, mut places: Range<usize>) -> Option<PeerId> {
        debug_assert!(places.end <= APART_MAX, "places apart");
        places.by_ref().map(PeerId::from_index).find(|id| self.get(*id).is_none())
    }

    /// The ids of all there are.
    #[cfg(debug_assertions)]
    pub(super) fn ids(&self) -> impl Iterator<Item = PeerId> {
        (0..self.places.len()).map(PeerId::from_index).filter(|id| self.get(*id).is_some())
    }

    /// Everybody.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Peer<S>> {
        self.places.iter().flatten()
    }
}

// Who is at the other end of a connection, and whose budget that counts on.

/// Who is at the other end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PeerAddress {
    /// Somewhere on the network, or on this machine by way of it.
    Network(SocketAddr),
    /// A process of this machine, as the kernel names it.
    Local {
        /// The process at the other end; 0 when the kernel does not say.
        pid: i32,
        /// The user whom that process runs as.
        uid: u32,
    },
}

impl PeerAddress {
    /// Whether it is on this very machine.
    pub fn is_loopback(self) -> bool {
        self.ip().is_none_or(|ip| ip.is_loopback())
    }

    /// On whose budget a line about it in the log is.
    pub(super) fn source(self) -> LogSource {
        match self {
            Self::Network(address) => LogSource::Address(address.ip()),
            Self::Local { uid, .. } => LogSource::User(uid),
        }
    }

    /// What a session is to know of it.
    pub(super) fn peer(self) -> leveret_connection::Peer {
        let port = match self {
            Self::Network(address) => address.port(),
            Self::Local { .. } => 0,
        };
        leveret_connection::Peer { from_loopback: self.is_loopback(), source: self.source(), port }
    }

    /// What is counted as one peer when peers share something out.
    pub(super) fn origin(self) -> Source {
        match self {
            Self::Network(address) => Source::of(address.ip()),
            Self::Local { uid, .. } => Source::of_user(uid),
        }
    }

    /// The IP address, the same for IPv4 whichever way a peer came; `None` for a process of this machine.
    const fn ip(self) -> Option<IpAddr> {
        match self {
            Self::Network(address) => Some(address.ip().to_canonical()),
            Self::Local { .. } => None,
        }
    }
}

/// Where peers come from as far as it can be told apart: an IPv4 address, the first half of an IPv6 one, for
/// nobody has fewer, or a user of this machine.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Source([u8; 8]);

impl Source {
    /// The origin of a peer that came over the network.
    pub(super) fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            // No IPv6 address of anybody begins like this.
            IpAddr::V4(address) => Self::tagged(0, u32::from(address)),
            IpAddr::V6(address) => {
                let octets = address.octets();
                Self([0, 1, 2, 3, 4, 5, 6, 7].map(|at: usize| octets[at]))
            }
        }
    }

    /// A user of this machine, by way of a Unix socket.
    fn of_user(uid: u32) -> Self {
        // Multicast, from which nobody connects.
        Self::tagged(0xff, uid)
    }

    const fn tagged(tag: u8, number: u32) -> Self {
        let [a, b, c, d] = number.to_be_bytes();
        Self([tag, 0, 0, 0, a, b, c, d])
    }
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(address) => address.fmt(f),
            Self::Local { pid, uid } => write!(f, "process {pid} of user {uid}"),
        }
    }
}

#[cfg(test)]
mod address_tests {
    use super::*;

    #[test]
    fn a_whole_network_is_one_source_and_every_user_is_another() {
        let v6 = |last: u8| Source::of(IpAddr::from([1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, last]));
        assert_eq!(v6(1), v6(2));
        let v4 = |last: u8| Source::of(IpAddr::from([127, 0, 0, last]));
        assert_ne!(v4(1), v4(2));
        let mapped = IpAddr::V6(core::net::Ipv4Addr::new(127, 0, 0, 1).to_ipv6_mapped());
        assert_eq!(v4(1), Source::of(mapped), "whichever way it came");
        let user = |uid| PeerAddress::Local { pid: 7, uid }.origin();
        assert_eq!(user(1), PeerAddress::Local { pid: 8, uid: 1 }.origin());
        assert_ne!(user(1), user(2));
        assert_ne!(user(1), v4(1));
    }
}
