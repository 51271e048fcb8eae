//! The fixed header (§2.1), and the packets of a client other than CONNECT and PUBLISH.

use core::num::NonZeroU16;

use super::Version;
use super::cursor::{Reader, TRUNCATED, unless_truncated, variable_int};
use super::properties::{Place, Properties, Property};
use super::publish::QoS;
use super::reason::{PacketError, ReasonCode};
use super::topic::TopicFilter;

/// Maximum number of octets of a fixed header.
pub const FIXED_HEADER_LEN_MAX: usize = 5;

/// The type of a packet (§2.1.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
#[allow(missing_docs, reason = "the names are those of the specification")]
pub enum PacketType {
    Connect = 1,
    Connack = 2,
    Publish = 3,
    Puback = 4,
    Pubrec = 5,
    Pubrel = 6,
    Pubcomp = 7,
    Subscribe = 8,
    Suback = 9,
    Unsubscribe = 10,
    Unsuback = 11,
    Pingreq = 12,
    Pingresp = 13,
    Disconnect = 14,
    Auth = 15,
}

impl PacketType {
    /// Returns the type with this number, if a client may send it. Only a server sends CONNACK, SUBACK, UNSUBACK and
    /// PINGRESP.
    const fn of_client(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Connect),
            3 => Some(Self::Publish),
            4 => Some(Self::Puback),
            5 => Some(Self::Pubrec),
            6 => Some(Self::Pubrel),
            7 => Some(Self::Pubcomp),
            8 => Some(Self::Subscribe),
            10 => Some(Self::Unsubscribe),
            12 => Some(Self::Pingreq),
            14 => Some(Self::Disconnect),
            15 => Some(Self::Auth),
            _ => None,
        }
    }

    /// Returns the flags that a packet of this type must have (§2.1.3); `None` if they have a meaning.
    const fn reserved_flags(self) -> Option<u8> {
        match self {
            Self::Publish => None,
            Self::Pubrel | Self::Subscribe | Self::Unsubscribe => Some(2),
            _ => Some(0),
        }
    }

    /// Returns the DUP flag if a packet of this type may have it in MQTT 3.1, which sends them again; otherwise 0.
    const fn dup_flag_of_3_1(self) -> u8 {
        match self {
            Self::Pubrel | Self::Subscribe | Self::Unsubscribe => DUP,
            _ => 0,
        }
    }
}

/// The flag of a packet that may have been sent before.
pub(crate) const DUP: u8 = 8;
const RESERVED_FLAGS: PacketError = PacketError::malformed("reserved flags in the fixed header");

/// The first octets of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FixedHeader {
    /// The type.
    pub kind: PacketType,
    /// The lower four bits of the first octet.
    pub(crate) flags: u8,
    /// Number of octets of the packet after the fixed header; at most 268,435,455.
    pub remaining_len: u32,
    /// Number of octets of the fixed header: 2 to 5.
    pub len: usize,
    /// The remaining length has as few octets as possible. MQTT 5 requires that (MQTT-1.5.5-1).
    is_minimal: bool,
}

impl FixedHeader {
    /// Reads the fixed header at the start of `input`; `None` if it is incomplete.
    ///
    /// # Errors
    /// The first octet is that of no packet of a client, or the length has more than four octets.
    pub fn parse(input: &[u8]) -> Result<Option<Self>, PacketError> {
        let Some((&first, rest)) = input.split_first() else { return Ok(None) };
        let kind = PacketType::of_client(first >> 4)
            .ok_or(PacketError::protocol("a packet of a type that no client sends"))?;
        let flags = first & 0x0F;
        // In MQTT 3.1 some packets have the DUP flag: see `check`.
        if kind
            .reserved_flags()
            .is_some_and(|reserved| flags != reserved && flags != reserved | kind.dup_flag_of_3_1())
        {
            return Err(RESERVED_FLAGS);
        }
        if kind == PacketType::Publish && QoS::from_bits(flags >> 1 & 3).is_none() {
            // MQTT-3.3.1-4.
            return Err(PacketError::malformed("QoS 3"));
        }
        let length = variable_int(rest)?;
        Ok(length.map(|(remaining_len, len, is_minimal)| Self {
            kind,
            flags,
            remaining_len,
            len: 1 + len,
            is_minimal,
        }))
    }

