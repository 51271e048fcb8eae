//! CONNECT (§3.1): the first packet of a client.

use core::fmt;

use super::Version;
use super::cursor::Reader;
use super::packet::FixedHeader;
use super::properties::{Place, Properties, Property};
use super::publish::PACKET_LEN_MAX;
use super::publish::QoS;
use super::reason::{PacketError, ReasonCode};
use super::topic::check_topic_name;

/// CONNECT.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Connect<'a> {
    /// The version of the protocol, which holds for the whole connection.
    pub version: Version,
    /// The client is a bridge of mosquitto or a broker like it: bit 7 of the protocol level is set. Such a bridge expects that
    /// it does not get its own messages, and that messages keep their RETAIN flag.
    pub is_bridge: bool,
    /// A new session begins, and an old one of the same client is discarded. Before MQTT 5 (Clean Session) the new
    /// session also ends with the connection.
    pub clean_start: bool,
    /// The client sends a packet at least this often, in seconds; 0: it need not.
    pub keep_alive_s: u16,
    /// The client identifier. If it is empty, the server chooses one.
    pub client_id: &'a str,
    /// The message that the server publishes if the connection ends without DISCONNECT.
    pub will: Option<Will<'a>>,
    /// The user name.
    pub user_name: Option<&'a str>,
    /// The password.
    pub password: Option<Password<'a>>,
    /// How long the session is kept after the connection, in seconds; `u32::MAX`: for ever. Before MQTT 5 it is 0 with
    /// Clean Session, and otherwise for ever.
    pub session_expiry_s: u32,
    /// Maximum number of messages with QoS 1 or 2 that the client has not acknowledged; at least 1.
    pub receive_maximum: u16,
    /// The largest packet that the client accepts, in octets. If it has not set a limit, the largest that the protocol
    /// can express.
    pub maximum_packet_size: u32,
    /// The highest topic alias that the client accepts; 0: none.
    pub topic_alias_maximum: u16,
    /// The client wants response information in CONNACK.
    pub wants_response_information: bool,
    /// The client accepts reason strings and user properties in packets other than PUBLISH, CONNACK and DISCONNECT.
    pub wants_problem_information: bool,
    /// The client wants enhanced authentication.
    pub has_authentication_method: bool,
}

/// A password, which no log line shows.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Password<'a>(pub &'a [u8]);

impl fmt::Debug for Password<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(..)")
    }
}

/// The will of a client (§3.1.2.5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Will<'a> {
    /// The topic name.
    pub topic: &'a str,
    /// The payload.
    pub payload: &'a [u8],
    /// The quality of service.
    pub qos: QoS,
    /// The message is retained.
    pub retain: bool,
    /// Time between the end of the connection and the publication, in seconds.
    pub delay_s: u32,
    /// The properties, the delay included.
    pub properties: Properties<'a>,
}

impl<'a> Connect<'a> {
    /// Returns the version of the CONNACK with which a CONNECT is refused: that of the client, or the nearest one that
    /// there is. `None`: the packet is that of another protocol, and is not answered.
    ///
    /// A client may try again with a lower version if it gets the answer of MQTT 3.1.1 (MQTT-3.1.2-2). That is why levels from
    /// 0x80 on get it: their clients are bridges.
    pub fn answer_version(body: &[u8]) -> Option<Version> {
        let mut reader = Reader::new(body);
        let (name, level) = (reader.binary().ok()?, reader.u8().ok()?);
        match (name, level) {
            (b"MQIsdp", 3 | 0x83) => Some(Version::V3_1),
            (b"MQTT", 5..=0x7F) => Some(Version::V5),
            (b"MQIsdp" | b"MQTT", _) => Some(Version::V3_1_1),
            _ => None,
        }
    }

