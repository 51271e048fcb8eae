//! What is said of a queue: by its own arguments, by the policy that applies to it, and by its operator
//! policy.
//!
//! Why it exists: the three are put together in one place, as RabbitMQ 3.10 does it (recorded from it), so
//! that whoever acts on one of them need not know of the others. Arguments have `x-` before the names that
//! policies have.
//!
//! Always true: of limits the smallest counts, whoever said it; of all else what the arguments say, and only
//! without that the policy; an operator policy has limits alone.

use crate::wire::field::{Table, Value};

/// Three tables; those that there are not are empty.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms<'a> {
    pub(super) arguments: Table<'a>,
    pub(super) policy: Table<'a>,
    pub(super) operator: Table<'a>,
}

impl<'a> Terms<'a> {
    /// The smallest that is said of a limit, by the name that arguments have for it; the largest number when
    /// nothing is said.
    #[inline(never)]
    pub(super) fn limit(&self, argument: &str) -> u64 {
        let key = key_of(argument);
        let said = [self.arguments.get(argument), self.policy.get(key), self.operator.get(key)];
        said.into_iter().flatten().filter_map(limit_in).min().unwrap_or(u64::MAX)
    }

    /// What counts of all that is no limit.
    #[inline(never)]
    pub(super) fn value(&self, argument: &str) -> Option<Value<'a>> {
        self.arguments.get(argument).or_else(|| self.policy.get(key_of(argument)))
    }
}

fn key_of(argument: &str) -> &str {
    argument.strip_prefix("x-").unwrap_or(argument)
}

/// A number that is a limit.
pub(super) fn limit_in(value: Value<'_>) -> Option<u64> {
    value.as_integer().and_then(|number| u64::try_from(number).ok())
}
