//! How access outlives the broker.
//!
//! Why it exists: who may come in is for the log alone to say. What a new store begins with is written at its
//! first start, so a guest that was deleted stays deleted. When the log cannot vouch for what it says
//! (`store::access`), nobody comes in until somebody has looked and confirmed what there is.
//!
//! Always true: what is written is true at every point of the log, so a power cut in the middle of a change
//! leaves the old or the new; what lost its user or virtual host is forgotten at the next start, after a
//! doubt when somebody confirms, and never while something may only be missing for lack of room.

use crate::command::VhostId;
use crate::journal::definition::ACCESS_WRITTEN_KEY;
use crate::journal::{Batch, Definition, Journal, Mode};
use crate::password::PasswordHash;

use super::fault::OperatorFault;
use super::records::{User, UserLimits, VhostLimits};
use super::state::{ADMINISTRATOR, FIRST_VHOST, vhost_at};
use crate::broker::restored::Restored;
use crate::broker::{Broker, Context};

impl Broker {
    /// Writes down that a virtual host exists, or exists no more.
    pub(super) fn append_vhost(&mut self, journal: &mut Journal, vhost: VhostId, exists: bool) -> Batch {
        if !self.begin_to_write(journal) {
            return Batch::NONE;
        }
        let record = &self.access.vhosts[vhost.index()];
        let VhostLimits { queues_max, connections_max } = record.limits;
        let definition = Definition::Vhost { name: &record.name, queues_max, connections_max };
        let (key, value) = (definition.key(), exists.then(|| definition.value()));
        journal.define(key, value)
    }

    /// Writes down that a user exists, or exists no more.
    pub(super) fn append_user(&mut self, journal: &mut Journal, user: usize, exists: bool) -> Batch {
        if !self.begin_to_write(journal) {
            return Batch::NONE;
        }
        let record = &self.access.users[user];
        let hash = record.hash().to_bytes();
        let definition = Definition::User { name: record.name(), tags: record.tags(), hash: &hash };
        let (key, value) = (definition.key(), exists.then(|| definition.value()));
        journal.define(key, value)
    }

    /// Writes down what a user may have, or that it has no limits.
    pub(super) fn append_user_limits(&mut self, journal: &mut Journal, user: usize, exist: bool) -> Batch {
        if !self.begin_to_write(journal) {
            return Batch::NONE;
        }
        let UserLimits { connections_max, channels_max } = self.access.users[user].limits;
        let user = self.user_name(user);
        let definition = Definition::UserLimits { user, connections_max, channels_max };
        let (key, value) = (definition.key(), exist.then(|| definition.value()));
        journal.define(key, value)
    }

    /// Writes down what a user may do in a virtual host, or that it may do nothing there.
    pub(super) fn append_permission(
        &mut self,
        journal: &mut Journal,
        user: usize,
        vhost: VhostId,
        exists: bool,
    ) -> Batch {
        if !self.begin_to_write(journal) {
            return Batch::NONE;
        }
        let Some(index) = self.find_permission(user, vhost) else { return Batch::NONE };
        let patterns = self.access.permissions[index].patterns.each_ref().map(|pattern| pattern.text());
        let (user, vhost) = (self.user_name(user), self.vhost_name(vhost));
        let definition = Definition::Permission { vhost, user, patterns };
        let (key, value) = (definition.key(), exists.then(|| definition.value()));
        journal.define(key, value)
    }

    /// Writes down which keys of an exchange a user may use, or that it may use all.
    pub(super) fn append_topic_permission(
        &mut self,
        journal: &mut Journal,
        user: usize,
        vhost: VhostId,
        exchange: &str,
        exists: bool,
    ) -> Batch {
        if !self.begin_to_write(journal) {
            return Batch::NONE;
        }
        let Some(index) = self.find_topic(user, vhost, exchange) else { return Batch::NONE };
        let patterns = self.access.topics[index].patterns.each_ref().map(|pattern| pattern.text());
        let (user, vhost) = (self.user_name(user), self.vhost_name(vhost));
        let definition = Definition::TopicPermission { vhost, user, exchange, patterns };
        let (key, value) = (definition.key(), exists.then(|| definition.value()));
        journal.define(key, value)
    }

