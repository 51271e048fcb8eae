//! What may stand in the definition of a policy.
//!
//! Why it exists: the checks, their order and their texts are RabbitMQ 3.10's, recorded from it. The keys for
//! mirrored and lazy queues mean nothing on one node, here as there; a key of a missing plug-in
//! (`federation-upstream`) is as unknown as any other word.
//!
//! Always true: a definition that passes is not empty, has a bounded size, and no unknown key.

use core::fmt;

use leveret_amqp::field::{Table, Value};
use leveret_core::command::{ExchangeId, QueueId};

use super::PolicyKind;
use crate::reply_text::ErlangBinary;

/// The longest definition, in bytes of a field table.
pub(super) const DEFINITION_BYTES_MAX: usize = 1024;

/// The check of a key's value, with the words for a wrong one.
enum Check {
    /// A number from this one on.
    Number(i64, &'static str),
    /// Any text.
    Text(&'static str),
    /// One of these texts.
    OneOf(&'static [&'static str], &'static str),
    /// A version of queues (`queue-version`).
    Version,
}

/// A key: its name, the check, and which kinds of queues ignore it.
struct Key(&'static str, Check, Not);

/// Which kinds of queues a policy with a key does not apply to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Not {
    None,
    Classic,
    Quorum,
    Both,
}

/// Which kinds of queues a policy does not apply to at all, as in RabbitMQ, because of its keys.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct NotFor {
    pub(super) classic: bool,
    pub(super) quorum: bool,
}

/// The keys in the order in which they are checked.
const KEYS: [Key; 21] = [
    Key("alternate-exchange", Check::Text("a valid alternate exchange name"), Not::None),
    // This key is of RabbitMQ after 3.10.
    Key("consumer-timeout", Check::Number(0, "a valid consumer timeout"), Not::None),
    Key("dead-letter-exchange", Check::Text("a valid dead letter exchange name"), Not::None),
    Key("dead-letter-routing-key", Check::Text("a valid dead letter routing key"), Not::None),
    Key(
        "dead-letter-strategy",
        Check::OneOf(&["at-least-once", "at-most-once"], "a valid dead letter strategy"),
        Not::Classic,
    ),
    Key("delivery-limit", Check::Number(0, "a valid delivery limit"), Not::Classic),
    Key("expires", Check::Number(1, "a valid queue expiry"), Not::None),
    Key("initial-cluster-size", Check::Number(0, "a valid cluster size"), Not::Both),
    Key("max-age", Check::Text("a valid max age"), Not::Both),
    Key("max-in-memory-bytes", Check::Number(0, "a valid maximum memory in bytes"), Not::None),
    Key("max-in-memory-length", Check::Number(0, "a valid maximum memory in bytes"), Not::None),
    Key("max-length", Check::Number(0, "a valid maximum length"), Not::None),
    Key("max-length-bytes", Check::Number(0, "a valid maximum length in bytes"), Not::None),
    Key("message-ttl", Check::Number(0, "a valid message TTL"), Not::None),
    Key(
        "overflow",
        Check::OneOf(&["drop-head", "reject-publish", "reject-publish-dlx"], "a valid overflow value"),
        Not::None,
    ),
    Key(
        "queue-leader-locator",
        Check::OneOf(
            &["client-local", "balanced", "random", "least-leaders"],
            "a valid queue leader locator value",
        ),
        Not::Classic,
    ),
    Key("queue-mode", Check::OneOf(&["default", "lazy"], "a valid queue-mode value"), Not::Quorum),
    Key("queue-version", Check::Version, Not::None),
    Key("stream-max-segment-size-bytes", Check::Number(0, "a valid segment size"), Not::Both),
    // This key comes behind those that RabbitMQ's core checks.
    Key("queue-master-locator", Check::OneOf(&["min-masters", "client-local", "random"], ""), Not::Quorum),
    Key("ha-sync-batch-size", Check::Number(1, ""), Not::None),
];

/// The keys that go with `ha-mode`.
const MIRROR_KEYS: [&str; 5] =
    ["ha-mode", "ha-params", "ha-sync-mode", "ha-promote-on-shutdown", "ha-promote-on-failure"];

/// The limits that an operator policy may have.
const OPERATOR_KEYS: [&str; 7] = [
    "expires",
    "message-ttl",
    "max-length",
    "max-length-bytes",
    "max-in-memory-length",
    "max-in-memory-bytes",
    "delivery-limit",
];

/// Checks a definition.
///
/// # Errors
/// The first mistake, in RabbitMQ's words.
pub(super) fn check(definition: Table<'_>, kind: PolicyKind) -> Result<(), String> {
    if definition.is_empty() {
        return Err("no policy provided".to_string());
    }
    if definition.as_bytes().len() > DEFINITION_BYTES_MAX {
        return Err(format!("the definition is longer than {DEFINITION_BYTES_MAX} bytes"));
    }
    if kind == PolicyKind::User {
        check_mirrors(definition)?;
    }
    for Key(name, check, _) in KEYS.iter().filter(|Key(name, ..)| is_known(name, kind)) {
        if let Some(value) = definition.get(name) {
            check_one(name, check, value)?;
        }
    }
    let unknown = Unknown(definition, kind);
    if unknown.terms().next().is_some() { Err(unknown.to_string()) } else { Ok(()) }
}

/// Which kinds of queues a definition with these keys does not apply to.
pub(super) fn not_for(definition: Table<'_>) -> NotFor {
    let has = |kinds: [Not; 2]| {
        KEYS.iter().any(|Key(name, _, not)| kinds.contains(not) && definition.get(name).is_some())
    };
    let is_mirrored = MIRROR_KEYS.iter().any(|name| definition.get(name).is_some());
    NotFor { classic: has([Not::Classic, Not::Both]), quorum: has([Not::Quorum, Not::Both]) || is_mirrored }
}

fn is_known(name: &str, kind: PolicyKind) -> bool {
    match kind {
        PolicyKind::Operator => OPERATOR_KEYS.contains(&name),
        PolicyKind::User => KEYS.iter().any(|Key(known, ..)| *known == name) || MIRROR_KEYS.contains(&name),
    }
}

fn check_one(name: &str, check: &Check, value: Value<'_>) -> Result<(), String> {
    let is_text = |texts: &[&str]| texts.iter().any(|text| value == Value::LongStr(text.as_bytes()));
    let (fits, what) = match check {
        Check::Number(least, what) => (value.as_integer().is_some_and(|number| number >= *least), *what),
        Check::Text(what) => (matches!(value, Value::LongStr(_)), *what),
        Check::OneOf(texts, what) => (is_text(texts), *what),
        Check::Version => (matches!(value.as_integer(), Some(1 | 2)), "a valid queue-version value"),
    };
    match name {
        _ if fits => Ok(()),
        "ha-sync-batch-size" => {
            Err(format!("ha-sync-batch-size takes an integer greater than 0, {} given", Term(value)))
        }
        "queue-master-locator" => Err(format!("{} invalid queue-master-locator value", Term(value))),
        _ => Err(format!("{} is not {what}", Term(value))),
    }
}

/// Checks the keys for mirrors, of which one node has none.
fn check_mirrors(definition: Table<'_>) -> Result<(), String> {
    let text = |name| definition.get(name).map(|value| (value, value.as_str().unwrap_or_default()));
    let Some((mode, words)) = text("ha-mode") else {
        let is_said = MIRROR_KEYS.iter().any(|name| definition.get(name).is_some());
        return match is_said {
            false => Ok(()),
            true => Err("ha-mode must be specified to specify ha-params, ha-sync-mode or \
                         ha-promote-on-shutdown"
                .to_string()),
        };
    };
    let params = definition.get("ha-params");
    match (words, params) {
        ("all", None) => {}
        ("all", Some(_)) => return Err("ha-mode=\"all\" does not take parameters".to_string()),
        ("exactly", params) if params.and_then(|it| it.as_integer()).is_some_and(|count| count > 0) => {}
        ("nodes", Some(Value::Array(nodes)))
            if !nodes.is_empty() && nodes.iter().all(|node| matches!(node, Value::LongStr(_))) => {}
        ("exactly" | "nodes", None) => return Err(format!("ha-mode={words:?} needs ha-params")),
        ("exactly" | "nodes", Some(params)) => {
            return Err(format!("ha-mode={words:?} takes other ha-params: {} given", Term(params)));
        }
        _ => return Err(format!("{} is not a valid ha-mode value", Term(mode))),
    }
    for (name, [one, two]) in [
        ("ha-sync-mode", ["manual", "automatic"]),
        ("ha-promote-on-shutdown", ["always", "when-synced"]),
        ("ha-promote-on-failure", ["always", "when-synced"]),
    ] {
        if let Some((value, words)) = text(name)
            && ![one, two].contains(&words)
        {
            return Err(format!("{name} must be {one:?} or {two:?}, got {}", Term(value)));
        }
    }
    Ok(())
}

/// The unknown keys of a definition.
struct Unknown<'a>(Table<'a>, PolicyKind);

