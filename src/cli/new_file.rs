//! A file that has its name only when it is whole, in a folder that may belong to somebody else.
//!
//! Why it exists: root writes exports and backups into folders of others, who may put links there.
//!
//! Always true: the path is walked once, to the folder; within it the file is made under a name that nobody
//! can know, exclusively, following no link, for its owner only; it is synced before it gets its name, and
//! what is not finished is gone.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags, openat, renameat, renameat_with, unlinkat};
use rustix::io::Errno;

/// The file while it is written.
#[derive(Debug)]
pub(super) struct NewFile {
    /// What is written to.
    pub(super) file: File,
    folder: OwnedFd,
    part: String,
    name: OsString,
    is_finished: bool,
}

/// What becomes of a file that has the name already.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Old {
    /// It is replaced; a link is, too, and not what it leads to.
    Replaced,
    /// It stays, and the new one is not finished.
    Kept,
}

impl NewFile {
    /// Begins a file for `target`.
    ///
    /// # Errors
    /// The folder is not there or takes no file.
    pub(super) fn create(target: &Path) -> io::Result<Self> {
        let name = target.file_name().ok_or(io::ErrorKind::IsADirectory)?.to_owned();
        let folder = target.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(folder, flags, Mode::empty())?;
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(io::Error::other)?;
        let part = format!(".leveret-{:016x}.part", u64::from_le_bytes(random));
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = File::from(openat(&folder, &*part, flags, Mode::RUSR | Mode::WUSR)?);
        Ok(Self { file, folder, part, name, is_finished: false })
    }

    /// Gives the file its name.
    ///
    /// # Errors
    /// It cannot be synced or named.
    pub(super) fn finish(mut self, old: Old) -> io::Result<()> {
        self.file.sync_all()?;
        let (folder, part, name): (_, _, &OsStr) = (&self.folder, &*self.part, &self.name);
        match old {
            Old::Replaced => renameat(folder, part, folder, name)?,
            Old::Kept => match renameat_with(folder, part, folder, name, RenameFlags::NOREPLACE) {
                // File systems that do not know how, such as FAT on a stick.
                Err(Errno::INVAL | Errno::NOSYS) => {
                    if rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
                        return Err(io::ErrorKind::AlreadyExists.into());
                    }
                    renameat(folder, part, folder, name)?;
                }
                named => named?,
            },
        }
        self.is_finished = true;
        Ok(rustix::fs::fsync(&self.folder)?)
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.is_finished {
            // It cannot be helped, and its name says what it is.
            let _ = unlinkat(&self.folder, &*self.part, AtFlags::empty());
        }
    }
}
