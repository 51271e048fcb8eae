//! A message's targets: from its channel's last route, or from the routing.
//!
//! Always true: each queue is chosen once, and only one that is not being deleted.

use crate::command::{ChannelId, ExchangeId, QueueId, VhostId};
use crate::error::Fault;
use crate::mem::{Draw, MessageFlags, MessageId, Messages, Share, Slab};
use crate::wire::field::{Array, Table, Value};

use super::Broker;
use super::faults::out_of;
use super::names::IndexTable;
use super::queue::Queue;
use super::queues::find_queue;
use super::routing::{Keys, Queues};
use super::work::Work;

/// Octets of a hidden queue in a route that is kept.
const HIDDEN_LEN: usize = 1 + 4 + 8;

/// The lists of further keys. What is not text in them is no key.
pub(super) fn copies(headers: Table<'_>) -> [Array<'_>; 2] {
    ["CC", "BCC"].map(|name| match headers.get(name) {
        Some(Value::Array(array)) => array,
        _ => Array::EMPTY,
    })
}

/// The queues as routing sees them.
struct Targets<'a> {
    queues: &'a mut Slab<Queue>,
    table: &'a IndexTable,
    chosen: &'a mut Vec<QueueId>,
}

impl Queues for Targets<'_> {
    fn find(&self, vhost: VhostId, name: &str) -> Option<QueueId> {
        find_queue(self.queues, self.table, vhost, name)
    }

    fn choose(&mut self, queue: QueueId, route: u64) {
        let record = &mut self.queues[queue.index()];
        if record.routed_at != route && !record.dying {
            record.routed_at = route;
            self.chosen.push(queue);
        }
    }
}

