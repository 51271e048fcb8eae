//! Messages go out: from queues to the outboxes of connections, and from there to the socket.
//!
//! A deliver pass is bounded. Each queue hands its messages round its eligible consumers, one each, highest
//! priority first; a consumer whose connection or credit is used up leaves the eligible list and costs
//! nothing until that changes.
//!
//! Always true: a message that left its queue is in exactly one delivery record; an outbox never holds much
//! more than the output budget, so a peer that does not read pins a bounded number of messages.

use crate::command::{ChannelId, ConnectionId, Delivery, DeliveryKind, Outbox, QueueId, ReplyOrder};
use crate::error::ReplyCode;
use crate::mem::{List, Messages};

use super::queues::Patience;
use super::queues::Rank;
use super::queues::Taken;
use super::queues::block_bytes;
use super::queues::{Carrier, NewDelivery};
use super::records::{Consumer, ConsumerState};
use super::shed::Cleared;
use super::{Broker, Context};

/// Deliveries a queue makes before the next queue has its turn.
const QUEUE_BURST: u32 = 64;
/// Deliveries that a command may have to wait for: about as many as there are messages in one read.
const CATCH_UP_MAX: u32 = 1024;
/// So many steps beside a delivery are as much work as one.
const STEPS_PER_DELIVERY: u32 = 8;
/// What the frames around a small body cost on the wire, roughly.
const FRAMES_BYTES: u32 = 48;

impl Broker {
    /// Hands out at most `most` messages, and lets queues give up what they have to.
    pub fn deliver(&mut self, cx: &mut Context<'_>, most: u32) {
        self.queues.write_returns(cx.journal, &self.access);
        self.recheck_over_share(cx);
        self.shed(cx);
        self.serve_gets(cx);
        let mut left = most;
        while left > 0 {
            let Some(queue) = self.queues.pop_ready() else { return };
            left -= self.take_its_turn(cx, queue, left.min(self.burst(queue)));
            self.queues.charge_levels(cx.work);
            left = left.saturating_sub(cx.work.take() / STEPS_PER_DELIVERY);
        }
    }

    /// Deliveries that a queue makes before the next queue's turn: one, when the credit is that of a whole channel, whose other
    /// consumers are to have theirs of it.
    #[inline]
    fn burst(&self, queue: QueueId) -> u32 {
        let next = self.queues.at(queue).eligible.front();
        match next.is_some_and(|index| self.shares_credit(self.consumers[index].channel)) {
            true => 1,
            false => QUEUE_BURST,
        }
    }

    /// A queue that is off the ready list delivers at most so many.
    #[inline]
    fn take_its_turn(&mut self, cx: &mut Context<'_>, queue: QueueId, most: u32) -> u32 {
        let delivered = self.deliver_from(cx, queue, most);
        let record = self.queues.at(queue);
        if record.is_picky() {
            // What is too much for a queue whose consumer is ready for more goes to him in its next turn.
            let is_over = delivered < most || record.eligible.is_empty();
            if is_over || self.queues.is_far_over_length(queue) {
                self.look_after(cx, queue);
            }
        }
        if self.queues.at(queue).rank != Rank::Plain {
            self.queues.look_at_first_level(queue);
        }
        self.queues.wake(queue);
        delivered
    }

    /// A command is about to see, or to change, who has what of a queue. What came before while somebody was
    /// ready for it is his, as in RabbitMQ: those deliveries are made now, which else are made at the end of
    /// the turn. A commit is one thing, and comes behind them as a whole.
    #[inline]
    pub(super) fn catch_up(&mut self, cx: &mut Context<'_>, queue: QueueId) {
        if self.queues.is_any_ready() && !cx.journal.is_grouping() {
            self.deliver_before_command(cx, queue);
        }
    }

    #[cold]
    fn deliver_before_command(&mut self, cx: &mut Context<'_>, queue: QueueId) {
        let queue = self.queues.whole(queue);
        if !self.queues.leave_ready(queue) {
            return;
        }
        let delivered = self.take_its_turn(cx, queue, CATCH_UP_MAX);
        cx.work.charge((delivered * STEPS_PER_DELIVERY) as usize);
    }

