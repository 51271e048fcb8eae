//! The records of all queues, found by place or by name, and how they begin and end.
//!
//! Always true: a name leads to one queue that is not deleted; a record stays in its place until nothing refers to it.

use core::cell::Cell;
use core::ops::{Index, IndexMut};

use super::record::{Peeked, Queue};
use super::requeue_counts::RequeueCountsDue;
use crate::arguments::QueueSettings;
use crate::consumers::QueueConsumers;
use crate::faults::out_of;
use crate::names::IndexTable;
use leveret_core::command::{ExchangeId, QueueId, VhostId};
use leveret_core::error::Fault;
use leveret_core::journal::{Journal, Mode};
use leveret_core::mem::{List, Slab};

/// All queue records, those of levels and of hidden queues included.
#[derive(Debug)]
pub(crate) struct Records {
    pub(super) slab: Slab<Queue>,
    table: IndexTable,
    /// The ready list: queues that can deliver now.
    pub(super) ready: List,
    /// Quorum queues whose delivery counts are to be written.
    pub(super) requeue_counts_due: RequeueCountsDue,
    /// Durable queues and levels that have dead letters.
    pub(super) dead_lettering: u32,
    /// Whether there ever was a message or queue that may expire.
    has_deadlines: bool,
    /// Queues ever made, which numbers them.
    serial: u64,
    /// Levels of queues with priorities that were walked through and not charged as work yet.
    pub(super) levels_walked: Cell<u32>,
}

impl Index<QueueId> for Records {
    type Output = Queue;

    #[inline]
    fn index(&self, queue: QueueId) -> &Queue {
        &self.slab[queue.index()]
    }
}

impl IndexMut<QueueId> for Records {
    #[inline]
    fn index_mut(&mut self, queue: QueueId) -> &mut Queue {
        &mut self.slab[queue.index()]
    }
}

impl Records {
    /// Room for this many queues and levels; `seed` keeps peers from choosing names that collide.
    pub(crate) fn with_capacity(queues: usize, seed: u64) -> Self {
        Self {
            slab: Slab::with_capacity(queues),
            table: IndexTable::with_capacity(queues, seed),
            ready: List::default(),
            requeue_counts_due: RequeueCountsDue::default(),
            dead_lettering: 0,
            has_deadlines: false,
            serial: 0,
            levels_walked: Cell::new(0),
        }
    }

    /// Queues, their levels and hidden queues included.
    pub(crate) const fn len(&self) -> usize {
        self.slab.len()
    }

    /// How many more queues and levels fit.
    pub(crate) const fn room(&self) -> usize {
        self.slab.room()
    }

    /// Places of queues ever used.
    pub(crate) const fn places(&self) -> usize {
        self.slab.places()
    }

    pub(crate) fn get(&self, place: usize) -> Option<&Queue> {
        self.slab.get(place)
    }

