//! What is said of a queue: by its own arguments, by the policy that applies to it, and by its operator
//! policy.
//!
//! Why it exists: the three are put together in one place, as RabbitMQ 3.10 does it (recorded from it), so
//! that whoever acts on one of them need not know of the others. Arguments have `x-` before the names that
//! policies have.
//!
//! Always true: of limits the smallest counts, whoever said it, and so of times to settle in; of all else
//! what the arguments say, and only without that the policy; an operator policy has limits alone.

use crate::wire::field::{Table, Value};

/// Three tables; those that there are not are empty.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms<'a> {
    pub(super) arguments: Table<'a>,
    pub(super) policy: Table<'a>,
    pub(super) operator: Table<'a>,
}

impl<'a> Terms<'a> {
    /// What the arguments alone say, for what no policy can say.
    pub(crate) const fn arguments(&self) -> Table<'a> {
        self.arguments
    }

    /// The smallest that is said of a limit, by the name that arguments have for it; the largest number when
    /// nothing is said.
    #[inline(never)]
    pub(crate) fn limit(&self, argument: &str) -> u64 {
        self.numbers(argument).into_iter().flatten().min().unwrap_or(u64::MAX)
    }

    /// The shortest that is said of a time of which 0 is for ever; `None` when nothing is said.
    #[inline(never)]
    pub(crate) fn time(&self, argument: &str) -> Option<u64> {
        // One less than 0 is the largest number.
        self.numbers(argument).into_iter().flatten().min_by_key(|ms| ms.wrapping_sub(1))
    }

    /// The numbers that arguments, policy and operator policy say; a value that is no number is as if it were
    /// not said.
    fn numbers(&self, argument: &str) -> [Option<u64>; 3] {
        let key = key_of(argument);
        let said = [self.arguments.get(argument), self.policy.get(key), self.operator.get(key)];
        said.map(|value| value.and_then(limit_in))
    }

    /// What counts of all that is no limit.
    #[inline(never)]
    pub(crate) fn value(&self, argument: &str) -> Option<Value<'a>> {
        self.arguments.get(argument).or_else(|| self.policy.get(key_of(argument)))
    }
}

fn key_of(argument: &str) -> &str {
    argument.strip_prefix("x-").unwrap_or(argument)
}

/// A number that is a limit.
fn limit_in(value: Value<'_>) -> Option<u64> {
    value.as_integer().and_then(|number| u64::try_from(number).ok())
}
