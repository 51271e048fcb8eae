//! The log as the loop's thread sees it: facts go in, jobs come out, results go in, "durable" comes out.
//!
//! ```text
//! append, settle → gathered (memory) → next_commit → CommitJob ~ helper ~ CommitDone → commit_done → Durable
//! ```
//!
//! Always true: at most one commit is on its way; what is gathered keeps its order; the index changes only
//! by what is durable; a failure is final: nothing more is handed out and nothing becomes durable.

use core::fmt;
use std::io;

use foldhash::fast::FixedState;
use hashbrown::HashMap;
use leveret_core::journal::Urgency;
use leveret_core::limits::{Megabytes, SEGMENTS_MIN};
use leveret_core::time::{Deadline, Now};

use super::access::AccessState;
use super::commit::{BLOCK_BYTES, padded};
use super::commit_builder::{ActiveSegment, Gathering};
use super::commit_schedule::Schedule;
use super::compaction::Cleaner;
use super::footer::Footer;
use super::index::Index;
use super::jobs::CommitJob;
use super::queue_names::Footers;
use super::read_back::Pins;
use super::read_back::Scratch;
use super::record::{self, Message, Range, Ranges, Record};
use super::segment::Identity;
use super::segment::SegmentRef;
use super::settled::RangeSet;
use super::space::Space;
use super::space::{Slot, Slots};

/// Why something is not appended now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// The commit that gathers is full; ask again when the next one has been handed out.
    Gathering,
    /// `disk_limit` is reached; ask again when segments have become free.
    Disk,
    /// It fits into no commit.
    TooLarge,
}

/// The store's disk failed; the process must end. Carries what the system said.
#[derive(Debug)]
pub struct Failed(pub io::Error);

/// A commit on its way.
#[derive(Debug)]
pub(super) struct InFlight {
    pub(super) position: Position,
    pub(super) at: u32,
    /// Where in its bytes the gathered settlements begin.
    pub(super) settled_from: usize,
    pub(super) opens: Option<(SegmentRef, u32)>,
    /// The segment that it seals, 0 for none.
    pub(super) seals: u64,
    /// Queues whose settlements are completely written again with this commit, and since which segment.
    pub(super) carried: Vec<(u64, u64)>,
    /// The segments that it says have left.
    pub(super) drained: Vec<u64>,
    /// The commit itself, while it waits for room on the file system.
    pub(super) postponed: Option<CommitJob>,
}

/// Who writes, and how far this life of the store has come: what heads of segments and commits say.
#[derive(Debug)]
pub(super) struct Writer {
    pub(super) identity: Identity,
    /// Which start of the broker this is, from 1.
    pub(super) life: u32,
    /// The number of the newest commit, over all lives.
    pub(super) number: u64,
    /// Broker time when this life began, in milliseconds.
    pub(super) time_base_ms: u64,
    /// How many commits before it the next one repeats.
    pub(super) covers: u32,
}

/// What is kept for whoever reads messages back, or copies the files.
#[derive(Debug)]
pub(super) struct Reading {
    /// The buffers for the next fetch.
    pub(super) spare: Option<Scratch>,
    pub(super) pins: Pins,
}

/// The log.
#[derive(Debug)]
pub struct Log {
    pub(super) settings: Settings,
    pub(super) writer: Writer,
    pub(super) index: Index,
    /// The files, and who may use the last of them.
    pub(super) space: Space,
    pub(super) gathering: Gathering,
    /// Settlements that wait beside what gathers.
    pub(super) settling: Settling,
    pub(super) durable: Position,
    pub(super) in_flight: Option<InFlight>,
    pub(super) schedule: Schedule,
    pub(super) cleaner: Cleaner,
    pub(super) reading: Reading,
    pub(super) counters: Counters,
    pub(super) failed: bool,
    /// This start could not read all of it.
    pub(super) is_damaged: bool,
    /// Files of which this start could not read some blocks: their segments stay in the log, for a later start may read them.
    pub(super) refused_files: Vec<u32>,
    /// Since this start the disk has refused to read something.
    pub(super) has_refused_reads: bool,
    pub(super) access: AccessState,
}

