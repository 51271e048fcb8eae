//! Delayed exchanges: which messages are delayed, what releases them, power cuts and clock changes.

use leveret_amqp::{Full, TableWriter};
use leveret_broker::ExchangeView;
use leveret_core::command::{
    ChannelCommand, DefinitionAnswer, DefinitionCommand, PublishAnswer, PublishCommand, Settlement,
};
use leveret_core::error::{Fault, ReplyCode};
use leveret_core::limits::Limits;
use leveret_queues::{PageInOutcome, ReadMessage};

use crate::dead_letters::{BrokerRun, declare, disk, empty, filled, got, message_to, publish, table};
use crate::expiry::pass_to;
use crate::spilling::store;
use crate::support::{At, TestBroker};
use leveret_test_support::random::Random;
use leveret_test_support::simulated_disk::{Mutant, SimDisk, Trouble};

/// A time at which no slot of any width begins.
const START_MS: u64 = 1_234_567_891;

fn exchange(node: &mut TestBroker, at: At, name: &str, kind: &str, durable: bool) {
    let arguments = table(|t| t.text("x-delayed-type", kind));
    let outcome = declared(node, at, name, durable, &arguments);
    assert_eq!(outcome, Ok(DefinitionAnswer::Done));
}

fn declared(
    node: &mut TestBroker,
    at: At,
    exchange: &str,
    durable: bool,
    arguments: &[u8],
) -> Result<DefinitionAnswer, Fault> {
    let (kind, passive, auto_delete, internal) = ("x-delayed-message", false, false, false);
    node.ask(
        at,
        DefinitionCommand::ExchangeDeclare {
            exchange,
            kind,
            passive,
            durable,
            auto_delete,
            internal,
            arguments,
        },
    )
}

fn bind(node: &mut TestBroker, at: At, (exchange, routing_key): (&str, &str), queue: &str, arguments: &[u8]) {
    node.done(at, DefinitionCommand::QueueBind { queue, exchange, routing_key, arguments });
}

/// Returns properties with these headers, persistent or not.
fn headers(persistent: bool, fill: impl FnOnce(&mut TableWriter<'_, '_>) -> Result<(), Full>) -> Vec<u8> {
    let headers = table(fill);
    let mut properties = vec![if persistent { 0x30 } else { 0x20 }, 0];
    properties.extend((headers.len() as u32).to_be_bytes());
    properties.extend(&headers);
    properties.extend(persistent.then_some(2));
    properties
}

fn send(
    node: &mut TestBroker,
    at: At,
    delay_ms: i64,
    persistent: bool,
    body: &str,
) -> Result<PublishAnswer, Fault> {
    let properties = headers(persistent, |t| t.long("x-delay", delay_ms));
    send_as(node, at, ("delayed", "q"), &properties, body)
}

fn send_as(
    node: &mut TestBroker,
    at: At,
    (exchange, key): (&str, &str),
    properties: &[u8],
    body: &str,
) -> Result<PublishAnswer, Fault> {
    let message = message_to(node, exchange, key, properties, body.as_bytes());
    node.ask(at, PublishCommand::Publish { message, mandatory: true })
}

/// Declares a delayed exchange with a queue.
fn ready(node: &mut TestBroker, at: At, durable: bool) {
    exchange(node, at, "delayed", "direct", durable);
    declare(node, at, "q", durable, &[]);
    bind(node, at, ("delayed", "q"), "q", &[]);
}

fn view<'a>(node: &'a TestBroker, name: &str) -> ExchangeView<'a> {
    let mut all = node.broker.views().exchanges();
    all.find(|view| view.name == name).expect("it is there")
}

fn asleep(node: &TestBroker) -> u64 {
    view(node, "delayed").messages_delayed.expect("it is a delayed one")
}

