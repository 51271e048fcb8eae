//! Applies commands: each changes the state and returns its answer.
//!
//! # Invariants
//! - The state is changed and the answer returned at once. A fault is sent without waiting for a commit.
//! - Before a command whose effect depends on which messages were delivered, all deliveries that are possible
//!   are made. Commands therefore have the same effect whether they arrive one by one or many in one read.

use leveret_core::batch::Batch;
use leveret_core::command::{
    Answer, ChannelAnswer, ChannelCommand, ChannelId, Command, ConnectionId, DefinitionAnswer,
    DefinitionCommand, GetAnswer, GetCommand, LoginAnswer, LoginCommand, MqttAnswer, MqttCommand,
    OpenChannel, OpenSession, OpenVhost, Outcome, PublishAnswer, PublishCommand, ReplyOrder, SessionOpened,
    TypedCommand, VhostId,
};
use leveret_core::error::Fault;
use leveret_routing::{BindingSpec, ExchangeDeclaration};
use leveret_storage::PendingWrites;

use super::access::{Resource, Right};
use super::clients::ConsumeRequest;
use super::definitions::{DeleteIf, QueueDeclaration};
use super::sessions::Step;
use super::{Broker, Context};

/// A command of a connection before it has a channel.
pub trait ConnectionRequest: TypedCommand {
    /// Carries out the command.
    ///
    /// # Errors
    /// The command is refused.
    fn apply(
        self,
        broker: &mut Broker,
        cx: &mut Context<'_>,
        connection: ConnectionId,
    ) -> Result<Self::Answer, Fault>;
}

/// A command on a channel.
pub trait ChannelRequest: TypedCommand {
    /// Whether the answer is sent before the changes of the command are durable.
    fn replies_at_once(&self) -> bool {
        false
    }

    /// Carries out the command.
    ///
    /// # Errors
    /// The command is refused.
    fn apply(
        self,
        broker: &mut Broker,
        cx: &mut Context<'_>,
        connection: ConnectionId,
        channel: ChannelId,
    ) -> Result<Self::Answer, Fault>;
}

impl Broker {
    /// Applies the next command of a connection. Returns its outcome, and the position of the reply among the
    /// connection's deliveries.
    #[inline]
    pub fn apply(
        &mut self,
        cx: &mut Context<'_>,
        connection: ConnectionId,
        command: Command<'_>,
    ) -> (Outcome, ReplyOrder) {
        let (channel, answer) = match command {
            Command::Publish(channel, command) => {
                (Some(channel), self.apply_on_channel(cx, connection, channel, command).map(Answer::Publish))
            }
            Command::Channel(channel, command) => {
                (Some(channel), self.apply_on_channel(cx, connection, channel, command).map(Answer::Channel))
            }
            Command::Definition(channel, command) => (
                Some(channel),
                self.apply_on_channel(cx, connection, channel, command).map(Answer::Definition),
            ),
            Command::Mqtt(channel, command) => {
                (Some(channel), self.apply_on_channel(cx, connection, channel, command).map(Answer::Mqtt))
            }
            Command::Get(channel, command) => {
                let answer = match self.apply_on_channel(cx, connection, channel, command) {
                    Ok(GetAnswer::Later) => return (Outcome::Later, 0),
                    answer => answer.map(Answer::Get),
                };
                (Some(channel), answer)
            }
            Command::Login(command) => {
                let answer = match self.apply_to_connection(cx, connection, command) {
                    Ok(LoginAnswer::Check(check)) => return (Outcome::Check(check), 0),
                    Ok(LoginAnswer::LoggedIn) => Ok(Answer::LoggedIn),
                    Err(fault) => Err(fault),
                };
                (None, answer)
            }
            Command::OpenVhost(command) => {
                (None, self.apply_to_connection(cx, connection, command).map(|()| Answer::OpenVhost))
            }
            Command::OpenChannel(command) => {
                (None, self.apply_to_connection(cx, connection, command).map(Answer::OpenChannel))
            }
            Command::OpenSession(command) => {
                (None, self.apply_to_connection(cx, connection, command).map(Answer::OpenSession))
            }
        };
        (Outcome::Answer(answer), self.clients.reply_order(connection, channel))
    }

