//! Starts and ends consumers, channels and connections.
//!
//! # Invariants
//! - A consumer is on its channel's list until its record is freed, and on its queue's list only while it is
//!   active.
//! - An ended consumer keeps its record until its last delivery is settled, because the record tells which
//!   queue that delivery came from.
//! - The client is notified of every consumer that it did not end itself.

use super::state::Consumers;
use super::state::{Channel, ChannelState, Connection, Consumer, ConsumerState};
use crate::context::Work;
use crate::queue_flow::Queues;
use crate::quota::{Pool, Quota};
use crate::reply_text::out_of;
use leveret_core::command::{ChannelId, ConnectionId, Name, QueueId, ReplyOrder, VhostId};
use leveret_core::error::{Fault, ReplyCode};
use leveret_core::mem::List;

/// The properties of a consumer to be started.
pub(crate) struct NewConsumer {
    pub(crate) tag: Name,
    pub(crate) priority: i32,
    pub(crate) no_ack: bool,
    pub(crate) exclusive: bool,
}

impl Consumers {
    // ---- consumers

    /// Returns the consumer of a channel that has this tag.
    pub(crate) fn find(&self, channel: ChannelId, tag: &str) -> Option<usize> {
        let is_it = |index: usize| self.slab[index].channel == channel && self.slab[index].tag == tag;
        self.table.find((channel, tag), is_it)
    }

    /// Adds a record to its channel's list: for a consumer that is to be started, or for the `basic.get`s of
    /// a channel from a queue.
    ///
    /// # Errors
    /// There is no capacity, or the connection has used up its share.
    pub(crate) fn add(
        &mut self,
        quota: &mut Quota,
        channel: ChannelId,
        queue: QueueId,
        state: ConsumerState,
    ) -> Result<usize, Fault> {
        let connection = self.connection_of(channel);
        quota.may_take(connection, Pool::Consumers, self.slab.room())?;
        let record = Consumer::new(channel, queue, state);
        let index = self.slab.insert(record).map_err(|_| out_of("consumers_max"))?;
        quota.take(connection, Pool::Consumers);
        let list = &mut self.channels[channel.index()].consumers;
        list.push_back(&mut self.slab, index, |consumer| &mut consumer.channel_links);
        Ok(index)
    }

    /// Starts a consumer that was added: it takes messages from now on.
    pub(crate) fn start(&mut self, work: &mut Work, queues: &mut Queues, index: usize, new: NewConsumer) {
        let (channel, queue) = (self.slab[index].channel, self.slab[index].queue);
        self.table.insert((channel, new.tag.as_str()), index);
        let record = &mut self.slab[index];
        record.prefetch_count = self.channels[channel.index()].prefetch_count;
        (record.tag, record.priority) = (new.tag, new.priority);
        (record.no_ack, record.exclusive) = (new.no_ack, new.exclusive);
        queues.records_mut().queue_consumers_mut(queue).has_exclusive |= new.exclusive;
        self.enter_queue(work, queues, index);
        self.make_eligible(work, queues, index);
    }

    /// Puts a consumer on its queue's list. A single active consumer stays the first, whatever the priority
    /// of the others, and those are in the order in which they become active.
    fn enter_queue(&mut self, work: &mut Work, queues: &mut Queues, index: usize) {
        let queue_consumers = queues.records_mut().queue_consumers_mut(self.slab[index].queue);
        let mut after = queue_consumers.all.back();
        if let Some(active) = queue_consumers.single_active() {
            let priority = self.slab[index].priority;
            while let Some(other) = after.filter(|&other| other != active) {
                if self.slab[other].priority >= priority {
                    break;
                }
                work.charge(1);
                after = List::before(&self.slab, other, |consumer| &consumer.queue_links);
            }
        }
        queue_consumers.all.insert_after(&mut self.slab, after, index, |consumer| &mut consumer.queue_links);
    }

    /// Ends a consumer. Returns its queue if the consumer was active.
    pub(crate) fn end(&mut self, work: &mut Work, queues: &mut Queues, index: usize) -> Option<QueueId> {
        if self.slab[index].state != ConsumerState::Active {
            return None;
        }
        self.leave_eligible(queues, index);
        self.leave_parked(index);
        let consumer = &mut self.slab[index];
        consumer.state = ConsumerState::Cancelled;
        let (queue, channel, exclusive) = (consumer.queue, consumer.channel, consumer.exclusive);
        self.table.remove((channel, self.slab[index].tag.as_str()), index);
        let queue_consumers = queues.records_mut().queue_consumers_mut(queue);
        queue_consumers.all.remove(&mut self.slab, index, |consumer| &mut consumer.queue_links);
        queue_consumers.has_exclusive &= !exclusive;
        if let Some(next) = queue_consumers.single_active() {
            self.make_eligible(work, queues, next);
        }
        Some(queue)
    }

