//! Clients of the management API: the same kind of peer as the operator's, over the network and with a login;
//! and those who come for metrics to where these are shown without one.
//!
//! Always true: there are never more of both than `management_clients_max`, and where there are listeners to
//! both, half of that is each one's own ([`Shares`]), for at the listener of metrics there are strangers;
//! those who wait for a place are accepted before there is one, so that it is known of which address they
//! are, and the address that has fewest places has the next one; an address never gives up a place for one
//! that has as many; a request has a bounded time to come in, and its answer to be taken (`admin_socket`),
//! and a shorter one while an address with fewer places waits; whoever comes with a login that is known never
//! waits for strangers of the same address; a password is checked by the worker, under
//! the same throttle as the logins of AMQP.

use core::cmp::Reverse;

use crate::admin::admin_session::{AdminSession, says_a_known_login};
use crate::limits::CONTROL_CLIENTS_MAX;
use crate::log_limiter::LogKind;
use crate::mem::sort_by_key;
use crate::password::PasswordCheck;
use crate::time::Deadline;

use super::address::Source;
use super::admin_socket::{AdminConnection, IDLE_MS, UNDISTURBED_REQUEST_MS};
use super::peer::{Ending, Peer, Session, Waiting};
use super::peer_id::PeerId;
use super::platform::{Interest, ListenerId, Platform, Socket, Visitor};
use super::state::Engine;
use super::waiting_visitors::{ListenerKind, VISITORS_MAX, WaitingVisitor, WaitingVisitors};

/// How many are accepted in a turn, so that a crowd at the listener does not hold up those inside.
const ACCEPTS_PER_TURN: usize = 16;
/// How often it is looked whether somebody who waits has said who he is, in milliseconds.
const LOOK_EVERY_MS: u64 = 100;
/// How somebody who waits comes in.
enum Entrance {
    /// There is a place for him.
    Free(PeerId),
    /// This one gives his up, which is free in the next turn.
    GivenUp(PeerId),
}

/// What is each listener's own of the places: nobody who came by the other one can keep it.
struct Shares {
    api: usize,
    metrics: usize,
    /// So many places those who came for metrics may have; they are never lent one, but if there is only one.
    metrics_most: usize,
}

impl Shares {
    fn own(&self, listener: ListenerKind) -> usize {
        match listener {
            ListenerKind::Api => self.api,
            ListenerKind::Metrics => self.metrics,
        }
    }
}

impl<P: Platform> Engine<P> {
    /// Whether somebody is there to be let in, and can be.
    pub(super) fn may_let_management_in(&self) -> bool {
        (0..self.management.len()).any(|place| self.may_accept_management(place))
            || self.next_entrance().is_some()
    }

    fn may_accept_management(&self, place: usize) -> bool {
        self.management[place].is_ready()
            && !self.management_visitors.is_full(self.management_listener(place), self.has_one_door())
    }

    fn management_listener(&self, place: usize) -> ListenerKind {
        if place < self.first_metrics { ListenerKind::Api } else { ListenerKind::Metrics }
    }

    /// There is nothing but the API, or nothing but metrics.
    fn has_one_door(&self) -> bool {
        self.first_metrics == 0 || self.first_metrics == self.management.len()
    }

    fn management_shares(&self) -> Shares {
        let most = self.limits.management_clients_max as usize;
        if self.first_metrics == 0 {
            return Shares { api: 0, metrics: most, metrics_most: most };
        }
        let metrics = most / 2;
        Shares { api: most - metrics, metrics, metrics_most: metrics.max(1) }
    }

    fn management_places(&self) -> impl Iterator<Item = PeerId> {
        let most = self.limits.management_clients_max as usize;
        (CONTROL_CLIENTS_MAX..CONTROL_CLIENTS_MAX + most).map(PeerId::from_index)
    }

    /// Who is in, with what is spoken with him and the listener he came by.
    fn management_clients(
        &self,
    ) -> impl Iterator<Item = (PeerId, &Peer<P::Socket>, &AdminConnection, ListenerKind)> {
        self.management_places().filter_map(|id| {
            let peer = self.peers.get(id)?;
            let Session::Admin(client) = &peer.session else { return None };
            let listener =
                if client.session.is_for_metrics() { ListenerKind::Metrics } else { ListenerKind::Api };
            Some((id, peer, client, listener))
        })
    }

    /// Places that those of a listener hold, until they are empty again.
    fn management_taken(&self, listener: ListenerKind) -> usize {
        self.management_clients().filter(|(.., other)| *other == listener).count()
    }

