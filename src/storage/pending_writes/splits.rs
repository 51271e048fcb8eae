//! Definitions with a value that is too long for one record.
//!
//! ```text
//! part 0 │ part 1 │ … │ the definition that names the parts │ deletion of each part of the value before
//! ```
//!
//! They are written in this order, behind everything else that waits for the commit. If other changes fill each commit, one
//! record of a long value comes first in every second commit. A split definition belongs to no batch, so that no other change
//! waits for it: [`PendingWrites::is_split_pending`] tells whether it is durable.
//!
//! # Invariants
//! - The versions rise in the order of the records, and are given when the definition is appended.

use std::collections::VecDeque;
use std::rc::Rc;

use super::{Mode, PendingWrites, Urgency};

/// Bytes of each part but the last. A part fits into the smallest commit.
pub const PART_BYTES: usize = 60 << 10;

/// A definition whose value is in parts. The key of a part is a prefix, followed by the index of the part (u32, little endian).
#[derive(Debug)]
pub struct SplitDefinition {
    /// The value. It is shared with the broker, which counts its memory.
    pub content: Rc<[u8]>,
    /// The prefix of the keys of the parts.
    pub part_prefix: Box<[u8]>,
    /// The key of the definition that names the parts.
    pub key: Box<[u8]>,
    /// The value of that definition.
    pub value: Box<[u8]>,
    /// The prefix of the keys of the parts of the value before.
    pub replaced_prefix: Box<[u8]>,
    /// The number of parts of the value before.
    pub replaced_count: u32,
}

/// A split definition that is not completely written.
#[derive(Debug)]
struct Split {
    definition: SplitDefinition,
    /// The version of the first record.
    version: u64,
    /// The number of log entries that were appended before. All of them are in a commit before the first record: one may be a
    /// definition with the same key.
    entries_before: u64,
    /// The number of records that are written.
    written_count: u32,
}

/// The split definitions that wait.
#[derive(Debug, Default)]
pub(super) struct Splits {
    waiting: VecDeque<Split>,
    /// Bytes of the parts that are not written.
    bytes_left: u64,
    /// Keys of the definitions that are in a commit which is not durable yet.
    in_commit: Vec<Box<[u8]>>,
}

/// A buffer for the key of a part.
#[derive(Debug, Default)]
pub(crate) struct SplitCursor(Vec<u8>);

/// The next record of a split definition.
#[derive(Debug)]
pub(crate) struct SplitRecord<'a> {
    pub(crate) version: u64,
    pub(crate) key: &'a [u8],
    /// `None` deletes the definition.
    pub(crate) value: Option<&'a [u8]>,
    pub(crate) is_part: bool,
}

impl SplitDefinition {
    fn part_count(&self) -> u32 {
        self.content.len().div_ceil(PART_BYTES) as u32
    }

    /// Returns the number of records: the parts, the definition, and the deletions.
    fn record_count(&self) -> u32 {
        self.part_count() + 1 + self.replaced_count
    }

    fn part(&self, index: u32) -> &[u8] {
        let rest = self.content.get(index as usize * PART_BYTES..).unwrap_or_default();
        &rest[..rest.len().min(PART_BYTES)]
    }
}

impl Split {
    /// Returns whether the definition that names the parts is in a commit.
    fn is_named(&self) -> bool {
        self.written_count > self.definition.part_count()
    }
}

impl Splits {
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Returns the bytes of the parts that are not written.
    pub(super) const fn bytes_left(&self) -> u64 {
        self.bytes_left
    }

    /// Notes that everything in commits is durable.
    pub(super) fn note_durable(&mut self) {
        self.in_commit.clear();
    }
}

impl PendingWrites {
    /// Appends a split definition.
    pub fn define_split(&mut self, definition: SplitDefinition) {
        if self.mode != Mode::On {
            return;
        }
        let version = self.next_versions(definition.record_count().into());
        self.splits.bytes_left += definition.content.len() as u64;
        let entries_before = self.entries.appended;
        self.splits.waiting.push_back(Split { definition, version, entries_before, written_count: 0 });
        self.batches.note_change(Urgency::Awaited);
    }

    /// Withdraws the split definition with this key, unless the definition that names its parts is in a commit. Returns whether
    /// it was withdrawn; some of its parts may be in the log then.
    ///
    /// A later definition with this key must not be in the log before the earlier one.
    pub fn withdraw_split(&mut self, key: &[u8]) -> bool {
        let Splits { waiting, bytes_left, .. } = &mut self.splits;
        let before = waiting.len();
        waiting.retain(|split| {
            let is_kept = split.is_named() || *split.definition.key != *key;
            if !is_kept {
                let parts = split.written_count..split.definition.part_count();
                *bytes_left -= parts.map(|index| split.definition.part(index).len() as u64).sum::<u64>();
            }
            is_kept
        });
        let is_withdrawn = waiting.len() < before;
        // Its publisher waits no longer.
        if is_withdrawn {
            self.capacity.freed_count += 1;
        }
        is_withdrawn
    }

    /// Returns whether a split definition with this key is not durable yet.
    pub fn is_split_pending(&self, key: &[u8]) -> bool {
        let Splits { waiting, in_commit, .. } = &self.splits;
        waiting.iter().any(|split| !split.is_named() && *split.definition.key == *key)
            || in_commit.iter().any(|other| **other == *key)
    }

    /// Returns whether a split definition waits.
    pub(crate) fn has_splits(&self) -> bool {
        !self.splits.is_empty()
    }

    /// Returns the next record of the first split definition.
    pub(crate) fn next_split<'a>(&'a self, cursor: &'a mut SplitCursor) -> Option<SplitRecord<'a>> {
        let Split { definition, version, written_count, entries_before } = self.splits.waiting.front()?;
        if self.entries.in_commit() < *entries_before {
            return None;
        }
        let (written_count, version) = (*written_count, version + u64::from(*written_count));
        let part_count = definition.part_count();
        let SplitCursor(part_key) = cursor;
        let mut key_of_part = |prefix: &[u8], index: u32| {
            part_key.clear();
            part_key.extend_from_slice(prefix);
            part_key.extend_from_slice(&index.to_le_bytes());
        };
        if written_count == part_count {
            let (key, value) = (&*definition.key, Some(&*definition.value));
            return Some(SplitRecord { version, key, value, is_part: false });
        }
        let value = match written_count.checked_sub(part_count + 1) {
            None => {
                key_of_part(&definition.part_prefix, written_count);
                Some(definition.part(written_count))
            }
            Some(index) => {
                key_of_part(&definition.replaced_prefix, index);
                None
            }
        };
        Some(SplitRecord { version, key: part_key, value, is_part: value.is_some() })
    }

    /// Removes the record that [`Self::next_split`] returned: it is in a commit.
    pub(crate) fn pop_split(&mut self) {
        let Some(split) = self.splits.waiting.front_mut() else { return };
        self.splits.bytes_left -= split.definition.part(split.written_count).len() as u64;
        split.written_count += 1;
        if split.written_count == split.definition.part_count() + 1 {
            self.splits.in_commit.push(split.definition.key.clone());
        }
        if split.written_count == split.definition.record_count() {
            self.splits.waiting.pop_front();
        }
        self.capacity.freed_count += 1;
    }
}
