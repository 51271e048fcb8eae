//! Reads messages that only the log has back into memory ahead of delivery (`evict` is the opposite
//! direction).
//!
//! ```text
//! page in: middle ──→ head; a requeued first message stays at its position
//! ```
//!
//! # Invariants
//! - Order is kept.
//! - A message that could not be read back is dropped and settled in the log; its bytes stay on the disk for
//!   a later attempt to recover it.
//! - A queue that found no memory to read into, or no place among the queue entries, is tried again only
//!   after some became free.
//! - As long as a message is only in the log, memory is kept free to read back the largest such message.
//! - A read takes only memory that is kept free for it. A read for browsing takes only memory that publishers
//!   could have had.

use std::collections::VecDeque;

use leveret_amqp::props::Properties;
use leveret_core::command::QueueId;
use leveret_core::limits::Limits;
use leveret_core::mem::{MessageFlags, MessageId, Messages, PoolFull, Share};

use super::Queues;
use crate::Context;
use crate::queue_records::{First, LogRun, Place, Size};

/// Messages that could not be read back, by their offsets in the log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LostMessages {
    pub(crate) queue: QueueId,
    pub(crate) first: u64,
    pub(crate) last: u64,
}

/// Bytes of records read back at once.
const FETCH_BYTES: u32 = 128 << 10;

impl Queues {
    /// Returns whether any queue waits for a read and there may be memory for it.
    pub fn wants_read_back(&self, messages: &Messages) -> bool {
        self.browses.is_wanted() || self.paging.is_wanted(self.page_room_made(messages))
    }

    /// Returns a counter that rises when memory or queue entries are freed, which reading a message back may
    /// wait for.
    const fn page_room_made(&self, messages: &Messages) -> u64 {
        messages.capacity_freed() + self.pool.given()
    }

    /// Returns the next messages to read back; [`Self::fetched`] must follow.
    pub fn next_read(&mut self, messages: &Messages) -> Option<LogRead> {
        if let Some(fetch) = self.browses.next_read() {
            return Some(fetch);
        }
        while let Some(queue) = self.paging.next_wanted(self.page_room_made(messages)) {
            if self.records.get(queue.index()).is_none() {
                continue;
            }
            if let Some(fetch) = self.fetch_for(queue) {
                return Some(fetch);
            }
            self.records[queue].listed.is_fetching = false;
            self.unblock_front(queue);
        }
        None
    }

    fn fetch_for(&self, queue: QueueId) -> Option<LogRead> {
        let record = &self.records[queue];
        let (from, (start, count)) = match (self.absent_rejected(queue), self.first(queue)) {
            _ if record.is_deleted() => return None,
            (Some(offset), _) => (ReadPosition::Rejected, (offset, 1)),
            (None, Some(First::Absent(offset))) => (ReadPosition::Returned, (offset, 1)),
            (None, _) => (ReadPosition::Middle, record.backlog.first_stored(&self.pool)?),
        };
        let is_peek = record.times.peeked.is_wanted() && from != ReadPosition::Rejected;
        let count = if is_peek { 1 } else { count };
        Some(LogRead {
            queue,
            incarnation: record.logged.incarnation(),
            start,
            end: start + u64::from(count),
            bytes_max: FETCH_BYTES,
            from,
            is_peek,
        })
    }

