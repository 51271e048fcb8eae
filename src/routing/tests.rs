//! Tests of the topology alone: creating and deleting exchanges and bindings, routing, and the definitions
//! written.

use leveret_amqp::field::TableWriter;
use leveret_amqp::{Full, Writer};
use leveret_core::command::BindingId;
use leveret_core::limits::Limits;
use leveret_core::quota::FreeCapacity;
use leveret_storage::{LogEntry, PendingWrites};

use super::*;

/// A queue as routing knows it.
#[derive(Default)]
struct NamedQueue {
    name: String,
    incarnation: u64,
    is_deleted: bool,
    marked: u64,
    bindings: List,
}

/// Queues of one virtual host. Their identifiers are their places.
#[derive(Default)]
struct NamedQueues(Vec<NamedQueue>);

impl NamedQueues {
    fn at_mut(&mut self, queue: QueueId) -> &mut NamedQueue {
        &mut self.0[queue.index()]
    }
}

impl RoutedQueues for NamedQueues {
    fn find(&self, _: VhostId, name: &str) -> Option<QueueId> {
        let has_name = |queue: &NamedQueue| queue.name == name && !queue.is_deleted;
        self.0.iter().position(has_name).map(QueueId::from_index)
    }

    fn stored_name(&self, queue: QueueId) -> (&str, u64) {
        let queue = &self.0[queue.index()];
        (&queue.name, queue.incarnation)
    }

    fn mark(&mut self, queue: QueueId, routing: u64) -> bool {
        let queue = self.at_mut(queue);
        core::mem::replace(&mut queue.marked, routing) != routing && !queue.is_deleted
    }

    fn bindings_mut(&mut self, queue: QueueId) -> &mut List {
        &mut self.at_mut(queue).bindings
    }

    fn free_count(&self) -> usize {
        100
    }
}

/// A topology with everything its methods borrow.
struct TopologyFixture {
    topology: Topology,
    quota: Quota,
    queues: NamedQueues,
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

/// The default exchange, which every virtual host has under the empty name.
const DEFAULT: ExchangeDeclaration<'_> = declaration("", "direct", &[]);

const fn declaration<'a>(exchange: &'a str, kind: &'a str, arguments: &'a [u8]) -> ExchangeDeclaration<'a> {
    let (durable, auto_delete, internal) = (true, false, false);
    ExchangeDeclaration { exchange, kind, durable, auto_delete, internal, arguments }
}

impl TopologyFixture {
    fn new() -> Self {
        let limits = Limits { exchanges_max: 20, bindings_max: 40, ..Limits::default() };
        let mut pending_writes = PendingWrites::new(64);
        pending_writes.start(1, true, u64::MAX);
        let quota = Quota::new(&limits, &Memory::unlimited());
        let capacity =
            Capacity { exchanges: 20, bindings: 40, exchange_side_bytes: 0, binding_side_bytes: 0 };
        let messages = Messages::new(limits.message_limits());
        Self {
            topology: Topology::with_capacity(capacity, 4096, &Memory::unlimited(), 1),
            quota,
            queues: NamedQueues::default(),
            pending_writes,
            messages,
            work: Work::default(),
            vhost: VhostId::from_index(0),
        }
    }

    /// Declares an exchange that is written if it is durable, and has a hidden queue if it is delayed.
    fn add(&mut self, declaration: ExchangeDeclaration<'_>) -> ExchangeId {
        let vhost = self.vhost;
        if !declaration.exchange.is_empty() {
            let (bytes, room) =
                (declaration.bytes(), FreeCapacity { queues: 0, exchanges: 20, bindings: 40 });
            self.quota.declare(Declared::Exchange, bytes, None, room).unwrap();
        }
        let is_logged = declaration.durable && !declaration.exchange.is_empty();
        let version = if is_logged { self.pending_writes.next_version() } else { 0 };
        let delayed_queue = declaration.is_delayed().then(|| self.hidden_queue());
        let new = NewExchange { vhost, declaration, version, declarer: None, delayed_queue };
        let exchange = self.topology.insert_exchange(&new);
        let mut cx = Context::new(&mut self.pending_writes, &mut self.messages, &mut self.work);
        self.topology.append_exchange(&mut cx, "/", exchange, true);
        exchange
    }

    fn hidden_queue(&mut self) -> QueueId {
        self.queue("", 0)
    }

