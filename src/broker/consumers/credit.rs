//! Decides which consumers can take another message: prefetch, capacity of the output, share of the
//! deliveries.
//!
//! ```text
//! eligible: on its queue's list ──output full, or share used up──→ parked: on its connection's list
//!     ↑ credit again                                                  │ written, settled
//!     └───────────────────────────────────────────────────────────────┘
//! ```
//!
//! # Invariants
//! - A consumer without credit, or whose connection takes no more, is on no queue's list and costs nothing
//!   until that changes.
//! - The eligible consumers of a queue are served by priority, and within a priority in turn: first the one
//!   that was served longest ago.
//! - The single active consumer of a queue is the first on the queue's list.

use leveret_core::command::{ChannelId, ConnectionId, QueueId};
use leveret_core::mem::List;

use super::ConsumerState;
use super::Consumers;
use crate::arguments::Overflow;
use crate::context::Work;
use crate::queue_flow::Queues;
use crate::quota::Quota;

/// Maximum number of consumers examined for one that takes a message which expires at once.
const WAITING_EXAMINED_MAX: u32 = 64;

impl Consumers {
    // ---- credit

    /// Returns whether the prefetch limits allow a consumer another message.
    #[inline(always)]
    pub(crate) fn has_credit(&self, index: usize) -> bool {
        let consumer = &self.slab[index];
        if consumer.state != ConsumerState::Active {
            return false;
        }
        let channel = &self.channels[consumer.channel.index()];
        let own = consumer.no_ack
            || consumer.prefetch_count == 0
            || consumer.unsettled < u32::from(consumer.prefetch_count);
        // As in RabbitMQ, a consumer with automatic acknowledgement waits while others have used up the
        // channel's prefetch.
        let shared = channel.global_prefetch_count == 0
            || channel.consumer_unsettled < u32::from(channel.global_prefetch_count);
        own && shared
    }

