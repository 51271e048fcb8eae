//! A link with a socket: reading, writing, timers, and the flow of each rule.
//!
//! A *flow* is the use of a link by one rule: its channel at the upstream, and its messages under way. Flows share the
//! link, and a flow that must wait does not stop the others.
//!
//! Input from the upstream is handled in order. Output is collected in one buffer:
//!
//! ```text
//!   buffer: | rest of a partial frame | the client's own commands | messages, a share for each flow … |
//! ```
//!
//! The states of a flow:
//!
//! ```text
//!   Closed ─ wanted → Opening ─ ready → Forward or Fetch ─ not wanted, or failed → … → Closed
//! ```
//!
//! # Invariants
//! - Input from an upstream is read under the same budgets as input from clients.
//! - Flows begin and end independently of each other. When a flow ends, messages that were not acknowledged are
//!   requeued: forwarded ones here, fetched ones by the upstream.
//! - Frames of other flows may be written between two frames of one flow, but never within a frame.
//! - After each call of a [`LinkTask`] the [`LinkStatus`] is current. If the connection is open, each rule that takes
//!   messages has a flow, except while its previous channel is being closed.

use std::io;

use leveret_bridge::{Arrivals, Cause, Client, Event, InFlight, Request, Stage, not_tls, own_id_of};
use leveret_core::command::{ChannelId, ConnectionId};
use leveret_core::mem::MessageId;
use leveret_core::time::{Deadline, Now};
use leveret_tls::HandshakeOutput;

use super::Common;
use super::state::{BridgeState, Direction, LinkState, Remedy};
use crate::peer::{CloseStage, LinkStatus, Peer, Session, WaitReason};
use crate::platform::{Platform, Socket};
use crate::state::Shared;
use crate::stream::{Input, ReadMode};
use crate::worker::HandshakeJob;

/// A link while it has a socket.
#[derive(Debug)]
pub(super) struct OpenLink {
    pub(super) peer: ConnectionId,
    pub(super) client: Client,
    /// The channel here over which fetched messages are published; `None` until a consumer at the upstream has begun.
    pub(super) publish_channel: Option<ChannelId>,
    pub(super) flows: Vec<Flow>,
    /// The flow of which a partial frame was written.
    pub(super) partial_flow: Option<usize>,
    /// The flow that comes first among equals in the next output.
    pub(super) next_first_flow: usize,
    /// Since when the confirm timeout of the link runs. It restarts with each confirm, with each part of a message that
    /// is sent, and after a pause that the upstream requested.
    pub(super) progressed_at: Now,
    /// Since when the connection to the upstream is open.
    pub(super) ready_since: Option<Now>,
    /// When to check whether the link on demand can disconnect.
    pub(super) idle_check_due: Deadline,
    /// Whether the link is ending because it has nothing to do.
    pub(super) ends_because_idle: bool,
    /// Why the link ends.
    pub(super) cause: Option<Cause>,
    /// Whether a confirm or a part of a delivery has arrived since the last check.
    pub(super) has_moved: bool,
    /// Whether no further messages are taken. The link ends when all under way are settled.
    pub(super) is_draining: bool,
    /// When the message or frame that the upstream is sending last progressed. `None`: none is under way, or we do
    /// not read.
    pub(super) input_begun_at: Option<Now>,
}

impl OpenLink {
    pub(super) fn new(peer: ConnectionId, client: Client, rules: usize, now: Now) -> Self {
        Self {
            peer,
            client,
            publish_channel: None,
            flows: (0..rules).map(|_| Flow::Closed).collect(),
            partial_flow: None,
            next_first_flow: 0,
            progressed_at: now,
            ready_since: None,
            idle_check_due: Deadline::NEVER,
            ends_because_idle: false,
            cause: None,
            has_moved: false,
            is_draining: false,
            input_begun_at: None,
        }
    }

    /// Returns whether rules can flow: the connection is open, and not about to end.
    pub(super) fn is_flowing(&self) -> bool {
        self.client.stage() == Stage::Open && !self.is_draining && self.cause.is_none()
    }

