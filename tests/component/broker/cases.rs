//! The broker alone, in single cases that random runs hardly ever reach.

use std::time::{Duration, Instant};

use crate::support::{At, TestBroker};
use leveret_core::command::{
    ChannelAnswer, ChannelCommand, ChannelId, DefinitionAnswer, DefinitionCommand, GetAnswer, GetCommand,
    OpenChannel, PublishAnswer, PublishCommand, Settlement,
};
use leveret_core::error::Fault;
use leveret_core::limits::Limits;
use leveret_core::mem::{MessageFlags, Share};

/// A client has thousands of deliveries and settles all of them.
///
/// This takes several steps. Deliveries made during them do not belong to "all so far".
#[test]
fn settling_everything_so_far_does_not_settle_later_deliveries() {
    for settlement in [Settlement::Ack, Settlement::Requeue] {
        let mut node = TestBroker::new(65_536);
        let at = node.connect();
        node.declare(at, "q", false);
        node.publish(at, "q", 10_000);
        node.done(at, ChannelCommand::Qos { prefetch_count: 3_000, global: false });
        node.consume(at, "q");
        assert_eq!(node.turns(at), 3_000);
        node.settle(at, 0, true, settlement);
        node.turns(at);
        let unsettled = node.broker.gauges().deliveries;
        match settlement {
            Settlement::Requeue => assert_eq!((unsettled, node.ready(at, "q")), (3_000, 7_000)),
            _ => assert_eq!((unsettled, node.ready(at, "q")), (3_000, 4_000)),
        }
    }
}

/// A consumer without a prefetch limit gets half of all deliveries. After one acknowledgement it gets more.
#[test]
fn a_consumer_at_its_share_of_deliveries_continues_after_one_acknowledgement() {
    let mut node = TestBroker::new(64);
    let at = node.connect();
    node.declare(at, "q", false);
    node.publish(at, "q", 100);
    node.consume(at, "q");
    assert_eq!(node.turns(at), 32);
    node.settle(at, 1, false, Settlement::Ack);
    assert!(node.broker.has_work(&node.pending_writes), "or the loop would sleep now");
    assert_eq!(node.turns(at), 1);
}

/// All messages of some queues were delivered once and requeued. They use deliveries, but must not block
/// other consumers.
#[test]
fn requeued_messages_block_no_other_consumer() {
    let mut node = TestBroker::new(64);
    let bad = node.connect();
    for round in 0..8 {
        let queue = format!("q{round}");
        node.declare(bad, &queue, false);
        node.publish(bad, &queue, 64);
        node.consume(bad, &queue);
        node.turns(bad);
        node.done(bad, ChannelCommand::Cancel { tag: &queue });
        node.settle(bad, 0, true, Settlement::Requeue);
        node.turns(bad);
    }
    let good = node.connect();
    node.declare(good, "good", false);
    node.publish(good, "good", 1);
    node.consume(good, "good");
    assert_eq!(node.turns(good), 1, "a new consumer gets its message");
    node.settle(good, 0, true, Settlement::Ack);
    // All requeued messages can be delivered again.
    let mut count = 0;
    for round in 0..8 {
        node.consume(good, &format!("q{round}"));
        loop {
            let got = node.turns(good);
            node.settle(good, 0, true, Settlement::Ack);
            count += got;
            if got == 0 && !node.broker.has_work(&node.pending_writes) {
                break;
            }
        }
    }
    assert_eq!((count, node.broker.gauges().deliveries), (8 * 64, 0));
}

/// A large delivery fills the outbox, so a return has to wait. When the outbox is written, the return is
/// next.
#[test]
fn a_return_that_waited_for_the_outbox_is_retried_when_that_was_written() {
    let mut node = TestBroker::new(64);
    let at = node.connect();
    node.declare(at, "q", false);
    let message = node.message("q", 1 << 20);
    node.done(at, PublishCommand::Publish { message, mandatory: false });
    node.consume(at, "q");
    node.broker.deliver(&mut context!(node), 1);
    let message = node.message("nowhere", 10);
    let publish = PublishCommand::Publish { message, mandatory: true };
    assert_eq!(node.ask(at, publish), Ok(PublishAnswer::Wait));
    let before = node.broker.capacity_freed();
    assert_eq!(node.turn(at), 1);
    assert!(node.broker.capacity_freed() > before, "waiting clients retry");
    assert_eq!(node.ask(at, publish), Ok(PublishAnswer::Published));
}

