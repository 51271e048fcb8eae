//! The keys of a policy's definition and their checks, and the progress of a notification after a change.
//!
//! The checks, their order and their texts are those of RabbitMQ 3.10. The keys for mirrored and lazy queues
//! are accepted but have no effect. The keys of plug-ins that Leveret does not have (`federation-upstream`)
//! are refused as unknown. A definition that passes the checks is not empty, has a bounded size, and has no
//! unknown key.

use core::fmt;

use leveret_amqp::field::{Table, Value};
use leveret_amqp::reply_text::ErlangBinary;
use leveret_core::command::{ExchangeId, QueueId};
use leveret_core::definition::PolicyKind;

/// Maximum bytes of a definition, encoded as a field table.
pub(super) const DEFINITION_BYTES_MAX: usize = 1024;

/// The check of a key's value, with the end of the error text "… is not a valid …".
enum Check {
    /// An integer, at least this one.
    Number(i64, &'static str),
    /// Any string.
    Text(&'static str),
    /// One of these strings.
    OneOf(&'static [&'static str], &'static str),
    /// A version of classic queues (`queue-version`).
    Version,
}

/// A key: its name, its check, and the queue types to which a policy with this key does not apply.
struct Key(&'static str, Check, QueueTypes);

/// The queue types to which a policy with a certain key does not apply.
#[derive(Clone, Copy, PartialEq, Eq)]
enum QueueTypes {
    None,
    Classic,
    Quorum,
    Both,
}

/// Whether a policy applies to no classic queues, or to no quorum queues, because of its keys. As in
/// RabbitMQ, one such key is enough: then no other key of the policy applies to them either.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct ExcludedQueues {
    pub(super) classic: bool,
    pub(super) quorum: bool,
}

/// The keys in the order in which they are checked.
const KEYS: [Key; 21] = [
    Key("alternate-exchange", Check::Text("a valid alternate exchange name"), QueueTypes::None),
    // RabbitMQ has this key since a version after 3.10.
    Key("consumer-timeout", Check::Number(0, "a valid consumer timeout"), QueueTypes::None),
    Key("dead-letter-exchange", Check::Text("a valid dead letter exchange name"), QueueTypes::None),
    Key("dead-letter-routing-key", Check::Text("a valid dead letter routing key"), QueueTypes::None),
    Key(
        "dead-letter-strategy",
        Check::OneOf(&["at-least-once", "at-most-once"], "a valid dead letter strategy"),
        QueueTypes::Classic,
    ),
    Key("delivery-limit", Check::Number(0, "a valid delivery limit"), QueueTypes::Classic),
    Key("expires", Check::Number(1, "a valid queue expiry"), QueueTypes::None),
    Key("initial-cluster-size", Check::Number(0, "a valid cluster size"), QueueTypes::Both),
    Key("max-age", Check::Text("a valid max age"), QueueTypes::Both),
    Key("max-in-memory-bytes", Check::Number(0, "a valid maximum memory in bytes"), QueueTypes::None),
    Key("max-in-memory-length", Check::Number(0, "a valid maximum memory in bytes"), QueueTypes::None),
    Key("max-length", Check::Number(0, "a valid maximum length"), QueueTypes::None),
    Key("max-length-bytes", Check::Number(0, "a valid maximum length in bytes"), QueueTypes::None),
    Key("message-ttl", Check::Number(0, "a valid message TTL"), QueueTypes::None),
    Key(
        "overflow",
        Check::OneOf(&["drop-head", "reject-publish", "reject-publish-dlx"], "a valid overflow value"),
        QueueTypes::None,
    ),
    Key(
        "queue-leader-locator",
        Check::OneOf(
            &["client-local", "balanced", "random", "least-leaders"],
            "a valid queue leader locator value",
        ),
        QueueTypes::Classic,
    ),
    Key("queue-mode", Check::OneOf(&["default", "lazy"], "a valid queue-mode value"), QueueTypes::Quorum),
    Key("queue-version", Check::Version, QueueTypes::None),
    Key("stream-max-segment-size-bytes", Check::Number(0, "a valid segment size"), QueueTypes::Both),
    // From here on come the keys that RabbitMQ checks in other modules, after the keys above.
    Key(
        "queue-master-locator",
        Check::OneOf(&["min-masters", "client-local", "random"], ""),
        QueueTypes::Quorum,
    ),
    Key("ha-sync-batch-size", Check::Number(1, ""), QueueTypes::None),
];

/// The keys of mirrored queues, which RabbitMQ checks together.
const MIRROR_KEYS: [&str; 5] =
    ["ha-mode", "ha-params", "ha-sync-mode", "ha-promote-on-shutdown", "ha-promote-on-failure"];

/// The keys that an operator policy may have: limits only.
const OPERATOR_KEYS: [&str; 7] = [
    "expires",
    "message-ttl",
    "max-length",
    "max-length-bytes",
    "max-in-memory-length",
    "max-in-memory-bytes",
    "delivery-limit",
];

/// Checks the definition of a policy of this kind.
///
/// # Errors
/// The text that RabbitMQ has for the first mistake.
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

/// Returns the queue types to which a policy with this definition does not apply.
pub(super) fn excluded_queues(definition: Table<'_>) -> ExcludedQueues {
    let has = |kinds: [QueueTypes; 2]| {
        KEYS.iter().any(|Key(name, _, not)| kinds.contains(not) && definition.get(name).is_some())
    };
    let is_mirrored = MIRROR_KEYS.iter().any(|name| definition.get(name).is_some());
    ExcludedQueues {
        classic: has([QueueTypes::Classic, QueueTypes::Both]),
        quorum: has([QueueTypes::Quorum, QueueTypes::Both]) || is_mirrored,
    }
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

/// Checks the keys of mirrored queues. They are valid, but have no effect.
fn check_mirrors(definition: Table<'_>) -> Result<(), String> {
    let text = |name| definition.get(name).map(|value| (value, value.as_str().unwrap_or_default()));
    let Some((mode, words)) = text("ha-mode") else {
        let has_mirror_key = MIRROR_KEYS.iter().any(|name| definition.get(name).is_some());
        return match has_mirror_key {
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

/// The error text that lists the unknown keys of a definition.
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

/// A value from JSON, formatted as by Erlang's `~p` in RabbitMQ's error texts.
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

/// A queue or an exchange that must be notified of a policy change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Listener {
    Queue(QueueId),
    Exchange(ExchangeId),
}

/// The progress of a notification: the number of places of queues, and of exchanges, that have been notified.
#[derive(Clone, Copy, Debug, Default)]
struct NotifiedPlaces {
    queues: usize,
    exchanges: usize,
}

/// The notification of queues and exchanges about a policy change, if one is in progress.
///
/// A job notifies them in steps, because there may be too many for one turn of the event loop. If another
/// policy changes meanwhile, the same job starts again at the first queue, for both changes together. There
/// is never a second job.
#[derive(Debug, Default)]
pub(super) struct PolicyNotification {
    notified: Option<NotifiedPlaces>,
    /// A notification was begun, and the caller has not yet begun the job for it.
    must_begin_job: bool,
}

impl PolicyNotification {
    /// Begins a notification at the first queue, or restarts the current one there.
    pub(super) fn begin(&mut self) {
        if self.notified.replace(NotifiedPlaces::default()).is_none() {
            self.must_begin_job = true;
        }
    }

    /// Returns whether the caller must begin the job now. Returns `true` once per job.
    pub(super) const fn take_job_request(&mut self) -> bool {
        core::mem::replace(&mut self.must_begin_job, false)
    }

    /// Returns the next queue or exchange to notify; `None` when all are notified, or if no notification is
    /// in progress. `queues` and `exchanges` are the numbers of their places.
    pub(super) fn next(&self, queues: usize, exchanges: usize) -> Option<Listener> {
        let notified = self.notified?;
        if notified.queues < queues {
            return Some(Listener::Queue(QueueId::from_index(notified.queues)));
        }
        (notified.exchanges < exchanges)
            .then(|| Listener::Exchange(ExchangeId::from_index(notified.exchanges)))
    }

    /// Notes that a queue or an exchange has been notified.
    pub(super) fn note(&mut self, listener: Listener) {
        let notified = self.notified.as_mut().expect("a notification is in progress");
        let (count, index) = match listener {
            Listener::Queue(queue) => (&mut notified.queues, queue.index()),
            Listener::Exchange(exchange) => (&mut notified.exchanges, exchange.index()),
        };
        assert_eq!(*count, index, "changes are told in the order of places");
        *count += 1;
    }

    /// Ends the notification: all queues and exchanges have been notified.
    pub(super) const fn end(&mut self) {
        self.notified = None;
        self.must_begin_job = false;
    }
}
