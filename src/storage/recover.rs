//! Starting: what lies on the disk becomes a log again.
//!
//! 1. All headers are read. The newest one with a commit behind it is proven; its list is the log. A header
//!    without a commit promises nothing and its file is free.
//! 2. The segments of the list are read in order, by their footers or commit by commit, into the index:
//!    first what is settled and all other facts, then the messages, so that those nobody needs any more
//!    leave no trace. The newest is always read commit by commit. A bad commit with a good one behind it is
//!    damage, set aside and reported, and so is one that was surely synced (`sync_proof`); any other at the
//!    end is the tail, and cut.
//! 3. A new life begins: the last accepted commit is written again, and synced before anybody builds on it.
//!    It may have been in the page cache only. Large groups that a life did not come to the end of are
//!    finished or undone (`group`), and what the log has lost of access is written (`access`).
//!
//! Always true: the same bytes give the same log; whatever the bytes, a start never fails for their sake but
//! for a format that is newer than this program; nothing is written before step 3.

use std::collections::BTreeSet;
use std::io;

use leveret_core::journal::definition::{DAMAGE_KEY, is_access};
use leveret_core::time::Now;

use super::access::FoundAt;
use super::access_file;
use super::commit::{BLOCK_BYTES, Owner};
use super::disk::{Disk, REPAIR_SLOT, is_full};
use super::file_disk::FileDisk;
use super::identity::Identity;
use super::listing::{own_headers, read_headers, take_noted};
use super::log::{Log, Start, Writer};
use super::names::Names;
use super::newest_note;
use super::place::Place;
use super::read_around::{REFUSED_IN_FILE_MAX, ReadAround, is_about_a_block};
use super::reader::Reader;
use super::record::{Message, Record};
use super::record_walk;
use super::report::{Report, Step};
use super::segment::{FoundFile, HeaderRead, Headers, SegmentRef, is_segment_size};
use super::settings::Settings;
use super::sync_proof::owner_of;

/// How often a start reads the store while the disk refuses to read something of it.
pub(super) const LOOKS_MAX: u32 = 3;

/// Why a store cannot be opened.
#[derive(Debug)]
pub enum OpenError {
    /// Another process has it.
    InUse,
    /// A newer version of Leveret wrote it.
    NewerFormat,
    /// Leveret 0.1 wrote it, or a part of it.
    OlderFormat,
    /// There is none, and none is to be made.
    NoStore,
    /// It cannot even be read.
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
                "the data directory is of store format 1 (Leveret 0.1), which this version does not read; nothing was \
                 changed. Install the version before this one, type `leveret upgrade-store` with the data directory, and \
                 let that version run until its messages are consumed; or move the directory away to begin anew"
            ),
            Self::NoStore => write!(
                f,
                "there is no store in the data directory, and require_store = true forbids to begin a new \
                 one: is the right file system mounted there, with all of its files? For the very first \
                 start, leave require_store out"
            ),
            Self::Unreadable(error) => write!(f, "the data directory cannot be read: {error}"),
        }
    }
}

impl core::error::Error for OpenError {}

