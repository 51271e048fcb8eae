//! The words that journal, broker and store have in common: batches, places of messages, settlements.

use crate::mem::{MessageId, sort_by_key};

/// The most of a body that is in one record.
pub(super) const CHUNK_BYTES: u64 = 64 << 10;

/// What becomes durable together; rises. [`Batch::NONE`] is durable from the start.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Batch(u64);

impl Batch {
    /// A batch that is always durable: there is nothing to wait for.
    pub const NONE: Self = Self(0);

    /// The batch with this number; batches are numbered from 1.
    pub const fn numbered(number: u64) -> Self {
        Self(number)
    }

    pub(super) const fn before(self) -> Self {
        Self(self.0 - 1)
    }

    pub(super) const fn after(self) -> Self {
        Self(self.0 + 1)
    }

    /// Whether there is nothing to wait for.
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }
}

/// How long something may wait for its commit.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Urgency {
    /// A confirm or an answer waits for the write.
    Awaited,
    /// Nobody does: the commit window.
    Window,
    /// It may be lost: the settle window.
    Lazy,
}

/// Whether anything is written at all.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// There is no store: nothing is durable, and nobody waits for that.
    Off,
    /// What is said becomes durable.
    On,
    /// The store cannot be written: what would have to be durable waits or is refused.
    Unwritable,
}

/// Why a message is not taken now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NoRoom {
    /// Too much waits for its commit already, or the store cannot be written.
    Commit,
    /// The disk limit is reached, or the file system is full.
    Disk,
}

/// A durable place of a message: a queue's incarnation and an offset in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Target {
    /// The queue's incarnation: never used again for another queue.
    pub queue: u64,
    /// The message's place in it.
    pub offset: u64,
}

/// Incarnations with this bit are of messages that are in the log only to be out of memory.
pub(super) const TRANSIENT: u64 = 1 << 63;

/// Whether this is the incarnation of messages that the next life throws away.
pub const fn is_transient(incarnation: u64) -> bool {
    incarnation & TRANSIENT != 0
}

/// Offsets that are done with, the end not included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settled {
    /// The queue's incarnation.
    pub queue: u64,
    /// The first offset.
    pub start: u64,
    /// The one after the last.
    pub end: u64,
}

/// Puts settlements in order and those that touch together. No offset is settled twice: a record that says
/// so could not be read again.
pub(super) fn merge(settles: &mut Vec<Settled>) {
    sort_by_key(settles, |settled| (settled.queue, settled.start));
    settles.dedup_by(|next, kept| {
        assert!(next.queue != kept.queue || next.start >= kept.end, "{next:?} is settled twice: {kept:?}");
        let touches = next.queue == kept.queue && next.start == kept.end;
        if touches {
            kept.end = next.end;
        }
        touches
    });
}

/// The message to be written next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Front {
    /// The message; held until [`super::Journal::stored`].
    pub message: MessageId,
    /// Its number since start: ids of messages are used again, this is not.
    pub number: u64,
}
