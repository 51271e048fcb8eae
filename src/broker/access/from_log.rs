//! Users, virtual hosts and permissions are restored at a start, and confirmed when the store cannot vouch
//! for them.
//!
//! Always true: when the log cannot vouch for what it says (`store::access`), nobody logs in until somebody
//! has looked and confirmed what there is; a definition without its user or virtual host is forgotten at the
//! next start, after a doubt when somebody confirms, and never while its user may only be missing for lack of
//! room.

use leveret_core::journal::definition::ACCESS_WRITTEN_KEY;
use leveret_core::journal::{Batch, Definition, Journal, Mode};
use leveret_core::password::{self, PasswordHash};

use super::fault::OperatorFault;
use super::records::{User, UserLimits};
use super::state::{ADMINISTRATOR, Access, FIRST_VHOST, GUEST};
use crate::faults::check_changeable;
use crate::restored::Restored;

impl Access {
    /// Confirms all users and permissions as they are now, for somebody who has looked at them: the store
    /// forgets others, and logins are possible again.
    ///
    /// # Errors
    /// The store cannot be written, or has no room.
    pub fn confirm_access(&mut self, journal: &mut Journal) -> Result<Batch, OperatorFault> {
        check_changeable(journal)?;
        for key in core::mem::take(&mut self.unreadable) {
            if *key != ACCESS_WRITTEN_KEY {
                journal.define(key, None);
            }
        }
        self.doubt = None;
        Ok(self.write_access(journal))
    }

    // ---- at a start

    /// Adds guest, who may do everything in the virtual host of a new store.
    ///
    /// # Errors
    /// There is no room for one user and one permission.
    pub(crate) fn begin_guest(&mut self) -> Result<(), OperatorFault> {
        let guest = User::new(GUEST, ADMINISTRATOR, password::GUEST);
        let user = self.add_user(guest).ok_or(OperatorFault::NoRoom("users_max"))?;
        let vhost = self.require_vhost(FIRST_VHOST)?;
        self.put_permission(user, vhost, [".*"; 3])
    }

    /// Sets the user of a new store, who may do everything in `/`; or none.
    pub(crate) fn begin_users(&mut self, first: Option<(&str, PasswordHash)>) {
        self.forget_users();
        let Some((name, hash)) = first else { return };
        let Some(user) = self.add_user(User::new(name, ADMINISTRATOR, hash)) else {
            panic!("users_max is at least 1, and there is nobody")
        };
        if let Some(vhost) = self.find_vhost(FIRST_VHOST) {
            let _ = self.put_permission(user, vhost, [".*"; 3]);
        }
    }

    /// Notes that the store cannot vouch for its users: nobody logs in until somebody confirms them.
    /// `unreadable` are keys of definitions that the store cannot read.
    pub(crate) fn doubt_users(&mut self, why: &'static str, unreadable: Vec<Box<[u8]>>) {
        self.forget_users();
        self.is_written = true;
        self.doubt = Some(why);
        self.unreadable = unreadable;
    }

    /// Notes definitions whose user cannot be read: while the store is in doubt they wait to be forgotten on
    /// confirmation; else they are forgotten at once.
    pub fn hide_access(&mut self, journal: &mut Journal, keys: Vec<Box<[u8]>>) {
        if self.doubt.is_some() {
            self.unreadable.extend(keys);
        } else {
            for key in keys {
                journal.define(key, None);
            }
        }
    }

    /// Why nobody may log in, if that is so.
    pub const fn access_doubt(&self) -> Option<&'static str> {
        self.doubt
    }

    /// What to do when nobody may log in: only a store that can be written can be confirmed.
    pub fn doubt_remedy(&self, journal: &Journal) -> &'static str {
        match journal.mode() {
            Mode::On => "mend them, then confirm_users (see `leveret ctl help confirm_users`)",
            _ => "see to the disk and start again",
        }
    }

    /// Whether the log says who there is: then the user assumed for a new store is dropped. When the store is
    /// in doubt, the first virtual host stays, so that its queues can be found again.
    pub(crate) fn forget_first_users(&mut self) -> bool {
        if self.doubt.is_some() {
            return false;
        }
        self.is_written = true;
        self.forget_users();
        true
    }

    /// Puts back a user or permission from the log; definitions come in the order of their keys.
    pub(crate) fn restore(&mut self, definition: &Definition<'_>) -> Restored {
        let result = match *definition {
            Definition::User { name, tags, hash } => self.restore_user(name, tags, hash),
            Definition::UserLimits { user, connections_max, channels_max } => {
                let Some(user) = self.find_user(user) else { return self.orphaned() };
                self.users[user].limits = UserLimits { connections_max, channels_max };
                Ok(())
            }
            Definition::Permission { vhost, user, patterns } => {
                let Some((user, vhost)) = self.find_user(user).zip(self.find_vhost(vhost)) else {
                    return self.orphaned();
                };
                self.put_permission(user, vhost, patterns)
            }
            Definition::TopicPermission { vhost, user, exchange, patterns } => {
                let Some((user, vhost)) = self.find_user(user).zip(self.find_vhost(vhost)) else {
                    return self.orphaned();
                };
                self.put_topic(user, vhost, exchange, patterns)
            }
            Definition::AccessWritten
            | Definition::Vhost { .. }
            | Definition::Exchange { .. }
            | Definition::Queue { .. }
            | Definition::Binding { .. }
            | Definition::Policy { .. }
            | Definition::Parameter { .. } => return Restored::Orphaned,
        };
        match result {
            Ok(()) => Restored::Exists(None),
            Err(_) => self.no_room_at_start(),
        }
    }

    fn restore_user(&mut self, name: &str, tags: &str, hash: &[u8]) -> Result<(), OperatorFault> {
        // A hash of a kind that only a later version knows fits no password here, and stays in the log.
        let hash = PasswordHash::from_bytes(hash).unwrap_or(PasswordHash::Nobodys);
        if let Some(user) = self.find_user(name) {
            self.users[user].set_tags(tags);
            self.users[user].set_hash(hash);
            return Ok(());
        }
        let added = self.add_user(User::new(name, tags, hash));
        added.map(|_| ()).ok_or(OperatorFault::NoRoom("users_max"))
    }

    /// Notes that a definition has no room at a start, so that others may seem to lack their user or virtual
    /// host.
    pub(crate) fn no_room_at_start(&mut self) -> Restored {
        self.lacks_room = true;
        Restored::NoRoom
    }

    /// The result for a definition whose virtual host or user does not exist.
    pub(crate) const fn orphaned(&self) -> Restored {
        if self.lacks_room { Restored::NoRoom } else { Restored::Orphaned }
    }

    fn forget_users(&mut self) {
        for index in 0..self.permissions.places() {
            if self.permissions.get(index).is_some() {
                self.remove_permission(index);
            }
        }
        for index in 0..self.users.places() {
            if self.users.get(index).is_some() {
                self.users.remove(index);
            }
        }
    }
}
