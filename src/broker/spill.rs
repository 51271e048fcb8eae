//! Out of memory: when it is short, what the log has leaves it (`page_in` is the way back).
//!
//! ```text
//! spill: fifo ──→ middle (neighbours become one entry); deliveries that are not settled
//! spill:  fifo ──→ leaving ──→ middle, for transient messages with `spill_transient`
//! ```
//!
//! A transient message has to be written before it can leave. It is written for this queue alone: one that
//! waits in several queues is written for each, and its memory is free when the last has given it up.
//!
//! Always true: order is kept; a message is given up only when its commit is durable; what cannot leave
//! stays where it is in the order, and does not keep back what is behind it; what a consumer takes while it
//! is leaving stays; as long as the log alone has a message, the memory to read it back is kept free of what
//! cannot leave, whatever is published meanwhile.

use crate::command::QueueId;
use crate::journal::{Appended, Journal, Mode, NoRoom, Target};
use crate::mem::{Entry, MessageFlags, MessageId, Messages};

use super::queue::{Lane, Place, Queue};
use super::queue_head::log_bytes;
use super::{Broker, Context};

/// Messages that one step takes out of memory.
const SPILL_STEP: u32 = 512;
/// Deliveries that one step looks at.
const DELIVERED_STEP: u32 = 128;
/// Queues that one step looks at.
const SPILL_QUEUES: usize = 64;
/// Messages of a queue with consumers that stay in memory in front of those that do not.
const WINDOW: u32 = 64;
/// Messages of a queue that may be out of memory: together with those that are in it they can be counted in
/// 32 bits, as peers are told.
const DEEP_MAX: u32 = u32::MAX / 2;
/// Chunks for entries that others need more than spilling does.
const CHUNKS_LEFT: usize = 4;

/// Whether a transient message can be written to leave memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Spilling {
    Now,
    /// After the commit that is being gathered.
    Later,
    No,
}

impl Broker {
    /// At a start: the largest body in the log has so many bytes; 0 when there is no message in it.
    pub fn recovered_largest(&mut self, body_bytes: u64) {
        self.paging.recovered_largest(body_bytes);
    }

    /// Whether transient messages may go to the log when memory is short.
    pub const fn set_spill_transient(&mut self, spill_transient: bool) {
        self.paging.set_spills_transient(spill_transient);
    }

    /// Takes a bounded number of messages out of memory that the log has, if memory is short; says whether
    /// it is worth while to go on.
    pub fn spill(&mut self, cx: &mut Context<'_>) -> bool {
        let (queues, places) = (&self.queues, self.queues.places());
        let has_absent = |index: usize| queues.get(index).is_some_and(Queue::has_absent);
        let is_looking = self.paging.keep_read_back_room(cx.messages, places, has_absent);
        if cx.journal.mode() != Mode::On || !self.is_short(cx.messages) {
            return is_looking;
        }
        // Only what is durable can leave memory.
        cx.journal.hurry();
        let mut left = SPILL_STEP;
        if self.spill_delivered(cx.messages) {
            return true;
        }
        for _ in 0..SPILL_QUEUES.min(places) {
            let index = self.paging.hand(places);
            let may_spill = self.queues.get(index).is_some_and(|queue| self.may_spill(queue));
            if may_spill && self.spill_from(cx, QueueId::from_index(index), &mut left) {
                // There is more in this one.
                return true;
            }
            self.paging.pass_on();
        }
        left < SPILL_STEP || is_looking
    }

    fn is_short(&self, messages: &Messages) -> bool {
        messages.is_above_spill_mark() || self.fifo_pool.chunks_free() < self.fifo_pool.chunks_max() / 2
    }

