//! A queue: what waits in it, who takes from it, and when it goes.
//!
//! ```text
//! returned, spilled │ head │ middle                     │ leaving      │ fifo
//!   came back       │ read │ what the log alone has,    │ waits for    │ what came in last
//!                   │ back │ and transient ones between │ its commit   │
//! ```
//!
//! A queue that fits into memory has nothing but its `fifo`. When memory is short, what the log has leaves
//! it from the front of the fifo for the `middle`, where any number of neighbours are one entry; ahead of
//! delivery they are read back into the `head`. Transient messages stay in memory, or, with
//! `spill_transient`, are written to the log first and stand in `leaving` until they are there. They have a
//! lane of their own in the log, with offsets of its own, which the next life of the broker throws away.
//!
//! Always true: offsets rise with arrival and stay with a message for life, so what comes back goes before
//! everything that has not been delivered yet, in its old order; a queue is on the ready list exactly when
//! it has a message, a consumer that can take it, and nothing that has to come first.

use crate::command::{ConnectionId, VhostId};
use crate::journal::{Appended, Batch, Target};
use crate::mem::{Entry, Fifo, FifoPool, Links, List, MessageId};

use super::arguments::QueueSettings;
use super::deliveries::ReturnedHeap;
use super::divisions::owner_of;
use super::holdings::Declarer;

/// Entry flags: three bits of kind, sixty-one of the log offset, which no queue ever uses up.
const LOGGED: u64 = 1;
const STORED: u64 = 2;
const SPILLED: u64 = 3;
const SHED_STORED: u64 = 4;
const KIND: u64 = 7;
const KIND_BITS: u32 = 3;

/// Which of a queue's two sequences in the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Lane {
    /// What outlives the broker.
    Durable,
    /// Transient messages that had to leave memory.
    Transient,
}

/// What stands at one place of a queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Place {
    /// A message that is in memory only.
    Plain(MessageId),
    /// A message in memory that the log has too, or will have.
    Logged(MessageId, u64),
    /// A transient message in memory that is being written, to leave it.
    Spilled(MessageId, u64),
    /// So many messages from this offset on, which the log alone has.
    Stored(Lane, u64, u32),
}

/// What the log knows the queue by; all 0 for one that does not outlive the broker.
#[derive(Debug, Default)]
pub(super) struct Logged {
    /// Never used again for another queue; 0 when nothing of this one is logged.
    pub(super) incarnation: u64,
    /// What says that it exists is durable with this.
    pub(super) defined: Batch,
    /// The offset of the next message that is logged.
    pub(super) next_offset: u64,
    /// Messages in the log and not settled, and their bytes there.
    pub(super) count: u64,
    pub(super) bytes: u64,
    /// Offsets below were perhaps delivered in another life.
    pub(super) redelivered_below: u64,
    /// Offsets below may be delivered: it is written down that they may have been.
    pub(super) watermark: u64,
    /// The same, once what was asked for is durable.
    pub(super) watermark_asked: u64,
    /// Marks of other lives are in the log up to here.
    pub(super) watermark_before: u64,
    /// Offsets below are all that were really taken to be delivered, in this life or another.
    pub(super) taken_below: u64,
}

impl Logged {
    /// The place of the next message, which takes so many bytes there; none for a queue that is not in the
    /// log.
    pub(super) fn next_target(&mut self, bytes: u64) -> Option<Target> {
        if self.incarnation == 0 {
            return None;
        }
        let target = Target { queue: self.incarnation, offset: self.next_offset };
        self.next_offset += 1;
        self.count += 1;
        self.bytes += bytes;
        Some(target)
    }
}

/// What the log has of the queue's transient messages; all 0 until the first of them had to leave memory.
#[derive(Debug, Default)]
pub(super) struct Spilled {
    /// Never used again for another queue, and of this life only.
    pub(super) incarnation: u64,
    /// The offset of the next message that leaves.
    pub(super) next_offset: u64,
    /// Messages in the log or on their way there, and their bytes there.
    pub(super) count: u64,
    pub(super) bytes: u64,
    /// With this batch the last of them is there.
    pub(super) awaits: Batch,
}

/// What is not in memory.
#[derive(Debug, Default)]
pub(super) struct Deep {
    /// Read back.
    pub(super) head: Fifo,
    /// Still to be read back.
    pub(super) middle: Fifo,
    /// On their way out of memory, some of them still being written.
    pub(super) leaving: Fifo,
    /// Messages in the middle, those in memory included.
    pub(super) messages: u32,
    /// Messages in the middle that only the log has, and bytes of their bodies.
    pub(super) stored: u32,
    pub(super) body_bytes: u64,
    /// On the list of queues to be read from, or being read.
    pub(super) is_fetching: bool,
}