/// What a log starts from.
pub(super) struct Start {
    pub(super) settings: Settings,
    pub(super) writer: Writer,
    pub(super) index: Index,
    pub(super) slots: Vec<Slot>,
    /// Those of the log that are shorter than a segment, or gone.
    pub(super) cut: Vec<u32>,
    pub(super) active: SegmentRef,
    pub(super) had_access: bool,
    pub(super) tail: u32,
    pub(super) sequence_max: u64,
    pub(super) written_before: u64,
    pub(super) footer: Footer,
    /// Records of the last accepted commit, to be written again.
    pub(super) again: Vec<u8>,
    pub(super) again_records: u32,
}

impl Log {
    pub(super) fn start(start: Start) -> Self {
        let settings = start.settings;
        let commit_bytes = (settings.commit_bytes as usize).max(padded(start.again.len() + BLOCK_BYTES));
        let slots = Slots::new(&start.slots, settings.segments_max, start.active.slot, start.cut);
        let active = ActiveSegment::new(
            (start.active, settings.segment_bytes),
            (start.tail, start.footer),
            start.sequence_max,
        );
        Self {
            writer: start.writer,
            space: Space::new(&settings, slots, active, &start.index),
            index: start.index,
            gathering: Gathering::new(commit_bytes, &start.again, start.again_records),
            settling: Settling::default(),
            durable: Position(0),
            in_flight: None,
            schedule: Schedule::new(&settings),
            cleaner: Cleaner::new(settings.commit_bytes as usize),
            reading: Reading { spare: Some(Scratch::new(settings.segment_bytes)), pins: Pins::default() },
            counters: Counters { written_before: start.written_before, ..Counters::default() },
            failed: false,
            is_damaged: false,
            refused_files: Vec::new(),
            has_refused_reads: false,
            access: AccessState::new(start.had_access),
            settings,
        }
    }

    /// Broker time in milliseconds: time added up over all lives.
    pub const fn time_ms(&self, now: Now) -> u64 {
        self.writer.time_base_ms + now.as_ms()
    }

    /// Everything up to this is durable.
    pub const fn durable(&self) -> Position {
        self.durable
    }

    /// What the log holds, as far as it is durable.
    pub const fn index(&self) -> &Index {
        &self.index
    }

    /// An id for the chunks of a large body.
    pub const fn take_body_id(&mut self) -> u64 {
        self.index.take_body_id()
    }

    /// What tells this store from others; may be shown and sent.
    pub const fn id(&self) -> [u8; 16] {
        self.writer.identity.id
    }

    /// This start's number, from 1.
    pub const fn life(&self) -> u32 {
        self.writer.life
    }

    /// The store's identity.
    pub const fn identity(&self) -> &Identity {
        &self.writer.identity
    }

    /// Whether this start could not read all of it.
    pub const fn is_damaged(&self) -> bool {
        self.is_damaged
    }

    /// Whether the disk has refused to read something since this start.
    pub const fn has_refused_reads(&self) -> bool {
        self.has_refused_reads
    }

