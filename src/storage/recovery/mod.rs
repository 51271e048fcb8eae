//! Recovery: turns the files found at a start into a log again.
//!
//! 1. All segment headers are read. The newest header with a commit behind it is proven to be durable; its list of
//!    segments is the log. A header without a commit may be half written, so its list is ignored and its file is
//!    free.
//! 2. The listed segments are read into the index in order, either their footers or commit by commit. The newest
//!    segment is always read commit by commit. Records that are not messages are applied first, so that settled
//!    messages take no memory. A bad commit is damage if a good commit follows, or if it was certainly synced
//!    (`proof`): it is set aside and reported. Any other bad commit at the end is an unfinished commit and is
//!    overwritten.
//! 3. A new epoch begins. The last commit found, which may exist only in the page cache, is written again and
//!    synced first, so that everything found is durable. Unfinished large groups are completed or undone (`group`),
//!    and lost access definitions are written again (`access`).
//!
//! | file | content |
//! |------|---------|
//! | `listing` | step 1: which files are the log |
//! | `unreadable` | files without a readable segment header; which files may be reused |
//! | `reader` | step 2: from footers and commits to an index |
//! | `scan` | finding the commits in the bytes of a segment |
//! | `proof` | what proves that a commit was synced |
//! | `end` | the end of the log: commits that are lost, or unfinished |
//! | `header_copy` | the copy of the newest segment header, in the file `newest` |
//! | `report` | the report of a start |
//!
//! # Invariants
//! - The same bytes give the same log.
//! - No content of the files makes a start fail, except a format that is not supported.
//! - Nothing is written before step 3.

mod end;
pub(crate) mod header_copy;
mod listing;
mod proof;
mod reader;
mod report;
mod scan;
mod unreadable;

use std::io;

use leveret_core::time::Now;

use crate::access;
use crate::commit::{BLOCK_BYTES, Owner};
use crate::commit_builder::StepResult;
use crate::damage::{READ_ATTEMPTS_MAX, REFUSED_IN_FILE_MAX, ReadAround, is_about_a_block};
use crate::disk::{Disk, REPAIR_SLOT, is_full};
use crate::file_disk::FileDisk;
use crate::group;
use crate::log::{Log, RecoveredState, Settings, WriterState};
use crate::segment::{FoundFile, FoundHeader, HeaderRead, Headers, Identity, SegmentRef, is_segment_size};
use crate::space::SlotUse;

pub use report::{Access, AccessCorrection, AccessDefinition, AccessReport, Report, SetAside};

use listing::{Lister, Listing, has_older_format, own_headers, read_headers, use_header_copy};
use proof::synced_by_headers;
use reader::{Newest, Pass, Reader, bytes_of_header};
use scan::Chain;
use unreadable::owner_in_commits;

/// The reason why a store cannot be opened.
#[derive(Debug)]
pub enum OpenError {
    /// Another process uses the store.
    InUse,
    /// A newer version of Leveret wrote the store.
    NewerFormat,
    /// Leveret 0.1 wrote at least a part of the store.
    OlderFormat,
    /// There is no store, and a new one must not be created.
    NoStore,
    /// The store cannot be read at all.
    Unreadable(io::Error),
}

impl core::fmt::Display for OpenError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::InUse => write!(f, "the data directory is in use by another process"),
            Self::NewerFormat => {
                write!(f, "the data directory was written by a newer version of Leveret; run that one")
            }
            Self::OlderFormat => write!(
                f,
                "the data directory is of store format 1 (Leveret 0.1), which this version does not read; nothing \
                 was changed. Install the version before this one, type `leveret upgrade-store` with the data \
                 directory, and let that version run until its messages are consumed; or move the directory away \
                 to start with a new store"
            ),
            Self::NoStore => write!(
                f,
                "there is no store in the data directory, and require_store = true forbids creating one: is the \
                 right file system mounted there, with all of its files? For the first start, leave require_store \
                 out"
            ),
            Self::Unreadable(error) => write!(f, "the data directory cannot be read: {error}"),
        }
    }
}

impl core::error::Error for OpenError {}

