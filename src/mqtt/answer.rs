//! The packets of a server, except PUBLISH.
//!
//! Before MQTT 5 a packet has no properties, and only CONNACK and SUBACK have codes.

use core::num::NonZeroU16;

use super::Version;
use super::cursor::{Full, Writer, variable_int_len};
use super::packet::{Ack, PacketType};
use super::properties::{Property, properties_len, write_properties};
use super::reason::ReasonCode;

/// PINGRESP.
pub const PINGRESP: [u8; 2] = [(PacketType::Pingresp as u8) << 4, 0];

/// Writes CONNACK (§3.2). Writes nothing if this version has no code for the reason, because the connection is then
/// closed without CONNACK. MQTT 3.1 has no Session Present.
///
/// # Errors
/// It does not fit.
pub fn write_connack<'p>(
    writer: &mut Writer<'_>,
    version: Version,
    is_session_present: bool,
    reason: ReasonCode,
    properties: impl Iterator<Item = Property<'p>> + Clone,
) -> Result<(), Full> {
    let Some(code) = reason.connect_return_code(version) else { return Ok(()) };
    // MQTT-3.2.2-6: not with a failure.
    let flags = u8::from(is_session_present && version != Version::V3_1 && !reason.is_failure());
    write(writer, (PacketType::Connack as u8) << 4, &[flags, code], v5(version, properties), [])
}

/// Writes PUBACK, PUBREC, PUBREL or PUBCOMP (§3.4 to §3.7). Before MQTT 5 the reason is not written.
///
/// # Errors
/// It does not fit.
pub fn write_ack<'p>(
    writer: &mut Writer<'_>,
    version: Version,
    ack: Ack,
    properties: impl Iterator<Item = Property<'p>> + Clone,
) -> Result<(), Full> {
    let Ack { kind, packet_id, reason } = ack;
    let [high, low] = packet_id.get().to_be_bytes();
    let octet = kind.first_octet();
    let has_properties = properties.clone().next().is_some();
    match version {
        Version::V5 if has_properties => {
            write(writer, octet, &[high, low, reason as u8], Some(properties), [])
        }
        // Without properties, their length may be left out, and then a reason that is a success, too (§3.4.2.1).
        Version::V5 if reason != ReasonCode::Success => {
            write(writer, octet, &[high, low, reason as u8], NO_PROPERTIES, [])
        }
        _ => write(writer, octet, &[high, low], NO_PROPERTIES, []),
    }
}

/// Writes SUBACK (§3.9), with the code of each topic filter. In MQTT 3.1.1 every failure has the code 0x80. MQTT 3.1 has
/// no failure: the client gets QoS 0, and no message.
///
/// # Errors
/// It does not fit.
pub fn write_suback<'p>(
    writer: &mut Writer<'_>,
    version: Version,
    packet_id: NonZeroU16,
    codes: impl ExactSizeIterator<Item = ReasonCode>,
    properties: impl Iterator<Item = Property<'p>> + Clone,
) -> Result<(), Full> {
    let codes = codes.map(|code| suback_code(version, code));
    let octet = (PacketType::Suback as u8) << 4;
    write(writer, octet, &packet_id.get().to_be_bytes(), v5(version, properties), codes)
}

/// Returns the octet for a code in SUBACK; see [`write_suback`].
pub const fn suback_code(version: Version, code: ReasonCode) -> u8 {
    match version {
        Version::V3_1 if code.is_failure() => ReasonCode::Success as u8,
        Version::V3_1_1 if code.is_failure() => ReasonCode::Unspecified as u8,
        _ => code as u8,
    }
}

/// The longest start of a SUBACK or UNSUBACK, before its codes: first octet, length, packet identifier, and the length of
/// the properties.
pub const ANSWER_HEAD_BYTES_MAX: usize = 1 + 4 + 2 + 1;

/// Writes the start of a SUBACK without properties, behind which the caller writes `count` codes ([`suback_code`]).
///
/// # Errors
/// It does not fit.
pub fn write_suback_head(
    writer: &mut Writer<'_>,
    version: Version,
    packet_id: NonZeroU16,
    count: usize,
) -> Result<(), Full> {
    write_answer_head(writer, PacketType::Suback, version, packet_id, count)
}

