//! Creates, finds, counts, stores and removes bindings.
//!
//! A binding is on several lists at once, is counted in the quota, and may be in the log. The functions that
//! add a binding to all of these, and remove it from all of them, are next to each other in this file.
//!
//! # Invariants
//! - The number of bindings that a binding counts as depends only on its own fields and the type of its
//!   source, which never change. So the same number is subtracted when the binding is removed.
//! - While both its source and its destination are in the log, a binding is in the log too.

use core::hash::{BuildHasher, Hash, Hasher};

use foldhash::quality::FixedState;
use leveret_amqp::field::{Table, Value};
use leveret_core::command::{BindingId, ExchangeId, VhostId};
use leveret_core::definition::{self, Definition, DestinationName};
use leveret_core::error::{Fault, no_memory_for};
use leveret_core::mem::{Class, Links, List, Memory, Slab};
use leveret_core::quota::{Declared, FreeCapacity, Quota};
use leveret_storage::faults::version_for;
use leveret_storage::{Context, Mode, PendingWrites};

use super::select::{self, Rule};
use super::{
    Binding, BindingIdentity, BindingSpec, Destination, Exchange, ExchangeKind, RoutedQueues, Topology,
};

impl Topology {
    /// Returns a binding whose source is this exchange, or else one whose destination it is.
    pub fn any_binding(&self, exchange: ExchangeId) -> Option<BindingId> {
        let record = self.exchange(exchange);
        record.bindings.front().or(record.incoming.front()).map(BindingId::from_index)
    }

    /// Returns a binding.
    pub fn binding(&self, binding: BindingId) -> &Binding {
        &self.bindings[binding.index()]
    }

    /// Returns the bindings on the list of a queue.
    pub fn bindings_of_queue(&self, bindings: &List) -> impl Iterator<Item = BindingId> {
        let after = |index: &usize| List::after(&self.bindings, *index, |binding| &binding.destination_links);
        core::iter::successors(bindings.front(), after).map(BindingId::from_index)
    }

    /// Returns the number of bindings.
    pub const fn bindings_len(&self) -> usize {
        self.bindings.len()
    }

    /// Returns the number of places that bindings have used since the start.
    pub const fn binding_places(&self) -> usize {
        self.bindings.places()
    }

    /// Returns the binding in a place.
    pub fn binding_at(&self, place: usize) -> Option<&Binding> {
        self.bindings.get(place)
    }

    /// Returns the binding with these fields, in this virtual host.
    pub fn find_binding(
        &self,
        vhost: VhostId,
        spec: &BindingSpec<'_>,
        destination: Destination,
    ) -> Option<BindingId> {
        self.find_identical(&spec.between(self.find_exchange(vhost, spec.source)?, destination))
    }

    fn find_identical(&self, wanted: &BindingIdentity<'_>) -> Option<BindingId> {
        let is_it = |index: usize| self.bindings[index].identity() == *wanted;
        self.binding_table.find(wanted, is_it).map(BindingId::from_index)
    }

    /// Creates a binding, unless it exists, and appends it to the log. The reply waits until the binding is
    /// durable.
    ///
    /// # Errors
    /// The arguments are not valid for a headers exchange, there is no capacity, or the storage cannot be
    /// written.
    pub fn bind(
        &mut self,
        cx: &mut Context<'_>,
        vhost_name: &str,
        quota: &mut Quota,
        queues: &mut impl RoutedQueues,
        new: &BindingIdentity<'_>,
    ) -> Result<(), Fault> {
        if self.exchange(new.source).kind == ExchangeKind::Headers {
            select::check_match(Table::trusted(new.arguments))?;
        }
        if let Some(binding) = self.find_identical(new) {
            if self.binding(binding).is_stored {
                cx.await_all_changes();
            }
            return Ok(());
        }
        if self.survives_restart(cx.pending_writes, queues, new) {
            version_for(cx.pending_writes, true)?;
        }
        let binding = self.add_binding(cx, quota, queues, new)?;
        self.append_binding(cx, vhost_name, queues, binding, true);
        Ok(())
    }

    /// Returns how many queues, exchanges and bindings still fit into memory.
    pub fn free_capacity(&self, queues: &impl RoutedQueues) -> FreeCapacity {
        FreeCapacity {
            queues: queues.free_count(),
            exchanges: self.free_exchanges(),
            bindings: self.bindings.free_count(),
        }
    }

    /// Returns how many exchanges still fit into memory, with their nodes.
    pub fn free_exchanges(&self) -> usize {
        self.exchanges.free_count().min(self.trie.free_count())
    }

