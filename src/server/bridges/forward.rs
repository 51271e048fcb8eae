//! Messages on their way to an upstream.
//!
//! They are taken from the outbox of a consumer of our own, sent over the link, and settled here when the upstream
//! confirms them. Each rule has a connection of its own in this broker, and therefore its own window, outbox and
//! order. When its flow ends, its unsettled deliveries are requeued. Each flow with output gets a share of the output
//! buffer, urgent rules first.
//!
//! # Invariants
//! - A message leaves its queue only when the upstream has confirmed it, or when it is dead-lettered to the queue of
//!   parked messages.
//! - Messages of a rule are sent in the order of their queue.

use leveret_amqp::{Full, Properties};
use leveret_bridge::{
    BridgeHeaders, Cause, Client, InFlight, Origin, OwnId, PublishFrames, PublishHead, Transfer, hops_of,
    write_head,
};
use leveret_broker::ParkRequest;
use leveret_config::bridge::{Destination, RULES_MAX, RefusedAction};
use leveret_core::command::{ChannelCommand, ChannelId, Delivery, Outbox, Refusal, Settlement};
use leveret_core::mem::Messages;

use super::own_connections::of_broker;
use super::state::BridgeState;
use super::state::Remedy;
use super::traffic::LinkTask;
use super::traffic::{Flow, FlowEnd, Forward, OpenLink, OwnConnection};
use super::{PropertyBuffers, Scratch, bridged_properties};
use crate::platform::Platform;
use crate::state::Shared;

/// Minimum share of the output buffer that a flow gets when others wait, in bytes.
const SHARE_BYTES_MIN: usize = 4096;

/// Reply code of a message that is returned because it reaches no queue.
const NO_ROUTE: u16 = 312;

/// The output buffer while it is filled.
pub(super) struct OutputBuffer {
    pub(super) octets: Box<[u8]>,
    pub(super) len: usize,
    /// Maximum value of `len`.
    room: usize,
    /// Per flow, the next message (delivery tag) if it must not be sent, and why. All messages before it are in the
    /// buffer.
    unsendable: heapless::Vec<(usize, u64, Refusal), RULES_MAX>,
}

impl OutputBuffer {
    pub(super) const fn left(&self) -> usize {
        self.room - self.len
    }

    fn note_unsendable(&mut self, rule: usize, delivery_tag: u64, why: Refusal) {
        let kept = self.unsendable.push((rule, delivery_tag, why));
        debug_assert!(kept.is_ok(), "there is at most one per flow");
    }
}

