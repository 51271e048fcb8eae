//! The broker alone, in single cases that random runs hardly ever reach.

use std::time::{Duration, Instant};

use crate::support::{At, TestBroker};
use leveret_core::command::{Command, Outcome, Settlement};
use leveret_core::limits::Limits;
use leveret_core::mem::{MessageFlags, Share};

/// A client has thousands of deliveries and settles all of them.
///
/// This takes several steps. Deliveries made during them do not belong to "all so far".
#[test]
fn settling_everything_so_far_does_not_settle_later_deliveries() {
    for settlement in [Settlement::Ack, Settlement::Requeue] {
        let mut house = TestBroker::new(65_536);
        let at = house.connect();
        house.declare(at, "q", false);
        house.publish(at, "q", 10_000);
        house.done(at, Command::Qos { prefetch_count: 3_000, global: false });
        house.consume(at, "q");
        assert_eq!(house.turns(at), 3_000);
        house.settle(at, 0, true, settlement);
        house.turns(at);
        let unsettled = house.broker.gauges().deliveries;
        match settlement {
            Settlement::Requeue => assert_eq!((unsettled, house.ready(at, "q")), (3_000, 7_000)),
            _ => assert_eq!((unsettled, house.ready(at, "q")), (3_000, 4_000)),
        }
    }
}

/// A consumer without a prefetch limit gets half of all deliveries. After one acknowledgement it gets more.
#[test]
fn a_consumer_at_its_share_of_deliveries_continues_after_one_acknowledgement() {
    let mut house = TestBroker::new(64);
    let at = house.connect();
    house.declare(at, "q", false);
    house.publish(at, "q", 100);
    house.consume(at, "q");
    assert_eq!(house.turns(at), 32);
    house.settle(at, 1, false, Settlement::Ack);
    assert!(house.broker.has_work(&house.pending_writes), "or the loop would sleep now");
    assert_eq!(house.turns(at), 1);
}

/// All messages of some queues were delivered once and requeued. They use deliveries, but must not block
/// other consumers.
#[test]
fn requeued_messages_block_no_other_consumer() {
    let mut house = TestBroker::new(64);
    let bad = house.connect();
    for round in 0..8 {
        let queue = format!("q{round}");
        house.declare(bad, &queue, false);
        house.publish(bad, &queue, 64);
        house.consume(bad, &queue);
        house.turns(bad);
        house.done(bad, Command::Cancel { tag: &queue });
        house.settle(bad, 0, true, Settlement::Requeue);
        house.turns(bad);
    }
    let good = house.connect();
    house.declare(good, "good", false);
    house.publish(good, "good", 1);
    house.consume(good, "good");
    assert_eq!(house.turns(good), 1, "a new consumer gets its message");
    house.settle(good, 0, true, Settlement::Ack);
    // All requeued messages can be delivered again.
    let mut count = 0;
    for round in 0..8 {
        house.consume(good, &format!("q{round}"));
        loop {
            let got = house.turns(good);
            house.settle(good, 0, true, Settlement::Ack);
            count += got;
            if got == 0 && !house.broker.has_work(&house.pending_writes) {
                break;
            }
        }
    }
    assert_eq!((count, house.broker.gauges().deliveries), (8 * 64, 0));
}

/// A large delivery fills the outbox, so a return has to wait. When the outbox is written, the return is
/// next.
#[test]
fn a_return_that_waited_for_the_outbox_is_retried_when_that_was_written() {
    let mut house = TestBroker::new(64);
    let at = house.connect();
    house.declare(at, "q", false);
    let message = house.message("q", 1 << 20);
    house.done(at, Command::Publish { message, mandatory: false });
    house.consume(at, "q");
    house.broker.deliver(&mut context!(house), 1);
    let message = house.message("nowhere", 10);
    let publish = Command::Publish { message, mandatory: true };
    assert_eq!(house.ask(at, publish), Outcome::Wait);
    let before = house.broker.capacity_freed();
    assert_eq!(house.turn(at), 1);
    assert!(house.broker.capacity_freed() > before, "waiting clients retry");
    assert_eq!(house.ask(at, publish), Outcome::Published);
}

