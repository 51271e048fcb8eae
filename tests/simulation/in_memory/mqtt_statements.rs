//! Statements of the MQTT specifications that the other tests do not show. `tests/compatibility/mqtt/statements.tsv` lists
//! all statements, each with its tests.

use leveret_core::limits::Limits;
use leveret_storage::Settings;
use leveret_test_support::simulated_server::mqtt::{FromServer, Login, MqttClient, Received, packet};
use leveret_test_support::simulated_server::{Simulation, small_limits};

use super::mqtt::{LEVELS, id_packet, kept, named, publish_2, publish_retained, receive_all, release};

/// The properties of a CONNECT whose session is kept for 100 s.
const EXPIRY_100_S: [u8; 5] = [0x11, 0, 0, 0, 100];

fn client(simulation: &mut Simulation, level: u8, client_id: &str) -> MqttClient {
    MqttClient::log_in(simulation, &Login { level, ..named(client_id) })
}

/// Returns a CONNECT of any version whose session is kept.
fn kept_login(level: u8, client_id: &str) -> Login<'_> {
    let properties: &[u8] = if level == 5 { &EXPIRY_100_S } else { &[] };
    Login { level, properties, ..kept(client_id) }
}

/// Connects a client whose session is kept.
fn kept_client(simulation: &mut Simulation, level: u8, client_id: &str) -> MqttClient {
    MqttClient::log_in(simulation, &kept_login(level, client_id))
}

/// Ends the session of a client.
fn end_session(simulation: &mut Simulation, client_id: &str) {
    client(simulation, 4, client_id).disconnect(simulation);
}

/// Returns the first octets of all packets that have arrived.
fn packet_types(client: &mut MqttClient, simulation: &mut Simulation) -> Vec<u8> {
    core::iter::from_fn(|| client.next(simulation)).map(|packet| packet.first_octet).collect()
}

/// Returns an empty list of properties for the version that has them.
fn no_properties(level: u8) -> &'static [u8] {
    if level == 5 { &[0] } else { &[] }
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u16).to_be_bytes()[..], text.as_bytes()].concat()
}

/// Returns SUBSCRIBE with the packet identifier 7.
fn subscribe(level: u8, filter: &str, options: u8) -> Vec<u8> {
    packet(0x82, &[&[0, 7][..], no_properties(level), &string(filter), &[options]].concat())
}

// ---- packets that end the connection

#[test]
fn a_first_packet_other_than_connect_ends_the_connection() {
    let mut simulation = Simulation::new(small_limits());
    for level in LEVELS {
        let publish = |client: &MqttClient| client.publish_packet(1, "t", 0, b"early");
        for first in [0x40, 0x50, 0x62, 0x70, 0x82, 0xA2, 0xC0, 0xE0, 0xF0, 0x30] {
            let mut client = MqttClient::open(&mut simulation, level);
            let octets = match first {
                0x30 => publish(&client),
                0x82 => subscribe(level, "t", 0),
                0xA2 => packet(first, &[&[0, 7][..], no_properties(level), &string("t")].concat()),
                0xC0 | 0xE0 | 0xF0 => packet(first, &[]),
                _ => id_packet(first, 7),
            };
            client.send(&mut simulation, &octets);
            client.assert_closed(&mut simulation);
        }
    }
    let mut reader = client(&mut simulation, 4, "reader");
    reader.subscribe(&mut simulation, &[("t", 0)]);
    assert_eq!(reader.receive(&mut simulation), None, "the message was not handled");
    reader.disconnect(&mut simulation);
    simulation.end(&[]);
}

/// All flags of all packets that have fixed flags. MQTT 3.1 allows the DUP flag in three of them.
#[test]
fn wrong_flags_of_any_packet_end_the_connection() {
    let mut simulation = Simulation::new(small_limits());
    for level in LEVELS {
        for first in [0x10, 0x40, 0x50, 0x62, 0x70, 0x82, 0xA2, 0xC0, 0xE0, 0xF0] {
            for flags in 0..16 {
                let is_repeated = level == 3 && first & 15 == 2 && flags == 10;
                if flags == first & 15 || is_repeated {
                    continue;
                }
                let mut client = client(&mut simulation, level, "c");
                let mut octets = match first {
                    0x10 => named("c").packet(),
                    0x82 => subscribe(level, "t", 0),
                    0xA2 => packet(first, &[&[0, 7][..], no_properties(level), &string("t")].concat()),
                    0xC0 | 0xE0 | 0xF0 => packet(first, &[]),
                    _ => id_packet(first, 7),
                };
                octets[0] = first & 0xF0 | flags;
                client.send(&mut simulation, &octets);
                if level == 5 {
                    assert_eq!(client.expect(&mut simulation, 0xE0).body[0], 0x81, "{:#x}", octets[0]);
                }
                client.assert_closed(&mut simulation);
            }
        }
    }
    simulation.end(&[]);
}

/// Before MQTT 5, the connection is closed without a packet.
#[test]
fn a_protocol_violation_ends_the_connection_of_every_version() {
    let mut simulation = Simulation::new(small_limits());
    let mut reader = client(&mut simulation, 4, "reader");
    reader.subscribe(&mut simulation, &[("#", 1)]);
    for level in LEVELS {
        let properties = no_properties(level);
        let filters = |first, filters: &[u8]| packet(first, &[&[0, 7][..], properties, filters].concat());
        let publish = |first, topic: &[u8], id: &[u8]| packet(first, &[topic, id, properties, b"x"].concat());
        for (what, octets, reason) in [
            ("a second CONNECT", Login { level, ..named("c") }.packet(), 0x82),
            ("a type that no client sends", packet(0x20, &[0, 0]), 0x82),
            ("a length of five octets", vec![0x30, 0x80, 0x80, 0x80, 0x80, 1], 0x81),
            ("PINGREQ with a body", packet(0xC0, &[0]), 0x81),
            ("SUBSCRIBE without a filter", filters(0x82, &[]), 0x82),
            ("SUBSCRIBE with QoS 3", filters(0x82, &[0, 1, b'a', 3]), if level == 5 { 0x82 } else { 0 }),
            ("SUBSCRIBE with reserved bits", filters(0x82, &[0, 1, b'a', 0x81]), 0x81),
            ("SUBSCRIBE with a packet identifier of 0", packet(0x82, &[0, 0, 0, 0, 1, b'a', 0]), 0x82),
            ("SUBSCRIBE without UTF-8", filters(0x82, &[0, 1, 0xFF, 0]), 0x81),
            ("UNSUBSCRIBE with a packet identifier of 0", packet(0xA2, &[0, 0, 0, 0, 1, b'a']), 0x82),
            ("UNSUBSCRIBE without a filter", filters(0xA2, &[]), 0x82),
            ("UNSUBSCRIBE with U+0000", filters(0xA2, &[0, 1, 0]), 0x81),
            ("PUBLISH with QoS 3", publish(0x36, b"\0\x01a", &[0, 1]), 0x81),
            ("PUBLISH with a wildcard", publish(0x30, b"\0\x03a/+", &[]), 0x90),
            ("PUBLISH with U+0000", publish(0x30, b"\0\x02a\0", &[]), 0x81),
            ("PUBLISH with U+D800", publish(0x30, b"\0\x03\xED\xA0\x80", &[]), 0x81),
            ("PUBLISH with a packet identifier of 0", publish(0x32, b"\0\x01a", &[0, 0]), 0x82),
        ] {
            let mut client = client(&mut simulation, level, "c");
            client.send(&mut simulation, &octets);
            if level == 5 {
                assert_eq!(client.expect(&mut simulation, 0xE0).body[0], reason, "{what}");
            }
            assert!(client.is_closed(&simulation), "{what} {level}");
            client.assert_closed(&mut simulation);
        }
    }
    assert_eq!(reader.receive(&mut simulation), None);
    reader.disconnect(&mut simulation);
    simulation.end(&[]);
}

