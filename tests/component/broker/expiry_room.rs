//! Expiring messages without capacity for their dead letters, or many at once.

use leveret_core::command::{
    ChannelCommand, DefinitionCommand, GetAnswer, GetCommand, PublishAnswer, PublishCommand, Settlement,
};
use leveret_core::limits::Limits;
use leveret_core::mem::{MessageFlags, MessageId, Share};
use leveret_core::time::Now;

use crate::dead_letters::{
    BrokerRun, NOW, PERSISTENT, declare, disk, filled, get, got, message_to, publish, table, with,
};
use crate::expiry::{expiring, pass_to, persistent_expiring, ttl};
use crate::support::TestBroker;
use leveret_test_support::simulated_disk::SimDisk;

/// Fills the memory for bodies, until they are released. Message records stay free.
fn bodies_filled(node: &mut TestBroker) -> Vec<MessageId> {
    let mut held = Vec::new();
    while let Ok(id) = node.messages.begin("", b"", Share::Reserve) {
        let (flags, len, share) = (MessageFlags::NONE, 4_000, Share::Reserve);
        if node.messages.reserve_content(id, &[0, 0], flags, len, share).is_err() {
            node.messages.release(id);
            break;
        }
        node.messages.append_body(id, &[7; 4_000]);
        node.messages.finish(id);
        held.push(id);
    }
    held
}

/// A dead letter without capacity waits alone: expired messages are gone, and new ones go to waiting
/// consumers.
#[test]
fn a_rejected_message_without_capacity_does_not_stop_expiry() {
    let mut node = TestBroker::with(&Limits {
        messages_max: 4_000,
        body_bytes_max: 1 << 20,
        assembly_bytes_max: 1 << 18,
        ..Limits::default()
    });
    node.pending_writes.set_time(1_000);
    let at = node.connect();
    declare(&mut node, at, "dead", false, &[]);
    declare(&mut node, at, "q", false, &with("dead", |t| t.int("x-message-ttl", 100)));
    publish(&mut node, at, "q", &[0, 0], &"x".repeat(200_000)).unwrap();
    let rejected = got(&mut node, at, "q");
    publish(&mut node, at, "q", &[0, 0], "small").unwrap();
    let mut bodies = bodies_filled(&mut node);
    let records = filled(&mut node);
    node.settle(at, rejected.tag, false, Settlement::Reject);
    node.pending_writes.set_time(1_100);
    node.consume(at, "q");
    assert_eq!((node.turns(at), node.ready(at, "dead")), (0, 0), "neither has room");
    // A new message needs some memory besides, and the large one needs more.
    records.into_iter().chain(bodies.drain(..40)).for_each(|id| node.messages.release(id));
    node.turns(at);
    assert_eq!((node.ready(at, "q"), node.ready(at, "dead")), (0, 1), "the small one has");
    publish(&mut node, at, "q", &[0, 0], "new").unwrap();
    assert_eq!(node.turns(at), 1);
    bodies.into_iter().for_each(|id| node.messages.release(id));
    node.turns(at);
    assert_eq!(node.ready(at, "dead"), 2);
}

/// The capacity that a dead letter waits for may be what the client itself has not acknowledged.
#[test]
fn a_get_does_not_wait_for_capacity_that_its_client_has_to_free() {
    let mut node = TestBroker::with(&Limits { messages_max: 64, ..Limits::default() });
    node.pending_writes.set_time(1_000);
    let at = node.connect();
    declare(&mut node, at, "dead", false, &[]);
    declare(&mut node, at, "q", false, &with("dead", |_| Ok(())));
    publish(&mut node, at, "q", &[0, 0], "1").unwrap();
    let first = got(&mut node, at, "q");
    publish(&mut node, at, "q", &expiring("100"), "2").unwrap();
    let mut held = filled(&mut node);
    node.pending_writes.set_time(1_100);
    for _ in 0..2 {
        assert!(get(&mut node, at, "q").is_none(), "it is answered");
        node.turns(at);
    }
    node.settle(at, first.tag, false, Settlement::Ack);
    held.drain(..2).for_each(|id| node.messages.release(id));
    node.turns(at);
    assert_eq!((node.ready(at, "q"), node.ready(at, "dead")), (0, 1));
    held.into_iter().for_each(|id| node.messages.release(id));
}

