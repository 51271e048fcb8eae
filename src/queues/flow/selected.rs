//! Finds and removes ready messages that an operator selected, at any position of their queue.
//!
//! # Invariants
//! - Messages that were not selected keep their order, and are not marked as redelivered.

use leveret_core::command::QueueId;
use leveret_core::mem::{ENTRIES_PER_CHUNK, MessageId, Messages};
use leveret_storage::Context;

use super::Queues;
use crate::records::{EntryPools, MessageKey, MessageKeys, PurgedItem, SelectedMessage};

impl Queues {
    /// Returns the keys of browsed messages, for the random number of the process.
    pub const fn message_keys_mut(&mut self) -> &mut MessageKeys {
        &mut self.keys
    }

    /// Returns the keys of up to `count` messages at the front of a queue.
    pub fn first_keys(&mut self, messages: &mut Messages, queue: QueueId, count: u32) -> Vec<MessageKey> {
        let pools = EntryPools { pool: &self.pool, deliveries: &self.deliveries };
        self.records.first_keys(pools, &mut self.keys, messages, queue, count)
    }

    /// Returns the ready messages of a queue that these keys name, in the order of the queue. A message that is
    /// too far from the front to be browsed is not found.
    pub fn find_selected(
        &self,
        messages: &Messages,
        queue: QueueId,
        keys: &[MessageKey],
    ) -> Vec<SelectedMessage> {
        let pools = EntryPools { pool: &self.pool, deliveries: &self.deliveries };
        self.records.find_selected(pools, &self.keys, messages, queue, keys)
    }

    /// Returns the key of a selected message that the log has.
    pub fn key_in_log(&self, level: QueueId, offset: u64) -> MessageKey {
        self.keys.key_in_log(&self.records[level], offset)
    }

    /// Returns the key of a selected message that only memory has.
    pub fn key_in_memory(
        &mut self,
        messages: &mut Messages,
        level: QueueId,
        message: MessageId,
    ) -> MessageKey {
        self.keys.key_of(messages, &self.records[level], message, None)
    }

    /// Returns the maximum number of chunks of queue entries that the removal of these messages takes: a
    /// message inside a run of absent messages leaves two runs.
    pub fn removal_chunks(selected: &[SelectedMessage]) -> usize {
        let of_levels = selected.chunk_by(|one, next| one.level == next.level);
        let chunks = of_levels.map(|of_level| match of_level.iter().filter(|one| one.is_in_run).count() {
            0 => 0,
            // A level has runs in two of its lists, and each list may begin a chunk.
            runs => runs.div_ceil(ENTRIES_PER_CHUNK) + 2,
        });
        chunks.sum()
    }

    /// Removes the ready messages of a queue that these keys name, and settles them. Returns their number.
    #[cold]
    pub fn remove_selected(&mut self, cx: &mut Context<'_>, queue: QueueId, keys: &[MessageKey]) -> usize {
        let selected = self.find_selected(cx.messages, queue, keys);
        for of_level in selected.chunk_by(|one, next| one.level == next.level) {
            let level = of_level[0].level;
            let positions: Vec<_> = of_level.iter().map(|message| (message.entry, message.content)).collect();
            let (pool, deliveries) = (&mut self.pool, &mut self.deliveries);
            let backlog = &mut self.records[level].backlog;
            for item in backlog.remove_at(pool, deliveries, cx.messages, &positions) {
                match item {
                    PurgedItem::Delivered(delivery) => self.settle_delivered(cx, level, &delivery),
                    PurgedItem::Entry(content) => self.purge_entry(cx, level, content),
                }
                self.releases += 1;
            }
            // Another message may be the first one now.
            if self.records[level].settings.may_expire {
                self.schedule(cx, level);
            }
            self.unblock_front(level);
        }
        selected.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::EntryContent;

    /// Each level of a priority queue has lists of its own, so each may need chunks of its own.
    #[test]
    fn a_removal_reserves_chunks_for_every_level() {
        let inside = |level: usize, entry| {
            let (level, content) = (QueueId::from_index(level), EntryContent::AbsentRun(7, 1));
            SelectedMessage { level, entry, content, is_in_run: true }
        };
        let of_levels: Vec<_> = (0..10).map(|level| inside(level, 0)).collect();
        assert_eq!(Queues::removal_chunks(&of_levels), 30);
        let of_one: Vec<_> = (0..22).map(|entry| inside(1, entry)).collect();
        assert_eq!(Queues::removal_chunks(&of_one), 4);
        let whole = SelectedMessage { is_in_run: false, ..of_one[0] };
        assert_eq!(Queues::removal_chunks(&[whole, whole]), 0);
    }
}