impl Log {
    /// Opens the store on `disk`, or formats an empty one with the identity `fresh`. Blocks.
    ///
    /// Afterwards everything found is durable, unless [`Report::is_pending`] or [`Report::unwritable`] is set.
    ///
    /// # Errors
    /// The store cannot be read, or must not be opened.
    pub fn open<D: Disk>(
        disk: &mut D,
        settings: Settings,
        fresh: Identity,
        now: Now,
    ) -> Result<(Self, Report), OpenError> {
        disk.lock().map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => OpenError::InUse,
            _ => OpenError::Unreadable(error),
        })?;
        let may_create_store = settings.may_create_store;
        let (mut log, mut report) = Self::read_with_retries(disk, settings, fresh)?;
        if (report.is_new || report.has_no_files) && !may_create_store {
            return Err(OpenError::NoStore);
        }
        let written = log.write_first_commits(disk, &mut report, now);
        report.is_full = log.space.is_file_system_full();
        report.is_pending = log.schedule.is_starting || log.is_busy();
        if let Err(error) = written
            && !log.may_start_without_commits(&error, &report)
        {
            log.failed = true;
            report.unwritable = Some(error);
        }
        Ok((log, report))
    }

    /// Returns whether the start may continue although there is no space for its first commits. It may if the store
    /// is neither new nor lost, and no access definitions must be restored by these commits.
    fn may_start_without_commits(&self, error: &io::Error, report: &Report) -> bool {
        let is_known = !report.is_new && !report.is_lost && report.access.restored.is_empty();
        is_full(error) && self.space.is_file_system_full() && !self.failed && is_known
    }

    /// Reads the store up to [`READ_ATTEMPTS_MAX`] times, until the disk does not refuse to read any part of it. A
    /// flash card may refuse temporarily, and what is written later depends on the result.
    fn read_with_retries<D: Disk>(
        disk: &mut D,
        settings: Settings,
        fresh: Identity,
    ) -> Result<(Self, Report), OpenError> {
        for _ in 1..READ_ATTEMPTS_MAX {
            match Self::read_store(disk, settings.clone(), fresh, false) {
                Ok((_, report)) if !report.refused.is_empty() => {}
                Err(OpenError::Unreadable(error)) if is_about_a_block(&error) => {}
                result => return result,
            }
        }
        Self::read_store(disk, settings, fresh, false)
    }

    /// Reads the store as a start does, and writes nothing. With `checks_all`, every commit is verified, even
    /// where a footer suffices for a start.
    pub(super) fn read_store<D: Disk>(
        disk: &mut D,
        settings: Settings,
        fresh: Identity,
        checks_all: bool,
    ) -> Result<(Self, Report), OpenError> {
        let disk = &mut ReadAround::new(disk);
        let (start, mut report) = recover(disk, settings, fresh, checks_all)?;
        let mut log = Self::start(start);
        log.judge_access(disk, &mut report).map_err(OpenError::Unreadable)?;
        report.refused.clone_from(&disk.refused);
        report.unopened = disk.unopened().to_vec();
        report.has_unfinished_repair = disk.read(REPAIR_SLOT, 0, &mut [0]).is_ok_and(|length| length > 0);
        log.is_damaged = !report.describe_damage().is_empty();
        Ok((log, report))
    }

    /// Writes the first commits of an epoch.
    fn write_first_commits<D: Disk>(
        &mut self,
        disk: &mut D,
        report: &mut Report,
        now: Now,
    ) -> io::Result<()> {
        let groups = self.find_groups(disk, report)?;
        self.is_damaged = !report.describe_damage().is_empty();
        self.refused_files = report.refused.iter().map(|(slot, _)| *slot).collect();
        self.refused_files.dedup();
        self.merge_damage(disk, report)?;
        if let Err(error) = self.repeat_last_commit(disk, report, now) {
            self.hide_groups(&groups);
            return Err(error);
        }
        self.end_groups(disk, &groups, report, now)?;
        self.restore_access(disk, &report.access.restored, now)?;
        self.renew_access_file(disk)
    }

    /// Writes the last commit again in the new epoch.
    ///
    /// If free segments are scarce, also writes an empty commit and the records that free space. The next start then
    /// repeats the empty commit instead of a large one. Otherwise a broker that is killed soon after each start would
    /// use up the disk.
    fn repeat_last_commit<D: Disk>(&mut self, disk: &mut D, report: &Report, now: Now) -> io::Result<()> {
        let mut is_damage_appended = self.append_damage(report, now);
        if is_damage_appended {
            self.start_drain();
        }
        // If the end of the log is lost, the header copy is kept as the proof of the loss until the next segment is
        // opened.
        if report.commits_lost_at_end == 0 {
            header_copy::renew(disk, self.space.active.segment())?;
        }
        // An earlier process may have created a file and been killed before it synced the file or the directory.
        self.sync_unused_files(disk)?;
        disk.sync_directory()?;
        let mut is_large = self.pending.len() > BLOCK_BYTES;
        while self.schedule.is_starting || (self.space.is_scarce() && self.compactor.drain.is_some()) {
            match self.step(disk, now)? {
                StepResult::Prepared => continue,
                StepResult::Committed if is_damage_appended => {}
                StepResult::Committed => {
                    is_damage_appended = self.append_damage(report, now);
                    self.start_drain();
                }
                StepResult::Nothing if self.schedule.is_starting => {
                    return Err(io::ErrorKind::StorageFull.into());
                }
                StepResult::Nothing => return Ok(()),
            }
            if core::mem::take(&mut is_large) && self.space.is_scarce() {
                self.schedule.is_starting = true;
                self.make_due();
            }
        }
        self.space.remove_surplus(disk);
        Ok(())
    }

    /// Syncs the free files that were never used, so that they have their full length before they get a header.
    fn sync_unused_files<D: Disk>(&self, disk: &mut D) -> io::Result<()> {
        for (slot, state) in (0..).zip(&self.space.slots.slots) {
            let mut first = [0; 8];
            let has_first =
                *state == SlotUse::Free && disk.read(slot, 0, &mut first).is_ok_and(|length| length > 0);
            if has_first && first == [0; 8] {
                disk.sync(slot)?;
            }
        }
        Ok(())
    }

    /// Opens a store in files; see [`Self::open`].
    ///
    /// # Errors
    /// See [`Self::open`].
    #[inline(never)]
    pub fn open_files(
        files: &mut FileDisk,
        settings: Settings,
        fresh: Identity,
        now: Now,
    ) -> Result<(Self, Report), OpenError> {
        Self::open(files, settings, fresh, now)
    }
}

