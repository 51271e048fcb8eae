//! Exchanges and bindings, and the routing of messages to queues.
//!
//! Publishers name an exchange and a routing key, not a queue; the default exchange takes the routing key as the name
//! of a queue. The exchanges and bindings between publishers and queues are declared by clients at run time. They may
//! be many and in any arrangement, and every message is routed through them.
//!
//! | file | content |
//! |---|---|
//! | `lib` | all records; creating, finding, comparing, counting and deleting exchanges; the route cache of a channel |
//! | `bindings` | creating, finding, counting, storing and removing bindings |
//! | `select` | selects the queues for a message: the trie of routing keys and patterns, and the matching of headers |
//!
//! The caller decides which user may declare, which policies apply and what is deleted with an exchange.
//!
//! # Invariants
//! - Everything that can change a route raises the revision.
//! - A deleted exchange is retired at once: its name is free, and it cannot be found or routed to. Its record
//!   is freed with its last binding.
//! - A binding is counted in the quota as long as it exists.
//! - Only an exchange with a version is in the log.
//! - A repeated declaration is compared with the first declaration. Policies are not part of the comparison.

#![warn(clippy::unwrap_used)]

mod bindings;
mod select;
#[cfg(test)]
mod tests;

use core::fmt;
use std::sync::Arc;

use bindings::PairIndex;
use leveret_amqp::delay::DELAYED;
use leveret_amqp::field::{Table, Value};
use leveret_amqp::reply_text::{ExchangeText, equivalent, inequivalent, inequivalent_flag};
use leveret_core::batch::Batch;
use leveret_core::command::{AppliedPolicies, ExchangeId, QueueId, VhostId};
use leveret_core::definition::{self, Definition};
use leveret_core::error::{Fault, ReplyCode};
use leveret_core::mem::{Class, IndexTable, Links, List, Memory, MessageId, Messages, Slab};
use leveret_core::quota::{Declared, Declarer, Quota};
use leveret_core::work::Work;
use leveret_storage::Context;
use select::Trie;

pub use select::cc_and_bcc;

/// Trie nodes reserved per binding. This suffices for topic patterns of two words on average.
const NODES_PER_BINDING: usize = 2;
/// Units of work that routing one message may take, per binding of `bindings_max`. A routing key of eight
/// words may visit every trie node once per word, and there are [`NODES_PER_BINDING`] nodes per binding.
const UNITS_PER_BINDING: u32 = 16;
/// Units of work that routing one message may take at least, even if `bindings_max` is small. They suffice
/// for thousands of routing keys in CC and BCC.
const UNITS_MIN: u32 = 1 << 16;

/// Exchanges, bindings, and the routing from exchanges along bindings to queues.
///
/// No table grows while a message is routed, so all tables get their final size at start. There are one trie
/// node per exchange and [`NODES_PER_BINDING`] per binding, of the configured maximum numbers.
#[derive(Debug)]
pub struct Topology {
    exchanges: Slab<Exchange>,
    exchange_table: IndexTable,
    bindings: Slab<Binding>,
    binding_table: IndexTable,
    pair_index: PairIndex,
    trie: Trie,
    header_positions: select::HeaderPositions,
    /// Exchanges that the last routing reached, in this order.
    reached: Vec<ExchangeId>,
    /// Number of messages routed since the start. It identifies the route of the current message.
    route_count: u64,
    /// Rises whenever a route or a permission may have changed.
    revision: u64,
    /// Units of work that routing one message may take.
    units_max: u32,
}

/// Maximum numbers of exchanges and bindings, and the memory that each takes outside of the topology.
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    /// Maximum number of exchanges, predeclared ones included.
    pub exchanges: usize,
    /// Maximum number of bindings.
    pub bindings: usize,
    /// Bytes that an exchange takes outside of the topology.
    pub exchange_side_bytes: usize,
    /// Bytes that a binding takes outside of the topology.
    pub binding_side_bytes: usize,
}

