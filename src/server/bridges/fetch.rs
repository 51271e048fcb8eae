//! Messages on their way from an upstream.
//!
//! They are collected, published here over a connection of our own, and acknowledged there when they are durable
//! here.
//!
//! | case | result |
//! |------|--------|
//! | a queue here takes the message | acknowledged there when it is durable here |
//! | no queue here takes it | parked here, with the cause |
//! | `to_queue` is missing here | returned to its queue there; its rule waits, and `to_queue` is declared again |
//! | it cannot be parked either | returned to its queue there; its rule waits, and tries one message at a time |
//! | it is too large for this broker | held: it stays unacknowledged there |
//! | the same, with `refused = "reject"` | dead-lettered there |
//!
//! # Invariants
//! - A message is acknowledged only when a queue here has it, or the queue of parked messages.
//! - Messages held at the upstream take nothing of their rule's window.

use leveret_amqp::{Properties, Writer};
use leveret_bridge::{Arrivals, BridgeHeaders, Cause, Event, Transfer, hops_of};
use leveret_broker::{ParkedFrom, write_parked_properties};
use leveret_config::bridge::{Destination, RefusedAction};
use leveret_connection::message_flags;
use leveret_core::batch::Batch;
use leveret_core::command::{ChannelCommand, PublishAnswer, PublishCommand};
use leveret_core::mem::{MessageId, PoolFull};
use leveret_queues::Shortage;

use super::state::Remedy;
use super::traffic::{Fetch, Flow, Incoming, LinkTask, Next, OwnConnection, Received};
use super::{PropertyBuffers, Scratch, bridged_properties};
use crate::blocked_publishers::BlockedOn;
use crate::peer::WaitReason;
use crate::platform::Platform;