/// Reads the store and returns the state of the log and the report.
fn recover<D: Disk>(
    disk: &mut ReadAround<'_, D>,
    settings: Settings,
    fresh: Identity,
    checks_all: bool,
) -> Result<(RecoveredState, Report), OpenError> {
    let found = read_headers(disk).map_err(OpenError::Unreadable)?;
    if found.iter().any(|found| found.header == HeaderRead::NewerVersion) {
        return Err(OpenError::NewerFormat);
    }
    let header_copy = header_copy::read(disk);
    let mut headers = own_headers(&found);
    let is_only_in_header_copy = header_copy.as_ref().is_some_and(|copy| use_header_copy(&mut headers, copy));
    let owner = owner_in_segments(disk, &found, &headers).map_err(OpenError::Unreadable)?;
    let kept = access::read_snapshot(disk);
    let owner = owner.or(kept.as_ref().map(|copy| copy.owner).filter(|o| is_segment_size(o.segment_bytes)));
    let Owner { identity, segment_bytes } =
        owner.unwrap_or(Owner { identity: fresh, segment_bytes: settings.segment_bytes });
    if has_older_format(&found, &headers) {
        return Err(OpenError::OlderFormat);
    }
    let mut reader = Reader::new(disk, identity, segment_bytes);
    reader.header_copy =
        header_copy.as_ref().filter(|copy| copy.header.identity == identity).map(|copy| copy.segment);
    reader.is_only_in_header_copy = is_only_in_header_copy;
    reader.checks_all = checks_all;
    let kept = kept.filter(|copy| copy.owner.identity == identity);
    let recorded_end = access::read_end_of(reader.disk, &identity);
    let mut newest = reader.read_log(&mut headers, &found, recorded_end).map_err(OpenError::Unreadable)?;
    reader.check_refusals().map_err(OpenError::Unreadable)?;
    let mut slots = reader.slots(&found, &headers);
    reader.protect_refused_files(&mut slots);
    reader.find_refused_end(&mut newest);
    let kept_epoch = kept.map_or(0, |copy| (copy.snapshot.version >> 32) as u32);
    let sequence_max = headers.first().map_or(0, |(_, _, header)| header.sequence);
    let start = RecoveredState {
        settings: settings.with_segments_of(segment_bytes),
        writer: reader.writer_state(&newest, &headers, kept_epoch),
        index: reader.index,
        slots,
        cut: reader.cut,
        active: newest.segment,
        written_before: written_before(&headers, newest.segment, newest.tail),
        had_access: headers.iter().any(|(_, _, header)| header.has_access),
        tail: newest.tail,
        sequence_max: sequence_max.max(newest.segment.sequence) + u64::from(reader.newer_missing),
        footer: newest.footer,
        repeated_bytes: newest.repeated_bytes,
        repeated_count: newest.repeated_count,
    };
    Ok((start, reader.report))
}

