//! Message TTL and expiry of unused queues, in broker time.

use leveret_amqp::{Full, TableWriter};
use leveret_core::command::{
    ChannelCommand, DefinitionCommand, GetCommand, PublishAnswer, PublishCommand, Settlement,
};
use leveret_core::limits::Limits;
use leveret_core::time::Now;

use crate::dead_letters::{
    BrokerRun, PERSISTENT, at_every_cut, declare, disk, filled, get, got, message_to, publish, table, with,
};
use crate::support::{At, TestBroker};

pub(crate) fn ttl(ms: i32) -> Vec<u8> {
    table(|t| t.int("x-message-ttl", ms))
}

/// Returns properties with an expiration.
pub(crate) fn expiring(ms: &str) -> Vec<u8> {
    let mut properties = vec![0x01, 0, ms.len() as u8];
    properties.extend(ms.as_bytes());
    properties
}

/// Returns persistent properties with an expiration, which comes after the delivery mode.
pub(crate) fn persistent_expiring(ms: &str) -> Vec<u8> {
    let mut properties = vec![0x11, 0, 2, ms.len() as u8];
    properties.extend(ms.as_bytes());
    properties
}

/// Sets the time, and processes what is due.
pub(crate) fn pass_to(node: &mut TestBroker, at: At, time_ms: u64) {
    node.pending_writes.set_time(time_ms);
    node.turns(at);
}

#[test]
fn messages_expire_at_their_time() {
    let mut node = TestBroker::new(64);
    node.pending_writes.set_time(1_000);
    let at = node.connect();
    declare(&mut node, at, "q", false, &ttl(500));
    publish(&mut node, at, "q", &[0, 0], "1").unwrap();
    node.turns(at);
    assert_eq!(node.broker.queues().next_expiry_ms(), Some(1_500), "the loop sleeps until then");
    pass_to(&mut node, at, 1_200);
    publish(&mut node, at, "q", &[0, 0], "2").unwrap();
    pass_to(&mut node, at, 1_499);
    assert_eq!(node.ready(at, "q"), 2);
    pass_to(&mut node, at, 1_500);
    assert_eq!((node.ready(at, "q"), node.broker.queues().next_expiry_ms()), (1, Some(1_700)));
    pass_to(&mut node, at, 1_700);
    assert_eq!((node.ready(at, "q"), node.broker.queues().next_expiry_ms()), (0, None));
    assert_eq!(node.messages.messages_used(), 0);
}

#[test]
fn the_shorter_of_both_times_counts_and_only_the_first_expires() {
    let mut node = TestBroker::new(64);
    node.pending_writes.set_time(1_000);
    let at = node.connect();
    declare(&mut node, at, "q", false, &ttl(500));
    declare(&mut node, at, "plain", false, &[]);
    for queue in ["q", "plain"] {
        publish(&mut node, at, queue, &expiring("300"), "own").unwrap();
    }
    publish(&mut node, at, "plain", &[0, 0], "for ever").unwrap();
    publish(&mut node, at, "plain", &expiring("100"), "behind").unwrap();
    pass_to(&mut node, at, 1_299);
    assert_eq!((node.ready(at, "q"), node.ready(at, "plain")), (1, 3));
    pass_to(&mut node, at, 1_300);
    assert_eq!((node.ready(at, "q"), node.ready(at, "plain")), (0, 2), "what is behind has to wait");
    let first = got(&mut node, at, "plain");
    assert_eq!((first.body.as_str(), first.left), ("for ever", 0), "what expired behind it does not count");
    assert!(get(&mut node, at, "plain").is_none(), "now it stood first");
}

