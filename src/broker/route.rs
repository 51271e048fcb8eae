//! From an exchange and a routing key to queues.
//!
//! Always true: a queue is chosen at most once per message and an exchange visited at most once, so cycles
//! of exchange-to-exchange bindings end; the choice is made into scratch space that was sized at start; what
//! it takes is counted, and what grows with several things at once (keys, their words, exchanges) is refused
//! beyond a number of steps that goes by what can be bound.
//!
//! Most publishers send to one place again and again, so each channel remembers its last route and asks
//! only whether the topology changed since.

use crate::command::{ChannelId, ExchangeId, QueueId, VhostId};
use crate::error::{Fault, ReplyCode};
use crate::mem::{List, MessageId, Messages};
use crate::wire::field::{Array, Table, Value};

use super::Broker;
use super::exchange::{Destination, Kind};
use super::headers::{self, Names, Rule};
use super::pairs::Hook;
use super::topic;

/// Steps that routing one message may take for each binding there may be: a key of eight words gets to every
/// node of a topic exchange, whatever is bound.
const STEPS_PER_BINDING: u32 = 16;
/// However few bindings there may be: room for a message with thousands of keys.
const STEPS_MIN: u32 = 1 << 16;
/// So many bytes of a key or of arguments are as much work as a step.
const BYTES_PER_STEP: usize = 64;

const CACHED_NAMES_BYTES_MAX: usize = 64;
const CACHED_TARGETS_MAX: usize = 4;

/// The last route of a channel.
#[derive(Debug, Default)]
pub(super) struct RouteCache {
    /// Topology it holds for; 0 is none.
    topology: u64,
    exchange_len: u8,
    /// Exchange and key, one behind the other.
    names: heapless::Vec<u8, CACHED_NAMES_BYTES_MAX>,
    targets: heapless::Vec<QueueId, CACHED_TARGETS_MAX>,
}

impl RouteCache {
    fn hit(&self, topology: u64, exchange_len: usize, names: &[u8]) -> bool {
        self.topology == topology && usize::from(self.exchange_len) == exchange_len && self.names == names
    }

    fn remember(&mut self, topology: u64, exchange_len: usize, names: &[u8], targets: &[QueueId]) {
        self.topology = 0;
        self.names.clear();
        self.targets.clear();
        let fits = self.names.extend_from_slice(names).is_ok();
        if fits && self.targets.extend_from_slice(targets).is_ok() {
            self.topology = topology;
            self.exchange_len = exchange_len as u8;
        }
    }
}

/// What a message is routed by: its own key, those in its CC and BCC headers, and its headers.
struct Keys<'a> {
    own: &'a [u8],
    copies: [Array<'a>; 2],
    headers: Table<'a>,
}

/// The lists of further keys. What is not text in them is no key.
pub(super) fn copies(headers: Table<'_>) -> [Array<'_>; 2] {
    ["CC", "BCC"].map(|name| match headers.get(name) {
        Some(Value::Array(array)) => array,
        _ => Array::EMPTY,
    })
}

impl Broker {
    /// Chooses the queues for a message into `self.targets`. `headers` is empty unless they matter.
    ///
    /// # Errors
    /// It takes more steps than [`Self::limit_effort`] allowed.
    pub(super) fn route(
        &mut self,
        messages: &Messages,
        channel: ChannelId,
        exchange: ExchangeId,
        message: MessageId,
        headers: Table<'_>,
    ) -> Result<(), Fault> {
        let keys = Keys { own: messages.routing_key(message), copies: copies(headers), headers };
        let vhost = self.exchanges[exchange.index()].vhost;
        let by_key_alone = self.choose(vhost, exchange, &keys)?;
        if by_key_alone && headers.is_empty() {
            let names = messages.names(message);
            let exchange_len = messages.exchange_len(message);
            let cache = &mut self.channels[channel.index()].route_cache;
            cache.remember(self.topology, exchange_len, names, &self.targets);
        }
        Ok(())
    }

    /// From here on, routing may take as many steps as so many messages may.
    pub(super) fn limit_effort(&mut self, messages: u32) {
        let steps = (self.binding_places_max as u32).saturating_mul(STEPS_PER_BINDING).max(STEPS_MIN);
        self.effort_max = self.effort.saturating_add(steps.saturating_mul(messages));
    }

