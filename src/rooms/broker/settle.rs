//! Acknowledgements, rejections, requeues: what becomes of delivered messages.
//!
//! Always true: a tag is settled at most once; only deliveries that were completely written can be settled,
//! so "everything so far" never swallows a message that the client has not seen; a message that comes back
//! is marked redelivered and waits before all that have not been delivered yet.

use crate::command::{ChannelId, Outcome, QueueId, Settlement};
use crate::error::{Fault, ReplyCode};
use crate::mem::{List, Messages};

use super::death::Reason;
use super::job::Job;
use super::records::{Channel, ConsumerState, Mode};
use super::{Broker, Context};

impl Broker {
    /// basic.ack, basic.nack and basic.reject.
    pub(super) fn settle(
        &mut self,
        cx: &mut Context<'_>,
        channel: ChannelId,
        tag: u64,
        multiple: bool,
        settlement: Settlement,
    ) -> Result<Outcome, Fault> {
        if multiple && tag == 0 {
            return self.settle_through(cx, channel, u64::MAX, settlement);
        }
        let Some(index) = self.find_sent(channel, tag) else {
            return Err(Fault::new(
                ReplyCode::PreconditionFailed,
                format_args!("unknown delivery tag {tag}"),
            ));
        };
        if multiple {
            return self.settle_through(cx, channel, tag, settlement);
        }
        if let Mode::Transaction(_) = self.channels[channel.index()].mode {
            self.decide(channel, index, settlement);
        } else {
            if settlement == Settlement::Requeue
                && let Some(queue) = self.queues.deliveries[index].queue
            {
                self.catch_up(cx, queue);
            }
            self.leave_unacknowledged(channel, index);
            self.settle_one(cx, index, settlement);
        }
        Ok(Outcome::Done)
    }

    fn settle_through(
        &mut self,
        cx: &mut Context<'_>,
        channel: ChannelId,
        through: u64,
        settlement: Settlement,
    ) -> Result<Outcome, Fault> {
        if let Mode::Transaction(_) = self.channels[channel.index()].mode {
            while let Some(index) = self.first_sent(channel, through) {
                self.decide(channel, index, settlement);
            }
            return Ok(Outcome::Done);
        }
        if settlement == Settlement::Requeue {
            self.catch_up_channel(cx, channel);
        }
        self.settle_now(cx, channel, through, settlement);
        Ok(Outcome::Done)
    }

    /// basic.recover: not part of a transaction, whatever the channel's mode.
    pub(super) fn recover(&mut self, cx: &mut Context<'_>, channel: ChannelId) {
        self.settle_now(cx, channel, u64::MAX, Settlement::Requeue);
    }

    /// Everything written so far up to `through` goes back to its queue or is forgotten, in bounded steps.
    fn settle_now(&mut self, cx: &mut Context<'_>, channel: ChannelId, through: u64, settlement: Settlement) {
        if settlement == Settlement::Requeue {
            self.mark_returning(channel);
        }
        let Channel { connection, last_sent, .. } = self.channels[channel.index()];
        // The job may take several turns, and what is written in those was not meant.
        let through = through.min(last_sent);
        self.start_job(cx, connection, Job::Settle { channel, through, settlement });
    }

    pub(super) fn find_sent(&self, channel: ChannelId, tag: u64) -> Option<usize> {
        let head = self.channels[channel.index()].unacknowledged.front()?;
        let index = if self.queues.deliveries[head].tag == tag {
            head
        } else {
            self.queues.deliveries.find(channel, tag)?
        };
        self.queues.deliveries[index].sent.then_some(index)
    }

    /// The channel's oldest unacknowledged delivery, if it was written and its tag is not beyond `through`.
    pub(super) fn first_sent(&self, channel: ChannelId, through: u64) -> Option<usize> {
        let index = self.channels[channel.index()].unacknowledged.front()?;
        let delivery = &self.queues.deliveries[index];
        (delivery.sent && delivery.tag <= through).then_some(index)
    }

    pub(super) fn leave_unacknowledged(&mut self, channel: ChannelId, index: usize) {
        let list = &mut self.channels[channel.index()].unacknowledged;
        self.queues.deliveries.leave_unacknowledged(list, index);
    }

    /// Settles a delivery that is on no list any more and whose tag is forgotten.
    pub(super) fn settle_one(&mut self, cx: &mut Context<'_>, index: usize, settlement: Settlement) {
        match settlement {
            Settlement::Requeue => self.give_back(cx, index),
            Settlement::Reject => self.reject(cx, index),
            Settlement::Ack => {
                self.counters.acknowledged += 1;
                self.settle_sent(cx, index);
            }
        }
    }

    /// The delivery is over and its message is not wanted any more.
    pub(super) fn settle_sent(&mut self, cx: &mut Context<'_>, index: usize) {
        self.uncount(cx.messages, index);
        let delivery = self.queues.deliveries.remove(index);
        match (delivery.queue, delivery.message) {
            (Some(queue), _) => self.queues.settle_delivered(cx, queue, &delivery),
            (None, Some(message)) => cx.messages.release(message),
            (None, None) => {}
        }
        self.queues.note_release();
        self.after_uncount(cx, delivery.queue, delivery.consumer, delivery.channel);
    }

