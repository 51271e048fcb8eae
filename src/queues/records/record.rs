//! The record of a queue (settings, consumers, deletion), and the table of all records.
//!
//! # Invariants
//! - A name in a virtual host refers to at most one queue that is not deleted.
//! - A record keeps its index until no delivery, job or level refers to it.
//! - The reply to the declaration of a durable queue is sent when the declaration is durable.

use core::cell::Cell;
use core::ops::{Index, IndexMut};

use leveret_amqp::field::Table;
use leveret_core::command::{
    AppliedPolicies, ConnectionId, ExchangeId, QueueId, SessionId, VhostId, VhostNames,
};
use leveret_core::definition::{self, Definition};
use leveret_core::mem::{Class, FifoPool, IndexTable, Links, List, Memory, Slab};
use leveret_core::quota::Declarer;
use leveret_routing::RoutedQueues;
use leveret_storage::{Appended, Context, Mode, PendingWrites};

use super::backlog::{Backlog, EntryContent, Size};
use super::durable_index::{DurableIndex, RequeueCounts, RequeueCountsDue};
use crate::consumers::QueueConsumers;
use crate::records::Contents;
use crate::settings::{QueueSettings, is_quorum};

/// One queue.
#[derive(Debug)]
pub struct Queue {
    /// Number of the record in this process, never reused. The number in the log is the incarnation.
    pub serial: u64,
    /// Its virtual host.
    pub vhost: VhostId,
    /// Its name; empty for a level and for the hidden queue of a delayed exchange.
    pub name: Box<str>,
    /// What it was declared with.
    pub declared: Declared,
    /// The arguments of its declaration, encoded as an AMQP table.
    pub arguments: Box<[u8]>,
    /// The policies that apply to the queue.
    pub applied: AppliedPolicies,
    /// What follows from its arguments and policies.
    pub settings: QueueSettings,
    /// Its kind, with what only queues of this kind have.
    pub kind: QueueKind,
    /// Number of messages that were dropped since the start because the queue was over its length limit and has no dead
    /// letters, modulo 2³².
    pub dropped_count: u32,
    /// The role of the record among the levels of a queue with priorities.
    pub rank: Rank,
    /// Its messages in the log.
    pub durable_index: DurableIndex,
    /// Messages that are ready for delivery.
    pub backlog: Backlog,
    /// Messages that were delivered and not settled.
    pub unsettled: Unsettled,
    /// When it is examined, and when it expires.
    pub times: Times,
    /// The lists that it is on.
    pub listed: Listed,
    /// Number of jobs that requeue or drop messages of this queue. Nothing is delivered from the queue until
    /// the jobs are done, because the order of messages would not be kept.
    pub blocking_jobs: u32,
    /// A bridge consumes the queue, or has consumed it: other brokers know its messages by their offsets.
    pub(crate) is_forwarded: bool,
    /// Whether its first message can be delivered.
    pub front: Front,
    /// Its consumers.
    pub queue_consumers: QueueConsumers,
    /// Bindings whose destination is this queue.
    pub bindings: List,
    /// Number of the routing that last chose this queue. It prevents that one routing chooses the queue twice.
    pub last_routing: u64,
    /// The queue for whose share the last message waited that was to be moved out of this queue. `None`: it did not wait.
    pub waits_for: Option<QueueId>,
    /// Whether it exists.
    pub state: QueueState,
}

/// The kind of a queue, with what only queues of this kind have.
#[derive(Debug)]
pub enum QueueKind {
    /// A queue that a client declared, or a level of one.
    Classic,
    /// A queue with `x-queue-type` = `quorum`: deliveries have the header `x-delivery-count`, and all messages are
    /// persistent, whatever their `delivery_mode`, as in RabbitMQ.
    Quorum {
        /// How often messages were requeued; `None` if no message was.
        requeues: Option<Box<RequeueCounts>>,
    },
    /// The hidden queue of a delayed exchange, or a slot of it.
    Delayed {
        /// The exchange that routes the messages of this queue when they are due.
        exchange: ExchangeId,
    },
    /// The reply queue of a consumer of `amq.rabbitmq.reply-to`.
    DirectReply,
    /// The queue of an MQTT session.
    MqttSession {
        /// The session.
        session: SessionId,
        /// Whether the connected client of the session keeps up with its messages.
        pace: Pace,
    },
}

