//! The records of all queues: their messages in order, names, levels and limits, and their counts of logged
//! messages.
//!
//! This module has the data and keeps it consistent. [`crate::flow`] decides when queues are examined, which messages
//! leave memory and which are removed. The caller decides which consumer gets a message.
//!
//! | file | content |
//! |---|---|
//! | `record` | the record of one queue; finding, creating, deleting and writing records |
//! | `backlog` | the messages of a queue, in memory or only in the log; the ready list of queues |
//! | `durable_index` | offsets and counts of a queue's messages in the log; requeue counts of quorum queues |
//! | `levels` | the levels of queues with priorities; the slots of delayed exchanges; stored routes of messages in a transaction |
//! | `fullness` | length limits and shares of memory: which queues accept a message |
//! | `browse` | reading a queue's messages without changing it; finding selected messages |
//! | `message_keys` | keys by which an operator names browsed messages |
//!
//! # Invariants
//! - A message gets its number (`Taken::order`) when it first leaves its queue. Requeued messages are ordered
//!   by it, and precede all messages that were never delivered. Exception: while half of all delivery records
//!   belong to requeued messages, further requeued messages are kept in the order in which they are requeued.
//! - A queue has a message either in one of its entries or in one delivery record. Exception: a delayed message
//!   that waits in memory for its due time is a `HeldMessage`.

mod backlog;
mod browse;
mod durable_index;
mod fullness;
mod levels;
mod message_keys;
mod record;

pub use backlog::{Backlog, EntryContent, First, Purged, SLOT_BYTES, Size, Taken, block_bytes};
pub use backlog::{PurgedItem, QueuePart};
pub(crate) use browse::EntryPools;
pub use browse::{BROWSED_MAX, BrowseResult, Browsed, BrowsedMessage, LogRun, SelectedMessage};
pub use durable_index::{Contents, DurableIndex, RequeueCounts, declared_arguments};
pub use fullness::{FreeMemory, RefusedBy, SessionPart};
pub(crate) use fullness::{MessageMemory, TIMES_FREE_DISK, TIMES_FREE_MEMORY, TIMES_FREE_MEMORY_FOR_HOLDERS};
pub use levels::{SLOTS, first_rank, levels_of};
pub use message_keys::{MESSAGE_KEYS_BYTES, MessageKey, MessageKeys};
pub use record::{
    Declared, Front, Listed, Pace, PeekedExpiry, Queue, QueueKind, QueueState, Rank, Records, Times,
    Unsettled,
};

#[cfg(test)]
mod tests {
    // Tests of queue records alone: names, levels, the ready list, limits, and browsing.

    use super::*;
    use crate::deliveries::Deliveries;
    use crate::settings::{EffectivePolicy, Overflow, QueueSettings};
    use leveret_amqp::field::Table;
    use leveret_core::command::{QueueId, VhostId};
    use leveret_core::limits::Limits;
    use leveret_core::mem::{FifoPool, Memory, MessageFlags, MessageId, MessageLimits, Messages, Share};
    use leveret_core::quota::Quota;
    use leveret_storage::PendingWrites;

    /// The records, and the pools that a backlog uses.
    struct QueueRecordsFixture {
        records: Records,
        pool: FifoPool,
        deliveries: Deliveries,
        messages: Messages,
        quota: Quota,
        pending_writes: PendingWrites,
    }

    fn vhost() -> VhostId {
        VhostId::from_index(0)
    }

    fn settings() -> QueueSettings {
        let none = Table::EMPTY;
        QueueSettings::of(&EffectivePolicy { arguments: none, policy: none, operator: none })
    }

    impl QueueRecordsFixture {
        /// Capacity for 8 queues and levels.
        fn new() -> Self {
            let limits = Limits { queues_max: 8, ..Limits::default() };
            let quota = Quota::new(&limits, &Memory::unlimited());
            let messages = Messages::new(MessageLimits {
                messages_max: 100,
                body_bytes_max: 1 << 20,
                assembly_bytes_max: 1 << 16,
            });
            Self {
                records: Records::with_capacity(8, &Memory::unlimited(), 1, 0),
                pool: FifoPool::with_entries(1_000),
                deliveries: Deliveries::with_capacity(16, &Memory::unlimited()),
                messages,
                quota,
                pending_writes: PendingWrites::new(16),
            }
        }

