//! The work of a command beyond what its size tells: bindings looked at, consumers passed over.
//!
//! The engine takes the units ([`Work::take`]) and ends a connection's turn when they are many; within one
//! command there is a limit, so that no message can hold up all others by its routing.
//!
//! Always true: work that grows with several things at once (keys, their words, exchanges) is charged while
//! it is done, not afterwards.

use leveret_core::error::{Fault, ReplyCode};

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
