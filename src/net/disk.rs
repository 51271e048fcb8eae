//! The store in the turn: opening it, handing jobs to its helpers, taking their results.
//!
//! Always true: the loop's thread touches no disk once it runs; after a failed write nothing more is
//! confirmed, because the turn ends there and the process with it; a store that cannot be used is said to be
//! so, loudly, and the rest of the broker runs without it.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use mio::{Poll, Token, Waker};

use crate::broker::{Broker, Contents, Fetch, Page, PageIn, Restored};
use crate::command::QueueId;
use crate::config::Config;
use crate::journal::Definition;
use crate::mem::{MessageId, Messages};
use crate::store::{self, FileDisk, Keeper, Log, OpenError, Report, Settings, Write, WriteDone};
use crate::time::{Deadline, Now};

use super::StartError;
use super::helper::Helper;
use super::house::entropy;

/// The most that `disk_limit = "auto"` takes.
const AUTO_LIMIT_BYTES_MAX: u64 = 8 << 30;
/// Below this a store is too small to be cleaned.
const SEGMENTS_MIN: u64 = 8;

/// The store as the loop has it.
pub(super) struct Disk {
    keeper: Keeper,
    writer: Helper<Write, (WriteDone, u64)>,
    reader: Helper<store::Read, store::ReadOutcome>,
    /// What is being read for a queue; the reader may also be cleaning.
    reading: Reading,
    cleans_next: bool,
    /// No commit is on its way that must be over first.
    may_fetch: bool,
    /// How long commits took, by powers of two of microseconds.
    pub(super) sync_times: [u64; 24],
}

/// What the reader is busy with.
enum Reading {
    Nothing,
    Cleaning,
    Queue(Fetch),
    Chunk(Fetch, Large),
}

/// A message with a large body that is being read chunk by chunk.
struct Large {
    offset: u64,
    message: MessageId,
    body: u64,
    chunks: u32,
    next: u32,
}

/// Why no more of what was read was taken.
enum Stopped {
    NoRoom,
    Large(Large),
}

impl Disk {
    /// Opens the store of `config` and declares again what it holds. `None`: there is none to work with, and
    /// nothing can be durable.
    ///
    /// # Errors
    /// The store is another process's, or a newer version's.
    pub(super) fn open(
        config: &Config,
        broker: &mut Broker,
        poll: &Poll,
        waker: Token,
    ) -> Result<Option<Self>, StartError> {
        let directory = &config.data_dir;
        let refused = |error| StartError::Store(directory.clone(), error);
        broker.set_persist_all(config.store.persist_all);
        if let Err(error) = fs::create_dir_all(directory) {
            return Ok(degraded(broker, directory, &error));
        }
        let mut files = FileDisk::new(directory);
        let settings = settings(config, directory);
        let (mut log, report) = match Log::open(&mut files, settings, fresh_identity(), Now::from_ms(0)) {
            Ok(opened) => opened,
            Err(OpenError::Unreadable(error)) => return Ok(degraded(broker, directory, &error)),
            Err(error) => return Err(refused(error)),
        };
        tell(&report, directory);
        let is_writable = report.unwritable.is_none();
        broker.journal_mut().start(
            log.life(),
            is_writable,
            u64::from(config.limits.commit_bytes_max) / 8 * 7,
        );
        restore(broker, &mut log, &mut files).map_err(|error| refused(OpenError::Unreadable(error)))?;
        let failed = |error| StartError::System("start a thread", error);
        let waker = Arc::new(Waker::new(poll.registry(), waker).map_err(failed)?);
        let timed = move |job: Write| {
            let start = Instant::now();
            let done = job.run(&mut files);
            (done, start.elapsed().as_micros() as u64)
        };
        let mut readable = FileDisk::new(directory);
        let reader = move |job: store::Read| job.run(&mut readable);
        Ok(Some(Self {
            keeper: Keeper::new(log, config.limits.frame_max as usize),
            writer: Helper::start("store-write", waker.clone(), timed).map_err(failed)?,
            reader: Helper::start("store-read", waker, reader).map_err(failed)?,
            reading: Reading::Nothing,
            cleans_next: false,
            may_fetch: true,
            sync_times: [0; 24],
        }))
    }

    /// Whether there is something to hand out now.
    pub(super) fn has_work(&self, broker: &Broker) -> bool {
        broker.journal().has_news()
            || self.may_fetch && broker.wants_pages() && matches!(self.reading, Reading::Nothing)
    }

    /// When there is something to do here if nothing else happens.
    pub(super) fn deadline(&self) -> Deadline {
        self.keeper.deadline()
    }

