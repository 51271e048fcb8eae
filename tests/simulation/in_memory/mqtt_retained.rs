//! Retained messages that are too large for one definition of the log, and those that are only in the log.

use std::collections::HashSet;

use leveret_amqp::Method;
use leveret_amqp::field::Table;
use leveret_core::limits::Limits;
use leveret_core::time::Now;
use leveret_storage::{Identity as StoreIdentity, Log, PART_BYTES, Settings};
use leveret_test_support::simulated_disk::{SimDisk, Trouble};
use leveret_test_support::simulated_server::mqtt::{Login, MqttClient, packet};
use leveret_test_support::simulated_server::{Simulation, declare_with, small_limits};

use super::mqtt::{named, publish_retained, receive_all};

/// Segments and commits as on the smallest boards.
fn small_commits() -> (Limits, Settings) {
    let limits = Limits { retained_bytes_max: 4 << 20, body_bytes_max: 8 << 20, ..small_limits() };
    let settings =
        Settings { segment_bytes: 1 << 20, commit_bytes: 152 << 10, segments_max: 32, ..Settings::default() };
    (limits, settings)
}

/// Returns a payload whose bytes depend on `number`.
fn payload(number: usize, len: usize) -> Vec<u8> {
    (0..len).map(|at| (number * 31 + at * 7 + at / 251) as u8).collect()
}

fn new_client<'a>(client_id: &'a str) -> Login<'a> {
    Login { level: 5, ..named(client_id) }
}

/// PUBLISH with RETAIN and QoS 1. Returns the code of PUBACK, which may need several commits.
fn publish_large(client: &mut MqttClient, simulation: &mut Simulation, topic: &str, payload: &[u8]) -> u8 {
    let publish = client.publish_packet(0x33, topic, 9, payload);
    client.send(simulation, &publish);
    simulation.pass_ms(1_000);
    client.expect(simulation, 0x40).body.get(2).copied().unwrap_or(0)
}

/// Returns topics and payloads of all retained messages, in the order of the topics.
fn all_retained(simulation: &mut Simulation) -> Vec<(String, Vec<u8>)> {
    let mut reader = MqttClient::log_in(simulation, &new_client("reader"));
    reader.subscribe(simulation, &[("#", 1)]);
    let mut received = Vec::new();
    loop {
        // The next ones may have to be read from the log.
        simulation.pass_ms(1_000);
        let messages = receive_all(&mut reader, simulation);
        if messages.is_empty() {
            break;
        }
        received.extend(messages.into_iter().map(|(topic, payload, _)| (topic, payload)));
    }
    reader.disconnect(simulation);
    received.sort();
    received
}

/// Returns the number of parts in the log of a broker that is gone.
fn parts_in_log(disk: &SimDisk, settings: &Settings) -> usize {
    let mut disk = disk.clone();
    disk.start(Trouble::Never);
    let identity = StoreIdentity { id: *b"0123456789abcdef", secret: 0x5EC2E7 };
    let (log, _) = Log::open(&mut disk, settings.clone(), identity, Now::from_ms(0)).expect("it opens");
    let part_kind = 12;
    let all = log.index().definitions().iter();
    all.filter(|(key, definition)| key[0] == part_kind && !definition.deleted).count()
}

#[test]
fn large_retained_messages_are_the_same_after_restarts() {
    let (limits, settings) = small_commits();
    compare_after_restarts(limits, settings);
}

/// With memory for one content, the others are read from the log.
#[test]
fn large_retained_messages_that_are_only_in_the_log_are_the_same_after_restarts() {
    let (limits, settings) = small_commits();
    compare_after_restarts(Limits { retained_bytes_max: 1, ..limits }, settings);
}

