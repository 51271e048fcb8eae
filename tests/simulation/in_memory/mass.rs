//! Single commands that cause much work: done in steps, in order, and with the messages of other clients in
//! between.

use leveret_amqp::Method;
use leveret_core::limits::Limits;

use leveret_test_support::simulated_server::*;

const MANY: u32 = 60_000;

fn limits() -> Limits {
    Limits {
        messages_max: 100_000,
        queue_entries_max: 160_000,
        unacknowledged_max: 2 * MANY + 4_000,
        ..small_limits()
    }
}

/// Returns a broker with many numbered messages in "many", and an without_test_environment neighbour that publishes and
/// consumes.
fn crowded() -> (Simulation, usize, usize) {
    let mut simulation = Simulation::new(limits());
    let worker = simulation.open(&[1, 2]);
    let neighbour = simulation.open(&[1]);
    simulation.declare(neighbour, 1, "own");
    simulation.consume(neighbour, 1, "own", "own", true);
    simulation.declare(worker, 1, "many");
    for number in 0..MANY {
        simulation.publish_to(worker, 1, "many", &number.to_be_bytes());
    }
    assert_eq!(simulation.counts(worker, 1, "many"), (MANY, 0));
    (simulation, worker, neighbour)
}

/// Starts a command. While it is executed, the neighbour's messages must pass.
fn during(simulation: &mut Simulation, neighbour: usize, start: impl FnOnce(&mut Simulation)) {
    start(simulation);
    while simulation.engine.broker().gauges().jobs == 0 {
        assert!(simulation.round(), "no job was started: everything was done at once");
    }
    let mut passed = 0;
    while simulation.engine.broker().gauges().jobs > 0 {
        simulation.publish_to(neighbour, 1, "own", b"in between");
        for _ in 0..6 {
            simulation.round();
        }
        let heard = simulation.deliveries(neighbour).len();
        passed += heard;
        assert!(heard > 0 || simulation.engine.broker().gauges().jobs == 0, "the neighbour is delayed");
    }
    assert!(passed >= 2, "{passed} messages passed");
    simulation.run();
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
    let (mut simulation, worker, neighbour) = crowded();
    during(&mut simulation, neighbour, |simulation| simulation.send(worker, 1, &purge("many")));
    let heard = simulation.shown(worker);
    assert!(heard.contains(&format!("1 {:?}", Method::QueuePurgeOk { message_count: MANY })), "{heard:?}");
    assert_eq!(simulation.counts(worker, 1, "many"), (0, 0));
    simulation.end(&["many", "own"]);
}

#[test]
fn a_deletion_of_a_queue_with_many_messages() {
    let (mut simulation, worker, neighbour) = crowded();
    during(&mut simulation, neighbour, |simulation| {
        simulation.send(worker, 1, &delete("many"));
        // The name is free at once, and this is a new queue.
        simulation.send(worker, 1, &declare("many"));
        simulation.publish_to(worker, 1, "many", &7_u32.to_be_bytes());
    });
    assert_eq!(simulation.counts(worker, 1, "many"), (1, 0));
    simulation.end(&["many", "own"]);
}

/// Returns a broker whose worker holds all messages unacknowledged.
fn with_all_unacknowledged() -> (Simulation, usize, usize) {
    let (mut simulation, worker, neighbour) = crowded();
    simulation.consume(worker, 2, "many", "it", false);
    assert_eq!(numbers(&simulation.deliveries(worker)), all_in_order(false));
    (simulation, worker, neighbour)
}

#[test]
fn a_channel_that_closes_with_many_unacknowledged() {
    let (mut simulation, worker, neighbour) = with_all_unacknowledged();
    during(&mut simulation, neighbour, |simulation| simulation.send(worker, 2, &close_channel()));
    simulation.ask(worker, 2, &Method::ChannelOpen {});
    simulation.consume(worker, 2, "many", "again", false);
    assert_eq!(numbers(&simulation.deliveries(worker)), all_in_order(true));
    simulation.ack(worker, 2, 0, true);
    simulation.run();
    simulation.end(&["many", "own"]);
}

