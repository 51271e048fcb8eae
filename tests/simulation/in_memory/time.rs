//! Time: heartbeats in both directions, peers that fall silent at any stage, and a broker that sleeps when
//! nothing is due.

use leveret_amqp::{Method, Table, Writer};
use leveret_core::limits::Limits;
use leveret_core::time::Now;

use leveret_test_support::simulated_server::*;

const DAY_MS: u64 = 24 * 60 * 60 * 1000;
/// Extents of a memory for messages that a few hundred of them fill.
const FEW: usize = 4;

fn with_heartbeat(heartbeat_s: u16, sends_heartbeats: bool) -> Manners {
    Manners { heartbeat_s, sends_heartbeats, ..Manners::default() }
}

fn silent(silence: Silence) -> Manners {
    Manners { silence, ..Manners::default() }
}

#[test]
fn a_day_of_heartbeats_both_ways() {
    let mut simulation = Simulation::new(small_limits());
    let intervals = [1, 10, 60, 580];
    for interval in intervals {
        simulation.open_with(with_heartbeat(interval, true), Shape::WIDE, &[1]);
    }
    let before = simulation.turns;
    simulation.pass_ms(DAY_MS);
    let mut most_turns = 0;
    for (client, interval) in intervals.into_iter().enumerate() {
        let checker = &simulation.clients[client].checker;
        assert_eq!(checker.phase, Phase::Open, "heartbeat {interval}");
        let halves = DAY_MS / 500 / u64::from(interval);
        assert!((halves / 2..=halves + 1).contains(&checker.heartbeats), "{interval}: {checker:?}");
        // One wake-up to send, one to read, one to check whether the peer is lost, each with a turn to
        // process it.
        most_turns += 6 * halves + 6;
    }
    let turns = simulation.turns - before;
    assert!(turns < most_turns, "{turns} turns for {most_turns}");
    simulation.end(&[]);
}

#[test]
fn any_traffic_counts_as_a_heartbeat() {
    let mut simulation = Simulation::new(small_limits());
    let client = simulation.open_with(with_heartbeat(10, false), Shape::WIDE, &[1]);
    for _ in 0..1000 {
        simulation.pass_ms(9_000);
        simulation.ask(client, 1, &qos(1));
    }
    assert_eq!(simulation.clients[client].checker.phase, Phase::Open);
    simulation.end(&[]);
}

#[test]
fn a_publisher_that_is_blocked_for_a_day_stays_connected_and_resumes() {
    let mut simulation = Simulation::with_message_extents(FEW);
    let waiting = simulation.open_with(with_heartbeat(10, true), Shape::WIDE, &[1]);
    simulation.declare(waiting, 1, "q");
    for _ in 0..200 {
        simulation.publish_to(waiting, 1, "q", b"x");
    }
    simulation.pass_ms(DAY_MS);
    assert!(simulation.clients[waiting].checker.is_blocked);
    assert!(simulation.clients[waiting].checker.heartbeats > DAY_MS / 10_000, "it hears that we are there");
    let operator = simulation.open(&[1]);
    let (before, _) = simulation.counts(operator, 1, "q");
    simulation.ask(operator, 1, &purge("q"));
    simulation.pass_ms(100);
    assert!(!simulation.clients[waiting].checker.is_blocked);
    simulation.pass_ms(15_000);
    assert_eq!(simulation.counts(waiting, 1, "q"), (200 - before, 0));
    simulation.end(&["q"]);
}

/// A program that is stopped while its broker is full closes its connection, and does not hang.
///
/// What was not accepted is dropped as if the connection had broken. A client that is unblocked, however
/// slowly, loses nothing.
#[test]
fn a_blocked_publisher_can_close_its_connection() {
    for (gets, kept) in [(0, 161), (40, 180)] {
        let mut simulation = Simulation::with_message_extents(FEW);
        let waiting = simulation.open(&[1]);
        simulation.declare(waiting, 1, "q");
        for _ in 0..180 {
            simulation.publish_to(waiting, 1, "q", b"x");
        }
        simulation.pass_ms(200);
        assert!(simulation.clients[waiting].checker.is_blocked);
        let close = Method::ConnectionClose { reply_code: 200, reply_text: "bye", class_id: 0, method_id: 0 };
        simulation.send(waiting, 0, &close);
        simulation.pass_ms(5_000);
        assert_eq!(simulation.clients[waiting].checker.phase, Phase::Open, "it has time to be let on");
        let operator = simulation.open(&[1]);
        for _ in 0..gets {
            let got = simulation.ask(operator, 1, &Method::BasicGet { queue: "q", no_ack: true });
            assert!(matches!(got.method(), Method::BasicGetOk { .. }), "{}", got.shown());
            simulation.pass_ms(4_000);
        }
        simulation.pass_ms(30_000);
        assert_ne!(simulation.clients[waiting].checker.phase, Phase::Open, "it hangs");
        assert_eq!(simulation.counts(operator, 1, "q").0 + gets, kept, "with {gets} messages taken away");
        simulation.ask(operator, 1, &purge("q"));
        simulation.pass_ms(10_000);
        simulation.end(&["q"]);
    }
}

