//! Stored objects that could not be restored at start: definitions that were left out, and messages without a
//! queue (orphans).
//!
//! Neither definitions that cannot be restored nor messages whose queue is missing may be lost.
//!
//! Definitions left out: after a start with lower limits there is no capacity for some exchanges and queues. After
//! a downgrade of Leveret, the types of others are unknown. Their definitions stay in the storage with their
//! bindings, and are restored at a later start if possible.
//!
//! Until then no client can declare another object of the same name, because the log has one definition per name.
//! A second queue would replace the definition of the first, whose messages would then take space forever. To free
//! the name, a client deletes the first object, or an operator raises the limit and restarts the broker.
//!
//! Orphans: each definition is stored twice, and a flash card may lose both copies. The messages of the queue
//! are still stored, with the queue's incarnation. If the name of the queue is recorded elsewhere in the log,
//! the queue is rebuilt at start as a durable queue without arguments. So its messages can be consumed. The next
//! declaration by a client sets the arguments.
//!
//! If the name is unknown or cannot be used, the messages are orphans. They remain orphans until an operator gives
//! them a queue or deletes them, or a client declares a queue of their name.
//!
//! # Invariants
//! - A definition that was left out keeps its name in the storage until it is deleted or restored.
//! - Definitions left out and orphans are added only at start. An orphan is listed again if its adoption fails.
//!   Damage is also added when messages cannot be read back.
//! - At most [`ORPHANS_MAX`] orphans are listed. Further orphans are only counted.
//! - At most `queues_max + exchanges_max` definitions left out are listed. If there are more, every name counts
//!   as possibly left out.
//! - If the list has no space for the priority levels of a queue left out, deleting the queue does not delete
//!   their messages. These are orphans at the next start.

use core::hash::BuildHasher;

use foldhash::quality::FixedState;
use leveret_amqp::reply_text::QueueText;
use leveret_core::batch::Batch;
use leveret_core::command::{QueueId, VhostId};
use leveret_core::definition::{DAMAGE_KEY, Definition, DestinationName};
use leveret_core::error::{Fault, ReplyCode};
use leveret_queues::Contents;
use leveret_storage::faults::check_deletable;
use leveret_storage::{Mode, PendingWrites, ReportedDamage};

use crate::Context;
use crate::access::Access;
use crate::operator_fault::{OperatorFault, check_changeable};

/// Definitions that a start left out, and messages without a queue.
#[derive(Debug)]
pub struct Recovery {
    left_out: LeftOut,
    orphans: Orphans,
    /// Number of stored definitions, and queues with messages, that exceeded the limits at start.
    beyond_limits: u32,
    damage: ReportedDamage,
}

impl Recovery {
    /// Creates an empty recovery. It records at most this many definitions that were left out.
    pub(crate) fn new(left_out_max: usize, seed: u64) -> Self {
        Self {
            left_out: LeftOut::new(left_out_max, seed),
            orphans: Orphans::default(),
            beyond_limits: 0,
            damage: ReportedDamage::default(),
        }
    }

    /// Counts a stored object for which the limits have no capacity.
    pub const fn note_beyond_limits(&mut self) {
        self.beyond_limits += 1;
    }

    /// Returns the number of stored definitions, and queues with messages, that exceeded the limits at start.
    pub const fn beyond_limits(&self) -> u32 {
        self.beyond_limits
    }

    // ---- damage

    /// Returns the damage that was found at this start, at earlier starts and since.
    pub const fn damage(&self) -> &ReportedDamage {
        &self.damage
    }

    /// Sets the damage found at start.
    pub fn set_damage(&mut self, damage: ReportedDamage) {
        self.damage = damage;
    }

    /// Adds a line about messages that could not be read back to the reported damage.
    pub(crate) fn note_lost_messages(&mut self, pending_writes: &mut PendingWrites, line: &str) {
        if self.damage.add(line) && pending_writes.mode() == Mode::On {
            pending_writes.define(DAMAGE_KEY.into(), self.damage.value().map(Vec::into_boxed_slice));
        }
    }

