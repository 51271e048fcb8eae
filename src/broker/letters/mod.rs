//! Letters: messages that the broker itself sends on.
//!
//! Why it exists: a queue decides which message it gives up and why; where that goes is a matter of routing,
//! like a publish. So messages rejected, expired, over a limit, parked by a bridge, due after a delay or
//! copied for an operator go one way:
//!
//! ```text
//! queue: what stands first, reason ──→ letter written, routed, room found ──→ pushed to its queues ──→ taken out of its own
//! ```
//!
//! | file | what |
//! |---|---|
//! | `state` | what is borrowed for it, and the little that is kept |
//! | `write`, `death` | a dead letter; what it carries of why, when and from where |
//! | `parked` | what a bridge's other side does not take |
//! | `give_up` | what queues give up, in steps: what is rejected, what is too much, what has expired |
//! | `awaken` | what delayed exchanges keep wakes up |
//! | `copies`, `traced` | copies of what is published and delivered, for an operator; what they name |
//!
//! Always true: nothing leaves its queue before there is room for it where it goes, and both are one thing to
//! the log; without room a message stays, late but never lost.

mod awaken;
mod copies;
mod death;
mod give_up;
mod parked;
mod state;
mod traced;
mod write;

pub(super) use death::{Parking, Reason};
pub(super) use give_up::{Cleared, Turn};
pub(super) use state::{Letters, Post};
pub(super) use traced::{Firehose, TracedName};

pub use parked::{came_from, parked, unparked};
