//! What the store asks of a disk: a handful of calls, so that one can be simulated.
//!
//! A disk is a set of files called slots, numbered from 0. Each helper thread has a disk of its own over the
//! same directory, so nothing is shared and nothing is locked between threads.
//!
//! Always true: only [`Disk::sync`] makes bytes durable, and only [`Disk::sync_directory`] makes files
//! durable; after a failed call of either kind nothing is assumed about what went before it.

use std::io;

/// Whether the file system, or somebody's share of it, has no room. That says nothing against the disk, and
/// it passes.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// The slots of two small files that are not part of the log; see `access_file`.
pub const ACCESS_SLOTS: [u32; 2] = [u32::MAX - 1, u32::MAX];

/// The slot of another one; see `newest_note`.
pub const NEWEST_SLOT: u32 = u32::MAX - 2;

/// The slot of the file `mending`: a segment that a repair by an older version had not finished. It is reported, and not
/// read.
pub const REPAIR_SLOT: u32 = u32::MAX - 3;

/// Whether a slot is that of a file beside the log.
pub const fn is_beside_the_log(slot: u32) -> bool {
    slot >= REPAIR_SLOT
}

/// A file of the store that cannot be opened: its inode is damaged, or something else stands there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unopened {
    /// The file's name.
    pub name: String,
    /// Its slot; `None` for a file that is none.
    pub slot: Option<u32>,
    /// What the system says.
    pub why: String,
}

/// The files of a store, by slot, and the calls that reach them.
pub trait Disk {
    /// Takes the store for this process, until the disk is dropped.
    ///
    /// # Errors
    /// `WouldBlock` when another process has it.
    fn lock(&mut self) -> io::Result<()>;

    /// Files that this disk was asked for and could not open, each once.
    fn unopened(&self) -> &[Unopened] {
        &[]
    }

    /// All slots of the log that there are, in any order.
    ///
    /// # Errors
    /// The directory cannot be read.
    fn slots(&mut self) -> io::Result<Vec<u32>>;

    /// Makes an empty file for a slot, unless it has one.
    ///
    /// # Errors
    /// The file system refuses.
    fn create(&mut self, slot: u32) -> io::Result<()>;

    /// Takes so many bytes of the file system for a slot, so that it is known at once whether there is room;
    /// not a byte is written.
    ///
    /// # Errors
    /// [`is_full`]; nothing was taken.
    fn reserve(&mut self, slot: u32, bytes: u64) -> io::Result<()> {
        let _ = (slot, bytes);
        Ok(())
    }

    /// Reads into `bytes` from byte `at` of a slot; returns how many there were: fewer only at its end.
    ///
    /// # Errors
    /// The disk cannot read them.
    fn read(&mut self, slot: u32, at: u64, bytes: &mut [u8]) -> io::Result<usize>;

    /// Writes `bytes` from byte `at` of a slot on.
    ///
    /// # Errors
    /// The disk cannot take all of them.
    fn write(&mut self, slot: u32, at: u64, bytes: &[u8]) -> io::Result<()>;

    /// Writes zeros; apart from [`Disk::write`] because such bytes are counted apart.
    ///
    /// # Errors
    /// The disk cannot take all of them.
    fn zero(&mut self, slot: u32, at: u64, bytes: u32) -> io::Result<()>;

    /// Makes everything written to a slot durable.
    ///
    /// # Errors
    /// Something may be lost; this is final.
    fn sync(&mut self, slot: u32) -> io::Result<()>;

    /// Removes a slot's file, to give its room back; a disk may keep it.
    ///
    /// # Errors
    /// The file is still there.
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