/// More messages have expired than a get examines in one step.
#[test]
fn a_get_finds_the_message_behind_all_expired_ones() {
    let mut node = TestBroker::new(64);
    node.pending_writes.set_time(1_000);
    let at = node.connect();
    declare(&mut node, at, "q", false, &[]);
    for _ in 0..1_000 {
        publish(&mut node, at, "q", &expiring("100"), "x").unwrap();
    }
    publish(&mut node, at, "q", &[0, 0], "for ever").unwrap();
    node.pending_writes.set_time(1_100);
    assert_eq!(node.ask(at, GetCommand { queue: "q", no_ack: true }), Ok(GetAnswer::Later));
    node.turns(at);
    let outcome = node.broker.take_late_get(at.connection).map(|(outcome, _)| outcome);
    assert_eq!(outcome, Some(Ok(GetAnswer::Queued)));
}

/// Copying a message for its dead letter is work: a turn expires fewer large messages.
#[test]
fn a_turn_expires_few_large_messages() {
    const LETTERS: u32 = 60;
    let limits = Limits { body_bytes_max: 64 << 20, ..Limits::default() };
    for consumes in [false, true] {
        let mut node = TestBroker::with(&limits);
        node.pending_writes.set_time(1_000);
        let at = node.connect();
        declare(&mut node, at, "dead", false, &[]);
        declare(&mut node, at, "q", false, &with("dead", |t| t.int("x-message-ttl", 100)));
        for _ in 0..LETTERS {
            publish(&mut node, at, "q", &[0, 0], &"x".repeat(200_000)).unwrap();
        }
        node.pending_writes.set_time(1_100);
        if consumes {
            node.consume(at, "q");
        }
        node.turn(at);
        let gone = node.ready(at, "dead");
        assert!((1..LETTERS / 2).contains(&gone), "{gone}");
        node.turns(at);
        assert_eq!(node.ready(at, "dead"), LETTERS);
    }
}

/// Expiring messages between those for a consumer is work of its turn, too.
#[test]
fn messages_that_expire_between_others_count_as_work_of_the_turn() {
    const EACH: u32 = 60;
    let mut node = TestBroker::with(&Limits { messages_max: 20_000, ..Limits::default() });
    node.pending_writes.set_time(1_000);
    let at = node.connect();
    declare(&mut node, at, "q", false, &[]);
    for _ in 0..100 {
        for _ in 0..EACH {
            publish(&mut node, at, "q", &expiring("100"), "x").unwrap();
        }
        publish(&mut node, at, "q", &[0, 0], "for ever").unwrap();
    }
    node.consume(at, "q");
    node.pending_writes.set_time(1_100);
    node.broker.deliver(&mut context!(node), 64);
    // A command to the queue itself would deliver first.
    let left = node.broker.queue_depth("/", "q").unwrap();
    assert!(left > 100 * EACH - 2_000, "{left}");
    node.turns(at);
    assert_eq!(node.ready(at, "q"), 0);
}

/// Reading large properties to find the expiration of a message is counted as work.
#[test]
fn reading_large_properties_is_work() {
    let mut node = TestBroker::new(64);
    node.pending_writes.set_time(1_000);
    let at = node.connect();
    declare(&mut node, at, "q", false, &ttl(500));
    let text = "x".repeat(50_000);
    let headers = table_of(&text);
    let mut properties = vec![0x21, 0];
    properties.extend((headers.len() as u32).to_be_bytes());
    properties.extend(headers);
    properties.extend(b"\x03300");
    let message = message_to(&mut node, "", "q", &properties, b"x");
    node.work.take();
    assert_eq!(
        node.ask(at, PublishCommand::Publish { message, mandatory: false }),
        Ok(PublishAnswer::Published)
    );
    let units = node.work.take();
    assert!(units >= 50_000 / 512, "{units}");
}

/// Returns the entries of a table with one long text.
fn table_of(text: &str) -> Vec<u8> {
    let mut headers = b"\x04mineS".to_vec();
    headers.extend((text.len() as u32).to_be_bytes());
    headers.extend(text.as_bytes());
    headers
}

