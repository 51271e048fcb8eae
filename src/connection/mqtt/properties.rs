//! The mapping between the properties of MQTT 5 (§3.3.2.3) and of AMQP, as in RabbitMQ.
//!
//! | property of MQTT | property of AMQP |
//! |---|---|
//! | Payload Format Indicator | header `x-mqtt-payload-format` |
//! | Message Expiry Interval, in seconds | `expiration`, in milliseconds |
//! | Content Type | `content_type` |
//! | Response Topic | header `x-reply-to-topic`, a routing key |
//! | Correlation Data | `correlation_id`; header `x-correlation-id` for more than 255 bytes |
//! | User Property | header of type long string |
//! | QoS (not a property) | `delivery_mode`; header `x-mqtt-publish-qos` for QoS 2 |
//! | RETAIN (not a property) | header `x-mqtt-retain`: true |
//!
//! Other properties and headers of AMQP are not sent to MQTT clients.
//!
//! # Invariants
//! - The properties of an AMQP publisher may contain any bytes. Values that MQTT does not allow are left out.
//! - Nothing is allocated.

use leveret_amqp::props::{
    MQTT_CORRELATION, MQTT_PAYLOAD_FORMAT, MQTT_REPLY_TO, MQTT_RETAIN, PUBLISH_QOS,
    Properties as AmqpProperties, is_user_property,
};
use leveret_amqp::{Full, Table, TableWriter, Value, Writer};
use leveret_core::command::Name;
use leveret_core::mem::MessageFlags;
use leveret_core::topic::exchange_separators;
use leveret_mqtt::{PacketError, Properties, Property, QoS, ReasonCode, check_topic_name};

/// The most bytes of a short string of AMQP.
const SHORT_STRING_BYTES_MAX: usize = 255;
/// The largest `expiration` in milliseconds that the broker accepts: 100 years.
const EXPIRATION_MS_MAX: u64 = 100 * 365 * 24 * 60 * 60 * 1000;

/// The flags of AMQP properties.
mod flag {
    pub(super) const CONTENT_TYPE: u16 = 0x8000;
    pub(super) const HEADERS: u16 = 0x2000;
    pub(super) const DELIVERY_MODE: u16 = 0x1000;
    pub(super) const CORRELATION_ID: u16 = 0x0400;
    pub(super) const EXPIRATION: u16 = 0x0100;
}

// ---- from an MQTT client

/// The QoS, RETAIN and the properties of a PUBLISH, except user properties.
#[derive(Debug)]
struct Incoming<'a> {
    qos: QoS,
    retain: bool,
    payload_format: Option<u8>,
    expiry_s: Option<u32>,
    content_type: Option<&'a str>,
    /// The routing key of the response topic.
    reply_to: Option<Name>,
    correlation: Option<&'a [u8]>,
    has_user_properties: bool,
    /// A user property has the name of a header that makes AMQP publishers' messages go to more routing keys.
    has_copy_header: bool,
}

impl<'a> Incoming<'a> {
    /// # Errors
    /// A property that AMQP properties cannot contain.
    fn of(qos: QoS, retain: bool, properties: Properties<'a>) -> Result<Self, PacketError> {
        let too_long = |text| Err(PacketError::new(ReasonCode::ImplementationSpecific, text));
        let mut incoming = Self {
            qos,
            retain,
            payload_format: None,
            expiry_s: None,
            content_type: None,
            reply_to: None,
            correlation: None,
            has_user_properties: false,
            has_copy_header: false,
        };
        for property in properties.iter() {
            match property {
                Property::PayloadFormatIndicator(format) => incoming.payload_format = Some(format),
                Property::MessageExpiryInterval(seconds) => incoming.expiry_s = Some(seconds),
                Property::ContentType(text) if text.len() > SHORT_STRING_BYTES_MAX => {
                    return too_long("a content type of more than 255 bytes");
                }
                Property::ContentType(text) => incoming.content_type = Some(text),
                Property::ResponseTopic(topic) => match exchange_separators(topic) {
                    Some(key) => incoming.reply_to = Some(key),
                    None => {
                        let text = "a response topic of more than 255 bytes";
                        return Err(PacketError::new(ReasonCode::TopicNameInvalid, text));
                    }
                },
                Property::CorrelationData(octets) => incoming.correlation = Some(octets),
                Property::UserProperty((name, _)) if name.len() > SHORT_STRING_BYTES_MAX => {
                    return too_long("a user property with a name of more than 255 bytes");
                }
                Property::UserProperty((name, _)) => {
                    incoming.has_user_properties = true;
                    incoming.has_copy_header |= matches!(name, "CC" | "BCC");
                }
                _ => {}
            }
        }
        Ok(incoming)
    }

