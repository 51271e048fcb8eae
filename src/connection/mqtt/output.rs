//! Writes stored packets and deliveries to the output buffer of the event loop.
//!
//! Between two packets the order is: PINGRESP, stored packets that may be sent, and then the next delivery. Written bytes
//! count as sent: the event loop keeps the bytes that the socket does not accept.
//!
//! # Invariants
//! - Stored packets are written completely. A delivery may be split at any byte, and the next call continues there.
//! - While the connection is being closed, no delivery is begun. Nor is one begun before CONNACK is written.

use leveret_core::command::{Delivery, DeliveryKind, Outbox, SubscriptionDelivery};
use leveret_core::mem::Messages;
use leveret_core::pending_writes::Batch;
use leveret_mqtt::{OutgoingPublish, OutgoingQoS, PINGRESP, Version, Writer};

use super::super::connection::Context;
use super::super::output::Filled;
use super::answers::RECORD_HEAD_BYTES;
use super::{MqttConnection, Phase};

/// The longest header of a delivery: the fixed header, the topic, the packet identifier and no properties.
const HEADER_BYTES_MAX: usize = 5 + 2 + 255 + 2 + 1;

/// Whether more can be written to the output buffer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    Continue,
    BufferFull,
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
            if self.phase != Phase::Open {
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
            if self.write_delivery(context.messages, out, &mut filled, &delivery) == Progress::BufferFull {
                break;
            }
            outbox.advance();
        }
        filled
    }

    /// Writes PINGRESP and the stored packets that may be sent.
    fn write_packets(&mut self, context: &mut Context<'_>, out: &mut [u8], filled: &mut Filled) -> Progress {
        if self.output.is_pingresp_due {
            let Some(free) = out[filled.bytes..].first_chunk_mut() else { return Progress::BufferFull };
            *free = PINGRESP;
            filled.bytes += PINGRESP.len();
            self.output.is_pingresp_due = false;
        }
        self.output.durable = context.durable;
        while self.has_sendable_packet() {
            let pool = &mut context.pools.replies;
            let mut head = [0; RECORD_HEAD_BYTES];
            self.output.packets.copy_front(pool, &mut head);
            let len = usize::from(u16::from_be_bytes([head[8], head[9]]));
            let Some(free) = out[filled.bytes..].get_mut(..len) else { return Progress::BufferFull };
            self.output.packets.consume(pool, RECORD_HEAD_BYTES);
            self.output.packets.copy_front(pool, free);
            self.output.packets.consume(pool, len);
            filled.bytes += len;
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
    fn write_delivery(
        &mut self,
        messages: &Messages,
        out: &mut [u8],
        filled: &mut Filled,
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
        let mut header = [0; HEADER_BYTES_MAX];
        let header = write_header(messages, delivery, qos, self.version, &mut header);
        let (body_len, out_len) = (messages.body_len(delivery.message) as usize, out.len());
        let total = (header.len() + body_len) as u64;
        let sent = self.output.begun.unwrap_or(0);
        let free = &mut out[filled.bytes..];
        // A delivery that fits into an empty buffer is not split: the next call writes it.
        if sent == 0 && total > free.len() as u64 && total <= out_len as u64 {
            return Progress::BufferFull;
        }
        let skip = usize::try_from(sent).unwrap_or(usize::MAX);
        let head = header.get(skip..).unwrap_or_default();
        let head_len = head.len().min(free.len());
        free[..head_len].copy_from_slice(&head[..head_len]);
        let body_at = skip.saturating_sub(header.len());
        let body_len = (body_len - body_at).min(free.len() - head_len);
        if body_len > 0 {
            let mut cursor = messages.body_cursor(delivery.message, body_at as u32);
            messages.read(delivery.message, &mut cursor, &mut free[head_len..head_len + body_len]);
        }
        filled.bytes += head_len + body_len;
        let sent = sent + (head_len + body_len) as u64;
        if sent < total {
            self.output.begun = (sent > 0).then_some(sent);
            return Progress::BufferFull;
        }
        self.output.begun = None;
        filled.deliveries += 1;
        Progress::Continue
    }

    // ---- what the server asks

    fn has_sendable_packet(&self) -> bool {
        !self.output.packets.is_empty() && self.output.first_batch <= self.output.durable
    }

    /// Returns whether there is output besides complete deliveries in the outbox.
    pub(in super::super) fn has_output(&self) -> bool {
        let has_sendable_delivery =
            self.output.delivery_batch > Batch::NONE && self.output.delivery_batch <= self.output.durable;
        self.output.is_pingresp_due
            || self.has_sendable_packet()
            || self.has_remainder()
            || has_sendable_delivery
    }

    /// Returns whether a delivery was written only partly.
    pub(in super::super) const fn has_remainder(&self) -> bool {
        self.output.begun.is_some()
    }

    /// Returns whether there is an answer or a delivery that waits for the disk.
    pub(in super::super) fn awaits_disk(&self) -> bool {
        let is_answer_awaited =
            !self.output.packets.is_empty() && self.output.first_batch > self.output.durable;
        is_answer_awaited || self.output.delivery_batch > self.output.durable
    }

    /// Notes the newest durable batch.
    pub(in super::super) const fn note_durable(&mut self, context: &Context<'_>) {
        self.output.durable = context.durable;
    }
}

/// Writes the header of a delivery, and returns it.
fn write_header<'b>(
    messages: &Messages,
    delivery: &Delivery<'_>,
    qos: OutgoingQoS,
    version: Version,
    buffer: &'b mut [u8; HEADER_BYTES_MAX],
) -> &'b [u8] {
    let mut topic = [0; 255];
    let key = messages.routing_key(delivery.message);
    let topic = &mut topic[..key.len()];
    topic.copy_from_slice(key);
    // The topic of a routing key: see `leveret_core::topic`.
    for octet in &mut *topic {
        *octet = match *octet {
            b'.' => b'/',
            b'/' => b'.',
            other => other,
        };
    }
    let publish = OutgoingPublish {
        is_duplicate: delivery.redelivered && qos.packet_id().is_some(),
        qos,
        // Only retained messages have this exchange: other messages are published to `amq.topic`.
        retain: messages.exchange_len(delivery.message) == 0,
        topic,
        payload_len: messages.body_len(delivery.message),
    };
    let mut writer = Writer::new(buffer);
    let written = publish.write_header(&mut writer, version, core::iter::empty());
    assert!(written.is_ok(), "a header has a maximum length");
    let len = writer.len();
    &buffer[..len]
}
