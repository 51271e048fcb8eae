//! Bridges: when their links are tried, and what becomes of those that end.
//!
//! ```text
//! Waiting ─ due → LookingUp ─ addresses → Connected ─ messages flow …
//!    ▲               │ none                   │ broken, refused, wedged
//!    └── Backoff ◄───┴────────────────────────┘          Paused ─ resumed → Waiting
//!                                            └ nothing to do, if on demand → Resting ─ demand → Waiting
//! ```
//!
//! Always true: nobody waits for a name or for an upstream; a link that fails is tried again after a pause
//! that grows, for ever; one bridge's trouble is no other's.

use core::net::{IpAddr, SocketAddr};

use crate::bridge::{Arrivals, Cause, Client, Credentials, Drain, Flights, Origin, Role};
use crate::broker;
use crate::config::bridge::Bridge as Config;
use crate::config::upstream::is_this_machine;
use crate::log_limiter::{LogKind, LogSource};
use crate::time::{Deadline, Now};

use super::address::PeerAddress;
use super::bridge_link::{Direction, Fetch, Flow, Forward, Link, LinkId};
use super::bridge_peer::hung_up;
use super::bridge_state::{ADDRESSES_MAX, Bridge, LinkState, Phase};
use super::name_lookup::NameLookup;
use super::peer::{Peer, Session};
use super::platform::{Interest, Platform};
use super::state::Engine;

/// The pause before the next upstream of several is tried, in milliseconds.
const NEXT_UPSTREAM_MS: u64 = 200;
/// A link that lasted so long was up: what happens to it next is news.
const STABLE_MS: u64 = 60_000;
/// Links that are begun in one turn.
const TRIES_PER_TURN: usize = 4;

impl<P: Platform> Engine<P> {
    /// These bridges are to be there from now on: those that are there as they are stay as they are.
    #[cold]
    pub(super) fn want_bridges(&mut self, wanted: &[Config]) {
        for at in 0..self.bridges.places.len() {
            self.note_inflow(at);
            let bridge = &mut self.bridges.places[at];
            if !bridge.is_leaving && !wanted.contains(&bridge.config) {
                bridge.is_leaving = true;
                let serial = bridge.serial;
                self.leave_source(at, wanted);
                self.drain_bridge(serial);
            }
        }
        for config in wanted {
            let is_there = |bridge: &Bridge| !bridge.is_leaving && bridge.config == *config;
            if self.bridges.places.iter().any(is_there) {
                continue;
            }
            if config.has_tls() && !self.bridges.has_tls_room {
                let name = &config.name;
                let text =
                    format_args!("bridge {name}: there is no memory for TLS with upstreams until a restart");
                self.supplies.log.warn(self.now, LogSource::Anybody, LogKind::Bridge, text);
                continue;
            }
            let staying = self.bridges.places.iter().filter(|bridge| !bridge.is_leaving).count();
            if staying < self.bridges.max {
                self.hasten_leaving();
                let was_paused = |bridge: &Bridge| bridge.config.name == config.name && bridge.is_paused;
                let is_paused = self.bridges.places.iter().any(was_paused);
                self.bridges.add(config.clone(), self.now);
                self.begin_inflow(self.bridges.places.len() - 1);
                if let Some(bridge) = self.bridges.places.last_mut() {
                    let serial = bridge.serial;
                    if is_paused {
                        bridge.pause();
                    }
                    self.begin_queues(serial);
                }
            } else {
                let name = &config.name;
                let text = format_args!("bridge {name}: bridges_max has no room for it until a restart");
                self.supplies.log.warn(self.now, LogSource::Anybody, LogKind::Bridge, text);
            }
        }
    }

    /// Bridges that leave finish what they have begun, but not while others are made again and again: they
    /// take connections from everybody.
    #[cold]
    fn hasten_leaving(&mut self) {
        if self.bridges.places.len() < 2 * self.bridges.max {
            return;
        }
        let leaving = self.bridges.places.iter().filter(|bridge| bridge.is_leaving);
        let links = leaving.flat_map(|bridge| bridge.links.iter().flatten());
        let connected = links.filter_map(|link| match link.phase {
            Phase::Connected(id) => Some(id),
            _ => None,
        });
        for id in connected.collect::<Vec<_>>() {
            self.put_link_out(id, "it was changed again before that had come to its end");
        }
    }

