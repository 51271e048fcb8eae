//! Byte streams: the same conversation in fragments of any size, frames out of place, and a peer that is lost
//! after any byte in either direction.

use std::collections::BTreeMap;

use leveret_amqp::{Method, Table};

use leveret_test_support::simulated_server::*;

/// Uses a queue that outlives its connection in all possible ways.
fn converse(simulation: &mut Simulation, client: usize) {
    let publish = |key, mandatory| Publish { key, mandatory, ..Publish::default() };
    for channel in [1, 2] {
        simulation.ask(client, channel, &Method::ChannelOpen {});
    }
    simulation.ask(client, 1, &Method::ConfirmSelect { no_wait: false });
    simulation.ask(client, 1, &declare("q"));
    let exclusive = Method::QueueDeclare {
        queue: "mine",
        passive: false,
        durable: false,
        exclusive: true,
        auto_delete: false,
        no_wait: false,
        arguments: Table::EMPTY,
    };
    simulation.ask(client, 1, &exclusive);
    simulation.ask(client, 1, &bind("q", "amq.topic", "a.*"));
    for (key, size) in [("q", 0), ("q", 1), ("mine", 300), ("q", 5_000)] {
        simulation.publish(client, 1, publish(key, false), &vec![key.len() as u8; size]);
    }
    let topic = Publish { exchange: "amq.topic", key: "a.b", ..Publish::default() };
    simulation.publish(client, 1, topic, b"by topic");
    simulation.run();
    simulation.publish(client, 1, publish("nowhere", true), b"returned");
    simulation.run();
    simulation.ask(client, 2, &qos(3));
    simulation.ask(client, 2, &consume("q", "reader", false));
    simulation.ask(client, 2, &Method::BasicGet { queue: "mine", no_ack: false });
    simulation.ack(client, 2, 1, false);
    simulation.run();
    let nack = Method::BasicNack { delivery_tag: 2, multiple: false, requeue: true };
    simulation.send(client, 2, &nack);
    simulation.run();
    simulation.ack(client, 2, 0, true);
    simulation.run();
    simulation.ask(client, 2, &Method::BasicCancel { consumer_tag: "reader", no_wait: false });
    simulation.ask(client, 2, &Method::BasicGet { queue: "missing", no_ack: true });
    simulation.ask(client, 1, &delete("q"));
    simulation.send(client, 0, &close_connection());
    simulation.run();
}

/// Returns the received methods by channel, except confirms, whose grouping depends on timing.
fn heard_by_channel(simulation: &Simulation, client: usize) -> BTreeMap<u16, Vec<(String, Vec<u8>)>> {
    let mut heard = BTreeMap::<_, Vec<_>>::new();
    for said in &simulation.clients[client].heard {
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
        let mut simulation = Simulation::new(small_limits());
        let client = simulation.connect(Manners::default(), Shape::fragments(bytes));
        simulation.run();
        // `ask` removes answers from `heard`, so only the other methods are left there.
        converse(&mut simulation, client);
        assert_eq!(simulation.clients[client].checker.phase, Phase::Closed);
        let heard = heard_by_channel(&simulation, client);
        assert!(heard[&2].len() >= 4 && heard[&1].len() == 1, "{heard:?}");
        assert_eq!(expected.get_or_insert_with(|| heard.clone()), &heard, "fragments of {bytes}");
        simulation.pass_ms(5_000);
        simulation.end(&[]);
    }
}

#[test]
fn a_peer_lost_after_any_byte_leaves_nothing_and_disturbs_no_other_client() {
    let mut simulation = Simulation::new(small_limits());
    let client = simulation.connect(Manners::default(), Shape::WIDE);
    simulation.run();
    converse(&mut simulation, client);
    let up = simulation.line(client).sent_up();
    let down = simulation.line(client).sent_down();
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
    let mut simulation = Simulation::new(small_limits());
    let other = simulation.open(&[1]);
    let client = simulation.connect(Manners::default(), Shape::WIDE);
    simulation.line(client).cut_up = up;
    simulation.line(client).cut_down = down;
    simulation.run();
    converse_in_bursts(&mut simulation, client);
    simulation.pass_ms(20_000);
    assert_eq!(simulation.peers_count(), 1, "cut at {up:?}, {down:?}");
    simulation.ask(other, 1, &delete("q"));
    assert_eq!(
        simulation.ask(other, 1, &passive_missing()).method().id(),
        (20, 40),
        "the exclusive queue is gone"
    );
    simulation.ask(other, 1, &Method::ChannelOpen {});
    simulation.declare(other, 1, "after");
    simulation.publish_to(other, 1, "after", b"still here");
    let got = simulation.ask(other, 1, &Method::BasicGet { queue: "after", no_ack: true });
    assert_eq!(got.body, b"still here", "cut at {up:?}, {down:?}");
    simulation.end(&["after"]);
}

const fn passive_missing() -> Method<'static> {
    passive("mine")
}

