//! Options of subscriptions, shared subscriptions, topic aliases and reason strings of MQTT.

use leveret_amqp::{Method, Table};
use leveret_core::limits::Limits;
use leveret_test_support::simulated_server::mqtt::{Login, MqttClient, Received, packet};
use leveret_test_support::simulated_server::{Simulation, small_limits};

/// Options of a subscription.
const NO_LOCAL: u8 = 4;
const RETAIN_AS_PUBLISHED: u8 = 8;
const NO_RETAINED_MESSAGES: u8 = 0x20;

fn client(simulation: &mut Simulation, level: u8, client_id: &str) -> MqttClient {
    MqttClient::log_in(simulation, &Login { level, client_id, ..Login::default() })
}

/// Connects a client of MQTT 5 whose session is kept for an hour.
fn kept_client(simulation: &mut Simulation, client_id: &str) -> MqttClient {
    let properties = [0x11, 0, 0, 14, 16];
    let login =
        Login { level: 5, client_id, clean_start: false, properties: &properties, ..Login::default() };
    MqttClient::log_in(simulation, &login)
}

fn topic_alias(number: u16) -> Vec<u8> {
    [&[0x23][..], &number.to_be_bytes()].concat()
}

/// Returns the property Subscription Identifier, with a number below 128.
fn subscription_id(number: u8) -> Vec<u8> {
    vec![0x0B, number]
}

/// Returns all messages that have arrived, and acknowledges them.
fn receive_all(client: &mut MqttClient, simulation: &mut Simulation) -> Vec<(Received, Vec<u8>)> {
    let mut all = Vec::new();
    while let Some((message, properties)) = client.receive_with_properties(simulation) {
        if let Some(packet_id) = message.packet_id {
            client.acknowledge(simulation, packet_id);
        }
        all.push((message, properties));
    }
    all
}

/// Returns the payloads of all messages that have arrived, each of which has one byte.
fn payloads(client: &mut MqttClient, simulation: &mut Simulation) -> Vec<u8> {
    receive_all(client, simulation).into_iter().map(|(message, _)| message.payload[0]).collect()
}

fn end(mut simulation: Simulation, clients: impl IntoIterator<Item = MqttClient>) {
    for client in clients {
        client.disconnect(&mut simulation);
    }
    simulation.end(&[]);
}

/// Deletes the session of a client.
fn delete_session(simulation: &mut Simulation, client_id: &str) {
    client(simulation, 5, client_id).disconnect(simulation);
}

// ---- topic aliases

#[test]
fn a_client_may_publish_with_a_topic_alias() {
    let mut simulation = Simulation::new(small_limits());
    let mut subscriber = client(&mut simulation, 4, "s");
    subscriber.subscribe(&mut simulation, &[("#", 1)]);
    let mut publisher = client(&mut simulation, 5, "p");
    for (topic, alias, expected) in
        [("a/b", 1, "a/b"), ("", 1, "a/b"), ("c", 16, "c"), ("d", 1, "d"), ("", 1, "d"), ("", 16, "c")]
    {
        let publish = publisher.publish_packet_with(2, (topic, 5), &topic_alias(alias), b"x");
        publisher.send(&mut simulation, &publish);
        assert_eq!(publisher.expect(&mut simulation, 0x40).body, [0, 5]);
        let received = receive_all(&mut subscriber, &mut simulation);
        assert_eq!(received[0].0.topic, expected);
    }
    end(simulation, [publisher, subscriber]);
}

#[test]
fn a_wrong_topic_alias_ends_the_connection() {
    for (level, topic, alias, reason) in [(5, "t", 17, 0x94), (5, "t", 0, 0x94), (5, "", 2, 0x82)] {
        let mut simulation = Simulation::new(small_limits());
        let mut publisher = client(&mut simulation, level, "p");
        let publish = publisher.publish_packet_with(0, (topic, 0), &topic_alias(alias), b"x");
        publisher.send(&mut simulation, &publish);
        assert_eq!(publisher.expect(&mut simulation, 0xE0).body[0], reason);
        publisher.assert_closed(&mut simulation);
        simulation.end(&[]);
    }
}