/// Rolls back thousands of acknowledgements while tens of thousands of deliveries stay. Returns the time it
/// took.
fn roll_back_many() -> Duration {
    let mut node = TestBroker::new(65_536);
    let at = node.connect();
    node.declare(at, "q", false);
    node.publish(at, "q", 32_000);
    node.done(at, ChannelCommand::TxSelect);
    node.consume(at, "q");
    let count = u64::from(node.turns(at));
    assert_eq!(count, 32_000);
    // From both ends in turns, so that consecutive tags give no advantage.
    for tag in 1..=4_000 {
        node.settle(at, tag, false, Settlement::Ack);
        node.settle(at, count / 2 + tag, false, Settlement::Ack);
    }
    let start = Instant::now();
    node.done(at, ChannelCommand::TxRollback);
    let took = start.elapsed();
    // All are back in the order of their tags.
    node.settle(at, 8_000, true, Settlement::Ack);
    node.done(at, ChannelCommand::TxCommit);
    assert_eq!(node.broker.gauges().deliveries, 24_000);
    node.settle(at, count, false, Settlement::Ack);
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
    let mut node = TestBroker::with(&Limits { queue_entries_max: 16 * 21, ..Limits::default() });
    let at = node.connect();
    for number in 0..16 {
        let queue = format!("q{number}");
        node.declare(at, &queue, false);
        let (queue, exchange, routing_key, arguments) = (&*queue, "amq.fanout", "", &[][..]);
        node.done(at, DefinitionCommand::QueueBind { queue, exchange, routing_key, arguments });
    }
    node.done(at, ChannelCommand::TxSelect);
    for (exchange, key) in [("amq.fanout", ""), ("", "nowhere"), ("", "nowhere")] {
        let message = node.messages.begin(exchange, key.as_bytes(), Share::Ordinary).unwrap();
        node.messages.reserve_content(message, &[0, 0], MessageFlags::NONE, 0, Share::Ordinary).unwrap();
        node.messages.finish(message);
        node.done(at, PublishCommand::Publish { message, mandatory: false });
    }
    assert!(node.ask(at, ChannelCommand::TxCommit).is_err());
    node.broker.release(&mut context!(node), at.connection);
    while node.broker.run_jobs(&mut context!(node)) {}
    assert_eq!(node.messages.messages_used(), 0);
}

/// Only its own connection may bind or unbind an exclusive queue.
#[test]
fn only_the_owner_unbinds_an_exclusive_queue() {
    let mut node = TestBroker::new(64);
    let (owner, other) = (node.connect(), node.connect());
    node.declare(owner, "mine", true);
    let (queue, exchange, routing_key, arguments) = ("mine", "amq.direct", "k", &[][..]);
    node.done(owner, DefinitionCommand::QueueBind { queue, exchange, routing_key, arguments });
    let unbind = DefinitionCommand::QueueUnbind { queue, exchange, routing_key, arguments };
    match node.ask(other, unbind) {
        Err(fault) => assert_eq!(fault.code.code(), 405),
        outcome => panic!("{outcome:?}"),
    }
    node.done(owner, unbind);
    assert_eq!(node.broker.gauges().bindings, 0);
}

/// A client that gets a positive answer about a durable object may rely on it, even after a power cut.
#[test]
fn a_passive_declaration_waits_until_the_object_is_durable() {
    let mut node = TestBroker::new(64);
    node.pending_writes.start(1, true, 1 << 20);
    let (a, b) = (node.connect(), node.connect());
    let queue = |queue, passive, durable| DefinitionCommand::QueueDeclare {
        queue,
        passive,
        durable,
        exclusive: false,
        auto_delete: false,
        arguments: &[],
    };
    let exchange = |passive| DefinitionCommand::ExchangeDeclare {
        exchange: "e",
        kind: "direct",
        passive,
        durable: true,
        auto_delete: false,
        internal: false,
        arguments: &[],
    };
    node.done(a, queue("transient", false, false));
    node.done(a, queue("q", false, true));
    let declared = node.awaited;
    assert!(!declared.is_none());
    node.done(b, queue("q", true, false));
    assert_eq!(node.awaited, declared);
    node.done(a, exchange(false));
    let declared = node.awaited;
    node.done(b, exchange(true));
    assert_eq!(node.awaited, declared);
    node.done(b, queue("transient", true, false));
    assert!(node.awaited.is_none(), "no answer depends on that");
    // Other log entries may wait for space for a long time.
    while node.pending_writes.next_entry().is_some() {
        node.pending_writes.pop_entry();
    }
    let batch = node.pending_writes.cover(false);
    node.pending_writes.stored(&mut node.messages, batch);
    node.done(a, queue("later", false, true));
    for asked in [queue("q", true, false), queue("q", false, true), exchange(true), exchange(false)] {
        node.done(b, asked);
        assert!(node.awaited.is_none(), "{asked:?} waits for what is nothing to it");
    }
}

