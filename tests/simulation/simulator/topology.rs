//! The names of simulated queues and exchanges, and what is declared under each.
//!
//! ```text
//! d0 .. d2  durable               d3  durable, with priorities
//! l0  durable, max-length 12, message TTL; drops        r0  durable, max-length 12; rejects publishes
//! s0 m0  durable, each dead-letters to the other
//! j0 w0  as s0 m0; messages return from `w0` after a time
//! j1 w1  as j0 w0; a policy defines the time       j2 w2  as j0 w0; policies define time and target
//! t0 t1  transient       a0  transient, deleted when unused       xN  exclusive to connection N
//! ```
//!
//! # Invariants
//! - The name determines the declaration, so that two clients never contradict each other.
//! - The set of possible bindings is fixed. So a message in a queue that it cannot be routed to is an error
//!   whenever it is seen.

use leveret_amqp::{Method, Table};

use super::deaths::{DELIVERY_LIMIT, DYING, is_dying, other_of};

/// Queues that all clients use.
pub const QUEUES: [&str; 9] = ["d0", "d1", "d2", "d3", "l0", "r0", "a0", "t0", "t1"];

/// Possible bindings: source, routing key, queue.
pub const BINDINGS: [(&str, &str, &str); 10] = [
    ("fan", "", "d0"),
    ("fan", "", "d1"),
    ("fan", "", "t0"),
    ("fan", "", "l0"),
    ("dir", "k0", "d1"),
    ("dir", "k0", "d2"),
    ("dir", "k1", "r0"),
    ("top", "a.*", "d2"),
    ("top", "a.#", "d3"),
    ("top", "#.c", "t1"),
];

/// Declared exchanges: name and type.
pub const EXCHANGES: [(&str, &str); 3] = [("fan", "fanout"), ("dir", "direct"), ("top", "topic")];

/// Exchanges and routing keys that clients publish with.
pub const ROUTES: [(&str, &str); 7] = [
    ("fan", "x"),
    ("dir", "k0"),
    ("dir", "k1"),
    ("dir", "none"),
    ("top", "a.b"),
    ("top", "a.b.c"),
    ("top", "c"),
];

/// Maximum length of the queues that have one.
const LENGTH_MAX: i64 = 12;
/// Message TTL of the queues that drop messages, in milliseconds.
const MESSAGE_TTL_MS: i64 = 400;
/// Expiration of some messages to a queue that drops messages, in milliseconds.
pub const EXPIRATION_MS: &[u8] = b"90";
/// The highest priority of the queue with priorities.
const PRIORITY_MAX: u8 = 3;
/// Expiry of unused queues that may be deleted, in milliseconds.
const EXPIRES_MS: i64 = 3_000;

/// Message TTL of the waiting queue that has one in its arguments, in milliseconds.
const WAIT_MS: i64 = 150;

pub fn is_durable(queue: &str) -> bool {
    queue.starts_with(['d', 'l', 'r', 's', 'm', 'j', 'w'])
}

/// Returns whether policies define the dead-letter target of a queue instead of its arguments.
pub fn is_policed(queue: &str) -> bool {
    matches!(queue, "j2" | "w2")
}

/// Returns whether the queue may drop any message, because of its length limit or its TTL.
pub fn drops(queue: &str) -> bool {
    queue.starts_with('l')
}

/// Returns whether the queue may reject any publish because of its length limit.
pub fn refuses(queue: &str) -> bool {
    queue.starts_with('r')
}

/// Returns whether a message to this queue has an expiration.
///
/// Half of the messages that may be dropped anyway have one, and some of those that may be dead-lettered.
pub fn expires(queue: &str, len: u32) -> bool {
    let is_chained = is_dying(queue) && !matches!(queue, "s0" | "m0");
    drops(queue) && len.is_multiple_of(2) || is_chained && (len / 4) % 8 == 1
}

/// Returns whether a message may be dropped when its own expiration passes.
///
/// That is so if its dead letter would complete a cycle without a rejection, or would have no target.
pub fn is_mortal(queue: &str, len: u32) -> bool {
    expires(queue, len) && !matches!(queue, "w0" | "w1")
}

