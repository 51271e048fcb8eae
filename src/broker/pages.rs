//! Queues deeper than memory: what the log has leaves memory when that is short, and is read back ahead of
//! delivery.
//!
//! ```text
//! spill:   fifo ──→ middle (neighbours become one entry)
//! page in: middle ──→ head
//! ```
//!
//! Always true: order is kept, transient messages among the others included; a message is given up only when
//! its commit is durable; what could not be read back is dropped with a word to the log, and stays on the
//! disk for whoever wants to try.

use crate::command::QueueId;
use crate::journal::Mode;
use crate::mem::{MessageFlags, MessageId, Messages, PoolFull, Share};

use super::Broker;
use super::queue::{Place, Queue};

/// Messages that one step takes out of memory.
const SPILL_STEP: u32 = 512;
/// Queues that one step looks at.
const SPILL_QUEUES: usize = 64;
/// Messages of a queue with consumers that stay in memory in front of those that do not.
const WINDOW: u32 = 64;
/// Bytes of records read back at once.
const FETCH_BYTES: u32 = 128 << 10;

/// Messages to be read back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fetch {
    /// The queue.
    pub queue: QueueId,
    /// Its incarnation.
    pub incarnation: u64,
    /// The first offset.
    pub start: u64,
    /// The one after the last.
    pub end: u64,
    /// About so many bytes at once.
    pub bytes_max: u32,
}

/// A message that was read back, but for its body.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Page<'a> {
    /// Its offset.
    pub offset: u64,
    /// The exchange it was published to.
    pub exchange: &'a str,
    /// Its routing key.
    pub routing_key: &'a [u8],
    /// Its properties.
    pub properties: &'a [u8],
    /// Bytes of its body.
    pub body_len: u32,
}

impl Page<'_> {
    fn bytes(&self) -> usize {
        self.exchange.len() + self.routing_key.len() + self.properties.len() + self.body_len as usize
    }
}

/// What becomes of a message that was read back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PageIn {
    /// Its body is to follow, and then [`Broker::paged_in`].
    Begun(MessageId),
    /// It left the queue meanwhile.
    NotWanted,
    /// There is no memory for it now.
    NoRoom,
}

impl Broker {
    // ---- out of memory

    /// Takes a bounded number of messages out of memory that the log has, if memory is short; says whether
    /// it is worth while to go on.
    pub fn spill(&mut self, messages: &mut Messages) -> bool {
        let is_short =
            messages.is_above_spill_mark() || self.fifo_pool.chunks_free() < self.fifo_pool.chunks_max() / 2;
        if self.journal.mode() != Mode::On || !is_short {
            return false;
        }
        // Only what is durable can leave memory.
        self.journal.hurry();
        let mut left = SPILL_STEP;
        for _ in 0..SPILL_QUEUES.min(self.queues.places()) {
            if self.spill_hand >= self.queues.places() {
                self.spill_hand = 0;
            }
            let index = self.spill_hand;
            let is_logged = self.queues.get(index).is_some_and(|queue| queue.logged.count > 0);
            if is_logged && self.spill_from(messages, QueueId::from_index(index), &mut left) {
                // There is more in this one.
                return true;
            }
            self.spill_hand += 1;
        }
        left < SPILL_STEP
    }

    fn spill_from(&mut self, messages: &mut Messages, queue: QueueId, left: &mut u32) -> bool {
        let record = &self.queues[queue.index()];
        if record.dying {
            return false;
        }
        let window = if record.consumers.is_empty() { 0 } else { WINDOW };
        while *left > 0 {
            if self.fifo_pool.chunks_free() < 4 {
                return false;
            }
            let record = &mut self.queues[queue.index()];
            let Some(entry) = record.fifo.front(&self.fifo_pool) else { return false };
            let place = record.place(entry);
            let keeps = record.deep.middle.is_empty() && record.deep.head.len() < window;
            if keeps {
                record.fifo.pop(&mut self.fifo_pool);
                let kept = record.deep.head.push(&mut self.fifo_pool, entry);
                debug_assert!(kept, "there are chunks");
                continue;
            }
            match place {
                Place::Logged(message, offset) => {
                    if !messages.flags(message).has(MessageFlags::STORED) || !record.is_near(offset) {
                        return false;
                    }
                    record.fifo.pop(&mut self.fifo_pool);
                    self.give_up(messages, queue, message, offset);
                }
                Place::Plain(_) | Place::Stored(..) => {
                    record.fifo.pop(&mut self.fifo_pool);
                    record.deep.messages += 1;
                    let kept = record.deep.middle.push(&mut self.fifo_pool, entry);
                    debug_assert!(kept, "there are chunks");
                }
            }
            *left -= 1;
        }
        true
    }

