//! Packets of MQTT clients about messages: acknowledgements, and the packet identifiers of QoS 2. See [`super`].

use core::num::NonZeroU16;

use leveret_core::batch::Batch;
use leveret_core::command::{
    ChannelId, ConnectionId, MqttAnswer, PublishAnswer, QueueId, SESSION_EXACTLY_ONCE_MAX, SessionId,
    Settlement, SubscriptionDelivery,
};
use leveret_core::definition::{self, Definition, SessionPart};
use leveret_core::error::{Fault, ReplyCode};
use leveret_core::mem::MessageId;
use leveret_queues::DeliveryMethod;
use leveret_storage::{PendingWrites, Settled, Urgency};

use super::packet_ids::{RANGES_MAX, TooManyRanges};
use super::{CONSUMER_TAG, InFlight, MessageKey, PACKET_IDS, Step, TAG_AGE_MAX};
use crate::restored::Restored;
use crate::retained::RetainedChange;
use crate::{Broker, Context};

/// A definition as it is in the log.
type KeyAndValue = (Box<[u8]>, Box<[u8]>);

fn too_many_ranges(_: TooManyRanges) -> Fault {
    let text = format_args!(
        "the packet identifiers of messages with QoS 2 that the client has not released form more than {RANGES_MAX} \
         ranges; the client must use consecutive ones, and release them in order"
    );
    Fault::connection(ReplyCode::ResourceError, text)
}

impl Broker {
    /// Returns the tag of a delivery that was sent on the connection of the session, and its position in
    /// [`Session::in_flight`](super::Session::in_flight) if it is there. A client cannot acknowledge what was not sent to it.
    fn find_sent_packet(
        &self,
        session: SessionId,
        packet_id: NonZeroU16,
        step: Step,
    ) -> Option<(u64, Option<usize>)> {
        let record = self.sessions.at(session);
        let (_, channel) = record.attached?;
        let is_it = |delivery: &InFlight| delivery.packet_id == packet_id && delivery.step == step;
        if let Some(at) = record.in_flight.iter().position(is_it) {
            let tag = record.in_flight[at].tag;
            return self.clients.find_sent(&self.queues, channel, tag).map(|_| (tag, Some(at)));
        }
        let tag = record.tag_of(packet_id, self.clients.channel(channel).last_tag)?;
        let index = self.clients.find_sent(&self.queues, channel, tag)?;
        let method = DeliveryMethod::Publish(SubscriptionDelivery::AtLeastOnce(packet_id));
        let is_it = step == Step::AwaitsPuback && self.queues.deliveries()[index].method == method;
        is_it.then_some((tag, None))
    }

    /// Returns the tag for the next delivery of a session that the client must acknowledge, so that its packet identifier is
    /// free.
    pub(super) fn next_packet_tag(&mut self, session: SessionId, channel: ChannelId) -> u64 {
        let next = self.clients.channel(channel).last_tag + 1;
        while let Some(index) = self.oldest_by_tag(session, channel, next)
            && !self.sessions.at(session).is_held()
        {
            self.keep_packet_id(session, index);
        }
        let mut tag = next;
        while self.is_packet_id_used(session, channel, tag) {
            tag += 1;
        }
        self.clients.channel_mut(channel).last_tag = tag - 1;
        tag
    }

    /// Returns whether the packet identifier that follows from a tag is that of another delivery.
    fn is_packet_id_used(&self, session: SessionId, channel: ChannelId, tag: u64) -> bool {
        let record = self.sessions.at(session);
        record.has_in_flight(record.packet_id_of(tag))
            || tag > PACKET_IDS && self.queues.deliveries().find(channel, tag - PACKET_IDS).is_some()
    }

    /// Returns the oldest delivery whose packet identifier follows from its tag, if the packet identifier of `next` comes close
    /// to it.
    fn oldest_by_tag(&self, session: SessionId, channel: ChannelId, next: u64) -> Option<usize> {
        let mut unacknowledged = self.unacknowledged_by_tag(session, channel);
        unacknowledged.next().filter(|index| next - self.queues.deliveries()[*index].tag >= TAG_AGE_MAX)
    }

    /// Returns the deliveries with QoS 1 that were sent on a channel and whose packet identifiers follow from their tags,
    /// oldest first.
    fn unacknowledged_by_tag(&self, session: SessionId, channel: ChannelId) -> impl Iterator<Item = usize> {
        let deliveries = self.queues.deliveries();
        let in_flight = &self.sessions.at(session).in_flight;
        deliveries.unacknowledged(&self.clients.channel(channel).unacknowledged).filter(move |index| {
            let delivery = &deliveries[*index];
            let is_at_least_once =
                matches!(delivery.method, DeliveryMethod::Publish(SubscriptionDelivery::AtLeastOnce(_)));
            is_at_least_once && in_flight.iter().all(|other| other.tag != delivery.tag)
        })
    }