    /// Ends the alarm about damage, for an operator who has seen the report. Returns the batch of the change.
    ///
    /// # Errors
    /// The storage cannot be written, or has no space.
    pub fn acknowledge_damage(&mut self, pending_writes: &mut PendingWrites) -> Result<Batch, OperatorFault> {
        check_changeable(pending_writes)?;
        let mut batch = Batch::NONE;
        if self.damage.is_alarm() {
            self.damage.acknowledge();
            batch = pending_writes.define(DAMAGE_KEY.into(), self.damage.value().map(Vec::into_boxed_slice));
        }
        Ok(batch)
    }

    // ---- messages without a queue

    /// Returns the orphans, in no order.
    pub fn orphans(&self) -> &[Orphan] {
        &self.orphans.entries
    }

    /// Returns whether there are orphans, listed or not.
    pub fn has_orphans(&self) -> bool {
        !self.orphans.entries.is_empty() || self.orphans.unlisted > 0
    }

    /// Returns the number of orphans that are not listed because there is no capacity.
    pub const fn orphans_unlisted(&self) -> u64 {
        self.orphans.unlisted
    }

    /// Returns whether there are rebuilt queues that have not been declared since.
    pub const fn has_rebuilt(&self) -> bool {
        self.orphans.rebuilt > 0
    }

    /// Counts a rebuilt queue that has not been declared since.
    pub(crate) const fn note_rebuilt(&mut self) {
        self.orphans.rebuilt += 1;
    }

    /// Subtracts a rebuilt queue that was declared or deleted.
    pub(crate) fn note_rebuilt_gone(&mut self) {
        assert!(self.orphans.rebuilt > 0, "note_rebuilt counted every rebuilt queue");
        self.orphans.rebuilt -= 1;
    }

    /// Adds an orphan: messages without a queue.
    pub(crate) fn add_orphan(&mut self, orphan: Orphan) {
        self.orphans.add(orphan);
    }

    /// Returns the index of the orphan with this incarnation.
    ///
    /// # Errors
    /// There is no such orphan.
    pub(crate) fn find_orphan(&self, incarnation: u64) -> Result<usize, Fault> {
        let found = self.orphans.entries.iter().position(|orphan| orphan.incarnation == incarnation);
        found.ok_or_else(|| {
            Fault::new(ReplyCode::NotFound, format_args!("no orphan {incarnation}: see list_orphans"))
        })
    }

    /// Returns the index of the orphan whose queue had this name.
    pub(crate) fn find_orphan_by_name(&self, vhost: &str, queue: &str) -> Option<usize> {
        self.orphans.entries.iter().position(|orphan| orphan.is_of(vhost, queue))
    }

    /// Returns the index of an orphan whose queue was in this virtual host.
    pub(crate) fn find_orphan_in_vhost(&self, vhost: &str) -> Option<usize> {
        let is_in = |orphan: &Orphan| orphan.name.as_ref().is_some_and(|(host, _)| **host == *vhost);
        self.orphans.entries.iter().position(is_in)
    }

    /// Removes and returns the orphan at this index.
    pub(crate) fn take_orphan(&mut self, at: usize) -> Orphan {
        self.orphans.take(at)
    }

    /// Notes that a queue has adopted an orphan, whose messages are not in it yet.
    pub(crate) fn note_adoption(&mut self, orphan: &Orphan, queue: QueueId) {
        let (incarnation, count) = (orphan.incarnation, orphan.contents.count);
        self.orphans.adopted.push(Adoption { incarnation, queue, count, is_purged: false });
    }

    /// Returns the number of messages that a queue has adopted and that are not in it yet.
    pub(crate) fn adopted_count(&self, queue: QueueId) -> u32 {
        self.orphans.adopted_count(queue)
    }

