//! Reads messages that only the log has back into memory before their delivery. `evict` is the opposite
//! direction.
//!
//! ```text
//! page in: middle ──→ head; a requeued or rejected message is read back at its position
//! ```
//!
//! # Invariants
//! - Order is kept.
//! - A message that cannot be read back is dropped and counted as settled. The damaged segment stays on the
//!   disk, so that the message may be recovered from it later.
//! - A queue without memory or queue entries to read its messages back is retried only after memory or
//!   entries became free.
//! - As long as any message is only in the log, memory is kept free to read back the largest such message.
//! - A read for delivery may use the memory that is kept free for reads. A read for browsing uses only memory
//!   that publishers may use too.

use std::collections::VecDeque;

use leveret_amqp::props::Properties;
use leveret_core::command::QueueId;
use leveret_core::limits::Limits;
use leveret_core::mem::{MessageFlags, MessageId, Messages, PoolFull, Share};
use leveret_storage::Context;

use super::Queues;
use crate::records::{Browsed, BrowsedMessage, EntryContent, First, LogRun, Size};

/// Messages that could not be read back, by their offsets in the log.
#[derive(Clone, Copy, Debug)]
pub struct LostMessages {
    /// The queue or level.
    pub queue: QueueId,
    /// The smallest offset.
    pub first: u64,
    /// The largest offset.
    pub last: u64,
}

/// Bytes of records read back at once.
const FETCH_BYTES: u32 = 128 << 10;

impl Queues {
    /// Returns whether any queue waits for a read and there may be memory for it.
    pub fn wants_read_back(&self, messages: &Messages) -> bool {
        self.browses.is_wanted() || self.paging.is_wanted(self.read_capacity_freed(messages))
    }

    /// Returns a counter that rises when memory or queue entries are freed. Queues that wait for these retry
    /// their read when the counter rises.
    fn read_capacity_freed(&self, messages: &Messages) -> u64 {
        messages.capacity_freed() + self.pool.given()
    }

    /// Returns the next messages to read back; `None` if there are none. The caller ends the read with
    /// [`Self::end_read`], [`Self::retry_read`] or [`Self::note_no_memory`].
    pub fn next_read(&mut self, messages: &Messages) -> Option<LogRead> {
        if let Some(read) = self.browses.next_read() {
            return Some(read);
        }
        while let Some(queue) = self.paging.next_wanted(self.read_capacity_freed(messages)) {
            if self.records.get(queue.index()).is_none() {
                continue;
            }
            if let Some(read) = self.next_read_of(queue) {
                return Some(read);
            }
            self.records[queue].listed.is_fetching = false;
            self.unblock_front(queue);
        }
        None
    }

    fn next_read_of(&self, queue: QueueId) -> Option<LogRead> {
        let record = &self.records[queue];
        let (from, (start, count)) = match (self.first_absent_rejected(queue), self.first(queue)) {
            _ if record.is_deleted() => return None,
            (Some(offset), _) => (ReadPosition::Rejected, (offset, 1)),
            (None, Some(First::Absent(offset))) => (ReadPosition::Requeued, (offset, 1)),
            (None, _) => (ReadPosition::Middle, record.backlog.first_absent_run(&self.pool)?),
        };
        let is_peek = record.times.peeked.is_wanted() && from != ReadPosition::Rejected;
        let count = if is_peek { 1 } else { count };
        Some(LogRead {
            queue,
            incarnation: record.durable_index.incarnation(),
            start,
            end: start + u64::from(count),
            bytes_max: FETCH_BYTES,
            from,
            is_peek,
        })
    }

