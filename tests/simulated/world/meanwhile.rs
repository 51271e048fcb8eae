//! A disk on which somebody else does something in the midst of what is done.
//!
//! Why it exists: helpers work side by side, and each of their jobs is several calls. Always true: the other
//! thing happens once, before one of the calls or behind the last.

use std::io;

use super::sim_disk::SimDisk;
use leveret_storage::{Disk, Unopened};

/// The disk, and what happens to it after so many calls.
pub struct Meanwhile<F: FnOnce(&mut SimDisk)> {
    disk: SimDisk,
    calls_left: u64,
    other: Option<F>,
}

impl<F: FnOnce(&mut SimDisk)> Meanwhile<F> {
    pub const fn new(disk: SimDisk, calls_left: u64, other: F) -> Self {
        Self { disk, calls_left, other: Some(other) }
    }

    /// The next call is due.
    fn disk(&mut self) -> &mut SimDisk {
        match self.calls_left.checked_sub(1) {
            Some(left) => self.calls_left = left,
            None => self.other.take().into_iter().for_each(|other| other(&mut self.disk)),
        }
        &mut self.disk
    }

    /// The last call was made.
    pub fn end(mut self) {
        self.other.take().into_iter().for_each(|other| other(&mut self.disk));
    }
}

impl<F: FnOnce(&mut SimDisk)> Disk for Meanwhile<F> {
    fn lock(&mut self) -> io::Result<()> {
        self.disk().lock()
    }

    fn unopened(&self) -> &[Unopened] {
        self.disk.unopened()
    }

    fn slots(&mut self) -> io::Result<Vec<u32>> {
        self.disk().slots()
    }

    fn create(&mut self, slot: u32) -> io::Result<()> {
        self.disk().create(slot)
    }

    fn reserve(&mut self, slot: u32, bytes: u64) -> io::Result<()> {
        self.disk().reserve(slot, bytes)
    }

    fn read(&mut self, slot: u32, at: u64, bytes: &mut [u8]) -> io::Result<usize> {
        self.disk().read(slot, at, bytes)
    }

    fn write(&mut self, slot: u32, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.disk().write(slot, at, bytes)
    }

    fn zero(&mut self, slot: u32, at: u64, bytes: u32) -> io::Result<()> {
        self.disk().zero(slot, at, bytes)
    }

    fn sync(&mut self, slot: u32) -> io::Result<()> {
        self.disk().sync(slot)
    }

    fn remove(&mut self, slot: u32) -> io::Result<()> {
        self.disk().remove(slot)
    }

    fn sync_directory(&mut self) -> io::Result<()> {
        self.disk().sync_directory()
    }
}
