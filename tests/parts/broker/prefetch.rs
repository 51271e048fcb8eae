//! A prefetch that the consumers of a channel have together: who gets what it allows.

use leveret_core::command::{Command, Settlement};

use crate::support::{At, TestBroker};

const QUEUES: [&str; 3] = ["a", "b", "c"];
const EACH: u32 = 60;

/// Three queues with as many messages each, and one channel that consumes them all with a common credit.
fn house_with(prefetch_count: u16) -> (TestBroker, At) {
    let mut house = TestBroker::new(100);
    let at = house.connect();
    house.done(at, Command::Qos { prefetch_count, global: true });
    for queue in QUEUES {
        house.declare(at, queue, false);
        house.publish(at, queue, EACH);
    }
    for queue in QUEUES {
        house.consume(at, queue);
    }
    (house, at)
}

fn taken(house: &mut TestBroker, at: At) -> [u32; 3] {
    QUEUES.map(|queue| EACH - house.ready(at, queue))
}

/// Everything that was delivered before this one is acknowledged.
fn settle_below(house: &mut TestBroker, at: At, tag: u64) {
    if tag > 1 {
        house.settle(at, tag - 1, true, Settlement::Ack);
    }
}

/// A worker of three queues that takes one task at a time serves all of them.
#[test]
fn one_credit_goes_round_the_queues_of_its_channel() {
    let (mut house, at) = house_with(1);
    for tag in 1..=60 {
        settle_below(&mut house, at, tag);
        assert_eq!(house.turns(at), 1);
    }
    assert_eq!(taken(&mut house, at), [20, 20, 20]);
}

/// What is freed together goes to all, and not to the first that finds it.
#[test]
fn ten_credits_go_round_as_well() {
    let (mut house, at) = house_with(10);
    for turn in 0..6 {
        settle_below(&mut house, at, turn * 10 + 1);
        assert_eq!(house.turns(at), 10);
    }
    assert_eq!(taken(&mut house, at), [20, 20, 20]);
}

/// A queue that has nothing keeps nobody waiting, and has its turn when it has something.
#[test]
fn whoever_has_waited_longest_is_next() {
    let (mut house, at) = house_with(1);
    // One of b goes to its consumer before the others go.
    house.done(at, Command::QueuePurge { queue: "b" });
    for tag in 1..=10 {
        settle_below(&mut house, at, tag);
        assert_eq!(house.turns(at), 1);
    }
    assert_eq!(taken(&mut house, at), [5, EACH, 4]);
    house.publish(at, "b", 2);
    settle_below(&mut house, at, 11);
    assert_eq!(house.turns(at), 1);
    assert_eq!(house.ready(at, "b"), 1, "it had waited longest");
}

/// In RabbitMQ one that acknowledges nothing uses up no credit, and gets nothing while there is none.
#[test]
fn one_without_acknowledgements_waits_for_the_credit_of_its_channel() {
    let mut house = TestBroker::new(100);
    let at = house.connect();
    house.done(at, Command::Qos { prefetch_count: 2, global: true });
    house.declare(at, "a", false);
    house.declare(at, "b", false);
    house.consume(at, "a");
    let (queue, tag, arguments) = ("b", "free", &[][..]);
    house.done(at, Command::Consume { queue, tag, no_ack: true, exclusive: false, arguments });
    house.publish(at, "b", 5);
    assert_eq!(house.turns(at), 5, "there is credit");
    house.publish(at, "a", 3);
    assert_eq!(house.turns(at), 2);
    house.publish(at, "b", 5);
    assert_eq!(house.turns(at), 0, "there is none");
    house.settle(at, 7, true, Settlement::Ack);
    assert_eq!(house.turns(at), 6, "the last of a, which leaves credit, and all of b");
}
