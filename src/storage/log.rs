//! The interface of the append log for the event loop: append entries, get commit jobs for a helper thread, and pass in
//! their results.
//!
//! ```text
//! append, settle → pending commit (memory) → next_commit → CommitJob ~ helper ~ CommitDone → commit_done → durable
//! ```
//!
//! The file also holds the types that describe a store from outside: [`Settings`], [`Counters`], [`RecordLocation`]
//! and [`LogPosition`].
//!
//! # Invariants
//! - At most one commit is in flight.
//! - Records keep the order in which they were appended.
//! - The index changes only when a commit is durable.
//! - A disk failure is final: no more jobs are handed out, and nothing more becomes durable.

use core::fmt;
use std::io;

use crate::pending_writes::Urgency;
use foldhash::fast::FixedState;
use hashbrown::HashMap;
use leveret_core::limits::{Megabytes, SEGMENTS_MIN};
use leveret_core::time::{Deadline, Now};

use super::access::AccessState;
use super::commit::{BLOCK_BYTES, padded};
use super::commit_builder::{ActiveSegment, PendingCommit};
use super::commit_schedule::Schedule;
use super::compaction::Compactor;
use super::disk_jobs::CommitJob;
use super::footer::Footer;
use super::index::Index;
use super::queue_names::FooterView;
use super::read_back::FetchBuffers;
use super::read_back::Pins;
use super::record::{self, Message, Range, Ranges, Record};
use super::segment::Identity;
use super::segment::SegmentRef;
use super::settled::RangeSet;
use super::space::Space;
use super::space::{SlotUse, Slots};

/// The reason why a record cannot be appended now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AppendRefused {
    /// The pending commit is full. Retry after the next call of [`Log::next_commit`] that returns a job.
    CommitFull,
    /// `disk_limit` is reached. Retry after segments have become free.
    Disk,
    /// The record is larger than any commit can hold.
    TooLarge,
}

/// The disk has failed, and the process must end. Contains the error of the operating system.
#[derive(Debug)]
pub struct Failed(pub io::Error);

/// The commit whose job was returned by [`Log::next_commit`] and is not done yet.
#[derive(Debug)]
pub(super) struct InFlight {
    /// The log is durable up to this position when the commit is.
    pub(super) position: LogPosition,
    /// Offset in the commit's bytes at which the settlements begin.
    pub(super) settled_from: usize,
    /// Sequence number of the segment that this commit seals; 0 if there is none.
    pub(super) seals: u64,
    /// Queues whose settlements have all been written again with this commit, each with the segment in which that
    /// began.
    pub(super) rewritten: Vec<(u64, u64)>,
    /// Segments that this commit removes from the log.
    pub(super) drained: Vec<u64>,
    /// The job, if the file system had no space for it; it is returned again later.
    pub(super) postponed: Option<CommitJob>,
}

/// The values of this broker's run that are written to the headers of segments and commits.
#[derive(Debug)]
pub(super) struct WriterState {
    pub(super) identity: Identity,
    /// The current epoch, from 1.
    pub(super) epoch: u32,
    /// Number of the newest commit, counted over all epochs.
    pub(super) number: u64,
    /// Broker time at the start of this epoch, in milliseconds.
    pub(super) time_base_ms: u64,
    /// Number of preceding commits that the next commit repeats.
    pub(super) repeats: u32,
}

/// State for reading messages back and for copying the segment files.
#[derive(Debug)]
pub(super) struct ReadState {
    /// The buffers for the next fetch.
    pub(super) spare: Option<FetchBuffers>,
    pub(super) pins: Pins,
}

