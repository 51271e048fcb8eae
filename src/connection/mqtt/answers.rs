//! Converts the answers of the broker to packets, and stores them until they may be written.
//!
//! ```text
//!   stored packets: | batch (8) | length (2) | packet | batch | length | packet | ...
//! ```
//!
//! # Invariants
//! - A packet is written when its batch is durable, and not before the packets in front of it. PUBACKs thereby keep the
//!   order of their PUBLISHes (MQTT-4.6.0-2).
//! - When a packet of the client is handled, there is capacity for its answer, and for a DISCONNECT behind it.

use core::fmt;
use core::num::NonZeroU16;
use leveret_core::limits::REPLIES_BYTES_MAX;

use leveret_core::batch::Batch;
use leveret_core::command::{Answer, MqttAnswer, PublishAnswer, SessionOpened};
use leveret_core::error::{Fault, ReplyCode, Scope};
use leveret_core::log_limiter::LogKind;
use leveret_core::mem::BLOCK_UNIT_BYTES;
use leveret_core::time::Deadline;
use leveret_mqtt::{
    ANSWER_HEAD_BYTES_MAX, Ack, AckKind, Property, ReasonCode, Version, Writer, suback_code, write_ack,
    write_connack, write_disconnect, write_suback, write_suback_head, write_unsuback, write_unsuback_head,
};

use super::super::connection::Context;
use super::super::timeouts::REFUSAL_DELAY_MS;
use super::aliases::{TOPIC_ALIAS_MAX, TopicAliases};
use super::input::{Expected, Filters, FiltersKind, Pending, Publishing};
use super::{ConnectStep, MqttConnection, Phase, reason_of};

/// Number of bytes before each stored packet: its batch and its length.
pub(super) const RECORD_HEAD_BYTES: usize = 10;
/// The longest stored packet with its head, except a SUBACK or UNSUBACK with many codes.
pub(super) const RECORD_BYTES_MAX: usize = RECORD_HEAD_BYTES + 256;
/// Most bytes of answers that are withheld: those to about 45 messages. With more, no capacity would be left for other answers,
/// and the client's input could not be read on.
const WITHHELD_BYTES_MAX: usize = 704;
/// The longest reason string in bytes.
const REASON_STRING_BYTES_MAX: usize = 160;
/// The number of messages with QoS 1 or 2 that an MQTT 5 client may have published without an answer (Receive Maximum). Their
/// PUBACKs fit into [`REPLIES_BYTES_MAX`].
const RECEIVE_MAXIMUM: u16 = 64;

impl MqttConnection {
    /// Handles the answer to the command that `next` returned last. What the command has changed is durable with `batch`.
    pub(in super::super) fn answer(
        &mut self,
        context: &mut Context<'_>,
        answer: Result<Answer, Fault>,
        batch: Batch,
    ) {
        match (core::mem::take(&mut self.input.pending), answer) {
            (Pending::Publish, Ok(Answer::Publish(answer))) => {
                self.answer_publish(context, Ok(answer), batch)
            }
            (Pending::Publish, Err(fault)) => self.answer_publish(context, Err(fault), batch),
            (Pending::Connect, answer) => self.answer_connect(context, answer, batch),
            (Pending::Filter { .. }, Err(fault)) => self.answer_refused_filter(context, &fault),
            (Pending::Filter { granted }, Ok(_)) => self.push_filter_code(context, granted, batch),
            (Pending::Pubrec(packet_id), answer) => {
                self.push_ack(context, AckKind::Pubrel, packet_id, reason_of_packet(&answer), batch);
            }
            (Pending::Pubrel(packet_id), answer) => {
                let reason = match self.input.is_recovering {
                    true => ReasonCode::Success,
                    false => reason_of_packet(&answer),
                };
                self.push_ack(context, AckKind::Pubcomp, packet_id, reason, batch);
            }
            (Pending::Disconnect, _) => self.finish_with(context),
            // PUBACK for a message with QoS 2.
            (Pending::Silent, Err(fault)) => {
                self.end(context, reason_of(fault.code), format_args!("{}", fault.text));
            }
            (Pending::Publish | Pending::Silent | Pending::Nothing, _) => {}
        }
    }

