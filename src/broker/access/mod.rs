//! Users, virtual hosts and permissions. Checks logins, and checks each operation of a user against the
//! user's permissions.
//!
//! A virtual host is a separate set of exchanges, queues and their names. A user may use only those exchanges
//! and queues for which the user has permissions.
//!
//! | file | content |
//! |---|---|
//! | `mod` | the records of users, virtual hosts and permissions; writing them to the log and restoring them |
//! | `login` | checks credentials; the identity of a connection |
//! | `users` | changes of users, of virtual hosts and of their limits; the checks of these limits; views for operators |
//! | `rights` | changes and checks of permissions |
//! | `pattern` | the regular expressions of permissions and policies, and the memory that they take |
//!
//! Connections, queues and their counts (`leveret_core::quota`) are not in this module. When a user or a virtual host is deleted, the
//! caller closes its connections and deletes its queues.
//!
//! # Invariants
//! - A user without permissions in a virtual host cannot connect to the virtual host. When the permissions
//!   are cleared, all later operations of the user's open connections are refused.
//! - A change is made completely or not at all. It returns the [`Batch`] that
//!   must be durable before the change is acknowledged.
//! - Every change of a permission or topic permission raises the revision. Channels cache the results of checks
//!   together with the revision, and discard them when the revision has risen.

mod login;
mod pattern;
mod rights;
mod users;

use core::fmt;
use std::rc::Rc;

use leveret_amqp::reply_text::ExchangeText;
use leveret_core::batch::Batch;
use leveret_core::command::{VhostId, VhostNames};
use leveret_core::definition::{
    self, ACCESS_STORED_KEY, Definition, Permission, TopicPermission, UserLimits, VhostLimits, VhostMetadata,
};
use leveret_core::limits::Limits;
use leveret_core::mem::{ALLOCATION_BYTES, Class, HeapBytes, IndexTable, Memory, Slab};
use leveret_core::password::{self, PasswordHash};
use leveret_core::quota::Quota;
use leveret_routing::ExchangeKind;
use leveret_storage::{Mode, PendingWrites};
use ring::hmac;

use crate::job::Begun;
use crate::objects::Objects;
use crate::operator_fault::{OperatorFault, check_changeable};
use crate::restored::Restored;

pub(super) use login::{Identity, Login};
pub use pattern::PATTERN_BYTES_MAX;
pub(super) use pattern::{Pattern, PatternBytes};
pub(super) use rights::Topic;
pub(super) use users::Load;
pub use users::{UserView, VhostView};

/// The name of the default user: the only user of a new store, unless the configuration sets a first user.
const GUEST: &str = "guest";
/// The virtual host of a new store.
pub(crate) const FIRST_VHOST: &str = "/";
/// The tag of the default user.
const ADMINISTRATOR: &str = "administrator";
/// The exchanges that exist in every virtual host from its creation: name, type, whether it is internal.
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

/// Number of exchanges that exist in every virtual host from its creation.
pub(crate) const PREDECLARED_EXCHANGES: usize = PREDECLARED.len();
/// Maximum bytes of memory that a virtual host takes without its exchanges and metadata: its record and the
/// longest name.
pub(crate) const VHOST_BYTES: usize = Slab::<Vhost>::record_bytes() + VHOST_SIDE_BYTES;
/// Bytes that a virtual host takes besides its record: its name, the allocator's overhead for its metadata, its entries in
/// the quota and the jobs, and its definition in the index of the log.
const VHOST_SIDE_BYTES: usize =
    256 + Quota::VHOST_BYTES + size_of::<Begun>() + 3 * ALLOCATION_BYTES + leveret_storage::DEFINITION_BYTES;
/// Bytes of memory that a user takes, without its name, its tags and its limits.
pub(crate) const USER_BYTES: usize = Slab::<User>::record_bytes() + USER_SIDE_BYTES;
/// Bytes that a user takes besides its record: the allocator's overhead for its name and its tags, the reference counts of its
/// name, its entry in the quota, and its definition in the index of the log.
const USER_SIDE_BYTES: usize =
    2 * ALLOCATION_BYTES + 2 * size_of::<usize>() + Quota::USER_BYTES + leveret_storage::DEFINITION_BYTES;