#[test]
fn expired_messages_are_dead_lettered_and_not_delivered() {
    let mut node = TestBroker::new(64);
    node.pending_writes.set_time(1_000);
    let at = node.connect();
    declare(&mut node, at, "dead", false, &[]);
    declare(&mut node, at, "q", false, &with("dead", |t| t.int("x-message-ttl", 100)));
    publish(&mut node, at, "q", &expiring("5000"), "x").unwrap();
    node.pending_writes.set_time(1_100);
    assert!(get(&mut node, at, "q").is_none(), "even before its queue is checked");
    let letter = got(&mut node, at, "dead");
    assert_eq!(letter.deaths(), [("q".into(), "expired".into(), 1)]);
    // The dead letter has no expiration of its own, or it would expire there too.
    pass_to(&mut node, at, 1 << 40);
    node.settle(at, letter.tag, false, Settlement::Requeue);
    node.turns(at);
    assert_eq!(node.ready(at, "dead"), 1);
}

#[test]
fn messages_with_ttl_0_are_delivered_only_to_waiting_consumers() {
    let mut node = TestBroker::new(64);
    node.pending_writes.set_time(1_000);
    let at = node.connect();
    declare(&mut node, at, "dead", false, &[]);
    declare(&mut node, at, "q", false, &ttl(0));
    declare(&mut node, at, "dlq", false, &with("dead", |t| t.int("x-message-ttl", 0)));
    for queue in ["q", "dlq"] {
        publish(&mut node, at, queue, &[0, 0], "1").unwrap();
        node.turns(at);
    }
    pass_to(&mut node, at, 1_001);
    assert_eq!((node.ready(at, "q"), node.ready(at, "dlq"), node.ready(at, "dead")), (0, 0, 1));
    for queue in ["q", "dlq"] {
        node.consume(at, queue);
        publish(&mut node, at, queue, &[0, 0], "2").unwrap();
        assert_eq!(node.turns(at), 1, "{queue}");
    }
}

/// A hundred thousand messages whose time comes at once: no turn does all of it.
#[test]
fn a_turn_expires_a_bounded_number_of_messages() {
    let mut node = TestBroker::with(&Limits { messages_max: 20_000, ..Limits::default() });
    node.pending_writes.set_time(1_000);
    let at = node.connect();
    declare(&mut node, at, "q", false, &ttl(10));
    node.publish(at, "q", 10_000);
    node.turns(at);
    node.pending_writes.set_time(2_000);
    node.turn(at);
    let left = node.ready(at, "q");
    assert!((9_000..10_000).contains(&left), "{left}");
    node.turns(at);
    assert_eq!(node.ready(at, "q"), 0);
}

#[test]
fn requeued_messages_keep_their_expiry_time() {
    let mut node = TestBroker::new(64);
    node.pending_writes.set_time(1_000);
    let at = node.connect();
    declare(&mut node, at, "q", false, &ttl(500));
    publish(&mut node, at, "q", &[0, 0], "1").unwrap();
    let first = got(&mut node, at, "q");
    pass_to(&mut node, at, 1_400);
    node.settle(at, first.tag, false, Settlement::Requeue);
    pass_to(&mut node, at, 1_499);
    assert_eq!(node.ready(at, "q"), 1);
    pass_to(&mut node, at, 1_500);
    assert_eq!(node.ready(at, "q"), 0);
}

#[test]
fn an_unused_queue_is_deleted() {
    let mut node = TestBroker::new(64);
    node.pending_writes.set_time(1_000);
    let at = node.connect();
    let expires = |t: &mut TableWriter<'_, '_>| -> Result<(), Full> { t.int("x-expires", 100) };
    declare(&mut node, at, "q", false, &table(expires));
    node.turns(at);
    assert_eq!(node.broker.queues().next_expiry_ms(), Some(1_100));
    // A get, a declaration and a consumer count as uses.
    pass_to(&mut node, at, 1_090);
    assert!(get(&mut node, at, "q").is_none());
    pass_to(&mut node, at, 1_180);
    assert_eq!(node.ready(at, "q"), 0);
    pass_to(&mut node, at, 1_270);
    node.consume(at, "q");
    pass_to(&mut node, at, 9_000);
    node.done(at, ChannelCommand::Cancel { tag: "q" });
    pass_to(&mut node, at, 9_099);
    assert_eq!(node.broker.gauges().queues, 1);
    pass_to(&mut node, at, 9_100);
    assert_eq!(node.broker.gauges().queues, 0);
    let (queue, no_ack) = ("q", false);
    assert!(node.ask(at, GetCommand { queue, no_ack }).is_err());
}

