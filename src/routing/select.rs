//! Selects the queues for a message from an exchange and the message's keys and headers.
//!
//! A message may have as many routing keys (in CC and BCC) as fit into a frame, and may reach an exchange
//! over several bindings. Whatever is bound, the selection takes bounded time, and returns each queue once.
//!
//! # Invariants
//! - A queue is chosen at most once per message and an exchange visited at most once, so cycles of
//!   exchange-to-exchange bindings end.
//! - The selection needs only memory that was reserved at start.
//! - All work is charged. A message is refused if routing it takes more than a limit, which depends on
//!   `bindings_max`. Otherwise the product of many keys, many words and many exchanges could be unbounded.

use core::fmt;
use core::hash::{BuildHasher, Hash, Hasher};

use foldhash::quality::FixedState;
use leveret_amqp::delay::delay_ms;
use leveret_amqp::field::{Array, Table, Value};
use leveret_amqp::reply_text::{ErlangBinary, ErlangTerm};
use leveret_core::command::{ExchangeId, VhostId};
use leveret_core::error::{Fault, ReplyCode};
use leveret_core::mem::{ALLOCATION_BYTES, Class, IndexTable, List, Memory, Slab};
use leveret_core::work::Work;

use super::bindings::{IndexedPair, PairIndex};
use super::{Binding, Destination, Exchange, ExchangeKind, RoutedQueues, Targets, Topology, find_exchange};

/// Bytes of a routing key or of arguments that cost one unit of work.
const BYTES_PER_UNIT: usize = 64;

/// The routing keys and headers of a message.
struct Keys<'a> {
    routing_key: &'a [u8],
    cc_and_bcc: [Array<'a>; 2],
    /// The headers of the message; empty unless routing needs them.
    headers: Table<'a>,
}

/// The routing of one message through the exchanges.
struct Selection<'a, 'q, Q> {
    vhost: VhostId,
    /// Number of this route. Exchanges and queues store it when they are reached, so that they are reached
    /// once.
    route: u64,
    exchanges: &'a mut Slab<Exchange>,
    exchange_table: &'a IndexTable,
    bindings: &'a Slab<Binding>,
    pairs: &'a PairIndex,
    trie: &'a mut Trie,
    reached_exchanges: &'a mut Vec<ExchangeId>,
    targets: &'a mut Targets<'q, Q>,
    work: &'a mut Work,
}

impl Topology {
    /// Sets `targets` to the queues for a message with this routing key. Returns whether they depend only on
    /// the exchange and the routing key, and not on headers.
    ///
    /// `headers` is empty unless routing needs them.
    ///
    /// # Errors
    /// Routing takes more work than [`Self::limit_routing`] allowed.
    pub fn route(
        &mut self,
        work: &mut Work,
        exchange: ExchangeId,
        routing_key: &[u8],
        headers: Table<'_>,
        targets: &mut Targets<'_, impl RoutedQueues>,
    ) -> Result<bool, Fault> {
        targets.chosen.clear();
        self.route_count += 1;
        self.reached.clear();
        let mut selection = Selection {
            vhost: self.exchanges[exchange.index()].vhost,
            route: self.route_count,
            exchanges: &mut self.exchanges,
            exchange_table: &self.exchange_table,
            bindings: &self.bindings,
            pairs: &self.pair_index,
            trie: &mut self.trie,
            reached_exchanges: &mut self.reached,
            targets,
            work,
        };
        let keys = Keys { routing_key, cc_and_bcc: cc_and_bcc(headers), headers };
        selection.run(exchange, &keys, &mut self.header_positions)
    }
}

impl Topology {
    /// Returns the names of the exchanges that the last routing passed.
    pub fn passed_exchanges(&self) -> impl Iterator<Item = Box<str>> {
        self.reached.iter().map(|exchange| self.exchanges[exchange.index()].name.clone())
    }
}

impl<Q: RoutedQueues> Selection<'_, '_, Q> {
    fn run(
        &mut self,
        first: ExchangeId,
        keys: &Keys<'_>,
        names: &mut HeaderPositions,
    ) -> Result<bool, Fault> {
        let mut by_key_alone = true;
        self.reached_exchanges.push(first);
        self.exchanges[first.index()].last_route = self.route;
        let mut visited = 0;
        while visited < self.reached_exchanges.len() {
            let exchange = self.reached_exchanges[visited];
            visited += 1;
            by_key_alone &= self.exchanges[exchange.index()].kind != ExchangeKind::Headers;
            if !self.follow(exchange, keys, names)? {
                self.visit_alternate(exchange);
            }
        }
        Ok(by_key_alone)
    }

