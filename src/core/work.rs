//! Counts the work of commands, and limits that of one routing or one `tx.commit`.

use crate::error::{Fault, ReplyCode};

/// Reading or copying this many octets costs one unit of work.
const OCTETS_PER_UNIT: usize = 512;
/// Maximum number of units that one charge adds.
const CHARGE_MAX: usize = 1 << 24;

/// Counts units of work since the last [`Work::take`]. These are steps whose number does not follow from the size of a
/// command: bindings examined, consumers skipped, target queues, and large reads or copies. Most messages take one unit or
/// none.
///
/// The event loop ends a connection's turn when its commands took many units. The routing of one message has
/// a limit of units, so that it cannot delay all other clients. Work that is a product of several numbers
/// (keys, their words, exchanges) is charged while it is done, so that the limit stops it early.
#[derive(Debug)]
pub struct Work {
    units: u32,
    /// The current routing or `tx.commit` is refused when `units` exceeds this value.
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
    pub const fn charge(&mut self, units: usize) {
        let units = if units > CHARGE_MAX { CHARGE_MAX } else { units };
        self.units = self.units.saturating_add(units as u32);
    }

    /// Charges the cost of reading or copying this many octets.
    #[inline]
    pub const fn charge_octets(&mut self, octets: usize) {
        self.charge(octets / OCTETS_PER_UNIT);
    }

    /// Returns the units charged since the last call.
    pub const fn take(&mut self) -> u32 {
        core::mem::replace(&mut self.units, 0)
    }

    /// Returns the units charged since they were last taken.
    pub const fn units(&self) -> u32 {
        self.units
    }

    /// Limits the work from here on to this many more units.
    pub const fn limit(&mut self, units: u32) {
        self.units_max = self.units.saturating_add(units);
    }

    /// Removes the limit of the work from here on.
    pub const fn lift_limit(&mut self) {
        self.units_max = u32::MAX;
    }

    /// Returns the number of units left under the limit.
    pub const fn left(&self) -> usize {
        self.units_max.saturating_sub(self.units) as usize
    }

    /// Checks whether the work is still within its limit.
    ///
    /// # Errors
    /// 406: the work exceeds its limit.
    pub fn check(&self) -> Result<(), Fault> {
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
