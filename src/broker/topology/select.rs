//! Selects the queues for a message from an exchange and the message's keys and headers.
//!
//! A message has as many keys as fit into a frame, and may reach an exchange in several ways. Whatever is
//! bound, the target queues must be found in bounded time and each of them once.
//!
//! # Invariants
//! - A queue is chosen at most once per message and an exchange visited at most once, so cycles of
//!   exchange-to-exchange bindings end.
//! - The selection needs only memory that was reserved at start.
//! - The work is charged. Routing whose work grows with several things at once (keys, their words, exchanges)
//!   is refused beyond a limit, which depends on how much can be bound.

use core::fmt;
use core::hash::{BuildHasher, Hash, Hasher};

use foldhash::quality::FixedState;
use leveret_amqp::field::{Array, Table, Value};
use leveret_core::command::{ExchangeId, VhostId};
use leveret_core::error::{Fault, ReplyCode};
use leveret_core::mem::{List, Slab};

use super::bindings::{Hook, Pairs};
use super::{Binding, Destination, Exchange, ExchangeKind, Topology, find_exchange};
use crate::context::Work;
use crate::queue_flow::delay_ms;
use crate::queue_records::Targets;
use crate::reply_text::{ErlangBinary, ErlangTerm};
use crate::state::IndexTable;

/// Bytes of a routing key or of arguments that cost one unit of work.
const BYTES_PER_UNIT: usize = 64;

/// The routing keys and headers of a message: its own key, those in CC and BCC, and its headers.
struct Keys<'a> {
    own: &'a [u8],
    copies: [Array<'a>; 2],
    /// The headers of the message; empty unless routing needs them.
    headers: Table<'a>,
}

/// The routing of one message through the exchanges.
struct Selection<'a, 'q> {
    vhost: VhostId,
    /// Number of this route, which marks exchanges and queues as reached.
    route: u64,
    exchanges: &'a mut Slab<Exchange>,
    exchange_table: &'a IndexTable,
    bindings: &'a Slab<Binding>,
    pairs: &'a Pairs,
    trie: &'a mut Trie,
    to_visit: &'a mut Vec<ExchangeId>,
    targets: &'a mut Targets<'q>,
    work: &'a mut Work,
}

impl Topology {
    /// Chooses the queues for a message with this routing key. Returns whether exchange and key alone
    /// determined them.
    ///
    /// `headers` is empty unless routing needs them.
    ///
    /// # Errors
    /// Routing takes more work than [`Self::limit_routing`] allowed.
    pub(crate) fn route(
        &mut self,
        work: &mut Work,
        exchange: ExchangeId,
        own: &[u8],
        headers: Table<'_>,
        targets: &mut Targets<'_>,
    ) -> Result<bool, Fault> {
        targets.chosen.clear();
        self.routes += 1;
        self.to_visit.clear();
        let mut selection = Selection {
            vhost: self.exchanges[exchange.index()].vhost,
            route: self.routes,
            exchanges: &mut self.exchanges,
            exchange_table: &self.exchange_table,
            bindings: &self.bindings,
            pairs: &self.pairs,
            trie: &mut self.trie,
            to_visit: &mut self.to_visit,
            targets,
            work,
        };
        let keys = Keys { own, copies: copies(headers), headers };
        selection.run(exchange, &keys, &mut self.header_names)
    }
}

impl Selection<'_, '_> {
    fn run(&mut self, first: ExchangeId, keys: &Keys<'_>, names: &mut Names) -> Result<bool, Fault> {
        let mut by_key_alone = true;
        self.to_visit.push(first);
        self.exchanges[first.index()].routed_at = self.route;
        let mut visited = 0;
        while visited < self.to_visit.len() {
            let exchange = self.to_visit[visited];
            visited += 1;
            by_key_alone &= self.exchanges[exchange.index()].kind != ExchangeKind::Headers;
            if !self.follow(exchange, keys, names)? {
                self.visit_alternate(exchange);
            }
        }
        Ok(by_key_alone)
    }

