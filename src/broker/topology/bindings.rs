//! Creates, finds, counts, stores and removes bindings.
//!
//! A binding is on several lists at once, counts in a quota, and may be in the log. The code that adds it
//! there and the code that removes it are side by side here.
//!
//! # Invariants
//! - The places that a binding takes follow from its own fields and the type of its source, so the same
//!   number is given back.
//! - A binding is in the log while both its source and its destination are.

use core::hash::{BuildHasher, Hash, Hasher};

use foldhash::quality::FixedState;
use leveret_amqp::field::{Table, Value};
use leveret_core::command::{BindingId, ExchangeId, VhostId};
use leveret_core::error::Fault;
use leveret_core::mem::{Links, List, Slab};
use leveret_core::pending_writes::{Definition, DestinationName, Mode, PendingWrites};

use super::select::{self, Rule};
use super::{Binding, BindingSpec, Destination, Exchange, ExchangeKind, FoundBinding, Topology};
use crate::queue_flow::Queues;
use crate::quota::{Declared, FreeCapacity, Quota};
use crate::reply_text::{out_of, version_for};
use crate::{Access, Context};

impl Topology {
    /// Returns a binding whose source is this exchange, or else one whose destination it is.
    pub(crate) fn any_binding(&self, exchange: ExchangeId) -> Option<BindingId> {
        let record = self.exchange(exchange);
        record.bindings.front().or(record.incoming.front()).map(BindingId::from_index)
    }

    pub(crate) fn binding(&self, binding: BindingId) -> &Binding {
        &self.bindings[binding.index()]
    }

    /// Returns the number of bindings.
    pub(crate) const fn bindings_len(&self) -> usize {
        self.bindings.len()
    }

    /// Returns the number of places of bindings ever used.
    pub(crate) const fn binding_places(&self) -> usize {
        self.bindings.places()
    }

    /// Returns the binding in a place.
    pub(crate) fn binding_at(&self, place: usize) -> Option<&Binding> {
        self.bindings.get(place)
    }

    /// Returns the binding with these fields, in this virtual host.
    pub(crate) fn find_binding(
        &self,
        vhost: VhostId,
        spec: &BindingSpec<'_>,
        destination: Destination,
    ) -> Option<BindingId> {
        self.find_same(&spec.between(self.find_exchange(vhost, spec.source)?, destination))
    }

    fn find_same(&self, wanted: &FoundBinding<'_>) -> Option<BindingId> {
        let is_it = |index: usize| self.bindings[index].found() == *wanted;
        self.binding_table.find(wanted, is_it).map(BindingId::from_index)
    }

    /// Creates a binding, unless it exists, and writes it; the answer waits until it is durable.
    ///
    /// # Errors
    /// The arguments are not valid for a headers exchange, there is no capacity, or the storage cannot be
    /// written.
    pub(crate) fn bind(
        &mut self,
        cx: &mut Context<'_>,
        access: &Access,
        quota: &mut Quota,
        queues: &mut Queues,
        new: &FoundBinding<'_>,
    ) -> Result<(), Fault> {
        if self.exchange(new.source).kind == ExchangeKind::Headers {
            select::check_match(Table::trusted(new.arguments))?;
        }
        if let Some(binding) = self.find_same(new) {
            if self.binding(binding).stored {
                cx.await_all_changes();
            }
            return Ok(());
        }
        if self.is_stored(cx.pending_writes, queues, new) {
            version_for(cx.pending_writes, true)?;
        }
        let binding = self.add_binding(cx, quota, queues, new)?;
        self.append_binding(cx, access, queues, binding, true);
        Ok(())
    }

