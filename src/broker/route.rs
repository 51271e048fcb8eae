//! From an exchange and a routing key to queues.
//!
//! Always true: a queue is chosen at most once per message and an exchange visited at most once, so cycles
//! of exchange-to-exchange bindings end; the choice is made into scratch space that was sized at start.
//!
//! Most publishers send to one place again and again, so each channel remembers its last route and asks
//! only whether the topology changed since.

use crate::command::{ChannelId, ExchangeId, QueueId, VhostId};
use crate::mem::{List, MessageId, Messages};
use crate::wire::field::{Table, Value};

use super::Broker;
use super::exchange::{Destination, Kind};
use super::{headers, topic};

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

/// All keys a message is routed by: its own, and those in its CC and BCC headers.
#[derive(Clone, Copy)]
pub(super) struct Keys<'a> {
    own: &'a [u8],
    headers: Table<'a>,
}

impl<'a> Keys<'a> {
    fn iter(self) -> impl Iterator<Item = &'a [u8]> {
        core::iter::once(self.own).chain(Self::listed(self.headers))
    }

    /// Those in the headers.
    pub(super) fn listed(headers: Table<'a>) -> impl Iterator<Item = &'a [u8]> {
        let listed = move |name| match headers.get(name) {
            Some(Value::Array(array)) => Some(array.iter().filter_map(|value| value.as_bytes())),
            _ => None,
        };
        listed("CC").into_iter().flatten().chain(listed("BCC").into_iter().flatten())
    }
}

impl Broker {
    /// Chooses the queues for a message into `self.targets`. `headers` is empty unless they matter.
    pub(super) fn route(
        &mut self,
        messages: &Messages,
        channel: ChannelId,
        exchange: ExchangeId,
        message: MessageId,
        headers: Table<'_>,
    ) {
        let own = messages.routing_key(message);
        let vhost = self.exchanges[exchange.index()].vhost;
        let cacheable = self.choose(vhost, exchange, Keys { own, headers }) && headers.is_empty();
        if cacheable {
            let names = messages.names(message);
            let exchange_len = messages.exchange_len(message);
            let cache = &mut self.channels[channel.index()].route_cache;
            cache.remember(self.topology, exchange_len, names, &self.targets);
        }
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
    fn choose(&mut self, vhost: VhostId, exchange: ExchangeId, keys: Keys<'_>) -> bool {
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
            if !self.choose_at(vhost, exchange, keys) {
                self.visit_alternate(vhost, exchange);
            }
        }
        by_key_alone
    }

    /// Follows one exchange's bindings; says whether any matched.
    fn choose_at(&mut self, vhost: VhostId, exchange: ExchangeId, keys: Keys<'_>) -> bool {
        let (kind, root) = {
            let record = &self.exchanges[exchange.index()];
            (record.kind, record.root)
        };
        match kind {
            Kind::Default => keys.iter().fold(false, |any, key| self.take_named(vhost, key) | any),
            Kind::Fanout => self.take_node(root),
            Kind::Headers => self.take_matching_headers(root, keys.headers),
            Kind::Direct => keys.iter().fold(false, |any, key| {
                match topic::child(&self.nodes, &self.node_table, root, key) {
                    Some(node) => self.take_node(node) | any,
                    None => any,
                }
            }),
            Kind::Topic => keys.iter().fold(false, |any, key| self.take_topic(root, key) | any),
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

    fn take_topic(&mut self, root: usize, key: &[u8]) -> bool {
        let mut walk = core::mem::take(&mut self.walk);
        let (mut any, mut visits) = (false, 0);
        if let Some(walk) = walk.as_mut() {
            for &node in walk.nodes(&mut self.nodes, &self.node_table, root, key) {
                any |= self.take_node(node);
            }
            visits = walk.visits();
        }
        self.walk = walk;
        self.toil(visits);
        any
    }

    fn take_matching_headers(&mut self, root: usize, headers: Table<'_>) -> bool {
        let (mut any, mut steps) = (false, 0);
        let mut at = self.nodes[root].bindings.front();
        while let Some(binding) = at {
            let record = &self.bindings[binding];
            // Each argument is looked for among all headers.
            steps += 1 + record.arguments.len() / 16 * (headers.bytes_len() / 64);
            if headers::matches(Table::trusted(&record.arguments), headers) {
                any = true;
                let destination = record.destination;
                self.take(destination);
            }
            at = List::after(&self.bindings, binding, |binding| &binding.node_links);
        }
        self.toil(steps);
        any
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