    /// Returns the incarnation and id of the next queue that waits for adopted messages. The caller adds the
    /// messages, then calls [`Broker::end_adoption`](crate::Broker::end_adoption).
    pub fn next_adopted(&self) -> Option<(u64, QueueId)> {
        self.orphans.adopted.last().map(|adoption| (adoption.incarnation, adoption.queue))
    }

    /// Notes that a queue is purged: adopted messages are dropped as soon as they are in it. Returns their
    /// number.
    pub(crate) fn purge_adopted(&mut self, queue: QueueId) -> u32 {
        let count = self.orphans.adopted_count(queue);
        let adopted = self.orphans.adopted.iter_mut();
        adopted.filter(|adoption| adoption.queue == queue).for_each(|adoption| adoption.is_purged = true);
        count
    }

    /// Notes that the adopted messages of a queue are in it now. Returns whether the queue was purged
    /// meanwhile.
    pub(crate) fn end_adoption(&mut self, queue: QueueId) -> bool {
        let place = self.orphans.adopted.iter().position(|adoption| adoption.queue == queue);
        place.is_some_and(|place| self.orphans.adopted.swap_remove(place).is_purged)
    }

    // ---- definitions left out

    /// Notes a definition that stays in the log and is not restored in this run of the process.
    pub fn note_left_out(&mut self, definition: &Definition<'_>) {
        match *definition {
            Definition::Exchange(it) => {
                self.left_out.add(it.vhost, DestinationName::Exchange(it.name), it.version);
            }
            Definition::Queue(it) => {
                self.left_out.add(it.vhost, DestinationName::Queue(it.name), it.incarnation);
            }
            _ => {}
        }
    }

    /// Notes the priority levels of a queue that was left out. `levels` are the incarnations of those levels
    /// that the log has.
    pub fn note_left_out_levels(&mut self, incarnation: u64, levels: &[u64]) {
        self.left_out.add_levels(incarnation, levels);
    }

    /// Returns whether an object with this name and version may have been left out.
    pub(crate) fn may_have(&self, vhost: &str, name: DestinationName<'_>, version: u64) -> bool {
        self.left_out.may_have(vhost, name, version)
    }

    /// Checks whether an exchange or queue of this name may be declared.
    ///
    /// # Errors
    /// An object of this name was left out at start. Or the new object is durable, and the list of objects left
    /// out is incomplete.
    pub(crate) fn check_not_left_out(
        &self,
        access: &Access,
        vhost: VhostId,
        name: DestinationName<'_>,
        durable: bool,
    ) -> Result<(), Fault> {
        let is_left_out = self.left_out.version_of(access.vhost_name(vhost), name).is_some();
        if is_left_out || durable && self.left_out.has_more {
            Err(still_left_out(access, vhost, name))
        } else {
            Ok(())
        }
    }

    /// Deletes an exchange or queue that the start left out, a queue with its messages. Returns `false` when
    /// there is none.
    ///
    /// # Errors
    /// The storage cannot be written; or the deletion has a condition (if-unused, if-empty) that cannot be
    /// checked.
    pub(crate) fn delete_left_out(
        &mut self,
        cx: &mut Context<'_>,
        access: &Access,
        vhost: VhostId,
        name: DestinationName<'_>,
        is_conditional: bool,
    ) -> Result<bool, Fault> {
        let vhost_name = access.vhost_name(vhost);
        let Some(version) = self.left_out.version_of(vhost_name, name) else { return Ok(false) };
        if is_conditional {
            return Err(still_left_out(access, vhost, name));
        }
        check_deletable(cx.pending_writes, true)?;
        let key = name.key(vhost_name);
        self.left_out.remove(vhost_name, name);
        for level in self.left_out.take_levels(version) {
            cx.pending_writes.append_queue_deleted(level);
        }
        if let DestinationName::Queue(_) = name {
            cx.pending_writes.append_queue_deleted(version);
        }
        let batch = cx.pending_writes.define(key, None);
        cx.await_batch(batch);
        Ok(true)
    }
}

