//! Reads, checks and encodes the [`HeaderCopy`].

use std::io;

use crate::commit::{BLOCK_BYTES, padded};
use crate::commit_builder::ResizeZeroed;
use crate::disk::{Disk, NEWEST_SLOT};
use crate::segment::{HeaderRead, SegmentHeader, SegmentRef};
use crate::varint::Input;

const MAGIC: [u8; 8] = *b"LEVERETN";

const HEADER_AT: usize = 16;

/// Maximum bytes of a header copy. No store has enough segments for a longer header.
const HEADER_COPY_BYTES_MAX: usize = 1 << 20;

/// A valid header copy: the newest segment's header once more, in the file `newest` beside the log.
///
/// Only the newest header contains the current list of segments, and no later segment proves that the newest segment
/// existed. Without the header copy, a start would use an older list of segments if the flash card lost the block of
/// the newest header. If the card lost the whole newest segment, the loss of its commits would not be detected.
///
/// ```text
/// newest | magic "LEVERETN" | CRC32C u32 | slot u32 | header, as in the segment | zeros to 4 KiB |
///          0                  8            12         16
/// ```
///
/// All integers are little endian. The CRC covers everything from `slot` to the end of the header's list.
///
/// # Invariants
/// - The header copy is written after the sync of the segment header, and synced before the first commit of the
///   segment is written. A header copy therefore proves that the segment header was durable, and a commit in the
///   newest segment proves that the header copy was.
/// - The header copy is written once per segment, and again by a start that continues with another segment.
/// - The content of an invalid header copy is ignored. If writing it fails, the header copy of an older segment
///   stays. A start that finds a newer segment ignores that header copy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct HeaderCopy {
    pub(super) segment: SegmentRef,
    pub(super) header: SegmentHeader,
    /// Number of bytes of the header in the segment.
    pub(super) header_bytes: u32,
}

/// Reads the header copy; returns `None` if there is no valid one.
pub(super) fn read<D: Disk>(disk: &mut D) -> Option<HeaderCopy> {
    let mut bytes = vec![0; BLOCK_BYTES];
    let mut known = disk.read(NEWEST_SLOT, 0, &mut bytes).ok()?;
    if let HeaderRead::Longer(needed) = SegmentHeader::parse(bytes.get(HEADER_AT..known)?) {
        bytes.resize_zeroed(padded(HEADER_AT.saturating_add(needed)).min(HEADER_COPY_BYTES_MAX));
        known = disk.read(NEWEST_SLOT, 0, &mut bytes).ok()?;
    }
    let mut input = Input::new(&bytes[..known]);
    let (magic, sum, slot) = (input.take(8)?, input.u32()?, input.u32()?);
    let HeaderRead::Good(header, header_bytes) = SegmentHeader::parse(input.rest()) else { return None };
    let end = HEADER_AT + SegmentHeader::length(input.rest())?;
    let is_good = *magic == MAGIC && sum == crc32c::crc32c(bytes.get(12..end)?);
    let segment = SegmentRef { sequence: header.sequence, slot };
    is_good.then_some(HeaderCopy { segment, header, header_bytes })
}

/// Writes the header copy of a segment whose header was just synced; returns the number of bytes written.
///
/// # Errors
/// The header copy cannot be written. There may be an older header copy or none.
pub(crate) fn write<D: Disk>(disk: &mut D, slot: u32, header: &[u8]) -> io::Result<usize> {
    let length = SegmentHeader::length(header).unwrap_or(0);
    let mut bytes = Vec::with_capacity(padded(HEADER_AT + length));
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&slot.to_le_bytes());
    bytes.extend_from_slice(&header[..length]);
    let sum = crc32c::crc32c(&bytes[12..]);
    bytes[8..12].copy_from_slice(&sum.to_le_bytes());
    bytes.resize_zeroed(padded(bytes.len()));
    let is_new = !is_there(disk);
    disk.create(NEWEST_SLOT)?;
    disk.write(NEWEST_SLOT, 0, &bytes)?;
    disk.sync(NEWEST_SLOT)?;
    if is_new {
        disk.sync_directory()?;
    }
    Ok(bytes.len())
}

/// Writes the header copy of the segment with which a start continues, before any file is reused.
///
/// # Errors
/// The header copy of a newer segment can neither be replaced nor invalidated. The start must fail, because that
/// segment would count as lost when its file is reused.
pub(crate) fn renew<D: Disk>(disk: &mut D, active: SegmentRef) -> io::Result<()> {
    let copied = read(disk).map_or(0, |note| note.segment.sequence);
    if copied == active.sequence {
        return Ok(());
    }
    let written = match header_of(disk, active) {
        Some(header) => write(disk, active.slot, &header).map(|_| ()),
        None if copied < active.sequence => return Ok(()),
        None => Err(io::ErrorKind::NotFound.into()),
    };
    match written {
        Err(_) if copied > active.sequence => forget(disk),
        // The header copy is written again when the next segment is opened.
        _ => Ok(()),
    }
}

/// Reads the header of a segment from its file.
fn header_of<D: Disk>(disk: &mut D, segment: SegmentRef) -> Option<Vec<u8>> {
    if segment.sequence == 0 {
        return None;
    }
    let mut bytes = vec![0; BLOCK_BYTES];
    let mut known = disk.read(segment.slot, 0, &mut bytes).ok()?;
    if let HeaderRead::Longer(needed) = SegmentHeader::parse(&bytes[..known]) {
        bytes.resize_zeroed(needed.min(HEADER_COPY_BYTES_MAX));
        known = disk.read(segment.slot, 0, &mut bytes).ok()?;
    }
    match SegmentHeader::parse(&bytes[..known]) {
        HeaderRead::Good(header, length) if header.sequence == segment.sequence => {
            bytes.truncate(length as usize);
            Some(bytes)
        }
        _ => None,
    }
}

/// Invalidates the header copy.
///
/// # Errors
/// The header copy cannot be invalidated.
pub fn forget<D: Disk>(disk: &mut D) -> io::Result<()> {
    if disk.read(NEWEST_SLOT, 0, &mut [0]).is_ok_and(|length| length == 0) {
        return Ok(());
    }
    let zeroed = disk.write(NEWEST_SLOT, 0, &[0; BLOCK_BYTES]).and_then(|()| disk.sync(NEWEST_SLOT));
    zeroed.or_else(|_| disk.remove(NEWEST_SLOT).and_then(|()| disk.sync_directory()))
}

/// Returns whether there is a header copy, valid or not.
fn is_there<D: Disk>(disk: &mut D) -> bool {
    disk.read(NEWEST_SLOT, 0, &mut [0]).map_or(true, |length| length > 0)
}
