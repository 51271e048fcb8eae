//! Acknowledgement timeouts and transaction timeouts, with a simulated clock.

use crate::dead_letters::{declare, table};
use crate::policies::policy;
use crate::support::{At, TestBroker};
use leveret_broker::Overdue;
use leveret_core::command::{ChannelCommand, GetAnswer, GetCommand, Settlement};
use leveret_core::definition::PolicyKind;
use leveret_core::limits::Limits;
use leveret_core::time::{Deadline, Now};

const TIMEOUT_S: u64 = 1_800;

fn node() -> TestBroker {
    TestBroker::with(&Limits { connections_max: 16, ..Limits::default() })
}

fn at_s(seconds: u64) -> Now {
    Now::from_ms(seconds * 1000)
}

/// Returns what is overdue at this second, in as many turns as checking everything takes.
fn overdue(node: &mut TestBroker, seconds: u64) -> Vec<Overdue> {
    let mut all = Vec::new();
    for _ in 0..16 {
        node.broker.set_time(at_s(seconds));
        all.extend(std::iter::from_fn(|| node.broker.next_overdue()));
    }
    all
}

fn next_look_s(node: &TestBroker) -> Option<u64> {
    node.broker.overdue_deadline().ms_left(at_s(0)).map(|ms| ms / 1000)
}

/// Connects a consumer that receives `count` messages at this second.
fn consumer(node: &mut TestBroker, queue: &str, count: u32, seconds: u64) -> At {
    let at = node.connect();
    node.declare(at, queue, false);
    node.publish(at, queue, count);
    node.broker.set_time(at_s(seconds));
    node.consume(at, queue);
    assert_eq!(node.turns(at), count);
    at
}

#[test]
fn an_unsettled_delivery_closes_its_channel_with_rabbitmqs_error_text() {
    let mut node = node();
    assert_eq!(node.broker.overdue_deadline(), Deadline::NEVER);
    let stuck = consumer(&mut node, "q", 3, 100);
    let other = node.open(stuck, 2);
    assert_eq!(next_look_s(&node), Some(100 + TIMEOUT_S + 1));
    assert!(overdue(&mut node, 100 + TIMEOUT_S).is_empty(), "not a moment too early");
    let all = overdue(&mut node, 100 + TIMEOUT_S + 1);
    let [Overdue { connection, channel: 1, fault }] = &all[..] else { panic!("{all:?}") };
    assert_eq!(*connection, stuck.connection);
    assert_eq!(
        &*fault.text,
        "PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out. Timeout value used: \
         1800000 ms. This timeout value can be configured, see consumers doc guide to learn more"
    );
    // The closed channel's deliveries go to other consumers, and nothing is left to check.
    node.done(stuck, ChannelCommand::CloseChannel);
    node.turns(stuck);
    assert_eq!(node.ready(other, "q"), 3);
    assert!(overdue(&mut node, 100 + 2 * TIMEOUT_S).is_empty());
    assert_eq!(node.broker.overdue_deadline(), Deadline::NEVER);
}

/// A channel that could not be closed because its client does not read is reported again, but not in every
/// turn.
#[test]
fn a_channel_that_could_not_be_closed_is_reported_again_a_minute_later() {
    let mut node = node();
    consumer(&mut node, "q", 1, 0);
    assert_eq!(overdue(&mut node, 5_000).len(), 1);
    assert_eq!(next_look_s(&node), Some(5_060));
    assert!(overdue(&mut node, 5_059).is_empty());
    assert_eq!(overdue(&mut node, 5_060).len(), 1);
}

#[test]
fn consumers_that_settle_in_time_cause_only_one_check_per_half_hour() {
    let mut node = node();
    let at = consumer(&mut node, "q", 1, 0);
    let mut looks = 0;
    for second in 1..=3 * TIMEOUT_S {
        node.publish(at, "q", 1);
        node.broker.set_time(at_s(second));
        node.turns(at);
        node.settle(at, second, false, Settlement::Ack);
        if node.broker.overdue_deadline().is_due(at_s(second)) {
            looks += 1;
            assert!(node.broker.next_overdue().is_none());
            assert!(!node.broker.overdue_deadline().is_due(at_s(second)), "one look is all");
        }
    }
    assert_eq!(looks, 2);
    node.settle(at, 0, true, Settlement::Ack);
    assert_eq!(node.broker.overdue_deadline(), Deadline::NEVER, "there are no deliveries");
}

