//! Into memory: what only the log has is read back ahead of delivery (`spill` is the way out).
//!
//! ```text
//! page in: middle ──→ head; a requeued first message, where it stands
//! ```
//!
//! Always true: order is kept; a message that could not be read back is dropped, the log is told so, and its
//! bytes stay on the disk for whoever wants to try.

use super::fetch::{Fetch, FetchFrom, Page, PageIn, begin_page};
use super::state::Queues;
use crate::Context;
use crate::queue::{First, Place, Size};
use leveret_core::command::QueueId;
use leveret_core::mem::{MessageFlags, MessageId, Messages};

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
    /// Whether some queue waits to be read from, and there may be memory for it.
    pub fn wants_pages(&self, messages: &Messages) -> bool {
        self.browses.is_wanted() || self.paging.is_wanted(self.page_room_made(messages))
    }

    /// Rises when memory or queue entries are freed, which reading a message back may wait for.
    const fn page_room_made(&self, messages: &Messages) -> u64 {
        messages.room_made() + self.pool.given()
    }

    /// The next messages to read back; [`Self::fetched`] must follow.
    pub fn next_fetch(&mut self, messages: &Messages) -> Option<Fetch> {
        if let Some(fetch) = self.browses.next_fetch() {
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

    fn fetch_for(&self, queue: QueueId) -> Option<Fetch> {
        let record = &self.records[queue];
        let (from, (start, count)) = match (self.absent_rejected(queue), self.first(queue)) {
            _ if record.dying => return None,
            (Some(offset), _) => (FetchFrom::Rejected, (offset, 1)),
            (None, Some(First::Absent(offset))) => (FetchFrom::Returned, (offset, 1)),
            (None, _) => (FetchFrom::Middle, record.backlog.first_stored(&self.pool)?),
        };
        let is_peek = record.times.peeked.is_wanted() && from != FetchFrom::Rejected;
        let count = if is_peek { 1 } else { count };
        Some(Fetch {
            queue,
            incarnation: record.logged.incarnation(),
            start,
            end: start + u64::from(count),
            bytes_max: FETCH_BYTES,
            from,
            is_peek,
        })
    }

    /// Takes a message that was read back, its body still to come.
    pub fn page_in(&mut self, messages: &mut Messages, fetch: &Fetch, page: &Page<'_>) -> PageIn {
        if fetch.from == FetchFrom::Browse {
            if self.records.get(fetch.queue.index()).is_none() {
                return PageIn::NotWanted;
            }
            return self.browses.begin(messages, fetch, page);
        }
        self.skip_lost(fetch, page.offset);
        if self.front_run(fetch).is_none_or(|(start, _)| start != page.offset) {
            return PageIn::NotWanted;
        }
        if fetch.is_peek {
            self.peeked(fetch, page);
            return PageIn::NotWanted;
        }
        if page.body_len as usize > messages.body_bytes_max() / 16 * 15 {
            log::error!("a message of {} bytes does not fit into body_bytes_max any more", page.body_len);
            self.skip_lost(fetch, page.offset + 1);
            return PageIn::NotWanted;
        }
        if !self.has_place(fetch) {
            return PageIn::NoRoom;
        }
        // A message that a queue stands still for may have the last memory there is; what is read ahead may
        // not.
        let is_first = fetch.is_single() || self.records[fetch.queue].backlog.is_head_empty();
        if !is_first && !messages.has_ordinary_room(page.bytes()) {
            return PageIn::NoRoom;
        }
        begin_page(messages, page).map_or(PageIn::NoRoom, PageIn::Begun)
    }

    /// Notes that there was no memory for a message read. If the queue stands still for it, it is read again when
    /// some was freed; what was read ahead is asked for again as the head runs low.
    pub fn page_later(&mut self, messages: &Messages, fetch: &Fetch) {
        if fetch.from == FetchFrom::Browse {
            return self.browses.end(false);
        }
        if !self.is_same_queue(fetch) {
            return;
        }
        let room_made = self.page_room_made(messages);
        let record = &mut self.records[fetch.queue];
        if record.backlog.is_head_empty() || fetch.is_single() {
            self.paging.await_memory(fetch.queue, room_made);
        } else {
            record.listed.is_fetching = false;
        }
        self.unblock_front(fetch.queue);
    }

    /// Notes that a message could not be read now: it is read again in the next turn.
    pub fn want_again(&mut self, fetch: &Fetch) {
        if fetch.from == FetchFrom::Browse {
            return self.browses.end(true);
        }
        if self.is_same_queue(fetch) {
            self.paging.want(fetch.queue);
        }
    }

    /// Whether there is a place among the queue entries for a message read back: a message that the queue
    /// stands still for may have the last chunk; a requeued one has its place already.
    fn has_place(&self, fetch: &Fetch) -> bool {
        let backlog = &self.records[fetch.queue].backlog;
        fetch.is_single()
            || if backlog.is_head_empty() {
                self.pool.has_read_back_chunk()
            } else {
                self.pool.chunks_free() > 0
            }
    }

    fn is_same_queue(&self, fetch: &Fetch) -> bool {
        let record = self.records.get(fetch.queue.index());
        record.is_some_and(|record| record.logged.is_on() && record.logged.incarnation() == fetch.incarnation)
    }

    /// The body is whole: the message, which came at `enqueued_ms` of broker time, stands in its queue again,
    /// if it is still wanted. `false`: it is wanted, but there is no place for it now.
    pub fn paged_in(
        &mut self,
        cx: &mut Context<'_>,
        fetch: &Fetch,
        (offset, enqueued_ms): (u64, u64),
        message: MessageId,
    ) -> bool {
        if fetch.from == FetchFrom::Browse {
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
            FetchFrom::Returned => {
                let place = (message, offset);
                backlog.returned_paged_in(&mut self.pool, &mut self.deliveries, place, size);
                return true;
            }
            FetchFrom::Rejected => {
                backlog.rejected_paged_in(&mut self.deliveries, message, size);
                return true;
            }
            FetchFrom::Middle | FetchFrom::Browse => {}
        }
        backlog.paged_in(&mut self.pool, Place::Logged(message, offset), size);
        true
    }

    /// The messages that the last read did not find; told once.
    pub(crate) const fn take_lost(&mut self) -> Option<LostMessages> {
        self.lost.take()
    }

    /// A read is over: messages with offsets below `through` that did not come are lost.
    pub fn fetched(&mut self, fetch: &Fetch, through: u64) {
        if fetch.from == FetchFrom::Browse {
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
        // The deliver pass and gets look again; if the first message is still not in memory, they ask for it
        // again.
        self.unblock_front(fetch.queue);
    }

    /// The offset of the first rejected message, if only the log has it.
    fn absent_rejected(&self, queue: QueueId) -> Option<u64> {
        let delivery = &self.deliveries[self.records[queue].backlog.first_rejected()?];
        delivery.logged.filter(|_| delivery.message.is_none())
    }

    /// The run that is being fetched, if it is still wanted: at the front of the middle, or one requeued
    /// message.
    fn front_run(&self, fetch: &Fetch) -> Option<(u64, u32)> {
        let record = self.records.get(fetch.queue.index()).filter(|record| !record.dying)?;
        let is_first = match fetch.from {
            FetchFrom::Returned => self.first(fetch.queue) == Some(First::Absent(fetch.start)),
            FetchFrom::Rejected => self.absent_rejected(fetch.queue) == Some(fetch.start),
            FetchFrom::Middle | FetchFrom::Browse => false,
        };
        if fetch.is_single() {
            let is_first = is_first && self.is_same_queue(fetch);
            return is_first.then_some((fetch.start, 1));
        }
        let run = record.backlog.first_stored(&self.pool);
        run.filter(|_| record.logged.incarnation() == fetch.incarnation)
    }

    fn skip_lost(&mut self, fetch: &Fetch, through: u64) {
        // The queue may have been purged, or have gone, while the disk was asked.
        let Some((start, count)) = self.front_run(fetch) else { return };
        let lost = through.saturating_sub(start).min(u64::from(count)) as u32;
        if lost > 0 {
            let name = &self.records[self.records.queue_of_level(fetch.queue)].name;
            log::error!(
                "queue '{}': {lost} messages cannot be read back from the log; they are passed over",
                name.escape_debug()
            );
            self.lost =
                Some(LostMessages { queue: fetch.queue, first: start, last: start + u64::from(lost) - 1 });
            let backlog = &mut self.records[fetch.queue].backlog;
            match fetch.from {
                FetchFrom::Returned => self.leave_absent(fetch.queue),
                FetchFrom::Rejected => backlog.lose_rejected(&mut self.deliveries),
                FetchFrom::Middle | FetchFrom::Browse => backlog.leave_stored(&mut self.pool, lost),
            }
            self.records[fetch.queue].logged.settled_unread(lost.into());
            self.releases += 1;
        }
    }
}
