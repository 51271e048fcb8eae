//! Full memory: which clients are blocked, and which are refused with the key to raise.
//!
//! No client is blocked that could free the missing capacity itself.
//!
//! Without its rule, each test would hang (come to rest without the expected result) or exceed a limit. Time
//! passes only where a test says so, because an event that frees memory must also wake the clients that wait
//! for it.

use leveret_amqp::{Method, Table, Writer};
use leveret_core::limits::{Limits, SHARED_BYTES_MIN};
use leveret_core::mem::{COMMAND_EXTENTS, Memory};
use leveret_storage::Settings;

use leveret_test_support::simulated_server::*;

/// Delay of `connection.unblocked` after a publisher may continue.
const UNBLOCKED_AFTER_MS: u64 = 100;
/// A publisher with unacknowledged deliveries is refused after 60 s in which no message left the queue. The first check
/// takes place after 10 s.
const REFUSED_AFTER_MS: u64 = 80_000;

/// Extents of a memory for messages that a few hundred of them fill.
const FEW: usize = 6;

/// Blocks one publisher per queue, by filling queues without consumers. Each queue takes two thirds of what
/// is left.
fn fill<const N: usize>(simulation: &mut Simulation, queues: [&str; N]) -> [usize; N] {
    queues.map(|queue| {
        let filler = simulation.open(&[1]);
        simulation.declare(filler, 1, queue);
        for _ in 0..simulation.engine.messages().messages_max() + 10 {
            simulation.publish_to(filler, 1, queue, b"filling");
        }
        simulation.run();
        assert!(simulation.clients[filler].checker.is_blocked, "the filler is blocked and notified");
        filler
    })
}

/// Returns how many short messages a queue has when its publisher is blocked, while all other queues are empty: it may have twice
/// what is free, and the last message is within that.
fn share_of_one_queue(simulation: &Simulation) -> u32 {
    simulation.engine.messages().ordinary_max().0 as u32 * 2 / 3 + 1
}

/// Returns code and text of a channel that the broker closed.
fn channel_fault(simulation: &Simulation, client: usize) -> Option<(u16, String)> {
    simulation.clients[client].heard.iter().find_map(|said| match said.method() {
        Method::ChannelClose { reply_code, reply_text, .. } => Some((reply_code, reply_text.to_string())),
        _ => None,
    })
}

/// Lets a worker consume from "in", publish `per_message` messages to "out" for each, and acknowledge it. It
/// uses one socket and does not pause.
fn work(simulation: &mut Simulation, worker: usize, per_message: usize) -> usize {
    let mut done = 0;
    loop {
        let tasks = simulation.deliveries(worker);
        if tasks.is_empty() || !simulation.clients[worker].checker.is_open(1) {
            return done;
        }
        for said in &tasks {
            let Method::BasicDeliver { delivery_tag, .. } = said.method() else { continue };
            for _ in 0..per_message {
                simulation.publish_to(worker, 1, "out", &said.body);
            }
            simulation.ack(worker, 1, delivery_tag, false);
            done += 1;
        }
        simulation.run();
    }
}

/// Returns a worker with prefetch 4 and this many tasks in its queue, in a pool that others have filled.
fn worker_in_a_full_pool(tasks: u32) -> (Simulation, usize) {
    let mut simulation = Simulation::with_message_extents(FEW);
    let worker = simulation.open(&[1]);
    simulation.declare(worker, 1, "in");
    simulation.declare(worker, 1, "out");
    for number in 0..tasks {
        simulation.publish_to(worker, 1, "in", &number.to_be_bytes());
    }
    fill(&mut simulation, ["stuffed", "crammed"]);
    simulation.ask(worker, 1, &qos(4));
    simulation.consume(worker, 1, "in", "worker", false);
    (simulation, worker)
}

#[test]
fn a_worker_that_publishes_and_acknowledges_on_one_socket_continues_with_a_full_pool() {
    let (mut simulation, worker) = worker_in_a_full_pool(60);
    assert_eq!(work(&mut simulation, worker, 1), 60);
    assert_eq!(channel_fault(&simulation, worker), None);
    assert_eq!((simulation.counts(worker, 1, "in"), simulation.counts(worker, 1, "out")), ((0, 1), (60, 0)));
    simulation.end(&["in", "out", "stuffed", "crammed"]);
}

#[test]
fn a_worker_that_needs_more_than_the_reserve_is_refused_with_the_key_to_raise() {
    let (mut simulation, worker) = worker_in_a_full_pool(100);
    let done = work(&mut simulation, worker, 5);
    assert!(done < 100);
    assert!(simulation.clients[worker].checker.is_blocked && channel_fault(&simulation, worker).is_none());
    simulation.pass_ms(REFUSED_AFTER_MS);
    let (code, text) = channel_fault(&simulation, worker).expect("its channel is closed");
    assert!(code == 506 && text.contains("raise memory_limit"), "{code} {text}");
    // Its unacknowledged messages were requeued, and its connection can continue.
    simulation.ask(worker, 1, &Method::ChannelOpen {});
    let (left, _) = simulation.counts(worker, 1, "in");
    assert!(left >= 1 && left as usize + done >= 100, "{left} left, {done} done");
    simulation.ask(worker, 1, &purge("stuffed"));
    simulation.consume(worker, 1, "in", "worker", false);
    assert!(work(&mut simulation, worker, 1) >= left as usize);
    simulation.end(&["in", "out", "stuffed", "crammed"]);
}

#[test]
fn a_worker_whose_bodies_fill_the_pool_is_refused_with_the_key_to_raise() {
    let mut simulation = Simulation::with_message_extents(64);
    let worker = simulation.open(&[1]);
    simulation.declare(worker, 1, "in");
    simulation.declare(worker, 1, "out");
    simulation.publish_to(worker, 1, "in", b"task");
    simulation.consume(worker, 1, "in", "worker", false);
    for _ in 0..12 {
        simulation.publish_to(worker, 1, "out", &[1; 100_000]);
    }
    simulation.pass_ms(REFUSED_AFTER_MS);
    let (code, text) = channel_fault(&simulation, worker).expect("its channel is closed");
    assert!(code == 506 && text.contains("raise memory_limit"), "{code} {text}");
    simulation.end(&["in", "out"]);
}

