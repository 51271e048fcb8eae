//! The headers exchange's rule: binding arguments against message headers.
//!
//! `x-match` is `all` (the default), `any`, and with `-with-x` arguments that begin with `x-` count too. A
//! void argument asks only for the header's presence; of headers with one name the first counts.
//!
//! Always true: finding a header by name costs the same however many headers there are ([`Names`]); values
//! that are equal by the rule feed a hash the same way, so that `pairs` may look for them by hash.

use core::fmt;
use core::hash::{BuildHasher, Hash, Hasher};

use foldhash::quality::FixedState;

use crate::words::{ErlangBinary, ErlangTerm};
use leveret_amqp::field::{Table, Value};
use leveret_core::error::{Fault, ReplyCode};

/// Bytes of headers that are as much work as looking at one of them.
const BYTES_PER_STEP: usize = 64;

/// Checks a binding's `x-match`, in RabbitMQ's words.
pub(super) fn check_match(arguments: Table<'_>) -> Result<(), Fault> {
    let known: [&[u8]; 4] = [b"all", b"any", b"all-with-x", b"any-with-x"];
    let fault = |what: fmt::Arguments<'_>| {
        Err(Fault::new(ReplyCode::PreconditionFailed, format_args!("Invalid x-match field {what}")))
    };
    match arguments.get("x-match") {
        None => Ok(()),
        Some(value) if value.as_bytes().is_some_and(|text| known.contains(&text)) => Ok(()),
        Some(Value::LongStr(text)) => {
            fault(format_args!("value {}; expected all, any, all-with-x, or any-with-x", ErlangBinary(text)))
        }
        Some(value) => {
            fault(format_args!("type {} (value {}); expected longstr", value.type_name(), ErlangTerm(value)))
        }
    }
}

/// The rule of a binding, from its `x-match`.
#[derive(Clone, Copy)]
pub(super) struct Rule {
    /// `any`: one matching pair is enough.
    pub(super) any: bool,
    /// Arguments that begin with `x-` count too.
    with_x: bool,
}

impl Rule {
    pub(super) fn of(arguments: Table<'_>) -> Self {
        let rule = arguments.get("x-match").and_then(|value| value.as_bytes()).unwrap_or(b"all");
        Self { any: rule.starts_with(b"any"), with_x: rule.ends_with(b"-with-x") }
    }

    fn counts(self, name: &[u8]) -> bool {
        name != b"x-match" && (self.with_x || !name.starts_with(b"x-"))
    }

    /// The arguments that the rule compares, and where each begins in the table.
    pub(super) fn pairs<'a>(
        self,
        arguments: Table<'a>,
    ) -> impl Iterator<Item = (usize, &'a [u8], Value<'a>)> {
        entries(arguments).filter(move |(_, name, _)| self.counts(name))
    }
}

/// Whether a binding takes every message, whatever its headers.
pub(super) fn takes_everything(arguments: Table<'_>) -> bool {
    let rule = Rule::of(arguments);
    !rule.any && rule.pairs(arguments).next().is_none()
}

/// How many places of `bindings_max` a binding with these arguments takes: with `any` one for each pair.
pub(super) fn places(arguments: Table<'_>) -> u32 {
    let rule = Rule::of(arguments);
    if rule.any { rule.pairs(arguments).count().max(1) as u32 } else { 1 }
}

/// The entry of a table that begins at `at`.
pub(super) fn entry(table: Table<'_>, at: usize) -> Option<(&[u8], Value<'_>)> {
    Table::trusted(table.as_bytes().get(at..)?).iter().next()
}

fn entries<'a>(table: Table<'a>) -> impl Iterator<Item = (usize, &'a [u8], Value<'a>)> {
    let mut rest = table.iter();
    core::iter::from_fn(move || {
        let at = table.bytes_len() - rest.rest().len();
        rest.next().map(|(name, value)| (at, name, value))
    })
}

