//! Whose memory messages take: a virtual host's and that of the user who sent them, from their first octet
//! until the last holder lets go.
//!
//! Why it exists: one virtual host that floods, or whose consumers settle nothing, should make its own
//! publishers wait and not those of the others; and so should one user, whatever virtual host it shares.
//!
//! Always true: with several virtual hosts, or several users, what each has is the sum over its messages; one
//! alone has everything, and nothing is counted for it; slots, bytes of blocks and the share for incomplete
//! contents are each divided among the virtual hosts there are, and among the users; what is kept for others
//! of both kinds adds up, or the one part would be taken out of the other; who is within its part of both is
//! let in whenever there is memory at all, so neither a hold nor a claim of another stops it. What a deleted
//! user sent, and what was read back from the log, is no user's.

use super::{MessageId, Messages, PAGE_BYTES, PoolFull, Share, Slot};
use crate::mem::Division;
use crate::mem::blocks::Blocks;

/// Whose memory it is: that of the virtual host in this place, and of the user in that one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Owner {
    vhost: u16,
    /// From 1; 0 is nobody.
    user: u16,
}

impl Owner {
    /// The most virtual hosts, and the most users, there can be.
    pub const MAX: usize = u16::MAX as usize - 1;

    /// The virtual host in place `index`, below [`Self::MAX`], and no user.
    pub const fn of_vhost(index: usize) -> Self {
        debug_assert!(index < Self::MAX, "limits allows no more virtual hosts");
        Self { vhost: index as u16, user: 0 }
    }

    /// The same with the user in place `index`, below [`Self::MAX`].
    #[must_use]
    pub const fn with_user(self, index: usize) -> Self {
        debug_assert!(index < Self::MAX, "limits allows no more users");
        Self { user: index as u16 + 1, ..self }
    }

    pub(in crate::mem) const fn vhost(self) -> usize {
        self.vhost as usize
    }

    const fn user(self) -> usize {
        self.user as usize
    }
}

/// A user that sends messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sender {
    /// Its place.
    pub index: usize,
    /// What tells it from others that had its place before; not 0.
    pub life: u32,
}

/// Where the memory of a message comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Draw {
    /// Which part of the pools may be used.
    pub share: Share,
    /// The owner who is to have the memory.
    pub owner: Owner,
}

impl From<Share> for Draw {
    /// For the first owner, who usually is the only one.
    fn from(share: Share) -> Self {
        Self { share, owner: Owner::default() }
    }
}

/// What one virtual host, or one user, has.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    slots: u64,
    /// Bytes of blocks.
    bytes: u64,
    /// Pages of incomplete contents.
    assembly_pages: u64,
    /// Of a user: which one it is.
    life: u32,
    /// A part of the pools is kept for it.
    has_part: bool,
}

/// The pools as they are divided among virtual hosts, or among users.
#[derive(Debug)]
struct Parts {
    tallies: Box<[Tally]>,
    slots: Division,
    bytes: Division,
    assembly: Division,
    /// There are several, so that each has a part.
    is_divided: bool,
}

/// What is kept from somebody who wants more of a pool.
#[derive(Clone, Copy, Debug)]
struct Kept {
    /// For others; 0 within a part of its own.
    for_others: u64,
    /// It is within its own part of everything that is divided.
    is_own: bool,
}

/// What virtual hosts and users have, and what is kept for each.
#[derive(Debug)]
pub(super) struct Owners {
    vhosts: Parts,
    users: Parts,
    /// A bit for each virtual host and user: an ordinary publisher was refused, and all of them wait until
    /// that is lifted.
    held: Box<[u64]>,
    /// One of both is.
    is_divided: bool,
}

impl Parts {
    fn new(count: usize) -> Self {
        Self {
            tallies: vec![Tally::default(); count].into_boxed_slice(),
            slots: Division::default(),
            bytes: Division::default(),
            assembly: Division::default(),
            is_divided: false,
        }
    }

    /// Says whether less is kept by that.
    fn take(&mut self, place: usize, slots: u64, bytes: u64, assembly_pages: u64) -> bool {
        let tally = &mut self.tallies[place];
        let mut is_less_kept = false;
        if tally.has_part {
            is_less_kept = self.slots.take(tally.slots, slots) | self.bytes.take(tally.bytes, bytes);
        }
        tally.slots += slots;
        tally.bytes += bytes;
        tally.assembly_pages += assembly_pages;
        is_less_kept
    }

    fn give_back(&mut self, place: usize, slots: u64, bytes: u64) {
        let tally = &mut self.tallies[place];
        tally.slots -= slots;
        tally.bytes -= bytes;
        if tally.has_part {
            self.slots.give_back(tally.slots, slots);
            self.bytes.give_back(tally.bytes, bytes);
        }
    }

