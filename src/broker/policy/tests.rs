//! Tests of policies alone: setting, checking, choosing, notifying and clearing.

use super::*;
use crate::access::{OperatorFault, PatternBytes};
use crate::context::Work;
use leveret_amqp::Writer;
use leveret_amqp::field::{Table, Value};
use leveret_core::command::{ExchangeId, QueueId, VhostId};
use leveret_core::pending_writes::{Batch, Definition, LogEntry, PendingWrites};

/// Returns the bytes of a table with one field.
fn table(name: &str, text: &str) -> Vec<u8> {
    let mut bytes = [0; 256];
    let mut writer = Writer::new(&mut bytes);
    let put = writer.table(|table| match text.parse() {
        Ok(number) => table.long(name, number),
        Err(_) => table.text(name, text),
    });
    assert!(put.is_ok());
    let end = writer.at();
    bytes[4..end].to_vec()
}

fn vhost(index: usize) -> VhostId {
    VhostId::from_index(index)
}

/// Policies with capacity for four, and everything their methods borrow.
struct PolicyFixture {
    policies: Policies,
    patterns: PatternBytes,
    pending_writes: PendingWrites,
}

impl PolicyFixture {
    fn new() -> Self {
        let mut pending_writes = PendingWrites::new(16);
        pending_writes.start(1, true, u64::MAX);
        let patterns = PatternBytes::with_max(1 << 20);
        Self { policies: Policies::with_capacity(4), patterns, pending_writes }
    }

    fn set(&mut self, said: NewPolicy<'_>) -> Result<Batch, OperatorFault> {
        let view = PolicyView { vhost: "v", policy: said };
        self.policies.set(&mut self.pending_writes, &mut self.patterns, vhost(0), &view)
    }

    fn clear(&mut self, kind: PolicyKind, name: &str) -> Result<(), OperatorFault> {
        self.policies.clear(&mut self.pending_writes, vhost(0), "v", kind, name)
    }

    fn choose(&self, name: &str, subject: Subject) -> AppliedView<'_> {
        let applied = self.policies.choose(&mut Work::default(), vhost(0), name, subject);
        self.policies.applied_view(applied)
    }

    /// Notifies this many queues and exchanges of a change. Returns how many were notified.
    fn tell(&mut self, queues: usize, exchanges: usize) -> usize {
        let mut told = 0;
        while let Some(listener) = self.policies.next_to_notify(queues, exchanges) {
            self.policies.note_notified(listener);
            told += 1;
        }
        self.policies.end_notification(&mut self.patterns);
        told
    }

    /// Returns the names of policies written since the last call, cleared ones with a `-`.
    fn written(&mut self) -> Vec<String> {
        let mut names = Vec::new();
        while let Some(fact) = self.pending_writes.fact() {
            let LogEntry::Defined { key, value, .. } = fact else { panic!("no definition") };
            let is_news = value.is_some();
            let said = table("expires", "1");
            let definition = Definition::Policy {
                vhost: "v",
                name: "",
                is_operator_policy: false,
                pattern: "",
                apply_to: "all",
                priority: 0,
                definition: &said,
            };
            let any = definition.value();
            let parsed = Definition::parse(key, value.as_deref().unwrap_or(&any));
            let Some(Definition::Policy { vhost: "v", name, .. }) = parsed else { panic!("{parsed:?}") };
            names.push(format!("{}{name}", if is_news { "" } else { "-" }));
            self.pending_writes.pop_entry();
        }
        names
    }
}

fn said<'a>(name: &'a str, pattern: &'a str, definition: &'a [u8]) -> NewPolicy<'a> {
    let (apply_to, priority) = (ApplyTo::All, 0);
    NewPolicy { kind: PolicyKind::User, name, pattern, apply_to, priority, definition }
}

