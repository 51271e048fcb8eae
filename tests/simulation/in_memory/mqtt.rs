//! MQTT clients: packets and their answers, subscriptions, exchange with AMQP clients, slow and faulty clients.

use std::collections::BTreeSet;

use leveret_amqp::Method;
use leveret_broker::DeleteIf;
use leveret_core::limits::Limits;
use leveret_core::mem::{COMMAND_EXTENTS, Memory};
use leveret_storage::Settings;
use leveret_test_support::simulated_server::mqtt::{Login, MqttClient, packet};
use leveret_test_support::simulated_server::{Publish, Said};
use leveret_test_support::simulated_server::{Simulation, small_limits};

/// The levels of MQTT 3.1, 3.1.1 and 5.
pub(super) const LEVELS: [u8; 3] = [3, 4, 5];

pub(super) fn named(client_id: &str) -> Login<'_> {
    Login { client_id, ..Login::default() }
}

fn subscriber(simulation: &mut Simulation, level: u8, filters: &[(&str, u8)]) -> MqttClient {
    let mut client =
        MqttClient::log_in(simulation, &Login { level, client_id: "subscriber", ..Login::default() });
    let codes = client.subscribe(simulation, filters);
    assert_eq!(codes, filters.iter().map(|(_, qos)| *qos).collect::<Vec<_>>());
    client
}

/// Deletes a queue as an operator does.
pub(super) fn delete_queue(simulation: &mut Simulation, queue: &str) {
    let (broker, mut context) = simulation.engine.broker_mut();
    broker.operator_delete_queue(&mut context, "/", queue, DeleteIf::default()).expect("it exists");
    simulation.run();
}

#[test]
fn a_message_is_delivered_at_the_lower_quality_of_publisher_and_subscriber() {
    for level in LEVELS {
        let mut simulation = Simulation::new(small_limits());
        let mut publisher = MqttClient::log_in(&mut simulation, &Login { level, ..named("publisher") });
        let mut subscriber = subscriber(&mut simulation, level, &[("zero/+", 0), ("one/+", 1)]);
        for (topic, published, delivered) in
            [("zero/x", 0, 0), ("zero/x", 1, 0), ("one/x", 0, 0), ("one/x", 1, 1)]
        {
            match published {
                0 => publisher.publish(&mut simulation, topic, b"body"),
                _ => assert_eq!(publisher.publish_1(&mut simulation, topic, 9, b"body"), 0),
            }
            let received = subscriber.receive(&mut simulation).expect("the message");
            assert_eq!(
                (&*received.topic, &*received.payload, received.qos),
                (topic, &b"body"[..], delivered)
            );
            assert!(!received.is_duplicate && !received.retain);
            if let Some(packet_id) = received.packet_id {
                subscriber.acknowledge(&mut simulation, packet_id);
            }
        }
        assert_eq!(subscriber.receive(&mut simulation), None);
        publisher.disconnect(&mut simulation);
        subscriber.disconnect(&mut simulation);
        simulation.end(&[]);
    }
}

#[test]
fn a_message_that_matches_several_subscriptions_is_sent_once_with_the_highest_quality() {
    let mut simulation = Simulation::new(small_limits());
    let mut subscriber = subscriber(&mut simulation, 4, &[("#", 0), ("a/+", 1), ("a/b", 0)]);
    let mut publisher = MqttClient::log_in(&mut simulation, &named("publisher"));
    publisher.publish_1(&mut simulation, "a/b", 1, b"x");
    assert_eq!(subscriber.receive(&mut simulation).unwrap().qos, 1);
    assert_eq!(subscriber.receive(&mut simulation), None);
    subscriber.unsubscribe(&mut simulation, &["a/+"]);
    publisher.publish_1(&mut simulation, "a/b", 2, b"y");
    assert_eq!(subscriber.receive(&mut simulation).unwrap().qos, 0);
    // A subscription with the same filter replaces the earlier one.
    subscriber.subscribe(&mut simulation, &[("#", 1)]);
    publisher.publish_1(&mut simulation, "a/b", 3, b"z");
    assert_eq!(subscriber.receive(&mut simulation).unwrap().qos, 1);
    publisher.disconnect(&mut simulation);
    subscriber.disconnect(&mut simulation);
    simulation.end(&[]);
}

/// The `*` of a filter is literal, and a wildcard at its beginning does not match topics with `$`.
#[test]
fn a_filter_matches_only_what_mqtt_defines() {
    let mut simulation = Simulation::new(small_limits());
    let mut publisher = MqttClient::log_in(&mut simulation, &named("publisher"));
    for (filter, topics) in [
        ("a/*/b", &["a/x/b", "a/*/b"][..]),
        ("#", &["$plant/a", "b"]),
        ("+/a", &["$plant/a", "b/a"]),
        ("a.b/c", &["a/b.c", "a.b/c"]),
        ("$plant/#", &["a", "$plant/a"]),
    ] {
        let mut subscriber = subscriber(&mut simulation, 4, &[(filter, 1)]);
        for topic in topics {
            publisher.publish_1(&mut simulation, topic, 1, b"");
        }
        let received = subscriber.receive(&mut simulation).unwrap_or_else(|| panic!("{filter}"));
        assert_eq!(Some(&&*received.topic), topics.last(), "{filter}");
        assert_eq!(subscriber.receive(&mut simulation), None, "{filter}");
        subscriber.disconnect(&mut simulation);
    }
    publisher.disconnect(&mut simulation);
    simulation.end(&[]);
}

#[test]
fn mqtt_and_amqp_clients_exchange_messages() {
    let mut simulation = Simulation::new(small_limits());
    let mut mqtt = subscriber(&mut simulation, 5, &[("plant/#", 1)]);
    let amqp = simulation.open(&[1]);
    simulation.declare(amqp, 1, "q");
    let bind = Method::QueueBind {
        queue: "q",
        exchange: "amq.topic",
        routing_key: "plant.*",
        no_wait: false,
        arguments: leveret_amqp::Table::EMPTY,
    };
    simulation.ask(amqp, 1, &bind);
    simulation.consume(amqp, 1, "q", "tag", true);
    assert_eq!(mqtt.publish_1(&mut simulation, "plant/pump", 1, b"on"), 0);
    simulation.run();
    let said: Vec<Said> = simulation.deliveries(amqp);
    let Method::BasicDeliver { exchange, routing_key, .. } = said[0].method() else { panic!("a delivery") };
    assert_eq!((exchange, routing_key), ("amq.topic", &b"plant.pump"[..]));
    assert_eq!(mqtt.receive(&mut simulation).unwrap().payload, b"on");
    // delivery_mode 2 is QoS 1.
    for (properties, qos) in [(&[0x10, 0, 2][..], 1), (&[0x10, 0, 1], 0), (&[0, 0], 0)] {
        let publish = Publish { exchange: "amq.topic", key: "plant.valve", properties, ..Publish::default() };
        simulation.publish(amqp, 1, publish, b"shut");
        let received = mqtt.receive(&mut simulation).expect("the message");
        assert_eq!((&*received.topic, received.qos), ("plant/valve", qos));
    }
    // Keys that are no topic names are not delivered.
    for key in ["plant.+", "plant.#.x", "plant.a#"] {
        let publish = Publish { exchange: "amq.topic", key, ..Publish::default() };
        simulation.publish(amqp, 1, publish, b"");
    }
    assert_eq!(mqtt.receive(&mut simulation), None);
    // The queue of a session is not for other clients.
    let refused =
        simulation.ask(amqp, 1, &Method::BasicGet { queue: "mqtt-subscription-subscriber", no_ack: true });
    let Method::ChannelClose { reply_code, .. } = refused.method() else { panic!("{}", refused.shown()) };
    assert_eq!(reply_code, 405);
    mqtt.disconnect(&mut simulation);
    simulation.end(&["q"]);
}

#[test]
fn an_unacknowledged_delivery_holds_back_those_beyond_the_receive_maximum() {
    let mut simulation = Simulation::new(small_limits());
    let receive_maximum = [0x21, 0, 3];
    let login = Login { level: 5, properties: &receive_maximum, ..named("slow") };
    let mut slow = MqttClient::log_in(&mut simulation, &login);
    slow.subscribe(&mut simulation, &[("#", 1)]);
    let mut publisher = MqttClient::log_in(&mut simulation, &named("publisher"));
    for number in 0..6 {
        publisher.publish_1(&mut simulation, "t", 1, &[number]);
    }
    let mut received: Vec<_> = core::iter::from_fn(|| slow.receive(&mut simulation)).collect();
    assert_eq!(received.len(), 3);
    let ids: Vec<u16> = received.iter().map(|message| message.packet_id.unwrap()).collect();
    // Acknowledgements in any order, twice, or of nothing.
    for id in [ids[2], ids[2], 999, ids[0], ids[1]] {
        slow.acknowledge(&mut simulation, id);
    }
    received.extend(core::iter::from_fn(|| slow.receive(&mut simulation)));
    let payloads: Vec<u8> = received.iter().map(|message| message.payload[0]).collect();
    assert_eq!(payloads, [0, 1, 2, 3, 4, 5]);
    slow.disconnect(&mut simulation);
    publisher.disconnect(&mut simulation);
    simulation.end(&[]);
}

