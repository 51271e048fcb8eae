//! Delivers messages from queues to the outboxes of connections, and from there to the socket.
//!
//! [`Broker::deliver`] makes a bounded number of deliveries. Of the eligible consumers of a queue, those with
//! the highest priority get its messages in turn. A consumer is eligible while it has credit and its connection
//! can take messages. A consumer that is not eligible is not on the list of its queue and takes no time in a
//! delivery.
//!
//! The reply to a `basic.get` is normally returned at once. If the first message cannot be delivered yet, or
//! the outbox is full, the get is put on a list and retried, and the connection waits for the reply.
//!
//! An expired message is not delivered, except to a consumer in the turn in which the message arrived.
//!
//! # Invariants
//! - A message that was taken out of a queue for a delivery is in exactly one delivery record until it is
//!   settled or back in the queue.
//! - The bytes in an outbox exceed the output budget (`output_buffer_bytes`) by at most a few messages. A
//!   client that does not read therefore occupies a bounded amount of memory.

use leveret_core::batch::Batch;
use leveret_core::command::{
    ChannelId, ConnectionId, Delivery, DeliveryKind, GetAnswer, MatchedSubscription, Outbox, QueueId,
    ReplyOrder, SubscriptionDelivery,
};
use leveret_core::error::{Fault, ReplyCode, no_memory_for};
use leveret_core::mem::Messages;
use leveret_queues::{DeliveryMethod, ExpiryGrace, Front, Getting, NewDelivery, Rank, Taken};
use leveret_storage::PendingWrites;

use super::clients::ConsumerState;
use super::job::Job;
use super::republish::{ExpiryResult, TrimTurn};
use super::{Broker, Context};
use crate::counters::count_up;

/// Number of deliveries that a queue makes before the next queue has its turn.
const QUEUE_BURST: u32 = 64;
/// Maximum number of deliveries made before a command (see `catch_up`): about the number of publishes in one
/// read of a socket.
const CATCH_UP_MAX: u32 = 1024;
/// Units of work that count as much as one delivery.
const UNITS_PER_DELIVERY: u32 = 8;

/// A connection's outbox, read from the front.
pub struct OutboxView<'b> {
    pub(crate) broker: &'b Broker,
    pub(crate) at: Option<usize>,
}

impl Outbox for OutboxView<'_> {
    fn peek(&self) -> Option<Delivery<'_>> {
        let delivery = &self.broker.queues.deliveries()[self.at?];
        let kind = match delivery.method {
            DeliveryMethod::Get(message_count) => DeliveryKind::GetOk { message_count },
            DeliveryMethod::Return => DeliveryKind::Return(ReplyCode::NoRoute),
            DeliveryMethod::Publish(delivery) => DeliveryKind::Publish(delivery),
            DeliveryMethod::Deliver => {
                let consumer = delivery.consumer?;
                DeliveryKind::Deliver { consumer_tag: &self.broker.clients.consumer(consumer.index()).tag }
            }
        };
        let channel = self.broker.clients.channel(delivery.channel);
        let batch = match delivery.method {
            DeliveryMethod::Publish(SubscriptionDelivery::ExactlyOnce(packet_id)) => {
                self.broker.packet_batch(channel.connection, packet_id)
            }
            _ => Batch::NONE,
        };
        Some(Delivery {
            sequence: delivery.sequence,
            channel: channel.number,
            kind,
            delivery_tag: delivery.tag,
            redelivered: delivery.redelivered,
            delivery_count: self.broker.queues.delivery_count(delivery),
            message: delivery.message?,
            is_withdrawn: delivery.is_withdrawn,
            batch,
        })
    }

    #[inline]
    fn advance(&mut self) {
        self.at = self.at.and_then(|at| self.broker.queues.deliveries().next_in_outbox(at));
    }

    fn matched_subscriptions<'m>(
        &'m self,
        messages: &'m Messages,
    ) -> impl Iterator<Item = MatchedSubscription> {
        let broker = self.broker;
        let delivery = self.at.map(|at| &broker.queues.deliveries()[at]);
        let delivery = delivery.and_then(|delivery| Some((delivery.channel, delivery.message?)));
        delivery.into_iter().flat_map(move |(channel, message)| {
            let connection = broker.clients.connection_of(channel);
            let key = core::str::from_utf8(messages.routing_key(message)).unwrap_or_default();
            broker.matched_subscriptions(connection, key)
        })
    }
}