    /// Follows one exchange's bindings. Returns whether any matched.
    fn follow(&mut self, exchange: ExchangeId, keys: &Keys<'_>, names: &mut Names) -> Result<bool, Fault> {
        let Exchange { kind, root, delayed_queue, .. } = self.exchanges[exchange.index()];
        if let Some(queue) = delayed_queue
            && delay_ms(keys.headers) > 0
        {
            self.targets.choose(queue, self.route);
            return Ok(true);
        }
        match kind {
            ExchangeKind::Fanout => Ok(self.take_node(root)),
            ExchangeKind::Headers => {
                Ok(self.take_node(root) | self.take_by_headers(exchange, keys.headers, names))
            }
            ExchangeKind::Default | ExchangeKind::Direct | ExchangeKind::Topic => {
                let mut any = self.take_key(kind, root, keys.own)?;
                for value in keys.copies.into_iter().flatten() {
                    let key = value.as_bytes();
                    self.work.charge(1 + key.map_or(0, <[u8]>::len) / BYTES_PER_UNIT);
                    self.work.check()?;
                    if let Some(key) = key {
                        any |= self.take_key(kind, root, key)?;
                    }
                }
                Ok(any)
            }
        }
    }

    fn take_key(&mut self, kind: ExchangeKind, root: usize, key: &[u8]) -> Result<bool, Fault> {
        match kind {
            ExchangeKind::Topic => self.take_topic(root, key),
            ExchangeKind::Direct => Ok(self.trie.child(root, key).is_some_and(|node| self.take_node(node))),
            ExchangeKind::Default | ExchangeKind::Fanout | ExchangeKind::Headers => Ok(self.take_named(key)),
        }
    }

    fn take_named(&mut self, name: &[u8]) -> bool {
        let found = core::str::from_utf8(name).ok().and_then(|name| self.targets.find(self.vhost, name));
        if let Some(queue) = found {
            self.targets.choose(queue, self.route);
        }
        found.is_some()
    }

    fn take_topic(&mut self, root: usize, key: &[u8]) -> Result<bool, Fault> {
        let visits = self.trie.match_topic(root, key, self.work.left());
        let (mut any, mut place) = (false, 0);
        while let Some(node) = self.trie.matched(place) {
            any |= self.take_node(node);
            place += 1;
        }
        self.work.charge(visits);
        self.work.check().map(|()| any)
    }

    /// Follows the bindings of a headers exchange that require headers. It starts from the side with less to
    /// examine: the headers, each with its bindings, or the bindings, each with its headers.
    fn take_by_headers(&mut self, exchange: ExchangeId, headers: Table<'_>, names: &mut Names) -> bool {
        let pairs = self.exchanges[exchange.index()].pairs as usize;
        if pairs == 0 || headers.is_empty() {
            return false;
        }
        self.work.charge(names.take_in(headers, self.route));
        if pairs <= names.steps() {
            return self.take_from_bindings(exchange, headers, names);
        }
        self.work.charge(names.steps());
        self.take_from_headers(exchange, headers, names)
    }

    fn take_from_bindings(&mut self, exchange: ExchangeId, headers: Table<'_>, names: &Names) -> bool {
        let (bindings, pairs) = (self.bindings, self.pairs);
        let mut any = false;
        let mut at = self.exchanges[exchange.index()].bindings.front();
        while let Some(binding) = at {
            at = List::after(bindings, binding, |binding| &binding.source_links);
            let mut hook = bindings[binding].hook;
            while let Some(index) = hook {
                let found = pairs.hook(index as usize);
                any |= self.take_by_hook(found, headers, names);
                hook = found.next;
            }
        }
        any
    }

    fn take_from_headers(&mut self, exchange: ExchangeId, headers: Table<'_>, names: &Names) -> bool {
        let (bindings, pairs) = (self.bindings, self.pairs);
        let mut any = false;
        for place in names.places() {
            let Some((name, value)) = entry(headers, place) else { continue };
            // Some bindings require the header's value, some only its presence.
            for wanted in [value, Value::Void] {
                let hash = pairs.hash(exchange, name, wanted);
                let mut at = pairs.first(hash);
                while let Some(index) = at {
                    at = pairs.after(index);
                    let hook = pairs.hook(index);
                    let is_from_here = bindings[hook.binding as usize].source == exchange;
                    any |= hook.hash == hash && is_from_here && self.take_by_hook(hook, headers, names);
                }
            }
        }
        any
    }