impl<P: Platform> LinkTask<'_, P> {
    /// Begins to forward messages of a rule whose channel at the upstream is ready.
    ///
    /// # Errors
    /// The fault of the broker.
    #[cold]
    pub(super) fn begin_forward(&mut self, rule: usize) -> Result<(), Cause> {
        let config = &self.bridge.config;
        let prefetch = if self.state.rule_states[rule].is_one_at_a_time() { 1 } else { config.window };
        let own = self.shared.consume(config, &config.forward[rule].queue, "bridge", prefetch)?;
        let in_flight = InFlight::new(config.window.into());
        self.open_link.flows[rule] = Flow::Forward(Forward {
            own,
            in_flight,
            written_bytes: 0,
            progressed_at: self.shared.now,
            forced_end: FlowEnd::No,
        });
        Ok(())
    }

    /// Ends flows whose queue here was deleted.
    pub(super) fn end_cancelled(&mut self) {
        for rule in 0..self.open_link.flows.len() {
            let Flow::Forward(flow) = &mut self.open_link.flows[rule] else { continue };
            if self.shared.broker.next_cancelled(flow.own.connection).is_some() {
                self.shared.broker.note_cancel_sent(flow.own.connection);
                flow.force_end(FlowEnd::Settled);
                self.hold_rule(rule, Cause::new(format_args!("this queue was deleted here")), Remedy::Open);
            }
        }
    }

    // ---- filling the output buffer

    /// Takes the output buffer, to be filled up to `room` bytes.
    pub(super) fn take_output_buffer(&mut self, room: usize) -> OutputBuffer {
        let octets = core::mem::take(&mut self.shared.scratch.output);
        OutputBuffer { octets, len: 0, room, unsendable: heapless::Vec::new() }
    }

    /// Fills the rest of the output buffer: urgent rules first, and equal rules in turns.
    pub(super) fn write_messages(&mut self, output: &mut OutputBuffer) {
        let count = self.open_link.flows.len();
        for is_urgent in [true, false] {
            let first = self.open_link.next_first_flow;
            let has_output = |rule: &usize| {
                self.open_link.forward(*rule).is_some_and(|flow| {
                    // If the channel of a flow is closed, only the rest of a partial frame is sent.
                    self.bridge.config.forward[*rule].is_urgent == is_urgent
                        && flow.forced_end != FlowEnd::AtOnce
                        && (flow.written_bytes > 0
                            || flow.forced_end == FlowEnd::No
                                && self.takes_messages(*rule)
                                && self.shared.broker.has_output(flow.own.connection))
                })
            };
            let flows_with_output: heapless::Vec<usize, RULES_MAX> =
                (0..count).map(|at| (first + at) % count).filter(has_output).collect();
            for (at, rule) in flows_with_output.iter().enumerate() {
                let share = (output.left() / (flows_with_output.len() - at)).max(SHARE_BYTES_MIN);
                self.write_messages_of(*rule, output, share);
                if self.open_link.partial_flow.is_some() {
                    return;
                }
            }
        }
        self.open_link.next_first_flow = (self.open_link.next_first_flow + 1) % count.max(1);
    }

    /// Writes messages of a flow to the output buffer: about `share` bytes, up to the end of a frame. With a share of 0,
    /// only the rest of the partial frame. Messages in the buffer count as sent.
    pub(super) fn write_messages_of(&mut self, rule: usize, output: &mut OutputBuffer, share: usize) {
        let now = self.shared.now;
        let unix_s = self.shared.platform.unix_ms() / 1000;
        let window = self.window(rule);
        let takes_messages = self.takes_messages(rule);
        let OpenLink { client, flows, partial_flow, progressed_at, .. } = &mut *self.open_link;
        let Flow::Forward(flow) = &mut flows[rule] else { return };
        let mut outbox = self.shared.broker.outbox(flow.own.connection);
        let stop = output.len.saturating_add(share);
        let messages = &self.shared.resources.messages;
        let mut done = 0;
        while output.left() > 0 {
            let may_begin = takes_messages
                && flow.forced_end == FlowEnd::No
                && !client.is_paused(rule)
                && output.len < stop
                && self.bridge.rate_limit.may_send(now)
                && flow.in_flight.len() < window;
            if flow.written_bytes == 0 && !may_begin {
                break;
            }
            let (Some(delivery), Some(source)) = (outbox.peek(), outbox.source()) else { break };
            let id = OwnId { queue: source.queue, offset: source.offset, is_transient: source.is_transient };
            let upstream = self.state.upstream;
            let item = OutgoingMessage { bridge: self.bridge, rule, delivery, id, upstream, unix_s };
            let (origin, node, scratch) = (self.common.origin, &self.common.node, &mut self.common.scratch);
            let head = match item.write_head(messages, origin, client.frame_max(), node, scratch) {
                Ok(head) => head,
                Err(why) => {
                    output.note_unsendable(rule, item.delivery.delivery_tag, why);
                    break;
                }
            };
            let Delivery { message, delivery_tag: tag, redelivered: is_repeat, .. } = item.delivery;
            let body_len = messages.body_len(message);
            let frames = PublishFrames::new(Client::channel_of(rule), &scratch.head[..head], body_len);
            let total = frames.total();
            let from = flow.written_bytes;
            let wanted = (from + stop.saturating_sub(output.len) as u64).min(total);
            let room = output.left().min((frames.frame_end(wanted) - from) as usize);
            let written = frames.write(messages, message, from, &mut output.octets[output.len..][..room]);
            output.len += written;
            let reached = from + written as u64;
            *partial_flow = (frames.frame_end(reached) > reached).then_some(rule);
            flow.written_bytes = if reached == total { 0 } else { reached };
            client.note_message(rule, flow.written_bytes > 0);
            (*progressed_at, flow.progressed_at) = (now, now);
            if reached < total {
                break;
            }
            flow.in_flight.add(tag, id);
            self.bridge.rate_limit.note_sent(now, total);
            self.state.note_sent(is_repeat, total, body_len);
            done += 1;
            outbox.advance();
        }
        let own = flow.own.connection;
        let (broker, mut context) = self.shared.broker_mut();
        broker.sent(&mut context, own, done);
    }

    /// Returns how many messages of a rule may be in flight.
    fn window(&self, rule: usize) -> usize {
        if self.state.rule_states[rule].is_one_at_a_time() {
            return 1;
        }
        self.state.messages_left.unwrap_or(u64::MAX).min(self.bridge.config.window.into()) as usize
    }

    /// Lets the broker deliver more to all flows when all output has been sent, and nothing while some waits.
    pub(super) fn update_writable(&mut self, has_unsent: bool) {
        for flow in self.open_link.forwards() {
            let (broker, mut context) = self.shared.broker_mut();
            broker.set_writable(&mut context, flow.own.connection, flow.written_bytes == 0 && !has_unsent);
        }
    }

    // ---- replies of the upstream

    /// Settles messages of a rule that were confirmed or refused.
    ///
    /// # Errors
    /// The upstream confirmed a message that was never sent, or this broker refuses the settlement.
    pub(super) fn handle_confirm(
        &mut self,
        rule: usize,
        number: u64,
        multiple: bool,
        is_accepted: bool,
    ) -> Result<(), Cause> {
        let now = self.shared.now;
        self.open_link.has_moved = true;
        self.open_link.progressed_at = now;
        loop {
            let Flow::Forward(flow) = &mut self.open_link.flows[rule] else {
                return Err(Cause::new(format_args!("an unexpected confirm")));
            };
            flow.progressed_at = now;
            let settled = flow.in_flight.confirm(number, multiple, is_accepted)?;
            let (own, Some((flight, refusal))) = (flow.own, settled) else { break };
            match refusal {
                Some(why) => self.refuse(rule, flight.tag, why),
                None => {
                    self.shared.settle(own, flight.tag, Settlement::Ack)?;
                    self.state.counts.moved += 1;
                    self.state.rule_states[rule].moved_count += 1;
                    self.note_message_taken(rule);
                    self.count_down_messages_left(1);
                }
            }
            if !multiple {
                break;
            }
        }
        // The window has capacity for messages in the outbox.
        self.shared.list_to_write(self.open_link.peer);
        Ok(())
    }

    /// Handles that the upstream closed the channel of a forwarding rule, before or after its flow began. If one of
    /// several messages may be the cause, they are tried one by one.
    #[cold]
    pub(super) fn note_channel_closed(
        &mut self,
        rule: usize,
        code: u16,
        is_publish_error: bool,
        cause: Cause,
    ) {
        if let Flow::Forward(flow) = &mut self.open_link.flows[rule] {
            flow.force_end(FlowEnd::AtOnce);
            if let Some(only) = flow.in_flight.only().filter(|_| is_publish_error) {
                return self.refuse(rule, only.tag, Refusal::Closed(code));
            }
        } else {
            self.open_link.flows[rule] = Flow::Closed;
        }
        let remedy = if is_publish_error { Remedy::OneTaken } else { Remedy::Open };
        self.hold_rule(rule, Cause::new(format_args!("it closed the channel: {cause}")), remedy);
    }

    // ---- refused messages

    /// Handles that a message was refused, by the upstream or before it was sent: parks or requeues it.
    ///
    /// If the refusal concerns only the message, and `refused` is `park`, it is parked at once and the rule continues.
    /// In all other cases the rule waits.
    ///
    /// A nack or a closed channel says more about a queue there (no leader, full or missing) than about a message, and
    /// is mostly temporary. Such a message is parked only after `park_after` failures of the rule. A message that is
    /// returned for a missing `to_queue` is never parked.
    #[cold]
    fn refuse(&mut self, rule: usize, tag: u64, why: Refusal) {
        // Whether the refusal says something about the message, not about a queue there.
        let is_about_message = !matches!(why, Refusal::Nacked | Refusal::Closed(_));
        let may_park = is_about_message
            || self.state.rule_states[rule].failures() >= self.bridge.config.park_after.into();
        let config = &self.bridge.config.forward[rule];
        let missing = match (&config.to, why) {
            (Destination::Queue(queue), Refusal::Returned(NO_ROUTE)) => Some(Cause::new(format_args!(
                "queue '{queue}' is missing there: declare it, or set `declare = true`"
            ))),
            _ => None,
        };
        let is_parked = config.refused == RefusedAction::Park && may_park && missing.is_none();
        let Some(&Forward { own, .. }) = self.open_link.forward(rule) else {
            unreachable!("only sent messages are refused")
        };
        let cause = match is_parked.then(|| self.park(own.channel, tag, why)) {
            None => missing.unwrap_or_else(|| Cause::new(format_args!("its first message is {why}"))),
            Some(Err(cause)) => cause,
            Some(Ok(())) => {
                self.count_down_messages_left(1);
                if !is_about_message {
                    self.hold_rule(
                        rule,
                        Cause::new(format_args!("a message was parked: {why}")),
                        Remedy::OneTaken,
                    );
                }
                return;
            }
        };
        match self.shared.settle(own, tag, Settlement::Requeue) {
            Ok(()) => self.hold_rule(rule, cause, Remedy::OneTaken),
            Err(cause) => self.close_with(cause),
        }
    }

    /// Dead-letters a sent message into the queue of parked messages.
    ///
    /// # Errors
    /// That queue takes nothing, or cannot be declared.
    #[cold]
    fn park(&mut self, channel: ChannelId, tag: u64, why: Refusal) -> Result<(), Cause> {
        self.shared.declare_parked(self.bridge)?;
        let config = &self.bridge.config;
        let request = ParkRequest { bridge: &config.name, queue: &config.parked, why };
        let (broker, mut context) = self.shared.broker_mut();
        broker.park_delivery(&mut context, channel, tag, request).map_err(of_broker)?;
        self.bridge.parked_alarm.note_parked();
        Ok(())
    }

    /// Refuses the messages at the head of their outboxes that must not be sent.
    #[cold]
    pub(super) fn refuse_unsendable(&mut self, output: &OutputBuffer) {
        for &(rule, tag, why) in &output.unsendable {
            let Some(flow) = self.open_link.forward(rule) else { continue };
            let own = flow.own.connection;
            let is_first =
                self.shared.broker.outbox(own).peek().is_some_and(|delivery| delivery.delivery_tag == tag);
            if is_first && flow.written_bytes == 0 {
                let (broker, mut context) = self.shared.broker_mut();
                broker.sent(&mut context, own, 1);
                self.refuse(rule, tag, why);
                self.shared.list_to_write(self.open_link.peer);
            }
        }
    }
}

