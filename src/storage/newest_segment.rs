//! The newest segment: finds the end of the log, and whether commits that were synced are missing there.
//!
//! ```text
//! segment | header | commit | ... | last commit | an unfinished commit, or damage | zeros | footer
//!                                               ^ tail                            ^ commit headers, footer, segment
//!                                                                   headers and header copy prove commits up to here
//! ```
//!
//! This module also contains the header copy (the file `newest`), the rules by which a commit is proven to have been
//! synced, and the assignment of files with unreadable headers to segments.
//!
//! # Invariants
//! - Bytes that may be a damaged commit are not overwritten, and the numbers of commits that may be lost are not
//!   reused.
//! - Bytes behind the last whole commit count as an unfinished commit only if nothing proves that they were synced.

use std::io;

use leveret_core::mem::sort_by_key;

use super::commit::{
    BLOCK_BYTES, COMMIT_HEADER_BYTES, ClaimedHeader, Commit, Owner, claimed_length, padded, valid_commits,
    verified_length,
};
use super::commit_builder::ResizeZeroed;
use super::damage::ReadAround;
use super::disk::{Disk, NEWEST_SLOT};
use super::footer::{self, Footer};
use super::reader;
use super::reader::apply_records;
use super::reader::{Newest, Pass, Reader};
use super::record::Record;
use super::recovery::{Chain, SetAside};
use super::segment::{
    FoundFile, HeaderRead, Headers, SEGMENT_BYTES_MAX, SegmentHeader, SegmentRef, is_segment_size,
};
use super::space::SlotUse;
use super::varint::Input;

