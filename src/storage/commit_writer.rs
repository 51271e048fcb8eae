//! Moves entries and messages from the pending-write buffer (`PendingWrites`) into the log, one commit at a time.
//!
//! When a commit is due, the commit writer appends what waits in the buffer. When the commit is durable, it
//! reports that to the buffer.
//!
//! ```text
//! PendingWrites ──entries, settlements, messages──→ Log ──→ Write ~ helper ~ WriteDone ──→ PendingWrites::stored
//! ```
//!
//! # Invariants
//! - One write is in flight at a time, and a commit has priority over other writes.
//! - Messages are encoded only when their commit is built, and entries precede them.
//! - A large body is written chunk by chunk, if necessary over several commits. Its message follows the last
//!   chunk.
//! - Transactions too large for one commit are written by `group`.

use leveret_core::mem::{MessageId, Messages};
use leveret_core::pending_writes::{
    Batch, Front, LogEntry, PendingWrites, Target as RecordLocation, Urgency,
};
use leveret_core::time::{Deadline, Now};

use super::commit_builder::ResizeZeroed;
use super::disk::Disk;
use super::footer::Footer;
use super::group::{self, Groups};
use super::jobs::{CommitDone, CommitJob, EndJob, PrepareDone, PrepareJob, ReadDone, ReadJob};
use super::log::{Failed, Log, Refused};
use super::read_back::FetchJob;
use super::read_back::{FetchBuffers, FetchDone};
use super::record::{
    Body, CHUNK_BODY_BYTES, Message, RECORD_OVERHEAD_BYTES_MAX, Range, Record, Target, Targets,
};

/// A write job for a helper thread.
#[derive(Debug)]
pub enum Write {
    /// A commit.
    Commit(CommitJob),
    /// A step of preparing another segment.
    Prepare(PrepareJob),
    /// Recording which commit is the last of an epoch.
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
    /// Runs the job; blocks.
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
    /// Returns whether it was a commit.
    pub const fn is_commit(&self) -> bool {
        matches!(self, Self::Commit(_))
    }
}

/// A read job for a helper thread.
#[derive(Debug)]
pub enum Read {
    /// For the compactor.
    Clean(ReadJob),
    /// For a queue.
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
    /// Runs the job; blocks.
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
    /// Number of its message in the pending-write buffer.
    number: u64,
    /// Id of the body in the log.
    body: u64,
    /// Number of chunks appended so far.
    done: u32,
}

/// The log, and the state of moving the pending-write buffer into it.
#[derive(Debug)]
pub struct CommitWriter {
    pub(super) log: Log,
    /// The part of the pending-write buffer that the commit in flight makes durable.
    covers: Batch,
    is_writing: bool,
    /// Whether a commit is due for which there is no free segment yet.
    is_blocked: bool,
    /// Whether the broker is stopping. Then no segments are prepared.
    is_flushing: bool,
    /// Whether the epoch is to end with a commit that proves the one before it.
    is_closing: bool,
    /// Whether the number of that commit is to be recorded beside the log.
    is_ending: bool,
    /// Whether the broker time is to be recorded if no other commit does so.
    records_time: bool,
    chunking: Option<Chunking>,
    pub(super) groups: Groups,
    ranges: Vec<Range>,
    pub(super) draft: Draft,
    chunk: Vec<u8>,
}

/// Buffers in which the record of a message is put together.
#[derive(Debug)]
pub(super) struct Draft {
    /// The queues and offsets of the message.
    pub(super) places: Vec<RecordLocation>,
    targets: Vec<Target>,
    properties: Vec<u8>,
}

impl Draft {
    /// Returns the record of a message that goes to `places`.
    pub(super) fn record<'a>(
        &'a mut self,
        messages: &'a Messages,
        message: MessageId,
        time_ms: u64,
        body: Body<'static>,
    ) -> Message<'a> {
        self.properties.resize_zeroed(messages.properties_len(message) as usize);
        self.targets.clear();
        let lane = 0;
        self.targets.extend(self.places.iter().map(|place| Target {
            queue: place.queue,
            offset: place.offset,
            lane,
        }));
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

/// Returns the maximum bytes of the store's buffers, for the memory table.
///
/// They hold the pending commit, the commit in flight, the compactor's buffer, fetched messages, and the
/// footers of the active and the sealed segment.
pub const fn buffer_bytes(segment_bytes: usize, commit_bytes: usize, frame_max: usize) -> usize {
    let commits = 3 * commit_bytes + frame_max + CHUNK_BODY_BYTES;
    commits + FetchBuffers::bytes(segment_bytes, commit_bytes) + Footer::bytes(segment_bytes)
}

