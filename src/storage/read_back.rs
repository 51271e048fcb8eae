//! Reads messages and definitions back from the log, as jobs for the read helper.
//!
//! ```text
//! fetch, fetch_chunk, fetch_definitions → FetchJob ~ helper ~ FetchDone → fetch_done, … → the caller's own memory
//! ```
//!
//! The event loop determines from the index which offsets are live and in which segment they lie. The helper finds
//! the locations of these records in the footer, reads the records with few calls, and verifies them. A part of the
//! footer is read only as far as needed. Neighbouring records are read with one call as long as at least half of the
//! bytes are wanted. If the part is damaged or was never written, the helper searches the records in the segment's
//! commits. There is one set of buffers, so one fetch at a time.
//!
//! The file also contains [`Pins`], which keeps files unchanged while they are read or copied.
//!
//! # Invariants
//! - Only durable records are read. A fetch returns only verified records that were requested.
//! - If a location cannot be read, only the records at this location are lost.
//! - A fetch covers a range of offsets, which it returns. A live message in this range that the fetch does not find
//!   is lost.
//! - The file that a fetch reads is not reused before the fetch is done.
//! - A buffer takes at most [`FETCH_BYTES`] and [`SPAN_BYTES_MAX`] together. The exceptions are a single longer
//!   record, and a longer commit with a verified checksum. That memory is freed before the next fetch.

use std::io;

use super::commit::{BLOCK_BYTES, Commit, StoredHeader, claimed_length, verified_length};
use super::commit_builder::ResizeZeroed;
use super::damaged_commit::{is_servable, read_damaged_commit};
use super::disk::Disk;
use super::footer::{RECORDED_DIVISOR, for_each_message};
use super::index::Segment;
use super::log::{Log, RecordLocation};
use super::parts::{BodyPart, BodyPartBlock, PART_BLOCK_BYTES, Smallest, part_seed};
use super::record::{Message, Range, Record};
use super::settled::SHARED_SPAN_BYTES_MAX;
use super::space::SlotUse;

/// Maximum bytes of records per fetch, except for a single longer record.
pub const FETCH_BYTES: usize = 128 << 10;
/// Maximum records per fetch.
const RECORDS_MAX: usize = 1024;
/// Maximum ranges of offsets per fetch.
const WANTED_MAX: usize = 256;
/// Maximum bytes per read call, except for a longer record.
const SPAN_BYTES_MAX: usize = 32 << 10;
/// Maximum number of guesses when a block is searched by interpolation; then binary search is used.
const GUESSES_MAX: usize = 4;

/// The result of a fetch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FetchResult {
    /// End of the offsets that the fetch covers. Messages that were live below this offset and were not passed to the
    /// caller are lost.
    pub through: u64,
    /// Whether the compactor has moved records during the fetch. The caller should fetch again from `through` on.
    pub retry: bool,
    /// The last error of the disk.
    pub error: Option<io::ErrorKind>,
}

impl Log {
    /// Returns a job that reads live messages of a queue within `offsets`.
    ///
    /// The job reads messages from one segment, up to `bytes_max` and [`FETCH_BYTES`], but at least one if
    /// there is any. Returns `None` while another fetch is in flight or the segment's footer is being
    /// written. Retry when a fetch or a commit is done.
    pub fn fetch(&mut self, queue: u64, offsets: Range, bytes_max: u32) -> Option<FetchJob> {
        let mut buffers = self.reading.spare.take()?;
        let known = self.index.queues().get(&queue);
        let Some(plan) = known.and_then(|known| known.plan(offsets, &mut buffers.wanted)) else {
            return self
                .job(FetchSource::Nothing, 0, buffers)
                .map(|job| FetchJob { through: offsets.end, ..job });
        };
        let is_sealing = self.in_flight.as_ref().is_some_and(|in_flight| in_flight.seals == plan.segment);
        // While the footer is being written, the fetch waits. If the write is postponed for lack of space, the
        // segment is read commit by commit.
        if is_sealing && !self.is_postponed() {
            self.reading.spare = Some(buffers);
            return None;
        }
        // After a disk failure the footer entries in memory may include records that were not written.
        let source = if plan.segment == self.space.active.sequence() && !self.failed {
            // The records of the commit in flight are not readable at their location yet.
            let recorded = match self.in_flight {
                Some(_) => self.space.active.footer().messages_before_last(),
                None => self.space.active.footer().messages(),
            };
            buffers.recorded.clear();
            buffers.recorded.extend_from_slice(recorded);
            FetchSource::Recorded
        } else {
            match self.index.span_of(plan.segment, queue) {
                BodyPart { bytes: 0, .. } => FetchSource::Scan,
                span => FetchSource::Span(span),
            }
        };
        let job = self.job(source, plan.segment, buffers)?;
        let bytes_max = (bytes_max as usize).min(FETCH_BYTES);
        Some(FetchJob { queue, bytes_max, through: plan.end, hint: plan.hint, ..job })
    }

