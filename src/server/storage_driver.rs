//! The interface between the broker and the storage: starts disk jobs, and handles their results.
//!
//! The daemon runs the jobs on threads; the simulator runs them at simulated times. All other code is the
//! same.
//!
//! # Invariants
//! - The code in this file starts no threads, reads no clock and does no disk I/O.
//! - At most one write and one read are under way.
//! - Messages that were read are put into their queue in order, until memory is full.
//! - After a failed write nothing more is confirmed, except what was durable before.
//! - Every peer that waits for the disk is notified of every commit.

use std::io;

use leveret_broker::{Broker, Context, RetainedRead, restore_messages};
use leveret_core::log_limiter::{LogKind, LogSource};
use leveret_core::mem::{MessageId, Messages};
use leveret_core::time::Now;
use leveret_queues::{LogRead, PageInOutcome, ReadMessage};
use leveret_storage::PendingWrites;
use leveret_storage::{CommitWriter, Log, Read, ReadOutcome, WriteDone};

use super::bridges::LinkEvent;
use super::peer::WaitReason;
use super::platform::Platform;
use super::state::Engine;

/// Number of consecutive failed reads at which the messages of the last one are reported as lost. Earlier ones are
/// retried.
const READ_FAILURES_MAX: u32 = 4;
/// A commit that takes at least this time is logged, in microseconds.
const SLOW_COMMIT_US: u64 = 1_000_000;
/// When this many commits have been delayed by the sync budget, this is logged once.
const COMMITS_OVER_BUDGET_LOGGED: u64 = 100;

/// Drives the storage for the event loop.
pub struct StorageDriver {
    pub(super) commit_writer: CommitWriter,
    /// The read that the reader thread is carrying out: for a queue, or for compaction.
    reading: QueuedRead,
    is_compaction_next: bool,
    is_retained_next: bool,
    /// As `refused_reads`, for retained messages, whose reads alternate with those of queues.
    refused_retained_reads: u32,
    /// A retained message of which further parts have to be read.
    unfinished_retained: Option<RetainedRead>,
    /// Reads for queues may start: no commit is being written that must finish first.
    may_read_queues: bool,
    /// Number of reads for queues that failed without a success in between.
    refused_reads: u32,
    /// More messages can be evicted from memory in the next turn.
    is_evicting: bool,
    /// It was logged that commits are delayed by the sync budget.
    pub(super) has_logged_budget: bool,
}

impl StorageDriver {
    /// Creates a driver. `frame_max` is the maximum size of a message's properties in bytes.
    pub fn new(log: Log, frame_max: usize) -> Self {
        Self {
            commit_writer: CommitWriter::new(log, frame_max),
            reading: QueuedRead::Nothing,
            is_compaction_next: false,
            is_retained_next: false,
            refused_retained_reads: 0,
            unfinished_retained: None,
            may_read_queues: true,
            refused_reads: 0,
            is_evicting: false,
            has_logged_budget: false,
        }
    }

    /// Returns the log.
    pub const fn log(&self) -> &Log {
        self.commit_writer.log()
    }

    /// Counts failed reads, and returns whether to retry. Retries are worthwhile because SD cards sometimes
    /// fail a read that succeeds at the next attempt, and a message reported as lost is skipped until the
    /// process ends.
    const fn must_retry(&mut self, was_refused: bool) -> bool {
        count_refused(&mut self.refused_reads, was_refused)
    }

    /// Sets whether more messages can be evicted from memory in the next turn.
    pub(super) const fn set_evicting(&mut self, is_evicting: bool) {
        self.is_evicting = is_evicting;
    }

    /// Returns whether a disk job can be started now.
    pub(crate) fn has_work(
        &self,
        broker: &Broker,
        pending_writes: &PendingWrites,
        messages: &Messages,
    ) -> bool {
        let wants_to_read = self.may_read_queues && broker.queues().wants_read_back(messages)
            || broker.wants_retained_read()
            || self.unfinished_retained.is_some()
            || self.log().wants_compaction();
        self.is_evicting
            || pending_writes.has_changes()
            || wants_to_read && matches!(self.reading, QueuedRead::Nothing)
    }