    /// Puts a delivery with QoS 1 into [`Session::in_flight`](super::Session::in_flight), with the packet identifier that
    /// follows from its tag.
    fn keep_packet_id(&mut self, session: SessionId, index: usize) {
        let delivery = &self.queues.deliveries()[index];
        let record = self.sessions.at_mut(session);
        let packet_id = record.packet_id_of(delivery.tag);
        let message = MessageKey::of_delivery(delivery);
        let tag = delivery.tag;
        record.add_in_flight(InFlight {
            packet_id,
            message,
            step: Step::AwaitsPuback,
            tag,
            batch: Batch::NONE,
        });
    }

    /// Keeps the last packet identifier, and those of the oldest deliveries with QoS 1 that were written. These are sent again
    /// with them on the next connection of the session (MQTT-4.4.0-1).
    ///
    /// The list has at most [`SESSION_EXACTLY_ONCE_MAX`] deliveries then, because it takes memory for each absent client.
    /// Others get new packet identifiers. A client does nothing with that of a message with QoS 1 but return it.
    pub(super) fn keep_packet_ids(&mut self, session: SessionId, channel: ChannelId) {
        let last_tag = self.clients.channel(channel).last_tag;
        let room = SESSION_EXACTLY_ONCE_MAX.saturating_sub(self.sessions.at(session).in_flight.len());
        let deliveries = self.queues.deliveries();
        let sent =
            self.unacknowledged_by_tag(session, channel).take_while(|index| deliveries[*index].is_sent);
        let kept: heapless::Vec<usize, SESSION_EXACTLY_ONCE_MAX> = sent.take(room).collect();
        kept.into_iter().for_each(|index| self.keep_packet_id(session, index));
        let record = self.sessions.at_mut(session);
        if last_tag > 0 {
            record.last_packet_id = record.packet_id_of(last_tag).get();
        }
        // A takeover calls this before the connection is closed, which calls it once more.
        self.clients.channel_mut(channel).last_tag = 0;
    }

    /// Stops or continues the deliveries to a client after [`Session::in_flight`](super::Session::in_flight) has changed.
    pub(super) fn update_hold(&mut self, session: SessionId) {
        let record = self.sessions.at(session);
        let Some((_, channel)) = record.attached else { return };
        let is_held = record.is_held();
        if let Some(index) = self.clients.find_by_tag(channel, CONSUMER_TAG) {
            self.clients.consumer_mut(index).is_held = is_held;
        }
    }

    /// Handles PUBACK, or with [`Step::AwaitsPubrec`] a PUBREC that ends the exchange. Settles the message.
    pub(crate) fn acknowledge_packet(
        &mut self,
        cx: &mut Context<'_>,
        connection: ConnectionId,
        packet_id: NonZeroU16,
        step: Step,
    ) -> Result<(), Fault> {
        let session = self.session_of(connection)?;
        let found = self.find_sent_packet(session, packet_id, step);
        let (Some((tag, at)), Some((_, channel))) = (found, self.sessions.at(session).attached) else {
            if step == Step::AwaitsPuback && self.is_in_flight_exactly_once(session, packet_id) {
                let text =
                    format_args!("PUBACK for the message with QoS 2 and packet identifier {packet_id}");
                return Err(Fault::connection(ReplyCode::UnexpectedFrame, text));
            }
            return Ok(());
        };
        if let Some(at) = at {
            self.sessions.at_mut(session).in_flight.remove(at);
            self.update_hold(session);
        }
        self.settle(cx, channel, tag, false, Settlement::Ack)
    }

    /// Returns whether a delivery with QoS 2 has this packet identifier.
    fn is_in_flight_exactly_once(&self, session: SessionId, packet_id: NonZeroU16) -> bool {
        let mut in_flight = self.sessions.at(session).in_flight.iter();
        in_flight.any(|delivery| delivery.packet_id == packet_id && delivery.step != Step::AwaitsPuback)
    }