    /// The same for the queues of all consumers of a channel.
    pub(super) fn catch_up_channel(&mut self, cx: &mut Context<'_>, channel: ChannelId) {
        let consumers = &self.channels[channel.index()].consumers;
        // Whoever has a message of it goes behind the others, and is not looked at again.
        let (mut at, mut left) = (consumers.front(), consumers.len());
        while let Some(index) = at.filter(|_| left > 0 && self.queues.is_any_ready()) {
            left -= 1;
            at = List::after(&self.consumers, index, |consumer| &consumer.channel_links);
            cx.work.charge(1);
            // The queue of one whose client is only to be told of its end may be gone.
            let consumer = &self.consumers[index];
            if !consumer.to_tell || consumer.unsettled > 0 {
                self.catch_up(cx, consumer.queue);
            }
        }
    }

    /// Whoever was refused for its share may try again, for something was settled since.
    fn recheck_over_share(&mut self, cx: &mut Context<'_>) {
        if !self.over_share.take_due() {
            return;
        }
        for _ in 0..self.over_share.len() {
            let Some(connection) = self.over_share.pop() else { break };
            // Its peer may have gone since.
            let Some(record) = self.connections.get_mut(connection.index()) else { continue };
            if !core::mem::take(&mut record.starves) {
                continue;
            }
            self.unpark(cx, connection);
            if !self.connection(connection).parked.is_empty() {
                self.note_share(connection);
            }
        }
    }

    /// A consumer of the connection is parked: if that is for its share, others' settlements concern it.
    fn note_share(&mut self, connection: ConnectionId) {
        let is_beyond = !self.may_take_delivery(connection);
        let record = &mut self.connections[connection.index()];
        if is_beyond && !core::mem::replace(&mut record.starves, true) {
            self.over_share.push(connection);
        }
    }

    fn deliver_from(&mut self, cx: &mut Context<'_>, queue: QueueId, most: u32) -> u32 {
        let (mut delivered, units_before) = (0, cx.work.units());
        while delivered < most {
            let Some(level) = self.queues.wanted_level(queue) else { break };
            let Some(consumer) = self.queues.at(queue).eligible.front() else {
                panic!("a queue that wants a delivery has a consumer for it");
            };
            if !self.has_credit(consumer) {
                // Others of its channel used up the credit they share.
                cx.work.charge(1);
                self.leave_eligible(consumer);
                continue;
            }
            if !self.connection_can_take(consumer) {
                let channel = self.consumers[consumer].channel;
                self.note_share(self.channels[channel.index()].connection);
                self.park(consumer);
                continue;
            }
            if self.queues.at(level).settings.may_expire {
                let is_clear = self.expire_before_delivery(cx, level, Patience::OneTurn) == Cleared::Yes;
                // What expires before others is work, too, and those behind have to wait for their turn.
                let units = cx.work.units() - units_before;
                if !is_clear || delivered + units / STEPS_PER_DELIVERY >= most {
                    break;
                }
                // All of a level may have expired.
                if self.queues.wanted_level(queue) != Some(level) {
                    continue;
                }
            }
            let Some(first) = self.queues.first_to_go(cx, level) else { break };
            let taken = self.queues.take_first(cx, level, first);
            self.assign(cx, consumer, level, &taken);
            delivered += 1;
        }
        delivered
    }

    /// Room in the output of the consumer's connection, and in its share of the deliveries.
    #[inline(always)]
    pub(super) fn connection_can_take(&self, consumer: usize) -> bool {
        let channel = &self.channels[self.consumers[consumer].channel.index()];
        let connection = self.connection(channel.connection);
        connection.writable
            && connection.outbox_bytes < self.queues.settings.output_budget_bytes
            && self.may_take_delivery(channel.connection)
    }

    fn assign(&mut self, cx: &mut Context<'_>, index: usize, queue: QueueId, taken: &Taken) {
        let consumer = &mut self.consumers[index];
        consumer.unsettled += 1;
        let (channel, no_ack) = (consumer.channel, consumer.no_ack);
        if !no_ack {
            self.channels[channel.index()].consumer_unsettled += 1;
        }
        self.queues.note_delivery(cx, queue, taken);
        let tag = self.next_tag(channel);
        self.put_into_outbox(
            cx.messages,
            NewDelivery {
                tag,
                offset: taken.offset,
                logged: taken.logged,
                message: taken.message,
                channel,
                consumer: Some(Consumer::id(index)),
                queue: Some(queue),
                carrier: Carrier::Deliver,
                redelivered: taken.redelivered,
                returns: taken.returns,
                no_ack,
            },
        );
        if self.has_credit(index) {
            self.rotate(cx, index);
        } else {
            self.leave_eligible(index);
        }
        if self.shares_credit(channel) {
            self.let_others_of_channel_first(channel, index);
        }
        if self.firehose.is_on {
            self.trace_delivered(cx, channel, taken.message, (queue, taken.redelivered));
        }
    }

