//! The end of the log: whether commits that were synced are missing there.
//!
//! ```text
//! segment | header | commit | ... | last commit | an unfinished commit, or damage | zeros | footer
//!                                               ^ tail                            ^ commit headers, footer, segment
//!                                                                   headers and header copy prove commits up to here
//! ```
//!
//! # Invariants
//! - Bytes that may be a damaged commit are not overwritten, and the numbers of commits that may be lost are not
//!   reused. Every start therefore finds the damage again until its segment is removed. The exception is a newest
//!   segment that is only too short: the numbers of its missing commits are used again.
//! - Bytes behind the last whole commit count as an unfinished commit only if nothing proves that they were synced.

use core::ops::Range;
use std::io;

use crate::access;
use crate::commit::{BLOCK_BYTES, padded};
use crate::disk::Disk;
use crate::footer::Footer;
use crate::segment::{FoundFile, HeaderRead, Headers, SegmentHeader, SegmentRef};

use super::proof::{may_have_next, synced_by_commit_headers, synced_by_headers};
use super::reader::{Newest, Reader};
use super::scan::Chain;
use super::unreadable::{LOOK_BYTES, has_content};

/// Commits at the end of the log that were synced, or may have been, and cannot be read.
struct LostCommits {
    cause: LossCause,
    /// The segment of the commits and the bytes that are set aside; `None` if no bytes are to be set aside.
    place: Option<(SegmentRef, Range<u32>)>,
    /// The number of commits, or the maximum if the number is not known.
    count: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum LossCause {
    /// Something that was written later proves that the commit with this number was synced.
    Proven { last: u64 },
    /// The segment's file is shorter than a segment.
    Truncated,
    /// A file or some of its blocks cannot be read, or only the header copy names the segment, and the commits may be
    /// there.
    Unreadable,
    /// Files are missing, such as in a partial copy of the directory.
    FilesMissing,
}

impl<D: Disk> Reader<'_, '_, D> {
    /// Reports commits that are lost at the end of the log. Their numbers are not used again, except those of a truncated
    /// newest segment. The newest segment counts as full, so that the damage is not overwritten.
    fn report_lost(&mut self, newest: &mut Newest, lost: LostCommits) {
        let LostCommits { cause, place, count } = lost;
        let is_of_newest = place.as_ref().is_some_and(|(segment, _)| *segment == newest.segment);
        if let Some((segment, part)) = place {
            match cause {
                LossCause::Truncated => self.note_truncated(segment, part.start),
                _ => self.report.set_part_aside(segment, part),
            }
            if !is_of_newest {
                self.set_aside.push(segment.slot);
            }
        }
        match cause {
            // The proven number replaces an estimate made for truncated or unreadable files.
            LossCause::Proven { last } => {
                self.report.commits_missing += count;
                self.report.commits_lost_at_end = count;
                self.chain.number = self.chain.number.max(last);
            }
            LossCause::FilesMissing => {
                self.report.commits_missing += count;
                self.report.commits_lost_at_end += count;
                self.chain.number += count;
            }
            LossCause::Truncated if is_of_newest => self.report.commits_lost_at_end += count,
            LossCause::Truncated | LossCause::Unreadable => {
                self.report.commits_lost_at_end += count;
                self.chain.number += count;
            }
        }
        (newest.is_damaged, newest.tail) = (true, self.segment_bytes);
    }

    /// Returns the maximum number of commits in a segment: each takes at least one block.
    fn segment_commits_max(&self) -> u64 {
        u64::from(self.segment_bytes / BLOCK_BYTES as u32)
    }

    /// Returns the maximum number of commits between offset `from` and the end of a segment.
    fn commits_max_from(&self, from: u32) -> u64 {
        u64::from((self.segment_bytes - from).div_ceil(BLOCK_BYTES as u32))
    }

    /// Finds out whether commits at the end of the log are lost, or there is only an unfinished commit.
    pub(super) fn find_lost_end(
        &mut self,
        newest: &mut Newest,
        headers: &Headers<'_>,
        found: &[FoundFile],
        recorded_end: u64,
    ) -> io::Result<()> {
        let (chain, end, seed) = (self.chain, self.segment_bytes, self.identity.seed());
        let mut synced = synced_by_headers(headers).max(newest.synced).max(recorded_end);
        let sequence = newest.segment.sequence;
        for &(slot, first, header) in headers.iter().filter(|(_, _, header)| header.sequence > sequence) {
            let segment = SegmentRef { sequence: header.sequence, slot };
            let length = self.disk.read(slot, 0, &mut self.bytes)?;
            let bytes = &self.bytes[..length];
            let last = synced_by_commit_headers(bytes, first as usize, header.sequence, &chain, seed);
            if last > chain.number {
                self.set_aside.push(slot);
                self.report.set_part_aside(segment, first..end);
            }
            synced = synced.max(last);
            // A file has its full length before its header is written, so a shorter file was truncated. The segment
            // that the header copy names is checked by `check_header_copy`.
            let length = length as u32;
            if length < end && self.header_copy.is_none_or(|copied| copied.slot != slot) {
                let place = Some((segment, length..end));
                let count = self.commits_max_from(length);
                self.report_lost(newest, LostCommits { cause: LossCause::Truncated, place, count });
            }
        }
        synced = synced.max(self.find_next_without_header(newest, &chain, found)?);
        if synced > chain.number {
            let (place, count) = (Some((newest.segment, newest.tail..end)), synced - chain.number);
            let cause = LossCause::Proven { last: synced };
            self.report_lost(newest, LostCommits { cause, place, count });
        }
        Ok(())
    }

