//! Files that have no readable segment header: which segment each of them is, and whether it may be reused. Also reads
//! which store the first commits of such files name.

use std::io;

use leveret_core::mem::sort_by_key;

use crate::commit::{BLOCK_BYTES, Owner, StoredHeader, verified_length};
use crate::disk::Disk;
use crate::segment::{FoundFile, HeaderRead, Headers, SEGMENT_BYTES_MAX, SegmentRef, is_segment_size};
use crate::space::SlotUse;

use super::reader::Reader;

/// Number of bytes read at once to check whether a file is empty, and read of each unused file to find a newer segment.
pub(super) const LOOK_BYTES: usize = 16 * BLOCK_BYTES;

/// Returns whether a file with an empty first block contains anything else. If it does, its header was lost. Files
/// that were never written are read completely at every start; there are only a few.
pub(super) fn has_content<D: Disk>(disk: &mut D, slot: u32) -> io::Result<bool> {
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

/// Returns the owner of a store whose segment headers are all damaged: the owner that the first commits of most files
/// name.
pub(super) fn owner_in_commits<D: Disk>(disk: &mut D, found: &[FoundFile]) -> io::Result<Option<Owner>> {
    let mut named = Vec::new();
    for file in found.iter().filter(|file| file.header == HeaderRead::Bad) {
        named.extend(first_owner(disk, file.slot)?);
    }
    Ok(most_frequent(named))
}

/// Returns the owner in the first commit of a file that has a correct checksum; `None` if there is no such commit.
fn first_owner<D: Disk>(disk: &mut D, slot: u32) -> io::Result<Option<Owner>> {
    let mut bytes = [0; BLOCK_BYTES];
    for at in (BLOCK_BYTES as u64..SEGMENT_BYTES_MAX.into()).step_by(BLOCK_BYTES) {
        if disk.read(slot, at, &mut bytes)? < BLOCK_BYTES {
            return Ok(None);
        }
        let Some(stored) = StoredHeader::read(&bytes) else { continue };
        let (Some(length), owner) = (stored.commit_length(), stored.owner()) else { continue };
        if is_segment_size(owner.segment_bytes)
            && length <= owner.segment_bytes as usize
            && verified_length(disk, slot, at, owner.identity.seed())?.is_some()
        {
            return Ok(Some(owner));
        }
    }
    Ok(None)
}

/// Returns the value that occurs most often; the first of them in case of a tie, `None` if there are no values.
pub(super) fn most_frequent<T: Copy + PartialEq>(named: impl IntoIterator<Item = T>) -> Option<T> {
    let mut counted: Vec<(T, usize)> = Vec::new();
    for value in named {
        match counted.iter_mut().find(|(other, _)| *other == value) {
            Some((_, count)) => *count += 1,
            None => counted.push((value, 1)),
        }
    }
    let most = counted.iter().map(|(_, count)| *count).max()?;
    counted.into_iter().find(|(_, count)| *count == most).map(|(owner, _)| owner)
}

/// A file with an unreadable segment header, and the segments that its whole commits name.
pub(super) struct UnreadableHeader {
    pub(super) slot: u32,
    /// The named segments in the order of their first commit, each with its number of commits.
    named: Vec<(u64, usize)>,
}

impl UnreadableHeader {
    /// Creates the entry of a file from the segments that its whole commits name, in the order of the commits.
    pub(super) fn of(slot: u32, commits: impl Iterator<Item = u64>) -> Self {
        let mut named: Vec<(u64, usize)> = Vec::new();
        for segment in commits {
            match named.iter_mut().find(|(other, _)| *other == segment) {
                Some((_, count)) => *count += 1,
                None => named.push((segment, 1)),
            }
        }
        Self { slot, named }
    }
}

/// Decides which segment each of these files is; returns the segments in ascending order.
///
/// A file is normally the segment that its first whole commit names; commits of an earlier use of the file may
/// follow. But the flash may have moved a block of another file to this place. If two files would be the same
/// segment, the file with more commits of that segment is the segment. The other file is the segment that its next
/// commits name. No two files are the same segment.
pub(super) fn segments_of(mut files: Vec<UnreadableHeader>) -> Vec<SegmentRef> {
    sort_by_key(&mut files, |file| file.slot);
    loop {
        let claim = |file: &UnreadableHeader| file.named.first().copied();
        let is_outdone = |at: usize| {
            let (sequence, count) = claim(&files[at])?;
            let others = (0..files.len()).filter(|other| *other != at);
            let mut rivals = others.filter_map(|other| Some((other, claim(&files[other])?)));
            let outdoes =
                |(other, (of, more)): (usize, (u64, usize))| of == sequence && (more, at) > (count, other);
            rivals.any(outdoes).then_some(at)
        };
        match (0..files.len()).find_map(is_outdone) {
            Some(at) => drop(files[at].named.remove(0)),
            None => break,
        }
    }
    let named =
        |file: &UnreadableHeader| Some(SegmentRef { sequence: file.named.first()?.0, slot: file.slot });
    let mut found: Vec<SegmentRef> = files.iter().filter_map(named).collect();
    sort_by_key(&mut found, |segment| segment.sequence);
    found
}

impl<D: Disk> Reader<'_, '_, D> {
    /// Returns the use of each file, by slot.
    pub(super) fn slots(&mut self, found: &[FoundFile], headers: &Headers<'_>) -> Vec<SlotUse> {
        // The file of a segment may be missing.
        let of_log = self.index.segments().values().map(|segment| segment.slot);
        let of_files = found.iter().map(|file| file.slot).chain(self.set_aside.iter().copied());
        let last = of_files.chain(of_log).max();
        let count = last.map_or(0, |slot| slot as usize + 1);
        let mut slots = vec![SlotUse::Unusable; count];
        // A header that is only in the header copy does not prove that the file belongs to this store.
        let only_in_header_copy =
            self.header_copy.filter(|_| self.is_only_in_header_copy).map(|noted| noted.slot);
        let stand =
            || headers.iter().map(|(slot, _, _)| *slot).filter(|slot| Some(*slot) != only_in_header_copy);
        for file in found {
            let is_ours = stand().any(|slot| slot == file.slot)
                || matches!(file.header, HeaderRead::Empty)
                || (stand().next().is_some() && !matches!(file.header, HeaderRead::Good(..)))
                || self.is_blank_behind(file);
            if self.disk.is_unopened(file.slot) {
                continue;
            }
            slots[file.slot as usize] = match (is_ours, self.is_whole(file.slot)) {
                (true, true) => SlotUse::Free,
                (true, false) => SlotUse::Preparing,
                (false, _) => {
                    let unknown = SegmentRef { sequence: 0, slot: file.slot };
                    self.report.set_part_aside(unknown, 0..file.length as u32);
                    SlotUse::Unusable
                }
            };
        }
        for segment in self.index.segments().values() {
            slots[segment.slot as usize] = SlotUse::Live;
        }
        for slot in &self.set_aside {
            slots[*slot as usize] = SlotUse::Unusable;
        }
        slots
    }

    /// Returns whether the file contains only zeros behind the header. If the first start is interrupted while it
    /// creates the store, it leaves such a file with a bad header.
    fn is_blank_behind(&mut self, file: &FoundFile) -> bool {
        let length = self.disk.read(file.slot, BLOCK_BYTES as u64, &mut self.bytes).unwrap_or(0);
        self.bytes[..length].iter().all(|byte| *byte == 0)
    }

    /// Returns whether the file has its full length.
    fn is_whole(&mut self, slot: u32) -> bool {
        let at = u64::from(self.segment_bytes) - BLOCK_BYTES as u64;
        let mut block = [0; BLOCK_BYTES];
        self.disk.read(slot, at, &mut block).is_ok_and(|length| length == BLOCK_BYTES)
    }

    /// Excludes files with refused blocks from writing, because a refused block may contain a durable commit and become
    /// readable again.
    pub(super) fn protect_refused_files(&mut self, slots: &mut [SlotUse]) {
        for &(slot, _) in &self.disk.refused {
            let Some(state) = slots.get_mut(slot as usize) else { continue };
            if matches!(state, SlotUse::Free | SlotUse::Preparing) {
                *state = SlotUse::Unusable;
                self.report.set_part_aside(SegmentRef { sequence: 0, slot }, 0..self.segment_bytes);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(files: &[(u32, &[u64])]) -> Vec<(u64, u32)> {
        let files =
            files.iter().map(|(slot, named)| UnreadableHeader::of(*slot, named.iter().copied())).collect();
        segments_of(files).into_iter().map(|SegmentRef { sequence, slot }| (sequence, slot)).collect()
    }

    #[test]
    fn a_file_is_the_segment_that_its_first_commit_is_of() {
        assert_eq!(found(&[(0, &[9, 3, 3, 3]), (1, &[8, 8]), (2, &[])]), [(8, 1), (9, 0)]);
    }

    #[test]
    fn no_segment_is_two_files_and_a_block_of_another_file_does_not_hide_what_is_behind_it() {
        assert_eq!(found(&[(0, &[1, 1, 1]), (1, &[1, 2, 2]), (2, &[3])]), [(1, 0), (2, 1), (3, 2)]);
        assert_eq!(found(&[(0, &[1, 2, 2]), (1, &[1, 1])]), [(1, 1), (2, 0)]);
        // Each begins with a block of the other.
        assert_eq!(found(&[(0, &[2, 1, 1]), (1, &[1, 2, 2])]), [(1, 1), (2, 0)]);
        // A complete copy: the file with the lower number is chosen.
        assert_eq!(found(&[(4, &[7, 7]), (3, &[7, 7])]), [(7, 3)]);
    }
}
