//! Recovery: turns the files found at a start into a log again.
//!
//! 1. All segment headers are read. The newest header with a commit behind it is proven to be durable; its list of
//!    segments is the log. A header without a commit may be half written, so its list is ignored and its file is
//!    free.
//! 2. The listed segments are read into the index in order, either their footers or commit by commit. The newest
//!    segment is always read commit by commit. Records that are not messages are applied first, so that settled
//!    messages take no memory. A bad commit is damage if a good commit follows, or if it was certainly synced
//!    (`newest_segment`): it is set aside and reported. Any other bad commit at the end is an unfinished commit and
//!    is overwritten.
//! 3. A new epoch begins. The last commit found, which may exist only in the page cache, is written again and
//!    synced first, so that everything found is durable. Unfinished large groups are completed or undone (`group`),
//!    and lost access definitions are written again (`access`).
//!
//! # Invariants
//! - The same bytes give the same log.
//! - No content of the files makes a start fail, except a format that is not supported.
//! - Nothing is written before step 3.

use core::cmp::Reverse;
use core::ops::Range;
use std::collections::BTreeSet;
use std::io;

use crate::reported_damage::ReportedDamage;
use leveret_core::definition::{ACCESS_STORED_KEY, DAMAGE_KEY, is_access};
use leveret_core::mem::{sort, sort_by_key};
use leveret_core::time::Now;

use super::access::FoundAt;
use super::commit::{BLOCK_BYTES, COMMIT_HEADER_BYTES, Commit, CommitHeader, Owner, valid_commits};
use super::commit_builder::ResizeZeroed;
use super::damage::{REFUSED_IN_FILE_MAX, ReadAround, is_about_a_block};
use super::disk::{Disk, REPAIR_SLOT, UnopenedFile, is_full};
use super::file_disk::FileDisk;
use super::log::{Log, RecordLocation, RecoveredState, Settings, WriterState};
use super::newest_segment::{HeaderCopy, LOOK_BYTES, may_have_next};
use super::newest_segment::{UnreadableHeader, segments_of};
use super::newest_segment::{has_content, has_synced, most_frequent, owner_of};
use super::queue_names::Names;
use super::reader::Reader;
use super::reader::for_each_record;
use super::record::{Message, Record};
use super::segment::Identity;
use super::segment::{
    FoundFile, FoundHeader, HeaderRead, Headers, SegmentHeader, SegmentRef, is_segment_size,
};
use super::space::SlotUse;
use super::{access, footer, newest_segment, reader};

