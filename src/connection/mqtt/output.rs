//! Writes stored packets and deliveries to the output buffer of the event loop.
//!
//! Between two packets the order is: PINGRESP, stored packets that may be sent, and then the next delivery. Written bytes
//! count as sent: the event loop keeps the bytes that the socket does not accept.
//!
//! # Invariants
//! - Stored packets are written completely. A delivery may be split at any byte, and the next call continues there.
//! - While the connection is being closed, no delivery is begun. Nor is one begun before CONNACK is written.

use leveret_amqp::props::Properties;
use leveret_core::batch::Batch;
use leveret_core::command::{Delivery, DeliveryKind, Outbox, SubscriptionDelivery};
use leveret_core::mem::Messages;
use leveret_mqtt::{OutgoingPublish, OutgoingQoS, PACKET_LEN_MAX, PINGRESP, ReasonCode, Version, Writer};

use super::super::connection::Context;
use super::super::output::Filled;
use super::aliases::TOPIC_ALIAS_MAX;
use super::answers::{RECORD_BYTES_MAX, RECORD_HEAD_BYTES};
use super::properties::Outgoing;
use super::{Begun, MqttConnection, Phase};

/// Whether more can be written to the output buffer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    Continue,
    BufferFull,
    /// Subscriptions were deleted with the queue or the virtual host, so the header of the partly written PUBLISH has
    /// changed.
    HeaderChanged,
}

/// A delivery that is written as a PUBLISH.
struct OutgoingDelivery<'d, O> {
    outbox: &'d O,
    delivery: &'d Delivery<'d>,
    qos: OutgoingQoS,
}

impl MqttConnection {
    /// Writes what may be sent now to `out`, which must have space for the longest stored packet; 512 bytes are enough.
    pub(in super::super) fn fill<O: Outbox>(
        &mut self,
        context: &mut Context<'_>,
        out: &mut [u8],
        outbox: &mut O,
    ) -> Filled {
        let mut filled = Filled::default();
        self.output.delivery_batch = Batch::NONE;
        loop {
            if self.output.begun.is_none()
                && self.write_packets(context, out, &mut filled) == Progress::BufferFull
            {
                break;
            }
            if !matches!(self.phase, Phase::Open { .. }) {
                break;
            }
            if self.output.is_connack_due {
                // CONNACK is the first packet (MQTT-3.2.0-1).
                self.output.delivery_batch = self.output.first_batch;
                break;
            }
            let Some(delivery) = outbox.peek() else { break };
            if delivery.batch > context.durable {
                self.output.delivery_batch = delivery.batch;
                break;
            }
            match self.write_delivery(context, out, &mut filled, outbox, &delivery) {
                Progress::Continue => outbox.advance(),
                Progress::BufferFull => break,
                Progress::HeaderChanged => {
                    let text = format_args!("its subscriptions were deleted while a message was sent");
                    self.end(context, ReasonCode::AdministrativeAction, text);
                    break;
                }
            }
        }
        filled
    }

    /// Writes PINGRESP and the stored packets that may be sent.
    fn write_packets(&mut self, context: &mut Context<'_>, out: &mut [u8], filled: &mut Filled) -> Progress {
        // CONNACK is the first packet (MQTT-3.2.0-1).
        while self.output.pingresp_count > 0 && !self.output.is_connack_due && self.output.part_left == 0 {
            let Some(free) = out[filled.bytes..].first_chunk_mut() else { return Progress::BufferFull };
            *free = PINGRESP;
            filled.bytes += PINGRESP.len();
            self.output.pingresp_count -= 1;
        }
        self.output.durable = context.durable;
        if !context.withholds_answers && self.output.part_left == 0 {
            self.release_answers(context);
        }
        while self.has_sendable_packet() {
            let pool = &mut context.pools.replies;
            let is_begun = self.output.part_left > 0;
            let len = match self.output.part_left {
                0 => {
                    let mut head = [0; RECORD_HEAD_BYTES];
                    self.output.packets.copy_front(pool, &mut head);
                    usize::from(u16::from_be_bytes([head[8], head[9]]))
                }
                left => usize::from(left),
            };
            let free_len = out.len() - filled.bytes;
            // Only the answer to a long SUBSCRIBE is written in parts: it may be longer than the buffer.
            if free_len < len && (free_len == 0 || len <= RECORD_BYTES_MAX && !is_begun) {
                return Progress::BufferFull;
            }
            if !is_begun {
                self.output.packets.consume(pool, RECORD_HEAD_BYTES);
            }
            let free = &mut out[filled.bytes..][..len.min(free_len)];
            self.output.packets.copy_front(pool, free);
            self.output.packets.consume(pool, free.len());
            filled.bytes += free.len();
            self.output.part_left = (len - free.len()) as u16;
            if self.output.part_left > 0 {
                return Progress::BufferFull;
            }
            if self.output.packets.is_empty() {
                // A connection has one long answer at a time.
                let shared_bytes = core::mem::take(&mut self.long_answer_bytes) as usize;
                context.pools.long_answer_bytes_left += shared_bytes;
            }
            let pool = &mut context.pools.replies;
            (self.output.first_batch, self.output.is_connack_due) = (Batch::NONE, false);
            if !self.output.packets.is_empty() {
                let mut batch = [0; 8];
                self.output.packets.copy_front(pool, &mut batch);
                self.output.first_batch = Batch::from_be_bytes(batch);
            }
        }
        Progress::Continue
    }