    /// Returns a job that reads one chunk of a large body, or `None` while another fetch is in flight.
    pub fn fetch_chunk(&mut self, body: u64, index: u32) -> Option<FetchJob> {
        let buffers = self.reading.spare.take()?;
        match self.index.place_of_chunk(body, index) {
            Some(place) => self.job(FetchSource::Chunk(place, body, index), place.segment, buffers),
            None => self.job(FetchSource::Nothing, 0, buffers),
        }
    }

    /// Returns the location of the newest durable version of a definition; `None` if there is none, or if that version is its
    /// deletion.
    pub fn location_of_definition(&self, key: &[u8]) -> Option<RecordLocation> {
        let definition = self.index.definitions().get(key)?;
        (!definition.deleted).then_some(definition.place)
    }

    /// Returns a job that reads definitions, or `None` while another fetch is in flight. `locations` are ascending and in one
    /// segment.
    pub fn fetch_definitions(&mut self, locations: impl Iterator<Item = RecordLocation>) -> Option<FetchJob> {
        let mut buffers = self.reading.spare.take()?;
        let mut segment = 0;
        buffers.found.extend(locations.map(|location| {
            segment = location.segment;
            FetchedMessage { offset: location.at.into(), at: location.at, bytes: location.bytes }
        }));
        self.job(FetchSource::Definitions, segment, buffers)
    }

    /// Applies the result of [`Log::fetch_definitions`]. Calls `each` with the key and the value of every definition that was
    /// read and is still the newest version.
    pub fn definitions_done(&mut self, done: FetchDone, mut each: impl FnMut(&[u8], &[u8])) {
        let FetchDone { job, error } = done;
        self.has_refused_reads |= error.is_some();
        for found in &job.buffers.found {
            let Ok((Record::Defined { version, key, value: Some(value) }, _)) =
                Record::parse_known(job.buffers.bytes_of(found))
            else {
                continue;
            };
            let known = self.index.definitions().get(key);
            if known.is_some_and(|known| known.version == version && !known.deleted) {
                each(key, value);
            }
        }
        self.unpin(job);
    }

    /// Creates a fetch job for a segment and pins the segment's file.
    fn job(&mut self, source: FetchSource, segment: u64, buffers: FetchBuffers) -> Option<FetchJob> {
        let found = self.index.segments().get(&segment);
        let source = if found.is_some() { source } else { FetchSource::Nothing };
        let (slot, segment_bytes) = found.map_or((u32::MAX, 0), |found| (found.slot, found.bytes));
        self.reading.pins.set_read(found.map(|found| found.slot));
        Some(FetchJob {
            source,
            queue: 0,
            segment,
            slot,
            segment_bytes,
            seed: self.writer.identity.seed(),
            bytes_max: 0,
            through: 0,
            hint: Range { start: 0, end: 0 },
            buffers,
        })
    }