    /// Begins a message of this read, of which everything but the body is known. The outcome is
    /// [`PageInOutcome::Begun`] if the caller must append the body.
    pub fn page_in(
        &mut self,
        messages: &mut Messages,
        read: &LogRead,
        page: &ReadMessage<'_>,
    ) -> PageInOutcome {
        if read.from == ReadPosition::Browse {
            if self.records.get(read.queue.index()).is_none() {
                return PageInOutcome::NotWanted;
            }
            return self.browses.begin(messages, read, page);
        }
        self.skip_lost(read, page.offset);
        if self.front_run(read).is_none_or(|(start, _)| start != page.offset) {
            return PageInOutcome::NotWanted;
        }
        if read.is_peek {
            self.note_peeked(read, page);
            return PageInOutcome::NotWanted;
        }
        if page.body_len as usize > messages.body_bytes_max() / 16 * 15 {
            log::error!("a message of {} bytes is larger than the memory for messages", page.body_len);
            self.skip_lost(read, page.offset + 1);
            return PageInOutcome::NotWanted;
        }
        if !self.has_entry_capacity(read) {
            return PageInOutcome::NoCapacity;
        }
        // The message that is delivered next may take the last memory; messages that are read ahead of need
        // may not.
        let is_first = read.is_single() || self.records[read.queue].backlog.is_head_empty();
        if !is_first && !messages.has_ordinary_room(page.bytes()) {
            return PageInOutcome::NoCapacity;
        }
        begin_page(messages, page).map_or(PageInOutcome::NoCapacity, PageInOutcome::Begun)
    }

    /// Ends a read because there was no memory for a message.
    ///
    /// If its queue cannot deliver without this message, the message is read again when memory is freed.
    /// Messages that were to be read ahead are requested again when the head runs low.
    pub fn note_no_memory(&mut self, messages: &Messages, read: &LogRead) {
        if read.from == ReadPosition::Browse {
            return self.browses.end_early(false);
        }
        if !self.is_same_queue(read) {
            return;
        }
        let capacity_freed = self.read_capacity_freed(messages);
        let record = &mut self.records[read.queue];
        if record.backlog.is_head_empty() || read.is_single() {
            self.paging.await_memory(read.queue, capacity_freed);
        } else {
            record.listed.is_fetching = false;
        }
        self.unblock_front(read.queue);
    }

    /// Ends a read that failed but may succeed later: the read is repeated in the next turn.
    pub fn retry_read(&mut self, read: &LogRead) {
        if read.from == ReadPosition::Browse {
            return self.browses.end_early(true);
        }
        if self.is_same_queue(read) {
            self.paging.want(read.queue);
        }
    }

    /// Returns whether there is a queue entry for a message that was read back.
    ///
    /// The message that is delivered next may take the last chunk of entries. A requeued or rejected message
    /// has its entry or delivery record already.
    fn has_entry_capacity(&self, read: &LogRead) -> bool {
        let backlog = &self.records[read.queue].backlog;
        read.is_single()
            || if backlog.is_head_empty() {
                self.pool.has_read_back_chunk()
            } else {
                self.pool.chunks_free() > 0
            }
    }

    fn is_same_queue(&self, read: &LogRead) -> bool {
        let record = self.records.get(read.queue.index());
        record.is_some_and(|record| {
            record.durable_index.is_logged() && record.durable_index.incarnation() == read.incarnation
        })
    }

    /// Puts a message whose body has been read back into its queue, if the queue still waits for this
    /// message.
    ///
    /// `enqueued_ms` is the arrival of the message in milliseconds of broker time. Returns `false` if the
    /// queue waits for the message but there is no queue entry for it now.
    pub fn paged_in(
        &mut self,
        cx: &mut Context<'_>,
        read: &LogRead,
        offset: u64,
        enqueued_ms: u64,
        message: MessageId,
    ) -> bool {
        if read.from == ReadPosition::Browse {
            self.browses.add(cx.messages, offset, message);
            return true;
        }
        cx.messages.finish(message);
        cx.messages.set_arrived_ms(message, enqueued_ms.max(1));
        if self.records.get(read.queue.index()).is_some()
            && cx.messages.flags(message).has(MessageFlags::EXPIRES)
        {
            self.records.note_may_expire(read.queue);
        }
        let is_next = self.front_run(read).is_some_and(|(start, _)| start == offset);
        if !is_next || !self.has_entry_capacity(read) {
            cx.messages.release(message);
            return !is_next;
        }
        let size = Size::of(cx.messages, message);
        let backlog = &mut self.records[read.queue].backlog;
        match read.from {
            ReadPosition::Requeued => {
                backlog.requeued_paged_in(&mut self.pool, &mut self.deliveries, message, offset, size);
                return true;
            }
            ReadPosition::Rejected => {
                backlog.rejected_paged_in(&mut self.deliveries, message, size);
                return true;
            }
            ReadPosition::Middle | ReadPosition::Browse => {}
        }
        backlog.paged_in(&mut self.pool, EntryContent::InMemoryAndLog(message, offset), size);
        true
    }

