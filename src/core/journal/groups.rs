//! The groups that wait to be written, and the one that is being said; see `group`.

use std::collections::VecDeque;

use super::{Batch, Front, Journal, Settled, Target, Urgency};
use super::{CHUNK_BYTES, TRANSIENT, merge};
use crate::mem::{MessageFlags, Messages};

/// Incarnations with this bit are of no queue: what has it is a group that no commit could hold at once.
pub(super) const GROUP: u64 = 1 << 62;

/// Groups that nobody waits for, beyond which no more are begun.
pub(super) const GROUPS_MAX: usize = 512;

/// Whether this stands for a group in the log; see [`super::Journal::next_group`].
pub const fn is_group(incarnation: u64) -> bool {
    incarnation & (GROUP | TRANSIENT) == GROUP
}

/// What is to become durable together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Group {
    /// The number of its first message since start.
    pub first: u64,
    /// The one after its last.
    pub end: u64,
    /// Bytes that its records take at most, bodies in chunks not counted.
    pub bytes: u64,
    pub(super) settles: usize,
    pub(super) batch: Batch,
}

/// A place among the messages that wait.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Cursor {
    pub(super) number: u64,
    /// How many targets were before it since start.
    pub(super) target: u64,
}

/// The groups that wait, and the one that is being said.
#[derive(Debug)]
pub(super) struct Groups {
    pub(super) waiting: VecDeque<Group>,
    /// Of all that wait, one behind the other.
    pub(super) settles: VecDeque<Settled>,
    /// Settlements that wait beyond which no more should be asked of the broker.
    settles_max: usize,
    /// The first message of the one that is being said.
    pub(super) open: Option<u64>,
    /// What that one settles.
    pub(super) open_settles: Vec<Settled>,
}