    /// Takes a message that was read back; its body follows.
    pub fn page_in(
        &mut self,
        messages: &mut Messages,
        fetch: &LogRead,
        page: &ReadMessage<'_>,
    ) -> PageInOutcome {
        if fetch.from == ReadPosition::Browse {
            if self.records.get(fetch.queue.index()).is_none() {
                return PageInOutcome::NotWanted;
            }
            return self.browses.begin(messages, fetch, page);
        }
        self.skip_lost(fetch, page.offset);
        if self.front_run(fetch).is_none_or(|(start, _)| start != page.offset) {
            return PageInOutcome::NotWanted;
        }
        if fetch.is_peek {
            self.peeked(fetch, page);
            return PageInOutcome::NotWanted;
        }
        if page.body_len as usize > messages.body_bytes_max() / 16 * 15 {
            log::error!("a message of {} bytes is larger than body_bytes_max", page.body_len);
            self.skip_lost(fetch, page.offset + 1);
            return PageInOutcome::NotWanted;
        }
        if !self.has_place(fetch) {
            return PageInOutcome::NoCapacity;
        }
        // A message that blocks its queue may take the last memory; messages read ahead may not.
        let is_first = fetch.is_single() || self.records[fetch.queue].backlog.is_head_empty();
        if !is_first && !messages.has_ordinary_room(page.bytes()) {
            return PageInOutcome::NoCapacity;
        }
        begin_page(messages, page).map_or(PageInOutcome::NoCapacity, PageInOutcome::Begun)
    }

    /// Notes that there was no memory for a message that was read.
    ///
    /// If the message blocks its queue, it is read again when memory is freed. What was read ahead is
    /// requested again when the head runs low.
    pub fn note_no_memory(&mut self, messages: &Messages, fetch: &LogRead) {
        if fetch.from == ReadPosition::Browse {
            return self.browses.end(false);
        }
        if !self.is_same_queue(fetch) {
            return;
        }
        let capacity_freed = self.page_room_made(messages);
        let record = &mut self.records[fetch.queue];
        if record.backlog.is_head_empty() || fetch.is_single() {
            self.paging.await_memory(fetch.queue, capacity_freed);
        } else {
            record.listed.is_fetching = false;
        }
        self.unblock_front(fetch.queue);
    }

    /// Notes that a message could not be read now: it is read again in the next turn.
    pub fn retry_read(&mut self, fetch: &LogRead) {
        if fetch.from == ReadPosition::Browse {
            return self.browses.end(true);
        }
        if self.is_same_queue(fetch) {
            self.paging.want(fetch.queue);
        }
    }

    /// Returns whether there is a place among the queue entries for a message that was read back.
    ///
    /// A message that blocks its queue may take the last chunk. A requeued message has its place already.
    fn has_place(&self, fetch: &LogRead) -> bool {
        let backlog = &self.records[fetch.queue].backlog;
        fetch.is_single()
            || if backlog.is_head_empty() {
                self.pool.has_read_back_chunk()
            } else {
                self.pool.chunks_free() > 0
            }
    }

    fn is_same_queue(&self, fetch: &LogRead) -> bool {
        let record = self.records.get(fetch.queue.index());
        record.is_some_and(|record| record.logged.is_on() && record.logged.incarnation() == fetch.incarnation)
    }

    /// Completes a message whose body has been read: it is in its queue again if it is still wanted.
    ///
    /// `enqueued_ms` is its arrival in broker time. Returns `false` if it is wanted but there is no place for
    /// it now.
    pub fn paged_in(
        &mut self,
        cx: &mut Context<'_>,
        fetch: &LogRead,
        (offset, enqueued_ms): (u64, u64),
        message: MessageId,
    ) -> bool {
        if fetch.from == ReadPosition::Browse {
            self.browses.add(cx.messages, offset, message);
            return true;
        }
        cx.messages.finish(message);
        cx.messages.set_arrived_ms(message, enqueued_ms.max(1));
        if self.records.get(fetch.queue.index()).is_some()
            && cx.messages.flags(message).has(MessageFlags::EXPIRES)
        {
            self.records.note_may_expire(fetch.queue);
        }
        let is_next = self.front_run(fetch).is_some_and(|(start, _)| start == offset);
        if !is_next || !self.has_place(fetch) {
            cx.messages.release(message);
            return !is_next;
        }
        let size = Size::of(cx.messages, message);
        let backlog = &mut self.records[fetch.queue].backlog;
        match fetch.from {
            ReadPosition::Returned => {
                let place = (message, offset);
                backlog.returned_paged_in(&mut self.pool, &mut self.deliveries, place, size);
                return true;
            }
            ReadPosition::Rejected => {
                backlog.rejected_paged_in(&mut self.deliveries, message, size);
                return true;
            }
            ReadPosition::Middle | ReadPosition::Browse => {}
        }
        backlog.paged_in(&mut self.pool, Place::Logged(message, offset), size);
        true
    }