    /// Returns correlation data that is stored in a header.
    fn long_correlation(&self) -> Option<&'a [u8]> {
        self.correlation.filter(|octets| octets.len() > SHORT_STRING_BYTES_MAX)
    }

    /// Returns correlation data that is stored in the property `correlation_id`.
    fn short_correlation(&self) -> Option<&'a [u8]> {
        self.correlation.filter(|octets| octets.len() <= SHORT_STRING_BYTES_MAX)
    }

    fn message_flags(&self) -> MessageFlags {
        let flags = match self.qos {
            QoS::AtMostOnce => MessageFlags::NONE,
            QoS::AtLeastOnce => MessageFlags::PERSISTENT,
            QoS::ExactlyOnce => MessageFlags::PERSISTENT.with(MessageFlags::EXACTLY_ONCE),
        };
        let flags = match self.expiry_s {
            None => flags,
            Some(0) => flags.with(MessageFlags::EXPIRES).with(MessageFlags::DUE_AT_ONCE),
            Some(_) => flags.with(MessageFlags::EXPIRES),
        };
        // A headers exchange that is bound to `amq.topic` compares user properties. The broker would refuse a header CC
        // or BCC that is a string.
        if self.has_user_properties && !self.has_copy_header {
            flags.with(MessageFlags::PARSE_PROPERTIES)
        } else {
            flags
        }
    }
}

/// Writes the AMQP properties of a PUBLISH to `buffer`, and returns them with the flags of the message. `content_type` is
/// that of messages without one; empty: none.
///
/// # Errors
/// A property is too long for AMQP, or the properties do not fit into `buffer`.
pub(super) fn write_amqp_properties<'b>(
    qos: QoS,
    retain: bool,
    properties: Properties<'_>,
    content_type: &str,
    buffer: &'b mut [u8],
) -> Result<(&'b [u8], MessageFlags), PacketError> {
    let incoming = Incoming::of(qos, retain, properties)?;
    let mut writer = Writer::new(buffer);
    let default_type = Some(content_type).filter(|text| !text.is_empty());
    let written = write_list(&incoming, properties, default_type, &mut writer);
    let len = writer.at();
    if written.is_err() {
        let text = "properties that are larger than frame_max as AMQP properties";
        return Err(PacketError::new(ReasonCode::PacketTooLarge, text));
    }
    Ok((&buffer[..len], incoming.message_flags()))
}

/// Writes flags and property list.
fn write_list(
    incoming: &Incoming<'_>,
    properties: Properties<'_>,
    default_type: Option<&str>,
    writer: &mut Writer<'_>,
) -> Result<(), Full> {
    let (qos, retain) = (incoming.qos, incoming.retain);
    let content_type = incoming.content_type.or(default_type);
    let correlation = incoming.short_correlation();
    let has_headers = qos == QoS::ExactlyOnce
        || retain
        || incoming.payload_format.is_some()
        || incoming.reply_to.is_some()
        || incoming.long_correlation().is_some()
        || incoming.has_user_properties;
    let set = |is_set: bool, flag: u16| if is_set { flag } else { 0 };
    writer.write_u16(
        set(content_type.is_some(), flag::CONTENT_TYPE)
            | set(has_headers, flag::HEADERS)
            | flag::DELIVERY_MODE
            | set(correlation.is_some(), flag::CORRELATION_ID)
            | set(incoming.expiry_s.is_some(), flag::EXPIRATION),
    )?;
    if let Some(text) = content_type {
        writer.write_short_str(text.as_bytes())?;
    }
    if has_headers {
        writer.table(|table| write_headers(incoming, properties, table))?;
    }
    writer.write_u8(if qos == QoS::AtMostOnce { 1 } else { 2 })?;
    if let Some(octets) = correlation {
        writer.write_short_str(octets)?;
    }
    if let Some(seconds) = incoming.expiry_s {
        let mut digits = [0; 20];
        let ms = (u64::from(seconds) * 1000).min(EXPIRATION_MS_MAX);
        writer.write_short_str(decimal(ms, &mut digits))?;
    }
    Ok(())
}