    /// Applies a command that needs no channel. [`Context::awaited`] is the batch that its reply waits for.
    ///
    /// # Errors
    /// The command is refused.
    pub fn apply_to_connection<C: ConnectionRequest>(
        &mut self,
        cx: &mut Context<'_>,
        connection: ConnectionId,
        command: C,
    ) -> Result<C::Answer, Fault> {
        cx.awaited = Batch::NONE;
        let answer = command.apply(self, cx, connection);
        self.end_command(cx, answer.is_err());
        answer
    }

    /// Applies a command on a channel. [`Context::awaited`] is the batch that its reply waits for.
    ///
    /// # Errors
    /// The command is refused.
    #[inline]
    pub fn apply_on_channel<C: ChannelRequest>(
        &mut self,
        cx: &mut Context<'_>,
        connection: ConnectionId,
        channel: ChannelId,
        command: C,
    ) -> Result<C::Answer, Fault> {
        cx.awaited = Batch::NONE;
        let replies_at_once = command.replies_at_once();
        let answer = command.apply(self, cx, connection, channel);
        self.end_command(cx, replies_at_once || answer.is_err());
        answer
    }

    #[inline]
    fn end_command(&mut self, cx: &mut Context<'_>, replies_at_once: bool) {
        if self.jobs.take_due() {
            self.run_jobs(cx);
        }
        self.queues.records().charge_walked_levels(cx.work);
        if replies_at_once {
            cx.awaited = Batch::NONE;
        }
    }

    /// Returns whether there is work without new input: jobs, deliveries that became possible, or connections
    /// with new output.
    pub fn has_work(&self, pending_writes: &PendingWrites) -> bool {
        self.queues.gets().is_due()
            || !self.jobs.is_empty() && !pending_writes.is_crowded()
            || self.queues.records().is_any_ready()
            || self.clients.has_connections_with_output()
            || self.clients.may_resume_over_share()
    }

    /// Makes the deliveries of a queue that were possible before a command that names it.
    fn catch_up_with(&mut self, cx: &mut Context<'_>, vhost: VhostId, queue: &str) {
        if self.queues.records().is_any_ready()
            && let Some(queue) = self.queues.records().find_queue(vhost, queue)
        {
            self.catch_up(cx, queue);
        }
    }
}

impl ConnectionRequest for LoginCommand<'_> {
    fn apply(
        self,
        broker: &mut Broker,
        cx: &mut Context<'_>,
        connection: ConnectionId,
    ) -> Result<LoginAnswer, Fault> {
        broker.login(cx.pending_writes, connection, &self)
    }
}

impl ConnectionRequest for OpenVhost<'_> {
    fn apply(self, broker: &mut Broker, _: &mut Context<'_>, connection: ConnectionId) -> Result<(), Fault> {
        broker.open_vhost(connection, self.vhost)
    }
}

impl ConnectionRequest for OpenChannel {
    fn apply(
        self,
        broker: &mut Broker,
        _: &mut Context<'_>,
        connection: ConnectionId,
    ) -> Result<ChannelId, Fault> {
        broker.open_channel(connection, self.number)
    }
}

impl ConnectionRequest for OpenSession<'_> {
    fn apply(
        self,
        broker: &mut Broker,
        cx: &mut Context<'_>,
        connection: ConnectionId,
    ) -> Result<SessionOpened, Fault> {
        broker.open_session(cx, connection, &self)
    }
}

impl ChannelRequest for PublishCommand {
    #[inline]
    fn apply(
        self,
        broker: &mut Broker,
        cx: &mut Context<'_>,
        connection: ConnectionId,
        channel: ChannelId,
    ) -> Result<PublishAnswer, Fault> {
        match self {
            Self::Publish { message, mandatory } => broker.publish(cx, channel, message, mandatory),
            Self::PublishOnce { message, packet_id } => {
                broker.publish_once(cx, channel, message, None, packet_id)
            }
            Self::PublishRetained { message, packet_id, is_refusable } => {
                broker.publish_retained(cx, channel, message, packet_id, is_refusable)
            }
            Self::FindPublished { packet_id } => broker.find_published(cx, connection, packet_id),
        }
    }
}