fn compare_after_restarts(limits: Limits, settings: Settings) {
    let mut simulation = Simulation::new(limits.clone());
    let disk = simulation.keep_on_disk(settings.clone());
    let mut publisher = MqttClient::log_in(&mut simulation, &new_client("publisher"));
    // Properties take some bytes, so the lengths around the limit are with and without parts.
    let lens = (PART_BYTES - 40..PART_BYTES + 2).step_by(3).chain([2 * PART_BYTES, 300_000]);
    let mut expected = Vec::new();
    for (number, len) in lens.enumerate() {
        let topic = format!("t/{number:02}");
        // The last of three updates counts. Earlier ones are larger or smaller.
        for (update, len) in [len * (number % 3), 10, len].into_iter().enumerate() {
            let body = payload(number + update, len);
            assert!(publish_large(&mut publisher, &mut simulation, &topic, &body) < 0x80);
        }
        expected.push((topic, payload(number + 2, len)));
    }
    publish_retained(&mut publisher, &mut simulation, ("qos0", 0), &payload(7, 200_000));
    simulation.pass_ms(61_000);
    expected.insert(0, ("qos0".to_owned(), payload(7, 200_000)));
    publish_large(&mut publisher, &mut simulation, "deleted", &payload(8, 200_000));
    publish_large(&mut publisher, &mut simulation, "deleted", b"");
    simulation.pass_ms(1_000);
    let parts: usize = (expected.iter())
        .map(|(_, body)| body.len() + 40)
        .filter(|len| *len > PART_BYTES + 40)
        .map(|len| len.div_ceil(PART_BYTES))
        .sum();
    for start in 0..3 {
        assert_eq!(all_retained(&mut simulation).len(), expected.len());
        assert!(all_retained(&mut simulation) == expected, "start {start}");
        drop(simulation);
        let found = parts_in_log(&disk, &settings);
        assert!(
            (parts..=parts + 2 * expected.len()).contains(&found),
            "start {start}: {found} parts of {parts}"
        );
        simulation = Simulation::restarted(limits.clone(), &disk, settings.clone());
        simulation.pass_ms(1_000);
    }
    // A deletion leaves neither parts nor memory.
    let mut publisher = MqttClient::log_in(&mut simulation, &new_client("publisher"));
    for (topic, _) in expected {
        publish_large(&mut publisher, &mut simulation, &topic, b"");
    }
    simulation.pass_ms(1_000);
    assert_eq!(simulation.engine.broker().views().retained_counts(), (0, 0));
    drop(simulation);
    assert_eq!(parts_in_log(&disk, &settings), 0);
}

/// An update while the power fails: the earlier message is there as a whole, or the later one, which is there if it was
/// acknowledged.
#[test]
fn a_power_cut_leaves_one_whole_message_for_each_topic() {
    let (limits, settings) = small_commits();
    let (mut before_count, mut after_count, mut acknowledged_count) = (0, 0, 0);
    for (old_len, new_len) in [(200_000, 250_000), (200_000, 100), (100, 200_000)] {
        for (cut, variant) in (0..26).flat_map(|cut| (0..2).map(move |variant| (cut, variant))) {
            let mut simulation = Simulation::new(limits.clone());
            let disk = simulation.keep_on_disk(settings.clone());
            let mut client = MqttClient::log_in(&mut simulation, &new_client("client"));
            // The parts of three updates, so that both sides have been written before.
            for number in 0..3 {
                publish_large(&mut client, &mut simulation, "t", &payload(number, old_len));
            }
            simulation.pass_ms(1_000);
            (0..variant).for_each(|_| disk.start(Trouble::Never));
            disk.start(Trouble::Cut(cut));
            let publish = client.publish_packet(0x33, "t", 9, &payload(5, new_len));
            client.send_without_turn(&mut simulation, &publish);
            simulation.run_until_power_fails(&disk, 3_000);
            let is_acknowledged = !client.read_without_turn(&mut simulation).is_empty();
            drop(simulation);
            disk.power_cut();
            let mut simulation = Simulation::restarted(limits.clone(), &disk, settings.clone());
            simulation.pass_ms(1_000);
            let found = all_retained(&mut simulation);
            let [(_, found)] = &found[..] else { panic!("{} messages: cut {cut}", found.len()) };
            let is_new = *found == payload(5, new_len);
            assert!(is_new || *found == payload(2, old_len), "{} bytes after cut {cut}", found.len());
            assert!(is_new || !is_acknowledged, "an acknowledged message is lost: cut {cut}");
            drop(simulation);
            let len = if is_new { new_len } else { old_len };
            let parts = if len > PART_BYTES { len.div_ceil(PART_BYTES) } else { 0 };
            assert_eq!(parts_in_log(&disk, &settings), parts, "cut {cut}: of one message");
            before_count += usize::from(!is_new);
            after_count += usize::from(is_new);
            acknowledged_count += usize::from(is_acknowledged);
        }
    }
    assert!(before_count > 20 && after_count > 20 && acknowledged_count > 0, "{before_count} {after_count}");
}