impl Topology {
    /// Bytes of memory that an exchange takes, with the root node of its trie.
    pub const EXCHANGE_BYTES: usize =
        Slab::<Exchange>::record_bytes() + IndexTable::ENTRY_BYTES + Trie::NODE_BYTES;
    /// Bytes of memory that a binding takes, with its trie nodes and one indexed pair.
    pub const BINDING_BYTES: usize = Slab::<Binding>::record_bytes()
        + PairIndex::BYTES_PER_PAIR
        + IndexTable::ENTRY_BYTES
        + NODES_PER_BINDING * Trie::NODE_BYTES;
    /// Returns the bytes of the hash table of header bindings, for this many bindings.
    pub const fn pair_table_bytes(bindings_max: usize) -> usize {
        PairIndex::table_bytes(bindings_max)
    }

    /// Returns the bytes of memory that [`select::HeaderPositions`] takes for frames of `frame_max` bytes.
    pub const fn header_positions_bytes(frame_max: usize) -> usize {
        select::HeaderPositions::bytes(frame_max)
    }

    /// Creates the topology. `frame_max` is the maximum size in bytes of a frame, and so of the headers of a message.
    pub fn with_capacity(capacity: Capacity, frame_max: usize, memory: &Memory, seed: u64) -> Self {
        let Capacity { exchanges, bindings, exchange_side_bytes, binding_side_bytes } = capacity;
        let nodes = exchanges + bindings * NODES_PER_BINDING;
        Self {
            exchanges: Slab::in_memory(exchanges, memory, Class::Definitions)
                .with_side_bytes(exchange_side_bytes),
            exchange_table: IndexTable::in_memory(exchanges, memory, Class::Definitions, seed),
            bindings: Slab::in_memory(bindings, memory, Class::Definitions)
                .with_side_bytes(binding_side_bytes),
            binding_table: IndexTable::in_memory(bindings, memory, Class::Definitions, seed),
            pair_index: PairIndex::with_capacity(bindings, memory, seed),
            trie: Trie::with_capacity(nodes, memory, seed),
            header_positions: select::HeaderPositions::for_frames(frame_max, seed),
            reached: Vec::with_capacity(exchanges),
            route_count: 0,
            revision: 1,
            units_max: (bindings as u32).saturating_mul(UNITS_PER_BINDING).max(UNITS_MIN),
        }
    }

    /// Limits the work that may be charged from now on to `units_max` for each of `messages` messages.
    pub const fn limit_routing(&self, work: &mut Work, messages: u32) {
        work.limit(self.units_max.saturating_mul(messages));
    }

    /// Returns the revision of the routes. A cached route is valid while the revision is unchanged.
    #[inline]
    pub const fn revision(&self) -> u64 {
        self.revision
    }

    /// Raises the revision, because routes or permissions may have changed.
    pub const fn revise(&mut self) {
        self.revision += 1;
    }

    /// Returns approximately how many bytes of system memory the topology has but does not use.
    pub const fn idle_bytes(&self) -> usize {
        self.bindings.idle_bytes() + self.pair_index.idle_bytes() + self.trie.idle_bytes()
    }

    /// Returns unused memory to the system.
    pub fn trim(&mut self) {
        self.exchanges.trim();
        self.exchange_table.trim(self.exchanges.touched());
        self.bindings.trim();
        self.binding_table.trim(self.bindings.touched());
        self.pair_index.trim();
        self.trie.trim();
    }
}

/// Returns the exchange of this name. A free function, for callers that have borrowed other fields of the
/// topology.
fn find_exchange(
    exchanges: &Slab<Exchange>,
    table: &IndexTable,
    vhost: VhostId,
    name: &str,
) -> Option<ExchangeId> {
    let has_name = |index: usize| exchanges[index].vhost == vhost && &*exchanges[index].name == name;
    table.find((vhost, name), has_name).map(ExchangeId::from_index)
}