    /// Before the first change: everything there is goes into the log. `false`: nothing is written at all.
    fn begin_to_write(&mut self, journal: &mut Journal) -> bool {
        if journal.mode() != Mode::On {
            return false;
        }
        if !self.access.is_written {
            self.write_access(journal);
        }
        true
    }

    /// Writes down everything there is, and last that this is all.
    pub fn write_access(&mut self, journal: &mut Journal) -> Batch {
        if journal.mode() != Mode::On {
            return Batch::NONE;
        }
        self.access.is_written = true;
        for index in 0..self.access.vhosts.places() {
            if self.access.vhosts.get(index).is_some_and(|vhost| !vhost.dying) {
                self.append_vhost(journal, vhost_at(index), true);
            }
        }
        for index in 0..self.access.users.places() {
            if let Some(user) = self.access.users.get(index) {
                let has_limits = user.limits != UserLimits::default();
                self.append_user(journal, index, true);
                if has_limits {
                    self.append_user_limits(journal, index, true);
                }
            }
        }
        for index in 0..self.access.permissions.places() {
            if let Some(permission) = self.access.permissions.get(index) {
                let (user, vhost) = (permission.user, permission.vhost);
                self.append_permission(journal, user, vhost, true);
            }
        }
        for index in 0..self.access.topics.places() {
            if let Some(topic) = self.access.topics.get(index) {
                let (user, vhost, exchange) = (topic.user, topic.vhost, topic.exchange.clone());
                self.append_topic_permission(journal, user, vhost, &exchange, true);
            }
        }
        let all = Definition::AccessWritten;
        journal.define(all.key(), Some(all.value()))
    }

    /// Somebody has looked at all users and permissions and says that they are right as they are now: what
    /// the store has of others is forgotten, and logins are possible again.
    ///
    /// # Errors
    /// The store cannot be written, or has no room.
    pub fn confirm_access(&mut self, journal: &mut Journal) -> Result<Batch, OperatorFault> {
        self.check_changeable(journal)?;
        for key in core::mem::take(&mut self.access.unreadable) {
            if *key != ACCESS_WRITTEN_KEY {
                journal.define(key, None);
            }
        }
        self.access.doubt = None;
        Ok(self.write_access(journal))
    }

    // ---- at a start

    /// A new store begins with this user, who may do everything in `/`; or with none.
    pub fn begin_users(&mut self, first: Option<(&str, PasswordHash)>) {
        self.forget_users();
        let Some((name, hash)) = first else { return };
        let Some(user) = self.add_user(User::new(name, ADMINISTRATOR, hash)) else {
            panic!("users_max is at least 1, and there is nobody")
        };
        if let Some(vhost) = self.find_vhost(FIRST_VHOST) {
            let _ = self.put_permission(user, vhost, [".*"; 3]);
        }
    }

    /// The store cannot vouch for who there is: nobody logs in until somebody confirms that. `unreadable` are
    /// keys of definitions that it has and cannot read.
    pub fn doubt_access(&mut self, why: &'static str, unreadable: Vec<Box<[u8]>>) {
        self.forget_users();
        self.access.is_written = true;
        self.access.doubt = Some(why);
        self.access.unreadable = unreadable;
    }

    /// Definitions that belong to nobody who can be read: when nobody is let in, they are forgotten with what
    /// cannot be read; else everybody can be read, and they are forgotten at once.
    pub fn hide_access(&mut self, journal: &mut Journal, keys: Vec<Box<[u8]>>) {
        if self.access.doubt.is_some() {
            self.access.unreadable.extend(keys);
        } else {
            keys.into_iter().for_each(|key| self.forget(journal, &key, &[]));
        }
    }

