//! Browses a queue: lists its messages in order without taking or changing them. Finds selected messages of it.
//!
//! Messages that only the log has are returned as a run of offsets, which the caller requests from the log.
//! Browsing changes neither the queue nor any count.

use core::ops::Range;

use leveret_core::command::QueueId;
use leveret_core::error::{Fault, ReplyCode};
use leveret_core::mem::{FifoPool, MessageId, Messages};

use super::backlog::EntryContent;
use super::message_keys::{MessageKey, MessageKeys};
use super::record::Records;
use crate::deliveries::Deliveries;

/// Maximum number of queue entries that one browse request passes.
const ENTRIES_MAX: u32 = 20_000;
/// Maximum number of messages that one browse request returns.
pub const BROWSED_MAX: u32 = 100;

/// A run of messages in the log, to be read for browsing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogRun {
    /// The queue or level.
    pub queue: QueueId,
    /// The number that identifies it in the log.
    pub incarnation: u64,
    /// Offset of the first message.
    pub start: u64,
    /// The number of messages.
    pub count: u32,
    /// Messages with smaller offsets may have been delivered before.
    pub redelivered_below: u64,
    /// The key of the first message.
    pub first_key: MessageKey,
}

impl LogRun {
    /// Removes the messages with offsets below this one.
    pub(crate) fn skip_to(&mut self, offset: u64) {
        let skipped = offset.saturating_sub(self.start).min(self.count.into());
        (self.start, self.count) = (self.start + skipped, self.count - skipped as u32);
    }
}

/// A message of a queue in memory, as an operator sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BrowsedMessage {
    /// The message.
    pub message: MessageId,
    /// Whether the message may have been delivered before.
    pub is_redelivered: bool,
    /// The key by which the operator can name the message.
    pub key: MessageKey,
}

/// A ready message of a queue that was selected by its key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SelectedMessage {
    /// The queue, or the level that has the message.
    pub level: QueueId,
    /// The index of its entry among the entries of the level.
    pub entry: u32,
    /// The message; one that only the log has is a run of 1.
    pub content: EntryContent,
    /// Whether the message is one of several of its entry.
    pub(crate) is_in_run: bool,
}

/// One message of a queue, or a run in the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Browsed {
    /// A message in memory.
    InMemory(BrowsedMessage),
    /// A run of messages that only the log has.
    InLog(LogRun),
}

/// The result of browsing a queue.
#[derive(Debug)]
pub struct BrowseResult {
    /// Number of ready messages of the queue.
    pub ready: u32,
    /// The requested messages in order.
    pub seen: Vec<Browsed>,
}

/// Progress of a browse request.
struct BrowseProgress {
    seen: Vec<Browsed>,
    /// Number of messages still to be found.
    left: u32,
    /// Number of messages still to be skipped.
    skip: u32,
    /// Number of entries passed.
    entries: u32,
}

/// What the entries of queues refer to.
#[derive(Clone, Copy)]
pub(crate) struct EntryPools<'q> {
    /// The entries.
    pub pool: &'q FifoPool,
    /// The records of requeued messages.
    pub deliveries: &'q Deliveries,
}

impl Records {
    /// Returns the messages of a queue at these positions, counted from 0.
    ///
    /// # Errors
    /// The position is behind more than [`ENTRIES_MAX`] entries.
    pub(crate) fn browse(
        &self,
        pools: EntryPools<'_>,
        keys: &mut MessageKeys,
        messages: &mut Messages,
        queue: QueueId,
        positions: Range<u32>,
    ) -> Result<Vec<Browsed>, Fault> {
        let left = positions.end.saturating_sub(positions.start);
        let mut progress = BrowseProgress { seen: Vec::new(), left, skip: positions.start, entries: 0 };
        let mut levels = self.levels(queue);
        while levels
            .next()
            .is_some_and(|level| self.browse_level(pools, keys, messages, level, &mut progress))
        {}
        if progress.seen.is_empty() && progress.entries >= ENTRIES_MAX {
            return Err(too_far());
        }
        Ok(progress.seen)
    }

    /// Returns the keys of up to `count` messages at the front of a queue.
    pub(crate) fn first_keys(
        &self,
        pools: EntryPools<'_>,
        keys: &mut MessageKeys,
        messages: &mut Messages,
        queue: QueueId,
        count: u32,
    ) -> Vec<MessageKey> {
        let (mut found, count) = (Vec::new(), count as usize);
        for level in self.levels(queue) {
            let record = &self.slab[level.index()];
            let mut each = |content: EntryContent, _: Option<bool>| {
                match content {
                    EntryContent::InMemory(message) => {
                        found.push(keys.key_of(messages, record, message, None));
                    }
                    EntryContent::InMemoryAndLog(_, offset) => found.push(keys.key_in_log(record, offset)),
                    EntryContent::AbsentRun(start, run) => {
                        let offsets = (start..start + u64::from(run)).take(count - found.len());
                        found.extend(offsets.map(|offset| keys.key_in_log(record, offset)));
                    }
                }
                found.len() < count
            };
            if count > 0 {
                record.backlog.for_each_entry(pools.pool, pools.deliveries, &mut each);
            }
            if found.len() >= count {
                break;
            }
        }
        found
    }