/// Maximum number of times that a start reads the store, if the disk refuses to read a part of it.
pub(super) const READ_ATTEMPTS_MAX: u32 = 3;

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
            newest_segment::renew(disk, self.space.active.segment())?;
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

    /// Reads the values of all definitions in the order of their keys, and returns the number of damaged ones. `each`
    /// receives the key, the value, and whether only a footer still contains the definition.
    ///
    /// Access definitions and the reported damage are excluded; they are in the report of the start
    /// ([`AccessReport`], [`Report::reported_damage`]).
    ///
    /// # Errors
    /// The disk cannot be read.
    pub fn read_definitions<D: Disk>(
        &self,
        disk: &mut D,
        mut each: impl FnMut(&[u8], &[u8], bool),
    ) -> io::Result<u64> {
        let (mut bytes, mut damaged) = (Vec::new(), 0);
        let definitions =
            self.index.definitions().iter().filter(|(key, _)| !is_access(key) && ***key != DAMAGE_KEY);
        for (key, definition) in definitions.filter(|(_, definition)| !definition.deleted) {
            match self.read_definition(disk, key, definition, &mut bytes)? {
                Some((value, place)) => each(key, value, place == FoundAt::Footer),
                None => damaged += 1,
            }
        }
        Ok(damaged)
    }

    /// Reads and verifies one record; returns `None` if it is damaged, or the disk refuses to read it.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read_record<'b, D: Disk>(
        &self,
        disk: &mut D,
        place: RecordLocation,
        bytes: &'b mut Vec<u8>,
    ) -> io::Result<Option<Record<'b>>> {
        reader::read_record(&self.index, disk, place, bytes)
    }

    /// Returns where a message found in the log is still live: queues (incarnations), each with the message's offset.
    pub fn live_targets(&self, message: &Message<'_>) -> impl Iterator<Item = (u64, u64)> {
        message.targets.iter().filter_map(|target| {
            let queue = self.index.queues().get(&target.queue)?;
            queue.segment_of(target.offset).map(|_| (target.queue, target.offset))
        })
    }

    /// Returns the names that the footers contain for these queues. Of two names for the same queue, the newer one
    /// counts.
    ///
    /// # Errors
    /// The disk cannot be read.
    pub fn read_names<D: Disk>(&self, disk: &mut D, queues: &BTreeSet<u64>) -> io::Result<Names> {
        self.footers().read_names(disk, queues)
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
    let header_copy = newest_segment::read(disk);
    let mut headers = own_headers(&found);
    let is_only_in_header_copy = header_copy.as_ref().is_some_and(|copy| use_header_copy(&mut headers, copy));
    let owner = match headers.first() {
        Some((_, _, header)) => {
            Some(Owner { identity: header.identity, segment_bytes: header.segment_bytes })
        }
        None => owner_of(disk, &found).map_err(OpenError::Unreadable)?,
    };
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
    let has_found_nothing = reader.report.is_lost || reader.report.is_new;
    if has_found_nothing && reader.disk.refused.len() > REFUSED_IN_FILE_MAX {
        // If a new store were created here, later starts would use it, even if the disk could read the old store
        // again.
        let why =
            io::Error::other("the disk refuses to read so many blocks that no part of the log can be found");
        return Err(OpenError::Unreadable(why));
    }
    let settings = settings.with_segments_of(segment_bytes);
    let mut slots = reader.slots(&found, &headers);
    reader.protect_refused_files(&mut newest, &mut slots);
    // The upper half of a definition's version is the epoch that wrote it. If the log is lost, the access files still
    // show which epochs were used, and these must not be used again. Each missing file that may be newer than all
    // others may have been opened by an epoch of its own.
    let kept_epoch = kept.map_or(0, |copy| (copy.snapshot.version >> 32) as u32);
    let header_epoch = headers.iter().map(|(_, _, header)| header.epoch).max().unwrap_or(0);
    let epoch = header_epoch.max(reader.chain.epoch).max(kept_epoch).saturating_add(1 + reader.newer_missing);
    let sequence_max = headers.first().map_or(0, |(_, _, header)| header.sequence);
    let has_commit = newest.repeated_count > 0 || reader.chain.number > 0;
    let start = RecoveredState {
        settings,
        writer: WriterState {
            identity,
            epoch,
            number: reader.chain.number,
            time_base_ms: reader.chain.time_ms,
            repeats: if has_commit && !newest.is_damaged { reader.chain.repeats + 1 } else { 0 },
        },
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

/// Returns whether segments of the log have format version 1. A file outside the log may have such a header, because
/// its segment was removed.
fn has_older_format(found: &[FoundFile], headers: &Headers<'_>) -> bool {
    let is_live = |slot: u32| match headers.first() {
        Some((_, _, newest)) => newest.live.iter().any(|segment| segment.slot == slot),
        None => true,
    };
    found.iter().any(|file| file.header == HeaderRead::OlderVersion && is_live(file.slot))
}

/// Returns the number of bytes written in earlier epochs. The newest segment is counted up to its tail.
fn written_before(headers: &Headers<'_>, newest: SegmentRef, tail: u32) -> u64 {
    let written = headers.iter().map(|(_, _, header)| header.written).max().unwrap_or(0);
    written.saturating_add(if newest.sequence > 0 { tail.into() } else { 0 })
}

/// A part of the log that could not be read and was set aside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SetAside {
    /// The file.
    pub slot: u32,
    /// Sequence of the segment; 0 if it is unknown.
    pub segment: u64,
    /// First byte of the part.
    pub from: u32,
    /// End of the part (exclusive).
    pub to: u32,
}

/// The result of reading the store at a start.
#[derive(Debug, Default)]
pub struct Report {
    /// Whether the disk was empty and was formatted.
    pub is_new: bool,
    /// Damaged parts in the middle of the log.
    pub set_aside: Vec<SetAside>,
    /// Number of commits missing from the middle of the log.
    pub commits_missing: u64,
    /// Number of full segments with a bad footer. Commits may be missing at the ends of these segments. A power cut
    /// right after a crash may damage a footer without any loss of commits.
    pub footers_missing: u32,
    /// Number of commits lost at the end of the log. No later commit repeats their content.
    pub commits_lost_at_end: u64,
    /// Whether the newest file of the log, and perhaps others, are missing: the store is incomplete.
    pub newest_missing: bool,
    /// Blocks that the disk refuses to read: file and offset.
    pub refused: Vec<(u32, u32)>,
    /// Number of parts in `set_aside` that are missing because a segment file is too short.
    pub files_truncated: usize,
    /// Files that cannot be opened.
    pub unopened: Vec<UnopenedFile>,
    /// Whether there was a log, and no part of it can be read any more.
    pub is_lost: bool,
    /// Whether the log is lost, and no file contains any part of it: the files were moved or deleted, or another file
    /// system is mounted.
    pub has_no_files: bool,
    /// Whether the file of an unfinished repair by an older version of Leveret exists. The segment that was being
    /// repaired may be damaged.
    pub has_unfinished_repair: bool,
    /// Damage found by this start and earlier ones, until an operator acknowledges it.
    pub reported_damage: ReportedDamage,
    /// Whether this start has added a sentence to `reported_damage`.
    pub has_new_damage: bool,
    /// Number of unfinished large transactions that cannot be read. Some of their messages may have been
    /// kept.
    pub groups_damaged: u32,
    /// Number of unfinished large transactions that were undone completely.
    pub groups_undone: u32,
    /// The state of users and permissions.
    pub access: AccessReport,
    /// Whether the file system is full.
    pub is_full: bool,
    /// Whether the first commits of the start wait for space. Until they are written, records that the start found
    /// may exist only in the page cache.
    pub is_pending: bool,
    /// The error if the store can be read but not written, so that nothing can become durable.
    pub unwritable: Option<io::Error>,
}

impl Report {
    /// Returns whether part of the log is certainly missing.
    pub fn is_damaged(&self) -> bool {
        !self.set_aside.is_empty() || self.commits_missing > 0
    }

    /// Returns whether the only damage is that segment files are too short.
    pub fn is_only_truncated(&self) -> bool {
        self.commits_missing == 0 && self.set_aside.len() == self.files_truncated
    }
}

/// The state of the users and permissions in a store.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Access {
    /// There was no store.
    #[default]
    New,
    /// The store is undamaged, and users were never written to it.
    Silent,
    /// All access definitions were found in their newest version.
    Whole,
    /// An access definition is missing or may be missing. Contains the reason.
    InDoubt(&'static str),
}

/// A definition in which the log differs from the copies beside it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AccessCorrection {
    /// Its key.
    pub key: Box<[u8]>,
    /// The value that the log must have; `None` if the definition is deleted.
    pub value: Option<Box<[u8]>>,
}

