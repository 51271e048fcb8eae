//! The properties of MQTT 5 messages: between MQTT clients, and between MQTT and AMQP clients.

use leveret_amqp::field::Value;
use leveret_amqp::props::Properties;
use leveret_amqp::{Method, Table};
use leveret_core::limits::Limits;
use leveret_test_support::simulated_server::mqtt::{Login, MqttClient, Received};
use leveret_test_support::simulated_server::{Publish, Simulation, small_limits};

fn string(octets: &[u8]) -> Vec<u8> {
    [&(octets.len() as u16).to_be_bytes()[..], octets].concat()
}

fn payload_format(format: u8) -> Vec<u8> {
    vec![0x01, format]
}

fn expiry(seconds: u32) -> Vec<u8> {
    [&[0x02][..], &seconds.to_be_bytes()].concat()
}

fn content_type(text: &str) -> Vec<u8> {
    [vec![0x03], string(text.as_bytes())].concat()
}

fn response_topic(topic: &str) -> Vec<u8> {
    [vec![0x08], string(topic.as_bytes())].concat()
}

fn correlation(octets: &[u8]) -> Vec<u8> {
    [vec![0x09], string(octets)].concat()
}

fn user(name: &str, value: &str) -> Vec<u8> {
    [vec![0x26], string(name.as_bytes()), string(value.as_bytes())].concat()
}

fn client(simulation: &mut Simulation, level: u8, client_id: &str) -> MqttClient {
    MqttClient::log_in(simulation, &Login { level, client_id, ..Login::default() })
}

fn subscriber(simulation: &mut Simulation, level: u8, client_id: &str) -> MqttClient {
    let mut client = client(simulation, level, client_id);
    assert_eq!(client.subscribe(simulation, &[("#", 1)]), [1]);
    client
}

/// Publishes a message with QoS 1 and these properties, and returns the code of the PUBACK.
fn publish(
    publisher: &mut MqttClient,
    simulation: &mut Simulation,
    topic: &str,
    properties: &[u8],
    payload: &[u8],
) -> u8 {
    publish_with_flags(publisher, simulation, (2, topic), properties, payload)
}

fn publish_with_flags(
    publisher: &mut MqttClient,
    simulation: &mut Simulation,
    (flags, topic): (u8, &str),
    properties: &[u8],
    payload: &[u8],
) -> u8 {
    let packet = publisher.publish_packet_with(flags, (topic, 9), properties, payload);
    publisher.send(simulation, &packet);
    let puback = publisher.expect(simulation, 0x40);
    assert_eq!(puback.body[..2], [0, 9]);
    puback.body.get(2).copied().unwrap_or(0)
}

/// Returns the next message and its properties, and acknowledges it.
fn receive(client: &mut MqttClient, simulation: &mut Simulation) -> Option<(Received, Vec<u8>)> {
    let (message, properties) = client.receive_with_properties(simulation)?;
    if let Some(packet_id) = message.packet_id {
        client.acknowledge(simulation, packet_id);
    }
    Some((message, properties))
}

/// Returns the properties of the next message.
fn received(client: &mut MqttClient, simulation: &mut Simulation) -> Vec<u8> {
    receive(client, simulation).expect("a message").1
}

/// Disconnects the clients, and checks that nothing is left.
fn end(mut simulation: Simulation, clients: impl IntoIterator<Item = MqttClient>, queues: &[&str]) {
    for client in clients {
        client.disconnect(&mut simulation);
    }
    simulation.end(queues);
}

/// Opens an AMQP client with a queue `q` that gets all messages of MQTT clients.
fn amqp_client(simulation: &mut Simulation) -> usize {
    let amqp = simulation.open(&[1]);
    simulation.declare(amqp, 1, "q");
    bind(simulation, amqp, "amq.topic", "#");
    amqp
}

fn bind(simulation: &mut Simulation, amqp: usize, exchange: &str, routing_key: &str) {
    let arguments = Table::EMPTY;
    simulation.ask(
        amqp,
        1,
        &Method::QueueBind { queue: "q", exchange, routing_key, no_wait: false, arguments },
    );
}

