//! Policies as records: which names they match, and their definitions.
//!
//! Always true: a definition was checked (`keys`) before it is here, and has a bounded size; a cleared policy
//! applies to nothing.

use std::sync::Arc;

use super::keys::NotFor;
use super::views::{ApplyTo, NewPolicy, PolicyKind};
use crate::access::Pattern;
use leveret_core::command::{PolicyId, VhostId};

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
    pub(super) policy: Option<PolicyId>,
    pub(super) operator: Option<PolicyId>,
}

impl Applied {
    /// The applied policy of a kind, if there is one.
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
    /// The definition: the bytes of a table.
    pub(super) definition: Box<[u8]>,
    /// The alternate exchange that the definition names; exchanges share the text.
    pub(super) alternate: Option<Arc<str>>,
    pub(super) not_for: NotFor,
    /// The policy was cleared.
    pub(super) is_gone: bool,
}

impl Policy {
    /// Whether the policy exists, and has this name.
    pub(super) fn is(&self, vhost: VhostId, kind: PolicyKind, name: &str) -> bool {
        (self.vhost, self.kind, &*self.name) == (vhost, kind, name) && !self.is_gone
    }

    /// Whether the policy exists, and is for such queues or exchanges.
    pub(super) fn is_for(&self, vhost: VhostId, subject: Subject) -> bool {
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

    /// Whether the policy comes before another where both match. RabbitMQ leaves open which of two with the same
    /// priority does.
    pub(super) fn precedes(&self, other: &Self) -> bool {
        (other.priority, &self.name) < (self.priority, &other.name)
    }

    /// The policy as an operator would set it.
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