    /// Creates a queue that the log has under this incarnation, or not at all with 0.
    fn queue(&mut self, name: &str, incarnation: u64) -> QueueId {
        self.queues.0.push(NamedQueue { name: name.to_string(), incarnation, ..NamedQueue::default() });
        QueueId::from_index(self.queues.0.len() - 1)
    }

    fn bind(
        &mut self,
        source: ExchangeId,
        destination: Destination,
        routing_key: &str,
        arguments: &[u8],
    ) -> Result<(), Fault> {
        let new = BindingSpec { source: "", routing_key, arguments }.between(source, destination);
        let mut cx = Context::new(&mut self.pending_writes, &mut self.messages, &mut self.work);
        self.topology.bind(&mut cx, "/", &mut self.quota, &mut self.queues, &new)
    }

    /// Declares a queue that is not in the log, and binds it.
    fn bound(&mut self, source: ExchangeId, queue: &str, routing_key: &str, arguments: &[u8]) {
        let found = self.queues.find(self.vhost, queue);
        let queue = found.unwrap_or_else(|| self.queue(queue, 0));
        self.bind(source, Destination::Queue(queue), routing_key, arguments).unwrap();
    }

    fn remove(&mut self, binding: BindingId) -> Option<ExchangeId> {
        let mut cx = Context::new(&mut self.pending_writes, &mut self.messages, &mut self.work);
        let (quota, queues) = (&mut self.quota, &mut self.queues);
        self.topology.remove_binding(&mut cx, "/", quota, queues, binding)
    }

    fn retire(&mut self, exchange: ExchangeId) {
        let mut cx = Context::new(&mut self.pending_writes, &mut self.messages, &mut self.work);
        self.topology.retire_exchange(&mut cx, "/", exchange);
    }

    /// Returns the names of the queues that a message is routed to, separated by a space.
    fn targets(&mut self, exchange: ExchangeId, key: &str, headers: &[u8]) -> String {
        let mut chosen = Vec::new();
        let mut targets = Targets { queues: &mut self.queues, chosen: &mut chosen };
        self.topology.limit_routing(&mut self.work, 1);
        let headers = Table::trusted(headers);
        self.topology.route(&mut self.work, exchange, key.as_bytes(), headers, &mut targets).unwrap();
        self.work.lift_limit();
        let mut names: Vec<&str> = chosen.iter().map(|queue| self.queues.stored_name(*queue).0).collect();
        names.sort_unstable();
        names.join(" ")
    }

    /// Returns the definitions written since the last call: kind and source of each, with a `-` if it is
    /// deleted.
    fn written(&mut self) -> Vec<String> {
        let mut written = Vec::new();
        while let Some(fact) = self.pending_writes.next_entry() {
            let LogEntry::Defined { key, value, .. } = fact else { panic!("no definition") };
            let names: String =
                key.iter().filter(|byte| byte.is_ascii_lowercase()).map(|byte| char::from(*byte)).collect();
            written.push(format!("{}{names}", if value.is_some() { "" } else { "-" }));
            self.pending_writes.pop_entry();
        }
        written
    }
}

#[test]
fn invalid_declarations_are_refused_with_a_reason() {
    let (number, twice) = (
        table(|table| table.long("alternate-exchange", 1)),
        table(|table| table.text("x-delayed-type", DELAYED)),
    );
    let text = |result: Result<(), Fault>| result.unwrap_err().text;
    let askable = |exchange, kind| text(declaration(exchange, kind, &[]).check_type_and_name());
    assert!(askable("x", "x-random").contains("RabbitMQ has it with rabbitmq_random_exchange"));
    assert!(askable("x", "").contains("invalid exchange type ''"));
    assert!(askable("", "odd").contains("unknown exchange type 'odd'"), "the type comes first");
    assert!(askable("", "fanout").contains("not permitted on the default exchange"));
    declaration("x", DELAYED, &[]).check_type_and_name().unwrap();
    assert!(declaration("x", DELAYED, &twice).new_kind().is_err(), "it would never be routed");
    assert!(text(declaration("amq.x", "fanout", &[]).check_name()).contains("reserved prefix"));
    let odd = declaration("x", "fanout", &number).alternate("/");
    assert!(text(odd.map(|_| ())).contains("for arg 'alternate-exchange' in exchange 'x' in vhost '/'"));
    let deletable = |name| check_deletable_name(ExchangeText { name, vhost: "/" });
    assert!(text(deletable("amq.topic")).contains("deletion of system exchange 'amq.topic'"));
    assert!(deletable("").is_err() && deletable("x").is_ok());
}

