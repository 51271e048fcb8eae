//! The share that one connection or one queue may use of the message memory, whatever it does not settle.

use crate::dead_letters::message_to;
use crate::support::{At, TestBroker};
use leveret_broker::UserLimits;
use leveret_core::command::{Command, Outcome, Settlement};
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
fn flood(house: &mut TestBroker, at: At, key: &str) -> (u32, Outcome) {
    let mut taken = 0;
    loop {
        match house.offer(at, key, BODY) {
            Outcome::Published => taken += 1,
            outcome => return (taken, outcome),
        }
        house.turns(at);
    }
}

/// Closes everything, and checks that every counter has its initial value.
fn end(mut house: TestBroker, all: &[At]) {
    for at in all {
        house.broker.release(&mut context!(house), at.connection);
    }
    while house.broker.run_jobs(&mut context!(house)) {}
    let left = house.broker.gauges();
    assert_eq!((left.unsettled_bytes, left.open_messages, left.open_bytes), (0, 0, 0));
    assert_eq!(left.connections, 0);
}

#[test]
fn a_stuck_consumer_and_its_publisher_leave_memory_for_another_queue() {
    let mut house = small();
    let (stuck, publisher, pair) = (house.connect(), house.connect(), house.connect());
    house.declare(stuck, "stuck", false);
    house.declare(pair, "pair", false);
    house.consume(stuck, "stuck");
    house.consume(pair, "pair");
    let mut taken = 0;
    loop {
        let outcome = house.offer(publisher, "stuck", BODY);
        house.turns(stuck);
        match outcome {
            Outcome::Published => taken += 1,
            Outcome::Wait => break,
            other => panic!("{other:?}"),
        }
    }
    // The queue has two thirds of 480 blocks, and the consumer has half of 480.
    assert_eq!((taken, house.broker.gauges().deliveries), (321, 240));
    assert!(!house.broker.has_work(&house.pending_writes), "the consumer waits without cost");
    for tag in 1..=1000 {
        assert_eq!(house.offer(pair, "pair", BODY), Outcome::Published);
        assert_eq!(house.turns(pair), 1);
        house.settle(pair, tag, false, Settlement::Ack);
        house.turns(stuck);
    }
    assert_eq!(house.broker.gauges().deliveries, 240, "what others settle is not for the stuck one");
    assert_eq!(house.offer(publisher, "stuck", BODY), Outcome::Wait);
    // The consumer settles after all, so it and its publisher continue.
    house.settle(stuck, 1, false, Settlement::Ack);
    assert_eq!((house.turns(stuck), house.broker.gauges().deliveries), (1, 240));
    assert_eq!(house.offer(publisher, "stuck", BODY), Outcome::Published);
    for _ in 0..3 {
        house.settle(stuck, 0, true, Settlement::Ack);
        house.turns(stuck);
    }
    assert_eq!((house.ready(stuck, "stuck"), house.broker.gauges().unsettled_bytes), (0, 0));
    end(house, &[stuck, publisher, pair]);
}

#[test]
fn a_publisher_blocked_by_a_full_queue_resumes_well_below_its_share() {
    let mut house = small();
    let (publisher, taker) = (house.connect(), house.connect());
    house.declare(publisher, "q", false);
    let (taken, outcome) = flood(&mut house, publisher, "q");
    assert_eq!((taken, outcome), (321, Outcome::Wait));
    let is_kept =
        |house: &mut TestBroker| house.broker.is_still_blocked(&house.messages, publisher.connection);
    assert!(is_kept(&mut house));
    house.consume(taker, "q");
    let mut settled = 0;
    while is_kept(&mut house) {
        house.turn(taker);
        settled += 1;
        house.settle(taker, settled, false, Settlement::Ack);
    }
    assert!((30..36).contains(&settled), "it goes on at three quarters of its share, not after {settled}");
    assert_eq!(house.offer(publisher, "q", BODY), Outcome::Published);
    assert!(!is_kept(&mut house));
    // No publisher waits for a deleted queue, or for other clients that wait for the publisher's own
    // acknowledgements.
    flood(&mut house, publisher, "q");
    assert!(is_kept(&mut house));
    house.declare(publisher, "own", false);
    house.consume(publisher, "own");
    assert_eq!(house.offer(taker, "own", BODY), Outcome::Published);
    house.turns(publisher);
    assert!(!is_kept(&mut house), "it holds a delivery now");
    end(house, &[publisher, taker]);
}

