//! Single commands that cause much work: done in steps, in order, and with the messages of other clients in
//! between.

use leveret_amqp::Method;
use leveret_core::limits::Limits;

use crate::world::*;

const MANY: u32 = 60_000;

fn limits() -> Limits {
    Limits {
        messages_max: 100_000,
        queue_entries_max: 160_000,
        unacknowledged_max: 2 * MANY + 4_000,
        ..small_limits()
    }
}

/// Returns a broker with many numbered messages in "many", and an undisturbed neighbour that publishes and
/// consumes.
fn crowded() -> (World, usize, usize) {
    let mut world = World::new(limits());
    let worker = world.open(&[1, 2]);
    let neighbour = world.open(&[1]);
    world.declare(neighbour, 1, "own");
    world.consume(neighbour, 1, "own", "own", true);
    world.declare(worker, 1, "many");
    for number in 0..MANY {
        world.publish_to(worker, 1, "many", &number.to_be_bytes());
    }
    assert_eq!(world.counts(worker, 1, "many"), (MANY, 0));
    (world, worker, neighbour)
}

/// Starts a command. While it is executed, the neighbour's messages must pass.
fn during(world: &mut World, neighbour: usize, start: impl FnOnce(&mut World)) {
    start(world);
    while world.engine.broker().gauges().jobs == 0 {
        assert!(world.round(), "no job was started: everything was done at once");
    }
    let mut passed = 0;
    while world.engine.broker().gauges().jobs > 0 {
        world.publish_to(neighbour, 1, "own", b"in between");
        for _ in 0..6 {
            world.round();
        }
        let heard = world.deliveries(neighbour).len();
        passed += heard;
        assert!(heard > 0 || world.engine.broker().gauges().jobs == 0, "the neighbour is delayed");
    }
    assert!(passed >= 2, "{passed} messages passed");
    world.run();
}

fn numbers(deliveries: &[Said]) -> Vec<(u32, bool)> {
    let number = |said: &Said| match said.method() {
        Method::BasicDeliver { redelivered, .. } | Method::BasicGetOk { redelivered, .. } => {
            (u32::from_be_bytes(said.body[..].try_into().expect("four octets")), redelivered)
        }
        other => panic!("{other:?}"),
    };
    deliveries.iter().map(number).collect()
}

fn all_in_order(redelivered: bool) -> Vec<(u32, bool)> {
    (0..MANY).map(|number| (number, redelivered)).collect()
}

#[test]
fn a_purge_of_many_messages() {
    let (mut world, worker, neighbour) = crowded();
    during(&mut world, neighbour, |world| world.send(worker, 1, &purge("many")));
    let heard = world.shown(worker);
    assert!(heard.contains(&format!("1 {:?}", Method::QueuePurgeOk { message_count: MANY })), "{heard:?}");
    assert_eq!(world.counts(worker, 1, "many"), (0, 0));
    world.end(&["many", "own"]);
}

#[test]
fn a_deletion_of_a_queue_with_many_messages() {
    let (mut world, worker, neighbour) = crowded();
    during(&mut world, neighbour, |world| {
        world.send(worker, 1, &delete("many"));
        // The name is free at once, and this is a new queue.
        world.send(worker, 1, &declare("many"));
        world.publish_to(worker, 1, "many", &7_u32.to_be_bytes());
    });
    assert_eq!(world.counts(worker, 1, "many"), (1, 0));
    world.end(&["many", "own"]);
}

/// Returns a broker whose worker holds all messages unacknowledged.
fn with_all_unacknowledged() -> (World, usize, usize) {
    let (mut world, worker, neighbour) = crowded();
    world.consume(worker, 2, "many", "it", false);
    assert_eq!(numbers(&world.deliveries(worker)), all_in_order(false));
    (world, worker, neighbour)
}

#[test]
fn a_channel_that_closes_with_many_unacknowledged() {
    let (mut world, worker, neighbour) = with_all_unacknowledged();
    during(&mut world, neighbour, |world| world.send(worker, 2, &close_channel()));
    world.ask(worker, 2, &Method::ChannelOpen {});
    world.consume(worker, 2, "many", "again", false);
    assert_eq!(numbers(&world.deliveries(worker)), all_in_order(true));
    world.ack(worker, 2, 0, true);
    world.run();
    world.end(&["many", "own"]);
}

