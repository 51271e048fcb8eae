//! The commands of clients about consumers and the mode of their channel.

use leveret_amqp::field::Table;
use leveret_amqp::reply_text::QueueText;
use leveret_core::command::{ChannelId, ConnectionId, Name, QueueId, ReplyOrder};
use leveret_core::error::{Fault, ReplyCode};
use leveret_queues::QueueKind;

use super::{ConsumerState, Mode, NewConsumer, Transaction};
use crate::access::{Resource, Right};
use crate::definitions::QueueDeclaration;
use crate::state::REPLY_TO;
use crate::{Broker, Context};

/// The fields of `basic.consume`.
pub(crate) struct ConsumeRequest<'a> {
    pub(crate) queue: &'a str,
    pub(crate) tag: &'a str,
    pub(crate) no_ack: bool,
    pub(crate) exclusive: bool,
    pub(crate) arguments: &'a [u8],
}

impl ConsumeRequest<'_> {
    fn consumer(&self, tag: Name, priority: i32) -> NewConsumer {
        NewConsumer { tag, priority, no_ack: self.no_ack, exclusive: self.exclusive }
    }
}

fn cannot_switch(from: &str, to: &str) -> Fault {
    Fault::new(ReplyCode::PreconditionFailed, format_args!("cannot switch from {from} to {to} mode"))
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

impl Broker {
    pub(crate) fn consume(
        &mut self,
        cx: &mut Context<'_>,
        connection: ConnectionId,
        channel: ChannelId,
        request: &ConsumeRequest<'_>,
    ) -> Result<Name, Fault> {
        let vhost = self.clients.channel(channel).vhost;
        if request.queue == REPLY_TO {
            return self.consume_replies(cx, connection, channel, request);
        }
        if !request.tag.is_empty() && self.clients.find_by_tag(channel, request.tag).is_some() {
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
        self.start_consumer(cx, channel, queue, request.consumer(tag, priority))
    }

    /// Creates a hidden queue for a consumer of `amq.rabbitmq.reply-to`. Messages are routed to this queue
    /// only by its random name.
    fn consume_replies(
        &mut self,
        cx: &mut Context<'_>,
        connection: ConnectionId,
        channel: ChannelId,
        request: &ConsumeRequest<'_>,
    ) -> Result<Name, Fault> {
        let problem = match () {
            () if !request.no_ack => "reply consumer cannot acknowledge",
            () if self.reply_queue_of(channel).is_some() => "reply consumer already set",
            () => "",
        };
        if !problem.is_empty() {
            return Err(Fault::new(ReplyCode::PreconditionFailed, format_args!("{problem}")));
        }
        let vhost = self.clients.channel(channel).vhost;
        let name = self.unique_name("amq.rabbitmq.reply-to.");
        let declaration = QueueDeclaration {
            queue: &name,
            durable: false,
            exclusive: true,
            auto_delete: true,
            arguments: &[],
        };
        let queue = self.create_queue(cx, Some(connection), vhost, &declaration, QueueKind::DirectReply)?;
        let tag = self.consumer_tag(request.tag);
        self.start_consumer(cx, channel, queue, request.consumer(tag, 0))
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
        new: NewConsumer,
    ) -> Result<Name, Fault> {
        let tag = new.tag.clone();
        let index = self.clients.add(&mut self.quota, channel, queue, ConsumerState::Active)?;
        let connection = self.clients.connection_of(channel);
        if self.clients.connection(connection).identity.is_own() {
            self.queues.records_mut().note_forwarded(queue);
        }
        self.clients.start(cx.work, &mut self.queues, index, new);
        Ok(tag)
    }

    /// Handles `basic.cancel` from the client. An unknown tag is ignored.
    pub(crate) fn cancel(&mut self, cx: &mut Context<'_>, channel: ChannelId, tag: &str) {
        if let Some(index) = self.clients.find_by_tag(channel, tag) {
            self.catch_up(cx, self.clients.consumer(index).queue);
            self.end_consumer(cx, index);
            self.free_consumer_if_done(index);
        } else if let Some(index) = self.clients.find_cancelled(channel, tag) {
            // The consumer's queue was deleted, and the client has not been notified of it yet. The reply
            // basic.cancel-ok replaces this notification.
            self.clients.leave_cancelled(index);
            self.free_consumer_if_done(index);
        }
    }

    /// Returns the next consumer for which the broker must send `basic.cancel`: channel number, tag, and the
    /// position of the method among the connection's deliveries.
    pub fn next_cancelled(&self, connection: ConnectionId) -> Option<(u16, &str, ReplyOrder)> {
        self.clients.next_cancelled(connection)
    }

    pub(crate) fn set_prefetch(
        &mut self,
        cx: &mut Context<'_>,
        channel: ChannelId,
        prefetch_count: u16,
        global: bool,
    ) {
        let record = self.clients.channel_mut(channel);
        if !global {
            record.prefetch_count = prefetch_count;
        }
        // As in RabbitMQ, `basic.qos` with `global` = `false` removes the prefetch limit that all consumers
        // of the channel share.
        let shared = if global { prefetch_count } else { 0 };
        if core::mem::replace(&mut record.global_prefetch_count, shared) != shared {
            self.clients.make_all_eligible(cx.work, &mut self.queues, channel);
        }
    }

    pub(crate) fn select_confirms(&mut self, channel: ChannelId) -> Result<(), Fault> {
        let mode = &mut self.clients.channel_mut(channel).mode;
        match mode {
            Mode::Plain | Mode::Confirm => *mode = Mode::Confirm,
            Mode::Transaction(_) => return Err(cannot_switch("tx", "confirm")),
        }
        Ok(())
    }

    pub(crate) fn select_transactions(&mut self, channel: ChannelId) -> Result<(), Fault> {
        let mode = &mut self.clients.channel_mut(channel).mode;
        match mode {
            Mode::Plain => *mode = Mode::Transaction(Transaction::default()),
            Mode::Transaction(_) => {}
            Mode::Confirm => return Err(cannot_switch("confirm", "tx")),
        }
        Ok(())
    }
}