/// The client acknowledges messages, for which others wait, and then sends a packet that is not valid. DISCONNECT is the
/// last packet.
#[test]
fn no_packet_follows_a_disconnect_of_the_server() {
    let mut simulation = Simulation::new(small_limits());
    let mut reader = client(&mut simulation, 5, "reader");
    reader.subscribe(&mut simulation, &[("#", 1)]);
    let mut publisher = client(&mut simulation, 5, "publisher");
    for number in 0..50 {
        publisher.publish_1(&mut simulation, "t", 1, &[number; 500]);
    }
    let sent: Vec<_> = core::iter::from_fn(|| reader.receive(&mut simulation)).collect();
    let acks = |messages: &[Received]| -> Vec<u8> {
        messages.iter().flat_map(|message| id_packet(0x40, message.packet_id.unwrap())).collect()
    };
    let ping = [0xC0, 0];
    let input = [&acks(&sent[..5]), &ping[..], &packet(0x82, &[0, 7, 0]), &ping, &acks(&sent[5..])];
    reader.send_without_turn(&mut simulation, &input.concat());
    simulation.run();
    let types = packet_types(&mut reader, &mut simulation);
    assert_eq!(types.iter().position(|first| *first == 0xE0), Some(types.len() - 1), "{types:x?}");
    publisher.publish_1(&mut simulation, "t", 1, b"later");
    reader.assert_closed(&mut simulation);
    publisher.disconnect(&mut simulation);
    simulation.end(&[]);
}

#[test]
fn a_silent_client_of_any_version_is_lost_after_its_keep_alive_and_a_half() {
    for level in LEVELS {
        let mut simulation = Simulation::new(small_limits());
        let login = |client_id, keep_alive_s| Login { level, keep_alive_s, ..named(client_id) };
        let mut silent = MqttClient::log_in(&mut simulation, &login("silent", 10));
        let unlimited = MqttClient::log_in(&mut simulation, &login("unlimited", 0));
        simulation.pass_ms(14_900);
        assert!(!silent.is_closed(&simulation));
        simulation.pass_ms(200);
        assert!(silent.is_closed(&simulation));
        if level == 5 {
            assert_eq!(silent.expect(&mut simulation, 0xE0).body[0], 0x8D);
        }
        silent.assert_closed(&mut simulation);
        simulation.pass_ms(100_000_000);
        assert!(!unlimited.is_closed(&simulation));
        unlimited.disconnect(&mut simulation);
        simulation.end(&[]);
    }
}

// ---- CONNECT and CONNACK

/// Returns a CONNECT without a user name. `rest` begins behind the keep-alive.
fn connect(name: &str, level: u8, flags: u8, rest: &[u8]) -> Vec<u8> {
    packet(0x10, &[&string(name)[..], &[level, flags, 0, 0], rest].concat())
}

#[test]
fn an_unknown_version_is_answered_and_another_protocol_is_not() {
    let mut simulation = Simulation::new(small_limits());
    let id = string("c");
    for (name, level, code) in [
        ("MQTT", 6, Some(0x84)),
        ("MQTT", 0x7F, Some(0x84)),
        ("MQTT", 0, Some(1)),
        ("MQTT", 3, Some(1)),
        ("MQTT", 0x85, Some(1)),
        ("MQIsdp", 4, Some(1)),
        ("MQTX", 4, None),
        ("mqtt", 4, None),
        ("", 4, None),
    ] {
        let mut client = MqttClient::open(&mut simulation, level);
        client.send(&mut simulation, &connect(name, level, 2, &id));
        if let Some(code) = code {
            assert_eq!(client.expect(&mut simulation, 0x20).body[..2], [0, code], "{name} {level:#x}");
        }
        client.assert_closed(&mut simulation);
    }
    simulation.end(&[]);
}

#[test]
fn a_connect_that_is_not_valid_is_refused() {
    let mut simulation = Simulation::new(small_limits());
    let id = string("c");
    let will = [&id[..], &string("t"), &[0, 0]].concat();
    for (what, flags, rest) in [
        ("the reserved flag", 0x03, &id),
        ("a will with QoS 3", 0x1E, &will),
        ("the QoS of a will without a will", 0x0A, &id),
        ("RETAIN of a will without a will", 0x22, &id),
        ("no will, although the flags announce one", 0x06, &id),
        ("a will without its flag", 0x02, &will),
        ("no user name, although the flags announce one", 0x82, &id),
        ("a client identifier that is not UTF-8", 0x02, &vec![0, 1, 0xFF]),
    ] {
        for level in [4, 5] {
            let mut client = MqttClient::open(&mut simulation, level);
            let rest = [no_properties(level), rest].concat();
            // The properties of a will are in front of its topic.
            let rest =
                if level == 5 && rest.len() > 8 { [&rest[..4], &[0], &rest[4..]].concat() } else { rest };
            client.send(&mut simulation, &connect("MQTT", level, flags, &rest));
            if level == 5 {
                assert_eq!(client.expect(&mut simulation, 0x20).body[..2], [0, 0x81], "{what}");
            }
            assert!(client.is_closed(&simulation), "{what} {level}");
            client.assert_closed(&mut simulation);
        }
    }
    simulation.end(&[]);
}

