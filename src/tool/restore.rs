//! `leveret restore FILE`: a backup made a store again.
//!
//! Always true: a store that is there is not touched, nor is one that a broker has; nothing but segment files
//! leaves the archive, each to its own name in the one folder; what cannot be restored whole leaves nothing,
//! and whole is what its last file says that it is.
//! The folder belongs to another user, who may put links there: it is opened once, every file is made in it
//! exclusively, and given away while it is open.

use std::error::Error;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid, fchown, fstat, openat, unlinkat};
use rustix::io::Errno;
use rustix::process::geteuid;

use crate::store::look::Look;
use crate::store::{ACCESS_SLOTS, Disk, FileDisk, make_directory};
use crate::tool::checksums::{self, Checksums};
use crate::tool::tar;

/// More than any segment has.
const SEGMENT_BYTES_MAX: u64 = 256 << 20;

/// What keeps a backup from being restored.
#[derive(Debug)]
pub enum NotRestored {
    /// A file or folder cannot be used.
    File(PathBuf, io::Error),
    /// There is a store already.
    HasStore(PathBuf),
    /// A broker runs there.
    InUse(PathBuf),
    /// The archive holds no store, or one that is damaged.
    NoStore(PathBuf, String),
}

impl fmt::Display for NotRestored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path, error) => write!(f, "{}: {error}", path.display()),
            Self::HasStore(folder) => write!(
                f,
                "{} holds a store already: move it away first (mv {0} {0}.old), or name another folder with \
                 --data-dir",
                folder.display()
            ),
            Self::InUse(folder) => write!(f, "{}: a broker has it; stop that first", folder.display()),
            Self::NoStore(path, why) => write!(f, "{}: {why}; nothing was restored", path.display()),
        }
    }
}

impl Error for NotRestored {}

/// Makes a folder and those above it that are not there.
fn make_all(folder: &Path) -> io::Result<()> {
    if fs::metadata(folder).is_ok_and(|found| found.is_dir()) {
        return Ok(());
    }
    if let Some(parent) = folder.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        make_all(parent)?;
    }
    make_directory(folder)
}

/// Restores the archive into the folder, which is made if need be; says what there is then.
///
/// # Errors
/// See [`NotRestored`]; the folder is as it was.
pub fn run(archive: &Path, folder: &Path) -> Result<String, NotRestored> {
    let of = |path: &Path| {
        let path = path.to_path_buf();
        move |error| NotRestored::File(path, error)
    };
    let mut source = BufReader::new(File::open(archive).map_err(of(archive))?);
    make_all(folder).map_err(of(folder))?;
    let target = open_folder(folder).map_err(of(folder))?;
    let mut disk = FileDisk::within(target.try_clone().map_err(of(folder))?);
    disk.lock().map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => NotRestored::InUse(folder.to_path_buf()),
        _ => NotRestored::File(folder.to_path_buf(), error),
    })?;
    if !disk.slots().map_err(of(folder))?.is_empty() {
        return Err(NotRestored::HasStore(folder.to_path_buf()));
    }
    let mut made = Made { folder: target, files: Vec::new(), is_finished: false };
    let is_vouched_for = unpack(&mut source, &mut made).map_err(of(archive))?;
    let look = Look::take(&mut disk)
        .map_err(|error| NotRestored::NoStore(archive.to_path_buf(), error.to_string()))?;
    if !look.is_good() {
        return Err(NotRestored::NoStore(archive.to_path_buf(), "the store in it is damaged".to_string()));
    }
    if !is_vouched_for {
        let why = format!(
            "it is cut short or damaged, for it does not end with {}, which says what all of it is (a backup \
             of an older version had none: if you are sure of it, unpack it with tar)",
            checksums::NAME
        );
        return Err(NotRestored::NoStore(archive.to_path_buf(), why));
    }
    forget_access(&mut disk).map_err(of(folder))?;
    disk.sync_directory().map_err(of(folder))?;
    made.is_finished = true;
    Ok(format!("{}: {} segment files restored, every checksum holds\n", folder.display(), made.files.len()))
}

/// What a store that was removed from here said of users and permissions beside its log is not that of the
/// backup, and newer: it would hold.
fn forget_access(disk: &mut FileDisk) -> io::Result<()> {
    for slot in ACCESS_SLOTS {
        match disk.remove(slot) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// The folder itself and not where a link of that name leads: it is root who writes there.
fn open_folder(folder: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
    // A slash at the end would follow a link.
    let path = folder.components().as_path();
    match rustix::fs::open(path, flags, Mode::empty()) {
        Err(Errno::LOOP | Errno::NOTDIR)
            if fs::symlink_metadata(path).is_ok_and(|found| found.is_symlink()) =>
        {
            Err(io::Error::other("it is a link; name the folder that it leads to"))
        }
        opened => Ok(opened?),
    }
}

/// Files that go again unless all of them are there.
struct Made {
    folder: OwnedFd,
    files: Vec<String>,
    is_finished: bool,
}

impl Drop for Made {
    fn drop(&mut self) {
        if !self.is_finished {
            for file in &self.files {
                // It cannot be helped, and the next attempt will say so.
                let _ = unlinkat(&self.folder, &**file, AtFlags::empty());
            }
        }
    }
}

/// Unpacks everything; says whether its last file says of all others what was found.
fn unpack(archive: &mut impl Read, made: &mut Made) -> io::Result<bool> {
    let owner = fstat(&made.folder)?;
    let (mut sums, mut is_vouched_for) = (Checksums::default(), false);
    while let Some(entry) = tar::next(archive)? {
        let mut content = archive.take(entry.bytes);
        let name = &*entry.name;
        is_vouched_for = entry.is_file && name == checksums::NAME && sums.agree(&mut content)?;
        if entry.is_file && is_segment(name) && entry.bytes <= SEGMENT_BYTES_MAX {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mut file = File::from(openat(&made.folder, name, flags, Mode::RUSR | Mode::WUSR)?);
            made.files.push(entry.name.clone());
            if sums.copy(name, &mut content, &mut file)? < entry.bytes {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if geteuid().is_root() {
                // The broker's user is not root. The file that is open is given, whatever its name is by now.
                fchown(&file, Some(Uid::from_raw(owner.st_uid)), Some(Gid::from_raw(owner.st_gid)))?;
            }
            file.sync_all()?;
        } else {
            sums.copy(name, &mut content, &mut io::sink())?;
            if content.limit() > 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        tar::skip_padding(archive, entry.bytes)?;
    }
    tar::skip_end(archive)?;
    Ok(is_vouched_for)
}

fn is_segment(name: &str) -> bool {
    name.strip_suffix(".seg")
        .is_some_and(|number| number.len() == 8 && number.bytes().all(|b| b.is_ascii_digit()))
}