    /// Whether there is one.
    pub const fn has_bridges(&self) -> bool {
        !self.bridges.places.is_empty()
    }

    /// Whose messages leave this broker.
    pub const fn set_origin(&mut self, store: [u8; 16], life: u32) {
        self.bridges.origin = Origin { store, life };
    }

    /// Begins what is due.
    pub(super) fn keep_bridges(&mut self) {
        if self.has_parameter_news() {
            self.take_parameters();
        }
        if self.bridges.places.is_empty() {
            return;
        }
        self.take_lookup();
        self.note_bridges();
        self.retry_parked();
        self.tell_parked();
        self.keep_days();
        self.keep_trials();
        self.keep_rests();
        self.drop_left();
        if self.stopping.is_some() {
            return;
        }
        for _ in 0..TRIES_PER_TURN {
            let now = self.now;
            let is_due = |link: &LinkState| matches!(link.phase, Phase::Waiting(at) if at.is_due(now));
            let Some(id) = self.bridges.find(&is_due) else { break };
            match self.bridges.get(id).is_some_and(|(_, link)| !link.addresses.is_empty()) {
                true => self.dial(id, None),
                false => self.try_link(id),
            }
        }
        self.give_lookup();
    }

    /// Bridges that are to go and whose links have ended.
    #[cold]
    fn drop_left(&mut self) {
        let is_connected = |link: &LinkState| matches!(link.phase, Phase::Connected(_));
        let is_left = |bridge: &Bridge| bridge.is_leaving && !bridge.links.iter().flatten().any(is_connected);
        while let Some(place) = self.bridges.places.iter().position(is_left) {
            let mut bridge = self.bridges.places.remove(place);
            // What it did since it was changed counts, too.
            let is_next = |next: &&mut Bridge| !next.is_leaving && next.config.name == bridge.config.name;
            if let Some(next) = self.bridges.places.iter_mut().find(is_next) {
                bridge.hand_counts_on(&mut next.links);
            }
            self.clear_up_after(&bridge);
        }
    }

