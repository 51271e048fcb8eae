//! Every cap in one place, and the sum of what they cost.
//!
//! A board has so much memory and no more, so the broker's pools are sized here once, added up line by
//! line, printed at start and by `leveret check`, and refused when the sum is above `memory_limit`.
//!
//! Always true: whatever grows with what peers do has a field here and a line in [`Limits::memory_table`].
//! A field's name is its configuration key.

mod check;
mod keys;
mod memory;

pub use check::{LimitsError, SEGMENTS_MIN};
pub use keys::{FRAME_BYTES_MIN, Limits};
pub use memory::{
    BRIDGE_RULES_MAX, CONTROL_CLIENTS_MAX, HELPER_STACK_BYTES, LISTED_ROW_BYTES, LOG_RING_BYTES,
    MANAGEMENT_CLIENTS_MOST, Megabytes, MemoryLine, MemoryTable, OUTPUT_BYTES_MIN, RecordSizes, grouped,
};
