//! Full pools: which clients are blocked, and which are refused with the key to raise.
//!
//! No client is blocked that could free the missing capacity itself.
//!
//! Without its rule, each test would hang (come to rest without the expected result) or exceed a limit. Time
//! passes only where a test says so, because an event that frees memory must also wake the clients that wait
//! for it.

use leveret_amqp::{Method, Table};
use leveret_core::limits::Limits;
use leveret_core::mem::ENTRIES_PER_CHUNK;

use crate::world::*;

/// Delay of `connection.unblocked` after a publisher may continue.
const UNBLOCKED_AFTER_MS: u64 = 100;

/// Returns limits for this many messages; a sixteenth of them is the reserve.
fn room_for(messages_max: u32) -> Limits {
    Limits { messages_max, ..small_limits() }
}

/// Blocks one publisher per queue, by filling queues without consumers. Each queue takes two thirds of what
/// is left.
fn fill<const N: usize>(world: &mut World, queues: [&str; N]) -> [usize; N] {
    queues.map(|queue| {
        let filler = world.open(&[1]);
        world.declare(filler, 1, queue);
        for _ in 0..world.engine.messages().messages_max() + 10 {
            world.publish_to(filler, 1, queue, b"filling");
        }
        world.run();
        assert!(world.clients[filler].checker.is_blocked, "the filler is blocked and notified");
        filler
    })
}

/// Returns code and text of a channel that the broker closed.
fn channel_fault(world: &World, client: usize) -> Option<(u16, String)> {
    world.clients[client].heard.iter().find_map(|said| match said.method() {
        Method::ChannelClose { reply_code, reply_text, .. } => Some((reply_code, reply_text.to_string())),
        _ => None,
    })
}

/// Lets a worker consume from "in", publish `per_message` messages to "out" for each, and acknowledge it. It
/// uses one socket and does not pause.
fn work(world: &mut World, worker: usize, per_message: usize) -> usize {
    let mut done = 0;
    loop {
        let tasks = world.deliveries(worker);
        if tasks.is_empty() || !world.clients[worker].checker.is_open(1) {
            return done;
        }
        for said in &tasks {
            let Method::BasicDeliver { delivery_tag, .. } = said.method() else { continue };
            for _ in 0..per_message {
                world.publish_to(worker, 1, "out", &said.body);
            }
            world.ack(worker, 1, delivery_tag, false);
            done += 1;
        }
        world.run();
    }
}

/// Returns a worker with prefetch 4 and this many tasks in its queue, in a pool that others have filled.
fn worker_in_a_full_pool(tasks: u32) -> (World, usize) {
    let mut world = World::new(room_for(320));
    let worker = world.open(&[1]);
    world.declare(worker, 1, "in");
    world.declare(worker, 1, "out");
    for number in 0..tasks {
        world.publish_to(worker, 1, "in", &number.to_be_bytes());
    }
    fill(&mut world, ["stuffed", "crammed"]);
    world.ask(worker, 1, &qos(4));
    world.consume(worker, 1, "in", "worker", false);
    (world, worker)
}

#[test]
fn a_worker_that_publishes_and_acknowledges_on_one_socket_continues_with_a_full_pool() {
    let (mut world, worker) = worker_in_a_full_pool(100);
    assert_eq!(work(&mut world, worker, 1), 100);
    assert_eq!(channel_fault(&world, worker), None);
    assert_eq!((world.counts(worker, 1, "in"), world.counts(worker, 1, "out")), ((0, 1), (100, 0)));
    world.end(&["in", "out", "stuffed", "crammed"]);
}

#[test]
fn a_worker_that_needs_more_than_the_reserve_is_refused_with_the_key_to_raise() {
    let (mut world, worker) = worker_in_a_full_pool(100);
    let done = work(&mut world, worker, 5);
    assert!(done < 100);
    let (code, text) = channel_fault(&world, worker).expect("its channel is closed");
    assert!(code == 506 && text.contains("raise messages_max"), "{code} {text}");
    // Its unacknowledged messages were requeued, and its connection can continue.
    world.ask(worker, 1, &Method::ChannelOpen {});
    let (left, _) = world.counts(worker, 1, "in");
    assert!(left >= 1 && left as usize + done >= 100, "{left} left, {done} done");
    world.ask(worker, 1, &purge("stuffed"));
    world.consume(worker, 1, "in", "worker", false);
    assert!(work(&mut world, worker, 1) >= left as usize);
    world.end(&["in", "out", "stuffed", "crammed"]);
}

