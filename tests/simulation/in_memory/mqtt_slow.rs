//! MQTT clients that take their messages more slowly than they arrive, and sessions of clients that are away.

use leveret_core::limits::Limits;
use leveret_storage::Settings;
use leveret_test_support::simulated_server::mqtt::{Login, MqttClient};
use leveret_test_support::simulated_server::{Simulation, small_limits};

use super::bridge::alarms;
use super::mqtt::{named, receive_all};

/// The number of messages that the session of a client holds in these tests.
const LENGTH: usize = 20;
/// The number of messages that a slow client has not acknowledged: its Receive Maximum.
const IN_FLIGHT: usize = 5;
/// The property Receive Maximum.
const RECEIVE_MAXIMUM: [u8; 3] = [0x21, 0, IN_FLIGHT as u8];

fn simulation() -> Simulation {
    let limits = Limits { mqtt_session_messages_max: LENGTH as u32, ..small_limits() };
    Simulation::new(limits)
}

/// Connects a client that subscribes with QoS 1 and acknowledges only when the test does.
fn slow_client(simulation: &mut Simulation, client_id: &str, filter: &str) -> MqttClient {
    let login = Login { level: 5, properties: &RECEIVE_MAXIMUM, ..named(client_id) };
    let mut client = MqttClient::log_in(simulation, &login);
    client.subscribe(simulation, &[(filter, 1)]);
    client
}

/// Publishes with QoS 1. Returns whether PUBACK came at once.
fn publish(client: &mut MqttClient, simulation: &mut Simulation, topic: &str, number: usize) -> bool {
    let packet = client.publish_packet(0x32, topic, number as u16 + 1, number.to_string().as_bytes());
    client.send(simulation, &packet);
    client.next(simulation).is_some_and(|answer| {
        assert_eq!(answer.first_octet, 0x40, "{answer:?}");
        true
    })
}

/// Returns the number of PUBACKs that are there.
fn pubacks(client: &mut MqttClient, simulation: &mut Simulation) -> usize {
    core::iter::from_fn(|| client.next(simulation))
        .inspect(|answer| assert_eq!(answer.first_octet, 0x40))
        .count()
}

/// Publishes until no PUBACK comes at once. Returns the number of messages.
fn publish_until_withheld(client: &mut MqttClient, simulation: &mut Simulation, topic: &str) -> usize {
    let withheld = (0..200).find(|number| !publish(client, simulation, topic, *number));
    withheld.expect("an acknowledgement is withheld") + 1
}

fn payloads(received: &[(String, Vec<u8>, bool)]) -> Vec<usize> {
    let number = |payload: &[u8]| String::from_utf8_lossy(payload).parse().expect("a number");
    received.iter().map(|(_, payload, _)| number(payload)).collect()
}

#[test]
fn publishers_wait_for_a_slow_client_and_lose_nothing() {
    let mut simulation = simulation();
    let mut slow = slow_client(&mut simulation, "slow", "t");
    let mut publisher = MqttClient::log_in(&mut simulation, &named("publisher"));
    let mut other = MqttClient::log_in(&mut simulation, &named("other"));
    let sent = publish_until_withheld(&mut publisher, &mut simulation, "t");
    assert!((LENGTH + IN_FLIGHT..LENGTH + IN_FLIGHT + 3).contains(&sent), "{sent}");
    assert!(publish(&mut other, &mut simulation, "elsewhere", 0), "only publishers of its topics wait");
    // Further messages are accepted, and the publisher's other packets are answered.
    for number in sent..sent + 5 {
        assert!(!publish(&mut publisher, &mut simulation, "t", number));
    }
    publisher.send(&mut simulation, &[0xc0, 0]);
    assert_eq!(publisher.next(&mut simulation).expect("PINGRESP").first_octet, 0xd0);
    assert_eq!(publisher.subscribe(&mut simulation, &[("other", 1)]), [1]);
    simulation.pass_ms(9_000);
    assert_eq!(pubacks(&mut publisher, &mut simulation), 0);
    let received = receive_all(&mut slow, &mut simulation);
    assert_eq!(payloads(&received), (0..sent + 5).collect::<Vec<_>>());
    assert_eq!(pubacks(&mut publisher, &mut simulation), 6, "the client has caught up");
    assert!(publish(&mut publisher, &mut simulation, "t", 0));
    assert!(!alarms(&mut simulation).contains("sessions:"), "{}", alarms(&mut simulation));
}

