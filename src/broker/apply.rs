//! Applies commands: each changes the state and returns its reply.
//!
//! This file also has the broker's own connections: the local end of a bridge, and requests to the management
//! API. In addition to what clients can do, they can settle a delivery and, in the same commit, publish its
//! message again or move it to a parking queue.
//!
//! # Invariants
//! - The state is changed and the reply returned at once. An error reply is sent without waiting for a
//!   commit.
//! - Before a command whose effect depends on which messages were delivered, all deliveries that are possible
//!   are made. Commands therefore have the same effect whether they arrive one by one or many in one read.

use leveret_amqp::field::Table;
use leveret_amqp::props::Properties;
use leveret_amqp::reply_text::QueueText;
use leveret_core::batch::Batch;
use leveret_core::command::{
    ChannelId, Command, ConnectionId, Name, Outcome, QueueId, Refusal, ReplyOrder, Settlement, VhostId,
};
use leveret_core::error::{Fault, ReplyCode, out_of};
use leveret_core::mem::{MessageFlags, MessageId, Share};
use leveret_core::password::PasswordCheck;
use leveret_queues::{BROWSED_MAX, BrowseResult, Reason, Shortage, copy_flags};
use leveret_routing::{BindingSpec, Destination, ExchangeDeclaration};
use leveret_storage::{PendingWrites, Urgency};

use super::access::{Identity, Login, Resource, Right};
use super::consumers::{ConsumerState, Mode, NewConsumer, Transaction, forced};
use super::definitions::{DeleteIf, QueueDeclaration};
use super::deliver::OutboxView;
use super::publish::Publish;
use super::republish::Parking;
use super::sessions::{SessionRequest, Step};
use super::state::REPLY_TO;
use super::{Broker, Context};

fn cannot_switch(from: &str, to: &str) -> Fault {
    Fault::new(ReplyCode::PreconditionFailed, format_args!("cannot switch from {from} to {to} mode"))
}

/// The fault for a command that is not valid in this state. The connection layer never passes such a command.
fn unexpected_command() -> Fault {
    Fault::connection(ReplyCode::CommandInvalid, format_args!("unexpected method"))
}

/// The fields of `basic.consume`.
pub(crate) struct ConsumeRequest<'a> {
    pub(crate) queue: &'a str,
    pub(crate) tag: &'a str,
    pub(crate) no_ack: bool,
    pub(crate) exclusive: bool,
    pub(crate) arguments: &'a [u8],
}

fn priority_of(queue: QueueText<'_>, arguments: Table<'_>) -> Result<i32, Fault> {
    let Some(value) = arguments.get("x-priority") else { return Ok(0) };
    match value.as_integer() {
        Some(number) => Ok(number.clamp(i32::MIN.into(), i32::MAX.into()) as i32),
        None => Err(Fault::new(
            ReplyCode::PreconditionFailed,
            format_args!(
                "invalid arg 'x-priority' for {queue}: \"expected integer, got {}\"",
                value.type_name()
            ),
        )),
    }
}

/// Identifies the message of a delivery, so that another broker can detect duplicates.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeliverySource {
    /// Number of the queue. It is never reused in this process; that of a durable queue, never in later
    /// processes either.
    pub queue: u64,
    /// Offset of the message in its queue.
    pub offset: u64,
    /// The message is not in the log, so it is lost when the broker stops.
    pub is_transient: bool,
}

impl OutboxView<'_> {
    /// Returns the identification of the delivery at the cursor; `None` for a `basic.return`.
    pub fn source(&self) -> Option<DeliverySource> {
        let delivery = &self.broker.queues.deliveries()[self.at?];
        let queue = self.broker.queues.at(delivery.queue?);
        Some(match delivery.log_offset {
            Some(offset) => {
                DeliverySource { queue: queue.durable_index.incarnation(), offset, is_transient: false }
            }
            None => DeliverySource { queue: queue.serial, offset: delivery.order, is_transient: true },
        })
    }
}

/// Converts the outcome of publishing a copy: `true` if it is in the queue, `false` if there is no capacity
/// now. In the latter case the copy is discarded. `refused` is the error text if the queue refuses the copy.
fn publish_result_of_copy(
    cx: &mut Context<'_>,
    copy: MessageId,
    outcome: Outcome,
    refused: &str,
) -> Result<bool, Fault> {
    match outcome {
        Outcome::Published | Outcome::PublishedNowhere => Ok(true),
        Outcome::Wait => {
            cx.messages.discard(copy);
            Ok(false)
        }
        _ => Err(Fault::new(ReplyCode::PreconditionFailed, format_args!("{refused}"))),
    }
}

