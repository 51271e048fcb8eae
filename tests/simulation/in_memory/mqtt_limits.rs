//! MQTT messages that are larger than a session may keep, long lists of topic filters, and packets that are wrong or too long.

use leveret_amqp::{Table, Writer};
use leveret_core::limits::Limits;
use leveret_storage::Settings;
use leveret_test_support::simulated_server::mqtt::{Login, MqttClient, packet};
use leveret_test_support::simulated_server::*;

use super::mqtt::{log_in_kept, named};

/// More than a session may keep.
const LARGE: usize = 200_000;

fn limits() -> Limits {
    Limits { mqtt_session_bytes_max: 64 << 10, ..small_limits() }
}

fn of_level(client_id: &str, level: u8) -> Login<'_> {
    Login { level, ..named(client_id) }
}

// ---- large messages

/// Also if several arrive in one turn, the sockets take only a part at once, and deliveries wait for the disk.
#[test]
fn messages_beyond_the_bytes_of_a_session_reach_connected_clients() {
    for (qos, with_disk) in [(0_u8, false), (1, false), (2, false), (1, true), (2, true)] {
        let mut simulation = Simulation::new(Limits { body_bytes_max: 8 << 20, ..limits() });
        let settings = Settings { segment_bytes: 1 << 20, segments_max: 64, ..Settings::default() };
        let _disk = with_disk.then(|| simulation.keep_on_disk(settings));
        let mut clean = MqttClient::log_in(&mut simulation, &named("clean"));
        let (mut with_session, _) = log_in_kept(&mut simulation, "kept");
        for client in [&mut clean, &mut with_session] {
            assert_eq!(client.subscribe(&mut simulation, &[("large", qos)]), [qos]);
        }
        let mut publisher = MqttClient::log_in(&mut simulation, &of_level("publisher", 5));
        let packets: Vec<u8> = (1..=5)
            .flat_map(|id| publisher.publish_packet(qos << 1, "large", id, &vec![id as u8; LARGE]))
            .collect();
        publisher.send(&mut simulation, &packets);
        simulation.pass_ms(2_000);
        for _ in 0..if qos > 0 { 5 } else { 0 } {
            let answer = publisher.next(&mut simulation).expect("an answer");
            assert_eq!(answer.body.get(2).copied().unwrap_or(0), 0, "{answer:?}");
        }
        for client in [&mut clean, &mut with_session] {
            for number in 1..=5 {
                let message = client.receive(&mut simulation).expect("the message");
                assert_eq!((message.payload.len(), message.payload[0]), (LARGE, number), "QoS {qos}");
                if qos == 1 {
                    client.acknowledge(&mut simulation, message.packet_id.expect("QoS 1"));
                }
            }
        }
    }
}

#[test]
fn a_message_that_a_session_cannot_keep_is_refused_and_empties_no_queue() {
    let mut simulation = Simulation::new(limits());
    let (mut absent, _) = log_in_kept(&mut simulation, "absent");
    absent.subscribe(&mut simulation, &[("t", 1)]);
    absent.disconnect(&mut simulation);
    let mut publisher = MqttClient::log_in(&mut simulation, &of_level("publisher", 5));
    for number in 1..=100 {
        assert_eq!(publisher.publish_1(&mut simulation, "t", number, b"small"), 0);
    }
    let large = publisher.publish_packet(2, "t", 101, &vec![7; LARGE]);
    publisher.send(&mut simulation, &large);
    assert_eq!(publisher.expect(&mut simulation, 0x40).body[2], 0x97);
    // Before MQTT 5 there is no such answer. With QoS 0 the message is dropped, and the client stays connected.
    let mut older = MqttClient::log_in(&mut simulation, &named("older"));
    older.publish(&mut simulation, "t", &vec![7; LARGE]);
    assert!(!older.is_closed(&simulation));
    let large = older.publish_packet(2, "t", 1, &vec![7; LARGE]);
    older.send(&mut simulation, &large);
    older.assert_closed(&mut simulation);
    // Others get the message, and then it is no failure.
    let mut other = MqttClient::log_in(&mut simulation, &named("other"));
    other.subscribe(&mut simulation, &[("t", 0)]);
    let large = publisher.publish_packet(2, "t", 102, &vec![7; LARGE]);
    publisher.send(&mut simulation, &large);
    let puback = publisher.expect(&mut simulation, 0x40);
    assert_eq!(puback.body.get(2).copied().unwrap_or(0), 0);
    assert_eq!(other.receive(&mut simulation).expect("the message").payload.len(), LARGE);
    let (mut absent, is_present) = log_in_kept(&mut simulation, "absent");
    assert!(is_present);
    for _ in 0..100 {
        let message = absent.receive(&mut simulation).expect("a small message");
        assert_eq!(message.payload, b"small");
        absent.acknowledge(&mut simulation, message.packet_id.expect("QoS 1"));
    }
    assert_eq!(absent.receive(&mut simulation), None);
}

