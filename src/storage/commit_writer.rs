//! Moves entries and messages from the pending-write buffer (`PendingWrites`) into the log, one commit at a time.
//!
//! When a commit is due, the commit writer appends the content of the buffer to the log. When the commit is durable, the
//! commit writer reports that to the buffer.
//!
//! ```text
//! PendingWrites ──entries, settlements, messages──→ Log ──→ Write ~ helper ~ WriteDone ──→ PendingWrites::stored
//! ```
//!
//! # Invariants
//! - At most one write is in flight. A commit has priority over other writes.
//! - Messages are encoded only when their commit is built. Log entries are written before messages.
//! - A large body is written in chunks, if necessary in several commits. The record of the message is written after the
//!   last chunk.
//! - `group` writes the records of groups, such as transactions.

use crate::pending_writes::{Front, LogEntry, PendingWrites, SplitCursor, SplitRecord, Urgency};
use leveret_core::batch::Batch;
use leveret_core::mem::{MessageId, Messages};
use leveret_core::time::{Deadline, Now};

use super::commit_builder::ResizeZeroed;
use super::disk::Disk;
use super::disk_jobs::{CommitDone, CommitJob, EndJob, PrepareDone, PrepareJob, ReadDone, ReadJob};
use super::footer::Footer;
use super::group::{self, GroupProgress};
use super::log::{AppendRefused, Failed, Log};
use super::read_back::FetchJob;
use super::read_back::{FetchBuffers, FetchDone};
use super::record::{
    Body, CHUNK_BODY_BYTES, Message, RECORD_OVERHEAD_BYTES_MAX, Range, Record, Target, Targets,
};

/// A write job for a helper thread.
#[derive(Debug)]
pub enum Write {
    /// Writes and syncs a commit.
    Commit(CommitJob),
    /// Does a step of preparing the next segment.
    Prepare(PrepareJob),
    /// Records beside the log which commit is the last of an epoch.
    End(EndJob),
}

/// The result of a write job.
#[derive(Debug)]
pub enum WriteDone {
    /// See [`Write::Commit`].
    Commit(CommitDone),
    /// See [`Write::Prepare`].
    Prepare(PrepareDone),
    /// See [`Write::End`].
    End,
}

impl Write {
    /// Runs the job. Blocks until the disk is done, so a helper thread calls it.
    pub fn run(self, disk: &mut impl Disk) -> WriteDone {
        match self {
            Self::Commit(job) => WriteDone::Commit(job.run(disk)),
            Self::Prepare(job) => WriteDone::Prepare(job.run(disk)),
            Self::End(job) => {
                job.run(disk);
                WriteDone::End
            }
        }
    }
}

impl WriteDone {
    /// Returns whether the job was a commit.
    pub const fn is_commit(&self) -> bool {
        matches!(self, Self::Commit(_))
    }
}

/// A read job for a helper thread.
#[derive(Debug)]
pub enum Read {
    /// Reads a segment for the compactor.
    Clean(ReadJob),
    /// Reads messages of a queue.
    Fetch(FetchJob),
}

/// The result of a read job.
#[derive(Debug)]
pub enum ReadOutcome {
    /// See [`Read::Clean`].
    Clean(ReadDone),
    /// See [`Read::Fetch`].
    Fetch(FetchDone),
}

impl Read {
    /// Runs the job. Blocks until the disk is done, so a helper thread calls it.
    pub fn run(self, disk: &mut impl Disk) -> ReadOutcome {
        match self {
            Self::Clean(job) => ReadOutcome::Clean(job.run(disk)),
            Self::Fetch(job) => ReadOutcome::Fetch(job.run(disk)),
        }
    }
}

/// A large body that is being written.
#[derive(Clone, Copy, Debug)]
struct Chunking {
    /// Number of the message in the pending-write buffer.
    number: u64,
    /// Identifier of the body in the log.
    body: u64,
    /// Number of chunks appended so far.
    done: u32,
}

