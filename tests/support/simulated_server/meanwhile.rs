//! A disk that runs another operation between the calls of a job.
//!
//! Helpers work concurrently, and each of their jobs makes several calls.
//!
//! # Invariants
//! - The other operation happens once: before one of the calls, or after the last one.

use std::io;

use crate::simulated_disk::SimDisk;
use leveret_storage::{Disk, UnopenedFile};

/// The disk, and the operation that happens after `calls_left` calls.
pub struct Meanwhile<F: FnOnce(&mut SimDisk)> {
    disk: SimDisk,
    calls_left: u64,
    other: Option<F>,
}

impl<F: FnOnce(&mut SimDisk)> Meanwhile<F> {
    pub const fn new(disk: SimDisk, calls_left: u64, other: F) -> Self {
        Self { disk, calls_left, other: Some(other) }
    }

    /// Returns the disk for the next call, after running the other operation if it is due.
    fn disk(&mut self) -> &mut SimDisk {
        match self.calls_left.checked_sub(1) {
            Some(left) => self.calls_left = left,
            None => self.other.take().into_iter().for_each(|other| other(&mut self.disk)),
        }
        &mut self.disk
    }

    /// Ends the job; runs the other operation if it has not happened.
    pub fn end(mut self) {
        self.other.take().into_iter().for_each(|other| other(&mut self.disk));
    }
}

impl<F: FnOnce(&mut SimDisk)> Disk for Meanwhile<F> {
    fn lock(&mut self) -> io::Result<()> {
        self.disk().lock()
    }

    fn unopened(&self) -> &[UnopenedFile] {
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