/// The log.
#[derive(Debug)]
pub struct Log {
    pub(super) settings: Settings,
    pub(super) writer: WriterState,
    pub(super) index: Index,
    /// The segment files and the space in them.
    pub(super) space: Space,
    pub(super) pending: PendingCommit,
    /// Settlements that are not written yet. They are encoded only when a commit is built.
    pub(super) settlements: PendingSettlements,
    pub(super) durable: LogPosition,
    pub(super) in_flight: Option<InFlight>,
    pub(super) schedule: Schedule,
    pub(super) compactor: Compactor,
    pub(super) reading: ReadState,
    pub(super) counters: Counters,
    pub(super) failed: bool,
    /// Whether recovery at this start could not read the whole log.
    pub(super) is_damaged: bool,
    /// Files with blocks that this start could not read. Their segments stay in the log, because a later
    /// start may be able to read them.
    pub(super) refused_files: Vec<u32>,
    /// Whether the disk has refused a read since this start.
    pub(super) has_refused_reads: bool,
    pub(super) access: AccessState,
}

/// The recovered state with which a log is started.
pub(super) struct RecoveredState {
    pub(super) settings: Settings,
    pub(super) writer: WriterState,
    pub(super) index: Index,
    pub(super) slots: Vec<SlotUse>,
    /// Live segment files that are missing or shorter than a segment.
    pub(super) cut: Vec<u32>,
    pub(super) active: SegmentRef,
    /// Whether a segment header says that the log has access definitions.
    pub(super) had_access: bool,
    pub(super) tail: u32,
    pub(super) sequence_max: u64,
    pub(super) written_before: u64,
    pub(super) footer: Footer,
    /// Records of the last accepted commit, which are written again.
    pub(super) repeated_bytes: Vec<u8>,
    pub(super) repeated_count: u32,
}

impl Log {
    /// Creates a log from the recovered state.
    pub(super) fn start(start: RecoveredState) -> Self {
        let settings = start.settings;
        let commit_bytes =
            (settings.commit_bytes as usize).max(padded(start.repeated_bytes.len() + BLOCK_BYTES));
        let slots = Slots::new(&start.slots, settings.segments_max, start.active.slot, start.cut);
        let footer = start.footer.with_room(settings.segment_bytes, settings.commit_bytes);
        let active =
            ActiveSegment::new(start.active, settings.segment_bytes, start.tail, footer, start.sequence_max);
        Self {
            writer: start.writer,
            space: Space::new(&settings, slots, active, &start.index),
            index: start.index,
            pending: PendingCommit::new(commit_bytes, &start.repeated_bytes, start.repeated_count),
            settlements: PendingSettlements::default(),
            durable: LogPosition(0),
            in_flight: None,
            schedule: Schedule::new(&settings),
            compactor: Compactor::new(settings.commit_bytes as usize),
            reading: ReadState {
                spare: Some(FetchBuffers::new(settings.segment_bytes)),
                pins: Pins::default(),
            },
            counters: Counters { written_before: start.written_before, ..Counters::default() },
            failed: false,
            is_damaged: false,
            refused_files: Vec::new(),
            has_refused_reads: false,
            access: AccessState::new(start.had_access),
            settings,
        }
    }

    /// Returns the broker time in milliseconds, accumulated over all epochs.
    pub const fn time_ms(&self, now: Now) -> u64 {
        self.writer.time_base_ms + now.as_ms()
    }

    /// Returns the position up to which everything is durable.
    pub const fn durable(&self) -> LogPosition {
        self.durable
    }

    /// Returns the index of everything that is durable.
    pub const fn index(&self) -> &Index {
        &self.index
    }

    /// Returns a new id for the chunks of a large body.
    pub const fn take_body_id(&mut self) -> u64 {
        self.index.take_body_id()
    }

    /// Returns the id of this store. It is not secret.
    pub const fn id(&self) -> [u8; 16] {
        self.writer.identity.id
    }

    /// Returns the number of the current epoch, from 1.
    pub const fn epoch(&self) -> u32 {
        self.writer.epoch
    }

    /// Returns the store's identity, including its secret.
    pub const fn identity(&self) -> &Identity {
        &self.writer.identity
    }

    /// Returns whether recovery at this start could not read the whole log.
    pub const fn is_damaged(&self) -> bool {
        self.is_damaged
    }

    /// Returns whether the disk has refused a read since this start.
    pub const fn has_refused_reads(&self) -> bool {
        self.has_refused_reads
    }

