//! Arguments of `queue.declare`: the checks of their values, and the comparison of a declaration with an
//! existing queue.
//!
//! The checks and the error texts are those of RabbitMQ 3.10. Arguments that RabbitMQ does not know are
//! stored, but neither checked nor compared.

use core::fmt;

use leveret_amqp::field::{Table, Value};
use leveret_amqp::props::Properties;
use leveret_core::error::{Fault, ReplyCode};
use leveret_core::mem::{MessageFlags, MessageId, Messages};

use super::policy::EffectivePolicy;
use leveret_amqp::reply_text::{Lossy, QueueText, equivalent, inequivalent};

/// What happens when a message arrives in a full queue (`x-overflow`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Overflow {
    /// `drop-head`: the oldest message is dropped.
    #[default]
    DropHead,
    /// `reject-publish`: the publisher gets `basic.nack`.
    RejectPublish,
    /// `reject-publish-dlx`: the publisher gets `basic.nack`, and the refused message is dead-lettered.
    RejectPublishDlx,
}

/// The settings of a queue, from its arguments and policies. A limit that is not set has the maximum value of
/// its type.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct QueueSettings {
    pub(crate) max_length: u64,
    pub(crate) max_length_bytes: u64,
    /// `max_length` or `max_length_bytes` is set.
    pub(crate) limits_length: bool,
    pub(crate) overflow: Overflow,
    /// The queue has a dead-letter exchange.
    pub(crate) dead_letters: bool,
    /// Time to live of messages in the queue, in milliseconds.
    pub(crate) message_ttl_ms: u64,
    /// Messages of the queue may expire: the queue has a time to live, or a message with an expiration has
    /// arrived.
    pub(crate) may_expire: bool,
    /// The queue is deleted after it was unused for this time, in milliseconds.
    pub(crate) expires_ms: u64,
    /// A message requeued more often than this is dropped or dead-lettered.
    pub(crate) delivery_limit: u32,
    /// A quorum queue: deliveries have the header `x-delivery-count`, and all messages are persistent, whatever their
    /// `delivery_mode`, as in RabbitMQ.
    pub(crate) is_quorum: bool,
    /// The queue has a single active consumer.
    pub(crate) single_active: bool,
    /// The highest priority that the queue distinguishes.
    pub(crate) max_priority: u8,
    /// The consumer timeout in milliseconds; 0 is unlimited, and `u32::MAX` stands for the configured one.
    pub(crate) consumer_timeout_ms: u32,
}

impl QueueSettings {
    pub(crate) fn of(effective: &EffectivePolicy<'_>) -> Self {
        let overflow = effective.value("x-overflow").and_then(|value| value.as_bytes());
        let is_quorum = is_quorum(effective.arguments());
        let delivery_limit = if is_quorum { effective.limit("x-delivery-limit") } else { u64::MAX };
        let message_ttl_ms = effective.limit("x-message-ttl");
        let (max_length, max_length_bytes) =
            (effective.limit("x-max-length"), effective.limit("x-max-length-bytes"));
        Self {
            max_length,
            max_length_bytes,
            limits_length: max_length != u64::MAX || max_length_bytes != u64::MAX,
            overflow: match overflow {
                Some(b"reject-publish") => Overflow::RejectPublish,
                Some(b"reject-publish-dlx") => Overflow::RejectPublishDlx,
                _ => Overflow::DropHead,
            },
            message_ttl_ms,
            may_expire: message_ttl_ms != u64::MAX,
            expires_ms: effective.limit("x-expires"),
            dead_letters: effective.value("x-dead-letter-exchange").is_some(),
            delivery_limit: u32::try_from(delivery_limit).unwrap_or(u32::MAX),
            is_quorum,
            single_active: effective.arguments().get("x-single-active-consumer") == Some(Value::Bool(true)),
            max_priority: max_priority(effective.arguments()),
            consumer_timeout_ms: consumer_timeout_ms(effective),
        }
    }

    /// Returns the settings for a level of a queue with these settings. A level does not expire separately
    /// from its queue.
    pub(crate) const fn of_level(self) -> Self {
        Self { expires_ms: u64::MAX, ..self }
    }