/// A connection begins messages on twenty channels. The first one waits, and all together need more than becomes free.
#[test]
fn a_publisher_that_waited_and_then_needs_too_much_is_refused() {
    let mut simulation = Simulation::new(Limits { messages_max: 64, ..small_limits() });
    let reader = simulation.open(&[1]);
    // A queue may have twice what is free: these take all 60 that ordinary publishers can have.
    for (queue, count) in [("q", 30), ("r", 21), ("s", 7), ("t", 2)] {
        simulation.declare(reader, 1, queue);
        (0..count).for_each(|_| simulation.publish_to(reader, 1, queue, b"x"));
    }
    simulation.run();
    assert_eq!(simulation.counts(reader, 1, "t"), (2, 0));
    let greedy = simulation.open(&(1..=20).collect::<Vec<u16>>());
    let publish =
        Method::BasicPublish { exchange: "", routing_key: b"q", mandatory: false, immediate: false };
    for channel in 1..=20 {
        let mut head = method_frame(channel, &publish);
        let method_bytes = head.len();
        head.extend(content_frames(channel, &[0, 0], &[7; 10], 4088));
        // The method and the header.
        head.truncate(method_bytes + 22);
        simulation.clients[greedy].say(&head);
    }
    simulation.run();
    assert_eq!(channel_fault(&simulation, greedy), None);
    for _ in 0..12 {
        simulation.ask(reader, 1, &Method::BasicGet { queue: "q", no_ack: true });
        simulation.run();
    }
    let (code, text) = channel_fault(&simulation, greedy).expect("it needs more than is free");
    assert!(code == 506 && text.contains("raise memory_limit"), "{code} {text}");
    assert_eq!(simulation.counts(reader, 1, "q"), (18, 0));
}

#[test]
fn five_hundred_half_sent_bodies_end_by_timeout_and_others_go_on() {
    let mut simulation = Simulation::new(small_limits());
    let healthy = simulation.open(&[1]);
    simulation.declare(healthy, 1, "q");
    simulation.consume(healthy, 1, "q", "it", true);
    let publish =
        Method::BasicPublish { exchange: "", routing_key: b"q", mandatory: false, immediate: false };
    let mut half = method_frame(1, &publish);
    half.extend(content_frames(1, &[0, 0], &[7; 64 << 10], 4088));
    half.truncate(1_000);
    let halves: Vec<usize> = (0..500).map(|_| simulation.open(&[1])).collect();
    for client in &halves {
        simulation.clients[*client].say(&half);
    }
    simulation.run();
    let mut rounds = 0;
    while halves.iter().any(|client| simulation.clients[*client].closed_with.is_none()) {
        simulation.publish_to(healthy, 1, "q", b"small");
        simulation.run();
        assert_eq!(simulation.deliveries(healthy).len(), 1, "a small message passes in round {rounds}");
        simulation.pass_ms(30_000);
        rounds += 1;
        assert!(rounds < 20, "half-sent bodies stay for ever");
    }
    for client in halves {
        let (code, text) = simulation.clients[client].closed_with.clone().expect("all are closed");
        assert!(code == 506 && text.contains("did not go on"), "{code} {text}");
    }
    simulation.publish_to(healthy, 1, "q", &[1; 1 << 20]);
    simulation.run();
    assert_eq!(simulation.deliveries(healthy)[0].body.len(), 1 << 20);
    simulation.end(&["q"]);
}

#[test]
fn a_large_message_waits_for_half_sent_bodies_to_end() {
    let mut simulation = Simulation::new(small_limits());
    let publish =
        Method::BasicPublish { exchange: "", routing_key: b"q", mandatory: false, immediate: false };
    let mut half = method_frame(1, &publish);
    half.extend(content_frames(1, &[0, 0], &[7; 1 << 20], 4088));
    half.truncate(1_000);
    for _ in 0..3 {
        let client = simulation.open(&[1]);
        simulation.clients[client].say(&half);
    }
    let patient = simulation.open(&[1]);
    simulation.declare(patient, 1, "q");
    simulation.publish_to(patient, 1, "q", &[1; 1 << 20]);
    simulation.run();
    assert!(simulation.clients[patient].checker.is_blocked);
    simulation.pass_ms(30_000);
    simulation.pass_ms(UNBLOCKED_AFTER_MS);
    assert!(!simulation.clients[patient].checker.is_blocked);
    assert_eq!(simulation.counts(patient, 1, "q"), (1, 0));
    simulation.end(&["q"]);
}

#[test]
fn a_second_content_of_a_connection_is_taken_or_refused_but_never_waits() {
    let mut simulation = Simulation::new(Limits { body_bytes_max: 8 << 20, ..small_limits() });
    let client = simulation.open(&[1, 2]);
    simulation.declare(client, 2, "q");
    let publish =
        Method::BasicPublish { exchange: "", routing_key: b"q", mandatory: false, immediate: false };
    let content = |channel: u16| {
        let mut content = method_frame(channel, &publish);
        content.extend(content_frames(channel, &[0, 0], &[7; 1 << 20], 100_000));
        content
    };
    // The method, the header and the first body frame.
    let beginning = method_frame(1, &publish).len() + 22 + 100_008;
    for _ in 0..2 {
        let other = simulation.open(&[1]);
        simulation.clients[other].say(&content(1)[..beginning]);
    }
    simulation.run();
    simulation.clients[client].say(&content(1)[..beginning]);
    simulation.clients[client].say(&content(2));
    simulation.clients[client].say(&content(1)[beginning..]);
    simulation.run();
    let (code, text) = channel_fault(&simulation, client).expect("the second is refused");
    assert!(code == 506 && text.contains("raise memory_limit"), "{code} {text}");
    assert_eq!(simulation.counts(client, 1, "q"), (1, 0), "the first came in");
    simulation.end(&["q"]);
}

