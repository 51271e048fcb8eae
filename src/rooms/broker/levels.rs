//! Queues with priorities: a level for each priority that messages came with.
//!
//! ```text
//! queue, x-max-priority 9 ── highest ──→ level 9 ── below ──→ level 4 ── below ──→ the queue itself: 0
//! ```
//!
//! Why it exists: a level is a record of its own among the queues, so that nothing which is done with the
//! messages of one (their order, the log, memory, what comes back, what expires) knows of priorities. What
//! concerns the queue as a whole asks here: which message goes first, how many there are in all.
//!
//! Always true: a level has no name, no consumer and no binding, is shown nowhere, and goes with its queue;
//! the levels of a queue stand on its chain, from the highest down to the queue itself, which is the lowest.
//! The log knows levels by numbers that were kept for them when the queue was declared, so that nothing is to
//! be written when the first message of a priority comes. Where there is no room for a level, its messages go
//! to the next lower one.

use core::ops::Range;

use crate::command::QueueId;
use crate::error::Fault;
use crate::journal::{Definition, Journal};
use crate::mem::MessageId;
use crate::wire::field::Table;
use crate::wire::props::Properties;

use super::arguments::max_priority;
use super::faults::out_of;
use super::job::Job;
use super::lanes::Logged;
use super::queue::{Front, Queue, Rank};
use super::quota::{Declared, Declarer};
use super::routing::DELAYED;
use super::sleepers::{SLOTS, delay_ms};
use super::work::Work;
use super::{Broker, Context};

/// Bytes of properties that are as much work as one step, when they are looked into.
const BYTES_PER_UNIT: usize = 512;

/// Levels walked through that are as much work as one step.
const LEVELS_PER_UNIT: u32 = 16;

/// What the log knows the levels of a defined queue by, from that of priority 1 on, or the slots of a delayed
/// exchange, the hidden queue of which it knows by the exchange's own version.
pub fn levels_of(definition: &Definition<'_>) -> Range<u64> {
    match *definition {
        Definition::Queue { levels_from, arguments, .. } if levels_from != 0 => {
            levels_from..levels_from + u64::from(max_priority(Table::trusted(arguments)))
        }
        Definition::Exchange { version, kind: DELAYED, .. } => version + 1..version + 1 + u64::from(SLOTS),
        _ => 0..0,
    }
}

/// What a queue is before the first message came; what the log knows its levels by, unless it is new.
pub(super) fn first_rank(journal: &mut Journal, record: &Queue, levels_from: u64) -> Rank {
    let max_priority = record.settings.max_priority;
    let levels_from = match levels_from {
        _ if max_priority == 0 => return Rank::Plain,
        _ if !record.logged.is_on() => 0,
        0 => journal.next_versions(max_priority.into()),
        known => known,
    };
    Rank::Lowest { highest: None, levels_from }
}

/// What of a message says to which level it goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct LevelChoice {
    pub(super) priority: u8,
    /// See [`delay_ms`].
    pub(super) delay_ms: u64,
    /// When it came, in milliseconds of broker time; 0 for now.
    pub(super) came_ms: u64,
}

impl LevelChoice {
    pub(super) fn of(properties: &Properties<'_>, came_ms: u64) -> Self {
        let priority = properties.priority().unwrap_or(0);
        Self { priority, delay_ms: delay_ms(properties.headers().unwrap_or(Table::EMPTY)), came_ms }
    }
}

impl Broker {
    // ---- what belongs together

    /// The queue that this is a level of; one that is none is itself.
    #[inline]
    pub(super) fn whole(&self, queue: QueueId) -> QueueId {
        match self.queues[queue.index()].rank {
            Rank::Level { queue, .. } => queue,
            Rank::Plain | Rank::Lowest { .. } => queue,
        }
    }

    /// The levels of a whole queue, from the highest on; without priorities it is its only one.
    pub(super) fn levels(&self, queue: QueueId) -> impl Iterator<Item = QueueId> {
        core::iter::successors(Some(self.highest_level(queue)), |level| {
            self.levels_walked.set(self.levels_walked.get().saturating_add(1));
            self.below(*level)
        })
    }

    fn highest_level(&self, queue: QueueId) -> QueueId {
        match self.queues[queue.index()].rank {
            Rank::Lowest { highest: Some(highest), .. } => highest,
            Rank::Plain | Rank::Lowest { highest: None, .. } | Rank::Level { .. } => queue,
        }
    }

    fn below(&self, level: QueueId) -> Option<QueueId> {
        match self.queues[level.index()].rank {
            Rank::Level { below, .. } => Some(below),
            Rank::Plain | Rank::Lowest { .. } => None,
        }
    }

    /// Places of the queue, on all its levels, are named to another broker from now on.
    #[cold]
    pub(super) fn note_named(&mut self, queue: QueueId) {
        let mut at = Some(self.highest_level(queue));
        while let Some(level) = at {
            self.queues[level.index()].is_named = true;
            at = self.below(level);
        }
    }

