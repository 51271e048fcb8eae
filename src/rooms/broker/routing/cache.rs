//! The last route of a channel: most publishers send to one place again and again.
//!
//! Always true: what is remembered holds for one revision of the routing, and anything that may change a
//! route makes a new one. Long names and wide fan-outs are not remembered, so a channel's record stays
//! small.

use crate::command::{ExchangeId, QueueId};

const CACHED_NAMES_BYTES_MAX: usize = 64;
const CACHED_TARGETS_MAX: usize = 4;

/// The last route of a channel.
#[derive(Debug, Default)]
pub(in crate::broker) struct RouteCache {
    /// The revision that it holds for; 0 is none.
    revision: u64,
    exchange_len: u8,
    /// The exchange, if every key may be sent to it.
    exchange: Option<ExchangeId>,
    /// Exchange and key, one behind the other.
    names: heapless::Vec<u8, CACHED_NAMES_BYTES_MAX>,
    targets: heapless::Vec<QueueId, CACHED_TARGETS_MAX>,
}

impl RouteCache {
    /// The targets of a message, if the last one had the same exchange and key (`names`, one behind the
    /// other) and nothing changed since.
    #[inline]
    pub(in crate::broker) fn get(
        &self,
        revision: u64,
        exchange_len: usize,
        names: &[u8],
    ) -> Option<&[QueueId]> {
        let is_it = self.revision == revision
            && usize::from(self.exchange_len) == exchange_len
            && self.names == names;
        is_it.then_some(&self.targets[..])
    }

    /// The exchange of a message, if the last one had the same, whatever its key, and nothing changed since:
    /// who takes turns on many queues is asked only for the key what is asked of each message.
    pub(in crate::broker) fn exchange(
        &self,
        revision: u64,
        exchange_len: usize,
        names: &[u8],
    ) -> Option<ExchangeId> {
        let is_it = self.revision == revision
            && usize::from(self.exchange_len) == exchange_len
            && self.names.get(..exchange_len) == names.get(..exchange_len);
        self.exchange.filter(|_| is_it)
    }

    /// Remembers a route, if it is short enough; `exchange` too, if every key may be sent to it.
    pub(in crate::broker) fn set(
        &mut self,
        revision: u64,
        (exchange, exchange_len): (Option<ExchangeId>, usize),
        names: &[u8],
        targets: &[QueueId],
    ) {
        self.revision = 0;
        self.exchange = exchange;
        self.names.clear();
        self.targets.clear();
        let fits = self.names.extend_from_slice(names).is_ok();
        if fits && self.targets.extend_from_slice(targets).is_ok() {
            self.revision = revision;
            self.exchange_len = exchange_len as u8;
        }
    }
}
