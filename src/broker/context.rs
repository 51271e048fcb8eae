//! The state that the broker borrows for one call: pending writes, messages, work.
//!
//! The pending writes and the messages belong to the caller of the broker, which passes them to the storage
//! too. State of only one command is kept here and not in the broker.

use leveret_core::batch::Batch;
use leveret_core::error::{Fault, ReplyCode};
use leveret_core::mem::Messages;
use leveret_storage::PendingWrites;

use super::quota::Declarer;

/// The state that a call of the broker borrows, and the batch that must be durable before the reply to the
/// command is sent. A new context waits for no batch and has no declarer.
#[derive(Debug)]
pub struct Context<'a> {
    pub(crate) pending_writes: &'a mut PendingWrites,
    pub(crate) messages: &'a mut Messages,
    pub(crate) work: &'a mut Work,
    /// The batch that must be durable before the reply is sent.
    pub(crate) awaited: Batch,
    /// The connection in whose share the objects that the command declares count; `None` at start and for
    /// operators.
    pub(crate) declarer: Option<Declarer>,
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

    /// Returns the batch that must be durable before the reply to the command is sent.
    #[inline]
    pub const fn awaited(&self) -> Batch {
        self.awaited
    }

    /// Returns the pending-write buffer.
    pub const fn pending_writes_mut(&mut self) -> &mut PendingWrites {
        self.pending_writes
    }

    /// Returns all messages in memory.
    pub const fn messages_mut(&mut self) -> &mut Messages {
        self.messages
    }

    /// Makes the reply wait for this batch too.
    pub(crate) fn await_batch(&mut self, batch: Batch) {
        self.awaited = self.awaited.max(batch);
    }

    /// Makes the reply wait until all changes so far are durable.
    ///
    /// For a command that changes nothing because another client has just made the same change: that change
    /// must be durable before this client can rely on it.
    pub(crate) fn await_all_changes(&mut self) {
        let batch = self.pending_writes.last_entry_batch();
        self.await_batch(batch);
    }

    /// Makes the reply wait until the definition of an existing object is durable. `defined` is the batch of
    /// that definition.
    ///
    /// The reply does not wait for all changes: on a full disk the changes wait for space, but a query must
    /// not.
    pub(crate) fn await_defined(&mut self, defined: Batch) {
        if defined > self.pending_writes.durable() {
            self.await_batch(defined);
        }
    }
}

/// Reading or copying this many octets costs one unit of work.
const OCTETS_PER_UNIT: usize = 512;
/// Maximum number of units that one charge adds.
const CHARGE_MAX: usize = 1 << 24;

/// Counts units of work since the last [`Work::take`]: steps whose number does not follow from the size of a
/// command, such as bindings examined, consumers skipped and target queues. Most messages take one unit or
/// none.
///
/// The event loop ends a connection's turn when its commands took many units. The routing of one message has
/// a limit of units, so that it cannot delay all other clients. Work that is a product of several numbers
/// (keys, their words, exchanges) is charged while it is done, so that the limit stops it early.
#[derive(Debug)]
pub struct Work {
    units: u32,
    /// The current routing is refused when `units` exceeds this value.
    units_max: u32,
}

impl Default for Work {
    fn default() -> Self {
        Self { units: 0, units_max: u32::MAX }
    }
}

impl Work {
    /// Charges units of work.
    #[inline]
    pub(crate) const fn charge(&mut self, units: usize) {
        let units = if units > CHARGE_MAX { CHARGE_MAX } else { units };
        self.units = self.units.saturating_add(units as u32);
    }

    /// Charges the cost of reading or copying this many octets.
    #[inline]
    pub(crate) const fn charge_octets(&mut self, octets: usize) {
        self.charge(octets / OCTETS_PER_UNIT);
    }

    /// Returns the units charged since the last call.
    pub const fn take(&mut self) -> u32 {
        core::mem::replace(&mut self.units, 0)
    }

    /// Returns the units charged since they were last taken.
    pub(crate) const fn units(&self) -> u32 {
        self.units
    }

    /// Limits the work from here on to this many more units.
    pub(crate) const fn limit(&mut self, units: u32) {
        self.units_max = self.units.saturating_add(units);
    }

    /// Removes the limit of the work from here on.
    pub(crate) const fn lift_limit(&mut self) {
        self.units_max = u32::MAX;
    }

    /// Returns the number of units left under the limit.
    pub(crate) const fn left(&self) -> usize {
        self.units_max.saturating_sub(self.units) as usize
    }

    /// Checks whether the work is still within its limit.
    ///
    /// # Errors
    /// 406: the work exceeds its limit.
    pub(crate) fn check(&self) -> Result<(), Fault> {
        if self.units <= self.units_max {
            return Ok(());
        }
        Err(Fault::new(
            ReplyCode::PreconditionFailed,
            format_args!(
                "routing this takes too long with the existing bindings: use fewer CC and BCC keys, keys with \
                 fewer words, or smaller transactions"
            ),
        ))
    }
}
