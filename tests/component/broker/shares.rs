//! The share that one connection or one queue may use of the message memory, whatever it does not settle.

use crate::dead_letters::message_to;
use crate::support::{At, TestBroker};
use leveret_core::command::{
    ChannelCommand, DefinitionCommand, GetAnswer, GetCommand, LoginCommand, OpenChannel, OpenVhost,
    PublishAnswer, PublishCommand, Settlement,
};
use leveret_core::definition::UserLimits;
use leveret_core::error::Fault;
use leveret_core::limits::Limits;
use leveret_core::mem::{MessageFlags, Share};

const BODY: u32 = 4000;

/// Returns a broker with 512 blocks for bodies, 480 of them for ordinary clients.
fn small() -> TestBroker {
    TestBroker::with(&Limits {
        body_bytes_max: 2 << 20,
        assembly_bytes_max: 1_500_000,
        message_size_max: 1 << 20,
        connections_max: 64,
        ..Limits::default()
    })
}

/// Publishes until it has to wait or is refused. Returns the number of accepted messages and the last
/// outcome.
fn flood(node: &mut TestBroker, at: At, key: &str) -> (u32, Result<PublishAnswer, Fault>) {
    let mut taken = 0;
    loop {
        match node.offer(at, key, BODY) {
            Ok(PublishAnswer::Published) => taken += 1,
            outcome => return (taken, outcome),
        }
        node.turns(at);
    }
}

/// Closes everything, and checks that every counter has its initial value.
fn end(mut node: TestBroker, all: &[At]) {
    for at in all {
        node.broker.release(&mut context!(node), at.connection);
    }
    while node.broker.run_jobs(&mut context!(node)) {}
    let left = node.broker.gauges();
    assert_eq!((left.unsettled_bytes, left.open_messages, left.open_bytes), (0, 0, 0));
    assert_eq!(left.connections, 0);
}

#[test]
fn a_stuck_consumer_and_its_publisher_leave_memory_for_another_queue() {
    let mut node = small();
    let (stuck, publisher, pair) = (node.connect(), node.connect(), node.connect());
    node.declare(stuck, "stuck", false);
    node.declare(pair, "pair", false);
    node.consume(stuck, "stuck");
    node.consume(pair, "pair");
    let mut taken = 0;
    loop {
        let outcome = node.offer(publisher, "stuck", BODY);
        node.turns(stuck);
        match outcome {
            Ok(PublishAnswer::Published) => taken += 1,
            Ok(PublishAnswer::Wait) => break,
            other => panic!("{other:?}"),
        }
    }
    // The queue has two thirds of 480 blocks, and the consumer has half of 480.
    assert_eq!((taken, node.broker.gauges().deliveries), (321, 240));
    assert!(!node.broker.has_work(&node.pending_writes), "the consumer waits without cost");
    for tag in 1..=1000 {
        assert_eq!(node.offer(pair, "pair", BODY), Ok(PublishAnswer::Published));
        assert_eq!(node.turns(pair), 1);
        node.settle(pair, tag, false, Settlement::Ack);
        node.turns(stuck);
    }
    assert_eq!(node.broker.gauges().deliveries, 240, "what others settle is not for the stuck one");
    assert_eq!(node.offer(publisher, "stuck", BODY), Ok(PublishAnswer::Wait));
    // The consumer settles after all, so it and its publisher continue.
    node.settle(stuck, 1, false, Settlement::Ack);
    assert_eq!((node.turns(stuck), node.broker.gauges().deliveries), (1, 240));
    assert_eq!(node.offer(publisher, "stuck", BODY), Ok(PublishAnswer::Published));
    for _ in 0..3 {
        node.settle(stuck, 0, true, Settlement::Ack);
        node.turns(stuck);
    }
    assert_eq!((node.ready(stuck, "stuck"), node.broker.gauges().unsettled_bytes), (0, 0));
    end(node, &[stuck, publisher, pair]);
}