#[test]
fn delayed_messages_are_released_in_the_order_of_their_times() {
    let mut node = TestBroker::new(64);
    node.pending_writes.set_time(START_MS);
    let at = node.connect();
    ready(&mut node, at, false);
    for (delay_ms, body) in [(30, "c"), (10, "a"), (20, "b1"), (20, "b2"), (100_000, "e"), (20_000, "d")] {
        assert_eq!(send(&mut node, at, delay_ms, false, body), Ok(PublishAnswer::Published));
    }
    node.turns(at);
    assert_eq!((node.ready(at, "q"), asleep(&node)), (0, 6));
    for (after_ms, bodies) in
        [(10, &["a"][..]), (20, &["b1", "b2"]), (30, &["c"]), (20_000, &["d"]), (100_000, &["e"])]
    {
        pass_to(&mut node, at, START_MS + after_ms - 1);
        assert_eq!(node.ready(at, "q"), 0, "too early for {bodies:?}");
        while let Some(next) =
            node.broker.queues().next_expiry_ms().filter(|next| *next < START_MS + after_ms)
        {
            pass_to(&mut node, at, next);
        }
        let due = node.broker.queues().next_expiry_ms();
        assert_eq!(due, Some(START_MS + after_ms), "the loop sleeps until then");
        pass_to(&mut node, at, START_MS + after_ms);
        assert_eq!(empty(&mut node, at, "q"), bodies);
    }
    assert_eq!((asleep(&node), node.broker.queues().next_expiry_ms()), (0, None));
    assert_eq!(node.messages.messages_used(), 0);
}

/// The negative x-delay takes three bytes more than the published one. It gives way, so that the message arrives.
#[test]
fn headers_that_fill_a_frame_make_no_delayed_message_vanish() {
    const HEADER_FRAME_BYTES: usize = 20;
    for free in 0..=4 {
        let mut node = TestBroker::new(64);
        node.pending_writes.set_time(START_MS);
        let at = node.connect();
        ready(&mut node, at, false);
        let filler = [b'x'; 1 << 17];
        let bytes = Limits::default().frame_max as usize - HEADER_FRAME_BYTES - free;
        // Flags, the length of the table, an octet as x-delay, and the name and length of the filler.
        let filler = &filler[..bytes - (2 + 4) - (8 + 2) - (2 + 5)];
        let mut entries = b"\x07x-delayb\x64\x01lS".to_vec();
        entries.extend((filler.len() as u32).to_be_bytes());
        entries.extend(filler);
        let properties = [b"\x20\0", &(entries.len() as u32).to_be_bytes()[..], &entries].concat();
        assert_eq!(properties.len(), bytes);
        assert_eq!(send_as(&mut node, at, ("delayed", "q"), &properties, "x"), Ok(PublishAnswer::Published));
        pass_to(&mut node, at, START_MS + 1_000);
        let released = got(&mut node, at, "q");
        let delay = released.headers().get("x-delay").and_then(|value| value.as_integer());
        assert_eq!(delay, (free >= 3).then_some(-100));
        assert!(released.headers().get("l").is_some());
        assert_eq!(node.broker.counters().headers_shortened, u64::from(free < 3));
    }
}

#[test]
fn released_messages_have_a_negative_delay_and_invalid_delays_are_ignored() {
    let mut node = TestBroker::new(64);
    node.pending_writes.set_time(START_MS);
    let at = node.connect();
    ready(&mut node, at, false);
    let properties = headers(false, |t| {
        t.text("z", "last")?;
        t.int("x-delay", 5_000)?;
        t.text("a", "first")
    });
    send_as(&mut node, at, ("delayed", "q"), &properties, "x").unwrap();
    pass_to(&mut node, at, START_MS + 5_000);
    let message = got(&mut node, at, "q");
    let said = message.headers();
    assert_eq!(said.get("x-delay").and_then(|value| value.as_integer()), Some(-5_000));
    assert_eq!(said.get("a").and_then(|value| value.as_str()), Some("first"));
    assert_eq!(said.get("z").and_then(|value| value.as_str()), Some("last"));
    let none = [
        headers(false, |t| t.int("x-delay", 0)),
        headers(false, |t| t.int("x-delay", -5)),
        headers(false, |t| t.long("x-delay", 1 << 32)),
        headers(false, |t| t.text("x-delay", "soon")),
        headers(false, |t| t.bool("x-delay", true)),
        vec![0, 0],
    ];
    for properties in none {
        send_as(&mut node, at, ("delayed", "q"), &properties, "now").unwrap();
        assert_eq!(empty(&mut node, at, "q"), ["now"]);
    }
    assert_eq!(asleep(&node), 0);
}