    /// Places that an address holds of those who came by this listener.
    fn management_held(&self, listener: ListenerKind, source: Source) -> usize {
        let is_of = |peer: &Peer<P::Socket>| peer.ending != Ending::Now && peer.address.origin() == source;
        self.management_clients().filter(|(_, peer, _, other)| *other == listener && is_of(peer)).count()
    }

    /// Who of those that wait comes in next, by the place in their list, and how; `None`: nobody can. Whose
    /// listener has not all that is its own goes first, then the address with fewest places, and of one address
    /// whoever has a login that is known.
    fn next_entrance(&self) -> Option<(usize, Entrance)> {
        if self.management_visitors.is_empty() {
            return None;
        }
        let free = self.management_places().find(|id| self.peers.get(*id).is_none());
        let shares = self.management_shares();
        let visitors = self.management_visitors.iter().enumerate();
        let mut waiting: heapless::Vec<_, VISITORS_MAX> = visitors
            .map(|(at, visitor)| {
                let (listener, source) = visitor.origin();
                let is_owed = self.management_taken(listener) < shares.own(listener);
                let held = self.management_held(listener, source);
                let rank = (!is_owed, held, !visitor.is_known, self.management_visitors.was_last(source), at);
                (rank, listener, source)
            })
            .collect();
        sort_by_key(&mut waiting, |(rank, ..)| *rank);
        waiting.into_iter().find_map(|((lends, _, is_stranger, _, at), listener, source)| {
            let has_all =
                listener == ListenerKind::Metrics && self.management_taken(listener) >= shares.metrics_most;
            match free.filter(|_| !has_all) {
                Some(id) => Some((at, Entrance::Free(id))),
                None => self
                    .who_gives_way(listener, source, !lends, has_all)
                    .or_else(|| self.stranger_of(source).filter(|_| !is_stranger))
                    .map(|id| (at, Entrance::GivenUp(id))),
            }
        })
    }

    /// Who gives his place up for one of this listener and address: of the address that has most places one
    /// that does nothing, the longest first. Where addresses would have as many places as each other
    /// afterwards, nobody is disturbed who has just come or begun; and nobody of the other listener who does
    /// something, unless this one `is_owed` a place. One who `has_all` takes none from the other listener.
    fn who_gives_way(
        &self,
        listener: ListenerKind,
        source: Source,
        is_owed: bool,
        has_all: bool,
    ) -> Option<PeerId> {
        let own = self.management_held(listener, source);
        let candidates = self.management_clients().filter_map(|(id, peer, client, other)| {
            if peer.ending == Ending::Now || other != listener && has_all {
                return None;
            }
            let is_idle = client.is_idle() && peer.waiting == Waiting::No && peer.ending == Ending::No;
            let held = self.management_held(other, peer.address.origin());
            let is_own = is_idle && peer.address.origin() == source;
            let by_address = held > own + 1 || client.disturbed_at.is_due(self.now) && (held > own || is_own);
            let may_go = match (other == listener, listener) {
                (true, _) => by_address,
                (false, ListenerKind::Api) if is_owed => self.is_on_loan_no_longer(peer),
                (false, _) => by_address && (is_idle || is_owed),
            };
            // Whose deadline is next has been idle longest.
            may_go.then_some((Reverse(held), !is_idle, client.idle_at, id))
        });
        candidates.min_by_key(|(held, is_busy, idle_at, _)| (*held, *is_busy, *idle_at)).map(|(.., id)| id)
    }

    /// Of the API's clients of an address that did not come with a login that is known, the one who came first.
    fn stranger_of(&self, source: Source) -> Option<PeerId> {
        let strangers = self.management_clients().filter(|(_, peer, client, listener)| {
            let is_here = *listener == ListenerKind::Api && peer.address.origin() == source;
            is_here && peer.ending != Ending::Now && !client.session.is_known()
        });
        strangers.min_by_key(|(_, peer, ..)| peer.since).map(|(id, ..)| id)
    }

    /// Looks every [`LOOK_EVERY_MS`] who of those that wait has a login that is known: in every turn it would cost a
    /// busy broker more than its messages do.
    fn look_at_visitors(&mut self) {
        if !self.management_look_at.is_due(self.now) {
            return;
        }
        self.management_look_at = self.now.after_ms(LOOK_EVERY_MS);
        let mut visitors = core::mem::replace(&mut self.management_visitors, WaitingVisitors::new());
        visitors.look(|visitor| self.is_known_visitor(visitor));
        self.management_visitors = visitors;
    }

