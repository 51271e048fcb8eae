//! Browses a queue: lists its messages in order without taking or changing them.
//!
//! Messages that only the log has are returned as a run of offsets, which the caller requests from the log.
//! Browsing changes neither the queue nor any count.

use super::backlog::EntryContent;
use super::record::Records;
use crate::deliveries::Deliveries;
use leveret_core::command::QueueId;
use leveret_core::error::{Fault, ReplyCode};
use leveret_core::mem::{FifoPool, MessageId};

/// Maximum number of queue entries that one browse request passes.
const ENTRIES_MAX: u32 = 20_000;
/// Maximum number of messages that one browse request returns.
pub const BROWSED_MAX: u32 = 100;

/// A run of messages in the log, to be read for browsing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogRun {
    pub(crate) queue: QueueId,
    pub(crate) incarnation: u64,
    pub(crate) start: u64,
    pub(crate) count: u32,
    /// Messages with smaller offsets may have been delivered before.
    pub(crate) redelivered_below: u64,
}

/// One message of a queue, or a run in the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Browsed {
    /// A message in memory, and whether it may have been delivered before.
    InMemory(MessageId, bool),
    /// A run of messages that only the log has.
    InLog(LogRun),
}

/// The result of browsing a queue.
#[derive(Debug)]
pub struct BrowseResult {
    /// Number of ready messages of the queue.
    pub ready: u32,
    /// The requested messages in order. The list ends before the message at which it would change from memory
    /// to the log; a run in the log is alone in the list.
    pub seen: Vec<Browsed>,
}

/// Progress of a browse request.
struct BrowseProgress {
    seen: Vec<Browsed>,
    /// Number of messages still to be skipped.
    skip: u32,
    /// Number of entries passed.
    entries: u32,
}

impl Records {
    /// Returns up to `count` messages of a queue from position `from` on, counted from 0.
    ///
    /// # Errors
    /// The position is behind more than [`ENTRIES_MAX`] entries.
    pub(crate) fn browse(
        &self,
        pool: &FifoPool,
        deliveries: &Deliveries,
        queue: QueueId,
        from: u32,
        count: u32,
    ) -> Result<Vec<Browsed>, Fault> {
        let mut progress = BrowseProgress { seen: Vec::new(), skip: from, entries: 0 };
        let mut levels = self.levels(queue);
        while levels
            .next()
            .is_some_and(|level| self.browse_level(pool, deliveries, level, count, &mut progress))
        {}
        if progress.seen.is_empty() && progress.entries >= ENTRIES_MAX {
            let text = format_args!("a queue cannot be browsed that far from its front");
            return Err(Fault::new(ReplyCode::PreconditionFailed, text));
        }
        Ok(progress.seen)
    }

    /// Browses a queue or one of its levels. Returns whether the next level is to be browsed too.
    fn browse_level(
        &self,
        pool: &FifoPool,
        deliveries: &Deliveries,
        queue: QueueId,
        count: u32,
        progress: &mut BrowseProgress,
    ) -> bool {
        let record = &self.slab[queue.index()];
        let BrowseProgress { seen, skip, entries } = progress;
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
                EntryContent::InMemory(message) => Browsed::InMemory(message, was_requeued.unwrap_or(false)),
                EntryContent::InMemoryAndLog(message, offset) => {
                    Browsed::InMemory(message, was_delivered(offset))
                }
                EntryContent::AbsentRun(start, run) => {
                    let start = start + u64::from(skipped);
                    let redelivered_below = match was_requeued {
                        Some(true) => u64::MAX,
                        _ => record.durable_index.redelivered_below(),
                    };
                    let incarnation = record.durable_index.incarnation();
                    let count = (run - skipped).min(count);
                    Browsed::InLog(LogRun { queue, incarnation, start, count, redelivered_below })
                }
            };
            let is_in_log = matches!(one, Browsed::InLog(_));
            must_continue = false;
            if is_in_log && !seen.is_empty() {
                return false;
            }
            seen.push(one);
            must_continue = !is_in_log && (seen.len() as u32) < count;
            must_continue
        };
        record.backlog.for_each_entry(pool, deliveries, &mut each);
        must_continue
    }
}
