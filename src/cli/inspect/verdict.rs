//! What an inspection comes to: a verdict, or why there is none.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::PathBuf;

use super::inspection::Inspection;
use super::names::Names;
use leveret_storage::{Access, OpenError};

/// Why nothing can be told, as a sentence.
#[derive(Debug)]
pub enum InspectError {
    /// The directory cannot be looked at.
    Directory {
        /// The path.
        path: PathBuf,
        /// Why it cannot be read.
        why: OpenError,
    },
    /// The file for the export cannot be written.
    Export {
        /// The path.
        path: PathBuf,
        /// What the system says.
        why: io::Error,
    },
    /// Nobody takes what is printed.
    Output(io::Error),
}

impl fmt::Display for InspectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory { path, why: OpenError::NoStore } => write!(
                f,
                "{}: there is no store: not one segment file (such as 00000000.seg)",
                path.display()
            ),
            Self::Directory { path, why } => write!(f, "{}: {why}", path.display()),
            Self::Export { path, why } if why.kind() == io::ErrorKind::AlreadyExists => {
                write!(f, "{} is there already: name a file that is not", path.display())
            }
            Self::Export { path, why } => write!(f, "{} cannot be written: {why}", path.display()),
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
    /// Something cannot be read.
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
            Self::Damaged | Self::AccessInDoubt | Self::Orphans => 2,
        }
    }

    pub(super) fn of(inspection: &Inspection, names: &Names) -> Self {
        if !inspection.is_whole() {
            Self::Damaged
        } else if matches!(inspection.report.access.access, Access::InDoubt(_)) {
            Self::AccessInDoubt
        } else if !names.orphans.is_empty() {
            Self::Orphans
        } else {
            Self::Good
        }
    }
}
