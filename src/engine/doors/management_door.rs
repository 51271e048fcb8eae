//! The door of the management API, and of metrics where these are shown without a login.
//!
//! Always true: there are never more clients of both than `management_clients_max`, and where there are
//! listeners to both, half of that is each one's own ([`Shares`]), for at the listener of metrics there are
//! strangers; those who wait for a place are accepted before there is one, so that it is known of which address
//! they are, and the address that has fewest places has the next one; an address never gives up a place for one
//! that has as many; a request has a bounded time to come in, and its answer to be taken (`operator_client`), and a
//! shorter one while an address with fewer places waits; whoever comes with a login that is known never waits
//! for strangers of the same address.

use core::cmp::Reverse;

use crate::limits::{CONTROL_CLIENTS_MAX, Limits};
use crate::log_limiter::{LogKind, LogLimiter};
use crate::mem::sort_by_key;
use crate::requests::operator_session::says_a_known_login;
use crate::time::{Deadline, Now};

use super::house::{House, Step};
use super::waiting_visitors::{ListenerKind, VISITORS_MAX, WaitingVisitor, WaitingVisitors};
use crate::address::Source;
use crate::listener::Listener;
use crate::operator_client::{OperatorClient, UNDISTURBED_REQUEST_MS};
use crate::peer::{Ending, Peer, Session, Waiting};
use crate::peer_id::PeerId;
use crate::platform::{ListenerId, Platform, Socket, Visitor};

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
    /// Places that those who came for metrics may have; they are never lent one, but if there is only one.
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

/// How many visitors may still come in during this turn of the loop.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Round {
    /// The turn has not begun.
    New,
    /// So many more may come in.
    Going(usize),
    /// Nobody more comes in.
    Over,
}

/// The door, and who waits inside of it.
#[derive(Debug)]
pub(super) struct ManagementDoor<S> {
    /// The listeners of the API, and behind them those of metrics.
    listeners: Vec<Listener>,
    /// From this place on there is nothing but metrics, and no login.
    first_metrics: usize,
    visitors: WaitingVisitors<S>,
    /// When to look again which of them has a login that is known.
    look_at: Deadline,
    round: Round,
}

impl<S: Socket> ManagementDoor<S> {
    /// The last `metrics` of the listeners, which speak TLS or not, are those of metrics.
    pub(super) fn new(with_tls: &[bool], metrics: usize) -> Self {
        assert!(metrics <= with_tls.len(), "listeners of metrics are among the listeners");
        Self {
            listeners: with_tls.iter().copied().map(Listener::new).collect(),
            first_metrics: with_tls.len() - metrics,
            visitors: WaitingVisitors::new(),
            look_at: Now::from_ms(0).after_ms(0),
            round: Round::New,
        }
    }

    pub(super) fn note_listener(&mut self, place: usize) {
        if let Some(listener) = self.listeners.get_mut(place) {
            listener.note_event();
        }
    }

    pub(super) fn shut(&mut self) {
        self.listeners.clear();
        self.visitors.clear();
    }

    pub(super) fn is_ready(&self, house: &House<'_, S>) -> bool {
        (0..self.listeners.len()).any(|place| self.may_accept(place)) || self.next_entrance(house).is_some()
    }

    fn may_accept(&self, place: usize) -> bool {
        self.listeners[place].is_ready() && !self.visitors.is_full(self.kind_of(place), self.has_one_kind())
    }

    fn kind_of(&self, place: usize) -> ListenerKind {
        if place < self.first_metrics { ListenerKind::Api } else { ListenerKind::Metrics }
    }

    /// There is nothing but the API, or nothing but metrics.
    fn has_one_kind(&self) -> bool {
        self.first_metrics == 0 || self.first_metrics == self.listeners.len()
    }

    fn shares(&self, limits: &Limits) -> Shares {
        let most = limits.management_clients_max as usize;
        if self.first_metrics == 0 {
            return Shares { api: 0, metrics: most, metrics_most: most };
        }
        let metrics = most / 2;
        Shares { api: most - metrics, metrics, metrics_most: metrics.max(1) }
    }