#[test]
fn a_publisher_blocked_by_a_full_queue_resumes_well_below_its_share() {
    let mut node = small();
    let (publisher, taker) = (node.connect(), node.connect());
    node.declare(publisher, "q", false);
    let (taken, outcome) = flood(&mut node, publisher, "q");
    assert_eq!((taken, outcome), (321, Ok(PublishAnswer::Wait)));
    let is_kept = |node: &mut TestBroker| node.broker.is_still_blocked(&node.messages, publisher.connection);
    assert!(is_kept(&mut node));
    node.consume(taker, "q");
    let mut settled = 0;
    while is_kept(&mut node) {
        node.turn(taker);
        settled += 1;
        node.settle(taker, settled, false, Settlement::Ack);
    }
    assert!((30..36).contains(&settled), "it goes on at three quarters of its share, not after {settled}");
    assert_eq!(node.offer(publisher, "q", BODY), Ok(PublishAnswer::Published));
    assert!(!is_kept(&mut node));
    // No publisher waits for a deleted queue, or for other clients that wait for the publisher's own
    // acknowledgements.
    let _ = flood(&mut node, publisher, "q");
    assert!(is_kept(&mut node));
    node.declare(publisher, "own", false);
    node.consume(publisher, "own");
    assert_eq!(node.offer(taker, "own", BODY), Ok(PublishAnswer::Published));
    node.turns(publisher);
    assert!(!is_kept(&mut node), "it holds a delivery now");
    end(node, &[publisher, taker]);
}

#[test]
fn several_stuck_consumers_share_the_memory_of_one() {
    let mut node = small();
    let publisher = node.connect();
    let stuck: Vec<At> = (0..2).map(|_| node.connect()).collect();
    node.declare(publisher, "q", false);
    for &at in &stuck {
        node.consume(at, "q");
    }
    let mut taken = 0;
    while node.offer(publisher, "q", BODY) == Ok(PublishAnswer::Published) {
        taken += 1;
        for &at in &stuck {
            node.turn(at);
        }
    }
    assert_eq!((taken, node.broker.gauges().deliveries), (321, 320), "each leaves as much as it has");
    // Requeued messages count as waiting in their queue again.
    node.settle(stuck[0], 0, true, Settlement::Requeue);
    node.done(stuck[1], ChannelCommand::CloseChannel);
    node.turns(stuck[0]);
    assert_eq!(node.offer(publisher, "q", BODY), Ok(PublishAnswer::Wait), "the queue has no less for that");
    end(node, &[&stuck[..], &[publisher]].concat());
}

/// The first delivery of a connection is always possible, whatever others hold and however large it is.
#[test]
fn a_large_message_goes_to_a_connection_without_deliveries() {
    let mut node = small();
    let (stuck, publisher, other) = (node.connect(), node.connect(), node.connect());
    node.declare(stuck, "large", false);
    assert_eq!(node.offer(publisher, "large", 1 << 20), Ok(PublishAnswer::Published));
    assert_eq!(node.offer(publisher, "large", 800 << 10), Ok(PublishAnswer::Published));
    node.consume(stuck, "large");
    assert_eq!(node.turns(stuck), 1, "more than half of everything");
    node.consume(other, "large");
    assert_eq!(node.turns(other), 1);
    node.settle(stuck, 1, false, Settlement::Ack);
    node.settle(other, 1, false, Settlement::Ack);
    end(node, &[stuck, publisher, other]);
}

#[test]
fn gets_count_in_the_same_share_and_are_refused_beyond_it() {
    let mut node = small();
    let (at, publisher) = (node.connect(), node.connect());
    node.declare(at, "q", false);
    let (taken, outcome) = flood(&mut node, publisher, "q");
    assert_eq!((taken, outcome), (321, Ok(PublishAnswer::Wait)));
    let get = GetCommand { queue: "q", no_ack: false };
    let mut got = 0;
    let refusal = loop {
        match node.ask(at, get) {
            Ok(GetAnswer::Queued) => got += 1,
            other => break other,
        }
        node.turns(at);
    };
    let Err(fault) = refusal else { panic!("{refusal:?}") };
    assert!(fault.text.contains("raise memory_limit"), "{fault}");
    assert_eq!((got, node.broker.gauges().deliveries), (240, 240));
    // A consumer of the same connection gets no more either until something is settled.
    node.consume(at, "q");
    assert_eq!(node.turns(at), 0);
    node.settle(at, 0, true, Settlement::Ack);
    assert_eq!(node.turns(at), 321 - 240);
    end(node, &[at, publisher]);
}

