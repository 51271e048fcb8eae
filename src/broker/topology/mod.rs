//! Exchanges and bindings, and the routing of messages to queues.
//!
//! Publishers name an exchange and a routing key, never a queue. Clients declare what connects them at run
//! time. It may be large and irregular, and is evaluated for every message.
//!
//! | file | content |
//! |---|---|
//! | `mod` | all records; creating, finding, comparing, counting and deleting exchanges; the route cache of a channel |
//! | `bindings` | the same for bindings |
//! | `select` | from an exchange, routing keys and headers to queues: the trie of keys and patterns, the matching rule of headers exchanges |
//!
//! The caller decides which user may declare, which policies apply and what is deleted with an exchange.
//!
//! # Invariants
//! - Everything that can change a route raises the revision.
//! - A retired exchange cannot be found or routed to. Its record is freed with its last binding.
//! - A binding counts in the quota as long as it exists.
//! - Only an exchange with a version is in the log.
//! - A repeated declaration is compared with the first one, whatever policies are applied.
//! - The name of a deleted exchange is freed first, and the record when nothing is bound any more.

mod bindings;
mod select;
#[cfg(test)]
mod tests;

use core::fmt;
use std::sync::Arc;

use bindings::Pairs;
use leveret_amqp::field::{Table, Value};
use leveret_core::command::{ExchangeId, QueueId, VhostId};
use leveret_core::error::{Fault, ReplyCode};
use leveret_core::mem::{Links, List, MessageId, Messages, Slab};
use leveret_core::pending_writes::{Batch, Definition};
use select::Trie;

use crate::arguments::{self, inequivalent_flag};
use crate::context::Work;
use crate::policy::Applied;
use crate::quota::{Declared, Declarer, Quota};
use crate::reply_text::ExchangeText;
use crate::state::IndexTable;
use crate::{Access, Context};

pub(super) use select::copies;

/// Nodes of the tries per binding: a topic pattern of that many words on average.
const NODES_PER_BINDING: usize = 2;
/// Units of work that routing one message may take per possible binding: a key of eight words reaches every
/// node of a topic exchange, whatever is bound.
const UNITS_PER_BINDING: u32 = 16;
/// Minimum of the units of work that routing one message may take, however few bindings are possible: enough
/// for thousands of routing keys.
const UNITS_MIN: u32 = 1 << 16;

/// Exchanges, bindings, and the routing from exchanges along bindings to queues.
///
/// The cost of a message must not depend on what was declared before it, so the tables are sized once. There
/// are as many trie nodes as the maximum number of exchanges and bindings needs on average, and the quota
/// counts them.
#[derive(Debug)]
pub(crate) struct Topology {
    exchanges: Slab<Exchange>,
    exchange_table: IndexTable,
    bindings: Slab<Binding>,
    binding_table: IndexTable,
    pairs: Pairs,
    trie: Trie,
    header_names: select::Names,
    /// Exchanges still to be visited for the message that is being routed.
    to_visit: Vec<ExchangeId>,
    /// Number of messages routed, which numbers the routes.
    routes: u64,
    /// Rises whenever a route or a permission may have changed.
    revision: u64,
    /// Units of work that routing one message may take.
    units_max: u32,
}

impl Topology {
    /// Bytes of memory that an exchange takes, with its root node.
    pub(crate) const EXCHANGE_BYTES: usize = Slab::<Exchange>::record_bytes()
        + IndexTable::ENTRY_BYTES
        + size_of::<ExchangeId>()
        + Trie::NODE_BYTES;
    /// Bytes of memory that a binding takes, with its nodes, or its pairs.
    pub(crate) const BINDING_BYTES: usize = Slab::<Binding>::record_bytes()
        + Pairs::BYTES_EACH
        + IndexTable::ENTRY_BYTES
        + NODES_PER_BINDING * Trie::NODE_BYTES;
    /// Nodes of the tries per binding; the allocator adds an overhead to each.
    pub(crate) const NODES_PER_BINDING: usize = NODES_PER_BINDING;