/// Writes the headers: first those with a meaning for the broker, of which the first one with its name counts.
fn write_headers(
    incoming: &Incoming<'_>,
    properties: Properties<'_>,
    table: &mut TableWriter<'_, '_>,
) -> Result<(), Full> {
    let Incoming { qos, retain, .. } = *incoming;
    if qos == QoS::ExactlyOnce {
        table.value(PUBLISH_QOS.as_bytes(), Value::Byte(qos as i8))?;
    }
    if retain {
        table.bool(MQTT_RETAIN, true)?;
    }
    if let Some(format) = incoming.payload_format {
        table.value(MQTT_PAYLOAD_FORMAT.as_bytes(), Value::Byte(i8::from(format == 1)))?;
    }
    if let Some(key) = &incoming.reply_to {
        table.text(MQTT_REPLY_TO, key)?;
    }
    if let Some(octets) = incoming.long_correlation() {
        table.long_str(MQTT_CORRELATION, octets)?;
    }
    for property in properties.iter() {
        if let Property::UserProperty((name, value)) = property {
            table.text(name, value)?;
        }
    }
    Ok(())
}

/// Returns a number as decimal text.
fn decimal(mut number: u64, digits: &mut [u8; 20]) -> &[u8] {
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            return &digits[at..];
        }
    }
}

// ---- to an MQTT client

/// The properties of a PUBLISH to a client.
#[derive(Debug, Default)]
pub(super) struct Outgoing<'a> {
    payload_format: Option<u8>,
    /// The remaining time until the message expires, in seconds.
    pub(super) expiry_s: Option<u32>,
    content_type: Option<&'a str>,
    response_topic: Option<Name>,
    correlation: Option<&'a [u8]>,
    headers: Option<Table<'a>>,
    /// The message was published with RETAIN.
    pub(super) is_retain_published: bool,
}

impl<'a> Outgoing<'a> {
    /// Returns the MQTT properties for these AMQP properties. The message has waited for `waited_ms` milliseconds in the
    /// broker.
    pub(super) fn of(properties: AmqpProperties<'a>, waited_ms: u64) -> Self {
        let headers = properties.headers();
        let header = |name: &str| headers.and_then(|headers| headers.get(name));
        let payload_format = header(MQTT_PAYLOAD_FORMAT).and_then(|value| value.as_integer());
        let response_topic = header(MQTT_REPLY_TO).and_then(|value| value.as_str()).and_then(|key| {
            let topic = exchange_separators(key)?;
            check_topic_name(&topic).ok().map(|()| topic)
        });
        let correlation = properties.correlation_id().or_else(|| match header(MQTT_CORRELATION)? {
            Value::LongStr(octets) | Value::Binary(octets) => Some(octets),
            _ => None,
        });
        Self {
            payload_format: payload_format.and_then(|format| u8::try_from(format).ok()).filter(|it| *it <= 1),
            expiry_s: properties.expiration().and_then(|text| remaining_s(text, waited_ms)),
            content_type: properties.content_type().and_then(mqtt_string),
            response_topic,
            correlation: correlation.filter(|octets| octets.len() <= usize::from(u16::MAX)),
            headers,
            is_retain_published: header(MQTT_RETAIN).is_some_and(|value| value == Value::Bool(true)),
        }
    }

    /// Returns the properties in the order in which they are sent, with a topic alias and subscription identifiers.
    pub(super) fn iter(
        &self,
        alias: Option<u16>,
        subscription_ids: impl Iterator<Item = u32> + Clone,
    ) -> impl Iterator<Item = Property<'_>> + Clone {
        let single = [
            alias.map(Property::TopicAlias),
            self.payload_format.map(Property::PayloadFormatIndicator),
            self.expiry_s.map(Property::MessageExpiryInterval),
            self.content_type.map(Property::ContentType),
            self.response_topic.as_deref().map(Property::ResponseTopic),
            self.correlation.map(Property::CorrelationData),
        ];
        let headers = self.headers.into_iter().flat_map(|headers| headers.iter());
        let ids = subscription_ids.map(Property::SubscriptionIdentifier);
        single
            .into_iter()
            .flatten()
            .chain(ids)
            .chain(headers.filter_map(|(name, value)| user_property(name, value)))
    }
}