    /// Follows the bindings of one exchange that match the message. Returns whether any matched.
    fn follow(
        &mut self,
        exchange: ExchangeId,
        keys: &Keys<'_>,
        names: &mut HeaderPositions,
    ) -> Result<bool, Fault> {
        let Exchange { kind, root, delayed_queue, .. } = self.exchanges[exchange.index()];
        if let Some(queue) = delayed_queue
            && delay_ms(keys.headers) > 0
        {
            self.targets.choose(queue, self.route);
            return Ok(true);
        }
        match kind {
            ExchangeKind::Fanout => Ok(self.follow_node(root)),
            ExchangeKind::Headers => {
                Ok(self.follow_node(root) | self.follow_by_headers(exchange, keys.headers, names))
            }
            ExchangeKind::Default | ExchangeKind::Direct | ExchangeKind::Topic => {
                let mut any = self.follow_key(kind, root, keys.routing_key)?;
                for value in keys.cc_and_bcc.into_iter().flatten() {
                    let key = value.as_bytes();
                    self.work.charge(1 + key.map_or(0, <[u8]>::len) / BYTES_PER_UNIT);
                    self.work.check()?;
                    if let Some(key) = key {
                        any |= self.follow_key(kind, root, key)?;
                    }
                }
                Ok(any)
            }
        }
    }

    fn follow_key(&mut self, kind: ExchangeKind, root: usize, key: &[u8]) -> Result<bool, Fault> {
        match kind {
            ExchangeKind::Topic => self.follow_topic(root, key),
            ExchangeKind::Direct => Ok(self.trie.child(root, key).is_some_and(|node| self.follow_node(node))),
            ExchangeKind::Default | ExchangeKind::Fanout | ExchangeKind::Headers => {
                Ok(self.follow_to_queue(key))
            }
        }
    }

    fn follow_to_queue(&mut self, name: &[u8]) -> bool {
        let found =
            core::str::from_utf8(name).ok().and_then(|name| self.targets.queues.find(self.vhost, name));
        if let Some(queue) = found {
            self.targets.choose(queue, self.route);
        }
        found.is_some()
    }

    fn follow_topic(&mut self, root: usize, key: &[u8]) -> Result<bool, Fault> {
        let visits = self.trie.match_topic(root, key, self.work.left());
        let (mut any, mut place) = (false, 0);
        while let Some(node) = self.trie.matched_node(place) {
            any |= self.follow_node(node);
            place += 1;
        }
        self.work.charge(visits);
        self.work.check().map(|()| any)
    }

    /// Follows the matching bindings of a headers exchange that require headers. Returns whether any matched.
    /// If examining the indexed pairs of the exchange takes less work than examining all headers, each pair
    /// is looked up among the headers; else each header is looked up among the pairs.
    fn follow_by_headers(
        &mut self,
        exchange: ExchangeId,
        headers: Table<'_>,
        names: &mut HeaderPositions,
    ) -> bool {
        let pairs = self.exchanges[exchange.index()].pair_count as usize;
        if pairs == 0 || headers.is_empty() {
            return false;
        }
        self.work.charge(names.fill(headers, self.route));
        if pairs <= names.work_units() {
            return self.follow_from_bindings(exchange, headers, names);
        }
        self.work.charge(names.work_units());
        self.follow_from_headers(exchange, headers, names)
    }

    fn follow_from_bindings(
        &mut self,
        exchange: ExchangeId,
        headers: Table<'_>,
        names: &HeaderPositions,
    ) -> bool {
        let (bindings, pairs) = (self.bindings, self.pairs);
        let mut any = false;
        let mut at = self.exchanges[exchange.index()].bindings.front();
        while let Some(binding) = at {
            at = List::after(bindings, binding, |binding| &binding.source_links);
            let mut next = bindings[binding].first_pair;
            while let Some(index) = next {
                let found = pairs.pair_at(index as usize);
                any |= self.follow_if_matching(found, headers, names);
                next = found.next;
            }
        }
        any
    }

