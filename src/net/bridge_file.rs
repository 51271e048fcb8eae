//! The file in the data directory with what of bridges outlives a restart.
//!
//! Always true: it is there whole, or as it was before; what is not such a file is not read.

use std::fs;
use std::io::{self, Write as _};
use std::path::Path;

/// Its name.
const NAME: &str = "bridges";
/// Longer than any that was written.
const BYTES_MAX: u64 = 256 << 10;

/// What it says; empty when there is none.
pub(super) fn read(folder: &Path) -> String {
    let file = folder.join(NAME);
    let is_sound = fs::metadata(&file).is_ok_and(|found| found.is_file() && found.len() <= BYTES_MAX);
    is_sound.then(|| fs::read_to_string(&file).ok()).flatten().unwrap_or_default()
}

/// Writes it anew.
///
/// # Errors
/// The system says why not.
pub(super) fn write(folder: &Path, text: &str) -> io::Result<()> {
    let beside = folder.join("bridges.new");
    let mut file = fs::File::create(&beside)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&beside, folder.join(NAME))
}