/// How an exchange routes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ExchangeKind {
    /// The default exchange: the routing key is a queue's name.
    Default,
    /// The routing key equals the binding key.
    Direct,
    /// Every message goes along every binding.
    Fanout,
    /// Words of the routing key are matched against patterns with `*` and `#`.
    Topic,
    /// Message headers are matched against binding arguments.
    Headers,
}

impl ExchangeKind {
    /// Returns the name of the type on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Default | Self::Direct => "direct",
            Self::Fanout => "fanout",
            Self::Topic => "topic",
            Self::Headers => "headers",
        }
    }

    /// Returns the kind with this AMQP type name; `None` if there is none.
    fn from_name(name: &str) -> Option<Self> {
        [Self::Direct, Self::Fanout, Self::Topic, Self::Headers].into_iter().find(|kind| kind.name() == name)
    }
}

/// One exchange.
#[derive(Debug)]
pub struct Exchange {
    /// Its virtual host.
    pub vhost: VhostId,
    /// Its name, unique among the exchanges of the virtual host.
    pub name: Box<str>,
    /// How it routes. A delayed exchange routes so after the delay.
    pub kind: ExchangeKind,
    /// Number of this declaration of the exchange in the log, never reused; 0 when the exchange is not in the
    /// log.
    pub version: u64,
    /// The batch that makes the definition of the exchange durable.
    pub definition_batch: Batch,
    /// Whether it survives a restart of the broker.
    pub durable: bool,
    /// Whether it is deleted with its last binding.
    pub auto_delete: bool,
    /// Whether clients may not publish to it.
    pub internal: bool,
    /// The arguments of its declaration, encoded as an AMQP table.
    pub arguments: Box<[u8]>,
    /// The connection in whose share the exchange is counted; `None` at start, for operators, and for predeclared exchanges.
    declarer: Option<Declarer>,
    /// The hidden queue of a delayed exchange, in which messages wait until their delay has passed.
    pub delayed_queue: Option<QueueId>,
    /// The name of the alternate exchange, which gets the messages that match no binding.
    alternate: Option<Arc<str>>,
    /// The policies that apply to the exchange.
    pub applied: AppliedPolicies,
    /// The root of the exchange's trie.
    root: usize,
    /// Bindings whose source is the exchange.
    bindings: List,
    /// Bindings whose destination is the exchange.
    incoming: List,
    /// Number of indexed pairs of all bindings whose source is the exchange.
    pair_count: u32,
    /// The route (`Topology::route_count`) that last reached the exchange.
    last_route: u64,
    /// Number of the exchange, unique in this process.
    pub serial: u64,
    /// The number of messages published to the exchange, and the number of queues that these messages were
    /// routed to; both modulo 2³².
    pub published: [u32; 2],
    /// The exchange is retired: its record is freed with its last binding.
    pub is_deleted: bool,
}

impl Exchange {
    /// Returns the name of the exchange's type on the wire.
    pub const fn type_name(&self) -> &'static str {
        if self.delayed_queue.is_some() { DELAYED } else { self.kind.name() }
    }
}

/// The properties of queues that routing needs. The owner of the queues implements this trait, because routing knows a queue
/// by its identifier only.
pub trait RoutedQueues {
    /// Returns the queue of this name.
    fn find(&self, vhost: VhostId, name: &str) -> Option<QueueId>;

    /// Returns the name of a queue, and the number that identifies this declaration of it in the log; the number is 0 if the
    /// log does not have the queue.
    fn stored_name(&self, queue: QueueId) -> (&str, u64);

    /// Marks a queue with the number of a routing. Returns whether it is to get the message: it exists, and this routing has
    /// not marked it before.
    fn mark(&mut self, queue: QueueId, routing: u64) -> bool;

    /// Returns the list of the bindings whose destination is a queue.
    fn bindings_mut(&mut self, queue: QueueId) -> &mut List;

    /// Returns how many more queues fit into memory.
    fn free_count(&self) -> usize;
}