/// A definition of a user, a permission or the like.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AccessDefinition {
    /// Its key.
    pub key: Box<[u8]>,
    /// Its value.
    pub value: Box<[u8]>,
}

/// The access definitions that a start found.
#[derive(Debug, Default)]
pub struct AccessReport {
    /// Whether the definitions are complete.
    pub access: Access,
    /// Keys of definitions that cannot be read.
    pub unreadable: Vec<Box<[u8]>>,
    /// Whether some definition has only one readable copy and should be written again.
    pub is_thin: bool,
    /// Definitions that the log had lost, had in an older version, or still had although they were deleted.
    pub restored: Vec<AccessCorrection>,
    /// All access definitions, ascending by key. They are kept here so that they are read only once: if the disk
    /// refused a second read, users would be locked out.
    pub definitions: Vec<AccessDefinition>,
}

impl AccessReport {
    /// Applies `restored` to `definitions`. If access is whole, also adds the definition [`ACCESS_STORED_KEY`], which
    /// the log may have lost. Without this definition, the default user of a new store would be created.
    pub(super) fn take_restored(&mut self) {
        for AccessCorrection { key, value } in &self.restored {
            let place = self.definitions.binary_search_by(|known| known.key.cmp(key));
            match (place, value.clone()) {
                (Ok(at), Some(value)) => self.definitions[at].value = value,
                (Ok(at), None) => drop(self.definitions.remove(at)),
                (Err(at), Some(value)) => {
                    self.definitions.insert(at, AccessDefinition { key: key.clone(), value });
                }
                (Err(_), None) => {}
            }
        }
        let is_recorded = self.definitions.first().is_some_and(|first| *first.key == ACCESS_STORED_KEY);
        if self.access == Access::Whole && !is_recorded {
            let (key, value) = (ACCESS_STORED_KEY.into(), [].into());
            self.definitions.insert(0, AccessDefinition { key, value });
        }
    }
}

/// What [`Log::step`] has done.
pub(super) enum StepResult {
    /// A part of a segment was prepared.
    Prepared,
    /// A commit was written.
    Committed,
    /// There was nothing to do, or no space for it.
    Nothing,
}

/// The state of the chain of commits: fields of the last commit read. Commits of the log have consecutive numbers.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Chain {
    pub(super) segment: u64,
    pub(super) epoch: u32,
    pub(super) number: u64,
    /// Whether `number` is the number of the last commit written up to this point of the log.
    pub(super) is_known: bool,
    /// The highest broker time in any commit so far.
    pub(super) time_ms: u64,
    pub(super) repeats: u32,
}

impl Chain {
    /// Returns whether the commit numbers of `segment` must continue those of the chain. They need not if a segment
    /// between them was removed.
    pub(super) const fn is_adjacent(&self, segment: u64) -> bool {
        self.is_known && segment <= self.segment + 1
    }