impl Broker {
    /// Delivers at most `most` messages, after removing messages that are expired or over a length limit.
    pub fn deliver(&mut self, cx: &mut Context<'_>, most: u32) {
        self.queues.records_mut().write_requeue_counts(cx.pending_writes, &self.access);
        self.clients.recheck_over_share(cx.work, &mut self.queues, &self.quota);
        self.expire_and_trim(cx);
        self.serve_gets(cx);
        self.retained.write_due(cx.pending_writes, &self.access, false);
        self.publish_due_wills(cx);
        self.continue_replays(cx);
        let mut left = most;
        while left > 0 {
            let Some(queue) = self.queues.records_mut().pop_ready() else { break };
            left -= self.deliver_burst(cx, queue, left.min(self.burst(queue)));
            self.queues.records().charge_walked_levels(cx.work);
            left = left.saturating_sub(cx.work.take() / UNITS_PER_DELIVERY);
        }
        // After the deliveries, because these let clients catch up.
        if self.queues.has_slow_clients() {
            self.check_pace(cx);
        }
    }

    /// Removes messages that are expired, rejected or over a length limit, and deletes expired queues.
    fn expire_and_trim(&mut self, cx: &mut Context<'_>) {
        let mut turn = TrimTurn::new();
        while let Some(expired_queue) = self.republisher().expire_and_trim(cx, &mut turn) {
            self.retire_queue(cx, expired_queue);
            self.jobs.begin(Job::Queue(expired_queue));
        }
        while let Some(queue) = self.republish.next_maybe_unreferenced() {
            self.free_queue_if_done(queue);
        }
    }

    /// Returns whether any queue has messages to remove, or retained messages to get, and may be able to do so now.
    pub fn may_expire_or_trim(&self, pending_writes: &PendingWrites, messages: &Messages) -> bool {
        let capacity_freed =
            || self.capacity_freed() + pending_writes.capacity_freed() + messages.capacity_freed();
        self.queues.may_expire_or_trim(pending_writes, capacity_freed)
            || self.may_replay(capacity_freed)
            || self.queues.has_slow_clients() && self.queues.has_pace_changes(pending_writes.time_ms())
    }

    /// Returns how many deliveries a queue makes before the next queue's turn.
    ///
    /// That is 1 if the queue's next consumer shares a prefetch with its channel's other consumers, so that
    /// those of other queues get messages too.
    #[inline]
    fn burst(&self, queue: QueueId) -> u32 {
        let next = self.queues.records().queue_consumers(queue).next();
        match next.is_some_and(|index| self.clients.shares_credit(self.clients.consumer(index).channel)) {
            true => 1,
            false => QUEUE_BURST,
        }
    }

    /// Delivers at most `most` messages from a queue that was removed from the ready list.
    #[inline]
    fn deliver_burst(&mut self, cx: &mut Context<'_>, queue: QueueId, most: u32) -> u32 {
        let delivered = self.deliver_from(cx, queue, most);
        let record = self.queues.at(queue);
        if let Some(session) = record.session() {
            self.write_due_deliveries(cx, session);
            self.refill_retained(cx, session);
        }
        let record = self.queues.at(queue);
        if record.has_rules() {
            // Messages over the length limit stay while a ready consumer will get them: in the next turn if
            // this burst made `most` deliveries, or after the sync or read for which the first message waits. A
            // queue that is far over its limit is trimmed nevertheless.
            let first = self.queues.at(self.queues.records().first_level(queue));
            let may_trim =
                !record.queue_consumers.is_ready() || delivered < most && first.front != Front::Blocked;
            if may_trim || self.queues.is_far_over_length(queue) {
                self.republisher().enforce_limits(cx, queue);
            }
        }
        if self.queues.at(queue).rank != Rank::Plain {
            self.queues.examine_first_level(queue);
        }
        self.queues.records_mut().wake(queue);
        delivered
    }

