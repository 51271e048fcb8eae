//! A packet of an MQTT client, read by Leveret and by two other codecs: `mqtt-protocol-core` and `rmqtt-codec`.
//!
//! If all three accept the packet, they must read the same. Leveret must not be the only one that accepts or refuses it,
//! except for [`STRICTER`] rules.
#![no_main]

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use bytes::BytesMut;
use leveret_mqtt::{Connect, FixedHeader, Packet, PacketType, PublishHeader, QoS, TopicFilter, Version};
use mqtt_protocol_core::mqtt::packet::{v3_1_1, v5_0};
use rmqtt_codec::{v3, v5};
use tokio_util::codec::Decoder;

/// The content of a packet. Two codecs read the same if these are equal.
#[derive(Debug, PartialEq)]
enum Content {
    Connect {
        client_id: String,
        clean_start: bool,
        keep_alive_s: u16,
        user_name: Option<String>,
        password: Option<Vec<u8>>,
        /// Topic, payload, QoS and RETAIN.
        will: Option<(String, Vec<u8>, u8, bool)>,
    },
    Publish {
        topic: String,
        packet_id: Option<u16>,
        /// QoS, DUP and RETAIN.
        flags: (u8, bool, bool),
        payload: Vec<u8>,
    },
    Subscribe {
        packet_id: u16,
        /// Filters with QoS, No Local, Retain As Published and Retain Handling.
        filters: Vec<(String, u8, bool, bool, u8)>,
    },
    Unsubscribe {
        packet_id: u16,
        filters: Vec<String>,
    },
    Ack {
        kind: PacketType,
        packet_id: u16,
        reason: u8,
    },
    Pingreq,
    Disconnect {
        reason: u8,
    },
}

/// Rules of the specifications that both other codecs do not check, by a part of the error of Leveret.
const STRICTER: [&str; 15] = [
    // MQTT-1.5.4-2.
    "a string with the character U+0000",
    // MQTT-1.5.5-1.
    "a length with more octets than necessary",
    "a remaining length with more octets than necessary",
    // MQTT-3.1.2-11 and -13 of 3.1.1.
    "flags of a will without a will",
    // MQTT-3.1.2-12.
    "a will with QoS 3",
    // Section 3.1.2.11.10.
    "authentication data without an authentication method",
    // MQTT-3.3.1-2.
    "the DUP flag with QoS 0",
    // MQTT-3.3.2-2 and MQTT-4.7.3-1.
    "a topic name with a wildcard",
    "an empty topic name",
    "a PUBLISH with neither a topic name nor a topic alias",
    // MQTT-3.3.2-14.
    "a response topic with a wildcard, or an empty one",
    // MQTT-3.3.4-6.
    "a subscription identifier from a client",
    // MQTT-3.8.3-4 and -5.
    "No Local on a shared subscription",
    "reserved bits in the options of a subscription",
    // Those that only a server sends (sections 2.4 and 3.14.2.1).
    "a reason code that this packet cannot have",
];

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Some((first, packet)) = input.split_first() else { return };
    let version = [Version::V3_1_1, Version::V5][usize::from(first % 2)];
    let Ok(Some(fixed)) = FixedHeader::parse(packet) else { return };
    let Some(body) = packet.get(fixed.len..fixed.packet_len()) else { return };
    let packet = &packet[..fixed.packet_len()];
    // The version that CONNECT names must be the one that the other codecs are told.
    if fixed.kind == PacketType::Connect && Connect::answer_version(body) != Some(version) {
        return;
    }
    let ours = read(fixed, version, body);
    let core = of_others(|| core_read(fixed, version, packet[0], body));
    let rmqtt = of_others(|| rmqtt_read(version, packet));
    match (ours, core, rmqtt) {
        (Ok(ours), Some(core), Some(rmqtt)) => {
            assert!(ours == core || ours == rmqtt, "Leveret: {ours:?}\ncore: {core:?}\nrmqtt: {rmqtt:?}");
        }
        (Ok(ours), None, None) => {
            assert!(is_right(&ours, version), "only Leveret accepts {packet:02x?}: {ours:?}");
        }
        (Err(why), Some(core), Some(_)) => {
            // A Server Reference, which only a server sends.
            let is_of_server = fixed.kind == PacketType::Disconnect
                && why.contains("a property that this packet cannot have");
            let is_known = is_of_server || STRICTER.iter().any(|rule| why.contains(rule));
            assert!(is_known, "only Leveret refuses {packet:02x?}: {why}; {core:?}");
        }
        _ => {}
    }
});