    /// Advances the state to a commit.
    pub(super) fn advance(&mut self, header: &CommitHeader) {
        let CommitHeader { epoch, number, segment, time_ms, repeats, .. } = *header;
        *self = Self { segment, epoch, number, is_known: true, time_ms: time_ms.max(self.time_ms), repeats };
    }
}

/// A whole commit found by a [`CommitWalk`].
pub(super) struct WholeCommit {
    /// The bytes from the end of the previous commit to the start of this one.
    pub(super) gap: Range<u32>,
    /// Number of commits missing before it, if that is known.
    pub(super) missing: Option<u64>,
    pub(super) header: CommitHeader,
    /// Location of its records.
    pub(super) records: Range<u32>,
    /// End of the commit, padding included.
    pub(super) end: u32,
}

impl WholeCommit {
    /// Returns whether this commit repeats all missing commits, so that nothing was lost with them.
    pub(super) fn repeats_missing(&self) -> bool {
        self.missing.is_none_or(|missing| missing <= u64::from(self.header.repeats))
    }
}

/// A walk over the commits in one segment's bytes.
///
/// ```text
/// segment | header | commit 7 | commit 8 | damaged, or foreign | commit 10 | ...
///                             ^          ^ tail                ^ at
///                     a step reports the gap before its commit (tail..at, maybe empty) and the number of missing commits
/// ```
///
/// # Invariants
/// - Each step returns a whole commit of this segment. Its number is higher, and its epoch not lower, than in every
///   commit before.
/// - The same bytes and the same chain give the same steps.
pub(super) struct CommitWalk {
    sequence: u64,
    seed: u32,
    at: usize,
    /// End of the last commit.
    pub(super) tail: u32,
}

impl CommitWalk {
    /// Begins at offset `first` of segment `sequence`.
    pub(super) const fn new(sequence: u64, seed: u32, first: u32) -> Self {
        Self { sequence, seed, at: first as usize, tail: first }
    }

    /// Returns the next whole commit, or `None` at the end of `bytes`. `bytes` is the content of the segment, without
    /// its footer. The caller handles the missing commits and then advances the chain.
    pub(super) fn next(&mut self, bytes: &[u8], chain: &Chain) -> Option<WholeCommit> {
        while self.at < bytes.len() {
            let (at, rest) = (self.at, &bytes[self.at..]);
            let Some(commit) = Commit::parse(rest, self.seed) else {
                self.at += BLOCK_BYTES;
                continue;
            };
            // A truncated file may end within the padding of this commit.
            let behind = rest.get(commit.bytes()..).unwrap_or_default();
            let (begin, end) = (at as u32, (at + commit.bytes()) as u32);
            let Commit { header, records } = commit;
            let belongs = header.follows(self.sequence, chain.epoch, chain.number)
                && !is_misplaced(&header, chain.number, behind, self.seed);
            if !belongs {
                self.at += BLOCK_BYTES;
                continue;
            }
            let missing = chain.is_adjacent(self.sequence).then(|| header.number - chain.number - 1);
            let first = begin + COMMIT_HEADER_BYTES as u32;
            let (gap, records) = (self.tail..begin, first..first + records.len() as u32);
            (self.at, self.tail) = (end as usize, end);
            return Some(WholeCommit { gap, missing, header, records, end });
        }
        None
    }
}

/// Returns whether the flash has moved a commit to the place of an older one. Then the commit's number skips others,
/// and the next commit in `behind` has one of the skipped numbers. `before` is the number of the previous commit.
fn is_misplaced(header: &CommitHeader, before: u64, behind: &[u8], seed: u32) -> bool {
    if header.number == before + 1 {
        return false;
    }
    let mut behind = valid_commits(behind, 0, seed).map(|(_, commit)| commit.header);
    let next = behind.find(|next| next.segment == header.segment && next.number > before);
    next.is_some_and(|next| next.number < header.number && next.epoch <= header.epoch)
}

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

/// Returns whether one of the headers lists the segment's file as a newer segment.
fn is_replaced(segment: SegmentRef, headers: &Headers<'_>) -> bool {
    let mut listed = headers.iter().flat_map(|(_, _, header)| &header.live);
    listed.any(|other| other.slot == segment.slot && other.sequence > segment.sequence)
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
    /// The flash may return the header of another file, or an old one of this file. Of headers with the same sequence, those
    /// without a commit are removed from `headers`. An old header whose file a newer header lists stays there, and is
    /// skipped. The commits in both kinds of files are read nevertheless.
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
        self.add_unreadable_headers(found, (newest, may_have_newer), &not_begun, &mut listing)?;
        self.drop_removed(newest, headers, &mut listing)?;
        Ok(listing)
    }

    /// Of headers with the same sequence, removes those without a commit of that segment behind them.
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
        let is_proven = || has_synced(&self.bytes[..length], header_bytes, header, Some(seed));
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
        (newest, may_have_newer): (u64, bool),
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
