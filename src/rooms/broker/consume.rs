//! Consumers come and go; channels and connections take theirs along.
//!
//! Always true: a consumer is on its channel's list until its record goes, and on its queue's list only
//! while it is active; the client is told about every consumer that ends without its doing, if it asked to
//! be told.

use crate::command::{ChannelId, ConnectionId, Name, Outcome, QueueId, ReplyOrder};
use crate::error::{Fault, ReplyCode};
use crate::wire::field::Table;

use super::access::{Right, Thing};
use super::consumers::{ConsumerState, NewConsumer};
use super::job::Job;
use super::queue_declare::QueueDeclaration;
use super::queues::Carrier;
use super::state::REPLY_TO;
use super::words::QueueInWords;
use super::{Broker, Context};

/// basic.consume's fields.
pub(super) struct ConsumeRequest<'a> {
    pub(super) queue: &'a str,
    pub(super) tag: &'a str,
    pub(super) no_ack: bool,
    pub(super) exclusive: bool,
    pub(super) arguments: &'a [u8],
}

impl Broker {
    pub(super) fn consume(
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
        self.check(cx.work, connection, vhost, Right::Read, Thing::Queue(request.queue))?;
        let queue = self.require_queue(connection, vhost, request.queue)?;
        let words = self.queue_in_words(vhost, request.queue);
        let priority = priority_of(words, Table::trusted(request.arguments))?;
        let record = self.queues.at(queue);
        if record.audience.has_exclusive() || request.exclusive && record.audience.is_taken() {
            return Err(Fault::new(ReplyCode::AccessRefused, format_args!("{words} in exclusive use")));
        }
        let tag = self.consumer_tag(request.tag);
        self.start_consumer(cx, channel, queue, tag, priority, request)
    }

    /// Consuming from amq.rabbitmq.reply-to makes a queue of its own that only its token reaches.
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

    fn consumer_tag(&mut self, asked: &str) -> Name {
        match Name::try_from(asked) {
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
            self.queues.note_named(queue);
        }
        let outcome = Outcome::Consuming { tag: tag.as_str().into() };
        let new = NewConsumer { tag, priority, no_ack: request.no_ack, exclusive: request.exclusive };
        self.consumers.start(cx.work, &mut self.queues, index, new);
        Ok(outcome)
    }

    /// basic.cancel by the client; an unknown tag is fine.
    pub(super) fn cancel(&mut self, cx: &mut Context<'_>, channel: ChannelId, tag: &str) {
        if let Some(index) = self.consumers.find(channel, tag) {
            self.catch_up(cx, self.consumers.at(index).queue);
            self.end_consumer(cx, index);
            self.free_consumer_if_done(index);
        } else if let Some(index) = self.consumers.find_cancelled(channel, tag) {
            // Its queue went just before, and the answer says that it has ended: it ends once.
            self.consumers.leave_cancelled(index);
            self.free_consumer_if_done(index);
        }
    }

    /// The queue goes: the consumer ends, and its client is told.
    pub(super) fn cancel_by_broker(&mut self, cx: &mut Context<'_>, index: usize) {
        self.end_consumer(cx, index);
        self.consumers.note_cancelled(index);
        self.free_consumer_if_done(index);
    }

    /// The next consumer whose end the connection's client must hear of: channel number, tag, and where the
    /// news stands among the connection's deliveries.
    pub fn next_cancelled(&self, connection: ConnectionId) -> Option<(u16, &str, ReplyOrder)> {
        self.consumers.next_cancelled(connection)
    }

    /// The client was told about the consumer that [`Self::next_cancelled`] named.
    pub fn told_cancelled(&mut self, connection: ConnectionId) {
        if let Some(index) = self.consumers.first_cancelled(connection) {
            self.consumers.leave_cancelled(index);
            self.free_consumer_if_done(index);
        }
    }

    /// A consumer takes no more messages; its queue may go with it.
    fn end_consumer(&mut self, cx: &mut Context<'_>, index: usize) {
        let Some(queue) = self.consumers.end(cx.work, &mut self.queues, index) else { return };
        let record = self.queues.at(queue);
        if record.auto_delete && record.audience.is_empty() && !record.dying {
            self.retire_queue(cx, queue);
            self.jobs.begin(Job::Queue(queue));
        } else if record.audience.is_empty() {
            self.queues.touch_queue(cx.journal, queue);
        }
    }

    /// Frees the record of an ended consumer once nothing refers to it.
    pub(super) fn free_consumer_if_done(&mut self, index: usize) {
        if let Some(queue) = self.consumers.free_if_done(&mut self.quota, index) {
            self.end_returning(queue);
        }
    }

    pub(super) fn set_prefetch(
        &mut self,
        cx: &mut Context<'_>,
        channel: ChannelId,
        prefetch_count: u16,
        global: bool,
    ) {
        let record = self.consumers.channel_mut(channel);
        if global {
            record.global_prefetch_count = prefetch_count;
            self.consumers.make_all_eligible(cx.work, &mut self.queues, channel);
        } else {
            record.prefetch_count = prefetch_count;
        }
    }