/// The property Receive Maximum with the value 20.
const RECEIVE_MAXIMUM_20: [u8; 3] = [0x21, 0, 20];

/// Telegraf acknowledges after its flush, 10 s and 2,000 messages later. The queue of a session holds 1,000.
#[test]
fn a_client_that_acknowledges_late_gets_every_message() {
    for is_in_order in [true, false] {
        let mut simulation = Simulation::new(Limits::default());
        let (mut late, _) = log_in_kept(&mut simulation, "late");
        late.subscribe(&mut simulation, &[("#", 1)]);
        let mut publisher = MqttClient::log_in(&mut simulation, &named("publisher"));
        let mut received = Vec::new();
        for number in 0..2_400_u16 {
            publisher.publish_1(&mut simulation, "t", 1, &number.to_be_bytes());
            received.extend(late.receive(&mut simulation));
        }
        let expected: Vec<_> = (0..2_400_u16).map(|number| number.to_be_bytes().to_vec()).collect();
        assert_eq!(received.iter().map(|message| message.payload.clone()).collect::<Vec<_>>(), expected);
        let mut ids: Vec<u16> = received.iter().map(|message| message.packet_id.unwrap()).collect();
        if !is_in_order {
            ids.reverse();
        }
        ids.into_iter().for_each(|id| late.acknowledge(&mut simulation, id));
        late.lose(&mut simulation);
        let (mut again, _) = log_in_kept(&mut simulation, "late");
        assert_eq!(again.receive(&mut simulation), None, "every message was acknowledged");
        again.disconnect(&mut simulation);
        MqttClient::log_in(&mut simulation, &named("late")).disconnect(&mut simulation);
        publisher.disconnect(&mut simulation);
        simulation.end(&[]);
    }
}

/// §4.4: unacknowledged messages are sent again with their packet identifiers. The broker keeps those of 20 messages with
/// QoS 1 for a client that is not connected; the others get new ones.
#[test]
fn unacknowledged_messages_are_sent_again_in_their_order_and_the_first_with_their_packet_identifiers() {
    let mut simulation = Simulation::new(small_limits());
    let (mut client, _) = log_in_kept(&mut simulation, "kept");
    client.subscribe(&mut simulation, &[("#", 1)]);
    let mut publisher = MqttClient::log_in(&mut simulation, &named("publisher"));
    (0..40).for_each(|number| assert_eq!(publisher.publish_1(&mut simulation, "t", 1, &[number]), 0));
    let first: Vec<_> = core::iter::from_fn(|| client.receive(&mut simulation)).collect();
    assert_eq!(first.len(), 40);
    for number in [3, 4, 39] {
        client.acknowledge(&mut simulation, first[number].packet_id.unwrap());
    }
    for takes_over in [true, false] {
        let (again, _) = if takes_over {
            log_in_kept(&mut simulation, "kept")
        } else {
            client.lose(&mut simulation);
            log_in_kept(&mut simulation, "kept")
        };
        client = again;
        let second: Vec<_> = core::iter::from_fn(|| client.receive(&mut simulation)).collect();
        let numbers: Vec<u8> = second.iter().map(|message| message.payload[0]).collect();
        assert_eq!(numbers, (0..39).filter(|number| ![3, 4].contains(number)).collect::<Vec<u8>>());
        assert!(second.iter().all(|message| message.is_duplicate));
        let id_of_first = |number: u8| first[usize::from(number)].packet_id;
        assert!(second[..20].iter().all(|message| message.packet_id == id_of_first(message.payload[0])));
        let ids: BTreeSet<_> = second.iter().map(|message| message.packet_id.unwrap()).collect();
        assert_eq!(ids.len(), second.len(), "no two have the same");
    }
    let second: Vec<_> = core::iter::from_fn(|| client.receive(&mut simulation)).collect();
    assert_eq!(second, []);
    client.lose(&mut simulation);
    let (mut client, _) = log_in_kept(&mut simulation, "kept");
    while let Some(message) = client.receive(&mut simulation) {
        client.acknowledge(&mut simulation, message.packet_id.unwrap());
    }
    client.lose(&mut simulation);
    let (mut client, _) = log_in_kept(&mut simulation, "kept");
    assert_eq!(client.receive(&mut simulation), None);
    client.disconnect(&mut simulation);
    MqttClient::log_in(&mut simulation, &named("kept")).disconnect(&mut simulation);
    publisher.disconnect(&mut simulation);
    simulation.end(&[]);
}

/// A message that stays unacknowledged while all packet identifiers are used once keeps its own.
#[test]
fn the_packet_identifier_of_an_old_message_is_not_used_again() {
    let mut simulation = Simulation::new(small_limits());
    let (mut client, _) = log_in_kept(&mut simulation, "kept");
    client.subscribe(&mut simulation, &[("#", 1)]);
    let mut publisher = MqttClient::log_in(&mut simulation, &named("publisher"));
    (0..15).for_each(|number| assert_eq!(publisher.publish_1(&mut simulation, "t", 1, &[number]), 0));
    let old: Vec<_> = core::iter::from_fn(|| client.receive(&mut simulation)).collect();
    let old_ids: Vec<u16> = old.iter().map(|message| message.packet_id.unwrap()).collect();
    assert_eq!(old_ids.len(), 15);
    for _ in 0..3 {
        simulation.engine.broker_mut().0.pass_packet_ids(u16::MAX - 20);
        for _ in 0..40 {
            assert_eq!(publisher.publish_1(&mut simulation, "t", 1, &[99]), 0);
            let new = client.receive(&mut simulation).expect("the client gets it").packet_id.unwrap();
            assert!(!old_ids.contains(&new), "{new} is in use");
            client.acknowledge(&mut simulation, new);
        }
    }
    old_ids.iter().rev().for_each(|id| client.acknowledge(&mut simulation, *id));
    client.lose(&mut simulation);
    let (mut client, _) = log_in_kept(&mut simulation, "kept");
    assert_eq!(client.receive(&mut simulation), None, "the old ones were acknowledged");
    client.disconnect(&mut simulation);
    MqttClient::log_in(&mut simulation, &named("kept")).disconnect(&mut simulation);
    publisher.disconnect(&mut simulation);
    simulation.end(&[]);
}

/// The list of deliveries with QoS 2 is in the log, so it is short: 20 exchanges at once.
#[test]
fn at_most_twenty_exchanges_of_qos_2_are_open() {
    let mut simulation = Simulation::new(small_limits());
    let mut client = subscriber_2(&mut simulation, 4);
    let mut publisher = MqttClient::log_in(&mut simulation, &named("publisher"));
    for number in 1..=30 {
        publish_2(&mut publisher, &mut simulation, "t", number, b"");
        release(&mut publisher, &mut simulation, number);
    }
    // One with QoS 1 waits behind them.
    publisher.publish_1(&mut simulation, "t", 31, b"last");
    let mut sent: Vec<_> = core::iter::from_fn(|| client.receive(&mut simulation)).collect();
    assert_eq!(sent.len(), 20);
    let mut at = 0;
    while at < 30 {
        let id = sent[at].packet_id.unwrap();
        client.send(&mut simulation, &id_packet(0x50, id));
        client.expect(&mut simulation, 0x62);
        assert_eq!(client.next(&mut simulation), None, "PUBCOMP is missing");
        client.send(&mut simulation, &id_packet(0x70, id));
        sent.extend(core::iter::from_fn(|| client.receive(&mut simulation)));
        at += 1;
        assert_eq!(sent.len(), (20 + at).min(30) + usize::from(at > 10));
    }
    assert_eq!((sent[30].qos, &sent[30].payload[..]), (1, &b"last"[..]));
    client.disconnect(&mut simulation);
    publisher.disconnect(&mut simulation);
    simulation.end(&[]);
}

/// A client that fails at a message connects again and again. It gets PUBLISH or PUBREL for the same 20 messages.
#[test]
fn a_client_that_connects_again_and_again_has_at_most_twenty_open_exchanges_of_qos_2() {
    for sends_pubrec in [false, true] {
        let mut simulation = Simulation::new(small_limits());
        simulation.keep_on_disk(Settings::default());
        let (mut client, _) = log_in_kept(&mut simulation, "kept");
        client.subscribe(&mut simulation, &[("#", 2)]);
        let mut publisher = MqttClient::log_in(&mut simulation, &named("publisher"));
        for number in 1..=60 {
            publish_2(&mut publisher, &mut simulation, "t", number, &[number as u8]);
            release(&mut publisher, &mut simulation, number);
        }
        let mut open = BTreeSet::new();
        for _ in 0..25 {
            while let Some(packet) = client.next(&mut simulation) {
                let id_at = if packet.first_octet >> 4 == 3 { 3 } else { 0 };
                let id = [packet.body[id_at], packet.body[id_at + 1]];
                open.insert(id);
                if sends_pubrec && id_at > 0 {
                    client.send(&mut simulation, &id_packet(0x50, u16::from_be_bytes(id)));
                }
            }
            assert!(open.len() <= 20, "{} exchanges", open.len());
            client.lose(&mut simulation);
            client = log_in_kept(&mut simulation, "kept").0;
        }
        assert_eq!(open.len(), 20);
        client.lose(&mut simulation);
        delete_queue(&mut simulation, "mqtt-subscription-kept");
        publisher.disconnect(&mut simulation);
        simulation.end(&[]);
    }
}

