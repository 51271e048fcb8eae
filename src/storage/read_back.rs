//! What the read helper does to bring messages back: find where they lie, read them in few calls, check them.
//!
//! A part of the footer is read only as far as it is needed. Neighbours are read together as long as at
//! least half of what is read is wanted. A part that is damaged, or was never written, is no loss: then the
//! records are looked for in the segment's commits.
//!
//! Always true: what was found has been checked, record by record, and is what was asked for; a place that
//! cannot be read costs the records in it and no others; no buffer grows beyond one fetch and one span,
//! but for a single longer record, or a longer commit that its checksum has proven, until the next fetch.

use std::io;

use super::commit::{BLOCK_BYTES, Claim, Commit, claimed_length, proven_length};
use super::commit_builder::ResizeZeroed;
use super::disk::Disk;
use super::footer::{NOTED_PART, for_each_message};
use super::index::Segment;
use super::log::{Log, Place};
use super::parts::{BodyPart, BodyPartBlock, PART_BLOCK_BYTES, Smallest, part_seed};
use super::reader;
use super::record::{Message, Range, Record};
use super::settled::SHARED_SPAN_BYTES_MAX;
use super::space::Slot;

/// The most bytes of records that one fetch brings, but for a single record that is longer.
pub const FETCH_BYTES: usize = 128 << 10;
/// The most records of one fetch.
const RECORDS_MAX: usize = 1024;
/// The most ranges of offsets of one fetch.
const WANTED_MAX: usize = 256;
/// The most bytes read by one call, but for a longer record.
const SPAN_BYTES_MAX: usize = 32 << 10;
/// After so many guesses a block is searched for by halves.
const GUESSES_MAX: usize = 4;

/// The buffers of a fetch, used again and again.
#[derive(Debug)]
pub(super) struct Scratch {
    /// Live offsets to read, rising.
    pub(super) wanted: Vec<Range>,
    /// What was noted of the segment that fills.
    pub(super) noted: Vec<u8>,
    /// What was found; first its place in the segment, after reading that in `bytes`.
    pub(super) found: Vec<FetchedMessage>,
    pub(super) bytes: Vec<u8>,
}

/// A record that was found.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct FetchedMessage {
    pub(super) offset: u64,
    pub(super) at: u32,
    pub(super) bytes: u32,
}

impl Scratch {
    /// For segments of so many bytes.
    pub(super) fn new(segment_bytes: u32) -> Self {
        Self {
            wanted: Vec::with_capacity(WANTED_MAX),
            noted: Vec::with_capacity(segment_bytes as usize / 16),
            found: Vec::with_capacity(2 * RECORDS_MAX),
            bytes: Vec::with_capacity(FETCH_BYTES + SPAN_BYTES_MAX),
        }
    }

    /// Bytes it takes at most: one record may be as long as a commit.
    pub(super) const fn bytes(segment_bytes: usize, commit_bytes: usize) -> usize {
        let fetch = FETCH_BYTES + SPAN_BYTES_MAX;
        let longest = if fetch > commit_bytes { fetch } else { commit_bytes };
        let lists = WANTED_MAX * size_of::<Range>() + 2 * RECORDS_MAX * size_of::<FetchedMessage>();
        longest + lists + segment_bytes / NOTED_PART
    }

    /// Ready for the next fetch; what a single long record took is given back.
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
}

/// A fetch that was run.
#[derive(Debug)]
pub struct FetchDone {
    pub(super) job: FetchJob,
    pub(super) error: Option<io::ErrorKind>,
}

impl FetchDone {
    /// Whether the disk refused to read something.
    pub const fn was_refused(&self) -> bool {
        self.error.is_some()
    }

    /// The messages that were found, by rising offset.
    pub(super) fn messages(&self) -> impl Iterator<Item = (u64, Message<'_>)> {
        let scratch = &self.job.scratch;
        scratch.found.iter().filter_map(|found| match Record::parse_known(scratch.bytes_of(found)) {
            Ok((Record::Message(message), _)) => Some((found.offset, message)),
            _ => None,
        })
    }
}

/// Reads messages or a chunk back.
#[derive(Debug)]
pub struct FetchJob {
    pub(super) source: Source,
    pub(super) queue: u64,
    pub(super) segment: u64,
    pub(super) slot: u32,
    /// Bytes of the segment that are in use.
    pub(super) segment_bytes: u32,
    pub(super) seed: u32,
    pub(super) bytes_max: usize,
    pub(super) through: u64,
    pub(super) hint: Range,
    pub(super) scratch: Scratch,
}