/// Returns the owner that the segment headers name, or, if all of them are damaged, the commits.
fn owner_in_segments<D: Disk>(
    disk: &mut D,
    found: &[FoundFile],
    headers: &Headers<'_>,
) -> io::Result<Option<Owner>> {
    match headers.first() {
        Some((_, _, header)) => {
            Ok(Some(Owner { identity: header.identity, segment_bytes: header.segment_bytes }))
        }
        None => owner_in_commits(disk, found),
    }
}

impl<D: Disk> Reader<'_, '_, D> {
    /// Lists and reads the segments, removes misplaced headers from `headers`, and returns the newest segment.
    /// `recorded_end` is the number of a commit recorded as synced beside the log, or 0.
    fn read_log(
        &mut self,
        headers: &mut Vec<FoundHeader<'_>>,
        found: &[FoundFile],
        recorded_end: u64,
    ) -> io::Result<Newest> {
        let list = self.list_segments(headers, found)?;
        let headers = &**headers;
        let mut newest = match list.last() {
            Some(newest) => self.read_segments(&list, *newest, headers, recorded_end)?,
            None => return self.read_nothing(found, recorded_end),
        };
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

    /// Returns the segments of the log, oldest first. Reports those whose headers cannot be read.
    fn list_segments(
        &mut self,
        headers: &mut Vec<FoundHeader<'_>>,
        found: &[FoundFile],
    ) -> io::Result<Vec<SegmentRef>> {
        let mut lister = Lister {
            disk: self.disk,
            bytes: &mut self.bytes,
            has_header_copy: self.header_copy.is_some(),
            identity: self.identity,
        };
        let Listing { segments, unreadable_headers, leaving, .. } = lister.list(headers, found)?;
        self.leaving = leaving;
        for segment in unreadable_headers {
            self.report.set_part_aside(segment, 0..BLOCK_BYTES as u32);
        }
        Ok(segments)
    }

    /// Reads the segments in `list`, the last of which is `newest`, into the index.
    fn read_segments(
        &mut self,
        list: &[SegmentRef],
        newest: SegmentRef,
        headers: &Headers<'_>,
        recorded_end: u64,
    ) -> io::Result<Newest> {
        // The header of the oldest segment contains the number of commits before it.
        let oldest = headers
            .iter()
            .find(|(slot, _, header)| (header.sequence, *slot) == (list[0].sequence, list[0].slot));
        if let Some((_, _, header)) = oldest {
            let (segment, number) = (header.sequence.saturating_sub(1), header.commits);
            self.chain = Chain { segment, number, is_known: true, ..self.chain };
        }
        let mut olds = Vec::new();
        for pair in list.windows(2) {
            olds.extend(self.read_entries(pair[0], pair[1], headers)?);
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
        self.read_newest(newest, header_bytes, proven, &known)
    }

    /// Refuses to create a new store because the disk refuses to read the old one. If a new store were created, later
    /// starts would use it, even if the disk could read the old store again.
    fn check_refusals(&self) -> io::Result<()> {
        let has_found_nothing = self.report.is_lost || self.report.is_new;
        if has_found_nothing && self.disk.refused.len() > REFUSED_IN_FILE_MAX {
            return Err(io::Error::other(format!(
                "no part of the log can be found, because the disk refuses to read at least {} blocks: restore a \
                 backup, or start with a copy of the data directory on another disk",
                self.disk.refused.len()
            )));
        }
        Ok(())
    }

    /// Returns with which epoch and commit number the log continues. `kept_epoch` is the epoch of the newest change in
    /// the access files, or 0.
    fn writer_state(&self, newest: &Newest, headers: &Headers<'_>, kept_epoch: u32) -> WriterState {
        // The upper half of a definition's version is the epoch that wrote it. If the log is lost, the access files
        // still show which epochs were used, and these must not be used again. Each missing file that may be newer
        // than all others may have been opened by an epoch of its own.
        let header_epoch = headers.iter().map(|(_, _, header)| header.epoch).max().unwrap_or(0);
        let epoch = header_epoch.max(self.chain.epoch).max(kept_epoch).saturating_add(1 + self.newer_missing);
        let has_commit = newest.repeated_count > 0 || self.chain.number > 0;
        WriterState {
            identity: self.identity,
            epoch,
            number: self.chain.number,
            time_base_ms: self.chain.time_ms,
            repeats: if has_commit && !newest.is_damaged { self.chain.repeats + 1 } else { 0 },
        }
    }
}

/// Returns the number of bytes written in earlier epochs. The newest segment is counted up to its tail.
fn written_before(headers: &Headers<'_>, newest: SegmentRef, tail: u32) -> u64 {
    let written = headers.iter().map(|(_, _, header)| header.written).max().unwrap_or(0);
    written.saturating_add(if newest.sequence > 0 { tail.into() } else { 0 })
}