    /// Returns how many more messages the prefetch limits allow a consumer.
    pub(crate) fn credit(&self, index: usize) -> u32 {
        let consumer = &self.slab[index];
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

    /// Returns whether the consumers of a channel share a prefetch (`basic.qos` with global=true).
    #[inline(always)]
    pub(crate) fn shares_credit(&self, channel: ChannelId) -> bool {
        self.channels[channel.index()].global_prefetch_count > 0
    }

    /// Notes that a consumer received a message: the next credit of its channel goes to the consumer that has
    /// waited longest.
    #[cold]
    pub(super) fn move_to_end_of_channel(&mut self, channel: ChannelId, index: usize) {
        let list = &mut self.channels[channel.index()].consumers;
        list.remove(&mut self.slab, index, |consumer| &mut consumer.channel_links);
        list.push_back(&mut self.slab, index, |consumer| &mut consumer.channel_links);
    }

    /// Returns whether the output and the delivery share of the consumer's connection have capacity.
    #[inline(always)]
    pub(crate) fn connection_can_take(&self, queues: &Queues, quota: &Quota, index: usize) -> bool {
        let connection = self.connection_of(self.slab[index].channel);
        let record = &self.connections[connection.index()];
        record.writable
            && record.outbox_bytes < self.output_budget_bytes
            && quota.may_take_delivery(connection, queues.deliveries().free_count())
    }

    /// Returns how many messages the first [`WAITING_EXAMINED_MAX`] waiting consumers of a queue can take now by
    /// their prefetch limits.
    ///
    /// A number beyond what a queue can hold means that there is no limit.
    pub(crate) fn waiting_credit(&self, queues: &Queues, quota: &Quota, queue: QueueId) -> u64 {
        let whole = queues.records().record_of_queue(queue);
        if whole.blocking_jobs > 0 {
            return 0;
        }
        let (mut credit, mut at) = (0, whole.queue_consumers.eligible.front());
        for _ in 0..WAITING_EXAMINED_MAX {
            let Some(consumer) = at else { break };
            if self.connection_can_take(queues, quota, consumer) {
                credit += u64::from(self.credit(consumer));
            }
            at = List::after(&self.slab, consumer, |consumer| &consumer.eligible_links);
        }
        credit
    }

    /// Returns whether the outbox of a connection has at least `times` the output budget.
    pub(crate) fn is_output_full(&self, connection: ConnectionId, times: u64) -> bool {
        self.connections[connection.index()].outbox_bytes >= times * self.output_budget_bytes
    }

    // ---- the list of a queue

    /// Puts a consumer on its queue's list of eligible consumers, behind those of its priority, if it may
    /// take a message.
    pub(crate) fn make_eligible(&mut self, work: &mut Work, queues: &mut Queues, index: usize) {
        let consumer = &self.slab[index];
        // Credit is checked first: an ended consumer has none, and its queue may be deleted.
        if consumer.eligible || consumer.parked || !self.has_credit(index) {
            return;
        }
        let queue = consumer.queue;
        if queues.records().queue_consumers(queue).keeps_waiting(index) {
            return;
        }
        self.enter_eligible(work, queues, index);
        queues.records_mut().wake(queue);
    }

    /// Makes all consumers of a channel eligible that may take a message now, because its credit has changed.
    pub(crate) fn make_all_eligible(&mut self, work: &mut Work, queues: &mut Queues, channel: ChannelId) {
        let mut at = self.channels[channel.index()].consumers.front();
        while let Some(index) = at {
            at = List::after(&self.slab, index, |consumer| &consumer.channel_links);
            work.charge(1);
            self.make_eligible(work, queues, index);
        }
    }

    fn enter_eligible(&mut self, work: &mut Work, queues: &mut Queues, index: usize) {
        let (queue, priority) = (self.slab[index].queue, self.slab[index].priority);
        let eligible = &mut queues.records_mut().queue_consumers_mut(queue).eligible;
        let (mut after, mut steps) = (eligible.back(), 0);
        while let Some(other) = after {
            if self.slab[other].priority >= priority {
                break;
            }
            steps += 1;
            after = List::before(&self.slab, other, |consumer| &consumer.eligible_links);
        }
        eligible.insert_after(&mut self.slab, after, index, |consumer| &mut consumer.eligible_links);
        self.slab[index].eligible = true;
        work.charge(steps);
    }

    /// Removes a consumer from its queue's list of eligible consumers.
    pub(crate) fn leave_eligible(&mut self, queues: &mut Queues, index: usize) {
        if !core::mem::take(&mut self.slab[index].eligible) {
            return;
        }
        let queue = self.slab[index].queue;
        let eligible = &mut queues.records_mut().queue_consumers_mut(queue).eligible;
        eligible.remove(&mut self.slab, index, |consumer| &mut consumer.eligible_links);
        let record = queues.at(queue);
        if record.settings.limits_length
            && !record.queue_consumers.is_ready()
            && queues.records().is_over_length(queue)
        {
            // Messages over the length limit waited for this consumer.
            queues.relist_for_trim(queue);
        }
        if queues.at(queue).settings.overflow != Overflow::DropHead {
            // A publisher that waits for space on the disk may be refused now.
            queues.note_release();
        }
    }

    /// Makes all other consumers of a queue with a single active consumer ineligible.
    pub(crate) fn keep_one_active(&mut self, queues: &mut Queues, queue: QueueId) {
        let mut at = queues.records().queue_consumers(queue).eligible.front();
        while let Some(index) = at {
            at = List::after(&self.slab, index, |consumer| &consumer.eligible_links);
            if queues.records().queue_consumers(queue).keeps_waiting(index) {
                self.leave_eligible(queues, index);
            }
        }
    }

    /// Moves a consumer that was served behind the others of its priority.
    pub(super) fn rotate(&mut self, work: &mut Work, queues: &mut Queues, index: usize) {
        if queues.records().queue_consumers(self.slab[index].queue).eligible.len() > 1 {
            self.leave_eligible(queues, index);
            self.enter_eligible(work, queues, index);
        }
    }

    // ---- the list of a connection

    /// Parks a consumer whose connection takes no more now: it is eligible again when that changes.
    pub(crate) fn park(&mut self, queues: &mut Queues, quota: &Quota, index: usize) {
        self.leave_eligible(queues, index);
        let connection = self.connection_of(self.slab[index].channel);
        let record = &mut self.connections[connection.index()];
        if record.parked.is_empty() {
            // A publisher that waits on the same connection may use the reserve now.
            queues.note_release();
        }
        record.parked.push_back(&mut self.slab, index, |consumer| &mut consumer.connection_links);
        self.slab[index].parked = true;
        self.note_share(queues, quota, connection);
    }

    /// Lets the parked consumers of a connection try again.
    pub(crate) fn unpark(
        &mut self,
        work: &mut Work,
        queues: &mut Queues,
        quota: &Quota,
        connection: ConnectionId,
    ) {
        let record = &self.connections[connection.index()];
        let can_take = record.writable
            && !record.is_lost
            && record.outbox_bytes < self.output_budget_bytes
            && quota.may_take_delivery(connection, queues.deliveries().free_count());
        if !can_take {
            return;
        }
        let parked = |all: &mut Self| {
            let record = &mut all.connections[connection.index()];
            record.parked.pop_front(&mut all.slab, |consumer| &mut consumer.connection_links)
        };
        while let Some(index) = parked(self) {
            self.slab[index].parked = false;
            self.make_eligible(work, queues, index);
        }
    }

    pub(super) fn leave_parked(&mut self, index: usize) {
        if !core::mem::take(&mut self.slab[index].parked) {
            return;
        }
        let connection = self.connection_of(self.slab[index].channel);
        let record = &mut self.connections[connection.index()];
        record.parked.remove(&mut self.slab, index, |consumer| &mut consumer.connection_links);
    }

    // ---- the share of deliveries

    /// Sets whether the socket takes more. While it does not, none of the connection's consumers gets
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
            self.unpark(work, queues, quota, connection);
        }
    }

    /// Notes that a consumer of a connection is parked. If the delivery share is the reason, settlements on
    /// other connections may unblock it.
    fn note_share(&mut self, queues: &Queues, quota: &Quota, connection: ConnectionId) {
        let is_beyond = !quota.may_take_delivery(connection, queues.deliveries().free_count());
        let record = &mut self.connections[connection.index()];
        if is_beyond && !core::mem::replace(&mut record.waits_for_share, true) {
            self.over_share.push(connection);
        }
    }

    /// Notes that a delivery was settled: connections refused for their share may try again.
    #[inline]
    pub(crate) fn note_settled(&mut self) {
        self.over_share.note_change();
    }

    /// Returns whether a connection that was refused for its share may try again.
    #[inline]
    pub(crate) const fn has_share_news(&self) -> bool {
        self.over_share.is_due()
    }

    /// Lets connections that were refused for their share try again, if something was settled since.
    pub(crate) fn recheck_over_share(&mut self, work: &mut Work, queues: &mut Queues, quota: &Quota) {
        if !self.over_share.take_due() {
            return;
        }
        for _ in 0..self.over_share.len() {
            let Some(connection) = self.over_share.pop() else { break };
            // The connection may have been lost since.
            let Some(record) = self.connections.get_mut(connection.index()) else { continue };
            if !core::mem::take(&mut record.waits_for_share) {
                continue;
            }
            self.unpark(work, queues, quota, connection);
            if !self.connections[connection.index()].parked.is_empty() {
                self.note_share(queues, quota, connection);
            }
        }
    }

    /// Returns a consumer that could take a message but is on no list, so that it would be forgotten.
    #[cfg(debug_assertions)]
    pub(crate) fn forgotten_consumer(&self, queues: &Queues) -> Option<usize> {
        let is_forgotten = |index: usize| {
            let consumer = &self.slab[index];
            let is_listed = consumer.eligible || consumer.parked;
            !is_listed
                && self.has_credit(index)
                && !queues.records().queue_consumers(consumer.queue).keeps_waiting(index)
        };
        self.slab.iter().map(|(index, _)| index).find(|index| is_forgotten(*index))
    }
}

