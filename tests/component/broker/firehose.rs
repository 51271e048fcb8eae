//! The firehose: which copies it makes, that it blocks no client, and that it does not copy its own messages.

use leveret_core::command::{DefinitionCommand, PublishAnswer};
use leveret_core::limits::Limits;

use crate::dead_letters::{declare, empty, get, publish, table};
use crate::support::{At, TestBroker};

/// Returns a broker with a traced virtual host, and a queue of all copies.
fn traced(limits: &Limits) -> (TestBroker, At) {
    let mut node = TestBroker::with(limits);
    let at = node.connect();
    node.declare(at, "copies", false);
    bind(&mut node, at, "copies");
    assert!(node.broker.trace("/", "node", true));
    (node, at)
}

fn bind(node: &mut TestBroker, at: At, queue: &str) {
    let (exchange, routing_key, arguments) = ("amq.rabbitmq.trace", "#", &[][..]);
    node.done(at, DefinitionCommand::QueueBind { queue, exchange, routing_key, arguments });
}

#[test]
fn publishes_and_deliveries_are_copied_while_tracing_has_a_receiver() {
    let (mut node, at) = traced(&Limits::default());
    node.declare(at, "q", false);
    publish(&mut node, at, "q", &[0, 0], "1").unwrap();
    assert_eq!(node.ready(at, "copies"), 1);
    assert_eq!(empty(&mut node, at, "q"), ["1"]);
    assert_eq!(node.ready(at, "copies"), 2);
    assert!(!node.broker.trace("nowhere", "node", true));
    assert!(node.broker.trace("/", "node", false));
    publish(&mut node, at, "q", &[0, 0], "2").unwrap();
    assert_eq!(empty(&mut node, at, "q"), ["2"]);
    assert_eq!(empty(&mut node, at, "copies"), ["1", "1"], "and none of the copies' own deliveries");
    assert_eq!((node.messages.messages_used(), node.broker.gauges().chunks), (0, 0));
}

#[test]
fn other_virtual_hosts_are_not_traced() {
    let (mut node, at) = traced(&Limits::default());
    node.admit("guest", "other");
    let there = node.connect_as("guest", "other");
    node.declare(there, "q", false);
    node.declare(there, "copies", false);
    bind(&mut node, there, "copies");
    node.publish(there, "q", 3);
    assert_eq!((node.ready(there, "copies"), node.ready(at, "copies")), (0, 0));
}

#[test]
fn firehose_copies_are_never_copied_again() {
    let (mut node, at) = traced(&Limits::default());
    node.declare(at, "q", false);
    bind(&mut node, at, "q");
    node.publish(at, "q", 1);
    node.consume(at, "q");
    assert_eq!(node.turns(at), 3, "the message, and copies of its publishing and of its delivery");
    assert_eq!(node.ready(at, "copies"), 2);
}

#[test]
fn a_full_queue_of_copies_blocks_no_client_and_holds_nothing_back() {
    let limits = Limits { messages_max: 400, queue_entries_max: 16 * 1024, ..Limits::default() };
    let (mut node, at) = traced(&limits);
    node.declare(at, "q", false);
    for round in 0..2000 {
        let outcome = node.offer(at, "q", 10);
        assert_eq!(outcome, Ok(PublishAnswer::Published), "round {round}");
        let got = get(&mut node, at, "q").expect("what was published");
        node.settle(at, got.tag, false, leveret_core::command::Settlement::Ack);
    }
    let copies = node.ready(at, "copies");
    assert!((200..400).contains(&copies), "{copies} of 4000");
    declare(&mut node, at, "reserve", false, &table(|t| t.int("x-max-length", 1)));
    assert_eq!(node.offer(at, "reserve", 10), Ok(PublishAnswer::Published));
}
