//! Just enough tar to carry a store: regular files with short names, as every `tar` writes and reads them.
//!
//! ```text
//! file  | header 512 bytes | content | zeros to the next 512 |
//! end   | 1024 zeros |
//!
//! header | name 100 | mode 8 | uid 8 | gid 8 | size 12 | mtime 12 | checksum 8 | type 1 | link 100
//!        | "ustar\0" "00" | ...          numbers are octal digits with a NUL behind them
//! ```

use std::io::{self, Read, Write};

/// What everything is padded to.
const BLOCK_BYTES: usize = 512;
const SIZE_AT: core::ops::Range<usize> = 124..136;
const SUM_AT: core::ops::Range<usize> = 148..156;
const TYPE_AT: usize = 156;

/// A file in an archive.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Entry {
    /// Its name.
    pub(super) name: String,
    /// Bytes of its content.
    pub(super) bytes: u64,
    /// It is a regular file.
    pub(super) is_file: bool,
}

/// Writes the head of a file; `bytes` of content and [`pad`] must follow.
pub(super) fn begin(out: &mut impl Write, name: &str, bytes: u64, unix_s: u64) -> io::Result<()> {
    let mut head = [0; BLOCK_BYTES];
    let mut put = |at: usize, text: &str| head[at..at + text.len()].copy_from_slice(text.as_bytes());
    debug_assert!(name.len() < 100, "a short name");
    put(0, name);
    put(100, "0000600");
    put(108, "0000000");
    put(116, "0000000");
    put(SIZE_AT.start, &format!("{bytes:011o}"));
    put(136, &format!("{unix_s:011o}"));
    put(SUM_AT.start, "        ");
    put(TYPE_AT, "0");
    put(257, "ustar\u{0}00");
    let sum = sum_of(&head);
    head[SUM_AT].copy_from_slice(format!("{sum:06o}\u{0} ").as_bytes());
    out.write_all(&head)
}

/// Writes the zeros behind a content of so many bytes.
pub(super) fn pad(out: &mut impl Write, bytes: u64) -> io::Result<()> {
    out.write_all(&[0; BLOCK_BYTES][..padding(bytes)])
}

/// Writes a file that is in memory.
pub(super) fn add(out: &mut impl Write, name: &str, content: &[u8], unix_s: u64) -> io::Result<()> {
    begin(out, name, content.len() as u64, unix_s)?;
    out.write_all(content)?;
    pad(out, content.len() as u64)
}

/// Writes the end of the archive.
pub(super) fn end(out: &mut impl Write) -> io::Result<()> {
    out.write_all(&[0; 2 * BLOCK_BYTES])
}

/// Reads the head of the next file; its content and [`skip_padding`] must follow. `None` at the end.
pub(super) fn next(archive: &mut impl Read) -> io::Result<Option<Entry>> {
    let mut head = [0; BLOCK_BYTES];
    archive.read_exact(&mut head)?;
    if head == [0; BLOCK_BYTES] {
        return Ok(None);
    }
    let told = octal(&head[SUM_AT]).ok_or_else(damaged)?;
    let mut blank = head;
    blank[SUM_AT].fill(b' ');
    if told != u64::from(sum_of(&blank)) {
        return Err(damaged());
    }
    let name = head[..100].split(|byte| *byte == 0).next().unwrap_or_default();
    let name = core::str::from_utf8(name).map_err(|_| damaged())?.to_string();
    let bytes = octal(&head[SIZE_AT]).ok_or_else(damaged)?;
    Ok(Some(Entry { name, bytes, is_file: matches!(head[TYPE_AT], b'0' | 0) }))
}

/// Reads the zeros behind a content of so many bytes.
pub(super) fn skip_padding(archive: &mut impl Read, bytes: u64) -> io::Result<()> {
    let mut zeros = [0; BLOCK_BYTES];
    archive.read_exact(&mut zeros[..padding(bytes)])?;
    all_zeros(&zeros)
}

/// Reads what is behind the end: zeros, as many as the tool that wrote them likes.
pub(super) fn skip_end(archive: &mut impl Read) -> io::Result<()> {
    let mut rest = [0; BLOCK_BYTES];
    archive.read_exact(&mut rest)?;
    loop {
        all_zeros(&rest)?;
        match archive.read(&mut rest)? {
            0 => return Ok(()),
            count => rest[count..].fill(0),
        }
    }
}

fn all_zeros(bytes: &[u8]) -> io::Result<()> {
    if bytes.iter().all(|byte| *byte == 0) { Ok(()) } else { Err(damaged()) }
}

fn damaged() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "it is no tar archive, or it is damaged")
}

const fn padding(bytes: u64) -> usize {
    (BLOCK_BYTES - bytes as usize % BLOCK_BYTES) % BLOCK_BYTES
}

fn sum_of(head: &[u8; BLOCK_BYTES]) -> u32 {
    head.iter().map(|byte| u32::from(*byte)).sum()
}

fn octal(field: &[u8]) -> Option<u64> {
    let text = core::str::from_utf8(field).ok()?.trim_matches([' ', '\0']);
    u64::from_str_radix(text, 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        let mut archive = Vec::new();
        for (name, content) in [("00000000.seg", &b"hello"[..]), ("00000001.seg", &[7; 1024])] {
            begin(&mut archive, name, content.len() as u64, 1_700_000_000).unwrap();
            archive.extend_from_slice(content);
            pad(&mut archive, content.len() as u64).unwrap();
        }
        end(&mut archive).unwrap();
        assert!(archive.len().is_multiple_of(BLOCK_BYTES));
        let mut rest = &archive[..];
        for (name, content) in [("00000000.seg", &b"hello"[..]), ("00000001.seg", &[7; 1024])] {
            let entry = next(&mut rest).unwrap().unwrap();
            assert_eq!((entry.name.as_str(), entry.bytes, entry.is_file), (name, content.len() as u64, true));
            let mut read = vec![0; content.len()];
            rest.read_exact(&mut read).unwrap();
            assert_eq!(read, content);
            skip_padding(&mut rest, entry.bytes).unwrap();
        }
        assert_eq!(next(&mut rest).unwrap(), None);
        archive[0] ^= 1;
        assert!(next(&mut &archive[..]).is_err());
    }
}
