//! The disk as files of one directory.
//!
//! Always true: reads and writes name their place, no file has a cursor; `fdatasync` is the only sync on a
//! segment, never a sync of the file system; nothing is mapped; the lock file is held as long as the disk; a
//! disk that only reads leaves no trace.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::disk::Disk;

const LOCK_NAME: &str = "lock";
const SUFFIX: &str = ".seg";
const ZEROS: [u8; 16 << 10] = [0; 16 << 10];

/// Files in a directory.
#[derive(Debug)]
pub struct FileDisk {
    directory: PathBuf,
    files: Vec<Option<File>>,
    lock: Option<File>,
    only_reads: bool,
}

impl FileDisk {
    /// The disk over `directory`, which must be there.
    pub fn new(directory: &Path) -> Self {
        Self { directory: directory.to_path_buf(), files: Vec::new(), lock: None, only_reads: false }
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

    fn file(&mut self, slot: u32) -> io::Result<&File> {
        let at = slot as usize;
        if self.files.len() <= at {
            self.files.resize_with(at + 1, || None);
        }
        if self.files[at].is_none() {
            let path = self.path(slot);
            // A card at its end, or a card image to inspect, may only be readable.
            let mut options = OpenOptions::new();
            let opened = options.read(true).write(!self.only_reads).open(&path);
            self.files[at] = Some(opened.or_else(|_| File::open(&path))?);
        }
        self.files[at].as_ref().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// What kept a file from being opened for writing says more than that it was not.
    fn why_only_readable(&self, slot: u32, error: io::Error) -> io::Error {
        OpenOptions::new().write(true).open(self.path(slot)).err().unwrap_or(error)
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
        let opened = create(&path);
        // On a card that can only be read any more, what it holds is still to be delivered.
        let file = opened.or_else(|error| File::open(&path).map_err(|_| error))?;
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
        for entry in std::fs::read_dir(&self.directory)? {
            let name = entry?.file_name();
            let number = name.to_str().and_then(|name| name.strip_suffix(SUFFIX));
            // Other names are not ours; a number that no store of this kind reaches is not either.
            slots.extend(number.and_then(|number| number.parse::<u32>().ok()).filter(|slot| *slot < 1 << 20));
        }
        Ok(slots)
    }

    fn create(&mut self, slot: u32) -> io::Result<()> {
        self.may_write()?;
        create(&self.path(slot)).map(drop)
    }

    fn read(&mut self, slot: u32, at: u64, bytes: &mut [u8]) -> io::Result<usize> {
        let file = match self.file(slot) {
            // A file that somebody removed is damage like any other: the rest is still to be served.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            file => file?,
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
        let written = self.file(slot)?.write_all_at(bytes, at);
        written.map_err(|error| self.why_only_readable(slot, error))
    }

    fn zero(&mut self, slot: u32, at: u64, bytes: u32) -> io::Result<()> {
        let file = self.file(slot)?;
        let (mut at, end) = (at, at + u64::from(bytes));
        while at < end {
            let step = (end - at).min(ZEROS.len() as u64);
            file.write_all_at(&ZEROS[..step as usize], at)?;
            at += step;
        }
        Ok(())
    }

    fn sync(&mut self, slot: u32) -> io::Result<()> {
        self.file(slot)?.sync_data()
    }

    fn remove(&mut self, slot: u32) -> io::Result<()> {
        if let Some(file) = self.files.get_mut(slot as usize) {
            *file = None;
        }
        fs::remove_file(self.path(slot))
    }

    fn sync_directory(&mut self) -> io::Result<()> {
        File::open(&self.directory)?.sync_all()
    }
}
