//! Reads the segments of the log into an index: from their footers, or commit by commit.
//!
//! # Invariants
//! - Nothing is written.
//! - All records except messages are read before the messages, both in the order of the log.
//! - A footer with a damaged part is ignored, and the commits of its segment are read instead.
//! - A file that cannot be opened is not used. Commit numbers and sequences that it may contain are not
//!   reused.
//!
//! # The end of a segment whose last commits and footer cannot be read
//!
//! ```text
//! segment   | header | commit | ... | last whole commit | damaged commits | damaged footer, or none |
//!                                                       ^ tail
//! next one  | header: number of commits synced before it | first commit: its number, how many it repeats |
//! ```
//!
//! The header of the next segment contains the number of commits that were synced before it. So it is known how many
//! commits at the end of this segment are damaged. Their good records are served like those of damaged commits between
//! two whole commits, and the others are reported as lost. Behind the last commit proven to be synced, no record is
//! served. Commits that the next segment's first commit repeats are not lost.

use core::ops::Range;
use std::io;

use crate::commit::{BLOCK_BYTES, COMMIT_HEADER_BYTES, Commit};
use crate::damage::ReadAround;
use crate::damaged_commit::{add_to_footer, servable_records};
use crate::disk::Disk;
use crate::footer::{self, Footer, Lengths};
use crate::index::Index;
use crate::log::RecordLocation;
use crate::parts::{BodyPart, BodyPartBlock, part_seed};
use crate::record::Record;
use crate::segment::{Headers, Identity, SegmentRef};

use super::proof::{SegmentEnd, proven_by_next, synced_by_commit_headers};
use super::report::Report;
use super::scan::{Chain, CommitWalk};

/// Selects the records that are read from a segment.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Pass {
    /// All records except messages; damage is reported.
    Entries,
    /// Messages only; damage is reported by another pass.
    Messages,
    /// No records, because the footer contains them. Only damage is reported.
    Check,
}

impl Pass {
    /// Returns whether this pass reads the record.
    pub(super) const fn wants(self, record: &Record<'_>) -> bool {
        match self {
            Self::Entries => !matches!(record, Record::Message(_)),
            Self::Messages => matches!(record, Record::Message(_)),
            Self::Check => false,
        }
    }

    /// Returns whether this pass reports damage. Exactly one pass over each segment does.
    pub(super) fn reports(self) -> bool {
        self != Self::Messages
    }
}

/// A segment that is not the newest. Its records except messages were read; its messages are still to be read.
pub(super) struct OlderSegment {
    segment: SegmentRef,
    header_bytes: u32,
    /// The state of the chain of commits before the segment.
    chain: Chain,
    /// Lengths of its footer and number of the footer's last commit, if the footer is good.
    footer: Option<(Lengths, u64)>,
    /// The following segment.
    next: SegmentRef,
}

/// The newest segment after reading.
pub(super) struct Newest {
    pub(super) segment: SegmentRef,
    pub(super) tail: u32,
    /// Length of its file in bytes.
    pub(super) length: u32,
    /// Records of its last commit, which are written again, and their number.
    pub(super) repeated_bytes: Vec<u8>,
    pub(super) repeated_count: u32,
    pub(super) footer: Footer,
    /// Whether the segment has a good footer, because the next segment was about to be opened.
    pub(super) is_sealed: bool,
    /// Number of the newest commit that the segment proves to have been synced.
    pub(super) synced: u64,
    /// Whether durable commits behind the last readable one are lost.
    pub(super) is_damaged: bool,
}

/// The state of reading the log.
pub(super) struct Reader<'d, 'r, D> {
    pub(super) disk: &'d mut ReadAround<'r, D>,
    /// Buffer with the content of one segment.
    pub(super) bytes: Vec<u8>,
    pub(super) index: Index,
    pub(super) chain: Chain,
    pub(super) report: Report,
    /// Segments that the last commit removes.
    pub(super) leaving: Vec<u64>,
    /// Locations of the good records of damaged commits that were found in the segment read last.
    pub(super) served_records: Vec<RecordLocation>,
    /// Damaged files, which are not used.
    pub(super) set_aside: Vec<u32>,
    /// Live segment files that are missing or shorter than a segment.
    pub(super) cut: Vec<u32>,
    /// Number of missing or unopened files that may be segments newer than all others.
    pub(super) newer_missing: u32,
    /// The newest segment according to the header copy.
    pub(super) header_copy: Option<SegmentRef>,
    /// Whether the newest header can be read only in the header copy.
    pub(super) is_only_in_header_copy: bool,
    /// Whether every commit is verified, even where a footer suffices for a start.
    pub(super) checks_all: bool,
    pub(super) identity: Identity,
    pub(super) segment_bytes: u32,
}