/// The aliases of the client and those of the broker are independent of each other, and end with the connection.
#[test]
fn a_client_gets_topic_aliases_if_it_accepts_them() {
    let mut simulation = Simulation::new(small_limits());
    let properties = [&[0x22, 0, 2][..], &[0x11, 0, 0, 14, 16]].concat();
    let login =
        Login { level: 5, client_id: "s", clean_start: false, properties: &properties, ..Login::default() };
    let mut publisher = client(&mut simulation, 5, "p");
    for is_first in [true, false] {
        let mut subscriber = MqttClient::log_in(&mut simulation, &login);
        if is_first {
            subscriber.subscribe(&mut simulation, &[("#", 1)]);
        }
        for (topic, sent_topic, alias) in [
            ("first", "first", Some(1)),
            ("first", "", Some(1)),
            ("abc", "abc", None),
            ("second", "second", Some(2)),
            ("third", "third", None),
            ("second", "", Some(2)),
            ("first", "", Some(1)),
        ] {
            assert_eq!(publisher.publish_1(&mut simulation, topic, 1, b"payload"), 0);
            let all = receive_all(&mut subscriber, &mut simulation);
            assert_eq!((&*all[0].0.topic, &*all[0].0.payload), (sent_topic, &b"payload"[..]));
            assert_eq!(all[0].1, alias.map_or(Vec::new(), topic_alias));
        }
        subscriber.lose(&mut simulation);
    }
    delete_session(&mut simulation, "s");
    end(simulation, [publisher]);
}

/// Answers and three messages fill the output buffer more or less exactly, and the last message does not fit into an empty
/// one. The client learns each alias with its topic.
#[test]
fn an_alias_is_not_used_before_its_topic_is_sent() {
    let mut simulation = Simulation::new(Limits { output_buffer_bytes: 4 << 10, ..small_limits() });
    let mut publisher = client(&mut simulation, 5, "p");
    for len in 1_150..1_250 {
        let login = Login { level: 5, client_id: "s", properties: &[0x22, 0, 16], ..Login::default() };
        let mut subscriber = MqttClient::log_in(&mut simulation, &login);
        subscriber.subscribe(&mut simulation, &[("first", 0), ("second", 0)]);
        let messages = [("first", 1_250), ("first", 1_250), ("first", len), ("second", 10_000)];
        let packets = messages.map(|(topic, len)| publisher.publish_packet(0, topic, 0, &vec![1; len]));
        let own: Vec<u8> = (1..=80).flat_map(|id| subscriber.publish_packet(2, "none", id, b"")).collect();
        subscriber.send_without_turn(&mut simulation, &own);
        publisher.send_without_turn(&mut simulation, &packets.concat());
        simulation.run();
        for _ in 0..80 {
            subscriber.expect(&mut simulation, 0x40);
        }
        let all = receive_all(&mut subscriber, &mut simulation);
        let topics: Vec<_> = all.iter().map(|(message, _)| &*message.topic).collect();
        assert_eq!(topics, ["first", "", "", "second"], "{len}");
        assert_eq!((&all[0].1, &all[3].1), (&topic_alias(1), &topic_alias(2)));
        subscriber.disconnect(&mut simulation);
    }
    end(simulation, [publisher]);
}

/// The memory for aliases is limited for all connections together. A client without them uses topic names.
#[test]
fn connections_beyond_the_limit_get_no_topic_aliases() {
    let mut simulation = Simulation::with_extents(small_limits(), 80);
    let has_aliases = |connack: &[u8]| connack.windows(3).any(|octets| octets == [0x22, 0, 16]);
    let mut clients = Vec::new();
    let (mut with_aliases, mut without) = (0, 0);
    for number in 0..20 {
        let client_id = number.to_string();
        let login = Login { level: 5, client_id: &client_id, ..Login::default() };
        let (client, connack) = MqttClient::connect(&mut simulation, &login);
        if has_aliases(&connack.body) {
            with_aliases += 1
        } else {
            without += 1
        }
        clients.push(client);
    }
    assert!(with_aliases > 2 && without > 2, "{with_aliases} {without}");
    let mut last = clients.pop().expect("twenty");
    let publish = last.publish_packet_with(0, ("t", 0), &topic_alias(1), b"x");
    last.send(&mut simulation, &publish);
    assert_eq!(last.expect(&mut simulation, 0xE0).body[0], 0x94);
    last.assert_closed(&mut simulation);
    clients.remove(0).disconnect(&mut simulation);
    let (client, connack) = MqttClient::connect(&mut simulation, &Login { level: 5, ..Login::default() });
    assert!(has_aliases(&connack.body));
    clients.push(client);
    end(simulation, clients);
}

