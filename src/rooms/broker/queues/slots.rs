//! The slots of delayed exchanges: when the slot of each level begins.
//!
//! Always true: a slot with messages in the log has its time from the first of them, and none is opened
//! before all times are known.

use super::page_in::Page;
use super::queue::Rank;
use super::sleepers::{Slot, UNKNOWN, delay_ms, start_ms};
use super::state::Queues;
use crate::broker::Context;
use crate::command::QueueId;
use crate::mem::MessageId;
use crate::wire::field::Table;
use crate::wire::props::Properties;

/// Bytes of properties whose reading is as much work as one step.
const BYTES_PER_UNIT: usize = 512;

impl Queues {
    pub(crate) fn register_slot(&mut self, level: QueueId, slot: Slot) {
        let record = &mut self.slab[level.index()];
        let key = slot.key();
        if record.times.due_ms == UNKNOWN || record.times.due_ms <= key {
            return;
        }
        record.times.due_ms = key;
        let queues = &self.slab;
        self.sleepers.add(key, level, || {
            let all = queues.iter().filter(|(_, record)| record.sleeps_for.is_some());
            let all = all.map(|(index, record)| (record.times.due_ms, QueueId::from_index(index)));
            all.filter(|(key, _)| *key < UNKNOWN)
        });
        self.sleepers.note_change();
    }

    /// Notes when a message came to a slot.
    pub(crate) fn note_sleeper(&self, cx: &mut Context<'_>, message: MessageId) {
        if cx.messages.arrived_ms(message) == 0 {
            cx.messages.set_arrived_ms(message, cx.journal.time_ms().max(1));
        }
    }

    /// At a start: notes a slot with messages in the log, whose first message is to be read for its time.
    #[cold]
    pub(crate) fn note_slot_restored(&mut self, level: QueueId) {
        self.slab[level.index()].times.due_ms = UNKNOWN;
        self.sleepers.unknown += 1;
        self.want_peek(level);
    }

    /// Notes the time of a slot whose first message was read.
    #[cold]
    pub(crate) fn slot_peeked(&mut self, level: QueueId, page: &Page<'_>) {
        let headers = Properties::trusted(page.properties).headers().unwrap_or(Table::EMPTY);
        let due_ms = page.enqueued_ms.saturating_add(delay_ms(headers));
        let slot = match self.slab[level.index()].rank {
            Rank::Level { priority: number, .. } => Slot { number, start_ms: start_ms(number, due_ms) },
            Rank::Plain | Rank::Lowest { .. } => Slot { number: 0, start_ms: page.enqueued_ms },
        };
        self.know_slot(level);
        self.register_slot(level, slot);
    }

    fn know_slot(&mut self, level: QueueId) {
        let record = &mut self.slab[level.index()];
        if record.times.due_ms == UNKNOWN {
            record.times.due_ms = u64::MAX;
            self.sleepers.unknown -= 1;
        }
    }

    /// Ends a read for a slot, with or without a message.
    #[cold]
    pub(crate) fn slot_fetched(&mut self, level: QueueId) {
        self.sleepers.note_change();
        let record = &self.slab[level.index()];
        match record.times.due_ms == UNKNOWN && !record.dying {
            true if record.backlog.ready() > 0 => self.want_peek(level),
            true => self.know_slot(level),
            false => {}
        }
    }

    /// When a message in a slot is due, in milliseconds of broker time.
    pub(crate) fn due_ms(&mut self, cx: &mut Context<'_>, message: MessageId) -> u64 {
        let properties = cx.messages.properties(message, &mut self.scratch.properties);
        cx.work.charge(properties.len() / BYTES_PER_UNIT);
        let headers = Properties::trusted(properties).headers().unwrap_or(Table::EMPTY);
        cx.messages.arrived_ms(message).saturating_add(delay_ms(headers))
    }
}