/// The queues that exist, and those that routing has chosen for a message.
pub struct Targets<'a, Q> {
    /// The queues that exist.
    pub queues: &'a mut Q,
    /// The chosen ones.
    pub chosen: &'a mut Vec<QueueId>,
}

impl<Q: RoutedQueues> Targets<'_, Q> {
    /// Adds a queue to the chosen ones, unless the routing with this number has chosen it before.
    fn choose(&mut self, queue: QueueId, routing: u64) {
        if self.queues.mark(queue, routing) {
            self.chosen.push(queue);
        }
    }
}

/// The destination of a binding.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Destination {
    /// A queue.
    Queue(QueueId),
    /// An exchange, which routes the messages further.
    Exchange(ExchangeId),
}

/// A binding.
///
/// A binding is on the list of its source and on the list of its destination. To be found for a message, it
/// is also on the list of a trie node, or its pairs are in [`PairIndex`]. The index has the bindings of
/// headers exchanges, except those that match every message: these are on the list of the exchange's root
/// node.
#[derive(Debug)]
pub struct Binding {
    /// The exchange whose messages go along the binding.
    pub source: ExchangeId,
    /// The queue or exchange that gets them.
    pub destination: Destination,
    /// The routing key.
    pub key: Box<str>,
    /// The arguments, encoded as an AMQP table.
    pub arguments: Box<[u8]>,
    /// The log has the binding.
    pub is_stored: bool,
    /// The connection in whose share the binding is counted, if any.
    declarer: Option<Declarer>,
    /// The trie node for the routing key.
    node: usize,
    /// The first of the binding's indexed pairs; `None` if the binding is on the list of a trie node.
    first_pair: Option<u32>,
    source_links: Links,
    destination_links: Links,
    node_links: Links,
}

impl Binding {
    fn identity(&self) -> BindingIdentity<'_> {
        BindingIdentity {
            source: self.source,
            destination: self.destination,
            routing_key: &self.key,
            arguments: &self.arguments,
        }
    }
}

/// The fields of a binding in a client's request, except the destination.
pub struct BindingSpec<'a> {
    /// The name of the exchange whose messages go along the binding.
    pub source: &'a str,
    /// The routing key.
    pub routing_key: &'a str,
    /// The arguments, encoded as an AMQP table.
    pub arguments: &'a [u8],
}

impl<'a> BindingSpec<'a> {
    /// Returns the identity of the binding with these fields between the given source and destination.
    pub const fn between(&self, source: ExchangeId, destination: Destination) -> BindingIdentity<'a> {
        BindingIdentity { source, destination, routing_key: self.routing_key, arguments: self.arguments }
    }
}

/// What identifies a binding. No two bindings have the same identity.
#[derive(PartialEq, Eq, Hash)]
pub struct BindingIdentity<'a> {
    /// The exchange whose messages go along the binding.
    pub source: ExchangeId,
    destination: Destination,
    routing_key: &'a str,
    arguments: &'a [u8],
}

const CACHED_NAMES_BYTES_MAX: usize = 64;
const CACHED_TARGETS_MAX: usize = 4;

/// The last route of a channel: most publishers publish repeatedly to the same place.
///
/// A cached route is valid for one revision of the topology, because every change of a route raises the
/// revision. Long names and routes to many queues are not cached, so a channel's record stays small.
#[derive(Debug, Default)]
pub struct RouteCache {
    /// The revision for which the cached route is valid; 0 if no route is cached.
    revision: u64,
    exchange_len: u8,
    /// The exchange, if the user may publish to it with every routing key. Otherwise each key must be
    /// checked.
    exchange: Option<ExchangeId>,
    /// The names of exchange and routing key, concatenated.
    names: heapless::Vec<u8, CACHED_NAMES_BYTES_MAX>,
    targets: heapless::Vec<QueueId, CACHED_TARGETS_MAX>,
}

