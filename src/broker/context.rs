//! The things lent to the broker for one call: journal, messages, work.
//!
//! Why it exists: the journal and the messages belong to whoever runs the broker, who hands them on to the
//! store; and facts about one command alone are no state of the broker.
//!
//! Always true: a new context awaits no batch and declares for nobody.

use leveret_core::error::{Fault, ReplyCode};
use leveret_core::journal::{Batch, Journal};
use leveret_core::mem::Messages;

use super::quota::Declarer;

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

// The work of a command beyond what its size tells: bindings looked at, consumers passed over.
//
// The engine takes the units ([`Work::take`]) and ends a connection's turn when they are many; within one
// command there is a limit, so that no message can hold up all others by its routing.
//
// Always true: work that grows with several things at once (keys, their words, exchanges) is charged while
// it is done, not afterwards.

/// Octets whose reading, or copying, is as much work as one step.
const OCTETS_PER_UNIT: usize = 512;
/// Charges beyond this count as this many.
const CHARGE_MAX: usize = 1 << 24;

/// Units of work since they were last taken: steps that the size of a command does not tell, such as bindings
/// looked at, consumers passed over, targets. Most messages take one or none.
#[derive(Debug)]
pub struct Work {
    units: u32,
    /// The number of units beyond which the routing under way is refused.
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

    /// Charges what it takes to read or copy this many octets.
    #[inline]
    pub(crate) const fn charge_octets(&mut self, octets: usize) {
        self.charge(octets / OCTETS_PER_UNIT);
    }

    /// Takes the units charged since the last call.
    pub const fn take(&mut self) -> u32 {
        core::mem::replace(&mut self.units, 0)
    }

    /// Units charged since they were last taken.
    pub(crate) const fn units(&self) -> u32 {
        self.units
    }

    /// Limits the work from here on to this many more units.
    pub(crate) const fn limit(&mut self, units: u32) {
        self.units_max = self.units.saturating_add(units);
    }

    /// Lifts the limit of the work from here on.
    pub(crate) const fn lift_limit(&mut self) {
        self.units_max = u32::MAX;
    }

    /// Units that are left under the limit.
    pub(crate) const fn left(&self) -> usize {
        self.units_max.saturating_sub(self.units) as usize
    }

    /// Whether the work is still within its limit.
    ///
    /// # Errors
    /// 406 beyond the limit, for the message asks for too much work.
    pub(crate) fn check(&self) -> Result<(), Fault> {
        if self.units <= self.units_max {
            return Ok(());
        }
        Err(Fault::new(
            ReplyCode::PreconditionFailed,
            format_args!(
                "routing this takes too long with what is bound: use fewer CC and BCC keys, keys of fewer \
                 words, or smaller transactions"
            ),
        ))
    }
}
