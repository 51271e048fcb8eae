//! A peer of the event loop: its socket, its session, and the reasons why the peer waits.
//!
//! AMQP clients, operator clients and bridge links are peers in the same lists. Reading, writing, closing, deadlines
//! and budgets do not depend on the kind of a peer. [`Session`] handles its bytes according to the kind.
//!
//! # Invariants
//! - The kind of a peer never changes, nor whether the broker has a record of it.
//! - The slot of a peer and its record at the broker can be computed from each other.

use core::fmt;
use core::net::{IpAddr, SocketAddr};
use core::ops::Range;

use leveret_broker::Shortage;
use leveret_core::command::{ConnectionId, Outcome, ReplyOrder};
use leveret_core::limits::{CONTROL_CLIENTS_MAX, MANAGEMENT_CLIENTS_UPPER_BOUND};
use leveret_core::log_limiter::LogSource;
use leveret_core::pending_writes::Batch;
use leveret_core::time::{Deadline, Now};

use super::blocked_publishers::BlockedOn;
use super::operators::OperatorClient;
use super::platform::Socket;
use super::stream::Stream;

/// Why a connection is not read.
///
/// The table lists what ends each kind of waiting and how the loop notices it. Conditions that the loop evaluates
/// before every sleep cannot be missed by the code that changes them.
///
/// | waits for | ends when | the loop notices by |
/// |---|---|---|
/// | `Replies` | some of its output was written | the socket's next event, after which all output is written |
/// | `Capacity` | memory or disk space became free | counters of the pools: `Engine::has_publisher_to_retry` |
/// | `Job` | the broker's job for it is done | `Broker::has_work`, until it is done |
/// | `Handshake` | the worker returned the handshake | the worker's waker |
/// | `Worker` | the job is done, or its address may try again | that waker, and `PasswordChecks::deadline` |
/// | `Disk` | the batch is durable | the disk thread's waker: `Engine::note_durable` |
///
/// In addition, a connection that is read may need more input backlog than is free (`Lists::for_backlog`);
/// `Engine::has_work` compares that with what is free now. Accepted sockets that wait for a slot are checked in the
/// same way (`Engine::may_admit`), and so is a crowded pending-write buffer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Waiting {
    /// The peer waits for nothing and is read.
    No,
    /// Replies to the peer must be written first.
    Replies,
    /// There is no capacity for the peer's message.
    Capacity,
    /// The broker is still carrying out the peer's last command.
    Job,
    /// The worker carries out a step of the TLS handshake, as the job with this ticket.
    Handshake(u64),
    /// The answer to the peer's last command is sent when this batch is durable.
    Disk(Batch),
    /// The worker checks the password of the peer, as the job with this ticket.
    PasswordCheck(u64),
}

/// The stages of closing a peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ending {
    /// The peer is not being closed.
    No,
    /// The session has ended. Its output is written, then the writing side is shut down.
    Flushing,
    /// All output is written. Input is read and discarded until the peer closes, because closing a socket with unread
    /// input could destroy output that is still on its way.
    Draining(Deadline),
    /// The peer is closed at the end of the turn.
    Now,
}

/// The session of a peer, by kind.
#[derive(Debug)]
pub(super) enum Session {
    /// An AMQP client. The broker has a record of it under the same id.
    Amqp(leveret_connection::Connection),
    /// An operator's client. The broker has no record of it.
    Operator(OperatorClient),
    /// A bridge link to another broker. The broker's record under its id is that of the bridge's own publisher.
    Bridge(LinkStatus),
}

/// The properties of a bridge link that the loop uses.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct LinkStatus {
    /// The link has output of its own.
    pub(super) has_output: bool,
    /// The link has written a part of a frame, and the rest remains.
    pub(super) has_remainder: bool,
    /// The link has output that waits for the disk.
    pub(super) awaits_disk: bool,
    /// Since when the body that has been arriving for longest has been arriving.
    pub(super) body_since: Option<Now>,
    /// The earliest deadline that input can still move.
    pub(super) input_deadline: Deadline,
}

impl Session {
    /// Returns the session of an AMQP client.
    ///
    /// # Panics
    /// If the peer is of another kind.
    #[inline]
    pub(super) fn amqp(&mut self) -> &mut leveret_connection::Connection {
        match self {
            Self::Amqp(session) => session,
            Self::Operator(_) | Self::Bridge(_) => {
                unreachable!("only AMQP clients have an AMQP session")
            }
        }
    }