    /// Writes a delivery, or the rest of a partly written one, as far as it fits.
    fn write_delivery<O: Outbox>(
        &mut self,
        context: &mut Context<'_>,
        out: &mut [u8],
        filled: &mut Filled,
        outbox: &O,
        delivery: &Delivery<'_>,
    ) -> Progress {
        let qos = match delivery.kind {
            _ if delivery.is_withdrawn && self.output.begun.is_none() => {
                assert!(filled.deliveries == 0, "only the first delivery can belong to a closed channel");
                filled.is_first_dropped = true;
                filled.deliveries += 1;
                return Progress::Continue;
            }
            DeliveryKind::Publish(SubscriptionDelivery::AtMostOnce) => OutgoingQoS::AtMostOnce,
            DeliveryKind::Publish(SubscriptionDelivery::AtLeastOnce(packet_id)) => {
                OutgoingQoS::AtLeastOnce(packet_id)
            }
            DeliveryKind::Publish(SubscriptionDelivery::ExactlyOnce(packet_id)) => {
                OutgoingQoS::ExactlyOnce(packet_id)
            }
            DeliveryKind::Publish(SubscriptionDelivery::Skip) => {
                filled.deliveries += 1;
                return Progress::Continue;
            }
            DeliveryKind::Deliver { .. } | DeliveryKind::GetOk { .. } | DeliveryKind::Return(_) => {
                unreachable!("all deliveries of a session are those of its subscriptions")
            }
        };
        let (body_len, out_len) = (context.messages.body_len(delivery.message), out.len());
        let free = &mut out[filled.bytes..];
        let mut begun = self.output.begun.unwrap_or_default();
        if free.is_empty() {
            return Progress::BufferFull;
        }
        let mut head_len = 0;
        if begun.sent == 0 || begun.sent < u64::from(begun.header_len) {
            let outgoing = OutgoingDelivery { outbox, delivery, qos };
            match self.write_head(context, &outgoing, free, out_len, &mut begun) {
                Ok(len) => head_len = len,
                Err(progress) => return progress,
            }
        }
        let messages = &*context.messages;
        let body_at = begun.sent.saturating_sub(u64::from(begun.header_len)) as u32;
        let take = ((body_len - body_at) as usize).min(free.len() - head_len);
        if take > 0 {
            let mut cursor = messages.body_cursor(delivery.message, body_at);
            messages.read(delivery.message, &mut cursor, &mut free[head_len..head_len + take]);
        }
        filled.bytes += head_len + take;
        begun.sent += take as u64;
        if begun.sent < u64::from(begun.header_len) + u64::from(body_len) {
            self.output.begun = Some(begun).filter(|begun| begun.sent > 0);
            return Progress::BufferFull;
        }
        self.output.begun = None;
        filled.deliveries += 1;
        Progress::Continue
    }