    /// Returns the messages that the last read did not find in the log; `None` when called again.
    pub const fn take_lost(&mut self) -> Option<LostMessages> {
        self.lost.take()
    }

    /// Ends a read that went up to the offset `through`: messages with smaller offsets that were not found
    /// are lost.
    pub fn end_read(&mut self, read: &LogRead, through: u64) {
        if read.from == ReadPosition::Browse {
            return self.browses.end(through);
        }
        let record = self.records.get(read.queue.index());
        let was_seen = read.is_peek && record.is_some_and(|record| record.times.peeked.is_of(read.start));
        if !was_seen {
            self.skip_lost(read, through);
        }
        if !self.is_same_queue(read) {
            return;
        }
        let record = &mut self.records[read.queue];
        record.listed.is_fetching = false;
        // Deliveries and gets try again. If the first message is still not in memory, they request it again.
        self.unblock_front(read.queue);
    }

    /// Returns the offset of the first rejected message, if only the log has it.
    fn first_absent_rejected(&self, queue: QueueId) -> Option<u64> {
        let delivery = &self.deliveries[self.records[queue].backlog.first_rejected()?];
        delivery.log_offset.filter(|_| delivery.message.is_none())
    }

    /// Returns offset and count of the messages that this read is for and that their queue still waits for:
    /// the run at the front of the middle, or one requeued or rejected message. `None` if the queue was
    /// purged or deleted meanwhile.
    fn front_run(&self, read: &LogRead) -> Option<(u64, u32)> {
        let record = self.records.get(read.queue.index()).filter(|record| !record.is_deleted())?;
        let is_first = match read.from {
            ReadPosition::Requeued => self.first(read.queue) == Some(First::Absent(read.start)),
            ReadPosition::Rejected => self.first_absent_rejected(read.queue) == Some(read.start),
            ReadPosition::Middle | ReadPosition::Browse => false,
        };
        if read.is_single() {
            let is_first = is_first && self.is_same_queue(read);
            return is_first.then_some((read.start, 1));
        }
        let run = record.backlog.first_absent_run(&self.pool);
        run.filter(|_| record.durable_index.incarnation() == read.incarnation)
    }

    fn skip_lost(&mut self, read: &LogRead, through: u64) {
        // The queue may have been purged or deleted during the read.
        let Some((start, count)) = self.front_run(read) else { return };
        let lost = through.saturating_sub(start).min(u64::from(count)) as u32;
        if lost > 0 {
            let name = &self.records[self.records.queue_of_level(read.queue)].name;
            log::error!(
                "queue '{}': {lost} messages cannot be read back from the log; they are skipped",
                name.escape_debug()
            );
            self.lost =
                Some(LostMessages { queue: read.queue, first: start, last: start + u64::from(lost) - 1 });
            let backlog = &mut self.records[read.queue].backlog;
            match read.from {
                ReadPosition::Requeued => self.remove_first_absent(read.queue),
                ReadPosition::Rejected => backlog.lose_rejected(&mut self.deliveries),
                ReadPosition::Middle | ReadPosition::Browse => {
                    backlog.remove_from_absent_run(&mut self.pool, lost)
                }
            }
            self.records[read.queue].durable_index.settle_absent(lost.into());
            self.releases += 1;
        }
    }
}