    /// Returns whether the peer is a bridge link.
    #[inline]
    pub(super) const fn is_bridge(&self) -> bool {
        matches!(self, Self::Bridge(_))
    }

    /// Returns the deadline of the session.
    pub(super) fn deadline(&self) -> Deadline {
        match self {
            Self::Amqp(session) => session.deadline(),
            Self::Operator(client) => client.deadline(),
            // A bridge link sets its own deadline when it is polled.
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

    /// Returns whether the session has output that waits for the disk.
    pub(super) fn awaits_disk(&self) -> bool {
        match self {
            Self::Amqp(session) => session.awaits_disk(),
            Self::Operator(client) => client.session.awaits_disk(),
            Self::Bridge(needs) => needs.awaits_disk,
        }
    }

    /// Returns whether the session waits for a message that the broker reads from the disk.
    pub(super) fn waits_for_get(&self) -> bool {
        matches!(self, Self::Operator(client) if client.session.awaits_read_back())
    }

    /// Returns whether the session has output other than deliveries.
    pub(super) fn has_output(&self) -> bool {
        match self {
            Self::Amqp(session) => session.has_output(),
            Self::Operator(client) => client.session.has_output(),
            Self::Bridge(needs) => needs.has_output,
        }
    }

    /// Returns whether the session has written a part of a frame, and the rest remains.
    pub(super) fn has_remainder(&self) -> bool {
        match self {
            Self::Amqp(session) => session.has_remainder(),
            Self::Operator(_) => false,
            Self::Bridge(needs) => needs.has_remainder,
        }
    }
}

/// A peer.
#[derive(Debug)]
pub(super) struct Peer<S> {
    /// Sequence number of a broker connection, from 1. Other peers have 0.
    pub(super) number: u64,
    pub(super) since: Now,
    pub(super) address: PeerAddress,
    pub(super) stream: Stream<S>,
    pub(super) traffic: Traffic,
    pub(super) session: Session,
    pub(super) waiting: Waiting,
    /// The resource that the peer waits for while `waiting` is `Capacity`.
    pub(super) blocked_on: BlockedOn,
    pub(super) ending: Ending,
    /// The answer that waits for the disk or for a job.
    pub(super) held: Option<(Outcome, ReplyOrder)>,
    /// Whether the peer has not yet logged in and opened a virtual host.
    pub(super) is_opening: bool,
    /// When the broker last answered the peer before its login, or when the peer was accepted.
    pub(super) silent_since: Now,
    /// Whether the first message has arrived: an AMQP client was answered, or an operator's client sent something.
    pub(super) has_sent: bool,
    /// When the connection is closed because output waits and its socket takes nothing.
    pub(super) write_stall: Deadline,
    /// When the loop next checks whether the blocked publisher wants to close its connection.
    pub(super) close_check_due: Deadline,
    /// The value of the freed-capacity counter at the last check, and since when it has not changed.
    pub(super) close_check_seen: Option<(u64, Now)>,
    /// When a peer that is gone is closed although its last input has not been handled.
    pub(super) lost_deadline: Deadline,
    /// When the socket was last read, whether or not it had data.
    pub(super) read_at: Now,
}

/// Bytes and system calls of a connection since it was opened, without the overhead of TLS.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Traffic {
    pub(super) received_bytes: u64,
    /// Number of reads that returned data.
    pub(super) reads: u64,
    pub(super) sent_bytes: u64,
    /// Number of writes that took data.
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
    /// Makes a peer that was just accepted.
    pub(super) fn new(socket: S, address: PeerAddress, session: Session, now: Now) -> Self {
        Self {
            number: 0,
            since: now,
            address,
            stream: Stream::new(socket),
            traffic: Traffic::default(),
            session,
            waiting: Waiting::No,
            blocked_on: BlockedOn { shortage: Shortage::Commit, since: now },
            ending: Ending::No,
            held: None,
            is_opening: false,
            silent_since: now,
            has_sent: false,
            write_stall: Deadline::NEVER,
            close_check_due: Deadline::NEVER,
            close_check_seen: None,
            lost_deadline: Deadline::NEVER,
            read_at: now,
        }
    }

    /// Returns when the peer must be called if nothing happens to it.
    pub(super) fn deadline(&self) -> Deadline {
        self.session
            .deadline()
            .earlier(self.lost_deadline)
            .earlier(self.write_stall)
            .earlier(self.close_check_due)
    }

    /// Returns whether a deadline that input can move is due and the socket has not been read since.
    pub(super) fn must_read_first(&self, now: Now) -> bool {
        self.waiting == Waiting::No
            && self.ending == Ending::No
            && self.read_at < now
            && self.session.input_deadline().is_due(now)
    }

    /// Defers the answer to a command if it comes later. Returns what the peer then waits for.
    ///
    /// The confirm of a publish may come later, but its connection does not wait for it.
    pub(super) fn defer(&mut self, outcome: &Outcome, batch: Batch, durable: Batch) -> Option<Waiting> {
        let session = self.session.amqp();
        let waiting = match outcome {
            Outcome::Later => Waiting::Job,
            Outcome::Published | Outcome::PublishRefused | Outcome::Wait => return None,
            // If no answer is sent, none can turn out to be wrong.
            _ if batch <= durable || session.wants_no_answer() => return None,
            _ => Waiting::Disk(batch),
        };
        session.defer();
        Some(waiting)
    }
}

/// Maximum number of peers without a record at the broker.
pub(super) const NON_BROKER_PEERS_MAX: usize = CONTROL_CLIENTS_MAX + MANAGEMENT_CLIENTS_UPPER_BOUND;

/// The slot of a peer among all peers: its name in all lists.
///
/// ```text
///   0 .. NON_BROKER_PEERS_MAX    peers without a record at the broker: clients of the control socket, then those
///                                of the management API
///   NON_BROKER_PEERS_MAX ..      connections of the broker, each at NON_BROKER_PEERS_MAX + its id
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PeerId(u32);

impl PeerId {
    /// Returns the id of the peer in slot `index`, counted from 0.
    pub const fn from_index(index: usize) -> Self {
        assert!(index <= u32::MAX as usize, "there are fewer slots than 2^32");
        Self(index as u32)
    }