#[test]
fn a_worker_whose_bodies_fill_the_pool_is_refused_with_the_key_to_raise() {
    let limits = Limits { body_bytes_max: 1 << 20, assembly_bytes_max: 1 << 19, ..small_limits() };
    let limits = Limits { message_size_max: 1 << 17, ..limits };
    let mut world = World::new(limits);
    let worker = world.open(&[1]);
    world.declare(worker, 1, "in");
    world.declare(worker, 1, "out");
    world.publish_to(worker, 1, "in", b"task");
    world.consume(worker, 1, "in", "worker", false);
    for _ in 0..12 {
        world.publish_to(worker, 1, "out", &[1; 100_000]);
    }
    world.run();
    let (code, text) = channel_fault(&world, worker).expect("its channel is closed");
    assert!(code == 506 && text.contains("raise body_bytes_max"), "{code} {text}");
    world.end(&["in", "out"]);
}

#[test]
fn five_hundred_half_sent_bodies_end_by_timeout_and_others_go_on() {
    let mut world = World::new(small_limits());
    let healthy = world.open(&[1]);
    world.declare(healthy, 1, "q");
    world.consume(healthy, 1, "q", "it", true);
    let publish =
        Method::BasicPublish { exchange: "", routing_key: b"q", mandatory: false, immediate: false };
    let mut half = method_frame(1, &publish);
    half.extend(content_frames(1, &[0, 0], &[7; 64 << 10], 4088));
    half.truncate(1_000);
    let halves: Vec<usize> = (0..500).map(|_| world.open(&[1])).collect();
    for client in &halves {
        world.clients[*client].say(&half);
    }
    world.run();
    let mut rounds = 0;
    while halves.iter().any(|client| world.clients[*client].closed_with.is_none()) {
        world.publish_to(healthy, 1, "q", b"small");
        world.run();
        assert_eq!(world.deliveries(healthy).len(), 1, "a small message passes in round {rounds}");
        world.pass_ms(30_000);
        rounds += 1;
        assert!(rounds < 20, "half-sent bodies stay for ever");
    }
    for client in halves {
        let (code, text) = world.clients[client].closed_with.clone().expect("all are closed");
        assert!(code == 506 && text.contains("did not go on"), "{code} {text}");
    }
    world.publish_to(healthy, 1, "q", &[1; 1 << 20]);
    world.run();
    assert_eq!(world.deliveries(healthy)[0].body.len(), 1 << 20);
    world.end(&["q"]);
}

#[test]
fn a_large_message_waits_for_half_sent_bodies_to_end() {
    let mut world = World::new(small_limits());
    let publish =
        Method::BasicPublish { exchange: "", routing_key: b"q", mandatory: false, immediate: false };
    let mut half = method_frame(1, &publish);
    half.extend(content_frames(1, &[0, 0], &[7; 1 << 20], 4088));
    half.truncate(1_000);
    for _ in 0..3 {
        let client = world.open(&[1]);
        world.clients[client].say(&half);
    }
    let patient = world.open(&[1]);
    world.declare(patient, 1, "q");
    world.publish_to(patient, 1, "q", &[1; 1 << 20]);
    world.run();
    assert!(world.clients[patient].checker.is_blocked);
    world.pass_ms(30_000);
    world.pass_ms(UNBLOCKED_AFTER_MS);
    assert!(!world.clients[patient].checker.is_blocked);
    assert_eq!(world.counts(patient, 1, "q"), (1, 0));
    world.end(&["q"]);
}

#[test]
fn a_second_content_of_a_connection_is_taken_or_refused_but_never_waits() {
    let mut world = World::new(Limits { body_bytes_max: 8 << 20, ..small_limits() });
    let client = world.open(&[1, 2]);
    world.declare(client, 2, "q");
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
        let other = world.open(&[1]);
        world.clients[other].say(&content(1)[..beginning]);
    }
    world.run();
    world.clients[client].say(&content(1)[..beginning]);
    world.clients[client].say(&content(2));
    world.clients[client].say(&content(1)[beginning..]);
    world.run();
    let (code, text) = channel_fault(&world, client).expect("the second is refused");
    assert!(code == 506 && text.contains("raise assembly_bytes_max"), "{code} {text}");
    assert_eq!(world.counts(client, 1, "q"), (1, 0), "the first came in");
    world.end(&["q"]);
}

