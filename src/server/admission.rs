//! Admission: gives connection slots to accepted sockets, and closes connections that have not logged in when
//! slots are needed.
//!
//! Connections that have not logged in are limited in number: [`Limits::handshakes_max`](leveret_core::limits::Limits) of
//! them, half of that (32 at most) from one address, and `tls_handshakes_max` over TLS. A few more connections can exist than
//! `connections_max` allows to be open ([`CONNECTIONS_SPARE`](leveret_core::limits)), so that a client can log in although it
//! is reached: [`Shared::place_for`] decides then whether it is refused.
//!
//! Clients of the management API have a fixed number of slots, and so have clients of the control socket. A client of the
//! management API that upgrades to MQTT over WebSocket needs a slot of an MQTT client, and is refused if there is none.
//!
//! Accepted sockets wait in one list until there is a slot for them. A socket whose address is at its limit
//! does not delay the sockets after it. When a limit is reached, a connection may be evicted: closed to free its slot.
//! The first choice is the connection that has been lost longest. Otherwise it is one that has not logged in:
//! [`Engine::closable_at`] returns from when on this is allowed, and the connection with the earliest such time is
//! evicted. The last choice is a connection that has ended, and whose client has not closed its side.
//!
//! # Invariants
//! - A connection that waits for the broker (a step of TLS, the check of its password) is not evicted. But it
//!   may be if the check is delayed because of wrong passwords from its address.
//! - A connection is evicted only for a waiting socket, or for a management client that upgrades to WebSocket. Either
//!   gets the free slot in the same call.
//! - When the list is full, the oldest socket of the address with the most sockets is closed, because its
//!   client has most likely given up. If no address has more than an eighth of the list, no more sockets are
//!   accepted instead.
//! - One turn calls `accept` at most [`ACCEPTS_PER_TURN`] times for each listener.

use leveret_connection::{Client, Settings, Stage};
use leveret_core::command::ConnectionId;
use leveret_core::limits::CONTROL_CLIENTS_MAX;
use leveret_core::log_limiter::LogKind;
use leveret_core::mem::{Class, HeapBytes, Memory, sort};
use leveret_core::time::{Deadline, Now};
use leveret_management::columns::name_of;
use leveret_management::operator_session::OperatorSession;
use leveret_management::request::Sockets;

use super::lost_clients::ReachedLimit;
use super::operators::Connections;
use super::operators::OperatorClient;
use super::peer::PeerId;
use super::peer::{CloseStage, Peer, Session, WaitReason};
use super::peer::{PeerAddress, PeerOrigin};
use super::platform::{AcceptFailure, Accepted, ListenerId, Platform, Socket};
use super::state::Engine;
use super::state::Shared;
use super::stream::Stream;

/// Maximum number of `accept` calls per listener and turn, and of sockets that get slots per turn.
const ACCEPTS_PER_TURN: usize = 64;
/// Maximum number of accepted sockets that wait for a slot, if there are enough file descriptors.
pub const WAITING_SOCKETS_MAX: usize = 256;
/// If an address has more than 1/8 of a full list, its oldest socket on the list is closed.
const ORIGIN_SHARE_DIVISOR: usize = 8;
/// Upper bound of the limit for connections from one address that have not logged in; the limit is half of
/// all of them. The check of a correct password therefore waits for at most this many checks of wrong
/// passwords from its address.
const PER_ADDRESS_MAX: usize = 32;
/// A connection whose client has not sent a complete first message can be evicted after this time, in
/// milliseconds.
const FIRST_MESSAGE_MS: u64 = 100;
/// The same time if the evicted connection and the waiting socket are from one address, in milliseconds. It
/// is longer because programs on one machine often start, and connect, at the same time.
const FIRST_MESSAGE_SAME_ADDRESS_MS: u64 = 1_000;
/// A connection that has not logged in can be evicted this time after the broker's last reply, in
/// milliseconds. A microcontroller needs up to 2 s for a step of TLS.
const NEXT_MESSAGE_MS: u64 = 3_000;
/// Time after which accepting is retried when the system could not accept a connection, in milliseconds.
const RETRY_MS: u64 = 100;

/// The listeners, the accepted sockets without a slot, and the connections that have not logged in.
#[derive(Debug)]
pub(super) struct Admission<S> {
    listeners: Vec<Listener>,
    /// Accepted sockets without a slot, in the order of their arrival.
    waiting: Vec<WaitingSocket<S>>,
    waiting_sockets_max: usize,
    /// The kind of client that got the last slot of the management API. Clients of the API and of metrics
    /// share these slots and get them alternately.
    last: OperatorKind,
    /// Connections that have not opened a virtual host.
    unauthenticated: Vec<ConnectionId>,
    /// Connections over TLS, before and after their login.
    tls_connections: u32,
    /// Memory of these connections, and what each of them takes.
    tls_memory: HeapBytes,
    tls_each_bytes: usize,
    /// Number of connections evicted since the start.
    evicted_count: u64,
    /// Number of messages since the start that were dropped with the connections of their publishers.
    dropped_messages_count: u64,
    /// The limit for which a client was refused, until there is a place again.
    refusing: Option<ReachedLimit>,
    /// The publisher that is closed, because the client that was just read has opened its connection instead.
    replaced: Option<ConnectionId>,
}

