//! Links of bridges as peers: what is read, their time, and their end.
//!
//! Always true: while something is done with a link it is out of its place, and it is back before anybody
//! else looks; what an upstream sends is read under the same budgets as what clients send.

use crate::bridge::{Cause, Event, Stage, not_tls};
use crate::broker;
use crate::command::{ChannelId, Command, ConnectionId, Outcome};
use crate::journal::Batch;
use crate::log_limiter::{LogKind, LogSource};
use crate::time::Deadline;
use crate::tls::Shaken;

use super::bridge_link::{Direction, Flow, Link};
use super::peer::{Ending, Peer, Session, Waiting};
use super::platform::{Platform, Socket};
use super::receive::WORK_UNITS_PER_RECORD;
use super::state::Engine;
use super::stream::Reading;
use super::worker_job::Shake;

/// What an event led to.
pub(super) enum Next {
    /// The next one.
    GoOn,
    /// Nothing more is handled until there is room.
    Wait,
    /// The link is over.
    Lost(Cause),
}

/// Why a link ends whose upstream ends it and does not say why.
#[cold]
pub(super) fn hung_up() -> Cause {
    Cause::new(format_args!("it closed the connection without a word"))
}

impl<P: Platform> Engine<P> {
    /// Does something with a link, if it is still there.
    pub(super) fn with_link<T>(
        &mut self,
        id: ConnectionId,
        work: impl FnOnce(&mut Self, &mut Link) -> T,
    ) -> Option<T> {
        let Some(Peer { session: Session::Bridge(place), .. }) = self.peers.get_mut(id) else { return None };
        let mut link = place.take()?;
        let done = work(self, &mut link);
        if let Some(Peer { session: Session::Bridge(place), .. }) = self.peers.get_mut(id) {
            *place = Some(link);
        }
        self.after_bridge(id);
        Some(done)
    }

    /// What may have changed whenever something was done with a link.
    pub(super) fn after_bridge(&mut self, id: ConnectionId) {
        let Some(Peer { session: Session::Bridge(Some(link)), waiting, ending, .. }) = self.peers.get_mut(id)
        else {
            return;
        };
        let is_read = *waiting == Waiting::No;
        let timeout =
            self.bridges.get(link.id).map_or(u64::MAX, |(bridge, _)| bridge.config.confirm_timeout_ms.into());
        // With nothing to send that costs a look, and no more: by then it may go.
        let next = match self.bridges.get(link.id).filter(|_| matches!(link.flow, Flow::Forward(_))) {
            Some((bridge, _)) => bridge.pace.deadline(self.now),
            None => Deadline::NEVER,
        };
        let deadline = match ending {
            Ending::No => {
                link.deadline(is_read, (timeout, self.limits.content_timeout_ms.into())).earlier(next)
            }
            _ => Deadline::NEVER,
        };
        if *ending == Ending::No && link.is_draining && link.is_idle() {
            if link.client.stage() == Stage::Ready {
                link.client.close();
                *ending = Ending::Flushing;
                self.list_to_write(id);
            } else {
                // Nobody is there yet who could be told.
                self.end_now(id);
            }
        }
        self.deadlines.lower(id.into(), deadline);
        self.note_active(id);
        self.note_passed(id);
    }

    /// The link ends, for this reason.
    #[cold]
    pub(super) fn lose_link(&mut self, id: ConnectionId, link: &mut Link, cause: Cause) {
        if let Some(peer) = self.peers.get_mut(id)
            && peer.stream.writable
            && !link.has_begun()
        {
            // The last word, if there is one; nothing follows from whether it was heard.
            let _ = peer.stream.write(&mut self.buffers, link.client.pending());
        }
        link.cause.get_or_insert(cause);
        self.end_now(id);
    }

    /// The link ends for a reason of this broker's own: it is being stopped, or its virtual host goes.
    #[cold]
    pub(super) fn put_link_out(&mut self, id: ConnectionId, why: &str) {
        if self.stopping.is_some() {
            return self.drain_link(id);
        }
        self.with_link(id, |engine, link| {
            engine.lose_link(id, link, Cause::new(format_args!("this broker: {why}")));
        });
    }