/// Where a fetch learns where its records lie.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Source {
    /// There is nothing to read.
    Nothing,
    /// From what was noted of the segment that fills, a copy of which the job has.
    Noted,
    /// From the queue's part of the segment's footer, which lies in this span of it.
    Span(BodyPart),
    /// From the records themselves: the segment has no good footer.
    Scan,
    /// It is known: a chunk of a body, with its index.
    Chunk(Place, u64, u32),
}

impl FetchJob {
    /// Does it; blocks.
    pub fn run(mut self, disk: &mut impl Disk) -> FetchDone {
        let mut error = None;
        self.scratch.found.clear();
        match self.source {
            Source::Nothing => {}
            Source::Chunk(place, ..) => {
                self.scratch.found.push(FetchedMessage { offset: 0, at: place.at, bytes: place.bytes });
                self.read(disk, &mut error);
            }
            Source::Noted => {
                self.find_noted();
                self.read(disk, &mut error);
            }
            Source::Span(span) => {
                let part = self.find_part(disk, span, &mut error);
                if part.and_then(|part| self.find_in_part(disk, part, &mut error)).is_none() {
                    self.find_by_scan(disk, &mut error);
                }
                self.read(disk, &mut error);
            }
            Source::Scan => {
                self.find_by_scan(disk, &mut error);
                self.read(disk, &mut error);
            }
        }
        FetchDone { job: self, error }
    }

    fn find_noted(&mut self) {
        let mut smallest = Smallest::new(core::mem::take(&mut self.scratch.found), RECORDS_MAX);
        // What was noted in memory is well formed.
        let _ = for_each_message(&self.scratch.noted, |entry| {
            if entry.queue == self.queue && self.scratch.is_wanted(entry.offset) {
                smallest.push(FetchedMessage { offset: entry.offset, at: entry.at, bytes: entry.bytes });
            }
        });
        self.keep(smallest);
    }

    /// Goes through the segment commit by commit.
    fn find_by_scan(&mut self, disk: &mut impl Disk, error: &mut Option<io::ErrorKind>) {
        let mut smallest = Smallest::new(core::mem::take(&mut self.scratch.found), RECORDS_MAX);
        let mut bytes = core::mem::take(&mut self.scratch.bytes);
        let mut at = BLOCK_BYTES as u32;
        while at < self.segment_bytes {
            bytes.resize_zeroed(BLOCK_BYTES);
            let mut known = read(disk, self.slot, at, &mut bytes, error);
            let length = claimed_length(&bytes[..known]).unwrap_or(0);
            if length > known
                && length <= (self.segment_bytes - at) as usize
                && self.may_hold(disk, at, length, &bytes[..known])
            {
                bytes.resize_zeroed(length);
                known = read(disk, self.slot, at, &mut bytes, error);
            }
            let commit = Commit::parse(&bytes[..known], self.seed);
            let Some(commit) = commit.filter(|commit| commit.header.segment == self.segment) else {
                let served = reader::served(&bytes[..known], self.seed, self.segment);
                for (from, length) in served.into_iter().flat_map(|served| served.records) {
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
        self.scratch.bytes = bytes;
        self.keep(smallest);
    }

    /// Whether there is memory for a commit: for one of today's, and for a longer one when its checksum says
    /// that it is one, or its `head` whose it is: that is secret.
    fn may_hold(&self, disk: &mut impl Disk, at: u32, length: usize, head: &[u8]) -> bool {
        length <= FETCH_BYTES + SPAN_BYTES_MAX
            || Claim::read(head).is_some_and(|claim| reader::is_served(&claim, self.seed, self.segment))
            || matches!(proven_length(disk, self.slot, at.into(), self.seed), Ok(Some(_)))
    }

    fn note_targets(
        &self,
        message: &Message<'_>,
        at: u32,
        bytes: u32,
        smallest: &mut Smallest<FetchedMessage>,
    ) {
        for target in message.targets.iter().filter(|target| target.queue == self.queue) {
            if self.scratch.is_wanted(target.offset) {
                smallest.push(FetchedMessage { offset: target.offset, at, bytes });
            }
        }
    }

    /// Keeps what fits, the later one of two records of the same offset.
    fn keep(&mut self, smallest: Smallest<FetchedMessage>) {
        let (found, is_cut) = smallest.sorted();
        self.scratch.found = found;
        let found = &mut self.scratch.found;
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
            self.end_behind(fitting.max(1));
        }
    }

    /// The fetch ends before what was found at `count`.
    fn end_behind(&mut self, count: usize) {
        if let Some(next) = self.scratch.found.get(count) {
            self.through = next.offset;
        }
        self.scratch.found.truncate(count);
    }

    /// Goes through a span to the part of the queue. A long one is that part.
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
        let bytes = &mut self.scratch.bytes;
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

    /// Finds the wanted offsets in a part of the footer. `None` when the part is damaged.
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
            let Some(range) = self.scratch.wanted.get(wanted) else { break };
            let at = range.start.max(search.hint.start);
            low = search.seek(disk, at, low, error)? + 1;
            for entry in BodyPartBlock::parse(&search.bytes, search.seed)?.entries() {
                search.hint.start = entry.offset + 1;
                while self.scratch.wanted.get(wanted).is_some_and(|range| range.end <= entry.offset) {
                    wanted += 1;
                }
                let Some(range) = self.scratch.wanted.get(wanted) else { break };
                if range.start > entry.offset {
                    continue;
                }
                let found = FetchedMessage { offset: entry.offset, at: entry.at, bytes: entry.bytes };
                self.scratch.found.push(found);
                sum += entry.bytes as usize;
                let count = self.scratch.found.len();
                if count > RECORDS_MAX || (sum > self.bytes_max && count > 1) {
                    self.end_behind(count - 1);
                    return Some(());
                }
            }
        }
        Some(())
    }

