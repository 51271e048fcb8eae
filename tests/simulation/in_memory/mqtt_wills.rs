//! Wills of MQTT clients: when they are published, and when not. Clients that are refused, and limits of packets.

use leveret_broker::Restored;
use leveret_core::definition::Permission;
use leveret_core::definition::{self, Definition};
use leveret_core::limits::{CONNECT_BYTES_MAX, Limits};
use leveret_storage::Settings;
use leveret_test_support::simulated_server::mqtt::{Login, MqttClient, packet};
use leveret_test_support::simulated_server::{Simulation, small_limits};

use super::mqtt::{delete_queue, kept, log_in_kept, named};

const WILL: (&str, &[u8], u8, bool) = ("will/x", b"gone", 1, false);

fn watcher(simulation: &mut Simulation) -> MqttClient {
    let mut watcher = MqttClient::log_in(simulation, &named("watcher"));
    watcher.subscribe(simulation, &[("will/#", 2)]);
    watcher
}

/// Returns the payloads of all wills that have arrived.
fn wills(watcher: &mut MqttClient, simulation: &mut Simulation) -> Vec<String> {
    let mut found = Vec::new();
    while let Some(will) = watcher.receive(simulation) {
        found.push(String::from_utf8(will.payload).expect("it is text"));
        if let Some(packet_id) = will.packet_id {
            watcher.acknowledge(simulation, packet_id);
        }
    }
    found
}

fn with_will(client_id: &str) -> Login<'_> {
    Login { will: Some(WILL), ..named(client_id) }
}

/// Returns a CONNECT of MQTT 5 with a session expiry interval and a will delay interval, in seconds.
fn delayed<'a>(client_id: &'a str, properties: &'a [u8], will_properties: &'a [u8]) -> Login<'a> {
    Login { level: 5, clean_start: false, properties, will_properties, ..with_will(client_id) }
}

const EXPIRY_100_S: &[u8] = &[0x11, 0, 0, 0, 100];
const DELAY_10_S: &[u8] = &[0x18, 0, 0, 0, 10];

#[test]
fn a_will_is_published_unless_the_client_takes_leave() {
    let mut simulation = Simulation::new(small_limits());
    let mut watcher = watcher(&mut simulation);
    let none = Vec::<String>::new();
    for level in [3, 4, 5] {
        let login = Login { level, ..with_will("c") };
        let client = MqttClient::log_in(&mut simulation, &login);
        client.disconnect(&mut simulation);
        assert_eq!(wills(&mut watcher, &mut simulation), none);
        let client = MqttClient::log_in(&mut simulation, &login);
        assert_eq!(wills(&mut watcher, &mut simulation), none);
        client.lose(&mut simulation);
        assert_eq!(wills(&mut watcher, &mut simulation), ["gone"]);
        // The client breaks the protocol.
        let mut client = MqttClient::log_in(&mut simulation, &login);
        client.send(&mut simulation, &[0xF0, 0]);
        client.next(&mut simulation);
        client.assert_closed(&mut simulation);
        assert_eq!(wills(&mut watcher, &mut simulation), ["gone"]);
    }
    // Disconnect with Will Message.
    let mut client = MqttClient::log_in(&mut simulation, &Login { level: 5, ..with_will("c") });
    client.send(&mut simulation, &packet(0xE0, &[4]));
    client.assert_closed(&mut simulation);
    assert_eq!(wills(&mut watcher, &mut simulation), ["gone"]);
    // A client that is silent for 1.5 keep-alive times.
    let client = MqttClient::log_in(&mut simulation, &Login { keep_alive_s: 10, ..with_will("c") });
    simulation.pass_ms(14_000);
    assert_eq!(wills(&mut watcher, &mut simulation), none);
    simulation.pass_ms(2_000);
    assert_eq!(wills(&mut watcher, &mut simulation), ["gone"]);
    client.lose(&mut simulation);
    watcher.disconnect(&mut simulation);
    simulation.end(&[]);
}