    /// The footers of its segments, for whoever looks names and definitions up in them.
    pub(super) fn footers(&self) -> Footers<'_> {
        let (segment_bytes, seed) = (self.settings.segment_bytes, self.writer.identity.seed());
        Footers { index: &self.index, segment_bytes, seed }
    }

    /// Returns the number of awaited commits that waited for the sync budget, since the start, and when the last of
    /// them was handed out.
    pub const fn over_budget(&self) -> (u64, Now) {
        self.schedule.over_budget()
    }

    /// The files, and how much may be written to them.
    pub const fn space(&self) -> &Space {
        &self.space
    }

    /// Counters since start.
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    /// Bytes that all lives of the store wrote to the disk, zeros that prepare files included. What was
    /// written behind a kill to other files than the newest is not in it.
    pub const fn written_ever(&self) -> u64 {
        let Counters { written_before, bytes_written, bytes_zeroed, .. } = self.counters;
        written_before.saturating_add(bytes_written + bytes_zeroed)
    }

    /// Appends a message, a chunk, a definition or a mark to what gathers.
    ///
    /// # Errors
    /// There is no room now; nothing was changed.
    pub fn append(&mut self, record: &Record<'_>, urgency: Urgency, now: Now) -> Result<Position, Refused> {
        self.admit(record.bytes_max())?;
        let bytes = self.gathering.add(record);
        self.gathering.note_fresh(bytes);
        if let Record::Message(message) = record {
            self.count_payload(
                message,
                if let record::Body::Inline(body) = message.body { body.len() } else { 0 },
            );
        } else if let Record::Chunk { bytes, .. } = record {
            self.counters.payload_bytes += bytes.len() as u64;
        }
        Ok(self.note_appended(urgency, now))
    }

    /// Appends a message whose inline body `fill` copies into place; `message.body` is not looked at.
    ///
    /// # Errors
    /// There is no room now; nothing was changed.
    pub fn append_message(
        &mut self,
        message: &Message<'_>,
        body_bytes: usize,
        urgency: Urgency,
        now: Now,
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<Position, Refused> {
        let message = Message { body: record::Body::Inline(&[]), ..*message };
        self.admit(Record::Message(message).bytes_max() + body_bytes)?;
        let bytes = self.gathering.add_with(|out| record::encode_message(&message, body_bytes, out, fill));
        self.gathering.note_fresh(bytes);
        self.count_payload(&message, body_bytes);
        Ok(self.note_appended(urgency, now))
    }

    /// Appends a fact that must find room even at the disk limit: what is deleted, what is marked.
    ///
    /// # Errors
    /// The commit that gathers is full; nothing was changed.
    pub fn append_reserved(
        &mut self,
        record: &Record<'_>,
        urgency: Urgency,
        now: Now,
    ) -> Result<Position, Refused> {
        self.admit_to_commit(record.bytes_max())?;
        if !self.access.note(record, &mut self.gathering) {
            return Ok(self.note_appended(urgency, now));
        }
        self.gathering.add(record);
        if let Record::Gone { .. } = record {
            self.gathering.note_frees();
        }
        Ok(self.note_appended(urgency, now))
    }

    /// Appends a part of a group: a chunk with the records that `fill` puts there, in so many bytes; `false`
    /// when it puts none, or the disk has no room now.
    pub(super) fn append_part(
        &mut self,
        body: u64,
        index: u32,
        now: Now,
        fill: impl FnOnce(&mut Vec<u8>, usize),
    ) -> bool {
        let taken = self.gathering.len() + self.space.settle_share() + record::RECORD_OVERHEAD_BYTES_MAX;
        let room = self.space.gather_bytes_max().saturating_sub(taken);
        if !self.space.has_disk_room(padded(taken + room)) {
            return false;
        }
        let mut bytes = 0;
        self.gathering.add_with(|out| bytes = record::encode_part(body, index, out, |out| fill(out, room)));
        if bytes == 0 {
            // What gathers is in its way.
            self.hurry();
            return false;
        }
        self.counters.payload_bytes += bytes as u64;
        self.note_appended(Urgency::Awaited, now);
        true
    }

    /// Appends settlements (rising, apart) to what gathers, without remembering them; `false` when they are
    /// better remembered ([`Log::settle`]), because room is scarce and they may merge with others.
    pub fn append_settled(&mut self, queue: u64, ranges: &[Range], now: Now) -> bool {
        let record = Record::Settled { queue, ranges: Ranges::List(ranges) };
        let is_scarce = self.space.is_short() || !self.settling.is_empty();
        if is_scarce || !self.has_room(record.bytes_max()) {
            return false;
        }
        self.gathering.add(&record);
        self.note_appended(Urgency::Lazy, now);
        true
    }

    /// Notes that offsets of a queue are done with. Always taken; written with one of the next commits.
    pub fn settle(&mut self, queue: u64, range: Range, urgency: Urgency, now: Now) -> Position {
        if range.is_empty() {
            return self.gathering.appended;
        }
        let (is_short, index) = (self.space.is_short(), &mut self.index);
        self.settling.insert(queue, range, self.gathering.appended, |fresh| {
            if is_short {
                index.note_pending(queue, fresh);
            }
        });
        self.note_appended(urgency, now)
    }

    /// Forgets chunks whose message will never be appended.
    pub fn drop_body(&mut self, body: u64) {
        self.index.drop_body_on_its_way(body, self.gathering.appended);
    }

    fn count_payload(&mut self, message: &Message<'_>, body_bytes: usize) {
        self.counters.payload_bytes += (message.key.len() + message.properties.len() + body_bytes) as u64;
    }

    pub(super) fn note_appended(&mut self, urgency: Urgency, now: Now) -> Position {
        self.cleaner.reckoning.note_said();
        self.gathering.appended.0 += 1;
        self.note(urgency, now);
        self.gathering.appended
    }

    /// Room for `bytes` in the commit that gathers, a share for settlements left free.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        self.gathering.len() + bytes + self.space.settle_share() <= self.space.gather_bytes_max()
    }

    /// Whether records of so many bytes are taken now.
    pub(super) fn admit(&mut self, bytes: usize) -> Result<(), Refused> {
        self.admit_to_commit(bytes)?;
        let commit = padded(self.gathering.len() + bytes + self.space.settle_share());
        if self.space.has_disk_room(commit) { Ok(()) } else { Err(Refused::Disk) }
    }

    #[inline]
    fn admit_to_commit(&mut self, bytes: usize) -> Result<(), Refused> {
        if bytes > self.space.record_bytes_max() {
            return Err(Refused::TooLarge);
        }
        if !self.has_room(bytes) {
            // What gathers should not wait for its window when others wait for it.
            self.hurry();
            return Err(Refused::Gathering);
        }
        Ok(())
    }

    /// Whether nothing can be written any more.
    pub const fn has_failed(&self) -> bool {
        self.failed
    }

    /// Whether a commit is on its way.
    pub const fn is_busy(&self) -> bool {
        self.in_flight.is_some()
    }

    /// Whether a commit waits for room; it is on its way nevertheless.
    pub fn is_postponed(&self) -> bool {
        self.in_flight.as_ref().is_some_and(|commit| commit.postponed.is_some())
    }

    /// Whether settlements wait that had no room in the last commit.
    pub fn has_settlements(&self) -> bool {
        !self.settling.is_empty()
    }

    /// Whether there is something for the next commit but settlements.
    pub(super) fn has_gathered(&self) -> bool {
        self.gathering.records() > 0 || self.access.is_due()
    }

    /// Puts the gathered settlements behind the gathered records, as many as fit; tells up to where
    /// everything is in the commit.
    pub(super) fn gather_settlements(&mut self, end: usize) -> Position {
        let gathering = &mut self.gathering;
        self.settling.drain(|queue, ranges| {
            let count = record::ranges_fitting(ranges, end.saturating_sub(gathering.len()));
            if count > 0 {
                gathering.add(&Record::Settled { queue, ranges: Ranges::List(&ranges[..count]) });
            }
            count
        });
        self.settling.said_through(self.gathering.appended)
    }

    pub(super) fn fail(&mut self, error: io::Error) -> Failed {
        self.failed = true;
        Failed(error)
    }

    /// Makes the next commit due at once, for a clean stop.
    pub fn flush(&mut self, now: Now) {
        if !self.is_idle() {
            self.schedule.set_due(now);
        }
    }

    /// Whether nothing is gathered and nothing is on its way.
    pub fn is_idle(&self) -> bool {
        self.in_flight.is_none() && !self.has_gathered() && self.settling.is_empty()
    }

    /// When [`Log::next_commit`] should be asked again if nothing else happens.
    pub fn deadline(&self) -> Deadline {
        if self.in_flight.is_some() || self.failed { Deadline::NEVER } else { self.schedule.due_at() }
    }

    /// Something of this urgency waits elsewhere to be appended when the next commit is made.
    pub fn note(&mut self, urgency: Urgency, now: Now) {
        self.schedule.note(urgency, now);
    }

    /// When the log should say how late it is, for those who wait for that over restarts.
    pub const fn time_deadline(&self) -> Deadline {
        self.schedule.time_deadline()
    }

    /// Nothing waits after all.
    pub const fn rest(&mut self) {
        self.schedule.rest();
    }

    /// Nothing may gather for long: the cleaner waits for room.
    pub(super) const fn hurry(&mut self) {
        self.schedule.hurry();
    }

    /// Segments that the cleaner has given up, for some of what is live in them cannot be read.
    pub fn segments_stuck(&self) -> usize {
        self.index.stuck()
    }

    /// How many bytes the index took when it became full, once each time.
    pub const fn take_index_overflow(&mut self) -> Option<usize> {
        self.space.weight.take_overflow()
    }

    /// When a full file system is to be asked for room again.
    pub fn ask_deadline(&self) -> Deadline {
        if self.failed { Deadline::NEVER } else { self.space.ask_deadline() }
    }
}

