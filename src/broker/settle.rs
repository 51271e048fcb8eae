//! Settles deliveries, and clears closed channels, connections and deleted objects.
//!
//! This file handles acknowledgements, rejections and requeues, the end of channels and connections, and
//! deliveries and transactions that are open for too long. It also runs the jobs. One command or one lost
//! connection can cause any amount of work. This work is done in jobs, a few hundred records at a time, and
//! all other clients are served between the steps.
//!
//! # Invariants
//! - A tag is settled at most once. Only completely written deliveries can be settled, so an acknowledgement
//!   of all deliveries never includes a delivery that the client has not received.
//! - A requeued message is marked as redelivered, and precedes all messages that were never delivered.
//! - The name of a deleted object is free at once. A connection whose own command began a job is not read
//!   until the job is done.
//! - As in RabbitMQ, a channel is overdue because of its oldest delivery or an open transaction. No channel
//!   is closed early, and none more than a minute late.

use leveret_core::command::{BindingId, ChannelId, ConnectionId, ExchangeId, QueueId, Settlement};
use leveret_core::error::{Fault, ReplyCode};
use leveret_core::mem::Messages;
use leveret_core::time::{Deadline, Now};
use leveret_queues::{DeliveryMethod, Purged, QueueState, Reason, subtract_steps};

use super::clients::{Channel, ChannelState, Mode, Transaction};
use super::job::{Job, spend};
use super::{Broker, Context};
use crate::counters::count_up;

/// Maximum number of records cleared in one step of a job.
const STEP: u32 = 512;

/// Maximum number of channels examined in one turn.
const CHECK_STEP: u32 = 512;

/// A channel that must be closed because a delivery or transaction is open for too long.
#[derive(Debug)]
pub struct Overdue {
    /// The connection of the channel.
    pub connection: ConnectionId,
    /// Channel number on the wire.
    pub channel: u16,
    /// The fault for the client.
    pub fault: Fault,
}

/// Returns when the channel's open transaction last changed, in seconds since the start of the process;
/// `None` if there is no open transaction.
const fn open_since_s(channel: &Channel) -> Option<u32> {
    match &channel.mode {
        Mode::Transaction(transaction) if !transaction.is_empty() => Some(transaction.touched_s),
        _ => None,
    }
}

impl Broker {
    /// Handles `basic.ack`, `basic.nack` and `basic.reject`.
    pub(crate) fn settle(
        &mut self,
        cx: &mut Context<'_>,
        channel: ChannelId,
        tag: u64,
        multiple: bool,
        settlement: Settlement,
    ) -> Result<(), Fault> {
        if multiple && tag == 0 {
            return self.settle_through(cx, channel, u64::MAX, settlement);
        }
        let Some(index) = self.clients.find_sent(&self.queues, channel, tag) else {
            return Err(Fault::new(
                ReplyCode::PreconditionFailed,
                format_args!("unknown delivery tag {tag}"),
            ));
        };
        if multiple {
            return self.settle_through(cx, channel, tag, settlement);
        }
        if let Mode::Transaction(_) = self.clients.channel(channel).mode {
            self.decide(channel, index, settlement);
        } else {
            if settlement == Settlement::Requeue
                && let Some(queue) = self.queues.deliveries()[index].queue
            {
                self.catch_up(cx, queue);
            }
            self.clients.leave_unacknowledged(&mut self.queues, channel, index);
            self.settle_one(cx, index, settlement);
        }
        Ok(())
    }

    fn settle_through(
        &mut self,
        cx: &mut Context<'_>,
        channel: ChannelId,
        through: u64,
        settlement: Settlement,
    ) -> Result<(), Fault> {
        if let Mode::Transaction(_) = self.clients.channel(channel).mode {
            while let Some(index) = self.clients.first_sent(&self.queues, channel, through) {
                self.decide(channel, index, settlement);
            }
            return Ok(());
        }
        if settlement == Settlement::Requeue {
            self.catch_up_channel(cx, channel);
        }
        self.settle_now(channel, through, settlement);
        Ok(())
    }

    /// Handles `basic.recover`, which is never part of a transaction, whatever the channel's mode.
    pub(crate) fn recover(&mut self, channel: ChannelId) {
        self.settle_now(channel, u64::MAX, Settlement::Requeue);
    }