    /// Returns the index of the peer's slot, counted from 0.
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// Returns the broker's id of the connection, if the peer is of a kind that has one.
    #[inline]
    pub fn connection(self) -> Option<ConnectionId> {
        self.index().checked_sub(NON_BROKER_PEERS_MAX).map(ConnectionId::from_index)
    }
}

impl From<ConnectionId> for PeerId {
    #[inline]
    fn from(id: ConnectionId) -> Self {
        Self::from_index(NON_BROKER_PEERS_MAX + id.index())
    }
}

/// All peers, by slot. Memory is touched only up to the highest slot used so far.
pub(super) struct Peers<S> {
    slots: Vec<Option<Peer<S>>>,
    /// Number of peers that are accepted connections of the broker.
    connections: u32,
    /// Number of connections of the broker accepted since the start.
    connections_opened: u64,
}

impl<S> Peers<S> {
    pub(super) fn with_capacity(connections_max: usize) -> Self {
        let slots = Vec::with_capacity(Self::slots_max(connections_max));
        Self { slots, connections: 0, connections_opened: 0 }
    }

    /// Returns the number of slots for peers of all kinds.
    pub(super) const fn slots_max(connections_max: usize) -> usize {
        NON_BROKER_PEERS_MAX + connections_max
    }

    /// Returns the number of slots of broker connections that were ever used.
    pub(super) fn connections_seen(&self) -> usize {
        self.slots.len().saturating_sub(NON_BROKER_PEERS_MAX)
    }

    /// Returns the number of accepted connections of the broker that exist now.
    pub(super) const fn connections(&self) -> u32 {
        self.connections
    }

    /// Returns the number of connections of the broker accepted since the start.
    pub(super) const fn connections_opened(&self) -> u64 {
        self.connections_opened
    }

    /// Puts an accepted connection of the broker into its slot, and numbers it.
    pub(super) fn put_connection(&mut self, id: impl Into<PeerId>, mut peer: Peer<S>) {
        self.connections_opened += 1;
        peer.number = self.connections_opened;
        self.put(id, peer);
        self.connections += 1;
    }

    /// Counts an accepted connection of the broker as closed.
    pub(super) const fn note_connection_gone(&mut self) {
        self.connections -= 1;
    }

