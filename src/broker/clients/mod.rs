//! The records of connections, channels and consumers, and the choice of the consumer for the next message of
//! a queue.
//!
//! Of the consumers of a queue that can take a message, those with the highest priority get its messages in
//! turn. A consumer is left out while its prefetch, the socket of its connection, or the connection's share of
//! deliveries does not allow another message.
//!
//! | file | content |
//! |---|---|
//! | `mod` | all records; starting and ending consumers; opening and freeing channels and connections |
//! | `connection`, `channel`, `consumer` | one record each |
//! | `login` | the commands that open a connection: the login, the virtual host, the channels |
//! | `commands` | the commands about consumers and the mode of their channel |
//! | `credit` | checks whether a consumer can take another message; the lists of eligible and paused consumers |
//! | `outbox` | deliveries that are not written to the socket yet, and unacknowledged deliveries of a channel |
//!
//! # Invariants
//! - A consumer that can take a message is on its queue's list of eligible consumers, unless it waits behind a
//!   single active consumer. A consumer with credit whose connection takes no more is on the connection's list
//!   of paused consumers. All others are on neither list.
//! - A record is freed only when no other record refers to it.

mod channel;
mod commands;
mod connection;
mod consumer;
mod credit;
mod login;
mod outbox;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use leveret_core::command::{ChannelId, ConnectionId, QueueId, ReplyOrder, VhostId};
use leveret_core::error::{Fault, ReplyCode, no_memory_for};
use leveret_core::limits::Limits;
use leveret_core::mem::{Class, IndexTable, List, Memory, Slab};
use leveret_core::quota::{Pool, Quota};
use leveret_core::work::Work;
use leveret_queues::{Queues, RetryList};

use crate::state::{CHANNEL_SIDE_BYTES, CONNECTION_SIDE_BYTES};

pub(crate) use channel::{Channel, ChannelState, Mode, Transaction};
pub(crate) use commands::ConsumeRequest;
#[cfg(debug_assertions)]
pub(crate) use connection::WatchedPublish;
pub(crate) use connection::{ClientWait, Connection, FullQueue, forced};
pub(crate) use consumer::{Consumer, ConsumerState, NewConsumer};

use connection::ConnectionState;

/// Connections, channels and consumers.
///
/// # Invariants
/// - A record is freed only when no other record refers to it.
/// - A consumer is on its channel's list until its record is freed, and on its queue's list only while it is
///   active.
/// - A cancelled consumer keeps its record until its last unacknowledged message is settled, because the
///   record has the queue of the message.
/// - A closed channel keeps its record until all its deliveries are requeued.
/// - The client is notified of every consumer that the broker ends (`basic.cancel`).
#[derive(Debug)]
pub(crate) struct Clients {
    connections: Slab<Connection>,
    channels: Slab<Channel>,
    consumers: Slab<Consumer>,
    /// Consumers by their channel and tag.
    table: IndexTable,
    /// Connections whose output must be processed in this turn.
    output: VecDeque<ConnectionId>,
    /// Connections that must be closed by force.
    forced: VecDeque<ConnectionId>,
    /// Connections that have paused consumers because they have used up their share of deliveries.
    over_share: RetryList<ConnectionId>,
    /// Approximate maximum number of bytes in the outbox of a connection.
    output_budget_bytes: u64,
}

/// The number of records of a type.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fill {
    /// Number of existing records.
    pub(crate) used: usize,
    /// Maximum number of records.
    pub(crate) max: usize,
}

impl Fill {
    /// Returns the same with fewer records, which are not shown to operators.
    pub(crate) fn without(self, spare: usize) -> Self {
        let max = self.max.saturating_sub(spare);
        Self { used: self.used.min(max), max }
    }

    fn of<T>(slab: &Slab<T>) -> Self {
        Self { used: slab.len(), max: slab.len() + slab.free_count() }
    }

    /// Returns how many more records can exist.
    pub(crate) const fn free_count(self) -> usize {
        self.max - self.used
    }
}

