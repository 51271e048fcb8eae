//! What the broker works with that is not its own, lent for one call.
//!
//! Why it exists: the journal and the messages belong to whoever runs the broker, who hands them on to the
//! store; and what is true of one command alone is no state of the broker.
//!
//! Always true: a new context waits for nothing and declares for nobody.

use crate::journal::{Batch, Journal};
use crate::mem::Messages;

use super::quota::Declarer;
use super::work::Work;

/// What a call to the broker works with, and what has come of it besides its answer.
#[derive(Debug)]
pub struct Context<'a> {
    pub(crate) journal: &'a mut Journal,
    pub(crate) messages: &'a mut Messages,
    pub(crate) work: &'a mut Work,
    /// What the answer to the command must wait for.
    pub(crate) awaited: Batch,
    /// For whom the command declares things; nobody at a start.
    pub(crate) declarer: Option<Declarer>,
}

impl<'a> Context<'a> {
    /// A context for one call. What it costs beyond its size is charged to `work`.
    #[inline]
    pub const fn new(journal: &'a mut Journal, messages: &'a mut Messages, work: &'a mut Work) -> Self {
        Self { journal, messages, work, awaited: Batch::NONE, declarer: None }
    }

    /// The batch that must be durable before the command is answered.
    #[inline]
    pub const fn awaited(&self) -> Batch {
        self.awaited
    }

    /// What was said, and is to be written.
    pub const fn journal_mut(&mut self) -> &mut Journal {
        self.journal
    }

    /// All messages in memory.
    pub const fn messages_mut(&mut self) -> &mut Messages {
        self.messages
    }

    /// The answer waits for this too.
    pub(crate) fn await_batch(&mut self, batch: Batch) {
        self.awaited = self.awaited.max(batch);
    }

    /// What was asked for is so already, because of somebody else; who is told so may rely on it, so the
    /// answer waits until what the other said is durable.
    pub(crate) fn await_others(&mut self) {
        let batch = self.journal.await_facts();
        self.await_batch(batch);
    }

    /// Whoever is told that something durable is there may rely on it: the answer waits until what says so is
    /// durable. Not for everything said: on a full disk that waits for room, and who only asks must not.
    pub(crate) fn await_defined(&mut self, defined: Batch) {
        if defined > self.journal.durable() {
            self.await_batch(defined);
        }
    }
}
