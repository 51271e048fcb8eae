//! All shares, virtual hosts and users that come and go, and how the pools hear of them.

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
    /// Message slots that ordinary publishers may use.
    pub(super) messages: u32,
    /// Bytes of message blocks that ordinary publishers may use.
    pub(super) body_bytes: u64,
}

/// How much of the pools is taken, and by whom.
#[derive(Debug)]
pub(crate) struct Quota {
    pub(super) sizes: Sizes,
    /// Bytes of the names and arguments of everything declared.
    pub(super) names_bytes: usize,
    /// Places that bindings take; most take one.
    pub(super) binding_places: usize,
    /// Exchanges that clients declared.
    pub(super) exchanges: usize,
    /// Memory for messages that all connections keep by unsettled deliveries and open transactions.
    pub(super) pinned: Pinned,
    pub(super) connections: Connections,
    pub(super) tenants: Tenants,
    /// Bytes of disk that the messages of each virtual host take.
    pub(super) disk: LogShares,
    /// A virtual host or a user came or went, and the pools of messages and of entries are still to hear of
    /// it.
    is_to_tell: bool,
}

impl Quota {
    /// Bytes that a connection takes in the quota.
    pub(crate) const CONNECTION_BYTES: usize = size_of::<Share>();
    /// Bytes that a virtual host takes in the quota, its count of bytes in the log included.
    pub(crate) const VHOST_BYTES: usize = Tenants::VHOST_BYTES + size_of::<u64>();
    /// Bytes that a user takes in the quota.
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

    /// Sets which virtual hosts and users there are, each user with its number. Things declared in a deleted
    /// virtual host are gone; things that a deleted user declared, and holdings of his connections, belong to
    /// no user any more.
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

    /// Whether the pools of messages and of entries are still to hear who shares them.
    pub(crate) const fn has_to_tell(&self) -> bool {
        self.is_to_tell
    }

    /// Tells the pools of messages and of entries who shares them, if that has changed.
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

    // ---- holdings

    /// How many are taken, and how many there are, of places of bindings, of exchanges and of bytes of names.
    pub(crate) const fn fills(&self) -> [(usize, usize); 3] {
        let sizes = self.sizes;
        [
            (self.binding_places, sizes.binding_places),
            (self.exchanges, sizes.exchanges),
            (self.names_bytes, sizes.names_bytes),
        ]
    }

    /// Bytes of the names and arguments of everything declared.
    pub(crate) const fn names_bytes(&self) -> usize {
        self.names_bytes
    }

    /// Exchanges that clients declared.
    pub(crate) const fn exchanges(&self) -> usize {
        self.exchanges
    }

    /// Memory for messages that all connections keep by unsettled deliveries and open transactions.
    pub(crate) const fn pinned(&self) -> Pinned {
        self.pinned
    }

    /// Bytes of disk that the messages of each virtual host take.
    #[inline]
    pub(crate) const fn disk(&self) -> &LogShares {
        &self.disk
    }

    /// Counts the bytes that the messages of each virtual host take in the log, if that matters now;
    /// `queues`: the virtual host of each queue with its bytes there.
    pub(crate) fn weigh_disk(&mut self, journal: &mut Journal, queues: impl Iterator<Item = (VhostId, u64)>) {
        let is_divided = self.tenants.is_divided();
        self.disk.weigh(journal, is_divided, self.tenants.vhosts(), queues);
    }

    /// Has the bytes in the log counted anew, because a publisher is about to wait for room on the disk.
    pub(crate) const fn forget_disk(&mut self) {
        self.disk.forget();
    }

    /// Counts messages of a virtual host that are to be written, of this many bytes.
    #[inline]
    pub(crate) fn take_disk(&mut self, vhost: VhostId, bytes: u64) {
        self.disk.count(vhost, bytes);
    }

    /// Notes that a publisher waits whose virtual host has used up its share of the disk.
    pub(crate) fn want_disk(&mut self, journal: &mut Journal, vhost: VhostId) {
        self.disk.want_room(journal, vhost);
    }

    /// Rises when room on the disk is made that a publisher refused for his share may wait for.
    pub(crate) const fn room_made(&self) -> u64 {
        self.disk.room_made()
    }

    /// Virtual hosts and users that hold something.
    pub(crate) fn holders(&self) -> usize {
        self.tenants.holders()
    }
}
