//! The records of the holdings of connections.
//!
//! Always true: a connection is known by its id and by a number that no other connection has had.

use crate::command::ConnectionId;

use super::held::{Declarer, Holder, Holdings, Pinned, Pool};

/// The holdings of one connection.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Share {
    /// The number of the connection, which tells it from others that had its id before; 0 for no connection.
    pub(super) life: u32,
    pub(super) holder: Holder,
    /// The connection counts among those of its virtual host and its user.
    pub(super) is_counted: bool,
    pub(super) holdings: Holdings,
    pub(super) pinned: Pinned,
    /// Unsettled deliveries of all channels of the connection.
    pub(super) unsettled: u32,
    pub(super) channels: u32,
    /// Consumer records of all channels of the connection, the stand-ins of gets included.
    pub(super) consumers: u32,
}

impl Share {
    pub(super) const fn of(&self, pool: Pool) -> u32 {
        match pool {
            Pool::Channels => self.channels,
            Pool::Consumers => self.consumers,
        }
    }

    pub(super) const fn of_mut(&mut self, pool: Pool) -> &mut u32 {
        match pool {
            Pool::Channels => &mut self.channels,
            Pool::Consumers => &mut self.consumers,
        }
    }
}

/// All connections, by their ids.
#[derive(Debug)]
pub(super) struct Connections {
    /// As many shares as there were connections at once: room that was never used is not touched.
    shares: Vec<Share>,
    /// Connections ever made, which numbers them.
    serial: u32,
}

impl Connections {
    pub(super) fn with_capacity(count: usize) -> Self {
        Self { shares: Vec::with_capacity(count), serial: 0 }
    }

    /// Begins the share of a new connection, with a new number.
    pub(super) fn begin(&mut self, connection: ConnectionId) {
        // No connection has the number 0.
        self.serial = self.serial.wrapping_add(1).max(1);
        let index = connection.index();
        assert!(index < self.shares.capacity(), "there is room for every connection from the start");
        if index >= self.shares.len() {
            self.shares.resize(index + 1, Share::default());
        }
        self.shares[index] = Share { life: self.serial, ..Share::default() };
    }

    #[inline]
    pub(super) fn of(&self, connection: ConnectionId) -> &Share {
        &self.shares[connection.index()]
    }

    #[inline]
    pub(super) fn of_mut(&mut self, connection: ConnectionId) -> &mut Share {
        &mut self.shares[connection.index()]
    }

    /// The holdings of the connection that declared something, unless it is gone.
    pub(super) fn of_declarer(&mut self, declarer: Declarer) -> Option<&mut Share> {
        let (connection, life) = declarer.connection();
        self.shares.get_mut(connection.index()).filter(|share| life != 0 && share.life == life)
    }

    #[inline]
    pub(super) fn holder(&self, connection: ConnectionId) -> Holder {
        self.of(connection).holder
    }

    /// The virtual host and user that a connection holds something for; `None` for one that never came.
    #[inline]
    pub(super) fn holder_of(&self, connection: ConnectionId) -> Option<Holder> {
        self.shares.get(connection.index()).map(|share| share.holder)
    }

    /// Each connection's virtual host and user, its unsettled deliveries, and the memory for messages that it
    /// keeps.
    pub(super) fn holders(&self) -> impl Iterator<Item = (Holder, u32, Pinned)> {
        self.shares.iter().map(|share| (share.holder, share.unsettled, share.pinned))
    }

    /// Notes that a user is deleted.
    pub(super) fn forget_user(&mut self, user: usize) {
        for share in &mut self.shares {
            share.holder.user = share.holder.user.filter(|other| *other != user);
        }
    }
}