    /// Handles the result of a write.
    ///
    /// # Errors
    /// The write failed.
    pub(crate) fn take_write(
        &mut self,
        pending_writes: &mut PendingWrites,
        messages: &mut Messages,
        done: WriteDone,
        now: Now,
    ) -> io::Result<()> {
        self.may_read_queues = true;
        self.commit_writer.write_done(pending_writes, messages, done, now).map_err(|failed| failed.0)
    }

    /// Returns the next read, if none is under way.
    pub(crate) fn next_read(&mut self, broker: &mut Broker, context: &mut Context<'_>) -> Option<Read> {
        self.restore_adopted(broker);
        if !matches!(self.reading, QueuedRead::Nothing) {
            return None;
        }
        // Queues and the compactor alternate, so that neither starves.
        self.is_compaction_next = !self.is_compaction_next;
        if self.is_compaction_next
            && let Some(job) = self.start_compaction_read()
        {
            return Some(job);
        }
        // Likewise queues and retained messages.
        self.is_retained_next = !self.is_retained_next;
        if self.is_retained_next
            && let Some(job) = self.next_retained_read(broker, context)
        {
            return Some(job);
        }
        if self.may_read_queues
            && let Some(fetch) = broker.queues_mut().next_read(context.messages)
        {
            let range = leveret_storage::Range { start: fetch.start, end: fetch.end };
            if let Some(job) = self.commit_writer.log_mut().fetch(fetch.incarnation, range, fetch.bytes_max) {
                self.reading = QueuedRead::Queue(fetch);
                return Some(Read::Fetch(job));
            }
            // The commit that is being written seals the segment. The read is retried after this commit.
            broker.queues_mut().retry_read(&fetch);
            self.may_read_queues = false;
        }
        self.next_retained_read(broker, context).or_else(|| self.start_compaction_read())
    }

    fn next_retained_read(&mut self, broker: &mut Broker, context: &mut Context<'_>) -> Option<Read> {
        if let Some(read) = self.unfinished_retained.take() {
            return self.start_retained_read(read);
        }
        if !broker.wants_retained_read() {
            return None;
        }
        let log = self.commit_writer.log();
        let read = broker.next_retained_read(context, |key| log.location_of_definition(key))?;
        self.start_retained_read(read)
    }

    fn start_retained_read(&mut self, read: RetainedRead) -> Option<Read> {
        let job = self.commit_writer.log_mut().fetch_definitions(read.locations());
        // The buffers are in use only while `reading` says so.
        let job = job.expect("one read is under way at a time");
        self.reading = QueuedRead::Retained(read);
        Some(Read::Fetch(job))
    }

    /// Takes retained messages that were read.
    fn take_retained(
        &mut self,
        broker: &mut Broker,
        context: &mut Context<'_>,
        mut read: RetainedRead,
        done: leveret_storage::FetchDone,
    ) {
        let must_retry = count_refused(&mut self.refused_retained_reads, done.was_refused());
        self.commit_writer.log_mut().definitions_done(done, |key, value| {
            broker.take_retained_definition(context, &mut read, key, value);
        });
        let log = self.commit_writer.log();
        let end = broker.end_retained_read(context, read, must_retry, |key| log.location_of_definition(key));
        for topic in end.lost {
            log::error!(
                "the retained message of topic {topic:?} is not sent: it cannot be read from the log"
            );
        }
        // Other reads come between the parts of a long content.
        self.unfinished_retained = end.next;
    }

    /// Puts recovered messages into queues that adopted orphans, before consumers can get any of them.
    fn restore_adopted(&self, broker: &mut Broker) {
        while let Some((incarnation, queue)) = broker.recovery_mut().next_adopted() {
            if let Some(found) = self.log().index().queues().get(&incarnation) {
                restore_messages(broker, found, queue, &[]);
            }
            broker.end_adoption(queue);
        }
    }