    /// Returns whether the queue is deleted after it was unused for some time.
    pub(crate) const fn expires(&self) -> bool {
        self.expires_ms != u64::MAX
    }
}

/// Returns the consumer timeout in milliseconds: the shorter of argument and policy. A client can therefore
/// not exceed the policy with an argument. 0 is unlimited, and `u32::MAX` stands for the configured timeout.
///
/// RabbitMQ 3.10 does not know this argument and accepts any value. So Leveret ignores a value that is not a
/// time, instead of refusing it.
fn consumer_timeout_ms(effective: &EffectivePolicy<'_>) -> u32 {
    let timeout = effective.time("x-consumer-timeout");
    timeout.map_or(u32::MAX, |ms| u32::try_from(ms).unwrap_or(u32::MAX).min(u32::MAX - 1))
}

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

/// The longest time that RabbitMQ allows in an argument, in milliseconds: 100 years.
pub(crate) const MILLISECONDS_MAX: i64 = 100 * 365 * 24 * 60 * 60 * 1000;

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

/// Returns the highest priority of a queue with these arguments.
pub(crate) fn max_priority(arguments: Table<'_>) -> u8 {
    let value = arguments.get("x-max-priority").and_then(|value| value.as_integer());
    value.and_then(|number| u8::try_from(number).ok()).unwrap_or(0)
}

pub(crate) fn is_quorum(arguments: Table<'_>) -> bool {
    arguments.get("x-queue-type").and_then(|value| value.as_bytes()) == Some(b"quorum")
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

/// Returns the property expiration in milliseconds; `None` if the message has none. On the wire it is a
/// string with a decimal number. The error texts are RabbitMQ's.
#[inline(never)]
pub(crate) fn expiration_ms(properties: &Properties<'_>) -> Result<Option<u64>, Fault> {
    let Some(text) = properties.expiration() else { return Ok(None) };
    let fault = |why: core::fmt::Arguments<'_>| {
        let explanation = format_args!("invalid expiration '{}': {why}", Lossy(text));
        Err(Fault::new(ReplyCode::PreconditionFailed, explanation))
    };
    let (negative, digits) = match text {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        _ => (false, text),
    };
    let count = digits.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (digits, rest) = digits.split_at(count);
    let number = digits
        .iter()
        .fold(0_u64, |number, digit| number.saturating_mul(10).saturating_add(u64::from(digit - b'0')));
    match () {
        () if digits.is_empty() => fault(format_args!("no_integer")),
        () if !rest.is_empty() => fault(format_args!("{{leftover_string,\"{}\"}}", Lossy(rest))),
        () if negative && number > 0 => fault(format_args!("{{value_negative,{}}}", Lossy(text))),
        () if number > MILLISECONDS_MAX as u64 => fault(format_args!("{{value_too_large,{}}}", Lossy(text))),
        () => Ok(Some(number)),
    }
}

/// Returns the flags for a copy of `message` that has these properties. Persistence is taken from the
/// message, the rest from the properties.
pub(crate) fn copy_flags(
    messages: &Messages,
    message: MessageId,
    properties: &Properties<'_>,
) -> MessageFlags {
    let flags = match messages.flags(message).has(MessageFlags::PERSISTENT) {
        true => MessageFlags::PERSISTENT,
        false => MessageFlags::NONE,
    };
    let flags = if properties.is_blind() { flags.with(MessageFlags::HAS_BCC) } else { flags };
    let is_exactly_once = properties.is_published_exactly_once();
    let flags = if is_exactly_once { flags.with(MessageFlags::EXACTLY_ONCE) } else { flags };
    flags.with(expiry_flags(expiration_ms(properties).ok().flatten()))
}

/// Returns the flags of a message that expires after this many milliseconds, or, without a number, does not expire.
pub(crate) const fn expiry_flags(expiration_ms: Option<u64>) -> MessageFlags {
    match expiration_ms {
        None => MessageFlags::NONE,
        Some(0) => MessageFlags::EXPIRES.with(MessageFlags::DUE_AT_ONCE),
        Some(_) => MessageFlags::EXPIRES,
    }
}
