//! The tables of exchanges and bindings, and how they hang together.
//!
//! Always true: whatever can change a route raises the revision; an exchange that is retired is found by
//! nobody and chosen by nobody, and its record goes with its last binding.

use std::sync::Arc;

use super::headers;
use super::pairs::Pairs;
use super::records::{Binding, Destination, Exchange, Kind};
use super::trie::Trie;
use crate::broker::names::IndexTable;
use crate::broker::policy::Applied;
use crate::broker::quota::Declarer;
use crate::command::{BindingId, ExchangeId, QueueId, VhostId};
use crate::journal::Batch;
use crate::mem::{Links, List, Slab};
use crate::wire::field::{Table, Value};

/// Nodes of the tries per binding: a topic pattern of that many words on average.
const NODES_PER_BINDING: usize = 2;
/// Units of work that routing one message may take for each binding there may be: a key of eight words gets
/// to every node of a topic exchange, whatever is bound.
const UNITS_PER_BINDING: u32 = 16;
/// However few bindings there may be: room for a message with thousands of keys.
const UNITS_MIN: u32 = 1 << 16;

/// Exchanges, bindings, and how to get from the ones along the others.
#[derive(Debug)]
pub(in crate::broker) struct Routing {
    pub(super) exchanges: Slab<Exchange>,
    pub(super) exchange_table: IndexTable,
    pub(super) bindings: Slab<Binding>,
    pub(super) binding_table: IndexTable,
    pub(super) pairs: Pairs,
    pub(super) trie: Trie,
    pub(super) header_names: headers::Names,
    /// Exchanges that the message under way comes to.
    pub(super) to_visit: Vec<ExchangeId>,
    /// Routes there have been.
    pub(super) routes: u64,
    pub(super) revision: u64,
    pub(super) units_max: u32,
}

/// What a new exchange is made with.
pub(in crate::broker) struct NewExchange<'a> {
    pub(in crate::broker) vhost: VhostId,
    pub(in crate::broker) name: &'a str,
    pub(in crate::broker) kind: Kind,
    /// Never used again for another exchange; 0 when it is not in the log.
    pub(in crate::broker) version: u64,
    pub(in crate::broker) durable: bool,
    pub(in crate::broker) auto_delete: bool,
    pub(in crate::broker) internal: bool,
    pub(in crate::broker) arguments: &'a [u8],
    pub(in crate::broker) declarer: Option<Declarer>,
    /// Where its messages wait that say so, when it is a delayed one.
    pub(in crate::broker) sleepers: Option<QueueId>,
}

/// A binding's fields, whichever method they came with.
pub(in crate::broker) struct BindingSpec<'a> {
    pub(in crate::broker) source: &'a str,
    pub(in crate::broker) routing_key: &'a str,
    pub(in crate::broker) arguments: &'a [u8],
}

/// Where a binding leads, with the list of those that lead to a queue.
pub(in crate::broker) enum End<'a> {
    /// A queue, and its list.
    Queue(QueueId, &'a mut List),
    /// An exchange.
    Exchange(ExchangeId),
}

impl End<'_> {
    const fn destination(&self) -> Destination {
        match *self {
            Self::Queue(queue, _) => Destination::Queue(queue),
            Self::Exchange(exchange) => Destination::Exchange(exchange),
        }
    }
}

impl Routing {
    /// An exchange in memory, with its root node.
    pub(in crate::broker) const EXCHANGE_BYTES: usize = Slab::<Exchange>::record_bytes()
        + IndexTable::ENTRY_BYTES
        + size_of::<ExchangeId>()
        + Trie::NODE_BYTES;
    /// A binding, with its nodes, or its pairs.
    pub(in crate::broker) const BINDING_BYTES: usize = Slab::<Binding>::record_bytes()
        + Pairs::BYTES_EACH
        + IndexTable::ENTRY_BYTES
        + NODES_PER_BINDING * Trie::NODE_BYTES;
    /// Nodes of a binding.
    pub(in crate::broker) const NODES_PER_BINDING: usize = NODES_PER_BINDING;