    fn start_compaction_read(&mut self) -> Option<Read> {
        let job = self.commit_writer.log_mut().next_compaction_read()?;
        self.reading = QueuedRead::Compaction;
        Some(Read::Clean(job))
    }

    /// Handles the result of a read. Returns another read if the message is not complete.
    pub(crate) fn take_read_result(
        &mut self,
        broker: &mut Broker,
        context: &mut Context<'_>,
        outcome: ReadOutcome,
    ) -> Option<Read> {
        let next = match (core::mem::replace(&mut self.reading, QueuedRead::Nothing), outcome) {
            (QueuedRead::Compaction, ReadOutcome::Clean(done)) => {
                self.commit_writer.log_mut().compaction_read_done(done);
                None
            }
            (QueuedRead::Queue(fetch), ReadOutcome::Fetch(done)) => {
                self.put_messages(broker, context, fetch, done)
            }
            (QueuedRead::Chunk(fetch, large), ReadOutcome::Fetch(done)) => {
                self.take_chunk(broker, context, fetch, large, done)
            }
            (QueuedRead::Retained(read), ReadOutcome::Fetch(done)) => {
                self.take_retained(broker, context, read, done);
                None
            }
            // One read is under way at a time, and `reading` is kept until its result arrives.
            _ => unreachable!("the result belongs to the read that was started"),
        };
        broker.note_lost_messages(context);
        next
    }

    /// Puts messages that were read into their queue, until memory is full. Returns another read if the last
    /// message is not complete.
    fn put_messages(
        &mut self,
        broker: &mut Broker,
        context: &mut Context<'_>,
        fetch: LogRead,
        done: leveret_storage::FetchDone,
    ) -> Option<Read> {
        if self.must_retry(done.was_refused()) {
            self.commit_writer.log_mut().fetch_done(done, |_, _| {});
            broker.queues_mut().retry_read(&fetch);
            return None;
        }
        let mut stopped = None;
        let fetched = self.commit_writer.log_mut().fetch_done(done, |offset, message| {
            if stopped.is_none() {
                stopped = put_message(broker, context, &fetch, offset, message);
            }
        });
        match stopped {
            None => broker.queues_mut().end_read(&fetch, fetched.through),
            Some(StopReason::NoCapacity) => broker.queues_mut().note_no_memory(context.messages, &fetch),
            Some(StopReason::LargeMessage(large)) => return self.read_chunk(broker, context, fetch, large),
        }
        None
    }

    /// Returns the read of the next chunk of a large body; if there is none, puts the complete message into
    /// its queue.
    fn read_chunk(
        &mut self,
        broker: &mut Broker,
        context: &mut Context<'_>,
        fetch: LogRead,
        large: LargeMessage,
    ) -> Option<Read> {
        if large.next == large.chunks {
            let is_whole = context.messages.body_missing(large.message) == 0;
            if !is_whole {
                context.messages.release(large.message);
            } else if !broker.queues_mut().paged_in(
                context,
                &fetch,
                large.offset,
                large.enqueued_ms,
                large.message,
            ) {
                broker.queues_mut().note_no_memory(context.messages, &fetch);
                return None;
            }
            broker.queues_mut().end_read(&fetch, large.offset + 1);
            return None;
        }
        match self.commit_writer.log_mut().fetch_chunk(large.body, large.next) {
            Some(job) => {
                self.reading = QueuedRead::Chunk(fetch, large);
                Some(Read::Fetch(job))
            }
            None => {
                context.messages.release(large.message);
                broker.queues_mut().note_no_memory(context.messages, &fetch);
                None
            }
        }
    }

    fn take_chunk(
        &mut self,
        broker: &mut Broker,
        context: &mut Context<'_>,
        fetch: LogRead,
        mut large: LargeMessage,
        done: leveret_storage::FetchDone,
    ) -> Option<Read> {
        let must_retry = self.must_retry(done.was_refused());
        let mut is_good = false;
        let fetched = self.commit_writer.log_mut().chunk_done(done, |bytes| {
            if let Some(bytes) =
                bytes.filter(|bytes| bytes.len() <= context.messages.body_missing(large.message) as usize)
            {
                context.messages.append_body(large.message, bytes);
                is_good = true;
            }
        });
        match (is_good, fetched.retry) {
            (true, _) => large.next += 1,
            (false, retry) if retry || must_retry => {}
            (false, _) => large.next = large.chunks,
        }
        self.read_chunk(broker, context, fetch, large)
    }