impl QueueKind {
    /// Returns the kind of a queue that is declared with these arguments.
    pub fn declared_with(arguments: Table<'_>) -> Self {
        if is_quorum(arguments) { Self::Quorum { requeues: None } } else { Self::Classic }
    }
}

/// Whether the client of an MQTT session takes its messages as fast as they arrive.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Pace {
    /// The queue is within its limits.
    #[default]
    InTime,
    /// The queue is over its limits. Its publishers wait for their acknowledgements, and nothing is dropped up to twice the
    /// limits.
    Behind,
    /// The queue was over its limits, and is within them now, but not within half of them.
    CatchingUp,
    /// The client was behind for too long. The queue drops messages to stay within its limits, and nobody waits for it.
    Dropping,
}

/// The state of a queue's record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum QueueState {
    /// The queue exists.
    Active,
    /// The queue is deleted: its name is free, and a job deletes its messages and bindings.
    Deleting,
    /// The queue's messages and bindings are deleted. The record is freed when no delivery refers to it.
    Cleared,
}

/// The flags and the owner that a queue was declared with.
#[derive(Clone, Copy, Debug, Default)]
pub struct Declared {
    /// It survives a restart of the broker.
    pub durable: bool,
    /// It is deleted with its last consumer.
    pub auto_delete: bool,
    /// The declaration of the queue was lost to damage, and the queue was rebuilt from its messages. Becomes
    /// `false` when a client declares the queue again.
    pub is_rebuilt: bool,
    /// The connection that alone may use it, and with which it is deleted.
    pub exclusive_owner: Option<ConnectionId>,
    /// The connection in whose share the queue counts.
    pub declarer: Option<Declarer>,
}

/// Unsettled deliveries of a queue, `basic.get` included.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unsettled {
    /// Number of unsettled deliveries.
    pub count: u32,
    /// Number of unsettled deliveries whose message only the log has.
    pub absent: u32,
    /// Bytes of blocks that the messages of unsettled deliveries occupy.
    pub bytes: u64,
    /// Bytes of the bodies of unsettled deliveries, in memory or not.
    pub body_bytes: u64,
}

/// The times of a queue, in milliseconds of broker time unless stated otherwise.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// When the queue is examined for expired messages. For a slot of a delayed exchange its sort key, which is
    /// not a time (`Slot::key`). `u64::MAX` means never.
    pub due_ms: u64,
    /// When the queue expires unless it is used; it does not expire while it has a consumer. `u64::MAX` means
    /// never.
    pub(crate) unused_until_ms: u64,
    /// When the queue got its time to live: the time to live of messages that arrived earlier begins then. 0
    /// if the queue was declared with one.
    pub(crate) ttl_since_ms: u64,
    /// The expiry time of a first message that only the log has.
    pub peeked: PeekedExpiry,
}

/// The lists that a queue is on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Listed {
    /// The list of queues that are to be read from the log, or are being read.
    pub(crate) is_fetching: bool,
    /// The list of queues that have messages to remove.
    pub is_listed_for_trim: bool,
    /// The ready list: queues that can deliver now.
    pub(super) is_ready: bool,
    pub(super) ready_links: Links,
    /// Links in the list of a connection's exclusive queues.
    pub(super) owner_links: Links,
}

/// The role of a record among the levels of a queue with priorities; see `levels`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rank {
    /// A queue without priorities.
    Plain,
    /// A queue with priorities, which is the lowest of its levels.
    Lowest {
        /// The highest level above the queue itself, if there is one.
        highest: Option<QueueId>,
        /// Incarnation of the level for priority 1; those of the higher priorities follow. 0 for a queue that
        /// is not in the log.
        priorities_from: u64,
    },
    /// The level of a queue for one priority.
    Level {
        /// The queue that this is a level of.
        queue: QueueId,
        /// The priority of the level, from 1.
        priority: u8,
        /// The next lower level, which may be the queue itself.
        below: QueueId,
    },
}

/// Whether the first message can be delivered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Front {
    /// Nothing prevents it.
    Free,
    /// The first message cannot be delivered until it is read back, or the watermark above it is durable, or
    /// the batch for which it is withheld is durable.
    Blocked,
    /// The first message has expired, and there is no capacity for its dead letter yet.
    Expired,
}