    /// Takes what the helpers have done.
    ///
    /// # Errors
    /// The disk failed.
    pub(super) fn take_results(
        &mut self,
        broker: &mut Broker,
        messages: &mut Messages,
        now: Now,
    ) -> io::Result<()> {
        if let Some((done, took_us)) = self.writer.take() {
            self.may_fetch = true;
            let bucket = (u64::BITS - took_us.leading_zeros()) as usize;
            self.sync_times[bucket.min(self.sync_times.len() - 1)] += u64::from(done.is_commit());
            let journal = broker.journal_mut();
            self.keeper.write_done(journal, messages, done, now).map_err(|failed| failed.0)?;
        }
        if let Some(outcome) = self.reader.take() {
            match core::mem::replace(&mut self.reading, Reading::Nothing) {
                Reading::Nothing => {}
                Reading::Cleaning => {
                    if let store::ReadOutcome::Clean(done) = outcome {
                        self.keeper.log_mut().clean_read_done(done);
                    }
                }
                Reading::Queue(fetch) => self.take_pages(broker, messages, fetch, outcome),
                Reading::Chunk(fetch, large) => self.take_chunk(broker, messages, (fetch, large), outcome),
            }
        }
        Ok(())
    }

    /// Puts what was read into its queue, as far as there is memory for it.
    fn take_pages(
        &mut self,
        broker: &mut Broker,
        messages: &mut Messages,
        fetch: Fetch,
        outcome: store::ReadOutcome,
    ) {
        let store::ReadOutcome::Fetch(done) = outcome else { return };
        let mut stopped = None;
        let fetched = self.keeper.log_mut().fetch_done(done, |offset, message| {
            if stopped.is_none() {
                stopped = take_page(broker, messages, &fetch, offset, message);
            }
        });
        match stopped {
            None => broker.fetched(&fetch, fetched.through),
            Some(Stopped::NoRoom) => broker.page_later(messages, &fetch),
            Some(Stopped::Large(large)) => self.read_chunk(broker, messages, fetch, large),
        }
    }

    /// Goes on reading a large body, or is done with it.
    fn read_chunk(&mut self, broker: &mut Broker, messages: &mut Messages, fetch: Fetch, large: Large) {
        if large.next == large.chunks {
            let is_whole = messages.body_missing(large.message) == 0;
            if is_whole {
                broker.paged_in(messages, &fetch, large.offset, large.message);
            } else {
                messages.release(large.message);
            }
            broker.fetched(&fetch, large.offset + 1);
            return;
        }
        match self.keeper.log_mut().fetch_chunk(large.body, large.next) {
            Some(job) => {
                self.reading = Reading::Chunk(fetch, large);
                self.reader.give(store::Read::Fetch(job));
            }
            None => {
                messages.release(large.message);
                broker.page_later(messages, &fetch);
            }
        }
    }

    fn take_chunk(
        &mut self,
        broker: &mut Broker,
        messages: &mut Messages,
        (fetch, mut large): (Fetch, Large),
        outcome: store::ReadOutcome,
    ) {
        let store::ReadOutcome::Fetch(done) = outcome else { return };
        let mut is_good = false;
        let fetched = self.keeper.log_mut().chunk_done(done, |bytes| {
            if let Some(bytes) =
                bytes.filter(|bytes| bytes.len() <= messages.body_missing(large.message) as usize)
            {
                messages.append_body(large.message, bytes);
                is_good = true;
            }
        });
        match (is_good, fetched.retry) {
            (true, _) => large.next += 1,
            (false, true) => {}
            (false, false) => large.next = large.chunks,
        }
        self.read_chunk(broker, messages, fetch, large);
    }

    /// Hands out what is due.
    pub(super) fn hand_out(&mut self, broker: &mut Broker, messages: &mut Messages, now: Now) {
        if let Some(job) = self.keeper.next_write(broker.journal_mut(), messages, now) {
            self.writer.give(job);
        }
        if !matches!(self.reading, Reading::Nothing) {
            return;
        }
        // Turn and turn about, so that neither starves.
        self.cleans_next = !self.cleans_next;
        if self.cleans_next && self.clean() {
            return;
        }
        if self.may_fetch
            && let Some(fetch) = broker.next_fetch(messages)
        {
            let range = store::Range { start: fetch.start, end: fetch.end };
            if let Some(job) = self.keeper.log_mut().fetch(fetch.incarnation, range, fetch.bytes_max) {
                self.reading = Reading::Queue(fetch);
                self.reader.give(store::Read::Fetch(job));
                return;
            }
            // The segment is just being sealed: after that commit.
            broker.want_again(&fetch);
            self.may_fetch = false;
        }
        self.clean();
    }

    fn clean(&mut self) -> bool {
        let job = self.keeper.log_mut().next_clean_read();
        let is_given = job.is_some();
        if let Some(job) = job {
            self.reading = Reading::Cleaning;
            self.reader.give(store::Read::Clean(job));
        }
        is_given
    }

    /// Everything is to be written now.
    pub(super) fn flush(&mut self, now: Now) {
        self.keeper.flush(now);
    }

    /// Whether everything is written.
    pub(super) fn is_idle(&self, broker: &Broker) -> bool {
        self.keeper.is_idle(broker.journal())
    }
}