#[test]
fn a_will_waits_for_its_delay_and_the_client_may_come_back() {
    let mut simulation = Simulation::new(small_limits());
    let mut watcher = watcher(&mut simulation);
    let none = Vec::<String>::new();
    let login = delayed("c", EXPIRY_100_S, DELAY_10_S);
    let client = MqttClient::log_in(&mut simulation, &login);
    client.lose(&mut simulation);
    simulation.pass_ms(9_000);
    let client = MqttClient::log_in(&mut simulation, &login);
    simulation.pass_ms(20_000);
    assert_eq!(wills(&mut watcher, &mut simulation), none, "the client came back");
    client.lose(&mut simulation);
    simulation.pass_ms(9_000);
    assert_eq!(wills(&mut watcher, &mut simulation), none);
    simulation.pass_ms(1_100);
    assert_eq!(wills(&mut watcher, &mut simulation), ["gone"]);
    // A connection without a will has none.
    let client = MqttClient::log_in(&mut simulation, &Login { will: None, ..login.clone() });
    client.lose(&mut simulation);
    simulation.pass_ms(20_000);
    assert_eq!(wills(&mut watcher, &mut simulation), none);
    // The session ends before the delay is over.
    let short = [0x11, 0, 0, 0, 3];
    let client = MqttClient::log_in(&mut simulation, &Login { properties: &short, ..login.clone() });
    client.lose(&mut simulation);
    simulation.pass_ms(2_000);
    assert_eq!(wills(&mut watcher, &mut simulation), none);
    simulation.pass_ms(2_000);
    assert_eq!(wills(&mut watcher, &mut simulation), ["gone"]);
    // A new session ends the one before.
    let client = MqttClient::log_in(&mut simulation, &login);
    client.lose(&mut simulation);
    let client = MqttClient::log_in(&mut simulation, &Login { clean_start: true, will: None, ..login });
    assert_eq!(wills(&mut watcher, &mut simulation), ["gone"]);
    client.disconnect(&mut simulation);
    delete_queue(&mut simulation, "mqtt-subscription-c");
    watcher.disconnect(&mut simulation);
    simulation.end(&[]);
}

/// The will of a connection that another one of the client replaces.
#[test]
fn a_take_over_publishes_the_will_that_has_no_delay() {
    let mut simulation = Simulation::new(small_limits());
    let mut watcher = watcher(&mut simulation);
    let none = Vec::<String>::new();
    let login = delayed("c", EXPIRY_100_S, &[]);
    let mut first = MqttClient::log_in(&mut simulation, &login);
    let mut second = MqttClient::log_in(&mut simulation, &delayed("c", EXPIRY_100_S, DELAY_10_S));
    assert_eq!(wills(&mut watcher, &mut simulation), ["gone"]);
    let mut third = MqttClient::log_in(&mut simulation, &Login { will: None, ..login.clone() });
    simulation.pass_ms(20_000);
    assert_eq!(wills(&mut watcher, &mut simulation), none, "the session goes on within the delay");
    for client in [&mut first, &mut second] {
        client.expect(&mut simulation, 0xE0);
        client.assert_closed(&mut simulation);
    }
    let fourth = MqttClient::log_in(
        &mut simulation,
        &Login { clean_start: true, ..delayed("c", EXPIRY_100_S, DELAY_10_S) },
    );
    third.expect(&mut simulation, 0xE0);
    third.assert_closed(&mut simulation);
    fourth.disconnect(&mut simulation);
    // The queue is deleted by an operator: the session ends.
    let mut fifth = MqttClient::log_in(&mut simulation, &delayed("c", EXPIRY_100_S, DELAY_10_S));
    delete_queue(&mut simulation, "mqtt-subscription-c");
    assert_eq!(wills(&mut watcher, &mut simulation), ["gone"]);
    fifth.expect(&mut simulation, 0xE0);
    fifth.assert_closed(&mut simulation);
    watcher.disconnect(&mut simulation);
    simulation.end(&[]);
}

#[test]
fn a_will_with_retain_becomes_the_retained_message() {
    let mut simulation = Simulation::new(small_limits());
    let will = Some(("will/x", &b"offline"[..], 1, true));
    let client = MqttClient::log_in(&mut simulation, &Login { will, ..named("c") });
    client.lose(&mut simulation);
    let mut watcher = watcher(&mut simulation);
    let will = watcher.receive(&mut simulation).expect("the retained message");
    assert_eq!((will.payload.as_slice(), will.retain), (&b"offline"[..], true));
    watcher.acknowledge(&mut simulation, will.packet_id.unwrap());
    watcher.disconnect(&mut simulation);
    simulation.end(&[]);
}