/// Lets a client send `count` messages of 1 KiB to itself, and read only when all are sent.
fn echo(extents: usize, no_ack: bool, count: usize) -> (Simulation, usize) {
    let mut simulation = Simulation::with_message_extents(extents);
    let shape = Shape { up_room: 64 << 10, down_room: 64 << 10, ..Shape::WIDE };
    let manners = Manners { sends_first: true, ..Manners::default() };
    let client = simulation.open_with(manners, shape, &[1, 2]);
    simulation.declare(client, 1, "echo");
    simulation.consume(client, 2, "echo", "it", no_ack);
    for _ in 0..count {
        simulation.publish_to(client, 1, "echo", &[9; 1024]);
    }
    simulation.run();
    (simulation, client)
}

#[test]
fn a_client_blocked_in_send_while_its_window_is_full_gets_through() {
    for (no_ack, count) in [(true, 1_500), (false, 1_000)] {
        let (mut simulation, client) = echo(400, no_ack, count);
        assert!(simulation.clients[client].is_done_sending(), "it is stuck in send");
        assert_eq!(simulation.deliveries(client).len(), count);
        simulation.ack(client, 2, 0, true);
        simulation.run();
        simulation.end(&["echo"]);
    }
}

#[test]
fn a_client_blocked_in_send_that_fills_the_pool_itself_is_notified() {
    for no_ack in [true, false] {
        let (mut simulation, client) = echo(40, no_ack, 3_000);
        simulation.pass_ms(REFUSED_AFTER_MS);
        assert!(simulation.clients[client].is_done_sending(), "it is stuck in send");
        let (code, text) = channel_fault(&simulation, client).expect("its channel is closed");
        assert!(code == 506 && text.contains("raise memory_limit"), "{code} {text}");
        simulation.end(&["echo"]);
    }
}

/// Two publishers wait for the same few message slots, or chunks of queue entries, which are freed again and again: neither of
/// them gets all.
#[test]
fn publishers_that_wait_for_a_full_pool_take_turns() {
    let brokers = [
        Simulation::new(Limits { messages_max: 320, ..small_limits() }),
        Simulation::with_message_extents(FEW),
        Simulation::with_message_extents(FEW + 1),
        Simulation::with_message_extents(FEW + 2),
        Simulation::with_message_extents(FEW + 3),
    ];
    for mut simulation in brokers {
        let consumer = simulation.open(&[1]);
        let mut queues = vec!["a".to_owned(), "b".to_owned()];
        for queue in &queues {
            simulation.declare(consumer, 1, queue);
            simulation.consume(consumer, 1, queue, queue, true);
        }
        let filler = simulation.open(&[1]);
        while !simulation.clients[filler].checker.is_blocked {
            let name = format!("unread{}", queues.len());
            simulation.declare(filler, 1, &name);
            simulation.publish_to(filler, 1, &name, b"unread");
            simulation.run();
            queues.push(name);
        }
        let publishers = ["a", "b"].map(|queue| {
            let publisher = simulation.open(&[1]);
            for _ in 0..1_500 {
                simulation.publish_to(publisher, 1, queue, queue.as_bytes());
            }
            publisher
        });
        simulation.run();
        for publisher in publishers {
            assert!(simulation.clients[publisher].checker.is_blocked);
        }
        for unread in &queues[2..queues.len() / 2] {
            simulation.ask(consumer, 1, &purge(unread));
        }
        let order: Vec<u8> = simulation.deliveries(consumer).iter().map(|said| said.body[0]).collect();
        assert_eq!(order.len(), 3_000);
        let longest_run = order.chunk_by(|one, other| one == other).map(<[u8]>::len).max();
        assert!(longest_run < Some(50), "{longest_run:?} messages of one publisher come together");
        simulation.end(&queues.iter().map(String::as_str).collect::<Vec<_>>());
    }
}

#[test]
fn ten_thousand_pipelined_declares_are_answered_in_order_when_they_are_read() {
    let mut simulation = Simulation::new(small_limits());
    let other = simulation.open(&[1]);
    let shape = Shape { down_room: 4096, ..Shape::WIDE };
    let eager = simulation.open_with(Manners::default(), shape, &[1]);
    simulation.clients[eager].manners.greed = 0;
    let name = |number: usize| format!("queue{}", number % 400);
    for number in 0..10_000 {
        simulation.send(eager, 1, &declare(&name(number)));
    }
    simulation.run();
    assert!(simulation.clients[eager].checker.replies_missing() > 9_000);
    simulation.ask(other, 1, &qos(1));
    simulation.clients[eager].manners.greed = 777;
    simulation.run();
    assert_eq!(simulation.clients[eager].checker.replies_missing(), 0);
    for (number, said) in simulation.clients[eager].heard.iter().enumerate() {
        let Method::QueueDeclareOk { queue, .. } = said.method() else { panic!("{}", said.shown()) };
        assert_eq!(queue, name(number));
    }
    let names: Vec<String> = (0..400).map(name).collect();
    simulation.end(&names.iter().map(String::as_str).collect::<Vec<_>>());
}

/// Returns a broker with memory for less than 256 chunks of queue entries, and with this many queues bound to amq.fanout.
fn with_fanout(queues: usize) -> (Simulation, usize, Vec<String>) {
    let mut simulation = Simulation::with_message_extents(4);
    let client = simulation.open(&[1]);
    let names: Vec<String> = (0..queues).map(|number| format!("target{number}")).collect();
    for name in &names {
        simulation.declare(client, 1, name);
        simulation.ask(client, 1, &bind(name, "amq.fanout", ""));
    }
    (simulation, client, names)
}

fn publish_to_all(simulation: &mut Simulation, client: usize) {
    let publish = Publish { exchange: "amq.fanout", ..Publish::default() };
    simulation.publish(client, 1, publish, b"to all");
    simulation.run();
}

#[test]
fn a_fanout_that_can_never_fit_is_refused_and_reaches_no_queue() {
    let (mut simulation, client, names) = with_fanout(300);
    publish_to_all(&mut simulation, client);
    let (code, text) = channel_fault(&simulation, client).expect("its channel is closed");
    assert!(code == 506 && text.contains("raise memory_limit"), "{code} {text}");
    simulation.ask(client, 1, &Method::ChannelOpen {});
    for name in &names {
        assert_eq!(simulation.counts(client, 1, name), (0, 0));
    }
    assert_eq!(simulation.engine.messages().messages_used(), 0);
    simulation.end(&names.iter().map(String::as_str).collect::<Vec<_>>());
}