    /// Returns, once, the messages that the last read did not find.
    pub(crate) const fn take_lost(&mut self) -> Option<LostMessages> {
        self.lost.take()
    }

    /// Ends a read: messages with offsets below `through` that were not found are lost.
    pub fn end_read(&mut self, fetch: &LogRead, through: u64) {
        if fetch.from == ReadPosition::Browse {
            return self.browses.end(false);
        }
        let record = self.records.get(fetch.queue.index());
        let was_seen = fetch.is_peek && record.is_some_and(|record| record.times.peeked.is_of(fetch.start));
        if !was_seen {
            self.skip_lost(fetch, through);
        }
        if !self.is_same_queue(fetch) {
            return;
        }
        let record = &mut self.records[fetch.queue];
        record.listed.is_fetching = false;
        // Deliveries and gets try again. If the first message is still not in memory, they request it again.
        self.unblock_front(fetch.queue);
    }

    /// Returns the offset of the first rejected message, if only the log has it.
    fn absent_rejected(&self, queue: QueueId) -> Option<u64> {
        let delivery = &self.deliveries[self.records[queue].backlog.first_rejected()?];
        delivery.logged.filter(|_| delivery.message.is_none())
    }

    /// Returns the run that is being read, if it is still wanted: at the front of the middle, or one requeued
    /// message.
    fn front_run(&self, fetch: &LogRead) -> Option<(u64, u32)> {
        let record = self.records.get(fetch.queue.index()).filter(|record| !record.is_deleted())?;
        let is_first = match fetch.from {
            ReadPosition::Returned => self.first(fetch.queue) == Some(First::Absent(fetch.start)),
            ReadPosition::Rejected => self.absent_rejected(fetch.queue) == Some(fetch.start),
            ReadPosition::Middle | ReadPosition::Browse => false,
        };
        if fetch.is_single() {
            let is_first = is_first && self.is_same_queue(fetch);
            return is_first.then_some((fetch.start, 1));
        }
        let run = record.backlog.first_stored(&self.pool);
        run.filter(|_| record.logged.incarnation() == fetch.incarnation)
    }

    fn skip_lost(&mut self, fetch: &LogRead, through: u64) {
        // The queue may have been purged or deleted during the read.
        let Some((start, count)) = self.front_run(fetch) else { return };
        let lost = through.saturating_sub(start).min(u64::from(count)) as u32;
        if lost > 0 {
            let name = &self.records[self.records.queue_of_level(fetch.queue)].name;
            log::error!(
                "queue '{}': {lost} messages cannot be read back from the log; they are skipped",
                name.escape_debug()
            );
            self.lost =
                Some(LostMessages { queue: fetch.queue, first: start, last: start + u64::from(lost) - 1 });
            let backlog = &mut self.records[fetch.queue].backlog;
            match fetch.from {
                ReadPosition::Returned => self.leave_absent(fetch.queue),
                ReadPosition::Rejected => backlog.lose_rejected(&mut self.deliveries),
                ReadPosition::Middle | ReadPosition::Browse => backlog.leave_stored(&mut self.pool, lost),
            }
            self.records[fetch.queue].logged.settled_unread(lost.into());
            self.releases += 1;
        }
    }
}

/// Queues that read messages from the log, and the search for messages to evict.
#[derive(Debug)]
pub(crate) struct Paging {
    /// Queues whose first messages are to be read back.
    wanted: VecDeque<QueueId>,
    /// Queues for whose messages there was no memory.
    awaiting_memory: VecDeque<QueueId>,
    /// Counter of freed memory (`Queues::page_room_made`) when the first queue began to wait for memory.
    awaiting_since: u64,
    /// Place at which the search for messages to evict continues.
    next_place: usize,
    /// The memory kept free to read back messages that only the log has.
    read_back: ReadBackReserve,
}