/// A phone that subscribes to everything and takes nothing stops the other clients for 10 s, once.
#[test]
fn publishers_wait_at_most_ten_seconds_and_then_the_session_drops() {
    let mut simulation = simulation();
    let mut slow = slow_client(&mut simulation, "phone", "#");
    let mut publishers =
        ["a", "b", "c"].map(|client_id| MqttClient::log_in(&mut simulation, &named(client_id)));
    publish_until_withheld(&mut publishers[0], &mut simulation, "t");
    for publisher in &mut publishers[1..] {
        assert!(!publish(publisher, &mut simulation, "t", 100));
    }
    simulation.pass_ms(10_500);
    for publisher in &mut publishers {
        assert_eq!(pubacks(publisher, &mut simulation), 1);
    }
    let text = alarms(&mut simulation);
    assert!(text.contains("sessions: the MQTT client 'phone'"), "{text}");
    for number in 0..100 {
        assert!(publish(&mut publishers[number % 3], &mut simulation, "t", number), "nobody waits any more");
    }
    let views = simulation.engine.broker().views();
    assert!((95..=110).contains(&views.session_messages_dropped()), "{}", views.session_messages_dropped());
    // When the client has caught up, publishers wait for it again, but each for at most 10 s in a minute.
    let received = payloads(&receive_all(&mut slow, &mut simulation));
    assert_eq!(received[..IN_FLIGHT], (0..IN_FLIGHT).collect::<Vec<_>>(), "those that were sent");
    assert_eq!(received[IN_FLIGHT..], (100 - LENGTH..100).collect::<Vec<_>>(), "the newest of the others");
    simulation.pass_ms(100);
    assert!(!alarms(&mut simulation).contains("sessions:"), "{}", alarms(&mut simulation));
    for number in 0..50 {
        assert!(publish(&mut publishers[0], &mut simulation, "t", number), "it has waited in this minute");
    }
    receive_all(&mut slow, &mut simulation);
    simulation.pass_ms(60_000);
    publish_until_withheld(&mut publishers[0], &mut simulation, "t");
}

/// Returns how long a publisher waits for its acknowledgements, which it awaits one by one, in milliseconds.
fn waited_ms(
    publisher: &mut MqttClient,
    simulation: &mut Simulation,
    messages: core::ops::Range<usize>,
    mut each: impl FnMut(&mut Simulation),
) -> u64 {
    let mut waited_ms = 0;
    for number in messages {
        let mut is_answered = publish(publisher, simulation, "t", number);
        while !is_answered {
            simulation.pass_ms(100);
            waited_ms += 100;
            assert!(waited_ms < 60_000, "message {number}");
            each(simulation);
            is_answered = pubacks(publisher, simulation) > 0;
        }
    }
    waited_ms
}

/// A client that takes one message every second, and one that connects again and again and takes nothing.
#[test]
fn a_client_that_takes_little_does_not_make_publishers_wait_again() {
    let mut simulation = simulation();
    let mut slow = slow_client(&mut simulation, "slow", "t");
    let mut publisher = MqttClient::log_in(&mut simulation, &named("publisher"));
    let mut passed = 0;
    let waited = waited_ms(&mut publisher, &mut simulation, 0..200, |simulation| {
        passed += 1;
        if passed % 10 == 0 {
            let message = slow.receive(simulation).expect("a message");
            slow.acknowledge(simulation, message.packet_id.expect("it has QoS 1"));
        }
    });
    assert!((9_000..11_000).contains(&waited), "{waited} ms");

    let mut simulation = self::simulation();
    let expiry = [&[0x11, 0, 0, 0x70, 0][..], &RECEIVE_MAXIMUM].concat();
    let login = Login { level: 5, clean_start: false, properties: &expiry, ..named("kept") };
    let mut kept = MqttClient::log_in(&mut simulation, &login);
    kept.subscribe(&mut simulation, &[("t", 1)]);
    let mut kept = Some(kept);
    let mut publisher = MqttClient::log_in(&mut simulation, &named("publisher"));
    let waited = waited_ms(&mut publisher, &mut simulation, 0..400, |simulation| {
        kept.take().expect("it is connected").hang_up(simulation);
        simulation.pass_ms(1_000);
        kept = Some(MqttClient::log_in(simulation, &login));
    });
    assert!(waited < 11_000, "{waited} ms");
}