    /// Returns the number of octets of the whole packet.
    pub const fn packet_len(&self) -> usize {
        self.len + self.remaining_len as usize
    }

    /// Checks what depends on the version of the protocol.
    ///
    /// # Errors
    /// The header is not valid in this version.
    pub(crate) fn check(&self, version: Version) -> Result<(), PacketError> {
        if version == Version::V5 && !self.is_minimal {
            return Err(PacketError::malformed("a remaining length with more octets than necessary"));
        }
        if version != Version::V5 && self.kind == PacketType::Auth {
            return Err(PacketError::protocol("AUTH in a version before 5"));
        }
        if version != Version::V3_1 && self.flags & DUP != 0 {
            if self.kind != PacketType::Publish {
                return Err(RESERVED_FLAGS);
            }
            if self.flags & 6 == 0 {
                // MQTT-3.3.1-2.
                return Err(PacketError::malformed("the DUP flag with QoS 0"));
            }
        }
        Ok(())
    }
}

/// A packet of a client that is connected, other than PUBLISH.
#[derive(Clone, Copy, Debug)]
pub enum Packet<'a> {
    /// PUBACK, PUBREC, PUBREL or PUBCOMP.
    Ack(Ack),
    /// SUBSCRIBE.
    Subscribe(Subscribe<'a>),
    /// UNSUBSCRIBE.
    Unsubscribe(Unsubscribe<'a>),
    /// PINGREQ.
    PingRequest,
    /// DISCONNECT.
    Disconnect(Disconnect),
}

impl<'a> Packet<'a> {
    /// Parses a packet. `body` has the octets after the fixed header, `header.remaining_len` of them.
    ///
    /// # Errors
    /// The packet is not valid, or not allowed on an open connection.
    ///
    /// # Panics
    /// The packet is a PUBLISH, which [`super::PublishHeader`] reads.
    pub fn parse(header: FixedHeader, version: Version, body: &'a [u8]) -> Result<Self, PacketError> {
        header.check(version)?;
        assert_eq!(body.len(), header.remaining_len as usize, "the caller passes the whole packet");
        let ack = |kind| Ack::parse(kind, version, body).map(Self::Ack);
        match header.kind {
            // MQTT-3.1.0-2.
            PacketType::Connect => Err(PacketError::protocol("a second CONNECT")),
            PacketType::Publish => panic!("a PUBLISH is read as it arrives"),
            PacketType::Puback => ack(AckKind::Puback),
            PacketType::Pubrec => ack(AckKind::Pubrec),
            PacketType::Pubrel => ack(AckKind::Pubrel),
            PacketType::Pubcomp => ack(AckKind::Pubcomp),
            PacketType::Subscribe => Subscribe::parse(version, body).map(Self::Subscribe),
            PacketType::Unsubscribe => Unsubscribe::parse(version, body).map(Self::Unsubscribe),
            PacketType::Pingreq => Reader::new(body).finish().map(|()| Self::PingRequest),
            PacketType::Disconnect => Disconnect::parse(version, body).map(Self::Disconnect),
            // MQTT-4.12.0-7: CONNECT named no authentication method.
            PacketType::Auth => Err(PacketError::protocol("AUTH without an authentication method")),
            PacketType::Connack | PacketType::Suback | PacketType::Unsuback | PacketType::Pingresp => {
                panic!("no client sends it, so there is no such header")
            }
        }
    }
}

/// The packets that acknowledge a step of a message with QoS 1 or 2.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the names are those of the specification")]
pub enum AckKind {
    Puback,
    Pubrec,
    Pubrel,
    Pubcomp,
}

impl AckKind {
    /// Returns the first octet of the packet.
    pub(crate) const fn first_octet(self) -> u8 {
        match self {
            Self::Puback => (PacketType::Puback as u8) << 4,
            Self::Pubrec => (PacketType::Pubrec as u8) << 4,
            Self::Pubrel => (PacketType::Pubrel as u8) << 4 | 2,
            Self::Pubcomp => (PacketType::Pubcomp as u8) << 4,
        }
    }

    /// Returns whether the packet may have this code (§3.4.2.1, §3.5.2.1, §3.6.2.1, §3.7.2.1).
    pub const fn may_have(self, reason: ReasonCode) -> bool {
        match self {
            Self::Puback | Self::Pubrec => matches!(
                reason,
                ReasonCode::Success
                    | ReasonCode::NoMatchingSubscribers
                    | ReasonCode::Unspecified
                    | ReasonCode::ImplementationSpecific
                    | ReasonCode::NotAuthorized
                    | ReasonCode::TopicNameInvalid
                    | ReasonCode::PacketIdentifierInUse
                    | ReasonCode::QuotaExceeded
                    | ReasonCode::PayloadFormatInvalid
            ),
            Self::Pubrel | Self::Pubcomp => {
                matches!(reason, ReasonCode::Success | ReasonCode::PacketIdentifierNotFound)
            }
        }
    }
}

/// PUBACK, PUBREC, PUBREL or PUBCOMP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ack {
    /// Which of them.
    pub kind: AckKind,
    /// The message.
    pub packet_id: NonZeroU16,
    /// The result; [`ReasonCode::Success`] before MQTT 5.
    pub reason: ReasonCode,
}