#[test]
fn a_fanout_that_fits_later_waits_and_then_reaches_all_queues() {
    let (mut simulation, client, mut names) = with_fanout(50);
    let other = simulation.open(&[1]);
    for number in 0..80 {
        let name = format!("taken{number}");
        simulation.declare(other, 1, &name);
        simulation.publish_to(other, 1, &name, b"takes a chunk");
        names.push(name);
    }
    simulation.run();
    publish_to_all(&mut simulation, client);
    assert!(simulation.clients[client].checker.is_blocked, "it waits");
    for name in &names[..50] {
        assert_eq!(simulation.counts(other, 1, name), (0, 0), "all or nothing");
    }
    for name in &names[50..80] {
        simulation.ask(other, 1, &purge(name));
    }
    simulation.pass_ms(UNBLOCKED_AFTER_MS);
    assert!(!simulation.clients[client].checker.is_blocked, "it went through");
    for name in &names[..50] {
        assert_eq!(simulation.counts(other, 1, name), (1, 0));
    }
    simulation.end(&names.iter().map(String::as_str).collect::<Vec<_>>());
}

#[test]
fn a_hundred_slow_consumers_of_a_large_message_share_one_copy() {
    const SIZE: usize = 1 << 20;
    let mut simulation = Simulation::new(small_limits());
    let publisher = simulation.open(&[1]);
    let shape = Shape { down_room: 16 << 10, ..Shape::WIDE };
    let mut consumers = Vec::new();
    let mut names = Vec::new();
    for number in 0..100 {
        let name = format!("slow{number}");
        let client = simulation.open_with(Manners::default(), shape, &[1]);
        simulation.declare(client, 1, &name);
        simulation.ask(client, 1, &bind(&name, "amq.fanout", ""));
        simulation.consume(client, 1, &name, "it", number % 2 == 0);
        simulation.clients[client].manners.greed = 0;
        consumers.push(client);
        names.push(name);
    }
    let body: Vec<u8> = (0..SIZE).map(|at| ((at * 31) >> 3) as u8).collect();
    let publish = Publish { exchange: "amq.fanout", piece: 131_064, ..Publish::default() };
    simulation.publish(publisher, 1, publish, &body);
    simulation.run();
    let mut most = 0;
    for (turn, client) in consumers.iter().enumerate() {
        simulation.clients[*client].manners.greed = 1_000 + turn;
    }
    while simulation.round() {
        most = most.max(simulation.engine.messages().body_bytes_used());
        assert!(simulation.engine.messages().messages_used() <= 1);
    }
    assert!((SIZE..SIZE + 8192).contains(&most), "{most} bytes for one body");
    for client in consumers {
        let deliveries = simulation.deliveries(client);
        assert!(deliveries.len() == 1 && deliveries[0].body == body);
    }
    simulation.end(&names.iter().map(String::as_str).collect::<Vec<_>>());
}

#[test]
fn a_publisher_at_its_limit_is_blocked_and_notified_and_resumes_without_a_timer() {
    let mut simulation = Simulation::with_message_extents(FEW);
    let consumer = simulation.open(&[1]);
    simulation.declare(consumer, 1, "q");
    let publisher = simulation.open(&[1]);
    for number in 0..1_000_u32 {
        simulation.publish_to(publisher, 1, "q", &number.to_be_bytes());
    }
    simulation.run();
    assert!(simulation.clients[publisher].checker.is_blocked);
    let (ready, _) = simulation.counts(consumer, 1, "q");
    assert_eq!(ready, share_of_one_queue(&simulation), "two thirds of what ordinary publishers may have");
    simulation.consume(consumer, 1, "q", "it", true);
    let numbers: Vec<u32> = simulation
        .deliveries(consumer)
        .iter()
        .map(|said| u32::from_be_bytes(said.body[..].try_into().expect("four octets")))
        .collect();
    assert_eq!(numbers, (0..1_000).collect::<Vec<_>>());
    assert_eq!(simulation.now.as_ms(), 0);
    simulation.pass_ms(UNBLOCKED_AFTER_MS);
    assert!(!simulation.clients[publisher].checker.is_blocked, "it was told that it is over");
    simulation.end(&["q"]);
}

#[test]
fn every_blocked_publisher_resumes_after_a_purge() {
    let mut simulation = Simulation::with_message_extents(12);
    let fillers = fill(&mut simulation, ["full", "b", "c", "d", "e", "f", "g", "h"]);
    let waiting: Vec<usize> = (0..300).map(|_| simulation.open(&[1])).collect();
    let operator = simulation.open(&[1]);
    simulation.declare(operator, 1, "other");
    for client in &waiting {
        simulation.publish_to(*client, 1, "other", b"x");
    }
    simulation.run();
    for filler in fillers {
        simulation.lose(filler);
    }
    simulation.pass_ms(LOST_MS);
    let blocked = waiting.iter().filter(|client| simulation.clients[**client].checker.is_blocked).count();
    assert!(blocked > 200, "only {blocked} are blocked");
    simulation.ask(operator, 1, &purge("full"));
    simulation.pass_ms(UNBLOCKED_AFTER_MS);
    for client in &waiting {
        assert!(!simulation.clients[*client].checker.is_blocked, "{client} of {} still waits", waiting.len());
    }
    assert_eq!(simulation.counts(operator, 1, "other"), (300, 0));
    simulation.end(&["full", "b", "c", "d", "e", "f", "g", "h", "other"]);
}

#[test]
fn a_publisher_resumes_when_the_full_queue_is_unbound() {
    let mut simulation = Simulation::with_message_extents(FEW);
    let (operator, publisher) = (simulation.open(&[1]), simulation.open(&[1]));
    simulation.declare(operator, 1, "full");
    let (queue, exchange, routing_key, arguments) = ("full", "amq.direct", "key", Table::EMPTY);
    simulation.ask(
        operator,
        1,
        &Method::QueueBind { queue, exchange, routing_key, no_wait: false, arguments },
    );
    for _ in 0..400 {
        simulation.publish(
            publisher,
            1,
            Publish { exchange, key: routing_key, ..Publish::default() },
            b"filling",
        );
    }
    simulation.pass_ms(UNBLOCKED_AFTER_MS);
    assert!(simulation.clients[publisher].checker.is_blocked, "the queue has its share");
    simulation.ask(operator, 1, &Method::QueueUnbind { queue, exchange, routing_key, arguments });
    simulation.pass_ms(UNBLOCKED_AFTER_MS);
    assert!(!simulation.clients[publisher].checker.is_blocked, "nothing goes to the full queue any more");
    simulation.end(&["full"]);
}