    /// Counts a binding in the quota and adds it to all lists, without appending it to the log.
    ///
    /// # Errors
    /// There is no capacity, or the connection that declares it has used up its share.
    pub fn add_binding(
        &mut self,
        cx: &Context<'_>,
        quota: &mut Quota,
        queues: &mut impl RoutedQueues,
        new: &BindingIdentity<'_>,
    ) -> Result<BindingId, Fault> {
        let Exchange { kind, root, is_deleted, .. } = self.exchanges[new.source.index()];
        assert!(!is_deleted, "nothing is bound to a deleted exchange");
        let key = new.routing_key.as_bytes();
        let (declared, bytes) = (new.declared(kind), new.bytes(kind));
        // Every exchange that the limits still allow needs a root node, so a binding must not use those nodes. If the memory
        // limits both, an exchange checks for its node.
        let roots = self.exchanges.capacity() - self.exchanges.len();
        let nodes_free = self.trie.free_count().min(self.trie.unused() - roots);
        let missing = self.trie.missing_nodes(root, kind, key);
        if missing > nodes_free {
            return Err(no_memory_for("another binding"));
        }
        let mut free = self.free_capacity(queues);
        if kind == ExchangeKind::Headers {
            free.bindings = free.bindings.min(self.pair_index.free_count());
        }
        quota.declare(declared, bytes, cx.declarer, free)?;
        let node = self.trie.node_for(root, kind, key);
        let record = Binding {
            source: new.source,
            destination: new.destination,
            key: new.routing_key.into(),
            arguments: new.arguments.into(),
            is_stored: self.survives_restart(cx.pending_writes, queues, new),
            declarer: cx.declarer,
            node,
            first_pair: None,
            source_links: Links::default(),
            destination_links: Links::default(),
            node_links: Links::default(),
        };
        let index = self.bindings.insert_checked(record);
        self.binding_table.insert(new, index, self.bindings.touched());
        let outgoing = &mut self.exchanges[new.source.index()].bindings;
        outgoing.push_back(&mut self.bindings, index, |binding| &mut binding.source_links);
        let incoming = incoming(&mut self.exchanges, queues, new.destination);
        incoming.push_back(&mut self.bindings, index, |binding| &mut binding.destination_links);
        let arguments = Table::trusted(new.arguments);
        if is_on_node(kind, arguments) {
            self.trie.insert_binding(&mut self.bindings, node, index);
        } else {
            let (first_pair, count) = self.pair_index.insert(new.source, index, arguments);
            self.bindings[index].first_pair = first_pair;
            self.exchanges[new.source.index()].pair_count += count;
        }
        self.revise();
        Ok(BindingId::from_index(index))
    }

    /// Removes a binding from all lists and from the log. If it was the last binding of an auto-delete
    /// exchange, returns that exchange, which the caller deletes.
    pub fn remove_binding(
        &mut self,
        cx: &mut Context<'_>,
        vhost_name: &str,
        quota: &mut Quota,
        queues: &mut impl RoutedQueues,
        binding: BindingId,
    ) -> Option<ExchangeId> {
        if !self.is_bound_anew(queues, binding) {
            self.append_binding(cx, vhost_name, queues, binding, false);
        }
        let index = binding.index();
        let Binding { source, destination, first_pair, mut node, .. } = self.bindings[index];
        let outgoing = &mut self.exchanges[source.index()].bindings;
        outgoing.remove(&mut self.bindings, index, |binding| &mut binding.source_links);
        let incoming = incoming(&mut self.exchanges, queues, destination);
        incoming.remove(&mut self.bindings, index, |binding| &mut binding.destination_links);
        let Exchange { kind, .. } = self.exchanges[source.index()];
        if is_on_node(kind, Table::trusted(&self.bindings[index].arguments)) {
            self.trie.remove_binding(&mut self.bindings, node, index);
        }
        self.exchanges[source.index()].pair_count -= self.pair_index.remove(first_pair);
        let removed = self.bindings.remove(index);
        self.binding_table.remove(removed.identity(), index);
        self.revise();
        quota.undeclare(removed.identity().declared(kind), removed.identity().bytes(kind), removed.declarer);
        while let Some(parent) = self.trie.prune(node) {
            node = parent;
        }
        let record = self.exchange(source);
        (record.auto_delete && !record.is_deleted && record.bindings.is_empty()).then_some(source)
    }

    /// Returns whether an identical binding exists between objects that have the names of this binding's
    /// source and destination. This happens when the source or destination was deleted and declared again.
    /// The log identifies bindings by these names, so the deletion of the old binding must not be appended.
    fn is_bound_anew(&self, queues: &impl RoutedQueues, binding: BindingId) -> bool {
        let record = self.binding(binding);
        let source = self.exchange(record.source);
        let destination = match record.destination {
            Destination::Queue(queue) => {
                queues.find(source.vhost, queues.stored_name(queue).0).map(Destination::Queue)
            }
            Destination::Exchange(exchange) => {
                self.find_exchange(source.vhost, &self.exchange(exchange).name).map(Destination::Exchange)
            }
        };
        let spec =
            BindingSpec { source: &source.name, routing_key: &record.key, arguments: &record.arguments };
        let found = destination.and_then(|destination| self.find_binding(source.vhost, &spec, destination));
        // A binding whose source and destination both still exist finds itself.
        found.is_some_and(|found| found != binding && record.is_stored && self.binding(found).is_stored)
    }