impl Groups {
    pub(super) const fn new(settles_max: usize) -> Self {
        Self {
            waiting: VecDeque::new(),
            settles: VecDeque::new(),
            settles_max,
            open: None,
            open_settles: Vec::new(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(super) fn is_crowded(&self) -> bool {
        self.settles.len() > self.settles_max
    }

    pub(super) const fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// The batch of the first.
    pub(super) fn batch(&self) -> Option<Batch> {
        self.waiting.front().map(|group| group.batch)
    }

    /// Takes a settlement of the one that is being said.
    pub(super) fn settle(&mut self, settled: Settled) {
        match self.open_settles.last_mut() {
            Some(last) if last.queue == settled.queue && last.end == settled.start => last.end = settled.end,
            _ => self.open_settles.push(settled),
        }
    }
}

// Groups: messages and settlements that become durable together or not at all, as a transaction's do.
//
// ```text
// begin_group ── publish, settle, publish, … ── end_group → the batch to wait for
// pending     │ 7 │ 8 │ 9 │ 10 │ 11 │      a group is messages 8 to 10, and settlements of its own
// ```
//
// The messages of a group wait among all others, one behind the other; what it settles is kept apart from
// other settlements until its messages are written. A message that a group settles is written all the same,
// if it was not yet: whoever published it may hear that it is safe before the group is.
//
// Always true: groups are in the order of their messages; one with no messages, or with one message that
// settles nothing, is none, for what is said of it is in one commit anyway.

/// What a record of settlements takes, for each queue and for each range, in bytes at most.
const SETTLED_BYTES: u64 = 128;
const RANGE_BYTES: u64 = 20;

impl Journal {
    /// A name for a group in the log, which no other ever had.
    pub const fn next_group(&mut self) -> u64 {
        self.next_version() | GROUP
    }

    /// What is published and settled from now on belongs together, until [`Self::end_group`].
    pub fn begin_group(&mut self) {
        assert!(!self.groups.is_open(), "no group is within another");
        self.groups.open = Some(self.first + self.pending.len() as u64);
    }

    /// Whether a group was begun and not ended.
    pub const fn is_grouping(&self) -> bool {
        self.groups.is_open()
    }

    /// Whether one more group may wait, beside those that somebody waits for.
    pub fn takes_group(&self) -> bool {
        self.groups.waiting.len() < GROUPS_MAX && !self.groups.is_crowded()
    }

    /// All that belongs together was said, and is written this soon. Returns the batch to wait for.
    ///
    /// What was published is [`MessageFlags::MOVING`] until that batch is durable, if something was settled or a
    /// client waits for the group. A power cut before would bring back what was settled, and what became of it
    /// would come once more; and a consumer of one message of a transaction must not see it without the others.
    pub fn end_group(&mut self, messages: &mut Messages, urgency: Urgency) -> Batch {
        let first = self.groups.open.take().expect("a group was begun");
        let mut settles = core::mem::take(&mut self.groups.open_settles);
        merge(&mut settles);
        self.freed += settles.len() as u64;
        let end = self.first + self.pending.len() as u64;
        let batch = if first == end || (settles.is_empty() && first + 1 == end) {
            settles.iter().for_each(|settled| self.settle_stored(*settled));
            let batch = if urgency == Urgency::Awaited { self.await_all() } else { self.open };
            if urgency == Urgency::Awaited {
                self.hold_moving(messages, first, batch);
            }
            batch
        } else {
            let bytes = settled_bytes(&settles) + self.message_bytes(messages, first);
            let batch = self.expect_open(urgency);
            self.groups.waiting.push_back(Group { first, end, bytes, settles: settles.len(), batch });
            self.groups.settles.extend(&settles);
            if urgency == Urgency::Awaited || !settles.is_empty() {
                self.hold_moving(messages, first, batch);
            }
            batch
        };
        settles.clear();
        self.groups.open_settles = settles;
        batch
    }

    /// Messages from `first` on may go to nobody before this batch is durable.
    fn hold_moving(&mut self, messages: &mut Messages, first: u64, batch: Batch) {
        for pending in self.pending.range((first - self.first) as usize..) {
            if pending.live > 0 {
                messages.retain(pending.message);
                messages.add_flags(pending.message, MessageFlags::MOVING);
                self.moving.push_back((batch, pending.message));
            }
        }
    }

    /// What is durable by now is no longer on its way.
    pub(super) fn release_moved(&mut self, messages: &mut Messages) {
        while let Some(&(batch, message)) = self.moving.front() {
            if batch > self.durable {
                return;
            }
            self.moving.pop_front();
            messages.clear_flags(message, MessageFlags::MOVING);
            messages.release(message);
        }
    }

    /// Bytes that records of the messages from `first` on take at most, bodies in chunks not counted.
    fn message_bytes(&self, messages: &Messages, first: u64) -> u64 {
        let members = self.pending.range((first - self.first) as usize..);
        let bytes = members.map(|pending| {
            let body = if pending.live > 0 { messages.body_len(pending.message) } else { 0 };
            let chunked = if u64::from(body) > CHUNK_BYTES { body } else { 0 };
            u64::from(pending.bytes).saturating_sub(chunked.into())
        });
        bytes.sum()
    }

    /// The group whose turn it is to be written: [`Self::front`] has nothing more that was said before it.
    pub fn group(&self) -> Option<Group> {
        let group = self.groups.waiting.front()?;
        (group.first <= self.first).then_some(*group)
    }

    /// The next message at or behind the cursor that belongs to the group and is to be written, with its
    /// places in `targets`; the cursor stands at it then. Nothing leaves the journal.
    pub fn peek(&self, group: &Group, cursor: &mut Cursor, targets: &mut Vec<Target>) -> Option<Front> {
        if cursor.number < self.first {
            *cursor = Cursor { number: self.first, target: self.targets_before };
        }
        while cursor.number < group.end {
            let pending = self.pending.get((cursor.number - self.first) as usize)?;
            if pending.live > 0 {
                let from = (cursor.target - self.targets_before) as usize;
                self.places(cursor.number, from..from + pending.targets as usize, targets);
                if !targets.is_empty() {
                    return Some(Front { message: pending.message, number: cursor.number });
                }
            }
            self.step(cursor);
        }
        None
    }

    /// Moves the cursor on by one message.
    pub fn step(&self, cursor: &mut Cursor) {
        let at = cursor.number.checked_sub(self.first).and_then(|at| self.pending.get(at as usize));
        cursor.number += 1;
        cursor.target += at.map_or(0, |pending| u64::from(pending.targets));
    }

    /// What the group whose turn it is settles, queue by queue, but for the first `done` of them.
    pub fn group_settles(&self, done: usize) -> impl Iterator<Item = Settled> {
        let count = self.groups.waiting.front().map_or(0, |group| group.settles);
        self.groups.settles.iter().copied().take(count).skip(done)
    }

    /// The group whose turn it is went into commits, all of it.
    pub fn group_written(&mut self) {
        if let Some(group) = self.groups.waiting.pop_front() {
            self.groups.settles.drain(..group.settles);
            self.room_made += 1;
        }
    }
}

/// Bytes that records of these settlements, in order, take at most.
fn settled_bytes(settles: &[Settled]) -> u64 {
    let queues = settles.chunk_by(|one, next| one.queue == next.queue).count() as u64;
    SETTLED_BYTES * (queues + 1) + RANGE_BYTES * settles.len() as u64
}