/// Lets a client send `count` messages of 1 KiB to itself, and read only when all are sent.
fn echo(limits: Limits, no_ack: bool, count: usize) -> (World, usize) {
    let mut world = World::new(limits);
    let shape = Shape { up_room: 64 << 10, down_room: 64 << 10, ..Shape::WIDE };
    let manners = Manners { sends_first: true, ..Manners::default() };
    let client = world.open_with(manners, shape, &[1, 2]);
    world.declare(client, 1, "echo");
    world.consume(client, 2, "echo", "it", no_ack);
    for _ in 0..count {
        world.publish_to(client, 1, "echo", &[9; 1024]);
    }
    world.run();
    (world, client)
}

#[test]
fn a_client_blocked_in_send_while_its_window_is_full_gets_through() {
    for (no_ack, count) in [(true, 1_500), (false, 1_000)] {
        let (mut world, client) = echo(room_for(4_000), no_ack, count);
        assert!(world.clients[client].is_done_sending(), "it is stuck in send");
        assert_eq!(world.deliveries(client).len(), count);
        world.ack(client, 2, 0, true);
        world.run();
        world.end(&["echo"]);
    }
}

#[test]
fn a_client_blocked_in_send_that_fills_the_pool_itself_is_told_so() {
    for no_ack in [true, false] {
        let (world, client) = echo(room_for(640), no_ack, 3_000);
        assert!(world.clients[client].is_done_sending(), "it is stuck in send");
        let (code, text) = channel_fault(&world, client).expect("its channel is closed");
        assert!(code == 506 && text.contains("raise messages_max"), "{code} {text}");
        world.end(&["echo"]);
    }
}

#[test]
fn ten_thousand_pipelined_declares_are_answered_in_order_when_they_are_read() {
    let mut world = World::new(small_limits());
    let other = world.open(&[1]);
    let shape = Shape { down_room: 4096, ..Shape::WIDE };
    let eager = world.open_with(Manners::default(), shape, &[1]);
    world.clients[eager].manners.greed = 0;
    let name = |number: usize| format!("queue{}", number % 400);
    for number in 0..10_000 {
        world.send(eager, 1, &declare(&name(number)));
    }
    world.run();
    assert!(world.clients[eager].checker.replies_missing() > 9_000);
    world.ask(other, 1, &qos(1));
    world.clients[eager].manners.greed = 777;
    world.run();
    assert_eq!(world.clients[eager].checker.replies_missing(), 0);
    for (number, said) in world.clients[eager].heard.iter().enumerate() {
        let Method::QueueDeclareOk { queue, .. } = said.method() else { panic!("{}", said.shown()) };
        assert_eq!(queue, name(number));
    }
    let names: Vec<String> = (0..400).map(name).collect();
    world.end(&names.iter().map(String::as_str).collect::<Vec<_>>());
}

/// Returns a broker with 100 chunks for queue entries, and with this many queues bound to amq.fanout.
fn with_fanout(queues: usize) -> (World, usize, Vec<String>) {
    let mut world =
        World::new(Limits { queue_entries_max: 100 * ENTRIES_PER_CHUNK as u32, ..small_limits() });
    let client = world.open(&[1]);
    let names: Vec<String> = (0..queues).map(|number| format!("target{number}")).collect();
    for name in &names {
        world.declare(client, 1, name);
        world.ask(client, 1, &bind(name, "amq.fanout", ""));
    }
    (world, client, names)
}

fn publish_to_all(world: &mut World, client: usize) {
    let publish = Publish { exchange: "amq.fanout", ..Publish::default() };
    world.publish(client, 1, publish, b"to all");
    world.run();
}

#[test]
fn a_fanout_that_can_never_fit_is_refused_and_reaches_no_queue() {
    let (mut world, client, names) = with_fanout(150);
    publish_to_all(&mut world, client);
    let (code, text) = channel_fault(&world, client).expect("its channel is closed");
    assert!(code == 506 && text.contains("raise queue_entries_max"), "{code} {text}");
    world.ask(client, 1, &Method::ChannelOpen {});
    for name in &names {
        assert_eq!(world.counts(client, 1, name), (0, 0));
    }
    assert_eq!(world.engine.messages().messages_used(), 0);
    world.end(&names.iter().map(String::as_str).collect::<Vec<_>>());
}

