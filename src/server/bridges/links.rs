//! When the links of bridges are tried, and what becomes of those that end.
//!
//! ```text
//! Waiting ─ due → LookingUp ─ addresses → Connected ─ messages flow …
//!    ▲               │ none                   │ broken, refused, wedged
//!    └── backoff ◄───┴────────────────────────┘          Paused ─ resumed → Waiting
//!                                            └ nothing to do, if on demand → Resting ─ demand → Waiting
//! ```
//!
//! Always true: nobody waits for a name or for an upstream, and no bridge for another's; a link that fails is
//! tried again after a pause that grows, for ever.

use core::net::{IpAddr, SocketAddr};

use leveret_bridge::{Cause, Client, Credentials};
use leveret_config::bridge::read_password;
use leveret_config::upstream::is_this_machine;
use leveret_core::time::{Deadline, Now};

use super::contact::Contact;
use super::own_connections::of_broker;
use super::registry::Bridges;
use super::state::{ADDRESSES_MAX, Bridge, Link, LinkId, Phase};
use crate::address::PeerAddress;
use crate::name_lookup::NameLookup;
use crate::peer::{Needs, Peer, Session};
use crate::platform::Platform;
use crate::shared::Shared;

/// The pause before the next upstream of several is tried, in milliseconds.
const NEXT_UPSTREAM_MS: u64 = 200;
/// A link that lasted so long was up: what happens to it next is news.
const STABLE_MS: u64 = 60_000;
/// Links that are begun in one turn.
const TRIES_PER_TURN: usize = 4;

impl Bridges {
    /// Begins what is due.
    pub(super) fn try_links<P: Platform>(&mut self, shared: &mut Shared<P>) {
        for _ in 0..TRIES_PER_TURN {
            let now = shared.now;
            let Some(id) = self.find(|link| matches!(link.phase, Phase::Waiting(at) if at.is_due(now)))
            else {
                return;
            };
            match self.get_mut(id).1.state.addresses.is_empty() {
                true => self.try_link(shared, id),
                false => self.dial(shared, id, None),
            }
        }
    }

    #[cold]
    fn try_link<P: Platform>(&mut self, shared: &mut Shared<P>, id: LinkId) {
        let (bridge, link) = self.get_mut(id);
        let upstream = &bridge.config.upstream[link.state.upstream];
        if let Ok(ip) = upstream.host.parse::<IpAddr>() {
            link.state.addresses.extend([SocketAddr::new(ip, upstream.port)]);
            self.dial(shared, id, None);
        } else {
            let ticket = shared.worker.ticket();
            link.phase = Phase::LookingUp(ticket);
            let lookup = NameLookup { ticket, host: upstream.host.clone(), port: upstream.port };
            shared.platform.start_lookup(lookup);
        }
    }

    /// Takes what was found of names.
    #[cold]
    pub(super) fn take_lookups<P: Platform>(&mut self, shared: &mut Shared<P>) {
        while let Some(found) = shared.platform.take_lookup() {
            let is_it =
                |link: &Link| matches!(link.phase, Phase::LookingUp(ticket) if ticket == found.ticket);
            let Some(id) = self.find(is_it) else { continue };
            let (bridge, link) = self.get_mut(id);
            let host = bridge.config.upstream[link.state.upstream].host.clone();
            let none = match found.found {
                Ok(addresses) => {
                    link.state.addresses.extend(addresses.into_iter().take(ADDRESSES_MAX));
                    Cause::new(format_args!("its name {host} has no address"))
                }
                Err(why) => Cause::new(format_args!("its name {host} cannot be looked up: {why}")),
            };
            self.dial(shared, id, Some(none));
        }
    }

    // ---- connecting