#[test]
fn when_a_blocked_publisher_disconnects_the_next_one_resumes() {
    let mut simulation = Simulation::with_message_extents(FEW);
    let fillers = fill(&mut simulation, ["full", "brimful"]);
    let second = simulation.open(&[1]);
    simulation.publish_to(second, 1, "full", b"second");
    simulation.run();
    assert!(simulation.clients[second].checker.is_blocked);
    let operator = simulation.open(&[1]);
    for filler in fillers {
        simulation.lose(filler);
    }
    simulation.pass_ms(LOST_MS);
    assert_eq!(simulation.peers_count(), 2, "that they are gone is noticed although they wait");
    simulation.ask(operator, 1, &purge("full"));
    simulation.pass_ms(UNBLOCKED_AFTER_MS);
    assert!(!simulation.clients[second].checker.is_blocked);
    assert_eq!(simulation.counts(operator, 1, "full"), (1, 0));
    simulation.end(&["full", "brimful"]);
}

/// The first publisher waits for more memory than the second one needs, and keeps its place before it. When its client
/// is lost, the second one continues at once, and a later one does not wait.
#[test]
fn a_lost_publisher_that_waits_for_memory_does_not_delay_those_behind_it() {
    let mut simulation = Simulation::new(Limits { body_bytes_max: 64 << 10, ..small_limits() });
    let operator = simulation.open(&[1]);
    let mut queues = vec!["first".to_owned(), "second".to_owned()];
    queues.iter().for_each(|queue| simulation.declare(operator, 1, queue));
    while simulation.engine.messages().ordinary_free().1 > 8 << 10 {
        let name = format!("unread{}", queues.len());
        simulation.declare(operator, 1, &name);
        simulation.publish_to(operator, 1, &name, &[7; 3_000]);
        simulation.run();
        queues.push(name);
    }
    let [first, second] = [("first", 9_000), ("second", 3_000)].map(|(queue, bytes)| {
        let publisher = simulation.open(&[1]);
        simulation.publish_to(publisher, 1, queue, &vec![7; bytes]);
        simulation.run();
        publisher
    });
    assert!(simulation.engine.messages().is_held());
    assert_eq!(simulation.counts(operator, 1, "second"), (0, 0), "it waits behind the first one");
    simulation.lose(first);
    simulation.run();
    assert_eq!(simulation.counts(operator, 1, "second"), (1, 0));
    assert!(simulation.clients[second].checker.is_open(1));
    let third = simulation.open(&[1]);
    simulation.publish_to(third, 1, "second", b"short");
    simulation.run();
    assert_eq!(
        simulation.counts(operator, 1, "second"),
        (2, 0),
        "nobody waits for the lost one later either"
    );
    simulation.pass_ms(LOST_MS);
    simulation.end(&queues.iter().map(String::as_str).collect::<Vec<_>>());
}

#[test]
fn a_lost_client_keeps_no_deliveries_while_its_input_waits() {
    for is_mandatory in [false, true] {
        let mut simulation = Simulation::new(Limits { output_buffer_bytes: 16 << 10, ..small_limits() });
        let publisher = simulation.open(&[1]);
        simulation.declare(publisher, 1, "q");
        let narrow = Shape { down_room: 1 << 10, ..Shape::WIDE };
        let consumer = simulation.open_with(Manners::default(), narrow, &[1]);
        simulation.consume(consumer, 1, "q", "it", false);
        simulation.clients[consumer].manners = Manners { greed: 0, ..Manners::default() };
        for _ in 0..6 {
            simulation.publish_to(publisher, 1, "q", &[7; 9_000]);
        }
        simulation.run();
        if is_mandatory {
            for _ in 0..10 {
                let publish = Publish { key: "nowhere", mandatory: true, ..Publish::default() };
                simulation.publish(consumer, 1, publish, &[7; 9_000]);
            }
        } else {
            for _ in 0..3 {
                simulation.send(consumer, 1, &Method::BasicGet { queue: "q", no_ack: true });
            }
        }
        simulation.run();
        assert!(simulation.counts(publisher, 1, "q").0 < 6, "the consumer has some");
        simulation.lose(consumer);
        simulation.pass_ms(6_000);
        assert_eq!(
            (simulation.counts(publisher, 1, "q"), simulation.peers_count()),
            ((6, 0), 1),
            "mandatory: {is_mandatory}"
        );
    }
}

#[test]
fn a_request_that_was_blocked_is_delivered_with_its_reply_queue() {
    let mut simulation = Simulation::with_message_extents(4);
    let server = simulation.open(&[1]);
    simulation.declare(server, 1, "requests");
    let requester = simulation.open(&[1]);
    simulation.consume(requester, 1, "amq.rabbitmq.reply-to", "replies", true);
    // A request is rewritten before it is queued: its reply-to becomes the queue that waits for the answer.
    let properties = [&[0x02, 0x00, 21][..], b"amq.rabbitmq.reply-to"].concat();
    let publish = Publish { key: "requests", properties: &properties, ..Publish::default() };
    for number in 0..300_u32 {
        simulation.publish(requester, 1, publish, &number.to_be_bytes());
    }
    simulation.run();
    assert!(simulation.clients[requester].checker.is_blocked, "the queue has its share");
    simulation.consume(server, 1, "requests", "server", true);
    let requests = simulation.deliveries(server);
    assert_eq!(requests.len(), 300);
    for (number, said) in requests.iter().enumerate() {
        assert_eq!(said.body, (number as u32).to_be_bytes());
        let token = std::str::from_utf8(&said.properties[3..]).expect("a name");
        assert!(token.starts_with("amq.rabbitmq.reply-to."), "{token}");
        simulation.publish_to(server, 1, token, &said.body);
    }
    simulation.run();
    assert_eq!(simulation.deliveries(requester).len(), 300);
    simulation.end(&["requests"]);
}