    pub(super) fn open_channel(&mut self, connection: ConnectionId, number: u16) -> Result<Outcome, Fault> {
        let record = self.consumers.connection(connection);
        let vhost = record.vhost.ok_or_else(|| {
            Fault::connection(ReplyCode::ChannelError, format_args!("no virtual host is open"))
        })?;
        self.access.check_user_channels(&record.identity, self.load_of(&record.identity))?;
        let channel = self.consumers.open_channel(&mut self.quota, connection, vhost, number)?;
        self.counters.channels_opened += 1;
        Ok(Outcome::ChannelOpened(channel))
    }

    fn stop_channel(&mut self, cx: &mut Context<'_>, channel: ChannelId) {
        self.consumers.channel_mut(channel).closing = true;
        self.consumers.mark_returning(&mut self.queues, channel);
        let mut at = self.consumers.next_of_channel(channel, None);
        while let Some(index) = at {
            at = self.consumers.next_of_channel(channel, Some(index));
            self.end_consumer(cx, index);
            self.consumers.leave_cancelled(index);
            self.free_consumer_if_done(index);
        }
    }

    /// Closes a channel: nothing new starts, unwritten deliveries go no further, the rest goes back.
    pub(super) fn close_channel(
        &mut self,
        cx: &mut Context<'_>,
        connection: ConnectionId,
        channel: ChannelId,
    ) {
        self.stop_channel(cx, channel);
        self.withdraw_unwritten(cx, connection, channel);
        self.begin_job(connection, Job::Channel(channel));
    }

    /// Takes the channel's deliveries out of the outbox, but for the first of all, which may be half written.
    /// What could not be routed is still told, before the close.
    fn withdraw_unwritten(&mut self, cx: &mut Context<'_>, connection: ConnectionId, channel: ChannelId) {
        let front = self.consumers.connection(connection).outbox.front();
        let mut at = front;
        while let Some(index) = at {
            at = self.queues.deliveries().next_in_outbox(index);
            let delivery = &self.queues.deliveries()[index];
            if delivery.channel != channel || delivery.carrier == Carrier::Return {
                continue;
            }
            if Some(index) != front {
                self.consumers.leave_outbox(&mut self.queues, connection, index);
                self.abandon_unsent(cx, index);
            } else {
                self.orphan(channel, index);
                self.consumers.note_output(connection);
            }
        }
    }

    fn orphan(&mut self, channel: ChannelId, index: usize) {
        if !self.queues.deliveries()[index].no_ack {
            self.consumers.leave_unacknowledged(&mut self.queues, channel, index);
        }
        self.queues.deliveries_mut()[index].orphaned = true;
    }

    /// A new connection, before its handshake.
    ///
    /// # Errors
    /// No record is free: some lost connection is still being cleared away.
    pub fn connect(&mut self) -> Option<ConnectionId> {
        self.consumers.connect(&mut self.quota)
    }

    /// How many more may connect: what the last ones held is still being cleared away.
    pub const fn connections_room(&self) -> usize {
        self.consumers.connections_fill().room()
    }

    /// The socket is closed: the id may be used again as soon as everything went back.
    pub fn release(&mut self, cx: &mut Context<'_>, connection: ConnectionId) {
        self.disconnect(cx, connection);
        self.consumers.connection_mut(connection).released = true;
        self.free_connection_if_done(connection);
    }

    pub(super) fn free_connection_if_done(&mut self, connection: ConnectionId) {
        let gone = self.consumers.free_connection_if_done(&mut self.quota, connection);
        if let Some(vhost) = gone.and_then(|record| record.vhost) {
            self.release_vhost(vhost);
        }
    }

    /// The peer will ask for nothing more. Its names vanish now; what it held goes back in bounded steps.
    /// Once is enough, but more does no harm.
    pub fn disconnect(&mut self, cx: &mut Context<'_>, connection: ConnectionId) {
        if core::mem::replace(&mut self.consumers.connection_mut(connection).dying, true) {
            return;
        }
        self.forget_gets(connection);
        self.quota.leave_vhost(connection);
        let mut at = self.consumers.next_channel(connection, None);
        while let Some(channel) = at {
            at = self.consumers.next_channel(connection, Some(channel));
            if !self.consumers.channel(channel).closing {
                self.stop_channel(cx, channel);
            }
        }
        while let Some(queue) = self.consumers.connection(connection).exclusive_queues.front() {
            let queue = QueueId::from_index(queue);
            self.retire_queue(cx, queue);
            self.jobs.begin(Job::Queue(queue));
        }
        self.jobs.begin(Job::Connection(connection));
    }

    /// Asks the loop to close a connection with connection.close 320 and this reason.
    pub fn force_close(&mut self, connection: ConnectionId, reason: &str) {
        self.consumers.force_close(connection, reason);
    }

    /// The next connection that is to be closed by force, and what to tell it.
    pub fn next_forced(&mut self) -> Option<(ConnectionId, Fault)> {
        self.consumers.next_forced()
    }

    /// Whether a connection is to be closed by force.
    pub fn has_forced(&self) -> bool {
        self.consumers.has_forced()
    }

    /// Whether the connection's last command is still being carried out; until then it is not read.
    pub fn is_busy(&self, connection: ConnectionId) -> bool {
        self.consumers.is_busy(connection)
    }

    /// The next connection whose outbox got something since this was last asked.
    pub fn next_noted(&mut self) -> Option<ConnectionId> {
        self.consumers.next_noted()
    }
}

fn priority_of(queue: QueueInWords<'_>, arguments: Table<'_>) -> Result<i32, Fault> {
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
