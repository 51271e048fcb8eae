//! All users, virtual hosts and permissions; writing them to the log and restoring them at start.

use core::fmt;

use leveret_core::command::VhostId;
use leveret_core::limits::Limits;
use leveret_core::mem::Slab;
use leveret_core::password::{self, PasswordHash};
use leveret_core::pending_writes::definition::ACCESS_STORED_KEY;
use leveret_core::pending_writes::{Batch, Definition, Mode, PendingWrites, VhostMetadata};
use ring::hmac;

use super::login::OperatorFault;
use super::pattern::Pattern;
use super::pattern::PatternBytes;
use crate::recovery::Restored;
use crate::reply_text::check_changeable;
use crate::state::{Entropy, IndexTable};
use crate::topology::ExchangeKind;

/// The name of the user of a new store.
pub(super) const GUEST: &str = "guest";
/// The virtual host of a new store.
pub(crate) const FIRST_VHOST: &str = "/";
/// The tag of a new store's user.
pub(super) const ADMINISTRATOR: &str = "administrator";
/// What exists in every virtual host before any client declares anything: name, type, internal.
pub(crate) const PREDECLARED: [(&str, ExchangeKind, bool); 8] = [
    ("", ExchangeKind::Default, false),
    ("amq.direct", ExchangeKind::Direct, false),
    ("amq.fanout", ExchangeKind::Fanout, false),
    ("amq.headers", ExchangeKind::Headers, false),
    ("amq.match", ExchangeKind::Headers, false),
    ("amq.topic", ExchangeKind::Topic, false),
    ("amq.rabbitmq.trace", ExchangeKind::Topic, true),
    ("amq.rabbitmq.log", ExchangeKind::Topic, true),
];

/// Number of exchanges that a virtual host starts with.
pub(crate) const PREDECLARED_EXCHANGES: usize = PREDECLARED.len();
/// Bytes of memory that a virtual host takes without its exchanges, with the longest name.
pub(crate) const VHOST_BYTES: usize = Slab::<Vhost>::record_bytes() + 256;
/// Bytes of memory that a user takes, with the longest name.
pub(crate) const USER_BYTES: usize = Slab::<User>::record_bytes() + 2 * 256;
/// Bytes of memory that a permission or a topic permission takes, without its patterns.
pub(crate) const PERMISSION_BYTES: usize = if size_of::<Permission>() > size_of::<TopicPermission>() {
    Slab::<Permission>::record_bytes() + IndexTable::ENTRY_BYTES + 256
} else {
    Slab::<TopicPermission>::record_bytes() + IndexTable::ENTRY_BYTES + 256
};

/// Users, virtual hosts and permissions. The counts of a virtual host or a user are deleted with it.
#[expect(missing_debug_implementations, reason = "it holds passwords")]
pub struct Access {
    pub(super) vhosts: Slab<Vhost>,
    pub(super) users: Slab<User>,
    pub(super) permissions: Slab<Permission>,
    pub(super) permission_table: IndexTable,
    pub(super) topics: Slab<TopicPermission>,
    pub(super) topic_table: IndexTable,
    pub(super) pattern_bytes: PatternBytes,
    /// Users that may log in from this machine only.
    pub(super) loopback_users: Vec<Box<str>>,
    /// Key of the digests by which correct passwords are remembered.
    pub(super) memory: hmac::Key,
    /// The log has users, so the user of a new store is not assumed.
    pub(super) is_written: bool,
    /// Why the storage cannot vouch for its users; all logins are then refused.
    pub(super) doubt: Option<&'static str>,
    /// Keys of definitions that the storage cannot read, or whose user cannot be read.
    pub(super) unreadable: Vec<Box<[u8]>>,
    /// At start: a definition had no capacity, so that others may seem to lack their user or virtual host.
    pub(super) lacks_room: bool,
    /// Number of users ever created, which numbers them.
    pub(super) epoch: u32,
    /// Number of changes of permissions ever made.
    pub(super) revision: u64,
}