#[test]
fn the_only_message_of_an_absent_client_is_kept_whatever_its_length() {
    let mut simulation = Simulation::new(limits());
    let (mut absent, _) = log_in_kept(&mut simulation, "absent");
    absent.subscribe(&mut simulation, &[("t", 1)]);
    absent.disconnect(&mut simulation);
    let mut publisher = MqttClient::log_in(&mut simulation, &of_level("publisher", 5));
    assert_eq!(publisher.publish_1(&mut simulation, "t", 1, &vec![7; LARGE]), 0);
    let (mut absent, _) = log_in_kept(&mut simulation, "absent");
    assert_eq!(absent.receive(&mut simulation).expect("the message").payload.len(), LARGE);
}

/// PUBREC was lost, and the client sends the message again when there is no memory for it. If it were refused, the packet
/// identifier would be free for the client only, and the next message with it would be lost.
#[test]
fn a_message_with_qos_2_that_was_published_is_not_refused_later() {
    let mut simulation = Simulation::new(Limits { body_bytes_max: 1 << 20, ..small_limits() });
    let mut reader = MqttClient::log_in(&mut simulation, &named("reader"));
    reader.subscribe(&mut simulation, &[("t", 1)]);
    let (mut away, _) = log_in_kept(&mut simulation, "away");
    away.subscribe(&mut simulation, &[("fill", 1)]);
    away.disconnect(&mut simulation);
    let mut publisher = MqttClient::log_in(&mut simulation, &of_level("publisher", 5));
    publisher.subscribe(&mut simulation, &[("own", 1)]);
    let large = vec![7; 2 * LARGE];
    let publish = publisher.publish_packet(4, "elsewhere", 9, &large);
    publisher.send(&mut simulation, &publish);
    assert_eq!(publisher.expect(&mut simulation, 0x50).body[..2], [0, 9]);
    // A client with an unacknowledged delivery does not wait for memory.
    assert_eq!(publisher.publish_1(&mut simulation, "own", 1, b"x"), 0);
    let own = publisher.receive(&mut simulation).expect("its own message");
    let mut other = MqttClient::log_in(&mut simulation, &of_level("other", 5));
    for number in 1..=40 {
        let fill = other.publish_packet(2, "fill", number, &[7; 20_000]);
        other.send(&mut simulation, &fill);
    }
    let refused = publisher.publish_packet(4, "elsewhere", 10, &large);
    publisher.send(&mut simulation, &refused);
    assert_eq!(publisher.expect(&mut simulation, 0x50).body[..3], [0, 10, 0x97]);
    let again = publisher.publish_packet(4 | 8, "elsewhere", 9, &large);
    publisher.send(&mut simulation, &again);
    assert_eq!(publisher.expect(&mut simulation, 0x50).body, [0, 9]);
    for packet_id in [9, 10] {
        if packet_id == 9 {
            publisher.send(&mut simulation, &packet(0x62, &[0, packet_id]));
            publisher.expect(&mut simulation, 0x70);
        }
        let small = publisher.publish_packet(4, "t", packet_id.into(), &[packet_id]);
        publisher.send(&mut simulation, &small);
        assert_eq!(publisher.expect(&mut simulation, 0x50).body, [0, packet_id]);
        let received = reader.receive(&mut simulation).expect("the message");
        assert_eq!(received.payload, [packet_id]);
        reader.acknowledge(&mut simulation, received.packet_id.expect("QoS 1"));
    }
    publisher.acknowledge(&mut simulation, own.packet_id.expect("QoS 1"));
}

