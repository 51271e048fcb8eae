//! A queue: what waits in it, who takes from it, and when it goes.
//!
//! ```text
//! returned, spilled │ head │ middle                     │ fifo
//!   came back       │ read │ what the log alone has,    │ what came in last
//!                   │ back │ and transient ones between │
//! ```
//!
//! A queue that fits into memory has nothing but its `fifo`. When memory is short, what the log has leaves
//! it from the front of the fifo for the `middle`, where any number of neighbours are one entry; ahead of
//! delivery they are read back into the `head`.
//!
//! Always true: offsets rise with arrival and stay with a message for life, so what comes back goes before
//! everything that has not been delivered yet, in its old order; a queue is on the ready list exactly when
//! it has a message, a consumer that can take it, and nothing that has to come first.

use crate::command::{ConnectionId, VhostId};
use crate::mem::{Entry, Fifo, Links, List, MessageId};

use super::arguments::QueueSettings;
use super::deliveries::ReturnedHeap;
use super::shares::Declarer;

/// Entry flags: two bits of kind, thirty of the log offset.
const LOGGED: u32 = 1;
const STORED: u32 = 3;
const KIND: u32 = 3;
/// How far the offsets in one queue may be apart.
const SPAN: u64 = 1 << 30;

/// What stands at one place of a queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Place {
    /// A message that is in memory only.
    Plain(MessageId),
    /// A message in memory that the log has too, or will have.
    Logged(MessageId, u64),
    /// So many messages from this offset on, which the log alone has.
    Stored(u64, u32),
}

/// What the log knows the queue by; all 0 for one that does not outlive the broker.
#[derive(Debug, Default)]
pub(super) struct Logged {
    /// Never used again for another queue; 0 when nothing of this one is logged.
    pub(super) incarnation: u64,
    /// The offset of the next message that is logged.
    pub(super) next_offset: u64,
    /// Messages in the log and not settled, and their bytes there.
    pub(super) count: u64,
    pub(super) bytes: u64,
    /// Offsets below were perhaps delivered in another life.
    pub(super) redelivered_below: u64,
    /// Offsets below may be delivered: it is written down that they may have been.
    pub(super) marked: u64,
    /// The same, once what was asked for is durable.
    pub(super) mark_asked: u64,
}

/// What is not in memory.
#[derive(Debug, Default)]
pub(super) struct Deep {
    /// Read back.
    pub(super) head: Fifo,
    /// Still to be read back.
    pub(super) middle: Fifo,
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
    pub(super) born: u64,
    pub(super) vhost: VhostId,
    pub(super) name: Box<str>,
    pub(super) durable: bool,
    pub(super) auto_delete: bool,
    pub(super) exclusive_owner: Option<ConnectionId>,
    /// In whose share it is.
    pub(super) declarer: Option<Declarer>,
    pub(super) arguments: Box<[u8]>,
    pub(super) settings: QueueSettings,
    /// The reply queue behind amq.rabbitmq.reply-to: reached by its name, seen by nobody.
    pub(super) hidden: bool,
    pub(super) logged: Logged,
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
        Self {
            born: 0,
            vhost,
            name: name.into(),
            durable: false,
            auto_delete: false,
            exclusive_owner: None,
            declarer: None,
            arguments: arguments.into(),
            settings,
            hidden: false,
            logged: Logged::default(),
            fifo: Fifo::default(),
            deep: Deep::default(),
            taken: 0,
            returned: ReturnedHeap::default(),
            spilled: Fifo::default(),
            ready_bytes: 0,
            ready_body_bytes: 0,
            unsettled: 0,
            unsettled_bytes: 0,
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

    /// Messages ready for delivery.
    pub(super) fn ready(&self) -> u32 {
        self.resident() + self.deep.stored
    }

    /// Those of them that are in memory.
    pub(super) fn resident(&self) -> u32 {
        let deep = self.deep.head.len() + self.deep.messages - self.deep.stored;
        self.fifo.len() + self.returned.len() + self.spilled.len() + deep
    }

    /// Bytes of the bodies of all of them.
    pub(super) const fn body_bytes(&self) -> u64 {
        self.ready_body_bytes + self.deep.body_bytes
    }

    /// Messages leave the log that are not in memory: each counts for as much as the others on average.
    pub(super) fn uncount_logged(&mut self, count: u64) {
        let logged = &mut self.logged;
        let share = u128::from(logged.bytes) * u128::from(count) / u128::from(logged.count.max(1));
        logged.bytes = logged.bytes.saturating_sub(share as u64);
        logged.count = logged.count.saturating_sub(count);
    }

    /// Whether a deliver pass has anything to do here.
    pub(super) fn wants_delivery(&self) -> bool {
        self.ready() > 0 && !self.eligible.is_empty() && self.returning == 0 && !self.dying && !self.stalled
    }

    /// What an entry of this queue stands for.
    pub(super) const fn place(&self, entry: Entry) -> Place {
        match entry.flags & KIND {
            LOGGED => Place::Logged(entry.message, self.offset(entry.flags)),
            STORED => Place::Stored(self.offset(entry.flags), entry.message.index() as u32 + 1),
            _ => Place::Plain(entry.message),
        }
    }

    /// The whole offset: the highest below the next one that ends in these bits.
    const fn offset(&self, flags: u32) -> u64 {
        let low = (flags >> 2) as u64;
        let last = self.logged.next_offset - 1;
        last - (last.wrapping_sub(low) & (SPAN - 1))
    }

    /// Whether an offset is near enough to be kept in an entry.
    pub(super) const fn is_near(&self, offset: u64) -> bool {
        offset + SPAN >= self.logged.next_offset
    }
}

impl Place {
    /// As an entry; the offset must be near.
    pub(super) fn entry(self) -> Entry {
        let low = |offset: u64| ((offset & (SPAN - 1)) as u32) << 2;
        match self {
            Self::Plain(message) => Entry { message, flags: 0 },
            Self::Logged(message, offset) => Entry { message, flags: low(offset) | LOGGED },
            Self::Stored(start, count) => {
                Entry { message: MessageId::from_index(count as usize - 1), flags: low(start) | STORED }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::field::Table;

    #[test]
    fn places_read_back_whatever_the_offset() {
        let mut queue = Queue::new(VhostId::from_index(0), "q", &[], QueueSettings::of(Table::EMPTY));
        let message = MessageId::from_index(5);
        for next in [1, 2, SPAN, SPAN + 1, 5 * SPAN + 17, u64::MAX / 4] {
            queue.logged.next_offset = next;
            for back in [1, 2, 1000, SPAN - 1, SPAN] {
                let Some(offset) = next.checked_sub(back) else { continue };
                assert!(queue.is_near(offset));
                for place in [Place::Logged(message, offset), Place::Stored(offset, u32::MAX - 1)] {
                    assert_eq!(queue.place(place.entry()), place);
                }
            }
        }
        assert_eq!(queue.place(Place::Plain(message).entry()), Place::Plain(message));
    }
}
