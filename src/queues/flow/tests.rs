//! Tests of queues alone: order, expiry, limits, and blocked publishers.

use leveret_amqp::field::{Table, TableWriter};
use leveret_amqp::{Full, Writer};
use leveret_core::command::{ChannelId, QueueId, VhostId};
use leveret_core::limits::Limits;
use leveret_core::mem::{Class, Links, Memory, MessageFlags, MessageId, Messages, Share, Slab};
use leveret_core::quota::Quota;
use leveret_core::work::Work;
use leveret_storage::{Context, PendingWrites, Urgency};

use super::*;
use crate::deliveries::{DeliveryMethod, NewDelivery, Reason};
use crate::records::{Queue, QueueState, Taken, first_rank};
use crate::settings::{EffectivePolicy, QueueSettings};
use crate::shortage::Shortage;

/// A consumer that can always take a message, on the lists of its queue.
#[derive(Default)]
struct ListedConsumer {
    all: Links,
    eligible: Links,
}

/// Queues and the objects that they borrow.
struct QueueFlowFixture {
    queues: Queues,
    consumers: Slab<ListedConsumer>,
    quota: Quota,
    pending_writes: PendingWrites,
    messages: Messages,
    work: Work,
    vhost: VhostId,
}

/// Returns the bytes of a table.
fn table(fill: impl FnOnce(&mut TableWriter<'_, '_>) -> Result<(), Full>) -> Vec<u8> {
    let mut bytes = [0; 256];
    let mut writer = Writer::new(&mut bytes);
    assert!(writer.table(fill).is_ok());
    let end = writer.at();
    bytes[4..end].to_vec()
}

/// Returns properties with only a priority.
const fn priority(priority: u8) -> [u8; 3] {
    [0x08, 0, priority]
}

impl QueueFlowFixture {
    /// Capacity for 8 queues and 100 messages.
    fn new() -> Self {
        let limits = Limits { queues_max: 8, messages_max: 100, unacknowledged_max: 50, ..Limits::default() };
        let vhost = VhostId::from_index(0);
        let quota = Quota::new(&limits, &Memory::unlimited());
        let messages = Messages::new(limits.message_limits());
        Self {
            queues: Queues::new(&limits, &Memory::unlimited(), 1, 0),
            consumers: Slab::in_memory(8, &Memory::unlimited(), Class::Clients),
            quota,
            pending_writes: PendingWrites::new(100),
            messages,
            work: Work::default(),
            vhost,
        }
    }

    fn record(&mut self, name: &str, arguments: &[u8]) -> Queue {
        let (arguments_table, none) = (Table::trusted(arguments), Table::EMPTY);
        let effective = EffectivePolicy { arguments: arguments_table, policy: none, operator: none };
        let settings = QueueSettings::of(&effective);
        let mut record = Queue::new(self.vhost, name, arguments, settings);
        record.rank = first_rank(&mut self.pending_writes, &record, 0);
        record
    }

    fn queue(&mut self, name: &str, arguments: &[u8]) -> QueueId {
        let record = self.record(name, arguments);
        self.queues.records_mut().insert(record)
    }

    fn message(&mut self, body: &str, properties: &[u8], flags: MessageFlags) -> MessageId {
        let id = self.messages.begin("", b"key", Share::Ordinary).unwrap();
        let len = body.len() as u32;
        self.messages.reserve_content(id, properties, flags, len, Share::Ordinary).unwrap();
        self.messages.append_body(id, body.as_bytes());
        self.messages.finish(id);
        id
    }

    /// Pushes a message to queues, or to its levels of them, as a publish does.
    fn put_with(&mut self, queues: &[QueueId], body: &str, properties: &[u8], flags: MessageFlags) {
        let message = self.message(body, properties, flags);
        let mut targets = queues.to_vec();
        let mut cx = Context::new(&mut self.pending_writes, &mut self.messages, &mut self.work);
        self.queues.choose_levels(&mut cx, &mut self.quota, message, &mut targets);
        self.queues.push(&mut cx, message, &targets, Urgency::Window);
        targets.iter().for_each(|queue| self.queues.note_arrival(&mut cx, *queue, message));
        self.messages.release(message);
    }

