//! Links that are there only while there is something to do (`link = "on_demand"`): when they end, and what
//! they begin again for.
//!
//! Always true: a link ends itself only when nothing is under way and nothing waits that it may send; while
//! all its rules are held, a bridge connects for nothing; both links of a bridge begin together, for one
//! contact costs less than two.

use crate::command::ConnectionId;
use crate::log_limiter::{LogKind, LogSource};
use crate::time::Deadline;

use super::bridge_link::{Direction, LinkId};
use super::bridge_state::{Bridge, Phase};
use super::peer::{Peer, Session};
use super::platform::Platform;
use super::state::Engine;

impl<P: Platform> Engine<P> {
    /// Ends links that have nothing to do, and begins those for which there is something.
    pub(super) fn keep_rests(&mut self) {
        for place in 0..self.bridges.places.len() {
            if self.bridges.places[place].demand.is_some() && self.stopping.is_none() {
                self.keep_rest(place);
            }
        }
    }

    /// Whether [`Self::keep_rests`] would find that something waits, or that nothing does any more.
    pub(super) fn has_rest_work(&self) -> bool {
        self.stopping.is_none()
            && self.bridges.places.iter().any(|bridge| {
                let demand = bridge.demand.as_ref().filter(|_| bridge.may_be_wanted());
                demand.is_some_and(|demand| {
                    let waiting = self.waiting_of(bridge);
                    demand.is_news(waiting) || waiting > 0 && !self.for_room.is_empty()
                })
            })
    }

    /// Messages here that wait to be forwarded, but for those whose rules are held.
    fn waiting_of(&self, bridge: &Bridge) -> u64 {
        let held = bridge.held_rules(Direction::Forward);
        let rules = bridge.config.forward.iter().enumerate().filter(|(at, _)| held & 1 << at == 0);
        let vhost = &bridge.config.vhost;
        rules.map(|(_, rule)| u64::from(self.broker.queue_depth(vhost, &rule.queue).unwrap_or(0))).sum()
    }

    #[cold]
    fn keep_rest(&mut self, place: usize) {
        let (bridge, now) = (&self.bridges.places[place], self.now);
        let may_end = |direction: &Direction| {
            bridge.links[*direction as usize].as_ref().is_some_and(|state| state.rest_due.is_due(now))
        };
        let ending = Direction::BOTH.map(|direction| may_end(&direction).then_some(direction));
        if ending == [None; 2] && !bridge.may_be_wanted() {
            return;
        }
        let (serial, waiting) = (bridge.serial, self.waiting_of(bridge));
        for direction in ending.into_iter().flatten() {
            self.end_contact(LinkId { bridge: serial, direction }, waiting);
        }
        let has_room = self.for_room.is_empty();
        let unix_ms = self.platform.unix_ms();
        let bridge = &mut self.bridges.places[place];
        if !bridge.may_be_wanted() {
            return;
        }
        let reason = bridge.demand.as_mut().and_then(|demand| demand.look(now, unix_ms, (waiting, has_room)));
        let Some(reason) = reason else { return };
        for state in bridge.links.iter_mut().flatten().filter(|state| state.phase == Phase::Resting) {
            state.phase = Phase::Waiting(now.after_ms(0));
        }
        let text = format_args!("bridge {} connects: {}", bridge.config.name, reason.words());
        self.supplies.log.log(now, log::Level::Info, LogSource::Bridge(serial), LogKind::Bridge, text);
    }

    /// A link that has moved nothing for a while ends, unless something waits to be forwarded over it.
    #[cold]
    fn end_contact(&mut self, id: LinkId, waiting: u64) {
        let now = self.now;
        let Some(Phase::Connected(connection)) = self.bridges.get(id).map(|(_, state)| state.phase) else {
            unreachable!("only a link that is up may rest")
        };
        let is_idle = self.with_link(connection, |_, link| link.is_idle() && !link.is_draining) == Some(true);
        let has_more =
            id.direction == Direction::Forward && (waiting > 0 || self.broker.has_output(connection));
        let Some(bridge) = self.bridges.get_mut(id) else { return };
        let after_ms = bridge.demand.as_ref().map_or(0, crate::bridge::Demand::rest_after_ms);
        let Some(state) = &mut bridge.links[id.direction as usize] else { return };
        let may_rest = is_idle && !has_more;
        (state.is_going_to_rest, state.rest_due) =
            (may_rest, if may_rest { Deadline::NEVER } else { now.after_ms(after_ms) });
        if may_rest {
            self.drain_link(connection);
        }
    }

    /// A link is up, or has moved something: it stays a while.
    pub(super) fn note_active(&mut self, id: ConnectionId) {
        let Some(Peer { session: Session::Bridge(Some(link)), .. }) = self.peers.get_mut(id) else { return };
        let (id, is_busy) = (link.id, core::mem::take(&mut link.has_moved) || !link.is_idle());
        let now = self.now;
        let Some(bridge) = self.bridges.get_mut(id) else { return };
        let Some(demand) = &bridge.demand else { return };
        let due = now.after_ms(demand.rest_after_ms());
        let Some(state) = &mut bridge.links[id.direction as usize] else { return };
        let is_new = state.rest_due == Deadline::NEVER && !state.is_going_to_rest;
        if state.ready_since.is_some() && (is_busy || is_new) {
            state.rest_due = due;
        }
    }

    /// A link has ended because there is nothing to do for it: it was a success.
    #[cold]
    pub(super) fn rest_link(&mut self, id: LinkId) {
        let (now, unix_ms, chance) = (self.now, self.platform.unix_ms(), self.bridges.chance());
        let Some(bridge) = self.bridges.get_mut(id) else { return };
        if let Some(state) = &mut bridge.links[id.direction as usize] {
            state.phase = Phase::Resting;
            state.backoff.reset();
            state.forget_logged();
        }
        bridge.demand.iter_mut().for_each(|demand| demand.rest(now, unix_ms, chance));
    }
}

impl Bridge {
    /// Whether a link rests that something could be done for.
    pub(super) fn may_be_wanted(&self) -> bool {
        let is_resting = self.links.iter().flatten().any(|state| state.phase == Phase::Resting);
        let may_move =
            !self.is_held || self.config.forward.iter().chain(&self.config.fetch).any(|rule| rule.is_urgent);
        is_resting && may_move && !self.is_leaving
    }

    /// When its demand is to be looked at.
    pub(super) fn demand_deadline(&self) -> Deadline {
        let demand = self.demand.as_ref().filter(|_| self.may_be_wanted());
        demand.map_or(Deadline::NEVER, crate::bridge::Demand::deadline)
    }
}