    fn follow_from_headers(
        &mut self,
        exchange: ExchangeId,
        headers: Table<'_>,
        names: &HeaderPositions,
    ) -> bool {
        let (bindings, pairs) = (self.bindings, self.pairs);
        let mut any = false;
        for place in names.positions() {
            let Some((name, value)) = entry(headers, place) else { continue };
            // Some bindings require the header's value, some only its presence.
            for wanted in [value, Value::Void] {
                let hash = pairs.hash(exchange, name, wanted);
                let mut at = pairs.first(hash);
                while let Some(index) = at {
                    at = pairs.after(index);
                    let indexed_pair = pairs.pair_at(index);
                    let is_from_here = bindings[indexed_pair.binding as usize].source == exchange;
                    any |= indexed_pair.hash == hash
                        && is_from_here
                        && self.follow_if_matching(indexed_pair, headers, names);
                }
            }
        }
        any
    }

    /// Follows the binding of this pair if the headers contain the pair and everything else that the binding
    /// requires. Returns whether they do.
    fn follow_if_matching(
        &mut self,
        indexed_pair: IndexedPair,
        headers: Table<'_>,
        names: &HeaderPositions,
    ) -> bool {
        let record = &self.bindings[indexed_pair.binding as usize];
        let arguments = Table::trusted(&record.arguments);
        let pair = entry(arguments, indexed_pair.at as usize);
        let mut matches = pair.is_some_and(|(name, wanted)| names.contains_match(headers, name, wanted));
        let mut units = 1;
        if matches && !indexed_pair.any {
            units += arguments.bytes_len() / BYTES_PER_UNIT;
            matches = Rule::of(arguments).pairs(arguments).all(|(_, name, wanted)| {
                units += 1;
                names.contains_match(headers, name, wanted)
            });
        }
        self.work.charge(units);
        if matches {
            self.follow_to(record.destination);
        }
        matches
    }

    fn follow_node(&mut self, node: usize) -> bool {
        let bindings = self.bindings;
        let mut at = self.trie.first_binding(node);
        let any = at.is_some();
        while let Some(binding) = at {
            self.work.charge(1);
            self.follow_to(bindings[binding].destination);
            at = List::after(bindings, binding, |binding| &binding.node_links);
        }
        any
    }

    fn follow_to(&mut self, destination: Destination) {
        match destination {
            Destination::Queue(queue) => self.targets.choose(queue, self.route),
            Destination::Exchange(exchange) => self.visit(exchange),
        }
    }

    fn visit(&mut self, exchange: ExchangeId) {
        let record = &mut self.exchanges[exchange.index()];
        if record.last_route != self.route && !record.is_deleted {
            record.last_route = self.route;
            self.reached_exchanges.push(exchange);
            self.work.charge(1);
        }
    }

    fn visit_alternate(&mut self, exchange: ExchangeId) {
        let record = &self.exchanges[exchange.index()];
        let alternate = record.alternate.as_deref();
        let found =
            alternate.and_then(|name| find_exchange(self.exchanges, self.exchange_table, self.vhost, name));
        if let Some(alternate) = found {
            self.visit(alternate);
        }
    }
}

/// Returns the lists of further routing keys in the headers CC and BCC. Callers ignore entries that are not
/// strings.
pub fn cc_and_bcc(headers: Table<'_>) -> [Array<'_>; 2] {
    ["CC", "BCC"].map(|name| match headers.get(name) {
        Some(Value::Array(array)) => array,
        _ => Array::EMPTY,
    })
}

/// Bytes of headers that cost one unit of work, in addition to one unit for each header.
const HEADER_BYTES_PER_UNIT: usize = 64;

/// Checks the `x-match` argument of a binding. The error texts are RabbitMQ's.
pub(super) fn check_match(arguments: Table<'_>) -> Result<(), Fault> {
    let known: [&[u8]; 4] = [b"all", b"any", b"all-with-x", b"any-with-x"];
    let fault = |what: fmt::Arguments<'_>| {
        Err(Fault::new(ReplyCode::PreconditionFailed, format_args!("Invalid x-match field {what}")))
    };
    match arguments.get("x-match") {
        None => Ok(()),
        Some(value) if value.as_bytes().is_some_and(|text| known.contains(&text)) => Ok(()),
        Some(Value::LongStr(text)) => {
            fault(format_args!("value {}; expected all, any, all-with-x, or any-with-x", ErlangBinary(text)))
        }
        Some(value) => {
            fault(format_args!("type {} (value {}); expected longstr", value.type_name(), ErlangTerm(value)))
        }
    }
}