impl Ack {
    fn parse(kind: AckKind, version: Version, body: &[u8]) -> Result<Self, PacketError> {
        let mut reader = Reader::new(body);
        let packet_id = read_packet_id(&mut reader)?;
        let mut reason = ReasonCode::Success;
        if version == Version::V5 && !reader.is_empty() {
            reason = read_reason(&mut reader, |reason| kind.may_have(reason))?;
            if !reader.is_empty() {
                Properties::read(&mut reader, Place::Ack)?;
            }
        }
        reader.finish()?;
        Ok(Self { kind, packet_id, reason })
    }
}

/// The beginning of a SUBSCRIBE or UNSUBSCRIBE, before its topic filters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FiltersHead {
    /// The packet identifier for the answer.
    pub packet_id: NonZeroU16,
    /// The subscription identifier of a SUBSCRIBE, 1 to 268,435,455.
    pub subscription_id: Option<u32>,
    /// Number of octets between the fixed header and the first topic filter.
    pub len: usize,
}

impl FiltersHead {
    /// Reads the head from `octets`, which begin after the fixed header. `None`: more octets are needed.
    ///
    /// # Errors
    /// The fixed header or the head is not valid.
    pub fn parse(header: FixedHeader, version: Version, octets: &[u8]) -> Result<Option<Self>, PacketError> {
        header.check(version)?;
        let body_len = header.remaining_len as usize;
        match Self::read(header.kind, version, octets.get(..body_len).unwrap_or(octets)) {
            Err(error) if error == TRUNCATED && octets.len() < body_len => Ok(None),
            result => result.map(Some),
        }
    }

    fn read(kind: PacketType, version: Version, body: &[u8]) -> Result<Self, PacketError> {
        let mut reader = Reader::new(body);
        let packet_id = read_packet_id(&mut reader)?;
        let mut subscription_id = None;
        if version == Version::V5 {
            let is_subscribe = kind == PacketType::Subscribe;
            let place = if is_subscribe { Place::Subscribe } else { Place::Unsubscribe };
            let properties = Properties::read(&mut reader, place)?;
            subscription_id = properties.iter().find_map(|property| match property {
                Property::SubscriptionIdentifier(id) => Some(id),
                _ => None,
            });
        }
        Ok(Self { packet_id, subscription_id, len: body.len() - reader.len() })
    }
}