    /// Counts a binding and puts it on every list, without writing it.
    ///
    /// # Errors
    /// There is no capacity, or the connection that declares it has used up its share.
    pub(crate) fn add_binding(
        &mut self,
        cx: &Context<'_>,
        quota: &mut Quota,
        queues: &mut Queues,
        new: &FoundBinding<'_>,
    ) -> Result<BindingId, Fault> {
        let Exchange { kind, root, is_deleted, .. } = self.exchanges[new.source.index()];
        assert!(!is_deleted, "nothing is bound to an exchange that is gone");
        let key = new.routing_key.as_bytes();
        let (declared, bytes) = (new.declared(kind), new.bytes(kind));
        // Each exchange needs a root node, so nodes are reserved for the maximum number of exchanges.
        if self.trie.missing(root, kind, key) > self.trie.free_count() - self.exchanges.free_count() {
            return Err(out_of("bindings_max"));
        }
        quota.declare(
            declared,
            bytes,
            cx.declarer,
            FreeCapacity { queues: queues.records().free_count() },
        )?;
        let node = self.trie.place(root, kind, key);
        let record = Binding {
            source: new.source,
            destination: new.destination,
            key: new.routing_key.into(),
            arguments: new.arguments.into(),
            stored: self.is_stored(cx.pending_writes, queues, new),
            declarer: cx.declarer,
            node,
            hook: None,
            source_links: Links::default(),
            destination_links: Links::default(),
            node_links: Links::default(),
        };
        let index = self.bindings.insert(record).expect("the quota counts them");
        self.binding_table.insert(new, index);
        let outgoing = &mut self.exchanges[new.source.index()].bindings;
        outgoing.push_back(&mut self.bindings, index, |binding| &mut binding.source_links);
        let incoming = incoming(&mut self.exchanges, queues, new.destination);
        incoming.push_back(&mut self.bindings, index, |binding| &mut binding.destination_links);
        let arguments = Table::trusted(new.arguments);
        if is_on_node(kind, arguments) {
            self.trie.insert_binding(&mut self.bindings, node, index);
        } else {
            let (hook, count) = self.pairs.insert(new.source, index, arguments);
            self.bindings[index].hook = hook;
            self.exchanges[new.source.index()].pairs += count;
        }
        self.revise();
        Ok(BindingId::from_index(index))
    }

    /// Removes a binding from every list, and writes that. Returns the auto-delete exchange that it was the
    /// last binding of.
    pub(crate) fn remove_binding(
        &mut self,
        cx: &mut Context<'_>,
        access: &Access,
        quota: &mut Quota,
        queues: &mut Queues,
        binding: BindingId,
    ) -> Option<ExchangeId> {
        if !self.is_bound_anew(queues, binding) {
            self.append_binding(cx, access, queues, binding, false);
        }
        let index = binding.index();
        let Binding { source, destination, hook, mut node, .. } = self.bindings[index];
        let outgoing = &mut self.exchanges[source.index()].bindings;
        outgoing.remove(&mut self.bindings, index, |binding| &mut binding.source_links);
        let incoming = incoming(&mut self.exchanges, queues, destination);
        incoming.remove(&mut self.bindings, index, |binding| &mut binding.destination_links);
        let Exchange { kind, .. } = self.exchanges[source.index()];
        if is_on_node(kind, Table::trusted(&self.bindings[index].arguments)) {
            self.trie.remove_binding(&mut self.bindings, node, index);
        }
        self.exchanges[source.index()].pairs -= self.pairs.remove(hook);
        let gone = self.bindings.remove(index);
        self.binding_table.remove(gone.found(), index);
        self.revise();
        quota.undeclare(gone.found().declared(kind), gone.found().bytes(kind), gone.declarer);
        while let Some(parent) = self.trie.prune(node) {
            node = parent;
        }
        let record = self.exchange(source);
        (record.auto_delete && !record.is_deleted && record.bindings.is_empty()).then_some(source)
    }

