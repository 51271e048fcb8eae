//! Decides which commits were certainly synced, although they cannot be read.
//!
//! A commit is written only after the sync of the previous one. So the header of the next commit proves it, even if the
//! rest of that commit is damaged. The footer of its segment and the header of the next segment prove it as well.

use std::io;

use crate::commit::{BLOCK_BYTES, COMMIT_HEADER_BYTES, StoredHeader, valid_commits};
use crate::damage::ReadAround;
use crate::disk::Disk;
use crate::segment::{Headers, SegmentHeader, SegmentRef};

use super::scan::Chain;

/// Returns the number of the newest commit that good segment headers prove to have been synced, or 0.
pub(super) fn synced_by_headers(headers: &Headers<'_>) -> u64 {
    headers.iter().map(|(_, _, header)| header.commits).max().unwrap_or(0)
}

/// Returns the number of the newest commit that commit headers prove to have been synced, or 0.
///
/// Headers are searched in `bytes` from offset `from` on. They must contain the identity of the store with this
/// `seed`, and the segment `sequence` or a number that can follow `chain`. The identity is secret, so no message body can imitate a
/// header. If there are several headers, each except the last proves its own commit too.
///
/// A torn or forged header cannot prove an arbitrarily high number: at most one commit per block is accepted.
///
/// The first commit of an epoch repeats the last commit of the epoch before, which may never have been synced. A kill
/// can tear the header of the first commit. Then the rest of that header, including `repeats`, is from an older use
/// of the file. For the first commit of an epoch, `repeats` therefore counts as at least 1.
pub(super) fn synced_by_commit_headers(
    bytes: &[u8],
    from: usize,
    sequence: u64,
    chain: &Chain,
    seed: u32,
) -> u64 {
    let (mut proven, mut headers, mut epoch) = (0, 0, chain.epoch);
    for at in (from..bytes.len()).step_by(BLOCK_BYTES) {
        // A truncated file may end inside the last field of a header, which is not needed here.
        let mut header = [0; COMMIT_HEADER_BYTES];
        let present = &bytes[at..bytes.len().min(at + COMMIT_HEADER_BYTES)];
        header[..present.len()].copy_from_slice(present);
        let Some(stored) = StoredHeader::read(&header) else { continue };
        if stored.owner().identity.seed() != seed {
            continue;
        }
        let header = stored.fields();
        let repeats = header.repeats.max(u32::from(header.epoch > epoch));
        epoch = epoch.max(header.epoch);
        let most = chain.number + ((at - from) / BLOCK_BYTES) as u64 + 1;
        let is_next = header.number > chain.number && header.number <= most;
        // A header from an older use of the file differs in both segment and number. If only one of them differs, the
        // header is damaged but belongs here. A repeated commit is not counted, because it may never have been
        // synced.
        headers += u64::from((header.segment == sequence || is_next) && repeats == 0);
        if header.segment == sequence && header.epoch >= chain.epoch && header.number <= most {
            proven = proven.max(header.number.saturating_sub(1 + u64::from(repeats)));
        }
    }
    if headers > 1 { proven.max(chain.number + headers - 1) } else { proven }
}

/// Returns whether commit headers, even of damaged commits, prove that a commit of the segment was synced.
/// The commits start at offset `first` of `bytes`.
pub(super) fn has_synced(bytes: &[u8], first: u32, header: &SegmentHeader, seed: u32) -> bool {
    let before = Chain { number: header.commits, epoch: header.epoch, ..Chain::default() };
    synced_by_commit_headers(bytes, first as usize, header.sequence, &before, seed) > header.commits
}

/// The end of a segment that is not the newest.
pub(super) struct SegmentEnd<'c> {
    pub(super) sequence: u64,
    /// The state after the segment's last whole commit.
    pub(super) chain: &'c Chain,
    /// The commit number in the segment's footer, or 0.
    pub(super) trailer: u64,
    /// The following segment.
    pub(super) next: SegmentRef,
    /// The number of commits in the header of the following segment, if that is good.
    pub(super) next_commits: Option<u64>,
}

/// Returns the number of the last commit that a segment certainly had. Commits that the next segment repeats do not
/// count. Returns 0 if no such commit is known. `buffer` is as long as a segment.
pub(super) fn proven_by_next<D: Disk>(
    disk: &mut ReadAround<'_, D>,
    end: &SegmentEnd<'_>,
    seed: u32,
    buffer: &mut [u8],
) -> io::Result<u64> {
    let SegmentEnd { sequence, chain, trailer, next, next_commits } = *end;
    if next.sequence != sequence + 1 || !chain.is_adjacent(sequence) {
        return Ok(trailer);
    }
    let length = if disk.is_unopened(next.slot) { 0 } else { disk.read(next.slot, 0, buffer)? };
    let mut headers = valid_commits(&buffer[..length], BLOCK_BYTES, seed).map(|(_, commit)| commit.header);
    let first = headers.find(|header| header.segment == next.sequence);
    let before = first.map(|first| first.number.saturating_sub(1));
    let missing = before.map(|before| before.saturating_sub(chain.number));
    if first.is_some_and(|first| missing <= Some(first.repeats.into())) {
        return Ok(0);
    }
    Ok(next_commits.or(before).unwrap_or(0).max(trailer))
}

/// Returns whether a segment whose last whole commit ends at offset `tail` may be followed by another one. A commit
/// takes at most a third of a segment, so a segment that is not half full has space for the next one.
pub(super) const fn may_have_next(tail: u32, segment_bytes: u32) -> bool {
    tail > segment_bytes / 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commit::{CommitHeader, Owner, begin, finish};
    use crate::segment::Identity;

    /// A kill tears the header of an epoch's first commit. The rest of the header is from an older use of the
    /// file.
    #[test]
    fn the_first_header_of_an_epoch_does_not_prove_the_commit_that_it_repeats() {
        let owner =
            Owner { identity: Identity { id: *b"0123456789abcdef", secret: 5 }, segment_bytes: 1 << 20 };
        let header = |epoch, number| {
            let (time_ms, records, repeats, has_group) = (1, 1, 0, false);
            let header = CommitHeader { epoch, number, segment: 15, time_ms, records, repeats, has_group };
            let mut buffer = Vec::new();
            begin(&mut buffer);
            finish(&mut buffer, &header, &owner);
            buffer
        };
        let chain = Chain { number: 158, epoch: 4, ..Chain::default() };
        let proven = |bytes: &[u8]| synced_by_commit_headers(bytes, 0, 15, &chain, owner.identity.seed());
        let lost = vec![0; BLOCK_BYTES];
        assert_eq!(proven(&[lost.clone(), header(5, 160)].concat()), 158);
        assert_eq!(proven(&[header(4, 159), header(5, 160)].concat()), 158);
        assert_eq!(proven(&[lost, header(5, 160), header(5, 161)].concat()), 160);
        let two = [header(4, 159), header(4, 160)].concat();
        assert_eq!(proven(&two), 159);
        // The file is truncated inside the second header: after the identity of the store, and before its secret.
        assert_eq!(proven(&two[..BLOCK_BYTES + 72]), 159);
        assert_eq!(proven(&two[..BLOCK_BYTES + 64]), 158);
    }
}
