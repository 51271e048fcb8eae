//! Tests of consumers alone: the order of service, what they wait for, and when records are freed.

use leveret_core::command::{AppliedPolicies, ChannelId, ConnectionId, Name, QueueId, VhostId};
use leveret_core::error::Fault;
use leveret_core::limits::Limits;
use leveret_core::mem::{Memory, MessageFlags, Messages, Share};
use leveret_core::quota::Quota;
use leveret_core::work::Work;
use leveret_queues::{DeliveryMethod, Queue, QueueSettings, Queues, Taken};
use leveret_storage::{PendingWrites, Urgency};

use super::*;
use crate::Context;
use crate::clients::ChannelState;
use crate::policy::Policies;

/// Connections, channels and consumers, and the objects that they borrow.
struct ClientsFixture {
    clients: Clients,
    queues: Queues,
    quota: Quota,
    pending_writes: PendingWrites,
    messages: Messages,
    work: Work,
    vhost: VhostId,
}

/// Returns a consumer with this tag and default properties.
fn plain(tag: &str) -> NewConsumer {
    NewConsumer { tag: Name::try_from(tag).unwrap(), priority: 0, no_ack: false, exclusive: false }
}

impl ClientsFixture {
    /// Capacity for this many deliveries, and for 1,000 bytes in each outbox.
    fn with_deliveries(unacknowledged_max: u32) -> Self {
        let limits = Limits {
            unacknowledged_max,
            output_buffer_bytes: 1_000,
            messages_max: 100,
            queues_max: 8,
            ..Limits::default()
        };
        let vhost = VhostId::from_index(0);
        let quota = Quota::new(&limits, &Memory::unlimited());
        let messages = Messages::new(limits.message_limits());
        Self {
            clients: Clients::new(&limits, &Memory::unlimited(), 1),
            queues: Queues::new(&limits, &Memory::unlimited(), 1, 0),
            quota,
            pending_writes: PendingWrites::new(100),
            messages,
            work: Work::default(),
            vhost,
        }
    }

    fn new() -> Self {
        Self::with_deliveries(64)
    }

    /// Creates a queue with this many messages of 10 bytes.
    fn queue(&mut self, single_active: bool, messages: usize) -> QueueId {
        let settings = QueueSettings::of(
            &Policies::with_capacity(0, &Memory::unlimited())
                .effective_policy(&[], AppliedPolicies::default()),
        );
        let settings = QueueSettings { single_active, ..settings };
        let queue = self.queues.records_mut().insert(Queue::new(self.vhost, "q", &[], settings));
        (0..messages).for_each(|_| self.put(queue));
        queue
    }

    fn put(&mut self, queue: QueueId) {
        let message = self.messages.begin("", b"q", Share::Ordinary).unwrap();
        self.messages.reserve_content(message, &[], MessageFlags::NONE, 10, Share::Ordinary).unwrap();
        self.messages.append_body(message, &[0; 10]);
        self.messages.finish(message);
        let mut cx = Context::new(&mut self.pending_writes, &mut self.messages, &mut self.work);
        self.queues.push(&mut cx, message, &[queue], Urgency::Window);
        self.messages.release(message);
    }

    /// Creates a connection with a channel.
    fn channel(&mut self) -> ChannelId {
        let connection = self.clients.connect(&mut self.quota).unwrap();
        self.quota.enter_vhost(connection, self.vhost);
        self.another_channel(connection)
    }

    fn another_channel(&mut self, connection: ConnectionId) -> ChannelId {
        self.clients.open_channel(&mut self.quota, connection, self.vhost, 1).unwrap()
    }

    fn start(&mut self, channel: ChannelId, queue: QueueId, new: NewConsumer) -> usize {
        let added = self.clients.add(&mut self.quota, channel, queue, ConsumerState::Active);
        let consumer = added.unwrap();
        self.clients.start(&mut self.work, &mut self.queues, consumer, new);
        consumer
    }