#[test]
fn a_connection_that_is_lost_with_many_unacknowledged() {
    let (mut world, worker, neighbour) = with_all_unacknowledged();
    during(&mut world, neighbour, |world| world.lose(worker));
    let heir = world.open(&[2]);
    world.consume(heir, 2, "many", "again", false);
    assert_eq!(numbers(&world.deliveries(heir)), all_in_order(true));
    world.end(&["many", "own"]);
}

#[test]
fn many_messages_rejected_at_once_are_redelivered_in_order_before_new_ones() {
    let (mut world, worker, neighbour) = with_all_unacknowledged();
    world.publish_to(neighbour, 1, "many", &MANY.to_be_bytes());
    during(&mut world, neighbour, |world| {
        world.send(worker, 2, &Method::BasicNack { delivery_tag: 0, multiple: true, requeue: true });
        world.publish_to(neighbour, 1, "many", &(MANY + 1).to_be_bytes());
    });
    let heard = numbers(&world.deliveries(worker));
    // The message published before the nack was already under way.
    let again: Vec<_> = heard.iter().copied().filter(|(number, _)| *number < MANY).collect();
    assert_eq!(again, all_in_order(true));
    assert_eq!(heard.last().map(|last| last.0), Some(MANY + 1));
    world.end(&["many", "own"]);
}

#[test]
fn many_messages_acknowledged_at_once_are_gone() {
    let (mut world, worker, neighbour) = with_all_unacknowledged();
    during(&mut world, neighbour, |world| world.ack(worker, 2, u64::from(MANY), true));
    assert_eq!(world.engine.messages().messages_used(), 0);
    world.end(&["many", "own"]);
}

#[test]
fn many_recovered_messages_are_redelivered_in_order() {
    let (mut world, worker, neighbour) = with_all_unacknowledged();
    during(&mut world, neighbour, |world| {
        world.send(worker, 2, &Method::BasicRecover { requeue: true });
    });
    assert_eq!(numbers(&world.deliveries(worker)), all_in_order(true));
    world.end(&["many", "own"]);
}

#[test]
fn an_exchange_with_many_bindings() {
    let limits = Limits { bindings_max: 10_000, names_bytes_max: 1 << 20, ..small_limits() };
    let mut world = World::new(limits);
    let worker = world.open(&[1]);
    let neighbour = world.open(&[1]);
    world.declare(neighbour, 1, "own");
    world.consume(neighbour, 1, "own", "own", true);
    world.declare(worker, 1, "q");
    let exchange = Method::ExchangeDeclare {
        exchange: "x",
        kind: "topic",
        passive: false,
        durable: false,
        auto_delete: false,
        internal: false,
        no_wait: false,
        arguments: leveret_amqp::Table::EMPTY,
    };
    world.ask(worker, 1, &exchange);
    for number in 0..9_000 {
        world.send(worker, 1, &bind("q", "x", &format!("{number}.#")));
    }
    world.run();
    assert_eq!(world.engine.broker().gauges().bindings, 9_000);
    during(&mut world, neighbour, |world| {
        let delete = Method::ExchangeDelete { exchange: "x", if_unused: false, no_wait: false };
        world.send(worker, 1, &delete);
    });
    assert_eq!(world.engine.broker().gauges().bindings, 0);
    world.end(&["q", "own"]);
}

#[test]
fn a_message_of_a_get_that_was_never_sent_is_requeued_when_the_channel_closes() {
    let mut world = World::new(limits());
    let (publisher, getter) = (world.open(&[1]), world.open(&[1]));
    world.declare(publisher, 1, "q");
    world.publish_to(publisher, 1, "q", b"once");
    world.run();
    // Both are in one packet: when the passive declare closes the channel, the answer to the get is not
    // written yet.
    world.send(getter, 1, &Method::BasicGet { queue: "q", no_ack: true });
    world.send(getter, 1, &passive("nowhere"));
    world.run();
    let shown = world.shown(getter);
    assert!(shown.iter().any(|line| line.contains("ChannelClose")), "{shown:?}");
    let was_sent = shown.iter().any(|line| line.contains("BasicGetOk"));
    let (ready, _) = world.counts(publisher, 1, "q");
    assert_eq!(ready, u32::from(!was_sent), "lost, or there twice: {shown:?}");
    world.lose(getter);
    world.lose(publisher);
}