/// The packets follow CONNECT at once.
#[test]
fn nothing_after_a_refused_connect_is_handled() {
    let mut simulation = Simulation::new(small_limits());
    let mut reader = client(&mut simulation, 4, "reader");
    reader.subscribe(&mut simulation, &[("#", 0)]);
    let long = "x".repeat(300);
    for level in LEVELS {
        for login in [
            Login { password: Some("wrong"), ..named("c") },
            Login { user: Some("nowhere:guest"), ..named("c") },
            Login { user: None, password: None, ..named("c") },
            named(&long),
        ] {
            let mut client = MqttClient::open(&mut simulation, level);
            let publish = client.publish_packet(3, "t", 1, b"secret");
            let octets = [Login { level, ..login }.packet(), publish, vec![0xC0, 0]].concat();
            client.send(&mut simulation, &octets);
            simulation.pass_ms(10_000);
            assert_eq!(packet_types(&mut client, &mut simulation), [0x20]);
            client.assert_closed(&mut simulation);
        }
    }
    assert_eq!(reader.receive(&mut simulation), None);
    reader.subscribe(&mut simulation, &[("t", 0)]);
    assert_eq!(reader.receive(&mut simulation), None, "nor is it retained");
    reader.disconnect(&mut simulation);
    simulation.end(&[]);
}

#[test]
fn client_identifiers_of_23_letters_and_digits_are_accepted() {
    let mut simulation = Simulation::new(small_limits());
    for level in LEVELS {
        let all = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
        for from in 0..all.len() {
            for len in [1, 23] {
                let client_id: String = all.chars().cycle().skip(from).take(len).collect();
                let client = client(&mut simulation, level, &client_id);
                client.disconnect(&mut simulation);
            }
        }
    }
    simulation.end(&[]);
}

/// A client that is refused because of something too long is answered after 5 s.
const REFUSAL_MS: u64 = 5_001;

#[test]
fn a_client_identifier_that_is_too_long_is_refused() {
    let mut simulation = Simulation::new(small_limits());
    for (level, code) in [(3, 2), (4, 2), (5, 0x85)] {
        for (len, is_refused) in [(237, false), (238, true), (60_000, true)] {
            let client_id = "x".repeat(len);
            let login = Login { level, ..named(&client_id) };
            let mut client = MqttClient::open(&mut simulation, level);
            client.send(&mut simulation, &login.packet());
            simulation.pass_ms(REFUSAL_MS);
            match (is_refused, len) {
                (false, _) => assert_eq!(client.expect(&mut simulation, 0x20).body[1], 0),
                (true, 238) => assert_eq!(client.expect(&mut simulation, 0x20).body[..2], [0, code]),
                // Such a CONNECT is larger than the broker accepts.
                _ => while client.next(&mut simulation).is_some() {},
            }
            assert_eq!(client.is_closed(&simulation), is_refused);
            client.lose(&mut simulation);
        }
    }
    simulation.end(&[]);
}

#[test]
fn an_assigned_client_identifier_names_a_session() {
    let mut simulation = Simulation::new(small_limits());
    let login = kept_login(5, "");
    let mut identifiers = Vec::new();
    for topic in ["a", "b"] {
        let (mut client, connack) = MqttClient::connect(&mut simulation, &login);
        let at = connack.body.iter().rposition(|octet| *octet == 0x12).expect("an assigned identifier");
        identifiers.push(String::from_utf8(connack.body[at + 3..].to_vec()).expect("text"));
        client.subscribe(&mut simulation, &[(topic, 1)]);
        client.lose(&mut simulation);
    }
    assert_ne!(identifiers[0], identifiers[1]);
    let mut publisher = client(&mut simulation, 5, "publisher");
    for (identifier, topic) in identifiers.iter().zip(["a", "b"]) {
        publisher.publish_1(&mut simulation, topic, 1, topic.as_bytes());
        let (mut back, connack) = MqttClient::connect(&mut simulation, &kept_login(5, identifier));
        assert_eq!(connack.body[..2], [1, 0], "the session is there");
        assert_eq!(connack.body[2], 11, "no identifier is assigned");
        assert_eq!(receive_all(&mut back, &mut simulation).len(), 1);
        back.disconnect(&mut simulation);
        end_session(&mut simulation, identifier);
    }
    publisher.disconnect(&mut simulation);
    simulation.end(&[]);
}

/// Response information is offered to no client, and enhanced authentication neither.
#[test]
fn connack_has_the_limits_of_the_broker_and_nothing_else() {
    let mut simulation = Simulation::new(small_limits());
    for level in [3, 4] {
        kept_client(&mut simulation, level, "c").lose(&mut simulation);
        let (client, connack) = MqttClient::connect(&mut simulation, &Login { level, ..named("c") });
        assert_eq!(connack.body, [0, 0]);
        client.disconnect(&mut simulation);
    }
    for properties in [&[][..], &[0x19, 0], &[0x19, 1], &[0x17, 0], &[0x21, 0, 3]] {
        // A session exists, and Clean Start discards it.
        kept_client(&mut simulation, 5, "c").lose(&mut simulation);
        let login = Login { level: 5, properties, ..named("c") };
        let (client, connack) = MqttClient::connect(&mut simulation, &login);
        let (limits, len) = connack.body[3..].split_at(3);
        assert_eq!((&connack.body[..3], limits), (&[0, 0, 11][..], &[0x21, 0, 64][..]));
        assert_eq!((len[0], &len[5..]), (0x27, &[0x22, 0, 16][..]));
        client.disconnect(&mut simulation);
    }
    simulation.end(&[]);
}

#[test]
fn enhanced_authentication_is_refused() {
    let mut simulation = Simulation::new(small_limits());
    let properties = [&[0x15][..], &string("SCRAM-SHA-1"), &[0x16], &string("data")].concat();
    let login = Login { level: 5, properties: &properties, ..named("c") };
    let (mut client, connack) = MqttClient::connect(&mut simulation, &login);
    assert_eq!(connack.body[..2], [0, 0x8C]);
    client.assert_closed(&mut simulation);
    simulation.end(&[]);
}

/// CONNACK of the first client waits for the disk when the second one takes its session over.
#[test]
fn a_client_without_connack_gets_no_disconnect() {
    let mut simulation = Simulation::new(small_limits());
    simulation.keep_on_disk(Settings::default());
    simulation.engine.platform_mut().helpers.slowness_ms = 10_000;
    let login = kept_login(5, "c").packet();
    let mut clients = [(); 2].map(|()| MqttClient::open(&mut simulation, 5));
    for client in &mut clients {
        client.send(&mut simulation, &login);
    }
    let mut types = [Vec::new(), Vec::new()];
    for _ in 0..60 {
        for (client, types) in clients.iter_mut().zip(&mut types) {
            types.extend(packet_types(client, &mut simulation));
        }
        simulation.pass_ms(1_000);
    }
    assert!([&[][..], &[0x20], &[0x20, 0xE0]].contains(&&*types[0]), "{types:x?}");
    assert_eq!(types[1], [0x20]);
}

// ---- limits of the client

/// Returns the reason string of a packet whose properties begin at `at`.
fn reason_string(packet: &FromServer, at: usize) -> Option<String> {
    let text = packet.body.get(at + 1..)?.strip_prefix(&[0x1F])?;
    Some(String::from_utf8(text[2..].to_vec()).expect("text"))
}