impl Access {
    pub(crate) fn new(limits: &Limits, entropy: &mut Entropy, seed: u64) -> Self {
        let mut key = [0; 32];
        entropy(&mut key);
        let permissions = limits.permissions_max as usize;
        Self {
            vhosts: Slab::with_capacity(limits.vhosts_max as usize),
            users: Slab::with_capacity(limits.users_max as usize),
            permissions: Slab::with_capacity(permissions),
            permission_table: IndexTable::with_capacity(permissions, seed),
            topics: Slab::with_capacity(permissions),
            topic_table: IndexTable::with_capacity(permissions, seed),
            pattern_bytes: PatternBytes::with_max(limits.patterns_bytes_max as usize),
            loopback_users: vec![GUEST.into()],
            memory: hmac::Key::new(hmac::HMAC_SHA256, &key),
            is_written: false,
            doubt: None,
            unreadable: Vec::new(),
            lacks_room: false,
            epoch: 0,
            revision: 0,
        }
    }
}

impl Access {
    /// Returns a number that rises with every change of a permission: cached permissions may not hold any
    /// more.
    #[inline]
    pub(crate) const fn revision(&self) -> u64 {
        self.revision
    }
}

impl Access {
    /// Returns the name of an existing virtual host.
    pub(crate) fn vhost_name(&self, vhost: VhostId) -> &str {
        &self.vhosts[vhost.index()].name
    }

    /// Returns the virtual host of this name that is not being deleted.
    pub(crate) fn find_vhost(&self, name: &str) -> Option<VhostId> {
        let mut vhosts = self.vhosts.iter();
        vhosts.find(|(_, vhost)| *vhost.name == *name && !vhost.is_deleted).map(|(index, _)| vhost_at(index))
    }

    /// Returns the virtual host of this name.
    ///
    /// # Errors
    /// There is no such virtual host.
    pub(crate) fn require_vhost(&self, name: &str) -> Result<VhostId, OperatorFault> {
        self.find_vhost(name).ok_or_else(|| OperatorFault::NoSuchVhost(name.into()))
    }

    pub(super) fn find_user(&self, name: &str) -> Option<usize> {
        self.users.iter().find(|(_, user)| user.name() == name).map(|(index, _)| index)
    }

    pub(super) fn require_user(&self, name: &str) -> Result<usize, OperatorFault> {
        self.find_user(name).ok_or_else(|| OperatorFault::NoSuchUser(name.into()))
    }

    /// Returns the name of the user in a place.
    pub(super) fn user_name(&self, user: usize) -> &str {
        self.users[user].name()
    }

    pub(super) fn find_permission(&self, user: usize, vhost: VhostId) -> Option<usize> {
        self.permission_table.find((user, vhost), |index| {
            let permission = &self.permissions[index];
            (permission.user, permission.vhost) == (user, vhost)
        })
    }

    pub(super) fn find_topic(&self, user: usize, vhost: VhostId, exchange: &str) -> Option<usize> {
        self.topic_table.find((user, vhost, exchange), |index| {
            let topic = &self.topics[index];
            (topic.user, topic.vhost, &*topic.exchange) == (user, vhost, exchange)
        })
    }
}

pub(super) fn vhost_at(index: usize) -> VhostId {
    VhostId::from_index(index)
}

impl Access {
    /// Returns the count of bytes that patterns take, including those of policies.
    pub(crate) const fn pattern_bytes_mut(&mut self) -> &mut PatternBytes {
        &mut self.pattern_bytes
    }
}

/// The limits of a virtual host; `None` is unlimited.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct VhostLimits {
    /// Maximum number of queues (`max-queues`).
    pub queues_max: Option<u32>,
    /// Maximum number of connections (`max-connections`).
    pub connections_max: Option<u32>,
}