// ---- consumers

/// A message with TTL 0 expires before the next command if no consumer waits.
#[test]
fn a_message_with_ttl_0_expires_before_the_next_command() {
    let mut node = TestBroker::new(64);
    node.pending_writes.set_time(1_000);
    let at = node.connect();
    declare(&mut node, at, "dead", false, &[]);
    declare(&mut node, at, "q", false, &with("dead", |t| t.int("x-message-ttl", 0)));
    declare(&mut node, at, "own", false, &with("dead", |_| Ok(())));
    publish(&mut node, at, "q", &[0, 0], "1").unwrap();
    publish(&mut node, at, "own", &expiring("0"), "2").unwrap();
    for queue in ["q", "own"] {
        assert_eq!(node.ready(at, queue), 0, "{queue}");
        node.consume(at, queue);
    }
    assert_eq!((node.turns(at), node.ready(at, "dead")), (0, 2));
}

/// Several messages in one turn, for a consumer with a prefetch limit.
#[test]
fn messages_with_ttl_0_go_to_a_consumer_as_far_as_its_credit_allows() {
    let mut node = TestBroker::new(64);
    let at = node.connect();
    node.done(at, ChannelCommand::Qos { prefetch_count: 3, global: false });
    declare(&mut node, at, "q", false, &ttl(0));
    node.consume(at, "q");
    for number in 0..5 {
        publish(&mut node, at, "q", &[0, 0], &format!("{number}")).unwrap();
    }
    assert_eq!((node.turns(at), node.ready(at, "q")), (3, 0));
}

#[test]
fn without_capacity_for_its_dead_letter_an_expired_message_stays_undelivered_and_proceeds_later() {
    let mut node = TestBroker::with(&Limits { messages_max: 64, ..Limits::default() });
    node.pending_writes.set_time(1_000);
    let at = node.connect();
    declare(&mut node, at, "dead", false, &[]);
    declare(&mut node, at, "q", false, &with("dead", |t| t.int("x-message-ttl", 100)));
    publish(&mut node, at, "q", &[0, 0], "x").unwrap();
    let mut held = filled(&mut node);
    pass_to(&mut node, at, 1_100);
    node.consume(at, "q");
    assert_eq!((node.turns(at), node.ready(at, "q"), node.ready(at, "dead")), (0, 1, 0));
    assert!(!node.broker.may_expire_or_trim(&node.pending_writes, &node.messages), "or the loop would burn");
    assert_eq!(node.broker.queues().next_expiry_ms(), None, "likewise");
    held.drain(..4).for_each(|id| node.messages.release(id));
    node.turns(at);
    assert_eq!((node.ready(at, "q"), node.ready(at, "dead")), (0, 1));
    held.into_iter().for_each(|id| node.messages.release(id));
    // The queue continues after that.
    publish(&mut node, at, "q", &[0, 0], "y").unwrap();
    assert_eq!(node.turns(at), 1);
}

/// While messages are being requeued, it is unknown which of them is the first.
#[test]
fn the_first_message_while_others_are_requeued_need_not_be_the_first_to_expire() {
    let mut node = TestBroker::new(2_000);
    node.pending_writes.set_time(1_000);
    let at = node.connect();
    declare(&mut node, at, "q", false, &[]);
    node.consume(at, "q");
    for _ in 0..600 {
        publish(&mut node, at, "q", &[0, 0], "for ever").unwrap();
    }
    node.turns(at);
    publish(&mut node, at, "q", &expiring("100"), "behind").unwrap();
    assert_eq!(node.turns(at), 1);
    node.pending_writes.set_time(2_000);
    let mut context = context!(node);
    node.broker.disconnect(&mut context, at.connection);
    let at = node.connect();
    node.turns(at);
    assert_eq!(node.ready(at, "q"), 601, "it stands behind all the others");
}