    /// Whether what is under way is still within its steps.
    pub(super) fn check_effort(&self) -> Result<(), Fault> {
        if self.effort <= self.effort_max {
            return Ok(());
        }
        Err(Fault::new(
            ReplyCode::PreconditionFailed,
            format_args!(
                "routing this takes too long with what is bound: use fewer CC and BCC keys, keys of fewer \
                 words, or smaller transactions"
            ),
        ))
    }

    /// Takes the channel's last route if this message goes the same way.
    pub(super) fn route_from_cache(
        &mut self,
        messages: &Messages,
        channel: ChannelId,
        message: MessageId,
    ) -> bool {
        let cache = &self.channels[channel.index()].route_cache;
        if !cache.hit(self.topology, messages.exchange_len(message), messages.names(message)) {
            return false;
        }
        self.targets.clear();
        self.targets.extend_from_slice(&cache.targets);
        true
    }

    /// Says whether the choice depends on exchange and key alone.
    fn choose(&mut self, vhost: VhostId, exchange: ExchangeId, keys: &Keys<'_>) -> Result<bool, Fault> {
        self.targets.clear();
        self.route_number += 1;
        let mut by_key_alone = true;
        self.to_visit.clear();
        self.to_visit.push(exchange);
        self.exchanges[exchange.index()].routed_at = self.route_number;
        let mut visited = 0;
        while visited < self.to_visit.len() {
            let exchange = self.to_visit[visited];
            visited += 1;
            by_key_alone &= self.exchanges[exchange.index()].kind != Kind::Headers;
            if !self.choose_at(vhost, exchange, keys)? {
                self.visit_alternate(vhost, exchange);
            }
        }
        Ok(by_key_alone)
    }

    /// Follows one exchange's bindings; says whether any matched.
    fn choose_at(&mut self, vhost: VhostId, exchange: ExchangeId, keys: &Keys<'_>) -> Result<bool, Fault> {
        let (kind, root) = {
            let record = &self.exchanges[exchange.index()];
            (record.kind, record.root)
        };
        match kind {
            Kind::Fanout => Ok(self.take_node(root)),
            Kind::Headers => Ok(self.take_node(root) | self.take_by_headers(exchange, keys.headers)),
            Kind::Default | Kind::Direct | Kind::Topic => {
                let mut any = self.take_key(vhost, kind, root, keys.own)?;
                for value in keys.copies.into_iter().flatten() {
                    let key = value.as_bytes();
                    self.toil(1 + key.map_or(0, <[u8]>::len) / BYTES_PER_STEP);
                    self.check_effort()?;
                    if let Some(key) = key {
                        any |= self.take_key(vhost, kind, root, key)?;
                    }
                }
                Ok(any)
            }
        }
    }

    fn take_key(&mut self, vhost: VhostId, kind: Kind, root: usize, key: &[u8]) -> Result<bool, Fault> {
        match kind {
            Kind::Topic => self.take_topic(root, key),
            Kind::Direct => {
                let node = topic::child(&self.nodes, &self.node_table, root, key);
                Ok(node.is_some_and(|node| self.take_node(node)))
            }
            Kind::Default | Kind::Fanout | Kind::Headers => Ok(self.take_named(vhost, key)),
        }
    }

    fn take_named(&mut self, vhost: VhostId, name: &[u8]) -> bool {
        match core::str::from_utf8(name).ok().and_then(|name| self.find_queue(vhost, name)) {
            Some(queue) => {
                self.take(Destination::Queue(queue));
                true
            }
            None => false,
        }
    }

    fn take_topic(&mut self, root: usize, key: &[u8]) -> Result<bool, Fault> {
        let mut walk = core::mem::take(&mut self.walk);
        let (mut any, mut visits) = (false, 0);
        let visits_max = self.effort_max.saturating_sub(self.effort) as usize;
        if let Some(walk) = walk.as_mut() {
            for &node in walk.nodes(&mut self.nodes, &self.node_table, root, key, visits_max) {
                any |= self.take_node(node);
            }
            visits = walk.visits();
        }
        self.walk = walk;
        self.toil(visits);
        self.check_effort().map(|()| any)
    }