/// Two updates in a row, before the first is written. An acknowledged message must not be overwritten by them.
#[test]
fn a_power_cut_during_two_updates_leaves_one_whole_message() {
    let (limits, settings) = small_commits();
    let (mut before_count, mut after_count) = (0, 0);
    for new_lens in [[250_000, 250_000], [250_000, 100], [100, 250_000], [250_000, 0], [90_000, 400_000]] {
        for (cut, variant) in (0..26).flat_map(|cut| (0..2).map(move |variant| (cut, variant))) {
            let mut simulation = Simulation::new(limits.clone());
            let disk = simulation.keep_on_disk(settings.clone());
            let mut clients = ["a", "b"].map(|id| MqttClient::log_in(&mut simulation, &new_client(id)));
            for number in 0..3 {
                publish_large(&mut clients[0], &mut simulation, "t", &payload(number, 200_000));
            }
            simulation.pass_ms(1_000);
            (0..variant).for_each(|_| disk.start(Trouble::Never));
            disk.start(Trouble::Cut(cut));
            let updates = [payload(5, new_lens[0]), payload(6, new_lens[1])];
            for (client, body) in clients.iter_mut().zip(&updates) {
                let publish = client.publish_packet(0x33, "t", 9, body);
                client.send_without_turn(&mut simulation, &publish);
            }
            simulation.run_until_power_fails(&disk, 3_000);
            let is_acknowledged = clients.map(|mut it| !it.read_without_turn(&mut simulation).is_empty());
            drop(simulation);
            disk.power_cut();
            let mut simulation = Simulation::restarted(limits.clone(), &disk, settings.clone());
            simulation.pass_ms(1_000);
            let found = all_retained(&mut simulation);
            let found = found.first().map(|(_, body)| body.clone()).unwrap_or_default();
            let is_new = updates.contains(&found);
            assert!(is_new || found == payload(2, 200_000), "{} bytes, cut {cut}, {new_lens:?}", found.len());
            assert!(is_new || is_acknowledged == [false; 2], "an acknowledged message is lost: cut {cut}");
            drop(simulation);
            let parts = if found.len() > PART_BYTES { found.len().div_ceil(PART_BYTES) } else { 0 };
            assert_eq!(parts_in_log(&disk, &settings), parts, "cut {cut}, {new_lens:?}");
            before_count += usize::from(!is_new);
            after_count += usize::from(is_new);
        }
    }
    assert!(before_count > 20 && after_count > 20, "{before_count} {after_count}");
}

/// A large message whose content is written, and which then waits because the queue of an AMQP client is full, is written once.
#[test]
fn a_large_retained_message_that_waits_for_a_queue_is_written_once() {
    let (limits, settings) = small_commits();
    let settings = Settings { segments_max: 12, ..settings };
    let mut simulation = Simulation::new(limits);
    simulation.keep_on_disk(settings);
    let consumer = simulation.open(&[1]);
    simulation.ask(consumer, 1, &declare_with("q", true, Table::EMPTY));
    let (queue, exchange, routing_key, arguments) = ("q", "amq.topic", "#", Table::EMPTY);
    let bind = Method::QueueBind { queue, exchange, routing_key, no_wait: false, arguments };
    simulation.ask(consumer, 1, &bind);
    let mut filler = MqttClient::log_in(&mut simulation, &new_client("filler"));
    for number in 0..100_u16 {
        let publish = filler.publish_packet(0x32, "fill", number + 1, &[7; 100_000]);
        filler.send(&mut simulation, &publish);
        simulation.pass_ms(300);
    }
    let mut client = MqttClient::log_in(&mut simulation, &new_client("client"));
    let publish = client.publish_packet(0x33, "t", 9, &payload(1, 200_000));
    client.send(&mut simulation, &publish);
    simulation.pass_ms(2_000);
    assert_eq!(client.next(&mut simulation), None, "the queue has used its share");
    let commits = simulation.engine.platform_mut().helpers.commits;
    simulation.pass_ms(10_000);
    let more = simulation.engine.platform_mut().helpers.commits - commits;
    assert!(more < 20, "{more} commits while nothing happens");
}

