//! Admission: which accepted socket gets a connection slot, and which connection is closed for it.
//!
//! Connections that have not logged in are limited in number: `handshakes_max` of them, half of that (32 at most)
//! from one address. Those over TLS are limited by `tls_handshakes_max` and `tls_connections_max`. Clients of the
//! management API and of the control socket have a fixed number of slots each.
//!
//! Accepted sockets wait in one list until there is a slot for them. A socket whose address is at its limit does not
//! hold up those behind it. When a limit is reached, the connection that could be closed first loses its slot: see
//! [`Engine::closable_at`].
//!
//! # Invariants
//! - A connection that waits for the broker (a step of TLS, the check of its password) is not closed for another.
//! - A connection is closed for another only if that one gets its slot in the same call.
//! - When the list is full, the oldest connection of the address with the most of them is closed: its client has most
//!   likely gone. Nothing more is accepted when no address has more than an eighth of the list.
//! - One turn calls `accept` at most [`ACCEPTS_PER_TURN`] times for each listener.

use leveret_connection::Stage;
use leveret_core::command::ConnectionId;
use leveret_core::limits::CONTROL_CLIENTS_MAX;
use leveret_core::log_limiter::LogKind;
use leveret_core::mem::sort;
use leveret_core::time::{Deadline, Now};
use leveret_management::columns::name_of;
use leveret_management::operator_session::OperatorSession;
use leveret_management::request::Sockets;

use super::operators::Connections;
use super::operators::OperatorClient;
use super::peer::PeerId;
use super::peer::{self, Ending, Peer, Session};
use super::peer::{PeerAddress, Source};
use super::platform::{AcceptFailure, Accepted, ListenerId, Platform, Socket};
use super::state::Engine;
use super::state::Shared;

/// Maximum number of `accept` calls per listener and turn, and of connections admitted per turn.
const ACCEPTS_PER_TURN: usize = 64;
/// Maximum number of accepted sockets that wait for a slot, if there are enough file descriptors.
pub const WAITING_SOCKETS_MAX: usize = 256;
/// An address with more than this part of a full list loses its oldest connection in it.
const CROWD_PART: usize = 8;
/// Connections of one address that have not logged in: half of `handshakes_max`, and at most this many. A
/// right password therefore waits behind at most this many wrong ones of its address.
const PER_ADDRESS_MAX: usize = 32;
/// A connection to which the broker has not answered anything yet can be closed for another after this time: its
/// client has not sent a complete first message.
const UNANSWERED_MS: u64 = 100;
/// As `UNANSWERED_MS`, if both connections come from one address: programs that start together on one machine wait
/// for each other.
const UNANSWERED_OF_ADDRESS_MS: u64 = 1_000;
/// A connection that has been answered and has not logged in can be closed for another this time after the last
/// answer. A microcontroller needs up to 2 s for a step of TLS.
const SILENT_MS: u64 = 3_000;
/// Time until accepting is tried again when the system could not, in milliseconds.
const RETRY_MS: u64 = 100;

/// The listeners, and the connections that have not logged in.
#[derive(Debug)]
pub(super) struct Admission<S> {
    listeners: Vec<Listener>,
    /// Accepted sockets without a slot, in the order of their arrival.
    waiting: Vec<Waiting<S>>,
    waiting_sockets_max: usize,
    /// The kind that got the last slot of the management API. The API and metrics alternate.
    last: OperatorKind,
    /// Connections that have not opened a virtual host.
    unauthenticated: Vec<ConnectionId>,
    /// Connections over TLS, before and after their login.
    tls_connections: u32,
    /// Connections closed for another since the start.
    evicted_count: u64,
}

/// An accepted socket that waits for a slot.
#[derive(Debug)]
struct Waiting<S> {
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
    /// The kernel reports a new connection once, so this stays set until accepting finds none.
    is_ready: bool,
    /// When accepting is retried after the system could not.
    retry: Deadline,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum ListenerKind {
    Amqp,
    Operator(OperatorKind),
}

/// The kind of an operator's client. The broker has no record of such clients.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum OperatorKind {
    /// The management API, with a login.
    Api,
    /// Metrics without a login.
    Metrics,
    /// The control socket.
    Control,
}

/// The listeners of the configuration, each with whether it uses TLS.
pub(super) struct Listeners {
    pub(super) amqp: Vec<bool>,
    /// The listeners of the management API, followed by those for metrics.
    pub(super) management: Vec<bool>,
    /// Number of listeners of `management` that are for metrics.
    pub(super) metrics: usize,
}