    /// Applies the result of [`Log::fetch`] and calls `each` with every intact message, ascending by offset. Some of
    /// the messages may have been settled during the fetch.
    pub fn fetch_done(&mut self, done: FetchDone, mut each: impl FnMut(u64, &Message<'_>)) -> FetchResult {
        let FetchDone { job, error } = done;
        self.has_refused_reads |= error.is_some();
        let moved = self.first_moved(&job);
        let through = moved.unwrap_or(job.through);
        for found in job.buffers.found.iter().take_while(|found| found.offset < through) {
            if let Ok((Record::Message(message), _)) = Record::parse_known(job.buffers.bytes_of(found)) {
                each(found.offset, &message);
            }
        }
        self.unpin(job);
        FetchResult { through, retry: moved.is_some(), error }
    }

    /// Applies the result of [`Log::fetch_chunk`]. Calls `each` with the bytes of the chunk, or with `None` if the
    /// chunk is lost.
    pub fn chunk_done(&mut self, done: FetchDone, each: impl FnOnce(Option<&[u8]>)) -> FetchResult {
        let FetchDone { job, error } = done;
        self.has_refused_reads |= error.is_some();
        let found = job.buffers.found.first().map(|found| job.buffers.bytes_of(found));
        let mut retry = false;
        match found.and_then(|bytes| Record::parse_known(bytes).ok()) {
            Some((Record::Chunk { bytes, .. }, _)) => each(Some(bytes)),
            _ => {
                if let FetchSource::Chunk(place, body, index) = job.source {
                    retry = self.index.place_of_chunk(body, index).is_some_and(|now| now != place);
                }
                each(None);
            }
        }
        self.unpin(job);
        FetchResult { through: 0, retry, error }
    }

    /// Returns the first wanted offset that was not found because its message has moved to another segment; `None` if
    /// there is none.
    fn first_moved(&self, job: &FetchJob) -> Option<u64> {
        let queue = self.index.queues().get(&job.queue)?;
        let mut found = job.buffers.found.iter().map(|found| found.offset).peekable();
        for range in &job.buffers.wanted {
            for offset in range.start..range.end.min(job.through) {
                if found.next_if_eq(&offset).is_some() {
                    continue;
                }
                if queue.segment_of(offset).is_some_and(|segment| segment != job.segment) {
                    return Some(offset);
                }
            }
        }
        None
    }

    /// Releases the file and the buffers of a finished fetch.
    fn unpin(&mut self, job: FetchJob) {
        self.reading.pins.set_read(None);
        if self.space.slots.get(job.slot) == SlotUse::Pinned && !self.reading.pins.has(job.slot) {
            self.space.slots.release(job.slot);
        }
        self.reading.spare = Some(job.buffers.reset());
    }

    /// Pins all files with durable records for a backup, and releases an earlier pin. Returns `None` while a
    /// commit is in flight; retry when it is done.
    pub fn pin_for_backup(&mut self) -> Option<Vec<PinnedFile>> {
        if self.in_flight.is_some() || self.failed || self.schedule.is_starting {
            return None;
        }
        self.release_backup_pin();
        let of = |(sequence, segment): (&u64, &Segment)| PinnedFile {
            slot: segment.slot,
            length: self.settings.segment_bytes,
            bytes: if *sequence == self.space.active.sequence() {
                self.space.active.tail()
            } else {
                self.settings.segment_bytes
            },
        };
        let held: Vec<PinnedFile> = self.index.segments().iter().map(of).collect();
        self.reading.pins.set_copied(held.iter().map(|held| held.slot));
        Some(held)
    }

    /// Returns whether files are pinned for a backup. If not, the running backup must be cancelled.
    pub const fn is_pinned_for_backup(&self) -> bool {
        self.reading.pins.is_copying()
    }

    /// Releases the pinned files, so that they may be reused.
    pub fn release_backup_pin(&mut self) {
        for slot in self.reading.pins.take_copied() {
            if self.space.slots.get(slot) == SlotUse::Pinned && !self.reading.pins.has(slot) {
                self.space.slots.release(slot);
            }
        }
    }

    /// Releases the files pinned for a backup if their space is needed.
    pub(super) fn yield_backup_pin(&mut self) {
        if self.is_pinned_for_backup() && self.space.is_scarce() {
            log::warn!("the disk is nearly full: the running backup is cancelled to free space");
            self.release_backup_pin();
        }
    }
}

/// The buffers of a fetch, which are reused.
#[derive(Debug)]
pub(super) struct FetchBuffers {
    /// Live offsets to read, ascending.
    pub(super) wanted: Vec<Range>,
    /// The messages of the active segment, as recorded for its footer.
    pub(super) recorded: Vec<u8>,
    /// The records found. Before reading, `at` is the offset in the segment; afterwards, the offset in
    /// `bytes`.
    pub(super) found: Vec<FetchedMessage>,
    pub(super) bytes: Vec<u8>,
}

/// The offset of a message in its queue, and the location of its record.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct FetchedMessage {
    pub(super) offset: u64,
    pub(super) at: u32,
    pub(super) bytes: u32,
}

