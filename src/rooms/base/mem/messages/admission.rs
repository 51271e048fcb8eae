//! Who is let in with a message, and who waits: what each virtual host and user has, what is kept for others,
//! what is set aside for a large one.
//!
//! Always true: who is refused is told which pool is full, and is let in when there is room for it again;
//! nobody is refused by asking.

use super::Messages;
use super::claim::{Claim, LARGE_PAGES_MIN};
use super::owners::{Kept, Owners};
use super::slot::{
    LAST_PART, MessageFlags, MessageId, Owner, PoolFull, Scarce, Sender, Share, half_reserve, last_part,
};
use crate::mem::blocks::{Blocks, PAGE_BYTES};

impl Messages {
    /// Bytes that a virtual host, or a user, costs.
    pub const OWNER_BYTES: usize = Owners::OWNER_BYTES;

    /// From now on the pools are divided among these virtual hosts, and among these users; one alone has all.
    pub fn divide_among(
        &mut self,
        vhosts: impl Iterator<Item = Owner> + Clone,
        users: impl Iterator<Item = Sender> + Clone,
    ) {
        if self.owners.note_present(vhosts.clone(), users.clone()) {
            self.count_again();
        }
        let pools = [
            self.slots.max() - self.slots_reserve,
            (self.pages_max - self.pages_reserve) * PAGE_BYTES,
            self.assembly_pages_max,
        ];
        self.owners.divide(pools, vhosts, users);
        // With fewer of them less is kept.
        self.releases += 1;
    }

    /// Counts what each owner has.
    fn count_again(&mut self) {
        // Who is still refused is held again; nobody is for what another in its place did.
        self.owners.clear();
        for slot in self.slots.taken_mut() {
            let (bytes, pages) = (slot.block_bytes().into(), slot.assembly_pages());
            let owner = self.owners.who_is_left_of(slot.owner());
            slot.set_owner(owner);
            self.owners.take(owner, 1, bytes, pages);
        }
    }

    // One owner alone has everything, so nothing is counted for it: these are for several.

    /// A message has begun, with its names.
    #[inline(never)]
    pub(super) fn count_begun(&mut self, id: MessageId) {
        let slot = &self.slots[id.index()];
        let is_less_kept = self.owners.take(slot.owner(), 1, slot.block_bytes().into(), 0);
        self.tell(id, is_less_kept, MessageFlags::NAMES_TOLD);
    }

    /// It has room for its content.
    #[inline(never)]
    pub(super) fn count_content(&mut self, id: MessageId) {
        let slot = &self.slots[id.index()];
        let bytes = slot.block_bytes() - slot.names_block_bytes();
        let is_less_kept = self.owners.take(slot.owner(), 0, bytes.into(), slot.assembly_pages());
        self.tell(id, is_less_kept, MessageFlags::CONTENT_TOLD);
    }

    /// What is not kept for the owner any more is room for others; `told` notes that this was said.
    fn tell(&mut self, id: MessageId, is_less_kept: bool, told: MessageFlags) {
        if is_less_kept {
            self.releases += 1;
            self.add_flags(id, told);
        }
    }

    /// It goes.
    #[inline(never)]
    pub(super) fn count_freed(&mut self, id: MessageId) {
        let slot = &self.slots[id.index()];
        self.owners.give_back(slot.owner(), 1, slot.block_bytes().into());
    }

    /// Whose memory a message takes.
    pub fn owner(&self, id: MessageId) -> Owner {
        self.slots[id.index()].owner()
    }

    /// Whether ordinary publishers of an owner are being made to wait.
    pub fn is_held(&self, owner: Owner) -> bool {
        self.owners.is_held(owner)
    }

    /// Lets an owner's ordinary publishers in again if use has fallen below the low mark (7/8 of what they
    /// may use, so that on and off are apart); says whether they are let in.
    pub fn lift_hold(&mut self, owner: Owner) -> bool {
        let slots = self.slots.max() - self.slots_reserve;
        let pages = self.pages_max - self.pages_reserve - self.set_aside(None);
        let slots_low = slots.saturating_sub(self.owners.slots_kept(owner).for_others as usize) / 8 * 7;
        let pages_low = pages.saturating_sub(self.kept_from(owner, 1)) / 8 * 7;
        let is_low = self.slots.used() <= slots_low && self.blocks.pages_used() <= pages_low;
        if is_low || self.is_well_within_part(owner) {
            self.owners.set_held(owner, false);
        }
        !self.is_held(owner)
    }

    /// Whether a virtual host or a user has less than 7/8 of its parts, so that it is let in whatever others
    /// have.
    fn is_well_within_part(&self, owner: Owner) -> bool {
        self.owners.is_well_within_part(owner)
            && self.slots.used() < self.slots_limit(Share::Ordinary, owner)
            && self.admit_pages(Share::Ordinary, 1, None, owner).is_ok()
    }