    /// Returns a peer, or `None` if it has been closed. Ids kept over several steps of a turn can be stale, because a
    /// socket may fail at any time.
    #[inline]
    pub(super) fn get(&self, id: impl Into<PeerId>) -> Option<&Peer<S>> {
        self.slots.get(id.into().index())?.as_ref()
    }

    /// Returns a peer, or `None` if it has been closed.
    #[inline]
    pub(super) fn get_mut(&mut self, id: impl Into<PeerId>) -> Option<&mut Peer<S>> {
        self.slots.get_mut(id.into().index())?.as_mut()
    }

    /// Puts a peer into its slot, which must be empty.
    pub(super) fn put(&mut self, id: impl Into<PeerId>, peer: Peer<S>) {
        let id = id.into();
        while self.slots.len() <= id.index() {
            self.slots.push(None);
        }
        let before = self.slots[id.index()].replace(peer);
        assert!(before.is_none(), "the slot of a new peer is empty");
    }

    pub(super) fn take(&mut self, id: impl Into<PeerId>) -> Option<Peer<S>> {
        self.slots.get_mut(id.into().index())?.take()
    }

    /// Returns an empty slot in `places`, which are slots of peers without a record at the broker.
    pub(super) fn free_non_broker_slot(&self, mut places: Range<usize>) -> Option<PeerId> {
        debug_assert!(
            places.end <= NON_BROKER_PEERS_MAX,
            "these are slots of peers without a record at the broker"
        );
        places.by_ref().map(PeerId::from_index).find(|id| self.get(*id).is_none())
    }

    /// Returns the ids of all peers.
    #[cfg(debug_assertions)]
    pub(super) fn ids(&self) -> impl Iterator<Item = PeerId> {
        (0..self.slots.len()).map(PeerId::from_index).filter(|id| self.get(*id).is_some())
    }

    /// Returns all peers.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Peer<S>> {
        self.slots.iter().flatten()
    }
}

/// The address of a peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PeerAddress {
    /// A network address, which may be one of this machine.
    Network(SocketAddr),
    /// A process on this machine, as the kernel reports it.
    Local {
        /// Id of the process; 0 if the kernel does not report it.
        pid: i32,
        /// The user that the process runs as.
        uid: u32,
    },
}

impl PeerAddress {
    /// Returns whether the peer is on this machine.
    pub fn is_loopback(self) -> bool {
        self.ip().is_none_or(|ip| ip.is_loopback())
    }

    /// Returns the source on whose log rate limit lines about the peer count.
    pub(super) fn source(self) -> LogSource {
        match self {
            Self::Network(address) => LogSource::Address(address.ip()),
            Self::Local { uid, .. } => LogSource::User(uid),
        }
    }

    /// Returns what a session must know of its peer.
    pub(super) fn peer(self) -> leveret_connection::Peer {
        let port = match self {
            Self::Network(address) => address.port(),
            Self::Local { .. } => 0,
        };
        leveret_connection::Peer { from_loopback: self.is_loopback(), source: self.source(), port }
    }

    /// Returns the unit by which peers share limited resources.
    pub(super) fn origin(self) -> Source {
        match self {
            Self::Network(address) => Source::of(address.ip()),
            Self::Local { uid, .. } => Source::of_user(uid),
        }
    }

    /// Returns the IP address, with IPv4-mapped addresses as IPv4. `None` for a process on this machine.
    const fn ip(self) -> Option<IpAddr> {
        match self {
            Self::Network(address) => Some(address.ip().to_canonical()),
            Self::Local { .. } => None,
        }
    }
}

/// Where a peer comes from: an IPv4 address, a /64 network of IPv6, or a user of this machine. A customer of a
/// provider has at least a /64, so single IPv6 addresses tell nothing apart.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Source([u8; 8]);

impl Source {
    /// Returns the source of a network address.
    pub(super) fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            // IPv6 addresses in use do not begin like this.
            IpAddr::V4(address) => Self::tagged(0, u32::from(address)),
            IpAddr::V6(address) => {
                let octets = address.octets();
                Self([0, 1, 2, 3, 4, 5, 6, 7].map(|at: usize| octets[at]))
            }
        }
    }

    /// Returns the source for a user of this machine who connects over a Unix socket.
    fn of_user(uid: u32) -> Self {
        // The prefix of IPv6 multicast, which is never a source address.
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
