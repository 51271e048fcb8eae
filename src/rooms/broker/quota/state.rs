//! All that is known of shares, who comes and goes, and how the pools hear of it.

use crate::command::{ConnectionId, VhostId};
use crate::journal::Journal;
use crate::limits::Limits;
use crate::mem::{FifoPool, Messages, Owner};

use super::disk::LogShares;
use super::held::{Pinned, owner_of};
use super::shares::{Connections, Share};
use super::tenants::Tenants;

/// The sizes of the pools that are divided, in records or bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub(super) names_bytes: usize,
    pub(super) exchanges: usize,
    pub(super) binding_places: usize,
    pub(super) deliveries: u64,
    /// Message slots and bytes of blocks that ordinary publishers may use.
    pub(super) messages: u32,
    pub(super) body_bytes: u64,
}

/// What is taken of the pools, and by whom.
#[derive(Debug)]
pub(crate) struct Quota {
    pub(super) sizes: Sizes,
    /// Bytes of the names and arguments of all that is declared.
    pub(super) names_bytes: usize,
    /// Places that bindings take; most take one.
    pub(super) binding_places: usize,
    /// Exchanges that somebody declared.
    pub(super) exchanges: usize,
    /// What all connections keep of the memory for messages.
    pub(super) pinned: Pinned,
    pub(super) connections: Connections,
    pub(super) tenants: Tenants,
    /// What the messages of each virtual host take of the disk.
    pub(super) disk: LogShares,
    /// The pools of messages and of entries are to hear of a virtual host or a user that came or went.
    is_to_tell: bool,
}

impl Quota {
    /// What the record of a connection takes here.
    pub(crate) const CONNECTION_BYTES: usize = size_of::<Share>();
    /// What the record of a virtual host takes here, and what it has in the log.
    pub(crate) const VHOST_BYTES: usize = Tenants::VHOST_BYTES + size_of::<u64>();
    /// What the record of a user takes here.
    pub(crate) const USER_BYTES: usize = Tenants::USER_BYTES;

    pub(crate) fn new(limits: &Limits) -> Self {
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
            disk: LogShares::with_capacity(limits.vhosts_max as usize),
            is_to_tell: false,
        }
    }

    // ---- who comes and goes

    /// These virtual hosts and users there are now, each user with the number that no other has had. What was declared
    /// in a virtual host that is gone is gone; what a user declared who is gone, and what his connections still hold,
    /// is no user's any more.
    pub(crate) fn share_among(
        &mut self,
        vhosts: impl Iterator<Item = VhostId>,
        users: impl Iterator<Item = (usize, u32)>,
    ) {
        self.tenants.vhosts_are(vhosts);
        for gone in self.tenants.users_are(users) {
            self.connections.forget_user(gone);
        }
        self.disk.forget();
        self.divide();
    }

    /// Divides the pools anew: a virtual host or a user has come or gone.
    fn divide(&mut self) {
        self.is_to_tell = true;
        let pools = [self.sizes.deliveries, (self.sizes.messages / 2).into(), self.sizes.body_bytes / 2];
        self.tenants.divide(pools, self.connections.holders());
    }

    /// Whether the pools of messages and of entries are to hear who shares them now.
    pub(crate) const fn has_to_tell(&self) -> bool {
        self.is_to_tell
    }

    /// Tells them, if that has changed.
    pub(crate) fn tell(&mut self, messages: &mut Messages, entries: &mut FifoPool, fan_out_max: usize) {
        if core::mem::take(&mut self.is_to_tell) {
            messages.divide_among(self.tenants.vhosts().map(owner_of), self.tenants.senders());
            entries.divide_among(fan_out_max, self.tenants.vhosts().map(owner_of));
        }
    }

    /// The owner of the memory that messages of a connection take: its virtual host and its user.
    #[inline]
    pub(crate) fn owner(&self, connection: ConnectionId) -> Owner {
        let Some(holder) = self.connections.holder_of(connection) else { return Owner::default() };
        let owner = holder.vhost.map_or_else(Owner::default, owner_of);
        holder.user.map_or(owner, |user| owner.with_user(user))
    }

    // ---- what is held

    /// How much is taken and how much there is of places of bindings, of exchanges and of bytes of names.
    pub(crate) const fn fills(&self) -> [(usize, usize); 3] {
        let sizes = self.sizes;
        [
            (self.binding_places, sizes.binding_places),
            (self.exchanges, sizes.exchanges),
            (self.names_bytes, sizes.names_bytes),
        ]
    }

    /// Bytes of names and arguments.
    pub(crate) const fn names_bytes(&self) -> usize {
        self.names_bytes
    }

    /// Exchanges that somebody declared.
    pub(crate) const fn exchanges(&self) -> usize {
        self.exchanges
    }

    /// What all connections keep of the memory for messages.
    pub(crate) const fn pinned(&self) -> Pinned {
        self.pinned
    }

    /// What the messages of each virtual host take of the disk.
    #[inline]
    pub(crate) const fn disk(&self) -> &LogShares {
        &self.disk
    }

    /// Counts what the messages of each virtual host take in the log, if that matters now; `queues`: the virtual host of
    /// each queue with what it has there.
    pub(crate) fn weigh_disk(&mut self, journal: &mut Journal, queues: impl Iterator<Item = (VhostId, u64)>) {
        let is_divided = self.tenants.is_divided();
        self.disk.weigh(journal, is_divided, self.tenants.vhosts(), queues);
    }

    /// Somebody is about to wait for room on the disk: what was counted is counted anew.
    pub(crate) const fn forget_disk(&mut self) {
        self.disk.forget();
    }

    /// Messages of a virtual host that take so many bytes of the disk are to be written.
    #[inline]
    pub(crate) fn take_disk(&mut self, vhost: VhostId, bytes: u64) {
        self.disk.count(vhost, bytes);
    }

    /// A publisher of a virtual host that has its share of the disk waits.
    pub(crate) fn want_disk(&mut self, journal: &mut Journal, vhost: VhostId) {
        self.disk.want_room(journal, vhost);
    }

    /// Rises with what somebody may wait for who was not left any room on the disk.
    pub(crate) const fn room_made(&self) -> u64 {
        self.disk.room_made()
    }

    /// Virtual hosts and users that hold something.
    pub(crate) fn holders(&self) -> usize {
        self.tenants.holders()
    }
}
