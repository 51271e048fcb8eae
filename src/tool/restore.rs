//! `leveret restore FILE`: a backup made a store again.
//!
//! Always true: a store that is there is not touched, nor is one that a broker has; nothing but segment files
//! leaves the archive, each to its own name in the one folder; what cannot be restored whole leaves nothing.

use std::error::Error;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, chown};
use std::path::{Path, PathBuf};

use crate::store::look::Look;
use crate::store::{Disk, FileDisk};
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
    fs::create_dir_all(folder).map_err(of(folder))?;
    let mut disk = FileDisk::new(folder);
    disk.lock().map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => NotRestored::InUse(folder.to_path_buf()),
        _ => NotRestored::File(folder.to_path_buf(), error),
    })?;
    if !disk.slots().map_err(of(folder))?.is_empty() {
        return Err(NotRestored::HasStore(folder.to_path_buf()));
    }
    let mut made = Made { files: Vec::new(), is_finished: false };
    unpack(&mut source, folder, &mut made.files).map_err(of(archive))?;
    let look = Look::take(&mut FileDisk::only_reading(folder))
        .map_err(|error| NotRestored::NoStore(archive.to_path_buf(), error.to_string()))?;
    if !look.is_good() {
        return Err(NotRestored::NoStore(archive.to_path_buf(), "the store in it is damaged".to_string()));
    }
    disk.sync_directory().map_err(of(folder))?;
    made.is_finished = true;
    Ok(format!("{}: {} segment files restored, every checksum holds\n", folder.display(), made.files.len()))
}

/// Files that go again unless all of them are there.
struct Made {
    files: Vec<PathBuf>,
    is_finished: bool,
}

impl Drop for Made {
    fn drop(&mut self) {
        if !self.is_finished {
            for file in &self.files {
                // It cannot be helped, and the next attempt will say so.
                let _ = fs::remove_file(file);
            }
        }
    }
}

fn unpack(archive: &mut impl Read, folder: &Path, made: &mut Vec<PathBuf>) -> io::Result<()> {
    let owner = fs::metadata(folder)?;
    while let Some(entry) = tar::next(archive)? {
        let mut content = archive.take(entry.bytes);
        if entry.is_file && is_segment(&entry.name) && entry.bytes <= SEGMENT_BYTES_MAX {
            let path = folder.join(&entry.name);
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
            made.push(path.clone());
            if io::copy(&mut content, &mut file)? < entry.bytes {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            file.sync_all()?;
            if rustix::process::geteuid().is_root() {
                // The broker's user is not root.
                chown(&path, Some(owner.uid()), Some(owner.gid()))?;
            }
        } else if io::copy(&mut content, &mut io::sink())? < entry.bytes {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        tar::skip_padding(archive, entry.bytes)?;
    }
    Ok(())
}

fn is_segment(name: &str) -> bool {
    name.strip_suffix(".seg")
        .is_some_and(|number| number.len() == 8 && number.bytes().all(|b| b.is_ascii_digit()))
}