/// Each packet has exactly the maximum size of the client with its reason string, or would be larger by an octet.
#[test]
fn a_reason_string_that_does_not_fit_is_left_out() {
    let long = "x".repeat(256);
    let maximum = |octets: usize| [&[0x27][..], &(octets as u32).to_be_bytes()].concat();
    let topic_text = "a topic of more than 255 bytes";
    // Fixed header, packet identifier and reason, length of the properties, property and its length.
    let ack_len = 2 + 3 + 1 + 3 + topic_text.len();
    for (qos, first) in [(1, 0x40), (2, 0x50)] {
        for (len, expected) in [(ack_len, Some(topic_text)), (ack_len - 1, None)] {
            let mut simulation = Simulation::new(small_limits());
            let login = Login { level: 5, properties: &maximum(len), ..named("c") };
            let mut client = MqttClient::log_in(&mut simulation, &login);
            let publish = client.publish_packet(qos << 1, &long, 1, b"");
            client.send(&mut simulation, &publish);
            let answer = client.expect(&mut simulation, first);
            assert_eq!(answer.body[..3], [0, 1, 0x90]);
            assert_eq!(reason_string(&answer, 3).as_deref(), expected);
            client.disconnect(&mut simulation);
            simulation.end(&[]);
        }
    }
    let disconnect_text = "SUBSCRIBE without a topic filter";
    let disconnect_len = 2 + 1 + 1 + 3 + disconnect_text.len();
    for (len, expected) in [(disconnect_len, Some(disconnect_text)), (disconnect_len - 1, None)] {
        let mut simulation = Simulation::new(small_limits());
        let login = Login { level: 5, properties: &maximum(len), ..named("c") };
        let mut client = MqttClient::log_in(&mut simulation, &login);
        client.send(&mut simulation, &packet(0x82, &[0, 1, 0]));
        let disconnect = client.expect(&mut simulation, 0xE0);
        assert_eq!((disconnect.body[0], reason_string(&disconnect, 1).as_deref()), (0x82, expected));
        client.assert_closed(&mut simulation);
        simulation.end(&[]);
    }
    let connack_text = "no user name and no password, which needs mqtt_anonymous_user";
    let connack_len = 2 + 2 + 1 + 3 + connack_text.len();
    for (len, expected) in [(connack_len, Some(connack_text)), (connack_len - 1, None)] {
        let mut simulation = Simulation::new(small_limits());
        let properties = maximum(len);
        let login = Login { level: 5, user: None, password: None, properties: &properties, ..named("c") };
        let (mut client, connack) = MqttClient::connect(&mut simulation, &login);
        assert_eq!((connack.body[1], reason_string(&connack, 2).as_deref()), (0x86, expected));
        client.assert_closed(&mut simulation);
        simulation.end(&[]);
    }
}

/// The client has acknowledged nothing, so it gets no further message with QoS 1 or 2. All other packets arrive.
#[test]
fn only_messages_wait_for_the_receive_maximum() {
    let mut simulation = Simulation::new(small_limits());
    let login = Login { level: 5, properties: &[0x21, 0, 1], ..named("slow") };
    let mut slow = MqttClient::log_in(&mut simulation, &login);
    slow.subscribe(&mut simulation, &[("a", 1), ("b", 2)]);
    let mut publisher = client(&mut simulation, 5, "publisher");
    for number in 0..3 {
        publisher.publish_1(&mut simulation, "a", 1, &[number]);
    }
    publish_2(&mut publisher, &mut simulation, "b", 2, &[3]);
    let first = slow.receive(&mut simulation).expect("the message");
    assert_eq!(slow.receive(&mut simulation), None);
    slow.send(&mut simulation, &[0xC0, 0]);
    slow.expect(&mut simulation, 0xD0);
    assert_eq!(slow.subscribe(&mut simulation, &[("c", 1)]), [1]);
    assert_eq!(slow.unsubscribe(&mut simulation, &["c"]), [0]);
    assert_eq!(slow.publish_1(&mut simulation, "nowhere", 5, b""), 0x10);
    let publish = slow.publish_packet(4, "nowhere", 6, b"");
    slow.send(&mut simulation, &publish);
    slow.expect(&mut simulation, 0x50);
    release(&mut slow, &mut simulation, 6);
    assert_eq!(slow.receive(&mut simulation), None);
    slow.acknowledge(&mut simulation, first.packet_id.unwrap());
    assert_eq!(slow.receive(&mut simulation).expect("the next message").payload, [1]);
    slow.disconnect(&mut simulation);
    publisher.disconnect(&mut simulation);
    simulation.end(&[]);
}

/// A message that is too large takes no place of the Receive Maximum, and is not sent on the next connection either.
#[test]
fn a_message_that_is_too_large_counts_as_sent() {
    let mut simulation = Simulation::new(small_limits());
    let small = [&EXPIRY_100_S[..], &[0x21, 0, 1], &[0x27, 0, 0, 0, 60]].concat();
    let login = |properties| Login { properties, ..kept_login(5, "small") };
    let mut reader = MqttClient::log_in(&mut simulation, &login(&small));
    reader.subscribe(&mut simulation, &[("t", 2)]);
    let mut publisher = client(&mut simulation, 4, "publisher");
    for number in 1..=3 {
        publisher.publish_1(&mut simulation, "t", 1, &[number; 100]);
        publish_2(&mut publisher, &mut simulation, "t", number.into(), &[number; 100]);
        release(&mut publisher, &mut simulation, number.into());
        publisher.publish_1(&mut simulation, "t", 1, &[number]);
        assert_eq!(receive_all(&mut reader, &mut simulation).len(), 1);
    }
    reader.lose(&mut simulation);
    let mut reader = MqttClient::log_in(&mut simulation, &login(&EXPIRY_100_S));
    assert_eq!(reader.receive(&mut simulation), None);
    reader.disconnect(&mut simulation);
    end_session(&mut simulation, "small");
    publisher.disconnect(&mut simulation);
    simulation.end(&[]);
}

// ---- PUBLISH

/// The client repeats a message, and its packet identifier. The broker forwards both without DUP.
#[test]
fn a_repeated_message_with_qos_1_is_a_new_one_without_dup() {
    for level in LEVELS {
        let mut simulation = Simulation::new(small_limits());
        let mut reader = client(&mut simulation, level, "reader");
        reader.subscribe(&mut simulation, &[("#", 2)]);
        let mut publisher = client(&mut simulation, level, "publisher");
        for dup in [8, 0, 8] {
            let publish = publisher.publish_packet(2 | dup, "t", 1, b"x");
            publisher.send(&mut simulation, &publish);
            publisher.expect(&mut simulation, 0x40);
            let received = reader.receive(&mut simulation).expect("the message");
            assert_eq!((received.qos, received.is_duplicate), (1, false));
            reader.acknowledge(&mut simulation, received.packet_id.unwrap());
        }
        // The first attempt of a message with QoS 2 was lost.
        let publish = publisher.publish_packet(4 | 8, "t", 1, b"x");
        publisher.send(&mut simulation, &publish);
        publisher.expect(&mut simulation, 0x50);
        let received = reader.receive(&mut simulation).expect("the message");
        assert_eq!((received.qos, received.is_duplicate), (2, false));
        reader.disconnect(&mut simulation);
        publisher.disconnect(&mut simulation);
        simulation.end(&[]);
    }
}