impl Log {
    /// Opens the store on `disk`, formatting an empty one with `fresh`. Blocks; afterwards everything found
    /// is durable, unless the report says that the store cannot be written.
    ///
    /// # Errors
    /// It cannot be read, or must not be touched.
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
        let may_begin = settings.may_begin;
        let (mut log, mut report) = Self::look_well(disk, settings, fresh)?;
        if (report.is_new || report.is_gone) && !may_begin {
            return Err(OpenError::NoStore);
        }
        let begun = log.begin(disk, &mut report, now);
        report.is_full = log.space.is_file_system_full();
        report.is_pending = log.schedule.is_starting() || log.is_busy();
        if let Err(error) = begun
            && !log.may_begin_later(&error, &report)
        {
            log.failed = true;
            report.unwritable = Some(error);
        }
        Ok((log, report))
    }

    /// Whether what a start has to write may wait for room like everything else: what was found is all there
    /// is, and who may come in is known without it.
    fn may_begin_later(&self, error: &io::Error, report: &Report) -> bool {
        let is_known = !report.is_new && !report.is_lost && report.access.restored.is_empty();
        is_full(error) && self.space.is_file_system_full() && !self.failed && is_known
    }

    /// Reads the store, and again as long as the disk refuses some of it: a card may refuse for a moment only,
    /// and what is written afterwards goes by what was read.
    fn look_well<D: Disk>(
        disk: &mut D,
        settings: Settings,
        fresh: Identity,
    ) -> Result<(Self, Report), OpenError> {
        for _ in 1..LOOKS_MAX {
            match Self::look(disk, settings.clone(), fresh, false) {
                Ok((_, report)) if !report.refused.is_empty() => {}
                Err(OpenError::Unreadable(error)) if is_about_a_block(&error) => {}
                looked => return looked,
            }
        }
        Self::look(disk, settings, fresh, false)
    }

    /// Reads the store as a start does, and writes nothing. With `checks_all` every commit is checked, also where a
    /// footer has what a start needs.
    pub(super) fn look<D: Disk>(
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

    /// The first commits of a life.
    fn begin<D: Disk>(&mut self, disk: &mut D, report: &mut Report, now: Now) -> io::Result<()> {
        let groups = self.find_groups(disk, report)?;
        self.is_damaged = !report.describe_damage().is_empty();
        self.refused_files = report.refused.iter().map(|(slot, _)| *slot).collect();
        self.refused_files.dedup();
        self.merge_damage(disk, report)?;
        if let Err(error) = self.begin_life(disk, report, now) {
            self.hide_groups(&groups);
            return Err(error);
        }
        self.end_groups(disk, &groups, report, now)?;
        self.restore_access(disk, &report.access.restored, now)?;
        self.renew_access_file(disk)
    }

    /// Writes the last commit again under the new life. When segments are short, also an empty one, for the
    /// next start to repeat, and what makes room: else a broker that dies soon after each start would use up
    /// the disk.
    fn begin_life<D: Disk>(&mut self, disk: &mut D, report: &Report, now: Now) -> io::Result<()> {
        let mut is_damage_gathered = self.gather_damage(report, now);
        if is_damage_gathered {
            self.find_drain();
        }
        // Where the end is lost, the note is one of the witnesses until the next segment has its own.
        if report.commits_lost_at_end == 0 {
            newest_note::renew(disk, self.space.active.segment())?;
        }
        // A file may have been made by a process that was killed before it synced the directory.
        disk.sync_directory()?;
        let mut is_large = self.gathering.len() > BLOCK_BYTES;
        while self.schedule.is_starting() || (self.space.is_short() && self.cleaner.drain.is_some()) {
            match self.step(disk, now)? {
                Step::Prepared => continue,
                Step::Committed if is_damage_gathered => {}
                Step::Committed => {
                    is_damage_gathered = self.gather_damage(report, now);
                    self.find_drain();
                }
                Step::Nothing if self.schedule.is_starting() => return Err(io::ErrorKind::StorageFull.into()),
                Step::Nothing => return Ok(()),
            }
            if core::mem::take(&mut is_large) && self.space.is_short() {
                self.schedule.set_starting(true);
                self.hurry();
            }
        }
        self.space.remove_surplus(disk);
        Ok(())
    }

    /// Reads the values of all definitions, in the order of their keys, but for those of access, which the report of
    /// the start has ([`AccessReport`](super::AccessReport)); tells of each whether no place of its own can be read, but
    /// a footer that repeats it.
    ///
    /// # Errors
    /// The disk cannot be read. A value that is damaged is left out and counted in the result.
    pub fn read_definitions<D: Disk>(
        &self,
        disk: &mut D,
        mut each: impl FnMut(&[u8], &[u8], bool),
    ) -> io::Result<u64> {
        let (mut bytes, mut damaged) = (Vec::new(), 0);
        let definitions =
            self.index.definitions().iter().filter(|(key, _)| !is_access(key) && ***key != DAMAGE_KEY);
        for (key, definition) in definitions.filter(|(_, definition)| !definition.deleted) {
            match self.read_definition(disk, (key, definition), &mut bytes)? {
                Some((value, place)) => each(key, value, place == FoundAt::Footer),
                None => damaged += 1,
            }
        }
        Ok(damaged)
    }

    /// Reads one record, checked; `None` when it is damaged, or the disk refuses to read it.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read_record<'b, D: Disk>(
        &self,
        disk: &mut D,
        place: Place,
        bytes: &'b mut Vec<u8>,
    ) -> io::Result<Option<Record<'b>>> {
        record_walk::read_record(&self.index, disk, place, bytes)
    }

    /// Whether a message found in the log still waits in a queue, with the offsets that do.
    pub fn live_targets(&self, message: &Message<'_>) -> impl Iterator<Item = (u64, u64)> {
        message.targets.iter().filter_map(|target| {
            let queue = self.index.queues().get(&target.queue)?;
            queue.segment_of(target.offset).map(|_| (target.queue, target.offset))
        })
    }

    /// What footers say that these queues are called; of two names the newer.
    ///
    /// # Errors
    /// The disk cannot be read.
    pub fn read_names<D: Disk>(&self, disk: &mut D, queues: &BTreeSet<u64>) -> io::Result<Names> {
        self.footers().read_names(disk, queues)
    }

    /// See [`Self::open`].
    ///
    /// # Errors
    /// As there.
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

