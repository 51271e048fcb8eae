//! What the broker borrows for one call: pending writes, messages, work.
//!
//! The pending writes and the messages belong to the caller of the broker, which passes them on to the storage.
//! Facts about a single command are not state of the broker.

use leveret_core::error::{Fault, ReplyCode};
use leveret_core::mem::Messages;
use leveret_core::pending_writes::{Batch, PendingWrites};

use super::quota::Declarer;

/// What a call of the broker borrows, and the batch that its answer must wait for. A new context waits for no
/// batch and has no declarer.
#[derive(Debug)]
pub struct Context<'a> {
    pub(crate) pending_writes: &'a mut PendingWrites,
    pub(crate) messages: &'a mut Messages,
    pub(crate) work: &'a mut Work,
    /// The batch that the answer to the command must wait for.
    pub(crate) awaited: Batch,
    /// The connection in whose share the command declares things; `None` at start.
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

    /// Returns the batch that must be durable before the command is answered.
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

    /// Makes the answer wait for this batch too.
    pub(crate) fn await_batch(&mut self, batch: Batch) {
        self.awaited = self.awaited.max(batch);
    }

    /// Makes the answer wait for all changes so far.
    ///
    /// What the client asked for is already the case, because of another client's change. That change must be
    /// durable before this client relies on it.
    pub(crate) fn await_all_changes(&mut self) {
        let batch = self.pending_writes.last_entry_batch();
        self.await_batch(batch);
    }

    /// Makes the answer wait until a definition is durable that the client may rely on.
    ///
    /// It does not wait for all changes: on a full disk these wait for space, and a mere query must not.
    pub(crate) fn await_defined(&mut self, defined: Batch) {
        if defined > self.pending_writes.durable() {
            self.await_batch(defined);
        }
    }
}

/// Reading or copying this many octets costs one unit of work.
const OCTETS_PER_UNIT: usize = 512;
/// A larger charge counts as this many units.
const CHARGE_MAX: usize = 1 << 24;

/// Units of work since they were last taken: steps that do not follow from the size of a command, such as
/// bindings examined, consumers skipped, and targets. Most messages take one or none.
///
/// The event loop takes the units ([`Work::take`]) and ends a connection's turn when they are many. Within
/// one command there is a limit, so that the routing of one message cannot delay all others. Work that grows
/// with several things at once (keys, their words, exchanges) is charged while it is done, not afterwards.
#[derive(Debug)]
pub struct Work {
    units: u32,
    /// Number of units beyond which the current routing is refused.
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
    /// 406 beyond the limit, because the message requires too much work.
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
