//! The terms of a queue: its own arguments, its policy, and its operator policy, put together.
//!
//! Why it exists: the three are put together in one place, as RabbitMQ 3.10 does it (recorded from it), so
//! that code which acts on a limit need not know where it came from. Arguments have `x-` before the names
//! that policies have.
//!
//! Always true: the smallest of several limits counts, and the shortest consumer timeout; for all other keys
//! the argument, and only without it the policy; an operator policy has only limits.

use leveret_amqp::field::{Table, Value};

/// The arguments, policy and operator policy of a queue; a missing one is empty.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms<'a> {
    pub(super) arguments: Table<'a>,
    pub(super) policy: Table<'a>,
    pub(super) operator: Table<'a>,
}

impl<'a> Terms<'a> {
    /// The arguments alone, for keys that no policy can have.
    pub(crate) const fn arguments(&self) -> Table<'a> {
        self.arguments
    }

    /// The smallest value of a limit, by the name of its argument; the largest number without a limit.
    #[inline(never)]
    pub(crate) fn limit(&self, argument: &str) -> u64 {
        self.numbers(argument).into_iter().flatten().min().unwrap_or(u64::MAX)
    }

    /// The shortest value of a time of which 0 is for ever; `None` without one.
    #[inline(never)]
    pub(crate) fn time(&self, argument: &str) -> Option<u64> {
        // Subtracting 1 makes 0 the largest number.
        self.numbers(argument).into_iter().flatten().min_by_key(|ms| ms.wrapping_sub(1))
    }

    /// The numbers in arguments, policy and operator policy; a value that is no number counts as missing.
    fn numbers(&self, argument: &str) -> [Option<u64>; 3] {
        let key = key_of(argument);
        let said = [self.arguments.get(argument), self.policy.get(key), self.operator.get(key)];
        said.map(|value| value.and_then(limit_in))
    }

    /// The value of a key that is no limit.
    #[inline(never)]
    pub(crate) fn value(&self, argument: &str) -> Option<Value<'a>> {
        self.arguments.get(argument).or_else(|| self.policy.get(key_of(argument)))
    }
}

fn key_of(argument: &str) -> &str {
    argument.strip_prefix("x-").unwrap_or(argument)
}

/// A number that can be a limit.
fn limit_in(value: Value<'_>) -> Option<u64> {
    value.as_integer().and_then(|number| u64::try_from(number).ok())
}