impl Clients {
    pub(crate) fn new(limits: &Limits, memory: &Memory, seed: u64) -> Self {
        let (connections, consumers) = (limits.connection_records(), limits.consumers_max as usize);
        let channels = limits.channels_max as usize + limits.bridge_links() + limits.bridges_max as usize;
        Self {
            connections: Slab::in_memory(connections, memory, Class::Clients)
                .with_side_bytes(CONNECTION_SIDE_BYTES),
            channels: Slab::in_memory(channels, memory, Class::Clients).with_side_bytes(CHANNEL_SIDE_BYTES),
            consumers: Slab::in_memory(consumers, memory, Class::Clients),
            table: IndexTable::in_memory(consumers, memory, Class::Clients, seed),
            output: VecDeque::with_capacity(connections),
            forced: VecDeque::with_capacity(limits.connection_places() as usize),
            over_share: RetryList::with_capacity(connections),
            output_budget_bytes: u64::from(limits.output_buffer_bytes),
        }
    }

    // ---- records

    /// Returns an existing connection.
    #[inline]
    pub(crate) fn connection(&self, connection: ConnectionId) -> &Connection {
        &self.connections[connection.index()]
    }

    /// Returns an existing connection mutably.
    #[inline]
    pub(crate) fn connection_mut(&mut self, connection: ConnectionId) -> &mut Connection {
        &mut self.connections[connection.index()]
    }

    /// Returns a connection, if it exists.
    pub(crate) fn find_connection(&self, connection: ConnectionId) -> Option<&Connection> {
        self.connections.get(connection.index())
    }

    /// Returns a connection; `None` if there is none.
    pub(crate) fn find_connection_mut(&mut self, connection: ConnectionId) -> Option<&mut Connection> {
        self.connections.get_mut(connection.index())
    }

    /// Returns an existing channel.
    #[inline]
    pub(crate) fn channel(&self, channel: ChannelId) -> &Channel {
        &self.channels[channel.index()]
    }

    /// Returns an existing channel mutably.
    #[inline]
    pub(crate) fn channel_mut(&mut self, channel: ChannelId) -> &mut Channel {
        &mut self.channels[channel.index()]
    }

    /// Returns a channel, if it exists.
    pub(crate) fn find_channel(&self, channel: ChannelId) -> Option<&Channel> {
        self.channels.get(channel.index())
    }

    /// Returns the connection of an existing channel.
    #[inline]
    pub(crate) fn connection_of(&self, channel: ChannelId) -> ConnectionId {
        self.channels[channel.index()].connection
    }

    /// Returns an existing consumer.
    #[inline]
    pub(crate) fn consumer(&self, consumer: usize) -> &Consumer {
        &self.consumers[consumer]
    }

    /// Returns an existing consumer mutably.
    #[inline]
    pub(crate) fn consumer_mut(&mut self, consumer: usize) -> &mut Consumer {
        &mut self.consumers[consumer]
    }

    /// Returns a consumer, if it exists.
    pub(crate) fn find_consumer(&self, consumer: usize) -> Option<&Consumer> {
        self.consumers.get(consumer)
    }

    // ---- counts

    pub(crate) fn connections_fill(&self) -> Fill {
        Fill::of(&self.connections)
    }

    pub(crate) fn channels_fill(&self) -> Fill {
        Fill::of(&self.channels)
    }

    pub(crate) fn consumers_fill(&self) -> Fill {
        Fill::of(&self.consumers)
    }

    /// Returns the upper bound of the indices of channels: the number of indices ever used.
    pub(crate) const fn channel_places(&self) -> usize {
        self.channels.places()
    }

    /// Returns the upper bound of the indices of consumers: the number of indices ever used.
    pub(crate) const fn consumer_places(&self) -> usize {
        self.consumers.places()
    }

    /// Returns the number of open channels on which a message was published.
    pub(crate) fn publishers(&self) -> usize {
        self.channels.iter().filter(|(_, channel)| channel.has_published && !channel.is_closed()).count()
    }

    /// Returns all existing connections.
    pub(crate) fn connection_ids(&self) -> impl Iterator<Item = ConnectionId> + use<> {
        let existing: Vec<ConnectionId> =
            self.connections.iter().map(|(index, _)| ConnectionId::from_index(index)).collect();
        existing.into_iter()
    }

    // ---- memory

    /// Returns roughly the bytes of the pools that are unused but not returned to the operating system.
    pub(crate) const fn idle_bytes(&self) -> usize {
        self.consumers.idle_bytes() + self.channels.idle_bytes() + self.connections.idle_bytes()
    }

