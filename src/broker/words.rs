//! Things as RabbitMQ's reply texts show them: queues, exchanges, values, Erlang terms.
//!
//! Clients and the people behind them match on these texts, so they are RabbitMQ's to the letter; a peer's
//! own bytes are shown as far as they are text.

use core::fmt;

use leveret_amqp::field::Value;

/// A queue's name and virtual host as reply texts show them.
#[derive(Clone, Copy)]
pub(crate) struct QueueInWords<'a> {
    pub(crate) name: &'a str,
    pub(crate) vhost: &'a str,
}

impl fmt::Display for QueueInWords<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "queue '{}' in vhost '{}'", self.name, self.vhost)
    }
}

/// An exchange's name and virtual host as reply texts show them.
pub(crate) struct ExchangeInWords<'a> {
    pub(crate) name: &'a str,
    pub(crate) vhost: &'a str,
}

impl fmt::Display for ExchangeInWords<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "exchange '{}' in vhost '{}'", self.name, self.vhost)
    }
}

/// A value in a reply text: bare when both sides have one, with its type when only one has.
pub(crate) struct Shown<'a> {
    pub(crate) value: Option<Value<'a>>,
    pub(crate) bare: bool,
}

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.value {
            None => f.write_str("none"),
            Some(value) if self.bare => write!(f, "'{}'", Plain(value)),
            Some(value) => write!(f, "the value '{}' of type '{}'", Plain(value), value.type_name()),
        }
    }
}

/// A value without its type.
struct Plain<'a>(Value<'a>);

impl fmt::Display for Plain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0, self.0.as_integer()) {
            (_, Some(number)) => write!(f, "{number}"),
            (Value::LongStr(text) | Value::Binary(text), _) => Lossy(text).fmt(f),
            (Value::Bool(truth), _) => write!(f, "{truth}"),
            (Value::Double(number), _) => write!(f, "{number:?}"),
            (Value::Float(number), _) => write!(f, "{number:?}"),
            (Value::Timestamp(seconds), _) => write!(f, "{seconds}"),
            (other, _) => f.write_str(other.type_name()),
        }
    }
}

/// Text as RabbitMQ's `~p` prints a binary.
pub(crate) struct ErlangBinary<'a>(pub(crate) &'a [u8]);

impl fmt::Display for ErlangBinary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.is_empty() {
            true => f.write_str("<<>>"),
            false => write!(f, "<<\"{}\">>", Lossy(self.0)),
        }
    }
}

/// A value as RabbitMQ's `~p` prints it.
pub(crate) struct ErlangTerm<'a>(pub(crate) Value<'a>);

impl fmt::Display for ErlangTerm<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Value::Void => f.write_str("undefined"),
            Value::Binary(text) => ErlangBinary(text).fmt(f),
            other => Plain(other).fmt(f),
        }
    }
}

/// Bytes of a peer's text, shown as far as they are text.
pub(crate) struct Lossy<'a>(pub(crate) &'a [u8]);

impl fmt::Display for Lossy<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            f.write_str(chunk.valid())?;
        }
        Ok(())
    }
}