    /// Settles all written deliveries with tags up to `through`, in bounded steps.
    fn settle_now(&mut self, channel: ChannelId, through: u64, settlement: Settlement) {
        if settlement == Settlement::Requeue {
            self.clients.mark_requeueing(&mut self.queues, channel);
        }
        let &Channel { connection, last_sent, .. } = self.clients.channel(channel);
        // The job may take several turns, and does not include deliveries written meanwhile.
        let through = through.min(last_sent);
        self.begin_job(connection, Job::Settle { channel, through, settlement });
    }

    /// Settles a delivery, which the caller has removed from its channel's list of unacknowledged deliveries.
    pub(crate) fn settle_one(&mut self, cx: &mut Context<'_>, index: usize, settlement: Settlement) {
        match settlement {
            Settlement::Requeue => self.requeue_delivery(cx, index),
            Settlement::Reject => self.dead_letter_or_drop(cx, index, Reason::Rejected),
            Settlement::Ack => {
                self.counters.acknowledged += 1;
                let channel = self.queues.deliveries()[index].channel;
                if self.clients.find_channel(channel).is_some() {
                    count_up(&mut self.clients.channel_mut(channel).counters.acknowledged);
                }
                self.finish_delivery(cx, index);
            }
        }
    }

    /// Settles the message of a delivery, releases it, and frees the delivery record.
    pub(crate) fn finish_delivery(&mut self, cx: &mut Context<'_>, index: usize) {
        self.clients.uncount_delivery(cx.messages, &mut self.queues, &mut self.quota, index);
        let delivery = self.queues.deliveries_mut().remove(index);
        match (delivery.queue, delivery.message) {
            (Some(queue), _) => self.queues.settle_delivered(cx, queue, &delivery),
            (None, Some(message)) => cx.messages.release(message),
            (None, None) => {}
        }
        self.queues.note_release();
        self.after_uncount(cx, delivery.queue, delivery.consumer, delivery.channel);
    }

    /// Dead-letters the message of a delivery for this reason if its queue has a dead-letter exchange;
    /// otherwise settles it.
    fn dead_letter_or_drop(&mut self, cx: &mut Context<'_>, index: usize, reason: Reason) {
        let queue = self.queues.deliveries()[index].queue;
        match queue.filter(|queue| self.queues.records().has_dead_letters(*queue)) {
            Some(queue) => self.dead_letter_delivery(cx, queue, index, reason),
            None => self.finish_delivery(cx, index),
        }
    }

    /// Dead-letters the message of a delivery for this reason.
    pub(crate) fn dead_letter_delivery(
        &mut self,
        cx: &mut Context<'_>,
        queue: QueueId,
        index: usize,
        reason: Reason,
    ) {
        self.clients.uncount_delivery(cx.messages, &mut self.queues, &mut self.quota, index);
        let delivery = &self.queues.deliveries()[index];
        let (consumer, channel) = (delivery.consumer, delivery.channel);
        self.republisher().dead_letter_delivery(cx, queue, index, reason);
        self.queues.note_release();
        self.after_uncount(cx, Some(queue), consumer, channel);
    }

    /// Counts one more requeue of a delivery. Returns whether the count now exceeds the delivery limit of the
    /// queue.
    ///
    /// Requeues by a bridge are not counted: a bridge requeues messages because its link broke, not because
    /// the messages are faulty.
    fn count_requeue(&mut self, index: usize) -> bool {
        let channel = self.queues.deliveries()[index].channel;
        let connection = self.clients.connection_of(channel);
        !self.clients.connection(connection).identity.is_own() && self.queues.count_requeue_in_queue(index)
    }

    /// Requeues a delivery at its old position; dead-letters or settles it if it is over the delivery limit,
    /// or its queue is deleted.
    pub(crate) fn requeue_delivery(&mut self, cx: &mut Context<'_>, index: usize) {
        if self.count_requeue(index) {
            return self.dead_letter_or_drop(cx, index, Reason::DeliveryLimit);
        }
        let queue = self.queues.deliveries()[index].queue;
        let Some(queue) = queue.filter(|queue| !self.queues.at(*queue).is_deleted()) else {
            return self.finish_delivery(cx, index);
        };
        self.clients.uncount_delivery(cx.messages, &mut self.queues, &mut self.quota, index);
        let delivery = &mut self.queues.deliveries_mut()[index];
        delivery.redelivered = true;
        let (consumer, channel) = (delivery.consumer, delivery.channel);
        let (log_offset, requeues) = (delivery.log_offset, delivery.requeues);
        if let Some(offset) = log_offset.filter(|_| self.queues.at(queue).is_quorum()) {
            self.queues.records_mut().note_requeue(cx.pending_writes, &self.access, queue, offset, requeues);
        }
        self.queues.put_back(cx.messages, queue, index);
        if self.queues.at(queue).has_rules() {
            self.republisher().enforce_limits(cx, queue);
        }
        self.after_uncount(cx, Some(queue), consumer, channel);
    }

