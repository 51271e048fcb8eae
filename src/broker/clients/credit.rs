//! Decides whether a consumer can take another message, by prefetch, capacity of its connection's output, and
//! the connection's share of deliveries. The rule of the share is in `leveret_core::quota`.
//!
//! ```text
//! eligible: on its queue's list ──output full, or share used up──→ paused: on its connection's list
//!     ↑ credit again                                                  │ written, settled
//!     └───────────────────────────────────────────────────────────────┘
//! ```
//!
//! # Invariants
//! - Only consumers that can take a message now are on their queue's list. The others take no time in a
//!   delivery.
//! - The eligible consumers of a queue are sorted by priority. Within a priority, the consumer that waited
//!   longest for a message is the first.
//! - The single active consumer of a queue is the first on the queue's list.

use leveret_core::command::{ChannelId, ConnectionId, QueueId};
use leveret_core::mem::List;
use leveret_core::quota::Quota;
use leveret_core::work::Work;
use leveret_queues::{Overflow, Queues};

use super::{Clients, ConsumerState};

/// Maximum number of consumers of a queue whose credit is summed up for a publish.
const WAITING_EXAMINED_MAX: u32 = 64;

impl Clients {
    // ---- credit

    /// Returns whether the prefetch limits allow a consumer another message.
    #[inline(always)]
    pub(crate) fn has_credit(&self, index: usize) -> bool {
        let consumer = &self.consumers[index];
        if consumer.state != ConsumerState::Active || consumer.is_held {
            return false;
        }
        let channel = &self.channels[consumer.channel.index()];
        let own = consumer.no_ack
            || consumer.prefetch_count == 0
            || consumer.unacknowledged < u32::from(consumer.prefetch_count);
        // As in RabbitMQ, the shared prefetch of a channel also limits consumers with automatic
        // acknowledgement, whose own deliveries do not count.
        let shared = channel.global_prefetch_count == 0
            || channel.consumer_unsettled < u32::from(channel.global_prefetch_count);
        own && shared
    }

    /// Returns the number of further messages that the prefetch limits allow a consumer; `u32::MAX` is
    /// unlimited.
    pub(crate) fn credit(&self, index: usize) -> u32 {
        let consumer = &self.consumers[index];
        if consumer.is_held {
            return 0;
        }
        let channel = &self.channels[consumer.channel.index()];
        let left = |used: u32, most: u16| match most {
            0 => u32::MAX,
            _ => u32::from(most).saturating_sub(used),
        };
        let shared = left(channel.consumer_unsettled, channel.global_prefetch_count);
        match consumer.no_ack {
            true if shared == 0 => 0,
            true => u32::MAX,
            false => left(consumer.unacknowledged, consumer.prefetch_count).min(shared),
        }
    }

    /// Returns whether the consumers of a channel share a prefetch (`basic.qos` with global=true).
    #[inline(always)]
    pub(crate) fn shares_credit(&self, channel: ChannelId) -> bool {
        self.channels[channel.index()].global_prefetch_count > 0
    }

    /// Moves a consumer that got a message to the end of its channel's list, so that the channel's next
    /// credit goes to the consumer that has waited longest.
    #[cold]
    pub(super) fn move_to_end_of_channel(&mut self, channel: ChannelId, index: usize) {
        let list = &mut self.channels[channel.index()].consumers;
        list.remove(&mut self.consumers, index, |consumer| &mut consumer.channel_links);
        list.push_back(&mut self.consumers, index, |consumer| &mut consumer.channel_links);
    }

    /// Returns whether the output and the delivery share of the consumer's connection have capacity.
    #[inline(always)]
    pub(crate) fn connection_can_take(&self, queues: &Queues, quota: &Quota, index: usize) -> bool {
        let connection = self.connection_of(self.consumers[index].channel);
        let record = &self.connections[connection.index()];
        record.writable
            && record.outbox_bytes < self.output_budget_bytes
            && quota.may_take_delivery(connection, queues.deliveries().free_count())
    }

    /// Returns the number of messages that the eligible consumers of a queue can take now by their prefetch
    /// limits. Only the first [`WAITING_EXAMINED_MAX`] consumers are counted.
    ///
    /// A consumer without a limit counts as `u32::MAX` messages, which is more than a queue can have.
    pub(crate) fn waiting_credit(&self, queues: &Queues, quota: &Quota, queue: QueueId) -> u64 {
        let queue_record = queues.records().record_of_queue(queue);
        if queue_record.blocking_jobs > 0 {
            return 0;
        }
        let (mut credit, mut at) = (0, queue_record.queue_consumers.eligible.front());
        for _ in 0..WAITING_EXAMINED_MAX {
            let Some(consumer) = at else { break };
            if self.connection_can_take(queues, quota, consumer) {
                credit += u64::from(self.credit(consumer));
            }
            at = List::after(&self.consumers, consumer, |consumer| &consumer.eligible_links);
        }
        credit
    }

