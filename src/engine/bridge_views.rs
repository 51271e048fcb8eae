//! Bridges as an operator is told of them, and what he has done with them.
//!
//! Always true: a link is called running only while messages can flow over it and the upstream was heard of
//! within two heartbeats, if it has any.

use crate::admin::request_context::{
    BridgeLinkView, BridgeOrder, Bridges as BridgeViews, ShovelEndView, ShovelView,
};
use crate::bridge::Stage;
use crate::config::shovel::End;
use crate::time::Now;

use super::bridge_link::{Direction, Flow, Link, LinkId};
use super::bridge_state::{Bridge, Bridges, LinkState, PARKED_KINDS, Phase};
use super::peer::Session;
use super::peers::Peers;
use super::platform::Platform;
use super::state::Engine;

/// All bridges, to be looked at.
pub(super) struct ShownBridges<'s, S> {
    pub(super) bridges: &'s Bridges,
    pub(super) peers: &'s Peers<S>,
    /// Bytes that the log has room for, if there is one.
    pub(super) disk_room: Option<u64>,
    pub(super) now: Now,
    pub(super) unix_ms: u64,
}

impl<S> ShownBridges<'_, S> {
    fn link_of(&self, state: &LinkState) -> Option<&Link> {
        let Phase::Connected(connection) = state.phase else { return None };
        match &self.peers.get(connection)?.session {
            Session::Bridge(link) => link.as_deref(),
            Session::Amqp(_) | Session::Admin(_) => None,
        }
    }
}

impl<S> BridgeViews for ShownBridges<'_, S> {
    fn places(&self) -> usize {
        2 * self.bridges.places.len()
    }

    fn places_max(&self) -> usize {
        self.bridges.max
    }

    fn at(&self, place: usize) -> Option<BridgeLinkView<'_>> {
        let bridge = self.bridges.places.get(place / 2)?;
        let direction = Direction::BOTH[place % 2];
        let state = bridge.links[direction as usize].as_ref()?;
        let link = self.link_of(state);
        let (pending, held) = match link.map(|link| &link.flow) {
            Some(Flow::Forward(forward)) => (forward.flights.len(), 0),
            Some(Flow::Fetch(fetch)) => (fetch.arrivals.len(), fetch.held),
            None => (0, 0),
        };
        let counts = &state.counts;
        let [day_bytes, yesterday_bytes, gone_ms] = bridge.day.numbers(self.now);
        let lately = [state.today, state.yesterday];
        let parked = core::array::from_fn(|kind| (PARKED_KINDS[kind], counts.parked[kind]));
        let retry_in_ms = match state.phase {
            Phase::Waiting(at) => at.ms_left(self.now),
            Phase::Resting => bridge.demand.as_ref().and_then(|demand| demand.due().ms_left(self.now)),
            _ => None,
        };
        Some(BridgeLinkView {
            bridge: &bridge.config.name,
            direction: direction.name(),
            state: state_of(bridge, state, link),
            vhost: &bridge.config.vhost,
            upstream: bridge.config.upstream[state.upstream].to_string(),
            moved: counts.moved,
            pending: pending as u64,
            queues: queues_of(bridge, direction),
            repeats: counts.repeats,
            inflow: bridge.inflow.span(gone_ms),
            inflow_counted: bridge.inflow.counted(),
            sent_lately: (
                lately.iter().map(|price| price.messages).sum(),
                lately.iter().map(|price| price.payload).sum(),
            ),
            drain_per_1000_s: bridge.drain_per_1000_s,
            disk_room: self.disk_room,
            outage_days_min: bridge.config.outage_days_min,
            parked_queue: &bridge.config.parked,
            parked,
            held: held.into(),
            today: state.today.kinds(),
            yesterday: state.yesterday.kinds(),
            day_bytes,
            day_bytes_max: bridge.config.day_bytes_max,
            yesterday_bytes,
            held_rules: bridge.held_rules(direction).count_ones().into(),
            is_day_spent: bridge.day.is_spent(),
            connected: counts.connected,
            failed: counts.failed,
            retried: retried_of(bridge),
            last_error: state.last_error.as_ref().map(|(cause, at)| (cause.as_str(), self.now.ms_since(*at))),
            up_for_ms: state.ready_since.map(|since| self.now.ms_since(since)),
            down_for_ms: state
                .was_ready
                .filter(|_| state.ready_since.is_none())
                .map(|since| self.now.ms_since(since)),
            retry_in_ms,
            shovel: shovel_of(bridge, state),
            is_paused: bridge.is_paused,
            changed_at_ms: self.unix_ms.saturating_sub(self.now.ms_since(changed_at(state))),
        })
    }

    fn is_known(&self, bridge: &str) -> bool {
        self.bridges.places.iter().any(|other| !other.is_leaving && other.config.name == bridge)
    }
}