    /// From now on only the log has this message.
    fn give_up(&mut self, messages: &mut Messages, queue: QueueId, message: MessageId, offset: u64) {
        let record = &mut self.queues[queue.index()];
        let body_len = u64::from(messages.body_len(message));
        record.ready_bytes -= u64::from(messages.footprint_bytes(message));
        record.ready_body_bytes -= body_len;
        record.deep.body_bytes += body_len;
        self.push_stored(queue, offset, 1);
        messages.release(message);
        self.releases += 1;
    }

    /// Puts messages behind the middle that only the log has; `false` when there is no chunk for them.
    pub(super) fn push_stored(&mut self, queue: QueueId, start: u64, count: u32) -> bool {
        let record = &mut self.queues[queue.index()];
        let last = record.deep.middle.back(&self.fifo_pool);
        let joined = last.and_then(|entry| match record.place(entry) {
            Place::Stored(first, so_far) if first + u64::from(so_far) == start => {
                Some(Place::Stored(first, so_far.checked_add(count)?))
            }
            _ => None,
        });
        let pushed = match joined {
            Some(place) => {
                record.deep.middle.set_back(&mut self.fifo_pool, place.entry());
                true
            }
            None => record.deep.middle.push(&mut self.fifo_pool, Place::Stored(start, count).entry()),
        };
        if pushed {
            record.deep.messages += count;
            record.deep.stored += count;
        }
        pushed
    }

    // ---- into memory

    /// Asks that the front of the middle be read back.
    pub(super) fn want_pages(&mut self, queue: QueueId) {
        let record = &mut self.queues[queue.index()];
        if !core::mem::replace(&mut record.deep.is_fetching, true) {
            self.wants.push_back(queue);
        }
    }

    /// Whether some queue waits to be read from, and there may be memory for it.
    pub fn wants_pages(&self, messages: &Messages) -> bool {
        !self.wants.is_empty() || self.may_feed(messages)
    }

    /// Whether memory was freed since a queue found none.
    fn may_feed(&self, messages: &Messages) -> bool {
        !self.hungry.is_empty() && messages.room_made() != self.hungry_since
    }

    /// The next thing to read back; [`Self::fetched`] must follow.
    pub fn next_fetch(&mut self, messages: &Messages) -> Option<Fetch> {
        if self.may_feed(messages) {
            self.wants.append(&mut self.hungry);
        }
        while let Some(queue) = self.wants.pop_front() {
            let Some(record) = self.queues.get(queue.index()) else { continue };
            let place = record.deep.middle.front(&self.fifo_pool).map(|entry| record.place(entry));
            if let Some(Place::Stored(start, count)) = place.filter(|_| !record.dying) {
                let incarnation = record.logged.incarnation;
                let end = start + u64::from(count);
                return Some(Fetch { queue, incarnation, start, end, bytes_max: FETCH_BYTES });
            }
            self.queues[queue.index()].deep.is_fetching = false;
            self.unstall(queue);
        }
        None
    }

    /// Takes a message that was read back, its body still to come.
    pub fn page_in(&mut self, messages: &mut Messages, fetch: &Fetch, page: &Page<'_>) -> PageIn {
        self.skip_lost(fetch, page.offset);
        if self.front_run(fetch).is_none_or(|(start, _)| start != page.offset) {
            return PageIn::NotWanted;
        }
        if page.body_len as usize > messages.body_bytes_max() / 16 * 15 {
            log::error!("a message of {} bytes does not fit into body_bytes_max any more", page.body_len);
            self.skip_lost(fetch, page.offset + 1);
            return PageIn::NotWanted;
        }
        if self.fifo_pool.chunks_free() < 2 {
            return PageIn::NoRoom;
        }
        // The first of a queue may have the last memory there is; what is read ahead may not.
        let is_first = self.queues[fetch.queue.index()].deep.head.is_empty();
        if !is_first && !messages.has_ordinary_room(page.bytes()) {
            return PageIn::NoRoom;
        }
        begin_page(messages, page).map_or(PageIn::NoRoom, PageIn::Begun)
    }

    /// There was no memory for what was read: again when some has been freed, or when what is in the head
    /// already has gone.
    pub fn page_later(&mut self, messages: &Messages, fetch: &Fetch) {
        if !self.is_same_queue(fetch) {
            return;
        }
        let deep = &mut self.queues[fetch.queue.index()].deep;
        if deep.head.is_empty() {
            if self.hungry.is_empty() {
                self.hungry_since = messages.room_made();
            }
            self.hungry.push_back(fetch.queue);
        } else {
            deep.is_fetching = false;
        }
        self.unstall(fetch.queue);
    }

    /// It could not be read now: again in the next turn.
    pub fn want_again(&mut self, fetch: &Fetch) {
        if self.is_same_queue(fetch) {
            self.wants.push_back(fetch.queue);
        }
    }

