//! The holdings of each connection, for its virtual host and its user, and how much it leaves to others.
//!
//! Always true: a connection is known by its id and by a number that no other has had; things that a lost
//! connection declared count for no connection.

use crate::command::{ConnectionId, VhostId};
use crate::error::Fault;

use super::held::{Declarer, Held, Holder, Pinned, Pool};
use super::refused::{has_its_share, of_connection};
use super::state::Quota;

impl Pool {
    const fn key(self) -> &'static str {
        match self {
            Self::Channels => "channels_max",
            Self::Consumers => "consumers_max",
        }
    }

    fn held(self) -> fn(&Held) -> u32 {
        match self {
            Self::Channels => |held| held.channels,
            Self::Consumers => |held| held.consumers,
        }
    }
}

impl Quota {
    /// Notes a new connection, before its handshake.
    pub(crate) fn connection_came(&mut self, connection: ConnectionId) {
        self.connections.begin(connection);
    }

    /// Notes that a connection is gone, and everything that it held was given back.
    pub(crate) fn connection_gone(&mut self, connection: ConnectionId) {
        let share = core::mem::take(self.connections.of_mut(connection));
        assert!(!share.is_counted, "a connection leaves its virtual host before it goes");
        assert_eq!(
            (share.unsettled, share.channels, share.consumers, share.pinned),
            (0, 0, 0, Pinned::default()),
            "a connection that goes holds nothing"
        );
    }

    /// Notes the user that a connection has logged in as.
    pub(crate) fn logged_in(&mut self, connection: ConnectionId, user: Option<usize>) {
        self.connections.of_mut(connection).holder.user = user;
    }

    /// Counts a connection that opens a virtual host; `room`: how many more connections fit.
    ///
    /// # Errors
    /// The virtual host or the user has used up its share of connections.
    pub(crate) fn open_vhost(
        &mut self,
        connection: ConnectionId,
        vhost: VhostId,
        room: usize,
    ) -> Result<(), Fault> {
        let holder = Holder { vhost: Some(vhost), ..self.connections.holder(connection) };
        let checked = self.tenants.check(holder, (room, 0), |held| held.connections, "connections_max");
        checked.map_err(of_connection)?;
        self.enter_vhost(connection, vhost);
        Ok(())
    }

    /// Counts one of the broker's own connections in a virtual host, whatever its share is.
    pub(crate) fn enter_vhost(&mut self, connection: ConnectionId, vhost: VhostId) {
        let share = self.connections.of_mut(connection);
        share.holder.vhost = Some(vhost);
        share.is_counted = true;
        let holder = share.holder;
        self.tenants.count(holder, |held| held.connections += 1);
    }

    /// Counts a connection out of its virtual host and its user.
    pub(crate) fn leave_vhost(&mut self, connection: ConnectionId) {
        let share = self.connections.of_mut(connection);
        if core::mem::take(&mut share.is_counted) {
            let holder = share.holder;
            self.tenants.count(holder, |held| held.connections -= 1);
        }
    }

    /// Connections in a virtual host.
    pub(crate) fn connections_in(&self, vhost: VhostId) -> u32 {
        self.tenants.of_vhost(vhost).connections
    }

    /// Connections of a user, and channels on these.
    pub(crate) fn of_user(&self, user: usize) -> (u32, u32) {
        let held = self.tenants.of_user(user);
        (held.connections, held.channels)
    }

    /// Whether a connection may have one more record of a pool with this much room: it may hold as many as it
    /// leaves to others. A pool without room is not refused here.
    ///
    /// # Errors
    /// The connection, its virtual host or its user has used up its share.
    pub(crate) fn may_take(&self, connection: ConnectionId, pool: Pool, room: usize) -> Result<(), Fault> {
        if room == 0 {
            return Ok(());
        }
        let share = self.connections.of(connection);
        if share.of(pool) as usize >= room {
            return Err(has_its_share("connection", pool.key()));
        }
        self.tenants.check(share.holder, (room, 1), pool.held(), pool.key())
    }

    /// Counts a record of a pool that a connection takes.
    pub(crate) fn take(&mut self, connection: ConnectionId, pool: Pool) {
        let share = self.connections.of_mut(connection);
        *share.of_mut(pool) += 1;
        let holder = share.holder;
        self.tenants.count(holder, |held| *held.of_mut(pool) += 1);
    }

    /// Counts out a record of a pool that a connection gives back.
    pub(crate) fn give_back(&mut self, connection: ConnectionId, pool: Pool) {
        let share = self.connections.of_mut(connection);
        *share.of_mut(pool) -= 1;
        let holder = share.holder;
        self.tenants.count(holder, |held| *held.of_mut(pool) -= 1);
    }

    /// The declarer of things that this connection declares.
    pub(crate) fn declarer(&self, connection: ConnectionId) -> Declarer {
        let share = self.connections.of(connection);
        let user = share.holder.user.map_or(0, |user| self.tenants.life_of(user));
        Declarer::new(connection, share.life, user)
    }
}