#[test]
fn delayed_messages_are_routed_by_the_declared_exchange_type() {
    let mut node = TestBroker::new(64);
    node.pending_writes.set_time(START_MS);
    let at = node.connect();
    for (kind, key, bound) in
        [("direct", "a.b", "a.b"), ("topic", "a.b", "a.*"), ("fanout", "a", "b"), ("headers", "a", "b")]
    {
        exchange(&mut node, at, kind, kind, false);
        declare(&mut node, at, kind, false, &[]);
        declare(&mut node, at, "other", false, &[]);
        let arguments = table(|t| t.text("colour", "red"));
        bind(&mut node, at, (kind, bound), kind, if kind == "headers" { &arguments } else { &[] });
        let other = table(|t| t.text("colour", "blue"));
        if kind != "fanout" {
            bind(&mut node, at, (kind, "other"), "other", if kind == "headers" { &other } else { &[] });
        }
        let properties = headers(false, |t| {
            t.text("colour", "red")?;
            t.int("x-delay", 100)
        });
        let now_ms = node.pending_writes.time_ms();
        send_as(&mut node, at, (kind, key), &properties, kind).unwrap();
        node.turns(at);
        assert_eq!(node.ready(at, kind), 0);
        pass_to(&mut node, at, now_ms + 100);
        assert_eq!((empty(&mut node, at, kind), node.ready(at, "other")), (vec![kind.to_string()], 0));
        assert_eq!(view(&node, kind).kind, "x-delayed-message");
    }
}

#[test]
fn invalid_delayed_exchanges_are_refused_with_the_plug_ins_error_texts() {
    let mut node = TestBroker::new(64);
    let at = node.connect();
    let text = |answer: Result<DefinitionAnswer, Fault>| match answer {
        Err(fault) => (fault.code, fault.text.to_string()),
        other => panic!("{other:?}"),
    };
    let wrong = "PRECONDITION_FAILED - Invalid argument, 'x-delayed-type' must be an existing exchange type";
    let arguments = [
        vec![],
        table(|t| t.int("x-delayed-type", 1)),
        table(|t| t.text("x-delayed-type", "x-delayed-message")),
    ];
    for arguments in arguments {
        let said = text(declared(&mut node, at, "d", false, &arguments));
        assert_eq!(said, (ReplyCode::PreconditionFailed, wrong.to_string()));
    }
    let unknown = table(|t| t.text("x-delayed-type", "colour"));
    let said = text(declared(&mut node, at, "d", false, &unknown));
    assert_eq!(
        said,
        (ReplyCode::CommandInvalid, "COMMAND_INVALID - unknown exchange type 'colour'".to_string())
    );
    assert_eq!((node.broker.gauges().queues, node.broker.gauges().exchanges), (0, 0), "nothing is left");
    exchange(&mut node, at, "d", "topic", false);
    // Once it exists, its type is not checked again.
    assert_eq!(declared(&mut node, at, "d", false, &[]), Ok(DefinitionAnswer::Done));
    let said = text(declared(&mut node, at, "d", true, &[]));
    assert_eq!(said.0, ReplyCode::PreconditionFailed);
    let (kind, passive, durable, auto_delete, internal) = ("topic", false, false, false, false);
    let plain = DefinitionCommand::ExchangeDeclare {
        exchange: "d",
        kind,
        passive,
        durable,
        auto_delete,
        internal,
        arguments: &[],
    };
    let said = text(node.ask(at, plain)).1;
    assert!(said.contains("received 'topic' but current is 'x-delayed-message'"), "{said}");
}

