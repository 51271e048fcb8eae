//! The newest segment's header once more, beside the log.
//!
//! Why it exists: only the newest header says which segments are the log, and nothing behind the newest
//! segment proves that it ever was there. So a card that loses that header's block would bring back what an
//! older list has, and one that loses the segment would take its commits without a word.
//!
//! ```text
//! newest | magic "LEVERETN" | CRC32C u32 | slot u32 | header, as it stands in the segment | zeros to 4 KiB |
//!          0                  8            12         16
//! ```
//!
//! All little endian; the CRC covers everything from `slot` to the end of the header's list.
//!
//! Always true: it is written after the sync of the header and synced before the first commit of the segment
//! is written, so it proves the header durable, and a commit of the newest segment proves the note; it is
//! written once for each segment, and again at a start that goes on from another one. A note that is not good
//! says nothing of the newest segment. One that could not be written is that of an older segment, and what is
//! found of a newer one is believed instead.

use std::io;

use super::commit::{BLOCK_BYTES, padded};
use super::disk::{Disk, NEWEST_SLOT};
use super::segment::{HeaderRead, SegmentHeader, SegmentRef};
use super::varint::Input;
use super::zeroes::ResizeZeroed;

const MAGIC: [u8; 8] = *b"LEVERETN";
const HEADER_AT: usize = 16;
/// A longer one is no note: no store has so many segments.
const NOTE_BYTES_MAX: usize = 1 << 20;

/// What a good note says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Note {
    pub(super) segment: SegmentRef,
    pub(super) header: SegmentHeader,
    /// Bytes that it takes in the segment.
    pub(super) header_bytes: u32,
}

/// Whether there is a note, good or not.
fn is_there<D: Disk>(disk: &mut D) -> bool {
    disk.read(NEWEST_SLOT, 0, &mut [0]).map_or(true, |length| length > 0)
}

/// Reads the note; `None` when there is none that is good.
pub(super) fn read<D: Disk>(disk: &mut D) -> Option<Note> {
    let mut bytes = vec![0; BLOCK_BYTES];
    let mut known = disk.read(NEWEST_SLOT, 0, &mut bytes).ok()?;
    if let HeaderRead::Longer(needed) = SegmentHeader::parse(bytes.get(HEADER_AT..known)?) {
        bytes.resize_zeroed(padded(HEADER_AT.saturating_add(needed)).min(NOTE_BYTES_MAX));
        known = disk.read(NEWEST_SLOT, 0, &mut bytes).ok()?;
    }
    let mut input = Input::new(&bytes[..known]);
    let (magic, sum, slot) = (input.take(8)?, input.u32()?, input.u32()?);
    let HeaderRead::Good(header, header_bytes) = SegmentHeader::parse(input.rest()) else { return None };
    let end = HEADER_AT + SegmentHeader::length(input.rest())?;
    let is_good = *magic == MAGIC && sum == crc32c::crc32c(bytes.get(12..end)?);
    let segment = SegmentRef { sequence: header.sequence, slot };
    is_good.then_some(Note { segment, header, header_bytes })
}

/// Writes the note of a segment whose header was just synced; returns the bytes.
///
/// # Errors
/// It cannot be written: an older one may have stayed, or none.
pub(super) fn write<D: Disk>(disk: &mut D, slot: u32, header: &[u8]) -> io::Result<usize> {
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

/// Makes the note that of the segment that a start goes on from, before any file is used again.
///
/// # Errors
/// A note of a newer segment stays, which will be missed when its file is used again.
pub(super) fn renew<D: Disk>(disk: &mut D, active: SegmentRef) -> io::Result<()> {
    let noted = read(disk).map_or(0, |note| note.segment.sequence);
    if noted == active.sequence {
        return Ok(());
    }
    let written = match header_of(disk, active) {
        Some(header) => write(disk, active.slot, &header).map(|_| ()),
        None if noted < active.sequence => return Ok(()),
        None => Err(io::ErrorKind::NotFound.into()),
    };
    match written {
        Err(_) if noted > active.sequence => forget(disk),
        // The next segment will have one.
        _ => Ok(()),
    }
}

/// The header of a segment as it stands there.
fn header_of<D: Disk>(disk: &mut D, segment: SegmentRef) -> Option<Vec<u8>> {
    if segment.sequence == 0 {
        return None;
    }
    let mut bytes = vec![0; BLOCK_BYTES];
    let mut known = disk.read(segment.slot, 0, &mut bytes).ok()?;
    if let HeaderRead::Longer(needed) = SegmentHeader::parse(&bytes[..known]) {
        bytes.resize_zeroed(needed.min(NOTE_BYTES_MAX));
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

/// Makes the note say nothing.
///
/// # Errors
/// It stays as it is.
pub fn forget<D: Disk>(disk: &mut D) -> io::Result<()> {
    if disk.read(NEWEST_SLOT, 0, &mut [0]).is_ok_and(|length| length == 0) {
        return Ok(());
    }
    let zeroed = disk.write(NEWEST_SLOT, 0, &[0; BLOCK_BYTES]).and_then(|()| disk.sync(NEWEST_SLOT));
    zeroed.or_else(|_| disk.remove(NEWEST_SLOT).and_then(|()| disk.sync_directory()))
}
