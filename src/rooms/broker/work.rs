//! How much work a command was, beyond what its size tells: bindings looked at, consumers passed over.
//!
//! The engine takes the units ([`Work::take`]) and ends a peer's turn when they are many; within
//! one command there is a limit, so that no message can hold up all others by its routing.
//!
//! Always true: what grows with several things at once (keys, their words, exchanges) is charged while it
//! is done, not afterwards.

use crate::error::{Fault, ReplyCode};

/// Charges beyond this are as good as any number.
const CHARGE_MAX: usize = 1 << 24;

/// Units of work since they were last taken: steps that the size of what was asked does not tell, such as
/// bindings looked at, consumers passed over, targets. Most messages take one or none.
#[derive(Debug)]
pub struct Work {
    units: u32,
    /// Beyond these the routing under way is refused.
    units_max: u32,
}

impl Default for Work {
    fn default() -> Self {
        Self { units: 0, units_max: u32::MAX }
    }
}

impl Work {
    /// Counts so many units.
    #[inline]
    pub(crate) const fn charge(&mut self, units: usize) {
        let units = if units > CHARGE_MAX { CHARGE_MAX } else { units };
        self.units = self.units.saturating_add(units as u32);
    }

    /// What was charged since the last call.
    pub const fn take(&mut self) -> u32 {
        core::mem::replace(&mut self.units, 0)
    }

    /// Units since they were last taken, so far.
    pub(crate) const fn units(&self) -> u32 {
        self.units
    }

    /// From here on there may be so many units more.
    pub(crate) const fn limit(&mut self, units: u32) {
        self.units_max = self.units.saturating_add(units);
    }

    /// From here on there may be any number.
    pub(crate) const fn lift_limit(&mut self) {
        self.units_max = u32::MAX;
    }

    /// Units that are left under the limit.
    pub(crate) const fn left(&self) -> usize {
        self.units_max.saturating_sub(self.units) as usize
    }

    /// Whether what is under way is still within its limit.
    ///
    /// # Errors
    /// It is not: 406, for it is the message that asks for so much.
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