    /// Returns a view of the segment footers, in which names and definitions can be looked up.
    pub(super) fn footers(&self) -> FooterView<'_> {
        let (segment_bytes, seed) = (self.settings.segment_bytes, self.writer.identity.seed());
        FooterView { index: &self.index, segment_bytes, seed }
    }

    /// Returns how many commits since the start were delayed by the sync budget while a client waited for them, and
    /// when the last of them was handed out.
    pub const fn delayed_by_budget(&self) -> (u64, Now) {
        self.schedule.delayed_by_budget
    }

    /// Returns the segment files and the space in them.
    pub const fn space(&self) -> &Space {
        &self.space
    }

    /// Returns the counters since the start.
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    /// Returns the bytes written to the disk in all epochs, including the zeros that prepare files. Writes
    /// made shortly before a kill are missing, except those to the newest segment.
    pub const fn bytes_written_total(&self) -> u64 {
        let Counters { written_before, bytes_written, bytes_zeroed, .. } = self.counters;
        written_before.saturating_add(bytes_written + bytes_zeroed)
    }

    /// Appends a message, a chunk, a definition or a watermark to the pending commit.
    ///
    /// # Errors
    /// Returns the reason when the record cannot be appended now; nothing was changed.
    pub fn append(
        &mut self,
        record: &Record<'_>,
        urgency: Urgency,
        now: Now,
    ) -> Result<LogPosition, AppendRefused> {
        self.admit(record.bytes_max())?;
        let bytes = self.pending.add(record);
        self.pending.fresh_bytes += bytes;
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

    /// Appends a message whose inline body `fill` writes in place; `message.body` is ignored.
    ///
    /// # Errors
    /// Returns the reason when the message cannot be appended now; nothing was changed.
    pub fn append_message(
        &mut self,
        message: &Message<'_>,
        body_bytes: usize,
        urgency: Urgency,
        now: Now,
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<LogPosition, AppendRefused> {
        let message = Message { body: record::Body::Inline(&[]), ..*message };
        self.admit(Record::Message(message).bytes_max() + body_bytes)?;
        let bytes = self.pending.add_with(|out| record::encode_message(&message, body_bytes, out, fill));
        self.pending.fresh_bytes += bytes;
        self.count_payload(&message, body_bytes);
        Ok(self.note_appended(urgency, now))
    }

    /// Appends an entry that must be accepted even at the disk limit: a deletion, a definition or a
    /// watermark.
    ///
    /// # Errors
    /// The pending commit is full; nothing was changed.
    pub fn append_reserved(
        &mut self,
        record: &Record<'_>,
        urgency: Urgency,
        now: Now,
    ) -> Result<LogPosition, AppendRefused> {
        self.admit_to_commit(record.bytes_max())?;
        // The definition ACCESS_STORED_KEY is not written itself: the commit contains the digest under that key.
        if !self.access.note(record, &mut self.pending) {
            return Ok(self.note_appended(urgency, now));
        }
        self.pending.add(record);
        if let Record::Gone { .. } = record {
            self.pending.frees_space = true;
        }
        Ok(self.note_appended(urgency, now))
    }

    /// Appends a part of a group: a chunk that contains the records which `fill` appends.
    ///
    /// `fill` receives the buffer and the maximum number of bytes. Returns `false` if `fill` appends nothing,
    /// or if the disk has no space now.
    pub(super) fn append_part(
        &mut self,
        body: u64,
        index: u32,
        now: Now,
        fill: impl FnOnce(&mut Vec<u8>, usize),
    ) -> bool {
        let taken = self.pending.len() + self.space.settle_share() + record::RECORD_OVERHEAD_BYTES_MAX;
        let room = self.space.pending_bytes_max().saturating_sub(taken);
        if !self.space.has_disk_room(padded(taken + room)) {
            return false;
        }
        let mut bytes = 0;
        self.pending.add_with(|out| bytes = record::encode_part(body, index, out, |out| fill(out, room)));
        if bytes == 0 {
            self.make_due();
            return false;
        }
        self.counters.payload_bytes += bytes as u64;
        self.note_appended(Urgency::Awaited, now);
        true
    }

    /// Appends settlements (ascending, disjoint) to the pending commit without merging them.
    ///
    /// Returns `false` when space is scarce. The caller then uses [`Log::settle`], which may merge them with
    /// others.
    pub(super) fn append_settled(&mut self, queue: u64, ranges: &[Range], now: Now) -> bool {
        let record = Record::Settled { queue, ranges: Ranges::List(ranges) };
        let is_scarce = self.space.is_scarce() || !self.settlements.is_empty();
        if is_scarce || !self.has_room(record.bytes_max()) {
            return false;
        }
        self.pending.add(&record);
        self.note_appended(Urgency::Lazy, now);
        true
    }

    /// Records that offsets of a queue are settled. Always accepted; written with one of the next commits.
    pub fn settle(&mut self, queue: u64, range: Range, urgency: Urgency, now: Now) -> LogPosition {
        if range.is_empty() {
            return self.pending.appended;
        }
        let (is_scarce, index) = (self.space.is_scarce(), &mut self.index);
        self.settlements.insert(queue, range, self.pending.appended, |fresh| {
            if is_scarce {
                index.note_pending(queue, fresh);
            }
        });
        self.note_appended(urgency, now)
    }

    /// Discards chunks whose message will never be appended.
    pub fn drop_body(&mut self, body: u64) {
        self.index.drop_body_on_its_way(body, self.pending.appended);
    }

    /// Counts the bytes of a message for the write amplification.
    fn count_payload(&mut self, message: &Message<'_>, body_bytes: usize) {
        self.counters.payload_bytes += (message.key.len() + message.properties.len() + body_bytes) as u64;
    }

    /// Advances the position and schedules the commit after an entry was appended.
    pub(super) fn note_appended(&mut self, urgency: Urgency, now: Now) -> LogPosition {
        self.compactor.history.note_appended();
        self.pending.appended.0 += 1;
        self.note(urgency, now);
        self.pending.appended
    }

    /// Returns whether the pending commit has space for `bytes` and still for the share reserved for
    /// settlements.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        self.pending.len() + bytes + self.space.settle_share() <= self.space.pending_bytes_max()
    }

    /// Checks whether records of `bytes` can be appended now; returns the reason if not.
    pub(super) fn admit(&mut self, bytes: usize) -> Result<(), AppendRefused> {
        self.admit_to_commit(bytes)?;
        let commit = padded(self.pending.len() + bytes + self.space.settle_share());
        if self.space.has_disk_room(commit) { Ok(()) } else { Err(AppendRefused::Disk) }
    }

    #[inline]
    fn admit_to_commit(&mut self, bytes: usize) -> Result<(), AppendRefused> {
        if bytes > self.space.record_bytes_max() {
            return Err(AppendRefused::TooLarge);
        }
        if !self.has_room(bytes) {
            // The records that do not fit wait for the next commit, so the pending commit is written at once.
            self.make_due();
            return Err(AppendRefused::CommitFull);
        }
        Ok(())
    }

    /// Returns whether the disk has failed, so that nothing can be written any more.
    pub const fn has_failed(&self) -> bool {
        self.failed
    }

    /// Returns whether a commit is in flight.
    pub const fn is_busy(&self) -> bool {
        self.in_flight.is_some()
    }

    /// Returns whether the commit in flight waits for space on the file system.
    pub fn is_postponed(&self) -> bool {
        self.in_flight.as_ref().is_some_and(|commit| commit.postponed.is_some())
    }

    /// Returns whether settlements wait that did not fit into the last commit.
    pub(crate) fn has_settlements(&self) -> bool {
        !self.settlements.is_empty()
    }

    /// Returns whether anything other than settlements waits for the next commit.
    pub(super) fn has_pending_records(&self) -> bool {
        self.pending.records() > 0 || self.access.is_due()
    }

    /// Appends waiting settlements to the pending commit until it has `end` bytes. Returns the position up to which
    /// the log is durable when this commit is.
    pub(super) fn append_settlements(&mut self, end: usize) -> LogPosition {
        let pending = &mut self.pending;
        self.settlements.drain(|queue, ranges| {
            let count = record::ranges_fitting(ranges, end.saturating_sub(pending.len()));
            if count > 0 {
                pending.add(&Record::Settled { queue, ranges: Ranges::List(&ranges[..count]) });
            }
            count
        });
        self.settlements.covered_through(self.pending.appended)
    }

    /// Marks the log as failed.
    pub(super) fn fail(&mut self, error: io::Error) -> Failed {
        self.failed = true;
        Failed(error)
    }

    /// Makes the next commit due at once if anything is pending. Only tests call it.
    pub fn flush(&mut self) {
        if !self.is_idle() {
            self.make_due();
        }
    }

    /// Returns whether nothing is pending and no commit is in flight.
    pub fn is_idle(&self) -> bool {
        self.in_flight.is_none() && !self.has_pending_records() && self.settlements.is_empty()
    }

    /// Returns when [`Log::next_commit`] should be called again if nothing else happens.
    pub fn deadline(&self) -> Deadline {
        if self.in_flight.is_some() || self.failed { Deadline::NEVER } else { self.schedule.due_at() }
    }

    /// Schedules a commit for an entry that will be appended with this urgency.
    pub fn note(&mut self, urgency: Urgency, now: Now) {
        self.schedule.note(urgency, now);
    }

    /// Returns when the log should record the broker time, which timeouts that span restarts depend on.
    pub const fn time_deadline(&self) -> Deadline {
        self.schedule.time_deadline()
    }

    /// Makes the next commit due at once.
    pub(super) const fn make_due(&mut self) {
        self.schedule.make_due();
    }

    /// Returns the number of segments that the compactor cannot free, because live records in them are
    /// unreadable.
    pub fn unreadable_segments(&self) -> usize {
        self.index.stuck()
    }

    /// Returns the bytes that the index took when it became full. Returns `None` if it has not become full since the
    /// last call.
    pub const fn take_index_full_bytes(&mut self) -> Option<usize> {
        self.space.index_memory.take_overflow()
    }

    /// Returns when the log tries again to get space from a full file system; never if the file system is not full.
    pub fn ask_deadline(&self) -> Deadline {
        if self.failed { Deadline::NEVER } else { self.space.ask_deadline() }
    }
}

