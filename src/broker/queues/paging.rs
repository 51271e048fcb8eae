//! Which queues read messages back from the log or move them out of memory, and the room kept to read back.
//!
//! Always true: a queue that found no memory to read into, or no place among the queue entries, is asked
//! again only when some has been freed since; the room to read back is looked after for as long as the log
//! alone has a message.

use std::collections::VecDeque;

use super::read_back_room::ReadBackRoom;
use leveret_core::command::QueueId;
use leveret_core::limits::Limits;
use leveret_core::mem::Messages;

/// Queues that read messages from the log, and the search for messages that may leave memory.
#[derive(Debug)]
pub(crate) struct Paging {
    /// Queues whose first messages are to be read back.
    wanted: VecDeque<QueueId>,
    /// Queues for whose messages there was no memory.
    awaiting_memory: VecDeque<QueueId>,
    /// The count of frees (`Queues::page_room_made`) when the first queue began to await memory.
    awaiting_since: u64,
    /// Where the search for messages that may leave memory goes on.
    hand: usize,
    /// The memory kept free to read back messages that only the log has.
    read_back: ReadBackRoom,
}

impl Paging {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            wanted: VecDeque::with_capacity(64),
            awaiting_memory: VecDeque::new(),
            awaiting_since: 0,
            hand: 0,
            read_back: ReadBackRoom::new(limits),
        }
    }

    // ---- into memory

    /// Notes that the first messages of this queue are to be read back.
    pub(crate) fn want(&mut self, queue: QueueId) {
        self.wanted.push_back(queue);
    }

    /// Whether some queue waits to be read from, and there may be memory for it.
    pub(crate) fn is_wanted(&self, room_made: u64) -> bool {
        !self.wanted.is_empty() || self.may_find_memory(room_made)
    }

    /// The queue that is to be read from next, if any.
    pub(crate) fn next_wanted(&mut self, room_made: u64) -> Option<QueueId> {
        if self.may_find_memory(room_made) {
            self.wanted.append(&mut self.awaiting_memory);
        }
        self.wanted.pop_front()
    }

    /// Notes that there was no memory for a message read for this queue: it is read again when some has been
    /// freed.
    pub(crate) fn await_memory(&mut self, queue: QueueId, room_made: u64) {
        if self.awaiting_memory.is_empty() {
            self.awaiting_since = room_made;
        }
        self.awaiting_memory.push_back(queue);
    }

    /// Whether the first message of some queue finds no memory.
    pub(crate) fn is_short_of_memory(&self) -> bool {
        !self.awaiting_memory.is_empty()
    }

    fn may_find_memory(&self, room_made: u64) -> bool {
        self.is_short_of_memory() && room_made != self.awaiting_since
    }

    // ---- out of memory

    /// The place, among `places`, at which the search for messages that may leave memory goes on.
    pub(crate) const fn hand(&mut self, places: usize) -> usize {
        if self.hand >= places {
            self.hand = 0;
        }
        self.hand
    }

    /// Moves the search on: this place has nothing more to leave memory.
    pub(crate) const fn pass_on(&mut self) {
        self.hand += 1;
    }

    // ---- room to read back

    /// At a start: notes the bytes of the largest body in the log.
    pub(crate) fn recovered_largest(&mut self, body_bytes: u64) {
        self.read_back.need_for_body(body_bytes);
    }

    /// Notes that from now on only the log has a message of this many bytes.
    pub(crate) fn paged_out(&mut self, bytes: u64) {
        self.read_back.need(bytes);
    }

    /// Keeps room to read messages back, as long as one of the queues at these places `has_absent` messages;
    /// says whether the search for one goes on. A step looks at a bounded number of queues.
    pub(crate) fn keep_read_back_room(
        &mut self,
        messages: &mut Messages,
        places: usize,
        has_absent: impl Fn(usize) -> bool,
    ) -> bool {
        self.read_back.keep(messages, places, has_absent)
    }
}