    /// Returns whether no message is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.forwards().all(Forward::is_idle) && self.fetches().all(Fetch::is_idle)
    }

    /// Returns whether no message is under way, and none will be.
    pub(super) fn is_drained(&self) -> bool {
        self.is_draining && self.is_idle() && self.fetches().all(|flow| flow.has_consumer_ended)
    }

    /// Returns the number of messages under way, of all rules.
    pub(super) fn pending(&self) -> usize {
        let forward: usize = self.forwards().map(|flow| flow.in_flight.len()).sum();
        forward + self.fetches().map(|flow| flow.arrivals.len()).sum::<usize>()
    }

    pub(super) fn forwards(&self) -> impl Iterator<Item = &Forward> {
        self.flows.iter().filter_map(|flow| if let Flow::Forward(flow) = flow { Some(flow) } else { None })
    }

    pub(super) fn fetches(&self) -> impl Iterator<Item = &Fetch> {
        self.flows.iter().filter_map(|flow| if let Flow::Fetch(flow) = flow { Some(flow) } else { None })
    }

    /// Returns the flow of a rule that forwards.
    pub(super) fn forward(&self, rule: usize) -> Option<&Forward> {
        if let Flow::Forward(flow) = &self.flows[rule] { Some(flow) } else { None }
    }

    /// Returns the flow of a rule that fetches.
    pub(super) fn fetch(&mut self, rule: usize) -> Option<&mut Fetch> {
        if let Flow::Fetch(flow) = &mut self.flows[rule] { Some(flow) } else { None }
    }

    /// Returns the message of a rule that is arriving.
    pub(super) fn incoming(&mut self, rule: usize) -> Option<&mut Incoming> {
        self.fetch(rule)?.incoming.as_mut()
    }

    /// Returns the status of the link for the event loop.
    pub(super) fn status(&self) -> LinkStatus {
        LinkStatus {
            has_output: !self.client.pending().is_empty(),
            has_remainder: self.partial_flow.is_some() || self.forwards().any(|flow| flow.written_bytes > 0),
            awaits_disk: self.fetches().any(|flow| !flow.arrivals.is_empty()),
            body_since: self.fetches().filter_map(Fetch::body_since).min(),
            input_deadline: Deadline::NEVER,
        }
    }

    /// Records that all input except `left` bytes was handled. `has_new_input`: some of it was new.
    pub(super) fn note_input_begun(&mut self, now: Now, has_new_input: bool, left: usize) {
        let is_begun = left > 0 || self.client.is_in_content();
        self.input_begun_at = is_begun.then(|| self.input_begun_at.filter(|_| !has_new_input).unwrap_or(now));
    }

    /// Returns when the message or frame under way has not progressed for too long.
    pub(super) fn content_deadline(&self, content_timeout_ms: u64) -> Deadline {
        self.input_begun_at.map_or(Deadline::NEVER, |since| since.after_ms(content_timeout_ms))
    }

    /// Returns when the upstream has not confirmed a rule's messages for too long.
    pub(super) fn confirm_deadline(&self, confirm_timeout_ms: u64) -> Deadline {
        if self.client.is_blocked() {
            return Deadline::NEVER;
        }
        // A rule that the upstream paused with `channel.flow` is owed no confirms.
        let owed = self.flows.iter().enumerate().filter_map(|(rule, flow)| match flow {
            Flow::Forward(flow) if !flow.in_flight.is_empty() && !self.client.is_paused(rule) => Some(flow),
            _ => None,
        });
        let deadlines = owed.map(|flow| {
            // For a flow that ends without waiting for confirms, only the timeout of the link applies.
            let since = if flow.forced_end < FlowEnd::Sent { flow.progressed_at } else { self.progressed_at };
            since.after_ms(confirm_timeout_ms)
        });
        deadlines.fold(Deadline::NEVER, Deadline::earlier)
    }

    /// Restarts the confirm timeout of the link and all its rules.
    pub(super) fn restart_confirm_timeout(&mut self, now: Now) {
        self.progressed_at = now;
        for flow in &mut self.flows {
            if let Flow::Forward(flow) = flow {
                flow.progressed_at = now;
            }
        }
    }
}

/// The use of a link by one rule: its channel at the upstream, and its messages under way.
#[derive(Debug)]
pub(super) enum Flow {
    /// The rule has no channel at the upstream, or that is being closed.
    Closed,
    /// The channel is being opened.
    Opening,
    /// Messages are forwarded to the upstream.
    Forward(Forward),
    /// Messages are fetched from the upstream.
    Fetch(Fetch),
}

/// The messages of a rule under way to the upstream.
#[derive(Debug)]
pub(super) struct Forward {
    /// The connection that consumes here.
    pub(super) own: OwnConnection,
    pub(super) in_flight: InFlight,
    /// Number of octets written of the first message in the outbox; 0 if none is partly written.
    pub(super) written_bytes: u64,
    /// When the upstream last confirmed something of this rule, or was last sent a part of a message.
    pub(super) progressed_at: Now,
    /// How the flow must end, even if its rule needs it.
    pub(super) forced_end: FlowEnd,
}

impl Forward {
    pub(super) fn is_idle(&self) -> bool {
        self.in_flight.is_empty() && self.written_bytes == 0
    }

    /// Ends the flow in this way, or as before if that is sooner.
    pub(super) fn force_end(&mut self, end: FlowEnd) {
        self.forced_end = self.forced_end.max(end);
    }
}

/// How a flow ends. A later variant ends it sooner.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum FlowEnd {
    /// The flow ends only if its rule wants that.
    No,
    /// The flow ends when all messages under way are settled: its consumer here was cancelled.
    Settled,
    /// The flow ends when the partly written message is complete. It does not wait for confirms.
    Sent,
    /// The flow ends at once, or at the end of a partial frame: its channel at the upstream is closed.
    AtOnce,
}