    /// What is kept of a pool from the one in this place, when it wants so much more.
    fn kept(&self, division: &Division, place: usize, held: fn(&Tally) -> u64, more: u64) -> Kept {
        let tally = &self.tallies[place];
        match tally.has_part {
            _ if !self.is_divided => Kept { for_others: 0, is_own: true },
            false => Kept { for_others: division.kept_for_others(u64::MAX), is_own: false },
            true => Kept {
                for_others: division.kept_from(held(tally), more),
                is_own: division.is_own_part(held(tally), more),
            },
        }
    }

    /// Whether the one in this place has less than 7/8 of its parts.
    fn is_well_within(&self, place: usize) -> bool {
        let tally = &self.tallies[place];
        let is_below = |division: &Division, held: u64| division.is_own_part(held, held / 7 + 1);
        tally.has_part && is_below(&self.slots, tally.slots) && is_below(&self.bytes, tally.bytes)
    }

    /// Of users: those that are not among these have no life any more; says whether there are such.
    fn forget_the_gone(&mut self, users: impl Iterator<Item = Sender>) -> bool {
        self.tallies.iter_mut().for_each(|tally| tally.has_part = false);
        for user in users {
            let tally = &mut self.tallies[user.index + 1];
            tally.has_part = tally.life == user.life;
        }
        let mut is_gone = false;
        for tally in self.tallies.iter_mut().filter(|tally| !tally.has_part && tally.life != 0) {
            (tally.life, is_gone) = (0, true);
        }
        is_gone
    }

    /// These have parts from now on, each of a pool of so many; one alone has all.
    fn divide(&mut self, pools: [usize; 3], places: impl Iterator<Item = usize> + Clone) {
        self.is_divided = places.clone().nth(1).is_some();
        self.tallies.iter_mut().for_each(|tally| tally.has_part = false);
        places.clone().for_each(|place| self.tallies[place].has_part = self.is_divided);
        let [slots, bytes, assembly] = pools.map(|pool| pool as u64);
        let tallies = &self.tallies;
        let held = |of: fn(&Tally) -> u64| places.clone().map(move |place| of(&tallies[place]));
        let divisions = (
            Division::new(slots, held(|tally| tally.slots)),
            Division::new(bytes, held(|tally| tally.bytes)),
            Division::new(assembly, held(|tally| tally.assembly_pages)),
        );
        (self.slots, self.bytes, self.assembly) = divisions;
    }
}

impl Kept {
    const fn and(self, other: Self) -> Self {
        Self { for_others: self.for_others + other.for_others, is_own: self.is_own && other.is_own }
    }
}

impl Owners {
    /// Bytes that a virtual host, or a user, takes.
    pub(super) const OWNER_BYTES: usize = size_of::<Tally>();

    pub(super) fn new(vhosts_max: usize, users_max: usize) -> Self {
        let (vhosts, users) = (Parts::new(vhosts_max.max(1)), Parts::new(users_max + 1));
        let pairs = vhosts.tallies.len() * users.tallies.len();
        let held = vec![0; pairs.div_ceil(u64::BITS as usize)].into_boxed_slice();
        Self { vhosts, users, held, is_divided: false }
    }

    /// Whether there are several owners, so that what each has is counted.
    #[inline]
    pub(super) const fn is_divided(&self) -> bool {
        self.is_divided
    }

    /// Says whether less is kept by that.
    fn take(&mut self, owner: Owner, slots: u64, bytes: u64, assembly_pages: usize) -> bool {
        let pages = assembly_pages as u64;
        self.vhosts.take(owner.vhost(), slots, bytes, pages)
            | self.users.take(owner.user(), slots, bytes, pages)
    }

    fn give_back(&mut self, owner: Owner, slots: u64, bytes: u64) {
        self.vhosts.give_back(owner.vhost(), slots, bytes);
        self.users.give_back(owner.user(), slots, bytes);
    }

    #[inline]
    pub(super) fn assembled(&mut self, owner: Owner, pages: usize) {
        if self.is_divided {
            self.vhosts.tallies[owner.vhost()].assembly_pages -= pages as u64;
            self.users.tallies[owner.user()].assembly_pages -= pages as u64;
        }
    }

    /// Whether so many pages to be assembled are within a part of the owner's.
    pub(super) fn may_assemble(&self, owner: Owner, pages: usize) -> bool {
        [(&self.vhosts, owner.vhost()), (&self.users, owner.user())].into_iter().any(|(parts, place)| {
            let tally = &parts.tallies[place];
            tally.has_part && parts.assembly.is_own_part(tally.assembly_pages, pages as u64)
        })
    }

    fn slots_kept(&self, owner: Owner) -> Kept {
        let kept = |parts: &Parts, place| parts.kept(&parts.slots, place, |tally| tally.slots, 1);
        kept(&self.vhosts, owner.vhost()).and(kept(&self.users, owner.user()))
    }

    fn bytes_kept(&self, owner: Owner, pages: usize) -> Kept {
        let more = (pages * PAGE_BYTES) as u64;
        let kept = |parts: &Parts, place| parts.kept(&parts.bytes, place, |tally| tally.bytes, more);
        kept(&self.vhosts, owner.vhost()).and(kept(&self.users, owner.user()))
    }