/// Returns a copy of a message with other properties; `None` without capacity. The caller must publish or
/// discard the copy.
#[cold]
fn copy_with_properties_of(cx: &mut Context<'_>, message: MessageId, properties: &[u8]) -> Option<MessageId> {
    let flags = copy_flags(cx.messages, message, &Properties::trusted(properties));
    cx.messages.copy_with_properties(message, properties, flags.with(MessageFlags::PARSE_PROPERTIES)).ok()
}

impl Broker {
    /// Applies one command. Returns its outcome, and the position of the reply among the connection's
    /// deliveries.
    #[inline]
    pub fn apply(
        &mut self,
        cx: &mut Context<'_>,
        connection: ConnectionId,
        channel: Option<ChannelId>,
        command: Command<'_>,
    ) -> (Outcome, ReplyOrder) {
        cx.awaited = Batch::NONE;
        let replies_at_once = matches!(command, Command::Cancel { .. } | Command::CloseChannel);
        let result = match channel {
            None => self.apply_to_connection(cx, connection, command),
            Some(channel) => self.apply_to_channel(cx, connection, channel, command),
        };
        if self.jobs.take_due() {
            self.run_jobs(cx);
        }
        self.queues.records().charge_walked_levels(cx.work);
        if replies_at_once || result.is_err() {
            cx.awaited = Batch::NONE;
        }
        let outcome = result.unwrap_or_else(Outcome::Fault);
        (outcome, self.consumers.reply_order(connection, channel))
    }

    /// Returns whether there is work without new input: jobs, deliveries that became possible, or connections
    /// with new output.
    pub fn has_work(&self, pending_writes: &PendingWrites) -> bool {
        self.queues.gets().is_due()
            || !self.jobs.is_empty() && !pending_writes.is_crowded()
            || self.queues.records().is_any_ready()
            || self.consumers.has_connections_with_output()
            || self.consumers.may_resume_over_share()
    }

    fn apply_to_connection(
        &mut self,
        cx: &mut Context<'_>,
        connection: ConnectionId,
        command: Command<'_>,
    ) -> Result<Outcome, Fault> {
        match command {
            Command::Login { user, password, from_loopback } => {
                self.login(cx.pending_writes, connection, user, password.0, from_loopback)
            }
            Command::LoginExternal { user, from_loopback } => {
                self.login_external(cx.pending_writes, connection, user, from_loopback)
            }
            Command::OpenVhost { vhost } => self.open_vhost(connection, vhost),
            Command::OpenChannel { number } => self.open_channel(connection, number),
            Command::OpenSession {
                client_id,
                clean_start,
                expiry_s,
                in_flight_max,
                packet_len_max,
                will,
            } => {
                let request =
                    SessionRequest { client_id, clean_start, expiry_s, in_flight_max, packet_len_max, will };
                self.open_session(cx, connection, &request)
            }
            _ => Err(unexpected_command()),
        }
    }

    fn apply_to_channel(
        &mut self,
        cx: &mut Context<'_>,
        connection: ConnectionId,
        channel: ChannelId,
        command: Command<'_>,
    ) -> Result<Outcome, Fault> {
        match command {
            Command::Publish { message, mandatory } => self.publish(cx, channel, message, mandatory),
            Command::AcknowledgePacket { packet_id } => {
                self.acknowledge_packet(cx, connection, packet_id, Step::AwaitsPuback)
            }
            Command::RefusePacket { packet_id } => {
                self.acknowledge_packet(cx, connection, packet_id, Step::AwaitsPubrec)
            }
            Command::PublishOnce { message, packet_id } => {
                self.publish_once(cx, (connection, channel), (message, None), packet_id)
            }
            Command::FindPublished { packet_id } => self.find_published(cx, connection, packet_id),
            Command::PublishRetained { message, packet_id, is_refusable } => {
                self.publish_retained(cx, (connection, channel), message, packet_id, is_refusable)
            }
            Command::ReleasePacket { packet_id } => self.release_packet(cx, connection, packet_id),
            Command::ReceivePacket { packet_id } => self.receive_packet(cx, connection, packet_id),
            Command::CompletePacket { packet_id } => self.complete_packet(cx, connection, packet_id),
            Command::Settle { delivery_tag, multiple, settlement } => {
                self.settle(cx, channel, delivery_tag, multiple, settlement)
            }
            Command::CloseChannel => {
                self.close_channel(cx, connection, channel);
                Ok(Outcome::Done)
            }
            Command::Recover => {
                self.catch_up_channel(cx, channel);
                self.recover(channel);
                Ok(Outcome::Done)
            }
            Command::Qos { prefetch_count, global } => {
                if global {
                    self.catch_up_channel(cx, channel);
                }
                self.set_prefetch(cx, channel, prefetch_count, global);
                Ok(Outcome::Done)
            }
            Command::ConfirmSelect => self.select_confirms(channel),
            Command::TxSelect => self.select_transactions(channel),
            Command::TxCommit => self.commit(cx, channel),
            Command::TxRollback => self.rollback(cx.messages, channel),
            Command::Cancel { tag } => {
                self.cancel(cx, channel, tag);
                self.jobs.note_due();
                Ok(Outcome::Done)
            }
            _ => {
                cx.declarer = Some(self.quota.declarer(connection));
                let result = self.apply_definition(cx, connection, channel, command);
                cx.declarer = None;
                result
            }
        }
    }