/// The messages of a rule under way from the upstream.
#[derive(Debug)]
pub(super) struct Fetch {
    pub(super) arrivals: Arrivals,
    pub(super) incoming: Option<Incoming>,
    /// Whether the consumer at the upstream is being cancelled. The channel is closed when nothing is under way.
    pub(super) is_ending: bool,
    /// Whether the consumer at the upstream has ended.
    pub(super) has_consumer_ended: bool,
}

impl Fetch {
    pub(super) fn is_idle(&self) -> bool {
        let is_coming = self.incoming.as_ref().is_some_and(|it| !matches!(it.content, Received::Skipped(0)));
        self.arrivals.is_empty() && !is_coming
    }

    /// Returns since when a body has been arriving.
    pub(super) fn body_since(&self) -> Option<Now> {
        let incoming = self.incoming.as_ref()?;
        matches!(incoming.content, Received::Part(..)).then_some(incoming.since)
    }
}

/// A message that is arriving.
#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) tag: u64,
    pub(super) redelivered: bool,
    pub(super) since: Now,
    pub(super) exchange: heapless::String<255>,
    pub(super) key: heapless::Vec<u8, 255>,
    pub(super) content: Received,
    /// Why its queue here refused the message, so that it must be parked.
    pub(super) refused: Option<Box<str>>,
}

/// How much of a delivery has arrived.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Received {
    /// The header is next.
    Nothing,
    /// This many bytes of the body are still to come.
    Part(MessageId, u64),
    /// The message is complete, and waits for capacity.
    Whole(MessageId),
    /// The message is dropped; this many bytes of its body are still to be skipped.
    Skipped(u64),
}

/// A connection of a bridge in this broker, and its only channel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct OwnConnection {
    pub(super) connection: ConnectionId,
    pub(super) channel: ChannelId,
}

/// An event of a link.
pub(crate) enum LinkEvent<'c> {
    /// The link can be read.
    Read,
    /// The link can be written to, or has output.
    Write,
    /// The deadline of the link has come.
    DeadlineDue,
    /// More is durable here.
    Durable,
    /// A step of the TLS handshake was carried out.
    HandshakeStep(HandshakeOutput),
    /// This broker closes the link: it is shutting down, or the virtual host was deleted.
    Close(&'c str),
}

/// A link with a socket, and everything that is needed to work with it.
pub(super) struct LinkTask<'t, P: Platform> {
    pub(super) direction: Direction,
    pub(super) bridge: &'t mut BridgeState,
    pub(super) state: &'t mut LinkState,
    pub(super) open_link: &'t mut OpenLink,
    pub(super) common: &'t mut Common,
    pub(super) shared: &'t mut Shared<P>,
}

/// How to continue after an event that did not end the link.
#[derive(PartialEq, Eq)]
pub(super) enum Next {
    /// Handle the next event.
    GoOn,
    /// Handle no more until there is capacity.
    Wait,
}

