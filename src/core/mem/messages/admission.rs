//! Admission of messages to the pools: which message gets memory, and which one waits.
//!
//! # Invariants
//! - A refusal names the full pool. The publisher is admitted when that pool has capacity again.
//! - A query changes nothing: it makes no publisher wait.

use super::Messages;
use super::slot::{
    MessageId, PoolFull, READ_BACK_PART, Share, non_transaction_part, read_back_part, read_back_slots,
};
use crate::mem::blocks::Blocks;

/// Messages of at most this many pages (64 KiB) are never large.
pub(super) const LARGE_PAGES_MIN: usize = 16;

/// The claim of a message that waits for memory: a large one for pages, any message for the assembly share.
///
/// A message of many pages may have to wait long. Small messages that come later should not wait because of it. But
/// if all of them were admitted first, it would wait forever. So pages that are free when it begins to wait stay
/// available to others. Pages that are freed from then on are reserved for it, up to the number it needs.
///
/// # Invariants
/// - The message is admitted after the pool was turned over once at most, provided that it is turned over. For the
///   assembly share the server ensures that.
/// - At most one message has a claim, and the claim ends with the message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Claim {
    pub(super) id: MessageId,
    /// The number of claims before it.
    pub(super) number: u64,
    /// Number of pages that it needs.
    pub(super) pages: usize,
    /// The count of freed pages when it began to wait for pages.
    pub(super) pages_since: Option<u64>,
    /// The count of pages that left the assembly share when it began to wait for that.
    pub(super) assembly_since: Option<u64>,
}

impl Claim {
    /// Returns how many of the pages freed since then are reserved for it.
    pub(super) fn claimed_pages(&self, since: Option<u64>, freed: u64) -> usize {
        since.map_or(0, |since| self.pages.min((freed - since) as usize))
    }
}

impl Messages {
    /// Returns whether ordinary publishers have to wait.
    pub const fn is_held(&self) -> bool {
        self.is_held
    }

    /// Ends the wait of ordinary publishers if use has fallen below the low mark. Returns whether they may publish.
    ///
    /// The low mark is 7/8 of their share, so that the state does not change with every message.
    pub fn lift_hold(&mut self) -> bool {
        let slots = self.slots.max() - self.slots_reserve;
        let pages = self.pages_max - self.pages_reserve - self.claimed_pages(None);
        let (slots_low, pages_low) = (slots / 8 * 7, pages.saturating_sub(self.read_back_pages) / 8 * 7);
        self.is_held &= self.slots.used() > slots_low || self.blocks.pages_used() > pages_low;
        !self.is_held
    }

    /// Returns whether an ordinary publisher would get memory for a message of `bytes`.
    pub fn has_ordinary_room(&self, bytes: usize) -> bool {
        let pages = Blocks::pages_for(bytes);
        !self.is_held
            && self.slots.used() < self.slots.max() - self.slots_reserve
            && self.blocks.pages_used() + pages + self.read_back_pages <= self.pages_max - self.pages_reserve
    }

    /// Checks whether a message may begin; its names take `pages` (0 or 1).
    #[inline]
    pub(super) fn admit(&mut self, share: Share, pages: usize) -> Result<(), PoolFull> {
        let is_unchecked = self.claim.is_none()
            && self.slots.used() < self.slots_unchecked_max
            && self.blocks.pages_used() <= self.pages_unchecked_max
            && !self.is_held;
        if is_unchecked { Ok(()) } else { self.admit_by_share(share, pages) }
    }

    /// Checks whether a message of this share may begin.
    #[inline(never)]
    fn admit_by_share(&mut self, share: Share, pages: usize) -> Result<(), PoolFull> {
        if self.slots.used() >= self.slots_limit(share) {
            return Err(self.refuse(share, PoolFull::Messages));
        }
        if share == Share::Ordinary && self.is_held {
            return Err(self.fullest_pool());
        }
        let admitted = self.admit_pages(share, pages, None);
        admitted.map_err(|full| self.refuse(share, full))
    }

    /// Returns the pool with the higher use, relative to its size: held publishers wait for that one.
    #[cold]
    fn fullest_pool(&self) -> PoolFull {
        let slots = self.slots.used() * self.pages_max;
        let pages = self.blocks.pages_used() * self.slots.max();
        if slots >= pages { PoolFull::Messages } else { PoolFull::Bodies }
    }

    /// Returns the number of slots that messages of this share may use.
    fn slots_limit(&self, share: Share) -> usize {
        let slots_max = self.slots.max();
        match share {
            Share::DeadLetter => slots_max,
            Share::ReadBack => slots_max - 1,
            Share::Ordinary => slots_max - self.slots_reserve,
            Share::Transaction => slots_max - non_transaction_part(self.slots_reserve, slots_max),
            Share::Reserve => slots_max.saturating_sub(read_back_slots(slots_max)),
        }
    }