    /// Reads and checks what was found; what is bad is left out.
    fn read(&mut self, disk: &mut impl Disk, error: &mut Option<io::ErrorKind>) {
        let mut found = core::mem::take(&mut self.scratch.found);
        let (mut done, mut end) = (0, 0);
        while done < found.len() {
            let span = span_of(&found[done..]);
            let start = found[done].at;
            let last = &found[done + span - 1];
            let length = (last.at + last.bytes - start) as usize;
            if self.scratch.bytes.len() < end + length {
                self.scratch.bytes.resize_zeroed(end + length);
            }
            let known = read(disk, self.slot, start, &mut self.scratch.bytes[end..end + length], error);
            if known < length && span > 1 {
                // Not to lose its neighbours too.
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
        self.scratch.found = found;
    }

    fn read_singly(
        &mut self,
        disk: &mut impl Disk,
        found: &mut [FetchedMessage],
        mut end: usize,
        error: &mut Option<io::ErrorKind>,
    ) -> usize {
        for found in found {
            let room = &mut self.scratch.bytes[end..end + found.bytes as usize];
            let known = read(disk, self.slot, found.at, room, error);
            end = self.take(found, end, end + known, end);
        }
        end
    }

    /// Checks the record that was read to byte `at` and moves it to byte `to`; tells where it ends there.
    fn take(&mut self, found: &mut FetchedMessage, at: usize, known: usize, to: usize) -> usize {
        let bytes = found.bytes as usize;
        let is_good =
            at + bytes <= known && self.is_asked_for(&self.scratch.bytes[at..at + bytes], found.offset);
        if !is_good {
            found.bytes = 0;
            return to;
        }
        self.scratch.bytes.copy_within(at..at + bytes, to);
        found.at = to as u32;
        to + bytes
    }

    fn is_asked_for(&self, bytes: &[u8], offset: u64) -> bool {
        match (Record::parse(bytes), self.source) {
            (Ok((Record::Chunk { body, index, .. }, _)), Source::Chunk(_, asked, at)) => {
                (body, index) == (asked, at)
            }
            (Ok((Record::Message(message), _)), _) => {
                message.targets.iter().any(|target| (target.queue, target.offset) == (self.queue, offset))
            }
            _ => false,
        }
    }
}

/// How many of `found` to read with one call.
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

/// Reads and notes an error; tells how many bytes were read.
fn read(
    disk: &mut impl Disk,
    slot: u32,
    at: u32,
    bytes: &mut [u8],
    error: &mut Option<io::ErrorKind>,
) -> usize {
    disk.read(slot, at.into(), bytes).unwrap_or_else(|said| {
        *error = Some(said.kind());
        0
    })
}

/// A walk through the blocks of a part.
struct PartSearch {
    slot: u32,
    queue: u64,
    seed: u32,
    part: BodyPart,
    blocks: usize,
    /// The offsets that the blocks not yet seen are likely to be about.
    hint: Range,
    bytes: [u8; PART_BLOCK_BYTES],
}

impl PartSearch {
    /// Reads the block from `low` on that has `offset`, or the one before its place. `None` on damage.
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

    fn guess(&self, offset: u64, low: usize) -> usize {
        let all = u128::from(self.hint.end.saturating_sub(self.hint.start).max(1));
        let before = u128::from(offset.saturating_sub(self.hint.start));
        let skipped = before * (self.blocks - low) as u128 / all;
        (low + skipped as usize).min(self.blocks - 1)
    }

    /// The first and the last offset of a block, which is left in `bytes`.
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

// Reading back: a queue's messages, or a chunk of a large body, as jobs for the read helper; and holding the files still
// for whoever copies them.
//
// ```text
// fetch, fetch_chunk → FetchJob ~ helper ~ FetchDone → fetch_done, chunk_done → the caller's own memory
// ```
//
// The loop decides by what it has in memory which offsets are live and in which segment they lie; the
// helper finds and reads them (`read_back`). There is one buffer, so one fetch at a time.
//
// Always true: only durable records are read; the file that a fetch reads is not used again before it is
// done; a fetch covers a known range of offsets, and what it did not find in there is lost.

/// What a fetch came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fetched {
    /// The end of the offsets that were covered. Those below that were live and not called are lost.
    pub through: u64,
    /// What could not be read lies elsewhere by now: ask again, from `through` on.
    pub retry: bool,
    /// The disk's last complaint.
    pub error: Option<io::ErrorKind>,
}

impl Log {
    /// A job that reads live messages of a queue, from `offsets.start` on and within `offsets`, as many as
    /// fit into `bytes_max` and [`FETCH_BYTES`] and lie in one segment; at least one if there is any, however
    /// long. `None` while another fetch is on its way, and while the segment's footer is being written: ask
    /// again when a fetch or a commit is done.
    pub fn fetch(&mut self, queue: u64, offsets: Range, bytes_max: u32) -> Option<FetchJob> {
        let mut scratch = self.reading.spare.take()?;
        let known = self.index.queues().get(&queue);
        let Some(plan) = known.and_then(|known| known.plan(offsets, &mut scratch.wanted)) else {
            return self.job(Source::Nothing, 0, scratch).map(|job| FetchJob { through: offsets.end, ..job });
        };
        let is_sealing = self.in_flight.as_ref().is_some_and(|in_flight| in_flight.seals == plan.segment);
        // When that takes long, the segment is read commit by commit.
        if is_sealing && !self.is_postponed() {
            self.reading.spare = Some(scratch);
            return None;
        }
        // What is noted may be beyond what could be written before the disk failed.
        let source = if plan.segment == self.space.active.sequence() && !self.failed {
            // What is copied forward by the commit on its way is not in its new place yet.
            let noted = match self.in_flight {
                Some(_) => self.space.active.footer().messages_before_last(),
                None => self.space.active.footer().messages(),
            };
            scratch.note(noted);
            Source::Noted
        } else {
            match self.index.span_of(plan.segment, queue) {
                BodyPart { bytes: 0, .. } => Source::Scan,
                span => Source::Span(span),
            }
        };
        let job = self.job(source, plan.segment, scratch)?;
        let bytes_max = (bytes_max as usize).min(FETCH_BYTES);
        Some(FetchJob { queue, bytes_max, through: plan.through, hint: plan.hint, ..job })
    }

    /// A job that reads one chunk of a large body. `None` while another fetch is on its way.
    pub fn fetch_chunk(&mut self, body: u64, index: u32) -> Option<FetchJob> {
        let scratch = self.reading.spare.take()?;
        match self.index.place_of_chunk(body, index) {
            Some(place) => self.job(Source::Chunk(place, body, index), place.segment, scratch),
            None => self.job(Source::Nothing, 0, scratch),
        }
    }

    fn job(&mut self, source: Source, segment: u64, scratch: Scratch) -> Option<FetchJob> {
        let found = self.index.segments().get(&segment);
        let source = if found.is_some() { source } else { Source::Nothing };
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
            scratch,
        })
    }