impl ChannelRequest for ChannelCommand<'_> {
    #[inline]
    fn replies_at_once(&self) -> bool {
        matches!(self, Self::Cancel { .. } | Self::CloseChannel)
    }

    #[inline]
    fn apply(
        self,
        broker: &mut Broker,
        cx: &mut Context<'_>,
        connection: ConnectionId,
        channel: ChannelId,
    ) -> Result<ChannelAnswer, Fault> {
        match self {
            Self::Settle { delivery_tag, multiple, settlement } => {
                broker.settle(cx, channel, delivery_tag, multiple, settlement)?;
            }
            Self::Recover => {
                broker.catch_up_channel(cx, channel);
                broker.recover(channel);
            }
            Self::Qos { prefetch_count, global } => {
                if global {
                    broker.catch_up_channel(cx, channel);
                }
                broker.set_prefetch(cx, channel, prefetch_count, global);
            }
            Self::TxSelect => broker.select_transactions(channel)?,
            Self::TxCommit => broker.commit(cx, channel)?,
            Self::TxRollback => broker.rollback(cx.messages, channel)?,
            Self::ConfirmSelect => {
                broker.select_confirms(channel)?;
                return Ok(ChannelAnswer::ConfirmsSelected);
            }
            Self::Consume { queue, tag, no_ack, exclusive, arguments } => {
                let request = ConsumeRequest { queue, tag, no_ack, exclusive, arguments };
                let vhost = broker.clients.channel(channel).vhost;
                broker.catch_up_with(cx, vhost, queue);
                let tag = broker.with_declarer(cx, connection, |broker, cx| {
                    broker.consume(cx, connection, channel, &request)
                })?;
                return Ok(ChannelAnswer::Consuming { tag: tag.as_str().into() });
            }
            Self::Cancel { tag } => {
                broker.cancel(cx, channel, tag);
                broker.jobs.note_due();
                return Ok(ChannelAnswer::Cancelled);
            }
            Self::CloseChannel => {
                broker.close_channel(cx, connection, channel);
                return Ok(ChannelAnswer::Closed);
            }
        }
        Ok(ChannelAnswer::Done)
    }
}

impl ChannelRequest for GetCommand<'_> {
    fn apply(
        self,
        broker: &mut Broker,
        cx: &mut Context<'_>,
        connection: ConnectionId,
        channel: ChannelId,
    ) -> Result<GetAnswer, Fault> {
        let vhost = broker.clients.channel(channel).vhost;
        broker.catch_up_with(cx, vhost, self.queue);
        broker.check(cx.work, connection, vhost, Right::Read, Resource::Queue(self.queue))?;
        let queue = broker.require_queue(connection, vhost, self.queue)?;
        broker.get(cx, channel, queue, self.no_ack)
    }
}

impl ChannelRequest for MqttCommand<'_> {
    fn apply(
        self,
        broker: &mut Broker,
        cx: &mut Context<'_>,
        connection: ConnectionId,
        _: ChannelId,
    ) -> Result<MqttAnswer, Fault> {
        match self {
            Self::Subscribe(subscription) => broker.with_declarer(cx, connection, |broker, cx| {
                broker.subscribe(cx, connection, &subscription)
            })?,
            Self::Unsubscribe { filter, group } => broker.unsubscribe(cx, connection, filter, group)?,
            Self::LeaveSession { expiry_s, keeps_will } => {
                broker.with_declarer(cx, connection, |broker, cx| {
                    broker.disconnect_session(cx, connection, expiry_s, keeps_will)
                })?;
            }
            Self::AcknowledgePacket { packet_id } => {
                broker.acknowledge_packet(cx, connection, packet_id, Step::AwaitsPuback)?;
            }
            Self::RefusePacket { packet_id } => {
                broker.acknowledge_packet(cx, connection, packet_id, Step::AwaitsPubrec)?;
            }
            Self::CompletePacket { packet_id } => broker.complete_packet(cx, connection, packet_id)?,
            Self::ReleasePacket { packet_id } => return broker.release_packet(cx, connection, packet_id),
            Self::ReceivePacket { packet_id } => return broker.receive_packet(cx, connection, packet_id),
        }
        Ok(MqttAnswer::Done)
    }
}