#[test]
fn delayed_messages_are_invisible_and_deleted_with_their_exchange() {
    for durable in [false, true] {
        let mut node = TestBroker::new(64);
        node.pending_writes.set_time(START_MS);
        let at = node.connect();
        ready(&mut node, at, durable);
        for delay_ms in [1, 1_000, 10_000, 1 << 20, 1 << 31] {
            send(&mut node, at, delay_ms, durable, "x").unwrap();
        }
        pass_to(&mut node, at, START_MS + 500);
        assert_eq!((asleep(&node), node.ready(at, "q")), (4, 1));
        let names = |node: &TestBroker| -> Vec<String> {
            let all = node.broker.views().queues();
            all.map(|view| view.name.to_string()).collect()
        };
        assert_eq!(names(&node), ["q"]);
        publish(&mut node, at, "", &[0, 0], "to nobody").unwrap();
        assert_eq!(asleep(&node), 4);
        node.done(at, DefinitionCommand::ExchangeDelete { exchange: "delayed", if_unused: false });
        node.turns(at);
        pass_to(&mut node, at, START_MS + (1 << 33));
        let gauges = node.broker.gauges();
        assert_eq!((gauges.queues, gauges.exchanges, node.messages.messages_used()), (1, 0, 1));
        exchange(&mut node, at, "delayed", "direct", durable);
        assert_eq!(asleep(&node), 0);
    }
}

#[test]
fn messages_are_delayed_whatever_their_source() {
    let mut node = TestBroker::new(64);
    node.pending_writes.set_time(START_MS);
    let at = node.connect();
    ready(&mut node, at, false);
    declare(&mut node, at, "at once", false, &[]);
    bind(&mut node, at, ("amq.fanout", ""), "at once", &[]);
    node.done(
        at,
        DefinitionCommand::ExchangeBind {
            destination: "delayed",
            source: "amq.fanout",
            routing_key: "",
            arguments: &[],
        },
    );
    let properties = headers(false, |t| t.int("x-delay", 100));
    send_as(&mut node, at, ("amq.fanout", "q"), &properties, "fanned out").unwrap();
    assert_eq!((empty(&mut node, at, "at once"), asleep(&node)), (vec!["fanned out".to_string()], 1));
    // A dead letter with a delay.
    let arguments = table(|t| {
        t.text("x-dead-letter-exchange", "delayed")?;
        t.text("x-dead-letter-routing-key", "q")
    });
    declare(&mut node, at, "work", false, &arguments);
    publish(&mut node, at, "work", &headers(false, |t| t.int("x-delay", 200)), "failed").unwrap();
    let failed = got(&mut node, at, "work");
    node.settle(at, failed.tag, false, Settlement::Reject);
    // A transaction.
    let tx = node.open(at, 2);
    node.done(tx, ChannelCommand::TxSelect);
    send(&mut node, tx, 300, false, "committed").unwrap();
    assert_eq!(asleep(&node), 2);
    node.done(tx, ChannelCommand::TxCommit);
    node.turns(at);
    assert_eq!(asleep(&node), 3);
    for (after_ms, body) in [(100, "fanned out"), (200, "failed"), (300, "committed")] {
        pass_to(&mut node, at, START_MS + after_ms);
        assert_eq!(empty(&mut node, at, "q"), [body]);
    }
}

#[test]
fn a_message_with_an_expiration_expires_only_after_its_release() {
    let mut node = TestBroker::new(64);
    node.pending_writes.set_time(START_MS);
    let at = node.connect();
    ready(&mut node, at, false);
    for ms in ["0", "50"] {
        let mut properties = headers(false, |t| t.int("x-delay", 1_000));
        properties[0] |= 0x01;
        properties.push(ms.len() as u8);
        properties.extend(ms.as_bytes());
        send_as(&mut node, at, ("delayed", "q"), &properties, ms).unwrap();
    }
    pass_to(&mut node, at, START_MS + 999);
    assert_eq!(asleep(&node), 2);
    pass_to(&mut node, at, START_MS + 1_000);
    pass_to(&mut node, at, START_MS + 1_049);
    assert_eq!((asleep(&node), node.ready(at, "q")), (0, 1));
    pass_to(&mut node, at, START_MS + 1_050);
    assert_eq!(node.ready(at, "q"), 0);
}