fn still_left_out(access: &Access, vhost: VhostId, name: DestinationName<'_>) -> Fault {
    let remedy = "raise it and restart the broker, or delete the object";
    match name {
        DestinationName::Exchange(name) => Fault::new(
            ReplyCode::ResourceError,
            format_args!(
                "{} is in the store, but its type is unknown or there was no memory for it at the start: {remedy}",
                access.exchange_text(vhost, name)
            ),
        ),
        DestinationName::Queue(name) => Fault::new(
            ReplyCode::ResourceError,
            format_args!(
                "{} is in the store with its messages, but there was no memory for it at the start: {remedy}",
                QueueText { name, vhost: access.vhost_name(vhost) }
            ),
        ),
    }
}

/// Maximum number of orphans that are listed. Further ones stay in the storage until a later start lists them.
const ORPHANS_MAX: usize = 256;
/// Maximum total bytes of the orphans' names. Further orphans are listed without a name.
const NAMES_BYTES_MAX: usize = 16 << 10;
/// Bytes of memory that orphans take, for the memory table.
pub(crate) const ORPHANS_BYTES: usize = ORPHANS_MAX * (size_of::<Orphan>() + 32) + NAMES_BYTES_MAX;

/// Messages whose queue has no definition.
#[derive(Debug)]
pub struct Orphan {
    /// Number that identifies the queue in the storage.
    pub incarnation: u64,
    /// The messages that the storage has of the queue.
    pub contents: Contents,
    /// Virtual host and name of the queue, if they are recorded.
    pub name: Option<(Box<str>, Box<str>)>,
}

impl Orphan {
    fn is_of(&self, vhost: &str, queue: &str) -> bool {
        self.name.as_ref().is_some_and(|(host, name)| (&**host, &**name) == (vhost, queue))
    }
}

/// A queue that has adopted an orphan whose messages are not in it yet.
#[derive(Clone, Copy, Debug)]
struct Adoption {
    /// Number that identifies the queue in the storage.
    incarnation: u64,
    queue: QueueId,
    /// Number of messages of the orphan.
    count: u64,
    /// The queue was purged meanwhile: the messages are dropped as soon as they are in it.
    is_purged: bool,
}

/// All orphans, and queues created from orphans.
#[derive(Debug, Default)]
struct Orphans {
    entries: Vec<Orphan>,
    names_bytes: usize,
    /// Number of orphans that are not listed.
    unlisted: u64,
    /// Queues that adopted an orphan whose messages are not in them yet.
    adopted: Vec<Adoption>,
    /// Number of rebuilt queues that have not been declared since.
    rebuilt: u32,
}

impl Orphans {
    fn add(&mut self, mut orphan: Orphan) {
        if self.entries.len() == ORPHANS_MAX {
            self.unlisted += 1;
            return;
        }
        let bytes = orphan.name.as_ref().map_or(0, |(vhost, name)| vhost.len() + name.len());
        if self.names_bytes + bytes > NAMES_BYTES_MAX {
            orphan.name = None;
        } else {
            self.names_bytes += bytes;
        }
        self.entries.push(orphan);
    }

    fn take(&mut self, at: usize) -> Orphan {
        let orphan = self.entries.remove(at);
        self.names_bytes -= orphan.name.as_ref().map_or(0, |(vhost, name)| vhost.len() + name.len());
        orphan
    }

    /// Returns the number of messages that a queue has adopted and that are not in it yet, without purged
    /// ones.
    fn adopted_count(&self, queue: QueueId) -> u32 {
        let by = self.adopted.iter().find(|adoption| adoption.queue == queue && !adoption.is_purged);
        by.map_or(0, |adoption| u32::try_from(adoption.count).unwrap_or(u32::MAX))
    }
}

/// Exchanges and queues that were left out, by kind and name.
#[derive(Debug)]
pub(crate) struct LeftOut {
    /// Hashes of virtual host, kind and name, sorted, each with the version or incarnation.
    entries: Vec<(u64, u64)>,
    /// Pairs: incarnation of a queue that was left out, and incarnation of one of its levels in the log.
    levels: Vec<(u64, u64)>,
    /// Maximum number of entries and levels together.
    entries_max: usize,
    /// More were left out than are recorded here.
    has_more: bool,
    hasher: FixedState,
}

