//! Which message gets room, and which waits: the reserves, and what is set aside for a large message.
//!
//! Always true: who is refused is told which pool is full, and is let in when there is room for it again;
//! nobody is refused by asking.

use super::Messages;
use super::claim::{Claim, LARGE_PAGES_MIN};
use super::slot::{LAST_PART, MessageId, PoolFull, Share, half_reserve, last_part, last_slots};
use crate::mem::blocks::Blocks;

impl Messages {
    /// Whether ordinary publishers are being made to wait.
    pub const fn is_held(&self) -> bool {
        self.is_held
    }

    /// Gives ordinary publishers room again if use has fallen below the low mark (7/8 of what they may use, so
    /// that on and off are apart); says whether they have it.
    pub fn lift_hold(&mut self) -> bool {
        let slots = self.slots.max() - self.slots_reserve;
        let pages = self.pages_max - self.pages_reserve - self.set_aside(None);
        let (slots_low, pages_low) = (slots / 8 * 7, pages.saturating_sub(self.pages_kept) / 8 * 7);
        self.is_held &= self.slots.used() > slots_low || self.blocks.pages_used() > pages_low;
        !self.is_held
    }

    /// Whether an ordinary publisher would have room for a message of so many bytes; asking makes nobody wait.
    pub fn has_ordinary_room(&self, bytes: usize) -> bool {
        let pages = Blocks::pages_for(bytes);
        !self.is_held
            && self.slots.used() < self.slots.max() - self.slots_reserve
            && self.blocks.pages_used() + pages + self.pages_kept <= self.pages_max - self.pages_reserve
    }

    /// Whether a message may begin, with a page for its names or without.
    #[inline]
    pub(super) fn admit(&mut self, share: Share, pages: usize) -> Result<(), PoolFull> {
        let is_easy = self.claim.is_none()
            && self.slots.used() < self.slots_easy
            && self.blocks.pages_used() <= self.pages_easy
            && !self.is_held;
        if is_easy { Ok(()) } else { self.admit_by_share(share, pages) }
    }

    #[inline(never)]
    fn admit_by_share(&mut self, share: Share, pages: usize) -> Result<(), PoolFull> {
        if self.slots.used() >= self.slots_limit(share) {
            return Err(self.refuse(share, PoolFull::Messages));
        }
        if share == Share::Ordinary && self.is_held {
            return Err(self.held_by());
        }
        let admitted = self.admit_pages(share, pages, None);
        admitted.map_err(|full| self.refuse(share, full))
    }

    /// Of which pool more is taken: publishers that are held wait for that.
    #[cold]
    fn held_by(&self) -> PoolFull {
        let slots = self.slots.used() * self.pages_max;
        let pages = self.blocks.pages_used() * self.slots.max();
        if slots >= pages { PoolFull::Messages } else { PoolFull::Bodies }
    }

    fn slots_limit(&self, share: Share) -> usize {
        let most = self.slots.max();
        match share {
            Share::DeadLetter => most,
            Share::ReadBack => most - 1,
            Share::Ordinary => most - self.slots_reserve,
            Share::Transaction => most - half_reserve(self.slots_reserve, most),
            Share::Reserve => most.saturating_sub(last_slots(most)),
        }
    }

    /// Whether so many pages more may be taken; what makes room for others is not asked for here.
    #[inline]
    pub(super) fn admit_pages(
        &self,
        share: Share,
        pages: usize,
        asks: Option<MessageId>,
    ) -> Result<(), PoolFull> {
        let most = self.pages_max;
        let limit = match share {
            Share::ReadBack | Share::DeadLetter => most,
            Share::Ordinary => {
                (most - self.pages_reserve - self.set_aside(asks)).saturating_sub(self.pages_kept)
            }
            Share::Transaction => {
                (most - half_reserve(self.pages_reserve, most)).saturating_sub(self.pages_kept)
            }
            Share::Reserve => (most - last_part(most)).saturating_sub(self.pages_kept),
        };
        // Split pages with room may hold the tail of a chain; counting whole pages errs on the safe side,
        // but never refuses what is smaller than a page while a split page might still have room.
        let used = self.blocks.pages_used();
        let is_full = pages > 1 && used + pages > limit || used > limit;
        if is_full { Err(PoolFull::Bodies) } else { Ok(()) }
    }

