//! Reads the log at a start: turns headers, footers and commits into an index.
//!
//! # Invariants
//! - Nothing is written.
//! - All records except messages are read before the messages, both in the order of the log.
//! - A footer with a damaged part is ignored, and the commits of its segment are read instead.
//! - A file that cannot be opened is not used. Commit numbers and sequences that it may contain are not
//!   reused.

use core::ops::Range;
use std::io;

use super::commit::{BLOCK_BYTES, COMMIT_HEADER_BYTES, ClaimedHeader, CommitHeader, padded};
use super::commit_builder::ResizeZeroed;
use super::damage::{ReadAround, is_about_a_block};
use super::disk::Disk;
use super::footer::{self, Footer, Lengths};
use super::index::Index;
use super::log::RecordLocation;
use super::newest_segment::{proven_by_next, synced_by_commit_headers, synced_by_headers};
use super::parts::{BodyPart, BodyPartBlock, part_seed};
use super::record::{Record, RecordError};
use super::recovery::{Chain, CommitWalk, Lister, Listing, Report, SetAside};
use super::segment::Identity;
use super::segment::{FoundFile, FoundHeader, HeaderRead, Headers, SegmentRef};
use super::space::SlotUse;
use super::varint::Input;
use super::{access, group};

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
struct OlderSegment {
    segment: SegmentRef,
    header_bytes: u32,
    /// The state of the chain of commits before the segment.
    chain: Chain,
    /// Lengths of its footer and number of the footer's last commit, if the footer is good.
    footer: Option<(Lengths, u64)>,
    /// The following segment.
    next: Option<SegmentRef>,
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

    /// Lists and reads the segments, removes misplaced headers from `headers`, and returns the newest segment.
    /// `recorded_end` is the number of a commit recorded as synced beside the log, or 0.
    pub(super) fn read_log(
        &mut self,
        headers: &mut Vec<FoundHeader<'_>>,
        found: &[FoundFile],
        recorded_end: u64,
    ) -> io::Result<Newest> {
        let mut lister = Lister {
            disk: self.disk,
            bytes: &mut self.bytes,
            has_header_copy: self.header_copy.is_some(),
            identity: self.identity,
        };
        let Listing { segments: list, unreadable_headers, leaving, .. } = lister.list(headers, found)?;
        self.leaving = leaving;
        for SegmentRef { sequence, slot } in unreadable_headers {
            let aside = SetAside { slot, segment: sequence, from: 0, to: BLOCK_BYTES as u32 };
            self.report.set_aside.push(aside);
        }
        let headers = &**headers;
        let Some(&newest) = list.last() else { return self.read_nothing(found, recorded_end) };
        // The header of the oldest segment contains the number of commits before it.
        let oldest = headers
            .iter()
            .find(|(slot, _, header)| (header.sequence, *slot) == (list[0].sequence, list[0].slot));
        if let Some((_, _, header)) = oldest {
            let (segment, number) = (header.sequence.saturating_sub(1), header.commits);
            self.chain = Chain { segment, number, is_known: true, ..self.chain };
        }
        let mut olds = Vec::new();
        for at in 0..list.len() - 1 {
            olds.extend(self.read_entries(list[at], list.get(at + 1).copied(), headers)?);
        }
        let header_bytes = bytes_of_header(newest, headers);
        self.index.add_segment(newest.sequence, newest.slot, self.segment_bytes);
        let chain = self.chain;
        // If the segment is sealed, its footer contains the records of its damaged commits. Later starts read the
        // footer, so this start reads it as well to find the same records.
        self.read_footer(newest)?;
        self.chain = chain;
        let (tail, known) = self.scan(newest, header_bytes, Pass::Entries)?;
        let proven = synced_by_headers(headers).max(recorded_end).max(self.synced_in_newest(newest, tail));
        self.serve(newest, tail..self.segment_bytes, proven, Pass::Entries);
        for old in &olds {
            self.read_messages(old, headers)?;
        }
        self.chain = chain;
        let mut newest = self.read_newest(newest, header_bytes, proven, &known)?;
        let named = group::bodies_named(&self.index, self.disk)?;
        self.index.end_recovery(named.as_deref());
        self.find_lost_end(&mut newest, headers, found, recorded_end)?;
        self.check_header_copy(&mut newest)?;
        self.find_truncated_end(&mut newest);
        self.count_unopened_as_newer(&mut newest, self.unopened_newer_count(found, &list));
        self.find_missing_files(&mut newest, headers, found)?;
        if newest.is_damaged || !self.report.set_aside.is_empty() {
            self.index.forget_watermark_resets();
        }
        let is_only_in_header_copy = self.is_only_in_header_copy && self.header_copy == Some(newest.segment);
        if is_only_in_header_copy
            || !headers.iter().any(|(_, _, header)| header.sequence == newest.segment.sequence)
        {
            // The header of this segment is damaged. The segment is treated as full, so that the next one gets a good
            // header.
            newest.tail = self.segment_bytes;
        }
        Ok(newest)
    }