/// Maximum bytes of description and tags of a virtual host together.
pub const VHOST_METADATA_BYTES_MAX: usize = 1024;

/// A change of the metadata of a virtual host. Absent fields keep their value.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct VhostChange {
    /// A description for operators.
    pub description: Option<String>,
    /// The comma-separated tags.
    pub tags: Option<String>,
    /// The type of queues that are declared without one.
    pub default_queue_type: Option<String>,
    /// The virtual host cannot be deleted until this is removed.
    pub is_protected: Option<bool>,
}

impl VhostChange {
    /// Returns the metadata after this change.
    pub fn applied_to<'a>(&'a self, before: VhostMetadata<'a>) -> VhostMetadata<'a> {
        VhostMetadata {
            description: self.description.as_deref().unwrap_or(before.description),
            tags: self.tags.as_deref().unwrap_or(before.tags),
            default_queue_type: self.default_queue_type.as_deref().unwrap_or(before.default_queue_type),
            is_protected: self.is_protected.unwrap_or(before.is_protected),
        }
    }
}

/// The limits of a user, in all virtual hosts together; `None` is unlimited.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct UserLimits {
    /// Maximum number of connections (`max-connections`).
    pub connections_max: Option<u32>,
    /// Maximum number of channels (`max-channels`).
    pub channels_max: Option<u32>,
}

/// A permission for an exchange or a queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Right {
    /// To declare and delete.
    Configure,
    /// To publish to an exchange; to bind a queue to something.
    Write,
    /// To get, consume, purge; to bind something to an exchange.
    Read,
}

/// The kind of object that an operation needs a permission for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Resource<'a> {
    Exchange(&'a str),
    Queue(&'a str),
}

impl<'a> Resource<'a> {
    /// Returns the name that is matched: the default exchange is `amq.default` here.
    pub(super) fn name(self) -> &'a str {
        match self {
            Self::Exchange("") => "amq.default",
            Self::Exchange(name) | Self::Queue(name) => name,
        }
    }
}

impl fmt::Display for Resource<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self {
            Self::Exchange(_) => "exchange",
            Self::Queue(_) => "queue",
        };
        write!(f, "{kind} '{}'", self.name())
    }
}

/// The permission of a user in a virtual host.
pub(super) struct Permission {
    pub(super) user: usize,
    pub(super) vhost: VhostId,
    /// The patterns to configure, write and read.
    pub(super) patterns: [Pattern; 3],
}

/// The routing keys with which a user may write to and read from a topic exchange.
pub(super) struct TopicPermission {
    pub(super) user: usize,
    pub(super) vhost: VhostId,
    pub(super) exchange: Box<str>,
    /// The patterns to write and read.
    pub(super) patterns: [Pattern; 2],
}

/// One user.
pub(super) struct User {
    pub(super) name: Box<str>,
    /// The comma-separated tags.
    pub(super) tags: Box<str>,
    pub(super) hash: PasswordHash,
    /// The digest of the password, after it was found correct.
    pub(super) remembered: Option<hmac::Tag>,
    /// Number of topic permissions of the user, in all virtual hosts.
    pub(super) topics: u32,
    /// Number of the user, which distinguishes it from earlier users with its place or its name.
    pub(super) serial: u32,
    pub(super) limits: UserLimits,
}

impl User {
    pub(super) fn new(name: &str, tags: &str, hash: PasswordHash) -> Self {
        Self {
            name: name.into(),
            tags: tags.into(),
            hash,
            remembered: None,
            topics: 0,
            serial: 0,
            limits: UserLimits::default(),
        }
    }

    pub(super) const fn name(&self) -> &str {
        &self.name
    }

    pub(super) const fn tags(&self) -> &str {
        &self.tags
    }

    pub(super) const fn hash(&self) -> &PasswordHash {
        &self.hash
    }

    pub(super) fn set_tags(&mut self, tags: &str) {
        self.tags = tags.into();
    }