/// The same with a limit of bytes: the messages are few and large.
#[test]
fn a_limit_of_bytes_makes_publishers_wait_once() {
    let limits = Limits { mqtt_session_bytes_max: 64 << 10, body_bytes_max: 1 << 20, ..small_limits() };
    let mut simulation = Simulation::new(limits);
    let slow = slow_client(&mut simulation, "slow", "t");
    let mut publisher = MqttClient::log_in(&mut simulation, &named("publisher"));
    let mut waited_ms = 0;
    for number in 0..300_u16 {
        let packet = publisher.publish_packet(0x32, "t", number + 1, &[b'x'; 10_000]);
        publisher.send(&mut simulation, &packet);
        while pubacks(&mut publisher, &mut simulation) == 0 {
            simulation.pass_ms(100);
            waited_ms += 100;
            assert!(waited_ms < 11_000, "message {number}");
        }
    }
    assert!(waited_ms > 9_000, "{waited_ms} ms");
    assert!(alarms(&mut simulation).contains("sessions: the MQTT client 'slow'"));
    slow.hang_up(&mut simulation);
}

/// A publisher that does not wait for acknowledgements gets those of its first messages when too many are withheld, and its
/// own deliveries go on.
#[test]
fn the_input_of_a_publisher_without_a_window_is_read_on() {
    let mut simulation = simulation();
    let slow = slow_client(&mut simulation, "slow", "t");
    let mut publisher = MqttClient::log_in(&mut simulation, &named("publisher"));
    publish_until_withheld(&mut publisher, &mut simulation, "t");
    for number in 0..300 {
        publish(&mut publisher, &mut simulation, "t", number);
    }
    pubacks(&mut publisher, &mut simulation);
    assert_eq!(publisher.subscribe(&mut simulation, &[("other", 1)]), [1]);
    slow.hang_up(&mut simulation);
}

#[test]
fn messages_with_qos_0_are_dropped_for_a_slow_client_only() {
    let mut simulation = simulation();
    let mut slow = slow_client(&mut simulation, "slow", "t");
    let mut fast = MqttClient::log_in(&mut simulation, &named("fast"));
    fast.subscribe(&mut simulation, &[("t", 1)]);
    let mut publisher = MqttClient::log_in(&mut simulation, &named("publisher"));
    let sent = publish_until_withheld(&mut publisher, &mut simulation, "t");
    let before = receive_all(&mut fast, &mut simulation).len();
    assert_eq!(before, sent);
    for _ in 0..50 {
        publisher.publish(&mut simulation, "t", b"9999");
    }
    assert_eq!(receive_all(&mut fast, &mut simulation).len(), 50);
    assert_eq!(simulation.engine.broker().views().session_messages_dropped(), 50);
    let received = payloads(&receive_all(&mut slow, &mut simulation));
    assert_eq!(received, (0..sent).collect::<Vec<_>>(), "messages with QoS 1 stay");
}

#[test]
fn a_client_never_waits_for_its_own_session() {
    let mut simulation = simulation();
    let mut client = slow_client(&mut simulation, "client", "t");
    for number in 0..30 {
        let packet = client.publish_packet(0x32, "t", number + 1, number.to_string().as_bytes());
        client.send(&mut simulation, &packet);
    }
    client.read(&mut simulation);
    let answers: Vec<_> = core::iter::from_fn(|| client.next(&mut simulation)).collect();
    let count =
        |first_octet| answers.iter().filter(|answer| answer.first_octet & 0xf0 == first_octet).count();
    assert_eq!((count(0x40), count(0x30)), (30, IN_FLIGHT));
}