impl<P: Platform> LinkTask<'_, P> {
    // ---- reading

    pub(super) fn read(&mut self) {
        let id = self.open_link.peer;
        let Some(got) = self.receive() else { return };
        let has_new_input = self.open_link.client.note_input(self.shared.now, got.len) > 0;
        let mut handled = 0;
        let waits = match self.handle_received(got.len, &mut handled) {
            Ok(next) => next == Next::Wait,
            Err(cause) => return self.close_with(cause),
        };
        let is_over_budget = self.shared.budget.is_over();
        let Some(peer) = self.shared.peers.get_mut(id) else { return };
        let kept = peer.stream.keep(
            &mut self.shared.buffers,
            &mut self.shared.scratch.input,
            got.len,
            handled,
            waits || is_over_budget,
        );
        if !kept {
            let text = "no memory to keep its unfinished frame; raise memory_limit";
            return self.close_with(Cause::new(format_args!("{text}")));
        }
        if waits {
            // This broker has paused reading, so the upstream is not late.
            self.open_link.input_begun_at = None;
            return;
        }
        if is_over_budget {
            peer.stream.assume_readable();
            return self.shared.list_to_read(id);
        }
        if got.is_end {
            let cause = match peer.stream.tls_fault() {
                Some(why) => Cause::new(format_args!("TLS: {why}")),
                None => Cause::new(format_args!("it closed the connection without a reason")),
            };
            return self.close_with(cause);
        }
        self.open_link.note_input_begun(self.shared.now, has_new_input, got.len - handled);
        let (lacks_backlog, is_readable) = (peer.stream.lacks_backlog(), peer.stream.is_readable);
        if lacks_backlog {
            self.shared.lists.for_backlog.push(id);
        }
        if is_readable && (handled > 0 || !lacks_backlog) {
            self.shared.list_to_read(id);
        }
    }

    /// Reads once from the socket. Returns `None` if there is no input to handle: the link is in the TLS handshake, or
    /// ends.
    fn receive(&mut self) -> Option<Input> {
        let id = self.open_link.peer;
        let is_scarce = self.shared.resources.messages.is_held()
            || !self.shared.buffers.can_take(self.shared.scratch.input.len());
        let peer = self.shared.peers.get_mut(id)?;
        if self.open_link.client.has_received_nothing()
            && let Some(error) = peer.stream.socket.take_error()
        {
            let cause = Cause::new(format_args!("{} cannot be reached: {error}", peer.address));
            self.close_with(cause);
            return None;
        }
        let reading = if is_scarce { ReadMode::Peek } else { ReadMode::Take };
        let got = peer.stream.read(&mut self.shared.buffers, &mut self.shared.scratch.input, reading);
        self.shared.budget.note_read(got.len);
        let records = peer.stream.take_records();
        let (has_lost_record, is_in_handshake) =
            (peer.stream.has_lost_record, peer.stream.is_in_tls_handshake());
        self.shared.budget.charge_records(records);
        if has_lost_record {
            self.close_with(Cause::new(format_args!("no memory to keep its unfinished TLS record")));
            return None;
        }
        if is_in_handshake {
            self.continue_handshake(got.is_end);
            return None;
        }
        Some(got)
    }

    /// Handles the first `len` bytes of the input buffer, and adds the number of handled bytes to `handled`.
    ///
    /// # Errors
    /// Why the link must end.
    fn handle_received(&mut self, len: usize, handled: &mut usize) -> Result<Next, Cause> {
        let input = core::mem::take(&mut self.shared.scratch.input);
        let was_blocked = self.open_link.client.is_blocked();
        let next = self.handle_input(&input[..len], handled);
        if was_blocked && !self.open_link.client.is_blocked() {
            self.open_link.restart_confirm_timeout(self.shared.now);
        }
        self.shared.scratch.input = input;
        self.open_link.client.note_unhandled(len - *handled);
        next
    }

    /// Handles input, and advances `at` over what was handled. Returns how to continue.
    ///
    /// # Errors
    /// Why the link must end.
    fn handle_input(&mut self, input: &[u8], at: &mut usize) -> Result<Next, Cause> {
        for rule in 0..self.open_link.flows.len() {
            if self.publish_arrived(rule)? == Next::Wait {
                return Ok(Next::Wait);
            }
        }
        loop {
            let before = *at;
            let event = self.open_link.client.next(input, at);
            let header_of = if let Event::Header { rule, .. } = event { Some(rule) } else { None };
            let next = match event {
                Event::NeedMore => break,
                event => self.handle_event(event)?,
            };
            if next == Next::Wait {
                if let Some(rule) = header_of.filter(|rule| !self.has_complete_message(*rule)) {
                    // The header is parsed again when there is capacity.
                    self.open_link.client.expect_header_again(rule);
                    *at = before;
                }
                // Messages that are already durable here are acknowledged without waiting for the next.
                self.acknowledge();
                return Ok(Next::Wait);
            }
            if self.shared.budget.is_over() {
                break;
            }
        }
        self.acknowledge();
        Ok(Next::GoOn)
    }

    fn handle_event(&mut self, event: Event<'_>) -> Result<Next, Cause> {
        match event {
            Event::NeedMore => {}
            Event::Lost(cause) => return Err(cause),
            Event::Open => {
                self.note_link_open();
                (0..self.open_link.flows.len()).for_each(|rule| self.update_flow(rule));
            }
            Event::Answered { rule, .. } if !matches!(self.open_link.flows[rule], Flow::Opening) => {
                // The consumer was cancelled: no more messages arrive for the rule.
                if let Some(flow) = self.open_link.fetch(rule).filter(|flow| flow.is_ending) {
                    flow.has_consumer_ended = true;
                }
            }
            Event::Answered { rule, depth } => match self.begin_rule(rule) {
                Ok(()) => {
                    self.state.rule_states[rule].note_ready();
                    self.note_source_depth(rule, depth);
                }
                Err(cause) => self.fail_rule(rule, cause),
            },
            Event::Confirm { rule, number, multiple, is_accepted } => {
                self.handle_confirm(rule, number, multiple, is_accepted)?;
            }
            Event::Returned { rule, code, properties } => match &mut self.open_link.flows[rule] {
                // Its confirm is still to come.
                Flow::Forward(flow) => {
                    flow.in_flight.note_return(own_id_of(properties, self.common.origin), code)?;
                }
                _ => return Err(Cause::new(format_args!("an unexpected basic.return"))),
            },
            Event::Deliver { .. } | Event::Header { .. } | Event::Body(..) => {
                return self.handle_delivery(event);
            }
            Event::Closed { rule, code, is_publish_error, cause } => match self.direction {
                Direction::Forward => self.note_channel_closed(rule, code, is_publish_error, cause),
                Direction::Fetch => {
                    self.fail_rule(rule, Cause::new(format_args!("it closed the channel: {cause}")));
                }
            },
            Event::Resumed(rule) => {
                if let Flow::Forward(flow) = &mut self.open_link.flows[rule] {
                    flow.progressed_at = self.shared.now;
                    self.open_link.progressed_at = self.shared.now;
                }
            }
            Event::QueueGone(rule) => {
                let queue = &self.bridge.rules(self.direction)[rule].queue;
                let cause = Cause::new(format_args!("the upstream deleted or moved its queue '{queue}'"));
                self.fail_rule(rule, cause);
            }
        }
        Ok(Next::GoOn)
    }

    /// Begins the flow of a rule whose channel at the upstream is ready.
    ///
    /// # Errors
    /// The fault of the broker.
    fn begin_rule(&mut self, rule: usize) -> Result<(), Cause> {
        self.shared.declare_queues_of(self.bridge, self.direction, rule)?;
        match self.direction {
            Direction::Forward => self.begin_forward(rule),
            Direction::Fetch => self.begin_fetch(rule),
        }
    }

    /// Handles that the connection to the upstream is open.
    #[cold]
    fn note_link_open(&mut self) {
        // Logged after the start, and after an error.
        let had_error = self.state.last_error.take().is_some();
        if self.state.last_open_at.is_none() || had_error {
            let (direction, upstream) = (self.direction, self.state.upstream);
            self.shared.log_link(log::Level::Info, self.bridge, direction, upstream, format_args!("up"));
        }
        self.open_link.ready_since = Some(self.shared.now);
        self.state.counts.connected += 1;
    }

    // ---- TLS

    /// Continues the TLS handshake.
    #[cold]
    fn continue_handshake(&mut self, end: bool) {
        let id = self.open_link.peer;
        let Some(peer) = self.shared.peers.get_mut(id).filter(|peer| peer.waiting == WaitReason::No) else {
            return;
        };
        if let Some(cause) = peer.stream.first_bytes().and_then(not_tls) {
            peer.stream.end_tls_handshake();
            return self.close_with(cause);
        }
        if let Some(handshake) = peer.stream.take_handshake() {
            let ticket = self.shared.worker.ticket();
            peer.waiting = WaitReason::Handshake(ticket);
            let since = self.shared.now;
            self.shared.worker.handshakes.push_back(HandshakeJob {
                peer: id.into(),
                ticket,
                since,
                handshake,
            });
        } else if end {
            self.close_with(Cause::new(format_args!("it closed the connection during the TLS handshake")));
        } else if peer.stream.is_readable {
            self.shared.list_to_read(id);
        }
    }

    /// Takes the result of a step of the TLS handshake.
    #[cold]
    pub(super) fn take_handshake_step(&mut self, output: HandshakeOutput) {
        let id = self.open_link.peer;
        let Some(peer) = self.shared.peers.get_mut(id) else { return };
        peer.waiting = WaitReason::No;
        match peer.stream.finish_handshake_step(&mut self.shared.buffers, output) {
            Ok(spoken) => {
                log::debug!("{}: {spoken:?}", peer.address);
                self.shared.list_to_write(id);
                self.shared.list_to_read(id);
            }
            Err(why) => self.close_with(Cause::new(format_args!("the TLS handshake failed: {why}"))),
        }
    }

    // ---- writing

    /// Writes kept output, the rest of a partial frame, the client's own commands, then messages. Returns how many
    /// bytes the socket took.
    pub(super) fn write(&mut self) -> usize {
        self.end_cancelled();
        let id = self.open_link.peer;
        if self.shared.peers.get(id).is_some_and(|peer| peer.stream.is_in_tls_handshake()) {
            self.continue_handshake(false);
        }
        let Some(flushed) = self.flush() else { return 0 };
        if self.shared.peers.get(id).is_none_or(|peer| peer.stream.has_unsent() || !peer.stream.is_writable) {
            return flushed;
        }
        let room = self.shared.buffers.output_bytes(self.shared.scratch.output.len());
        let mut output = self.take_output_buffer(room);
        let is_alive = self.open_link.cause.is_none();
        if let Some(rule) = self.open_link.partial_flow {
            self.write_messages_of(rule, &mut output, 0);
        }
        if self.open_link.partial_flow.is_none() {
            let pending = self.open_link.client.pending();
            let copied = pending.len().min(output.left());
            output.octets[output.len..][..copied].copy_from_slice(&pending[..copied]);
            let is_all_copied = copied == pending.len();
            output.len += copied;
            self.open_link.client.note_methods_written(self.shared.now, copied);
            if is_all_copied && is_alive {
                self.write_messages(&mut output);
            }
        }
        let taken = self.write_out(&output.octets[..output.len]);
        self.shared.scratch.output = core::mem::take(&mut output.octets);
        let Some((count, has_unsent)) = taken else { return 0 };
        self.update_writable(has_unsent);
        self.refuse_unsendable(&output);
        flushed + count
    }

    /// Writes kept output. Returns how many bytes the socket took, or `None` if the link has ended.
    fn flush(&mut self) -> Option<usize> {
        let id = self.open_link.peer;
        let peer = self.shared.peers.get_mut(id)?;
        let sent = peer.stream.flush_output(&mut self.shared.buffers, &mut self.shared.scratch.output);
        let (count, _) = self.note_write(sent)?;
        if count > 0 {
            // The confirm timeout runs from when a message was sent.
            self.open_link.client.note_messages_written(self.shared.now);
            self.open_link.restart_confirm_timeout(self.shared.now);
        }
        Some(count)
    }

    /// Writes `bytes`. Returns how many the socket took, and whether the others are kept; `None` if the link has
    /// ended.
    fn write_out(&mut self, bytes: &[u8]) -> Option<(usize, bool)> {
        let peer = self.shared.peers.get_mut(self.open_link.peer)?;
        let sent = peer.stream.write_all(&mut self.shared.buffers, bytes);
        let (count, has_unsent) = self.note_write(sent)?;
        if count > 0 {
            self.open_link.client.note_messages_written(self.shared.now);
        }
        Some((count, has_unsent))
    }

    fn note_write(&mut self, sent: io::Result<usize>) -> Option<(usize, bool)> {
        let peer = self.shared.peers.get_mut(self.open_link.peer)?;
        match sent {
            Ok(count) => Some((count, peer.stream.has_unsent())),
            Err(_) if self.open_link.client.has_received_nothing() => {
                // The upstream may have sent the reason before it closed the connection.
                (peer.stream.is_writable, peer.stream.is_read_closed) = (false, true);
                peer.stream.assume_readable();
                self.shared.list_to_read(self.open_link.peer);
                None
            }
            Err(error) => {
                self.close_with(Cause::of_write_error(&error));
                None
            }
        }
    }
}

