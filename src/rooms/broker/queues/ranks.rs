//! Levels are made, follow the settings of their queue, and go with it; which level a message goes to.
//!
//! Always true: a level is made when the first message of its priority comes; where there is no room for one, its messages
//! go to the next lower one.

use core::ops::Range;

use crate::command::{QueueId, VhostId};
use crate::error::Fault;
use crate::journal::{Definition, Journal};
use crate::mem::MessageId;
use crate::wire::field::Table;
use crate::wire::props::Properties;

use super::backlog::Purged;
use super::lanes::Logged;
use super::queue::{Peeked, Queue, Rank};
use super::sleepers::{SLOTS, delay_ms};
use super::state::Queues;
use crate::broker::Context;
use crate::broker::arguments::{QueueSettings, max_priority};
use crate::broker::faults::out_of;
use crate::broker::quota::{Declared, Declarer, Quota, Room};
use crate::broker::topology::DELAYED;

/// Bytes of properties whose reading is as much work as one step.
const BYTES_PER_UNIT: usize = 512;

/// The log numbers of a defined queue's levels, from that of priority 1 on, or of a delayed exchange's slots:
/// the log knows the hidden queue of an exchange by the exchange's own version.
pub fn levels_of(definition: &Definition<'_>) -> Range<u64> {
    match *definition {
        Definition::Queue { levels_from, arguments, .. } if levels_from != 0 => {
            levels_from..levels_from + u64::from(max_priority(Table::trusted(arguments)))
        }
        Definition::Exchange { version, kind: DELAYED, .. } => version + 1..version + 1 + u64::from(SLOTS),
        _ => 0..0,
    }
}

/// The rank of a queue without a message; `levels_from` is what the log knows its levels by, unless it is
/// new.
pub(crate) fn first_rank(journal: &mut Journal, record: &Queue, levels_from: u64) -> Rank {
    let max_priority = record.settings.max_priority;
    let levels_from = match levels_from {
        _ if max_priority == 0 => return Rank::Plain,
        _ if !record.logged.is_on() => 0,
        0 => journal.next_versions(max_priority.into()),
        known => known,
    };
    Rank::Lowest { highest: None, levels_from }
}

impl Queue {
    /// The record of a delayed exchange's hidden queue, which the log knows by the exchange's version: 0 for
    /// an exchange that is not in the log.
    pub(crate) fn sleepers(
        journal: &mut Journal,
        vhost: VhostId,
        settings: QueueSettings,
        version: u64,
        durable: bool,
    ) -> Self {
        let settings = QueueSettings { max_priority: SLOTS, ..settings };
        let mut record = Self::new(vhost, "", &[], settings);
        (record.declared.durable, record.hidden) = (durable, true);
        record.logged = Logged::as_incarnation(version);
        record.rank = first_rank(journal, &record, version + u64::from(version != 0));
        record
    }
}

/// What in a message decides to which level it goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LevelChoice {
    pub(crate) priority: u8,
    /// The delay of the message in milliseconds: see [`delay_ms`].
    pub(crate) delay_ms: u64,
    /// When the message came, in milliseconds of broker time; 0 for now.
    pub(crate) came_ms: u64,
}

impl LevelChoice {
    pub(crate) fn of(properties: &Properties<'_>, came_ms: u64) -> Self {
        let priority = properties.priority().unwrap_or(0);
        Self { priority, delay_ms: delay_ms(properties.headers().unwrap_or(Table::EMPTY)), came_ms }
    }
}

impl Queues {
    // ---- in

    /// Replaces each target queue that has priorities by its level for this message.
    #[cold]
    pub(crate) fn choose_levels(
        &mut self,
        cx: &mut Context<'_>,
        quota: &mut Quota,
        message: MessageId,
        targets: &mut [QueueId],
    ) {
        if targets.iter().all(|target| self.slab[target.index()].rank == Rank::Plain) {
            return;
        }
        let properties = cx.messages.properties(message, &mut self.scratch.properties);
        cx.work.charge(properties.len() / BYTES_PER_UNIT);
        let said = LevelChoice::of(&Properties::trusted(properties), cx.messages.arrived_ms(message));
        self.choose_levels_for(cx, quota, said, targets);
    }

