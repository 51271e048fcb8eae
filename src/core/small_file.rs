//! Small text files beside the log that are read and replaced as a whole.
//!
//! They hold a few bytes that are not worth a log record: the last known time, and state of bridges that outlives a
//! restart. They survive a power cut during a write.
//!
//! # Invariants
//! - The file is complete and either old or new. Once [`write()`] has returned it is new.
//! - A file longer than the maximum was not written here and is not read.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::Path;

/// Returns the contents. `None`: there is no file, it is not a regular file, it has more than `bytes_max` bytes, or
/// it is not valid UTF-8.
pub fn read(path: &Path, bytes_max: u64) -> Option<String> {
    // Opening a pipe would block the start.
    if !fs::metadata(path).ok()?.is_file() {
        return None;
    }
    let mut text = String::new();
    let read = File::open(path).ok()?.take(bytes_max + 1).read_to_string(&mut text).ok()?;
    (read as u64 <= bytes_max).then_some(text)
}

/// Replaces the file; waits for the disk.
///
/// # Errors
/// The error of the system; the file is then either old or new.
pub fn write(path: &Path, text: &str) -> io::Result<()> {
    let beside = path.with_extension("new");
    let mut file = File::create(&beside)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    // Without this a power cut may bring back the old file.
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