impl<P: Platform> Shared<P> {
    fn settle(&mut self, own: OwnConnection, delivery_tag: u64, settlement: Settlement) -> Result<(), Cause> {
        self.apply_checked(own, ChannelCommand::Settle { delivery_tag, multiple: false, settlement })
    }
}

/// A message that is about to be sent.
struct OutgoingMessage<'i> {
    bridge: &'i BridgeState,
    rule: usize,
    delivery: Delivery<'i>,
    id: OwnId,
    /// Index of the upstream.
    upstream: usize,
    /// The time in seconds since 1970.
    unix_s: u64,
}

impl OutgoingMessage<'_> {
    /// Writes the beginning of its publish, up to the body. Returns its length.
    ///
    /// # Errors
    /// Why the message must not be sent.
    fn write_head(
        &self,
        messages: &Messages,
        origin: Origin,
        frame_max: u32,
        node: &str,
        Scratch { headers, properties, edited, head }: &mut Scratch,
    ) -> Result<usize, Refusal> {
        let message = self.delivery.message;
        let own = Properties::trusted(messages.properties(message, head));
        let (config, body_len) = (&self.bridge.config, messages.body_len(message));
        if body_len > config.message_size_max {
            return Err(Refusal::TooLarge);
        }
        if hops_of(own) >= u64::from(config.hops_max) {
            return Err(Refusal::Hops);
        }
        let to = &config.forward[self.rule].to;
        let key = to.key().map_or_else(|| messages.routing_key(message), str::as_bytes);
        let exchange = to.exchange().unwrap_or_else(|| messages.exchange(message));
        let added = BridgeHeaders { origin, id: Some(self.id), is_repeat: self.delivery.redelivered };
        let (addresses, unix_s) = ((0, self.upstream), self.unix_s);
        let transfer = config.shovel.as_deref().map(|shovel| Transfer { shovel, addresses, unix_s, node });
        let buffers = PropertyBuffers { headers, edited, again: properties };
        let bridged_properties = bridged_properties(own, added, transfer, buffers);
        let written = bridged_properties.and_then(|properties| {
            let publish = PublishHead { exchange, routing_key: key, properties, body_len };
            write_head(Client::channel_of(self.rule), &publish, frame_max, head)
        });
        written.map_err(|Full| Refusal::TooLarge)
    }
}