    /// Returns whether the outbox of a connection has at least `times` the output budget.
    pub(crate) fn is_output_full(&self, connection: ConnectionId, times: u64) -> bool {
        self.connections[connection.index()].outbox_bytes >= times * self.output_budget_bytes
    }

    // ---- the list of a queue

    /// Puts a consumer on its queue's list of eligible consumers, behind those of its priority, if it has
    /// credit and is not paused.
    pub(crate) fn make_eligible(&mut self, work: &mut Work, queues: &mut Queues, index: usize) {
        let consumer = &self.consumers[index];
        // Credit is checked first: an ended consumer has none, and its queue may be deleted.
        if consumer.is_eligible || consumer.is_paused || !self.has_credit(index) {
            return;
        }
        let queue = consumer.queue;
        if queues.records().queue_consumers(queue).keeps_waiting(index) {
            return;
        }
        self.enter_eligible(work, queues, index);
        queues.records_mut().wake(queue);
    }

    /// Calls [`Self::make_eligible`] for all consumers of a channel, because the channel's credit has
    /// changed.
    pub(crate) fn make_all_eligible(&mut self, work: &mut Work, queues: &mut Queues, channel: ChannelId) {
        let mut at = self.channels[channel.index()].consumers.front();
        while let Some(index) = at {
            at = List::after(&self.consumers, index, |consumer| &consumer.channel_links);
            work.charge(1);
            self.make_eligible(work, queues, index);
        }
    }

    fn enter_eligible(&mut self, work: &mut Work, queues: &mut Queues, index: usize) {
        let (queue, priority) = (self.consumers[index].queue, self.consumers[index].priority);
        let eligible = &mut queues.records_mut().queue_consumers_mut(queue).eligible;
        let (mut after, mut steps) = (eligible.back(), 0);
        while let Some(other) = after {
            if self.consumers[other].priority >= priority {
                break;
            }
            steps += 1;
            after = List::before(&self.consumers, other, |consumer| &consumer.eligible_links);
        }
        eligible.insert_after(&mut self.consumers, after, index, |consumer| &mut consumer.eligible_links);
        self.consumers[index].is_eligible = true;
        work.charge(steps);
    }

    /// Removes a consumer from its queue's list of eligible consumers.
    pub(crate) fn leave_eligible(&mut self, queues: &mut Queues, index: usize) {
        if !core::mem::take(&mut self.consumers[index].is_eligible) {
            return;
        }
        let queue = self.consumers[index].queue;
        let eligible = &mut queues.records_mut().queue_consumers_mut(queue).eligible;
        eligible.remove(&mut self.consumers, index, |consumer| &mut consumer.eligible_links);
        let record = queues.at(queue);
        if record.settings.limits_length
            && !record.queue_consumers.is_ready()
            && queues.records().is_over_length(queue)
        {
            // The queue kept messages over its length limit for this consumer.
            queues.relist_for_trim(queue);
        }
        if queues.at(queue).settings.overflow != Overflow::DropHead {
            // The credit of this consumer no longer counts for the length limit, so a waiting publish may be
            // refused now.
            queues.note_release();
        }
    }

    /// Makes all other consumers of a queue with a single active consumer ineligible.
    pub(crate) fn keep_one_active(&mut self, queues: &mut Queues, queue: QueueId) {
        let mut at = queues.records().queue_consumers(queue).eligible.front();
        while let Some(index) = at {
            at = List::after(&self.consumers, index, |consumer| &consumer.eligible_links);
            if queues.records().queue_consumers(queue).keeps_waiting(index) {
                self.leave_eligible(queues, index);
            }
        }
    }

    /// Moves a consumer that got a message behind the others of its priority.
    pub(super) fn rotate(&mut self, work: &mut Work, queues: &mut Queues, index: usize) {
        if queues.records().queue_consumers(self.consumers[index].queue).eligible.len() > 1 {
            self.leave_eligible(queues, index);
            self.enter_eligible(work, queues, index);
        }
    }

    // ---- the list of a connection

    /// Pauses a consumer whose connection takes no more messages now: it is not eligible until
    /// [`Self::resume_consumers`].
    pub(crate) fn pause_consumer(&mut self, queues: &mut Queues, quota: &Quota, index: usize) {
        self.leave_eligible(queues, index);
        let connection = self.connection_of(self.consumers[index].channel);
        let record = &mut self.connections[connection.index()];
        if record.paused.is_empty() {
            // A publish that waits on the same connection may now use the reserve, because messages wait for
            // the connection.
            queues.note_release();
        }
        record.paused.push_back(&mut self.consumers, index, |consumer| &mut consumer.connection_links);
        self.consumers[index].is_paused = true;
        self.note_share(queues, quota, connection);
    }