/// A process that was paused reads what arrived in time before it judges a heartbeat.
#[test]
fn what_was_sent_during_a_pause_is_read_before_heartbeats_are_judged() {
    for shape in [Shape::WIDE, Shape::fragments(100)] {
        let mut simulation = Simulation::new(small_limits());
        let publisher = simulation.open_with(with_heartbeat(1, true), shape, &[1]);
        simulation.declare(publisher, 1, "q");
        for _ in 0..20 {
            simulation.publish_to(publisher, 1, "q", b"x");
        }
        simulation.pause_ms(60_000);
        assert_eq!(simulation.clients[publisher].checker.phase, Phase::Open);
        assert_eq!(simulation.counts(publisher, 1, "q").0, 20);
        simulation.ask(publisher, 1, &purge("q"));
        simulation.end(&["q"]);
    }
}

/// A pause of the machine may have stopped the client as well. It has one more heartbeat interval to send
/// something, as in RabbitMQ.
#[test]
fn a_client_that_was_silent_during_a_pause_is_lost_one_heartbeat_after_it() {
    for is_alive in [false, true] {
        let mut simulation = Simulation::new(small_limits());
        let client = simulation.open_with(with_heartbeat(5, false), Shape::WIDE, &[1]);
        simulation.pause_ms(60_000);
        simulation.pass_ms(4_000);
        assert_eq!(simulation.clients[client].checker.phase, Phase::Open);
        if is_alive {
            simulation.ask(client, 1, &qos(1));
        }
        simulation.pass_ms(2_000);
        assert_eq!(simulation.peers_count(), usize::from(is_alive));
        simulation.pass_ms(10_000);
        assert_eq!(simulation.peers_count(), 0, "later it has two intervals, as always");
        simulation.end(&[]);
    }
}

/// A client whose message was begun before a pause and completed during it is not closed for missing
/// progress.
#[test]
fn a_message_that_was_sent_during_a_pause_is_read_before_its_progress_is_judged() {
    let mut simulation = Simulation::new(small_limits());
    let client = simulation.open_with(with_heartbeat(0, false), Shape::WIDE, &[1]);
    simulation.declare(client, 1, "q");
    let publish =
        Method::BasicPublish { exchange: "", routing_key: b"q", mandatory: false, immediate: false };
    let all = [method_frame(1, &publish), content_frames(1, &[0, 0], b"abcdef", 100)].concat();
    simulation.clients[client].say(&all[..all.len() - 4]);
    simulation.run();
    simulation.clients[client].say(&all[all.len() - 4..]);
    simulation.pause_ms(600_000);
    assert_eq!(simulation.clients[client].checker.phase, Phase::Open);
    assert_eq!(simulation.counts(client, 1, "q").0, 1);
    simulation.ask(client, 1, &purge("q"));
    simulation.end(&["q"]);
}

/// A handshake continues after a pause at any step: the broker was late, not the client.
#[test]
fn a_handshake_goes_on_after_a_pause_at_any_step() {
    for rounds in 0..6 {
        let mut simulation = Simulation::new(small_limits());
        let client = simulation.connect(Manners::default(), Shape::WIDE);
        for _ in 0..rounds {
            simulation.round();
        }
        simulation.pause_ms(60_000);
        simulation.pass_ms(2_000);
        assert_eq!(simulation.clients[client].checker.phase, Phase::Open, "paused after {rounds} rounds");
        simulation.end(&[]);
    }
}

