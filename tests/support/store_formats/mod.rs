//! Stores of older versions, for the Rust tests that read them.
//!
//! `N.txt` is a store as a program of version N left it when it was killed (`make.py`).

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

pub const ONE: &str = include_str!("1.txt");
pub const TWO: &str = include_str!("2.txt");

/// Returns the bytes of each file of a fixture.
pub fn files_of(text: &str) -> BTreeMap<String, Vec<u8>> {
    let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |word: &str| word.parse::<usize>().expect("a number");
        let [name, rest @ ..] = words.as_slice() else { unreachable!("a name") };
        match rest {
            [size] => drop(files.insert((*name).into(), vec![0; number(size)])),
            [at, bytes] => {
                let hex = |text: &str| u8::from_str_radix(text, 16).expect("hex");
                let piece = match bytes.split_once('*') {
                    Some((byte, count)) => vec![hex(byte); number(count)],
                    None => (0..bytes.len()).step_by(2).map(|at| hex(&bytes[at..at + 2])).collect(),
                };
                let file = files.get_mut(*name).expect("its size came first");
                file[number(at)..][..piece.len()].copy_from_slice(&piece);
            }
            _ => unreachable!("{line}"),
        }
    }
    files
}

/// A folder with the files of a fixture.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new(name: &str, text: &str) -> Self {
        let path = std::env::temp_dir().join(format!("leveret-format-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("a folder");
        for (name, bytes) in files_of(text) {
            fs::write(path.join(name), bytes).expect("a file");
        }
        Self(path)
    }

    /// Creates the newest fixture with a header of a newer version.
    pub fn newer(name: &str) -> Self {
        let folder = Self::new(name, TWO);
        let name = folder.0.join("00000001.seg");
        let mut bytes = fs::read(&name).expect("it is there");
        bytes[7] = b'3';
        let length = u32::from_le_bytes(bytes[12..16].try_into().expect("four")) as usize;
        let sum = crc32c::crc32c_append(crc32c::crc32c(&bytes[..8]), &bytes[12..length]);
        bytes[8..12].copy_from_slice(&sum.to_le_bytes());
        fs::write(&name, &bytes).expect("a file");
        folder
    }

    pub fn name(&self) -> &str {
        self.0.to_str().expect("text")
    }

    /// Returns its files, except the lock.
    pub fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let entries = fs::read_dir(&self.0).expect("a folder").map(|entry| entry.expect("an entry"));
        let named = entries.map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path()));
        let kept = named.filter(|(name, _)| name != "lock");
        kept.map(|(name, path)| (name, fs::read(path).expect("a file"))).collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).expect("it is ours");
    }
}
