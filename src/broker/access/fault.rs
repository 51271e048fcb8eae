//! Why an operator's change cannot be made, in words.

use core::fmt;

use leveret_core::command::NAME_BYTES_MAX;

/// Why an operator's change is not made.
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
    /// A name is not valid: what it names, and why.
    BadName(&'static str, &'static str),
    /// A pattern of a permission is not valid.
    BadPattern {
        /// The right that the pattern is for.
        right: &'static str,
        /// Why the pattern is not valid.
        why: String,
    },
    /// A policy or a parameter is not valid, in RabbitMQ's words.
    Invalid(String),
    /// There is no policy or parameter of that name.
    NoSuchParameter,
    /// A limit is reached: the configuration key to raise.
    NoRoom(&'static str),
    /// The file system has no room, although the log is within `disk_limit`.
    FileSystemFull,
    /// The store has no room, or cannot be written.
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
            Self::NoRoom(key) => {
                write!(
                    f,
                    "there is no more room for that: raise {key} in the configuration and restart the broker"
                )
            }
            Self::FileSystemFull => {
                f.write_str("the file system of the broker's data directory is full: make room there")
            }
            Self::Store(why) => f.write_str(why),
        }
    }
}

impl core::error::Error for OperatorFault {}

/// Checks the name of a thing of this kind.
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