/// The second of several waiting consumers counts, too.
#[test]
fn messages_with_ttl_0_go_to_the_next_consumer_as_well() {
    let mut node = TestBroker::new(64);
    let at = node.connect();
    let other = node.connect();
    declare(&mut node, at, "q", false, &ttl(0));
    for one in [at, other] {
        node.done(one, ChannelCommand::Qos { prefetch_count: 1, global: false });
        node.consume(one, "q");
    }
    for body in ["1", "2", "3"] {
        publish(&mut node, at, "q", &[0, 0], body).unwrap();
    }
    node.broker.deliver(&mut context!(node), 64);
    assert_eq!((node.broker.gauges().deliveries, node.ready(at, "q")), (2, 0));
}

/// The message behind one that never expires waits for its own TTL.
#[test]
fn messages_behind_others_wait_for_their_ttl_too() {
    let disk = disk();
    let mut run = BrokerRun::begin(&disk).expect("it opens");
    let at = run.at;
    declare(&mut run.node, at, "q", true, &[]);
    publish(&mut run.node, at, "q", PERSISTENT, "for ever").unwrap();
    assert!(!run.node.broker.queues().has_stored_deadline() && !run.node.broker.queues().has_deadlines());
    publish(&mut run.node, at, "q", &persistent_expiring("1000"), "behind").unwrap();
    assert!(run.node.broker.queues().has_stored_deadline() && run.node.broker.queues().has_deadlines());
}

/// Deleting a queue writes an entry, and waits while too much is to be written.
#[test]
fn the_deletion_of_an_unused_queue_waits_for_pending_writes() {
    let disk = disk();
    let mut run = BrokerRun::begin(&disk).expect("it opens");
    let at = run.at;
    declare(&mut run.node, at, "q", true, &table(|t| t.int("x-expires", 100)));
    let mut declared = 0;
    while !run.node.pending_writes.is_crowded() {
        declare(&mut run.node, at, &format!("q{declared}"), true, &[]);
        declared += 1;
    }
    pass_to(&mut run.node, at, 1 << 20);
    assert_eq!(run.node.ready(at, "q"), 0, "it is there");
    assert!(
        !run.node.broker.may_expire_or_trim(&run.node.pending_writes, &run.node.messages),
        "or the loop would burn"
    );
    run.store().expect("the disk is well");
    pass_to(&mut run.node, at, 1 << 21);
    assert_eq!(run.node.broker.gauges().queues, declared);
}

/// A publisher blocked by the log share of its virtual host resumes when messages expire or a queue is
/// deleted.
#[test]
fn expired_messages_free_the_log_share_of_their_virtual_host() {
    for argument in ["x-message-ttl", "x-expires"] {
        let mut node = TestBroker::new(64);
        node.pending_writes.start(1, true, 1 << 20);
        node.admit("other", "other");
        node.pending_writes.set_log_free_bytes(400_000, 1_000_000, false);
        node.pending_writes.set_time(1_000);
        let at = node.connect();
        declare(&mut node, at, "q", true, &table(|t| t.int(argument, 100)));
        declare(&mut node, at, "next", true, &[]);
        let body = "x".repeat(5_000);
        let mut count = 0;
        while publish(&mut node, at, "q", PERSISTENT, &body) == Ok(PublishAnswer::Published) {
            count += 1;
        }
        assert!(count > 10, "{count}");
        let before = node.broker.capacity_freed();
        pass_to(&mut node, at, 1_100);
        assert_ne!(node.broker.capacity_freed(), before, "{argument}");
        assert_eq!(
            publish(&mut node, at, "next", PERSISTENT, &body),
            Ok(PublishAnswer::Published),
            "{argument}"
        );
    }
}

