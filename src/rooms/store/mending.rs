//! A segment as it is to be once it is repaired, in a file of its own beside the log.
//!
//! Why it exists: of a damaged segment the records move that are left, and the footer says where they are. A
//! power cut in between would leave them where nobody looks, and the next repair would write over them.
//!
//! ```text
//! mending │ magic "LEVERETM" │ CRC32C u32 │ slot u32 │ bytes u32 │ zeros │ the segment
//!           0                  8            12         16          20      4096
//! ```
//!
//! Little endian; the CRC is of all that comes behind it.
//!
//! Always true: the file is durable before the segment is written to, and removed when that is durable; who
//! has the store next, a start or another repair, finishes first, or does not write to the log.

use std::io;

use super::commit::{BLOCK_BYTES, whole_commits};
use super::disk::{Disk, MENDING_SLOT};
use super::read_around::ReadAround;
use super::segment::{HeaderRead, SEGMENT_BYTES_MAX, SegmentHeader};
use super::varint::Input;
use super::zeroes::ResizeZeroed;

const MAGIC: [u8; 8] = *b"LEVERETM";

/// Makes a segment what `bytes` say, at once or not at all; blocks that are so already are not touched.
///
/// # Errors
/// It is as it was, or the next who has the store finishes it.
pub(super) fn replace<D: Disk>(disk: &mut D, slot: u32, bytes: &[u8]) -> io::Result<()> {
    let mut out = vec![0; BLOCK_BYTES];
    out[..8].copy_from_slice(&MAGIC);
    out[12..16].copy_from_slice(&slot.to_le_bytes());
    out[16..20].copy_from_slice(&(bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
    let sum = crc32c::crc32c(&out[12..]);
    out[8..12].copy_from_slice(&sum.to_le_bytes());
    if let Err(error) = note(disk, &out) {
        // Nothing was begun, and a full file system would be the fuller for it.
        let _is_passed_over = remove(disk);
        return Err(error);
    }
    write_over(disk, slot, bytes)?;
    remove(disk)
}

/// Finishes what was begun; whether there was anything.
///
/// # Errors
/// It could not be, and the log must not be written to.
pub(super) fn finish<D: Disk>(disk: &mut D) -> io::Result<bool> {
    // What cannot be read was perhaps never whole.
    let Ok(known) = disk.read(MENDING_SLOT, 0, &mut [0]) else { return Ok(false) };
    if known == 0 {
        // A cut may leave an empty file, which reads like none.
        let _there_is_none = disk.remove(MENDING_SLOT);
        return Ok(false);
    }
    if let Some((slot, bytes)) = read(disk)
        && is_of(disk, slot, &bytes)
    {
        // One that was killed may have left it to the page cache.
        disk.sync(MENDING_SLOT)?;
        disk.sync_directory()?;
        write_over(disk, slot, &bytes)?;
    }
    remove(disk)?;
    Ok(true)
}

fn note<D: Disk>(disk: &mut D, bytes: &[u8]) -> io::Result<()> {
    disk.create(MENDING_SLOT)?;
    disk.write(MENDING_SLOT, 0, bytes)?;
    disk.sync(MENDING_SLOT)?;
    disk.sync_directory()
}

fn read<D: Disk>(disk: &mut D) -> Option<(u32, Vec<u8>)> {
    let mut bytes = vec![0; BLOCK_BYTES];
    let known = disk.read(MENDING_SLOT, 0, &mut bytes).ok()?;
    let mut input = Input::new(bytes.get(..known)?);
    let (magic, sum, slot) = (input.take(8)?, input.u32()?, input.u32()?);
    let length = input.u32()?;
    // A damaged length is not to cost the memory that it says: the file has to be as long.
    let has_all = |disk: &mut D| {
        let last = (BLOCK_BYTES as u64 + u64::from(length)).saturating_sub(1);
        disk.read(MENDING_SLOT, last, &mut [0]).is_ok_and(|known| known == 1)
    };
    if *magic != MAGIC || length > SEGMENT_BYTES_MAX || !has_all(disk) {
        return None;
    }
    bytes.resize_zeroed(BLOCK_BYTES + length as usize);
    let known = disk.read(MENDING_SLOT, 0, &mut bytes).ok()?;
    let is_whole = known == bytes.len() && crc32c::crc32c(&bytes[12..]) == sum;
    is_whole.then(|| (slot, bytes.split_off(BLOCK_BYTES)))
}

/// Whether the file has the segment still, and nobody who knew nothing of this has written to it since: every
/// start writes a commit of a life that was not there before.
fn is_of<D: Disk>(disk: &mut D, slot: u32, bytes: &[u8]) -> bool {
    let HeaderRead::Good(meant, _) = SegmentHeader::parse(bytes) else { return true };
    let mut there = vec![0; bytes.len()];
    let known = ReadAround::at_any_price(disk).read(slot, 0, &mut there).unwrap_or(0);
    there.truncate(known);
    let life = |bytes: &[u8]| {
        whole_commits(bytes, 0, meant.identity.seed()).map(|(_, commit)| commit.header.life).max()
    };
    match SegmentHeader::parse(&there) {
        HeaderRead::Good(header, _) if header.sequence != meant.sequence => false,
        _ => life(&there) <= life(bytes),
    }
}

fn write_over<D: Disk>(disk: &mut D, slot: u32, bytes: &[u8]) -> io::Result<()> {
    let mut there = vec![0; BLOCK_BYTES];
    for (at, block) in bytes.chunks(BLOCK_BYTES).enumerate() {
        let at = (at * BLOCK_BYTES) as u64;
        let known = disk.read(slot, at, &mut there).unwrap_or(0);
        if there.get(..known) != Some(block) {
            disk.write(slot, at, block)?;
        }
    }
    disk.sync(slot)
}

fn remove<D: Disk>(disk: &mut D) -> io::Result<()> {
    disk.remove(MENDING_SLOT)?;
    disk.sync_directory()
}

/// Makes an unfinished repair be forgotten.
///
/// # Errors
/// It is there still.
pub fn forget<D: Disk>(disk: &mut D) -> io::Result<()> {
    if disk.read(MENDING_SLOT, 0, &mut [0]).is_ok_and(|known| known > 0) { remove(disk) } else { Ok(()) }
}