    /// Delivers the next message of a queue. Returns the tag of its consumer, or `None` if no consumer may
    /// take one.
    fn deliver(&mut self, queue: QueueId) -> Option<String> {
        loop {
            let level = self.queues.records().wanted_level(queue)?;
            let index = self.queues.records().queue_consumers(queue).next()?;
            if !self.clients.has_credit(index) {
                self.clients.leave_eligible(&mut self.queues, index);
                continue;
            }
            if !self.clients.connection_can_take(&self.queues, &self.quota, index) {
                self.clients.pause_consumer(&mut self.queues, &self.quota, index);
                continue;
            }
            let mut cx = Context::new(&mut self.pending_writes, &mut self.messages, &mut self.work);
            let first = self.queues.first_deliverable(&mut cx, level)?;
            let taken = self.queues.take_first(&mut cx, level, first);
            self.send(index, level, &taken);
            self.clients.end_consumer_turn(&mut self.work, &mut self.queues, index);
            return Some(self.clients.consumer(index).tag.to_string());
        }
    }

    fn send(&mut self, index: usize, queue: QueueId, taken: &Taken) {
        let new = self.clients.next_delivery(index, queue, taken, DeliveryMethod::Deliver);
        let (queues, quota) = (&mut self.queues, &mut self.quota);
        self.clients.put_into_outbox(&self.messages, queues, quota, new, || 0);
    }

    /// Delivers all messages that can be delivered. Returns the consumers' tags, separated by a space.
    fn deliver_all(&mut self, queue: QueueId) -> String {
        let tags: Vec<_> = core::iter::from_fn(|| self.deliver(queue)).collect();
        tags.join(" ")
    }

    /// Marks everything that the connection of a channel has to send as written.
    fn written(&mut self, channel: ChannelId) {
        let connection = self.clients.connection_of(channel);
        while let Some(index) = self.clients.connection(connection).outbox.front() {
            self.clients.leave_outbox(&mut self.queues, connection, index);
            self.queues.deliveries_mut()[index].is_sent = true;
            if self.queues.deliveries()[index].no_ack {
                self.uncount(index);
            }
        }
        self.clients.resume_consumers(&mut self.work, &mut self.queues, &self.quota, connection);
    }

    /// Acknowledges a delivery. Returns `false` if no sent delivery has this tag.
    fn ack(&mut self, channel: ChannelId, tag: u64) -> bool {
        let Some(index) = self.clients.find_sent(&self.queues, channel, tag) else { return false };
        self.clients.leave_unacknowledged(&mut self.queues, channel, index);
        self.uncount(index);
        true
    }

    fn uncount(&mut self, index: usize) {
        self.clients.uncount_delivery(&self.messages, &mut self.queues, &mut self.quota, index);
        let delivery = self.queues.deliveries_mut().remove(index);
        let mut cx = Context::new(&mut self.pending_writes, &mut self.messages, &mut self.work);
        self.queues.settle_delivered(&mut cx, delivery.queue.unwrap(), &delivery);
        match self.clients.shares_credit(delivery.channel) {
            true => self.clients.make_all_eligible(&mut self.work, &mut self.queues, delivery.channel),
            false => {
                let consumer = delivery.consumer.unwrap().index();
                self.clients.make_eligible(&mut self.work, &mut self.queues, consumer);
            }
        }
    }

    fn end(&mut self, consumer: usize) -> Option<QueueId> {
        self.clients.end(&mut self.work, &mut self.queues, consumer)
    }

    fn set_writable(&mut self, channel: ChannelId, writable: bool) {
        let connection = self.clients.connection_of(channel);
        let (work, queues) = (&mut self.work, &mut self.queues);
        self.clients.set_writable(work, queues, &self.quota, connection, writable);
    }
}

// ---- turns

#[test]
fn waiting_consumers_have_the_credit_of_their_prefetch() {
    let mut world = ClientsFixture::new();
    let (queue, channel) = (world.queue(false, 0), world.channel());
    assert_eq!(world.clients.waiting_credit(&world.queues, &world.quota, queue), 0);
    world.clients.channel_mut(channel).prefetch_count = 2;
    for tag in ["a", "b"] {
        world.start(channel, queue, plain(tag));
    }
    world.put(queue);
    assert_eq!(
        world.clients.waiting_credit(&world.queues, &world.quota, queue),
        4,
        "two consumers, two each"
    );
}

// ---- credit