    fn is_same_queue(&self, fetch: &Fetch) -> bool {
        let record = self.queues.get(fetch.queue.index());
        record.is_some_and(|record| record.logged.incarnation == fetch.incarnation)
    }

    /// The body is whole: the message stands in its queue again, if it is wanted still. `false`: it is, but
    /// there is no place for it now.
    pub fn paged_in(
        &mut self,
        messages: &mut Messages,
        fetch: &Fetch,
        offset: u64,
        message: MessageId,
    ) -> bool {
        messages.finish(message);
        let is_next = self.front_run(fetch).is_some_and(|(start, _)| start == offset);
        if !is_next || self.fifo_pool.chunks_free() < 2 {
            messages.release(message);
            return !is_next;
        }
        self.leave_stored(fetch.queue, 1);
        let record = &mut self.queues[fetch.queue.index()];
        let body_len = u64::from(messages.body_len(message));
        record.ready_bytes += u64::from(messages.footprint_bytes(message));
        record.ready_body_bytes += body_len;
        let pushed = record.deep.head.push(&mut self.fifo_pool, Place::Logged(message, offset).entry());
        debug_assert!(pushed, "there are chunks");
        true
    }

    /// A read is over: offsets below `through` that did not come are lost.
    pub fn fetched(&mut self, fetch: &Fetch, through: u64) {
        self.skip_lost(fetch, through);
        if !self.is_same_queue(fetch) {
            return;
        }
        let record = &mut self.queues[fetch.queue.index()];
        record.deep.is_fetching = false;
        // Whoever waits asks again if the first is still not there.
        self.unstall(fetch.queue);
    }

    pub(super) fn unstall(&mut self, queue: QueueId) {
        self.queues[queue.index()].stalled = false;
        self.gets_due |= !self.getting.is_empty();
        self.wake(queue);
    }

    fn front_run(&self, fetch: &Fetch) -> Option<(u64, u32)> {
        let record = self.queues.get(fetch.queue.index())?;
        if record.logged.incarnation != fetch.incarnation || record.dying {
            return None;
        }
        match record.place(record.deep.middle.front(&self.fifo_pool)?) {
            Place::Stored(start, count) => Some((start, count)),
            Place::Plain(_) | Place::Logged(..) => None,
        }
    }

    fn skip_lost(&mut self, fetch: &Fetch, through: u64) {
        let Some((start, count)) = self.front_run(fetch) else { return };
        let lost = through.saturating_sub(start).min(u64::from(count)) as u32;
        if lost > 0 {
            let name = &self.queues[fetch.queue.index()].name;
            log::error!(
                "queue '{}': {lost} messages cannot be read back from the log; they are passed over",
                name.escape_debug()
            );
            self.leave_stored(fetch.queue, lost);
            self.queues[fetch.queue.index()].uncount_logged(lost.into());
        }
    }

    /// The first `count` messages leave the run at the front of the middle.
    pub(super) fn leave_stored(&mut self, queue: QueueId, count: u32) {
        let record = &mut self.queues[queue.index()];
        let Some(entry) = record.deep.middle.front(&self.fifo_pool) else { return };
        let Place::Stored(start, all) = record.place(entry) else { return };
        let share = body_share(record, count);
        record.deep.body_bytes -= share;
        record.deep.messages -= count;
        record.deep.stored -= count;
        if count == all {
            record.deep.middle.pop(&mut self.fifo_pool);
        } else {
            let rest = Place::Stored(start + u64::from(count), all - count);
            record.deep.middle.set_front(&mut self.fifo_pool, rest.entry());
        }
    }
}

/// What so many of the messages that are not in memory count for, on average: what each has is not known.
fn body_share(queue: &Queue, count: u32) -> u64 {
    if count >= queue.deep.stored {
        return queue.deep.body_bytes;
    }
    (u128::from(queue.deep.body_bytes) * u128::from(count) / u128::from(queue.deep.stored.max(1))) as u64
}

fn begin_page(messages: &mut Messages, page: &Page<'_>) -> Result<MessageId, PoolFull> {
    let share = Share::ReadBack;
    let message = messages.begin(page.exchange, page.routing_key, share)?;
    let flags = MessageFlags::PERSISTENT.with(MessageFlags::STORED);
    match messages.reserve_content(message, page.properties, flags, page.body_len, share) {
        Ok(()) => Ok(message),
        Err(full) => {
            messages.release(message);
            Err(full)
        }
    }
}

/// Bytes of a queue's messages in the log after a start, when only their sum is known.
pub(super) fn count_recovered(record: &mut Queue, count: u64, bytes: u64) {
    record.logged.count = count;
    record.logged.bytes = bytes;
    // Names and properties are in there as well: the best guess there is.
    record.deep.body_bytes = bytes.saturating_sub(count * 64);
}