    /// Who of those that wait comes in next, by the place in their list, and how; `None`: nobody can. Whose
    /// listener has not all that is its own goes first, then the address with fewest places, and of one address
    /// whoever has a login that is known.
    fn next_entrance(&self, house: &House<'_, S>) -> Option<(usize, Entrance)> {
        if self.visitors.is_empty() {
            return None;
        }
        let free = places(house.limits).find(|id| house.peers.get(*id).is_none());
        let shares = self.shares(house.limits);
        let visitors = self.visitors.iter().enumerate();
        let mut waiting: heapless::Vec<_, VISITORS_MAX> = visitors
            .map(|(at, visitor)| {
                let (listener, source) = visitor.origin();
                let is_owed = taken(house, listener) < shares.own(listener);
                let holds = held(house, listener, source);
                let rank = (!is_owed, holds, !visitor.is_known, self.visitors.was_last(source), at);
                (rank, listener, source)
            })
            .collect();
        sort_by_key(&mut waiting, |(rank, ..)| *rank);
        waiting.into_iter().find_map(|((lends, _, is_stranger, _, at), listener, source)| {
            let has_all = listener == ListenerKind::Metrics && taken(house, listener) >= shares.metrics_most;
            match free.filter(|_| !has_all) {
                Some(id) => Some((at, Entrance::Free(id))),
                None => who_gives_way(house, (listener, source), !lends, has_all)
                    .or_else(|| stranger_of(house, source).filter(|_| !is_stranger))
                    .map(|id| (at, Entrance::GivenUp(id))),
            }
        })
    }

    /// Looks every [`LOOK_EVERY_MS`] who of those that wait has a login that is known: in every turn it would cost a
    /// busy broker more than its messages do.
    fn look(&mut self, house: &House<'_, S>) {
        if self.look_at.is_due(house.now) {
            self.look_at = house.now.after_ms(LOOK_EVERY_MS);
            self.visitors.look(|visitor| is_known(house, visitor));
        }
    }

    /// When somebody may be accepted again, or somebody who waits may have a place that he may not have yet.
    pub(super) fn deadline(&self, house: &House<'_, S>) -> Deadline {
        let listeners =
            self.listeners.iter().map(Listener::deadline).fold(Deadline::NEVER, Deadline::earlier);
        if self.visitors.is_empty() {
            return listeners;
        }
        let may_look = self.visitors.iter().any(WaitingVisitor::may_become_known);
        let look_at = if may_look { self.look_at } else { Deadline::NEVER };
        let clients =
            clients(house).flat_map(|(_, peer, client, _)| [client.disturbed_at, undisturbed_until(peer)]);
        clients.filter(|at| !at.is_due(house.now)).fold(listeners.earlier(look_at), Deadline::earlier)
    }

    /// See [`super::Doors::poll`].
    pub(super) fn poll<P: Platform<Socket = S>>(
        &mut self,
        house: &House<'_, S>,
        platform: &mut P,
        log: &mut LogLimiter,
    ) -> Option<Step<S>> {
        let left = match core::mem::replace(&mut self.round, Round::New) {
            Round::New => {
                self.look(house);
                ACCEPTS_PER_TURN
            }
            Round::Going(left) => left,
            Round::Over => return None,
        };
        for left in (0..left).rev() {
            if let Some((at, Entrance::Free(id))) = self.next_entrance(house) {
                self.round = Round::Going(left);
                return Some(Step::Enter(id, self.visitors.take(at)));
            }
            if !self.accept(house, platform, log) {
                break;
            }
        }
        let Some((_, Entrance::GivenUp(id))) = self.next_entrance(house) else { return None };
        // It is closed at the end of the turn, and its place is there in the next one.
        self.round = Round::Over;
        Some(Step::GiveUp(id))
    }

    /// Accepts one who waits outside; `false`: nobody does, or there is no room for him to wait in here.
    fn accept<P: Platform<Socket = S>>(
        &mut self,
        house: &House<'_, S>,
        platform: &mut P,
        log: &mut LogLimiter,
    ) -> bool {
        for place in 0..self.listeners.len() {
            self.listeners[place].keep_time(house.now);
            while self.may_accept(place) {
                match platform.accept(ListenerId::Management(place), log, house.now) {
                    Ok(visitor) => {
                        let (listener, with_tls) = (self.kind_of(place), self.listeners[place].with_tls);
                        let mut waiting = WaitingVisitor { visitor, listener, with_tls, is_known: false };
                        waiting.is_known = waiting.may_become_known() && is_known(house, &waiting.visitor);
                        self.seat(waiting, house, log);
                        return true;
                    }
                    Err(failure) => self.listeners[place].note_failure(failure, house.now),
                }
            }
        }
        false
    }

