//! The headers exchange's rule: binding arguments against message headers.
//!
//! `x-match` is `all` (the default), `any`, and with `-with-x` arguments that begin with `x-` count too. A
//! void argument asks only for the header's presence. RabbitMQ's rules, in one pass over the arguments.

use crate::wire::field::{Table, Value};

/// Whether `headers` satisfy the binding `arguments`.
pub(super) fn matches(arguments: Table<'_>, headers: Table<'_>) -> bool {
    let rule = Rule::of(arguments);
    let mut relevant = arguments.iter().filter(|(name, _)| rule.counts(name));
    if rule.any {
        relevant.any(|(name, wanted)| agrees(name, wanted, headers))
    } else {
        relevant.all(|(name, wanted)| agrees(name, wanted, headers))
    }
}

/// What is wrong with an `x-match`, if anything: its value as RabbitMQ prints it.
pub(super) fn invalid_match(arguments: Table<'_>) -> Option<Value<'_>> {
    let value = arguments.get("x-match")?;
    let known: [&[u8]; 4] = [b"all", b"any", b"all-with-x", b"any-with-x"];
    match value.as_bytes() {
        Some(text) if known.contains(&text) => None,
        _ => Some(value),
    }
}

struct Rule {
    any: bool,
    with_x: bool,
}

impl Rule {
    fn of(arguments: Table<'_>) -> Self {
        let rule = arguments.get("x-match").and_then(|value| value.as_bytes()).unwrap_or(b"all");
        Self { any: rule.starts_with(b"any"), with_x: rule.ends_with(b"-with-x") }
    }

    fn counts(&self, name: &[u8]) -> bool {
        name != b"x-match" && (self.with_x || !name.starts_with(b"x-"))
    }
}

fn agrees(name: &[u8], wanted: Value<'_>, headers: Table<'_>) -> bool {
    let Some(found) = headers.iter().find(|(other, _)| *other == name).map(|(_, value)| value) else {
        return false;
    };
    wanted == Value::Void || same(wanted, found)
}

/// RabbitMQ compares values, not types: 1, 1.0 and the timestamp 1 are the same, text is text.
fn same(one: Value<'_>, two: Value<'_>) -> bool {
    match (whole(one), whole(two), real(one), real(two)) {
        (Some(one), Some(two), ..) => one == two,
        (_, _, Some(one), Some(two)) => one == two,
        _ => match (one.as_bytes(), two.as_bytes()) {
            (Some(one), Some(two)) => one == two,
            _ => one == two,
        },
    }
}

fn whole(value: Value<'_>) -> Option<i128> {
    match value {
        Value::Timestamp(seconds) => Some(seconds.into()),
        other => other.as_integer().map(i128::from),
    }
}

fn real(value: Value<'_>) -> Option<f64> {
    match value {
        Value::Double(number) => Some(number),
        Value::Float(number) => Some(number.into()),
        other => whole(other).map(|number| number as f64),
    }
}
