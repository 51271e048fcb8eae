//! The last route of a channel: most publishers send to one place again and again.
//!
//! Always true: what is remembered holds for one revision of the routing, and anything that may change a
//! route makes a new one. Long names and wide fan-outs are not remembered, so a channel's record stays
//! small.

use leveret_core::command::{ExchangeId, QueueId};
use leveret_core::mem::{MessageId, Messages};

const CACHED_NAMES_BYTES_MAX: usize = 64;
const CACHED_TARGETS_MAX: usize = 4;

/// The last route of a channel.
#[derive(Debug, Default)]
pub(crate) struct RouteCache {
    /// The revision that the remembered route holds for; 0 is none.
    revision: u64,
    exchange_len: u8,
    /// The exchange, if every key may be sent to it.
    exchange: Option<ExchangeId>,
    /// The names of exchange and routing key, one behind the other.
    names: heapless::Vec<u8, CACHED_NAMES_BYTES_MAX>,
    targets: heapless::Vec<QueueId, CACHED_TARGETS_MAX>,
}

impl RouteCache {
    /// Sets the targets of a message to the remembered ones, if it has the same exchange and routing key and
    /// nothing changed since; says whether it did.
    #[inline]
    pub(crate) fn leads(
        &self,
        revision: u64,
        messages: &Messages,
        message: MessageId,
        targets: &mut Vec<QueueId>,
    ) -> bool {
        let is_it = self.revision == revision
            && usize::from(self.exchange_len) == messages.exchange_len(message)
            && self.names == messages.names(message);
        if is_it {
            targets.clear();
            targets.extend_from_slice(&self.targets);
        }
        is_it
    }

    /// The exchange of a message, if the last one had the same, whatever its key, and nothing changed since:
    /// a publisher to many queues in turn has only the key checked for each message.
    pub(crate) fn exchange(
        &self,
        revision: u64,
        messages: &Messages,
        message: MessageId,
    ) -> Option<ExchangeId> {
        let (exchange_len, names) = (messages.exchange_len(message), messages.names(message));
        let is_it = self.revision == revision
            && usize::from(self.exchange_len) == exchange_len
            && self.names.get(..exchange_len) == names.get(..exchange_len);
        self.exchange.filter(|_| is_it)
    }

    /// Remembers the route of a message, if it is short enough; `exchange` too, if every key may be sent to it.
    pub(crate) fn set(
        &mut self,
        revision: u64,
        messages: &Messages,
        message: MessageId,
        exchange: Option<ExchangeId>,
        targets: &[QueueId],
    ) {
        self.revision = 0;
        self.exchange = exchange;
        self.names.clear();
        self.targets.clear();
        let fits = self.names.extend_from_slice(messages.names(message)).is_ok();
        if fits && self.targets.extend_from_slice(targets).is_ok() {
            self.revision = revision;
            self.exchange_len = messages.exchange_len(message) as u8;
        }
    }
}