/// The expiry time of the first message of a queue, as far as a peek has read it from the log.
#[derive(Clone, Copy, Debug)]
pub struct PeekedExpiry {
    offset: u64,
    /// When the message expires, in milliseconds of broker time; `u64::MAX` for never.
    pub due_ms: u64,
}

impl PeekedExpiry {
    /// No expiry time was read.
    pub const NOTHING: Self = Self { offset: u64::MAX, due_ms: u64::MAX };
    /// A peek is requested: the next read is only for the expiry time of the first message.
    pub(crate) const WANTED: Self = Self { offset: u64::MAX - 1, due_ms: u64::MAX };

    /// Returns whether a peek is requested.
    pub const fn is_wanted(self) -> bool {
        self.offset == Self::WANTED.offset
    }

    /// Returns what a peek has read: the log offset of the message, and when it expires.
    pub const fn of(offset: u64, due_ms: u64) -> Self {
        Self { offset, due_ms }
    }

    /// Returns whether this is the expiry time of the message at this log offset.
    pub const fn is_of(self, offset: u64) -> bool {
        self.offset == offset
    }
}

impl Queue {
    /// Creates a queue without messages and consumers, of the kind that its arguments name.
    pub fn new(vhost: VhostId, name: &str, arguments: &[u8], settings: QueueSettings) -> Self {
        Self {
            serial: 0,
            vhost,
            name: name.into(),
            declared: Declared::default(),
            arguments: arguments.into(),
            applied: AppliedPolicies::default(),
            settings,
            kind: QueueKind::declared_with(Table::trusted(arguments)),
            rank: Rank::Plain,
            durable_index: DurableIndex::default(),
            backlog: Backlog::default(),
            unsettled: Unsettled::default(),
            times: Times {
                due_ms: u64::MAX,
                unused_until_ms: u64::MAX,
                ttl_since_ms: 0,
                peeked: PeekedExpiry::NOTHING,
            },
            listed: Listed::default(),
            blocking_jobs: 0,
            is_forwarded: false,
            front: Front::Free,
            queue_consumers: QueueConsumers::new(settings.single_active),
            bindings: List::default(),
            last_routing: 0,
            waits_for: None,
            dropped_count: 0,
            state: QueueState::Active,
        }
    }

    /// Adds a new message of this size. The caller has checked the capacity.
    #[inline]
    pub fn push(&mut self, pool: &mut FifoPool, appended: &Appended, size: Size) {
        let content = match appended.targets() > 0 && self.durable_index.is_logged() {
            true => EntryContent::InMemoryAndLog(appended.message(), self.durable_index.last_offset()),
            false => EntryContent::InMemory(appended.message()),
        };
        self.backlog.push(pool, content, size);
    }

    /// Returns whether this is a quorum queue.
    #[inline]
    pub const fn is_quorum(&self) -> bool {
        matches!(self.kind, QueueKind::Quorum { .. })
    }

    /// Returns whether the queue is not shown to operators: a level of another queue, the hidden queue of a delayed
    /// exchange, or the reply queue behind `amq.rabbitmq.reply-to`. Only the reply queue has a name.
    pub const fn is_internal(&self) -> bool {
        matches!(self.kind, QueueKind::Delayed { .. } | QueueKind::DirectReply) || self.is_level()
    }

    /// Returns the MQTT session that the queue belongs to.
    #[inline]
    pub const fn session(&self) -> Option<SessionId> {
        match self.kind {
            QueueKind::MqttSession { session, .. } => Some(session),
            _ => None,
        }
    }

    /// Makes this the queue of an MQTT session.
    pub fn begin_session(&mut self, session: SessionId) {
        self.kind = QueueKind::MqttSession { session, pace: Pace::InTime };
    }

    /// Ends the use by an MQTT session, before or while the queue is deleted. Returns the session.
    pub fn end_session(&mut self) -> Option<SessionId> {
        let session = self.session()?;
        self.kind = QueueKind::Classic;
        Some(session)
    }

    /// Returns the pace of the client of an MQTT session; `InTime` for any other queue.
    #[inline]
    pub const fn pace(&self) -> Pace {
        match self.kind {
            QueueKind::MqttSession { pace, .. } => pace,
            _ => Pace::InTime,
        }
    }