#[test]
fn a_prefetch_stops_its_consumer_until_something_is_settled() {
    let mut world = ClientsFixture::new();
    let (queue, channel) = (world.queue(false, 5), world.channel());
    world.clients.channel_mut(channel).prefetch_count = 2;
    let consumer = world.start(channel, queue, plain("a"));
    assert_eq!((world.deliver_all(queue), world.clients.credit(consumer)), ("a a".to_owned(), 0));
    world.written(channel);
    assert_eq!(world.deliver_all(queue), "", "written is not settled");
    assert!(world.ack(channel, 1));
    assert_eq!(world.deliver_all(queue), "a");
    world.start(channel, queue, NewConsumer { no_ack: true, ..plain("b") });
    assert_eq!(world.deliver_all(queue), "b b", "who acknowledges nothing has no prefetch of his own");
}

// ---- what a connection takes

#[test]
fn a_consumer_is_skipped_while_its_socket_is_not_writable() {
    let mut world = ClientsFixture::new();
    let queue = world.queue(false, 3);
    let [slow, fast] = [(); 2].map(|()| world.channel());
    world.start(slow, queue, plain("slow"));
    world.set_writable(slow, false);
    assert_eq!(world.deliver(queue), None);
    assert!(!world.queues.records().queue_consumers(queue).is_ready(), "it costs nothing");
    world.start(fast, queue, plain("fast"));
    assert_eq!(world.deliver(queue).as_deref(), Some("fast"));
    world.queues.records_mut().leave_ready(queue);
    world.set_writable(slow, true);
    assert_eq!(world.queues.records_mut().pop_ready(), Some(queue));
    assert_eq!(world.deliver_all(queue), "fast slow");
}

#[test]
fn an_outbox_is_limited_to_its_budget() {
    let mut world = ClientsFixture::with_deliveries(200);
    let (queue, channel) = (world.queue(false, 50), world.channel());
    world.start(channel, queue, plain("a"));
    let connection = world.clients.connection_of(channel);
    let most = world.deliver_all(queue).split(' ').count();
    let record = world.clients.connection(connection);
    assert!((1_000..1_100).contains(&record.outbox_bytes), "{} bytes", record.outbox_bytes);
    assert!(most < 50 && record.outbox.len() as usize == most);
    assert_eq!(world.clients.next_with_output(), Some(connection));
    world.written(channel);
    assert_eq!(world.clients.connection(connection).outbox_bytes, 0);
    assert_eq!(world.deliver_all(queue).split(' ').count(), most);
}

#[test]
fn a_connection_over_its_delivery_share_waits_for_a_settlement() {
    let mut world = ClientsFixture::with_deliveries(8);
    let queue = world.queue(false, 8);
    let [one, two] = [(); 2].map(|()| world.channel());
    world.clients.channel_mut(two).prefetch_count = 2;
    world.start(one, queue, plain("one"));
    world.start(two, queue, plain("two"));
    assert_eq!(world.deliver_all(queue), "one two one two one");
    world.written(two);
    assert!(!world.clients.may_resume_over_share());
    let consumer = world.clients.find_by_tag(two, "two").unwrap();
    world.end(consumer);
    (1..=2).for_each(|tag| assert!(world.ack(two, tag)));
    assert_eq!(world.deliver(queue), None, "nobody has looked yet");
    assert!(world.clients.may_resume_over_share());
    world.clients.recheck_over_share(&mut world.work, &mut world.queues, &world.quota);
    assert_eq!(world.deliver_all(queue), "one", "half of all is left to others");
}

#[test]
fn a_consumer_continues_whose_share_was_used_up_while_its_output_was_full() {
    let mut world = ClientsFixture::with_deliveries(50);
    let (queue, channel) = (world.queue(false, 30), world.channel());
    let (other_queue, other) = (world.queue(false, 30), world.channel());
    world.start(channel, queue, plain("a"));
    let most = world.deliver_all(queue).split(' ').count() as u64;
    world.start(other, other_queue, plain("b"));
    let taken = world.deliver_all(other_queue).split(' ').count() as u64;
    assert!(2 * most + taken >= 50, "the other has left too little for {most} deliveries: {taken}");
    world.written(channel);
    assert_eq!(world.deliver_all(queue), "");
    world.written(other);
    world.end(world.clients.find_by_tag(other, "b").unwrap());
    (1..=taken).for_each(|tag| assert!(world.ack(other, tag)));
    world.clients.recheck_over_share(&mut world.work, &mut world.queues, &world.quota);
    assert!(world.deliver_all(queue).starts_with('a'));
}