        fn queue(&mut self, name: &str, settings: QueueSettings) -> QueueId {
            let mut record = Queue::new(vhost(), name, &[], settings);
            record.rank = first_rank(&mut self.pending_writes, &record, 0);
            self.records.insert(record)
        }

        fn ranked(&mut self) -> QueueId {
            self.queue("ranked", QueueSettings { max_priority: 9, ..settings() })
        }

        fn level(&mut self, queue: QueueId, priority: u8) -> Result<QueueId, QueueId> {
            self.records.level_at(&mut self.quota, queue, priority, None)
        }

        /// Creates a message with a body of this many bytes.
        fn message(&mut self, body_len: u32) -> MessageId {
            let id = self.messages.begin("", b"key", Share::Ordinary).unwrap();
            self.messages.reserve_content(id, &[], MessageFlags::NONE, body_len, Share::Ordinary).unwrap();
            self.messages.append_body(id, &vec![0; body_len as usize]);
            self.messages.finish(id);
            id
        }

        /// Adds messages with bodies of these sizes to a queue or level.
        fn put(&mut self, queue: QueueId, sizes: &[u32]) {
            for body_len in sizes {
                let message = self.message(*body_len);
                let size = Size::of(&self.messages, message);
                self.records[queue].backlog.push(&mut self.pool, EntryContent::InMemory(message), size);
            }
        }

        fn seen(&mut self, queue: QueueId, from: u32, count: u32) -> Vec<u32> {
            let pools = EntryPools { pool: &self.pool, deliveries: &self.deliveries };
            let (mut keys, messages) = (MessageKeys::default(), &mut self.messages);
            let seen = self.records.browse(pools, &mut keys, messages, queue, from..from + count).unwrap();
            let body_len = |seen: &Browsed| match seen {
                Browsed::InMemory(browsed) => self.messages.body_len(browsed.message),
                Browsed::InLog(_) => panic!("nothing is in the log"),
            };
            seen.iter().map(body_len).collect()
        }
    }

    #[test]
    fn a_name_belongs_to_its_virtual_host_and_is_free_at_once() {
        let mut world = QueueRecordsFixture::new();
        let one = world.queue("q", settings());
        let other = VhostId::from_index(1);
        let two = world.records.insert(Queue::new(other, "q", &[], settings()));
        assert_eq!([vhost(), other].map(|host| world.records.find_queue(host, "q")), [Some(one), Some(two)]);
        assert!(world.records[one].serial < world.records[two].serial);
        world.records.retire(one);
        assert_eq!([vhost(), other].map(|host| world.records.find_queue(host, "q")), [None, Some(two)]);
        let again = world.queue("q", settings());
        assert_eq!((world.records.find_queue(vhost(), "q"), world.records.queue_count()), (Some(again), 3));
    }

    #[test]
    fn levels_are_ordered_from_the_highest_whatever_their_order_of_creation() {
        let mut world = QueueRecordsFixture::new();
        let queue = world.ranked();
        let [five, nine, two] = [5, 9, 2].map(|priority| world.level(queue, priority).unwrap());
        assert_eq!(world.level(queue, 5), Ok(five), "there is one level for each priority");
        assert_eq!(world.level(queue, 0), Ok(queue), "the queue itself is the lowest level");
        assert_eq!(world.records.levels(queue).collect::<Vec<_>>(), [nine, five, two, queue]);
        assert_eq!([nine, two, queue].map(|level| world.records.queue_of_level(level)), [queue; 3]);
        world.put(five, &[1, 2]);
        world.put(queue, &[3]);
        assert_eq!(world.records.first_level(queue), five);
        assert_eq!([nine, five, two, queue].map(|level| world.records.ready_before(level)), [0, 2, 2, 3]);
        assert_eq!(world.records.sum_over_levels(two, |level| level.backlog.body_bytes()), 6);
        assert_eq!(world.records.unlink_level(five), Some(queue));
        assert_eq!(world.records.levels(queue).collect::<Vec<_>>(), [nine, two, queue]);
    }