/// One queue.
#[derive(Debug)]
pub(super) struct Queue {
    /// When it was declared, as a number that no other queue has.
    pub(super) serial: u64,
    pub(super) vhost: VhostId,
    pub(super) name: Box<str>,
    pub(super) durable: bool,
    pub(super) auto_delete: bool,
    /// What it was declared with is lost: it is so until somebody declares it again.
    pub(super) is_rebuilt: bool,
    pub(super) exclusive_owner: Option<ConnectionId>,
    /// In whose share it is.
    pub(super) declarer: Option<Declarer>,
    pub(super) arguments: Box<[u8]>,
    pub(super) settings: QueueSettings,
    /// The reply queue behind amq.rabbitmq.reply-to: reached by its name, seen by nobody.
    pub(super) hidden: bool,
    pub(super) logged: Logged,
    pub(super) spilled_lane: Spilled,
    /// Messages that have not been delivered.
    pub(super) fifo: Fifo,
    /// Messages before those, as far as some of them are not in memory.
    pub(super) deep: Deep,
    /// Messages taken from the front so far, which numbers them in the order of their coming.
    pub(super) taken: u64,
    /// Messages that came back.
    pub(super) returned: ReturnedHeap,
    /// Messages that came back when half of all deliveries had: as entries, in the order of their coming.
    pub(super) spilled: Fifo,
    /// Bytes of pool memory that the messages ready here occupy.
    pub(super) ready_bytes: u64,
    /// Bytes of the bodies of those, which is what x-max-length-bytes counts.
    pub(super) ready_body_bytes: u64,
    /// Deliveries not settled, gets included.
    pub(super) unsettled: u32,
    /// Bytes of blocks that their messages occupy.
    pub(super) unsettled_bytes: u64,
    /// Those of them that only the log has.
    pub(super) unsettled_absent: u32,
    /// Messages that came back and that only the log has, and bytes of their bodies.
    pub(super) returned_absent: u32,
    pub(super) returned_absent_bytes: u64,
    /// Jobs that are still giving messages back: until they are done the order would not be kept.
    pub(super) returning: u32,
    /// The first message must be read back, or marked, before it can go.
    pub(super) stalled: bool,
    pub(super) consumers: List,
    pub(super) eligible: List,
    /// One of the consumers is exclusive.
    pub(super) exclusively_consumed: bool,
    pub(super) had_consumer: bool,
    /// Bindings that lead here.
    pub(super) bindings: List,
    /// Route number that last chose this queue: a message enters a queue once.
    pub(super) routed_at: u64,
    /// Its name is gone, and what hangs on it is being cleared away.
    pub(super) dying: bool,
    /// Cleared away: the record goes with the last delivery that refers to it.
    pub(super) cleared: bool,
    pub(super) on_ready_list: bool,
    pub(super) ready_links: Links,
    pub(super) owner_links: Links,
}

impl Queue {
    /// A queue with nothing in it and nobody at it.
    pub(super) fn new(vhost: VhostId, name: &str, arguments: &[u8], settings: QueueSettings) -> Self {
        let owner = owner_of(vhost);
        Self {
            serial: 0,
            vhost,
            name: name.into(),
            durable: false,
            auto_delete: false,
            is_rebuilt: false,
            exclusive_owner: None,
            declarer: None,
            arguments: arguments.into(),
            settings,
            hidden: false,
            logged: Logged::default(),
            spilled_lane: Spilled::default(),
            fifo: Fifo::owned_by(owner),
            deep: Deep {
                head: Fifo::owned_by(owner),
                middle: Fifo::owned_by(owner),
                leaving: Fifo::owned_by(owner),
                ..Deep::default()
            },
            taken: 0,
            returned: ReturnedHeap::default(),
            spilled: Fifo::owned_by(owner),
            ready_bytes: 0,
            ready_body_bytes: 0,
            unsettled: 0,
            unsettled_bytes: 0,
            unsettled_absent: 0,
            returned_absent: 0,
            returned_absent_bytes: 0,
            returning: 0,
            stalled: false,
            consumers: List::default(),
            eligible: List::default(),
            exclusively_consumed: false,
            had_consumer: false,
            bindings: List::default(),
            routed_at: 0,
            dying: false,
            cleared: false,
            on_ready_list: false,
            ready_links: Links::default(),
            owner_links: Links::default(),
        }
    }

    /// Takes a new message of so many bytes in memory and of body. The caller made sure of room.
    #[inline]
    pub(super) fn push(
        &mut self,
        pool: &mut FifoPool,
        appended: &Appended,
        (footprint, body_len): (u64, u64),
    ) {
        let place = match appended.targets() > 0 && self.logged.incarnation != 0 {
            true => Place::Logged(appended.message(), self.logged.next_offset - 1),
            false => Place::Plain(appended.message()),
        };
        let pushed = self.fifo.push(pool, place.entry());
        assert!(pushed, "a chunk was reserved for every target");
        self.ready_bytes += footprint;
        self.ready_body_bytes += body_len;
    }

    /// The first message of the fifo is leaving memory: its record is in the journal.
    pub(super) fn begin_leaving(&mut self, pool: &mut FifoPool, appended: &Appended) {
        self.spilled_lane.awaits = appended.batch();
        let place = Place::Spilled(appended.message(), self.spilled_lane.next_offset - 1);
        self.leave_fifo(pool, place);
    }