/// Bytes of memory that a permission or a topic permission takes, without its names and its patterns.
pub(crate) const PERMISSION_BYTES: usize = {
    let permission = Slab::<PermissionRecord>::record_bytes() + PERMISSION_SIDE_BYTES;
    let topic_permission = Slab::<TopicPermissionRecord>::record_bytes() + TOPIC_PERMISSION_SIDE_BYTES;
    IndexTable::ENTRY_BYTES + if permission > topic_permission { permission } else { topic_permission }
};
/// Bytes that a permission takes besides its record, its names and its patterns: its definition in the index of the log.
const PERMISSION_SIDE_BYTES: usize = leveret_storage::DEFINITION_BYTES;
/// Bytes that a topic permission takes besides its record, its names and its patterns: the allocator's overhead for the name of
/// its exchange, and its definition in the index of the log.
const TOPIC_PERMISSION_SIDE_BYTES: usize = ALLOCATION_BYTES + leveret_storage::DEFINITION_BYTES;

/// The records of users, virtual hosts and permissions.
#[expect(missing_debug_implementations, reason = "it holds passwords")]
pub struct Access {
    vhosts: Slab<Vhost>,
    users: Slab<User>,
    permissions: Slab<PermissionRecord>,
    permission_table: IndexTable,
    topic_permissions: Slab<TopicPermissionRecord>,
    topic_permission_table: IndexTable,
    pattern_bytes: PatternBytes,
    /// Names and tags of users and names in permissions, in the records and in the index of the log, and what users with limits
    /// take.
    names_bytes: HeapBytes,
    /// The loopback users: those that may log in from this machine only.
    loopback_users: Vec<Box<str>>,
    /// Key of the password digests. They make it possible to recognize a correct password without the slow
    /// hash.
    password_digest_key: hmac::Key,
    /// Whether the log has the users, found there at start or written since. While it has none, the next change
    /// writes all of them.
    has_stored_users: bool,
    /// Why the stored users may be incomplete or damaged. While this is set, all logins are refused.
    doubt_reason: Option<&'static str>,
    /// Keys of stored access definitions that cannot be read, or that belong to a user whose definition
    /// cannot be read.
    unreadable: Vec<Box<[u8]>>,
    /// Whether an access definition was not restored at start for lack of capacity. Definitions whose user or
    /// virtual host does not exist are then kept, because the log may still have that user or virtual host.
    lacked_capacity: bool,
    /// The serial number of the user created last.
    last_serial: u32,
    /// Number of changes of permissions and topic permissions since the process started.
    revision: u64,
}

impl VhostNames for Access {
    fn vhost_name(&self, vhost: VhostId) -> &str {
        self.vhost_name(vhost)
    }
}

impl Access {
    /// Returns the name of a virtual host, also of one that is being deleted.
    pub(crate) fn vhost_name(&self, vhost: VhostId) -> &str {
        &self.vhosts[vhost.index()].name
    }

    /// Returns the bytes of unused places that may be resident in memory.
    pub(crate) const fn idle_bytes(&self) -> usize {
        self.vhosts.idle_bytes()
            + self.users.idle_bytes()
            + self.permissions.idle_bytes()
            + self.topic_permissions.idle_bytes()
    }

    /// Returns the bytes of users and their permissions, without patterns.
    pub(crate) const fn users_bytes(&self) -> usize {
        self.users.len() * USER_BYTES
            + (self.permissions.len() + self.topic_permissions.len()) * PERMISSION_BYTES
            + self.names_bytes.used()
    }

    /// Returns unused memory to the system.
    pub(crate) fn trim(&mut self) {
        self.vhosts.trim();
        self.users.trim();
        self.permissions.trim();
        self.permission_table.trim(self.permissions.touched());
        self.topic_permissions.trim();
        self.topic_permission_table.trim(self.topic_permissions.touched());
    }

    pub(crate) fn new(
        limits: &Limits,
        memory: &Memory,
        entropy: &mut dyn FnMut(&mut [u8]),
        seed: u64,
    ) -> Self {
        let mut key = [0; 32];
        entropy(&mut key);
        let permissions = limits.permissions_max as usize;
        Self {
            vhosts: Slab::in_memory(limits.vhosts_max as usize, memory, Class::Definitions)
                .with_side_bytes(VHOST_SIDE_BYTES),
            users: Slab::in_memory(limits.users_max as usize, memory, Class::Definitions)
                .with_side_bytes(USER_SIDE_BYTES),
            permissions: Slab::in_memory(permissions, memory, Class::Definitions)
                .with_side_bytes(PERMISSION_SIDE_BYTES),
            permission_table: IndexTable::in_memory(permissions, memory, Class::Definitions, seed),
            topic_permissions: Slab::in_memory(permissions, memory, Class::Definitions)
                .with_side_bytes(TOPIC_PERMISSION_SIDE_BYTES),
            topic_permission_table: IndexTable::in_memory(permissions, memory, Class::Definitions, seed),
            pattern_bytes: PatternBytes::with_max(limits.patterns_bytes_max as usize, memory),
            names_bytes: HeapBytes::with_gaps(memory, Class::Definitions),
            loopback_users: vec![GUEST.into()],
            password_digest_key: hmac::Key::new(hmac::HMAC_SHA256, &key),
            has_stored_users: false,
            doubt_reason: None,
            unreadable: Vec::new(),
            lacked_capacity: false,
            last_serial: 0,
            revision: 0,
        }
    }
}