#[test]
fn many_queues_whose_time_comes_at_once_take_several_turns() {
    let mut node = TestBroker::with(&Limits { queues_max: 3_000, ..Limits::default() });
    node.pending_writes.set_time(1_000);
    let at = node.connect();
    for number in 0..2_000 {
        let queue = format!("q{number}");
        declare(&mut node, at, &queue, false, &ttl(10));
        publish(&mut node, at, &queue, &[0, 0], "x").unwrap();
    }
    node.turns(at);
    node.pending_writes.set_time(2_000);
    node.turn(at);
    assert!(node.messages.messages_used() > 1_000, "{}", node.messages.messages_used());
    node.turns(at);
    assert_eq!((node.messages.messages_used(), node.broker.queues().next_expiry_ms()), (0, None));
}

/// A store that cannot be written keeps its queues, without repeated attempts in each turn.
#[test]
fn a_queue_that_cannot_be_deleted_stays() {
    let disk = disk();
    let mut run = BrokerRun::begin(&disk).expect("it opens");
    let at = run.at;
    declare(&mut run.node, at, "q", true, &table(|t| t.int("x-expires", 100)));
    run.store().expect("the disk is well");
    drop(run);
    let mut run = BrokerRun::begin(&disk).expect("it opens");
    run.node.pending_writes.start(9, false, 1 << 20);
    let at = run.at;
    pass_to(&mut run.node, at, 1 << 30);
    assert_eq!(run.node.broker.gauges().queues, 1);
    assert_eq!(run.node.broker.queues().next_expiry_ms(), None, "or the loop would burn");
}

// ---- with length limits, with several queues

/// The length limit drops the first message, which has no TTL, and the new first message has one.
#[test]
fn messages_left_by_the_length_limit_expire_in_time() {
    let mut node = TestBroker::new(64);
    node.pending_writes.set_time(1_000);
    let at = node.connect();
    declare(&mut node, at, "q", false, &table(|t| t.int("x-max-length", 1)));
    publish(&mut node, at, "q", &[0, 0], "for ever").unwrap();
    publish(&mut node, at, "q", &expiring("300"), "x").unwrap();
    node.turns(at);
    assert_eq!((node.ready(at, "q"), node.broker.queues().next_expiry_ms()), (1, Some(1_300)));
    pass_to(&mut node, at, 1_300);
    assert_eq!((node.ready(at, "q"), node.messages.messages_used()), (0, 0));
}

/// Combines a length limit and a TTL with dead letters, which may take a turn.
#[test]
fn length_limits_and_ttls_use_the_same_dead_letter_queue() {
    let mut node = TestBroker::new(64);
    node.pending_writes.set_time(1_000);
    let at = node.connect();
    declare(&mut node, at, "dead", false, &[]);
    let both = |t: &mut TableWriter<'_, '_>| -> Result<(), Full> {
        t.int("x-max-length", 2)?;
        t.int("x-message-ttl", 500)
    };
    declare(&mut node, at, "q", false, &with("dead", both));
    for (time_ms, body) in [(1_000, "1"), (1_100, "2"), (1_200, "3"), (1_300, "4")] {
        pass_to(&mut node, at, time_ms);
        publish(&mut node, at, "q", &[0, 0], body).unwrap();
    }
    pass_to(&mut node, at, 1_699);
    assert_eq!((node.ready(at, "q"), node.ready(at, "dead")), (2, 2));
    assert_eq!(node.broker.queues().next_expiry_ms(), Some(1_700));
    pass_to(&mut node, at, 1_700);
    pass_to(&mut node, at, 1_800);
    assert_eq!((node.ready(at, "q"), node.broker.queues().next_expiry_ms()), (0, None));
    let reasons: Vec<_> = core::iter::from_fn(|| get(&mut node, at, "dead"))
        .map(|got| (got.deaths()[0].1.clone(), got.body))
        .collect();
    let expected = [("maxlen", "1"), ("maxlen", "2"), ("expired", "3"), ("expired", "4")];
    assert_eq!(reasons, expected.map(|(reason, body)| (reason.to_owned(), body.to_owned())));
}