/// Two clients, each of which subscribes to what the other publishes and acknowledges nothing. The first waits for the second,
/// and the second does not wait for the first. The acknowledgements of the first are read while it waits.
#[test]
fn two_clients_do_not_wait_for_each_other() {
    let mut simulation = simulation();
    let mut a = slow_client(&mut simulation, "a", "for/a");
    let mut b = slow_client(&mut simulation, "b", "for/b");
    for number in 0..40 {
        for (client, topic) in [(&mut a, "for/b"), (&mut b, "for/a")] {
            let packet = client.publish_packet(0x32, topic, number + 1, number.to_string().as_bytes());
            client.send(&mut simulation, &packet);
        }
    }
    let packets = |client: &mut MqttClient, simulation: &mut Simulation| {
        let (mut pubacks, mut deliveries) = (0, Vec::new());
        while let Some(packet) = client.next(simulation) {
            match packet.first_octet & 0xf0 {
                0x40 => pubacks += 1,
                _ => deliveries.push(u16::from_be_bytes([packet.body[7], packet.body[8]])),
            }
        }
        (pubacks, deliveries)
    };
    let (a_pubacks, mut a_deliveries) = packets(&mut a, &mut simulation);
    let (b_pubacks, _) = packets(&mut b, &mut simulation);
    assert!(a_pubacks < 40 || b_pubacks < 40, "somebody waits");
    assert!(a_pubacks == 40 || b_pubacks == 40, "{a_pubacks} {b_pubacks}: somebody does not");
    // The acknowledgements of a client that waits count.
    let mut received = a_deliveries.len();
    for _ in 0..20 {
        for packet_id in a_deliveries {
            a.acknowledge(&mut simulation, packet_id);
        }
        a_deliveries = packets(&mut a, &mut simulation).1;
        received += a_deliveries.len();
    }
    assert_eq!(received, 40);
}

#[test]
fn publishers_wait_no_longer_when_the_slow_client_is_gone() {
    for is_deleted in [false, true] {
        let mut simulation = simulation();
        let slow = slow_client(&mut simulation, "slow", "t");
        let mut publisher = MqttClient::log_in(&mut simulation, &named("publisher"));
        publish_until_withheld(&mut publisher, &mut simulation, "t");
        if is_deleted {
            super::mqtt::delete_queue(&mut simulation, "mqtt-subscription-slow");
        } else {
            slow.hang_up(&mut simulation);
        }
        simulation.run();
        assert_eq!(pubacks(&mut publisher, &mut simulation), 1, "deleted: {is_deleted}");
        assert!(publish(&mut publisher, &mut simulation, "t", 0));
        publisher.disconnect(&mut simulation);
    }
}

/// Refused messages have longer answers, which are withheld like the others.
#[test]
fn many_long_answers_can_be_withheld() {
    let mut simulation = simulation();
    let slow = slow_client(&mut simulation, "slow", "t");
    let login = Login { level: 5, ..named("publisher") };
    let mut publisher = MqttClient::log_in(&mut simulation, &login);
    publish_until_withheld(&mut publisher, &mut simulation, "t");
    // A topic with a level of this length exceeds the key of a retained message.
    for number in 0..60 {
        let topic = format!("{}/{number}", "x".repeat(100));
        let packet = publisher.publish_packet(0x33, &topic, 500 + number, &[b'x'; 900_000]);
        publisher.send(&mut simulation, &packet);
        publish(&mut publisher, &mut simulation, "t", 100 + usize::from(number));
    }
    slow.hang_up(&mut simulation);
    simulation.pass_ms(1_000);
    publisher.read(&mut simulation);
    assert!(publisher.next(&mut simulation).is_some());
    assert!(!publisher.is_closed(&simulation));
}

#[test]
fn a_publisher_that_waits_can_disconnect() {
    let mut simulation = simulation();
    let mut slow = slow_client(&mut simulation, "slow", "t");
    let mut publisher = MqttClient::log_in(&mut simulation, &named("publisher"));
    let sent = publish_until_withheld(&mut publisher, &mut simulation, "t");
    publisher.send(&mut simulation, &[0xe0, 0]);
    assert!(publisher.is_closed(&simulation));
    publisher.hang_up(&mut simulation);
    assert_eq!(receive_all(&mut slow, &mut simulation).len(), sent);
    slow.disconnect(&mut simulation);
    simulation.end(&[]);
}