impl Paging {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            wanted: VecDeque::with_capacity(64),
            awaiting_memory: VecDeque::new(),
            awaiting_since: 0,
            next_place: 0,
            read_back: ReadBackReserve::new(limits),
        }
    }

    // ---- into memory

    /// Requests that the first messages of this queue be read back.
    pub(crate) fn want(&mut self, queue: QueueId) {
        self.wanted.push_back(queue);
    }

    /// Returns whether any queue waits for a read and there may be memory for it.
    pub(crate) fn is_wanted(&self, capacity_freed: u64) -> bool {
        !self.wanted.is_empty() || self.may_find_memory(capacity_freed)
    }

    /// Returns the queue to read for next, if any.
    pub(crate) fn next_wanted(&mut self, capacity_freed: u64) -> Option<QueueId> {
        if self.may_find_memory(capacity_freed) {
            self.wanted.append(&mut self.awaiting_memory);
        }
        self.wanted.pop_front()
    }

    /// Notes that there was no memory for a message of this queue: it is read again when some is freed.
    pub(crate) fn await_memory(&mut self, queue: QueueId, capacity_freed: u64) {
        if self.awaiting_memory.is_empty() {
            self.awaiting_since = capacity_freed;
        }
        self.awaiting_memory.push_back(queue);
    }

    /// Returns whether the first message of any queue found no memory.
    pub(crate) fn is_short_of_memory(&self) -> bool {
        !self.awaiting_memory.is_empty()
    }

    fn may_find_memory(&self, capacity_freed: u64) -> bool {
        self.is_short_of_memory() && capacity_freed != self.awaiting_since
    }

    // ---- eviction

    /// Returns the place, among `places`, at which the search for messages to evict continues.
    pub(crate) const fn next_place(&mut self, places: usize) -> usize {
        if self.next_place >= places {
            self.next_place = 0;
        }
        self.next_place
    }

    /// Moves the search on: this place has nothing more to evict.
    pub(crate) const fn skip_place(&mut self) {
        self.next_place += 1;
    }

    // ---- memory for reading back

    /// Sets, at start, the bytes of the largest body in the log.
    pub(crate) fn set_largest_stored_body(&mut self, body_bytes: u64) {
        self.read_back.need_for_body(body_bytes);
    }

    /// Notes that from now on only the log has a message of this many bytes.
    pub(crate) fn paged_out(&mut self, bytes: u64) {
        self.read_back.need(bytes);
    }

    /// Keeps memory free to read messages back, as long as a queue at one of these places `has_absent`
    /// messages.
    ///
    /// Returns whether the search for such a queue continues. A step examines a bounded number of queues.
    pub(crate) fn keep_read_back_reserve(
        &mut self,
        messages: &mut Messages,
        places: usize,
        has_absent: impl Fn(usize) -> bool,
    ) -> bool {
        self.read_back.keep(messages, places, has_absent)
    }
}

/// Maximum number of queues that one step examines.
const QUEUES_STEP: usize = 64;

/// The memory kept free to read back the largest message that only the log has. That message may precede
/// transient ones that fill the rest of the memory.
#[derive(Debug)]
pub(crate) struct ReadBackReserve {
    /// Bytes of the largest message that only the log has, or of one that has left since; 0 if there is none.
    bytes: u64,
    /// Bytes of the largest possible message.
    message_bytes_max: u64,
    /// Bytes that names and properties may add to a body.
    frame_bytes: u64,
    /// Place at which the search for a queue with messages that only the log has continues.
    next_place: usize,
    /// Number of consecutive places whose queues have no such message.
    clear: usize,
}

impl ReadBackReserve {
    pub(crate) fn new(limits: &Limits) -> Self {
        // Exchange and routing key are short strings.
        let frame_bytes = u64::from(limits.frame_max) + 512;
        let message_bytes_max = u64::from(limits.message_size_max) + frame_bytes;
        Self { bytes: 0, message_bytes_max, frame_bytes, next_place: 0, clear: 0 }
    }