#[test]
fn a_fanout_that_fits_later_waits_and_then_reaches_all_queues() {
    let (mut world, client, mut names) = with_fanout(50);
    let other = world.open(&[1]);
    for number in 0..60 {
        let name = format!("taken{number}");
        world.declare(other, 1, &name);
        world.publish_to(other, 1, &name, b"takes a chunk");
        names.push(name);
    }
    world.run();
    publish_to_all(&mut world, client);
    assert!(world.clients[client].checker.is_blocked, "it waits");
    for name in &names[..50] {
        assert_eq!(world.counts(other, 1, name), (0, 0), "all or nothing");
    }
    for name in &names[50..80] {
        world.ask(other, 1, &purge(name));
    }
    world.pass_ms(UNBLOCKED_AFTER_MS);
    assert!(!world.clients[client].checker.is_blocked, "it went through");
    for name in &names[..50] {
        assert_eq!(world.counts(other, 1, name), (1, 0));
    }
    world.end(&names.iter().map(String::as_str).collect::<Vec<_>>());
}

#[test]
fn a_hundred_slow_consumers_of_a_large_message_share_one_copy() {
    const SIZE: usize = 1 << 20;
    let mut world = World::new(small_limits());
    let publisher = world.open(&[1]);
    let shape = Shape { down_room: 16 << 10, ..Shape::WIDE };
    let mut consumers = Vec::new();
    let mut names = Vec::new();
    for number in 0..100 {
        let name = format!("slow{number}");
        let client = world.open_with(Manners::default(), shape, &[1]);
        world.declare(client, 1, &name);
        world.ask(client, 1, &bind(&name, "amq.fanout", ""));
        world.consume(client, 1, &name, "it", number % 2 == 0);
        world.clients[client].manners.greed = 0;
        consumers.push(client);
        names.push(name);
    }
    let body: Vec<u8> = (0..SIZE).map(|at| ((at * 31) >> 3) as u8).collect();
    let publish = Publish { exchange: "amq.fanout", piece: 131_064, ..Publish::default() };
    world.publish(publisher, 1, publish, &body);
    world.run();
    let mut most = 0;
    for (turn, client) in consumers.iter().enumerate() {
        world.clients[*client].manners.greed = 1_000 + turn;
    }
    while world.round() {
        most = most.max(world.engine.messages().body_bytes_used());
        assert!(world.engine.messages().messages_used() <= 1);
    }
    assert!((SIZE..SIZE + 8192).contains(&most), "{most} bytes for one body");
    for client in consumers {
        let deliveries = world.deliveries(client);
        assert!(deliveries.len() == 1 && deliveries[0].body == body);
    }
    world.end(&names.iter().map(String::as_str).collect::<Vec<_>>());
}

#[test]
fn a_publisher_at_its_limit_is_blocked_and_notified_and_resumes_without_a_timer() {
    let mut world = World::new(room_for(200));
    let consumer = world.open(&[1]);
    world.declare(consumer, 1, "q");
    let publisher = world.open(&[1]);
    for number in 0..1_000_u32 {
        world.publish_to(publisher, 1, "q", &number.to_be_bytes());
    }
    world.run();
    assert!(world.clients[publisher].checker.is_blocked);
    let (ready, _) = world.counts(consumer, 1, "q");
    assert_eq!(ready, 126, "two thirds of what ordinary publishers may have");
    world.consume(consumer, 1, "q", "it", true);
    let numbers: Vec<u32> = world
        .deliveries(consumer)
        .iter()
        .map(|said| u32::from_be_bytes(said.body[..].try_into().expect("four octets")))
        .collect();
    assert_eq!(numbers, (0..1_000).collect::<Vec<_>>());
    assert_eq!(world.now.as_ms(), 0);
    world.pass_ms(UNBLOCKED_AFTER_MS);
    assert!(!world.clients[publisher].checker.is_blocked, "it was told that it is over");
    world.end(&["q"]);
}