/// A client with Receive Maximum 1 gets no message before its PUBCOMP, which is behind a PUBLISH for which there is no memory,
/// because the messages of its session use it.
#[test]
fn a_client_that_has_not_sent_pubcomp_does_not_wait_for_its_own_messages() {
    let mut simulation = Simulation::new(Limits { body_bytes_max: 1 << 20, ..small_limits() });
    let login = Login { properties: &[0x21, 0, 1], ..of_level("client", 5) };
    let mut client = MqttClient::log_in(&mut simulation, &login);
    client.subscribe(&mut simulation, &[("own", 2)]);
    let mut other = MqttClient::log_in(&mut simulation, &of_level("other", 5));
    for number in 1..=40 {
        let fill = other.publish_packet(4, "own", number, &[number as u8; 20_000]);
        other.send(&mut simulation, &fill);
    }
    let first = client.receive(&mut simulation).expect("the first message");
    let packet_id = first.packet_id.expect("QoS 2").to_be_bytes();
    client.send(&mut simulation, &packet(0x50, &packet_id));
    assert_eq!(client.expect(&mut simulation, 0x62).body, packet_id);
    let large = client.publish_packet(2, "elsewhere", 1, &vec![7; 2 * LARGE]);
    client.send(&mut simulation, &[large, packet(0x70, &packet_id)].concat());
    assert_eq!(client.expect(&mut simulation, 0x40).body[..3], [0, 1, 0x97]);
    assert_eq!(client.receive(&mut simulation).expect("the next message").payload[0], 2);
}

/// As in RabbitMQ: `drop-head` drops a message that alone exceeds the limit of bytes, but not if a consumer takes it.
#[test]
fn a_queue_of_amqp_with_a_limit_of_bytes_delivers_larger_messages_to_a_ready_consumer() {
    let mut simulation = Simulation::new(Limits { output_buffer_bytes: 64 << 10, ..small_limits() });
    let client = simulation.open(&[1]);
    let mut bytes = [0; 64];
    let mut writer = Writer::new(&mut bytes);
    writer.table(|table| table.int("x-max-length-bytes", 1_000)).expect("it fits");
    let arguments = Table::trusted(&writer.written()[4..]);
    simulation.ask(client, 1, &declare_with("q", false, arguments));
    simulation.publish_to(client, 1, "q", &vec![7; LARGE]);
    simulation.run();
    assert_eq!(simulation.counts(client, 1, "q"), (0, 0), "nobody takes it");
    simulation.consume(client, 1, "q", "tag", true);
    for _ in 0..2 {
        simulation.publish_to(client, 1, "q", &vec![7; LARGE]);
    }
    simulation.run();
    assert_eq!(simulation.deliveries(client).len(), 2);
}

// ---- long lists of filters

/// Returns a SUBSCRIBE with these filters at QoS 0, 1, 2, 0 …
fn subscribe(level: u8, filters: &[String]) -> Vec<u8> {
    let mut body = vec![0, 7];
    if level == 5 {
        body.push(0);
    }
    for (number, filter) in filters.iter().enumerate() {
        body.extend((filter.len() as u16).to_be_bytes());
        body.extend(filter.as_bytes());
        body.push((number % 3) as u8);
    }
    packet(0x82, &body)
}

