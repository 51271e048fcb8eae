//! Which files are the log, and in which order.
//!
//! The newest header with a commit behind it has the list of the log. Segments whose headers cannot be read, but whose
//! commits are newer, come behind it; what commits since then say has left is left out.
//!
//! Always true: nothing is written; no segment is listed twice; what says that a segment has left is believed only where
//! all that was copied of it before is there.

use core::cmp::Reverse;
use std::io;

use leveret_core::mem::{sort, sort_by_key};

use super::commit::{BLOCK_BYTES, CommitHeader, whole_commits};
use super::disk::Disk;
use super::footer;
use super::headless::{Headless, segments_of};
use super::identity::Identity;
use super::newest_note::Note;
use super::read_around::ReadAround;
use super::record::Record;
use super::record_walk::for_each_record;
use super::segment::{FoundFile, FoundHeader, HeaderRead, SegmentHeader, SegmentRef};
use super::sync_proof::{has_more, has_synced, said_most};
use super::zeroes::ResizeZeroed;

/// The most bytes that a header is read with: no store has so many segments.
const HEADER_BYTES_MAX: usize = 1 << 20;

/// The header of every file there is.
pub(super) fn read_headers<D: Disk>(disk: &mut D) -> io::Result<Vec<FoundFile>> {
    let mut slots = disk.slots()?;
    sort(&mut slots);
    let mut found = Vec::with_capacity(slots.len());
    let mut bytes = vec![0; BLOCK_BYTES];
    for slot in slots {
        bytes.resize_zeroed(BLOCK_BYTES);
        let mut length = disk.read(slot, 0, &mut bytes)?;
        let mut header = SegmentHeader::parse(&bytes[..length]);
        if let HeaderRead::Longer(needed) = header {
            bytes.resize_zeroed(needed.min(HEADER_BYTES_MAX));
            length = disk.read(slot, 0, &mut bytes)?;
            header = SegmentHeader::parse(&bytes[..length]);
        }
        if matches!(header, HeaderRead::Longer(_)) {
            // Its length is what is damaged.
            header = HeaderRead::Bad;
        }
        if header == HeaderRead::Empty && length > 0 && has_more(disk, slot)? {
            header = HeaderRead::Bad;
        }
        found.push(FoundFile { slot, length: length as u64, header });
    }
    Ok(found)
}

/// The good headers of this store, newest first.
pub(super) fn own_headers(found: &[FoundFile]) -> Vec<FoundHeader<'_>> {
    let good = found.iter().filter_map(|file| match &file.header {
        HeaderRead::Good(header, bytes) => Some((file.slot, *bytes, header)),
        _ => None,
    });
    let mut headers: Vec<FoundHeader<'_>> = good.collect();
    sort_newest_first(&mut headers);
    // Somebody may have put the file of another store here, and that one may be the newest.
    let ours = said_most(headers.iter().map(|(_, _, header)| header.identity));
    headers.retain(|(_, _, header)| Some(header.identity) == ours);
    headers
}

/// Puts the header that is noted beside the log in the place of the one that its file has lost; tells whether
/// it has.
pub(super) fn take_noted<'h>(headers: &mut Vec<FoundHeader<'h>>, note: &'h Note) -> bool {
    let is_newer = headers.iter().all(|(_, _, header)| header.sequence < note.segment.sequence);
    let is_ours = headers.is_empty() || headers.iter().any(|(_, _, h)| h.identity == note.header.identity);
    if is_newer && is_ours {
        headers.retain(|(slot, _, _)| *slot != note.segment.slot);
        headers.push((note.segment.slot, note.header_bytes, &note.header));
        sort_newest_first(headers);
    }
    is_newer && is_ours
}