/// Where each name stands among the headers of the message that is being routed.
///
/// ```text
/// slot = hash(name) ─→ place of the first entry with that name + 1, or 0; taken ones are passed over
/// ```
#[derive(Debug)]
pub(super) struct Names {
    slots: Box<[u32]>,
    /// Slots in use for this message: twice its entries, if there are that many.
    in_use: usize,
    /// Steps of work to look at every header.
    steps: usize,
    /// The number of the route whose headers the slots hold.
    route: u64,
    hasher: FixedState,
}

impl Names {
    /// Slots for the headers of one frame: more than it has room for names, of which 256 take three bytes
    /// (one octet of name) and the others four.
    const fn slots_for(frame_max: usize) -> usize {
        frame_max / 4 + frame_max / 16 + 128
    }

    /// Bytes of memory that the slots take.
    pub(super) const fn bytes(frame_max: usize) -> usize {
        Self::slots_for(frame_max) * size_of::<u32>()
    }

    pub(super) fn for_frames(frame_max: usize, seed: u64) -> Self {
        Self {
            slots: vec![0; Self::slots_for(frame_max)].into_boxed_slice(),
            in_use: 0,
            steps: 0,
            route: 0,
            hasher: FixedState::with_seed(seed),
        }
    }

    /// Fills the slots from the headers, once per route; says how many steps that took.
    pub(super) fn take_in(&mut self, headers: Table<'_>, route: u64) -> usize {
        if self.route == route {
            return 0;
        }
        let count = headers.iter().count();
        self.route = route;
        self.in_use = (2 * count + 1).min(self.slots.len());
        self.slots[..self.in_use].fill(0);
        for (at, name, _) in entries(headers) {
            let slot = self.slot(headers, name);
            if self.slots[slot] == 0 {
                self.slots[slot] = at as u32 + 1;
            }
        }
        self.steps = count + headers.bytes_len() / BYTES_PER_STEP;
        self.steps
    }

    /// Steps of work to look at every header.
    pub(super) const fn steps(&self) -> usize {
        self.steps
    }

    /// Where each header begins, the first of each name, in no order.
    pub(super) fn places(&self) -> impl Iterator<Item = usize> {
        self.slots[..self.in_use].iter().filter(|place| **place > 0).map(|place| *place as usize - 1)
    }

    /// Whether the headers, which were taken in, match a pair of a binding.
    pub(super) fn agree(&self, headers: Table<'_>, name: &[u8], wanted: Value<'_>) -> bool {
        let place = self.slots[self.slot(headers, name)];
        let found = (place as usize).checked_sub(1).and_then(|at| entry(headers, at));
        found.is_some_and(|(_, found)| wanted == Value::Void || same(wanted, found))
    }

    /// The slot of this name, or a free one for it; one slot is always free.
    fn slot(&self, headers: Table<'_>, name: &[u8]) -> usize {
        let hash = self.hasher.hash_one(name);
        let mut slot = (((hash >> 32) * self.in_use as u64) >> 32) as usize;
        loop {
            let at = match self.slots[slot] {
                0 => return slot,
                place => place as usize - 1,
            };
            if entry(headers, at).is_some_and(|(other, _)| other == name) {
                return slot;
            }
            slot = (slot + 1) % self.in_use;
        }
    }
}

/// Whether two values are equal: RabbitMQ compares values, not types, so 1, 1.0 and the timestamp 1 are the
/// same.
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

/// Feeds a hash with a value. A whole number equals a real one by [`same`], so it is fed as one.
pub(super) fn feed(value: Value<'_>, state: &mut impl Hasher) {
    if let Some(number) = real(value) {
        // Adding 0 makes -0 the same as 0.
        return (number + 0.0).to_bits().hash(state);
    }
    core::mem::discriminant(&value).hash(state);
    match value {
        Value::LongStr(bytes) | Value::Binary(bytes) => bytes.hash(state),
        Value::Table(table) => table.as_bytes().hash(state),
        Value::Array(array) => array.as_bytes().hash(state),
        Value::Bool(truth) => truth.hash(state),
        Value::Decimal { scale, value } => (scale, value).hash(state),
        _ => {}
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