// Where a record lies, and where something stands in the order of everything appended.

/// Where a record lies.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Place {
    /// The segment's sequence.
    pub segment: u64,
    /// Its first byte in the segment.
    pub at: u32,
    /// Its length in bytes.
    pub bytes: u32,
}

/// A place in the order of everything appended; durable when [`Log::durable`] has reached it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Position(pub u64);

// How a store behaves: sizes, limits and windows.
//
// Always true: the largest commit is at most a third of a segment.

/// How a store behaves. Sizes hold for a new store; an old one keeps its segment size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Bytes of a segment: a multiple of 4 KiB, from 64 KiB; best a multiple of the card's erase block.
    pub segment_bytes: u32,
    /// The largest commit in bytes, a multiple of 4 KiB: at least 4 KiB, at most a third of a segment.
    pub commit_bytes: u32,
    /// `disk_limit` in segments of `segment_bytes`, at least 4.
    pub segments_max: u32,
    /// The most memory that the index may take, in bytes: what is above it is not written any more.
    pub index_bytes: usize,
    /// The memory that definitions and empty queues may take beside that, in bytes.
    pub standing_bytes: usize,
    /// How long persistent messages that nobody awaits may gather, in milliseconds.
    pub commit_window_ms: u64,
    /// How long awaited ones gather once the sync budget is used up, in milliseconds.
    pub confirm_window_ms: u64,
    /// How long settlements alone may gather, in milliseconds.
    pub settle_window_ms: u64,
    /// Syncs a second that the card may do for ever; 0 is without limit.
    pub syncs_per_s: u32,
    /// Syncs that may be done at once after a rest.
    pub sync_burst: u32,
    /// Where there is no store, a new one is begun.
    pub may_begin: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            segment_bytes: 4 << 20,
            commit_bytes: 512 << 10,
            segments_max: 64,
            index_bytes: 2 << 20,
            standing_bytes: 2 << 20,
            commit_window_ms: 1_000,
            confirm_window_ms: 50,
            settle_window_ms: 5_000,
            syncs_per_s: 0,
            sync_burst: 200,
            may_begin: true,
        }
    }
}

