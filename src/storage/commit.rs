//! Commits: the records that become durable together.
//!
//! ```text
//! commit | magic "LVC2" | CRC32C u32 | length u32 | epoch u32 | number u64 | segment u64 | time u64 |
//!          0              4            8            12          16           24            32
//!        | records u32 | repeats u32 | store id 16 | secret u64 | segment bytes u32 |
//!          40            44            48            64           72
//!        | records ... | zeros to the next 4 KiB |
//!          76            length
//! ```
//!
//! All integers are little endian.
//!
//! - The magic contains the version of the format (see `segment`).
//! - The CRC is computed over everything from `length` to the end of the records. Its start value is derived from the
//!   store's secret. So no client can send a message whose body would be taken for a commit of this store.
//! - `length` is the length of header and records in bytes, without the zeros.
//! - `repeats` is the number of directly preceding commits whose records this one contains again. If those commits are
//!   unreadable, nothing is lost. Only the first commit of an epoch repeats others. It is a copy of the last commit that
//!   the start of the broker found, because that one may not have been synced.
//! - Every commit contains the store's identity, so that its messages can be recovered even if the segment's header is
//!   lost.
//! - The two highest bits of `repeats` are a flag: both are set if some records form a group. The flag matters only for
//!   damaged commits, in which one of the bits may be damaged as well. So the flag counts as set if either bit is set.
//!
//! # Invariants
//! - The records of a commit belong to the log only if the whole commit is valid. The exception is good records that
//!   `damaged_commit` finds in a damaged commit.
//! - A commit begins at the start of a block.
//! - The number of a commit is higher than those of all earlier commits, and its epoch is not lower than theirs.

use core::mem::offset_of;
use std::io;

use bytemuck::{Pod, Zeroable};

use super::commit_builder::ResizeZeroed;
use super::disk::Disk;
use super::segment::COMMIT_MAGIC;
use super::segment::Identity;

/// Size of a block in bytes. Commits are padded to whole blocks, because a block that was synced is not written again.
pub const BLOCK_BYTES: usize = 4096;
/// Length of a commit header in bytes.
pub(super) const COMMIT_HEADER_BYTES: usize = size_of::<StoredHeader>();
/// Offset from which on the CRC covers the commit.
const CHECKED_FROM: usize = offset_of!(StoredHeader, length);

/// Number of bytes that [`verified_length`] reads at once.
const VERIFY_STEP_BYTES: usize = 16 << 10;

/// The bits of `repeats` that mark a commit with grouped records.
const GROUP_BITS: u32 = 3 << 30;

/// A commit header as it is on the disk. Its fields may be wrong until the checksum of the commit is verified.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct StoredHeader {
    magic: [u8; 4],
    crc: U32Le,
    length: U32Le,
    epoch: U32Le,
    number: U64Le,
    segment: U64Le,
    time_ms: U64Le,
    records: U32Le,
    /// With [`GROUP_BITS`].
    repeats: U32Le,
    store_id: [u8; 16],
    secret: U64Le,
    segment_bytes: U32Le,
}

// A header is read at any address.
const _: () = assert!(COMMIT_HEADER_BYTES == 76 && align_of::<StoredHeader>() == 1);

/// A little-endian integer without alignment.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(transparent)]
struct U32Le([u8; 4]);

/// A little-endian integer without alignment.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(transparent)]
struct U64Le([u8; 8]);

impl U32Le {
    const fn new(value: u32) -> Self {
        Self(value.to_le_bytes())
    }

    const fn get(self) -> u32 {
        u32::from_le_bytes(self.0)
    }
}

impl U64Le {
    const fn new(value: u64) -> Self {
        Self(value.to_le_bytes())
    }

    const fn get(self) -> u64 {
        u64::from_le_bytes(self.0)
    }
}

/// The header of a commit, except length, checksum and identity.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct CommitHeader {
    /// The epoch in which the commit was written.
    pub epoch: u32,
    /// Number of the commit. It increases by one with every commit, over all epochs.
    pub number: u64,
    /// Sequence number of the segment that contains the commit.
    pub segment: u64,
    /// Broker time when the commit was built, in milliseconds.
    pub time_ms: u64,
    /// Number of records.
    pub records: u32,
    /// Number of directly preceding commits whose records this commit repeats.
    pub repeats: u32,
    /// Whether some records may form a group. Then no record is used if the commit is damaged, because a part of the
    /// group may be missing.
    pub has_group: bool,
}

/// The store that a commit belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Owner {
    /// The identity of the store.
    pub identity: Identity,
    /// Size of each segment of the store in bytes.
    pub segment_bytes: u32,
}

/// A valid commit that was read from a segment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Commit<'a> {
    pub header: CommitHeader,
    /// The encoded records.
    pub records: &'a [u8],
}