    /// Returns the delayed exchange whose hidden queue, or a slot of it, this is.
    #[inline]
    pub const fn delayed_exchange(&self) -> Option<ExchangeId> {
        match self.kind {
            QueueKind::Delayed { exchange } => Some(exchange),
            _ => None,
        }
    }

    fn requeues(&self) -> Option<&RequeueCounts> {
        match &self.kind {
            QueueKind::Quorum { requeues } => requeues.as_deref(),
            _ => None,
        }
    }

    fn requeues_mut(&mut self) -> Option<&mut RequeueCounts> {
        match &mut self.kind {
            QueueKind::Quorum { requeues } => requeues.as_deref_mut(),
            _ => None,
        }
    }

    /// Returns how often the message at this log offset was requeued; 0 if no count is stored.
    #[inline]
    pub(crate) fn requeue_count_of(&self, offset: u64) -> u16 {
        self.requeues().map_or(0, |requeues| requeues.count_of(offset))
    }

    /// Drops the requeue counts of settled messages, from log offset `first` to `last`.
    #[inline]
    pub(crate) fn note_settled_requeues(&mut self, first: u64, last: u64) {
        if let Some(requeues) = self.requeues_mut() {
            requeues.note_settled(first, last);
        }
    }

    /// Returns whether the queue is deleted: `Deleting` or `Cleared`.
    #[inline]
    pub const fn is_deleted(&self) -> bool {
        !matches!(self.state, QueueState::Active)
    }

    /// Returns whether the queue has absent messages, unsettled deliveries included.
    pub(crate) const fn has_absent(&self) -> bool {
        self.backlog.has_absent() || self.unsettled.absent > 0
    }

    /// Returns the bytes that the messages of the queue take in the log.
    pub const fn log_bytes(&self) -> u64 {
        self.durable_index.bytes()
    }

    /// Returns the number of messages of the queue that are in memory.
    pub const fn resident_messages(&self) -> u64 {
        (self.backlog.resident() + self.unsettled.count - self.unsettled.absent) as u64
    }

    /// Returns whether the queue is durable and has a dead-letter exchange, so that its dead letters need
    /// space in the log.
    pub(crate) const fn dead_letters_logged(&self) -> bool {
        self.settings.dead_letters && self.durable_index.is_logged()
    }

    /// Returns whether the queue has a length limit, an expiry or a delay, so that it must be checked when a
    /// message arrives, leaves or is requeued.
    #[inline]
    pub const fn has_rules(&self) -> bool {
        self.settings.may_expire || self.settings.limits_length || self.delayed_exchange().is_some()
    }

    /// Returns whether this is a level of another queue.
    pub const fn is_level(&self) -> bool {
        matches!(self.rank, Rank::Level { .. })
    }

    /// Returns whether the queue has levels above itself.
    pub const fn has_levels(&self) -> bool {
        matches!(self.rank, Rank::Lowest { highest: Some(_), .. })
    }

    /// Returns the incarnation of the level for priority 1; 0 if the log has no levels of the queue.
    pub const fn priorities_from(&self) -> u64 {
        match self.rank {
            Rank::Lowest { priorities_from, .. } => priorities_from,
            Rank::Plain | Rank::Level { .. } => 0,
        }
    }

    /// Returns whether limits or expiry must be checked, or a level chosen, when a message arrives.
    #[inline]
    pub fn has_rules_or_levels(&self) -> bool {
        self.has_rules() || self.rank != Rank::Plain
    }

    /// Returns whether messages of the queue, or the queue itself, may expire.
    pub const fn has_expiry(&self) -> bool {
        self.settings.may_expire || self.settings.expires()
    }

    /// Returns whether a queue without priorities can deliver a message now. Always `false` for a queue with
    /// priorities, for which [`Records::level_to_deliver`] is used.
    #[inline]
    pub(crate) fn wants_delivery(&self) -> bool {
        self.backlog.ready() > 0
            && self.queue_consumers.is_ready()
            && self.blocking_jobs == 0
            && !self.is_deleted()
            && self.front == Front::Free
            && self.rank == Rank::Plain
    }
}

