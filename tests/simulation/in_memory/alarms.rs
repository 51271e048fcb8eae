//! Provokes each cause that blocks publishers, and checks its alarm: the object, and the remedy.
//!
//! # Invariants
//! - A new cause does not compile without a case here.

use leveret_amqp::{Method, Table, Writer};
use leveret_config::Layer;
use leveret_core::command::QueueId;
use leveret_core::limits::Limits;
use leveret_queues::{Pool, Shortage};
use leveret_storage::Settings;

use leveret_test_support::simulated_disk::{SimDisk, Trouble};
use leveret_test_support::simulated_server::*;

const SEGMENT_BYTES: u32 = 256 << 10;
const SEGMENTS: u32 = 24;
const PERSISTENT: &[u8] = &[0x10, 0, 2];
/// A name as an attacker could choose it, and its form in alarms.
const HOSTILE: &str = "full'\u{1b}[2J; all is well";
const HOSTILE_SHOWN: &str = "queue 'full\\'\\u{1b}[2J; all is well' (virtual host '/')";

fn limits() -> Limits {
    Limits { messages_max: 320, body_bytes_max: 1 << 20, assembly_bytes_max: 1 << 19, ..small_limits() }
}

/// Returns a broker with a store on a simulated disk, whose index has `index_bytes`.
fn with_index_of(index_bytes: usize) -> (Simulation, SimDisk) {
    let mut simulation =
        Simulation::new(Limits { messages_max: 4_000, body_bytes_max: 16 << 20, ..limits() });
    let settings = Settings {
        segment_bytes: SEGMENT_BYTES,
        commit_bytes: 64 << 10,
        segments_max: SEGMENTS,
        index_bytes,
        // Without space beside the index for queues without messages, a few queues fill it.
        fixed_index_bytes: 0,
        ..Settings::default()
    };
    let disk = simulation.keep_on_disk(settings);
    (simulation, disk)
}

fn with_store() -> Simulation {
    with_index_of(2 << 20).0
}

/// Publishes messages of `body_len` bytes to a new queue until the publisher is blocked.
fn flood(simulation: &mut Simulation, queue: &str, body_len: usize, properties: &[u8]) -> usize {
    let client = simulation.open(&[1]);
    make(simulation, client, queue, properties == PERSISTENT);
    flood_by(simulation, client, queue, body_len, properties);
    client
}

/// Fills queues to their shares until nothing is left.
fn flood_all(simulation: &mut Simulation, body_len: usize) {
    for queue in ["a", "b", "c", "d", "e", "f", "g"] {
        flood(simulation, queue, body_len, PLAIN);
    }
}

/// Fills durable queues that were declared before the log was full. An eighth of it is kept for queues with few bytes, so it
/// takes many of them.
fn flood_log(simulation: &mut Simulation) {
    let small = (0..40).map(|number| format!("small {number}"));
    let queues: Vec<_> =
        ["a", "b", "c", "d", "e", "f"].map(str::to_string).into_iter().chain(small).collect();
    let clients: Vec<_> = queues
        .iter()
        .map(|queue| {
            let client = simulation.open(&[1]);
            make(simulation, client, queue, true);
            client
        })
        .collect();
    for (client, queue) in clients.into_iter().zip(&queues) {
        flood_by(simulation, client, queue, 4_000, PERSISTENT);
    }
}

fn make(simulation: &mut Simulation, client: usize, queue: &str, durable: bool) {
    let said = simulation.ask(client, 1, &declare_as(queue, durable));
    assert!(matches!(said.method(), Method::QueueDeclareOk { .. }), "{}", said.shown());
}

/// Declares durable queues, each with an entry in the index, until one is refused.
fn declare_until_refused(simulation: &mut Simulation) {
    let client = simulation.open(&[1]);
    for number in 0..400 {
        let queue = number.to_string();
        if !matches!(
            simulation.ask(client, 1, &declare_as(&queue, true)).method(),
            Method::QueueDeclareOk { .. }
        ) {
            return;
        }
    }
    panic!("there is no end of it");
}

fn flood_by(simulation: &mut Simulation, client: usize, queue: &str, body_len: usize, properties: &[u8]) {
    let body = vec![7; body_len];
    for _ in 0..10_000 {
        if simulation.clients[client].checker.is_blocked {
            return;
        }
        simulation.publish(client, 1, Publish { key: queue, properties, ..Publish::default() }, &body);
        simulation.run();
        simulation.pass_ms(if properties == PERSISTENT { 20 } else { 0 });
    }
    panic!("nothing makes it wait");
}