impl<'d, 'r, D: Disk> Reader<'d, 'r, D> {
    pub(super) fn new(disk: &'d mut ReadAround<'r, D>, identity: Identity, segment_bytes: u32) -> Self {
        Self {
            disk,
            bytes: vec![0; segment_bytes as usize],
            index: Index::default(),
            chain: Chain::default(),
            report: Report::default(),
            leaving: Vec::new(),
            served_records: Vec::new(),
            set_aside: Vec::new(),
            cut: Vec::new(),
            newer_missing: 0,
            header_copy: None,
            is_only_in_header_copy: false,
            checks_all: false,
            identity,
            segment_bytes,
        }
    }

    /// Reads everything except the messages of a segment that is not the newest, from its footer if that is
    /// good.
    pub(super) fn read_entries(
        &mut self,
        segment: SegmentRef,
        next: SegmentRef,
        headers: &Headers<'_>,
    ) -> io::Result<Option<OlderSegment>> {
        if self.disk.is_unopened(segment.slot) {
            self.report.set_part_aside(segment, 0..self.segment_bytes);
            return Ok(None);
        }
        // The file of a segment that the last commit removes may have been deleted to free space.
        if self.leaving.contains(&segment.sequence) && self.disk.read(segment.slot, 0, &mut [0])? == 0 {
            return Ok(None);
        }
        let header = headers.iter().find(|(slot, _, _)| *slot == segment.slot);
        // If the header has a lower sequence, the flash has moved another block there, and the commits behind it are
        // read nevertheless.
        if header.is_some_and(|(_, _, header)| header.sequence > segment.sequence) {
            if self.leaving.contains(&segment.sequence) {
                return Ok(None);
            }
            // The file has been reused since the list of segments was written: the newer header with the current list
            // was lost.
            self.report.set_part_aside(segment, 0..0);
            return Ok(None);
        }
        let header_bytes = bytes_of_header(segment, headers);
        self.index.add_segment(segment.sequence, segment.slot, self.segment_bytes);
        let chain = self.chain;
        let footer = self.read_footer(segment)?;
        let at_footer = self.chain;
        if footer.is_none() || self.checks_all {
            self.chain = chain;
            let (pass, known) = match footer {
                Some(_) => (Pass::Check, at_footer.number),
                None => (Pass::Entries, 0),
            };
            let (tail, commits) = self.scan(segment, header_bytes, pass)?;
            let through = self.last_proven_number(segment, next, headers, known)?;
            self.read_end(segment, tail, through, pass)?;
            self.report.footers_missing += u32::from(footer.is_none());
            let length = self.disk.read(segment.slot, 0, &mut self.bytes)? as u32;
            if length < self.segment_bytes {
                self.note_truncated(segment, length);
            }
            if commits.is_empty() && footer.is_none() {
                self.report.set_part_aside(segment, 0..self.segment_bytes);
            }
        }
        if footer.is_some() {
            self.chain = at_footer;
        }
        let footer = footer.map(|lengths| (lengths, at_footer.number));
        Ok(Some(OlderSegment { segment, header_bytes, chain, footer, next }))
    }

    /// Reads the messages of a segment that is not the newest.
    pub(super) fn read_messages(&mut self, old: &OlderSegment, headers: &Headers<'_>) -> io::Result<()> {
        let (segment, mut number) = (old.segment, 0);
        if let Some((lengths, of_footer)) = old.footer {
            let base = self.segment_bytes as usize - lengths.footer();
            let length = self.disk.read(old.segment.slot, base as u64, &mut self.bytes[..lengths.parts])?;
            let found = self.read_parts(old.segment.sequence, base, 0..length, true);
            if found.is_some() && length == lengths.parts {
                return Ok(());
            }
            number = of_footer;
            self.chain = old.chain;
            let (tail, _) = self.scan(segment, old.header_bytes, Pass::Entries)?;
            let through = self.last_proven_number(segment, old.next, headers, number)?;
            self.read_end(segment, tail, through, Pass::Entries)?;
        }
        self.chain = old.chain;
        let (tail, _) = self.scan(segment, old.header_bytes, Pass::Messages)?;
        let through = self.last_proven_number(segment, old.next, headers, number)?;
        self.read_end(segment, tail, through, Pass::Messages)
    }