    /// Logs the counters of storage since the start.
    pub(super) fn log_counters(&self) {
        let counters = self.log().counters();
        if counters.commits > 0 {
            log::debug!("{counters:?}");
            log::debug!("the log: {counters}");
        }
    }

    /// Returns whether there is no disk space for pending writes, and no read is in progress whose result
    /// could free some.
    pub(crate) fn is_stuck(&self) -> bool {
        self.commit_writer.is_stuck() && matches!(self.reading, QueuedRead::Nothing)
    }
}

/// Counts consecutive reads that the disk refused. Returns whether to retry.
const fn count_refused(count: &mut u32, was_refused: bool) -> bool {
    *count = if was_refused { *count + 1 } else { 0 };
    was_refused && *count < READ_FAILURES_MAX
}

/// The read that the reader thread carries out.
enum QueuedRead {
    Nothing,
    Compaction,
    Queue(LogRead),
    Chunk(LogRead, LargeMessage),
    Retained(RetainedRead),
}

/// A message with a large body that is being read chunk by chunk.
struct LargeMessage {
    offset: u64,
    enqueued_ms: u64,
    message: MessageId,
    body: u64,
    chunks: u32,
    next: u32,
}

/// Why no more of the messages that were read are put into their queue.
enum StopReason {
    NoCapacity,
    LargeMessage(LargeMessage),
}

impl<P: Platform> Engine<P> {
    /// Handles the results of finished disk jobs. After an error nothing more is confirmed, except what was
    /// durable before.
    pub(super) fn take_disk_results(&mut self) -> io::Result<()> {
        let Some(store) = &mut self.store else { return Ok(()) };
        let shared = &mut self.shared;
        let written = shared.platform.take_write_result();
        let is_written = written.is_some();
        if let Some((done, took_us)) = written {
            if done.is_commit() && took_us >= SLOW_COMMIT_US {
                let text = format_args!("the disk needed {} ms for a commit", took_us / 1000);
                shared.resources.log.record(shared.now, log::Level::Warn, text);
            }
            let was_full = shared.pending_writes.is_file_system_full();
            store.take_write(&mut shared.pending_writes, &mut shared.resources.messages, done, shared.now)?;
            match (was_full, shared.pending_writes.is_file_system_full()) {
                (false, true) => log_file_system_full(),
                (true, false) => {
                    log::info!("the file system of the data directory has free space again");
                }
                _ => {}
            }
        }
        if let Some(outcome) = shared.platform.take_read_result() {
            let (broker, mut context) = shared.broker_mut();
            let more = store.take_read_result(broker, &mut context, outcome);
            more.into_iter().for_each(|more| shared.platform.start_read(more));
        }
        self.note_durable(is_written);
        Ok(())
    }

    pub(super) fn start_disk_jobs(&mut self) {
        let Some(store) = &mut self.store else { return };
        let shared = &mut self.shared;
        let (broker, mut context) = shared.broker_mut();
        store.set_evicting(broker.evict(&mut context));
        if let Some(job) = store.next_read(broker, &mut context) {
            shared.platform.start_read(job);
        }
        let (queues, now) = (shared.broker.queues(), shared.now);
        if queues.has_deadlines() && store.log().time_deadline().is_due(now) {
            store.commit_writer.record_time(queues.has_stored_deadline(), now);
        }
        // Writes are started after reads. Starting a read may show that a segment can be deleted, which needs
        // a commit.
        let (pending_writes, messages) = (&mut shared.pending_writes, &mut shared.resources.messages);
        if let Some(job) = store.commit_writer.next_write(pending_writes, messages, now) {
            shared.platform.start_write(job);
        }
        if !store.has_logged_budget && store.log().delayed_by_budget().0 >= COMMITS_OVER_BUDGET_LOGGED {
            store.has_logged_budget = true;
            let text = format_args!(
                "confirms wait for the sync budget: a publisher that waits for each confirm gets at most \
                 syncs_per_second confirms per second; publish several messages before waiting, or raise it"
            );
            shared.resources.log.log(now, log::Level::Info, LogSource::Unknown, LogKind::Shortage, text);
        }
        if let Some(bytes) = store.commit_writer.log_mut().take_index_full_bytes() {
            let text = format_args!(
                "the index of the log takes {bytes} bytes: publishers of persistent messages are blocked until \
                 messages are consumed; raise memory_limit, or segment_bytes for a new store"
            );
            shared.resources.log.warn(now, LogSource::Unknown, LogKind::Shortage, text);
        }
        self.note_durable(false);
    }

