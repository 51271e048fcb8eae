//! Policies: setting and clearing them, choosing which apply, and combining them with arguments.
//!
//! Code that acts on a limit asks for the effective one and need not know where it came from. Only this
//! module knows which queues a policy applies to, and which have still to be notified of a change.
//!
//! | file | content |
//! |---|---|
//! | `mod` | all policies: set, cleared, chosen; the notification of queues; views for operators |
//! | `keys` | valid keys of a definition; the state of a notification; the effective policy |
//!
//! # Invariants
//! - Of two policies of one kind that match, the one with the higher priority applies.
//! - A cleared policy applies to nothing new. It keeps its place until the last queue or exchange that it
//!   applied to has been notified.
//! - Bytes of patterns are counted together with those of permissions (`PatternBytes`).
//! - Every change begins a notification.

mod keys;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use keys::PolicyNotification;
use keys::{DEFINITION_BYTES_MAX, NotFor};
use leveret_amqp::field::Table;
use leveret_core::command::{NAME_BYTES_MAX, PolicyId, VhostId};
use leveret_core::mem::Slab;
use leveret_core::pending_writes::{Batch, Definition, Mode, PendingWrites};

use crate::access::{OperatorFault, Pattern, PatternBytes};
use crate::context::Work;
use crate::reply_text::{check_changeable, check_room};

pub(super) use keys::EffectivePolicy;
pub(super) use keys::Listener;

/// A queue or an exchange that policies may apply to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Subject {
    Exchange,
    ClassicQueue,
    QuorumQueue,
}

/// The policies that apply to a queue or an exchange.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Applied {
    policy: Option<PolicyId>,
    operator: Option<PolicyId>,
}

impl Applied {
    /// Returns the applied policy of a kind, if there is one.
    const fn of_kind_mut(&mut self, kind: PolicyKind) -> &mut Option<PolicyId> {
        match kind {
            PolicyKind::User => &mut self.policy,
            PolicyKind::Operator => &mut self.operator,
        }
    }
}

/// A policy. Its definition was checked (`keys`) and has a bounded size.
struct Policy {
    vhost: VhostId,
    name: Box<str>,
    kind: PolicyKind,
    pattern: Pattern,
    apply_to: ApplyTo,
    priority: i32,
    /// The definition: the bytes of a table.
    definition: Box<[u8]>,
    /// The alternate exchange that the definition names; exchanges share the text.
    alternate: Option<Arc<str>>,
    not_for: NotFor,
    /// The policy was cleared and applies to nothing.
    is_gone: bool,
}

impl Policy {
    /// Returns whether the policy exists and has this name.
    fn is(&self, vhost: VhostId, kind: PolicyKind, name: &str) -> bool {
        (self.vhost, self.kind, &*self.name) == (vhost, kind, name) && !self.is_gone
    }

    /// Returns whether the policy exists and is for this kind of queue or exchange.
    fn is_for(&self, vhost: VhostId, subject: Subject) -> bool {
        use ApplyTo::{All, ClassicQueues, Exchanges, Queues, QuorumQueues};
        let applies = match subject {
            Subject::Exchange => matches!(self.apply_to, All | Exchanges),
            Subject::ClassicQueue => {
                matches!(self.apply_to, All | Queues | ClassicQueues) && !self.not_for.classic
            }
            Subject::QuorumQueue => {
                matches!(self.apply_to, All | Queues | QuorumQueues) && !self.not_for.quorum
            }
        };
        applies && self.vhost == vhost && !self.is_gone
    }

    /// Returns whether the policy precedes another if both match. RabbitMQ does not define which of two with
    /// the same priority does.
    fn precedes(&self, other: &Self) -> bool {
        (other.priority, &self.name) < (self.priority, &other.name)
    }

    /// Returns the policy as an operator would set it.
    const fn as_set(&self) -> NewPolicy<'_> {
        NewPolicy {
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
    records: Slab<Policy>,
    notification: PolicyNotification,
}

impl Policies {
    /// Bytes of memory that a policy takes without its pattern: the longest name and definition, each a
    /// separate allocation, and the name of an alternate exchange.
    pub(crate) const POLICY_BYTES: usize =
        Slab::<Policy>::record_bytes() + DEFINITION_BYTES_MAX + 2 * 256 + 4 * 16;

    pub(crate) fn with_capacity(policies: usize) -> Self {
        Self { records: Slab::with_capacity(policies), notification: PolicyNotification::default() }
    }

    // ---- changes