/// Only what outlives the connection is written before CONNACK, and what the log has is not written again.
#[test]
fn the_will_of_a_kept_session_is_in_the_log_before_connack() {
    let mut simulation = Simulation::new(small_limits());
    simulation.keep_on_disk(Settings::default());
    let commits = |simulation: &mut Simulation| simulation.engine.platform_mut().helpers.commits;
    let (client, _) = log_in_kept(&mut simulation, "kept");
    client.disconnect(&mut simulation);
    let login = Login { will: Some(WILL), ..kept("kept") };
    let before = commits(&mut simulation);
    let client = MqttClient::log_in(&mut simulation, &login);
    assert!(commits(&mut simulation) > before, "the will is written");
    client.lose(&mut simulation);
    simulation.engine.platform_mut().helpers.slowness_ms = 10_000;
    let mut client = MqttClient::open(&mut simulation, 4);
    client.send(&mut simulation, &login.packet());
    assert_eq!(client.next(&mut simulation), None, "it was published, so it is written again");
    simulation.pass_ms(40_000);
    client.expect(&mut simulation, 0x20);
    // A second connection has the same will, and that of the first is published: the log has it still.
    // A clean session waits for nothing.
    let mut clean = MqttClient::open(&mut simulation, 4);
    clean.send(&mut simulation, &with_will("clean").packet());
    clean.expect(&mut simulation, 0x20);
}

/// At a clean stop the broker ends the connections, and the clients connect again soon.
#[test]
fn a_clean_stop_publishes_no_will_of_a_kept_session() {
    let mut simulation = Simulation::new(small_limits());
    simulation.keep_on_disk(Settings::default());
    let (mut away, _) = log_in_kept(&mut simulation, "watcher");
    away.subscribe(&mut simulation, &[("will/#", 1)]);
    away.disconnect(&mut simulation);
    let mut client = MqttClient::log_in(&mut simulation, &Login { will: Some(WILL), ..kept("kept") });
    let mut clean = MqttClient::log_in(
        &mut simulation,
        &Login { will: Some(("will/y", b"clean", 1, false)), ..named("clean") },
    );
    simulation.engine.begin_stop("for a test");
    simulation.run();
    client.assert_closed(&mut simulation);
    clean.assert_closed(&mut simulation);
    assert_eq!(ready(&simulation, "mqtt-subscription-watcher"), 1, "that of the session that has ended");
}

/// Returns the number of messages of a queue.
fn ready(simulation: &Simulation, name: &str) -> u64 {
    let views = simulation.engine.broker().views();
    let mut queues = views.queues();
    queues.find(|queue| queue.name == name).map_or(0, |queue| queue.messages_ready.into())
}

fn with_retained_will<'a>(login: &Login<'a>, payload: &'a [u8]) -> Login<'a> {
    Login { will: Some(("will/x", payload, 1, true)), ..login.clone() }
}

/// Returns the payload of a retained will with which the CONNECT has this length.
fn will_for_len(login: &Login<'_>, len: usize) -> Vec<u8> {
    let without = with_retained_will(login, b"").packet().len();
    // The length of a packet this long takes three bytes, and that of a short one takes one.
    let payload: Vec<u8> = (0..len - without - 2).map(|at| at as u8).collect();
    assert_eq!(with_retained_will(login, &payload).packet().len(), len);
    payload
}