impl LeftOut {
    /// Bytes of one entry.
    pub(crate) const ENTRY_BYTES: usize = size_of::<(u64, u64)>();

    /// Creates an empty list; memory is allocated when there are entries.
    const fn new(entries_max: usize, seed: u64) -> Self {
        let hasher = FixedState::with_seed(seed);
        Self { entries: Vec::new(), levels: Vec::new(), entries_max, has_more: false, hasher }
    }

    /// Adds an exchange or queue that was not declared again.
    fn add(&mut self, vhost: &str, name: DestinationName<'_>, version: u64) {
        if self.entries.len() == self.entries_max {
            self.has_more = true;
            return;
        }
        self.levels.truncate(self.entries_max - self.entries.len() - 1);
        let hash = self.hasher.hash_one((vhost, name));
        let at = self.entries.partition_point(|(other, _)| *other < hash);
        self.entries.reserve_exact(1);
        self.entries.insert(at, (hash, version));
    }

    /// Adds the levels of the queue with this incarnation.
    fn add_levels(&mut self, incarnation: u64, levels: &[u64]) {
        let room = self.entries_max - self.entries.len() - self.levels.len();
        let levels = &levels[..levels.len().min(room)];
        self.levels.reserve_exact(levels.len());
        self.levels.extend(levels.iter().map(|level| (incarnation, *level)));
    }

    /// Takes out the levels of the queue with this incarnation, which is deleted.
    fn take_levels(&mut self, incarnation: u64) -> impl Iterator<Item = u64> {
        self.levels.extract_if(.., move |(queue, _)| *queue == incarnation).map(|(_, level)| level)
    }

    /// Returns whether an object with this name and version may have been left out.
    fn may_have(&self, vhost: &str, name: DestinationName<'_>, version: u64) -> bool {
        self.has_more || self.find(vhost, name).is_some_and(|at| self.entries[at].1 == version)
    }

    /// Returns the version of the exchange or queue of this name that was left out.
    fn version_of(&self, vhost: &str, name: DestinationName<'_>) -> Option<u64> {
        self.find(vhost, name).map(|at| self.entries[at].1)
    }

    fn remove(&mut self, vhost: &str, name: DestinationName<'_>) {
        if let Some(at) = self.find(vhost, name) {
            self.entries.remove(at);
        }
    }

    fn find(&self, vhost: &str, name: DestinationName<'_>) -> Option<usize> {
        let hash = self.hasher.hash_one((vhost, name));
        self.entries.binary_search_by_key(&hash, |(other, _)| *other).ok()
    }
}

#[cfg(test)]
mod left_out_tests {
    use super::*;

    #[test]
    fn objects_beyond_the_list_may_have_any_name() {
        let mut left_out = LeftOut::new(2, 1);
        for (name, version) in [("a", 1), ("b", 2)] {
            left_out.add("/", DestinationName::Queue(name), version);
        }
        assert!(left_out.may_have("/", DestinationName::Queue("a"), 1));
        assert!(!left_out.may_have("/", DestinationName::Queue("a"), 2));
        assert!(!left_out.may_have("/", DestinationName::Exchange("a"), 1));
        assert!(!left_out.may_have("v", DestinationName::Queue("a"), 1));
        left_out.add("/", DestinationName::Queue("c"), 3);
        assert!(left_out.may_have("v", DestinationName::Queue("z"), 9));
    }

