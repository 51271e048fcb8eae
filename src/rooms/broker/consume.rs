//! Consumers come and go; channels and connections take theirs along.
//!
//! Always true: a consumer is on its channel's list until its record goes, and on its queue's list only
//! while it is active; the client is told about every consumer that ends without its doing, if it asked to
//! be told.

use crate::command::{ChannelId, ConnectionId, ConsumerId, Name, Outcome, QueueId, ReplyOrder};
use crate::error::{Fault, ReplyCode, Scope};
use crate::mem::{Links, List};
use crate::wire::field::Table;

use super::access::{Right, Thing};
use super::faults::out_of;
use super::job::Job;
use super::queue_declare::QueueDeclaration;
use super::queues::Carrier;
use super::quota::Pool;
use super::records::{Channel, Consumer, ConsumerState, Mode};
use super::state::REPLY_TO;
use super::topology::RouteCache;
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
        let vhost = self.channels[channel.index()].vhost;
        if request.queue == REPLY_TO {
            return self.consume_replies(cx, connection, channel, request);
        }
        if !request.tag.is_empty() && self.find_consumer(channel, request.tag).is_some() {
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
        let is_taken = !record.consumers.is_empty() || record.settings.single_active;
        if record.exclusively_consumed || request.exclusive && is_taken {
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
        let vhost = self.channels[channel.index()].vhost;
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
        let id = self.add_consumer_record(channel, queue, ConsumerState::Active)?;
        let index = id.index();
        let prefetch_count = self.channels[channel.index()].prefetch_count;
        let consumer = &mut self.consumers[index];
        consumer.tag.clone_from(&tag);
        consumer.priority = priority;
        consumer.no_ack = request.no_ack;
        consumer.exclusive = request.exclusive;
        consumer.prefetch_count = prefetch_count;
        self.consumer_table.insert((channel, tag.as_str()), index);
        self.enter_queue(cx, queue, index);
        let record = self.queues.at_mut(queue);
        record.had_consumer = true;
        record.exclusively_consumed |= request.exclusive;
        self.make_eligible(cx, index);
        Ok(Outcome::Consuming { tag: tag.as_str().into() })
    }

    /// Puts the consumer on its queue's list. Where one is active, it stays the first whatever priority the
    /// others have, and those stand in the order in which their turn comes.
    fn enter_queue(&mut self, cx: &mut Context<'_>, queue: QueueId, index: usize) {
        let channel = self.consumers[index].channel;
        let connection = self.channels[channel.index()].connection;
        if self.connections[connection.index()].identity.is_own() {
            self.queues.note_named(queue);
        }
        let record = self.queues.at_mut(queue);
        let mut after = record.consumers.back();
        if let Some(active) = record.single_active_consumer() {
            let priority = self.consumers[index].priority;
            while let Some(other) = after.filter(|&other| other != active) {
                if self.consumers[other].priority >= priority {
                    break;
                }
                cx.work.charge(1);
                after = List::before(&self.consumers, other, |consumer| &consumer.queue_links);
            }
        }
        let list = &mut record.consumers;
        list.insert_after(&mut self.consumers, after, index, |consumer| &mut consumer.queue_links);
    }

    /// A record on its channel's list; what it is for is up to the caller.
    pub(super) fn add_consumer_record(
        &mut self,
        channel: ChannelId,
        queue: QueueId,
        state: ConsumerState,
    ) -> Result<ConsumerId, Fault> {
        let record = Consumer {
            tag: Name::new(),
            channel,
            queue,
            state,
            no_ack: false,
            exclusive: false,
            priority: 0,
            prefetch_count: 0,
            unsettled: 0,
            eligible: false,
            parked: false,
            to_tell: false,
            returning: false,
            channel_links: Links::default(),
            queue_links: Links::default(),
            eligible_links: Links::default(),
            connection_links: Links::default(),
        };
        let connection = self.channels[channel.index()].connection;
        self.quota.may_take(connection, Pool::Consumers, self.consumers.room())?;
        let Ok(index) = self.consumers.insert(record) else { return Err(out_of("consumers_max")) };
        self.quota.take(connection, Pool::Consumers);
        let list = &mut self.channels[channel.index()].consumers;
        list.push_back(&mut self.consumers, index, |consumer| &mut consumer.channel_links);
        Ok(ConsumerId::from_index(index))
    }

    fn find_consumer(&self, channel: ChannelId, tag: &str) -> Option<usize> {
        let is_it =
            |index: usize| self.consumers[index].channel == channel && self.consumers[index].tag == tag;
        self.consumer_table.find((channel, tag), is_it)
    }

    /// basic.cancel by the client; an unknown tag is fine.
    pub(super) fn cancel(&mut self, cx: &mut Context<'_>, channel: ChannelId, tag: &str) {
        if let Some(index) = self.find_consumer(channel, tag) {
            self.catch_up(cx, self.consumers[index].queue);
            self.deactivate(cx, index);
            self.free_consumer_if_done(index);
        } else if let Some(index) = self.find_cancelled(channel, tag) {
            // Its queue went just before, and the answer says that it has ended: it ends once.
            self.leave_cancelled(index);
            self.free_consumer_if_done(index);
        }
    }

    /// A consumer that the broker has ended and whose client was not told.
    fn find_cancelled(&self, channel: ChannelId, tag: &str) -> Option<usize> {
        let connection = self.channels[channel.index()].connection;
        let mut at = self.connections[connection.index()].cancelled.front();
        while let Some(index) = at {
            if self.consumers[index].channel == channel && self.consumers[index].tag == tag {
                return Some(index);
            }
            at = List::after(&self.consumers, index, |consumer| &consumer.connection_links);
        }
        None
    }

    /// The queue goes: the consumer ends, and its client is told.
    pub(super) fn cancel_by_broker(&mut self, cx: &mut Context<'_>, index: usize) {
        self.deactivate(cx, index);
        let connection = self.channels[self.consumers[index].channel.index()].connection;
        let record = &mut self.connections[connection.index()];
        if !record.dying {
            record.cancelled.push_back(&mut self.consumers, index, |consumer| &mut consumer.connection_links);
            self.consumers[index].to_tell = true;
            self.note_output(connection);
        }
        self.free_consumer_if_done(index);
    }

    /// The next consumer whose end the connection's client must hear of: channel number, tag, and where the
    /// news stands among the connection's deliveries.
    pub fn next_cancelled(&self, connection: ConnectionId) -> Option<(u16, &str, ReplyOrder)> {
        let index = self.connections.get(connection.index())?.cancelled.front()?;
        let consumer = &self.consumers[index];
        let order = self.reply_order(connection, Some(consumer.channel));
        Some((self.channels[consumer.channel.index()].number, &consumer.tag, order))
    }

    /// The client was told about the consumer that [`Self::next_cancelled`] named.
    pub fn told_cancelled(&mut self, connection: ConnectionId) {
        if let Some(index) = self.connections[connection.index()].cancelled.front() {
            self.leave_cancelled(index);
            self.free_consumer_if_done(index);
        }
    }

    fn leave_cancelled(&mut self, index: usize) {
        if core::mem::take(&mut self.consumers[index].to_tell) {
            let connection = self.channels[self.consumers[index].channel.index()].connection;
            let list = &mut self.connections[connection.index()].cancelled;
            list.remove(&mut self.consumers, index, |consumer| &mut consumer.connection_links);
        }
    }

    /// The consumer takes no more messages; its queue may go with it.
    fn deactivate(&mut self, cx: &mut Context<'_>, index: usize) {
        if self.consumers[index].state != ConsumerState::Active {
            return;
        }
        self.leave_eligible(index);
        self.leave_parked(index);
        let consumer = &mut self.consumers[index];
        consumer.state = ConsumerState::Cancelled;
        let (queue, channel, exclusive) = (consumer.queue, consumer.channel, consumer.exclusive);
        self.consumer_table.remove((channel, self.consumers[index].tag.as_str()), index);
        let record = self.queues.at_mut(queue);
        record.consumers.remove(&mut self.consumers, index, |consumer| &mut consumer.queue_links);
        record.exclusively_consumed &= !exclusive;
        if let Some(next) = record.single_active_consumer() {
            self.make_eligible(cx, next);
        }
        let record = self.queues.at_mut(queue);
        if record.auto_delete && record.consumers.is_empty() && !record.dying {
            self.retire_queue(cx, queue);
            self.queue_job(Job::Queue(queue));
        } else if record.consumers.is_empty() {
            self.queues.touch_queue(cx.journal, queue);
        }
    }

    /// Frees the record of an ended consumer once nothing refers to it.
    pub(super) fn free_consumer_if_done(&mut self, index: usize) {
        // What refers to it last may ask once more than needed.
        let Some(consumer) = self.consumers.get(index) else { return };
        if consumer.unsettled > 0 || consumer.state == ConsumerState::Active || consumer.to_tell {
            return;
        }
        let channel = consumer.channel;
        self.unmark_consumer(index);
        let list = &mut self.channels[channel.index()].consumers;
        list.remove(&mut self.consumers, index, |consumer| &mut consumer.channel_links);
        self.consumers.remove(index);
        let connection = self.channels[channel.index()].connection;
        self.quota.give_back(connection, Pool::Consumers);
    }

    pub(super) fn set_prefetch(
        &mut self,
        cx: &mut Context<'_>,
        channel: ChannelId,
        prefetch_count: u16,
        global: bool,
    ) {
        let record = &mut self.channels[channel.index()];
        if global {
            record.global_prefetch_count = prefetch_count;
            self.make_all_eligible(cx, channel);
        } else {
            record.prefetch_count = prefetch_count;
        }
    }

    pub(super) fn open_channel(&mut self, connection: ConnectionId, number: u16) -> Result<Outcome, Fault> {
        let vhost = self.connections[connection.index()].vhost.ok_or_else(|| {
            Fault::connection(ReplyCode::ChannelError, format_args!("no virtual host is open"))
        })?;
        let who = &self.connections[connection.index()].identity;
        self.access.check_user_channels(who, self.load_of(who))?;
        let may_take = self.quota.may_take(connection, Pool::Channels, self.channels.room());
        // There is no channel yet that could be closed.
        may_take.map_err(|fault| Fault { scope: Scope::Connection, ..fault })?;
        let record = Channel {
            number,
            connection,
            vhost,
            unacknowledged: List::default(),
            last_tag: 0,
            last_sent: 0,
            consumers: List::default(),
            prefetch_count: 0,
            global_prefetch_count: 0,
            consumer_unsettled: 0,
            mode: Mode::Plain,
            route_cache: RouteCache::default(),
            may_write: None,
            may_write_until: 0,
            has_published: false,
            outbox_len: 0,
            outbox_last: 0,
            closing: false,
            cleared: false,
            links: Links::default(),
        };
        let Ok(index) = self.channels.insert(record) else {
            return Err(Fault::connection(
                ReplyCode::ResourceError,
                format_args!("this broker has no more channels: raise channels_max or close some"),
            ));
        };
        self.counters.channels_opened += 1;
        self.quota.take(connection, Pool::Channels);
        let list = &mut self.connections[connection.index()].channels;
        list.push_back(&mut self.channels, index, |channel| &mut channel.links);
        Ok(Outcome::ChannelOpened(ChannelId::from_index(index)))
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
        self.start_job(cx, connection, Job::Channel(channel));
    }

    fn stop_channel(&mut self, cx: &mut Context<'_>, channel: ChannelId) {
        self.channels[channel.index()].closing = true;
        self.mark_returning(channel);
        let mut at = self.channels[channel.index()].consumers.front();
        while let Some(index) = at {
            at = List::after(&self.consumers, index, |consumer| &consumer.channel_links);
            self.deactivate(cx, index);
            self.leave_cancelled(index);
            self.free_consumer_if_done(index);
        }
    }

    /// Takes the channel's deliveries out of the outbox, but for the first of all, which may be half written.
    /// What could not be routed is still told, before the close.
    fn withdraw_unwritten(&mut self, cx: &mut Context<'_>, connection: ConnectionId, channel: ChannelId) {
        let front = self.connections[connection.index()].outbox.front();
        let mut at = front;
        while let Some(index) = at {
            at = self.queues.deliveries.next_in_outbox(index);
            let delivery = &self.queues.deliveries[index];
            if delivery.channel != channel || delivery.carrier == Carrier::Return {
                continue;
            }
            if Some(index) != front {
                self.leave_outbox(connection, index);
                self.abandon_unsent(cx, index);
            } else {
                self.orphan(channel, index);
                self.note_output(connection);
            }
        }
    }

    fn orphan(&mut self, channel: ChannelId, index: usize) {
        if !self.queues.deliveries[index].no_ack {
            self.leave_unacknowledged(channel, index);
        }
        self.queues.deliveries[index].orphaned = true;
    }

    pub(super) fn free_channel_if_done(&mut self, channel: ChannelId) {
        let record = &self.channels[channel.index()];
        if record.cleared && record.outbox_len == 0 && record.consumers.is_empty() {
            let connection = record.connection;
            let list = &mut self.connections[connection.index()].channels;
            list.remove(&mut self.channels, channel.index(), |channel| &mut channel.links);
            self.channels.remove(channel.index());
            self.quota.give_back(connection, Pool::Channels);
        }
    }

    /// A new connection, before its handshake.
    ///
    /// # Errors
    /// No record is free: some lost connection is still being cleared away.
    pub fn connect(&mut self) -> Option<ConnectionId> {
        let record = super::records::Connection::new();
        let connection = ConnectionId::from_index(self.connections.insert(record).ok()?);
        self.quota.connection_came(connection);
        Some(connection)
    }

    /// How many more may connect: what the last ones held is still being cleared away.
    pub fn connections_room(&self) -> usize {
        self.connections.room()
    }

    /// The socket is closed: the id may be used again as soon as everything went back.
    pub fn release(&mut self, cx: &mut Context<'_>, connection: ConnectionId) {
        self.disconnect(cx, connection);
        self.connections[connection.index()].released = true;
        self.free_connection_if_done(connection);
    }

    pub(super) fn free_connection_if_done(&mut self, connection: ConnectionId) {
        let record = &self.connections[connection.index()];
        if record.cleared && record.released {
            let record = self.connections.remove(connection.index());
            self.quota.connection_gone(connection);
            if let Some(vhost) = record.vhost {
                self.release_vhost(vhost);
            }
        }
    }

    /// The peer will ask for nothing more. Its names vanish now; what it held goes back in bounded steps.
    /// Once is enough, but more does no harm.
    pub fn disconnect(&mut self, cx: &mut Context<'_>, connection: ConnectionId) {
        if core::mem::replace(&mut self.connections[connection.index()].dying, true) {
            return;
        }
        self.forget_gets(connection);
        self.quota.leave_vhost(connection);
        let mut at = self.connections[connection.index()].channels.front();
        while let Some(index) = at {
            at = List::after(&self.channels, index, |channel| &channel.links);
            let channel = ChannelId::from_index(index);
            if !self.channels[index].closing {
                self.stop_channel(cx, channel);
            }
        }
        while let Some(queue) = self.connections[connection.index()].exclusive_queues.front() {
            let queue = QueueId::from_index(queue);
            self.retire_queue(cx, queue);
            self.queue_job(Job::Queue(queue));
        }
        self.queue_job(Job::Connection(connection));
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
