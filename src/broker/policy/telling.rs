//! How far the queues and exchanges have heard of a change of the policies.
//!
//! Why it exists: there may be too many queues and exchanges to tell all in one go.
//!
//! Always true: a change that comes while another is told is told from the first queue on, together with the
//! other; the job that tells is asked for once.

use leveret_core::command::{ExchangeId, QueueId};

/// A queue or an exchange that hears of a change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Listener {
    Queue(QueueId),
    Exchange(ExchangeId),
}

/// How many places of queues and of exchanges have heard of a change.
#[derive(Clone, Copy, Debug, Default)]
struct Told {
    queues: usize,
    exchanges: usize,
}

/// A change that not all have heard of yet, if there is one.
#[derive(Debug, Default)]
pub(super) struct Telling {
    told: Option<Told>,
    /// The job that tells is still to be begun.
    wants_job: bool,
}

impl Telling {
    /// Begins to tell of a change, which nobody has heard of.
    pub(super) fn begin(&mut self) {
        if self.told.replace(Told::default()).is_none() {
            self.wants_job = true;
        }
    }

    /// Whether the job that tells is to be begun; the caller begins it.
    pub(super) const fn take_job(&mut self) -> bool {
        core::mem::replace(&mut self.wants_job, false)
    }

    /// The next queue or exchange to hear, among so many places of each.
    pub(super) fn next(&self, queues: usize, exchanges: usize) -> Option<Listener> {
        let told = self.told?;
        if told.queues < queues {
            return Some(Listener::Queue(QueueId::from_index(told.queues)));
        }
        (told.exchanges < exchanges).then(|| Listener::Exchange(ExchangeId::from_index(told.exchanges)))
    }

    /// Notes that a queue or an exchange has heard.
    pub(super) fn note(&mut self, listener: Listener) {
        let told = self.told.as_mut().expect("somebody hears of a change that there is");
        let (count, index) = match listener {
            Listener::Queue(queue) => (&mut told.queues, queue.index()),
            Listener::Exchange(exchange) => (&mut told.exchanges, exchange.index()),
        };
        assert_eq!(*count, index, "changes are told in the order of places");
        *count += 1;
    }

    /// Notes that all have heard.
    pub(super) const fn end(&mut self) {
        self.told = None;
        self.wants_job = false;
    }
}