/// Logs in with a session that is kept.
fn kept(simulation: &mut Simulation) -> MqttClient {
    let expiry = [0x11, 0, 0, 0x70, 0];
    let login = Login { level: 5, clean_start: false, properties: &expiry, ..named("kept") };
    MqttClient::log_in(simulation, &login)
}

/// The bodies of a client that is away are on the disk, and count there.
#[test]
fn a_kept_session_has_more_bytes_than_its_share_of_the_memory() {
    let limits = Limits { mqtt_session_bytes_max: 64 << 10, body_bytes_max: 1 << 20, ..small_limits() };
    let mut simulation = Simulation::new(limits);
    simulation.keep_on_disk(Settings::default());
    let mut client = kept(&mut simulation);
    client.subscribe(&mut simulation, &[("t", 1)]);
    client.hang_up(&mut simulation);
    let mut publisher = MqttClient::log_in(&mut simulation, &named("publisher"));
    for number in 0..300_usize {
        let packet =
            publisher.publish_packet(0x32, "t", number as u16 + 1, format!("{number:<10000}").as_bytes());
        publisher.send(&mut simulation, &packet);
        simulation.pass_ms(100);
        assert_eq!(pubacks(&mut publisher, &mut simulation), 1, "{number}");
    }
    let mut client = kept(&mut simulation);
    let mut received = Vec::new();
    for _ in 0..400 {
        received.extend(receive_all(&mut client, &mut simulation));
        simulation.pass_ms(100);
    }
    let numbers: Vec<usize> = received
        .iter()
        .map(|(_, payload, _)| String::from_utf8_lossy(payload).trim().parse().expect("a number"))
        .collect();
    assert_eq!(numbers, (0..300).collect::<Vec<_>>());
}

/// Sessions of clients that do not come back drop their oldest messages before they fill the disk, so publishers never wait.
#[test]
fn absent_clients_do_not_fill_the_disk() {
    let limits = Limits { body_bytes_max: 1 << 20, ..small_limits() };
    let mut simulation = Simulation::new(limits);
    let settings =
        Settings { segment_bytes: 1 << 20, commit_bytes: 152 << 10, segments_max: 12, ..Settings::default() };
    simulation.keep_on_disk(settings);
    let expiry = [0x11, 0, 0, 0x70, 0];
    for number in 0..40 {
        let client_id = format!("kept{number}");
        let login = Login { level: 5, clean_start: false, properties: &expiry, ..named(&client_id) };
        let mut client = MqttClient::log_in(&mut simulation, &login);
        client.subscribe(&mut simulation, &[(&format!("t/{number}"), 1)]);
        client.hang_up(&mut simulation);
    }
    let mut publisher = MqttClient::log_in(&mut simulation, &named("publisher"));
    for number in 0..3_000_usize {
        let topic = format!("t/{}", number % 40);
        let body = format!("{number:<10000}");
        let packet = publisher.publish_packet(0x32, &topic, (number % 60_000) as u16 + 1, body.as_bytes());
        publisher.send(&mut simulation, &packet);
        let mut count = 0;
        for _ in 0..50 {
            simulation.pass_ms(200);
            count += pubacks(&mut publisher, &mut simulation);
            if count == 1 {
                break;
            }
        }
        assert_eq!(count, 1, "{number}: {}", alarms(&mut simulation));
    }
    assert!(simulation.engine.broker().views().session_messages_dropped() > 1_000);
}

/// Sends messages of 1 KiB with QoS 1 all at once.
fn send_burst(client: &mut MqttClient, simulation: &mut Simulation, topic: &str, count: usize) {
    let packets: Vec<Vec<u8>> =
        (1..=count).map(|number| client.publish_packet(0x32, topic, number as u16, &[7; 1_000])).collect();
    client.send(simulation, &packets.concat());
}

/// Returns the number of PUBACKs that have arrived. All of them accept the message.
fn take_pubacks(client: &mut MqttClient, simulation: &mut Simulation) -> usize {
    let acks = core::iter::from_fn(|| client.next(simulation)).filter(|packet| packet.first_octet == 0x40);
    acks.inspect(|ack| assert!(ack.body.get(2).is_none_or(|code| *code < 0x80), "{ack:?}")).count()
}

