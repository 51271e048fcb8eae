//! How users, virtual hosts and permissions are written down.
//!
//! Why it exists: who may come in is for the log alone to say. The user of a new store is written at the
//! first change, so a guest that was deleted stays deleted.
//!
//! Always true: what is written is true at every point of the log, so a power cut in the middle of a change
//! leaves the old or the new.

use leveret_core::command::VhostId;
use leveret_core::journal::{Batch, Definition, Journal, Mode};

use super::records::{UserLimits, VhostLimits};
use super::state::{Access, vhost_at};

impl Access {
    /// Writes down that a virtual host exists, or is gone.
    pub(crate) fn append_vhost(&mut self, journal: &mut Journal, vhost: VhostId, exists: bool) -> Batch {
        if !self.begin_to_write(journal) {
            return Batch::NONE;
        }
        let record = &self.vhosts[vhost.index()];
        let VhostLimits { queues_max, connections_max } = record.limits;
        let metadata = record.metadata();
        let definition = Definition::Vhost { name: &record.name, queues_max, connections_max, metadata };
        let (key, value) = (definition.key(), exists.then(|| definition.value()));
        journal.define(key, value)
    }

    /// Writes down that a user exists, or is gone.
    pub(super) fn append_user(&mut self, journal: &mut Journal, user: usize, exists: bool) -> Batch {
        if !self.begin_to_write(journal) {
            return Batch::NONE;
        }
        let record = &self.users[user];
        let hash = record.hash().to_bytes();
        let definition = Definition::User { name: record.name(), tags: record.tags(), hash: &hash };
        let (key, value) = (definition.key(), exists.then(|| definition.value()));
        journal.define(key, value)
    }

    /// Writes down the limits of a user, or that there are none.
    pub(super) fn append_user_limits(&mut self, journal: &mut Journal, user: usize, exist: bool) -> Batch {
        if !self.begin_to_write(journal) {
            return Batch::NONE;
        }
        let UserLimits { connections_max, channels_max } = self.users[user].limits;
        let user = self.user_name(user);
        let definition = Definition::UserLimits { user, connections_max, channels_max };
        let (key, value) = (definition.key(), exist.then(|| definition.value()));
        journal.define(key, value)
    }

    /// Writes down the permission of a user in a virtual host, or that there is none.
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
        let patterns = self.permissions[index].patterns.each_ref().map(|pattern| pattern.text());
        let (user, vhost) = (self.user_name(user), self.vhost_name(vhost));
        let definition = Definition::Permission { vhost, user, patterns };
        let (key, value) = (definition.key(), exists.then(|| definition.value()));
        journal.define(key, value)
    }

    /// Writes down the topic permission of a user for an exchange, or that there is none.
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
        let patterns = self.topics[index].patterns.each_ref().map(|pattern| pattern.text());
        let (user, vhost) = (self.user_name(user), self.vhost_name(vhost));
        let definition = Definition::TopicPermission { vhost, user, exchange, patterns };
        let (key, value) = (definition.key(), exists.then(|| definition.value()));
        journal.define(key, value)
    }

    /// Before the first change: writes down everything there is. `false`: nothing is written at all.
    fn begin_to_write(&mut self, journal: &mut Journal) -> bool {
        if journal.mode() != Mode::On {
            return false;
        }
        if !self.is_written {
            self.write_access(journal);
        }
        true
    }

    /// Writes down everything there is, and last that it is complete.
    pub fn write_access(&mut self, journal: &mut Journal) -> Batch {
        if journal.mode() != Mode::On {
            return Batch::NONE;
        }
        self.is_written = true;
        for index in 0..self.vhosts.places() {
            if self.vhosts.get(index).is_some_and(|vhost| !vhost.dying) {
                self.append_vhost(journal, vhost_at(index), true);
            }
        }
        for index in 0..self.users.places() {
            if let Some(user) = self.users.get(index) {
                let has_limits = user.limits != UserLimits::default();
                self.append_user(journal, index, true);
                if has_limits {
                    self.append_user_limits(journal, index, true);
                }
            }
        }
        for index in 0..self.permissions.places() {
            if let Some(permission) = self.permissions.get(index) {
                let (user, vhost) = (permission.user, permission.vhost);
                self.append_permission(journal, user, vhost, true);
            }
        }
        for index in 0..self.topics.places() {
            if let Some(topic) = self.topics.get(index) {
                let (user, vhost, exchange) = (topic.user, topic.vhost, topic.exchange.clone());
                self.append_topic_permission(journal, user, vhost, &exchange, true);
            }
        }
        let all = Definition::AccessWritten;
        journal.define(all.key(), Some(all.value()))
    }
}