/// Several clients publish large contents at the same time, to one topic and to their own ones.
#[test]
fn all_of_many_large_retained_messages_are_acknowledged() {
    let (limits, settings) = small_commits();
    let mut simulation = Simulation::new(limits);
    simulation.keep_on_disk(settings);
    let mut clients = ["a", "b", "c"].map(|id| MqttClient::log_in(&mut simulation, &new_client(id)));
    for number in 0..4 {
        for (place, client) in clients.iter_mut().enumerate() {
            for (at, topic) in ["shared".to_owned(), format!("own/{place}")].iter().enumerate() {
                let body = payload(number * 10 + place, 150_000);
                let publish = client.publish_packet(0x33, topic, (number * 2 + at + 1) as u16, &body);
                client.send_without_turn(&mut simulation, &publish);
            }
        }
    }
    simulation.pass_ms(20_000);
    for client in &mut clients {
        client.read(&mut simulation);
        for _ in 0..8 {
            let puback = client.next(&mut simulation).expect("an acknowledgement");
            assert!(puback.first_octet == 0x40 && puback.body.get(2).is_none_or(|code| *code < 0x80));
        }
    }
    let found = all_retained(&mut simulation);
    assert_eq!(found.len(), 4);
    for (place, (topic, body)) in found[..3].iter().enumerate() {
        assert!(*body == payload(30 + place, 150_000), "{topic}");
    }
    let bytes: usize = found.iter().map(|(topic, body)| topic.len() + body.len()).sum();
    let (count, counted) = simulation.engine.broker().views().retained_counts();
    assert!(count == 4 && (bytes..bytes + 400).contains(&(counted as usize)), "{counted} of {bytes}");
}

/// Retained messages leave three quarters of the disk to the queues. The others are refused by name.
#[test]
fn retained_messages_take_at_most_a_quarter_of_the_disk() {
    let (limits, settings) = small_commits();
    let settings = Settings { segments_max: 8, ..settings };
    let mut simulation = Simulation::new(limits);
    simulation.keep_on_disk(settings);
    let mut client = MqttClient::log_in(&mut simulation, &new_client("client"));
    let mut codes = Vec::new();
    for number in 0..12 {
        let topic = format!("t/{number}");
        codes.push(publish_large(&mut client, &mut simulation, &topic, &payload(number, 300_000)));
        simulation.pass_ms(1_000);
    }
    let accepted = codes.iter().filter(|code| **code < 0x80).count();
    assert!((3..=7).contains(&accepted) && codes[11] == 0x97, "{codes:?}");
    let refused = simulation.engine.broker().views().refused_retained().map(|(.., limit)| limit);
    assert!(refused.is_some_and(|limit| limit.contains("disk_limit")), "{refused:?}");
    assert_eq!(all_retained(&mut simulation).len(), accepted);
}

fn reads(simulation: &mut Simulation) -> u64 {
    simulation.engine.platform_mut().helpers.reads
}

/// Publishes retained messages with QoS 1, several at a time. Returns their topics and payloads.
fn publish_many(
    publisher: &mut MqttClient,
    simulation: &mut Simulation,
    numbers: core::ops::Range<usize>,
    len: usize,
) -> Vec<(String, Vec<u8>)> {
    let messages: Vec<_> =
        numbers.map(|number| (format!("devices/{number}/config"), payload(number, len))).collect();
    for group in messages.chunks(20) {
        for (at, (topic, body)) in group.iter().enumerate() {
            let publish = publisher.publish_packet(0x33, topic, at as u16 + 1, body);
            publisher.send(simulation, &publish);
        }
        simulation.pass_ms(1_000);
        for _ in group {
            let puback = publisher.expect(simulation, 0x40);
            assert!(puback.body.get(2).is_none_or(|code| *code < 0x80), "{puback:?}");
        }
    }
    messages
}