#[test]
fn a_publisher_that_does_not_read_its_returns_blocks_only_itself() {
    let mut simulation = Simulation::new(Limits { output_buffer_bytes: 8_192, ..small_limits() });
    let shape = Shape { down_room: 1_000, ..Shape::WIDE };
    let careless = simulation.open_with(Manners::default(), shape, &[1]);
    let other = simulation.open(&[1]);
    simulation.declare(other, 1, "q");
    simulation.clients[careless].manners.greed = 0;
    let publish = Publish { key: "nowhere", mandatory: true, ..Publish::default() };
    for _ in 0..1_000 {
        simulation.publish(careless, 1, publish, &[3; 500]);
    }
    simulation.run();
    assert!(simulation.engine.messages().messages_used() < 100, "its returns are not heaped up");
    simulation.publish_to(other, 1, "q", b"nobody else waits");
    assert_eq!(simulation.counts(other, 1, "q"), (1, 0));
    simulation.clients[careless].manners.greed = 300;
    simulation.run();
    let is_return = |said: &&Said| matches!(said.method(), Method::BasicReturn { .. });
    assert_eq!(simulation.clients[careless].heard.iter().filter(is_return).count(), 1_000);
    simulation.end(&["q"]);
}

#[test]
fn no_queue_takes_the_whole_pool() {
    let mut simulation = Simulation::with_message_extents(12);
    let greedy = simulation.open(&[1]);
    simulation.declare(greedy, 1, "greedy");
    for _ in 0..2_000 {
        simulation.publish_to(greedy, 1, "greedy", b"x");
    }
    simulation.run();
    assert_eq!(simulation.counts_from_outside("greedy"), share_of_one_queue(&simulation));
    let modest = simulation.open(&[1]);
    simulation.declare(modest, 1, "modest");
    simulation.publish_to(modest, 1, "modest", b"x");
    assert_eq!(simulation.counts(modest, 1, "modest"), (1, 0));
    simulation.end(&["greedy", "modest"]);
}

#[test]
fn deliveries_never_take_all_records_and_a_new_consumer_gets_some() {
    let mut simulation = Simulation::in_memory(wide_limits(), &memory_of(14, OTHER_EXTENTS));
    let publisher = simulation.open(&[1]);
    simulation.declare(publisher, 1, "q");
    for _ in 0..4_000 {
        simulation.publish_to(publisher, 1, "q", b"x");
    }
    simulation.run();
    let hoarders: Vec<usize> = (0..3).map(|_| simulation.open(&[1])).collect();
    for hoarder in &hoarders {
        simulation.consume(*hoarder, 1, "q", "it", false);
        assert!(!simulation.deliveries(*hoarder).is_empty(), "a new consumer gets some");
    }
    // Each consumer acknowledges all it has, repeatedly, until nothing is left.
    let mut taken = simulation.counts(publisher, 1, "q").0;
    while taken > 0 {
        for hoarder in &hoarders {
            simulation.ack(*hoarder, 1, 0, true);
            simulation.run();
        }
        let left = simulation.counts(publisher, 1, "q").0;
        assert!(left < taken, "no progress at {left}");
        taken = left;
    }
    simulation.end(&["q"]);
}

/// Channels take all memory of clients before the first message comes: deliveries have an own part of it.
#[test]
fn consumers_get_messages_although_channels_have_used_the_memory_of_clients() {
    for clients in [15, 20, 60, 200] {
        let limits = Limits { channels_max: 20_000, channel_max: 2047, ..wide_limits() };
        let mut simulation = Simulation::in_memory(limits, &memory_of(clients, OTHER_EXTENTS));
        let publisher = simulation.open(&[1]);
        simulation.declare(publisher, 1, "q");
        let consumers = [0; 3].map(|_| simulation.open(&[1]));
        consumers.iter().for_each(|consumer| simulation.consume(*consumer, 1, "q", "it", false));
        // A connection may have as many channels as it leaves, so only several of them take all.
        let openers: Vec<usize> = (0..(clients / 8).clamp(2, 20)).map(|_| simulation.open(&[])).collect();
        for opener in openers {
            for number in 1..=simulation.clients[opener].channel_max {
                simulation.send(opener, number, &Method::ChannelOpen {});
                simulation.run();
                if simulation.clients[opener].closed_with.is_some() {
                    break;
                }
            }
        }
        for _ in 0..500 {
            simulation.publish_to(publisher, 1, "q", b"x");
        }
        simulation.run();
        let mut left = 500;
        while left > 0 {
            let before = left;
            for consumer in consumers {
                left -= simulation.deliveries(consumer).len();
                simulation.ack(consumer, 1, 0, true);
                simulation.run();
            }
            assert!(left < before, "with {clients} extents, {left} messages are ready and none is delivered");
        }
        simulation.end(&["q"]);
    }
}

