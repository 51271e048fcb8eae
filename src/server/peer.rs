//! A peer of the event loop: its socket, its session, and the reasons why the peer waits.
//!
//! AMQP clients, operator clients and bridge links are peers in the same lists. Reading, writing, closing, deadlines
//! and budgets do not depend on the kind of a peer. [`Session`] handles its bytes according to the kind.
//!
//! # Invariants
//! - The kind of a peer never changes. An upgrade to WebSocket ends the operator client, and its stream gets a new peer.
//! - The slot index of a peer gives the id of its record at the broker, if it has one, and the other way round.

use core::fmt;
use core::net::{IpAddr, SocketAddr};
use core::ops::Range;

use leveret_connection::Client;
use leveret_core::batch::Batch;
use leveret_core::command::{Answer, ConnectionId, ReplyOrder};
use leveret_core::error::Fault;
use leveret_core::limits::{CONTROL_CLIENTS_MAX, MANAGEMENT_CLIENTS_UPPER_BOUND};
use leveret_core::log_limiter::LogSource;
use leveret_core::time::{Deadline, Now};
use leveret_queues::Shortage;

use super::blocked_publishers::BlockedOn;
use super::lost_clients::Lost;
use super::operators::OperatorClient;
use super::platform::Socket;
use super::stream::Stream;

/// Why a peer is not read.
///
/// The table lists when each kind of waiting ends, and how the loop notices that. The functions in the last column,
/// except `Engine::note_durable`, are evaluated before every sleep, so code that changes their result need not wake
/// the loop.
///
/// | waits for | ends when | the loop notices by |
/// |---|---|---|
/// | `Replies` | a part of its output was written | the socket becomes writable: output is written, the peer resumed |
/// | `Capacity` | memory or disk space became free | counters of the pools: `Engine::has_publisher_to_retry` |
/// | `Job` | the broker's job for its command is done | `Broker::has_work`, or after a read the disk thread's waker |
/// | `LongAnswer` | no other long answer is pending | a turn writes that answer: `Shared::resume_after_jobs` |
/// | `Handshake` | the worker returned the handshake | the worker's waker |
/// | `PasswordCheck` | the worker has checked the password | the worker's waker; before, `PasswordChecks::deadline` |
/// | `Disk` | the batch is durable | the disk thread's waker: `Engine::note_durable` |
///
/// Three more conditions are evaluated before every sleep:
/// - Enough input backlog is free for a peer on `Lists::for_backlog`.
/// - An accepted socket can get a slot (`Engine::may_admit`).
/// - The pending-write buffer has capacity again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum WaitReason {
    /// The peer waits for nothing and is read.
    No,
    /// Replies to the peer must be written first.
    Replies,
    /// There is no capacity for the peer's message.
    Capacity,
    /// A job that the peer's last command began at the broker is not done.
    Job,
    /// Less than these bytes are left in the memory for long answers of MQTT.
    LongAnswer(u32),
    /// The worker carries out a step of the TLS handshake. The number is the ticket of the job.
    Handshake(u64),
    /// The reply to the peer's last command is sent when this batch is durable.
    Disk(Batch),
    /// The reply to the peer's last command is sent when the worker has checked the password. The number is
    /// the ticket of the job.
    PasswordCheck(u64),
}

/// The stages of closing a peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum CloseStage {
    /// The peer is not being closed.
    No,
    /// The session has ended. Its output is written, then the writing side is shut down.
    Flushing,
    /// All output is written. Input is read and discarded until the peer closes the connection or the
    /// deadline is reached. If a socket with unread input were closed, the kernel could discard output that
    /// the peer has not received yet.
    Draining(Deadline),
    /// The peer is closed at the end of the turn.
    AtTurnEnd,
}

/// The session of a peer, by kind.
#[derive(Debug)]
pub(super) enum Session {
    /// A client of AMQP or MQTT. The broker has a record of it under the same id.
    Client(Client),
    /// An operator client. The broker has no record of it.
    Operator(OperatorClient),
    /// A bridge link to another broker. The broker's record under the same id is that of the bridge's own
    /// connection, which publishes the link's messages.
    Bridge(LinkStatus),
}