#[test]
fn abandoned_transactions_hold_at_most_half_of_the_memory_and_no_reserve() {
    let mut node = small();
    let (publisher, served) = (node.connect(), node.connect());
    node.declare(publisher, "q", false);
    node.declare(served, "served", false);
    let mut forgotten = Vec::new();
    let mut held = 0;
    for round in 0..32 {
        let at = node.connect();
        node.done(at, ChannelCommand::TxSelect);
        let (taken, outcome) = flood(&mut node, at, "q");
        let Err(fault) = outcome else { panic!("{outcome:?}") };
        assert!(fault.text.contains("their whole share of the memory for messages"), "{fault}");
        assert!(round > 0 || taken == 120, "as much as it leaves of half of 480, not {taken}");
        held += taken;
        forgotten.push(at);
    }
    assert_eq!((held, node.broker.gauges().open_messages), (240, 240));
    // Everything else is full as well.
    for queue in ["q", "r", "s", "t", "u", "v", "w"] {
        node.declare(publisher, queue, false);
        let _ = flood(&mut node, publisher, queue);
    }
    assert_eq!(node.offer(publisher, "served", 10_000), Ok(PublishAnswer::Wait));
    // A client with deliveries uses the reserve, of which transactions have taken nothing.
    node.consume(served, "q");
    assert_eq!(node.turns(served), 161);
    assert_eq!(node.offer(served, "served", BODY), Ok(PublishAnswer::Published));
    end(node, &[&forgotten[..], &[publisher, served]].concat());
}

#[test]
fn a_transaction_that_continues_when_everything_is_full_gets_half_of_the_reserve() {
    let mut node = small();
    let (at, publisher) = (node.connect(), node.connect());
    node.declare(publisher, "q", false);
    node.done(at, ChannelCommand::TxSelect);
    assert_eq!(node.offer(at, "q", BODY), Ok(PublishAnswer::Published));
    for queue in ["q", "r", "s", "t", "u", "v", "w"] {
        node.declare(publisher, queue, false);
        let _ = flood(&mut node, publisher, queue);
    }
    assert_eq!(node.messages.body_bytes_used(), 481 << 12, "a single page may be one too many");
    // The connection refuses what has no memory. Nothing waits that would make other clients wait.
    node.declare(publisher, "empty", false);
    assert_eq!(flood(&mut node, at, "empty"), (12, Ok(PublishAnswer::Wait)));
    node.done(at, ChannelCommand::TxCommit);
    assert_eq!(node.broker.gauges().open_bytes, 0);
    end(node, &[at, publisher]);
}

#[test]
fn transactions_free_their_memory_however_they_end() {
    let mut node = small();
    let first = node.connect();
    node.declare(first, "q", false);
    let mut all = vec![first];
    for end in [ChannelCommand::TxCommit, ChannelCommand::TxRollback, ChannelCommand::CloseChannel] {
        let at = node.connect();
        node.done(at, ChannelCommand::TxSelect);
        for _ in 0..10 {
            assert_eq!(node.offer(at, "q", BODY), Ok(PublishAnswer::Published));
        }
        assert_eq!((node.broker.gauges().open_messages, node.broker.gauges().open_bytes), (10, 10 << 12));
        node.done(at, end);
        node.turns(at);
        assert_eq!((node.broker.gauges().open_messages, node.broker.gauges().open_bytes), (0, 0));
        all.push(at);
    }
    assert_eq!(node.ready(first, "q"), 10);
    end(node, &all);
}

/// The routing result of a message in a transaction needs memory as well, and is freed however the
/// transaction ends. Whether its queues still exist is checked at the commit.
#[test]
fn a_transaction_keeps_the_routes_of_its_messages_and_frees_them() {
    let mut node = small();
    let first = node.connect();
    let bind = |node: &mut TestBroker, queue| {
        node.declare(first, queue, false);
        let (exchange, routing_key) = ("amq.fanout", "");
        node.done(first, DefinitionCommand::QueueBind { queue, exchange, routing_key, arguments: &[] });
    };
    ["q", "gone"].into_iter().for_each(|queue| bind(&mut node, queue));
    let mut all = vec![first];
    for end in [ChannelCommand::TxRollback, ChannelCommand::CloseChannel, ChannelCommand::TxCommit] {
        let at = node.connect();
        node.done(at, ChannelCommand::TxSelect);
        for _ in 0..10 {
            let message = message_to(&mut node, "amq.fanout", "", &[0, 0], b"x");
            node.done(at, PublishCommand::Publish { message, mandatory: false });
        }
        assert_eq!(node.broker.gauges().open_messages, 20, "each with where it goes");
        if end == ChannelCommand::TxCommit {
            let queue = "gone";
            node.done(first, DefinitionCommand::QueueDelete { queue, if_unused: false, if_empty: false });
            bind(&mut node, "late");
        }
        node.done(at, end);
        node.turns(at);
        assert_eq!((node.broker.gauges().open_messages, node.broker.gauges().open_bytes), (0, 0));
        all.push(at);
    }
    assert_eq!((node.ready(first, "q"), node.ready(first, "late")), (10, 0));
    assert_eq!(node.messages.messages_used(), 10, "no place of a route is left");
    end(node, &all);
}

