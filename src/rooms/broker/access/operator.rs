//! Everything an operator can change about access, and the views.
//!
//! Why it exists: the command line, definitions from files and the management API all change the same things;
//! here is what can be, once. What always holds: a change is made wholly or not at all, and gives the
//! [`Batch`] that must be durable before anybody is told that it is done.

use crate::command::{NAME_BYTES_MAX, VhostId};
use crate::error::Fault;
use crate::journal::{Batch, Journal};
use crate::password::PasswordHash;

use super::fault::OperatorFault;
use super::records::{User, UserLimits, VhostLimits};
use super::state::ADMINISTRATOR;
use crate::broker::faults::{self, check_room};
use crate::broker::{Broker, Context};
use crate::broker::faults::check_changeable;

/// The most bytes of a user's tags, with the commas between them.
const TAGS_BYTES_MAX: usize = NAME_BYTES_MAX;

/// A virtual host as an operator sees it.
#[derive(Clone, Copy, Debug)]
pub struct VhostView<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its limits.
    pub limits: VhostLimits,
    /// Copies are made of what is published and delivered in it.
    pub is_traced: bool,
}

/// A user as an operator sees it.
#[derive(Clone, Copy, Debug)]
pub struct UserView<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its tags, with commas between them.
    pub tags: &'a str,
    /// What its password is kept as.
    pub hash: &'a PasswordHash,
    /// Its limits.
    pub limits: UserLimits,
}

/// A permission as an operator sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PermissionView<'a> {
    /// The user.
    pub user: &'a str,
    /// The virtual host.
    pub vhost: &'a str,
    /// What may be declared and deleted.
    pub configure: &'a str,
    /// What may be written to.
    pub write: &'a str,
    /// What may be read from.
    pub read: &'a str,
}

/// A topic permission as an operator sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TopicPermissionView<'a> {
    /// The user.
    pub user: &'a str,
    /// The virtual host.
    pub vhost: &'a str,
    /// The topic exchange.
    pub exchange: &'a str,
    /// Keys that may be published with.
    pub write: &'a str,
    /// Keys that may be bound.
    pub read: &'a str,
}

type Changed = Result<Batch, OperatorFault>;

