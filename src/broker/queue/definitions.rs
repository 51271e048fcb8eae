//! How queues are written down, and what the log has of them at a start.
//!
//! Always true: a declaration is answered when it is durable; requeue counts are written by one write of a
//! queue at a time.

use super::records::Records;
use crate::restored::Contents;
use crate::{Access, Context};
use leveret_core::command::QueueId;
use leveret_core::journal::{Definition, Journal, Mode};

impl Records {
    /// Writes down that a queue exists, or that it is gone with all its messages.
    pub(crate) fn append_queue(&mut self, cx: &mut Context<'_>, access: &Access, index: usize, exists: bool) {
        let record = &self.slab[index];
        let incarnation = record.logged.incarnation();
        if incarnation == 0 {
            return;
        }
        let (key, value) = self.definition_of_queue(access, index, exists);
        if !exists {
            cx.journal.queue_gone(incarnation);
        }
        let batch = cx.journal.define(key, value);
        self.slab[index].logged.set_defined(batch);
        cx.await_batch(batch);
    }

    /// The key of a durable queue's definition, and its value if it `exists`.
    pub(crate) fn definition_of_queue(
        &self,
        access: &Access,
        index: usize,
        exists: bool,
    ) -> (Box<[u8]>, Option<Box<[u8]>>) {
        let record = &self.slab[index];
        let definition = Definition::Queue {
            vhost: access.vhost_name(record.vhost),
            name: &record.name,
            incarnation: record.logged.incarnation(),
            auto_delete: record.declared.auto_delete,
            is_rebuilt: record.declared.is_rebuilt,
            levels_from: record.levels_from(),
            arguments: &record.requeues.join(&record.arguments),
        };
        (definition.key(), exists.then(|| definition.value()))
    }

    /// Notes how often a message was requeued, in a queue that counts it.
    #[cold]
    pub(crate) fn note_requeue(
        &mut self,
        journal: &mut Journal,
        access: &Access,
        queue: QueueId,
        offset: u64,
        count: u16,
    ) {
        if self.slab[queue.index()].requeues.note(offset, count) {
            self.requeue_counts_due.push(queue);
        }
        self.write_requeue_counts(journal, access);
    }

    /// Writes the requeue counts, unless the last write is not durable yet.
    #[inline]
    pub(crate) fn write_requeue_counts(&mut self, journal: &mut Journal, access: &Access) {
        if self.requeue_counts_due.may_be_written(journal.durable()) && !journal.is_grouping() {
            self.write_requeue_counts_now(journal, access);
        }
    }

    /// Writes the requeue counts, whether the last write is durable or not.
    #[cold]
    pub(crate) fn write_requeue_counts_now(&mut self, journal: &mut Journal, access: &Access) {
        if journal.mode() == Mode::On && (!journal.has_room_to_define() || journal.is_crowded()) {
            return;
        }
        for queue in self.requeue_counts_due.take() {
            // The queue may have been deleted since, and another be in its place.
            let Some(record) = self.slab.get_mut(queue.index()) else { continue };
            let is_due = record.requeues.take_due();
            if is_due && journal.mode() == Mode::On && !record.dying && record.logged.is_on() {
                let (key, value) = self.definition_of_queue(access, queue.index(), true);
                self.requeue_counts_due.note_written(journal.define(key, value));
            }
        }
    }

    /// Uses up offsets, as if as many messages had come to every durable queue and gone before they were
    /// written. For the simulator, which has no days to wait for that.
    #[cfg(debug_assertions)]
    pub(crate) fn pass_offsets(&mut self, journal: &mut Journal, count: u64) {
        for index in 0..self.slab.places() {
            let Some(queue) = self.slab.get_mut(index).filter(|queue| !queue.dying) else { continue };
            if queue.logged.is_on() {
                let start = queue.logged.pass_offsets(count);
                let queue = queue.logged.incarnation();
                journal.settle_stored(leveret_core::journal::Settled { queue, start, end: start + count });
            }
        }
    }

    /// Before a clean stop, when all else is written: resets watermarks that ran ahead of the deliveries, so
    /// that messages nobody was sent are not called redelivered, and writes the requeue counts. Says whether
    /// there was anything to write.
    pub(crate) fn reset_watermarks(&mut self, journal: &mut Journal, access: &Access) -> bool {
        if journal.mode() != Mode::On {
            return false;
        }
        for (_, queue) in self.slab.iter() {
            let reset = queue.logged.watermark_reset().filter(|_| !queue.dying && !journal.is_crowded());
            if let Some((taken_below, watermark)) = reset {
                journal.reset_watermark(queue.logged.incarnation(), taken_below, watermark);
            }
        }
        self.write_requeue_counts_now(journal, access);
        !journal.is_empty()
    }

    /// At a start: tells a queue what the log has for it.
    pub(crate) fn restore_contents(&mut self, queue: QueueId, contents: &Contents) {
        let record = &mut self.slab[queue.index()];
        record.logged.restore(contents);
        if record.requeues.forget_from(contents.next_offset) {
            self.requeue_counts_due.push(queue);
        }
        // The bytes in the log include names and properties: this is the best guess there is.
        record.backlog.set_stored_bytes(contents.bytes.saturating_sub(contents.count * 64));
    }
}
