//! Acknowledgement timeouts and transaction timeouts, with a simulated clock.

use crate::dead_letters::{declare, table};
use crate::policies::policy;
use crate::support::{At, TestBroker};
use leveret_broker::{Overdue, PolicyKind};
use leveret_core::command::{Command, Outcome, Settlement};
use leveret_core::limits::Limits;
use leveret_core::time::{Deadline, Now};

const TIMEOUT_S: u64 = 1_800;

fn house() -> TestBroker {
    TestBroker::with(&Limits { connections_max: 16, ..Limits::default() })
}

fn at_s(seconds: u64) -> Now {
    Now::from_ms(seconds * 1000)
}

/// Returns what is overdue at this second, in as many turns as checking everything takes.
fn overdue(house: &mut TestBroker, seconds: u64) -> Vec<Overdue> {
    let mut all = Vec::new();
    for _ in 0..16 {
        house.broker.set_time(at_s(seconds));
        all.extend(std::iter::from_fn(|| house.broker.next_overdue()));
    }
    all
}

fn next_look_s(house: &TestBroker) -> Option<u64> {
    house.broker.overdue_deadline().ms_left(at_s(0)).map(|ms| ms / 1000)
}

/// Connects a consumer that receives `count` messages at this second.
fn consumer(house: &mut TestBroker, queue: &str, count: u32, seconds: u64) -> At {
    let at = house.connect();
    house.declare(at, queue, false);
    house.publish(at, queue, count);
    house.broker.set_time(at_s(seconds));
    house.consume(at, queue);
    assert_eq!(house.turns(at), count);
    at
}

#[test]
fn an_unsettled_delivery_closes_its_channel_with_rabbitmqs_error_text() {
    let mut house = house();
    assert_eq!(house.broker.overdue_deadline(), Deadline::NEVER);
    let stuck = consumer(&mut house, "q", 3, 100);
    let other = house.open(stuck, 2);
    assert_eq!(next_look_s(&house), Some(100 + TIMEOUT_S + 1));
    assert!(overdue(&mut house, 100 + TIMEOUT_S).is_empty(), "not a moment too early");
    let all = overdue(&mut house, 100 + TIMEOUT_S + 1);
    let [Overdue { connection, channel: 1, fault }] = &all[..] else { panic!("{all:?}") };
    assert_eq!(*connection, stuck.connection);
    assert_eq!(
        &*fault.text,
        "PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out. Timeout value used: \
         1800000 ms. This timeout value can be configured, see consumers doc guide to learn more"
    );
    // The closed channel's deliveries go to other consumers, and nothing is left to check.
    house.done(stuck, Command::CloseChannel);
    house.turns(stuck);
    assert_eq!(house.ready(other, "q"), 3);
    assert!(overdue(&mut house, 100 + 2 * TIMEOUT_S).is_empty());
    assert_eq!(house.broker.overdue_deadline(), Deadline::NEVER);
}

/// A channel that could not be closed because its client does not read is reported again, but not in every
/// turn.
#[test]
fn a_channel_that_could_not_be_closed_is_reported_again_a_minute_later() {
    let mut house = house();
    consumer(&mut house, "q", 1, 0);
    assert_eq!(overdue(&mut house, 5_000).len(), 1);
    assert_eq!(next_look_s(&house), Some(5_060));
    assert!(overdue(&mut house, 5_059).is_empty());
    assert_eq!(overdue(&mut house, 5_060).len(), 1);
}

#[test]
fn consumers_that_settle_in_time_cause_only_one_check_per_half_hour() {
    let mut house = house();
    let at = consumer(&mut house, "q", 1, 0);
    let mut looks = 0;
    for second in 1..=3 * TIMEOUT_S {
        house.publish(at, "q", 1);
        house.broker.set_time(at_s(second));
        house.turns(at);
        house.settle(at, second, false, Settlement::Ack);
        if house.broker.overdue_deadline().is_due(at_s(second)) {
            looks += 1;
            assert!(house.broker.next_overdue().is_none());
            assert!(!house.broker.overdue_deadline().is_due(at_s(second)), "one look is all");
        }
    }
    assert_eq!(looks, 2);
    house.settle(at, 0, true, Settlement::Ack);
    assert_eq!(house.broker.overdue_deadline(), Deadline::NEVER, "there are no deliveries");
}