thread_local! {
    /// Another codec is running. Its panics count as refusals.
    static IS_OTHER: Cell<bool> = const { Cell::new(false) };
}

/// Returns what another codec reads; `None` if it refuses the packet or panics.
fn of_others(read: impl FnOnce() -> Option<Content>) -> Option<Content> {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        // The hook of libFuzzer ends the process.
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !IS_OTHER.get() {
                hook(info);
            }
        }));
    });
    IS_OTHER.set(true);
    let content = catch_unwind(AssertUnwindSafe(read)).ok().flatten();
    IS_OTHER.set(false);
    content
}

/// Returns whether Leveret is right although both others refuse the packet: MQTT 5 allows a password without a user name
/// (§3.1.2.9), and to continue a session without a client identifier. Topic filters are checked after the packet was
/// read, each for itself.
fn is_right(content: &Content, version: Version) -> bool {
    match content {
        Content::Connect { client_id, clean_start, user_name, password, .. } => {
            let is_special =
                password.is_some() && user_name.is_none() || client_id.is_empty() && !clean_start;
            version == Version::V5 && is_special
        }
        Content::Subscribe { filters, .. } => filters.iter().any(|(filter, _, no_local, ..)| {
            TopicFilter::parse(filter).is_err() || filter.starts_with("$share/") && *no_local
        }),
        Content::Unsubscribe { filters, .. } => {
            filters.iter().any(|filter| TopicFilter::parse(filter).is_err())
        }
        _ => false,
    }
}

fn read(fixed: FixedHeader, version: Version, body: &[u8]) -> Result<Content, String> {
    let text = |error: leveret_mqtt::PacketError| error.to_string();
    match fixed.kind {
        PacketType::Connect => {
            let connect = Connect::parse(fixed, body).map_err(text)?;
            Ok(Content::Connect {
                client_id: connect.client_id.into(),
                clean_start: connect.clean_start,
                keep_alive_s: connect.keep_alive_s,
                user_name: connect.user_name.map(Into::into),
                password: connect.password.map(|password| password.0.to_vec()),
                will: connect
                    .will
                    .map(|will| (will.topic.into(), will.payload.to_vec(), will.qos as u8, will.retain)),
            })
        }
        PacketType::Publish => {
            let known = PublishHeader::len_of(fixed, version, body).map_err(text)?;
            let leveret_mqtt::HeaderLen::Known(len) = known else { return Err("incomplete".into()) };
            let header = PublishHeader::parse(fixed, version, &body[..len]).map_err(text)?;
            Ok(Content::Publish {
                topic: header.topic.into(),
                packet_id: header.packet_id.map(Into::into),
                flags: (
                    header.qos as u8,
                    header.is_duplicate && header.qos != QoS::AtMostOnce,
                    header.retain,
                ),
                payload: body[len..].to_vec(),
            })
        }
        _ => Ok(match Packet::parse(fixed, version, body).map_err(text)? {
            Packet::Ack(ack) => {
                Content::Ack { kind: fixed.kind, packet_id: ack.packet_id.get(), reason: ack.reason as u8 }
            }
            Packet::Subscribe(subscribe) => Content::Subscribe {
                packet_id: subscribe.packet_id.get(),
                filters: subscribe
                    .filters()
                    .map(|(filter, options)| {
                        let (no_local, as_published) = (options.no_local, options.retain_as_published);
                        (
                            filter.into(),
                            options.qos as u8,
                            no_local,
                            as_published,
                            options.retain_handling as u8,
                        )
                    })
                    .collect(),
            },
            Packet::Unsubscribe(unsubscribe) => Content::Unsubscribe {
                packet_id: unsubscribe.packet_id.get(),
                filters: unsubscribe.filters().map(Into::into).collect(),
            },
            Packet::PingRequest => Content::Pingreq,
            Packet::Disconnect(disconnect) => Content::Disconnect { reason: disconnect.reason as u8 },
        }),
    }
}