#[test]
fn every_blocked_publisher_resumes_after_a_purge() {
    let mut world = World::new(room_for(1_000));
    let fillers = fill(&mut world, ["full", "b", "c", "d", "e", "f", "g", "h"]);
    let waiting: Vec<usize> = (0..300).map(|_| world.open(&[1])).collect();
    for client in &waiting {
        world.publish_to(*client, 1, "other", b"x");
    }
    world.run();
    for filler in fillers {
        world.lose(filler);
    }
    world.pass_ms(LOST_MS);
    assert!(waiting.iter().all(|client| world.clients[*client].checker.is_blocked));
    let operator = world.open(&[1]);
    world.declare(operator, 1, "other");
    world.ask(operator, 1, &purge("full"));
    world.pass_ms(UNBLOCKED_AFTER_MS);
    for client in &waiting {
        assert!(!world.clients[*client].checker.is_blocked, "{client} of {} still waits", waiting.len());
    }
    assert_eq!(world.counts(operator, 1, "other"), (300, 0));
    world.end(&["full", "b", "c", "d", "e", "f", "g", "h", "other"]);
}

#[test]
fn a_publisher_resumes_when_the_full_queue_is_unbound() {
    let mut world = World::new(room_for(320));
    let (operator, publisher) = (world.open(&[1]), world.open(&[1]));
    world.declare(operator, 1, "full");
    let (queue, exchange, routing_key, arguments) = ("full", "amq.direct", "key", Table::EMPTY);
    world.ask(operator, 1, &Method::QueueBind { queue, exchange, routing_key, no_wait: false, arguments });
    for _ in 0..400 {
        world.publish(publisher, 1, Publish { exchange, key: routing_key, ..Publish::default() }, b"filling");
    }
    world.pass_ms(UNBLOCKED_AFTER_MS);
    assert!(world.clients[publisher].checker.is_blocked, "the queue has its share");
    world.ask(operator, 1, &Method::QueueUnbind { queue, exchange, routing_key, arguments });
    world.pass_ms(UNBLOCKED_AFTER_MS);
    assert!(!world.clients[publisher].checker.is_blocked, "nothing goes to the full queue any more");
    world.end(&["full"]);
}

#[test]
fn when_a_blocked_publisher_disconnects_the_next_one_resumes() {
    let mut world = World::new(room_for(320));
    let fillers = fill(&mut world, ["full", "brimful"]);
    let second = world.open(&[1]);
    world.publish_to(second, 1, "full", b"second");
    world.run();
    assert!(world.clients[second].checker.is_blocked);
    let operator = world.open(&[1]);
    for filler in fillers {
        world.lose(filler);
    }
    world.pass_ms(LOST_MS);
    assert_eq!(world.peers_count(), 2, "that they are gone is noticed although they wait");
    world.ask(operator, 1, &purge("full"));
    world.pass_ms(UNBLOCKED_AFTER_MS);
    assert!(!world.clients[second].checker.is_blocked);
    assert_eq!(world.counts(operator, 1, "full"), (1, 0));
    world.end(&["full", "brimful"]);
}

#[test]
fn a_lost_client_keeps_no_deliveries_while_its_input_waits() {
    for is_mandatory in [false, true] {
        let mut world = World::new(Limits { output_buffer_bytes: 16 << 10, ..small_limits() });
        let publisher = world.open(&[1]);
        world.declare(publisher, 1, "q");
        let narrow = Shape { down_room: 1 << 10, ..Shape::WIDE };
        let consumer = world.open_with(Manners::default(), narrow, &[1]);
        world.consume(consumer, 1, "q", "it", false);
        world.clients[consumer].manners = Manners { greed: 0, ..Manners::default() };
        for _ in 0..6 {
            world.publish_to(publisher, 1, "q", &[7; 9_000]);
        }
        world.run();
        if is_mandatory {
            for _ in 0..10 {
                let publish = Publish { key: "nowhere", mandatory: true, ..Publish::default() };
                world.publish(consumer, 1, publish, &[7; 9_000]);
            }
        } else {
            for _ in 0..3 {
                world.send(consumer, 1, &Method::BasicGet { queue: "q", no_ack: true });
            }
        }
        world.run();
        assert!(world.counts(publisher, 1, "q").0 < 6, "the consumer has some");
        world.lose(consumer);
        world.pass_ms(6_000);
        assert_eq!(
            (world.counts(publisher, 1, "q"), world.peers_count()),
            ((6, 0), 1),
            "mandatory: {is_mandatory}"
        );
    }
}