/// Messages that a client does not accept any more on a later connection are not sent, and hold back no others.
#[test]
fn messages_that_are_too_large_for_a_later_connection_hold_back_no_others() {
    let mut simulation = Simulation::new(small_limits());
    let (mut client, _) = log_in_kept(&mut simulation, "kept");
    client.subscribe(&mut simulation, &[("#", 2)]);
    let mut publisher = MqttClient::log_in(&mut simulation, &named("publisher"));
    for number in 1..=20 {
        publish_2(&mut publisher, &mut simulation, "t", number, &[1; 100]);
        release(&mut publisher, &mut simulation, number);
    }
    assert_eq!(core::iter::from_fn(|| client.receive(&mut simulation)).count(), 20);
    client.lose(&mut simulation);
    // Session Expiry Interval and Maximum Packet Size.
    let properties = [0x11, 0, 0, 0, 100, 0x27, 0, 0, 0, 30];
    let login = Login { level: 5, clean_start: false, properties: &properties, ..named("kept") };
    let mut client = MqttClient::log_in(&mut simulation, &login);
    assert_eq!(client.next(&mut simulation), None);
    for number in 1..=25 {
        publish_2(&mut publisher, &mut simulation, "t", number, b"small");
        release(&mut publisher, &mut simulation, number);
        let id = client.receive(&mut simulation).expect("it is small enough").packet_id.unwrap();
        client.send(&mut simulation, &id_packet(0x50, id));
        client.expect(&mut simulation, 0x62);
        client.send(&mut simulation, &id_packet(0x70, id));
    }
    client.disconnect(&mut simulation);
    delete_queue(&mut simulation, "mqtt-subscription-kept");
    publisher.disconnect(&mut simulation);
    simulation.end(&[]);
}

/// Only messages with a packet identifier use one up, and a later connection goes on with the next.
#[test]
fn packet_identifiers_are_consecutive_over_messages_with_qos_0_and_connections() {
    let mut simulation = Simulation::new(small_limits());
    let (mut client, _) = log_in_kept(&mut simulation, "kept");
    let mut publisher = MqttClient::log_in(&mut simulation, &named("publisher"));
    client.subscribe(&mut simulation, &[("#", 1)]);
    let mut ids = Vec::new();
    for round in 0..6 {
        publisher.publish(&mut simulation, "t", b"0");
        publisher.publish(&mut simulation, "t", b"0");
        publisher.publish_1(&mut simulation, "t", 1, b"1");
        while let Some(message) = client.receive(&mut simulation) {
            if let Some(id) = message.packet_id {
                ids.push(id);
                client.acknowledge(&mut simulation, id);
            }
        }
        let (next, _) = match round {
            2 => {
                client.lose(&mut simulation);
                log_in_kept(&mut simulation, "kept")
            }
            // The other rounds take over.
            _ => log_in_kept(&mut simulation, "kept"),
        };
        client = next;
    }
    assert_eq!(ids, (ids[0]..ids[0] + 6).collect::<Vec<u16>>());
    client.disconnect(&mut simulation);
    delete_queue(&mut simulation, "mqtt-subscription-kept");
    publisher.disconnect(&mut simulation);
    simulation.end(&[]);
}

#[test]
fn a_second_connection_with_the_client_identifier_takes_over() {
    for level in LEVELS {
        let mut simulation = Simulation::new(small_limits());
        let mut first = subscriber(&mut simulation, level, &[("#", 1)]);
        let mut second = subscriber(&mut simulation, level, &[("a", 1)]);
        if level == 5 {
            assert_eq!(first.expect(&mut simulation, 0xE0).body[0], 0x8E, "session taken over");
        }
        first.assert_closed(&mut simulation);
        second.publish(&mut simulation, "b", b"");
        second.publish(&mut simulation, "a", b"");
        assert_eq!(second.receive(&mut simulation).unwrap().topic, "a");
        second.disconnect(&mut simulation);
        simulation.end(&[]);
    }
}

#[test]
fn a_client_without_an_identifier_gets_one() {
    let mut simulation = Simulation::new(small_limits());
    let (first, connack) = MqttClient::connect(&mut simulation, &Login { level: 5, ..named("") });
    let text = String::from_utf8_lossy(&connack.body).into_owned();
    assert!(text.contains("leveret-"), "{text:?}");
    let second = MqttClient::log_in(&mut simulation, &named(""));
    assert!(!first.is_closed(&simulation));
    first.disconnect(&mut simulation);
    second.disconnect(&mut simulation);
    let (mut refused, connack) =
        MqttClient::connect(&mut simulation, &Login { clean_start: false, ..named("") });
    assert_eq!(connack.body, [0, 2]);
    refused.assert_closed(&mut simulation);
    simulation.end(&[]);
}

#[test]
fn a_login_is_refused_with_the_code_of_the_version() {
    let mut simulation = Simulation::new(small_limits());
    for (login, code_3, code_5) in [
        (Login { password: Some("wrong"), ..Login::default() }, 4, 0x86),
        (Login { user: Some("nobody"), ..Login::default() }, 4, 0x86),
        (Login { user: Some("nowhere:guest"), ..Login::default() }, 5, 0x87),
        (Login { user: None, password: None, ..Login::default() }, 4, 0x86),
    ] {
        for (level, code) in [(3, code_3), (4, code_3), (5, code_5)] {
            let mut client = MqttClient::open(&mut simulation, level);
            client.send(&mut simulation, &Login { level, ..login.clone() }.packet());
            simulation.pass_ms(1_000);
            assert_eq!(client.expect(&mut simulation, 0x20).body[1], code, "{login:?} {level}");
            client.assert_closed(&mut simulation);
        }
    }
    let with_vhost =
        MqttClient::log_in(&mut simulation, &Login { user: Some("/:guest"), ..Login::default() });
    with_vhost.disconnect(&mut simulation);
    simulation.end(&[]);
}

#[test]
fn packets_that_the_protocol_does_not_allow_end_the_connection() {
    let oversized = [&[0x82][..], &[0xFF, 0xFF, 0x7F]].concat();
    for (what, octets, reason) in [
        ("a reserved packet type", vec![0x00, 0], 0x82),
        ("a second CONNECT", Login { level: 5, ..Login::default() }.packet(), 0x82),
        ("SUBSCRIBE with wrong flags", packet(0x80, &[0, 1, 0, 0, 1, b'a', 0]), 0x81),
        ("SUBSCRIBE without a filter", packet(0x82, &[0, 1, 0]), 0x82),
        ("a packet larger than the buffer", oversized, 0x95),
        ("PUBLISH with QoS 3", packet(0x36, &[0, 1, b'a', 0, 1, 0]), 0x81),
        ("PUBLISH with a wildcard", packet(0x30, &[0, 1, b'#', 0]), 0x90),
        ("PUBLISH with a large topic alias", packet(0x30, &[0, 1, b'a', 3, 0x23, 0, 17]), 0x94),
        ("AUTH", packet(0xF0, &[]), 0x82),
    ] {
        let mut simulation = Simulation::new(small_limits());
        let mut client = MqttClient::log_in(&mut simulation, &Login { level: 5, ..Login::default() });
        client.send(&mut simulation, &octets);
        assert_eq!(client.expect(&mut simulation, 0xE0).body[0], reason, "{what}");
        client.assert_closed(&mut simulation);
        simulation.end(&[]);
    }
}

#[test]
fn wrong_filters_are_refused_one_by_one() {
    let mut simulation = Simulation::new(small_limits());
    let mut client = MqttClient::log_in(&mut simulation, &Login { level: 5, ..Login::default() });
    let long = "x".repeat(256);
    let codes = client.subscribe(
        &mut simulation,
        &[("a", 0), ("a/#/b", 0), ("$share/g", 0), (&long, 0), ("b", 1), ("c", 1), ("d", 1), ("a", 1)],
    );
    assert_eq!(codes, [0, 0x8F, 0x8F, 0x8F, 1, 1, 1, 1]);
    assert_eq!(client.unsubscribe(&mut simulation, &["a", "e", "a", "#/a"]), [0, 0x11, 0x11, 0x8F]);
    assert_eq!(client.subscribe(&mut simulation, &[("d", 2)]), [2]);
    client.disconnect(&mut simulation);
    simulation.end(&[]);
}

#[test]
fn a_message_without_a_subscriber_is_acknowledged_as_such() {
    let mut simulation = Simulation::new(small_limits());
    let mut client = MqttClient::log_in(&mut simulation, &Login { level: 5, ..Login::default() });
    assert_eq!(client.publish_1(&mut simulation, "nobody", 1, b""), 0x10);
    let long = "x".repeat(256);
    assert_eq!(client.publish_1(&mut simulation, &long, 2, b"abc"), 0x90, "no routing key is so long");
    client.publish(&mut simulation, &long, b"abc");
    assert_eq!(client.publish_1(&mut simulation, "nobody", 3, b""), 0x10, "the connection goes on");
    client.disconnect(&mut simulation);
    simulation.end(&[]);
}