    /// Handles PUBREC: settles the message, and releases the packet identifier. The settlement is in no earlier commit
    /// than the release: otherwise, after a power cut, the client would wait for a PUBREL that is never sent.
    pub(crate) fn receive_packet(
        &mut self,
        cx: &mut Context<'_>,
        connection: ConnectionId,
        packet_id: NonZeroU16,
    ) -> Result<MqttAnswer, Fault> {
        let session = self.session_of(connection)?;
        let found = self.find_sent_packet(session, packet_id, Step::AwaitsPubrec);
        let (Some((tag, Some(at))), Some((_, channel))) = (found, self.sessions.at(session).attached) else {
            let record = self.sessions.at(session);
            // The client may repeat PUBREC, because it has not received PUBREL.
            let is_released = record.released().any(|released| released == packet_id);
            cx.await_defined(record.deliveries_batch);
            return Ok(if is_released { MqttAnswer::Done } else { MqttAnswer::UnknownPacket });
        };
        let settled = self.settle(cx, channel, tag, false, Settlement::Ack);
        let delivery = &mut self.sessions.at_mut(session).in_flight[at];
        (delivery.step, delivery.tag) = (Step::Released, 0);
        self.write_deliveries(cx, session);
        if let Some(index) = self.clients.find_by_tag(channel, CONSUMER_TAG) {
            self.clients.consumer_mut(index).unacknowledged += 1;
        }
        settled.map(|()| MqttAnswer::Done)
    }

    /// Handles PUBCOMP: the packet identifier is free. The log gets this with the next change of the state. After a power
    /// cut before it, PUBREL is sent once more.
    pub(crate) fn complete_packet(
        &mut self,
        cx: &mut Context<'_>,
        connection: ConnectionId,
        packet_id: NonZeroU16,
    ) -> Result<(), Fault> {
        let session = self.session_of(connection)?;
        let record = self.sessions.at_mut(session);
        let is_it = |delivery: &InFlight| delivery.packet_id == packet_id && delivery.step == Step::Released;
        let (Some(at), Some((_, channel))) = (record.in_flight.iter().position(is_it), record.attached)
        else {
            return Ok(());
        };
        record.in_flight.remove(at);
        self.update_hold(session);
        if let Some(index) = self.clients.find_by_tag(channel, CONSUMER_TAG) {
            self.clients.consumer_mut(index).unacknowledged -= 1;
            self.clients.make_eligible(cx.work, &mut self.queues, index);
        }
        Ok(())
    }

    /// Returns whether a session has messages, and its client gets none before it has completed exchanges.
    /// PUBCOMP may be behind a PUBLISH that waits for the memory of these messages.
    pub(crate) fn awaits_pubcomp(&self, session: SessionId) -> bool {
        let record = self.sessions.at(session);
        if record.released().next().is_none() {
            return false;
        }
        let consumer =
            record.attached.and_then(|(_, channel)| self.clients.find_by_tag(channel, CONSUMER_TAG));
        record.queue.is_some_and(|queue| self.queues.records().ready_in(queue) > 0)
            && consumer.is_some_and(|consumer| !self.clients.has_credit(consumer))
    }

    /// Returns whether a message with this packet identifier was published and not released.
    pub(crate) fn is_received(&self, connection: ConnectionId, packet_id: NonZeroU16) -> bool {
        let session = self.clients.connection(connection).session;
        session.is_some_and(|session| self.sessions.at(session).received.contains(packet_id))
    }

    /// Returns whether a message that is to be refused was published before. Then it is not refused: the client would use its
    /// packet identifier for another message, which would be taken for a repetition. The reply waits until the message is
    /// durable.
    pub(crate) fn find_published(
        &self,
        cx: &mut Context<'_>,
        connection: ConnectionId,
        packet_id: NonZeroU16,
    ) -> Result<PublishAnswer, Fault> {
        let record = self.sessions.at(self.session_of(connection)?);
        if !record.received.contains(packet_id) {
            return Ok(PublishAnswer::NotPublished);
        }
        cx.await_defined(record.received_batch);
        Ok(PublishAnswer::Published)
    }