/// MQTT-4.7.3-1: a filter has at least one character.
const EMPTY_FILTER: PacketError = PacketError::protocol("a topic filter without a character");

/// SUBSCRIBE.
#[derive(Clone, Copy, Debug)]
pub struct Subscribe<'a> {
    /// The packet identifier for SUBACK.
    pub packet_id: NonZeroU16,
    /// The subscription identifier, 1 to 268,435,455.
    pub subscription_id: Option<u32>,
    version: Version,
    filters: &'a [u8],
}

impl<'a> Subscribe<'a> {
    fn parse(version: Version, body: &'a [u8]) -> Result<Self, PacketError> {
        let FiltersHead { packet_id, subscription_id, len } =
            FiltersHead::read(PacketType::Subscribe, version, body)?;
        let filters = &body[len..];
        let mut rest = Reader::new(filters);
        if rest.is_empty() {
            // MQTT-3.8.3-2.
            return Err(PacketError::protocol("SUBSCRIBE without a topic filter"));
        }
        while !rest.is_empty() {
            Self::read_filter(version, &mut rest)?;
        }
        Ok(Self { packet_id, subscription_id, version, filters })
    }

    fn read_filter(
        version: Version,
        reader: &mut Reader<'a>,
    ) -> Result<(&'a str, SubscriptionOptions), PacketError> {
        let filter = reader.string()?;
        let options = SubscriptionOptions::parse(reader.u8()?, version)?;
        if filter.is_empty() {
            return Err(EMPTY_FILTER);
        }
        if options.no_local && TopicFilter::parse(filter).is_ok_and(|filter| filter.group.is_some()) {
            // MQTT-3.8.3-4.
            return Err(PacketError::protocol("No Local on a shared subscription"));
        }
        Ok((filter, options))
    }

    /// Returns the number of topic filters, which is the number of codes of the SUBACK.
    pub fn filter_count(self) -> usize {
        self.filters().count()
    }

    /// Returns the number of octets of the topic filters with their options. They are the end of the packet.
    pub const fn filters_len(self) -> usize {
        self.filters.len()
    }

    /// Reads the topic filter and its options at the start of `octets`. Also returns how many octets they take.
    ///
    /// # Errors
    /// They are not valid, or (`Ok(None)`) incomplete.
    pub fn next_filter(
        version: Version,
        octets: &'a [u8],
    ) -> Result<Option<(&'a str, SubscriptionOptions, usize)>, PacketError> {
        let mut reader = Reader::new(octets);
        let read = unless_truncated(Self::read_filter(version, &mut reader))?;
        Ok(read.map(|(filter, options)| (filter, options, octets.len() - reader.len())))
    }

    /// Returns the texts of the topic filters, for [`TopicFilter::parse`], and the options of each.
    pub fn filters(self) -> impl Iterator<Item = (&'a str, SubscriptionOptions)> {
        let mut rest = Reader::new(self.filters);
        core::iter::from_fn(move || Self::read_filter(self.version, &mut rest).ok())
    }
}

/// Which retained messages a subscription gets (§3.8.3.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RetainHandling {
    /// At every SUBSCRIBE.
    Always,
    /// Only if the subscription did not exist.
    IfNew,
    /// None.
    Never,
}

/// The options of a subscription (§3.8.3.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SubscriptionOptions {
    /// The maximum QoS of messages to the subscriber.
    pub qos: QoS,
    /// The subscriber does not get its own messages.
    pub no_local: bool,
    /// Messages keep their RETAIN flag. Otherwise it is set only if the message was retained before the subscription.
    pub retain_as_published: bool,
    /// Which retained messages the subscriber gets.
    pub retain_handling: RetainHandling,
}