// ---- one at a time

#[test]
fn the_single_active_consumer_is_followed_by_the_highest_priority() {
    let mut world = ClientsFixture::new();
    let (queue, channel) = (world.queue(true, 2), world.channel());
    let active = world.start(channel, queue, plain("active"));
    let low = world.start(channel, queue, NewConsumer { priority: -1, ..plain("low") });
    let high = world.start(channel, queue, NewConsumer { priority: 1, ..plain("high") });
    assert_eq!(world.deliver_all(queue), "active active");
    assert_eq!(world.queues.records().queue_consumers(queue).single_active(), Some(active));
    world.end(low);
    assert_eq!(world.queues.records().queue_consumers(queue).single_active(), Some(active));
    world.start(channel, queue, plain("plain"));
    world.end(active);
    world.put(queue);
    assert_eq!(world.deliver_all(queue), "high");
    world.end(high);
    world.put(queue);
    assert_eq!(world.deliver_all(queue), "plain");
}

// ---- tags

#[test]
fn a_tag_is_settled_once_and_only_when_its_delivery_was_written() {
    let mut world = ClientsFixture::new();
    let (queue, channel) = (world.queue(false, 3), world.channel());
    let other = world.channel();
    world.start(channel, queue, plain("a"));
    world.deliver(queue).unwrap();
    assert!(!world.ack(channel, 1), "nobody has seen it");
    world.written(channel);
    world.deliver_all(queue);
    assert!(world.clients.first_sent(&world.queues, channel, u64::MAX).is_some());
    assert!(!world.ack(channel, 2) && !world.ack(other, 1) && !world.ack(channel, 0));
    assert!(world.ack(channel, 1) && !world.ack(channel, 1));
    assert_eq!(world.clients.first_sent(&world.queues, channel, u64::MAX), None);
    world.written(channel);
    let first = world.clients.first_sent(&world.queues, channel, 2).unwrap();
    assert_eq!(world.queues.deliveries()[first].tag, 2, "the oldest");
    assert!(world.ack(channel, 3), "in any order");
    assert!(world.ack(channel, 2));
    assert_eq!((world.messages.messages_used(), world.queues.deliveries().len()), (0, 0));
}

#[test]
fn a_reply_follows_earlier_deliveries_of_its_channel() {
    let mut world = ClientsFixture::new();
    let (queue, channel) = (world.queue(false, 2), world.channel());
    let connection = world.clients.connection_of(channel);
    let other = world.another_channel(connection);
    world.start(channel, queue, plain("a"));
    world.deliver_all(queue);
    let order = |world: &ClientsFixture, channel| world.clients.reply_order(connection, Some(channel));
    assert_eq!((order(&world, channel), order(&world, other)), (2, 0));
    world.written(channel);
    assert_eq!(order(&world, channel), 0);
}

// ---- records

#[test]
fn a_consumer_is_found_by_its_tag_on_its_channel_until_it_ends() {
    let mut world = ClientsFixture::new();
    let queue = world.queue(false, 0);
    let [one, two] = [(); 2].map(|()| world.channel());
    let consumers = [one, two].map(|channel| world.start(channel, queue, plain("same")));
    assert_eq!([one, two].map(|channel| world.clients.find_by_tag(channel, "same").unwrap()), consumers);
    assert_eq!((world.end(consumers[0]), world.end(consumers[0])), (Some(queue), None));
    assert_eq!(world.clients.find_by_tag(one, "same"), None);
    assert_eq!((world.clients.active_on(one), world.clients.active_on(two)), (0, 1));
    assert_eq!(world.queues.records().queue_consumers(queue).len(), 1);
}