/// The location of a record in the log.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct RecordLocation {
    /// Sequence of the segment.
    pub segment: u64,
    /// Offset of the record's first byte in the segment.
    pub at: u32,
    /// Length in bytes.
    pub bytes: u32,
}

/// A position in the order of everything appended. It is durable when [`Log::durable`] has reached it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct LogPosition(pub u64);

/// Sizes, limits and time windows of a store.
///
/// The sizes apply to a new store; an existing store keeps its segment size. The largest commit is at most a
/// third of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Bytes of a segment: a multiple of 4 KiB, at least 64 KiB. A multiple of the flash's erase block causes the
    /// least wear.
    pub segment_bytes: u32,
    /// Maximum bytes of a commit: a multiple of 4 KiB, at least 4 KiB, at most a third of a segment.
    pub commit_bytes: u32,
    /// `disk_limit` as a number of segments of `segment_bytes`; at least 4.
    pub segments_max: u32,
    /// Maximum memory of the index, in bytes. While it takes more, no new messages are appended.
    pub index_bytes: usize,
    /// Additional memory for definitions and empty queues, in bytes.
    pub fixed_index_bytes: usize,
    /// Maximum delay of persistent messages without publisher confirms, in milliseconds.
    pub commit_window_ms: u64,
    /// Maximum delay of confirmed messages while the sync budget is used up, in milliseconds.
    pub confirm_window_ms: u64,
    /// Maximum delay of a commit that contains only settlements, in milliseconds.
    pub settle_window_ms: u64,
    /// Sustained syncs per second that the flash may do; 0 means no limit.
    pub syncs_per_s: u32,
    /// Number of syncs that may be done in a burst after an idle period.
    pub sync_burst: u32,
    /// Whether a new store may be created if the disk contains no store.
    pub may_create_store: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            segment_bytes: 4 << 20,
            commit_bytes: 512 << 10,
            segments_max: 64,
            index_bytes: 2 << 20,
            fixed_index_bytes: 2 << 20,
            commit_window_ms: 1_000,
            confirm_window_ms: 50,
            settle_window_ms: 5_000,
            syncs_per_s: 0,
            sync_burst: 200,
            may_create_store: true,
        }
    }
}

