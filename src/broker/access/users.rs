//! Users and virtual hosts: creation, limits, changes and deletion, and views of them for operators.
//!
//! # Invariants
//! - A user is identified by its place together with its serial, which no other user of this process has had.
//! - The id of a deleted virtual host is not reused before its last queue and exchange are deleted and its
//!   last connection is closed.
//! - A deleted virtual host cannot be found. Its name can be reused only when everything in it is deleted in
//!   the log too. So recovery cannot restore a queue of the old virtual host in the new one.
//! - A listing visits the places in ascending order and may pause after each.

use leveret_core::batch::Batch;
use leveret_core::command::{NAME_BYTES_MAX, VhostId};
use leveret_core::definition::{Permission, TopicPermission, VhostMetadata};
use leveret_core::error::{Fault, ReplyCode, no_memory_for};
use leveret_core::password::{self, PasswordHash};
use leveret_storage::PendingWrites;

use super::login::Identity;
use super::pattern::Pattern;
use super::{ADMINISTRATOR, Access, GUEST, User, UserLimits, Vhost, VhostLimits, VhostState, vhost_at};
use crate::objects::{Objects, objects};
use crate::operator_fault::{OperatorFault, check_changeable, check_name};

/// Maximum bytes of a user's tags, including the commas between them.
const TAGS_BYTES_MAX: usize = NAME_BYTES_MAX;

/// The present number of connections and channels of a user, in all virtual hosts together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) connections: u32,
    pub(crate) channels: u32,
}

impl Access {
    /// Sets the loopback users: those that may log in from this machine only.
    pub fn set_loopback_users(&mut self, users: &[String]) {
        self.loopback_users = users.iter().map(|user| user.as_str().into()).collect();
    }

    /// Logs a warning if guest may log in from any machine and still has the default password. Logs a hint if
    /// other machines can connect but guest is the only user and may log in from this machine only.
    pub fn warn_of_guest(&self, listens_to_others: bool) {
        let is_known = |user: &User| user.name() == GUEST && *user.hash() == password::GUEST;
        let mut users = self.users.iter();
        if listens_to_others && self.is_loopback_user(GUEST) && users.all(|(_, user)| user.name() == GUEST) {
            log::info!(
                "no user can log in from another machine yet, because guest can only from this one; create a \
                 user: leveretctl add_user NAME; leveretctl set_permissions NAME '.*' '.*' '.*'"
            );
        }
        if !self.is_loopback_user(GUEST) && self.users.iter().any(|(_, user)| is_known(user)) {
            log::warn!(
                "guest can log in from any machine, and its default password is publicly known: change it"
            );
        }
    }

    pub(super) fn is_loopback_user(&self, user: &str) -> bool {
        self.loopback_users.iter().any(|other| **other == *user)
    }

    /// Returns the serial of a user, which no other user ever has.
    pub(crate) fn user_serial(&self, user: usize) -> u32 {
        self.users[user].serial
    }

    /// Returns the name of the user at this place, if it has this serial. Otherwise the user was deleted.
    pub(crate) fn name_of_serial(&self, user: usize, serial: u32) -> Option<&str> {
        self.users.get(user).filter(|user| user.serial == serial).map(|user| &*user.name)
    }

    /// Returns the place and the serial of each user.
    pub(crate) fn user_serials(&self) -> impl Iterator<Item = (usize, u32)> {
        self.users.iter().map(|(index, user)| (index, user.serial))
    }

    /// Adds a user. Returns its place; `None` if there is no capacity.
    pub(super) fn add_user(&mut self, mut user: User) -> Option<usize> {
        let bytes = user.heap_bytes();
        if bytes > self.names_bytes.free() {
            return None;
        }
        self.last_serial += 1;
        user.serial = self.last_serial;
        let index = self.users.insert(user).ok()?;
        self.names_bytes.add(bytes);
        Some(index)
    }

    /// Removes the record of a user. The caller has removed its permissions.
    pub(super) fn remove_user(&mut self, user: usize) {
        let record = self.users.remove(user);
        self.names_bytes.subtract(record.heap_bytes());
    }

    /// Sets the tags of a user without appending them to the log.
    ///
    /// # Errors
    /// There is no memory for them.
    pub(super) fn try_set_tags(&mut self, user: usize, tags: &str) -> Result<(), OperatorFault> {
        let before = self.users[user].heap_bytes();
        self.charge_user(before, before - self.users[user].tags.len() + tags.len(), "longer tags")?;
        self.users[user].tags = tags.into();
        Ok(())
    }

