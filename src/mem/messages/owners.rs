//! Whose memory messages take: a virtual host's, from their first octet until the last holder lets go.
//!
//! Why it exists: one virtual host that floods, or whose consumers settle nothing, should make its own
//! publishers wait and not those of the others.
//!
//! Always true: with several owners, what each has is the sum over its messages; one alone has everything,
//! and nothing is counted for it; slots, bytes of blocks and the share for incomplete contents are each
//! divided among the owners there are; who is within its part is let in whenever there is memory at all, so
//! neither a hold nor a claim of another stops it.

use super::{MessageId, Messages, PAGE_BYTES, PoolFull, Share, Slot};
use crate::mem::Division;
use crate::mem::blocks::Blocks;

/// Whose memory it is: the virtual host in this place.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Owner(u16);

impl Owner {
    /// The most owners there can be.
    pub const MAX: usize = u16::MAX as usize;

    /// The owner in place `index`, below [`Self::MAX`].
    pub const fn from_index(index: usize) -> Self {
        debug_assert!(index < Self::MAX, "limits allows no more virtual hosts");
        Self(index as u16)
    }

    pub(in crate::mem) const fn index(self) -> usize {
        self.0 as usize
    }

    pub(super) const fn number(self) -> u16 {
        self.0
    }
}

/// Where the memory of a message comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Draw {
    /// Which part of the pools may be used.
    pub share: Share,
    /// Who is to have it.
    pub owner: Owner,
}

impl From<Share> for Draw {
    /// For the first owner, who usually is the only one.
    fn from(share: Share) -> Self {
        Self { share, owner: Owner::default() }
    }
}

/// What one owner has.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    slots: u64,
    /// Bytes of blocks.
    bytes: u64,
    /// Pages of incomplete contents.
    assembly_pages: u64,
    /// A part of the pools is kept for it.
    has_part: bool,
    /// An ordinary publisher of it was refused; all of them wait until that is lifted.
    held: bool,
}

/// What owners have, and what is kept for each.
#[derive(Debug)]
pub(super) struct Owners {
    tallies: Box<[Tally]>,
    slots: Division,
    bytes: Division,
    assembly: Division,
    /// There are several, so that each has a part.
    is_divided: bool,
}

impl Owners {
    /// Bytes that one owner takes.
    pub(super) const OWNER_BYTES: usize = size_of::<Tally>();

    pub(super) fn new(owners_max: usize) -> Self {
        Self {
            tallies: vec![Tally::default(); owners_max.max(1)].into_boxed_slice(),
            slots: Division::default(),
            bytes: Division::default(),
            assembly: Division::default(),
            is_divided: false,
        }
    }

    /// Whether there are several owners, so that what each has is counted.
    #[inline]
    pub(super) const fn is_divided(&self) -> bool {
        self.is_divided
    }

    fn take(&mut self, owner: u16, slots: u64, bytes: u64, assembly_pages: usize) {
        let tally = &mut self.tallies[owner as usize];
        if tally.has_part {
            self.slots.take(tally.slots, slots);
            self.bytes.take(tally.bytes, bytes);
        }
        tally.slots += slots;
        tally.bytes += bytes;
        tally.assembly_pages += assembly_pages as u64;
    }

    fn give_back(&mut self, owner: u16, slots: u64, bytes: u64) {
        let tally = &mut self.tallies[owner as usize];
        tally.slots -= slots;
        tally.bytes -= bytes;
        if tally.has_part {
            self.slots.give_back(tally.slots, slots);
            self.bytes.give_back(tally.bytes, bytes);
        }
    }

    #[inline]
    pub(super) fn assembled(&mut self, owner: u16, pages: usize) {
        if self.is_divided {
            self.tallies[owner as usize].assembly_pages -= pages as u64;
        }
    }

    /// Whether so many pages to be assembled are within the owner's part of that.
    pub(super) fn may_assemble(&self, owner: u16, pages: usize) -> bool {
        let tally = &self.tallies[owner as usize];
        tally.has_part && self.assembly.is_own_part(tally.assembly_pages, pages as u64)
    }

    fn owns_slot(&self, owner: u16) -> bool {
        let tally = &self.tallies[owner as usize];
        tally.has_part && self.slots.is_own_part(tally.slots, 1)
    }

    fn owns_pages(&self, owner: u16, pages: usize) -> bool {
        let tally = &self.tallies[owner as usize];
        tally.has_part && self.bytes.is_own_part(tally.bytes, (pages * PAGE_BYTES) as u64)
    }

    /// Slots kept for others.
    fn slots_kept(&self, owner: u16) -> usize {
        let tally = &self.tallies[owner as usize];
        self.slots.kept_for_others(if tally.has_part { tally.slots } else { u64::MAX }) as usize
    }