    /// Lets one wait, and hangs up on who has to go for it.
    fn seat(&mut self, waiting: WaitingVisitor<S>, house: &House<'_, S>, log: &mut LogLimiter) {
        let is_only = self.has_one_kind();
        let held = |listener, source| held(house, listener, source);
        if let Some(Visitor { address, .. }) =
            self.visitors.push(waiting, is_only, held, |visitor| is_known(house, visitor))
        {
            let text = format_args!(
                "{address}: hung up on before its first request: its address holds most of \
                 management_clients_max, and others wait"
            );
            log.warn(house.now, address.source(), LogKind::Shortage, text);
        }
    }
}

fn places(limits: &Limits) -> impl Iterator<Item = PeerId> + use<> {
    let most = limits.management_clients_max as usize;
    (CONTROL_CLIENTS_MAX..CONTROL_CLIENTS_MAX + most).map(PeerId::from_index)
}

/// Who is in, with what is spoken with him and the listener he came by.
fn clients<'h, S>(
    house: &'h House<'_, S>,
) -> impl Iterator<Item = (PeerId, &'h Peer<S>, &'h OperatorClient, ListenerKind)> {
    places(house.limits).filter_map(|id| {
        let peer = house.peers.get(id)?;
        let Session::Operator(client) = &peer.session else { return None };
        let listener =
            if client.session.is_for_metrics() { ListenerKind::Metrics } else { ListenerKind::Api };
        Some((id, peer, client, listener))
    })
}

/// Places that those of a listener hold, until they are empty again.
fn taken<S>(house: &House<'_, S>, listener: ListenerKind) -> usize {
    clients(house).filter(|(.., other)| *other == listener).count()
}

/// Places that an address holds of those who came by this listener.
fn held<S>(house: &House<'_, S>, listener: ListenerKind, source: Source) -> usize {
    let is_of = |peer: &Peer<S>| peer.ending != Ending::Now && peer.address.origin() == source;
    clients(house).filter(|(_, peer, _, other)| *other == listener && is_of(peer)).count()
}

/// Who gives his place up for one of this listener and address: of the address that has most places one that
/// does nothing, the longest first. Where addresses would have as many places as each other afterwards, nobody is
/// disturbed who has just come or begun; and nobody of the other listener who does something, unless this one
/// `is_owed` a place. One who `has_all` takes none from the other listener.
fn who_gives_way<S>(
    house: &House<'_, S>,
    (listener, source): (ListenerKind, Source),
    is_owed: bool,
    has_all: bool,
) -> Option<PeerId> {
    let own = held(house, listener, source);
    let candidates = clients(house).filter_map(|(id, peer, client, other)| {
        if peer.ending == Ending::Now || other != listener && has_all {
            return None;
        }
        let is_idle = client.is_idle() && peer.waiting == Waiting::No && peer.ending == Ending::No;
        let holds = held(house, other, peer.address.origin());
        let is_own = is_idle && peer.address.origin() == source;
        let by_address = holds > own + 1 || client.disturbed_at.is_due(house.now) && (holds > own || is_own);
        let may_go = match (other == listener, listener) {
            (true, _) => by_address,
            // Whoever came for metrics and has the only place there is leaves it to the API in a moment,
            // whatever he is doing.
            (false, ListenerKind::Api) if is_owed => undisturbed_until(peer).is_due(house.now),
            (false, _) => by_address && (is_idle || is_owed),
        };
        // Whose deadline is next has been idle longest.
        may_go.then_some((Reverse(holds), !is_idle, client.idle_at, id))
    });
    candidates.min_by_key(|(holds, is_busy, idle_at, _)| (*holds, *is_busy, *idle_at)).map(|(.., id)| id)
}

/// Of the API's clients of an address that did not come with a login that is known, the one who came first.
fn stranger_of<S>(house: &House<'_, S>, source: Source) -> Option<PeerId> {
    let strangers = clients(house).filter(|(_, peer, client, listener)| {
        let is_here = *listener == ListenerKind::Api && peer.address.origin() == source;
        is_here && peer.ending != Ending::Now && !client.session.is_known()
    });
    strangers.min_by_key(|(_, peer, ..)| peer.since).map(|(id, ..)| id)
}

/// Nobody has to leave before who has just come.
fn undisturbed_until<S>(peer: &Peer<S>) -> Deadline {
    peer.since.after_ms(UNDISTURBED_REQUEST_MS)
}

fn is_known<S: Socket>(house: &House<'_, S>, visitor: &Visitor<S>) -> bool {
    let at = (house.now.as_ms(), visitor.address.is_loopback());
    let peek = |room: &mut [u8]| visitor.socket.peek(room);
    says_a_known_login(peek, (house.broker, house.journal, house.tokens), at)
}