#[test]
fn several_stuck_consumers_share_the_memory_of_one() {
    let mut house = small();
    let publisher = house.connect();
    let stuck: Vec<At> = (0..2).map(|_| house.connect()).collect();
    house.declare(publisher, "q", false);
    for &at in &stuck {
        house.consume(at, "q");
    }
    let mut taken = 0;
    while house.offer(publisher, "q", BODY) == Outcome::Published {
        taken += 1;
        for &at in &stuck {
            house.turn(at);
        }
    }
    assert_eq!((taken, house.broker.gauges().deliveries), (321, 320), "each leaves as much as it has");
    // Requeued messages count as waiting in their queue again.
    house.settle(stuck[0], 0, true, Settlement::Requeue);
    house.done(stuck[1], Command::CloseChannel);
    house.turns(stuck[0]);
    assert_eq!(house.offer(publisher, "q", BODY), Outcome::Wait, "the queue has no less for that");
    end(house, &[&stuck[..], &[publisher]].concat());
}

/// The first delivery of a connection is always possible, whatever others hold and however large it is.
#[test]
fn a_large_message_goes_to_a_connection_without_deliveries() {
    let mut house = small();
    let (stuck, publisher, other) = (house.connect(), house.connect(), house.connect());
    house.declare(stuck, "large", false);
    assert_eq!(house.offer(publisher, "large", 1 << 20), Outcome::Published);
    assert_eq!(house.offer(publisher, "large", 800 << 10), Outcome::Published);
    house.consume(stuck, "large");
    assert_eq!(house.turns(stuck), 1, "more than half of everything");
    house.consume(other, "large");
    assert_eq!(house.turns(other), 1);
    house.settle(stuck, 1, false, Settlement::Ack);
    house.settle(other, 1, false, Settlement::Ack);
    end(house, &[stuck, publisher, other]);
}

#[test]
fn gets_count_in_the_same_share_and_are_refused_beyond_it() {
    let mut house = small();
    let (at, publisher) = (house.connect(), house.connect());
    house.declare(at, "q", false);
    let (taken, outcome) = flood(&mut house, publisher, "q");
    assert_eq!((taken, outcome), (321, Outcome::Wait));
    let get = Command::Get { queue: "q", no_ack: false };
    let mut got = 0;
    let refusal = loop {
        match house.ask(at, get) {
            Outcome::GetQueued => got += 1,
            other => break other,
        }
        house.turns(at);
    };
    let Outcome::Fault(fault) = refusal else { panic!("{refusal:?}") };
    assert!(fault.text.contains("raise body_bytes_max"), "{fault}");
    assert_eq!((got, house.broker.gauges().deliveries), (240, 240));
    // A consumer of the same connection gets no more either until something is settled.
    house.consume(at, "q");
    assert_eq!(house.turns(at), 0);
    house.settle(at, 0, true, Settlement::Ack);
    assert_eq!(house.turns(at), 321 - 240);
    end(house, &[at, publisher]);
}

#[test]
fn abandoned_transactions_hold_at_most_half_of_the_memory_and_no_reserve() {
    let mut house = small();
    let (publisher, served) = (house.connect(), house.connect());
    house.declare(publisher, "q", false);
    house.declare(served, "served", false);
    let mut forgotten = Vec::new();
    let mut held = 0;
    for round in 0..32 {
        let at = house.connect();
        house.done(at, Command::TxSelect);
        let (taken, outcome) = flood(&mut house, at, "q");
        let Outcome::Fault(fault) = outcome else { panic!("{outcome:?}") };
        assert!(fault.text.contains("their whole share of body_bytes_max"), "{fault}");
        assert!(round > 0 || taken == 120, "as much as it leaves of half of 480, not {taken}");
        held += taken;
        forgotten.push(at);
    }
    assert_eq!((held, house.broker.gauges().open_messages), (240, 240));
    // Everything else is full as well.
    for queue in ["q", "r", "s", "t", "u", "v", "w"] {
        house.declare(publisher, queue, false);
        flood(&mut house, publisher, queue);
    }
    assert_eq!(house.offer(publisher, "served", 10_000), Outcome::Wait);
    // A client with deliveries uses the reserve, of which transactions have taken nothing.
    house.consume(served, "q");
    assert_eq!(house.turns(served), 161);
    assert_eq!(house.offer(served, "served", BODY), Outcome::Published);
    end(house, &[&forgotten[..], &[publisher, served]].concat());
}