#[test]
fn a_silent_client_is_disconnected_after_its_keep_alive_and_a_half() {
    let mut simulation = Simulation::new(small_limits());
    let mut client =
        MqttClient::log_in(&mut simulation, &Login { level: 5, keep_alive_s: 10, ..Login::default() });
    for _ in 0..5 {
        simulation.pass_ms(14_000);
        client.send(&mut simulation, &[0xC0, 0]);
        client.expect(&mut simulation, 0xD0);
    }
    simulation.pass_ms(14_900);
    assert_eq!(client.next(&mut simulation), None);
    assert!(!client.is_closed(&simulation));
    simulation.pass_ms(200);
    assert_eq!(client.expect(&mut simulation, 0xE0).body[0], 0x8D);
    client.assert_closed(&mut simulation);
    simulation.end(&[]);
}

/// Any way to split the packets of a connection gives the same answers.
#[test]
fn packets_may_arrive_in_any_pieces() {
    for level in LEVELS {
        let mut expected = None;
        for piece in [1, 2, 3, 7, 64, 10_000] {
            let mut simulation = Simulation::new(small_limits());
            let mut client = MqttClient::open(&mut simulation, level);
            let mut octets = Login { level, ..named("pieces") }.packet();
            let properties: &[u8] = if level == 5 { &[0] } else { &[] };
            let subscribe = [&[0, 1][..], properties, &[0, 1, b'#', 1]].concat();
            octets.extend(packet(0x82, &subscribe));
            octets.extend(client.publish_packet(2, "topic", 7, &[9; 300]));
            octets.extend(client.publish_packet(0, "topic", 0, b""));
            octets.extend([0xC0, 0]);
            for part in octets.chunks(piece) {
                client.send(&mut simulation, part);
            }
            let mut packets: Vec<_> = core::iter::from_fn(|| client.next(&mut simulation)).collect();
            // Deliveries and answers have no order between them.
            packets.sort_by_key(|packet| packet.first_octet);
            assert_eq!(packets.len(), 6, "CONNACK, SUBACK, PUBACK, PINGRESP and two messages");
            match &expected {
                None => expected = Some(packets),
                Some(expected) => assert_eq!(&packets, expected, "level {level}, pieces of {piece}"),
            }
            client.disconnect(&mut simulation);
            simulation.end(&[]);
        }
    }
}

/// When operators delete the queue of a session, its client is disconnected.
#[test]
fn a_client_without_its_queue_is_disconnected() {
    let mut simulation = Simulation::new(small_limits());
    let mut client = subscriber(&mut simulation, 5, &[("#", 1)]);
    delete_queue(&mut simulation, "mqtt-subscription-subscriber");
    assert_eq!(client.expect(&mut simulation, 0xE0).body[0], 0x98);
    client.assert_closed(&mut simulation);
    simulation.end(&[]);
}

// ---- sessions that are kept

pub(super) fn kept(client_id: &str) -> Login<'_> {
    Login { clean_start: false, ..named(client_id) }
}

/// Connects a client whose session is kept. Returns it, and whether the session was present.
pub(super) fn log_in_kept(simulation: &mut Simulation, client_id: &str) -> (MqttClient, bool) {
    let (client, connack) = MqttClient::connect(simulation, &kept(client_id));
    assert_eq!(connack.body[1], 0);
    (client, connack.body[0] == 1)
}

#[test]
fn a_kept_session_gets_what_arrived_while_its_client_was_away() {
    let mut simulation = Simulation::new(small_limits());
    let (mut away, is_present) = log_in_kept(&mut simulation, "away");
    assert!(!is_present);
    away.subscribe(&mut simulation, &[("one/#", 1), ("zero/#", 0)]);
    away.lose(&mut simulation);
    let mut publisher = MqttClient::log_in(&mut simulation, &named("publisher"));
    for topic in ["one/a", "zero/b", "one/c"] {
        publisher.publish_1(&mut simulation, topic, 1, topic.as_bytes());
        // Messages with QoS 0 are not kept for a client that is away.
        publisher.publish(&mut simulation, topic, b"");
    }
    let (mut back, is_present) = log_in_kept(&mut simulation, "away");
    assert!(is_present);
    for (topic, qos) in [("one/a", 1), ("zero/b", 0), ("one/c", 1)] {
        let received = back.receive(&mut simulation).expect(topic);
        assert_eq!((&*received.topic, received.qos, received.is_duplicate), (topic, qos, false));
    }
    assert_eq!(back.receive(&mut simulation), None);
    back.disconnect(&mut simulation);
    // Clean Session deletes the session.
    let (clean, connack) = MqttClient::connect(&mut simulation, &named("away"));
    assert_eq!(connack.body, [0, 0]);
    clean.disconnect(&mut simulation);
    publisher.disconnect(&mut simulation);
    simulation.end(&[]);
}

#[test]
fn unacknowledged_deliveries_are_sent_again_with_their_packet_identifiers() {
    let mut simulation = Simulation::new(small_limits());
    let (mut client, _) = log_in_kept(&mut simulation, "again");
    client.subscribe(&mut simulation, &[("#", 1)]);
    let mut publisher = MqttClient::log_in(&mut simulation, &named("publisher"));
    for number in 0..20 {
        publisher.publish_1(&mut simulation, "t", 1, &[number]);
    }
    let first: Vec<_> = core::iter::from_fn(|| client.receive(&mut simulation)).collect();
    assert_eq!(first.len(), 20);
    client.acknowledge(&mut simulation, first[1].packet_id.unwrap());
    publisher.publish_1(&mut simulation, "t", 1, &[20]);
    let last = client.receive(&mut simulation).expect("one more");
    for is_taken_over in [false, true] {
        let unacknowledged = first.iter().filter(|message| message.payload != [1]).chain([&last]);
        if !is_taken_over {
            client.lose(&mut simulation);
        }
        let (mut next, is_present) = log_in_kept(&mut simulation, "again");
        assert!(is_present);
        for earlier in unacknowledged {
            let again = next.receive(&mut simulation).expect("it was not acknowledged");
            assert!(again.is_duplicate);
            assert_eq!((again.packet_id, &again.payload), (earlier.packet_id, &earlier.payload));
        }
        assert_eq!(next.receive(&mut simulation), None);
        client = next;
    }
    client.disconnect(&mut simulation);
    let clean = MqttClient::log_in(&mut simulation, &named("again"));
    clean.disconnect(&mut simulation);
    publisher.disconnect(&mut simulation);
    simulation.end(&[]);
}

#[test]
fn a_kept_session_expires() {
    let limits = Limits { mqtt_session_expiry_max_ms: 60_000, ..small_limits() };
    let mut simulation = Simulation::new(limits);
    let interval = |seconds: u32| [&[0x11][..], &seconds.to_be_bytes()].concat();
    let with = |client_id, properties| Login { level: 5, clean_start: false, properties, ..named(client_id) };
    let (ten, long) = (interval(10), interval(1_000));
    let (mut short, connack) = MqttClient::connect(&mut simulation, &with("ten", &ten));
    assert!(!connack.body.contains(&0x11), "the requested interval is not repeated");
    short.subscribe(&mut simulation, &[("#", 1)]);
    short.lose(&mut simulation);
    let (capped, connack) = MqttClient::connect(&mut simulation, &with("capped", &long));
    assert!(connack.body.ends_with(&interval(60)), "{connack:?}");
    capped.lose(&mut simulation);
    let count = |simulation: &Simulation| simulation.engine.broker().gauges().queues;
    simulation.pass_ms(9_000);
    assert_eq!(count(&simulation), 2);
    simulation.pass_ms(2_000);
    assert_eq!(count(&simulation), 1, "the session of 10 s has expired");
    simulation.pass_ms(50_000);
    assert_eq!(count(&simulation), 0, "the other one, too");
    // DISCONNECT may end a session, and may not keep one that was not to be kept.
    let (mut client, _) = MqttClient::connect(&mut simulation, &with("ends", &ten));
    client.send(&mut simulation, &packet(0xE0, &[&[0, 5][..], &interval(0)].concat()));
    client.assert_closed(&mut simulation);
    assert_eq!(count(&simulation), 0);
    let (mut client, _) = MqttClient::connect(&mut simulation, &Login { level: 5, ..named("refused") });
    client.send(&mut simulation, &packet(0xE0, &[&[0, 5][..], &interval(10)].concat()));
    assert_eq!(client.expect(&mut simulation, 0xE0).body[0], 0x82);
    client.assert_closed(&mut simulation);
    simulation.end(&[]);
}

