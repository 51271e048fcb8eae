//! Queues and their deliveries: queues begin and end, deliveries are counted, settled, requeued and rejected.
//!
//! Always true: a queue is on the ready list exactly when it has a message, a consumer that can take it, and nothing
//! that has to come first.

use super::backlog::{Purged, PurgedItem, block_bytes};
use super::deliveries::{Carrier, Delivered, NewDelivery};
use super::place::{Lane, Place};
use super::queue::{Front, Queue};
use super::state::Queues;
use crate::broker::Context;
use crate::broker::faults::out_of;
use crate::broker::letters::Reason;
use crate::command::{QueueId, VhostId};
use crate::error::Fault;
use crate::mem::{List, Messages};

impl Queues {
    /// How often the message was requeued, in a queue that tells: on a first delivery only basic.get-ok tells
    /// it, as in RabbitMQ. After a restart it is known that the message was delivered, and not how often.
    #[inline]
    pub(crate) fn delivery_count(&self, delivery: &Delivered) -> Option<u16> {
        if delivery.carrier == Carrier::Deliver && !delivery.redelivered {
            return None;
        }
        let tells = self.slab[delivery.queue?.index()].settings.tells_returns;
        tells.then(|| delivery.returns.max(delivery.redelivered.into()))
    }

    /// Settles the message of a delivery, which leaves the queue for good.
    #[inline]
    pub(crate) fn settle_delivered(&mut self, cx: &mut Context<'_>, queue: QueueId, delivery: &Delivered) {
        match (delivery.message, delivery.logged) {
            (Some(message), logged) => {
                self.settle_logged(cx, queue, logged, message);
                cx.messages.release(message);
            }
            (None, Some(offset)) => self.settle_run(cx.journal, queue, Lane::Durable, offset, 1),
            (None, None) => {}
        }
    }

    fn purge_place(&mut self, cx: &mut Context<'_>, queue: QueueId, place: Place) {
        match place {
            Place::Plain(message) => cx.messages.release(message),
            Place::Logged(message, offset) => {
                self.settle_logged(cx, queue, Some(offset), message);
                cx.messages.release(message);
            }
            Place::Spilled(message, offset) => {
                self.cancel_spill(cx, queue, message, offset);
                cx.messages.release(message);
            }
            Place::Stored(lane, start, count) => self.settle_run(cx.journal, queue, lane, start, count),
        }
    }

    /// Adds a queue under its name. The caller counted it against the quotas.
    ///
    /// # Errors
    /// There is no room for another queue.
    pub(crate) fn insert(&mut self, mut record: Queue) -> Result<QueueId, Fault> {
        record.serial = self.next_serial();
        let (vhost, name) = (record.vhost, record.name.clone());
        self.dead_lettering += u32::from(record.buries_logged());
        self.has_deadlines |= record.settings.may_expire;
        let index = self.slab.insert(record).map_err(|_| out_of("queues_max"))?;
        self.table.insert((vhost, &*name), index);
        Ok(QueueId::from_index(index))
    }

    /// Adds the hidden queue of a delayed exchange, which has no name. The caller counted it against the
    /// quotas.
    ///
    /// # Errors
    /// There is no room for another queue.
    pub(crate) fn insert_hidden(&mut self, mut record: Queue) -> Result<QueueId, Fault> {
        assert!(record.name.is_empty() && record.hidden, "nobody can name it");
        record.serial = self.next_serial();
        // Delayed messages need the clock from now on.
        self.has_deadlines = true;
        let index = self.slab.insert(record).map_err(|_| out_of("queues_max"))?;
        Ok(QueueId::from_index(index))
    }

    /// Puts a queue at the end of a connection's exclusive queues.
    pub(crate) fn enter_owned(&mut self, owned: &mut List, queue: QueueId) {
        owned.push_back(&mut self.slab, queue.index(), |queue| &mut queue.listed.owner_links);
    }

    /// Takes a queue off the list of a connection's exclusive queues.
    pub(crate) fn leave_owned(&mut self, owned: &mut List, queue: QueueId) {
        owned.remove(&mut self.slab, queue.index(), |queue| &mut queue.listed.owner_links);
    }

    /// The bindings whose destination is this queue.
    pub(crate) fn bindings_mut(&mut self, queue: QueueId) -> &mut List {
        &mut self.slab[queue.index()].bindings
    }

    /// Takes the name of a queue away, and the queue off the ready list: nothing is delivered from it any more.
    pub(crate) fn retire(&mut self, queue: QueueId) {
        let record = &mut self.slab[queue.index()];
        assert!(!record.dying, "a queue is retired once");
        record.dying = true;
        self.dead_lettering -= u32::from(record.buries_logged());
        self.table.remove((record.vhost, &*record.name), queue.index());
        self.leave_ready(queue);
    }