#[test]
fn a_peer_without_heartbeats_is_lost_after_two_intervals_and_not_before() {
    for heartbeat_s in [1, 10, 60] {
        let mut simulation = Simulation::new(small_limits());
        let silent = simulation.open_with(with_heartbeat(heartbeat_s, false), Shape::WIDE, &[1]);
        let other = simulation.open_with(with_heartbeat(heartbeat_s, true), Shape::WIDE, &[1]);
        simulation.ask(other, 1, &declare("held"));
        simulation.publish_to(other, 1, "held", b"x");
        simulation.consume(silent, 1, "held", "it", false);
        assert_eq!(simulation.deliveries(silent).len(), 1);
        let two_intervals = u64::from(heartbeat_s) * 2_000;
        simulation.pass_ms(two_intervals - 1);
        assert_eq!(simulation.peers_count(), 2);
        simulation.pass_ms(1);
        assert_eq!((simulation.peers_count(), simulation.line(silent).broker_is_done), (1, true));
        assert_eq!(simulation.counts(other, 1, "held"), (1, 0), "what it held went back");
        simulation.end(&["held"]);
    }
}

#[test]
fn a_peer_that_neither_reads_nor_writes_is_lost_with_its_window_full() {
    let mut simulation = Simulation::new(small_limits());
    let shape = Shape { down_room: 1000, ..Shape::WIDE };
    let stuck = simulation.open_with(with_heartbeat(10, true), shape, &[1]);
    let other = simulation.open(&[1]);
    simulation.declare(other, 1, "q");
    simulation.consume(stuck, 1, "q", "it", false);
    simulation.clients[stuck].die();
    for _ in 0..100 {
        simulation.publish_to(other, 1, "q", &[7; 500]);
    }
    simulation.run();
    assert!(simulation.counts(other, 1, "q").0 < 100, "some are on their way to it");
    simulation.pass_ms(20_000);
    assert_eq!(simulation.peers_count(), 1);
    assert_eq!(simulation.counts(other, 1, "q"), (100, 0));
    simulation.end(&["q"]);
}

#[test]
fn idle_connections_without_heartbeats_cause_no_turn_at_all() {
    let mut simulation = Simulation::new(small_limits());
    for _ in 0..20 {
        let client = simulation.open(&[1, 2]);
        let declare = Method::QueueDeclare {
            queue: "",
            passive: false,
            durable: false,
            exclusive: true,
            auto_delete: true,
            no_wait: false,
            arguments: Table::EMPTY,
        };
        simulation.ask(client, 1, &declare);
        simulation.consume(client, 1, "", "", true);
    }
    // The handshake's deadline is checked once more before it is dropped.
    simulation.pass_ms(60_000);
    let before = simulation.turns;
    simulation.pass_ms(365 * DAY_MS);
    assert_eq!(simulation.turns, before, "there was no event, and nothing was due");
    simulation.end(&[]);
}

#[test]
fn a_client_that_does_not_finish_the_handshake_is_closed_in_time() {
    let timeout = u64::from(Limits::default().handshake_timeout_ms);
    let stages = [Silence::AtOnce, Silence::AfterHeader, Silence::AfterStartOk, Silence::AfterTuneOk];
    for silence in stages {
        let mut simulation = Simulation::new(small_limits());
        let other = simulation.open(&[1]);
        let client = simulation.connect(silent(silence), Shape::WIDE);
        simulation.pass_ms(timeout - 1);
        assert_eq!(simulation.peers_count(), 2, "{silence:?}");
        simulation.pass_ms(1);
        assert!(simulation.line(client).broker_is_done, "{silence:?}");
        simulation.ask(other, 1, &qos(1));
        simulation.end(&[]);
    }
}

#[test]
fn a_handshake_that_comes_one_byte_a_second_is_too_slow() {
    let mut simulation = Simulation::new(small_limits());
    let client = simulation.connect(silent(Silence::AtOnce), Shape::WIDE);
    for byte in b"AMQP\0\0\x09\x01".iter().chain(&[1; 20]) {
        simulation.line(client).write_up(&[*byte]);
        simulation.pass_ms(1_000);
    }
    assert_eq!((simulation.peers_count(), simulation.line(client).broker_is_done), (0, true));
    simulation.end(&[]);
}

/// Returns incomplete data: every part of a frame, and of a content.
fn beginnings() -> Vec<Vec<u8>> {
    let mut declare = method_frame(1, &declare("never"));
    let publish =
        Method::BasicPublish { exchange: "", routing_key: b"q", mandatory: false, immediate: false };
    let mut content = method_frame(1, &publish);
    content.extend(content_frames(1, &[0, 0], &[7; 300], 200));
    declare.pop();
    content.pop();
    let all = |whole: Vec<u8>| (1..=whole.len()).map(move |len| whole[..len].to_vec()).collect::<Vec<_>>();
    [all(declare), all(content)].concat()
}