#[test]
fn the_timeout_applies_to_gets_but_not_without_acknowledgement() {
    let mut house = house();
    let at = house.connect();
    house.declare(at, "q", false);
    house.publish(at, "q", 2);
    assert_eq!(house.ask(at, Command::Get { queue: "q", no_ack: true }), Outcome::GetQueued);
    assert_eq!(house.broker.overdue_deadline(), Deadline::NEVER);
    house.turns(at);
    assert_eq!(house.ask(at, Command::Get { queue: "q", no_ack: false }), Outcome::GetQueued);
    house.turns(at);
    assert_eq!(overdue(&mut house, TIMEOUT_S + 1).len(), 1);
}

#[test]
fn a_transaction_without_progress_closes_its_channel() {
    let mut house = house();
    let at = house.connect();
    house.declare(at, "q", false);
    house.done(at, Command::TxSelect);
    assert!(overdue(&mut house, 100).is_empty());
    house.publish(at, "q", 1);
    assert!(overdue(&mut house, 100 + TIMEOUT_S).is_empty());
    // The transaction makes progress, and the timeout restarts.
    house.publish(at, "q", 1);
    assert!(overdue(&mut house, 101 + TIMEOUT_S).is_empty());
    let all = overdue(&mut house, 200 + 2 * TIMEOUT_S);
    assert_eq!(all.len(), 1);
    assert!(all[0].fault.text.contains("transaction on channel 1 was left open"), "{}", all[0].fault);
    house.done(at, Command::TxCommit);
    assert!(overdue(&mut house, 300 + 2 * TIMEOUT_S).is_empty());
    assert_eq!(house.broker.overdue_deadline(), Deadline::NEVER);
}

/// Thousands of channels, of which the last is overdue: it is found in several turns, each of which checks a
/// part.
#[test]
fn a_check_of_all_channels_is_done_in_parts() {
    let mut house = house();
    let many = house.connect();
    for number in 2..1_500 {
        house.open(many, number);
    }
    let stuck = consumer(&mut house, "q", 1, 0);
    let mut turns = 0;
    let found = loop {
        house.broker.set_time(at_s(TIMEOUT_S + 1));
        turns += 1;
        assert!(house.broker.overdue_deadline().is_due(at_s(TIMEOUT_S + 1)), "it goes on without sleep");
        if let Some(found) = house.broker.next_overdue() {
            break found;
        }
    };
    assert_eq!((found.connection, turns), (stuck.connection, 3));
}

#[test]
fn a_timeout_of_0_is_never() {
    let limits = Limits { consumer_timeout_ms: 0, connections_max: 16, ..Limits::default() };
    let mut house = TestBroker::with(&limits);
    consumer(&mut house, "q", 1, 0);
    assert_eq!(house.broker.overdue_deadline(), Deadline::NEVER);
    assert!(overdue(&mut house, u64::from(u32::MAX)).is_empty());
}

/// Returns the argument `x-consumer-timeout`, in milliseconds.
fn timeout(ms: i64) -> Vec<u8> {
    table(|t| t.long("x-consumer-timeout", ms))
}

/// Connects a consumer that holds one message of the queue from this second on.
fn holder(house: &mut TestBroker, queue: &str, seconds: u64) -> At {
    let at = house.connect();
    house.publish(at, queue, 1);
    house.broker.set_time(at_s(seconds));
    house.consume(at, queue);
    assert_eq!(house.turns(at), 1);
    at
}