    /// If a command has the name of a queue, makes the deliveries of that queue that were possible before the
    /// command.
    fn catch_up_for(&mut self, cx: &mut Context<'_>, vhost: VhostId, command: &Command<'_>) {
        if let Command::QueueDeclare { queue, .. }
        | Command::QueuePurge { queue }
        | Command::QueueDelete { queue, .. }
        | Command::Consume { queue, .. }
        | Command::Get { queue, .. } = command
            && self.queues.records().is_any_ready()
            && let Some(queue) = self.queues.records().find_queue(vhost, queue)
        {
            self.catch_up(cx, queue);
        }
    }

    /// Applies a command that has the name of a queue or an exchange.
    fn apply_definition(
        &mut self,
        cx: &mut Context<'_>,
        connection: ConnectionId,
        channel: ChannelId,
        command: Command<'_>,
    ) -> Result<Outcome, Fault> {
        let vhost = self.consumers.channel(channel).vhost;
        self.catch_up_for(cx, vhost, &command);
        match command {
            Command::Subscribe(subscription) => self.subscribe(cx, connection, &subscription),
            Command::Unsubscribe { filter, group } => self.unsubscribe(cx, connection, (filter, group)),
            Command::LeaveSession { expiry_s, keeps_will } => {
                self.disconnect_session(cx, connection, expiry_s, keeps_will)
            }
            Command::ExchangeDeclare { exchange, passive: true, .. } => {
                self.check_exchange_exists(cx, vhost, exchange)
            }
            Command::ExchangeDeclare {
                exchange, kind, durable, auto_delete, internal, arguments, ..
            } => {
                let declaration =
                    ExchangeDeclaration { exchange, kind, durable, auto_delete, internal, arguments };
                self.declare_exchange(cx, connection, vhost, &declaration)
            }
            Command::ExchangeDelete { exchange, if_unused } => {
                self.delete_exchange(cx, connection, vhost, exchange, if_unused)
            }
            Command::ExchangeBind { destination, source, routing_key, arguments } => {
                let spec = BindingSpec { source, routing_key, arguments };
                self.check_bind(cx.work, connection, vhost, Resource::Exchange(destination), &spec)?;
                let source_id = self.require_exchange(vhost, source)?;
                let destination = Destination::Exchange(self.require_exchange(vhost, destination)?);
                self.bind(cx, &spec.between(source_id, destination))
            }
            Command::ExchangeUnbind { destination, source, routing_key, arguments } => {
                let spec = BindingSpec { source, routing_key, arguments };
                self.check_bind(cx.work, connection, vhost, Resource::Exchange(destination), &spec)?;
                self.unbind_exchange(cx, vhost, destination, &spec)?;
                self.jobs.note_due();
                Ok(Outcome::Done)
            }
            Command::QueueDeclare { queue, passive: true, .. } => {
                self.check_queue_exists(cx, connection, vhost, queue)
            }
            Command::QueueDeclare { queue, durable, exclusive, auto_delete, arguments, .. } => {
                let declaration = QueueDeclaration { queue, durable, exclusive, auto_delete, arguments };
                self.declare_queue(cx, connection, vhost, &declaration)
            }
            Command::QueueBind { queue, exchange, routing_key, arguments } => {
                let spec = BindingSpec { source: exchange, routing_key, arguments };
                self.bind_queue(cx, connection, vhost, queue, &spec)
            }
            Command::QueueUnbind { queue, exchange, routing_key, arguments } => {
                let spec = BindingSpec { source: exchange, routing_key, arguments };
                let outcome = self.unbind_queue(cx, connection, vhost, queue, &spec);
                self.jobs.note_due();
                outcome
            }
            Command::QueuePurge { queue } => self.purge_queue(cx, connection, vhost, queue),
            Command::QueueDelete { queue, if_unused, if_empty } => self.delete_queue_by_name(
                cx,
                connection,
                vhost,
                queue,
                DeleteIf { unused: if_unused, empty: if_empty },
            ),
            Command::Consume { queue, tag, no_ack, exclusive, arguments } => {
                let request = ConsumeRequest { queue, tag, no_ack, exclusive, arguments };
                self.consume(cx, connection, channel, &request)
            }
            Command::Get { queue, no_ack } => {
                self.check(cx.work, connection, vhost, Right::Read, Resource::Queue(queue))?;
                let queue = self.require_queue(connection, vhost, queue)?;
                self.get(cx, channel, queue, no_ack)
            }
            _ => Err(unexpected_command()),
        }
    }