impl RouteCache {
    /// Sets `targets` to the cached queues if the message has the cached exchange and routing key, and the
    /// revision is unchanged. Returns whether the targets were set.
    #[inline]
    pub fn set_targets_if_cached(
        &self,
        revision: u64,
        messages: &Messages,
        message: MessageId,
        targets: &mut Vec<QueueId>,
    ) -> bool {
        let is_cached = self.revision == revision
            && usize::from(self.exchange_len) == messages.exchange_len(message)
            && self.names == messages.names(message);
        if is_cached {
            targets.clear();
            targets.extend_from_slice(&self.targets);
        }
        is_cached
    }

    /// Returns the exchange of a message if it is the cached one and the revision is unchanged. The routing
    /// key may differ. This saves a publisher that alternates between routing keys the search for the
    /// exchange.
    pub fn exchange(&self, revision: u64, messages: &Messages, message: MessageId) -> Option<ExchangeId> {
        let (exchange_len, names) = (messages.exchange_len(message), messages.names(message));
        let is_cached = self.revision == revision
            && usize::from(self.exchange_len) == exchange_len
            && self.names.get(..exchange_len) == names.get(..exchange_len);
        self.exchange.filter(|_| is_cached)
    }

    /// Caches the route of a message if it fits into the cache. `exchange` is `Some` if the user may publish
    /// to the exchange with every routing key.
    pub fn set(
        &mut self,
        revision: u64,
        messages: &Messages,
        message: MessageId,
        exchange: Option<ExchangeId>,
        targets: &[QueueId],
    ) {
        self.revision = 0;
        self.exchange = exchange;
        self.names.clear();
        self.targets.clear();
        let fits = self.names.extend_from_slice(messages.names(message)).is_ok();
        if fits && self.targets.extend_from_slice(targets).is_ok() {
            self.revision = revision;
            self.exchange_len = messages.exchange_len(message) as u8;
        }
    }
}

/// The fields of a new exchange.
pub struct NewExchange<'a> {
    /// Its virtual host.
    pub vhost: VhostId,
    /// The declaration, which was checked.
    pub declaration: ExchangeDeclaration<'a>,
    /// Number of this declaration of the exchange in the log, never reused; 0 when the exchange is not in the
    /// log.
    pub version: u64,
    /// The connection in whose share the exchange is counted; `None` at start, for operators, and for predeclared exchanges.
    pub declarer: Option<Declarer>,
    /// The hidden queue of a delayed exchange, in which messages wait until their delay has passed.
    pub delayed_queue: Option<QueueId>,
}

impl Topology {
    /// Returns the exchange of this name.
    pub fn find_exchange(&self, vhost: VhostId, name: &str) -> Option<ExchangeId> {
        find_exchange(&self.exchanges, &self.exchange_table, vhost, name)
    }

    /// Returns the exchange with the name in `text`.
    ///
    /// # Errors
    /// 404: there is no such exchange. The reply has `text`.
    pub fn require_exchange(&self, vhost: VhostId, text: ExchangeText<'_>) -> Result<ExchangeId, Fault> {
        self.find_exchange(vhost, text.name)
            .ok_or_else(|| Fault::new(ReplyCode::NotFound, format_args!("no {text}")))
    }

    /// Returns an exchange, which may be retired.
    pub fn exchange(&self, exchange: ExchangeId) -> &Exchange {
        &self.exchanges[exchange.index()]
    }

    /// Counts a message that was published to an exchange and routed to `queues` queues.
    #[inline]
    pub fn count_published(&mut self, exchange: ExchangeId, queues: u32) {
        let [published, routed] = &mut self.exchanges[exchange.index()].published;
        (*published, *routed) = (published.wrapping_add(1), routed.wrapping_add(queues));
    }

    /// Returns the number of places that exchanges have used since the start.
    pub const fn exchange_places(&self) -> usize {
        self.exchanges.places()
    }

    /// Returns the exchange in a place, if it is not retired.
    pub fn exchange_at(&self, place: usize) -> Option<&Exchange> {
        self.exchanges.get(place).filter(|record| !record.is_deleted)
    }

