//! Settlements that wait for their commit, without those of groups, and watermarks of early deliveries.

use leveret_core::batch::Batch;
use leveret_core::mem::{sort, sort_by_key};

/// A range of settled offsets of a queue, from `start` to `end` (excluded).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settled {
    /// The queue's incarnation.
    pub queue: u64,
    /// The first offset.
    pub start: u64,
    /// The offset after the last.
    pub end: u64,
}

/// Maximum number of settlements before they are sorted and merged.
const SETTLES_MAX: usize = 8192;

/// Returns the number of settlements kept when `pending_max` messages may wait for a commit.
pub(super) const fn settles_max(pending_max: usize) -> usize {
    if SETTLES_MAX < 4 * pending_max { SETTLES_MAX } else { 4 * pending_max }
}

/// The waiting settlements.
#[derive(Debug)]
pub(super) struct Settlements {
    waiting: Vec<Settled>,
    /// Whether some settlements are those of messages in the log, so that they require a commit.
    pub(super) has_stored: bool,
    /// The first batch whose confirm or reply waits for settlements.
    pub(super) awaited: Option<Batch>,
    /// Watermarks (queue, offset) for messages that were delivered before their commit. They are written in
    /// the next commit.
    watermarks: Vec<(u64, u64)>,
}

impl Settlements {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            waiting: Vec::with_capacity(capacity),
            has_stored: false,
            awaited: None,
            watermarks: Vec::with_capacity(256),
        }
    }

    /// Lets a batch wait for the settlements of messages in the log, if there are some and no earlier batch waits.
    pub(super) fn note_awaited(&mut self, batch: Batch) {
        if self.has_stored {
            self.awaited.get_or_insert(batch);
        }
    }

    /// Adds a settlement and merges it with the last one if they are adjacent. Returns whether a commit should be made at
    /// once, because merging all settlements freed less than half of the buffer.
    #[inline]
    pub(super) fn add(&mut self, settled: Settled) -> bool {
        if let Some(last) = self.waiting.last_mut().filter(|last| last.queue == settled.queue) {
            if last.end == settled.start {
                last.end = settled.end;
                return false;
            }
            if settled.end == last.start {
                last.start = settled.start;
                return false;
            }
        }
        let mut is_crowded = false;
        if self.waiting.len() == self.waiting.capacity() {
            merge_settles(&mut self.waiting);
            is_crowded = self.waiting.len() > self.waiting.capacity() / 2;
        }
        self.waiting.push(settled);
        is_crowded
    }

    /// Calls `each` with all settlements, merged and sorted, and removes them.
    pub(super) fn drain(&mut self, each: impl FnMut(Settled)) {
        merge_settles(&mut self.waiting);
        self.has_stored = false;
        self.waiting.drain(..).for_each(each);
    }

    /// Ends a commit. No batch waits for settlements any more, unless some are left here, or `are_some_left` in groups.
    pub(super) const fn end_commit(&mut self, are_some_left: bool) {
        if !are_some_left && !self.has_stored {
            self.awaited = None;
        }
    }

    /// Notes that a message of a queue is delivered before its commit.
    pub(super) fn note_delivered_early(&mut self, queue: u64, offset: u64) {
        match self.watermarks.last_mut().filter(|last| last.0 == queue) {
            Some(last) => last.1 = last.1.max(offset),
            None => {
                if self.watermarks.len() == self.watermarks.capacity() {
                    self.merge_watermarks();
                }
                self.watermarks.push((queue, offset));
            }
        }
    }

    /// Calls `each` with the watermarks, one per queue, until it returns `false` for lack of space. Returns whether all
    /// were written.
    pub(super) fn drain_watermarks(&mut self, mut each: impl FnMut(u64, u64) -> bool) -> bool {
        self.merge_watermarks();
        while let Some(&(queue, offset)) = self.watermarks.last() {
            if !each(queue, offset) {
                return false;
            }
            self.watermarks.pop();
        }
        true
    }

    /// Keeps only the highest watermark of each queue.
    fn merge_watermarks(&mut self) {
        sort(&mut self.watermarks);
        self.watermarks.dedup_by(|next, kept| {
            let same = next.0 == kept.0;
            if same {
                kept.1 = kept.1.max(next.1);
            }
            same
        });
    }
}

/// Sorts settlements and merges adjacent ones.
///
/// No offset may be settled twice: recovery would reject the record.
pub(super) fn merge_settles(settles: &mut Vec<Settled>) {
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
