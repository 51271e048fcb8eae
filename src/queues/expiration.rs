//! The message property `expiration`, and the flags of a message that follow from its properties.

use leveret_amqp::props::Properties;
use leveret_amqp::reply_text::Lossy;
use leveret_core::error::{Fault, ReplyCode};
use leveret_core::mem::{MessageFlags, MessageId, Messages};

/// The longest time that RabbitMQ allows in an argument, in milliseconds: 100 years.
pub const MILLISECONDS_MAX: i64 = 100 * 365 * 24 * 60 * 60 * 1000;

/// Returns the property expiration in milliseconds; `None` if the message has none. On the wire it is a
/// string with a decimal number. The error texts are RabbitMQ's.
#[inline(never)]
pub fn expiration_ms(properties: &Properties<'_>) -> Result<Option<u64>, Fault> {
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
pub fn copy_flags(messages: &Messages, message: MessageId, properties: &Properties<'_>) -> MessageFlags {
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
pub const fn expiry_flags(expiration_ms: Option<u64>) -> MessageFlags {
    match expiration_ms {
        None => MessageFlags::NONE,
        Some(0) => MessageFlags::EXPIRES.with(MessageFlags::DUE_AT_ONCE),
        Some(_) => MessageFlags::EXPIRES,
    }
}
