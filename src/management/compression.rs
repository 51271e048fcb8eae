//! Compresses answers with gzip (RFC 1952).
//!
//! An answer is compressed in pieces. Each piece is compressed in one step without the data before it, so no memory of
//! the compressor is kept between steps. Its bytes end at a byte boundary (an empty stored block, RFC 1951 section
//! 3.2.4), so the client can use a piece before the next one arrives.
//!
//! # Invariants
//! - A step compresses at most [`PIECE_BYTES_MAX`] bytes.
//! - Without a step in progress, no memory is used.

use crc32fast::Hasher;
use miniz_oxide::deflate::core::{
    CompressorOxide, TDEFLFlush, TDEFLStatus, compress, create_comp_flags_from_zip_params,
};

/// The most bytes of an answer that one step compresses. This takes about 3 million instructions.
pub(super) const PIECE_BYTES_MAX: usize = 32 << 10;
/// A shorter body is not compressed: the header lines and the trailer would cost more than is saved.
pub(super) const COMPRESSED_BYTES_MIN: usize = 200;
/// The most memory of a step, in bytes: the compressor, and the piece before and after.
pub const COMPRESSION_BYTES: usize = (320 << 10) + 2 * PIECE_BYTES_MAX;

/// Compression level of zlib, from 1 to 9. Levels above 4 take twice the time and save 3 % on lists.
const LEVEL: i32 = 4;
/// Deflate without a header of its own, with a window of 32 KiB.
const RAW_WINDOW_BITS: i32 = -15;
/// The strategy for text.
const DEFAULT_STRATEGY: i32 = 0;
/// Header of a gzip file: deflate, no name, no time, unknown system.
const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];
/// Bytes that a piece may grow by, at most: blocks that are stored, the end of the piece, header and trailer.
const GROWTH_BYTES: usize = 256;

/// An answer in the format of gzip, as far as it was compressed.
#[derive(Clone, Debug, Default)]
pub(super) struct GzipStream {
    checksum: Hasher,
    length: u32,
    has_begun: bool,
}

impl GzipStream {
    /// Compresses the next piece of the answer, and appends the result to `out`.
    pub(super) fn append(&mut self, out: &mut Vec<u8>, piece: &[u8]) {
        self.deflate(out, piece, TDEFLFlush::Sync);
    }

    /// Compresses the last piece of the answer, and appends the result and the trailer to `out`.
    pub(super) fn end(mut self, out: &mut Vec<u8>, piece: &[u8]) {
        self.deflate(out, piece, TDEFLFlush::Finish);
        out.extend_from_slice(&self.checksum.finalize().to_le_bytes());
        out.extend_from_slice(&self.length.to_le_bytes());
    }

    fn deflate(&mut self, out: &mut Vec<u8>, mut piece: &[u8], flush: TDEFLFlush) {
        if !core::mem::replace(&mut self.has_begun, true) {
            out.extend_from_slice(&HEADER);
        }
        self.checksum.update(piece);
        self.length = self.length.wrapping_add(piece.len() as u32);
        let flags = create_comp_flags_from_zip_params(LEVEL, RAW_WINDOW_BITS, DEFAULT_STRATEGY);
        let mut compressor = Box::new(CompressorOxide::new(flags));
        let mut at = out.len();
        out.resize(at + piece.len() / 2 + GROWTH_BYTES, 0);
        loop {
            let (status, taken, written) = compress(&mut compressor, piece, &mut out[at..], flush);
            (piece, at) = (&piece[taken..], at + written);
            let is_done = match status {
                TDEFLStatus::Done => true,
                // A flush is complete when the output has space left.
                TDEFLStatus::Okay => piece.is_empty() && at < out.len(),
                TDEFLStatus::BadParam | TDEFLStatus::PutBufFailed => {
                    unreachable!("the compressor writes to a slice that has space")
                }
            };
            if is_done {
                break;
            }
            out.resize(at + piece.len() + GROWTH_BYTES, 0);
        }
        out.truncate(at);
    }
}