#[test]
fn nothing_is_sent_again_while_the_client_is_connected() {
    for level in LEVELS {
        let mut simulation = Simulation::new(small_limits());
        let mut reader = kept_client(&mut simulation, level, "reader");
        reader.subscribe(&mut simulation, &[("#", 2)]);
        let mut publisher = client(&mut simulation, 4, "publisher");
        publisher.publish_1(&mut simulation, "t", 1, b"x");
        publish_2(&mut publisher, &mut simulation, "t", 2, b"y");
        publish_2(&mut publisher, &mut simulation, "t", 3, b"z");
        let sent = [(); 3].map(|()| reader.receive(&mut simulation).expect("the message"));
        reader.send(&mut simulation, &id_packet(0x50, sent[2].packet_id.unwrap()));
        reader.expect(&mut simulation, 0x62);
        simulation.pass_ms(3_600_000);
        assert_eq!(reader.next(&mut simulation), None);
        reader.disconnect(&mut simulation);
        end_session(&mut simulation, "reader");
        publisher.disconnect(&mut simulation);
        simulation.end(&[]);
    }
}

#[test]
fn a_message_that_the_client_refuses_is_not_sent_again() {
    let mut simulation = Simulation::new(small_limits());
    let mut reader = kept_client(&mut simulation, 5, "reader");
    reader.subscribe(&mut simulation, &[("#", 2)]);
    let mut publisher = client(&mut simulation, 4, "publisher");
    publisher.publish_1(&mut simulation, "t", 1, b"x");
    publish_2(&mut publisher, &mut simulation, "t", 2, b"y");
    publisher.publish_1(&mut simulation, "t", 1, b"z");
    let sent = [(); 3].map(|()| reader.receive(&mut simulation).expect("the message"));
    for (first, message, code) in [(0x40, &sent[0], 0x80), (0x50, &sent[1], 0x97)] {
        let [high, low] = message.packet_id.unwrap().to_be_bytes();
        reader.send(&mut simulation, &packet(first, &[high, low, code]));
    }
    assert_eq!(reader.next(&mut simulation), None, "no PUBREL follows");
    reader.lose(&mut simulation);
    let mut reader = kept_client(&mut simulation, 5, "reader");
    assert_eq!(receive_all(&mut reader, &mut simulation), [("t".to_owned(), b"z".to_vec(), false)]);
    reader.disconnect(&mut simulation);
    end_session(&mut simulation, "reader");
    publisher.disconnect(&mut simulation);
    simulation.end(&[]);
}

/// The broker has refused a message with QoS 2. The client uses the packet identifier for another one.
#[test]
fn a_refused_message_with_qos_2_leaves_its_packet_identifier_free() {
    let mut simulation = Simulation::new(small_limits());
    let mut reader = client(&mut simulation, 4, "reader");
    reader.subscribe(&mut simulation, &[("#", 1)]);
    let mut publisher = client(&mut simulation, 5, "publisher");
    for flags in [4, 4 | 8] {
        let refused = publisher.publish_packet(4, &"x".repeat(256), 9, b"x");
        publisher.send(&mut simulation, &refused);
        assert_eq!(publisher.expect(&mut simulation, 0x50).body[..3], [0, 9, 0x90]);
        let publish = publisher.publish_packet(flags, "t", 9, b"y");
        publisher.send(&mut simulation, &publish);
        assert_eq!(publisher.expect(&mut simulation, 0x50).body, [0, 9]);
        assert_eq!(receive_all(&mut reader, &mut simulation), [("t".to_owned(), b"y".to_vec(), false)]);
        release(&mut publisher, &mut simulation, 9);
    }
    reader.disconnect(&mut simulation);
    publisher.disconnect(&mut simulation);
    simulation.end(&[]);
}

#[test]
fn the_exchange_of_a_publisher_goes_on_after_the_message_has_expired() {
    let mut simulation = Simulation::new(small_limits());
    let mut away = kept_client(&mut simulation, 5, "away");
    away.subscribe(&mut simulation, &[("#", 2)]);
    away.lose(&mut simulation);
    let mut publisher = client(&mut simulation, 5, "publisher");
    let publish = publisher.publish_packet_with(4, ("t", 9), &[2, 0, 0, 0, 1], b"x");
    publisher.send(&mut simulation, &publish);
    assert_eq!(publisher.expect(&mut simulation, 0x50).body, [0, 9]);
    simulation.pass_ms(5_000);
    let mut back = kept_client(&mut simulation, 5, "away");
    assert_eq!(back.receive(&mut simulation), None, "it has expired");
    publisher.send(&mut simulation, &publish);
    assert_eq!(publisher.expect(&mut simulation, 0x50).body, [0, 9]);
    publisher.send(&mut simulation, &id_packet(0x62, 9));
    assert_eq!(publisher.expect(&mut simulation, 0x70).body, [0, 9]);
    back.disconnect(&mut simulation);
    end_session(&mut simulation, "away");
    publisher.disconnect(&mut simulation);
    simulation.end(&[]);
}

#[test]
fn an_unknown_packet_identifier_has_its_code() {
    for level in LEVELS {
        let mut simulation = Simulation::new(small_limits());
        let mut client = client(&mut simulation, level, "c");
        let code: &[u8] = if level == 5 { &[0x92] } else { &[] };
        for (request, answer) in [(0x50, 0x62), (0x62, 0x70)] {
            client.send(&mut simulation, &id_packet(request, 258));
            assert_eq!(client.expect(&mut simulation, answer).body, [&[1, 2], code].concat());
        }
        for silent in [0x40, 0x70] {
            client.send(&mut simulation, &id_packet(silent, 258));
            assert_eq!(client.next(&mut simulation), None);
        }
        client.disconnect(&mut simulation);
        simulation.end(&[]);
    }
}