#[test]
fn a_new_binding_survives_the_clearing_of_the_old_queue() {
    let mut node = TestBroker::new(64);
    node.pending_writes.start(1, true, 1 << 20);
    let a = node.connect();
    let b = node.connect();
    let declare = DefinitionCommand::QueueDeclare {
        queue: "q",
        passive: false,
        durable: true,
        exclusive: false,
        auto_delete: false,
        arguments: &[],
    };
    let bind =
        DefinitionCommand::QueueBind { queue: "q", exchange: "amq.direct", routing_key: "k", arguments: &[] };
    node.done(a, declare);
    node.done(a, bind);
    node.publish(a, "q", 3000);
    node.ask(a, DefinitionCommand::QueueDelete { queue: "q", if_unused: false, if_empty: false }).unwrap();
    node.done(b, declare);
    node.done(b, bind);
    while node.broker.run_jobs(&mut context!(node)) {}
    let mut said = std::collections::BTreeMap::new();
    while let Some(fact) = node.pending_writes.next_entry() {
        if let leveret_storage::LogEntry::Defined { key, value, .. } = fact {
            said.insert(key.clone(), value.is_some());
        }
        node.pending_writes.pop_entry();
    }
    let bindings: Vec<bool> = said.iter().filter(|(key, _)| key[0] == 3).map(|(_, exists)| *exists).collect();
    assert_eq!(bindings, [true], "the binding that exists is written down as existing");
}

/// The store was written by a later version that has more types of exchanges.
#[test]
fn an_exchange_of_an_unknown_type_keeps_its_bindings_in_the_store() {
    use leveret_broker::Restored;
    use leveret_core::definition::{self, Definition, DestinationName};
    let mut node = TestBroker::new(64);
    node.pending_writes.start(2, true, 1 << 20);
    let (vhost, arguments, auto_delete) = ("/", &[][..], false);
    let exchange = Definition::Exchange(definition::Exchange {
        vhost,
        name: "x",
        version: 7,
        kind: "x-new",
        auto_delete,
        arguments,
        ..Default::default()
    });
    let queue = Definition::Queue(definition::Queue {
        vhost,
        name: "q",
        incarnation: 8,
        auto_delete,
        arguments,
        ..Default::default()
    });
    let binding = |source_version| {
        Definition::Binding(definition::Binding {
            vhost,
            source: "x",
            source_version,
            destination: DestinationName::Queue("q"),
            destination_version: 8,
            routing_key: "key",
            arguments,
        })
    };
    assert_eq!(node.broker.restore(&mut context!(node), &exchange), Restored::Unknown);
    assert!(matches!(node.broker.restore(&mut context!(node), &queue), Restored::Exists(Some(_))));
    assert_eq!(
        node.broker.restore(&mut context!(node), &binding(7)),
        Restored::NoCapacity,
        "its exchange may come back"
    );
    assert_eq!(
        node.broker.restore(&mut context!(node), &binding(6)),
        Restored::Orphaned,
        "of one that was deleted before"
    );
}

#[test]
fn a_loaded_message_is_delivered_although_there_was_no_memory_for_more() {
    use leveret_broker::Restored;
    use leveret_core::definition::{self, Definition};
    use leveret_queues::{Contents, PageInOutcome, ReadMessage};
    let mut node = TestBroker::new(64);
    node.pending_writes.start(2, true, 1 << 20);
    let definition =
        Definition::Queue(definition::Queue { vhost: "/", name: "q", incarnation: 7, ..Default::default() });
    let Restored::Exists(Some(queue)) = node.broker.restore(&mut context!(node), &definition) else {
        panic!("it is taken")
    };
    node.broker.queues_mut().restore_contents(
        queue,
        &Contents { count: 10, bytes: 1000, next_offset: 10, delivered_below: 10, watermark: 10 },
    );
    assert!(node.broker.queues_mut().restore_messages(queue, 0, 10));
    let at = node.connect();
    node.consume(at, "q");
    assert_eq!(node.turns(at), 0);
    let fetch = node.broker.queues_mut().next_read(&node.messages).unwrap();
    let page = ReadMessage {
        offset: 0,
        exchange: "",
        routing_key: b"q",
        properties: &[0, 0],
        body_len: 3,
        enqueued_ms: 0,
    };
    let PageInOutcome::Begun(id) = node.broker.queues_mut().page_in(&mut node.messages, &fetch, &page) else {
        panic!("it is taken")
    };
    node.messages.append_body(id, b"abc");
    node.broker.queues_mut().paged_in(&mut context!(node), &fetch, 0, 0, id);
    // There is no memory for the next message.
    node.broker.queues_mut().note_no_memory(&node.messages, &fetch);
    assert_eq!(node.turns(at), 1, "the first message is there and can go");
}