impl FetchBuffers {
    /// Creates buffers for segments of `segment_bytes`.
    pub(super) fn new(segment_bytes: u32) -> Self {
        Self {
            wanted: Vec::with_capacity(WANTED_MAX),
            recorded: Vec::with_capacity(segment_bytes as usize / 16),
            found: Vec::with_capacity(2 * RECORDS_MAX),
            bytes: Vec::with_capacity(FETCH_BYTES + SPAN_BYTES_MAX),
        }
    }

    /// Returns the maximum memory of the buffers in bytes. One record may be as long as a commit.
    pub(super) const fn bytes(segment_bytes: usize, commit_bytes: usize) -> usize {
        let fetch = FETCH_BYTES + SPAN_BYTES_MAX;
        let longest = if fetch > commit_bytes { fetch } else { commit_bytes };
        let lists = WANTED_MAX * size_of::<Range>() + 2 * RECORDS_MAX * size_of::<FetchedMessage>();
        longest + lists + segment_bytes / RECORDED_DIVISOR
    }

    /// Clears the buffers for the next fetch, and frees the memory of a single long record.
    pub(super) fn reset(mut self) -> Self {
        self.wanted.clear();
        self.found.clear();
        if self.bytes.capacity() > FETCH_BYTES + SPAN_BYTES_MAX {
            self.bytes = Vec::with_capacity(FETCH_BYTES + SPAN_BYTES_MAX);
        }
        self
    }

    fn is_wanted(&self, offset: u64) -> bool {
        let at = self.wanted.partition_point(|range| range.end <= offset);
        self.wanted.get(at).is_some_and(|range| range.start <= offset)
    }

    /// Returns the bytes of a record that was read.
    pub(super) fn bytes_of(&self, found: &FetchedMessage) -> &[u8] {
        &self.bytes[found.at as usize..][..found.bytes as usize]
    }
}

/// The result of a fetch.
#[derive(Debug)]
pub struct FetchDone {
    pub(super) job: FetchJob,
    pub(super) error: Option<io::ErrorKind>,
}

impl FetchDone {
    /// Returns whether the disk refused a read.
    pub const fn was_refused(&self) -> bool {
        self.error.is_some()
    }

    /// Returns the messages found, ascending by offset.
    pub(super) fn messages(&self) -> impl Iterator<Item = (u64, Message<'_>)> {
        let buffers = &self.job.buffers;
        buffers.found.iter().filter_map(|found| match Record::parse_known(buffers.bytes_of(found)) {
            Ok((Record::Message(message), _)) => Some((found.offset, message)),
            _ => None,
        })
    }
}

/// Reads messages, a chunk, or definitions.
#[derive(Debug)]
pub struct FetchJob {
    pub(super) source: FetchSource,
    pub(super) queue: u64,
    pub(super) segment: u64,
    /// The file of the segment.
    pub(super) slot: u32,
    /// Bytes of the segment that are in use.
    pub(super) segment_bytes: u32,
    pub(super) seed: u32,
    pub(super) bytes_max: usize,
    /// End of the offsets that the fetch covers.
    pub(super) through: u64,
    pub(super) hint: Range,
    pub(super) buffers: FetchBuffers,
}

/// Where a fetch finds the locations of its records.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum FetchSource {
    /// There is nothing to read.
    Nothing,
    /// In the job's copy of the active segment's footer entries.
    Recorded,
    /// In the queue's part of the segment's footer, which lies within this span.
    Span(BodyPart),
    /// In the commits, because the segment has no good footer.
    Scan,
    /// The location of a chunk is already known. Contains it, the id of the body, and the index of the chunk.
    Chunk(RecordLocation, u64, u32),
    /// The locations of definitions are already known. They are in [`FetchBuffers::found`].
    Definitions,
}