    fn put(&mut self, queue: QueueId, bodies: &[&str]) {
        bodies.iter().for_each(|body| self.put_with(&[queue], body, &[], MessageFlags::NONE));
    }

    fn put_ranked(&mut self, queue: QueueId, messages: &[(u8, &str)]) {
        for (rank, body) in messages {
            self.put_with(&[queue], body, &priority(*rank), MessageFlags::NONE);
        }
    }

    fn body(&self, message: MessageId) -> String {
        let mut bytes = vec![0; self.messages.body_len(message) as usize];
        self.messages.read(message, &mut self.messages.body_cursor(message, 0), &mut bytes);
        String::from_utf8(bytes).unwrap()
    }

    /// Delivers the first message of a queue; returns its level and its delivery.
    fn take(&mut self, queue: QueueId) -> (QueueId, usize) {
        let level = self.queues.records().first_level(queue);
        let mut cx = Context::new(&mut self.pending_writes, &mut self.messages, &mut self.work);
        let first = self.queues.first_deliverable(&mut cx, level).unwrap();
        let Taken { message, order, log_offset, redelivered, requeues } =
            self.queues.take_first(&mut cx, level, first);
        let new = NewDelivery {
            tag: 1,
            order,
            log_offset,
            message,
            channel: ChannelId::from_index(0),
            consumer: None,
            queue: Some(level),
            method: DeliveryMethod::Deliver,
            redelivered,
            requeues,
            no_ack: true,
        };
        self.queues.count_delivery(&self.messages, &new);
        let body_len = self.messages.body_len(message);
        (level, self.queues.deliveries_mut().insert(new, 1, 0, body_len).unwrap())
    }

    fn give_back(&mut self, (level, delivery): (QueueId, usize)) {
        self.queues.uncount_delivery(&self.messages, delivery);
        self.queues.deliveries_mut()[delivery].redelivered = true;
        self.queues.put_back(&self.messages, level, delivery);
    }

    fn settle(&mut self, (level, delivery): (QueueId, usize)) {
        self.queues.uncount_delivery(&self.messages, delivery);
        let delivered = self.queues.deliveries_mut().remove(delivery);
        let mut cx = Context::new(&mut self.pending_writes, &mut self.messages, &mut self.work);
        self.queues.settle_delivered(&mut cx, level, &delivered);
    }

    fn drop_first(&mut self, level: QueueId) -> bool {
        let mut cx = Context::new(&mut self.pending_writes, &mut self.messages, &mut self.work);
        self.queues.drop_first(&mut cx, level)
    }

    fn drop_excess(&mut self, queue: QueueId) {
        let mut cx = Context::new(&mut self.pending_writes, &mut self.messages, &mut self.work);
        self.queues.drop_excess(&mut cx, queue);
    }

    fn has_expired(&mut self, level: QueueId) -> bool {
        let mut cx = Context::new(&mut self.pending_writes, &mut self.messages, &mut self.work);
        self.queues.has_expired(&mut cx, level, ExpiryGrace::No)
    }

    /// Empties a queue. Returns the bodies in the order of departure, separated by a space.
    fn drain(&mut self, queue: QueueId) -> String {
        let mut bodies = Vec::new();
        loop {
            let level = self.queues.records().first_level(queue);
            let Some((_, message, _)) = self.queues.first_in_memory(level) else { break };
            bodies.push(self.body(message));
            self.drop_first(level);
        }
        bodies.join(" ")
    }

    /// Starts a consumer that takes messages from a queue.
    fn consumer(&mut self, queue: QueueId) -> usize {
        let index = self.consumers.insert_checked(ListedConsumer::default());
        let lists = self.queues.records_mut().queue_consumers_mut(queue);
        lists.all.push_back(&mut self.consumers, index, |consumer| &mut consumer.all);
        lists.eligible.push_back(&mut self.consumers, index, |consumer| &mut consumer.eligible);
        self.queues.records_mut().wake(queue);
        index
    }

    fn end_consumer(&mut self, queue: QueueId, index: usize) {
        let lists = self.queues.records_mut().queue_consumers_mut(queue);
        lists.all.remove(&mut self.consumers, index, |consumer| &mut consumer.all);
        lists.eligible.remove(&mut self.consumers, index, |consumer| &mut consumer.eligible);
    }