/// One client declares until it is refused. Another client still gets some of everything.
///
/// The refusal names the key. After the first client has left, its objects no longer count for it.
#[test]
fn the_shares_of_one_connection_leave_some_for_others() {
    fn declare(node: &mut TestBroker, at: At, queue: &str) -> Result<DefinitionAnswer, Fault> {
        let (passive, durable, exclusive, auto_delete) = (false, false, false, false);
        node.ask(
            at,
            DefinitionCommand::QueueDeclare {
                queue,
                passive,
                durable,
                exclusive,
                auto_delete,
                arguments: &[],
            },
        )
    }
    fn bind(node: &mut TestBroker, at: At, key: &str) -> Result<DefinitionAnswer, Fault> {
        let (queue, exchange) = ("bound", "amq.topic");
        node.ask(at, DefinitionCommand::QueueBind { queue, exchange, routing_key: key, arguments: &[] })
    }
    fn open(node: &mut TestBroker, at: At, number: u16) -> Result<ChannelId, Fault> {
        node.broker.apply_to_connection(&mut context!(node), at.connection, OpenChannel { number })
    }
    fn consume(node: &mut TestBroker, at: At, tag: &str) -> Result<ChannelAnswer, Fault> {
        node.ask(
            at,
            ChannelCommand::Consume { queue: "bound", tag, no_ack: true, exclusive: false, arguments: &[] },
        )
    }
    /// Takes until it is refused. Returns the number of successes.
    fn all<T>(key: &str, mut take: impl FnMut(u16) -> Result<T, Fault>) -> u16 {
        for number in 2.. {
            if let Err(fault) = take(number) {
                assert!(fault.text.contains("its whole share of"), "{}", fault.text);
                assert!(fault.text.contains(key), "{}", fault.text);
                return number - 2;
            }
        }
        unreachable!("there is no end to it")
    }
    let mut node = TestBroker::with(&Limits {
        connections_max: 16,
        channels_max: 64,
        bridges_max: 0,
        consumers_max: 64,
        queues_max: 64,
        bindings_max: 640,
        ..Limits::default()
    });
    let (greedy, other) = (node.connect(), node.connect());
    node.declare(greedy, "bound", false);
    let channels = all("channels", |number| open(&mut node, greedy, number));
    assert_eq!(channels, 31, "with the first it has as many as it leaves");
    let consumers = all("consumers", |number| consume(&mut node, greedy, &format!("c{number}")));
    assert_eq!(consumers, 32);
    let queues = all("queues", |number| declare(&mut node, greedy, &format!("q{number}")));
    assert!((58..=60).contains(&queues), "{queues}");
    let bindings = all("bindings", |number| bind(&mut node, greedy, &format!("a{number}")));
    assert!((595..=600).contains(&bindings), "{bindings}");
    // A client with few objects gets some of everything.
    assert!(open(&mut node, other, 9).is_ok());
    assert!(matches!(consume(&mut node, other, "c"), Ok(ChannelAnswer::Consuming { .. })));
    assert!(matches!(declare(&mut node, other, "another"), Ok(DefinitionAnswer::QueueDeclared { .. })));
    assert_eq!(bind(&mut node, other, "another"), Ok(DefinitionAnswer::Done));
    // What it declared counts for its user when it is closed, and no longer when it is deleted.
    node.broker.release(&mut context!(node), greedy.connection);
    node.turns(other);
    let reborn = node.connect();
    assert_eq!(reborn.connection, greedy.connection, "the test means to get the same id");
    let Err(fault) = declare(&mut node, reborn, "anew") else { panic!("the user has used its share") };
    assert!(fault.text.contains("earlier connections of this user"), "{}", fault.text);
    for number in 2..20 {
        let queue = format!("q{number}");
        node.done(other, DefinitionCommand::QueueDelete { queue: &queue, if_unused: false, if_empty: false });
    }
    node.turns(other);
    assert!(matches!(declare(&mut node, reborn, "anew"), Ok(DefinitionAnswer::QueueDeclared { .. })));
}