    /// Replaces each target queue that has priorities by its level for a message of this priority and delay.
    #[cold]
    pub(crate) fn choose_levels_for(
        &mut self,
        cx: &mut Context<'_>,
        quota: &mut Quota,
        said: LevelChoice,
        targets: &mut [QueueId],
    ) {
        for target in targets {
            let record = &self.slab[target.index()];
            if record.sleeps_for.is_some() {
                *target = self.slot_for(cx, quota, *target, said);
            } else if let Rank::Lowest { .. } = record.rank {
                let priority = said.priority.min(record.settings.max_priority);
                // Whoever declared the queue answers for its levels.
                let declarer = record.declared.declarer.unwrap_or_else(Declarer::nobody);
                *target = self.level_for(quota, *target, priority, Some(declarer));
            }
        }
    }

    /// The level of a whole queue for this priority, or the next lower one if there is no room for another
    /// level.
    fn level_for(
        &mut self,
        quota: &mut Quota,
        queue: QueueId,
        priority: u8,
        declarer: Option<Declarer>,
    ) -> QueueId {
        self.level_at(quota, queue, priority, declarer).unwrap_or_else(|at| {
            self.log_no_level(queue, priority);
            at
        })
    }

    /// The level of a whole queue for this priority.
    ///
    /// # Errors
    /// There is no room for another level; this is the next lower one.
    pub(crate) fn level_at(
        &mut self,
        quota: &mut Quota,
        queue: QueueId,
        priority: u8,
        declarer: Option<Declarer>,
    ) -> Result<QueueId, QueueId> {
        let (mut above, mut at) = (None, queue);
        for level in self.levels(queue) {
            at = level;
            if self.priority_of(level) <= priority {
                break;
            }
            above = Some(level);
        }
        if self.priority_of(at) == priority {
            return Ok(at);
        }
        match self.add_level(quota, queue, priority, at, declarer) {
            Ok(level) => {
                self.hang(queue, above, level);
                Ok(level)
            }
            Err(_) => Err(at),
        }
    }

    fn add_level(
        &mut self,
        quota: &mut Quota,
        queue: QueueId,
        priority: u8,
        below: QueueId,
        declarer: Option<Declarer>,
    ) -> Result<QueueId, Fault> {
        let whole = &self.slab[queue.index()];
        let vhost = whole.vhost;
        let mut record = Queue::new(vhost, "", &[], whole.settings.of_level());
        (record.declared.durable, record.hidden, record.times.ttl_since_ms) =
            (whole.declared.durable, true, whole.times.ttl_since_ms);
        if let Rank::Lowest { levels_from: from @ 1.., .. } = whole.rank {
            record.logged = Logged::as_incarnation(from + u64::from(priority) - 1);
        }
        (record.rank, record.sleeps_for) = (Rank::Level { queue, priority, below }, whole.sleeps_for);
        record.is_named = whole.is_named;
        quota.declare(Declared::Queue, 0, (vhost, declarer), Room { queues: self.slab.room() })?;
        record.declared.declarer = declarer;
        record.serial = self.next_serial();
        let buries = record.buries_logged();
        let Ok(index) = self.slab.insert(record) else { return Err(out_of("queues_max")) };
        self.dead_lettering += u32::from(buries);
        Ok(QueueId::from_index(index))
    }

    fn hang(&mut self, queue: QueueId, above: Option<QueueId>, level: QueueId) {
        match &mut self.slab[above.unwrap_or(queue).index()].rank {
            Rank::Lowest { highest, .. } => *highest = Some(level),
            Rank::Level { below, .. } => *below = level,
            Rank::Plain => panic!("only a queue with priorities has levels"),
        }
    }

    /// Logs, once a minute at most, why the order of priorities is not kept.
    fn log_no_level(&mut self, queue: QueueId, priority: u8) {
        if self.is_minute_to_say() {
            log::warn!(
                "queue '{}': queues_max has no room for its priority {priority}, which takes a place like a \
                 queue: these messages wait among those of the next lower one",
                self.slab[queue.index()].name.escape_debug()
            );
        }
    }

    // ---- with the whole

