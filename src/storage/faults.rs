//! Checks whether the storage can carry out a client's request, the faults if it cannot, and versions for new objects.

use leveret_core::error::{Fault, ReplyCode, out_of};

use crate::{Mode, PendingWrites};

/// Returns 506: the log has no space.
pub fn out_of_disk(pending_writes: &PendingWrites) -> Fault {
    if pending_writes.is_file_system_full() {
        return Fault::new(
            ReplyCode::ResourceError,
            format_args!("the file system of this broker's data directory is full: free space there"),
        );
    }
    out_of(pending_writes.exhausted_limit_key())
}

/// Returns 506: the storage cannot be written.
pub fn storage_unwritable_fault() -> Fault {
    Fault::new(
        ReplyCode::ResourceError,
        format_args!("the store cannot be written, so nothing durable can be declared or deleted now"),
    )
}

/// Returns 506 for the publisher of a persistent message: the storage cannot be written.
pub fn unwritable_for_messages() -> Fault {
    Fault::new(
        ReplyCode::ResourceError,
        format_args!("the store cannot be written, so persistent messages are not accepted now"),
    )
}

/// Returns 506 for a publisher that waited too long for space in the log, while its own connection had
/// unsettled deliveries or an open transaction.
pub fn waited_too_long(pending_writes: &PendingWrites) -> Fault {
    let because = "the disk is full, and nothing was freed for 60 s while this connection held unacknowledged deliveries, or \
                   one of several open transactions: acknowledge or commit earlier, or";
    match pending_writes.is_file_system_full() {
        true => Fault::new(ReplyCode::ResourceError, format_args!("{because} free space on the file system")),
        false => {
            let key = pending_writes.exhausted_limit_key();
            Fault::new(ReplyCode::ResourceError, format_args!("{because} raise {key}"))
        }
    }
}

/// Returns the version for an object that will be declared; 0 if the object is not durable, or the broker
/// stores nothing.
///
/// # Errors
/// The storage cannot be written, or has no space, so nothing durable can be declared.
pub fn version_for(pending_writes: &mut PendingWrites, durable: bool) -> Result<u64, Fault> {
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
pub fn check_deletable(pending_writes: &PendingWrites, is_stored: bool) -> Result<(), Fault> {
    if is_stored && pending_writes.mode() == Mode::Unwritable {
        Err(storage_unwritable_fault())
    } else {
        Ok(())
    }
}