    /// Returns whether the source or destination of a binding was deleted, and objects of the same names are
    /// bound in the same way now. In the log both bindings are one, which exists.
    fn is_bound_anew(&self, queues: &Queues, binding: BindingId) -> bool {
        let record = self.binding(binding);
        let source = self.exchange(record.source);
        let destination = match record.destination {
            Destination::Queue(queue) => {
                queues.records().find_queue(source.vhost, &queues.at(queue).name).map(Destination::Queue)
            }
            Destination::Exchange(exchange) => {
                self.find_exchange(source.vhost, &self.exchange(exchange).name).map(Destination::Exchange)
            }
        };
        let spec =
            BindingSpec { source: &source.name, routing_key: &record.key, arguments: &record.arguments };
        let found = destination.and_then(|destination| self.find_binding(source.vhost, &spec, destination));
        // A binding whose source and destination both still exist finds itself.
        found.is_some_and(|found| found != binding && record.stored && self.binding(found).stored)
    }

    /// Appends to the log that a binding exists, or is deleted.
    fn append_binding(
        &self,
        cx: &mut Context<'_>,
        access: &Access,
        queues: &Queues,
        binding: BindingId,
        exists: bool,
    ) {
        let binding = self.binding(binding);
        if !binding.stored {
            return;
        }
        let source = self.exchange(binding.source);
        let (destination, destination_version) = match binding.destination {
            Destination::Queue(queue) => {
                let queue = queues.at(queue);
                (DestinationName::Queue(&queue.name), queue.logged.incarnation())
            }
            Destination::Exchange(exchange) => {
                let exchange = self.exchange(exchange);
                (DestinationName::Exchange(&exchange.name), exchange.version)
            }
        };
        let definition = Definition::Binding {
            vhost: access.vhost_name(source.vhost),
            source: &source.name,
            source_version: source.version,
            destination,
            destination_version,
            routing_key: &binding.key,
            arguments: &binding.arguments,
        };
        let batch = cx.pending_writes.define(definition.key(), exists.then(|| definition.value()));
        cx.await_batch(batch);
    }

    /// Returns whether a binding between these two survives a restart.
    fn is_stored(&self, pending_writes: &PendingWrites, queues: &Queues, new: &FoundBinding<'_>) -> bool {
        let is_kept = match new.destination {
            Destination::Queue(queue) => queues.at(queue).logged.is_logged(),
            Destination::Exchange(exchange) => self.exchange(exchange).durable,
        };
        pending_writes.mode() != Mode::Off && self.exchange(new.source).durable && is_kept
    }
}

impl FoundBinding<'_> {
    /// Returns the places that a binding takes in the quota: one for each pair, if any single pair is enough.
    fn declared(&self, kind: ExchangeKind) -> Declared {
        Declared::Binding(match kind {
            ExchangeKind::Headers => select::places(Table::trusted(self.arguments)),
            _ => 1,
        })
    }

    /// Returns the bytes of a binding's names; the trie may store the words of its routing key again.
    const fn bytes(&self, kind: ExchangeKind) -> usize {
        let words = matches!(kind, ExchangeKind::Direct | ExchangeKind::Topic);
        self.routing_key.len() * (1 + words as usize) + self.arguments.len()
    }
}

/// Returns the list of the bindings of a destination.
fn incoming<'a>(
    exchanges: &'a mut Slab<Exchange>,
    queues: &'a mut Queues,
    destination: Destination,
) -> &'a mut List {
    match destination {
        Destination::Queue(queue) => queues.records_mut().bindings_mut(queue),
        Destination::Exchange(exchange) => &mut exchanges[exchange.index()].incoming,
    }
}

/// Returns whether a binding is on the list of its node, and not found by its pairs.
fn is_on_node(kind: ExchangeKind, arguments: Table<'_>) -> bool {
    kind != ExchangeKind::Headers || select::takes_everything(arguments)
}

/// One pair of a binding, in the bucket of its hash.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hook {
    pub(super) binding: u32,
    /// Hash of the binding's exchange and of the pair.
    pub(super) hash: u32,
    /// Where the pair begins in the binding's arguments.
    pub(super) at: u32,
    /// The binding's `x-match` is `any`: this pair is enough.
    pub(super) any: bool,
    /// The next hook of the same binding.
    pub(super) next: Option<u32>,
    links: Links,
}