/// All queue records, including those of levels and of hidden queues.
#[derive(Debug)]
pub struct Records {
    pub(super) slab: Slab<Queue>,
    table: IndexTable,
    /// The ready list: queues that can deliver now.
    pub(super) ready: List,
    /// Quorum queues whose requeue counts are to be written.
    pub(super) requeue_counts_due: RequeueCountsDue,
    /// Number of durable queues and levels that have a dead-letter exchange.
    pub(super) dead_lettering: u32,
    /// Whether there ever was a message or queue that may expire.
    has_deadlines: bool,
    /// Less than half of the memory for messages was free for publishers when a queue with a length limit was last examined.
    pub(crate) is_memory_scarce: bool,
    /// The most bytes of bodies that the queue of a kept MQTT session may have in the log; `None` without a log.
    pub(crate) session_log_bytes_max: Option<u64>,
    /// The serial of the record created last, levels included.
    serial: u64,
    /// Number of levels that were iterated over and not charged as work yet.
    pub(super) levels_walked: Cell<u32>,
}

impl Index<QueueId> for Records {
    type Output = Queue;

    #[inline]
    fn index(&self, queue: QueueId) -> &Queue {
        &self.slab[queue.index()]
    }
}

impl IndexMut<QueueId> for Records {
    #[inline]
    fn index_mut(&mut self, queue: QueueId) -> &mut Queue {
        &mut self.slab[queue.index()]
    }
}

impl Records {
    /// Reserves capacity for this many queues and levels. `seed` makes the hash table's collisions
    /// unpredictable for clients.
    pub fn with_capacity(queues: usize, memory: &Memory, seed: u64, side_bytes: usize) -> Self {
        Self {
            slab: Slab::in_memory(queues, memory, Class::Definitions).with_side_bytes(side_bytes),
            table: IndexTable::in_memory(queues, memory, Class::Definitions, seed),
            ready: List::default(),
            requeue_counts_due: RequeueCountsDue::default(),
            dead_lettering: 0,
            has_deadlines: false,
            is_memory_scarce: false,
            session_log_bytes_max: None,
            serial: 0,
            levels_walked: Cell::new(0),
        }
    }

    /// Returns the number of queues, including levels and hidden queues.
    pub const fn queue_count(&self) -> usize {
        self.slab.len()
    }

    /// Returns the number of further queues and levels that fit.
    pub fn free_count(&self) -> usize {
        self.slab.free_count()
    }

    /// Returns the upper bound of the indices of queues: the number of indices ever used.
    pub const fn places(&self) -> usize {
        self.slab.places()
    }

    /// Returns the record in a place.
    pub fn get(&self, place: usize) -> Option<&Queue> {
        self.slab.get(place)
    }

    /// Returns the record in a place, for changes.
    pub fn get_mut(&mut self, place: usize) -> Option<&mut Queue> {
        self.slab.get_mut(place)
    }

    /// Returns all records with their places.
    pub fn iter(&self) -> impl Iterator<Item = (usize, &Queue)> {
        self.slab.iter()
    }

    /// Returns the number of messages in unsettled deliveries, or requeued, that only the log has.
    pub fn absent(&self) -> u32 {
        self.slab.iter().map(|(_, queue)| queue.unsettled.absent + queue.backlog.requeued_absent()).sum()
    }

    /// Returns a number that no other queue has.
    pub(super) const fn next_serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    /// Returns the consumers of a queue.
    #[inline]
    pub fn queue_consumers(&self, queue: QueueId) -> &QueueConsumers {
        &self.slab[queue.index()].queue_consumers
    }

    /// Returns the consumers of a queue mutably.
    #[inline]
    pub fn queue_consumers_mut(&mut self, queue: QueueId) -> &mut QueueConsumers {
        &mut self.slab[queue.index()].queue_consumers
    }

    /// Returns the queue of this name.
    pub fn find_queue(&self, vhost: VhostId, name: &str) -> Option<QueueId> {
        let is_it = |index: usize| self.slab[index].vhost == vhost && &*self.slab[index].name == name;
        self.table.find((vhost, name), is_it).map(QueueId::from_index)
    }

    /// Appends a queue to a connection's exclusive queues.
    pub fn link_exclusive_queue(&mut self, owned: &mut List, queue: QueueId) {
        owned.push_back(&mut self.slab, queue.index(), |queue| &mut queue.listed.owner_links);
    }