#[test]
fn records_are_freed_only_when_everything_is_requeued() {
    let mut world = ClientsFixture::new();
    let (queue, channel) = (world.queue(false, 1), world.channel());
    let connection = world.clients.connection_of(channel);
    let consumer = world.start(channel, queue, plain("a"));
    world.deliver_all(queue);
    assert_eq!(world.clients.free_if_done(&mut world.quota, consumer), None);
    world.end(consumer);
    world.clients.free_if_done(&mut world.quota, consumer);
    assert!(world.clients.find_consumer(consumer).is_some(), "it knows where its message came from");
    world.clients.channel_mut(channel).state = ChannelState::Cleared;
    world.clients.free_channel_if_done(&mut world.quota, channel);
    assert!(world.clients.find_channel(channel).is_some(), "it has a consumer, and a delivery to send");
    world.written(channel);
    assert!(world.ack(channel, 1));
    world.clients.free_if_done(&mut world.quota, consumer);
    assert!(world.clients.find_consumer(consumer).is_none());
    world.clients.free_channel_if_done(&mut world.quota, channel);
    assert!(world.clients.find_channel(channel).is_none());
    // The deliveries are requeued before the socket is closed, or after it.
    for is_released_first in [true, false] {
        let connection = match is_released_first {
            true => connection,
            false => world.clients.connect(&mut world.quota).expect("a record is free"),
        };
        assert!(world.clients.connection_mut(connection).close());
        assert!(!world.clients.connection_mut(connection).close(), "it is closed already");
        world.quota.leave_vhost(connection);
        for is_release in [is_released_first, !is_released_first] {
            assert!(world.clients.free_connection_if_done(&mut world.quota, connection).is_none());
            let record = world.clients.connection_mut(connection);
            if is_release { record.note_released() } else { record.note_cleared() }
        }
        assert!(world.clients.free_connection_if_done(&mut world.quota, connection).is_some());
    }
    let fills =
        [world.clients.connections_fill(), world.clients.channels_fill(), world.clients.consumers_fill()];
    assert_eq!((fills.map(|fill| fill.used), world.quota.holders()), ([0; 3], 0));
}

#[test]
fn a_client_is_notified_of_each_consumer_cancelled_by_the_broker() {
    let mut world = ClientsFixture::new();
    let (queue, channel) = (world.queue(false, 0), world.channel());
    let connection = world.clients.connection_of(channel);
    let [one, two] = ["one", "two"].map(|tag| world.start(channel, queue, plain(tag)));
    for consumer in [one, two] {
        world.end(consumer);
        world.clients.note_cancelled(consumer);
        world.clients.free_if_done(&mut world.quota, consumer);
    }
    assert!(world.clients.has_output(connection));
    assert_eq!(world.clients.find_cancelled(channel, "two"), Some(two));
    for (consumer, tag) in [(one, "one"), (two, "two")] {
        assert_eq!(world.clients.next_cancelled(connection), Some((1, tag, 0)));
        world.clients.leave_cancelled(consumer);
        world.clients.free_if_done(&mut world.quota, consumer);
    }
    assert!(!world.clients.has_output(connection));
    assert_eq!(world.clients.consumers_fill().used, 0);
}

#[test]
fn a_queue_waits_for_messages_being_requeued() {
    let mut world = ClientsFixture::new();
    let (queue, channel) = (world.queue(false, 2), world.channel());
    let consumer = world.start(channel, queue, plain("a"));
    world.deliver(queue).unwrap();
    world.clients.mark_requeueing(&mut world.queues, channel);
    world.clients.mark_requeueing(&mut world.queues, channel);
    assert_eq!(world.deliver(queue), None, "what comes back goes first");
    assert_eq!(world.clients.take_requeueing(consumer), Some(queue));
    assert_eq!(world.clients.take_requeueing(consumer), None, "once");
    world.queues.end_blocking_job(queue);
    assert_eq!(world.deliver_all(queue), "a");
}

#[test]
fn a_connection_is_closed_by_force_once_with_the_first_reason() {
    let mut world = ClientsFixture::new();
    let connections = [(); 2].map(|()| world.channel()).map(|c| world.clients.connection_of(c));
    world.clients.force_close(connections[1], super::forced("first"));
    world.clients.force_close_all("second", |_| true);
    let told: Vec<(ConnectionId, Fault)> = core::iter::from_fn(|| world.clients.next_forced()).collect();
    let told: Vec<_> = told.iter().map(|(connection, fault)| (*connection, &*fault.text)).collect();
    let reason = |at: usize| told[at].1;
    assert_eq!(told.iter().map(|told| told.0).collect::<Vec<_>>(), [connections[1], connections[0]]);
    assert!(reason(0).contains("first") && reason(1).contains("second"), "{told:?}");
    assert!(!world.clients.has_forced());
}