impl Settings {
    /// Returns the settings for a store with another segment size. The limit in bytes stays the same.
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

/// The work of the store since the process began.
///
/// Counts only rise. `bytes_written` includes the compactor's copies and excludes the zeros that prepare a
/// segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Commits handed out.
    pub commits: u64,
    /// Syncs requested from the disk.
    pub syncs: u64,
    /// Bytes written in commits, segment headers and footers.
    pub bytes_written: u64,
    /// Bytes of routing keys, properties and bodies of appended messages.
    pub payload_bytes: u64,
    /// Bytes of records copied by the compactor.
    pub bytes_copied: u64,
    /// Bytes of definitions copied by definition replication.
    pub bytes_replicated: u64,
    /// Bytes that the compactor read.
    pub bytes_read_to_copy: u64,
    /// Bytes of zeros written to prepare segments.
    pub bytes_zeroed: u64,
    /// Bytes written in earlier epochs, including zeros.
    pub written_before: u64,
    /// Number of segments whose file was recycled.
    pub segments_recycled: u64,
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
            "; {} of it copied by the compactor; {} of zeros; {} segments used again",
            Megabytes(self.bytes_copied),
            Megabytes(self.bytes_zeroed),
            self.segments_recycled
        )
    }
}

/// Maximum number of ranges for which an emptied set keeps its memory.
const RANGES_KEPT: usize = 256;
/// Maximum number of ranges for which all emptied sets together keep their memory.
const SPARE_RANGES_MAX: usize = 2048;