    /// What was delivered needs its memory again only if it comes back, so it leaves first; says whether some
    /// did.
    fn spill_delivered(&mut self, messages: &mut Messages) -> bool {
        let mut has_left = false;
        for _ in 0..DELIVERED_STEP {
            let Some(index) = self.deliveries.first_to_leave() else { break };
            let delivery = &self.deliveries.slab[index];
            let (Some(queue), Some(message)) = (delivery.queue, delivery.message) else { break };
            // Unless a first message finds no memory: what came back behind it can wait, it cannot.
            let is_wanted = delivery.returned
                && !self.paging.is_short_of_memory()
                && !self.queues[queue.index()].consumers.is_empty();
            if is_wanted || messages.is_shared(message) {
                // It would not be free, or not for long: later.
                self.deliveries.keep(index);
                self.deliveries.let_leave(index);
                continue;
            }
            if !messages.flags(message).has(MessageFlags::STORED) {
                break;
            }
            self.spill_delivery(messages, index, queue, message);
            has_left = true;
        }
        has_left
    }

    /// From now on only the log has what was delivered.
    fn spill_delivery(&mut self, messages: &mut Messages, index: usize, queue: QueueId, message: MessageId) {
        self.deliveries.keep(index);
        let delivery = &mut self.deliveries.slab[index];
        delivery.message = None;
        delivery.body_len = messages.body_len(message);
        let (returned, body_len, channel) = (delivery.returned, delivery.body_len, delivery.channel);
        let record = &mut self.queues[queue.index()];
        if returned {
            record.ready_bytes -= u64::from(messages.footprint_bytes(message));
            record.ready_body_bytes -= u64::from(body_len);
            record.returned_absent += 1;
            record.returned_absent_bytes += u64::from(body_len);
        } else {
            record.unsettled_absent += 1;
            let connection = self.channels[channel.index()].connection;
            self.unpin(messages, connection, Some(queue), message);
        }
        self.paging.gave_up(messages.stream_len(message) as u64);
        messages.release(message);
        self.releases += 1;
    }

    const fn may_spill(&self, queue: &Queue) -> bool {
        !queue.dying
            && (queue.logged.count > 0 || self.may_spill_transient(queue) || !queue.deep.leaving.is_empty())
    }

    const fn may_spill_transient(&self, queue: &Queue) -> bool {
        self.paging.spills_transient() && !queue.hidden
    }

    /// Says whether it ended because there is nothing `left` to be done in this step.
    fn spill_from(&mut self, cx: &mut Context<'_>, queue: QueueId, left: &mut u32) -> bool {
        // What leaves beyond need is read back at once where a consumer keeps up.
        while *left > 0 && self.is_short(cx.messages) {
            if self.fifo_pool.chunks_free() < CHUNKS_LEFT {
                return false;
            }
            let record = &self.queues[queue.index()];
            let goes_on = match record.deep.leaving.front(&self.fifo_pool) {
                Some(entry) => self.leave(cx, queue, entry),
                None if record.fifo.is_empty() => false,
                None => self.keep_window(queue) || self.spill_first(cx, queue, left),
            };
            if !goes_on {
                return false;
            }
            *left -= 1;
        }
        true
    }

    /// With consumers, the first messages stay in memory whatever they are.
    fn keep_window(&mut self, queue: QueueId) -> bool {
        let record = &mut self.queues[queue.index()];
        let window = if record.consumers.is_empty() { 0 } else { WINDOW };
        if !record.deep.middle.is_empty() || record.deep.head.len() >= window {
            return false;
        }
        let Some((_, entry)) = record.fifo.pop(&mut self.fifo_pool) else { return false };
        let kept = record.deep.head.push(&mut self.fifo_pool, entry);
        assert!(kept, "there are chunks");
        true
    }