    pub(crate) fn get_mut(&mut self, place: usize) -> Option<&mut Queue> {
        self.slab.get_mut(place)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (usize, &Queue)> {
        self.slab.iter()
    }

    /// Unsettled or requeued messages that only the log has.
    pub(crate) fn absent(&self) -> u32 {
        self.slab.iter().map(|(_, queue)| queue.unsettled.absent + queue.backlog.returned_absent()).sum()
    }

    /// A number that no other queue has.
    pub(super) const fn next_serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    /// The consumers of a queue.
    #[inline]
    pub(crate) fn audience(&self, queue: QueueId) -> &QueueConsumers {
        &self.slab[queue.index()].audience
    }

    /// The consumers of a queue, to be changed.
    #[inline]
    pub(crate) fn audience_mut(&mut self, queue: QueueId) -> &mut QueueConsumers {
        &mut self.slab[queue.index()].audience
    }

    /// The queue of this name.
    pub(crate) fn find_queue(&self, vhost: VhostId, name: &str) -> Option<QueueId> {
        let is_it = |index: usize| self.slab[index].vhost == vhost && &*self.slab[index].name == name;
        self.table.find((vhost, name), is_it).map(QueueId::from_index)
    }

    /// Puts a queue at the end of a connection's exclusive queues.
    pub(crate) fn enter_owned(&mut self, owned: &mut List, queue: QueueId) {
        owned.push_back(&mut self.slab, queue.index(), |queue| &mut queue.listed.owner_links);
    }

    /// Takes a queue off the list of a connection's exclusive queues.
    pub(crate) fn leave_owned(&mut self, owned: &mut List, queue: QueueId) {
        owned.remove(&mut self.slab, queue.index(), |queue| &mut queue.listed.owner_links);
    }

    /// The bindings whose destination is this queue.
    pub(crate) fn bindings_mut(&mut self, queue: QueueId) -> &mut List {
        &mut self.slab[queue.index()].bindings
    }

    /// Adds a queue under its name. The caller counted it against the quotas.
    ///
    /// # Errors
    /// There is no room for another queue.
    pub(crate) fn insert(&mut self, mut record: Queue) -> Result<QueueId, Fault> {
        record.serial = self.next_serial();
        let (vhost, name) = (record.vhost, record.name.clone());
        self.dead_lettering += u32::from(record.dead_letters_logged());
        self.has_deadlines |= record.settings.may_expire;
        let index = self.slab.insert(record).map_err(|_| out_of("queues_max"))?;
        self.table.insert((vhost, &*name), index);
        Ok(QueueId::from_index(index))
    }

    /// Adds the hidden queue of a delayed exchange, which has no name. The caller counted it against the
    /// quotas.
    ///
    /// # Errors
    /// There is no room for another queue.
    pub(crate) fn insert_hidden(&mut self, mut record: Queue) -> Result<QueueId, Fault> {
        assert!(record.name.is_empty() && record.hidden, "nobody can name it");
        record.serial = self.next_serial();
        // Delayed messages need the clock from now on.
        self.has_deadlines = true;
        let index = self.slab.insert(record).map_err(|_| out_of("queues_max"))?;
        Ok(QueueId::from_index(index))
    }

    /// Whether some message in the log may expire, first or behind others, so that the broker time has to be
    /// told to the next life.
    pub(crate) fn has_stored_deadline(&self) -> bool {
        let waits = |queue: &Queue| queue.settings.may_expire || queue.delayed_exchange.is_some();
        self.slab.iter().any(|(_, queue)| waits(queue) && queue.logged.count() > 0)
    }

    /// Whether the broker had any message or queue so far that may expire.
    pub(crate) const fn has_deadlines(&self) -> bool {
        self.has_deadlines
    }

    /// Notes that messages of the queue may expire from now on.
    pub(crate) fn note_may_expire(&mut self, queue: QueueId) {
        // Delayed messages expire only after they are routed.
        let record = &mut self.slab[queue.index()];
        record.settings.may_expire = record.delayed_exchange.is_none();
        self.has_deadlines = true;
    }

    /// When the queue expires if nobody uses it.
    pub(crate) fn unused_until_ms(&self, journal: &Journal, queue: QueueId) -> u64 {
        let record = &self.slab[queue.index()];
        // A queue whose deletion cannot be written down stays.
        let may_go =
            record.audience.is_empty() && !(record.logged.is_on() && journal.mode() == Mode::Unwritable);
        if may_go { record.times.unused_until_ms } else { u64::MAX }
    }

    pub(crate) fn is_unused_for_too_long(&self, journal: &Journal, queue: QueueId) -> bool {
        self.unused_until_ms(journal, queue) <= journal.time_ms()
    }

    /// Notes that this hidden queue holds the messages of this delayed exchange.
    pub(crate) fn set_delayed_exchange(&mut self, queue: QueueId, exchange: ExchangeId) {
        self.slab[queue.index()].delayed_exchange = Some(exchange);
    }

    /// Takes the name of a queue away, and the queue off the ready list: nothing is delivered from it any more.
    pub(crate) fn retire(&mut self, queue: QueueId) {
        let record = &mut self.slab[queue.index()];
        assert!(!record.dying, "a queue is retired once");
        record.dying = true;
        self.dead_lettering -= u32::from(record.dead_letters_logged());
        self.table.remove((record.vhost, &*record.name), queue.index());
        self.leave_ready(queue);
    }

    /// Gives a queue, or a level, new settings; says whether they are others than before.
    pub(crate) fn set_settings(&mut self, now_ms: u64, queue: QueueId, mut settings: QueueSettings) -> bool {
        let record = &mut self.slab[queue.index()];
        // A message in the queue may have a time to live of its own.
        settings.may_expire |= record.settings.may_expire;
        if settings == record.settings {
            return false;
        }
        if record.settings.message_ttl_ms == u64::MAX {
            record.times.ttl_since_ms = now_ms.max(1);
        }
        if settings.expires_ms != record.settings.expires_ms {
            record.times.unused_until_ms = u64::MAX;
        }
        if !record.times.peeked.is_wanted() {
            record.times.peeked = Peeked::NOTHING;
        }
        let had_letters = record.dead_letters_logged();
        record.settings = settings;
        record.audience.set_single_active(settings.single_active);
        self.dead_lettering =
            self.dead_lettering - u32::from(had_letters) + u32::from(record.dead_letters_logged());
        self.has_deadlines |= settings.may_expire;
        true
    }

    /// Whether some durable queue or level has dead letters.
    pub(crate) const fn has_dead_lettering(&self) -> bool {
        self.dead_lettering > 0
    }

    /// Bytes that no record uses and the system holds memory for, about.
    pub(crate) const fn idle_bytes(&self) -> usize {
        self.slab.idle_bytes()
    }

    /// Gives idle memory back to the system.
    pub(crate) fn trim(&mut self) {
        self.slab.trim();
    }

    /// Takes a queue off the ready list, if it is there.
    pub(crate) fn leave_ready(&mut self, queue: QueueId) -> bool {
        let was_ready = core::mem::take(&mut self.slab[queue.index()].listed.is_ready);
        if was_ready {
            self.ready.remove(&mut self.slab, queue.index(), |queue| &mut queue.listed.ready_links);
        }
        was_ready
    }
}
