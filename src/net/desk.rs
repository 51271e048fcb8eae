//! What passes between the broker and the store: jobs for the disk come out, their results go in.
//!
//! Why it exists: the loop hands the jobs to threads, and the simulator runs them when it likes; everything
//! in between is the same code.
//!
//! Always true: no thread, no clock, no disk; one write and one read are out at a time; what was read goes
//! into its queue as far as there is memory for it, in order.

use std::io;

use crate::broker::{Broker, Contents, Fetch, Page, PageIn, Restored};
use crate::command::QueueId;
use crate::journal::definition::is_access;
use crate::journal::{Definition, is_transient};
use crate::mem::{MessageId, Messages};
use crate::password::PasswordHash;
use crate::store::{self, Access, AccessReport, Counters, Keeper, Log, Read, ReadOutcome, Write, WriteDone};
use crate::time::{Deadline, Now};

/// The store as the loop's thread sees it.
pub(crate) struct Desk {
    keeper: Keeper,
    /// What is being read for a queue; the reader may also be cleaning.
    reading: Reading,
    cleans_next: bool,
    /// No commit is on its way that must be over first.
    may_fetch: bool,
    /// Reads for queues that the disk refused, one after the other.
    refused: u32,
}

/// A read that the disk refuses is asked for so often again before what it was for counts as lost.
const READ_AGAIN: u32 = 4;

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

impl Desk {
    /// For messages with properties of at most `frame_max` bytes.
    pub(crate) fn new(log: Log, frame_max: usize) -> Self {
        Self {
            keeper: Keeper::new(log, frame_max),
            reading: Reading::Nothing,
            cleans_next: false,
            may_fetch: true,
            refused: 0,
        }
    }

    /// Whether a read that went like this is to be tried again. Cards refuse reads now and then that they
    /// grant the next time, and a message is passed over for as long as the process lives.
    fn tries_again(&mut self, was_refused: bool) -> bool {
        self.refused = if was_refused { self.refused + 1 } else { 0 };
        was_refused && self.refused < READ_AGAIN
    }

    /// Whether there is something to hand out now.
    pub(crate) fn has_work(&self, broker: &Broker, messages: &Messages) -> bool {
        broker.journal().has_news()
            || self.may_fetch && broker.wants_pages(messages) && matches!(self.reading, Reading::Nothing)
    }

    /// When there is something to do here if nothing else happens.
    pub(crate) fn deadline(&self) -> Deadline {
        self.keeper.deadline()
    }

    /// What to write next, if nothing is being written and it is time.
    pub(crate) fn next_write(
        &mut self,
        broker: &mut Broker,
        messages: &mut Messages,
        now: Now,
    ) -> Option<Write> {
        self.keeper.next_write(broker.journal_mut(), messages, now)
    }

    /// Takes what was written.
    ///
    /// # Errors
    /// The disk failed.
    pub(crate) fn take_write(
        &mut self,
        broker: &mut Broker,
        messages: &mut Messages,
        done: WriteDone,
        now: Now,
    ) -> io::Result<()> {
        self.may_fetch = true;
        self.keeper.write_done(broker.journal_mut(), messages, done, now).map_err(|failed| failed.0)
    }

    /// What to read next, if nothing is being read.
    pub(crate) fn next_read(&mut self, broker: &mut Broker, messages: &Messages) -> Option<Read> {
        if !matches!(self.reading, Reading::Nothing) {
            return None;
        }
        // Turn and turn about, so that neither starves.
        self.cleans_next = !self.cleans_next;
        if self.cleans_next
            && let Some(job) = self.clean()
        {
            return Some(job);
        }
        if self.may_fetch
            && let Some(fetch) = broker.next_fetch(messages)
        {
            let range = store::Range { start: fetch.start, end: fetch.end };
            if let Some(job) = self.keeper.log_mut().fetch(fetch.incarnation, range, fetch.bytes_max) {
                self.reading = Reading::Queue(fetch);
                return Some(Read::Fetch(job));
            }
            // The segment is just being sealed: after that commit.
            broker.want_again(&fetch);
            self.may_fetch = false;
        }
        self.clean()
    }