    /// Returns the number of connections that there can be: every index is below it.
    pub(crate) const fn connections_capacity(&self) -> usize {
        self.connections.capacity()
    }

    /// Returns whether a connection is closed whose record still exists.
    pub(crate) fn is_clearing_connections(&self) -> bool {
        self.connections.iter().any(|(_, connection)| connection.is_released())
    }

    /// Returns whether there are records for `count` more connections, but no memory for them.
    pub(crate) fn lacks_memory_for_connections(&self, count: usize) -> bool {
        let records_free = self.connections.capacity() - self.connections.len();
        self.connections.free_count() < count.min(records_free)
    }

    /// Charges `bytes` of memory for each connection in addition.
    pub(crate) fn add_connection_bytes(&mut self, bytes: usize) {
        self.connections.add_side_bytes(bytes);
    }

    /// Returns unused memory to the operating system.
    pub(crate) fn trim(&mut self) {
        self.consumers.trim();
        self.table.trim(self.consumers.touched());
        self.channels.trim();
        self.connections.trim();
    }
}

impl Clients {
    // ---- consumers

    /// Returns the consumer of a channel that has this tag.
    pub(crate) fn find_by_tag(&self, channel: ChannelId, tag: &str) -> Option<usize> {
        let is_it =
            |index: usize| self.consumers[index].channel == channel && self.consumers[index].tag == tag;
        self.table.find((channel, tag), is_it)
    }