    /// Sets the limits of a user without appending them to the log.
    ///
    /// # Errors
    /// There is no memory for their definition in the index of the log.
    pub(super) fn try_set_limits(&mut self, user: usize, limits: UserLimits) -> Result<(), OperatorFault> {
        let record = &mut self.users[user];
        let before = record.heap_bytes();
        let old = core::mem::replace(&mut record.limits, limits);
        let after = record.heap_bytes();
        let charged = self.charge_user(before, after, "the limits of another user");
        if charged.is_err() {
            self.users[user].limits = old;
        }
        charged
    }

    /// Charges the memory of a user that changes from `before` to `after` bytes.
    fn charge_user(&mut self, before: usize, after: usize, what: &'static str) -> Result<(), OperatorFault> {
        if after <= before {
            self.names_bytes.subtract(before - after);
        } else if !self.names_bytes.try_add(after - before) {
            return Err(OperatorFault::NoCapacity(what));
        }
        Ok(())
    }

    /// Returns whether a user has the tag `administrator`.
    pub fn is_administrator(&self, user: &str) -> bool {
        self.find_user(user).is_some_and(|user| self.users[user].has_tag(ADMINISTRATOR))
    }

    /// Returns whether messages from a connection may have the name of another user in the property user-id.
    pub(crate) fn may_impersonate(&self, who: &Identity) -> bool {
        // Messages that a bridge forwards have the user-id of their publisher.
        who.is_own || who.user.is_some_and(|user| self.users[user].has_tag("impersonator"))
    }

    /// Checks whether a user may have one more connection.
    ///
    /// # Errors
    /// The limit of the user is reached.
    pub(super) fn check_user_connections(&self, who: &Identity, load: Load) -> Result<(), Fault> {
        let Some(index) = who.user else { return Ok(()) };
        let user = &self.users[index];
        match user.limits.connections_max.filter(|limit| load.connections >= *limit) {
            None => Ok(()),
            Some(limit) => Err(Fault::connection(
                ReplyCode::ConnectionLimit,
                format_args!(
                    "connection refused for user '{}': user connection limit ({limit}) is reached",
                    user.name
                ),
            )),
        }
    }

    /// Checks whether a user may have one more channel.
    ///
    /// # Errors
    /// The limit of the user is reached.
    pub(crate) fn check_user_channels(&self, who: &Identity, load: Load) -> Result<(), Fault> {
        let Some(index) = who.user else { return Ok(()) };
        let user = &self.users[index];
        match user.limits.channels_max.filter(|limit| load.channels >= *limit) {
            None => Ok(()),
            Some(limit) => Err(Fault::connection(
                ReplyCode::NotAllowed,
                format_args!(
                    "number of channels opened for user '{}' has reached the maximum allowed user limit of \
                     ({limit})",
                    user.name
                ),
            )),
        }
    }

    // ---- changes by an operator

    /// Creates a user, or sets password and tags of an existing one. Tags are separated by commas. Returns
    /// the batch of the change.
    ///
    /// # Errors
    /// The name or the tags are not valid, or there is no capacity.
    pub(crate) fn put_user(
        &mut self,
        pending_writes: &mut PendingWrites,
        name: &str,
        hash: PasswordHash,
        tags: &str,
    ) -> Result<Batch, OperatorFault> {
        check_name("user", name)?;
        let tags = checked_tags(tags)?;
        check_changeable(pending_writes)?;
        let index = match self.find_user(name) {
            Some(index) => {
                self.try_set_tags(index, &tags)?;
                self.users[index].set_hash(hash);
                index
            }
            None => {
                let user = User::new(name, &tags, hash);
                self.add_user(user).ok_or(OperatorFault::NoCapacity("another user"))?
            }
        };
        Ok(self.append_user(pending_writes, index, true))
    }

    /// Deletes a user and its permissions. Returns the user's place; the caller passes it to
    /// [`Identity::forget_user`] of each connection.
    ///
    /// # Errors
    /// There is no such user, or the storage cannot be written.
    pub(crate) fn delete_user(
        &mut self,
        pending_writes: &mut PendingWrites,
        name: &str,
    ) -> Result<usize, OperatorFault> {
        let user = self.require_user(name)?;
        check_changeable(pending_writes)?;
        self.append_user(pending_writes, user, false);
        if self.users[user].limits != UserLimits::default() {
            self.append_user_limits(pending_writes, user, false);
        }
        self.remove_permissions(pending_writes, |owner, _| owner == user);
        self.remove_user(user);
        Ok(user)
    }