impl Broker {
    /// The virtual hosts.
    pub fn vhosts(&self) -> impl Iterator<Item = VhostView<'_>> {
        (0..self.vhost_places()).filter_map(|place| self.vhost_at(place))
    }

    /// Places of virtual hosts that were ever used, for who lists them one by one.
    pub const fn vhost_places(&self) -> usize {
        self.access.vhosts.places()
    }

    /// The virtual host in a place.
    pub fn vhost_at(&self, place: usize) -> Option<VhostView<'_>> {
        let vhost = self.access.vhosts.get(place).filter(|vhost| !vhost.dying)?;
        Some(VhostView { name: &vhost.name, limits: vhost.limits, is_traced: vhost.is_traced })
    }

    /// Places of users that were ever used.
    pub const fn user_places(&self) -> usize {
        self.access.users.places()
    }

    /// The user in a place.
    pub fn user_at(&self, place: usize) -> Option<UserView<'_>> {
        let user = self.access.users.get(place)?;
        Some(UserView { name: user.name(), tags: user.tags(), hash: user.hash(), limits: user.limits })
    }

    /// Places of permissions that were ever used.
    pub const fn permission_places(&self) -> usize {
        self.access.permissions.places()
    }

    /// The permission in a place.
    pub fn permission_at(&self, place: usize) -> Option<PermissionView<'_>> {
        let permission = self.access.permissions.get(place)?;
        let [configure, write, read] = permission.patterns.each_ref().map(super::pattern::Pattern::text);
        let (user, vhost) = (self.user_name(permission.user), self.vhost_name(permission.vhost));
        Some(PermissionView { user, vhost, configure, write, read })
    }

    /// Places of topic permissions that were ever used.
    pub const fn topic_permission_places(&self) -> usize {
        self.access.topics.places()
    }

    /// The topic permission in a place.
    pub fn topic_permission_at(&self, place: usize) -> Option<TopicPermissionView<'_>> {
        let topic = self.access.topics.get(place)?;
        let [write, read] = topic.patterns.each_ref().map(super::pattern::Pattern::text);
        let (user, vhost) = (self.user_name(topic.user), self.vhost_name(topic.vhost));
        Some(TopicPermissionView { user, vhost, exchange: &topic.exchange, write, read })
    }

    /// The users.
    pub fn users(&self) -> impl Iterator<Item = UserView<'_>> {
        (0..self.user_places()).filter_map(|place| self.user_at(place))
    }

    /// Whether a user may do whatever an administrator may.
    pub fn is_administrator(&self, user: &str) -> bool {
        self.find_user(user).is_some_and(|user| self.access.users[user].has_tag(ADMINISTRATOR))
    }

    /// Whether a user may enter a virtual host.
    pub fn has_permission(&self, user: &str, vhost: &str) -> bool {
        let (user, vhost) = (self.find_user(user), self.find_vhost(vhost));
        user.zip(vhost).is_some_and(|(user, vhost)| self.find_permission(user, vhost).is_some())
    }

    /// What users may do.
    pub fn permissions(&self) -> impl Iterator<Item = PermissionView<'_>> {
        (0..self.permission_places()).filter_map(|place| self.permission_at(place))
    }

    /// What users may do with the keys of topic exchanges.
    pub fn topic_permissions(&self) -> impl Iterator<Item = TopicPermissionView<'_>> {
        (0..self.topic_permission_places()).filter_map(|place| self.topic_permission_at(place))
    }

    /// Makes a virtual host, unless it is there. It begins with the predeclared exchanges and without limits.
    ///
    /// # Errors
    /// The name cannot be, or there is no room.
    pub fn put_vhost(&mut self, journal: &mut Journal, name: &str) -> Changed {
        check_name("virtual host", name)?;
        if self.find_vhost(name).is_some() {
            return Ok(journal.await_facts());
        }
        if self.is_being_deleted(name) {
            return Err(OperatorFault::BeingDeleted(name.into()));
        }
        check_changeable(journal)?;
        check_room(journal)?;
        let vhost = self.add_vhost(name).map_err(store)?;
        Ok(self.append_vhost(journal, vhost, true))
    }

    /// Deletes a virtual host with everything in it. Its name is gone at once; the rest goes step by step.
    ///
    /// # Errors
    /// There is none, or the store cannot be written.
    pub fn delete_vhost(&mut self, cx: &mut Context<'_>, name: &str) -> Changed {
        let vhost = self.require_vhost(name)?;
        self.check_deletable(cx.journal, true).map_err(store)?;
        self.append_vhost(cx.journal, vhost, false);
        self.remove_permissions(cx.journal, |user_and_vhost| user_and_vhost.1 == vhost);
        self.drop_policies_of(cx.journal, vhost, name);
        self.parameters.drop_of_vhost(cx.journal, vhost, name);
        self.force_close_all(&format!("vhost '{name}' is deleted"), |record| record.vhost == Some(vhost));
        self.retire_vhost(vhost);
        self.delete_orphans_in(cx, name);
        Ok(cx.journal.await_facts())
    }

    /// Limits what a virtual host may have from now on; what is there stays.
    ///
    /// # Errors
    /// There is no such virtual host, or the store has no room.
    pub fn set_vhost_limits(&mut self, journal: &mut Journal, name: &str, limits: VhostLimits) -> Changed {
        let vhost = self.require_vhost(name)?;
        check_changeable(journal)?;
        self.access.vhosts[vhost.index()].limits = limits;
        Ok(self.append_vhost(journal, vhost, true))
    }

    /// Makes a user, or gives one another password and other tags (words with commas between them).
    ///
    /// # Errors
    /// The name or the tags cannot be, or there is no room.
    pub fn put_user(&mut self, journal: &mut Journal, name: &str, hash: PasswordHash, tags: &str) -> Changed {
        check_name("user", name)?;
        let tags = checked_tags(tags)?;
        check_changeable(journal)?;
        let index = match self.find_user(name) {
            Some(index) => {
                self.access.users[index].set_tags(&tags);
                self.access.users[index].set_hash(hash);
                index
            }
            None => {
                let user = User::new(name, &tags, hash);
                self.add_user(user).ok_or(OperatorFault::NoRoom("users_max"))?
            }
        };
        Ok(self.append_user(journal, index, true))
    }

    /// Deletes a user with its permissions, and closes its connections.
    ///
    /// # Errors
    /// There is none, or the store cannot be written.
    pub fn delete_user(&mut self, journal: &mut Journal, name: &str) -> Changed {
        let user = self.require_user(name)?;
        self.check_deletable(journal, true).map_err(store)?;
        self.append_user(journal, user, false);
        if self.access.users[user].limits != UserLimits::default() {
            self.append_user_limits(journal, user, false);
        }
        self.remove_permissions(journal, |user_and_vhost| user_and_vhost.0 == user);
        let reason = format!("user '{name}' is deleted");
        self.force_close_all(&reason, |record| record.user_index == Some(user));
        for index in 0..self.connections.places() {
            if let Some(record) = self.connections.get_mut(index) {
                record.user_index = record.user_index.filter(|other| *other != user);
            }
        }
        self.remove_user(user);
        Ok(journal.await_facts())
    }

    /// Limits what a user may have from now on; what is there stays.
    ///
    /// # Errors
    /// There is no such user, or the store has no room.
    pub fn set_user_limits(&mut self, journal: &mut Journal, name: &str, limits: UserLimits) -> Changed {
        let user = self.require_user(name)?;
        check_changeable(journal)?;
        self.access.users[user].limits = limits;
        Ok(self.append_user_limits(journal, user, limits != UserLimits::default()))
    }

    /// Gives a user other tags: words with commas between them.
    ///
    /// # Errors
    /// There is no such user, the tags cannot be, or the store has no room.
    pub fn set_tags(&mut self, journal: &mut Journal, name: &str, tags: &str) -> Changed {
        let user = self.require_user(name)?;
        let tags = checked_tags(tags)?;
        check_changeable(journal)?;
        self.access.users[user].set_tags(&tags);
        Ok(self.append_user(journal, user, true))
    }

    /// Gives a user another password, known by its hash. Its connections stay.
    ///
    /// # Errors
    /// There is no such user, or the store has no room.
    pub fn change_password_hash(&mut self, journal: &mut Journal, name: &str, hash: PasswordHash) -> Changed {
        let user = self.require_user(name)?;
        check_changeable(journal)?;
        self.access.users[user].set_hash(hash);
        Ok(self.append_user(journal, user, true))
    }

    /// Says what a user may configure, write to and read from in a virtual host, as patterns of names.
    ///
    /// # Errors
    /// There is no such user or virtual host, a pattern cannot be, or there is no room.
    pub fn set_permissions(
        &mut self,
        journal: &mut Journal,
        user: &str,
        vhost: &str,
        configure: &str,
        write: &str,
        read: &str,
    ) -> Changed {
        let (user, vhost) = (self.require_user(user)?, self.require_vhost(vhost)?);
        check_changeable(journal)?;
        self.put_permission(user, vhost, [configure, write, read])?;
        Ok(self.append_permission(journal, user, vhost, true))
    }

    /// Takes a user's permission for a virtual host away; fine when there is none.
    ///
    /// # Errors
    /// There is no such user or virtual host, or the store cannot be written.
    pub fn clear_permissions(&mut self, journal: &mut Journal, user: &str, vhost: &str) -> Changed {
        let (user, vhost) = (self.require_user(user)?, self.require_vhost(vhost)?);
        self.check_deletable(journal, true).map_err(store)?;
        if let Some(permission) = self.find_permission(user, vhost) {
            self.append_permission(journal, user, vhost, false);
            self.remove_permission(permission);
        }
        Ok(journal.await_facts())
    }

    /// Says with which keys a user may publish to, and bind to, a topic exchange, which need not exist.
    ///
    /// # Errors
    /// There is no such user or virtual host, a pattern cannot be, or there is no room.
    pub fn set_topic_permissions(
        &mut self,
        journal: &mut Journal,
        user: &str,
        vhost: &str,
        exchange: &str,
        write: &str,
        read: &str,
    ) -> Changed {
        let (user, vhost) = (self.require_user(user)?, self.require_vhost(vhost)?);
        if exchange.len() > NAME_BYTES_MAX {
            return Err(OperatorFault::BadName("exchange", "have at most 255 bytes"));
        }
        check_changeable(journal)?;
        self.put_topic(user, vhost, exchange, [write, read])?;
        Ok(self.append_topic_permission(journal, user, vhost, exchange, true))
    }

    /// Takes a user's topic permissions in a virtual host away: that for one exchange, or all.
    ///
    /// # Errors
    /// There is no such user or virtual host, or the store cannot be written.
    pub fn clear_topic_permissions(
        &mut self,
        journal: &mut Journal,
        user: &str,
        vhost: &str,
        exchange: Option<&str>,
    ) -> Changed {
        let (user, vhost) = (self.require_user(user)?, self.require_vhost(vhost)?);
        self.check_deletable(journal, true).map_err(store)?;
        for index in 0..self.access.topics.places() {
            let Some(topic) = self.access.topics.get(index) else { continue };
            let is_meant = exchange.is_none_or(|exchange| *topic.exchange == *exchange);
            if (topic.user, topic.vhost) == (user, vhost) && is_meant {
                self.drop_topic(journal, index);
            }
        }
        Ok(journal.await_facts())
    }

    /// Takes away all permissions of a user, or all for a virtual host.
    fn remove_permissions(&mut self, journal: &mut Journal, is_meant: impl Fn((usize, VhostId)) -> bool) {
        for index in 0..self.access.topics.places() {
            let topic = self.access.topics.get(index);
            if topic.is_some_and(|topic| is_meant((topic.user, topic.vhost))) {
                self.drop_topic(journal, index);
            }
        }
        for index in 0..self.access.permissions.places() {
            let Some(permission) = self.access.permissions.get(index) else { continue };
            let (user, vhost) = (permission.user, permission.vhost);
            if is_meant((user, vhost)) {
                self.append_permission(journal, user, vhost, false);
                self.remove_permission(index);
            }
        }
    }

    fn drop_topic(&mut self, journal: &mut Journal, index: usize) {
        let topic = &self.access.topics[index];
        let (user, vhost, exchange) = (topic.user, topic.vhost, topic.exchange.clone());
        self.append_topic_permission(journal, user, vhost, &exchange, false);
        self.remove_topic(index);
    }

    pub(in super::super) fn require_vhost(&self, name: &str) -> Result<VhostId, OperatorFault> {
        self.find_vhost(name).ok_or_else(|| OperatorFault::NoSuchVhost(name.into()))
    }

    fn require_user(&self, name: &str) -> Result<usize, OperatorFault> {
        self.find_user(name).ok_or_else(|| OperatorFault::NoSuchUser(name.into()))
    }

    /// Whether the store takes what is to be written.
    pub(in super::super) fn check_changeable(&self, journal: &Journal) -> Result<(), OperatorFault> {
        definable::check_changeable(journal)
    }
}

fn check_name(what: &'static str, name: &str) -> Result<(), OperatorFault> {
    match name {
        "" => Err(OperatorFault::BadName(what, "not be empty")),
        _ if name.len() > NAME_BYTES_MAX => Err(OperatorFault::BadName(what, "have at most 255 bytes")),
        _ => Ok(()),
    }
}

/// Tags without blanks around them, and none that is empty.
fn checked_tags(tags: &str) -> Result<String, OperatorFault> {
    let words: Vec<&str> = tags.split(',').map(str::trim).filter(|tag| !tag.is_empty()).collect();
    let tags = words.join(",");
    if tags.len() > TAGS_BYTES_MAX {
        return Err(OperatorFault::BadName("user's tags", "have at most 255 bytes together"));
    }
    Ok(tags)
}

/// The text names the key, or says what the store lacks.
fn store(fault: Fault) -> OperatorFault {
    OperatorFault::Store(fault.text.into())
}
