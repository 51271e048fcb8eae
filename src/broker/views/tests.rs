//! Tests of views alone: what is shown of which record, and the text for waiting publishers.

use leveret_core::command::{AppliedPolicies, ConnectionId, Name, QueueId, VhostId};
use leveret_core::limits::Limits;
use leveret_core::mem::{Memory, MessageFlags, Messages, Share};
use leveret_core::quota::Quota;
use leveret_core::work::Work;
use leveret_queues::{
    Pool, Queue, QueueKind, QueueSettings, QueueState, Queues, Shortage, WaitingPublishers, first_rank,
};
use leveret_routing::{ExchangeDeclaration, NewExchange, Topology};
use leveret_storage::{PendingWrites, Urgency};

use super::*;
use crate::Context;
use crate::access::{Access, FIRST_VHOST};
use crate::clients::{Clients, ConsumerState, NewConsumer};
use crate::parameters::Parameters;
use crate::policy::Policies;

/// The parts that views borrow, and the objects that these borrow.
struct ViewsFixture {
    access: Access,
    policies: Policies,
    parameters: Parameters,
    topology: Topology,
    queues: Queues,
    clients: Clients,
    quota: Quota,
    sessions: Sessions,
    retained: Retained,
    memory: Memory,
    pending_writes: PendingWrites,
    messages: Messages,
    work: Work,
    vhost: VhostId,
}

impl ViewsFixture {
    /// Capacity for 100 messages and 12 queues.
    fn new() -> Self {
        let limits = Limits { queues_max: 12, messages_max: 100, ..Limits::default() };
        let mut access = Access::new(&limits, &Memory::unlimited(), &mut |bytes: &mut [u8]| bytes.fill(7), 1);
        let vhost = access.add_vhost(FIRST_VHOST).unwrap();
        let quota = Quota::new(&limits, &Memory::unlimited());
        let messages = Messages::new(limits.message_limits());
        let capacity = leveret_routing::Capacity {
            exchanges: 20,
            bindings: 40,
            exchange_side_bytes: 0,
            binding_side_bytes: 0,
        };
        Self {
            access,
            policies: Policies::with_capacity(4, &Memory::unlimited()),
            parameters: Parameters::with_capacity(4, &Memory::unlimited(), 1),
            topology: Topology::with_capacity(capacity, 4096, &Memory::unlimited(), 1),
            queues: Queues::new(&limits, &Memory::unlimited(), 1, 0),
            clients: Clients::new(&limits, &Memory::unlimited(), 1),
            quota,
            sessions: Sessions::new(&limits, &Memory::unlimited(), 1),
            retained: Retained::new(&limits, &Memory::unlimited(), 1),
            memory: Memory::unlimited(),
            pending_writes: PendingWrites::new(64),
            messages,
            work: Work::default(),
            vhost,
        }
    }

    fn views(&self) -> Views<'_> {
        Views {
            access: &self.access,
            policies: &self.policies,
            parameters: &self.parameters,
            topology: &self.topology,
            queues: &self.queues,
            clients: &self.clients,
            quota: &self.quota,
            sessions: &self.sessions,
            retained: &self.retained,
            memory: &self.memory,
        }
    }

    fn queue_with(&mut self, name: &str, change: impl FnOnce(&mut QueueSettings)) -> QueueId {
        let mut settings =
            QueueSettings::of(&self.policies.effective_policy(&[], AppliedPolicies::default()));
        change(&mut settings);
        let mut record = Queue::new(self.vhost, name, &[], settings);
        record.rank = first_rank(&mut self.pending_writes, &record, 0);
        self.queues.records_mut().insert(record)
    }

    fn queue(&mut self, name: &str) -> QueueId {
        self.queue_with(name, |_| {})
    }

    /// Pushes a message of 10 bytes with these properties to a queue.
    fn put(&mut self, queue: QueueId, properties: &[u8]) {
        let message = self.messages.begin("", b"q", Share::Ordinary).unwrap();
        self.messages.reserve_content(message, properties, MessageFlags::NONE, 10, Share::Ordinary).unwrap();
        self.messages.append_body(message, &[0; 10]);
        self.messages.finish(message);
        let mut targets = vec![queue];
        let mut cx = Context::new(&mut self.pending_writes, &mut self.messages, &mut self.work);
        self.queues.choose_levels(&mut cx, &mut self.quota, message, &mut targets);
        self.queues.push(&mut cx, message, &targets, Urgency::Window);
        self.messages.release(message);
    }

    /// Starts a consumer of a queue, on its own connection.
    fn consumer(&mut self, queue: QueueId, tag: &str, exclusive: bool) -> ConnectionId {
        let connection = self.clients.connect(&mut self.quota).unwrap();
        self.quota.enter_vhost(connection, self.vhost);
        let channel = self.clients.open_channel(&mut self.quota, connection, self.vhost, 1).unwrap();
        let consumer = self.clients.add(&mut self.quota, channel, queue, ConsumerState::Active).unwrap();
        let new = NewConsumer { tag: Name::try_from(tag).unwrap(), priority: 0, no_ack: false, exclusive };
        self.clients.start(&mut self.work, &mut self.queues, consumer, new);
        connection
    }

    /// Returns the names of the queues that are listed.
    fn listed(&self) -> Vec<&str> {
        let views = self.views();
        views.queues().map(|row| row.name).collect()
    }

    /// Returns the text for this many publishers that have waited for 2.5 s, and one that waits for something
    /// else.
    fn explained(&self, shortage: Shortage, count: u32) -> String {
        let waiters = WaitingPublishers { shortage, count, for_ms: 2_500, others: count.min(1) };
        self.views().explain(&self.pending_writes, &self.messages, waiters, DiskFacts::default()).to_string()
    }
}

