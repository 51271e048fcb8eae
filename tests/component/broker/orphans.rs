//! A queue that adopts an orphan, before the orphan's messages are in it.

use leveret_core::command::{DefinitionAnswer, DefinitionCommand};
use leveret_core::limits::Limits;
use leveret_queues::Contents;

use crate::support::{At, TestBroker};

/// Returns a broker with an orphan of three messages, whose name a client has just declared.
fn adopting() -> (TestBroker, At) {
    let mut node = TestBroker::with(&Limits { connections_max: 16, ..Limits::default() });
    node.pending_writes.start(100, true, u64::MAX >> 8);
    node.pending_writes.set_log_free_bytes(u64::MAX, u64::MAX, false);
    let contents = Contents { count: 3, bytes: 300, next_offset: 3, delivered_below: 0, watermark: 0 };
    let found = node.broker.restore_lost(&mut context!(node), 7, contents, Some(("/", "lost")), false);
    assert!(found.is_none(), "a queue that is not rebuilt");
    let at = node.connect();
    let (passive, durable, exclusive, auto_delete) = (false, true, false, false);
    let (queue, arguments) = ("lost", &[][..]);
    node.done(
        at,
        DefinitionCommand::QueueDeclare { queue, passive, durable, exclusive, auto_delete, arguments },
    );
    assert_eq!(node.ready(at, "lost"), 3);
    (node, at)
}

/// Moves the messages into the queue, as the engine does at the end of a turn.
fn put(node: &mut TestBroker) {
    while let Some((_, queue)) = node.broker.recovery().next_adopted() {
        assert!(node.broker.queues_mut().restore_messages(queue, 0, 3));
        node.broker.end_adoption(queue);
    }
}

#[test]
fn adopted_messages_count_as_messages_of_the_queue() {
    let (mut node, at) = adopting();
    let delete = DefinitionCommand::QueueDelete { queue: "lost", if_unused: false, if_empty: true };
    assert!(node.ask(at, delete).is_err(), "it is not empty");
    put(&mut node);
    node.turns(at);
    assert_eq!(node.ready(at, "lost"), 3);
}

#[test]
fn a_purge_removes_adopted_messages() {
    let (mut node, at) = adopting();
    assert_eq!(
        node.ask(at, DefinitionCommand::QueuePurge { queue: "lost" }),
        Ok(DefinitionAnswer::QueuePurged(3))
    );
    assert_eq!(node.ready(at, "lost"), 0);
    put(&mut node);
    node.turns(at);
    assert_eq!(node.ready(at, "lost"), 0);
    assert_eq!(
        node.ask(at, DefinitionCommand::QueuePurge { queue: "lost" }),
        Ok(DefinitionAnswer::QueuePurged(0))
    );
}

#[test]
fn a_queue_deleted_while_adopting_leaves_nothing() {
    let (mut node, at) = adopting();
    let before = node.broker.gauges();
    let delete = DefinitionCommand::QueueDelete { queue: "lost", if_unused: false, if_empty: false };
    assert_eq!(node.ask(at, delete), Ok(DefinitionAnswer::QueueDeleted(3)));
    put(&mut node);
    node.turns(at);
    assert_eq!((node.broker.gauges().chunks, node.broker.gauges().queues), (before.chunks, 0));
}
