//! When links are connected, how they end, and how parked messages are retried.
//!
//! ```text
//!   Waiting ─ due → LookingUp ─ addresses → Connected ─ messages flow …
//!      ▲               │ none                   │ broken, refused, timed out
//!      └── backoff ◄───┴────────────────────────┘          Paused ─ resumed → Waiting
//!                                              └ nothing to do, if on demand → Resting ─ demand → Waiting
//! ```
//!
//! Parked messages are retried when the operator asks for it (`retry_parked`), or automatically (`park_retry`). Those
//! that were to be forwarded go to the end of the queue here that they came from. Those that were fetched are
//! published here again. A consumer of our own takes them one at a time, whether or not the upstream is connected.
//!
//! # Invariants
//! - The event loop never blocks on a name lookup or on an upstream. A slow upstream delays only its own bridge.
//! - A link that fails is connected again after a random delay of up to `reconnect_max`, as often as needed. Only a
//!   shovel with `reconnect-delay` 0 gives up after its last upstream has failed.
//! - A parked message is in the queue of parked messages or in its destination, never in neither.
//! - Messages that cannot go back stay, at the end of that queue.
//! - Each turn retries at most one message per bridge.
//! - A retry examines at most the number of messages that were parked when it began. Messages that are refused again
//!   are therefore not tried without end.

use core::net::{IpAddr, SocketAddr};

use leveret_amqp::{Properties, Writer};
use leveret_bridge::{Cause, Client, Credentials};
use leveret_broker::{Broker, parked_from, write_unparked_properties};
use leveret_config::bridge::read_password;
use leveret_config::upstream::is_this_machine;
use leveret_core::command::{ConnectionId, Outbox};
use leveret_core::error::{Fault, ReplyCode};
use leveret_core::mem::MessageId;
use leveret_core::time::{Deadline, Now};

use super::own_connections::of_broker;
use super::state::{ADDRESSES_MAX, Bridge, BridgeState, Link, LinkId, ParkedAlarm, Phase, Retry};
use super::traffic::OpenLink;
use super::{Bridges, Scratch};
use crate::peer::{LinkStatus, Peer, PeerAddress, Session};
use crate::platform::{NameLookup, Platform};
use crate::state::Shared;
use crate::stream::Stream;

/// Pause before the next of several upstreams is tried, in milliseconds.
const NEXT_UPSTREAM_MS: u64 = 200;
/// After a link was open for at least this time, in milliseconds, its errors are logged again.
const STABLE_MS: u64 = 60_000;
/// Maximum number of links that are begun per turn.
const TRIES_PER_TURN: usize = 4;

impl Bridges {
    /// Connects the links that are due.
    pub(super) fn try_links<P: Platform>(&mut self, shared: &mut Shared<P>) {
        for _ in 0..TRIES_PER_TURN {
            let now = shared.now;
            let Some(id) = self.find(|link| matches!(link.phase, Phase::Waiting(at) if at.is_due(now)))
            else {
                return;
            };
            match self.get_mut(id).1.state.addresses.is_empty() {
                true => self.try_link(shared, id),
                false => self.connect_next(shared, id, None),
            }
        }
    }

    #[cold]
    fn try_link<P: Platform>(&mut self, shared: &mut Shared<P>, id: LinkId) {
        let (bridge, link) = self.get_mut(id);
        let upstream = &bridge.config.upstream[link.state.upstream];
        if let Ok(ip) = upstream.host.parse::<IpAddr>() {
            link.state.addresses.extend([SocketAddr::new(ip, upstream.port)]);
            self.connect_next(shared, id, None);
        } else {
            let ticket = shared.worker.ticket();
            link.phase = Phase::LookingUp(ticket);
            let lookup = NameLookup { ticket, host: upstream.host.clone(), port: upstream.port };
            shared.platform.start_lookup(lookup);
        }
    }