/// A routing result is written at once, and does not wait for slow publishers.
#[test]
fn slow_publishers_stop_no_transaction_of_others() {
    let mut node = small();
    let at = node.connect();
    let queue =
        "a name that is long enough not to find its place in the slot of a message, and then a little more";
    node.declare(at, queue, false);
    let (exchange, routing_key) = ("amq.fanout", "");
    node.done(at, DefinitionCommand::QueueBind { queue, exchange, routing_key, arguments: &[] });
    node.done(at, ChannelCommand::TxSelect);
    let message = message_to(&mut node, "amq.fanout", "", &[0, 0], b"x");
    let slow: Vec<_> = (0..3)
        .filter_map(|_| {
            let id = node.messages.begin("", b"slow", Share::Ordinary).expect("there is room");
            let begun =
                node.messages.reserve_content(id, &[0, 0], MessageFlags::NONE, 1_000_000, Share::Ordinary);
            begun.map_err(|_| node.messages.release(id)).ok().map(|()| id)
        })
        .collect();
    assert!(slow.len() < 3, "there is room for more that come in slowly");
    node.done(at, PublishCommand::Publish { message, mandatory: false });
    node.done(at, ChannelCommand::TxCommit);
    assert_eq!(node.ready(at, queue), 1);
    slow.into_iter().for_each(|id| node.messages.release(id));
    end(node, &[at]);
}

/// The length of a transaction is bounded by its share of the pools: one half for all transactions, and half
/// of that for one.
#[test]
fn a_transaction_is_as_long_as_its_share_of_the_pools() {
    let limits = Limits::default();
    let mut node = TestBroker::with(&limits);
    let at = node.connect();
    node.declare(at, "q", false);
    node.done(at, ChannelCommand::TxSelect);
    let (taken, outcome) = flood(&mut node, at, "q");
    let Err(fault) = outcome else { panic!("{outcome:?}") };
    assert!(fault.text.contains("share of the memory for messages"), "{fault}");
    assert!(taken > 2000, "{taken} messages of 4000 B");
    node.done(at, ChannelCommand::TxRollback);
    let mut taken = 0;
    while node.offer(at, "q", 16) == Ok(PublishAnswer::Published) {
        taken += 1;
    }
    let ordinary = limits.messages_max - limits.messages_max / 16;
    assert_eq!(taken, ordinary / 4, "small ones by their number in the pool");
    node.done(at, ChannelCommand::TxCommit);
    assert_eq!((node.ready(at, "q"), node.broker.gauges().open_messages), (taken, 0));
    end(node, &[at]);
}

/// Acknowledgements in any order, rolled back: the deliveries are in the order of their tags again.
#[test]
fn a_long_transaction_of_acknowledgements_rolls_back_into_order() {
    const COUNT: u32 = 20_000;
    let mut node = TestBroker::new(65_536);
    let at = node.connect();
    node.declare(at, "q", false);
    node.publish(at, "q", COUNT);
    node.consume(at, "q");
    assert_eq!(node.turns(at), COUNT);
    node.done(at, ChannelCommand::TxSelect);
    for number in 0..COUNT {
        let tag = u64::from(number * 7919 % COUNT) + 1;
        node.settle(at, tag, false, Settlement::Ack);
    }
    assert_eq!(node.broker.gauges().deliveries, COUNT as usize);
    node.done(at, ChannelCommand::TxRollback);
    node.settle(at, u64::from(COUNT / 4), true, Settlement::Ack);
    node.done(at, ChannelCommand::TxCommit);
    assert_eq!(node.broker.gauges().deliveries, COUNT as usize / 4 * 3);
    node.settle(at, u64::from(COUNT / 4) + 1, false, Settlement::Ack);
}