    /// Checks whether `pages` more may be taken, without creating a claim or holding publishers.
    #[inline]
    pub(super) fn admit_pages(
        &self,
        share: Share,
        pages: usize,
        requester: Option<MessageId>,
    ) -> Result<(), PoolFull> {
        let pages_max = self.pages_max;
        let limit = match share {
            Share::ReadBack | Share::DeadLetter => pages_max,
            Share::Ordinary => (pages_max - self.pages_reserve - self.claimed_pages(requester))
                .saturating_sub(self.read_back_pages),
            Share::Transaction => (pages_max - non_transaction_part(self.pages_reserve, pages_max))
                .saturating_sub(self.read_back_pages),
            Share::Reserve => (pages_max - read_back_part(pages_max)).saturating_sub(self.read_back_pages),
        };
        // Split pages may have units left for the end of a chain. Counting whole pages is conservative. But content
        // smaller than a page is not refused while a split page might still have units.
        let used = self.blocks.pages_used();
        let is_full = pages > 1 && used + pages > limit || used > limit;
        if is_full { Err(PoolFull::Bodies) } else { Ok(()) }
    }

    /// Holds all ordinary publishers if one was refused. Large messages do not come here: they get a claim instead.
    pub(super) fn refuse(&mut self, share: Share, full: PoolFull) -> PoolFull {
        self.is_held |= share == Share::Ordinary;
        full
    }

    /// Returns the pages that other messages than `requester` may not take because a waiting message has claimed them.
    pub(super) fn claimed_pages(&self, requester: Option<MessageId>) -> usize {
        let claim = self.claim.filter(|claim| Some(claim.id) != requester);
        claim.map_or(0, |claim| claim.claimed_pages(claim.pages_since, self.pages_freed))
    }

    /// Checks whether a content of `pages` may be assembled now.
    ///
    /// A refused ordinary content gets the claim, if no other message has it. Content larger than the whole assembly
    /// share is admitted while no other content is incomplete.
    pub(super) fn admit_assembly(
        &mut self,
        share: Share,
        pages: usize,
        requester: MessageId,
    ) -> Result<(), PoolFull> {
        let is_ordinary = share == Share::Ordinary;
        let claim = self.claim.filter(|claim| is_ordinary && claim.id != requester);
        let reserved = claim.map_or(0, |claim| claim.claimed_pages(claim.assembly_since, self.assembly_left));
        let taken = self.assembly_pages + reserved;
        if taken == 0 || taken + pages <= self.assembly_pages_max {
            return Ok(());
        }
        let left = self.assembly_left;
        if is_ordinary && let Some(claim) = self.claim_of(requester, pages) {
            claim.assembly_since.get_or_insert(left);
        }
        Err(PoolFull::Assembly)
    }

    /// Returns whether a large message waits for pages.
    pub(super) fn claims_pages(&self) -> bool {
        self.claim.is_some_and(|claim| claim.pages_since.is_some())
    }

    /// Returns the number of the claim of a content that waits until others are complete.
    pub fn awaits_assembly(&self) -> Option<u64> {
        self.claim.filter(|claim| claim.assembly_since.is_some()).map(|claim| claim.number)
    }

    /// Returns whether the message with the claim would be admitted now.
    pub fn claim_fits(&self) -> bool {
        let pages_max = self.pages_max - self.pages_reserve;
        let fits = |claim: Claim| self.blocks.pages_used() + claim.pages + self.read_back_pages <= pages_max;
        self.claim.is_some_and(|claim| claim.pages_since.is_some() && fits(claim))
    }

    /// Claims pages for a message that waits, if no other message has a claim. Returns whether the message is large.
    pub(super) fn claim(&mut self, id: MessageId, pages: usize) -> bool {
        let is_large = pages > (self.pages_max / READ_BACK_PART).max(LARGE_PAGES_MIN);
        let freed = self.pages_freed;
        if is_large && let Some(claim) = self.claim_of(id, pages) {
            claim.pages_since.get_or_insert(freed);
        }
        is_large
    }

    /// Returns the claim of this message. Creates it if no message has one.
    fn claim_of(&mut self, id: MessageId, pages: usize) -> Option<&mut Claim> {
        if self.claim.is_none() {
            let number = self.claims;
            self.claims += 1;
            self.claim = Some(Claim { id, number, pages, pages_since: None, assembly_since: None });
        }
        self.claim.as_mut().filter(|claim| claim.id == id)
    }

    /// Ends the claim of a message that has its pages or is gone. Its reserved pages are free for others again.
    pub(super) fn drop_claim(&mut self, id: MessageId) {
        let Some(claim) = self.claim.filter(|claim| claim.id == id) else { return };
        self.claim = None;
        let pages = claim.claimed_pages(claim.pages_since, self.pages_freed);
        let assembly = claim.claimed_pages(claim.assembly_since, self.assembly_left);
        self.releases += u64::from(pages + assembly > 0);
    }
}