/// The log, and the state of moving the pending-write buffer into it.
#[derive(Debug)]
pub struct CommitWriter {
    pub(super) log: Log,
    /// Everything in the pending-write buffer up to this batch is durable when the commit in flight is.
    batch_in_flight: Batch,
    /// Whether a write is in flight.
    is_writing: bool,
    /// Whether a commit is due for which there is no free segment yet.
    is_blocked: bool,
    /// Whether the broker is stopping. Then a segment is prepared only if a due commit has no free segment.
    is_flushing: bool,
    /// Whether the closing commit of a clean stop must still be written. It proves to the next start that the commit before
    /// it was synced.
    is_closing: bool,
    /// Whether the number of the last commit must still be recorded beside the log.
    is_ending: bool,
    /// Whether a commit must be written only to record the broker time. Any other commit records it as well.
    records_time: bool,
    chunking: Option<Chunking>,
    pub(super) groups: GroupProgress,
    ranges: Vec<Range>,
    pub(super) draft: Draft,
    chunk: Vec<u8>,
    split_cursor: SplitCursor,
    /// The last commit had no space for a record of a split definition that waited.
    is_split_passed_over: bool,
}

/// Buffers for encoding the record of a message.
#[derive(Debug)]
pub(super) struct Draft {
    /// The queues and offsets of the message.
    pub(super) targets: Vec<Target>,
    properties: Vec<u8>,
}

impl Draft {
    /// Returns the record of a message that goes to `targets`.
    pub(super) fn record<'a>(
        &'a mut self,
        messages: &'a Messages,
        message: MessageId,
        time_ms: u64,
        body: Body<'static>,
    ) -> Message<'a> {
        self.properties.resize_zeroed(messages.properties_len(message) as usize);
        Message {
            targets: Targets::List(&self.targets),
            // A message that expires needs its exact arrival time. For others the current time suffices.
            enqueued_ms: match messages.arrived_ms(message) {
                0 => time_ms,
                arrived_ms => arrived_ms,
            },
            expiration_ms: None,
            exchange: messages.exchange(message).as_bytes(),
            key: messages.routing_key(message),
            properties: messages.properties(message, &mut self.properties),
            body,
        }
    }
}

/// Returns the maximum memory of the store's buffers in bytes, for the memory table.
///
/// The buffers are for the pending commit, the commit in flight, the compactor, fetched messages, and the footers of the
/// active and the sealed segment.
pub const fn buffer_bytes(segment_bytes: usize, commit_bytes: usize, frame_max: usize) -> usize {
    let commits = 3 * commit_bytes + frame_max + CHUNK_BODY_BYTES;
    commits + FetchBuffers::bytes(segment_bytes, commit_bytes) + Footer::bytes(segment_bytes, commit_bytes)
}

impl CommitWriter {
    /// Creates a commit writer for `log`, for messages with properties of at most `frame_max` bytes.
    pub fn new(log: Log, frame_max: usize) -> Self {
        Self {
            log,
            batch_in_flight: Batch::NONE,
            is_writing: false,
            is_blocked: false,
            is_flushing: false,
            is_closing: false,
            is_ending: false,
            records_time: false,
            chunking: None,
            groups: GroupProgress::default(),
            ranges: Vec::with_capacity(512),
            draft: Draft { targets: Vec::with_capacity(64), properties: Vec::with_capacity(frame_max) },
            chunk: Vec::with_capacity(CHUNK_BODY_BYTES),
            split_cursor: SplitCursor::default(),
            is_split_passed_over: false,
        }
    }

    /// Returns the log.
    pub const fn log(&self) -> &Log {
        &self.log
    }

    /// Returns the log, for reading messages back.
    pub const fn log_mut(&mut self) -> &mut Log {
        &mut self.log
    }

    /// Returns when [`Self::next_write`] should be called again if nothing else happens.
    pub fn deadline(&self) -> Deadline {
        if self.is_writing {
            return Deadline::NEVER;
        }
        let due = if self.is_blocked { Deadline::NEVER } else { self.log.deadline() };
        let is_asking = !self.is_flushing || self.log.is_postponed();
        if is_asking { due.earlier(self.log.ask_deadline()) } else { due }
    }

    /// Returns whether everything is written, or the disk has failed so that nothing more can be written. A clean stop
    /// waits for this.
    pub fn is_idle(&self, pending_writes: &PendingWrites) -> bool {
        let is_idle = !self.is_writing && self.log.is_idle() && pending_writes.is_empty();
        self.log.has_failed() || is_idle && !self.is_closing && !self.is_ending
    }

    /// Returns whether a commit waits for space on the disk. A clean stop must not wait for that commit.
    pub fn is_stuck(&self) -> bool {
        !self.is_writing && (self.is_blocked || self.log.is_postponed())
    }

