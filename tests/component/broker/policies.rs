//! Policies: which ones apply, their combination with arguments, and the effect of changes on existing
//! queues, in steps and across restarts.

use leveret_amqp::{Full, TableWriter};
use leveret_broker::OperatorFault;
use leveret_core::command::{ChannelCommand, PublishAnswer, Settlement};
use leveret_core::definition::{ApplyTo, Policy, PolicyKind};
use leveret_core::limits::Limits;

use crate::dead_letters::{BrokerRun, PERSISTENT, declare, disk, get, got, publish, table};
use crate::expiry::pass_to;
use crate::support::{At, TestBroker};

type Say = fn(&mut TableWriter<'_, '_>) -> Result<(), Full>;

pub(crate) fn policy<'a>(name: &'a str, pattern: &'a str, definition: &'a [u8]) -> Policy<&'a str, &'a [u8]> {
    Policy {
        vhost: "/",
        kind: PolicyKind::User,
        name,
        pattern,
        apply_to: ApplyTo::All,
        priority: 0,
        definition,
    }
}

fn set(node: &mut TestBroker, said: &Policy<&str, &[u8]>) {
    node.broker.set_policy(&mut context!(node), said).unwrap();
}

#[track_caller]
fn say(node: &mut TestBroker, name: &str, pattern: &str, say: Say) {
    set(node, &policy(name, pattern, &table(say)));
}

fn limit(node: &mut TestBroker, name: &str, pattern: &str, say: Say) {
    let definition = table(say);
    set(node, &Policy { kind: PolicyKind::Operator, ..policy(name, pattern, &definition) });
}

fn clear(node: &mut TestBroker, kind: PolicyKind, name: &str) {
    node.broker.clear_policy(&mut context!(node), "/", kind, name).unwrap();
}

/// Returns the names of the policies that apply to a queue.
fn applied(node: &TestBroker, queue: &str) -> (Option<String>, Option<String>) {
    let broker = &node.broker;
    let mut queues = broker.views().queues();
    let found = queues.find(|view| view.name == queue).expect("it is there");
    (found.applied.policy.map(Into::into), found.applied.operator.map(Into::into))
}

fn fill(node: &mut TestBroker, at: At, queue: &str, count: usize) {
    for number in 0..count {
        publish(node, at, queue, &[0, 0], &number.to_string()).unwrap();
    }
}

/// A smaller length limit trims the queue, a part in each turn. Clearing the policy ends that.
#[test]
fn a_policy_change_affects_existing_messages_in_steps() {
    let mut node = TestBroker::with(&Limits { connections_max: 16, ..Limits::default() });
    let at = node.connect();
    declare(&mut node, at, "q", false, &[]);
    node.publish(at, "q", 5_000);
    say(&mut node, "p", "^q", |t| t.int("max-length", 10));
    let mut turns = 0;
    while node.ready(at, "q") > 10 {
        let before = node.ready(at, "q");
        node.turn(at);
        let gone = before - node.ready(at, "q");
        assert!((1..=512).contains(&gone), "{gone} in a turn");
        turns += 1;
    }
    assert!(turns >= 9, "{turns}");
    node.publish(at, "q", 3);
    assert_eq!(node.ready(at, "q"), 10);
    clear(&mut node, PolicyKind::User, "p");
    node.publish(at, "q", 3);
    assert_eq!(node.ready(at, "q"), 13);
    say(&mut node, "bytes", "^q", |t| t.int("max-length-bytes", 40));
    node.turns(at);
    assert_eq!(node.ready(at, "q"), 4);
    say(&mut node, "bytes", "^q", |t| {
        t.int("max-length", 4)?;
        t.text("overflow", "reject-publish")
    });
    node.done(at, ChannelCommand::ConfirmSelect);
    assert_eq!(node.offer(at, "q", 10), Ok(PublishAnswer::Refused));
}

#[test]
fn publishing_into_a_queue_that_became_too_long_is_bounded_too() {
    let mut node = TestBroker::with(&Limits { connections_max: 16, ..Limits::default() });
    let at = node.connect();
    declare(&mut node, at, "q", false, &[]);
    node.publish(at, "q", 5_000);
    say(&mut node, "p", "^q", |t| t.int("max-length", 10));
    node.publish(at, "q", 1);
    assert_eq!(node.ready(at, "q"), 5_001 - 512);
    node.turns(at);
    assert_eq!(node.ready(at, "q"), 10);
}

#[test]
fn a_ttl_policy_affects_waiting_messages_and_ends_with_the_policy() {
    let mut node = TestBroker::new(64);
    node.pending_writes.set_time(1_000);
    let at = node.connect();
    declare(&mut node, at, "q", false, &[]);
    fill(&mut node, at, "q", 2);
    say(&mut node, "t", "q", |t| t.int("message-ttl", 500));
    node.turns(at);
    assert_eq!(node.broker.queues().next_expiry_ms(), Some(1_500));
    pass_to(&mut node, at, 1_499);
    assert_eq!(node.ready(at, "q"), 2);
    pass_to(&mut node, at, 1_500);
    assert_eq!(node.ready(at, "q"), 0);
    fill(&mut node, at, "q", 1);
    clear(&mut node, PolicyKind::User, "t");
    pass_to(&mut node, at, 9_000);
    assert_eq!(node.ready(at, "q"), 1);
    limit(&mut node, "o", "q", |t| t.int("message-ttl", 100));
    pass_to(&mut node, at, 9_200);
    assert_eq!(node.ready(at, "q"), 0);
}

