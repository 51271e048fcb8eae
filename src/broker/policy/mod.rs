//! Policies: set and cleared by operators, and chosen by priority for each queue and exchange.
//!
//! Other modules read the effective value of a setting from [`EffectivePolicy`], whatever it comes from. The
//! choice of the policies that apply to a queue, and the progress of the notification after a change, are
//! private to this module.
//!
//! | file | content |
//! |---|---|
//! | `mod` | all policies; setting, clearing and choosing them; the notification of queues; views for operators |
//! | `keys` | the checks of a definition's keys; the progress of a notification |
//!
//! # Invariants
//! - Of the matching policies of one kind (user or operator), only the one with the highest priority applies.
//! - A cleared policy is not chosen any more. It keeps its place until all queues and exchanges have been
//!   notified, because until then some still refer to it.
//! - The bytes of policies' patterns and of permissions' patterns are counted together (`PatternBytes`).
//! - Every change begins a notification.

mod keys;

use std::sync::Arc;

use keys::{DEFINITION_BYTES_MAX, ExcludedQueues, PolicyNotification};
use leveret_amqp::field::Table;
use leveret_core::batch::Batch;
use leveret_core::command::{AppliedPolicies, NAME_BYTES_MAX, PolicyId, VhostId};
use leveret_core::definition::{ApplyTo, Definition, Policy, PolicyKind};
use leveret_core::mem::{ALLOCATION_BYTES, Class, Memory, Slab};
use leveret_core::work::Work;
use leveret_queues::EffectivePolicy;
use leveret_storage::PendingWrites;

use crate::access::{Pattern, PatternBytes};
use crate::operator_fault::{OperatorFault, check_changeable, check_definition_space};

pub(super) use keys::Listener;

/// What a policy may apply to: an exchange, or a queue of a certain type.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Subject {
    Exchange,
    ClassicQueue,
    QuorumQueue,
}

/// Returns the applied policy of this kind, for reading and setting.
const fn applied_of_kind_mut(applied: &mut AppliedPolicies, kind: PolicyKind) -> &mut Option<PolicyId> {
    match kind {
        PolicyKind::User => &mut applied.policy,
        PolicyKind::Operator => &mut applied.operator,
    }
}

/// A policy. Its definition passed the checks in `keys`.
struct PolicyRecord {
    vhost: VhostId,
    name: Box<str>,
    kind: PolicyKind,
    pattern: Pattern,
    apply_to: ApplyTo,
    priority: i32,
    /// The definition, encoded as a field table.
    definition: Box<[u8]>,
    /// The name of the alternate exchange in the definition. All exchanges that the policy applies to share
    /// the string.
    alternate: Option<Arc<str>>,
    excluded_queues: ExcludedQueues,
    /// The policy was cleared. Its record stays until the notification has ended.
    is_cleared: bool,
}

impl PolicyRecord {
    /// Returns whether the policy has this virtual host, kind and name, and is not cleared.
    fn is_named(&self, vhost: VhostId, kind: PolicyKind, name: &str) -> bool {
        (self.vhost, self.kind, &*self.name) == (vhost, kind, name) && !self.is_cleared
    }

    /// Returns whether the policy may apply to such a queue or exchange, if the pattern matches its name.
    fn may_apply_to(&self, vhost: VhostId, subject: Subject) -> bool {
        use ApplyTo::{All, ClassicQueues, Exchanges, Queues, QuorumQueues};
        let applies = match subject {
            Subject::Exchange => matches!(self.apply_to, All | Exchanges),
            Subject::ClassicQueue => {
                matches!(self.apply_to, All | Queues | ClassicQueues) && !self.excluded_queues.classic
            }
            Subject::QuorumQueue => {
                matches!(self.apply_to, All | Queues | QuorumQueues) && !self.excluded_queues.quorum
            }
        };
        applies && self.vhost == vhost && !self.is_cleared
    }

