//! Recovery: what a start found that it could not put back as it was.
//!
//! Why it exists: a start under lower limits, or after damage, leaves definitions without room and messages
//! without a definition; neither is to be lost, or taken for something else.
//!
//! | file | what |
//! |---|---|
//! | `left_out` | exchanges and queues that the store has and the start did not declare again |
//! | `orphans` | messages of whose queue no definition is left |
//! | `state` | both, and who may declare, adopt or delete them |
//!
//! Always true: an exchange or queue that was left out keeps its name in the store until it is deleted or
//! restored.

mod left_out;
mod orphans;
mod state;
#[cfg(test)]
mod tests;

pub(super) use left_out::LeftOut;
pub(super) use orphans::ORPHANS_BYTES;
pub(super) use state::key_of;

pub use orphans::Orphan;
pub use state::Recovery;