const PLAIN: &[u8] = &[0, 0];

const fn declare_as(queue: &str, durable: bool) -> Method<'_> {
    declare_with(queue, durable, Table::EMPTY)
}

fn order(simulation: &mut Simulation, operator: usize, method: &str, path: &str, body: &str) -> String {
    let length = body.len();
    let request = format!("{method} /api/{path} HTTP/1.1\r\nContent-Length: {length}\r\n\r\n{body}");
    simulation.operator(operator).write_up(request.as_bytes());
    simulation.run();
    let mut heard = Vec::new();
    simulation.operator(operator).read_down(usize::MAX, &mut heard);
    String::from_utf8(heard).expect("answers are text")
}

/// Provokes a cause. Returns the simulation, the expected parts of the alarm, and the next cause, if any.
fn bring_about(shortage: Shortage) -> (Simulation, &'static [&'static str], Option<Shortage>) {
    let queue = QueueId::from_index(0);
    match shortage {
        Shortage::QueueMemory(_) => {
            let mut simulation = Simulation::new(limits());
            flood(&mut simulation, HOSTILE, 8, PLAIN);
            let text = &[
                "memory: ",
                HOSTILE_SHOWN,
                "uses its whole share of the memory for messages, 201 of 320 (at most twice the free part)",
                "raise memory_limit",
            ];
            (simulation, text, Some(Shortage::Pool(Pool::Messages)))
        }
        Shortage::Pool(pool) => {
            let (simulation, text, next) = use_up(pool);
            (simulation, text, Some(next.map_or(Shortage::Returns, Shortage::Pool)))
        }
        Shortage::Returns => {
            let limits = Limits { output_buffer_bytes: 16 << 10, body_bytes_max: 4 << 20, ..limits() };
            let mut simulation = Simulation::new(limits);
            let manners = Manners { greed: 0, ..Manners::default() };
            let client =
                simulation.open_with(Manners::default(), Shape { down_room: 1 << 10, ..Shape::WIDE }, &[1]);
            simulation.clients[client].manners = manners;
            for _ in 0..100 {
                let publish = Publish { key: "nowhere", mandatory: true, ..Publish::default() };
                simulation.publish(client, 1, publish, &[7; 4_000]);
            }
            (simulation, &["room: a publisher does not read", "make it read"], Some(Shortage::Commit))
        }
        Shortage::Commit => {
            let mut simulation = with_store();
            let client = simulation.open(&[1]);
            make(&mut simulation, client, "slow", true);
            simulation.engine.platform_mut().helpers.slowness_ms = 3_600_000;
            for _ in 0..3_000 {
                let publish = Publish { key: "slow", properties: PERSISTENT, ..Publish::default() };
                simulation.publish(client, 1, publish, b"x");
            }
            (
                simulation,
                &["room: ", "messages wait to be written", "ends by itself"],
                Some(Shortage::Unwritable),
            )
        }
        Shortage::Unwritable => {
            let mut simulation = with_store();
            let client = simulation.open(&[1]);
            make(&mut simulation, client, "kept", true);
            let (_, context) = simulation.engine.broker_mut();
            context.pending_writes.start(2, false, 1 << 16);
            let publish = Publish { key: "kept", properties: PERSISTENT, ..Publish::default() };
            simulation.publish(client, 1, publish, b"x");
            (
                simulation,
                &["store: it cannot be written", "repair the disk"],
                Some(Shortage::QueueDisk(queue)),
            )
        }
        Shortage::QueueDisk(_) => {
            let mut simulation = with_store();
            flood(&mut simulation, HOSTILE, 4_000, PERSISTENT);
            let text = &["disk: ", HOSTILE_SHOWN, "uses its whole share of disk_limit: ", "raise disk_limit"];
            (simulation, text, Some(Shortage::DiskLimit))
        }
        Shortage::DiskLimit => {
            let mut simulation = with_store();
            flood_log(&mut simulation);
            let text = &["disk: disk_limit is reached", "queue 'a' (virtual host '/')", "raise disk_limit"];
            (simulation, text, Some(Shortage::Index))
        }
        Shortage::Index => {
            let (mut simulation, _) = with_index_of(4 << 10);
            declare_until_refused(&mut simulation);
            let client = simulation.open(&[1]);
            flood_by(&mut simulation, client, "0", 1, PERSISTENT);
            (
                simulation,
                &["disk: the memory for the index of the log is used up", "raise memory_limit"],
                Some(Shortage::FileSystem),
            )
        }
        Shortage::FileSystem => {
            let (mut simulation, disk) = with_index_of(2 << 20);
            let client = simulation.open(&[1]);
            make(&mut simulation, client, "a", true);
            disk.start(Trouble::NoCapacity(0, u64::MAX / 2));
            flood_by(&mut simulation, client, "a", 4_000, PERSISTENT);
            let text = &["disk: the file system of the data directory is full", "free space there"];
            (simulation, text, None)
        }
    }
}