    // ---- PUBLISH

    fn answer_publish(
        &mut self,
        context: &mut Context<'_>,
        answer: Result<PublishAnswer, Fault>,
        batch: Batch,
    ) {
        // Another connection may have taken the session over. PUBACK or PUBREC would free the packet identifier for the client,
        // and the session may still have it.
        if let Err(fault) = &answer
            && fault.scope == Scope::Connection
        {
            self.input.publish = Publishing::None;
            return self.end(context, reason_of(fault.code), format_args!("{}", fault.text));
        }
        if let Publishing::Refused { error, packet_id } = self.input.publish {
            self.input.publish = Publishing::None;
            let expected = Expected::Pubrec(packet_id);
            return match answer {
                Ok(PublishAnswer::Published) => {
                    self.answer_publish_with(context, expected, ReasonCode::Success, batch)
                }
                _ => self.refuse_publish(context, expected, error),
            };
        }
        let Publishing::Complete { expected, .. } = self.input.publish else {
            unreachable!("a message that was passed to the broker is complete");
        };
        if answer == Ok(PublishAnswer::Wait) {
            self.input.is_suspended = true;
            return;
        }
        self.input.publish = Publishing::None;
        match answer {
            Ok(PublishAnswer::Published) => {
                self.answer_publish_with(context, expected, ReasonCode::Success, batch)
            }
            Ok(PublishAnswer::PublishedNowhere) => {
                self.answer_publish_with(context, expected, ReasonCode::NoMatchingSubscribers, batch);
            }
            Ok(PublishAnswer::NotRetained { limit, topic }) => {
                self.answer_publish_with(context, expected, ReasonCode::Success, batch);
                let topic = topic.escape_debug();
                let text = format_args!(
                    ": a message to '{topic}' is published but not retained: it exceeds {limit}"
                );
                self.warn(context, LogKind::Channel, text);
            }
            // As in RabbitMQ, a client of an older version gets no PUBACK for a message that a full queue refuses.
            Ok(PublishAnswer::Refused) if self.version == Version::V5 => {
                self.answer_publish_with(context, expected, ReasonCode::QuotaExceeded, Batch::NONE);
            }
            Err(fault) => {
                self.answer_refused_publish(context, expected, reason_of(fault.code), &fault.text);
            }
            Ok(PublishAnswer::Refused | PublishAnswer::NotPublished | PublishAnswer::Wait) => {}
        }
    }

    /// Sends the answer to a PUBLISH when `batch` is durable.
    fn answer_publish_with(
        &mut self,
        context: &mut Context<'_>,
        expected: Expected,
        reason: ReasonCode,
        batch: Batch,
    ) {
        let Some((kind, packet_id)) = answer_of(expected) else { return };
        context.pools.confirmed += u64::from(!reason.is_failure());
        if context.withholds_answers {
            self.output.withheld.get_or_insert_default();
        } else {
            self.release_answers(context);
        }
        self.push_ack(context, kind, packet_id, reason, batch);
    }

    /// Returns the bytes of the answers that are withheld.
    fn withheld_len(&self) -> usize {
        self.output.withheld.as_ref().map_or(0, |withheld| withheld.len())
    }

    /// Appends the answers that were withheld to the packets that may be written.
    pub(super) fn release_answers(&mut self, context: &mut Context<'_>) {
        let Some(mut withheld) = self.output.withheld.take() else { return };
        let pool = &mut context.pools.replies;
        let mut is_stored = true;
        while !withheld.is_empty() {
            let mut part = [0; RECORD_BYTES_MAX];
            let part = &mut part[..withheld.len().min(RECORD_BYTES_MAX)];
            withheld.copy_front(pool, part);
            withheld.consume(pool, part.len());
            if let (Some(batch), true) = (part.first_chunk(), self.output.packets.is_empty()) {
                (self.output.first_batch, self.output.durable) =
                    (Batch::from_be_bytes(*batch), context.durable);
            }
            is_stored &= self.output.packets.append(pool, part);
        }
        if !is_stored {
            self.end_for_lack_of_replies(context);
        }
    }