#[test]
fn a_request_that_was_blocked_is_delivered_with_its_reply_queue() {
    let mut world = World::new(room_for(320));
    let server = world.open(&[1]);
    world.declare(server, 1, "requests");
    let requester = world.open(&[1]);
    world.consume(requester, 1, "amq.rabbitmq.reply-to", "replies", true);
    // A request is rewritten before it is queued: its reply-to becomes the queue that waits for the answer.
    let properties = [&[0x02, 0x00, 21][..], b"amq.rabbitmq.reply-to"].concat();
    let publish = Publish { key: "requests", properties: &properties, ..Publish::default() };
    for number in 0..300_u32 {
        world.publish(requester, 1, publish, &number.to_be_bytes());
    }
    world.run();
    assert!(world.clients[requester].checker.is_blocked, "the queue has its share");
    world.consume(server, 1, "requests", "server", true);
    let requests = world.deliveries(server);
    assert_eq!(requests.len(), 300);
    for (number, said) in requests.iter().enumerate() {
        assert_eq!(said.body, (number as u32).to_be_bytes());
        let token = std::str::from_utf8(&said.properties[3..]).expect("a name");
        assert!(token.starts_with("amq.rabbitmq.reply-to."), "{token}");
        world.publish_to(server, 1, token, &said.body);
    }
    world.run();
    assert_eq!(world.deliveries(requester).len(), 300);
    world.end(&["requests"]);
}

#[test]
fn a_publisher_that_does_not_read_its_returns_blocks_only_itself() {
    let mut world = World::new(Limits { output_buffer_bytes: 8_192, ..small_limits() });
    let shape = Shape { down_room: 1_000, ..Shape::WIDE };
    let careless = world.open_with(Manners::default(), shape, &[1]);
    let other = world.open(&[1]);
    world.declare(other, 1, "q");
    world.clients[careless].manners.greed = 0;
    let publish = Publish { key: "nowhere", mandatory: true, ..Publish::default() };
    for _ in 0..1_000 {
        world.publish(careless, 1, publish, &[3; 500]);
    }
    world.run();
    assert!(world.engine.messages().messages_used() < 100, "its returns are not heaped up");
    world.publish_to(other, 1, "q", b"nobody else waits");
    assert_eq!(world.counts(other, 1, "q"), (1, 0));
    world.clients[careless].manners.greed = 300;
    world.run();
    let is_return = |said: &&Said| matches!(said.method(), Method::BasicReturn { .. });
    assert_eq!(world.clients[careless].heard.iter().filter(is_return).count(), 1_000);
    world.end(&["q"]);
}

#[test]
fn no_queue_takes_the_whole_pool() {
    let mut world = World::new(room_for(1_000));
    let greedy = world.open(&[1]);
    world.declare(greedy, 1, "greedy");
    for _ in 0..2_000 {
        world.publish_to(greedy, 1, "greedy", b"x");
    }
    world.run();
    assert_eq!(world.counts_from_outside("greedy"), 626);
    let modest = world.open(&[1]);
    world.declare(modest, 1, "modest");
    world.publish_to(modest, 1, "modest", b"x");
    assert_eq!(world.counts(modest, 1, "modest"), (1, 0));
    world.end(&["greedy", "modest"]);
}

#[test]
fn deliveries_never_take_all_records_and_a_new_consumer_gets_some() {
    let limits = Limits { unacknowledged_max: 64, ..small_limits() };
    let mut world = World::new(limits);
    let publisher = world.open(&[1]);
    world.declare(publisher, 1, "q");
    for _ in 0..500 {
        world.publish_to(publisher, 1, "q", b"x");
    }
    world.run();
    let hoarders: Vec<usize> = (0..3).map(|_| world.open(&[1])).collect();
    for hoarder in &hoarders {
        world.consume(*hoarder, 1, "q", "it", false);
        assert!(!world.deliveries(*hoarder).is_empty(), "a new consumer gets some");
    }
    // Each consumer acknowledges all it has, repeatedly, until nothing is left.
    let mut taken = world.counts(publisher, 1, "q").0;
    while taken > 0 {
        for hoarder in &hoarders {
            world.ack(*hoarder, 1, 0, true);
            world.run();
        }
        let left = world.counts(publisher, 1, "q").0;
        assert!(left < taken, "no progress at {left}");
        taken = left;
    }
    world.end(&["q"]);
}

