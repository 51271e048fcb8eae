//! Checks of reading and writing MQTT that hold for any octets.

use leveret_mqtt::{
    Connect, FixedHeader, HeaderLen, OutgoingPublish, OutgoingQoS, Packet, PacketType, PublishHeader, QoS,
    TopicFilter, Version, Writer, check_topic_name, matches,
};

/// Reads input as a connection does: packets until one is invalid. The first octet selects the version.
pub fn check_any_packets(input: &[u8]) {
    let Some((first, mut input)) = input.split_first() else { return };
    let mut version = [Version::V3_1, Version::V3_1_1, Version::V5][usize::from(first % 3)];
    loop {
        check_prefixes_of_fixed_header(input);
        let Ok(Some(fixed)) = FixedHeader::parse(input) else { return };
        let Some(body) = input.get(fixed.len..fixed.packet_len()) else {
            if fixed.kind == PacketType::Publish {
                // A part of the payload may be missing.
                check_publish(fixed, version, &input[fixed.len..]);
            }
            return;
        };
        match fixed.kind {
            PacketType::Connect => {
                let Ok(connect) = Connect::parse(fixed, body) else { return };
                assert_eq!(Connect::answer_version(body), Some(connect.version));
                assert!(connect.receive_maximum > 0 && connect.maximum_packet_size > 0);
                if let Some(will) = connect.will {
                    assert_eq!(check_topic_name(will.topic), Ok(()));
                    assert!(will.properties.iter().count() <= body.len());
                }
                version = connect.version;
            }
            PacketType::Publish => {
                if !check_publish(fixed, version, body) {
                    return;
                }
            }
            _ => match Packet::parse(fixed, version, body) {
                Ok(Packet::Subscribe(subscribe)) => {
                    assert!(subscribe.filters().next().is_some());
                    subscribe.filters().for_each(|(filter, _)| check_filter(filter));
                }
                Ok(Packet::Unsubscribe(unsubscribe)) => {
                    assert!(unsubscribe.filters().next().is_some());
                    unsubscribe.filters().for_each(check_filter);
                }
                Ok(_) => {}
                Err(_) => return,
            },
        }
        input = &input[fixed.packet_len()..];
    }
}

/// A shorter beginning of a fixed header gives the same result, or is incomplete.
fn check_prefixes_of_fixed_header(input: &[u8]) {
    let result = FixedHeader::parse(input);
    for len in 0..input.len().min(6) {
        let shorter = FixedHeader::parse(&input[..len]);
        assert!(shorter == Ok(None) || shorter == result, "{shorter:?} {result:?}");
    }
}

/// Returns whether the header is valid. What is read is written and read again.
fn check_publish(fixed: FixedHeader, version: Version, body: &[u8]) -> bool {
    let result = PublishHeader::len_of(fixed, version, body);
    for len in 0..body.len().min(20) {
        let shorter = PublishHeader::len_of(fixed, version, &body[..len]);
        match shorter {
            Ok(HeaderLen::AtLeast(octets)) => assert!(octets > len, "{octets} octets are needed after {len}"),
            _ => assert_eq!(shorter, result),
        }
    }
    let Ok(HeaderLen::Known(len)) = result else { return false };
    let Some(octets) = body.get(..len) else { return false };
    let Ok(header) = PublishHeader::parse(fixed, version, octets) else { return false };
    assert_eq!(len + header.payload_len as usize, fixed.remaining_len as usize);
    let qos = match (header.qos, header.packet_id) {
        (QoS::AtMostOnce, None) => OutgoingQoS::AtMostOnce,
        (QoS::AtLeastOnce, Some(id)) => OutgoingQoS::AtLeastOnce(id),
        (QoS::ExactlyOnce, Some(id)) => OutgoingQoS::ExactlyOnce(id),
        (qos, id) => panic!("{qos:?} with {id:?}"),
    };
    let PublishHeader { is_duplicate, retain, payload_len, .. } = header;
    let again = OutgoingPublish { is_duplicate, qos, retain, topic: header.topic.as_bytes(), payload_len };
    let mut buffer = vec![0; len + 5];
    let mut writer = Writer::new(&mut buffer);
    again
        .write_header(&mut writer, version, header.properties.iter())
        .expect("it was as long when it was read");
    let written = writer.written();
    let fixed = FixedHeader::parse(written).expect("valid").expect("complete");
    assert_eq!(PublishHeader::parse(fixed, version, &written[fixed.len..]), Ok(header));
    if !header.topic.is_empty() {
        assert!(
            matches(header.topic, header.topic)
                && matches("#", header.topic) != header.topic.starts_with('$')
        );
    }
    true
}

fn check_filter(filter: &str) {
    let Ok(parsed) = TopicFilter::parse(filter) else { return };
    if check_topic_name(parsed.filter).is_ok() {
        assert!(matches(parsed.filter, parsed.filter));
    }
}