    /// Reads the messages of the newest segment, and also the other entries of commits that are not in `known`.
    /// `known` contains number and offset of the commits found by the first read. The disk may have refused to read a
    /// commit then; its entries must be in the index, because the last commit is written again. If `proven` is not 0,
    /// the commit with this number was certainly synced.
    pub(super) fn read_newest(
        &mut self,
        segment: SegmentRef,
        header_bytes: u32,
        proven: u64,
        known: &[(u64, u32)],
    ) -> io::Result<Newest> {
        self.served_records.clear();
        let (mut tail, commits) = self.scan(segment, header_bytes, Pass::Messages)?;
        for (_, at) in commits.iter().filter(|commit| known.binary_search(commit).is_err()) {
            if let Some(commit) = Commit::parse(&self.bytes[*at as usize..], self.identity.seed()) {
                let first = at + COMMIT_HEADER_BYTES as u32;
                let is_no_message = |record: &Record<'_>| !matches!(record, Record::Message(_));
                self.index.apply_records(commit.records, segment.sequence, first, is_no_message);
            }
        }
        let served_end = self.serve(segment, tail..self.segment_bytes, proven, Pass::Messages);
        let last = commits.last().and_then(|(_, at)| self.commit_at(*at));
        let (repeated_bytes, repeated_count) = last
            .map_or((Vec::new(), 0), |commit| records_to_repeat(&commit, |segment| self.is_needed(segment)));
        let footer = self.footer_of_synced(&commits);
        self.index.set_bytes(segment.sequence, served_end);
        let synced = self.synced_in_newest(segment, tail);
        let sealed = footer::of_segment(&self.bytes, segment.sequence, self.identity.seed());
        let is_sealed = sealed.is_some();
        if let Some((lengths, trailer)) = sealed {
            // An epoch may have written nothing except this footer. The next epoch must have a higher number, because
            // commits of an epoch with the same or a lower number would count as older.
            self.chain.epoch = self.chain.epoch.max(trailer.epoch);
            let end = self.segment_bytes as usize;
            let base = end - lengths.footer();
            // The messages are known already from the commits.
            let _ = self.read_parts(segment.sequence, base, base..base + lengths.parts, false);
            tail = self.segment_bytes;
        }
        let length = self.disk.read(segment.slot, 0, &mut self.bytes)? as u32;
        let is_damaged = false;
        Ok(Newest {
            segment,
            tail,
            length,
            repeated_bytes,
            repeated_count,
            footer,
            is_sealed,
            synced,
            is_damaged,
        })
    }

    /// Returns the footer of those commits of the newest segment, which is in the buffer, that were certainly synced.
    /// `commits` contains number and offset of each commit.
    fn footer_of_synced(&self, commits: &[(u64, u32)]) -> Footer {
        // The last commit and the commits that it repeats may exist only in the page cache. They are added to the
        // footer when they are written again: a footer must not prove commits that a power cut can still destroy.
        let mut footer = Footer::default();
        let mut served = self.served_records.iter().peekable();
        let synced = self.chain.number.saturating_sub(u64::from(self.chain.repeats));
        for (_, at) in commits.iter().filter(|(number, _)| *number < synced) {
            while let Some(place) = served.next_if(|place| place.at < *at) {
                add_to_footer(&mut footer, &self.bytes, place);
            }
            let records = self.commit_at(*at).map(|commit| commit.records).unwrap_or_default();
            footer.note_records(records, at + COMMIT_HEADER_BYTES as u32);
        }
        served.for_each(|place| add_to_footer(&mut footer, &self.bytes, place));
        footer
    }

