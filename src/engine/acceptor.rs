//! Lets in who is at the doors: accepts them, gives places to those that spoke, and ends the handshakes that
//! have to go for it.
//!
//! Why it exists: [`super::accept_queue`] says who is next and [`super::admission`] whether there is a place;
//! neither has a peer to make or to close.
//!
//! Always true: who has a place is among the handshakes; nobody is evicted unless somebody has the place at
//! once; a turn accepts and admits a bounded number, and whoever is left over is looked at again soon.

use crate::command::ConnectionId;
use crate::log_limiter::{LogKind, LogSource};
use crate::session::Stage;
use crate::time::Now;

use super::accept_queue::{ACCEPTS_PER_TURN, MayRetry};
use super::admission::{Place, Resource, Room, Rooms, Standing, Verdict};
use super::login_throttle::Turn;
use super::peer::{Ending, Peer, Session, Waiting};
use super::platform::{ListenerId, Platform, Socket, Visitor};
use super::state::Engine;

impl<P: Platform> Engine<P> {
    /// Whether somebody at a door can be accepted: not when every connection is logged in, for then nobody
    /// can make place.
    pub(super) fn may_accept(&self, with_tls: bool) -> bool {
        let in_handshake = self.handshaking.len() as u32;
        self.stopping.is_none()
            && self.connections_count - in_handshake < self.limits.connections_max
            && (!with_tls || self.has_tls_connection_to_offer())
            && self.accept_queue.has_room()
    }

    fn has_tls_connection_to_offer(&self) -> bool {
        let max = self.limits.tls_connections_max;
        let is_tls = |id: &&ConnectionId| self.peers.get(**id).is_some_and(|peer| peer.stream.is_tls());
        self.tls_peers < max || self.handshaking.iter().any(|id| is_tls(&id))
    }

    /// Accepts who is there, and gives places to those that spoke.
    pub(super) fn let_in(&mut self) {
        let patience_ms = self.limits.handshake_timeout_ms.into();
        for place in 0..self.listeners.len() {
            self.listeners[place].keep_time(self.now);
            for _ in 0..ACCEPTS_PER_TURN {
                let with_tls = self.listeners[place].with_tls;
                if !self.listeners[place].is_ready() || !self.may_accept(with_tls) {
                    break;
                }
                let listener = ListenerId::Amqp(place);
                match self.platform.accept(listener, &mut self.supplies.log, self.now) {
                    Ok(visitor) => self.enqueue(visitor, with_tls),
                    Err(failure) => {
                        self.listeners[place].note_failure(failure, self.now);
                        break;
                    }
                }
            }
        }
        self.accept_queue.drop_overdue(self.now, patience_ms, &mut self.supplies.log);
        if self.accept_queue.is_time(self.now) {
            self.admit();
        }
        self.accept_queue.watch(&mut self.platform, self.now, &mut self.supplies.log);
    }

    fn enqueue(&mut self, visitor: Visitor<P::Socket>, with_tls: bool) {
        let patience_ms = self.limits.handshake_timeout_ms.into();
        if let Some(gone) = self.accept_queue.push(visitor, with_tls, self.now, patience_ms) {
            let address = gone.visitor.address;
            let text = format_args!(
                "{address}: hung up on before it began: its address has filled the queue of those that wait \
                 to come in"
            );
            self.supplies.log.warn(self.now, address.source(), LogKind::Shortage, text);
        }
    }

    /// Gives places to those that spoke, in their order, as long as there are any to be had.
    fn admit(&mut self) {
        let mut places = self.accept_queue.begin_round();
        places.extend(self.handshaking.iter().filter_map(|id| self.place_of(*id)));
        self.accept_queue.set_places(places);
        for _ in 0..ACCEPTS_PER_TURN {
            self.accept_queue.gather_claims();
            let reputation = |source| self.worker.throttle.reputation(self.now, source);
            let (slot, verdict) = match self.accept_queue.choose(&self.rooms(), reputation) {
                Ok(chosen) => chosen,
                Err(MayRetry(may_retry)) => {
                    if may_retry || self.is_clearing_away() {
                        self.accept_queue.retry_soon(self.now);
                    }
                    return;
                }
            };
            if let Verdict::Evict(one, other) = verdict {
                self.evict(one);
                other.into_iter().for_each(|other| self.evict(other));
            }
            let Some(newcomer) = self.accept_queue.take(slot) else { break };
            let is_unspent = self.accept_queue.note_turn(newcomer.source);
            match self.welcome(newcomer.visitor, newcomer.with_tls, is_unspent) {
                Ok(id) => {
                    if let Some(place) = self.place_of(id) {
                        self.accept_queue.hold_place(place);
                    }
                }
                Err(error) => {
                    let text = format_args!("a connection could not be set up: {error}");
                    self.supplies.log.warn(self.now, LogSource::Anybody, LogKind::Shortage, text);
                }
            }
        }
        // The bound of a turn was reached, so more of them may wait.
        self.accept_queue.retry_soon(self.now);
    }

    /// Whether the broker still clears away what a closed connection held, and with it its record.
    fn is_clearing_away(&self) -> bool {
        self.broker.connections_room()
            < self.limits.connections_max.saturating_sub(self.connections_count) as usize
    }

    fn rooms(&self) -> Rooms {
        let limits = &self.limits;
        let room = |max: u32, taken: u32| Room { free: max.saturating_sub(taken), max };
        let handshakes = room(limits.handshakes_max, self.handshaking.len() as u32);
        let mut connections = room(limits.connections_max, self.connections_count);
        connections.free = connections.free.min(self.broker.connections_room() as u32);
        Rooms {
            handshakes: Room { free: handshakes.free.min(connections.free), max: handshakes.max },
            tls_connections: room(limits.tls_connections_max, self.tls_peers),
            tls_handshakes: room(limits.tls_handshakes_max, self.tls_handshakes),
        }
    }

    /// Which place one in its handshake holds, and how it stands.
    fn place_of(&self, id: ConnectionId) -> Option<Place> {
        let peer = self.peers.get(id)?;
        let takes = match (peer.stream.is_tls(), peer.stream.is_shaking_hands()) {
            (false, _) => Resource::Handshake,
            (true, false) => Resource::TlsConnection,
            (true, true) => Resource::TlsHandshake,
        };
        let standing = match standing(peer, self.now) {
            Standing::Silent(ms) if matches!(peer.waiting, Waiting::Worker(_)) => {
                match self.worker.throttle.turn(self.now, id) {
                    Turn::Next => Standing::Kept,
                    Turn::Delayed { is_suspect } => Standing::Delayed { ms, is_suspect },
                }
            }
            other => other,
        };
        let (source, is_unspent) = (peer.address.origin(), peer.is_unspent);
        Some(Place { connection: id, source, takes, standing, is_unspent })
    }

    /// Ends a handshake, for somebody else to have its place at once.
    fn evict(&mut self, id: ConnectionId) {
        self.accept_queue.refusals.evicted += 1;
        if let Some(peer) = self.peers.get(id) {
            let address = peer.address;
            let text = format_args!(
                "{address}: hung up on before its login, for others want in and its address holds most of \
                 the handshakes (handshakes_max, tls_handshakes_max, tls_connections_max)"
            );
            self.supplies.log.warn(self.now, address.source(), LogKind::Shortage, text);
        }
        self.end_now(id);
        self.close();
        let peers = &self.peers;
        self.accept_queue.retain_places(|id| peers.get(id).is_some());
    }
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
