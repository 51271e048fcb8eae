//! The header of PUBLISH (§3.3), in both directions. The payload is not part of it: it may be large, and is passed on as
//! it arrives.

use core::num::NonZeroU16;

use super::Version;
use super::cursor::{Full, Reader, VARIABLE_INT_MAX, Writer, variable_int, variable_int_len};
use super::packet::{DUP, FIXED_HEADER_LEN_MAX, FixedHeader, PacketType, read_packet_id};
use super::properties::{Place, Properties, Property, properties_len, write_properties};
use super::reason::PacketError;
use super::topic::check_topic_name;

/// The largest packet that the protocol can express, in octets.
pub const PACKET_LEN_MAX: u32 = FIXED_HEADER_LEN_MAX as u32 + VARIABLE_INT_MAX;

/// The quality of service of a message (§4.3).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum QoS {
    /// At most once: not acknowledged.
    AtMostOnce = 0,
    /// At least once: acknowledged by PUBACK.
    AtLeastOnce = 1,
    /// Exactly once: PUBREC, PUBREL and PUBCOMP.
    ExactlyOnce = 2,
}

impl QoS {
    /// Returns the QoS with this number; `None` for 3.
    pub const fn from_bits(bits: u8) -> Option<Self> {
        match bits {
            0 => Some(Self::AtMostOnce),
            1 => Some(Self::AtLeastOnce),
            2 => Some(Self::ExactlyOnce),
            _ => None,
        }
    }
}

/// The number of octets of the header of a PUBLISH.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HeaderLen {
    /// Exactly this number.
    Known(usize),
    /// At least this number, which is more than has arrived.
    AtLeast(usize),
}

/// The header of a PUBLISH that a client sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PublishHeader<'a> {
    /// The client may have sent the message before.
    pub is_duplicate: bool,
    /// The quality of service.
    pub qos: QoS,
    /// The message replaces the retained message of its topic.
    pub retain: bool,
    /// The topic name. In MQTT 5 it may be empty if there is a topic alias.
    pub topic: &'a str,
    /// The packet identifier; `None` with QoS 0.
    pub packet_id: Option<NonZeroU16>,
    /// A number that stands for the topic name on this connection, from 1 on.
    pub topic_alias: Option<u16>,
    /// The properties, topic alias included.
    pub properties: Properties<'a>,
    /// Number of octets of the payload.
    pub payload_len: u32,
}

impl<'a> PublishHeader<'a> {
    /// Returns the number of octets of the packet before its payload, without the fixed header, as far as it is known.
    /// `prefix` are the first octets after the fixed header.
    ///
    /// In MQTT 5 the length of the properties is behind the topic name. A caller refuses a header that is longer than its
    /// buffer as soon as it gets such a number.
    ///
    /// # Errors
    /// The header would be longer than the packet.
    pub fn len_of(fixed: FixedHeader, version: Version, prefix: &[u8]) -> Result<HeaderLen, PacketError> {
        let packet_len = fixed.remaining_len as usize;
        let len = Self::announced_len(fixed, version, prefix.get(..packet_len).unwrap_or(prefix))?;
        let (HeaderLen::Known(octets) | HeaderLen::AtLeast(octets)) = len;
        if octets > packet_len {
            return Err(PacketError::malformed("the header of a PUBLISH is longer than the packet"));
        }
        Ok(len)
    }

    fn announced_len(fixed: FixedHeader, version: Version, prefix: &[u8]) -> Result<HeaderLen, PacketError> {
        let Some(topic_len) = prefix.first_chunk().map(|octets| u16::from_be_bytes(*octets)) else {
            return Ok(HeaderLen::AtLeast(2));
        };
        let id_len = if fixed.flags & 6 == 0 { 0 } else { 2 };
        let len = 2 + usize::from(topic_len) + id_len;
        if version != Version::V5 {
            return Ok(HeaderLen::Known(len));
        }
        let properties = prefix.get(len..).unwrap_or_default();
        Ok(match variable_int(properties)? {
            Some((properties_len, octets, _)) => HeaderLen::Known(len + octets + properties_len as usize),
            None => HeaderLen::AtLeast(len + properties.len() + 1),
        })
    }