    /// Whether a connection may have one delivery more.
    #[inline]
    pub(super) fn may_take_delivery(&self, connection: ConnectionId) -> bool {
        self.quota.may_take_delivery(connection, self.queues.deliveries.room())
    }

    #[inline]
    pub(super) fn next_tag(&mut self, channel: ChannelId) -> u64 {
        let record = &mut self.channels[channel.index()];
        record.last_tag += 1;
        record.last_tag
    }

    /// Puts a delivery at the end of its connection's outbox, and on its channel's list if it will be
    /// acknowledged; its queue, if it has one, counts it. The caller made sure of room in the pool.
    pub(super) fn put_into_outbox(&mut self, messages: &Messages, new: NewDelivery) {
        let channel_id = new.channel;
        let connection_id = self.channels[channel_id.index()].connection;
        let body_len = messages.body_len(new.message);
        let wire_bytes = body_len + messages.properties_len(new.message) + FRAMES_BYTES;
        self.queues.count_delivery(messages, &new);
        let connection = &mut self.connections[connection_id.index()];
        connection.sequence += 1;
        let sequence = connection.sequence;
        connection.outbox_bytes += u64::from(wire_bytes);
        let bytes = block_bytes(messages, new.message);
        self.quota.take_delivery(connection_id, bytes);
        let acknowledged = !new.no_ack;
        let index = self.queues.deliveries.insert(new, sequence, (wire_bytes, body_len));
        let index = index.expect("the caller made sure of room");
        let connection = &mut self.connections[connection_id.index()];
        self.queues.deliveries.enter_outbox(&mut connection.outbox, index);
        let channel = &mut self.channels[channel_id.index()];
        channel.outbox_len += 1;
        channel.outbox_last = sequence;
        if acknowledged {
            self.queues.deliveries[index].delivered_s = self.watch.begin();
            self.queues.deliveries.enter_unacknowledged(&mut channel.unacknowledged, index);
        }
        if connection.outbox.len() == 1 {
            self.note_output(connection_id);
        }
    }