impl ChannelRequest for DefinitionCommand<'_> {
    fn apply(
        self,
        broker: &mut Broker,
        cx: &mut Context<'_>,
        connection: ConnectionId,
        channel: ChannelId,
    ) -> Result<DefinitionAnswer, Fault> {
        let vhost = broker.clients.channel(channel).vhost;
        if let Self::QueueDeclare { queue, .. }
        | Self::QueuePurge { queue }
        | Self::QueueDelete { queue, .. } = self
        {
            broker.catch_up_with(cx, vhost, queue);
        }
        broker.with_declarer(cx, connection, |broker, cx| broker.define(cx, connection, vhost, self))
    }
}

impl Broker {
    /// Carries out a command. The objects that it creates are counted for the declarer in the context.
    fn with_declarer<T>(
        &mut self,
        cx: &mut Context<'_>,
        connection: ConnectionId,
        carry_out: impl FnOnce(&mut Self, &mut Context<'_>) -> T,
    ) -> T {
        cx.declarer = Some(self.quota.declarer(connection));
        let result = carry_out(self, cx);
        cx.declarer = None;
        result
    }

    fn define(
        &mut self,
        cx: &mut Context<'_>,
        connection: ConnectionId,
        vhost: VhostId,
        command: DefinitionCommand<'_>,
    ) -> Result<DefinitionAnswer, Fault> {
        use DefinitionCommand as Define;
        match command {
            Define::ExchangeDeclare { exchange, passive: true, .. } => {
                self.check_exchange_exists(cx, vhost, exchange)?;
            }
            Define::ExchangeDeclare { exchange, kind, durable, auto_delete, internal, arguments, .. } => {
                let declaration =
                    ExchangeDeclaration { exchange, kind, durable, auto_delete, internal, arguments };
                self.declare_exchange(cx, connection, vhost, &declaration)?;
            }
            Define::ExchangeDelete { exchange, if_unused } => {
                self.delete_exchange(cx, connection, vhost, exchange, if_unused)?;
            }
            Define::ExchangeBind { destination, source, routing_key, arguments } => {
                let spec = BindingSpec { source, routing_key, arguments };
                self.bind_exchange(cx, connection, vhost, destination, &spec)?;
            }
            Define::ExchangeUnbind { destination, source, routing_key, arguments } => {
                let spec = BindingSpec { source, routing_key, arguments };
                self.unbind_exchange(cx, connection, vhost, destination, &spec)?;
                self.jobs.note_due();
            }
            Define::QueueDeclare { queue, passive: true, .. } => {
                return self.check_queue_exists(cx, connection, vhost, queue);
            }
            Define::QueueDeclare { queue, durable, exclusive, auto_delete, arguments, .. } => {
                let declaration = QueueDeclaration { queue, durable, exclusive, auto_delete, arguments };
                return self.declare_queue(cx, connection, vhost, &declaration);
            }
            Define::QueueBind { queue, exchange, routing_key, arguments } => {
                let spec = BindingSpec { source: exchange, routing_key, arguments };
                self.bind_queue(cx, connection, vhost, queue, &spec)?;
            }
            Define::QueueUnbind { queue, exchange, routing_key, arguments } => {
                let spec = BindingSpec { source: exchange, routing_key, arguments };
                let unbound = self.unbind_queue(cx, connection, vhost, queue, &spec);
                self.jobs.note_due();
                unbound?;
            }
            Define::QueuePurge { queue } => {
                return self.purge_queue(cx, connection, vhost, queue).map(DefinitionAnswer::QueuePurged);
            }
            Define::QueueDelete { queue, if_unused, if_empty } => {
                let only_if = DeleteIf { unused: if_unused, empty: if_empty };
                let count = self.delete_queue_by_name(cx, connection, vhost, queue, only_if)?;
                return Ok(DefinitionAnswer::QueueDeleted(count));
            }
        }
        Ok(DefinitionAnswer::Done)
    }
}