/// A message is in two queues. When one drops it at once, its dead letter goes behind it in the other queue,
/// whichever queue is processed first.
#[test]
fn a_message_in_two_queues_is_checked_in_both() {
    for (gives, has) in [("a", "b"), ("b", "a")] {
        let mut node = TestBroker::new(64);
        node.pending_writes.set_time(1_000);
        let at = node.connect();
        for queue in ["a", "b"] {
            let its = if queue == has { ttl(100) } else { with(has, |t| t.int("x-message-ttl", 0)) };
            declare(&mut node, at, queue, false, &its);
            let (exchange, routing_key, arguments) = ("amq.fanout", "", &[][..]);
            node.done(at, DefinitionCommand::QueueBind { queue, exchange, routing_key, arguments });
        }
        let message = message_to(&mut node, "amq.fanout", "", &[0, 0], b"x");
        assert_eq!(
            node.ask(at, PublishCommand::Publish { message, mandatory: false }),
            Ok(PublishAnswer::Published)
        );
        pass_to(&mut node, at, 1_001);
        assert_eq!((node.ready(at, gives), node.ready(at, has)), (0, 2));
        assert_eq!(node.broker.queues().next_expiry_ms(), Some(1_100));
        pass_to(&mut node, at, 1_100);
        assert_eq!((node.ready(at, has), node.messages.messages_used()), (0, 0));
    }
}

// ---- across restarts

/// The remaining TTL counts broker time over all runs of the broker. Waiting uses no memory.
#[test]
fn a_restart_neither_shortens_nor_extends_a_ttl() {
    let disk = disk();
    let mut run = BrokerRun::begin(&disk).expect("it opens");
    let at = run.at;
    declare(&mut run.node, at, "dead", true, &[]);
    declare(&mut run.node, at, "ttl", true, &ttl(100_000));
    declare(&mut run.node, at, "own", true, &with("dead", |_| Ok(())));
    run.node.pending_writes.set_time(50_000);
    publish(&mut run.node, at, "ttl", PERSISTENT, "x").unwrap();
    publish(&mut run.node, at, "own", &persistent_expiring("120000"), "y").unwrap();
    run.store_at(Now::from_ms(55_000)).expect("the disk is well");
    drop(run);
    let mut run = BrokerRun::begin(&disk).expect("it opens");
    let at = run.at;
    assert!(
        (55_000..56_000).contains(&run.node.pending_writes.time_ms()),
        "{}",
        run.node.pending_writes.time_ms()
    );
    assert_eq!(run.read_back(), (0, 2), "they are only looked at");
    assert_eq!(run.node.messages.messages_used(), 0);
    assert_eq!(run.node.broker.queues().next_expiry_ms(), Some(150_000));
    for (time_ms, left) in
        [(149_999, (1, 1, 0)), (150_000, (0, 1, 0)), (169_999, (0, 1, 0)), (170_000, (0, 0, 1))]
    {
        pass_to(&mut run.node, at, time_ms);
        run.read_back();
        let node = &mut run.node;
        let counts = (node.ready(at, "ttl"), node.ready(at, "own"), node.ready(at, "dead"));
        assert_eq!(counts, left, "at {time_ms}");
    }
    assert_eq!(run.get("dead").expect("there is a message").deaths(), [("own".into(), "expired".into(), 1)]);
}

/// The message behind an examined one is examined when that is gone.
#[test]
fn messages_in_the_log_expire_one_after_the_other() {
    let disk = disk();
    let mut run = BrokerRun::begin(&disk).expect("it opens");
    let at = run.at;
    declare(&mut run.node, at, "q", true, &ttl(1_000));
    for time_ms in [10_000, 10_400, 10_800] {
        run.node.pending_writes.set_time(time_ms);
        publish(&mut run.node, at, "q", PERSISTENT, "x").unwrap();
    }
    run.store_at(Now::from_ms(10_800)).expect("the disk is well");
    drop(run);
    let mut run = BrokerRun::begin(&disk).expect("it opens");
    let at = run.at;
    run.read_back();
    for (time_ms, left) in [(10_999, 3), (11_000, 2), (11_399, 2), (11_400, 1), (11_800, 0)] {
        pass_to(&mut run.node, at, time_ms);
        run.read_back();
        assert_eq!(run.node.ready(at, "q"), left, "at {time_ms}");
    }
}