#[test]
fn every_topic_alias_up_to_the_maximum_is_accepted_on_its_connection_only() {
    let mut simulation = Simulation::new(small_limits());
    let mut reader = client(&mut simulation, 4, "reader");
    reader.subscribe(&mut simulation, &[("#", 0)]);
    let mut publisher = kept_client(&mut simulation, 5, "publisher");
    for is_defined in [false, true] {
        for alias in 1..=16_u8 {
            let topic = format!("topic/{alias}");
            let sent_topic = if is_defined { "" } else { &*topic };
            let publish = publisher.publish_packet_with(0, (sent_topic, 0), &[0x23, 0, alias], b"x");
            publisher.send(&mut simulation, &publish);
            assert_eq!(reader.receive(&mut simulation).expect("the message").topic, topic);
        }
    }
    publisher.lose(&mut simulation);
    for alias in [1, 16] {
        let mut publisher = kept_client(&mut simulation, 5, "publisher");
        let publish = publisher.publish_packet_with(0, ("", 0), &[0x23, 0, alias], b"x");
        publisher.send(&mut simulation, &publish);
        assert_eq!(publisher.expect(&mut simulation, 0xE0).body[0], 0x82);
        publisher.assert_closed(&mut simulation);
    }
    assert_eq!(reader.receive(&mut simulation), None);
    end_session(&mut simulation, "publisher");
    reader.disconnect(&mut simulation);
    simulation.end(&[]);
}

/// Each client subscribes to one of the topics. All of these topics are different.
#[test]
fn topics_are_compared_octet_by_octet() {
    let topics = [
        "a/b",
        "A/b",
        "a//b",
        "/a/b",
        "a/b/",
        "a.b",
        "a b",
        "a/b ",
        "*",
        "a/*",
        "\u{E9}",
        "e\u{301}",
        "\u{FEFF}",
        "\u{FEFF}a/b",
        "a\u{200B}/b",
        "\u{10FFFF}",
        "/",
        "//",
        "$share",
        "$a/b",
        "..",
        "\u{1}",
    ];
    for level in LEVELS {
        let mut simulation = Simulation::new(small_limits());
        let mut publisher = client(&mut simulation, level, "publisher");
        let mut readers: Vec<MqttClient> = Vec::new();
        for (number, topic) in topics.iter().enumerate() {
            let mut reader = client(&mut simulation, level, &format!("reader-{number}"));
            reader.subscribe(&mut simulation, &[(topic, 0)]);
            readers.push(reader);
        }
        for topic in topics {
            publisher.publish(&mut simulation, topic, topic.as_bytes());
        }
        for (reader, topic) in readers.iter_mut().zip(topics) {
            let received = reader.receive(&mut simulation).unwrap_or_else(|| panic!("{topic:?}"));
            assert_eq!((&*received.topic, &*received.payload), (topic, topic.as_bytes()));
            assert_eq!(reader.receive(&mut simulation), None, "{topic:?}");
        }
        readers.into_iter().chain([publisher]).for_each(|client| client.disconnect(&mut simulation));
        simulation.end(&[]);
    }
}

// ---- retained messages and wills

#[test]
fn a_message_without_retain_changes_no_retained_message() {
    for level in LEVELS {
        let mut simulation = Simulation::new(small_limits());
        let mut publisher = client(&mut simulation, level, "publisher");
        publish_retained(&mut publisher, &mut simulation, ("a", 1), b"kept");
        for topic in ["a", "b"] {
            for payload in [&b"x"[..], b""] {
                publisher.publish(&mut simulation, topic, payload);
                publisher.publish_1(&mut simulation, topic, 1, payload);
                publish_2(&mut publisher, &mut simulation, topic, 2, payload);
                release(&mut publisher, &mut simulation, 2);
            }
        }
        // The session of the publisher ends. That of the retained message does not depend on it.
        publisher.disconnect(&mut simulation);
        let mut reader = client(&mut simulation, level, "reader");
        reader.subscribe(&mut simulation, &[("#", 1)]);
        assert_eq!(receive_all(&mut reader, &mut simulation), [("a".to_owned(), b"kept".to_vec(), true)]);
        // With QoS 0, too, a message replaces the retained one.
        publish_retained(&mut reader, &mut simulation, ("a", 0), b"new");
        receive_all(&mut reader, &mut simulation);
        reader.subscribe(&mut simulation, &[("a", 1)]);
        assert_eq!(receive_all(&mut reader, &mut simulation), [("a".to_owned(), b"new".to_vec(), true)]);
        reader.disconnect(&mut simulation);
        simulation.end(&[]);
    }
}

#[test]
fn a_retained_message_is_sent_with_the_lower_quality_of_publisher_and_subscriber() {
    for level in LEVELS {
        let mut simulation = Simulation::new(small_limits());
        let mut publisher = client(&mut simulation, level, "publisher");
        for qos in 0..3 {
            publish_retained(&mut publisher, &mut simulation, (&qos.to_string(), qos), b"x");
        }
        for granted in 0..3 {
            let mut reader = client(&mut simulation, level, "reader");
            reader.subscribe(&mut simulation, &[("+", granted)]);
            for _ in 0..3 {
                let received = reader.receive(&mut simulation).expect("a retained message");
                let published: u8 = received.topic.parse().expect("a number");
                assert_eq!((received.qos, received.retain), (published.min(granted), true));
            }
            reader.lose(&mut simulation);
        }
        publisher.disconnect(&mut simulation);
        simulation.end(&[]);
    }
}

#[test]
fn a_will_has_the_quality_and_retain_of_its_flags() {
    for level in LEVELS {
        let mut simulation = Simulation::new(small_limits());
        for (qos, retain) in (0..3).flat_map(|qos| [false, true].map(|retain| (qos, retain))) {
            let mut watcher = client(&mut simulation, level, "watcher");
            watcher.subscribe(&mut simulation, &[("will", 2)]);
            let will = Some(("will", &b"gone"[..], qos, retain));
            let lost = MqttClient::log_in(&mut simulation, &Login { level, will, ..named("c") });
            lost.lose(&mut simulation);
            let received = watcher.receive(&mut simulation).expect("the will");
            assert_eq!((&*received.payload, received.qos, received.retain), (&b"gone"[..], qos, false));
            watcher.lose(&mut simulation);
            let mut late = client(&mut simulation, level, "late");
            late.subscribe(&mut simulation, &[("will", 2)]);
            let received = late.receive(&mut simulation).map(|will| (will.qos, will.retain));
            assert_eq!(received, retain.then_some((qos, true)));
            publish_retained(&mut late, &mut simulation, ("will", 0), b"");
            late.lose(&mut simulation);
        }
        simulation.end(&[]);
    }
}

#[test]
fn the_user_properties_of_a_will_keep_their_order() {
    let mut simulation = Simulation::new(small_limits());
    let mut watcher = client(&mut simulation, 5, "watcher");
    watcher.subscribe(&mut simulation, &[("will", 0)]);
    let user = |name: u8, value: u8| [0x26, 0, 1, name, 0, 1, value];
    let properties = [user(b'b', b'1'), user(b'a', b'2'), user(b'b', b'0'), user(b'a', b'2')].concat();
    let will = Some(("will", &b"gone"[..], 0, false));
    let login = Login { level: 5, will, will_properties: &properties, ..named("c") };
    MqttClient::log_in(&mut simulation, &login).lose(&mut simulation);
    let (_, received) = watcher.receive_with_properties(&mut simulation).expect("the will");
    assert_eq!(received, properties);
    watcher.disconnect(&mut simulation);
    simulation.end(&[]);
}

