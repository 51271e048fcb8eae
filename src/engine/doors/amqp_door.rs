//! The door of AMQP: accepts who comes, and gives handshake places to those that spoke.
//!
//! Why it exists: [`super::accept_queue`] says who is next and [`super::admission`] whether there is a place;
//! neither knows who holds the places.
//!
//! Always true: who has a place is among the handshakes; nobody is put out unless somebody has the place at
//! once; a turn accepts and admits a bounded number, and whoever is left over is looked at again soon.

use crate::command::ConnectionId;
use crate::log_limiter::{LogKind, LogLimiter};
use crate::session::Stage;
use crate::time::{Deadline, Now};

use super::accept_queue::{ACCEPTS_PER_TURN, AcceptQueue, MayRetry, Refusals};
use super::admission::{Place, Resource, Room, Rooms, Standing, Verdict};
use super::house::{House, Step};
use crate::address::Source;
use crate::listener::Listener;
use crate::login_throttle::Turn;
use crate::peer::{Ending, Peer, Session, Waiting};
use crate::platform::{ListenerId, Platform, Socket, Visitor};

/// The door, and who is on the threshold.
#[derive(Debug)]
pub(super) struct AmqpDoor<S> {
    listeners: Vec<Listener>,
    queue: AcceptQueue<S>,
    /// Connections that have not opened a virtual host yet: each holds a handshake place.
    handshaking: Vec<ConnectionId>,
    /// Connections over TLS, those in their handshake too.
    tls_connections: u32,
    /// How many more may be admitted in this turn, while places are given.
    admissions_left: Option<usize>,
    /// The one that was admitted last, whose place is not among those of the queue yet.
    begun: Option<ConnectionId>,
}

impl<S: Socket> AmqpDoor<S> {
    pub(super) fn new(with_tls: &[bool], handshakes_max: usize, queue_places: usize) -> Self {
        Self {
            listeners: with_tls.iter().copied().map(Listener::new).collect(),
            queue: AcceptQueue::new(handshakes_max, queue_places),
            handshaking: Vec::with_capacity(handshakes_max),
            tls_connections: 0,
            admissions_left: None,
            begun: None,
        }
    }

    pub(super) fn note_listener(&mut self, place: usize) {
        if let Some(listener) = self.listeners.get_mut(place) {
            listener.note_event();
        }
    }

    pub(super) fn note_newcomer(&mut self, place: usize, is_closed: bool) {
        self.queue.note_event(place, is_closed);
    }

    pub(super) fn note_begun(&mut self, id: ConnectionId, with_tls: bool) {
        self.handshaking.push(id);
        self.begun = Some(id);
        self.tls_connections += u32::from(with_tls);
    }

    pub(super) fn note_opened(&mut self, id: ConnectionId, source: Source) {
        self.handshaking.retain(|other| *other != id);
        self.queue.forgive_turn(source);
    }

    pub(super) fn note_gone(&mut self, id: ConnectionId, was_tls: bool) {
        self.handshaking.retain(|other| *other != id);
        // Its id may be another's before the next step.
        self.queue.retain_places(|other| other != id);
        self.tls_connections -= u32::from(was_tls);
    }

    pub(super) fn note_wrong(&mut self, source: Source) {
        self.queue.note_wrong(source);
    }

    pub(super) const fn note_change(&mut self) {
        self.queue.note_change();
    }

    pub(super) const fn refusals(&self) -> Refusals {
        self.queue.refusals
    }

    pub(super) fn shut(&mut self) {
        self.listeners.clear();
        self.queue.clear();
    }

    pub(super) fn deadline(&self) -> Deadline {
        self.listeners.iter().map(Listener::deadline).fold(self.queue.deadline(), Deadline::earlier)
    }

    pub(super) fn is_ready(&self, house: &House<'_, S>) -> bool {
        self.queue.has_news(house.now)
            || self.listeners.iter().any(|one| one.is_ready() && self.may_accept(house, one.with_tls))
    }

    /// See [`super::Doors::poll`].
    pub(super) fn poll<P: Platform<Socket = S>>(
        &mut self,
        house: &House<'_, S>,
        platform: &mut P,
        log: &mut LogLimiter,
    ) -> Option<Step<S>> {
        if self.admissions_left.is_none() {
            self.accept(house, platform, log);
            self.queue.drop_overdue(house.now, house.limits.handshake_timeout_ms.into(), log);
            if self.queue.is_time(house.now) {
                self.begin_round(house);
            }
        }
        let step = self.admissions_left.and_then(|left| self.admit(house, left));
        if step.is_none() {
            self.admissions_left = None;
            self.queue.watch(platform, house.now, log);
        }
        step
    }

    /// Whether somebody can be accepted: not when every connection is logged in, for then nobody can make
    /// place.
    fn may_accept(&self, house: &House<'_, S>, with_tls: bool) -> bool {
        let in_handshake = self.handshaking.len() as u32;
        house.peers.connections() - in_handshake < house.limits.connections_max
            && (!with_tls || self.has_tls_connection_to_offer(house))
            && self.queue.has_room()
    }

    fn has_tls_connection_to_offer(&self, house: &House<'_, S>) -> bool {
        let is_tls = |peer: &Peer<S>| peer.stream.is_tls();
        self.tls_connections < house.limits.tls_connections_max || self.in_handshake(house).any(is_tls)
    }