    /// Sets the limits of a user. Existing connections and channels stay open even if they exceed the limits.
    ///
    /// # Errors
    /// There is no such user, there is no memory for the limits, or the storage has no space.
    pub fn set_user_limits(
        &mut self,
        pending_writes: &mut PendingWrites,
        name: &str,
        limits: UserLimits,
    ) -> Result<Batch, OperatorFault> {
        let user = self.require_user(name)?;
        check_changeable(pending_writes)?;
        self.try_set_limits(user, limits)?;
        Ok(self.append_user_limits(pending_writes, user, limits != UserLimits::default()))
    }

    /// Sets the comma-separated tags of a user.
    ///
    /// # Errors
    /// There is no such user, the tags are not valid, there is no memory for them, or the storage has no space.
    pub fn set_tags(
        &mut self,
        pending_writes: &mut PendingWrites,
        name: &str,
        tags: &str,
    ) -> Result<Batch, OperatorFault> {
        let user = self.require_user(name)?;
        let tags = checked_tags(tags)?;
        check_changeable(pending_writes)?;
        self.try_set_tags(user, &tags)?;
        Ok(self.append_user(pending_writes, user, true))
    }

    /// Sets the password hash of a user. Existing connections stay open.
    ///
    /// # Errors
    /// There is no such user, or the storage has no space.
    pub fn change_password_hash(
        &mut self,
        pending_writes: &mut PendingWrites,
        name: &str,
        hash: PasswordHash,
    ) -> Result<Batch, OperatorFault> {
        let user = self.require_user(name)?;
        check_changeable(pending_writes)?;
        self.users[user].set_hash(hash);
        Ok(self.append_user(pending_writes, user, true))
    }
}

/// Returns comma-separated tags without spaces around each and without empty tags, or an error if they are
/// too long.
fn checked_tags(tags: &str) -> Result<String, OperatorFault> {
    let words: Vec<&str> = tags.split(',').map(str::trim).filter(|tag| !tag.is_empty()).collect();
    let tags = words.join(",");
    if tags.len() > TAGS_BYTES_MAX {
        return Err(OperatorFault::BadName("user's tags", "have at most 255 bytes together"));
    }
    Ok(tags)
}

impl Access {
    /// Returns all virtual hosts, including those that are being deleted.
    pub(crate) fn vhost_ids(&self) -> impl Iterator<Item = VhostId> {
        self.vhosts.iter().map(|(index, _)| vhost_at(index))
    }

    /// Returns whether a virtual host is traced by the firehose.
    pub(crate) fn is_traced(&self, vhost: VhostId) -> bool {
        self.vhosts[vhost.index()].is_traced
    }

    /// Sets whether a virtual host is traced by the firehose.
    pub(crate) fn set_traced(&mut self, vhost: VhostId, is_traced: bool) {
        self.vhosts[vhost.index()].is_traced = is_traced;
    }

    /// Returns whether any virtual host is traced by the firehose.
    pub(crate) fn is_any_traced(&self) -> bool {
        self.vhosts.iter().any(|(_, vhost)| vhost.is_traced)
    }

    /// Returns whether a deleted virtual host of this name still has queues, exchanges or connections.
    pub(crate) fn is_being_deleted(&self, name: &str) -> bool {
        self.vhosts.iter().any(|(_, vhost)| *vhost.name == *name && vhost.is_deleted())
    }

    /// Creates a virtual host without limits. No other one has this name.
    ///
    /// # Errors
    /// There is no capacity for one more virtual host.
    pub(crate) fn add_vhost(&mut self, name: &str) -> Result<VhostId, Fault> {
        assert!(self.find_vhost(name).is_none(), "a virtual host has its name for itself");
        let record = Vhost {
            name: name.into(),
            limits: VhostLimits::default(),
            description: Box::default(),
            tags: Box::default(),
            default_queue_type: Box::default(),
            is_protected: false,
            queues: 0,
            reference_count: 0,
            is_traced: false,
            state: VhostState::Open,
        };
        self.vhosts.insert(record).map(vhost_at).map_err(|_| no_memory_for("another virtual host"))
    }