impl<D: Disk> Reader<'_, '_, D> {
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
                apply_records(&mut self.index, commit.records, segment.sequence, first, is_no_message);
            }
        }
        let served_end = self.serve(segment, tail..self.segment_bytes, proven, Pass::Messages);
        let mut served = self.served_records.iter().peekable();
        let commit_at = |at: u32| Commit::parse(&self.bytes[at as usize..], self.identity.seed());
        let last = commits.last().and_then(|(_, at)| commit_at(*at));
        let (repeated_bytes, repeated_count) = last
            .map_or((Vec::new(), 0), |commit| records_to_repeat(&commit, |segment| self.is_needed(segment)));
        // The last commit and the commits that it repeats may exist only in the page cache. They are added to the
        // footer when they are written again: a footer must not prove commits that a power cut can still destroy.
        let mut footer = Footer::default();
        let synced = self.chain.number.saturating_sub(u64::from(self.chain.repeats));
        for (_, at) in commits.iter().filter(|(number, _)| *number < synced) {
            while let Some(place) = served.next_if(|place| place.at < *at) {
                reader::note(&mut footer, &self.bytes, place);
            }
            let records = commit_at(*at).map(|commit| commit.records).unwrap_or_default();
            footer.note_records(records, at + COMMIT_HEADER_BYTES as u32);
        }
        served.for_each(|place| reader::note(&mut footer, &self.bytes, place));
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

    /// Returns the number of the newest commit that the newest segment proves to have been synced; 0 if there is
    /// none. The segment is in the buffer; its last whole commit ends at offset `tail`.
    pub(super) fn synced_in_newest(&self, segment: SegmentRef, tail: u32) -> u64 {
        let seed = Some(self.identity.seed());
        let headers =
            synced_by_commit_headers(&self.bytes, tail as usize, segment.sequence, &self.chain, seed);
        headers.max(
            footer::of_segment(&self.bytes, segment.sequence, self.identity.seed())
                .map_or(0, |(_, trailer)| trailer.number),
        )
    }

    /// Returns whether a segment has live records. If the log also contains its removal, the copies of these records
    /// are damaged.
    fn is_needed(&self, segment: u64) -> bool {
        self.index.segments().get(&segment).is_some_and(|segment| segment.live > 0)
    }

    /// Finds out whether commits at the end of the log are lost, or there is only an unfinished commit. The damage is
    /// not overwritten and its commit numbers are not reused. Therefore every start finds it again until its segment
    /// is removed.
    pub(super) fn find_lost_end(
        &mut self,
        newest: &mut Newest,
        headers: &Headers<'_>,
        found: &[FoundFile],
        recorded_end: u64,
    ) -> io::Result<()> {
        let (chain, end, seed) = (self.chain, self.segment_bytes, Some(self.identity.seed()));
        let mut synced = synced_by_headers(headers).max(newest.synced).max(recorded_end);
        for &(slot, first, header) in headers.iter().filter(|h| h.2.sequence > newest.segment.sequence) {
            let length = self.disk.read(slot, 0, &mut self.bytes)?;
            let headers = synced_by_commit_headers(
                &self.bytes[..length],
                first as usize,
                header.sequence,
                &chain,
                seed,
            );
            if headers > chain.number {
                self.set_aside.push(slot);
                self.report.set_aside.push(SetAside { slot, segment: header.sequence, from: first, to: end });
            }
            synced = synced.max(headers);
            // A file has its full length before its header is written, so a shorter file was truncated. The segment
            // that the header copy names is checked by `check_header_copy`.
            if (length as u32) < end && self.header_copy.is_none_or(|copied| copied.slot != slot) {
                self.note_truncated(SegmentRef { sequence: header.sequence, slot }, length as u32);
                self.set_aside.push(slot);
                let commits = u64::from((end - length as u32).div_ceil(BLOCK_BYTES as u32));
                self.report.commits_lost_at_end += commits;
                self.chain.number += commits;
                (newest.is_damaged, newest.tail) = (true, end);
            }
        }
        synced = synced.max(self.find_next_without_header(newest, &chain, found)?);
        if synced > chain.number {
            let SegmentRef { sequence, slot } = newest.segment;
            self.report.set_aside.push(SetAside { slot, segment: sequence, from: newest.tail, to: end });
            self.report.commits_missing += synced - chain.number;
            self.report.commits_lost_at_end = synced - chain.number;
            self.chain.number = self.chain.number.max(synced);
            newest.is_damaged = true;
            newest.tail = end;
        }
        Ok(())
    }

    /// Searches for the segment that follows the newest readable segment, and whose segment header and commits are
    /// all damaged. Sets its file aside. Returns the number of the newest commit that its commit headers prove to have
    /// been synced; 0 if there is none.
    ///
    /// Its file may have the header of an older segment again. If the newest readable segment is so full that another
    /// one may follow, the first [`LOOK_BYTES`] of such files are searched, too; see [`may_have_next`].
    fn find_next_without_header(
        &mut self,
        newest: &Newest,
        chain: &Chain,
        found: &[FoundFile],
    ) -> io::Result<u64> {
        let (mut synced, sequence) = (0, newest.segment.sequence + 1);
        for file in found {
            let slot = file.slot;
            let most = match &file.header {
                HeaderRead::Bad => self.bytes.len(),
                HeaderRead::Good(header, _)
                    if header.sequence < sequence && may_have_next(newest.tail, self.segment_bytes) =>
                {
                    LOOK_BYTES.min(self.bytes.len())
                }
                _ => continue,
            };
            if self.index.segments().values().any(|segment| segment.slot == slot) {
                continue;
            }
            let length = self.disk.read(slot, 0, &mut self.bytes[..most])?;
            let seed = Some(self.identity.seed());
            let headers = synced_by_commit_headers(&self.bytes[..length], BLOCK_BYTES, sequence, chain, seed);
            if headers > chain.number {
                self.set_aside.push(slot);
                self.report.set_aside.push(SetAside {
                    slot,
                    segment: sequence,
                    from: 0,
                    to: self.segment_bytes,
                });
            }
            synced = synced.max(headers);
        }
        Ok(synced)
    }

    /// Checks the newest segment against the header copy beside the log. The header copy proves that the header was
    /// synced and the file had its full length. If the header is damaged or the file is shorter now, and no commit of
    /// the segment can be found, the maximum number of commits of a segment counts as lost.
    pub(super) fn check_header_copy(&mut self, newest: &mut Newest) -> io::Result<()> {
        let Some(copied) = self.header_copy.filter(|copied| copied.sequence >= newest.segment.sequence)
        else {
            return Ok(());
        };
        let (SegmentRef { sequence, slot }, end) = (copied, self.segment_bytes);
        if copied == newest.segment {
            if self.is_only_in_header_copy {
                let to = BLOCK_BYTES as u32;
                self.report.set_aside.push(SetAside { slot, segment: sequence, from: 0, to });
            }
            return Ok(());
        }
        let length = self.disk.read(slot, 0, &mut self.bytes)? as u32;
        if !self.is_only_in_header_copy && length == end {
            return Ok(());
        }
        if self.is_only_in_header_copy {
            self.report.set_aside.push(SetAside { slot, segment: sequence, from: 0, to: end });
        } else {
            self.note_truncated(copied, length);
        }
        let commits = u64::from(end / BLOCK_BYTES as u32);
        self.report.commits_lost_at_end += commits;
        self.chain.number += commits;
        self.set_aside.push(slot);
        (newest.is_damaged, newest.tail) = (true, end);
        Ok(())
    }

    /// Detects a truncated newest segment: a file has its full length before its header is written. The maximum
    /// number of commits in the missing part counts as lost.
    pub(super) fn find_truncated_end(&mut self, newest: &mut Newest) {
        let (end, length) = (self.segment_bytes, newest.length);
        if length < end {
            self.note_truncated(newest.segment, length);
            if !newest.is_damaged {
                self.report.commits_lost_at_end += u64::from((end - length).div_ceil(BLOCK_BYTES as u32));
            }
            (newest.is_damaged, newest.tail) = (true, end);
        }
    }

    /// Reports a truncated segment file.
    pub(super) fn note_truncated(&mut self, segment: SegmentRef, length: u32) {
        let (SegmentRef { sequence, slot }, to) = (segment, self.segment_bytes);
        self.report.set_aside.push(SetAside { slot, segment: sequence, from: length, to });
        self.report.files_truncated += 1;
        self.cut.push(slot);
    }

    /// Returns the number of files that cannot be opened or read and are not in `list`; these may be newer segments.
    /// A file counts as unreadable if the disk refuses to read its first block.
    pub(super) fn unopened_newer_count(&self, found: &[FoundFile], list: &[SegmentRef]) -> u32 {
        let is_listed = |slot| list.iter().any(|segment| segment.slot == slot);
        let is_unread =
            |slot| self.disk.is_unopened(slot) || self.disk.refused.binary_search(&(slot, 0)).is_ok();
        found.iter().filter(|file| is_unread(file.slot) && !is_listed(file.slot)).count() as u32
    }

    /// Counts files that cannot be opened as newer segments if the newest readable segment is full, because only then
    /// a newer segment is opened. The maximum number of commits in these files counts as lost.
    pub(super) fn count_unopened_as_newer(&mut self, newest: &mut Newest, unopened: u32) {
        let room = (self.segment_bytes - newest.tail) as usize;
        let footer = newest.footer.bytes_max() + Footer::bytes_max_of(newest.repeated_bytes.len());
        let is_full = padded(newest.repeated_bytes.len() + footer) > room;
        if !is_full || unopened == 0 {
            return;
        }
        let commits = u64::from(unopened) * u64::from(self.segment_bytes / BLOCK_BYTES as u32);
        self.newer_missing = unopened;
        self.report.commits_lost_at_end += commits;
        self.chain.number += commits;
        (newest.is_damaged, newest.tail) = (true, self.segment_bytes);
    }

    /// Detects missing files, such as in a partial copy of the directory.
    ///
    /// A segment is sealed when the next one is opened, and for each opened segment a header copy is written. If the
    /// newest segment is sealed, and there is neither a newer file nor a header copy, files are missing. The maximum
    /// number of commits of one segment counts as lost. A header copy of an older segment is no sign of missing
    /// files, because writing the newer header copy may have failed. An invalid header copy is a sign: when it was
    /// half written, the header of the newer segment already existed.
    ///
    /// If a full file system had no space for a header copy, a power cut can leave a half-written newer header
    /// without one. A file with a bad header and no commits therefore counts as the newer file, of which no commit
    /// was durable.
    pub(super) fn find_missing_files(
        &mut self,
        newest: &mut Newest,
        headers: &Headers<'_>,
        found: &[FoundFile],
    ) -> io::Result<()> {
        let sequence = newest.segment.sequence;
        let is_newer = |(_, _, header): &(u32, u32, &SegmentHeader)| header.sequence > sequence;
        let is_whole = self.header_copy.is_some() || headers.iter().any(is_newer);
        if !newest.is_sealed || newest.is_damaged || is_whole {
            return Ok(());
        }
        for file in found.iter().filter(|file| file.header == HeaderRead::Bad) {
            if !has_content(self.disk, file.slot)? {
                return Ok(());
            }
        }
        let commits = u64::from(self.segment_bytes / BLOCK_BYTES as u32);
        self.report.newest_missing = true;
        self.report.commits_missing += commits;
        self.report.commits_lost_at_end += commits;
        self.chain.number += commits;
        self.newer_missing = 1;
        newest.is_damaged = true;
        Ok(())
    }

    /// Excludes files with refused blocks from writing. A refused block may contain a durable commit and become
    /// readable again, so numbers of commits that it may contain are not used either.
    pub(super) fn protect_refused_files(&mut self, newest: &mut Newest, slots: &mut [SlotUse]) {
        let end = self.segment_bytes;
        for &(slot, _) in &self.disk.refused {
            let Some(state) = slots.get_mut(slot as usize) else { continue };
            if matches!(state, SlotUse::Free | SlotUse::Preparing) {
                *state = SlotUse::Unusable;
                self.report.set_aside.push(SetAside { slot, segment: 0, from: 0, to: end });
            }
        }
        let SegmentRef { sequence, slot } = newest.segment;
        let behind = |&&(other, at): &&(u32, u32)| other == slot && at >= newest.tail;
        let lost = match self.disk.is_file_given_up(slot) {
            true => u64::from((end - newest.tail).div_ceil(BLOCK_BYTES as u32)),
            false => self.disk.refused.iter().filter(behind).count() as u64,
        };
        if lost > 0 && sequence > 0 {
            self.report.set_aside.push(SetAside { slot, segment: sequence, from: newest.tail, to: end });
            self.report.commits_lost_at_end += lost;
            self.chain.number += lost;
            newest.is_damaged = true;
            newest.tail = end;
            self.index.forget_watermark_resets();
        }
    }
}