#[test]
fn a_transaction_that_continues_when_everything_is_full_gets_half_of_the_reserve() {
    let mut house = small();
    let (at, publisher) = (house.connect(), house.connect());
    house.declare(publisher, "q", false);
    house.done(at, Command::TxSelect);
    assert_eq!(house.offer(at, "q", BODY), Outcome::Published);
    for queue in ["q", "r", "s", "t", "u", "v", "w"] {
        house.declare(publisher, queue, false);
        flood(&mut house, publisher, queue);
    }
    assert_eq!(house.messages.body_bytes_used(), 481 << 12, "a single page may be one too many");
    // The connection refuses what has no memory. Nothing waits that would make other clients wait.
    assert_eq!(flood(&mut house, at, "q"), (12, Outcome::Wait));
    house.done(at, Command::TxCommit);
    assert_eq!(house.broker.gauges().open_bytes, 0);
    end(house, &[at, publisher]);
}

#[test]
fn transactions_free_their_memory_however_they_end() {
    let mut house = small();
    let first = house.connect();
    house.declare(first, "q", false);
    let mut all = vec![first];
    for end in [Command::TxCommit, Command::TxRollback, Command::CloseChannel] {
        let at = house.connect();
        house.done(at, Command::TxSelect);
        for _ in 0..10 {
            assert_eq!(house.offer(at, "q", BODY), Outcome::Published);
        }
        assert_eq!((house.broker.gauges().open_messages, house.broker.gauges().open_bytes), (10, 10 << 12));
        house.done(at, end);
        house.turns(at);
        assert_eq!((house.broker.gauges().open_messages, house.broker.gauges().open_bytes), (0, 0));
        all.push(at);
    }
    assert_eq!(house.ready(first, "q"), 10);
    end(house, &all);
}

/// The routing result of a message in a transaction needs memory as well, and is freed however the
/// transaction ends. Whether its queues still exist is checked at the commit.
#[test]
fn a_transaction_keeps_the_routes_of_its_messages_and_frees_them() {
    let mut house = small();
    let first = house.connect();
    let bind = |house: &mut TestBroker, queue| {
        house.declare(first, queue, false);
        let (exchange, routing_key) = ("amq.fanout", "");
        house.done(first, Command::QueueBind { queue, exchange, routing_key, arguments: &[] });
    };
    ["q", "gone"].into_iter().for_each(|queue| bind(&mut house, queue));
    let mut all = vec![first];
    for end in [Command::TxRollback, Command::CloseChannel, Command::TxCommit] {
        let at = house.connect();
        house.done(at, Command::TxSelect);
        for _ in 0..10 {
            let message = message_to(&mut house, "amq.fanout", "", &[0, 0], b"x");
            house.done(at, Command::Publish { message, mandatory: false });
        }
        assert_eq!(house.broker.gauges().open_messages, 20, "each with where it goes");
        if end == Command::TxCommit {
            let queue = "gone";
            house.done(first, Command::QueueDelete { queue, if_unused: false, if_empty: false });
            bind(&mut house, "late");
        }
        house.done(at, end);
        house.turns(at);
        assert_eq!((house.broker.gauges().open_messages, house.broker.gauges().open_bytes), (0, 0));
        all.push(at);
    }
    assert_eq!((house.ready(first, "q"), house.ready(first, "late")), (10, 0));
    assert_eq!(house.messages.messages_used(), 10, "no place of a route is left");
    end(house, &all);
}

/// A routing result is written at once, and does not wait for slow publishers.
#[test]
fn slow_publishers_stop_no_transaction_of_others() {
    let mut house = small();
    let at = house.connect();
    let queue =
        "a name that is long enough not to find its place in the slot of a message, and then a little more";
    house.declare(at, queue, false);
    let (exchange, routing_key) = ("amq.fanout", "");
    house.done(at, Command::QueueBind { queue, exchange, routing_key, arguments: &[] });
    house.done(at, Command::TxSelect);
    let message = message_to(&mut house, "amq.fanout", "", &[0, 0], b"x");
    let slow: Vec<_> = (0..3)
        .filter_map(|_| {
            let id = house.messages.begin("", b"slow", Share::Ordinary).expect("there is room");
            let begun =
                house.messages.reserve_content(id, &[0, 0], MessageFlags::NONE, 1_000_000, Share::Ordinary);
            begun.map_err(|_| house.messages.release(id)).ok().map(|()| id)
        })
        .collect();
    assert!(slow.len() < 3, "there is room for more that come in slowly");
    house.done(at, Command::Publish { message, mandatory: false });
    house.done(at, Command::TxCommit);
    assert_eq!(house.ready(at, queue), 1);
    slow.into_iter().for_each(|id| house.messages.release(id));
    end(house, &[at]);
}