/// Puts one message into its queue; says why not, if that stops everything behind it.
fn take_page(
    broker: &mut Broker,
    messages: &mut Messages,
    fetch: &Fetch,
    offset: u64,
    message: &store::Message<'_>,
) -> Option<Stopped> {
    let (body, body_len) = match message.body {
        store::Body::Inline(bytes) => (bytes, bytes.len() as u64),
        store::Body::Chunked { bytes, .. } => (&[][..], bytes),
    };
    let page = Page {
        offset,
        exchange: core::str::from_utf8(message.exchange).unwrap_or_default(),
        routing_key: message.key,
        properties: message.properties,
        body_len: u32::try_from(body_len).unwrap_or(u32::MAX),
    };
    let id = match broker.page_in(messages, fetch, &page) {
        PageIn::Begun(id) => id,
        PageIn::NotWanted => return None,
        PageIn::NoRoom => return Some(Stopped::NoRoom),
    };
    if let store::Body::Chunked { body, chunks, .. } = message.body {
        return Some(Stopped::Large(Large { offset, message: id, body, chunks, next: 0 }));
    }
    messages.append_body(id, body);
    broker.paged_in(messages, fetch, offset, id);
    None
}

fn fresh_identity() -> store::Identity {
    let (mut id, mut secret) = ([0; 16], [0; 8]);
    entropy(&mut id);
    entropy(&mut secret);
    store::Identity { id, secret: u64::from_le_bytes(secret) }
}

fn settings(config: &Config, directory: &Path) -> Settings {
    let (store, limits) = (&config.store, &config.limits);
    let segment = u64::from(limits.segment_bytes);
    let limit = store.disk_limit_bytes.unwrap_or_else(|| auto_limit(directory));
    Settings {
        segment_bytes: limits.segment_bytes,
        commit_bytes: limits.commit_bytes_max,
        segments_max: u32::try_from((limit / segment).max(SEGMENTS_MIN)).unwrap_or(u32::MAX),
        commit_window_ms: store.commit_window_ms.into(),
        confirm_window_ms: store.confirm_window_ms.into(),
        settle_window_ms: store.settle_window_ms.into(),
        syncs_per_s: store.syncs_per_s,
        sync_burst: store.sync_burst,
    }
}

/// Half of what is free, our own files counted as free.
fn auto_limit(directory: &Path) -> u64 {
    let free = rustix::fs::statvfs(directory).map_or(0, |found| found.f_bavail * found.f_frsize);
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let ours: u64 = entries.filter_map(|entry| entry.metadata().ok()).map(|found| found.len()).sum();
    ((free + ours) / 2).min(AUTO_LIMIT_BYTES_MAX)
}

/// There is no store: transient messages are served, and what would have to be durable waits.
fn degraded(broker: &mut Broker, directory: &Path, error: &io::Error) -> Option<Disk> {
    log::error!(
        "the data directory {} cannot be used ({error}): persistent messages wait, nothing durable can be \
         declared; see to the disk and start again",
        directory.display()
    );
    broker.journal_mut().start(0, false, 0);
    None
}

fn tell(report: &Report, directory: &Path) {
    if report.is_new {
        log::info!("{}: a new store", directory.display());
    }
    for part in &report.set_aside {
        log::error!(
            "{}: bytes {} to {} of segment file {:08} are damaged and set aside; `leveret inspect` says more",
            directory.display(),
            part.from,
            part.to,
            part.slot
        );
    }
    if let Some(error) = &report.unwritable {
        log::error!(
            "{} cannot be written ({error}): what it holds is delivered, persistent messages wait, nothing \
             durable can be declared; see to the disk and start again",
            directory.display()
        );
    }
}

/// Declares everything again, and says where its messages lie.
fn restore(broker: &mut Broker, log: &mut Log, files: &mut FileDisk) -> io::Result<()> {
    let mut orphans: Vec<Box<[u8]>> = Vec::new();
    let mut queues: Vec<(u64, QueueId)> = Vec::new();
    let damaged = log.read_definitions(files, |key, value| {
        let Some(definition) = Definition::parse(key, value) else { return };
        match broker.restore(&definition) {
            Restored::Exists(Some(queue)) => {
                if let Definition::Queue { incarnation, .. } = definition {
                    queues.push((incarnation, queue));
                }
            }
            Restored::Exists(None) => {}
            Restored::Orphaned => orphans.push(key.into()),
            Restored::NoRoom => log::error!("{definition:?} is stored, but the limits have no room for it"),
        }
    })?;
    if damaged > 0 {
        log::error!("{damaged} definitions are damaged and left out");
    }
    for key in orphans {
        broker.forget(&key);
    }
    let mut messages = 0;
    for (incarnation, queue) in queues {
        messages += restore_queue(broker, log, incarnation, queue);
    }
    log::info!("the store has {messages} messages");
    Ok(())
}

fn restore_queue(broker: &mut Broker, log: &Log, incarnation: u64, queue: QueueId) -> u64 {
    let Some(found) = log.index().queues().get(&incarnation) else { return 0 };
    let contents = Contents {
        count: found.live,
        bytes: found.live_bytes(),
        next_offset: found.next_offset(),
        delivered_through: found.delivered_through,
    };
    broker.restore_contents(queue, &contents);
    for range in found.live_ranges() {
        if !broker.restore_messages(queue, range.start, range.end) {
            log::error!(
                "queue_entries_max has no room for all that is stored: some messages wait for a restart"
            );
            break;
        }
    }
    found.live
}