    /// Makes the paused consumers of a connection eligible again, if the connection can take messages now. If it has used up
    /// its share of deliveries, it is checked again after settlements.
    pub(crate) fn resume_consumers(
        &mut self,
        work: &mut Work,
        queues: &mut Queues,
        quota: &Quota,
        connection: ConnectionId,
    ) {
        let record = &self.connections[connection.index()];
        let can_take = record.writable
            && !record.is_closed()
            && record.outbox_bytes < self.output_budget_bytes
            && quota.may_take_delivery(connection, queues.deliveries().free_count());
        if !can_take {
            // A consumer that was paused because the output was full may find that its share has been used up since.
            if !record.paused.is_empty() {
                self.note_share(queues, quota, connection);
            }
            return;
        }
        let paused = |all: &mut Self| {
            let record = &mut all.connections[connection.index()];
            record.paused.pop_front(&mut all.consumers, |consumer| &mut consumer.connection_links)
        };
        while let Some(index) = paused(self) {
            self.consumers[index].is_paused = false;
            self.make_eligible(work, queues, index);
        }
    }

    pub(super) fn leave_paused(&mut self, index: usize) {
        if !core::mem::take(&mut self.consumers[index].is_paused) {
            return;
        }
        let connection = self.connection_of(self.consumers[index].channel);
        let record = &mut self.connections[connection.index()];
        record.paused.remove(&mut self.consumers, index, |consumer| &mut consumer.connection_links);
    }

    // ---- the share of deliveries

    /// Sets whether the socket can take more output. While it cannot, no consumer of the connection gets
    /// messages.
    pub(crate) fn set_writable(
        &mut self,
        work: &mut Work,
        queues: &mut Queues,
        quota: &Quota,
        connection: ConnectionId,
        writable: bool,
    ) {
        let was_writable = core::mem::replace(&mut self.connections[connection.index()].writable, writable);
        if writable && !was_writable {
            self.resume_consumers(work, queues, quota, connection);
        }
    }

    /// If a connection with paused consumers has used up its share of deliveries, puts it on the list of
    /// those that are checked again after settlements, also by other connections.
    fn note_share(&mut self, queues: &Queues, quota: &Quota, connection: ConnectionId) {
        let is_beyond = !quota.may_take_delivery(connection, queues.deliveries().free_count());
        let record = &mut self.connections[connection.index()];
        if is_beyond && !core::mem::replace(&mut record.waits_for_share, true) {
            self.over_share.push(connection);
        }
    }

    /// Notes that a delivery was settled: the connections that have used up their share are checked again.
    #[inline]
    pub(crate) fn note_settled(&mut self) {
        self.over_share.note_change();
    }

    /// Returns whether a connection that had used up its share may take messages again.
    #[inline]
    pub(crate) const fn may_resume_over_share(&self) -> bool {
        self.over_share.is_due()
    }

    /// Resumes the consumers of connections that had used up their share, if a delivery was settled since and
    /// their share has capacity again.
    pub(crate) fn recheck_over_share(&mut self, work: &mut Work, queues: &mut Queues, quota: &Quota) {
        if !self.over_share.take_due() {
            return;
        }
        for _ in 0..self.over_share.waiter_count() {
            let Some(connection) = self.over_share.pop() else { break };
            // The connection may have been lost since.
            let Some(record) = self.connections.get_mut(connection.index()) else { continue };
            if !core::mem::take(&mut record.waits_for_share) {
                continue;
            }
            self.resume_consumers(work, queues, quota, connection);
        }
    }

    /// Returns a consumer that could take a message but is on no list, which is a fault of the broker: it
    /// would never get a message.
    #[cfg(debug_assertions)]
    pub(crate) fn forgotten_consumer(&self, queues: &Queues) -> Option<usize> {
        let is_forgotten = |index: usize| {
            let consumer = &self.consumers[index];
            // A paused consumer is resumed when output is written, when the socket is writable again, or after a settlement.
            let record = &self.connections[self.connection_of(consumer.channel).index()];
            let is_paused = consumer.is_paused
                && (record.waits_for_share
                    || record.is_closed()
                    || !record.writable
                    || record.outbox_bytes >= self.output_budget_bytes);
            !consumer.is_eligible
                && !is_paused
                && self.has_credit(index)
                && !queues.records().queue_consumers(consumer.queue).keeps_waiting(index)
        };
        self.consumers.iter().map(|(index, _)| index).find(|index| is_forgotten(*index))
    }
}