    /// Returns whether this policy applies, and not the other one, if both match. With the same priority the
    /// name that sorts first decides; RabbitMQ does not define the order then.
    fn precedes(&self, other: &Self) -> bool {
        (other.priority, &self.name) < (self.priority, &other.name)
    }

    /// Returns the policy in the form in which an operator sets it.
    const fn definition_in<'a>(&'a self, vhost: &'a str) -> Policy<&'a str, &'a [u8]> {
        Policy {
            vhost,
            kind: self.kind,
            name: &self.name,
            pattern: self.pattern.text(),
            apply_to: self.apply_to,
            priority: self.priority,
            definition: &self.definition,
        }
    }
}

/// All policies.
pub(crate) struct Policies {
    records: Slab<PolicyRecord>,
    notification: PolicyNotification,
}

impl Policies {
    /// Maximum bytes that a policy takes besides its record and its pattern. These are the longest name, definition and name of
    /// an alternate exchange, each a separate allocation, and its definition in the index of the log.
    const SIDE_BYTES: usize =
        DEFINITION_BYTES_MAX + 2 * 256 + 4 * ALLOCATION_BYTES + leveret_storage::DEFINITION_BYTES;
    /// Maximum bytes of memory that a policy takes without its pattern.
    pub(crate) const POLICY_BYTES: usize = Slab::<PolicyRecord>::record_bytes() + Self::SIDE_BYTES;

    /// Returns the bytes of unused places that may be resident in memory.
    pub(crate) const fn idle_bytes(&self) -> usize {
        self.records.idle_bytes()
    }

    /// Returns unused memory to the system.
    pub(crate) fn trim(&mut self) {
        self.records.trim();
    }

    pub(crate) fn with_capacity(policies: usize, memory: &Memory) -> Self {
        Self {
            records: Slab::in_memory(policies, memory, Class::Definitions).with_side_bytes(Self::SIDE_BYTES),
            notification: PolicyNotification::default(),
        }
    }

    // ---- changes

    /// Creates a policy in a virtual host, or changes the policy of that name. Returns the batch that makes
    /// the change durable.
    ///
    /// # Errors
    /// The policy is not valid, or there is no capacity.
    pub(crate) fn set(
        &mut self,
        pending_writes: &mut PendingWrites,
        patterns: &mut PatternBytes,
        vhost: VhostId,
        new: &Policy<&str, &[u8]>,
    ) -> Result<Batch, OperatorFault> {
        if new.name.is_empty() || new.name.len() > NAME_BYTES_MAX {
            return Err(OperatorFault::BadName("policy", "have from 1 to 255 bytes"));
        }
        keys::check(Table::trusted(new.definition), new.kind).map_err(OperatorFault::Invalid)?;
        check_changeable(pending_writes)?;
        // An operator policy is accepted even if the disk is full, because it may limit queues and so free
        // space.
        if new.kind == PolicyKind::User {
            check_definition_space(pending_writes)?;
        }
        self.put(patterns, vhost, new)?;
        Ok(pending_writes.write_definition(&Definition::Policy(*new), true))
    }

    /// Creates or changes a policy in memory only. Recovery uses this for policies that are in the log
    /// already.
    ///
    /// # Errors
    /// The pattern is not valid, or there is no capacity.
    pub(crate) fn put(
        &mut self,
        patterns: &mut PatternBytes,
        vhost: VhostId,
        new: &Policy<&str, &[u8]>,
    ) -> Result<(), OperatorFault> {
        let pattern = Pattern::new(new.pattern, patterns.max()).map_err(|why| {
            let text = format!("pattern should be regular expression but is invalid: {why}");
            OperatorFault::Invalid(text)
        })?;
        let old = self.find(vhost, new.kind, new.name);
        if old.is_none() && self.records.is_full() {
            return Err(OperatorFault::NoCapacity("another policy"));
        }
        let freed = old.map_or(0, |old| self.records[old].pattern.bytes());
        patterns.replace(pattern.bytes(), freed)?;
        let definition = Table::trusted(new.definition);
        let alternate = definition.get("alternate-exchange").and_then(|value| value.as_str());
        let policy = PolicyRecord {
            vhost,
            name: new.name.into(),
            kind: new.kind,
            pattern,
            apply_to: new.apply_to,
            priority: new.priority,
            definition: new.definition.into(),
            alternate: alternate.map(Arc::from),
            excluded_queues: keys::excluded_queues(definition),
            is_cleared: false,
        };
        match old {
            Some(old) => self.records[old] = policy,
            None => {
                self.records.insert_checked(policy);
            }
        }
        self.notification.begin();
        Ok(())
    }

