//! The names that simulated clients use, and what each of them means.
//!
//! Always true: a name says what is declared under it, so that two clients never contradict each other; the
//! number of an instance travels in its arguments, so that it is found again after a start.

use crate::wire::field::Table;

use super::model::{Kind, Number};

/// Queues that everybody uses.
pub(super) const QUEUES: [&str; 9] = ["d0", "d1", "d2", "d3", "l0", "r0", "a0", "t0", "t1"];
/// Exchanges that are declared.
pub(super) const EXCHANGES: [&str; 5] = ["e0", "e1", "e2", "e3", AUTO_DELETE_EXCHANGE];
/// Exchanges that are published to and bound.
pub(super) const SOURCES: [&str; 8] =
    ["e0", "e1", "e2", "e3", AUTO_DELETE_EXCHANGE, "amq.direct", "amq.fanout", "amq.topic"];
/// The one that goes with its last binding.
pub(super) const AUTO_DELETE_EXCHANGE: &str = "e4";
/// Routing keys, the names of queues besides.
pub(super) const KEYS: [&str; 3] = ["k0", "a.b", "a.b.c"];
/// Binding keys.
pub(super) const PATTERNS: [&str; 6] = ["k0", "a.b", "a.*", "a.#", "#", "d0"];

/// Messages that the queues with a limited length keep.
pub(super) const LENGTH_MAX: u64 = 12;

/// How an exchange routes, and whether it goes with its last binding.
pub(super) fn kind_of(exchange: &str) -> (Kind, bool) {
    match exchange {
        "e1" | AUTO_DELETE_EXCHANGE => (Kind::Fanout, exchange == AUTO_DELETE_EXCHANGE),
        "e2" => (Kind::Topic, false),
        _ => (Kind::Direct, false),
    }
}

/// Whether an exchange outlives the broker.
pub(super) fn is_durable_exchange(exchange: &str) -> bool {
    exchange != "e3"
}

impl Kind {
    /// As in exchange.declare.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Fanout => "fanout",
            Self::Topic => "topic",
        }
    }
}

/// The arguments of a declaration.
pub(super) fn arguments(name: &str, number: Number) -> Vec<u8> {
    let mut bytes = Vec::new();
    put(&mut bytes, "number", number as i64);
    if name.starts_with('l') || name.starts_with('r') {
        put(&mut bytes, "x-max-length", LENGTH_MAX as i64);
    }
    if name.starts_with('r') {
        bytes.push(10);
        bytes.extend_from_slice(b"x-overflowS\x00\x00\x00\x0ereject-publish");
    }
    bytes
}

fn put(bytes: &mut Vec<u8>, name: &str, number: i64) {
    bytes.push(name.len() as u8);
    bytes.extend_from_slice(name.as_bytes());
    bytes.push(b'l');
    bytes.extend_from_slice(&number.to_be_bytes());
}

/// The number in the arguments of something found.
pub(super) fn number_in(arguments: &[u8]) -> Number {
    let number = Table::trusted(arguments).get("number").and_then(|value| value.as_integer());
    number.and_then(|number| u64::try_from(number).ok()).unwrap_or(0)
}
