//! The records of what connections hold.
//!
//! Always true: a connection is known by its id and by a number that no other has had.

use crate::command::ConnectionId;

use super::held::{Declarer, Holder, Holdings, Pinned, Pool};

/// What one connection holds.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Share {
    /// What tells it from those that had its id before; 0 while there is none.
    pub(super) life: u32,
    pub(super) holder: Holder,
    /// It counts among the connections of its virtual host and its user.
    pub(super) is_counted: bool,
    pub(super) holdings: Holdings,
    pub(super) pinned: Pinned,
    /// Deliveries that are not settled, of all its channels.
    pub(super) unsettled: u32,
    pub(super) channels: u32,
    /// Records of consumers of all its channels; the stand-ins of gets count.
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
    /// As many as there were at once: what nobody used yet of the room for them is not touched.
    shares: Vec<Share>,
    /// Connections that there have been.
    serial: u32,
}

impl Connections {
    pub(super) fn with_capacity(count: usize) -> Self {
        Self { shares: Vec::with_capacity(count), serial: 0 }
    }

    /// A new one, with a number of its own.
    pub(super) fn begin(&mut self, connection: ConnectionId) {
        // 0 is nobody's.
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

    /// What whoever declared something holds, unless that connection is gone.
    pub(super) fn of_declarer(&mut self, declarer: Declarer) -> Option<&mut Share> {
        let (connection, life) = declarer.connection();
        self.shares.get_mut(connection.index()).filter(|share| life != 0 && share.life == life)
    }

    #[inline]
    pub(super) fn holder(&self, connection: ConnectionId) -> Holder {
        self.of(connection).holder
    }

    /// For whom a connection holds something; `None` for one that never came.
    #[inline]
    pub(super) fn holder_of(&self, connection: ConnectionId) -> Option<Holder> {
        self.shares.get(connection.index()).map(|share| share.holder)
    }

    /// For whom each of them holds how many deliveries, and what of the memory for messages.
    pub(super) fn holders(&self) -> impl Iterator<Item = (Holder, u32, Pinned)> {
        self.shares.iter().map(|share| (share.holder, share.unsettled, share.pinned))
    }

    /// The user is gone.
    pub(super) fn forget_user(&mut self, user: usize) {
        for share in &mut self.shares {
            share.holder.user = share.holder.user.filter(|other| *other != user);
        }
    }
}