#[test]
fn without_capacity_messages_are_delayed_longer() {
    let mut node = TestBroker::with(&Limits { messages_max: 64, ..Limits::default() });
    node.pending_writes.set_time(START_MS);
    let at = node.connect();
    ready(&mut node, at, false);
    send(&mut node, at, 10, false, "1").unwrap();
    send(&mut node, at, 20, false, "2").unwrap();
    let mut held = filled(&mut node);
    pass_to(&mut node, at, START_MS + 30);
    assert_eq!((node.ready(at, "q"), asleep(&node)), (0, 2));
    assert_eq!(node.broker.queues().next_expiry_ms(), None, "only capacity makes a difference");
    assert!(
        !node.broker.may_expire_or_trim(&node.pending_writes, &node.messages),
        "it is not retried forever"
    );
    held.drain(..4).for_each(|id| node.messages.release(id));
    node.turns(at);
    assert_eq!(empty(&mut node, at, "q"), ["1", "2"]);
    held.into_iter().for_each(|id| node.messages.release(id));
}

/// Many more messages than fit into memory, over all possible delays, in one clock step and in many. They are
/// released in order, and no turn releases all.
#[test]
fn thousands_are_released_in_order_and_a_turn_releases_a_bounded_number() {
    for jumps in [1_u64, 40] {
        for bits in [8, 14, 20, 32] {
            let mut node = TestBroker::with(&Limits { messages_max: 12_000, ..Limits::default() });
            node.pending_writes.set_time(START_MS);
            let at = node.connect();
            ready(&mut node, at, false);
            let mut random = Random::new(bits);
            for _ in 0..4_000 {
                let delay_ms = 1 + random.below((1 << bits) - 1);
                send(&mut node, at, delay_ms as i64, false, &format!("{}", START_MS + delay_ms)).unwrap();
            }
            let mut came: Vec<u64> = Vec::new();
            for jump in 1..=jumps {
                node.pending_writes.set_time(START_MS + (1 << bits) * jump / jumps);
                let before = node.ready(at, "q");
                node.turn(at);
                let count = node.ready(at, "q") - before;
                assert!(count <= 512, "{count} in a turn");
                node.turns(at);
                let bodies = empty(&mut node, at, "q");
                came.extend(bodies.iter().map(|body| body.parse::<u64>().unwrap()));
            }
            assert_eq!((came.len(), asleep(&node)), (4_000, 0), "{bits} bits, {jumps} jumps");
            // Messages that are due within 4 ms may be one step when there are too many.
            assert!(came.is_sorted_by_key(|due| due >> 2), "{bits} bits, {jumps} jumps: out of order");
            assert_eq!(node.messages.messages_used(), 0);
        }
    }
}

/// Two hundred thousand delayed messages: they use disk space, not memory.
#[test]
fn memory_does_not_depend_on_the_number_of_delayed_messages() {
    const COUNT: u64 = 200_000;
    let limits = Limits { messages_max: 4_000, queue_entries_max: 8_192, ..Limits::default() };
    let mut node = TestBroker::with(&limits);
    node.pending_writes.start(1, true, 1 << 20);
    node.pending_writes.set_log_free_bytes(u64::MAX, u64::MAX, false);
    node.pending_writes.set_time(START_MS);
    let at = node.connect();
    ready(&mut node, at, true);
    let mut random = Random::new(1);
    let mut most = 0;
    for _ in 0..COUNT {
        let delay_ms = 3_600_000 + random.below(1 << 20) as i64;
        assert_eq!(send(&mut node, at, delay_ms, true, "x"), Ok(PublishAnswer::Published));
        store(&mut node);
        while node.broker.evict(&mut context!(node)) {}
        most = most.max(node.messages.messages_used());
    }
    let gauges = node.broker.gauges();
    assert_eq!(asleep(&node), COUNT);
    assert!(most < 4_000 && gauges.queues < 12, "{most} messages in memory, {} slots", gauges.queues);
    // An entry is a message in memory or a run of any length on the disk; separately they would use 6,400.
    assert!(gauges.chunks < 200, "{} chunks", gauges.chunks);
    // They are read back from the disk in parts.
    node.pending_writes.set_time(START_MS + 3_600_000);
    let mut asked = 0;
    for _ in 0..100 {
        node.turns(at);
        let Some(fetch) = node.broker.queues_mut().next_read(&node.messages) else { break };
        asked += 1;
        let properties = headers(true, |t| t.long("x-delay", 3_600_000));
        let mut through = fetch.end.min(fetch.start + 100);
        for offset in fetch.start..through {
            let (exchange, routing_key, enqueued_ms) = ("delayed", &b"q"[..], START_MS);
            let page = ReadMessage {
                offset,
                exchange,
                routing_key,
                properties: &properties,
                body_len: 1,
                enqueued_ms,
            };
            match node.broker.queues_mut().page_in(&mut node.messages, &fetch, &page) {
                PageInOutcome::Begun(id) => {
                    node.messages.append_body(id, b"x");
                    assert!(node.broker.queues_mut().paged_in(
                        &mut context!(node),
                        &fetch,
                        offset,
                        START_MS,
                        id
                    ));
                }
                _ => {
                    through = offset;
                    break;
                }
            }
        }
        node.broker.queues_mut().end_read(&fetch, through);
        store(&mut node);
        while node.broker.evict(&mut context!(node)) {}
        most = most.max(node.messages.messages_used());
    }
    assert!(asked > 3 && most < 4_000, "{asked} reads, {most} messages in memory");
}

