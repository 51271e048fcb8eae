//! One inspection: the store as a start would read it, and which of its messages cannot be read.
//!
//! Always true: a message counts as unreadable when a start would have it in a queue and could not deliver it.

use std::collections::BTreeMap;

use leveret_core::journal::{is_group, is_transient};
use leveret_storage::{Body, FileDisk, Log, OpenError, QueueIndex, Range, RangeSet, Report};

/// A store, with every message of it read once.
#[derive(Debug)]
pub(crate) struct Inspection {
    pub(super) log: Log,
    pub(super) report: Report,
    /// What is damaged, one sentence each.
    pub(super) damage: Vec<String>,
    /// Offsets of messages that cannot be read, by the incarnation of their queue.
    pub(super) unreadable: BTreeMap<u64, RangeSet>,
}

impl Inspection {
    /// Reads the store on `disk`.
    ///
    /// # Errors
    /// It cannot be read, or there is none.
    pub(crate) fn of(disk: &mut FileDisk) -> Result<Self, OpenError> {
        let (mut log, report) = Log::inspect(disk)?;
        let (mut unreadable, mut bytes) = (BTreeMap::new(), Vec::new());
        for queue in queues_of(&log) {
            let (mut found, mut large) = (RangeSet::default(), Vec::new());
            let mut insert = |offset| found.insert(Range { start: offset, end: offset + 1 }, |_| {});
            let read = log.for_each_message(disk, queue, |_, offset, message| {
                match message.body {
                    Body::Inline(_) => insert(offset),
                    Body::Chunked { body, chunks, .. } => large.push((offset, body, chunks)),
                }
                Ok(())
            });
            read.map_err(OpenError::Unreadable)?;
            for (offset, body, chunks) in large {
                if (0..chunks).all(|index| log.read_chunk(disk, (body, index), &mut bytes).is_some()) {
                    insert(offset);
                }
            }
            let mut missing = RangeSet::default();
            for range in log.index().queues().get(&queue).into_iter().flat_map(|known| known.live_ranges()) {
                found.insert(range, |part| missing.insert(part, |_| {}));
            }
            if !missing.is_empty() {
                unreadable.insert(queue, missing);
            }
        }
        Ok(Self { damage: report.describe_damage(), log, report, unreadable })
    }

    /// Whether all of it can be read.
    pub(crate) fn is_whole(&self) -> bool {
        self.damage.is_empty() && self.unreadable.is_empty()
    }

    /// The file of the newest segment.
    pub(crate) fn newest_slot(&self) -> Option<u32> {
        self.log.index().segments().values().next_back().map(|segment| segment.slot)
    }

    /// How many messages cannot be read, each once for every queue that has it.
    pub(super) fn count_unreadable(&self) -> u64 {
        self.unreadable.values().flat_map(RangeSet::ranges).map(|range| range.end - range.start).sum()
    }

    /// Drops damage that an earlier inspection did not find: a broker was writing there. Returns how many sentences and queues
    /// it dropped.
    pub(super) fn keep_damage_of(&mut self, earlier: &Self) -> usize {
        let before = self.damage.len() + self.unreadable.len();
        self.damage.retain(|line| earlier.damage.contains(line));
        for (queue, offsets) in &mut self.unreadable {
            let was_unreadable =
                |offset| earlier.unreadable.get(queue).is_some_and(|set| set.contains(offset));
            let mut lasting = RangeSet::default();
            for offset in offsets.ranges().iter().flat_map(|range| range.start..range.end) {
                if was_unreadable(offset) {
                    lasting.insert(Range { start: offset, end: offset + 1 }, |_| {});
                }
            }
            *offsets = lasting;
        }
        self.unreadable.retain(|_, offsets| !offsets.is_empty());
        before - self.damage.len() - self.unreadable.len()
    }
}

/// The queues whose messages a start serves.
pub(super) fn queues_of(log: &Log) -> Vec<u64> {
    let is_served = |id: u64, queue: &QueueIndex| !queue.gone && !is_group(id) && !is_transient(id);
    let queues = log.index().queues().iter();
    queues.filter(|(id, queue)| is_served(**id, queue)).map(|(id, _)| *id).collect()
}