#[test]
fn limits_of_a_user_hold_in_all_virtual_hosts_together() {
    let mut node = TestBroker::new(64);
    node.admit("loud", "loud");
    node.admit("loud", "/");
    let limits = UserLimits { connections_max: Some(2), channels_max: Some(3) };
    node.broker.access_mut().set_user_limits(&mut node.pending_writes, "loud", limits).unwrap();
    let (one, _other) = (node.connect_as("loud", "/"), node.connect_as("loud", "loud"));
    let third = node.broker.connect().unwrap();
    let login = LoginCommand::External { user: "loud", from_loopback: true };
    node.broker.apply_to_connection(&mut context!(node), third, login).unwrap();
    let open = OpenVhost { vhost: "/" };
    let Err(fault) = node.broker.apply_to_connection(&mut context!(node), third, open) else {
        panic!("a third connection")
    };
    let words = "NOT_ALLOWED - connection refused for user 'loud': user connection limit (2) is reached";
    assert_eq!(&*fault.text, words);
    let third_channel = node.open(one, 2);
    let open = OpenChannel { number: 3 };
    let Err(fault) = node.broker.apply_to_connection(&mut context!(node), one.connection, open) else {
        panic!("a fourth channel")
    };
    assert_eq!(
        &*fault.text,
        "NOT_ALLOWED - number of channels opened for user 'loud' has reached the maximum allowed user limit \
         of (3)"
    );
    // Freed capacity may be used again, and a limit may be removed.
    node.done(third_channel, ChannelCommand::CloseChannel);
    while node.broker.run_jobs(&mut context!(node)) {}
    let _ = node.open(one, 3);
    node.broker
        .access_mut()
        .set_user_limits(&mut node.pending_writes, "loud", UserLimits::default())
        .unwrap();
    let _ = node.open(one, 4);
    assert_eq!(node.broker.apply_to_connection(&mut context!(node), third, OpenVhost { vhost: "/" }), Ok(()));
}

/// Eight queues that nobody reads hold sixteen seventeenths of the memory. When other publishers have used up the rest,
/// and their messages are gone, publishers continue.
#[test]
fn publishers_continue_beside_queues_that_nobody_reads() {
    let limits = Limits { messages_max: 1_600, queues_max: 32, ..Limits::default() };
    let mut node = TestBroker::with(&limits);
    let at = node.connect();
    let fill = |node: &mut TestBroker, name: &str| {
        node.declare(at, name, false);
        while node.offer(at, name, 10) == Ok(PublishAnswer::Published) {}
    };
    let unread: Vec<String> = (0..8).map(|number| format!("unread.{number}")).collect();
    unread.iter().for_each(|queue| node.declare(at, queue, false));
    // They fill at the same time.
    while unread.iter().filter(|queue| node.offer(at, queue, 10) == Ok(PublishAnswer::Published)).count() > 0
    {
    }
    assert!(!node.messages.is_held(), "{} slots are used", node.messages.messages_used());
    let mut read = Vec::new();
    while !node.messages.is_held() {
        read.push(format!("read.{}", read.len()));
        fill(&mut node, read.last().expect("just added"));
    }
    assert!(!node.messages.lift_hold(), "there is no memory");
    for queue in &read {
        node.done(at, DefinitionCommand::QueuePurge { queue });
    }
    node.turns(at);
    assert!(node.messages.lift_hold(), "{} of 1,600 slots are used", node.messages.messages_used());
    fill(&mut node, "other");
    assert!(node.ready(at, "other") > 10);
}