#[test]
fn the_timeout_applies_to_gets_but_not_without_acknowledgement() {
    let mut node = node();
    let at = node.connect();
    node.declare(at, "q", false);
    node.publish(at, "q", 2);
    assert_eq!(node.ask(at, GetCommand { queue: "q", no_ack: true }), Ok(GetAnswer::Queued));
    assert_eq!(node.broker.overdue_deadline(), Deadline::NEVER);
    node.turns(at);
    assert_eq!(node.ask(at, GetCommand { queue: "q", no_ack: false }), Ok(GetAnswer::Queued));
    node.turns(at);
    assert_eq!(overdue(&mut node, TIMEOUT_S + 1).len(), 1);
}

#[test]
fn a_transaction_without_progress_closes_its_channel() {
    let mut node = node();
    let at = node.connect();
    node.declare(at, "q", false);
    node.done(at, ChannelCommand::TxSelect);
    assert!(overdue(&mut node, 100).is_empty());
    node.publish(at, "q", 1);
    assert!(overdue(&mut node, 100 + TIMEOUT_S).is_empty());
    // The transaction makes progress, and the timeout restarts.
    node.publish(at, "q", 1);
    assert!(overdue(&mut node, 101 + TIMEOUT_S).is_empty());
    let all = overdue(&mut node, 200 + 2 * TIMEOUT_S);
    assert_eq!(all.len(), 1);
    assert!(all[0].fault.text.contains("transaction on channel 1 was left open"), "{}", all[0].fault);
    node.done(at, ChannelCommand::TxCommit);
    assert!(overdue(&mut node, 300 + 2 * TIMEOUT_S).is_empty());
    assert_eq!(node.broker.overdue_deadline(), Deadline::NEVER);
}

/// Thousands of channels, of which the last is overdue: it is found in several turns, each of which checks a
/// part.
#[test]
fn a_check_of_all_channels_is_done_in_parts() {
    let mut node = node();
    let many = node.connect();
    for number in 2..1_500 {
        node.open(many, number);
    }
    let stuck = consumer(&mut node, "q", 1, 0);
    let mut turns = 0;
    let found = loop {
        node.broker.set_time(at_s(TIMEOUT_S + 1));
        turns += 1;
        assert!(node.broker.overdue_deadline().is_due(at_s(TIMEOUT_S + 1)), "it goes on without sleep");
        if let Some(found) = node.broker.next_overdue() {
            break found;
        }
    };
    assert_eq!((found.connection, turns), (stuck.connection, 3));
}

#[test]
fn a_timeout_of_0_is_never() {
    let limits = Limits { consumer_timeout_ms: 0, connections_max: 16, ..Limits::default() };
    let mut node = TestBroker::with(&limits);
    consumer(&mut node, "q", 1, 0);
    assert_eq!(node.broker.overdue_deadline(), Deadline::NEVER);
    assert!(overdue(&mut node, u64::from(u32::MAX)).is_empty());
}

/// Returns the argument `x-consumer-timeout`, in milliseconds.
fn timeout(ms: i64) -> Vec<u8> {
    table(|t| t.long("x-consumer-timeout", ms))
}

/// Connects a consumer that holds one message of the queue from this second on.
fn holder(node: &mut TestBroker, queue: &str, seconds: u64) -> At {
    let at = node.connect();
    node.publish(at, queue, 1);
    node.broker.set_time(at_s(seconds));
    node.consume(at, queue);
    assert_eq!(node.turns(at), 1);
    at
}