/// 1,500 retained messages of 1 KB, with memory for 64 of them. They are read from the log in its order, so that few reads are
/// enough, for a fast and for a slow subscriber.
#[test]
fn thousands_of_retained_messages_are_read_from_the_log_with_few_reads() {
    let (limits, settings) = small_commits();
    let limits = Limits { retained_max: 2_000, retained_bytes_max: 64 << 10, ..limits };
    let mut simulation = Simulation::new(limits.clone());
    let disk = simulation.keep_on_disk(settings.clone());
    let mut publisher = MqttClient::log_in(&mut simulation, &new_client("publisher"));
    let mut expected = publish_many(&mut publisher, &mut simulation, 0..1_500, 1_000);
    expected.sort();
    for start in 0..2 {
        let retained = simulation.engine.broker().views().retained();
        let in_memory = retained.filter(|message| message.content.is_some()).count();
        assert!((30..=64).contains(&in_memory), "{in_memory} in memory");
        for is_slow in [false, true] {
            let before = reads(&mut simulation);
            let mut reader = MqttClient::log_in(&mut simulation, &new_client("slow"));
            reader.subscribe(&mut simulation, &[("devices/+/config", 1)]);
            let mut found = Vec::new();
            while let Some(message) = reader.receive(&mut simulation) {
                found.push((message.topic, message.payload));
                reader.acknowledge(&mut simulation, message.packet_id.unwrap());
                if is_slow {
                    simulation.pass_ms(20);
                }
            }
            reader.disconnect(&mut simulation);
            found.sort();
            assert!(found == expected, "{} messages after start {start}", found.len());
            let count = reads(&mut simulation) - before;
            assert!((40..=100).contains(&count), "{count} reads");
        }
        drop(simulation);
        simulation = Simulation::restarted(limits.clone(), &disk, settings.clone());
        simulation.pass_ms(1_000);
    }
}

/// While a subscriber gets retained messages from the log, some are replaced and some are deleted. The subscriber gets each of
/// the others once, and the new content of those that were replaced.
#[test]
fn retained_messages_may_change_while_they_are_read_from_the_log() {
    let (limits, settings) = small_commits();
    let limits = Limits { retained_max: 2_000, retained_bytes_max: 10_000, ..limits };
    let mut simulation = Simulation::new(limits);
    simulation.keep_on_disk(settings);
    let mut publisher = MqttClient::log_in(&mut simulation, &new_client("publisher"));
    publish_many(&mut publisher, &mut simulation, 0..600, 1_000);
    let mut reader = MqttClient::log_in(&mut simulation, &new_client("reader"));
    reader.subscribe(&mut simulation, &[("devices/#", 1)]);
    let (mut old, mut new, mut changed) = (HashSet::new(), HashSet::new(), 0);
    loop {
        let Some(message) = reader.receive(&mut simulation) else {
            simulation.pass_ms(1_000);
            match reader.receive(&mut simulation) {
                Some(message) => panic!("it comes late: {}", message.topic),
                None => break,
            }
        };
        reader.acknowledge(&mut simulation, message.packet_id.unwrap());
        let number: usize = message.topic.split('/').nth(1).unwrap().parse().unwrap();
        if message.payload == b"new" {
            new.insert(number);
        } else if !message.payload.is_empty() {
            assert!(message.payload == payload(number, 1_000) && old.insert(number), "{number}");
        }
        if old.len().is_multiple_of(10) && changed < 300 {
            // Each tenth of the first half is replaced, and another one is deleted.
            publish_retained(
                &mut publisher,
                &mut simulation,
                (&format!("devices/{changed}/config"), 1),
                b"new",
            );
            publish_retained(
                &mut publisher,
                &mut simulation,
                (&format!("devices/{}/config", changed + 1), 1),
                b"",
            );
            changed += 10;
        }
    }
    assert_eq!(changed, 300);
    let replaced: HashSet<usize> = (0..300).step_by(10).collect();
    assert_eq!(new, replaced);
    let deleted = |number: &usize| *number < 300 && number % 10 == 1;
    assert!((0..600).all(|number| old.contains(&number) || replaced.contains(&number) || deleted(&number)));
}