#[test]
fn only_so_many_sessions_are_kept() {
    let mut simulation = Simulation::new(Limits { mqtt_sessions_max: 2, ..small_limits() });
    for name in ["a", "b"] {
        let (client, _) = log_in_kept(&mut simulation, name);
        client.disconnect(&mut simulation);
    }
    let (mut refused, connack) = MqttClient::connect(&mut simulation, &kept("c"));
    assert_eq!(connack.body, [0, 3], "server unavailable");
    refused.assert_closed(&mut simulation);
    let (mut refused, connack) = MqttClient::connect(
        &mut simulation,
        &Login { level: 5, properties: &[0x11, 0, 0, 0, 9], ..named("c") },
    );
    assert_eq!(connack.body[1], 0x97, "quota exceeded");
    refused.assert_closed(&mut simulation);
    // Those that exist, and those that are not kept, are not refused.
    let (known, is_present) = log_in_kept(&mut simulation, "a");
    assert!(is_present);
    let clean = MqttClient::log_in(&mut simulation, &named("c"));
    clean.disconnect(&mut simulation);
    known.disconnect(&mut simulation);
    delete_queue(&mut simulation, "mqtt-subscription-a");
    delete_queue(&mut simulation, "mqtt-subscription-b");
    simulation.end(&[]);
}

/// PUBACK, SUBACK and CONNACK of a kept session wait for the disk. What is not kept does not wait.
#[test]
fn answers_wait_until_what_they_promise_is_durable() {
    let mut simulation = Simulation::new(small_limits());
    simulation.keep_on_disk(Settings::default());
    let slow = |simulation: &mut Simulation, slowness_ms| {
        simulation.engine.platform_mut().helpers.slowness_ms = slowness_ms;
    };
    slow(&mut simulation, 0);
    let commits = |simulation: &mut Simulation| simulation.engine.platform_mut().helpers.commits;
    let before = commits(&mut simulation);
    let mut clean = MqttClient::log_in(&mut simulation, &named("clean"));
    clean.subscribe(&mut simulation, &[("clean", 1)]);
    assert_eq!(clean.publish_1(&mut simulation, "nobody", 1, b""), 0);
    assert_eq!(commits(&mut simulation), before, "nothing was to be written");
    let (mut client, _) = log_in_kept(&mut simulation, "kept");
    let after_connect = commits(&mut simulation);
    assert!(after_connect > before);
    client.subscribe(&mut simulation, &[("t", 1)]);
    let after_subscribe = commits(&mut simulation);
    assert!(after_subscribe > after_connect);
    clean.publish_1(&mut simulation, "t", 2, b"");
    assert!(commits(&mut simulation) > after_subscribe);
    // While the disk is busy, PINGRESP is not delayed, and the PUBACK comes when it is done.
    slow(&mut simulation, 10_000);
    let publish = clean.publish_packet(2, "t", 3, b"");
    clean.send(&mut simulation, &publish);
    clean.send(&mut simulation, &[0xC0, 0]);
    clean.expect(&mut simulation, 0xD0);
    assert_eq!(clean.next(&mut simulation), None);
    simulation.pass_ms(10_000);
    assert_eq!(clean.expect(&mut simulation, 0x40).body, [0, 3]);
}

// ---- QoS 2

pub(super) fn id_packet(first_octet: u8, packet_id: u16) -> Vec<u8> {
    packet(first_octet, &packet_id.to_be_bytes())
}

/// Publishes with QoS 2 up to PUBREC.
pub(super) fn publish_2(
    client: &mut MqttClient,
    simulation: &mut Simulation,
    topic: &str,
    packet_id: u16,
    payload: &[u8],
) {
    let publish = client.publish_packet(4, topic, packet_id, payload);
    client.send(simulation, &publish);
    let pubrec = client.expect(simulation, 0x50);
    assert_eq!(pubrec.body[..2], packet_id.to_be_bytes(), "PUBREC");
    assert!(matches!(pubrec.body[2..], [] | [0x10]), "{pubrec:?}");
}

/// Releases a packet identifier.
pub(super) fn release(client: &mut MqttClient, simulation: &mut Simulation, packet_id: u16) {
    client.send(simulation, &id_packet(0x62, packet_id));
    assert_eq!(client.expect(simulation, 0x70).body[..2], packet_id.to_be_bytes(), "PUBCOMP");
}

#[test]
fn a_message_with_qos_2_is_published_once_however_often_it_is_sent() {
    for level in LEVELS {
        let mut simulation = Simulation::new(small_limits());
        let mut subscriber = subscriber_2(&mut simulation, level);
        let mut publisher = MqttClient::log_in(&mut simulation, &Login { level, ..named("publisher") });
        publish_2(&mut publisher, &mut simulation, "t", 7, b"1");
        for _ in 0..3 {
            let again = publisher.publish_packet(4 | 8, "t", 7, b"1");
            publisher.send(&mut simulation, &again);
            publisher.expect(&mut simulation, 0x50);
        }
        release(&mut publisher, &mut simulation, 7);
        release(&mut publisher, &mut simulation, 7);
        // The identifier is free for another message.
        publish_2(&mut publisher, &mut simulation, "t", 7, b"2");
        release(&mut publisher, &mut simulation, 7);
        let received: Vec<_> = core::iter::from_fn(|| subscriber.receive(&mut simulation)).collect();
        assert_eq!(received.iter().map(|message| message.payload[0]).collect::<Vec<_>>(), b"12");
        for received in received {
            assert_eq!(received.qos, 2);
            let packet_id = received.packet_id.unwrap();
            subscriber.send(&mut simulation, &id_packet(0x50, packet_id));
            assert_eq!(subscriber.expect(&mut simulation, 0x62).body, packet_id.to_be_bytes());
            // PUBREL is repeated with PUBREC, as long as there is no PUBCOMP.
            subscriber.send(&mut simulation, &id_packet(0x50, packet_id));
            subscriber.expect(&mut simulation, 0x62);
            subscriber.send(&mut simulation, &id_packet(0x70, packet_id));
        }
        assert_eq!(subscriber.receive(&mut simulation), None);
        publisher.disconnect(&mut simulation);
        subscriber.disconnect(&mut simulation);
        simulation.end(&[]);
    }
}

/// Clients of MQTT 3.1.1 do not know a Receive Maximum. Some send all that they have before they read an answer.
#[test]
fn a_client_may_publish_many_messages_with_qos_2_before_it_releases_the_first() {
    let mut simulation = Simulation::new(small_limits());
    simulation.keep_on_disk(Settings::default());
    let mut subscriber = subscriber(&mut simulation, 4, &[("t", 0)]);
    let (mut client, _) = log_in_kept(&mut simulation, "publisher");
    let packet_ids = || (65_436..=u16::MAX).chain(1..=100);
    for packet_id in packet_ids() {
        publish_2(&mut client, &mut simulation, "t", packet_id, b"x");
    }
    // The next connection continues the session, and repeats all of it.
    client.lose(&mut simulation);
    let (mut client, is_present) = log_in_kept(&mut simulation, "publisher");
    assert!(is_present);
    for packet_id in packet_ids() {
        let again = client.publish_packet(4 | 8, "t", packet_id, b"x");
        client.send(&mut simulation, &again);
        client.expect(&mut simulation, 0x50);
    }
    packet_ids().for_each(|packet_id| release(&mut client, &mut simulation, packet_id));
    assert_eq!(core::iter::from_fn(|| subscriber.receive(&mut simulation)).count(), 200);
    // Identifiers that are not consecutive have a limit.
    for packet_id in 1..=64 {
        publish_2(&mut client, &mut simulation, "t", packet_id * 2, b"x");
        subscriber.receive(&mut simulation).expect("the message");
    }
    let publish = client.publish_packet(4, "t", 1_000, b"x");
    client.send(&mut simulation, &publish);
    assert!(client.is_closed(&simulation));
    subscriber.disconnect(&mut simulation);
}

/// A repeated message is answered like the first one, also if it could not be retained any more.
#[test]
fn a_repeated_message_with_retain_is_not_refused() {
    let limits = Limits { retained_max: 1, ..small_limits() };
    let mut simulation = Simulation::new(limits);
    let expiry = [0x11, 0, 0, 0, 100];
    let login = Login { level: 5, clean_start: false, properties: &expiry, ..named("publisher") };
    let mut client = MqttClient::log_in(&mut simulation, &login);
    let publish = client.publish_packet(4 | 1, "a", 1, b"1");
    client.send(&mut simulation, &publish);
    client.expect(&mut simulation, 0x50);
    client.lose(&mut simulation);
    // Another message takes its place.
    let mut other = MqttClient::log_in(&mut simulation, &Login { level: 5, ..named("other") });
    publish_retained(&mut other, &mut simulation, ("a", 1), b"");
    assert!(publish_retained(&mut other, &mut simulation, ("b", 1), b"x") < 0x80);
    let mut client = MqttClient::log_in(&mut simulation, &login);
    let again = client.publish_packet(4 | 8 | 1, "a", 1, b"1");
    client.send(&mut simulation, &again);
    let pubrec = client.expect(&mut simulation, 0x50);
    assert!(pubrec.body.get(2).is_none_or(|reason| *reason < 0x80), "{pubrec:?}");
    client.send(&mut simulation, &id_packet(0x62, 1));
    client.expect(&mut simulation, 0x70);
    // The identifier is free for another message.
    let mut reader = MqttClient::log_in(&mut simulation, &named("reader"));
    reader.subscribe(&mut simulation, &[("c", 0)]);
    let publish = client.publish_packet(4, "c", 1, b"2");
    client.send(&mut simulation, &publish);
    client.expect(&mut simulation, 0x50);
    assert_eq!(reader.receive(&mut simulation).expect("the message").payload, b"2");
}