    pub(crate) fn consume(
        &mut self,
        cx: &mut Context<'_>,
        connection: ConnectionId,
        channel: ChannelId,
        request: &ConsumeRequest<'_>,
    ) -> Result<Outcome, Fault> {
        let vhost = self.consumers.channel(channel).vhost;
        if request.queue == REPLY_TO {
            return self.consume_replies(cx, connection, channel, request);
        }
        if !request.tag.is_empty() && self.consumers.find(channel, request.tag).is_some() {
            return Err(Fault::new(
                ReplyCode::NotAllowed,
                format_args!("attempt to reuse consumer tag '{}'", request.tag),
            ));
        }
        self.check(cx.work, connection, vhost, Right::Read, Resource::Queue(request.queue))?;
        let queue = self.require_queue(connection, vhost, request.queue)?;
        let words = self.queue_text(vhost, request.queue);
        let priority = priority_of(words, Table::trusted(request.arguments))?;
        let record = self.queues.at(queue);
        if record.queue_consumers.has_exclusive()
            || request.exclusive && record.queue_consumers.refuses_exclusive()
        {
            return Err(Fault::new(ReplyCode::AccessRefused, format_args!("{words} in exclusive use")));
        }
        let tag = self.consumer_tag(request.tag);
        self.start_consumer(cx, channel, queue, tag, priority, request)
    }

    /// Creates a hidden queue for a consumer of `amq.rabbitmq.reply-to`. Messages are routed to this queue
    /// only by its random name.
    fn consume_replies(
        &mut self,
        cx: &mut Context<'_>,
        connection: ConnectionId,
        channel: ChannelId,
        request: &ConsumeRequest<'_>,
    ) -> Result<Outcome, Fault> {
        let problem = match () {
            () if !request.no_ack => "reply consumer cannot acknowledge",
            () if self.reply_queue_of(channel).is_some() => "reply consumer already set",
            () => "",
        };
        if !problem.is_empty() {
            return Err(Fault::new(ReplyCode::PreconditionFailed, format_args!("{problem}")));
        }
        let vhost = self.consumers.channel(channel).vhost;
        let name = self.unique_name("amq.rabbitmq.reply-to.");
        let declaration = QueueDeclaration {
            queue: &name,
            durable: false,
            exclusive: true,
            auto_delete: true,
            arguments: &[],
        };
        let queue = self.create_queue(cx, Some(connection), vhost, &declaration, true)?;
        let tag = self.consumer_tag(request.tag);
        self.start_consumer(cx, channel, queue, tag, 0, request)
    }

    fn consumer_tag(&mut self, requested: &str) -> Name {
        match Name::try_from(requested) {
            Ok(tag) if !tag.is_empty() => tag,
            _ => self.unique_name("amq.ctag-"),
        }
    }

    fn start_consumer(
        &mut self,
        cx: &mut Context<'_>,
        channel: ChannelId,
        queue: QueueId,
        tag: Name,
        priority: i32,
        request: &ConsumeRequest<'_>,
    ) -> Result<Outcome, Fault> {
        let index = self.consumers.add(&mut self.quota, channel, queue, ConsumerState::Active)?;
        let connection = self.consumers.connection_of(channel);
        if self.consumers.connection(connection).identity.is_own() {
            self.queues.records_mut().note_forwarded(queue);
        }
        let outcome = Outcome::Consuming { tag: tag.as_str().into() };
        let new = NewConsumer { tag, priority, no_ack: request.no_ack, exclusive: request.exclusive };
        self.consumers.start(cx.work, &mut self.queues, index, new);
        Ok(outcome)
    }

