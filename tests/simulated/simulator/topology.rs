//! The names that simulated clients use, and what each of them means.
//!
//! ```text
//! d0 .. d2  durable       l0  durable, keeps 12 and none for long         r0  durable, keeps 12 and refuses
//! d3        durable, with priorities      s0  m0  durable, and dead letters go from each to the other
//! j0 w0     the same, and what is in `w0` goes back after a while
//! j1 w1     the same, and a policy says after which     j2 w2  the same, and policies say all of that
//! t0 t1     transient     a0  transient, goes when it is of no use        xN  exclusive, of connection N
//! ```
//!
//! Always true: a name says what is declared under it, so that two clients never contradict each other; which
//! bindings there may be is fixed, so that a message in a queue that it cannot get to is a mistake whenever
//! it is seen.

use leveret_amqp::{Method, Table};

use super::deaths::{DELIVERY_LIMIT, DYING, is_dying, other_of};

/// Queues that everybody uses.
pub const QUEUES: [&str; 9] = ["d0", "d1", "d2", "d3", "l0", "r0", "a0", "t0", "t1"];

/// Bindings there may be: source, routing key, queue.
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

/// Exchanges that are declared: name and type.
pub const EXCHANGES: [(&str, &str); 3] = [("fan", "fanout"), ("dir", "direct"), ("top", "topic")];

/// What is published through them.
pub const ROUTES: [(&str, &str); 7] = [
    ("fan", "x"),
    ("dir", "k0"),
    ("dir", "k1"),
    ("dir", "none"),
    ("top", "a.b"),
    ("top", "a.b.c"),
    ("top", "c"),
];

/// Messages that the queues with a limited length keep.
const LENGTH_MAX: i64 = 12;
/// For how long those keep one that drop any, in milliseconds.
const MESSAGE_TTL_MS: i64 = 400;
/// How long a message may wait by itself that goes to such a queue, in milliseconds.
pub const EXPIRATION_MS: &[u8] = b"90";
/// The highest priority of the queue that has any.
const PRIORITY_MAX: u8 = 3;
/// After how long a queue goes that may, if nobody has a use for it, in milliseconds.
const EXPIRES_MS: i64 = 3_000;

/// For how long a message waits in the queue whose arguments say so, in milliseconds.
const WAIT_MS: i64 = 150;

pub fn is_durable(queue: &str) -> bool {
    queue.starts_with(['d', 'l', 'r', 's', 'm', 'j', 'w'])
}

/// Whether policies say where its dead letters go, and not its arguments.
pub fn is_policed(queue: &str) -> bool {
    matches!(queue, "j2" | "w2")
}

/// It may drop any message, for its length or because its time is over.
pub fn drops(queue: &str) -> bool {
    queue.starts_with('l')
}

/// It may refuse any message for its length.
pub fn refuses(queue: &str) -> bool {
    queue.starts_with('r')
}

/// Whether a message that goes there has a time of its own: half of what may vanish anyway, and some of what
/// may die.
pub fn expires(queue: &str, len: u32) -> bool {
    let is_chained = is_dying(queue) && !matches!(queue, "s0" | "m0");
    drops(queue) && len.is_multiple_of(2) || is_chained && (len / 4) % 8 == 1
}

/// Whether a message with a time of its own may be dropped there for that: its letter would go round by
/// itself, or go nowhere.
pub fn is_mortal(queue: &str, len: u32) -> bool {
    expires(queue, len) && !matches!(queue, "w0" | "w1")
}

/// Whether it has priorities.
pub fn has_levels(queue: &str) -> bool {
    queue == "d3"
}

/// Which of its levels a message of this priority waits in.
pub fn level(queue: &str, priority: Option<u8>) -> u8 {
    if has_levels(queue) { priority.unwrap_or(0).min(PRIORITY_MAX) } else { 0 }
}

/// Whether it may go without anybody deleting it.
pub fn may_go(queue: &str) -> bool {
    queue.starts_with(['a', 'x'])
}

/// Whether a binding lets a message through.
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

/// The bindings that may bring a message to queues, by their places in the table.
pub fn bindings_for<'a>(exchange: &'a str, key: &'a str) -> impl Iterator<Item = usize> + 'a {
    let all = BINDINGS.iter().enumerate();
    all.filter(move |(_, (source, pattern, _))| *source == exchange && fits(source, pattern, key))
        .map(|(at, _)| at)
}

/// Whether a message may come to a queue at all.
pub fn may_route(exchange: &str, key: &str, queue: &str) -> bool {
    match exchange {
        "" => key == queue || other_of(key) == Some(queue),
        _ => bindings_for(exchange, key).any(|at| BINDINGS[at].2 == queue),
    }
}

/// Arguments of a declaration.
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