    /// The link takes nothing more, and ends when what is under way is settled.
    #[cold]
    pub(super) fn drain_link(&mut self, id: ConnectionId) {
        self.with_link(id, |engine, link| {
            link.is_draining = true;
            let Some(channel) = link.channel.filter(|_| link.id.direction == Direction::Forward) else {
                return;
            };
            let rules =
                engine.bridges.get(link.id).map_or(0, |(bridge, _)| bridge.rules(link.id.direction).len());
            for at in 0..rules {
                let tag = crate::bridge::tag_of(at);
                engine.apply_own(id, channel, Command::Cancel { tag: &tag });
            }
        });
    }

    /// A command of our own.
    pub(super) fn apply_own(
        &mut self,
        id: ConnectionId,
        channel: ChannelId,
        command: Command<'_>,
    ) -> (Outcome, Batch) {
        let (broker, mut context) = self.broker_mut();
        let (outcome, _) = broker.apply(&mut context, id, Some(channel), command);
        let batch = context.awaited();
        self.work_units = self.work_units.saturating_add(self.work.take());
        (outcome, batch)
    }

    /// The time of a link has come.
    pub(super) fn call_bridge(&mut self, id: ConnectionId) {
        let is_read = self.peers.get(id).is_some_and(|peer| peer.waiting == Waiting::No);
        self.with_link(id, |engine, link| {
            let now = engine.now;
            let timeout = engine
                .bridges
                .get(link.id)
                .map_or(u64::MAX, |(bridge, _)| bridge.config.confirm_timeout_ms.into());
            if let Err(cause) = link.client.keep_time(now, is_read) {
                return engine.lose_link(id, link, cause);
            }
            if link.confirm_deadline(timeout).is_due(now) {
                let cause =
                    Cause::new(format_args!("it has confirmed nothing for {timeout} ms, though it is owed"));
                return engine.lose_link(id, link, cause);
            }
            let patience = engine.limits.content_timeout_ms.into();
            if link.content_deadline(patience).is_due(now) {
                let cause = Cause::new(format_args!(
                    "a message or frame was begun there and did not go on for {patience} ms"
                ));
                return engine.lose_link(id, link, cause);
            }
            if link.again().is_due(now) {
                engine.offer_again(id, link);
            }
            // Messages may have waited for their pace.
            let is_forward = matches!(link.flow, Flow::Forward(_));
            if is_forward || !link.client.pending().is_empty() {
                engine.list_to_write(id);
            }
        });
    }

    /// The socket of a link is about to be closed.
    #[cold]
    pub(super) fn forget_link(&mut self, id: ConnectionId, link: Option<Box<Link>>) {
        let Some(mut link) = link else {
            unreachable!("nothing is done with a link whose peer is forgotten")
        };
        link.teardown(&mut self.supplies.messages);
        self.worker.leave(id.into());
        let context =
            &mut broker::Context::new(&mut self.journal, &mut self.supplies.messages, &mut self.work);
        self.broker.release(context, id);
        self.link_ended(&link);
    }

    // ---- reading

    /// Reads once, and handles as much of it as can be.
    pub(super) fn read_bridge(&mut self, id: ConnectionId) {
        self.with_link(id, |engine, link| engine.read_link(id, link));
        self.after_session(id.into());
    }

    fn read_link(&mut self, id: ConnectionId, link: &mut Link) {
        let is_scarce =
            self.supplies.messages.is_held(self.broker.owner(id)) || !self.buffers.can_take(self.input.len());
        let Some(peer) = self.peers.get_mut(id) else { return };
        if link.client.is_unheard()
            && let Some(error) = peer.stream.socket.take_error()
        {
            let cause = Cause::new(format_args!("{} cannot be reached: {error}", peer.address));
            return self.lose_link(id, link, cause);
        }
        let reading = if is_scarce { Reading::Look } else { Reading::Take };
        let got = peer.stream.read(&mut self.buffers, &mut self.input, reading);
        self.bytes_read += got.len;
        self.work_units = self.work_units.saturating_add(peer.stream.take_records() * WORK_UNITS_PER_RECORD);
        if peer.stream.has_lost_record {
            let cause = Cause::new(format_args!("no room to keep its unfinished record of TLS"));
            return self.lose_link(id, link, cause);
        }
        if peer.stream.is_shaking_hands() {
            return self.shake_link(id, link, got.end);
        }
        let has_come = link.client.note_input(self.now, got.len) > 0;
        let input = core::mem::take(&mut self.input);
        let was_blocked = link.client.is_blocked();
        let (handled, next) = self.handle_link(id, link, &input[..got.len]);
        if was_blocked && !link.client.is_blocked() {
            link.restart_confirm_timeout(self.now);
        }
        self.input = input;
        link.client.note_left(got.len - handled);
        if let Next::Lost(cause) = next {
            return self.lose_link(id, link, cause);
        }
        let waits = matches!(next, Next::Wait);
        let is_over_budget = self.is_over_budget();
        let Some(peer) = self.peers.get_mut(id) else { return };
        let kept =
            peer.stream.keep(&mut self.buffers, &mut self.input, got.len, handled, waits || is_over_budget);
        if !kept {
            let cause =
                Cause::new(format_args!("no room to keep its unfinished frame; raise stash_bytes_max"));
            return self.lose_link(id, link, cause);
        }
        if waits {
            // It is we who do not read.
            link.begun = None;
            return;
        }
        if is_over_budget {
            peer.stream.look_again();
            return self.list_to_read(id);
        }
        if got.end {
            let cause = match peer.stream.tls_fault() {
                Some(why) => Cause::new(format_args!("TLS: {why}")),
                None => hung_up(),
            };
            return self.lose_link(id, link, cause);
        }
        link.note_begun(self.now, has_come, got.len - handled);
        let is_starved = peer.stream.is_starved();
        if is_starved {
            self.for_stash.push(id);
        }
        if peer.stream.readable && (handled > 0 || !is_starved) {
            self.list_to_read(id);
        }
    }

