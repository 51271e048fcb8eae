//! A message's targets: from its channel's last route, or from the routing.
//!
//! Always true: each queue is chosen once, and only one that is not being deleted.

use crate::command::{ChannelId, ExchangeId, QueueId};
use crate::error::Fault;
use crate::mem::{MessageId, Messages};
use crate::wire::field::{Array, Table, Value};

use super::Broker;
use super::queues::Targets;
use super::routing::Keys;
use super::work::Work;

/// The lists of further keys. What is not text in them is no key.
pub(super) fn copies(headers: Table<'_>) -> [Array<'_>; 2] {
    ["CC", "BCC"].map(|name| match headers.get(name) {
        Some(Value::Array(array)) => array,
        _ => Array::EMPTY,
    })
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
        let mut chosen = Targets { queues: &mut self.queues, chosen: targets };
        let by_key_alone = self.routing.select(exchange, &keys, &mut chosen, work)?;
        if by_key_alone && headers.is_empty() {
            let names = messages.names(message);
            let exchange_len = messages.exchange_len(message);
            let connection = self.consumers.connection_of(channel);
            let for_all_keys = (!self.limits_keys(connection, exchange)).then_some(exchange);
            let revision = self.revision();
            let cache = &mut self.consumers.channel_mut(channel).route_cache;
            cache.set(revision, (for_all_keys, exchange_len), names, targets);
        }
        Ok(())
    }

    /// From here on, routing may take as much work as that of so many messages may.
    pub(super) const fn limit_routing(&self, work: &mut Work, messages: u32) {
        work.limit(self.routing.units_max().saturating_mul(messages));
    }

    /// Takes the channel's last route if this message goes the same way.
    pub(super) fn route_from_cache(
        &mut self,
        messages: &Messages,
        channel: ChannelId,
        message: MessageId,
        targets: &mut Vec<QueueId>,
    ) -> bool {
        let cache = &self.consumers.channel(channel).route_cache;
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
        let cache = &self.consumers.channel(channel).route_cache;
        let (exchange_len, names) = (messages.exchange_len(message), messages.names(message));
        cache.exchange(self.revision(), exchange_len, names)
    }
}