/// A limit on connections of AMQP that have not logged in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Limit {
    /// `tls_handshakes_max`.
    TlsHandshakes,
    /// `tls_connections_max`, which also counts connections that have logged in.
    TlsConnections,
    /// The share of one address.
    Address(Source),
    /// `handshakes_max` and `connections_max`.
    All,
}

impl Limit {
    fn counts<S: Socket>(self, peer: &Peer<S>) -> bool {
        match self {
            Self::TlsHandshakes => peer.stream.is_in_tls_handshake(),
            Self::TlsConnections => peer.stream.is_tls(),
            Self::Address(source) => peer.address.origin() == source,
            Self::All => true,
        }
    }

    /// Returns the key to raise.
    const fn key(self) -> &'static str {
        match self {
            Self::TlsHandshakes => "tls_handshakes_max",
            Self::TlsConnections => "tls_connections_max",
            Self::Address(_) => "half of handshakes_max for one address, and 32 at most",
            Self::All => "handshakes_max or connections_max",
        }
    }

    /// Returns whether the limit, when reached, keeps a connection of this address from getting a slot.
    fn holds_up(self, source: Source, with_tls: bool) -> bool {
        match self {
            Self::TlsHandshakes | Self::TlsConnections => with_tls,
            Self::Address(other) => other == source,
            Self::All => true,
        }
    }
}

const CONTROL: ListenerKind = ListenerKind::Operator(OperatorKind::Control);