    /// Notifies the peers in `for_disk` if the durable batch has changed, or if a write is done (`is_written`).
    /// Operator clients also wait for results of writes that make no batch durable.
    fn note_durable(&mut self, is_written: bool) {
        self.shared.broker.queues_mut().note_durable(&self.shared.pending_writes);
        let durable = self.shared.pending_writes.durable();
        if core::mem::replace(&mut self.shared.lists.durable_announced, durable) == durable && !is_written {
            return;
        }
        for _ in 0..self.shared.lists.for_disk.len() {
            let Some(id) = self.shared.lists.for_disk.pop() else { break };
            let Some(connection) = id.connection() else {
                // The reply to an operator client is built when it is written.
                self.shared.list_to_write(id);
                continue;
            };
            let Some(peer) = self.shared.peers.get_mut(id) else { continue };
            if peer.session.is_bridge() {
                self.call_bridge(connection, LinkEvent::Durable);
                self.shared.after_session(id);
                continue;
            }
            let mut context = self.shared.resources.context(
                self.shared.now,
                &self.shared.broker,
                &self.shared.pending_writes,
                connection,
            );
            peer.session.client().note_durable(&mut context);
            if matches!(peer.waiting, WaitReason::Disk(batch) if batch <= durable) {
                self.shared.send_deferred_reply(connection);
            }
            self.shared.after_session(id);
        }
    }
}

/// Puts one message into its queue. Returns why this and all messages after it cannot be put there now;
/// `None` if the next message can follow.
fn put_message(
    broker: &mut Broker,
    context: &mut Context<'_>,
    fetch: &LogRead,
    offset: u64,
    message: &leveret_storage::Message<'_>,
) -> Option<StopReason> {
    let (body, body_len) = match message.body {
        leveret_storage::Body::Inline(bytes) => (bytes, bytes.len() as u64),
        leveret_storage::Body::Chunked { bytes, .. } => (&[][..], bytes),
    };
    let page = ReadMessage {
        offset,
        exchange: core::str::from_utf8(message.exchange).unwrap_or_default(),
        routing_key: message.key,
        properties: message.properties,
        body_len: u32::try_from(body_len).unwrap_or(u32::MAX),
        enqueued_ms: message.enqueued_ms,
    };
    let id = match broker.queues_mut().page_in(context.messages, fetch, &page) {
        PageInOutcome::Begun(id) => id,
        PageInOutcome::NotWanted => return None,
        PageInOutcome::NoCapacity => return Some(StopReason::NoCapacity),
    };
    if let leveret_storage::Body::Chunked { body, chunks, .. } = message.body {
        let enqueued_ms = message.enqueued_ms;
        return Some(StopReason::LargeMessage(LargeMessage {
            offset,
            enqueued_ms,
            message: id,
            body,
            chunks,
            next: 0,
        }));
    }
    context.messages.append_body(id, body);
    if broker.queues_mut().paged_in(context, fetch, offset, message.enqueued_ms, id) {
        None
    } else {
        Some(StopReason::NoCapacity)
    }
}

/// Logs that the file system has become full.
pub fn log_file_system_full() {
    log::warn!(
        "the file system of the data directory is full before disk_limit is reached: publishers of persistent \
         messages are blocked when the preallocated space is used, until space is free"
    );
}