    fn in_handshake<'h>(&'h self, house: &'h House<'_, S>) -> impl Iterator<Item = &'h Peer<S>> {
        self.handshaking.iter().filter_map(|id| house.peers.get(*id))
    }

    fn accept<P: Platform<Socket = S>>(
        &mut self,
        house: &House<'_, S>,
        platform: &mut P,
        log: &mut LogLimiter,
    ) {
        for place in 0..self.listeners.len() {
            self.listeners[place].keep_time(house.now);
            for _ in 0..ACCEPTS_PER_TURN {
                let with_tls = self.listeners[place].with_tls;
                if !self.listeners[place].is_ready() || !self.may_accept(house, with_tls) {
                    break;
                }
                match platform.accept(ListenerId::Amqp(place), log, house.now) {
                    Ok(visitor) => self.enqueue(visitor, with_tls, house, log),
                    Err(failure) => {
                        self.listeners[place].note_failure(failure, house.now);
                        break;
                    }
                }
            }
        }
    }

    fn enqueue(&mut self, visitor: Visitor<S>, with_tls: bool, house: &House<'_, S>, log: &mut LogLimiter) {
        let patience_ms = house.limits.handshake_timeout_ms.into();
        if let Some(gone) = self.queue.push(visitor, with_tls, house.now, patience_ms) {
            let address = gone.visitor.address;
            let text = format_args!(
                "{address}: hung up on before it began: its address has filled the queue of those that wait \
                 to come in"
            );
            log.warn(house.now, address.source(), LogKind::Shortage, text);
        }
    }

    /// Places are given now.
    fn begin_round(&mut self, house: &House<'_, S>) {
        let mut places = self.queue.begin_round();
        places.extend(self.handshaking.iter().filter_map(|id| place_of(*id, house)));
        self.queue.set_places(places);
        (self.admissions_left, self.begun) = (Some(ACCEPTS_PER_TURN), None);
    }

    /// The next that is to have a place, of those that spoke and in their order, if there is one to be had.
    fn admit(&mut self, house: &House<'_, S>, left: usize) -> Option<Step<S>> {
        let Some(left) = left.checked_sub(1) else {
            // The bound of a turn was reached, so more of them may wait.
            self.queue.retry_soon(house.now);
            return None;
        };
        let begun = self.begun.take().and_then(|id| place_of(id, house));
        begun.into_iter().for_each(|place| self.queue.hold_place(place));
        self.queue.gather_claims();
        let reputation = |source| house.throttle.reputation(house.now, source);
        let (slot, verdict) = match self.queue.choose(&self.rooms(house), reputation) {
            Ok(chosen) => chosen,
            Err(MayRetry(may_retry)) => {
                if may_retry || is_clearing_away(house) {
                    self.queue.retry_soon(house.now);
                }
                return None;
            }
        };
        let instead_of = match verdict {
            Verdict::Evict(one, other) => [Some(one), other],
            Verdict::Admit | Verdict::Wait(_) => [None; 2],
        };
        self.queue.refusals.evicted += instead_of.iter().flatten().count() as u64;
        let newcomer = self.queue.take(slot)?;
        let is_unspent = self.queue.note_turn(newcomer.source);
        self.admissions_left = Some(left);
        Some(Step::Admit { visitor: newcomer.visitor, with_tls: newcomer.with_tls, is_unspent, instead_of })
    }

    fn rooms(&self, house: &House<'_, S>) -> Rooms {
        let limits = house.limits;
        let room = |max: u32, taken: u32| Room { free: max.saturating_sub(taken), max };
        let handshakes = room(limits.handshakes_max, self.handshaking.len() as u32);
        let mut connections = room(limits.connections_max, house.peers.connections());
        connections.free = connections.free.min(house.broker.connections_room() as u32);
        let tls_handshakes = self.in_handshake(house).filter(|peer| peer.stream.is_shaking_hands()).count();
        Rooms {
            handshakes: Room { free: handshakes.free.min(connections.free), max: handshakes.max },
            tls_connections: room(limits.tls_connections_max, self.tls_connections),
            tls_handshakes: room(limits.tls_handshakes_max, tls_handshakes as u32),
        }
    }
}

/// Whether the broker still clears away what a closed connection held, and with it its record.
fn is_clearing_away<S>(house: &House<'_, S>) -> bool {
    let free = house.limits.connections_max.saturating_sub(house.peers.connections());
    house.broker.connections_room() < free as usize
}

/// Which place one in its handshake holds, and how it stands.
fn place_of<S: Socket>(id: ConnectionId, house: &House<'_, S>) -> Option<Place> {
    let peer = house.peers.get(id)?;
    let takes = match (peer.stream.is_tls(), peer.stream.is_shaking_hands()) {
        (false, _) => Resource::Handshake,
        (true, false) => Resource::TlsConnection,
        (true, true) => Resource::TlsHandshake,
    };
    let standing = match standing(peer, house.now) {
        Standing::Silent(ms) if matches!(peer.waiting, Waiting::Worker(_)) => {
            match house.throttle.turn(house.now, id) {
                Turn::Next => Standing::Kept,
                Turn::Delayed { is_suspect } => Standing::Delayed { ms, is_suspect },
            }
        }
        other => other,
    };
    let (source, is_unspent) = (peer.address.origin(), peer.is_unspent);
    Some(Place { connection: id, source, takes, standing, is_unspent })
}

/// How a peer in its handshake stands, but for logins that wait.
fn standing<S: Socket>(peer: &Peer<S>, now: Now) -> Standing {
    let Session::Amqp(session) = &peer.session else { return Standing::Kept };
    match (peer.ending, session.stage(), peer.waiting) {
        (Ending::No, Stage::LoggedIn | Stage::Open, _) | (Ending::No, _, Waiting::Handshake(_)) => {
            Standing::Kept
        }
        (Ending::No, Stage::Unproven, _) => Standing::Silent(now.ms_since(peer.silent_since)),
        _ => Standing::Over,
    }
}