    /// Makes the commit of everything in the buffer due at once, for a clean stop.
    pub fn flush(&mut self, now: Now) {
        self.is_blocked = false;
        self.is_flushing = true;
        self.log.note(Urgency::Awaited, now);
        self.log.make_due();
    }

    /// Ends this epoch after everything else is written.
    pub fn close(&mut self, now: Now) {
        self.is_closing = true;
        self.flush(now);
    }

    /// Handles [`Log::time_deadline`]: requests a commit that records the broker time if `is_needed`, and schedules the
    /// next deadline.
    pub const fn record_time(&mut self, is_needed: bool, now: Now) {
        self.log.schedule.time_recorded_at = now;
        self.records_time = is_needed;
    }

    /// Returns the next write if none is in flight and one is due.
    pub fn next_write(
        &mut self,
        pending_writes: &mut PendingWrites,
        messages: &mut Messages,
        now: Now,
    ) -> Option<Write> {
        pending_writes.set_time(self.log.time_ms(now));
        if let Some(urgency) = pending_writes.take_urgency() {
            self.log.note(urgency, now);
            self.is_blocked = false;
        }
        if self.is_writing {
            return None;
        }
        if self.must_commit_at_once(pending_writes) && !self.is_blocked {
            self.log.make_due();
        }
        if self.log.is_time(now) && !pending_writes.is_empty() {
            self.append_waiting(pending_writes, messages, now);
        }
        let was_postponed = self.log.is_postponed();
        let job = self.next_commit(pending_writes, now);
        if was_postponed {
            self.report_room(pending_writes);
            self.is_writing = job.is_some();
            return job.map(Write::Commit);
        }
        if let Some(job) = job {
            self.batch_in_flight = pending_writes.cover(self.log.has_settlements());
            if !pending_writes.is_empty() {
                self.log.note(Urgency::Awaited, now);
            }
            self.is_writing = true;
            return Some(Write::Commit(job));
        }
        if self.log.is_idle() {
            if core::mem::take(&mut self.is_ending)
                && let Some(job) = self.log.end()
            {
                self.is_writing = true;
                return Some(Write::End(job));
            }
            pending_writes.advance(messages);
            if pending_writes.is_empty() {
                self.log.schedule.rest();
            }
        }
        self.is_blocked = self.log.is_time(now);
        self.report_room(pending_writes);
        if self.is_flushing && !self.is_blocked {
            return None;
        }
        let job = self.log.next_prepare()?;
        self.is_writing = true;
        Some(Write::Prepare(job))
    }

    /// Returns whether the sync budget does not delay the next commit: the commit is full, or the broker stops. A clean stop also
    /// writes at once what the log has added itself, such as second copies of definitions.
    fn must_commit_at_once(&self, pending_writes: &PendingWrites) -> bool {
        match self.is_flushing {
            true => !pending_writes.is_empty() || self.log.has_pending_records(),
            false => pending_writes.fills_commit() && !pending_writes.is_empty(),
        }
    }

    /// Returns the next commit, including those for the time and for a clean stop.
    fn next_commit(&mut self, pending_writes: &PendingWrites, now: Now) -> Option<CommitJob> {
        let job = self.log.next_commit(now);
        // Every commit contains the time.
        self.records_time &= job.is_none();
        if job.is_some() || !pending_writes.is_empty() || !self.log.is_idle() {
            return job;
        }
        if core::mem::take(&mut self.records_time) {
            return self.log.empty_commit(now);
        }
        if !self.is_closing {
            return None;
        }
        (self.is_closing, self.is_ending) = (false, true);
        self.log.closing_commit(now)
    }

    /// Applies the result of a write.
    ///
    /// # Errors
    /// The disk failed: nothing more becomes durable, and the process must end.
    pub fn write_done(
        &mut self,
        pending_writes: &mut PendingWrites,
        messages: &mut Messages,
        done: WriteDone,
        now: Now,
    ) -> Result<(), Failed> {
        self.is_writing = false;
        self.is_blocked = false;
        match done {
            WriteDone::Commit(done) => {
                self.log.commit_done(done)?;
                if !self.log.is_postponed() {
                    pending_writes.stored(messages, self.batch_in_flight);
                }
            }
            WriteDone::End => {}
            WriteDone::Prepare(done) => {
                self.log.prepare_done(done)?;
                if !pending_writes.is_empty() {
                    self.log.note(Urgency::Window, now);
                }
            }
        }
        self.report_room(pending_writes);
        Ok(())
    }

