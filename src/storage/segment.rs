//! Segments: the files of the log, all of one size, created once and recycled.
//!
//! ```text
//! segment | header, whole blocks | commit | commit | ... | unused | footer, whole blocks |
//!
//! header  | magic "LEVERET2" | CRC32C u32 | length u32 | segment bytes u32 | epoch u32 |
//!           0                  8            12           16                  20
//!         | store id 16 | secret u64 | sequence u64 | time u64 | commits u64 | live n u32 |
//!           24            40           48             56         64            72
//!         | flags u32 | more u32 | `more` bytes, partly ignored |
//!           76          80         84
//!         | n × (sequence minus the previous one, slot): varints, ascending, without this segment |
//!
//! more    | written u64: bytes that all epochs wrote to the disk before this header, zeros included; or nothing
//!         | the rest is ignored: repairs of older versions wrote a u64 here
//! flags   | 1: access definitions have existed, so a log without any has lost them
//! ```
//!
//! All integers are little endian. A *slot* is the number in a file's name; several segments use it one after the
//! other. A *sequence* is the number of a segment in the order of the log, and is never reused.
//!
//! - The CRC covers the magic and everything from `length` to the end of the list.
//! - The last byte of the magic is the version of the format. The broker does not open a store of a newer version.
//!   The layout of magic, CRC and length is the same in every version, so that the CRC distinguishes a damaged
//!   version byte from a newer version.
//! - Unknown flags in the lower 16 bits are ignored. An unknown flag in the upper 16 bits means that a newer
//!   version wrote the header.
//!
//! ```text
//! version | segment     | commit | footer |
//! 1       | "LEVERET1"  | "LVC1" | "LVF2" | Leveret 0.1; not read any more
//! 2       | "LEVERET2"  | "LVC2" | "LVF3" |
//! ```
//!
//! Additions need no new version if older programs may ignore them. These are records with a kind that has
//! [`OPTIONAL`] set, the lower flags of a header, and what follows the flags.
//!
//! # Invariants
//! - A header is synced before the first commit of its segment is written. So a commit proves that the header
//!   before it was durable. A header without a commit may be half written and proves nothing.
//! - Segments that the newest proven header does not list are not part of the log, whatever their files
//!   contain.
//! - A store of an unknown version is reported, and its files are neither interpreted nor overwritten.

use core::cmp::Ordering;

use super::commit::{BLOCK_BYTES, padded};
use super::commit_builder::ResizeZeroed;
use super::varint::{self, Input};

/// The version of the format.
pub const FORMAT: u8 = 2;
/// The first bytes of a segment.
pub(super) const SEGMENT_MAGIC: [u8; 8] = *b"LEVERET2";
/// The first bytes of a commit.
pub(super) const COMMIT_MAGIC: [u8; 4] = *b"LVC2";
/// The first bytes of a footer's trailer.
pub(super) const FOOTER_MAGIC: [u8; 4] = *b"LVF3";
/// The bit in a record's kind which means that a reader may ignore the record if it does not know the kind.
pub(super) const OPTIONAL: u8 = 0x80;
/// The kind of a record with a queue name, which only footers contain.
pub(super) const NAMED: u8 = OPTIONAL | 1;
// Kind `OPTIONAL | 2` (130) was written by repairs of older versions. It is ignored, and not used again.

/// The identity of a store, created once when it is formatted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    /// Distinguishes this store from others; not secret.
    pub id: [u8; 16],
    /// Part of the initial value of every checksum of a commit. It is never sent to clients, so no client can forge a
    /// commit.
    pub secret: u64,
}

impl Identity {
    /// Returns the initial value of this store's commit checksums.
    pub(super) fn seed(&self) -> u32 {
        crc32c::crc32c_append(crc32c::crc32c(&self.secret.to_le_bytes()), &self.id)
    }
}