    /// Takes the results of name lookups.
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
            self.connect_next(shared, id, Some(none));
        }
    }

    // ---- connecting

    /// Connects to the next address. `why` is the cause to report without any address.
    #[cold]
    fn connect_next<P: Platform>(&mut self, shared: &mut Shared<P>, id: LinkId, mut why: Option<Cause>) {
        loop {
            let (bridge, link) = self.get_mut(id);
            let Some(address) = link.state.addresses.pop_front() else { break };
            let upstream = &bridge.config.upstream[link.state.upstream];
            // A user who may not connect a shovel to this machine must not do so by a name that resolves to it.
            let is_barred = bridge.config.shovel.is_some() && !upstream.is_this_machine();
            if is_barred && is_this_machine(address.ip()) {
                why = Some(Cause::new(format_args!(
                    "its name resolves to this machine itself ({}): use localhost, as an administrator",
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
        let version = self.common.version.clone();
        let (bridge, link) = self.get_mut(id);
        let mut upstream = bridge.config.upstream[link.state.upstream].clone();
        // The file is read at each attempt, so a corrected one takes effect without a reload.
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
        let session = Session::Bridge(LinkStatus::default());
        let mut peer = Peer::new(Stream::new(socket), PeerAddress::Network(address), session, shared.now);
        // The poll reports when the socket is connected, or cannot be.
        (peer.stream.is_readable, peer.stream.is_writable) = (false, false);
        if let Some((host, tls)) = tls {
            peer.stream.begin_tls_to(&host, &tls);
        }
        shared.peers.put(own, peer);
        let credentials = Credentials {
            upstream,
            name: format!("leveret bridge {} {}", bridge.config.name, link.direction.name()),
            version,
        };
        let rules = bridge.rules(link.direction).len();
        let (frame_max, heartbeat_s) = (shared.limits.frame_max, bridge.config.heartbeat_s);
        let client = Client::new(shared.now, rules, credentials, frame_max, heartbeat_s);
        link.phase = Phase::Connected(Box::new(OpenLink::new(own, client, rules, shared.now)));
        self.with_link(id, shared, |_| ());
        Ok(())
    }

    // ---- the end

    /// Handles that a link has lost its socket: it is connected again, if it is still wanted.
    #[cold]
    pub(super) fn end_link<P: Platform>(&mut self, shared: &mut Shared<P>, id: LinkId) {
        self.with_link(id, shared, |task| task.count_octets());
        let now = shared.now;
        let (bridge, link) = self.get_mut(id);
        let phase = core::mem::replace(&mut link.phase, Phase::Paused);
        let Phase::Connected(mut open_link) = phase else {
            unreachable!("only a link with a socket loses it")
        };
        open_link.flows.iter_mut().for_each(|flow| shared.end_flow(flow));
        shared.release_own(open_link.peer);
        shared.worker.remove_peer(open_link.peer.into());
        let since = open_link.ready_since;
        if since.is_some() {
            link.state.last_open_at = Some(now);
        }
        let is_wanted = !bridge.is_leaving && !bridge.is_paused && !shared.is_stopping();
        let again = Phase::Waiting(now.after_ms(0));
        if !is_wanted {
            return;
        }
        if open_link.is_draining && open_link.ends_because_idle {
            return self.rest_link(shared, id);
        }
        // A paused link may be wanted again since. It is connected in the next turn, because its slot among the peers
        // may be in use until then.
        let is_next_address = open_link.client.has_received_nothing() && !link.state.addresses.is_empty();
        if open_link.is_draining || is_next_address {
            link.phase = again;
            return;
        }
        let cause = open_link.cause.take().unwrap_or_else(|| Cause::new(format_args!("it ended")));
        self.fail_link(shared, id, cause, since);
    }

    /// Handles that a link is not up: logs the cause unless it was logged before, and sets when to retry.
    #[cold]
    fn fail_link<P: Platform>(
        &mut self,
        shared: &mut Shared<P>,
        id: LinkId,
        cause: Cause,
        since: Option<Now>,
    ) {
        let (random, now) = (self.common.random(), shared.now);
        let (bridge, link) = self.get_mut(id);
        let upstreams = bridge.config.upstream.len();
        let state = &mut link.state;
        if since.is_some_and(|since| now.ms_since(since) >= STABLE_MS) {
            state.forget_logged();
        }
        if state.must_be_logged(&cause) {
            let text = format_args!("{cause}; it is retried with growing pauses");
            shared.log_link(log::Level::Warn, bridge, link.direction, state.upstream, text);
        }
        state.upstream = (state.upstream + 1) % upstreams;
        state.addresses.clear();
        let backoff = state.backoff.fail(now, since, bridge.config.reconnect_max_ms.into(), random);
        link.phase = match state.upstream == 0 {
            true if bridge.config.shovel.as_ref().is_some_and(|shovel| shovel.is_tried_once) => Phase::Paused,
            true => Phase::Waiting(backoff),
            false => Phase::Waiting(now.after_ms(NEXT_UPSTREAM_MS)),
        };
        state.counts.failed += 1;
        state.last_error = Some((cause, now));
    }

    /// Ends all links of a bridge, as soon as their messages under way are settled.
    #[cold]
    pub(super) fn drain<P: Platform>(&mut self, shared: &mut Shared<P>, place: usize) {
        for link in 0..self.places[place].links.len() {
            let id = LinkId { place, link };
            if self.with_link(id, shared, |task| task.open_link.is_draining = true).is_none() {
                self.get_mut(id).1.phase = Phase::Paused;
            }
        }
    }

    /// Closes links of bridges that leave, if there are too many of them. They normally finish what is under way. If
    /// bridges are redefined again and again, that would use up the connections of all clients.
    #[cold]
    pub(super) fn close_leaving<P: Platform>(&mut self, shared: &mut Shared<P>) {
        if self.places.len() < 2 * self.max {
            return;
        }
        let is_leaving = |id: &LinkId| self.places[id.place].state.is_leaving;
        let leaving: Vec<LinkId> = self.links().map(|(id, _)| id).filter(is_leaving).collect();
        for id in leaving {
            let why = "this broker: it was changed again before its links ended";
            self.with_link(id, shared, |task| task.close_with(Cause::new(format_args!("{why}"))));
        }
    }

    /// Drops leaving bridges whose links have ended.
    #[cold]
    pub(super) fn drop_ended<P: Platform>(&mut self, shared: &mut Shared<P>) {
        let is_left = |bridge: &Bridge| bridge.state.is_leaving && !bridge.is_connected();
        while let Some(place) = self.places.iter().position(is_left) {
            let mut left = self.places.remove(place);
            // Counters since the bridge was changed belong to its successor.
            let is_next = |next: &&mut Bridge| {
                !next.state.is_leaving && next.state.config.name == left.state.config.name
            };
            if let Some(next) = self.places.iter_mut().find(is_next) {
                left.move_counts_to(&mut next.links);
            }
            self.delete_queues_of(shared, &left.state);
        }
    }
}

/// The destination of a parked message.
enum ReturnTo {
    /// To the end of this queue.
    Queue(String),
    /// To its exchange, with its routing key.
    Exchange,
    /// Unknown: it has no header of a bridge.
    Unknown,
}

impl Bridges {
    /// Begins a retry, unless one is under way. The result is shown by `bridge_status` and logged.
    #[cold]
    pub(super) fn begin_retry<P: Platform>(&mut self, shared: &mut Shared<P>, place: usize) {
        let bridge = &mut self.places[place].state;
        if bridge.retry.is_some() {
            return;
        }
        match shared.open_retry(bridge) {
            Ok(retry) => bridge.retry = Some(retry),
            Err(cause) => shared.log_retried(bridge, cause),
        }
    }

    /// Returns whether a retry can continue at once.
    pub(super) fn has_retry_work(&self, broker: &Broker) -> bool {
        let mut retries = self.places.iter().filter_map(|bridge| bridge.state.retry.as_ref());
        retries.any(|retry| broker.has_output(retry.own.connection))
    }

    /// Continues the retries of parked messages that have begun, and begins those that are due.
    pub(super) fn retry_parked<P: Platform>(&mut self, shared: &mut Shared<P>) {
        for place in 0..self.places.len() {
            let bridge = &mut self.places[place].state;
            if bridge.retry_due.is_due(shared.now) {
                bridge.retry_due = Deadline::NEVER;
                self.begin_retry(shared, place);
            }
            let bridge = &mut self.places[place].state;
            let Some(mut retry) = bridge.retry.take() else { continue };
            let step = match bridge.is_leaving || shared.is_stopping() {
                true => Err(Cause::new(format_args!("it was closed: the bridge or the broker is stopping"))),
                false => shared.retry_next_message(bridge, &mut self.common.scratch, &mut retry),
            };
            match step {
                Ok(true) => bridge.retry = Some(retry),
                step => shared.end_retry(bridge, retry, step.err()),
            }
        }
    }

    /// Ends the retry whose connection the broker closes, because the virtual host is deleted.
    #[cold]
    pub(super) fn end_closed_retry<P: Platform>(
        &mut self,
        shared: &mut Shared<P>,
        connection: ConnectionId,
        why: &str,
    ) {
        let is_its = |bridge: &BridgeState| {
            bridge.retry.as_ref().is_some_and(|retry| retry.own.connection == connection)
        };
        let Some(bridge) = self.places.iter_mut().find(|bridge| is_its(&bridge.state)) else { return };
        if let Some(retry) = bridge.state.retry.take() {
            let cause = Cause::new(format_args!("this broker: {why}"));
            shared.end_retry(&mut bridge.state, retry, Some(cause));
        }
    }

    /// Logs which bridges have parked messages, and which have none any longer: one line at the beginning and one at
    /// the end.
    pub(super) fn log_parked<P: Platform>(&mut self, shared: &mut Shared<P>) {
        for Bridge { state: bridge, .. } in &mut self.places {
            if bridge.parked_alarm != ParkedAlarm::Off && bridge.retry.is_none() && !bridge.is_leaving {
                shared.log_parked_of(bridge);
            }
        }
    }
}

impl<P: Platform> Shared<P> {
    fn parked_depth(&self, bridge: &BridgeState) -> u32 {
        self.broker.queue_depth(&bridge.config.vhost, &bridge.config.parked).unwrap_or(0)
    }

    #[cold]
    fn log_parked_of(&mut self, bridge: &mut BridgeState) {
        let (name, queue) = (&bridge.config.name, &bridge.config.parked);
        let next = if self.parked_depth(bridge) == 0 { ParkedAlarm::Off } else { ParkedAlarm::On };
        let was = core::mem::replace(&mut bridge.parked_alarm, next);
        match (next, bridge.config.park_retry_ms) {
            (ParkedAlarm::On, Some(ms)) if bridge.retry_due == Deadline::NEVER => {
                bridge.retry_due = self.now.after_ms(ms.into());
            }
            (ParkedAlarm::On, _) => {}
            (ParkedAlarm::Off | ParkedAlarm::Unknown, _) => bridge.retry_due = Deadline::NEVER,
        }
        // A name with a space must be quoted in a shell.
        let quote = if name.contains(' ') { "\"" } else { "" };
        let (level, text) = match (was, next) {
            (ParkedAlarm::Unknown, ParkedAlarm::On) => (
                log::Level::Warn,
                format_args!(
                    "bridge {name}: messages are parked in {queue}; their header x-parked-cause has the reason; \
                     `leveretctl retry_parked {quote}{name}{quote}` sends them again"
                ),
            ),
            (ParkedAlarm::On, ParkedAlarm::Off) => {
                (log::Level::Info, format_args!("bridge {name}: no message is parked in {queue} any more"))
            }
            _ => return,
        };
        self.log_bridge(level, bridge.serial, text);
    }

    fn open_retry(&mut self, bridge: &BridgeState) -> Result<Retry, Cause> {
        let (unexamined_count, queue) = (self.parked_depth(bridge), &*bridge.config.parked);
        if unexamined_count == 0 {
            return Err(Cause::new(format_args!("{queue} is empty")));
        }
        let own = self.consume(&bridge.config, queue, "retry", 1)?;
        Ok(Retry { own, unexamined_count, moved_count: 0, remaining_count: 0, last_cause: None })
    }

    /// Ends a retry. `cut`: why the messages that were not examined stay.
    fn end_retry(&mut self, bridge: &mut BridgeState, mut retry: Retry, cut: Option<Cause>) {
        self.release_own(retry.own.connection);
        bridge.parked_alarm.note_parked();
        // Messages that are refused again after an automatic retry are retried after the same time: see
        // `log_parked_of`.
        bridge.retry_due = Deadline::NEVER;
        if cut.is_some() {
            (retry.remaining_count, retry.last_cause) = (retry.remaining_count + retry.unexamined_count, cut);
        }
        let Retry { moved_count, remaining_count, last_cause, .. } = retry;
        let result = match last_cause {
            None => Cause::new(format_args!("{moved_count} were sent again")),
            Some(cause) => {
                Cause::new(format_args!("{moved_count} were sent again, {remaining_count} remain: {cause}"))
            }
        };
        self.log_retried(bridge, result);
    }

    fn log_retried(&mut self, bridge: &mut BridgeState, cause: Cause) {
        let text = format_args!("bridge {}, parked messages: {cause}", bridge.config.name);
        self.log_bridge(log::Level::Info, bridge.serial, text);
        bridge.last_retry_result = Some(cause);
    }

    /// Examines the next message, if there is one. Returns whether the retry continues.
    ///
    /// # Errors
    /// Why the retry cannot continue now.
    fn retry_next_message(
        &mut self,
        bridge: &BridgeState,
        scratch: &mut Scratch,
        retry: &mut Retry,
    ) -> Result<bool, Cause> {
        let (parked, id) = (&*bridge.config.parked, retry.own.connection);
        if self.broker.next_cancelled(id).is_some() {
            return Err(Cause::new(format_args!("{parked} was deleted")));
        }
        let next = self.broker.outbox(id).peek().map(|delivery| (delivery.delivery_tag, delivery.message));
        let Some((tag, message)) = next else {
            // The message may be on its way from the disk, or another consumer has taken it.
            return Ok(self.parked_depth(bridge) > 0);
        };
        let (back, as_it_was, kept) = self.return_target(message, scratch);
        let channel = retry.own.channel;
        let (broker, mut context) = self.broker_mut();
        broker.sent(&mut context, id, 1);
        let done = match &back {
            ReturnTo::Queue(queue) => {
                broker.move_delivery(&mut context, channel, tag, queue, &kept).map(|batch| batch.is_some())
            }
            ReturnTo::Exchange => broker.republish_delivery(&mut context, channel, tag, &kept),
            ReturnTo::Unknown => Err(Fault::new(
                ReplyCode::NotFound,
                format_args!("it has no x-parked-cause: no bridge has parked it"),
            )),
        };
        let is_done = match done {
            Ok(is_done) => {
                retry.moved_count += u32::from(is_done);
                retry.unexamined_count -= u32::from(is_done);
                is_done
            }
            Err(fault) => {
                retry.last_cause = Some(Cause::new(format_args!("{}", fault.text)));
                retry.remaining_count += 1;
                retry.unexamined_count -= 1;
                // The message goes behind the others, so that they are tried, too.
                matches!(broker.move_delivery(&mut context, channel, tag, parked, &as_it_was), Ok(Some(_)))
            }
        };
        if !is_done {
            return Err(Cause::new(format_args!("there is no capacity for more now: try again later")));
        }
        Ok(retry.unexamined_count > 0)
    }

    /// Returns where a message goes, its present properties, and those with which it goes.
    fn return_target(&self, message: MessageId, scratch: &mut Scratch) -> (ReturnTo, Vec<u8>, Vec<u8>) {
        let Scratch { properties, edited, .. } = scratch;
        let messages = &self.resources.messages;
        let properties = Properties::trusted(messages.properties(message, properties));
        let key = || String::from_utf8_lossy(messages.routing_key(message)).into_owned();
        let back = match parked_from(properties) {
            None => ReturnTo::Unknown,
            Some(Some(queue)) => ReturnTo::Queue(queue.to_string()),
            Some(None) if messages.exchange(message).is_empty() => ReturnTo::Queue(key()),
            Some(None) => ReturnTo::Exchange,
        };
        let mut writer = Writer::new(edited);
        let is_written = write_unparked_properties(properties, &mut writer).is_ok();
        let as_it_was = properties.as_bytes().to_vec();
        let kept = if is_written { writer.written().to_vec() } else { as_it_was.clone() };
        (back, as_it_was, kept)
    }
}
