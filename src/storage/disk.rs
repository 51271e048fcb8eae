//! The interface of a disk, small enough to be simulated.
//!
//! A disk is a set of files called slots, numbered from 0. Each helper thread has its own disk object over
//! the same directory, so threads share no state and need no locks.
//!
//! # Invariants
//! - Only [`Disk::sync`] makes bytes durable, and only [`Disk::sync_directory`] makes files durable.
//! - After a failed call of either kind, nothing is assumed about earlier writes.

use std::io;

/// Returns whether the error means that the file system or the user's quota is full. Such an error is temporary, and
/// no failure of the disk.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// The slots of the two small files `access.a` and `access.b`, which are not part of the log; see `access`.
pub const ACCESS_SLOTS: [u32; 2] = [u32::MAX - 1, u32::MAX];

/// The slot of the file `newest`, which is not part of the log; see `recovery::header_copy`.
pub const NEWEST_SLOT: u32 = u32::MAX - 2;

/// The slot of the file `mending`: a segment whose repair an older version of Leveret did not finish. A start reports
/// this file and does not read it.
pub const REPAIR_SLOT: u32 = u32::MAX - 3;

/// Returns whether a slot belongs to a file beside the log.
pub const fn is_beside_the_log(slot: u32) -> bool {
    slot >= REPAIR_SLOT
}

/// A file of the store that cannot be opened: its inode is damaged, or another object has its name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnopenedFile {
    /// The file's name.
    pub name: String,
    /// The file's slot; `None` if the name is not that of a slot.
    pub slot: Option<u32>,
    /// The error of the operating system.
    pub why: String,
}

/// The files of a store, by slot.
pub trait Disk {
    /// Locks the store for this process, until the disk is dropped.
    ///
    /// # Errors
    /// `WouldBlock` if another process has locked it.
    fn lock(&mut self) -> io::Result<()>;

    /// Returns the files that this disk could not open, each once.
    fn unopened(&self) -> &[UnopenedFile] {
        &[]
    }

    /// Returns all slots of the log, in any order.
    ///
    /// # Errors
    /// The directory cannot be read.
    fn slots(&mut self) -> io::Result<Vec<u32>>;

    /// Creates an empty file for a slot, unless the slot has a file.
    ///
    /// # Errors
    /// The file system refuses.
    fn create(&mut self, slot: u32) -> io::Result<()>;

    /// Reserves `bytes` of the file system for a slot without writing, so that a lack of space is known at
    /// once.
    ///
    /// # Errors
    /// There is not enough space ([`is_full`]); nothing was reserved.
    fn reserve(&mut self, slot: u32, bytes: u64) -> io::Result<()> {
        let _ = (slot, bytes);
        Ok(())
    }

    /// Reads into `bytes` from offset `at` of a slot. Returns the number of bytes, which is smaller than
    /// requested only at the end of the file.
    ///
    /// # Errors
    /// The disk cannot read the bytes.
    fn read(&mut self, slot: u32, at: u64, bytes: &mut [u8]) -> io::Result<usize>;

    /// Writes `bytes` from offset `at` of a slot on.
    ///
    /// # Errors
    /// The disk cannot write all bytes.
    fn write(&mut self, slot: u32, at: u64, bytes: &[u8]) -> io::Result<()>;

    /// Writes zeros. Not a case of [`Disk::write`], because these bytes are counted separately.
    ///
    /// # Errors
    /// The disk cannot write all bytes.
    fn zero(&mut self, slot: u32, at: u64, bytes: u32) -> io::Result<()>;

    /// Makes everything written to a slot durable.
    ///
    /// # Errors
    /// Written bytes may be lost; this is final.
    fn sync(&mut self, slot: u32) -> io::Result<()>;

    /// Deletes a slot's file to free its space. A disk may be unable to delete files.
    ///
    /// # Errors
    /// The file still exists.
    fn remove(&mut self, slot: u32) -> io::Result<()> {
        let _ = slot;
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Makes the slots' files themselves durable.
    ///
    /// # Errors
    /// A file may be lost; this is final.
    fn sync_directory(&mut self) -> io::Result<()>;
}
