//! Permissions of users in virtual hosts: setting, clearing and checking them.
//!
//! # Invariants
//! - Without a permission a user may do nothing.
//! - The error texts of refused operations are RabbitMQ's.
//! - A pattern is compiled when it is set. Its variables `{username}` and `{vhost}` are expanded then,
//!   because each permission has one user and one virtual host.
//! - Every change raises the revision.
//! - A check allocates no memory and looks up one record.

use leveret_amqp::reply_text::ExchangeText;
use leveret_core::batch::Batch;
use leveret_core::command::{NAME_BYTES_MAX, VhostId};
use leveret_core::definition::{Permission, TopicPermission};
use leveret_core::error::{Advice, Fault, ReplyCode};
use leveret_core::work::Work;
use leveret_storage::PendingWrites;

use super::login::Identity;
use super::pattern::{Pattern, escaped};
use super::{Access, PermissionRecord, Resource, Right, TopicPermissionRecord};
use crate::operator_fault::{OperatorFault, check_changeable};

/// The topic exchange for which a routing key is checked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Topic<'a> {
    pub(crate) vhost: VhostId,
    pub(crate) exchange: &'a str,
    /// The client identifier of an MQTT client; `None` for others.
    pub(crate) client_id: Option<&'a str>,
}

impl Access {
    /// Checks whether a user has a permission for an exchange or a queue, which need not exist. Charges the
    /// work of matching.
    ///
    /// # Errors
    /// The user does not have the permission.
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
                who.name()
            ),
        );
        let is_default = matches!(thing, Resource::Exchange(""));
        Err(if is_default { fault.advising(Advice::MatchDefaultExchange) } else { fault })
    }

    /// Returns whether the user has topic permissions, so that routing keys must be checked when it publishes
    /// or binds to a topic exchange.
    #[inline]
    pub(crate) fn limits_topics(&self, who: &Identity) -> bool {
        who.user.is_some_and(|user| self.users[user].topic_permission_count > 0)
    }

    /// Checks whether a user may publish to, or bind to, a topic exchange with this routing key. Without a
    /// topic permission for the exchange, every key is allowed.
    ///
    /// # Errors
    /// The user's topic permission for this exchange does not match the key.
    pub(crate) fn check_topic(
        &self,
        work: &mut Work,
        who: &Identity,
        topic: Topic<'_>,
        right: Right,
        key: &[u8],
    ) -> Result<(), Fault> {
        let Topic { vhost, exchange, client_id } = topic;
        let permission = who.user.and_then(|user| self.find_topic_permission(user, vhost, exchange));
        let Some(permission) = permission else { return Ok(()) };
        let [write, read] = &self.topic_permissions[permission].patterns;
        let pattern = if right == Right::Read { read } else { write };
        let key = core::str::from_utf8(key);
        if key.is_ok_and(|key| pattern.matches_of(work, key, client_id)) {
            return Ok(());
        }
        Err(Fault::new(
            ReplyCode::AccessRefused,
            format_args!(
                "access to topic '{}' in {} refused for user '{}'",
                key.unwrap_or_default(),
                ExchangeText { name: exchange, vhost: self.vhost_name(vhost) },
                who.name()
            ),
        ))
    }

    /// Returns whether a user may open a virtual host.
    pub fn has_permission(&self, user: &str, vhost: &str) -> bool {
        let (user, vhost) = (self.find_user(user), self.find_vhost(vhost));
        user.zip(vhost).is_some_and(|(user, vhost)| self.find_permission(user, vhost).is_some())
    }

    // ---- changes by an operator

    /// Sets a user's permission in a virtual host: patterns of the names that the user may configure, write
    /// to and read from.
    ///
    /// # Errors
    /// There is no such user or virtual host, a pattern is not valid, or there is no capacity.
    pub fn set_permissions(
        &mut self,
        pending_writes: &mut PendingWrites,
        permission: &Permission<&str>,
    ) -> Result<Batch, OperatorFault> {
        let Permission { user, vhost, configure, write, read } = *permission;
        let (user, vhost) = (self.require_user(user)?, self.require_vhost(vhost)?);
        check_changeable(pending_writes)?;
        self.put_permission(user, vhost, [configure, write, read])?;
        Ok(self.append_permission(pending_writes, user, vhost, true))
    }

    /// Clears a user's permission in a virtual host, if there is one. Topic permissions stay. Returns the
    /// batch of the change.
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

    /// Sets the patterns of routing keys with which a user may publish to (`write`) and bind to (`read`) a
    /// topic exchange. The exchange need not exist.
    ///
    /// # Errors
    /// There is no such user or virtual host, a pattern is not valid, or there is no capacity.
    pub fn set_topic_permissions(
        &mut self,
        pending_writes: &mut PendingWrites,
        permission: &TopicPermission<&str>,
    ) -> Result<Batch, OperatorFault> {
        let TopicPermission { user, vhost, exchange, write, read } = *permission;
        let (user, vhost) = (self.require_user(user)?, self.require_vhost(vhost)?);
        if exchange.len() > NAME_BYTES_MAX {
            return Err(OperatorFault::BadName("exchange", "have at most 255 bytes"));
        }
        check_changeable(pending_writes)?;
        self.put_topic(user, vhost, exchange, [write, read])?;
        Ok(self.append_topic_permission(pending_writes, user, vhost, exchange, true))
    }

    /// Clears a user's topic permission for one exchange of a virtual host; all of the virtual host if
    /// `exchange` is `None`.
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
            let should_remove = exchange.is_none_or(|exchange| *topic.exchange == *exchange);
            (topic.user, topic.vhost) == (user, vhost) && should_remove
        });
        Ok(pending_writes.last_entry_batch())
    }

    /// Removes all permissions in a virtual host, when it is deleted.
    pub(crate) fn drop_permissions_for(&mut self, pending_writes: &mut PendingWrites, vhost: VhostId) {
        self.remove_permissions(pending_writes, |_, other| other == vhost);
    }

    /// Removes all permissions and topic permissions for whose user and virtual host `should_remove` returns
    /// `true`.
    pub(super) fn remove_permissions(
        &mut self,
        pending_writes: &mut PendingWrites,
        should_remove: impl Fn(usize, VhostId) -> bool,
    ) {
        self.drop_topics(pending_writes, |topic| should_remove(topic.user, topic.vhost));
        for index in 0..self.permissions.places() {
            let Some(permission) = self.permissions.get(index) else { continue };
            let (user, vhost) = (permission.user, permission.vhost);
            if should_remove(user, vhost) {
                self.append_permission(pending_writes, user, vhost, false);
                self.remove_permission(index);
            }
        }
    }

    fn drop_topics(
        &mut self,
        pending_writes: &mut PendingWrites,
        should_remove: impl Fn(&TopicPermissionRecord) -> bool,
    ) {
        for index in 0..self.topic_permissions.places() {
            let Some(topic) = self.topic_permissions.get(index).filter(|topic| should_remove(topic)) else {
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
        let most = self.pattern_bytes.max();
        let [configure, write, read] = texts.map(|text| Pattern::new(text, most));
        let bad = |right, error| OperatorFault::BadPattern { right, why: format!("{error}") };
        let patterns = [
            configure.map_err(|error| bad("configure", error))?,
            write.map_err(|error| bad("write", error))?,
            read.map_err(|error| bad("read", error))?,
        ];
        let old = self.find_permission(user, vhost);
        let freed = old.map_or(0, |old| bytes_of(&self.permissions[old].patterns));
        let names_bytes = self.permission_names_bytes(user, vhost);
        let added = old.is_none().then(|| Added { is_full: self.permissions.is_full(), names_bytes });
        self.charge_permission(added, bytes_of(&patterns), freed)?;
        match old {
            Some(old) => self.permissions[old].patterns = patterns,
            None => {
                let record = PermissionRecord { user, vhost, patterns };
                let index = self.permissions.insert_checked(record);
                self.permission_table.insert((user, vhost), index, self.permissions.touched());
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
            // {client_id} is expanded for each MQTT client.
            let expanded = text.replace("{username}", &user).replace("{vhost}", &vhost);
            Pattern::with_variables(text, &expanded, self.pattern_bytes.max())
        };
        let [write, read] = texts.map(fill);
        let bad = |right, error| OperatorFault::BadPattern { right, why: format!("{error}") };
        let patterns =
            [write.map_err(|error| bad("write", error))?, read.map_err(|error| bad("read", error))?];
        let old = self.find_topic_permission(user, vhost, exchange);
        let freed = old.map_or(0, |old| bytes_of(&self.topic_permissions[old].patterns));
        let names_bytes = self.topic_names_bytes(user, vhost, exchange);
        let added = old.is_none().then(|| Added { is_full: self.topic_permissions.is_full(), names_bytes });
        self.charge_permission(added, bytes_of(&patterns), freed)?;
        match old {
            Some(old) => self.topic_permissions[old].patterns = patterns,
            None => {
                let record = TopicPermissionRecord { user, vhost, exchange: exchange.into(), patterns };
                let index = self.topic_permissions.insert_checked(record);
                self.topic_permission_table.insert(
                    (user, vhost, exchange),
                    index,
                    self.topic_permissions.touched(),
                );
                self.users[user].topic_permission_count += 1;
            }
        }
        self.revision += 1;
        Ok(())
    }

    /// Counts the `bytes` of a permission's new patterns, and subtracts the `freed` bytes of its previous
    /// ones. Charges the names of a permission that is `added`.
    fn charge_permission(
        &mut self,
        added: Option<Added>,
        bytes: usize,
        freed: usize,
    ) -> Result<(), OperatorFault> {
        let is_at_limit =
            self.permissions.len() + self.topic_permissions.len() >= self.permissions.capacity();
        let has_no_memory =
            |added: &Added| added.is_full || is_at_limit || added.names_bytes > self.names_bytes.free();
        if added.as_ref().is_some_and(has_no_memory) {
            return Err(OperatorFault::NoCapacity("another permission"));
        }
        self.pattern_bytes.replace(bytes, freed)?;
        self.names_bytes.add(added.map_or(0, |added| added.names_bytes));
        Ok(())
    }

    /// Returns the bytes of a permission's names, which are in its key in the index of the log.
    fn permission_names_bytes(&self, user: usize, vhost: VhostId) -> usize {
        self.user_name(user).len() + self.vhost_name(vhost).len()
    }

    /// Returns the bytes of a topic permission's names, in its key in the index of the log and in its record.
    fn topic_names_bytes(&self, user: usize, vhost: VhostId, exchange: &str) -> usize {
        self.permission_names_bytes(user, vhost) + 2 * exchange.len()
    }

    pub(super) fn remove_permission(&mut self, index: usize) {
        let permission = self.permissions.remove(index);
        self.names_bytes.subtract(self.permission_names_bytes(permission.user, permission.vhost));
        self.permission_table.remove((permission.user, permission.vhost), index);
        self.pattern_bytes.subtract(bytes_of(&permission.patterns));
        self.revision += 1;
    }

    pub(super) fn remove_topic(&mut self, index: usize) {
        let topic = self.topic_permissions.remove(index);
        self.names_bytes.subtract(self.topic_names_bytes(topic.user, topic.vhost, &topic.exchange));
        self.topic_permission_table.remove((topic.user, topic.vhost, &*topic.exchange), index);
        self.pattern_bytes.subtract(bytes_of(&topic.patterns));
        self.users[topic.user].topic_permission_count -= 1;
        self.revision += 1;
    }
}

/// A permission that does not exist yet.
struct Added {
    /// The pool of its record has no place.
    is_full: bool,
    names_bytes: usize,
}

fn bytes_of(patterns: &[Pattern]) -> usize {
    patterns.iter().map(Pattern::bytes).sum()
}