    /// Handles `basic.cancel` from the client. An unknown tag is ignored.
    pub(crate) fn cancel(&mut self, cx: &mut Context<'_>, channel: ChannelId, tag: &str) {
        if let Some(index) = self.consumers.find(channel, tag) {
            self.catch_up(cx, self.consumers.at(index).queue);
            self.end_consumer(cx, index);
            self.free_consumer_if_done(index);
        } else if let Some(index) = self.consumers.find_cancelled(channel, tag) {
            // The consumer's queue was deleted, and the client has not been notified of it yet. The reply
            // basic.cancel-ok replaces this notification.
            self.consumers.leave_cancelled(index);
            self.free_consumer_if_done(index);
        }
    }

    /// Returns the next consumer for which the broker must send `basic.cancel`: channel number, tag, and the
    /// position of the method among the connection's deliveries.
    pub fn next_cancelled(&self, connection: ConnectionId) -> Option<(u16, &str, ReplyOrder)> {
        self.consumers.next_cancelled(connection)
    }

    pub(crate) fn set_prefetch(
        &mut self,
        cx: &mut Context<'_>,
        channel: ChannelId,
        prefetch_count: u16,
        global: bool,
    ) {
        let record = self.consumers.channel_mut(channel);
        if !global {
            record.prefetch_count = prefetch_count;
        }
        // As in RabbitMQ, `basic.qos` with `global` = `false` removes the prefetch limit that all consumers
        // of the channel share.
        let shared = if global { prefetch_count } else { 0 };
        if core::mem::replace(&mut record.global_prefetch_count, shared) != shared {
            self.consumers.make_all_eligible(cx.work, &mut self.queues, channel);
        }
    }

    pub(crate) fn open_channel(&mut self, connection: ConnectionId, number: u16) -> Result<Outcome, Fault> {
        let record = self.consumers.connection(connection);
        let vhost = record.vhost.ok_or_else(|| {
            Fault::connection(ReplyCode::ChannelError, format_args!("no virtual host is open"))
        })?;
        self.access.check_user_channels(&record.identity, self.load_of(&record.identity))?;
        let channel = self.consumers.open_channel(&mut self.quota, connection, vhost, number)?;
        self.counters.channels_opened += 1;
        self.consumers.channel_mut(channel).serial = self.counters.channels_opened;
        Ok(Outcome::ChannelOpened(channel))
    }

    /// Creates the record of a connection, before the handshake.
    ///
    /// # Errors
    /// No connection record is free, because those of lost connections are still being cleared.
    pub fn connect(&mut self) -> Option<ConnectionId> {
        self.consumers.connect(&mut self.quota)
    }

    /// Returns the number of free connection records. Records of lost connections that are still being
    /// cleared are not free.
    pub fn connections_free(&self) -> usize {
        self.consumers.connections_fill().free_count()
    }

    /// Returns whether there are records for `count` more connections, but no memory for them.
    pub fn lacks_memory_for_connections(&self, count: usize) -> bool {
        self.consumers.lacks_memory_for_connections(count)
    }

    /// Returns whether the records of closed connections are still being cleared.
    pub fn is_clearing_connections(&self) -> bool {
        self.consumers.is_clearing_connections()
    }

    /// Requests that the event loop close a connection: with `connection.close`, code 320 and this reason.
    pub fn force_close(&mut self, connection: ConnectionId, reason: &str) {
        self.consumers.force_close(connection, forced(reason));
    }

    /// Returns the next connection for which [`Self::force_close`] was called, and the fault with the reason.
    pub fn next_forced(&mut self) -> Option<(ConnectionId, Fault)> {
        self.consumers.next_forced()
    }

    /// Returns whether [`Self::next_forced`] would return a connection.
    pub fn has_forced(&self) -> bool {
        self.consumers.has_forced()
    }

    /// Returns whether jobs of the connection's last command are not done. The caller does not read the
    /// connection until then.
    pub fn is_busy(&self, connection: ConnectionId) -> bool {
        self.consumers.is_busy(connection)
    }

    /// Returns the next connection with new deliveries in its outbox.
    pub fn next_with_output(&mut self) -> Option<ConnectionId> {
        self.consumers.next_with_output()
    }

    /// Opens one of the broker's own connections in a virtual host.
    ///
    /// # Errors
    /// There is no such virtual host, or no connection record is free.
    #[cold]
    pub fn connect_own(&mut self, name: &str, vhost: &str) -> Result<ConnectionId, Fault> {
        let Some(id) = self.access.find_vhost(vhost) else {
            return Err(Fault::connection(ReplyCode::NotAllowed, format_args!("vhost {vhost} not found")));
        };
        let connection = self.connect().ok_or_else(|| out_of("connections_max"))?;
        // Replaces the firehose name of an earlier connection with the same id.
        self.set_firehose_name(connection, name);
        let record = self.consumers.connection_mut(connection);
        (record.identity, record.vhost) = (Identity::own(name), Some(id));
        self.quota.enter_vhost(connection, id);
        self.access.add_vhost_reference(id);
        Ok(connection)
    }

