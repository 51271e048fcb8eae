//! Connections: their records, the login, the virtual host and the channels.

use leveret_core::command::{Answer, ChannelId, ConnectionId, LoginAnswer, LoginCommand};
use leveret_core::error::{Fault, ReplyCode};
use leveret_core::password::PasswordCheck;
use leveret_storage::PendingWrites;

use super::forced;
use crate::Broker;
use crate::access::{Identity, Login};

impl Broker {
    pub(crate) fn open_channel(&mut self, connection: ConnectionId, number: u16) -> Result<ChannelId, Fault> {
        let record = self.clients.connection(connection);
        let vhost = record.vhost.ok_or_else(|| {
            Fault::connection(ReplyCode::ChannelError, format_args!("no virtual host is open"))
        })?;
        self.access.check_user_channels(&record.identity, self.load_of(&record.identity))?;
        let channel = self.clients.open_channel(&mut self.quota, connection, vhost, number)?;
        self.counters.channels_opened += 1;
        self.clients.channel_mut(channel).serial = self.counters.channels_opened;
        Ok(channel)
    }

    /// Creates the record of a connection, before the handshake.
    ///
    /// # Errors
    /// No connection record is free, because those of lost connections are still being cleared.
    pub fn connect(&mut self) -> Option<ConnectionId> {
        self.clients.connect(&mut self.quota)
    }

    /// Returns the number of free connection records. Records of lost connections that are still being
    /// cleared are not free.
    pub fn connections_free(&self) -> usize {
        self.clients.connections_fill().free_count()
    }

    /// Returns whether there are records for `count` more connections, but no memory for them.
    pub fn lacks_memory_for_connections(&self, count: usize) -> bool {
        self.clients.lacks_memory_for_connections(count)
    }

    /// Returns whether the records of closed connections are still being cleared.
    pub fn is_clearing_connections(&self) -> bool {
        self.clients.is_clearing_connections()
    }

    /// Requests that the event loop close a connection: with `connection.close`, code 320 and this reason.
    pub fn force_close(&mut self, connection: ConnectionId, reason: &str) {
        self.clients.force_close(connection, forced(reason));
    }

    /// Returns the next connection for which [`Self::force_close`] was called, and the fault with the reason.
    pub fn next_forced(&mut self) -> Option<(ConnectionId, Fault)> {
        self.clients.next_forced()
    }

    /// Returns whether [`Self::next_forced`] would return a connection.
    pub fn has_forced(&self) -> bool {
        self.clients.has_forced()
    }

    /// Returns whether jobs of the connection's last command are not done. The caller does not read the
    /// connection until then.
    pub fn is_busy(&self, connection: ConnectionId) -> bool {
        self.clients.is_busy(connection)
    }

    /// Returns the next connection with new deliveries in its outbox.
    pub fn next_with_output(&mut self) -> Option<ConnectionId> {
        self.clients.next_with_output()
    }

    /// Sets the name of a connection in firehose copies. A name that is too long is truncated.
    pub fn set_firehose_name(&mut self, connection: ConnectionId, name: &str) {
        let Some(place) = self.firehose.names.get_mut(connection.index()) else { return };
        place.clear();
        for letter in name.chars() {
            if place.push(letter).is_err() {
                break;
            }
        }
    }

    /// Logs a connection in, if no password must be checked.
    pub(crate) fn login(
        &mut self,
        pending_writes: &PendingWrites,
        connection: ConnectionId,
        command: &LoginCommand<'_>,
    ) -> Result<LoginAnswer, Fault> {
        let login = match *command {
            LoginCommand::Password { user, password, from_loopback } => {
                self.access.login(pending_writes, user, password.0, from_loopback)?
            }
            LoginCommand::External { user, from_loopback } => {
                Login::Admitted(self.access.login_external(pending_writes, user, from_loopback)?)
            }
        };
        match login {
            Login::Admitted(identity) => {
                self.admit(connection, identity);
                Ok(LoginAnswer::LoggedIn)
            }
            Login::Check(check) => Ok(LoginAnswer::Check(check)),
        }
    }

    /// Completes a login after the check of its password. Returns the answer to the login command.
    ///
    /// # Errors
    /// The password is wrong, or the user may not log in any more.
    pub fn checked(
        &mut self,
        pending_writes: &PendingWrites,
        connection: ConnectionId,
        check: &PasswordCheck,
        is_correct: bool,
    ) -> Result<Answer, Fault> {
        let identity = self.access.admit_checked(pending_writes, check, is_correct)?;
        self.admit(connection, identity);
        Ok(Answer::LoggedIn)
    }

    fn admit(&mut self, connection: ConnectionId, identity: Identity) {
        self.quota.logged_in(connection, identity.user());
        self.clients.connection_mut(connection).identity = identity;
    }

    /// Handles `connection.open`.
    pub(crate) fn open_vhost(&mut self, connection: ConnectionId, name: &str) -> Result<(), Fault> {
        let who = &self.clients.connection(connection).identity;
        let connections_in = |vhost| self.quota.connections_in(vhost);
        let vhost = self.access.check_open(who, name, connections_in, self.load_of(who))?;
        self.quota.enter_vhost(connection, vhost);
        self.access.add_vhost_reference(vhost);
        self.clients.connection_mut(connection).vhost = Some(vhost);
        Ok(())
    }
}