    /// Publishes a message with QoS 2, unless the packet identifier shows that it was published before. The message and its
    /// packet identifier become durable together, and not before the change of the retained message.
    pub(crate) fn publish_once(
        &mut self,
        cx: &mut Context<'_>,
        channel: ChannelId,
        message: MessageId,
        retained: Option<RetainedChange>,
        packet_id: NonZeroU16,
    ) -> Result<PublishAnswer, Fault> {
        let connection = self.clients.connection_of(channel);
        let session = self.session_of(connection).inspect_err(|_| cx.messages.release(message))?;
        let record = self.sessions.at_mut(session);
        if record.received.contains(packet_id) {
            cx.await_defined(record.received_batch);
            cx.messages.release(message);
            return Ok(PublishAnswer::Published);
        }
        record
            .received
            .insert(packet_id)
            .map_err(too_many_ranges)
            .inspect_err(|_| cx.messages.release(message))?;
        let changes_before = cx.pending_writes.change_count();
        cx.pending_writes.begin_group();
        let mut outcome = self.publish(cx, channel, message, false);
        let is_accepted = matches!(outcome, Ok(PublishAnswer::Published | PublishAnswer::PublishedNowhere));
        if is_accepted {
            self.define_received(cx, session);
        }
        if let Some(change) = retained {
            // If only this is durable at a power cut, the client publishes both once more.
            outcome = outcome.map(|outcome| self.retain_if_published(cx, outcome, change, message));
        }
        let batch = cx.pending_writes.end_group(cx.messages, Urgency::Awaited);
        if !is_accepted {
            let removed = self.sessions.at_mut(session).received.remove(packet_id);
            assert_eq!(removed, Ok(true), "it was inserted, so its removal needs no other range than before");
        }
        if is_accepted && cx.pending_writes.change_count() != changes_before {
            self.sessions.at_mut(session).received_batch = batch;
            cx.await_batch(batch);
        }
        outcome
    }

    /// Handles PUBREL: the client may use the packet identifier for another message.
    pub(crate) fn release_packet(
        &mut self,
        cx: &mut Context<'_>,
        connection: ConnectionId,
        packet_id: NonZeroU16,
    ) -> Result<MqttAnswer, Fault> {
        let session = self.session_of(connection)?;
        let record = self.sessions.at_mut(session);
        if !record.received.remove(packet_id).map_err(too_many_ranges)? {
            cx.await_defined(record.received_batch);
            return Ok(MqttAnswer::UnknownPacket);
        }
        self.write_received(cx, session);
        Ok(MqttAnswer::Done)
    }

    /// Appends the packet identifiers that were received to the log, behind all messages, if the session is kept.
    fn write_received(&mut self, cx: &mut Context<'_>, session: SessionId) {
        if let Some((key, value)) = self.session_state(session, SessionPart::Received) {
            let batch = cx.pending_writes.define_behind_messages(cx.messages, key, Some(value));
            let record = self.sessions.at_mut(session);
            (record.is_received_stored, record.received_batch) = (true, batch);
            cx.await_batch(batch);
        }
    }

    /// Adds the packet identifiers that were received to the open group, if the session is kept.
    fn define_received(&mut self, cx: &mut Context<'_>, session: SessionId) {
        if let Some((key, value)) = self.session_state(session, SessionPart::Received) {
            cx.pending_writes.define_in_group(key, Some(value));
            self.sessions.at_mut(session).is_received_stored = true;
        }
    }

    /// Appends the deliveries with QoS 2 of a session to the log, if there are new ones and the session is kept. They are
    /// sent when they are durable.
    pub(crate) fn write_due_deliveries(&mut self, cx: &mut Context<'_>, session: SessionId) {
        if self.sessions.at(session).are_deliveries_due {
            self.write_deliveries(cx, session);
        }
    }

    fn write_deliveries(&mut self, cx: &mut Context<'_>, session: SessionId) {
        let batch = match self.session_state(session, SessionPart::Deliveries) {
            Some((key, value)) => {
                cx.pending_writes.define(key, Some(value));
                // The batch has the settlements of released deliveries, too.
                cx.pending_writes.await_settles()
            }
            None => Batch::NONE,
        };
        cx.await_batch(batch);
        let record = self.sessions.at_mut(session);
        (record.are_deliveries_due, record.deliveries_batch) = (false, batch);
        record.are_deliveries_stored |= batch != Batch::NONE;
        for delivery in record.in_flight.iter_mut().filter(|delivery| delivery.batch > batch) {
            delivery.batch = batch;
        }
    }

    /// Returns the virtual host, the queue and its incarnation of a session that is in the log; `None` if it is not.
    pub(crate) fn session_in_log(&self, session: SessionId) -> Option<(&str, &str, u64)> {
        let queue = self.queues.at(self.sessions.at(session).queue?);
        let incarnation = queue.durable_index.incarnation();
        let names = (self.access.vhost_name(queue.vhost), &*queue.name, incarnation);
        queue.durable_index.is_logged().then_some(names)
    }

    /// Returns the restored session that has a queue with this incarnation.
    pub(crate) fn restored_session(&self, vhost: &str, queue: &str, incarnation: u64) -> Option<SessionId> {
        let vhost = self.access.find_vhost(vhost)?;
        let record = self.queues.at(self.queues.records().find_queue(vhost, queue)?);
        record.session().filter(|_| record.durable_index.incarnation() == incarnation)
    }