    /// Gives a queue and its levels new settings.
    pub(crate) fn renew(&mut self, journal: &Journal, queue: QueueId, settings: QueueSettings) {
        self.renew_one(journal, queue, settings);
        let mut level = self.highest_level(queue);
        while level != queue {
            self.renew_one(journal, level, settings.of_level());
            level = self.below(level).unwrap_or(queue);
        }
    }

    fn renew_one(&mut self, journal: &Journal, queue: QueueId, mut settings: QueueSettings) {
        let record = &mut self.slab[queue.index()];
        // A message in the queue may have a time to live of its own.
        settings.may_expire |= record.settings.may_expire;
        if settings == record.settings {
            return;
        }
        if record.settings.message_ttl_ms == u64::MAX {
            record.times.ttl_since_ms = journal.time_ms().max(1);
        }
        let (expired_ms, went_on) = (record.settings.expires_ms, record.buries_logged());
        record.settings = settings;
        record.audience.set_single_active(settings.single_active);
        if !record.times.peeked.is_wanted() {
            record.times.peeked = Peeked::NOTHING;
        }
        let goes_on = record.buries_logged();
        let is_picky = record.is_picky();
        if settings.expires_ms != expired_ms {
            record.times.unused_until_ms = u64::MAX;
            self.touch_queue(journal, queue);
        }
        self.dead_lettering = self.dead_lettering - u32::from(went_on) + u32::from(goes_on);
        self.has_deadlines |= settings.may_expire;
        if is_picky {
            self.note_shed_anew(queue);
        }
    }

    /// Takes all ready messages out of a queue and its levels, each part for the caller to drop; says how
    /// many.
    pub(crate) fn purge(&mut self, queue: QueueId) -> (u32, Vec<(QueueId, Box<Purged>)>) {
        let (mut level, mut count, mut parts) = (self.highest_level(queue), 0, Vec::new());
        loop {
            let (messages, taken) = self.detach_messages(level);
            if messages > 0 || level == queue {
                count += messages;
                parts.push((level, taken));
            } else {
                self.end_returning(level);
            }
            let Some(below) = self.below(level) else { return (count, parts) };
            level = below;
        }
    }

    /// Takes all ready messages out of a queue or a level, for a job to drop.
    pub(crate) fn detach_messages(&mut self, queue: QueueId) -> (u32, Box<Purged>) {
        let record = &mut self.slab[queue.index()];
        let (count, parts) = record.backlog.detach();
        // The queue stays until all its messages are dropped.
        record.returning += 1;
        (count, Box::new(parts))
    }

    /// Retires a queue with its levels; gives the levels, for the caller to clear away.
    #[cold]
    pub(crate) fn retire_levels(&mut self, journal: &mut Journal, queue: QueueId) -> Vec<QueueId> {
        let (mut level, mut retired) = (self.highest_level(queue), Vec::new());
        while level != queue {
            let record = &mut self.slab[level.index()];
            record.dying = true;
            self.dead_lettering -= u32::from(record.buries_logged());
            if record.logged.is_on() {
                journal.queue_gone(record.logged.incarnation());
            }
            self.append_spilled_gone(journal, level.index());
            retired.push(level);
            level = self.below(level).unwrap_or(queue);
        }
        retired
    }

    /// Takes a level, whose record is about to be freed, off the chain of its queue; gives the queue, whose
    /// record may be free to go, too.
    #[cold]
    pub(crate) fn take_off(&mut self, level: QueueId) -> Option<QueueId> {
        let Rank::Level { queue, below, .. } = self.slab[level.index()].rank else { return None };
        let above = self.levels(queue).find(|above| self.below(*above) == Some(level));
        match &mut self.slab[above.unwrap_or(queue).index()].rank {
            Rank::Lowest { highest, .. } => *highest = Some(below).filter(|below| *below != queue),
            Rank::Level { below: next, .. } => *next = below,
            Rank::Plain => panic!("only a queue with priorities has levels"),
        }
        Some(queue)
    }

    // ---- at a start

    /// At a start: the level for this priority, of which the log has messages, of a queue that was just
    /// declared again.
    pub(crate) fn restore_level(
        &mut self,
        quota: &mut Quota,
        queue: QueueId,
        priority: u8,
    ) -> Option<QueueId> {
        let level = self.level_for(quota, queue, priority, None);
        (self.priority_of(level) == priority).then_some(level)
    }
}