    /// Answers a PUBLISH whose message is refused. Before MQTT 5 there is no such answer. A client of these versions that
    /// waits for one, or whose user may not publish the message, is disconnected (MQTT 3.1.1, MQTT-3.3.5-2).
    pub(super) fn answer_refused_publish(
        &mut self,
        context: &mut Context<'_>,
        expected: Expected,
        reason: ReasonCode,
        text: &str,
    ) {
        let is_dropped = expected == Expected::Nothing && reason == ReasonCode::QuotaExceeded;
        if self.version != Version::V5 && !is_dropped {
            return self.end(context, reason, format_args!("a message is refused: {text}"));
        }
        if let Some((kind, packet_id)) = answer_of(expected) {
            let reason = if kind.may_have(reason) { reason } else { ReasonCode::ImplementationSpecific };
            let (version, wants_text) = (self.version, self.client_limits.wants_problem_information);
            self.push_explained(context, format_args!("{text}"), |writer, text| {
                let ack = Ack { kind, packet_id, reason };
                write_ack(writer, version, ack, text.filter(|_| wants_text).into_iter())
            });
        }
        self.warn(
            context,
            LogKind::Channel,
            format_args!(": a message is refused: {text} ({})", reason.name()),
        );
    }

    fn push_ack(
        &mut self,
        context: &mut Context<'_>,
        kind: AckKind,
        packet_id: NonZeroU16,
        reason: ReasonCode,
        batch: Batch,
    ) {
        let version = self.version;
        self.push(context, batch, |writer| {
            write_ack(writer, version, Ack { kind, packet_id, reason }, core::iter::empty())
        });
    }

    // ---- CONNECT

    fn answer_connect(&mut self, context: &mut Context<'_>, answer: Result<Answer, Fault>, batch: Batch) {
        let Phase::Connecting { due, step, len } = self.phase else { return };
        match answer {
            Ok(Answer::LoggedIn) => {
                self.is_logged_in = true;
                self.phase = Phase::Connecting { due, step: ConnectStep::OpenVhost, len };
            }
            Ok(Answer::OpenVhost) => {
                self.phase = Phase::Connecting { due, step: ConnectStep::OpenSession, len };
            }
            Ok(Answer::OpenSession(opened)) => self.accept(context, &opened, batch),
            // CONNECT leads to no other command.
            Ok(_) => {}
            Err(fault) if step == ConnectStep::Login => {
                self.warn(context, LogKind::Login, format_args!(": login refused: {fault}"));
                let (until, reason) =
                    (context.now.after_ms(REFUSAL_DELAY_MS), ReasonCode::BadUserNameOrPassword);
                self.phase = Phase::Refused { until, reason, is_open: false };
            }
            Err(fault) => self.end(context, reason_of(fault.code), format_args!("{}", fault.text)),
        }
    }

    /// Begins the use of a session that the broker has opened.
    fn accept(&mut self, context: &mut Context<'_>, opened: &SessionOpened, batch: Batch) {
        self.input.is_recovering = opened.is_present;
        context.pools.reserve_mqtt_properties(context.settings.frame_max);
        self.keep_client(context, &opened.client_id);
        if self.version == Version::V5 {
            self.aliases_in = TopicAliases::reserve(context.pools, TOPIC_ALIAS_MAX);
            let max = self.client_limits.topic_alias_max;
            self.aliases_out = TopicAliases::reserve(context.pools, max);
        }
        self.phase = Phase::Open { channel: opened.channel };
        self.output.is_connack_due = true;
        self.push_connack(context, opened, batch);
        for packet_id in &opened.released {
            self.push_ack(context, AckKind::Pubrel, *packet_id, ReasonCode::Success, batch);
        }
    }