    pub(super) fn set_hash(&mut self, hash: PasswordHash) {
        (self.hash, self.remembered) = (hash, None);
    }

    pub(super) fn has_tag(&self, tag: &str) -> bool {
        self.tags.split(',').any(|other| other == tag)
    }
}

/// One virtual host.
pub(super) struct Vhost {
    pub(super) name: Box<str>,
    pub(super) limits: VhostLimits,
    pub(super) description: Box<str>,
    /// The comma-separated tags.
    pub(super) tags: Box<str>,
    /// The type of queues that are declared without one; empty if it is not set.
    pub(super) default_queue_type: Box<str>,
    /// The virtual host cannot be deleted until this is removed.
    pub(super) is_protected: bool,
    /// Number of queues of the virtual host that can be found.
    pub(super) queues: u32,
    /// Number of records of queues, exchanges and connections that still refer to the virtual host.
    pub(super) held: u32,
    /// The firehose copies the messages of the virtual host.
    pub(super) is_traced: bool,
    /// The virtual host is deleted, and being cleared.
    pub(super) is_deleted: bool,
    /// Everything in the deleted virtual host is deleted too.
    pub(super) swept: bool,
}

impl Vhost {
    pub(super) fn metadata(&self) -> VhostMetadata<'_> {
        VhostMetadata {
            description: &self.description,
            tags: &self.tags,
            default_queue_type: &self.default_queue_type,
            is_protected: self.is_protected,
        }
    }
}

impl Access {
    /// Confirms all users and permissions as they are now, for an operator who has checked them. The storage
    /// deletes all others, and logins are accepted again.
    ///
    /// # Errors
    /// The storage cannot be written, or has no space.
    pub fn confirm_access(&mut self, pending_writes: &mut PendingWrites) -> Result<Batch, OperatorFault> {
        check_changeable(pending_writes)?;
        for key in core::mem::take(&mut self.unreadable) {
            if *key != ACCESS_STORED_KEY {
                pending_writes.define(key, None);
            }
        }
        self.doubt = None;
        Ok(self.write_access(pending_writes))
    }

    // ---- at start
    //
    // If the log cannot vouch for its users (`storage::access`), all logins are refused until an operator has
    // confirmed them. A definition without its user or virtual host is deleted at the next start. In case of
    // doubt it is deleted on confirmation, and never while its user may be missing only for lack of capacity.

    /// Adds guest, with all permissions in the virtual host of a new store.
    ///
    /// # Errors
    /// There is no capacity for one user and one permission.
    pub(crate) fn begin_guest(&mut self) -> Result<(), OperatorFault> {
        let guest = User::new(GUEST, ADMINISTRATOR, password::GUEST);
        let user = self.add_user(guest).ok_or(OperatorFault::NoCapacity("users_max"))?;
        let vhost = self.require_vhost(FIRST_VHOST)?;
        self.put_permission(user, vhost, [".*"; 3])
    }

    /// Sets the user of a new store, with all permissions in `/`; or none.
    pub(crate) fn set_first_user(&mut self, first: Option<(&str, PasswordHash)>) {
        self.forget_users();
        let Some((name, hash)) = first else { return };
        let Some(user) = self.add_user(User::new(name, ADMINISTRATOR, hash)) else {
            panic!("users_max is at least 1, and there is no user")
        };
        if let Some(vhost) = self.find_vhost(FIRST_VHOST) {
            let _ = self.put_permission(user, vhost, [".*"; 3]);
        }
    }

    /// Notes that the storage cannot vouch for its users: all logins are refused until an operator confirms
    /// the users.
    ///
    /// `unreadable` are keys of definitions that the storage cannot read.
    pub(crate) fn doubt_users(&mut self, why: &'static str, unreadable: Vec<Box<[u8]>>) {
        self.forget_users();
        self.is_written = true;
        self.doubt = Some(why);
        self.unreadable = unreadable;
    }