/// The client sends its acknowledgements behind messages that wait for its own queue.
#[test]
fn a_client_that_fills_its_own_queue_does_not_wait() {
    for level in [4, 5] {
        let limits = Limits { mqtt_session_messages_max: 10_000, ..small_limits() };
        let mut simulation = Simulation::new(limits);
        let mut client = MqttClient::log_in(&mut simulation, &Login { level, ..named("own") });
        client.subscribe(&mut simulation, &[("t", 1)]);
        send_burst(&mut client, &mut simulation, "t", 2_000);
        assert_eq!(take_pubacks(&mut client, &mut simulation), 2_000);
        let dropped = simulation.engine.broker().views().session_messages_dropped();
        assert!((100..1_900).contains(&dropped), "{dropped}");
    }
}

/// A phone takes all messages and acknowledges none, so that they use up its queue's share of the memory.
#[test]
fn publishers_wait_ten_seconds_for_a_client_that_acknowledges_nothing() {
    let limits = Limits { mqtt_session_messages_max: 10_000, ..small_limits() };
    let mut simulation = Simulation::new(limits);
    let mut phones =
        ["phone", "tablet"].map(|client_id| MqttClient::log_in(&mut simulation, &named(client_id)));
    for phone in &mut phones {
        phone.subscribe(&mut simulation, &[("#", 1)]);
    }
    let [phone, _tablet] = &mut phones;
    let mut publisher = MqttClient::log_in(&mut simulation, &named("publisher"));
    send_burst(&mut publisher, &mut simulation, "t", 2_000);
    let before = take_pubacks(&mut publisher, &mut simulation);
    assert!((100..1_900).contains(&before), "{before}");
    simulation.pass_ms(9_500);
    assert_eq!(take_pubacks(&mut publisher, &mut simulation), 0);
    simulation.pass_ms(1_000);
    assert_eq!(take_pubacks(&mut publisher, &mut simulation), 2_000 - before);
    assert!(alarms(&mut simulation).contains("sessions: the MQTT client"));
    // Nothing waits any more, and nothing that the phone has got is lost.
    for _ in 0..5 {
        simulation.pass_ms(30_000);
        send_burst(&mut publisher, &mut simulation, "t", 10);
        assert_eq!(take_pubacks(&mut publisher, &mut simulation), 10);
    }
    let received = receive_all(phone, &mut simulation);
    assert!(received.len() >= before, "{} of {before}", received.len());
    // When the client has caught up, its session gets everything again.
    simulation.pass_ms(1_000);
    send_burst(&mut publisher, &mut simulation, "t", 100);
    assert_eq!(take_pubacks(&mut publisher, &mut simulation), 100);
    assert_eq!(receive_all(phone, &mut simulation).len(), 100);
}

/// A client that acknowledges in time loses nothing, however often its queue is full for a moment.
#[test]
fn bursts_that_are_acknowledged_in_time_lose_nothing() {
    let limits = Limits { mqtt_session_messages_max: 10_000, ..small_limits() };
    let mut simulation = Simulation::new(limits);
    let mut client = MqttClient::log_in(&mut simulation, &named("client"));
    client.subscribe(&mut simulation, &[("t", 1)]);
    let mut publisher = MqttClient::log_in(&mut simulation, &named("publisher"));
    for _ in 0..4 {
        send_burst(&mut publisher, &mut simulation, "t", 2_000);
        let mut accepted = take_pubacks(&mut publisher, &mut simulation);
        assert!(accepted < 2_000, "the queue is full");
        let mut received = 0;
        while accepted < 2_000 {
            simulation.pass_ms(5_000);
            received += receive_all(&mut client, &mut simulation).len();
            accepted += take_pubacks(&mut publisher, &mut simulation);
        }
        received += receive_all(&mut client, &mut simulation).len();
        assert_eq!((accepted, received), (2_000, 2_000));
        simulation.pass_ms(10_000);
    }
    assert_eq!(simulation.engine.broker().views().session_messages_dropped(), 0);
}
