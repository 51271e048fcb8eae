//! Deliveries that are not completely written (the outbox of a connection), and unacknowledged deliveries of
//! a channel.
//!
//! # Invariants
//! - The bytes in an outbox exceed the output budget by at most a few messages. A client that does not read
//!   therefore occupies a bounded amount of memory.
//! - A tag is settled at most once, and only when its delivery was completely written.

use leveret_core::command::{ChannelId, ConnectionId, ConsumerId, QueueId, ReplyOrder};
use leveret_core::mem::Messages;
use leveret_core::quota::Quota;
use leveret_core::work::Work;
use leveret_queues::{DeliveryMethod, NewDelivery, Queues, Taken};

use super::{Clients, ConsumerState};

/// Approximate bytes of the frames around a small body.
const FRAMES_BYTES: u32 = 48;

impl Clients {
    // ---- into the outbox

    /// Returns a delivery of the taken message with the next delivery tag of the consumer's channel, and
    /// counts the delivery in the consumer's prefetch.
    #[inline]
    pub(crate) fn next_delivery(
        &mut self,
        index: usize,
        queue: QueueId,
        taken: &Taken,
        method: DeliveryMethod,
    ) -> NewDelivery {
        let consumer = &mut self.consumers[index];
        consumer.unsettled += 1;
        let channel = consumer.channel;
        // Packet identifiers of MQTT follow from tags, so only a PUBLISH that has one takes a tag.
        let (no_ack, takes_tag) = match method {
            DeliveryMethod::Publish(delivery) => (!delivery.is_acknowledged(), delivery.is_acknowledged()),
            DeliveryMethod::Deliver | DeliveryMethod::Get(_) | DeliveryMethod::Return => {
                (consumer.no_ack, true)
            }
        };
        let record = &mut self.channels[channel.index()];
        consumer.unacknowledged += u32::from(!no_ack);
        if !no_ack && consumer.state != ConsumerState::Get {
            record.consumer_unsettled += 1;
        }
        record.last_tag += u64::from(takes_tag);
        NewDelivery {
            tag: record.last_tag,
            order: taken.order,
            log_offset: taken.log_offset,
            message: taken.message,
            channel,
            consumer: Some(ConsumerId::from_index(index)),
            queue: Some(queue),
            method,
            redelivered: taken.redelivered,
            requeues: taken.requeues,
            no_ack,
        }
    }

    /// Ends the turn of a consumer that got a message: moves it behind the other consumers of its queue, and
    /// of its channel if these share a prefetch.
    #[inline]
    pub(crate) fn end_consumer_turn(&mut self, work: &mut Work, queues: &mut Queues, index: usize) {
        if self.has_credit(index) {
            self.rotate(work, queues, index);
        } else {
            self.leave_eligible(queues, index);
        }
        let channel = self.consumers[index].channel;
        if self.shares_credit(channel) {
            self.move_to_end_of_channel(channel, index);
        }
    }

    /// Appends a delivery to its connection's outbox, and to its channel's list of unacknowledged deliveries
    /// unless acknowledgement is automatic. Counts the delivery in its queue, if it has one.
    ///
    /// The caller has checked the capacity of the pool. `now_s` is the time of the delivery in seconds since
    /// the start of the process.
    pub(crate) fn put_into_outbox(
        &mut self,
        messages: &Messages,
        queues: &mut Queues,
        quota: &mut Quota,
        new: NewDelivery,
        now_s: impl FnOnce() -> u32,
    ) {
        let channel = &mut self.channels[new.channel.index()];
        let connection_id = channel.connection;
        let body_len = messages.body_len(new.message);
        let wire_bytes = body_len + messages.properties_len(new.message) + FRAMES_BYTES;
        queues.count_delivery(messages, &new);
        quota.take_delivery(connection_id, messages.footprint_bytes(new.message).into());
        let connection = &mut self.connections[connection_id.index()];
        connection.sequence += 1;
        let sequence = connection.sequence;
        connection.outbox_bytes += u64::from(wire_bytes);
        let is_acknowledged = !new.no_ack;
        let deliveries = queues.deliveries_mut();
        let index = deliveries.insert(new, sequence, wire_bytes, body_len);
        let index = index.expect("the caller checked that a delivery record is free");
        deliveries.enter_outbox(&mut connection.outbox, index);
        channel.outbox_len += 1;
        channel.outbox_last = sequence;
        if is_acknowledged {
            deliveries[index].delivered_s = now_s();
            deliveries.enter_unacknowledged(&mut channel.unacknowledged, index);
        }
        if connection.outbox.len() == 1 {
            self.note_output(connection_id);
        }
    }

