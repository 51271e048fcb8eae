//! A queue: what is known of it, who takes from it, and when it goes; what waits in it is its `backlog`.
//!
//! Always true: offsets rise with arrival and stay with a message for life, so what comes back goes before
//! everything that has not been delivered yet, in its old order; a queue is on the ready list exactly when
//! it has a message, a consumer that can take it, and nothing that has to come first.

use crate::command::{ConnectionId, ExchangeId, QueueId, VhostId};
use crate::journal::Appended;
use crate::mem::{FifoPool, Links, List};

use super::backlog::{Backlog, Size};
use super::lanes::{Logged, Spilled};
use super::place::{Lane, Place};
use super::returns::Returns;
use crate::broker::arguments::QueueSettings;
use crate::broker::consumers::Audience;
use crate::broker::policy::Applied;
use crate::broker::quota::Declarer;
use crate::broker::quota::owner_of;

/// One queue.
#[derive(Debug)]
pub(crate) struct Queue {
    /// When it was declared, as a number that no other queue has.
    pub(crate) serial: u64,
    pub(crate) vhost: VhostId,
    pub(crate) name: Box<str>,
    pub(crate) declared: Declared,
    pub(crate) arguments: Box<[u8]>,
    /// The policies that apply to it.
    pub(crate) applied: Applied,
    pub(crate) settings: QueueSettings,
    /// Seen by nobody: a level of another queue, what a delayed exchange keeps, or the reply queue behind
    /// amq.rabbitmq.reply-to, which is reached by its name.
    pub(crate) hidden: bool,
    /// What is in it sleeps until this delayed exchange is to route it.
    pub(crate) sleeps_for: Option<ExchangeId>,
    /// What it is among queues with priorities.
    pub(crate) rank: Rank,
    pub(crate) logged: Logged,
    /// How often its messages came back, if it is a queue that counts that.
    pub(crate) returns: Returns,
    pub(crate) spilled: Spilled,
    /// Messages that wait for delivery.
    pub(crate) backlog: Backlog,
    pub(crate) unsettled: Unsettled,
    pub(crate) times: Times,
    pub(crate) listed: Listed,
    /// Jobs that are still giving messages back: until they are done the order would not be kept.
    pub(crate) returning: u32,
    /// A bridge consumes it, or has: its messages are known by their places beyond this broker.
    pub(crate) is_named: bool,
    pub(crate) front: Front,
    pub(crate) audience: Audience,
    /// Bindings that lead here.
    pub(crate) bindings: List,
    /// Route number that last chose this queue: a message enters a queue once.
    pub(crate) routed_at: u64,
    /// Its name is gone, and what hangs on it is being cleared away.
    pub(crate) dying: bool,
    /// Cleared away: the record goes with the last delivery that refers to it.
    pub(crate) cleared: bool,
}

/// How a queue was declared.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Declared {
    pub(crate) durable: bool,
    pub(crate) auto_delete: bool,
    /// What the queue was declared with is lost: it is so until somebody declares it again.
    pub(crate) is_rebuilt: bool,
    pub(crate) exclusive_owner: Option<ConnectionId>,
    /// In whose share the queue is.
    pub(crate) declarer: Option<Declarer>,
}

/// Deliveries of a queue that are not settled, gets included.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Unsettled {
    pub(crate) count: u32,
    /// Messages of theirs that only the log has.
    pub(crate) absent: u32,
    /// Bytes of blocks that their messages occupy.
    pub(crate) bytes: u64,
    /// Bytes of their bodies, in memory or not.
    pub(crate) body_bytes: u64,
}

/// What time brings about in a queue; all in milliseconds of broker time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    /// The queue is looked at then for what has expired; of a slot of a delayed exchange it is the slot's key
    /// (`sleepers`). The largest number means never.
    pub(crate) due_ms: u64,
    /// The queue stays until then if nobody uses it, and for good while it has a consumer; the largest number
    /// means for ever.
    pub(crate) unused_until_ms: u64,
    /// Messages that came before their queue had a time for them count from here; 0 where it always had.
    pub(crate) ttl_since_ms: u64,
    /// What is known of a message that stood first and that only the log has.
    pub(crate) peeked: Peeked,
}

/// The lists that a queue is on.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Listed {
    /// Queues to be read from, or being read.
    pub(super) is_fetching: bool,
    /// Queues that have something to give up.
    pub(crate) is_shedding: bool,
    /// Queues with something to deliver now.
    pub(super) is_ready: bool,
    pub(super) ready_links: Links,
    /// Exclusive queues of a connection.
    pub(super) owner_links: Links,
}

/// What a record stands for; what becomes of that, see `levels`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Rank {
    /// A queue without priorities.
    Plain,
    /// A queue with priorities, and the lowest of its levels.
    Lowest {
        /// The highest of its levels that there is, if there is one above itself.
        highest: Option<QueueId>,
        /// What the log knows the level for priority 1 by, and by the numbers behind it those for the others;
        /// 0 for a queue that is not in the log.
        levels_from: u64,
    },
    /// The level of a queue for one priority.
    Level {
        /// The queue.
        queue: QueueId,
        /// From 1 on.
        priority: u8,
        /// The next lower level that there is, which may be the queue itself.
        below: QueueId,
    },
}