    /// Returns the client identifier in the first octets of a CONNECT that is refused, for the log. `body` begins after the
    /// fixed header and may be incomplete.
    pub fn client_id_of(body: &'a [u8]) -> Option<&'a str> {
        let mut reader = Reader::new(body);
        let (version, _) = read_version(&mut reader).ok()?;
        reader.u8().and_then(|_| reader.u16()).ok()?;
        if version == Version::V5 {
            Properties::read(&mut reader, Place::Connect).ok()?;
        }
        reader.string().ok()
    }

    /// Parses the packet. `body` has the octets after the fixed header, `fixed.remaining_len` of them.
    ///
    /// # Errors
    /// The packet is not valid.
    pub fn parse(fixed: FixedHeader, body: &'a [u8]) -> Result<Self, PacketError> {
        let mut reader = Reader::new(body);
        let (version, is_bridge) = read_version(&mut reader)?;
        fixed.check(version)?;
        let flags = Flags::parse(reader.u8()?, version)?;
        let mut connect = Self {
            version,
            is_bridge,
            clean_start: flags.clean_start,
            keep_alive_s: reader.u16()?,
            client_id: "",
            will: None,
            user_name: None,
            password: None,
            session_expiry_s: if version == Version::V5 || flags.clean_start { 0 } else { u32::MAX },
            receive_maximum: u16::MAX,
            maximum_packet_size: PACKET_LEN_MAX,
            topic_alias_maximum: 0,
            wants_response_information: false,
            wants_problem_information: true,
            has_authentication_method: false,
        };
        if version == Version::V5 {
            connect.apply(Properties::read(&mut reader, Place::Connect)?)?;
        }
        connect.client_id = reader.string()?;
        if let Some((qos, retain)) = flags.will {
            connect.will = Some(Will::read(&mut reader, version, qos, retain)?);
        }
        // In MQTT 3.1 the packet may end before a user name or a password that its flags announce.
        let has = |flag: bool, reader: &Reader<'_>| flag && (version != Version::V3_1 || !reader.is_empty());
        connect.user_name = has(flags.has_user_name, &reader).then(|| reader.string()).transpose()?;
        connect.password =
            has(flags.has_password, &reader).then(|| reader.binary().map(Password)).transpose()?;
        reader.finish()?;
        if connect.client_id.is_empty()
            && version != Version::V5
            && (version == Version::V3_1 || !flags.clean_start)
        {
            // MQTT 3.1.1, MQTT-3.1.3-8; MQTT 3.1 requires an identifier.
            let text = "an empty client identifier without Clean Session";
            return Err(PacketError::new(ReasonCode::ClientIdentifierNotValid, text));
        }
        Ok(connect)
    }

    fn apply(&mut self, properties: Properties<'a>) -> Result<(), PacketError> {
        let mut has_authentication_data = false;
        for property in properties.iter() {
            match property {
                Property::SessionExpiryInterval(seconds) => self.session_expiry_s = seconds,
                Property::ReceiveMaximum(count) => self.receive_maximum = count,
                Property::MaximumPacketSize(octets) => self.maximum_packet_size = octets,
                Property::TopicAliasMaximum(alias) => self.topic_alias_maximum = alias,
                Property::RequestResponseInformation(wanted) => self.wants_response_information = wanted == 1,
                Property::RequestProblemInformation(wanted) => self.wants_problem_information = wanted == 1,
                Property::AuthenticationMethod(_) => self.has_authentication_method = true,
                Property::AuthenticationData(_) => has_authentication_data = true,
                _ => {}
            }
        }
        if has_authentication_data && !self.has_authentication_method {
            // §3.1.2.11.10.
            return Err(PacketError::protocol("authentication data without an authentication method"));
        }
        Ok(())
    }
}

/// Returns the version, and whether the client is a bridge.
fn read_version(reader: &mut Reader<'_>) -> Result<(Version, bool), PacketError> {
    let name = reader.binary()?;
    let level = reader.u8()?;
    match (name, level) {
        (b"MQIsdp", 3) => Ok((Version::V3_1, false)),
        (b"MQTT", 4) => Ok((Version::V3_1_1, false)),
        (b"MQTT", 5) => Ok((Version::V5, false)),
        (b"MQIsdp", 0x83) => Ok((Version::V3_1, true)),
        (b"MQTT", 0x84) => Ok((Version::V3_1_1, true)),
        (b"MQIsdp" | b"MQTT", _) => Err(PacketError::new(
            ReasonCode::UnsupportedProtocolVersion,
            "a version that this broker does not support",
        )),
        // It is not answered (MQTT-3.1.2-1).
        _ => Err(PacketError::malformed("a CONNECT of another protocol")),
    }
}

/// The connect flags (§3.1.2.3).
struct Flags {
    clean_start: bool,
    /// QoS and RETAIN of the will.
    will: Option<(QoS, bool)>,
    has_user_name: bool,
    has_password: bool,
}

impl Flags {
    /// Bit 0 is reserved, 1 is Clean Start, 2 the will, 3 and 4 its QoS, 5 its RETAIN, 6 the password, and 7 the user
    /// name.
    fn parse(octet: u8, version: Version) -> Result<Self, PacketError> {
        let has = |bit: u8| octet & 1 << bit != 0;
        if has(0) && version != Version::V3_1 {
            // MQTT-3.1.2-3. In MQTT 3.1 the bit has no meaning and no rule.
            return Err(PacketError::malformed("the reserved flag of CONNECT"));
        }
        let (has_will, will_retain) = (has(2), has(5));
        let will_qos = QoS::from_bits(octet >> 3 & 3).ok_or(PacketError::malformed("a will with QoS 3"))?;
        if !has_will && (will_retain || will_qos != QoS::AtMostOnce) {
            // MQTT-3.1.2-11, MQTT-3.1.2-13.
            return Err(PacketError::malformed("flags of a will without a will"));
        }
        let (has_user_name, has_password) = (has(7), has(6));
        if has_password && !has_user_name && version != Version::V5 {
            // MQTT 3.1.1, MQTT-3.1.2-22.
            return Err(PacketError::malformed("a password without a user name"));
        }
        let will = has_will.then_some((will_qos, will_retain));
        Ok(Self { clean_start: has(1), will, has_user_name, has_password })
    }
}

impl<'a> Will<'a> {
    fn read(reader: &mut Reader<'a>, version: Version, qos: QoS, retain: bool) -> Result<Self, PacketError> {
        let mut properties = Properties::default();
        if version == Version::V5 {
            properties = Properties::read(reader, Place::Will)?;
        }
        let delay_s = properties.iter().find_map(|property| match property {
            Property::WillDelayInterval(seconds) => Some(seconds),
            _ => None,
        });
        let topic = reader.string()?;
        check_topic_name(topic)?;
        let payload = reader.binary()?;
        Ok(Self { topic, payload, qos, retain, delay_s: delay_s.unwrap_or(0), properties })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(body: &[u8]) -> Result<Connect<'_>, PacketError> {
        let fixed = FixedHeader::parse(&[0x10, body.len() as u8]).expect("valid").expect("complete");
        Connect::parse(fixed, body)
    }