    /// Notes that all messages of a channel's consumers are requeued, so that their queues deliver again.
    pub(crate) fn end_requeueing_of(&mut self, channel: ChannelId) {
        let mut at = self.clients.next_of_channel(channel, None);
        while let Some(index) = at {
            at = self.clients.next_of_channel(channel, Some(index));
            if let Some(queue) = self.clients.take_requeueing(index) {
                self.end_blocking_job(queue);
            }
        }
    }

    /// After a delivery was subtracted from the counts: makes its consumer eligible again, and frees records
    /// to which no delivery refers any more.
    fn after_uncount(
        &mut self,
        cx: &mut Context<'_>,
        queue: Option<QueueId>,
        consumer: Option<leveret_core::command::ConsumerId>,
        channel: ChannelId,
    ) {
        self.clients.note_settled();
        if let Some(consumer) = consumer {
            if self.clients.channel(channel).global_prefetch_count > 0 {
                self.clients.make_all_eligible(cx.work, &mut self.queues, channel);
            } else {
                self.clients.make_eligible(cx.work, &mut self.queues, consumer.index());
            }
            self.free_consumer_if_done(consumer.index());
        }
        if let Some(queue) = queue {
            self.free_queue_if_done(queue);
        }
    }

    /// Runs a bounded number of steps of the jobs. Returns whether there is more to do.
    pub fn run_jobs(&mut self, cx: &mut Context<'_>) -> bool {
        let mut left = STEP;
        while left > 0 {
            let Some(mut begun) = self.jobs.pop() else { return false };
            let done = self.run_job(cx, &mut begun.job, &mut left);
            if !done {
                self.jobs.put_back(begun);
                return true;
            }
            if let Some(connection) = begun.waiting {
                self.clients.connection_mut(connection).jobs -= 1;
            }
        }
        !self.jobs.is_empty()
    }

    fn run_job(&mut self, cx: &mut Context<'_>, job: &mut Job, left: &mut u32) -> bool {
        match job {
            Job::Settle { channel, through, settlement } => {
                self.run_settle(cx, *channel, *through, *settlement, left)
            }
            Job::Purge { queue, parts } => self.run_purge(cx, *queue, parts, left),
            Job::Queue(queue) => self.run_queue(cx, *queue, left),
            Job::Exchange(exchange) => self.run_exchange(cx, *exchange, left),
            Job::Channel(channel) => self.run_channel(cx, *channel, left),
            Job::Connection(connection) => self.run_connection(cx, *connection, left),
            Job::Vhost(sweep) => self.run_vhost(cx, sweep, left),
            Job::Policies => self.run_policies(cx, left),
        }
    }

    fn run_settle(
        &mut self,
        cx: &mut Context<'_>,
        channel: ChannelId,
        through: u64,
        settlement: Settlement,
        left: &mut u32,
    ) -> bool {
        while let Some(index) = self.clients.first_sent(&self.queues, channel, through) {
            if *left == 0 {
                return false;
            }
            let before = cx.work.units();
            self.clients.leave_unacknowledged(&mut self.queues, channel, index);
            self.settle_one(cx, index, settlement);
            // A rejected message may be routed to many queues.
            subtract_steps(left, before, cx.work);
        }
        self.end_requeueing_of(channel);
        let connection = self.clients.connection_of(channel);
        self.clients.resume_consumers(cx.work, &mut self.queues, &self.quota, connection);
        true
    }

    fn run_purge(
        &mut self,
        cx: &mut Context<'_>,
        queue: QueueId,
        parts: &mut Purged,
        left: &mut u32,
    ) -> bool {
        while !parts.is_empty() {
            if !spend(left) {
                return false;
            }
            assert!(
                self.queues.drop_purged(cx, queue, parts),
                "a purged queue that is not empty has an item"
            );
        }
        self.end_blocking_job(queue);
        true
    }