    /// Why nobody is let in, if that is so.
    pub const fn access_doubt(&self) -> Option<&'static str> {
        self.access.doubt
    }

    /// What to do when nobody is let in: only what can be written down can be confirmed.
    pub fn doubt_remedy(&self, journal: &Journal) -> &'static str {
        match journal.mode() {
            Mode::On => "mend them, then confirm_users (see `leveret ctl help confirm_users`)",
            _ => "see to the disk and start again",
        }
    }

    /// Puts back what the log says of access; in the order of the keys.
    pub(in super::super) fn restore_access(
        &mut self,
        cx: &mut Context<'_>,
        definition: &Definition<'_>,
    ) -> Restored {
        match *definition {
            Definition::AccessWritten => {
                self.forget_defaults(cx);
                Restored::Exists(None)
            }
            Definition::Vhost { name, queues_max, connections_max } => {
                let limits = VhostLimits { queues_max, connections_max };
                let found = match self.find_vhost(name) {
                    Some(vhost) => Some(vhost),
                    None => self.add_vhost(name).ok(),
                };
                match found {
                    Some(vhost) => {
                        self.access.vhosts[vhost.index()].limits = limits;
                        Restored::Exists(None)
                    }
                    None => self.no_room_at_start(),
                }
            }
            Definition::User { name, tags, hash } => self.restore_user(name, tags, hash),
            Definition::UserLimits { user, connections_max, channels_max } => {
                let Some(user) = self.find_user(user) else { return self.orphaned() };
                self.access.users[user].limits = UserLimits { connections_max, channels_max };
                Restored::Exists(None)
            }
            Definition::Permission { vhost, user, patterns } => {
                let Some((user, vhost)) = self.find_user(user).zip(self.find_vhost(vhost)) else {
                    return self.orphaned();
                };
                let put = self.put_permission(user, vhost, patterns);
                self.restored(put)
            }
            Definition::TopicPermission { vhost, user, exchange, patterns } => {
                let Some((user, vhost)) = self.find_user(user).zip(self.find_vhost(vhost)) else {
                    return self.orphaned();
                };
                let put = self.put_topic(user, vhost, exchange, patterns);
                self.restored(put)
            }
            Definition::Exchange { .. }
            | Definition::Queue { .. }
            | Definition::Binding { .. }
            | Definition::Policy { .. }
            | Definition::Parameter { .. } => Restored::Orphaned,
        }
    }

    fn restore_user(&mut self, name: &str, tags: &str, hash: &[u8]) -> Restored {
        // A hash of a kind that only a later version knows fits nobody here, and stays in the log.
        let hash = PasswordHash::from_bytes(hash).unwrap_or(PasswordHash::Nobodys);
        if let Some(user) = self.find_user(name) {
            self.access.users[user].set_tags(tags);
            self.access.users[user].set_hash(hash);
            return Restored::Exists(None);
        }
        match self.add_user(User::new(name, tags, hash)) {
            Some(_) => Restored::Exists(None),
            None => self.no_room_at_start(),
        }
    }

    fn restored(&mut self, put: Result<(), OperatorFault>) -> Restored {
        match put {
            Ok(()) => Restored::Exists(None),
            Err(_) => self.no_room_at_start(),
        }
    }

    fn no_room_at_start(&mut self) -> Restored {
        self.access.lacks_room = true;
        Restored::NoRoom
    }

    /// What a definition is whose virtual host or user is not there.
    pub(in super::super) const fn orphaned(&self) -> Restored {
        if self.access.lacks_room { Restored::NoRoom } else { Restored::Orphaned }
    }

    /// The log says who there is: what a new store begins with is not assumed.
    fn forget_defaults(&mut self, cx: &mut Context<'_>) {
        if self.access.doubt.is_some() {
            // What lies in them is to be found again.
            return;
        }
        self.access.is_written = true;
        self.forget_users();
        for index in 0..self.access.vhosts.places() {
            if self.access.vhosts.get(index).is_some() {
                self.drop_empty_vhost(cx, vhost_at(index));
            }
        }
    }

    fn forget_users(&mut self) {
        for index in 0..self.access.permissions.places() {
            if self.access.permissions.get(index).is_some() {
                self.remove_permission(index);
            }
        }
        for index in 0..self.access.users.places() {
            if self.access.users.get(index).is_some() {
                self.remove_user(index);
            }
        }
    }
}