impl CommitWriter {
    /// Creates a commit writer for `log`, for messages with properties of at most `frame_max` bytes.
    pub fn new(log: Log, frame_max: usize) -> Self {
        Self {
            log,
            covers: Batch::NONE,
            is_writing: false,
            is_blocked: false,
            is_flushing: false,
            is_closing: false,
            is_ending: false,
            records_time: false,
            chunking: None,
            groups: Groups::default(),
            ranges: Vec::with_capacity(512),
            draft: Draft {
                places: Vec::with_capacity(64),
                targets: Vec::with_capacity(64),
                properties: Vec::with_capacity(frame_max),
            },
            chunk: Vec::with_capacity(CHUNK_BODY_BYTES),
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

    /// Returns whether everything is written or can never be written. A clean stop waits for this.
    pub fn is_idle(&self, pending_writes: &PendingWrites) -> bool {
        let is_idle = !self.is_writing && self.log.is_idle() && pending_writes.is_empty();
        self.log.has_failed() || is_idle && !self.is_closing && !self.is_ending
    }

    /// Returns whether a commit finds no space on the disk, so that waiting for it would never end.
    pub fn is_stuck(&self) -> bool {
        !self.is_writing && (self.is_blocked || self.log.is_postponed())
    }

    /// Makes everything due at once, for a clean stop.
    pub fn flush(&mut self, now: Now) {
        self.is_blocked = false;
        self.is_flushing = true;
        self.log.note(Urgency::Awaited, now);
    }

    /// Ends this epoch after everything else is written.
    pub fn close(&mut self, now: Now) {
        self.is_closing = true;
        self.flush(now);
    }

    /// Handles [`Log::time_deadline`]: records the broker time now if `is_needed`, and schedules the next
    /// deadline.
    pub const fn record_time(&mut self, is_needed: bool, now: Now) {
        self.log.schedule.note_time_recorded(now);
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
        if self.log.is_time(now) && !pending_writes.is_empty() {
            self.append_waiting(pending_writes, messages, now);
        }
        let is_again = self.log.is_postponed();
        let job = self.next_commit(pending_writes, now);
        if is_again {
            self.report_room(pending_writes);
            self.is_writing = job.is_some();
            return job.map(Write::Commit);
        }
        if let Some(job) = job {
            self.covers = pending_writes.cover(self.log.has_settlements());
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
                self.log.rest();
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
                    pending_writes.stored(messages, self.covers);
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

    /// Reports the space left on the disk and in the index to the pending-write buffer.
    fn report_room(&self, pending_writes: &mut PendingWrites) {
        let most = self.log.space.most_bytes();
        let room = (self.log.space.room_bytes(), most);
        pending_writes.set_log_free_bytes(room, self.log.space.is_file_system_full());
        pending_writes.set_index_capacity(self.log.space.index_capacity());
    }

    /// Appends as much as one commit holds, in the order of arrival.
    fn append_waiting(&mut self, pending_writes: &mut PendingWrites, messages: &mut Messages, now: Now) {
        while let Some(fact) = pending_writes.fact() {
            if self.log.append_reserved(&record_of(fact), Urgency::Awaited, now).is_err() {
                return;
            }
            pending_writes.pop_entry();
        }
        // A group that waits for a commit of its own precedes settlements that would fill the commit.
        let is_late = self.groups.is_waiting;
        if !is_late {
            self.append_settlements(pending_writes, now);
        }
        // The watermark of a delivered message is in this commit or an earlier one, its message in this one
        // or a later one.
        let log = &mut self.log;
        let all_ride = pending_writes.drain_piggybacked(|queue, offset| {
            log.append_reserved(&Record::DeliveredWatermark { queue, offset }, Urgency::Lazy, now).is_ok()
        });
        if !all_ride {
            return;
        }
        if self.append_messages(pending_writes, messages, now) && is_late {
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
            let front = pending_writes.front(messages, &mut self.draft.places);
            if let Some(group) = pending_writes.group() {
                if !self.write_group(pending_writes, messages, &group, now) {
                    return false;
                }
                continue;
            }
            let Some(front) = front else { return true };
            let bytes = (messages.body_len(front.message) as usize).min(CHUNK_BODY_BYTES);
            if self.log.yields(bytes + RECORD_OVERHEAD_BYTES_MAX) {
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
        assert!(outcome != Err(Refused::TooLarge), "a commit has room for the largest record");
        if outcome.is_ok() {
            self.chunking = None;
            self.groups.take_body(front.number);
        }
        outcome.is_ok()
    }

    /// Keeps the body that was written last, even if its message is never appended.
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

fn record_of(fact: &LogEntry) -> Record<'_> {
    match fact {
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
