//! Consumers receive messages of a transaction only when all of it is durable.

use leveret_core::command::{ChannelAnswer, ChannelCommand, GetAnswer, GetCommand, PublishAnswer};

use crate::dead_letters::{BrokerRun, PERSISTENT, declare, disk, publish, table};
use crate::support::At;

const TRANSIENT: &[u8] = &[0, 0];

/// Returns the bodies of the messages delivered to a consumer now.
fn delivered(run: &mut BrokerRun, at: At) -> Vec<String> {
    while run.node.broker.run_jobs(&mut context!(run.node)) {}
    run.node.broker.deliver(&mut context!(run.node), 8192);
    while run.node.broker.next_with_output().is_some() {}
    run.node.outbox_bodies(at)
}

#[test]
fn persistent_messages_of_a_transaction_are_delivered_after_its_sync_and_keep_their_places() {
    for size in [1, 3] {
        for is_got in [false, true] {
            let disk = disk();
            let mut run = BrokerRun::begin(&disk).expect("it opens");
            let (publisher, taker) = (run.at, run.node.connect());
            let transacted = run.node.open(publisher, 2);
            declare(&mut run.node, publisher, "q", true, &[]);
            if !is_got {
                run.node.consume(taker, "q");
            }
            run.store().expect("the disk is well");
            run.node.done(transacted, ChannelCommand::TxSelect);
            let bodies: Vec<String> = (0..size).map(|number| format!("t{number}")).collect();
            for body in &bodies {
                assert_eq!(
                    publish(&mut run.node, transacted, "q", PERSISTENT, body),
                    Ok(PublishAnswer::Published)
                );
            }
            let commit = run.node.ask(transacted, ChannelCommand::TxCommit);
            assert_eq!(commit, Ok(ChannelAnswer::Done));
            for (properties, body) in [(TRANSIENT, "later"), (PERSISTENT, "last")] {
                assert_eq!(
                    publish(&mut run.node, publisher, "q", properties, body),
                    Ok(PublishAnswer::Published)
                );
            }
            let expected = [&bodies[..], &["later".into(), "last".into()]].concat();
            if is_got {
                let get = GetCommand { queue: "q", no_ack: true };
                assert_eq!(run.node.ask(taker, get), Ok(GetAnswer::Later), "it waits for the sync");
                assert_eq!(delivered(&mut run, taker), [""; 0]);
                run.store().expect("the disk is well");
                assert_eq!(delivered(&mut run, taker), expected[..1]);
            } else {
                assert_eq!(delivered(&mut run, taker), [""; 0], "{size} messages");
                let mut all = Vec::new();
                for _ in 0..3 {
                    run.store().expect("the disk is well");
                    all.extend(delivered(&mut run, taker));
                }
                assert_eq!(all, expected);
            }
        }
    }
}

/// Commits a transaction of 320 messages that is not synced yet. Returns the broker, the publisher, and a
/// consumer with this prefetch of a queue with these arguments.
fn committed(arguments: &[u8], prefetch_count: u16) -> (BrokerRun, At, At) {
    let mut run = BrokerRun::begin(&disk()).expect("it opens");
    let (publisher, taker) = (run.at, run.node.connect());
    let transacted = run.node.open(publisher, 2);
    declare(&mut run.node, publisher, "q", true, arguments);
    run.node.done(taker, ChannelCommand::Qos { prefetch_count, global: false });
    run.node.consume(taker, "q");
    run.store().expect("the disk is well");
    run.node.done(transacted, ChannelCommand::TxSelect);
    for number in 0..320 {
        publish(&mut run.node, transacted, "q", PERSISTENT, &format!("{number}")).unwrap();
    }
    // If the queue rejects some messages, this is a fault.
    let _ = run.node.ask(transacted, ChannelCommand::TxCommit);
    (run, publisher, taker)
}

/// RabbitMQ delivers a message at once when its queue has a ready consumer. So the length limit of the queue
/// counts only messages that consumers cannot take.
#[test]
fn a_length_limit_counts_only_what_consumers_cannot_take_after_the_sync() {
    for (overflow, levels) in
        [("drop-head", 0), ("drop-head", 3), ("reject-publish", 0), ("reject-publish", 3)]
    {
        for (prefetch, expected, left) in [(None, 0..320, 0), (Some(100), 0..100, 5)] {
            let limits = table(|t| {
                t.long("x-max-length", 5)?;
                if levels > 0 {
                    t.long("x-max-priority", levels)?;
                }
                t.text("x-overflow", overflow)
            });
            let (mut run, publisher, taker) = committed(&limits, prefetch.unwrap_or(0));
            let mut all = delivered(&mut run, taker);
            for _ in 0..3 {
                run.store().expect("the disk is well");
                for _ in 0..10 {
                    all.extend(delivered(&mut run, taker));
                }
            }
            let wanted: Vec<String> = expected.map(|number| number.to_string()).collect();
            assert_eq!(all, wanted, "{overflow}, {prefetch:?}");
            assert_eq!(run.node.ready(publisher, "q"), left, "{overflow}, {levels}, {prefetch:?}");
        }
    }
}

#[test]
fn a_length_limit_acts_when_the_waiting_consumer_leaves_before_the_sync() {
    let (mut run, publisher, taker) = committed(&table(|t| t.long("x-max-length", 5)), 0);
    assert_eq!(delivered(&mut run, taker), [""; 0]);
    run.node.done(taker, ChannelCommand::Cancel { tag: "q" });
    run.store().expect("the disk is well");
    run.node.turns(publisher);
    assert_eq!(run.node.ready(publisher, "q"), 5);
}

/// Transient messages, and messages of transient queues, need no sync.
#[test]
fn transactions_that_need_no_log_are_delivered_at_once() {
    let disk = disk();
    let mut run = BrokerRun::begin(&disk).expect("it opens");
    let (publisher, taker) = (run.at, run.node.connect());
    let transacted = run.node.open(publisher, 2);
    declare(&mut run.node, publisher, "q", true, &[]);
    declare(&mut run.node, publisher, "brief", false, &[]);
    run.node.consume(taker, "q");
    run.node.consume(taker, "brief");
    run.store().expect("the disk is well");
    run.node.done(transacted, ChannelCommand::TxSelect);
    publish(&mut run.node, transacted, "q", TRANSIENT, "a").unwrap();
    publish(&mut run.node, transacted, "brief", PERSISTENT, "b").unwrap();
    run.node.done(transacted, ChannelCommand::TxCommit);
    let mut bodies = delivered(&mut run, taker);
    bodies.sort();
    assert_eq!(bodies, ["a", "b"]);
}