/// Each PINGREQ is answered, and not before CONNACK, which waits for the disk.
#[test]
fn pingresp_follows_connack() {
    let mut simulation = Simulation::new(small_limits());
    simulation.keep_on_disk(Settings::default());
    let mut client = MqttClient::open(&mut simulation, 4);
    let connect = Login { clean_start: false, ..named("kept") }.packet();
    client.send(&mut simulation, &[&connect[..], &[0xC0, 0, 0xC0, 0]].concat());
    client.expect(&mut simulation, 0x20);
    client.expect(&mut simulation, 0xD0);
    client.expect(&mut simulation, 0xD0);
    client.disconnect(&mut simulation);
    let clean = MqttClient::log_in(&mut simulation, &named("kept"));
    clean.disconnect(&mut simulation);
    simulation.end(&[]);
}

/// A client repeats PUBREL on its next connection, because PUBCOMP may be lost. That is no error there.
#[test]
fn a_repeated_pubrel_is_no_error_on_the_next_connection() {
    let mut simulation = Simulation::new(small_limits());
    let expiry = [0x11, 0, 0, 0, 100];
    let login = Login { level: 5, clean_start: false, properties: &expiry, ..named("publisher") };
    let pubcomp = |client: &mut MqttClient, simulation: &mut Simulation, packet_id| {
        client.send(simulation, &id_packet(0x62, packet_id));
        client.expect(simulation, 0x70).body[2..].first().copied().unwrap_or(0)
    };
    let mut client = MqttClient::log_in(&mut simulation, &login);
    assert_eq!(pubcomp(&mut client, &mut simulation, 7), 0x92, "it has no session to continue");
    let publish = client.publish_packet(4, "t", 7, b"");
    client.send(&mut simulation, &publish);
    client.expect(&mut simulation, 0x50);
    assert_eq!(pubcomp(&mut client, &mut simulation, 7), 0);
    assert_eq!(pubcomp(&mut client, &mut simulation, 7), 0x92);
    client.lose(&mut simulation);
    let mut client = MqttClient::log_in(&mut simulation, &login);
    assert_eq!(pubcomp(&mut client, &mut simulation, 7), 0);
    let publish = client.publish_packet(4, "t", 8, b"");
    client.send(&mut simulation, &publish);
    client.expect(&mut simulation, 0x50);
    assert_eq!(pubcomp(&mut client, &mut simulation, 8), 0);
    assert_eq!(pubcomp(&mut client, &mut simulation, 7), 0x92);
    client.disconnect(&mut simulation);
    MqttClient::log_in(&mut simulation, &Login { level: 5, ..named("publisher") })
        .disconnect(&mut simulation);
    simulation.end(&[]);
}

fn subscriber_2(simulation: &mut Simulation, level: u8) -> MqttClient {
    let mut client = MqttClient::log_in(simulation, &Login { level, ..named("subscriber") });
    assert_eq!(client.subscribe(simulation, &[("#", 2)]), [2]);
    client
}

/// The receiver of a message with QoS 2 reconnects after each packet of the exchange.
#[test]
fn an_exchange_of_qos_2_continues_on_the_next_connection() {
    let mut simulation = Simulation::new(small_limits());
    let (mut client, _) = log_in_kept(&mut simulation, "kept");
    client.subscribe(&mut simulation, &[("#", 2)]);
    let mut publisher = MqttClient::log_in(&mut simulation, &named("publisher"));
    publish_2(&mut publisher, &mut simulation, "t", 1, b"x");
    let first = client.receive(&mut simulation).expect("the message");
    client.lose(&mut simulation);
    let (mut client, _) = log_in_kept(&mut simulation, "kept");
    let again = client.receive(&mut simulation).expect("the message again");
    assert_eq!((again.packet_id, again.is_duplicate, again.qos), (first.packet_id, true, 2));
    let packet_id = first.packet_id.unwrap();
    client.send(&mut simulation, &id_packet(0x50, packet_id));
    client.expect(&mut simulation, 0x62);
    client.lose(&mut simulation);
    // PUBREL is sent again, and the message is not.
    let (mut client, _) = log_in_kept(&mut simulation, "kept");
    assert_eq!(client.expect(&mut simulation, 0x62).body, packet_id.to_be_bytes());
    client.send(&mut simulation, &id_packet(0x70, packet_id));
    assert_eq!(client.next(&mut simulation), None);
    client.lose(&mut simulation);
    let (mut client, _) = log_in_kept(&mut simulation, "kept");
    assert_eq!(client.next(&mut simulation), None);
    // The publisher's part is kept, too.
    let (mut publisher_kept, _) = log_in_kept(&mut simulation, "publisher-kept");
    publish_2(&mut publisher_kept, &mut simulation, "t", 5, b"y");
    publisher_kept.lose(&mut simulation);
    let (mut publisher_kept, _) = log_in_kept(&mut simulation, "publisher-kept");
    let again = publisher_kept.publish_packet(4 | 8, "t", 5, b"y");
    publisher_kept.send(&mut simulation, &again);
    publisher_kept.expect(&mut simulation, 0x50);
    release(&mut publisher_kept, &mut simulation, 5);
    let received = client.receive(&mut simulation).expect("the message");
    client.send(&mut simulation, &id_packet(0x50, received.packet_id.unwrap()));
    client.expect(&mut simulation, 0x62);
    client.send(&mut simulation, &id_packet(0x70, received.packet_id.unwrap()));
    assert_eq!(client.next(&mut simulation), None, "it was published once");
    publisher.disconnect(&mut simulation);
    for (client, name) in [(client, "kept"), (publisher_kept, "publisher-kept")] {
        client.disconnect(&mut simulation);
        delete_queue(&mut simulation, &format!("mqtt-subscription-{name}"));
    }
    simulation.end(&[]);
}

/// An exchange of QoS 2 counts for the Receive Maximum until PUBCOMP.
#[test]
fn released_deliveries_count_for_the_receive_maximum() {
    let mut simulation = Simulation::new(small_limits());
    let login = Login { level: 5, properties: &[0x21, 0, 2], ..named("slow") };
    let mut slow = MqttClient::log_in(&mut simulation, &login);
    slow.subscribe(&mut simulation, &[("#", 2)]);
    let mut publisher = MqttClient::log_in(&mut simulation, &named("publisher"));
    for number in 1..=4 {
        publish_2(&mut publisher, &mut simulation, "t", number, b"");
        release(&mut publisher, &mut simulation, number);
    }
    let first = slow.receive(&mut simulation).unwrap().packet_id.unwrap();
    let second = slow.receive(&mut simulation).unwrap().packet_id.unwrap();
    assert_eq!(slow.next(&mut simulation), None);
    slow.send(&mut simulation, &id_packet(0x50, first));
    slow.expect(&mut simulation, 0x62);
    assert_eq!(slow.next(&mut simulation), None, "PUBCOMP is missing");
    slow.send(&mut simulation, &id_packet(0x70, first));
    assert!(slow.receive(&mut simulation).is_some());
    // A PUBREC with a failure ends the exchange at once.
    slow.send(&mut simulation, &packet(0x50, &[0, second as u8, 0x80]));
    assert!(slow.receive(&mut simulation).is_some());
    slow.disconnect(&mut simulation);
    publisher.disconnect(&mut simulation);
    simulation.end(&[]);
}

/// A delivery with QoS 2 is sent when its packet identifier is durable.
#[test]
fn the_packet_identifier_of_a_delivery_is_durable_before_it_is_sent() {
    let mut simulation = Simulation::new(small_limits());
    simulation.keep_on_disk(Settings::default());
    let (mut client, _) = log_in_kept(&mut simulation, "kept");
    client.subscribe(&mut simulation, &[("#", 2)]);
    let mut publisher = MqttClient::log_in(&mut simulation, &named("publisher"));
    simulation.engine.platform_mut().helpers.slowness_ms = 10_000;
    let publish = publisher.publish_packet(4, "t", 1, b"x");
    publisher.send(&mut simulation, &publish);
    assert_eq!(publisher.next(&mut simulation), None, "PUBREC waits for the message");
    let mut waits = 0;
    let received = loop {
        if let Some(received) = client.receive(&mut simulation) {
            break received;
        }
        simulation.pass_ms(1_000);
        waits += 1;
        assert!(waits < 60);
    };
    assert!(waits > 0);
    let commits = simulation.engine.platform_mut().helpers.commits;
    client.send(&mut simulation, &id_packet(0x50, received.packet_id.unwrap()));
    assert_eq!(client.next(&mut simulation), None, "PUBREL waits for the settlement");
    simulation.pass_ms(20_000);
    client.expect(&mut simulation, 0x62);
    assert!(simulation.engine.platform_mut().helpers.commits > commits);
}

// ---- retained messages

/// PUBLISH with RETAIN, at this QoS, up to its acknowledgement. Returns the code of PUBACK or PUBREC.
pub(super) fn publish_retained(
    client: &mut MqttClient,
    simulation: &mut Simulation,
    (topic, qos): (&str, u8),
    payload: &[u8],
) -> u8 {
    let publish = client.publish_packet(qos << 1 | 1, topic, 99, payload);
    client.send(simulation, &publish);
    let expected = match qos {
        0 => return 0,
        1 => 0x40,
        _ => 0x50,
    };
    let code = client.expect(simulation, expected).body.get(2).copied().unwrap_or(0);
    if qos == 2 && code < 0x80 {
        release(client, simulation, 99);
    }
    code
}