    /// Returns a part of the state of a session as a definition; `None` if the session is not kept.
    fn session_state(&self, session: SessionId, part: SessionPart) -> Option<KeyAndValue> {
        let (vhost, queue, incarnation) = self.session_in_log(session)?;
        let state = self.sessions.at(session).state(part);
        let definition = definition::SessionState { vhost, queue, part, incarnation, state: &state };
        let definition = Definition::SessionState(definition);
        Some((definition.key(), definition.value()))
    }

    /// At start, settles the messages of released deliveries that are still in the log: a power cut came before their
    /// settlement. `is_live` returns whether a message is in the log. Returns their offsets.
    pub(crate) fn settle_released_deliveries(
        &mut self,
        pending_writes: &mut PendingWrites,
        queue: QueueId,
        is_live: impl Fn(u64) -> bool,
    ) -> Vec<u64> {
        let record = self.queues.at(queue);
        let (Some(session), incarnation) = (record.session(), record.durable_index.incarnation()) else {
            return Vec::new();
        };
        let released_offset = |delivery: &InFlight| {
            let offset = delivery.message.offset().filter(|_| delivery.step == Step::Released);
            offset.filter(|offset| is_live(*offset))
        };
        let record = self.sessions.at_mut(session);
        let offsets: Vec<u64> = record.in_flight.iter().filter_map(released_offset).collect();
        for start in &offsets {
            pending_writes.settle_stored(Settled { queue: incarnation, start: *start, end: start + 1 });
        }
        if !offsets.is_empty() {
            record.deliveries_batch = pending_writes.await_settles();
        }
        offsets
    }

    /// Returns the batch with which the packet identifier of a delivery with QoS 2 is durable.
    pub(crate) fn packet_batch(&self, connection: ConnectionId, packet_id: NonZeroU16) -> Batch {
        let session = self.clients.connection(connection).session.map(|session| self.sessions.at(session));
        let is_it = |delivery: &&InFlight| delivery.packet_id == packet_id;
        let delivery = session.and_then(|session| session.in_flight.iter().find(is_it));
        delivery.map_or(Batch::NONE, |delivery| delivery.batch)
    }

    /// Uses up `count` packet identifiers of every session, as if as many deliveries had been acknowledged.
    ///
    /// The simulator uses it to reach identifiers that are in use quickly.
    #[cfg(debug_assertions)]
    pub fn pass_packet_ids(&mut self, count: u16) {
        for index in 0..self.sessions.slab.places() {
            let Some(session) = self.sessions.id_at(index) else { continue };
            let record = self.sessions.at_mut(session);
            let Some((_, channel)) = record.attached else {
                // A full list may lack deliveries, whose packet identifiers must not come up again so soon.
                if record.in_flight.len() < SESSION_EXACTLY_ONCE_MAX {
                    record.last_packet_id = record.last_packet_id.wrapping_add(count);
                }
                continue;
            };
            // As many as may be put into the list of deliveries in flight at once.
            let by_tag = self.unacknowledged_by_tag(session, channel).count();
            if by_tag + self.sessions.at(session).in_flight.len() < SESSION_EXACTLY_ONCE_MAX {
                self.clients.channel_mut(channel).last_tag += u64::from(count);
                self.next_packet_tag(session, channel);
            }
        }
    }

    /// Gives a restored session its state from the log.
    pub(crate) fn restore_session_state(&mut self, stored: &definition::SessionState<'_>) -> Restored {
        match self.restored_session(stored.vhost, stored.queue, stored.incarnation) {
            Some(session) => {
                self.sessions.at_mut(session).restore_state(stored.part, stored.state);
                Restored::Exists(None)
            }
            None => Restored::Orphaned,
        }
    }

    /// Deletes the state of a session from the log, before its queue is deleted.
    pub(super) fn delete_session_state(&mut self, cx: &mut Context<'_>, session: SessionId, queue: QueueId) {
        let (vhost, queue) = (self.queues.at(queue).vhost, &self.queues.at(queue).name);
        let vhost = self.access.vhost_name(vhost);
        let key = |part| {
            let state = definition::SessionState { vhost, queue, part, ..Default::default() };
            Definition::SessionState(state).key()
        };
        let record = self.sessions.at_mut(session);
        if core::mem::take(&mut record.are_deliveries_stored) {
            cx.pending_writes.define(key(SessionPart::Deliveries), None);
        }
        if core::mem::take(&mut record.is_received_stored) {
            cx.pending_writes.define_behind_messages(cx.messages, key(SessionPart::Received), None);
        }
        let batch = cx.pending_writes.last_entry_batch();
        cx.await_batch(batch);
    }
}