// ---- subscription identifiers

#[test]
fn a_message_has_the_identifiers_of_all_matching_subscriptions() {
    let mut simulation = Simulation::new(small_limits());
    let mut subscriber = kept_client(&mut simulation, "s");
    for (filter, id) in [("a/#", 1), ("a/b", 127), ("a/+", 1), ("x", 9)] {
        subscriber.subscribe_with(&mut simulation, &subscription_id(id), &[(filter, 1)]);
    }
    subscriber.subscribe(&mut simulation, &[("#", 0)]);
    let mut publisher = client(&mut simulation, 5, "p");
    let mut ids = |subscriber: &mut MqttClient, simulation: &mut Simulation, topic: &str| {
        publisher.publish_1(simulation, topic, 1, b"payload");
        let all = receive_all(subscriber, simulation);
        assert_eq!(all.len(), 1);
        let mut ids: Vec<_> = all[0].1.as_chunks::<2>().0.iter().map(|[_, id]| *id).collect();
        ids.sort_unstable();
        ids
    };
    assert_eq!(ids(&mut subscriber, &mut simulation, "a/b"), [1, 1, 127]);
    assert_eq!(ids(&mut subscriber, &mut simulation, "a/b/c"), [1]);
    assert_eq!(ids(&mut subscriber, &mut simulation, "other"), [0_u8; 0]);
    // A new SUBSCRIBE replaces the identifier, or removes it.
    subscriber.subscribe_with(&mut simulation, &subscription_id(2), &[("a/#", 1)]);
    subscriber.subscribe(&mut simulation, &[("a/b", 1)]);
    subscriber.unsubscribe(&mut simulation, &["a/+"]);
    assert_eq!(ids(&mut subscriber, &mut simulation, "a/b"), [2]);
    // The next connection of the session keeps them.
    subscriber.lose(&mut simulation);
    let mut subscriber = kept_client(&mut simulation, "s");
    assert_eq!(ids(&mut subscriber, &mut simulation, "a/b"), [2]);
    subscriber.disconnect(&mut simulation);
    delete_session(&mut simulation, "s");
    end(simulation, [publisher]);
}

/// With identifiers and aliases, too, a client gets no packet that is larger than it accepts, and all smaller ones.
#[test]
fn identifiers_count_for_the_maximum_packet_size() {
    let mut simulation = Simulation::new(small_limits());
    let mut publisher = client(&mut simulation, 5, "p");
    let properties = [&[0x27, 0, 0, 0, 60][..], &[0x22, 0, 9]].concat();
    let login = Login { level: 5, client_id: "s", properties: &properties, ..Login::default() };
    let mut small = MqttClient::log_in(&mut simulation, &login);
    for filter in ["#", "+", "topic"] {
        small.subscribe_with(&mut simulation, &subscription_id(5), &[(filter, 1)]);
    }
    for payload_len in 0..60 {
        publisher.publish_1(&mut simulation, "topic", 1, &vec![b'x'; payload_len]);
        // Two bytes of the fixed header, the topic, the packet identifier, the properties.
        let packet_len = 2 + 2 + 5 + 2 + 1 + 6 + payload_len;
        let all = receive_all(&mut small, &mut simulation);
        assert_eq!(all.len(), usize::from(packet_len <= 60), "{packet_len}");
        let used = all.first().map_or(0, |(message, properties)| {
            2 + 2 + message.topic.len() + 2 + 1 + properties.len() + payload_len
        });
        assert!(used <= 60, "{used}");
    }
    end(simulation, [publisher, small]);
}