    /// Before a command that sees or changes the messages of a queue, makes the deliveries of that queue that
    /// are possible now.
    ///
    /// All other deliveries are made at the end of a turn. Without this, a purge or `basic.get` could take a
    /// message for which a consumer was ready when the message arrived; in RabbitMQ that consumer gets it.
    /// While a group of changes is open (`tx.commit`), no deliveries are made.
    #[inline]
    pub(crate) fn catch_up(&mut self, cx: &mut Context<'_>, queue: QueueId) {
        if self.queues.records().is_any_ready() && !cx.pending_writes.is_grouping() {
            self.deliver_before_command(cx, queue);
        }
    }

    #[cold]
    fn deliver_before_command(&mut self, cx: &mut Context<'_>, queue: QueueId) {
        let queue = self.queues.records().queue_of_level(queue);
        if !self.queues.records_mut().leave_ready(queue) {
            return;
        }
        let delivered = self.deliver_burst(cx, queue, CATCH_UP_MAX);
        cx.work.charge((delivered * UNITS_PER_DELIVERY) as usize);
    }

    /// Calls [`Self::catch_up`] for the queues of all consumers of a channel.
    pub(crate) fn catch_up_channel(&mut self, cx: &mut Context<'_>, channel: ChannelId) {
        // A consumer that received a message moves to the end of the channel's list. `left` prevents that it
        // is processed again.
        let mut at = self.clients.next_of_channel(channel, None);
        let mut left = self.clients.channel(channel).consumers.len();
        while let Some(index) = at.filter(|_| left > 0 && self.queues.records().is_any_ready()) {
            left -= 1;
            at = self.clients.next_of_channel(channel, Some(index));
            cx.work.charge(1);
            // A cancelled consumer without unsettled deliveries may refer to a deleted queue until its client
            // is notified.
            let consumer = self.clients.consumer(index);
            if !consumer.needs_cancel_notice || consumer.unsettled > 0 {
                self.catch_up(cx, consumer.queue);
            }
        }
    }

    fn deliver_from(&mut self, cx: &mut Context<'_>, queue: QueueId, most: u32) -> u32 {
        let (mut delivered, units_before) = (0, cx.work.units());
        while delivered < most {
            let Some(level) = self.queues.records().wanted_level(queue) else { break };
            let Some(consumer) = self.queues.records().queue_consumers(queue).next() else {
                panic!("a queue with a level to deliver from has an eligible consumer");
            };
            if !self.clients.has_credit(consumer) {
                // Other consumers of the channel used up the shared prefetch.
                cx.work.charge(1);
                self.clients.leave_eligible(&mut self.queues, consumer);
                continue;
            }
            if !self.clients.connection_can_take(&self.queues, &self.quota, consumer) {
                self.clients.pause_consumer(&mut self.queues, &self.quota, consumer);
                continue;
            }
            if self.queues.at(level).settings.may_expire {
                let is_clear = self.republisher().expire_before_delivery(cx, level, ExpiryGrace::OneTurn)
                    == ExpiryResult::Done;
                // Removing expired messages counts as work, so the messages behind them may have to wait for
                // the next turn.
                let units = cx.work.units() - units_before;
                if !is_clear || delivered + units / UNITS_PER_DELIVERY >= most {
                    break;
                }
                // All messages of a level may have expired.
                if self.queues.records().wanted_level(queue) != Some(level) {
                    continue;
                }
            }
            let Some(first) = self.queues.first_deliverable(cx, level) else { break };
            let taken = self.queues.take_first(cx, level, first);
            self.assign(cx, consumer, level, &taken);
            delivered += 1;
        }
        delivered
    }

    fn assign(&mut self, cx: &mut Context<'_>, index: usize, queue: QueueId, taken: &Taken) {
        self.queues.note_delivery(cx, queue, taken);
        let method = match self.queues.at(queue).session() {
            None => DeliveryMethod::Deliver,
            Some(session) => DeliveryMethod::Publish(self.subscription_delivery(cx, session, queue, taken)),
        };
        let channel = self.put_taken_into_outbox(cx, index, queue, taken, method);
        self.clients.end_consumer_turn(cx.work, &mut self.queues, index);
        if self.firehose.is_on {
            self.republisher().trace_delivered(cx, channel, taken.message, queue, taken.redelivered);
        }
    }