#[test]
fn an_unused_queue_is_deleted_when_its_policy_says_so() {
    let mut node = TestBroker::new(64);
    node.pending_writes.set_time(1_000);
    let at = node.connect();
    for queue in ["a", "b"] {
        declare(&mut node, at, queue, false, &[]);
    }
    say(&mut node, "a", "^a$", |t| t.int("expires", 1_000));
    say(&mut node, "b", "^b$", |t| t.int("expires", 1_000));
    pass_to(&mut node, at, 1_500);
    clear(&mut node, PolicyKind::User, "b");
    // Policies of other queues do not affect it.
    say(&mut node, "c", "^c$", |t| t.int("expires", 1));
    pass_to(&mut node, at, 2_000);
    assert_eq!(node.broker.gauges().queues, 1);
    assert_eq!(node.ready(at, "b"), 0);
}

/// As in RabbitMQ 3.10.8: a policy with a key that a type of queue does not support does not apply to it.
#[test]
fn a_policy_applies_as_a_whole_or_not_at_all() {
    let mut node = TestBroker::new(64);
    let at = node.connect();
    declare(&mut node, at, "e1", true, &[]);
    declare(&mut node, at, "e2", true, &table(|t| t.text("x-queue-type", "quorum")));
    let cases: [(Say, bool, bool); 8] = [
        (|t| t.int("delivery-limit", 2).and_then(|()| t.int("max-length", 9)), false, true),
        (|t| t.text("queue-mode", "lazy").and_then(|()| t.int("max-length", 9)), true, false),
        (|t| t.text("ha-mode", "all"), true, false),
        (|t| t.text("alternate-exchange", "x"), true, true),
        (|t| t.text("max-age", "1h").and_then(|()| t.int("max-length", 9)), false, false),
        (|t| t.text("dead-letter-strategy", "at-least-once"), false, true),
        (|t| t.int("max-in-memory-length", 2), true, true),
        (|t| t.text("queue-master-locator", "random"), true, false),
    ];
    for (number, (definition, classic, quorum)) in cases.into_iter().enumerate() {
        say(&mut node, "e", "^e", definition);
        let has = |queue| applied(&node, queue).0.is_some();
        assert_eq!((has("e1"), has("e2")), (classic, quorum), "{number}");
    }
    say(&mut node, "e", "^e", |t| t.int("delivery-limit", 1));
    publish(&mut node, at, "e2", &[0, 0], "x").unwrap();
    for _ in 0..2 {
        let tag = got(&mut node, at, "e2").tag;
        node.settle(at, tag, false, Settlement::Requeue);
        node.turns(at);
    }
    assert!(get(&mut node, at, "e2").is_none(), "it came back more often than its policy says");
}

#[test]
fn a_declared_queue_gets_the_policy_with_the_highest_priority_that_applies() {
    let mut node = TestBroker::new(64);
    let at = node.connect();
    let definition = table(|t| t.int("max-length", 1));
    let said = policy("p", "^q", &definition);
    set(&mut node, &Policy { apply_to: ApplyTo::Exchanges, ..said });
    declare(&mut node, at, "q1", false, &[]);
    assert_eq!(applied(&node, "q1"), (None, None));
    set(&mut node, &Policy { apply_to: ApplyTo::Queues, ..said });
    set(&mut node, &Policy { name: "high", priority: 1, pattern: "3$", ..said });
    for queue in ["q2", "q3", "z"] {
        declare(&mut node, at, queue, false, &[]);
    }
    let names: Vec<_> = ["q1", "q2", "q3", "z"].map(|queue| applied(&node, queue).0).into();
    let some = |name: &str| Some(name.to_string());
    assert_eq!(names, [some("p"), some("p"), some("high"), None]);
    fill(&mut node, at, "q2", 3);
    assert_eq!(node.ready(at, "q2"), 1);
    // Each virtual host has its own policies.
    node.admit("other", "v");
    let there = node.connect_as("other", "v");
    declare(&mut node, there, "q9", false, &[]);
    assert_eq!(applied(&node, "q9"), (None, None));
}