/// Exhausts a pool by all clients together.
fn use_up(pool: Pool) -> (Simulation, &'static [&'static str], Option<Pool>) {
    match pool {
        Pool::Memory => {
            // Bodies and slots together are as large as both pools may be alone.
            let mut simulation = Simulation::with_extents(limits(), 40);
            flood_all(&mut simulation, 2_000);
            let text = &["memory: messages use up their part of memory_limit, ", "raise memory_limit"];
            (simulation, text, Some(Pool::Messages))
        }
        Pool::Messages => {
            let mut simulation = Simulation::new(limits());
            flood_all(&mut simulation, 8);
            let text = &[
                "memory: messages use up their part of memory_limit, 300 of 320, most by queue 'a' (virtual host '/')",
            ];
            (simulation, text, Some(Pool::Bodies))
        }
        Pool::Bodies => {
            let mut simulation = Simulation::new(limits());
            flood_all(&mut simulation, 20_000);
            let text = &[
                "memory: bodies of messages use up their part of memory_limit, ",
                " MB of 1.1 MB",
                "queue 'a'",
                "raise memory_limit",
            ];
            (simulation, text, Some(Pool::Assembly))
        }
        Pool::Assembly => {
            let limits = Limits { body_bytes_max: 4 << 20, message_size_max: 1 << 19, ..limits() };
            let mut simulation = Simulation::new(limits);
            for _ in 0..2 {
                let client = simulation.open(&[1]);
                let publish = Method::BasicPublish {
                    exchange: "",
                    routing_key: b"a",
                    mandatory: false,
                    immediate: false,
                };
                simulation.send(client, 1, &publish);
                let content = content_frames(1, PLAIN, &[7; 400_000], 4_000);
                simulation.clients[client].say(&content[..5_000]);
                simulation.run();
            }
            (
                simulation,
                &["memory: messages that are still being received use up their part of memory_limit"],
                Some(Pool::Entries),
            )
        }
        Pool::Entries => {
            let mut simulation = Simulation::new(Limits { queue_entries_max: 21 * 64, ..limits() });
            for number in 0..70 {
                let client = simulation.open(&[1]);
                let queue = number.to_string();
                simulation.declare(client, 1, &queue);
                simulation.publish_to(client, 1, &queue, b"x");
                simulation.run();
            }
            (
                simulation,
                &["memory: entries of queues use up their part of memory_limit", "raise memory_limit"],
                Some(Pool::Unacknowledged),
            )
        }
        Pool::Unacknowledged => {
            let mut simulation = Simulation::new(Limits { unacknowledged_max: 16, ..limits() });
            let client = simulation.open(&[1]);
            simulation.declare(client, 1, "unsettled");
            for _ in 0..20 {
                simulation.publish_to(client, 1, "unsettled", b"x");
            }
            for _ in 0..6 {
                let consumer = simulation.open(&[1]);
                simulation.consume(consumer, 1, "unsettled", "", false);
            }
            let publish = Publish { key: "nowhere", mandatory: true, ..Publish::default() };
            simulation.publish(client, 1, publish, b"x");
            (simulation, &["memory: unacknowledged deliveries use up their part of memory_limit"], None)
        }
    }
}

/// The number of blocked publishers, and how long the first has been blocked.
const SINCE: [&str; 2] = ["; 1 publisher has waited for ", " publishers have waited, the first for "];

/// Returns whether a configuration file may contain this key.
fn is_key_of_the_configuration(word: &str) -> bool {
    ["", "[limits]\n", "[store]\n"].into_iter().any(|section| {
        let read = Layer::parse("leveret.toml", &format!("{section}{word} = 1\n"));
        read.map_or_else(|error| !error.to_string().contains("unknown key"), |_| true)
    })
}