/// Messages have filled the smallest memory that pools can share: a client can still log in, consume and acknowledge.
#[test]
fn messages_leave_enough_of_the_smallest_memory_to_a_consumer() {
    let mut simulation = Simulation::in_memory(wide_limits(), &Memory::with_bytes(SHARED_BYTES_MIN));
    let fillers = fill(&mut simulation, ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"]);
    fillers.into_iter().for_each(|filler| simulation.lose(filler));
    simulation.pass_ms(LOST_MS);
    let consumer = simulation.open(&[1]);
    simulation.declare(consumer, 1, "empty");
    for queue in ["a", "j"] {
        simulation.consume(consumer, 1, queue, queue, false);
        while simulation.counts(consumer, 1, queue).0 > 0 {
            assert!(!simulation.deliveries(consumer).is_empty());
            simulation.ack(consumer, 1, 0, true);
            simulation.run();
        }
    }
}

#[test]
fn a_blocked_publisher_is_not_closed_for_missing_progress() {
    let mut simulation = Simulation::with_message_extents(FEW);
    let manners = Manners { heartbeat_s: 60, sends_heartbeats: true, ..Manners::default() };
    let filler = simulation.open_with(manners, Shape::WIDE, &[1]);
    simulation.declare(filler, 1, "q");
    let publish =
        Method::BasicPublish { exchange: "", routing_key: b"q", mandatory: false, immediate: false };
    let mut one = method_frame(1, &publish);
    one.extend(content_frames(1, &[0, 0], b"filling", 4088));
    let mut all: Vec<u8> = Vec::new();
    for _ in 0..400 {
        all.extend_from_slice(&one);
    }
    // Reads that end within a frame, as with a fast publisher.
    for piece in all.chunks(100) {
        simulation.clients[filler].say(piece);
        simulation.run();
    }
    assert!(simulation.clients[filler].checker.is_blocked, "it is blocked and notified");
    for _ in 0..4 {
        simulation.pass_ms(30_000);
        assert_eq!(simulation.clients[filler].closed_with, None);
    }
}

/// `connection.tune` tells how many channels a connection can have.
///
/// When other connections use some of them, only the `channel.open` is refused. The connection and its other
/// channels continue, and a later `channel.open` succeeds.
#[test]
fn a_channel_beyond_the_limit_is_refused_and_the_connection_continues() {
    let mut simulation =
        Simulation::new(Limits { channels_max: 8, channel_max: 2047, bridges_max: 0, ..small_limits() });
    let first = simulation.open(&[1, 2, 3, 4]);
    assert_eq!(simulation.clients[first].channel_max, 4, "half of all while no other connection has any");
    let second = simulation.open(&[1, 2]);
    let refused = |simulation: &mut Simulation, client: usize, number: u16| {
        let said = simulation.ask(client, number, &Method::ChannelOpen {});
        let Method::ChannelClose { reply_code: 506, reply_text, .. } = said.method() else {
            panic!("{}", said.shown())
        };
        assert!(reply_text.contains("channel") && reply_text.contains("memory_limit"), "{reply_text}");
    };
    for _ in 0..40 {
        refused(&mut simulation, second, 3);
    }
    let third = simulation.open(&[1]);
    // Seven of eight channels are used, and none is left for the last connection.
    let fourth = simulation.open(&[1]);
    let fifth = simulation.open(&[]);
    refused(&mut simulation, fifth, 1);
    for client in [first, second, third, fourth, fifth] {
        assert_eq!(simulation.clients[client].checker.phase, Phase::Open);
    }
    simulation.ask(second, 2, &qos(1));
    simulation.ask(first, 4, &close_channel());
    simulation.ask(fifth, 1, &Method::ChannelOpen {});
    simulation.ask(fifth, 1, &qos(1));
    simulation.end(&[]);
}

/// Queues without consumers, bound to one fanout exchange, leave memory to others.
///
/// A publisher to another queue is not even blocked. A single such queue may hold two thirds of the messages.
#[test]
fn queues_without_consumers_leave_memory_to_other_queues() {
    for hogs in [1, 3, 10] {
        for is_short_of_entries in [false, true] {
            let (messages_max, queue_entries_max) = match is_short_of_entries {
                false => (1_000, 32_000),
                true => (4_000, 2_100),
            };
            let mut simulation =
                Simulation::new(Limits { messages_max, queue_entries_max, ..small_limits() });
            let publisher = simulation.open(&[1]);
            let names: Vec<String> = (0..hogs).map(|number| format!("hog-{number}")).collect();
            for name in &names {
                simulation.declare(publisher, 1, name);
                simulation.ask(publisher, 1, &bind(name, "amq.fanout", ""));
            }
            for _ in 0..4_000 {
                simulation.publish(
                    publisher,
                    1,
                    Publish { exchange: "amq.fanout", ..Publish::default() },
                    b"x",
                );
            }
            simulation.pass_ms(1_000);
            assert!(simulation.clients[publisher].checker.is_blocked, "{hogs} hogs");
            let other = simulation.open(&[1]);
            simulation.declare(other, 1, "other");
            let held = simulation.counts(other, 1, &names[0]).0;
            let (most, holders) = match is_short_of_entries {
                // All queues contain the same messages.
                false => (1_000 * 15 / 16, 1),
                true => (2_100 * 15 / 16, hogs),
            };
            let share = 2 * most / (2 * holders + 1);
            assert!((share - 2 * 21..=share + 21).contains(&held), "{hogs} hogs: {held} of {share} each");
            simulation.consume(other, 1, "other", "c", true);
            for round in 0..50 {
                for _ in 0..10 {
                    simulation.publish_to(other, 1, "other", b"y");
                }
                // No time passes: nothing may be blocked.
                simulation.run();
                assert_eq!(simulation.deliveries(other).len(), 10, "{hogs} hogs, round {round}");
            }
            assert!(!simulation.clients[other].checker.is_blocked);
            // Messages taken out of the queues unblock their publisher.
            for _ in 0..20 {
                names.iter().for_each(|name| drop(simulation.ask(other, 1, &purge(name))));
                simulation.pass_ms(1_000);
            }
            assert!(!simulation.clients[publisher].checker.is_blocked, "{hogs} hogs");
            names.iter().for_each(|name| drop(simulation.ask(other, 1, &delete(name))));
            simulation.end(&["other"]);
        }
    }
}

fn small_disk() -> Settings {
    Settings { segment_bytes: 64 << 10, commit_bytes: 12 << 10, segments_max: 12, ..Settings::default() }
}

fn persistent(key: &str) -> Publish<'_> {
    Publish { key, properties: &[0x10, 0, 2], ..Publish::default() }
}

/// Publishes persistent messages to this queue until the disk is full and the publisher blocked.
fn fill_disk(simulation: &mut Simulation, queue: &str) {
    let filler = simulation.open(&[1]);
    simulation.ask(filler, 1, &declare_with(queue, true, Table::EMPTY));
    while !simulation.clients[filler].checker.is_blocked {
        simulation.publish(filler, 1, persistent(queue), &[7; 3_000]);
        simulation.pass_ms(1_000);
    }
}

