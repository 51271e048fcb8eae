//! What remains prove about what cannot be read: a start must not take for an unfinished end what is damage,
//! nor for somebody else's files what is its own.
//!
//! A commit is written only after the sync of the one before it. So whatever tells of a later one proves that
//! an earlier one was durable, whether or not that later one is whole itself: a header or a footer says how
//! many there were, the head of a torn commit says its number. And each commit says whose it is.
//!
//! Always true: nothing is written; a torn or a hostile head cannot claim more commits than there are blocks
//! for them, nor memory: what it says of its length is proven block by block.

use std::io;

use super::chain::Chain;
use super::commit::{BLOCK_BYTES, Claim, Commit, Owner, claimed_length, proven_length, whole_commits};
use super::disk::Disk;
use super::read_around::ReadAround;
use super::record::Record;
use super::segment::{
    FoundFile, HeaderRead, Headers, SEGMENT_BYTES_MAX, SegmentHeader, SegmentRef, is_segment_size,
};

/// The records of the last commit, to be written again, and how many they are. That a segment has left is not
/// said again of one that is needed.
pub(super) fn records_again(commit: &Commit<'_>, is_needed: impl Fn(u64) -> bool) -> (Vec<u8>, u32) {
    let (mut again, mut count) = (Vec::with_capacity(commit.records.len()), commit.header.records);
    let mut rest = commit.records;
    while let Ok((record, length)) = Record::parse_known(rest) {
        if matches!(record, Record::Left { segment } if is_needed(segment)) {
            count -= 1;
        } else {
            again.extend_from_slice(&rest[..length]);
        }
        rest = &rest[length..];
    }
    (again, count)
}

/// Bytes read at once to see that a file is empty.
const LOOK_BYTES: usize = 16 * BLOCK_BYTES;

/// Whether anything lies behind an empty header, however far: then the header was not always empty. The files
/// that nothing was ever written to are read for that at every start; there are a few of them at most.
pub(super) fn has_more<D: Disk>(disk: &mut D, slot: u32) -> io::Result<bool> {
    let mut bytes = vec![0; LOOK_BYTES];
    for at in (BLOCK_BYTES as u64..SEGMENT_BYTES_MAX.into()).step_by(LOOK_BYTES) {
        let length = disk.read(slot, at, &mut bytes)?;
        if bytes[..length].iter().any(|byte| *byte != 0) {
            return Ok(true);
        }
        if length < LOOK_BYTES {
            break;
        }
    }
    Ok(false)
}

/// Whose store it is, by the commits in files whose headers are all damaged: what most files say.
pub(super) fn owner_of<D: Disk>(disk: &mut D, found: &[FoundFile]) -> io::Result<Option<Owner>> {
    let mut said = Vec::new();
    for file in found.iter().filter(|file| file.header == HeaderRead::Bad) {
        said.extend(first_owner(disk, file.slot)?);
    }
    Ok(said_most(said))
}

/// Whose the store is when each file says this: what most of them say, and of as many the first.
pub(super) fn said_most<T: Copy + PartialEq>(said: impl IntoIterator<Item = T>) -> Option<T> {
    let mut counted: Vec<(T, usize)> = Vec::new();
    for owner in said {
        match counted.iter_mut().find(|(other, _)| *other == owner) {
            Some((_, count)) => *count += 1,
            None => counted.push((owner, 1)),
        }
    }
    let most = counted.iter().map(|(_, count)| *count).max()?;
    counted.into_iter().find(|(_, count)| *count == most).map(|(owner, _)| owner)
}

fn first_owner<D: Disk>(disk: &mut D, slot: u32) -> io::Result<Option<Owner>> {
    let mut bytes = [0; BLOCK_BYTES];
    for at in (BLOCK_BYTES as u64..SEGMENT_BYTES_MAX.into()).step_by(BLOCK_BYTES) {
        if disk.read(slot, at, &mut bytes)? < BLOCK_BYTES {
            return Ok(None);
        }
        let Some(length) = claimed_length(&bytes) else { continue };
        let owner = Commit::claimed_owner(&bytes).filter(|owner| is_segment_size(owner.segment_bytes));
        if let Some(owner) = owner.filter(|owner| length <= owner.segment_bytes as usize)
            && proven_length(disk, slot, at, owner.identity.seed())?.is_some()
        {
            return Ok(Some(owner));
        }
    }
    Ok(None)
}

