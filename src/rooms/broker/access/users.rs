//! Users: made, found, removed, and put out.

use crate::command::ConnectionId;
use crate::error::Fault;
use crate::password;

use super::records::User;
use super::state::{ADMINISTRATOR, FIRST_VHOST, GUEST};
use crate::broker::Broker;
use crate::broker::records::Connection;

impl Broker {
    /// What a new store begins with: `/`, and guest, who may do everything there.
    pub(in crate::broker) fn begin_access(&mut self) -> Result<(), Fault> {
        let vhost = self.add_vhost(FIRST_VHOST)?;
        let user = User::new(GUEST, ADMINISTRATOR, password::GUEST);
        let Some(user) = self.add_user(user) else { return Err(self.out_of("users_max")) };
        let everything = [".*"; 3];
        self.put_permission(user, vhost, everything).map_err(|_| self.out_of("permissions_max"))
    }

    /// Users that may come in from this machine only.
    pub fn set_loopback_users(&mut self, users: &[String]) {
        self.access.loopback_users = users.iter().map(|user| user.as_str().into()).collect();
    }

    /// Says so if guest still has the password that everybody knows, and may come in from anywhere; and if
    /// there is nobody else, and other machines are listened to in vain.
    pub fn warn_of_guest(&self, listens_to_others: bool) {
        let is_known = |user: &User| user.name() == GUEST && *user.hash() == password::GUEST;
        let mut users = self.access.users.iter();
        if listens_to_others && self.is_loopback_user(GUEST) && users.all(|(_, user)| user.name() == GUEST) {
            log::info!(
                "nobody can log in from another machine yet, for guest may only from this one; make a user: \
                 leveretctl add_user NAME; leveretctl set_permissions NAME '.*' '.*' '.*'"
            );
        }
        if !self.is_loopback_user(GUEST) && self.access.users.iter().any(|(_, user)| is_known(user)) {
            log::warn!("guest may come in from anywhere, and everybody knows its password: give it another");
        }
    }

    pub(super) fn is_loopback_user(&self, user: &str) -> bool {
        self.access.loopback_users.iter().any(|other| **other == *user)
    }

    pub(super) fn find_user(&self, name: &str) -> Option<usize> {
        self.access.users.iter().find(|(_, user)| user.name() == name).map(|(index, _)| index)
    }

    /// `None`: there is no room for one more.
    pub(super) fn add_user(&mut self, mut user: User) -> Option<usize> {
        self.access.epoch += 1;
        user.life = self.access.epoch;
        let life = user.life;
        let index = self.access.users.insert(user).ok()?;
        self.quota.user_came(index, life);
        self.note_tenants();
        Some(index)
    }

    pub(super) fn remove_user(&mut self, user: usize) {
        self.access.users.remove(user);
        self.quota.user_gone(user);
        self.note_tenants();
    }

    /// A virtual host or a user has come or gone: whoever waits for a share asks again.
    pub(super) fn note_tenants(&mut self) {
        self.log_shares.forget();
        self.over_share.note_change();
    }

    pub(super) fn user_name(&self, user: usize) -> &str {
        self.access.users[user].name()
    }

    /// Asks the loop to close a connection with connection.close 320 and this reason.
    pub fn force_close(&mut self, connection: ConnectionId, reason: &str) {
        let Some(record) = self.connections.get_mut(connection.index()) else { return };
        if record.forced.is_none() && !record.dying {
            record.forced = Some(reason.into());
            self.access.forced.push_back(connection);
        }
    }

    /// The next connection that is to be closed by force, and what to tell it.
    pub fn next_forced(&mut self) -> Option<(ConnectionId, Fault)> {
        loop {
            let connection = self.access.forced.pop_front()?;
            let record = self.connections.get_mut(connection.index());
            if let Some(reason) = record.and_then(|record| record.forced.take()) {
                let code = crate::error::ReplyCode::ConnectionForced;
                return Some((connection, Fault::connection(code, format_args!("{reason}"))));
            }
        }
    }

    /// Whether a connection is to be closed by force.
    pub fn has_forced(&self) -> bool {
        !self.access.forced.is_empty()
    }

    pub(super) fn force_close_all(&mut self, reason: &str, is_meant: impl Fn(&Connection) -> bool) {
        for index in 0..self.connections.places() {
            if self.connections.get(index).is_some_and(&is_meant) {
                self.force_close(ConnectionId::from_index(index), reason);
            }
        }
    }
}