impl Access {
    /// Returns a number that rises with every change of a permission. Cached results of checks are valid
    /// while it is unchanged.
    #[inline]
    pub(crate) const fn revision(&self) -> u64 {
        self.revision
    }
}

impl Access {
    pub(crate) fn exchange_text<'a>(&'a self, vhost: VhostId, name: &'a str) -> ExchangeText<'a> {
        ExchangeText { name, vhost: self.vhost_name(vhost) }
    }

    /// Returns the virtual host of this name; `None` if there is none or it is being deleted.
    pub(crate) fn find_vhost(&self, name: &str) -> Option<VhostId> {
        let mut vhosts = self.vhosts.iter();
        vhosts
            .find(|(_, vhost)| *vhost.name == *name && !vhost.is_deleted())
            .map(|(index, _)| vhost_at(index))
    }

    /// Returns the virtual host of this name.
    ///
    /// # Errors
    /// There is no such virtual host.
    pub(crate) fn require_vhost(&self, name: &str) -> Result<VhostId, OperatorFault> {
        self.find_vhost(name).ok_or_else(|| OperatorFault::NoSuchVhost(name.into()))
    }

    fn find_user(&self, name: &str) -> Option<usize> {
        self.users.iter().find(|(_, user)| user.name() == name).map(|(index, _)| index)
    }

    fn require_user(&self, name: &str) -> Result<usize, OperatorFault> {
        self.find_user(name).ok_or_else(|| OperatorFault::NoSuchUser(name.into()))
    }

    /// Returns the name of the user with this index.
    fn user_name(&self, user: usize) -> &str {
        self.users[user].name()
    }

    fn find_permission(&self, user: usize, vhost: VhostId) -> Option<usize> {
        self.permission_table.find((user, vhost), |index| {
            let permission = &self.permissions[index];
            (permission.user, permission.vhost) == (user, vhost)
        })
    }

    fn find_topic_permission(&self, user: usize, vhost: VhostId, exchange: &str) -> Option<usize> {
        self.topic_permission_table.find((user, vhost, exchange), |index| {
            let topic = &self.topic_permissions[index];
            (topic.user, topic.vhost, &*topic.exchange) == (user, vhost, exchange)
        })
    }
}

fn vhost_at(index: usize) -> VhostId {
    VhostId::from_index(index)
}

impl Access {
    /// Returns the counter of the bytes of all patterns, including those of policies.
    pub(crate) const fn pattern_bytes_mut(&mut self) -> &mut PatternBytes {
        &mut self.pattern_bytes
    }
}

/// Maximum bytes of description and tags of a virtual host together.
pub const VHOST_METADATA_BYTES_MAX: usize = 1024;

/// A change of the metadata of a virtual host. Absent fields keep their value.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct VhostChange {
    /// The description.
    pub description: Option<String>,
    /// The comma-separated tags.
    pub tags: Option<String>,
    /// The default queue type: for queues that are declared without `x-queue-type`.
    pub default_queue_type: Option<String>,
    /// The virtual host cannot be deleted while this is set.
    pub is_protected: Option<bool>,
}

impl VhostChange {
    /// Returns the metadata after this change, given the metadata `before` it.
    pub fn applied_to<'a>(&'a self, before: VhostMetadata<'a>) -> VhostMetadata<'a> {
        VhostMetadata {
            description: self.description.as_deref().unwrap_or(before.description),
            tags: self.tags.as_deref().unwrap_or(before.tags),
            default_queue_type: self.default_queue_type.as_deref().unwrap_or(before.default_queue_type),
            is_protected: self.is_protected.unwrap_or(before.is_protected),
        }
    }
}

/// One of the three permissions that a user may have for an exchange or a queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Right {
    /// To declare and delete an exchange or a queue.
    Configure,
    /// To publish to an exchange; to bind a queue or exchange as the destination.
    Write,
    /// To get from, consume from or purge a queue; to bind an exchange as the source.
    Read,
}