#[test]
fn the_highest_priority_counts_and_then_the_name() {
    let mut world = PolicyFixture::new();
    world.policies = Policies::with_capacity(8);
    let (expires, quorum) = (table("expires", "1"), table("queue-mode", "lazy"));
    let queues = |name, pattern, priority| NewPolicy {
        apply_to: ApplyTo::Queues,
        priority,
        ..said(name, pattern, if name == "classic" { &quorum } else { &expires })
    };
    for (name, pattern, priority) in
        [("low", "^a", -1), ("b", "^a", 0), ("a", "^a", 0), ("classic", "^ab", 3), ("gone", "", 9)]
    {
        world.set(queues(name, pattern, priority)).unwrap();
    }
    world.set(NewPolicy { kind: PolicyKind::Operator, ..queues("o", "b$", 0) }).unwrap();
    world.clear(PolicyKind::User, "gone").unwrap();
    let chosen = |of, name: &str, subject| {
        let mut work = Work::default();
        let applied = world.policies.choose(&mut work, of, name, subject);
        assert!(work.units() <= 6);
        let view = world.policies.applied_view(applied);
        (view.policy, view.operator)
    };
    assert_eq!(chosen(vhost(0), "ab", Subject::ClassicQueue), (Some("classic"), Some("o")));
    assert_eq!(chosen(vhost(0), "ab", Subject::QuorumQueue), (Some("a"), Some("o")));
    assert_eq!(chosen(vhost(0), "a", Subject::ClassicQueue), (Some("a"), None));
    assert_eq!(chosen(vhost(0), "", Subject::ClassicQueue), (None, None));
    assert_eq!(chosen(vhost(0), "ab", Subject::Exchange), (None, None));
    assert_eq!(chosen(vhost(1), "ab", Subject::ClassicQueue), (None, None));
    world.tell(0, 0);
    assert_eq!(world.policies.len(), 5);
}

/// The errors are those of RabbitMQ 3.10.8.
#[test]
fn mistakes_have_rabbitmqs_error_texts() {
    let checked = |key, value| keys::check(Table::trusted(&table(key, value)), PolicyKind::User);
    for (key, value, why) in [
        ("nonsense", "3", "[{<<\"nonsense\">>,3}] are not recognised policy settings"),
        (
            "federation-upstream",
            "x",
            "[{<<\"federation-upstream\">>,<<\"x\">>}] are not recognised policy settings",
        ),
        ("max-length", "x", "<<\"x\">> is not a valid maximum length"),
        ("max-length", "-1", "-1 is not a valid maximum length"),
        ("message-ttl", "-1", "-1 is not a valid message TTL"),
        ("expires", "0", "0 is not a valid queue expiry"),
        ("overflow", "x", "<<\"x\">> is not a valid overflow value"),
        ("dead-letter-exchange", "3", "3 is not a valid dead letter exchange name"),
        ("dead-letter-strategy", "x", "<<\"x\">> is not a valid dead letter strategy"),
        ("queue-version", "3", "3 is not a valid queue-version value"),
        ("max-in-memory-length", "-1", "-1 is not a valid maximum memory in bytes"),
        ("queue-master-locator", "zzz", "<<\"zzz\">> invalid queue-master-locator value"),
        ("ha-mode", "zzz", "<<\"zzz\">> is not a valid ha-mode value"),
        (
            "ha-params",
            "2",
            "ha-mode must be specified to specify ha-params, ha-sync-mode or ha-promote-on-shutdown",
        ),
        ("ha-sync-batch-size", "0", "ha-sync-batch-size takes an integer greater than 0, 0 given"),
    ] {
        assert_eq!(checked(key, value), Err(why.to_string()), "{key}");
    }
    for (key, value) in
        [("message-ttl", "0"), ("ha-mode", "all"), ("queue-mode", "lazy"), ("dead-letter-exchange", "")]
    {
        assert_eq!(checked(key, value), Ok(()), "{key}");
    }
}