    /// Pages kept for others.
    pub(super) fn pages_kept(&self, owner: u16) -> usize {
        let tally = &self.tallies[owner as usize];
        let bytes = self.bytes.kept_for_others(if tally.has_part { tally.bytes } else { u64::MAX });
        (bytes as usize).div_ceil(PAGE_BYTES)
    }

    pub(super) fn hold(&mut self, owner: u16) {
        self.tallies[owner as usize].held = true;
    }
}

impl Slot {
    /// Bytes of blocks that it counts for.
    const fn block_bytes(&self) -> u64 {
        if self.first_block == 0 {
            return 0;
        }
        Blocks::bytes_for(self.stream_len().saturating_sub(self.inline_len as usize)) as u64
    }

    /// Those that it had for its names alone.
    const fn names_block_bytes(&self) -> u64 {
        if self.inline_len > 0 {
            return 0;
        }
        Blocks::bytes_for(self.exchange_len as usize + self.key_len as usize) as u64
    }
}

impl Messages {
    /// Bytes that one owner costs.
    pub const OWNER_BYTES: usize = Owners::OWNER_BYTES;

    /// From now on the pools are divided among these; one alone has all.
    pub fn divide_among(&mut self, owners: impl Iterator<Item = Owner> + Clone) {
        let is_one_of_several = owners.clone().nth(1).is_some();
        if is_one_of_several && !self.owners.is_divided {
            self.count_again();
        }
        self.owners.is_divided = is_one_of_several;
        for tally in &mut self.owners.tallies {
            tally.has_part = false;
        }
        for owner in owners.clone() {
            self.owners.tallies[owner.index()].has_part = is_one_of_several;
        }
        let tallies = &self.owners.tallies;
        let divided = |pool: usize, held: fn(&Tally) -> u64| {
            Division::new(pool as u64, owners.clone().map(|owner| held(&tallies[owner.index()])))
        };
        let slots = divided(self.slots.max() - self.slots_reserve, |tally| tally.slots);
        let bytes = divided((self.pages_max - self.pages_reserve) * PAGE_BYTES, |tally| tally.bytes);
        let assembly = divided(self.assembly_pages_max, |tally| tally.assembly_pages);
        (self.owners.slots, self.owners.bytes, self.owners.assembly) = (slots, bytes, assembly);
    }

    /// Counts what each owner has, for while there was one alone nobody did.
    fn count_again(&mut self) {
        for tally in &mut self.owners.tallies {
            (tally.slots, tally.bytes, tally.assembly_pages) = (0, 0, 0);
        }
        for place in self.slots.taken() {
            let slot = &self.slots[place];
            let tally = &mut self.owners.tallies[slot.owner as usize];
            tally.slots += 1;
            tally.bytes += slot.block_bytes();
            tally.assembly_pages += slot.assembly_pages() as u64;
        }
    }

    // One owner alone has everything, so nothing is counted for it: these are for several.

    /// A message has begun, with its names.
    #[inline(never)]
    pub(super) fn count_begun(&mut self, id: MessageId) {
        let slot = &self.slots[id.index()];
        self.owners.take(slot.owner, 1, slot.block_bytes(), 0);
    }

    /// It has room for its content.
    #[inline(never)]
    pub(super) fn count_content(&mut self, id: MessageId) {
        let slot = &self.slots[id.index()];
        let bytes = slot.block_bytes() - slot.names_block_bytes();
        self.owners.take(slot.owner, 0, bytes, slot.assembly_pages());
    }

    /// It goes.
    #[inline(never)]
    pub(super) fn count_freed(&mut self, id: MessageId) {
        let slot = &self.slots[id.index()];
        self.owners.give_back(slot.owner, 1, slot.block_bytes());
    }

    /// Whose memory a message takes.
    pub fn owner(&self, id: MessageId) -> Owner {
        Owner(self.slots[id.index()].owner)
    }

    /// Whether ordinary publishers of an owner are being made to wait.
    pub fn is_held(&self, owner: Owner) -> bool {
        self.owners.tallies[owner.index()].held
    }

    /// Lets an owner's ordinary publishers in again if use has fallen below the low mark (7/8 of what they
    /// may use, so that on and off are apart); says whether they are let in.
    pub fn lift_hold(&mut self, owner: Owner) -> bool {
        let number = owner.number();
        let slots = self.slots.max() - self.slots_reserve;
        let pages = self.pages_max - self.pages_reserve - self.set_aside(None);
        let slots_low = slots.saturating_sub(self.owners.slots_kept(number)) / 8 * 7;
        let pages_low = pages.saturating_sub(self.kept_from(number)) / 8 * 7;
        let is_low = self.slots.used() <= slots_low && self.blocks.pages_used() <= pages_low;
        if is_low || self.is_well_within_part(owner) {
            self.owners.tallies[owner.index()].held = false;
        }
        !self.is_held(owner)
    }