    /// Clears a policy.
    ///
    /// # Errors
    /// There is no policy of that name, or the storage cannot be written.
    pub(crate) fn clear(
        &mut self,
        pending_writes: &mut PendingWrites,
        vhost: VhostId,
        vhost_name: &str,
        kind: PolicyKind,
        name: &str,
    ) -> Result<(), OperatorFault> {
        let index = self.find(vhost, kind, name).ok_or(OperatorFault::NoSuchParameter)?;
        check_changeable(pending_writes)?;
        self.clear_at(pending_writes, index, vhost_name);
        Ok(())
    }

    /// Clears all policies of a virtual host, when it is deleted.
    pub(crate) fn clear_all_of_vhost(
        &mut self,
        pending_writes: &mut PendingWrites,
        vhost: VhostId,
        vhost_name: &str,
    ) {
        for index in 0..self.records.places() {
            if self.records.get(index).is_some_and(|it| it.vhost == vhost && !it.is_cleared) {
                self.clear_at(pending_writes, index, vhost_name);
            }
        }
    }

    fn clear_at(&mut self, pending_writes: &mut PendingWrites, index: usize, vhost_name: &str) {
        let policy = &mut self.records[index];
        policy.is_cleared = true;
        pending_writes.write_definition(&Definition::Policy(policy.definition_in(vhost_name)), false);
        self.notification.begin();
    }

    fn find(&self, vhost: VhostId, kind: PolicyKind, name: &str) -> Option<usize> {
        self.records.iter().find(|(_, policy)| policy.is_named(vhost, kind, name)).map(|(index, _)| index)
    }

    // ---- which policies apply

    fn get(&self, policy: Option<PolicyId>) -> Option<&PolicyRecord> {
        self.records.get(policy?.index())
    }

    /// Returns the policies that apply to a queue or an exchange of this name, and charges the work of
    /// matching.
    pub(crate) fn choose(
        &self,
        work: &mut Work,
        vhost: VhostId,
        name: &str,
        subject: Subject,
    ) -> AppliedPolicies {
        let mut applied = AppliedPolicies::default();
        for (index, policy) in self.records.iter().filter(|(_, policy)| policy.may_apply_to(vhost, subject)) {
            let chosen = applied_of_kind_mut(&mut applied, policy.kind);
            if self.get(*chosen).is_some_and(|other| !policy.precedes(other)) {
                continue;
            }
            work.charge(1);
            if policy.pattern.matches(work, name) {
                *chosen = Some(PolicyId::from_index(index));
            }
        }
        applied
    }