/// Home Assistant subscribes to 500 filters in a packet, older versions to all at once.
#[test]
fn a_list_of_filters_is_limited_by_the_length_of_the_packet_only() {
    for (count, output_buffer_bytes) in [(500, 256 << 10), (4_000, 256 << 10), (4_000, 2 << 10)] {
        for level in [4, 5] {
            let limits = Limits {
                bindings_max: 32_768,
                names_bytes_max: 4 << 20,
                output_buffer_bytes,
                ..small_limits()
            };
            let mut simulation = Simulation::new(limits);
            let filters: Vec<_> = (0..count).map(|number| format!("homeassistant/{number}/+")).collect();
            // Another client has a list at the same time, and a third one does not read the answer to its own.
            let mut unread = MqttClient::log_in(&mut simulation, &of_level("unread", level));
            unread.send_without_turn(&mut simulation, &subscribe(level, &filters));
            let mut client = MqttClient::log_in(&mut simulation, &of_level("client", level));
            client.send(&mut simulation, &subscribe(level, &filters));
            let suback = client.expect(&mut simulation, 0x90);
            let codes = &suback.body[if level == 5 { 3 } else { 2 }..];
            assert_eq!(codes.len(), count);
            let wrong = codes.iter().enumerate().find(|(number, code)| **code != (number % 3) as u8);
            assert_eq!(wrong, None, "{count} {level} {output_buffer_bytes}");
            let mut publisher = MqttClient::log_in(&mut simulation, &named("publisher"));
            publisher.publish(&mut simulation, &format!("homeassistant/{}/state", count - 1), b"on");
            assert_eq!(client.receive(&mut simulation).expect("the message").payload, b"on");
            let filters: Vec<_> = filters.iter().map(|filter| &**filter).collect();
            let codes = client.unsubscribe(&mut simulation, &filters);
            assert_eq!(codes.len(), if level == 5 { count } else { 0 });
            assert!(codes.iter().all(|code| *code == 0));
            for client in [unread, client, publisher] {
                client.lose(&mut simulation);
            }
            simulation.end(&[]);
        }
    }
}

/// The memory for answers with more than 200 codes is given back whatever the length of the answer.
#[test]
fn long_lists_can_be_sent_again_and_again() {
    for level in [4, 5] {
        let mut simulation = Simulation::new(small_limits());
        let mut client = MqttClient::log_in(&mut simulation, &of_level("client", level));
        for count in [201, 230, 300] {
            let filters: Vec<_> = (0..count).map(|number| format!("t/{number}")).collect();
            let texts: Vec<_> = filters.iter().map(|filter| &**filter).collect();
            for _ in 0..700 {
                client.send(&mut simulation, &subscribe(level, &filters));
                client.expect(&mut simulation, 0x90);
                client.unsubscribe(&mut simulation, &texts);
            }
        }
    }
}

#[test]
fn filters_for_which_there_is_no_memory_are_refused_one_by_one_and_an_alarm_names_the_client() {
    for (level, code) in [(4, 0x80), (5, 0x97)] {
        let limits = Limits { bindings_max: 32_768, names_bytes_max: 4 << 20, ..small_limits() };
        let mut simulation = Simulation::with_extents(limits, 90);
        let filters: Vec<_> = (0..3_000).map(|number| format!("t/{number}")).collect();
        let mut client = MqttClient::log_in(&mut simulation, &of_level("home", level));
        client.send(&mut simulation, &subscribe(level, &filters));
        let suback = client.expect(&mut simulation, 0x90);
        let codes = &suback.body[if level == 5 { 3 } else { 2 }..];
        assert_eq!(codes.len(), 3_000);
        let taken = codes.iter().filter(|code| **code < 3).count();
        assert!((100..2_900).contains(&taken), "{taken}");
        assert!(codes.iter().all(|found| *found < 3 || *found == code) && codes[2_999] == code);
        let (_, alarm, count) =
            simulation.engine.broker().session_without_subscriptions().expect("the alarm");
        assert_eq!((alarm, count), ("home", taken));
        let texts: Vec<_> = filters.iter().map(|filter| &**filter).collect();
        client.unsubscribe(&mut simulation, &texts[..200]);
        assert_eq!(client.subscribe(&mut simulation, &[("again", 1)]), [1]);
        assert_eq!(simulation.engine.broker().session_without_subscriptions(), None);
    }
}

// ---- wrong packets

#[test]
fn a_filter_without_a_character_closes_the_connection() {
    for level in [4, 5] {
        for first_octet in [0x82, 0xA2] {
            let mut simulation = Simulation::new(small_limits());
            let mut client = MqttClient::log_in(&mut simulation, &of_level("c", level));
            let properties: &[u8] = if level == 5 { &[0] } else { &[] };
            let filter: &[u8] = if first_octet == 0x82 { &[0, 0, 0] } else { &[0, 0] };
            client.send(&mut simulation, &packet(first_octet, &[&[0, 1][..], properties, filter].concat()));
            if level == 5 {
                assert_eq!(client.expect(&mut simulation, 0xE0).body[0], 0x82);
            }
            client.assert_closed(&mut simulation);
        }
    }
}