    /// Parses the header. `header` are as many octets after the fixed header as [`Self::len_of`] returned.
    ///
    /// # Errors
    /// The header is not valid.
    pub fn parse(fixed: FixedHeader, version: Version, header: &'a [u8]) -> Result<Self, PacketError> {
        assert_eq!(fixed.kind, PacketType::Publish, "the caller has looked at the type");
        fixed.check(version)?;
        let qos = QoS::from_bits(fixed.flags >> 1 & 3).expect("a fixed header with QoS 3 is refused");
        // MQTT 3.1 allows the DUP flag with QoS 0, where it has no meaning.
        let is_duplicate = fixed.flags & DUP != 0 && qos != QoS::AtMostOnce;
        let mut reader = Reader::new(header);
        let topic = reader.string()?;
        let packet_id = (qos != QoS::AtMostOnce).then(|| read_packet_id(&mut reader)).transpose()?;
        let mut properties = Properties::default();
        if version == Version::V5 {
            properties = Properties::read(&mut reader, Place::Publish)?;
        }
        reader.finish()?;
        let topic_alias = properties.iter().find_map(|property| match property {
            Property::TopicAlias(alias) => Some(alias),
            _ => None,
        });
        match (topic, topic_alias) {
            ("", Some(_)) => {}
            ("", None) if version == Version::V5 => {
                return Err(PacketError::protocol("a PUBLISH with neither a topic name nor a topic alias"));
            }
            _ => check_topic_name(topic)?,
        }
        let payload_len = fixed.remaining_len.checked_sub(header.len() as u32);
        let payload_len =
            payload_len.ok_or(PacketError::malformed("the header of a PUBLISH is longer than the packet"))?;
        let retain = fixed.flags & 1 != 0;
        Ok(Self { is_duplicate, qos, retain, topic, packet_id, topic_alias, properties, payload_len })
    }
}

/// A PUBLISH that the server sends, without its properties and its payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OutgoingPublish<'a> {
    /// The message was sent before and not acknowledged.
    pub is_duplicate: bool,
    /// The quality of service, with the packet identifier that QoS 1 and 2 need.
    pub qos: OutgoingQoS,
    /// The RETAIN flag.
    pub retain: bool,
    /// The topic name in UTF-8.
    pub topic: &'a [u8],
    /// Number of octets of the payload.
    pub payload_len: u32,
}

/// The quality of service of an outgoing message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OutgoingQoS {
    /// At most once.
    AtMostOnce,
    /// At least once, with the packet identifier.
    AtLeastOnce(NonZeroU16),
    /// Exactly once, with the packet identifier.
    ExactlyOnce(NonZeroU16),
}

impl OutgoingQoS {
    /// Returns the packet identifier, if there is one.
    pub const fn packet_id(self) -> Option<NonZeroU16> {
        match self {
            Self::AtMostOnce => None,
            Self::AtLeastOnce(id) | Self::ExactlyOnce(id) => Some(id),
        }
    }

    const fn bits(self) -> u8 {
        match self {
            Self::AtMostOnce => QoS::AtMostOnce as u8,
            Self::AtLeastOnce(_) => QoS::AtLeastOnce as u8,
            Self::ExactlyOnce(_) => QoS::ExactlyOnce as u8,
        }
    }
}