#[test]
fn a_queue_has_a_timeout_of_its_own_shorter_or_longer() {
    let mut house = house();
    let at = house.connect();
    declare(&mut house, at, "soon", false, &timeout(10_000));
    declare(&mut house, at, "late", false, &timeout(5_000_000));
    declare(&mut house, at, "never", false, &timeout(0));
    house.declare(at, "as ever", false);
    for queue in ["late", "never", "as ever"] {
        holder(&mut house, queue, 0);
    }
    // It starts while the others hold messages, which an earlier check found to be due far later.
    assert!(overdue(&mut house, 20).is_empty());
    let soon = holder(&mut house, "soon", 1_000);
    assert!(overdue(&mut house, 1_010).is_empty());
    let second = (1_011..).find(|second| house.broker.overdue_deadline().is_due(at_s(*second))).unwrap();
    assert!(second <= 1_011 + 60, "{second}");
    let all = overdue(&mut house, second);
    let [Overdue { connection, fault, .. }] = &all[..] else { panic!("{all:?}") };
    assert_eq!((*connection, fault.text.contains("used: 10000 ms")), (soon.connection, true));
    house.done(soon, Command::CloseChannel);
    house.turns(soon);
    let text = |all: &[Overdue]| all.iter().map(|overdue| overdue.fault.text.to_string()).collect::<String>();
    let all = overdue(&mut house, TIMEOUT_S + 1);
    assert!(all.len() == 1 && text(&all).contains("used: 1800000 ms"), "{all:?}");
    let all = overdue(&mut house, 5_001);
    assert!(all.len() == 2 && text(&all).contains("used: 5000000 ms"), "{all:?}");
    assert_eq!(overdue(&mut house, 1_000_000).len(), 2, "and never is never");
}

/// A queue without a timeout, under a configuration without one, and a policy that is set and cleared.
#[test]
fn a_policy_sets_a_timeout_for_existing_deliveries() {
    let limits = Limits { consumer_timeout_ms: 0, connections_max: 16, ..Limits::default() };
    let mut house = TestBroker::with(&limits);
    let held = consumer(&mut house, "q", 1, 0);
    assert_eq!(house.broker.overdue_deadline(), Deadline::NEVER);
    let definition = table(|t| t.int("consumer-timeout", 20_000));
    let policy = policy("soon", "^q$", &definition);
    house.broker.set_policy(&mut context!(house), "/", &policy).unwrap();
    house.turns(held);
    assert_eq!(next_look_s(&house), Some(21));
    assert_eq!(overdue(&mut house, 21).len(), 1);
    house.broker.clear_policy(&mut context!(house), "/", PolicyKind::User, "soon").unwrap();
    house.turns(held);
    assert!(overdue(&mut house, 10_000).is_empty());
    assert_eq!(house.broker.overdue_deadline(), Deadline::NEVER);
}

#[test]
fn an_argument_that_is_no_time_is_none_and_is_not_compared() {
    let mut house = house();
    let at = house.connect();
    let word = table(|t| t.text("x-consumer-timeout", "soon"));
    for (queue, arguments) in [("negative", timeout(-1)), ("word", word)] {
        declare(&mut house, at, queue, false, &arguments);
        declare(&mut house, at, queue, false, &timeout(1_000));
        holder(&mut house, queue, 0);
    }
    assert!(overdue(&mut house, TIMEOUT_S).is_empty());
    assert_eq!(overdue(&mut house, TIMEOUT_S + 1).len(), 2);
}

/// A client that may declare a queue cannot remove the limit that a policy sets for its consumers: the
/// shortest counts.
#[test]
fn of_an_argument_and_a_policy_the_shorter_timeout_counts_and_0_is_the_longest() {
    let mut house = house();
    let at = house.connect();
    let word = table(|t| t.text("x-consumer-timeout", "soon"));
    let cases = [
        ("longer", 20_000, timeout(60_000), 20_000),
        ("shorter", 20_000, timeout(10_000), 10_000),
        ("never", 20_000, timeout(0), 20_000),
        ("word", 20_000, word, 20_000),
        ("negative", 20_000, timeout(-1), 20_000),
        ("huge", 20_000, timeout(i64::MAX), 20_000),
        ("freed", 0, timeout(30_000), 30_000),
    ];
    for (queue, ms, arguments, _) in &cases {
        let definition = table(|t| t.int("consumer-timeout", *ms));
        let policy = policy(queue, queue, &definition);
        house.broker.set_policy(&mut context!(house), "/", &policy).unwrap();
        declare(&mut house, at, queue, false, arguments);
        holder(&mut house, queue, 0);
    }
    let all = overdue(&mut house, TIMEOUT_S - 1);
    let told: Vec<String> = all.iter().map(|overdue| overdue.fault.text.to_string()).collect();
    assert_eq!(told.len(), cases.len(), "{told:?}");
    for ((queue, .., ms), told) in cases.iter().zip(&told) {
        assert!(told.contains(&format!("used: {ms} ms")), "{queue}: {told}");
    }
}