/// Twenty subscribers at once, of which some leave before they have all messages.
#[test]
fn many_subscribers_get_retained_messages_from_the_log() {
    let (limits, settings) = small_commits();
    let limits = Limits { retained_max: 2_000, retained_bytes_max: 10_000, ..limits };
    let mut simulation = Simulation::new(limits);
    simulation.keep_on_disk(settings);
    let mut publisher = MqttClient::log_in(&mut simulation, &new_client("publisher"));
    publish_many(&mut publisher, &mut simulation, 0..200, 500);
    let mut readers: Vec<MqttClient> = (0..20)
        .map(|number| MqttClient::log_in(&mut simulation, &new_client(&format!("reader-{number}"))))
        .collect();
    for reader in &mut readers {
        let mut subscribe = vec![0x82, 15, 0, 7, 0, 0, 9];
        subscribe.extend(b"devices/#\x01");
        reader.send_without_turn(&mut simulation, &subscribe);
    }
    // Some leave before they have received all.
    simulation.pass_ms(20);
    readers.drain(..5).for_each(|reader| reader.lose(&mut simulation));
    for (number, reader) in readers.iter_mut().enumerate() {
        let mut topics = HashSet::new();
        for _ in 0..50 {
            while let Some(packet) = reader.next(&mut simulation) {
                if packet.first_octet >> 4 == 3 {
                    let (message, _) = reader.parse_publish(&packet);
                    reader.acknowledge(&mut simulation, message.packet_id.unwrap());
                    assert!(topics.insert(message.topic));
                }
            }
            simulation.pass_ms(100);
        }
        assert_eq!(topics.len(), 200, "reader {number}");
    }
}

/// A content that the disk does not return is named in the log, and the others are sent.
#[test]
fn a_retained_message_that_cannot_be_read_is_left_out() {
    for (len, retained_bytes_max) in [(1_000, 3_000), (150_000, 200_000)] {
        let (limits, settings) = small_commits();
        let mut simulation = Simulation::new(Limits { retained_bytes_max, ..limits });
        let disk = simulation.keep_on_disk(settings);
        let mut publisher = MqttClient::log_in(&mut simulation, &new_client("publisher"));
        let body = |number: usize| [format!("content {number}").into_bytes(), vec![7; len]].concat();
        let bodies: Vec<_> = (0..8).map(body).collect();
        for (number, body) in bodies.iter().enumerate() {
            assert!(publish_large(&mut publisher, &mut simulation, &format!("t/{number}"), body) < 0x80);
        }
        let marks = disk.find(&bodies[2][..300]);
        assert!(!marks.is_empty());
        marks.iter().for_each(|(slot, at)| disk.flip(*slot, *at));
        let found = all_retained(&mut simulation);
        assert_eq!(found.len(), 7, "of {len} bytes");
        assert!(found.iter().all(|(topic, body)| topic != "t/2" && bodies.contains(body)));
    }
}

/// Returns a broker with 200 retained messages of 500 bytes, nearly all of which are only in the log.
fn with_messages_in_log(limits: Limits) -> (Simulation, MqttClient) {
    let (_, settings) = small_commits();
    let limits = Limits { retained_max: 2_000, retained_bytes_max: 3_000, ..limits };
    let mut simulation = Simulation::new(limits);
    simulation.keep_on_disk(settings);
    let mut publisher = MqttClient::log_in(&mut simulation, &new_client("publisher"));
    publish_many(&mut publisher, &mut simulation, 0..200, 500);
    (simulation, publisher)
}

/// Subscribers that are away or do not read keep no other one from its messages.
#[test]
fn subscribers_that_read_nothing_do_not_keep_others_from_retained_messages() {
    let limits = Limits { unacknowledged_max: 40_000, ..small_commits().0 };
    let (mut simulation, _publisher) = with_messages_in_log(limits);
    let mut idle = Vec::new();
    for number in 0..24 {
        let client_id = format!("idle-{number}");
        let expiry = [0x11, 0, 0, 0, 100];
        let login = Login { clean_start: false, properties: &expiry, ..new_client(&client_id) };
        let mut reader = MqttClient::log_in(&mut simulation, &login);
        // Messages may come before SUBACK, which waits for the disk.
        reader.send(&mut simulation, &packet(0x82, b"\0\x07\0\0\x01#\x01"));
        simulation.pass_ms(100);
        match number % 2 {
            0 => reader.lose(&mut simulation),
            _ => idle.push(reader),
        }
    }
    assert_eq!(all_retained(&mut simulation).len(), 200);
}