/// Receives and acknowledges all messages. Returns payload and RETAIN of each.
pub(super) fn receive_all(
    client: &mut MqttClient,
    simulation: &mut Simulation,
) -> Vec<(String, Vec<u8>, bool)> {
    let mut received = Vec::new();
    while let Some(message) = client.receive(simulation) {
        if let Some(packet_id) = message.packet_id {
            assert_eq!(message.qos, 1, "for QoS 2, the test would have to send PUBREC");
            client.acknowledge(simulation, packet_id);
        }
        received.push((message.topic, message.payload, message.retain));
    }
    received
}

fn retained(topic: &str, payload: &[u8]) -> (String, Vec<u8>, bool) {
    (topic.to_owned(), payload.to_vec(), true)
}

#[test]
fn a_subscriber_gets_the_last_retained_message_of_each_topic() {
    for level in LEVELS {
        let mut simulation = Simulation::new(small_limits());
        let mut publisher = MqttClient::log_in(&mut simulation, &Login { level, ..named("publisher") });
        for (topic, qos, payload) in
            [("a/x", 0, &b"old"[..]), ("a/x", 1, b"1"), ("a/y", 0, b"2"), ("b/x", 2, b"3")]
        {
            publish_retained(&mut publisher, &mut simulation, (topic, qos), payload);
        }
        let mut reader = MqttClient::log_in(&mut simulation, &Login { level, ..named("reader") });
        assert_eq!(reader.subscribe(&mut simulation, &[("a/+", 1)]), [1]);
        let first = receive_all(&mut reader, &mut simulation);
        assert_eq!(first, [retained("a/x", b"1"), retained("a/y", b"2")], "level {level}");
        // A message that arrives while the subscription exists has no RETAIN.
        publish_retained(&mut publisher, &mut simulation, ("a/x", 1), b"4");
        assert_eq!(receive_all(&mut reader, &mut simulation), [("a/x".to_owned(), b"4".to_vec(), false)]);
        // An exact filter, and each further SUBSCRIBE.
        for _ in 0..2 {
            reader.subscribe(&mut simulation, &[("b/x", 0)]);
            assert_eq!(receive_all(&mut reader, &mut simulation), [retained("b/x", b"3")]);
        }
        // A message without a payload is delivered, and deletes the retained one.
        publish_retained(&mut publisher, &mut simulation, ("a/x", 1), b"");
        assert_eq!(receive_all(&mut reader, &mut simulation), [("a/x".to_owned(), Vec::new(), false)]);
        publish_retained(&mut publisher, &mut simulation, ("b/x", 0), b"");
        receive_all(&mut reader, &mut simulation);
        let mut late = MqttClient::log_in(&mut simulation, &Login { level, ..named("late") });
        late.subscribe(&mut simulation, &[("#", 1)]);
        assert_eq!(receive_all(&mut late, &mut simulation), [retained("a/y", b"2")]);
        publisher.disconnect(&mut simulation);
        reader.disconnect(&mut simulation);
        late.disconnect(&mut simulation);
        simulation.end(&[]);
    }
}

#[test]
fn the_options_of_a_subscription_say_when_it_gets_retained_messages() {
    let mut simulation = Simulation::new(small_limits());
    let mut client = MqttClient::log_in(&mut simulation, &Login { level: 5, ..named("client") });
    publish_retained(&mut client, &mut simulation, ("t", 1), b"x");
    // Retain Handling is in the bits 4 and 5.
    let never = 0x20;
    let if_new = 0x10;
    client.subscribe(&mut simulation, &[("t", never)]);
    assert_eq!(receive_all(&mut client, &mut simulation), []);
    client.subscribe(&mut simulation, &[("t", if_new)]);
    assert_eq!(receive_all(&mut client, &mut simulation), [], "the subscription exists");
    client.subscribe(&mut simulation, &[("+", if_new)]);
    assert_eq!(receive_all(&mut client, &mut simulation), [retained("t", b"x")]);
    client.subscribe(&mut simulation, &[("+", 0)]);
    assert_eq!(receive_all(&mut client, &mut simulation), [retained("t", b"x")]);
    client.disconnect(&mut simulation);
    simulation.end(&[]);
}

/// Without space, MQTT 5 clients are told with QoS 1 and 2. Other messages are published, and not retained.
#[test]
fn retained_messages_have_limits() {
    let limits = Limits { retained_max: 2, ..small_limits() };
    // Definitions have about 1 MB.
    let floors = [1_000, 256, 1_000];
    let memory = Memory::new(floors.iter().sum::<usize>() + COMMAND_EXTENTS, floors);
    let mut simulation = Simulation::in_memory(limits, &memory);
    let mut new = MqttClient::log_in(&mut simulation, &Login { level: 5, ..named("new") });
    let mut old = MqttClient::log_in(&mut simulation, &named("old"));
    for topic in ["a", "b", "a"] {
        assert!(publish_retained(&mut new, &mut simulation, (topic, 1), b"x") < 0x80);
    }
    for qos in [1, 2] {
        assert_eq!(publish_retained(&mut new, &mut simulation, ("c", qos), b"x"), 0x97, "quota exceeded");
    }
    assert_eq!(publish_retained(&mut new, &mut simulation, ("b", 1), &[0; 1_000_000]), 0x97);
    publish_retained(&mut old, &mut simulation, ("b", 1), &[0; 1_000_000]);
    let refused = |simulation: &Simulation| {
        let views = simulation.engine.broker().views();
        (views.refused_retained().map(|(_, topic, _)| topic.to_string()), views.retained_refused())
    };
    assert_eq!(refused(&simulation), (Some("b".to_owned()), 4), "two of each topic");
    let mut reader = MqttClient::log_in(&mut simulation, &named("reader"));
    reader.subscribe(&mut simulation, &[("c", 1)]);
    assert_eq!(publish_retained(&mut old, &mut simulation, ("c", 1), b"x"), 0);
    assert_eq!(receive_all(&mut reader, &mut simulation), [("c".to_owned(), b"x".to_vec(), false)]);
    // No answer to QoS 0 could refuse it.
    publish_retained(&mut new, &mut simulation, ("c", 0), b"z");
    assert_eq!(receive_all(&mut reader, &mut simulation), [("c".to_owned(), b"z".to_vec(), false)]);
    // A deletion makes space.
    publish_retained(&mut old, &mut simulation, ("a", 0), b"");
    assert!(publish_retained(&mut new, &mut simulation, ("c", 1), b"y") < 0x80);
    assert_eq!(refused(&simulation), (None, 6), "the topic that was refused last has a message");
    receive_all(&mut reader, &mut simulation);
    reader.subscribe(&mut simulation, &[("#", 0)]);
    let received = receive_all(&mut reader, &mut simulation);
    assert_eq!(
        received,
        [retained("c", b"y"), retained("b", b"x")],
        "b keeps the message before the one that was too large"
    );
    for client in [new, old, reader] {
        client.disconnect(&mut simulation);
    }
    simulation.end(&[]);
}

/// Thousands of retained messages take few places in the queue of their subscriber, even one that reads slowly.
#[test]
fn many_retained_messages_are_sent_in_many_turns() {
    let limits = Limits { retained_max: 5_000, mqtt_session_messages_max: 50, ..small_limits() };
    let mut simulation = Simulation::new(limits);
    let mut publisher = MqttClient::log_in(&mut simulation, &named("publisher"));
    for number in 0..5_000 {
        publish_retained(&mut publisher, &mut simulation, (&format!("devices/{number}/config"), 1), b"{}");
    }
    let mut reader = MqttClient::log_in(&mut simulation, &named("reader"));
    reader.subscribe(&mut simulation, &[("nothing/+", 1), ("devices/#", 1)]);
    let (mut count, mut chunks_max) = (0, 0);
    let mut topics = std::collections::HashSet::new();
    while let Some(message) = reader.receive(&mut simulation) {
        assert!(message.retain && topics.insert(message.topic));
        count += 1;
        chunks_max = chunks_max.max(simulation.engine.broker().gauges().chunks);
        reader.acknowledge(&mut simulation, message.packet_id.unwrap());
    }
    assert_eq!(count, 5_000);
    assert!(chunks_max <= 4, "{chunks_max} chunks of entries were in the queue");
    publisher.disconnect(&mut simulation);
    reader.disconnect(&mut simulation);
    simulation.end(&[]);
}