    /// Returns why a message is refused by a queue now: the queue that is full, or a text.
    fn reserve(&mut self, queue: QueueId, share: Share) -> Result<(), Result<QueueId, String>> {
        let message = self.message("m", &[], MessageFlags::NONE);
        let cx = Context::new(&mut self.pending_writes, &mut self.messages, &mut self.work);
        let claim = Claim { share, on_full: OnFull::Wait };
        let reserved = self.queues.check_capacity(&cx, &self.quota, message, &[queue], claim);
        self.messages.release(message);
        reserved.map_err(|hindrance| match hindrance {
            CannotPublish::Wait(Shortage::QueueMemory(queue)) => Ok(queue),
            CannotPublish::Wait(shortage) => Err(format!("{shortage:?}")),
            CannotPublish::Fault(fault) => Err(fault.text.to_string()),
        })
    }

    /// Asserts that nothing is in memory any more.
    fn assert_empty(&self) {
        assert_eq!((self.messages.messages_used(), self.queues.deliveries().len()), (0, 0));
    }
}

#[test]
fn messages_are_delivered_in_order_of_arrival() {
    let mut world = QueueFlowFixture::new();
    let queue = world.queue("q", &[]);
    world.put(queue, &["a", "b", "c", "d"]);
    assert_eq!((world.queues.records().ready_in(queue), world.queues.at(queue).backlog.body_bytes()), (4, 4));
    assert_eq!(world.drain(queue), "a b c d");
    world.assert_empty();
}

#[test]
fn requeued_messages_precede_all_others_in_their_old_order() {
    let mut world = QueueFlowFixture::new();
    let queue = world.queue("q", &[]);
    world.put(queue, &["a", "b", "c", "d"]);
    let [a, b, c] = [(); 3].map(|()| world.take(queue));
    world.settle(b);
    world.give_back(c);
    world.give_back(a);
    let record = world.queues.at(queue);
    assert_eq!((record.backlog.ready(), record.unsettled.count, record.unsettled.body_bytes), (3, 0, 0));
    let again = world.take(queue);
    assert!(world.queues.deliveries()[again.1].redelivered);
    world.give_back(again);
    assert_eq!(world.drain(queue), "a c d");
    world.assert_empty();
}

#[test]
fn requeued_messages_use_at_most_half_of_the_delivery_records() {
    let mut world = QueueFlowFixture::new();
    let queue = world.queue("q", &[]);
    let bodies: Vec<String> = (0..41).map(|number| number.to_string()).collect();
    bodies.iter().for_each(|body| world.put(queue, &[body]));
    let taken: Vec<_> = (0..40).map(|_| world.take(queue)).collect();
    taken.into_iter().for_each(|taken| world.give_back(taken));
    assert_eq!((world.queues.deliveries().len(), world.queues.records().ready_in(queue)), (25, 41));
    let mut redelivered = Vec::new();
    for _ in 0..41 {
        let taken = world.take(queue);
        redelivered.push(world.queues.deliveries()[taken.1].redelivered);
        let message = world.queues.deliveries()[taken.1].message.unwrap();
        assert_eq!(world.body(message), bodies[redelivered.len() - 1]);
        world.settle(taken);
    }
    assert_eq!(redelivered, [&[true; 40][..], &[false]].concat());
    world.assert_empty();
}

#[test]
fn a_message_in_several_queues_is_stored_once_until_all_have_settled_it() {
    let mut world = QueueFlowFixture::new();
    let queues = ["one", "two", "three"].map(|name| world.queue(name, &[]));
    world.put_with(&queues, "a", &[], MessageFlags::NONE);
    for queue in queues {
        assert_eq!(world.messages.messages_used(), 1);
        assert_eq!(world.drain(queue), "a");
    }
    world.assert_empty();
}