    /// Whether an ordinary publisher would be let in with a message of so many bytes; nobody is refused by
    /// asking.
    pub fn has_ordinary_room(&self, owner: Owner, bytes: usize) -> bool {
        let pages = Blocks::pages_for(bytes);
        let slots = self.slots.max() - self.slots_reserve;
        let most = self.pages_max - self.pages_reserve;
        !self.is_held(owner)
            && self.slots.used() + (self.owners.slots_kept(owner).for_others as usize) < slots
            && self.blocks.pages_used() + pages + self.kept_from(owner, pages) <= most
    }

    /// Pages kept from an owner that wants so many: for others, or to read back. The larger of both, for with
    /// both a large message might never come in.
    pub(super) fn kept_from(&self, owner: Owner, pages: usize) -> usize {
        let for_others = if self.owners.is_divided() { self.owners.pages_kept(owner, pages) } else { 0 };
        for_others.max(self.pages_kept)
    }

    /// For whom a pool had no room that an owner was not let into.
    #[cold]
    pub fn who_is_short(&self, full: PoolFull, owner: Owner) -> Scarce {
        let is_used_up = match full {
            PoolFull::Messages => self.slots.used() >= self.slots.max() - self.slots_reserve,
            PoolFull::Bodies => self.blocks.pages_used() >= self.pages_max - self.pages_reserve,
            PoolFull::Assembly => true,
        };
        if is_used_up || !self.owners.is_divided() {
            Scarce::ForAll
        } else {
            self.owners.has_its_part(full, owner)
        }
    }

    /// Whether a message may begin, with a page for its names or without.
    #[inline]
    pub(super) fn admit(&mut self, share: Share, pages: usize, owner: Owner) -> Result<(), PoolFull> {
        let is_easy = !self.owners.is_divided()
            && self.claim.is_none()
            && self.slots.used() < self.slots_easy
            && self.blocks.pages_used() <= self.pages_easy
            && !self.owners.is_held(owner);
        if is_easy { Ok(()) } else { self.admit_by_share(share, pages, owner) }
    }

    #[inline(never)]
    fn admit_by_share(&mut self, share: Share, pages: usize, owner: Owner) -> Result<(), PoolFull> {
        if self.slots.used() >= self.slots_limit(share, owner) {
            return Err(self.refuse(share, PoolFull::Messages, owner));
        }
        let is_own = || self.owners.is_divided() && self.owners.slots_kept(owner).is_own;
        if share == Share::Ordinary && self.is_held(owner) && !is_own() {
            return Err(self.held_by());
        }
        let admitted = self.admit_pages(share, pages, None, owner);
        admitted.map_err(|full| self.refuse(share, full, owner))
    }

    /// Of which pool more is taken: that is what whoever is held waits for.
    #[cold]
    fn held_by(&self) -> PoolFull {
        let slots = self.slots.used() * self.pages_max;
        let pages = self.blocks.pages_used() * self.slots.max();
        if slots >= pages { PoolFull::Messages } else { PoolFull::Bodies }
    }

    fn slots_limit(&self, share: Share, owner: Owner) -> usize {
        let most = self.slots.max();
        let of_reserve = most - last_part(most);
        let limit = match share {
            Share::ReadBack => return most,
            Share::Ordinary => most - self.slots_reserve,
            Share::Transaction => most - half_reserve(self.slots_reserve, most),
            Share::Reserve => of_reserve,
        };
        if !self.owners.is_divided() {
            return limit;
        }
        match self.owners.slots_kept(owner) {
            Kept { is_own: true, .. } => of_reserve,
            Kept { for_others, .. } => limit.saturating_sub(for_others as usize),
        }
    }

    /// Whether so many pages more may be taken; what makes room for others is not asked for here.
    #[inline]
    pub(super) fn admit_pages(
        &self,
        share: Share,
        pages: usize,
        asks: Option<MessageId>,
        owner: Owner,
    ) -> Result<(), PoolFull> {
        let most = self.pages_max;
        let of_reserve = most - last_part(most);
        let limit = match share {
            Share::ReadBack => most,
            Share::Ordinary => most - self.pages_reserve - self.set_aside(asks),
            Share::Transaction => most - half_reserve(self.pages_reserve, most),
            Share::Reserve => of_reserve,
        };
        let limit = match share {
            Share::ReadBack => limit,
            _ if self.owners.is_divided() && self.owners.bytes_kept(owner, pages).is_own => {
                of_reserve.saturating_sub(self.pages_kept)
            }
            _ => limit.saturating_sub(self.kept_from(owner, pages)),
        };
        // Split pages with room may hold the tail of a chain; counting whole pages errs on the safe side,
        // but never refuses what is smaller than a page while a split page might still have room.
        let used = self.blocks.pages_used();
        let is_full = pages > 1 && used + pages > limit || used > limit;
        if is_full { Err(PoolFull::Bodies) } else { Ok(()) }
    }

    /// Only small ones make everybody of their owner wait: for a large one, what is freed is set aside.
    pub(super) fn refuse(&mut self, share: Share, full: PoolFull, owner: Owner) -> PoolFull {
        if share == Share::Ordinary {
            self.owners.set_held(owner, true);
        }
        full
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
