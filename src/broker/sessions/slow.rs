//! Publishers that wait for the clients of sessions that do not keep up.
//!
//! A message for such a session is accepted at once, and the answer to its publisher (PUBACK or PUBREC) is withheld. The
//! publisher's input is read on, because its own acknowledgements are in it.

use leveret_core::command::{ConnectionId, QueueId};
use leveret_core::mem::Share;
use leveret_queues::Pace;

use crate::clients::ClientWait;
use crate::{Broker, Context};

/// The number of clients that may wait for each other in a row.
const WAIT_CHAIN_MAX: usize = 16;
/// A publisher that has waited this long in a period waits no more in it, whichever clients are slow. Times are in milliseconds.
const WAIT_MS_MAX: u64 = 10_000;
const PERIOD_MS: u64 = 60_000;

impl Broker {
    /// Returns whether answers to what a connection publishes are withheld until another client has caught up.
    pub fn withholds_answers(&self, connection: ConnectionId) -> bool {
        self.client_that_delays(connection).is_some()
    }

    /// Returns the queue of the client for which the answers of a publisher wait.
    fn client_that_delays(&self, publisher: ConnectionId) -> Option<QueueId> {
        self.clients.connection(publisher).client_wait.as_ref()?.queue
    }

    /// Makes the answers of a publisher wait if the client of one of these queues does not keep up.
    pub(crate) fn wait_for_slow_clients(&mut self, publisher: ConnectionId, queues: &[QueueId], now_ms: u64) {
        let record = self.clients.connection(publisher);
        let wait = record.client_wait.as_deref().copied().unwrap_or_default();
        let is_same_period = now_ms < wait.period_ms + PERIOD_MS;
        let has_waited = is_same_period && wait.waited_ms >= WAIT_MS_MAX;
        if record.session.is_none() || wait.queue.is_some() || has_waited {
            return;
        }
        let is_behind = |queue: &&QueueId| {
            let record = self.queues.records().get(queue.index());
            record.is_some_and(|record| record.pace() == Pace::Behind)
        };
        let slow = queues.iter().filter(is_behind).find(|queue| !self.waits_for(**queue, publisher));
        if let Some(&queue) = slow
            && self.queues.wait_for_client(queue, publisher)
        {
            let (period_ms, waited_ms) =
                if is_same_period { (wait.period_ms, wait.waited_ms) } else { (now_ms, 0) };
            let wait = ClientWait { queue: Some(queue), since_ms: now_ms, period_ms, waited_ms };
            **self.clients.connection_mut(publisher).client_wait.get_or_insert_default() = wait;
        }
    }

    /// Returns whether the client of a queue is this publisher, or waits for it, be it through others.
    fn waits_for(&self, queue: QueueId, publisher: ConnectionId) -> bool {
        let mut queue = queue;
        for _ in 0..WAIT_CHAIN_MAX {
            let session = self.queues.records().get(queue.index()).and_then(|record| record.session());
            let client = session.and_then(|session| self.sessions.status(session).connection);
            let Some(client) = client else { return false };
            if client == publisher {
                return true;
            }
            let Some(next) = self.client_that_delays(client) else { return false };
            queue = next;
        }
        true
    }

    /// Releases the publishers whose wait has ended, and trims the sessions that begin to drop messages.
    pub(crate) fn check_pace(&mut self, cx: &mut Context<'_>) {
        let now_ms = cx.pending_writes.time_ms();
        let free = self.queues.free_memory(cx.messages, Share::Ordinary);
        let changes = self.queues.check_pace(now_ms, free);
        for (publisher, queue) in changes.released {
            let record = self.clients.find_connection_mut(publisher);
            let wait = record.and_then(|record| record.client_wait.as_mut());
            // Another connection may have got the identifier.
            if let Some(wait) = wait.filter(|wait| wait.queue == Some(queue)) {
                wait.waited_ms += now_ms - wait.since_ms;
                wait.queue = None;
                self.clients.note_output(publisher);
            }
        }
        for queue in changes.to_trim {
            self.republisher().enforce_limits(cx, queue);
        }
    }
}