    /// Creates a policy in a virtual host, or changes the one of that name. Returns the batch with which that
    /// is durable.
    ///
    /// # Errors
    /// The policy is not valid, or there is no capacity.
    pub(crate) fn set(
        &mut self,
        pending_writes: &mut PendingWrites,
        patterns: &mut PatternBytes,
        vhost: VhostId,
        view: &PolicyView<'_>,
    ) -> Result<Batch, OperatorFault> {
        let new = &view.policy;
        if new.name.is_empty() || new.name.len() > NAME_BYTES_MAX {
            return Err(OperatorFault::BadName("policy", "have from 1 to 255 bytes"));
        }
        keys::check(Table::trusted(new.definition), new.kind).map_err(OperatorFault::Invalid)?;
        check_changeable(pending_writes)?;
        // An operator policy is accepted on a full disk too, because it may free space.
        if new.kind == PolicyKind::User {
            check_room(pending_writes)?;
        }
        self.put(patterns, vhost, new)?;
        Ok(append(pending_writes, view, true))
    }

    /// Stores a policy, new or changed, without writing it: a start finds it in the log.
    ///
    /// # Errors
    /// The pattern is not valid, or there is no capacity.
    pub(crate) fn put(
        &mut self,
        patterns: &mut PatternBytes,
        vhost: VhostId,
        new: &NewPolicy<'_>,
    ) -> Result<(), OperatorFault> {
        let pattern = Pattern::new(new.pattern, patterns.most()).map_err(|why| {
            let text = format!("pattern should be regular expression but is invalid: {why}");
            OperatorFault::Invalid(text)
        })?;
        let old = self.find(vhost, new.kind, new.name);
        if old.is_none() && self.records.is_full() {
            return Err(OperatorFault::NoCapacity("policies_max"));
        }
        let freed = old.map_or(0, |old| self.records[old].pattern.bytes());
        patterns.take(pattern.bytes(), freed)?;
        let definition = Table::trusted(new.definition);
        let alternate = definition.get("alternate-exchange").and_then(|value| value.as_str());
        let policy = Policy {
            vhost,
            name: new.name.into(),
            kind: new.kind,
            pattern,
            apply_to: new.apply_to,
            priority: new.priority,
            definition: new.definition.into(),
            alternate: alternate.map(Arc::from),
            not_for: keys::not_for(definition),
            is_gone: false,
        };
        match old {
            Some(old) => self.records[old] = policy,
            None => assert!(self.records.insert(policy).is_ok(), "there was a place a moment ago"),
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
        self.drop_at(pending_writes, index, vhost_name);
        Ok(())
    }

    /// Clears all policies of a virtual host that is deleted.
    pub(crate) fn drop_of_vhost(
        &mut self,
        pending_writes: &mut PendingWrites,
        vhost: VhostId,
        vhost_name: &str,
    ) {
        for index in 0..self.records.places() {
            if self.records.get(index).is_some_and(|it| it.vhost == vhost && !it.is_gone) {
                self.drop_at(pending_writes, index, vhost_name);
            }
        }
    }

    fn drop_at(&mut self, pending_writes: &mut PendingWrites, index: usize, vhost_name: &str) {
        let policy = &mut self.records[index];
        policy.is_gone = true;
        append(pending_writes, &PolicyView { vhost: vhost_name, policy: policy.as_set() }, false);
        self.notification.begin();
    }

    fn find(&self, vhost: VhostId, kind: PolicyKind, name: &str) -> Option<usize> {
        self.records.iter().find(|(_, policy)| policy.is(vhost, kind, name)).map(|(index, _)| index)
    }

    // ---- which policies apply

    fn get(&self, policy: Option<PolicyId>) -> Option<&Policy> {
        self.records.get(policy?.index())
    }

    /// Returns the policies that apply to a queue or an exchange of this name, and charges the work.
    pub(crate) fn choose(&self, work: &mut Work, vhost: VhostId, name: &str, subject: Subject) -> Applied {
        let mut applied = Applied::default();
        for (index, policy) in self.records.iter().filter(|(_, policy)| policy.is_for(vhost, subject)) {
            let chosen = applied.of_kind_mut(policy.kind);
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

    /// Returns the effective policy: arguments and the applied policies combined.
    pub(crate) fn effective_policy<'a>(
        &'a self,
        arguments: &'a [u8],
        applied: Applied,
    ) -> EffectivePolicy<'a> {
        let definition = |policy| self.get(policy).map_or(Table::EMPTY, |it| Table::trusted(&it.definition));
        EffectivePolicy {
            arguments: Table::trusted(arguments),
            policy: definition(applied.policy),
            operator: definition(applied.operator),
        }
    }

    /// Returns the alternate exchange named by the policies that apply to an exchange.
    pub(crate) fn alternate(&self, applied: Applied) -> Option<Arc<str>> {
        self.get(applied.policy)?.alternate.clone()
    }

    /// Returns the policies that apply to a queue or an exchange, for an operator.
    pub(crate) fn applied_view(&self, applied: Applied) -> AppliedView<'_> {
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

    /// Begins to notify all queues and exchanges of the policies that apply to them.
    pub(crate) fn begin_notification(&mut self) {
        self.notification.begin();
    }

    /// Returns whether the job for the notification must be begun; the caller begins it.
    pub(crate) const fn take_job(&mut self) -> bool {
        self.notification.take_job()
    }

    /// Returns the next queue or exchange to notify, among this many places of each; `None` when all are
    /// done.
    pub(crate) fn next_to_notify(&self, queues: usize, exchanges: usize) -> Option<Listener> {
        self.notification.next(queues, exchanges)
    }

    /// Notes that a queue or an exchange has been notified of the change.
    pub(crate) fn note_notified(&mut self, listener: Listener) {
        self.notification.note(listener);
    }

    /// Ends the notification when all are done: nothing refers to cleared policies any more.
    pub(crate) fn end_notification(&mut self, patterns: &mut PatternBytes) {
        self.notification.end();
        for index in 0..self.records.places() {
            if self.records.get(index).is_some_and(|policy| policy.is_gone) {
                patterns.give_back(self.records.remove(index).pattern.bytes());
            }
        }
    }

    // ---- all policies

    /// Returns the number of policies, including cleared ones that a queue or an exchange may still use.
    pub(crate) const fn len(&self) -> usize {
        self.records.len()
    }

    /// Returns whether there is no policy at all.
    pub(crate) const fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Returns the maximum number of policies.
    pub(crate) const fn most(&self) -> usize {
        self.records.len() + self.records.room()
    }

    /// Returns the number of places of policies ever used.
    pub(crate) const fn places(&self) -> usize {
        self.records.places()
    }

    /// Returns the policy in a place; `name_of` returns the name of its virtual host.
    pub(crate) fn at<'a>(
        &'a self,
        place: usize,
        name_of: impl Fn(VhostId) -> &'a str,
    ) -> Option<PolicyView<'a>> {
        let policy = self.records.get(place).filter(|policy| !policy.is_gone)?;
        Some(PolicyView { vhost: name_of(policy.vhost), policy: policy.as_set() })
    }
}