    /// Returns the bytes of memory that searching the headers of a message takes.
    pub(crate) const fn header_names_bytes(frame_max: usize) -> usize {
        select::Names::bytes(frame_max)
    }

    pub(crate) fn with_capacity(exchanges: usize, bindings: usize, frame_max: usize, seed: u64) -> Self {
        let nodes = exchanges + bindings * NODES_PER_BINDING;
        Self {
            exchanges: Slab::with_capacity(exchanges),
            exchange_table: IndexTable::with_capacity(exchanges, seed),
            bindings: Slab::with_capacity(bindings),
            binding_table: IndexTable::with_capacity(bindings, seed),
            pairs: Pairs::with_capacity(bindings, seed),
            trie: Trie::with_capacity(nodes, seed),
            header_names: select::Names::for_frames(frame_max, seed),
            to_visit: Vec::with_capacity(exchanges),
            routes: 0,
            revision: 1,
            units_max: (bindings as u32).saturating_mul(UNITS_PER_BINDING).max(UNITS_MIN),
        }
    }

    /// Limits the routing work from here on to that of this many messages.
    pub(crate) const fn limit_routing(&self, work: &mut Work, messages: u32) {
        work.limit(self.units_max.saturating_mul(messages));
    }

    /// Returns the number that rises whenever a route may have changed: a cached route is valid while it
    /// stays.
    #[inline]
    pub(crate) const fn revision(&self) -> u64 {
        self.revision
    }

    /// Notes that routes and permissions may have changed.
    pub(crate) const fn revise(&mut self) {
        self.revision += 1;
    }

    /// Returns roughly the unused bytes of the topology for which the system holds memory.
    pub(crate) const fn idle_bytes(&self) -> usize {
        self.bindings.idle_bytes() + self.pairs.idle_bytes() + self.trie.idle_bytes()
    }

    /// Returns unused memory to the system.
    pub(crate) fn trim(&mut self) {
        self.bindings.trim();
        self.pairs.trim();
        self.trie.trim();
    }
}

/// Returns the exchange of this name, while other fields of the topology are borrowed.
fn find_exchange(
    exchanges: &Slab<Exchange>,
    table: &IndexTable,
    vhost: VhostId,
    name: &str,
) -> Option<ExchangeId> {
    let is_it = |index: usize| exchanges[index].vhost == vhost && &*exchanges[index].name == name;
    table.find((vhost, name), is_it).map(ExchangeId::from_index)
}

/// The type of delayed exchanges, which keep a message for its delay before they route it.
pub(crate) const DELAYED: &str = "x-delayed-message";

/// How an exchange routes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ExchangeKind {
    /// The default exchange: the routing key is a queue's name.
    Default,
    /// The routing key equals the binding key.
    Direct,
    /// Every message goes to every binding.
    Fanout,
    /// Words of the routing key are matched against patterns with `*` and `#`.
    Topic,
    /// Message headers are matched against binding arguments.
    Headers,
}

impl ExchangeKind {
    /// Returns the name of the type on the wire.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Default | Self::Direct => "direct",
            Self::Fanout => "fanout",
            Self::Topic => "topic",
            Self::Headers => "headers",
        }
    }

    /// Returns the kind for a type's name as clients give it.
    fn from_name(name: &str) -> Option<Self> {
        [Self::Direct, Self::Fanout, Self::Topic, Self::Headers].into_iter().find(|kind| kind.name() == name)
    }
}