    /// Removes the record of a deleted virtual host to which no other record refers.
    pub(crate) fn remove_vhost(&mut self, vhost: VhostId) {
        let record = self.vhosts.remove(vhost.index());
        assert!(record.reference_count == 0 && record.queues == 0, "nothing names a virtual host that goes");
    }

    /// Sets the limits of a virtual host. Existing queues and connections stay even if they exceed the
    /// limits.
    ///
    /// # Errors
    /// There is no such virtual host, or the storage has no space.
    pub fn set_vhost_limits(
        &mut self,
        pending_writes: &mut PendingWrites,
        name: &str,
        limits: VhostLimits,
    ) -> Result<Batch, OperatorFault> {
        let vhost = self.require_vhost(name)?;
        check_changeable(pending_writes)?;
        self.set_limits_of_vhost(vhost, limits);
        Ok(self.append_vhost(pending_writes, vhost, true))
    }

    /// Sets the limits of a virtual host without appending them to the log.
    pub(crate) fn set_limits_of_vhost(&mut self, vhost: VhostId, limits: VhostLimits) {
        self.vhosts[vhost.index()].limits = limits;
    }

    /// Returns the metadata of a virtual host.
    pub(crate) fn vhost_metadata(&self, vhost: VhostId) -> VhostMetadata<'_> {
        self.vhosts[vhost.index()].metadata()
    }

    /// Sets the metadata of a virtual host without appending them to the log.
    pub(crate) fn set_metadata_of_vhost(&mut self, vhost: VhostId, metadata: VhostMetadata<'_>) {
        let host = &mut self.vhosts[vhost.index()];
        host.description = metadata.description.into();
        host.tags = metadata.tags.into();
        host.default_queue_type = metadata.default_queue_type.into();
        host.is_protected = metadata.is_protected;
    }

    /// Checks whether a connection of a user may open the virtual host of this name, and returns it.
    /// `connections_in` returns the number of connections in a virtual host; `load` is that of the user.
    ///
    /// # Errors
    /// There is no such virtual host, the user has no permission for it, or a limit of the virtual host or
    /// the user is reached.
    pub(crate) fn check_open(
        &self,
        who: &Identity,
        name: &str,
        connections_in: impl FnOnce(VhostId) -> u32,
        load: Load,
    ) -> Result<VhostId, Fault> {
        let not_allowed = |text: core::fmt::Arguments<'_>| Fault::connection(ReplyCode::NotAllowed, text);
        let Some(vhost) = self.find_vhost(name) else {
            return Err(not_allowed(format_args!("vhost {name} not found")));
        };
        let refused = format!("access to vhost '{name}' refused for user '{}'", who.name());
        let limit = self.vhosts[vhost.index()].limits.connections_max;
        let connections = connections_in(vhost);
        if let Some(limit) = limit.filter(|limit| connections >= *limit) {
            let text = format_args!("{refused}: connection limit ({limit}) is reached");
            return Err(Fault::connection(ReplyCode::ConnectionLimit, text));
        }
        self.check_user_connections(who, load)?;
        if who.user.and_then(|user| self.find_permission(user, vhost)).is_none() {
            return Err(not_allowed(format_args!("{refused}")));
        }
        Ok(vhost)
    }

    /// Checks whether one more queue may be declared in a virtual host.
    ///
    /// # Errors
    /// The limit of the virtual host is reached.
    pub(crate) fn check_queue_limit(&self, vhost: VhostId, queue: &str) -> Result<(), Fault> {
        let host = &self.vhosts[vhost.index()];
        match host.limits.queues_max.filter(|limit| host.queues >= *limit) {
            None => Ok(()),
            Some(limit) => Err(Fault::new(
                ReplyCode::PreconditionFailed,
                format_args!(
                    "cannot declare queue '{queue}': queue limit in vhost '{}' ({limit}) is reached",
                    host.name
                ),
            )),
        }
    }

    /// Checks whether objects may be declared in a virtual host.
    ///
    /// # Errors
    /// The virtual host is being deleted.
    pub(crate) fn check_vhost_alive(&self, vhost: VhostId) -> Result<(), Fault> {
        let host = &self.vhosts[vhost.index()];
        if host.is_deleted() {
            let text = format_args!("vhost {} not found", host.name);
            return Err(Fault::connection(ReplyCode::NotAllowed, text));
        }
        Ok(())
    }

    /// Adds 1 to the number of queues of a virtual host if a queue `exists` now, else subtracts 1.
    pub(crate) fn count_queue(&mut self, vhost: VhostId, exists: bool) {
        let queues = &mut self.vhosts[vhost.index()].queues;
        assert!(exists || *queues > 0, "a queue that goes was counted when it came");
        *queues = if exists { *queues + 1 } else { *queues - 1 };
    }

    /// Counts a new record that refers to a virtual host.
    pub(crate) fn add_vhost_reference(&mut self, vhost: VhostId) {
        self.vhosts[vhost.index()].reference_count += 1;
    }

    /// Subtracts a deleted record that referred to a virtual host.
    pub(crate) fn remove_vhost_reference(&mut self, vhost: VhostId) {
        let held = &mut self.vhosts[vhost.index()].reference_count;
        assert!(*held > 0, "a record that goes named its virtual host");
        *held -= 1;
    }

    /// Marks a virtual host as deleted, so that it cannot be found any more.
    pub(crate) fn retire_vhost(&mut self, vhost: VhostId) {
        self.vhosts[vhost.index()].state = VhostState::Clearing;
    }

    /// Notes that the job has deleted all queues and exchanges of a deleted virtual host.
    pub(crate) fn note_vhost_emptied(&mut self, vhost: VhostId) {
        let host = &mut self.vhosts[vhost.index()];
        assert_eq!(host.state, VhostState::Clearing, "a virtual host is deleted before it is cleared");
        host.state = VhostState::Cleared;
    }

    /// Returns whether the record of a virtual host can be removed: it is deleted, and no other record refers
    /// to it.
    pub(crate) fn can_remove_vhost(&self, vhost: VhostId) -> bool {
        let host = &self.vhosts[vhost.index()];
        host.state == VhostState::Cleared && host.reference_count == 0
    }
}