    /// The sum over all levels of the queue that this is, or is one of.
    #[inline]
    pub(super) fn in_all(&self, queue: QueueId, of: impl Fn(&Queue) -> u64) -> u64 {
        let record = &self.queues[queue.index()];
        if record.rank == Rank::Plain {
            return of(record);
        }
        self.levels(self.whole(queue)).map(|level| of(&self.queues[level.index()])).sum()
    }

    /// Messages of a queue that are ready, those of all its levels.
    #[inline]
    pub(super) fn ready_in(&self, queue: QueueId) -> u32 {
        self.in_all(queue, |record| record.backlog.ready().into()) as u32
    }

    /// Messages ready in those levels of a queue from which one that comes into this level would wait.
    pub(super) fn ready_before(&self, level: QueueId) -> u32 {
        let mut before = 0;
        for higher in self.levels(self.whole(level)) {
            before += self.queues[higher.index()].backlog.ready();
            if higher == level {
                break;
            }
        }
        before
    }

    /// Charges the levels that were walked through since this was last called.
    #[inline]
    pub(super) fn charge_levels(&self, work: &mut Work) {
        work.charge((self.levels_walked.take() / LEVELS_PER_UNIT) as usize);
    }

    /// The highest level of a whole queue that has a message; itself if none has.
    #[inline]
    pub(super) fn first_level(&self, queue: QueueId) -> QueueId {
        if self.queues[queue.index()].rank == Rank::Plain {
            return queue;
        }
        let mut levels = self.levels(queue);
        levels.find(|level| self.queues[level.index()].backlog.ready() > 0).unwrap_or(queue)
    }

    // ---- in

    /// Puts into the place of each queue with priorities its level for this message.
    #[cold]
    pub(super) fn choose_levels(
        &mut self,
        cx: &mut Context<'_>,
        message: MessageId,
        targets: &mut [QueueId],
    ) {
        if targets.iter().all(|target| self.queues[target.index()].rank == Rank::Plain) {
            return;
        }
        let properties = cx.messages.properties(message, &mut self.scratch.properties);
        cx.work.charge(properties.len() / BYTES_PER_UNIT);
        let said = LevelChoice::of(&Properties::trusted(properties), cx.messages.arrived_ms(message));
        self.choose_levels_for(cx, said, targets);
    }

    /// The same for a message that says this.
    #[cold]
    pub(super) fn choose_levels_for(
        &mut self,
        cx: &mut Context<'_>,
        said: LevelChoice,
        targets: &mut [QueueId],
    ) {
        for target in targets {
            let record = &self.queues[target.index()];
            if record.sleeps_for.is_some() {
                *target = self.slot_for(cx, *target, said);
            } else if let Rank::Lowest { .. } = record.rank {
                let priority = said.priority.min(record.settings.max_priority);
                // Whoever declared the queue answers for its levels.
                let declarer = record.declarer.unwrap_or_else(Declarer::nobody);
                *target = self.level_for(*target, priority, Some(declarer));
            }
        }
    }

    /// The level of a whole queue for this priority, or the next lower one if there is no room for another.
    fn level_for(&mut self, queue: QueueId, priority: u8, declarer: Option<Declarer>) -> QueueId {
        self.level_at(queue, priority, declarer).unwrap_or_else(|at| {
            self.log_no_level(queue, priority);
            at
        })
    }

    /// The level of a whole queue for this priority.
    ///
    /// # Errors
    /// There is no room for another; this is the next lower one.
    pub(super) fn level_at(
        &mut self,
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
        match self.add_level(queue, priority, at, declarer) {
            Ok(level) => {
                self.hang(queue, above, level);
                Ok(level)
            }
            Err(_) => Err(at),
        }
    }

    fn priority_of(&self, level: QueueId) -> u8 {
        match self.queues[level.index()].rank {
            Rank::Level { priority, .. } => priority,
            Rank::Plain | Rank::Lowest { .. } => 0,
        }
    }

    fn add_level(
        &mut self,
        queue: QueueId,
        priority: u8,
        below: QueueId,
        declarer: Option<Declarer>,
    ) -> Result<QueueId, Fault> {
        let whole = &self.queues[queue.index()];
        let vhost = whole.vhost;
        let mut record = Queue::new(vhost, "", &[], whole.settings.of_level());
        (record.durable, record.hidden, record.ttl_since_ms) = (whole.durable, true, whole.ttl_since_ms);
        if let Rank::Lowest { levels_from: from @ 1.., .. } = whole.rank {
            record.logged = Logged::as_incarnation(from + u64::from(priority) - 1);
        }
        (record.rank, record.sleeps_for) = (Rank::Level { queue, priority, below }, whole.sleeps_for);
        record.is_named = whole.is_named;
        self.declare_quota(Declared::Queue, 0, (vhost, declarer))?;
        record.declarer = declarer;
        record.serial = self.routing.revision();
        let buries = record.buries_logged();
        let Ok(index) = self.queues.insert(record) else { return Err(out_of("queues_max")) };
        self.buriers += u32::from(buries);
        self.access.hold_vhost(vhost);
        self.routing.revise();
        Ok(QueueId::from_index(index))
    }