/// The header of a PUBLISH is sent in parts. A SUBSCRIBE that changes it waits until it is sent.
#[test]
fn a_subscription_does_not_change_a_header_that_is_being_sent() {
    let limits = Limits { output_buffer_bytes: 4 << 10, ..small_limits() };
    let mut simulation = Simulation::new(limits);
    let mut publisher = client(&mut simulation, 5, "p");
    let mut subscriber = client(&mut simulation, 5, "s");
    subscriber.subscribe_with(&mut simulation, &subscription_id(1), &[("#", 0)]);
    let user = [&[0x26, 0, 1, b'n', 0, 100][..], &[b'v'; 100]].concat();
    let properties = user.repeat(500);
    let publish = publisher.publish_packet_with(0, ("t", 0), &properties, b"payload");
    publisher.send(&mut simulation, &publish);
    let subscribe = packet(0x82, &[&[0, 9, 2, 0x0B, 2, 0, 1][..], b"t", &[0]].concat());
    subscriber.send_without_turn(&mut simulation, &subscribe);
    simulation.run();
    let (message, received) = subscriber.receive_with_properties(&mut simulation).expect("a message");
    assert_eq!((&*message.payload, &received[..2]), (&b"payload"[..], &subscription_id(1)[..]));
    assert!(received[2..] == properties, "the other properties are complete");
    assert_eq!(subscriber.expect(&mut simulation, 0x90).body[..2], [0, 9]);
    publisher.publish(&mut simulation, "t", b"next");
    assert_eq!(receive_all(&mut subscriber, &mut simulation)[0].1.len(), 4);
    end(simulation, [publisher, subscriber]);
}

// ---- No Local and Retain As Published

#[test]
fn a_client_does_not_get_its_own_messages_with_no_local() {
    let mut simulation = Simulation::new(small_limits());
    let mut own = client(&mut simulation, 5, "own");
    let mut other = client(&mut simulation, 5, "other");
    own.subscribe(&mut simulation, &[("a/#", 1 | NO_LOCAL), ("a/b/c", 0)]);
    other.subscribe(&mut simulation, &[("#", 1 | NO_LOCAL)]);
    assert_eq!(own.publish_1(&mut simulation, "a/b", 1, b"1"), 0);
    assert_eq!(payloads(&mut own, &mut simulation), b"");
    assert_eq!(payloads(&mut other, &mut simulation), b"1");
    other.publish_1(&mut simulation, "a/b", 1, b"2");
    assert_eq!(payloads(&mut own, &mut simulation), b"2");
    assert_eq!(payloads(&mut other, &mut simulation), b"");
    // Another subscription without the option matches.
    own.publish_1(&mut simulation, "a/b/c", 1, b"3");
    assert_eq!(payloads(&mut own, &mut simulation), b"3");
    assert_eq!(payloads(&mut other, &mut simulation), b"3");
    other.disconnect(&mut simulation);
    assert_eq!(own.publish_1(&mut simulation, "a/b", 1, b"4"), 0x10, "it has no subscriber");
    // The same filter without the option replaces the subscription.
    own.subscribe(&mut simulation, &[("a/#", 1)]);
    own.publish_1(&mut simulation, "a/b", 1, b"5");
    assert_eq!(payloads(&mut own, &mut simulation), b"5");
    end(simulation, [own]);
}

#[test]
fn retain_as_published_keeps_the_flag() {
    let mut simulation = Simulation::new(small_limits());
    let mut publisher = client(&mut simulation, 5, "p");
    let mut keeps = kept_client(&mut simulation, "keeps");
    let mut clears = client(&mut simulation, 4, "clears");
    keeps.subscribe(&mut simulation, &[("a/#", 1 | RETAIN_AS_PUBLISHED), ("b", 1)]);
    clears.subscribe(&mut simulation, &[("#", 1)]);
    for (flags, topic, is_kept) in [(2, "a/x", false), (3, "a/x", true), (3, "a/y", true), (3, "b", false)] {
        let publish = publisher.publish_packet(flags, topic, 1, b"x");
        publisher.send(&mut simulation, &publish);
        publisher.expect(&mut simulation, 0x40);
        let received = receive_all(&mut keeps, &mut simulation);
        assert_eq!((received.len(), received[0].0.retain), (1, is_kept), "{topic}");
        assert!(!receive_all(&mut clears, &mut simulation)[0].0.retain);
    }
    // While the client is away, the messages keep the flag, too.
    keeps.lose(&mut simulation);
    let publish = publisher.publish_packet(3, "a/z", 1, b"x");
    publisher.send(&mut simulation, &publish);
    publisher.expect(&mut simulation, 0x40);
    let mut keeps = kept_client(&mut simulation, "keeps");
    assert!(receive_all(&mut keeps, &mut simulation)[0].0.retain);
    assert!(!receive_all(&mut clears, &mut simulation)[0].0.retain);
    keeps.disconnect(&mut simulation);
    delete_session(&mut simulation, "keeps");
    for topic in ["a/x", "a/y", "a/z", "b"] {
        let publish = publisher.publish_packet(3, topic, 1, b"");
        publisher.send(&mut simulation, &publish);
        publisher.expect(&mut simulation, 0x40);
        receive_all(&mut clears, &mut simulation);
    }
    end(simulation, [publisher, clears]);
}