    /// Returns the newest segment for the case that no file contains a log, and reports whether the store is new or
    /// lost.
    fn read_nothing(&mut self, found: &[FoundFile], recorded_end: u64) -> io::Result<Newest> {
        self.report.is_lost = self.is_only_in_header_copy || self.has_remains(found)?;
        self.report.is_new = !self.report.is_lost;
        self.report.has_no_files =
            self.report.is_lost && found.iter().all(|file| file.header == HeaderRead::Empty);
        // The commit numbers of the lost log are not reused. Otherwise the next start would count commits as missing.
        self.chain.number = recorded_end;
        self.newer_missing = self.unopened_newer_count(found, &[]);
        let tail = self.segment_bytes;
        let mut newest = Newest {
            segment: SegmentRef { sequence: 0, slot: 0 },
            tail,
            length: tail,
            repeated_bytes: Vec::new(),
            repeated_count: 0,
            footer: Footer::default(),
            is_sealed: false,
            synced: 0,
            is_damaged: recorded_end > 0,
        };
        self.check_header_copy(&mut newest)?;
        Ok(newest)
    }

    /// Returns whether the files, in which no log was found, once contained a log.
    ///
    /// A power cut during the first start may leave the previous content of the disk, or headers that record no
    /// commit, with half of the first commit behind them. These are no sign of a log. The access files and the second
    /// segment file are created only after the first commit, so each of them is a sign.
    fn has_remains(&mut self, found: &[FoundFile]) -> io::Result<bool> {
        let has_one_more = found.iter().filter(|file| file.is_unused()).count() > 1;
        if has_one_more || access::is_there(self.disk) {
            return Ok(true);
        }
        for file in found {
            let HeaderRead::Good(header, bytes) = &file.header else { continue };
            let (first, chain, seed) = (*bytes as usize, Chain::default(), Some(self.identity.seed()));
            let length = self.disk.read(file.slot, 0, &mut self.bytes)?;
            let synced =
                synced_by_commit_headers(&self.bytes[..length], first, header.sequence, &chain, seed);
            if header.commits.max(synced) > 0 {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Reads everything except the messages of a segment that is not the newest, from its footer if that is
    /// good.
    fn read_entries(
        &mut self,
        segment: SegmentRef,
        next: Option<SegmentRef>,
        headers: &Headers<'_>,
    ) -> io::Result<Option<OlderSegment>> {
        if self.disk.is_unopened(segment.slot) {
            let SegmentRef { sequence, slot } = segment;
            let aside = SetAside { slot, segment: sequence, from: 0, to: self.segment_bytes };
            self.report.set_aside.push(aside);
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
            let (slot, sequence) = (segment.slot, segment.sequence);
            self.report.set_aside.push(SetAside { slot, segment: sequence, from: 0, to: 0 });
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
                let (slot, sequence) = (segment.slot, segment.sequence);
                let aside = SetAside { slot, segment: sequence, from: 0, to: self.segment_bytes };
                self.report.set_aside.push(aside);
            }
        }
        if footer.is_some() {
            self.chain = at_footer;
        }
        let footer = footer.map(|lengths| (lengths, at_footer.number));
        Ok(Some(OlderSegment { segment, header_bytes, chain, footer, next }))
    }

    /// Reads the messages of a segment that is not the newest.
    fn read_messages(&mut self, old: &OlderSegment, headers: &Headers<'_>) -> io::Result<()> {
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

    /// Reads everything except the messages from a segment's footer, and returns the lengths of the footer. Returns
    /// `None` if the footer is damaged.
    fn read_footer(&mut self, segment: SegmentRef) -> io::Result<Option<Lengths>> {
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
        self.chain = trailer.chain();
        Ok(Some(lengths))
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
        let SegmentRef { slot, sequence } = segment;
        while let Some(step) = walk.next(&self.bytes[..length], &self.chain) {
            let (header, Range { start: from, end: at }) = (step.header, step.gap.clone());
            if !step.repeats_missing() {
                if pass.reports() {
                    self.report.commits_missing += step.missing.unwrap_or(0);
                    self.report.set_aside.push(SetAside { slot, segment: sequence, from, to: at });
                }
                // The commit behind the gap proves that the missing commits were synced.
                self.serve(segment, step.gap.clone(), header.number - 1, pass);
            }
            let records = &self.bytes[step.records.start as usize..step.records.end as usize];
            let wants = |record: &Record<'_>| pass.wants(record);
            let count = apply_records(&mut self.index, records, sequence, step.records.start, wants);
            if pass.reports() && count != header.records {
                // Some records have an unknown type or were written incorrectly.
                self.report.set_aside.push(SetAside { slot, segment: sequence, from: at, to: step.end });
            }
            self.chain.advance(&header);
            commits.push((header.number, at));
        }
        Ok((walk.tail, commits))
    }

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
                    let (slot, to) = (file.slot, file.length as u32);
                    self.report.set_aside.push(SetAside { slot, segment: 0, from: 0, to });
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
}

/// Returns the bytes of a segment's header; one block if the header is unknown.
fn bytes_of_header(segment: SegmentRef, headers: &Headers<'_>) -> u32 {
    let header = headers.iter().find(|(_, _, header)| header.sequence == segment.sequence);
    header.map_or(BLOCK_BYTES as u32, |(_, bytes, _)| *bytes)
}

/// The records found in a damaged commit.
#[derive(Debug, Default)]
pub(super) struct FoundRecords {
    /// Offset and length of each whole record.
    pub(super) whole: Vec<(usize, usize)>,
    damaged: u64,
}

/// A damaged commit whose good records are *served*: they are read as if the commit were whole.
///
/// A commit is damaged if its checksum is wrong. Each record has a checksum of its own, so some of its records may be
/// good. They are served if a later commit proves that the damaged commit was synced. The exception is a commit with
/// a group (a transaction or a dead-lettering): a group counts as a whole or not at all, so no record of such a
/// commit is served.
///
/// # Invariants
/// - No location is guessed. Message bodies come from clients and may look like records or commits, so a
///   search through the bytes could find forged ones.
/// - A record behind a damaged one is used only if the rest is consistent: each checksum, the number of
///   records of the commit, and its end.
/// - The compactor and fetches find the same records as the start, by the same rule.
#[derive(Debug)]
pub(super) struct DamagedCommit {
    pub(super) header: CommitHeader,
    /// Bytes of the commit in the segment.
    pub(super) bytes: usize,
    /// Offset of each record in the commit, and its length.
    pub(super) records: Vec<(usize, usize)>,
}

/// Reads the damaged commit at the start of `bytes`. Returns `None` if its header is damaged too, if the header is
/// not of this segment and the store with this seed, or if the commit contains a group.
pub(super) fn read_damaged_commit(bytes: &[u8], seed: u32, segment: u64) -> Option<DamagedCommit> {
    let claim = ClaimedHeader::read(bytes).filter(|claim| is_servable(claim, seed, segment))?;
    let records = bytes.get(COMMIT_HEADER_BYTES..claim.length)?;
    let found = walk_records(records, claim.header.records);
    let records = found.whole.into_iter().map(|(at, length)| (COMMIT_HEADER_BYTES + at, length)).collect();
    Some(DamagedCommit { header: claim.header, bytes: padded(claim.length), records })
}

/// Adds a good record of a damaged commit to the footer, so that the record is still found after the segment was
/// sealed.
pub(super) fn note(footer: &mut Footer, bytes: &[u8], place: &RecordLocation) {
    footer.note_records(&bytes[place.at as usize..][..place.bytes as usize], place.at);
}

/// Returns the good records of damaged commits with consecutive numbers, the first of them at offset `at` of `bytes`,
/// and the end of the last commit found.
pub(super) fn servable_records(
    bytes: &[u8],
    mut at: u32,
    numbers: Range<u64>,
    seed: u32,
    segment: SegmentRef,
) -> (Vec<RecordLocation>, u32) {
    let mut places = Vec::new();
    for number in numbers {
        let found =
            bytes.get(at as usize..).and_then(|bytes| read_damaged_commit(bytes, seed, segment.sequence));
        let Some(found) = found.filter(|found| found.header.number == number) else { break };
        places.extend(found.records.into_iter().map(|(from, length)| RecordLocation {
            segment: segment.sequence,
            at: at + from as u32,
            bytes: length as u32,
        }));
        at += found.bytes as u32;
    }
    (places, at)
}

/// Returns whether the good records of a commit with this header may be served.
pub(super) fn is_servable(claim: &ClaimedHeader, seed: u32, segment: u64) -> bool {
    let is_ours = claim.has_magic && claim.identity.seed() == seed && claim.header.segment == segment;
    is_ours && !claim.header.has_group && claim.length >= COMMIT_HEADER_BYTES
}

/// Returns the good records of a damaged commit whose header claims `count` records.
pub(super) fn walk_records(bytes: &[u8], count: u32) -> FoundRecords {
    let (mut at, mut found, mut sure) = (0, FoundRecords::default(), None);
    while at < bytes.len() {
        match Record::parse(&bytes[at..]) {
            Ok((_, length)) => {
                found.whole.push((at, length));
                at += length;
            }
            Err(RecordError::End) => break,
            Err(_) => {
                sure.get_or_insert(found.whole.len());
                found.damaged += 1;
                match claimed_extent(&bytes[at..]).filter(|length| *length <= bytes.len() - at) {
                    Some(length) => at += length,
                    None => break,
                }
            }
        }
    }
    let fits = at == bytes.len() && found.whole.len() as u64 + found.damaged == u64::from(count);
    if !fits {
        found.whole.truncate(sure.unwrap_or(found.whole.len()));
    }
    found
}

/// Returns the bytes that the record at the start of `bytes` claims to take.
pub(super) fn claimed_extent(bytes: &[u8]) -> Option<usize> {
    let mut input = Input::new(bytes);
    input.byte()?;
    let length = usize::try_from(input.varint()?).ok()?;
    (bytes.len() - input.rest().len()).checked_add(4)?.checked_add(length)
}

// Reading the end of a segment whose last commits and footer cannot be read:
//
// ```text
// segment   | header | commit | ... | last whole commit | damaged commits | damaged footer, or none |
//                                                       ^ tail
// next one  | header: number of commits synced before it | first commit: its number, how many it repeats |
// ```
//
// The header of the next segment contains the number of commits that were synced before it. So it is known how many
// commits at the end of this segment are damaged. Their good records are served like those of damaged commits between
// two whole commits, and the others are reported as lost. Behind the last commit proven to be synced, no record is
// served. Commits that the next segment's first commit repeats are not lost.

impl<D: Disk> Reader<'_, '_, D> {
    /// Returns the number of the last commit that `segment` certainly had. Commits that the next segment repeats do
    /// not count. Returns 0 if no such commit is known.
    ///
    /// The chain is at the segment's last whole commit. `trailer` is the commit number in its footer, or 0. `next` is
    /// the following segment.
    pub(super) fn last_proven_number(
        &mut self,
        segment: SegmentRef,
        next: Option<SegmentRef>,
        headers: &Headers<'_>,
        trailer: u64,
    ) -> io::Result<u64> {
        let with_commits = |next: SegmentRef| {
            let header = headers.iter().find(|(_, _, header)| header.sequence == next.sequence);
            (next, header.map(|(_, _, header)| header.commits))
        };
        proven_by_next(
            self.disk,
            segment.sequence,
            &self.chain,
            trailer,
            next.map(with_commits),
            self.identity.seed(),
            &mut self.bytes,
        )
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
            let (SegmentRef { sequence, slot }, to) = (segment, self.segment_bytes);
            self.report.commits_missing += missing;
            self.report.set_aside.push(SetAside { slot, segment: sequence, from: tail, to });
        }
        self.chain.number = through;
        Ok(())
    }

    /// Serves the good records of damaged commits in the range `within` of the buffered segment. Their numbers are
    /// those after the chain, up to `through`. Returns the end of the last damaged commit found.
    pub(super) fn serve(
        &mut self,
        segment: SegmentRef,
        within: core::ops::Range<u32>,
        through: u64,
        pass: Pass,
    ) -> u32 {
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
}

/// Calls `each` with the records of a verified commit and their offsets and lengths. The first record is at
/// offset `at`. Returns the number of records.
pub(super) fn for_each_record(
    mut records: &[u8],
    mut at: u32,
    mut each: impl FnMut(&Record<'_>, (u32, u32)),
) -> u32 {
    let mut count = 0;
    while let Ok((record, bytes)) = Record::parse_known(records) {
        each(&record, (at, bytes as u32));
        records = &records[bytes..];
        at += bytes as u32;
        count += 1;
    }
    count
}

/// Applies those records of a commit for which `is_wanted` is true to the index. The first record is at offset `at`
/// of its segment. Returns the number of all records.
pub(super) fn apply_records(
    index: &mut Index,
    records: &[u8],
    segment: u64,
    at: u32,
    is_wanted: impl Fn(&Record<'_>) -> bool,
) -> u32 {
    for_each_record(records, at, |record, (at, bytes)| {
        if is_wanted(record) {
            index.apply(record, RecordLocation { segment, at, bytes });
        }
    })
}

/// See [`Log::read_record`](super::log::Log::read_record).
pub(super) fn read_record<'b, D: Disk>(
    index: &Index,
    disk: &mut D,
    place: RecordLocation,
    bytes: &'b mut Vec<u8>,
) -> io::Result<Option<Record<'b>>> {
    let Some(segment) = index.segments().get(&place.segment) else {
        return Ok(None);
    };
    bytes.clear();
    bytes.resize_zeroed(place.bytes as usize);
    match disk.read(segment.slot, place.at.into(), bytes) {
        Err(error) if is_about_a_block(&error) => return Ok(None),
        read => read?,
    };
    Ok(Record::parse(bytes).ok().map(|(record, _)| record))
}