    /// Compares an existing exchange with another declaration of it. If they are equivalent, the reply waits
    /// until the exchange's definition is durable.
    ///
    /// # Errors
    /// The exchange was declared with other properties.
    pub fn compare_exchange(
        &self,
        cx: &mut Context<'_>,
        vhost_name: &str,
        exchange: ExchangeId,
        declaration: &ExchangeDeclaration<'_>,
    ) -> Result<(), Fault> {
        let record = self.exchange(exchange);
        let words = declaration.text(vhost_name);
        // As in RabbitMQ's plug-in, `x-delayed-type` is not compared.
        if declaration.kind != record.type_name() {
            return Err(inequivalent_flag("type", &words, &declaration.kind, &record.type_name()));
        }
        let flags = [
            ("durable", declaration.durable, record.durable),
            ("auto_delete", declaration.auto_delete, record.auto_delete),
            ("internal", declaration.internal, record.internal),
        ];
        if let Some((name, received, current)) = flags.into_iter().find(|(_, one, two)| one != two) {
            return Err(inequivalent_flag(name, &words, &received, &current));
        }
        let alternate = |arguments| Table::trusted(arguments).get("alternate-exchange");
        let (received, current) = (alternate(declaration.arguments), alternate(&*record.arguments));
        if !equivalent(received, current) {
            return Err(inequivalent("alternate-exchange", &words, received, current));
        }
        cx.await_defined(record.definition_batch);
        Ok(())
    }

    /// Adds an exchange. The caller has checked the declaration and the capacity. Unless the exchange is
    /// predeclared, the caller has counted it in the quota.
    pub fn insert_exchange(&mut self, new: &NewExchange<'_>) -> ExchangeId {
        let declaration = &new.declaration;
        assert!(
            declaration.is_delayed() == new.delayed_queue.is_some(),
            "a delayed exchange has its hidden queue"
        );
        assert!(declaration.durable || new.version == 0, "only what is durable is in the log");
        let kind = match declaration.exchange {
            "" => ExchangeKind::Default,
            _ => declaration.new_kind().expect("the caller checked how it chooses"),
        };
        let alternate = Table::trusted(declaration.arguments).get("alternate-exchange");
        let record = Exchange {
            vhost: new.vhost,
            name: declaration.exchange.into(),
            kind,
            version: new.version,
            definition_batch: Batch::NONE,
            durable: declaration.durable,
            auto_delete: declaration.auto_delete,
            internal: declaration.internal,
            arguments: declaration.arguments.into(),
            declarer: new.declarer,
            delayed_queue: new.delayed_queue,
            alternate: alternate.and_then(|value| value.as_str()).map(Into::into),
            applied: AppliedPolicies::default(),
            root: self.trie.add_root(),
            bindings: List::default(),
            incoming: List::default(),
            pair_count: 0,
            last_route: 0,
            // The revision rises with every exchange.
            serial: self.revision() + 1,
            published: [0; 2],
            is_deleted: false,
        };
        let index = self.exchanges.insert_checked(record);
        self.exchange_table.insert((new.vhost, declaration.exchange), index, self.exchanges.touched());
        self.revise();
        ExchangeId::from_index(index)
    }

    /// Sets the policies that apply to an exchange. Their alternate exchange takes effect only if the
    /// exchange was declared without one.
    pub fn apply_policies(
        &mut self,
        exchange: ExchangeId,
        applied: AppliedPolicies,
        alternate: Option<Arc<str>>,
    ) {
        let record = &mut self.exchanges[exchange.index()];
        record.applied = applied;
        let is_own = Table::trusted(&record.arguments).get("alternate-exchange").is_some();
        if !is_own && record.alternate != alternate {
            record.alternate = alternate;
            self.revise();
        }
    }

