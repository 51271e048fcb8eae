//! Pieces of work that take more than one step, as values; what is done for them stands in `jobs`.

use crate::command::{ChannelId, ConnectionId, ExchangeId, QueueId, Settlement, VhostId};

use super::queues::Purged;

/// One piece of work.
#[derive(Debug)]
pub(super) enum Job {
    /// Settle a channel's deliveries in order, as long as they are written and not beyond a tag.
    Settle { channel: ChannelId, through: u64, settlement: Settlement },
    /// Drop messages that were taken out of a queue.
    Purge { queue: QueueId, parts: Box<Purged> },
    /// Clear a deleted queue: messages, consumers, bindings.
    Queue(QueueId),
    /// Clear a deleted exchange: bindings.
    Exchange(ExchangeId),
    /// Give back what a closed channel held.
    Channel(ChannelId),
    /// Give back what a lost connection held.
    Connection(ConnectionId),
    /// Clear a deleted virtual host: queues, exchanges.
    Vhost(Sweep),
    /// Tell queues and exchanges which policies apply to them.
    Policies,
}

/// A job and the connection that waits for it.
#[derive(Debug)]
pub(super) struct Begun {
    pub(super) job: Job,
    pub(super) waiting: Option<ConnectionId>,
}

/// How far the clearing of a virtual host has come.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sweep {
    pub(super) vhost: VhostId,
    pub(super) queue: usize,
    pub(super) exchange: usize,
}

/// Takes one from the allowance; `false` when it is used up.
pub(super) fn spend(left: &mut u32) -> bool {
    if *left == 0 {
        return false;
    }
    *left -= 1;
    true
}