    /// The first message of the fifo is to be given up, or to stay before those that leave memory.
    pub(super) fn leave_fifo(&mut self, pool: &mut FifoPool, place: Place) {
        self.fifo.pop(pool);
        let kept = self.deep.leaving.push(pool, place.entry());
        assert!(kept, "chunks are kept for what leaves memory");
    }

    /// Messages ready for delivery.
    pub(super) fn ready(&self) -> u32 {
        self.resident() + self.deep.stored + self.returned_absent
    }

    /// Whether only the log has some of its messages, delivered ones included.
    pub(super) const fn has_absent(&self) -> bool {
        self.deep.stored > 0 || self.returned_absent > 0 || self.unsettled_absent > 0
    }

    /// Those of them that are in memory.
    pub(super) fn resident(&self) -> u32 {
        let deep = self.deep.head.len() + self.deep.messages - self.deep.stored + self.deep.leaving.len();
        self.fifo.len() + self.returned.len() + self.spilled.len() - self.returned_absent + deep
    }

    /// Bytes of the bodies of all of them.
    pub(super) const fn body_bytes(&self) -> u64 {
        self.ready_body_bytes + self.deep.body_bytes + self.returned_absent_bytes
    }

    /// Messages leave the log that are not in memory: each counts for as much as the others on average.
    pub(super) fn uncount_stored(&mut self, lane: Lane, count: u64) {
        let (messages, bytes) = match lane {
            Lane::Durable => (&mut self.logged.count, &mut self.logged.bytes),
            Lane::Transient => (&mut self.spilled_lane.count, &mut self.spilled_lane.bytes),
        };
        let share = u128::from(*bytes) * u128::from(count) / u128::from((*messages).max(1));
        *bytes = bytes.saturating_sub(share as u64);
        *messages = messages.saturating_sub(count);
    }

    /// One less of those that came back and are not in memory.
    pub(super) const fn uncount_absent(&mut self) {
        let share = self.returned_absent_bytes / self.returned_absent as u64;
        self.returned_absent_bytes -= share;
        self.returned_absent -= 1;
    }

    /// What the log knows a lane by.
    pub(super) const fn incarnation(&self, lane: Lane) -> u64 {
        match lane {
            Lane::Durable => self.logged.incarnation,
            Lane::Transient => self.spilled_lane.incarnation,
        }
    }

    /// Whether the log knows one of its lanes by this.
    pub(super) const fn is_known_as(&self, incarnation: u64) -> bool {
        incarnation != 0
            && (self.logged.incarnation == incarnation || self.spilled_lane.incarnation == incarnation)
    }

    /// Bytes that its messages take in the log.
    pub(super) const fn log_bytes(&self) -> u64 {
        self.logged.bytes + self.spilled_lane.bytes
    }

    /// Whether a deliver pass has anything to do here.
    pub(super) fn wants_delivery(&self) -> bool {
        self.ready() > 0 && !self.eligible.is_empty() && self.returning == 0 && !self.dying && !self.stalled
    }
}

impl Place {
    /// What an entry stands for.
    pub(super) const fn of(entry: Entry) -> Self {
        let Entry { message, flags } = entry;
        if flags & KIND == 0 {
            return Self::Plain(message);
        }
        let offset = flags >> KIND_BITS;
        match flags & KIND {
            LOGGED => Self::Logged(message, offset),
            SPILLED => Self::Spilled(message, offset),
            STORED => Self::Stored(Lane::Durable, offset, message.index() as u32 + 1),
            SHED_STORED => Self::Stored(Lane::Transient, offset, message.index() as u32 + 1),
            _ => Self::Plain(message),
        }
    }

    /// As an entry.
    pub(super) fn entry(self) -> Entry {
        let flags = |offset: u64, kind: u64| offset << KIND_BITS | kind;
        match self {
            Self::Plain(message) => Entry { message, flags: 0 },
            Self::Logged(message, offset) => Entry { message, flags: flags(offset, LOGGED) },
            Self::Spilled(message, offset) => Entry { message, flags: flags(offset, SPILLED) },
            Self::Stored(lane, start, count) => {
                let kind = if lane == Lane::Durable { STORED } else { SHED_STORED };
                Entry { message: MessageId::from_index(count as usize - 1), flags: flags(start, kind) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_read_back_whatever_the_offset() {
        let message = MessageId::from_index(5);
        assert_eq!(Place::of(Place::Plain(message).entry()), Place::Plain(message));
        for shift in 0..61 {
            let width = 1_u64 << shift;
            for offset in [width - 1, width, width + 1] {
                for place in [
                    Place::Logged(message, offset),
                    Place::Spilled(message, offset),
                    Place::Stored(Lane::Durable, offset, u32::MAX - 1),
                    Place::Stored(Lane::Transient, offset, 7),
                ] {
                    assert_eq!(Place::of(place.entry()), place);
                }
            }
        }
    }
}