    /// What looking into the headers of a message takes in memory.
    pub(in crate::broker) const fn header_names_bytes(frame_max: usize) -> usize {
        headers::Names::bytes(frame_max)
    }

    pub(in crate::broker) fn with_capacity(
        exchanges: usize,
        bindings: usize,
        frame_max: usize,
        seed: u64,
    ) -> Self {
        let nodes = exchanges + bindings * NODES_PER_BINDING;
        Self {
            exchanges: Slab::with_capacity(exchanges),
            exchange_table: IndexTable::with_capacity(exchanges, seed),
            bindings: Slab::with_capacity(bindings),
            binding_table: IndexTable::with_capacity(bindings, seed),
            pairs: Pairs::with_capacity(bindings, seed),
            trie: Trie::with_capacity(nodes, seed),
            header_names: headers::Names::for_frames(frame_max, seed),
            to_visit: Vec::with_capacity(exchanges),
            routes: 0,
            revision: 1,
            units_max: (bindings as u32).saturating_mul(UNITS_PER_BINDING).max(UNITS_MIN),
        }
    }

    /// Units of work that one message may take.
    pub(in crate::broker) const fn units_max(&self) -> u32 {
        self.units_max
    }

    /// What a route, or a right, that was remembered must have been found under to hold still.
    #[inline]
    pub(in crate::broker) const fn revision(&self) -> u64 {
        self.revision
    }

    /// Routes and rights may be others from now on.
    pub(in crate::broker) const fn revise(&mut self) {
        self.revision += 1;
    }

    // ---- exchanges

    pub(in crate::broker) fn find(&self, vhost: VhostId, name: &str) -> Option<ExchangeId> {
        find_exchange(&self.exchanges, &self.exchange_table, vhost, name)
    }

    pub(in crate::broker) fn exchange(&self, exchange: ExchangeId) -> &Exchange {
        &self.exchanges[exchange.index()]
    }

    /// Places of exchanges that were ever used.
    pub(in crate::broker) const fn exchange_places(&self) -> usize {
        self.exchanges.places()
    }

    /// The exchange in a place, if it is not retired.
    pub(in crate::broker) fn exchange_at(&self, place: usize) -> Option<&Exchange> {
        self.exchanges.get(place).filter(|record| !record.dying)
    }

    /// Puts an exchange where it is found; the caller made sure of room.
    pub(in crate::broker) fn insert_exchange(&mut self, new: &NewExchange<'_>) -> ExchangeId {
        let alternate = Table::trusted(new.arguments).get("alternate-exchange");
        let record = Exchange {
            vhost: new.vhost,
            name: new.name.into(),
            kind: new.kind,
            version: new.version,
            defined: Batch::NONE,
            durable: new.durable,
            auto_delete: new.auto_delete,
            internal: new.internal,
            arguments: new.arguments.into(),
            declarer: new.declarer,
            sleepers: new.sleepers,
            alternate: alternate.and_then(|value| value.as_str()).map(Into::into),
            applied: Applied::default(),
            root: self.trie.add_root(),
            bindings: List::default(),
            incoming: List::default(),
            pairs: 0,
            routed_at: 0,
            dying: false,
        };
        let index = self.exchanges.insert(record).expect("there was room");
        self.exchange_table.insert((new.vhost, new.name), index);
        self.revise();
        ExchangeId::from_index(index)
    }