    fn refused(body: &[u8]) -> ReasonCode {
        parse(body).expect_err("it is refused").reason
    }

    fn string(text: &str) -> Vec<u8> {
        [&(text.len() as u16).to_be_bytes()[..], text.as_bytes()].concat()
    }

    /// Returns the body of a CONNECT with these flags and octets after the keep-alive.
    fn connect(name: &str, level: u8, flags: u8, rest: &[&[u8]]) -> Vec<u8> {
        [&string(name), &[level, flags, 0, 60][..], &rest.concat()].concat()
    }

    /// The example of §3.1.2.12, with all fields of the payload.
    #[test]
    fn all_fields_of_version_5_are_read() {
        let properties = [5, 0x11, 0, 0, 0, 10];
        let will = [2 + 5, 0x18, 0, 0, 1, 0, 0x01, 1];
        let (id, topic, user) = (string("id"), string("will/topic"), string("user"));
        let body = connect(
            "MQTT",
            5,
            0xCE | 0x20,
            &[&properties, &id, &will, &topic, &[0, 2, 0, 255], &user, &[0, 1, 0]],
        );
        // The reserved flag is clear, and the will has QoS 1.
        let connect = parse(&body).expect("valid");
        assert_eq!((connect.version, connect.clean_start, connect.keep_alive_s), (Version::V5, true, 60));
        assert_eq!((connect.client_id, connect.session_expiry_s), ("id", 10));
        assert_eq!(Connect::client_id_of(&body[..30]), Some("id"));
        assert_eq!(Connect::client_id_of(&body[..14]), None);
        assert_eq!((connect.user_name, connect.password), (Some("user"), Some(Password(&[0]))));
        assert_eq!((connect.receive_maximum, connect.maximum_packet_size), (65_535, PACKET_LEN_MAX));
        let will = connect.will.expect("it has a will");
        assert_eq!(
            (will.topic, will.payload, will.qos, will.retain),
            ("will/topic", &[0, 255][..], QoS::AtLeastOnce, true)
        );
        assert_eq!(will.delay_s, 256);
        assert!(!format!("{connect:?}").contains("[0]"), "the password is not shown");
        for shorter in 0..body.len() {
            assert!(parse(&body[..shorter]).is_err());
        }
        assert_eq!(refused(&[&body[..], &[0]].concat()), ReasonCode::MalformedPacket);
    }

    #[test]
    fn all_properties_of_version_5_are_read() {
        let properties = [
            &[0x21, 0, 7][..],
            &[0x27, 0, 1, 0, 0],
            &[0x22, 0, 9],
            &[0x19, 1],
            &[0x17, 0],
            &[0x15, 0, 1, b'x'],
            &[0x16, 0, 0],
            &[0x26, 0, 1, b'a', 0, 1, b'b'],
        ]
        .concat();
        let body = connect("MQTT", 5, 0, &[&[properties.len() as u8], &properties, &[0, 0]]);
        let connect = parse(&body).expect("valid");
        assert_eq!(
            (connect.receive_maximum, connect.maximum_packet_size, connect.topic_alias_maximum),
            (7, 65_536, 9)
        );
        assert!(connect.wants_response_information && !connect.wants_problem_information);
        assert!(connect.has_authentication_method && !connect.clean_start);
    }