/// Reads with `mqtt-protocol-core`. It is given the body without the fixed header, whose flags Leveret has checked.
fn core_read(fixed: FixedHeader, version: Version, first: u8, body: &[u8]) -> Option<Content> {
    macro_rules! connect {
        ($module:ident, $clean:ident) => {{
            let (connect, len) = $module::Connect::parse(body).ok()?;
            if len != body.len() {
                return None;
            }
            Content::Connect {
                client_id: connect.client_id().into(),
                clean_start: connect.$clean(),
                keep_alive_s: connect.keep_alive(),
                user_name: connect.user_name().map(Into::into),
                password: connect.password().map(Into::into),
                will: connect.will_topic().map(|topic| {
                    let payload = connect.will_payload().unwrap_or_default().to_vec();
                    (topic.into(), payload, connect.will_qos() as u8, connect.will_retain())
                }),
            }
        }};
    }
    macro_rules! publish {
        ($module:ident) => {{
            let (publish, _) = $module::Publish::parse(first & 15, body.into()).ok()?;
            let flags = (publish.qos() as u8, publish.dup() && publish.qos() as u8 > 0, publish.retain());
            Content::Publish {
                topic: publish.topic_name().into(),
                packet_id: publish.packet_id(),
                flags,
                payload: publish.payload().as_slice().to_vec(),
            }
        }};
    }
    macro_rules! subscribe {
        ($module:ident) => {{
            let (subscribe, len) = $module::Subscribe::parse(body).ok()?;
            if len != body.len() {
                return None;
            }
            let filters = subscribe.entries().iter().map(|entry| {
                let options = entry.sub_opts();
                let (qos, retain_handling) = (options.qos() as u8, options.rh() as u8);
                (entry.topic_filter().into(), qos, options.nl(), options.rap(), retain_handling)
            });
            Content::Subscribe { packet_id: subscribe.packet_id(), filters: filters.collect() }
        }};
    }
    macro_rules! unsubscribe {
        ($module:ident) => {{
            let (unsubscribe, len) = $module::Unsubscribe::parse(body).ok()?;
            if len != body.len() {
                return None;
            }
            let filters = unsubscribe.entries().iter().map(|filter| filter.as_str().into());
            Content::Unsubscribe { packet_id: unsubscribe.packet_id(), filters: filters.collect() }
        }};
    }
    macro_rules! ack {
        ($packet:ident) => {
            match version {
                Version::V5 => {
                    let (ack, len) = v5_0::$packet::parse(body).ok()?;
                    let reason = ack.reason_code().map_or(0, |reason| reason as u8);
                    (len == body.len()).then(|| Content::Ack {
                        kind: fixed.kind,
                        packet_id: ack.packet_id(),
                        reason,
                    })?
                }
                _ => {
                    let (ack, len) = v3_1_1::$packet::parse(body).ok()?;
                    (len == body.len()).then(|| Content::Ack {
                        kind: fixed.kind,
                        packet_id: ack.packet_id(),
                        reason: 0,
                    })?
                }
            }
        };
    }
    let is_v5 = version == Version::V5;
    Some(match fixed.kind {
        PacketType::Connect if is_v5 => connect!(v5_0, clean_start),
        PacketType::Connect => connect!(v3_1_1, clean_session),
        PacketType::Publish if is_v5 => publish!(v5_0),
        PacketType::Publish => publish!(v3_1_1),
        PacketType::Subscribe if is_v5 => subscribe!(v5_0),
        PacketType::Subscribe => subscribe!(v3_1_1),
        PacketType::Unsubscribe if is_v5 => unsubscribe!(v5_0),
        PacketType::Unsubscribe => unsubscribe!(v3_1_1),
        PacketType::Puback => ack!(Puback),
        PacketType::Pubrec => ack!(Pubrec),
        PacketType::Pubrel => ack!(Pubrel),
        PacketType::Pubcomp => ack!(Pubcomp),
        PacketType::Pingreq => body.is_empty().then_some(Content::Pingreq)?,
        PacketType::Disconnect if is_v5 => {
            let (disconnect, len) = v5_0::Disconnect::parse(body).ok()?;
            let reason = disconnect.reason_code().map_or(0, |reason| reason as u8);
            (len == body.len()).then_some(Content::Disconnect { reason })?
        }
        PacketType::Disconnect => body.is_empty().then_some(Content::Disconnect { reason: 0 })?,
        _ => return None,
    })
}