    /// Returns the effective policy of a queue with these arguments and policies.
    pub(crate) fn effective_policy<'a>(
        &'a self,
        arguments: &'a [u8],
        applied: AppliedPolicies,
    ) -> EffectivePolicy<'a> {
        let definition = |policy| self.get(policy).map_or(Table::EMPTY, |it| Table::trusted(&it.definition));
        EffectivePolicy {
            arguments: Table::trusted(arguments),
            policy: definition(applied.policy),
            operator: definition(applied.operator),
        }
    }

    /// Returns the name of the alternate exchange in the user policy that applies to an exchange; `None`
    /// without one.
    pub(crate) fn alternate(&self, applied: AppliedPolicies) -> Option<Arc<str>> {
        self.get(applied.policy)?.alternate.clone()
    }

    /// Returns the names and definitions of policies that apply to a queue or an exchange, for operators.
    pub(crate) fn applied_view(&self, applied: AppliedPolicies) -> AppliedView<'_> {
        let effective = self.effective_policy(&[], applied);
        let name = |policy| self.get(policy).map(|policy| &*policy.name);
        AppliedView {
            policy: name(applied.policy),
            operator: name(applied.operator),
            definition: effective.policy,
            limits: effective.operator,
        }
    }

    // ---- notification

    /// Begins to notify all queues and exchanges that the policies which apply to them may have changed.
    pub(crate) fn begin_notification(&mut self) {
        self.notification.begin();
    }

    /// Returns whether the caller must begin the job for the notification now. Returns `true` once per job.
    pub(crate) const fn take_job_request(&mut self) -> bool {
        self.notification.take_job_request()
    }

    /// Returns the next queue or exchange to notify; `None` when all are notified. `queues` and `exchanges`
    /// are the numbers of their places.
    pub(crate) fn next_to_notify(&self, queues: usize, exchanges: usize) -> Option<Listener> {
        self.notification.next(queues, exchanges)
    }

    /// Notes that a queue or an exchange has been notified.
    pub(crate) fn note_notified(&mut self, listener: Listener) {
        self.notification.note(listener);
    }

    /// Ends the notification and removes the records of cleared policies. All queues and exchanges have been
    /// notified, so none refers to a cleared policy any more.
    pub(crate) fn end_notification(&mut self, patterns: &mut PatternBytes) {
        self.notification.end();
        for index in 0..self.records.places() {
            if self.records.get(index).is_some_and(|policy| policy.is_cleared) {
                patterns.subtract(self.records.remove(index).pattern.bytes());
            }
        }
    }

    // ---- all policies

    /// Returns the number of policies, including cleared ones whose records have not been removed.
    pub(crate) const fn len(&self) -> usize {
        self.records.len()
    }

    /// Returns whether there is no policy at all.
    pub(crate) const fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Returns the maximum number of policies.
    pub(crate) const fn max(&self) -> usize {
        self.records.capacity()
    }

    /// Returns the number of places that policies have used since the start.
    pub(crate) const fn places(&self) -> usize {
        self.records.places()
    }

    /// Returns the policy in a place; `None` if the place is empty or the policy is cleared. `name_of`
    /// returns the name of a virtual host.
    pub(crate) fn at<'a>(
        &'a self,
        place: usize,
        name_of: impl Fn(VhostId) -> &'a str,
    ) -> Option<Policy<&'a str, &'a [u8]>> {
        let policy = self.records.get(place).filter(|policy| !policy.is_cleared)?;
        Some(policy.definition_in(name_of(policy.vhost)))
    }
}

/// The policies that apply to a queue or an exchange.
#[derive(Clone, Copy, Debug)]
pub struct AppliedView<'a> {
    /// The name of the policy.
    pub policy: Option<&'a str>,
    /// The name of the operator policy.
    pub operator: Option<&'a str>,
    /// The definition of the policy.
    pub definition: Table<'a>,
    /// The definition of the operator policy. Its limits apply where they are lower than those of the policy.
    pub limits: Table<'a>,
}

#[cfg(test)]
mod tests {
    // Tests of policies alone: setting, checking, choosing, notifying and clearing.