    fn commit_at(&self, at: u32) -> Option<Commit<'_>> {
        Commit::parse(&self.bytes[at as usize..], self.identity.seed())
    }

    /// Returns whether a segment has live records. If the log also contains its removal, the copies of these records
    /// are damaged.
    fn is_needed(&self, segment: u64) -> bool {
        self.index.segments().get(&segment).is_some_and(|segment| segment.live > 0)
    }

    /// Returns the number of the newest commit that the newest segment proves to have been synced; 0 if there is
    /// none. The segment is in the buffer; its last whole commit ends at offset `tail`.
    pub(super) fn synced_in_newest(&self, segment: SegmentRef, tail: u32) -> u64 {
        let seed = self.identity.seed();
        let headers =
            synced_by_commit_headers(&self.bytes, tail as usize, segment.sequence, &self.chain, seed);
        headers.max(
            footer::of_segment(&self.bytes, segment.sequence, self.identity.seed())
                .map_or(0, |(_, trailer)| trailer.number),
        )
    }

    /// Returns the number of the last commit that `segment` certainly had. Commits that the next segment repeats do
    /// not count. Returns 0 if no such commit is known.
    ///
    /// The chain is at the segment's last whole commit. `trailer` is the commit number in its footer, or 0. `next` is
    /// the following segment.
    pub(super) fn last_proven_number(
        &mut self,
        segment: SegmentRef,
        next: SegmentRef,
        headers: &Headers<'_>,
        trailer: u64,
    ) -> io::Result<u64> {
        let header = headers.iter().find(|(_, _, header)| header.sequence == next.sequence);
        let next_commits = header.map(|(_, _, header)| header.commits);
        let end = SegmentEnd { sequence: segment.sequence, chain: &self.chain, trailer, next, next_commits };
        proven_by_next(self.disk, &end, self.identity.seed(), &mut self.bytes)
    }

    /// Reads a segment commit by commit. Returns the end of its last commit, and number and offset of each commit.
    pub(super) fn scan(
        &mut self,
        segment: SegmentRef,
        header_bytes: u32,
        pass: Pass,
    ) -> io::Result<(u32, Vec<(u64, u32)>)> {
        let length = self.disk.read(segment.slot, 0, &mut self.bytes)?;
        self.bytes[length..].fill(0);
        let mut walk = CommitWalk::new(segment.sequence, self.identity.seed(), header_bytes);
        let mut commits = Vec::new();
        while let Some(step) = walk.next(&self.bytes[..length], &self.chain) {
            let (header, at) = (step.header, step.gap.end);
            if !step.repeats_missing() {
                if pass.reports() {
                    self.report.commits_missing += step.missing.unwrap_or(0);
                    self.report.set_part_aside(segment, step.gap.clone());
                }
                // The commit behind the gap proves that the missing commits were synced.
                self.serve(segment, step.gap.clone(), header.number - 1, pass);
            }
            let records = &self.bytes[step.records.start as usize..step.records.end as usize];
            let wants = |record: &Record<'_>| pass.wants(record);
            let count = self.index.apply_records(records, segment.sequence, step.records.start, wants);
            if pass.reports() && count != header.records {
                // Some records have an unknown type or were written incorrectly.
                self.report.set_part_aside(segment, at..step.end);
            }
            self.chain.advance(&header);
            commits.push((header.number, at));
        }
        Ok((walk.tail, commits))
    }

    /// Serves the good records of damaged commits behind offset `tail` of a segment that is not the newest, up to
    /// commit number `through`. Reports the missing commits.
    pub(super) fn read_end(
        &mut self,
        segment: SegmentRef,
        tail: u32,
        through: u64,
        pass: Pass,
    ) -> io::Result<()> {
        let missing = through.saturating_sub(self.chain.number);
        if missing == 0 {
            return Ok(());
        }
        let length = self.disk.read(segment.slot, 0, &mut self.bytes)? as u32;
        self.serve(segment, tail..length, through, pass);
        if pass.reports() {
            self.report.commits_missing += missing;
            self.report.set_part_aside(segment, tail..self.segment_bytes);
        }
        self.chain.number = through;
        Ok(())
    }

    /// Serves the good records of damaged commits in the range `within` of the buffered segment. Their numbers are
    /// those after the chain, up to `through`. Returns the end of the last damaged commit found.
    pub(super) fn serve(&mut self, segment: SegmentRef, within: Range<u32>, through: u64, pass: Pass) -> u32 {
        let numbers = self.chain.number + 1..through + 1;
        let bytes = &self.bytes[..within.end as usize];
        let (places, end) = servable_records(bytes, within.start, numbers, self.identity.seed(), segment);
        for place in places {
            if let Ok((record, _)) = Record::parse(&self.bytes[place.at as usize..])
                && pass.wants(&record)
            {
                self.index.apply(&record, place);
            }
            self.served_records.push(place);
        }
        end
    }

    /// Reads everything except the messages from a segment's footer, and returns the lengths of the footer. Returns
    /// `None` if the footer is damaged.
    pub(super) fn read_footer(&mut self, segment: SegmentRef) -> io::Result<Option<Lengths>> {
        let end = u64::from(self.segment_bytes);
        let mut block = [0; BLOCK_BYTES];
        if self.disk.read(segment.slot, end - BLOCK_BYTES as u64, &mut block)? < BLOCK_BYTES {
            return Ok(None);
        }
        let Some(lengths) = Lengths::claimed(&block, self.segment_bytes as usize) else {
            return Ok(None);
        };
        let entries = &mut self.bytes[..lengths.entries];
        let at = end - lengths.footer() as u64 + lengths.parts as u64;
        self.disk.read(segment.slot, at, entries)?;
        let Some(trailer) = footer::parse(entries, &block, self.identity.seed()) else {
            return Ok(None);
        };
        if trailer.sequence != segment.sequence {
            return Ok(None);
        }
        let index = &mut self.index;
        let applied =
            footer::for_each_entry(entries, segment.sequence, |record, place| index.apply(record, place));
        if applied.is_none() {
            return Ok(None);
        }
        index.set_bytes(segment.sequence, self.segment_bytes - lengths.footer() as u32);
        self.chain = Chain::after(&trailer);
        Ok(Some(lengths))
    }

    /// Records the locations of a footer's parts in the index, and applies the messages in them if `has_messages`.
    /// The footer is at offset `base` of its segment; the parts are in the range `within` of the buffer. Returns
    /// `None` if a part is damaged.
    pub(super) fn read_parts(
        &mut self,
        segment: u64,
        base: usize,
        within: Range<usize>,
        has_messages: bool,
    ) -> Option<()> {
        let seed = part_seed(self.identity.seed(), segment);
        let bytes = &self.bytes[within];
        let mut parts: Vec<(u64, BodyPart)> = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let block = BodyPartBlock::parse(&bytes[at..], seed)?;
            if has_messages {
                self.index.apply_entries(block.queue, block.entries(), segment);
            }
            match parts.last_mut().filter(|(queue, _)| *queue == block.queue) {
                Some((_, part)) => part.bytes += block.stride as u32,
                None => {
                    parts.push((block.queue, BodyPart { at: at as u32, bytes: block.stride as u32 }));
                }
            }
            at += block.stride;
        }
        self.index.set_parts(segment, base as u32, &parts);
        Some(())
    }

    /// Reports a truncated segment file.
    pub(super) fn note_truncated(&mut self, segment: SegmentRef, length: u32) {
        self.report.set_part_aside(segment, length..self.segment_bytes);
        self.report.files_truncated += 1;
        self.cut.push(segment.slot);
    }
}

/// Returns the bytes of a segment's header; one block if the header is unknown.
pub(super) fn bytes_of_header(segment: SegmentRef, headers: &Headers<'_>) -> u32 {
    let header = headers.iter().find(|(_, _, header)| header.sequence == segment.sequence);
    header.map_or(BLOCK_BYTES as u32, |(_, bytes, _)| *bytes)
}

/// Returns the records of the last commit that must be written again, and their number. The removal of a segment is
/// left out if the segment is still needed.
fn records_to_repeat(commit: &Commit<'_>, is_needed: impl Fn(u64) -> bool) -> (Vec<u8>, u32) {
    let (mut repeated_bytes, mut count) = (Vec::with_capacity(commit.records.len()), commit.header.records);
    let mut rest = commit.records;
    while let Ok((record, length)) = Record::parse_known(rest) {
        if matches!(record, Record::SegmentRemoved { segment } if is_needed(segment)) {
            count -= 1;
        } else {
            repeated_bytes.extend_from_slice(&rest[..length]);
        }
        rest = &rest[length..];
    }
    (repeated_bytes, count)
}
