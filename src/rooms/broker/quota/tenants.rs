//! The holdings of each virtual host, and each user, over all of its connections.
//!
//! Always true: with one virtual host there are no shares of virtual hosts, with one user none of users; with
//! more, a quarter of each pool is kept in equal parts for those that have less than theirs (`Division`), for
//! virtual hosts and for users besides, so that neither part comes out of the other. A division is told
//! exactly what the holdings of a virtual host or user gain or lose.

use crate::command::VhostId;
use crate::error::Fault;
use crate::mem::{Division, Sender};

use super::held::{Held, Holder, Pinned};
use super::refused::has_its_share;

/// The holdings of one user.
#[derive(Clone, Copy, Debug)]
struct User {
    /// The number of the user, which tells it from others that had its place or its name before.
    life: u32,
    held: Held,
}

/// The divisions of the pools that are asked for with every message; those of the others are worked out when
/// asked for.
#[derive(Clone, Copy, Debug, Default)]
struct Divided {
    unsettled: Division,
    open_messages: Division,
    open_bytes: Division,
}

impl Divided {
    fn new<'h>([unsettled, messages, bytes]: [u64; 3], all: impl Iterator<Item = &'h Held> + Clone) -> Self {
        Self {
            unsettled: Division::new(unsettled, all.clone().map(|held| held.unsettled)),
            open_messages: Division::new(messages, all.clone().map(|held| held.open_messages)),
            open_bytes: Division::new(bytes, all.map(|held| held.open_bytes)),
        }
    }
}

/// The virtual hosts and users, and the pools divided among them.
#[derive(Debug)]
pub(super) struct Tenants {
    vhosts: Vec<Option<Held>>,
    users: Vec<Option<User>>,
    among_vhosts: Divided,
    among_users: Divided,
    /// There are several virtual hosts, or several users.
    is_divided: bool,
}

impl Tenants {
    pub(super) const VHOST_BYTES: usize = size_of::<Option<Held>>();
    pub(super) const USER_BYTES: usize = size_of::<Option<User>>();

    pub(super) fn with_capacity(vhosts: usize, users: usize) -> Self {
        Self {
            vhosts: vec![None; vhosts],
            users: vec![None; users],
            among_vhosts: Divided::default(),
            among_users: Divided::default(),
            is_divided: false,
        }
    }

    /// Sets which virtual hosts there are.
    pub(super) fn vhosts_are(&mut self, there: impl Iterator<Item = VhostId>) {
        let mut before = core::mem::take(&mut self.vhosts);
        self.vhosts.resize(before.len(), None);
        for vhost in there {
            let held = before[vhost.index()].take();
            self.vhosts[vhost.index()] = Some(held.unwrap_or_default());
        }
    }

    /// Sets which users there are, by their places and numbers; gives the places of users that are gone.
    pub(super) fn users_are(&mut self, there: impl Iterator<Item = (usize, u32)>) -> Vec<usize> {
        let mut before = core::mem::take(&mut self.users);
        self.users.resize(before.len(), None);
        for (index, life) in there {
            let known = before[index].take_if(|user| user.life == life);
            self.users[index] = Some(known.unwrap_or(User { life, held: Held::default() }));
        }
        before.iter().enumerate().filter(|(_, user)| user.is_some()).map(|(index, _)| index).collect()
    }

    pub(super) const fn is_divided(&self) -> bool {
        self.is_divided
    }

    /// All virtual hosts.
    pub(super) fn vhosts(&self) -> impl Iterator<Item = VhostId> + Clone {
        let there = self.vhosts.iter().enumerate().filter(|(_, held)| held.is_some());
        there.map(|(index, _)| VhostId::from_index(index))
    }

    /// All users, as the pool of messages knows them.
    pub(super) fn senders(&self) -> impl Iterator<Item = Sender> + Clone {
        let there = self.users.iter().enumerate();
        there.filter_map(|(index, user)| user.map(|user| Sender { index, life: user.life }))
    }

    /// The user with this number, if it still exists.
    pub(super) fn user_with_life(&self, life: u32) -> Option<usize> {
        self.users.iter().position(|user| user.is_some_and(|user| user.life == life))
    }

    /// The number of a user.
    pub(super) fn life_of(&self, user: usize) -> u32 {
        self.users[user].expect("a holder's user is there").life
    }

    /// How many virtual hosts and users hold something.
    pub(super) fn holders(&self) -> usize {
        self.all_vhosts().chain(self.all_users()).filter(|held| **held != Held::default()).count()
    }

    fn all_vhosts(&self) -> impl Iterator<Item = &Held> + Clone {
        self.vhosts.iter().flatten()
    }

    fn all_users(&self) -> impl Iterator<Item = &Held> + Clone {
        self.users.iter().flatten().map(|user| &user.held)
    }

    /// The holdings of a virtual host.
    pub(super) fn of_vhost(&self, vhost: VhostId) -> &Held {
        self.vhosts[vhost.index()].as_ref().expect("a holder's virtual host is there")
    }

    /// The holdings of a user.
    pub(super) fn of_user(&self, user: usize) -> &Held {
        &self.users[user].as_ref().expect("a holder's user is there").held
    }

    /// The holdings of a virtual host and of a user, each with the division that it is part of.
    fn parts_mut(&mut self, holder: Holder) -> impl Iterator<Item = (&mut Divided, &mut Held)> {
        let vhost = holder.vhost.map(|vhost| {
            let held = self.vhosts[vhost.index()].as_mut().expect("a holder's virtual host is there");
            (&mut self.among_vhosts, held)
        });
        let user = holder.user.map(|user| {
            let user = self.users[user].as_mut().expect("a holder's user is there");
            (&mut self.among_users, &mut user.held)
        });
        vhost.into_iter().chain(user)
    }

