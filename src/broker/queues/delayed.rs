//! Delayed messages: a hidden queue for each delayed exchange, whose levels are the slots of a timing wheel
//! (`delay_wheel`).
//!
//! Always true: a message waits in a slot as in any queue: confirmed when it is durable, out of memory when
//! that is short, restored at a start, gone with its exchange; a slot with messages in the log has its time from the
//! first of them, and none is opened before all times are known.

use super::delay_wheel::{Held, NARROWEST_PUBLISHED, Slot, UNKNOWN, delay_ms, start_ms};
use super::fetch::Page;
use super::push::LevelChoice;
use super::state::Queues;
use crate::Context;
use crate::queue::{Rank, SLOTS};
use crate::quota::{Declarer, Quota};
use leveret_amqp::field::Table;
use leveret_amqp::props::Properties;
use leveret_core::command::QueueId;
use leveret_core::journal::Journal;
use leveret_core::mem::MessageId;

impl Queues {
    /// Retires the hidden queue of an exchange with its levels, whose slots lose their times; gives the
    /// messages held, to be forgotten.
    #[cold]
    pub(crate) fn retire_delayed_queue(&mut self, journal: &mut Journal, queue: QueueId) -> Vec<Held> {
        let record = &mut self.records[queue];
        record.dying = true;
        if record.logged.is_on() {
            journal.queue_gone(record.logged.incarnation());
        }
        let records = &self.records;
        let gone = self.delay_wheel.take_held_of(|queue| records[queue].dying);
        let mut unknown = 0;
        let all: heapless::Vec<QueueId, { SLOTS as usize + 1 }> = self.records.levels(queue).collect();
        for level in all {
            let due_ms = core::mem::replace(&mut self.records[level].times.due_ms, u64::MAX);
            unknown += u32::from(due_ms == UNKNOWN);
        }
        self.delay_wheel.unknown -= unknown;
        self.delay_wheel.note_change();
        gone
    }

    /// The level for a message of this delay: the slot of its time, or the hidden queue itself as long as the
    /// slots are not known, and when there is no room for that slot (`DelayWheel::take_lacks_slot`).
    pub(crate) fn slot_for(
        &mut self,
        cx: &mut Context<'_>,
        quota: &mut Quota,
        queue: QueueId,
        said: LevelChoice,
    ) -> QueueId {
        let now_ms = cx.journal.time_ms();
        if self.delay_wheel.unknown > 0 {
            self.register_slot(queue, Slot { number: 0, start_ms: now_ms });
            return queue;
        }
        let at_ms = self.delay_wheel.stands_at_ms(now_ms);
        let since_ms = if said.came_ms == 0 { now_ms } else { said.came_ms };
        let slot = Slot::of(since_ms.saturating_add(said.delay_ms), at_ms, NARROWEST_PUBLISHED, u32::MAX);
        let level = self.level_of_slot(quota, queue, slot);
        self.delay_wheel.lacks_slot |= level.is_none();
        level.unwrap_or(queue)
    }

    /// Whether there was no room for the slot of the message being published, which cannot come in.
    pub(crate) const fn take_lacks_slot(&mut self) -> bool {
        core::mem::replace(&mut self.delay_wheel.lacks_slot, false)
    }

    /// The level of a slot, whose time is known from now on; `None`: there is no room for the level.
    pub(crate) fn level_of_slot(&mut self, quota: &mut Quota, queue: QueueId, slot: Slot) -> Option<QueueId> {
        let declarer = self.records[queue].declared.declarer.unwrap_or_else(Declarer::nobody);
        let level = self.records.level_at(quota, queue, slot.number, Some(declarer)).ok()?;
        self.register_slot(level, slot);
        Some(level)
    }

    pub(crate) fn register_slot(&mut self, level: QueueId, slot: Slot) {
        let record = &mut self.records[level];
        let key = slot.key();
        if record.times.due_ms == UNKNOWN || record.times.due_ms <= key {
            return;
        }
        record.times.due_ms = key;
        let queues = &self.records;
        self.delay_wheel.add(key, level, || {
            let all = queues.iter().filter(|(_, record)| record.delayed_exchange.is_some());
            let all = all.map(|(index, record)| (record.times.due_ms, QueueId::from_index(index)));
            all.filter(|(key, _)| *key < UNKNOWN)
        });
        self.delay_wheel.note_change();
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
        self.records[level].times.due_ms = UNKNOWN;
        self.delay_wheel.unknown += 1;
        self.want_peek(level);
    }

    /// Notes the time of a slot whose first message was read.
    #[cold]
    pub(crate) fn slot_peeked(&mut self, level: QueueId, page: &Page<'_>) {
        let headers = Properties::trusted(page.properties).headers().unwrap_or(Table::EMPTY);
        let due_ms = page.enqueued_ms.saturating_add(delay_ms(headers));
        let slot = match self.records[level].rank {
            Rank::Level { priority: number, .. } => Slot { number, start_ms: start_ms(number, due_ms) },
            Rank::Plain | Rank::Lowest { .. } => Slot { number: 0, start_ms: page.enqueued_ms },
        };
        self.know_slot(level);
        self.register_slot(level, slot);
    }

    fn know_slot(&mut self, level: QueueId) {
        let record = &mut self.records[level];
        if record.times.due_ms == UNKNOWN {
            record.times.due_ms = u64::MAX;
            self.delay_wheel.unknown -= 1;
        }
    }

    /// Ends a read for a slot, with or without a message.
    #[cold]
    pub(crate) fn slot_fetched(&mut self, level: QueueId) {
        self.delay_wheel.note_change();
        let record = &self.records[level];
        match record.times.due_ms == UNKNOWN && !record.dying {
            true if record.backlog.ready() > 0 => self.want_peek(level),
            true => self.know_slot(level),
            false => {}
        }
    }

    /// When a message in a slot is due, in milliseconds of broker time.
    pub(crate) fn due_ms(&mut self, cx: &mut Context<'_>, message: MessageId) -> u64 {
        let properties = cx.messages.properties(message, &mut self.scratch.properties);
        cx.work.charge_octets(properties.len());
        let headers = Properties::trusted(properties).headers().unwrap_or(Table::EMPTY);
        cx.messages.arrived_ms(message).saturating_add(delay_ms(headers))
    }
}