/// A retained message with QoS 1 is written before its PUBACK; one with QoS 0 later, and only the last one.
#[test]
fn retained_messages_with_qos_0_are_written_once_a_minute() {
    let mut simulation = Simulation::new(small_limits());
    simulation.keep_on_disk(Settings::default());
    let commits = |simulation: &mut Simulation| simulation.engine.platform_mut().helpers.commits;
    let mut client = MqttClient::log_in(&mut simulation, &named("client"));
    let before = commits(&mut simulation);
    for number in 0..10 {
        publish_retained(&mut client, &mut simulation, ("t", 0), &[number]);
        simulation.pass_ms(1_000);
    }
    assert_eq!(commits(&mut simulation), before);
    simulation.pass_ms(49_000);
    assert_eq!(commits(&mut simulation), before);
    simulation.pass_ms(2_000);
    assert_eq!(commits(&mut simulation), before + 1);
    // The storage may commit something of its own when it is idle.
    simulation.pass_ms(120_000);
    let before = commits(&mut simulation);
    simulation.pass_ms(120_000);
    assert_eq!(commits(&mut simulation), before);
    publish_retained(&mut client, &mut simulation, ("t", 1), b"x");
    assert_eq!(commits(&mut simulation), before + 1);
    client.disconnect(&mut simulation);
}

/// Retained messages that were not sent yet are sent on the next connection of a kept session, and not any more when the
/// subscription has ended.
#[test]
fn the_rest_of_the_retained_messages_follows_on_the_next_connection() {
    let mut simulation = Simulation::new(small_limits());
    let mut publisher = MqttClient::log_in(&mut simulation, &named("publisher"));
    for number in 0..200 {
        publish_retained(&mut publisher, &mut simulation, (&format!("t/{number}"), 1), b"x");
    }
    // The others wait for acknowledgements.
    let properties = [&[0x11, 0, 0, 0, 100][..], &RECEIVE_MAXIMUM_20].concat();
    let login = Login { level: 5, clean_start: false, properties: &properties, ..named("kept") };
    let mut client = MqttClient::log_in(&mut simulation, &login);
    client.subscribe(&mut simulation, &[("t/+", 1)]);
    let mut topics = std::collections::HashSet::new();
    for _ in 0..15 {
        let message = client.receive(&mut simulation).expect("a retained message");
        topics.insert(message.topic);
        client.acknowledge(&mut simulation, message.packet_id.unwrap());
    }
    client.lose(&mut simulation);
    let (mut client, connack) = MqttClient::connect(&mut simulation, &login);
    assert_eq!(connack.body[0], 1, "the session is present");
    for (topic, _, retain) in receive_all(&mut client, &mut simulation) {
        assert!(retain);
        topics.insert(topic);
    }
    assert_eq!(topics.len(), 200);
    // After UNSUBSCRIBE, only those follow that were on their way.
    client.unsubscribe(&mut simulation, &["t/+"]);
    client.subscribe(&mut simulation, &[("t/#", 1)]);
    assert!(client.receive(&mut simulation).is_some());
    let unsubscribe = packet(0xA2, &[0, 8, 0, 0, 3, b't', b'/', b'#']);
    client.send(&mut simulation, &unsubscribe);
    let (mut count, mut is_unsubscribed) = (1, false);
    while let Some(next) = client.next(&mut simulation) {
        match next.first_octet {
            0xB0 => is_unsubscribed = true,
            _ => count += 1,
        }
    }
    assert!(is_unsubscribed && count <= 20, "{count} of the messages were sent");
    for client in [client, publisher] {
        client.disconnect(&mut simulation);
    }
    delete_queue(&mut simulation, "mqtt-subscription-kept");
    simulation.end(&[]);
}

// ---- continued sessions

/// While CONNACK waits for the disk, deliveries of the session wait for CONNACK.
#[test]
fn connack_is_the_first_packet_of_a_continued_session() {
    let mut simulation = Simulation::new(small_limits());
    simulation.keep_on_disk(Settings::default());
    let login = |properties| Login { level: 5, clean_start: false, properties, ..named("kept") };
    let (mut client, _) = MqttClient::connect(&mut simulation, &login(&[0x11, 0, 0, 0, 100]));
    client.subscribe(&mut simulation, &[("#", 1)]);
    let mut publisher = MqttClient::log_in(&mut simulation, &named("publisher"));
    publisher.publish_1(&mut simulation, "t", 1, b"x");
    let first = client.receive(&mut simulation).expect("the message");
    client.lose(&mut simulation);
    simulation.engine.platform_mut().helpers.slowness_ms = 10_000;
    // Another session expiry interval is written to the log.
    let mut client = MqttClient::open(&mut simulation, 5);
    client.send(&mut simulation, &login(&[0x11, 0, 0, 0, 200]).packet());
    assert_eq!(client.next(&mut simulation), None);
    simulation.pass_ms(40_000);
    assert_eq!(client.expect(&mut simulation, 0x20).body[..2], [1, 0]);
    assert_eq!(client.receive(&mut simulation).map(|again| again.packet_id), Some(first.packet_id));
}

/// A delivery that was begun is completed, even if its subscription has ended.
#[test]
fn unacknowledged_deliveries_are_sent_again_after_an_unsubscription() {
    let mut simulation = Simulation::new(small_limits());
    let (mut client, _) = log_in_kept(&mut simulation, "kept");
    client.subscribe(&mut simulation, &[("#", 2)]);
    let mut publisher = MqttClient::log_in(&mut simulation, &named("publisher"));
    publisher.publish_1(&mut simulation, "t", 1, b"1");
    publish_2(&mut publisher, &mut simulation, "t", 2, b"2");
    let sent = [1, 2].map(|_| client.receive(&mut simulation).expect("the message"));
    client.unsubscribe(&mut simulation, &["#"]);
    client.lose(&mut simulation);
    let (mut client, _) = log_in_kept(&mut simulation, "kept");
    for earlier in &sent {
        let again = client.receive(&mut simulation).expect("it was not acknowledged");
        assert_eq!((again.packet_id, again.qos), (earlier.packet_id, earlier.qos));
    }
    client.acknowledge(&mut simulation, sent[0].packet_id.unwrap());
    client.send(&mut simulation, &id_packet(0x50, sent[1].packet_id.unwrap()));
    client.expect(&mut simulation, 0x62);
    assert_eq!(client.next(&mut simulation), None);
}

/// The client may forget a message when it gets PUBREL. So the message must not come back after a power cut.
#[test]
fn pubrel_waits_for_the_settlement_on_the_next_connection_too() {
    let mut simulation = Simulation::new(small_limits());
    simulation.keep_on_disk(Settings::default());
    let (mut client, _) = log_in_kept(&mut simulation, "kept");
    client.subscribe(&mut simulation, &[("#", 2)]);
    publish_2(&mut client, &mut simulation, "t", 1, b"x");
    let packet_id = client.receive(&mut simulation).expect("the message").packet_id.unwrap();
    simulation.engine.platform_mut().helpers.slowness_ms = 10_000;
    client.send(&mut simulation, &id_packet(0x50, packet_id));
    client.lose(&mut simulation);
    let mut client = MqttClient::open(&mut simulation, 4);
    client.send(&mut simulation, &kept("kept").packet());
    assert_eq!(client.next(&mut simulation), None, "the settlement is not durable");
    simulation.pass_ms(40_000);
    client.expect(&mut simulation, 0x20);
    client.expect(&mut simulation, 0x62);
}

/// A client that got CONNACK without a session must not find an earlier session after a power cut.
#[test]
fn connack_waits_for_the_end_of_an_earlier_session() {
    let mut simulation = Simulation::new(small_limits());
    simulation.keep_on_disk(Settings::default());
    let (client, _) = log_in_kept(&mut simulation, "c");
    client.disconnect(&mut simulation);
    simulation.engine.platform_mut().helpers.slowness_ms = 10_000;
    let clean = named("c").packet();
    // The connection that ended the session is lost before its CONNACK.
    let mut first = MqttClient::open(&mut simulation, 4);
    first.send(&mut simulation, &clean);
    first.lose(&mut simulation);
    let mut second = MqttClient::open(&mut simulation, 4);
    second.send(&mut simulation, &clean);
    assert_eq!(second.next(&mut simulation), None, "the end of the session is not durable");
    simulation.pass_ms(40_000);
    assert_eq!(second.expect(&mut simulation, 0x20).body[..2], [0, 0]);
    // A client that never had a session waits for nothing.
    let mut other = MqttClient::open(&mut simulation, 4);
    other.send(&mut simulation, &named("other").packet());
    other.expect(&mut simulation, 0x20);
}

/// After PUBCOMP, the client may use the packet identifier for another message.
#[test]
fn the_answer_to_a_repeated_pubrel_waits_until_the_packet_identifier_is_free() {
    let mut simulation = Simulation::new(small_limits());
    simulation.keep_on_disk(Settings::default());
    let (mut client, _) = log_in_kept(&mut simulation, "c");
    publish_2(&mut client, &mut simulation, "t", 7, b"x");
    simulation.engine.platform_mut().helpers.slowness_ms = 10_000;
    client.send(&mut simulation, &id_packet(0x62, 7));
    client.lose(&mut simulation);
    let mut client = MqttClient::open(&mut simulation, 4);
    client.send(&mut simulation, &kept("c").packet());
    client.send(&mut simulation, &id_packet(0x62, 7));
    while let Some(packet) = client.next(&mut simulation) {
        assert_ne!(packet.first_octet, 0x70, "PUBCOMP although the identifier is in the log");
    }
    simulation.pass_ms(40_000);
    client.expect(&mut simulation, 0x70);
}
