//! Why there is no configuration, in a sentence that says what to change.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::PathBuf;

/// Why there is no configuration.
#[derive(Debug)]
pub enum ConfigError {
    /// The file cannot be read.
    Unreadable {
        /// The file as it was named.
        file: PathBuf,
        /// What the system says.
        why: io::Error,
    },
    /// The file says something that cannot be.
    Refused {
        /// The file as it was named.
        file: String,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        why: String,
    },
    /// Two keys do not go together.
    Contradiction(String),
    /// No profile has this name; what there is instead.
    UnknownBoard(String),
    /// A profile names another profile.
    BoardInBoard(String),
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable { file, why } => {
                write!(f, "cannot read {}: {why}; name a readable TOML file", file.display())
            }
            Self::Refused { file, line, why } => write!(f, "{file}, line {line}: {why}"),
            Self::Contradiction(why) => f.write_str(why),
            Self::UnknownBoard(why) => write!(f, "{why} (or name a file by a path with a slash)"),
            Self::BoardInBoard(name) => {
                write!(f, "the profile {name} has the key board itself; take it out, a profile stands alone")
            }
        }
    }
}

impl Error for ConfigError {}