/// Queues whose messages are to be read back, and the search for messages to evict.
#[derive(Debug)]
pub(crate) struct Paging {
    /// Queues whose first messages are to be read back.
    wanted: VecDeque<QueueId>,
    /// Queues whose read failed because there was no memory or queue entry.
    awaiting_memory: VecDeque<QueueId>,
    /// Value of `Queues::read_capacity_freed` when the first of these queues began to wait.
    awaiting_since: u64,
    /// Index of the queue at which the search for messages to evict continues.
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

    /// Removes and returns the queue whose messages are read next, if any.
    pub(crate) fn next_wanted(&mut self, capacity_freed: u64) -> Option<QueueId> {
        if self.may_find_memory(capacity_freed) {
            self.wanted.append(&mut self.awaiting_memory);
        }
        self.wanted.pop_front()
    }

    /// Notes that there was no memory for a message of this queue: the message is read again when memory is
    /// freed.
    pub(crate) fn await_memory(&mut self, queue: QueueId, capacity_freed: u64) {
        if self.awaiting_memory.is_empty() {
            self.awaiting_since = capacity_freed;
        }
        self.awaiting_memory.push_back(queue);
    }

    /// Returns whether any queue waits for memory to read its first message back.
    pub(crate) fn is_short_of_memory(&self) -> bool {
        !self.awaiting_memory.is_empty()
    }

    fn may_find_memory(&self, capacity_freed: u64) -> bool {
        self.is_short_of_memory() && capacity_freed != self.awaiting_since
    }

    // ---- eviction

    /// Returns the index, below `places`, of the queue at which the search for messages to evict continues.
    pub(crate) const fn next_place(&mut self, places: usize) -> usize {
        if self.next_place >= places {
            self.next_place = 0;
        }
        self.next_place
    }

    /// Moves the search to the next queue, because the current one has nothing more to evict.
    pub(crate) const fn skip_place(&mut self) {
        self.next_place += 1;
    }

    // ---- memory for reading back

    /// Sets, at start, the bytes of the largest body in the log.
    pub(crate) fn set_largest_stored_body(&mut self, body_bytes: u64) {
        self.read_back.need_for_body(body_bytes);
    }

    /// Notes that from now on only the log has a message of this many bytes.
    pub(crate) fn note_evicted(&mut self, bytes: u64) {
        self.read_back.need(bytes);
    }

    /// Keeps memory free to read messages back, as long as `has_absent` is true for any queue index below
    /// `places`.
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

/// The memory kept free to read back the largest message that only the log has. Without this memory,
/// transient messages that are behind that message in its queue could fill the memory and block the queue.
#[derive(Debug)]
pub(crate) struct ReadBackReserve {
    /// Upper bound of the bytes of the largest message that only the log has; 0 if no message is only in the
    /// log.
    bytes: u64,
    /// Bytes of the largest possible message.
    message_bytes_max: u64,
    /// Bytes that names and properties may add to a body.
    frame_bytes: u64,
    /// Index of the queue at which the search for absent messages continues.
    next_place: usize,
    /// Number of consecutive indices whose queues have no absent message.
    clear_count: usize,
}

impl ReadBackReserve {
    pub(crate) fn new(limits: &Limits) -> Self {
        // Exchange and routing key are short strings.
        let frame_bytes = u64::from(limits.frame_max) + 512;
        let message_bytes_max = u64::from(limits.message_size_max) + frame_bytes;
        Self { bytes: 0, message_bytes_max, frame_bytes, next_place: 0, clear_count: 0 }
    }

    /// Notes that from now on only the log has a message of this many bytes.
    pub(crate) fn need(&mut self, bytes: u64) {
        self.bytes = self.bytes.max(bytes);
        self.clear_count = 0;
    }

    /// Notes that only the log has a message whose body has this many bytes. Its properties count with their
    /// maximum. 0 means that there is no such message.
    pub(crate) fn need_for_body(&mut self, body_bytes: u64) {
        if body_bytes > 0 {
            self.need(body_bytes + self.frame_bytes);
        }
    }