/// One exchange.
#[derive(Debug)]
pub(crate) struct Exchange {
    pub(crate) vhost: VhostId,
    pub(crate) name: Box<str>,
    pub(crate) kind: ExchangeKind,
    /// Version of the exchange, never reused; 0 when it is not in the log.
    pub(crate) version: u64,
    /// The batch with which the definition of the exchange is durable.
    pub(crate) defined: Batch,
    pub(crate) durable: bool,
    pub(crate) auto_delete: bool,
    pub(crate) internal: bool,
    pub(crate) arguments: Box<[u8]>,
    /// The connection whose share the exchange counts in.
    declarer: Option<Declarer>,
    /// The hidden queue of a delayed exchange, where messages wait for their delay.
    pub(crate) delayed_queue: Option<QueueId>,
    /// The alternate exchange, for messages that match no binding.
    alternate: Option<Arc<str>>,
    /// The policies that apply to the exchange.
    pub(crate) applied: Applied,
    /// The root of the exchange's trie.
    root: usize,
    /// Bindings whose source is the exchange.
    bindings: List,
    /// Bindings whose destination is the exchange.
    incoming: List,
    /// Number of pairs that bindings from the exchange are found by.
    pairs: u32,
    /// Number of the route that reached the exchange last.
    routed_at: u64,
    /// Number of the exchange, unique in this process.
    pub(crate) serial: u64,
    /// Messages published to the exchange, and queues that those were routed to, modulo 2³².
    pub(crate) published: [u32; 2],
    /// The exchange is deleted: its record is freed with its last binding.
    pub(crate) is_deleted: bool,
}

impl Exchange {
    /// Returns the name of the exchange's type on the wire.
    pub(crate) const fn type_name(&self) -> &'static str {
        if self.delayed_queue.is_some() { DELAYED } else { self.kind.name() }
    }
}

/// The destination of a binding.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub(crate) enum Destination {
    Queue(QueueId),
    Exchange(ExchangeId),
}

/// A binding.
///
/// It is on its source's list, on its destination's list and, unless it is found by its pairs, on its node's
/// list. Bindings of a headers exchange that take everything are on the list of its root.
#[derive(Debug)]
pub(crate) struct Binding {
    pub(crate) source: ExchangeId,
    pub(crate) destination: Destination,
    pub(crate) key: Box<str>,
    pub(crate) arguments: Box<[u8]>,
    /// Whether the log has the binding.
    pub(crate) stored: bool,
    /// The connection whose share the binding counts in.
    declarer: Option<Declarer>,
    /// The trie node for the routing key.
    node: usize,
    /// The first of the pairs that the binding is found by, if any.
    hook: Option<u32>,
    source_links: Links,
    destination_links: Links,
    node_links: Links,
}

impl Binding {
    fn found(&self) -> FoundBinding<'_> {
        FoundBinding {
            source: self.source,
            destination: self.destination,
            routing_key: &self.key,
            arguments: &self.arguments,
        }
    }
}

/// The fields of a binding as a client names them.
pub(crate) struct BindingSpec<'a> {
    pub(crate) source: &'a str,
    pub(crate) routing_key: &'a str,
    pub(crate) arguments: &'a [u8],
}

impl<'a> BindingSpec<'a> {
    /// Returns the binding with these fields, when source and destination are found.
    pub(crate) const fn between(&self, source: ExchangeId, destination: Destination) -> FoundBinding<'a> {
        FoundBinding { source, destination, routing_key: self.routing_key, arguments: self.arguments }
    }
}

/// What identifies a binding, with its source and destination found.
#[derive(PartialEq, Eq, Hash)]
pub(crate) struct FoundBinding<'a> {
    source: ExchangeId,
    destination: Destination,
    routing_key: &'a str,
    arguments: &'a [u8],
}

const CACHED_NAMES_BYTES_MAX: usize = 64;
const CACHED_TARGETS_MAX: usize = 4;

/// The last route of a channel: most publishers publish repeatedly to the same place.
///
/// What is cached is valid for one revision of the routing, and anything that may change a route makes a new
/// one. Long names and large fan-outs are not cached, so a channel's record stays small.
#[derive(Debug, Default)]
pub(crate) struct RouteCache {
    /// The revision that the cached route is valid for; 0 for none.
    revision: u64,
    exchange_len: u8,
    /// The exchange, if every key may be published to it.
    exchange: Option<ExchangeId>,
    /// The names of exchange and routing key, concatenated.
    names: heapless::Vec<u8, CACHED_NAMES_BYTES_MAX>,
    targets: heapless::Vec<QueueId, CACHED_TARGETS_MAX>,
}