    /// Stores the CONNACK of a client that was accepted. An MQTT 5 client also gets limits of the broker, the client
    /// identifier if it was assigned, and the session expiry interval if it is not the requested one.
    fn push_connack(&mut self, context: &mut Context<'_>, opened: &SessionOpened, batch: Batch) {
        let (is_present, expiry_s) = (opened.is_present, opened.expiry_s);
        let packet_len_max = context.settings.mqtt_packet_len_max();
        let announced = [
            Property::ReceiveMaximum(RECEIVE_MAXIMUM),
            Property::MaximumPacketSize(packet_len_max),
            Property::TopicAliasMaximum(self.aliases_in.max()),
        ];
        let is_expiry_changed = expiry_s != self.expiry_s;
        let expiry = is_expiry_changed.then_some(Property::SessionExpiryInterval(expiry_s));
        let assigned = opened.is_assigned.then_some(Property::AssignedClientIdentifier(&opened.client_id));
        let properties = announced.into_iter().chain(expiry).chain(assigned);
        let version = self.version;
        let reason = ReasonCode::Success;
        self.push(context, batch, |writer| write_connack(writer, version, is_present, reason, properties));
    }

    /// Stores the CONNACK of a client that is refused.
    pub(super) fn push_refusal(
        &mut self,
        context: &mut Context<'_>,
        reason: ReasonCode,
        text: fmt::Arguments<'_>,
    ) {
        let version = self.version;
        self.push_explained(context, text, |writer, text| {
            write_connack(writer, version, false, reason, text.into_iter())
        });
    }

    // ---- SUBSCRIBE and UNSUBSCRIBE

    /// Stores the code for the next filter of a SUBSCRIBE or UNSUBSCRIBE. The change is durable with `batch`.
    pub(super) fn push_filter_code(&mut self, context: &mut Context<'_>, code: ReasonCode, batch: Batch) {
        let filters = self.input.filters.as_mut().expect("the packet is being handled");
        filters.batch = filters.batch.max(batch);
        if !filters.codes.append(&mut context.pools.replies, &[code as u8]) {
            self.end_for_lack_of_replies(context);
        }
    }

    fn answer_refused_filter(&mut self, context: &mut Context<'_>, fault: &Fault) {
        let code = match fault.code {
            ReplyCode::NotFound => ReasonCode::NoSubscriptionExisted,
            code => {
                self.note_refused_filter(format_args!("{fault}"));
                reason_of(code)
            }
        };
        self.push_filter_code(context, code, Batch::NONE);
    }

    /// Counts a refused filter, and keeps the reason if it is the first one of the packet.
    pub(super) fn note_refused_filter(&mut self, text: fmt::Arguments<'_>) {
        let Some(filters) = &mut self.input.filters else { return };
        match &mut filters.refused {
            Some((_, count)) => *count += 1,
            None => filters.refused = Some((text.to_string().into(), 1)),
        }
    }

    /// Stores SUBACK or UNSUBACK, after all filters of the packet were handled.
    pub(super) fn push_filter_answer(&mut self, context: &mut Context<'_>) {
        let Some(mut filters) = self.input.filters.take() else { return };
        if filters.arrives_in_parts {
            // The next packet has its own time.
            self.timing.packet_due = Deadline::NEVER;
        }
        if let Some((first, count)) = &filters.refused {
            let text = format_args!(": {count} topic filters are refused, the first one: {first}");
            self.warn(context, LogKind::Channel, text);
        }
        if filters.shared_bytes > 0 {
            return self.push_long_answer(context, *filters);
        }
        let (version, packet_id) = (self.version, filters.packet_id);
        let mut octets = [0; RECORD_BYTES_MAX];
        let octets = &mut octets[..filters.codes.len()];
        filters.codes.copy_front(&context.pools.replies, octets);
        filters.codes.clear(&mut context.pools.replies);
        let codes = octets.iter().map(|octet| code_of(*octet));
        self.push(context, filters.batch, |writer| match filters.kind {
            FiltersKind::Subscribe { .. } => {
                write_suback(writer, version, packet_id, codes, core::iter::empty())
            }
            FiltersKind::Unsubscribe => {
                write_unsuback(writer, version, packet_id, codes, core::iter::empty())
            }
        });
    }