impl Settings {
    /// The same for a store whose segments are of another size: its limit is one of bytes.
    pub(super) fn with_segments_of(self, segment_bytes: u32) -> Self {
        if segment_bytes == self.segment_bytes {
            return self;
        }
        let limit = u64::from(self.segments_max) * u64::from(self.segment_bytes);
        let segments = (limit / u64::from(segment_bytes)).max(SEGMENTS_MIN);
        Self {
            segment_bytes,
            segments_max: u32::try_from(segments).unwrap_or(u32::MAX),
            commit_bytes: self.commit_bytes.min(segment_bytes / 3 / BLOCK_BYTES as u32 * BLOCK_BYTES as u32),
            ..self
        }
    }
}

// What the store has done since the process began, for whoever watches over a card.
//
// Always true: counts only rise; "for messages" is what commits, headers and footers wrote, copies of the
// cleaner included, and zeros that prepare a segment are counted apart.

/// Powers of two of microseconds that sync times are counted by: the last holds all above 4 seconds.
const BUCKETS: usize = 24;

/// Counters since start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Commits handed out.
    pub commits: u64,
    /// Syncs asked of the disk.
    pub syncs: u64,
    /// Bytes written by commits, headers and footers.
    pub bytes_written: u64,
    /// Bytes of key, properties and body of messages appended.
    pub payload_bytes: u64,
    /// Bytes of records copied forward.
    pub bytes_copied: u64,
    /// Bytes of definitions copied so that they lie twice.
    pub bytes_doubled: u64,
    /// Bytes read to copy them.
    pub bytes_read_to_copy: u64,
    /// Bytes of zeros written to prepare segments.
    pub bytes_zeroed: u64,
    /// Bytes that the lives before this one wrote, zeros too.
    pub written_before: u64,
    /// Segments whose file is used again.
    pub segments_recycled: u64,
}

/// How long commits took on the disk: a histogram by powers of two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SyncTimes {
    buckets: [u64; BUCKETS],
}

impl SyncTimes {
    /// Counts one that took so many microseconds.
    pub fn add(&mut self, took_us: u64) {
        let bucket = (u64::BITS - took_us.leading_zeros()) as usize;
        self.buckets[bucket.min(BUCKETS - 1)] += 1;
    }

    /// How many took less than each power of two of microseconds, from 1 on.
    pub const fn buckets(&self) -> &[u64; BUCKETS] {
        &self.buckets
    }

    /// A time in microseconds that so many per mille did not exceed, rounded up to a power of two.
    pub fn quantile_us(&self, per_mille: u64) -> u64 {
        let all: u64 = self.buckets.iter().sum();
        let mut left = (all * per_mille).div_ceil(1000);
        for (bucket, count) in self.buckets.iter().enumerate() {
            if left <= *count {
                return 1 << bucket;
            }
            left -= count;
        }
        1 << BUCKETS
    }
}

impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} commits, {} syncs, {} written for {} of messages",
            self.commits,
            self.syncs,
            Megabytes(self.bytes_written),
            Megabytes(self.payload_bytes)
        )?;
        if self.payload_bytes > 0 {
            let ratio = self.bytes_written as f64 / self.payload_bytes as f64;
            write!(f, " ({ratio:.3} bytes a byte)")?;
        }
        write!(
            f,
            "; {} of it copied by the cleaner; {} of zeros; {} segments used again",
            Megabytes(self.bytes_copied),
            Megabytes(self.bytes_zeroed),
            self.segments_recycled
        )
    }
}

#[cfg(test)]
mod counters_tests {
    use super::*;

    #[test]
    fn quantiles_are_upper_bounds() {
        let mut times = SyncTimes::default();
        for took_us in [3, 100, 100, 100, 100, 100, 100, 100, 100, 5_000] {
            times.add(took_us);
        }
        assert_eq!([0, 100, 500, 900, 1000].map(|at| times.quantile_us(at)), [1, 4, 128, 128, 8192]);
        times.add(u64::MAX);
        assert_eq!(times.buckets()[BUCKETS - 1], 1);
    }

    #[test]
    fn the_ratio_is_told_when_there_is_one() {
        let none = Counters::default().to_string();
        assert!(!none.contains("a byte"), "{none}");
        let some = Counters { bytes_written: 1_100, payload_bytes: 1_000, ..Counters::default() };
        assert!(some.to_string().contains("(1.100 bytes a byte)"), "{some}");
    }
}

// Settlements that wait for a commit: a set of offsets for each queue, in the order of the queues' first.
//
// Always true: a queue is listed when its set is not empty; what was taken once is kept for the next, so
// steady traffic allocates nothing.

/// Ranges that an emptied set keeps room for, and all of them together.
const RANGES_KEPT: usize = 256;
const SPARE_RANGES_MAX: usize = 2048;

/// Settlements that wait to be written together.
#[derive(Debug, Default)]
pub(super) struct Settling {
    order: Vec<u64>,
    sets: HashMap<u64, RangeSet, FixedState>,
    /// What was appended when the first of them came.
    first: Position,
    spare: Vec<RangeSet>,
    /// Bytes that those in `spare` keep.
    spare_bytes: usize,
}

impl Settling {
    pub(super) const fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Adds offsets of a queue, when so much was appended; calls `fresh` with those that were not waiting already.
    pub(super) fn insert(&mut self, queue: u64, range: Range, appended: Position, fresh: impl FnMut(Range)) {
        if self.is_empty() {
            self.first = appended;
        }
        let (order, spare, spare_bytes) = (&mut self.order, &mut self.spare, &mut self.spare_bytes);
        let set = self.sets.entry(queue).or_insert_with(|| {
            order.push(queue);
            let set = spare.pop().unwrap_or_default();
            *spare_bytes -= set.heap_bytes();
            set
        });
        set.insert(range, fresh);
    }

    /// Up to where everything was said, when `appended` is all: up to the first that waits.
    pub(super) fn said_through(&self, appended: Position) -> Position {
        if self.is_empty() { appended } else { self.first }
    }

    /// All of it, queue by queue.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &[Range])> {
        self.order.iter().filter_map(|queue| Some((*queue, self.sets.get(queue)?.ranges())))
    }

    /// Hands over queue by queue; `take` says how many of the ranges it took. Ends with the first queue of
    /// which something is left.
    pub(super) fn drain(&mut self, mut take: impl FnMut(u64, &[Range]) -> usize) {
        let mut done = 0;
        for &queue in &self.order {
            let Some(set) = self.sets.get_mut(&queue) else { continue };
            set.drop_first(take(queue, set.ranges()));
            if !set.is_empty() {
                break;
            }
            done += 1;
            if let Some(mut set) = self.sets.remove(&queue) {
                let room = (SPARE_RANGES_MAX * size_of::<Range>()).saturating_sub(self.spare_bytes);
                set.shrink_to(RANGES_KEPT.min(room / size_of::<Range>()));
                self.spare_bytes += set.heap_bytes();
                self.spare.push(set);
            }
        }
        self.order.drain(..done);
    }
}