impl SubscriptionOptions {
    fn parse(octet: u8, version: Version) -> Result<Self, PacketError> {
        let reserved = if version == Version::V5 { 0xC0 } else { 0xFC };
        if octet & reserved != 0 {
            return Err(PacketError::malformed("reserved bits in the options of a subscription"));
        }
        let retain_handling = match octet >> 4 {
            0 => RetainHandling::Always,
            1 => RetainHandling::IfNew,
            2 => RetainHandling::Never,
            _ => return Err(PacketError::protocol("the value 3 for Retain Handling")),
        };
        Ok(Self {
            qos: QoS::from_bits(octet & 3).ok_or(match version {
                Version::V5 => PacketError::protocol("a subscription with QoS 3"),
                Version::V3_1 | Version::V3_1_1 => PacketError::malformed("a subscription with QoS 3"),
            })?,
            no_local: octet & 4 != 0,
            retain_as_published: octet & 8 != 0,
            retain_handling,
        })
    }
}

/// UNSUBSCRIBE.
#[derive(Clone, Copy, Debug)]
pub struct Unsubscribe<'a> {
    /// The packet identifier for UNSUBACK.
    pub packet_id: NonZeroU16,
    filters: &'a [u8],
}

impl<'a> Unsubscribe<'a> {
    fn parse(version: Version, body: &'a [u8]) -> Result<Self, PacketError> {
        let FiltersHead { packet_id, len, .. } = FiltersHead::read(PacketType::Unsubscribe, version, body)?;
        let filters = &body[len..];
        let mut rest = Reader::new(filters);
        if rest.is_empty() {
            // MQTT-3.10.3-2.
            return Err(PacketError::protocol("UNSUBSCRIBE without a topic filter"));
        }
        while !rest.is_empty() {
            Self::read_filter(&mut rest)?;
        }
        Ok(Self { packet_id, filters })
    }

    fn read_filter(reader: &mut Reader<'a>) -> Result<&'a str, PacketError> {
        let filter = reader.string()?;
        if filter.is_empty() { Err(EMPTY_FILTER) } else { Ok(filter) }
    }

    /// Returns the number of topic filters, which is the number of codes of the UNSUBACK.
    pub fn filter_count(self) -> usize {
        self.filters().count()
    }

    /// Returns the number of octets of the topic filters. They are the end of the packet.
    pub const fn filters_len(self) -> usize {
        self.filters.len()
    }

    /// Reads the topic filter at the start of `octets`. Also returns how many octets it takes.
    ///
    /// # Errors
    /// It is not valid, or (`Ok(None)`) incomplete.
    pub fn next_filter(octets: &'a [u8]) -> Result<Option<(&'a str, usize)>, PacketError> {
        let mut reader = Reader::new(octets);
        let read = unless_truncated(Self::read_filter(&mut reader))?;
        Ok(read.map(|filter| (filter, octets.len() - reader.len())))
    }

    /// Returns the texts of the topic filters, for [`TopicFilter::parse`].
    pub fn filters(self) -> impl Iterator<Item = &'a str> {
        let mut rest = Reader::new(self.filters);
        core::iter::from_fn(move || Self::read_filter(&mut rest).ok())
    }
}

/// DISCONNECT of a client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Disconnect {
    /// Why; [`ReasonCode::Success`] before MQTT 5. With any other code the will is sent.
    pub reason: ReasonCode,
    /// The new session expiry interval in seconds, if the client changes it. If CONNECT had 0, only 0 is allowed
    /// (§3.14.2.2.2): the caller checks that.
    pub session_expiry_s: Option<u32>,
}

impl Disconnect {
    fn parse(version: Version, body: &[u8]) -> Result<Self, PacketError> {
        let mut reader = Reader::new(body);
        let mut disconnect = Self { reason: ReasonCode::Success, session_expiry_s: None };
        if version == Version::V5 && !reader.is_empty() {
            disconnect.reason = read_reason(&mut reader, may_disconnect_with)?;
            if !reader.is_empty() {
                let properties = Properties::read(&mut reader, Place::Disconnect)?;
                disconnect.session_expiry_s = properties.iter().find_map(|property| match property {
                    Property::SessionExpiryInterval(seconds) => Some(seconds),
                    _ => None,
                });
            }
        }
        reader.finish()?;
        Ok(disconnect)
    }
}

