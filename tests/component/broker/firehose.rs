//! The firehose: which copies it makes, that it blocks no client, and that it does not copy its own messages.

use leveret_core::command::{Command, Outcome};
use leveret_core::limits::Limits;

use crate::dead_letters::{declare, empty, get, publish, table};
use crate::support::{At, TestBroker};

/// Returns a broker with a traced virtual host, and a queue of all copies.
fn traced(limits: &Limits) -> (TestBroker, At) {
    let mut house = TestBroker::with(limits);
    let at = house.connect();
    house.declare(at, "copies", false);
    bind(&mut house, at, "copies");
    assert!(house.broker.trace("/", "node", true));
    (house, at)
}

fn bind(house: &mut TestBroker, at: At, queue: &str) {
    let (exchange, routing_key, arguments) = ("amq.rabbitmq.trace", "#", &[][..]);
    house.done(at, Command::QueueBind { queue, exchange, routing_key, arguments });
}

#[test]
fn publishes_and_deliveries_are_copied_while_tracing_has_a_receiver() {
    let (mut house, at) = traced(&Limits::default());
    house.declare(at, "q", false);
    publish(&mut house, at, "q", &[0, 0], "1");
    assert_eq!(house.ready(at, "copies"), 1);
    assert_eq!(empty(&mut house, at, "q"), ["1"]);
    assert_eq!(house.ready(at, "copies"), 2);
    assert!(!house.broker.trace("nowhere", "node", true));
    assert!(house.broker.trace("/", "node", false));
    publish(&mut house, at, "q", &[0, 0], "2");
    assert_eq!(empty(&mut house, at, "q"), ["2"]);
    assert_eq!(empty(&mut house, at, "copies"), ["1", "1"], "and none of the copies' own deliveries");
    assert_eq!((house.messages.messages_used(), house.broker.gauges().chunks), (0, 0));
}

#[test]
fn other_virtual_hosts_are_not_traced() {
    let (mut house, at) = traced(&Limits::default());
    house.admit("guest", "other");
    let there = house.connect_as("guest", "other");
    house.declare(there, "q", false);
    house.declare(there, "copies", false);
    bind(&mut house, there, "copies");
    house.publish(there, "q", 3);
    assert_eq!((house.ready(there, "copies"), house.ready(at, "copies")), (0, 0));
}

#[test]
fn firehose_copies_are_never_copied_again() {
    let (mut house, at) = traced(&Limits::default());
    house.declare(at, "q", false);
    bind(&mut house, at, "q");
    house.publish(at, "q", 1);
    house.consume(at, "q");
    assert_eq!(house.turns(at), 3, "the message, and copies of its publishing and of its delivery");
    assert_eq!(house.ready(at, "copies"), 2);
}

#[test]
fn a_full_queue_of_copies_blocks_no_client_and_holds_nothing_back() {
    let limits = Limits { messages_max: 400, queue_entries_max: 16 * 1024, ..Limits::default() };
    let (mut house, at) = traced(&limits);
    house.declare(at, "q", false);
    for round in 0..2000 {
        let outcome = house.offer(at, "q", 10);
        assert_eq!(outcome, Outcome::Published, "round {round}");
        let got = get(&mut house, at, "q").expect("what was published");
        house.settle(at, got.tag, false, leveret_core::command::Settlement::Ack);
    }
    let copies = house.ready(at, "copies");
    assert!((200..400).contains(&copies), "{copies} of 4000");
    declare(&mut house, at, "reserve", false, &table(|t| t.int("x-max-length", 1)));
    assert_eq!(house.offer(at, "reserve", 10), Outcome::Published);
}