    fn clean(&mut self) -> Option<Read> {
        let job = self.keeper.log_mut().next_clean_read()?;
        self.reading = Reading::Cleaning;
        Some(Read::Clean(job))
    }

    /// Takes what was read; there may be more to read of the same.
    pub(crate) fn take_read(
        &mut self,
        broker: &mut Broker,
        messages: &mut Messages,
        outcome: ReadOutcome,
    ) -> Option<Read> {
        match (core::mem::replace(&mut self.reading, Reading::Nothing), outcome) {
            (Reading::Cleaning, ReadOutcome::Clean(done)) => {
                self.keeper.log_mut().clean_read_done(done);
                None
            }
            (Reading::Queue(fetch), ReadOutcome::Fetch(done)) => {
                self.take_pages(broker, messages, fetch, done)
            }
            (Reading::Chunk(fetch, large), ReadOutcome::Fetch(done)) => {
                self.take_chunk(broker, messages, (fetch, large), done)
            }
            _ => {
                debug_assert!(false, "what comes back is what was asked for");
                None
            }
        }
    }

    /// Puts what was read into its queue, as far as there is memory for it.
    fn take_pages(
        &mut self,
        broker: &mut Broker,
        messages: &mut Messages,
        fetch: Fetch,
        done: store::FetchDone,
    ) -> Option<Read> {
        if self.tries_again(done.was_refused()) {
            self.keeper.log_mut().fetch_done(done, |_, _| {});
            broker.want_again(&fetch);
            return None;
        }
        let mut stopped = None;
        let fetched = self.keeper.log_mut().fetch_done(done, |offset, message| {
            if stopped.is_none() {
                stopped = take_page(broker, messages, &fetch, offset, message);
            }
        });
        match stopped {
            None => broker.fetched(&fetch, fetched.through),
            Some(Stopped::NoRoom) => broker.page_later(messages, &fetch),
            Some(Stopped::Large(large)) => return self.read_chunk(broker, messages, fetch, large),
        }
        None
    }

    /// Goes on reading a large body, or is done with it.
    fn read_chunk(
        &mut self,
        broker: &mut Broker,
        messages: &mut Messages,
        fetch: Fetch,
        large: Large,
    ) -> Option<Read> {
        if large.next == large.chunks {
            let is_whole = messages.body_missing(large.message) == 0;
            if !is_whole {
                messages.release(large.message);
            } else if !broker.paged_in(messages, &fetch, large.offset, large.message) {
                broker.page_later(messages, &fetch);
                return None;
            }
            broker.fetched(&fetch, large.offset + 1);
            return None;
        }
        match self.keeper.log_mut().fetch_chunk(large.body, large.next) {
            Some(job) => {
                self.reading = Reading::Chunk(fetch, large);
                Some(Read::Fetch(job))
            }
            None => {
                messages.release(large.message);
                broker.page_later(messages, &fetch);
                None
            }
        }
    }

    fn take_chunk(
        &mut self,
        broker: &mut Broker,
        messages: &mut Messages,
        (fetch, mut large): (Fetch, Large),
        done: store::FetchDone,
    ) -> Option<Read> {
        let tries_again = self.tries_again(done.was_refused());
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
            (false, retry) if retry || tries_again => {}
            (false, _) => large.next = large.chunks,
        }
        self.read_chunk(broker, messages, fetch, large)
    }

    /// The log, for who copies it.
    pub(crate) const fn log_mut(&mut self) -> &mut Log {
        self.keeper.log_mut()
    }

    /// What the store has done since the start.
    pub(crate) const fn counters(&self) -> Counters {
        self.keeper.log().counters()
    }

    /// Whether the disk has no room for what is to be written, and nothing is on its way that could make any.
    pub(crate) fn is_stuck(&self) -> bool {
        self.keeper.is_stuck() && matches!(self.reading, Reading::Nothing)
    }

    /// Everything is to be written now.
    pub(crate) fn flush(&mut self, now: Now) {
        self.keeper.flush(now);
    }

    /// Nothing more will be said: the last commit is to be one that proves the one before it.
    pub(crate) fn close(&mut self, now: Now) {
        self.keeper.close(now);
    }

    /// Whether everything is written.
    pub(crate) fn is_idle(&self, broker: &Broker) -> bool {
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
    if broker.paged_in(messages, fetch, offset, id) { None } else { Some(Stopped::NoRoom) }
}