    fn run_queue(&mut self, cx: &mut Context<'_>, queue: QueueId, left: &mut u32) -> bool {
        while self.queues.drop_first(cx, queue) || self.queues.drop_rejected(cx, queue) {
            if !spend(left) {
                return false;
            }
        }
        while let Some(consumer) = self.queues.records().queue_consumers(queue).first() {
            self.cancel_by_broker(cx, consumer);
            if !spend(left) {
                return false;
            }
        }
        let next = |broker: &Self| broker.queues.at(queue).bindings.front().map(BindingId::from_index);
        if !self.remove_bindings(cx, left, next) {
            return false;
        }
        self.queues.at_mut(queue).state = QueueState::Cleared;
        self.free_queue_if_done(queue);
        true
    }

    fn run_exchange(&mut self, cx: &mut Context<'_>, exchange: ExchangeId, left: &mut u32) -> bool {
        if !self.remove_bindings(cx, left, |broker| broker.topology.any_binding(exchange)) {
            return false;
        }
        self.free_exchange(exchange);
        true
    }

    /// Removes the bindings that `next` returns, at most `left` ones. Returns whether all are removed.
    fn remove_bindings(
        &mut self,
        cx: &mut Context<'_>,
        left: &mut u32,
        next: impl Fn(&Self) -> Option<BindingId>,
    ) -> bool {
        while let Some(binding) = next(self) {
            if cx.pending_writes.is_crowded() {
                return false;
            }
            self.remove_binding(cx, binding);
            if !spend(left) {
                return false;
            }
        }
        true
    }

    fn run_channel(&mut self, cx: &mut Context<'_>, channel: ChannelId, left: &mut u32) -> bool {
        if matches!(self.clients.channel(channel).mode, Mode::Transaction(_)) {
            self.abandon_transaction(cx.messages, channel);
        }
        while let Some(index) = self.clients.channel(channel).unacknowledged.front() {
            if !spend(left) {
                return false;
            }
            self.clients.leave_unacknowledged(&mut self.queues, channel, index);
            self.requeue_delivery(cx, index);
        }
        self.end_requeueing_of(channel);
        self.clients.channel_mut(channel).state = ChannelState::Cleared;
        self.clients.free_channel_if_done(&mut self.quota, channel);
        true
    }

    fn run_connection(&mut self, cx: &mut Context<'_>, connection: ConnectionId, left: &mut u32) -> bool {
        while let Some(index) = self.clients.connection(connection).outbox.front() {
            if !spend(left) {
                return false;
            }
            self.clients.leave_outbox(&mut self.queues, connection, index);
            self.abandon_unsent(cx, index);
        }
        while let Some(channel) = self.clients.next_channel(connection, None) {
            if !self.run_channel(cx, channel, left) {
                return false;
            }
            assert!(
                self.clients.find_channel(channel).is_none(),
                "a channel of a lost connection has no records after its job"
            );
        }
        self.clients.connection_mut(connection).note_cleared();
        self.free_connection_if_done(connection);
        true
    }

    /// Requeues a delivery that will not be written, or leaves that to the job of its channel.
    ///
    /// A delivery that needs an acknowledgement stays on its channel's list, which a job requeues. Any other
    /// delivery is requeued now, because the client has not received it. A `basic.return` is dropped.
    pub(crate) fn abandon_unsent(&mut self, cx: &mut Context<'_>, index: usize) {
        let delivery = &self.queues.deliveries()[index];
        match delivery.method {
            DeliveryMethod::Return => self.finish_delivery(cx, index),
            _ if delivery.no_ack || delivery.is_detached => self.requeue_delivery(cx, index),
            _ => self.queues.deliveries_mut()[index].is_sent = true,
        }
    }

    /// Sets the time of this turn. Returns whether the caller must call [`Self::set_unix_time`], because a
    /// new second began.
    pub const fn set_time(&mut self, now: Now) -> bool {
        let before = core::mem::replace(&mut self.ack_timeout.now_s, (now.as_ms() / 1000) as u32);
        self.ack_timeout.channels_left = CHECK_STEP;
        self.queues.set_minute(self.ack_timeout.now_s / 60);
        before != self.ack_timeout.now_s || self.republish.unix_s() == 0
    }

    /// Sets the date in seconds since 1970. It is only written into headers; no decision depends on it.
    pub const fn set_unix_time(&mut self, unix_s: u64) {
        self.republish.set_unix_s(unix_s);
    }

