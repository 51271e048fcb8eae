//! The faults for missing room, and for a store that cannot be written: in the same words wherever they
//! occur.
//!
//! Always true: the text names the one thing to do, by the key of the configuration where there is one.

use leveret_core::error::{Fault, ReplyCode};
use leveret_core::journal::{Journal, Mode};

use super::access::OperatorFault;

/// 506: the pool that this configuration key sizes is full.
pub(crate) fn out_of(key: &str) -> Fault {
    Fault::new(
        ReplyCode::ResourceError,
        format_args!("this broker has no more room for that: raise {key} in its configuration"),
    )
}

/// 506: the log has no room.
pub(crate) fn out_of_disk(journal: &Journal) -> Fault {
    if journal.is_file_system_full() {
        return Fault::new(
            ReplyCode::ResourceError,
            format_args!("the file system of this broker's data directory is full: make room there"),
        );
    }
    out_of(journal.room_key())
}

/// 506: the store cannot be written.
pub(crate) fn unwritable() -> Fault {
    Fault::new(
        ReplyCode::ResourceError,
        format_args!("the store cannot be written, so nothing durable can be declared or deleted now"),
    )
}

/// 506: the store cannot be written, for a publisher of something persistent.
pub(crate) fn unwritable_for_messages() -> Fault {
    Fault::new(
        ReplyCode::ResourceError,
        format_args!("the store cannot be written, so nothing persistent is taken now"),
    )
}

/// 506: a publisher waited in vain for room in the log, while it held deliveries or had an open transaction itself.
pub(crate) fn waits_behind_itself(journal: &Journal) -> Fault {
    let raise = if journal.is_file_system_full() { "make room on the file system" } else { "raise" };
    let key = if journal.is_file_system_full() { "" } else { journal.room_key() };
    Fault::new(
        ReplyCode::ResourceError,
        format_args!(
            "the disk is full, and nothing was freed for 60 s while this connection held unacknowledged \
             deliveries, or one of several open transactions: acknowledge or commit earlier, or {raise} {key}"
        ),
    )
}

/// The version for something that is about to be declared; 0 if it is not durable, or not stored.
///
/// # Errors
/// The store cannot be written, or has no room, so nothing durable can be declared.
pub(crate) fn version_for(journal: &mut Journal, durable: bool) -> Result<u64, Fault> {
    match journal.mode() {
        Mode::On if durable && !journal.has_room_to_define() => Err(out_of_disk(journal)),
        Mode::On if durable => Ok(journal.next_version()),
        Mode::Unwritable if durable => Err(unwritable()),
        Mode::On | Mode::Off | Mode::Unwritable => Ok(0),
    }
}

/// Whether something durable can be deleted: that needs no room, but a store that can be written.
///
/// # Errors
/// The store cannot be written.
pub(crate) fn check_deletable(journal: &Journal, is_stored: bool) -> Result<(), Fault> {
    if is_stored && journal.mode() == Mode::Unwritable { Err(unwritable()) } else { Ok(()) }
}

/// Whether the store takes an operator's change. On a full disk it does: an operator must be able to keep out
/// whoever filled it; the change takes a block of the room kept for settlements.
pub(crate) fn check_changeable(journal: &Journal) -> Result<(), OperatorFault> {
    match journal.mode() {
        Mode::Unwritable => Err(OperatorFault::Store(unwritable().text.into())),
        Mode::On | Mode::Off => Ok(()),
    }
}

/// Whether the store has room for something more to be declared.
pub(crate) fn check_room(journal: &Journal) -> Result<(), OperatorFault> {
    match journal.mode() == Mode::On && !journal.has_room_to_define() {
        false => Ok(()),
        true if journal.is_file_system_full() => Err(OperatorFault::FileSystemFull),
        true => Err(OperatorFault::NoRoom(journal.room_key())),
    }
}