    /// Opens a connection and a channel for a user of the management API. The user has the same permissions
    /// on it as over AMQP.
    ///
    /// No list of connections shows it. The caller releases it after the request.
    ///
    /// # Errors
    /// The user may not open the virtual host, or no connection record is free.
    #[cold]
    pub fn connect_user(
        &mut self,
        cx: &mut Context<'_>,
        user: &str,
        vhost: &str,
    ) -> Result<(ConnectionId, ChannelId), Fault> {
        let connection = self.connect().ok_or_else(|| out_of("connections_max"))?;
        // The management API has already checked whether the user may log in from its address.
        let commands = [
            Command::LoginExternal { user, from_loopback: true },
            Command::OpenVhost { vhost },
            Command::OpenChannel { number: 1 },
        ];
        for command in commands {
            match self.apply(cx, connection, None, command).0 {
                Outcome::ChannelOpened(channel) => return Ok((connection, channel)),
                Outcome::Fault(fault) => {
                    self.release(cx, connection);
                    return Err(fault);
                }
                _ => {}
            }
        }
        unreachable!("opening a channel is answered with a channel or a fault")
    }

    /// Moves the message of a written delivery to another queue, with other properties, and settles the
    /// delivery. Returns the batch of the copy and the settlement; `None` if there is no capacity for the copy
    /// now. The delivery is unchanged then.
    ///
    /// # Errors
    /// There is no such queue, or the queue accepts no more.
    #[cold]
    pub fn move_delivery(
        &mut self,
        cx: &mut Context<'_>,
        channel: ChannelId,
        tag: u64,
        queue: &str,
        properties: &[u8],
    ) -> Result<Option<Batch>, Fault> {
        let queue = self.queue_for(channel, queue)?;
        let Some((index, message)) = self.find_sent_in_memory(channel, tag) else { return Ok(None) };
        let Some(copy) = copy_with_properties_of(cx, message, properties) else { return Ok(None) };
        cx.pending_writes.begin_group();
        let is_moved = self.push_copy(cx, channel, copy, queue);
        if is_moved == Ok(true) {
            self.consumers.leave_unacknowledged(&mut self.queues, channel, index);
            self.settle_one(cx, index, Settlement::Ack);
        }
        let batch = cx.pending_writes.end_group(cx.messages, Urgency::Awaited);
        is_moved.map(|is_moved| is_moved.then_some(batch))
    }

    /// Publishes the message of a written delivery again, with other properties, and settles the delivery.
    /// Both are done in one commit, or neither.
    ///
    /// Returns `false` if there is no capacity for the copy now. The delivery is unchanged then.
    ///
    /// # Errors
    /// The message reaches no queue, or is refused.
    #[cold]
    pub fn republish_delivery(
        &mut self,
        cx: &mut Context<'_>,
        channel: ChannelId,
        tag: u64,
        properties: &[u8],
    ) -> Result<bool, Fault> {
        let Some((index, message)) = self.find_sent_in_memory(channel, tag) else { return Ok(false) };
        let Some(copy) = copy_with_properties_of(cx, message, properties) else { return Ok(false) };
        let connection = self.consumers.connection_of(channel);
        cx.pending_writes.begin_group();
        let mut outcome = self.publish(cx, channel, copy, true);
        let is_returned = self.has_returned(connection);
        if outcome == Ok(Outcome::Published) && !is_returned {
            self.consumers.leave_unacknowledged(&mut self.queues, channel, index);
            self.settle_one(cx, index, Settlement::Ack);
        }
        cx.pending_writes.end_group(cx.messages, Urgency::Awaited);
        if is_returned {
            self.sent(cx, connection, 1);
            let why = format_args!("it is routed to no queue here");
            outcome = Err(Fault::new(ReplyCode::NoRoute, why));
        }
        publish_result_of_copy(cx, copy, outcome?, "a queue refuses it by its own arguments")
    }

