//! What belongs to the log at a start: which header is whose, and which segments have left.
//!
//! Always true: nothing is written; what says that a segment has left is believed only where all that was
//! copied of it before is there.

use std::io;

use super::commit::{BLOCK_BYTES, CommitHeader, whole_commits};
use super::disk::Disk;
use super::reader::Reader;
use super::record::Record;
use super::record_walk::for_each_record;
use super::segment::{SegmentHeader, SegmentRef};

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