impl FetchJob {
    /// Runs the job; blocks.
    pub fn run(mut self, disk: &mut impl Disk) -> FetchDone {
        let mut error = None;
        if self.source != FetchSource::Definitions {
            self.buffers.found.clear();
        }
        match self.source {
            FetchSource::Nothing => {}
            FetchSource::Definitions => self.read(disk, &mut error),
            FetchSource::Chunk(place, ..) => {
                self.buffers.found.push(FetchedMessage { offset: 0, at: place.at, bytes: place.bytes });
                self.read(disk, &mut error);
            }
            FetchSource::Recorded => {
                self.find_recorded();
                self.read(disk, &mut error);
            }
            FetchSource::Span(span) => {
                let part = self.find_part(disk, span, &mut error);
                if part.and_then(|part| self.find_in_part(disk, part, &mut error)).is_none() {
                    self.find_by_scan(disk, &mut error);
                }
                self.read(disk, &mut error);
            }
            FetchSource::Scan => {
                self.find_by_scan(disk, &mut error);
                self.read(disk, &mut error);
            }
        }
        FetchDone { job: self, error }
    }

    /// Finds the records in the active segment's footer entries.
    fn find_recorded(&mut self) {
        let mut smallest = Smallest::new(core::mem::take(&mut self.buffers.found), RECORDS_MAX);
        // Entries in memory are well formed.
        let _ = for_each_message(&self.buffers.recorded, |entry| {
            if entry.queue == self.queue && self.buffers.is_wanted(entry.offset) {
                smallest.push(FetchedMessage { offset: entry.offset, at: entry.at, bytes: entry.bytes });
            }
        });
        self.keep(smallest);
    }

    /// Finds the records by reading the segment commit by commit.
    fn find_by_scan(&mut self, disk: &mut impl Disk, error: &mut Option<io::ErrorKind>) {
        let mut smallest = Smallest::new(core::mem::take(&mut self.buffers.found), RECORDS_MAX);
        let mut bytes = core::mem::take(&mut self.buffers.bytes);
        let mut at = BLOCK_BYTES as u32;
        while at < self.segment_bytes {
            bytes.resize_zeroed(BLOCK_BYTES);
            let mut known = read(disk, self.slot, at, &mut bytes, error);
            let length = claimed_length(&bytes[..known]).unwrap_or(0);
            if length > known
                && length <= (self.segment_bytes - at) as usize
                && self.may_buffer(disk, at, length, &bytes[..known])
            {
                bytes.resize_zeroed(length);
                known = read(disk, self.slot, at, &mut bytes, error);
            }
            let commit = Commit::parse(&bytes[..known], self.seed);
            let Some(commit) = commit.filter(|commit| commit.header.segment == self.segment) else {
                let damaged = read_damaged_commit(&bytes[..known], self.seed, self.segment);
                for (from, length) in damaged.into_iter().flat_map(|damaged| damaged.records) {
                    if let Ok((Record::Message(message), _)) = Record::parse(&bytes[from..known]) {
                        self.note_targets(&message, at + from as u32, length as u32, &mut smallest);
                    }
                }
                at += BLOCK_BYTES as u32;
                continue;
            };
            let mut first = at + (length - commit.records.len()) as u32;
            let mut records = commit.records;
            while let Ok((record, length)) = Record::parse_known(records) {
                if let Record::Message(message) = record {
                    self.note_targets(&message, first, length as u32, &mut smallest);
                }
                records = &records[length..];
                first += length as u32;
            }
            at += commit.bytes() as u32;
        }
        bytes.clear();
        self.buffers.bytes = bytes;
        self.keep(smallest);
    }

    /// Returns whether memory may be allocated for a commit of `length` bytes, which its header claims. It may if the
    /// commit is not longer than usual, or if the secret identity in its header or its checksum is correct.
    fn may_buffer(&self, disk: &mut impl Disk, at: u32, length: usize, head: &[u8]) -> bool {
        length <= FETCH_BYTES + SPAN_BYTES_MAX
            || StoredHeader::read(head).is_some_and(|stored| is_servable(stored, self.seed, self.segment))
            || matches!(verified_length(disk, self.slot, at.into(), self.seed), Ok(Some(_)))
    }