/// The matching rule of a binding of a headers exchange, from its `x-match`.
///
/// `x-match` is `all` (the default) or `any`. Arguments whose name begins with `x-` are compared only with
/// the suffix `-with-x`. A void argument requires only that the header is present. If a message has several
/// headers of one name, the first is compared.
#[derive(Clone, Copy)]
pub(super) struct Rule {
    /// `any`: one matching pair is enough.
    pub(super) any: bool,
    /// Arguments whose name begins with `x-` are compared too.
    with_x: bool,
}

impl Rule {
    pub(super) fn of(arguments: Table<'_>) -> Self {
        let rule = arguments.get("x-match").and_then(|value| value.as_bytes()).unwrap_or(b"all");
        Self { any: rule.starts_with(b"any"), with_x: rule.ends_with(b"-with-x") }
    }

    fn counts(self, name: &[u8]) -> bool {
        name != b"x-match" && (self.with_x || !name.starts_with(b"x-"))
    }

    /// Returns the arguments that are compared with headers: position in the table, name, value.
    pub(super) fn pairs<'a>(
        self,
        arguments: Table<'a>,
    ) -> impl Iterator<Item = (usize, &'a [u8], Value<'a>)> {
        entries(arguments).filter(move |(_, name, _)| self.counts(name))
    }
}

/// Returns whether a binding matches every message, whatever its headers.
pub(super) fn matches_everything(arguments: Table<'_>) -> bool {
    let rule = Rule::of(arguments);
    !rule.any && rule.pairs(arguments).next().is_none()
}

/// Returns how many of `bindings_max` a binding with these arguments counts as: with `any` one for each pair,
/// at least one.
pub(super) fn counted_bindings(arguments: Table<'_>) -> u32 {
    let rule = Rule::of(arguments);
    if rule.any { rule.pairs(arguments).count().max(1) as u32 } else { 1 }
}

/// Returns the field of a table that begins at byte `at`: its name and value.
pub(super) fn entry(table: Table<'_>, at: usize) -> Option<(&[u8], Value<'_>)> {
    Table::trusted(table.as_bytes().get(at..)?).iter().next()
}

fn entries<'a>(table: Table<'a>) -> impl Iterator<Item = (usize, &'a [u8], Value<'a>)> {
    let mut rest = table.iter();
    core::iter::from_fn(move || {
        let at = table.bytes_len() - rest.rest().len();
        rest.next().map(|(name, value)| (at, name, value))
    })
}

/// The positions of the headers of the message that is being routed, by name.
///
/// ```text
/// slot = hash(name) ─→ position of the first header with that name + 1, or 0; a collision uses the next free slot
/// ```
///
/// Finding a header by name therefore takes the same time however many headers there are.
#[derive(Debug)]
pub(super) struct HeaderPositions {
    slots: Box<[u32]>,
    /// Number of slots used for this message: twice the number of its headers, if there are so many slots.
    in_use: usize,
    /// Units of work for examining every header.
    work_units: usize,
    /// Number of the route whose headers the slots refer to.
    route: u64,
    hasher: FixedState,
}

impl HeaderPositions {
    /// Returns the number of slots for the headers of one frame: more than the number of different names that
    /// fit into the frame, so that one slot is always free. A header with a name of one octet takes at least
    /// three bytes, and there are 256 such names. Longer names take at least four bytes.
    const fn slots_for(frame_max: usize) -> usize {
        frame_max / 4 + frame_max / 16 + 128
    }

    /// Returns the bytes of memory that the slots take.
    pub(super) const fn bytes(frame_max: usize) -> usize {
        Self::slots_for(frame_max) * size_of::<u32>()
    }

    pub(super) fn for_frames(frame_max: usize, seed: u64) -> Self {
        Self {
            slots: vec![0; Self::slots_for(frame_max)].into_boxed_slice(),
            in_use: 0,
            work_units: 0,
            route: 0,
            hasher: FixedState::with_seed(seed),
        }
    }