    // ---- out of the outbox

    /// Removes a delivery from the outbox, written or not.
    pub(crate) fn leave_outbox(&mut self, queues: &mut Queues, connection: ConnectionId, index: usize) {
        let deliveries = queues.deliveries_mut();
        let (channel, bytes) = (deliveries[index].channel, deliveries[index].wire_bytes);
        let record = &mut self.connections[connection.index()];
        record.outbox_bytes -= u64::from(bytes);
        deliveries.leave_outbox(&mut record.outbox, index);
        self.channels[channel.index()].outbox_len -= 1;
    }

    /// Removes a delivery from its channel's list of unacknowledged deliveries: its tag is unknown from now
    /// on.
    #[inline]
    pub(crate) fn leave_unacknowledged(&mut self, queues: &mut Queues, channel: ChannelId, index: usize) {
        let list = &mut self.channels[channel.index()].unacknowledged;
        queues.deliveries_mut().leave_unacknowledged(list, index);
    }

    /// Returns the index of the completely written, unacknowledged delivery with this tag.
    pub(crate) fn find_sent(&self, queues: &Queues, channel: ChannelId, tag: u64) -> Option<usize> {
        let head = self.channels[channel.index()].unacknowledged.front()?;
        let deliveries = queues.deliveries();
        let index = if deliveries[head].tag == tag { head } else { deliveries.find(channel, tag)? };
        deliveries[index].is_sent.then_some(index)
    }

    /// Returns the index of the channel's oldest unacknowledged delivery, if it was completely written and
    /// its tag is at most `through`.
    pub(crate) fn first_sent(&self, queues: &Queues, channel: ChannelId, through: u64) -> Option<usize> {
        let index = self.channels[channel.index()].unacknowledged.front()?;
        let delivery = &queues.deliveries()[index];
        (delivery.is_sent && delivery.tag <= through).then_some(index)
    }

    /// Subtracts a delivery from the counts of its queue, connection, channel and consumer.
    pub(crate) fn uncount_delivery(
        &mut self,
        messages: &Messages,
        queues: &mut Queues,
        quota: &mut Quota,
        index: usize,
    ) {
        let bytes = queues.uncount_delivery(messages, index);
        let delivery = &queues.deliveries()[index];
        let channel = &mut self.channels[delivery.channel.index()];
        quota.give_delivery_back(channel.connection, bytes);
        if let Some(consumer) = delivery.consumer {
            let consumer = &mut self.consumers[consumer.index()];
            consumer.unsettled -= 1;
            consumer.unacknowledged -= u32::from(!delivery.no_ack);
            if !delivery.no_ack && consumer.state != ConsumerState::Get {
                channel.consumer_unsettled -= 1;
            }
        }
        self.note_settled();
    }

    // ---- notifications for the event loop

    /// Puts a connection on the list of those whose output this turn must process.
    pub(crate) fn note_output(&mut self, connection: ConnectionId) {
        let record = &mut self.connections[connection.index()];
        if !core::mem::replace(&mut record.is_on_output_list, true) {
            self.output.push_back(connection);
        }
    }

    /// Removes and returns the next connection whose output this turn must process.
    pub(crate) fn next_with_output(&mut self) -> Option<ConnectionId> {
        let connection = self.output.pop_front()?;
        if let Some(record) = self.connections.get_mut(connection.index()) {
            record.is_on_output_list = false;
        }
        Some(connection)
    }

    /// Returns whether the turn must process any connection's output.
    #[inline]
    pub(crate) fn has_connections_with_output(&self) -> bool {
        !self.output.is_empty()
    }

    /// Returns whether a connection has deliveries or `basic.cancel` notifications to send.
    pub(crate) fn has_output(&self, connection: ConnectionId) -> bool {
        let record = &self.connections[connection.index()];
        !record.outbox.is_empty() || !record.cancelled.is_empty()
    }

    /// Returns the position of a reply on a channel: the sequence number of the delivery behind which it must
    /// be sent, which is the channel's last one in the outbox; 0 if there is none.
    pub(crate) fn reply_order(&self, connection: ConnectionId, channel: Option<ChannelId>) -> ReplyOrder {
        let Some(channel) = channel else { return 0 };
        match self.channels.get(channel.index()) {
            Some(record) if record.connection == connection && record.outbox_len > 0 => record.outbox_last,
            _ => 0,
        }
    }
}
