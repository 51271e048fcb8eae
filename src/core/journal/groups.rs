//! The groups that wait to be written, and the one that is being said; see `group`.

use std::collections::VecDeque;

use super::records::{Batch, Settled, TRANSIENT};

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