/// The exchange or queue for which an operation needs a permission, by its name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Resource<'a> {
    Exchange(&'a str),
    Queue(&'a str),
}

impl<'a> Resource<'a> {
    /// Returns the name with which permission patterns are compared: `amq.default` for the default exchange.
    fn name(self) -> &'a str {
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
struct PermissionRecord {
    user: usize,
    vhost: VhostId,
    /// The patterns of the permissions to configure, write and read, in this order.
    patterns: [Pattern; 3],
}

/// The topic permission of a user for one exchange.
struct TopicPermissionRecord {
    user: usize,
    vhost: VhostId,
    exchange: Box<str>,
    /// The patterns of routing keys for publishing (write) and binding (read).
    patterns: [Pattern; 2],
}

/// An HMAC-SHA256 of a user's password. A [`hmac::Tag`] has space for the longest digest of all algorithms, and a pointer.
type PasswordDigest = [u8; 32];

/// One user.
struct User {
    name: Rc<str>,
    /// The comma-separated tags.
    tags: Box<str>,
    hash: PasswordHash,
    /// The digest of the password, once a login with it has succeeded.
    password_digest: Option<PasswordDigest>,
    /// Number of topic permissions of the user, in all virtual hosts.
    topic_permission_count: u32,
    /// Number of the user, never reused. It distinguishes the user from a deleted one that had the same index or the
    /// same name.
    serial: u32,
    limits: UserLimits,
}

impl User {
    fn new(name: &str, tags: &str, hash: PasswordHash) -> Self {
        Self {
            name: name.into(),
            tags: tags.into(),
            hash,
            password_digest: None,
            topic_permission_count: 0,
            serial: 0,
            limits: UserLimits::default(),
        }
    }

    /// Returns the bytes that are charged besides [`USER_BYTES`]. The index of the log has a second copy of the name; limits
    /// are a definition of their own there, with a third one.
    fn heap_bytes(&self) -> usize {
        let of_limits = match self.limits == UserLimits::default() {
            true => 0,
            false => self.name.len() + leveret_storage::DEFINITION_BYTES,
        };
        2 * self.name.len() + self.tags.len() + of_limits
    }

    fn name(&self) -> &str {
        &self.name
    }

    const fn tags(&self) -> &str {
        &self.tags
    }

    const fn hash(&self) -> &PasswordHash {
        &self.hash
    }

    fn set_hash(&mut self, hash: PasswordHash) {
        (self.hash, self.password_digest) = (hash, None);
    }

    fn has_tag(&self, tag: &str) -> bool {
        self.tags.split(',').any(|other| other == tag)
    }
}

/// One virtual host.
struct Vhost {
    name: Box<str>,
    limits: VhostLimits,
    description: Box<str>,
    /// The comma-separated tags.
    tags: Box<str>,
    /// The default queue type: for queues that are declared without `x-queue-type`. Empty if it is not set.
    default_queue_type: Box<str>,
    /// The virtual host cannot be deleted while this is set.
    is_protected: bool,
    /// Number of queues of the virtual host, without hidden ones.
    queues: u32,
    /// Number of records of queues, exchanges and connections that have the id of the virtual host.
    reference_count: u32,
    /// The firehose is on for the virtual host.
    is_traced: bool,
    state: VhostState,
}

/// The state of a virtual host's record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum VhostState {
    Open,
    /// The virtual host is deleted and cannot be found any more. A job deletes its queues and exchanges.
    Clearing,
    /// The job is done. The record is removed when no other record refers to it.
    Cleared,
}

impl Vhost {
    fn is_deleted(&self) -> bool {
        self.state != VhostState::Open
    }

    fn metadata(&self) -> VhostMetadata<'_> {
        VhostMetadata {
            description: &self.description,
            tags: &self.tags,
            default_queue_type: &self.default_queue_type,
            is_protected: self.is_protected,
        }
    }
}