/// When a link's state changed last.
#[cold]
fn changed_at(state: &LinkState) -> Now {
    let failed = state.last_error.as_ref().map(|(_, at)| *at);
    let times = [state.ready_since, state.was_ready, failed];
    times.into_iter().flatten().fold(state.since, |last, at| if at > last { at } else { last })
}

/// What a bridge is as a shovel.
#[cold]
fn shovel_of<'a>(bridge: &'a Bridge, state: &LinkState) -> Option<ShovelView<'a>> {
    let shovel = bridge.config.shovel.as_ref()?;
    let view = |end: &'a End| ShovelEndView {
        uri: end.uris.get(if end.is_here { 0 } else { state.upstream }).map_or("", String::as_str),
        queue: end.queue.as_deref(),
        exchange: end.exchange.as_deref(),
        key: end.key.as_deref(),
    };
    Some(ShovelView {
        name: &shovel.name,
        vhost: &shovel.vhost,
        source: view(&shovel.source),
        destination: view(&shovel.destination),
        left: state.left,
    })
}

/// Queues here that wait to be forwarded.
#[cold]
fn queues_of(bridge: &Bridge, direction: Direction) -> Option<Vec<&str>> {
    let rules = &bridge.config.forward;
    (direction == Direction::Forward).then(|| rules.iter().map(|rule| rule.queue.as_str()).collect())
}

/// What was set aside and is to go back.
#[cold]
fn retried_of(bridge: &Bridge) -> String {
    match (&bridge.retry, &bridge.retried) {
        (Some(retry), _) => format!("{} went back so far", retry.moved),
        (None, Some(cause)) => cause.to_string(),
        (None, None) => String::new(),
    }
}

#[cold]
fn state_of(bridge: &Bridge, state: &LinkState, link: Option<&Link>) -> &'static str {
    match (state.phase, link) {
        _ if bridge.is_leaving => "ending",
        (Phase::Connected(_), Some(link)) => match link.client.stage() {
            _ if link.is_draining => "ending",
            Stage::Ready if link.client.is_blocked() => "blocked",
            Stage::Ready => "running",
            _ => "connecting",
        },
        (Phase::Connected(_), None) | (Phase::LookingUp(_), _) => "connecting",
        (Phase::Waiting(_), _) => "waiting",
        (Phase::Resting, _) => "resting",
        (Phase::Paused, _) => "paused",
    }
}

impl<P: Platform> Engine<P> {
    /// Does with a bridge what the operator wants.
    #[cold]
    pub(super) fn follow_bridge_order(&mut self, name: &str, order: BridgeOrder) {
        let is_it = |bridge: &Bridge| !bridge.is_leaving && bridge.config.name == name;
        // It was there when that was asked; a reload may have been quicker.
        let Some(place) = self.bridges.places.iter().position(is_it) else { return };
        let bridge = &mut self.bridges.places[place];
        let serial = bridge.serial;
        if order != BridgeOrder::Retry {
            self.bridges.note_due = self.now.after_ms(0);
        }
        match order {
            BridgeOrder::Retry => {
                bridge.hurry_rules(self.now);
                self.begin_retry(place);
            }
            BridgeOrder::Pause => {
                bridge.is_paused = true;
                self.drain_bridge(serial);
            }
            BridgeOrder::Resume | BridgeOrder::Restart => {
                bridge.is_paused = false;
                let now = self.now;
                bridge.hurry_rules(now);
                for state in bridge.links.iter_mut().flatten() {
                    state.is_going_to_rest = false;
                    if matches!(state.phase, Phase::Paused | Phase::Resting | Phase::Waiting(_)) {
                        state.backoff.reset();
                        state.phase = Phase::Waiting(now.after_ms(0));
                    }
                }
                if order == BridgeOrder::Restart {
                    self.restart_links(serial);
                }
            }
        }
    }

    /// The links that a bridge has end, and begin again.
    #[cold]
    fn restart_links(&mut self, serial: u64) {
        for direction in Direction::BOTH {
            let state = self.bridges.link_mut(LinkId { bridge: serial, direction });
            if let Some(Phase::Connected(connection)) = state.map(|state| state.phase) {
                self.drain_link(connection);
            }
        }
    }
}