    /// Connects to the next address. `why`: what is to be said if there is none.
    #[cold]
    fn dial<P: Platform>(&mut self, shared: &mut Shared<P>, id: LinkId, mut why: Option<Cause>) {
        loop {
            let (bridge, link) = self.get_mut(id);
            let Some(address) = link.state.addresses.pop_front() else { break };
            let upstream = &bridge.config.upstream[link.state.upstream];
            // Who may not connect a shovel to this machine is not to do it by a name that leads here.
            let is_barred = bridge.config.shovel.is_some() && !upstream.is_this_machine();
            if is_barred && is_this_machine(address.ip()) {
                why = Some(Cause::new(format_args!(
                    "its name leads to this machine itself ({}): write localhost, as an administrator",
                    address.ip()
                )));
                continue;
            }
            match self.connect(shared, id, address) {
                Ok(()) => return,
                Err(cause) => why = Some(cause),
            }
        }
        let cause = why.unwrap_or_else(|| Cause::new(format_args!("it has no address")));
        self.fail_link(shared, id, cause, None);
    }

    #[cold]
    fn connect<P: Platform>(
        &mut self,
        shared: &mut Shared<P>,
        id: LinkId,
        address: SocketAddr,
    ) -> Result<(), Cause> {
        let (origin, version) = (self.common.origin, self.common.version.clone());
        let (bridge, link) = self.get_mut(id);
        let mut upstream = bridge.config.upstream[link.state.upstream].clone();
        // It is read at each try, so whoever mends it need tell nobody.
        if let Some(file) = bridge.config.password_file.as_ref().filter(|_| upstream.password.is_none()) {
            upstream.password = Some(read_password(file).map_err(|why| Cause::new(format_args!("{why}")))?);
        }
        let tls = upstream.with_tls.then(|| (upstream.host.clone(), bridge.config.tls.clone()));
        let name = format!("bridge {}", bridge.config.name);
        let own = shared.broker.connect_own(&name, &bridge.config.vhost).map_err(of_broker)?;
        let registered = shared
            .platform
            .connect(address)
            .and_then(|mut socket| shared.platform.register(&mut socket, own.into()).map(|()| socket));
        let socket = match registered {
            Ok(socket) => socket,
            Err(error) => {
                shared.release_own(own);
                return Err(Cause::new(format_args!("{address} cannot be reached: {error}")));
            }
        };
        let session = Session::Bridge(Needs::default());
        let mut peer = Peer::new(socket, PeerAddress::Network(address), session, shared.now);
        // It is reported when it is connected, or cannot be.
        (peer.stream.readable, peer.stream.writable) = (false, false);
        if let Some((host, tls)) = tls {
            peer.stream.begin_tls_to(&host, &tls);
        }
        shared.peers.put(own, peer);
        let credentials = Credentials {
            upstream,
            name: format!("leveret bridge {} {}", bridge.config.name, link.direction.name()),
            version,
        };
        let limits = (shared.limits.frame_max, bridge.config.heartbeat_s);
        let rules = bridge.rules(link.direction).len();
        let client = Client::new(shared.now, rules, credentials, origin, limits);
        link.phase = Phase::Connected(Box::new(Contact::new(own, client, rules, shared.now)));
        self.with(id, shared, |_| ());
        Ok(())
    }

    // ---- the end

    /// A link has no socket any more: it is tried again, unless nobody wants it.
    #[cold]
    pub(super) fn end_link<P: Platform>(&mut self, shared: &mut Shared<P>, id: LinkId) {
        self.with(id, shared, |task| task.note_passed());
        let now = shared.now;
        let (bridge, link) = self.get_mut(id);
        let phase = core::mem::replace(&mut link.phase, Phase::Paused);
        let Phase::Connected(mut contact) = phase else { unreachable!("only a link with a socket loses it") };
        contact.lanes.iter_mut().for_each(|lane| shared.end_lane(lane));
        shared.release_own(contact.peer);
        shared.worker.leave(contact.peer.into());
        let since = link.state.ready_since.take();
        if since.is_some() {
            link.state.was_ready = Some(now);
        }
        link.state.rest_due = Deadline::NEVER;
        let may_rest = core::mem::take(&mut link.state.is_going_to_rest);
        let is_wanted = !bridge.is_leaving && !bridge.is_paused && !shared.is_stopping();
        let again = Phase::Waiting(now.after_ms(0));
        if !is_wanted {
            return;
        }
        if contact.is_draining && may_rest {
            return self.rest_link(shared, id);
        }
        // One that was paused may be wanted again since; and in the next turn, for until then its place among
        // the peers may still be somebody's.
        let is_next_address = contact.client.is_unheard() && !link.state.addresses.is_empty();
        if contact.is_draining || is_next_address {
            link.phase = again;
            return;
        }
        let cause = contact.cause.take().unwrap_or_else(|| Cause::new(format_args!("it ended")));
        self.fail_link(shared, id, cause, since);
    }

