//! Byte streams: the same conversation in fragments of any size, frames out of place, and a peer that is lost
//! after any byte in either direction.

use std::collections::BTreeMap;

use leveret_amqp::{Method, Table};

use crate::world::*;

/// Uses a queue that outlives its connection in all possible ways.
fn converse(world: &mut World, client: usize) {
    let publish = |key, mandatory| Publish { key, mandatory, ..Publish::default() };
    for channel in [1, 2] {
        world.ask(client, channel, &Method::ChannelOpen {});
    }
    world.ask(client, 1, &Method::ConfirmSelect { no_wait: false });
    world.ask(client, 1, &declare("q"));
    let exclusive = Method::QueueDeclare {
        queue: "mine",
        passive: false,
        durable: false,
        exclusive: true,
        auto_delete: false,
        no_wait: false,
        arguments: Table::EMPTY,
    };
    world.ask(client, 1, &exclusive);
    world.ask(client, 1, &bind("q", "amq.topic", "a.*"));
    for (key, size) in [("q", 0), ("q", 1), ("mine", 300), ("q", 5_000)] {
        world.publish(client, 1, publish(key, false), &vec![key.len() as u8; size]);
    }
    let topic = Publish { exchange: "amq.topic", key: "a.b", ..Publish::default() };
    world.publish(client, 1, topic, b"by topic");
    world.run();
    world.publish(client, 1, publish("nowhere", true), b"returned");
    world.run();
    world.ask(client, 2, &qos(3));
    world.ask(client, 2, &consume("q", "reader", false));
    world.ask(client, 2, &Method::BasicGet { queue: "mine", no_ack: false });
    world.ack(client, 2, 1, false);
    world.run();
    let nack = Method::BasicNack { delivery_tag: 2, multiple: false, requeue: true };
    world.send(client, 2, &nack);
    world.run();
    world.ack(client, 2, 0, true);
    world.run();
    world.ask(client, 2, &Method::BasicCancel { consumer_tag: "reader", no_wait: false });
    world.ask(client, 2, &Method::BasicGet { queue: "missing", no_ack: true });
    world.ask(client, 1, &delete("q"));
    world.send(client, 0, &close_connection());
    world.run();
}

/// Returns the received methods by channel, except confirms, whose grouping depends on timing.
fn heard_by_channel(world: &World, client: usize) -> BTreeMap<u16, Vec<(String, Vec<u8>)>> {
    let mut heard = BTreeMap::<_, Vec<_>>::new();
    for said in &world.clients[client].heard {
        if !matches!(said.method(), Method::BasicAck { .. }) {
            heard.entry(said.channel).or_default().push((said.shown(), said.body.clone()));
        }
    }
    heard
}

#[test]
fn any_fragments_both_ways_give_the_same_conversation() {
    let mut expected = None;
    for bytes in [1 << 20, 1, 2, 3, 7, 100, 4096] {
        let mut world = World::new(small_limits());
        let client = world.connect(Manners::default(), Shape::fragments(bytes));
        world.run();
        // `ask` removes answers from `heard`, so only the other methods are left there.
        converse(&mut world, client);
        assert_eq!(world.clients[client].checker.phase, Phase::Closed);
        let heard = heard_by_channel(&world, client);
        assert!(heard[&2].len() >= 4 && heard[&1].len() == 1, "{heard:?}");
        assert_eq!(expected.get_or_insert_with(|| heard.clone()), &heard, "fragments of {bytes}");
        world.pass_ms(5_000);
        world.end(&[]);
    }
}

#[test]
fn a_peer_lost_after_any_byte_leaves_nothing_and_disturbs_no_other_client() {
    let mut world = World::new(small_limits());
    let client = world.connect(Manners::default(), Shape::WIDE);
    world.run();
    converse(&mut world, client);
    let up = world.line(client).sent_up();
    let down = world.line(client).sent_down();
    assert!(up > 6_000 && down > 6_000, "{up} up, {down} down");
    let every = |total: u64| (0..=total).filter(move |at| *at < 900 || at % 23 == 0 || *at > total - 700);
    for cut in every(up) {
        lose_at(Some(cut), None);
    }
    for cut in every(down) {
        lose_at(None, Some(cut));
    }
}