    /// What a connection has to send, from the front.
    pub fn outbox(&self, connection: ConnectionId) -> OutboxView<'_> {
        let at = self.connection(connection).outbox.front();
        OutboxView { broker: self, at }
    }

    /// Whether the connection has deliveries to send, or ends of consumers to tell.
    pub fn has_output(&self, connection: ConnectionId) -> bool {
        let record = self.connection(connection);
        !record.outbox.is_empty() || !record.cancelled.is_empty()
    }

    /// The first delivery of the outbox has left it without being written, for its channel is closed: nobody
    /// has seen the message, so it goes back, acknowledgements or not.
    pub fn unseen(&mut self, cx: &mut Context<'_>, connection: ConnectionId) {
        let Some(index) = self.connection(connection).outbox.front() else {
            panic!("what leaves an outbox unseen was in it");
        };
        self.leave_outbox(connection, index);
        let channel = self.queues.deliveries[index].channel;
        self.abandon_unsent(cx, index);
        self.free_channel_if_done(channel);
        self.queues.note_release();
        self.unpark(cx, connection);
    }

    /// The sequence of the last delivery that was put into the connection's outbox; 0 before the first.
    #[inline]
    pub fn last_delivery(&self, connection: ConnectionId) -> ReplyOrder {
        self.connection(connection).sequence
    }

    /// The first `count` deliveries of the outbox are completely written.
    #[inline]
    pub fn sent(&mut self, cx: &mut Context<'_>, connection: ConnectionId, count: u32) {
        for _ in 0..count {
            let Some(index) = self.connection(connection).outbox.front() else {
                panic!("what was written was in the outbox");
            };
            self.leave_outbox(connection, index);
            self.queues.deliveries[index].sent = true;
            let delivery = &self.queues.deliveries[index];
            let channel = delivery.channel;
            if delivery.carrier != Carrier::Return {
                self.channels[channel.index()].last_sent = delivery.tag;
                let counters = &mut self.counters;
                counters.redelivered += u64::from(delivery.redelivered);
                match (delivery.carrier, delivery.no_ack) {
                    (Carrier::Deliver, false) => counters.delivered_manual += 1,
                    (Carrier::Deliver, true) => counters.delivered_auto += 1,
                    (_, false) => counters.get_manual += 1,
                    (_, true) => counters.get_auto += 1,
                }
            }
            if delivery.orphaned && !delivery.no_ack {
                self.give_back(cx, index);
            } else if delivery.no_ack {
                self.settle_sent(cx, index);
            } else {
                self.queues.deliveries.let_leave(index);
            }
            self.free_channel_if_done(channel);
        }
        if count > 0 {
            self.queues.note_release();
            self.queues.gets.note_change();
            self.unpark(cx, connection);
        }
    }

    /// Whether the socket takes more. While it does not, none of the connection's consumers gets messages.
    pub fn set_writable(&mut self, cx: &mut Context<'_>, connection: ConnectionId, writable: bool) {
        let record = &mut self.connections[connection.index()];
        if record.writable != writable {
            record.writable = writable;
            if writable {
                self.unpark(cx, connection);
            }
        }
    }

    /// Takes a delivery out of the outbox, written or not.
    pub(super) fn leave_outbox(&mut self, connection: ConnectionId, index: usize) {
        let delivery = &self.queues.deliveries[index];
        let (channel, bytes) = (delivery.channel, delivery.wire_bytes);
        let record = &mut self.connections[connection.index()];
        record.outbox_bytes -= u64::from(bytes);
        self.queues.deliveries.leave_outbox(&mut record.outbox, index);
        self.channels[channel.index()].outbox_len -= 1;
    }

    /// A consumer that could take a message, and is on no list on which anybody would look for one.
    #[cfg(debug_assertions)]
    pub fn forgotten_consumer(&self) -> Option<usize> {
        let is_forgotten = |index: usize, consumer: &Consumer| {
            let is_listed = consumer.eligible || consumer.parked;
            !is_listed && self.has_credit(index) && !self.queues.at(consumer.queue).keeps_waiting(index)
        };
        self.consumers.iter().find(|(index, consumer)| is_forgotten(*index, consumer)).map(|(index, _)| index)
    }

    /// Whether its prefetch limits allow the consumer another message.
    #[inline(always)]
    pub(super) fn has_credit(&self, index: usize) -> bool {
        let consumer = &self.consumers[index];
        if consumer.state != ConsumerState::Active {
            return false;
        }
        let channel = &self.channels[consumer.channel.index()];
        let own = consumer.no_ack
            || consumer.prefetch_count == 0
            || consumer.unsettled < u32::from(consumer.prefetch_count);
        // As in RabbitMQ, one that acknowledges nothing waits while the others have used it up.
        let shared = channel.global_prefetch_count == 0
            || channel.consumer_unsettled < u32::from(channel.global_prefetch_count);
        own && shared
    }

    /// Whether the consumers of the channel have a credit together.
    #[inline(always)]
    fn shares_credit(&self, channel: ChannelId) -> bool {
        self.channels[channel.index()].global_prefetch_count > 0
    }

    /// The consumer has had a message: the next credit of its channel goes to whoever waits longest.
    #[cold]
    fn let_others_of_channel_first(&mut self, channel: ChannelId, index: usize) {
        let list = &mut self.channels[channel.index()].consumers;
        list.remove(&mut self.consumers, index, |consumer| &mut consumer.channel_links);
        list.push_back(&mut self.consumers, index, |consumer| &mut consumer.channel_links);
    }

    /// How many more messages they allow it.
    pub(super) fn credit(&self, index: usize) -> u32 {
        let consumer = &self.consumers[index];
        let channel = &self.channels[consumer.channel.index()];
        let left = |used: u32, most: u16| match most {
            0 => u32::MAX,
            _ => u32::from(most).saturating_sub(used),
        };
        let shared = left(channel.consumer_unsettled, channel.global_prefetch_count);
        match consumer.no_ack {
            true if shared == 0 => 0,
            true => u32::MAX,
            false => left(consumer.unsettled, consumer.prefetch_count).min(shared),
        }
    }

    /// Puts the consumer on its queue's eligible list, behind those of its priority.
    pub(super) fn make_eligible(&mut self, cx: &mut Context<'_>, index: usize) {
        let consumer = &self.consumers[index];
        // Credit first: one that has ended has none, and its queue may be gone.
        if consumer.eligible || consumer.parked || !self.has_credit(index) {
            return;
        }
        if self.queues.at(consumer.queue).keeps_waiting(index) {
            return;
        }
        self.enter_eligible(cx, index);
        let queue = self.consumers[index].queue;
        self.queues.wake(queue);
    }

    fn enter_eligible(&mut self, cx: &mut Context<'_>, index: usize) {
        let (queue, priority) = (self.consumers[index].queue, self.consumers[index].priority);
        let eligible = &mut self.queues.at_mut(queue).eligible;
        let (mut after, mut steps) = (eligible.back(), 0);
        while let Some(other) = after {
            if self.consumers[other].priority >= priority {
                break;
            }
            steps += 1;
            after = List::before(&self.consumers, other, |consumer| &consumer.eligible_links);
        }
        eligible.insert_after(&mut self.consumers, after, index, |consumer| &mut consumer.eligible_links);
        self.consumers[index].eligible = true;
        cx.work.charge(steps);
    }

    pub(super) fn leave_eligible(&mut self, index: usize) {
        if !core::mem::take(&mut self.consumers[index].eligible) {
            return;
        }
        let queue = self.consumers[index].queue;
        let eligible = &mut self.queues.at_mut(queue).eligible;
        eligible.remove(&mut self.consumers, index, |consumer| &mut consumer.eligible_links);
    }

    /// The consumer was served: behind the others of its priority.
    fn rotate(&mut self, cx: &mut Context<'_>, index: usize) {
        let queue = self.consumers[index].queue;
        if self.queues.at(queue).eligible.len() > 1 {
            self.leave_eligible(index);
            self.enter_eligible(cx, index);
        }
    }

    fn park(&mut self, index: usize) {
        self.leave_eligible(index);
        let channel = self.consumers[index].channel;
        let connection = self.channels[channel.index()].connection;
        let record = &mut self.connections[connection.index()];
        record.parked.push_back(&mut self.consumers, index, |consumer| &mut consumer.connection_links);
        self.consumers[index].parked = true;
    }

    /// Lets the parked consumers of a connection try again.
    pub(super) fn unpark(&mut self, cx: &mut Context<'_>, connection: ConnectionId) {
        let record = self.connection(connection);
        let can_take = record.writable
            && !record.dying
            && record.outbox_bytes < self.queues.settings.output_budget_bytes
            && self.may_take_delivery(connection);
        if !can_take {
            return;
        }
        let parked = |broker: &mut Self| {
            let record = &mut broker.connections[connection.index()];
            record.parked.pop_front(&mut broker.consumers, |consumer| &mut consumer.connection_links)
        };
        while let Some(index) = parked(self) {
            self.consumers[index].parked = false;
            self.make_eligible(cx, index);
        }
    }

    pub(super) fn leave_parked(&mut self, index: usize) {
        if !core::mem::take(&mut self.consumers[index].parked) {
            return;
        }
        let channel = self.consumers[index].channel;
        let connection = self.channels[channel.index()].connection;
        let record = &mut self.connections[connection.index()];
        record.parked.remove(&mut self.consumers, index, |consumer| &mut consumer.connection_links);
    }
}