// ---- with power cuts

/// Publishes, loses power, delays, and continues. Each message is released once, at its time, in order.
#[test]
fn delayed_messages_are_released_in_time_over_any_number_of_restarts() {
    for seed in 0..12 {
        let mut random = Random::new(seed);
        let disk = disk();
        let mut now_ms = START_MS;
        let mut expected: Vec<(u64, u64)> = Vec::new();
        let (mut came, mut serial): (Vec<(u64, u64)>, u64) = (Vec::new(), 0);
        for run in 0..8 {
            let mut node = BrokerRun::begin(&disk).expect("it opens");
            let at = node.at;
            node.node.pending_writes.set_time(now_ms);
            if run == 0 {
                ready(&mut node.node, at, true);
            } else if random.below(2) == 0 {
                // Before the content of the slots is known.
                send_dated(&mut node.node, at, &mut random, (now_ms, &mut serial), &mut expected);
            }
            node.read_back();
            let steps = if run == 7 { 400 } else { random.below(20) };
            for _ in 0..steps {
                if run < 7 {
                    for _ in 0..random.below(6) {
                        send_dated(&mut node.node, at, &mut random, (now_ms, &mut serial), &mut expected);
                    }
                }
                let bits = 1 + random.below(20);
                now_ms += if run < 7 { 1 + random.below(1 << bits) } else { 1 << 24 };
                node.node.pending_writes.set_time(now_ms);
                node.read_back();
                for body in node.empty("q") {
                    let (due, number) = body.split_once(' ').unwrap();
                    let message = (due.parse().unwrap(), number.parse().unwrap());
                    assert!(message.0 <= now_ms, "seed {seed}: {} ms too early", message.0 - now_ms);
                    came.push(message);
                }
                let late = expected
                    .iter()
                    .filter(|(due, number)| *due <= now_ms && !came.contains(&(*due, *number)));
                assert_eq!(late.count(), 0, "seed {seed}, run {run}: late");
            }
            node.node.turns(at);
            node.store().expect("the disk is well");
            drop(node);
            disk.power_cut();
            disk.start(Trouble::Never);
        }
        expected.sort_unstable();
        let mut sorted = came.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, expected, "seed {seed}: each once");
    }
}

fn send_dated(
    node: &mut TestBroker,
    at: At,
    random: &mut Random,
    (now_ms, serial): (u64, &mut u64),
    expected: &mut Vec<(u64, u64)>,
) {
    let bits = 1 + random.below(31);
    let delay_ms = 1 + random.below(1 << bits);
    *serial += 1;
    let due = now_ms + delay_ms;
    assert_eq!(
        send(node, at, delay_ms as i64, true, &format!("{due} {serial}")),
        Ok(PublishAnswer::Published)
    );
    expected.push((due, *serial));
}