#[test]
fn each_exchange_type_routes_by_its_rule() {
    let mut world = TopologyFixture::new();
    let [default, direct, fanout, topic, headers] = [
        DEFAULT,
        declaration("d", "direct", &[]),
        declaration("f", "fanout", &[]),
        declaration("t", "topic", &[]),
        declaration("h", "headers", &[]),
    ]
    .map(|declaration| world.add(declaration));
    let one = table(|table| table.long("one", 1));
    let both = table(|table| table.long("one", 1).and_then(|()| table.long("two", 2)));
    let any = table(|table| {
        table.text("x-match", "any").and_then(|()| table.long("two", 2)).and_then(|()| table.long("three", 3))
    });
    for (source, queue, key, arguments) in [
        (direct, "a", "a", &[][..]),
        (direct, "b", "b", &[]),
        (fanout, "a", "x", &[]),
        (fanout, "b", "y", &[]),
        (topic, "a", "kern.*", &[]),
        (topic, "b", "#", &[]),
        (topic, "c", "kern.disk.#", &[]),
        (headers, "a", "", &both),
        (headers, "b", "", &any),
        (headers, "c", "", &[]),
    ] {
        world.bound(source, queue, key, arguments);
    }
    assert_eq!(world.targets(default, "c", &[]), "c");
    assert_eq!(world.targets(direct, "b", &[]), "b");
    assert_eq!(world.targets(direct, "c", &[]), "");
    assert_eq!(world.targets(fanout, "", &[]), "a b");
    assert_eq!(world.targets(topic, "kern.disk", &[]), "a b c");
    assert_eq!(world.targets(topic, "", &[]), "b");
    assert_eq!(world.targets(headers, "", &one), "c");
    assert_eq!(world.targets(headers, "", &both), "a b c");
    let copies = table(|table| table.array("CC", |keys| keys.long_str(b"a")));
    assert_eq!(world.targets(direct, "b", &copies), "a b", "each key counts");
}

#[test]
fn a_delayed_exchange_holds_delayed_messages_and_routes_others() {
    let mut world = TopologyFixture::new();
    let arguments = table(|table| table.text("x-delayed-type", "fanout"));
    let delayed = world.add(declaration("later", DELAYED, &arguments));
    world.bound(delayed, "a", "", &[]);
    assert_eq!(world.targets(delayed, "", &[]), "a");
    let (delay, mut chosen) = (table(|table| table.long("x-delay", 5)), Vec::new());
    let mut targets = Targets { queues: &mut world.queues, chosen: &mut chosen };
    let (work, headers) = (&mut world.work, Table::trusted(&delay));
    assert!(world.topology.route(work, delayed, b"", headers, &mut targets).unwrap());
    assert_eq!(chosen, Vec::from_iter(world.topology.exchange(delayed).delayed_queue));
}

#[test]
fn unmatched_messages_go_to_the_alternate_exchange_without_cycles() {
    let mut world = TopologyFixture::new();
    let to_two = table(|table| table.text("alternate-exchange", "two"));
    let to_one = table(|table| table.text("alternate-exchange", "one"));
    let one = world.add(declaration("one", "direct", &to_two));
    let two = world.add(declaration("two", "direct", &to_one));
    world.bound(one, "a", "a", &[]);
    world.bound(two, "b", "b", &[]);
    assert_eq!(world.targets(one, "a", &[]), "a");
    assert_eq!(world.targets(one, "b", &[]), "b");
    assert_eq!(world.targets(one, "c", &[]), "", "both send it to the other, once");
    for (source, destination) in [(one, two), (two, one), (one, one)] {
        world.bind(source, Destination::Exchange(destination), "a", &[]).unwrap();
    }
    world.bound(two, "a", "a", &[]);
    assert_eq!(world.targets(one, "a", &[]), "a", "each queue once");
    let before = world.topology.revision();
    world.topology.apply_policies(one, AppliedPolicies::default(), Some("elsewhere".into()));
    assert_eq!(world.topology.revision(), before, "what it was declared with comes before policies");
    world.retire(two);
    assert_eq!(world.targets(one, "b", &[]), "", "nobody comes to what is gone");
}