#[test]
fn a_puback_for_a_message_with_qos_2_is_a_protocol_error() {
    for level in [4, 5] {
        let mut simulation = Simulation::new(small_limits());
        let mut client = MqttClient::log_in(&mut simulation, &of_level("c", level));
        client.subscribe(&mut simulation, &[("t", 2)]);
        let mut publisher = MqttClient::log_in(&mut simulation, &named("p"));
        let publish = publisher.publish_packet(4, "t", 1, b"x");
        publisher.send(&mut simulation, &publish);
        let message = client.receive(&mut simulation).expect("the message");
        // An identifier that no message has is no error.
        client.acknowledge(&mut simulation, 999);
        assert!(!client.is_closed(&simulation));
        client.acknowledge(&mut simulation, message.packet_id.expect("QoS 2"));
        if level == 5 {
            assert_eq!(client.expect(&mut simulation, 0xE0).body[0], 0x82);
        }
        client.assert_closed(&mut simulation);
    }
}

/// Returns CONNECT with another protocol level.
fn with_level(login: &Login<'_>, level: u8) -> Vec<u8> {
    let mut packet = login.packet();
    let at = 2 + 2 + if login.level == 3 { 6 } else { 4 };
    assert_eq!(packet[at], login.level);
    packet[at] = level;
    packet
}

/// A bridge of mosquitto sets bit 7 of the level. It gets no message that it has published, and retained ones keep the flag.
#[test]
fn a_bridge_of_mosquitto_is_accepted_and_gets_no_message_back() {
    for (level, sent) in [(3, 0x83), (4, 0x84)] {
        let mut simulation = Simulation::new(small_limits());
        let mut bridge = MqttClient::open(&mut simulation, level);
        bridge.send(&mut simulation, &with_level(&of_level("bridge", level), sent));
        assert_eq!(bridge.expect(&mut simulation, 0x20).body, [0, 0]);
        bridge.subscribe(&mut simulation, &[("#", 0)]);
        bridge.publish(&mut simulation, "own", b"own");
        let mut other = MqttClient::log_in(&mut simulation, &named("other"));
        let retained = other.publish_packet(1, "other", 0, b"other");
        other.send(&mut simulation, &retained);
        let message = bridge.receive(&mut simulation).expect("the message of the other client");
        assert_eq!((&*message.topic, message.retain), ("other", true));
        assert_eq!(bridge.receive(&mut simulation), None);
    }
    // MQTT 3.1 has no rule for bit 0 of the flags.
    let mut simulation = Simulation::new(small_limits());
    let mut client = MqttClient::open(&mut simulation, 3);
    let mut connect = of_level("c", 3).packet();
    connect[11] |= 1;
    client.send(&mut simulation, &connect);
    assert_eq!(client.expect(&mut simulation, 0x20).body, [0, 0]);
}

/// The client is told, and disconnected after five seconds. Otherwise it would come again at once.
#[test]
fn a_client_with_a_topic_or_connect_that_is_too_long_is_refused_slowly() {
    let topic = "t/".repeat(200);
    for level in [4, 5] {
        let mut simulation = Simulation::new(small_limits());
        let mut client = MqttClient::log_in(&mut simulation, &of_level("c", level));
        let publish = client.publish_packet(2, &topic, 1, b"x");
        client.send(&mut simulation, &publish);
        if level == 5 {
            assert_eq!(client.expect(&mut simulation, 0x40).body[2], 0x90);
            assert!(!client.is_closed(&simulation), "only the message is refused");
        } else {
            simulation.pass_ms(4_900);
            assert!(!client.is_closed(&simulation));
            simulation.pass_ms(200);
            client.assert_closed(&mut simulation);
        }
        let will = vec![7; 65_535];
        let login = Login { will: Some(("w", &will, 0, false)), ..of_level("c", level) };
        let mut client = MqttClient::open(&mut simulation, level);
        client.send(&mut simulation, &login.packet());
        assert_eq!(client.next(&mut simulation), None);
        simulation.pass_ms(5_100);
        if level == 5 {
            assert_eq!(client.expect(&mut simulation, 0x20).body[1], 0x95);
        }
        client.assert_closed(&mut simulation);
    }
}