    /// Returns the earliest time at which a channel may be overdue; never if there are no unsettled
    /// deliveries and no open transactions.
    pub fn overdue_deadline(&self) -> Deadline {
        let holds_nothing = self.queues.deliveries().is_empty() && self.quota.pinned().open_messages == 0;
        match self.ack_timeout.next_check_s {
            Some(next_check_s) if !holds_nothing => Now::from_ms(u64::from(next_check_s) * 1000).after_ms(0),
            _ => Deadline::NEVER,
        }
    }

    /// Returns the next channel with an overdue delivery or transaction; `None` if there is none among the
    /// bounded number of channels that one turn examines.
    ///
    /// If the caller does not close the channel, the next check returns it again.
    pub fn next_overdue(&mut self) -> Option<Overdue> {
        if self.ack_timeout.next_check_s.is_none_or(|next_check_s| self.ack_timeout.now_s < next_check_s) {
            return None;
        }
        while self.ack_timeout.next_place < self.clients.channel_places() {
            if !spend(&mut self.ack_timeout.channels_left) {
                return None;
            }
            let index = self.ack_timeout.next_place;
            self.ack_timeout.next_place += 1;
            let overdue = self.check_overdue(ChannelId::from_index(index));
            if overdue.is_some() {
                return overdue;
            }
        }
        self.ack_timeout.end();
        None
    }

    fn check_overdue(&mut self, id: ChannelId) -> Option<Overdue> {
        let channel = self.clients.find_channel(id)?;
        if channel.is_closed() || self.clients.connection(channel.connection).is_closed() {
            return None;
        }
        let (delivered, touched) = (self.oldest_delivery(channel), open_since_s(channel));
        let (connection, number, code) = (channel.connection, channel.number, ReplyCode::PreconditionFailed);
        let own_ms = self.ack_timeout.timeout_ms;
        // Transaction and oldest delivery are both examined, because the next check depends on both.
        let is_left_open = touched.is_some_and(|since_s| self.ack_timeout.is_overdue(since_s, own_ms));
        let unsettled = delivered.filter(|(since_s, ms)| self.ack_timeout.is_overdue(*since_s, *ms));
        let fault = if let Some((_, ms)) = unsettled {
            // The text is RabbitMQ's.
            Fault::new(
                code,
                format_args!(
                    "delivery acknowledgement on channel {number} timed out. Timeout value used: {ms} ms. \
                     This timeout value can be configured, see consumers doc guide to learn more"
                ),
            )
        } else if is_left_open {
            Fault::new(
                code,
                format_args!(
                    "the transaction on channel {number} was left open for {own_ms} ms: commit it in time, \
                     or raise consumer_timeout in the configuration"
                ),
            )
        } else {
            return None;
        };
        Some(Overdue { connection, channel: number, fault })
    }

    /// Returns when the oldest unsettled delivery of a channel was made, in seconds, and its consumer timeout
    /// in milliseconds.
    fn oldest_delivery(&self, channel: &Channel) -> Option<(u32, u32)> {
        let delivery = &self.queues.deliveries()[channel.unacknowledged.front()?];
        let queue = delivery.queue.and_then(|queue| self.queues.records().get(queue.index()));
        // MQTT has no such timeout.
        if queue.is_some_and(|queue| queue.session().is_some()) {
            return None;
        }
        let own_ms = queue.map_or(u32::MAX, |queue| queue.settings.consumer_timeout_ms);
        let timeout_ms = if own_ms == u32::MAX { self.ack_timeout.timeout_ms } else { own_ms };
        Some((delivery.delivered_s, timeout_ms))
    }

    /// Adds the settlement of a delivery to the channel's transaction. `tx.commit` carries it out.
    pub(crate) fn decide(&mut self, channel: ChannelId, index: usize, settlement: Settlement) {
        self.note_transaction_change(channel);
        self.clients.leave_unacknowledged(&mut self.queues, channel, index);
        let Mode::Transaction(transaction) = &mut self.clients.channel_mut(channel).mode else {
            panic!("the caller checked that the channel is transactional");
        };
        self.queues.deliveries_mut().add_to_transaction(&mut transaction.settlements, index, settlement);
    }