#[test]
fn a_blocked_publisher_is_not_closed_for_missing_progress() {
    let mut world = World::new(room_for(320));
    let manners = Manners { heartbeat_s: 60, sends_heartbeats: true, ..Manners::default() };
    let filler = world.open_with(manners, Shape::WIDE, &[1]);
    world.declare(filler, 1, "q");
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
        world.clients[filler].say(piece);
        world.run();
    }
    assert!(world.clients[filler].checker.is_blocked, "it is blocked and notified");
    for _ in 0..4 {
        world.pass_ms(30_000);
        assert_eq!(world.clients[filler].closed_with, None);
    }
}

/// `connection.tune` tells how many channels a connection can have.
///
/// When other connections use some of them, only the `channel.open` is refused. The connection and its other
/// channels continue, and a later `channel.open` succeeds.
#[test]
fn a_channel_beyond_the_limit_is_refused_and_the_connection_continues() {
    let mut world = World::new(Limits { channels_max: 8, channel_max: 2047, ..small_limits() });
    let first = world.open(&[1, 2, 3, 4]);
    assert_eq!(world.clients[first].channel_max, 4, "half of all while no other connection has any");
    let second = world.open(&[1, 2]);
    let refused = |world: &mut World, client: usize, number: u16| {
        let said = world.ask(client, number, &Method::ChannelOpen {});
        let Method::ChannelClose { reply_code: 506, reply_text, .. } = said.method() else {
            panic!("{}", said.shown())
        };
        assert!(reply_text.contains("channels_max"), "{reply_text}");
    };
    for _ in 0..40 {
        refused(&mut world, second, 3);
    }
    let third = world.open(&[1]);
    // Seven of eight channels are used, and none is left for the last connection.
    let fourth = world.open(&[1]);
    let fifth = world.open(&[]);
    refused(&mut world, fifth, 1);
    for client in [first, second, third, fourth, fifth] {
        assert_eq!(world.clients[client].checker.phase, Phase::Open);
    }
    world.ask(second, 2, &qos(1));
    world.ask(first, 4, &close_channel());
    world.ask(fifth, 1, &Method::ChannelOpen {});
    world.ask(fifth, 1, &qos(1));
    world.end(&[]);
}

/// Queues without consumers, bound to one fanout exchange, leave memory to others.
///
/// A publisher to another queue is not even blocked. A single such queue may hold two thirds of the messages.
#[test]
fn queues_without_consumers_leave_memory_to_other_queues() {
    for hogs in [1, 3, 10] {
        for is_short_of_entries in [false, true] {
            let short = Limits { queue_entries_max: 2_100, ..room_for(4_000) };
            let mut world = World::new(if is_short_of_entries { short } else { room_for(1_000) });
            let publisher = world.open(&[1]);
            let names: Vec<String> = (0..hogs).map(|number| format!("hog-{number}")).collect();
            for name in &names {
                world.declare(publisher, 1, name);
                world.ask(publisher, 1, &bind(name, "amq.fanout", ""));
            }
            for _ in 0..4_000 {
                world.publish(publisher, 1, Publish { exchange: "amq.fanout", ..Publish::default() }, b"x");
            }
            world.pass_ms(1_000);
            assert!(world.clients[publisher].checker.is_blocked, "{hogs} hogs");
            let other = world.open(&[1]);
            world.declare(other, 1, "other");
            let held = world.counts(other, 1, &names[0]).0;
            let (most, holders) = match is_short_of_entries {
                // All queues contain the same messages.
                false => (1_000 * 15 / 16, 1),
                true => (2_100 * 15 / 16, hogs),
            };
            let share = 2 * most / (2 * holders + 1);
            assert!((share - 2 * 21..=share + 21).contains(&held), "{hogs} hogs: {held} of {share} each");
            world.consume(other, 1, "other", "c", true);
            for round in 0..50 {
                for _ in 0..10 {
                    world.publish_to(other, 1, "other", b"y");
                }
                // No time passes: nothing may be blocked.
                world.run();
                assert_eq!(world.deliveries(other).len(), 10, "{hogs} hogs, round {round}");
            }
            assert!(!world.clients[other].checker.is_blocked);
            // Messages taken out of the queues unblock their publisher.
            for _ in 0..20 {
                names.iter().for_each(|name| drop(world.ask(other, 1, &purge(name))));
                world.pass_ms(1_000);
            }
            assert!(!world.clients[publisher].checker.is_blocked, "{hogs} hogs");
            names.iter().for_each(|name| drop(world.ask(other, 1, &delete(name))));
            world.end(&["other"]);
        }
    }
}