impl RouteCache {
    /// Sets the targets of a message to the cached ones, if it has the same exchange and routing key and
    /// nothing has changed. Returns whether it did.
    #[inline]
    pub(crate) fn leads(
        &self,
        revision: u64,
        messages: &Messages,
        message: MessageId,
        targets: &mut Vec<QueueId>,
    ) -> bool {
        let is_it = self.revision == revision
            && usize::from(self.exchange_len) == messages.exchange_len(message)
            && self.names == messages.names(message);
        if is_it {
            targets.clear();
            targets.extend_from_slice(&self.targets);
        }
        is_it
    }

    /// Returns the exchange of a message, if the last one had the same, whatever its key, and nothing has
    /// changed. For a publisher to many queues in turn, only the key is checked for each message.
    pub(crate) fn exchange(
        &self,
        revision: u64,
        messages: &Messages,
        message: MessageId,
    ) -> Option<ExchangeId> {
        let (exchange_len, names) = (messages.exchange_len(message), messages.names(message));
        let is_it = self.revision == revision
            && usize::from(self.exchange_len) == exchange_len
            && self.names.get(..exchange_len) == names.get(..exchange_len);
        self.exchange.filter(|_| is_it)
    }

    /// Caches the route of a message, if it is short enough; `exchange` too, if every key may be published to
    /// it.
    pub(crate) fn set(
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
pub(crate) struct NewExchange<'a> {
    pub(crate) vhost: VhostId,
    pub(crate) declaration: ExchangeDeclaration<'a>,
    /// Version of the exchange, never reused; 0 when it is not in the log.
    pub(crate) version: u64,
    pub(crate) declarer: Option<Declarer>,
    /// The hidden queue of a delayed exchange, where messages wait for their delay.
    pub(crate) delayed_queue: Option<QueueId>,
}

impl Topology {
    pub(crate) fn find_exchange(&self, vhost: VhostId, name: &str) -> Option<ExchangeId> {
        find_exchange(&self.exchanges, &self.exchange_table, vhost, name)
    }

    /// Returns the exchange of this name.
    ///
    /// # Errors
    /// There is no such exchange.
    pub(crate) fn require_exchange(
        &self,
        access: &Access,
        vhost: VhostId,
        name: &str,
    ) -> Result<ExchangeId, Fault> {
        self.find_exchange(vhost, name).ok_or_else(|| {
            Fault::new(ReplyCode::NotFound, format_args!("no {}", exchange_text(access, vhost, name)))
        })
    }

    pub(crate) fn exchange(&self, exchange: ExchangeId) -> &Exchange {
        &self.exchanges[exchange.index()]
    }

    /// Counts a message that was published to an exchange and routed to this many queues.
    #[inline]
    pub(crate) fn count_published(&mut self, exchange: ExchangeId, queues: u32) {
        let [published, routed] = &mut self.exchanges[exchange.index()].published;
        (*published, *routed) = (published.wrapping_add(1), routed.wrapping_add(queues));
    }

    /// Returns the number of places of exchanges ever used.
    pub(crate) const fn exchange_places(&self) -> usize {
        self.exchanges.places()
    }

    /// Returns the exchange in a place, if it is not retired.
    pub(crate) fn exchange_at(&self, place: usize) -> Option<&Exchange> {
        self.exchanges.get(place).filter(|record| !record.is_deleted)
    }

