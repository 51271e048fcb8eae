//! Starting: what lies on the disk becomes a log again.
//!
//! 1. All headers are read. The newest one with a commit behind it is proven; its list is the log. A header
//!    without a commit promises nothing and its file is free.
//! 2. The segments of the list are read in order, by their footers or commit by commit, into the index.
//!    The newest is always read commit by commit. A bad commit with a good one behind it is damage, set
//!    aside and reported; one without is the tail, and cut.
//! 3. A new life begins: the last accepted commit is written again, and synced before anybody builds on it.
//!    It may have been in the page cache only.
//!
//! Always true: the same bytes give the same log; whatever the bytes, a start never fails for their sake but
//! for a format that is newer than this program; nothing is written before step 3.

use std::io;

use crate::time::Now;

use super::build::apply_records;
use super::commit::{BLOCK_BYTES, COMMIT_HEADER_BYTES, Commit, CommitHeader};
use super::disk::Disk;
use super::footer::{self, Footer};
use super::index::{Index, Place};
use super::log::{Log, Settings, Slot, Start};
use super::record::{Message, Record};
use super::segment::{HeaderRead, Identity, SegmentHeader, SegmentRef};

/// Why a store cannot be opened.
#[derive(Debug)]
pub enum OpenError {
    /// Another process has it.
    InUse,
    /// A newer version of Leveret wrote it.
    NewerFormat,
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
            Self::Unreadable(error) => write!(f, "the data directory cannot be read: {error}"),
        }
    }
}

impl core::error::Error for OpenError {}

/// Part of the log that could not be read and was set aside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SetAside {
    /// The file.
    pub slot: u32,
    /// Its place in the log; 0 when that is not known.
    pub segment: u64,
    /// Bytes of the file, the end not included.
    pub from: u32,
    /// See `from`.
    pub to: u32,
}

/// What a start found.
#[derive(Debug, Default)]
pub struct Report {
    /// It was empty and was formatted.
    pub is_new: bool,
    /// Damage in the middle.
    pub set_aside: Vec<SetAside>,
    /// Commits that are missing from the middle.
    pub commits_missing: u64,
    /// The store can be read but not written: nothing can become durable.
    pub unwritable: Option<io::Error>,
}

/// What was found of one file.
struct Found {
    slot: u32,
    length: u64,
    header: HeaderRead,
}

/// Where the chain of commits stands.
#[derive(Clone, Copy, Default)]
struct Chain {
    segment: u64,
    life: u32,
    number: u64,
    time_ms: u64,
    covers: u32,
}

/// The newest segment as read.
struct Newest {
    segment: SegmentRef,
    tail: u32,
    again: Vec<u8>,
    again_records: u32,
    footer: Footer,
}