impl<P: Platform> LinkTask<'_, P> {
    /// Returns the prefetch of a rule: its share of the window, and in addition the messages held there. Each queue
    /// has its own share, because a quorum queue of RabbitMQ refuses a prefetch shared by the channel.
    pub(super) fn prefetch(&self, rule: usize) -> u16 {
        let rule_state = &self.state.rule_states[rule];
        let share = self.bridge.config.window / self.bridge.config.fetch.len().max(1) as u16;
        let prefetch = if rule_state.is_one_at_a_time() { 1 } else { share.max(1) };
        prefetch.saturating_add(rule_state.oversized_count)
    }

    /// Begins to fetch messages of a rule whose consumer at the upstream has begun.
    ///
    /// # Errors
    /// The fault of the broker.
    #[cold]
    pub(super) fn begin_fetch(&mut self, rule: usize) -> Result<(), Cause> {
        if self.open_link.publish_channel.is_none() {
            let own = self.shared.open_own(self.open_link.peer)?;
            self.open_link.publish_channel = Some(own.channel);
            self.shared.apply_checked(own, ChannelCommand::ConfirmSelect)?;
        }
        let arrivals = Arrivals::new(self.prefetch(rule).into());
        // Held messages arrive again on the new channel.
        self.state.rule_states[rule].oversized_count = 0;
        let (incoming, is_ending, has_consumer_ended) = (None, false, false);
        self.open_link.flows[rule] = Flow::Fetch(Fetch { arrivals, incoming, is_ending, has_consumer_ended });
        self.state.rule_states[rule].note_open(self.shared.now);
        Ok(())
    }

    /// Returns whether a complete message of a rule waits for capacity.
    pub(super) fn has_complete_message(&mut self, rule: usize) -> bool {
        self.open_link.incoming(rule).is_some_and(|it| matches!(it.content, Received::Whole(_)))
    }

    /// Takes a part of a message.
    ///
    /// # Errors
    /// The upstream sent a part of a delivery where it is not permitted.
    pub(super) fn handle_delivery(&mut self, event: Event<'_>) -> Result<Next, Cause> {
        self.open_link.has_moved = true;
        let (now, left) = (self.shared.now, self.state.messages_left);
        let misplaced = || Err(Cause::new(format_args!("an unexpected delivery")));
        match event {
            Event::Deliver { rule, tag, redelivered, exchange, key } => {
                let Some(flow) = self.open_link.fetch(rule) else { return misplaced() };
                let is_placed = matches!(
                    flow.incoming,
                    None | Some(Incoming { content: Received::Nothing | Received::Skipped(_), .. })
                );
                assert!(is_placed, "a message is published before the next one arrives");
                let is_beyond = left.is_some_and(|left| flow.arrivals.len() as u64 >= left);
                let content = if is_beyond { Received::Skipped(0) } else { Received::Nothing };
                flow.incoming = Some(Incoming {
                    tag,
                    redelivered,
                    since: now,
                    exchange: heapless::String::try_from(exchange).unwrap_or_default(),
                    key: heapless::Vec::from_slice(key).unwrap_or_default(),
                    content,
                    refused: None,
                });
                self.state.today.messages += u64::from(!redelivered);
                Ok(Next::GoOn)
            }
            Event::Header { rule, properties, body_len } => {
                if let Err(full) = self.begin_arriving(rule, properties, body_len) {
                    let shortage = Shortage::from(full);
                    return Ok(self.wait_for_capacity(shortage));
                }
                self.publish_arrived(rule)
            }
            Event::Body(rule, octets) => {
                let len = octets.len() as u64;
                let Some(incoming) = self.open_link.incoming(rule) else { return misplaced() };
                match incoming.redelivered {
                    true => self.state.today.repeated += len,
                    false => self.state.today.payload += len,
                }
                match &mut incoming.content {
                    Received::Part(message, left) => {
                        self.shared.resources.messages.append_body(*message, octets);
                        *left -= len;
                        if *left == 0 {
                            self.shared.resources.messages.finish(*message);
                            incoming.content = Received::Whole(*message);
                        }
                    }
                    Received::Skipped(left) => *left = left.saturating_sub(len),
                    Received::Nothing | Received::Whole(_) => {
                        unreachable!("a body follows its header, or the client says so")
                    }
                }
                self.publish_arrived(rule)
            }
            _ => unreachable!("other events are handled by handle_event"),
        }
    }

    /// Reserves everything that the message will need.
    ///
    /// # Errors
    /// The pool that lacks capacity now.
    fn begin_arriving(
        &mut self,
        rule: usize,
        properties: Properties<'_>,
        body_len: u64,
    ) -> Result<(), PoolFull> {
        let peer = self.open_link.peer;
        let Some(incoming) = self.open_link.incoming(rule) else { return Ok(()) };
        if let Received::Skipped(_) = incoming.content {
            incoming.content = Received::Skipped(body_len);
            return Ok(());
        }
        let added = BridgeHeaders { origin: self.common.origin, id: None, is_repeat: incoming.redelivered };
        let Scratch { headers, edited, properties: again, .. } = &mut self.common.scratch;
        let (addresses, unix_s) = ((self.state.upstream, 0), self.shared.platform.unix_ms() / 1000);
        let node = &*self.common.node;
        let shovel = self.bridge.config.shovel.as_deref();
        let transfer = shovel.map(|shovel| Transfer { shovel, addresses, unix_s, node });
        let marked =
            bridged_properties(properties, added, transfer, PropertyBuffers { headers, edited, again });
        let limits = &self.shared.limits;
        let marked = marked.ok().filter(|it| it.as_bytes().len() + 32 <= limits.frame_max as usize);
        let len = u32::try_from(body_len).ok().filter(|len| *len <= limits.message_size_max);
        let Some((properties, len)) = marked.zip(len) else {
            incoming.content = Received::Skipped(body_len);
            let tag = incoming.tag;
            self.leave_at_upstream(rule, tag, body_len);
            return Ok(());
        };
        let broker = &self.shared.broker;
        let share = broker.content_share(peer);
        let to = &self.bridge.config.fetch[rule].to;
        let key = to.key().map_or(&*incoming.key, str::as_bytes);
        let exchange = to.exchange().unwrap_or(&incoming.exchange);
        let messages = &mut self.shared.resources.messages;
        let message = messages.begin(exchange, key, share)?;
        let flags = message_flags(properties);
        let kept = messages.reserve_content(message, properties.as_bytes(), flags, len, share);
        kept.inspect_err(|_| messages.discard(message))?;
        incoming.content = Received::Part(message, len.into());
        if len == 0 {
            messages.finish(message);
            incoming.content = Received::Whole(message);
        }
        Ok(())
    }

    /// Handles a message that is too large for this broker. It is dead-lettered there, if the rule permits that.
    /// Otherwise it stays unacknowledged until the channel ends, and blocks no other message.
    #[cold]
    fn leave_at_upstream(&mut self, rule: usize, tag: u64, body_len: u64) {
        let most = self.shared.limits.message_size_max;
        let queue = &self.bridge.config.fetch[rule].queue;
        let name = &self.bridge.config.name;
        let is_rejected = self.bridge.config.fetch[rule].refused == RefusedAction::Reject
            && self.open_link.client.can_settle();
        let what =
            if is_rejected { "it is rejected there" } else { "it stays there; other messages continue" };
        let text = format_args!(
            "bridge {name}, fetch: a message of {body_len} bytes in {queue} is too large for this broker \
             (message_size_max = {most}, or its headers fill a frame): {what}"
        );
        let cause = Cause::new(format_args!(
            "{queue}: a message of {body_len} bytes is too large for this broker; {what}"
        ));
        if self.state.must_be_logged(&cause) {
            self.shared.log_bridge(log::Level::Warn, self.bridge.serial, text);
        }
        self.state.last_error = Some((cause, self.shared.now));
        if is_rejected {
            self.open_link.client.reject(rule, tag);
        } else {
            let rule_state = &mut self.state.rule_states[rule];
            rule_state.oversized_count = rule_state.oversized_count.saturating_add(1);
            self.restart_consumer(rule);
        }
        self.count_down_messages_left(1);
    }

    fn wait_for_capacity(&mut self, shortage: Shortage) -> Next {
        let (id, since) = (self.open_link.peer, self.shared.now);
        if let Some(peer) = self.shared.peers.get_mut(id) {
            (peer.waiting, peer.blocked_on) = (WaitReason::Capacity, BlockedOn { shortage, since });
            self.shared.lists.for_capacity.push(id);
        }
        Next::Wait
    }

    /// Publishes the complete message of a rule, if there is one.
    ///
    /// # Errors
    /// The upstream sent more messages than the prefetch.
    pub(super) fn publish_arrived(&mut self, rule: usize) -> Result<Next, Cause> {
        let channel = self.open_link.publish_channel;
        let Some(incoming) = self.open_link.incoming(rule) else { return Ok(Next::GoOn) };
        let (Received::Whole(message), tag, Some(channel)) = (incoming.content, incoming.tag, channel) else {
            return Ok(Next::GoOn);
        };
        if let Some(why) = incoming.refused.clone() {
            return self.park_arrived(rule, tag, message, &why);
        }
        let peer = self.open_link.peer;
        let messages = &mut self.shared.resources.messages;
        let properties = messages.properties(message, &mut self.common.scratch.properties);
        if hops_of(Properties::trusted(properties)) > self.bridge.config.hops_max.into() {
            return self.park_arrived(rule, tag, message, "it has crossed the maximum number of bridges");
        }
        // The message may have to be parked.
        messages.retain(message);
        let command = PublishCommand::Publish { message, mandatory: true };
        let (answer, batch) = self.shared.apply(OwnConnection { connection: peer, channel }, command);
        let why = match answer {
            Ok(PublishAnswer::Wait) => {
                self.shared.resources.messages.release(message);
                return Ok(self.wait_for_capacity(self.shared.broker.last_shortage()));
            }
            Ok(PublishAnswer::Published) if self.shared.broker.has_returned(peer) => {
                let (broker, mut context) = self.shared.broker_mut();
                broker.sent(&mut context, peer, 1);
                if let Destination::Queue(queue) = &self.bridge.config.fetch[rule].to {
                    // The message is not at fault. The queue is declared before the next attempt.
                    let cause =
                        Cause::new(format_args!("queue '{queue}' is missing here: it is declared again"));
                    self.hold_rule(rule, cause, Remedy::OneTaken);
                    self.close_flow(rule);
                    return Ok(Next::GoOn);
                }
                "unroutable here: it reaches no queue".to_string()
            }
            Ok(PublishAnswer::Published) => {
                return self.acknowledge_when_durable(rule, tag, message, batch);
            }
            Err(fault) => format!("refused here: {}", fault.text),
            Ok(_) => "refused here by its queue's own arguments".to_string(),
        };
        self.park_arrived(rule, tag, message, &why)
    }

    /// Records that a message is acknowledged as soon as `batch` is durable.
    fn acknowledge_when_durable(
        &mut self,
        rule: usize,
        tag: u64,
        message: MessageId,
        batch: Batch,
    ) -> Result<Next, Cause> {
        self.shared.resources.messages.release(message);
        let Some(flow) = self.open_link.fetch(rule) else { unreachable!("only fetching rules publish") };
        flow.incoming = None;
        if !flow.arrivals.take(tag, batch) {
            return Err(Cause::new(format_args!("it sent more messages than the prefetch count allows")));
        }
        self.note_message_taken(rule);
        Ok(Next::GoOn)
    }

    /// Parks a message that no queue here takes. If it cannot be parked, or the rule has `refused = "wait"`, the message
    /// goes back to its queue at the upstream, and only its rule waits.
    #[cold]
    fn park_arrived(&mut self, rule: usize, tag: u64, message: MessageId, why: &str) -> Result<Next, Cause> {
        let parked = match self.bridge.config.fetch[rule].refused {
            RefusedAction::Wait => Err(Cause::new(format_args!("{why}"))),
            RefusedAction::Park | RefusedAction::Reject => self
                .park_copy(message, why)
                .map_err(|cause| Cause::new(format_args!("{why}, and it cannot be parked now: {cause}"))),
        };
        let cause = match parked {
            Ok(Some(batch)) => return self.acknowledge_when_durable(rule, tag, message, batch),
            Ok(None) => {
                // Some of its destination queues may have it already.
                if let Some(incoming) = self.open_link.incoming(rule) {
                    incoming.refused = Some(why.into());
                }
                return Ok(self.wait_for_capacity(self.shared.broker.last_shortage()));
            }
            Err(cause) => cause,
        };
        self.hold_rule(rule, cause, Remedy::OneTaken);
        // Closing the channel requeues all unacknowledged messages there, in their order.
        self.close_flow(rule);
        Ok(Next::GoOn)
    }

    /// Puts a copy of a message into the queue of parked messages. Returns `None` if there is no capacity now.
    ///
    /// # Errors
    /// That queue does not take it either, or cannot be declared.
    #[cold]
    fn park_copy(&mut self, message: MessageId, why: &str) -> Result<Option<Batch>, Cause> {
        self.shared.declare_parked(self.bridge)?;
        let Some(channel) = self.open_link.publish_channel else {
            unreachable!("the channel is open before messages are published")
        };
        let Scratch { properties, edited, .. } = &mut self.common.scratch;
        let own = Properties::trusted(self.shared.resources.messages.properties(message, properties));
        let mut writer = Writer::new(edited);
        let parked = ParkedFrom { bridge: &self.bridge.config.name, queue: None, cause: why };
        let unix_s = self.shared.platform.unix_ms() / 1000;
        let is_written = write_parked_properties(own, &parked, unix_s, &mut writer).is_ok();
        let mut len = writer.at();
        // If the headers would become too long, they stay unchanged, because the message must fit a frame when it is
        // delivered.
        if !is_written || len + 32 > self.shared.limits.frame_max as usize {
            len = own.as_bytes().len();
            edited[..len].copy_from_slice(own.as_bytes());
        }
        let kept = &edited[..len];
        let (broker, mut context) = self.shared.broker_mut();
        let put = broker.move_copy(&mut context, channel, message, &self.bridge.config.parked, kept);
        let put = put.map_err(|fault| Cause::new(format_args!("{}", fault.text)))?;
        if put.is_some() {
            self.bridge.parked_alarm.note_parked();
        }
        Ok(put)
    }

    // ---- acknowledging

    /// Acknowledges messages that are durable now.
    pub(super) fn acknowledge(&mut self) {
        let durable = self.shared.pending_writes.durable();
        let mut moved = 0;
        for rule in 0..self.open_link.flows.len() {
            let Flow::Fetch(flow) = &mut self.open_link.flows[rule] else { continue };
            // Held messages must not be acknowledged by a later `multiple`.
            let may_ack_multiple = self.state.rule_states[rule].oversized_count == 0;
            while self.open_link.client.can_settle()
                && let Some((tag, count)) = flow.arrivals.next_durable(durable, may_ack_multiple)
            {
                self.open_link.client.acknowledge(rule, tag, may_ack_multiple);
                self.state.rule_states[rule].moved_count += count;
                moved += count;
            }
        }
        if moved > 0 {
            self.state.counts.moved += moved;
            self.count_down_messages_left(moved);
        }
    }
}
