//! The claim of a message that waits for room: of a large one that waits for pages, of any that waits for the
//! assembly share.
//!
//! Why it exists: a message of many pages may have to wait long, and whoever comes after it with a small one
//! should not wait for its sake; but if all of them went first, it would wait for ever.
//!
//! Always true: what is free when a message begins to wait is for others to use; what is freed from then on
//! is set aside for it, as much as it needs; so it comes in after the pool was turned over once at most, if
//! it is turned over at all (for the assembly share `net` sees to that). One message has a claim at a time,
//! and the claim goes with the message.

use super::{LAST_PART, MessageId, Messages, PoolFull, Share};

/// What is no larger than this, 64 KiB, is never large.
const LARGE_PAGES_MIN: usize = 16;

/// A message that waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Claim {
    id: MessageId,
    /// How many claims there were before.
    number: u64,
    pages: usize,
    /// What the count of freed pages was when it began to wait for some.
    pages_since: Option<u64>,
    /// The same for pages that left the assembly share.
    assembly_since: Option<u64>,
}

impl Claim {
    fn set_aside(&self, since: Option<u64>, freed: u64) -> usize {
        since.map_or(0, |since| self.pages.min((freed - since) as usize))
    }
}

impl Messages {
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
        let owner = self.owner(asks);
        let fits = taken == 0 || taken + pages <= self.assembly_pages_max;
        if fits || self.owners.may_assemble(owner, pages) {
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
        let fits = |claim: Claim| {
            let kept = self.kept_from(self.owner(claim.id), claim.pages);
            self.blocks.pages_used() + claim.pages + kept <= most
        };
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

    /// The message has its pages, or is gone.
    pub(super) fn drop_claim(&mut self, id: MessageId) {
        if self.claim.is_some_and(|claim| claim.id == id) {
            self.claim = None;
        }
    }
}