    /// Compares an existing exchange with another declaration of it; the answer waits until its definition is
    /// durable.
    ///
    /// # Errors
    /// The exchange was declared with other properties.
    pub(crate) fn compare_exchange(
        &self,
        cx: &mut Context<'_>,
        access: &Access,
        exchange: ExchangeId,
        declaration: &ExchangeDeclaration<'_>,
    ) -> Result<(), Fault> {
        let record = self.exchange(exchange);
        let words = exchange_text(access, record.vhost, declaration.exchange);
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
        if !arguments::equivalent(received, current) {
            return Err(arguments::inequivalent("alternate-exchange", &words, received, current));
        }
        cx.await_defined(record.defined);
        Ok(())
    }

    /// Adds an exchange under its name. The caller has checked its declaration and the capacity, and has
    /// counted it unless it is predeclared.
    pub(crate) fn insert_exchange(&mut self, new: &NewExchange<'_>) -> ExchangeId {
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
            defined: Batch::NONE,
            durable: declaration.durable,
            auto_delete: declaration.auto_delete,
            internal: declaration.internal,
            arguments: declaration.arguments.into(),
            declarer: new.declarer,
            delayed_queue: new.delayed_queue,
            alternate: alternate.and_then(|value| value.as_str()).map(Into::into),
            applied: Applied::default(),
            root: self.trie.add_root(),
            bindings: List::default(),
            incoming: List::default(),
            pairs: 0,
            routed_at: 0,
            // The revision rises with every exchange.
            serial: self.revision() + 1,
            published: [0; 2],
            is_deleted: false,
        };
        let index = self.exchanges.insert(record).expect("there was room");
        self.exchange_table.insert((new.vhost, declaration.exchange), index);
        self.revise();
        ExchangeId::from_index(index)
    }

    /// Sets which policies apply to an exchange, and their alternate exchange, unless the exchange was
    /// declared with one.
    pub(crate) fn apply_policies(
        &mut self,
        exchange: ExchangeId,
        applied: Applied,
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

    /// Appends to the log that an exchange exists, or is deleted.
    pub(crate) fn append_exchange(
        &mut self,
        cx: &mut Context<'_>,
        access: &Access,
        exchange: ExchangeId,
        exists: bool,
    ) {
        let record = &mut self.exchanges[exchange.index()];
        if record.version == 0 {
            return;
        }
        let definition = Definition::Exchange {
            vhost: access.vhost_name(record.vhost),
            name: &record.name,
            version: record.version,
            kind: record.type_name(),
            auto_delete: record.auto_delete,
            internal: record.internal,
            arguments: &record.arguments,
        };
        record.defined = cx.pending_writes.define(definition.key(), exists.then(|| definition.value()));
        cx.await_batch(record.defined);
    }

    /// Frees the name of a deleted exchange, in the log too; the record stays until its bindings are
    /// removed.
    pub(crate) fn retire_exchange(&mut self, cx: &mut Context<'_>, access: &Access, exchange: ExchangeId) {
        self.append_exchange(cx, access, exchange, false);
        let record = &mut self.exchanges[exchange.index()];
        assert!(!record.is_deleted, "an exchange is retired once");
        record.is_deleted = true;
        self.exchange_table.remove((record.vhost, &*record.name), exchange.index());
        self.revise();
    }

    /// Frees the record of a retired exchange without bindings. Returns its virtual host.
    pub(crate) fn free_exchange(&mut self, quota: &mut Quota, exchange: ExchangeId) -> VhostId {
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
    pub(crate) fn is_source(&self, exchange: ExchangeId) -> bool {
        !self.exchanges[exchange.index()].bindings.is_empty()
    }
}

/// Exchange types that plug-ins or later versions of RabbitMQ add. The fault names the missing plug-in;
/// RabbitMQ without it says only that the type is unknown.
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
/// The checks are separate, in RabbitMQ's order: a client that declares an existing exchange first learns
/// what is wrong with the type, and of the rest only what differs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ExchangeDeclaration<'a> {
    pub(crate) exchange: &'a str,
    pub(crate) kind: &'a str,
    pub(crate) durable: bool,
    pub(crate) auto_delete: bool,
    pub(crate) internal: bool,
    pub(crate) arguments: &'a [u8],
}

impl<'a> ExchangeDeclaration<'a> {
    /// Returns whether the exchange is a delayed one.
    pub(crate) fn is_delayed(&self) -> bool {
        self.kind == DELAYED
    }