fn all_properties() -> Vec<u8> {
    [
        payload_format(1),
        expiry(60),
        content_type("text/plain"),
        response_topic("answers/a.b"),
        correlation(&[0, 255, 7]),
        user("b", "1"),
        user("a", ""),
        user("b", "2"),
        user("x-request-id", "ä"),
    ]
    .concat()
}

#[test]
fn all_properties_reach_subscribers_of_mqtt_5_and_no_others() {
    let mut simulation = Simulation::new(small_limits());
    let mut publisher = client(&mut simulation, 5, "publisher");
    let mut subscribers = [3, 4, 5].map(|level| subscriber(&mut simulation, level, &format!("s{level}")));
    for (flags, packet_id) in [(0, 0), (2, 1), (4, 2)] {
        let packet = publisher.publish_packet_with(flags, ("a/b", packet_id), &all_properties(), b"payload");
        publisher.send(&mut simulation, &packet);
        while publisher.next(&mut simulation).is_some() {}
        for (at, subscriber) in subscribers.iter_mut().enumerate() {
            let (message, properties) = receive(subscriber, &mut simulation).expect("the message");
            assert_eq!((&*message.topic, &*message.payload), ("a/b", &b"payload"[..]));
            assert_eq!(properties, if at == 2 { all_properties() } else { Vec::new() });
        }
    }
    // Correlation data that is longer than a short string of AMQP, and a format of 0.
    let long = [payload_format(0), correlation(&[7; 5_000])].concat();
    assert_eq!(publish(&mut publisher, &mut simulation, "a", &long, b""), 0);
    assert_eq!(received(&mut subscribers[2], &mut simulation), long);
    // Two of them are too long for AMQP, and a third for the topics of this broker.
    let name = "x".repeat(256);
    for (properties, reason) in
        [(user(&name, ""), 0x83), (content_type(&name), 0x83), (response_topic(&name), 0x90)]
    {
        assert_eq!(publish(&mut publisher, &mut simulation, "a", &properties, b"refused"), reason);
    }
    assert_eq!(publish(&mut publisher, &mut simulation, "a", &user(&name[1..], &name), b""), 0);
    assert_eq!(received(&mut subscribers[2], &mut simulation), user(&name[1..], &name));
    for subscriber in &mut subscribers {
        while receive(subscriber, &mut simulation).is_some() {}
    }
    end(simulation, subscribers.into_iter().chain([publisher]), &[]);
}