    #[test]
    fn levels_leave_places_for_their_queues() {
        let mut left_out = LeftOut::new(4, 1);
        left_out.add("/", DestinationName::Queue("a"), 1);
        left_out.add_levels(1, &[11, 12]);
        left_out.add("/", DestinationName::Queue("b"), 2);
        left_out.add_levels(2, &[21]);
        assert_eq!(left_out.take_levels(2).count(), 0, "there is no place");
        left_out.add("/", DestinationName::Queue("c"), 3);
        assert_eq!(left_out.take_levels(1).collect::<Vec<_>>(), [11], "a queue goes before a level");
        assert_eq!(left_out.take_levels(1).count(), 0);
        left_out.add_levels(3, &[31]);
        left_out.add("/", DestinationName::Queue("d"), 4);
        assert_eq!(left_out.take_levels(3).count(), 0);
        assert!(!left_out.has_more);
    }
}

#[cfg(test)]
mod tests {
    // Tests of definitions that were left out, the names that they block, and messages without a queue.

    use super::*;
    use crate::access::FIRST_VHOST;
    use crate::{Access, Context};
    use leveret_core::command::{QueueId, VhostId};
    use leveret_core::definition::{self, Definition, DestinationName};
    use leveret_core::error::Fault;
    use leveret_core::limits::Limits;
    use leveret_core::mem::{Memory, MessageLimits, Messages};
    use leveret_core::work::Work;
    use leveret_queues::Contents;
    use leveret_storage::{LogEntry, PendingWrites};

    /// What a start found, and the objects that it borrows.
    struct OrphansFixture {
        recovery: Recovery,
        access: Access,
        pending_writes: PendingWrites,
        messages: Messages,
        work: Work,
        vhost: VhostId,
    }

    const QUEUE: DestinationName<'_> = DestinationName::Queue("q");
    const EXCHANGE: DestinationName<'_> = DestinationName::Exchange("q");

    impl OrphansFixture {
        /// Records at most this many definitions that were left out.
        fn new(left_out_max: usize) -> Self {
            let limits = Limits::default();
            let mut access =
                Access::new(&limits, &Memory::unlimited(), &mut |bytes: &mut [u8]| bytes.fill(7), 1);
            let vhost = access.add_vhost(FIRST_VHOST).unwrap();
            let mut pending_writes = PendingWrites::new(64);
            pending_writes.start(1, true, u64::MAX);
            let messages = Messages::new(MessageLimits {
                messages_max: 16,
                body_bytes_max: 1 << 16,
                assembly_bytes_max: 1 << 16,
            });
            let (recovery, work) = (Recovery::new(left_out_max, 1), Work::default());
            Self { recovery, access, pending_writes, messages, work, vhost }
        }

        fn leave_queue_out(&mut self, name: &str, incarnation: u64) {
            let (vhost, auto_delete, is_rebuilt, priorities_from, arguments) =
                ("/", false, false, 0, &[][..]);
            self.recovery.note_left_out(&Definition::Queue(definition::Queue {
                vhost,
                name,
                incarnation,
                auto_delete,
                is_rebuilt,
                priorities_from,
                arguments,
            }));
        }

        fn leave_exchange_out(&mut self, name: &str, version: u64) {
            let (vhost, kind, auto_delete, internal, arguments) = ("/", "odd", false, false, &[][..]);
            self.recovery.note_left_out(&Definition::Exchange(definition::Exchange {
                vhost,
                name,
                version,
                kind,
                auto_delete,
                internal,
                arguments,
            }));
        }

        fn check(&self, name: DestinationName<'_>, durable: bool) -> Result<(), Fault> {
            self.recovery.check_not_left_out(&self.access, self.vhost, name, durable)
        }

        fn delete(&mut self, name: DestinationName<'_>, is_conditional: bool) -> Result<bool, Fault> {
            let mut cx = Context::new(&mut self.pending_writes, &mut self.messages, &mut self.work);
            self.recovery.delete_left_out(&mut cx, &self.access, self.vhost, name, is_conditional)
        }