/// An accepted socket that waits for a slot.
#[derive(Debug)]
struct WaitingSocket<S> {
    kind: ListenerKind,
    with_tls: bool,
    accepted: Accepted<S>,
}

/// One listening socket.
#[derive(Debug)]
struct Listener {
    kind: ListenerKind,
    id: ListenerId,
    with_tls: bool,
    /// A connection may wait to be accepted. The kernel reports a new connection only once, so this flag is
    /// cleared only when `accept` finds none.
    is_ready: bool,
    /// When accepting is retried after the system could not accept a connection.
    retry: Deadline,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum ListenerKind {
    Amqp,
    Mqtt,
    Operator(OperatorKind),
}

/// The kind of an operator client. The broker has no records of such clients.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum OperatorKind {
    /// The management API, with a login.
    Api,
    /// Metrics without a login.
    Metrics,
    /// The control socket.
    Control,
}

/// The listeners in the configuration. An entry is `true` if the listener uses TLS.
pub(super) struct Listeners {
    pub(super) amqp: Vec<bool>,
    pub(super) mqtt: Vec<bool>,
    /// The listeners of the management API, followed by those for metrics.
    pub(super) management: Vec<bool>,
    /// Number of listeners of `management` that are for metrics.
    pub(super) metrics: usize,
}

/// A limit on connections of AMQP and MQTT that have not logged in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Limit {
    /// The limit for connections in the TLS handshake.
    TlsHandshakes,
    /// The memory for TLS connections, open ones included.
    TlsConnections,
    /// The limit for connections from one address.
    Address(PeerOrigin),
    /// The limit for connections that have not logged in.
    Handshakes,
    /// The slots of connections, open ones included.
    Connections,
}

impl Limit {
    fn counts<S: Socket>(self, peer: &Peer<S>) -> bool {
        match self {
            Self::TlsHandshakes => peer.stream.is_in_tls_handshake(),
            Self::TlsConnections => peer.stream.is_tls(),
            Self::Address(origin) => peer.address.origin() == origin,
            Self::Handshakes | Self::Connections => true,
        }
    }

    /// Returns whether the limit counts connections that have logged in.
    const fn counts_open(self) -> bool {
        matches!(self, Self::TlsConnections | Self::Connections)
    }

    /// Returns what the limit counts, as words for a text.
    const fn what(self) -> &'static str {
        match self {
            Self::TlsHandshakes => "TLS handshakes",
            Self::TlsConnections => "memory_limit for TLS connections",
            Self::Address(_) => "logins from one address: half of all, and 32 at most",
            Self::Handshakes => "logins at a time",
            Self::Connections => "connections_max",
        }
    }

    /// Returns whether a connection from this address cannot get a slot while the limit is reached.
    fn prevents_slot_for(self, origin: PeerOrigin, with_tls: bool) -> bool {
        match self {
            Self::TlsHandshakes | Self::TlsConnections => with_tls,
            Self::Address(other) => other == origin,
            Self::Handshakes | Self::Connections => true,
        }
    }
}

const CONTROL: ListenerKind = ListenerKind::Operator(OperatorKind::Control);