impl Broker {
    /// Chooses the queues for a message into `targets`. `headers` is empty unless they matter.
    ///
    /// # Errors
    /// It takes more work than [`Self::limit_routing`] allowed.
    pub(super) fn route(
        &mut self,
        (messages, work): (&Messages, &mut Work),
        channel: ChannelId,
        exchange: ExchangeId,
        (message, headers): (MessageId, Table<'_>),
        targets: &mut Vec<QueueId>,
    ) -> Result<(), Fault> {
        let keys = Keys { own: messages.routing_key(message), copies: copies(headers), headers };
        targets.clear();
        let mut chosen = Targets { queues: &mut self.queues, table: &self.queue_table, chosen: targets };
        let by_key_alone = self.routing.select(exchange, &keys, &mut chosen, work)?;
        if by_key_alone && headers.is_empty() {
            let names = messages.names(message);
            let exchange_len = messages.exchange_len(message);
            let connection = self.channels[channel.index()].connection;
            let for_all_keys = (!self.limits_keys(connection, exchange)).then_some(exchange);
            let revision = self.revision();
            let cache = &mut self.channels[channel.index()].route_cache;
            cache.set(revision, (for_all_keys, exchange_len), names, targets);
        }
        Ok(())
    }

    /// Chooses the queues for a dead letter with this key and these headers, which comes from no channel.
    ///
    /// # Errors
    /// It takes more work than [`Self::limit_routing`] allowed.
    pub(super) fn route_letter(
        &mut self,
        work: &mut Work,
        exchange: ExchangeId,
        (own, headers): (&[u8], Table<'_>),
        targets: &mut Vec<QueueId>,
    ) -> Result<(), Fault> {
        let keys = Keys { own, copies: copies(headers), headers };
        targets.clear();
        let mut chosen = Targets { queues: &mut self.queues, table: &self.queue_table, chosen: targets };
        self.routing.select(exchange, &keys, &mut chosen, work).map(|_| ())
    }

    /// From here on, routing may take as much work as that of so many messages may.
    pub(super) const fn limit_routing(&self, work: &mut Work, messages: u32) {
        work.limit(self.routing.units_max().saturating_mul(messages));
    }

    /// A route as a message of its own, whose body is its queues; the caller holds it.
    ///
    /// ```text
    /// | length, 1 octet, not 0 | name |   a queue that has a name
    /// | 0 | place, 4 | serial, 8 |        the hidden queue of a delayed exchange
    /// ```
    ///
    /// # Errors
    /// There is no room for it.
    pub(super) fn write_route(
        &mut self,
        messages: &mut Messages,
        message: MessageId,
        targets: &[QueueId],
    ) -> Result<MessageId, Fault> {
        let draw = Draw { share: Share::Reserve, owner: messages.owner(message) };
        let len_of = |queue: &QueueId| match self.queues[queue.index()].name.len() {
            0 => HIDDEN_LEN,
            len => 1 + len,
        };
        let body_len = targets.iter().map(len_of).sum::<usize>() as u32;
        let route = messages.begin("", &[], draw).map_err(|full| out_of(full.key()))?;
        let reserved = messages.reserve_whole(route, &[], MessageFlags::ROUTE, body_len, draw.share);
        if let Err(full) = reserved {
            messages.release(route);
            return Err(out_of(full.key()));
        }
        for &queue in targets {
            let record = &self.queues[queue.index()];
            messages.append_body(route, &[record.name.len() as u8]);
            if record.name.is_empty() {
                messages.append_body(route, &(queue.index() as u32).to_be_bytes());
                messages.append_body(route, &record.serial.to_be_bytes());
            } else {
                messages.append_body(route, record.name.as_bytes());
            }
        }
        assert!(messages.body_missing(route) == 0, "a route is as long as it was reckoned");
        Ok(route)
    }

    /// The queues of a route that are there by now.
    pub(super) fn read_route(
        &self,
        (messages, work): (&Messages, &mut Work),
        vhost: VhostId,
        route: MessageId,
        targets: &mut Vec<QueueId>,
    ) {
        let (mut cursor, mut left) = (messages.body_cursor(route, 0), messages.body_len(route) as usize);
        let mut octets = [0; 255];
        while left > 0 {
            work.charge(1);
            messages.read(route, &mut cursor, &mut octets[..1]);
            let len = usize::from(octets[0]);
            let rest = if len == 0 { HIDDEN_LEN - 1 } else { len };
            messages.read(route, &mut cursor, &mut octets[..rest]);
            left -= 1 + rest;
            let queue = match len {
                0 => self.hidden_queue(&octets),
                len => {
                    core::str::from_utf8(&octets[..len]).ok().and_then(|name| self.find_queue(vhost, name))
                }
            };
            targets.extend(queue.filter(|queue| !self.queues[queue.index()].dying));
        }
    }

    /// The hidden queue of a place and a serial, if that is still there.
    fn hidden_queue(&self, octets: &[u8; 255]) -> Option<QueueId> {
        let (place, rest) = octets.split_first_chunk()?;
        let serial = u64::from_be_bytes(*rest.first_chunk()?);
        let place = u32::from_be_bytes(*place) as usize;
        let is_it = self.queues.get(place).is_some_and(|record| record.serial == serial);
        is_it.then(|| QueueId::from_index(place))
    }

    /// Takes the channel's last route if this message goes the same way.
    pub(super) fn route_from_cache(
        &mut self,
        messages: &Messages,
        channel: ChannelId,
        message: MessageId,
        targets: &mut Vec<QueueId>,
    ) -> bool {
        let cache = &self.channels[channel.index()].route_cache;
        let (exchange_len, names) = (messages.exchange_len(message), messages.names(message));
        let Some(cached) = cache.get(self.revision(), exchange_len, names) else { return false };
        targets.clear();
        targets.extend_from_slice(cached);
        true
    }

    /// The exchange of the channel's last route, if this message goes there too, and may whatever its key is.
    pub(super) fn exchange_from_cache(
        &self,
        messages: &Messages,
        channel: ChannelId,
        message: MessageId,
    ) -> Option<ExchangeId> {
        let cache = &self.channels[channel.index()].route_cache;
        let (exchange_len, names) = (messages.exchange_len(message), messages.names(message));
        cache.exchange(self.revision(), exchange_len, names)
    }
}