    #[test]
    fn older_versions_keep_a_session_unless_it_is_clean() {
        for (name, level, version) in [("MQIsdp", 3, Version::V3_1), ("MQTT", 4, Version::V3_1_1)] {
            for (flags, expiry_s) in [(0, u32::MAX), (2, 0)] {
                let body = connect(name, level, flags, &[&string("id")]);
                let connect = parse(&body).expect("valid");
                assert_eq!((connect.version, connect.session_expiry_s), (version, expiry_s));
                assert_eq!(Connect::answer_version(&body), Some(version));
            }
        }
    }

    #[test]
    fn wrong_packets_are_refused_with_the_code_of_the_specification() {
        use ReasonCode::{
            ClientIdentifierNotValid, MalformedPacket, ProtocolError, TopicNameInvalid,
            UnsupportedProtocolVersion,
        };
        let (id, no_id) = (string("id"), string(""));
        let will = |topic: &str| [string(topic), vec![0, 0]].concat();
        for (name, level, flags, rest, reason) in [
            ("AMQP", 4, 2, &id, MalformedPacket),
            ("mqtt", 4, 2, &id, MalformedPacket),
            ("MQTT", 3, 2, &id, UnsupportedProtocolVersion),
            ("MQTT", 6, 2, &id, UnsupportedProtocolVersion),
            ("MQIsdp", 4, 2, &id, UnsupportedProtocolVersion),
            ("MQTT", 4, 3, &id, MalformedPacket),
            ("MQTT", 4, 0, &no_id, ClientIdentifierNotValid),
            ("MQIsdp", 3, 2, &no_id, ClientIdentifierNotValid),
            ("MQTT", 4, 0x42, &[&id[..], &[0, 0]].concat(), MalformedPacket),
            ("MQTT", 4, 0x1E, &[&id[..], &will("a")].concat(), MalformedPacket),
            ("MQTT", 4, 0x0A, &id, MalformedPacket),
            ("MQTT", 4, 0x22, &id, MalformedPacket),
            ("MQTT", 4, 6, &[&id[..], &will("a/#")].concat(), TopicNameInvalid),
            ("MQTT", 4, 6, &[&id[..], &will("")].concat(), TopicNameInvalid),
            ("MQTT", 5, 2, &[&[3, 0x16, 0, 0], &id[..]].concat(), ProtocolError),
            ("MQTT", 5, 2, &[&[3, 0x21, 0, 0], &id[..]].concat(), ProtocolError),
            ("MQTT", 5, 2, &[&[3, 0x23, 0, 1], &id[..]].concat(), MalformedPacket),
        ] {
            assert_eq!(
                refused(&connect(name, level, flags, &[rest])),
                reason,
                "{name} {level} {flags:#x} {rest:?}"
            );
        }
        for (name, level, version) in [
            ("MQTT", 6, Some(Version::V5)),
            ("MQTT", 0x84, Some(Version::V3_1_1)),
            ("MQTT", 0x85, Some(Version::V3_1_1)),
            ("MQIsdp", 0x83, Some(Version::V3_1)),
            ("MQIsdp", 4, Some(Version::V3_1_1)),
            ("AMQP", 4, None),
        ] {
            assert_eq!(Connect::answer_version(&connect(name, level, 2, &[&id])), version);
        }
        for (name, level, version) in [("MQIsdp", 0x83, Version::V3_1), ("MQTT", 0x84, Version::V3_1_1)] {
            let connect = connect(name, level, 2, &[&id]);
            let connect = parse(&connect).expect("a bridge of mosquitto");
            assert_eq!((connect.version, connect.is_bridge), (version, true));
        }
        assert_eq!(refused(&connect("MQTT", 0x85, 2, &[&id])), UnsupportedProtocolVersion);
        let reserved = connect("MQIsdp", 3, 3, &[&id]);
        assert!(parse(&reserved).is_ok_and(|connect| connect.clean_start && !connect.is_bridge));
        // A length with more octets than necessary.
        let fixed = FixedHeader::parse(&[0x10, 0x8F, 0]).expect("valid").expect("complete");
        assert!(Connect::parse(fixed, &connect("MQTT", 5, 2, &[&[0], &id])).is_err());
        assert!(Connect::parse(fixed, &connect("MQTT", 4, 2, &[&id])).is_ok());
        // MQTT 3.1 allows a packet without the user name that its flags announce.
        let connect_3_1 = connect("MQIsdp", 3, 0xC2, &[&id]);
        assert_eq!(
            parse(&connect_3_1).map(|connect| (connect.user_name, connect.password)),
            Ok((None, None))
        );
        assert!(parse(&connect("MQTT", 4, 0xC2, &[&id])).is_err());
        // MQTT 5 allows a password without a user name, and 3.1.1 no identifier with Clean Session.
        assert!(parse(&connect("MQTT", 5, 0x42, &[&[0], &id, &[0, 0]])).is_ok());
        assert!(parse(&connect("MQTT", 4, 2, &[&no_id])).is_ok());
        assert!(parse(&connect("MQTT", 5, 0, &[&[0], &no_id])).is_ok());
    }