    /// The message is not wanted by who had it; it may have somewhere to go.
    fn reject(&mut self, cx: &mut Context<'_>, index: usize) {
        match self.queues.deliveries[index].queue.filter(|queue| self.queues.has_dead_letters(*queue)) {
            Some(queue) => self.leave_for_good(cx, queue, index, Reason::Rejected),
            None => self.settle_sent(cx, index),
        }
    }

    pub(super) fn leave_for_good(
        &mut self,
        cx: &mut Context<'_>,
        queue: QueueId,
        index: usize,
        reason: Reason,
    ) {
        self.uncount(cx.messages, index);
        let delivery = &self.queues.deliveries[index];
        let (consumer, channel) = (delivery.consumer, delivery.channel);
        self.bury_delivery(cx, queue, index, reason);
        self.queues.note_release();
        self.after_uncount(cx, Some(queue), consumer, channel);
    }

    /// Whether a message that comes back has come back too often by now. What a bridge gives back it could
    /// not send, however often its link broke: that is no reason to give up a message.
    fn is_beyond_limit(&mut self, index: usize) -> bool {
        let channel = self.queues.deliveries[index].channel;
        let connection = self.channels[channel.index()].connection;
        !self.connections[connection.index()].identity.is_own() && self.queues.comes_back_too_often(index)
    }

    /// The message goes back to its old place in its queue.
    pub(super) fn give_back(&mut self, cx: &mut Context<'_>, index: usize) {
        if self.is_beyond_limit(index) {
            return match self.queues.deliveries[index]
                .queue
                .filter(|queue| self.queues.has_dead_letters(*queue))
            {
                Some(queue) => self.leave_for_good(cx, queue, index, Reason::DeliveryLimit),
                None => self.settle_sent(cx, index),
            };
        }
        self.uncount(cx.messages, index);
        let delivery = &mut self.queues.deliveries[index];
        let (queue, consumer, channel) = (delivery.queue, delivery.consumer, delivery.channel);
        delivery.redelivered = true;
        let (logged, returns) = (delivery.logged, delivery.returns);
        match queue {
            Some(queue) if !self.queues.at(queue).dying => {
                if let Some(offset) = logged.filter(|_| self.queues.at(queue).settings.tells_returns) {
                    self.queues.note_return(cx.journal, &self.access, queue, offset, returns);
                }
                self.queues.put_back(cx.messages, queue, index);
                let record = self.queues.at(queue);
                if record.is_picky() {
                    self.look_after(cx, queue);
                }
            }
            _ => {
                let delivery = self.queues.deliveries.remove(index);
                if let Some(queue) = queue {
                    self.queues.settle_delivered(cx, queue, &delivery);
                } else if let Some(message) = delivery.message {
                    cx.messages.release(message);
                }
                self.queues.note_release();
            }
        }
        self.after_uncount(cx, queue, consumer, channel);
    }

    /// One unsettled delivery less for everybody who counts them.
    fn uncount(&mut self, messages: &Messages, index: usize) {
        let bytes = self.queues.uncount_delivery(messages, index);
        let delivery = &self.queues.deliveries[index];
        let channel = &mut self.channels[delivery.channel.index()];
        self.quota.give_delivery_back(channel.connection, bytes);
        if let Some(consumer) = delivery.consumer {
            let consumer = &mut self.consumers[consumer.index()];
            consumer.unsettled -= 1;
            if !delivery.no_ack && consumer.state != ConsumerState::Get {
                channel.consumer_unsettled -= 1;
            }
        }
    }

    /// What the room that was made allows now.
    fn after_uncount(
        &mut self,
        cx: &mut Context<'_>,
        queue: Option<QueueId>,
        consumer: Option<crate::command::ConsumerId>,
        channel: ChannelId,
    ) {
        self.over_share.note_change();
        if let Some(consumer) = consumer {
            if self.channels[channel.index()].global_prefetch_count > 0 {
                self.make_all_eligible(cx, channel);
            } else {
                self.make_eligible(cx, consumer.index());
            }
            self.free_consumer_if_done(consumer.index());
        }
        if let Some(queue) = queue {
            self.free_queue_if_done(queue);
        }
    }

    pub(super) fn make_all_eligible(&mut self, cx: &mut Context<'_>, channel: ChannelId) {
        let mut at = self.channels[channel.index()].consumers.front();
        while let Some(index) = at {
            at = List::after(&self.consumers, index, |consumer| &consumer.channel_links);
            cx.work.charge(1);
            self.make_eligible(cx, index);
        }
    }

    /// While messages of these consumers are on their way back, their queues deliver nothing: the first to
    /// come back need not be the oldest.
    pub(super) fn mark_returning(&mut self, channel: ChannelId) {
        let mut at = self.channels[channel.index()].consumers.front();
        while let Some(index) = at {
            let consumer = &mut self.consumers[index];
            if consumer.unsettled > 0 && !consumer.returning {
                consumer.returning = true;
                self.queues.at_mut(consumer.queue).returning += 1;
            }
            at = List::after(&self.consumers, index, |consumer| &consumer.channel_links);
        }
    }

    pub(super) fn unmark_returning(&mut self, channel: ChannelId) {
        let mut at = self.channels[channel.index()].consumers.front();
        while let Some(index) = at {
            at = List::after(&self.consumers, index, |consumer| &consumer.channel_links);
            self.unmark_consumer(index);
        }
    }

    pub(super) fn unmark_consumer(&mut self, index: usize) {
        if core::mem::take(&mut self.consumers[index].returning) {
            let queue = self.consumers[index].queue;
            self.end_returning(queue);
        }
    }
}