impl Access {
    /// Accepts logins again after an operator has checked the users and permissions. Unreadable definitions
    /// of users and permissions are deleted from the log, and the present ones are written. Returns the batch
    /// of these changes.
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
        self.doubt_reason = None;
        Ok(self.write_access(pending_writes))
    }

    // ---- at start
    //
    // If the stored users may be incomplete (`storage::access` decides this), all logins are refused until an
    // operator has confirmed the users.
    //
    // A stored permission or limit whose user or virtual host does not exist is
    // - kept, if an access definition was left out for lack of capacity;
    // - deleted when the operator confirms the users, if the stored users may be incomplete;
    // - deleted at start otherwise.

    /// Adds the default user guest to a new store, with all permissions in `/`.
    ///
    /// # Errors
    /// There is no capacity for one user and one permission.
    pub(crate) fn add_guest(&mut self) -> Result<(), OperatorFault> {
        let guest = User::new(GUEST, ADMINISTRATOR, password::GUEST);
        let user = self.add_user(guest).ok_or(OperatorFault::NoCapacity("another user"))?;
        let vhost = self.require_vhost(FIRST_VHOST)?;
        self.put_permission(user, vhost, [".*"; 3])
    }

    /// Replaces the default user of a new store by `first`, an administrator with all permissions in `/`.
    /// With `None` the store has no user.
    pub(crate) fn set_first_user(&mut self, first: Option<(&str, PasswordHash)>) {
        self.forget_users();
        let Some((name, hash)) = first else { return };
        let Some(user) = self.add_user(User::new(name, ADMINISTRATOR, hash)) else {
            panic!("a new store has memory for a user")
        };
        if let Some(vhost) = self.find_vhost(FIRST_VHOST) {
            let _ = self.put_permission(user, vhost, [".*"; 3]);
        }
    }

    /// Makes the broker refuse all logins until an operator confirms the users, because the stored users may
    /// be incomplete. `why` is shown to operators.
    ///
    /// `unreadable` are the keys of the access definitions that cannot be read.
    pub(crate) fn set_doubt(&mut self, why: &'static str, unreadable: Vec<Box<[u8]>>) {
        self.forget_users();
        self.has_stored_users = true;
        self.doubt_reason = Some(why);
        self.unreadable = unreadable;
    }

    /// Deletes the definitions of permissions and limits whose user or virtual host does not exist. If an
    /// operator must confirm the users, the definitions are deleted at the confirmation, otherwise at once.
    pub fn drop_unreadable_access(&mut self, pending_writes: &mut PendingWrites, keys: Vec<Box<[u8]>>) {
        if self.doubt_reason.is_some() {
            self.unreadable.extend(keys);
        } else {
            for key in keys {
                pending_writes.define(key, None);
            }
        }
    }

    /// Returns why all logins are refused; `None` if logins are accepted.
    pub const fn doubtful_access_reason(&self) -> Option<&'static str> {
        self.doubt_reason
    }

    /// Returns the text of what an operator must do so that logins are accepted again. Users can be confirmed
    /// only if the storage can be written.
    pub fn doubt_remedy(&self, pending_writes: &PendingWrites) -> &'static str {
        match pending_writes.mode() {
            Mode::On => "correct them, then confirm_users (see `leveret ctl help confirm_users`)",
            _ => "repair the disk and restart the broker",
        }
    }

    /// Removes the default user because the log has users. If the stored users may be incomplete, changes
    /// nothing and returns `false`.
    ///
    /// After `false` the caller keeps the virtual host `/`, so that its queues can be restored.
    pub(crate) fn forget_first_users(&mut self) -> bool {
        if self.doubt_reason.is_some() {
            return false;
        }
        self.has_stored_users = true;
        self.forget_users();
        true
    }

    /// Restores a user from the log.
    pub(crate) fn restore_user(&mut self, definition: &definition::User<'_>) -> Restored {
        // If the hash has a type that only a later version supports, no password matches. The hash stays in
        // the log for that version.
        let hash = PasswordHash::from_bytes(definition.hash).unwrap_or(PasswordHash::NoPassword);
        if let Some(user) = self.find_user(definition.name) {
            if self.try_set_tags(user, definition.tags).is_err() {
                return self.note_no_capacity_at_start();
            }
            self.users[user].set_hash(hash);
        } else if self.add_user(User::new(definition.name, definition.tags, hash)).is_none() {
            return self.note_no_capacity_at_start();
        }
        Restored::Exists(None)
    }

    /// Restores the limits of a user from the log. The caller restores users before.
    pub(crate) fn restore_user_limits(&mut self, user: &str, limits: UserLimits) -> Restored {
        let Some(user) = self.find_user(user) else { return self.result_without_owner() };
        let set = self.try_set_limits(user, limits);
        self.restored(set)
    }

    /// Restores a permission from the log. The caller restores users and virtual hosts before.
    pub(crate) fn restore_permission(&mut self, definition: &Permission<&str>) -> Restored {
        let Permission { user, vhost, configure, write, read } = *definition;
        let Some((user, vhost)) = self.find_user(user).zip(self.find_vhost(vhost)) else {
            return self.result_without_owner();
        };
        let put = self.put_permission(user, vhost, [configure, write, read]);
        self.restored(put)
    }

    /// Restores a topic permission from the log. The caller restores users and virtual hosts before.
    pub(crate) fn restore_topic_permission(&mut self, definition: &TopicPermission<&str>) -> Restored {
        let TopicPermission { user, vhost, exchange, write, read } = *definition;
        let Some((user, vhost)) = self.find_user(user).zip(self.find_vhost(vhost)) else {
            return self.result_without_owner();
        };
        let put = self.put_topic(user, vhost, exchange, [write, read]);
        self.restored(put)
    }

    fn restored(&mut self, put: Result<(), OperatorFault>) -> Restored {
        match put {
            Ok(()) => Restored::Exists(None),
            Err(_) => self.note_no_capacity_at_start(),
        }
    }

    /// Notes that an access definition could not be restored for lack of capacity. Returns `NoCapacity`.
    pub(crate) fn note_no_capacity_at_start(&mut self) -> Restored {
        self.lacked_capacity = true;
        Restored::NoCapacity
    }

    /// Returns the result for a definition whose user or virtual host does not exist. It is `NoCapacity` if
    /// that may have been left out for lack of capacity, else `Orphaned`.
    pub(crate) const fn result_without_owner(&self) -> Restored {
        if self.lacked_capacity { Restored::NoCapacity } else { Restored::Orphaned }
    }

    fn forget_users(&mut self) {
        for index in 0..self.topic_permissions.places() {
            if self.topic_permissions.get(index).is_some() {
                self.remove_topic(index);
            }
        }
        for index in 0..self.permissions.places() {
            if self.permissions.get(index).is_some() {
                self.remove_permission(index);
            }
        }
        for index in 0..self.users.places() {
            if self.users.get(index).is_some() {
                self.remove_user(index);
            }
        }
    }
}

