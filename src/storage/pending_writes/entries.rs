//! Log entries that wait for their commit.

use std::collections::VecDeque;

use leveret_core::batch::Batch;
use leveret_core::definition::is_access;

/// A log entry: the change of a definition, the deletion of a queue, or a watermark of delivered messages.
///
/// There may be several entries about an object. The last one applies, or the one with the highest version.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LogEntry {
    /// A definition was created, changed, or (without a value) deleted.
    Defined {
        /// Of several definitions with this key, the one with the highest version applies.
        version: u64,
        /// The key of the definition; see [`leveret_core::definition`].
        key: Box<[u8]>,
        /// The value of the definition; `None` if it is deleted.
        value: Option<Box<[u8]>>,
    },
    /// The queue is deleted with all its messages.
    Gone {
        /// Its incarnation.
        queue: u64,
    },
    /// Messages below the offset may have been delivered.
    DeliveredWatermark {
        /// The queue's incarnation.
        queue: u64,
        /// The first message that was certainly not delivered.
        offset: u64,
    },
    /// At a clean stop: messages from this offset on were never delivered, although some of them are below a
    /// watermark.
    WatermarkReset {
        /// The queue's incarnation.
        queue: u64,
        /// The first message that was certainly not delivered.
        offset: u64,
        /// The highest watermark at this time. A higher watermark that is written later cancels this entry.
        watermark: u64,
    },
}

impl LogEntry {
    /// Returns whether this is an access definition, which is written twice.
    fn is_access(&self) -> bool {
        matches!(self, Self::Defined { key, .. } if is_access(key))
    }

    /// Returns whether both entries set the same definition, so that only `next` needs to be written.
    pub(super) fn can_be_replaced_by(&self, next: &Self) -> bool {
        matches!(
            (self, next),
            (Self::Defined { key, value: Some(_), .. }, Self::Defined { key: next, value: Some(_), .. }) if key == next
        )
    }

    /// Returns approximately how many bytes of heap memory the entry takes.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Defined { key, value, .. } => key.len() + value.as_ref().map_or(0, |value| value.len()),
            Self::Gone { .. } | Self::DeliveredWatermark { .. } | Self::WatermarkReset { .. } => 0,
        }
    }
}

/// Number and bytes of waiting log entries above which the broker should pause.
pub(super) const ENTRIES_MAX: usize = 1024;
pub(super) const ENTRY_BYTES_MAX: usize = 64 << 10;

/// The waiting log entries, and how many were appended and became durable.
#[derive(Debug)]
pub(super) struct Entries {
    waiting: VecDeque<(Batch, LogEntry)>,
    /// Access definitions that are in one commit and must be written in a second one, each with its log entry number.
    /// The first `repeats_ready` of them were in an earlier commit than the one being built.
    repeats: VecDeque<(Batch, u64, LogEntry)>,
    repeats_ready: usize,
    /// Heap memory of `waiting` and `repeats` in bytes.
    pub(super) bytes: usize,
    /// Batch of the last log entry, groups included.
    pub(super) last_batch: Batch,
    /// Number of log entries that were appended since the start.
    pub(super) appended: u64,
    /// Number of log entries that are durable, since the start.
    pub(super) durable: u64,
    /// Number of log entries that are durable, since the start. An access definition, and all entries after it, count
    /// only when its second commit is durable.
    pub(super) safe: u64,
}

impl Entries {
    /// Bytes of memory of each entry, without its heap memory.
    pub(super) const EACH_BYTES: usize = size_of::<(Batch, LogEntry)>() + size_of::<(Batch, u64, LogEntry)>();

    pub(super) fn new() -> Self {
        Self {
            waiting: VecDeque::with_capacity(64),
            repeats: VecDeque::new(),
            repeats_ready: 0,
            bytes: 0,
            last_batch: Batch::NONE,
            appended: 0,
            durable: 0,
            safe: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len() + self.repeats.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.repeats.is_empty()
    }

    /// Returns the number of log entries that are in a commit, since the start. An access definition counts from its first
    /// commit on.
    pub(super) fn in_commit(&self) -> u64 {
        self.appended - self.waiting.len() as u64
    }

    pub(super) fn push(&mut self, batch: Batch, entry: LogEntry) {
        self.bytes += entry.bytes();
        self.appended += 1;
        self.waiting.push_back((batch, entry));
        self.last_batch = batch;
    }

    /// Replaces the last entry if it is of this batch and sets the same definition. Otherwise returns the new entry.
    pub(super) fn replace_last(&mut self, batch: Batch, entry: LogEntry) -> Result<(), LogEntry> {
        match self.waiting.back_mut() {
            Some((of_last, last)) if *of_last == batch && last.can_be_replaced_by(&entry) => {
                self.bytes = self.bytes - last.bytes() + entry.bytes();
                *last = entry;
                Ok(())
            }
            _ => Err(entry),
        }
    }

    /// Moves the last entry to another batch.
    pub(super) fn move_last_to(&mut self, batch: Batch) {
        if let Some((of_last, _)) = self.waiting.back_mut() {
            *of_last = batch;
        }
    }

    /// Returns the next log entry for a commit. Entries that must be written a second time come first.
    pub(super) fn front(&self) -> Option<&LogEntry> {
        if self.repeats_ready > 0 {
            return self.repeats.front().map(|(_, _, entry)| entry);
        }
        self.waiting.front().map(|(_, entry)| entry)
    }

    /// Removes the entry that [`Self::front`] returned: it is in a commit.
    pub(super) fn pop(&mut self) {
        if let Some(ready) = self.repeats_ready.checked_sub(1) {
            self.repeats_ready = ready;
            if let Some((_, _, entry)) = self.repeats.pop_front() {
                self.bytes -= entry.bytes();
            }
        } else if let Some((batch, entry)) = self.waiting.pop_front() {
            if entry.is_access() {
                self.repeats.push_back((batch, self.in_commit(), entry));
            } else {
                self.bytes -= entry.bytes();
            }
        }
    }

    /// Returns the first batch with an entry that must still be written, at the end of a commit.
    pub(super) fn end_commit(&mut self) -> Option<Batch> {
        self.repeats_ready = self.repeats.len();
        // The deletion of a queue belongs to the batch of its messages, so the batches of entries do not rise.
        let waiting = self.waiting.iter().map(|(batch, _)| *batch).min();
        let repeat = self.repeats.front().map(|(batch, _, _)| *batch);
        [waiting, repeat].into_iter().flatten().min()
    }

    /// Marks all entries in commits as durable.
    pub(super) fn note_durable(&mut self) {
        self.durable = self.in_commit();
        self.safe = self.repeats.front().map_or(self.durable, |(_, number, _)| number - 1);
    }
}