    /// Adds the wanted targets of a message to the records found.
    fn note_targets(
        &self,
        message: &Message<'_>,
        at: u32,
        bytes: u32,
        smallest: &mut Smallest<FetchedMessage>,
    ) {
        for target in message.targets.iter().filter(|target| target.queue == self.queue) {
            if self.buffers.is_wanted(target.offset) {
                smallest.push(FetchedMessage { offset: target.offset, at, bytes });
            }
        }
    }

    /// Stores the collected records as far as they fit into the fetch. Of two records with the same offset the later
    /// one counts.
    fn keep(&mut self, smallest: Smallest<FetchedMessage>) {
        let (found, is_cut) = smallest.sorted();
        self.buffers.found = found;
        let found = &mut self.buffers.found;
        found.reverse();
        found.dedup_by_key(|found| found.offset);
        found.reverse();
        if is_cut {
            self.through = found.last().map_or(self.through, |found| found.offset + 1);
        }
        let mut bytes = 0;
        let fitting = found.iter().position(|found| {
            bytes += found.bytes as usize;
            bytes > self.bytes_max
        });
        if let Some(fitting) = fitting {
            self.end_before(fitting.max(1));
        }
    }

    /// Limits the fetch to the first `count` records found.
    fn end_before(&mut self, count: usize) {
        if let Some(next) = self.buffers.found.get(count) {
            self.through = next.offset;
        }
        self.buffers.found.truncate(count);
    }

    /// Finds the queue's part of the footer within a span ([`super::settled::Spans`]).
    fn find_part(
        &mut self,
        disk: &mut impl Disk,
        span: BodyPart,
        error: &mut Option<io::ErrorKind>,
    ) -> Option<BodyPart> {
        if span.bytes >= SHARED_SPAN_BYTES_MAX {
            return Some(span);
        }
        let seed = part_seed(self.seed, self.segment);
        let bytes = &mut self.buffers.bytes;
        bytes.resize_zeroed(span.bytes as usize);
        let known = read(disk, self.slot, span.at, bytes, error);
        let (mut at, mut from) = (0, None);
        while at < known {
            let block = BodyPartBlock::parse(&bytes[at..known], seed)?;
            match from {
                None if block.queue == self.queue => from = Some(at),
                Some(_) if block.queue != self.queue => break,
                _ => {}
            }
            at += block.stride;
        }
        let from = from?;
        Some(BodyPart { at: span.at + from as u32, bytes: (at.min(known) - from) as u32 })
    }

    /// Finds the wanted offsets in a part of the footer. Returns `None` if the part is damaged.
    fn find_in_part(
        &mut self,
        disk: &mut impl Disk,
        part: BodyPart,
        error: &mut Option<io::ErrorKind>,
    ) -> Option<()> {
        let mut search = PartSearch {
            slot: self.slot,
            queue: self.queue,
            seed: part_seed(self.seed, self.segment),
            part,
            blocks: (part.bytes as usize).div_ceil(PART_BLOCK_BYTES),
            hint: self.hint,
            bytes: [0; PART_BLOCK_BYTES],
        };
        let (mut low, mut wanted, mut sum) = (0, 0, 0);
        while low < search.blocks {
            let Some(range) = self.buffers.wanted.get(wanted) else { break };
            let at = range.start.max(search.hint.start);
            low = search.seek(disk, at, low, error)? + 1;
            for entry in BodyPartBlock::parse(&search.bytes, search.seed)?.entries() {
                search.hint.start = entry.offset + 1;
                while self.buffers.wanted.get(wanted).is_some_and(|range| range.end <= entry.offset) {
                    wanted += 1;
                }
                let Some(range) = self.buffers.wanted.get(wanted) else { break };
                if range.start > entry.offset {
                    continue;
                }
                let found = FetchedMessage { offset: entry.offset, at: entry.at, bytes: entry.bytes };
                self.buffers.found.push(found);
                sum += entry.bytes as usize;
                let count = self.buffers.found.len();
                if count > RECORDS_MAX || (sum > self.bytes_max && count > 1) {
                    self.end_before(count - 1);
                    return Some(());
                }
            }
        }
        Some(())
    }