    /// Adds a copy of a message, with other properties, to a queue. The original is in no queue. Returns the
    /// batch of the copy; `None` if there is no capacity for it now.
    ///
    /// # Errors
    /// There is no such queue, or the queue accepts no more.
    #[cold]
    pub fn move_copy(
        &mut self,
        cx: &mut Context<'_>,
        channel: ChannelId,
        message: MessageId,
        queue: &str,
        properties: &[u8],
    ) -> Result<Option<Batch>, Fault> {
        let queue = self.queue_for(channel, queue)?;
        let Some(copy) = copy_with_properties_of(cx, message, properties) else { return Ok(None) };
        cx.awaited = Batch::NONE;
        let is_taken = self.push_copy(cx, channel, copy, queue)?;
        Ok(is_taken.then_some(cx.awaited))
    }

    pub(crate) fn queue_for(&self, channel: ChannelId, name: &str) -> Result<QueueId, Fault> {
        let vhost = self.consumers.channel(channel).vhost;
        self.queues.records().find_queue(vhost, name).ok_or_else(|| {
            let vhost = self.access.vhost_name(vhost);
            Fault::new(ReplyCode::NotFound, format_args!("no queue '{name}' in vhost '{vhost}'"))
        })
    }

    fn find_sent_in_memory(&self, channel: ChannelId, tag: u64) -> Option<(usize, MessageId)> {
        let record = self.consumers.find_channel(channel).filter(|record| !record.is_closed())?;
        let head = record.unacknowledged.front()?;
        let is_head = self.queues.deliveries()[head].tag == tag;
        let index = if is_head { head } else { self.queues.deliveries().find(channel, tag)? };
        let delivery = &self.queues.deliveries()[index];
        delivery.message.filter(|_| delivery.is_sent).map(|message| (index, message))
    }

    /// Adds a copy to a queue. Returns `false` if there is no capacity now; the copy is discarded then.
    #[cold]
    fn push_copy(
        &mut self,
        cx: &mut Context<'_>,
        channel: ChannelId,
        copy: MessageId,
        queue: QueueId,
    ) -> Result<bool, Fault> {
        let publish = Publish {
            channel: Some(channel),
            mandatory: false,
            share: Share::Reserve,
            may_wait: true,
            has_shares: false,
            has_timed_out: false,
            urgency: Urgency::Awaited,
        };
        let bytes = cx.messages.stream_len(copy) as u64;
        if let Some(full) =
            self.queues.queue_too_full_for_moved(cx, &self.quota, None, (copy, bytes), &[queue])
        {
            self.publishing.shortage = Shortage::QueueMemory(full);
            cx.messages.discard(copy);
            return Ok(false);
        }
        let mut targets = core::mem::take(&mut self.publishing.targets);
        targets.clear();
        targets.push(queue);
        let outcome = self.deliver_to_targets(cx, copy, &mut targets, &publish);
        self.publishing.targets = targets;
        publish_result_of_copy(cx, copy, outcome?, "the parking queue is full by its own arguments")
    }

    /// Returns whether the first entry of the connection's outbox is a `basic.return`.
    pub fn has_returned(&self, connection: ConnectionId) -> bool {
        let front = self.consumers.connection(connection).outbox.front();
        front.is_some_and(|index| self.queues.deliveries()[index].queue.is_none())
    }

    /// Returns up to `count` messages of a queue, beginning with position `from`, without delivering them.
    /// Position 0 is the front of the queue. The permissions of the user are checked.
    ///
    /// # Errors
    /// The user may not read the queue, there is no such queue, or the position is too far from the front.
    pub fn browse_queue(
        &mut self,
        cx: &mut Context<'_>,
        (user, vhost, queue): (&str, &str, &str),
        from: u32,
        count: u32,
    ) -> Result<BrowseResult, Fault> {
        let (connection, channel) = self.connect_user(cx, user, vhost)?;
        let vhost = self.consumers.channel(channel).vhost;
        let found = self
            .check(cx.work, connection, vhost, Right::Read, Resource::Queue(queue))
            .and_then(|()| self.require_queue(connection, vhost, queue));
        self.release(cx, connection);
        let queue = found?;
        self.prepare_message_keys();
        let seen = self.queues.browse(cx.messages, queue, from, count.min(BROWSED_MAX))?;
        Ok(BrowseResult { ready: self.queues.records().ready_in(queue), seen })
    }