    /// Rolls a transaction back: drops its messages, and puts its deliveries back on the channel's list of
    /// unacknowledged ones, in the order of their tags.
    pub(crate) fn abandon_transaction(&mut self, messages: &mut Messages, channel: ChannelId) {
        let transaction = self.take_transaction(channel);
        let mut next = transaction.first;
        while let Some(message) = next {
            next = messages.link(message);
            messages.release(message);
        }
        let list = &mut self.clients.channel_mut(channel).unacknowledged;
        self.queues.deliveries_mut().roll_back_settlements(list, transaction.settlements);
    }

    /// Takes the content of a transaction that is committed or rolled back, and gives back the capacity that
    /// was reserved for it. Waiting publishers retry, because they may wait for that capacity.
    pub(crate) fn take_transaction(&mut self, channel: ChannelId) -> Transaction {
        let record = self.clients.channel_mut(channel);
        let Mode::Transaction(transaction) = &mut record.mode else {
            panic!("the caller checked that the channel is transactional");
        };
        let taken = core::mem::take(transaction);
        let connection = record.connection;
        if !taken.is_empty() {
            self.clients.connection_mut(connection).open_transactions -= 1;
        }
        self.quota.give_open_back(connection, taken.slots, taken.bytes);
        self.queues.note_release();
        taken
    }

    /// Called before a message or settlement is added to the channel's transaction: sets the time of the
    /// change. Counts the transaction as open, so that its connection may use the reserve.
    pub(crate) fn note_transaction_change(&mut self, channel: ChannelId) {
        let record = self.clients.channel_mut(channel);
        let Mode::Transaction(transaction) = &mut record.mode else { return };
        transaction.touched_s = self.ack_timeout.note_activity();
        let (was_empty, connection) = (transaction.is_empty(), record.connection);
        if was_empty {
            self.clients.connection_mut(connection).open_transactions += 1;
        }
    }

    /// Ends a consumer whose queue is deleted. Its client will be notified with `basic.cancel`.
    pub(crate) fn cancel_by_broker(&mut self, cx: &mut Context<'_>, index: usize) {
        self.end_consumer(cx, index);
        self.clients.note_cancelled(index);
        self.free_consumer_if_done(index);
    }

    /// Ends a consumer. Deletes its queue if that is an auto-delete queue and this was its last consumer.
    pub(crate) fn end_consumer(&mut self, cx: &mut Context<'_>, index: usize) {
        let Some(queue) = self.clients.end(cx.work, &mut self.queues, index) else { return };
        let record = self.queues.at(queue);
        if record.declared.auto_delete && record.queue_consumers.is_empty() && !record.is_deleted() {
            self.retire_queue(cx, queue);
            self.jobs.begin(Job::Queue(queue));
        } else if record.queue_consumers.is_empty() {
            self.queues.touch_queue(cx.pending_writes, queue);
        }
    }

    /// Frees the record of an ended consumer when nothing refers to it.
    pub(crate) fn free_consumer_if_done(&mut self, index: usize) {
        if let Some(queue) = self.clients.free_if_done(&mut self.quota, index) {
            self.end_blocking_job(queue);
        }
    }

    /// Closes a channel: ends its consumers, takes unwritten deliveries out of the outbox, and begins a job
    /// that requeues the unacknowledged ones.
    pub(crate) fn close_channel(
        &mut self,
        cx: &mut Context<'_>,
        connection: ConnectionId,
        channel: ChannelId,
    ) {
        self.stop_channel(cx, channel);
        self.withdraw_unwritten(cx, connection, channel);
        self.begin_job(connection, Job::Channel(channel));
    }

    fn stop_channel(&mut self, cx: &mut Context<'_>, channel: ChannelId) {
        self.clients.channel_mut(channel).state = ChannelState::Closing;
        self.clients.mark_requeueing(&mut self.queues, channel);
        let mut at = self.clients.next_of_channel(channel, None);
        while let Some(index) = at {
            at = self.clients.next_of_channel(channel, Some(index));
            self.end_consumer(cx, index);
            self.clients.leave_cancelled(index);
            self.free_consumer_if_done(index);
        }
    }