    /// Keeps the memory free as long as `has_absent` is true for any queue index below `places`. Returns
    /// whether the search for such a queue must continue.
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
                self.clear_count = 0;
                break;
            }
            self.next_place = if self.next_place + 1 < places { self.next_place + 1 } else { 0 };
            self.clear_count += 1;
        }
        let is_needed = self.clear_count < places;
        if !is_needed {
            (self.bytes, self.clear_count) = (0, 0);
        }
        messages.keep_for_read_back(self.bytes, self.message_bytes_max);
        is_needed && self.clear_count > 0
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
    /// The read is a peek: it only finds the expiry time of the first message, which stays in the log.
    pub(crate) is_peek: bool,
}

/// Where in its queue a message that is read back belongs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReadPosition {
    /// In the middle, among waiting messages.
    Middle,
    /// At the front: one requeued message.
    Requeued,
    /// Among the rejected messages: one message that is to be dead-lettered.
    Rejected,
    /// Anywhere: an operator browses the queue. The queue does not change.
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

/// The result of [`Queues::page_in`].
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
    messages.check_extents(page.bytes(), Share::ReadBack)?;
    let message = messages.begin(page.exchange, page.routing_key, Share::ReadBack)?;
    let flags = MessageFlags::PERSISTENT.with(MessageFlags::STORED);
    let properties = Properties::trusted(page.properties);
    let flags = if properties.expiration().is_some() { flags.with(MessageFlags::EXPIRES) } else { flags };
    let flags = if properties.is_blind() { flags.with(MessageFlags::HAS_BCC) } else { flags };
    let is_exactly_once = properties.is_published_exactly_once();
    let flags = if is_exactly_once { flags.with(MessageFlags::EXACTLY_ONCE) } else { flags };
    match messages.reserve_content(message, page.properties, flags, page.body_len, Share::ReadBack) {
        Ok(()) => Ok(message),
        Err(full) => {
            // `discard` instead of `release`: a failed attempt must not wake the queues and publishers that
            // wait for memory.
            messages.discard(message);
            Err(full)
        }
    }
}

/// Bytes of records that one read for browsing takes from the log.
const BROWSE_BYTES: u32 = 128 << 10;
/// Maximum bytes of messages that are read for one browse request. It is less if `body_bytes_max` is less than 16 times
/// this.
const BROWSE_BYTES_MAX: usize = 1 << 20;

/// A read from the log for an operator who browses a queue.
#[derive(Debug)]
struct Browse {
    number: u64,
    /// What follows the messages in `found`, in order. The first is the run that is read next. Messages in memory are
    /// held.
    parts: VecDeque<Browsed>,
    state: BrowseState,
    /// The messages in memory or read so far, up to the first part.
    found: Vec<BrowsedMessage>,
    /// Bytes of messages that may still be read.
    bytes_left: usize,
    /// The offset at which the current read began.
    read_from: u64,
}

impl Browse {
    fn run_mut(&mut self) -> Option<&mut LogRun> {
        match self.parts.front_mut() {
            Some(Browsed::InLog(run)) => Some(run),
            Some(Browsed::InMemory(_)) | None => None,
        }
    }