    /// Frees the record of an ended consumer when nothing refers to it. Returns the queue that waited for its
    /// messages to be requeued, if any.
    pub(crate) fn free_if_done(&mut self, quota: &mut Quota, index: usize) -> Option<QueueId> {
        // The last reference to a consumer may ask more often than needed.
        let consumer = self.slab.get(index)?;
        if consumer.unsettled > 0 || consumer.state == ConsumerState::Active || consumer.needs_cancel_notice {
            return None;
        }
        let channel = consumer.channel;
        let list = &mut self.channels[channel.index()].consumers;
        list.remove(&mut self.slab, index, |consumer| &mut consumer.channel_links);
        let consumer = self.slab.remove(index);
        quota.give_back(self.connection_of(channel), Pool::Consumers);
        consumer.returning.then_some(consumer.queue)
    }

    /// Returns the first consumer of a channel, or the one behind `after`. Includes cancelled ones with
    /// unsettled deliveries and the records for `basic.get`s.
    pub(crate) fn next_of_channel(&self, channel: ChannelId, after: Option<usize>) -> Option<usize> {
        match after {
            None => self.channels[channel.index()].consumers.front(),
            Some(index) => List::after(&self.slab, index, |consumer| &consumer.channel_links),
        }
    }

    /// Returns the number of active consumers of a channel.
    pub(crate) fn active_on(&self, channel: ChannelId) -> u32 {
        let (mut count, mut at) = (0, self.next_of_channel(channel, None));
        while let Some(index) = at {
            count += u32::from(self.slab[index].state == ConsumerState::Active);
            at = self.next_of_channel(channel, Some(index));
        }
        count
    }

    // ---- consumers cancelled by the broker

    /// Notes that a consumer's queue is deleted: its client must be notified (`basic.cancel`).
    pub(crate) fn note_cancelled(&mut self, index: usize) {
        let connection = self.connection_of(self.slab[index].channel);
        let record = &mut self.connections[connection.index()];
        if !record.is_lost {
            record.cancelled.push_back(&mut self.slab, index, |consumer| &mut consumer.connection_links);
            self.slab[index].needs_cancel_notice = true;
            self.note_output(connection);
        }
    }

    /// Returns a consumer that the broker has ended and whose client has not been notified yet.
    pub(crate) fn find_cancelled(&self, channel: ChannelId, tag: &str) -> Option<usize> {
        let connection = self.connection_of(channel);
        let mut at = self.connections[connection.index()].cancelled.front();
        while let Some(index) = at {
            if self.slab[index].channel == channel && self.slab[index].tag == tag {
                return Some(index);
            }
            at = List::after(&self.slab, index, |consumer| &consumer.connection_links);
        }
        None
    }

    /// Returns the first cancelled consumer of whose end the connection's client must be notified.
    pub(crate) fn first_cancelled(&self, connection: ConnectionId) -> Option<usize> {
        self.connections.get(connection.index())?.cancelled.front()
    }

    /// Returns the next cancelled consumer of which the client must be notified: channel number, tag, and the
    /// position of `basic.cancel` among the connection's deliveries.
    pub(crate) fn next_cancelled(&self, connection: ConnectionId) -> Option<(u16, &str, ReplyOrder)> {
        let consumer = &self.slab[self.first_cancelled(connection)?];
        let order = self.reply_order(connection, Some(consumer.channel));
        Some((self.channels[consumer.channel.index()].number, &consumer.tag, order))
    }

    /// Notes that the client was notified of the consumer's end, or need not be.
    pub(crate) fn leave_cancelled(&mut self, index: usize) {
        if core::mem::take(&mut self.slab[index].needs_cancel_notice) {
            let connection = self.connection_of(self.slab[index].channel);
            let list = &mut self.connections[connection.index()].cancelled;
            list.remove(&mut self.slab, index, |consumer| &mut consumer.connection_links);
        }
    }

    // ---- messages being requeued

    /// Marks the consumers of a channel whose messages are being requeued. Their queues deliver nothing
    /// meanwhile, because the first message requeued need not be the oldest.
    pub(crate) fn mark_returning(&mut self, queues: &mut Queues, channel: ChannelId) {
        let mut at = self.channels[channel.index()].consumers.front();
        while let Some(index) = at {
            let consumer = &mut self.slab[index];
            if consumer.unsettled > 0 && !consumer.returning {
                consumer.returning = true;
                queues.records_mut().begin_returning(consumer.queue);
            }
            at = List::after(&self.slab, index, |consumer| &consumer.channel_links);
        }
    }