/// Rolls back thousands of acknowledgements while tens of thousands of deliveries stay. Returns the time it
/// took.
fn roll_back_many() -> Duration {
    let mut house = TestBroker::new(65_536);
    let at = house.connect();
    house.declare(at, "q", false);
    house.publish(at, "q", 32_000);
    house.done(at, Command::TxSelect);
    house.consume(at, "q");
    let count = u64::from(house.turns(at));
    assert_eq!(count, 32_000);
    // From both ends in turns, so that consecutive tags give no advantage.
    for tag in 1..=4_000 {
        house.settle(at, tag, false, Settlement::Ack);
        house.settle(at, count / 2 + tag, false, Settlement::Ack);
    }
    let start = Instant::now();
    house.done(at, Command::TxRollback);
    let took = start.elapsed();
    // All are back in the order of their tags.
    house.settle(at, 8_000, true, Settlement::Ack);
    house.done(at, Command::TxCommit);
    assert_eq!(house.broker.gauges().deliveries, 24_000);
    house.settle(at, count, false, Settlement::Ack);
    took
}

#[test]
fn a_rollback_restores_deliveries_settled_from_both_ends() {
    roll_back_many();
}

#[test]
#[ignore = "judges the clock: tests/run --full"]
fn the_time_of_a_rollback_does_not_depend_on_other_deliveries() {
    let took = roll_back_many();
    assert!(took < Duration::from_millis(100), "{took:?}");
}

/// One message of a transaction can never fit: the whole transaction fails, and nothing of it stays.
#[test]
fn an_impossible_commit_leaves_no_message_behind() {
    let mut house = TestBroker::with(&Limits { queue_entries_max: 16 * 21, ..Limits::default() });
    let at = house.connect();
    for number in 0..16 {
        let queue = format!("q{number}");
        house.declare(at, &queue, false);
        let (queue, exchange, routing_key, arguments) = (&*queue, "amq.fanout", "", &[][..]);
        house.done(at, Command::QueueBind { queue, exchange, routing_key, arguments });
    }
    house.done(at, Command::TxSelect);
    for (exchange, key) in [("amq.fanout", ""), ("", "nowhere"), ("", "nowhere")] {
        let message = house.messages.begin(exchange, key.as_bytes(), Share::Ordinary).unwrap();
        house.messages.reserve_content(message, &[0, 0], MessageFlags::NONE, 0, Share::Ordinary).unwrap();
        house.messages.finish(message);
        house.done(at, Command::Publish { message, mandatory: false });
    }
    assert!(matches!(house.ask(at, Command::TxCommit), Outcome::Fault(_)));
    house.broker.release(&mut context!(house), at.connection);
    while house.broker.run_jobs(&mut context!(house)) {}
    assert_eq!(house.messages.messages_used(), 0);
}

/// Only its own connection may bind or unbind an exclusive queue.
#[test]
fn only_the_owner_unbinds_an_exclusive_queue() {
    let mut house = TestBroker::new(64);
    let (owner, other) = (house.connect(), house.connect());
    house.declare(owner, "mine", true);
    let (queue, exchange, routing_key, arguments) = ("mine", "amq.direct", "k", &[][..]);
    house.done(owner, Command::QueueBind { queue, exchange, routing_key, arguments });
    let unbind = Command::QueueUnbind { queue, exchange, routing_key, arguments };
    match house.ask(other, unbind) {
        Outcome::Fault(fault) => assert_eq!(fault.code.code(), 405),
        outcome => panic!("{outcome:?}"),
    }
    house.done(owner, unbind);
    assert_eq!(house.broker.gauges().bindings, 0);
}

/// A client that gets a positive answer about a durable object may rely on it, even after a power cut.
#[test]
fn a_passive_declaration_waits_until_the_object_is_durable() {
    let mut house = TestBroker::new(64);
    house.pending_writes.start(1, true, 1 << 20);
    let (a, b) = (house.connect(), house.connect());
    let queue = |queue, passive, durable| Command::QueueDeclare {
        queue,
        passive,
        durable,
        exclusive: false,
        auto_delete: false,
        arguments: &[],
    };
    let exchange = |passive| Command::ExchangeDeclare {
        exchange: "e",
        kind: "direct",
        passive,
        durable: true,
        auto_delete: false,
        internal: false,
        arguments: &[],
    };
    house.done(a, queue("transient", false, false));
    house.done(a, queue("q", false, true));
    let declared = house.awaited;
    assert!(!declared.is_none());
    house.done(b, queue("q", true, false));
    assert_eq!(house.awaited, declared);
    house.done(a, exchange(false));
    let declared = house.awaited;
    house.done(b, exchange(true));
    assert_eq!(house.awaited, declared);
    house.done(b, queue("transient", true, false));
    assert!(house.awaited.is_none(), "no answer depends on that");
    // Other log entries may wait for space for a long time.
    while house.pending_writes.next_entry().is_some() {
        house.pending_writes.pop_entry();
    }
    let batch = house.pending_writes.cover(false);
    house.pending_writes.stored(&mut house.messages, batch);
    house.done(a, queue("later", false, true));
    for asked in [queue("q", true, false), queue("q", false, true), exchange(true), exchange(false)] {
        house.done(b, asked);
        assert!(house.awaited.is_none(), "{asked:?} waits for what is nothing to it");
    }
}