/// Returns whether a client's DISCONNECT may have this code (§3.14.2.1).
const fn may_disconnect_with(reason: ReasonCode) -> bool {
    matches!(
        reason,
        ReasonCode::Success
            | ReasonCode::DisconnectWithWill
            | ReasonCode::Unspecified
            | ReasonCode::MalformedPacket
            | ReasonCode::ProtocolError
            | ReasonCode::ImplementationSpecific
            | ReasonCode::TopicNameInvalid
            | ReasonCode::ReceiveMaximumExceeded
            | ReasonCode::TopicAliasInvalid
            | ReasonCode::PacketTooLarge
            | ReasonCode::MessageRateTooHigh
            | ReasonCode::QuotaExceeded
            | ReasonCode::AdministrativeAction
            | ReasonCode::PayloadFormatInvalid
    )
}

/// Reads a packet identifier, which is never 0 (MQTT-2.2.1-3).
pub(crate) fn read_packet_id(reader: &mut Reader<'_>) -> Result<NonZeroU16, PacketError> {
    NonZeroU16::new(reader.u16()?).ok_or(PacketError::protocol("the packet identifier 0"))
}

fn read_reason(
    reader: &mut Reader<'_>,
    is_allowed: impl Fn(ReasonCode) -> bool,
) -> Result<ReasonCode, PacketError> {
    ReasonCode::from_octet(reader.u8()?)
        .filter(|reason| is_allowed(*reason))
        .ok_or(PacketError::malformed("a reason code that this packet cannot have"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parses a whole packet.
    fn parse(version: Version, octets: &[u8]) -> Result<Packet<'_>, PacketError> {
        let header = FixedHeader::parse(octets)?.expect("it is complete");
        assert_eq!(header.packet_len(), octets.len());
        Packet::parse(header, version, &octets[header.len..])
    }

    fn refused(version: Version, octets: &[u8]) -> ReasonCode {
        parse(version, octets).expect_err("it is refused").reason
    }

    const VERSIONS: [Version; 3] = [Version::V3_1, Version::V3_1_1, Version::V5];
    const ID: NonZeroU16 = NonZeroU16::new(10).expect("not 0");

    /// Of all first octets, those of a client's packets are accepted, with the flags of table 2-2 (§2.1.3).
    #[test]
    fn fixed_headers_have_the_types_and_flags_of_a_client() {
        for first in 0..=255 {
            let flags = first & 15;
            let is_valid = match first >> 4 {
                3 => flags & 6 != 6,
                1 | 4 | 5 | 7 | 12 | 14 | 15 => flags == 0,
                6 | 8 | 10 => flags == 2 || flags == 10,
                _ => false,
            };
            let parsed = FixedHeader::parse(&[first, 0]);
            assert_eq!(parsed.is_ok(), is_valid, "{first:#x}");
            // A wrong first octet is refused before the length has arrived.
            assert_eq!(FixedHeader::parse(&[first]).is_ok(), is_valid, "{first:#x}");
            let Ok(Some(header)) = parsed else { continue };
            let is_repeated = match first >> 4 {
                3 => flags & 8 != 0 && flags & 6 == 0,
                _ => flags & 8 != 0,
            };
            let auth = first >> 4 == 15;
            assert_eq!(header.check(Version::V3_1).is_ok(), !auth);
            assert_eq!(header.check(Version::V3_1_1).is_ok(), !is_repeated && !auth);
            assert_eq!(header.check(Version::V5).is_ok(), !is_repeated);
        }
        assert_eq!(FixedHeader::parse(&[]), Ok(None));
        let long = FixedHeader::parse(&[0x30, 0xFF, 0xFF, 0xFF, 0x7F]).expect("valid").expect("complete");
        assert_eq!((long.len, long.remaining_len), (FIXED_HEADER_LEN_MAX, 268_435_455));
        assert!(FixedHeader::parse(&[0x30, 0x80, 0x80, 0x80, 0x80]).is_err());
    }

    #[test]
    fn only_version_5_requires_the_shortest_length() {
        let ping = [0xC0, 0x80, 0];
        assert!(matches!(parse(Version::V3_1_1, &ping), Ok(Packet::PingRequest)));
        assert_eq!(refused(Version::V5, &ping), ReasonCode::MalformedPacket);
    }

    #[test]
    fn packets_without_a_place_here_are_protocol_errors() {
        for version in VERSIONS {
            assert_eq!(refused(version, &[0x10, 0]), ReasonCode::ProtocolError, "a second CONNECT");
            assert_eq!(refused(version, &[0xF0, 0]), ReasonCode::ProtocolError, "AUTH");
            assert_eq!(refused(version, &[0xC0, 1, 0]), ReasonCode::MalformedPacket, "PINGREQ with a body");
        }
    }

    #[test]
    fn acknowledgements_have_a_reason_only_in_version_5() {
        let kinds = [
            (0x40, AckKind::Puback),
            (0x50, AckKind::Pubrec),
            (0x62, AckKind::Pubrel),
            (0x70, AckKind::Pubcomp),
        ];
        for (first, kind) in kinds {
            let success = Ack { kind, packet_id: ID, reason: ReasonCode::Success };
            for version in VERSIONS {
                assert!(matches!(parse(version, &[first, 2, 0, 10]), Ok(Packet::Ack(ack)) if ack == success));
                assert_eq!(refused(version, &[first, 2, 0, 0]), ReasonCode::ProtocolError);
                assert_eq!(refused(version, &[first, 1, 0]), ReasonCode::MalformedPacket);
            }
            assert_eq!(refused(Version::V3_1_1, &[first, 3, 0, 10, 0]), ReasonCode::MalformedPacket);
            let codes = (0..=255)
                .filter(|code| parse(Version::V5, &[first, 3, 0, 10, *code]).is_ok())
                .collect::<Vec<u8>>();
            match kind {
                AckKind::Puback | AckKind::Pubrec => {
                    assert_eq!(codes, [0, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99]);
                }
                AckKind::Pubrel | AckKind::Pubcomp => assert_eq!(codes, [0, 0x92]),
            }
            // With a reason string.
            assert!(parse(Version::V5, &[first, 8, 0, 10, 0, 4, 0x1F, 0, 1, b'x']).is_ok());
            assert!(parse(Version::V5, &[first, 6, 0, 10, 0, 2, 0x23, 0]).is_err());
        }
    }

    #[test]
    fn subscriptions_have_options() {
        let options = |octet, version| SubscriptionOptions::parse(octet, version);
        for version in [Version::V3_1, Version::V3_1_1] {
            for octet in 0..=255 {
                assert_eq!(options(octet, version).is_ok(), octet < 3, "{octet:#x}");
            }
        }
        for octet in 0..=255_u8 {
            let is_valid = octet & 0xC0 == 0 && octet & 3 != 3 && octet >> 4 & 3 != 3;
            assert_eq!(options(octet, Version::V5).is_ok(), is_valid, "{octet:#x}");
        }
        let all = SubscriptionOptions {
            qos: QoS::ExactlyOnce,
            no_local: true,
            retain_as_published: true,
            retain_handling: RetainHandling::Never,
        };
        assert_eq!(options(0x2E, Version::V5), Ok(all));
        let packet =
            [0x82, 18, 0, 10, 2, 0x0B, 5, 0, 3, b'a', b'/', b'b', 1, 0, 4, b'c', b'/', b'#', b'x', 0];
        let Ok(Packet::Subscribe(subscribe)) = parse(Version::V5, &packet) else { panic!("valid") };
        assert_eq!((subscribe.packet_id, subscribe.subscription_id), (ID, Some(5)));
        let filters: Vec<(&str, QoS)> =
            subscribe.filters().map(|(filter, options)| (filter, options.qos)).collect();
        assert_eq!(filters, [("a/b", QoS::AtLeastOnce), ("c/#x", QoS::AtMostOnce)]);
    }

    #[test]
    fn wrong_subscriptions_are_refused() {
        for version in VERSIONS {
            let properties: &[u8] = if version == Version::V5 { &[0] } else { &[] };
            for (first, rest, reason) in [
                (0x82, &[][..], ReasonCode::ProtocolError),
                (0xA2, &[], ReasonCode::ProtocolError),
                (0x82, &[0, 1, b'a'], ReasonCode::MalformedPacket),
                (0x82, &[0, 1, b'a', 0x40], ReasonCode::MalformedPacket),
                (0x82, &[0, 1, b'a', 0, 0, 0, 0], ReasonCode::ProtocolError),
                (0xA2, &[0, 1, b'a', 0, 0], ReasonCode::ProtocolError),
                (0x82, &[0, 1, 0, 0], ReasonCode::MalformedPacket),
                (0xA2, &[0, 2, b'a'], ReasonCode::MalformedPacket),
            ] {
                let body = [&[0, 10], properties, rest].concat();
                let packet = [&[first, body.len() as u8], &body[..]].concat();
                assert_eq!(refused(version, &packet), reason, "{packet:?}");
            }
        }
        for (options, is_valid) in [(3, false), (4, false), (1, true)] {
            let shared = [&[0x82, 16, 0, 10, 0, 0, 10][..], b"$share/g/a", &[options]].concat();
            assert_eq!(parse(Version::V5, &shared).is_ok(), is_valid, "No Local on a shared subscription");
        }
        assert_eq!(refused(Version::V3_1_1, &[0x82, 6, 0, 10, 0, 1, b'a', 3]), ReasonCode::MalformedPacket);
        assert_eq!(refused(Version::V5, &[0x82, 7, 0, 10, 0, 0, 1, b'a', 3]), ReasonCode::ProtocolError);
        let filters = [0xA2, 9, 0, 10, 0, 1, b'a', 0, 2, b'b', b'c'];
        let Ok(Packet::Unsubscribe(unsubscribe)) = parse(Version::V3_1_1, &filters) else { panic!("valid") };
        assert!(unsubscribe.filters().eq(["a", "bc"]));
    }

    #[test]
    fn a_disconnect_of_version_5_may_change_the_expiry() {
        for version in VERSIONS {
            let plain = Disconnect { reason: ReasonCode::Success, session_expiry_s: None };
            assert!(matches!(parse(version, &[0xE0, 0]), Ok(Packet::Disconnect(said)) if said == plain));
        }
        assert_eq!(refused(Version::V3_1_1, &[0xE0, 1, 0]), ReasonCode::MalformedPacket);
        let packet = [0xE0, 7, 4, 5, 0x11, 0, 0, 1, 0];
        let changed = Disconnect { reason: ReasonCode::DisconnectWithWill, session_expiry_s: Some(256) };
        assert!(matches!(parse(Version::V5, &packet), Ok(Packet::Disconnect(said)) if said == changed));
        let codes = (0..=255).filter(|code| parse(Version::V5, &[0xE0, 1, *code]).is_ok()).count();
        assert_eq!(codes, 14);
    }

    #[test]
    fn topic_filters_are_utf_8() {
        for version in VERSIONS {
            let properties: &[u8] = if version == Version::V5 { &[0] } else { &[] };
            for octets in [&[0xFF][..], &[0xED, 0xA0, 0x80], &[b'a', 0]] {
                let filter = [&[0, octets.len() as u8][..], octets].concat();
                for (first, options) in [(0x82, &[0][..]), (0xA2, &[])] {
                    // The filter in front of it is valid.
                    let body = [&[0, 10][..], properties, &[0, 1, b'a'], options, &filter, options].concat();
                    let packet = [&[first, body.len() as u8][..], &body].concat();
                    assert_eq!(refused(version, &packet), ReasonCode::MalformedPacket, "{packet:x?}");
                }
            }
        }
    }
}