    /// Takes a binding if the pair of this hook, and everything else it requires, is among the headers.
    fn take_by_hook(&mut self, hook: Hook, headers: Table<'_>, names: &Names) -> bool {
        let record = &self.bindings[hook.binding as usize];
        let arguments = Table::trusted(&record.arguments);
        let pair = entry(arguments, hook.at as usize);
        let mut matches = pair.is_some_and(|(name, wanted)| names.agree(headers, name, wanted));
        let mut units = 1;
        if matches && !hook.any {
            units += arguments.bytes_len() / BYTES_PER_UNIT;
            matches = Rule::of(arguments).pairs(arguments).all(|(_, name, wanted)| {
                units += 1;
                names.agree(headers, name, wanted)
            });
        }
        self.work.charge(units);
        if matches {
            self.take(record.destination);
        }
        matches
    }

    fn take_node(&mut self, node: usize) -> bool {
        let bindings = self.bindings;
        let mut at = self.trie.first_binding(node);
        let any = at.is_some();
        while let Some(binding) = at {
            self.work.charge(1);
            self.take(bindings[binding].destination);
            at = List::after(bindings, binding, |binding| &binding.node_links);
        }
        any
    }

    fn take(&mut self, destination: Destination) {
        match destination {
            Destination::Queue(queue) => self.targets.choose(queue, self.route),
            Destination::Exchange(exchange) => self.visit(exchange),
        }
    }

    fn visit(&mut self, exchange: ExchangeId) {
        let record = &mut self.exchanges[exchange.index()];
        if record.routed_at != self.route && !record.is_deleted {
            record.routed_at = self.route;
            self.to_visit.push(exchange);
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

/// Returns the lists of further routing keys in the CC and BCC headers. Entries that are not text are
/// ignored.
pub(crate) fn copies(headers: Table<'_>) -> [Array<'_>; 2] {
    ["CC", "BCC"].map(|name| match headers.get(name) {
        Some(Value::Array(array)) => array,
        _ => Array::EMPTY,
    })
}

/// Bytes of headers that cost as much as examining one of them.
const BYTES_PER_STEP: usize = 64;

/// Checks a binding's `x-match`, in RabbitMQ's words.
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
/// `x-match` is `all` (the default) or `any`. With the suffix `-with-x`, arguments that begin with `x-` count
/// too. A void argument requires only the header's presence. Of several headers with one name the first
/// counts.
#[derive(Clone, Copy)]
pub(super) struct Rule {
    /// `any`: one matching pair is enough.
    pub(super) any: bool,
    /// Arguments that begin with `x-` count too.
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

    /// Returns the arguments that the rule compares, and where each begins in the table.
    pub(super) fn pairs<'a>(
        self,
        arguments: Table<'a>,
    ) -> impl Iterator<Item = (usize, &'a [u8], Value<'a>)> {
        entries(arguments).filter(move |(_, name, _)| self.counts(name))
    }
}

/// Returns whether a binding takes every message, whatever its headers.
pub(super) fn takes_everything(arguments: Table<'_>) -> bool {
    let rule = Rule::of(arguments);
    !rule.any && rule.pairs(arguments).next().is_none()
}

/// Returns how many places of `bindings_max` a binding with these arguments takes: with `any` one for each
/// pair.
pub(super) fn places(arguments: Table<'_>) -> u32 {
    let rule = Rule::of(arguments);
    if rule.any { rule.pairs(arguments).count().max(1) as u32 } else { 1 }
}

/// Returns the entry of a table that begins at `at`.
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

/// The position of each name among the headers of the message that is being routed.
///
/// ```text
/// slot = hash(name) ─→ position of the first entry with that name + 1, or 0; used slots are skipped
/// ```
///
/// Finding a header by name therefore costs the same however many headers there are.
#[derive(Debug)]
pub(super) struct Names {
    slots: Box<[u32]>,
    /// Number of slots used for this message: twice its entries, if there are that many slots.
    in_use: usize,
    /// Steps of work for examining every header.
    steps: usize,
    /// Number of the route whose headers the slots refer to.
    route: u64,
    hasher: FixedState,
}

impl Names {
    /// Returns the number of slots for the headers of one frame. That is more than the names that fit into
    /// it: 256 names take three bytes (one octet of name) and the others four.
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
            steps: 0,
            route: 0,
            hasher: FixedState::with_seed(seed),
        }
    }