struct Reader<'d, D> {
    disk: &'d mut D,
    /// One segment.
    bytes: Vec<u8>,
    index: Index,
    chain: Chain,
    report: Report,
    identity: Identity,
    segment_bytes: u32,
}

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
        let (start, mut report) = recover(disk, settings, fresh)?;
        let mut log = Self::start(start);
        if let Err(error) = log.begin_life(disk, now) {
            log.failed = true;
            report.unwritable = Some(error);
        }
        Ok((log, report))
    }

    /// Writes the last commit again under the new life.
    fn begin_life<D: Disk>(&mut self, disk: &mut D, now: Now) -> io::Result<()> {
        self.find_drain();
        // A file may have been made by a process that was killed before it synced the directory.
        disk.sync_directory()?;
        while self.is_starting {
            if self.segments_free() == 0
                && let Some(job) = self.next_prepare()
            {
                self.prepare_done(job.run(disk)).map_err(|failed| failed.0)?;
                continue;
            }
            let Some(job) = self.next_commit(now) else {
                return Err(io::ErrorKind::StorageFull.into());
            };
            self.commit_done(job.run(disk)).map_err(|failed| failed.0)?;
        }
        Ok(())
    }

    /// Reads the values of all definitions, in the order of their keys.
    ///
    /// # Errors
    /// The disk cannot be read. A value that is damaged is left out and counted in the result.
    pub fn read_definitions<D: Disk>(
        &self,
        disk: &mut D,
        mut each: impl FnMut(&[u8], &[u8]),
    ) -> io::Result<u64> {
        let (mut bytes, mut damaged) = (Vec::new(), 0);
        for (key, definition) in self.index.definitions() {
            if definition.deleted {
                continue;
            }
            match self.read_record(disk, definition.place, &mut bytes)? {
                Some(Record::Defined { key: found, value: Some(value), .. }) if found == &**key => {
                    each(key, value)
                }
                _ => damaged += 1,
            }
        }
        Ok(damaged)
    }

    /// Reads one record, checked; `None` when it is damaged.
    ///
    /// # Errors
    /// The disk cannot be read.
    pub fn read_record<'b, D: Disk>(
        &self,
        disk: &mut D,
        place: Place,
        bytes: &'b mut Vec<u8>,
    ) -> io::Result<Option<Record<'b>>> {
        let Some(segment) = self.index.segments().get(&place.segment) else {
            return Ok(None);
        };
        bytes.clear();
        bytes.resize(place.bytes as usize, 0);
        disk.read(segment.slot, place.at.into(), bytes)?;
        Ok(Record::parse(bytes).ok().map(|(record, _)| record))
    }

    /// Walks over all live messages and chunks, segment by segment. For inspection and export: it reads
    /// everything. A record of the commit that this life repeated may be seen twice.
    ///
    /// # Errors
    /// The disk cannot be read.
    pub fn read_live<D: Disk>(&self, disk: &mut D, mut each: impl FnMut(&Record<'_>)) -> io::Result<()> {
        let mut bytes = vec![0; self.settings.segment_bytes as usize];
        for (&sequence, segment) in self.index.segments() {
            let length = disk.read(segment.slot, 0, &mut bytes)?;
            let mut at = BLOCK_BYTES;
            while at < length {
                let commit = Commit::parse(&bytes[at..length], self.identity.seed());
                let Some(commit) = commit.filter(|commit| commit.header.segment == sequence) else {
                    at += BLOCK_BYTES;
                    continue;
                };
                self.for_live(commit.records, sequence, &mut each);
                at += commit.bytes();
            }
        }
        Ok(())
    }

    fn for_live(&self, mut records: &[u8], segment: u64, each: &mut impl FnMut(&Record<'_>)) {
        while let Ok((record, length)) = Record::parse(records) {
            if self.index.is_live_in(&record, segment) {
                each(&record);
            }
            records = &records[length..];
        }
    }

    /// Whether a message found in the log still waits in a queue, with the offsets that do.
    pub fn live_targets(&self, message: &Message<'_>) -> impl Iterator<Item = (u64, u64)> {
        message.targets.iter().filter_map(|target| {
            let queue = self.index.queues().get(&target.queue)?;
            queue.segment_of(target.offset).map(|_| (target.queue, target.offset))
        })
    }
}

fn recover<D: Disk>(disk: &mut D, settings: Settings, fresh: Identity) -> Result<(Start, Report), OpenError> {
    let found = read_headers(disk).map_err(OpenError::Unreadable)?;
    if found.iter().any(|found| found.header == HeaderRead::OtherVersion) {
        return Err(OpenError::NewerFormat);
    }
    let mut headers: Vec<(u32, u32, &SegmentHeader)> = Vec::new();
    for file in &found {
        if let HeaderRead::Good(header, bytes) = &file.header {
            headers.push((file.slot, *bytes, header));
        }
    }
    headers.sort_by_key(|(_, _, header)| core::cmp::Reverse(header.sequence));
    let (identity, segment_bytes) = headers
        .first()
        .map_or((fresh, settings.segment_bytes), |(_, _, header)| (header.identity, header.segment_bytes));
    let mut reader = Reader {
        disk,
        bytes: vec![0; segment_bytes as usize],
        index: Index::default(),
        chain: Chain::default(),
        report: Report::default(),
        identity,
        segment_bytes,
    };
    headers.retain(|(_, _, header)| header.identity == identity);
    let newest = reader.read_log(&headers, &found).map_err(OpenError::Unreadable)?;
    let settings = Settings {
        segment_bytes,
        commit_bytes: settings.commit_bytes.min(segment_bytes / 3 / BLOCK_BYTES as u32 * BLOCK_BYTES as u32),
        ..settings
    };
    let slots = reader.slots(&found, &headers);
    let life = headers.iter().map(|(_, _, header)| header.life).max().unwrap_or(0).max(reader.chain.life) + 1;
    let sequence_max = headers.first().map_or(0, |(_, _, header)| header.sequence);
    let has_commit = newest.again_records > 0 || reader.chain.number > 0;
    let start = Start {
        settings,
        identity,
        life,
        number: reader.chain.number,
        time_base_ms: reader.chain.time_ms,
        index: reader.index,
        slots,
        active: newest.segment,
        tail: newest.tail,
        sequence_max: sequence_max.max(newest.segment.sequence),
        footer: newest.footer,
        again: newest.again,
        again_records: newest.again_records,
        covers: if has_commit { reader.chain.covers + 1 } else { 0 },
    };
    Ok((start, reader.report))
}

fn read_headers<D: Disk>(disk: &mut D) -> io::Result<Vec<Found>> {
    let mut slots = disk.slots()?;
    slots.sort_unstable();
    let mut found = Vec::with_capacity(slots.len());
    let mut bytes = vec![0; BLOCK_BYTES];
    for slot in slots {
        bytes.resize(BLOCK_BYTES, 0);
        let mut length = disk.read(slot, 0, &mut bytes)?;
        let mut header = SegmentHeader::parse(&bytes[..length]);
        if let HeaderRead::Longer(needed) = header {
            bytes.resize(needed.min(1 << 20), 0);
            length = disk.read(slot, 0, &mut bytes)?;
            header = SegmentHeader::parse(&bytes[..length]);
        }
        found.push(Found { slot, length: length as u64, header });
    }
    Ok(found)
}

impl<D: Disk> Reader<'_, D> {
    /// Finds the newest proven header and reads the log that it lists.
    fn read_log(&mut self, headers: &[(u32, u32, &SegmentHeader)], found: &[Found]) -> io::Result<Newest> {
        let none = SegmentRef { sequence: 0, slot: 0 };
        let mut proven = None;
        for &(slot, bytes, header) in headers {
            let segment = SegmentRef { sequence: header.sequence, slot };
            if self.has_commit(segment, bytes)? {
                proven = Some((segment, header));
                break;
            }
        }
        let (newest, mut list) = match proven {
            Some((segment, header)) => (segment, header.live.clone()),
            None => (none, Vec::new()),
        };
        list.extend(proven.map(|(segment, _)| segment));
        self.add_headless(found, newest.sequence, &mut list)?;
        let Some(&newest) = list.last() else {
            self.report.is_new = true;
            let tail = self.segment_bytes;
            return Ok(Newest {
                segment: none,
                tail,
                again: Vec::new(),
                again_records: 0,
                footer: Footer::default(),
            });
        };
        for segment in &list[..list.len() - 1] {
            self.read_old(*segment, headers)?;
        }
        let newest = self.read_newest(newest, headers)?;
        self.index.end_recovery();
        Ok(newest)
    }

    /// Segments whose header is damaged but whose commits are newer than every header that is not.
    fn add_headless(&mut self, found: &[Found], newest: u64, list: &mut Vec<SegmentRef>) -> io::Result<()> {
        if newest == 0 {
            return Ok(());
        }
        let mut headless = Vec::new();
        for file in found.iter().filter(|file| matches!(file.header, HeaderRead::Bad | HeaderRead::Longer(_)))
        {
            let length = self.disk.read(file.slot, 0, &mut self.bytes)?;
            let found = blocks(BLOCK_BYTES as u32, length).find_map(|at| {
                let commit = Commit::parse(&self.bytes[at as usize..length], self.identity.seed())?;
                (commit.header.segment > newest).then_some(commit.header.segment)
            });
            if let Some(sequence) = found {
                headless.push(SegmentRef { sequence, slot: file.slot });
                let slot = file.slot;
                let aside = SetAside { slot, segment: sequence, from: 0, to: BLOCK_BYTES as u32 };
                self.report.set_aside.push(aside);
            }
        }
        headless.sort_by_key(|segment| segment.sequence);
        list.extend(headless);
        Ok(())
    }

    fn has_commit(&mut self, segment: SegmentRef, header_bytes: u32) -> io::Result<bool> {
        let length = self.disk.read(segment.slot, 0, &mut self.bytes)?;
        let seed = self.identity.seed();
        Ok(blocks(header_bytes, length).any(|at| {
            let commit = Commit::parse(&self.bytes[at as usize..length], seed);
            commit.is_some_and(|commit| commit.header.segment == segment.sequence)
        }))
    }

    /// Reads a segment that is not the newest: by its footer if that is good.
    fn read_old(&mut self, segment: SegmentRef, headers: &[(u32, u32, &SegmentHeader)]) -> io::Result<()> {
        let header = headers.iter().find(|(slot, _, _)| *slot == segment.slot);
        if header.is_some_and(|(_, _, header)| header.sequence != segment.sequence) {
            // The list is older than the file's present use: the newest header was lost.
            let (slot, sequence) = (segment.slot, segment.sequence);
            self.report.set_aside.push(SetAside { slot, segment: sequence, from: 0, to: 0 });
            return Ok(());
        }
        let header_bytes = header.map_or(BLOCK_BYTES as u32, |(_, bytes, _)| *bytes);
        self.index.add_segment(segment.sequence, segment.slot, self.segment_bytes);
        if self.read_footer(segment)? {
            return Ok(());
        }
        self.scan(segment, header_bytes)?;
        Ok(())
    }

    fn read_footer(&mut self, segment: SegmentRef) -> io::Result<bool> {
        let end = u64::from(self.segment_bytes);
        let mut block = [0; BLOCK_BYTES];
        if self.disk.read(segment.slot, end - BLOCK_BYTES as u64, &mut block)? < BLOCK_BYTES {
            return Ok(false);
        }
        let Some(length) = footer::claimed_length(&block).map(|length| length + footer::TRAILER_BYTES) else {
            return Ok(false);
        };
        if length > self.segment_bytes as usize {
            return Ok(false);
        }
        let bytes = &mut self.bytes[..length];
        self.disk.read(segment.slot, end - length as u64, bytes)?;
        let Some((trailer, entries)) = footer::parse(bytes, self.identity.seed()) else {
            return Ok(false);
        };
        if trailer.sequence != segment.sequence {
            return Ok(false);
        }
        let index = &mut self.index;
        if footer::for_each(entries, segment.sequence, |record, place| index.apply(record, place)).is_none() {
            return Ok(false);
        }
        self.chain = Chain {
            segment: trailer.sequence,
            life: trailer.life,
            number: trailer.number,
            time_ms: trailer.time_ms,
            covers: 0,
        };
        Ok(true)
    }

    fn read_newest(
        &mut self,
        segment: SegmentRef,
        headers: &[(u32, u32, &SegmentHeader)],
    ) -> io::Result<Newest> {
        let header = headers.iter().find(|(_, _, header)| header.sequence == segment.sequence);
        let header_bytes = header.map_or(BLOCK_BYTES as u32, |(_, bytes, _)| *bytes);
        self.index.add_segment(segment.sequence, segment.slot, self.segment_bytes);
        let (mut tail, last, footer) = self.scan(segment, header_bytes)?;
        let (again, again_records) = last.map_or((Vec::new(), 0), |at| {
            let commit = Commit::parse(&self.bytes[at as usize..], self.identity.seed());
            commit.map_or((Vec::new(), 0), |commit| (commit.records.to_vec(), commit.header.records))
        });
        self.index.set_bytes(segment.sequence, tail);
        let end = self.segment_bytes as usize;
        let sealed = footer::claimed_length(&self.bytes[end - BLOCK_BYTES..])
            .map(|length| length + footer::TRAILER_BYTES)
            .filter(|length| *length <= end)
            .and_then(|length| footer::parse(&self.bytes[end - length..], self.identity.seed()))
            .is_some_and(|(trailer, _)| trailer.sequence == segment.sequence);
        if sealed {
            tail = self.segment_bytes;
        }
        Ok(Newest { segment, tail, again, again_records, footer })
    }

    /// Reads a segment commit by commit; returns its end, the place of its last commit, and its footer.
    fn scan(&mut self, segment: SegmentRef, header_bytes: u32) -> io::Result<(u32, Option<u32>, Footer)> {
        let length = self.disk.read(segment.slot, 0, &mut self.bytes)?;
        self.bytes[length..].fill(0);
        let (mut tail, mut at, mut last) = (header_bytes, header_bytes, None);
        let mut footer = Footer::default();
        while (at as usize) < length {
            let commit = Commit::parse(&self.bytes[at as usize..length], self.identity.seed());
            let Some(commit) = commit.filter(|commit| follows(&commit.header, segment, &self.chain)) else {
                at += BLOCK_BYTES as u32;
                continue;
            };
            let header = commit.header;
            let missing = header.number - self.chain.number - 1;
            // Segments that left the log took their numbers with them.
            let is_next = header.segment <= self.chain.segment + 1 && self.chain.number > 0;
            if is_next && missing > u64::from(header.covers) {
                self.report.commits_missing += missing;
                let (slot, sequence) = (segment.slot, segment.sequence);
                self.report.set_aside.push(SetAside { slot, segment: sequence, from: tail, to: at });
            }
            let first = at + COMMIT_HEADER_BYTES as u32;
            apply_records(&mut self.index, commit.records, segment.sequence, first);
            footer.note_records(commit.records, first);
            let Chain { time_ms, .. } = self.chain;
            self.chain = Chain {
                segment: header.segment,
                life: header.life,
                number: header.number,
                time_ms: header.time_ms.max(time_ms),
                covers: header.covers,
            };
            last = Some(at);
            at += commit.bytes() as u32;
            tail = at;
        }
        Ok((tail, last, footer))
    }

    /// What each file may be used for from now on.
    fn slots(&mut self, found: &[Found], headers: &[(u32, u32, &SegmentHeader)]) -> Vec<Slot> {
        let count = found.last().map_or(0, |found| found.slot as usize + 1);
        let mut slots = vec![Slot::Unusable; count];
        for file in found {
            let is_ours = headers.iter().any(|(slot, _, _)| *slot == file.slot)
                || matches!(file.header, HeaderRead::Empty)
                || (!headers.is_empty() && !matches!(file.header, HeaderRead::Good(..)))
                || self.is_blank_behind(file);
            slots[file.slot as usize] = match (is_ours, self.is_whole(file.slot)) {
                (true, true) => Slot::Free,
                (true, false) => Slot::Preparing,
                (false, _) => {
                    let (slot, to) = (file.slot, file.length as u32);
                    self.report.set_aside.push(SetAside { slot, segment: 0, from: 0, to });
                    Slot::Unusable
                }
            };
        }
        for segment in self.index.segments().values() {
            slots[segment.slot as usize] = Slot::Live;
        }
        slots
    }

    /// A format that was cut short leaves a bad header and nothing behind it.
    fn is_blank_behind(&mut self, file: &Found) -> bool {
        let length = self.disk.read(file.slot, BLOCK_BYTES as u64, &mut self.bytes).unwrap_or(0);
        self.bytes[..length].iter().all(|byte| *byte == 0)
    }

    fn is_whole(&mut self, slot: u32) -> bool {
        let at = u64::from(self.segment_bytes) - BLOCK_BYTES as u64;
        let mut block = [0; BLOCK_BYTES];
        self.disk.read(slot, at, &mut block).is_ok_and(|length| length == BLOCK_BYTES)
    }
}

/// Whether a commit belongs here: to this segment, behind everything accepted so far. A commit that an
/// earlier life left behind does not.
fn follows(header: &CommitHeader, segment: SegmentRef, chain: &Chain) -> bool {
    header.segment == segment.sequence && header.life >= chain.life && header.number > chain.number
}

fn blocks(from: u32, length: usize) -> impl Iterator<Item = u32> {
    (from..length as u32).step_by(BLOCK_BYTES)
}