fn lose_at(up: Option<u64>, down: Option<u64>) {
    let mut world = World::new(small_limits());
    let other = world.open(&[1]);
    let client = world.connect(Manners::default(), Shape::WIDE);
    world.line(client).cut_up = up;
    world.line(client).cut_down = down;
    world.run();
    converse_in_bursts(&mut world, client);
    world.pass_ms(20_000);
    assert_eq!(world.peers_count(), 1, "cut at {up:?}, {down:?}");
    world.ask(other, 1, &delete("q"));
    assert_eq!(
        world.ask(other, 1, &passive_missing()).method().id(),
        (20, 40),
        "the exclusive queue is gone"
    );
    world.ask(other, 1, &Method::ChannelOpen {});
    world.declare(other, 1, "after");
    world.publish_to(other, 1, "after", b"still here");
    let got = world.ask(other, 1, &Method::BasicGet { queue: "after", no_ack: true });
    assert_eq!(got.body, b"still here", "cut at {up:?}, {down:?}");
    world.end(&["after"]);
}

const fn passive_missing() -> Method<'static> {
    passive("mine")
}

/// The conversation of a program that does not wait for answers: everything is sent at once.
fn converse_in_bursts(world: &mut World, client: usize) {
    let publish = |key, mandatory| Publish { key, mandatory, ..Publish::default() };
    for channel in [1, 2] {
        world.send(client, channel, &Method::ChannelOpen {});
    }
    world.send(client, 1, &Method::ConfirmSelect { no_wait: false });
    world.send(client, 1, &declare("q"));
    let exclusive = Method::QueueDeclare {
        queue: "mine",
        passive: false,
        durable: false,
        exclusive: true,
        auto_delete: false,
        no_wait: false,
        arguments: Table::EMPTY,
    };
    world.send(client, 1, &exclusive);
    world.send(client, 1, &bind("q", "amq.topic", "a.*"));
    for (key, size) in [("q", 0), ("q", 1), ("mine", 300), ("q", 5_000)] {
        world.publish(client, 1, publish(key, false), &vec![key.len() as u8; size]);
    }
    world.publish(client, 1, publish("nowhere", true), b"returned");
    world.send(client, 2, &qos(3));
    world.send(client, 2, &consume("q", "reader", false));
    world.send(client, 2, &Method::BasicGet { queue: "mine", no_ack: false });
    world.run();
    world.send(client, 2, &Method::BasicNack { delivery_tag: 1, multiple: false, requeue: true });
    world.ack(client, 2, 0, true);
    world.run();
    world.send(client, 2, &Method::BasicCancel { consumer_tag: "reader", no_wait: false });
    world.send(client, 2, &Method::BasicGet { queue: "missing", no_ack: true });
    world.send(client, 0, &close_connection());
    world.run();
}

/// Returns the parts of a publish: method, header, two body frames.
fn parts() -> [Vec<u8>; 4] {
    let publish =
        Method::BasicPublish { exchange: "", routing_key: b"q", mandatory: false, immediate: false };
    let mut content = content_frames(1, &[0, 0], &[9; 20], 10);
    let second = content.split_off(content.len() - 18);
    let first = content.split_off(content.len() - 18);
    [method_frame(1, &publish), content, first, second]
}

#[test]
fn frames_of_other_channels_between_those_of_a_content_are_processed() {
    for place in 1..4 {
        let mut world = World::new(small_limits());
        let client = world.open(&[1, 2]);
        world.declare(client, 2, "q");
        for (index, part) in parts().iter().enumerate() {
            if index == place {
                world.clients[client].say(&frame(8, 0, b""));
                world.publish_to(client, 2, "q", &[5; 6_000]);
                assert_eq!(world.counts(client, 2, "q"), (1, 0));
                world.ask(client, 2, &close_channel());
                world.ask(client, 2, &Method::ChannelOpen {});
            }
            world.clients[client].say(part);
            world.run();
        }
        assert_eq!(world.counts(client, 2, "q"), (2, 0));
        let got = world.ask(client, 2, &Method::BasicGet { queue: "q", no_ack: true });
        assert_eq!(got.body.len(), 6_000);
        let got = world.ask(client, 2, &Method::BasicGet { queue: "q", no_ack: true });
        assert_eq!(got.body, [9; 20]);
        world.end(&["q"]);
    }
}