    /// Removes a closed channel's deliveries from the outbox, except the first entry of the outbox, which may
    /// be partly written.
    ///
    /// `basic.return` and `basic.get-ok` are replies to commands of the client, so they are still sent before
    /// the close. The deliveries before a `basic.get-ok` are sent too, because delivery tags have no gaps.
    fn withdraw_unwritten(&mut self, cx: &mut Context<'_>, connection: ConnectionId, channel: ChannelId) {
        let front = self.clients.connection(connection).outbox.front();
        let (mut at, mut last_get) = (front, None);
        while let Some(index) = at {
            at = self.queues.deliveries().next_in_outbox(index);
            let delivery = &self.queues.deliveries()[index];
            if delivery.channel == channel && matches!(delivery.method, DeliveryMethod::Get(_)) {
                last_get = Some(index);
            }
        }
        if front.is_some() {
            self.clients.note_output(connection);
        }
        let mut is_behind_gets = last_get.is_none();
        at = front;
        while let Some(index) = at {
            at = self.queues.deliveries().next_in_outbox(index);
            let delivery = &self.queues.deliveries()[index];
            if delivery.channel != channel || delivery.method == DeliveryMethod::Return {
                continue;
            }
            if !is_behind_gets {
                self.detach_delivery(channel, index);
                is_behind_gets = last_get == Some(index);
            } else if Some(index) == front {
                self.queues.deliveries_mut()[index].is_withdrawn = true;
                self.detach_delivery(channel, index);
            } else {
                self.clients.leave_outbox(&mut self.queues, connection, index);
                self.abandon_unsent(cx, index);
            }
        }
        // Consumers of other channels may have been paused because the output was full.
        self.clients.resume_consumers(cx.work, &mut self.queues, &self.quota, connection);
    }

    fn detach_delivery(&mut self, channel: ChannelId, index: usize) {
        if !self.queues.deliveries()[index].no_ack {
            self.clients.leave_unacknowledged(&mut self.queues, channel, index);
        }
        self.queues.deliveries_mut()[index].is_detached = true;
    }

    pub(crate) fn free_connection_if_done(&mut self, connection: ConnectionId) {
        let gone = self.clients.free_connection_if_done(&mut self.quota, connection);
        if let Some(vhost) = gone.and_then(|record| record.vhost) {
            self.remove_vhost_reference(vhost);
        }
    }

    /// Ends a connection that will send no more commands. Its exclusive queues and consumers end now; a job
    /// requeues its deliveries. Further calls have no effect.
    pub fn disconnect(&mut self, cx: &mut Context<'_>, connection: ConnectionId) {
        if !self.clients.connection_mut(connection).close() {
            return;
        }
        self.forget_gets(connection);
        self.leave_session(cx, connection);
        self.quota.leave_vhost(connection);
        let mut at = self.clients.next_channel(connection, None);
        while let Some(channel) = at {
            at = self.clients.next_channel(connection, Some(channel));
            if !self.clients.channel(channel).is_closed() {
                self.stop_channel(cx, channel);
            }
        }
        while let Some(queue) = self.clients.connection(connection).exclusive_queues.front() {
            let queue = QueueId::from_index(queue);
            self.retire_queue(cx, queue);
            self.jobs.begin(Job::Queue(queue));
        }
        self.jobs.begin(Job::Connection(connection));
    }

    /// Notes that the client of a connection is gone, although input of it may still be handled. The connection no longer
    /// counts for the limits of its user and its virtual host, so that the client can connect again.
    pub fn note_lost(&mut self, connection: ConnectionId) {
        self.quota.leave_vhost(connection);
        // If it waits for capacity as the first publisher, those behind it can continue.
        self.queues.note_release();
    }

    /// Notes that the socket is closed. The connection's id may be used again as soon as all its deliveries
    /// are requeued.
    pub fn release(&mut self, cx: &mut Context<'_>, connection: ConnectionId) {
        self.disconnect(cx, connection);
        self.clients.connection_mut(connection).note_released();
        self.free_connection_if_done(connection);
    }

    /// Notes that the client was notified of the cancelled consumer that [`Self::next_cancelled`] returned.
    pub fn note_cancel_sent(&mut self, connection: ConnectionId) {
        if let Some(index) = self.clients.first_cancelled(connection) {
            self.clients.leave_cancelled(index);
            self.free_consumer_if_done(index);
        }
    }

    /// Drops the waiting `basic.get`s of a lost connection.
    pub(crate) fn forget_gets(&mut self, connection: ConnectionId) {
        let before = self.queues.gets().waiter_count();
        let open =
            self.queues.gets().iter().filter(|get| get.connection == connection && get.outcome.is_none());
        let open = open.count() as u32;
        self.queues.gets_mut().retain(|get| get.connection != connection);
        assert!(self.queues.gets().waiter_count() + 1 >= before, "a connection has at most one waiting get");
        self.clients.connection_mut(connection).jobs -= open;
    }
}