#[test]
fn a_new_binding_survives_the_clearing_of_the_old_queue() {
    let mut house = TestBroker::new(64);
    house.pending_writes.start(1, true, 1 << 20);
    let a = house.connect();
    let b = house.connect();
    let declare = Command::QueueDeclare {
        queue: "q",
        passive: false,
        durable: true,
        exclusive: false,
        auto_delete: false,
        arguments: &[],
    };
    let bind = Command::QueueBind { queue: "q", exchange: "amq.direct", routing_key: "k", arguments: &[] };
    house.done(a, declare);
    house.done(a, bind);
    house.publish(a, "q", 3000);
    house.ask(a, Command::QueueDelete { queue: "q", if_unused: false, if_empty: false });
    house.done(b, declare);
    house.done(b, bind);
    while house.broker.run_jobs(&mut context!(house)) {}
    let mut said = std::collections::BTreeMap::new();
    while let Some(fact) = house.pending_writes.next_entry() {
        if let leveret_core::pending_writes::LogEntry::Defined { key, value, .. } = fact {
            said.insert(key.clone(), value.is_some());
        }
        house.pending_writes.pop_entry();
    }
    let bindings: Vec<bool> = said.iter().filter(|(key, _)| key[0] == 3).map(|(_, exists)| *exists).collect();
    assert_eq!(bindings, [true], "the binding that exists is written down as existing");
}

/// The store was written by a later version that has more types of exchanges.
#[test]
fn an_exchange_of_an_unknown_type_keeps_its_bindings_in_the_store() {
    use leveret_broker::Restored;
    use leveret_core::pending_writes::{Definition, DestinationName};
    let mut house = TestBroker::new(64);
    house.pending_writes.start(2, true, 1 << 20);
    let (vhost, arguments, auto_delete) = ("/", &[][..], false);
    let exchange = Definition::Exchange {
        vhost,
        name: "x",
        version: 7,
        kind: "x-new",
        auto_delete,
        internal: false,
        arguments,
    };
    let queue = Definition::Queue {
        vhost,
        name: "q",
        incarnation: 8,
        auto_delete,
        is_rebuilt: false,
        priorities_from: 0,
        arguments,
    };
    let binding = |source_version| Definition::Binding {
        vhost,
        source: "x",
        source_version,
        destination: DestinationName::Queue("q"),
        destination_version: 8,
        routing_key: "key",
        arguments,
    };
    assert_eq!(house.broker.restore(&mut context!(house), &exchange), Restored::Unknown);
    assert!(matches!(house.broker.restore(&mut context!(house), &queue), Restored::Exists(Some(_))));
    assert_eq!(
        house.broker.restore(&mut context!(house), &binding(7)),
        Restored::NoCapacity,
        "its exchange may come back"
    );
    assert_eq!(
        house.broker.restore(&mut context!(house), &binding(6)),
        Restored::Orphaned,
        "of one that was deleted before"
    );
}

#[test]
fn a_loaded_message_is_delivered_although_there_was_no_memory_for_more() {
    use leveret_broker::{Contents, PageInOutcome, ReadMessage, Restored};
    use leveret_core::pending_writes::Definition;
    let mut house = TestBroker::new(64);
    house.pending_writes.start(2, true, 1 << 20);
    let definition = Definition::Queue {
        vhost: "/",
        name: "q",
        incarnation: 7,
        auto_delete: false,
        is_rebuilt: false,
        priorities_from: 0,
        arguments: &[],
    };
    let Restored::Exists(Some(queue)) = house.broker.restore(&mut context!(house), &definition) else {
        panic!("it is taken")
    };
    house.broker.queues_mut().restore_contents(
        queue,
        &Contents { count: 10, bytes: 1000, next_offset: 10, delivered_through: 10, watermark: 10 },
    );
    assert!(house.broker.queues_mut().restore_messages(queue, 0, 10));
    let at = house.connect();
    house.consume(at, "q");
    assert_eq!(house.turns(at), 0);
    let fetch = house.broker.queues_mut().next_read(&house.messages).unwrap();
    let page = ReadMessage {
        offset: 0,
        exchange: "",
        routing_key: b"q",
        properties: &[0, 0],
        body_len: 3,
        enqueued_ms: 0,
    };
    let PageInOutcome::Begun(id) = house.broker.queues_mut().page_in(&mut house.messages, &fetch, &page)
    else {
        panic!("it is taken")
    };
    house.messages.append_body(id, b"abc");
    house.broker.queues_mut().paged_in(&mut context!(house), &fetch, (0, 0), id);
    // There is no memory for the next message.
    house.broker.queues_mut().note_no_memory(&house.messages, &fetch);
    assert_eq!(house.turns(at), 1, "the first message is there and can go");
}

