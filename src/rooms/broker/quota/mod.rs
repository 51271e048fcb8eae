//! Quota: what one connection, one user and one virtual host may take of what all of them share.
//!
//! Why it exists: a cap alone protects the board, not the neighbours. One peer that declares until it is refused would
//! leave nothing for anybody else; a connection's share does not hold a program that opens four; and what it declared,
//! or left in durable queues, is still there when its connections are gone.
//!
//! | file | what |
//! |---|---|
//! | `connections` | what each connection holds, and what it leaves to others |
//! | `declared` | queues, exchanges, bindings, names and nodes, which outlive connections |
//! | `messages` | deliveries that are not settled, open transactions, the memory of both |
//! | `tenants` | what each virtual host and each user holds, and the divisions of the pools among them |
//! | `log` | what the messages of each virtual host take of the disk |
//! | `held` | the values |
//!
//! Always true: what is taken is given back as the same thing, by the same connection, user and virtual host, so that
//! everything is 0 when everything was drained and closed. Whoever asks says how much room the pool has; what a
//! connection, a user and a virtual host have of it is known here alone.

mod connections;
mod declared;
mod held;
mod log;
mod messages;
mod tenants;

#[cfg(test)]
mod tests;

pub(super) use declared::Room;
pub(super) use held::{Declared, Declarer, Pinned, Pool, owner_of};
pub(super) use log::LogShares;

use crate::command::{ConnectionId, VhostId};
use crate::error::{Fault, ReplyCode, Scope};
use crate::limits::Limits;
use crate::mem::{FifoPool, Messages, Owner};

use connections::Connections;
use tenants::Tenants;

/// The sizes of the pools that are divided, in records or bytes.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    names_bytes: usize,
    exchanges: usize,
    binding_places: usize,
    deliveries: u64,
    /// Message slots and bytes of blocks that ordinary publishers may use.
    messages: u32,
    body_bytes: u64,
}

/// What is taken of the pools, and by whom.
#[derive(Debug)]
pub(super) struct Quota {
    sizes: Sizes,
    /// Bytes of the names and arguments of all that is declared.
    names_bytes: usize,
    /// Places that bindings take; most take one.
    binding_places: usize,
    /// Exchanges that somebody declared.
    exchanges: usize,
    /// What all connections keep of the memory for messages.
    pinned: Pinned,
    connections: Connections,
    tenants: Tenants,
    /// The pools of messages and of entries are to hear of a virtual host or a user that came or went.
    is_to_tell: bool,
}

impl Quota {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            sizes: Sizes {
                names_bytes: limits.names_bytes_max as usize,
                exchanges: limits.exchanges_max as usize,
                binding_places: limits.bindings_max as usize,
                deliveries: limits.unacknowledged_max.into(),
                messages: limits.messages_max - limits.messages_max / 16,
                body_bytes: limits.body_bytes_max - limits.body_bytes_max / 16,
            },
            names_bytes: 0,
            binding_places: 0,
            exchanges: 0,
            pinned: Pinned::default(),
            connections: Connections::with_capacity(limits.connection_records()),
            tenants: Tenants::with_capacity(limits.vhosts_max as usize, limits.users_max as usize),
            is_to_tell: false,
        }
    }

    // ---- who comes and goes

    /// There is one virtual host more.
    pub(super) fn vhost_came(&mut self, vhost: VhostId) {
        self.tenants.vhost_came(vhost);
        self.divide();
    }

    /// A virtual host is gone, with everything that was declared in it.
    pub(super) fn vhost_gone(&mut self, vhost: VhostId) {
        self.tenants.vhost_gone(vhost);
        self.divide();
    }

    /// There is one user more, whose number `life` no other had before.
    pub(super) fn user_came(&mut self, user: usize, life: u32) {
        self.tenants.user_came(user, life);
        self.divide();
    }

    /// A user is gone: what it declared, and what its connections still hold, is no user's any more.
    pub(super) fn user_gone(&mut self, user: usize) {
        self.connections.forget_user(user);
        self.tenants.user_gone(user);
        self.divide();
    }

    /// Divides the pools anew: a virtual host or a user has come or gone.
    fn divide(&mut self) {
        self.is_to_tell = true;
        let pools = [self.sizes.deliveries, (self.sizes.messages / 2).into(), self.sizes.body_bytes / 2];
        self.tenants.divide(pools, self.connections.holders());
    }

    /// Whether the pools of messages and of entries are to hear who shares them now.
    pub(super) const fn has_to_tell(&self) -> bool {
        self.is_to_tell
    }

    /// Tells them, if that has changed.
    pub(super) fn tell(&mut self, messages: &mut Messages, entries: &mut FifoPool, fan_out_max: usize) {
        if core::mem::take(&mut self.is_to_tell) {
            messages.divide_among(self.tenants.vhosts().map(owner_of), self.tenants.senders());
            entries.divide_among(fan_out_max, self.tenants.vhosts().map(owner_of));
        }
    }

    /// Whether there is more than one virtual host, or more than one user.
    #[inline]
    pub(super) const fn is_divided(&self) -> bool {
        self.tenants.is_divided()
    }

    /// All virtual hosts.
    pub(super) fn vhosts(&self) -> impl Iterator<Item = VhostId> + Clone {
        self.tenants.vhosts()
    }

    /// Whose memory the messages of a connection take.
    #[inline]
    pub(super) fn owner(&self, connection: ConnectionId) -> Owner {
        let Some(holder) = self.connections.holder_of(connection) else { return Owner::default() };
        let owner = holder.vhost.map_or_else(Owner::default, owner_of);
        holder.user.map_or(owner, |user| owner.with_user(user))
    }

    // ---- what is held

    /// How much is taken and how much there is of places of bindings, of exchanges and of bytes of names.
    pub(super) const fn fills(&self) -> [(usize, usize); 3] {
        let sizes = self.sizes;
        [
            (self.binding_places, sizes.binding_places),
            (self.exchanges, sizes.exchanges),
            (self.names_bytes, sizes.names_bytes),
        ]
    }

    /// Bytes of names and arguments.
    pub(super) const fn names_bytes(&self) -> usize {
        self.names_bytes
    }

    /// Exchanges that somebody declared.
    pub(super) const fn exchanges(&self) -> usize {
        self.exchanges
    }

    /// What all connections keep of the memory for messages.
    pub(super) const fn pinned(&self) -> Pinned {
        self.pinned
    }

    /// Virtual hosts and users that hold something.
    pub(super) fn holders(&self) -> usize {
        self.tenants.holders()
    }
}

/// The same fault, where there is no channel yet that it could close.
fn of_connection(fault: Fault) -> Fault {
    Fault { scope: Scope::Connection, ..fault }
}

/// 506: `who` ("connection", "virtual host", "user") has its share of what this key sizes.
fn has_its_share(who: &str, key: &str) -> Fault {
    Fault::new(
        ReplyCode::ResourceError,
        format_args!(
            "this {who} has its share of {key}, the rest is for others: raise it in the configuration"
        ),
    )
}

/// 506: nobody gets more of what this key sizes.
pub(super) fn out_of(key: &str) -> Fault {
    Fault::new(
        ReplyCode::ResourceError,
        format_args!("this broker has no more room for that: raise {key} in its configuration"),
    )
}
