//! Formats queues, exchanges, values and Erlang terms as RabbitMQ's reply texts show them, and builds common
//! faults.
//!
//! Clients and operators match on these texts, so they are RabbitMQ's byte for byte. A peer's own bytes are
//! shown as far as they are text.

use core::fmt;

use leveret_amqp::field::Value;
use leveret_core::error::{Fault, ReplyCode};
use leveret_core::pending_writes::{Mode, PendingWrites};

use super::access::OperatorFault;

/// A queue's name and virtual host as reply texts show them.
#[derive(Clone, Copy)]
pub(crate) struct QueueText<'a> {
    pub(crate) name: &'a str,
    pub(crate) vhost: &'a str,
}

impl fmt::Display for QueueText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "queue '{}' in vhost '{}'", self.name, self.vhost)
    }
}

/// An exchange's name and virtual host as reply texts show them.
pub(crate) struct ExchangeText<'a> {
    pub(crate) name: &'a str,
    pub(crate) vhost: &'a str,
}

impl fmt::Display for ExchangeText<'_> {
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

/// 506: the pool that this configuration key sizes is full.
pub(crate) fn out_of(key: &str) -> Fault {
    Fault::new(
        ReplyCode::ResourceError,
        format_args!("this broker has reached its limit: raise {key} in its configuration"),
    )
}

/// 506: the log has no space.
pub(crate) fn out_of_disk(pending_writes: &PendingWrites) -> Fault {
    if pending_writes.is_file_system_full() {
        return Fault::new(
            ReplyCode::ResourceError,
            format_args!("the file system of this broker's data directory is full: free space there"),
        );
    }
    out_of(pending_writes.exhausted_limit_key())
}

/// 506: the storage cannot be written.
pub(crate) fn unwritable() -> Fault {
    Fault::new(
        ReplyCode::ResourceError,
        format_args!("the store cannot be written, so nothing durable can be declared or deleted now"),
    )
}

/// 506: the storage cannot be written, for a publisher of a persistent message.
pub(crate) fn unwritable_for_messages() -> Fault {
    Fault::new(
        ReplyCode::ResourceError,
        format_args!("the store cannot be written, so persistent messages are not accepted now"),
    )
}

/// 506: a publisher waited too long for space in the log, while it held deliveries or had an open transaction
/// itself.
pub(crate) fn waited_too_long(pending_writes: &PendingWrites) -> Fault {
    let raise = if pending_writes.is_file_system_full() { "free space on the file system" } else { "raise" };
    let key = if pending_writes.is_file_system_full() { "" } else { pending_writes.exhausted_limit_key() };
    Fault::new(
        ReplyCode::ResourceError,
        format_args!(
            "the disk is full, and nothing was freed for 60 s while this connection held unacknowledged \
             deliveries, or one of several open transactions: acknowledge or commit earlier, or {raise} {key}"
        ),
    )
}

/// Returns the version for something that is about to be declared; 0 if it is not durable, or not stored.
///
/// # Errors
/// The storage cannot be written, or has no space, so nothing durable can be declared.
pub(crate) fn version_for(pending_writes: &mut PendingWrites, durable: bool) -> Result<u64, Fault> {
    match pending_writes.mode() {
        Mode::On if durable && !pending_writes.can_define() => Err(out_of_disk(pending_writes)),
        Mode::On if durable => Ok(pending_writes.next_version()),
        Mode::Unwritable if durable => Err(unwritable()),
        Mode::On | Mode::Off | Mode::Unwritable => Ok(0),
    }
}

/// Checks whether something durable can be deleted: that needs no space, but writable storage.
///
/// # Errors
/// The storage cannot be written.
pub(crate) fn check_deletable(pending_writes: &PendingWrites, is_stored: bool) -> Result<(), Fault> {
    if is_stored && pending_writes.mode() == Mode::Unwritable { Err(unwritable()) } else { Ok(()) }
}

/// Checks whether the storage accepts an operator's change.
///
/// On a full disk it does, because an operator must be able to lock out the client that filled it. The change
/// takes a block of the space reserved for settlements.
pub(crate) fn check_changeable(pending_writes: &PendingWrites) -> Result<(), OperatorFault> {
    match pending_writes.mode() {
        Mode::Unwritable => Err(OperatorFault::Store(unwritable().text.into())),
        Mode::On | Mode::Off => Ok(()),
    }
}

/// Checks whether the storage has space for a further declaration.
pub(crate) fn check_room(pending_writes: &PendingWrites) -> Result<(), OperatorFault> {
    match pending_writes.mode() == Mode::On && !pending_writes.can_define() {
        false => Ok(()),
        true if pending_writes.is_file_system_full() => Err(OperatorFault::FileSystemFull),
        true => Err(OperatorFault::NoCapacity(pending_writes.exhausted_limit_key())),
    }
}