    /// Removes a queue from the list of a connection's exclusive queues.
    pub fn unlink_exclusive_queue(&mut self, owned: &mut List, queue: QueueId) {
        owned.remove(&mut self.slab, queue.index(), |queue| &mut queue.listed.owner_links);
    }

    /// Adds a queue under its name. The caller has counted it in the quotas, which check the capacity.
    pub fn insert(&mut self, mut record: Queue) -> QueueId {
        record.serial = self.next_serial();
        let (vhost, name) = (record.vhost, record.name.clone());
        self.dead_lettering += u32::from(record.dead_letters_logged());
        self.has_deadlines |= record.settings.may_expire;
        let index = self.slab.insert_checked(record);
        self.table.insert((vhost, &*name), index, self.slab.touched());
        QueueId::from_index(index)
    }

    /// Adds the hidden queue of a delayed exchange, which has no name. The caller has counted it in the
    /// quotas, which check the capacity.
    pub fn insert_hidden(&mut self, mut record: Queue) -> QueueId {
        assert!(record.name.is_empty(), "a hidden queue has no name");
        record.serial = self.next_serial();
        // Delayed messages have due times, so broker time must advance.
        self.has_deadlines = true;
        let index = self.slab.insert_checked(record);
        self.cover_table();
        QueueId::from_index(index)
    }

    /// Takes the memory of the name table for a record that it does not find.
    pub(super) fn cover_table(&mut self) {
        self.table.cover(self.slab.touched());
    }

    /// Returns whether any message in the log may expire or is delayed, so that broker time must be stored
    /// for the next run.
    pub fn has_stored_deadline(&self) -> bool {
        let waits = |queue: &Queue| queue.settings.may_expire || queue.delayed_exchange().is_some();
        self.slab.iter().any(|(_, queue)| waits(queue) && queue.durable_index.count() > 0)
    }

    /// Returns whether the broker has had any message or queue that may expire.
    pub const fn has_deadlines(&self) -> bool {
        self.has_deadlines
    }

    /// Notes that messages of the queue may expire from now on.
    pub(crate) fn note_may_expire(&mut self, queue: QueueId) {
        // Delayed messages expire only after they are routed.
        let record = &mut self.slab[queue.index()];
        record.settings.may_expire = record.delayed_exchange().is_none();
        self.has_deadlines = true;
    }

    /// Returns when the queue expires if it is not used, in milliseconds of broker time; `u64::MAX` for
    /// never.
    pub(crate) fn unused_until_ms(&self, pending_writes: &PendingWrites, queue: QueueId) -> u64 {
        let record = &self.slab[queue.index()];
        // A durable queue does not expire while its deletion cannot be written.
        let may_expire = record.queue_consumers.is_empty()
            && !(record.durable_index.is_logged() && pending_writes.mode() == Mode::Unwritable);
        if may_expire { record.times.unused_until_ms } else { u64::MAX }
    }

    /// Returns whether a queue has expired (`x-expires`).
    pub fn is_unused_for_too_long(&self, pending_writes: &PendingWrites, queue: QueueId) -> bool {
        self.unused_until_ms(pending_writes, queue) <= pending_writes.time_ms()
    }

    /// Sets the delayed exchange whose messages this hidden queue has.
    pub fn set_delayed_exchange(&mut self, queue: QueueId, exchange: ExchangeId) {
        self.slab[queue.index()].kind = QueueKind::Delayed { exchange };
    }

    /// Frees the name of a queue and removes it from the ready list: nothing is delivered from it any more.
    pub fn retire(&mut self, queue: QueueId) {
        let record = &mut self.slab[queue.index()];
        assert!(!record.is_deleted(), "a queue is retired once");
        record.state = QueueState::Deleting;
        self.dead_lettering -= u32::from(record.dead_letters_logged());
        self.table.remove((record.vhost, &*record.name), queue.index());
        self.leave_ready(queue);
    }

