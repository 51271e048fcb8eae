//! Jobs: work that takes more than one step. `Broker::run_jobs` runs them.

use std::collections::VecDeque;

use leveret_core::command::{ChannelId, ConnectionId, ExchangeId, QueueId, Settlement, VhostId};
use leveret_queues::Purged;

/// One job.
#[derive(Debug)]
pub(crate) enum Job {
    /// Settle a channel's deliveries in the order of their tags, up to the tag `through`.
    Settle { channel: ChannelId, through: u64, settlement: Settlement },
    /// Settle and release messages that were purged from a queue.
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
    /// Apply changed policies to the queues and exchanges that they match.
    Policies,
}

/// A job, and the connection that waits for it.
#[derive(Debug)]
pub(crate) struct Begun {
    pub(crate) job: Job,
    /// No further command of this connection is read until the job is done.
    pub(crate) waiting: Option<ConnectionId>,
}

/// Jobs that are not done, in the order in which they were begun.
#[derive(Debug)]
pub(crate) struct Jobs {
    begun: VecDeque<Begun>,
    /// The current command has begun a job. The job's first step must run as soon as the command is carried
    /// out.
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

    /// Makes the first steps of jobs run directly after the current command, so that short jobs are done
    /// before the connection's next command.
    pub(crate) const fn note_due(&mut self) {
        self.is_due = true;
    }

    /// Returns whether the first steps of jobs must run now, and clears that mark. The caller runs them.
    #[inline]
    pub(crate) const fn take_due(&mut self) -> bool {
        core::mem::replace(&mut self.is_due, false)
    }

    /// Removes and returns the job that was begun first.
    pub(crate) fn pop(&mut self) -> Option<Begun> {
        let begun = self.begun.pop_front();
        if self.begun.is_empty() {
            // Otherwise jobs that come one by one would use all places of the ring, one after the other.
            self.begun.clear();
        }
        begun
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

/// Progress in deleting the queues and exchanges of a virtual host.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sweep {
    pub(crate) vhost: VhostId,
    /// Index of the next queue to examine.
    pub(crate) queue: usize,
    /// Index of the next exchange to examine.
    pub(crate) exchange: usize,
}

/// Subtracts one step from `left`. Returns `false` if no step was left.
pub(crate) fn spend(left: &mut u32) -> bool {
    if *left == 0 {
        return false;
    }
    *left -= 1;
    true
}