fn recover<D: Disk>(
    disk: &mut ReadAround<'_, D>,
    settings: Settings,
    fresh: Identity,
    checks_all: bool,
) -> Result<(Start, Report), OpenError> {
    let found = read_headers(disk).map_err(OpenError::Unreadable)?;
    if found.iter().any(|found| found.header == HeaderRead::NewerVersion) {
        return Err(OpenError::NewerFormat);
    }
    let note = newest_note::read(disk);
    let mut headers = own_headers(&found);
    let is_noted_only = note.as_ref().is_some_and(|note| take_noted(&mut headers, note));
    let owner = match headers.first() {
        Some((_, _, header)) => {
            Some(Owner { identity: header.identity, segment_bytes: header.segment_bytes })
        }
        None => owner_of(disk, &found).map_err(OpenError::Unreadable)?,
    };
    let kept = access_file::read(disk);
    let owner = owner.or(kept.as_ref().map(|copy| copy.owner).filter(|o| is_segment_size(o.segment_bytes)));
    let Owner { identity, segment_bytes } =
        owner.unwrap_or(Owner { identity: fresh, segment_bytes: settings.segment_bytes });
    if has_older_format(&found, &headers) {
        return Err(OpenError::OlderFormat);
    }
    let mut reader = Reader::new(disk, identity, segment_bytes);
    reader.noted = note.as_ref().filter(|note| note.header.identity == identity).map(|note| note.segment);
    reader.is_noted_only = is_noted_only;
    reader.checks_all = checks_all;
    let kept = kept.filter(|copy| copy.owner.identity == identity);
    let noted = access_file::read_end_of(reader.disk, &identity);
    let mut newest = reader.read_log(&mut headers, &found, noted).map_err(OpenError::Unreadable)?;
    let has_found_nothing = reader.report.is_lost || reader.report.is_new;
    if has_found_nothing && reader.disk.refused.len() > REFUSED_IN_FILE_MAX {
        // A new store in the same directory would be what the next start finds, even if the disk can read the old
        // one by then.
        let why =
            io::Error::other("the disk refuses to read so much of it that no part of the log can be found");
        return Err(OpenError::Unreadable(why));
    }
    let settings = settings.with_segments_of(segment_bytes);
    let mut slots = reader.slots(&found, &headers);
    reader.keep_off_refused(&mut newest, &mut slots);
    // A version begins with the life it is of. Where the log is lost, its numbers must not be used again.
    let kept_life = kept.map_or(0, |copy| (copy.snapshot.version >> 32) as u32);
    let header_life = headers.iter().map(|(_, _, header)| header.life).max().unwrap_or(0);
    let life = header_life.max(reader.chain.life).max(kept_life).saturating_add(1 + reader.newer_missing);
    let sequence_max = headers.first().map_or(0, |(_, _, header)| header.sequence);
    let has_commit = newest.again_records > 0 || reader.chain.number > 0;
    let start = Start {
        settings,
        writer: Writer {
            identity,
            life,
            number: reader.chain.number,
            time_base_ms: reader.chain.time_ms,
            covers: if has_commit && !newest.is_damaged { reader.chain.covers + 1 } else { 0 },
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
        again: newest.again,
        again_records: newest.again_records,
    };
    Ok((start, reader.report))
}

/// Whether segments of the log are of version 1. Such a header in a file that is not part of the log means nothing: its
/// segment has left.
fn has_older_format(found: &[FoundFile], headers: &Headers<'_>) -> bool {
    let is_live = |slot: u32| match headers.first() {
        Some((_, _, newest)) => newest.live.iter().any(|segment| segment.slot == slot),
        None => true,
    };
    found.iter().any(|file| file.header == HeaderRead::OlderVersion && is_live(file.slot))
}

/// What the lives before this one wrote: what was written to the newest segment since its header lies in it.
fn written_before(headers: &Headers<'_>, newest: SegmentRef, tail: u32) -> u64 {
    let written = headers.iter().map(|(_, _, header)| header.written).max().unwrap_or(0);
    written.saturating_add(if newest.sequence > 0 { tail.into() } else { 0 })
}