/// Returns whether a queue has priorities.
pub fn has_levels(queue: &str) -> bool {
    queue == "d3"
}

/// Returns the level of the queue in which a message of this priority waits.
pub fn level(queue: &str, priority: Option<u8>) -> u8 {
    if has_levels(queue) { priority.unwrap_or(0).min(PRIORITY_MAX) } else { 0 }
}

/// Returns whether a queue may be deleted without a request.
pub fn may_go(queue: &str) -> bool {
    queue.starts_with(['a', 'x'])
}

/// Returns whether a binding matches a routing key.
fn fits(source: &str, pattern: &str, key: &str) -> bool {
    match source {
        "fan" => true,
        "dir" => pattern == key,
        _ => match pattern {
            "a.*" => key == "a.b",
            "a.#" => key == "a" || key.starts_with("a."),
            "#.c" => key == "c" || key.ends_with(".c"),
            _ => false,
        },
    }
}

/// Returns the indexes in [`BINDINGS`] that match a publish.
pub fn bindings_for<'a>(exchange: &'a str, key: &'a str) -> impl Iterator<Item = usize> + 'a {
    let all = BINDINGS.iter().enumerate();
    all.filter(move |(_, (source, pattern, _))| *source == exchange && fits(source, pattern, key))
        .map(|(at, _)| at)
}

/// Returns whether a message can be in a queue at all.
pub fn may_route(exchange: &str, key: &str, queue: &str) -> bool {
    match exchange {
        "" => key == queue || other_of(key) == Some(queue),
        _ => bindings_for(exchange, key).any(|at| BINDINGS[at].2 == queue),
    }
}

/// Returns the arguments of a queue's declaration.
pub fn arguments(queue: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut limit = |name: &str, most: i64| {
        bytes.push(name.len() as u8);
        bytes.extend_from_slice(name.as_bytes());
        bytes.push(b'l');
        bytes.extend_from_slice(&most.to_be_bytes());
    };
    if drops(queue) || refuses(queue) {
        limit("x-max-length", LENGTH_MAX);
    }
    if drops(queue) {
        limit("x-message-ttl", MESSAGE_TTL_MS);
    }
    if has_levels(queue) {
        limit("x-max-priority", PRIORITY_MAX.into());
    }
    if queue == "w0" {
        limit("x-message-ttl", WAIT_MS);
    }
    if queue == DYING {
        limit("x-delivery-limit", DELIVERY_LIMIT);
    }
    if queue.starts_with('a') {
        limit("x-expires", EXPIRES_MS);
    }
    if refuses(queue) {
        bytes.push(10);
        bytes.extend_from_slice(b"x-overflowS\x00\x00\x00\x0ereject-publish");
    }
    if let Some(other) = other_of(queue).filter(|_| !is_policed(queue)) {
        bytes.extend_from_slice(b"\x16x-dead-letter-exchangeS\x00\x00\x00\x00");
        bytes.extend_from_slice(b"\x19x-dead-letter-routing-keyS\x00\x00\x00\x02");
        bytes.extend_from_slice(other.as_bytes());
    }
    if queue == DYING {
        bytes.extend_from_slice(b"\x0cx-queue-typeS\x00\x00\x00\x06quorum");
    }
    bytes
}

pub fn declare<'a>(queue: &'a str, arguments: &'a [u8]) -> Method<'a> {
    Method::QueueDeclare {
        queue,
        passive: false,
        durable: is_durable(queue),
        exclusive: queue.starts_with('x'),
        auto_delete: queue.starts_with('a'),
        no_wait: false,
        arguments: Table::trusted(arguments),
    }
}

pub fn declare_exchange<'a>(exchange: &'a str, kind: &'a str) -> Method<'a> {
    Method::ExchangeDeclare {
        exchange,
        kind,
        passive: false,
        durable: true,
        auto_delete: false,
        internal: false,
        no_wait: false,
        arguments: Table::EMPTY,
    }
}