/// A message evicted from memory also expires in time.
#[test]
fn evicted_messages_expire() {
    let limits = Limits { messages_max: 160, connections_max: 16, ..Limits::default() };
    let disk = disk();
    let mut run = BrokerRun::begin_with(&disk, &limits).expect("it opens");
    let at = run.at;
    declare(&mut run.node, at, "q", true, &ttl(100_000));
    run.node.pending_writes.set_time(2_000);
    for _ in 0..100 {
        publish(&mut run.node, at, "q", PERSISTENT, "x").unwrap();
    }
    for _ in 0..3 {
        while run.node.broker.evict(&mut context!(run.node)) {
            run.store().expect("the disk is well");
        }
        run.store().expect("the disk is well");
    }
    assert!(run.node.messages.messages_used() < 80, "{}", run.node.messages.messages_used());
    assert_eq!(run.read_back(), (0, 0), "when the first expires is known");
    pass_to(&mut run.node, at, 101_999);
    run.read_back();
    assert_eq!(run.node.ready(at, "q"), 100);
    pass_to(&mut run.node, at, 102_000);
    run.read_back();
    assert_eq!(run.node.ready(at, "q"), 0);
    assert_eq!(run.node.messages.messages_used(), 0);
}

#[test]
fn over_power_cuts_an_expired_message_is_in_one_place() {
    let arguments = with("dead", |t| t.int("x-message-ttl", 1_000));
    at_every_cut(
        &arguments,
        |_, at| at,
        |node, at| {
            node.settle(at, 0, true, Settlement::Requeue);
            node.pending_writes.set_time(1 << 20);
        },
    );
}

/// A run that ends without a stop has recorded its time while something waited for it. A run in which
/// nothing waits records nothing.
#[test]
fn broker_time_goes_on_over_a_power_cut_without_traffic() {
    for ttl_ms in [Some(1 << 30), None] {
        let disk = disk();
        let mut run = BrokerRun::begin(&disk).expect("it opens");
        let at = run.at;
        declare(&mut run.node, at, "q", true, &ttl_ms.map_or(Vec::new(), ttl));
        publish(&mut run.node, at, "q", PERSISTENT, "x").unwrap();
        run.node.turns(at);
        run.store().expect("the disk is well");
        let mut commits = 0;
        let mut said_at_ms = 1;
        for now_ms in (1..3_600_000).step_by(1_000) {
            let now = Now::from_ms(now_ms);
            run.node.pending_writes.set_time(now_ms);
            if run.keeper.log().time_deadline().is_due(now) {
                run.keeper.record_time(run.node.broker.queues().has_stored_deadline(), now);
            }
            while let Some(write) =
                run.keeper.next_write(&mut run.node.pending_writes, &mut run.node.messages, now)
            {
                let done = write.run(&mut disk.clone());
                commits += u32::from(done.is_commit());
                said_at_ms = now_ms;
                run.keeper
                    .write_done(&mut run.node.pending_writes, &mut run.node.messages, done, now)
                    .expect("the disk is well");
            }
            let unsaid_ms = now_ms - said_at_ms;
            assert!(
                ttl_ms.is_none() || unsaid_ms <= (now_ms / 8).max(60_000) + 1_000,
                "{unsaid_ms} at {now_ms}"
            );
        }
        drop(run);
        disk.power_cut();
        disk.start(leveret_test_support::simulated_disk::Trouble::Never);
        let run = BrokerRun::begin(&disk).expect("it opens");
        let time_ms = run.node.pending_writes.time_ms();
        if ttl_ms.is_some() {
            assert!((3_600_000 / 9 * 8..3_600_000).contains(&time_ms), "{time_ms}");
            assert!((10..40).contains(&commits), "{commits}");
        } else {
            assert_eq!(commits, 0);
            assert!(time_ms < 100, "{time_ms}");
        }
    }
}