/// A change reaches a thousand queues in steps of a few hundred per turn, or fewer if the matching takes more
/// work.
#[test]
fn a_policy_change_reaches_many_queues_in_steps() {
    let mut node = TestBroker::with(&Limits { connections_max: 16, ..Limits::default() });
    let at = node.connect();
    for number in 0..1_000 {
        declare(&mut node, at, &format!("{}{number}", "q".repeat(200)), false, &[]);
    }
    let heard = |node: &TestBroker| {
        let queues = node.broker.views().queues();
        queues.filter(|view| view.applied.policy.is_some()).count()
    };
    for (pattern, most) in [("q+[0-9]", 512), (&*format!("^({})+[0-9]", "q|".repeat(400)), 16)] {
        say(&mut node, "p", pattern, |t| t.int("max-length", 9));
        let mut before = heard(&node);
        assert!((1..=most).contains(&before), "{before}");
        while before < 1_000 {
            node.turn(at);
            let now = heard(&node);
            assert!((1..=most).contains(&(now - before)), "{now}");
            before = now;
        }
        clear(&mut node, PolicyKind::User, "p");
        node.turns(at);
        assert_eq!((heard(&node), node.broker.gauges().jobs), (0, 0));
    }
}

#[test]
fn policies_are_limited_by_policies_max() {
    let limits = Limits { connections_max: 16, policies_max: 2, ..Limits::default() };
    let mut node = TestBroker::with(&limits);
    let definition = table(|t| t.int("max-length", 1));
    let said = policy("p", "", &definition);
    let put = |node: &mut TestBroker, said: &Policy<&str, &[u8]>| {
        node.broker.set_policy(&mut context!(node), said).map(|_| ())
    };
    assert_eq!(put(&mut node, &said), Ok(()));
    assert_eq!(put(&mut node, &Policy { kind: PolicyKind::Operator, ..said }), Ok(()));
    assert_eq!(
        put(&mut node, &Policy { name: "x", ..said }),
        Err(OperatorFault::NoCapacity("another policy"))
    );
    assert_eq!(put(&mut node, &Policy { pattern: "x", ..said }), Ok(()), "in place of another");
    let why = |refused: Result<(), OperatorFault>| refused.unwrap_err().to_string();
    let long = "x".repeat(1_025);
    assert!(why(put(&mut node, &Policy { pattern: &long, ..said })).contains("longer than 1024 bytes"));
    assert!(why(put(&mut node, &Policy { pattern: "(a", ..said })).contains("pattern should be regular"));
    let large = table(|t| t.text("dead-letter-exchange", &"x".repeat(990)));
    let larger = [&large[..], &large[..]].concat();
    assert!(why(put(&mut node, &Policy { definition: &larger, ..said })).contains("longer than 1024"));
    clear(&mut node, PolicyKind::User, "p");
    let at = node.connect();
    node.turns(at);
    assert_eq!(put(&mut node, &Policy { name: "x", ..said }), Ok(()));
    let none = node.broker.clear_policy(&mut context!(node), "/", PolicyKind::User, "p");
    assert_eq!(none, Err(OperatorFault::NoSuchParameter));
}

/// Policies are restored with their virtual host and deleted with it. No message is processed before.
#[test]
fn a_start_restores_policies() {
    let disk = disk();
    let mut run = BrokerRun::begin(&disk).expect("it opens");
    let at = run.at;
    for queue in ["q", "dead"] {
        declare(&mut run.node, at, queue, true, &[]);
    }
    say(&mut run.node, "p", "^q$", |t| {
        t.text("dead-letter-exchange", "")?;
        t.text("dead-letter-routing-key", "dead")?;
        t.int("message-ttl", 1_000)
    });
    limit(&mut run.node, "o", "^q$", |t| t.int("max-length", 2));
    say(&mut run.node, "gone", "^q$", |t| t.int("max-length", 1));
    clear(&mut run.node, PolicyKind::User, "gone");
    run.node.admit("other", "v");
    let definition = table(|t| t.int("max-length", 1));
    run.node
        .broker
        .set_policy(&mut context!(run.node), &Policy { vhost: "v", ..policy("v", "", &definition) })
        .unwrap();
    publish(&mut run.node, at, "q", PERSISTENT, "x").unwrap();
    run.store().expect("the disk is well");
    drop(run);
    let mut run = BrokerRun::begin(&disk).expect("it opens");
    let at = run.at;
    let names = |run: &BrokerRun| {
        let mut names: Vec<_> =
            run.node.broker.views().policies().map(|view| view.name.to_string()).collect();
        names.sort();
        names
    };
    assert_eq!(names(&run), ["o", "p", "v"]);
    assert_eq!(applied(&run.node, "q"), (Some("p".into()), Some("o".into())));
    run.read_back();
    let due_ms = run.node.broker.queues().next_expiry_ms().expect("its time goes on");
    pass_to(&mut run.node, at, due_ms);
    run.read_back();
    run.node.turns(at);
    assert_eq!((run.node.ready(at, "q"), run.node.ready(at, "dead")), (0, 1), "by its policy");
    for number in 0..4 {
        publish(&mut run.node, at, "q", PERSISTENT, &number.to_string()).unwrap();
    }
    assert_eq!(run.node.ready(at, "q"), 2);
    run.node.broker.delete_vhost(&mut context!(run.node), "v").unwrap();
    run.node.turns(at);
    run.store().expect("the disk is well");
    drop(run);
    assert_eq!(names(&BrokerRun::begin(&disk).expect("it opens")), ["o", "p"]);
}