    /// Continues behind the messages that were read: with the next run, if there is one and `bytes_left` allows it.
    fn go_on(&mut self) {
        while let Some(Browsed::InMemory(browsed)) = self.parts.front() {
            self.found.push(*browsed);
            self.parts.pop_front();
        }
        let is_over = self.parts.is_empty() || self.bytes_left == 0;
        self.state = if is_over { BrowseState::Done } else { BrowseState::Wanted };
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum BrowseState {
    Wanted,
    Reading,
    Done,
}

/// The browse requests. One request is read at a time, and its messages stay in memory until the caller takes
/// them.
///
/// ```text
/// want ─→ next_read ~ disk ~ page_in, paged_in ─→ end_read ─→ take
/// ```
#[derive(Debug, Default)]
pub struct BrowseRequests {
    list: Vec<Browse>,
    last: u64,
}

impl BrowseRequests {
    /// Requests these messages in order for browsing: those in memory are held, and the others are read from the log.
    /// Returns the number of the request.
    pub fn want(&mut self, messages: &mut Messages, parts: &[Browsed]) -> u64 {
        for part in parts {
            if let Browsed::InMemory(browsed) = part {
                messages.retain(browsed.message);
            }
        }
        self.last += 1;
        let mut browse = Browse {
            number: self.last,
            parts: parts.iter().copied().collect(),
            state: BrowseState::Wanted,
            found: Vec::new(),
            read_from: 0,
            bytes_left: BROWSE_BYTES_MAX.min(messages.body_bytes_max() / 16).max(BROWSE_BYTES as usize),
        };
        browse.go_on();
        self.list.push(browse);
        self.last
    }

    /// Returns whether the read for this request has ended. Also true for a request that does not exist.
    pub fn is_done(&self, number: u64) -> bool {
        let browse = self.list.iter().find(|browse| browse.number == number);
        browse.is_none_or(|browse| browse.state == BrowseState::Done)
    }

    /// Removes a request and returns its messages, up to the first that could not be read. The caller releases the
    /// messages.
    pub fn take(&mut self, messages: &mut Messages, number: u64) -> Vec<BrowsedMessage> {
        let place = self.list.iter().position(|browse| browse.number == number);
        let Some(browse) = place.map(|place| self.list.swap_remove(place)) else { return Vec::new() };
        for part in browse.parts {
            if let Browsed::InMemory(browsed) = part {
                messages.release(browsed.message);
            }
        }
        browse.found
    }

    /// Returns whether any request waits to be read.
    #[inline]
    pub(super) fn is_wanted(&self) -> bool {
        !self.list.is_empty() && self.list.iter().any(|browse| browse.state == BrowseState::Wanted)
    }

    /// Returns the read for the next request; `None` if no request waits.
    pub(super) fn next_read(&mut self) -> Option<LogRead> {
        let browse = self.list.iter_mut().find(|browse| browse.state == BrowseState::Wanted)?;
        browse.state = BrowseState::Reading;
        let bytes_max = BROWSE_BYTES.min(u32::try_from(browse.bytes_left).unwrap_or(u32::MAX));
        let LogRun { queue, incarnation, start, count, .. } = *browse.run_mut()?;
        browse.read_from = start;
        let (end, from) = (start + u64::from(count), ReadPosition::Browse);
        Some(LogRead { queue, incarnation, start, end, bytes_max, from, is_peek: false })
    }

    /// Begins a message that was read for browsing; its body follows.
    pub(super) fn begin(
        &mut self,
        messages: &mut Messages,
        read: &LogRead,
        page: &ReadMessage<'_>,
    ) -> PageInOutcome {
        if self.reading().is_none() || !(read.start..read.end).contains(&page.offset) {
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
        let len = messages.stream_len(message);
        let Some(browse) = self.reading() else { return messages.release(message) };
        let Some(run) = browse.run_mut() else { return messages.release(message) };
        let (is_redelivered, key) = (offset < run.redelivered_below, run.first_key.with_offset(offset));
        run.skip_to(offset + 1);
        browse.found.push(BrowsedMessage { message, is_redelivered, key });
        browse.bytes_left = browse.bytes_left.saturating_sub(len);
    }

    /// Ends the current read, which went up to the offset `through`. Its request waits for the next read if messages
    /// are left.
    pub(super) fn end(&mut self, through: u64) {
        let Some(browse) = self.reading() else { return };
        let read_from = browse.read_from;
        let Some(run) = browse.run_mut() else { return browse.state = BrowseState::Done };
        run.skip_to(through);
        if run.start == read_from {
            // Another read of the same messages would not go further either.
            return browse.state = BrowseState::Done;
        }
        if run.count == 0 {
            browse.parts.pop_front();
        }
        browse.go_on();
    }

    /// Ends the current read before it was complete. If `must_repeat`, its request waits to be read again.
    pub(super) fn end_early(&mut self, must_repeat: bool) {
        if let Some(browse) = self.reading() {
            browse.state = if must_repeat { BrowseState::Wanted } else { BrowseState::Done };
        }
    }

    fn reading(&mut self) -> Option<&mut Browse> {
        self.list.iter_mut().find(|browse| browse.state == BrowseState::Reading)
    }
}