/// The expiry of a queue starts again with a start, and a queue that stays unused is deleted.
#[test]
fn a_start_is_a_use_of_a_queue() {
    let disk = disk();
    let mut run = BrokerRun::begin(&disk).expect("it opens");
    let at = run.at;
    declare(&mut run.node, at, "q", true, &table(|t| t.int("x-expires", 1_000)));
    // The store is older than the queue may stay unused.
    run.store_at(Now::from_ms(60_000)).expect("the disk is well");
    drop(run);
    let mut run = BrokerRun::begin(&disk).expect("it opens");
    let at = run.at;
    let now_ms = run.node.pending_writes.time_ms();
    assert!(now_ms >= 60_000);
    assert_eq!(run.node.broker.queues().next_expiry_ms(), Some(now_ms + 1_000));
    pass_to(&mut run.node, at, now_ms + 1_000);
    assert_eq!(run.node.broker.gauges().queues, 0);
    run.store().expect("the disk is well");
    drop(run);
    assert_eq!(BrokerRun::begin(&disk).expect("it opens").node.broker.gauges().queues, 0, "for good");
}

/// A message may have an expiration in a queue without arguments. It must not fill the log forever.
#[test]
fn messages_in_the_log_expire_in_a_queue_without_arguments() {
    let disk = disk();
    let mut run = BrokerRun::begin(&disk).expect("it opens");
    let at = run.at;
    declare(&mut run.node, at, "q", true, &[]);
    run.node.pending_writes.set_time(10_000);
    publish(&mut run.node, at, "q", &persistent_expiring("1000"), "x").unwrap();
    run.store_at(Now::from_ms(10_000)).expect("the disk is well");
    drop(run);
    let mut run = BrokerRun::begin(&disk).expect("it opens");
    let at = run.at;
    assert_eq!(run.read_back(), (0, 1), "it is only looked at");
    assert_eq!(run.node.broker.queues().next_expiry_ms(), Some(11_000));
    pass_to(&mut run.node, at, 11_000);
    run.read_back();
    assert_eq!(run.node.ready(at, "q"), 0);
}

/// Any other write also records the time.
#[test]
fn broker_time_is_not_written_twice() {
    let disk = disk();
    let mut run = BrokerRun::begin(&disk).expect("it opens");
    let at = run.at;
    declare(&mut run.node, at, "q", true, &ttl(1 << 30));
    run.store().expect("the disk is well");
    publish(&mut run.node, at, "q", PERSISTENT, "x").unwrap();
    let now = Now::from_ms(90_000);
    run.keeper.record_time(true, now);
    let before = run.keeper.log().counters().commits;
    run.store_at(now).expect("the disk is well");
    assert_eq!(run.keeper.log().counters().commits, before + 1);
}

/// The time is recorded even in a log that is full of messages that have to expire.
#[test]
fn broker_time_goes_on_in_a_full_log() {
    let disk = disk();
    let mut run = BrokerRun::begin(&disk).expect("it opens");
    let at = run.at;
    // No queue may use all of it.
    for queue in ["a", "b"] {
        declare(&mut run.node, at, queue, true, &ttl(1 << 30));
    }
    run.store().expect("the disk is well");
    let body = "x".repeat(4_000);
    let mut count = 0;
    while publish(&mut run.node, at, ["a", "b"][count % 2], PERSISTENT, &body) == Ok(PublishAnswer::Published)
    {
        count += 1;
        if count % 16 == 0 {
            run.node.turns(at);
            run.store().expect("the disk is well");
            while run.node.broker.evict(&mut context!(run.node)) {}
        }
    }
    run.store().expect("the disk is well");
    assert!(count > 1_000, "{count}");
    let now = Now::from_ms(500_000);
    run.keeper.record_time(run.node.broker.queues().has_stored_deadline(), now);
    run.store_at(now).expect("the disk is well");
    drop(run);
    disk.power_cut();
    disk.start(leveret_test_support::simulated_disk::Trouble::Never);
    let run = BrokerRun::begin(&disk).expect("it opens");
    assert!(run.node.pending_writes.time_ms() >= 500_000, "{}", run.node.pending_writes.time_ms());
}
