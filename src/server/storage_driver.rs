//! The interface between the broker and storage: jobs for the disk, and their results.
//!
//! The daemon runs the jobs on threads, and the simulator runs them at times of its own choice. Everything between is
//! the same code.
//!
//! # Invariants
//! - There is no thread, clock or disk in this file.
//! - At most one write and one read are under way.
//! - Messages that were read are put into their queue in order, as far as memory allows.
//! - A failed write is final: nothing that was not durable before is confirmed.
//! - Every peer that waits for the disk is notified of every commit.

use std::io;

use leveret_broker::{Broker, Context, LogRead, PageInOutcome, ReadMessage, restore_messages};
use leveret_core::log_limiter::{LogKind, LogSource};
use leveret_core::mem::{MessageId, Messages};
use leveret_core::pending_writes::PendingWrites;
use leveret_core::time::Now;
use leveret_storage::{CommitWriter, Log, Read, ReadOutcome, SyncTimes, WriteDone};

use super::bridges::LinkEvent;
use super::peer::Waiting;
use super::platform::Platform;
use super::state::Engine;

/// Number of retries of a failed read before its messages are reported as lost.
const READ_RETRIES: u32 = 4;
/// A commit that takes this long is logged, in microseconds.
const SLOW_COMMIT_US: u64 = 1_000_000;
/// Number of commits that waited for the sync budget after which that is logged once.
const COMMITS_OVER_BUDGET_LOGGED: u64 = 100;

/// Storage as the event loop sees it.
pub struct StorageDriver {
    pub(super) keeper: CommitWriter,
    /// The read under way: for a queue, or for compaction.
    reading: Reading,
    is_compaction_next: bool,
    /// Whether reads for queues may start, because no commit is under way that must finish first.
    may_read_queues: bool,
    /// Number of consecutive reads for queues that the disk refused.
    refused_reads: u32,
    /// Whether messages can leave memory in the next turn.
    is_evicting: bool,
    /// How long commits took.
    sync_times: SyncTimes,
    /// Whether it was logged that confirms wait for the sync budget.
    pub(super) has_logged_budget: bool,
}

impl StorageDriver {
    /// Makes a driver for messages with properties of at most `frame_max` bytes.
    pub fn new(log: Log, frame_max: usize) -> Self {
        Self {
            keeper: CommitWriter::new(log, frame_max),
            reading: Reading::Nothing,
            is_compaction_next: false,
            may_read_queues: true,
            refused_reads: 0,
            is_evicting: false,
            sync_times: SyncTimes::default(),
            has_logged_budget: false,
        }
    }

    /// Returns the log.
    pub const fn log(&self) -> &Log {
        self.keeper.log()
    }

    /// Returns whether a read must be retried. SD cards sometimes refuse a read that succeeds at the next attempt,
    /// and a lost message is skipped for as long as the process runs.
    fn must_retry(&mut self, was_refused: bool) -> bool {
        self.refused_reads = if was_refused { self.refused_reads + 1 } else { 0 };
        was_refused && self.refused_reads < READ_RETRIES
    }

    /// Records whether messages can leave memory in the next turn.
    pub(super) const fn set_evicting(&mut self, is_evicting: bool) {
        self.is_evicting = is_evicting;
    }

    /// Returns whether a job can be started now.
    pub(crate) fn has_work(
        &self,
        broker: &Broker,
        pending_writes: &PendingWrites,
        messages: &Messages,
    ) -> bool {
        let wants_to_read = self.may_read_queues && broker.queues().wants_read_back(messages)
            || self.log().wants_compaction();
        self.is_evicting
            || pending_writes.has_news()
            || wants_to_read && matches!(self.reading, Reading::Nothing)
    }

