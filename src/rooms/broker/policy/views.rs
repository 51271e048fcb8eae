//! Policies as somebody says them, and as an operator sees them.
//!
//! Why it exists: who makes a policy and who lists policies speak of the same.
//!
//! Always true: what is seen is what was said, and can be said again.

use crate::wire::field::Table;

/// Whose policy it is; a user's and the operator's may have the same name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PolicyKind {
    /// A policy of a user with the tag `policymaker`.
    User,
    /// An operator policy, which sets limits to what users say.
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
    /// The word that stands for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Queues => "queues",
            Self::Exchanges => "exchanges",
        }
    }

    /// What is written under a name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::All, Self::Queues, Self::Exchanges].into_iter().find(|kind| kind.name() == name)
    }
}

/// A policy as somebody says it.
#[derive(Clone, Copy, Debug)]
pub struct NewPolicy<'a> {
    /// Whether the policy is a user's or the operator's.
    pub kind: PolicyKind,
    /// The name of the policy.
    pub name: &'a str,
    /// Of which names it speaks.
    pub pattern: &'a str,
    /// Of what kind of things it speaks.
    pub apply_to: ApplyTo,
    /// Which of several counts: the one with the highest.
    pub priority: i32,
    /// What is said: the bytes of a table.
    pub definition: &'a [u8],
}

/// A policy as an operator sees it.
#[derive(Clone, Copy, Debug)]
pub struct PolicyView<'a> {
    /// The name of the policy's virtual host.
    pub vhost: &'a str,
    /// The policy as it was said.
    pub policy: NewPolicy<'a>,
}

/// What policies say of a queue or an exchange.
#[derive(Clone, Copy, Debug)]
pub struct AppliedView<'a> {
    /// The name of the policy.
    pub policy: Option<&'a str>,
    /// The name of the operator policy.
    pub operator: Option<&'a str>,
    /// What the policy says.
    pub definition: Table<'a>,
    /// What the operator policy says, whose limits count where they are smaller.
    pub limits: Table<'a>,
}