#[test]
fn a_frame_out_of_place_closes_its_connection_and_no_other() {
    let [method, header, body, _] = parts();
    let header_of_another_class = frame(2, 1, &[0, 61, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0]);
    // Number of parts sent before, the frame, and the expected code.
    let cases: [(usize, Vec<u8>, u16); 10] = [
        (0, body.clone(), 505),
        (0, header.clone(), 505),
        (1, body.clone(), 505),
        (1, method.clone(), 505),
        (1, header_of_another_class, 505),
        (2, header.clone(), 505),
        (2, method.clone(), 505),
        (2, frame(3, 1, &[1; 21]), 501),
        (3, method_frame(1, &qos(1)), 505),
        (0, frame(8, 1, b""), 505),
    ];
    for (after, culprit, code) in cases {
        for fragments in [1, 1 << 20] {
            let mut world = World::new(small_limits());
            let other = world.open(&[1]);
            world.declare(other, 1, "q");
            let client = world.open_with(Manners::default(), Shape::fragments(fragments), &[1, 2]);
            // Channel 2 is in the middle of a content of its own.
            let mut on_two = parts();
            for part in &mut on_two {
                part[2] = 2;
                world.clients[client].say(if part[0] == 3 { &[] } else { part });
            }
            for part in &parts()[..after] {
                world.clients[client].say(part);
            }
            world.clients[client].say(&culprit);
            world.run();
            let closed = world.clients[client].closed_with.clone();
            assert_eq!(closed.map(|closed| closed.0), Some(code), "after {after}: {culprit:?}");
            world.publish_to(other, 1, "q", b"undisturbed");
            assert_eq!(world.counts(other, 1, "q"), (1, 0));
            world.pass_ms(5_000);
            assert_eq!(world.peers_count(), 1);
            world.end(&["q"]);
        }
    }
}

#[test]
fn a_consumer_cancelled_while_its_queue_is_deleted_ends_once() {
    for deleter_comes_first in [true, false] {
        let mut world = World::new(small_limits());
        let clients = [world.open(&[1]), world.open(&[1])];
        let (deleter, consumer) =
            if deleter_comes_first { (clients[0], clients[1]) } else { (clients[1], clients[0]) };
        world.declare(deleter, 1, "q");
        world.ask(consumer, 1, &consume("q", "reader", false));
        // Both are read in one turn, before anything is written.
        world.send(deleter, 1, &delete("q"));
        world.send(consumer, 1, &Method::BasicCancel { consumer_tag: "reader", no_wait: false });
        world.run();
        let ends = world.clients[consumer].heard.iter().map(|said| said.method().id());
        let ends = ends.filter(|id| matches!(id, (60, 30 | 31))).count();
        assert!(ends == 1 || !deleter_comes_first, "said {ends} times");
        world.end(&[]);
    }
}

#[test]
fn unroutable_messages_are_returned_before_the_channel_closes() {
    let passive = Method::QueueDeclare {
        queue: "missing",
        passive: true,
        durable: false,
        exclusive: false,
        auto_delete: false,
        no_wait: false,
        arguments: Table::EMPTY,
    };
    for end in [close_channel(), passive] {
        let mut world = World::new(small_limits());
        let client = world.open(&[1]);
        for _ in 0..3 {
            let publish = Publish { key: "nowhere", mandatory: true, ..Publish::default() };
            world.publish(client, 1, publish, b"returned");
        }
        world.send(client, 1, &end);
        world.run();
        let heard: Vec<_> = world.clients[client].heard.iter().map(Said::shown).collect();
        let returns = heard.iter().take_while(|shown| shown.starts_with("1 BasicReturn")).count();
        assert_eq!(returns, 3, "{heard:?}");
        assert!(heard.len() == 4 && heard[3].starts_with("1 ChannelClose"), "{heard:?}");
        world.end(&[]);
    }
}