#[test]
fn a_client_with_an_incomplete_frame_or_content_is_closed_with_an_error() {
    let patience = u64::from(Limits::default().content_timeout_ms);
    let publish_len = method_frame(
        1,
        &Method::BasicPublish { exchange: "", routing_key: b"q", mandatory: false, immediate: false },
    );
    for beginning in beginnings() {
        let mut simulation = Simulation::new(small_limits());
        let other = simulation.open(&[1]);
        simulation.declare(other, 1, "q");
        let client = simulation.open(&[1]);
        simulation.clients[client].say(&beginning);
        simulation.pass_ms(patience - 1);
        assert_eq!(simulation.clients[client].closed_with, None, "{} bytes", beginning.len());
        simulation.pass_ms(1);
        let closed = simulation.clients[client].closed_with.take();
        let is_told =
            closed.as_ref().is_some_and(|(code, text)| *code == 506 && text.contains("did not go on"));
        assert!(is_told, "{} bytes of {}: {closed:?}", beginning.len(), publish_len.len());
        simulation.pass_ms(60_000);
        assert_eq!(simulation.peers_count(), 1);
        assert_eq!(simulation.counts(other, 1, "q"), (0, 0));
        simulation.end(&["q"]);
    }
}

#[test]
fn a_content_with_slow_progress_does_not_time_out() {
    let mut simulation = Simulation::new(small_limits());
    let client = simulation.open(&[1]);
    simulation.declare(client, 1, "q");
    let publish =
        Method::BasicPublish { exchange: "", routing_key: b"q", mandatory: false, immediate: false };
    simulation.clients[client].say(&method_frame(1, &publish));
    let mut header = content_frames(1, &[0, 0], &[7; 100], 100);
    let body = header.split_off(header.len() - 101);
    for piece in core::iter::once(&header[..]).chain(body.chunks(1)) {
        simulation.pass_ms(29_000);
        simulation.clients[client].say(piece);
    }
    assert_eq!(simulation.counts(client, 1, "q"), (1, 0));
    assert!(simulation.now > Now::from_ms(2_900_000));
    simulation.end(&["q"]);
}

#[test]
fn an_unanswered_close_ends_by_timeout() {
    let mut simulation = Simulation::new(small_limits());
    let client = simulation.open(&[1]);
    simulation.clients[client].say(&frame(3, 1, b"a body without a publish"));
    simulation.round();
    simulation.clients[client].die();
    simulation.run();
    assert_eq!(simulation.peers_count(), 1, "it waits for close-ok");
    simulation.pass_ms(30_000);
    simulation.pass_ms(5_000);
    assert_eq!(simulation.peers_count(), 0);
    simulation.end(&[]);
}

/// A message that expires in an hour wakes the event loop then, and is dead-lettered. Nothing is done for it
/// before.
#[test]
fn the_loop_sleeps_until_a_message_expires() {
    let mut simulation = Simulation::new(small_limits());
    let client = simulation.open(&[1]);
    simulation.declare(client, 1, "dead");
    let mut bytes = [0; 256];
    let mut writer = Writer::new(&mut bytes);
    let arguments = writer.table(|t| {
        t.text("x-dead-letter-exchange", "")?;
        t.text("x-dead-letter-routing-key", "dead")?;
        t.int("x-message-ttl", 3_600_000)
    });
    arguments.expect("it fits");
    simulation.ask(client, 1, &declare_with("q", false, Table::trusted(&writer.written()[4..])));
    simulation.consume(client, 1, "dead", "c", true);
    simulation.pass_ms(1);
    simulation.publish_to(client, 1, "q", b"x");
    simulation.run();
    // A deadline left over from the handshake is checked once more.
    simulation.pass_ms(1_800_000);
    let before = simulation.turns;
    simulation.pass_ms(1_799_999);
    assert_eq!(simulation.turns, before);
    assert_eq!(simulation.counts(client, 1, "q"), (1, 0));
    assert_eq!(simulation.deliveries(client).len(), 0);
    simulation.pass_ms(1);
    assert_eq!((simulation.deliveries(client).len(), simulation.counts(client, 1, "q")), (1, (0, 0)));
    simulation.end(&["q", "dead"]);
}