    /// Frees the record of a cleared queue, or of a level, once neither a delivery nor a level refers to it; gives it,
    /// with the queue that it was a level of, for that may be done with now.
    pub(crate) fn take_if_done(&mut self, queue: QueueId) -> Option<(Queue, Option<QueueId>)> {
        // The last reference to a queue may ask once more than needed.
        let record = self.slab.get(queue.index())?;
        if !record.cleared || record.unsettled.count > 0 || record.returning > 0 || record.has_levels() {
            return None;
        }
        let whole = self.take_off(queue);
        let record = self.slab.remove(queue.index());
        if record.listed.is_shedding {
            self.shedding.forget(queue);
        }
        Some((record, whole))
    }

    /// The queue of this name.
    pub(crate) fn find_queue(&self, vhost: VhostId, name: &str) -> Option<QueueId> {
        let is_it = |index: usize| self.slab[index].vhost == vhost && &*self.slab[index].name == name;
        self.table.find((vhost, name), is_it).map(QueueId::from_index)
    }

    /// Whether the queue can have no message for a get yet. An expired first message is looked at anew, for
    /// nobody else may do so.
    pub(crate) fn is_kept_from_get(&self, queue: QueueId) -> bool {
        let record = &self.slab[self.first_level(queue).index()];
        record.front == Front::Blocked && !record.dying
    }

    // ---- deliveries

    /// Counts a delivery as unsettled in its queue. The caller made sure of room in the pool.
    pub(crate) fn count_delivery(&mut self, messages: &Messages, new: &NewDelivery) {
        let Some(queue) = new.queue else { return };
        let record = &mut self.slab[queue.index()];
        record.unsettled.count += 1;
        record.unsettled.body_bytes += u64::from(messages.body_len(new.message));
        record.unsettled.bytes += block_bytes(messages, new.message);
    }

    /// Counts a settled delivery out of its queue; gives the bytes of blocks that its message occupies.
    pub(crate) fn uncount_delivery(&mut self, messages: &Messages, index: usize) -> u64 {
        let delivery = &self.deliveries[index];
        let bytes = delivery.message.map_or(0, |message| block_bytes(messages, message));
        if let Some(queue) = delivery.queue {
            let record = &mut self.slab[queue.index()];
            record.unsettled.count -= 1;
            record.unsettled.body_bytes -= u64::from(delivery.body_len);
            match delivery.message {
                Some(_) => record.unsettled.bytes -= bytes,
                None => record.unsettled.absent -= 1,
            }
            debug_assert!(record.unsettled.count > 0 || record.unsettled.body_bytes == 0, "counted alike");
        }
        bytes
    }

    /// Counts that a delivery is requeued once more; says whether that is beyond the delivery limit of its
    /// queue.
    pub(crate) fn comes_back_too_often(&mut self, index: usize) -> bool {
        let delivery = &mut self.deliveries[index];
        delivery.returns = delivery.returns.saturating_add(1);
        let queue = delivery.queue.map(|queue| &self.slab[queue.index()]);
        queue.is_some_and(|record| {
            !record.dying && u32::from(delivery.returns) > record.settings.delivery_limit
        })
    }

    /// Requeues, at its old place, a delivery that no longer counts for any consumer.
    pub(crate) fn put_back(&mut self, messages: &Messages, queue: QueueId, index: usize) {
        let backlog = &mut self.slab[queue.index()].backlog;
        backlog.put_back(&mut self.pool, &mut self.deliveries, messages, index);
        // The requeued message goes before the one that the queue waits for, and may take the very memory
        // that this needs.
        self.unstall(queue);
    }

    /// Rejects, for this reason, a delivery that no longer counts for any consumer: it waits apart until its
    /// dead letter goes on.
    pub(crate) fn reject(&mut self, messages: &Messages, queue: QueueId, index: usize, reason: Reason) {
        self.deliveries.keep(index);
        self.deliveries[index].death = Some(reason);
        self.slab[queue.index()].backlog.reject(&mut self.deliveries, messages, index);
    }

    /// Drops the next piece of a purged queue; `false`: there was none.
    pub(crate) fn drop_purged(&mut self, cx: &mut Context<'_>, queue: QueueId, parts: &mut Purged) -> bool {
        let item = parts.pop(&mut self.pool, &mut self.deliveries);
        match item {
            Some(PurgedItem::Delivered(delivery)) => self.settle_delivered(cx, queue, &delivery),
            Some(PurgedItem::Place(place)) => self.purge_place(cx, queue, place),
            None => return false,
        }
        self.releases += 1;
        true
    }
}
