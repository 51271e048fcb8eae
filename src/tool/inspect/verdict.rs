//! What an inspection comes to: a verdict, or why there is none.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::PathBuf;

use super::names::Names;
use crate::store::Access;
use crate::store::fsck::{FsckError, Scan};

/// Why nothing can be told, as a sentence.
#[derive(Debug)]
pub enum InspectError {
    /// The directory cannot be looked at.
    Directory {
        /// The path.
        path: PathBuf,
        /// Why it cannot be read.
        why: FsckError,
    },
    /// The file for the export cannot be written.
    Export {
        /// The path.
        path: PathBuf,
        /// What the system says.
        why: io::Error,
    },
    /// A broker has the directory, and something was to be written to it.
    InUse(PathBuf),
    /// What is damaged could not be written over.
    NotDropped {
        /// Of which directory.
        path: PathBuf,
        /// Why it cannot be read.
        why: FsckError,
    },
    /// Nobody takes what is printed.
    Output(io::Error),
}

impl fmt::Display for InspectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory { path, why } => write!(f, "{}: {why}", path.display()),
            Self::Export { path, why } if why.kind() == io::ErrorKind::AlreadyExists => {
                write!(f, "{} is there already: name a file that is not", path.display())
            }
            Self::Export { path, why } => write!(f, "{} cannot be written: {why}", path.display()),
            Self::InUse(path) => {
                write!(f, "{}: a broker has it, so nothing is dropped: stop the broker first", path.display())
            }
            Self::NotDropped { path, why: FsckError::Unreadable(why) } => {
                write!(f, "{}: cannot be written: {why}; what is set aside stays", path.display())
            }
            Self::NotDropped { path, why } => write!(f, "{}: {why}", path.display()),
            Self::Output(why) => write!(f, "the report cannot be written: {why}"),
        }
    }
}

impl Error for InspectError {}

impl From<io::Error> for InspectError {
    fn from(why: io::Error) -> Self {
        Self::Output(why)
    }
}

/// What there is to say in the end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Every checksum holds.
    Good,
    /// The last commit is not whole; the next start cuts it.
    CutTail,
    /// Something is not as it was written.
    Damaged,
    /// What is there is as it was written, but there are messages whose queue nothing defines.
    Orphans,
    /// What is there is as it was written, but users and permissions are not all there, or may not be.
    AccessInDoubt,
}

impl Verdict {
    /// The exit code.
    pub const fn code(self) -> u8 {
        match self {
            Self::Good => 0,
            Self::CutTail => 1,
            Self::Damaged | Self::AccessInDoubt | Self::Orphans => 2,
        }
    }

    pub(super) fn of(scan: &Scan, names: &Names, access: Access) -> Self {
        match (scan.damage.is_empty(), &scan.tail) {
            (false, _) => Self::Damaged,
            _ if matches!(access, Access::InDoubt(_)) => Self::AccessInDoubt,
            _ if !names.orphans.is_empty() => Self::Orphans,
            (true, Some(_)) => Self::CutTail,
            (true, None) => Self::Good,
        }
    }
}