const MAGIC: [u8; 8] = *b"LEVERETN";
const HEADER_AT: usize = 16;
/// Maximum bytes of a header copy. No store has enough segments for a longer header.
const HEADER_COPY_BYTES_MAX: usize = 1 << 20;

/// A valid header copy: the newest segment's header once more, in the file `newest` beside the log.
///
/// Only the newest header contains the current list of segments, and no later segment proves that the newest segment
/// existed. Without the header copy, a start would use an older list of segments if the flash card lost the block of
/// the newest header. If the card lost the whole newest segment, the loss of its commits would not be detected.
///
/// ```text
/// newest | magic "LEVERETN" | CRC32C u32 | slot u32 | header, as in the segment | zeros to 4 KiB |
///          0                  8            12         16
/// ```
///
/// All integers are little endian. The CRC covers everything from `slot` to the end of the header's list.
///
/// # Invariants
/// - The header copy is written after the sync of the segment header, and synced before the first commit of the
///   segment is written. A header copy therefore proves that the segment header was durable, and a commit in the
///   newest segment proves that the header copy was.
/// - The header copy is written once per segment, and again by a start that continues with another segment.
/// - The content of an invalid header copy is ignored. If writing it fails, the header copy of an older segment
///   stays. A start that finds a newer segment ignores that header copy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct HeaderCopy {
    pub(super) segment: SegmentRef,
    pub(super) header: SegmentHeader,
    /// Number of bytes of the header in the segment.
    pub(super) header_bytes: u32,
}