    /// Only small messages make all ordinary publishers wait: for a large one, what is freed is set aside.
    pub(super) fn refuse(&mut self, share: Share, full: PoolFull) -> PoolFull {
        self.is_held |= share == Share::Ordinary;
        full
    }

    /// Pages set aside for a message that waits, as seen by another.
    pub(super) fn set_aside(&self, asks: Option<MessageId>) -> usize {
        let claim = self.claim.filter(|claim| Some(claim.id) != asks);
        claim.map_or(0, |claim| claim.set_aside(claim.pages_since, self.pages_freed))
    }

    /// Whether so many pages more may be assembled. An ordinary content that may not has a claim if nobody
    /// else has; one that no assembly share could ever hold alone is let through when nobody else assembles.
    pub(super) fn admit_assembly(
        &mut self,
        share: Share,
        pages: usize,
        asks: MessageId,
    ) -> Result<(), PoolFull> {
        let is_ordinary = share == Share::Ordinary;
        let claim = self.claim.filter(|claim| is_ordinary && claim.id != asks);
        let aside = claim.map_or(0, |claim| claim.set_aside(claim.assembly_since, self.assembly_left));
        let taken = self.assembly_pages + aside;
        if taken == 0 || taken + pages <= self.assembly_pages_max {
            return Ok(());
        }
        let left = self.assembly_left;
        if is_ordinary && let Some(claim) = self.claim_of(asks, pages) {
            claim.assembly_since.get_or_insert(left);
        }
        Err(PoolFull::Assembly)
    }

    /// Whether a large message waits for pages.
    pub(super) fn claims_pages(&self) -> bool {
        self.claim.is_some_and(|claim| claim.pages_since.is_some())
    }

    /// The number of the claim of a content that waits for others to be complete.
    pub fn awaits_assembly(&self) -> Option<u64> {
        self.claim.filter(|claim| claim.assembly_since.is_some()).map(|claim| claim.number)
    }

    /// Whether the message that waits with a claim would come in now.
    pub fn claim_fits(&self) -> bool {
        let most = self.pages_max - self.pages_reserve;
        let fits = |claim: Claim| self.blocks.pages_used() + claim.pages + self.pages_kept <= most;
        self.claim.is_some_and(|claim| claim.pages_since.is_some() && fits(claim))
    }

    /// A large message waits for pages: it has a claim if nobody else has. `false`: it is not a large one.
    pub(super) fn claim(&mut self, id: MessageId, pages: usize) -> bool {
        let is_large = pages > (self.pages_max / LAST_PART).max(LARGE_PAGES_MIN);
        let freed = self.pages_freed;
        if is_large && let Some(claim) = self.claim_of(id, pages) {
            claim.pages_since.get_or_insert(freed);
        }
        is_large
    }

    /// The message's own claim, made if nobody has one.
    fn claim_of(&mut self, id: MessageId, pages: usize) -> Option<&mut Claim> {
        if self.claim.is_none() {
            let number = self.claims;
            self.claims += 1;
            self.claim = Some(Claim { id, number, pages, pages_since: None, assembly_since: None });
        }
        self.claim.as_mut().filter(|claim| claim.id == id)
    }

    /// Ends the claim of a message that has its pages or is gone. What was set aside for it is room for others.
    pub(super) fn drop_claim(&mut self, id: MessageId) {
        let Some(claim) = self.claim.filter(|claim| claim.id == id) else { return };
        self.claim = None;
        let pages = claim.set_aside(claim.pages_since, self.pages_freed);
        let assembly = claim.set_aside(claim.assembly_since, self.assembly_left);
        self.releases += u64::from(pages + assembly > 0);
    }
}
