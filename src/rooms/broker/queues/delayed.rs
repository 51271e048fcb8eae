//! What delayed exchanges keep: a hidden queue for each, whose levels are the slots of a timing wheel (`sleepers`).
//!
//! Always true: what waits in a slot waits as in any queue: confirmed when it is durable, out of memory when that is
//! short, restored at a start, gone with its exchange.

use super::levels::LevelChoice;
use super::page_in::Page;
use super::queue::Rank;
use super::sleepers::{Held, PLAIN, SLOTS, Slot, UNKNOWN, delay_ms, start_ms};
use super::state::Queues;
use crate::broker::Context;
use crate::broker::quota::{Declarer, Quota};
use crate::command::{ExchangeId, QueueId};
use crate::journal::Journal;
use crate::mem::MessageId;
use crate::wire::field::Table;
use crate::wire::props::Properties;

/// Bytes of properties that are as much work as one step, when they are looked into.
const BYTES_PER_UNIT: usize = 512;

impl Queues {
    /// The hidden queue of an exchange is retired with its levels: what of it was held is to be forgotten, and its slots
    /// have no time any more.
    #[cold]
    pub(in crate::broker) fn retire_sleepers(&mut self, journal: &mut Journal, queue: QueueId) -> Vec<Held> {
        let record = &mut self.slab[queue.index()];
        record.dying = true;
        if record.logged.is_on() {
            journal.queue_gone(record.logged.incarnation());
        }
        self.append_spilled_gone(journal, queue.index());
        let slab = &self.slab;
        let gone = self.sleepers.take_held_of(|queue| slab[queue.index()].dying);
        let mut unknown = 0;
        let all: heapless::Vec<QueueId, { SLOTS as usize + 1 }> = self.levels(queue).collect();
        for level in all {
            let due_ms = core::mem::replace(&mut self.slab[level.index()].due_ms, u64::MAX);
            unknown += u32::from(due_ms == UNKNOWN);
        }
        self.sleepers.unknown -= unknown;
        self.sleepers.note_change();
        gone
    }

    /// The exchange has its hidden queue.
    pub(in crate::broker) fn give_sleepers(&mut self, queue: QueueId, exchange: ExchangeId) {
        self.slab[queue.index()].sleeps_for = Some(exchange);
    }

    /// Messages that sleep in a hidden queue.
    pub(in crate::broker) fn asleep_in(&self, queue: QueueId) -> u64 {
        self.in_all(queue, |record| u64::from(record.backlog.ready()) + u64::from(record.unsettled))
    }

    /// The level for a message that says this: the slot of its time, or the hidden queue itself as long as
    /// the slots are not known, and when there is no room for that one (`Sleepers::lacks_slot`).
    pub(in crate::broker) fn slot_for(
        &mut self,
        cx: &mut Context<'_>,
        quota: &mut Quota,
        queue: QueueId,
        said: LevelChoice,
    ) -> QueueId {
        let now_ms = cx.journal.time_ms();
        if self.sleepers.unknown > 0 {
            self.register_slot(queue, Slot { number: 0, start_ms: now_ms });
            return queue;
        }
        let at_ms = self.sleepers.stands_at_ms(now_ms);
        let since_ms = if said.came_ms == 0 { now_ms } else { said.came_ms };
        let slot = Slot::of(since_ms.saturating_add(said.delay_ms), at_ms, PLAIN, u32::MAX);
        let level = self.level_of_slot(quota, queue, slot);
        self.sleepers.lacks_slot |= level.is_none();
        level.unwrap_or(queue)
    }

    /// Whether there was no room for a slot, as of the message that is under way: it cannot come in.
    pub(in crate::broker) const fn lacks_slot(&mut self) -> bool {
        core::mem::replace(&mut self.sleepers.lacks_slot, false)
    }

    /// The level of a slot, which has its time from now on; `None`: there is no room for it.
    pub(in crate::broker) fn level_of_slot(
        &mut self,
        quota: &mut Quota,
        queue: QueueId,
        slot: Slot,
    ) -> Option<QueueId> {
        let declarer = self.slab[queue.index()].declarer.unwrap_or_else(Declarer::nobody);
        let level = self.level_at(quota, queue, slot.number, Some(declarer)).ok()?;
        self.register_slot(level, slot);
        Some(level)
    }

    pub(in crate::broker) fn register_slot(&mut self, level: QueueId, slot: Slot) {
        let record = &mut self.slab[level.index()];
        let key = slot.key();
        if record.due_ms == UNKNOWN || record.due_ms <= key {
            return;
        }
        record.due_ms = key;
        let queues = &self.slab;
        self.sleepers.add(key, level, || {
            let all = queues.iter().filter(|(_, record)| record.sleeps_for.is_some());
            let all = all.map(|(index, record)| (record.due_ms, QueueId::from_index(index)));
            all.filter(|(key, _)| *key < UNKNOWN)
        });
        self.sleepers.note_change();
    }

    /// A message came to a slot: it is noted when.
    pub(in crate::broker) fn note_sleeper(&self, cx: &mut Context<'_>, message: MessageId) {
        if cx.messages.arrived_ms(message) == 0 {
            cx.messages.set_arrived_ms(message, cx.journal.time_ms().max(1));
        }
    }

    /// The log has something of a slot: its first message says when that begins.
    #[cold]
    pub(in crate::broker) fn note_slot_restored(&mut self, level: QueueId) {
        self.slab[level.index()].due_ms = UNKNOWN;
        self.sleepers.unknown += 1;
        self.want_peek(level);
    }

    /// The first message of a slot was read.
    #[cold]
    pub(in crate::broker) fn slot_peeked(&mut self, level: QueueId, page: &Page<'_>) {
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
        if record.due_ms == UNKNOWN {
            record.due_ms = u64::MAX;
            self.sleepers.unknown -= 1;
        }
    }

    /// A read for a slot is over, whatever came of it.
    #[cold]
    pub(in crate::broker) fn slot_fetched(&mut self, level: QueueId) {
        self.sleepers.note_change();
        let record = &self.slab[level.index()];
        match record.due_ms == UNKNOWN && !record.dying {
            true if record.backlog.ready() > 0 => self.want_peek(level),
            true => self.know_slot(level),
            false => {}
        }
    }

    /// When a message that came to a slot is due, in milliseconds of broker time.
    pub(in crate::broker) fn due_ms(&mut self, cx: &mut Context<'_>, message: MessageId) -> u64 {
        let properties = cx.messages.properties(message, &mut self.scratch.properties);
        cx.work.charge(properties.len() / BYTES_PER_UNIT);
        let headers = Properties::trusted(properties).headers().unwrap_or(Table::EMPTY);
        cx.messages.arrived_ms(message).saturating_add(delay_ms(headers))
    }
}