/// Returns whether there is a header copy, valid or not.
fn is_there<D: Disk>(disk: &mut D) -> bool {
    disk.read(NEWEST_SLOT, 0, &mut [0]).map_or(true, |length| length > 0)
}

/// Reads the header copy; returns `None` if there is no valid one.
pub(super) fn read<D: Disk>(disk: &mut D) -> Option<HeaderCopy> {
    let mut bytes = vec![0; BLOCK_BYTES];
    let mut known = disk.read(NEWEST_SLOT, 0, &mut bytes).ok()?;
    if let HeaderRead::Longer(needed) = SegmentHeader::parse(bytes.get(HEADER_AT..known)?) {
        bytes.resize_zeroed(padded(HEADER_AT.saturating_add(needed)).min(HEADER_COPY_BYTES_MAX));
        known = disk.read(NEWEST_SLOT, 0, &mut bytes).ok()?;
    }
    let mut input = Input::new(&bytes[..known]);
    let (magic, sum, slot) = (input.take(8)?, input.u32()?, input.u32()?);
    let HeaderRead::Good(header, header_bytes) = SegmentHeader::parse(input.rest()) else { return None };
    let end = HEADER_AT + SegmentHeader::length(input.rest())?;
    let is_good = *magic == MAGIC && sum == crc32c::crc32c(bytes.get(12..end)?);
    let segment = SegmentRef { sequence: header.sequence, slot };
    is_good.then_some(HeaderCopy { segment, header, header_bytes })
}