#[test]
fn removing_the_last_binding_returns_an_auto_delete_exchange() {
    let mut world = TopologyFixture::new();
    let kept = world.add(declaration("kept", "topic", &[]));
    let auto_delete = ExchangeDeclaration { auto_delete: true, ..declaration("gone", "topic", &[]) };
    let gone = world.add(auto_delete);
    let taken = world.quota.names_bytes();
    for source in [kept, gone] {
        world.bound(source, "a", "one.two", &[]);
        world.bound(source, "a", "one.three", &[]);
    }
    let mut told = Vec::new();
    for source in [kept, gone, kept, gone] {
        let binding = world.topology.any_binding(source).unwrap();
        told.push(world.remove(binding));
    }
    assert_eq!(told, [None, None, None, Some(gone)]);
    assert_eq!((world.quota.names_bytes(), world.topology.bindings_len()), (taken, 0));
    world.bound(gone, "a", "", &[]);
    world.retire(gone);
    let binding = world.topology.any_binding(gone).unwrap();
    assert_eq!(world.remove(binding), None, "what is being deleted is not deleted again");
    world.retire(kept);
    for exchange in [kept, gone] {
        assert_eq!(world.topology.free_exchange(&mut world.quota, exchange), world.vhost);
    }
    assert_eq!((world.quota.names_bytes(), world.quota.exchanges(), world.quota.holders()), (0, 0, 0));
}

#[test]
fn only_bindings_between_durable_objects_are_written() {
    let mut world = TopologyFixture::new();
    let source = world.add(declaration("src", "fanout", &[]));
    let brief = world.add(ExchangeDeclaration { durable: false, ..declaration("brief", "fanout", &[]) });
    assert_eq!(world.written().len(), 1);
    let (kept, passing) = (world.queue("kept", 7), world.queue("passing", 0));
    for (from, to, count) in [
        (source, Destination::Queue(kept), 1),
        (source, Destination::Queue(kept), 0),
        (source, Destination::Queue(passing), 0),
        (brief, Destination::Queue(kept), 0),
        (source, Destination::Exchange(brief), 0),
        (source, Destination::Exchange(source), 1),
    ] {
        world.bind(from, to, "", &[]).unwrap();
        let written = world.written();
        assert_eq!(written.len(), count, "{written:?}");
    }
    let spec = BindingSpec { source: "src", routing_key: "", arguments: &[] };
    let binding = world.topology.find_binding(world.vhost, &spec, Destination::Queue(kept)).unwrap();
    world.remove(binding);
    assert!(world.written().iter().all(|said| said.starts_with('-') && said.contains("kept")));
    world.retire(source);
    let written = world.written();
    assert!(matches!(&written[..], [said] if said.starts_with('-') && said.contains("src")), "{written:?}");
}

#[test]
fn a_binding_that_exists_again_is_not_deleted_in_the_log() {
    let mut world = TopologyFixture::new();
    let source = world.add(declaration("src", "fanout", &[]));
    let old = world.queue("kept", 7);
    world.bind(source, Destination::Queue(old), "", &[]).unwrap();
    let binding = world.topology.any_binding(source).unwrap();
    world.queues.at_mut(old).is_deleted = true;
    let new = world.queue("kept", 8);
    assert_eq!(world.written().len(), 2);
    world.bind(source, Destination::Queue(new), "", &[]).unwrap();
    assert_eq!(world.written().len(), 1);
    world.remove(binding);
    assert_eq!(world.written(), [""; 0]);
    assert_eq!(world.targets(source, "", &[]), "kept");
    world.queues.at_mut(new).is_deleted = true;
    let binding = world.topology.any_binding(source).unwrap();
    world.remove(binding);
    assert_eq!(world.written().len(), 1, "nothing of that name is bound now");
}

#[test]
fn a_refused_binding_is_not_counted() {
    let mut world = TopologyFixture::new();
    let topic = world.add(declaration("t", "topic", &[]));
    let headers = world.add(declaration("h", "headers", &[]));
    let queue = world.queue("a", 0);
    let taken = world.quota.names_bytes();
    let odd = table(|table| table.text("x-match", "some"));
    let text = world.bind(headers, Destination::Queue(queue), "", &odd).unwrap_err().text;
    assert!(text.contains("Invalid x-match field value <<\"some\">>"), "{text}");
    let many = "w.".repeat(120);
    let text = world.bind(topic, Destination::Queue(queue), &many, &[]).unwrap_err().text;
    assert!(text.contains("binding") && text.contains("raise memory_limit"), "{text}");
    assert_eq!((world.quota.names_bytes(), world.topology.bindings_len()), (taken, 0));
}
