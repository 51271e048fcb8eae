//! A queue with a single active consumer: which one is next, and that no consumer is forgotten.

use crate::support::{At, SINGLE_ACTIVE, TestBroker};
use leveret_broker::ConsumerActivity;
use leveret_core::command::{ChannelCommand, DefinitionCommand, Settlement};
use leveret_core::limits::Limits;

fn node() -> TestBroker {
    TestBroker::with(&Limits { unacknowledged_max: 1024, connections_max: 16, ..Limits::default() })
}

fn declare(node: &mut TestBroker, at: At, queue: &str, auto_delete: bool) {
    let (passive, durable, exclusive) = (false, false, false);
    let arguments = SINGLE_ACTIVE;
    node.done(
        at,
        DefinitionCommand::QueueDeclare { queue, passive, durable, exclusive, auto_delete, arguments },
    );
}

fn consume(node: &mut TestBroker, at: At, tag: &str, priority: i8) {
    let mut arguments = b"\x0ax-priorityb".to_vec();
    arguments.push(priority.to_be_bytes()[0]);
    let (no_ack, exclusive) = (false, false);
    node.done(at, ChannelCommand::Consume { queue: "q", tag, no_ack, exclusive, arguments: &arguments });
}

/// Returns the tag of the active consumer; all others report that they wait.
fn active(node: &TestBroker) -> Option<String> {
    let views: Vec<_> = node.broker.views().consumers().collect();
    let of = |activity| views.iter().filter(move |view| view.activity == activity);
    let found: Vec<String> = of(ConsumerActivity::SingleActive).map(|view| view.tag.to_string()).collect();
    assert_eq!(found.len() + of(ConsumerActivity::Waiting).count(), views.len());
    assert!(found.len() <= 1, "several are active: {found:?}");
    let queue = node.broker.views().queues().next();
    let told = queue.and_then(|view| view.single_active_consumer.map(|(tag, _)| tag.to_string()));
    assert_eq!(told.as_ref(), found.first());
    told
}

/// Runs a few turns. Returns the number of deliveries to each of the two consumers.
fn served(node: &mut TestBroker, one: At, two: At) -> (u32, u32) {
    let mut sent = (0, 0);
    for _ in 0..4 {
        sent.0 += node.turn(one);
        sent.1 += node.turn(two);
    }
    sent
}

#[test]
fn others_wait_while_the_active_consumer_is_full_and_the_highest_priority_is_next() {
    let mut node = node();
    let (one, two) = (node.connect(), node.connect());
    declare(&mut node, one, "q", false);
    node.done(one, ChannelCommand::Qos { prefetch_count: 2, global: false });
    for (at, tag, priority) in [(one, "a", 0), (two, "b", 0), (two, "c", 5), (one, "d", 5), (two, "e", 9)] {
        consume(&mut node, at, tag, priority);
    }
    node.publish(one, "q", 10);
    assert_eq!(served(&mut node, one, two), (2, 0));
    assert_eq!(active(&node).as_deref(), Some("a"));
    node.settle(one, 0, true, Settlement::Ack);
    assert_eq!(served(&mut node, one, two), (2, 0));
    // Its messages stay with it; the remaining ones go to the next consumer.
    node.done(one, ChannelCommand::Cancel { tag: "a" });
    assert_eq!(active(&node).as_deref(), Some("e"));
    assert_eq!(served(&mut node, one, two), (0, 6));
    node.settle(two, 0, true, Settlement::Ack);
    for next in ["c", "d", "b"] {
        let before = active(&node).unwrap();
        let at = if before == "d" { one } else { two };
        node.done(at, ChannelCommand::Cancel { tag: &before });
        assert_eq!(active(&node).as_deref(), Some(next));
        node.publish(one, "q", 1);
        let (ones, twos) = served(&mut node, one, two);
        assert_eq!(ones + twos, 1);
    }
}

#[test]
fn a_closed_connection_hands_over_with_all_its_messages() {
    let mut node = node();
    let (one, two) = (node.connect(), node.connect());
    let other = node.open(one, 2);
    declare(&mut node, one, "q", false);
    for (at, tag) in [(one, "a"), (other, "b"), (one, "c"), (two, "d")] {
        consume(&mut node, at, tag, 0);
    }
    node.publish(one, "q", 5);
    assert_eq!(served(&mut node, one, two), (5, 0));
    node.broker.disconnect(&mut context!(node), one.connection);
    assert_eq!(served(&mut node, two, two).0, 5);
    assert_eq!(active(&node).as_deref(), Some("d"));
}

#[test]
fn a_single_active_queue_allows_no_exclusive_consumer_and_is_deleted_with_its_last_one() {
    let mut node = node();
    let at = node.connect();
    declare(&mut node, at, "q", true);
    let alone =
        ChannelCommand::Consume { queue: "q", tag: "x", no_ack: false, exclusive: true, arguments: &[] };
    let Err(fault) = node.ask(at, alone) else { panic!("an exclusive consumer was taken") };
    assert_eq!(fault.to_string(), "403 ACCESS_REFUSED - queue 'q' in vhost '/' in exclusive use");
    let at = node.open(at, 2);
    consume(&mut node, at, "a", 0);
    consume(&mut node, at, "b", 0);
    node.done(at, ChannelCommand::Cancel { tag: "a" });
    assert_eq!(active(&node).as_deref(), Some("b"));
    node.done(at, ChannelCommand::Cancel { tag: "b" });
    node.turns(at);
    assert_eq!(node.broker.gauges().queues, 0);
}

/// A rebuilt queue has no arguments until it is declared. From then on all its consumers wait, except one.
#[test]
fn a_rebuilt_queue_that_is_declared_with_one_active_consumer_has_one() {
    use leveret_broker::Restored;
    use leveret_core::definition::{self, Definition};
    let mut node = node();
    node.pending_writes.start(2, true, 1 << 20);
    let definition = Definition::Queue(definition::Queue {
        vhost: "/",
        name: "q",
        incarnation: 7,
        is_rebuilt: true,
        ..Default::default()
    });
    assert!(matches!(node.broker.restore(&mut context!(node), &definition), Restored::Exists(Some(_))));
    let (one, two) = (node.connect(), node.connect());
    consume(&mut node, one, "a", 0);
    consume(&mut node, two, "b", 0);
    node.publish(one, "q", 4);
    assert_eq!(served(&mut node, one, two), (2, 2), "its argument is unknown");
    let (passive, durable, exclusive, auto_delete) = (false, true, false, false);
    let arguments = SINGLE_ACTIVE;
    let declare =
        DefinitionCommand::QueueDeclare { queue: "q", passive, durable, exclusive, auto_delete, arguments };
    node.done(one, declare);
    node.publish(one, "q", 4);
    assert_eq!(served(&mut node, one, two), (4, 0));
    assert_eq!(active(&node).as_deref(), Some("a"));
}