    /// Fills the slots from the headers, once per route. Returns the units of work of that; 0 if the slots
    /// were filled already.
    pub(super) fn fill(&mut self, headers: Table<'_>, route: u64) -> usize {
        if self.route == route {
            return 0;
        }
        let count = headers.iter().count();
        self.route = route;
        self.in_use = (2 * count + 1).min(self.slots.len());
        self.slots[..self.in_use].fill(0);
        for (at, name, _) in entries(headers) {
            let slot = self.slot(headers, name);
            if self.slots[slot] == 0 {
                self.slots[slot] = at as u32 + 1;
            }
        }
        self.work_units = count + headers.bytes_len() / HEADER_BYTES_PER_UNIT;
        self.work_units
    }

    /// Returns the units of work for examining every header.
    pub(super) const fn work_units(&self) -> usize {
        self.work_units
    }

    /// Returns the positions of the headers in no order; of several headers with one name, only the first.
    pub(super) fn positions(&self) -> impl Iterator<Item = usize> {
        self.slots[..self.in_use].iter().filter(|place| **place > 0).map(|place| *place as usize - 1)
    }

    /// Returns whether the headers, from which the slots were filled, contain a pair that a binding requires.
    pub(super) fn contains_match(&self, headers: Table<'_>, name: &[u8], wanted: Value<'_>) -> bool {
        let place = self.slots[self.slot(headers, name)];
        let found = (place as usize).checked_sub(1).and_then(|at| entry(headers, at));
        found.is_some_and(|(_, found)| wanted == Value::Void || are_equal(wanted, found))
    }

    /// Returns the slot of this name, or a free one for it; one slot is always free.
    fn slot(&self, headers: Table<'_>, name: &[u8]) -> usize {
        let hash = self.hasher.hash_one(name);
        let mut slot = (((hash >> 32) * self.in_use as u64) >> 32) as usize;
        loop {
            let at = match self.slots[slot] {
                0 => return slot,
                place => place as usize - 1,
            };
            if entry(headers, at).is_some_and(|(other, _)| other == name) {
                return slot;
            }
            slot = (slot + 1) % self.in_use;
        }
    }
}

/// Returns whether two values are equal. RabbitMQ compares values, not types, so 1, 1.0 and the timestamp 1
/// are equal.
fn are_equal(one: Value<'_>, two: Value<'_>) -> bool {
    match (as_integer(one), as_integer(two), as_float(one), as_float(two)) {
        (Some(one), Some(two), ..) => one == two,
        (_, _, Some(one), Some(two)) => one == two,
        _ => match (one.as_bytes(), two.as_bytes()) {
            (Some(one), Some(two)) => one == two,
            _ => one == two,
        },
    }
}

/// Adds a value to a hash, so that values that [`are_equal`] have equal hashes. An integer may equal a
/// floating-point number, so integers are hashed as floating-point numbers.
pub(super) fn hash_value(value: Value<'_>, state: &mut impl Hasher) {
    if let Some(number) = as_float(value) {
        // Adding 0 turns -0 into 0: both are equal but have different bits.
        return (number + 0.0).to_bits().hash(state);
    }
    core::mem::discriminant(&value).hash(state);
    match value {
        Value::LongStr(bytes) | Value::Binary(bytes) => bytes.hash(state),
        Value::Table(table) => table.as_bytes().hash(state),
        Value::Array(array) => array.as_bytes().hash(state),
        Value::Bool(truth) => truth.hash(state),
        Value::Decimal { scale, value } => (scale, value).hash(state),
        _ => {}
    }
}

fn as_integer(value: Value<'_>) -> Option<i128> {
    match value {
        Value::Timestamp(seconds) => Some(seconds.into()),
        other => other.as_integer().map(i128::from),
    }
}

fn as_float(value: Value<'_>) -> Option<f64> {
    match value {
        Value::Double(number) => Some(number),
        Value::Float(number) => Some(number.into()),
        other => as_integer(other).map(|number| number as f64),
    }
}

/// A node of a trie: a whole routing key (direct exchanges), or one word of a pattern (topic exchanges).
#[derive(Debug)]
struct Node {
    /// The node above this one; `None` for a root.
    parent: Option<usize>,
    word: Box<[u8]>,
    bindings: List,
    children: u32,
    /// The child with the word `*`, if there is one.
    star_child: Option<usize>,
    /// The child with the word `#`, if there is one.
    hash_child: Option<usize>,
    /// The step of a topic match that last reached this node, so that each step reaches it once.
    reached_at: u64,
}