    use super::*;
    use crate::access::PatternBytes;
    use crate::operator_fault::OperatorFault;
    use leveret_amqp::Writer;
    use leveret_amqp::field::{Table, Value};
    use leveret_core::batch::Batch;
    use leveret_core::command::{ExchangeId, QueueId, VhostId};
    use leveret_core::definition::Definition;
    use leveret_core::work::Work;
    use leveret_storage::{LogEntry, PendingWrites};

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
            let patterns = PatternBytes::with_max(1 << 20, &Memory::unlimited());
            Self { policies: Policies::with_capacity(4, &Memory::unlimited()), patterns, pending_writes }
        }

        fn set(&mut self, said: Policy<&str, &[u8]>) -> Result<Batch, OperatorFault> {
            self.policies.set(&mut self.pending_writes, &mut self.patterns, vhost(0), &said)
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
            while let Some(fact) = self.pending_writes.next_entry() {
                let LogEntry::Defined { key, value, .. } = fact else { panic!("no definition") };
                let has_value = value.is_some();
                let said = table("expires", "1");
                let any = Definition::Policy(super::tests::said("", "", &said)).value();
                let parsed = Definition::parse(key, value.as_deref().unwrap_or(&any));
                let Some(Definition::Policy(Policy { vhost: "v", name, .. })) = parsed else {
                    panic!("{parsed:?}")
                };
                names.push(format!("{}{name}", if has_value { "" } else { "-" }));
                self.pending_writes.pop_entry();
            }
            names
        }
    }

    fn said<'a>(name: &'a str, pattern: &'a str, definition: &'a [u8]) -> Policy<&'a str, &'a [u8]> {
        let (apply_to, priority) = (ApplyTo::All, 0);
        Policy { vhost: "v", kind: PolicyKind::User, name, pattern, apply_to, priority, definition }
    }

    #[test]
    fn the_highest_priority_counts_and_then_the_name() {
        let mut world = PolicyFixture::new();
        world.policies = Policies::with_capacity(8, &Memory::unlimited());
        let (expires, quorum) = (table("expires", "1"), table("queue-mode", "lazy"));
        let queues = |name, pattern, priority| Policy {
            apply_to: ApplyTo::Queues,
            priority,
            ..said(name, pattern, if name == "classic" { &quorum } else { &expires })
        };
        for (name, pattern, priority) in
            [("low", "^a", -1), ("b", "^a", 0), ("a", "^a", 0), ("classic", "^ab", 3), ("gone", "", 9)]
        {
            world.set(queues(name, pattern, priority)).unwrap();
        }
        world.set(Policy { kind: PolicyKind::Operator, ..queues("o", "b$", 0) }).unwrap();
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
        let operators = Policy { kind: PolicyKind::Operator, ..said("p", "", &ttl) };
        assert!(matches!(world.set(operators), Err(OperatorFault::Invalid(_))));
        assert_eq!(world.clear(PolicyKind::User, "p"), Err(OperatorFault::NoSuchParameter));
        assert!(world.policies.is_empty() && !world.policies.take_job_request());
        assert!(world.written().is_empty());
    }

    #[test]
    fn a_policy_can_change_without_capacity_for_another() {
        let mut world = PolicyFixture::new();
        let expires = table("expires", "1");
        for name in ["a", "b", "c", "d"] {
            assert!(world.set(said(name, "^q-[0-9]+$", &expires)).unwrap() > Batch::NONE);
        }
        assert_eq!(world.set(said("e", "", &expires)), Err(OperatorFault::NoCapacity("another policy")));
        let longer = table("expires", "2");
        world.set(said("b", "^r", &longer)).unwrap();
        assert_eq!((world.policies.len(), world.policies.max()), (4, 4));
        assert_eq!(world.choose("r-1", Subject::ClassicQueue).policy, Some("b"));
        assert_eq!(world.choose("q-1", Subject::ClassicQueue).policy, Some("a"));
        assert_eq!(world.written(), ["a", "b", "c", "d", "b"]);
        let seen: Vec<_> = (0..world.policies.places()).map(|at| world.policies.at(at, |_| "v")).collect();
        assert_eq!(seen[1].unwrap().pattern, "^r");
        assert_eq!(seen[1].unwrap().definition, longer);
    }

    #[test]
    fn on_a_full_disk_only_operator_policies_can_be_set() {
        let mut world = PolicyFixture::new();
        world.pending_writes.set_log_free_bytes(0, 1 << 20, true);
        let expires = table("expires", "1");
        assert_eq!(world.set(said("p", "", &expires)), Err(OperatorFault::FileSystemFull));
        world.set(Policy { kind: PolicyKind::Operator, ..said("p", "", &expires) }).unwrap();
        world.clear(PolicyKind::Operator, "p").unwrap();
        world.pending_writes.start(2, false, u64::MAX);
        let operators = Policy { kind: PolicyKind::Operator, ..said("p", "", &expires) };
        assert!(matches!(world.set(operators), Err(OperatorFault::Store(_))));
    }

    #[test]
    fn patterns_are_counted_until_all_are_notified_of_their_removal() {
        let mut world = PolicyFixture::new();
        world.patterns = PatternBytes::with_max(4 << 10, &Memory::unlimited());
        let expires = table("expires", "1");
        let pattern = "^[a-z]{8}$";
        let mut count = 0;
        while world.set(said(["a", "b", "c", "d"][count], pattern, &expires)).is_ok() {
            count += 1;
        }
        assert!((1..4).contains(&count), "{count}");
        assert_eq!(
            world.set(said("d", pattern, &expires)),
            Err(OperatorFault::NoCapacity("another pattern"))
        );
        world.clear(PolicyKind::User, "a").unwrap();
        assert_eq!(
            world.set(said("d", pattern, &expires)),
            Err(OperatorFault::NoCapacity("another pattern"))
        );
        world.tell(1, 1);
        world.set(said("d", pattern, &expires)).unwrap();
    }

    #[test]
    fn a_change_restarts_the_notification_within_one_job() {
        let mut world = PolicyFixture::new();
        let expires = table("expires", "1");
        assert_eq!(world.policies.next_to_notify(1, 1), None, "nothing has changed");
        world.set(said("a", "", &expires)).unwrap();
        assert!(world.policies.take_job_request() && !world.policies.take_job_request());
        let queue = |index| Some(Listener::Queue(QueueId::from_index(index)));
        assert_eq!(world.policies.next_to_notify(2, 1), queue(0));
        world.policies.note_notified(queue(0).unwrap());
        assert_eq!(world.policies.next_to_notify(2, 1), queue(1));
        world.clear(PolicyKind::User, "a").unwrap();
        assert!(!world.policies.take_job_request(), "the job is there");
        assert_eq!(world.policies.next_to_notify(2, 1), queue(0));
        assert_eq!(world.tell(2, 1), 3);
        assert_eq!(world.policies.next_to_notify(2, 1), None);
        world.set(said("a", "", &expires)).unwrap();
        assert!(world.policies.take_job_request(), "the last job is done");
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
        world.policies.clear_all_of_vhost(&mut world.pending_writes, vhost(0), "v");
        assert_eq!(world.written(), ["a", "-a"]);
        assert_eq!(world.choose("e", Subject::Exchange).policy, None);
        assert_eq!(world.policies.applied_view(applied).policy, Some("a"), "who has not heard goes by it");
        world.tell(1, 1);
        assert_eq!(world.policies.len(), 1);
        let seen = world.policies.at(0, |of| ["v", "w"][of.index()]).unwrap();
        assert_eq!((seen.vhost, seen.name), ("w", "other"));
    }

    #[test]
    fn the_smallest_limit_counts_and_arguments_precede_other_keys() {
        let mut world = PolicyFixture::new();
        let (ttl, limit) = (table("message-ttl", "50"), table("message-ttl", "70"));
        world.set(said("p", ".*", &ttl)).unwrap();
        world.set(Policy { kind: PolicyKind::Operator, ..said("o", ".*", &limit) }).unwrap();
        let applied = world.policies.choose(&mut Work::default(), vhost(0), "q", Subject::ClassicQueue);
        let limit_with = |arguments: &[u8], applied| {
            world.policies.effective_policy(arguments, applied).limit("x-message-ttl")
        };
        assert_eq!(limit_with(&[], applied), 50);
        assert_eq!(limit_with(&table("x-message-ttl", "40"), applied), 40);
        assert_eq!(limit_with(&table("x-message-ttl", "90"), applied), 50);
        assert_eq!(limit_with(&[], AppliedPolicies::default()), u64::MAX);
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
}