    /// Whether an owner has less than 7/8 of its parts, so that it is let in whatever others have.
    fn is_well_within_part(&self, owner: Owner) -> bool {
        let tally = &self.owners.tallies[owner.index()];
        let is_below = |division: &Division, held: u64| division.is_own_part(held, held / 7 + 1);
        tally.has_part
            && is_below(&self.owners.slots, tally.slots)
            && is_below(&self.owners.bytes, tally.bytes)
            && self.admit_pages(Share::Reserve, 1, None, owner.number()).is_ok()
    }

    /// Whether an ordinary publisher would be let in with a message of so many bytes; nobody is refused by
    /// asking.
    pub fn has_ordinary_room(&self, owner: Owner, bytes: usize) -> bool {
        let pages = Blocks::pages_for(bytes);
        let number = owner.number();
        let slots = self.slots.max() - self.slots_reserve;
        let most = self.pages_max - self.pages_reserve;
        !self.is_held(owner)
            && self.slots.used() + self.owners.slots_kept(number) < slots
            && self.blocks.pages_used() + pages + self.kept_from(number) <= most
    }

    /// Pages kept from an owner: for others, or to read back. The larger of both, for with both a large
    /// message might never come in.
    pub(super) fn kept_from(&self, owner: u16) -> usize {
        let for_others = if self.owners.is_divided { self.owners.pages_kept(owner) } else { 0 };
        for_others.max(self.pages_kept)
    }

    /// Whether a message may begin, with a page for its names or without.
    #[inline]
    pub(super) fn admit(&mut self, share: Share, pages: usize, owner: u16) -> Result<(), PoolFull> {
        let is_easy = !self.owners.is_divided
            && self.claim.is_none()
            && self.slots.used() < self.slots_easy
            && self.blocks.pages_used() <= self.pages_easy
            && !self.owners.tallies[owner as usize].held;
        if is_easy { Ok(()) } else { self.admit_by_share(share, pages, owner) }
    }

    #[inline(never)]
    fn admit_by_share(&mut self, share: Share, pages: usize, owner: u16) -> Result<(), PoolFull> {
        if self.slots.used() >= self.slots_limit(share, owner) {
            return Err(self.refuse(share, PoolFull::Messages, owner));
        }
        if share == Share::Ordinary
            && self.owners.tallies[owner as usize].held
            && !self.owners.owns_slot(owner)
        {
            return Err(PoolFull::Messages);
        }
        let admitted = self.admit_pages(share, pages, None, owner);
        admitted.map_err(|full| self.refuse(share, full, owner))
    }

    fn slots_limit(&self, share: Share, owner: u16) -> usize {
        let most = self.slots.max();
        let of_reserve = most - super::last_part(most);
        let limit = match share {
            Share::ReadBack => return most,
            Share::Ordinary => most - self.slots_reserve,
            Share::Transaction => most - super::half_reserve(self.slots_reserve, most),
            Share::Reserve => of_reserve,
        };
        if !self.owners.is_divided {
            return limit;
        }
        if self.owners.owns_slot(owner) {
            return of_reserve;
        }
        limit.saturating_sub(self.owners.slots_kept(owner))
    }

    /// Whether so many pages more may be taken; what makes room for others is not asked for here.
    #[inline]
    pub(super) fn admit_pages(
        &self,
        share: Share,
        pages: usize,
        asks: Option<MessageId>,
        owner: u16,
    ) -> Result<(), PoolFull> {
        let most = self.pages_max;
        let of_reserve = most - super::last_part(most);
        let limit = match share {
            Share::ReadBack => most,
            Share::Ordinary => most - self.pages_reserve - self.set_aside(asks),
            Share::Transaction => most - super::half_reserve(self.pages_reserve, most),
            Share::Reserve => of_reserve,
        };
        let limit = match share {
            Share::ReadBack => limit,
            _ if self.owners.owns_pages(owner, pages) => of_reserve.saturating_sub(self.pages_kept),
            _ => limit.saturating_sub(self.kept_from(owner)),
        };
        // Split pages with room may hold the tail of a chain; counting whole pages errs on the safe side,
        // but never refuses what is smaller than a page while a split page might still have room.
        let used = self.blocks.pages_used();
        let is_full = pages > 1 && used + pages > limit || used > limit;
        if is_full { Err(PoolFull::Bodies) } else { Ok(()) }
    }

    /// Only small ones make everybody of their owner wait: for a large one, what is freed is set aside.
    pub(super) fn refuse(&mut self, share: Share, full: PoolFull, owner: u16) -> PoolFull {
        if share == Share::Ordinary {
            self.owners.hold(owner);
        }
        full
    }
}