    /// Appends the definition of an exchange to the log, or its deletion unless the exchange `exists`.
    pub fn append_exchange(
        &mut self,
        cx: &mut Context<'_>,
        vhost_name: &str,
        exchange: ExchangeId,
        exists: bool,
    ) {
        let record = &mut self.exchanges[exchange.index()];
        if record.version == 0 {
            return;
        }
        let definition = Definition::Exchange(definition::Exchange {
            vhost: vhost_name,
            name: &record.name,
            version: record.version,
            kind: record.type_name(),
            auto_delete: record.auto_delete,
            internal: record.internal,
            arguments: &record.arguments,
        });
        record.definition_batch = cx.pending_writes.write_definition(&definition, exists);
        cx.await_batch(record.definition_batch);
    }

    /// Frees the name of a deleted exchange, and appends the deletion to the log. The record stays until the
    /// bindings of the exchange are removed.
    pub fn retire_exchange(&mut self, cx: &mut Context<'_>, vhost_name: &str, exchange: ExchangeId) {
        self.append_exchange(cx, vhost_name, exchange, false);
        let record = &mut self.exchanges[exchange.index()];
        assert!(!record.is_deleted, "an exchange is retired once");
        record.is_deleted = true;
        self.exchange_table.remove((record.vhost, &*record.name), exchange.index());
        self.revise();
    }

    /// Frees the record of a retired exchange without bindings. Returns its virtual host.
    pub fn free_exchange(&mut self, quota: &mut Quota, exchange: ExchangeId) -> VhostId {
        let record = self.exchanges.remove(exchange.index());
        assert!(record.is_deleted && record.bindings.is_empty() && record.incoming.is_empty());
        self.trie.remove_root(record.root);
        // Predeclared exchanges are counted with their virtual host.
        if !is_system_name(&record.name) {
            let bytes = record.name.len() + record.arguments.len();
            quota.undeclare(Declared::Exchange, bytes, record.declarer);
        }
        record.vhost
    }

    /// Returns whether the exchange is the source of a binding.
    pub fn is_source(&self, exchange: ExchangeId) -> bool {
        !self.exchanges[exchange.index()].bindings.is_empty()
    }
}

/// Exchange types that RabbitMQ has only with a plug-in or in a later version: the type, and the plug-in or
/// version. The error text contains the latter, unlike RabbitMQ's.
const PLUG_INS: [(&str, &str); 8] = [
    ("x-consistent-hash", "rabbitmq_consistent_hash_exchange"),
    ("x-event", "rabbitmq_event_exchange"),
    ("x-jms-topic", "rabbitmq_jms_topic_exchange"),
    ("x-local-random", "version 4"),
    ("x-modulus-hash", "rabbitmq_sharding"),
    ("x-random", "rabbitmq_random_exchange"),
    ("x-recent-history", "rabbitmq_recent_history_exchange"),
    ("x-rtopic", "rabbitmq_rtopic_exchange"),
];

/// The fields of `exchange.declare`.
///
/// The checks are separate methods, called in RabbitMQ's order. For an exchange that exists, the type is
/// checked, and the other fields are only compared with the existing exchange.
#[derive(Clone, Copy, Debug)]
pub struct ExchangeDeclaration<'a> {
    /// Name of the exchange.
    pub exchange: &'a str,
    /// Its type.
    pub kind: &'a str,
    /// Whether it survives a restart of the broker.
    pub durable: bool,
    /// Whether it is deleted with its last binding.
    pub auto_delete: bool,
    /// Whether clients may not publish to it.
    pub internal: bool,
    /// Its arguments, encoded as an AMQP table.
    pub arguments: &'a [u8],
}