/// Rounds `bytes` up to whole blocks.
pub(super) const fn padded(bytes: usize) -> usize {
    // Saturating, because a damaged length from the disk could overflow on a 32-bit board.
    bytes.div_ceil(BLOCK_BYTES).saturating_mul(BLOCK_BYTES)
}

/// Begins a commit in `buffer` with an empty header. The caller appends records, and then calls [`finish`].
pub(super) fn begin(buffer: &mut Vec<u8>) {
    buffer.clear();
    buffer.resize_zeroed(COMMIT_HEADER_BYTES);
}

/// Completes the commit in `buffer`: fills in the header with the checksum, and appends the padding.
pub(super) fn finish(buffer: &mut Vec<u8>, header: &CommitHeader, owner: &Owner) {
    let length = buffer.len();
    let mut stored = StoredHeader {
        magic: COMMIT_MAGIC,
        crc: U32Le::new(0),
        length: U32Le::new(length as u32),
        epoch: U32Le::new(header.epoch),
        number: U64Le::new(header.number),
        segment: U64Le::new(header.segment),
        time_ms: U64Le::new(header.time_ms),
        records: U32Le::new(header.records),
        repeats: U32Le::new(header.repeats & !GROUP_BITS | if header.has_group { GROUP_BITS } else { 0 }),
        store_id: owner.identity.id,
        secret: U64Le::new(owner.identity.secret),
        segment_bytes: U32Le::new(owner.segment_bytes),
    };
    let sum = crc32c::crc32c_append(owner.identity.seed(), &bytemuck::bytes_of(&stored)[CHECKED_FROM..]);
    stored.crc = U32Le::new(crc32c::crc32c_append(sum, &buffer[COMMIT_HEADER_BYTES..]));
    buffer[..COMMIT_HEADER_BYTES].copy_from_slice(bytemuck::bytes_of(&stored));
    buffer.resize_zeroed(padded(length));
}

/// Returns the length of the commit that begins at the start of `block`, from its unverified header. `None` if the block
/// does not begin with a commit header.
pub(super) fn claimed_length(block: &[u8]) -> Option<usize> {
    StoredHeader::read(block)?.commit_length()
}

/// Returns the length of the commit at offset `at` of a slot, after verifying its checksum. `None` if there is no valid
/// commit.
///
/// The commit is read in small steps, because its length is not verified before the end and may be huge.
///
/// # Errors
/// The disk cannot be read.
pub(super) fn verified_length<D: Disk>(
    disk: &mut D,
    slot: u32,
    at: u64,
    seed: u32,
) -> io::Result<Option<usize>> {
    let mut bytes = [0; VERIFY_STEP_BYTES];
    let read_bytes = disk.read(slot, at, &mut bytes)?;
    let Some(header) = StoredHeader::read(&bytes[..read_bytes]) else { return Ok(None) };
    let Some(length) = header.commit_length() else { return Ok(None) };
    let expected = header.crc.get();
    let mut done = read_bytes.min(length);
    let mut sum = crc32c::crc32c_append(seed, &bytes[CHECKED_FROM..done]);
    while done < length {
        let step = VERIFY_STEP_BYTES.min(length - done);
        if disk.read(slot, at + done as u64, &mut bytes[..step])? < step {
            return Ok(None);
        }
        sum = crc32c::crc32c_append(sum, &bytes[..step]);
        done += step;
    }
    Ok((sum == expected).then_some(length))
}

impl StoredHeader {
    /// Returns the first bytes of `block` as a header, although the block may not begin with one. Returns `None` if the
    /// block is too short.
    pub(super) fn read(block: &[u8]) -> Option<&Self> {
        bytemuck::try_from_bytes(block.get(..COMMIT_HEADER_BYTES)?).ok()
    }

    /// Returns the length of header and records in bytes. `None` if this is no commit header.
    pub(super) fn commit_length(&self) -> Option<usize> {
        let length = self.length.get() as usize;
        (self.magic == COMMIT_MAGIC && length >= COMMIT_HEADER_BYTES).then_some(length)
    }

    pub(super) const fn fields(&self) -> CommitHeader {
        let repeats = self.repeats.get();
        CommitHeader {
            epoch: self.epoch.get(),
            number: self.number.get(),
            segment: self.segment.get(),
            time_ms: self.time_ms.get(),
            records: self.records.get(),
            repeats: repeats & !GROUP_BITS,
            has_group: repeats & GROUP_BITS != 0,
        }
    }

    pub(super) const fn owner(&self) -> Owner {
        let identity = Identity { id: self.store_id, secret: self.secret.get() };
        Owner { identity, segment_bytes: self.segment_bytes.get() }
    }
}

impl CommitHeader {
    /// Returns whether a commit with this header can follow a commit with this epoch and number in `segment`. A commit
    /// that is left over from an earlier use of the file cannot.
    pub(super) const fn follows(&self, segment: u64, epoch: u32, number: u64) -> bool {
        self.segment == segment && self.epoch >= epoch && self.number > number
    }
}