    /// Gives a queue or level new settings. Returns whether they differ from the old ones.
    pub(crate) fn set_settings(&mut self, now_ms: u64, queue: QueueId, mut settings: QueueSettings) -> bool {
        let record = &mut self.slab[queue.index()];
        // A message in the queue may have its own time to live.
        settings.may_expire |= record.settings.may_expire;
        if settings == record.settings {
            return false;
        }
        if record.settings.message_ttl_ms == u64::MAX {
            record.times.ttl_since_ms = now_ms.max(1);
        }
        if settings.expires_ms != record.settings.expires_ms {
            record.times.unused_until_ms = u64::MAX;
        }
        if !record.times.peeked.is_wanted() {
            record.times.peeked = PeekedExpiry::NOTHING;
        }
        let had_dead_letters = record.dead_letters_logged();
        record.settings = settings;
        record.queue_consumers.set_single_active(settings.single_active);
        self.dead_lettering =
            self.dead_lettering - u32::from(had_dead_letters) + u32::from(record.dead_letters_logged());
        self.has_deadlines |= settings.may_expire;
        true
    }

    /// Returns whether any durable queue or level has a dead-letter exchange.
    pub(crate) const fn has_dead_lettering(&self) -> bool {
        self.dead_lettering > 0
    }

    /// Returns roughly the bytes of records that are unused but not returned to the operating system.
    pub const fn idle_bytes(&self) -> usize {
        self.slab.idle_bytes()
    }

    /// Returns unused memory to the operating system.
    pub fn trim(&mut self) {
        self.slab.trim();
        self.table.trim(self.slab.touched());
    }

    /// Removes a queue from the ready list. Returns whether it was there.
    pub fn leave_ready(&mut self, queue: QueueId) -> bool {
        let was_ready = core::mem::take(&mut self.slab[queue.index()].listed.is_ready);
        if was_ready {
            self.ready.remove(&mut self.slab, queue.index(), |queue| &mut queue.listed.ready_links);
        }
        was_ready
    }
}

impl Records {
    /// Appends the definition of a durable queue to the log, or its deletion with all its messages. The reply
    /// to the command waits for that entry.
    pub fn append_queue(
        &mut self,
        cx: &mut Context<'_>,
        vhosts: &impl VhostNames,
        index: usize,
        exists: bool,
    ) {
        let record = &self.slab[index];
        let incarnation = record.durable_index.incarnation();
        if incarnation == 0 {
            return;
        }
        let (key, value) = self.definition_of_queue(vhosts, index, exists);
        if !exists {
            cx.pending_writes.append_queue_deleted(incarnation);
        }
        let batch = cx.pending_writes.define(key, value);
        self.slab[index].durable_index.set_defined(batch);
        cx.await_batch(batch);
    }

    /// Returns the key of a durable queue's definition, and its value if it `exists`.
    pub(crate) fn definition_of_queue(
        &self,
        vhosts: &impl VhostNames,
        index: usize,
        exists: bool,
    ) -> (Box<[u8]>, Option<Box<[u8]>>) {
        let record = &self.slab[index];
        let no_counts = RequeueCounts::default();
        let requeues = record.requeues().unwrap_or(&no_counts);
        let definition = Definition::Queue(definition::Queue {
            vhost: vhosts.vhost_name(record.vhost),
            name: &record.name,
            incarnation: record.durable_index.incarnation(),
            auto_delete: record.declared.auto_delete,
            is_rebuilt: record.declared.is_rebuilt,
            priorities_from: record.priorities_from(),
            arguments: &requeues.join(&record.arguments),
        });
        (definition.key(), exists.then(|| definition.value()))
    }

    /// Sets the requeue count of a message, in a quorum queue.
    #[cold]
    pub fn note_requeue(
        &mut self,
        pending_writes: &mut PendingWrites,
        vhosts: &impl VhostNames,
        queue: QueueId,
        offset: u64,
        count: u16,
    ) {
        if let QueueKind::Quorum { requeues } = &mut self.slab[queue.index()].kind
            && requeues.get_or_insert_default().note(offset, count)
        {
            self.requeue_counts_due.push(queue);
        }
        self.write_requeue_counts(pending_writes, vhosts);
    }

    /// Writes the requeue counts, unless the last write is not durable yet.
    #[inline]
    pub fn write_requeue_counts(&mut self, pending_writes: &mut PendingWrites, vhosts: &impl VhostNames) {
        if self.requeue_counts_due.may_be_written(pending_writes.durable()) && !pending_writes.is_grouping() {
            self.write_requeue_counts_now(pending_writes, vhosts);
        }
    }

