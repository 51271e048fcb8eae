//! A queue: what waits in it, who takes from it, and when it goes.
//!
//! Always true: offsets rise with arrival and stay with a message for life, so what comes back goes before
//! everything that has not been delivered yet, in its old order; a queue is on the ready list exactly when
//! it has a message, a consumer that can take it, and nothing on its way back.

use crate::command::{ConnectionId, VhostId};
use crate::mem::{Fifo, Links, List};

use super::arguments::QueueSettings;
use super::deliveries::ReturnedHeap;

/// Entry flags of a message that only just arrived.
pub(super) const ENTRY_PLAIN: u32 = 0;

/// One queue.
#[derive(Debug)]
pub(super) struct Queue {
    pub(super) vhost: VhostId,
    pub(super) name: Box<str>,
    pub(super) durable: bool,
    pub(super) auto_delete: bool,
    pub(super) exclusive_owner: Option<ConnectionId>,
    pub(super) arguments: Box<[u8]>,
    pub(super) settings: QueueSettings,
    /// The reply queue behind amq.rabbitmq.reply-to: reached by its name, seen by nobody.
    pub(super) hidden: bool,
    /// Messages that have not been delivered.
    pub(super) fifo: Fifo,
    /// Messages that came back.
    pub(super) returned: ReturnedHeap,
    /// Messages that came back when half of all deliveries had: as entries, in the order of their coming.
    pub(super) spilled: Fifo,
    /// Bytes of pool memory that the messages in `fifo` and `returned` occupy.
    pub(super) ready_bytes: u64,
    /// Bytes of their bodies, which is what x-max-length-bytes counts.
    pub(super) ready_body_bytes: u64,
    /// Deliveries not settled, gets included.
    pub(super) unsettled: u32,
    /// Jobs that are still giving messages back: until they are done the order would not be kept.
    pub(super) returning: u32,
    pub(super) consumers: List,
    pub(super) eligible: List,
    /// One of the consumers is exclusive.
    pub(super) exclusively_consumed: bool,
    pub(super) had_consumer: bool,
    /// Bindings that lead here.
    pub(super) bindings: List,
    /// Route number that last chose this queue: a message enters a queue once.
    pub(super) routed_at: u64,
    /// Its name is gone, and what hangs on it is being cleared away.
    pub(super) dying: bool,
    /// Cleared away: the record goes with the last delivery that refers to it.
    pub(super) cleared: bool,
    pub(super) on_ready_list: bool,
    pub(super) ready_links: Links,
    pub(super) owner_links: Links,
}

impl Queue {
    /// Messages ready for delivery.
    pub(super) fn ready(&self) -> u32 {
        self.fifo.len() + self.returned.len() + self.spilled.len()
    }

    /// Whether a deliver pass has anything to do here.
    pub(super) fn wants_delivery(&self) -> bool {
        self.ready() > 0 && !self.eligible.is_empty() && self.returning == 0 && !self.dying
    }
}
