//! Which queues are to be read from, whose turn it is to leave memory, and what is kept free to come back.
//!
//! Always true: a queue that found no memory to read into, or no place among the queue entries, is asked
//! again only when some has been freed since; the room to read back is looked after for as long as the log
//! alone has a message.

use std::collections::VecDeque;

use crate::command::QueueId;
use crate::limits::Limits;
use crate::mem::Messages;

use super::read_back_room::ReadBackRoom;

/// What is on its way out of memory, and into it.
#[derive(Debug)]
pub(crate) struct Paging {
    /// Queues whose front is to be read back.
    wanted: VecDeque<QueueId>,
    /// Those for which there was no memory, and what the count of frees (`Broker::page_room_made`) was when
    /// the first of them came.
    awaiting_memory: VecDeque<QueueId>,
    awaiting_since: u64,
    /// Transient messages may go to the log.
    spills_transient: bool,
    /// Where the search for what may leave memory goes on.
    hand: usize,
    /// What is kept free to read back what only the log has.
    read_back: ReadBackRoom,
}

impl Paging {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            wanted: VecDeque::with_capacity(64),
            awaiting_memory: VecDeque::new(),
            awaiting_since: 0,
            spills_transient: false,
            hand: 0,
            read_back: ReadBackRoom::new(limits),
        }
    }

    // ---- in

    /// The front of this queue is to be read back.
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

    /// There was no memory for what was read of this queue: again when some has been freed.
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

    // ---- out

    /// Whether transient messages may go to the log when memory is short.
    pub(crate) const fn set_spills_transient(&mut self, spills_transient: bool) {
        self.spills_transient = spills_transient;
    }

    /// Whether transient messages may go to the log.
    pub(crate) const fn spills_transient(&self) -> bool {
        self.spills_transient
    }

    /// The place among so many at which the search for what may leave memory goes on.
    pub(crate) const fn hand(&mut self, places: usize) -> usize {
        if self.hand >= places {
            self.hand = 0;
        }
        self.hand
    }

    /// There is nothing more at that place now.
    pub(crate) const fn pass_on(&mut self) {
        self.hand += 1;
    }

    // ---- the room to come back

    /// At a start: the largest body in the log has so many bytes.
    pub(crate) fn recovered_largest(&mut self, body_bytes: u64) {
        self.read_back.need_for_body(body_bytes);
    }

    /// From now on only the log has a message of so many bytes.
    pub(crate) fn gave_up(&mut self, bytes: u64) {
        self.read_back.need(bytes);
    }

    /// Keeps room for what is to be read back, as long as some of so many queues `has_absent` messages; says
    /// whether that is still being looked for. A step looks at a bounded number of queues.
    pub(crate) fn keep_read_back_room(
        &mut self,
        messages: &mut Messages,
        places: usize,
        has_absent: impl Fn(usize) -> bool,
    ) -> bool {
        self.read_back.keep(messages, places, has_absent)
    }
}
