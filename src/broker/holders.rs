//! What a virtual host, and a user, may hold of what all share, with all of their connections together.
//!
//! Why it exists: a connection's share does not hold a program that opens four; and what it declared, or left
//! in durable queues, is still there when its connections are gone.
//!
//! Always true: with one virtual host there are no shares of virtual hosts, with one user none of users;
//! with more, a quarter of each pool is kept in equal parts for those that have less than theirs
//! (`Division`). What is declared counts for its virtual host for as long as it exists, over restarts too;
//! for the user that declared it while the broker runs and the user exists: what was there at the start is
//! nobody's, and a user's part is one of what is left. The memory of messages (`mem::Messages`) and their
//! room on the disk (`log_shares`) are divided among virtual hosts alone, for a message outlives whoever
//! sent it.

use crate::command::{ConnectionId, VhostId};
use crate::error::{Fault, ReplyCode, Scope};
use crate::mem::{Division, Messages, Owner};

use super::Broker;
use super::divisions::{Divided, Held, Holder, owner_of};
use super::holdings::Declarer;

impl Broker {
    /// Whose memory the messages of a connection take.
    #[inline]
    pub fn owner(&self, connection: ConnectionId) -> Owner {
        let vhost = self.connections.get(connection.index()).and_then(|record| record.vhost);
        vhost.map_or_else(Owner::default, owner_of)
    }

    pub(super) fn holder(&self, connection: ConnectionId) -> Holder {
        let record = &self.connections[connection.index()];
        Holder { vhost: record.vhost, user: record.user_index }
    }

    /// Whether a connection's virtual host and user may each have so many places more of a pool with so much
    /// room, of which `held` says what somebody has.
    ///
    /// # Errors
    /// The rest is kept for others.
    pub(super) fn check_holder(
        &self,
        holder: Holder,
        (room, places): (usize, usize),
        held: fn(&Held) -> u32,
        key: &str,
    ) -> Result<(), Fault> {
        let held = |other: &Held| u64::from(held(other));
        let (room, places) = (room as u64, places as u64);
        if let Some(vhost) = holder.vhost {
            let all = self.access.vhosts_held().map(held);
            if !leaves_enough(all, held(self.access.vhost_held(vhost)), room, places) {
                return Err(has_its_share("virtual host", key));
            }
        }
        if let Some(user) = holder.user {
            let all = self.access.users_held().map(held);
            if !leaves_enough(all, held(self.access.user_held(user)), room, places) {
                return Err(has_its_share("user", key));
            }
        }
        Ok(())
    }

    /// Changes what a connection's virtual host and user are known to hold.
    pub(super) fn count_for(&mut self, holder: Holder, change: impl Fn(&mut Held)) {
        if let Some(vhost) = holder.vhost {
            change(self.access.vhost_held_mut(vhost));
        }
        if let Some(user) = holder.user {
            change(self.access.user_held_mut(user));
        }
    }

    /// For whom something was declared: its virtual host, and the user if that is still there.
    pub(super) fn holder_of(&self, vhost: VhostId, declarer: Option<Declarer>) -> Holder {
        let user = declarer.and_then(|declarer| self.access.user_with_life(declarer.user));
        Holder { vhost: Some(vhost), user }
    }

    // ---- with every message

    // Nearly always there is one virtual host and one user: then that is all that is asked.

    /// Whether the virtual host and the user of a connection may have one delivery more.
    #[inline]
    pub(super) fn may_hold_delivery(&self, connection: ConnectionId) -> bool {
        !self.divisions.any || self.is_delivery_left_for(connection)
    }

    #[inline(never)]
    fn is_delivery_left_for(&self, connection: ConnectionId) -> bool {
        let room = self.deliveries.slab.room() as u64;
        let fits = |division: &Division, held: u64| {
            division.is_own_part(held, 1) || room > division.kept_for_others(held)
        };
        let Holder { vhost, user } = self.holder(connection);
        vhost.is_none_or(|vhost| {
            fits(&self.divisions.vhosts.unsettled, self.access.vhost_held(vhost).unsettled)
        }) && user
            .is_none_or(|user| fits(&self.divisions.users.unsettled, self.access.user_held(user).unsettled))
    }

    /// A connection has one delivery more.
    #[inline]
    pub(super) fn hold_delivery(&mut self, connection: ConnectionId) {
        if self.divisions.any {
            self.count_delivery(connection);
        }
    }

    #[inline(never)]
    fn count_delivery(&mut self, connection: ConnectionId) {
        let Holder { vhost, user } = self.holder(connection);
        if let Some(vhost) = vhost {
            let held = self.access.vhost_held_mut(vhost);
            self.divisions.vhosts.unsettled.take(held.unsettled, 1);
            held.unsettled += 1;
        }
        if let Some(user) = user {
            let held = self.access.user_held_mut(user);
            self.divisions.users.unsettled.take(held.unsettled, 1);
            held.unsettled += 1;
        }
    }

    /// A connection has one delivery less.
    #[inline]
    pub(super) fn let_delivery_go(&mut self, connection: ConnectionId) {
        if self.divisions.any {
            self.count_delivery_back(connection);
        }
    }

    #[inline(never)]
    fn count_delivery_back(&mut self, connection: ConnectionId) {
        let Holder { vhost, user } = self.holder(connection);
        if let Some(vhost) = vhost {
            let held = self.access.vhost_held_mut(vhost);
            held.unsettled -= 1;
            self.divisions.vhosts.unsettled.give_back(held.unsettled, 1);
        }
        if let Some(user) = user {
            let held = self.access.user_held_mut(user);
            held.unsettled -= 1;
            self.divisions.users.unsettled.give_back(held.unsettled, 1);
        }
    }

