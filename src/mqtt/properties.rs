//! The properties of MQTT 5 (§2.2.2): reading, checking and writing.
//!
//! One table describes each property: its identifier, its type, and the packets of a client in which it is allowed.
//! Reading, checking and writing are generated from it.
//!
//! # Invariants
//! - [`Properties`] were checked: each is allowed in its packet and has a valid value. Only user properties occur more
//!   than once.

use super::cursor::{Full, Reader, Writer, variable_int_len};
use super::reason::{PacketError, ReasonCode};

/// The packets of a client that have properties.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Place {
    Connect = 1,
    Will = 2,
    Publish = 4,
    /// PUBACK, PUBREC, PUBREL and PUBCOMP.
    Ack = 8,
    Subscribe = 16,
    Unsubscribe = 32,
    Disconnect = 64,
}

/// The Rust type of a property.
macro_rules! property_type {
    (byte) => { u8 };
    (two) => { u16 };
    (four) => { u32 };
    (variable) => { u32 };
    (string) => { &'a str };
    (binary) => { &'a [u8] };
    (pair) => { (&'a str, &'a str) };
}

macro_rules! read_value {
    ($r:ident, byte) => {
        $r.u8()?
    };
    ($r:ident, two) => {
        $r.u16()?
    };
    ($r:ident, four) => {
        $r.u32()?
    };
    ($r:ident, variable) => {
        $r.variable_int()?
    };
    ($r:ident, string) => {
        $r.string()?
    };
    ($r:ident, binary) => {
        $r.binary()?
    };
    ($r:ident, pair) => {
        ($r.string()?, $r.string()?)
    };
}

macro_rules! value_len {
    ($value:ident, byte) => {{
        let _: u8 = $value;
        1
    }};
    ($value:ident, two) => {{
        let _: u16 = $value;
        2
    }};
    ($value:ident, four) => {{
        let _: u32 = $value;
        4
    }};
    ($value:ident, variable) => {
        variable_int_len($value)
    };
    ($value:ident, string) => {
        2 + $value.len()
    };
    ($value:ident, binary) => {
        2 + $value.len()
    };
    ($value:ident, pair) => {
        4 + $value.0.len() + $value.1.len()
    };
}

macro_rules! write_value {
    ($w:ident, $value:ident, byte) => {
        $w.u8($value)
    };
    ($w:ident, $value:ident, two) => {
        $w.u16($value)
    };
    ($w:ident, $value:ident, four) => {
        $w.u32($value)
    };
    ($w:ident, $value:ident, variable) => {
        $w.variable_int($value)
    };
    ($w:ident, $value:ident, string) => {
        $w.binary($value.as_bytes())
    };
    ($w:ident, $value:ident, binary) => {
        $w.binary($value)
    };
    ($w:ident, $value:ident, pair) => {
        $w.binary($value.0.as_bytes()).and_then(|()| $w.binary($value.1.as_bytes()))
    };
}

macro_rules! properties {
    ($($(#[$doc:meta])* $name:ident = $id:literal, $kind:ident [$($place:ident)*];)*) => {
        /// A property with its value. Times are in seconds, sizes in octets.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Property<'a> {
            $($(#[$doc])* $name(property_type!($kind)),)*
        }

        impl<'a> Property<'a> {
            /// Reads a property.
            fn read(reader: &mut Reader<'a>) -> Result<Self, PacketError> {
                // An identifier is a variable byte integer; all that are defined have one octet.
                match reader.u8()? {
                    $($id => Ok(Self::$name(read_value!(reader, $kind))),)*
                    _ => Err(PacketError::malformed("an unknown property")),
                }
            }

            /// Returns the identifier of the property, below 64.
            const fn id(&self) -> u8 {
                match self {
                    $(Self::$name(_) => $id,)*
                }
            }

            /// Returns the packets of a client in which the property is allowed, as a union of [`Place`]s.
            const fn places(&self) -> u8 {
                match self {
                    $(Self::$name(_) => 0 $(| Place::$place as u8)*,)*
                }
            }

            /// Returns the number of octets of the property, identifier included.
            #[allow(clippy::semicolon_if_nothing_returned, reason = "the statements check types")]
            fn encoded_len(self) -> usize {
                1 + match self {
                    $(Self::$name(value) => value_len!(value, $kind),)*
                }
            }

            fn write(self, writer: &mut Writer<'_>) -> Result<(), Full> {
                writer.u8(self.id())?;
                match self {
                    $(Self::$name(value) => write_value!(writer, value, $kind),)*
                }
            }
        }
    };
}

properties! {
    /// Whether the payload is UTF-8 (1) or not (0).
    PayloadFormatIndicator = 0x01, byte [Publish Will];
    /// Remaining time until the message expires.
    MessageExpiryInterval = 0x02, four [Publish Will];
    /// The content type of the payload.
    ContentType = 0x03, string [Publish Will];
    /// The topic for a response.
    ResponseTopic = 0x08, string [Publish Will];
    /// What the sender of a response repeats.
    CorrelationData = 0x09, binary [Publish Will];
    /// Identifies the subscriptions that match a message.
    SubscriptionIdentifier = 0x0B, variable [Subscribe];
    /// How long the session is kept after the connection; 0xFFFFFFFF: for ever.
    SessionExpiryInterval = 0x11, four [Connect Disconnect];
    /// The client identifier that the server chose.
    AssignedClientIdentifier = 0x12, string [];
    /// The keep-alive that the client must use.
    ServerKeepAlive = 0x13, two [];
    /// The name of the method of enhanced authentication.
    AuthenticationMethod = 0x15, string [Connect];
    /// Data of enhanced authentication.
    AuthenticationData = 0x16, binary [Connect];
    /// Whether the client wants reason strings (1) or not (0).
    RequestProblemInformation = 0x17, byte [Connect];
    /// Time between the end of the connection and the publication of the will.
    WillDelayInterval = 0x18, four [Will];
    /// Whether the client wants response information (1) or not (0).
    RequestResponseInformation = 0x19, byte [Connect];
    /// The basis for a response topic.
    ResponseInformation = 0x1A, string [];
    /// Another server that the client may use.
    ServerReference = 0x1C, string [];
    /// A text for people about the reason code.
    ReasonString = 0x1F, string [Ack Disconnect];
    /// Maximum number of unacknowledged messages with QoS 1 or 2.
    ReceiveMaximum = 0x21, two [Connect];
    /// Largest topic alias that the sender of this property accepts.
    TopicAliasMaximum = 0x22, two [Connect];
    /// A number that stands for the topic name.
    TopicAlias = 0x23, two [Publish];
    /// The highest QoS that the server supports.
    MaximumQoS = 0x24, byte [];
    /// Whether the server supports retained messages.
    RetainAvailable = 0x25, byte [];
    /// A name and a value that the protocol does not define. May occur several times.
    UserProperty = 0x26, pair [Connect Will Publish Ack Subscribe Unsubscribe Disconnect];
    /// The largest packet that the sender of this property accepts.
    MaximumPacketSize = 0x27, four [Connect];
    /// Whether the server supports wildcards.
    WildcardSubscriptionAvailable = 0x28, byte [];
    /// Whether the server supports subscription identifiers.
    SubscriptionIdentifiersAvailable = 0x29, byte [];
    /// Whether the server supports shared subscriptions.
    SharedSubscriptionAvailable = 0x2A, byte [];
}

impl Property<'_> {
    /// Checks a value that a client sent.
    fn check(&self) -> Result<(), PacketError> {
        match self {
            Self::PayloadFormatIndicator(2..)
            | Self::RequestProblemInformation(2..)
            | Self::RequestResponseInformation(2..) => {
                Err(PacketError::protocol("a property that must be 0 or 1 has another value"))
            }
            Self::ReceiveMaximum(0) | Self::MaximumPacketSize(0) | Self::SubscriptionIdentifier(0) => {
                Err(PacketError::protocol("a property that must not be 0 is 0"))
            }
            Self::TopicAlias(0) => Err(PacketError::new(ReasonCode::TopicAliasInvalid, "the topic alias 0")),
            Self::ResponseTopic(topic) => super::topic::check_topic_name(topic)
                .map_err(|_| PacketError::protocol("a response topic with a wildcard, or an empty one")),
            _ => Ok(()),
        }
    }
}

/// The properties of a packet, as received.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Properties<'a> {
    bytes: &'a [u8],
}

impl<'a> Properties<'a> {
    /// Reads and checks the properties of a packet, with their length.
    pub(crate) fn read(reader: &mut Reader<'a>, place: Place) -> Result<Self, PacketError> {
        let len = reader.variable_int()?;
        let bytes = reader.take(len as usize)?;
        let mut rest = Reader::new(bytes);
        let mut seen = 0u64;
        while !rest.is_empty() {
            let property = Property::read(&mut rest)?;
            if property.places() & place as u8 == 0 {
                return Err(match property {
                    // MQTT-3.3.4-6.
                    Property::SubscriptionIdentifier(_) if place == Place::Publish => {
                        PacketError::protocol("a subscription identifier from a client")
                    }
                    _ => PacketError::malformed("a property that this packet cannot have"),
                });
            }
            property.check()?;
            let bit = 1 << property.id();
            if seen & bit != 0 && !matches!(property, Property::UserProperty(_)) {
                return Err(PacketError::protocol("a property that occurs twice"));
            }
            seen |= bit;
        }
        Ok(Self { bytes })
    }

    /// Returns the properties in their order.
    pub fn iter(self) -> impl Iterator<Item = Property<'a>> + Clone {
        let mut rest = Reader::new(self.bytes);
        // They were checked, so only the end is an error.
        core::iter::from_fn(move || Property::read(&mut rest).ok())
    }
}

/// Returns the number of octets of properties, without their length.
pub(crate) fn properties_len<'a>(properties: impl Iterator<Item = Property<'a>>) -> usize {
    properties.map(Property::encoded_len).sum()
}

/// Writes properties with their length.
pub(crate) fn write_properties<'a>(
    writer: &mut Writer<'_>,
    mut properties: impl Iterator<Item = Property<'a>> + Clone,
) -> Result<(), Full> {
    let len = u32::try_from(properties_len(properties.clone())).map_err(|_| Full)?;
    writer.variable_int(len)?;
    properties.try_for_each(|property| property.write(writer))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(properties: &[Property<'_>]) -> Vec<u8> {
        let mut buffer = vec![0; 1_000];
        let mut writer = Writer::new(&mut buffer);
        write_properties(&mut writer, properties.iter().copied()).expect("it fits");
        writer.written().to_vec()
    }

    fn refused(properties: &[Property<'_>], place: Place) -> ReasonCode {
        let bytes = written(properties);
        Properties::read(&mut Reader::new(&bytes), place).expect_err("it is refused").reason
    }

    const PUBLISH: [Property<'_>; 8] = [
        Property::PayloadFormatIndicator(1),
        Property::MessageExpiryInterval(0xFFFF_FFFF),
        Property::ContentType("text/plain"),
        Property::ResponseTopic("answers/1"),
        Property::CorrelationData(&[0, 255]),
        Property::UserProperty(("name", "")),
        Property::TopicAlias(65_535),
        Property::UserProperty(("name", "again")),
    ];

    #[test]
    fn properties_are_read_as_written() {
        let bytes = written(&PUBLISH);
        let mut reader = Reader::new(&bytes);
        let properties = Properties::read(&mut reader, Place::Publish).expect("valid");
        assert!(reader.is_empty());
        assert!(properties.iter().eq(PUBLISH));
        for shorter in 0..bytes.len() {
            assert!(Properties::read(&mut Reader::new(&bytes[..shorter]), Place::Publish).is_err());
        }
    }

    #[test]
    fn wrong_properties_are_refused_with_the_code_of_the_specification() {
        use ReasonCode::{MalformedPacket, ProtocolError, TopicAliasInvalid};
        let twice = [Property::ContentType("a"), Property::ContentType("a")];
        assert_eq!(refused(&twice, Place::Publish), ProtocolError);
        assert_eq!(refused(&[Property::TopicAlias(0)], Place::Publish), TopicAliasInvalid);
        assert_eq!(refused(&[Property::SubscriptionIdentifier(3)], Place::Publish), ProtocolError);
        assert_eq!(refused(&[Property::SubscriptionIdentifier(0)], Place::Subscribe), ProtocolError);
        assert_eq!(refused(&[Property::ReceiveMaximum(0)], Place::Connect), ProtocolError);
        assert_eq!(refused(&[Property::MaximumPacketSize(0)], Place::Connect), ProtocolError);
        assert_eq!(refused(&[Property::PayloadFormatIndicator(2)], Place::Will), ProtocolError);
        assert_eq!(refused(&[Property::ResponseTopic("a/#")], Place::Publish), ProtocolError);
        assert_eq!(refused(&[Property::TopicAlias(1)], Place::Will), MalformedPacket);
        assert_eq!(refused(&[Property::SubscriptionIdentifier(3)], Place::Will), MalformedPacket);
        assert_eq!(refused(&[Property::ServerKeepAlive(1)], Place::Connect), MalformedPacket);
        for unknown in [0x00, 0x04, 0x2B, 0x80, 0xFF] {
            let error =
                Properties::read(&mut Reader::new(&[2, unknown, 0]), Place::Publish).expect_err("unknown");
            assert_eq!(error.reason, MalformedPacket);
        }
    }

    #[test]
    fn the_strings_of_properties_are_utf_8() {
        for octets in [&[0xFF][..], &[0xED, 0xA0, 0x80], &[b'a', 0]] {
            let text = [&[0, octets.len() as u8][..], octets].concat();
            for (place, property) in [
                (Place::Publish, [&[0x03], &text[..]].concat()),
                (Place::Publish, [&[0x08], &text[..]].concat()),
                (Place::Connect, [&[0x15], &text[..]].concat()),
                (Place::Ack, [&[0x1F], &text[..]].concat()),
                (Place::Publish, [&[0x26], &text[..], &[0, 0]].concat()),
                (Place::Publish, [&[0x26, 0, 0], &text[..]].concat()),
            ] {
                let bytes = [&[property.len() as u8], &property[..]].concat();
                let error = Properties::read(&mut Reader::new(&bytes), place).expect_err("it is refused");
                assert_eq!(error.reason, ReasonCode::MalformedPacket, "{bytes:x?}");
            }
            // Correlation data is no string.
            let bytes = [&[text.len() as u8 + 1, 0x09], &text[..]].concat();
            assert!(Properties::read(&mut Reader::new(&bytes), Place::Publish).is_ok());
        }
    }
}