    /// Stores an answer with many codes. It is written in several parts if needed.
    fn push_long_answer(&mut self, context: &mut Context<'_>, mut filters: Filters) {
        let is_subscribe = filters.kind != FiltersKind::Unsubscribe;
        let count = filters.codes.len();
        let mut head = [0; RECORD_HEAD_BYTES + ANSWER_HEAD_BYTES_MAX];
        let mut writer = Writer::new(&mut head[RECORD_HEAD_BYTES..]);
        let written = match is_subscribe {
            true => write_suback_head(&mut writer, self.version, filters.packet_id, count),
            false => write_unsuback_head(&mut writer, self.version, filters.packet_id, count),
        };
        assert!(written.is_ok(), "the head of an answer has a maximum length");
        let head_len = writer.len();
        // Before MQTT 5, UNSUBACK has no codes.
        let has_codes = is_subscribe || self.version == Version::V5;
        let len = head_len + if has_codes { count } else { 0 };
        if len > self.client_limits.packet_len_max as usize {
            filters.codes.clear(&mut context.pools.replies);
            context.pools.long_answer_bytes_left += filters.shared_bytes as usize;
            return self.end_for_large_answer(context, len);
        }
        head[..8].copy_from_slice(&filters.batch.to_be_bytes());
        head[8..RECORD_HEAD_BYTES].copy_from_slice(&(len as u16).to_be_bytes());
        if self.output.packets.is_empty() {
            (self.output.first_batch, self.output.durable) = (filters.batch, context.durable);
        }
        let pool = &mut context.pools.replies;
        let mut is_stored = self.output.packets.append(pool, &head[..RECORD_HEAD_BYTES + head_len]);
        self.long_answer_bytes += filters.shared_bytes;
        while has_codes && !filters.codes.is_empty() {
            let mut part = [0; RECORD_BYTES_MAX];
            let part = &mut part[..filters.codes.len().min(RECORD_BYTES_MAX)];
            filters.codes.copy_front(pool, part);
            filters.codes.consume(pool, part.len());
            for octet in part.iter_mut().filter(|_| is_subscribe) {
                *octet = suback_code(self.version, code_of(*octet));
            }
            is_stored &= self.output.packets.append(pool, part);
        }
        filters.codes.clear(pool);
        if !is_stored {
            self.end_for_lack_of_replies(context);
        }
    }

    /// Releases the codes of a SUBSCRIBE or UNSUBSCRIBE that is not answered.
    pub(super) fn drop_filters(&mut self, context: &mut Context<'_>) {
        if let Some(mut filters) = self.input.filters.take() {
            filters.codes.clear(&mut context.pools.replies);
            context.pools.long_answer_bytes_left += filters.shared_bytes as usize;
        }
    }

    /// Releases the packets that are not written.
    pub(super) fn clear_packets(&mut self, context: &mut Context<'_>) {
        self.output.packets.clear(&mut context.pools.replies);
        if let Some(mut withheld) = self.output.withheld.take() {
            withheld.clear(&mut context.pools.replies);
        }
        context.pools.long_answer_bytes_left += core::mem::take(&mut self.long_answer_bytes) as usize;
        self.output.part_left = 0;
    }

    fn end_for_lack_of_replies(&mut self, context: &mut Context<'_>) {
        // The size of the pool should make this impossible.
        let text = format_args!(": closed, because there is no capacity for an answer");
        self.warn(context, LogKind::Shortage, text);
        self.finish(context.now);
    }

    fn end_for_large_answer(&mut self, context: &mut Context<'_>, len: usize) {
        let text = format_args!(": closed, because an answer of {len} bytes is larger than it accepts");
        self.warn(context, LogKind::Connection, text);
        self.finish(context.now);
    }

    // ---- all packets

    /// Stores DISCONNECT with a reason string.
    pub(super) fn push_disconnect(
        &mut self,
        context: &mut Context<'_>,
        reason: ReasonCode,
        text: fmt::Arguments<'_>,
    ) {
        let version = self.version;
        self.push_explained(context, text, |writer, text| {
            write_disconnect(writer, version, reason, text.into_iter())
        });
    }

