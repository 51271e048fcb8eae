//! Recovery: what a start found that it could not put back as it was.
//!
//! Why it exists: a start under lower limits, or after damage, leaves definitions without room and messages
//! without a definition; neither is to be lost, or taken for something else.
//!
//! | file | what |
//! |---|---|
//! | `left_out` | exchanges and queues that the store has and the start did not declare again |
//! | `orphans` | messages of whose queue no definition is left |
//! | `state` | both, and who may declare, adopt or delete them |
//!
//! Always true: an exchange or queue that was left out keeps its name in the store until it is deleted or
//! restored.

#[cfg(test)]
mod tests;

use core::hash::BuildHasher;

use foldhash::quality::FixedState;
use leveret_core::command::{QueueId, VhostId};
use leveret_core::error::{Fault, ReplyCode};
use leveret_core::journal::definition::DAMAGE_KEY;
use leveret_core::journal::{Batch, Definition, DestinationName, Journal, Mode, ReportedDamage};

use crate::Context;
use crate::access::{Access, OperatorFault};
use crate::recovery::Contents;
use crate::reply_text::QueueInWords;
use crate::reply_text::{check_changeable, check_deletable};
use crate::topology::exchange_in_words;

// Definitions that a start left out, and messages without a queue.
//
// Always true: nothing is added here but at a start, except for queues whose messages could not be read back.

/// Definitions that a start left out, and messages without a queue.
#[derive(Debug)]
pub struct Recovery {
    left_out: LeftOut,
    orphans: Orphans,
    /// Definitions of the store, and queues with messages, for which the limits had no room at the start.
    beyond_limits: u32,
    damage: ReportedDamage,
}

impl Recovery {
    /// An empty recovery; at most this many definitions that were left out are known.
    pub(crate) fn new(left_out_max: usize, seed: u64) -> Self {
        Self {
            left_out: LeftOut::new(left_out_max, seed),
            orphans: Orphans::default(),
            beyond_limits: 0,
            damage: ReportedDamage::default(),
        }
    }

    /// Counts something of the store for which the limits have no room.
    pub const fn note_beyond_limits(&mut self) {
        self.beyond_limits += 1;
    }

    /// Returns how many definitions of the store, and queues with messages, the limits had no room for at the start.
    pub const fn beyond_limits(&self) -> u32 {
        self.beyond_limits
    }

    // ---- what could not be read

    /// What the store could not read, at this start, at earlier ones and since.
    pub const fn damage(&self) -> &ReportedDamage {
        &self.damage
    }

    /// Sets what the start found.
    pub fn set_damage(&mut self, damage: ReportedDamage) {
        self.damage = damage;
    }

    /// Notes that messages could not be read when they were to be delivered.
    pub(crate) fn note_lost_messages(&mut self, journal: &mut Journal, line: &str) {
        if self.damage.add(line) && journal.mode() == Mode::On {
            journal.define(DAMAGE_KEY.into(), self.damage.value().map(Vec::into_boxed_slice));
        }
    }

    /// Ends the alarm about what could not be read, for an operator who has seen it.
    ///
    /// # Errors
    /// The store cannot be written, or has no room.
    pub fn acknowledge_damage(&mut self, journal: &mut Journal) -> Result<Batch, OperatorFault> {
        check_changeable(journal)?;
        let mut batch = Batch::NONE;
        if self.damage.is_alarm() {
            self.damage.acknowledge();
            batch = journal.define(DAMAGE_KEY.into(), self.damage.value().map(Vec::into_boxed_slice));
        }
        Ok(batch)
    }

    // ---- messages without a queue

    /// The orphans, in no order.
    pub fn orphans(&self) -> &[Orphan] {
        &self.orphans.entries
    }

    /// Whether there are orphans, listed or not.
    pub fn has_orphans(&self) -> bool {
        !self.orphans.entries.is_empty() || self.orphans.unlisted > 0
    }

    /// Orphans that are not listed, for there is no room to remember them.
    pub const fn orphans_unlisted(&self) -> u64 {
        self.orphans.unlisted
    }