/// A log full of expiring messages proceeds in the space reserved for dead letters and in what that frees. It
/// does so although a dead letter is larger than its message.
///
/// Where this ends too early, it proceeds when dead letters are consumed: no message waits forever.
#[test]
fn a_full_log_of_expiring_messages_proceeds() {
    for (body_len, needs_taker) in [(4_000, false), (400, true)] {
        let disk = disk();
        let mut run = BrokerRun::begin(&disk).expect("it opens");
        let at = run.at;
        declare(&mut run.node, at, "dead", true, &[]);
        for queue in ["a", "b"] {
            declare(&mut run.node, at, queue, true, &with("dead", |t| t.int("x-message-ttl", 1_000)));
        }
        let body = "x".repeat(body_len);
        let mut count = 0;
        while publish(&mut run.node, at, ["a", "b"][count % 2], PERSISTENT, &body)
            == Ok(PublishAnswer::Published)
        {
            count += 1;
            if count % 64 == 0 {
                write_all(&mut run, &disk);
            }
        }
        let (mut taken, mut last, mut vain, mut has_taker) = (0, u32::MAX, 0, false);
        while last > 0 {
            run.node.pending_writes.set_time(1 << 20);
            taken += run.node.turns(at);
            run.read_back();
            write_all(&mut run, &disk);
            let left = run.node.ready(at, "a") + run.node.ready(at, "b");
            vain = if left < last { 0 } else { vain + 1 };
            last = left;
            if vain == 50 {
                println!("{body_len}: {count} published, {left} left, {taken} taken");
                assert!(needs_taker && !has_taker, "{left} of {count} are left of {body_len} bytes");
                let (queue, no_ack, exclusive, arguments) = ("dead", true, false, &[][..]);
                run.node.done(at, ChannelCommand::Consume { queue, tag: "", no_ack, exclusive, arguments });
                (has_taker, vain) = (true, 0);
            }
        }
        assert_eq!(has_taker, needs_taker);
        assert_eq!(taken + run.node.broker.queue_depth("/", "dead").unwrap(), count as u32);
    }
}

/// Publishers leave two segments free, and commits that only record broker time use these in turn. So the
/// time can always be written while a log is full of messages without a consumer.
#[test]
fn broker_time_is_written_while_the_log_is_full() {
    const HOUR_MS: u64 = 3_600_000;
    let disk = disk();
    let mut run = BrokerRun::begin(&disk).expect("it opens");
    let at = run.at;
    declare(&mut run.node, at, "q", true, &[]);
    let expiring = persistent_expiring("4000000000");
    while publish(&mut run.node, at, "q", &expiring, &"x".repeat(4_000)) == Ok(PublishAnswer::Published) {
        write_all(&mut run, &disk);
    }
    for hour in 1..=1_000 {
        let now = Now::from_ms(hour * HOUR_MS);
        run.keeper.record_time(true, now);
        run.store_at(now);
        write_all_at(&mut run, &disk, now);
    }
    drop(run);
    let run = BrokerRun::begin(&disk).expect("it opens");
    let hours = run.keeper.log().time_ms(NOW) / HOUR_MS;
    assert!(hours >= 999, "{hours} hours of 1000 are known");
}

/// Writes, and lets the compactor free space, until there is nothing to do.
fn write_all(run: &mut BrokerRun, disk: &SimDisk) {
    write_all_at(run, disk, NOW);
}

fn write_all_at(run: &mut BrokerRun, disk: &SimDisk, now: Now) {
    run.store_at(now);
    for _ in 0..200 {
        let Some(job) = run.keeper.log_mut().next_compaction_read() else { break };
        let done = job.run(&mut disk.clone());
        run.keeper.log_mut().compaction_read_done(done);
        run.store_at(now);
    }
}

/// A get from a deleted queue whose first message has to wait is answered, although other clients still hold
/// some of its messages.
#[test]
fn a_get_from_a_queue_that_is_deleted_is_answered() {
    let disk = disk();
    let mut run = BrokerRun::begin(&disk).expect("it opens");
    let at = run.at;
    declare(&mut run.node, at, "q", true, &[]);
    for _ in 0..600 {
        publish(&mut run.node, at, "q", PERSISTENT, "x").unwrap();
    }
    run.store().expect("the disk is well");
    let ask = GetCommand { queue: "q", no_ack: false };
    assert_eq!(
        run.node.ask(at, ask),
        Ok(GetAnswer::Later),
        "that it may have been delivered is not written yet"
    );
    run.store().expect("the disk is well");
    run.node.turns(at);
    let first = run.node.broker.take_late_get(at.connection).map(|(outcome, _)| outcome);
    assert_eq!(first, Some(Ok(GetAnswer::Queued)));
    while run.node.ask(at, ask) == Ok(GetAnswer::Queued) {
        run.node.broker.sent(&mut context!(run.node), at.connection, 1);
    }
    let other = run.node.connect();
    run.node.done(other, DefinitionCommand::QueueDelete { queue: "q", if_unused: false, if_empty: false });
    run.node.turns(at);
    let last = run.node.broker.take_late_get(at.connection).map(|(outcome, _)| outcome);
    assert_eq!(last, Some(Ok(GetAnswer::Empty)));
}