    /// Appends the definition of a binding to the log, or its deletion unless the binding `exists`.
    fn append_binding(
        &self,
        cx: &mut Context<'_>,
        vhost_name: &str,
        queues: &impl RoutedQueues,
        binding: BindingId,
        exists: bool,
    ) {
        let binding = self.binding(binding);
        if !binding.is_stored {
            return;
        }
        let source = self.exchange(binding.source);
        let (destination, destination_version) = match binding.destination {
            Destination::Queue(queue) => {
                let (name, incarnation) = queues.stored_name(queue);
                (DestinationName::Queue(name), incarnation)
            }
            Destination::Exchange(exchange) => {
                let exchange = self.exchange(exchange);
                (DestinationName::Exchange(&exchange.name), exchange.version)
            }
        };
        let definition = Definition::Binding(definition::Binding {
            vhost: vhost_name,
            source: &source.name,
            source_version: source.version,
            destination,
            destination_version,
            routing_key: &binding.key,
            arguments: &binding.arguments,
        });
        let batch = cx.pending_writes.write_definition(&definition, exists);
        cx.await_batch(batch);
    }

    /// Returns whether a new binding is written to the log: source and destination must be durable.
    fn survives_restart(
        &self,
        pending_writes: &PendingWrites,
        queues: &impl RoutedQueues,
        new: &BindingIdentity<'_>,
    ) -> bool {
        let is_kept = match new.destination {
            Destination::Queue(queue) => queues.stored_name(queue).1 > 0,
            Destination::Exchange(exchange) => self.exchange(exchange).durable,
        };
        pending_writes.mode() != Mode::Off && self.exchange(new.source).durable && is_kept
    }
}

impl BindingIdentity<'_> {
    /// Returns how many bindings the quota counts for this one. A binding with `x-match` `any` counts once
    /// for each of its pairs, others count once.
    fn declared(&self, kind: ExchangeKind) -> Declared {
        Declared::Binding(match kind {
            ExchangeKind::Headers => select::counted_bindings(Table::trusted(self.arguments)),
            _ => 1,
        })
    }

    /// Returns the bytes that the quota counts for a binding's routing key and arguments. The key counts
    /// twice if the trie stores its words too.
    const fn bytes(&self, kind: ExchangeKind) -> usize {
        let words = matches!(kind, ExchangeKind::Direct | ExchangeKind::Topic);
        self.routing_key.len() * (1 + words as usize) + self.arguments.len()
    }
}

/// Returns the list of the bindings that have this destination.
fn incoming<'a>(
    exchanges: &'a mut Slab<Exchange>,
    queues: &'a mut impl RoutedQueues,
    destination: Destination,
) -> &'a mut List {
    match destination {
        Destination::Queue(queue) => queues.bindings_mut(queue),
        Destination::Exchange(exchange) => &mut exchanges[exchange.index()].incoming,
    }
}

/// Returns whether a binding is on the list of a trie node; otherwise its pairs are in [`PairIndex`].
fn is_on_node(kind: ExchangeKind, arguments: Table<'_>) -> bool {
    kind != ExchangeKind::Headers || select::matches_everything(arguments)
}

/// A pair of name and value that a binding of a headers exchange requires, in the bucket of the pair's hash.
#[derive(Clone, Copy, Debug)]
pub(super) struct IndexedPair {
    pub(super) binding: u32,
    /// Hash of the binding's source exchange and of the pair.
    pub(super) hash: u32,
    /// Where the pair begins in the binding's arguments.
    pub(super) at: u32,
    /// The binding's `x-match` is `any`: a message with this pair matches.
    pub(super) any: bool,
    /// The next indexed pair of the same binding.
    pub(super) next: Option<u32>,
    links: Links,
}

/// Finds the bindings of headers exchanges that require a given header.
///
/// A pair is the name and the value that a binding requires of a header.
///
/// ```text
/// exchange, name, value ─hash→ bucket ─ pair ─ pair ─ pair
///                                        │ binding, position of the pair in the binding's arguments
/// binding ─ pair ─ pair                  `any`: all pairs are indexed; `all`: one of them is
/// ```
///
/// Bindings that have no indexed pair in common with a message are not examined. If a binding requires all of
/// its pairs, only one of them is indexed: the one whose bucket has the fewest pairs.
///
/// # Invariants
/// - The indexed pairs of a binding do not change while it exists.
/// - There is always capacity for a pair, because each indexed pair is counted as one of `bindings_max`.
#[derive(Debug)]
pub(super) struct PairIndex {
    pairs: Slab<IndexedPair>,
    buckets: Box<[List]>,
    hasher: FixedState,
}