/// A topic is deleted while its message is to be read, and a topic that the subscriber has not asked for gets its place.
#[test]
fn a_subscriber_gets_no_message_of_another_topic_that_has_the_place_of_a_deleted_one() {
    let (mut simulation, mut publisher) = with_messages_in_log(small_commits().0);
    let mut reader = MqttClient::log_in(&mut simulation, &new_client("reader"));
    reader.subscribe(&mut simulation, &[("devices/#", 1)]);
    let mut topics = HashSet::new();
    for number in (40..200).rev() {
        let topic = format!("devices/{number}/config");
        publish_retained(&mut publisher, &mut simulation, (&topic, 1), b"");
        publish_retained(&mut publisher, &mut simulation, (&format!("other/{number}"), 1), &[7; 500]);
    }
    for _ in 0..30 {
        while let Some(message) = reader.receive(&mut simulation) {
            reader.acknowledge(&mut simulation, message.packet_id.unwrap());
            assert!(message.topic.starts_with("devices/"), "{}", message.topic);
            topics.insert(message.topic);
        }
        simulation.pass_ms(100);
    }
    assert!((0..40).all(|number| topics.contains(&format!("devices/{number}/config"))));
}

/// A session that may have only a few messages gets all retained ones, one after the other.
#[test]
fn a_session_of_few_messages_gets_all_retained_messages_from_the_log() {
    for mqtt_session_messages_max in [1, 3, 20] {
        let (mut simulation, _publisher) =
            with_messages_in_log(Limits { mqtt_session_messages_max, ..small_commits().0 });
        assert_eq!(all_retained(&mut simulation).len(), 200, "at most {mqtt_session_messages_max}");
        assert_eq!(simulation.engine.broker().views().session_messages_dropped(), 0);
    }
}

/// With no memory for messages, sessions that wait for retained messages cause no turns.
#[test]
fn the_loop_sleeps_while_retained_messages_wait_for_memory() {
    for retained_bytes_max in [3_000, 1 << 20] {
        let (_, settings) = small_commits();
        let limits =
            Limits { retained_max: 2_000, retained_bytes_max, messages_max: 64, ..small_commits().0 };
        let mut simulation = Simulation::new(limits);
        simulation.keep_on_disk(settings);
        let mut publisher = MqttClient::log_in(&mut simulation, &new_client("publisher"));
        publish_many(&mut publisher, &mut simulation, 0..200, 500);
        let mut readers: Vec<_> = (0..6)
            .map(|number| MqttClient::log_in(&mut simulation, &new_client(&format!("reader-{number}"))))
            .collect();
        for (number, reader) in readers.iter_mut().enumerate() {
            // Half of them have no wildcard in some filters.
            let mut subscribe = vec![0, 7, 0];
            for filter in ["devices/5/config", "devices/#"].iter().skip(number % 2) {
                subscribe.extend([0, filter.len() as u8]);
                subscribe.extend(filter.as_bytes());
                subscribe.push(1);
            }
            reader.send_without_turn(&mut simulation, &packet(0x82, &subscribe));
        }
        simulation.pass_ms(5_000);
        let (turns, reads_before) = (simulation.turns, reads(&mut simulation));
        simulation.pass_ms(60_000);
        let (turns, count) = (simulation.turns - turns, reads(&mut simulation) - reads_before);
        assert!(turns < 1_000 && count == 0, "{turns} turns and {count} reads while nothing happens");
        for _ in 0..300 {
            for reader in &mut readers {
                while let Some(packet) = reader.next(&mut simulation) {
                    if packet.first_octet >> 4 == 3 {
                        let (message, _) = reader.parse_publish(&packet);
                        reader.acknowledge(&mut simulation, message.packet_id.unwrap());
                    }
                }
            }
            simulation.pass_ms(50);
        }
        let waiting = simulation.engine.broker().views().stored_messages();
        assert_eq!(waiting, (0, 0), "all were sent");
    }
}