    /// Whether there are rebuilt queues that nobody has declared since.
    pub const fn has_rebuilt(&self) -> bool {
        self.orphans.rebuilt > 0
    }

    /// Counts a rebuilt queue that nobody has declared since.
    pub(crate) const fn rebuilt_came(&mut self) {
        self.orphans.rebuilt += 1;
    }

    /// Counts out a rebuilt queue that was declared, or is gone.
    pub(crate) fn rebuilt_gone(&mut self) {
        assert!(self.orphans.rebuilt > 0, "a rebuilt queue that goes was counted when it came");
        self.orphans.rebuilt -= 1;
    }

    /// Adds an orphan: messages without a queue.
    pub(crate) fn add_orphan(&mut self, orphan: Orphan) {
        self.orphans.add(orphan);
    }

    /// The place of the orphan with this incarnation.
    ///
    /// # Errors
    /// There is no such orphan.
    pub(crate) fn find_orphan(&self, incarnation: u64) -> Result<usize, Fault> {
        let found = self.orphans.entries.iter().position(|orphan| orphan.incarnation == incarnation);
        found.ok_or_else(|| {
            Fault::new(ReplyCode::NotFound, format_args!("no orphan {incarnation}: see list_orphans"))
        })
    }

    /// The place of the orphan whose queue had this name.
    pub(crate) fn orphan_of(&self, vhost: &str, queue: &str) -> Option<usize> {
        self.orphans.entries.iter().position(|orphan| orphan.is_of(vhost, queue))
    }

    /// The place of an orphan whose queue was in this virtual host.
    pub(crate) fn orphan_in(&self, vhost: &str) -> Option<usize> {
        let is_in = |orphan: &Orphan| orphan.name.as_ref().is_some_and(|(host, _)| **host == *vhost);
        self.orphans.entries.iter().position(is_in)
    }

    /// Takes out the orphan in a place.
    pub(crate) fn take_orphan(&mut self, at: usize) -> Orphan {
        self.orphans.take(at)
    }

    /// Notes that a queue has adopted an orphan, whose messages do not stand in it yet.
    pub(crate) fn adopted(&mut self, orphan: &Orphan, queue: QueueId) {
        let (incarnation, count) = (orphan.incarnation, orphan.contents.count);
        self.orphans.adopted.push(Adoption { incarnation, queue, count, is_purged: false });
    }

    /// Messages that a queue has adopted and that do not stand in it yet.
    pub(crate) fn adopted_by(&self, queue: QueueId) -> u32 {
        self.orphans.adopted_by(queue)
    }

    /// The next queue whose adopted messages are to be put into it, with its incarnation; an end must follow.
    pub fn next_adopted(&self) -> Option<(u64, QueueId)> {
        self.orphans.adopted.last().map(|adoption| (adoption.incarnation, adoption.queue))
    }

    /// Notes that a queue is purged: messages that it has adopted go as soon as they stand in it. Says how many.
    pub(crate) fn purge_adopted(&mut self, queue: QueueId) -> u32 {
        let count = self.orphans.adopted_by(queue);
        let adopted = self.orphans.adopted.iter_mut();
        adopted.filter(|adoption| adoption.queue == queue).for_each(|adoption| adoption.is_purged = true);
        count
    }

    /// Notes that what a queue has adopted stands in it; says whether that was purged meanwhile.
    pub(crate) fn end_adoption(&mut self, queue: QueueId) -> bool {
        let place = self.orphans.adopted.iter().position(|adoption| adoption.queue == queue);
        place.is_some_and(|place| self.orphans.adopted.swap_remove(place).is_purged)
    }

    // ---- definitions left out

    /// Notes a definition that stays in the log and is not put back in this life of the broker.
    pub fn leave_out(&mut self, definition: &Definition<'_>) {
        match *definition {
            Definition::Exchange { vhost, name, version, .. } => {
                self.left_out.add(vhost, DestinationName::Exchange(name), version);
            }
            Definition::Queue { vhost, name, incarnation, .. } => {
                self.left_out.add(vhost, DestinationName::Queue(name), incarnation);
            }
            _ => {}
        }
    }