/// One client declares until it is refused. Another client still gets some of everything.
///
/// The refusal names the key. After the first client has left, its objects no longer count for it.
#[test]
fn the_shares_of_one_connection_leave_some_for_others() {
    fn declare(house: &mut TestBroker, at: At, queue: &str) -> Outcome {
        let (passive, durable, exclusive, auto_delete) = (false, false, false, false);
        house.ask(
            at,
            Command::QueueDeclare { queue, passive, durable, exclusive, auto_delete, arguments: &[] },
        )
    }
    fn bind(house: &mut TestBroker, at: At, key: &str) -> Outcome {
        let (queue, exchange) = ("bound", "amq.topic");
        house.ask(at, Command::QueueBind { queue, exchange, routing_key: key, arguments: &[] })
    }
    fn open(house: &mut TestBroker, at: At, number: u16) -> Outcome {
        house.broker.apply(&mut context!(house), at.connection, None, Command::OpenChannel { number }).0
    }
    fn consume(house: &mut TestBroker, at: At, tag: &str) -> Outcome {
        house
            .ask(at, Command::Consume { queue: "bound", tag, no_ack: true, exclusive: false, arguments: &[] })
    }
    /// Takes until it is refused. Returns the number of successes.
    fn all(key: &str, mut take: impl FnMut(u16) -> Outcome) -> u16 {
        for number in 2.. {
            if let Outcome::Fault(fault) = take(number) {
                assert!(fault.text.contains("its whole share of"), "{}", fault.text);
                assert!(fault.text.contains(key), "{}", fault.text);
                return number - 2;
            }
        }
        unreachable!("there is no end to it")
    }
    let mut house = TestBroker::with(&Limits {
        connections_max: 16,
        channels_max: 64,
        consumers_max: 64,
        queues_max: 64,
        bindings_max: 640,
        ..Limits::default()
    });
    let (greedy, other) = (house.connect(), house.connect());
    house.declare(greedy, "bound", false);
    let channels = all("channels_max", |number| open(&mut house, greedy, number));
    assert_eq!(channels, 31, "with the first it has as many as it leaves");
    let consumers = all("consumers_max", |number| consume(&mut house, greedy, &format!("c{number}")));
    assert_eq!(consumers, 32);
    let queues = all("queues_max", |number| declare(&mut house, greedy, &format!("q{number}")));
    assert!((58..=60).contains(&queues), "{queues}");
    let bindings = all("bindings_max", |number| bind(&mut house, greedy, &format!("a{number}")));
    assert!((595..=600).contains(&bindings), "{bindings}");
    // A client with few objects gets some of everything.
    assert!(matches!(open(&mut house, other, 9), Outcome::ChannelOpened(_)));
    assert!(matches!(consume(&mut house, other, "c"), Outcome::Consuming { .. }));
    assert!(matches!(declare(&mut house, other, "another"), Outcome::QueueDeclared { .. }));
    assert_eq!(bind(&mut house, other, "another"), Outcome::Done);
    // Another connection with the same id holds none of them.
    house.broker.release(&mut context!(house), greedy.connection);
    house.turns(other);
    let reborn = house.connect();
    assert_eq!(reborn.connection, greedy.connection, "the test means to get the same id");
    assert!(matches!(declare(&mut house, reborn, "anew"), Outcome::QueueDeclared { .. }));
    assert_eq!(bind(&mut house, reborn, "anew"), Outcome::Done);
}