#[test]
fn clients_cannot_publish_to_the_topics_of_the_server() {
    for level in [4, 5] {
        let mut simulation = Simulation::new(small_limits());
        let mut watcher = MqttClient::log_in(&mut simulation, &named("watcher"));
        watcher.subscribe(&mut simulation, &[("$SYS/#", 0), ("$SYSTEM/#", 0), ("$other", 0)]);
        let mut client = MqttClient::log_in(&mut simulation, &of_level("c", level));
        for topic in ["$SYSTEM/x", "$other"] {
            client.publish(&mut simulation, topic, b"x");
            assert_eq!(watcher.receive(&mut simulation).expect("no topic of the server").topic, topic);
        }
        let publish = client.publish_packet(3, "$SYS/broker/version", 1, b"x");
        client.send(&mut simulation, &publish);
        match level {
            5 => assert_eq!(client.expect(&mut simulation, 0x40).body[2], 0x87),
            _ => {
                simulation.pass_ms(5_100);
                client.assert_closed(&mut simulation);
            }
        }
        assert_eq!(watcher.receive(&mut simulation), None);
        let will = Some(("$SYS/x", &b"gone"[..], 0, false));
        let (mut client, connack) =
            MqttClient::connect(&mut simulation, &Login { will, ..of_level("d", level) });
        assert_eq!(connack.body[1], if level == 5 { 0x87 } else { 5 });
        client.assert_closed(&mut simulation);
    }
}

/// Sends octets in pieces as a slow link delivers them.
fn send_in_pieces(client: &mut MqttClient, simulation: &mut Simulation, octets: &[u8]) {
    for piece in octets.chunks(1_460) {
        client.send_octets(simulation, piece);
    }
}

/// Returns SUBSCRIBE with QoS 1, or UNSUBSCRIBE.
fn filters_packet(level: u8, first_octet: u8, filters: &[String]) -> Vec<u8> {
    let mut body = vec![0, 9];
    body.extend((level == 5).then_some(0));
    for filter in filters {
        body.extend((filter.len() as u16).to_be_bytes());
        body.extend(filter.as_bytes());
        body.extend((first_octet == 0x82).then_some(1));
    }
    packet(first_octet, &body)
}

/// Returns a SUBSCRIBE of MQTT 5 that is larger than a frame because of its user properties, and has no filter.
fn without_filters() -> Vec<u8> {
    let property = [&[0x26, 0, 1, b'k', 0x10, 0][..], &[b'v'; 4_096]].concat();
    let properties = property.repeat(9);
    let len =
        [properties.len() as u8 | 0x80, (properties.len() >> 7) as u8 | 0x80, (properties.len() >> 14) as u8];
    packet(0x82, &[&[0, 9][..], &len, &properties].concat())
}

fn with_small_frames() -> Limits {
    Limits { frame_max: 32 << 10, bindings_max: 4_096, ..wide_limits() }
}

