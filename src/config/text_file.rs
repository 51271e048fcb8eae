//! Reading a text file that an operator wrote: bounded, and never waiting for anybody.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use leveret_json::BYTE_ORDER_MARK;

/// Reads a text file of the operator's, without the byte-order mark that it may begin with. `None`: it has more than
/// `bytes_max` bytes.
///
/// # Errors
/// It cannot be read, is no regular file, or is not UTF-8.
pub(super) fn read_text_file(file: &Path, bytes_max: u64) -> io::Result<Option<String>> {
    // Opening a pipe must not wait for its writer.
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let opened = File::options().read(true).custom_flags(nonblocking).open(file)?;
    if !opened.metadata()?.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    let mut text = Vec::new();
    opened.take(bytes_max + 1).read_to_end(&mut text)?;
    if text.len() as u64 > bytes_max {
        return Ok(None);
    }
    let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&text).to_vec();
    String::from_utf8(text).map(Some).map_err(io::Error::other)
}