    /// Searches for the next segment, if its segment header and all its commits are damaged. Sets its file aside.
    /// Returns the number of the newest commit that its commit headers prove to have been synced, or 0.
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
            let (bytes, seed) = (&self.bytes[..length], self.identity.seed());
            let last = synced_by_commit_headers(bytes, BLOCK_BYTES, sequence, chain, seed);
            if last > chain.number {
                self.set_aside.push(slot);
                self.report.set_part_aside(SegmentRef { sequence, slot }, 0..self.segment_bytes);
            }
            synced = synced.max(last);
        }
        Ok(synced)
    }

    /// Checks the newest segment against the header copy beside the log. The header copy proves that the header was
    /// synced and the file had its full length. If no commit of that segment was found, and its header is damaged or
    /// its file too short, the maximum number of commits of a segment counts as lost.
    pub(super) fn check_header_copy(&mut self, newest: &mut Newest) -> io::Result<()> {
        let Some(copied) = self.header_copy.filter(|copied| copied.sequence >= newest.segment.sequence)
        else {
            return Ok(());
        };
        if copied == newest.segment {
            if self.is_only_in_header_copy {
                self.report.set_part_aside(copied, 0..BLOCK_BYTES as u32);
            }
            return Ok(());
        }
        let (end, length) = (self.segment_bytes, self.disk.read(copied.slot, 0, &mut self.bytes)? as u32);
        let (cause, from) = match self.is_only_in_header_copy {
            true => (LossCause::Unreadable, 0),
            false if length == end => return Ok(()),
            false => (LossCause::Truncated, length),
        };
        let (place, count) = (Some((copied, from..end)), self.segment_commits_max());
        self.report_lost(newest, LostCommits { cause, place, count });
        Ok(())
    }

    /// Detects a truncated newest segment: a file has its full length before its header is written. The maximum
    /// number of commits in the missing part counts as lost.
    pub(super) fn find_truncated_end(&mut self, newest: &mut Newest) {
        let (end, length) = (self.segment_bytes, newest.length);
        if length < end {
            let place = Some((newest.segment, length..end));
            let count = if newest.is_damaged { 0 } else { self.commits_max_from(length) };
            self.report_lost(newest, LostCommits { cause: LossCause::Truncated, place, count });
        }
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
        self.newer_missing = unopened;
        let count = u64::from(unopened) * self.segment_commits_max();
        self.report_lost(newest, LostCommits { cause: LossCause::Unreadable, place: None, count });
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
        self.report.newest_missing = true;
        self.newer_missing = 1;
        let count = self.segment_commits_max();
        self.report_lost(newest, LostCommits { cause: LossCause::FilesMissing, place: None, count });
        Ok(())
    }

    /// Detects refused blocks behind the last whole commit. Each may contain a durable commit and become readable
    /// again.
    pub(super) fn find_refused_end(&mut self, newest: &mut Newest) {
        let SegmentRef { sequence, slot } = newest.segment;
        let behind = |&&(other, at): &&(u32, u32)| other == slot && at >= newest.tail;
        let count = match self.disk.is_file_given_up(slot) {
            true => self.commits_max_from(newest.tail),
            false => self.disk.refused.iter().filter(behind).count() as u64,
        };
        if count > 0 && sequence > 0 {
            let place = Some((newest.segment, newest.tail..self.segment_bytes));
            self.report_lost(newest, LostCommits { cause: LossCause::Unreadable, place, count });
            self.index.forget_watermark_resets();
        }
    }

    /// Returns the newest segment for the case that no file contains a log, and reports whether the store is new or
    /// lost.
    pub(super) fn read_nothing(&mut self, found: &[FoundFile], recorded_end: u64) -> io::Result<Newest> {
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
            let (first, chain, seed) = (*bytes as usize, Chain::default(), self.identity.seed());
            let length = self.disk.read(file.slot, 0, &mut self.bytes)?;
            let synced =
                synced_by_commit_headers(&self.bytes[..length], first, header.sequence, &chain, seed);
            if header.commits.max(synced) > 0 {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
