//! From an exchange and the keys of a message to queues.
//!
//! Why it exists: a message has up to as many keys as a frame has room for, and may come to any exchange by
//! several ways; whatever is bound, the target queues must be found in bounded time and each of them once.
//!
//! Always true: a queue is chosen at most once per message and an exchange visited at most once, so cycles of
//! exchange-to-exchange bindings end; the choice is made into space that was sized at start; the work is
//! charged, and routing whose work grows with several things at once (keys, their words, exchanges) is
//! refused beyond a number of units that depends on how much can be bound.

use crate::names::IndexTable;
use crate::queue::Targets;
use crate::queues::delay_ms;
use crate::work::Work;
use leveret_amqp::field::{Array, Table, Value};
use leveret_core::command::{ExchangeId, VhostId};
use leveret_core::error::Fault;
use leveret_core::mem::{List, Slab};

use super::headers::{self, Names, Rule};
use super::pairs::{Hook, Pairs};
use super::records::{Binding, Destination, Exchange, Kind};
use super::state::{Topology, find_exchange};
use super::trie::Trie;

/// Bytes of a routing key or of arguments that are as much work as one step.
const BYTES_PER_UNIT: usize = 64;

/// The routing keys and headers of a message: its own key, those in CC and BCC, and its headers.
struct Keys<'a> {
    own: &'a [u8],
    copies: [Array<'a>; 2],
    /// The headers of the message; empty unless routing needs them.
    headers: Table<'a>,
}

/// One message on its way through the exchanges.
struct Selection<'a, 'q> {
    vhost: VhostId,
    /// The number of this route, which marks exchanges and queues as reached.
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
    /// Chooses the queues for a message with this routing key; says whether exchange and key alone decided
    /// that. `headers` is empty unless routing needs them.
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
            by_key_alone &= self.exchanges[exchange.index()].kind != Kind::Headers;
            if !self.follow(exchange, keys, names)? {
                self.visit_alternate(exchange);
            }
        }
        Ok(by_key_alone)
    }

    /// Follows one exchange's bindings; says whether any matched.
    fn follow(&mut self, exchange: ExchangeId, keys: &Keys<'_>, names: &mut Names) -> Result<bool, Fault> {
        let Exchange { kind, root, delayed_queue, .. } = self.exchanges[exchange.index()];
        if let Some(queue) = delayed_queue
            && delay_ms(keys.headers) > 0
        {
            self.targets.choose(queue, self.route);
            return Ok(true);
        }
        match kind {
            Kind::Fanout => Ok(self.take_node(root)),
            Kind::Headers => Ok(self.take_node(root) | self.take_by_headers(exchange, keys.headers, names)),
            Kind::Default | Kind::Direct | Kind::Topic => {
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

    fn take_key(&mut self, kind: Kind, root: usize, key: &[u8]) -> Result<bool, Fault> {
        match kind {
            Kind::Topic => self.take_topic(root, key),
            Kind::Direct => Ok(self.trie.child(root, key).is_some_and(|node| self.take_node(node))),
            Kind::Default | Kind::Fanout | Kind::Headers => Ok(self.take_named(key)),
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

    /// Follows the bindings of a headers exchange that ask for headers, from the side where there is less to
    /// look at: the headers, each with the bindings that ask for it, or the bindings, each with its header.
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
            let Some((name, value)) = headers::entry(headers, place) else { continue };
            // Some bindings ask for the header's value, some for its presence.
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

    /// Takes a binding if the pair of this hook, and whatever else it requires, is among the headers.
    fn take_by_hook(&mut self, hook: Hook, headers: Table<'_>, names: &Names) -> bool {
        let record = &self.bindings[hook.binding as usize];
        let arguments = Table::trusted(&record.arguments);
        let pair = headers::entry(arguments, hook.at as usize);
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
        if record.routed_at != self.route && !record.dying {
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

/// The lists of further routing keys in the CC and BCC headers. Entries that are no text are no keys.
pub(crate) fn copies(headers: Table<'_>) -> [Array<'_>; 2] {
    ["CC", "BCC"].map(|name| match headers.get(name) {
        Some(Value::Array(array)) => array,
        _ => Array::EMPTY,
    })
}
