//! Permissions of a user in a virtual host, and the checks.
//!
//! # Invariants
//! - Without a permission a user may do nothing.
//! - The texts of refusals are RabbitMQ's.
//! - Patterns are compiled when they are set, with their variables expanded, because each belongs to one user
//!   and one virtual host.
//! - Every change raises the revision.
//! - A check allocates nothing and searches once.

use leveret_core::command::{NAME_BYTES_MAX, VhostId};
use leveret_core::error::{Advice, Fault, ReplyCode};
use leveret_core::pending_writes::{Batch, PendingWrites};

use super::Access;
use super::login::Identity;
use super::login::OperatorFault;
use super::pattern::{Pattern, escaped};
use super::{Permission, Resource, Right, TopicPermission};
use crate::context::Work;
use crate::reply_text::ExchangeText;
use crate::reply_text::check_changeable;

/// A topic exchange whose routing keys are to be checked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Topic<'a> {
    pub(crate) vhost: VhostId,
    pub(crate) exchange: &'a str,
}

impl Access {
    /// Checks whether a user has this permission for an object of this name, which need not exist.
    ///
    /// # Errors
    /// The user does not have it.
    pub(crate) fn check(
        &self,
        work: &mut Work,
        who: &Identity,
        vhost: VhostId,
        right: Right,
        thing: Resource<'_>,
    ) -> Result<(), Fault> {
        if who.is_own {
            return Ok(());
        }
        let permission = who.user.and_then(|user| self.find_permission(user, vhost));
        let pattern = permission.map(|permission| match right {
            Right::Configure => &self.permissions[permission].patterns[0],
            Right::Write => &self.permissions[permission].patterns[1],
            Right::Read => &self.permissions[permission].patterns[2],
        });
        if pattern.is_some_and(|pattern| pattern.matches(work, thing.name())) {
            return Ok(());
        }
        let fault = Fault::new(
            ReplyCode::AccessRefused,
            format_args!(
                "access to {thing} in vhost '{}' refused for user '{}'",
                self.vhost_name(vhost),
                who.name
            ),
        );
        let is_default = matches!(thing, Resource::Exchange(""));
        Err(if is_default { fault.advising(Advice::MatchDefaultExchange) } else { fault })
    }

    /// Returns whether routing keys are to be checked when a user writes to or reads from a topic exchange.
    #[inline]
    pub(crate) fn limits_topics(&self, who: &Identity) -> bool {
        who.user.is_some_and(|user| self.users[user].topic_permission_count > 0)
    }

    /// Checks whether a user may write to, or read from, a topic exchange with this routing key.
    ///
    /// # Errors
    /// The user may not.
    pub(crate) fn check_topic(
        &self,
        work: &mut Work,
        who: &Identity,
        topic: Topic<'_>,
        right: Right,
        key: &[u8],
    ) -> Result<(), Fault> {
        let Topic { vhost, exchange } = topic;
        let permission = who.user.and_then(|user| self.find_topic_permission(user, vhost, exchange));
        let Some(permission) = permission else { return Ok(()) };
        let [write, read] = &self.topic_permissions[permission].patterns;
        let pattern = if right == Right::Read { read } else { write };
        let key = core::str::from_utf8(key);
        if key.is_ok_and(|key| pattern.matches(work, key)) {
            return Ok(());
        }
        Err(Fault::new(
            ReplyCode::AccessRefused,
            format_args!(
                "access to topic '{}' in {} refused for user '{}'",
                key.unwrap_or_default(),
                ExchangeText { name: exchange, vhost: self.vhost_name(vhost) },
                who.name
            ),
        ))
    }

    /// Returns whether a user may open a virtual host.
    pub fn has_permission(&self, user: &str, vhost: &str) -> bool {
        let (user, vhost) = (self.find_user(user), self.find_vhost(vhost));
        user.zip(vhost).is_some_and(|(user, vhost)| self.find_permission(user, vhost).is_some())
    }

    // ---- changes by an operator