impl<'a> ExchangeDeclaration<'a> {
    fn text(&self, vhost_name: &'a str) -> ExchangeText<'a> {
        ExchangeText { name: self.exchange, vhost: vhost_name }
    }

    /// Returns whether the exchange is a delayed one.
    pub fn is_delayed(&self) -> bool {
        self.kind == DELAYED
    }

    /// Returns the bytes of the exchange's name and arguments, which are counted in the quota.
    pub const fn bytes(&self) -> usize {
        self.exchange.len() + self.arguments.len()
    }

    /// Makes the checks that apply to new and existing exchanges: the type is known, and the name is not that
    /// of the default exchange. `x-delayed-type` is checked only for a new exchange, by [`Self::new_kind`].
    pub fn check_type_and_name(&self) -> Result<(), Fault> {
        if !self.is_delayed() {
            kind_named(self.kind)?;
        }
        refuse_default(self.exchange)
    }

    /// Returns how a new exchange routes.
    ///
    /// # Errors
    /// There is no such type, or `x-delayed-type` is missing or wrong.
    pub fn new_kind(&self) -> Result<ExchangeKind, Fault> {
        if !self.is_delayed() {
            return kind_named(self.kind);
        }
        let declaration =
            Table::trusted(self.arguments).get("x-delayed-type").and_then(|value| value.as_str());
        // `x-delayed-type` says how messages are routed after their delay, so it must not be a delayed type
        // again.
        let declaration = declaration.filter(|kind| *kind != DELAYED).ok_or_else(|| {
            Fault::new(
                ReplyCode::PreconditionFailed,
                format_args!("Invalid argument, 'x-delayed-type' must be an existing exchange type"),
            )
        });
        declaration.and_then(kind_named)
    }

    /// Checks whether clients may give an exchange this name: `amq.` is reserved.
    pub fn check_name(&self) -> Result<(), Fault> {
        let name = self.exchange;
        let words = format_args!("exchange name '{name}' contains reserved prefix 'amq.*'");
        refuse_if(name.starts_with("amq."), words)
    }

    /// Returns the name of the alternate exchange in the arguments; `None` without this argument.
    ///
    /// # Errors
    /// The argument is not a string.
    pub fn alternate(&self, vhost_name: &str) -> Result<Option<&'a str>, Fault> {
        match Table::trusted(self.arguments).get("alternate-exchange") {
            None => Ok(None),
            Some(value @ Value::LongStr(_)) => Ok(Some(value.as_str().unwrap_or_default())),
            Some(other) => Err(Fault::new(
                ReplyCode::PreconditionFailed,
                format_args!(
                    "invalid type '{}' for arg 'alternate-exchange' in {}",
                    other.type_name(),
                    self.text(vhost_name)
                ),
            )),
        }
    }
}

/// Returns the kind with this AMQP type name, or the fault for an unknown type.
fn kind_named(kind: &str) -> Result<ExchangeKind, Fault> {
    ExchangeKind::from_name(kind).ok_or_else(|| {
        let invalid = |words: fmt::Arguments<'_>| Fault::connection(ReplyCode::CommandInvalid, words);
        match PLUG_INS.iter().find(|(known, _)| *known == kind) {
            Some((_, plug_in)) => invalid(format_args!(
                "unknown exchange type '{kind}': RabbitMQ has it with {plug_in}, and Leveret has not"
            )),
            None if kind.is_empty() => invalid(format_args!("invalid exchange type ''")),
            None => invalid(format_args!("unknown exchange type '{kind}'")),
        }
    })
}

/// Refuses to declare, bind or delete the default exchange.
pub fn refuse_default(name: &str) -> Result<(), Fault> {
    refuse_if(name.is_empty(), format_args!("operation not permitted on the default exchange"))
}

/// Checks whether an exchange of this name may be deleted. Predeclared exchanges cannot be deleted.
pub fn check_deletable_name(text: ExchangeText<'_>) -> Result<(), Fault> {
    refuse_default(text.name)?;
    refuse_if(is_system_name(text.name), format_args!("deletion of system {text} not allowed"))
}

/// Returns whether only predeclared exchanges have such a name.
fn is_system_name(name: &str) -> bool {
    name.is_empty() || name.starts_with("amq.")
}

fn refuse_if(condition: bool, words: fmt::Arguments<'_>) -> Result<(), Fault> {
    if condition { Err(Fault::new(ReplyCode::AccessRefused, words)) } else { Ok(()) }
}
