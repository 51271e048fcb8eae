//! Policies as records: of which names they say something, and what.
//!
//! Always true: a definition was checked (`policy_keys`) before it is here, and has a bounded size; a policy
//! that was taken away stays, found by nobody, until the last queue that it applied to has heard of that.

use std::sync::Arc;

use crate::command::{PolicyId, VhostId};
use crate::mem::Slab;
use crate::wire::field::Table;

use super::access::Pattern;
use super::terms::Terms;
use super::work::Work;

/// The longest definition, in bytes of a field table.
pub(super) const DEFINITION_BYTES_MAX: usize = 1024;
/// A policy without its pattern, with the longest name and definition, each a piece of its own, and the name
/// of an alternate exchange.
pub(super) const POLICY_BYTES: usize =
    Slab::<Policy>::record_bytes() + DEFINITION_BYTES_MAX + 2 * 256 + 4 * 16;

/// Whose policy it is: both kinds have names of their own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PolicyKind {
    /// A user's with the tag `policymaker`.
    User,
    /// The operator's, which sets limits to what users say.
    Operator,
}

/// What a policy is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ApplyTo {
    /// Queues and exchanges.
    #[default]
    All,
    /// Queues alone.
    Queues,
    /// Exchanges alone.
    Exchanges,
}

impl ApplyTo {
    /// As it is written.
    pub const fn name(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Queues => "queues",
            Self::Exchanges => "exchanges",
        }
    }

    /// What is written so.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::All, Self::Queues, Self::Exchanges].into_iter().find(|kind| kind.name() == name)
    }
}

/// What a policy may apply to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Subject {
    Exchange,
    ClassicQueue,
    QuorumQueue,
}

/// One policy.
pub(super) struct Policy {
    pub(super) vhost: VhostId,
    pub(super) name: Box<str>,
    pub(super) kind: PolicyKind,
    pub(super) pattern: Pattern,
    pub(super) apply_to: ApplyTo,
    pub(super) priority: i32,
    /// The bytes of a table.
    pub(super) definition: Box<[u8]>,
    /// What it says of exchanges, which have it from here.
    pub(super) alternate: Option<Arc<str>>,
    /// It has keys that queues of a kind have no use for; as in RabbitMQ it does not apply to them at all.
    pub(super) not_for_classic: bool,
    pub(super) not_for_quorum: bool,
    /// It was taken away.
    pub(super) is_gone: bool,
}

impl Policy {
    fn is_for(&self, vhost: VhostId, subject: Subject) -> bool {
        let applies = match subject {
            Subject::Exchange => self.apply_to != ApplyTo::Queues,
            Subject::ClassicQueue => self.apply_to != ApplyTo::Exchanges && !self.not_for_classic,
            Subject::QuorumQueue => self.apply_to != ApplyTo::Exchanges && !self.not_for_quorum,
        };
        applies && self.vhost == vhost && !self.is_gone
    }

    /// Whether it comes before another where both match. RabbitMQ leaves open which of two with the same
    /// priority does.
    fn precedes(&self, other: &Self) -> bool {
        (other.priority, &self.name) < (self.priority, &other.name)
    }
}

/// The policies that apply to something.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Applied {
    pub(super) policy: Option<PolicyId>,
    pub(super) operator: Option<PolicyId>,
}

/// How far the queues and exchanges have heard of a change.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Told {
    pub(super) queue: usize,
    pub(super) exchange: usize,
}

/// All policies.
pub(super) struct Policies {
    pub(super) records: Slab<Policy>,
    /// A change that not all have heard of yet.
    pub(super) telling: Option<Told>,
}

impl Policies {
    pub(super) fn with_capacity(policies: usize) -> Self {
        Self { records: Slab::with_capacity(policies), telling: None }
    }

    pub(super) fn find(&self, vhost: VhostId, kind: PolicyKind, name: &str) -> Option<usize> {
        let is_it = |policy: &Policy| (policy.vhost, policy.kind, &*policy.name) == (vhost, kind, name);
        self.records.iter().find(|(_, policy)| is_it(policy) && !policy.is_gone).map(|(index, _)| index)
    }

    pub(super) fn get(&self, policy: Option<PolicyId>) -> Option<&Policy> {
        self.records.get(policy?.index())
    }

    /// Which policies apply to something of this name; what it takes to find out is charged.
    pub(super) fn choose(&self, work: &mut Work, vhost: VhostId, name: &str, subject: Subject) -> Applied {
        let mut applied = Applied::default();
        for (index, policy) in self.records.iter().filter(|(_, policy)| policy.is_for(vhost, subject)) {
            let chosen = match policy.kind {
                PolicyKind::User => &mut applied.policy,
                PolicyKind::Operator => &mut applied.operator,
            };
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

    /// What is said of something with these arguments.
    pub(super) fn terms<'a>(&'a self, arguments: &'a [u8], applied: Applied) -> Terms<'a> {
        let definition = |policy| self.get(policy).map_or(Table::EMPTY, |it| Table::trusted(&it.definition));
        let (policy, operator) = (definition(applied.policy), definition(applied.operator));
        Terms { arguments: Table::trusted(arguments), policy, operator }
    }

    /// Nothing refers any more to what was taken away; says how many bytes its patterns took.
    pub(super) fn forget_gone(&mut self) -> usize {
        let mut bytes = 0;
        for index in 0..self.records.places() {
            if self.records.get(index).is_some_and(|policy| policy.is_gone) {
                bytes += self.records.remove(index).pattern.bytes();
            }
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VHOST: fn() -> VhostId = || VhostId::from_index(0);

    fn put(policies: &mut Policies, name: &str, pattern: &str, priority: i32, kind: PolicyKind) {
        let policy = Policy {
            vhost: VHOST(),
            name: name.into(),
            kind,
            pattern: Pattern::new(pattern, 1 << 20).unwrap(),
            apply_to: ApplyTo::Queues,
            priority,
            definition: Box::default(),
            alternate: None,
            not_for_classic: false,
            not_for_quorum: name == "classic",
            is_gone: name == "gone",
        };
        assert!(policies.records.insert(policy).is_ok());
    }

    #[test]
    fn the_highest_priority_counts_and_then_the_name() {
        let mut policies = Policies::with_capacity(8);
        for (name, pattern, priority) in
            [("low", "^a", -1), ("b", "^a", 0), ("a", "^a", 0), ("classic", "^ab", 3), ("gone", "", 9)]
        {
            put(&mut policies, name, pattern, priority, PolicyKind::User);
        }
        put(&mut policies, "o", "b$", 0, PolicyKind::Operator);
        let chosen = |vhost, name: &str, subject| {
            let mut work = Work::default();
            let applied = policies.choose(&mut work, vhost, name, subject);
            let named = |policy| policies.get(policy).map(|policy| policy.name.to_string());
            assert!(work.units() <= 6);
            (named(applied.policy), named(applied.operator))
        };
        let some = |name: &str| Some(name.to_string());
        assert_eq!(chosen(VHOST(), "ab", Subject::ClassicQueue), (some("classic"), some("o")));
        assert_eq!(chosen(VHOST(), "ab", Subject::QuorumQueue), (some("a"), some("o")));
        assert_eq!(chosen(VHOST(), "a", Subject::ClassicQueue), (some("a"), None));
        assert_eq!(chosen(VHOST(), "", Subject::ClassicQueue), (None, None));
        assert_eq!(chosen(VHOST(), "ab", Subject::Exchange), (None, None));
        assert_eq!(chosen(VhostId::from_index(1), "ab", Subject::ClassicQueue), (None, None));
        policies.forget_gone();
        assert_eq!(policies.records.len(), 5);
    }
}