impl<'a> Unknown<'a> {
    fn terms(&self) -> impl Iterator<Item = (&'a [u8], Value<'a>)> {
        let kind = self.1;
        let is_unknown =
            move |name: &[u8]| core::str::from_utf8(name).is_ok_and(|name| !is_known(name, kind));
        self.0.iter().filter(move |(name, _)| is_unknown(name))
    }
}

impl fmt::Display for Unknown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (at, (name, value)) in self.terms().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            write!(f, "{comma}{{{},{}}}", ErlangBinary(name), Term(value))?;
        }
        f.write_str("] are not recognised policy settings")
    }
}

/// A value that was JSON, as RabbitMQ's `~p` prints it.
struct Term<'a>(Value<'a>);

impl fmt::Display for Term<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Value::LongStr(text) => ErlangBinary(text).fmt(f),
            Value::Bool(truth) => write!(f, "{truth}"),
            Value::Double(number) => write!(f, "{number:?}"),
            Value::Array(items) => {
                f.write_str("[")?;
                for (at, item) in items.iter().enumerate() {
                    write!(f, "{}{}", if at == 0 { "" } else { "," }, Term(item))?;
                }
                f.write_str("]")
            }
            Value::Table(fields) => {
                f.write_str("#{")?;
                for (at, (name, value)) in fields.iter().enumerate() {
                    let comma = if at == 0 { "" } else { "," };
                    write!(f, "{comma}{} => {}", ErlangBinary(name), Term(value))?;
                }
                f.write_str("}")
            }
            other => match other.as_integer() {
                Some(number) => write!(f, "{number}"),
                None => f.write_str("null"),
            },
        }
    }
}