#[test]
fn a_queue_is_ready_with_a_message_and_a_consumer_and_without_a_requeue_in_progress() {
    let mut world = QueueFlowFixture::new();
    let queue = world.queue("q", &[]);
    world.put(queue, &["a"]);
    assert!(!world.queues.records().is_any_ready(), "nobody is there");
    let consumer = world.consumer(queue);
    assert_eq!(world.queues.records_mut().pop_ready(), Some(queue));
    world.queues.records_mut().begin_blocking_job(queue);
    world.queues.records_mut().wake(queue);
    assert!(!world.queues.records().is_any_ready(), "something older may come");
    world.queues.end_blocking_job(queue);
    assert_eq!(
        (world.queues.records_mut().pop_ready(), world.queues.records_mut().pop_ready()),
        (Some(queue), None)
    );
    let taken = world.take(queue);
    world.queues.records_mut().wake(queue);
    assert!(!world.queues.records().is_any_ready(), "it is empty");
    world.give_back(taken);
    world.queues.records_mut().wake(queue);
    assert_eq!(world.queues.records_mut().pop_ready(), Some(queue));
    world.end_consumer(queue, consumer);
    world.queues.records_mut().wake(queue);
    assert!(!world.queues.records().is_any_ready(), "nobody is there any more");
    world.consumer(queue);
    world.queues.records_mut().retire(queue);
    assert!(!world.queues.records().is_any_ready(), "nothing is delivered from what is gone");
}

#[test]
fn a_name_refers_to_its_queue_until_the_queue_is_retired() {
    let mut world = QueueFlowFixture::new();
    let old = world.queue("q", &[]);
    assert_eq!(world.queues.records().find_queue(world.vhost, "q"), Some(old));
    assert_eq!(world.queues.records().find_queue(VhostId::from_index(1), "q"), None);
    world.queues.records_mut().retire(old);
    assert_eq!(world.queues.records().find_queue(world.vhost, "q"), None);
    let new = world.queue("q", &[]);
    assert_ne!(world.queues.at(new).serial, world.queues.at(old).serial);
    assert_eq!(world.queues.records().find_queue(world.vhost, "q"), Some(new));
    for _ in 2..8 {
        world.queue("another", &[]);
    }
    assert_eq!(world.queues.records().free_count(), 0);
}

#[test]
fn a_record_is_freed_when_it_is_cleared_and_nothing_refers_to_it() {
    let mut world = QueueFlowFixture::new();
    let queue = world.queue("q", &[]);
    world.put(queue, &["a"]);
    let taken = world.take(queue);
    world.queues.records_mut().retire(queue);
    assert!(world.queues.take_if_done(queue).is_none(), "it is not cleared away");
    world.queues.at_mut(queue).state = QueueState::Cleared;
    assert!(world.queues.take_if_done(queue).is_none(), "a message of it is delivered");
    world.queues.records_mut().begin_blocking_job(queue);
    world.settle(taken);
    assert!(world.queues.take_if_done(queue).is_none(), "a job works for it");
    world.queues.end_blocking_job(queue);
    let (record, queue_of_level) = world.queues.take_if_done(queue).unwrap();
    assert_eq!((&*record.name, queue_of_level, world.queues.records().queue_count()), ("q", None, 0));
    assert!(world.queues.take_if_done(queue).is_none());
    world.assert_empty();
}

// ---- priorities

fn ranked(world: &mut QueueFlowFixture) -> QueueId {
    world.queue("q", &table(|table| table.long("x-max-priority", 5)))
}

#[test]
fn a_level_is_created_for_its_first_message_and_the_highest_is_delivered_first() {
    let mut world = QueueFlowFixture::new();
    let queue = ranked(&mut world);
    assert_eq!(world.queues.records().queue_count(), 1);
    world.put_ranked(queue, &[(3, "three"), (0, "none"), (5, "five"), (3, "three-too"), (9, "nine")]);
    world.put(queue, &["nothing"]);
    assert_eq!(world.queues.records().queue_count(), 3, "beyond the highest there is the highest");
    assert_eq!((world.queues.records().ready_in(queue), world.queues.at(queue).backlog.ready()), (6, 2));
    for level in world.queues.records().levels(queue).collect::<Vec<_>>() {
        assert_eq!(
            (world.queues.records().queue_of_level(level), world.queues.records().ready_in(level)),
            (queue, 6)
        );
    }
    assert_eq!(world.drain(queue), "five nine three three-too none nothing");
    world.assert_empty();
}