/// The status of a bridge link, as far as the event loop needs it.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct LinkStatus {
    /// The link has output to be written.
    pub(super) has_output: bool,
    /// The link has written a part of a frame and must write the rest.
    pub(super) has_remainder: bool,
    /// The link has output that waits for the disk.
    pub(super) awaits_disk: bool,
    /// The time at which the oldest of the message bodies that are arriving began.
    pub(super) body_since: Option<Now>,
    /// The earliest of the deadlines that are postponed when input is received.
    pub(super) input_deadline: Deadline,
}

impl Session {
    /// Returns the protocol state of a client.
    ///
    /// # Panics
    /// If the peer is of another kind.
    #[inline]
    pub(super) fn client(&mut self) -> &mut Client {
        match self {
            Self::Client(session) => session,
            Self::Operator(_) | Self::Bridge(_) => {
                unreachable!("operator clients and bridge links are called by their own functions")
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
            Self::Client(session) => session.deadline(),
            Self::Operator(client) => client.deadline(),
            // The deadlines of bridge links are in `Bridges`.
            Self::Bridge(_) => Deadline::NEVER,
        }
    }

    /// Returns the earliest of the deadlines that are postponed when input is received.
    pub(super) fn input_deadline(&self) -> Deadline {
        match self {
            Self::Client(session) => session.input_deadline(),
            Self::Operator(client) => client.deadline(),
            Self::Bridge(status) => status.input_deadline,
        }
    }

    /// Returns whether the session has output that waits for the disk.
    pub(super) fn awaits_disk(&self) -> bool {
        match self {
            Self::Client(session) => session.awaits_disk(),
            Self::Operator(client) => client.session.awaits_disk(),
            Self::Bridge(status) => status.awaits_disk,
        }
    }

    /// Returns whether the session waits for a message that the broker reads from the disk.
    pub(super) fn waits_for_get(&self) -> bool {
        matches!(self, Self::Operator(client) if client.session.awaits_read_back())
    }

    /// Returns whether the session has output other than deliveries.
    pub(super) fn has_output(&self) -> bool {
        match self {
            Self::Client(session) => session.has_output(),
            Self::Operator(client) => client.session.has_output(),
            Self::Bridge(status) => status.has_output,
        }
    }

    /// Returns whether the session has written a part of a frame and must write the rest.
    pub(super) fn has_remainder(&self) -> bool {
        match self {
            Self::Client(session) => session.has_remainder(),
            Self::Operator(_) => false,
            Self::Bridge(status) => status.has_remainder,
        }
    }
}

/// A peer.
#[derive(Debug)]
pub(super) struct Peer<S> {
    /// Sequence number of an accepted AMQP connection, from 1; 0 for other peers.
    pub(super) number: u64,
    pub(super) since: Now,
    pub(super) address: PeerAddress,
    pub(super) stream: Stream<S>,
    pub(super) traffic: Traffic,
    pub(super) session: Session,
    pub(super) waiting: WaitReason,
    /// The resource that the peer waits for while `waiting` is `Capacity`.
    pub(super) blocked_on: BlockedOn,
    pub(super) ending: CloseStage,
    /// The deferred reply, which is sent when the disk or a job is done, and its position among the deliveries.
    pub(super) deferred_reply: Option<(Result<Answer, Fault>, ReplyOrder)>,
    /// The peer has not yet logged in and opened a virtual host.
    pub(super) is_opening: bool,
    /// Before the login: the time of the broker's last reply to the peer, or of its acceptance.
    pub(super) last_reply_at: Now,
    /// The broker has replied to an AMQP client, an operator client has sent something, or a step of the TLS handshake
    /// is done.
    pub(super) is_past_first_contact: bool,
    /// When the connection is closed because its socket takes no output.
    pub(super) write_stall: Deadline,
    /// When the loop next checks whether the blocked publisher wants to close its connection.
    pub(super) close_check_due: Deadline,
    /// The value of the freed-capacity counter at the last check for `connection.close`, and the time of the check
    /// at which this value was first seen.
    pub(super) close_check_seen: Option<(u64, Now)>,
    /// Since when a client is lost: it has closed the connection or only its writing side, or the connection broke.
    /// `None`: it is not lost.
    pub(super) lost: Option<Lost>,
    /// When the peer is closed even if its last input has not been handled, or its last output not been written.
    pub(super) lost_deadline: Deadline,
    /// When the kernel last reported that the peer has sent something.
    pub(super) heard_at: Now,
    /// When the socket was last read, even if it had no data.
    pub(super) read_at: Now,
}

/// The bytes that all clients have sent and received since the start, without the overhead of TLS.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct TotalTraffic {
    pub(super) received_bytes: u64,
    pub(super) sent_bytes: u64,
}

