//! Clients of the management API: the same kind of peer as the operator's, over the network and with a login.
//!
//! Always true: there are never more of them than `management_clients_max`; when somebody waits outside and
//! there is no place, one that is idle gives its place up, of the address that holds most; a request has a
//! bounded time to come in, and its answer to be taken (`admin_socket`); a password is checked by the worker,
//! under the same throttle as the logins of AMQP.

use crate::admin::admin_session::AdminSession;
use crate::limits::CONTROL_CLIENTS_MAX;
use crate::log_limiter::LogKind;
use crate::password::PasswordCheck;

use super::address::Source;
use super::admin_socket::{AdminConnection, IDLE_MS};
use super::listener::Listener;
use super::peer::{Ending, Peer, Session, Waiting};
use super::peer_id::PeerId;
use super::platform::{Interest, ListenerId, Platform, Visitor};
use super::state::Engine;

impl<P: Platform> Engine<P> {
    /// Whether somebody is there to be let in, and can be.
    pub(super) fn may_let_management_in(&self) -> bool {
        match self.management_next {
            Some(_) => self.management_place().is_some() || self.idlest().is_some(),
            None => self.management.iter().any(Listener::is_ready),
        }
    }

    fn management_place(&self) -> Option<PeerId> {
        let most = self.limits.management_clients_max as usize;
        self.peers.place_apart(CONTROL_CLIENTS_MAX..CONTROL_CLIENTS_MAX + most)
    }

    /// Of those that are doing nothing the one that has been longest, of the address that has most places.
    fn idlest(&self) -> Option<PeerId> {
        let most = self.limits.management_clients_max as usize;
        let ids = || (CONTROL_CLIENTS_MAX..CONTROL_CLIENTS_MAX + most).map(PeerId::from_index);
        let held = |source: Source| {
            ids().filter_map(|id| self.peers.get(id)).filter(|peer| peer.address.origin() == source).count()
        };
        let idle = ids().filter_map(|id| {
            let peer = self.peers.get(id)?;
            let Session::Admin(client) = &peer.session else { return None };
            let is_idle = client.is_idle() && peer.waiting == Waiting::No && peer.ending == Ending::No;
            is_idle.then(|| (id, held(peer.address.origin()), client.idle_at))
        });
        // Whose deadline is next has been idle longest.
        idle.min_by_key(|(_, held, idle_at)| (core::cmp::Reverse(*held), *idle_at)).map(|(id, ..)| id)
    }

    /// Whoever is next is accepted before there is a place for him: nobody gives one up for nobody.
    pub(super) fn let_management_in(&mut self) {
        while self.management_next.is_some() || self.accept_management() {
            let Some(id) = self.management_place() else {
                // It is closed at the end of the turn, and its place is there in the next one.
                self.idlest().into_iter().for_each(|id| self.end_now(id));
                return;
            };
            if let Some(visitor) = self.management_next.take() {
                self.welcome_management(id, visitor);
            }
        }
    }

    /// Accepts one who waits outside; `false`: nobody does.
    fn accept_management(&mut self) -> bool {
        for place in 0..self.management.len() {
            self.management[place].keep_time(self.now);
            while self.management[place].is_ready() {
                match self.platform.accept(ListenerId::Management(place), &mut self.supplies.log, self.now) {
                    Ok(visitor) => {
                        self.management_next = Some(visitor);
                        return true;
                    }
                    Err(failure) => self.management[place].note_failure(failure, self.now),
                }
            }
        }
        false
    }

    fn welcome_management(&mut self, id: PeerId, visitor: Visitor<P::Socket>) {
        let Visitor { mut socket, address } = visitor;
        if let Err(error) = self.platform.register(&mut socket, Interest::Peer(id)) {
            let text = format_args!("a client of the management API could not be set up: {error}");
            return self.supplies.log.warn(self.now, address.source(), LogKind::Shortage, text);
        }
        let session = AdminSession::of_network(address.is_loopback());
        let client = AdminConnection::new(session, self.now);
        self.deadlines.lower(id, client.deadline());
        self.peers.put(id, Peer::new(socket, address, Session::Admin(client), self.now));
        self.list_to_read(id);
    }

    /// Has a password checked that a request came with, unless it is known to be wrong.
    pub(super) fn begin_management_login(&mut self, id: PeerId, check: Box<PasswordCheck>) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        if self.worker.throttle.is_known_wrong(&check) {
            return self.answer_management_login(id, &check, false);
        }
        let ticket = self.worker.ticket();
        peer.waiting = Waiting::Worker(ticket);
        self.worker.throttle.enter(self.now, id, ticket, peer.address, check);
    }

    /// The password that a request came with has been checked: the request is looked at again.
    pub(super) fn answer_management_login(&mut self, id: PeerId, check: &PasswordCheck, is_right: bool) {
        let noted = self.broker.note_checked(check, is_right);
        let Some(Peer { session: Session::Admin(client), address, .. }) = self.peers.get_mut(id) else {
            return;
        };
        if let Err(fault) = &noted {
            let text = format_args!("{address}: management login refused: {}", fault.text);
            self.supplies.log.warn(self.now, address.source(), LogKind::Login, text);
        }
        client.session.note_login(noted.is_ok());
        client.idle_at = self.now.after_ms(IDLE_MS);
        self.deadlines.lower(id, client.idle_at);
        self.resume(id);
    }
}