    /// Moves the message of a written delivery to a parking queue, because the other end of a bridge refuses
    /// the message. The cause is added to its headers. If the message is not in memory or there is no
    /// capacity, it is moved later.
    ///
    /// # Errors
    /// There is no such delivery or queue, or the queue accepts no more. The delivery is unchanged.
    #[cold]
    pub fn park_delivery(
        &mut self,
        cx: &mut Context<'_>,
        (channel, tag): (ChannelId, u64),
        (bridge, queue): (&str, &str),
        why: Refusal,
    ) -> Result<(), Fault> {
        let target = self.queue_for(channel, queue)?;
        let Some(index) = self.consumers.find_sent(&self.queues, channel, tag) else {
            return Err(Fault::new(
                ReplyCode::PreconditionFailed,
                format_args!("unknown delivery tag {tag}"),
            ));
        };
        let body_len = self.queues.deliveries()[index].body_len;
        if self.queues.records().refuses_body(target, body_len, 0) {
            let why = format_args!("{queue} is full by its own arguments");
            return Err(Fault::new(ReplyCode::PreconditionFailed, why));
        }
        let parking = Parking { bridge: bridge.into(), queue: queue.into(), why };
        let Some(place) = self.republisher().parking_index(parking) else {
            let why = format_args!("too many bridges park messages for too many different causes");
            return Err(Fault::new(ReplyCode::ResourceError, why));
        };
        let source = self.queues.deliveries()[index].queue;
        self.consumers.leave_unacknowledged(&mut self.queues, channel, index);
        match source {
            Some(source) => self.dead_letter_delivery(cx, source, index, Reason::Parked(place)),
            None => self.finish_delivery(cx, index),
        }
        Ok(())
    }

    /// Sets the name of a connection in firehose copies. A name that is too long is truncated.
    pub fn set_firehose_name(&mut self, connection: ConnectionId, name: &str) {
        let Some(place) = self.firehose.names.get_mut(connection.index()) else { return };
        place.clear();
        for letter in name.chars() {
            if place.push(letter).is_err() {
                break;
            }
        }
    }

    pub(crate) fn select_confirms(&mut self, channel: ChannelId) -> Result<Outcome, Fault> {
        let mode = &mut self.consumers.channel_mut(channel).mode;
        match mode {
            Mode::Plain | Mode::Confirm => *mode = Mode::Confirm,
            Mode::Transaction(_) => return Err(cannot_switch("tx", "confirm")),
        }
        Ok(Outcome::Done)
    }

    pub(crate) fn select_transactions(&mut self, channel: ChannelId) -> Result<Outcome, Fault> {
        let mode = &mut self.consumers.channel_mut(channel).mode;
        match mode {
            Mode::Plain => *mode = Mode::Transaction(Transaction::default()),
            Mode::Transaction(_) => {}
            Mode::Confirm => return Err(cannot_switch("confirm", "tx")),
        }
        Ok(Outcome::Done)
    }

    /// Logs a connection in with a user's name and password (SASL).
    pub(crate) fn login(
        &mut self,
        pending_writes: &PendingWrites,
        connection: ConnectionId,
        user: &str,
        password: &[u8],
        from_loopback: bool,
    ) -> Result<Outcome, Fault> {
        match self.access.login(pending_writes, user, password, from_loopback)? {
            Login::Admitted(identity) => Ok(self.admit(connection, identity)),
            Login::Check(check) => Ok(Outcome::Check(check)),
        }
    }

    /// Completes a login after the check of its password. Returns the outcome of the login command.
    pub fn checked(
        &mut self,
        pending_writes: &PendingWrites,
        connection: ConnectionId,
        check: &PasswordCheck,
        is_correct: bool,
    ) -> Outcome {
        let admitted = self.access.admit_checked(pending_writes, check, is_correct);
        admitted.map_or_else(Outcome::Fault, |identity| self.admit(connection, identity))
    }

    /// Logs a connection in as the user whose name is in the client certificate.
    pub(crate) fn login_external(
        &mut self,
        pending_writes: &PendingWrites,
        connection: ConnectionId,
        user: &str,
        from_loopback: bool,
    ) -> Result<Outcome, Fault> {
        let identity = self.access.login_external(pending_writes, user, from_loopback)?;
        Ok(self.admit(connection, identity))
    }

    fn admit(&mut self, connection: ConnectionId, identity: Identity) -> Outcome {
        self.quota.logged_in(connection, identity.user());
        self.consumers.connection_mut(connection).identity = identity;
        Outcome::Done
    }

    /// Handles `connection.open`.
    pub(crate) fn open_vhost(&mut self, connection: ConnectionId, name: &str) -> Result<Outcome, Fault> {
        let who = &self.consumers.connection(connection).identity;
        let connections_in = |vhost| self.quota.connections_in(vhost);
        let vhost = self.access.check_open(who, name, connections_in, self.load_of(who))?;
        self.quota.enter_vhost(connection, vhost);
        self.access.add_vhost_reference(vhost);
        self.consumers.connection_mut(connection).vhost = Some(vhost);
        Ok(Outcome::Done)
    }
}