/// Returns an entity tag of a body: its checksum and its length, as at the end of a gzip file.
pub(super) fn tag_of(body: &[u8]) -> u64 {
    u64::from(crc32fast::hash(body)) << 32 | u64::from(body.len() as u32)
}

/// Returns whether a header `Accept-Encoding` allows gzip (RFC 9110 section 12.5.3).
pub(super) fn accepts_gzip(value: &str) -> bool {
    value.split(',').any(|coding| {
        let (name, weight) = coding.split_once(';').unwrap_or((coding, ""));
        let weight = weight.trim().to_ascii_lowercase();
        let is_refused = weight.strip_prefix("q=").and_then(|weight| weight.parse().ok()) == Some(0.0);
        name.trim().eq_ignore_ascii_case("gzip") && !is_refused
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;

    /// Decompresses with the program `gzip`, which checks the trailer.
    fn decompressed(bytes: &[u8]) -> Vec<u8> {
        let program = Command::new("gzip")
            .args(["--decompress", "--stdout"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let mut program = program.unwrap();
        let (mut input, bytes) = (program.stdin.take().unwrap(), bytes.to_vec());
        let writer = std::thread::spawn(move || input.write_all(&bytes).unwrap());
        let done = program.wait_with_output().unwrap();
        writer.join().unwrap();
        assert!(done.status.success());
        done.stdout
    }

    /// Returns bytes that cannot be compressed.
    fn noise(count: usize) -> Vec<u8> {
        let mut state = 1_u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) as u8
        };
        (0..count).map(|_| next()).collect()
    }

    #[test]
    fn pieces_make_one_gzip_file() {
        let row = br#"{"name":"telemetry","vhost":"/","messages_ready":17},"#;
        let text: Vec<u8> = row.iter().copied().cycle().take(100_000).collect();
        let mixed = [&text[..], &noise(100_000), &text[..]].concat();
        for body in [&b""[..], b"x", &text, &noise(70_000), &mixed] {
            let (mut stream, mut out) = (GzipStream::default(), b"before".to_vec());
            let mut pieces = body.chunks(PIECE_BYTES_MAX).peekable();
            while let Some(piece) = pieces.next_if(|piece| piece.len() == PIECE_BYTES_MAX) {
                stream.append(&mut out, piece);
            }
            stream.end(&mut out, pieces.next().unwrap_or_default());
            assert!(out.starts_with(b"before\x1f\x8b"));
            assert!(decompressed(&out[6..]) == body, "{} bytes", body.len());
        }
    }

    #[test]
    fn a_piece_can_be_read_before_the_next_one() {
        let (mut stream, mut out) = (GzipStream::default(), Vec::new());
        stream.append(&mut out, b"first");
        let read = miniz_oxide::inflate::decompress_to_vec(&out[HEADER.len()..]).unwrap_err();
        assert!(read.output.starts_with(b"first"));
    }

    #[test]
    fn rows_of_a_list_become_eight_times_shorter() {
        let row = |number: u32| {
            format!("{{\"name\":\"sensor.{number}\",\"messages_ready\":{},\"consumers\":1}},\n", number * 7)
        };
        let text: String = (0..300).map(row).collect();
        let mut out = Vec::new();
        GzipStream::default().end(&mut out, text.as_bytes());
        assert!(out.len() * 8 < text.len(), "{} of {}", out.len(), text.len());
    }

    #[test]
    fn the_header_of_a_client_decides() {
        for yes in ["gzip", "deflate, gzip;q=0.5, br", "GZIP", "gzip, deflate, br, zstd"] {
            assert!(accepts_gzip(yes), "{yes}");
        }
        for no in ["", "identity", "gzip;q=0", "gzip; Q=0.0", "br", "x-gzipped"] {
            assert!(!accepts_gzip(no), "{no}");
        }
    }
}