    /// Notes that from now on only the log has a message of this many bytes.
    pub(crate) fn need(&mut self, bytes: u64) {
        self.bytes = self.bytes.max(bytes);
        self.clear = 0;
    }

    /// Notes that only the log has a message of which only the body's size is known; 0 when there is none.
    pub(crate) fn need_for_body(&mut self, body_bytes: u64) {
        if body_bytes > 0 {
            self.need(body_bytes + self.frame_bytes);
        }
    }

    /// Keeps the memory free as long as a queue at one of these places `has_absent` messages. Returns whether
    /// the search for such a queue continues.
    pub(crate) fn keep(
        &mut self,
        messages: &mut Messages,
        places: usize,
        has_absent: impl Fn(usize) -> bool,
    ) -> bool {
        if self.bytes == 0 {
            return false;
        }
        for _ in 0..QUEUES_STEP {
            if has_absent(self.next_place) {
                self.clear = 0;
                break;
            }
            self.next_place = if self.next_place + 1 < places { self.next_place + 1 } else { 0 };
            self.clear += 1;
        }
        let is_needed = self.clear < places;
        if !is_needed {
            (self.bytes, self.clear) = (0, 0);
        }
        messages.keep_for_read_back(self.bytes, self.message_bytes_max);
        is_needed && self.clear > 0
    }
}

/// Messages to be read back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogRead {
    /// Queue that the messages are read for.
    pub queue: QueueId,
    /// Number that identifies the queue in the log.
    pub incarnation: u64,
    /// First log offset to read.
    pub start: u64,
    /// Log offset after the last one to read.
    pub end: u64,
    /// Approximate number of bytes to read at once.
    pub bytes_max: u32,
    /// Position of the messages in their queue.
    pub from: ReadPosition,
    /// Only the expiry time of the first message is wanted: the message stays in the log.
    pub is_peek: bool,
}

/// Position in its queue of a message that is to be read back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReadPosition {
    /// In the middle, among waiting messages.
    Middle,
    /// At the front: one message that was delivered before and requeued.
    Returned,
    /// Among the rejected messages: one message that is to be dead-lettered.
    Rejected,
    /// Anywhere: an operator browses the queue, which does not change.
    Browse,
}

/// A message that was read back, without its body.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReadMessage<'a> {
    /// The log offset of the message.
    pub offset: u64,
    /// The exchange that the message was published to.
    pub exchange: &'a str,
    /// The routing key of the message.
    pub routing_key: &'a [u8],
    /// The properties of the message.
    pub properties: &'a [u8],
    /// Bytes of the message body.
    pub body_len: u32,
    /// Arrival of the message in milliseconds of broker time.
    pub enqueued_ms: u64,
}

impl LogRead {
    pub(super) const fn is_single(&self) -> bool {
        !matches!(self.from, ReadPosition::Middle)
    }
}

impl ReadMessage<'_> {
    pub(super) fn bytes(&self) -> usize {
        self.exchange.len() + self.routing_key.len() + self.properties.len() + self.body_len as usize
    }
}

/// What happens with a message that was read back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PageInOutcome {
    /// The body of the message follows, and then [`Queues::paged_in`].
    Begun(MessageId),
    /// The message left the queue meanwhile, or was read only for its expiry time.
    NotWanted,
    /// There is no memory for the message now.
    NoCapacity,
}

/// Begins a message that was read back; its body follows.
///
/// # Errors
/// There is no memory for it now.
pub(crate) fn begin_page(messages: &mut Messages, page: &ReadMessage<'_>) -> Result<MessageId, PoolFull> {
    let message = messages.begin(page.exchange, page.routing_key, Share::ReadBack)?;
    let flags = MessageFlags::PERSISTENT.with(MessageFlags::STORED);
    let properties = Properties::trusted(page.properties);
    let flags = if properties.expiration().is_some() { flags.with(MessageFlags::EXPIRES) } else { flags };
    let flags = if properties.is_blind() { flags.with(MessageFlags::HAS_BCC) } else { flags };
    match messages.reserve_content(message, page.properties, flags, page.body_len, Share::ReadBack) {
        Ok(()) => Ok(message),
        Err(full) => {
            // A failed attempt must not wake what waits for memory.
            messages.discard(message);
            Err(full)
        }
    }
}