    /// Writes the requeue counts, whether the last write is durable or not.
    #[cold]
    pub(crate) fn write_requeue_counts_now(
        &mut self,
        pending_writes: &mut PendingWrites,
        vhosts: &impl VhostNames,
    ) {
        if pending_writes.mode() == Mode::On && (!pending_writes.can_define() || pending_writes.is_crowded())
        {
            return;
        }
        for queue in self.requeue_counts_due.take() {
            // The queue may have been deleted since, and another queue may have its index.
            let Some(record) = self.slab.get_mut(queue.index()) else { continue };
            let is_due = record.requeues_mut().is_some_and(RequeueCounts::take_due);
            if is_due
                && pending_writes.mode() == Mode::On
                && !record.is_deleted()
                && record.durable_index.is_logged()
            {
                let (key, value) = self.definition_of_queue(vhosts, queue.index(), true);
                self.requeue_counts_due.note_written(pending_writes.define(key, value));
            }
        }
    }

    /// Uses up `count` offsets of every durable queue, as if `count` messages had been published to it and
    /// settled before they were written.
    ///
    /// The simulator uses it to reach large offsets quickly.
    #[cfg(debug_assertions)]
    pub fn pass_offsets(&mut self, pending_writes: &mut PendingWrites, count: u64) {
        for index in 0..self.slab.places() {
            let Some(queue) = self.slab.get_mut(index).filter(|queue| !queue.is_deleted()) else { continue };
            if queue.durable_index.is_logged() {
                let start = queue.durable_index.pass_offsets(count);
                let queue = queue.durable_index.incarnation();
                pending_writes.settle_stored(leveret_storage::Settled { queue, start, end: start + count });
            }
        }
    }

    /// At a clean stop, when everything else is written: resets watermarks that are ahead of the deliveries,
    /// and writes the requeue counts.
    ///
    /// Without the reset, messages that were not sent would be marked as redelivered after the next start.
    /// Returns whether pending writes remain.
    pub fn reset_watermarks(&mut self, pending_writes: &mut PendingWrites, vhosts: &impl VhostNames) -> bool {
        if pending_writes.mode() != Mode::On {
            return false;
        }
        for (_, queue) in self.slab.iter() {
            let reset = queue
                .durable_index
                .watermark_reset()
                .filter(|_| !queue.is_deleted() && !pending_writes.is_crowded());
            if let Some((taken_below, watermark)) = reset {
                pending_writes.reset_watermark(queue.durable_index.incarnation(), taken_below, watermark);
            }
        }
        self.write_requeue_counts_now(pending_writes, vhosts);
        !pending_writes.is_empty()
    }

    /// Sets, at start, the counts of a queue's messages in the log.
    pub fn restore_contents(&mut self, queue: QueueId, contents: &Contents) {
        let record = &mut self.slab[queue.index()];
        record.durable_index.restore(contents);
        if record.requeues_mut().is_some_and(|requeues| requeues.forget_from(contents.next_offset)) {
            self.requeue_counts_due.push(queue);
        }
        // An estimate: the bytes in the log include names and properties, for which 64 bytes a message are
        // subtracted.
        record.backlog.set_middle_absent_bytes(contents.bytes.saturating_sub(contents.count * 64));
    }
}

impl RoutedQueues for Records {
    fn find(&self, vhost: VhostId, name: &str) -> Option<QueueId> {
        self.find_queue(vhost, name)
    }

    fn stored_name(&self, queue: QueueId) -> (&str, u64) {
        let record = &self.slab[queue.index()];
        (&record.name, record.durable_index.incarnation())
    }

    #[inline]
    fn mark(&mut self, queue: QueueId, routing: u64) -> bool {
        let record = &mut self.slab[queue.index()];
        let is_chosen = record.last_routing != routing && !record.is_deleted();
        if is_chosen {
            record.last_routing = routing;
        }
        is_chosen
    }

    fn bindings_mut(&mut self, queue: QueueId) -> &mut List {
        &mut self.slab[queue.index()].bindings
    }

    fn free_count(&self) -> usize {
        self.slab.free_count()
    }
}
