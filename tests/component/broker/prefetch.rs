//! A prefetch count that the consumers of a channel share: which consumers receive messages.

use leveret_core::command::{ChannelCommand, DefinitionCommand, Settlement};

use crate::support::{At, TestBroker};

const QUEUES: [&str; 3] = ["a", "b", "c"];
const EACH: u32 = 60;

/// Returns three queues with equally many messages, and one channel that consumes all with a shared credit.
fn node_with(prefetch_count: u16) -> (TestBroker, At) {
    let mut node = TestBroker::new(100);
    let at = node.connect();
    node.done(at, ChannelCommand::Qos { prefetch_count, global: true });
    for queue in QUEUES {
        node.declare(at, queue, false);
        node.publish(at, queue, EACH);
    }
    for queue in QUEUES {
        node.consume(at, queue);
    }
    (node, at)
}

fn taken(node: &mut TestBroker, at: At) -> [u32; 3] {
    QUEUES.map(|queue| EACH - node.ready(at, queue))
}

/// Acknowledges everything delivered before this tag.
fn settle_below(node: &mut TestBroker, at: At, tag: u64) {
    if tag > 1 {
        node.settle(at, tag - 1, true, Settlement::Ack);
    }
}

/// A worker on three queues that takes one task at a time serves all of them.
#[test]
fn one_credit_is_shared_by_all_queues_of_its_channel() {
    let (mut node, at) = node_with(1);
    for tag in 1..=60 {
        settle_below(&mut node, at, tag);
        assert_eq!(node.turns(at), 1);
    }
    assert_eq!(taken(&mut node, at), [20, 20, 20]);
}

/// Credit that becomes free at once goes to all consumers, not only to the first one.
#[test]
fn ten_credits_are_shared_as_well() {
    let (mut node, at) = node_with(10);
    for turn in 0..6 {
        settle_below(&mut node, at, turn * 10 + 1);
        assert_eq!(node.turns(at), 10);
    }
    assert_eq!(taken(&mut node, at), [20, 20, 20]);
}

/// An empty queue does not delay the others, and has its turn when it gets a message.
#[test]
fn the_consumer_that_has_waited_longest_is_next() {
    let (mut node, at) = node_with(1);
    // One message of b is delivered before the others.
    node.done(at, DefinitionCommand::QueuePurge { queue: "b" });
    for tag in 1..=10 {
        settle_below(&mut node, at, tag);
        assert_eq!(node.turns(at), 1);
    }
    assert_eq!(taken(&mut node, at), [5, EACH, 4]);
    node.publish(at, "b", 2);
    settle_below(&mut node, at, 11);
    assert_eq!(node.turns(at), 1);
    assert_eq!(node.ready(at, "b"), 1, "it had waited longest");
}

/// As in RabbitMQ, a consumer without acknowledgements uses no credit, and gets nothing while no credit is left.
#[test]
fn a_consumer_without_acknowledgements_waits_for_the_credit_of_its_channel() {
    let mut node = TestBroker::new(100);
    let at = node.connect();
    node.done(at, ChannelCommand::Qos { prefetch_count: 2, global: true });
    node.declare(at, "a", false);
    node.declare(at, "b", false);
    node.consume(at, "a");
    let (queue, tag, arguments) = ("b", "free", &[][..]);
    node.done(at, ChannelCommand::Consume { queue, tag, no_ack: true, exclusive: false, arguments });
    node.publish(at, "b", 5);
    assert_eq!(node.turns(at), 5, "there is credit");
    node.publish(at, "a", 3);
    assert_eq!(node.turns(at), 2);
    node.publish(at, "b", 5);
    assert_eq!(node.turns(at), 0, "there is none");
    node.settle(at, 7, true, Settlement::Ack);
    assert_eq!(node.turns(at), 6, "the last of a, which leaves credit, and all of b");
}
