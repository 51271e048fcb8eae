//! Small text files beside the log that are read and replaced as a whole.
//!
//! They contain a few bytes that are not worth a log record: the last known time, and the state of the
//! bridges for the next start. A power cut during a write does not damage them.
//!
//! # Invariants
//! - The file always has either the complete old text or the complete new one; after [`write()`] has
//!   returned, the new one.
//! - A file that is longer than the maximum is not read, because it was not written by this function.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::Path;

/// Returns the text of a file; `None` if it is missing, not a regular file, longer than `bytes_max` bytes, or
/// not UTF-8.
pub fn read(path: &Path, bytes_max: u64) -> Option<String> {
    // Opening a pipe would block.
    if !fs::metadata(path).ok()?.is_file() {
        return None;
    }
    let mut text = String::new();
    let read = File::open(path).ok()?.take(bytes_max + 1).read_to_string(&mut text).ok()?;
    (read as u64 <= bytes_max).then_some(text)
}

/// Replaces the file, and waits until it is on the disk.
///
/// # Errors
/// The error of the system; the file is then either old or new.
pub fn write(path: &Path, text: &str) -> io::Result<()> {
    let beside = path.with_extension("new");
    let mut file = File::create(&beside)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    // Without this sync of the folder, the old file could be there again after a power cut.
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_completely_or_unchanged() {
        let folder = std::env::temp_dir().join(format!("leveret-small-file-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("notes");
        assert_eq!(read(&path, 10), None, "there is none");
        write(&path, "0123456789").unwrap();
        assert_eq!(read(&path, 10).as_deref(), Some("0123456789"));
        assert_eq!(read(&path, 9), None, "longer than it can be");
        write(&path, "new").unwrap();
        assert_eq!(read(&path, 10).as_deref(), Some("new"));
        fs::create_dir(folder.join("notes.new")).unwrap();
        assert!(write(&path, "not").is_err());
        assert_eq!(read(&path, 10).as_deref(), Some("new"), "what cannot be written changes nothing");
        fs::write(&path, b"\xff\xfe").unwrap();
        assert_eq!(read(&path, 10), None, "no text");
        assert_eq!(read(&folder, 10), None, "no file");
        fs::remove_dir_all(&folder).unwrap();
    }
}
