//! All users, virtual hosts and permissions.
//!
//! Always true: counts of a virtual host or a user go with it.

use ring::hmac;

use leveret_core::command::VhostId;
use leveret_core::limits::Limits;
use leveret_core::mem::Slab;

use super::fault::OperatorFault;
use super::pattern_bytes::PatternBytes;
use super::records::{Permission, TopicPermission, User, Vhost};
use crate::names::{Entropy, IndexTable};
use crate::topology::Kind;

/// The name of the user of a new store.
pub(super) const GUEST: &str = "guest";
/// The virtual host of a new store.
pub(crate) const FIRST_VHOST: &str = "/";
/// The tag of a new store's user.
pub(super) const ADMINISTRATOR: &str = "administrator";
/// What exists in every virtual host before anybody declares anything: name, type, internal.
pub(crate) const PREDECLARED: [(&str, Kind, bool); 8] = [
    ("", Kind::Default, false),
    ("amq.direct", Kind::Direct, false),
    ("amq.fanout", Kind::Fanout, false),
    ("amq.headers", Kind::Headers, false),
    ("amq.match", Kind::Headers, false),
    ("amq.topic", Kind::Topic, false),
    ("amq.rabbitmq.trace", Kind::Topic, true),
    ("amq.rabbitmq.log", Kind::Topic, true),
];

/// How many exchanges a virtual host starts with.
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

/// Users, virtual hosts, and who may do what where.
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
    /// The key of the digests by which right passwords are remembered.
    pub(super) memory: hmac::Key,
    /// The log says who there is, so the user of a new store is not assumed.
    pub(super) is_written: bool,
    /// Why the store cannot vouch for its users; then nobody logs in.
    pub(super) doubt: Option<&'static str>,
    /// Keys of definitions that the store cannot read, or whose user cannot be read.
    pub(super) unreadable: Vec<Box<[u8]>>,
    /// At a start: some definition had no room, so that others may seem to lack their user or virtual host.
    pub(super) lacks_room: bool,
    /// Users ever made, which numbers them.
    pub(super) epoch: u32,
    /// Changes of permissions ever made.
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
    /// Rises with every change of a permission: remembered rights may not hold any more.
    #[inline]
    pub(crate) const fn revision(&self) -> u64 {
        self.revision
    }
}

impl Access {
    /// The name of an existing virtual host.
    pub(crate) fn vhost_name(&self, vhost: VhostId) -> &str {
        &self.vhosts[vhost.index()].name
    }

    /// The virtual host of this name that is not being deleted.
    pub(crate) fn find_vhost(&self, name: &str) -> Option<VhostId> {
        let mut vhosts = self.vhosts.iter();
        vhosts.find(|(_, vhost)| *vhost.name == *name && !vhost.dying).map(|(index, _)| vhost_at(index))
    }

    /// The virtual host of this name.
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

    /// The name of the user in a place.
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
    /// The count of bytes that patterns take, those of policies included.
    pub(crate) const fn pattern_bytes_mut(&mut self) -> &mut PatternBytes {
        &mut self.pattern_bytes
    }
}