/// Whom a new store begins with: a name, and what its password is kept as.
pub(crate) type First<'a> = Option<(&'a str, PasswordHash)>;

/// Declares everything again, and says where its messages lie. Who may come in is what the store says, as far
/// as it can vouch for that, and for a new one whoever is `first`.
pub(crate) fn restore(
    broker: &mut Broker,
    log: &Log,
    disk: &mut impl store::Disk,
    report: AccessReport,
    first: First<'_>,
) -> io::Result<()> {
    let AccessReport { access, unreadable, is_thin, .. } = report;
    match access {
        Access::New | Access::Silent => broker.begin_users(first),
        Access::InDoubt(why) => broker.doubt_access(why, unreadable),
        Access::Whole => {}
    }
    restore_definitions(broker, log, disk)?;
    if matches!(access, Access::New | Access::Silent) || access == Access::Whole && is_thin {
        broker.write_access();
    }
    Ok(())
}

fn restore_definitions(broker: &mut Broker, log: &Log, disk: &mut impl store::Disk) -> io::Result<()> {
    let mut orphans: Vec<(Box<[u8]>, Option<u64>)> = Vec::new();
    let mut queues: Vec<(u64, QueueId)> = Vec::new();
    let damaged = log.read_definitions(disk, |key, value| {
        let Some(definition) = Definition::parse(key, value) else { return };
        if let Definition::Queue { incarnation, .. } = definition
            && log.index().queues().get(&incarnation).is_some_and(|queue| queue.gone)
        {
            // It was deleted: what says so of its name was damaged.
            orphans.push((key.into(), None));
            return;
        }
        match broker.restore(&definition) {
            Restored::Exists(Some(queue)) => {
                if let Definition::Queue { incarnation, .. } = definition {
                    queues.push((incarnation, queue));
                }
            }
            Restored::Exists(None) => {}
            Restored::Orphaned => {
                let incarnation = match definition {
                    Definition::Queue { incarnation, .. } => Some(incarnation),
                    _ => None,
                };
                orphans.push((key.into(), incarnation));
            }
            not_now @ (Restored::NoRoom | Restored::Unknown) => {
                let why = match not_now {
                    Restored::NoRoom => "the limits have no room for it",
                    _ => "only another version knows its type",
                };
                log::error!("{definition} is stored, but {why}");
            }
        }
    })?;
    if damaged > 0 {
        log::error!("{damaged} definitions are damaged and left out");
    }
    if damaged > 0 || log.is_damaged() || broker.access_doubt().is_some() {
        // What seems to belong to nothing may belong to something that cannot be read. Of access that is for
        // whoever confirms the rest to say: nobody sees it, and it would come back with a user of that name.
        let hidden = orphans.drain(..).map(|(key, _)| key).filter(|key| is_access(key));
        broker.hide_access(hidden.collect());
    }
    for (key, incarnation) in orphans {
        broker.forget(&key, incarnation);
    }
    for (&incarnation, queue) in log.index().queues() {
        if is_transient(incarnation) && !queue.gone {
            broker.forget_transient(incarnation);
        }
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
        delivered_through: found.delivered_below(),
        marked_through: found.delivered_through,
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
