//! Why a change by an operator is refused, and the checks that all changes share.

use core::fmt;

use leveret_core::mem::NAME_BYTES_MAX;
use leveret_storage::faults::storage_unwritable_fault;
use leveret_storage::{Mode, PendingWrites};

/// Why a change by an operator is refused.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum OperatorFault {
    /// There is no such virtual host.
    NoSuchVhost(String),
    /// There is no such user.
    NoSuchUser(String),
    /// A virtual host of this name is still being deleted.
    BeingDeleted(String),
    /// The virtual host of this name is protected from deletion.
    Protected(String),
    /// A name is not valid: the kind of object, and the reason.
    BadName(&'static str, &'static str),
    /// A pattern of a permission is not valid.
    BadPattern {
        /// The permission that the pattern is for.
        right: &'static str,
        /// Why the pattern is not valid.
        why: String,
    },
    /// A policy or a parameter is not valid: the text that RabbitMQ has for it.
    Invalid(String),
    /// There is no policy or parameter of that name.
    NoSuchParameter,
    /// The limit of this configuration key is reached.
    LimitReached(&'static str),
    /// The memory has no space for this.
    NoCapacity(&'static str),
    /// There are as many bridges and shovels as possible, or shovels are switched off.
    TooManyShovels,
    /// The file system is full, although the log is within `disk_limit`.
    FileSystemFull,
    /// The storage has no space or cannot be written: the text for the operator.
    Store(String),
}

impl fmt::Display for OperatorFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchVhost(name) => write!(f, "Virtual host '{name}' does not exist"),
            Self::NoSuchUser(name) => write!(f, "User '{name}' does not exist"),
            Self::BeingDeleted(name) => {
                write!(f, "Virtual host '{name}' is still being deleted; try again in a moment")
            }
            Self::Protected(name) => {
                write!(f, "Refusing to delete virtual host '{name}' because it is protected from deletion")
            }
            Self::BadName(what, why) => write!(f, "the name of a {what} must {why}"),
            Self::BadPattern { right, why } => write!(f, "the pattern to {right} is invalid: {why}"),
            Self::Invalid(why) => write!(f, "Validation failed\n\n{why}\n"),
            Self::NoSuchParameter => f.write_str("Parameter does not exist"),
            Self::LimitReached(key) => {
                write!(f, "the limit is reached: raise {key} in the configuration and restart the broker")
            }
            Self::NoCapacity(what) => write!(
                f,
                "there is no memory for {what}: delete what is not needed, or raise memory_limit in the configuration and \
                 restart the broker"
            ),
            Self::TooManyShovels => f.write_str(
                "there are as many bridges and shovels as possible (32; none with shovels = false in the configuration): \
                 delete one",
            ),
            Self::FileSystemFull => {
                f.write_str("the file system of the broker's data directory is full: free space there")
            }
            Self::Store(why) => f.write_str(why),
        }
    }
}

impl core::error::Error for OperatorFault {}

/// Checks the length of a name. `what` is the kind of the object, for the error.
///
/// # Errors
/// The name is empty, or too long.
pub(crate) fn check_name(what: &'static str, name: &str) -> Result<(), OperatorFault> {
    match name {
        "" => Err(OperatorFault::BadName(what, "not be empty")),
        _ if name.len() > NAME_BYTES_MAX => Err(OperatorFault::BadName(what, "have at most 255 bytes")),
        _ => Ok(()),
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