#[test]
fn the_largest_connect_is_accepted_with_its_will() {
    let (limits, settings) = (small_limits(), Settings::default());
    for level in [4, 5] {
        let expiry = [0x11, 0, 0, 0, 100];
        let properties = if level == 5 { &expiry[..] } else { &[] };
        let kept = Login { level, properties, clean_start: false, ..named("kept") };
        let payload = will_for_len(&kept, CONNECT_BYTES_MAX as usize);
        let longer = will_for_len(&kept, CONNECT_BYTES_MAX as usize + 1);
        let login = with_retained_will(&kept, &payload);
        let mut simulation = Simulation::new(limits.clone());
        let disk = simulation.keep_on_disk(settings.clone());
        // Octets that arrive in pieces, with the first packets behind CONNECT.
        let packets = [&login.packet()[..], &[0xC0, 0]].concat();
        let mut client = MqttClient::open(&mut simulation, level);
        for octets in packets.chunks(1_000) {
            client.send_octets(&mut simulation, octets);
        }
        assert_eq!(client.expect(&mut simulation, 0x20).body[1], 0);
        client.expect(&mut simulation, 0xD0);
        client.lose(&mut simulation);
        let mut watcher = watcher(&mut simulation);
        let will = watcher.receive(&mut simulation).expect("the will");
        assert!((will.payload == payload) && will.retain);
        // After a power cut, the will in the log is published.
        let client = MqttClient::log_in(&mut simulation, &login);
        drop((client, watcher, simulation));
        let mut simulation = Simulation::restarted(limits.clone(), &disk, settings.clone());
        let mut watcher = self::watcher(&mut simulation);
        assert!(watcher.receive(&mut simulation).expect("the retained message").payload == payload);
        simulation.pass_ms(95_000);
        assert!(watcher.receive(&mut simulation).expect("the will").payload == payload);
        let mut client = MqttClient::open(&mut simulation, level);
        client.send(&mut simulation, &with_retained_will(&kept, &longer).packet());
        simulation.pass_ms(5_100);
        if level == 5 {
            assert_eq!(client.expect(&mut simulation, 0x20).body[1], 0x95);
        }
        client.assert_closed(&mut simulation);
    }
}

/// Wills stay in memory while their clients are connected.
#[test]
fn large_wills_take_a_part_of_the_memory_only() {
    let mut simulation = Simulation::new(small_limits());
    let payload = vec![7; 60_000];
    let mut connected = Vec::new();
    for number in 0..40 {
        let client_id = format!("client-{number}");
        let login = with_retained_will(&Login { level: 5, ..named(&client_id) }, &payload);
        let (client, connack) = MqttClient::connect(&mut simulation, &login);
        if connack.body[1] == 0 {
            connected.push(client);
        } else {
            assert_eq!(connack.body[1], 0x97);
        }
    }
    // One eighth of 4 MiB.
    assert_eq!(connected.len(), 8);
    MqttClient::log_in(&mut simulation, &with_will("small"));
    connected.pop().expect("a client").disconnect(&mut simulation);
    let login = with_retained_will(&named("large"), &payload);
    MqttClient::log_in(&mut simulation, &login);
    let limits = Limits { message_size_max: 20_000, ..small_limits() };
    let mut simulation = Simulation::new(limits);
    let login = with_retained_will(&Login { level: 5, ..named("c") }, &payload);
    let mut client = MqttClient::open(&mut simulation, 5);
    client.send(&mut simulation, &login.packet());
    simulation.pass_ms(5_100);
    assert_eq!(client.expect(&mut simulation, 0x20).body[1], 0x95, "larger than message_size_max");
}

#[test]
fn clients_that_do_not_complete_a_large_connect_keep_nobody_out() {
    let mut simulation = Simulation::new(Limits { input_backlog_bytes_max: 192 << 10, ..small_limits() });
    let payload = will_for_len(&named("slow"), CONNECT_BYTES_MAX as usize);
    let connect = with_retained_will(&named("slow"), &payload).packet();
    let mut slow: Vec<_> = (0..20).map(|_| MqttClient::open(&mut simulation, 4)).collect();
    for client in &mut slow {
        client.send_octets(&mut simulation, &connect[..60_000]);
    }
    let mut client = MqttClient::open(&mut simulation, 4);
    let (first, rest) = (named("honest").packet(), [0xC0, 0]);
    client.send_octets(&mut simulation, &first[..10]);
    client.send_octets(&mut simulation, &[&first[10..], &rest].concat());
    client.expect(&mut simulation, 0x20);
    client.expect(&mut simulation, 0xD0);
    // Those that complete it get in, one after the other.
    for client in &mut slow {
        client.send_octets(&mut simulation, &connect[60_000..]);
    }
    simulation.pass_ms(1_000);
    for client in &mut slow {
        client.expect(&mut simulation, 0x20);
    }
    assert_eq!(slow.iter().filter(|client| !client.is_closed(&simulation)).count(), 1, "each takes over");
}

