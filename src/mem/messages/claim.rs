//! The claim of a large message that waits for room.
//!
//! Why it exists: a message of many pages may have to wait long, and whoever comes after it with a small one
//! should not wait for its sake; but if all of them went first, it would wait for ever.
//!
//! Always true: what is free when a large message begins to wait is for others to use; what is freed from
//! then on is set aside for it, as much as it needs; so it comes in after the pool was turned over once at
//! most, if it is turned over at all. One message has a claim at a time, and the claim goes with the message.

use super::{LAST_PART, MessageId, Messages};

/// What is no larger than this, 64 KiB, is never large.
const LARGE_PAGES_MIN: usize = 16;

/// A large message that waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Claim {
    id: MessageId,
    pages: usize,
    /// What the count of freed pages was when it began to wait.
    since: u64,
}

impl Messages {
    /// Pages set aside for a message that waits, as seen by another.
    pub(super) fn set_aside(&self, asks: Option<MessageId>) -> usize {
        match self.claim {
            Some(claim) if Some(claim.id) != asks => {
                claim.pages.min((self.pages_freed - claim.since) as usize)
            }
            _ => 0,
        }
    }

    /// Whether the message that waits with a claim would come in now.
    pub fn claim_fits(&self) -> bool {
        let most = self.pages_max - self.pages_reserve;
        self.claim.is_some_and(|claim| self.blocks.pages_used() + claim.pages <= most)
    }

    /// A large message waits for pages: it has a claim if nobody else has. `false`: it is not a large one.
    pub(super) fn claim(&mut self, id: MessageId, pages: usize) -> bool {
        let is_large = pages > (self.pages_max / LAST_PART).max(LARGE_PAGES_MIN);
        if is_large && self.claim.is_none() {
            self.claim = Some(Claim { id, pages, since: self.pages_freed });
        }
        is_large
    }

    /// The message has its pages, or is gone.
    pub(super) fn drop_claim(&mut self, id: MessageId) {
        if self.claim.is_some_and(|claim| claim.id == id) {
            self.claim = None;
        }
    }
}