    /// The first message of the fifo leaves memory, or begins to, or stays in the middle.
    fn spill_first(&mut self, cx: &mut Context<'_>, queue: QueueId, left: &mut u32) -> bool {
        let record = &self.queues[queue.index()];
        let may_spill_transient = self.may_spill_transient(record);
        let Some(entry) = record.fifo.front(&self.fifo_pool) else { return false };
        match Place::of(entry) {
            Place::Logged(message, offset) => {
                if !is_stored(cx.messages, record, message) {
                    return false;
                }
                self.queues[queue.index()].fifo.pop(&mut self.fifo_pool);
                self.give_up(cx.messages, queue, message, (Lane::Durable, offset));
                true
            }
            Place::Plain(_) if may_spill_transient => self.spill_transient(cx, queue, left),
            Place::Plain(_) | Place::Spilled(..) | Place::Stored(..) => {
                self.queues[queue.index()].fifo.pop(&mut self.fifo_pool);
                self.stay(queue, entry);
                true
            }
        }
    }

    /// What is in memory stands among what is not.
    fn stay(&mut self, queue: QueueId, entry: Entry) {
        let deep = &mut self.queues[queue.index()].deep;
        deep.messages += 1;
        let kept = deep.middle.push(&mut self.fifo_pool, entry);
        assert!(kept, "there are chunks");
    }

    /// From now on only the log has this message.
    fn give_up(
        &mut self,
        messages: &mut Messages,
        queue: QueueId,
        message: MessageId,
        (lane, offset): (Lane, u64),
    ) {
        let record = &mut self.queues[queue.index()];
        let body_len = u64::from(messages.body_len(message));
        record.ready_bytes -= u64::from(messages.footprint_bytes(message));
        record.ready_body_bytes -= body_len;
        record.deep.body_bytes += body_len;
        self.push_stored(queue, lane, offset, 1);
        self.paging.gave_up(messages.stream_len(message) as u64);
        messages.release(message);
        self.releases += 1;
    }

    /// Puts messages behind the middle that only the log has; `false` when there is no chunk for them, or
    /// they are too many to be counted.
    pub(super) fn push_stored(&mut self, queue: QueueId, lane: Lane, start: u64, count: u32) -> bool {
        let record = &mut self.queues[queue.index()];
        if count > DEEP_MAX.saturating_sub(record.deep.messages) {
            return false;
        }
        let last = record.deep.middle.back(&self.fifo_pool);
        let joined = last.and_then(|entry| match Place::of(entry) {
            Place::Stored(last, first, so_far) if last == lane && first + u64::from(so_far) == start => {
                Some(Place::Stored(lane, first, so_far.checked_add(count)?))
            }
            _ => None,
        });
        let pushed = match joined {
            Some(place) => {
                record.deep.middle.set_back(&mut self.fifo_pool, place.entry());
                true
            }
            None => record.deep.middle.push(&mut self.fifo_pool, Place::Stored(lane, start, count).entry()),
        };
        if pushed {
            record.deep.messages += count;
            record.deep.stored += count;
        }
        pushed
    }

    // ---- transient messages

    /// Begins to write transient messages from the front of the fifo on, as many as there is room for, and
    /// what stands between them along with them; `false` when none can be taken now.
    fn spill_transient(&mut self, cx: &mut Context<'_>, queue: QueueId, left: &mut u32) -> bool {
        let mut taken = false;
        while *left > 0 && self.fifo_pool.chunks_free() >= CHUNKS_LEFT {
            let record = &mut self.queues[queue.index()];
            let Some(entry) = record.fifo.front(&self.fifo_pool) else { break };
            let place = Place::of(entry);
            let spilling = match place {
                Place::Plain(message) => self.spilling(cx, queue, message),
                _ => Spilling::No,
            };
            match (spilling, place) {
                (Spilling::Later, _) => break,
                (Spilling::Now, Place::Plain(message)) => {
                    let appended = self.begin_shedding(cx, queue, message);
                    self.queues[queue.index()].begin_leaving(&mut self.fifo_pool, &appended);
                }
                _ => self.queues[queue.index()].leave_fifo(&mut self.fifo_pool, place),
            }
            taken = true;
            *left -= 1;
        }
        *left += u32::from(taken);
        taken
    }