/// Returns the valid commits in `bytes` from offset `from` on, each with its offset. All other blocks are skipped.
pub(super) fn valid_commits(
    bytes: &[u8],
    mut from: usize,
    seed: u32,
) -> impl Iterator<Item = (usize, Commit<'_>)> {
    core::iter::from_fn(move || {
        while from < bytes.len() {
            let at = from;
            let commit = Commit::parse(&bytes[at..], seed);
            from += commit.as_ref().map_or(BLOCK_BYTES, Commit::bytes);
            if let Some(commit) = commit {
                return Some((at, commit));
            }
        }
        None
    })
}

impl<'a> Commit<'a> {
    /// Parses the commit at the start of `bytes`. Returns `None` if the commit is incomplete or its checksum is wrong.
    pub(super) fn parse(bytes: &'a [u8], seed: u32) -> Option<Self> {
        let header = StoredHeader::read(bytes)?;
        let commit = bytes.get(..header.commit_length()?)?;
        let sum = crc32c::crc32c_append(seed, &commit[CHECKED_FROM..]);
        let records = &commit[COMMIT_HEADER_BYTES..];
        (sum == header.crc.get()).then(|| Self { header: header.fields(), records })
    }

    /// Returns the length of the commit in the segment in bytes, padding included.
    pub(super) const fn bytes(&self) -> usize {
        padded(COMMIT_HEADER_BYTES + self.records.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: CommitHeader = CommitHeader {
        epoch: 3,
        number: 77,
        segment: 9,
        time_ms: 123_456,
        records: 1,
        repeats: 2,
        has_group: true,
    };

    const OWNER: Owner =
        Owner { identity: Identity { id: *b"0123456789abcdef", secret: 5 }, segment_bytes: 1 << 20 };

    fn commit(payload: usize) -> Vec<u8> {
        let mut buffer = Vec::new();
        begin(&mut buffer);
        buffer.extend((0..payload).map(|byte| byte as u8));
        finish(&mut buffer, &HEADER, &OWNER);
        buffer
    }

    #[test]
    fn a_commit_reads_back_and_fills_whole_blocks() {
        for (payload, blocks) in [(0, 1), (4020, 1), (4021, 2), (100_000, 25)] {
            let bytes = commit(payload);
            assert_eq!(bytes.len(), blocks * BLOCK_BYTES);
            assert_eq!(StoredHeader::read(&bytes).map(StoredHeader::owner), Some(OWNER));
            let parsed = Commit::parse(&bytes, OWNER.identity.seed()).unwrap();
            assert_eq!((parsed.header, parsed.records.len(), parsed.bytes()), (HEADER, payload, bytes.len()));
        }
    }

    #[test]
    fn a_wrong_seed_a_flipped_bit_or_a_missing_end_is_detected() {
        let bytes = commit(5000);
        let seed = OWNER.identity.seed();
        assert!(Commit::parse(&bytes, seed + 1).is_none());
        assert!(Commit::parse(&bytes[..5000], seed).is_none());
        for at in 0..5076 {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            assert!(Commit::parse(&damaged, seed).is_none(), "byte {at}");
        }
        assert!(Commit::parse(&[], seed).is_none() && Commit::parse(&[0; 4096], seed).is_none());
    }

    /// The bytes of a header, field by field as in the layout at the top of this file.
    const STORED: [&[u8]; 12] = [
        b"LVC2",
        &[0xe4, 0x00, 0xfa, 0xa6],
        &[82, 0, 0, 0],
        &[3, 0, 0, 0],
        &[8, 7, 6, 5, 4, 3, 2, 1],
        &[9, 0, 0, 0, 0, 0, 0, 0],
        &[0x40, 0xe2, 0x01, 0, 0, 0, 0, 0],
        &[1, 0, 0, 0],
        &[2, 0, 0, 0xc0],
        b"0123456789abcdef",
        &[5, 0, 0, 0, 0, 0, 0, 0],
        &[0, 0, 0x10, 0],
    ];

    #[test]
    fn the_bytes_of_a_header_never_change() {
        let header = CommitHeader { number: 0x0102_0304_0506_0708, ..HEADER };
        let mut buffer = Vec::new();
        begin(&mut buffer);
        buffer.extend(0..6);
        finish(&mut buffer, &header, &OWNER);
        assert_eq!(buffer[..COMMIT_HEADER_BYTES], STORED.concat());
        let commit = Commit::parse(&buffer, OWNER.identity.seed()).unwrap();
        assert_eq!((commit.header, commit.records), (header, &[0, 1, 2, 3, 4, 5][..]));
        // The header is read from any address.
        for offset in 1..8 {
            let bytes = [vec![0; offset], buffer.clone()].concat();
            let read = Commit::parse(&bytes[offset..], OWNER.identity.seed()).map(|commit| commit.header);
            assert_eq!(read, Some(header));
        }
    }
}