    /// Fills the slots from the headers, once per route. Returns how many steps that took.
    pub(super) fn take_in(&mut self, headers: Table<'_>, route: u64) -> usize {
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
        self.steps = count + headers.bytes_len() / BYTES_PER_STEP;
        self.steps
    }

    /// Returns the steps of work for examining every header.
    pub(super) const fn steps(&self) -> usize {
        self.steps
    }

    /// Returns where each header begins, the first of each name, in no order.
    pub(super) fn places(&self) -> impl Iterator<Item = usize> {
        self.slots[..self.in_use].iter().filter(|place| **place > 0).map(|place| *place as usize - 1)
    }

    /// Returns whether the headers, which were taken in, match a pair of a binding.
    pub(super) fn agree(&self, headers: Table<'_>, name: &[u8], wanted: Value<'_>) -> bool {
        let place = self.slots[self.slot(headers, name)];
        let found = (place as usize).checked_sub(1).and_then(|at| entry(headers, at));
        found.is_some_and(|(_, found)| wanted == Value::Void || same(wanted, found))
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
fn same(one: Value<'_>, two: Value<'_>) -> bool {
    match (whole(one), whole(two), real(one), real(two)) {
        (Some(one), Some(two), ..) => one == two,
        (_, _, Some(one), Some(two)) => one == two,
        _ => match (one.as_bytes(), two.as_bytes()) {
            (Some(one), Some(two)) => one == two,
            _ => one == two,
        },
    }
}

/// Feeds a hash with a value, so that values equal by [`same`] have equal hashes. A whole number may equal a
/// real one, so it is fed as one.
pub(super) fn feed(value: Value<'_>, state: &mut impl Hasher) {
    if let Some(number) = real(value) {
        // Adding 0 makes -0 the same as 0.
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

fn whole(value: Value<'_>) -> Option<i128> {
    match value {
        Value::Timestamp(seconds) => Some(seconds.into()),
        other => other.as_integer().map(i128::from),
    }
}

fn real(value: Value<'_>) -> Option<f64> {
    match value {
        Value::Double(number) => Some(number),
        Value::Float(number) => Some(number.into()),
        other => whole(other).map(|number| number as f64),
    }
}

/// A routing key or a word of one.
#[derive(Debug)]
struct Node {
    /// The node above this one; `None` for a root.
    parent: Option<usize>,
    word: Box<[u8]>,
    bindings: List,
    children: u32,
    /// The child with the word `*`, if there is one.
    star: Option<usize>,
    /// The child with the word `#`, if there is one.
    hash: Option<usize>,
    /// The step of a topic match that last reached this node.
    reached_at: u64,
}

/// The tries of all exchanges, one below each root.
///
/// ```text
/// root ─ "kern" ─ "*"        direct: one node per routing key, below the root
///      └ "#"                 topic: one node per word of a pattern
///                            fanout, and headers that take everything: the root itself
/// ```
///
/// Topic matching walks all words of the key once with the set of nodes reached so far, each node at most
/// once per word. A hostile pattern like `#.a.#.a.#` therefore costs words times nodes and never grows
/// exponentially. Recursion is no deeper than a chain of `#.#.#`, which collapses into one step per node.
/// Words times nodes can still be much, because a key in a CC header may be as long as a frame. The caller
/// therefore limits the walk.
///
/// # Invariants
/// - Except for roots, every node has bindings or children.
#[derive(Debug)]
pub(super) struct Trie {
    nodes: Slab<Node>,
    table: IndexTable,
    /// The set of nodes reached so far in a match; like `next`, it is sized once for the maximum number of
    /// nodes.
    reached: Vec<usize>,
    /// The set of nodes reached with the next word of a match.
    next: Vec<usize>,
    step: u64,
}

impl Trie {
    /// Bytes of memory per node: its record, its place in the table and in both sets of a match.
    pub(super) const NODE_BYTES: usize =
        Slab::<Node>::record_bytes() + IndexTable::ENTRY_BYTES + 2 * size_of::<usize>();

    pub(super) fn with_capacity(nodes_max: usize, seed: u64) -> Self {
        Self {
            nodes: Slab::with_capacity(nodes_max),
            table: IndexTable::with_capacity(nodes_max, seed),
            reached: Vec::with_capacity(nodes_max),
            next: Vec::with_capacity(nodes_max),
            step: 0,
        }
    }

    /// Returns how many nodes may still be created.
    pub(super) fn free_count(&self) -> usize {
        self.nodes.free_count()
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
    pub(super) fn missing(&self, root: usize, kind: ExchangeKind, key: &[u8]) -> usize {
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
    pub(super) fn place(&mut self, root: usize, kind: ExchangeKind, key: &[u8]) -> usize {
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

    /// Removes a binding from the list of its node, which stays until it is pruned.
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
            b"*" => above.star = None,
            b"#" => above.hash = None,
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

    /// Finds the nodes whose pattern matches `key`, to be read with [`Self::matched`]. Returns how many nodes
    /// were visited.
    ///
    /// Beyond `visits_max` the walk stops, and none matches.
    pub(super) fn match_topic(&mut self, root: usize, key: &[u8], visits_max: usize) -> usize {
        self.step += 1;
        self.reached.clear();
        enter(&mut self.nodes, root, self.step, &mut self.reached);
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
                    enter(&mut self.nodes, at, self.step, &mut self.next);
                }
                if let Some(star) = self.nodes[at].star {
                    enter(&mut self.nodes, star, self.step, &mut self.next);
                }
                if let Some(child) = self.child(at, word) {
                    enter(&mut self.nodes, child, self.step, &mut self.next);
                }
            }
            core::mem::swap(&mut self.reached, &mut self.next);
        }
        visits
    }

    /// Returns the node at this place among those that the last match found.
    pub(super) fn matched(&self, place: usize) -> Option<usize> {
        self.reached.get(place).copied()
    }

    fn child_or_new(&mut self, parent: usize, word: &[u8]) -> usize {
        if let Some(child) = self.child(parent, word) {
            return child;
        }
        let child = self.insert(Some(parent), word);
        self.table.insert((parent as u32, word), child);
        let record = &mut self.nodes[parent];
        record.children += 1;
        match word {
            b"*" => record.star = Some(child),
            b"#" => record.hash = Some(child),
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
            star: None,
            hash: None,
            reached_at: 0,
        };
        self.nodes.insert(node).expect("the caller made sure of room")
    }

    /// Returns roughly the unused bytes of nodes for which the system holds memory.
    pub(super) const fn idle_bytes(&self) -> usize {
        self.nodes.idle_bytes()
    }

    /// Returns unused memory to the system.
    pub(super) fn trim(&mut self) {
        self.nodes.trim();
    }
}

/// Returns the words of a routing key or pattern; an empty one has none.
fn words(key: &[u8]) -> impl Iterator<Item = &[u8]> {
    let count = if key.is_empty() { 0 } else { usize::MAX };
    key.split(|byte| *byte == b'.').take(count)
}

/// Reaches a node, and every `#` below it, which also matches zero words.
fn enter(nodes: &mut Slab<Node>, from: usize, step: u64, reached: &mut Vec<usize>) {
    let mut at = Some(from);
    while let Some(index) = at {
        if nodes[index].reached_at == step {
            return;
        }
        nodes[index].reached_at = step;
        reached.push(index);
        at = nodes[index].hash;
    }
}
