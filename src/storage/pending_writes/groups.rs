//! Groups: messages, settlements and definitions that become durable together or not at all, for example those of a
//! transaction.
//!
//! ```text
//! begin_group ── append, settle, append, … ── end_group → the batch to wait for
//! pending     │ 7 │ 8 │ 9 │ 10 │ 11 │      a group is messages 8 to 10, and settlements and definitions of its own
//! ```
//!
//! The messages of a group are consecutive among all pending messages. Its settlements and definitions are kept separate
//! from others until its messages are written. A pending message that is settled is usually not written. One that a
//! group settles is written, because its publisher may receive the confirm before the group is durable.
//!
//! # Invariants
//! - Groups are in the order of their messages, and become durable in that order.
//! - A group is not written as one if it contains only settlements, or only one message.

use std::collections::VecDeque;

use leveret_core::batch::Batch;
use leveret_core::mem::Messages;

use super::settlements::merge_settles;
use super::{Cursor, Front, LogEntry, Mode, PendingWrites, Settled, TRANSIENT, Urgency};
use crate::record::{RANGE_BYTES_MAX, RECORD_OVERHEAD_BYTES_MAX, Target};

/// The flag of incarnations that identify a group, not a queue. They are used for groups that are too large
/// for one commit.
pub(super) const GROUP: u64 = 1 << 62;

/// Maximum number of waiting groups. When it is reached, only groups that a client waits for are begun.
pub(super) const GROUPS_MAX: usize = 512;

/// Upper bound of the bytes of a definition's record besides its key and value.
const DEFINED_BYTES: u64 = 48;

/// A group that waits to be written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Group {
    /// The number of the first message, counted since the start.
    pub first: u64,
    /// The number of the last message, plus 1.
    pub end: u64,
    /// Upper bound of the bytes of the group's records, without bodies that are written in chunks.
    pub bytes: u64,
    pub(super) settles: usize,
    pub(super) entries: usize,
    pub(super) batch: Batch,
}

/// The waiting groups and the open one.
#[derive(Debug)]
pub(super) struct Groups {
    waiting: VecDeque<Group>,
    /// Settlements of all waiting groups, in the order of the groups.
    settles: VecDeque<Settled>,
    /// Number of settlements above which the broker should pause.
    settles_max: usize,
    /// Definitions of all waiting groups, in the order of the groups.
    pub(super) entries: VecDeque<LogEntry>,
    /// Heap memory of `entries` in bytes.
    pub(super) entry_bytes: usize,
    /// The number of the first message of the open group; `None` if no group is open.
    open_first: Option<u64>,
    /// Settlements of the open group.
    open_settles: Vec<Settled>,
    /// Definitions of the open group.
    open_entries: Vec<LogEntry>,
}