    /// Takes the result of a write.
    ///
    /// # Errors
    /// Returns the error of the disk if the write failed.
    pub(crate) fn take_write(
        &mut self,
        pending_writes: &mut PendingWrites,
        messages: &mut Messages,
        done: WriteDone,
        now: Now,
    ) -> io::Result<()> {
        self.may_read_queues = true;
        self.keeper.write_done(pending_writes, messages, done, now).map_err(|failed| failed.0)
    }

    /// Returns the next read, if none is under way.
    pub(crate) fn next_read(&mut self, broker: &mut Broker, messages: &Messages) -> Option<Read> {
        self.restore_adopted(broker);
        if !matches!(self.reading, Reading::Nothing) {
            return None;
        }
        // Queues and the compactor alternate, so that neither starves.
        self.is_compaction_next = !self.is_compaction_next;
        if self.is_compaction_next
            && let Some(job) = self.start_compaction_read()
        {
            return Some(job);
        }
        if self.may_read_queues
            && let Some(fetch) = broker.queues_mut().next_read(messages)
        {
            let range = leveret_storage::Range { start: fetch.start, end: fetch.end };
            if let Some(job) = self.keeper.log_mut().fetch(fetch.incarnation, range, fetch.bytes_max) {
                self.reading = Reading::Queue(fetch);
                return Some(Read::Fetch(job));
            }
            // The segment is just being sealed. The read is retried after that commit.
            broker.queues_mut().retry_read(&fetch);
            self.may_read_queues = false;
        }
        self.start_compaction_read()
    }

    /// Puts the recovered messages into queues that adopted orphans, before a consumer takes from them.
    fn restore_adopted(&self, broker: &mut Broker) {
        while let Some((incarnation, queue)) = broker.recovery_mut().next_adopted() {
            if let Some(found) = self.log().index().queues().get(&incarnation) {
                restore_messages(broker, found, queue);
            }
            broker.end_adoption(queue);
        }
    }

    fn start_compaction_read(&mut self) -> Option<Read> {
        let job = self.keeper.log_mut().next_compaction_read()?;
        self.reading = Reading::Compaction;
        Some(Read::Clean(job))
    }

    /// Takes the result of a read. Returns a further read if the same message continues.
    pub(crate) fn take_read_result(
        &mut self,
        broker: &mut Broker,
        context: &mut Context<'_>,
        outcome: ReadOutcome,
    ) -> Option<Read> {
        let next = match (core::mem::replace(&mut self.reading, Reading::Nothing), outcome) {
            (Reading::Compaction, ReadOutcome::Clean(done)) => {
                self.keeper.log_mut().compaction_read_done(done);
                None
            }
            (Reading::Queue(fetch), ReadOutcome::Fetch(done)) => {
                self.put_messages(broker, context, fetch, done)
            }
            (Reading::Chunk(fetch, large), ReadOutcome::Fetch(done)) => {
                self.take_chunk(broker, context, (fetch, large), done)
            }
            // One read is under way at a time, and `reading` is kept until its result arrives.
            _ => unreachable!("the result belongs to the read that was started"),
        };
        broker.note_lost_messages(context);
        next
    }

    /// Puts messages that were read into their queue, as far as memory allows.
    fn put_messages(
        &mut self,
        broker: &mut Broker,
        context: &mut Context<'_>,
        fetch: LogRead,
        done: leveret_storage::FetchDone,
    ) -> Option<Read> {
        if self.must_retry(done.was_refused()) {
            self.keeper.log_mut().fetch_done(done, |_, _| {});
            broker.queues_mut().retry_read(&fetch);
            return None;
        }
        let mut stopped = None;
        let fetched = self.keeper.log_mut().fetch_done(done, |offset, message| {
            if stopped.is_none() {
                stopped = put_message(broker, context, &fetch, offset, message);
            }
        });
        match stopped {
            None => broker.queues_mut().end_read(&fetch, fetched.through),
            Some(Stopped::NoCapacity) => broker.queues_mut().note_no_memory(context.messages_mut(), &fetch),
            Some(Stopped::LargeMessage(large)) => return self.read_chunk(broker, context, fetch, large),
        }
        None
    }