#[test]
fn a_queue_with_priorities_is_ready_for_a_message_of_any_of_them() {
    let mut world = QueueFlowFixture::new();
    let queue = ranked(&mut world);
    world.put_ranked(queue, &[(4, "four")]);
    assert!(!world.queues.records().is_any_ready());
    world.consumer(queue);
    assert_eq!(world.queues.records_mut().pop_ready(), Some(queue));
    let level = world.queues.records().wanted_level(queue).unwrap();
    assert_ne!(level, queue);
    world.queues.records_mut().begin_blocking_job(level);
    world.put_ranked(queue, &[(0, "none")]);
    assert!(!world.queues.records().is_any_ready(), "a lower one does not go before what may come back");
    world.queues.end_blocking_job(level);
    assert_eq!(world.queues.records_mut().pop_ready(), Some(queue));
}

#[test]
fn without_capacity_for_a_level_its_messages_use_the_next_lower_one() {
    let mut world = QueueFlowFixture::new();
    let queue = ranked(&mut world);
    world.put_ranked(queue, &[(2, "two")]);
    for _ in 2..8 {
        world.queue("another", &[]);
    }
    world.put_ranked(queue, &[(4, "four"), (1, "one"), (0, "none")]);
    assert_eq!((world.queues.records().free_count(), world.queues.records().ready_in(queue)), (0, 4));
    assert_eq!(world.drain(queue), "two four one none");
}

#[test]
fn a_purge_removes_ready_messages_of_all_levels_and_no_deliveries() {
    let mut world = QueueFlowFixture::new();
    let queue = ranked(&mut world);
    world.put_ranked(queue, &[(2, "delivered"), (2, "two"), (1, "one"), (0, "none"), (2, "back")]);
    let delivered = world.take(queue);
    let taken = world.take(queue);
    world.give_back(taken);
    let (count, parts) = world.queues.purge(queue);
    assert_eq!((count, world.queues.records().ready_in(queue)), (4, 0));
    for (level, mut purged) in parts {
        let mut cx = Context::new(&mut world.pending_writes, &mut world.messages, &mut world.work);
        while world.queues.drop_purged(&mut cx, level, &mut purged) {}
        world.queues.end_blocking_job(level);
    }
    assert_eq!((world.messages.messages_used(), world.queues.at(queue).blocking_jobs), (1, 0));
    world.give_back(delivered);
    world.put_ranked(queue, &[(2, "new")]);
    assert_eq!(world.drain(queue), "delivered new");
    world.assert_empty();
}

#[test]
fn levels_are_deleted_before_their_queue() {
    let mut world = QueueFlowFixture::new();
    let queue = ranked(&mut world);
    world.put_ranked(queue, &[(1, "one"), (3, "three"), (0, "none")]);
    world.queues.records_mut().retire(queue);
    let levels = world.queues.records_mut().retire_levels(&mut world.pending_writes, queue);
    assert_eq!(levels.len(), 2);
    while world.drop_first(queue) {}
    world.queues.at_mut(queue).state = QueueState::Cleared;
    for level in levels {
        assert!(world.queues.take_if_done(queue).is_none(), "it has levels");
        while world.drop_first(level) {}
        world.queues.at_mut(level).state = QueueState::Cleared;
        let (_, queue_of_level) = world.queues.take_if_done(level).unwrap();
        assert_eq!(queue_of_level, Some(queue));
    }
    assert!(world.queues.take_if_done(queue).is_some());
    assert_eq!(world.queues.records().queue_count(), 0);
    world.assert_empty();
}

// ---- limits

#[test]
fn body_bytes_count_without_unacknowledged_messages() {
    let mut world = QueueFlowFixture::new();
    let queue = world.queue("q", &table(|table| table.long("x-max-length-bytes", 5)));
    world.put(queue, &["aaa", "bb"]);
    assert!(!world.queues.records().is_over_length(queue));
    let taken = world.take(queue);
    world.put(queue, &["ccc"]);
    assert!(!world.queues.records().is_over_length(queue));
    world.give_back(taken);
    assert!(world.queues.records().is_over_length(queue));
    world.drop_excess(queue);
    assert_eq!(world.drain(queue), "bb ccc", "what came back is the oldest");
}