    /// Returns the ready messages of a queue that these keys name, in the order of the queue. Only the first
    /// [`ENTRIES_MAX`] entries are examined, as when the messages were browsed.
    pub(crate) fn find_selected(
        &self,
        pools: EntryPools<'_>,
        keys: &MessageKeys,
        messages: &Messages,
        queue: QueueId,
        selected: &[MessageKey],
    ) -> Vec<SelectedMessage> {
        let (mut found, mut entries) = (Vec::new(), 0);
        for level in self.levels(queue) {
            let record = &self.slab[level.index()];
            let offsets = keys.offsets(record, selected);
            let in_memory = keys.messages(messages, record, selected);
            let (mut left, mut entry) = (offsets.len() + in_memory.len(), 0);
            if left == 0 {
                continue;
            }
            let mut each = |content: EntryContent, _: Option<bool>| {
                let before = found.len();
                let mut note = |content, is_in_run| {
                    found.push(SelectedMessage { level, entry, content, is_in_run });
                };
                match content {
                    EntryContent::InMemory(message) => {
                        if in_memory.binary_search_by_key(&message.index(), |one| one.index()).is_ok() {
                            note(content, false);
                        }
                    }
                    EntryContent::InMemoryAndLog(_, offset) => {
                        if offsets.binary_search(&offset).is_ok() {
                            note(content, false);
                        }
                    }
                    EntryContent::AbsentRun(start, run) => {
                        let end = start + u64::from(run);
                        let from = offsets.partition_point(|offset| *offset < start);
                        let here = offsets[from..].iter().take_while(|offset| **offset < end);
                        here.for_each(|offset| note(EntryContent::AbsentRun(*offset, 1), run > 1));
                    }
                }
                (entry, entries, left) = (entry + 1, entries + 1, left - (found.len() - before));
                left > 0 && entries < ENTRIES_MAX
            };
            record.backlog.for_each_entry(pools.pool, pools.deliveries, &mut each);
            if entries >= ENTRIES_MAX {
                break;
            }
        }
        found
    }

    /// Browses a queue or one of its levels. Returns whether the next level is to be browsed too.
    fn browse_level(
        &self,
        pools: EntryPools<'_>,
        keys: &mut MessageKeys,
        messages: &mut Messages,
        queue: QueueId,
        progress: &mut BrowseProgress,
    ) -> bool {
        let record = &self.slab[queue.index()];
        let BrowseProgress { seen, left, skip, entries } = progress;
        let mut must_continue = true;
        let mut each = |content: EntryContent, was_requeued: Option<bool>| {
            *entries += 1;
            let message_count = if let EntryContent::AbsentRun(_, run) = content { run } else { 1 };
            if *skip >= message_count {
                *skip -= message_count;
                must_continue = *entries < ENTRIES_MAX;
                return must_continue;
            }
            let skipped = core::mem::take(skip);
            let was_delivered =
                |offset| was_requeued.unwrap_or_else(|| offset < record.durable_index.redelivered_below());
            let one = match content {
                EntryContent::InMemory(message) => Browsed::InMemory(BrowsedMessage {
                    message,
                    is_redelivered: was_requeued.unwrap_or(false),
                    key: keys.key_of(messages, record, message, None),
                }),
                EntryContent::InMemoryAndLog(message, offset) => Browsed::InMemory(BrowsedMessage {
                    message,
                    is_redelivered: was_delivered(offset),
                    key: keys.key_in_log(record, offset),
                }),
                EntryContent::AbsentRun(start, run) => {
                    let start = start + u64::from(skipped);
                    let redelivered_below = match was_requeued {
                        Some(true) => u64::MAX,
                        _ => record.durable_index.redelivered_below(),
                    };
                    let incarnation = record.durable_index.incarnation();
                    let count = (run - skipped).min(*left);
                    let first_key = keys.key_in_log(record, start);
                    Browsed::InLog(LogRun { queue, incarnation, start, count, redelivered_below, first_key })
                }
            };
            *left -= if let Browsed::InLog(run) = one { run.count } else { 1 };
            seen.push(one);
            must_continue = *left > 0 && *entries < ENTRIES_MAX;
            must_continue
        };
        record.backlog.for_each_entry(pools.pool, pools.deliveries, &mut each);
        must_continue
    }
}

#[cold]
fn too_far() -> Fault {
    let text = format_args!("a queue cannot be browsed that far from its front");
    Fault::new(ReplyCode::PreconditionFailed, text)
}