    /// Returns the bytes that the names of the exchange count for.
    pub(crate) const fn bytes(&self) -> usize {
        self.exchange.len() + self.arguments.len()
    }

    /// Checks, whether the exchange exists or not, that its type is known and that it is not the default
    /// exchange. `x-delayed-type` is checked only for a new exchange.
    pub(crate) fn check_askable(&self) -> Result<(), Fault> {
        if !self.is_delayed() {
            kind_named(self.kind)?;
        }
        refuse_default(self.exchange)
    }

    /// Returns how a new exchange routes.
    ///
    /// # Errors
    /// There is no such type, or `x-delayed-type` is missing or wrong.
    pub(crate) fn new_kind(&self) -> Result<ExchangeKind, Fault> {
        if !self.is_delayed() {
            return kind_named(self.kind);
        }
        let declaration =
            Table::trusted(self.arguments).get("x-delayed-type").and_then(|value| value.as_str());
        // A message delayed by a delayed type would never be routed.
        let declaration = declaration.filter(|kind| *kind != DELAYED).ok_or_else(|| {
            Fault::new(
                ReplyCode::PreconditionFailed,
                format_args!("Invalid argument, 'x-delayed-type' must be an existing exchange type"),
            )
        });
        declaration.and_then(kind_named)
    }

    /// Checks whether clients may give an exchange this name: `amq.` is reserved.
    pub(crate) fn check_name(&self) -> Result<(), Fault> {
        let name = self.exchange;
        let words = format_args!("exchange name '{name}' contains reserved prefix 'amq.*'");
        refuse_if(name.starts_with("amq."), words)
    }

    /// Returns the alternate exchange that the arguments name.
    ///
    /// # Errors
    /// The argument exists, but names no exchange.
    pub(crate) fn alternate(&self, access: &Access, vhost: VhostId) -> Result<Option<&'a str>, Fault> {
        match Table::trusted(self.arguments).get("alternate-exchange") {
            None => Ok(None),
            Some(value @ Value::LongStr(_)) => Ok(Some(value.as_str().unwrap_or_default())),
            Some(other) => Err(Fault::new(
                ReplyCode::PreconditionFailed,
                format_args!(
                    "invalid type '{}' for arg 'alternate-exchange' in {}",
                    other.type_name(),
                    exchange_text(access, vhost, self.exchange)
                ),
            )),
        }
    }
}

/// Returns the kind for a type's name.
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

/// Returns an exchange's name and virtual host as reply texts show them.
pub(crate) fn exchange_text<'a>(access: &'a Access, vhost: VhostId, name: &'a str) -> ExchangeText<'a> {
    ExchangeText { name, vhost: access.vhost_name(vhost) }
}

/// Refuses to declare, bind or delete the default exchange.
pub(crate) fn refuse_default(name: &str) -> Result<(), Fault> {
    refuse_if(name.is_empty(), format_args!("operation not permitted on the default exchange"))
}

/// Checks whether an exchange of this name may be deleted: the predeclared ones stay.
pub(crate) fn check_deletable_name(access: &Access, vhost: VhostId, name: &str) -> Result<(), Fault> {
    refuse_default(name)?;
    let words = exchange_text(access, vhost, name);
    refuse_if(is_system_name(name), format_args!("deletion of system {words} not allowed"))
}

/// Returns whether only predeclared exchanges have such a name.
fn is_system_name(name: &str) -> bool {
    name.is_empty() || name.starts_with("amq.")
}

fn refuse_if(is_so: bool, words: fmt::Arguments<'_>) -> Result<(), Fault> {
    if is_so { Err(Fault::new(ReplyCode::AccessRefused, words)) } else { Ok(()) }
}
