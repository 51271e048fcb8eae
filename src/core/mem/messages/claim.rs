//! The claim of a message that waits for room: of a large one that waits for pages, of any that waits for the
//! assembly share.
//!
//! Why it exists: a message of many pages may have to wait long, and whoever comes after it with a small one
//! should not wait for its sake; but if all of them went first, it would wait for ever.
//!
//! Always true: what is free when a message begins to wait is for others to use; what is freed from then on
//! is set aside for it, as much as it needs; so it comes in after the pool was turned over once at most, if
//! it is turned over at all (for the assembly share `engine` sees to that). One message has a claim at a
//! time, and the claim goes with the message.

use super::slot::MessageId;

/// What is no larger than this, 64 KiB, is never large.
pub(super) const LARGE_PAGES_MIN: usize = 16;

/// A message that waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Claim {
    pub(super) id: MessageId,
    /// How many claims there were before.
    pub(super) number: u64,
    pub(super) pages: usize,
    /// What the count of freed pages was when it began to wait for some.
    pub(super) pages_since: Option<u64>,
    /// The same for pages that left the assembly share.
    pub(super) assembly_since: Option<u64>,
}

impl Claim {
    /// Pages that are set aside for it, of those freed since then.
    pub(super) fn set_aside(&self, since: Option<u64>, freed: u64) -> usize {
        since.map_or(0, |since| self.pages.min((freed - since) as usize))
    }
}
