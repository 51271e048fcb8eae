//! Arguments of `queue.declare`: the checks of their values, and the comparison of a declaration with an
//! existing queue.
//!
//! The checks and the error texts are those of RabbitMQ 3.10. Arguments that RabbitMQ does not know are
//! stored, but neither checked nor compared.

use core::fmt;

use leveret_amqp::field::{Table, Value};
use leveret_amqp::reply_text::{Lossy, QueueText, equivalent, inequivalent};
use leveret_core::error::{Fault, ReplyCode};
use leveret_queues::{MILLISECONDS_MAX, is_quorum};

/// The flags of a declaration that certain queue types do not allow.
#[derive(Clone, Copy)]
pub(crate) struct QueueFlags {
    pub(crate) durable: bool,
    pub(crate) exclusive: bool,
    pub(crate) auto_delete: bool,
}

enum Check {
    /// Milliseconds. 0 is allowed only with `zero`.
    Milliseconds {
        zero: bool,
    },
    NonNegative,
    Priority,
    Version,
    Overflow,
    Mode,
    Bool,
    /// Any text is allowed.
    Text,
    /// The name of an exchange.
    ExchangeName,
    DeadLetterKey,
    /// Any value is allowed.
    Anything,
}

/// The queue types for which an argument is valid.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Takes {
    Both,
    Classic,
    Quorum,
    /// The argument is valid only for streams, which Leveret does not have.
    Neither,
}

impl Takes {
    fn is_taken(self, is_quorum: bool) -> bool {
        match self {
            Self::Both => true,
            Self::Classic => !is_quorum,
            Self::Quorum => is_quorum,
            Self::Neither => false,
        }
    }
}

/// All arguments that are checked and compared, in RabbitMQ's order.
const KNOWN: [(&str, Takes, Check); 19] = [
    ("x-expires", Takes::Both, Check::Milliseconds { zero: false }),
    ("x-message-ttl", Takes::Both, Check::Milliseconds { zero: true }),
    ("x-dead-letter-exchange", Takes::Both, Check::ExchangeName),
    ("x-dead-letter-routing-key", Takes::Both, Check::DeadLetterKey),
    ("x-dead-letter-strategy", Takes::Quorum, Check::Anything),
    ("x-max-length", Takes::Both, Check::NonNegative),
    ("x-max-length-bytes", Takes::Both, Check::NonNegative),
    ("x-max-in-memory-length", Takes::Quorum, Check::Anything),
    ("x-max-in-memory-bytes", Takes::Quorum, Check::Anything),
    ("x-max-priority", Takes::Classic, Check::Priority),
    ("x-overflow", Takes::Both, Check::Overflow),
    ("x-queue-mode", Takes::Classic, Check::Mode),
    ("x-queue-version", Takes::Classic, Check::Version),
    ("x-queue-master-locator", Takes::Classic, Check::Text),
    ("x-single-active-consumer", Takes::Both, Check::Bool),
    ("x-queue-type", Takes::Both, Check::Anything),
    ("x-delivery-limit", Takes::Quorum, Check::Anything),
    ("x-queue-leader-locator", Takes::Quorum, Check::Anything),
    ("x-max-age", Takes::Neither, Check::Anything),
];

/// Checks the arguments of a new queue.
///
/// # Errors
/// The text that RabbitMQ has for the first argument that is not valid.
pub(crate) fn check(queue: QueueText<'_>, arguments: Table<'_>, flags: QueueFlags) -> Result<(), Fault> {
    let quorum = is_quorum(arguments);
    check_type(queue, arguments, flags)?;
    for (name, takes, check) in &KNOWN {
        if let Some(value) = arguments.get(name).filter(|_| takes.is_taken(quorum)) {
            check_one(queue, name, check, value, arguments)?;
        }
    }
    // The fault contains the first argument, in the order of the declaration, that is valid only for other
    // queue types.
    for (declared, _) in arguments.iter() {
        let known = KNOWN.iter().find(|(name, ..)| name.as_bytes() == declared);
        if let Some((name, ..)) = known.filter(|(_, takes, _)| !takes.is_taken(quorum)) {
            return Err(wrong_type(queue, name, quorum));
        }
    }
    if quorum { check_quorum_flags(queue, flags) } else { Ok(()) }
}

/// Compares the arguments of a declaration (`received`) with those of the existing queue (`current`).
///
/// # Errors
/// An argument differs: a fault with code 406 and both values, or "none" for a missing value.
pub(crate) fn compare(queue: QueueText<'_>, received: Table<'_>, current: Table<'_>) -> Result<(), Fault> {
    let quorum = is_quorum(current);
    // Arguments that are not valid for the type of the existing queue are ignored.
    for (name, ..) in KNOWN.iter().filter(|(_, takes, _)| takes.is_taken(quorum)) {
        let (one, two) = (with_default(name, received), with_default(name, current));
        if !equivalent(one, two) {
            return Err(inequivalent(name, &queue, one, two));
        }
    }
    Ok(())
}

fn with_default<'a>(name: &str, arguments: Table<'a>) -> Option<Value<'a>> {
    match (name, arguments.get(name)) {
        ("x-queue-type", None) => Some(Value::LongStr(b"classic")),
        (_, value) => value,
    }
}