/// The consumers of one queue, in the order in which they are served.
#[derive(Debug, Default)]
pub(crate) struct QueueConsumers {
    pub(super) all: List,
    pub(super) eligible: List,
    /// One consumer is exclusive.
    pub(super) has_exclusive: bool,
    /// The queue has a single active consumer: the others wait until that one ends.
    pub(super) is_single_active: bool,
}

impl QueueConsumers {
    /// Creates an empty list of consumers. `is_single_active`: the queue has a single active consumer.
    pub(crate) fn new(is_single_active: bool) -> Self {
        Self { is_single_active, ..Self::default() }
    }

    /// Sets whether the queue has a single active consumer.
    pub(crate) const fn set_single_active(&mut self, is_single_active: bool) {
        self.is_single_active = is_single_active;
    }

    /// Returns the number of consumers of the queue.
    pub(crate) const fn len(&self) -> u32 {
        self.all.len()
    }

    /// Returns whether the queue has no consumers.
    pub(crate) const fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Returns the first consumer on the list.
    pub(crate) const fn first(&self) -> Option<usize> {
        self.all.front()
    }

    /// Returns whether the queue has an exclusive consumer.
    pub(crate) const fn has_exclusive(&self) -> bool {
        self.has_exclusive
    }

    /// Returns whether the queue refuses an exclusive consumer: it has consumers, or a single active
    /// consumer.
    pub(crate) const fn is_taken(&self) -> bool {
        !self.all.is_empty() || self.is_single_active
    }

    /// Returns whether any consumer can take a message now.
    #[inline]
    pub(crate) const fn is_ready(&self) -> bool {
        !self.eligible.is_empty()
    }

    /// Returns the consumer that gets the next message.
    #[inline]
    pub(crate) const fn next(&self) -> Option<usize> {
        self.eligible.front()
    }

    /// Returns the single active consumer of a queue with that argument.
    pub(crate) const fn single_active(&self) -> Option<usize> {
        if self.is_single_active { self.all.front() } else { None }
    }

    /// Returns whether a consumer has to wait until the single active consumer ends.
    pub(crate) fn keeps_waiting(&self, consumer: usize) -> bool {
        self.is_single_active && self.all.front() != Some(consumer)
    }
}