    fn is_known_visitor(&self, visitor: &Visitor<P::Socket>) -> bool {
        let at = (self.now.as_ms(), visitor.address.is_loopback());
        let peek = |room: &mut [u8]| visitor.socket.peek(room);
        says_a_known_login(peek, (&self.broker, &self.journal, &self.admin.tokens), at)
    }

    /// Whoever came for metrics and has the only place there is leaves it to the API in a moment, whatever he
    /// is doing.
    fn is_on_loan_no_longer(&self, peer: &Peer<P::Socket>) -> bool {
        peer.since.after_ms(UNDISTURBED_REQUEST_MS).is_due(self.now)
    }

    /// When somebody who waits may have a place that he may not have yet.
    pub(super) fn management_deadline(&self) -> Deadline {
        if self.management_visitors.is_empty() {
            return Deadline::NEVER;
        }
        let look_at = match self.management_visitors.iter().any(WaitingVisitor::may_become_known) {
            true => self.management_look_at,
            false => Deadline::NEVER,
        };
        let deadlines = self.management_clients().flat_map(|(_, peer, client, _)| {
            [client.disturbed_at, peer.since.after_ms(UNDISTURBED_REQUEST_MS)]
        });
        deadlines.filter(|at| !at.is_due(self.now)).fold(look_at, Deadline::earlier)
    }

    /// Accepts who is there, and lets in whom there is a place for.
    pub(super) fn let_management_in(&mut self) {
        self.look_at_visitors();
        for _ in 0..ACCEPTS_PER_TURN {
            if let Some((at, Entrance::Free(id))) = self.next_entrance() {
                let waiting = self.management_visitors.take(at);
                self.welcome_management(id, waiting);
            } else if !self.accept_management() {
                break;
            }
        }
        if let Some((_, Entrance::GivenUp(id))) = self.next_entrance() {
            // It is closed at the end of the turn, and its place is there in the next one.
            self.end_now(id);
        }
    }

    /// Accepts one who waits outside; `false`: nobody does, or there is no room for him to wait in here.
    fn accept_management(&mut self) -> bool {
        for place in 0..self.management.len() {
            self.management[place].keep_time(self.now);
            while self.may_accept_management(place) {
                match self.platform.accept(ListenerId::Management(place), &mut self.supplies.log, self.now) {
                    Ok(visitor) => {
                        let listener = self.management_listener(place);
                        let with_tls = self.management[place].with_tls;
                        let mut waiting = WaitingVisitor { visitor, listener, with_tls, is_known: false };
                        waiting.is_known =
                            waiting.may_become_known() && self.is_known_visitor(&waiting.visitor);
                        self.seat_management(waiting);
                        return true;
                    }
                    Err(failure) => self.management[place].note_failure(failure, self.now),
                }
            }
        }
        false
    }

    /// Lets one wait, and hangs up on who has to go for it.
    fn seat_management(&mut self, waiting: WaitingVisitor<P::Socket>) {
        let mut visitors = core::mem::replace(&mut self.management_visitors, WaitingVisitors::new());
        let is_only = self.has_one_door();
        let held = |listener, source| self.management_held(listener, source);
        let gone = visitors.push(waiting, is_only, held, |visitor| self.is_known_visitor(visitor));
        self.management_visitors = visitors;
        if let Some(Visitor { address, .. }) = gone {
            let text = format_args!(
                "{address}: hung up on before its first request: its address holds most of \
                 management_clients_max, and others wait"
            );
            self.supplies.log.warn(self.now, address.source(), LogKind::Shortage, text);
        }
    }

    fn welcome_management(&mut self, id: PeerId, waiting: WaitingVisitor<P::Socket>) {
        let Visitor { mut socket, address } = waiting.visitor;
        if let Err(error) = self.platform.register(&mut socket, Interest::Peer(id)) {
            let text = format_args!("a client of the management API could not be set up: {error}");
            return self.supplies.log.warn(self.now, address.source(), LogKind::Shortage, text);
        }
        let session = match waiting.listener {
            ListenerKind::Metrics => AdminSession::for_metrics(),
            ListenerKind::Api => AdminSession::of_network(address.is_loopback()),
        };
        let client = AdminConnection::new(session, self.now);
        self.deadlines.lower(id, client.deadline());
        let mut peer = Peer::new(socket, address, Session::Admin(client), self.now);
        if waiting.with_tls {
            peer.stream.begin_tls();
        }
        self.peers.put(id, peer);
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
