//! The file in the data directory with what of bridges outlives a restart.

use std::io;
use std::path::Path;

use leveret_core::small_file;

/// Its name.
const NAME: &str = "bridges";
/// Longer than any that was written.
const BYTES_MAX: u64 = 256 << 10;

/// What it says; empty when there is none.
pub(super) fn read(folder: &Path) -> String {
    small_file::read(&folder.join(NAME), BYTES_MAX).unwrap_or_default()
}

/// Writes it anew.
///
/// # Errors
/// The system says why not.
pub(super) fn write(folder: &Path, text: &str) -> io::Result<()> {
    small_file::write(&folder.join(NAME), text)
}