/// A publisher waits for the disk, for a queue that takes its message only because a consumer can take it. When the
/// consumer's socket is full, the queue refuses the message, which needs no disk.
#[test]
fn a_publisher_that_waits_for_the_disk_is_refused_when_no_consumer_can_take_its_message() {
    let mut simulation = Simulation::new(small_limits());
    simulation.keep_on_disk(small_disk());
    let [waiting, other] = [0; 2].map(|_| simulation.open(&[1]));
    let narrow = Shape { down_room: 1 << 10, ..Shape::WIDE };
    let consumer = simulation.open_with(Manners::default(), narrow, &[1]);
    let mut bytes = [0; 128];
    let mut writer = Writer::new(&mut bytes);
    let arguments = writer.table(|table| {
        table.int("x-max-length", 0)?;
        table.text("x-overflow", "reject-publish")
    });
    arguments.expect("it fits");
    simulation.ask(other, 1, &declare_with("none", true, Table::trusted(&writer.written()[4..])));
    simulation.consume(consumer, 1, "none", "none", false);
    simulation.ask(waiting, 1, &Method::ConfirmSelect { no_wait: false });
    fill_disk(&mut simulation, "filled");
    simulation.publish(waiting, 1, persistent("none"), &[7; 3_000]);
    simulation.run();
    assert!(simulation.clients[waiting].checker.is_blocked, "it waits for the disk");
    simulation.clients[consumer].manners = Manners { greed: 0, ..Manners::default() };
    (0..100).for_each(|_| simulation.send(consumer, 1, &passive("none")));
    simulation.run();
    simulation.ask(other, 1, &purge("filled"));
    let is_refused = |said: &Said| matches!(said.method(), Method::BasicNack { .. });
    assert!(simulation.clients[waiting].heard.iter().any(is_refused));
}

/// A publisher with an unacknowledged delivery waits for the disk while another one takes the last queue entries. Its
/// publish is then refused, at its next retry or after 60 s. Its other channel goes on.
#[test]
fn a_publisher_that_waits_for_the_disk_is_refused_when_the_queue_entries_run_out() {
    let mut simulation = Simulation::with_message_extents(7);
    simulation.keep_on_disk(small_disk());
    // Both workers hold a delivery, so they may use the last queue entries.
    let [waiting, taking] = [0; 2].map(|_| simulation.open(&[1, 2]));
    for (worker, queue) in [(waiting, "first"), (taking, "second")] {
        simulation.declare(worker, 1, queue);
        simulation.publish_to(worker, 1, queue, b"task");
        simulation.consume(worker, 1, queue, "worker", false);
        simulation.run();
    }
    simulation.ask(taking, 1, &declare_with("kept", true, Table::EMPTY));
    let queues: Vec<String> = (0..300).map(|number| format!("q{number}")).collect();
    queues.iter().for_each(|queue| simulation.declare(taking, 1, queue));
    fill_disk(&mut simulation, "filled");
    simulation.publish(waiting, 1, persistent("kept"), &[7; 3_000]);
    simulation.publish_to(waiting, 2, "nowhere", b"");
    simulation.run();
    assert!(simulation.clients[waiting].checker.is_blocked, "it waits for the disk");
    for queue in &queues {
        simulation.publish_to(taking, 2, queue, b"x");
        simulation.run();
    }
    let (code, text) = channel_fault(&simulation, taking).expect("its channel is closed");
    assert!(code == 506 && text.contains("raise memory_limit"), "{code} {text}");
    simulation.pass_ms(REFUSED_AFTER_MS);
    let (code, text) = channel_fault(&simulation, waiting).expect("its channel is closed");
    assert!(code == 506 && text.contains("raise memory_limit"), "{code} {text}");
    assert!(simulation.clients[waiting].checker.is_open(2), "its other channel goes on");
}

/// Clients declare and bind until the memory has no extent for more. A start with the same memory has everything, although
/// the last commands took extents that a check for capacity leaves.
#[test]
fn definitions_that_filled_the_memory_are_there_after_a_start() {
    let limits =
        Limits { queues_max: 20_000, names_bytes_max: 16 << 20, connections_max: 64, ..small_limits() };
    let settings = Settings { index_bytes: 4 << 20, fixed_index_bytes: 4 << 20, ..Settings::default() };
    for definitions in [240, 276].map(|extents| COMMAND_EXTENTS + extents) {
        let memory = |less| {
            let floors = [256, definitions - less, 256];
            Memory::new(floors.iter().sum::<usize>() + COMMAND_EXTENTS, floors)
        };
        let mut simulation = Simulation::in_memory(limits.clone(), &memory(0));
        let disk = simulation.keep_on_disk(settings.clone());
        let count = |simulation: &Simulation| {
            let gauges = simulation.engine.broker().gauges();
            (gauges.queues, gauges.bindings)
        };
        let (mut refused, mut number) = (0, 0);
        while refused < 3 {
            // A connection may hold 15 times what it leaves.
            let client = simulation.open(&[1]);
            let before = count(&simulation);
            for _ in 0..20 {
                number += 1;
                let queue = format!("queue {number}");
                simulation.send(client, 1, &declare_with(&queue, true, Table::EMPTY));
                let routing_key = &format!("{number}{}", ".word".repeat(number % 40));
                let arguments = Table::EMPTY;
                let bind = Method::QueueBind {
                    queue: &queue,
                    exchange: "amq.topic",
                    routing_key,
                    no_wait: false,
                    arguments,
                };
                simulation.send(client, 1, &bind);
                simulation.pass_ms(20);
            }
            refused += usize::from(count(&simulation) == before);
        }
        simulation.pass_ms(5_000);
        let before = count(&simulation);
        assert!(before.0 > 100 && before.1 > 30, "{before:?}");
        drop(simulation);
        let simulation = Simulation::restarted_in(limits.clone(), &memory(0), &disk, settings.clone());
        assert_eq!(count(&simulation), before, "with {definitions} extents");
        drop(simulation);
        // With less memory, definitions are left out.
        for less in (1..definitions - 80).step_by(4) {
            let disk = disk.clone();
            let smaller = memory(less);
            let simulation = Simulation::restarted_in(limits.clone(), &smaller, &disk, settings.clone());
            let (queues, bindings) = count(&simulation);
            let (total, total_before) = (queues + bindings, before.0 + before.1);
            assert!(
                total <= total_before && (less < 112 || total < total_before),
                "with {less} extents less"
            );
        }
    }
}