impl PairIndex {
    /// Bytes of memory that one indexed pair takes, without the hash table.
    pub(super) const BYTES_PER_PAIR: usize = Slab::<IndexedPair>::record_bytes();

    /// Returns the bytes of the hash table for this many bindings.
    pub(super) const fn table_bytes(bindings_max: usize) -> usize {
        Self::bucket_count(bindings_max) * size_of::<List>()
    }

    /// Returns the number of buckets: an eighth of the bindings, because few have headers.
    const fn bucket_count(bindings_max: usize) -> usize {
        bindings_max / 8 + 1
    }

    pub(super) fn with_capacity(bindings_max: usize, memory: &Memory, seed: u64) -> Self {
        Self {
            pairs: Slab::in_memory(bindings_max, memory, Class::Definitions),
            buckets: List::table(Self::bucket_count(bindings_max)),
            hasher: FixedState::with_seed(seed),
        }
    }

    /// Indexes the pairs of a binding. Returns the first indexed pair, and their number.
    pub(super) fn insert(
        &mut self,
        exchange: ExchangeId,
        binding: usize,
        arguments: Table<'_>,
    ) -> (Option<u32>, u32) {
        let rule = Rule::of(arguments);
        if !rule.any {
            let hashed = |(at, name, wanted): (usize, &[u8], Value<'_>)| {
                (at as u32, self.hash(exchange, name, wanted))
            };
            let pairs = rule.pairs(arguments).map(hashed);
            let rarest = pairs.min_by_key(|&(_, hash)| self.buckets[self.bucket(hash)].len());
            let first = rarest.map(|(at, hash)| self.insert_pair(binding, at, hash, false, None));
            return (first, u32::from(first.is_some()));
        }
        let (mut first, mut count) = (None, 0);
        for (at, name, wanted) in rule.pairs(arguments) {
            let hash = self.hash(exchange, name, wanted);
            first = Some(self.insert_pair(binding, at as u32, hash, true, first));
            count += 1;
        }
        (first, count)
    }

    fn free_count(&self) -> usize {
        self.pairs.free_count()
    }

    fn insert_pair(&mut self, binding: usize, at: u32, hash: u32, any: bool, next: Option<u32>) -> u32 {
        let bucket = self.bucket(hash);
        let pair = IndexedPair { binding: binding as u32, hash, at, any, next, links: Links::default() };
        let index = self.pairs.insert_checked(pair);
        self.buckets[bucket].push_back(&mut self.pairs, index, |pair| &mut pair.links);
        index as u32
    }

    /// Removes all indexed pairs of a binding, beginning with `first`. Returns their number.
    pub(super) fn remove(&mut self, first: Option<u32>) -> u32 {
        let (mut next, mut count) = (first, 0);
        while let Some(index) = next {
            let index = index as usize;
            let bucket = self.bucket(self.pairs[index].hash);
            self.buckets[bucket].remove(&mut self.pairs, index, |pair| &mut pair.links);
            next = self.pairs.remove(index).next;
            count += 1;
        }
        count
    }

    /// Returns the hash of a pair in an exchange. A void value means that only the header's presence is
    /// required.
    pub(super) fn hash(&self, exchange: ExchangeId, name: &[u8], wanted: Value<'_>) -> u32 {
        let mut state = self.hasher.build_hasher();
        (exchange, name).hash(&mut state);
        select::hash_value(wanted, &mut state);
        state.finish() as u32
    }

    /// Returns the first pair in the bucket of this hash. The bucket may contain pairs with other hashes.
    pub(super) fn first(&self, hash: u32) -> Option<usize> {
        self.buckets[self.bucket(hash)].front()
    }

    /// Returns the pair after this one in its bucket.
    pub(super) fn after(&self, index: usize) -> Option<usize> {
        List::after(&self.pairs, index, |pair| &pair.links)
    }

    pub(super) fn pair_at(&self, index: usize) -> IndexedPair {
        self.pairs[index]
    }

    fn bucket(&self, hash: u32) -> usize {
        ((u64::from(hash) * self.buckets.len() as u64) >> 32) as usize
    }

    /// Returns approximately how many bytes of system memory the pool of pairs has but does not use.
    pub(super) const fn idle_bytes(&self) -> usize {
        self.pairs.idle_bytes()
    }

    /// Returns unused memory to the system.
    pub(super) fn trim(&mut self) {
        self.pairs.trim();
    }
}
