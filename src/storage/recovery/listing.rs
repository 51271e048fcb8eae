//! Finds which files are the log.

use core::cmp::Reverse;
use std::io;

use leveret_core::mem::{sort, sort_by_key};

use crate::commit::{BLOCK_BYTES, CommitHeader, valid_commits};
use crate::commit_builder::ResizeZeroed;
use crate::damage::ReadAround;
use crate::disk::Disk;
use crate::footer;
use crate::record::{Record, for_each_record};
use crate::segment::{FoundFile, FoundHeader, HeaderRead, Headers, Identity, SegmentHeader, SegmentRef};

use super::header_copy::HeaderCopy;
use super::proof::{has_synced, may_have_next};
use super::unreadable::{LOOK_BYTES, UnreadableHeader, has_content, most_frequent, segments_of};

/// Maximum bytes read for a header. No store has enough segments for a longer header.
const HEADER_BYTES_MAX: usize = 1 << 20;

/// Reads the header of every file.
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
            // The length field of the header is damaged.
            header = HeaderRead::Bad;
        }
        if header == HeaderRead::Empty && length > 0 && has_content(disk, slot)? {
            header = HeaderRead::Bad;
        }
        found.push(FoundFile { slot, length: length as u64, header });
    }
    Ok(found)
}

/// Returns the good headers of this store, newest first.
pub(super) fn own_headers(found: &[FoundFile]) -> Vec<FoundHeader<'_>> {
    let good = found.iter().filter_map(|file| match &file.header {
        HeaderRead::Good(header, bytes) => Some((file.slot, *bytes, header)),
        _ => None,
    });
    let mut headers: Vec<FoundHeader<'_>> = good.collect();
    sort_newest_first(&mut headers);
    // A file of another store may have been copied here, and may be the newest.
    let ours = most_frequent(headers.iter().map(|(_, _, header)| header.identity));
    headers.retain(|(_, _, header)| Some(header.identity) == ours);
    headers
}

/// Adds the header in the header copy to `headers` if the segment's file has lost its header. Returns whether it was
/// added.
pub(super) fn use_header_copy<'h>(headers: &mut Vec<FoundHeader<'h>>, copy: &'h HeaderCopy) -> bool {
    let is_newer = headers.iter().all(|(_, _, header)| header.sequence < copy.segment.sequence);
    let is_ours = headers.is_empty() || headers.iter().any(|(_, _, h)| h.identity == copy.header.identity);
    if is_newer && is_ours {
        headers.retain(|(slot, _, _)| *slot != copy.segment.slot);
        headers.push((copy.segment.slot, copy.header_bytes, &copy.header));
        sort_newest_first(headers);
    }
    is_newer && is_ours
}