/// Like [`write_suback_head`], for UNSUBACK. Before MQTT 5 it has no codes.
///
/// # Errors
/// It does not fit.
pub fn write_unsuback_head(
    writer: &mut Writer<'_>,
    version: Version,
    packet_id: NonZeroU16,
    count: usize,
) -> Result<(), Full> {
    let count = if version == Version::V5 { count } else { 0 };
    write_answer_head(writer, PacketType::Unsuback, version, packet_id, count)
}

fn write_answer_head(
    writer: &mut Writer<'_>,
    kind: PacketType,
    version: Version,
    packet_id: NonZeroU16,
    count: usize,
) -> Result<(), Full> {
    let properties_len = usize::from(version == Version::V5);
    writer.u8((kind as u8) << 4)?;
    writer.variable_int((2 + properties_len + count) as u32)?;
    writer.u16(packet_id.get())?;
    if properties_len > 0 { writer.u8(0) } else { Ok(()) }
}

/// Writes UNSUBACK (§3.11). Before MQTT 5 the codes are not written.
///
/// # Errors
/// It does not fit.
pub fn write_unsuback<'p>(
    writer: &mut Writer<'_>,
    version: Version,
    packet_id: NonZeroU16,
    codes: impl ExactSizeIterator<Item = ReasonCode>,
    properties: impl Iterator<Item = Property<'p>> + Clone,
) -> Result<(), Full> {
    let octet = (PacketType::Unsuback as u8) << 4;
    let packet_id = packet_id.get().to_be_bytes();
    match version {
        Version::V5 => write(writer, octet, &packet_id, Some(properties), codes.map(|code| code as u8)),
        Version::V3_1 | Version::V3_1_1 => write(writer, octet, &packet_id, NO_PROPERTIES, []),
    }
}

/// Writes DISCONNECT (§3.14). Before MQTT 5 a server does not send it, and nothing is written.
///
/// # Errors
/// It does not fit.
pub fn write_disconnect<'p>(
    writer: &mut Writer<'_>,
    version: Version,
    reason: ReasonCode,
    properties: impl Iterator<Item = Property<'p>> + Clone,
) -> Result<(), Full> {
    match version {
        Version::V3_1 | Version::V3_1_1 => Ok(()),
        Version::V5 => {
            write(writer, (PacketType::Disconnect as u8) << 4, &[reason as u8], Some(properties), [])
        }
    }
}

/// Stands for a packet without properties and without their length.
const NO_PROPERTIES: Option<core::iter::Empty<Property<'static>>> = None;

fn v5<T>(version: Version, properties: T) -> Option<T> {
    (version == Version::V5).then_some(properties)
}