const MAGIC_OF_ANY_VERSION: [u8; 7] = *b"LEVERET";
const FIXED_BYTES: usize = 76;
const HAS_ACCESS: u32 = 1;
/// Mask of the flags that are ignored if they are unknown.
const FLAGS_PASSED_OVER: u32 = 0xffff;
/// Bytes that are the same in every version of the format: magic, CRC, length.
const PREFIX_BYTES: usize = 16;
/// The smallest segment in bytes.
pub const SEGMENT_BYTES_MIN: u32 = 64 << 10;
/// The largest segment in bytes. A segment is read into memory as a whole, and a larger one, as a damaged or foreign
/// header may claim, would exceed the address space of a 32-bit board.
pub const SEGMENT_BYTES_MAX: u32 = 256 << 20;

/// Returns whether a store can have segments of this size. Sizes come from the disk and must be validated.
pub(super) const fn is_segment_size(segment_bytes: u32) -> bool {
    SEGMENT_BYTES_MIN <= segment_bytes
        && segment_bytes <= SEGMENT_BYTES_MAX
        && (segment_bytes as usize).is_multiple_of(BLOCK_BYTES)
}

/// Returns the CRC of a header, from its magic to the end of its list.
fn checksum(header: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&header[..8]), &header[12..])
}

/// A segment of the log and its file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct SegmentRef {
    /// The segment's sequence, from 1.
    pub sequence: u64,
    /// The slot of its file.
    pub slot: u32,
}

/// The content of a segment header.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct SegmentHeader {
    /// The identity of the store.
    pub identity: Identity,
    /// Bytes of each segment of the store.
    pub segment_bytes: u32,
    /// The epoch that opened the segment.
    pub epoch: u32,
    /// Its sequence.
    pub sequence: u64,
    /// Broker time when the segment was opened, in milliseconds.
    pub time_ms: u64,
    /// Number of the newest commit that was synced before the header was written. If a start finds fewer commits,
    /// some are lost.
    pub commits: u64,
    /// Whether access definitions existed before the header was written.
    pub has_access: bool,
    /// Number of bytes that all epochs wrote before the header; 0 if the version that wrote it did not count them.
    pub written: u64,
    /// All older segments of the log, ascending.
    pub live: Vec<SegmentRef>,
}

/// The result of parsing the first bytes of a segment file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum HeaderRead {
    /// A good header, and its length in bytes.
    Good(SegmentHeader, u32),
    /// A header of a newer version of the format.
    NewerVersion,
    /// A header of version 1.
    OlderVersion,
    /// The header is longer than the given bytes. Contains the number of bytes needed.
    Longer(usize),
    /// The bytes are all zero: the file was prepared and no header was written to it.
    Empty,
    /// The bytes are no header of any known version, or the header is damaged.
    Bad,
}

/// A file of the store, as found.
pub(super) struct FoundFile {
    pub(super) slot: u32,
    pub(super) length: u64,
    pub(super) header: HeaderRead,
}

impl FoundFile {
    /// Returns whether the file contains only prepared zeros.
    pub(super) fn is_unused(&self) -> bool {
        self.header == HeaderRead::Empty && self.length > 0
    }
}

/// A good header: slot of the file, length of the header in bytes, content.
pub(super) type FoundHeader<'h> = (u32, u32, &'h SegmentHeader);

/// The good headers, newest first.
pub(super) type Headers<'h> = [FoundHeader<'h>];