    /// Writes the part of a PUBLISH before its payload to `free`, or the rest of it, and returns the length. `out_len` is the
    /// length of an empty buffer.
    ///
    /// # Errors
    /// Nothing was written.
    #[inline]
    fn write_head<O: Outbox>(
        &mut self,
        context: &mut Context<'_>,
        outgoing: &OutgoingDelivery<'_, O>,
        free: &mut [u8],
        out_len: usize,
        begun: &mut Begun,
    ) -> Result<usize, Progress> {
        let OutgoingDelivery { outbox, delivery, qos } = *outgoing;
        let messages = &*context.messages;
        let body_len = messages.body_len(delivery.message);
        let buffer = &mut context.pools.mqtt_properties;
        let waited_ms = context.broker_time_ms.saturating_sub(messages.arrived_ms(delivery.message));
        let has_properties = self.version == Version::V5;
        // A bridge of MQTT 3.1.1 gets no properties, but RETAIN as published, which is one in AMQP.
        let mut properties = match has_properties || self.client_limits.is_bridge {
            true => properties_of(messages, delivery, waited_ms, buffer),
            false => Outgoing::default(),
        };
        let ids = &mut context.pools.subscription_ids;
        let mut retain_as_published = false;
        ids.clear();
        let has_options = has_properties || self.client_limits.is_bridge;
        for subscription in outbox.matched_subscriptions(messages).take_while(|_| has_options) {
            ids.extend(subscription.id);
            retain_as_published |= subscription.retain_as_published;
        }
        let ids = ids.iter().copied();
        let (key, mut topic) = (messages.routing_key(delivery.message), [0; 255]);
        let topic = &mut topic[..key.len()];
        write_topic(key, topic);
        // Only retained messages have this exchange: other messages are published to `amq.topic`.
        let is_replayed = messages.exchange_len(delivery.message) == 0;
        let retain_as_published = properties.is_retain_published && retain_as_published;
        let mut publish = OutgoingPublish {
            is_duplicate: delivery.redelivered && qos.packet_id().is_some(),
            qos,
            retain: is_replayed || retain_as_published,
            topic,
            payload_len: body_len,
        };
        if begun.sent == 0 {
            let len_max = self.client_limits.packet_len_max;
            let fits = |properties| {
                let is_unlimited = len_max >= PACKET_LEN_MAX;
                is_unlimited || publish.packet_len(self.version, properties) <= len_max.into()
            };
            begun.has_ids = fits(properties.iter(None, ids.clone()));
            let has_space = fits(properties.iter(Some(TOPIC_ALIAS_MAX), ids.clone()));
            let alias = self.aliases_out.alias_of(publish.topic);
            begun.alias = alias.filter(|alias| has_space || !alias.is_new);
        } else {
            // All parts of a packet contain the same number.
            properties.expiry_s = begun.expiry_s;
        }
        if begun.alias.is_some_and(|alias| !alias.is_new) {
            publish.topic = &[];
        }
        let ids = ids.take(if begun.has_ids { usize::MAX } else { 0 });
        let properties_iter = || properties.iter(begun.alias.map(|alias| alias.number), ids.clone());
        let total = publish.packet_len(self.version, properties_iter());
        // A delivery that fits into an empty buffer is not split: the next call writes it.
        if begun.sent == 0 && total > free.len() as u64 && total <= out_len as u64 {
            return Err(Progress::BufferFull);
        }
        let header_len = (total - u64::from(body_len)) as u32;
        if begun.sent > 0 && header_len != begun.header_len {
            return Err(Progress::HeaderChanged);
        }
        if let Some(alias) = begun.alias.filter(|alias| alias.is_new && begun.sent == 0) {
            self.aliases_out.assign(alias, publish.topic);
        }
        (begun.header_len, begun.expiry_s) = (header_len, properties.expiry_s);
        let mut writer = Writer::part(free, begun.sent as usize);
        let written = publish.write_header(&mut writer, self.version, properties_iter());
        assert!(written.is_ok(), "the broker has compared the length with the client's limit");
        let head_len = writer.written().len();
        begun.sent += head_len as u64;
        Ok(head_len)
    }

    // ---- what the server asks

    fn has_sendable_packet(&self) -> bool {
        !self.output.packets.is_empty() && self.output.first_batch <= self.output.durable
    }

    /// Returns whether there is output besides complete deliveries in the outbox.
    pub(in super::super) fn has_output(&self) -> bool {
        let has_sendable_delivery =
            self.output.delivery_batch > Batch::NONE && self.output.delivery_batch <= self.output.durable;
        let has_pingresp = self.output.pingresp_count > 0 && !self.output.is_connack_due;
        has_pingresp || self.has_sendable_packet() || self.has_remainder() || has_sendable_delivery
    }

    /// Returns whether a delivery or a stored packet was written only partly.
    pub(in super::super) const fn has_remainder(&self) -> bool {
        self.output.begun.is_some() || self.output.part_left > 0
    }

    /// Returns whether there is an answer or a delivery that waits for the disk.
    pub(in super::super) fn awaits_disk(&self) -> bool {
        let is_answer_awaited =
            !self.output.packets.is_empty() && self.output.first_batch > self.output.durable;
        is_answer_awaited || self.output.delivery_batch > self.output.durable
    }

    /// Returns whether the header of a PUBLISH was written only partly.
    pub(super) fn has_partial_header(&self) -> bool {
        self.output.begun.is_some_and(|begun| begun.sent < u64::from(begun.header_len))
    }

    /// Notes the newest durable batch.
    pub(in super::super) const fn note_durable(&mut self, context: &Context<'_>) {
        self.output.durable = context.durable;
    }
}

/// Returns the properties of a delivery to an MQTT 5 client. The message has waited for `waited_ms` milliseconds in the
/// broker. The AMQP properties are copied to `buffer` if they are not contiguous; if they do not fit, there are none.
fn properties_of<'a>(
    messages: &'a Messages,
    delivery: &Delivery<'_>,
    waited_ms: u64,
    buffer: &'a mut [u8],
) -> Outgoing<'a> {
    let has_arrived = messages.arrived_ms(delivery.message) > 0;
    if messages.properties_len(delivery.message) as usize > buffer.len() {
        return Outgoing::default();
    }
    let properties = Properties::trusted(messages.properties(delivery.message, buffer));
    Outgoing::of(properties, if has_arrived { waited_ms } else { 0 })
}

/// Writes the topic of a routing key: see `leveret_core::topic`.
fn write_topic(key: &[u8], topic: &mut [u8]) {
    for (octet, other) in topic.iter_mut().zip(key) {
        *octet = match *other {
            b'.' => b'/',
            b'/' => b'.',
            other => other,
        };
    }
}