    /// Reads and verifies the records found. Damaged records are left out.
    fn read(&mut self, disk: &mut impl Disk, error: &mut Option<io::ErrorKind>) {
        let mut found = core::mem::take(&mut self.buffers.found);
        let (mut done, mut end) = (0, 0);
        while done < found.len() {
            let span = span_of(&found[done..]);
            let start = found[done].at;
            let last = &found[done + span - 1];
            let length = (last.at + last.bytes - start) as usize;
            if self.buffers.bytes.len() < end + length {
                self.buffers.bytes.resize_zeroed(end + length);
            }
            let known = read(disk, self.slot, start, &mut self.buffers.bytes[end..end + length], error);
            if known < length && span > 1 {
                // The records are read again one by one, so that the other records of this read are not lost.
                end = self.read_singly(disk, &mut found[done..done + span], end, error);
            } else {
                let from = end;
                for found in &mut found[done..done + span] {
                    let at = from + (found.at - start) as usize;
                    end = self.take(found, at, from + known, end);
                }
            }
            done += span;
        }
        found.retain(|found| found.bytes > 0);
        self.buffers.found = found;
    }

    /// Reads and verifies records one by one.
    fn read_singly(
        &mut self,
        disk: &mut impl Disk,
        found: &mut [FetchedMessage],
        mut end: usize,
        error: &mut Option<io::ErrorKind>,
    ) -> usize {
        for found in found {
            let room = &mut self.buffers.bytes[end..end + found.bytes as usize];
            let known = read(disk, self.slot, found.at, room, error);
            end = self.take(found, end, end + known, end);
        }
        end
    }

    /// Verifies the record at offset `at` of the buffer, of which `known` bytes were read, and moves it to offset
    /// `to`. Returns the end of the moved record, or `to` if the record is not good.
    fn take(&mut self, found: &mut FetchedMessage, at: usize, known: usize, to: usize) -> usize {
        let bytes = found.bytes as usize;
        let is_good = at + bytes <= known
            && self.is_requested_record(&self.buffers.bytes[at..at + bytes], found.offset);
        if !is_good {
            found.bytes = 0;
            return to;
        }
        self.buffers.bytes.copy_within(at..at + bytes, to);
        found.at = to as u32;
        to + bytes
    }

    /// Returns whether the bytes are the record that was requested.
    fn is_requested_record(&self, bytes: &[u8], offset: u64) -> bool {
        match (Record::parse(bytes), self.source) {
            (Ok((Record::Chunk { body, index, .. }, _)), FetchSource::Chunk(_, asked, at)) => {
                (body, index) == (asked, at)
            }
            (parsed, FetchSource::Definitions) => matches!(parsed, Ok((Record::Defined { .. }, _))),
            (Ok((Record::Message(message), _)), _) => {
                message.targets.iter().any(|target| (target.queue, target.offset) == (self.queue, offset))
            }
            _ => false,
        }
    }
}

/// Returns how many of the records `found` are read with one call, from the first on.
fn span_of(found: &[FetchedMessage]) -> usize {
    let (start, mut wanted, mut end) = (found[0].at, 0, found[0].at);
    let is_near = |found: &&FetchedMessage| {
        let length = (found.at + found.bytes).saturating_sub(start) as usize;
        let fits = length <= SPAN_BYTES_MAX && length <= 2 * (wanted + found.bytes as usize);
        let is_behind = found.at >= end;
        wanted += found.bytes as usize;
        end = found.at + found.bytes;
        is_behind && fits
    };
    found.iter().take_while(is_near).count().max(1)
}

/// Reads and returns the number of bytes read. On an error returns 0 and stores the error in `error`.
fn read(
    disk: &mut impl Disk,
    slot: u32,
    at: u32,
    bytes: &mut [u8],
    error: &mut Option<io::ErrorKind>,
) -> usize {
    disk.read(slot, at.into(), bytes).unwrap_or_else(|failure| {
        *error = Some(failure.kind());
        0
    })
}