        /// Returns what was written since the last call: queues of the log that are deleted, and definitions that
        /// are.
        fn written(&mut self) -> (Vec<u64>, Vec<Box<[u8]>>) {
            let (mut queues, mut keys) = (Vec::new(), Vec::new());
            while let Some(fact) = self.pending_writes.next_entry() {
                match fact {
                    LogEntry::Gone { queue } => queues.push(*queue),
                    LogEntry::Defined { key, value: None, .. } => keys.push(key.clone()),
                    other => panic!("nothing is deleted by {other:?}"),
                }
                self.pending_writes.pop_entry();
            }
            queues.sort_unstable();
            (queues, keys)
        }
    }

    fn orphan(incarnation: u64, name: Option<(&str, &str)>) -> Orphan {
        let name = name.map(|(vhost, queue)| (vhost.into(), queue.into()));
        Orphan { incarnation, contents: Contents { count: incarnation * 10, ..Contents::default() }, name }
    }

    #[test]
    fn the_name_of_a_left_out_object_is_blocked_until_it_is_deleted() {
        let mut world = OrphansFixture::new(8);
        world.leave_queue_out("q", 7);
        for durable in [true, false] {
            let text = world.check(QUEUE, durable).unwrap_err().text;
            assert!(text.contains("queue 'q'") && text.contains("no memory"), "{text}");
        }
        world.check(EXCHANGE, true).unwrap();
        world.check(DestinationName::Queue("other"), true).unwrap();
        assert!(world.delete(QUEUE, true).is_err(), "of its condition nothing is known");
        assert!(world.check(QUEUE, true).is_err());
        assert_eq!(world.delete(QUEUE, false).ok(), Some(true));
        world.check(QUEUE, true).unwrap();
        assert_eq!(world.delete(QUEUE, false).ok(), Some(false), "there is none");
    }

    #[test]
    fn a_deletion_removes_messages_and_levels_from_the_storage() {
        let mut world = OrphansFixture::new(8);
        world.leave_queue_out("q", 7);
        world.recovery.note_left_out_levels(7, &[71, 72]);
        world.leave_queue_out("other", 8);
        world.recovery.note_left_out_levels(8, &[81]);
        world.leave_exchange_out("q", 9);
        world.delete(QUEUE, false).unwrap();
        assert_eq!(world.written(), (vec![7, 71, 72], vec![QUEUE.key("/")]));
        assert!(world.check(EXCHANGE, true).unwrap_err().text.contains("no memory"));
        world.delete(EXCHANGE, false).unwrap();
        assert_eq!(world.written(), (vec![], vec![EXCHANGE.key("/")]), "an exchange has no messages");
    }

    #[test]
    fn nothing_is_deleted_from_unwritable_storage() {
        let mut world = OrphansFixture::new(8);
        world.leave_queue_out("q", 7);
        world.pending_writes.start(1, false, u64::MAX);
        assert!(world.delete(QUEUE, false).is_err());
        assert!(world.check(QUEUE, false).is_err(), "it is still there");
    }

    #[test]
    fn left_out_objects_are_known_by_name_and_version() {
        let mut world = OrphansFixture::new(8);
        world.leave_exchange_out("q", 9);
        assert!(world.recovery.may_have("/", EXCHANGE, 9));
        assert!(!world.recovery.may_have("/", EXCHANGE, 8), "that one was deleted");
        assert!(!world.recovery.may_have("/", QUEUE, 9) && !world.recovery.may_have("other", EXCHANGE, 9));
    }

    #[test]
    fn when_the_list_overflows_no_durable_object_may_be_declared() {
        let mut world = OrphansFixture::new(1);
        world.leave_queue_out("known", 7);
        world.check(QUEUE, true).unwrap();
        world.leave_queue_out("q", 8);
        assert!(world.check(QUEUE, true).is_err());
        assert!(world.check(DestinationName::Queue("new"), true).is_err(), "it may be one of those");
        world.check(DestinationName::Queue("new"), false).unwrap();
        assert!(world.recovery.may_have("/", QUEUE, 99));
    }