#[test]
fn a_connection_that_is_lost_with_many_unacknowledged() {
    let (mut simulation, worker, neighbour) = with_all_unacknowledged();
    during(&mut simulation, neighbour, |simulation| simulation.lose(worker));
    let heir = simulation.open(&[2]);
    simulation.consume(heir, 2, "many", "again", false);
    assert_eq!(numbers(&simulation.deliveries(heir)), all_in_order(true));
    simulation.end(&["many", "own"]);
}

#[test]
fn many_messages_rejected_at_once_are_redelivered_in_order_before_new_ones() {
    let (mut simulation, worker, neighbour) = with_all_unacknowledged();
    simulation.publish_to(neighbour, 1, "many", &MANY.to_be_bytes());
    during(&mut simulation, neighbour, |simulation| {
        simulation.send(worker, 2, &Method::BasicNack { delivery_tag: 0, multiple: true, requeue: true });
        simulation.publish_to(neighbour, 1, "many", &(MANY + 1).to_be_bytes());
    });
    let heard = numbers(&simulation.deliveries(worker));
    // The message published before the nack was already under way.
    let again: Vec<_> = heard.iter().copied().filter(|(number, _)| *number < MANY).collect();
    assert_eq!(again, all_in_order(true));
    assert_eq!(heard.last().map(|last| last.0), Some(MANY + 1));
    simulation.end(&["many", "own"]);
}

#[test]
fn many_messages_acknowledged_at_once_are_gone() {
    let (mut simulation, worker, neighbour) = with_all_unacknowledged();
    during(&mut simulation, neighbour, |simulation| simulation.ack(worker, 2, u64::from(MANY), true));
    assert_eq!(simulation.engine.messages().messages_used(), 0);
    simulation.end(&["many", "own"]);
}

#[test]
fn many_recovered_messages_are_redelivered_in_order() {
    let (mut simulation, worker, neighbour) = with_all_unacknowledged();
    during(&mut simulation, neighbour, |simulation| {
        simulation.send(worker, 2, &Method::BasicRecover { requeue: true });
    });
    assert_eq!(numbers(&simulation.deliveries(worker)), all_in_order(true));
    simulation.end(&["many", "own"]);
}

#[test]
fn an_exchange_with_many_bindings() {
    let limits = Limits { bindings_max: 10_000, names_bytes_max: 1 << 20, ..small_limits() };
    let mut simulation = Simulation::new(limits);
    let worker = simulation.open(&[1]);
    let neighbour = simulation.open(&[1]);
    simulation.declare(neighbour, 1, "own");
    simulation.consume(neighbour, 1, "own", "own", true);
    simulation.declare(worker, 1, "q");
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
    simulation.ask(worker, 1, &exchange);
    for number in 0..9_000 {
        simulation.send(worker, 1, &bind("q", "x", &format!("{number}.#")));
    }
    simulation.run();
    assert_eq!(simulation.engine.broker().gauges().bindings, 9_000);
    during(&mut simulation, neighbour, |simulation| {
        let delete = Method::ExchangeDelete { exchange: "x", if_unused: false, no_wait: false };
        simulation.send(worker, 1, &delete);
    });
    assert_eq!(simulation.engine.broker().gauges().bindings, 0);
    simulation.end(&["q", "own"]);
}

#[test]
fn a_message_of_a_get_that_was_never_sent_is_requeued_when_the_channel_closes() {
    let mut simulation = Simulation::new(limits());
    let (publisher, getter) = (simulation.open(&[1]), simulation.open(&[1]));
    simulation.declare(publisher, 1, "q");
    simulation.publish_to(publisher, 1, "q", b"once");
    simulation.run();
    // Both are in one packet: when the passive declare closes the channel, the answer to the get is not
    // written yet.
    simulation.send(getter, 1, &Method::BasicGet { queue: "q", no_ack: true });
    simulation.send(getter, 1, &passive("nowhere"));
    simulation.run();
    let shown = simulation.shown(getter);
    assert!(shown.iter().any(|line| line.contains("ChannelClose")), "{shown:?}");
    let was_sent = shown.iter().any(|line| line.contains("BasicGetOk"));
    let (ready, _) = simulation.counts(publisher, 1, "q");
    assert_eq!(ready, u32::from(!was_sent), "lost, or there twice: {shown:?}");
    simulation.lose(getter);
    simulation.lose(publisher);
}