/// Settlements that wait to be written together: one set of offsets per queue, in the order of first arrival.
///
/// Emptied sets are reused, so steady traffic allocates nothing.
#[derive(Debug, Default)]
pub(super) struct PendingSettlements {
    /// Queues with a non-empty set, in the order of their first waiting settlement.
    order: Vec<u64>,
    sets: HashMap<u64, RangeSet, FixedState>,
    /// The position at which the oldest waiting settlement was recorded.
    first: LogPosition,
    /// Emptied sets for reuse.
    spare: Vec<RangeSet>,
    /// Heap memory of the sets in `spare`, in bytes.
    spare_bytes: usize,
}

impl PendingSettlements {
    pub(super) const fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Adds settled offsets of a queue. Calls `fresh` with the offsets that were not waiting already.
    ///
    /// `appended` is the position of everything appended so far.
    pub(super) fn insert(
        &mut self,
        queue: u64,
        range: Range,
        appended: LogPosition,
        fresh: impl FnMut(Range),
    ) {
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

    /// Returns the position up to which records and settlements are written when all records up to `appended` are.
    pub(super) fn covered_through(&self, appended: LogPosition) -> LogPosition {
        if self.is_empty() { appended } else { self.first }
    }

    /// Returns the waiting ranges queue by queue.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &[Range])> {
        self.order.iter().filter_map(|queue| Some((*queue, self.sets.get(queue)?.ranges())))
    }

    /// Passes the ranges to `take` queue by queue. `take` returns how many of them it has written; these are removed.
    /// Stops at the first queue of which ranges are left.
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

#[cfg(test)]
mod counters_tests {
    use super::*;

    #[test]
    fn the_ratio_is_told_when_there_is_one() {
        let none = Counters::default().to_string();
        assert!(!none.contains("a byte"), "{none}");
        let some = Counters { bytes_written: 1_100, payload_bytes: 1_000, ..Counters::default() };
        assert!(some.to_string().contains("(1.100 bytes a byte)"), "{some}");
    }
}