/// A search in the blocks of a part.
struct PartSearch {
    slot: u32,
    queue: u64,
    seed: u32,
    part: BodyPart,
    blocks: usize,
    /// The offsets that the remaining blocks probably cover.
    hint: Range,
    bytes: [u8; PART_BLOCK_BYTES],
}

impl PartSearch {
    /// Reads the block that contains `offset`, or would contain it. Searches from block `low` on. Returns `None` if a
    /// block is damaged.
    fn seek(
        &mut self,
        disk: &mut impl Disk,
        offset: u64,
        mut low: usize,
        error: &mut Option<io::ErrorKind>,
    ) -> Option<usize> {
        let mut high = self.blocks;
        let mut block = self.guess(offset, low);
        for guesses in 0.. {
            let (first, last) = self.read_block(disk, block, error)?;
            if offset < first && block > low {
                high = block;
            } else if offset > last && block + 1 < high {
                low = block + 1;
            } else {
                return Some(block);
            }
            block = match guesses {
                GUESSES_MAX.. => usize::midpoint(low, high),
                _ if high == block => high.saturating_sub(1 << guesses).max(low),
                _ => (low + (1 << guesses) - 1).min(high - 1),
            };
        }
        None
    }

    /// Estimates the block that contains `offset` by interpolation.
    fn guess(&self, offset: u64, low: usize) -> usize {
        let all = u128::from(self.hint.end.saturating_sub(self.hint.start).max(1));
        let before = u128::from(offset.saturating_sub(self.hint.start));
        let skipped = before * (self.blocks - low) as u128 / all;
        (low + skipped as usize).min(self.blocks - 1)
    }

    /// Reads a block into `bytes`; returns its first and last offset.
    fn read_block(
        &mut self,
        disk: &mut impl Disk,
        block: usize,
        error: &mut Option<io::ErrorKind>,
    ) -> Option<(u64, u64)> {
        let at = block * PART_BLOCK_BYTES;
        let length = (self.part.bytes as usize - at).min(PART_BLOCK_BYTES);
        self.bytes[length..].fill(0);
        read(disk, self.slot, self.part.at + at as u32, &mut self.bytes[..length], error);
        let parsed = BodyPartBlock::parse(&self.bytes, self.seed)?;
        (parsed.queue == self.queue).then_some(())?;
        Some((parsed.first, parsed.entries().last()?.offset))
    }
}

/// A file to be copied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PinnedFile {
    /// The slot of the file.
    pub slot: u32,
    /// Number of bytes to copy from the start of the file. The rest of the copy is filled with zeros.
    pub bytes: u32,
    /// The file's length in bytes.
    pub length: u32,
}

/// Files that must not be reused while they are read or copied, although their segments may have been
/// removed.
///
/// A backup copies the files one after the other. The copy is a consistent store only if no file is reused before it
/// is copied. All durable records lie in the live segments; in the active segment they end at its tail.
///
/// # Invariants
/// - At most one file is pinned by a fetch, because there is one set of buffers.
/// - A backup never delays a publisher confirm: when space gets short, the files are unpinned, and the backup is
///   cancelled.
#[derive(Debug, Default)]
pub(super) struct Pins {
    read: Option<u32>,
    copied: Vec<u32>,
}

impl Pins {
    /// Returns whether the slot's file must stay unchanged.
    pub(super) fn has(&self, slot: u32) -> bool {
        self.read == Some(slot) || self.copied.contains(&slot)
    }

    /// Sets the file that is being read.
    pub(super) const fn set_read(&mut self, slot: Option<u32>) {
        self.read = slot;
    }

    /// Sets the files that are being copied.
    pub(super) fn set_copied(&mut self, slots: impl Iterator<Item = u32>) {
        self.copied.clear();
        self.copied.extend(slots);
    }

    /// Returns whether files are being copied.
    pub(super) const fn is_copying(&self) -> bool {
        !self.copied.is_empty()
    }

    /// Unpins the files that were being copied and returns them.
    pub(super) fn take_copied(&mut self) -> Vec<u32> {
        core::mem::take(&mut self.copied)
    }
}