impl SegmentHeader {
    /// Writes the header in whole blocks to `out`.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.clear();
        out.resize_zeroed(FIXED_BYTES);
        let flags = if self.has_access { HAS_ACCESS } else { 0 };
        out.extend_from_slice(&flags.to_le_bytes());
        out.extend_from_slice(&(size_of::<u64>() as u32).to_le_bytes());
        out.extend_from_slice(&self.written.to_le_bytes());
        let mut previous = SegmentRef { sequence: 0, slot: 0 };
        for live in &self.live {
            varint::put(out, live.sequence - previous.sequence);
            varint::put(out, live.slot.into());
            previous = *live;
        }
        let length = out.len();
        out[..8].copy_from_slice(&SEGMENT_MAGIC);
        out[12..16].copy_from_slice(&(length as u32).to_le_bytes());
        out[16..20].copy_from_slice(&self.segment_bytes.to_le_bytes());
        out[20..24].copy_from_slice(&self.epoch.to_le_bytes());
        out[24..40].copy_from_slice(&self.identity.id);
        out[40..48].copy_from_slice(&self.identity.secret.to_le_bytes());
        out[48..56].copy_from_slice(&self.sequence.to_le_bytes());
        out[56..64].copy_from_slice(&self.time_ms.to_le_bytes());
        out[64..72].copy_from_slice(&self.commits.to_le_bytes());
        out[72..76].copy_from_slice(&(self.live.len() as u32).to_le_bytes());
        let sum = checksum(out);
        out[8..12].copy_from_slice(&sum.to_le_bytes());
        out.resize_zeroed(padded(length));
    }

    /// Returns the claimed length of the header at the start of `bytes`, without the zeros behind it.
    pub(super) fn length(bytes: &[u8]) -> Option<usize> {
        Input::new(bytes.get(12..)?).u32().map(|length| length as usize)
    }

    /// Parses the header at the start of `bytes`.
    pub(super) fn parse(bytes: &[u8]) -> HeaderRead {
        if bytes.iter().all(|byte| *byte == 0) {
            return HeaderRead::Empty;
        }
        if !bytes.starts_with(&MAGIC_OF_ANY_VERSION) {
            return HeaderRead::Bad;
        }
        let Some(length) = Self::length(bytes) else { return HeaderRead::Bad };
        if length > bytes.len() {
            return HeaderRead::Longer(padded(length));
        }
        let sum = Input::new(&bytes[8..]).u32();
        if length < PREFIX_BYTES || sum != Some(checksum(&bytes[..length])) {
            return HeaderRead::Bad;
        }
        match bytes[7].cmp(&SEGMENT_MAGIC[7]) {
            Ordering::Less => return HeaderRead::OlderVersion,
            Ordering::Equal => {}
            Ordering::Greater => return HeaderRead::NewerVersion,
        }
        match Self::parse_checked(&bytes[16..length]) {
            Some((_, flags)) if flags & !(HAS_ACCESS | FLAGS_PASSED_OVER) != 0 => HeaderRead::NewerVersion,
            Some((header, _)) => HeaderRead::Good(header, padded(length) as u32),
            None => HeaderRead::Bad,
        }
    }

    /// Parses a header with a right checksum, from the field after `length` on. Returns the header and its flags;
    /// `None` if it is malformed.
    fn parse_checked(bytes: &[u8]) -> Option<(Self, u32)> {
        let mut input = Input::new(bytes);
        let (segment_bytes, epoch) = (input.u32()?, input.u32()?);
        let identity = Identity { id: input.take(16)?.try_into().ok()?, secret: input.u64()? };
        let (sequence, time_ms, commits, count) = (input.u64()?, input.u64()?, input.u64()?, input.u32()?);
        let (flags, more) = (input.u32()?, input.u32()?);
        let written = Input::new(input.take(more as usize)?).u64().unwrap_or(0);
        let mut live = Vec::new();
        let mut previous = 0;
        for _ in 0..count {
            // No broker writes a header that lists a segment twice, or lists its own segment, so such a header is
            // forged.
            let older = u64::checked_add(previous, input.varint()?)?;
            if older <= previous || older >= sequence {
                return None;
            }
            previous = older;
            live.push(SegmentRef { sequence: previous, slot: u32::try_from(input.varint()?).ok()? });
        }
        let has_access = flags & HAS_ACCESS != 0;
        let header =
            Self { identity, segment_bytes, epoch, sequence, time_ms, commits, has_access, written, live };
        (is_segment_size(segment_bytes) && input.is_empty()).then_some((header, flags))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(live: u64) -> SegmentHeader {
        SegmentHeader {
            has_access: live > 1,
            written: 1 << 40 | live,
            identity: Identity { id: *b"0123456789abcdef", secret: 42 },
            segment_bytes: SEGMENT_BYTES_MIN,
            epoch: 2,
            sequence: 4 * live + 9,
            time_ms: 77,
            commits: 99,
            live: (0..live).map(|n| SegmentRef { sequence: 1 + 4 * n, slot: n as u32 }).collect(),
        }
    }

    #[test]
    fn headers_of_any_length_read_back() {
        let mut bytes = Vec::new();
        for live in [0, 1, 900, 4096] {
            header(live).encode(&mut bytes);
            assert_eq!(SegmentHeader::parse(&bytes), HeaderRead::Good(header(live), bytes.len() as u32));
        }
        assert_eq!(SegmentHeader::parse(&bytes[..4096]), HeaderRead::Longer(bytes.len()));
    }

    #[test]
    fn damage_emptiness_and_newer_versions_are_told_apart() {
        let mut bytes = Vec::new();
        header(5).encode(&mut bytes);
        for at in 0..78 {
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << bit;
                let read = SegmentHeader::parse(&damaged);
                assert!(matches!(read, HeaderRead::Bad | HeaderRead::Longer(_)), "byte {at}");
            }
        }
        assert_eq!(SegmentHeader::parse(&[0; 4096]), HeaderRead::Empty);
        let good = bytes.clone();
        bytes[7] = b'3';
        assert_eq!(SegmentHeader::parse(&bytes), HeaderRead::Bad);
        sum_again(&mut bytes);
        assert_eq!(SegmentHeader::parse(&bytes), HeaderRead::NewerVersion);
        bytes[7] = b'1';
        sum_again(&mut bytes);
        assert_eq!(SegmentHeader::parse(&bytes), HeaderRead::OlderVersion);
        for bit in 1..32 {
            bytes.copy_from_slice(&good);
            bytes[76 + bit / 8] |= 1 << (bit % 8);
            sum_again(&mut bytes);
            let read = SegmentHeader::parse(&bytes);
            assert_eq!(read == HeaderRead::NewerVersion, bit >= 16, "flag {bit}");
            assert!(bit >= 16 || read == HeaderRead::Good(header(5), bytes.len() as u32), "flag {bit}");
        }
    }

    #[test]
    fn what_a_later_version_puts_behind_the_flags_is_passed_over() {
        let mut bytes = Vec::new();
        header(5).encode(&mut bytes);
        let length = u32::from_le_bytes(bytes[12..16].try_into().unwrap()) + 9;
        bytes[80] += 9;
        bytes.splice(92..92, *b"something");
        bytes.truncate(BLOCK_BYTES);
        bytes[12..16].copy_from_slice(&length.to_le_bytes());
        sum_again(&mut bytes);
        assert_eq!(SegmentHeader::parse(&bytes), HeaderRead::Good(header(5), BLOCK_BYTES as u32));
    }

    #[test]
    fn a_list_that_names_a_segment_twice_or_the_one_it_is_in_is_no_header() {
        let mut bytes = Vec::new();
        let of = |sequences: &[u64]| SegmentHeader {
            live: sequences.iter().map(|&sequence| SegmentRef { sequence, slot: sequence as u32 }).collect(),
            sequence: 9,
            ..header(0)
        };
        for (sequences, is_one) in
            [(&[3, 8][..], true), (&[3, 3], false), (&[3, 9], false), (&[3, 12], false)]
        {
            of(sequences).encode(&mut bytes);
            let read = SegmentHeader::parse(&bytes);
            assert_eq!(read == HeaderRead::Bad, !is_one, "{sequences:?}: {read:?}");
        }
    }

    fn sum_again(bytes: &mut [u8]) {
        let length = u32::from_le_bytes(bytes[12..16].try_into().unwrap()) as usize;
        let sum = checksum(&bytes[..length]);
        bytes[8..12].copy_from_slice(&sum.to_le_bytes());
    }

    #[test]
    fn no_length_that_a_disk_can_hold_wraps_or_asks_for_all_memory() {
        let mut bytes = vec![0; 4096];
        bytes[..8].copy_from_slice(&SEGMENT_MAGIC);
        bytes[12..16].fill(0xff);
        assert!(matches!(SegmentHeader::parse(&bytes), HeaderRead::Longer(length) if length > 1 << 31));
        for (segment_bytes, is_one) in [(SEGMENT_BYTES_MAX, true), (1 << 31, false), (0xffff_f000, false)] {
            SegmentHeader { segment_bytes, ..header(5) }.encode(&mut bytes);
            let is_read = matches!(SegmentHeader::parse(&bytes), HeaderRead::Good(..));
            assert_eq!(is_read, is_one, "{segment_bytes}");
        }
    }
}
