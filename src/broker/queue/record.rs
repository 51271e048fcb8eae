//! A queue: its settings, its consumers, and when it is deleted; its messages are in its `backlog`.
//!
//! Always true: offsets rise with arrival and stay with a message for life, so requeued messages go before
//! everything that has not been delivered yet, in their old order (in that of their return once half of all
//! delivery records serve such messages); a queue is on the ready list exactly when it has a message, a
//! consumer that can take it, and nothing that has to come first.

use super::backlog::{Backlog, Size};
use super::logged::Logged;
use super::place::Place;
use super::requeue_counts::RequeueCounts;
use crate::arguments::QueueSettings;
use crate::consumers::QueueConsumers;
use crate::policy::Applied;
use crate::quota::Declarer;
use leveret_core::command::{ConnectionId, ExchangeId, QueueId, VhostId};
use leveret_core::journal::Appended;
use leveret_core::mem::{FifoPool, Links, List};

/// One queue.
#[derive(Debug)]
pub(crate) struct Queue {
    /// The number of the declaration, which no other queue has.
    pub(crate) serial: u64,
    pub(crate) vhost: VhostId,
    pub(crate) name: Box<str>,
    pub(crate) declared: Declared,
    pub(crate) arguments: Box<[u8]>,
    /// The policies that apply to the queue.
    pub(crate) applied: Applied,
    pub(crate) settings: QueueSettings,
    /// Shown to nobody: a level of another queue, the messages of a delayed exchange, or the reply queue
    /// behind amq.rabbitmq.reply-to, which is reached by its name.
    pub(crate) hidden: bool,
    /// The delayed exchange that is to route the messages of this queue when they are due.
    pub(crate) delayed_exchange: Option<ExchangeId>,
    /// The place of the record among the levels of a queue with priorities.
    pub(crate) rank: Rank,
    pub(crate) logged: Logged,
    /// How often messages were requeued, if the queue counts that.
    pub(crate) requeues: RequeueCounts,
    /// Messages that are ready for delivery.
    pub(crate) backlog: Backlog,
    pub(crate) unsettled: Unsettled,
    pub(crate) times: Times,
    pub(crate) listed: Listed,
    /// Jobs that are still requeueing messages: nothing is delivered until they are done, for the order would
    /// not be kept.
    pub(crate) returning: u32,
    /// A bridge consumes the queue, or has: other brokers know its messages by their places.
    pub(crate) is_forwarded: bool,
    pub(crate) front: Front,
    pub(crate) audience: QueueConsumers,
    /// Bindings whose destination is this queue.
    pub(crate) bindings: List,
    /// Route number that last chose this queue: a message enters a queue once.
    pub(crate) routed_at: u64,
    /// The queue is deleted: its name is free, and a job clears away its messages and bindings.
    pub(crate) dying: bool,
    /// The queue is cleared away: its record goes with the last delivery that refers to it.
    pub(crate) cleared: bool,
}

/// The flags and the owner that a queue was declared with.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Declared {
    pub(crate) durable: bool,
    pub(crate) auto_delete: bool,
    /// The declaration of the queue is lost: it is rebuilt from its messages until somebody declares it
    /// again.
    pub(crate) is_rebuilt: bool,
    pub(crate) exclusive_owner: Option<ConnectionId>,
    /// In whose share of the quotas the queue is.
    pub(crate) declarer: Option<Declarer>,
}

/// Unsettled deliveries of a queue, gets included.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Unsettled {
    pub(crate) count: u32,
    /// Unsettled deliveries whose message only the log has.
    pub(crate) absent: u32,
    /// Bytes of blocks that the messages of unsettled deliveries occupy.
    pub(crate) bytes: u64,
    /// Bytes of the bodies of unsettled deliveries, in memory or not.
    pub(crate) body_bytes: u64,
}

/// The times of a queue, all in milliseconds of broker time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    /// When the queue is looked at for expired messages; for a slot of a delayed exchange the slot's key
    /// (`delay_wheel`). The largest number means never.
    pub(crate) due_ms: u64,
    /// When the queue expires unless it is used; while it has a consumer it stays. The largest number means
    /// never.
    pub(crate) unused_until_ms: u64,
    /// From when on messages count that came before their queue had a time to live; 0 where it always had
    /// one.
    pub(crate) ttl_since_ms: u64,
    /// The expiry of a first message that only the log has.
    pub(crate) peeked: Peeked,
}

/// The lists that a queue is on.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Listed {
    /// The list of queues to be read from the log, or being read.
    pub(crate) is_fetching: bool,
    /// The list of queues that have messages to give up.
    pub(crate) is_shedding: bool,
    /// The ready list: queues that can deliver now.
    pub(super) is_ready: bool,
    pub(super) ready_links: Links,
    /// Links in the list of a connection's exclusive queues.
    pub(super) owner_links: Links,
}

/// The place of a record among the levels of a queue with priorities; see `levels`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Rank {
    /// A queue without priorities.
    Plain,
    /// A queue with priorities, and the lowest of its levels.
    Lowest {
        /// The highest level above the queue itself, if there is one.
        highest: Option<QueueId>,
        /// The log number of the level for priority 1, which those of the higher priorities follow; 0 for a
        /// queue that is not in the log.
        levels_from: u64,
    },
    /// The level of a queue for one priority.
    Level {
        /// The queue that this is a level of.
        queue: QueueId,
        /// The priority of the level, from 1 on.
        priority: u8,
        /// The next lower level, which may be the queue itself.
        below: QueueId,
    },
}