    fn hang(&mut self, queue: QueueId, above: Option<QueueId>, level: QueueId) {
        match &mut self.queues[above.unwrap_or(queue).index()].rank {
            Rank::Lowest { highest, .. } => *highest = Some(level),
            Rank::Level { below, .. } => *below = level,
            Rank::Plain => panic!("only a queue with priorities has levels"),
        }
    }

    /// Somebody has to know why the order is not kept; once a minute is enough.
    fn log_no_level(&mut self, queue: QueueId, priority: u8) {
        let minute = self.watch.now_s / 60;
        if self.no_level_logged_minute.replace(minute) != Some(minute) {
            log::warn!(
                "queue '{}': queues_max has no room for its priority {priority}, which takes a place like a \
                 queue: these messages wait among those of the next lower one",
                self.queues[queue.index()].name.escape_debug()
            );
        }
    }

    // ---- out

    /// A message came, or may go: puts the whole queue on the ready list if it has something to do there.
    #[cold]
    pub(super) fn wake_whole(&mut self, queue: QueueId) {
        let queue = self.whole(queue);
        if !self.queues[queue.index()].on_ready_list && self.level_to_deliver(queue).is_some() {
            self.queues[queue.index()].on_ready_list = true;
            self.ready.push_back(&mut self.queues, queue.index(), |queue| &mut queue.ready_links);
        }
    }

    /// The level of a whole queue with priorities whose first message is to go now, if one is.
    #[cold]
    pub(super) fn level_to_deliver(&self, queue: QueueId) -> Option<QueueId> {
        let whole = &self.queues[queue.index()];
        let level = self.first_level(queue);
        let first = &self.queues[level.index()];
        let may_go = first.backlog.ready() > 0 && first.returning == 0 && first.front == Front::Free;
        let is_wanted = !whole.eligible.is_empty() && whole.returning == 0 && !whole.dying;
        (may_go && is_wanted).then_some(level)
    }

    /// Whether what stands first in this level stands first in its queue.
    pub(super) fn is_first_level(&self, level: QueueId) -> bool {
        self.queues[level.index()].rank == Rank::Plain || self.first_level(self.whole(level)) == level
    }

    /// Messages of a queue with priorities went: what stands first now may have to expire, or may go where
    /// what stood first before had to wait.
    #[cold]
    pub(super) fn look_at_first_level(&mut self, queue: QueueId) {
        let whole = self.whole(queue);
        let first = self.first_level(whole);
        if self.queues[first.index()].settings.may_expire {
            self.note_shed_anew(first);
        }
        self.wake(whole);
    }

    // ---- with the whole

    /// The levels go by what is said of their queue.
    #[cold]
    pub(super) fn renew_levels(&mut self, journal: &Journal, queue: QueueId) {
        let mut level = self.highest_level(queue);
        while level != queue {
            self.renew_settings(journal, level);
            level = self.below(level).unwrap_or(queue);
        }
    }

    /// Takes all ready messages out of the levels above the lowest, for jobs to drop; says how many.
    #[cold]
    pub(super) fn purge_levels(&mut self, queue: QueueId) -> u32 {
        let (mut level, mut count) = (self.highest_level(queue), 0);
        while level != queue {
            let (messages, parts) = self.detach_messages(level);
            if messages > 0 {
                count += messages;
                self.queue_job(Job::Purge { queue: level, parts });
            } else {
                self.end_returning(level);
            }
            level = self.below(level).unwrap_or(queue);
        }
        count
    }

    /// The queue is retired: its levels go with it.
    #[cold]
    pub(super) fn retire_levels(&mut self, journal: &mut Journal, queue: QueueId) {
        let mut level = self.highest_level(queue);
        while level != queue {
            let record = &mut self.queues[level.index()];
            record.dying = true;
            self.buriers -= u32::from(record.buries_logged());
            if record.logged.is_on() {
                journal.queue_gone(record.logged.incarnation());
            }
            self.append_spilled_gone(journal, level.index());
            self.queue_job(Job::Queue(level));
            level = self.below(level).unwrap_or(queue);
        }
    }

    /// The record of a level is about to be freed; of which queue it was, for that may be done with, too.
    #[cold]
    pub(super) fn take_off(&mut self, level: QueueId) -> Option<QueueId> {
        let Rank::Level { queue, below, .. } = self.queues[level.index()].rank else { return None };
        let above = self.levels(queue).find(|above| self.below(*above) == Some(level));
        match &mut self.queues[above.unwrap_or(queue).index()].rank {
            Rank::Lowest { highest, .. } => *highest = Some(below).filter(|below| *below != queue),
            Rank::Level { below: next, .. } => *next = below,
            Rank::Plain => panic!("only a queue with priorities has levels"),
        }
        Some(queue)
    }

    // ---- at a start

    /// How many more queues and levels there is room for.
    pub const fn queues_room(&self) -> usize {
        self.queues.room()
    }

    /// The level of a queue that was just declared again, for this priority, of which the log has something.
    pub fn restore_level(&mut self, queue: QueueId, priority: u8) -> Option<QueueId> {
        let level = self.level_for(queue, priority, None);
        (self.priority_of(level) == priority).then_some(level)
    }
}