    fn spilling(&self, cx: &Context<'_>, queue: QueueId, message: MessageId) -> Spilling {
        let bytes = cx.messages.stream_len(message) as u64;
        let record = &self.queues[queue.index()];
        let has_share = record.log_bytes() + bytes <= cx.journal.queue_bytes_max()
            && self.leaves_log(cx.journal, record.vhost, bytes);
        let fits = cx.journal.fits_commit(bytes, cx.messages.body_len(message).into(), 1);
        match cx.journal.admit(bytes, 1) {
            // For another of its queues it is being written already.
            _ if cx.journal.is_waiting(cx.messages, message) => Spilling::Later,
            Ok(()) if has_share && fits => Spilling::Now,
            Err(NoRoom::Commit) => Spilling::Later,
            Ok(()) | Err(NoRoom::Disk) => Spilling::No,
        }
    }

    fn begin_shedding(&mut self, cx: &mut Context<'_>, queue: QueueId, message: MessageId) -> Appended {
        if self.queues[queue.index()].spilled_lane.incarnation == 0 {
            self.queues[queue.index()].spilled_lane.incarnation = cx.journal.next_transient();
        }
        let spilled_lane = &mut self.queues[queue.index()].spilled_lane;
        let offset = spilled_lane.next_offset;
        spilled_lane.next_offset += 1;
        spilled_lane.count += 1;
        spilled_lane.bytes += log_bytes(cx.messages, message);
        let target = Target { queue: spilled_lane.incarnation, offset };
        cx.journal.spill(cx.messages, message, target)
    }

    /// The first message of those that are leaving is gone, or stays for good; `false` while it has to wait.
    fn leave(&mut self, cx: &mut Context<'_>, queue: QueueId, entry: Entry) -> bool {
        let durable = cx.journal.durable();
        let record = &mut self.queues[queue.index()];
        let place = Place::of(entry);
        let is_there = match place {
            Place::Spilled(..) => record.spilled_lane.awaits <= durable && record.deep.messages < DEEP_MAX,
            Place::Logged(message, _) => is_stored(cx.messages, record, message),
            Place::Plain(_) | Place::Stored(..) => true,
        };
        if !is_there {
            return false;
        }
        record.deep.leaving.pop(&mut self.fifo_pool);
        match place {
            Place::Spilled(message, offset) => {
                self.give_up(cx.messages, queue, message, (Lane::Transient, offset))
            }
            Place::Logged(message, offset) => {
                self.give_up(cx.messages, queue, message, (Lane::Durable, offset))
            }
            Place::Plain(_) | Place::Stored(..) => self.stay(queue, entry),
        }
        true
    }

    /// A message that was leaving stays in memory: the log need not have it.
    pub(super) fn unshed(&mut self, cx: &mut Context<'_>, queue: QueueId, message: MessageId, offset: u64) {
        let record = &mut self.queues[queue.index()];
        record.spilled_lane.count -= 1;
        record.spilled_lane.bytes = record.spilled_lane.bytes.saturating_sub(log_bytes(cx.messages, message));
        let target = Target { queue: record.spilled_lane.incarnation, offset };
        if record.dying {
            cx.journal.forsake(cx.messages, target.queue, message);
        } else {
            cx.journal.unshed(cx.messages, target, message);
        }
    }

    /// A queue is gone: so is what the log has of its transient messages.
    pub(super) fn append_spilled_gone(&mut self, journal: &mut Journal, index: usize) {
        let incarnation = self.queues[index].spilled_lane.incarnation;
        if incarnation != 0 {
            journal.queue_gone(incarnation);
        }
    }

    /// At a start: what another life had taken out of memory is void.
    pub fn forget_transient(&mut self, journal: &mut Journal, incarnation: u64) {
        journal.queue_gone(incarnation);
    }
}

/// Whether the log has the message for good, and it can be counted among those that only the log has.
fn is_stored(messages: &Messages, queue: &Queue, message: MessageId) -> bool {
    messages.flags(message).has(MessageFlags::STORED) && queue.deep.messages < DEEP_MAX
}