/// Finds bindings of headers exchanges by their pairs: from a header to the bindings that require it.
///
/// ```text
/// exchange, name, value ─hash→ bucket ─ hook ─ hook ─ hook
///                                        │ binding, where its pair begins in its arguments
/// binding ─ hook ─ hook                  `any`: one for each pair; `all`: one, for one of its pairs
/// ```
///
/// Bindings that have nothing in common with a message are not examined. If all pairs of a binding are
/// required, it has one hook, for the pair that the fewest others require.
///
/// # Invariants
/// - A binding has hooks from its creation to its end.
/// - There is capacity for the hooks of all bindings, because each counts as one of `bindings_max`.
#[derive(Debug)]
pub(super) struct Pairs {
    hooks: Slab<Hook>,
    buckets: Box<[List]>,
    hasher: FixedState,
}

impl Pairs {
    /// Bytes of memory that one hook takes.
    pub(super) const BYTES_EACH: usize = Slab::<Hook>::record_bytes() + size_of::<List>();

    pub(super) fn with_capacity(bindings_max: usize, seed: u64) -> Self {
        Self {
            hooks: Slab::with_capacity(bindings_max),
            buckets: List::table(bindings_max.max(1)),
            hasher: FixedState::with_seed(seed),
        }
    }

    /// Creates a binding's hooks. Returns the first, and their number.
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
            let lonely = pairs.min_by_key(|&(_, hash)| self.buckets[self.bucket(hash)].len());
            let first = lonely.map(|pair| self.insert_hook(binding, pair, false, None));
            return (first, u32::from(first.is_some()));
        }
        let (mut first, mut count) = (None, 0);
        for (at, name, wanted) in rule.pairs(arguments) {
            let pair = (at as u32, self.hash(exchange, name, wanted));
            first = Some(self.insert_hook(binding, pair, true, first));
            count += 1;
        }
        (first, count)
    }

    fn insert_hook(&mut self, binding: usize, (at, hash): (u32, u32), any: bool, next: Option<u32>) -> u32 {
        let bucket = self.bucket(hash);
        let hook = Hook { binding: binding as u32, hash, at, any, next, links: Links::default() };
        let index = self.hooks.insert(hook).expect("each was counted as a binding");
        self.buckets[bucket].push_back(&mut self.hooks, index, |hook| &mut hook.links);
        index as u32
    }

    /// Removes all hooks of a binding. Returns their number.
    pub(super) fn remove(&mut self, first: Option<u32>) -> u32 {
        let (mut next, mut count) = (first, 0);
        while let Some(index) = next {
            let index = index as usize;
            let bucket = self.bucket(self.hooks[index].hash);
            self.buckets[bucket].remove(&mut self.hooks, index, |hook| &mut hook.links);
            next = self.hooks.remove(index).next;
            count += 1;
        }
        count
    }

    /// Returns the hash that a pair is found by. A void value represents the mere presence of the name.
    pub(super) fn hash(&self, exchange: ExchangeId, name: &[u8], wanted: Value<'_>) -> u32 {
        let mut state = self.hasher.build_hasher();
        (exchange, name).hash(&mut state);
        select::feed(wanted, &mut state);
        state.finish() as u32
    }

    /// Returns the first hook in the bucket of this hash.
    pub(super) fn first(&self, hash: u32) -> Option<usize> {
        self.buckets[self.bucket(hash)].front()
    }

    /// Returns the hook behind another one in its bucket.
    pub(super) fn after(&self, index: usize) -> Option<usize> {
        List::after(&self.hooks, index, |hook| &hook.links)
    }

    pub(super) fn hook(&self, index: usize) -> Hook {
        self.hooks[index]
    }

    fn bucket(&self, hash: u32) -> usize {
        ((u64::from(hash) * self.buckets.len() as u64) >> 32) as usize
    }

    /// Returns roughly the unused bytes of hooks for which the system holds memory.
    pub(super) const fn idle_bytes(&self) -> usize {
        self.hooks.idle_bytes()
    }

    /// Returns unused memory to the system.
    pub(super) fn trim(&mut self) {
        self.hooks.trim();
    }
}