#[test]
fn invalid_policies_are_refused_and_change_nothing() {
    let mut world = PolicyFixture::new();
    let expires = table("expires", "1");
    let long = "n".repeat(256);
    for name in ["", &long] {
        assert!(matches!(world.set(said(name, "", &expires)), Err(OperatorFault::BadName("policy", _))));
    }
    assert!(matches!(world.set(said("p", "", &[])), Err(OperatorFault::Invalid(_))));
    assert!(matches!(world.set(said("p", "(", &expires)), Err(OperatorFault::Invalid(_))));
    let ttl = table("dead-letter-exchange", "x");
    let operators = NewPolicy { kind: PolicyKind::Operator, ..said("p", "", &ttl) };
    assert!(matches!(world.set(operators), Err(OperatorFault::Invalid(_))));
    assert_eq!(world.clear(PolicyKind::User, "p"), Err(OperatorFault::NoSuchParameter));
    assert!(world.policies.is_empty() && !world.policies.take_job());
    assert!(world.written().is_empty());
}

#[test]
fn a_policy_can_change_without_capacity_for_another() {
    let mut world = PolicyFixture::new();
    let expires = table("expires", "1");
    for name in ["a", "b", "c", "d"] {
        assert!(world.set(said(name, "^q-[0-9]+$", &expires)).unwrap() > Batch::NONE);
    }
    assert_eq!(world.set(said("e", "", &expires)), Err(OperatorFault::NoCapacity("policies_max")));
    let longer = table("expires", "2");
    world.set(said("b", "^r", &longer)).unwrap();
    assert_eq!((world.policies.len(), world.policies.most()), (4, 4));
    assert_eq!(world.choose("r-1", Subject::ClassicQueue).policy, Some("b"));
    assert_eq!(world.choose("q-1", Subject::ClassicQueue).policy, Some("a"));
    assert_eq!(world.written(), ["a", "b", "c", "d", "b"]);
    let seen: Vec<_> = (0..world.policies.places()).map(|at| world.policies.at(at, |_| "v")).collect();
    assert_eq!(seen[1].unwrap().policy.pattern, "^r");
    assert_eq!(seen[1].unwrap().policy.definition, longer);
}

#[test]
fn on_a_full_disk_only_operator_policies_can_be_set() {
    let mut world = PolicyFixture::new();
    world.pending_writes.set_log_free_bytes((0, 1 << 20), true);
    let expires = table("expires", "1");
    assert_eq!(world.set(said("p", "", &expires)), Err(OperatorFault::FileSystemFull));
    world.set(NewPolicy { kind: PolicyKind::Operator, ..said("p", "", &expires) }).unwrap();
    world.clear(PolicyKind::Operator, "p").unwrap();
    world.pending_writes.start(2, false, u64::MAX);
    let operators = NewPolicy { kind: PolicyKind::Operator, ..said("p", "", &expires) };
    assert!(matches!(world.set(operators), Err(OperatorFault::Store(_))));
}

#[test]
fn patterns_are_counted_until_all_are_notified_of_their_removal() {
    let mut world = PolicyFixture::new();
    world.patterns = PatternBytes::with_max(4 << 10);
    let expires = table("expires", "1");
    let pattern = "^[a-z]{8}$";
    let mut count = 0;
    while world.set(said(["a", "b", "c", "d"][count], pattern, &expires)).is_ok() {
        count += 1;
    }
    assert!((1..4).contains(&count), "{count}");
    assert_eq!(world.set(said("d", pattern, &expires)), Err(OperatorFault::NoCapacity("patterns_bytes_max")));
    world.clear(PolicyKind::User, "a").unwrap();
    assert_eq!(world.set(said("d", pattern, &expires)), Err(OperatorFault::NoCapacity("patterns_bytes_max")));
    world.tell(1, 1);
    world.set(said("d", pattern, &expires)).unwrap();
}