#[test]
fn a_queue_with_reject_publish_is_full_at_its_limit_and_drops_nothing() {
    let mut world = QueueFlowFixture::new();
    let arguments = table(|table| {
        table.long("x-max-length", 2).and_then(|()| table.text("x-overflow", "reject-publish"))
    });
    let queue = world.queue("q", &arguments);
    world.put(queue, &["a"]);
    assert!(!world.queues.records().refuses_body(queue, 1, 0));
    world.put(queue, &["b"]);
    assert!(world.queues.records().refuses_body(queue, 1, 0));
    assert!(!world.queues.records().refuses_body(queue, 1, 1), "a consumer can have one of them");
    let taken = world.take(queue);
    assert!(!world.queues.records().refuses_body(queue, 1, 0));
    world.put(queue, &["c"]);
    world.give_back(taken);
    assert!(!world.queues.records().is_over_length(queue), "what comes back is kept");
    world.drop_excess(queue);
    assert_eq!(world.drain(queue), "a b c");
}

// ---- expiry

#[test]
fn a_message_expires_when_it_is_first_and_due() {
    let mut world = QueueFlowFixture::new();
    let queue = world.queue("q", &table(|table| table.long("x-message-ttl", 100)));
    world.pending_writes.set_time(1_000);
    world.put(queue, &["a"]);
    assert_eq!(world.queues.next_expiry_ms(), Some(1_100));
    world.pending_writes.set_time(1_099);
    world.put(queue, &["b"]);
    assert!(!world.has_expired(queue));
    world.queues.take_due(&world.pending_writes);
    assert_eq!(world.queues.trim_list.queue_count(), 0, "it is too early");
    world.pending_writes.set_time(1_100);
    assert!(world.has_expired(queue));
    world.queues.take_due(&world.pending_writes);
    assert_eq!(world.queues.trim_list.pop(), Some(queue));
    world.drop_first(queue);
    assert!(!world.has_expired(queue));
    let mut cx = Context::new(&mut world.pending_writes, &mut world.messages, &mut world.work);
    world.queues.schedule(&mut cx, queue);
    assert_eq!(world.queues.next_expiry_ms(), Some(1_199));
    assert_eq!(world.drain(queue), "b");
}

#[test]
fn a_message_with_its_own_ttl_expires_in_a_queue_without_one() {
    let mut world = QueueFlowFixture::new();
    let queue = world.queue("q", &[]);
    world.pending_writes.set_time(1_000);
    world.put(queue, &["stays"]);
    assert!(!world.queues.records().has_deadlines());
    world.put_with(&[queue], "goes", b"\x01\x00\x0250", MessageFlags::EXPIRES);
    assert!(world.queues.records().has_deadlines());
    world.pending_writes.set_time(9_000);
    assert!(!world.has_expired(queue), "what stands first has no time");
    world.drop_first(queue);
    assert!(world.has_expired(queue));
}

#[test]
fn with_priorities_only_the_first_message_of_all_levels_expires() {
    let mut world = QueueFlowFixture::new();
    let arguments =
        table(|table| table.long("x-max-priority", 5).and_then(|()| table.long("x-message-ttl", 100)));
    let queue = world.queue("q", &arguments);
    world.put_ranked(queue, &[(0, "old")]);
    world.pending_writes.set_time(500);
    world.put_ranked(queue, &[(1, "new")]);
    let level = world.queues.records().first_level(queue);
    assert!(!world.has_expired(queue) && !world.has_expired(level), "the old one does not stand first");
    world.pending_writes.set_time(600);
    assert!(!world.has_expired(queue) && world.has_expired(level));
    world.drop_first(level);
    assert!(world.has_expired(queue));
}

#[test]
fn an_unused_queue_expires_unless_it_has_a_consumer() {
    let mut world = QueueFlowFixture::new();
    let queue = world.queue("q", &table(|table| table.long("x-expires", 100)));
    world.pending_writes.set_time(1_000);
    world.queues.touch_queue(&world.pending_writes, queue);
    assert_eq!(world.queues.next_expiry_ms(), Some(1_100));
    world.pending_writes.set_time(1_099);
    assert!(!world.queues.records().is_unused_for_too_long(&world.pending_writes, queue));
    world.pending_writes.set_time(1_100);
    assert!(world.queues.records().is_unused_for_too_long(&world.pending_writes, queue));
    world.consumer(queue);
    assert!(!world.queues.records().is_unused_for_too_long(&world.pending_writes, queue));
}