/// The conversation of a program that does not wait for answers: everything is sent at once.
fn converse_in_bursts(simulation: &mut Simulation, client: usize) {
    let publish = |key, mandatory| Publish { key, mandatory, ..Publish::default() };
    for channel in [1, 2] {
        simulation.send(client, channel, &Method::ChannelOpen {});
    }
    simulation.send(client, 1, &Method::ConfirmSelect { no_wait: false });
    simulation.send(client, 1, &declare("q"));
    let exclusive = Method::QueueDeclare {
        queue: "mine",
        passive: false,
        durable: false,
        exclusive: true,
        auto_delete: false,
        no_wait: false,
        arguments: Table::EMPTY,
    };
    simulation.send(client, 1, &exclusive);
    simulation.send(client, 1, &bind("q", "amq.topic", "a.*"));
    for (key, size) in [("q", 0), ("q", 1), ("mine", 300), ("q", 5_000)] {
        simulation.publish(client, 1, publish(key, false), &vec![key.len() as u8; size]);
    }
    simulation.publish(client, 1, publish("nowhere", true), b"returned");
    simulation.send(client, 2, &qos(3));
    simulation.send(client, 2, &consume("q", "reader", false));
    simulation.send(client, 2, &Method::BasicGet { queue: "mine", no_ack: false });
    simulation.run();
    simulation.send(client, 2, &Method::BasicNack { delivery_tag: 1, multiple: false, requeue: true });
    simulation.ack(client, 2, 0, true);
    simulation.run();
    simulation.send(client, 2, &Method::BasicCancel { consumer_tag: "reader", no_wait: false });
    simulation.send(client, 2, &Method::BasicGet { queue: "missing", no_ack: true });
    simulation.send(client, 0, &close_connection());
    simulation.run();
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
        let mut simulation = Simulation::new(small_limits());
        let client = simulation.open(&[1, 2]);
        simulation.declare(client, 2, "q");
        for (index, part) in parts().iter().enumerate() {
            if index == place {
                simulation.clients[client].say(&frame(8, 0, b""));
                simulation.publish_to(client, 2, "q", &[5; 6_000]);
                assert_eq!(simulation.counts(client, 2, "q"), (1, 0));
                simulation.ask(client, 2, &close_channel());
                simulation.ask(client, 2, &Method::ChannelOpen {});
            }
            simulation.clients[client].say(part);
            simulation.run();
        }
        assert_eq!(simulation.counts(client, 2, "q"), (2, 0));
        let got = simulation.ask(client, 2, &Method::BasicGet { queue: "q", no_ack: true });
        assert_eq!(got.body.len(), 6_000);
        let got = simulation.ask(client, 2, &Method::BasicGet { queue: "q", no_ack: true });
        assert_eq!(got.body, [9; 20]);
        simulation.end(&["q"]);
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
            let mut simulation = Simulation::new(small_limits());
            let other = simulation.open(&[1]);
            simulation.declare(other, 1, "q");
            let client = simulation.open_with(Manners::default(), Shape::fragments(fragments), &[1, 2]);
            // Channel 2 is in the middle of a content of its own.
            let mut on_two = parts();
            for part in &mut on_two {
                part[2] = 2;
                simulation.clients[client].say(if part[0] == 3 { &[] } else { part });
            }
            for part in &parts()[..after] {
                simulation.clients[client].say(part);
            }
            simulation.clients[client].say(&culprit);
            simulation.run();
            let closed = simulation.clients[client].closed_with.clone();
            assert_eq!(closed.map(|closed| closed.0), Some(code), "after {after}: {culprit:?}");
            simulation.publish_to(other, 1, "q", b"without_test_environment");
            assert_eq!(simulation.counts(other, 1, "q"), (1, 0));
            simulation.pass_ms(5_000);
            assert_eq!(simulation.peers_count(), 1);
            simulation.end(&["q"]);
        }
    }
}

#[test]
fn a_consumer_cancelled_while_its_queue_is_deleted_ends_once() {
    for deleter_comes_first in [true, false] {
        let mut simulation = Simulation::new(small_limits());
        let clients = [simulation.open(&[1]), simulation.open(&[1])];
        let (deleter, consumer) =
            if deleter_comes_first { (clients[0], clients[1]) } else { (clients[1], clients[0]) };
        simulation.declare(deleter, 1, "q");
        simulation.ask(consumer, 1, &consume("q", "reader", false));
        // Both are read in one turn, before anything is written.
        simulation.send(deleter, 1, &delete("q"));
        simulation.send(consumer, 1, &Method::BasicCancel { consumer_tag: "reader", no_wait: false });
        simulation.run();
        let ends = simulation.clients[consumer].heard.iter().map(|said| said.method().id());
        let ends = ends.filter(|id| matches!(id, (60, 30 | 31))).count();
        assert!(ends == 1 || !deleter_comes_first, "said {ends} times");
        simulation.end(&[]);
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
        let mut simulation = Simulation::new(small_limits());
        let client = simulation.open(&[1]);
        for _ in 0..3 {
            let publish = Publish { key: "nowhere", mandatory: true, ..Publish::default() };
            simulation.publish(client, 1, publish, b"returned");
        }
        simulation.send(client, 1, &end);
        simulation.run();
        let heard: Vec<_> = simulation.clients[client].heard.iter().map(Said::shown).collect();
        let returns = heard.iter().take_while(|shown| shown.starts_with("1 BasicReturn")).count();
        assert_eq!(returns, 3, "{heard:?}");
        assert!(heard.len() == 4 && heard[3].starts_with("1 ChannelClose"), "{heard:?}");
        simulation.end(&[]);
    }
}
