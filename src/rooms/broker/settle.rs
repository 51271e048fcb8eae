//! Acknowledgements, rejections, requeues: what becomes of delivered messages.
//!
//! Always true: a tag is settled at most once; only deliveries that were completely written can be settled,
//! so "everything so far" never swallows a message that the client has not seen; a message that comes back
//! is marked redelivered and waits before all that have not been delivered yet.

use crate::command::{ChannelId, Outcome, QueueId, Settlement};
use crate::error::{Fault, ReplyCode};

use super::consumers::{Channel, Mode};
use super::job::Job;
use super::letters::Reason;
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
        let Some(index) = self.consumers.find_sent(&self.queues, channel, tag) else {
            return Err(Fault::new(
                ReplyCode::PreconditionFailed,
                format_args!("unknown delivery tag {tag}"),
            ));
        };
        if multiple {
            return self.settle_through(cx, channel, tag, settlement);
        }
        if let Mode::Transaction(_) = self.consumers.channel(channel).mode {
            self.decide(channel, index, settlement);
        } else {
            if settlement == Settlement::Requeue
                && let Some(queue) = self.queues.deliveries()[index].queue
            {
                self.catch_up(cx, queue);
            }
            self.consumers.leave_unacknowledged(&mut self.queues, channel, index);
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
        if let Mode::Transaction(_) = self.consumers.channel(channel).mode {
            while let Some(index) = self.consumers.first_sent(&self.queues, channel, through) {
                self.decide(channel, index, settlement);
            }
            return Ok(Outcome::Done);
        }
        if settlement == Settlement::Requeue {
            self.catch_up_channel(cx, channel);
        }
        self.settle_now(channel, through, settlement);
        Ok(Outcome::Done)
    }

    /// basic.recover: not part of a transaction, whatever the channel's mode.
    pub(super) fn recover(&mut self, channel: ChannelId) {
        self.settle_now(channel, u64::MAX, Settlement::Requeue);
    }

    /// Everything written so far up to `through` goes back to its queue or is forgotten, in bounded steps.
    fn settle_now(&mut self, channel: ChannelId, through: u64, settlement: Settlement) {
        if settlement == Settlement::Requeue {
            self.consumers.mark_returning(&mut self.queues, channel);
        }
        let &Channel { connection, last_sent, .. } = self.consumers.channel(channel);
        // The job may take several turns, and what is written in those was not meant.
        let through = through.min(last_sent);
        self.begin_job(connection, Job::Settle { channel, through, settlement });
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
        self.consumers.uncount_delivery(cx.messages, &mut self.queues, &mut self.quota, index);
        let delivery = self.queues.deliveries_mut().remove(index);
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
        match self.queues.deliveries()[index].queue.filter(|queue| self.queues.has_dead_letters(*queue)) {
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
        self.consumers.uncount_delivery(cx.messages, &mut self.queues, &mut self.quota, index);
        let delivery = &self.queues.deliveries()[index];
        let (consumer, channel) = (delivery.consumer, delivery.channel);
        self.post().bury_delivery(cx, queue, index, reason);
        self.queues.note_release();
        self.after_uncount(cx, Some(queue), consumer, channel);
    }

    /// Whether a message that comes back has come back too often by now. What a bridge gives back it could
    /// not send, however often its link broke: that is no reason to give up a message.
    fn is_beyond_limit(&mut self, index: usize) -> bool {
        let channel = self.queues.deliveries()[index].channel;
        let connection = self.consumers.connection_of(channel);
        !self.consumers.connection(connection).identity.is_own() && self.queues.comes_back_too_often(index)
    }

    /// The message goes back to its old place in its queue.
    pub(super) fn give_back(&mut self, cx: &mut Context<'_>, index: usize) {
        if self.is_beyond_limit(index) {
            return match self.queues.deliveries()[index]
                .queue
                .filter(|queue| self.queues.has_dead_letters(*queue))
            {
                Some(queue) => self.leave_for_good(cx, queue, index, Reason::DeliveryLimit),
                None => self.settle_sent(cx, index),
            };
        }
        self.consumers.uncount_delivery(cx.messages, &mut self.queues, &mut self.quota, index);
        let delivery = &mut self.queues.deliveries_mut()[index];
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
                    self.post().look_after(cx, queue);
                }
            }
            _ => {
                let delivery = self.queues.deliveries_mut().remove(index);
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

    /// The messages of a channel's consumers are back in their queues.
    pub(super) fn end_returning_of(&mut self, channel: ChannelId) {
        for queue in self.consumers.unmark_returning(channel) {
            self.end_returning(queue);
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
        self.consumers.note_settled();
        if let Some(consumer) = consumer {
            if self.consumers.channel(channel).global_prefetch_count > 0 {
                self.consumers.make_all_eligible(cx.work, &mut self.queues, channel);
            } else {
                self.consumers.make_eligible(cx.work, &mut self.queues, consumer.index());
            }
            self.free_consumer_if_done(consumer.index());
        }
        if let Some(queue) = queue {
            self.free_queue_if_done(queue);
        }
    }
}