    /// Notes the levels that the log has of a queue that was left out.
    pub fn leave_out_levels(&mut self, incarnation: u64, levels: &[u64]) {
        self.left_out.add_levels(incarnation, levels);
    }

    /// Whether a thing of this name and version may only be missing because it was left out.
    pub(crate) fn may_have(&self, vhost: &str, name: DestinationName<'_>, version: u64) -> bool {
        self.left_out.may_have(vhost, name, version)
    }

    /// Whether an exchange or queue of this name may be declared: not while the store has one that the start
    /// left out.
    ///
    /// # Errors
    /// The store has one, or may have one, and the new one is durable, too.
    pub(crate) fn check_not_left_out(
        &self,
        access: &Access,
        vhost: VhostId,
        name: DestinationName<'_>,
        durable: bool,
    ) -> Result<(), Fault> {
        let is_left_out = self.left_out.version_of(access.vhost_name(vhost), name).is_some();
        if is_left_out || durable && self.left_out.has_more {
            Err(is_left_out_still(access, vhost, name))
        } else {
            Ok(())
        }
    }

    /// Deletes an exchange or queue that the start left out, a queue with its messages; `false` when there is
    /// no such thing.
    ///
    /// # Errors
    /// The store cannot be written; or the deletion has a condition (if-unused, if-empty) that cannot be
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
            return Err(is_left_out_still(access, vhost, name));
        }
        check_deletable(cx.journal, true)?;
        let key = key_of(vhost_name, name);
        self.left_out.remove(vhost_name, name);
        for level in self.left_out.take_levels(version) {
            cx.journal.queue_gone(level);
        }
        if let DestinationName::Queue(_) = name {
            cx.journal.queue_gone(version);
        }
        let batch = cx.journal.define(key, None);
        cx.await_batch(batch);
        Ok(true)
    }
}

/// The key of the definition of an exchange or a queue of this name in the log.
pub(crate) fn key_of(vhost: &str, name: DestinationName<'_>) -> Box<[u8]> {
    let (auto_delete, arguments) = (false, &[][..]);
    match name {
        DestinationName::Exchange(name) => {
            let (version, kind, internal) = (0, "", false);
            Definition::Exchange { vhost, name, version, kind, auto_delete, internal, arguments }.key()
        }
        DestinationName::Queue(name) => {
            let (incarnation, is_rebuilt, levels_from) = (0, false, 0);
            Definition::Queue { vhost, name, incarnation, auto_delete, is_rebuilt, levels_from, arguments }
                .key()
        }
    }
}

fn is_left_out_still(access: &Access, vhost: VhostId, name: DestinationName<'_>) -> Fault {
    let remedy = "raise that and start again, or delete it";
    match name {
        DestinationName::Exchange(name) => Fault::new(
            ReplyCode::ResourceError,
            format_args!(
                "{} is in the store, but the start did not know its type or exchanges_max had no room \
                 for it: {remedy}",
                exchange_in_words(access, vhost, name)
            ),
        ),
        DestinationName::Queue(name) => Fault::new(
            ReplyCode::ResourceError,
            format_args!(
                "{} is in the store with its messages, but queues_max had no room for it at the start: \
                 {remedy}",
                QueueInWords { name, vhost: access.vhost_name(vhost) }
            ),
        ),
    }
}

// Orphans: messages that the store has for a queue of which no definition is left.
//
// Why it exists: definitions lie twice, and a card may lose both. Messages are left then, with a number for
// their queue. Where something still tells the name of that queue, it is rebuilt at the start, as a plain
// durable one: better a queue without its arguments than messages that nobody can reach. The next
// declaration gives the queue its arguments. Messages of whose queue nobody knows a name, or one that cannot
// be had, are orphans, until an operator gives them a queue or deletes them, or somebody declares a queue of
// their name.
//
// Always true: orphans come with a start and never later, and only as many are listed as there is room for.