/// Connections to be evicted, each with the limit that is reached. There is at most
/// one per limit.
type Evicted = heapless::Vec<(PeerId, &'static str), 5>;

/// Bytes for each connection that may log in at a time.
pub(super) const SLOT_BYTES: usize = size_of::<ConnectionId>();

/// Returns the bytes of the list of waiting sockets, for sockets of type `S`.
pub(super) const fn waiting_bytes<S>() -> usize {
    WAITING_SOCKETS_MAX * size_of::<WaitingSocket<S>>()
}

impl Listener {
    /// Creates a listener. It is marked as ready, because a connection may have arrived before the first
    /// event.
    const fn new(kind: ListenerKind, id: ListenerId, with_tls: bool) -> Self {
        Self { kind, id, with_tls, is_ready: true, retry: Deadline::NEVER }
    }

    /// Marks the listener as ready if a retry is due.
    const fn update_retry(&mut self, now: Now) {
        if self.retry.is_due(now) {
            (self.is_ready, self.retry) = (true, Deadline::NEVER);
        }
    }

    /// Handles a failure to accept. If a single connection failed, accepting is retried at once; if the
    /// system could not accept any, after [`RETRY_MS`].
    const fn note_failure(&mut self, failure: AcceptFailure, now: Now) {
        match failure {
            AcceptFailure::Empty => self.is_ready = false,
            AcceptFailure::Connection => {}
            AcceptFailure::System => (self.is_ready, self.retry) = (false, now.after_ms(RETRY_MS)),
        }
    }
}

impl<S> Admission<S> {
    /// Creates the admission without connections. `waiting_sockets_max` is the maximum number of accepted
    /// sockets that wait for a slot. A TLS connection needs `tls_each_bytes`.
    pub(super) fn new(
        listeners: &Listeners,
        handshakes_max: usize,
        waiting_sockets_max: usize,
        memory: &Memory,
        tls_each_bytes: usize,
    ) -> Self {
        let first_metrics = listeners.management.len() - listeners.metrics;
        let amqp = listeners.amqp.iter().enumerate();
        let amqp = amqp.map(|(at, tls)| Listener::new(ListenerKind::Amqp, ListenerId::Amqp(at), *tls));
        let mqtt = listeners.mqtt.iter().enumerate();
        let mqtt = mqtt.map(|(at, tls)| Listener::new(ListenerKind::Mqtt, ListenerId::Mqtt(at), *tls));
        let management = listeners.management.iter().enumerate().map(|(at, tls)| {
            let kind = if at < first_metrics { OperatorKind::Api } else { OperatorKind::Metrics };
            Listener::new(ListenerKind::Operator(kind), ListenerId::Management(at), *tls)
        });
        let control = Listener::new(CONTROL, ListenerId::Control, false);
        Self {
            listeners: amqp.chain(mqtt).chain(management).chain([control]).collect(),
            waiting: Vec::with_capacity(waiting_sockets_max),
            waiting_sockets_max,
            last: OperatorKind::Metrics,
            unauthenticated: Vec::with_capacity(handshakes_max),
            tls_connections: 0,
            tls_memory: HeapBytes::in_memory(memory, Class::Clients),
            tls_each_bytes,
            evicted_count: 0,
            dropped_messages_count: 0,
            refusing: None,
            replaced: None,
        }
    }

    /// Notes that a connection may have arrived at a listener.
    pub(super) fn note_event(&mut self, id: ListenerId) {
        self.listeners.iter_mut().filter(|listener| listener.id == id).for_each(|one| one.is_ready = true);
    }

    /// Removes all listeners except that of the control socket, and closes the waiting sockets that they accepted.
    pub(super) fn stop_listening(&mut self) {
        self.listeners.retain(|listener| listener.kind == CONTROL);
        self.waiting.retain(|waiting| waiting.kind == CONTROL);
    }

    /// Returns whether another socket can be appended to the list of waiting sockets.
    fn has_capacity(&self) -> bool {
        self.waiting.len() < self.waiting_sockets_max || self.largest_origin().is_some()
    }

    /// Returns the address with the most sockets on the list, if it has more than its share of the list.
    fn largest_origin(&self) -> Option<PeerOrigin> {
        let origins = self.waiting.iter().map(|waiting| waiting.accepted.address.origin());
        let mut origins: heapless::Vec<PeerOrigin, WAITING_SOCKETS_MAX> =
            origins.take(WAITING_SOCKETS_MAX).collect();
        sort(&mut origins);
        let largest = origins.chunk_by(|one, next| one == next).max_by_key(|all| all.len())?;
        (largest.len() > self.waiting_sockets_max / ORIGIN_SHARE_DIVISOR).then_some(largest[0])
    }

    /// Appends a socket to the list. If the list is full, closes the oldest socket of the address with the
    /// most sockets first.
    fn push(&mut self, waiting: WaitingSocket<S>) {
        if self.waiting.len() >= self.waiting_sockets_max
            && let Some(origin) = self.largest_origin()
        {
            let oldest = self.waiting.iter().position(|other| other.accepted.address.origin() == origin);
            oldest.map(|at| self.waiting.remove(at));
        }
        self.waiting.push(waiting);
    }

    /// Removes a connection from the unauthenticated ones, because it has logged in and opened a virtual
    /// host.
    pub(super) fn note_opened(&mut self, id: ConnectionId) {
        self.unauthenticated.retain(|other| *other != id);
    }

    /// Notes that a connection of the broker was closed.
    pub(super) fn note_closed(&mut self, id: ConnectionId, was_tls: bool) {
        self.unauthenticated.retain(|other| *other != id);
        if was_tls {
            self.tls_connections -= 1;
            self.tls_memory.subtract(self.tls_each_bytes);
        }
    }

    /// Notes that a connection exists that has not logged in.
    fn note_accepted(&mut self, id: ConnectionId, with_tls: bool) {
        self.unauthenticated.push(id);
        if with_tls {
            self.tls_connections += 1;
            self.tls_memory.add(self.tls_each_bytes);
        }
    }

    /// Returns for how many more connections over TLS there is memory.
    pub(super) fn tls_connections_free(&self) -> usize {
        self.tls_memory.free().checked_div(self.tls_each_bytes).unwrap_or(usize::MAX)
    }

    /// Returns the number of TLS connections of clients that exist now.
    pub(super) const fn tls_connections(&self) -> u32 {
        self.tls_connections
    }

    /// Counts messages that are dropped with the connection of their publisher.
    pub(super) const fn note_dropped_messages(&mut self, count: u64) {
        self.dropped_messages_count += count;
    }

    /// Returns the number of messages since the start that were dropped with the connections of their publishers.
    pub(super) const fn dropped_messages_count(&self) -> u64 {
        self.dropped_messages_count
    }

    /// Notes that a client was refused because of this limit; `None`: that there was a place for one.
    pub(super) const fn set_refusing(&mut self, limit: Option<ReachedLimit>) {
        self.refusing = limit;
    }

    /// Returns the limit because of which the last client was refused that tried to open a connection.
    pub(super) const fn refusing(&self) -> Option<ReachedLimit> {
        self.refusing
    }

    /// Sets the publisher that is to be closed for the client that is being read.
    pub(super) const fn set_replaced(&mut self, publisher: Option<ConnectionId>) {
        self.replaced = publisher;
    }

    /// Removes and returns the publisher that is to be closed.
    pub(super) const fn take_replaced(&mut self) -> Option<ConnectionId> {
        self.replaced.take()
    }

    /// Returns the number of connections evicted since the start.
    pub(super) const fn evicted_count(&self) -> u64 {
        self.evicted_count
    }
}

impl<P: Platform> Engine<P> {
    /// Accepts sockets, and gives slots to waiting ones.
    pub(super) fn admit(&mut self) {
        for at in 0..self.shared.admission.listeners.len() {
            self.accept_at(at);
        }
        for _ in 0..ACCEPTS_PER_TURN {
            let Ok((at, evicted)) = self.next_admission() else { return };
            evicted.into_iter().for_each(|(id, limit)| self.evict(id, limit));
            let kind = self.shared.admission.waiting[at].kind;
            if !matches!(kind, ListenerKind::Operator(_)) && self.shared.broker.connections_free() == 0 {
                // The broker clears the record of an evicted connection first. Until then the socket waits.
                return;
            }
            let WaitingSocket { kind, with_tls, accepted } = self.shared.admission.waiting.remove(at);
            let address = accepted.address;
            let begun = match kind {
                ListenerKind::Amqp => self.shared.begin_client(accepted, with_tls, Client::amqp),
                ListenerKind::Mqtt => self.shared.begin_client(accepted, with_tls, Client::mqtt),
                ListenerKind::Operator(kind) => self.begin_operator(kind, accepted, with_tls),
            };
            if let Err(error) = begun {
                let text = format_args!("{address}: a connection could not be set up: {error}");
                self.shared.resources.log.warn(self.shared.now, address.source(), LogKind::Shortage, text);
            }
        }
    }

    /// Returns whether [`Self::admit`] would make progress now, without an event and without time passing.
    pub(super) fn may_admit(&self) -> bool {
        let admission = &self.shared.admission;
        let mut listeners = admission.listeners.iter();
        listeners.any(|one| one.is_ready && self.is_open(one.kind)) && admission.has_capacity()
            || self.next_admission().is_ok()
    }

    /// Returns when to call [`Self::admit`] if nothing else happens.
    pub(super) fn admission_deadline(&self) -> Deadline {
        let retries = self.shared.admission.listeners.iter().map(|listener| listener.retry);
        retries.fold(self.next_admission().err().unwrap_or(Deadline::NEVER), Deadline::earlier)
    }

    /// Returns whether sockets of this kind may be accepted. Those of the control socket may only after
    /// [`Self::open_control_socket`]. Before, another process may be using the data directory.
    const fn is_open(&self, kind: ListenerKind) -> bool {
        self.operators.accepts_control_clients || !matches!(kind, CONTROL)
    }

    fn accept_at(&mut self, at: usize) {
        let now = self.shared.now;
        self.shared.admission.listeners[at].update_retry(now);
        for _ in 0..ACCEPTS_PER_TURN {
            let Listener { kind, id, with_tls, is_ready, .. } = self.shared.admission.listeners[at];
            if !is_ready || !self.is_open(kind) || !self.shared.admission.has_capacity() {
                return;
            }
            match self.shared.platform.accept(id, &mut self.shared.resources.log, now) {
                Ok(accepted) if kind == CONTROL && !self.may_use_control(accepted.address) => {}
                Ok(accepted) => self.shared.admission.push(WaitingSocket { kind, with_tls, accepted }),
                Err(failure) => self.shared.admission.listeners[at].note_failure(failure, now),
            }
        }
    }

    /// Returns whether a client may use the control socket: only root and the broker's user may. The mode of
    /// the socket's file already ensures this; here the user that the kernel reports is checked too.
    fn may_use_control(&mut self, address: PeerAddress) -> bool {
        let ours = self.operators.own_uid;
        let may = matches!(address, PeerAddress::Local { uid, .. } if uid == 0 || uid == ours);
        if !may {
            let text = format_args!("leveret ctl is only for root and user {ours}, not for {address}");
            self.shared.resources.log.warn(self.shared.now, address.source(), LogKind::Control, text);
        }
        may
    }

    /// Returns the position of the next socket that gets a slot, and the connections to be evicted for it,
    /// usually none.
    ///
    /// # Errors
    /// No socket can get a slot now. The error is the deadline until which this is so, if nothing else
    /// changes.
    fn next_admission(&self) -> Result<(usize, Evicted), Deadline> {
        let ways = [
            self.next_client(),
            self.next_operator(|kind| kind == OperatorKind::Control),
            self.next_operator(|kind| kind != OperatorKind::Control),
        ];
        let mut earliest = Deadline::NEVER;
        for next in ways {
            match next {
                Ok(found) => return Ok(found),
                Err(deadline) => earliest = earliest.earlier(deadline),
            }
        }
        Err(earliest)
    }

    /// Like [`Self::next_admission`], for clients of AMQP and MQTT. Chooses the first socket for which no limit is
    /// reached, or for which connections can be evicted.
    fn next_client(&self) -> Result<(usize, Evicted), Deadline> {
        let mut earliest = Deadline::NEVER;
        let mut reached: heapless::Vec<Limit, 24> = heapless::Vec::new();
        let waiting = self.shared.admission.waiting.iter().enumerate();
        for (at, WaitingSocket { with_tls, accepted, .. }) in
            waiting.filter(|(_, one)| matches!(one.kind, ListenerKind::Amqp | ListenerKind::Mqtt))
        {
            let origin = accepted.address.origin();
            if reached.iter().any(|limit| limit.prevents_slot_for(origin, *with_tls)) {
                continue;
            }
            let [of_address, all] = [Limit::Address(origin), Limit::Connections];
            let over_tls = [of_address, Limit::TlsHandshakes, Limit::TlsConnections, Limit::Handshakes, all];
            let plain = [of_address, Limit::Handshakes, all];
            match self.slot_for_client(if *with_tls { &over_tls } else { &plain }) {
                Ok(evicted) => return Ok((at, evicted)),
                Err((limit, deadline)) => {
                    earliest = earliest.earlier(deadline);
                    // If the list of reached limits is full, this limit is only checked again for the next
                    // socket.
                    let _ = reached.push(limit);
                }
            }
        }
        Err(earliest)
    }

    /// Like [`Self::next_admission`], for the kinds of operator clients for which `is_of` returns `true`;
    /// they share slots. Chooses a socket from the address with the fewest slots, and among these one of the
    /// kind that did not get the last slot.
    fn next_operator(&self, is_of: fn(OperatorKind) -> bool) -> Result<(usize, Evicted), Deadline> {
        let waiting = self.shared.admission.waiting.iter().enumerate();
        let waiting = waiting.filter_map(|(at, one)| match one.kind {
            ListenerKind::Operator(kind) if is_of(kind) => Some((at, kind, one.accepted.address.origin())),
            _ => None,
        });
        let held = |kind, origin| {
            let peers = self.slots(kind).filter_map(|id| self.shared.peers.get(id));
            peers.filter(|peer| peer.address.origin() == origin).count()
        };
        let next = waiting.min_by_key(|(at, kind, origin)| {
            (held(*kind, *origin), *kind == self.shared.admission.last, *at)
        });
        let Some((at, kind, _)) = next else { return Err(Deadline::NEVER) };
        if self.free_slot(kind).is_some() {
            return Ok((at, Evicted::new()));
        }
        let id = self.first_closable(self.slots(kind), FIRST_MESSAGE_MS)?;
        Ok((at, Evicted::from_iter([(id, "clients of the management API at a time")])))
    }

    /// Returns the connections to be evicted for a new client of AMQP or MQTT to which these limits apply. The narrowest
    /// limit comes first, because a connection evicted for it also frees capacity of the wider limits.
    ///
    /// # Errors
    /// The limit that is reached, and the deadline before which no connection can be evicted for it.
    fn slot_for_client(&self, all: &[Limit]) -> Result<Evicted, (Limit, Deadline)> {
        let Shared { admission, limits, peers, broker, .. } = &self.shared;
        let ids_of = |limit: Limit| {
            let ids = admission.unauthenticated.iter().map(|id| PeerId::from(*id));
            ids.filter(move |id| peers.get(*id).is_some_and(|peer| limit.counts(peer)))
        };
        let is_reached = |limit: Limit| match limit {
            Limit::TlsHandshakes => ids_of(limit).count() >= limits.tls_handshakes_max as usize,
            Limit::TlsConnections => admission.tls_connections_free() == 0,
            Limit::Address(_) => {
                ids_of(limit).count() >= (limits.handshakes_max as usize / 2).clamp(1, PER_ADDRESS_MAX)
            }
            Limit::Handshakes => admission.unauthenticated.len() >= limits.handshakes_max as usize,
            Limit::Connections => {
                peers.connections() >= limits.connection_places() || broker.connections_free() == 0
            }
        };
        if peers.connections() < limits.connection_places()
            && broker.connections_free() == 0
            && broker.is_clearing_connections()
        {
            // The records of closed connections are being cleared. The broker's jobs keep the loop awake until then.
            return Err((Limit::Connections, Deadline::NEVER));
        }
        let mut evicted = Evicted::new();
        for limit in all.iter().copied().filter(|limit| is_reached(*limit)) {
            let is_freed = evicted.iter().any(|(other, _)| {
                let is_counted =
                    limit.counts_open() || admission.unauthenticated.iter().any(|id| *other == (*id).into());
                is_counted && peers.get(*other).is_some_and(|peer| limit.counts(peer))
            });
            if !is_freed {
                let first_message_ms = match limit {
                    Limit::Address(_) => FIRST_MESSAGE_SAME_ADDRESS_MS,
                    Limit::TlsHandshakes | Limit::TlsConnections | Limit::Handshakes | Limit::Connections => {
                        FIRST_MESSAGE_MS
                    }
                };
                let open = |find: fn(&Self, Limit) -> Option<PeerId>| {
                    limit.counts_open().then(|| find(self, limit)).flatten()
                };
                let closable = match open(Self::lost_longest) {
                    Some(lost) => Ok(lost),
                    None => self.first_closable(ids_of(limit), first_message_ms),
                };
                let closable = closable.or_else(|deadline| open(Self::first_ended).ok_or(deadline));
                let id = closable.map_err(|deadline| (limit, deadline))?;
                let is_in = evicted.push((id, limit.what())).is_ok();
                assert!(is_in, "at most one is closed for each limit");
            }
        }
        Ok(evicted)
    }

    /// Returns the connections of clients that a limit counts.
    fn clients_of(&self, limit: Limit) -> impl Iterator<Item = (PeerId, &Peer<P::Socket>)> {
        let ids = (0..self.shared.peers.connections_seen()).map(ConnectionId::from_index).map(PeerId::from);
        let peers = ids.filter_map(|id| Some((id, self.shared.peers.get(id)?)));
        peers.filter(move |(_, peer)| matches!(peer.session, Session::Client(_)) && limit.counts(peer))
    }

    /// Returns the connection that has been lost longest.
    fn lost_longest(&self, limit: Limit) -> Option<PeerId> {
        let lost = self.clients_of(limit).filter_map(|(id, peer)| Some((peer.lost?.since, id)));
        lost.min().map(|(_, id)| id)
    }

    /// Returns a connection that has ended, except that its client has not taken the last output or not closed its side.
    fn first_ended(&self, limit: Limit) -> Option<PeerId> {
        let mut clients = self.clients_of(limit);
        clients.find(|(_, peer)| peer.ending != CloseStage::No).map(|(id, _)| id)
    }

    /// Returns which of these connections is to be evicted: an idle one if there is any, else one that is
    /// receiving or sending a message. Among these it is the one with the earliest [`Self::closable_at`].
    ///
    /// # Errors
    /// The deadline before which none of them can be evicted.
    fn first_closable(
        &self,
        ids: impl Iterator<Item = PeerId>,
        first_message_ms: u64,
    ) -> Result<PeerId, Deadline> {
        let (mut first, mut earliest) = (None, Deadline::NEVER);
        for id in ids {
            let Some(peer) = self.shared.peers.get(id) else { continue };
            let at = self.closable_at(id, peer, first_message_ms);
            let is_busy = matches!(&peer.session, Session::Operator(client) if !client.session.is_empty());
            if at.is_due(self.shared.now) {
                first = first.into_iter().chain([(is_busy, at, id)]).min();
            } else {
                earliest = earliest.earlier(at);
            }
        }
        first.map(|(_, _, id)| id).ok_or(earliest)
    }

    /// Returns from when on a connection can be evicted. If its client has not sent a complete first message,
    /// that is `first_message_ms` after it was accepted.
    fn closable_at(&self, id: PeerId, peer: &Peer<P::Socket>, first_message_ms: u64) -> Deadline {
        let is_over = match &peer.session {
            Session::Client(session) => session.stage() == Stage::Over,
            Session::Operator(_) | Session::Bridge(_) => false,
        };
        let is_answered = peer.ending == CloseStage::Flushing && matches!(peer.session, Session::Operator(_));
        if is_over || peer.ending != CloseStage::No && !is_answered {
            return peer.last_reply_at.after_ms(0);
        }
        let has_tokens = || self.shared.worker.checks.has_tokens(self.shared.now, peer.address.origin());
        match (peer.waiting, &peer.session) {
            (WaitReason::Handshake(_), _) => Deadline::NEVER,
            (WaitReason::PasswordCheck(_), _) if has_tokens() => Deadline::NEVER,
            _ if !peer.is_past_first_contact => peer.last_reply_at.after_ms(first_message_ms),
            (_, Session::Operator(client)) => {
                let is_ours = client.session.awaits_disk() || client.session.awaits_read_back();
                let holds_files = self.operators.backup_client == Some(id);
                if is_ours || holds_files { Deadline::NEVER } else { client.closable_at }
            }
            (_, Session::Client(_) | Session::Bridge(_)) => peer.last_reply_at.after_ms(NEXT_MESSAGE_MS),
        }
    }

    /// Closes a connection to free its slot. `limit` is the configuration key of the limit that is reached,
    /// for the log.
    fn evict(&mut self, id: PeerId, limit: &str) {
        let Some(peer) = self.shared.peers.get(id) else { return };
        let address = peer.address;
        if let (Some(_), Some(connection)) = (peer.lost, id.connection()) {
            self.shared.drop_lost(connection, "another connection needed the record");
        } else if peer.ending != CloseStage::No && !peer.is_opening {
            log::debug!("{address}: closed in favour of another client ({limit})");
        } else if id.connection().is_some() {
            self.shared.admission.evicted_count += 1;
            let text = format_args!(
                "{address}: closed before its login in favour of another connection: the limit is reached \
                 ({limit})"
            );
            self.shared.resources.log.warn(self.shared.now, address.source(), LogKind::Shortage, text);
        } else {
            log::debug!("{address}: closed in favour of another client ({limit})");
        }
        self.shared.close_at_turn_end(id);
        self.close();
    }

    /// Returns the slots for clients of this kind. Clients of the API and of metrics share the same slots.
    fn slots(&self, kind: OperatorKind) -> impl Iterator<Item = PeerId> + use<P> {
        self.slot_range(kind).map(PeerId::from_index)
    }

    fn slot_range(&self, kind: OperatorKind) -> core::ops::Range<usize> {
        match kind {
            OperatorKind::Control => 0..CONTROL_CLIENTS_MAX,
            OperatorKind::Api | OperatorKind::Metrics => {
                let most = self.shared.limits.management_clients_max as usize;
                CONTROL_CLIENTS_MAX..CONTROL_CLIENTS_MAX + most
            }
        }
    }

    fn free_slot(&self, kind: OperatorKind) -> Option<PeerId> {
        self.shared.peers.free_non_broker_slot(self.slot_range(kind))
    }

    /// Creates the session of an operator client in a free slot.
    fn begin_operator(
        &mut self,
        kind: OperatorKind,
        accepted: Accepted<P::Socket>,
        with_tls: bool,
    ) -> std::io::Result<()> {
        let Some(id) = self.free_slot(kind) else { return Err(std::io::Error::other("no slot is free")) };
        let Accepted { mut socket, address } = accepted;
        self.shared.platform.register(&mut socket, id)?;
        let session = match kind {
            OperatorKind::Control => OperatorSession::default(),
            OperatorKind::Metrics => OperatorSession::for_metrics(),
            OperatorKind::Api => OperatorSession::for_network(address.is_loopback()),
        };
        if kind != OperatorKind::Control {
            self.shared.admission.last = kind;
        }
        let client = OperatorClient::new(session, self.shared.now);
        self.shared.lists.deadlines.lower(id, client.deadline());
        let mut peer = Peer::new(Stream::new(socket), address, Session::Operator(client), self.shared.now);
        if with_tls {
            peer.stream.begin_tls();
        }
        self.shared.peers.put(id, peer);
        self.shared.list_to_read(id);
        Ok(())
    }

    /// Makes an operator client a client of MQTT, if its last request was for an upgrade to WebSocket. Otherwise, or if
    /// a limit is reached, returns `false`. A refusal is the reply to the request.
    pub(super) fn upgrade(&mut self, id: PeerId) -> bool {
        let Some(Peer { session: Session::Operator(client), address, stream, .. }) =
            self.shared.peers.get_mut(id)
        else {
            return false;
        };
        let Some(response) = client.session.take_upgrade() else { return false };
        let (address, origin) = (*address, address.origin());
        // The TLS handshake is over.
        let of_address = Limit::Address(origin);
        let over_tls = [of_address, Limit::TlsConnections, Limit::Handshakes, Limit::Connections];
        let plain = [of_address, Limit::Handshakes, Limit::Connections];
        let is_tls = stream.is_tls();
        let slot = match self.shared.is_stopping() {
            true => Err("the broker is stopping".to_string()),
            false => self
                .slot_for_client(if is_tls { &over_tls } else { &plain })
                .map_err(|(limit, _)| format!("the limit of connections is reached ({})", limit.what())),
        };
        let begun = slot.and_then(|evicted| {
            evicted.into_iter().for_each(|(id, limit)| self.evict(id, limit));
            self.shared.broker.connect().ok_or_else(|| "no connection record is free".to_string())
        });
        match begun {
            Ok(connection) => {
                self.begin_websocket(id, connection, &response);
                true
            }
            Err(why) => {
                let text = format_args!("{address}: MQTT over WebSocket refused: {why}");
                self.shared.resources.log.warn(self.shared.now, address.source(), LogKind::Shortage, text);
                if let Some(Peer { session: Session::Operator(client), .. }) = self.shared.peers.get_mut(id) {
                    client.session.refuse_upgrade(&why);
                }
                false
            }
        }
    }

    /// Moves the stream of an operator client to a new MQTT connection, and writes the response to the upgrade.
    fn begin_websocket(&mut self, id: PeerId, connection: ConnectionId, response: &[u8]) {
        let Some(mut before) = self.shared.peers.take(id) else { return };
        self.release_operator(id, &mut before);
        self.shared.lists.deadlines.remove(id);
        self.shared.lists.remove_closed(&self.shared.peers);
        let Peer { mut stream, address, session, .. } = before;
        if let Err(error) = self.shared.platform.register(&mut stream.socket, connection.into()) {
            let (broker, mut context) = self.shared.broker_mut();
            broker.release(&mut context, connection);
            stream.release(&mut self.shared.buffers);
            self.shared.platform.close(stream.socket);
            log::debug!("{address}: a connection could not be set up: {error}");
            return;
        }
        stream.begin_websocket();
        stream.assume_readable();
        let mut client =
            Client::mqtt(self.shared.now, connection, address.peer(), &self.shared.resources.settings);
        if let Session::Operator(OperatorClient { certificate_name: Some(name), .. }) = &session {
            client.set_certificate_name(name);
        }
        let sent = stream.write_all(&mut self.shared.buffers, response);
        self.shared.put_client(connection, stream, address, client);
        if let Some(peer) = self.shared.peers.get_mut(connection) {
            peer.is_past_first_contact = true;
        }
        match sent {
            Ok(_) => self.shared.after_session(connection.into()),
            Err(error) => self.shared.note_write_failed(connection.into(), &error),
        }
    }
}

impl<P: Platform> Shared<P> {
    /// Creates the session of a client's connection with `new`, and its record at the broker.
    fn begin_client(
        &mut self,
        accepted: Accepted<P::Socket>,
        with_tls: bool,
        new: fn(Now, ConnectionId, leveret_connection::Peer, &Settings) -> Client,
    ) -> std::io::Result<()> {
        let Accepted { mut socket, address } = accepted;
        let Some(id) = self.broker.connect() else { return Err(std::io::Error::other("no record is free")) };
        if let Err(error) = self.platform.register(&mut socket, id.into()) {
            let (broker, mut context) = self.broker_mut();
            broker.release(&mut context, id);
            return Err(error);
        }
        let client = new(self.now, id, address.peer(), &self.resources.settings);
        let mut stream = Stream::new(socket);
        if with_tls {
            stream.begin_tls();
        }
        self.put_client(id, stream, address, client);
        Ok(())
    }

    /// Puts a connection that the broker has a record of into its slot.
    fn put_client(
        &mut self,
        id: ConnectionId,
        stream: Stream<P::Socket>,
        address: PeerAddress,
        client: Client,
    ) {
        log::debug!("connection {}: from {address}", id.index());
        let with_tls = stream.is_tls();
        let mut peer = Peer::new(stream, address, Session::Client(client), self.now);
        peer.is_opening = true;
        self.lists.deadlines.lower(id.into(), peer.deadline());
        self.peers.put_connection(id, peer);
        self.admission.note_accepted(id, with_tls);
        if self.broker.is_tracing() {
            self.set_firehose_name(id);
        }
        self.list_to_read(id);
    }

    /// Sets the connection's name for the firehose.
    #[cold]
    pub(super) fn set_firehose_name(&mut self, connection: ConnectionId) {
        let pools = &self.resources.pools;
        let peers =
            Connections { peers: &self.peers, pools, now: self.now, unix_ms: 0, is_over_budget: false };
        if let Some(socket) = peers.at(connection) {
            self.broker.set_firehose_name(connection, &name_of(&socket));
        }
    }
}
