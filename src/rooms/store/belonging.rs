//! What belongs to the log at a start: which header is whose, and which segments have left.
//!
//! Always true: nothing is written; what says that a segment has left is believed only where all that was
//! copied of it before is there.

use std::io;

use crate::mem::sort_by_key;

use super::commit::{BLOCK_BYTES, CommitHeader, whole_commits};
use super::disk::Disk;
use super::reader::Reader;
use super::record::Record;
use super::record_walk::for_each_record;
use super::segment::{SegmentHeader, SegmentRef};

/// A file whose header cannot be read, and what its whole commits say.
pub(super) struct Headless {
    pub(super) slot: u32,
    /// The segments that they are of, in the order of their first, and how many each has.
    said: Vec<(u64, usize)>,
}

impl Headless {
    /// Of a file whose commits say this, one after the other.
    pub(super) fn of(slot: u32, commits: impl Iterator<Item = u64>) -> Self {
        let mut said: Vec<(u64, usize)> = Vec::new();
        for segment in commits {
            match said.iter_mut().find(|(other, _)| *other == segment) {
                Some((_, count)) => *count += 1,
                None => said.push((segment, 1)),
            }
        }
        Self { slot, said }
    }
}

/// Which segment each of these files is, rising: what its first commit says, for behind the newest ones there may be
/// those of an older use. A card may have put a block of another file there. So where two say the same, the one with
/// more such commits is it, and the other is what its next ones say.
pub(super) fn segments_of(mut files: Vec<Headless>) -> Vec<SegmentRef> {
    sort_by_key(&mut files, |file| file.slot);
    loop {
        let claim = |file: &Headless| file.said.first().copied();
        let is_outdone = |at: usize| {
            let (sequence, count) = claim(&files[at])?;
            let others = (0..files.len()).filter(|other| *other != at);
            let mut rivals = others.filter_map(|other| Some((other, claim(&files[other])?)));
            let outdoes =
                |(other, (of, more)): (usize, (u64, usize))| of == sequence && (more, at) > (count, other);
            rivals.any(outdoes).then_some(at)
        };
        match (0..files.len()).find_map(is_outdone) {
            Some(at) => drop(files[at].said.remove(0)),
            None => break,
        }
    }
    let said = |file: &Headless| Some(SegmentRef { sequence: file.said.first()?.0, slot: file.slot });
    let mut found: Vec<SegmentRef> = files.iter().filter_map(said).collect();
    sort_by_key(&mut found, |segment| segment.sequence);
    found
}

impl<D: Disk> Reader<'_, '_, D> {
    /// Takes out headers that stand before a segment which is not theirs: a card has put their block there.
    /// What is behind them is read all the same.
    pub(super) fn drop_misplaced(&mut self, headers: &mut Vec<(u32, u32, &SegmentHeader)>) -> io::Result<()> {
        let twice = |header: &SegmentHeader| {
            headers.iter().filter(|(_, _, other)| other.sequence == header.sequence).count() > 1
        };
        let doubtful: Vec<_> = headers.iter().copied().filter(|(_, _, header)| twice(header)).collect();
        for (slot, bytes, header) in doubtful {
            if !self.has_begun(SegmentRef { sequence: header.sequence, slot }, bytes, header)? {
                headers.retain(|(other, _, _)| *other != slot);
                self.misplaced.push(slot);
            }
        }
        Ok(())
    }

    /// Takes out of the list what has left the log since the header that made it. What only the last commit
    /// says does not count yet: it may be in the page cache only, and then the segment is still needed. Nor
    /// does what is said behind missing commits, for the copies may be among those: a segment counts as long
    /// as its file is no other's.
    pub(super) fn leave_out(
        &mut self,
        newest: u64,
        list: &mut Vec<SegmentRef>,
        headers: &[(u32, u32, &SegmentHeader)],
    ) -> io::Result<()> {
        let mut left = Vec::new();
        let mut has_gap = list.iter().any(|segment| self.disk.is_unopened(segment.slot));
        let mut before_last = 0;
        for segment in list.iter().filter(|segment| segment.sequence >= newest) {
            let length = self.disk.read(segment.slot, 0, &mut self.bytes)?;
            let header = headers.iter().find(|(_, _, header)| header.sequence == segment.sequence);
            let mut number = header.map(|(_, _, header)| header.commits);
            let commits = whole_commits(&self.bytes[..length], BLOCK_BYTES, self.identity.seed());
            for (_, commit) in commits.filter(|(_, commit)| commit.header.segment == segment.sequence) {
                let CommitHeader { number: this, covers, .. } = commit.header;
                has_gap |= number.is_some_and(|before| this > before + 1 + u64::from(covers));
                number = Some(this.max(number.unwrap_or(0)));
                before_last = left.len();
                for_each_record(commit.records, 0, |record, _| {
                    if let Record::Left { segment } = record {
                        left.push((*segment, has_gap));
                    }
                });
            }
        }
        let is_there = |sequence| headers.iter().any(|(_, _, header)| header.sequence == sequence);
        let last = left.split_off(before_last);
        self.leaving = last.into_iter().map(|(segment, _)| segment).collect();
        left.retain(|(segment, is_behind_gap)| !is_behind_gap || !is_there(*segment));
        list.retain(|segment| !left.iter().any(|(left, _)| *left == segment.sequence));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(files: &[(u32, &[u64])]) -> Vec<(u64, u32)> {
        let files = files.iter().map(|(slot, said)| Headless::of(*slot, said.iter().copied())).collect();
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
        // Each has a block of the other first.
        assert_eq!(found(&[(0, &[2, 1, 1]), (1, &[1, 2, 2])]), [(1, 1), (2, 0)]);
        // A whole copy: the lower file is it.
        assert_eq!(found(&[(4, &[7, 7]), (3, &[7, 7])]), [(7, 3)]);
    }
}