    /// A link is not up: it is said why, if that is news, and when it is tried again.
    #[cold]
    fn fail_link<P: Platform>(
        &mut self,
        shared: &mut Shared<P>,
        id: LinkId,
        cause: Cause,
        since: Option<Now>,
    ) {
        let (chance, now) = (self.common.chance(), shared.now);
        let (bridge, link) = self.get_mut(id);
        let upstreams = bridge.config.upstream.len();
        let state = &mut link.state;
        if since.is_some_and(|since| now.ms_since(since) >= STABLE_MS) {
            state.forget_logged();
        }
        if state.is_news(&cause) {
            let words = format_args!("{cause}; it is tried again, ever more rarely");
            shared.say_of_link(log::Level::Warn, bridge, (link.direction, state.upstream), words);
        }
        state.upstream = (state.upstream + 1) % upstreams;
        state.addresses.clear();
        let backoff = state.backoff.fail(now, since, bridge.config.reconnect_max_ms.into(), chance);
        link.phase = match state.upstream == 0 {
            true if bridge.config.shovel.as_ref().is_some_and(|shovel| shovel.is_tried_once) => Phase::Paused,
            true => Phase::Waiting(backoff),
            false => Phase::Waiting(now.after_ms(NEXT_UPSTREAM_MS)),
        };
        state.counts.failed += 1;
        state.last_error = Some((cause, now));
    }

    /// All links of a bridge end, as soon as what is under way is settled.
    #[cold]
    pub(super) fn drain<P: Platform>(&mut self, shared: &mut Shared<P>, place: usize) {
        for link in 0..self.places[place].links.len() {
            let id = LinkId { place, link };
            if self.with(id, shared, |task| task.contact.is_draining = true).is_none() {
                self.get_mut(id).1.phase = Phase::Paused;
            }
        }
    }

    /// Bridges that leave finish what they have begun, but not while others are made again and again: they
    /// take connections from everybody.
    #[cold]
    pub(super) fn hasten_leaving<P: Platform>(&mut self, shared: &mut Shared<P>) {
        if self.places.len() < 2 * self.max {
            return;
        }
        let is_leaving = |id: &LinkId| self.places[id.place].head.is_leaving;
        let leaving: Vec<LinkId> = self.links().map(|(id, _)| id).filter(is_leaving).collect();
        for id in leaving {
            let why = "this broker: it was changed again before that had come to its end";
            self.with(id, shared, |task| task.lose(Cause::new(format_args!("{why}"))));
        }
    }

    /// Bridges that are to go and whose links have ended.
    #[cold]
    pub(super) fn drop_left<P: Platform>(&mut self, shared: &mut Shared<P>) {
        let is_left = |bridge: &Bridge| bridge.head.is_leaving && !bridge.is_connected();
        while let Some(place) = self.places.iter().position(is_left) {
            let mut left = self.places.remove(place);
            // What it did since it was changed counts, too.
            let is_next =
                |next: &&mut Bridge| !next.head.is_leaving && next.head.config.name == left.head.config.name;
            if let Some(next) = self.places.iter_mut().find(is_next) {
                left.hand_counts_on(&mut next.links);
            }
            self.clear_up_after(shared, &left.head);
        }
    }
}