#[test]
fn a_change_restarts_the_notification_within_one_job() {
    let mut world = PolicyFixture::new();
    let expires = table("expires", "1");
    assert_eq!(world.policies.next_to_notify(1, 1), None, "nothing has changed");
    world.set(said("a", "", &expires)).unwrap();
    assert!(world.policies.take_job() && !world.policies.take_job());
    let queue = |index| Some(Listener::Queue(QueueId::from_index(index)));
    assert_eq!(world.policies.next_to_notify(2, 1), queue(0));
    world.policies.note_notified(queue(0).unwrap());
    assert_eq!(world.policies.next_to_notify(2, 1), queue(1));
    world.clear(PolicyKind::User, "a").unwrap();
    assert!(!world.policies.take_job(), "the job is there");
    assert_eq!(world.policies.next_to_notify(2, 1), queue(0));
    assert_eq!(world.tell(2, 1), 3);
    assert_eq!(world.policies.next_to_notify(2, 1), None);
    world.set(said("a", "", &expires)).unwrap();
    assert!(world.policies.take_job(), "the last job is done");
    let exchange = Listener::Exchange(ExchangeId::from_index(0));
    assert_eq!(world.policies.next_to_notify(0, 1), Some(exchange), "there is no queue");
}

#[test]
fn policies_are_deleted_with_their_virtual_host() {
    let mut world = PolicyFixture::new();
    let definition = table("alternate-exchange", "x");
    world.policies.put(&mut world.patterns, vhost(1), &said("other", "", &definition)).unwrap();
    world.set(said("a", ".*", &definition)).unwrap();
    world.tell(1, 1);
    let applied = world.policies.choose(&mut Work::default(), vhost(0), "e", Subject::Exchange);
    assert_eq!(world.policies.alternate(applied).as_deref(), Some("x"));
    world.policies.drop_of_vhost(&mut world.pending_writes, vhost(0), "v");
    assert_eq!(world.written(), ["a", "-a"]);
    assert_eq!(world.choose("e", Subject::Exchange).policy, None);
    assert_eq!(world.policies.applied_view(applied).policy, Some("a"), "who has not heard goes by it");
    world.tell(1, 1);
    assert_eq!(world.policies.len(), 1);
    let seen = world.policies.at(0, |of| ["v", "w"][of.index()]).unwrap();
    assert_eq!((seen.vhost, seen.policy.name), ("w", "other"));
}

#[test]
fn the_smallest_limit_counts_and_arguments_precede_other_keys() {
    let mut world = PolicyFixture::new();
    let (ttl, limit) = (table("message-ttl", "50"), table("message-ttl", "70"));
    world.set(said("p", ".*", &ttl)).unwrap();
    world.set(NewPolicy { kind: PolicyKind::Operator, ..said("o", ".*", &limit) }).unwrap();
    let applied = world.policies.choose(&mut Work::default(), vhost(0), "q", Subject::ClassicQueue);
    let limit_with = |arguments: &[u8], applied| {
        world.policies.effective_policy(arguments, applied).limit("x-message-ttl")
    };
    assert_eq!(limit_with(&[], applied), 50);
    assert_eq!(limit_with(&table("x-message-ttl", "40"), applied), 40);
    assert_eq!(limit_with(&table("x-message-ttl", "90"), applied), 50);
    assert_eq!(limit_with(&[], Applied::default()), u64::MAX);
    let own = table("x-message-ttl", "90");
    let value = world.policies.effective_policy(&own, applied).value("x-message-ttl");
    assert_eq!(value.and_then(|value: Value<'_>| value.as_integer()), Some(90));
}

#[test]
#[should_panic(expected = "changes are told in the order of places")]
fn notifications_out_of_order_panic() {
    let mut world = PolicyFixture::new();
    world.set(said("a", "", &table("expires", "1"))).unwrap();
    world.policies.note_notified(Listener::Queue(QueueId::from_index(1)));
}