/// A connection's outbox, read from the front.
pub struct OutboxView<'b> {
    pub(super) broker: &'b Broker,
    pub(super) at: Option<usize>,
}

impl Outbox for OutboxView<'_> {
    fn peek(&self) -> Option<Delivery<'_>> {
        let delivery = &self.broker.queues.deliveries[self.at?];
        let kind = match delivery.carrier {
            Carrier::Get(message_count) => DeliveryKind::GetOk { message_count },
            Carrier::Return => DeliveryKind::Return(ReplyCode::NoRoute),
            Carrier::Deliver => {
                let consumer = delivery.consumer?;
                DeliveryKind::Deliver { consumer_tag: &self.broker.consumers[consumer.index()].tag }
            }
        };
        let channel = &self.broker.channels[delivery.channel.index()];
        Some(Delivery {
            sequence: delivery.sequence,
            channel: channel.number,
            kind,
            delivery_tag: delivery.tag,
            redelivered: delivery.redelivered,
            delivery_count: self.broker.queues.delivery_count(delivery),
            message: delivery.message?,
            is_withdrawn: channel.closing && delivery.carrier != Carrier::Return,
        })
    }

    #[inline]
    fn advance(&mut self) {
        self.at = self.at.and_then(|at| self.broker.queues.deliveries.next_in_outbox(at));
    }
}
