//! Parts of reply texts: queues, exchanges, values and Erlang terms as RabbitMQ formats them; and the comparison of
//! arguments of declarations. The sentence around them is in the code that finds the error: that a queue or an exchange does
//! not exist, for example, in the packages of the broker.
//!
//! Clients and operators match on these texts, so they are RabbitMQ's byte for byte. Of bytes that a peer
//! sent, those that are not UTF-8 are left out.

use core::fmt;

use leveret_core::error::{Fault, ReplyCode};

use crate::field::Value;

/// A queue's name and virtual host, formatted as in reply texts.
#[derive(Clone, Copy)]
pub struct QueueText<'a> {
    /// Name of the queue.
    pub name: &'a str,
    /// Name of its virtual host.
    pub vhost: &'a str,
}

impl fmt::Display for QueueText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "queue '{}' in vhost '{}'", self.name, self.vhost)
    }
}

/// An exchange's name and virtual host, formatted as in reply texts.
pub struct ExchangeText<'a> {
    /// Name of the exchange.
    pub name: &'a str,
    /// Name of its virtual host.
    pub vhost: &'a str,
}

impl fmt::Display for ExchangeText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "exchange '{}' in vhost '{}'", self.name, self.vhost)
    }
}

/// A value of an argument in a reply text about a mismatch. It is formatted without its type when both the
/// request and the existing object have the argument, and with its type when only one has it.
struct Shown<'a> {
    /// `None` if the argument is missing.
    value: Option<Value<'a>>,
    /// Whether to leave out the type.
    is_bare: bool,
}

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.value {
            None => f.write_str("none"),
            Some(value) if self.is_bare => write!(f, "'{}'", Plain(value)),
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
pub struct ErlangBinary<'a>(pub &'a [u8]);

impl fmt::Display for ErlangBinary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.is_empty() {
            true => f.write_str("<<>>"),
            false => write!(f, "<<\"{}\">>", Lossy(self.0)),
        }
    }
}

/// A value as RabbitMQ's `~p` prints it.
pub struct ErlangTerm<'a>(pub Value<'a>);

impl fmt::Display for ErlangTerm<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Value::Void => f.write_str("undefined"),
            Value::Binary(text) => ErlangBinary(text).fmt(f),
            other => Plain(other).fmt(f),
        }
    }
}

/// Text that a peer sent. Bytes that are not UTF-8 are left out.
pub struct Lossy<'a>(pub &'a [u8]);

impl fmt::Display for Lossy<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            f.write_str(chunk.valid())?;
        }
        Ok(())
    }
}

/// Returns whether two values are equivalent. Integers are compared by value, whatever their width.
pub fn equivalent(one: Option<Value<'_>>, two: Option<Value<'_>>) -> bool {
    match (one, two) {
        (None, None) => true,
        (Some(one), Some(two)) => match (one.as_integer(), two.as_integer()) {
            (Some(one), Some(two)) => one == two,
            (None, None) => one == two,
            _ => false,
        },
        _ => false,
    }
}

/// Returns the fault with code 406 for an argument that differs.
pub fn inequivalent(
    name: &str,
    thing: &dyn fmt::Display,
    received: Option<Value<'_>>,
    current: Option<Value<'_>>,
) -> Fault {
    let both = received.is_some() && current.is_some();
    let (received, current) =
        (Shown { value: received, is_bare: both }, Shown { value: current, is_bare: both });
    Fault::new(
        ReplyCode::PreconditionFailed,
        format_args!("inequivalent arg '{name}' for {thing}: received {received} but current is {current}"),
    )
}

/// Returns the fault with code 406 for a flag that differs.
pub fn inequivalent_flag(
    name: &str,
    thing: &dyn fmt::Display,
    received: &dyn fmt::Display,
    current: &dyn fmt::Display,
) -> Fault {
    Fault::new(
        ReplyCode::PreconditionFailed,
        format_args!(
            "inequivalent arg '{name}' for {thing}: received '{received}' but current is '{current}'"
        ),
    )
}