/// Writes a packet: the fixed header, octets, the properties with their length, and octets.
fn write<'p>(
    writer: &mut Writer<'_>,
    first_octet: u8,
    head: &[u8],
    properties: Option<impl Iterator<Item = Property<'p>> + Clone>,
    tail: impl IntoIterator<Item = u8, IntoIter: ExactSizeIterator>,
) -> Result<(), Full> {
    let mut tail = tail.into_iter();
    let properties_len = properties.clone().map_or(0, |properties| {
        let len = properties_len(properties);
        variable_int_len(len as u32) + len
    });
    let remaining_len = head.len() + properties_len + tail.len();
    let start = writer.len();
    let try_write = || {
        writer.u8(first_octet)?;
        writer.variable_int(u32::try_from(remaining_len).map_err(|_| Full)?)?;
        writer.put(head)?;
        if let Some(properties) = properties {
            write_properties(writer, properties)?;
        }
        tail.try_for_each(|octet| writer.u8(octet))
    };
    let written = try_write();
    writer.undo_unless(start, written)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::AckKind;

    const ID: NonZeroU16 = NonZeroU16::new(0x0102).expect("not 0");
    const NONE: [Property<'static>; 0] = [];

    /// Writes a packet. It is written completely or not at all, whatever space there is.
    fn written(write: impl Fn(&mut Writer<'_>) -> Result<(), Full>) -> Vec<u8> {
        let mut buffer = [0; 200];
        let mut writer = Writer::new(&mut buffer);
        write(&mut writer).expect("it fits");
        let octets = writer.written().to_vec();
        for space in 0..octets.len() {
            let mut buffer = vec![0; space];
            let mut writer = Writer::new(&mut buffer);
            assert_eq!((write(&mut writer), writer.len()), (Err(Full), 0));
        }
        octets
    }

    #[test]
    fn connack_has_a_code_of_its_version() {
        let connack = |version, present, reason| {
            written(|writer| write_connack(writer, version, present, reason, NONE.into_iter()))
        };
        assert_eq!(connack(Version::V3_1, true, ReasonCode::Success), [0x20, 2, 0, 0]);
        assert_eq!(connack(Version::V3_1_1, true, ReasonCode::Success), [0x20, 2, 1, 0]);
        assert!(connack(Version::V3_1_1, false, ReasonCode::MalformedPacket).is_empty());
        assert_eq!(connack(Version::V3_1_1, true, ReasonCode::NotAuthorized), [0x20, 2, 0, 5]);
        assert_eq!(connack(Version::V5, false, ReasonCode::NotAuthorized), [0x20, 3, 0, 0x87, 0]);
        let properties = [Property::ReceiveMaximum(20), Property::AssignedClientIdentifier("x")];
        let connack = written(|writer| {
            write_connack(writer, Version::V5, true, ReasonCode::Success, properties.into_iter())
        });
        assert_eq!(connack, [0x20, 10, 1, 0, 7, 0x21, 0, 20, 0x12, 0, 1, b'x']);
    }

    #[test]
    fn acknowledgements_leave_out_what_is_a_success() {
        let ack = |version, kind, reason, properties: &[Property<'_>]| {
            written(|writer| {
                write_ack(writer, version, Ack { kind, packet_id: ID, reason }, properties.iter().copied())
            })
        };
        let (refused, not_found) = (ReasonCode::QuotaExceeded, ReasonCode::PacketIdentifierNotFound);
        assert_eq!(ack(Version::V3_1_1, AckKind::Puback, refused, &[]), [0x40, 2, 1, 2]);
        assert_eq!(ack(Version::V5, AckKind::Pubrec, ReasonCode::Success, &[]), [0x50, 2, 1, 2]);
        assert_eq!(ack(Version::V5, AckKind::Pubrel, ReasonCode::Success, &[]), [0x62, 2, 1, 2]);
        assert_eq!(ack(Version::V5, AckKind::Pubcomp, not_found, &[]), [0x70, 3, 1, 2, 0x92]);
        let text = [Property::ReasonString("x")];
        assert_eq!(
            ack(Version::V5, AckKind::Puback, refused, &text),
            [0x40, 8, 1, 2, 0x97, 4, 0x1F, 0, 1, b'x']
        );
        assert_eq!(ack(Version::V3_1_1, AckKind::Puback, refused, &text), [0x40, 2, 1, 2]);
    }

    #[test]
    fn codes_of_subscriptions_depend_on_the_version() {
        let codes = [ReasonCode::GrantedQos1, ReasonCode::NotAuthorized];
        let suback = |version| {
            written(|writer| write_suback(writer, version, ID, codes.into_iter(), NONE.into_iter()))
        };
        assert_eq!(suback(Version::V3_1), [0x90, 4, 1, 2, 1, 0]);
        assert_eq!(suback(Version::V3_1_1), [0x90, 4, 1, 2, 1, 0x80]);
        assert_eq!(suback(Version::V5), [0x90, 5, 1, 2, 0, 1, 0x87]);
        let unsuback = |version| {
            written(|writer| write_unsuback(writer, version, ID, codes.into_iter(), NONE.into_iter()))
        };
        assert_eq!(unsuback(Version::V3_1_1), [0xB0, 2, 1, 2]);
        assert_eq!(unsuback(Version::V5), [0xB0, 5, 1, 2, 0, 1, 0x87]);
    }

    #[test]
    fn only_a_server_of_version_5_sends_a_reason_to_disconnect() {
        let disconnect = |version| {
            written(|writer| {
                write_disconnect(writer, version, ReasonCode::ServerShuttingDown, NONE.into_iter())
            })
        };
        assert_eq!(disconnect(Version::V5), [0xE0, 2, 0x8B, 0]);
        assert!(disconnect(Version::V3_1_1).is_empty());
    }
}