    #[test]
    fn orphans_are_found_by_name_and_incarnation() {
        let mut world = OrphansFixture::new(8);
        assert!(!world.recovery.has_orphans());
        for orphan in [orphan(1, None), orphan(2, Some(("/", "q"))), orphan(3, Some(("tenant", "q")))] {
            world.recovery.add_orphan(orphan);
        }
        let recovery = &mut world.recovery;
        let known = |recovery: &Recovery, at: Option<usize>| at.map(|at| recovery.orphans()[at].incarnation);
        assert_eq!(known(recovery, recovery.find_orphan_by_name("/", "q")), Some(2));
        assert_eq!(known(recovery, recovery.find_orphan_by_name("tenant", "q")), Some(3));
        assert_eq!(known(recovery, recovery.find_orphan_in_vhost("tenant")), Some(3));
        assert_eq!(recovery.find_orphan_by_name("/", "other"), None);
        assert_eq!(known(recovery, recovery.find_orphan(1).ok()), Some(1));
        let at = recovery.find_orphan(2).unwrap();
        assert_eq!(recovery.take_orphan(at).contents.count, 20);
        assert_eq!(recovery.find_orphan_by_name("/", "q"), None);
        assert!(recovery.find_orphan(2).unwrap_err().text.contains("no orphan 2"));
        assert_eq!(recovery.orphans().len(), 2);
    }

    #[test]
    fn orphans_beyond_the_list_are_counted() {
        let mut world = OrphansFixture::new(8);
        (0..300).for_each(|incarnation| world.recovery.add_orphan(orphan(incarnation, None)));
        assert_eq!((world.recovery.orphans().len(), world.recovery.orphans_unlisted()), (256, 44));
        while !world.recovery.orphans().is_empty() {
            world.recovery.take_orphan(0);
        }
        assert!(world.recovery.has_orphans(), "those that are not listed");
    }

    #[test]
    fn names_beyond_their_memory_are_dropped() {
        let mut world = OrphansFixture::new(8);
        let long = "n".repeat(8_000);
        for incarnation in 1..=3 {
            world.recovery.add_orphan(orphan(incarnation, Some(("/", &long))));
        }
        let named =
            |recovery: &Recovery| recovery.orphans().iter().filter(|orphan| orphan.name.is_some()).count();
        assert_eq!((world.recovery.orphans().len(), named(&world.recovery)), (3, 2));
        let at = world.recovery.find_orphan(1).unwrap();
        world.recovery.take_orphan(at);
        world.recovery.add_orphan(orphan(4, Some(("/", &long))));
        assert_eq!(named(&world.recovery), 2);
    }

    #[test]
    fn adopted_messages_count_for_their_queue_until_they_are_in_it() {
        let mut world = OrphansFixture::new(8);
        let [one, two] = [1, 2].map(QueueId::from_index);
        world.recovery.note_adoption(&orphan(5, None), one);
        world.recovery.note_adoption(&orphan(6, None), two);
        let counts = |recovery: &Recovery| [one, two].map(|queue| recovery.adopted_count(queue));
        assert_eq!(counts(&world.recovery), [50, 60]);
        assert_eq!(world.recovery.next_adopted(), Some((6, two)));
        assert!(!world.recovery.end_adoption(two));
        assert_eq!(counts(&world.recovery), [50, 0]);
        assert_eq!(world.recovery.next_adopted(), Some((5, one)));
        assert_eq!((world.recovery.purge_adopted(one), world.recovery.purge_adopted(one)), (50, 0));
        assert_eq!(counts(&world.recovery), [0, 0]);
        assert!(world.recovery.end_adoption(one), "it was purged meanwhile");
        assert_eq!(world.recovery.next_adopted(), None);
    }

    #[test]
    fn rebuilt_queues_are_reported_until_declared_or_deleted() {
        let mut world = OrphansFixture::new(8);
        world.recovery.note_rebuilt();
        world.recovery.note_rebuilt();
        world.recovery.note_rebuilt_gone();
        assert!(world.recovery.has_rebuilt());
        world.recovery.note_rebuilt_gone();
        assert!(!world.recovery.has_rebuilt());
    }
}