// ---- shared subscriptions

#[test]
fn one_client_of_a_group_gets_each_message() {
    for level in [3, 4, 5] {
        let mut simulation = Simulation::new(small_limits());
        let mut publisher = client(&mut simulation, level, "p");
        let mut members = ["one", "two", "three"].map(|client_id| client(&mut simulation, level, client_id));
        for member in &mut members {
            member.subscribe(&mut simulation, &[("$share/group/jobs/+", 1)]);
        }
        // Another group, another filter in the same group, and a client outside of groups get all of them, too.
        let mut others =
            ["other group", "other filter", "no group"].map(|id| client(&mut simulation, level, id));
        others[0].subscribe(&mut simulation, &[("$share/other/jobs/+", 1)]);
        others[1].subscribe(&mut simulation, &[("$share/group/#", 1)]);
        others[2].subscribe(&mut simulation, &[("jobs/#", 1)]);
        let mut counts = [0; 3];
        for number in 0..30 {
            publisher.publish_1(&mut simulation, "jobs/x", 1, &[number]);
            let got: Vec<_> = members.iter_mut().map(|member| payloads(member, &mut simulation)).collect();
            assert_eq!(got.concat(), [number], "one of them gets it");
            got.iter().zip(&mut counts).for_each(|(got, count)| *count += got.len());
            for other in &mut others {
                assert_eq!(payloads(other, &mut simulation), [number]);
            }
        }
        assert_eq!(counts, [10; 3]);
        members[0].unsubscribe(&mut simulation, &["$share/group/jobs/+"]);
        for number in 0..4 {
            publisher.publish_1(&mut simulation, "jobs/x", 1, &[number]);
            assert_eq!(payloads(&mut members[0], &mut simulation), b"");
            for other in &mut others {
                assert_eq!(payloads(other, &mut simulation), [number]);
            }
        }
        let [_, two, three] = &mut members;
        assert_eq!(payloads(two, &mut simulation).len() + payloads(three, &mut simulation).len(), 4);
        end(simulation, [publisher].into_iter().chain(members).chain(others));
    }
}

/// Shared subscriptions of other clients do not matter, whatever their number.
#[test]
fn one_client_of_each_of_many_groups_gets_each_message() {
    let mut simulation = Simulation::new(small_limits());
    let mut publisher = client(&mut simulation, 5, "p");
    let mut other = client(&mut simulation, 5, "other");
    for group in 0..90 {
        other.subscribe(&mut simulation, &[(&format!("$share/g{group}/jobs/1"), 1)]);
    }
    let mut workers = ["one", "two"].map(|client_id| client(&mut simulation, 5, client_id));
    for worker in &mut workers {
        worker.subscribe(&mut simulation, &[("$share/team/jobs/#", 1)]);
    }
    for number in 0..20 {
        publisher.publish_1(&mut simulation, "jobs/1", 1, &[number]);
        assert_eq!(payloads(&mut other, &mut simulation), [number]);
        let got: Vec<_> = workers.iter_mut().map(|worker| payloads(worker, &mut simulation)).collect();
        assert_eq!(got.concat(), [number]);
    }
    end(simulation, [publisher, other].into_iter().chain(workers));
}