impl OutgoingPublish<'_> {
    /// Returns the number of octets of the whole packet, to be compared with the client's maximum packet size. It may be
    /// more than [`PACKET_LEN_MAX`].
    pub fn packet_len<'p>(&self, version: Version, properties: impl Iterator<Item = Property<'p>>) -> u64 {
        let remaining_len = self.remaining_len(version, properties_len(properties));
        1 + variable_int_len(u32::try_from(remaining_len).unwrap_or(u32::MAX)) as u64 + remaining_len
    }

    fn remaining_len(&self, version: Version, properties_len: usize) -> u64 {
        let id_len = if self.qos.packet_id().is_some() { 2 } else { 0 };
        let properties = match version {
            Version::V5 => {
                variable_int_len(u32::try_from(properties_len).unwrap_or(u32::MAX)) + properties_len
            }
            Version::V3_1 | Version::V3_1_1 => 0,
        };
        (2 + self.topic.len() + id_len + properties) as u64 + u64::from(self.payload_len)
    }

    /// Writes everything but the payload. The caller has compared [`Self::packet_len`] with the client's limit. It
    /// passes a valid topic name, and properties that a PUBLISH of a server may have, with strings without U+0000.
    ///
    /// # Errors
    /// It does not fit into the buffer, or the packet is longer than [`PACKET_LEN_MAX`].
    pub fn write_header<'p>(
        &self,
        writer: &mut Writer<'_>,
        version: Version,
        properties: impl Iterator<Item = Property<'p>> + Clone,
    ) -> Result<(), Full> {
        let start = writer.len();
        let written = self.try_write_header(writer, version, properties);
        writer.undo_unless(start, written)
    }

    fn try_write_header<'p>(
        &self,
        writer: &mut Writer<'_>,
        version: Version,
        properties: impl Iterator<Item = Property<'p>> + Clone,
    ) -> Result<(), Full> {
        let remaining_len = self.remaining_len(version, properties_len(properties.clone()));
        let flags = u8::from(self.is_duplicate) << 3 | self.qos.bits() << 1 | u8::from(self.retain);
        writer.u8((PacketType::Publish as u8) << 4 | flags)?;
        writer.variable_int(u32::try_from(remaining_len).map_err(|_| Full)?)?;
        writer.binary(self.topic)?;
        if let Some(packet_id) = self.qos.packet_id() {
            writer.u16(packet_id.get())?;
        }
        if version == Version::V5 {
            write_properties(writer, properties)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ReasonCode;

    fn parse(version: Version, octets: &[u8]) -> Result<PublishHeader<'_>, PacketError> {
        let fixed = FixedHeader::parse(octets)?.expect("it is complete");
        let body = &octets[fixed.len..];
        let HeaderLen::Known(len) = PublishHeader::len_of(fixed, version, body)? else {
            panic!("it is complete")
        };
        PublishHeader::parse(fixed, version, &body[..len])
    }

    fn refused(version: Version, octets: &[u8]) -> ReasonCode {
        parse(version, octets).expect_err("it is refused").reason
    }

    const ID: NonZeroU16 = NonZeroU16::new(0x0102).expect("not 0");

    #[test]
    fn a_header_is_read_as_it_is_written() {
        let properties = [Property::TopicAlias(3), Property::UserProperty(("a", "b"))];
        for version in [Version::V3_1, Version::V3_1_1, Version::V5] {
            for qos in [OutgoingQoS::AtMostOnce, OutgoingQoS::AtLeastOnce(ID), OutgoingQoS::ExactlyOnce(ID)] {
                for retain in [false, true] {
                    let is_duplicate = retain && qos.packet_id().is_some();
                    let outgoing =
                        OutgoingPublish { is_duplicate, qos, retain, topic: b"a/b", payload_len: 200 };
                    let mut buffer = [0; 100];
                    let mut writer = Writer::new(&mut buffer);
                    outgoing.write_header(&mut writer, version, properties.into_iter()).expect("it fits");
                    let len = writer.len();
                    assert_eq!(outgoing.packet_len(version, properties.into_iter()), len as u64 + 200);
                    assert_eq!(
                        outgoing.write_header(
                            &mut Writer::new(&mut buffer[..len - 1]),
                            version,
                            properties.into_iter()
                        ),
                        Err(Full)
                    );
                    let mut writer = Writer::new(&mut buffer);
                    outgoing.write_header(&mut writer, version, properties.into_iter()).expect("it fits");
                    let header = parse(version, writer.written()).expect("valid");
                    assert_eq!(
                        (header.topic, header.retain, header.is_duplicate),
                        ("a/b", retain, is_duplicate)
                    );
                    assert_eq!((header.qos as u8, header.packet_id), (qos.bits(), qos.packet_id()));
                    assert_eq!(header.payload_len, 200);
                    let is_v5 = version == Version::V5;
                    assert_eq!(header.topic_alias, is_v5.then_some(3));
                    assert_eq!(header.properties.iter().count(), if is_v5 { 2 } else { 0 });
                }
            }
        }
    }

    /// However the header arrives, its length is known as soon as the octets that it depends on are there.
    #[test]
    fn the_length_of_a_header_is_known_from_its_beginning() {
        use HeaderLen::{AtLeast, Known};
        let packet = [0x32, 0x90, 1, 0, 3, b'a', b'/', b'b', 0, 1, 0x80, 1];
        let fixed = FixedHeader::parse(&packet).expect("valid").expect("complete");
        let body = &packet[fixed.len..];
        let len = |version, octets: usize| PublishHeader::len_of(fixed, version, &body[..octets]);
        assert_eq!([len(Version::V3_1_1, 1), len(Version::V3_1_1, 2)], [Ok(AtLeast(2)), Ok(Known(7))]);
        let v5: Vec<_> = (0..=9).map(|octets| len(Version::V5, octets).expect("valid")).collect();
        let known = [2, 2, 8, 8, 8, 8, 8, 8, 9].map(AtLeast);
        assert_eq!((&v5[..9], v5[9]), (&known[..], Known(9 + 128)));
        // It would end beyond the packet.
        for (version, packet) in [
            (Version::V3_1_1, &[0x30, 1, 0][..]),
            (Version::V3_1_1, &[0x30, 2, 0, 1]),
            (Version::V3_1_1, &[0x32, 4, 0, 1, b'a', 0]),
            (Version::V5, &[0x30, 3, 0, 1, b'a']),
            (Version::V5, &[0x30, 4, 0, 1, b'a', 1]),
            (Version::V5, &[0x30, 4, 0, 1, b'a', 0x80]),
            (Version::V5, &[0x30, 0]),
        ] {
            let fixed = FixedHeader::parse(packet).expect("valid").expect("complete");
            assert!(PublishHeader::len_of(fixed, version, &packet[fixed.len..]).is_err(), "{packet:?}");
        }
    }

    #[test]
    fn wrong_headers_are_refused_with_the_code_of_the_specification() {
        use ReasonCode::{MalformedPacket, ProtocolError, TopicAliasInvalid, TopicNameInvalid};
        for (version, packet, reason) in [
            (Version::V3_1_1, &[0x36, 5, 0, 1, b'a', 0, 1][..], MalformedPacket),
            (Version::V3_1_1, &[0x38, 3, 0, 1, b'a'], MalformedPacket),
            (Version::V5, &[0x38, 4, 0, 1, b'a', 0], MalformedPacket),
            (Version::V3_1_1, &[0x32, 5, 0, 1, b'a', 0, 0], ProtocolError),
            (Version::V3_1_1, &[0x30, 2, 0, 0], TopicNameInvalid),
            (Version::V3_1_1, &[0x30, 3, 0, 1, b'#'], TopicNameInvalid),
            (Version::V3_1_1, &[0x30, 3, 0, 1, 0], MalformedPacket),
            (Version::V3_1_1, &[0x30, 3, 0, 1, 0xFF], MalformedPacket),
            (Version::V5, &[0x30, 3, 0, 0, 0], ProtocolError),
            (Version::V5, &[0x30, 6, 0, 0, 3, 0x23, 0, 0], TopicAliasInvalid),
            (Version::V5, &[0x30, 6, 0, 1, b'a', 2, 0x0B, 1], ProtocolError),
            (Version::V5, &[0x30, 0x83, 0, 0, 1, b'a'], MalformedPacket),
        ] {
            assert_eq!(refused(version, packet), reason, "{packet:?}");
        }
        let repeated = parse(Version::V3_1, &[0x38, 3, 0, 1, b'a']).expect("MQTT 3.1 allows it");
        assert!(!repeated.is_duplicate);
        let alias = parse(Version::V5, &[0x30, 6, 0, 0, 3, 0x23, 0, 1]).expect("valid");
        assert_eq!((alias.topic, alias.topic_alias, alias.payload_len), ("", Some(1), 0));
    }

    #[test]
    fn a_message_that_no_packet_can_contain_is_not_written() {
        let qos = OutgoingQoS::AtMostOnce;
        let mut outgoing = OutgoingPublish {
            is_duplicate: false,
            qos,
            retain: false,
            topic: b"a",
            payload_len: VARIABLE_INT_MAX - 3,
        };
        let none = || [].into_iter();
        let mut buffer = [0; 20];
        assert_eq!(outgoing.packet_len(Version::V3_1_1, none()), u64::from(PACKET_LEN_MAX));
        assert_eq!(outgoing.write_header(&mut Writer::new(&mut buffer), Version::V3_1_1, none()), Ok(()));
        for payload_len in [VARIABLE_INT_MAX - 2, u32::MAX] {
            outgoing.payload_len = payload_len;
            assert!(outgoing.packet_len(Version::V3_1_1, none()) > u64::from(PACKET_LEN_MAX));
            let mut writer = Writer::new(&mut buffer);
            assert_eq!(
                (outgoing.write_header(&mut writer, Version::V3_1_1, none()), writer.len()),
                (Err(Full), 0)
            );
        }
    }

    #[test]
    fn a_topic_name_is_utf_8_without_wildcards() {
        for version in [Version::V3_1, Version::V3_1_1, Version::V5] {
            let properties: &[u8] = if version == Version::V5 { &[0] } else { &[] };
            for (octets, reason) in [
                (&[0xFF][..], ReasonCode::MalformedPacket),
                (&[0xED, 0xA0, 0x80], ReasonCode::MalformedPacket),
                (&[b'a', 0], ReasonCode::MalformedPacket),
                (b"a/#", ReasonCode::TopicNameInvalid),
                (b"+", ReasonCode::TopicNameInvalid),
                (b"a+b", ReasonCode::TopicNameInvalid),
            ] {
                let body = [&[0, octets.len() as u8][..], octets, properties].concat();
                let packet = [&[0x30, body.len() as u8][..], &body].concat();
                assert_eq!(refused(version, &packet), reason, "{octets:x?}");
            }
        }
    }

    /// With QoS 0, the octets that would be a packet identifier belong to the payload.
    #[test]
    fn a_message_with_qos_0_has_no_packet_identifier() {
        let header = parse(Version::V3_1_1, &[0x30, 5, 0, 1, b'a', 0, 9]).expect("valid");
        assert_eq!((header.packet_id, header.payload_len), (None, 2));
        let header = parse(Version::V3_1_1, &[0x32, 5, 0, 1, b'a', 0, 9]).expect("valid");
        assert_eq!((header.packet_id, header.payload_len), (NonZeroU16::new(9), 0));
        let mut buffer = [0; 20];
        let mut writer = Writer::new(&mut buffer);
        let (is_duplicate, qos, retain) = (false, OutgoingQoS::AtMostOnce, false);
        let publish = OutgoingPublish { is_duplicate, qos, retain, topic: b"a", payload_len: 0 };
        publish.write_header(&mut writer, Version::V5, [].into_iter()).expect("it fits");
        assert_eq!(writer.written(), [0x30, 4, 0, 1, b'a', 0]);
    }
}
