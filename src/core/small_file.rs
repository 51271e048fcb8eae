//! Small files beside the log that are read whole and written anew whole.
//!
//! Why it exists: what is worth a few bytes and no record of the log (the last known time, what of bridges
//! outlives a restart) still has to survive a power cut in the middle of being written.
//!
//! Always true: the file is there whole, or as it was before, and once `write` has returned it stays; what is
//! longer than it can be was not written here, and is not read.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::Path;

/// What a file says. `None`: there is none, it is no file, it has more than `bytes_max` bytes, or it is no
/// text.
pub fn read(path: &Path, bytes_max: u64) -> Option<String> {
    // Whoever put a pipe there would stop the start.
    if !fs::metadata(path).ok()?.is_file() {
        return None;
    }
    let mut text = String::new();
    let read = File::open(path).ok()?.take(bytes_max + 1).read_to_string(&mut text).ok()?;
    (read as u64 <= bytes_max).then_some(text)
}

/// Writes a file anew; it waits for the disk.
///
/// # Errors
/// The system says why not; the file is as it was, or new.
pub fn write(path: &Path, text: &str) -> io::Result<()> {
    let beside = path.with_extension("new");
    let mut file = File::create(&beside)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    // Else a power cut may still bring the old one back.
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_whole_or_as_before() {
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
