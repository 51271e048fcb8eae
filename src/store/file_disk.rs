//! The disk as files of one directory.
//!
//! Always true: reads and writes name their place, no file has a cursor; `fdatasync` is the only sync on a
//! segment, never a sync of the file system; nothing is mapped; the lock file is held as long as the disk; a
//! disk that only reads leaves no trace. However many segments there are, a few files are open
//! ([`FileDisk::DESCRIPTORS_MAX`]), and one with bytes that are not synced is never closed for others: who
//! opens it again might not hear that they were lost.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use crate::error::is_out_of_descriptors;

use super::disk::Disk;

const LOCK_NAME: &str = "lock";
const SUFFIX: &str = ".seg";
const ZEROS: [u8; 16 << 10] = [0; 16 << 10];
/// Segments kept open: commits use two, the cleaner and the fetches of a few queues one each; and opening one
/// again is nothing beside a sync.
const OPEN_MAX: usize = 16;
/// How long to wait for others to close something when there are no descriptors left.
const DESCRIPTOR_WAIT: Duration = Duration::from_millis(20);

/// Files in a directory.
#[derive(Debug)]
pub struct FileDisk {
    directory: PathBuf,
    /// The one used last at the end.
    open: Vec<Open>,
    lock: Option<File>,
    only_reads: bool,
}

/// A segment's file.
#[derive(Debug)]
struct Open {
    slot: u32,
    file: File,
    /// Something was written to it since it was synced.
    is_unsynced: bool,
}

impl FileDisk {
    /// File descriptors that one disk has at most: its segments, its lock, and the directory while it is
    /// synced.
    pub const DESCRIPTORS_MAX: usize = OPEN_MAX + 2;

    /// The disk over `directory`, which must be there.
    pub fn new(directory: &Path) -> Self {
        Self { directory: directory.to_path_buf(), open: Vec::new(), lock: None, only_reads: false }
    }

    /// The disk over `directory` for one who looks while another may be writing: no file is opened for
    /// writing, none is made, and there is no lock to take.
    pub fn only_reading(directory: &Path) -> Self {
        Self { only_reads: true, ..Self::new(directory) }
    }

    fn may_write(&self) -> io::Result<()> {
        if self.only_reads { Err(io::ErrorKind::PermissionDenied.into()) } else { Ok(()) }
    }

    fn path(&self, slot: u32) -> PathBuf {
        self.directory.join(format!("{slot:08}{SUFFIX}"))
    }

    fn file(&mut self, slot: u32) -> io::Result<&mut Open> {
        if let Some(at) = self.open.iter().position(|open| open.slot == slot) {
            self.open[at..].rotate_left(1);
        } else {
            self.make_room();
            let (path, writes) = (self.path(slot), !self.only_reads);
            let file = self.descriptor(|| open_segment(&path, writes))?;
            self.open.push(Open { slot, file, is_unsynced: false });
        }
        self.open.last_mut().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Closes the file that was used longest ago, unless there is room for one more.
    fn make_room(&mut self) {
        if self.open.len() >= OPEN_MAX
            && let Some(at) = self.open.iter().position(|open| !open.is_unsynced)
        {
            self.open.remove(at);
        }
    }

    /// Opens something. That there are no descriptors left says nothing of the disk, and it passes: so what
    /// can be closed is, and then it waits. Who only looks is told instead.
    fn descriptor<T>(&mut self, open: impl Fn() -> io::Result<T>) -> io::Result<T> {
        let mut is_told = self.only_reads;
        loop {
            match open() {
                Err(error) if is_out_of_descriptors(&error) => {
                    if !self.open.iter().all(|open| open.is_unsynced) {
                        self.open.retain(|open| open.is_unsynced);
                        continue;
                    }
                    if self.only_reads {
                        return Err(error);
                    }
                    if !core::mem::replace(&mut is_told, true) {
                        log::error!(
                            "the store waits for a file descriptor ({error}): raise the limit (LimitNOFILE)"
                        );
                    }
                    thread::sleep(DESCRIPTOR_WAIT);
                }
                done => return done,
            }
        }
    }

    /// What kept a file from being opened for writing says more than that it was not.
    fn why_only_readable(&self, slot: u32, error: io::Error) -> io::Error {
        OpenOptions::new().write(true).open(self.path(slot)).err().unwrap_or(error)
    }
}

/// A card at its end, or a card image to inspect, may only be readable.
fn open_segment(path: &Path, writes: bool) -> io::Result<File> {
    match OpenOptions::new().read(true).write(writes).open(path) {
        Err(error) if !is_out_of_descriptors(&error) => File::open(path),
        opened => opened,
    }
}

/// Opens a file, which is made when it is not there; for its owner only, for it holds messages and the hashes
/// of passwords.
fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)
}

impl Disk for FileDisk {
    fn lock(&mut self) -> io::Result<()> {
        self.may_write()?;
        let path = self.directory.join(LOCK_NAME);
        // On a card that can only be read any more, what it holds is still to be delivered.
        let file = self.descriptor(|| match create(&path) {
            Err(error) if !is_out_of_descriptors(&error) => File::open(&path).map_err(|_| error),
            opened => opened,
        })?;
        match file.try_lock() {
            Ok(()) => {
                self.lock = Some(file);
                Ok(())
            }
            Err(TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    fn slots(&mut self) -> io::Result<Vec<u32>> {
        let mut slots = Vec::new();
        let directory = self.directory.clone();
        for entry in self.descriptor(|| fs::read_dir(&directory))? {
            let name = entry?.file_name();
            let number = name.to_str().and_then(|name| name.strip_suffix(SUFFIX));
            // Other names are not ours; a number that no store of this kind reaches is not either.
            slots.extend(number.and_then(|number| number.parse::<u32>().ok()).filter(|slot| *slot < 1 << 20));
        }
        Ok(slots)
    }

    fn create(&mut self, slot: u32) -> io::Result<()> {
        self.may_write()?;
        let path = self.path(slot);
        self.descriptor(|| create(&path)).map(drop)
    }

    fn read(&mut self, slot: u32, at: u64, bytes: &mut [u8]) -> io::Result<usize> {
        let file = match self.file(slot) {
            Ok(open) => &open.file,
            // A file that somebody removed is damage like any other: the rest is still to be served.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            Err(error) => return Err(error),
        };
        let mut done = 0;
        while done < bytes.len() {
            match file.read_at(&mut bytes[done..], at + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn write(&mut self, slot: u32, at: u64, bytes: &[u8]) -> io::Result<()> {
        let open = self.file(slot)?;
        open.is_unsynced = true;
        let written = open.file.write_all_at(bytes, at);
        written.map_err(|error| self.why_only_readable(slot, error))
    }

    fn zero(&mut self, slot: u32, at: u64, bytes: u32) -> io::Result<()> {
        let open = self.file(slot)?;
        open.is_unsynced = true;
        let (mut at, end) = (at, at + u64::from(bytes));
        while at < end {
            let step = (end - at).min(ZEROS.len() as u64);
            open.file.write_all_at(&ZEROS[..step as usize], at)?;
            at += step;
        }
        Ok(())
    }

    fn sync(&mut self, slot: u32) -> io::Result<()> {
        let open = self.file(slot)?;
        open.file.sync_data()?;
        open.is_unsynced = false;
        Ok(())
    }

    fn remove(&mut self, slot: u32) -> io::Result<()> {
        self.open.retain(|open| open.slot != slot);
        fs::remove_file(self.path(slot))
    }

    fn sync_directory(&mut self) -> io::Result<()> {
        let directory = self.directory.clone();
        self.descriptor(|| File::open(&directory))?.sync_all()
    }
}