// ---- writing to the log
//
// The first change appends all users to the log, including the default user. From then on a start restores
// the users from the log and creates no default user, so a deleted guest stays deleted. After a power cut
// during a change, the log has the state before or after the change.

impl Access {
    /// Appends the definition of a virtual host to the log, or its deletion if it no longer `exists`. Returns
    /// the batch.
    pub(crate) fn append_vhost(
        &mut self,
        pending_writes: &mut PendingWrites,
        vhost: VhostId,
        exists: bool,
    ) -> Batch {
        if !self.ensure_users_written(pending_writes) {
            return Batch::NONE;
        }
        let record = &self.vhosts[vhost.index()];
        let definition =
            definition::Vhost { name: &record.name, limits: record.limits, metadata: record.metadata() };
        pending_writes.write_definition(&Definition::Vhost(definition), exists)
    }

    /// Appends the definition of a user to the log, or its deletion if it no longer `exists`. Returns the
    /// batch.
    fn append_user(&mut self, pending_writes: &mut PendingWrites, user: usize, exists: bool) -> Batch {
        if !self.ensure_users_written(pending_writes) {
            return Batch::NONE;
        }
        let record = &self.users[user];
        let hash = record.hash().to_bytes();
        let definition = definition::User { name: record.name(), tags: record.tags(), hash: &hash };
        pending_writes.write_definition(&Definition::User(definition), exists)
    }

    /// Appends the limits of a user to the log, or their deletion if they no longer `exist`. Returns the
    /// batch.
    fn append_user_limits(&mut self, pending_writes: &mut PendingWrites, user: usize, exist: bool) -> Batch {
        if !self.ensure_users_written(pending_writes) {
            return Batch::NONE;
        }
        let definition = Definition::UserLimits(self.user_name(user), self.users[user].limits);
        pending_writes.write_definition(&definition, exist)
    }

    /// Appends the permission of a user in a virtual host to the log, or its deletion if it no longer
    /// `exists`. Returns the batch.
    fn append_permission(
        &mut self,
        pending_writes: &mut PendingWrites,
        user: usize,
        vhost: VhostId,
        exists: bool,
    ) -> Batch {
        if !self.ensure_users_written(pending_writes) {
            return Batch::NONE;
        }
        let permission = self.find_permission(user, vhost).and_then(|place| self.permissions().at(place));
        let Some(permission) = permission else { return Batch::NONE };
        pending_writes.write_definition(&Definition::Permission(permission), exists)
    }

    /// Appends the topic permission of a user for an exchange to the log, or its deletion if it no longer
    /// `exists`. Returns the batch.
    fn append_topic_permission(
        &mut self,
        pending_writes: &mut PendingWrites,
        user: usize,
        vhost: VhostId,
        exchange: &str,
        exists: bool,
    ) -> Batch {
        if !self.ensure_users_written(pending_writes) {
            return Batch::NONE;
        }
        let permission = self
            .find_topic_permission(user, vhost, exchange)
            .and_then(|place| self.topic_permissions().at(place));
        let Some(permission) = permission else { return Batch::NONE };
        pending_writes.write_definition(&Definition::TopicPermission(permission), exists)
    }