/// Appends to the log that a policy exists, or is deleted.
fn append(pending_writes: &mut PendingWrites, view: &PolicyView<'_>, exists: bool) -> Batch {
    if pending_writes.mode() != Mode::On {
        return Batch::NONE;
    }
    let PolicyView { vhost, policy } = view;
    let definition = Definition::Policy {
        vhost,
        name: policy.name,
        is_operator_policy: policy.kind == PolicyKind::Operator,
        pattern: policy.pattern,
        apply_to: policy.apply_to.name(),
        priority: policy.priority,
        definition: policy.definition,
    };
    pending_writes.define(definition.key(), exists.then(|| definition.value()))
}

/// Whether a policy is a user's or the operator's. One of each kind may have the same name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PolicyKind {
    /// A policy of a user with the tag `policymaker`.
    User,
    /// An operator policy, which limits what user policies and arguments set.
    Operator,
}

/// What a policy applies to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ApplyTo {
    /// Queues and exchanges.
    #[default]
    All,
    /// Queues alone.
    Queues,
    /// Exchanges alone.
    Exchanges,
    /// Classic queues alone. This value and the following ones exist in RabbitMQ from 3.12.
    ClassicQueues,
    /// Quorum queues alone.
    QuorumQueues,
    /// Streams alone, so nothing here.
    Streams,
}

impl ApplyTo {
    /// Returns the word for it in the definition.
    pub const fn name(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Queues => "queues",
            Self::Exchanges => "exchanges",
            Self::ClassicQueues => "classic_queues",
            Self::QuorumQueues => "quorum_queues",
            Self::Streams => "streams",
        }
    }

    /// Returns the value for a word.
    pub fn from_name(name: &str) -> Option<Self> {
        use ApplyTo::{All, ClassicQueues, Exchanges, Queues, QuorumQueues, Streams};
        let all = [All, Queues, Exchanges, ClassicQueues, QuorumQueues, Streams];
        all.into_iter().find(|apply_to| apply_to.name() == name)
    }
}

/// A policy to be set.
#[derive(Clone, Copy, Debug)]
pub struct NewPolicy<'a> {
    /// Whether the policy is a user's or the operator's.
    pub kind: PolicyKind,
    /// The name of the policy.
    pub name: &'a str,
    /// The pattern of the names that the policy matches.
    pub pattern: &'a str,
    /// Whether the policy is for queues, exchanges or both.
    pub apply_to: ApplyTo,
    /// The priority: of several matching policies the highest applies.
    pub priority: i32,
    /// The definition: the bytes of a table.
    pub definition: &'a [u8],
}

/// A policy as shown to an operator. It can be set again with the same fields.
#[derive(Clone, Copy, Debug)]
pub struct PolicyView<'a> {
    /// The name of the policy's virtual host.
    pub vhost: &'a str,
    /// The policy as it was set.
    pub policy: NewPolicy<'a>,
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
    /// The definition of the operator policy, whose limits count where they are smaller.
    pub limits: Table<'a>,
}