impl<P: Platform> LinkTask<'_, P> {
    /// Handles an event. Returns the number of octets written.
    pub(super) fn handle(&mut self, event: LinkEvent<'_>) -> usize {
        match event {
            LinkEvent::Read => self.read(),
            LinkEvent::Write => return self.write(),
            LinkEvent::DeadlineDue => self.handle_timeout(),
            LinkEvent::Durable => self.acknowledge(),
            LinkEvent::HandshakeStep(output) => self.take_handshake_step(output),
            LinkEvent::Close(_) if self.shared.is_stopping() => self.open_link.is_draining = true,
            LinkEvent::Close(why) => self.close_with(Cause::new(format_args!("this broker: {why}"))),
        }
        0
    }

    /// Updates what may have changed after an event: flows become what their rules want, and the loop learns what
    /// the link waits for.
    pub(super) fn update_link(&mut self) {
        if self.open_link.cause.is_none() {
            (0..self.open_link.flows.len()).for_each(|rule| self.update_flow(rule));
        }
        let (id, now) = (self.open_link.peer, self.shared.now);
        let Some(peer) = self.shared.peers.get_mut(id) else { return };
        let (is_reading, is_alive) = (peer.waiting == WaitReason::No, peer.ending == CloseStage::No);
        if is_alive && self.open_link.is_drained() {
            if self.open_link.client.stage() == Stage::Open {
                self.open_link.client.close(now);
                peer.ending = CloseStage::Flushing;
                self.shared.list_to_write(id);
            } else {
                // The connection is not open yet, so there is no close to be sent.
                self.shared.close_at_turn_end(id);
            }
            self.open_link.flows.iter_mut().for_each(|flow| self.shared.end_flow(flow));
        }
        let input_deadline = match self.shared.peers.get(id).map(|peer| peer.ending) {
            Some(CloseStage::No) => self.input_deadline(is_reading),
            // A closed link waits until its output is written, but not without limit.
            Some(CloseStage::Flushing) => self.open_link.client.deadline(is_reading),
            Some(CloseStage::Draining(_) | CloseStage::AtTurnEnd) | None => Deadline::NEVER,
        };
        let rate_limit = if is_alive { self.rate_limit_deadline() } else { Deadline::NEVER };
        self.shared.lists.deadlines.lower(id.into(), input_deadline.earlier(rate_limit));
        let status = LinkStatus { input_deadline, ..self.open_link.status() };
        if let Some(Peer { session: Session::Bridge(stored), .. }) = self.shared.peers.get_mut(id) {
            *stored = status;
        }
        if !self.open_link.client.pending().is_empty() {
            self.shared.list_to_write(id);
        }
        if status.awaits_disk {
            self.shared.lists.for_disk.push(id);
        }
        self.note_active(now);
        self.count_octets();
    }

    /// Ends the link with this cause.
    #[cold]
    pub(super) fn close_with(&mut self, cause: Cause) {
        let id = self.open_link.peer;
        if let Some(peer) = self.shared.peers.get_mut(id)
            && peer.stream.is_writable
            && !peer.stream.has_unsent()
            && self.open_link.partial_flow.is_none()
        {
            // The last command, if there is one, is sent if the socket takes it.
            let _ = peer.stream.write(&mut self.shared.buffers, self.open_link.client.pending());
        }
        self.open_link.cause.get_or_insert(cause);
        self.shared.close_at_turn_end(id);
    }

    // ---- flows

    /// Opens or ends a flow as its rule requires, as far as that is possible now. A flow with messages under way ends
    /// when they are settled.
    pub(super) fn update_flow(&mut self, rule: usize) {
        self.state.rule_states[rule].end_due_wait(self.shared.now);
        let takes_messages = self.takes_messages(rule);
        let has_partial_frame = self.open_link.partial_flow == Some(rule);
        match &mut self.open_link.flows[rule] {
            Flow::Closed => {
                let client = &self.open_link.client;
                if takes_messages && client.stage() == Stage::Open && client.is_closed(rule) {
                    self.open_flow(rule);
                }
            }
            Flow::Opening if takes_messages => {}
            Flow::Opening => self.close_flow(rule),
            Flow::Forward(flow) => {
                let begins_nothing = flow.forced_end != FlowEnd::No || !takes_messages;
                let can_close = match flow.forced_end {
                    FlowEnd::AtOnce => true,
                    FlowEnd::Sent => flow.written_bytes == 0,
                    // When the whole link is closed, channels need no close of their own.
                    FlowEnd::Settled | FlowEnd::No => flow.is_idle() && !self.open_link.is_draining,
                };
                if begins_nothing && !has_partial_frame && can_close {
                    self.close_flow(rule);
                }
            }
            Flow::Fetch(flow) => {
                if !takes_messages && !flow.is_ending {
                    flow.is_ending = true;
                    let cancel = [Request::Cancel { has_reply: true }];
                    self.open_link.client.request(self.shared.now, rule, cancel);
                } else if flow.is_ending
                    && flow.has_consumer_ended
                    && flow.is_idle()
                    && !self.open_link.is_draining
                {
                    self.close_flow(rule);
                }
            }
        }
    }

    /// Returns whether the flow of a rule may begin further messages: the link is not draining, and the rule is held
    /// neither by the daily budget nor by an error.
    pub(super) fn takes_messages(&self, rule: usize) -> bool {
        !self.open_link.is_draining
            && !self.bridge.is_over_budget(&self.bridge.rules(self.direction)[rule])
            && !self.state.rule_states[rule].is_waiting(self.shared.now)
    }

    #[cold]
    fn open_flow(&mut self, rule: usize) {
        let prefetch = self.prefetch(rule);
        let requests = self.bridge.opening_requests(self.direction, rule, prefetch);
        self.open_link.client.request(self.shared.now, rule, requests);
        self.open_link.flows[rule] = Flow::Opening;
    }

    /// Closes a rule's channel at the upstream, if it is open, and requeues its messages here.
    #[cold]
    pub(super) fn close_flow(&mut self, rule: usize) {
        self.open_link.client.close_channel(self.shared.now, rule);
        self.shared.end_flow(&mut self.open_link.flows[rule]);
    }

    /// Handles that a rule's channel or consumer at the upstream ended or could not begin: the rule waits.
    #[cold]
    pub(super) fn fail_rule(&mut self, rule: usize, cause: Cause) {
        self.hold_rule(rule, cause, Remedy::Open);
        self.close_flow(rule);
    }

    /// Holds a rule, and no other, until `remedy`.
    #[cold]
    pub(super) fn hold_rule(&mut self, rule: usize, cause: Cause, remedy: Remedy) {
        let (now, random) = (self.shared.now, self.common.random());
        let most_ms = self.bridge.config.reconnect_max_ms.into();
        let queue = &self.bridge.rules(self.direction)[rule].queue;
        let cause = Cause::new(format_args!("{queue}: {cause}"));
        if self.state.rule_states[rule].hold(now, &cause, remedy, most_ms, random) {
            let text = format_args!("{cause}; it is retried with growing pauses; other rules continue");
            let (direction, upstream) = (self.direction, self.state.upstream);
            self.shared.log_link(log::Level::Warn, self.bridge, direction, upstream, text);
        }
    }

    /// Records that a message of a rule was taken. A rule that was retrying resumes normal operation.
    pub(super) fn note_message_taken(&mut self, rule: usize) {
        if self.state.rule_states[rule].note_taken() {
            let (name, what) = (&self.bridge.config.name, self.direction.name());
            let queue = &self.bridge.rules(self.direction)[rule].queue;
            let text = format_args!("bridge {name}, {what}: the rule of {queue} continues");
            self.shared.log_bridge(log::Level::Info, self.bridge.serial, text);
            self.restore_window(rule);
        }
    }

    /// Restores the full window of a rule that had one message at a time.
    #[cold]
    fn restore_window(&mut self, rule: usize) {
        match &self.open_link.flows[rule] {
            Flow::Closed | Flow::Opening => {}
            Flow::Forward(flow) => {
                if let Err(cause) = self.shared.set_prefetch(flow.own, self.bridge.config.window) {
                    self.hold_rule(rule, cause, Remedy::Open);
                }
            }
            Flow::Fetch(_) => self.restart_consumer(rule),
        }
    }

    /// Restarts the consumer at the upstream with the prefetch that is permitted now. Messages sent to the previous
    /// consumer still arrive.
    #[cold]
    pub(super) fn restart_consumer(&mut self, rule: usize) {
        let prefetch = self.prefetch(rule);
        if let Some(flow) = self.open_link.fetch(rule).filter(|flow| !flow.is_ending) {
            flow.arrivals.note_consumer_restart(prefetch.into());
            let requests = self.bridge.restart_requests(rule, prefetch);
            self.open_link.client.request(self.shared.now, rule, requests);
        }
    }

    // ---- time

    /// Returns the earliest timeout for something that the upstream must send.
    fn input_deadline(&self, is_reading: bool) -> Deadline {
        let open_link = &self.open_link;
        let owed = open_link.confirm_deadline(self.bridge.config.confirm_timeout_ms.into());
        let content = open_link.content_deadline(self.shared.limits.content_timeout_ms.into());
        open_link.client.deadline(is_reading).earlier(owed).earlier(content)
    }

    /// Returns when the bridge's rate limit (`drain_rate`) permits the next message; never if it permits one now.
    fn rate_limit_deadline(&self) -> Deadline {
        // If there is nothing to send, this costs one check: the rate permits the next message at that time.
        match self.direction {
            Direction::Forward => self.bridge.rate_limit.deadline(self.shared.now),
            Direction::Fetch => Deadline::NEVER,
        }
    }

    fn handle_timeout(&mut self) {
        let (id, now) = (self.open_link.peer, self.shared.now);
        let is_reading = self.shared.peers.get(id).is_some_and(|peer| peer.waiting == WaitReason::No);
        if let Err(cause) = self.open_link.client.handle_timeout(now, is_reading) {
            return self.close_with(cause);
        }
        let content_timeout_ms = self.shared.limits.content_timeout_ms.into();
        if self.open_link.content_deadline(content_timeout_ms).is_due(now) {
            return self.close_with(Cause::new(format_args!(
                "a message or frame was begun and not continued for {content_timeout_ms} ms"
            )));
        }
        self.check_confirm_timeout();
        // Messages may have waited for the byte rate.
        if self.direction == Direction::Forward || !self.open_link.client.pending().is_empty() {
            self.shared.list_to_write(id);
        }
    }

    /// Checks the confirm timeout: holds the rules whose messages were not confirmed in time, or closes the link if the
    /// timeout of the whole link has passed.
    ///
    /// The timeout restarts whenever a part of a message is sent, because sending one over a slow link can take longer.
    fn check_confirm_timeout(&mut self) {
        let (now, timeout_ms) = (self.shared.now, self.bridge.config.confirm_timeout_ms.into());
        if !self.open_link.confirm_deadline(timeout_ms).is_due(now) {
            return;
        }
        let cause = Cause::new(format_args!(
            "it has confirmed nothing for {timeout_ms} ms although messages are unconfirmed"
        ));
        if self.open_link.progressed_at.after_ms(timeout_ms).is_due(now) {
            return self.close_with(cause);
        }
        for rule in 0..self.open_link.flows.len() {
            if let Flow::Forward(flow) = &mut self.open_link.flows[rule]
                && !flow.in_flight.is_empty()
                && !self.open_link.client.is_paused(rule)
                && flow.forced_end < FlowEnd::Sent
                && flow.progressed_at.after_ms(timeout_ms).is_due(now)
            {
                // Other rules get confirms, so the cause is this rule's queue at the upstream.
                flow.force_end(FlowEnd::Sent);
                self.hold_rule(rule, cause.clone(), Remedy::Taken);
            }
        }
    }

    /// Postpones the disconnection of a link on demand that has opened or has moved something.
    fn note_active(&mut self, now: Now) {
        let is_busy = core::mem::take(&mut self.open_link.has_moved) || !self.open_link.is_idle();
        let Some(demand) = &self.bridge.demand else { return };
        let due = now.after_ms(demand.rest_after_ms());
        let open_link = &mut *self.open_link;
        let is_new = open_link.idle_check_due == Deadline::NEVER && !open_link.ends_because_idle;
        if open_link.ready_since.is_some() && (is_busy || is_new) {
            open_link.idle_check_due = due;
        }
    }

    /// Counts the octets that went over the socket.
    pub(super) fn count_octets(&mut self) {
        let Some(peer) = self.shared.peers.get_mut(self.open_link.peer) else { return };
        let [received, sent] = peer.stream.take_octets().map(u64::from);
        if received + sent == 0 {
            return;
        }
        self.state.today.sent += sent;
        self.state.today.received += received;
        self.bridge.day_budget.note(received + sent);
        if self.bridge.day_budget.must_store() {
            self.common.store_due = self.shared.now.after_ms(0);
        }
    }
}