    fn parts(&self, holder: Holder) -> impl Iterator<Item = (&Divided, &Held)> {
        let vhost = holder.vhost.map(|vhost| (&self.among_vhosts, self.of_vhost(vhost)));
        let user = holder.user.map(|user| (&self.among_users, self.of_user(user)));
        vhost.into_iter().chain(user)
    }

    /// Changes the holdings of a virtual host and a user, of pools that are not asked for with every message.
    pub(super) fn count(&mut self, holder: Holder, change: impl Fn(&mut Held)) {
        self.parts_mut(holder).for_each(|(_, held)| change(held));
    }

    /// Whether a virtual host and a user may each have `places` more of a pool with this much room; `held`
    /// tells their holdings of it.
    ///
    /// # Errors
    /// The rest of the pool is kept for others.
    pub(super) fn check(
        &self,
        holder: Holder,
        (room, places): (usize, usize),
        held: fn(&Held) -> u32,
        key: &str,
    ) -> Result<(), Fault> {
        let held = |other: &Held| u64::from(held(other));
        let (room, places) = (room as u64, places as u64);
        let mut kept = 0;
        if let Some(vhost) = holder.vhost {
            kept += kept_from(self.all_vhosts().map(held), held(self.of_vhost(vhost)), room, places);
            if kept > 0 && places + kept > room {
                return Err(has_its_share("virtual host", key));
            }
        }
        if let Some(user) = holder.user {
            kept += kept_from(self.all_users().map(held), held(self.of_user(user)), room, places);
            if kept > 0 && places + kept > room {
                return Err(has_its_share("user", key));
            }
        }
        Ok(())
    }

    // ---- pools asked for with every message

    // Nearly always there is one virtual host and one user: then none of these methods is called.

    /// Whether a virtual host and a user may have one more delivery of a pool with this much room.
    pub(super) fn may_take_delivery(&self, holder: Holder, room: usize) -> bool {
        let kept = self.parts(holder).map(|(divided, held)| divided.unsettled.kept_from(held.unsettled, 1));
        room as u64 > kept.sum()
    }

    pub(super) fn take_delivery(&mut self, holder: Holder) {
        for (divided, held) in self.parts_mut(holder) {
            divided.unsettled.take(held.unsettled, 1);
            held.unsettled += 1;
        }
    }

    pub(super) fn give_delivery_back(&mut self, holder: Holder) {
        for (divided, held) in self.parts_mut(holder) {
            held.unsettled -= 1;
            divided.unsettled.give_back(held.unsettled, 1);
        }
    }

    /// Whether a virtual host and a user may have this many more messages, and bytes of them, in open
    /// transactions, of pools with this much room; the key of the pool of which they may not.
    pub(super) fn check_open(
        &self,
        holder: Holder,
        (messages_room, messages): (u64, u64),
        (bytes_room, bytes): (u64, u64),
    ) -> Result<(), &'static str> {
        let of_messages = |(divided, held): (&Divided, &Held)| {
            divided.open_messages.kept_from(held.open_messages, messages)
        };
        let of_bytes =
            |(divided, held): (&Divided, &Held)| divided.open_bytes.kept_from(held.open_bytes, bytes);
        // Within its own part the room does not matter: that part is kept for it.
        let fits = |room: u64, wanted: u64, kept: u64| kept == 0 || room >= wanted + kept;
        if !fits(messages_room, messages, self.parts(holder).map(of_messages).sum()) {
            return Err("messages_max");
        }
        let fits_bytes = fits(bytes_room, bytes, self.parts(holder).map(of_bytes).sum());
        if fits_bytes { Ok(()) } else { Err("body_bytes_max") }
    }

    pub(super) fn take_open(&mut self, holder: Holder, messages: u64, bytes: u64) {
        for (divided, held) in self.parts_mut(holder) {
            divided.open_messages.take(held.open_messages, messages);
            divided.open_bytes.take(held.open_bytes, bytes);
            held.open_messages += messages;
            held.open_bytes += bytes;
        }
    }

    pub(super) fn give_open_back(&mut self, holder: Holder, messages: u64, bytes: u64) {
        for (divided, held) in self.parts_mut(holder) {
            held.open_messages -= messages;
            held.open_bytes -= bytes;
            divided.open_messages.give_back(held.open_messages, messages);
            divided.open_bytes.give_back(held.open_bytes, bytes);
        }
    }

    // ---- when virtual hosts or users come and go

    /// Divides the pools of deliveries, and of messages and bytes in open transactions, among the current
    /// virtual hosts and users; `connections` tells what each connection holds of them, and for whom.
    pub(super) fn divide(
        &mut self,
        pools: [u64; 3],
        connections: impl Iterator<Item = (Holder, u32, Pinned)>,
    ) {
        self.is_divided = self.all_vhosts().nth(1).is_some() || self.all_users().nth(1).is_some();
        self.vhosts.iter_mut().flatten().for_each(Held::forget_pinned);
        self.users.iter_mut().flatten().for_each(|user| user.held.forget_pinned());
        for (holder, unsettled, pinned) in connections {
            self.count(holder, |held| {
                held.unsettled += u64::from(unsettled);
                held.open_messages += u64::from(pinned.open_messages);
                held.open_bytes += pinned.open_bytes;
            });
        }
        self.among_vhosts = Divided::new(pools, self.all_vhosts());
        self.among_users = Divided::new(pools, self.all_users());
    }
}

fn kept_from(all: impl Iterator<Item = u64> + Clone, own: u64, room: u64, places: u64) -> u64 {
    Division::new(room + all.clone().sum::<u64>(), all).kept_from(own, places)
}