/// Returns the user property for a header; `None` if it is not sent.
fn user_property<'a>(name: &'a [u8], value: Value<'a>) -> Option<Property<'a>> {
    let name = mqtt_string(name)?;
    if !is_user_property(name.as_bytes()) {
        return None;
    }
    Some(Property::UserProperty((name, mqtt_string(value.as_bytes()?)?)))
}

/// Returns octets as a string of MQTT (§1.5.4); `None` if they are not UTF-8, contain U+0000 or are longer than 65,535
/// bytes.
fn mqtt_string(octets: &[u8]) -> Option<&str> {
    let is_valid = octets.len() <= usize::from(u16::MAX) && !octets.contains(&0);
    core::str::from_utf8(octets).ok().filter(|_| is_valid)
}

/// Returns the time until a message expires in seconds, rounded up. `expiration` is its property with the milliseconds
/// that it may wait. Returns `None` if that is not a number.
fn remaining_s(expiration: &[u8], waited_ms: u64) -> Option<u32> {
    let text = core::str::from_utf8(expiration).ok()?;
    // The broker accepts `-0`.
    let ms: u64 = text.strip_prefix('-').unwrap_or(text).parse().ok()?;
    Some(u32::try_from(ms.saturating_sub(waited_ms).div_ceil(1000)).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use core::iter::empty;

    use leveret_mqtt::{FixedHeader, HeaderLen, OutgoingPublish, OutgoingQoS, PublishHeader, Version};

    use super::*;

    const PUBLISH: OutgoingPublish<'_> = OutgoingPublish {
        is_duplicate: false,
        qos: OutgoingQoS::AtMostOnce,
        retain: false,
        topic: b"t",
        payload_len: 0,
    };

    /// Calls `check` with these properties as the broker receives them.
    fn received<T>(properties: &[Property<'_>], check: impl FnOnce(Properties<'_>) -> T) -> T {
        let mut buffer = vec![0; 200_000];
        let mut writer = leveret_mqtt::Writer::new(&mut buffer);
        PUBLISH.write_header(&mut writer, Version::V5, properties.iter().copied()).expect("it fits");
        let octets = writer.written();
        let fixed = FixedHeader::parse(octets).expect("valid").expect("complete");
        let body = &octets[fixed.len..];
        let len = PublishHeader::len_of(fixed, Version::V5, body).expect("valid");
        assert_eq!(len, HeaderLen::Known(body.len()));
        check(PublishHeader::parse(fixed, Version::V5, body).expect("valid").properties)
    }

    /// Calls `check` with the AMQP properties of a message with these properties, and its flags.
    fn mapped<T>(
        qos: QoS,
        properties: &[Property<'_>],
        check: impl FnOnce(AmqpProperties<'_>, MessageFlags) -> T,
    ) -> T {
        let mut buffer = vec![0; 200_000];
        received(properties, |properties| {
            let (octets, flags) =
                write_amqp_properties(qos, false, properties, "", &mut buffer).expect("they can be mapped");
            check(AmqpProperties::parse(octets).expect("valid properties of AMQP"), flags)
        })
    }

    fn refused(properties: &[Property<'_>], buffer_bytes: usize) -> ReasonCode {
        let mut buffer = vec![0; buffer_bytes];
        received(properties, |properties| {
            let written = write_amqp_properties(QoS::AtMostOnce, false, properties, "", &mut buffer);
            written.expect_err("it is refused").reason
        })
    }

    const ALL: [Property<'_>; 9] = [
        Property::PayloadFormatIndicator(1),
        Property::MessageExpiryInterval(90),
        Property::ContentType("text/plain"),
        Property::ResponseTopic("answers/a.b"),
        Property::CorrelationData(&[0, 255, 7]),
        Property::UserProperty(("b", "1")),
        Property::UserProperty(("a", "")),
        Property::UserProperty(("b", "2")),
        Property::UserProperty(("x-request-id", "17")),
    ];

    #[test]
    fn all_properties_are_the_same_after_both_mappings() {
        for qos in [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce] {
            for count in 0..=ALL.len() {
                mapped(qos, &ALL[..count], |amqp, _| {
                    assert!(Outgoing::of(amqp, 0).iter(None, empty()).eq(ALL[..count].iter().copied()));
                });
            }
        }
        let long = [7; 256];
        let long = [Property::PayloadFormatIndicator(0), Property::CorrelationData(&long)];
        mapped(QoS::AtMostOnce, &long, |amqp, _| assert!(Outgoing::of(amqp, 0).iter(None, empty()).eq(long)));
    }

    #[test]
    fn amqp_consumers_get_the_properties_of_rabbitmq() {
        mapped(QoS::ExactlyOnce, &ALL, |amqp, _| {
            assert_eq!(amqp.content_type(), Some(&b"text/plain"[..]));
            assert_eq!(amqp.correlation_id(), Some(&[0, 255, 7][..]));
            assert_eq!((amqp.expiration(), amqp.delivery_mode()), (Some(&b"90000"[..]), Some(2)));
            let headers: Vec<_> = amqp.headers().expect("headers").iter().collect();
            let expected: [(&[u8], Value<'_>); 7] = [
                (b"x-mqtt-publish-qos", Value::Byte(2)),
                (b"x-mqtt-payload-format", Value::Byte(1)),
                (b"x-reply-to-topic", Value::LongStr(b"answers.a/b")),
                (b"b", Value::LongStr(b"1")),
                (b"a", Value::LongStr(b"")),
                (b"b", Value::LongStr(b"2")),
                (b"x-request-id", Value::LongStr(b"17")),
            ];
            assert_eq!(headers, expected);
            assert!(amqp.is_published_exactly_once());
        });
        let long = [7; 256];
        mapped(QoS::AtMostOnce, &[Property::CorrelationData(&long)], |amqp, _| {
            assert_eq!((amqp.correlation_id(), amqp.delivery_mode()), (None, Some(1)));
            let header = amqp.headers().and_then(|headers| headers.get(MQTT_CORRELATION));
            assert_eq!(header, Some(Value::LongStr(&long)));
        });
        mapped(QoS::AtLeastOnce, &[], |amqp, _| assert_eq!(amqp.as_bytes(), [0x10, 0, 2]));
    }

    #[test]
    fn the_configured_content_type_is_that_of_messages_without_one() {
        for (properties, content_type) in [(&[][..], "a/b"), (&[Property::ContentType("c/d")], "c/d")] {
            received(properties, |properties| {
                let mut buffer = [0; 100];
                let (octets, _) =
                    write_amqp_properties(QoS::AtMostOnce, false, properties, "a/b", &mut buffer)
                        .expect("it fits");
                assert_eq!(AmqpProperties::trusted(octets).content_type(), Some(content_type.as_bytes()));
            });
        }
    }

    #[test]
    fn flags_depend_on_expiry_and_user_properties() {
        let flags = |property| mapped(QoS::AtMostOnce, &[property], |_, flags| flags);
        let expires = MessageFlags::EXPIRES;
        assert_eq!(flags(Property::MessageExpiryInterval(1)), expires);
        assert_eq!(flags(Property::MessageExpiryInterval(0)), expires.with(MessageFlags::DUE_AT_ONCE));
        assert_eq!(flags(Property::UserProperty(("a", "b"))), MessageFlags::PARSE_PROPERTIES);
        assert_eq!(flags(Property::UserProperty(("CC", "b"))), MessageFlags::NONE);
        let exactly_once = mapped(QoS::ExactlyOnce, &[], |_, flags| flags);
        assert_eq!(exactly_once, MessageFlags::PERSISTENT.with(MessageFlags::EXACTLY_ONCE));
    }

    #[test]
    fn properties_that_amqp_cannot_contain_are_refused() {
        let (longest, longer) = ("x".repeat(255), "x".repeat(256));
        let fits = [
            Property::ContentType(&longest),
            Property::ResponseTopic(&longest),
            Property::UserProperty((&longest, &longer)),
        ];
        mapped(QoS::AtMostOnce, &fits, |amqp, _| assert!(Outgoing::of(amqp, 0).iter(None, empty()).eq(fits)));
        let specific = ReasonCode::ImplementationSpecific;
        assert_eq!(refused(&[Property::ContentType(&longer)], 1_000), specific);
        assert_eq!(refused(&[Property::UserProperty((&longer, ""))], 1_000), specific);
        assert_eq!(refused(&[Property::ResponseTopic(&longer)], 1_000), ReasonCode::TopicNameInvalid);
        let len = mapped(QoS::AtMostOnce, &ALL, |amqp, _| amqp.as_bytes().len());
        for shorter in 0..len {
            assert_eq!(refused(&ALL, shorter), ReasonCode::PacketTooLarge);
        }
    }

    /// Calls `check` with AMQP properties with only these headers.
    fn with_headers<T>(headers: &[(&[u8], Value<'_>)], check: impl FnOnce(AmqpProperties<'_>) -> T) -> T {
        let mut buffer = vec![0; 200_000];
        let mut writer = Writer::new(&mut buffer);
        writer.write_u16(flag::HEADERS).expect("it fits");
        let fill = |table: &mut TableWriter<'_, '_>| {
            headers.iter().try_for_each(|(name, value)| table.value(name, *value))
        };
        writer.table(fill).expect("it fits");
        check(AmqpProperties::parse(writer.written()).expect("valid"))
    }

    #[test]
    fn values_that_mqtt_does_not_allow_are_left_out() {
        let long = vec![b'x'; 65_536];
        let headers: [(&[u8], Value<'_>); 12] = [
            (b"number", Value::Int(1)),
            (b"nothing", Value::Void),
            (b"binary", Value::Binary(b"x")),
            (b"not UTF-8", Value::LongStr(b"\xFF")),
            (b"\xFF", Value::LongStr(b"x")),
            (b"a\0b", Value::LongStr(b"x")),
            (b"null", Value::LongStr(b"a\0b")),
            (b"long", Value::LongStr(&long)),
            (b"x-first-death-queue", Value::LongStr(b"q")),
            (b"x-reply-to-topic", Value::LongStr(b"a.#")),
            (b"x-correlation-id", Value::LongStr(&long)),
            (b"x-mqtt-payload-format", Value::Byte(2)),
        ];
        with_headers(&headers, |amqp| assert_eq!(Outgoing::of(amqp, 0).iter(None, empty()).next(), None));
        for (topic, is_sent) in [(&b"a.b"[..], true), (b"", false), (b"a.*", true), (b"\xFF", false)] {
            with_headers(&[(b"x-reply-to-topic", Value::LongStr(topic))], |amqp| {
                assert_eq!(
                    Outgoing::of(amqp, 0).iter(None, empty()).count(),
                    usize::from(is_sent),
                    "{topic:?}"
                );
            });
        }
        // Content type and correlation identifier.
        let amqp = AmqpProperties::parse(b"\x84\0\x01\xFF\x01\0").expect("valid");
        assert!(Outgoing::of(amqp, 0).iter(None, empty()).eq([Property::CorrelationData(&[0])]));
    }

    #[test]
    fn the_expiry_interval_is_what_remains_of_the_expiration() {
        for (text, waited_ms, seconds) in [
            ("10000", 0, Some(10)),
            ("10000", 999, Some(10)),
            ("10000", 1_000, Some(9)),
            ("10000", 9_999, Some(1)),
            ("10000", 10_000, Some(0)),
            ("10000", u64::MAX, Some(0)),
            ("1", 0, Some(1)),
            ("0", 0, Some(0)),
            ("+5000", 0, Some(5)),
            ("-0", 0, Some(0)),
            ("18446744073709551615", 0, Some(u32::MAX)),
            ("18446744073709551616", 0, None),
            ("", 0, None),
            ("ten", 0, None),
        ] {
            assert_eq!(remaining_s(text.as_bytes(), waited_ms), seconds, "{text}");
        }
        mapped(QoS::AtMostOnce, &[Property::MessageExpiryInterval(u32::MAX)], |amqp, _| {
            assert_eq!(amqp.expiration(), Some(&b"3153600000000"[..]));
        });
        let mut digits = [0; 20];
        assert_eq!(decimal(0, &mut digits), b"0");
        assert_eq!(decimal(u64::MAX, &mut digits), b"18446744073709551615");
    }

    /// `properties_len_max` in `leveret-broker` relies on this.
    #[test]
    fn properties_are_at_most_5_bytes_longer_than_those_of_amqp() {
        let shortest = b"\x85\0\0\0\x010";
        let amqp = AmqpProperties::parse(shortest).expect("valid");
        let len = |properties: &Outgoing<'_>| {
            PUBLISH.packet_len(Version::V5, properties.iter(None, empty()))
                - PUBLISH.packet_len(Version::V5, core::iter::empty())
        };
        assert_eq!(len(&Outgoing::of(amqp, 0)), shortest.len() as u64 + 5);
        for count in 0..=ALL.len() {
            mapped(QoS::AtMostOnce, &ALL[..count], |amqp, _| {
                assert!(len(&Outgoing::of(amqp, 0)) <= amqp.as_bytes().len() as u64 + 5);
            });
        }
    }
}