/// A client with an unacknowledged delivery, and one that commits a transaction for each message, fill a queue that
/// nobody reads. Both wait, and a publisher to another queue continues.
#[test]
fn no_publisher_takes_the_whole_memory_for_one_queue() {
    let mut node = small();
    let (holder, publisher, taker) = (node.connect(), node.connect(), node.connect());
    node.declare(holder, "own", false);
    node.declare(holder, "unread", false);
    node.declare(taker, "read", false);
    node.consume(holder, "own");
    node.consume(taker, "read");
    assert_eq!(node.offer(publisher, "own", BODY), Ok(PublishAnswer::Published));
    assert_eq!(node.turns(holder), 1);
    assert_eq!(
        flood(&mut node, holder, "unread"),
        (384, Ok(PublishAnswer::Wait)),
        "four fifths of 480 blocks"
    );
    let transacted = node.connect();
    node.done(transacted, ChannelCommand::TxSelect);
    assert_eq!(node.offer(transacted, "unread", BODY), Ok(PublishAnswer::Wait));
    let shortage = node.broker.last_shortage();
    assert!(!node.broker.may_wait_for_itself(transacted.connection, shortage), "it holds nothing");
    assert_eq!(node.offer(transacted, "read", BODY), Ok(PublishAnswer::Published));
    assert!(
        node.broker.may_wait_for_itself(transacted.connection, shortage),
        "its transaction has a message"
    );
    node.done(transacted, ChannelCommand::TxRollback);
    for tag in 1..=1000 {
        assert_eq!(node.offer(publisher, "read", BODY), Ok(PublishAnswer::Published));
        assert_eq!(node.turns(taker), 1);
        node.settle(taker, tag, false, Settlement::Ack);
    }
    node.done(holder, DefinitionCommand::QueuePurge { queue: "unread" });
    let mut taken = 0;
    while node.offer(transacted, "unread", BODY) == Ok(PublishAnswer::Published) {
        node.done(transacted, ChannelCommand::TxCommit);
        node.turns(transacted);
        taken += 1;
    }
    assert!((310..330).contains(&taken), "two thirds of 479 blocks, not {taken}");
    assert_eq!(node.offer(publisher, "read", BODY), Ok(PublishAnswer::Published));
    end(node, &[holder, publisher, taker, transacted]);
}

/// A publisher that was refused after a long wait for a queue does not wait for that queue with its next message.
#[test]
fn a_refused_publisher_waits_for_its_queue_no_more() {
    let mut node = small();
    let (holder, publisher) = (node.connect(), node.connect());
    for queue in ["own", "unread", "other"] {
        node.declare(holder, queue, false);
    }
    node.consume(holder, "own");
    assert_eq!(node.offer(publisher, "own", BODY), Ok(PublishAnswer::Published));
    node.turns(holder);
    assert_eq!(flood(&mut node, holder, "unread").1, Ok(PublishAnswer::Wait));
    let is_kept = |node: &mut TestBroker| node.broker.is_still_blocked(&node.messages, holder.connection);
    assert!(is_kept(&mut node));
    let shortage = node.broker.last_shortage();
    assert!(node.broker.may_wait_for_itself(holder.connection, shortage));
    assert!(!node.broker.may_wait_for_itself(publisher.connection, shortage));
    node.broker.time_out_waiting(holder.connection);
    let Err(fault) = node.offer(holder, "unread", BODY) else { panic!("it is refused") };
    assert!(
        fault.text.contains("consume queue 'unread'") && fault.text.contains("raise memory_limit"),
        "{fault}"
    );
    assert!(!is_kept(&mut node));
    assert_eq!(node.offer(holder, "other", BODY), Ok(PublishAnswer::Published));
    assert_eq!(node.offer(holder, "unread", BODY), Ok(PublishAnswer::Wait));
    end(node, &[holder, publisher]);
}

/// When ordinary publishers have used up their memory, a client with an unacknowledged delivery may put messages into a
/// queue until they take as much as the free part of the reserve.
#[test]
fn a_client_with_deliveries_uses_the_reserve() {
    let mut node = small();
    let (holder, publisher) = (node.connect(), node.connect());
    node.declare(holder, "own", false);
    node.declare(holder, "results", false);
    node.consume(holder, "own");
    assert_eq!(node.offer(publisher, "own", BODY), Ok(PublishAnswer::Published));
    node.turns(holder);
    let waiting: Vec<_> = (0..600)
        .map_while(|_| {
            let id = node.messages.begin("", b"waiting", Share::Ordinary).ok()?;
            let reserved = node.messages.reserve_whole(id, &[], MessageFlags::NONE, BODY, Share::Ordinary);
            reserved.map_err(|_| node.messages.release(id)).ok().map(|()| id)
        })
        .collect();
    assert!(node.messages.is_held() && node.messages.ordinary_free().1 == 0, "nothing is free");
    let (taken, outcome) = flood(&mut node, holder, "results");
    // A sixteenth of 512 blocks, without those for reading back, shrinks by each message.
    assert!((10..=16).contains(&taken) && outcome == Ok(PublishAnswer::Wait), "{taken} {outcome:?}");
    waiting.into_iter().for_each(|id| node.messages.release(id));
    end(node, &[holder, publisher]);
}
