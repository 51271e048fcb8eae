//! How much work a turn may cause, in steps of the broker.
//!
//! Always true: whatever is done for a peer counts, of whatever kind it is.

/// Steps of the broker for what is read in a turn: some milliseconds of work, where usual traffic takes none.
pub(super) const WORK_UNITS_PER_TURN: u32 = 50_000;
/// Steps that opening a record of TLS counts as, whatever is in it.
pub(super) const WORK_UNITS_PER_RECORD: u32 = 16;