    /// These policies apply to an exchange, and say where goes what matches nothing, unless it was declared
    /// with that.
    pub(in crate::broker) fn apply_policies(
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

    /// What says that an exchange exists is durable with this batch.
    pub(in crate::broker) fn set_defined(&mut self, exchange: ExchangeId, batch: Batch) {
        self.exchanges[exchange.index()].defined = batch;
    }

    /// Takes the name away; the record stays until its bindings are gone.
    pub(in crate::broker) fn retire_exchange(&mut self, exchange: ExchangeId) {
        let record = &mut self.exchanges[exchange.index()];
        record.dying = true;
        self.exchange_table.remove((record.vhost, &*record.name), exchange.index());
        self.revise();
    }

    /// Frees the record of an exchange that is retired and has no bindings.
    pub(in crate::broker) fn free_exchange(&mut self, exchange: ExchangeId) -> Exchange {
        let record = self.exchanges.remove(exchange.index());
        assert!(record.dying && record.bindings.is_empty() && record.incoming.is_empty());
        self.trie.remove_root(record.root);
        record
    }

    // ---- bindings

    /// A binding from this exchange, or else one that leads to it.
    pub(in crate::broker) fn any_binding(&self, exchange: ExchangeId) -> Option<BindingId> {
        let record = &self.exchanges[exchange.index()];
        record.bindings.front().or(record.incoming.front()).map(BindingId::from_index)
    }

    /// Whether something is bound to this exchange.
    pub(in crate::broker) fn is_source(&self, exchange: ExchangeId) -> bool {
        !self.exchanges[exchange.index()].bindings.is_empty()
    }

    pub(in crate::broker) fn binding(&self, binding: BindingId) -> &Binding {
        &self.bindings[binding.index()]
    }

    /// How many bindings there are.
    pub(in crate::broker) const fn bindings_len(&self) -> usize {
        self.bindings.len()
    }

    /// Places of bindings that were ever used.
    pub(in crate::broker) const fn binding_places(&self) -> usize {
        self.bindings.places()
    }

    /// The binding in a place.
    pub(in crate::broker) fn binding_at(&self, place: usize) -> Option<&Binding> {
        self.bindings.get(place)
    }

    pub(in crate::broker) fn find_binding(
        &self,
        source: ExchangeId,
        destination: Destination,
        spec: &BindingSpec<'_>,
    ) -> Option<BindingId> {
        let key = (source, destination, spec.routing_key, spec.arguments);
        let is_it = |index: usize| {
            let binding = &self.bindings[index];
            (binding.source, binding.destination, &*binding.key, &*binding.arguments) == key
        };
        self.binding_table.find(key, is_it).map(BindingId::from_index)
    }

    /// How many nodes there are to be made for a binding with this key.
    pub(in crate::broker) fn missing_nodes(&self, source: ExchangeId, key: &str) -> usize {
        let Exchange { kind, root, .. } = self.exchanges[source.index()];
        self.trie.missing(root, kind, key.as_bytes())
    }

    /// Nodes that may still be made: each exchange has a root, so room is left for those of all there can
    /// be.
    pub(in crate::broker) fn node_room(&self) -> usize {
        self.trie.room() - self.exchanges.room()
    }

    /// Puts a binding on everything it hangs on; the caller made sure of room. Nodes that are missing are
    /// made for the user of this number.
    pub(in crate::broker) fn insert_binding(
        &mut self,
        source: ExchangeId,
        end: End<'_>,
        spec: &BindingSpec<'_>,
        stored: bool,
        declarer: Option<Declarer>,
    ) -> BindingId {
        let destination = end.destination();
        let Exchange { kind, root, .. } = self.exchanges[source.index()];
        let user = declarer.map_or(0, Declarer::user);
        let record = Binding {
            source,
            destination,
            key: spec.routing_key.into(),
            arguments: spec.arguments.into(),
            stored,
            declarer,
            node: self.trie.place(root, kind, spec.routing_key.as_bytes(), user),
            hook: None,
            source_links: Links::default(),
            destination_links: Links::default(),
            node_links: Links::default(),
        };
        let node = record.node;
        let index = self.bindings.insert(record).expect("there was room");
        self.binding_table.insert((source, destination, spec.routing_key, spec.arguments), index);
        let outgoing = &mut self.exchanges[source.index()].bindings;
        outgoing.push_back(&mut self.bindings, index, |binding| &mut binding.source_links);
        let incoming = match end {
            End::Queue(_, list) => list,
            End::Exchange(exchange) => &mut self.exchanges[exchange.index()].incoming,
        };
        incoming.push_back(&mut self.bindings, index, |binding| &mut binding.destination_links);
        let arguments = Table::trusted(spec.arguments);
        if hangs_on_node(kind, arguments) {
            self.trie.hang(&mut self.bindings, node, index);
        } else {
            let (hook, count) = self.pairs.hang(source, index, arguments);
            self.bindings[index].hook = hook;
            self.exchanges[source.index()].pairs += count;
        }
        self.revise();
        BindingId::from_index(index)
    }

    /// Takes a binding off everything it hangs on. Its node is still there: see [`Self::prune`].
    pub(in crate::broker) fn remove_binding(&mut self, binding: BindingId, end: End<'_>) -> Binding {
        let index = binding.index();
        let Binding { source, node, hook, .. } = self.bindings[index];
        let outgoing = &mut self.exchanges[source.index()].bindings;
        outgoing.remove(&mut self.bindings, index, |binding| &mut binding.source_links);
        let incoming = match end {
            End::Queue(_, list) => list,
            End::Exchange(exchange) => &mut self.exchanges[exchange.index()].incoming,
        };
        incoming.remove(&mut self.bindings, index, |binding| &mut binding.destination_links);
        let kind = self.exchanges[source.index()].kind;
        if hangs_on_node(kind, Table::trusted(&self.bindings[index].arguments)) {
            self.trie.take_off(&mut self.bindings, node, index);
        }
        self.exchanges[source.index()].pairs -= self.pairs.take_off(hook);
        let binding = self.bindings.remove(index);
        self.binding_table.remove((source, binding.destination, &*binding.key, &*binding.arguments), index);
        self.revise();
        binding
    }

    /// Removes the node where a binding that is gone hung, and its parents, as far as they serve nothing
    /// any more, one with each call: for which user it was made.
    pub(in crate::broker) fn prune(&mut self, binding: &mut Binding) -> Option<u32> {
        let (parent, user) = self.trie.prune(binding.node)?;
        binding.node = parent;
        Some(user)
    }

    // ---- memory

    /// Bytes that nobody uses and the system holds memory for, about.
    pub(in crate::broker) const fn idle_bytes(&self) -> usize {
        self.bindings.idle_bytes() + self.pairs.idle_bytes() + self.trie.idle_bytes()
    }

    /// Gives idle memory back.
    pub(in crate::broker) fn trim(&mut self) {
        self.bindings.trim();
        self.pairs.trim();
        self.trie.trim();
    }
}

/// How many of `bindings_max` a binding takes: where any of several pairs is enough, one for each.
pub(in crate::broker) fn places_of_binding(kind: Kind, arguments: &[u8]) -> u32 {
    if kind == Kind::Headers { headers::places(Table::trusted(arguments)) } else { 1 }
}

/// What is wrong with the `x-match` of a binding to a headers exchange, if anything.
pub(in crate::broker) fn invalid_match(arguments: &[u8]) -> Option<Value<'_>> {
    headers::invalid_match(Table::trusted(arguments))
}

/// Whether a binding hangs on its node, or is found by its pairs.
fn hangs_on_node(kind: Kind, arguments: Table<'_>) -> bool {
    kind != Kind::Headers || headers::takes_everything(arguments)
}

pub(super) fn find_exchange(
    exchanges: &Slab<Exchange>,
    table: &IndexTable,
    vhost: VhostId,
    name: &str,
) -> Option<ExchangeId> {
    let is_it = |index: usize| exchanges[index].vhost == vhost && &*exchanges[index].name == name;
    table.find((vhost, name), is_it).map(ExchangeId::from_index)
}