    /// Continues to read a large body, or completes it.
    fn read_chunk(
        &mut self,
        broker: &mut Broker,
        context: &mut Context<'_>,
        fetch: LogRead,
        large: LargeMessage,
    ) -> Option<Read> {
        if large.next == large.chunks {
            let is_whole = context.messages_mut().body_missing(large.message) == 0;
            if !is_whole {
                context.messages_mut().release(large.message);
            } else if !broker.queues_mut().paged_in(
                context,
                &fetch,
                (large.offset, large.enqueued_ms),
                large.message,
            ) {
                broker.queues_mut().note_no_memory(context.messages_mut(), &fetch);
                return None;
            }
            broker.queues_mut().end_read(&fetch, large.offset + 1);
            return None;
        }
        match self.keeper.log_mut().fetch_chunk(large.body, large.next) {
            Some(job) => {
                self.reading = Reading::Chunk(fetch, large);
                Some(Read::Fetch(job))
            }
            None => {
                context.messages_mut().release(large.message);
                broker.queues_mut().note_no_memory(context.messages_mut(), &fetch);
                None
            }
        }
    }

    fn take_chunk(
        &mut self,
        broker: &mut Broker,
        context: &mut Context<'_>,
        (fetch, mut large): (LogRead, LargeMessage),
        done: leveret_storage::FetchDone,
    ) -> Option<Read> {
        let must_retry = self.must_retry(done.was_refused());
        let mut is_good = false;
        let fetched = self.keeper.log_mut().chunk_done(done, |bytes| {
            if let Some(bytes) = bytes
                .filter(|bytes| bytes.len() <= context.messages_mut().body_missing(large.message) as usize)
            {
                context.messages_mut().append_body(large.message, bytes);
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

    /// Records that a commit took `took_us` microseconds.
    pub(super) fn note_sync(&mut self, took_us: u64) {
        self.sync_times.add(took_us);
    }

    /// Logs the counters of storage since the start.
    pub(super) fn log_counters(&self) {
        let counters = self.log().counters();
        if counters.commits > 0 {
            let [half, most] = [500, 990].map(|per_mille| self.sync_times.quantile_us(per_mille));
            log::debug!("{counters:?}");
            log::debug!(
                "the log: {counters}; half of the commits took up to {half} µs, 99 % up to {most} µs"
            );
        }
    }

    /// Returns whether the disk lacks space for pending writes while no read is under way that could free any.
    pub(crate) fn is_stuck(&self) -> bool {
        self.keeper.is_stuck() && matches!(self.reading, Reading::Nothing)
    }
}

/// The read that the reader thread carries out.
enum Reading {
    Nothing,
    Compaction,
    Queue(LogRead),
    Chunk(LogRead, LargeMessage),
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

/// Why no more of the read messages was taken.
enum Stopped {
    NoCapacity,
    LargeMessage(LargeMessage),
}

impl<P: Platform> Engine<P> {
    /// Takes the results of disk jobs. A failure is final: nothing that was not durable before is confirmed.
    pub(super) fn take_disk_results(&mut self) -> io::Result<()> {
        let Some(store) = &mut self.store else { return Ok(()) };
        let shared = &mut self.shared;
        let written = shared.platform.take_write_result();
        let is_written = written.is_some();
        if let Some((done, took_us)) = written {
            if done.is_commit() {
                store.note_sync(took_us);
                if took_us >= SLOW_COMMIT_US {
                    let text = format_args!("the disk needed {} ms for a commit", took_us / 1000);
                    shared.resources.log.record(shared.now, log::Level::Warn, text);
                }
            }
            let was_full = shared.pending_writes.is_file_system_full();
            store.take_write(&mut shared.pending_writes, &mut shared.resources.messages, done, shared.now)?;
            log_file_system_full(was_full, shared.pending_writes.is_file_system_full());
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
        if let Some(job) = store.next_read(broker, context.messages_mut()) {
            shared.platform.start_read(job);
        }
        let (queues, now) = (shared.broker.queues(), shared.now);
        if queues.has_deadlines() && store.log().time_deadline().is_due(now) {
            store.keeper.record_time(queues.has_stored_deadline(), now);
        }
        // After the reads, which may find that a segment can be deleted, because that takes a commit.
        let (pending_writes, messages) = (&mut shared.pending_writes, &mut shared.resources.messages);
        if let Some(job) = store.keeper.next_write(pending_writes, messages, now) {
            shared.platform.start_write(job);
        }
        if !store.has_logged_budget && store.log().delayed_by_budget().0 >= COMMITS_OVER_BUDGET_LOGGED {
            store.has_logged_budget = true;
            let text = format_args!(
                "confirms wait for the sync budget: a publisher that waits for each confirm gets at most \
                 syncs_per_second confirms per second; publish several messages before waiting, or raise it"
            );
            shared.resources.log.log(now, log::Level::Info, LogSource::Anybody, LogKind::Shortage, text);
        }
        if let Some(bytes) = store.keeper.log_mut().take_index_full_bytes() {
            let text = format_args!(
                "the index of the log takes {bytes} bytes: publishers of persistent messages are blocked until \
                 messages are consumed; raise index_bytes_max, or segment_bytes for a new store"
            );
            shared.resources.log.warn(now, LogSource::Anybody, LogKind::Shortage, text);
        }
        self.note_durable(false);
    }

    /// Tells the peers that wait for the disk what is durable now. Operators' clients wait for more than messages, so
    /// they are called after every write.
    fn note_durable(&mut self, is_written: bool) {
        self.shared.broker.queues_mut().note_durable(&self.shared.pending_writes);
        let durable = self.shared.pending_writes.durable();
        if core::mem::replace(&mut self.shared.lists.durable_announced, durable) == durable && !is_written {
            return;
        }
        for _ in 0..self.shared.lists.for_disk.len() {
            let Some(id) = self.shared.lists.for_disk.pop() else { break };
            let Some(connection) = id.connection() else {
                // The answer of an operator's client is built when it is written.
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
            peer.session.amqp().note_durable(&mut context);
            if matches!(peer.waiting, Waiting::Disk(batch) if batch <= durable) {
                self.shared.answer_held(connection);
            }
            self.shared.after_session(id);
        }
    }
}

/// Puts one message into its queue. Returns why not, if that stops all messages behind it.
fn put_message(
    broker: &mut Broker,
    context: &mut Context<'_>,
    fetch: &LogRead,
    offset: u64,
    message: &leveret_storage::Message<'_>,
) -> Option<Stopped> {
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
    let id = match broker.queues_mut().page_in(context.messages_mut(), fetch, &page) {
        PageInOutcome::Begun(id) => id,
        PageInOutcome::NotWanted => return None,
        PageInOutcome::NoCapacity => return Some(Stopped::NoCapacity),
    };
    if let leveret_storage::Body::Chunked { body, chunks, .. } = message.body {
        let enqueued_ms = message.enqueued_ms;
        return Some(Stopped::LargeMessage(LargeMessage {
            offset,
            enqueued_ms,
            message: id,
            body,
            chunks,
            next: 0,
        }));
    }
    context.messages_mut().append_body(id, body);
    if broker.queues_mut().paged_in(context, fetch, (offset, message.enqueued_ms), id) {
        None
    } else {
        Some(Stopped::NoCapacity)
    }
}

/// Logs that the file system has become full, or has free space again.
pub fn log_file_system_full(was_full: bool, is_full: bool) {
    match (was_full, is_full) {
        (false, true) => log::warn!(
            "the file system of the data directory is full before disk_limit is reached: publishers of persistent \
             messages are blocked when the preallocated space is used, until space is free"
        ),
        (true, false) => log::info!("the file system of the data directory has free space again"),
        _ => {}
    }
}