    /// Appends all users and permissions to the log if it has none yet. Returns `false` if the broker does
    /// not write to a log.
    fn ensure_users_written(&mut self, pending_writes: &mut PendingWrites) -> bool {
        if pending_writes.mode() != Mode::On {
            return false;
        }
        if !self.has_stored_users {
            self.write_access(pending_writes);
        }
        true
    }

    /// Appends all users and permissions to the log, and after them a definition that marks them as complete.
    /// Returns the batch of the latter.
    pub fn write_access(&mut self, pending_writes: &mut PendingWrites) -> Batch {
        if pending_writes.mode() != Mode::On {
            return Batch::NONE;
        }
        self.has_stored_users = true;
        let mut write = |definition: &Definition<'_>| pending_writes.write_definition(definition, true);
        for VhostView { name, limits, metadata, .. } in self.vhosts() {
            write(&Definition::Vhost(definition::Vhost { name, limits, metadata }));
        }
        for UserView { name, tags, hash, limits } in self.users() {
            write(&Definition::User(definition::User { name, tags, hash: &hash.to_bytes() }));
            if limits != UserLimits::default() {
                write(&Definition::UserLimits(name, limits));
            }
        }
        for permission in self.permissions() {
            write(&Definition::Permission(permission));
        }
        for permission in self.topic_permissions() {
            write(&Definition::TopicPermission(permission));
        }
        write(&Definition::AccessStored)
    }
}

#[cfg(test)]
mod tests {
    // Tests of access alone: creating and deleting users and virtual hosts, their permissions, and what is
    // written.

    use super::*;
    use leveret_core::limits::Limits;
    use leveret_core::password::PasswordHash;
    use leveret_core::work::Work;
    use leveret_storage::PendingWrites;

    /// Returns the users and virtual hosts of a new store, with pending writes that are not read.
    fn access() -> (Access, PendingWrites) {
        let limits = Limits::default();
        let mut entropy: crate::Entropy = Box::new(|bytes| bytes.fill(7));
        let mut access = Access::new(&limits, &Memory::unlimited(), &mut entropy, 1);
        access.add_vhost(FIRST_VHOST).unwrap();
        access.add_guest().unwrap();
        (access, PendingWrites::new(64))
    }

    fn named(access: &Access, name: &str) -> Identity {
        access.login_external(&PendingWrites::new(64), name, true).unwrap()
    }