/// Whether the first message can go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Front {
    Free,
    /// The first message must be read back, or the watermark raised above it, before it can go.
    Blocked,
    /// The first message has expired, and has nowhere to go yet.
    Expired,
}

/// Where a message stood first, and when that expires.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peeked {
    place: u64,
    /// In milliseconds of broker time; the largest number for never.
    pub(crate) due_ms: u64,
}

impl Peeked {
    /// Of no message.
    pub(crate) const NOTHING: Self = Self { place: u64::MAX, due_ms: u64::MAX };
    /// What is read next is only to tell that.
    pub(crate) const WANTED: Self = Self { place: u64::MAX - 1, due_ms: u64::MAX };

    pub(crate) const fn is_wanted(self) -> bool {
        self.place == Self::WANTED.place
    }

    pub(crate) const fn of(lane: Lane, offset: u64, due_ms: u64) -> Self {
        Self { place: offset << 1 | lane as u64, due_ms }
    }

    /// Whether it is that of the message at this place.
    pub(crate) const fn is_of(self, lane: Lane, offset: u64) -> bool {
        self.place == offset << 1 | lane as u64
    }
}

impl Queue {
    /// A queue with nothing in it and nobody at it.
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
            sleeps_for: None,
            rank: Rank::Plain,
            logged: Logged::default(),
            returns: Returns::default(),
            spilled: Spilled::default(),
            backlog: Backlog::owned_by(owner_of(vhost)),
            unsettled: Unsettled::default(),
            times: Times {
                due_ms: u64::MAX,
                unused_until_ms: u64::MAX,
                ttl_since_ms: 0,
                peeked: Peeked::NOTHING,
            },
            listed: Listed::default(),
            returning: 0,
            is_named: false,
            front: Front::Free,
            audience: Audience::new(settings.single_active),
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

    /// Whether only the log has some of its messages, delivered ones included.
    pub(crate) const fn has_absent(&self) -> bool {
        self.backlog.has_absent() || self.unsettled.absent > 0
    }

    /// Messages leave the log that are not in memory.
    pub(crate) fn uncount_stored(&mut self, lane: Lane, count: u64) {
        match lane {
            Lane::Durable => self.logged.settled_unread(count),
            Lane::Transient => self.spilled.settled_unread(count),
        }
    }

    /// What the log knows a lane by.
    pub(crate) const fn incarnation(&self, lane: Lane) -> u64 {
        match lane {
            Lane::Durable => self.logged.incarnation(),
            Lane::Transient => self.spilled.incarnation(),
        }
    }

    /// Whether the log knows one of its lanes by this.
    pub(crate) const fn is_known_as(&self, incarnation: u64) -> bool {
        incarnation != 0
            && (self.logged.incarnation() == incarnation || self.spilled.incarnation() == incarnation)
    }

    /// Bytes that its messages take in the log.
    pub(crate) const fn log_bytes(&self) -> u64 {
        self.logged.bytes() + self.spilled.bytes()
    }

    /// Its messages that are in memory.
    pub(crate) const fn resident_messages(&self) -> u64 {
        (self.backlog.resident() + self.unsettled.count - self.unsettled.absent) as u64
    }

    /// Whether what it has in the log goes on when it gives that up.
    pub(crate) const fn buries_logged(&self) -> bool {
        self.settings.dead_letters && self.logged.is_on()
    }

    /// Whether more is to be asked when a message comes, goes or comes back than of other queues.
    #[inline]
    pub(crate) const fn is_picky(&self) -> bool {
        self.settings.may_expire || self.settings.limits_length || self.sleeps_for.is_some()
    }

    /// Whether it is a level of another queue.
    pub(crate) const fn is_level(&self) -> bool {
        matches!(self.rank, Rank::Level { .. })
    }

    /// Whether it has levels above itself.
    pub(crate) const fn has_levels(&self) -> bool {
        matches!(self.rank, Rank::Lowest { highest: Some(_), .. })
    }

    /// What the log knows its levels by; 0 if it knows of none.
    pub(crate) const fn levels_from(&self) -> u64 {
        match self.rank {
            Rank::Lowest { levels_from, .. } => levels_from,
            Rank::Plain | Rank::Level { .. } => 0,
        }
    }

    /// Whether more is to be asked when a message comes.
    #[inline]
    pub(crate) fn is_picky_or_ranked(&self) -> bool {
        self.is_picky() || self.rank != Rank::Plain
    }

    /// Whether time alone brings something about here.
    pub(crate) const fn is_picky_by_time(&self) -> bool {
        self.settings.may_expire || self.settings.expires()
    }

    /// Whether a deliver pass has anything to do here; `levels` answers for a queue with priorities.
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
