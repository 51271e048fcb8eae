//! Delayed messages: a hidden queue for each delayed exchange, whose levels are the slots of a timing wheel
//! (`sleepers`).
//!
//! Always true: a message waits in a slot as in any queue: confirmed when it is durable, out of memory when
//! that is short, restored at a start, gone with its exchange.

use super::ranks::LevelChoice;
use super::sleepers::{Held, PLAIN, SLOTS, Slot, UNKNOWN};
use super::state::Queues;
use crate::broker::Context;
use crate::broker::quota::{Declarer, Quota};
use crate::command::{ExchangeId, QueueId};
use crate::journal::Journal;

impl Queues {
    /// Retires the hidden queue of an exchange with its levels, whose slots lose their times; gives the
    /// messages held, to be forgotten.
    #[cold]
    pub(crate) fn retire_sleepers(&mut self, journal: &mut Journal, queue: QueueId) -> Vec<Held> {
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
            let due_ms = core::mem::replace(&mut self.slab[level.index()].times.due_ms, u64::MAX);
            unknown += u32::from(due_ms == UNKNOWN);
        }
        self.sleepers.unknown -= unknown;
        self.sleepers.note_change();
        gone
    }

    /// Notes that this hidden queue holds the messages of this delayed exchange.
    pub(crate) fn give_sleepers(&mut self, queue: QueueId, exchange: ExchangeId) {
        self.slab[queue.index()].sleeps_for = Some(exchange);
    }

    /// Delayed messages in a hidden queue.
    pub(crate) fn asleep_in(&self, queue: QueueId) -> u64 {
        self.in_all(queue, |record| u64::from(record.backlog.ready()) + u64::from(record.unsettled.count))
    }

    /// The level for a message of this delay: the slot of its time, or the hidden queue itself as long as the
    /// slots are not known, and when there is no room for that slot (`Sleepers::lacks_slot`).
    pub(crate) fn slot_for(
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

    /// Whether there was no room for the slot of the message being published, which cannot come in.
    pub(crate) const fn lacks_slot(&mut self) -> bool {
        core::mem::replace(&mut self.sleepers.lacks_slot, false)
    }

    /// The level of a slot, whose time is known from now on; `None`: there is no room for the level.
    pub(crate) fn level_of_slot(&mut self, quota: &mut Quota, queue: QueueId, slot: Slot) -> Option<QueueId> {
        let declarer = self.slab[queue.index()].declared.declarer.unwrap_or_else(Declarer::nobody);
        let level = self.level_at(quota, queue, slot.number, Some(declarer)).ok()?;
        self.register_slot(level, slot);
        Some(level)
    }
}
