//! Checks whether the storage can carry out an operator's change.

use leveret_storage::faults::storage_unwritable_fault;
use leveret_storage::{Mode, PendingWrites};

use super::access::OperatorFault;

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