    // ---- TLS

    /// Goes on with the handshake of TLS.
    #[cold]
    pub(super) fn shake_link(&mut self, id: ConnectionId, link: &mut Link, end: bool) {
        let Some(peer) = self.peers.get_mut(id).filter(|peer| peer.waiting == Waiting::No) else { return };
        if let Some(cause) = peer.stream.opening().and_then(not_tls) {
            peer.stream.give_up_tls();
            return self.lose_link(id, link, cause);
        }
        if let Some(handshake) = peer.stream.take_handshake() {
            let ticket = self.worker.ticket();
            peer.waiting = Waiting::Handshake(ticket);
            self.worker.shakes.push_back(Shake { peer: id.into(), ticket, since: self.now, handshake });
        } else if end {
            let cause = Cause::new(format_args!("it closed the connection in the handshake of TLS"));
            self.lose_link(id, link, cause);
        } else if peer.stream.readable {
            self.list_to_read(id);
        }
    }

    /// A step of the handshake has been made.
    #[cold]
    pub(super) fn take_shaken_link(&mut self, id: ConnectionId, shaken: Shaken) {
        self.with_link(id, |engine, link| {
            let Some(peer) = engine.peers.get_mut(id) else { return };
            peer.waiting = Waiting::No;
            match peer.stream.shaken(&mut engine.buffers, shaken) {
                Ok(spoken) => {
                    log::debug!("{}: {spoken:?}", peer.address);
                    engine.list_to_write(id);
                    engine.list_to_read(id);
                }
                Err(why) => {
                    let cause = Cause::new(format_args!("the handshake of TLS failed: {why}"));
                    engine.lose_link(id, link, cause);
                }
            }
        });
    }

    /// Handles input; says how much of it, and how it goes on.
    fn handle_link(&mut self, id: ConnectionId, link: &mut Link, input: &[u8]) -> (usize, Next) {
        let mut at = 0;
        if let next @ (Next::Wait | Next::Lost(_)) = self.publish_arrived(id, link) {
            return (0, next);
        }
        loop {
            let before = at;
            let next = match link.client.next(input, &mut at) {
                Event::NeedMore => break,
                Event::Lost(cause) => Next::Lost(cause),
                Event::Ready => self.open_here(id, link),
                event @ (Event::Confirm { .. } | Event::Returned { .. } | Event::PublishRefused(..)) => {
                    self.take_confirm(id, link, event)
                }
                event @ (Event::Consuming(_) | Event::QueueRefused(..) | Event::QueueGone(..)) => {
                    self.take_consumer(id, link, event)
                }
                event @ (Event::Deliver { .. } | Event::Header { .. } | Event::Body(_)) => {
                    let next = self.take_arriving(id, link, event);
                    if matches!(next, Next::Wait) && !link.has_whole() {
                        // The header is looked at again when there is room.
                        link.client.take_header_back();
                        at = before;
                    }
                    next
                }
            };
            match next {
                Next::GoOn if self.is_over_budget() => break,
                Next::GoOn => {}
                Next::Wait => {
                    // What is ours already does not wait with the next.
                    self.acknowledge_durable(link);
                    return (at, Next::Wait);
                }
                lost @ Next::Lost(_) => return (at, lost),
            }
        }
        self.acknowledge_durable(link);
        (at, Next::GoOn)
    }

