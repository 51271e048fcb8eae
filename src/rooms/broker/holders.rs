//! What a virtual host, and a user, may hold of what all share, with all of their connections together.
//!
//! Why it exists: a connection's share does not hold a program that opens four; and what it declared, or left
//! in durable queues, is still there when its connections are gone.
//!
//! Always true: with one virtual host there are no shares of virtual hosts, with one user none of users;
//! with more, a quarter of each pool is kept in equal parts for those that have less than theirs
//! (`Division`), for virtual hosts and for users besides, so that neither part comes out of the other. What
//! is declared counts for its virtual host for as long as it exists, over restarts too;
//! for the user that declared it while the broker runs and the user exists: what was there at the start is
//! nobody's, and a user's part is one of what is left. The memory of messages counts for the
//! virtual host and for who sent them (`mem::Messages`); their entries in queues and their room on the disk
//! (`log_shares`) for the virtual host alone, for those are the queue's, and outlive whoever sent them.

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
        let Some(record) = self.connections.get(connection.index()) else { return Owner::default() };
        let owner = record.vhost.map_or_else(Owner::default, owner_of);
        record.user_index.map_or(owner, |user| owner.with_user(user))
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
        let mut kept = 0;
        if let Some(vhost) = holder.vhost {
            let all = self.access.vhosts_held().map(held);
            kept += kept_from(all, held(self.access.vhost_held(vhost)), room, places);
            if kept > 0 && places + kept > room {
                return Err(has_its_share("virtual host", key));
            }
        }
        if let Some(user) = holder.user {
            let all = self.access.users_held().map(held);
            kept += kept_from(all, held(self.access.user_held(user)), room, places);
            if kept > 0 && places + kept > room {
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
        let room = self.deliveries.room() as u64;
        let kept = |divided: &Divided, held: &Held| divided.unsettled.kept_from(held.unsettled, 1);
        let Holder { vhost, user } = self.holder(connection);
        let of_vhost = vhost.map_or(0, |vhost| kept(&self.divisions.vhosts, self.access.vhost_held(vhost)));
        let of_user = user.map_or(0, |user| kept(&self.divisions.users, self.access.user_held(user)));
        room > of_vhost + of_user
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

    /// Whether the virtual host and the user of a connection may have so many messages more, of so many bytes,
    /// in open transactions; says of which pool there is none.
    pub(super) fn may_hold_open(
        &self,
        connection: ConnectionId,
        messages: u64,
        bytes: u64,
    ) -> Result<(), &'static str> {
        if !self.divisions.any {
            return Ok(());
        }
        let messages_room =
            u64::from(self.settings.messages / 2).saturating_sub(self.pinned.open_messages.into());
        let bytes_room = (self.settings.body_bytes / 2).saturating_sub(self.pinned.open_bytes);
        let kept = |divided: &Divided, held: &Held| {
            let messages = divided.open_messages.kept_from(held.open_messages, messages);
            (messages, divided.open_bytes.kept_from(held.open_bytes, bytes))
        };
        let Holder { vhost, user } = self.holder(connection);
        let of_vhost =
            vhost.map_or((0, 0), |vhost| kept(&self.divisions.vhosts, self.access.vhost_held(vhost)));
        let of_user = user.map_or((0, 0), |user| kept(&self.divisions.users, self.access.user_held(user)));
        // Within its own parts it is not asked how much there is: that is kept for it.
        let fits = |room: u64, wanted: u64, kept: u64| kept == 0 || room >= wanted + kept;
        if !fits(messages_room, messages, of_vhost.0 + of_user.0) {
            return Err("messages_max");
        }
        if fits(bytes_room, bytes, of_vhost.1 + of_user.1) { Ok(()) } else { Err("body_bytes_max") }
    }

    /// A connection has so many messages more in open transactions.
    pub(super) fn hold_open(&mut self, connection: ConnectionId, messages: u64, bytes: u64) {
        if !self.divisions.any {
            return;
        }
        let take = |divided: &mut Divided, held: &mut Held| {
            divided.open_messages.take(held.open_messages, messages);
            divided.open_bytes.take(held.open_bytes, bytes);
            held.open_messages += messages;
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
        let deliveries = (self.deliveries.len() + self.deliveries.room()) as u64;
        let pools = [deliveries, (self.settings.messages / 2).into(), self.settings.body_bytes / 2];
        self.divisions.vhosts = Divided::new(pools, self.access.vhosts_held());
        self.divisions.users = Divided::new(pools, self.access.users_held());
        self.over_share.note_change();
    }

    /// Tells the pool of messages who its memory is divided among, if that has changed.
    pub(super) fn divide_messages(&mut self, messages: &mut Messages) {
        if !core::mem::take(&mut self.divisions.changed) {
            return;
        }
        let owners = self.access.vhost_ids().map(owner_of);
        messages.divide_among(owners.clone(), self.access.senders());
        self.fifo_pool.divide_among(self.fan_out_max(), owners);
    }
}

/// The same, where there is no channel yet that it could close.
pub(super) fn of_connection(fault: Fault) -> Fault {
    Fault { scope: Scope::Connection, ..fault }
}

fn kept_from(all: impl Iterator<Item = u64> + Clone, own: u64, room: u64, places: u64) -> u64 {
    Division::new(room + all.clone().sum::<u64>(), all).kept_from(own, places)
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