    fn sensor<'a>(configure: &'a str, write: &'a str, read: &'a str) -> Permission<&'a str> {
        Permission { user: "sensor", vhost: "/", configure, write, read }
    }

    #[test]
    fn only_what_the_patterns_of_a_permission_match_is_allowed() {
        let (mut access, mut pending_writes) = access();
        access.put_user(&mut pending_writes, "sensor", PasswordHash::NoPassword, "").unwrap();
        let (vhost, who) = (access.find_vhost("/").unwrap(), named(&access, "sensor"));
        let mut work = Work::default();
        let mut may = |access: &Access, right, name| {
            access.check(&mut work, &who, vhost, right, Resource::Queue(name)).is_ok()
        };
        assert!(!may(&access, Right::Read, "t-1"));
        let before = access.revision();
        access.set_permissions(&mut pending_writes, &sensor("^$", "^t-", ".*")).unwrap();
        assert!(access.revision() > before, "a changed permission must invalidate the caches of channels");
        let allowed = [Right::Configure, Right::Write, Right::Read].map(|right| may(&access, right, "t-1"));
        assert_eq!(allowed, [false, true, true]);
        assert!(!may(&access, Right::Write, "other"));
        access.clear_permissions(&mut pending_writes, "sensor", "/").unwrap();
        assert!(!may(&access, Right::Write, "t-1"));
    }

    #[test]
    fn a_deleted_user_may_do_nothing_and_a_new_one_of_its_name_is_another() {
        let (mut access, mut pending_writes) = access();
        access.put_user(&mut pending_writes, "sensor", PasswordHash::NoPassword, "impersonator").unwrap();
        access.set_permissions(&mut pending_writes, &sensor(".*", ".*", ".*")).unwrap();
        let (user, vhost, exchange, write, read) = ("sensor", "/", "amq.topic", "^a", "^a");
        let topic = TopicPermission { user, vhost, exchange, write, read };
        access.set_topic_permissions(&mut pending_writes, &topic).unwrap();
        let mut who = named(&access, "sensor");
        assert!(access.may_impersonate(&who) && access.limits_topics(&who));
        let serial = access.user_serials().last();
        let place = access.delete_user(&mut pending_writes, "sensor").unwrap();
        who.forget_user(place);
        let vhost = access.find_vhost("/").unwrap();
        let refused = access.check(&mut Work::default(), &who, vhost, Right::Read, Resource::Queue("q"));
        assert!(refused.unwrap_err().text.contains("refused for user 'sensor'"));
        assert_eq!((access.permissions().count(), access.topic_permissions().count()), (1, 0));
        access.put_user(&mut pending_writes, "sensor", PasswordHash::NoPassword, "").unwrap();
        assert_ne!(access.user_serials().last(), serial);
        assert!(!access.has_permission("sensor", "/"));
    }

    #[test]
    fn a_deleted_virtual_host_keeps_its_place_until_nothing_refers_to_it() {
        let (mut access, mut pending_writes) = access();
        let vhost = access.add_vhost("tenant").unwrap();
        access.add_vhost_reference(vhost);
        access.count_queue(vhost, true);
        access
            .set_vhost_limits(
                &mut pending_writes,
                "tenant",
                VhostLimits { queues_max: Some(1), connections_max: None },
            )
            .unwrap();
        assert!(access.check_queue_limit(vhost, "q").is_err());
        access.retire_vhost(vhost);
        assert!(access.find_vhost("tenant").is_none() && access.is_being_deleted("tenant"));
        assert!(access.check_vhost_alive(vhost).is_err() && access.vhost_name(vhost) == "tenant");
        access.note_vhost_emptied(vhost);
        access.count_queue(vhost, false);
        assert!(!access.can_remove_vhost(vhost));
        access.remove_vhost_reference(vhost);
        assert!(access.can_remove_vhost(vhost));
        access.remove_vhost(vhost);
    }

    #[test]
    fn limits_of_users_and_of_virtual_hosts_are_distinguished() {
        let (mut access, mut pending_writes) = access();
        let limits = UserLimits { connections_max: Some(2), channels_max: Some(3) };
        access.set_user_limits(&mut pending_writes, "guest", limits).unwrap();
        let who = named(&access, "guest");
        let open = |access: &Access, connections_in: u32, connections: u32| {
            let load = Load { connections, channels: 3 };
            access.check_open(&who, "/", |_| connections_in, load).map_err(|fault| fault.text.to_string())
        };
        assert!(open(&access, 9, 1).is_ok());
        assert!(open(&access, 9, 2).unwrap_err().contains("user connection limit (2)"));
        let limits = VhostLimits { queues_max: None, connections_max: Some(9) };
        access.set_vhost_limits(&mut pending_writes, "/", limits).unwrap();
        assert!(open(&access, 9, 1).unwrap_err().contains("connection limit (9)"));
        assert!(access.check_user_channels(&who, Load { connections: 1, channels: 3 }).is_err());
    }

    /// A user that an operator adds before the confirmation may have the place of a forgotten one.
    #[test]
    fn doubtful_users_leave_no_permissions() {
        let (mut access, mut pending_writes) = access();
        access.put_user(&mut pending_writes, "sensor", PasswordHash::NoPassword, "").unwrap();
        access.set_permissions(&mut pending_writes, &sensor(".*", ".*", ".*")).unwrap();
        let (user, vhost, exchange, write, read) = ("sensor", "/", "amq.topic", "^a", "^a");
        let topic = TopicPermission { user, vhost, exchange, write, read };
        access.set_topic_permissions(&mut pending_writes, &topic).unwrap();
        access.set_doubt("a block is damaged", Vec::new());
        assert_eq!((access.permissions().count(), access.topic_permissions().count()), (0, 0));
        let names = ["first", "second"];
        for name in names {
            access.put_user(&mut pending_writes, name, PasswordHash::NoPassword, "").unwrap();
        }
        access.confirm_access(&mut pending_writes).unwrap();
        for name in names {
            assert!(!access.limits_topics(&named(&access, name)));
        }
    }

    #[test]
    fn logins_are_refused_until_doubtful_users_are_confirmed() {
        let (mut access, mut pending_writes) = access();
        access.set_doubt("a block is damaged", Vec::new());
        let refused = access.check_admission(&pending_writes, "guest", true).unwrap_err();
        assert!(refused.text.contains("a block is damaged"), "{}", refused.text);
        assert!(
            !access.forget_first_users(),
            "the first virtual host is kept, so that its queues can be restored"
        );
        access.confirm_access(&mut pending_writes).unwrap();
        assert!(access.check_admission(&pending_writes, "guest", true).is_ok());
    }
}