    // ---- messages begin to flow

    #[cold]
    fn open_here(&mut self, id: ConnectionId, link: &mut Link) -> Next {
        let begun = self.channel_here(id, link).and_then(|channel| self.begin_flow(id, link, channel));
        if let Err(cause) = begun {
            return Next::Lost(cause);
        }
        link.ready_since = Some(self.now);
        let now = self.now;
        let Some((bridge, state)) = self.bridges.get(link.id) else { return Next::GoOn };
        let what = link.id.direction.name();
        let upstream = &bridge.config.upstream[state.upstream];
        let text = format_args!("bridge {}, {what}, {upstream}: up", bridge.config.name);
        // While rules wait, the link may end and begin for them again and again.
        let has_waiting =
            (0..bridge.rules(link.id.direction).len()).any(|at| bridge.is_waiting(link.id.direction, at));
        if !state.has_been_up || state.last_error.is_some() && !has_waiting {
            let source = LogSource::Bridge(link.id.bridge);
            self.supplies.log.log(now, log::Level::Info, source, LogKind::Bridge, text);
        }
        if let Some(state) = self.bridges.link_mut(link.id) {
            state.ready_since = Some(now);
            state.counts.connected += 1;
            state.has_been_up = true;
        }
        Next::GoOn
    }

    /// The link's channel here, which a fetching link needs from its first delivery on: that may come before
    /// the last of its consumers has begun.
    ///
    /// # Errors
    /// The broker here refuses.
    pub(super) fn channel_here(&mut self, id: ConnectionId, link: &mut Link) -> Result<ChannelId, Cause> {
        if let Some(channel) = link.channel {
            return Ok(channel);
        }
        let channel = self.open_own_channel(id)?;
        link.channel = Some(channel);
        self.make_queues(link.id)?;
        if let Flow::Fetch(_) = link.flow {
            self.demand(id, channel, Command::ConfirmSelect)?;
        }
        Ok(channel)
    }

    /// The one channel of a connection of our own.
    #[cold]
    pub(super) fn open_own_channel(&mut self, id: ConnectionId) -> Result<ChannelId, Cause> {
        let (broker, mut context) = self.broker_mut();
        match broker.apply(&mut context, id, None, Command::OpenChannel { number: 1 }).0 {
            Outcome::ChannelOpened(channel) => Ok(channel),
            Outcome::Fault(fault) => Err(Cause::new(format_args!("this broker: {}", fault.text))),
            _ => unreachable!("opening a channel is answered with a channel or a fault"),
        }
    }

    #[cold]
    fn begin_flow(&mut self, id: ConnectionId, link: &mut Link, channel: ChannelId) -> Result<(), Cause> {
        let Some((bridge, _)) = self.bridges.get(link.id) else {
            return Err(Cause::new(format_args!("it is not wanted any more")));
        };
        let (vhost, window) = (bridge.config.vhost.clone(), bridge.config.window);
        let rules = bridge.rules(link.id.direction).to_vec();
        if let Flow::Fetch(_) = link.flow {
            let depth = link.client.depth();
            self.note_source_depth(link.id, depth.into());
            return self.end_trials(id, link);
        }
        self.demand(id, channel, Command::Qos { prefetch_count: window, global: true })?;
        for rule in &rules {
            let depth = self.broker.queue_depth(&vhost, &rule.queue).unwrap_or(0);
            self.note_source_depth(link.id, depth.into());
        }
        self.turn_consumers(id, link)
    }

    /// The rule of this place takes messages.
    #[cold]
    pub(super) fn consume_here(
        &mut self,
        id: ConnectionId,
        channel: ChannelId,
        queue: &str,
        at: usize,
    ) -> Result<(), Cause> {
        let (tag, no_ack, exclusive, arguments) = (&*crate::bridge::tag_of(at), false, false, &[][..]);
        self.demand(id, channel, Command::Consume { queue, tag, no_ack, exclusive, arguments })
    }

    /// A command that has to be carried out.
    #[cold]
    pub(super) fn demand(
        &mut self,
        id: ConnectionId,
        channel: ChannelId,
        command: Command<'_>,
    ) -> Result<(), Cause> {
        match self.apply_own(id, channel, command).0 {
            Outcome::Fault(fault) => Err(Cause::new(format_args!("this broker: {}", fault.text))),
            _ => Ok(()),
        }
    }
}