    /// Sets what a user may configure, write to and read from in a virtual host, as patterns of names.
    ///
    /// # Errors
    /// There is no such user or virtual host, a pattern is not valid, or there is no capacity.
    pub fn set_permissions(
        &mut self,
        pending_writes: &mut PendingWrites,
        user: &str,
        vhost: &str,
        configure: &str,
        write: &str,
        read: &str,
    ) -> Result<Batch, OperatorFault> {
        let (user, vhost) = (self.require_user(user)?, self.require_vhost(vhost)?);
        check_changeable(pending_writes)?;
        self.put_permission(user, vhost, [configure, write, read])?;
        Ok(self.append_permission(pending_writes, user, vhost, true))
    }

    /// Clears a user's permission for a virtual host; without one nothing is done.
    ///
    /// # Errors
    /// There is no such user or virtual host, or the storage cannot be written.
    pub fn clear_permissions(
        &mut self,
        pending_writes: &mut PendingWrites,
        user: &str,
        vhost: &str,
    ) -> Result<Batch, OperatorFault> {
        let (user, vhost) = (self.require_user(user)?, self.require_vhost(vhost)?);
        check_changeable(pending_writes)?;
        if let Some(permission) = self.find_permission(user, vhost) {
            self.append_permission(pending_writes, user, vhost, false);
            self.remove_permission(permission);
        }
        Ok(pending_writes.last_entry_batch())
    }

    /// Sets the routing keys with which a user may publish to, and bind to, a topic exchange, which need not
    /// exist.
    ///
    /// # Errors
    /// There is no such user or virtual host, a pattern is not valid, or there is no capacity.
    pub fn set_topic_permissions(
        &mut self,
        pending_writes: &mut PendingWrites,
        user: &str,
        vhost: &str,
        exchange: &str,
        write: &str,
        read: &str,
    ) -> Result<Batch, OperatorFault> {
        let (user, vhost) = (self.require_user(user)?, self.require_vhost(vhost)?);
        if exchange.len() > NAME_BYTES_MAX {
            return Err(OperatorFault::BadName("exchange", "have at most 255 bytes"));
        }
        check_changeable(pending_writes)?;
        self.put_topic(user, vhost, exchange, [write, read])?;
        Ok(self.append_topic_permission(pending_writes, user, vhost, exchange, true))
    }

    /// Clears a user's topic permissions in a virtual host: that for one exchange, or all.
    ///
    /// # Errors
    /// There is no such user or virtual host, or the storage cannot be written.
    pub fn clear_topic_permissions(
        &mut self,
        pending_writes: &mut PendingWrites,
        user: &str,
        vhost: &str,
        exchange: Option<&str>,
    ) -> Result<Batch, OperatorFault> {
        let (user, vhost) = (self.require_user(user)?, self.require_vhost(vhost)?);
        check_changeable(pending_writes)?;
        self.drop_topics(pending_writes, |topic| {
            let is_meant = exchange.is_none_or(|exchange| *topic.exchange == *exchange);
            (topic.user, topic.vhost) == (user, vhost) && is_meant
        });
        Ok(pending_writes.last_entry_batch())
    }

    /// Drops all permissions for a virtual host that is deleted.
    pub(crate) fn drop_permissions_for(&mut self, pending_writes: &mut PendingWrites, vhost: VhostId) {
        self.remove_permissions(pending_writes, |_, other| other == vhost);
    }

    /// Removes every permission for which `is_meant` holds, given its user and its virtual host.
    pub(super) fn remove_permissions(
        &mut self,
        pending_writes: &mut PendingWrites,
        is_meant: impl Fn(usize, VhostId) -> bool,
    ) {
        self.drop_topics(pending_writes, |topic| is_meant(topic.user, topic.vhost));
        for index in 0..self.permissions.places() {
            let Some(permission) = self.permissions.get(index) else { continue };
            let (user, vhost) = (permission.user, permission.vhost);
            if is_meant(user, vhost) {
                self.append_permission(pending_writes, user, vhost, false);
                self.remove_permission(index);
            }
        }
    }

    fn drop_topics(
        &mut self,
        pending_writes: &mut PendingWrites,
        is_meant: impl Fn(&TopicPermission) -> bool,
    ) {
        for index in 0..self.topic_permissions.places() {
            let Some(topic) = self.topic_permissions.get(index).filter(|topic| is_meant(topic)) else {
                continue;
            };
            let (user, vhost, exchange) = (topic.user, topic.vhost, topic.exchange.clone());
            self.append_topic_permission(pending_writes, user, vhost, &exchange, false);
            self.remove_topic(index);
        }
    }