fn sort_newest_first(headers: &mut [FoundHeader<'_>]) {
    sort_by_key(headers, |(slot, _, header)| (Reverse(header.sequence), *slot));
}

/// Returns whether segments of the log have format version 1. A file outside the log may have such a header, because
/// its segment was removed.
pub(super) fn has_older_format(found: &[FoundFile], headers: &Headers<'_>) -> bool {
    let is_live = |slot: u32| match headers.first() {
        Some((_, _, newest)) => newest.live.iter().any(|segment| segment.slot == slot),
        None => true,
    };
    found.iter().any(|file| file.header == HeaderRead::OlderVersion && is_live(file.slot))
}

/// The segments of the log and where they were found.
#[derive(Default)]
pub(super) struct Listing {
    /// The segments, oldest first.
    pub(super) segments: Vec<SegmentRef>,
    /// Segments whose header cannot be read; their commits name the segment.
    pub(super) unreadable_headers: Vec<SegmentRef>,
    /// Files whose header belongs to another file.
    pub(super) misplaced: Vec<u32>,
    /// Segments that the last commit removes. They are in `segments` as well, because the commit may exist only in
    /// the page cache.
    pub(super) leaving: Vec<u64>,
}

/// Finds which files are the log, and their order.
///
/// The newest header with a commit behind it contains the list of segments. Segments with unreadable headers and
/// newer commits are added. Segments that were removed by later commits are left out.
///
/// # Invariants
/// - Nothing is written.
/// - No segment is listed twice.
/// - A removal counts only if all commits before it, which contain the copies, were found.
pub(super) struct Lister<'l, 'r, D> {
    pub(super) disk: &'l mut ReadAround<'r, D>,
    /// Buffer of the size of a segment.
    pub(super) bytes: &'l mut [u8],
    /// Whether the header copy beside the log is good.
    pub(super) has_header_copy: bool,
    pub(super) identity: Identity,
}

impl<D: Disk> Lister<'_, '_, D> {
    /// Lists the segments, from the newest header behind which a commit was durable.
    ///
    /// The flash may return the header of another file, or an old one of this file. If headers have the same sequence,
    /// those without a commit are removed from `headers`. If a newer header lists the file of an old header as a newer
    /// segment, the old header is skipped. The commits in both kinds of files are read nevertheless.
    pub(super) fn list(
        &mut self,
        headers: &mut Vec<FoundHeader<'_>>,
        found: &[FoundFile],
    ) -> io::Result<Listing> {
        let mut listing = Listing::default();
        self.drop_misplaced(headers, &mut listing)?;
        let (mut newest, mut may_have_newer, mut not_begun) = (0, false, Vec::new());
        for &(slot, bytes, header) in headers.iter() {
            let segment = SegmentRef { sequence: header.sequence, slot };
            // A newer header lists this file as a newer segment, whose header was lost. Even if the newer header is
            // not proven, it was written later than this one.
            if is_replaced(segment, headers) {
                listing.misplaced.push(slot);
                continue;
            }
            if self.has_begun(segment, bytes, header)? {
                newest = header.sequence;
                may_have_newer = self.may_have_newer(newest, bytes);
                listing.segments.clone_from(&header.live);
                listing.segments.push(segment);
                break;
            }
            // The list of this header is not proven. It is used only to find files whose own headers are lost,
            // because no other header may name them.
            not_begun.extend(header.live.iter().map(|segment| segment.slot));
        }
        self.add_unreadable_headers(found, newest, may_have_newer, &not_begun, &mut listing)?;
        self.drop_removed(newest, headers, &mut listing)?;
        Ok(listing)
    }

    /// If several headers have the same sequence, removes those without a commit of that segment behind them.
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

    /// Returns whether a commit of the segment with this header was durable: a whole commit exists, or
    /// damaged ones prove it.
    fn has_begun(
        &mut self,
        segment: SegmentRef,
        header_bytes: u32,
        header: &SegmentHeader,
    ) -> io::Result<bool> {
        let length = self.disk.read(segment.slot, 0, self.bytes)?;
        self.bytes[length..].fill(0);
        let seed = self.identity.seed();
        let mut commits = valid_commits(&self.bytes[..length], header_bytes as usize, seed);
        let has_commit = commits.any(|(_, commit)| commit.header.segment == segment.sequence);
        let is_proven = || has_synced(&self.bytes[..length], header_bytes, header, seed);
        Ok(has_commit || is_proven() || footer::of_segment(self.bytes, segment.sequence, seed).is_some())
    }

    /// Returns whether a segment newer than `segment`, which is in the buffer, may have been opened.
    fn may_have_newer(&self, segment: u64, header_bytes: u32) -> bool {
        let seed = self.identity.seed();
        let commits = valid_commits(self.bytes, header_bytes as usize, seed);
        let of_segment = commits.filter(|(_, commit)| commit.header.segment == segment);
        let tail = of_segment.last().map_or(0, |(at, commit)| at + commit.bytes());
        may_have_next(tail as u32, self.bytes.len() as u32)
            || footer::of_segment(self.bytes, segment, seed).is_some()
    }

    /// Adds segments with damaged headers whose commits are of a newer segment than `newest`.
    ///
    /// A file may also have the header of an older segment, because the flash has moved it there, or has lost the
    /// newest write of this block. The lists in newer headers name such a file, or the header copy does if it is the
    /// newest segment. Without the header copy, every file outside the list is examined.
    ///
    /// The header copy may be old as well. If a newer segment may have been opened (`may_have_newer`), the first
    /// [`LOOK_BYTES`] of every file outside the list are therefore searched for a newer commit.
    fn add_unreadable_headers(
        &mut self,
        found: &[FoundFile],
        newest: u64,
        may_have_newer: bool,
        not_begun: &[u32],
        listing: &mut Listing,
    ) -> io::Result<()> {
        let mut unreadable_headers = Vec::new();
        for file in found {
            let is_outside = || listing.segments.iter().all(|segment| segment.slot != file.slot);
            let (is_bad, may_be_newer) = match &file.header {
                HeaderRead::Bad => (true, false),
                HeaderRead::Good(header, _) if header.sequence <= newest && is_outside() => {
                    (not_begun.contains(&file.slot) || !self.has_header_copy, may_have_newer)
                }
                _ => (false, false),
            };
            let is_examined = is_bad
                || listing.misplaced.contains(&file.slot)
                || may_be_newer && self.has_newer_commit(file.slot, newest)?;
            if !is_examined {
                continue;
            }
            let length = self.disk.read(file.slot, 0, self.bytes)?;
            let commits = valid_commits(&self.bytes[..length], BLOCK_BYTES, self.identity.seed());
            let named = commits.map(|(_, commit)| commit.header.segment);
            unreadable_headers
                .push(UnreadableHeader::of(file.slot, named.filter(|sequence| *sequence > newest)));
        }
        listing.unreadable_headers = segments_of(unreadable_headers);
        let newer = &listing.unreadable_headers;
        // The list in the header is older than the current use of these files.
        listing.segments.retain(|segment| newer.iter().all(|newer| newer.slot != segment.slot));
        listing.segments.extend_from_slice(newer);
        Ok(())
    }

    /// Returns whether the first [`LOOK_BYTES`] of a file contain a commit of a segment newer than `newest`.
    fn has_newer_commit(&mut self, slot: u32, newest: u64) -> io::Result<bool> {
        let most = LOOK_BYTES.min(self.bytes.len());
        let length = self.disk.read(slot, 0, &mut self.bytes[..most])?;
        let mut commits = valid_commits(&self.bytes[..length], BLOCK_BYTES, self.identity.seed());
        Ok(commits.any(|(_, commit)| commit.header.segment > newest))
    }

    /// Removes segments from the list that were removed from the log after the header was written.
    ///
    /// Removals in the last commit do not count yet, because the commit may exist only in the page cache. Removals
    /// behind missing commits do not count either, because the missing commits may contain the copies. In that case
    /// the segment stays in the list if its file still has its header.
    fn drop_removed(
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
            let commits = valid_commits(&self.bytes[..length], BLOCK_BYTES, self.identity.seed());
            for (_, commit) in commits.filter(|(_, commit)| commit.header.segment == segment.sequence) {
                let CommitHeader { number: this, repeats, .. } = commit.header;
                has_gap |= number.is_some_and(|before| this > before + 1 + u64::from(repeats));
                number = Some(this.max(number.unwrap_or(0)));
                before_last = left.len();
                for_each_record(commit.records, 0, |record, _| {
                    if let Record::SegmentRemoved { segment } = record {
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

/// Returns whether one of the headers lists the segment's file as a newer segment.
fn is_replaced(segment: SegmentRef, headers: &Headers<'_>) -> bool {
    let mut listed = headers.iter().flat_map(|(_, _, header)| &header.live);
    listed.any(|other| other.slot == segment.slot && other.sequence > segment.sequence)
}