fn sort_newest_first(headers: &mut [FoundHeader<'_>]) {
    sort_by_key(headers, |(slot, _, header)| (Reverse(header.sequence), *slot));
}

/// The log as its files say.
#[derive(Default)]
pub(super) struct Listing {
    /// Its segments, oldest first.
    pub(super) segments: Vec<SegmentRef>,
    /// Those of them whose header cannot be read.
    pub(super) headless: Vec<SegmentRef>,
    /// Files whose header is of another one.
    pub(super) misplaced: Vec<u32>,
    /// Segments that the last commit leaves out. It may be in the page cache only, so they are listed.
    pub(super) leaving: Vec<u64>,
}

/// What lists the log.
pub(super) struct Lister<'l, 'r, D> {
    pub(super) disk: &'l mut ReadAround<'r, D>,
    /// As long as a segment.
    pub(super) bytes: &'l mut [u8],
    /// The note beside the log is good.
    pub(super) has_note: bool,
    pub(super) identity: Identity,
}

impl<D: Disk> Lister<'_, '_, D> {
    /// Lists the log, and takes out headers that stand before a segment which is not theirs: a card has put their block
    /// there. What is behind them is read all the same.
    pub(super) fn list(
        &mut self,
        headers: &mut Vec<FoundHeader<'_>>,
        found: &[FoundFile],
    ) -> io::Result<Listing> {
        let mut listing = Listing::default();
        self.drop_misplaced(headers, &mut listing)?;
        let (mut newest, mut not_begun) = (0, Vec::new());
        for &(slot, bytes, header) in headers.iter() {
            let segment = SegmentRef { sequence: header.sequence, slot };
            if self.has_begun(segment, bytes, header)? {
                newest = header.sequence;
                listing.segments.clone_from(&header.live);
                listing.segments.push(segment);
                break;
            }
            // Its list is not proven, but where the header of a segment in it was lost, nothing else names that.
            not_begun.extend(header.live.iter().map(|segment| segment.slot));
        }
        self.add_headless(found, (newest, &not_begun), &mut listing)?;
        self.leave_out(newest, headers, &mut listing)?;
        Ok(listing)
    }

    fn drop_misplaced(
        &mut self,
        headers: &mut Vec<FoundHeader<'_>>,
        listing: &mut Listing,
    ) -> io::Result<()> {
        let twice = |header: &SegmentHeader| {
            headers.iter().filter(|(_, _, other)| other.sequence == header.sequence).count() > 1
        };
        let doubtful: Vec<_> = headers.iter().copied().filter(|(_, _, header)| twice(header)).collect();
        for (slot, bytes, header) in doubtful {
            if !self.has_begun(SegmentRef { sequence: header.sequence, slot }, bytes, header)? {
                headers.retain(|(other, _, _)| *other != slot);
                listing.misplaced.push(slot);
            }
        }
        Ok(())
    }

    /// Whether some commit of the segment with this header was durable: a whole one is there, or something
    /// that proves it of damaged ones.
    fn has_begun(
        &mut self,
        segment: SegmentRef,
        header_bytes: u32,
        header: &SegmentHeader,
    ) -> io::Result<bool> {
        let length = self.disk.read(segment.slot, 0, self.bytes)?;
        self.bytes[length..].fill(0);
        let seed = self.identity.seed();
        let mut commits = whole_commits(&self.bytes[..length], header_bytes as usize, seed);
        let has_commit = commits.any(|(_, commit)| commit.header.segment == segment.sequence);
        let is_proven = || has_synced(&self.bytes[..length], header_bytes, header, Some(seed));
        Ok(has_commit || is_proven() || footer::of_segment(self.bytes, segment.sequence, seed).is_some())
    }

    /// Adds segments whose header is damaged but whose commits are newer than segment `newest`. A header that a card has
    /// put back is older than the commits behind it: the lists of newer headers name such files. For the newest segment
    /// the note beside the log does that. Without the note, every file outside the list is looked at.
    fn add_headless(
        &mut self,
        found: &[FoundFile],
        (newest, not_begun): (u64, &[u32]),
        listing: &mut Listing,
    ) -> io::Result<()> {
        let mut headless = Vec::new();
        let is_bad = |file: &&FoundFile| match &file.header {
            HeaderRead::Bad => true,
            HeaderRead::Good(header, _) if header.sequence <= newest => {
                (not_begun.contains(&file.slot) || !self.has_note)
                    && listing.segments.iter().all(|s| s.slot != file.slot)
                    || listing.misplaced.contains(&file.slot)
            }
            _ => listing.misplaced.contains(&file.slot),
        };
        for file in found.iter().filter(is_bad) {
            let length = self.disk.read(file.slot, 0, self.bytes)?;
            let commits = whole_commits(&self.bytes[..length], BLOCK_BYTES, self.identity.seed());
            let said = commits.map(|(_, commit)| commit.header.segment);
            headless.push(Headless::of(file.slot, said.filter(|sequence| *sequence > newest)));
        }
        listing.headless = segments_of(headless);
        let newer = &listing.headless;
        // The list is older than the present use of their files.
        listing.segments.retain(|segment| newer.iter().all(|newer| newer.slot != segment.slot));
        listing.segments.extend_from_slice(newer);
        Ok(())
    }

    /// Takes out of the list what has left the log since the header that made it. What only the last commit
    /// says does not count yet: it may be in the page cache only, and then the segment is still needed. Nor
    /// does what is said behind missing commits, for the copies may be among those: a segment counts as long
    /// as its file is no other's.
    fn leave_out(
        &mut self,
        newest: u64,
        headers: &[FoundHeader<'_>],
        listing: &mut Listing,
    ) -> io::Result<()> {
        let mut left = Vec::new();
        let mut has_gap = listing.segments.iter().any(|segment| self.disk.is_unopened(segment.slot));
        let mut before_last = 0;
        for segment in listing.segments.iter().filter(|segment| segment.sequence >= newest) {
            let length = self.disk.read(segment.slot, 0, self.bytes)?;
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
        listing.leaving = last.into_iter().map(|(segment, _)| segment).collect();
        left.retain(|(segment, is_behind_gap)| !is_behind_gap || !is_there(*segment));
        listing.segments.retain(|segment| !left.iter().any(|(left, _)| *left == segment.sequence));
        Ok(())
    }
}