/// Whether the first message can be delivered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Front {
    Free,
    /// The first message must be read back, or the watermark raised above it, before it can go.
    Blocked,
    /// The first message has expired, and its dead letter has nowhere to go yet.
    Expired,
}

/// The expiry of a message that stood first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peeked {
    offset: u64,
    /// When the message expires, in milliseconds of broker time; the largest number for never.
    pub(crate) due_ms: u64,
}

impl Peeked {
    /// The expiry of no message.
    pub(crate) const NOTHING: Self = Self { offset: u64::MAX, due_ms: u64::MAX };
    /// The next read is only to tell the expiry of the first message.
    pub(crate) const WANTED: Self = Self { offset: u64::MAX - 1, due_ms: u64::MAX };

    pub(crate) const fn is_wanted(self) -> bool {
        self.offset == Self::WANTED.offset
    }

    pub(crate) const fn of(offset: u64, due_ms: u64) -> Self {
        Self { offset, due_ms }
    }

    /// Whether this is the expiry of the message at this log offset.
    pub(crate) const fn is_of(self, offset: u64) -> bool {
        self.offset == offset
    }
}

impl Queue {
    /// A queue without messages and consumers.
    pub(crate) fn new(vhost: VhostId, name: &str, arguments: &[u8], settings: QueueSettings) -> Self {
        Self {
            serial: 0,
            vhost,
            name: name.into(),
            declared: Declared::default(),
            arguments: arguments.into(),
            applied: Applied::default(),
            settings,
            hidden: false,
            delayed_exchange: None,
            rank: Rank::Plain,
            logged: Logged::default(),
            requeues: RequeueCounts::default(),
            backlog: Backlog::default(),
            unsettled: Unsettled::default(),
            times: Times {
                due_ms: u64::MAX,
                unused_until_ms: u64::MAX,
                ttl_since_ms: 0,
                peeked: Peeked::NOTHING,
            },
            listed: Listed::default(),
            returning: 0,
            is_forwarded: false,
            front: Front::Free,
            audience: QueueConsumers::new(settings.single_active),
            bindings: List::default(),
            routed_at: 0,
            dying: false,
            cleared: false,
        }
    }

    /// Takes a new message of this size. The caller made sure of room.
    #[inline]
    pub(crate) fn push(&mut self, pool: &mut FifoPool, appended: &Appended, size: Size) {
        let place = match appended.targets() > 0 && self.logged.is_on() {
            true => Place::Logged(appended.message(), self.logged.last_offset()),
            false => Place::Plain(appended.message()),
        };
        self.backlog.push(pool, place, size);
    }

    /// Whether only the log has some messages of the queue, delivered ones included.
    pub(crate) const fn has_absent(&self) -> bool {
        self.backlog.has_absent() || self.unsettled.absent > 0
    }

    /// Bytes that the messages of the queue take in the log.
    pub(crate) const fn log_bytes(&self) -> u64 {
        self.logged.bytes()
    }

    /// Messages of the queue that are in memory.
    pub(crate) const fn resident_messages(&self) -> u64 {
        (self.backlog.resident() + self.unsettled.count - self.unsettled.absent) as u64
    }

    /// Whether messages of the log that the queue gives up go on as dead letters.
    pub(crate) const fn dead_letters_logged(&self) -> bool {
        self.settings.dead_letters && self.logged.is_on()
    }

    /// Whether the queue has rules to check when a message comes, goes or is requeued.
    #[inline]
    pub(crate) const fn has_rules(&self) -> bool {
        self.settings.may_expire || self.settings.limits_length || self.delayed_exchange.is_some()
    }

    /// Whether this is a level of another queue.
    pub(crate) const fn is_level(&self) -> bool {
        matches!(self.rank, Rank::Level { .. })
    }

    /// Whether the queue has levels above itself.
    pub(crate) const fn has_levels(&self) -> bool {
        matches!(self.rank, Rank::Lowest { highest: Some(_), .. })
    }

    /// The log number of the level for priority 1; 0 if the log has no levels of the queue.
    pub(crate) const fn levels_from(&self) -> u64 {
        match self.rank {
            Rank::Lowest { levels_from, .. } => levels_from,
            Rank::Plain | Rank::Level { .. } => 0,
        }
    }

    /// Whether the queue has rules to check, or a level to choose, when a message comes.
    #[inline]
    pub(crate) fn has_rules_or_levels(&self) -> bool {
        self.has_rules() || self.rank != Rank::Plain
    }

    /// Whether messages of the queue, or the queue itself, may expire.
    pub(crate) const fn has_expiry(&self) -> bool {
        self.settings.may_expire || self.settings.expires()
    }

    /// Whether the queue has a message to deliver; `levels` answers for a queue with priorities.
    #[inline]
    pub(crate) fn wants_delivery(&self) -> bool {
        self.backlog.ready() > 0
            && self.audience.is_ready()
            && self.returning == 0
            && !self.dying
            && self.front == Front::Free
            && self.rank == Rank::Plain
    }
}