#[test]
fn a_listing_has_neither_hidden_queues_nor_levels_nor_deleted_ones() {
    let mut world = ViewsFixture::new();
    let ranked = world.queue_with("ranked", |settings| settings.max_priority = 9);
    let gone = world.queue("gone");
    world.queue("kept");
    world.put(ranked, b"\x08\0\x05");
    let mut hidden = Queue::new(world.vhost, "", &[], world.queues.at(gone).settings);
    hidden.kind = QueueKind::DirectReply;
    world.queues.records_mut().insert_hidden(hidden);
    assert_eq!(world.listed(), ["ranked", "gone", "kept"]);
    assert_eq!(world.queues.records().queue_count(), 5, "a level and a hidden one besides");
    world.queues.records_mut().retire(gone);
    assert_eq!(world.listed(), ["ranked", "kept"]);
    assert_eq!(world.views().depth_of(FIRST_VHOST), (1, 0));
    assert_eq!(world.views().depth_of("elsewhere"), (0, 0));
}

#[test]
fn a_row_counts_all_levels_of_its_queue() {
    let mut world = ViewsFixture::new();
    let queue = world.queue_with("q", |settings| settings.max_priority = 9);
    [0_u8, 5, 5, 9].into_iter().for_each(|priority| world.put(queue, &[8, 0, priority]));
    let row = world.views().queues().at(queue.index()).unwrap();
    assert_eq!((row.messages_ready, row.messages_ready_ram, row.message_bytes_ready), (4, 4, 40));
    assert_eq!((row.arrived, row.taken, row.messages_unacknowledged), (4, 0, 0));
    let alone = world.queue("alone");
    let views = world.views();
    let bytes = [queue, alone].map(|queue| views.queues().at(queue.index()).unwrap().memory_bytes);
    assert!(bytes[0] > 3 * bytes[1], "three records, and messages: {bytes:?}");
}

#[test]
fn a_row_shows_the_owner_and_consumers_of_a_queue() {
    let mut world = ViewsFixture::new();
    let [shared, exclusive] = ["shared", "exclusive"].map(|name| world.queue(name));
    let single = world.queue_with("single", |settings| settings.single_active = true);
    world.consumer(shared, "a", false);
    world.consumer(exclusive, "b", true);
    world.consumer(single, "c", false);
    world.consumer(single, "d", false);
    let views = world.views();
    let tags = [shared, exclusive, single].map(|queue| {
        let row = views.queues().at(queue.index()).unwrap();
        let tag = |consumer: Option<(&str, _)>| consumer.map(|(tag, _)| tag.to_string());
        (row.consumers, tag(row.exclusive_consumer), tag(row.single_active_consumer))
    });
    let said = |tag: &str| Some(tag.to_string());
    assert_eq!(tags, [(1, None, None), (1, said("b"), None), (2, None, said("c"))]);
    let activities = views.consumers().map(|consumer| consumer.activity);
    let (up, first, waiting) =
        (ConsumerActivity::Up, ConsumerActivity::SingleActive, ConsumerActivity::Waiting);
    assert_eq!(activities.collect::<Vec<_>>(), [up, up, first, waiting]);
}