// How far the queues and exchanges have heard of a change of the policies.
//
// Why it exists: there may be too many queues and exchanges to tell all in one go.
//
// Always true: a change that comes while another is told is told from the first queue on, together with the
// other; the job that tells is asked for once.

/// A queue or an exchange that hears of a change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Listener {
    Queue(QueueId),
    Exchange(ExchangeId),
}

/// How many places of queues and of exchanges have heard of a change.
#[derive(Clone, Copy, Debug, Default)]
struct Told {
    queues: usize,
    exchanges: usize,
}

/// A change that not all have heard of yet, if there is one.
#[derive(Debug, Default)]
pub(super) struct Telling {
    told: Option<Told>,
    /// The job that tells is still to be begun.
    wants_job: bool,
}

impl Telling {
    /// Begins to tell of a change, which nobody has heard of.
    pub(super) fn begin(&mut self) {
        if self.told.replace(Told::default()).is_none() {
            self.wants_job = true;
        }
    }

    /// Whether the job that tells is to be begun; the caller begins it.
    pub(super) const fn take_job(&mut self) -> bool {
        core::mem::replace(&mut self.wants_job, false)
    }

    /// The next queue or exchange to hear, among so many places of each.
    pub(super) fn next(&self, queues: usize, exchanges: usize) -> Option<Listener> {
        let told = self.told?;
        if told.queues < queues {
            return Some(Listener::Queue(QueueId::from_index(told.queues)));
        }
        (told.exchanges < exchanges).then(|| Listener::Exchange(ExchangeId::from_index(told.exchanges)))
    }

    /// Notes that a queue or an exchange has heard.
    pub(super) fn note(&mut self, listener: Listener) {
        let told = self.told.as_mut().expect("somebody hears of a change that there is");
        let (count, index) = match listener {
            Listener::Queue(queue) => (&mut told.queues, queue.index()),
            Listener::Exchange(exchange) => (&mut told.exchanges, exchange.index()),
        };
        assert_eq!(*count, index, "changes are told in the order of places");
        *count += 1;
    }

    /// Notes that all have heard.
    pub(super) const fn end(&mut self) {
        self.told = None;
        self.wants_job = false;
    }
}

// The terms of a queue: its own arguments, its policy, and its operator policy, put together.
//
// Why it exists: the three are put together in one place, as RabbitMQ 3.10 does it (recorded from it), so
// that code which acts on a limit need not know where it came from. Arguments have `x-` before the names
// that policies have.
//
// Always true: the smallest of several limits counts, and the shortest consumer timeout; for all other keys
// the argument, and only without it the policy; an operator policy has only limits.

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
