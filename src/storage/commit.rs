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
//!   unreadable, nothing is lost. Only the first commit of an epoch repeats others: it is a copy of the last commit that
//!   was found at the start of the broker, which may not have been synced.
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

use std::io;

use super::commit_builder::ResizeZeroed;
use super::disk::Disk;
use super::segment::COMMIT_MAGIC;
use super::segment::Identity;
use super::varint::Input;

/// Size of a block in bytes. Commits are padded to whole blocks, because a block that was synced is not written again.
pub const BLOCK_BYTES: usize = 4096;
/// Length of a commit header in bytes.
pub(super) const COMMIT_HEADER_BYTES: usize = 76;

/// Number of bytes that [`verified_length`] reads at once.
const VERIFY_STEP_BYTES: usize = 16 << 10;

/// The bits of `repeats` that mark a commit with grouped records.
const GROUP_BITS: u32 = 3 << 30;

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
    buffer[..4].copy_from_slice(&COMMIT_MAGIC);
    buffer[8..12].copy_from_slice(&(length as u32).to_le_bytes());
    buffer[12..16].copy_from_slice(&header.epoch.to_le_bytes());
    buffer[16..24].copy_from_slice(&header.number.to_le_bytes());
    buffer[24..32].copy_from_slice(&header.segment.to_le_bytes());
    buffer[32..40].copy_from_slice(&header.time_ms.to_le_bytes());
    buffer[40..44].copy_from_slice(&header.records.to_le_bytes());
    let repeats = header.repeats & !GROUP_BITS | if header.has_group { GROUP_BITS } else { 0 };
    buffer[44..48].copy_from_slice(&repeats.to_le_bytes());
    buffer[48..64].copy_from_slice(&owner.identity.id);
    buffer[64..72].copy_from_slice(&owner.identity.secret.to_le_bytes());
    buffer[72..76].copy_from_slice(&owner.segment_bytes.to_le_bytes());
    let sum = crc32c::crc32c_append(owner.identity.seed(), &buffer[8..length]);
    buffer[4..8].copy_from_slice(&sum.to_le_bytes());
    buffer.resize_zeroed(padded(length));
}

/// Returns the length of the commit that begins at the start of `block`, from its unverified header. `None` if the block
/// does not begin with a commit header.
pub(super) fn claimed_length(block: &[u8]) -> Option<usize> {
    let mut input = Input::new(block);
    let magic = input.take(4)?;
    let length = input.take(4).and_then(|_| input.u32())? as usize;
    (*magic == COMMIT_MAGIC && length >= COMMIT_HEADER_BYTES).then_some(length)
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
    let Some(length) = claimed_length(&bytes[..read_bytes]) else { return Ok(None) };
    let expected = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
    let mut done = read_bytes.min(length);
    let mut sum = crc32c::crc32c_append(seed, &bytes[8..done]);
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

/// The fields of a commit header, read from a block that may not be one. Nothing is verified.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct ClaimedHeader {
    /// Whether the block begins with the magic of a commit.
    pub has_magic: bool,
    /// The identity of the store.
    pub identity: Identity,
    /// Length of header and records in bytes.
    pub length: usize,
    /// See [`Commit::header`].
    pub header: CommitHeader,
}

impl ClaimedHeader {
    /// Reads the fields from the start of `block`. Returns `None` if the block is too short.
    pub(super) fn read(block: &[u8]) -> Option<Self> {
        let mut input = Input::new(block);
        let has_magic = *input.take(4)? == COMMIT_MAGIC;
        input.u32()?;
        let length = input.u32()? as usize;
        let header = CommitHeader::read(&mut input)?;
        let identity = Identity { id: input.take(16)?.try_into().ok()?, secret: input.u64()? };
        Some(Self { has_magic, identity, length, header })
    }
}

impl CommitHeader {
    /// Returns whether a commit with this header can follow a commit with this epoch and number in `segment`. A commit
    /// that is left over from an earlier use of the file cannot.
    pub(super) const fn follows(&self, segment: u64, epoch: u32, number: u64) -> bool {
        self.segment == segment && self.epoch >= epoch && self.number > number
    }

    /// Reads the fields from the epoch on.
    fn read(input: &mut Input<'_>) -> Option<Self> {
        let (epoch, number, segment, time_ms) = (input.u32()?, input.u64()?, input.u64()?, input.u64()?);
        let (records, repeats) = (input.u32()?, input.u32()?);
        let (has_group, repeats) = (repeats & GROUP_BITS != 0, repeats & !GROUP_BITS);
        Some(Self { epoch, number, segment, time_ms, records, repeats, has_group })
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
        let length = claimed_length(bytes)?;
        let commit = bytes.get(..length)?;
        let mut input = Input::new(commit);
        input.take(4)?;
        let sum = input.u32()?;
        if crc32c::crc32c_append(seed, input.rest()) != sum {
            return None;
        }
        input.u32()?;
        let header = CommitHeader::read(&mut input)?;
        Some(Self { header, records: commit.get(COMMIT_HEADER_BYTES..)? })
    }

    /// Returns the store in the header of the commit at the start of `bytes`, without verifying the checksum. `None` if
    /// `bytes` is too short.
    pub(super) fn claimed_owner(bytes: &[u8]) -> Option<Owner> {
        let mut input = Input::new(bytes.get(48..)?);
        let identity = Identity { id: input.take(16)?.try_into().ok()?, secret: input.u64()? };
        Some(Owner { identity, segment_bytes: input.u32()? })
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
            assert_eq!(Commit::claimed_owner(&bytes), Some(OWNER));
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
}
