//! Work that one command or one death can cause without bound, done in bounded steps.
//!
//! Names vanish at once; what hung on them is cleared away a few hundred records at a time, in the order in
//! which the jobs were begun; what the log must be told of waits while much is to be told. A connection whose
//! own command began a job is not read until the job is done, so it sees the effects in order; everybody else
//! carries on in between.

use crate::command::{BindingId, ChannelId, ConnectionId, ExchangeId, QueueId, Settlement};

use super::consumers::Mode;
use super::job::{Job, spend};
use super::queues::Carrier;
use super::queues::Purged;
use super::{Broker, Context};

/// Records cleared away in one go.
const STEP: u32 = 512;

impl Broker {
    /// Does a bounded part of the work that waits; says whether there is more.
    pub fn run_jobs(&mut self, cx: &mut Context<'_>) -> bool {
        let fan_out_max = self.queues.fan_out_max();
        self.quota.tell(cx.messages, &mut self.queues.pool, fan_out_max);
        let mut left = STEP;
        while left > 0 {
            let Some(mut begun) = self.jobs.pop() else { return false };
            let done = self.run(cx, &mut begun.job, &mut left);
            if !done {
                self.jobs.put_back(begun);
                return true;
            }
            if let Some(connection) = begun.waiting {
                self.consumers.connection_mut(connection).jobs -= 1;
            }
        }
        !self.jobs.is_empty()
    }

    fn run(&mut self, cx: &mut Context<'_>, job: &mut Job, left: &mut u32) -> bool {
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
        while let Some(index) = self.consumers.first_sent(&self.queues, channel, through) {
            if !spend(left) {
                return false;
            }
            self.consumers.leave_unacknowledged(&mut self.queues, channel, index);
            self.settle_one(cx, index, settlement);
        }
        self.end_returning_of(channel);
        let connection = self.consumers.connection_of(channel);
        self.consumers.unpark(cx.work, &mut self.queues, &self.quota, connection);
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
            assert!(self.queues.drop_purged(cx, queue, parts), "what is not empty has something");
        }
        self.end_returning(queue);
        true
    }

    fn run_queue(&mut self, cx: &mut Context<'_>, queue: QueueId, left: &mut u32) -> bool {
        while self.queues.drop_first(cx, queue) || self.queues.drop_rejected(cx, queue) {
            if !spend(left) {
                return false;
            }
        }
        while let Some(consumer) = self.queues.audience(queue).first() {
            self.cancel_by_broker(cx, consumer);
            if !spend(left) {
                return false;
            }
        }
        while let Some(binding) = self.queues.at(queue).bindings.front() {
            if cx.journal.is_crowded() {
                return false;
            }
            self.remove_binding(cx, BindingId::from_index(binding));
            if !spend(left) {
                return false;
            }
        }
        self.queues.at_mut(queue).cleared = true;
        self.free_queue_if_done(queue);
        true
    }

    fn run_exchange(&mut self, cx: &mut Context<'_>, exchange: ExchangeId, left: &mut u32) -> bool {
        while let Some(binding) = self.topology.any_binding(exchange) {
            if cx.journal.is_crowded() {
                return false;
            }
            self.remove_binding(cx, binding);
            if !spend(left) {
                return false;
            }
        }
        self.free_exchange(exchange);
        true
    }

    fn run_channel(&mut self, cx: &mut Context<'_>, channel: ChannelId, left: &mut u32) -> bool {
        if matches!(self.consumers.channel(channel).mode, Mode::Transaction(_)) {
            self.abandon_transaction(cx.messages, channel);
        }
        while let Some(index) = self.consumers.channel(channel).unacknowledged.front() {
            if !spend(left) {
                return false;
            }
            self.consumers.leave_unacknowledged(&mut self.queues, channel, index);
            self.give_back(cx, index);
        }
        self.end_returning_of(channel);
        self.consumers.channel_mut(channel).cleared = true;
        self.consumers.free_channel_if_done(&mut self.quota, channel);
        true
    }

    fn run_connection(&mut self, cx: &mut Context<'_>, connection: ConnectionId, left: &mut u32) -> bool {
        while let Some(index) = self.consumers.connection(connection).outbox.front() {
            if !spend(left) {
                return false;
            }
            self.consumers.leave_outbox(&mut self.queues, connection, index);
            self.abandon_unsent(cx, index);
        }
        while let Some(channel) = self.consumers.next_channel(connection, None) {
            if !self.run_channel(cx, channel, left) {
                return false;
            }
            assert!(
                self.consumers.find_channel(channel).is_none(),
                "nothing refers to a lost channel any more"
            );
        }
        self.consumers.connection_mut(connection).cleared = true;
        self.free_connection_if_done(connection);
        true
    }

    /// A delivery that will not be written: what is acknowledged stays on its channel's list, which is being
    /// given back; what is not goes back now, for nobody has seen it.
    pub(super) fn abandon_unsent(&mut self, cx: &mut Context<'_>, index: usize) {
        let delivery = &self.queues.deliveries()[index];
        match delivery.carrier {
            Carrier::Return => self.settle_sent(cx, index),
            _ if delivery.no_ack || delivery.orphaned => self.give_back(cx, index),
            _ => self.queues.deliveries_mut()[index].sent = true,
        }
    }
}
