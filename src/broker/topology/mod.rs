//! Exchanges and bindings, and the routing of messages to queues.
//!
//! Publishers name an exchange and a routing key, never a queue. Clients declare what connects them at run
//! time. It may be large and irregular, and is evaluated for every message.
//!
//! | file | content |
//! |---|---|
//! | `mod` | all exchanges and bindings and their records; the route cache of a channel |
//! | `exchanges`, `bindings` | creating, finding, comparing, counting and deleting them; writing them to the log |
//! | `trie` | which bindings a routing key reaches: keys, words of patterns |
//! | `select` | from an exchange, routing keys and headers to queues; the matching rule of headers exchanges |
//!
//! The caller decides which user may declare, which policies apply and what is deleted with an exchange.
//!
//! # Invariants
//! - Everything that can change a route raises the revision.
//! - A retired exchange cannot be found or routed to. Its record is freed with its last binding.
//! - A binding counts in the quota as long as it exists.

mod bindings;
mod exchanges;
mod select;
#[cfg(test)]
mod tests;
mod trie;

use std::sync::Arc;

use bindings::Pairs;
use leveret_core::command::{ExchangeId, QueueId, VhostId};
use leveret_core::mem::{Links, List, MessageId, Messages, Slab};
use leveret_core::pending_writes::Batch;
use trie::Trie;

use crate::context::Work;
use crate::policy::Applied;
use crate::quota::Declarer;
use crate::state::IndexTable;

pub(super) use exchanges::NewExchange;
pub(super) use exchanges::{ExchangeDeclaration, check_deletable_name, exchange_text, refuse_default};
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