    /// Pages kept for others when the owner wants so many.
    pub(super) fn pages_kept(&self, owner: Owner, pages: usize) -> usize {
        (self.bytes_kept(owner, pages).for_others as usize).div_ceil(PAGE_BYTES)
    }

    const fn held_at(&self, owner: Owner) -> (usize, u64) {
        let pair = owner.vhost() * self.users.tallies.len() + owner.user();
        (pair / u64::BITS as usize, 1 << (pair % u64::BITS as usize))
    }

    fn is_held(&self, owner: Owner) -> bool {
        let (word, bit) = self.held_at(owner);
        self.held[word] & bit != 0
    }

    fn set_held(&mut self, owner: Owner, is_held: bool) {
        let (word, bit) = self.held_at(owner);
        if is_held {
            self.held[word] |= bit;
        } else {
            self.held[word] &= !bit;
        }
    }
}

impl Slot {
    pub(super) const fn owner(&self) -> Owner {
        Owner { vhost: self.vhost, user: self.user }
    }

    pub(super) const fn set_owner(&mut self, owner: Owner) {
        (self.vhost, self.user) = (owner.vhost, owner.user);
    }
}

impl Messages {
    /// Bytes that a virtual host, or a user, costs.
    pub const OWNER_BYTES: usize = Owners::OWNER_BYTES;

    /// From now on the pools are divided among these virtual hosts, and among these users; one alone has all.
    pub fn divide_among(
        &mut self,
        vhosts: impl Iterator<Item = Owner> + Clone,
        users: impl Iterator<Item = Sender> + Clone,
    ) {
        let was_divided = self.owners.is_divided;
        self.owners.is_divided = vhosts.clone().nth(1).is_some() || users.clone().nth(1).is_some();
        let is_gone = self.owners.users.forget_the_gone(users.clone());
        if is_gone || self.owners.is_divided && !was_divided {
            self.count_again();
        }
        users.clone().for_each(|user| self.owners.users.tallies[user.index + 1].life = user.life);
        let pools = [
            self.slots.max() - self.slots_reserve,
            (self.pages_max - self.pages_reserve) * PAGE_BYTES,
            self.assembly_pages_max,
        ];
        self.owners.vhosts.divide(pools, vhosts.map(Owner::vhost));
        self.owners.users.divide(pools, users.map(|user| user.index + 1));
        // With fewer of them less is kept.
        self.releases += 1;
    }

    /// Counts what each owner has, for while there was one alone nobody did; what somebody sent who is gone
    /// is nobody's.
    fn count_again(&mut self) {
        for tally in self.owners.vhosts.tallies.iter_mut().chain(&mut self.owners.users.tallies) {
            (tally.slots, tally.bytes, tally.assembly_pages, tally.has_part) = (0, 0, 0, false);
        }
        // Who is still refused is held again; nobody is for what another in its place did.
        self.owners.held.fill(0);
        for slot in self.slots.taken_mut() {
            let (bytes, pages, owner) = (slot.block_bytes().into(), slot.assembly_pages(), slot.owner());
            let is_gone = self.owners.users.tallies[owner.user()].life == 0;
            let owner = if is_gone { Owner { user: 0, ..owner } } else { owner };
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
        self.releases += u64::from(is_less_kept);
    }

    /// It has room for its content.
    #[inline(never)]
    pub(super) fn count_content(&mut self, id: MessageId) {
        let slot = &self.slots[id.index()];
        let bytes = slot.block_bytes() - slot.names_block_bytes();
        let is_less_kept = self.owners.take(slot.owner(), 0, bytes.into(), slot.assembly_pages());
        self.releases += u64::from(is_less_kept);
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
        let Owners { vhosts, users, .. } = &self.owners;
        (vhosts.is_well_within(owner.vhost()) || users.is_well_within(owner.user()))
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
        let for_others = if self.owners.is_divided { self.owners.pages_kept(owner, pages) } else { 0 };
        for_others.max(self.pages_kept)
    }

    /// Whether a message may begin, with a page for its names or without.
    #[inline]
    pub(super) fn admit(&mut self, share: Share, pages: usize, owner: Owner) -> Result<(), PoolFull> {
        let is_easy = !self.owners.is_divided
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
        let is_own = || self.owners.is_divided && self.owners.slots_kept(owner).is_own;
        if share == Share::Ordinary && self.is_held(owner) && !is_own() {
            return Err(PoolFull::Messages);
        }
        let admitted = self.admit_pages(share, pages, None, owner);
        admitted.map_err(|full| self.refuse(share, full, owner))
    }

    fn slots_limit(&self, share: Share, owner: Owner) -> usize {
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
        let of_reserve = most - super::last_part(most);
        let limit = match share {
            Share::ReadBack => most,
            Share::Ordinary => most - self.pages_reserve - self.set_aside(asks),
            Share::Transaction => most - super::half_reserve(self.pages_reserve, most),
            Share::Reserve => of_reserve,
        };
        let limit = match share {
            Share::ReadBack => limit,
            _ if self.owners.is_divided && self.owners.bytes_kept(owner, pages).is_own => {
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
