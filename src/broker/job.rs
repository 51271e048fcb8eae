//! Work that takes more than one step; `Broker::run_jobs` executes it.

use std::collections::VecDeque;

use leveret_core::command::{ChannelId, ConnectionId, ExchangeId, QueueId, Settlement, VhostId};

use super::queue_records::Purged;

/// A piece of work.
#[derive(Debug)]
pub(crate) enum Job {
    /// Settle a channel's deliveries in order, as long as they are written and not beyond a tag.
    Settle { channel: ChannelId, through: u64, settlement: Settlement },
    /// Drop messages that were purged from a queue.
    Purge { queue: QueueId, parts: Box<Purged> },
    /// Clear a deleted queue: messages, consumers, bindings.
    Queue(QueueId),
    /// Clear a deleted exchange: bindings.
    Exchange(ExchangeId),
    /// Requeue the deliveries of a closed channel.
    Channel(ChannelId),
    /// Requeue the deliveries of a lost connection, and clear it.
    Connection(ConnectionId),
    /// Clear a deleted virtual host: queues, exchanges.
    Vhost(Sweep),
    /// Notify queues and exchanges of the policies that apply to them.
    Policies,
}

/// A job and the connection that waits for it.
#[derive(Debug)]
pub(crate) struct Begun {
    pub(crate) job: Job,
    pub(crate) waiting: Option<ConnectionId>,
}

/// Jobs that are not done, in the order in which they were begun.
#[derive(Debug)]
pub(crate) struct Jobs {
    begun: VecDeque<Begun>,
    /// The current command has begun a job, whose first step is due when the command is done.
    is_due: bool,
}

impl Jobs {
    pub(crate) fn with_capacity(most: usize) -> Self {
        Self { begun: VecDeque::with_capacity(most), is_due: false }
    }

    /// Begins a job that no connection waits for.
    pub(crate) fn begin(&mut self, job: Job) {
        self.begun.push_back(Begun { job, waiting: None });
    }

    /// Begins a job for the current command of a connection, which waits for it.
    pub(crate) fn begin_for(&mut self, connection: ConnectionId, job: Job) {
        self.begun.push_back(Begun { job, waiting: Some(connection) });
        self.is_due = true;
    }

    /// Notes that the first steps of the command's jobs are due, because its connection may see their end at
    /// once.
    pub(crate) const fn note_due(&mut self) {
        self.is_due = true;
    }

    /// Returns whether the first steps of a command's jobs are due; the caller runs them.
    #[inline]
    pub(crate) const fn take_due(&mut self) -> bool {
        core::mem::replace(&mut self.is_due, false)
    }

    /// Takes the job that was begun first.
    pub(crate) fn pop(&mut self) -> Option<Begun> {
        self.begun.pop_front()
    }

    /// Puts an unfinished job back as the first one.
    pub(crate) fn put_back(&mut self, begun: Begun) {
        self.begun.push_front(begun);
    }

    pub(crate) fn len(&self) -> usize {
        self.begun.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.begun.is_empty()
    }
}

/// Progress in clearing a virtual host.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sweep {
    pub(crate) vhost: VhostId,
    pub(crate) queue: usize,
    pub(crate) exchange: usize,
}

/// Takes one of the steps left. Returns `false` when none are left.
pub(crate) fn spend(left: &mut u32) -> bool {
    if *left == 0 {
        return false;
    }
    *left -= 1;
    true
}
