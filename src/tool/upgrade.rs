//! `leveret upgrade-store DIR`: a store brought to the newest version of the format.
//!
//! Why it exists: a new program writes the version that it finds, so that an update can be taken back. When
//! nobody wants to go back any more, this says so; from then on older programs leave the directory alone.
//!
//! Always true: a store that a broker has is not touched; what is done is one start of a broker without its
//! doors, so the power may go at any moment; done twice it does nothing more.

use std::error::Error;
use std::fmt;
use std::path::{Path, PathBuf};

use crate::store::{BLOCK_BYTES, Disk, FileDisk, Format, Identity, Log, OpenError, Settings};
use crate::time::Now;

/// The largest commits it makes, in bytes: there is next to nothing to write.
const COMMIT_BYTES_MAX: u32 = 512 << 10;
/// Files that may be made.
const FILES_MAX: u32 = 8;

/// Why a store is as it was.
#[derive(Debug)]
pub enum NotUpgraded {
    /// It cannot be opened.
    Store(PathBuf, OpenError),
    /// There is no room for a segment of the new version, or the disk refuses to write.
    Unwritable(PathBuf, String),
}

impl fmt::Display for NotUpgraded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Store(path, OpenError::InUse) => {
                write!(f, "{}: a broker has it; stop that first", path.display())
            }
            Self::Store(path, OpenError::NoStore) => write!(f, "{}: there is no store in it", path.display()),
            Self::Store(path, error) => write!(f, "{}: {error}", path.display()),
            Self::Unwritable(path, why) => write!(f, "{}: {why}; nothing was upgraded", path.display()),
        }
    }
}

impl Error for NotUpgraded {}

/// Does it; says what was done.
///
/// # Errors
/// See [`NotUpgraded`].
pub fn run(directory: &Path) -> Result<String, NotUpgraded> {
    let of = |error| NotUpgraded::Store(directory.to_path_buf(), error);
    let mut disk = FileDisk::only_reading(directory);
    let files = disk.slots().map_err(|error| of(OpenError::Unreadable(error)))?.len() as u32;
    let (found, segment_bytes) = Log::format_of(&mut disk).map_err(of)?;
    if found == Format::NEWEST {
        let (directory, number) = (directory.display(), found.number());
        return Ok(format!("{directory} is of format {number}, the newest: there is nothing to do\n"));
    }
    let block = BLOCK_BYTES as u32;
    let settings = Settings {
        segment_bytes,
        commit_bytes: COMMIT_BYTES_MAX.min(segment_bytes / 3 / block * block),
        segments_max: files + FILES_MAX,
        may_begin: false,
        upgrade: true,
        ..Settings::default()
    };
    // The identity is for a new store, which is not made here.
    let nobody = Identity { id: [0; 16], secret: 0 };
    let (log, report) =
        Log::open_files(&mut FileDisk::new(directory), settings, nobody, Now::from_ms(0)).map_err(of)?;
    if let Some(why) = report.unwritable {
        return Err(NotUpgraded::Unwritable(directory.to_path_buf(), why.to_string()));
    }
    if log.format() != Format::NEWEST {
        let why = "the disk has no room for another segment".to_string();
        return Err(NotUpgraded::Unwritable(directory.to_path_buf(), why));
    }
    let directory = directory.display();
    Ok(format!(
        "{directory} was of format {} and is of format {} now: versions of Leveret that do not know it \
         refuse to start on it\n",
        found.number(),
        log.format().number()
    ))
}
