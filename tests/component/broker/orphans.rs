//! A queue that adopts an orphan, before the orphan's messages are in it.

use leveret_broker::Contents;
use leveret_core::command::{Command, Outcome};
use leveret_core::limits::Limits;

use crate::support::{At, TestBroker};

/// Returns a broker with an orphan of three messages, whose name a client has just declared.
fn adopting() -> (TestBroker, At) {
    let mut house = TestBroker::with(&Limits { connections_max: 16, ..Limits::default() });
    house.pending_writes.start(100, true, u64::MAX >> 8);
    house.pending_writes.set_log_free_bytes((u64::MAX, u64::MAX), false);
    let contents = Contents { count: 3, bytes: 300, next_offset: 3, delivered_through: 0, watermark: 0 };
    let found = house.broker.restore_lost(&mut context!(house), 7, contents, Some(("/", "lost")), false);
    assert!(found.is_none(), "a queue that is not rebuilt");
    let at = house.connect();
    let (passive, durable, exclusive, auto_delete) = (false, true, false, false);
    let (queue, arguments) = ("lost", &[][..]);
    house.done(at, Command::QueueDeclare { queue, passive, durable, exclusive, auto_delete, arguments });
    assert_eq!(house.ready(at, "lost"), 3);
    (house, at)
}

/// Moves the messages into the queue, as the engine does at the end of a turn.
fn put(house: &mut TestBroker) {
    while let Some((_, queue)) = house.broker.recovery().next_adopted() {
        assert!(house.broker.queues_mut().restore_messages(queue, 0, 3));
        house.broker.end_adoption(queue);
    }
}

#[test]
fn adopted_messages_count_as_messages_of_the_queue() {
    let (mut house, at) = adopting();
    let delete = Command::QueueDelete { queue: "lost", if_unused: false, if_empty: true };
    assert!(matches!(house.ask(at, delete), Outcome::Fault(_)), "it is not empty");
    put(&mut house);
    house.turns(at);
    assert_eq!(house.ready(at, "lost"), 3);
}

#[test]
fn a_purge_removes_adopted_messages() {
    let (mut house, at) = adopting();
    assert_eq!(house.ask(at, Command::QueuePurge { queue: "lost" }), Outcome::MessageCount(3));
    assert_eq!(house.ready(at, "lost"), 0);
    put(&mut house);
    house.turns(at);
    assert_eq!(house.ready(at, "lost"), 0);
    assert_eq!(house.ask(at, Command::QueuePurge { queue: "lost" }), Outcome::MessageCount(0));
}

#[test]
fn a_queue_deleted_while_adopting_leaves_nothing() {
    let (mut house, at) = adopting();
    let before = house.broker.gauges();
    let delete = Command::QueueDelete { queue: "lost", if_unused: false, if_empty: false };
    assert_eq!(house.ask(at, delete), Outcome::MessageCount(3));
    put(&mut house);
    house.turns(at);
    assert_eq!((house.broker.gauges().chunks, house.broker.gauges().queues), (before.chunks, 0));
}
