//! The state that one call of routing, queues or broker borrows from its caller, and the batch that its reply waits for.
//!
//! It is in this package because those three share it. The awaited batch and the declarer belong to one command, so they
//! are not state of the broker.

use leveret_core::batch::Batch;
use leveret_core::mem::Messages;
use leveret_core::quota::Declarer;
use leveret_core::work::Work;

use crate::PendingWrites;

/// The state that a call of the broker borrows, and the batch that must be durable before the reply to the
/// command is sent. A new context waits for no batch and has no declarer.
#[derive(Debug)]
pub struct Context<'a> {
    /// The messages, settlements and definitions that wait to be written to the log.
    pub pending_writes: &'a mut PendingWrites,
    /// All messages in memory.
    pub messages: &'a mut Messages,
    /// The work of the call.
    pub work: &'a mut Work,
    /// The batch that must be durable before the reply is sent.
    pub awaited: Batch,
    /// The connection in whose share the objects that the command declares count; `None` at start and for
    /// operators.
    pub declarer: Option<Declarer>,
}

impl<'a> Context<'a> {
    /// Creates a context for one call, whose work is charged to `work`.
    #[inline]
    pub const fn new(
        pending_writes: &'a mut PendingWrites,
        messages: &'a mut Messages,
        work: &'a mut Work,
    ) -> Self {
        Self { pending_writes, messages, work, awaited: Batch::NONE, declarer: None }
    }

    /// Makes the reply wait for this batch too.
    pub fn await_batch(&mut self, batch: Batch) {
        self.awaited = self.awaited.max(batch);
    }

    /// Makes the reply wait until all changes so far are durable.
    ///
    /// For a command that changes nothing because another client has just made the same change: that change
    /// must be durable before this client can rely on it.
    pub fn await_all_changes(&mut self) {
        let batch = self.pending_writes.last_entry_batch();
        self.await_batch(batch);
    }

    /// Makes the reply wait until the definition of an existing object is durable. `defined` is the batch of
    /// that definition.
    ///
    /// The reply does not wait for all changes: on a full disk the changes wait for space, but a query must
    /// not.
    pub fn await_defined(&mut self, defined: Batch) {
        if defined > self.pending_writes.durable() {
            self.await_batch(defined);
        }
    }
}