    #[cold]
    fn try_link(&mut self, id: LinkId) {
        self.bridges.tickets += 1;
        let ticket = self.bridges.tickets;
        let Some((bridge, link)) = self.bridges.get(id) else { return };
        let (upstream, is_leaving) = (&bridge.config.upstream[link.upstream], bridge.is_leaving);
        let address = upstream.host.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, upstream.port));
        let Some(link) = self.bridges.link_mut(id).filter(|_| !is_leaving) else { return };
        link.addresses.clear();
        if let Some(address) = address {
            let is_kept = link.addresses.push_back(address).is_ok();
            debug_assert!(is_kept, "there was none");
            self.dial(id, None);
        } else {
            link.phase = Phase::LookingUp(ticket);
            self.bridges.lookups.push_back((id, ticket));
        }
    }

    // ---- names

    #[cold]
    fn give_lookup(&mut self) {
        if self.bridges.is_looking {
            return;
        }
        while let Some((id, ticket)) = self.bridges.lookups.pop_front() {
            let Some((bridge, link)) = self.bridges.get(id) else { continue };
            if link.phase != Phase::LookingUp(ticket) {
                continue;
            }
            let upstream = &bridge.config.upstream[link.upstream];
            let lookup = NameLookup { ticket, host: upstream.host.clone(), port: upstream.port };
            self.bridges.is_looking = true;
            return self.platform.start_lookup(lookup);
        }
    }

    #[cold]
    fn take_lookup(&mut self) {
        if !self.bridges.is_looking {
            return;
        }
        let Some(found) = self.platform.take_lookup() else { return };
        self.bridges.is_looking = false;
        let id = self.bridges.find(&|link| link.phase == Phase::LookingUp(found.ticket));
        let Some((id, (bridge, link))) = id.and_then(|id| Some((id, self.bridges.get(id)?))) else { return };
        let host = bridge.config.upstream[link.upstream].host.clone();
        match found.found {
            Ok(addresses) => {
                if let Some(link) = self.bridges.link_mut(id) {
                    link.addresses.extend(addresses.into_iter().take(ADDRESSES_MAX));
                }
                let none = Cause::new(format_args!("its name {host} has no address"));
                self.dial(id, Some(none));
            }
            Err(why) => {
                let cause = Cause::new(format_args!("its name {host} cannot be looked up: {why}"));
                self.fail_link(id, cause, None);
            }
        }
    }

    // ---- connecting

    /// Connects to the next address. `why`: what is to be said if there is none.
    #[cold]
    pub(super) fn dial(&mut self, id: LinkId, mut why: Option<Cause>) {
        // Who may not connect a shovel to this machine is not to do it by a name that leads here.
        let is_barred = self.bridges.get(id).is_some_and(|(bridge, link)| {
            bridge.config.shovel.is_some() && !bridge.config.upstream[link.upstream].is_this_machine()
        });
        while let Some(address) = self.bridges.link_mut(id).and_then(|link| link.addresses.pop_front()) {
            if is_barred && is_this_machine(address.ip()) {
                why = Some(Cause::new(format_args!(
                    "its name leads to this machine itself ({}): write localhost, as an administrator",
                    address.ip()
                )));
                continue;
            }
            match self.connect_link(id, address) {
                Ok(()) => return,
                Err(cause) => why = Some(cause),
            }
        }
        let cause = why.unwrap_or_else(|| Cause::new(format_args!("it has no address")));
        self.fail_link(id, cause, None);
    }

    #[cold]
    fn connect_link(&mut self, id: LinkId, address: SocketAddr) -> Result<(), Cause> {
        let unreachable = |error| Cause::new(format_args!("{address} cannot be reached: {error}"));
        let Some((bridge, state)) = self.bridges.get(id) else {
            return Err(Cause::new(format_args!("it is not wanted any more")));
        };
        let upstream = &bridge.config.upstream[state.upstream];
        let tls = upstream.with_tls.then(|| (upstream.host.clone(), bridge.config.tls.clone()));
        let name = format!("bridge {}", bridge.config.name);
        let refused = |fault: crate::error::Fault| Cause::new(format_args!("this broker: {}", fault.text));
        let connection = self.broker.connect_own(&name, &bridge.config.vhost).map_err(refused)?;
        let registered = self.platform.connect(address).and_then(|mut socket| {
            self.platform.register(&mut socket, Interest::Peer(connection.into())).map(|()| socket)
        });
        let socket = match registered {
            Ok(socket) => socket,
            Err(error) => {
                let context =
                    &mut broker::Context::new(&mut self.journal, &mut self.supplies.messages, &mut self.work);
                self.broker.release(context, connection);
                return Err(unreachable(error));
            }
        };
        let Some(link) = self.new_link(id) else {
            unreachable!("the bridge was there a moment ago, and nothing took it away");
        };
        let session = Session::Bridge(Some(Box::new(link)));
        let mut peer = Peer::new(socket, PeerAddress::Network(address), session, self.now);
        // It is reported when it is connected, or cannot be.
        (peer.stream.readable, peer.stream.writable) = (false, false);
        if let Some((host, tls)) = tls {
            peer.stream.begin_tls_to(&host, &tls);
        }
        self.peers.put(connection, peer);
        if let Some(state) = self.bridges.link_mut(id) {
            state.phase = Phase::Connected(connection);
        }
        self.after_bridge(connection);
        Ok(())
    }

    #[cold]
    fn new_link(&self, id: LinkId) -> Option<Link> {
        let (bridge, state) = self.bridges.get(id)?;
        let window = usize::from(bridge.config.window);
        let (role, flow) = match id.direction {
            Direction::Forward => {
                let flights = Flights::new(window);
                let (progress, drain) = (self.now, Drain::begin(self.now));
                let taking = Default::default();
                (Role::Forward, Flow::Forward(Forward { flights, begun: 0, drain, progress, taking }))
            }
            Direction::Fetch => {
                // Each queue has its share of the window: a quorum queue of RabbitMQ refuses to share one.
                let count = bridge.rules(Direction::Fetch).len().max(1);
                let ahead = bridge.config.window / count as u16;
                let arrivals = Arrivals::new(usize::from(ahead.max(1)) * count);
                (Role::Fetch(ahead.max(1)), Flow::Fetch(Fetch { arrivals, incoming: None, held: 0 }))
            }
        };
        // Consumers there are for what is fetched; what is forwarded is consumed here.
        let rules = if id.direction == Direction::Fetch { bridge.rules(Direction::Fetch) } else { &[] };
        let credentials = Credentials {
            upstream: bridge.config.upstream[state.upstream].clone(),
            name: format!("leveret bridge {} {}", bridge.config.name, id.direction.name()),
            version: self.bridges.version.clone(),
        };
        let limits = (self.limits.frame_max, bridge.config.heartbeat_s);
        let mut client = Client::new(self.now, (role, rules), credentials, self.bridges.origin, limits);
        if id.direction == Direction::Fetch {
            client.hold(bridge.held_rules(Direction::Fetch));
        }
        client.prepare(bridge.preparations(id.direction));
        let (channel, ready_since, cause) = (None, None, None);
        let (has_moved, is_draining, begun) = (false, false, None);
        Some(Link { id, client, channel, flow, ready_since, cause, has_moved, is_draining, begun })
    }

    // ---- the end

    /// A link has no socket any more: it is tried again, unless nobody wants it.
    #[cold]
    pub(super) fn link_ended(&mut self, link: &Link) {
        let is_wanted = self
            .bridges
            .get(link.id)
            .is_some_and(|(bridge, _)| !bridge.is_leaving && !bridge.is_paused && self.stopping.is_none());
        let now = self.now;
        let may_rest = self.bridges.link_mut(link.id).is_some_and(|state| {
            if state.ready_since.take().is_some() {
                state.was_ready = Some(now);
            }
            state.rest_due = Deadline::NEVER;
            core::mem::take(&mut state.is_going_to_rest)
        });
        if !is_wanted || link.is_draining {
            if is_wanted && may_rest {
                return self.rest_link(link.id);
            }
            let Some(state) = self.bridges.link_mut(link.id) else { return };
            // One that was paused may be wanted again since.
            state.phase = if is_wanted { Phase::Waiting(now.after_ms(0)) } else { Phase::Paused };
            return;
        }
        let cause = link.cause.clone().unwrap_or_else(hung_up);
        let was_silent = link.client.is_unheard();
        let has_more = self.bridges.get(link.id).is_some_and(|(_, state)| !state.addresses.is_empty());
        if was_silent && has_more {
            // In the next turn: until then its place among the peers may still be somebody's.
            let now = self.now;
            if let Some(state) = self.bridges.link_mut(link.id) {
                state.phase = Phase::Waiting(now.after_ms(0));
            }
            return;
        }
        self.fail_link(link.id, cause, link.ready_since);
    }

    /// A link is not up: it is said why, if that is news, and when it is tried again.
    #[cold]
    pub(super) fn fail_link(&mut self, id: LinkId, cause: Cause, since: Option<Now>) {
        let chance = self.bridges.chance();
        let now = self.now;
        let Some(bridge) = self.bridges.get_mut(id) else { return };
        let (name, most_ms) = (bridge.config.name.clone(), bridge.config.reconnect_max_ms.into());
        let is_tried_once = bridge.is_tried_once();
        let upstreams = &bridge.config.upstream;
        let Some(state) = &mut bridge.links[id.direction as usize] else { return };
        if since.is_some_and(|since| now.ms_since(since) >= STABLE_MS) {
            state.forget_logged();
        }
        let is_news = state.is_news(&cause);
        let upstream = &upstreams[state.upstream];
        if is_news {
            let what = id.direction.name();
            let text = format_args!(
                "bridge {name}, {what}, {upstream}: {cause}; it is tried again, ever more rarely"
            );
            self.supplies.log.warn(now, LogSource::Bridge(id.bridge), LogKind::Bridge, text);
        }
        state.upstream = (state.upstream + 1) % upstreams.len();
        state.addresses.clear();
        let backoff = state.backoff.fail(now, since, most_ms, chance);
        let is_round_over = state.upstream == 0;
        state.phase = match is_round_over {
            true if is_tried_once => Phase::Paused,
            true => Phase::Waiting(backoff),
            false => Phase::Waiting(now.after_ms(NEXT_UPSTREAM_MS)),
        };
        state.ready_since = None;
        state.counts.failed += 1;
        state.last_error = Some((cause, now));
    }

    /// All links of a bridge end, as soon as what is under way is settled.
    #[cold]
    pub(super) fn drain_bridge(&mut self, serial: u64) {
        for direction in Direction::BOTH {
            let id = LinkId { bridge: serial, direction };
            let Some(state) = self.bridges.link_mut(id) else { continue };
            match state.phase {
                Phase::Connected(connection) => self.drain_link(connection),
                Phase::Waiting(_) | Phase::LookingUp(_) | Phase::Resting | Phase::Paused => {
                    state.phase = Phase::Paused;
                }
            }
        }
    }
}