    /// Puts a message that was taken out of a queue into the outbox. `index` is the consumer, or the consumer
    /// record of a `basic.get`. Returns the channel.
    pub(crate) fn put_taken_into_outbox(
        &mut self,
        cx: &mut Context<'_>,
        index: usize,
        queue: QueueId,
        taken: &Taken,
        method: DeliveryMethod,
    ) -> ChannelId {
        let new = self.clients.next_delivery(index, queue, taken, method);
        let channel = new.channel;
        self.put_into_outbox(cx.messages, new);
        channel
    }

    /// Appends a delivery to its connection's outbox. The caller has checked the capacity of the pool.
    #[inline]
    pub(crate) fn put_into_outbox(&mut self, messages: &Messages, new: NewDelivery) {
        let (queues, quota, ack_timeout) = (&mut self.queues, &mut self.quota, &mut self.ack_timeout);
        self.clients.put_into_outbox(messages, queues, quota, new, || ack_timeout.note_activity());
    }

    /// Returns whether the connection's share and the pool have capacity for one more delivery.
    #[inline]
    pub(crate) fn may_take_delivery(&self, connection: ConnectionId) -> bool {
        self.quota.may_take_delivery(connection, self.queues.deliveries().free_count())
    }

    /// Returns the outbox of a connection, from the front.
    pub fn outbox(&self, connection: ConnectionId) -> OutboxView<'_> {
        let at = self.clients.connection(connection).outbox.front();
        OutboxView { broker: self, at }
    }

    /// Removes the first `count` deliveries from the outbox. They were written; if `is_first_dropped`, all but
    /// the first, whose channel is closed.
    ///
    /// `takes_more` is whether the socket can take more output.
    #[inline]
    pub fn written(
        &mut self,
        cx: &mut Context<'_>,
        connection: ConnectionId,
        count: u32,
        is_first_dropped: bool,
        takes_more: bool,
    ) {
        if is_first_dropped {
            self.drop_first(cx, connection);
        }
        self.sent(cx, connection, count - u32::from(is_first_dropped));
        self.set_writable(cx, connection, takes_more);
    }

    /// Removes the first delivery of the outbox, which was not written because its channel is closed. Its
    /// message is requeued, even with automatic acknowledgement.
    fn drop_first(&mut self, cx: &mut Context<'_>, connection: ConnectionId) {
        let Some(index) = self.clients.connection(connection).outbox.front() else {
            panic!("the caller counted a delivery that is not in the outbox");
        };
        self.clients.leave_outbox(&mut self.queues, connection, index);
        let channel = self.queues.deliveries()[index].channel;
        self.abandon_unsent(cx, index);
        self.clients.free_channel_if_done(&mut self.quota, channel);
        self.queues.note_release();
        self.clients.resume_consumers(cx.work, &mut self.queues, &self.quota, connection);
    }

    /// Notes that the first `count` deliveries of the outbox are completely written.
    #[inline]
    pub fn sent(&mut self, cx: &mut Context<'_>, connection: ConnectionId, count: u32) {
        for _ in 0..count {
            let Some(index) = self.clients.connection(connection).outbox.front() else {
                panic!("the caller counted a delivery that is not in the outbox");
            };
            self.clients.leave_outbox(&mut self.queues, connection, index);
            self.queues.deliveries_mut()[index].is_sent = true;
            let delivery = &self.queues.deliveries()[index];
            let channel = delivery.channel;
            if delivery.method != DeliveryMethod::Return {
                let record = self.clients.channel_mut(channel);
                record.last_sent = delivery.tag;
                if delivery.redelivered {
                    count_up(&mut record.counters.redelivered);
                }
                let counters = &mut self.counters;
                counters.redelivered += u64::from(delivery.redelivered);
                match (delivery.method, delivery.no_ack) {
                    (DeliveryMethod::Publish(SubscriptionDelivery::Skip), _) => {}
                    (DeliveryMethod::Deliver | DeliveryMethod::Publish(_), false) => {
                        counters.delivered_manual += 1;
                        count_up(&mut record.counters.delivered_manual);
                    }
                    (DeliveryMethod::Deliver | DeliveryMethod::Publish(_), true) => {
                        counters.delivered_auto += 1;
                        count_up(&mut record.counters.delivered_auto);
                    }
                    (_, false) => {
                        counters.get_manual += 1;
                        count_up(&mut record.counters.get_manual);
                    }
                    (_, true) => {
                        counters.get_auto += 1;
                        count_up(&mut record.counters.get_auto);
                    }
                }
            }
            if delivery.is_detached && !delivery.no_ack {
                self.requeue_delivery(cx, index);
            } else if delivery.no_ack {
                self.finish_delivery(cx, index);
            } else {
                self.queues.deliveries_mut().allow_eviction(index);
            }
            self.clients.free_channel_if_done(&mut self.quota, channel);
        }
        if count > 0 {
            self.queues.note_release();
            self.queues.gets_mut().note_change();
            self.clients.resume_consumers(cx.work, &mut self.queues, &self.quota, connection);
        }
    }

    /// Returns whether the connection has deliveries or `basic.cancel` notifications to send.
    pub fn has_output(&self, connection: ConnectionId) -> bool {
        self.clients.has_output(connection)
    }

    /// Returns the sequence number of the last delivery put into the connection's outbox; 0 before the first.
    #[inline]
    pub fn last_delivery(&self, connection: ConnectionId) -> ReplyOrder {
        self.clients.connection(connection).sequence
    }

    /// Returns a consumer that could take a message but is on no list, which is a fault of the broker: it
    /// would never get a message.
    #[cfg(debug_assertions)]
    pub fn forgotten_consumer(&self) -> Option<usize> {
        self.clients.forgotten_consumer(&self.queues)
    }

    /// Sets whether the socket can take more output. While it cannot, no consumer of the connection gets
    /// messages.
    pub fn set_writable(&mut self, cx: &mut Context<'_>, connection: ConnectionId, writable: bool) {
        self.clients.set_writable(cx.work, &mut self.queues, &self.quota, connection, writable);
    }

    /// Handles `basic.get`.
    pub(crate) fn get(
        &mut self,
        cx: &mut Context<'_>,
        channel: ChannelId,
        queue: QueueId,
        no_ack: bool,
    ) -> Result<GetAnswer, Fault> {
        match self.get_now(cx, channel, queue, no_ack)? {
            Some(true) => Ok(GetAnswer::Queued),
            Some(false) => Ok(GetAnswer::Empty),
            None => {
                let connection = self.clients.connection_of(channel);
                self.clients.connection_mut(connection).jobs += 1;
                let serial = self.queues.at(queue).serial;
                let outcome = None;
                self.queues.gets_mut().push(Getting { connection, channel, queue, serial, no_ack, outcome });
                Ok(GetAnswer::Later)
            }
        }
    }

    /// Gets the first message of a queue. Returns whether there was one; `None` if the get must wait, because
    /// the message cannot be delivered yet or the outbox is full.
    fn get_now(
        &mut self,
        cx: &mut Context<'_>,
        channel: ChannelId,
        queue: QueueId,
        no_ack: bool,
    ) -> Result<Option<bool>, Fault> {
        let connection = self.clients.connection_of(channel);
        let level = match self.expire_before_get(cx, queue) {
            (ExpiryResult::Done, level) => level,
            (ExpiryResult::More, _) => return Ok(None),
            // An expired message is not delivered. The get does not wait until it is dead-lettered, because
            // that may need capacity that only this client can free.
            (ExpiryResult::Blocked, _) => return Ok(Some(false)),
        };
        let (queue_record, record) = (self.queues.at(queue), self.queues.at(level));
        if (queue_record.blocking_jobs > 0 || record.blocking_jobs > 0) && !queue_record.is_deleted() {
            return Ok(None);
        }
        if record.backlog.ready() == 0 || queue_record.is_deleted() {
            self.counters.get_empty += 1;
            count_up(&mut self.clients.channel_mut(channel).counters.get_empty);
            return Ok(Some(false));
        }
        let owner = self.clients.connection(connection);
        let is_crowded = self.clients.is_output_full(connection, 1);
        if is_crowded || !self.may_take_delivery(connection) {
            // Deliveries in the outbox may free capacity when they are written. With an empty outbox only the
            // client's own acknowledgements can free capacity, so waiting would be endless.
            return if owner.outbox.is_empty() {
                Err(no_memory_for("another unacknowledged delivery"))
            } else {
                Ok(None)
            };
        }
        let Some(first) = self.queues.first_deliverable(cx, level) else { return Ok(None) };
        let stand_in = self.get_record(channel, queue, no_ack)?;
        let taken = self.queues.take_first(cx, level, first);
        self.queues.note_delivery(cx, level, &taken);
        let behind = self.queues.records().first_level(queue);
        if self.queues.at(behind).settings.may_expire {
            self.republisher().expire_behind(cx, behind);
        }
        // If the level lost its last message, another level is the first one now, and its first message may
        // be deliverable at once.
        if self.queues.records().first_level(queue) != level {
            self.queues.records_mut().wake(queue);
        }
        let left = self.queues.records().ready_in(queue);
        let channel = self.put_taken_into_outbox(cx, stand_in, level, &taken, DeliveryMethod::Get(left));
        if self.firehose.is_on {
            self.republisher().trace_delivered(cx, channel, taken.message, level, taken.redelivered);
        }
        Ok(Some(true))
    }

    /// Removes expired messages at the front of a queue before a get. Returns the result, and the level that
    /// has the first message.
    fn expire_before_get(&mut self, cx: &mut Context<'_>, queue: QueueId) -> (ExpiryResult, QueueId) {
        if self.queues.at(queue).has_expiry() {
            self.queues.touch_queue(cx.pending_writes, queue);
        }
        loop {
            let level = self.queues.records().first_level(queue);
            if !self.queues.at(level).settings.may_expire {
                return (ExpiryResult::Done, level);
            }
            let cleared = self.republisher().expire_before_delivery(cx, level, ExpiryGrace::No);
            if cleared != ExpiryResult::Done || self.queues.records().first_level(queue) == level {
                return (cleared, level);
            }
            self.queues.records_mut().wake(queue);
        }
    }

    /// Retries the waiting gets whose queue may have a message for them now.
    pub(crate) fn serve_gets(&mut self, cx: &mut Context<'_>) {
        self.queues.gets_mut().take_due();
        for at in 0..self.queues.gets().waiter_count() {
            let Getting { connection, channel, queue, serial, no_ack, ref outcome } =
                *self.queues.gets_mut().at(at);
            if outcome.is_some() {
                continue;
            }
            let is_over = self.clients.find_channel(channel).is_none_or(|record| record.is_closed());
            let is_gone =
                self.queues.records().get(queue.index()).is_none_or(|record| record.serial != serial);
            let result = match () {
                () if is_over || is_gone => Ok(Some(false)),
                () if self.queues.cannot_get_yet(queue) => Ok(None),
                () => self.get_now(cx, channel, queue, no_ack),
            };
            if let Some(outcome) = result.transpose() {
                self.queues.gets_mut().at(at).outcome = Some(outcome);
                self.clients.connection_mut(connection).jobs -= 1;
            }
        }
    }

    /// Returns the answer to the connection's waiting `basic.get` (for which [`GetAnswer::Later`] was returned), and its
    /// position among the deliveries; `None` while it must wait. Called when the connection is not busy any more.
    pub fn take_late_get(
        &mut self,
        connection: ConnectionId,
    ) -> Option<(Result<GetAnswer, Fault>, ReplyOrder)> {
        let getting =
            self.queues.gets_mut().remove(|get| get.connection == connection && get.outcome.is_some())?;
        let has_delivery = getting.outcome?;
        let answer =
            has_delivery.map(|is_queued| if is_queued { GetAnswer::Queued } else { GetAnswer::Empty });
        Some((answer, self.clients.reply_order(connection, Some(getting.channel))))
    }

    /// Returns the consumer record for this channel's `basic.get`s from this queue; adds it if there is none.
    fn get_record(&mut self, channel: ChannelId, queue: QueueId, no_ack: bool) -> Result<usize, Fault> {
        let mut at = self.clients.next_of_channel(channel, None);
        while let Some(index) = at {
            let consumer = self.clients.consumer(index);
            if consumer.state == ConsumerState::Get && consumer.queue == queue {
                break;
            }
            at = self.clients.next_of_channel(channel, Some(index));
        }
        let index = match at {
            Some(index) => index,
            None => self.clients.add(&mut self.quota, channel, queue, ConsumerState::Get)?,
        };
        self.clients.consumer_mut(index).no_ack = no_ack;
        Ok(index)
    }
}