#[test]
fn a_queue_has_a_timeout_of_its_own_shorter_or_longer() {
    let mut node = node();
    let at = node.connect();
    declare(&mut node, at, "soon", false, &timeout(10_000));
    declare(&mut node, at, "late", false, &timeout(5_000_000));
    declare(&mut node, at, "never", false, &timeout(0));
    node.declare(at, "as ever", false);
    for queue in ["late", "never", "as ever"] {
        holder(&mut node, queue, 0);
    }
    // It starts while the others hold messages, which an earlier check found to be due far later.
    assert!(overdue(&mut node, 20).is_empty());
    let soon = holder(&mut node, "soon", 1_000);
    assert!(overdue(&mut node, 1_010).is_empty());
    let second = (1_011..).find(|second| node.broker.overdue_deadline().is_due(at_s(*second))).unwrap();
    assert!(second <= 1_011 + 60, "{second}");
    let all = overdue(&mut node, second);
    let [Overdue { connection, fault, .. }] = &all[..] else { panic!("{all:?}") };
    assert_eq!((*connection, fault.text.contains("used: 10000 ms")), (soon.connection, true));
    node.done(soon, ChannelCommand::CloseChannel);
    node.turns(soon);
    let text = |all: &[Overdue]| all.iter().map(|overdue| overdue.fault.text.to_string()).collect::<String>();
    let all = overdue(&mut node, TIMEOUT_S + 1);
    assert!(all.len() == 1 && text(&all).contains("used: 1800000 ms"), "{all:?}");
    let all = overdue(&mut node, 5_001);
    assert!(all.len() == 2 && text(&all).contains("used: 5000000 ms"), "{all:?}");
    assert_eq!(overdue(&mut node, 1_000_000).len(), 2, "and never is never");
}

/// A queue without a timeout, under a configuration without one, and a policy that is set and cleared.
#[test]
fn a_policy_sets_a_timeout_for_existing_deliveries() {
    let limits = Limits { consumer_timeout_ms: 0, connections_max: 16, ..Limits::default() };
    let mut node = TestBroker::with(&limits);
    let held = consumer(&mut node, "q", 1, 0);
    assert_eq!(node.broker.overdue_deadline(), Deadline::NEVER);
    let definition = table(|t| t.int("consumer-timeout", 20_000));
    let policy = policy("soon", "^q$", &definition);
    node.broker.set_policy(&mut context!(node), &policy).unwrap();
    node.turns(held);
    assert_eq!(next_look_s(&node), Some(21));
    assert_eq!(overdue(&mut node, 21).len(), 1);
    node.broker.clear_policy(&mut context!(node), "/", PolicyKind::User, "soon").unwrap();
    node.turns(held);
    assert!(overdue(&mut node, 10_000).is_empty());
    assert_eq!(node.broker.overdue_deadline(), Deadline::NEVER);
}

#[test]
fn an_argument_that_is_no_time_is_none_and_is_not_compared() {
    let mut node = node();
    let at = node.connect();
    let word = table(|t| t.text("x-consumer-timeout", "soon"));
    for (queue, arguments) in [("negative", timeout(-1)), ("word", word)] {
        declare(&mut node, at, queue, false, &arguments);
        declare(&mut node, at, queue, false, &timeout(1_000));
        holder(&mut node, queue, 0);
    }
    assert!(overdue(&mut node, TIMEOUT_S).is_empty());
    assert_eq!(overdue(&mut node, TIMEOUT_S + 1).len(), 2);
}

/// A client that may declare a queue cannot remove the limit that a policy sets for its consumers: the
/// shortest counts.
#[test]
fn of_an_argument_and_a_policy_the_shorter_timeout_counts_and_0_is_the_longest() {
    let mut node = node();
    let at = node.connect();
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
        node.broker.set_policy(&mut context!(node), &policy).unwrap();
        declare(&mut node, at, queue, false, arguments);
        holder(&mut node, queue, 0);
    }
    let all = overdue(&mut node, TIMEOUT_S - 1);
    let told: Vec<String> = all.iter().map(|overdue| overdue.fault.text.to_string()).collect();
    assert_eq!(told.len(), cases.len(), "{told:?}");
    for ((queue, .., ms), told) in cases.iter().zip(&told) {
        assert!(told.contains(&format!("used: {ms} ms")), "{queue}: {told}");
    }
}
