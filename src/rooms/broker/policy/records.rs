//! Policies as records: of which names they say something, and what.
//!
//! Always true: a definition was checked (`keys`) before it is here, and has a bounded size; a policy that was
//! taken away applies to nothing.

use std::sync::Arc;

use super::keys::NotFor;
use super::views::{ApplyTo, NewPolicy, PolicyKind};
use crate::broker::access::Pattern;
use crate::command::{PolicyId, VhostId};

/// What a policy may apply to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Subject {
    Exchange,
    ClassicQueue,
    QuorumQueue,
}

/// The policies that apply to something.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Applied {
    pub(super) policy: Option<PolicyId>,
    pub(super) operator: Option<PolicyId>,
}

impl Applied {
    /// The policy of a kind, if there is one.
    pub(super) const fn of_kind_mut(&mut self, kind: PolicyKind) -> &mut Option<PolicyId> {
        match kind {
            PolicyKind::User => &mut self.policy,
            PolicyKind::Operator => &mut self.operator,
        }
    }
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
    /// Where messages go that an exchange routes nowhere; exchanges share the text.
    pub(super) alternate: Option<Arc<str>>,
    pub(super) not_for: NotFor,
    /// The policy was taken away.
    pub(super) is_gone: bool,
}

impl Policy {
    /// Whether the policy is there, and has this name.
    pub(super) fn is(&self, vhost: VhostId, kind: PolicyKind, name: &str) -> bool {
        (self.vhost, self.kind, &*self.name) == (vhost, kind, name) && !self.is_gone
    }

    /// Whether the policy is there, and for such things.
    pub(super) fn is_for(&self, vhost: VhostId, subject: Subject) -> bool {
        let applies = match subject {
            Subject::Exchange => self.apply_to != ApplyTo::Queues,
            Subject::ClassicQueue => self.apply_to != ApplyTo::Exchanges && !self.not_for.classic,
            Subject::QuorumQueue => self.apply_to != ApplyTo::Exchanges && !self.not_for.quorum,
        };
        applies && self.vhost == vhost && !self.is_gone
    }

    /// Whether the policy comes before another where both match. RabbitMQ leaves open which of two with the same
    /// priority does.
    pub(super) fn precedes(&self, other: &Self) -> bool {
        (other.priority, &self.name) < (self.priority, &other.name)
    }

    /// The policy as somebody would say it.
    pub(super) const fn said(&self) -> NewPolicy<'_> {
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