/// A client that accepts no such large packet gets a message only if all of its group accept none.
#[test]
fn a_client_of_a_group_that_accepts_only_small_packets_is_left_out() {
    let mut simulation = Simulation::new(small_limits());
    let mut publisher = client(&mut simulation, 5, "p");
    let properties = [0x27, 0, 0, 0, 60];
    let login = Login { level: 5, client_id: "small", properties: &properties, ..Login::default() };
    let mut small = MqttClient::log_in(&mut simulation, &login);
    let mut large = client(&mut simulation, 5, "large");
    for member in [&mut small, &mut large] {
        member.subscribe(&mut simulation, &[("$share/g/jobs", 1)]);
    }
    for number in 0..10 {
        publisher.publish_1(&mut simulation, "jobs", 1, &[number; 100]);
        assert_eq!(payloads(&mut large, &mut simulation), [number]);
    }
    publisher.publish_1(&mut simulation, "jobs", 1, &[11; 10]);
    assert_eq!(payloads(&mut small, &mut simulation), [11], "it was not chosen for long");
    end(simulation, [publisher, small, large]);
}

/// A client that does not acknowledge gets no more than the others have waiting.
#[test]
fn a_slow_client_of_a_group_gets_fewer_messages() {
    let mut simulation = Simulation::new(small_limits());
    let mut publisher = client(&mut simulation, 5, "p");
    let mut slow = client(&mut simulation, 5, "slow");
    let mut fast = client(&mut simulation, 5, "fast");
    for member in [&mut slow, &mut fast] {
        member.subscribe(&mut simulation, &[("$share/g/jobs", 1)]);
    }
    let mut count = 0;
    for number in 0..50 {
        publisher.publish_1(&mut simulation, "jobs", 1, &[number]);
        count += payloads(&mut fast, &mut simulation).len();
    }
    assert_eq!(count, 49);
    assert_eq!(receive_all(&mut slow, &mut simulation).len(), 1);
    end(simulation, [publisher, slow, fast]);
}

/// Messages wait for a client that is away only if all clients of the group are.
#[test]
fn a_client_of_a_group_that_is_away_gets_nothing() {
    let mut simulation = Simulation::new(small_limits());
    let mut publisher = client(&mut simulation, 5, "p");
    for client_id in ["one", "two"] {
        let mut member = kept_client(&mut simulation, client_id);
        member.subscribe_with(&mut simulation, &subscription_id(7), &[("$share/g/jobs", 1)]);
        member.lose(&mut simulation);
    }
    let mut one = kept_client(&mut simulation, "one");
    for number in 0..3 {
        assert_eq!(publisher.publish_1(&mut simulation, "jobs", 1, &[number]), 0);
    }
    assert_eq!(payloads(&mut one, &mut simulation), [0, 1, 2]);
    one.lose(&mut simulation);
    for number in 3..7 {
        assert_eq!(publisher.publish_1(&mut simulation, "jobs", 1, &[number]), 0);
    }
    let all: Vec<_> = ["one", "two"]
        .iter()
        .flat_map(|client_id| {
            let mut member = kept_client(&mut simulation, client_id);
            let all = receive_all(&mut member, &mut simulation);
            assert!(all.iter().all(|(_, properties)| *properties == subscription_id(7)));
            member.disconnect(&mut simulation);
            delete_session(&mut simulation, client_id);
            all
        })
        .map(|(message, _)| message.payload[0])
        .collect();
    assert_eq!(all.len(), 4);
    assert!((3..7).all(|number| all.contains(&number)));
    assert_eq!(publisher.publish_1(&mut simulation, "jobs", 1, b"x"), 0x10);
    end(simulation, [publisher]);
}

#[test]
fn a_shared_subscription_gets_no_retained_messages() {
    let mut simulation = Simulation::new(small_limits());
    let mut publisher = client(&mut simulation, 5, "p");
    let publish = publisher.publish_packet(3, "t", 1, b"x");
    publisher.send(&mut simulation, &publish);
    publisher.expect(&mut simulation, 0x40);
    let mut member = client(&mut simulation, 5, "one");
    member.subscribe(&mut simulation, &[("$share/g/t", 1), ("t/#", 1 | NO_RETAINED_MESSAGES)]);
    assert_eq!(payloads(&mut member, &mut simulation), b"");
    member.subscribe(&mut simulation, &[("t", 1)]);
    assert_eq!(payloads(&mut member, &mut simulation), b"x");
    // §3.8.3.1: No Local on a shared subscription is a protocol error.
    member
        .send(&mut simulation, &packet(0x82, &[&[0, 9, 0, 0, 10][..], b"$share/g/t", &[NO_LOCAL]].concat()));
    assert_eq!(member.expect(&mut simulation, 0xE0).body[0], 0x82);
    member.assert_closed(&mut simulation);
    let publish = publisher.publish_packet(3, "t", 1, b"");
    publisher.send(&mut simulation, &publish);
    publisher.expect(&mut simulation, 0x40);
    end(simulation, [publisher]);
}

