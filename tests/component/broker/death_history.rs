//! Dead letters with a long history: rejected repeatedly, or with forged deaths.

use leveret_amqp::{TableWriter, Writer};
use leveret_core::command::{Command, Outcome, Settlement};

use crate::dead_letters::{BrokerRun, PERSISTENT, declare, disk, empty, got, publish, table, to, with};
use crate::support::TestBroker;

#[test]
fn a_rejected_dead_letter_is_dead_lettered_a_few_times() {
    let mut node = TestBroker::new(64);
    let at = node.connect();
    let full = |t: &mut TableWriter<'_, '_>| {
        t.int("x-max-length", 1)?;
        t.text("x-overflow", "reject-publish-dlx")
    };
    // Each queue rejects what the one before it rejected.
    for number in 0..12 {
        let arguments = with(&format!("{}", number + 1), full);
        declare(&mut node, at, &number.to_string(), false, &arguments);
        publish(&mut node, at, &number.to_string(), &[0, 0], "first");
    }
    declare(&mut node, at, "12", false, &[]);
    for (first, ends) in [("6", 1), ("1", 0)] {
        declare(&mut node, at, "q", false, &to(first));
        publish(&mut node, at, "q", &[0, 0], "second");
        let rejected = got(&mut node, at, "q");
        node.settle(at, rejected.tag, false, Settlement::Reject);
        assert_eq!(node.ready(at, "12"), ends, "so many are passed at once, and no more");
        empty(&mut node, at, "12");
        node.done(at, Command::QueueDelete { queue: "q", if_unused: false, if_empty: false });
    }
    for number in 0..12 {
        assert_eq!(empty(&mut node, at, &number.to_string()), ["first"]);
    }
    assert_eq!((node.messages.messages_used(), node.broker.gauges().chunks), (0, 0));
}

/// A publisher forged thousands of deaths: each is examined once, whatever the number of target queues.
#[test]
fn the_cost_of_forged_deaths_does_not_depend_on_the_number_of_queues() {
    let mut node = TestBroker::new(64);
    let at = node.connect();
    let deaths = |t: &mut TableWriter<'_, '_>| {
        t.array("x-death", |deaths| {
            (0..2000).try_for_each(|number| {
                deaths.table(|death| death.text("queue", if number == 1000 { "7" } else { "nobody" }))
            })
        })
    };
    let mut bytes = vec![0; 120_000];
    let mut writer = Writer::new(&mut bytes);
    writer.table(deaths).unwrap();
    let properties = [&[0x20, 0], writer.written()].concat();
    declare(
        &mut node,
        at,
        "q",
        false,
        &table(|t| {
            t.text("x-dead-letter-exchange", "amq.fanout")?;
            t.int("x-message-ttl", 0)
        }),
    );
    for number in 0..200 {
        let queue = number.to_string();
        node.declare(at, &queue, false);
        let (queue, exchange, routing_key, arguments) = (&*queue, "amq.fanout", "", &[][..]);
        node.done(at, Command::QueueBind { queue, exchange, routing_key, arguments });
    }
    node.pending_writes.set_time(1);
    node.work.take();
    assert_eq!(publish(&mut node, at, "q", &properties, "x"), Outcome::Published);
    node.broker.deliver(&mut context!(node), 0);
    let units = node.work.take();
    assert!((1000..5000).contains(&units), "{units}: the turn hears of each of them, and once");
    for number in 0..200 {
        assert_eq!(node.ready(at, &number.to_string()), u32::from(number != 7), "{number}");
    }
}

/// A dead letter is delivered only after it and the settlement of its original are durable.
///
/// Before, a power cut brought its message back, which died again, and a consumer received the dead letter twice
/// without a mark.
#[test]
fn a_dead_letter_waits_only_for_its_move() {
    let disk = disk();
    let mut run = BrokerRun::begin(&disk).expect("it opens");
    let at = run.at;
    declare(&mut run.node, at, "dead", true, &[]);
    declare(&mut run.node, at, "q", true, &to("dead"));
    publish(&mut run.node, at, "q", PERSISTENT, "x");
    let first = got(&mut run.node, at, "q");
    run.store().expect("the disk is well");
    let reader = run.node.connect();
    run.node.consume(reader, "dead");
    run.node.settle(at, first.tag, false, Settlement::Reject);
    assert_eq!(run.node.turns(reader), 0, "the dead letter is not in the log");
    assert!(!run.node.pending_writes.is_empty());
    run.store().expect("the disk is well");
    let node = &mut run.node;
    node.broker.deliver(&mut context!(node), 8192);
    assert_eq!(node.outbox_bodies(reader), ["x"], "what marks it as delivered went along");
    assert!(run.node.pending_writes.is_empty(), "so nothing more is written");
}