    /// Stores a packet with this text as its reason string (MQTT 5, §3.1.2.11.7), if it fits. It may be written at once.
    fn push_explained(
        &mut self,
        context: &mut Context<'_>,
        text: fmt::Arguments<'_>,
        write: impl Fn(&mut Writer<'_>, Option<Property<'_>>) -> Result<(), leveret_mqtt::Full>,
    ) {
        let mut reason_string = heapless::String::<REASON_STRING_BYTES_MAX>::new();
        let is_complete = fmt::Write::write_fmt(&mut reason_string, text).is_ok();
        let is_usable = is_complete && !reason_string.contains('\0');
        let property = Some(Property::ReasonString(&reason_string)).filter(|_| is_usable);
        let mut packet = [0; RECORD_BYTES_MAX];
        let mut writer = Writer::new(&mut packet);
        let fits = write(&mut writer, property).is_ok()
            && writer.len() <= self.client_limits.packet_len_max as usize;
        let property = property.filter(|_| fits);
        self.push(context, Batch::NONE, |writer| write(writer, property));
    }

    /// Stores a packet that may be written when `batch` is durable. The caller has checked that there is capacity.
    fn push(
        &mut self,
        context: &mut Context<'_>,
        batch: Batch,
        write: impl FnOnce(&mut Writer<'_>) -> Result<(), leveret_mqtt::Full>,
    ) {
        if let Phase::Finished { .. } = self.phase {
            return;
        }
        let mut record = [0; RECORD_BYTES_MAX];
        let (head, packet) = record.split_at_mut(RECORD_HEAD_BYTES);
        let mut writer = Writer::new(packet);
        let written = write(&mut writer);
        assert!(written.is_ok(), "an answer is longer than it may be");
        let len = writer.len();
        if len == 0 {
            return;
        }
        if len > self.client_limits.packet_len_max as usize {
            return self.end_for_large_answer(context, len);
        }
        head[..8].copy_from_slice(&batch.to_be_bytes());
        head[8..].copy_from_slice(&(len as u16).to_be_bytes());
        if self.withheld_len() >= WITHHELD_BYTES_MAX {
            self.release_answers(context);
        }
        let record = &record[..RECORD_HEAD_BYTES + len];
        // PUBACK or PUBREC. All of them keep their order.
        let answers_publish = matches!(record[RECORD_HEAD_BYTES], 0x40 | 0x50);
        let chain = match &mut self.output.withheld {
            Some(withheld) if answers_publish => withheld,
            _ => {
                if self.output.packets.is_empty() {
                    (self.output.first_batch, self.output.durable) = (batch, context.durable);
                }
                &mut self.output.packets
            }
        };
        if !chain.append(&mut context.pools.replies, record) {
            self.end_for_lack_of_replies(context);
        }
    }

    /// Returns whether there is capacity for an answer and a DISCONNECT.
    pub(super) fn has_answer_room(&self) -> bool {
        // A chain may take one block more than its length needs, because all but one byte of its first block may be
        // consumed already.
        let chain_count = 1 + usize::from(self.output.withheld.is_some());
        let used = self.output.packets.len() + self.withheld_len() + chain_count * BLOCK_UNIT_BYTES;
        used + 2 * RECORD_BYTES_MAX <= REPLIES_BYTES_MAX
    }
}

/// Returns the code that is stored as this octet.
fn code_of(octet: u8) -> ReasonCode {
    ReasonCode::from_octet(octet).unwrap_or(ReasonCode::Unspecified)
}

/// Returns the packet that answers a PUBLISH.
const fn answer_of(expected: Expected) -> Option<(AckKind, NonZeroU16)> {
    match expected {
        Expected::Nothing => None,
        Expected::Puback(packet_id) => Some((AckKind::Puback, packet_id)),
        Expected::Pubrec(packet_id) => Some((AckKind::Pubrec, packet_id)),
    }
}

/// Returns the reason in the answer to PUBREC or PUBREL. A packet identifier is unknown if the exchange of packets is
/// complete already. The answer is sent nevertheless, because the client may have missed it.
fn reason_of_packet(answer: &Result<Answer, Fault>) -> ReasonCode {
    match answer {
        Ok(Answer::Mqtt(MqttAnswer::UnknownPacket)) | Err(_) => ReasonCode::PacketIdentifierNotFound,
        _ => ReasonCode::Success,
    }
}