/// Connections that lose their slots, with the limit that is reached: at most one per limit.
type Evicted = heapless::Vec<(PeerId, &'static str), 4>;

/// Bytes for each place of `handshakes_max`.
pub(super) const SLOT_BYTES: usize = size_of::<ConnectionId>();

/// Returns the bytes of the list of accepted sockets of type `S`.
pub(super) const fn waiting_bytes<S>() -> usize {
    WAITING_SOCKETS_MAX * size_of::<Waiting<S>>()
}

impl Listener {
    /// A connection may have arrived before the first event.
    const fn new(kind: ListenerKind, id: ListenerId, with_tls: bool) -> Self {
        Self { kind, id, with_tls, is_ready: true, retry: Deadline::NEVER }
    }

    /// Retries accepting when that is due.
    const fn update_retry(&mut self, now: Now) {
        if self.retry.is_due(now) {
            (self.is_ready, self.retry) = (true, Deadline::NEVER);
        }
    }

    /// Accepting is tried again at once after a connection failed, and after [`RETRY_MS`] when the system could not.
    const fn note_failure(&mut self, failure: AcceptFailure, now: Now) {
        match failure {
            AcceptFailure::Empty => self.is_ready = false,
            AcceptFailure::Connection => {}
            AcceptFailure::System => (self.is_ready, self.retry) = (false, now.after_ms(RETRY_MS)),
        }
    }
}

impl<S> Admission<S> {
    /// Makes the admission. `waiting_sockets_max` is the maximum number of accepted sockets that wait for a slot.
    pub(super) fn new(listeners: &Listeners, handshakes_max: usize, waiting_sockets_max: usize) -> Self {
        let first_metrics = listeners.management.len() - listeners.metrics;
        let amqp = listeners.amqp.iter().enumerate();
        let amqp = amqp.map(|(at, tls)| Listener::new(ListenerKind::Amqp, ListenerId::Amqp(at), *tls));
        let management = listeners.management.iter().enumerate().map(|(at, tls)| {
            let kind = if at < first_metrics { OperatorKind::Api } else { OperatorKind::Metrics };
            Listener::new(ListenerKind::Operator(kind), ListenerId::Management(at), *tls)
        });
        let control = Listener::new(CONTROL, ListenerId::Control, false);
        Self {
            listeners: amqp.chain(management).chain([control]).collect(),
            waiting: Vec::with_capacity(waiting_sockets_max),
            waiting_sockets_max,
            last: OperatorKind::Metrics,
            unauthenticated: Vec::with_capacity(handshakes_max),
            tls_connections: 0,
            evicted_count: 0,
        }
    }

    /// Notes that a connection may have arrived at a listener.
    pub(super) fn note_event(&mut self, id: ListenerId) {
        self.listeners.iter_mut().filter(|listener| listener.id == id).for_each(|one| one.is_ready = true);
    }

    /// Accepts nothing more, except at the control socket, and closes what waits.
    pub(super) fn stop_listening(&mut self) {
        self.listeners.retain(|listener| listener.kind == CONTROL);
        self.waiting.retain(|waiting| waiting.kind == CONTROL);
    }

    /// Returns whether another socket can be appended to the list.
    fn has_capacity(&self) -> bool {
        self.waiting.len() < self.waiting_sockets_max || self.crowd().is_some()
    }

    /// Returns the address with the most sockets on the list, if it exceeds its share.
    fn crowd(&self) -> Option<Source> {
        let sources = self.waiting.iter().map(|waiting| waiting.accepted.address.origin());
        let mut sources: heapless::Vec<Source, WAITING_SOCKETS_MAX> =
            sources.take(WAITING_SOCKETS_MAX).collect();
        sort(&mut sources);
        let largest = sources.chunk_by(|one, next| one == next).max_by_key(|all| all.len())?;
        (largest.len() > self.waiting_sockets_max / CROWD_PART).then_some(largest[0])
    }

    /// Appends a socket. If the list is full, the oldest one of the address with the most is closed.
    fn push(&mut self, waiting: Waiting<S>) {
        if self.waiting.len() >= self.waiting_sockets_max
            && let Some(source) = self.crowd()
        {
            let oldest = self.waiting.iter().position(|other| other.accepted.address.origin() == source);
            oldest.map(|at| self.waiting.remove(at));
        }
        self.waiting.push(waiting);
    }

    /// Notes that a connection has logged in and opened a virtual host.
    pub(super) fn note_opened(&mut self, id: ConnectionId) {
        self.unauthenticated.retain(|other| *other != id);
    }

    /// Notes that a connection of the broker was closed.
    pub(super) fn note_closed(&mut self, id: ConnectionId, was_tls: bool) {
        self.unauthenticated.retain(|other| *other != id);
        self.tls_connections -= u32::from(was_tls);
    }

    /// Returns the number of connections closed for another since the start.
    pub(super) const fn evicted_count(&self) -> u64 {
        self.evicted_count
    }
}

impl<P: Platform> Engine<P> {
    /// Accepts connections, and gives slots to those that wait.
    pub(super) fn admit(&mut self) {
        for at in 0..self.shared.admission.listeners.len() {
            self.accept_at(at);
        }
        for _ in 0..ACCEPTS_PER_TURN {
            let Ok((at, evicted)) = self.next_admission() else { return };
            evicted.into_iter().for_each(|(id, limit)| self.evict(id, limit));
            let Waiting { kind, with_tls, accepted } = self.shared.admission.waiting.remove(at);
            let address = accepted.address;
            let begun = match kind {
                ListenerKind::Amqp => self.shared.begin_amqp(accepted, with_tls),
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

    /// The control socket is served only when the data directory is known to be ours.
    const fn is_open(&self, kind: ListenerKind) -> bool {
        self.operators.is_open || !matches!(kind, CONTROL)
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
                Ok(accepted) => self.shared.admission.push(Waiting { kind, with_tls, accepted }),
                Err(failure) => self.shared.admission.listeners[at].note_failure(failure, now),
            }
        }
    }

    /// The mode of the control socket's file already admits only root and the broker's user. This also checks the
    /// user that the kernel reports.
    fn may_use_control(&mut self, address: PeerAddress) -> bool {
        let ours = self.operators.own_uid;
        let may = matches!(address, PeerAddress::Local { uid, .. } if uid == 0 || uid == ours);
        if !may {
            let text = format_args!("leveret ctl is only for root and user {ours}, not for {address}");
            self.shared.resources.log.warn(self.shared.now, address.source(), LogKind::Control, text);
        }
        may
    }

    /// Returns the next socket that gets a slot, by its position on the list, and the connections to be closed for
    /// it, usually none.
    ///
    /// # Errors
    /// The deadline until which no socket gets a slot, unless something else happens.
    fn next_admission(&self) -> Result<(usize, Evicted), Deadline> {
        let ways = [
            self.next_amqp(),
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

    /// As [`Self::next_admission`], for AMQP clients: the first for which no limit is reached, or for which
    /// connections can be closed.
    fn next_amqp(&self) -> Result<(usize, Evicted), Deadline> {
        let mut earliest = Deadline::NEVER;
        let mut reached: heapless::Vec<Limit, 24> = heapless::Vec::new();
        let waiting = self.shared.admission.waiting.iter().enumerate();
        for (at, Waiting { with_tls, accepted, .. }) in
            waiting.filter(|(_, one)| one.kind == ListenerKind::Amqp)
        {
            let source = accepted.address.origin();
            if reached.iter().any(|limit| limit.holds_up(source, *with_tls)) {
                continue;
            }
            match self.slot_for_amqp(source, *with_tls) {
                Ok(evicted) => return Ok((at, evicted)),
                Err((limit, deadline)) => {
                    earliest = earliest.earlier(deadline);
                    // If it cannot be remembered here, the limit is checked again for the next connection.
                    let _ = reached.push(limit);
                }
            }
        }
        Err(earliest)
    }

    /// As [`Self::next_admission`], for operators' clients of these kinds, which share slots. Chooses the address
    /// with the fewest slots, then the kind that did not get the last slot.
    fn next_operator(&self, is_of: fn(OperatorKind) -> bool) -> Result<(usize, Evicted), Deadline> {
        let waiting = self.shared.admission.waiting.iter().enumerate();
        let waiting = waiting.filter_map(|(at, one)| match one.kind {
            ListenerKind::Operator(kind) if is_of(kind) => Some((at, kind, one.accepted.address.origin())),
            _ => None,
        });
        let held = |kind, source| {
            let peers = self.slots(kind).filter_map(|id| self.shared.peers.get(id));
            peers.filter(|peer| peer.address.origin() == source).count()
        };
        let next = waiting.min_by_key(|(at, kind, source)| {
            (held(*kind, *source), *kind == self.shared.admission.last, *at)
        });
        let Some((at, kind, _)) = next else { return Err(Deadline::NEVER) };
        if self.free_slot(kind).is_some() {
            return Ok((at, Evicted::new()));
        }
        let id = self.first_closable(self.slots(kind), UNANSWERED_MS)?;
        Ok((at, Evicted::from_iter([(id, "management_clients_max")])))
    }

    /// Returns the connections to be closed for a new one of this address.
    ///
    /// # Errors
    /// The limit that is reached, and the deadline before which no connection can be closed for it.
    fn slot_for_amqp(&self, source: Source, with_tls: bool) -> Result<Evicted, (Limit, Deadline)> {
        let Shared { admission, limits, peers, broker, .. } = &self.shared;
        let ids_of = |limit: Limit| {
            let ids = admission.unauthenticated.iter().map(|id| PeerId::from(*id));
            ids.filter(move |id| peers.get(*id).is_some_and(|peer| limit.counts(peer)))
        };
        let is_reached = |limit: Limit| match limit {
            Limit::TlsHandshakes => with_tls && ids_of(limit).count() >= limits.tls_handshakes_max as usize,
            Limit::TlsConnections => with_tls && admission.tls_connections >= limits.tls_connections_max,
            Limit::Address(_) => {
                ids_of(limit).count() >= (limits.handshakes_max as usize / 2).clamp(1, PER_ADDRESS_MAX)
            }
            Limit::All => {
                admission.unauthenticated.len() >= limits.handshakes_max as usize
                    || peers.connections() >= limits.connections_max
                    || broker.connections_free() == 0
            }
        };
        // The narrowest limit first: a connection that is closed for it also counts for the wider ones.
        let all = [Limit::Address(source), Limit::TlsHandshakes, Limit::TlsConnections, Limit::All];
        let mut evicted = Evicted::new();
        for limit in all.into_iter().filter(|limit| is_reached(*limit)) {
            if !ids_of(limit).any(|id| evicted.iter().any(|(other, _)| *other == id)) {
                let unanswered_ms = match limit {
                    Limit::Address(_) => UNANSWERED_OF_ADDRESS_MS,
                    Limit::TlsHandshakes | Limit::TlsConnections | Limit::All => UNANSWERED_MS,
                };
                let closable = self.first_closable(ids_of(limit), unanswered_ms);
                let id = closable.map_err(|deadline| (limit, deadline))?;
                let is_in = evicted.push((id, limit.key())).is_ok();
                assert!(is_in, "at most one is closed for each limit");
            }
        }
        Ok(evicted)
    }

    /// Returns which of these connections is closed for another. Idle ones come before those with a request or an
    /// answer under way, then the one that could be closed first.
    ///
    /// # Errors
    /// The deadline before which none can be closed.
    fn first_closable(
        &self,
        ids: impl Iterator<Item = PeerId>,
        unanswered_ms: u64,
    ) -> Result<PeerId, Deadline> {
        let (mut first, mut earliest) = (None, Deadline::NEVER);
        for id in ids {
            let Some(peer) = self.shared.peers.get(id) else { continue };
            let at = self.closable_at(id, peer, unanswered_ms);
            let is_busy = matches!(&peer.session, Session::Operator(client) if !client.session.is_empty());
            if at.is_due(self.shared.now) {
                first = first.into_iter().chain([(is_busy, at, id)]).min();
            } else {
                earliest = earliest.earlier(at);
            }
        }
        first.map(|(_, _, id)| id).ok_or(earliest)
    }

    /// Returns when a connection can be closed for another one that waits. If it has not been answered, that is
    /// `unanswered_ms` after it was accepted.
    fn closable_at(&self, id: PeerId, peer: &Peer<P::Socket>, unanswered_ms: u64) -> Deadline {
        let is_over = match &peer.session {
            Session::Amqp(session) => session.stage() == Stage::Over,
            Session::Operator(_) | Session::Bridge(_) => false,
        };
        let is_answered = peer.ending == Ending::Flushing && matches!(peer.session, Session::Operator(_));
        if is_over || peer.ending != Ending::No && !is_answered {
            return peer.silent_since.after_ms(0);
        }
        let has_tokens = || self.shared.worker.checks.has_tokens(self.shared.now, peer.address.origin());
        match (peer.waiting, &peer.session) {
            (peer::Waiting::Handshake(_), _) => Deadline::NEVER,
            (peer::Waiting::PasswordCheck(_), _) if has_tokens() => Deadline::NEVER,
            _ if !peer.has_sent => peer.silent_since.after_ms(unanswered_ms),
            (_, Session::Operator(client)) => {
                let is_ours = client.session.awaits_disk() || client.session.awaits_read_back();
                let holds_files = self.operators.backup_client == Some(id);
                if is_ours || holds_files { Deadline::NEVER } else { client.closable_at }
            }
            (_, Session::Amqp(_) | Session::Bridge(_)) => peer.silent_since.after_ms(SILENT_MS),
        }
    }

    /// Closes a connection whose slot another one gets, because `limit` is reached.
    fn evict(&mut self, id: PeerId, limit: &str) {
        let Some(peer) = self.shared.peers.get(id) else { return };
        let address = peer.address;
        if id.connection().is_some() {
            self.shared.admission.evicted_count += 1;
            let text = format_args!(
                "{address}: closed before its login in favour of another connection: the limit is reached \
                 ({limit})"
            );
            self.shared.resources.log.warn(self.shared.now, address.source(), LogKind::Shortage, text);
        } else {
            log::debug!("{address}: closed in favour of another client ({limit})");
        }
        self.shared.end_now(id);
        self.close();
    }

    /// Returns the slots of clients of this kind. Clients of the API and of metrics share theirs.
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

    /// Admits a client of the management API, of metrics or of the control socket.
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
        let mut peer = Peer::new(socket, address, Session::Operator(client), self.shared.now);
        if with_tls {
            peer.stream.begin_tls();
        }
        self.shared.peers.put(id, peer);
        self.shared.list_to_read(id);
        Ok(())
    }
}

impl<P: Platform> Shared<P> {
    /// Admits an AMQP connection, and makes its record at the broker.
    fn begin_amqp(&mut self, accepted: Accepted<P::Socket>, with_tls: bool) -> std::io::Result<()> {
        let Accepted { mut socket, address } = accepted;
        let Some(id) = self.broker.connect() else { return Err(std::io::Error::other("no record is free")) };
        if let Err(error) = self.platform.register(&mut socket, id.into()) {
            let (broker, mut context) = self.broker_mut();
            broker.release(&mut context, id);
            return Err(error);
        }
        log::debug!("connection {}: from {address}", id.index());
        let session =
            leveret_connection::Connection::new(self.now, id, address.peer(), &self.resources.settings);
        let mut peer = Peer::new(socket, address, Session::Amqp(session), self.now);
        peer.is_opening = true;
        if with_tls {
            peer.stream.begin_tls();
        }
        self.lists.deadlines.lower(id.into(), peer.deadline());
        self.peers.put_connection(id, peer);
        self.admission.unauthenticated.push(id);
        self.admission.tls_connections += u32::from(with_tls);
        if self.broker.is_tracing() {
            self.set_firehose_name(id);
        }
        self.list_to_read(id);
        Ok(())
    }

    /// Sets the connection's name for the firehose.
    #[cold]
    pub(super) fn set_firehose_name(&mut self, connection: ConnectionId) {
        let peers = Connections { peers: &self.peers, now: self.now, unix_ms: 0, is_over_budget: false };
        if let Some(socket) = peers.at(connection) {
            self.broker.set_firehose_name(connection, &name_of(&socket));
        }
    }
}
