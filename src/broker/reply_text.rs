//! Formats queues, exchanges, values and Erlang terms as in RabbitMQ's reply texts, and builds faults that
//! several files use.
//!
//! Clients and operators match on these texts, so they are RabbitMQ's byte for byte. Of bytes that a peer
//! sent, those that are not UTF-8 are left out.

use core::fmt;

use leveret_amqp::field::Value;
use leveret_core::error::{Fault, ReplyCode};
use leveret_storage::{Mode, PendingWrites};

use super::access::OperatorFault;

/// A queue's name and virtual host, formatted as in reply texts.
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

/// An exchange's name and virtual host, formatted as in reply texts.
pub(crate) struct ExchangeText<'a> {
    pub(crate) name: &'a str,
    pub(crate) vhost: &'a str,
}

impl fmt::Display for ExchangeText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "exchange '{}' in vhost '{}'", self.name, self.vhost)
    }
}

/// A value of an argument in a reply text about a mismatch. It is formatted without its type when both the
/// request and the existing object have the argument, and with its type when only one has it.
pub(crate) struct Shown<'a> {
    pub(crate) value: Option<Value<'a>>,
    /// Whether to leave out the type.
    pub(crate) is_bare: bool,
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

/// Text that a peer sent. Bytes that are not UTF-8 are left out.
pub(crate) struct Lossy<'a>(pub(crate) &'a [u8]);

impl fmt::Display for Lossy<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            f.write_str(chunk.valid())?;
        }
        Ok(())
    }
}

/// Returns 506: the limit of this configuration key is reached.
pub(crate) fn out_of(key: &str) -> Fault {
    Fault::new(
        ReplyCode::ResourceError,
        format_args!("this broker has reached its limit: raise {key} in its configuration"),
    )
}

/// Returns 506: the memory has no space for this.
pub(crate) fn no_memory_for(what: &str) -> Fault {
    Fault::new(
        ReplyCode::ResourceError,
        format_args!(
            "this broker has no memory for {what}: delete what is not needed, or raise memory_limit"
        ),
    )
}

/// Returns 506: the log has no space.
pub(crate) fn out_of_disk(pending_writes: &PendingWrites) -> Fault {
    if pending_writes.is_file_system_full() {
        return Fault::new(
            ReplyCode::ResourceError,
            format_args!("the file system of this broker's data directory is full: free space there"),
        );
    }
    out_of(pending_writes.exhausted_limit_key())
}

/// Returns 506: the storage cannot be written.
pub(crate) fn storage_unwritable_fault() -> Fault {
    Fault::new(
        ReplyCode::ResourceError,
        format_args!("the store cannot be written, so nothing durable can be declared or deleted now"),
    )
}

/// Returns 506 for the publisher of a persistent message: the storage cannot be written.
pub(crate) fn unwritable_for_messages() -> Fault {
    Fault::new(
        ReplyCode::ResourceError,
        format_args!("the store cannot be written, so persistent messages are not accepted now"),
    )
}

/// Returns 506 for a publisher that waited too long for space in the log, while its own connection had
/// unsettled deliveries or an open transaction.
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

/// Returns 506: the publisher has unsettled deliveries or an open transaction, and no message has left the queue for
/// 60 s.
pub(crate) fn waited_too_long_for_queue(queue: &str) -> Fault {
    Fault::new(
        ReplyCode::ResourceError,
        format_args!(
            "a queue uses its whole share of the memory, and no message left it for 60 s while this connection held \
             deliveries or a transaction: raise memory_limit, acknowledge or commit earlier, or consume queue '{queue}'"
        ),
    )
}

/// Returns the version for an object that will be declared; 0 if the object is not durable, or the broker
/// stores nothing.
///
/// # Errors
/// The storage cannot be written, or has no space, so nothing durable can be declared.
pub(crate) fn version_for(pending_writes: &mut PendingWrites, durable: bool) -> Result<u64, Fault> {
    match pending_writes.mode() {
        Mode::On if durable && !pending_writes.can_define() => Err(out_of_disk(pending_writes)),
        Mode::On if durable => Ok(pending_writes.next_version()),
        Mode::Unwritable if durable => Err(storage_unwritable_fault()),
        Mode::On | Mode::Off | Mode::Unwritable => Ok(0),
    }
}

/// Checks whether an object can be deleted. `is_stored` is whether the log has it: its deletion needs no free
/// space, but storage that can be written.
///
/// # Errors
/// The storage cannot be written.
pub(crate) fn check_deletable(pending_writes: &PendingWrites, is_stored: bool) -> Result<(), Fault> {
    if is_stored && pending_writes.mode() == Mode::Unwritable {
        Err(storage_unwritable_fault())
    } else {
        Ok(())
    }
}

/// Checks whether an operator's change can be stored.
///
/// The change is accepted even when the disk is full, because an operator must be able to lock out the client
/// that filled the disk. The change then takes a block of the space that is reserved for settlements.
pub(crate) fn check_changeable(pending_writes: &PendingWrites) -> Result<(), OperatorFault> {
    match pending_writes.mode() {
        Mode::Unwritable => Err(OperatorFault::Store(storage_unwritable_fault().text.into())),
        Mode::On | Mode::Off => Ok(()),
    }
}

/// Checks whether the storage has space for a further definition.
pub(crate) fn check_definition_space(pending_writes: &PendingWrites) -> Result<(), OperatorFault> {
    match pending_writes.mode() == Mode::On && !pending_writes.can_define() {
        false => Ok(()),
        true if pending_writes.is_file_system_full() => Err(OperatorFault::FileSystemFull),
        true => Err(OperatorFault::LimitReached(pending_writes.exhausted_limit_key())),
    }
}