// ---- rejected messages

#[test]
fn rejected_messages_are_kept_apart_and_not_delivered() {
    let mut world = QueueFlowFixture::new();
    let queue = world.queue("q", &table(|table| table.text("x-dead-letter-exchange", "dlx")));
    assert!(world.queues.records().has_dead_letters(queue));
    world.consumer(queue);
    world.put(queue, &["a"]);
    let (_, delivery) = world.take(queue);
    world.queues.records_mut().pop_ready();
    world.queues.uncount_delivery(&world.messages, delivery);
    world.queues.reject(&world.messages, queue, delivery, Reason::Rejected);
    world.queues.records_mut().wake(queue);
    let backlog = &world.queues.at(queue).backlog;
    assert_eq!((backlog.ready(), backlog.first_rejected()), (0, Some(delivery)));
    assert!(backlog.bytes() > 0, "it counts for the memory of its queue");
    assert!(world.queues.first(queue).is_none() && !world.queues.records().is_any_ready());
    assert_eq!(world.queues.deliveries()[delivery].dead_letter_reason, Some(Reason::Rejected));
    let mut cx = Context::new(&mut world.pending_writes, &mut world.messages, &mut world.work);
    assert!(world.queues.drop_rejected(&mut cx, queue) && !world.queues.drop_rejected(&mut cx, queue));
    assert_eq!(world.queues.at(queue).backlog.bytes(), 0);
    world.assert_empty();
}

#[test]
fn a_deleted_queue_has_no_dead_letters() {
    let mut world = QueueFlowFixture::new();
    let queue = world.queue("q", &table(|table| table.text("x-dead-letter-exchange", "dlx")));
    world.queues.records_mut().retire(queue);
    assert!(!world.queues.records().has_dead_letters(queue));
}

// ---- capacity

#[test]
fn publishers_to_a_queue_over_its_share_wait_until_it_has_less() {
    let mut world = QueueFlowFixture::new();
    let [full, other] = ["full", "other"].map(|name| world.queue(name, &[]));
    (0..62).for_each(|_| world.put(full, &["m"]));
    assert_eq!(world.reserve(full, Share::Ordinary), Ok(()));
    world.put(full, &["m"]);
    assert_eq!(world.reserve(full, Share::Ordinary), Err(Ok(full)));
    assert_eq!(world.reserve(other, Share::Ordinary), Ok(()));
    assert_eq!(world.reserve(full, Share::Reserve), Ok(()), "others may wait for this publisher");
    let taken = world.take(full);
    assert_eq!(world.reserve(full, Share::Ordinary), Err(Ok(full)), "what is delivered counts");
    let left = world.queues.records().departures_from_awaited_queue(Shortage::QueueMemory(full));
    world.settle(taken);
    assert_eq!(world.reserve(full, Share::Ordinary), Ok(()));
    world.drop_first(full);
    assert!(world.queues.records().departures_from_awaited_queue(Shortage::QueueMemory(full)) > left);
}

#[test]
fn a_publisher_with_deliveries_may_fill_a_queue_to_four_fifths_of_the_memory() {
    let mut world = QueueFlowFixture::new();
    let [full, other] = ["full", "other"].map(|name| world.queue(name, &[]));
    let mut count = 0;
    while world.reserve(full, Share::Reserve) == Ok(()) {
        world.put(full, &["m"]);
        count += 1;
    }
    // 94 of 100 messages are for publishers.
    assert_eq!((count, world.reserve(full, Share::Reserve)), (76, Err(Ok(full))));
    assert_eq!(world.reserve(other, Share::Ordinary), Ok(()));
}

#[test]
fn the_levels_of_a_queue_have_one_share_together() {
    let mut world = QueueFlowFixture::new();
    let queue = ranked(&mut world);
    (0..40).for_each(|_| world.put_ranked(queue, &[(1, "m"), (2, "m")]));
    let level = world.queues.records().first_level(queue);
    for queue_or_level in [queue, level] {
        assert_eq!(world.reserve(queue_or_level, Share::Ordinary), Err(Ok(queue)));
    }
}