/// While the disk is busy, only so many messages may wait for it. The wills of clients that are lost at the same time are
/// published later.
#[test]
fn a_will_waits_for_capacity() {
    let mut simulation = Simulation::new(small_limits());
    simulation.keep_on_disk(Settings::default());
    let (mut watcher, _) = log_in_kept(&mut simulation, "watcher");
    watcher.subscribe(&mut simulation, &[("will/#", 1)]);
    watcher.disconnect(&mut simulation);
    let kept = MqttClient::log_in(&mut simulation, &Login { will: Some(WILL), ..kept("kept") });
    let clients: Vec<_> = (0..300)
        .map(|number| MqttClient::log_in(&mut simulation, &with_will(&format!("client-{number}"))))
        .collect();
    simulation.engine.platform_mut().helpers.slowness_ms = 10_000;
    for client in clients.into_iter().chain([kept]) {
        client.lose(&mut simulation);
    }
    let count = ready(&simulation, "mqtt-subscription-watcher");
    assert!((200..300).contains(&count), "{count} wait for the disk");
    simulation.engine.platform_mut().helpers.slowness_ms = 0;
    simulation.pass_ms(15_000);
    assert_eq!(ready(&simulation, "mqtt-subscription-watcher"), 301);
}

/// The topic of a will is checked at CONNECT.
#[test]
fn a_will_that_the_client_may_not_publish_is_refused() {
    let mut simulation = Simulation::new(small_limits());
    let long = "t".repeat(256);
    let login = Login { level: 5, will: Some((&long, b"", 0, false)), ..named("c") };
    let (mut client, connack) = MqttClient::connect(&mut simulation, &login);
    assert_eq!(connack.body[1], 0x90);
    client.assert_closed(&mut simulation);
    // MQTT 3.1.1 has no code for that.
    let mut client = MqttClient::open(&mut simulation, 4);
    client.send(&mut simulation, &Login { level: 4, ..login }.packet());
    client.assert_closed(&mut simulation);
    let (broker, context) = simulation.engine.broker_mut();
    let pending_writes = context.pending_writes;
    broker
        .access_mut()
        .set_permissions(
            pending_writes,
            &Permission { user: "guest", vhost: "/", configure: ".*", write: "^no", read: ".*" },
        )
        .expect("they exist");
    for (level, code) in [(4, 5), (5, 0x87)] {
        let (mut client, connack) = MqttClient::connect(&mut simulation, &Login { level, ..with_will("c") });
        assert_eq!(connack.body[1], code);
        client.assert_closed(&mut simulation);
        let client = MqttClient::log_in(&mut simulation, &Login { level, ..named("c") });
        client.disconnect(&mut simulation);
    }
}

/// The expiry interval of a will begins when the will is published.
#[test]
fn a_will_has_its_properties() {
    let mut simulation = Simulation::new(small_limits());
    simulation.pass_ms(1_000);
    let mut watcher = MqttClient::log_in(&mut simulation, &Login { level: 5, ..named("watcher") });
    watcher.subscribe(&mut simulation, &[("will/#", 1)]);
    let properties: &[u8] =
        &[0x18, 0, 0, 0, 10, 0x02, 0, 0, 0, 20, 0x03, 0, 1, b'j', 0x26, 0, 1, b'n', 0, 1, b'v'];
    let client = MqttClient::log_in(&mut simulation, &delayed("c", EXPIRY_100_S, properties));
    client.lose(&mut simulation);
    simulation.pass_ms(11_000);
    let (will, received) = watcher.receive_with_properties(&mut simulation).expect("the will");
    assert_eq!((will.payload.as_slice(), received.as_slice()), (&b"gone"[..], &properties[5..]));
    watcher.acknowledge(&mut simulation, will.packet_id.unwrap());
    watcher.disconnect(&mut simulation);
    delete_queue(&mut simulation, "mqtt-subscription-c");
    simulation.end(&[]);
}

/// The session has ended, and the power failed before the will was published.
#[test]
fn a_restored_will_without_its_session_is_published_at_once() {
    let mut simulation = Simulation::new(small_limits());
    let mut watcher = watcher(&mut simulation);
    let (broker, mut context) = simulation.engine.broker_mut();
    let will = Definition::Will(definition::Will {
        vhost: "/",
        queue: "mqtt-subscription-c",
        incarnation: 77,
        delay_s: 600,
        keep_alive_s: 60,
        topic_key: "will.x",
        properties: &[0x10, 0, 2],
        payload: b"gone",
        ..Default::default()
    });
    assert_eq!(broker.restore(&mut context, &will), Restored::Exists(None));
    simulation.pass_ms(10);
    assert_eq!(wills(&mut watcher, &mut simulation), ["gone"]);
    watcher.disconnect(&mut simulation);
    simulation.end(&[]);
}