    /// Follows the bindings of a headers exchange that ask for headers, from the side where there is less to
    /// look at: the headers, each with the bindings that ask for it, or the bindings, each with its header.
    fn take_by_headers(&mut self, exchange: ExchangeId, headers: Table<'_>) -> bool {
        let pairs = self.exchanges[exchange.index()].pairs as usize;
        if pairs == 0 || headers.is_empty() {
            return false;
        }
        let Some(mut names) = self.header_names.take() else { return false };
        self.toil(names.take_in(headers, self.route_number));
        let any = if pairs <= names.steps() {
            self.take_from_bindings(exchange, headers, &names)
        } else {
            self.toil(names.steps());
            self.take_from_headers(exchange, headers, &names)
        };
        self.header_names = Some(names);
        any
    }

    fn take_from_bindings(&mut self, exchange: ExchangeId, headers: Table<'_>, names: &Names) -> bool {
        let mut any = false;
        let mut at = self.exchanges[exchange.index()].bindings.front();
        while let Some(binding) = at {
            at = List::after(&self.bindings, binding, |binding| &binding.source_links);
            let mut hook = self.bindings[binding].hook;
            while let Some(index) = hook {
                let found = self.pairs.hook(index as usize);
                any |= self.take_hooked(found, headers, names);
                hook = found.next;
            }
        }
        any
    }

    fn take_from_headers(&mut self, exchange: ExchangeId, headers: Table<'_>, names: &Names) -> bool {
        let mut any = false;
        for place in names.places() {
            let Some((name, value)) = headers::entry(headers, place) else { continue };
            // Some ask for its value, and some for its presence.
            for wanted in [value, Value::Void] {
                let hash = self.pairs.hash(exchange, name, wanted);
                let mut at = self.pairs.first(hash);
                while let Some(index) = at {
                    at = self.pairs.after(index);
                    let hook = self.pairs.hook(index);
                    let is_from_here = self.bindings[hook.binding as usize].source == exchange;
                    any |= hook.hash == hash && is_from_here && self.take_hooked(hook, headers, names);
                }
            }
        }
        any
    }

    /// Takes a binding if its pair is among the headers, and with it whatever else it requires.
    fn take_hooked(&mut self, hook: Hook, headers: Table<'_>, names: &Names) -> bool {
        let record = &self.bindings[hook.binding as usize];
        let destination = record.destination;
        let arguments = Table::trusted(&record.arguments);
        let pair = headers::entry(arguments, hook.at as usize);
        let mut matches = pair.is_some_and(|(name, wanted)| names.agree(headers, name, wanted));
        let mut steps = 1;
        if matches && !hook.any {
            steps += arguments.bytes_len() / BYTES_PER_STEP;
            matches = Rule::of(arguments).pairs(arguments).all(|(_, name, wanted)| {
                steps += 1;
                names.agree(headers, name, wanted)
            });
        }
        self.toil(steps);
        if matches {
            self.take(destination);
        }
        matches
    }

    fn take_node(&mut self, node: usize) -> bool {
        let mut at = self.nodes[node].bindings.front();
        let any = at.is_some();
        while let Some(binding) = at {
            let destination = self.bindings[binding].destination;
            self.toil(1);
            self.take(destination);
            at = List::after(&self.bindings, binding, |binding| &binding.node_links);
        }
        any
    }

    fn take(&mut self, destination: Destination) {
        match destination {
            Destination::Queue(queue) => {
                let record = &mut self.queues[queue.index()];
                if record.routed_at != self.route_number && !record.dying {
                    record.routed_at = self.route_number;
                    self.targets.push(queue);
                }
            }
            Destination::Exchange(exchange) => self.visit(exchange),
        }
    }

    fn visit(&mut self, exchange: ExchangeId) {
        let record = &mut self.exchanges[exchange.index()];
        if record.routed_at != self.route_number && !record.dying {
            record.routed_at = self.route_number;
            self.to_visit.push(exchange);
            self.toil(1);
        }
    }

    fn visit_alternate(&mut self, vhost: VhostId, exchange: ExchangeId) {
        let Some(name) = self.exchanges[exchange.index()].alternate.take() else { return };
        if let Some(alternate) = self.find_exchange(vhost, &name) {
            self.visit(alternate);
        }
        self.exchanges[exchange.index()].alternate = Some(name);
    }
}