#[test]
fn a_binding_is_shown_while_its_source_and_destination_are() {
    let mut world = ViewsFixture::new();
    let queue = world.queue("q");
    let (durable, auto_delete, internal) = (false, false, false);
    let declaration =
        ExchangeDeclaration { exchange: "x", kind: "direct", durable, auto_delete, internal, arguments: &[] };
    let (vhost, version) = (world.vhost, 0);
    let new = NewExchange { vhost, declaration, version, declarer: None, delayed_queue: None };
    let exchange = world.topology.insert_exchange(&new);
    let spec = leveret_routing::BindingSpec { source: "x", routing_key: "key", arguments: &[] };
    let found = spec.between(exchange, leveret_routing::Destination::Queue(queue));
    let mut cx = Context::new(&mut world.pending_writes, &mut world.messages, &mut world.work);
    world.topology.bind(&mut cx, "/", &mut world.quota, world.queues.records_mut(), &found).unwrap();
    let shown = |world: &ViewsFixture| {
        let row = world.views().bindings().at(0)?;
        Some(format!("{} {} {} {}", row.source, row.routing_key, row.destination, row.to_exchange))
    };
    assert_eq!(shown(&world).as_deref(), Some("x key q false"));
    world.queues.records_mut().retire(queue);
    assert_eq!(shown(&world), None);
}

#[test]
fn the_text_names_the_shortage_its_amounts_and_the_remedy() {
    let mut world = ViewsFixture::new();
    let queue = world.queue("a 'name'\n");
    (0..3).for_each(|_| world.put(queue, &[]));
    assert_eq!(
        world.explained(Shortage::Pool(Pool::Messages), 2),
        "memory: messages use up their part of memory_limit, 3 of 100, most by queue 'a \\'name\\'\\n' (virtual host '/'), 3; \
         2 publishers have waited, the first for 2 s, and 1 other for something else; consume or purge that \
         queue, or raise memory_limit"
    );
    let one = world.explained(Shortage::Pool(Pool::Unacknowledged), 1);
    assert!(one.contains("unacknowledged deliveries use up their part of memory_limit"), "{one}");
    assert!(
        one.contains("; 1 publisher has waited for 2 s, and 1 other") && one.ends_with("raise memory_limit")
    );
    let none = world.explained(Shortage::QueueMemory(queue), 0);
    assert!(
        none.contains("' (virtual host '/') uses its whole share of ")
            && none.contains("no publisher waits yet"),
        "{none}"
    );
    world.queues.records_mut().retire(queue);
    world.queues.at_mut(queue).state = QueueState::Cleared;
    world.queues.take_if_done(queue).expect("nothing refers to it");
    let gone = world.explained(Shortage::QueueMemory(queue), 1);
    assert!(gone.contains("a queue; 1 publisher") && gone.ends_with("this ends by itself"), "{gone}");
}

/// Whatever publishers wait for, the text ends with the remedy, and names only keys of the configuration.
#[test]
fn each_cause_has_its_text() {
    let mut world = ViewsFixture::new();
    let queue = world.queue("q");
    let pools =
        [Pool::Memory, Pool::Messages, Pool::Bodies, Pool::Assembly, Pool::Entries, Pool::Unacknowledged];
    let of_pools = pools.into_iter().map(Shortage::Pool);
    let others = [
        Shortage::QueueMemory(queue),
        Shortage::Returns,
        Shortage::Commit,
        Shortage::Unwritable,
        Shortage::DiskLimit,
        Shortage::Index,
        Shortage::FileSystem,
        Shortage::QueueDisk(queue),
    ];
    let mut texts = std::collections::BTreeSet::new();
    for shortage in of_pools.chain(others) {
        let text = world.explained(shortage, 1);
        assert!(text.starts_with(&format!("{}: ", shortage.kind())), "{text}");
        let deed = text.split("something else; ").nth(1).unwrap();
        let is_deed = ["consume", "make ", "raise ", "this ", "repair ", "free "];
        assert!(is_deed.iter().any(|verb| deed.starts_with(verb)), "{text}");
        assert!(texts.insert(text.clone()), "the text of another cause: {text}");
    }
}
