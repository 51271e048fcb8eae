//! The exchange type and the header of delayed messages, as in RabbitMQ's plug-in `rabbitmq_delayed_message_exchange`.

use crate::field::{Table, Value};

/// The type of delayed exchanges. They keep each message for the delay in its header, and then route it.
pub const DELAYED: &str = "x-delayed-message";

/// The longest delay in milliseconds: a message with a longer one is not delayed.
const DELAY_MAX_MS: i64 = u32::MAX as i64;

/// Returns the delay that these headers request, in milliseconds; 0 for none.
///
/// As in RabbitMQ's delayed message exchange, text is parsed as an integer, and the fraction of a float or a decimal is cut
/// off. Other text means no delay here; RabbitMQ closes the channel.
pub fn delay_ms(headers: Table<'_>) -> u64 {
    let delay = match headers.get("x-delay") {
        None => return 0,
        Some(Value::LongStr(text)) => core::str::from_utf8(text).ok().and_then(|text| text.parse().ok()),
        Some(Value::Float(number)) => Some(f64::from(number) as i64),
        Some(Value::Double(number)) => Some(number as i64),
        Some(Value::Decimal { scale, value }) => {
            Some(10_i64.checked_pow(scale.into()).map_or(0, |tens| i64::from(value) / tens))
        }
        Some(value) => value.as_integer(),
    };
    delay.filter(|ms| (1..=DELAY_MAX_MS).contains(ms)).map_or(0, |ms| ms as u64)
}