/// The most orphans listed; others wait in the store.
const ORPHANS_MAX: usize = 256;
/// The most bytes of orphans' names; further orphans are known by their number alone.
const NAMES_BYTES_MAX: usize = 16 << 10;
/// Bytes of memory that orphans take, for the memory table.
pub(crate) const ORPHANS_BYTES: usize = ORPHANS_MAX * (size_of::<Orphan>() + 32) + NAMES_BYTES_MAX;

/// Messages whose queue has no definition.
#[derive(Debug)]
pub struct Orphan {
    /// The number that the store knows the queue by.
    pub incarnation: u64,
    /// The messages that the store has of the queue.
    pub contents: Contents,
    /// The virtual host and name of the queue, if something tells them.
    pub name: Option<(Box<str>, Box<str>)>,
}

impl Orphan {
    fn is_of(&self, vhost: &str, queue: &str) -> bool {
        self.name.as_ref().is_some_and(|(host, name)| (&**host, &**name) == (vhost, queue))
    }
}

/// A queue that has adopted an orphan whose messages do not stand in it yet.
#[derive(Clone, Copy, Debug)]
struct Adoption {
    /// The number that the store knows the queue by.
    incarnation: u64,
    queue: QueueId,
    /// Messages of the orphan.
    count: u64,
    /// The queue was purged meanwhile: the messages are to go as soon as they stand in it.
    is_purged: bool,
}

/// All orphans, and queues made of orphans.
#[derive(Debug, Default)]
struct Orphans {
    entries: Vec<Orphan>,
    names_bytes: usize,
    /// Orphans that are not listed.
    unlisted: u64,
    /// Queues that adopted an orphan whose messages do not stand in them yet.
    adopted: Vec<Adoption>,
    /// Rebuilt queues that nobody has declared since.
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

    /// Messages that a queue has adopted and that do not stand in it yet, those of a purge left out.
    fn adopted_by(&self, queue: QueueId) -> u32 {
        let by = self.adopted.iter().find(|adoption| adoption.queue == queue && !adoption.is_purged);
        by.map_or(0, |adoption| u32::try_from(adoption.count).unwrap_or(u32::MAX))
    }
}

// Exchanges and queues that the store has and the start did not declare again.
//
// Why it exists: a start under lower limits has no room for some exchanges and queues, and an older version
// does not know the type of others. They stay in the store, and come back when they can: so their bindings
// must not be taken for what a deletion left behind. And nobody may declare another of the same name
// meanwhile: the log has one definition for a name, so the messages of the first would belong to nobody, and
// take room for ever. A client that is refused so may have the limit raised or the first deleted.
//
// Always true: nothing is added here but at a start; there are at most as many entries as limits allow
// queues and exchanges together, and when more is left out, anything may be. Levels for which there is no
// place become orphans when their queue is deleted: shown, and nobody's.

/// Exchanges and queues that were left out, by kind and name.
#[derive(Debug)]
pub(crate) struct LeftOut {
    /// Hashes of virtual host, kind and name, in order, each with the version or incarnation.
    entries: Vec<(u64, u64)>,
    /// Incarnations of queues with priorities that were left out, each with that of a level in the log.
    levels: Vec<(u64, u64)>,
    /// The most entries and levels together.
    entries_max: usize,
    /// More were left out than are known here.
    has_more: bool,
    hasher: FixedState,
}

impl LeftOut {
    /// Bytes of one entry.
    pub(crate) const ENTRY_BYTES: usize = size_of::<(u64, u64)>();

    /// An empty list; memory is taken when there are entries.
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

    /// Whether a thing of this name and version may only be missing because it was left out.
    fn may_have(&self, vhost: &str, name: DestinationName<'_>, version: u64) -> bool {
        self.has_more || self.find(vhost, name).is_some_and(|at| self.entries[at].1 == version)
    }

    /// The version of the exchange or queue of this name that was left out.
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
    fn what_is_too_much_to_be_remembered_may_be_anything() {
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
    fn levels_leave_room_for_what_they_are_of() {
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
