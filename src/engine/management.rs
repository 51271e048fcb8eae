//! Clients of the management API: the same kind of peer as the operator's, over the network and with a login;
//! and those who come for metrics to where these are shown without one.
//!
//! Always true: there are never more of both than `management_clients_max`; those who wait for a place are
//! accepted before there is one, so that it is known of which address they are, and the address that has
//! fewest places has the next one; an address never gives up a place for one that has as many; a request has
//! a bounded time to come in, and its answer to be taken (`admin_socket`), and a shorter one while an address
//! with fewer places waits; a password is checked by the worker, under the same throttle as the logins of
//! AMQP.

use core::cmp::Reverse;

use crate::admin::admin_session::AdminSession;
use crate::limits::CONTROL_CLIENTS_MAX;
use crate::log_limiter::LogKind;
use crate::mem::sort_by_key;
use crate::password::PasswordCheck;
use crate::time::Deadline;

use super::address::Source;
use super::admin_socket::{AdminConnection, IDLE_MS};
use super::listener::Listener;
use super::peer::{Ending, Peer, Session, Waiting};
use super::peer_id::PeerId;
use super::platform::{Interest, ListenerId, Platform, Visitor};
use super::state::Engine;
use super::waiting_visitors::{VISITORS_MAX, WaitingVisitor, WaitingVisitors};

/// How many are accepted in a turn, so that a crowd at the door does not hold up those inside.
const ACCEPTS_PER_TURN: usize = 16;
/// How somebody who waits comes in.
enum Entrance {
    /// There is a place for him.
    Free(PeerId),
    /// This one gives his up, which is free in the next turn.
    GivenUp(PeerId),
}

impl<P: Platform> Engine<P> {
    /// Whether somebody is there to be let in, and can be.
    pub(super) fn may_let_management_in(&self) -> bool {
        let may_accept =
            !self.management_visitors.is_full() && self.management.iter().any(Listener::is_ready);
        may_accept || self.next_entrance().is_some()
    }

    fn management_places(&self) -> impl Iterator<Item = PeerId> {
        let most = self.limits.management_clients_max as usize;
        (CONTROL_CLIENTS_MAX..CONTROL_CLIENTS_MAX + most).map(PeerId::from_index)
    }

    /// Places that an address holds.
    fn management_held(&self, source: Source) -> usize {
        let peers = self.management_places().filter_map(|id| self.peers.get(id));
        peers.filter(|peer| peer.ending != Ending::Now && peer.address.origin() == source).count()
    }

    /// Who of those that wait comes in next, by the place in their list, and how; `None`: nobody can.
    fn next_entrance(&self) -> Option<(usize, Entrance)> {
        let free = self.management_places().find(|id| self.peers.get(*id).is_none());
        let sources = self.management_visitors.sources().enumerate();
        let mut waiting: heapless::Vec<_, VISITORS_MAX> = sources
            .map(|(at, source)| {
                (self.management_held(source), self.management_visitors.was_last(source), at, source)
            })
            .collect();
        sort_by_key(&mut waiting, |(held, was_last, at, _)| (*held, *was_last, *at));
        waiting.into_iter().find_map(|(.., at, source)| match free {
            Some(id) => Some((at, Entrance::Free(id))),
            None => self.who_gives_way(source).map(|id| (at, Entrance::GivenUp(id))),
        })
    }

    /// Who gives his place up for one of this address: of the address that has most places one that does
    /// nothing, the longest first. Where addresses would have as many places as each other afterwards, nobody
    /// is disturbed who has just come or begun.
    fn who_gives_way(&self, source: Source) -> Option<PeerId> {
        let own = self.management_held(source);
        let candidates = self.management_places().filter_map(|id| {
            let peer = self.peers.get(id).filter(|peer| peer.ending != Ending::Now)?;
            let Session::Admin(client) = &peer.session else { return None };
            let is_idle = client.is_idle() && peer.waiting == Waiting::No && peer.ending == Ending::No;
            let held = self.management_held(peer.address.origin());
            let is_own = is_idle && peer.address.origin() == source;
            let may_go = held > own + 1 || client.disturbed_at.is_due(self.now) && (held > own || is_own);
            // Whose deadline is next has been idle longest.
            may_go.then_some((Reverse(held), !is_idle, client.idle_at, id))
        });
        candidates.min_by_key(|(held, is_busy, idle_at, _)| (*held, *is_busy, *idle_at)).map(|(.., id)| id)
    }

    /// When somebody who waits may have a place that he may not have yet.
    pub(super) fn management_deadline(&self) -> Deadline {
        let peers = self.management_places().filter_map(|id| self.peers.get(id));
        let later = peers.filter_map(|peer| match &peer.session {
            Session::Admin(client) if !client.disturbed_at.is_due(self.now) => Some(client.disturbed_at),
            _ => None,
        });
        if self.management_visitors.is_empty() {
            Deadline::NEVER
        } else {
            later.fold(Deadline::NEVER, Deadline::earlier)
        }
    }

    /// Accepts who is there, and lets in whom there is a place for.
    pub(super) fn let_management_in(&mut self) {
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
            while self.management[place].is_ready() && !self.management_visitors.is_full() {
                match self.platform.accept(ListenerId::Management(place), &mut self.supplies.log, self.now) {
                    Ok(visitor) => {
                        let is_for_metrics = place >= self.first_metrics;
                        self.seat_management(WaitingVisitor { visitor, is_for_metrics });
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
        let gone = visitors.push(waiting, |source| self.management_held(source));
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
        let session = match waiting.is_for_metrics {
            true => AdminSession::for_metrics(),
            false => AdminSession::of_network(address.is_loopback()),
        };
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
