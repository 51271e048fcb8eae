//! The operator's files of certificates, keys and lists, and what is wrong with them.
//!
//! Always true: a file is read whole or not at all, and none is larger than any such file; an error names the
//! key and the file.

use std::fmt;
use std::fs::{File, Metadata};
use std::io::{self, Read, Take};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use leveret_config::BYTE_ORDER_MARK;

/// More than any chain of certificates or list of authorities has.
const FILE_BYTES_MAX: u64 = 512 << 10;

/// Why there is no TLS, as one sentence that says what to change.
#[derive(Debug)]
pub struct TlsError {
    why: String,
    /// What a file holds is at fault, and not what the configuration says.
    pub(super) is_of_file: bool,
}

impl TlsError {
    /// Of a file; `key` names section and key.
    pub(super) fn new(key: &str, path: &Path, why: impl fmt::Display) -> Self {
        Self { why: format!("{key}: {} {why}", path.display()), is_of_file: true }
    }

    /// Of the configuration.
    pub(super) fn said(why: impl Into<String>) -> Self {
        Self { why: why.into(), is_of_file: false }
    }
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

/// A bare name is one of the unit's credentials, when there is one of that name.
pub(super) fn resolve(path: &Path) -> PathBuf {
    let is_bare = path.file_name() == Some(path.as_os_str());
    let folder = std::env::var_os("CREDENTIALS_DIRECTORY").filter(|_| is_bare);
    folder.map(|folder| Path::new(&folder).join(path)).filter(|path| path.exists()).unwrap_or(path.into())
}

/// The text of a file of the operator's.
pub(super) fn read(key: &str, path: &Path) -> Result<(Vec<u8>, Metadata), TlsError> {
    let resolved = resolve(path);
    let (file, found) = open(key, &resolved)?;
    let mut text = Vec::new();
    file.take(FILE_BYTES_MAX + 1)
        .read_to_end(&mut text)
        .map_err(|error| unreadable(key, &resolved, &error))?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(TlsError::new(key, &resolved, "is larger than any such file; name the PEM file"));
    }
    if text.starts_with(BYTE_ORDER_MARK) {
        text.drain(..BYTE_ORDER_MARK.len());
    }
    Ok((text, found))
}

/// A file of the operator's, to be read piece by piece, and no further than any such file goes.
pub(super) fn open_bounded(key: &str, path: &Path) -> Result<Take<File>, TlsError> {
    Ok(open(key, &resolve(path))?.0.take(FILE_BYTES_MAX))
}

fn unreadable(key: &str, path: &Path, error: &io::Error) -> TlsError {
    let why = match error.kind() {
        io::ErrorKind::NotFound => "does not exist; name the PEM file".to_string(),
        io::ErrorKind::PermissionDenied => {
            "may not be read by the user that the broker runs as; give it that right, or use a systemd \
             credential (LoadCredential=)"
                .to_string()
        }
        _ => format!("cannot be read ({error})"),
    };
    TlsError::new(key, path, why)
}

fn open(key: &str, path: &Path) -> Result<(File, Metadata), TlsError> {
    let failed = |error: io::Error| unreadable(key, path, &error);
    // Opening a pipe must not wait for its writer.
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = File::options().read(true).custom_flags(nonblocking).open(path).map_err(failed)?;
    let found = file.metadata().map_err(failed)?;
    if !found.is_file() {
        return Err(TlsError::new(key, path, "is no file; name the PEM file itself"));
    }
    Ok((file, found))
}