/// The number of the last commit that segment `sequence` surely had and that nothing repeats, or 0: the chain stands at
/// its last whole one, its footer says `trailer` or 0, and the header of the `next` segment in the log says that so many
/// were synced before it. The buffer is as long as a segment.
pub(super) fn proven_by_next<D: Disk>(
    disk: &mut ReadAround<'_, D>,
    (sequence, chain, trailer): (u64, &Chain, u64),
    next: Option<(SegmentRef, Option<u64>)>,
    seed: u32,
    buffer: &mut [u8],
) -> io::Result<u64> {
    let next = next.filter(|(next, _)| next.sequence == sequence + 1 && chain.is_adjacent(sequence));
    let Some((next, told)) = next else { return Ok(trailer) };
    let length = if disk.is_unopened(next.slot) { 0 } else { disk.read(next.slot, 0, buffer)? };
    let mut headers = whole_commits(&buffer[..length], BLOCK_BYTES, seed).map(|(_, commit)| commit.header);
    let first = headers.find(|header| header.segment == next.sequence);
    let before = first.map(|first| first.number.saturating_sub(1));
    let missing = before.map(|before| before.saturating_sub(chain.number));
    if first.is_some_and(|first| missing <= Some(first.covers.into())) {
        return Ok(0);
    }
    Ok(told.or(before).unwrap_or(0).max(trailer))
}

/// The newest commit that good headers know to have been synced.
pub(super) fn synced_by_headers(headers: &Headers<'_>) -> u64 {
    headers.iter().map(|(_, _, header)| header.commits).max().unwrap_or(0)
}

/// Whether heads of commits, however damaged, prove that one of the segment with this header was synced. The
/// file's `bytes` have its commits from byte `first` on.
pub(super) fn has_synced(bytes: &[u8], first: u32, header: &SegmentHeader, seed: Option<u32>) -> bool {
    let before = Chain { number: header.commits, life: header.life, ..Chain::default() };
    synced_by_heads(bytes, first as usize, header.sequence, &before, seed) > header.commits
}

/// The newest commit that heads of commits prove to have been synced: they lie in `bytes` from byte `from`
/// on, are of the store with this `seed`, claim to be of segment `sequence` and to come after `chain`.
///
/// A head proves it by its number; and of so many heads, however damaged, all but the last were synced. What
/// makes a head one is whose it says it is: that is secret, so no body of a message can look like one.
///
/// The first commit of a life repeats the last one before it, which may never have been synced. A kill can tear its head,
/// and then the rest of the head, `covers` too, is that of an older use of the file. So `covers` counts as 1 there at least.
pub(super) fn synced_by_heads(
    bytes: &[u8],
    from: usize,
    sequence: u64,
    chain: &Chain,
    seed: Option<u32>,
) -> u64 {
    let (mut proven, mut heads, mut life) = (0, 0, chain.life);
    for at in (from..bytes.len()).step_by(BLOCK_BYTES) {
        let claim = Claim::read(&bytes[at..]).filter(|claim| Some(claim.identity.seed()) == seed);
        let Some(Claim { header, .. }) = claim else { continue };
        let covers = header.covers.max(u32::from(header.life > life));
        life = life.max(header.life);
        let most = chain.number + ((at - from) / BLOCK_BYTES) as u64 + 1;
        let is_next = header.number > chain.number && header.number <= most;
        // What an older use of the file left has another segment and an older number; damage hits one of
        // them. What a commit repeats may never have been synced.
        heads += u64::from((header.segment == sequence || is_next) && covers == 0);
        if header.segment == sequence && header.life >= chain.life && header.number <= most {
            proven = proven.max(header.number.saturating_sub(1 + u64::from(covers)));
        }
    }
    if heads > 1 { proven.max(chain.number + heads - 1) } else { proven }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commit::{CommitHeader, begin, finish};
    use crate::identity::Identity;

    /// A kill tears the head of the first commit of a life, and the rest of the head is that of an older use of the file.
    #[test]
    fn the_first_head_of_a_life_proves_nothing_of_the_commit_that_it_repeats() {
        let owner =
            Owner { identity: Identity { id: *b"0123456789abcdef", secret: 5 }, segment_bytes: 1 << 20 };
        let head = |life, number| {
            let (time_ms, records, covers, has_group) = (1, 1, 0, false);
            let header = CommitHeader { life, number, segment: 15, time_ms, records, covers, has_group };
            let mut buffer = Vec::new();
            begin(&mut buffer);
            finish(&mut buffer, &header, &owner);
            buffer
        };
        let chain = Chain { number: 158, life: 4, ..Chain::default() };
        let proven = |bytes: &[u8]| synced_by_heads(bytes, 0, 15, &chain, Some(owner.identity.seed()));
        let lost = vec![0; BLOCK_BYTES];
        assert_eq!(proven(&[lost.clone(), head(5, 160)].concat()), 158);
        assert_eq!(proven(&[head(4, 159), head(5, 160)].concat()), 158);
        assert_eq!(proven(&[lost, head(5, 160), head(5, 161)].concat()), 160);
        assert_eq!(proven(&[head(4, 159), head(4, 160)].concat()), 159);
    }
}