/// The session and its will stay as they were when its client is refused.
#[test]
fn a_refused_connect_changes_nothing() {
    let mut simulation = Simulation::new(Limits { mqtt_sessions_max: 1, ..small_limits() });
    let mut watcher = watcher(&mut simulation);
    let none = Vec::<String>::new();
    let (mut away, _) = log_in_kept(&mut simulation, "kept");
    away.subscribe(&mut simulation, &[("t", 1)]);
    away.lose(&mut simulation);
    let mut clean = MqttClient::log_in(&mut simulation, &with_will("clean"));
    clean.publish_1(&mut simulation, "t", 1, b"secret");
    // There is no capacity for another session that is kept.
    let (mut refused, connack) = MqttClient::connect(&mut simulation, &kept("clean"));
    assert_eq!(connack.body[1], 3);
    refused.assert_closed(&mut simulation);
    assert_eq!(wills(&mut watcher, &mut simulation), none);
    clean.publish_1(&mut simulation, "t", 2, b"more");
    clean.disconnect(&mut simulation);
    // A user that may not read the queue gets neither its messages nor its deletion.
    let set = |simulation: &mut Simulation, pattern: &str| {
        let (broker, context) = simulation.engine.broker_mut();
        let (access, pending_writes) = (broker.access_mut(), context.pending_writes);
        access
            .set_permissions(
                pending_writes,
                &Permission { user: "guest", vhost: "/", configure: pattern, write: ".*", read: pattern },
            )
            .expect("it exists");
    };
    set(&mut simulation, "^other$");
    for clean_start in [false, true] {
        let login = Login { level: 5, clean_start, ..named("kept") };
        let (mut refused, connack) = MqttClient::connect(&mut simulation, &login);
        assert_eq!(connack.body[1], 0x87);
        refused.assert_closed(&mut simulation);
    }
    set(&mut simulation, ".*");
    let (mut back, is_present) = log_in_kept(&mut simulation, "kept");
    assert!(is_present);
    let first = back.receive(&mut simulation).expect("the message");
    assert_eq!(first.payload, b"secret");
    back.lose(&mut simulation);
    delete_queue(&mut simulation, "mqtt-subscription-kept");
    watcher.disconnect(&mut simulation);
    simulation.end(&[]);
}

/// A message is dropped only if its packet is longer than the client's Maximum Packet Size (§3.1.2.11.4).
#[test]
fn a_packet_of_the_maximum_size_is_sent() {
    let mut simulation = Simulation::new(small_limits());
    simulation.pass_ms(1_000);
    let mut publisher = MqttClient::log_in(&mut simulation, &Login { level: 5, ..named("publisher") });
    let user_property = [0x26, 0, 1, b'n', 0, 1, b'v', 0x03, 0, 0];
    for (qos, properties) in [(0, &[][..]), (1, &[]), (2, &[]), (1, &user_property), (0, &user_property)] {
        // Topic, identifier, properties with their length, payload, and the fixed header.
        let payload = [7; 150];
        let remaining = 3 + usize::from(qos > 0) * 2 + 1 + properties.len() + payload.len();
        let len = (remaining + 3) as u16;
        for (maximum, is_sent) in [(len, true), (len - 1, false)] {
            let maximum = [&[0x27, 0, 0][..], &maximum.to_be_bytes()].concat();
            let login = Login { level: 5, properties: &maximum, ..named("subscriber") };
            let mut subscriber = MqttClient::log_in(&mut simulation, &login);
            subscriber.subscribe(&mut simulation, &[("t", 2)]);
            let publish = publisher.publish_packet_with(qos << 1, ("t", 1), properties, &payload);
            publisher.send(&mut simulation, &publish);
            if qos == 2 {
                publisher.send(&mut simulation, &packet(0x62, &[0, 1]));
            }
            while publisher.next(&mut simulation).is_some() {}
            let received = subscriber.receive_with_properties(&mut simulation);
            assert_eq!(received.is_some(), is_sent, "QoS {qos}, {} bytes of properties", properties.len());
            subscriber.lose(&mut simulation);
        }
    }
    publisher.disconnect(&mut simulation);
    simulation.end(&[]);
}