    /// Updates the free space of the log and of the index in the pending-write buffer, which admission uses.
    fn report_room(&self, pending_writes: &mut PendingWrites) {
        let space = &self.log.space;
        pending_writes.set_log_free_bytes(
            space.room_bytes(),
            space.most_bytes(),
            space.is_file_system_full(),
        );
        pending_writes.set_index_capacity(self.log.space.index_capacity());
    }

    /// Appends the content of the pending-write buffer, as far as one commit has space: split definitions last, unless the
    /// commit before had no space for any.
    fn append_waiting(&mut self, pending_writes: &mut PendingWrites, messages: &mut Messages, now: Now) {
        let is_split_first = self.is_split_passed_over && self.append_split(pending_writes, now);
        self.append_others(pending_writes, messages, now);
        let mut is_split_written = is_split_first;
        while self.append_split(pending_writes, now) {
            is_split_written = true;
        }
        self.is_split_passed_over = pending_writes.has_splits() && !is_split_written;
    }

    /// Appends one record of a split definition. Returns `false` if there is none, or no space for it.
    fn append_split(&mut self, pending_writes: &mut PendingWrites, now: Now) -> bool {
        let Some(SplitRecord { version, key, value, is_part }) =
            pending_writes.next_split(&mut self.split_cursor)
        else {
            return false;
        };
        let record = Record::Defined { version, key, value };
        // A part waits for space on the disk like a message. The definition behind the parts may use the reserved
        // space like other definitions: deletions free more than they take.
        let appended = match is_part {
            true => self.log.append(&record, Urgency::Awaited, now),
            false => self.log.append_reserved(&record, Urgency::Awaited, now),
        };
        if appended.is_ok() {
            pending_writes.pop_split();
        }
        appended.is_ok()
    }

    /// Appends everything but split definitions, in the order of arrival.
    fn append_others(&mut self, pending_writes: &mut PendingWrites, messages: &mut Messages, now: Now) {
        while let Some(entry) = pending_writes.next_entry() {
            if self.log.append_reserved(&record_of(entry), Urgency::Awaited, now).is_err() {
                return;
            }
            pending_writes.pop_entry();
        }
        // If a group waits for a commit that is empty enough, settlements come after the group: otherwise they could fill
        // every commit.
        let is_group_first = self.groups.is_waiting;
        if !is_group_first {
            self.append_settlements(pending_writes, now);
        }
        // A message that was delivered early must not be written before its watermark. So all watermarks are appended
        // first, and messages only if all watermarks fit.
        let log = &mut self.log;
        let are_all_appended = pending_writes.drain_piggybacked(|queue, offset| {
            log.append_reserved(&Record::DeliveredWatermark { queue, offset }, Urgency::Lazy, now).is_ok()
        });
        if !are_all_appended {
            return;
        }
        if self.append_messages(pending_writes, messages, now) && is_group_first {
            self.append_settlements(pending_writes, now);
        }
    }

    /// Appends waiting messages. Returns `false` when the commit or the disk has no space for more.
    fn append_messages(
        &mut self,
        pending_writes: &mut PendingWrites,
        messages: &mut Messages,
        now: Now,
    ) -> bool {
        loop {
            let front = pending_writes.front(messages, &mut self.draft.targets);
            if let Some(group) = pending_writes.group() {
                if !self.write_group(pending_writes, messages, &group, now) {
                    return false;
                }
                continue;
            }
            let Some(front) = front else { return true };
            let bytes = (messages.body_len(front.message) as usize).min(CHUNK_BODY_BYTES);
            if self.log.should_defer(bytes + RECORD_OVERHEAD_BYTES_MAX) {
                return false;
            }
            if !self.write_message(messages, pending_writes.time_ms(), front, now) {
                return false;
            }
            pending_writes.move_front_to_commit(messages);
        }
    }