/// The traffic of a client's connection since it was opened, without the overhead of TLS.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Traffic {
    pub(super) received_bytes: u64,
    /// Number of reads after which the session handled input.
    pub(super) reads: u64,
    pub(super) sent_bytes: u64,
    /// Number of write steps in which the socket took data. A step may make several system calls.
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
    /// Creates a peer whose stream has just begun.
    pub(super) fn new(stream: Stream<S>, address: PeerAddress, session: Session, now: Now) -> Self {
        Self {
            number: 0,
            since: now,
            address,
            stream,
            traffic: Traffic::default(),
            session,
            waiting: WaitReason::No,
            blocked_on: BlockedOn { shortage: Shortage::Commit, since: now },
            ending: CloseStage::No,
            deferred_reply: None,
            is_opening: false,
            last_reply_at: now,
            is_past_first_contact: false,
            write_stall: Deadline::NEVER,
            close_check_due: Deadline::NEVER,
            close_check_seen: None,
            lost: None,
            lost_deadline: Deadline::NEVER,
            heard_at: now,
            read_at: now,
        }
    }

    /// Returns the earliest deadline of the peer.
    pub(super) fn deadline(&self) -> Deadline {
        self.session
            .deadline()
            .earlier(self.lost_deadline)
            .earlier(self.write_stall)
            .earlier(self.close_check_due)
    }

    /// Returns whether the socket must be read before a due deadline is handled: input that has arrived may
    /// postpone the deadline.
    pub(super) fn must_read_first(&self, now: Now) -> bool {
        self.waiting == WaitReason::No
            && self.ending == CloseStage::No
            && self.read_at < now
            && self.session.input_deadline().is_due(now)
    }

    /// Defers the reply to a command if it cannot be sent yet. Returns what the peer then waits for; `None`
    /// if the reply is not deferred.
    ///
    /// The confirm of a publish may be sent later too, but meanwhile the connection continues to be read.
    pub(super) fn defer(
        &mut self,
        answer: &Result<Answer, Fault>,
        batch: Batch,
        durable: Batch,
    ) -> Option<WaitReason> {
        let session = self.session.client();
        // The reply need not wait if its batch is durable, or if the connection keeps it until then.
        if matches!(answer, Ok(Answer::Publish(_))) || batch <= durable || session.may_answer_before_durable()
        {
            return None;
        }
        session.defer();
        Some(WaitReason::Disk(batch))
    }
}

/// Maximum number of peers without a record at the broker.
pub(super) const NON_BROKER_PEERS_MAX: usize = CONTROL_CLIENTS_MAX + MANAGEMENT_CLIENTS_UPPER_BOUND;

