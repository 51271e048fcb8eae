//! Properties of messages that the broker answers for.
//!
//! Always true: the texts are RabbitMQ's; what a copy is known for follows from its own properties.

use leveret_amqp::props::Properties;
use leveret_core::error::{Fault, ReplyCode};
use leveret_core::mem::{MessageFlags, MessageId, Messages};

use super::arguments::MILLISECONDS_MAX;
use super::words::Lossy;

/// The expiration property: a decimal number of milliseconds in a string.
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

/// The flags of a message's copy with these properties.
pub(crate) fn copy_flags(
    messages: &Messages,
    message: MessageId,
    properties: &Properties<'_>,
) -> MessageFlags {
    let flags = match messages.flags(message).has(MessageFlags::PERSISTENT) {
        true => MessageFlags::PERSISTENT,
        false => MessageFlags::NONE,
    };
    let flags = if properties.is_blind() { flags.with(MessageFlags::BLIND) } else { flags };
    match expiration_ms(properties) {
        Ok(Some(0)) => flags.with(MessageFlags::EXPIRES).with(MessageFlags::DUE_AT_ONCE),
        Ok(Some(_)) => flags.with(MessageFlags::EXPIRES),
        Ok(None) | Err(_) => flags,
    }
}