    /// Adds a consumer record to its channel's list: for a consumer that [`Self::start`] will start, or for
    /// the `basic.get`s of the channel from this queue. Returns its index.
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
        self.check_capacity(quota, connection)?;
        let record = Consumer::new(channel, queue, state);
        let index = self.consumers.insert(record);
        let index = index.map_err(|_| no_memory_for("another consumer"))?;
        quota.take(connection, Pool::Consumers);
        let list = &mut self.channels[channel.index()].consumers;
        list.push_back(&mut self.consumers, index, |consumer| &mut consumer.channel_links);
        Ok(index)
    }

    /// Checks whether this connection may have one consumer more.
    ///
    /// # Errors
    /// There is no capacity, or the connection has used up its share.
    pub(crate) fn check_capacity(&self, quota: &mut Quota, connection: ConnectionId) -> Result<(), Fault> {
        quota.check_share(connection, Pool::Consumers, self.consumers.free_count())?;
        match self.consumers.free_count() {
            0 => Err(no_memory_for("another consumer")),
            _ => Ok(()),
        }
    }

    /// Starts a consumer that was added: it can now take messages.
    pub(crate) fn start(&mut self, work: &mut Work, queues: &mut Queues, index: usize, new: NewConsumer) {
        let (channel, queue) = (self.consumers[index].channel, self.consumers[index].queue);
        self.table.insert((channel, new.tag.as_str()), index, self.consumers.touched());
        let record = &mut self.consumers[index];
        record.prefetch_count = self.channels[channel.index()].prefetch_count;
        (record.tag, record.priority) = (new.tag, new.priority);
        (record.no_ack, record.exclusive) = (new.no_ack, new.exclusive);
        queues.records_mut().queue_consumers_mut(queue).has_exclusive |= new.exclusive;
        self.enter_queue(work, queues, index);
        self.make_eligible(work, queues, index);
    }

    /// Puts a consumer on its queue's list. In a queue with a single active consumer, the active one stays
    /// the first. The others are behind it by priority, in the order in which they will become active.
    fn enter_queue(&mut self, work: &mut Work, queues: &mut Queues, index: usize) {
        let queue_consumers = queues.records_mut().queue_consumers_mut(self.consumers[index].queue);
        let mut after = queue_consumers.all.back();
        if let Some(active) = queue_consumers.single_active() {
            let priority = self.consumers[index].priority;
            while let Some(other) = after.filter(|&other| other != active) {
                if self.consumers[other].priority >= priority {
                    break;
                }
                work.charge(1);
                after = List::before(&self.consumers, other, |consumer| &consumer.queue_links);
            }
        }
        queue_consumers
            .all
            .insert_after(&mut self.consumers, after, index, |consumer| &mut consumer.queue_links);
    }

    /// Ends a consumer. Returns its queue if the consumer was active.
    pub(crate) fn end(&mut self, work: &mut Work, queues: &mut Queues, index: usize) -> Option<QueueId> {
        if self.consumers[index].state != ConsumerState::Active {
            return None;
        }
        self.leave_eligible(queues, index);
        self.leave_paused(index);
        let consumer = &mut self.consumers[index];
        consumer.state = ConsumerState::Cancelled;
        let (queue, channel, exclusive) = (consumer.queue, consumer.channel, consumer.exclusive);
        self.table.remove((channel, self.consumers[index].tag.as_str()), index);
        let queue_consumers = queues.records_mut().queue_consumers_mut(queue);
        queue_consumers.all.remove(&mut self.consumers, index, |consumer| &mut consumer.queue_links);
        queue_consumers.has_exclusive &= !exclusive;
        if let Some(next) = queue_consumers.single_active() {
            self.make_eligible(work, queues, next);
        }
        Some(queue)
    }

    /// Frees the record of an ended consumer if no delivery or notification refers to it. Returns its queue
    /// if the consumer was marked as requeueing: the caller ends the queue's blocking job.
    pub(crate) fn free_if_done(&mut self, quota: &mut Quota, index: usize) -> Option<QueueId> {
        // The record may have been freed already: callers also check consumers that they do not refer to any
        // more.
        let consumer = self.consumers.get(index)?;
        if consumer.unsettled > 0 || consumer.state == ConsumerState::Active || consumer.needs_cancel_notice {
            return None;
        }
        let channel = consumer.channel;
        let list = &mut self.channels[channel.index()].consumers;
        list.remove(&mut self.consumers, index, |consumer| &mut consumer.channel_links);
        let consumer = self.consumers.remove(index);
        quota.give_back(self.connection_of(channel), Pool::Consumers);
        consumer.is_requeueing.then_some(consumer.queue)
    }

    /// Returns the first consumer of a channel, or the one behind `after`. Includes cancelled ones with
    /// unsettled deliveries and the records for `basic.get`s.
    pub(crate) fn next_of_channel(&self, channel: ChannelId, after: Option<usize>) -> Option<usize> {
        match after {
            None => self.channels[channel.index()].consumers.front(),
            Some(index) => List::after(&self.consumers, index, |consumer| &consumer.channel_links),
        }
    }

    /// Returns the number of active consumers of a channel.
    pub(crate) fn active_on(&self, channel: ChannelId) -> u32 {
        let (mut count, mut at) = (0, self.next_of_channel(channel, None));
        while let Some(index) = at {
            count += u32::from(self.consumers[index].state == ConsumerState::Active);
            at = self.next_of_channel(channel, Some(index));
        }
        count
    }

    // ---- consumers cancelled by the broker

    /// Puts an ended consumer, whose queue is deleted, on the list of those for which the client must get a
    /// `basic.cancel`.
    pub(crate) fn note_cancelled(&mut self, index: usize) {
        let connection = self.connection_of(self.consumers[index].channel);
        let record = &mut self.connections[connection.index()];
        if !record.is_closed() {
            record.cancelled.push_back(&mut self.consumers, index, |consumer| &mut consumer.connection_links);
            self.consumers[index].needs_cancel_notice = true;
            self.note_output(connection);
        }
    }

    /// Returns the consumer of a channel with this tag that the broker has ended and whose client has not
    /// been notified yet.
    pub(crate) fn find_cancelled(&self, channel: ChannelId, tag: &str) -> Option<usize> {
        let connection = self.connection_of(channel);
        let mut at = self.connections[connection.index()].cancelled.front();
        while let Some(index) = at {
            if self.consumers[index].channel == channel && self.consumers[index].tag == tag {
                return Some(index);
            }
            at = List::after(&self.consumers, index, |consumer| &consumer.connection_links);
        }
        None
    }

    /// Returns the first consumer of a connection for which the client must get a `basic.cancel`.
    pub(crate) fn first_cancelled(&self, connection: ConnectionId) -> Option<usize> {
        self.connections.get(connection.index())?.cancelled.front()
    }

    /// Returns the next `basic.cancel` that the client must get: channel number, consumer tag, and the
    /// position of the method among the connection's deliveries.
    pub(crate) fn next_cancelled(&self, connection: ConnectionId) -> Option<(u16, &str, ReplyOrder)> {
        let consumer = &self.consumers[self.first_cancelled(connection)?];
        let order = self.reply_order(connection, Some(consumer.channel));
        Some((self.channels[consumer.channel.index()].number, &consumer.tag, order))
    }

    /// Removes a consumer from the list of those for which the client must get a `basic.cancel`.
    pub(crate) fn leave_cancelled(&mut self, index: usize) {
        if core::mem::take(&mut self.consumers[index].needs_cancel_notice) {
            let connection = self.connection_of(self.consumers[index].channel);
            let list = &mut self.connections[connection.index()].cancelled;
            list.remove(&mut self.consumers, index, |consumer| &mut consumer.connection_links);
        }
    }

    // ---- messages being requeued

    /// Marks the consumers of a channel before a job requeues their messages. Their queues deliver nothing
    /// until the job is done, because the first message that is requeued need not be the oldest one.
    pub(crate) fn mark_requeueing(&mut self, queues: &mut Queues, channel: ChannelId) {
        let mut at = self.channels[channel.index()].consumers.front();
        while let Some(index) = at {
            let consumer = &mut self.consumers[index];
            if consumer.unsettled > 0 && !consumer.is_requeueing {
                consumer.is_requeueing = true;
                queues.records_mut().begin_blocking_job(consumer.queue);
            }
            at = List::after(&self.consumers, index, |consumer| &consumer.channel_links);
        }
    }

    /// Notes that the messages of a consumer are requeued. Returns its queue if the consumer was marked as
    /// requeueing: the caller ends the queue's blocking job.
    pub(crate) fn take_requeueing(&mut self, index: usize) -> Option<QueueId> {
        let consumer = &mut self.consumers[index];
        core::mem::take(&mut consumer.is_requeueing).then_some(consumer.queue)
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
        quota.check_share(connection, Pool::Channels, self.channels.free_count())?;
        let Ok(index) = self.channels.insert(Channel::new(number, connection, vhost)) else {
            return Err(Fault::new(
                ReplyCode::ResourceError,
                format_args!(
                    "this broker has no memory for another channel: close some, or raise memory_limit"
                ),
            ));
        };
        quota.take(connection, Pool::Channels);
        let list = &mut self.connections[connection.index()].channels;
        list.push_back(&mut self.channels, index, |channel| &mut channel.links);
        Ok(ChannelId::from_index(index))
    }

    /// Frees the record of a closed channel if no delivery or consumer refers to it.
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
        if record.state != ConnectionState::Done {
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

    /// Removes a deleted user from the identities of all connections: they have no permissions any more.
    pub(crate) fn forget_user(&mut self, user: usize) {
        for connection in self.connection_ids() {
            self.connections[connection.index()].identity.forget_user(user);
        }
    }

    /// Requests that the event loop close a connection with this fault.
    pub(crate) fn force_close(&mut self, connection: ConnectionId, fault: Fault) {
        let Some(record) = self.connections.get_mut(connection.index()) else { return };
        if record.forced.is_none() && !record.is_closed() {
            record.forced = Some(fault);
            self.forced.push_back(connection);
        }
    }

    /// Requests that the event loop close all connections for which `is_selected` is true, with code 320 and this reason.
    pub(crate) fn force_close_all(&mut self, reason: &str, is_selected: impl Fn(&Connection) -> bool) {
        for connection in self.connection_ids() {
            if is_selected(self.connection(connection)) {
                self.force_close(connection, forced(reason));
            }
        }
    }

    /// Returns the next connection that must be closed by force, and the fault for its client.
    pub(crate) fn next_forced(&mut self) -> Option<(ConnectionId, Fault)> {
        loop {
            let connection = self.forced.pop_front()?;
            let record = self.connections.get_mut(connection.index());
            if let Some(fault) = record.and_then(|record| record.forced.take()) {
                return Some((connection, fault));
            }
        }
    }

    /// Returns whether any connection must be closed by force.
    pub(crate) fn has_forced(&self) -> bool {
        !self.forced.is_empty()
    }
}