    /// Notes definitions whose user cannot be read. While the storage is in doubt, they are deleted on
    /// confirmation; otherwise at once.
    pub fn drop_unreadable_access(&mut self, pending_writes: &mut PendingWrites, keys: Vec<Box<[u8]>>) {
        if self.doubt.is_some() {
            self.unreadable.extend(keys);
        } else {
            for key in keys {
                pending_writes.define(key, None);
            }
        }
    }

    /// Returns why all logins are refused, if they are.
    pub const fn doubtful_access_reason(&self) -> Option<&'static str> {
        self.doubt
    }

    /// Returns the remedy when all logins are refused: only storage that can be written can be confirmed.
    pub fn doubt_remedy(&self, pending_writes: &PendingWrites) -> &'static str {
        match pending_writes.mode() {
            Mode::On => "mend them, then confirm_users (see `leveret ctl help confirm_users`)",
            _ => "see to the disk and start again",
        }
    }

    /// Returns whether the log has users. Then the user assumed for a new store is dropped.
    ///
    /// When the storage is in doubt, the first virtual host stays, so that its queues can be found again.
    pub(crate) fn forget_first_users(&mut self) -> bool {
        if self.doubt.is_some() {
            return false;
        }
        self.is_written = true;
        self.forget_users();
        true
    }

    /// Restores a user or permission from the log. Definitions come in the order of their keys.
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
            Definition::AccessStored
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
        // A hash of a kind that only a later version knows matches no password here, and stays in the log.
        let hash = PasswordHash::from_bytes(hash).unwrap_or(PasswordHash::NoPassword);
        if let Some(user) = self.find_user(name) {
            self.users[user].set_tags(tags);
            self.users[user].set_hash(hash);
            return Ok(());
        }
        let added = self.add_user(User::new(name, tags, hash));
        added.map(|_| ()).ok_or(OperatorFault::NoCapacity("users_max"))
    }

    /// Notes that a definition has no capacity at start, so that others may seem to lack their user or
    /// virtual host.
    pub(crate) fn no_room_at_start(&mut self) -> Restored {
        self.lacks_room = true;
        Restored::NoCapacity
    }

    /// Returns the result for a definition whose virtual host or user does not exist.
    pub(crate) const fn orphaned(&self) -> Restored {
        if self.lacks_room { Restored::NoCapacity } else { Restored::Orphaned }
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

// ---- writing to the log
//
// Only the log determines which users exist. The user of a new store is written with the first change, so a
// deleted guest stays deleted. What is written is consistent at every point of the log: a power cut in the
// middle of a change leaves the old or the new state.

impl Access {
    /// Appends to the log that a virtual host exists, or is deleted.
    pub(crate) fn append_vhost(
        &mut self,
        pending_writes: &mut PendingWrites,
        vhost: VhostId,
        exists: bool,
    ) -> Batch {
        if !self.begin_to_write(pending_writes) {
            return Batch::NONE;
        }
        let record = &self.vhosts[vhost.index()];
        let VhostLimits { queues_max, connections_max } = record.limits;
        let metadata = record.metadata();
        let definition = Definition::Vhost { name: &record.name, queues_max, connections_max, metadata };
        let (key, value) = (definition.key(), exists.then(|| definition.value()));
        pending_writes.define(key, value)
    }

    /// Appends to the log that a user exists, or is deleted.
    pub(super) fn append_user(
        &mut self,
        pending_writes: &mut PendingWrites,
        user: usize,
        exists: bool,
    ) -> Batch {
        if !self.begin_to_write(pending_writes) {
            return Batch::NONE;
        }
        let record = &self.users[user];
        let hash = record.hash().to_bytes();
        let definition = Definition::User { name: record.name(), tags: record.tags(), hash: &hash };
        let (key, value) = (definition.key(), exists.then(|| definition.value()));
        pending_writes.define(key, value)
    }

    /// Appends to the log the limits of a user, or that there are none.
    pub(super) fn append_user_limits(
        &mut self,
        pending_writes: &mut PendingWrites,
        user: usize,
        exist: bool,
    ) -> Batch {
        if !self.begin_to_write(pending_writes) {
            return Batch::NONE;
        }
        let UserLimits { connections_max, channels_max } = self.users[user].limits;
        let user = self.user_name(user);
        let definition = Definition::UserLimits { user, connections_max, channels_max };
        let (key, value) = (definition.key(), exist.then(|| definition.value()));
        pending_writes.define(key, value)
    }

    /// Appends to the log the permission of a user in a virtual host, or that there is none.
    pub(super) fn append_permission(
        &mut self,
        pending_writes: &mut PendingWrites,
        user: usize,
        vhost: VhostId,
        exists: bool,
    ) -> Batch {
        if !self.begin_to_write(pending_writes) {
            return Batch::NONE;
        }
        let Some(index) = self.find_permission(user, vhost) else { return Batch::NONE };
        let patterns = self.permissions[index].patterns.each_ref().map(|pattern| pattern.text());
        let (user, vhost) = (self.user_name(user), self.vhost_name(vhost));
        let definition = Definition::Permission { vhost, user, patterns };
        let (key, value) = (definition.key(), exists.then(|| definition.value()));
        pending_writes.define(key, value)
    }

    /// Appends to the log the topic permission of a user for an exchange, or that there is none.
    pub(super) fn append_topic_permission(
        &mut self,
        pending_writes: &mut PendingWrites,
        user: usize,
        vhost: VhostId,
        exchange: &str,
        exists: bool,
    ) -> Batch {
        if !self.begin_to_write(pending_writes) {
            return Batch::NONE;
        }
        let Some(index) = self.find_topic(user, vhost, exchange) else { return Batch::NONE };
        let patterns = self.topics[index].patterns.each_ref().map(|pattern| pattern.text());
        let (user, vhost) = (self.user_name(user), self.vhost_name(vhost));
        let definition = Definition::TopicPermission { vhost, user, exchange, patterns };
        let (key, value) = (definition.key(), exists.then(|| definition.value()));
        pending_writes.define(key, value)
    }

    /// Writes all users and permissions before the first change. Returns `false` if nothing is written at
    /// all.
    fn begin_to_write(&mut self, pending_writes: &mut PendingWrites) -> bool {
        if pending_writes.mode() != Mode::On {
            return false;
        }
        if !self.is_written {
            self.write_access(pending_writes);
        }
        true
    }

    /// Writes all users and permissions, and finally that they are complete.
    pub fn write_access(&mut self, pending_writes: &mut PendingWrites) -> Batch {
        if pending_writes.mode() != Mode::On {
            return Batch::NONE;
        }
        self.is_written = true;
        for index in 0..self.vhosts.places() {
            if self.vhosts.get(index).is_some_and(|vhost| !vhost.is_deleted) {
                self.append_vhost(pending_writes, vhost_at(index), true);
            }
        }
        for index in 0..self.users.places() {
            if let Some(user) = self.users.get(index) {
                let has_limits = user.limits != UserLimits::default();
                self.append_user(pending_writes, index, true);
                if has_limits {
                    self.append_user_limits(pending_writes, index, true);
                }
            }
        }
        for index in 0..self.permissions.places() {
            if let Some(permission) = self.permissions.get(index) {
                let (user, vhost) = (permission.user, permission.vhost);
                self.append_permission(pending_writes, user, vhost, true);
            }
        }
        for index in 0..self.topics.places() {
            if let Some(topic) = self.topics.get(index) {
                let (user, vhost, exchange) = (topic.user, topic.vhost, topic.exchange.clone());
                self.append_topic_permission(pending_writes, user, vhost, &exchange, true);
            }
        }
        let all = Definition::AccessStored;
        pending_writes.define(all.key(), Some(all.value()))
    }
}