/// Bytes of names have shares too. The words of patterns count as such bytes, so that no key is kept without
/// cost.
#[test]
fn names_have_shares_and_words_of_patterns_count() {
    let limits = Limits { connections_max: 16, names_bytes_max: 64 << 10, ..Limits::default() };
    let mut node = TestBroker::with(&limits);
    let (greedy, other) = (node.connect(), node.connect());
    node.declare(greedy, "bound", false);
    let before = node.broker.gauges().names_bytes;
    let key = "k".repeat(200);
    let bind = |node: &mut TestBroker, at: At, number: u32| {
        let key = format!("{number}.{key}");
        let (queue, exchange) = ("bound", "amq.topic");
        node.ask(at, DefinitionCommand::QueueBind { queue, exchange, routing_key: &key, arguments: &[] })
    };
    assert_eq!(bind(&mut node, greedy, 1), Ok(DefinitionAnswer::Done));
    assert_eq!(node.broker.gauges().names_bytes - before, 2 * 202);
    let refused = (2..1000).find_map(|number| bind(&mut node, greedy, number).err());
    let fault = refused.expect("names come to an end");
    assert!(fault.text.contains("its whole share of the memory for names"), "{}", fault.text);
    assert_eq!(bind(&mut node, other, 5000), Ok(DefinitionAnswer::Done));
    // Everything is deleted, and with it every byte is freed.
    node.done(greedy, DefinitionCommand::QueueDelete { queue: "bound", if_unused: false, if_empty: false });
    node.turns(greedy);
    assert_eq!(node.broker.gauges().names_bytes, 0);
}

/// Ten thousand pipelined gets without acknowledgement: they wait only until the output is written.
#[test]
fn gets_wait_for_the_output_instead_of_being_refused() {
    let mut node =
        TestBroker::with(&Limits { unacknowledged_max: 256, connections_max: 16, ..Limits::default() });
    let at = node.connect();
    node.declare(at, "q", false);
    node.publish(at, "q", 10_000);
    let mut got = 0;
    for _ in 0..10_000 {
        match node.ask(at, GetCommand { queue: "q", no_ack: true }) {
            Ok(GetAnswer::Queued) => got += 1,
            Ok(GetAnswer::Later) => {
                assert!(node.broker.is_busy(at.connection), "its input stands");
                node.turns(at);
                assert!(!node.broker.is_busy(at.connection), "what was written made room");
                assert_eq!(node.broker.take_late_get(at.connection).unwrap().0, Ok(GetAnswer::Queued));
                got += 1;
            }
            other => panic!("after {got}: {other:?}"),
        }
    }
    node.turns(at);
    assert_eq!(node.ready(at, "q"), 0);
    // The client itself has to settle the other ones, so waiting for that would never end.
    node.publish(at, "q", 300);
    let fault = (0..300).find_map(|_| match node.ask(at, GetCommand { queue: "q", no_ack: false }) {
        Ok(GetAnswer::Later) => {
            node.turns(at);
            node.broker.take_late_get(at.connection).unwrap().0.err()
        }
        Err(fault) => Some(fault),
        _ => None,
    });
    assert!(fault.expect("it is refused").text.contains("raise memory_limit"));
}

/// Counts the work that can end a turn early: publishing to thousands of bindings counts, publishing to one
/// queue does not.
#[test]
fn work_that_the_size_of_a_message_does_not_tell_is_counted() {
    let mut node = TestBroker::with(&Limits { connections_max: 16, ..Limits::default() });
    let at = node.connect();
    node.declare(at, "q", false);
    for number in 0..2_000_u32 {
        let routing_key = &*number.to_string();
        let (queue, exchange) = ("q", "amq.fanout");
        node.done(at, DefinitionCommand::QueueBind { queue, exchange, routing_key, arguments: &[] });
    }
    node.work.take();
    node.publish(at, "q", 10);
    assert_eq!(node.work.take(), 0, "one queue by its name is no work");
    let id = node.messages.begin("amq.fanout", b"", Share::Ordinary).unwrap();
    node.messages.reserve_content(id, &[0, 0], MessageFlags::NONE, 0, Share::Ordinary).unwrap();
    node.messages.finish(id);
    node.done(at, PublishCommand::Publish { message: id, mandatory: false });
    assert_eq!(node.work.take(), 2_000);
    // A thousand consumers share one credit: each acknowledgement looks at all of them.
    node.done(at, ChannelCommand::Qos { prefetch_count: 1, global: true });
    for number in 0..1_000 {
        let (queue, tag) = ("q", &*format!("c{number}"));
        node.done(
            at,
            ChannelCommand::Consume { queue, tag, no_ack: false, exclusive: false, arguments: &[] },
        );
    }
    assert_eq!(node.turn(at), 1);
    node.work.take();
    node.settle(at, 1, false, Settlement::Ack);
    assert!(node.work.take() >= 1_000);
}