/// Bytes of records read from the log for one browse request.
const BROWSE_BYTES: u32 = 128 << 10;

/// A read from the log for an operator who browses a queue.
#[derive(Debug)]
struct Browse {
    number: u64,
    run: LogRun,
    state: BrowseState,
    /// The messages read so far, each with whether it was delivered before.
    found: Vec<(MessageId, bool)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum BrowseState {
    Wanted,
    Reading,
    Done,
}

/// The browse requests. One of them is read at a time, and its messages are held until the caller takes them.
///
/// ```text
/// want ─→ next_fetch ~ disk ~ page_in, paged_in ─→ fetched ─→ take
/// ```
#[derive(Debug, Default)]
pub struct BrowseRequests {
    list: Vec<Browse>,
    last: u64,
}

impl BrowseRequests {
    /// Requests messages from the log for browsing. Returns the number of the request.
    pub fn want(&mut self, run: LogRun) -> u64 {
        self.last += 1;
        self.list.push(Browse { number: self.last, run, state: BrowseState::Wanted, found: Vec::new() });
        self.last
    }

    /// Returns whether the messages of this request have been read.
    pub fn is_done(&self, number: u64) -> bool {
        let browse = self.list.iter().find(|browse| browse.number == number);
        browse.is_none_or(|browse| browse.state == BrowseState::Done)
    }

    /// Returns the messages of a request, each with whether it was delivered before. The caller releases
    /// them.
    pub fn take(&mut self, number: u64) -> Vec<(MessageId, bool)> {
        let place = self.list.iter().position(|browse| browse.number == number);
        place.map(|place| self.list.swap_remove(place).found).unwrap_or_default()
    }

    /// Returns whether any request waits to be read.
    #[inline]
    pub(super) fn is_wanted(&self) -> bool {
        !self.list.is_empty() && self.list.iter().any(|browse| browse.state == BrowseState::Wanted)
    }

    /// Returns what is to be read for the next request.
    pub(super) fn next_read(&mut self) -> Option<LogRead> {
        let browse = self.list.iter_mut().find(|browse| browse.state == BrowseState::Wanted)?;
        browse.state = BrowseState::Reading;
        let LogRun { queue, incarnation, start, count, .. } = browse.run;
        let (end, from) = (start + u64::from(count), ReadPosition::Browse);
        Some(LogRead { queue, incarnation, start, end, bytes_max: BROWSE_BYTES, from, is_peek: false })
    }

    /// Begins a message that was read for browsing; its body follows.
    pub(super) fn begin(
        &mut self,
        messages: &mut Messages,
        fetch: &LogRead,
        page: &ReadMessage<'_>,
    ) -> PageInOutcome {
        if self.reading().is_none() || !(fetch.start..fetch.end).contains(&page.offset) {
            return PageInOutcome::NotWanted;
        }
        if page.body_len as usize > messages.body_bytes_max() / 4 || !messages.has_ordinary_room(page.bytes())
        {
            return PageInOutcome::NoCapacity;
        }
        begin_page(messages, page).map_or(PageInOutcome::NoCapacity, PageInOutcome::Begun)
    }

    /// Adds a message whose body is complete to its request.
    pub(super) fn add(&mut self, messages: &mut Messages, offset: u64, message: MessageId) {
        messages.finish(message);
        match self.reading() {
            Some(browse) => browse.found.push((message, offset < browse.run.redelivered_below)),
            None => messages.release(message),
        }
    }

    /// Ends the read for a request, or has it repeated.
    pub(super) fn end(&mut self, is_again: bool) {
        if let Some(browse) = self.reading() {
            browse.state = if is_again { BrowseState::Wanted } else { BrowseState::Done };
        }
    }

    fn reading(&mut self) -> Option<&mut Browse> {
        self.list.iter_mut().find(|browse| browse.state == BrowseState::Reading)
    }
}