/// Writes the header copy of a segment whose header was just synced; returns the number of bytes written.
///
/// # Errors
/// The header copy cannot be written. There may be an older header copy or none.
pub(super) fn write<D: Disk>(disk: &mut D, slot: u32, header: &[u8]) -> io::Result<usize> {
    let length = SegmentHeader::length(header).unwrap_or(0);
    let mut bytes = Vec::with_capacity(padded(HEADER_AT + length));
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&slot.to_le_bytes());
    bytes.extend_from_slice(&header[..length]);
    let sum = crc32c::crc32c(&bytes[12..]);
    bytes[8..12].copy_from_slice(&sum.to_le_bytes());
    bytes.resize_zeroed(padded(bytes.len()));
    let is_new = !is_there(disk);
    disk.create(NEWEST_SLOT)?;
    disk.write(NEWEST_SLOT, 0, &bytes)?;
    disk.sync(NEWEST_SLOT)?;
    if is_new {
        disk.sync_directory()?;
    }
    Ok(bytes.len())
}

/// Writes the header copy of the segment with which a start continues, before any file is reused.
///
/// # Errors
/// The header copy of a newer segment can neither be replaced nor invalidated. The start must fail, because that
/// segment would count as lost when its file is reused.
pub(super) fn renew<D: Disk>(disk: &mut D, active: SegmentRef) -> io::Result<()> {
    let copied = read(disk).map_or(0, |note| note.segment.sequence);
    if copied == active.sequence {
        return Ok(());
    }
    let written = match header_of(disk, active) {
        Some(header) => write(disk, active.slot, &header).map(|_| ()),
        None if copied < active.sequence => return Ok(()),
        None => Err(io::ErrorKind::NotFound.into()),
    };
    match written {
        Err(_) if copied > active.sequence => forget(disk),
        // The header copy is written again when the next segment is opened.
        _ => Ok(()),
    }
}