    /// Whether the virtual host and the user of a connection may have one message more in open transactions;
    /// says of which pool there is none.
    pub(super) fn may_hold_open(&self, connection: ConnectionId, bytes: u64) -> Result<(), &'static str> {
        if !self.divisions.any {
            return Ok(());
        }
        let messages_room =
            u64::from(self.settings.messages / 2).saturating_sub(self.pinned.open_messages.into());
        let bytes_room = (self.settings.body_bytes / 2).saturating_sub(self.pinned.open_bytes);
        let fits = |divided: &Divided, held: &Held| {
            let messages = &divided.open_messages;
            let has_slot = messages.is_own_part(held.open_messages, 1)
                || messages_room > messages.kept_for_others(held.open_messages);
            let has_bytes = divided.open_bytes.is_own_part(held.open_bytes, bytes)
                || bytes_room >= bytes + divided.open_bytes.kept_for_others(held.open_bytes);
            match (has_slot, has_bytes) {
                (true, true) => Ok(()),
                (false, _) => Err("messages_max"),
                (true, false) => Err("body_bytes_max"),
            }
        };
        let Holder { vhost, user } = self.holder(connection);
        vhost.map_or(Ok(()), |vhost| fits(&self.divisions.vhosts, self.access.vhost_held(vhost)))?;
        user.map_or(Ok(()), |user| fits(&self.divisions.users, self.access.user_held(user)))
    }

    /// A connection has so many messages more in open transactions.
    pub(super) fn hold_open(&mut self, connection: ConnectionId, bytes: u64) {
        if !self.divisions.any {
            return;
        }
        let take = |divided: &mut Divided, held: &mut Held| {
            divided.open_messages.take(held.open_messages, 1);
            divided.open_bytes.take(held.open_bytes, bytes);
            held.open_messages += 1;
            held.open_bytes += bytes;
        };
        let Holder { vhost, user } = self.holder(connection);
        if let Some(vhost) = vhost {
            take(&mut self.divisions.vhosts, self.access.vhost_held_mut(vhost));
        }
        if let Some(user) = user {
            take(&mut self.divisions.users, self.access.user_held_mut(user));
        }
    }

    /// A transaction of a connection is over.
    pub(super) fn let_open_go(&mut self, connection: ConnectionId, messages: u64, bytes: u64) {
        if !self.divisions.any {
            return;
        }
        let give_back = |divided: &mut Divided, held: &mut Held| {
            held.open_messages -= messages;
            held.open_bytes -= bytes;
            divided.open_messages.give_back(held.open_messages, messages);
            divided.open_bytes.give_back(held.open_bytes, bytes);
        };
        let Holder { vhost, user } = self.holder(connection);
        if let Some(vhost) = vhost {
            give_back(&mut self.divisions.vhosts, self.access.vhost_held_mut(vhost));
        }
        if let Some(user) = user {
            give_back(&mut self.divisions.users, self.access.user_held_mut(user));
        }
    }

    // ---- when virtual hosts or users come and go

    /// Divides the pools anew: a virtual host or a user has come or gone.
    pub(super) fn divide(&mut self) {
        self.forget_log_shares();
        self.divisions.changed = true;
        self.divisions.any =
            self.access.vhosts_held().nth(1).is_some() || self.access.users_held().nth(1).is_some();
        self.access.forget_held_by_connections();
        for index in 0..self.connections.places() {
            let Some(record) = self.connections.get(index) else { continue };
            let (unsettled, pinned) = (u64::from(record.unsettled), record.pinned);
            let holder = Holder { vhost: record.vhost, user: record.user_index };
            self.count_for(holder, |held| {
                held.unsettled += unsettled;
                held.open_messages += u64::from(pinned.open_messages);
                held.open_bytes += pinned.open_bytes;
            });
        }
        let deliveries = (self.deliveries.slab.len() + self.deliveries.slab.room()) as u64;
        let pools = [deliveries, (self.settings.messages / 2).into(), self.settings.body_bytes / 2];
        self.divisions.vhosts = Divided::new(pools, self.access.vhosts_held());
        self.divisions.users = Divided::new(pools, self.access.users_held());
        self.recheck_starving |= !self.starving.is_empty();
    }

    /// Tells the pool of messages who its memory is divided among, if that has changed.
    pub(super) fn divide_messages(&mut self, messages: &mut Messages) {
        if !core::mem::take(&mut self.divisions.changed) {
            return;
        }
        let owners = self.access.vhost_ids().map(owner_of);
        messages.divide_among(owners.clone());
        self.fifo_pool.divide_among(self.fan_out_max(), owners);
    }
}

/// The same, where there is no channel yet that it could close.
pub(super) fn of_connection(fault: Fault) -> Fault {
    Fault { scope: Scope::Connection, ..fault }
}

fn leaves_enough(all: impl Iterator<Item = u64> + Clone, own: u64, room: u64, places: u64) -> bool {
    let division = Division::new(room + all.clone().sum::<u64>(), all);
    division.is_own_part(own, places) || places + division.kept_for_others(own) <= room
}

/// 506: what is left is for others.
pub(super) fn has_its_share(who: &str, key: &str) -> Fault {
    Fault::new(
        ReplyCode::ResourceError,
        format_args!(
            "this {who} has its share of {key}, the rest is for others: raise it in the configuration"
        ),
    )
}