    #[test]
    fn without_capacity_for_a_level_the_next_lower_one_is_returned() {
        let mut world = QueueRecordsFixture::new();
        let queue = world.ranked();
        let two = world.level(queue, 2).unwrap();
        for place in 0..world.records.free_count() {
            world.queue(&format!("q{place}"), settings());
        }
        assert_eq!([1, 2, 9].map(|priority| world.level(queue, priority)), [Err(queue), Ok(two), Err(two)]);
    }

    #[test]
    fn refusing_queues_are_removed_and_dead_lettering_ones_moved_to_the_end() {
        let mut world = QueueRecordsFixture::new();
        let full = |overflow, dead_letters| {
            let limits = QueueSettings { max_length: 1, limits_length: true, overflow, ..settings() };
            QueueSettings { dead_letters, ..limits }
        };
        let drops = world.queue("drops", full(Overflow::DropHead, false));
        let refuses = world.queue("refuses", full(Overflow::RejectPublish, true));
        let buries = world.queue("buries", full(Overflow::RejectPublishDlx, true));
        let loses = world.queue("loses", full(Overflow::RejectPublishDlx, false));
        let plain = world.queue("plain", settings());
        let all = [refuses, buries, drops, loses, plain];
        let message = world.message(1);
        let mut targets = all.to_vec();
        let nobody: Option<&dyn Fn(QueueId) -> u64> = Some(&|_| 0);
        assert_eq!(
            world.records.keep_accepting(&world.messages, message, &mut targets, nobody),
            (5, RefusedBy::NoQueue)
        );
        all.into_iter().for_each(|queue| world.put(queue, &[1]));
        assert_eq!(
            world.records.keep_accepting(&world.messages, message, &mut targets, nobody),
            (2, RefusedBy::LengthLimit)
        );
        assert_eq!(targets, [drops, plain, buries]);
        let now = world.queue("now", QueueSettings { message_ttl_ms: 0, ..settings() });
        let mut targets = vec![now, plain];
        assert_eq!(
            world.records.keep_accepting(&world.messages, message, &mut targets, nobody),
            (1, RefusedBy::NoQueue)
        );
        assert_eq!(targets, [plain], "the message would expire at once, and no consumer waits for it");
        let mut targets = vec![now];
        assert_eq!(
            world.records.keep_accepting(&world.messages, message, &mut targets, Some(&|_| 1)),
            (1, RefusedBy::NoQueue)
        );
    }

    #[test]
    fn changed_settings_update_counts_and_times() {
        let mut world = QueueRecordsFixture::new();
        let queue = world.queue("q", settings());
        world.records[queue].durable_index = DurableIndex::as_incarnation(7);
        assert!(!world.records.set_settings(5, queue, settings()), "the settings are the same");
        let buries = QueueSettings { dead_letters: true, message_ttl_ms: 10, may_expire: true, ..settings() };
        assert!(!world.records.has_dead_lettering() && !world.records.has_deadlines());
        assert!(world.records.set_settings(5, queue, buries));
        assert!(world.records.has_dead_lettering() && world.records.has_deadlines());
        assert_eq!(
            world.records[queue].times.ttl_since_ms, 5,
            "the time to live of older messages begins now"
        );
        assert!(world.records.set_settings(9, queue, QueueSettings { message_ttl_ms: 20, ..buries }));
        assert_eq!(world.records[queue].times.ttl_since_ms, 5, "the queue had a time to live before");
        world.records.retire(queue);
        assert!(!world.records.has_dead_lettering());
    }

    #[test]
    fn browsing_returns_messages_in_order_over_all_levels() {
        let mut world = QueueRecordsFixture::new();
        let queue = world.ranked();
        let nine = world.level(queue, 9).unwrap();
        world.put(queue, &[1, 2, 3]);
        world.put(nine, &[91, 92]);
        assert_eq!(world.seen(queue, 0, 100), [91, 92, 1, 2, 3]);
        assert_eq!(world.seen(queue, 1, 3), [92, 1, 2]);
        assert_eq!(world.seen(queue, 5, 3), [0; 0]);
        assert_eq!(world.records.ready_in(queue), 5, "all are still there");
    }
}