    /// Notes that the messages of a consumer are requeued. Returns the queue that waited for that, if any.
    pub(crate) fn take_returning(&mut self, index: usize) -> Option<QueueId> {
        let consumer = &mut self.slab[index];
        core::mem::take(&mut consumer.returning).then_some(consumer.queue)
    }

    // ---- channels

    /// Opens a channel.
    ///
    /// # Errors
    /// There is no capacity, or the connection has used up its share.
    pub(crate) fn open_channel(
        &mut self,
        quota: &mut Quota,
        connection: ConnectionId,
        vhost: VhostId,
        number: u16,
    ) -> Result<ChannelId, Fault> {
        quota.may_take(connection, Pool::Channels, self.channels.room())?;
        let Ok(index) = self.channels.insert(Channel::new(number, connection, vhost)) else {
            return Err(Fault::new(
                ReplyCode::ResourceError,
                format_args!("this broker has no more channels: raise channels_max or close some"),
            ));
        };
        quota.take(connection, Pool::Channels);
        let list = &mut self.connections[connection.index()].channels;
        list.push_back(&mut self.channels, index, |channel| &mut channel.links);
        Ok(ChannelId::from_index(index))
    }

    /// Frees the record of a closed channel when nothing refers to it.
    pub(crate) fn free_channel_if_done(&mut self, quota: &mut Quota, channel: ChannelId) {
        let record = &self.channels[channel.index()];
        if record.state == ChannelState::Cleared && record.outbox_len == 0 && record.consumers.is_empty() {
            let connection = record.connection;
            let list = &mut self.connections[connection.index()].channels;
            list.remove(&mut self.channels, channel.index(), |channel| &mut channel.links);
            self.channels.remove(channel.index());
            quota.give_back(connection, Pool::Channels);
        }
    }

    /// Returns the first channel of a connection, or the one behind `after`, including closed ones.
    pub(crate) fn next_channel(
        &self,
        connection: ConnectionId,
        after: Option<ChannelId>,
    ) -> Option<ChannelId> {
        let index = match after {
            None => self.connections[connection.index()].channels.front(),
            Some(channel) => List::after(&self.channels, channel.index(), |channel| &channel.links),
        };
        index.map(ChannelId::from_index)
    }

    // ---- connections

    /// Creates a connection, before its handshake; `None` if no record is free.
    pub(crate) fn connect(&mut self, quota: &mut Quota) -> Option<ConnectionId> {
        let connection = ConnectionId::from_index(self.connections.insert(Connection::new()).ok()?);
        quota.note_connection(connection);
        Some(connection)
    }

    /// Frees and returns the record of a closed connection, when everything was requeued.
    pub(crate) fn free_connection_if_done(
        &mut self,
        quota: &mut Quota,
        connection: ConnectionId,
    ) -> Option<Connection> {
        let record = &self.connections[connection.index()];
        if !record.is_cleared || !record.is_released {
            return None;
        }
        quota.note_connection_closed(connection);
        Some(self.connections.remove(connection.index()))
    }

    /// Returns whether jobs of the connection's last command are running; until they are done, the connection
    /// is not read.
    pub(crate) fn is_busy(&self, connection: ConnectionId) -> bool {
        self.connections.get(connection.index()).is_some_and(|record| record.jobs > 0)
    }

    /// Notes that a user is deleted: no connection acts as that user any more.
    pub(crate) fn forget_user(&mut self, user: usize) {
        for connection in self.connection_ids() {
            self.connections[connection.index()].identity.forget_user(user);
        }
    }

    /// Requests that the event loop close a connection with `connection.close` 320 and this reason.
    pub(crate) fn force_close(&mut self, connection: ConnectionId, reason: &str) {
        let Some(record) = self.connections.get_mut(connection.index()) else { return };
        if record.forced.is_none() && !record.is_lost {
            record.forced = Some(reason.into());
            self.forced.push_back(connection);
        }
    }

    /// Requests that the event loop close all connections for which `is_meant` holds.
    pub(crate) fn force_close_all(&mut self, reason: &str, is_meant: impl Fn(&Connection) -> bool) {
        for connection in self.connection_ids() {
            if is_meant(self.connection(connection)) {
                self.force_close(connection, reason);
            }
        }
    }

    /// Returns the next connection that is to be closed by force, and the reason for its client.
    pub(crate) fn next_forced(&mut self) -> Option<(ConnectionId, Fault)> {
        loop {
            let connection = self.forced.pop_front()?;
            let record = self.connections.get_mut(connection.index());
            if let Some(reason) = record.and_then(|record| record.forced.take()) {
                let fault = Fault::connection(ReplyCode::ConnectionForced, format_args!("{reason}"));
                return Some((connection, fault));
            }
        }
    }

    /// Returns whether any connection is to be closed by force.
    pub(crate) fn has_forced(&self) -> bool {
        !self.forced.is_empty()
    }
}