    /// Appends waiting settlements.
    fn append_settlements(&mut self, pending_writes: &mut PendingWrites, now: Now) {
        let mut queue = 0;
        pending_writes.drain_settles(|settled| {
            if settled.queue != queue || self.ranges.len() == self.ranges.capacity() {
                self.write_settled(queue, now);
                queue = settled.queue;
            }
            self.ranges.push(Range { start: settled.start, end: settled.end });
        });
        self.write_settled(queue, now);
    }

    /// Appends the settlements of one queue. If space is scarce, the log keeps them for a later commit.
    fn write_settled(&mut self, queue: u64, now: Now) {
        if !self.ranges.is_empty() && !self.log.append_settled(queue, &self.ranges, now) {
            for range in &self.ranges {
                self.log.settle(queue, *range, Urgency::Lazy, now);
            }
        }
        self.ranges.clear();
    }

    /// Appends a message. Returns `false` when the commit or the disk has no space for it now.
    pub(super) fn write_message(
        &mut self,
        messages: &Messages,
        time_ms: u64,
        front: Front,
        now: Now,
    ) -> bool {
        let message = front.message;
        let body_len = messages.body_len(message) as usize;
        let body = if body_len > CHUNK_BODY_BYTES {
            let written = self.groups.body_of(front.number);
            match written.or_else(|| self.write_chunks(messages, front, now)) {
                Some(body) => group::chunked(body, body_len),
                None => return false,
            }
        } else {
            self.drop_abandoned();
            Body::Inline(&[])
        };
        let record = self.draft.record(messages, message, time_ms, body);
        let outcome = match body {
            Body::Chunked { .. } => self.log.append(&Record::Message(record), Urgency::Awaited, now),
            Body::Inline(_) => {
                let mut cursor = messages.body_cursor(message, 0);
                let fill = |room: &mut [u8]| messages.read(message, &mut cursor, room);
                self.log.append_message(&record, body_len, Urgency::Awaited, now, fill)
            }
        };
        // Otherwise the first message in the buffer would be retried forever.
        assert!(outcome != Err(AppendRefused::TooLarge), "a commit has space for the largest record");
        if outcome.is_ok() {
            self.chunking = None;
            self.groups.take_body(front.number);
        }
        outcome.is_ok()
    }

    /// Lets the chunks of the last body stay in the log although the record of its message was not appended.
    pub(super) const fn keep_body(&mut self) {
        self.chunking = None;
    }

    /// Appends the remaining chunks of a large body. Returns `None` if not all of them fit.
    pub(super) fn write_chunks(&mut self, messages: &Messages, front: Front, now: Now) -> Option<u64> {
        let Front { message, number } = front;
        if self.chunking.is_none_or(|chunking| chunking.number != number) {
            self.drop_abandoned();
            self.chunking = Some(Chunking { number, body: self.log.take_body_id(), done: 0 });
        }
        let chunking = self.chunking.as_mut()?;
        let body_len = messages.body_len(message) as usize;
        let chunks = body_len.div_ceil(CHUNK_BODY_BYTES) as u32;
        while chunking.done < chunks {
            let start = chunking.done as usize * CHUNK_BODY_BYTES;
            self.chunk.resize_zeroed((body_len - start).min(CHUNK_BODY_BYTES));
            let mut cursor = messages.body_cursor(message, start as u32);
            messages.read(message, &mut cursor, &mut self.chunk);
            let record = Record::Chunk { body: chunking.body, index: chunking.done, bytes: &self.chunk };
            self.log.append(&record, Urgency::Awaited, now).ok()?;
            chunking.done += 1;
        }
        Some(chunking.body)
    }

    /// Discards the chunks of a message that was settled while its body was being written.
    fn drop_abandoned(&mut self) {
        if let Some(chunking) = self.chunking.take() {
            self.log.drop_body(chunking.body);
        }
    }
}

/// Returns the record for a log entry.
pub(super) fn record_of(entry: &LogEntry) -> Record<'_> {
    match entry {
        LogEntry::Defined { version, key, value } => {
            Record::Defined { version: *version, key, value: value.as_deref() }
        }
        LogEntry::Gone { queue } => Record::Gone { queue: *queue },
        LogEntry::DeliveredWatermark { queue, offset } => {
            Record::DeliveredWatermark { queue: *queue, offset: *offset }
        }
        LogEntry::WatermarkReset { queue, offset, watermark } => {
            Record::WatermarkReset { queue: *queue, offset: *offset, watermark: *watermark }
        }
    }
}