// ---- subscriptions and sessions

/// Messages wait in the session when the client subscribes to the same filter once more.
#[test]
fn a_repeated_subscription_loses_no_message_and_sends_retained_ones_again() {
    for level in LEVELS {
        let mut simulation = Simulation::new(small_limits());
        let mut publisher = client(&mut simulation, 4, "publisher");
        publish_retained(&mut publisher, &mut simulation, ("t/0", 1), b"retained");
        // With MQTT 5, most of the messages wait: the Receive Maximum is 20.
        let properties = [&EXPIRY_100_S[..], &[0x21, 0, 20]].concat();
        let login = kept_login(level, "reader");
        let login = if level == 5 { Login { properties: &properties, ..login } } else { login };
        let mut reader = MqttClient::log_in(&mut simulation, &login);
        reader.subscribe(&mut simulation, &[("t/+", 1)]);
        assert_eq!(receive_all(&mut reader, &mut simulation).len(), 1);
        for number in 0..50 {
            publisher.publish_1(&mut simulation, "t/1", 1, &[number]);
        }
        let sent: Vec<_> = core::iter::from_fn(|| reader.receive(&mut simulation)).collect();
        assert_eq!(sent.len(), if level == 5 { 20 } else { 50 });
        let mut rest = Vec::new();
        for options in [1, 2, 1] {
            assert_eq!(reader.subscribe(&mut simulation, &[("t/+", options)]), [options]);
            rest.extend(receive_all(&mut reader, &mut simulation));
        }
        sent.iter().for_each(|message| reader.acknowledge(&mut simulation, message.packet_id.unwrap()));
        rest.extend(receive_all(&mut reader, &mut simulation));
        let (again, rest): (Vec<_>, Vec<_>) = rest.into_iter().partition(|(_, _, retain)| *retain);
        assert!(!again.is_empty() && again.iter().all(|(_, payload, _)| payload == b"retained"));
        let numbers: Vec<u8> = rest.iter().map(|(_, payload, _)| payload[0]).collect();
        assert_eq!(numbers, (sent.len() as u8..50).collect::<Vec<u8>>());
        reader.disconnect(&mut simulation);
        end_session(&mut simulation, "reader");
        publisher.disconnect(&mut simulation);
        simulation.end(&[]);
    }
}

#[test]
fn unsubscribe_ends_the_subscriptions_with_exactly_its_filters() {
    for level in LEVELS {
        let mut simulation = Simulation::new(small_limits());
        let mut publisher = client(&mut simulation, 4, "publisher");
        let mut reader = client(&mut simulation, level, "reader");
        reader.subscribe(&mut simulation, &[("a/+", 1), ("b/#", 1), ("c", 1), ("d", 1)]);
        let received = |reader: &mut MqttClient, simulation: &mut Simulation, publisher: &mut MqttClient| {
            for topic in ["a/x", "b/y", "c", "d"] {
                publisher.publish_1(simulation, topic, 1, b"");
            }
            receive_all(reader, simulation).into_iter().map(|(topic, ..)| topic).collect::<Vec<_>>()
        };
        // None of these filters is that of a subscription.
        let codes = reader.unsubscribe(&mut simulation, &["a/x", "#", "A/+", "b/+", "b/y", "C", "+"]);
        assert_eq!(codes, if level == 5 { vec![0x11; 7] } else { Vec::new() });
        assert_eq!(received(&mut reader, &mut simulation, &mut publisher), ["a/x", "b/y", "c", "d"]);
        let codes = reader.unsubscribe(&mut simulation, &["x", "b/#", "d", "d"]);
        assert_eq!(codes, if level == 5 { vec![0x11, 0, 0, 0x11] } else { Vec::new() });
        assert_eq!(received(&mut reader, &mut simulation, &mut publisher), ["a/x", "c"]);
        reader.unsubscribe(&mut simulation, &["a/+"]);
        assert_eq!(received(&mut reader, &mut simulation, &mut publisher), ["c"]);
        reader.disconnect(&mut simulation);
        publisher.disconnect(&mut simulation);
        simulation.end(&[]);
    }
}

/// The answers have the packet identifier of the request, and a code for each filter in its order.
#[test]
fn suback_and_unsuback_have_the_packet_identifier_of_the_request() {
    for level in LEVELS {
        let mut simulation = Simulation::new(small_limits());
        let mut client = client(&mut simulation, level, "c");
        for packet_id in [1_u16, 255, 256, 65_535] {
            let [high, low] = packet_id.to_be_bytes();
            let filters =
                [string("a"), vec![2], string("b"), vec![0], string("#/b"), vec![1], string("c"), vec![1]];
            let body = [&[high, low][..], no_properties(level), &filters.concat()].concat();
            client.send(&mut simulation, &packet(0x82, &body));
            let refused = [0, 0x80, 0x8F][usize::from(level) - 3];
            let suback = [&[high, low][..], no_properties(level), &[2, 0, refused, 1]].concat();
            assert_eq!(client.expect(&mut simulation, 0x90).body, suback);
            let body = [&[high, low][..], no_properties(level), &string("b"), &string("x")].concat();
            client.send(&mut simulation, &packet(0xA2, &body));
            let codes: &[u8] = if level == 5 { &[0, 0, 0x11] } else { &[] };
            assert_eq!(client.expect(&mut simulation, 0xB0).body, [&[high, low][..], codes].concat());
        }
        client.disconnect(&mut simulation);
        simulation.end(&[]);
    }
}

#[test]
fn the_session_of_a_connected_client_does_not_expire() {
    for level in LEVELS {
        let mut simulation =
            Simulation::new(Limits { mqtt_session_expiry_max_ms: 100_000, ..small_limits() });
        let mut publisher = client(&mut simulation, 5, "publisher");
        let mut reader = kept_client(&mut simulation, level, "reader");
        reader.subscribe(&mut simulation, &[("t", 1)]);
        publish_2(&mut reader, &mut simulation, "nowhere", 7, b"");
        simulation.pass_ms(1_000_000_000);
        assert_eq!(publisher.publish_1(&mut simulation, "t", 1, b"x"), 0);
        assert_eq!(receive_all(&mut reader, &mut simulation).len(), 1);
        release(&mut reader, &mut simulation, 7);
        reader.disconnect(&mut simulation);
        simulation.pass_ms(99_000);
        assert_eq!(publisher.publish_1(&mut simulation, "t", 1, b"x"), 0);
        simulation.pass_ms(2_000);
        assert_eq!(publisher.publish_1(&mut simulation, "t", 1, b"x"), 0x10, "it has expired");
        publisher.disconnect(&mut simulation);
        simulation.end(&[]);
    }
}

