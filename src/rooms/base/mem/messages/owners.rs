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

use super::slot::{Owner, PoolFull, Scarce, Sender};
use crate::mem::Division;
use crate::mem::blocks::PAGE_BYTES;

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
pub(super) struct Kept {
    /// For others; 0 within a part of its own.
    pub(super) for_others: u64,
    /// It is within its own part of everything that is divided.
    pub(super) is_own: bool,
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

    /// Takes in who there is; says whether what each has is to be counted again: while there was one alone
    /// nobody did, and what somebody sent who is gone is nobody's.
    pub(super) fn note_present(
        &mut self,
        mut vhosts: impl Iterator<Item = Owner>,
        users: impl Iterator<Item = Sender> + Clone,
    ) -> bool {
        let was_divided = self.is_divided;
        self.is_divided = vhosts.nth(1).is_some() || users.clone().nth(1).is_some();
        let is_gone = self.users.forget_the_gone(users);
        is_gone || self.is_divided && !was_divided
    }

    /// These have parts from now on of pools of so many slots, bytes and pages of the assembly share.
    pub(super) fn divide(
        &mut self,
        pools: [usize; 3],
        vhosts: impl Iterator<Item = Owner> + Clone,
        users: impl Iterator<Item = Sender> + Clone,
    ) {
        users.clone().for_each(|user| self.users.tallies[user.index + 1].life = user.life);
        self.vhosts.divide(pools, vhosts.map(Owner::vhost));
        self.users.divide(pools, users.map(|user| user.index + 1));
    }

    /// Nobody has anything, and nobody is held.
    pub(super) fn clear(&mut self) {
        for tally in self.vhosts.tallies.iter_mut().chain(&mut self.users.tallies) {
            (tally.slots, tally.bytes, tally.assembly_pages, tally.has_part) = (0, 0, 0, false);
        }
        self.held.fill(0);
    }

    /// The owner, without its user if that one is gone.
    pub(super) fn who_is_left_of(&self, owner: Owner) -> Owner {
        if self.users.tallies[owner.user()].life == 0 { owner.without_user() } else { owner }
    }

    /// Whether its virtual host or its user has less than 7/8 of its parts.
    pub(super) fn is_well_within_part(&self, owner: Owner) -> bool {
        self.vhosts.is_well_within(owner.vhost()) || self.users.is_well_within(owner.user())
    }

    /// Says whether less is kept by that.
    pub(super) fn take(&mut self, owner: Owner, slots: u64, bytes: u64, assembly_pages: usize) -> bool {
        let pages = assembly_pages as u64;
        self.vhosts.take(owner.vhost(), slots, bytes, pages)
            | self.users.take(owner.user(), slots, bytes, pages)
    }

    pub(super) fn give_back(&mut self, owner: Owner, slots: u64, bytes: u64) {
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

    pub(super) fn slots_kept(&self, owner: Owner) -> Kept {
        let kept = |parts: &Parts, place| parts.kept(&parts.slots, place, |tally| tally.slots, 1);
        kept(&self.vhosts, owner.vhost()).and(kept(&self.users, owner.user()))
    }

    pub(super) fn bytes_kept(&self, owner: Owner, pages: usize) -> Kept {
        let more = (pages * PAGE_BYTES) as u64;
        let kept = |parts: &Parts, place| parts.kept(&parts.bytes, place, |tally| tally.bytes, more);
        kept(&self.vhosts, owner.vhost()).and(kept(&self.users, owner.user()))
    }

    /// For which of both most is kept from the owner; for neither where a large message has set it aside.
    pub(super) fn has_its_part(&self, full: PoolFull, owner: Owner) -> Scarce {
        let kept = |parts: &Parts, place| match full {
            PoolFull::Messages => parts.kept(&parts.slots, place, |tally| tally.slots, 1),
            PoolFull::Bodies | PoolFull::Assembly => {
                parts.kept(&parts.bytes, place, |tally| tally.bytes, PAGE_BYTES as u64)
            }
        };
        let vhost = kept(&self.vhosts, owner.vhost()).for_others;
        let user = kept(&self.users, owner.user()).for_others;
        match (vhost, user) {
            (0, 0) => Scarce::ForAll,
            _ if vhost >= user => Scarce::ForVhost,
            _ => Scarce::ForUser,
        }
    }

    /// Pages kept for others when the owner wants so many.
    pub(super) fn pages_kept(&self, owner: Owner, pages: usize) -> usize {
        (self.bytes_kept(owner, pages).for_others as usize).div_ceil(PAGE_BYTES)
    }

    const fn held_at(&self, owner: Owner) -> (usize, u64) {
        let pair = owner.vhost() * self.users.tallies.len() + owner.user();
        (pair / u64::BITS as usize, 1 << (pair % u64::BITS as usize))
    }

    #[inline]
    pub(super) fn is_held(&self, owner: Owner) -> bool {
        let (word, bit) = self.held_at(owner);
        self.held[word] & bit != 0
    }

    pub(super) fn set_held(&mut self, owner: Owner, is_held: bool) {
        let (word, bit) = self.held_at(owner);
        if is_held {
            self.held[word] |= bit;
        } else {
            self.held[word] &= !bit;
        }
    }
}