/// Home Assistant subscribes to the topics of all its entities with one packet.
#[test]
fn a_subscribe_larger_than_a_frame_is_handled_as_it_arrives() {
    let topics: Vec<String> =
        (0..3_000).map(|number| format!("homes/{number:04}/{}", "x".repeat(50))).collect();
    for level in [4, 5] {
        let mut simulation = Simulation::new(with_small_frames());
        let mut client = MqttClient::log_in(&mut simulation, &of_level("c", level));
        let subscribe = filters_packet(level, 0x82, &topics);
        assert!(subscribe.len() > 5 * (32 << 10));
        send_in_pieces(&mut client, &mut simulation, &[&subscribe[..], &[0xC0, 0]].concat());
        let suback = client.expect(&mut simulation, 0x90);
        let head_len = if level == 5 { 3 } else { 2 };
        assert_eq!((&suback.body[..2], suback.body.len()), (&[0, 9][..], head_len + topics.len()));
        assert!(suback.body[head_len..].iter().all(|code| *code == 1));
        client.expect(&mut simulation, 0xD0);
        let mut publisher = MqttClient::log_in(&mut simulation, &of_level("publisher", level));
        for topic in [&topics[0], &topics[2_999]] {
            publisher.publish(&mut simulation, topic, b"on");
            assert_eq!(client.receive(&mut simulation).expect("a message").topic, *topic);
        }
        send_in_pieces(&mut client, &mut simulation, &filters_packet(level, 0xA2, &topics));
        let unsuback = client.expect(&mut simulation, 0xB0);
        assert_eq!(unsuback.body.len(), if level == 5 { 3 + topics.len() } else { 2 });
        publisher.publish(&mut simulation, &topics[7], b"on");
        assert_eq!(client.receive(&mut simulation), None);
        // The capacity for its codes is free again.
        send_in_pieces(&mut client, &mut simulation, &subscribe);
        client.expect(&mut simulation, 0x90);
    }
}

#[test]
fn a_large_subscribe_that_is_wrong_or_never_complete_ends_its_connection_only() {
    let long = |count: usize| -> Vec<String> { (0..count).map(|number| format!("{number:060}")).collect() };
    let subscribe = filters_packet(5, 0x82, &long(1_000));
    let mut unterminated = subscribe.clone();
    let at = unterminated.len() - 63;
    unterminated[at + 1] += 1;
    let mut not_text = subscribe.clone();
    not_text[at + 10] = 0xFF;
    let short: Vec<String> = (0..20_000).map(|number| format!("{}", number % 10)).collect();
    for (what, packet, reason) in [
        ("the last filter is too long", unterminated, 0x81),
        ("not UTF-8", not_text, 0x81),
        ("too many short filters", filters_packet(5, 0x82, &short), 0x95),
        ("larger than 8 frames", filters_packet(5, 0x82, &long(5_000)), 0x95),
        ("incomplete", subscribe[..50_000].to_vec(), 0x80),
        ("properties larger than a frame", without_filters(), 0x95),
    ] {
        let mut simulation = Simulation::new(with_small_frames());
        let mut other = MqttClient::log_in(&mut simulation, &of_level("other", 5));
        let login = Login { keep_alive_s: 600, ..of_level("c", 5) };
        let mut client = MqttClient::log_in(&mut simulation, &login);
        send_in_pieces(&mut client, &mut simulation, &packet);
        // An octet now and then does not extend the time.
        for octet in &subscribe[50_000..50_020] {
            if !client.is_closed(&simulation) {
                simulation.pass_ms(9_000);
                client.send_octets(&mut simulation, &[*octet]);
            }
        }
        assert_eq!(client.expect(&mut simulation, 0xE0).body[0], reason, "{what}");
        client.assert_closed(&mut simulation);
        send_in_pieces(&mut other, &mut simulation, &filters_packet(5, 0x82, &long(3_500)));
        assert_eq!(other.expect(&mut simulation, 0x90).body.len(), 3 + 3_500, "{what}");
    }
}

/// The rest of the packet is late because the whole machine was paused, and comes afterwards.
#[test]
fn a_pause_does_not_end_a_large_subscribe() {
    let topics: Vec<String> = (0..1_000).map(|number| format!("{number:060}")).collect();
    let subscribe = filters_packet(5, 0x82, &topics);
    let mut simulation = Simulation::new(with_small_frames());
    let login = Login { keep_alive_s: 0, ..of_level("c", 5) };
    let mut client = MqttClient::log_in(&mut simulation, &login);
    send_in_pieces(&mut client, &mut simulation, &subscribe[..50_000]);
    simulation.pause_ms(500_000);
    simulation.pass_ms(20_000);
    assert!(!client.is_closed(&simulation));
    send_in_pieces(&mut client, &mut simulation, &subscribe[50_000..]);
    assert_eq!(client.expect(&mut simulation, 0x90).body.len(), 3 + 1_000);
}