    /// Takes what a [`Log::fetch`] brought and calls `each` with every message that is whole, by rising
    /// offset. Messages that were settled meanwhile may be among them.
    pub fn fetch_done(&mut self, done: FetchDone, mut each: impl FnMut(u64, &Message<'_>)) -> Fetched {
        let FetchDone { job, error } = done;
        self.has_refused_reads |= error.is_some();
        let moved = self.first_moved(&job);
        let through = moved.unwrap_or(job.through);
        for found in job.scratch.found.iter().take_while(|found| found.offset < through) {
            if let Ok((Record::Message(message), _)) = Record::parse_known(job.scratch.bytes_of(found)) {
                each(found.offset, &message);
            }
        }
        self.unpin(job);
        Fetched { through, retry: moved.is_some(), error }
    }

    /// Takes what a [`Log::fetch_chunk`] brought; `each` gets the chunk, or `None` when it is lost.
    pub fn chunk_done(&mut self, done: FetchDone, each: impl FnOnce(Option<&[u8]>)) -> Fetched {
        let FetchDone { job, error } = done;
        self.has_refused_reads |= error.is_some();
        let found = job.scratch.found.first().map(|found| job.scratch.bytes_of(found));
        let mut retry = false;
        match found.and_then(|bytes| Record::parse_known(bytes).ok()) {
            Some((Record::Chunk { bytes, .. }, _)) => each(Some(bytes)),
            _ => {
                if let Source::Chunk(place, body, index) = job.source {
                    retry = self.index.place_of_chunk(body, index).is_some_and(|now| now != place);
                }
                each(None);
            }
        }
        self.unpin(job);
        Fetched { through: 0, retry, error }
    }

    /// The first wanted offset that was not found where it was and is elsewhere now.
    fn first_moved(&self, job: &FetchJob) -> Option<u64> {
        let queue = self.index.queues().get(&job.queue)?;
        let mut found = job.scratch.found.iter().map(|found| found.offset).peekable();
        for range in &job.scratch.wanted {
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

    fn unpin(&mut self, job: FetchJob) {
        self.reading.pins.set_read(None);
        if self.space.slots.get(job.slot) == Slot::Pinned && !self.reading.pins.has(job.slot) {
            self.space.slots.release(job.slot);
        }
        self.reading.spare = Some(job.scratch.reset());
    }

    /// What a copy is made of: everything durable at this moment. `None` while a commit is on its way; ask
    /// again when it is done. Ends a hold before it.
    pub fn pin_for_backup(&mut self) -> Option<Vec<PinnedFile>> {
        if self.in_flight.is_some() || self.failed || self.schedule.is_starting() {
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

    /// Whether what was held is still as it was.
    pub const fn is_pinned_for_backup(&self) -> bool {
        self.reading.pins.is_copying()
    }

    /// The files may be used again.
    pub fn release_backup_pin(&mut self) {
        for slot in self.reading.pins.take_copied() {
            if self.space.slots.get(slot) == Slot::Pinned && !self.reading.pins.has(slot) {
                self.space.slots.release(slot);
            }
        }
    }

    /// Gives a hold up when it takes room that somebody needs.
    pub(super) fn yield_backup_pin(&mut self) {
        if self.is_pinned_for_backup() && self.space.is_short() {
            log::warn!("the disk is nearly full: a backup under way is given up to make room");
            self.release_backup_pin();
        }
    }
}

impl Scratch {
    fn note(&mut self, noted: &[u8]) {
        self.noted.clear();
        self.noted.extend_from_slice(noted);
    }

    pub(super) fn bytes_of(&self, found: &FetchedMessage) -> &[u8] {
        &self.bytes[found.at as usize..][..found.bytes as usize]
    }
}

// Files that are read or copied now, and so must not be used again although their segments may have left.
//
// Why files are held still for a copy: it is a store only if none of them is used again before it is copied. What is
// durable at one moment lies in the live segments, in the active one up to its tail; those files are not given to new
// segments until the copy is done, though they may leave the log meanwhile.
//
// Always true: one file at most is read, for there is one buffer to read into; a copy never costs anybody a confirm:
// when room gets short it is given up, and whoever copies is told so.

/// A file to be copied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PinnedFile {
    /// Its number.
    pub slot: u32,
    /// So many bytes of it, from its start; what lies behind them is zeros in the copy.
    pub bytes: u32,
    /// The file's length in bytes.
    pub length: u32,
}

/// Slots that somebody needs as they are.
#[derive(Debug, Default)]
pub(super) struct Pins {
    read: Option<u32>,
    copied: Vec<u32>,
}

impl Pins {
    /// Whether the slot's file is to stay as it is.
    pub(super) fn has(&self, slot: u32) -> bool {
        self.read == Some(slot) || self.copied.contains(&slot)
    }

    /// This file is read, or none any more.
    pub(super) const fn set_read(&mut self, slot: Option<u32>) {
        self.read = slot;
    }

    /// These files are copied.
    pub(super) fn set_copied(&mut self, slots: impl Iterator<Item = u32>) {
        self.copied.clear();
        self.copied.extend(slots);
    }

    /// Whether files are copied.
    pub(super) const fn is_copying(&self) -> bool {
        !self.copied.is_empty()
    }

    /// No file is copied any more; those that were.
    pub(super) fn take_copied(&mut self) -> Vec<u32> {
        core::mem::take(&mut self.copied)
    }
}