/// Returns the alarms as the command line shows them.
fn alarms(simulation: &mut Simulation) -> String {
    let operator = simulation.connect_operator(Shape::WIDE, 0);
    order(simulation, operator, "GET", "ctl/alarms", "")
}

#[test]
fn each_cause_that_blocks_publishers_has_an_alarm_with_its_object_and_remedy() {
    let mut next = Some(Shortage::QueueMemory(QueueId::from_index(0)));
    let mut wrong = Vec::new();
    while let Some(shortage) = next {
        let (mut simulation, parts, after) = bring_about(shortage);
        simulation.pass_ms(3_000);
        let told = alarms(&mut simulation).replace("\\\\", "\\");
        if !parts.iter().all(|part| told.contains(part))
            || !SINCE.iter().any(|since| told.contains(since))
            || told.contains("for 0 s")
        {
            wrong.push(format!("{shortage:?}: {parts:?}: {told}"));
        }
        for word in told.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_') {
            let is_key = word.ends_with("_max") || word.ends_with("_limit") || word.contains("memory_");
            assert!(!is_key || is_key_of_the_configuration(word), "{word} is no key: {told}");
        }
        next = after;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// While other messages fill the log and are compacted, a publisher waits now for the share of its queue and now for the
/// log. Its waiting time goes on, because it publishes nothing.
#[test]
fn a_publisher_that_waits_for_one_thing_after_another_has_waited_since_the_first() {
    let mut simulation = with_store();
    flood(&mut simulation, "deep", 4_000, PERSISTENT);
    let mut seen = [false; 2];
    for round in 0..3 {
        let others: Vec<_> = (0..40)
            .map(|number| {
                let (other, queue) = (simulation.open(&[1]), format!("passing {round} {number}"));
                make(&mut simulation, other, &queue, true);
                (other, queue)
            })
            .collect();
        for _ in 0..200 {
            for (other, queue) in &others {
                if !simulation.clients[*other].checker.is_blocked {
                    let publish = Publish { key: queue, properties: PERSISTENT, ..Publish::default() };
                    simulation.publish(*other, 1, publish, &[7; 4_000]);
                }
            }
            simulation.run();
            simulation.pass_ms(20);
            let alarms = alarms(&mut simulation);
            seen[0] |= alarms.contains("queue 'deep' (virtual host '/') uses its whole share")
                && alarms.contains("; 1 publisher has");
            seen[1] |= alarms.contains("disk_limit is reached") && alarms.contains("publishers have waited");
        }
        let sweeper = simulation.open(&[1]);
        for (other, queue) in &others {
            simulation.lose(*other);
            simulation.ask(sweeper, 1, &delete(queue));
        }
        simulation.pass_ms(500);
    }
    let told = alarms(&mut simulation);
    assert_eq!(seen, [true; 2], "the publisher waited for its share, and for the log");
    assert!(told.contains("; 1 publisher has waited for 13 s;"), "{told}");
}

/// Publishers wait for two queues and for the disk: the two queues have one alarm, and the disk has another.
#[test]
fn each_kind_of_cause_has_an_alarm_of_its_own() {
    let mut simulation = with_store();
    flood(&mut simulation, "deep", 4_000, PERSISTENT);
    for queue in ["transient", "other"] {
        flood(&mut simulation, queue, 8, PLAIN);
    }
    simulation.pass_ms(3_000);
    let alarms = alarms(&mut simulation);
    assert!(
        alarms.contains("disk: queue 'deep' (virtual host '/') uses its whole share of disk_limit: it has "),
        "{alarms}"
    );
    assert!(
        alarms.contains(
            "memory: queue 'transient' (virtual host '/') uses its whole share of the memory for messages, "
        ),
        "{alarms}"
    );
    let count = alarms.matches("; 1 publisher has waited for ").count();
    assert_eq!((count, alarms.matches(", and 1 other for something else").count()), (2, 1), "{alarms}");
}

/// Declares a queue whose messages expire after a minute and are dead-lettered to `letters`.
fn make_expiring(simulation: &mut Simulation, client: usize, queue: &str, letters: &str) {
    let mut bytes = [0; 256];
    let mut writer = Writer::new(&mut bytes);
    let arguments = writer.table(|t| {
        t.text("x-dead-letter-exchange", "")?;
        t.text("x-dead-letter-routing-key", letters)?;
        t.int("x-message-ttl", 60_000)
    });
    arguments.expect("it fits");
    let arguments = Table::trusted(&writer.written()[4..]);
    let said = simulation.ask(client, 1, &declare_with(queue, true, arguments));
    assert!(matches!(said.method(), Method::QueueDeclareOk { .. }), "{}", said.shown());
}

#[test]
fn expired_messages_are_dead_lettered_while_a_full_index_blocks_publishers() {
    let mut simulation =
        Simulation::new(Limits { messages_max: 16_000, body_bytes_max: 64 << 20, ..limits() });
    let settings = Settings {
        segment_bytes: 256 << 10,
        commit_bytes: 64 << 10,
        segments_max: 800,
        index_bytes: 14_000,
        fixed_index_bytes: 0,
        ..Settings::default()
    };
    let _disk = simulation.keep_on_disk(settings);
    let client = simulation.open(&[1]);
    make(&mut simulation, client, "dead", true);
    make_expiring(&mut simulation, client, "q", "dead");
    flood_by(&mut simulation, client, "q", 2_000, PERSISTENT);
    let other = simulation.open(&[1]);
    let (waiting, _) = simulation.counts(other, 1, "q");
    assert!(waiting > 100, "{waiting} messages fill it");
    for _ in 0..100 {
        simulation.pass_ms(1_000);
        simulation.run();
    }
    let (left, _) = simulation.counts(other, 1, "q");
    let (letters, _) = simulation.counts(other, 1, "dead");
    // One of them may be the message of the blocked publisher.
    assert!(
        left <= 1 && letters >= waiting,
        "of {waiting} messages {left} stay and {letters} are dead-lettered"
    );
}

/// Queues without consumers leave log space to others: a publisher to another queue proceeds while theirs
/// wait.
#[test]
fn queues_without_consumers_leave_log_space_to_other_queues() {
    for hogs in [1_u32, 3, 10] {
        let mut simulation =
            Simulation::new(Limits { messages_max: 4_000, body_bytes_max: 16 << 20, ..limits() });
        let (segment_bytes, commit_bytes) = (1 << 20, 256 << 10);
        let settings = Settings { segment_bytes, commit_bytes, segments_max: 24, ..Settings::default() };
        simulation.keep_on_disk(settings);
        let other = simulation.open(&[1]);
        make(&mut simulation, other, "other", true);
        let names: Vec<String> = (0..hogs).map(|number| format!("hog-{number}")).collect();
        let clients: Vec<usize> = names
            .iter()
            .map(|name| {
                let client = simulation.open(&[1]);
                make(&mut simulation, client, name, true);
                client
            })
            .collect();
        // All publishers act until each is blocked and compaction has freed all it can.
        let (mut rounds, mut still) = (0, 0);
        while still < 100 {
            let all_wait = clients.iter().all(|client| simulation.clients[*client].checker.is_blocked);
            still = if all_wait { still + 1 } else { 0 };
            for (client, name) in clients.iter().zip(&names) {
                if !simulation.clients[*client].checker.is_blocked {
                    let publish = Publish { key: name, properties: PERSISTENT, ..Publish::default() };
                    simulation.publish(*client, 1, publish, &[7; 16_000]);
                }
            }
            simulation.pass_ms(50);
            rounds += 1;
            assert!(rounds < 10_000, "{hogs} publishers are never blocked");
        }
        simulation.consume(other, 1, "other", "c", true);
        simulation.ask(other, 1, &Method::ConfirmSelect { no_wait: false });
        for round in 0..300 {
            let publish = Publish { key: "other", properties: PERSISTENT, ..Publish::default() };
            simulation.publish(other, 1, publish, &[7; 16_000]);
            simulation.pass_ms(100);
            assert_eq!(simulation.deliveries(other).len(), 1, "{hogs} hogs, round {round}");
            assert_eq!(simulation.clients[other].checker.unconfirmed(1), 0, "{hogs} hogs, round {round}");
            assert!(!simulation.clients[other].checker.is_blocked, "{hogs} hogs, round {round}");
        }
        assert!(clients.iter().all(|client| simulation.clients[*client].checker.is_blocked));
    }
}

/// Publishes to a full log from a worker that holds a delivery. Returns the worker.
fn worker_at_full_log(simulation: &mut Simulation, in_transaction: bool) -> usize {
    let client = simulation.open(&[1]);
    make(simulation, client, "jobs", true);
    make(simulation, client, "results", true);
    make(simulation, client, "tiny", true);
    for _ in 0..5 {
        simulation.publish(
            client,
            1,
            Publish { key: "tiny", properties: PERSISTENT, ..Publish::default() },
            b"x",
        );
    }
    simulation.publish(
        client,
        1,
        Publish { key: "jobs", properties: PERSISTENT, ..Publish::default() },
        b"job",
    );
    simulation.pass_ms(1_000);
    flood_log(simulation);
    let worker = simulation.open(&[1, 2]);
    simulation.consume(worker, 1, "jobs", "it", false);
    simulation.pass_ms(1_000);
    assert_eq!(simulation.deliveries(worker).len(), 1);
    if in_transaction {
        simulation.ask(worker, 2, &Method::TxSelect {});
    }
    let publish = Publish { key: "results", properties: PERSISTENT, ..Publish::default() };
    simulation.publish(worker, 2, publish, &[7; 4_000]);
    if in_transaction {
        simulation.send(worker, 2, &Method::TxCommit {});
    }
    simulation.run();
    worker
}

/// Returns code and text of the close of channel 2.
fn end_of_channel(simulation: &Simulation, client: usize) -> Option<(u16, String)> {
    simulation.clients[client].heard.iter().find_map(|said| match said.method() {
        Method::ChannelClose { reply_code, reply_text, .. } if said.channel == 2 => {
            Some((reply_code, reply_text.to_owned()))
        }
        _ => None,
    })
}

/// A worker that holds a delivery waits for disk space that others can free, like any publisher.
#[test]
fn a_worker_and_a_transaction_wait_for_disk_space_that_others_free() {
    for in_transaction in [false, true] {
        let mut simulation = with_store();
        let worker = worker_at_full_log(&mut simulation, in_transaction);
        simulation.pass_ms(50_000);
        assert_eq!(end_of_channel(&simulation, worker), None);
        assert!(simulation.clients[worker].checker.is_blocked, "in a transaction: {in_transaction}");
        let other = simulation.open(&[1]);
        simulation.ask(other, 1, &purge("a"));
        simulation.pass_ms(10_000);
        assert_eq!(
            (end_of_channel(&simulation, worker), simulation.counts(other, 1, "results").0),
            (None, 1)
        );
    }
}

/// The worker is not refused while other clients free something, however slowly. After 60 s without any
/// progress it is.
#[test]
fn a_worker_blocked_by_its_own_deliveries_is_refused_after_a_minute_without_progress() {
    for in_transaction in [false, true] {
        let mut simulation = with_store();
        let worker = worker_at_full_log(&mut simulation, in_transaction);
        let other = simulation.open(&[1]);
        // A message of one byte frees too little space, but shows that a client consumes.
        for _ in 0..3 {
            simulation.pass_ms(40_000);
            let got = simulation.ask(other, 1, &Method::BasicGet { queue: "tiny", no_ack: true });
            assert!(matches!(got.method(), Method::BasicGetOk { .. }), "{}", got.shown());
        }
        simulation.pass_ms(40_000);
        assert_eq!(end_of_channel(&simulation, worker), None, "in a transaction: {in_transaction}");
        assert!(simulation.clients[worker].checker.is_blocked, "in a transaction: {in_transaction}");
        simulation.pass_ms(50_000);
        let (code, text) = end_of_channel(&simulation, worker).expect("it is refused");
        assert_eq!(code, 506);
        assert!(text.contains("unacknowledged deliveries") && text.contains("disk_limit"), "{text}");
    }
}

/// A publisher without deliveries waits without a limit, also in a transaction.
#[test]
fn a_transaction_without_deliveries_waits_for_the_disk_for_as_long_as_it_takes() {
    let mut simulation = with_store();
    let client = simulation.open(&[2]);
    let other = simulation.open(&[1]);
    make(&mut simulation, other, "results", true);
    simulation.ask(client, 2, &Method::TxSelect {});
    flood_log(&mut simulation);
    simulation.publish(
        client,
        2,
        Publish { key: "results", properties: PERSISTENT, ..Publish::default() },
        &[7; 4_000],
    );
    simulation.send(client, 2, &Method::TxCommit {});
    simulation.pass_ms(600_000);
    assert_eq!(end_of_channel(&simulation, client), None);
    assert!(simulation.clients[client].checker.is_blocked);
    simulation.ask(other, 1, &purge("a"));
    simulation.pass_ms(10_000);
    assert_eq!((end_of_channel(&simulation, client), simulation.counts(other, 1, "results").0), (None, 1));
}

/// A transaction that is larger than the log is refused, because it would wait forever.
#[test]
fn a_transaction_larger_than_the_log_is_refused() {
    let mut simulation =
        Simulation::new(Limits { messages_max: 4_000, body_bytes_max: 16 << 20, ..limits() });
    let (segment_bytes, commit_bytes, segments_max) = (256 << 10, 64 << 10, 8);
    simulation.keep_on_disk(Settings { segment_bytes, commit_bytes, segments_max, ..Settings::default() });
    let client = simulation.open(&[1, 2]);
    make(&mut simulation, client, "q", true);
    simulation.ask(client, 2, &Method::TxSelect {});
    for _ in 0..60 {
        let publish = Publish { key: "q", properties: PERSISTENT, ..Publish::default() };
        simulation.publish(client, 2, publish, &[7; 16_000]);
    }
    simulation.pass_ms(1_000);
    let (code, text) = end_of_channel(&simulation, client).expect("it is refused");
    assert_eq!((code, text.contains("disk_limit")), (506, true), "{text}");
}

/// Each of two open transactions holds the disk space that the other waits for.
///
/// After a minute one of them is refused, and the other is committed. Otherwise both would wait forever, and
/// so would all later publishers.
#[test]
fn of_two_transactions_that_wait_for_each_other_one_is_refused_after_a_minute() {
    let mut simulation =
        Simulation::new(Limits { messages_max: 4_000, body_bytes_max: 16 << 20, ..limits() });
    let (segment_bytes, commit_bytes, segments_max) = (256 << 10, 64 << 10, 16);
    simulation.keep_on_disk(Settings { segment_bytes, commit_bytes, segments_max, ..Settings::default() });
    let clients = [simulation.open(&[1, 2]), simulation.open(&[1, 2])];
    make(&mut simulation, clients[0], "q", true);
    for client in clients {
        simulation.ask(client, 2, &Method::TxSelect {});
    }
    let is_blocked = |simulation: &Simulation, client: usize| simulation.clients[client].checker.is_blocked;
    let mut published = [0, 0];
    for _ in 0..200 {
        for (client, count) in clients.into_iter().zip(&mut published) {
            if !is_blocked(&simulation, client) {
                let publish = Publish { key: "q", properties: PERSISTENT, ..Publish::default() };
                simulation.publish(client, 2, publish, &[7; 16_000]);
                simulation.pass_ms(20);
                *count += 1;
            }
        }
    }
    assert!(
        clients.into_iter().all(|client| is_blocked(&simulation, client)),
        "both wait after {published:?}"
    );
    clients.into_iter().for_each(|client| simulation.send(client, 2, &Method::TxCommit {}));
    simulation.pass_ms(50_000);
    assert!(clients.into_iter().all(|client| end_of_channel(&simulation, client).is_none()));
    simulation.pass_ms(60_000);
    let ends = clients.map(|client| end_of_channel(&simulation, client));
    let refused: Vec<_> = ends.iter().flatten().collect();
    let [(code, text)] = refused[..] else { panic!("not one is refused: {ends:?}") };
    assert!(*code == 506 && text.contains("open transactions") && text.contains("disk_limit"), "{text}");
    let at = usize::from(ends[0].is_some());
    let is_committed = |said: &Said| matches!(said.method(), Method::TxCommitOk {});
    assert!(simulation.clients[clients[at]].heard.iter().any(is_committed));
    let other = simulation.open(&[1]);
    assert_eq!(simulation.counts(other, 1, "q").0, published[at]);
}

/// For a store that cannot be written, the text mentions publishing, not declaring.
#[test]
fn a_worker_gets_an_error_if_the_store_cannot_be_written() {
    let mut simulation = with_store();
    let client = simulation.open(&[1, 2]);
    make(&mut simulation, client, "kept", true);
    simulation.declare(client, 1, "jobs");
    simulation.publish_to(client, 1, "jobs", b"job");
    simulation.consume(client, 1, "jobs", "it", false);
    let (_, context) = simulation.engine.broker_mut();
    context.pending_writes.start(2, false, 1 << 16);
    let publish = Publish { key: "kept", properties: PERSISTENT, ..Publish::default() };
    simulation.publish(client, 2, publish, b"x");
    simulation.run();
    let (code, text) = end_of_channel(&simulation, client).expect("it is refused");
    assert_eq!(code, 506);
    assert!(text.contains("persistent messages are not accepted") && !text.contains("declared"), "{text}");
}

/// The sync budget delays a lone message, but no commit that is full, because it would save no sync.
#[test]
fn the_sync_budget_does_not_delay_full_commits() {
    let mut simulation =
        Simulation::new(Limits { messages_max: 4_000, body_bytes_max: 16 << 20, ..limits() });
    let settings = Settings {
        segment_bytes: SEGMENT_BYTES,
        commit_bytes: 64 << 10,
        segments_max: SEGMENTS,
        syncs_per_s: 1,
        sync_burst: 1,
        confirm_window_ms: 50,
        ..Settings::default()
    };
    simulation.keep_on_disk(settings);
    let client = simulation.open(&[1]);
    simulation.send(client, 1, &declare_as("q", true));
    simulation.pass_ms(30_000);
    simulation.ask(client, 1, &Method::ConfirmSelect { no_wait: false });
    let publish = |simulation: &mut Simulation, body: &[u8]| {
        let publish = Publish { key: "q", properties: PERSISTENT, ..Publish::default() };
        simulation.publish(client, 1, publish, body);
    };
    let unconfirmed = |simulation: &Simulation| simulation.clients[client].checker.unconfirmed(1);
    for (body_len, count, most) in [(1, 1, 0), (1, 1, 1), (1_000, 320, 64)] {
        for _ in 0..count {
            publish(&mut simulation, &vec![7; body_len]);
        }
        simulation.pass_ms(300);
        assert!(unconfirmed(&simulation) <= most, "{} of {count} wait", unconfirmed(&simulation));
        assert!(count > 1 || unconfirmed(&simulation) == most);
    }
    simulation.pass_ms(1_500);
    assert_eq!(unconfirmed(&simulation), 0);
}

/// A publisher that waits for each confirm can find out that the sync budget slows it down.
#[test]
fn confirm_delays_by_the_sync_budget_are_reported_everywhere() {
    let mut simulation = Simulation::new(limits());
    let settings = Settings { syncs_per_s: 5, sync_burst: 1, confirm_window_ms: 200, ..Settings::default() };
    simulation.keep_on_disk(settings);
    let client = simulation.open(&[1]);
    simulation.send(client, 1, &declare_as("q", true));
    simulation.pass_ms(30_000);
    let operator = simulation.connect_operator(Shape::WIDE, 0);
    let before = order(&mut simulation, operator, "GET", "overview", "");
    assert!(before.contains("\"is_over_sync_budget\":0"), "{before}");
    simulation.ask(client, 1, &Method::ConfirmSelect { no_wait: false });
    for _ in 0..10 {
        let publish = Publish { key: "q", properties: PERSISTENT, ..Publish::default() };
        simulation.publish(client, 1, publish, b"x");
        // The next message is published as soon as this one is confirmed.
        for _ in 0..60 {
            simulation.pass_ms(5);
            if simulation.clients[client].checker.unconfirmed(1) == 0 {
                break;
            }
        }
        assert_eq!(simulation.clients[client].checker.unconfirmed(1), 0);
    }
    simulation.publish(client, 1, Publish { key: "q", properties: PERSISTENT, ..Publish::default() }, b"x");
    simulation.pass_ms(20);
    let shown = order(&mut simulation, operator, "GET", "connections", "");
    assert!(shown.contains("\"state\":\"flow\""), "{shown}");
    let overview = order(&mut simulation, operator, "GET", "overview", "");
    assert!(overview.contains("\"is_over_sync_budget\":1"), "{overview}");
    let metrics = simulation.connect_metrics(Shape::WIDE, [127, 0, 0, 1]);
    let told = super::management::ask(&mut simulation, metrics, &super::management::get("/metrics", ""));
    let value = |name: &str| {
        let line = told.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name}"));
        line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok()).expect("a number")
    };
    assert!(value("leveret_sync_budget_delayed_commits_total ") >= 5.0);
    assert_eq!(
        value("leveret_confirm_latency_seconds_count "),
        value("leveret_confirm_latency_seconds_bucket{le=\"+Inf\"}")
    );
    assert!(value("leveret_confirm_latency_seconds_count ") >= 10.0);
    assert!(value("leveret_confirm_latency_seconds_sum ") >= 1.0, "most wait for 200 ms");
    assert_eq!(value("leveret_alarms{alarm=\"disk\"}"), 0.0);
    assert!(value("leveret_store_live_bytes ") > 0.0);
    assert!(!told.contains("board_temperature"), "what is not known is left out");
}
