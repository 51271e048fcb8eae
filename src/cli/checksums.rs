//! SHA-256 sums of the files of an archive, written and checked as `sha256sum` does.
//!
//! Why it exists: a stick that was pulled too early leaves zeros, and a store that ends in zeros is one that
//! a power cut left: its last commits are gone, the deletion of a user among them perhaps, and nothing in it
//! says so. So the last file of a backup says what all the others are.
//!
//! ```text
//! sum of the first file, 64 hex digits | two spaces | name | newline | sum of the second | ...
//! ```

use std::fmt::Write as _;
use std::io::{self, Read, Write};

use ring::digest::{Context, SHA256};

/// What the file is called.
pub(super) const NAME: &str = "SHA256SUMS";
/// Bytes that are copied at a time.
const STEP_BYTES: usize = 64 << 10;
/// Names and sums of more files than a store has.
const TEXT_BYTES_MAX: u64 = 8 << 20;

/// The sums of the files so far.
#[derive(Default)]
pub(super) struct Checksums {
    text: String,
}

impl Checksums {
    /// Copies a file's content and notes its sum; returns how many bytes there were.
    pub(super) fn copy(&mut self, name: &str, from: &mut impl Read, to: &mut impl Write) -> io::Result<u64> {
        let (mut context, mut buffer, mut copied) = (Context::new(&SHA256), vec![0; STEP_BYTES], 0);
        loop {
            let count = match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            context.update(&buffer[..count]);
            to.write_all(&buffer[..count])?;
            copied += count as u64;
        }
        for byte in context.finish().as_ref() {
            // Writing into a string does not fail.
            let _ = write!(self.text, "{byte:02x}");
        }
        let _ = writeln!(self.text, "  {name}");
        Ok(copied)
    }

    /// The file that says them.
    pub(super) fn text(&self) -> &[u8] {
        self.text.as_bytes()
    }

    /// Whether that file says of all that was copied what was found.
    pub(super) fn agree(&self, file: &mut impl Read) -> io::Result<bool> {
        let mut told = Vec::new();
        file.take(TEXT_BYTES_MAX).read_to_end(&mut told)?;
        Ok(told == self.text())
    }
}