impl Groups {
    pub(super) const fn new(settles_max: usize) -> Self {
        Self {
            waiting: VecDeque::new(),
            settles: VecDeque::new(),
            settles_max,
            entries: VecDeque::new(),
            entry_bytes: 0,
            open_first: None,
            open_settles: Vec::new(),
            open_entries: Vec::new(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(super) fn is_crowded(&self) -> bool {
        self.settles.len() > self.settles_max
    }

    pub(super) const fn is_open(&self) -> bool {
        self.open_first.is_some()
    }

    /// Returns the batch of the first waiting group.
    pub(super) fn batch(&self) -> Option<Batch> {
        self.waiting.front().map(|group| group.batch)
    }

    /// Adds a settlement to the open group.
    pub(super) fn settle(&mut self, settled: Settled) {
        match self.open_settles.last_mut() {
            Some(last) if last.queue == settled.queue && last.end == settled.start => last.end = settled.end,
            _ => self.open_settles.push(settled),
        }
    }
}

impl PendingWrites {
    /// Returns a new incarnation that identifies a group in the log.
    pub(crate) const fn next_group(&mut self) -> u64 {
        self.next_version() | GROUP
    }

    /// Begins a group. All messages and settlements until [`Self::end_group`] belong to it, and the definitions of
    /// [`Self::define_in_group`].
    pub fn begin_group(&mut self) {
        assert!(!self.groups.is_open(), "no group is within another");
        self.groups.open_first = Some(self.messages.end_number());
    }

    /// Returns whether a group is open.
    pub const fn is_grouping(&self) -> bool {
        self.groups.is_open()
    }

    /// Returns whether a group that no client waits for may be begun.
    pub fn can_begin_group(&self) -> bool {
        self.groups.waiting.len() < GROUPS_MAX && !self.groups.is_crowded()
    }

    /// Like [`Self::define`], but the definition belongs to the open group.
    ///
    /// If all changes of a definition are made in groups, they become durable in the order in which they were made.
    pub fn define_in_group(&mut self, key: Box<[u8]>, value: Option<Box<[u8]>>) {
        assert!(self.groups.is_open(), "a group was begun");
        if self.mode == Mode::On {
            let version = self.next_version();
            self.groups.open_entries.push(LogEntry::Defined { version, key, value });
        }
    }

    /// Like [`Self::define`], but in a group of its own: the definition becomes durable behind all messages and groups that
    /// were appended before it. Returns [`Batch::NONE`] if nothing is to be written.
    pub fn define_behind_messages(
        &mut self,
        messages: &mut Messages,
        key: Box<[u8]>,
        value: Option<Box<[u8]>>,
    ) -> Batch {
        if self.mode != Mode::On {
            return Batch::NONE;
        }
        self.begin_group();
        self.define_in_group(key, value);
        if self.replace_last_definition() {
            return self.request_commit(Urgency::Awaited);
        }
        self.end_group(messages, Urgency::Awaited)
    }

    /// Replaces the definition of the last waiting group by that of the open group, and ends the open group. Does
    /// nothing and returns `false` unless both groups only set the same definition.
    fn replace_last_definition(&mut self) -> bool {
        let end = self.messages.end_number();
        // The first group may be partly in a commit.
        let is_first = self.groups.waiting.len() == 1;
        let (Some(group), Some(last)) = (self.groups.waiting.back_mut(), self.groups.entries.back_mut())
        else {
            return false;
        };
        let is_replaceable = (group.first, group.end, group.settles, group.entries) == (end, end, 0, 1)
            && group.batch == self.batches.open;
        let [entry] = &self.groups.open_entries[..] else { return false };
        if is_first || !is_replaceable || !last.can_be_replaced_by(entry) {
            return false;
        }
        let (before, now) = (last.bytes(), entry.bytes());
        group.bytes = group.bytes - before as u64 + now as u64;
        self.groups.entry_bytes = self.groups.entry_bytes - before + now;
        *last = self.groups.open_entries.pop().expect("it has one");
        self.groups.open_first = None;
        true
    }

    /// Ends the group. It is written with this urgency. Returns the batch that makes it durable.
    ///
    /// If the group has settlements, or a client waits for it, its messages are withheld (not delivered) until that batch
    /// is durable. Otherwise a power cut could restore the settled messages after the delivery of the group's messages,
    /// and they would create the messages of the group a second time. A consumer must also not receive one message of a
    /// transaction if the others are lost.
    pub fn end_group(&mut self, messages: &mut Messages, urgency: Urgency) -> Batch {
        let first = self.groups.open_first.take().expect("a group was begun");
        let mut settles = core::mem::take(&mut self.groups.open_settles);
        merge_settles(&mut settles);
        self.capacity.log_freed_count += settles.len() as u64;
        let end = self.messages.end_number();
        let entries = self.groups.open_entries.len();
        let batch = if entries == 0 && (first == end || settles.is_empty() && first + 1 == end) {
            settles.iter().for_each(|settled| self.settle_stored(*settled));
            let batch =
                if urgency == Urgency::Awaited { self.request_commit_of_all() } else { self.batches.open };
            if urgency == Urgency::Awaited {
                self.messages.withhold_until(messages, first, batch);
            }
            batch
        } else {
            let entry_bytes: usize = self.groups.open_entries.iter().map(LogEntry::bytes).sum();
            let bytes = settled_bytes(&settles)
                + self.messages.record_bytes(messages, first)
                + entry_bytes as u64
                + DEFINED_BYTES * entries as u64;
            let batch = self.request_commit(urgency);
            self.groups.waiting.push_back(Group {
                first,
                end,
                bytes,
                settles: settles.len(),
                entries,
                batch,
            });
            self.groups.settles.extend(&settles);
            if entries > 0 {
                self.groups.entries.extend(self.groups.open_entries.drain(..));
                self.groups.entry_bytes += entry_bytes;
                self.entries.last_batch = batch;
            }
            if urgency == Urgency::Awaited || !settles.is_empty() {
                self.messages.withhold_until(messages, first, batch);
            }
            batch
        };
        settles.clear();
        self.groups.open_settles = settles;
        batch
    }

    /// Returns the group to write next; `None` if messages that were appended before it must be written first
    /// ([`Self::front`]), or if there is none.
    pub(crate) fn group(&self) -> Option<Group> {
        let group = self.groups.waiting.front()?;
        (group.first <= self.messages.first_number).then_some(*group)
    }

    /// Returns the next message of a group that must be written, at or after the cursor, and puts its targets
    /// into `targets`. `None` after the last one.
    ///
    /// Moves the cursor to that message. The message stays in the buffer.
    pub(crate) fn peek(
        &self,
        group: &Group,
        cursor: &mut Cursor,
        targets: &mut Vec<Target>,
    ) -> Option<Front> {
        self.messages.peek(cursor, group.end, targets)
    }

    /// Moves the cursor to the next message.
    pub(crate) fn step(&self, cursor: &mut Cursor) {
        self.messages.step(cursor);
    }

    /// Returns the settlements of the group to write next, ordered by queue, without the first `done`.
    pub(crate) fn group_settles(&self, done: usize) -> impl Iterator<Item = Settled> {
        let count = self.groups.waiting.front().map_or(0, |group| group.settles);
        self.groups.settles.iter().copied().take(count).skip(done)
    }

    /// Returns the definitions of the group to write next, without the first `done`.
    pub(crate) fn group_entries(&self, done: usize) -> impl Iterator<Item = &LogEntry> {
        let count = self.groups.waiting.front().map_or(0, |group| group.entries);
        self.groups.entries.iter().take(count).skip(done)
    }

    /// Removes the group that was to be written next. All of it is in commits now.
    pub(crate) fn group_written(&mut self) {
        if let Some(group) = self.groups.waiting.pop_front() {
            self.groups.settles.drain(..group.settles);
            let written = self.groups.entries.drain(..group.entries);
            self.groups.entry_bytes -= written.map(|entry| entry.bytes()).sum::<usize>();
            self.capacity.freed_count += 1;
        }
    }
}

/// Returns whether this incarnation stands for a group in the log; see [`super::PendingWrites::next_group`].
pub const fn is_group(incarnation: u64) -> bool {
    incarnation & (GROUP | TRANSIENT) == GROUP
}

/// Returns an upper bound of the bytes that records of these sorted settlements take.
fn settled_bytes(settles: &[Settled]) -> u64 {
    let queues = settles.chunk_by(|one, next| one.queue == next.queue).count();
    (RECORD_OVERHEAD_BYTES_MAX * (queues + 1) + RANGE_BYTES_MAX * settles.len()) as u64
}
