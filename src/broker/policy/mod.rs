//! Policy: policies, and what they and arguments say together.
//!
//! Why it exists: code that acts on a limit asks for the one that counts, and need not know where it came
//! from; and which queues a policy applies to, and which have still to hear of a change, is known here alone.
//!
//! | file | what |
//! |---|---|
//! | `records` | policies as records, and which of them applies |
//! | `keys` | what may stand in a definition |
//! | `terms` | three tables put together |
//! | `telling` | how far a change has been told |
//! | `views` | a policy as somebody says it, or sees it |
//! | `state` | all policies: set, cleared, chosen, told |
//!
//! Always true: of two policies of one kind that match, the one with the higher priority applies; a cleared
//! policy applies to nothing new, and has its place until the last queue that it applied to has heard of
//! that; bytes of patterns are counted with those of permissions (`PatternBytes`).

mod keys;
mod records;
mod state;
mod telling;
mod terms;
#[cfg(test)]
mod tests;
mod views;

pub(super) use records::{Applied, Subject};
pub(super) use state::Policies;
pub(super) use telling::Listener;
pub(super) use terms::Terms;

pub use views::{AppliedView, ApplyTo, NewPolicy, PolicyKind, PolicyView};