/// Reads the header of a segment from its file.
fn header_of<D: Disk>(disk: &mut D, segment: SegmentRef) -> Option<Vec<u8>> {
    if segment.sequence == 0 {
        return None;
    }
    let mut bytes = vec![0; BLOCK_BYTES];
    let mut known = disk.read(segment.slot, 0, &mut bytes).ok()?;
    if let HeaderRead::Longer(needed) = SegmentHeader::parse(&bytes[..known]) {
        bytes.resize_zeroed(needed.min(HEADER_COPY_BYTES_MAX));
        known = disk.read(segment.slot, 0, &mut bytes).ok()?;
    }
    match SegmentHeader::parse(&bytes[..known]) {
        HeaderRead::Good(header, length) if header.sequence == segment.sequence => {
            bytes.truncate(length as usize);
            Some(bytes)
        }
        _ => None,
    }
}

/// Invalidates the header copy.
///
/// # Errors
/// The header copy cannot be invalidated.
pub fn forget<D: Disk>(disk: &mut D) -> io::Result<()> {
    if disk.read(NEWEST_SLOT, 0, &mut [0]).is_ok_and(|length| length == 0) {
        return Ok(());
    }
    let zeroed = disk.write(NEWEST_SLOT, 0, &[0; BLOCK_BYTES]).and_then(|()| disk.sync(NEWEST_SLOT));
    zeroed.or_else(|_| disk.remove(NEWEST_SLOT).and_then(|()| disk.sync_directory()))
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

/// Returns the records of the last commit that must be written again, and their number. The removal of a segment is
/// left out if the segment is still needed.
pub(super) fn records_to_repeat(commit: &Commit<'_>, is_needed: impl Fn(u64) -> bool) -> (Vec<u8>, u32) {
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

/// Returns whether a segment whose last whole commit ends at offset `tail` may be followed by another one. A commit
/// takes at most a third of a segment, so a segment that is not half full has space for the next one.
pub(super) const fn may_have_next(tail: u32, segment_bytes: u32) -> bool {
    tail > segment_bytes / 2
}

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
pub(super) fn owner_of<D: Disk>(disk: &mut D, found: &[FoundFile]) -> io::Result<Option<Owner>> {
    let mut named = Vec::new();
    for file in found.iter().filter(|file| file.header == HeaderRead::Bad) {
        named.extend(first_owner(disk, file.slot)?);
    }
    Ok(most_frequent(named))
}

/// Returns the value that occurs most often; the first of them in case of a tie, `None` if there are no values.
pub(super) fn most_frequent<T: Copy + PartialEq>(named: impl IntoIterator<Item = T>) -> Option<T> {
    let mut counted: Vec<(T, usize)> = Vec::new();
    for owner in named {
        match counted.iter_mut().find(|(other, _)| *other == owner) {
            Some((_, count)) => *count += 1,
            None => counted.push((owner, 1)),
        }
    }
    let most = counted.iter().map(|(_, count)| *count).max()?;
    counted.into_iter().find(|(_, count)| *count == most).map(|(owner, _)| owner)
}

/// Returns the owner in the first commit of a file that has a correct checksum; `None` if there is no such commit.
fn first_owner<D: Disk>(disk: &mut D, slot: u32) -> io::Result<Option<Owner>> {
    let mut bytes = [0; BLOCK_BYTES];
    for at in (BLOCK_BYTES as u64..SEGMENT_BYTES_MAX.into()).step_by(BLOCK_BYTES) {
        if disk.read(slot, at, &mut bytes)? < BLOCK_BYTES {
            return Ok(None);
        }
        let Some(length) = claimed_length(&bytes) else { continue };
        let owner = Commit::claimed_owner(&bytes).filter(|owner| is_segment_size(owner.segment_bytes));
        if let Some(owner) = owner.filter(|owner| length <= owner.segment_bytes as usize)
            && verified_length(disk, slot, at, owner.identity.seed())?.is_some()
        {
            return Ok(Some(owner));
        }
    }
    Ok(None)
}

/// Returns the number of the last commit that segment `sequence` certainly had. Commits that the next segment repeats
/// do not count. Returns 0 if no such commit is known.
///
/// `chain` is the state after the segment's last whole commit. `trailer` is the commit number in the segment's
/// footer, or 0. `next` is the following segment, with the number of commits in its header. `buffer` is as long as a
/// segment.
pub(super) fn proven_by_next<D: Disk>(
    disk: &mut ReadAround<'_, D>,
    sequence: u64,
    chain: &Chain,
    trailer: u64,
    next: Option<(SegmentRef, Option<u64>)>,
    seed: u32,
    buffer: &mut [u8],
) -> io::Result<u64> {
    let next = next.filter(|(next, _)| next.sequence == sequence + 1 && chain.is_adjacent(sequence));
    let Some((next, next_commits)) = next else { return Ok(trailer) };
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

/// Returns the number of the newest commit that good segment headers prove to have been synced; 0 if there is none.
pub(super) fn synced_by_headers(headers: &Headers<'_>) -> u64 {
    headers.iter().map(|(_, _, header)| header.commits).max().unwrap_or(0)
}

/// Returns whether commit headers, even of damaged commits, prove that a commit of the segment was synced.
/// The commits start at offset `first` of `bytes`.
pub(super) fn has_synced(bytes: &[u8], first: u32, header: &SegmentHeader, seed: Option<u32>) -> bool {
    let before = Chain { number: header.commits, epoch: header.epoch, ..Chain::default() };
    synced_by_commit_headers(bytes, first as usize, header.sequence, &before, seed) > header.commits
}

/// Returns the number of the newest commit that commit headers prove to have been synced; 0 if there is none.
///
/// A commit is written only after the sync of the previous commit. A commit header therefore proves the previous
/// commit, even if its own commit is torn or damaged. Of several headers, each except the last proves its own commit
/// too. Headers are searched in `bytes` from offset `from` on. They must contain the identity of the store with this
/// `seed` and the segment `sequence`, and follow `chain`. The identity is secret, so no message body can imitate a
/// header.
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
    seed: Option<u32>,
) -> u64 {
    let (mut proven, mut headers, mut epoch) = (0, 0, chain.epoch);
    for at in (from..bytes.len()).step_by(BLOCK_BYTES) {
        let claim = ClaimedHeader::read(&bytes[at..]).filter(|claim| Some(claim.identity.seed()) == seed);
        let Some(ClaimedHeader { header, .. }) = claim else { continue };
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

#[cfg(test)]
mod unreadable_header_tests {
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

#[cfg(test)]
mod sync_proof_tests {
    use super::*;
    use crate::commit::{CommitHeader, begin, finish};
    use crate::segment::Identity;

    /// A kill tears the header of an epoch's first commit. The rest of the header is from an older use of the
    /// file.
    #[test]
    fn the_first_head_of_a_life_proves_nothing_of_the_commit_that_it_repeats() {
        let owner =
            Owner { identity: Identity { id: *b"0123456789abcdef", secret: 5 }, segment_bytes: 1 << 20 };
        let head = |epoch, number| {
            let (time_ms, records, repeats, has_group) = (1, 1, 0, false);
            let header = CommitHeader { epoch, number, segment: 15, time_ms, records, repeats, has_group };
            let mut buffer = Vec::new();
            begin(&mut buffer);
            finish(&mut buffer, &header, &owner);
            buffer
        };
        let chain = Chain { number: 158, epoch: 4, ..Chain::default() };
        let proven =
            |bytes: &[u8]| synced_by_commit_headers(bytes, 0, 15, &chain, Some(owner.identity.seed()));
        let lost = vec![0; BLOCK_BYTES];
        assert_eq!(proven(&[lost.clone(), head(5, 160)].concat()), 158);
        assert_eq!(proven(&[head(4, 159), head(5, 160)].concat()), 158);
        assert_eq!(proven(&[lost, head(5, 160), head(5, 161)].concat()), 160);
        assert_eq!(proven(&[head(4, 159), head(4, 160)].concat()), 159);
    }
}
