//! Messages that the broker itself publishes, and queues that nobody reads: others can still publish.

use leveret_amqp::{Method, Table, Writer};
use leveret_storage::Settings;
use leveret_test_support::simulated_server::mqtt::{Login, MqttClient};
use leveret_test_support::simulated_server::*;

const PERSISTENT: &[u8] = &[0x10, 0, 2];

/// Extents of a memory for messages that a few hundred of them fill.
const FEW: usize = 8;

/// The arguments of a declaration.
#[derive(Clone, Copy)]
enum Argument<'a> {
    Text(&'a str, &'a str),
    Number(&'a str, i32),
}

fn arguments<'b>(writer: &'b mut Writer<'_>, arguments: &[Argument<'_>]) -> Table<'b> {
    let written = writer.table(|table| {
        arguments.iter().try_for_each(|argument| match *argument {
            Argument::Text(name, value) => table.text(name, value),
            Argument::Number(name, value) => table.int(name, value),
        })
    });
    written.expect("it fits");
    Table::trusted(&writer.written()[4..])
}

fn make(simulation: &mut Simulation, client: usize, queue: &str, durable: bool, given: &[Argument<'_>]) {
    let mut bytes = [0; 512];
    let mut writer = Writer::new(&mut bytes);
    let arguments = arguments(&mut writer, given);
    let said = simulation.ask(client, 1, &declare_with(queue, durable, arguments));
    assert!(matches!(said.method(), Method::QueueDeclareOk { .. }), "{}", said.shown());
}

/// Publishes messages, until the publisher is blocked or `count` are published. Returns whether it is blocked.
fn flood(
    simulation: &mut Simulation,
    client: usize,
    publish: Publish<'_>,
    body: &[u8],
    count: usize,
) -> bool {
    for _ in 0..count {
        if simulation.clients[client].checker.is_blocked {
            return true;
        }
        simulation.publish(client, 1, publish, body);
        simulation.run();
        if publish.properties == PERSISTENT {
            simulation.pass_ms(20);
        }
    }
    simulation.clients[client].checker.is_blocked
}

/// Asserts that a new client can publish to a queue of its own.
#[track_caller]
fn assert_others_publish(simulation: &mut Simulation, durable: bool, what: &str) {
    let client = simulation.open(&[1]);
    let name = format!("other-{}", simulation.now.as_ms());
    simulation.declare(client, 1, &name);
    let (queue, properties) = if durable { ("spare", PERSISTENT) } else { (&*name, &[0, 0][..]) };
    let publish = Publish { key: queue, properties, ..Publish::default() };
    let is_blocked = flood(simulation, client, publish, b"reading", 5);
    // A wait for the next commit or for compaction ends.
    simulation.pass_ms(if is_blocked { 5_000 } else { 0 });
    assert!(!simulation.clients[client].checker.is_blocked, "{what}: another client cannot publish");
    simulation.lose(client);
    simulation.run();
}

fn counter(simulation: &Simulation) -> u64 {
    simulation.engine.broker().counters().wills_dropped
}

/// A device loses its link again and again, and nobody reads the queue that gets its wills.
#[test]
fn wills_fill_a_forgotten_queue_only_up_to_its_share() {
    let mut simulation = Simulation::with_message_extents(FEW);
    let operator = simulation.open(&[1]);
    simulation.declare(operator, 1, "forgotten");
    simulation.ask(operator, 1, &bind("forgotten", "amq.topic", "#"));
    for number in 0..1_000 {
        let payload = format!("gone {number}");
        let will = Some(("will/x", payload.as_bytes(), 1, true));
        let device = MqttClient::log_in(&mut simulation, &Login { will, ..Login::default() });
        device.lose(&mut simulation);
    }
    let (ready, _) = simulation.counts(operator, 1, "forgotten");
    assert!((400..700).contains(&ready), "{ready} wills are in the queue");
    assert_eq!(counter(&simulation) + u64::from(ready), 1_000, "the others are counted");
    assert_others_publish(&mut simulation, false, "after the wills");
    let mut reader = MqttClient::log_in(&mut simulation, &Login { client_id: "reader", ..Login::default() });
    reader.subscribe(&mut simulation, &[("will/x", 0)]);
    let retained = reader.receive(&mut simulation).expect("the retained message of the last will");
    assert_eq!(retained.payload, b"gone 999");
}

/// A queue with a length limit dead-letters each message that it drops, and nobody reads the dead letters.
#[test]
fn dead_letters_leave_memory_for_other_publishers() {
    let mut simulation = Simulation::with_message_extents(2 * FEW);
    let client = simulation.open(&[1]);
    simulation.declare(client, 1, "dead");
    let given = [
        Argument::Text("x-dead-letter-exchange", ""),
        Argument::Text("x-dead-letter-routing-key", "dead"),
        Argument::Number("x-max-length", 10),
    ];
    make(&mut simulation, client, "work", false, &given);
    let publish = Publish { key: "work", ..Publish::default() };
    assert!(flood(&mut simulation, client, publish, b"reading", 5_000), "the publisher of the cause waits");
    simulation.pass_ms(3_000);
    let operator = simulation.open(&[1]);
    let (dead, _) = simulation.counts(operator, 1, "dead");
    let (ready, _) = simulation.counts(operator, 1, "work");
    assert!(dead > 400 && ready > 10, "{dead} dead letters, and {ready} messages that wait to become some");
    assert_others_publish(&mut simulation, false, "after the dead letters");
    // When the dead letters are read, everything goes on, and nothing is lost.
    let before = dead + ready;
    simulation.consume(operator, 1, "dead", "tag", true);
    simulation.pass_ms(1_000);
    assert!(!simulation.clients[client].checker.is_blocked);
    let (ready, _) = simulation.counts(client, 1, "work");
    assert_eq!(ready, 10);
    assert!(simulation.deliveries(operator).len() as u32 >= before - 10);
}

/// Extents of memory and lengths of bodies. With x-death, each of these messages takes more blocks: the first body fits into
/// the slot, and the end of the second one is just too short for a whole page.
const GROWING: [(usize, usize); 2] = [(FEW, 7), (5 * FEW, 1_900)];

/// Creates the queues `one` and `two`, which dead-letter to each other, and `forgotten`, which no client reads. Fills all
/// memory with messages in `forgotten` and in the queues `filled`.
fn fill_cycle(
    simulation: &mut Simulation,
    operator: usize,
    ttl_ms: [i32; 2],
    filled: [&str; 2],
    body: &[u8],
) {
    for (queue, other, ttl_ms) in [("one", "two", ttl_ms[0]), ("two", "one", ttl_ms[1])] {
        let given = [
            Argument::Text("x-dead-letter-exchange", ""),
            Argument::Text("x-dead-letter-routing-key", other),
            Argument::Number("x-message-ttl", ttl_ms),
        ];
        make(simulation, operator, queue, false, &given);
    }
    simulation.declare(operator, 1, "forgotten");
    for queue in filled.into_iter().chain(["forgotten"]).chain(filled) {
        let publisher = simulation.open(&[1]);
        let publish = Publish { key: queue, ..Publish::default() };
        assert!(flood(simulation, publisher, publish, body, 6_000), "{queue} has used its share");
        simulation.lose(publisher);
    }
}

/// Two queues dead-letter to each other what expires in them. Both have used their shares, and nothing is left for others.
#[test]
fn queues_that_dead_letter_to_each_other_do_not_wait_for_each_other() {
    for (extents, len) in GROWING {
        let mut simulation = Simulation::with_message_extents(extents);
        let operator = simulation.open(&[1]);
        fill_cycle(&mut simulation, operator, [60_000; 2], ["one", "two"], &vec![7; len]);
        let counts = ["one", "two"].map(|queue| simulation.counts(operator, 1, queue).0);
        simulation.pass_ms(61_000);
        for queue in ["one", "two"] {
            simulation.consume(operator, 1, queue, queue, true);
        }
        simulation.pass_ms(10_000);
        let delivered = simulation.deliveries(operator).len() as u32;
        assert!(delivered >= counts[0] + counts[1], "{len}: {delivered} of {counts:?} messages came");
    }
}

/// A consumer rejects all messages of a queue for which publishers wait, because its database is away. The messages wait in
/// a retry queue until they expire there, and come back.
#[test]
fn rejected_messages_come_back_although_publishers_have_used_the_memory() {
    for (extents, len) in GROWING {
        let mut simulation = Simulation::with_message_extents(extents);
        let operator = simulation.open(&[1]);
        fill_cycle(&mut simulation, operator, [600_000, 30_000], ["one", "one"], &vec![7; len]);
        let (count, _) = simulation.counts(operator, 1, "one");
        let worker = simulation.open(&[1]);
        simulation.consume(worker, 1, "one", "worker", false);
        let mut rejected = 0;
        while rejected < count {
            simulation.pass_ms(1_000);
            let deliveries = simulation.deliveries(worker).len() as u32;
            assert!(deliveries > 0, "{len}: {rejected} of {count} messages were rejected");
            rejected += deliveries;
            let reject = Method::BasicNack { delivery_tag: 0, multiple: true, requeue: false };
            simulation.send(worker, 1, &reject);
        }
        simulation.run();
        simulation.lose(worker);
        simulation.pass_ms(120_000);
        simulation.consume(operator, 1, "one", "one", true);
        simulation.pass_ms(60_000);
        assert_eq!(simulation.deliveries(operator).len() as u32, count, "{len}");
        let without_death = simulation.engine.broker().counters().headers_shortened;
        assert!(without_death > 0, "{len}: dead letters that lack x-death are counted");
    }
}

/// Delayed messages become due, and nobody reads the queue that gets them.
#[test]
fn delayed_messages_leave_memory_for_other_publishers() {
    let mut simulation = Simulation::with_message_extents(FEW);
    let client = simulation.open(&[1]);
    simulation.declare(client, 1, "late");
    let mut bytes = [0; 512];
    let mut writer = Writer::new(&mut bytes);
    let arguments = arguments(&mut writer, &[Argument::Text("x-delayed-type", "fanout")]);
    let declare = Method::ExchangeDeclare {
        exchange: "delayed",
        kind: "x-delayed-message",
        passive: false,
        durable: false,
        auto_delete: false,
        internal: false,
        no_wait: false,
        arguments,
    };
    simulation.ask(client, 1, &declare);
    simulation.ask(client, 1, &bind("late", "delayed", ""));
    // The header x-delay: 100.
    let properties = [&[0x20, 0, 0, 0, 0, 13, 7][..], b"x-delayI", &[0, 0, 0, 100]].concat();
    let publish = Publish { exchange: "delayed", properties: &properties, ..Publish::default() };
    for _ in 0..200 {
        if flood(&mut simulation, client, publish, b"reading", 10) {
            break;
        }
        simulation.pass_ms(200);
    }
    simulation.pass_ms(3_000);
    let operator = simulation.open(&[1]);
    let (late, _) = simulation.counts(operator, 1, "late");
    assert!(late > 400, "{late} messages are routed");
    assert_others_publish(&mut simulation, false, "after the delayed messages");
}

/// One to ten queues that nobody reads, filled together or one after the other, with or without a queue that dead-letters:
/// there is space in the log for others.
#[test]
fn forgotten_queues_leave_space_in_the_log_for_other_publishers() {
    for segments_max in [12, 40] {
        for (forgotten, is_together, has_dead_letters) in
            [(1, false), (2, false), (2, true), (5, false), (10, true)]
                .into_iter()
                .flat_map(|(count, is_together)| [(count, is_together, false), (count, is_together, true)])
        {
            let what = format!("{segments_max} {forgotten} {is_together} {has_dead_letters}");
            let mut simulation = Simulation::with_message_extents(1_100);
            let settings = Settings {
                segment_bytes: 256 << 10,
                commit_bytes: 64 << 10,
                segments_max,
                index_bytes: 2 << 20,
                fixed_index_bytes: 0,
                ..Settings::default()
            };
            let _disk = simulation.keep_on_disk(settings);
            let operator = simulation.open(&[1]);
            make(&mut simulation, operator, "spare", true, &[]);
            if has_dead_letters {
                let given = [Argument::Text("x-dead-letter-exchange", "amq.fanout")];
                make(&mut simulation, operator, "dead-lettering", true, &given);
            }
            let clients: Vec<_> = (0..forgotten)
                .map(|number| {
                    let (client, queue) = (simulation.open(&[1]), format!("forgotten-{number}"));
                    make(&mut simulation, client, &queue, true, &[]);
                    (client, queue)
                })
                .collect();
            let body = vec![7; 16_000];
            let per_round = if is_together { 3 } else { 4_000 };
            let is_blocked = |simulation: &Simulation| {
                clients.iter().all(|(client, _)| simulation.clients[*client].checker.is_blocked)
            };
            for _ in 0..4_000 {
                for (client, queue) in &clients {
                    let publish = Publish { key: queue, properties: PERSISTENT, ..Publish::default() };
                    flood(&mut simulation, *client, publish, &body, per_round);
                }
                // A wait for a commit or for compaction ends.
                simulation.pass_ms(1_000);
                if is_blocked(&simulation) {
                    break;
                }
            }
            assert!(is_blocked(&simulation), "{what}: the queues are full");
            assert_others_publish(&mut simulation, true, &what);
        }
    }
}
