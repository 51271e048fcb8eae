//! Policies as they are set, and as an operator sees them.
//!
//! Why it exists: setting and listing policies use the same fields.
//!
//! Always true: a policy is shown as it was set, and can be set so again.

use leveret_amqp::field::Table;

/// Whether a policy is a user's or the operator's; one of each kind may have the same name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PolicyKind {
    /// A policy of a user with the tag `policymaker`.
    User,
    /// An operator policy, which limits what user policies and arguments set.
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
    /// Classic queues alone. This and the following are of RabbitMQ from 3.12 on.
    ClassicQueues,
    /// Quorum queues alone.
    QuorumQueues,
    /// Streams alone, so nothing here.
    Streams,
}

impl ApplyTo {
    /// The word for it in the definition.
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

    /// The value that a word stands for.
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
    /// The priority: of several policies that match the highest applies.
    pub priority: i32,
    /// The definition: the bytes of a table.
    pub definition: &'a [u8],
}

/// A policy as an operator sees it.
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