/// Some messages are moved to narrower slots, some are routed, and the power fails at every call in turn.
/// Each message is in one place.
#[test]
fn over_power_cuts_a_message_is_either_delayed_or_released() {
    const COUNT: u64 = 24;
    let (mut before, mut behind) = (0, 0);
    for cut in 0.. {
        let disk = SimDisk::new(cut, Mutant::None, crate::dead_letters::IDENTITY);
        disk.start(Trouble::Never);
        let mut run = BrokerRun::begin(&disk).expect("it opens");
        let at = run.at;
        run.node.pending_writes.set_time(START_MS);
        ready(&mut run.node, at, true);
        for number in 0..COUNT {
            send(&mut run.node, at, 1_000_000 + 20_000 * number as i64, true, "x").unwrap();
        }
        run.store().expect("the disk is well");
        disk.foresee(Trouble::Cut(cut));
        let is_over = (0..15).all(|step| {
            run.node.pending_writes.set_time(START_MS + 1_000_000 + 20_000 * step);
            run.node.turns(at);
            run.store().is_some()
        });
        drop(run);
        disk.power_cut();
        disk.start(Trouble::Never);
        let mut run = BrokerRun::begin(&disk).expect("it opens");
        let awake = u64::from(run.node.ready(run.at, "q"));
        let asleep = asleep(&run.node);
        assert_eq!(awake + asleep, COUNT, "cut {cut}: {awake} awake, {asleep} asleep");
        before += u32::from(awake == 0);
        behind += u32::from(awake > 0);
        if is_over {
            assert_eq!(awake, 15, "all was written");
            break;
        }
    }
    assert!(before > 1 && behind > 10, "{before} cuts before, {behind} behind");
}

/// The power fails while a delayed exchange is deleted: it exists with its delayed messages, or neither does.
#[test]
fn over_power_cuts_an_exchange_is_deleted_with_its_delayed_messages() {
    for cut in 0.. {
        let disk = SimDisk::new(cut, Mutant::None, crate::dead_letters::IDENTITY);
        disk.start(Trouble::Never);
        let mut run = BrokerRun::begin(&disk).expect("it opens");
        let at = run.at;
        run.node.pending_writes.set_time(START_MS);
        ready(&mut run.node, at, true);
        for delay_ms in [1_000, 100_000, 10_000_000] {
            send(&mut run.node, at, delay_ms, true, "x").unwrap();
        }
        run.store().expect("the disk is well");
        disk.foresee(Trouble::Cut(cut));
        run.node.done(at, DefinitionCommand::ExchangeDelete { exchange: "delayed", if_unused: false });
        run.node.turns(at);
        let is_over = run.store().is_some();
        drop(run);
        disk.power_cut();
        disk.start(Trouble::Never);
        let mut run = BrokerRun::begin(&disk).expect("it opens");
        let names = run.node.broker.views().exchanges().filter(|view| view.name == "delayed");
        let count = names.count();
        if count == 1 {
            assert_eq!(asleep(&run.node), 3, "cut {cut}");
        }
        assert_eq!(run.node.broker.recovery().orphans().len(), 0, "cut {cut}: nothing is left behind");
        run.read_back();
        run.store().expect("the disk is well");
        if is_over {
            assert_eq!(count, 0);
            break;
        }
    }
}

/// Nothing of an older store is taken for a slot, and each exchange of the name keeps only its own messages.
#[test]
fn a_new_exchange_of_the_same_name_has_no_delayed_messages() {
    let disk = disk();
    let mut run = BrokerRun::begin(&disk).expect("it opens");
    let at = run.at;
    run.node.pending_writes.set_time(START_MS);
    ready(&mut run.node, at, true);
    send(&mut run.node, at, 50_000, true, "old").unwrap();
    run.node.done(at, DefinitionCommand::ExchangeDelete { exchange: "delayed", if_unused: false });
    run.node.turns(at);
    exchange(&mut run.node, at, "delayed", "fanout", true);
    bind(&mut run.node, at, ("delayed", ""), "q", &[]);
    send(&mut run.node, at, 60_000, true, "new").unwrap();
    run.store().expect("the disk is well");
    drop(run);
    disk.power_cut();
    disk.start(Trouble::Never);
    let mut run = BrokerRun::begin(&disk).expect("it opens");
    run.node.pending_writes.set_time(START_MS + 70_000);
    run.read_back();
    assert_eq!(run.empty("q"), ["new"]);
}