    /// Each flag decides whether its field is there, and the fields have one order.
    #[test]
    fn the_payload_has_exactly_the_fields_of_the_flags() {
        let (will, password, user_name) = (4, 0x40, 0x80);
        let topic = [string("t"), vec![0, 1, 7]].concat();
        for level in [4, 5] {
            let properties: &[u8] = if level == 5 { &[0] } else { &[] };
            let fields = |present: u8| {
                let mut rest = [properties, &string("id")].concat();
                for (flag, field) in [
                    (will, [properties, &topic].concat()),
                    (user_name, string("user")),
                    (password, vec![0, 3, 0, 0xFF, 1]),
                ] {
                    if present & flag != 0 {
                        rest.extend(field);
                    }
                }
                rest
            };
            let all = [0, will, user_name, will | user_name, user_name | password, 0xC4];
            for flags in all {
                for present in all {
                    // In MQTT 3.1.1, topic and payload look like user name and password.
                    if level == 4 && [(will, 0xC0), (0xC0, will)].contains(&(flags, present)) {
                        continue;
                    }
                    let body = connect("MQTT", level, flags, &[&fields(present)]);
                    assert_eq!(parse(&body).is_ok(), flags == present, "{level} {flags:#x} {present:#x}");
                }
            }
            let body = connect("MQTT", level, 0xC4, &[&fields(0xC4)]);
            let connect = parse(&body).expect("valid");
            let will = connect.will.expect("it has a will");
            assert_eq!((connect.client_id, will.topic, will.payload), ("id", "t", &[7][..]));
            assert_eq!((connect.user_name, connect.password), (Some("user"), Some(Password(&[0, 0xFF, 1]))));
        }
    }

    /// A will has a QoS of 0 to 2. Without a will, QoS and RETAIN are 0.
    #[test]
    fn the_flags_of_a_will_need_a_will() {
        for version in [Version::V3_1, Version::V3_1_1, Version::V5] {
            for octet in 0..=255_u8 {
                let (qos, has_will) = (octet >> 3 & 3, octet & 4 != 0);
                let is_valid = (octet & 1 == 0 || version == Version::V3_1)
                    && qos < 3
                    && (has_will || octet & 0x38 == 0)
                    && (version == Version::V5 || octet & 0xC0 != 0x40);
                let flags = Flags::parse(octet, version);
                assert_eq!(flags.is_ok(), is_valid, "{octet:#x}");
                let Ok(flags) = flags else { continue };
                let will = has_will.then(|| (QoS::from_bits(qos).expect("valid"), octet & 0x20 != 0));
                assert_eq!((flags.will, flags.clean_start), (will, octet & 2 != 0));
            }
        }
    }

    #[test]
    fn the_strings_of_connect_are_utf_8() {
        let bad: [&[u8]; 4] = [&[0xFF], &[0xED, 0xA0, 0x80], &[0xED, 0xBF, 0xBF], &[b'a', 0]];
        for level in [4, 5] {
            let properties: &[u8] = if level == 5 { &[0] } else { &[] };
            for octets in bad {
                let text = [&[0, octets.len() as u8][..], octets].concat();
                let (id, will) = (string("id"), [&text[..], &[0, 0]].concat());
                for (flags, rest) in [
                    (0x02, [properties, &text].concat()),
                    (0x06, [properties, &id, properties, &will].concat()),
                    (0x82, [properties, &id, &text].concat()),
                ] {
                    let body = connect("MQTT", level, flags, &[&rest]);
                    assert_eq!(refused(&body), ReasonCode::MalformedPacket, "{level} {flags:#x} {octets:x?}");
                }
                // The payload of a will and a password are no strings.
                let rest = [properties, &id, properties, &string("t"), &text, &id, &text].concat();
                assert!(parse(&connect("MQTT", level, 0xC6, &[&rest])).is_ok());
            }
        }
    }
}