    pub(super) fn put_permission(
        &mut self,
        user: usize,
        vhost: VhostId,
        texts: [&str; 3],
    ) -> Result<(), OperatorFault> {
        let most = self.pattern_bytes.most();
        let [configure, write, read] = texts.map(|text| Pattern::new(text, most));
        let bad = |right, error| OperatorFault::BadPattern { right, why: format!("{error}") };
        let patterns = [
            configure.map_err(|error| bad("configure", error))?,
            write.map_err(|error| bad("write", error))?,
            read.map_err(|error| bad("read", error))?,
        ];
        let old = self.find_permission(user, vhost);
        let freed = old.map_or(0, |old| bytes_of(&self.permissions[old].patterns));
        self.take_room(old.is_none(), bytes_of(&patterns), freed)?;
        match old {
            Some(old) => self.permissions[old].patterns = patterns,
            None => {
                let record = Permission { user, vhost, patterns };
                let index = self.permissions.insert(record);
                let index = index.map_err(|_| OperatorFault::NoCapacity("permissions_max"))?;
                self.permission_table.insert((user, vhost), index);
            }
        }
        self.revision += 1;
        Ok(())
    }

    pub(super) fn put_topic(
        &mut self,
        user: usize,
        vhost: VhostId,
        exchange: &str,
        texts: [&str; 2],
    ) -> Result<(), OperatorFault> {
        let fill = |text: &str| {
            let user = escaped(self.user_name(user));
            let vhost = escaped(self.vhost_name(vhost));
            // AMQP 0-9-1 has no client ids, so RabbitMQ leaves {client_id} unexpanded.
            let meant = text.replace("{username}", &user).replace("{vhost}", &vhost);
            Pattern::expanded(text, &meant, self.pattern_bytes.most())
        };
        let [write, read] = texts.map(fill);
        let bad = |right, error| OperatorFault::BadPattern { right, why: format!("{error}") };
        let patterns =
            [write.map_err(|error| bad("write", error))?, read.map_err(|error| bad("read", error))?];
        let old = self.find_topic_permission(user, vhost, exchange);
        let freed = old.map_or(0, |old| bytes_of(&self.topic_permissions[old].patterns));
        self.take_room(old.is_none(), bytes_of(&patterns), freed)?;
        match old {
            Some(old) => self.topic_permissions[old].patterns = patterns,
            None => {
                let record = TopicPermission { user, vhost, exchange: exchange.into(), patterns };
                let index = self.topic_permissions.insert(record);
                let index = index.map_err(|_| OperatorFault::NoCapacity("permissions_max"))?;
                self.topic_permission_table.insert((user, vhost, exchange), index);
                self.users[user].topic_permission_count += 1;
            }
        }
        self.revision += 1;
        Ok(())
    }

    /// Counts the patterns of a permission in place of its previous patterns.
    fn take_room(&mut self, is_new: bool, bytes: usize, freed: usize) -> Result<(), OperatorFault> {
        let permissions_max = self.permissions.len() + self.permissions.free_count();
        if is_new && self.permissions.len() + self.topic_permissions.len() >= permissions_max {
            return Err(OperatorFault::NoCapacity("permissions_max"));
        }
        self.pattern_bytes.take(bytes, freed)
    }

    pub(super) fn remove_permission(&mut self, index: usize) {
        let permission = self.permissions.remove(index);
        self.permission_table.remove((permission.user, permission.vhost), index);
        self.pattern_bytes.give_back(bytes_of(&permission.patterns));
        self.revision += 1;
    }

    fn remove_topic(&mut self, index: usize) {
        let topic = self.topic_permissions.remove(index);
        self.topic_permission_table.remove((topic.user, topic.vhost, &*topic.exchange), index);
        self.pattern_bytes.give_back(bytes_of(&topic.patterns));
        self.users[topic.user].topic_permission_count -= 1;
        self.revision += 1;
    }
}

fn bytes_of(patterns: &[Pattern]) -> usize {
    patterns.iter().map(Pattern::bytes).sum()
}