/// The tries of all exchanges, one below each root.
///
/// ```text
/// root ─ "kern" ─ "*"        direct: one node per routing key, below the root
///      └ "#"                 topic: one node per word of a pattern
///                            fanout, and headers bindings that match everything: the root itself
/// ```
///
/// Topic matching passes over the words of the key once, with the set of nodes reached so far. For each word,
/// each node is visited at most once. Hostile patterns like `#.a.#.a.#` therefore cost at most the number of
/// words times the number of nodes. That can still be much, because a key in a CC header may be as long as a
/// frame. The caller therefore limits the number of visits.
///
/// # Invariants
/// - Except for roots, every node has bindings or children.
#[derive(Debug)]
pub(super) struct Trie {
    nodes: Slab<Node>,
    table: IndexTable,
    /// The nodes reached so far in a match. Like `next`, it has capacity for all nodes.
    reached: Vec<usize>,
    /// The nodes reached with the next word of a match.
    next: Vec<usize>,
    step: u64,
}

impl Trie {
    /// Bytes that a node takes besides its record: its places in both node sets of a match, and the allocator's overhead for its
    /// word.
    const SIDE_BYTES: usize = 2 * size_of::<usize>() + ALLOCATION_BYTES;
    /// Bytes of memory per node.
    pub(super) const NODE_BYTES: usize =
        Slab::<Node>::record_bytes() + IndexTable::ENTRY_BYTES + Self::SIDE_BYTES;

    pub(super) fn with_capacity(nodes_max: usize, memory: &Memory, seed: u64) -> Self {
        Self {
            nodes: Slab::in_memory(nodes_max, memory, Class::Definitions).with_side_bytes(Self::SIDE_BYTES),
            table: IndexTable::in_memory(nodes_max, memory, Class::Definitions, seed),
            reached: Vec::with_capacity(nodes_max),
            next: Vec::with_capacity(nodes_max),
            step: 0,
        }
    }

    /// Returns how many nodes may still be created.
    pub(super) fn free_count(&self) -> usize {
        self.nodes.free_count()
    }

    /// Returns how many more nodes the limits allow.
    pub(super) const fn unused(&self) -> usize {
        self.nodes.capacity() - self.nodes.len()
    }

    /// Creates the root of a new exchange. The caller has checked the capacity.
    pub(super) fn add_root(&mut self) -> usize {
        self.insert(None, b"")
    }

    /// Removes the root of an exchange that has no bindings.
    pub(super) fn remove_root(&mut self, root: usize) {
        self.nodes.remove(root);
    }

    /// Returns how many nodes have to be created for a binding with this routing key.
    pub(super) fn missing_nodes(&self, root: usize, kind: ExchangeKind, key: &[u8]) -> usize {
        let mut at = Some(root);
        let mut is_missing = |word: &[u8]| {
            at = at.and_then(|parent| self.child(parent, word));
            at.is_none()
        };
        match kind {
            ExchangeKind::Fanout | ExchangeKind::Headers | ExchangeKind::Default => 0,
            ExchangeKind::Direct => usize::from(is_missing(key)),
            ExchangeKind::Topic => words(key).filter(|word| is_missing(word)).count(),
        }
    }

    /// Finds or creates the node for a binding with this routing key. The caller has checked the capacity for
    /// new nodes.
    pub(super) fn node_for(&mut self, root: usize, kind: ExchangeKind, key: &[u8]) -> usize {
        match kind {
            ExchangeKind::Fanout | ExchangeKind::Headers | ExchangeKind::Default => root,
            ExchangeKind::Direct => self.child_or_new(root, key),
            ExchangeKind::Topic => words(key).fold(root, |at, word| self.child_or_new(at, word)),
        }
    }

    /// Puts a binding on the list of a node.
    pub(super) fn insert_binding(&mut self, bindings: &mut Slab<Binding>, node: usize, binding: usize) {
        self.nodes[node].bindings.push_back(bindings, binding, |binding| &mut binding.node_links);
    }

    /// Removes a binding from the list of its node. The node stays until it is pruned.
    pub(super) fn remove_binding(&mut self, bindings: &mut Slab<Binding>, node: usize, binding: usize) {
        self.nodes[node].bindings.remove(bindings, binding, |binding| &mut binding.node_links);
    }

    /// Returns the first binding of a node.
    pub(super) fn first_binding(&self, node: usize) -> Option<usize> {
        self.nodes[node].bindings.front()
    }