fn rmqtt_read(version: Version, packet: &[u8]) -> Option<Content> {
    let mut input = BytesMut::from(packet);
    let ack = |kind, packet_id: core::num::NonZeroU16, reason| Content::Ack {
        kind,
        packet_id: packet_id.get(),
        reason,
    };
    if version == Version::V5 {
        let packet = v5::Codec::new(0, 0).decode(&mut input).ok()??.0;
        return Some(match packet {
            v5::Packet::Connect(connect) => Content::Connect {
                client_id: connect.client_id.to_string(),
                clean_start: connect.clean_start,
                keep_alive_s: connect.keep_alive,
                user_name: connect.username.map(|text| text.to_string()),
                password: connect.password.map(|password| password.to_vec()),
                will: connect.last_will.map(|will| {
                    (will.topic.to_string(), will.message.to_vec(), u8::from(will.qos), will.retain)
                }),
            },
            v5::Packet::Publish(publish) => publish_of(*publish),
            v5::Packet::PublishAck(of) => ack(PacketType::Puback, of.packet_id, of.reason_code.into()),
            v5::Packet::PublishReceived(of) => ack(PacketType::Pubrec, of.packet_id, of.reason_code.into()),
            v5::Packet::PublishRelease(of) => ack(PacketType::Pubrel, of.packet_id, of.reason_code.into()),
            v5::Packet::PublishComplete(of) => ack(PacketType::Pubcomp, of.packet_id, of.reason_code.into()),
            v5::Packet::Subscribe(subscribe) => Content::Subscribe {
                packet_id: subscribe.packet_id.get(),
                filters: subscribe
                    .topic_filters
                    .into_iter()
                    .map(|(filter, options)| {
                        let (qos, handling) = (options.qos.into(), options.retain_handling.into());
                        (filter.to_string(), qos, options.no_local, options.retain_as_published, handling)
                    })
                    .collect(),
            },
            v5::Packet::Unsubscribe(unsubscribe) => Content::Unsubscribe {
                packet_id: unsubscribe.packet_id.get(),
                filters: unsubscribe.topic_filters.iter().map(ToString::to_string).collect(),
            },
            v5::Packet::PingRequest => Content::Pingreq,
            v5::Packet::Disconnect(disconnect) => {
                Content::Disconnect { reason: disconnect.reason_code.into() }
            }
            _ => return None,
        });
    }
    let packet = v3::Codec::new(0).decode(&mut input).ok()??.0;
    Some(match packet {
        v3::Packet::Connect(connect) => Content::Connect {
            client_id: connect.client_id.to_string(),
            clean_start: connect.clean_session,
            keep_alive_s: connect.keep_alive,
            user_name: connect.username.map(|text| text.to_string()),
            password: connect.password.map(|password| password.to_vec()),
            will: connect
                .last_will
                .map(|will| (will.topic.to_string(), will.message.to_vec(), u8::from(will.qos), will.retain)),
        },
        v3::Packet::Publish(publish) => publish_of(*publish),
        v3::Packet::PublishAck { packet_id } => ack(PacketType::Puback, packet_id, 0),
        v3::Packet::PublishReceived { packet_id } => ack(PacketType::Pubrec, packet_id, 0),
        v3::Packet::PublishRelease { packet_id } => ack(PacketType::Pubrel, packet_id, 0),
        v3::Packet::PublishComplete { packet_id } => ack(PacketType::Pubcomp, packet_id, 0),
        v3::Packet::Subscribe { packet_id, topic_filters } => Content::Subscribe {
            packet_id: packet_id.get(),
            filters: topic_filters
                .into_iter()
                .map(|(filter, qos)| (filter.to_string(), qos.into(), false, false, 0))
                .collect(),
        },
        v3::Packet::Unsubscribe { packet_id, topic_filters } => Content::Unsubscribe {
            packet_id: packet_id.get(),
            filters: topic_filters.iter().map(ToString::to_string).collect(),
        },
        v3::Packet::PingRequest => Content::Pingreq,
        v3::Packet::Disconnect => Content::Disconnect { reason: 0 },
        _ => return None,
    })
}

fn publish_of(publish: rmqtt_codec::types::Publish) -> Content {
    let qos = u8::from(publish.qos);
    Content::Publish {
        topic: publish.topic.to_string(),
        packet_id: publish.packet_id.map(Into::into),
        flags: (qos, publish.dup && qos > 0, publish.retain),
        payload: publish.payload.to_vec(),
    }
}