/// A virtual host as shown to an operator.
#[derive(Clone, Copy, Debug)]
pub struct VhostView<'a> {
    /// The name of the virtual host.
    pub name: &'a str,
    /// The limits of the virtual host.
    pub limits: VhostLimits,
    /// The metadata of the virtual host.
    pub metadata: VhostMetadata<'a>,
    /// The firehose is on: messages published and delivered in the virtual host are copied to
    /// `amq.rabbitmq.trace`.
    pub is_traced: bool,
}

/// A user as shown to an operator.
#[derive(Clone, Copy, Debug)]
pub struct UserView<'a> {
    /// The name of the user.
    pub name: &'a str,
    /// The comma-separated tags of the user.
    pub tags: &'a str,
    /// The hash of the user's password.
    pub hash: &'a PasswordHash,
    /// The limits of the user.
    pub limits: UserLimits,
}

impl Access {
    /// Returns all virtual hosts that are not being deleted.
    pub fn vhosts(&self) -> impl Objects<VhostView<'_>> {
        objects(self.vhosts.places(), move |place| {
            let vhost = self.vhosts.get(place).filter(|vhost| !vhost.is_deleted())?;
            let (metadata, is_traced) = (vhost.metadata(), vhost.is_traced);
            Some(VhostView { name: &vhost.name, limits: vhost.limits, metadata, is_traced })
        })
    }

    /// Returns all users.
    pub fn users(&self) -> impl Objects<UserView<'_>> {
        objects(self.users.places(), move |place| {
            let user = self.users.get(place)?;
            Some(UserView { name: user.name(), tags: user.tags(), hash: user.hash(), limits: user.limits })
        })
    }

    /// Returns all permissions.
    pub fn permissions(&self) -> impl Objects<Permission<&str>> {
        objects(self.permissions.places(), move |place| {
            let permission = self.permissions.get(place)?;
            let [configure, write, read] = permission.patterns.each_ref().map(Pattern::text);
            let (user, vhost) = (self.user_name(permission.user), self.vhost_name(permission.vhost));
            Some(Permission { user, vhost, configure, write, read })
        })
    }

    /// Returns all topic permissions.
    pub fn topic_permissions(&self) -> impl Objects<TopicPermission<&str>> {
        objects(self.topic_permissions.places(), move |place| {
            let topic = self.topic_permissions.get(place)?;
            let [write, read] = topic.patterns.each_ref().map(Pattern::text);
            let (user, vhost) = (self.user_name(topic.user), self.vhost_name(topic.vhost));
            Some(TopicPermission { user, vhost, exchange: &topic.exchange, write, read })
        })
    }
}