/// Bytes of names have shares too. The words of patterns count as such bytes, so that no key is kept without
/// cost.
#[test]
fn names_have_shares_and_words_of_patterns_count() {
    let limits = Limits { connections_max: 16, names_bytes_max: 64 << 10, ..Limits::default() };
    let mut house = TestBroker::with(&limits);
    let (greedy, other) = (house.connect(), house.connect());
    house.declare(greedy, "bound", false);
    let before = house.broker.gauges().names_bytes;
    let key = "k".repeat(200);
    let bind = |house: &mut TestBroker, at: At, number: u32| {
        let key = format!("{number}.{key}");
        let (queue, exchange) = ("bound", "amq.topic");
        house.ask(at, Command::QueueBind { queue, exchange, routing_key: &key, arguments: &[] })
    };
    assert_eq!(bind(&mut house, greedy, 1), Outcome::Done);
    assert_eq!(house.broker.gauges().names_bytes - before, 2 * 202);
    let refused = (2..1000).find_map(|number| match bind(&mut house, greedy, number) {
        Outcome::Fault(fault) => Some(fault),
        _ => None,
    });
    let fault = refused.expect("names come to an end");
    assert!(fault.text.contains("its whole share of names_bytes_max"), "{}", fault.text);
    assert_eq!(bind(&mut house, other, 5000), Outcome::Done);
    // Everything is deleted, and with it every byte is freed.
    house.done(greedy, Command::QueueDelete { queue: "bound", if_unused: false, if_empty: false });
    house.turns(greedy);
    assert_eq!(house.broker.gauges().names_bytes, 0);
}

/// Ten thousand pipelined gets without acknowledgement: they wait only until the output is written.
#[test]
fn gets_wait_for_the_output_instead_of_being_refused() {
    let mut house =
        TestBroker::with(&Limits { unacknowledged_max: 256, connections_max: 16, ..Limits::default() });
    let at = house.connect();
    house.declare(at, "q", false);
    house.publish(at, "q", 10_000);
    let mut got = 0;
    for _ in 0..10_000 {
        match house.ask(at, Command::Get { queue: "q", no_ack: true }) {
            Outcome::GetQueued => got += 1,
            Outcome::Later => {
                assert!(house.broker.is_busy(at.connection), "its input stands");
                house.turns(at);
                assert!(!house.broker.is_busy(at.connection), "what was written made room");
                assert_eq!(house.broker.take_later(at.connection).unwrap().0, Outcome::GetQueued);
                got += 1;
            }
            other => panic!("after {got}: {other:?}"),
        }
    }
    house.turns(at);
    assert_eq!(house.ready(at, "q"), 0);
    // The client itself has to settle the other ones, so waiting for that would never end.
    house.publish(at, "q", 300);
    let fault = (0..300).find_map(|_| match house.ask(at, Command::Get { queue: "q", no_ack: false }) {
        Outcome::Later => {
            house.turns(at);
            match house.broker.take_later(at.connection).unwrap().0 {
                Outcome::Fault(fault) => Some(fault),
                _ => None,
            }
        }
        Outcome::Fault(fault) => Some(fault),
        _ => None,
    });
    assert!(fault.expect("it is refused").text.contains("raise unacknowledged_max"));
}

/// Counts the work that can end a turn early: publishing to thousands of bindings counts, publishing to one
/// queue does not.
#[test]
fn work_that_the_size_of_a_message_does_not_tell_is_counted() {
    let mut house = TestBroker::with(&Limits { connections_max: 16, ..Limits::default() });
    let at = house.connect();
    house.declare(at, "q", false);
    for number in 0..2_000_u32 {
        let routing_key = &*number.to_string();
        let (queue, exchange) = ("q", "amq.fanout");
        house.done(at, Command::QueueBind { queue, exchange, routing_key, arguments: &[] });
    }
    house.work.take();
    house.publish(at, "q", 10);
    assert_eq!(house.work.take(), 0, "one queue by its name is no work");
    let id = house.messages.begin("amq.fanout", b"", Share::Ordinary).unwrap();
    house.messages.reserve_content(id, &[0, 0], MessageFlags::NONE, 0, Share::Ordinary).unwrap();
    house.messages.finish(id);
    house.done(at, Command::Publish { message: id, mandatory: false });
    assert_eq!(house.work.take(), 2_000);
    // A thousand consumers share one credit: each acknowledgement looks at all of them.
    house.done(at, Command::Qos { prefetch_count: 1, global: true });
    for number in 0..1_000 {
        let (queue, tag) = ("q", &*format!("c{number}"));
        house.done(at, Command::Consume { queue, tag, no_ack: false, exclusive: false, arguments: &[] });
    }
    assert_eq!(house.turn(at), 1);
    house.work.take();
    house.settle(at, 1, false, Settlement::Ack);
    assert!(house.work.take() >= 1_000);
}
