//! Whether the store takes a definition.
//!
//! Why it exists: every part that writes definitions asks the same two questions, and says the same when the
//! answer is no.
//!
//! Always true: nothing is written here; without a store everything may be defined.

use crate::error::{Fault, ReplyCode};
use crate::journal::{Journal, Mode};

use super::access::OperatorFault;

/// What is said of a store that cannot be written.
pub(super) fn unwritable() -> Fault {
    Fault::new(
        ReplyCode::ResourceError,
        format_args!("the store cannot be written, so nothing durable can be declared or deleted now"),
    )
}

/// Whether the store takes what an operator changes. On a full disk it does: somebody has filled it, and
/// whoever is to keep him out must be able to say so; that takes a block, of the room that settlements
/// have for themselves.
pub(super) fn check_changeable(journal: &Journal) -> Result<(), OperatorFault> {
    match journal.mode() {
        Mode::Unwritable => Err(OperatorFault::Store(unwritable().text.into())),
        Mode::On | Mode::Off => Ok(()),
    }
}

/// Whether the store has room for something more that is to exist.
pub(super) fn check_room(journal: &Journal) -> Result<(), OperatorFault> {
    match journal.mode() == Mode::On && !journal.has_room_to_define() {
        false => Ok(()),
        true if journal.is_file_system_full() => Err(OperatorFault::FileSystemFull),
        true => Err(OperatorFault::NoRoom(journal.room_key())),
    }
}