    /// Removes a node without bindings and children. Returns its parent, which is to be pruned next.
    pub(super) fn prune(&mut self, node: usize) -> Option<usize> {
        let record = &self.nodes[node];
        let parent = record.parent?;
        if record.children > 0 || !record.bindings.is_empty() {
            return None;
        }
        let record = self.nodes.remove(node);
        self.table.remove((parent as u32, &*record.word), node);
        let above = &mut self.nodes[parent];
        above.children -= 1;
        match &*record.word {
            b"*" => above.star_child = None,
            b"#" => above.hash_child = None,
            _ => {}
        }
        Some(parent)
    }

    /// Returns the child of `parent` with this word.
    pub(super) fn child(&self, parent: usize, word: &[u8]) -> Option<usize> {
        if self.nodes[parent].children == 0 {
            return None;
        }
        self.table.find((parent as u32, word), |index| {
            self.nodes[index].parent == Some(parent) && *self.nodes[index].word == *word
        })
    }

    /// Finds the nodes whose pattern matches `key`, to be read with [`Self::matched_node`]. Returns how many
    /// nodes were visited.
    ///
    /// With more than `visits_max` visits the search stops, and no node matches.
    pub(super) fn match_topic(&mut self, root: usize, key: &[u8], visits_max: usize) -> usize {
        self.step += 1;
        self.reached.clear();
        reach(&mut self.nodes, root, self.step, &mut self.reached);
        let mut visits = 0;
        for word in words(key) {
            self.step += 1;
            visits += self.reached.len();
            if visits > visits_max {
                self.reached.clear();
                return visits;
            }
            self.next.clear();
            for at in 0..self.reached.len() {
                let at = self.reached[at];
                if *self.nodes[at].word == *b"#" && self.nodes[at].parent.is_some() {
                    reach(&mut self.nodes, at, self.step, &mut self.next);
                }
                if let Some(star) = self.nodes[at].star_child {
                    reach(&mut self.nodes, star, self.step, &mut self.next);
                }
                if let Some(child) = self.child(at, word) {
                    reach(&mut self.nodes, child, self.step, &mut self.next);
                }
            }
            core::mem::swap(&mut self.reached, &mut self.next);
        }
        visits
    }

    /// Returns the node at this position among those that the last match found; `None` after the last one.
    pub(super) fn matched_node(&self, place: usize) -> Option<usize> {
        self.reached.get(place).copied()
    }

    fn child_or_new(&mut self, parent: usize, word: &[u8]) -> usize {
        if let Some(child) = self.child(parent, word) {
            return child;
        }
        let child = self.insert(Some(parent), word);
        self.table.insert((parent as u32, word), child, self.nodes.touched());
        let record = &mut self.nodes[parent];
        record.children += 1;
        match word {
            b"*" => record.star_child = Some(child),
            b"#" => record.hash_child = Some(child),
            _ => {}
        }
        child
    }

    fn insert(&mut self, parent: Option<usize>, word: &[u8]) -> usize {
        let node = Node {
            parent,
            word: word.into(),
            bindings: List::default(),
            children: 0,
            star_child: None,
            hash_child: None,
            reached_at: 0,
        };
        let index = self.nodes.insert_checked(node);
        self.table.cover(self.nodes.touched());
        index
    }

    /// Returns approximately how many bytes of system memory the pool of nodes has but does not use.
    pub(super) const fn idle_bytes(&self) -> usize {
        self.nodes.idle_bytes()
    }

    /// Returns unused memory to the system.
    pub(super) fn trim(&mut self) {
        self.nodes.trim();
        self.table.trim(self.nodes.touched());
    }
}

/// Returns the words of a routing key or pattern. An empty key has no words.
fn words(key: &[u8]) -> impl Iterator<Item = &[u8]> {
    let count = if key.is_empty() { 0 } else { usize::MAX };
    key.split(|byte| *byte == b'.').take(count)
}

/// Marks a node as reached. `#` also matches zero words, so a `#` below a reached node is reached too.
fn reach(nodes: &mut Slab<Node>, from: usize, step: u64, reached: &mut Vec<usize>) {
    let mut at = Some(from);
    while let Some(index) = at {
        if nodes[index].reached_at == step {
            return;
        }
        nodes[index].reached_at = step;
        reached.push(index);
        at = nodes[index].hash_child;
    }
}
