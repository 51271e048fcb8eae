//! The things lent to the broker for one call: journal, messages, work.
//!
//! Why it exists: the journal and the messages belong to whoever runs the broker, who hands them on to the
//! store; and facts about one command alone are no state of the broker.
//!
//! Always true: a new context awaits no batch and declares for nobody.

use leveret_core::journal::{Batch, Journal};
use leveret_core::mem::Messages;

use super::quota::Declarer;
use super::work::Work;

/// The things lent to a call of the broker, and the batch that its answer must wait for.
#[derive(Debug)]
pub struct Context<'a> {
    pub(crate) journal: &'a mut Journal,
    pub(crate) messages: &'a mut Messages,
    pub(crate) work: &'a mut Work,
    /// The batch that the answer to the command must wait for.
    pub(crate) awaited: Batch,
    /// For whom the command declares things; nobody at a start.
    pub(crate) declarer: Option<Declarer>,
}

impl<'a> Context<'a> {
    /// A context for one call, whose work is charged to `work`.
    #[inline]
    pub const fn new(journal: &'a mut Journal, messages: &'a mut Messages, work: &'a mut Work) -> Self {
        Self { journal, messages, work, awaited: Batch::NONE, declarer: None }
    }

    /// The batch that must be durable before the command is answered.
    #[inline]
    pub const fn awaited(&self) -> Batch {
        self.awaited
    }

    /// The journal: changes to be written.
    pub const fn journal_mut(&mut self) -> &mut Journal {
        self.journal
    }

    /// All messages in memory.
    pub const fn messages_mut(&mut self) -> &mut Messages {
        self.messages
    }

    /// Has the answer wait for this batch, too.
    pub(crate) fn await_batch(&mut self, batch: Batch) {
        self.awaited = self.awaited.max(batch);
    }

    /// Has the answer wait for all changes so far: what the client asked for is so already, because of
    /// another's change, which must be durable before the client relies on it.
    pub(crate) fn await_others(&mut self) {
        let batch = self.journal.await_facts();
        self.await_batch(batch);
    }

    /// Has the answer wait until a definition is durable, on which a client that is told of it may rely. Not
    /// for all changes: on a full disk these wait for room, and a mere query must not.
    pub(crate) fn await_defined(&mut self, defined: Batch) {
        if defined > self.journal.durable() {
            self.await_batch(defined);
        }
    }
}