/// Retained messages, shared subscriptions and messages of existing subscriptions match the same filters.
#[test]
fn every_kind_of_delivery_matches_the_filters_as_defined() {
    let topics = ["a", "a/", "a/b", "a/b/c", "/", "/a", "$x", "$x/a", "a/*/c", "a/b.c", "sport"];
    for (filter, matching) in [
        ("#", &["a", "a/", "a/b", "a/b/c", "/", "/a", "a/*/c", "a/b.c", "sport"][..]),
        ("+", &["a", "sport"]),
        ("+/a", &["/a"]),
        ("+/+", &["a/", "a/b", "/", "/a", "a/b.c"]),
        ("/+", &["/", "/a"]),
        ("/#", &["/", "/a"]),
        ("a/#", &["a", "a/", "a/b", "a/b/c", "a/*/c", "a/b.c"]),
        ("a/+", &["a/", "a/b", "a/b.c"]),
        ("a/+/c", &["a/b/c", "a/*/c"]),
        ("a/*/c", &["a/*/c"]),
        ("$x/#", &["$x", "$x/a"]),
        ("$x/+", &["$x/a"]),
        ("sport/#", &["sport"]),
    ] {
        let mut simulation = Simulation::new(small_limits());
        let mut publisher = client(&mut simulation, 5, "publisher");
        let mut live = client(&mut simulation, 4, "live");
        live.subscribe(&mut simulation, &[(filter, 1)]);
        let mut shared = client(&mut simulation, 5, "shared");
        shared.subscribe(&mut simulation, &[(&format!("$share/g/{filter}"), 1)]);
        for topic in topics {
            publish_retained(&mut publisher, &mut simulation, (topic, 1), topic.as_bytes());
        }
        let mut late = client(&mut simulation, 5, "late");
        late.subscribe(&mut simulation, &[(filter, 1)]);
        for reader in [&mut live, &mut shared, &mut late] {
            let mut received: Vec<_> =
                receive_all(reader, &mut simulation).into_iter().map(|(topic, ..)| topic).collect();
            received.sort_unstable_by_key(|topic| topics.iter().position(|known| known == topic));
            assert_eq!(received, matching, "{filter}");
        }
        [live, shared, late, publisher].into_iter().for_each(|client| client.disconnect(&mut simulation));
        simulation.end(&[]);
    }
}

// ---- shared subscriptions

#[test]
fn a_shared_subscription_has_the_quality_that_was_granted() {
    let mut simulation = Simulation::new(small_limits());
    let mut publisher = client(&mut simulation, 5, "publisher");
    for granted in 0..3 {
        let mut member = client(&mut simulation, 5, "member");
        assert_eq!(member.subscribe(&mut simulation, &[("$share/g/t", granted)]), [granted]);
        publisher.publish(&mut simulation, "t", b"x");
        publisher.publish_1(&mut simulation, "t", 1, b"x");
        publish_2(&mut publisher, &mut simulation, "t", 2, b"x");
        release(&mut publisher, &mut simulation, 2);
        for qos in 0..3 {
            assert_eq!(member.receive(&mut simulation).expect("the message").qos, granted.min(qos));
        }
        member.lose(&mut simulation);
    }
    publisher.disconnect(&mut simulation);
    simulation.end(&[]);
}

/// A client is lost while it has a message of its group. The message is not for another client, even if the session ends.
#[test]
fn a_message_of_a_group_is_completed_by_its_client_only() {
    for is_deleted in [false, true] {
        let mut simulation = Simulation::new(small_limits());
        let mut publisher = client(&mut simulation, 5, "publisher");
        let mut first = kept_client(&mut simulation, 5, "first");
        first.subscribe(&mut simulation, &[("$share/g/t", 2)]);
        publisher.publish_1(&mut simulation, "t", 1, b"x");
        publish_2(&mut publisher, &mut simulation, "t", 2, b"y");
        let sent = [(); 2].map(|()| first.receive(&mut simulation).expect("the message"));
        let mut second = client(&mut simulation, 5, "second");
        second.subscribe(&mut simulation, &[("$share/g/t", 2)]);
        first.lose(&mut simulation);
        if is_deleted {
            end_session(&mut simulation, "first");
        } else {
            let mut first = kept_client(&mut simulation, 5, "first");
            for earlier in &sent {
                let again = first.receive(&mut simulation).expect("it was not acknowledged");
                assert_eq!((again.packet_id, again.qos), (earlier.packet_id, earlier.qos));
                assert!(again.is_duplicate);
            }
            first.lose(&mut simulation);
        }
        simulation.pass_ms(200_000);
        assert_eq!(second.receive(&mut simulation), None);
        second.disconnect(&mut simulation);
        publisher.disconnect(&mut simulation);
        simulation.end(&[]);
    }
}

#[test]
fn a_message_that_a_client_of_a_group_refuses_is_dropped() {
    let mut simulation = Simulation::new(small_limits());
    let mut publisher = client(&mut simulation, 5, "publisher");
    let mut members = ["one", "two"].map(|client_id| client(&mut simulation, 5, client_id));
    for member in &mut members {
        member.subscribe(&mut simulation, &[("$share/g/t", 2)]);
    }
    for qos in [1, 2] {
        let publish = publisher.publish_packet(qos << 1, "t", qos.into(), b"x");
        publisher.send(&mut simulation, &publish);
        while publisher.next(&mut simulation).is_some() {}
        let mut count = 0;
        for member in &mut members {
            let Some(message) = member.receive(&mut simulation) else { continue };
            count += 1;
            let [high, low] = message.packet_id.unwrap().to_be_bytes();
            member.send(&mut simulation, &packet(0x30 + (qos << 4), &[high, low, 0x83]));
        }
        assert_eq!(count, 1);
        for member in &mut members {
            assert_eq!(member.next(&mut simulation), None);
        }
    }
    members.into_iter().chain([publisher]).for_each(|client| client.disconnect(&mut simulation));
    simulation.end(&[]);
}

/// The reason string of a CONNACK would make it larger.
#[test]
fn a_refused_client_gets_no_larger_packet_than_it_accepts() {
    let mut simulation = Simulation::new(small_limits());
    let maximum_20 = [0x27, 0, 0, 0, 20];
    let with_authentication = [&maximum_20[..], &[0x15], &string("SCRAM-SHA-1")].concat();
    let long_name = "n".repeat(238);
    for (properties, client_id, reason) in
        [(&with_authentication[..], "c", 0x8C), (&maximum_20, &long_name, 0x85)]
    {
        let login = Login { level: 5, properties, ..named(client_id) };
        let mut client = MqttClient::open(&mut simulation, 5);
        client.send(&mut simulation, &login.packet());
        simulation.pass_ms(REFUSAL_MS);
        let connack = client.expect(&mut simulation, 0x20);
        assert_eq!(connack.body, [0, reason, 0]);
        client.assert_closed(&mut simulation);
    }
}