// ---- reason strings, and the sizes of answers

/// Returns the reason string at the end of a packet; empty if there is none.
fn reason_string(body: &[u8]) -> String {
    let at = body.iter().position(|octet| *octet == 0x1F).map_or(body.len(), |at| at + 3);
    String::from_utf8_lossy(&body[at..]).into_owned()
}

#[test]
fn refusals_have_a_reason_string_if_the_client_wants_it() {
    for (properties, is_wanted) in [(&[][..], true), (&[0x17, 0], false), (&[0x27, 0, 0, 0, 30], false)] {
        let mut simulation = Simulation::new(small_limits());
        let login = Login { level: 5, client_id: "c", properties, ..Login::default() };
        let mut client = MqttClient::log_in(&mut simulation, &login);
        let publish = client.publish_packet(2, &"x".repeat(256), 1, b"");
        client.send(&mut simulation, &publish);
        let puback = client.expect(&mut simulation, 0x40);
        assert_eq!(puback.body[2], 0x90);
        let expected = if is_wanted { "a topic of more than 255 bytes" } else { "" };
        assert_eq!(reason_string(&puback.body), expected);
        // DISCONNECT always has one, if it fits.
        client.send(&mut simulation, &login.packet());
        let disconnect = client.expect(&mut simulation, 0xE0);
        assert_eq!(disconnect.body[0], 0x82);
        assert_eq!(reason_string(&disconnect.body), "a second CONNECT");
        client.assert_closed(&mut simulation);
        simulation.end(&[]);
    }
}

#[test]
fn a_client_that_accepts_no_connack_is_disconnected() {
    let mut simulation = Simulation::new(small_limits());
    let properties = [0x27, 0, 0, 0, 10];
    let mut client = MqttClient::open(&mut simulation, 5);
    client.send(&mut simulation, &Login { level: 5, properties: &properties, ..Login::default() }.packet());
    client.assert_closed(&mut simulation);
    simulation.end(&[]);
}

// ---- a publisher that waits

/// A publisher waits for memory. It gets its deliveries and PINGRESP nevertheless, each once, and goes on later.
#[test]
fn a_publisher_that_waits_for_memory_gets_pingresp() {
    let mut simulation = Simulation::with_message_extents(4);
    let amqp = simulation.open(&[1]);
    simulation.declare(amqp, 1, "full");
    let (queue, exchange, routing_key) = ("full", "amq.topic", "full");
    let bind = Method::QueueBind { queue, exchange, routing_key, no_wait: false, arguments: Table::EMPTY };
    simulation.ask(amqp, 1, &bind);
    let login = Login { level: 5, client_id: "p", keep_alive_s: 12, ..Login::default() };
    let mut publisher = MqttClient::log_in(&mut simulation, &login);
    let mut count = 0;
    loop {
        let publish = publisher.publish_packet(2, "full", count + 1, &[count as u8; 200]);
        publisher.send(&mut simulation, &publish);
        count += 1;
        assert!(count < 500, "the memory must become full");
        if publisher.next(&mut simulation).is_none() {
            break;
        }
    }
    // The publisher waits with the last message.
    let (ping, pong) = ([0xC0, 0], 0xD0);
    for round in 0..20 {
        assert_eq!(publisher.next(&mut simulation), None);
        publisher.send(&mut simulation, &ping);
        simulation.pass_ms(3_100);
        publisher.expect(&mut simulation, pong);
        assert!(!publisher.is_closed(&simulation), "{round}");
    }
    let (broker, mut context) = simulation.engine.broker_mut();
    broker.operator_purge(&mut context, "/", "full").expect("it exists");
    simulation.run();
    publisher.expect(&mut simulation, 0x40);
    assert_eq!(publisher.next(&mut simulation), None, "the requests were answered already");
    publisher.send(&mut simulation, &ping);
    publisher.expect(&mut simulation, pong);
    publisher.disconnect(&mut simulation);
    simulation.end(&["full"]);
}