fn check_one(
    queue: QueueText<'_>,
    name: &str,
    check: &Check,
    value: Value<'_>,
    arguments: Table<'_>,
) -> Result<(), Fault> {
    let invalid = |why: fmt::Arguments<'_>| Err(invalid(queue, name, why));
    match check {
        Check::Milliseconds { zero } => match integer(queue, name, value)? {
            number if number < 0 => invalid(format_args!("{{value_negative,{number}}}")),
            0 if !zero => invalid(format_args!("{{value_zero,0}}")),
            number if number > MILLISECONDS_MAX => invalid(format_args!("{{value_too_large,{number}}}")),
            _ => Ok(()),
        },
        Check::NonNegative => match integer(queue, name, value)? {
            number if number < 0 => invalid(format_args!("{{value_negative,{number}}}")),
            _ => Ok(()),
        },
        Check::Priority => match integer(queue, name, value)? {
            number if number < 0 => invalid(format_args!("{{value_negative,{number}}}")),
            number if number > 255 => invalid(format_args!("{{max_value_exceeded,{number}}}")),
            _ => Ok(()),
        },
        Check::Version => match integer(queue, name, value)? {
            number if number < 0 => invalid(format_args!("{{value_negative,{number}}}")),
            1 | 2 => Ok(()),
            number => invalid(format_args!("\"unsupported queue version '{number}'\"")),
        },
        Check::Overflow => match text(queue, name, value)? {
            b"drop-head" | b"reject-publish" | b"reject-publish-dlx" => Ok(()),
            _ => invalid(format_args!("invalid_overflow")),
        },
        Check::Mode => match text(queue, name, value)? {
            b"default" | b"lazy" => Ok(()),
            other => invalid(format_args!("\"unsupported queue mode '{}'\"", Lossy(other))),
        },
        Check::Bool if value.as_bool().is_none() => {
            invalid(format_args!("{{unacceptable_type,{}}}", value.type_name()))
        }
        Check::Text => text(queue, name, value).map(|_| ()),
        Check::ExchangeName if !matches!(value, Value::LongStr(_)) => Err(Fault::new(
            ReplyCode::PreconditionFailed,
            format_args!("invalid type '{}' for arg '{name}' in {queue}", value.type_name()),
        )),
        Check::DeadLetterKey => {
            text(queue, name, value)?;
            match arguments.get("x-dead-letter-exchange") {
                Some(_) => Ok(()),
                None => invalid(format_args!("routing_key_but_no_dlx_defined")),
            }
        }
        Check::Bool | Check::ExchangeName | Check::Anything => Ok(()),
    }
}

fn check_type(queue: QueueText<'_>, arguments: Table<'_>, flags: QueueFlags) -> Result<(), Fault> {
    let Some(value) = arguments.get("x-queue-type") else { return Ok(()) };
    match text(queue, "x-queue-type", value)? {
        // Leveret is one node, so a quorum queue is like a durable classic queue.
        b"classic" | b"quorum" => Ok(()),
        b"stream" => {
            check_quorum_flags(queue, flags)?;
            Err(Fault::new(
                ReplyCode::NotImplemented,
                format_args!("stream queues; declare {queue} as classic or quorum"),
            ))
        }
        other => {
            Err(invalid(queue, "x-queue-type", format_args!("\"unsupported queue type '{}'\"", Lossy(other))))
        }
    }
}

fn check_quorum_flags(queue: QueueText<'_>, flags: QueueFlags) -> Result<(), Fault> {
    let wrong = [
        (!flags.durable, "non-durable"),
        (flags.exclusive, "exclusive-owner"),
        (flags.auto_delete, "auto-delete"),
    ];
    match wrong.into_iter().find(|(is_wrong, _)| *is_wrong) {
        None => Ok(()),
        Some((_, property)) => Err(Fault::new(
            ReplyCode::PreconditionFailed,
            format_args!("invalid property '{property}' for {queue}"),
        )),
    }
}

fn integer(queue: QueueText<'_>, name: &str, value: Value<'_>) -> Result<i64, Fault> {
    value
        .as_integer()
        .ok_or_else(|| invalid(queue, name, format_args!("\"expected integer, got {}\"", value.type_name())))
}

fn text<'a>(queue: QueueText<'_>, name: &str, value: Value<'a>) -> Result<&'a [u8], Fault> {
    match value {
        Value::LongStr(text) => Ok(text),
        other => Err(invalid(queue, name, format_args!("{{unacceptable_type,{}}}", other.type_name()))),
    }
}

fn invalid(queue: QueueText<'_>, name: &str, why: fmt::Arguments<'_>) -> Fault {
    Fault::new(ReplyCode::PreconditionFailed, format_args!("invalid arg '{name}' for {queue}: {why}"))
}

fn wrong_type(queue: QueueText<'_>, name: &str, is_quorum: bool) -> Fault {
    let kind = if is_quorum { "quorum" } else { "classic" };
    Fault::new(
        ReplyCode::PreconditionFailed,
        format_args!("invalid arg '{name}' for {queue} of queue type rabbit_{kind}_queue"),
    )
}