/// The length of a transaction is bounded by its share of the pools: one half for all transactions, and half
/// of that for one.
#[test]
fn a_transaction_is_as_long_as_its_share_of_the_pools() {
    let limits = Limits::default();
    let mut house = TestBroker::with(&limits);
    let at = house.connect();
    house.declare(at, "q", false);
    house.done(at, Command::TxSelect);
    let (taken, outcome) = flood(&mut house, at, "q");
    let Outcome::Fault(fault) = outcome else { panic!("{outcome:?}") };
    assert!(fault.text.contains("share of body_bytes_max"), "{fault}");
    assert!(taken > 2000, "{taken} messages of 4000 B");
    house.done(at, Command::TxRollback);
    let mut taken = 0;
    while house.offer(at, "q", 16) == Outcome::Published {
        taken += 1;
    }
    let ordinary = limits.messages_max - limits.messages_max / 16;
    assert_eq!(taken, ordinary / 4, "small ones by their number in the pool");
    house.done(at, Command::TxCommit);
    assert_eq!((house.ready(at, "q"), house.broker.gauges().open_messages), (taken, 0));
    end(house, &[at]);
}

/// Acknowledgements in any order, rolled back: the deliveries are in the order of their tags again.
#[test]
fn a_long_transaction_of_acknowledgements_rolls_back_into_order() {
    const COUNT: u32 = 20_000;
    let mut house = TestBroker::new(65_536);
    let at = house.connect();
    house.declare(at, "q", false);
    house.publish(at, "q", COUNT);
    house.consume(at, "q");
    assert_eq!(house.turns(at), COUNT);
    house.done(at, Command::TxSelect);
    for number in 0..COUNT {
        let tag = u64::from(number * 7919 % COUNT) + 1;
        house.settle(at, tag, false, Settlement::Ack);
    }
    assert_eq!(house.broker.gauges().deliveries, COUNT as usize);
    house.done(at, Command::TxRollback);
    house.settle(at, u64::from(COUNT / 4), true, Settlement::Ack);
    house.done(at, Command::TxCommit);
    assert_eq!(house.broker.gauges().deliveries, COUNT as usize / 4 * 3);
    house.settle(at, u64::from(COUNT / 4) + 1, false, Settlement::Ack);
}

#[test]
fn limits_of_a_user_hold_in_all_virtual_hosts_together() {
    let mut house = TestBroker::new(64);
    house.admit("loud", "loud");
    house.admit("loud", "/");
    let limits = UserLimits { connections_max: Some(2), channels_max: Some(3) };
    house.broker.access_mut().set_user_limits(&mut house.pending_writes, "loud", limits).unwrap();
    let (one, _other) = (house.connect_as("loud", "/"), house.connect_as("loud", "loud"));
    let third = house.broker.connect().unwrap();
    let login = Command::LoginExternal { user: "loud", from_loopback: true };
    house.broker.apply(&mut context!(house), third, None, login);
    let open = Command::OpenVhost { vhost: "/" };
    let Outcome::Fault(fault) = house.broker.apply(&mut context!(house), third, None, open).0 else {
        panic!("a third connection")
    };
    let words = "NOT_ALLOWED - connection refused for user 'loud': user connection limit (2) is reached";
    assert_eq!(&*fault.text, words);
    let third_channel = house.open(one, 2);
    let open = Command::OpenChannel { number: 3 };
    let Outcome::Fault(fault) = house.broker.apply(&mut context!(house), one.connection, None, open).0 else {
        panic!("a fourth channel")
    };
    assert_eq!(
        &*fault.text,
        "NOT_ALLOWED - number of channels opened for user 'loud' has reached the maximum allowed user limit \
         of (3)"
    );
    // Freed capacity may be used again, and a limit may be removed.
    house.done(third_channel, Command::CloseChannel);
    while house.broker.run_jobs(&mut context!(house)) {}
    let _ = house.open(one, 3);
    house
        .broker
        .access_mut()
        .set_user_limits(&mut house.pending_writes, "loud", UserLimits::default())
        .unwrap();
    let _ = house.open(one, 4);
    assert_eq!(
        house.broker.apply(&mut context!(house), third, None, Command::OpenVhost { vhost: "/" }).0,
        Outcome::Done
    );
}