#[test]
fn amqp_consumers_get_properties_of_mqtt_clients() {
    let mut simulation = Simulation::new(small_limits());
    let amqp = amqp_client(&mut simulation);
    simulation.consume(amqp, 1, "q", "tag", true);
    let mut publisher = client(&mut simulation, 5, "publisher");
    assert_eq!(publish(&mut publisher, &mut simulation, "a/b", &all_properties(), b"payload"), 0);
    simulation.run();
    let delivered = simulation.deliveries(amqp);
    let properties = Properties::parse(&delivered[0].properties).expect("valid");
    assert_eq!(delivered[0].body, b"payload");
    assert_eq!(properties.content_type(), Some(&b"text/plain"[..]));
    assert_eq!(properties.correlation_id(), Some(&[0, 255, 7][..]));
    assert_eq!((properties.expiration(), properties.delivery_mode()), (Some(&b"60000"[..]), Some(2)));
    let headers: Vec<_> = properties.headers().expect("headers").iter().collect();
    let expected: [(&[u8], Value<'_>); 6] = [
        (b"x-mqtt-payload-format", Value::Byte(1)),
        (b"x-reply-to-topic", Value::LongStr(b"answers.a/b")),
        (b"b", Value::LongStr(b"1")),
        (b"a", Value::LongStr(b"")),
        (b"b", Value::LongStr(b"2")),
        (b"x-request-id", Value::LongStr("ä".as_bytes())),
    ];
    assert_eq!(headers, expected);
    // Names with a meaning in AMQP are ordinary user properties.
    let copies = [user("CC", "q"), user("BCC", "q")].concat();
    assert_eq!(publish(&mut publisher, &mut simulation, "a/b", &copies, b""), 0);
    simulation.run();
    assert_eq!(simulation.deliveries(amqp).len(), 1);
    end(simulation, [publisher], &["q"]);
}

#[test]
fn a_headers_exchange_compares_user_properties() {
    let mut simulation = Simulation::new(small_limits());
    let amqp = simulation.open(&[1]);
    simulation.declare(amqp, 1, "q");
    let bind = Method::ExchangeBind {
        destination: "amq.headers",
        source: "amq.topic",
        routing_key: "#",
        no_wait: false,
        arguments: Table::EMPTY,
    };
    simulation.ask(amqp, 1, &bind);
    let arguments = Table::parse(b"\x05plantS\0\0\0\x03one").expect("valid");
    let bind =
        Method::QueueBind { queue: "q", exchange: "amq.headers", routing_key: "", no_wait: false, arguments };
    simulation.ask(amqp, 1, &bind);
    simulation.consume(amqp, 1, "q", "tag", true);
    let mut publisher = client(&mut simulation, 5, "publisher");
    assert_eq!(publish(&mut publisher, &mut simulation, "t", &user("plant", "two"), b""), 0x10);
    assert_eq!(publish(&mut publisher, &mut simulation, "t", &user("plant", "one"), b""), 0);
    simulation.run();
    assert_eq!(simulation.deliveries(amqp).len(), 1);
    let unbind = Method::ExchangeUnbind {
        destination: "amq.headers",
        source: "amq.topic",
        routing_key: "#",
        no_wait: false,
        arguments: Table::EMPTY,
    };
    simulation.ask(amqp, 1, &unbind);
    end(simulation, [publisher], &["q"]);
}

#[test]
fn subscribers_get_properties_of_amqp_publishers() {
    let mut simulation = Simulation::new(small_limits());
    let amqp = simulation.open(&[1]);
    let mut new = subscriber(&mut simulation, 5, "new");
    let mut old = subscriber(&mut simulation, 4, "old");
    let headers: &[u8] = b"\x01aS\0\0\0\x011\x06numberI\0\0\0\x05\x01aS\0\0\0\x012\x03badS\0\0\0\x01\xFF\
        \x10x-reply-to-topicS\0\0\0\x03b.c";
    // Content type, headers, delivery mode, correlation identifier, reply-to and expiration.
    let properties = [
        &[0xB7, 0, 4][..],
        b"a/bc",
        &(headers.len() as u32).to_be_bytes(),
        headers,
        &[2, 2, 0, 0xFF, 1, b'r', 4],
        b"5000",
    ]
    .concat();
    let publish = Publish { exchange: "amq.topic", key: "t", properties: &properties, ..Publish::default() };
    simulation.publish(amqp, 1, publish, b"body");
    let (message, properties) = receive(&mut new, &mut simulation).expect("the message");
    assert_eq!((&*message.payload, message.qos), (&b"body"[..], 1));
    let expected = [
        expiry(5),
        content_type("a/bc"),
        response_topic("b/c"),
        correlation(&[0, 0xFF]),
        user("a", "1"),
        user("a", "2"),
    ];
    assert_eq!(properties, expected.concat());
    let (message, properties) = receive(&mut old, &mut simulation).expect("the message");
    assert_eq!((&*message.payload, &*properties), (&b"body"[..], &[][..]));
    end(simulation, [new, old], &[]);
}

#[test]
fn messages_expire_and_subscribers_get_the_remaining_time() {
    let mut simulation = Simulation::new(small_limits());
    let mut publisher = client(&mut simulation, 5, "publisher");
    let (one_hour, at_most_two) = ([0x11, 0, 0, 0x0E, 0x10], [0x21, 0, 2]);
    let properties = [&one_hour[..], &at_most_two].concat();
    let login =
        Login { level: 5, client_id: "s", clean_start: false, properties: &properties, ..Login::default() };
    let mut away = MqttClient::log_in(&mut simulation, &login);
    away.subscribe(&mut simulation, &[("#", 1)]);
    away.disconnect(&mut simulation);
    for (seconds, payload) in [(2, b"a"), (10, b"b"), (100, b"c"), (5, b"d")] {
        assert_eq!(publish(&mut publisher, &mut simulation, "t", &expiry(seconds), payload), 0);
    }
    assert_eq!(publish(&mut publisher, &mut simulation, "t", &[], b"e"), 0);
    simulation.pass_ms(7_500);
    let mut back = MqttClient::log_in(&mut simulation, &login);
    // The first message has expired. Two messages are in flight.
    for (payload, seconds) in [(b"b", 3), (b"c", 93)] {
        let (message, properties) = back.receive_with_properties(&mut simulation).expect("the message");
        assert_eq!((&*message.payload, &*properties), (&payload[..], &*expiry(seconds)));
    }
    assert_eq!(back.receive_with_properties(&mut simulation), None);
    // The connection is lost before they are acknowledged.
    simulation.pass_ms(20_000);
    back.lose(&mut simulation);
    let mut back = MqttClient::log_in(&mut simulation, &login);
    let messages: Vec<_> = core::iter::from_fn(|| receive(&mut back, &mut simulation)).collect();
    let messages: Vec<_> =
        messages.iter().map(|(message, properties)| (&*message.payload, &**properties)).collect();
    assert_eq!(messages, [(&b"c"[..], &*expiry(73)), (&b"e"[..], &[][..])]);
    // A clean start deletes the session.
    let ended = MqttClient::log_in(&mut simulation, &Login { client_id: "s", ..Login::default() });
    end(simulation, [ended, publisher], &[]);
}

#[test]
fn a_message_that_expires_at_once_is_sent_to_a_waiting_subscriber() {
    let mut simulation = Simulation::new(small_limits());
    let mut publisher = client(&mut simulation, 5, "publisher");
    let mut subscriber = subscriber(&mut simulation, 5, "s");
    assert_eq!(publish(&mut publisher, &mut simulation, "t", &expiry(0), b"a"), 0);
    assert_eq!(received(&mut subscriber, &mut simulation), expiry(0));
    assert_eq!(publish(&mut publisher, &mut simulation, "t", &expiry(u32::MAX), b"a"), 0);
    assert_eq!(received(&mut subscriber, &mut simulation), expiry(3_153_600_000), "100 years");
    end(simulation, [publisher, subscriber], &[]);
}

#[test]
fn an_amqp_queue_drops_expired_messages_of_mqtt_clients() {
    let mut simulation = Simulation::new(small_limits());
    let amqp = amqp_client(&mut simulation);
    let mut publisher = client(&mut simulation, 5, "publisher");
    for seconds in [3, 30] {
        assert_eq!(publish(&mut publisher, &mut simulation, "t", &expiry(seconds), b""), 0);
    }
    simulation.pass_ms(4_000);
    simulation.consume(amqp, 1, "q", "tag", true);
    let delivered = simulation.deliveries(amqp);
    assert_eq!(delivered.len(), 1);
    let properties = Properties::parse(&delivered[0].properties).expect("valid");
    assert_eq!(properties.expiration(), Some(&b"30000"[..]));
    end(simulation, [publisher], &["q"]);
}

#[test]
fn retained_messages_have_properties_and_expire() {
    let mut simulation = Simulation::new(small_limits());
    simulation.pass_ms(1_000);
    let mut publisher = client(&mut simulation, 5, "publisher");
    let properties = [expiry(10), content_type("a"), user("b", "c")].concat();
    for topic in ["a", "b"] {
        let topic = (3, topic);
        assert_eq!(publish_with_flags(&mut publisher, &mut simulation, topic, &properties, b"x"), 0x10);
    }
    assert_eq!(publish_with_flags(&mut publisher, &mut simulation, (3, "c"), &[], b"x"), 0x10);
    simulation.pass_ms(4_000);
    let mut early = client(&mut simulation, 5, "early");
    early.subscribe(&mut simulation, &[("a", 1)]);
    let (message, properties) = receive(&mut early, &mut simulation).expect("the message");
    assert!(message.retain);
    assert_eq!(properties, [expiry(6), content_type("a"), user("b", "c")].concat());
    simulation.pass_ms(6_000);
    let mut late = subscriber(&mut simulation, 5, "late");
    let (message, properties) = receive(&mut late, &mut simulation).expect("the message");
    assert_eq!((&*message.topic, &*properties), ("c", &[][..]));
    assert_eq!(late.receive_with_properties(&mut simulation), None);
    end(simulation, [publisher, early, late], &[]);
}

/// Properties and payload are larger than the output buffer, and time passes while they are sent.
#[test]
fn a_header_larger_than_the_output_buffer_is_sent_in_parts() {
    let limits = Limits { output_buffer_bytes: 4 << 10, ..small_limits() };
    let mut simulation = Simulation::new(limits);
    let mut publisher = client(&mut simulation, 5, "publisher");
    let mut subscriber = subscriber(&mut simulation, 5, "s");
    for (count, payload_len) in [(40, 10), (40, 30_000), (1_200, 0), (1_200, 100_000)] {
        let users: Vec<u8> =
            (0..count).flat_map(|number| user(&format!("name {number}"), &"v".repeat(80))).collect();
        let payload: Vec<u8> = (0..payload_len).map(|at| (at % 251) as u8).collect();
        let properties = [expiry(30), users].concat();
        assert_eq!(publish(&mut publisher, &mut simulation, "t", &properties, &payload), 0);
        let (message, got) = receive(&mut subscriber, &mut simulation).expect("the message");
        assert!(got == properties && message.payload == payload, "{count} {payload_len}");
    }
    subscriber.publish(&mut simulation, "t", b"next");
    assert_eq!(receive(&mut subscriber, &mut simulation).expect("the message").0.payload, b"next");
    end(simulation, [publisher, subscriber], &[]);
}

/// A packet that is larger than the client accepts is never sent, and one that is smaller by 16 bytes is.
#[test]
fn properties_count_for_the_maximum_packet_size_of_a_client() {
    for packet_len_max in [64_u32, 300, 20_000] {
        let mut simulation = Simulation::new(small_limits());
        let mut publisher = client(&mut simulation, 5, "publisher");
        let properties = [&[0x27][..], &packet_len_max.to_be_bytes()].concat();
        let login = Login { level: 5, client_id: "s", properties: &properties, ..Login::default() };
        let mut small = MqttClient::log_in(&mut simulation, &login);
        small.subscribe(&mut simulation, &[("#", 0)]);
        let mut others = subscriber(&mut simulation, 5, "others");
        let (mut sent_max, mut dropped_min) = (0, usize::MAX);
        for payload_len in 0..60 {
            for properties in [
                content_type(&"x".repeat((packet_len_max as usize - 40).min(250))),
                [expiry(5), correlation(&[0]), user("a", &"x".repeat(packet_len_max as usize - 55))].concat(),
            ] {
                let payload = vec![b'p'; payload_len];
                assert_eq!(publish(&mut publisher, &mut simulation, "t", &properties, &payload), 0);
                assert_eq!(received(&mut others, &mut simulation), properties);
                let variable = |len: usize| {
                    if len < 128 {
                        1
                    } else if len < 16_384 {
                        2
                    } else {
                        3
                    }
                };
                let remaining = 3 + variable(properties.len()) + properties.len() + payload_len;
                let packet_len = 1 + variable(remaining) + remaining;
                match receive(&mut small, &mut simulation) {
                    Some((message, got)) => {
                        assert!(got == properties && message.payload == payload);
                        sent_max = sent_max.max(packet_len);
                    }
                    None => dropped_min = dropped_min.min(packet_len),
                }
            }
        }
        let limit = packet_len_max as usize;
        assert!(sent_max <= limit, "{sent_max} of {limit}");
        assert!(dropped_min + 36 > limit, "{dropped_min} of {limit}");
        end(simulation, [publisher, small, others], &[]);
    }
}

/// A PUBLISH whose properties fit into a frame of MQTT but not of AMQP is refused, and the connection goes on.
#[test]
fn properties_that_become_too_large_are_refused() {
    let mut simulation = Simulation::new(small_limits());
    let mut publisher = client(&mut simulation, 5, "publisher");
    let mut subscriber = subscriber(&mut simulation, 5, "s");
    // Each has 5 bytes, and 6 bytes as a header.
    let properties = |count: usize| user("", "").repeat(count);
    assert_eq!(publish(&mut publisher, &mut simulation, "t", &properties(21_800), b"fits"), 0);
    assert_eq!(received(&mut subscriber, &mut simulation), properties(21_800));
    assert_eq!(publish(&mut publisher, &mut simulation, "t", &properties(22_000), b"refused"), 0x83);
    assert_eq!(publish(&mut publisher, &mut simulation, "t", &[], b"next"), 0);
    assert_eq!(subscriber.receive(&mut simulation).expect("the message").payload, b"next");
    end(simulation, [publisher, subscriber], &[]);
}