/// The id of a peer: the index of its slot. Lists and results of jobs contain it.
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

    /// Returns the id of the peer's connection at the broker; `None` for a peer without a record at the
    /// broker.
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
    /// Number of AMQP and MQTT connections that exist now.
    connections: u32,
    /// Number of AMQP and MQTT connections accepted since the start.
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

    /// Returns the number of slots that connections of the broker have used since the start.
    pub(super) fn connections_seen(&self) -> usize {
        self.slots.len().saturating_sub(NON_BROKER_PEERS_MAX)
    }

    /// Returns the number of AMQP and MQTT connections that exist now.
    pub(super) const fn connections(&self) -> u32 {
        self.connections
    }

    /// Returns the number of AMQP and MQTT connections accepted since the start.
    pub(super) const fn connections_opened(&self) -> u64 {
        self.connections_opened
    }

    /// Puts an accepted AMQP or MQTT connection into its slot, and gives it a sequence number.
    pub(super) fn put_connection(&mut self, id: impl Into<PeerId>, mut peer: Peer<S>) {
        self.connections_opened += 1;
        peer.number = self.connections_opened;
        self.put(id, peer);
        self.connections += 1;
    }

    /// Notes that an accepted AMQP or MQTT connection was closed.
    pub(super) const fn note_connection_closed(&mut self) {
        self.connections -= 1;
    }

    /// Returns a peer; `None` if it has been closed. Any read or write may close a peer, so ids may be
    /// outdated.
    #[inline]
    pub(super) fn get(&self, id: impl Into<PeerId>) -> Option<&Peer<S>> {
        self.slots.get(id.into().index())?.as_ref()
    }

    /// Returns a peer; `None` if it has been closed.
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

    /// Returns an empty slot among `places`, which are slots for peers without a record at the broker.
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
    /// Returns whether the peer is connected over the loopback interface or a Unix socket.
    pub fn is_loopback(self) -> bool {
        self.ip().is_none_or(|ip| ip.is_loopback())
    }

    /// Returns the source of log lines about the peer, for the rate limit per source.
    pub(super) fn source(self) -> LogSource {
        match self {
            Self::Network(address) => LogSource::Address(address.ip()),
            Self::Local { uid, .. } => LogSource::User(uid),
        }
    }

    /// Returns the facts about the peer that the session of a client needs.
    pub(super) fn peer(self) -> leveret_connection::Peer {
        let port = match self {
            Self::Network(address) => address.port(),
            Self::Local { .. } => 0,
        };
        leveret_connection::Peer { from_loopback: self.is_loopback(), source: self.source(), port }
    }

    /// Returns the origin of the peer, to which limits per address apply.
    pub(super) fn origin(self) -> PeerOrigin {
        match self {
            Self::Network(address) => PeerOrigin::of(address.ip()),
            Self::Local { uid, .. } => PeerOrigin::of_local_user(uid),
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

/// The unit to which limits per address apply: an IPv4 address, a /64 network of IPv6, or a user of this
/// machine. A single IPv6 address would be no useful unit, because every customer of a provider has at least
/// a /64 network.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct PeerOrigin([u8; 8]);

impl PeerOrigin {
    /// Returns the origin for a network address.
    pub(super) fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            // Of the IPv6 addresses in use, only `::1` begins with four zero octets. It shares its origin with
            // 0.0.0.0, which is no source address.
            IpAddr::V4(address) => Self::tagged(0, u32::from(address)),
            IpAddr::V6(address) => {
                let octets = address.octets();
                Self([0, 1, 2, 3, 4, 5, 6, 7].map(|at: usize| octets[at]))
            }
        }
    }

    /// Returns the origin for a user of this machine that connects over a Unix socket.
    fn of_local_user(uid: u32) -> Self {
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
    fn an_ipv6_network_is_one_origin_and_each_local_user_is_one() {
        let v6 = |last: u8| PeerOrigin::of(IpAddr::from([1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, last]));
        assert_eq!(v6(1), v6(2));
        let v4 = |last: u8| PeerOrigin::of(IpAddr::from([127, 0, 0, last]));
        assert_ne!(v4(1), v4(2));
        let mapped = IpAddr::V6(core::net::Ipv4Addr::new(127, 0, 0, 1).to_ipv6_mapped());
        assert_eq!(v4(1), PeerOrigin::of(mapped), "whichever way it came");
        let user = |uid| PeerAddress::Local { pid: 7, uid }.origin();
        assert_eq!(user(1), PeerAddress::Local { pid: 8, uid: 1 }.origin());
        assert_ne!(user(1), user(2));
        assert_ne!(user(1), v4(1));
    }
}
