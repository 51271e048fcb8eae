//! The records of users, virtual hosts and permissions, and the rights there are.

use core::fmt;

use ring::hmac;

use leveret_core::command::VhostId;
use leveret_core::password::PasswordHash;

use leveret_core::journal::VhostMetadata;

use super::pattern::Pattern;

/// The limits of a virtual host; `None` is without limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct VhostLimits {
    /// The most queues (`max-queues`).
    pub queues_max: Option<u32>,
    /// The most connections (`max-connections`).
    pub connections_max: Option<u32>,
}

/// A description and tags of a virtual host have at most this many bytes together.
pub const VHOST_METADATA_BYTES_MAX: usize = 1024;

/// A change of the metadata of a virtual host. Absent fields keep their value.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct VhostChange {
    /// A description for people.
    pub description: Option<String>,
    /// The tags, with commas between them.
    pub tags: Option<String>,
    /// The type of queues that are declared without one.
    pub default_queue_type: Option<String>,
    /// The virtual host is not deleted until this is lifted.
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

/// The limits of a user, in all virtual hosts together; `None` is without limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct UserLimits {
    /// The most connections (`max-connections`).
    pub connections_max: Option<u32>,
    /// The most channels (`max-channels`).
    pub channels_max: Option<u32>,
}

/// A right to an exchange or a queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Right {
    /// To declare and delete.
    Configure,
    /// To publish to an exchange; to bind a queue to something.
    Write,
    /// To get, consume, purge; to bind something to an exchange.
    Read,
}

/// The kind of object that an operation needs a right to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Thing<'a> {
    Exchange(&'a str),
    Queue(&'a str),
}

impl<'a> Thing<'a> {
    /// The name that is matched: the default exchange is `amq.default` here.
    pub(super) fn name(self) -> &'a str {
        match self {
            Self::Exchange("") => "amq.default",
            Self::Exchange(name) | Self::Queue(name) => name,
        }
    }
}

impl fmt::Display for Thing<'_> {
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
    /// The tags, with commas between them.
    pub(super) tags: Box<str>,
    pub(super) hash: PasswordHash,
    /// The digest of the password, once it was found right.
    pub(super) remembered: Option<hmac::Tag>,
    /// Topic permissions that the user has, in all virtual hosts.
    pub(super) topics: u32,
    /// The number of the user, which tells it from others that had its place or its name before.
    pub(super) life: u32,
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
            life: 0,
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
    /// The tags, with commas between them.
    pub(super) tags: Box<str>,
    /// The type of queues that are declared without one; empty if it is not set.
    pub(super) default_queue_type: Box<str>,
    /// The virtual host is not deleted until this is lifted.
    pub(super) is_protected: bool,
    /// Queues of the virtual host that can be found.
    pub(super) queues: u32,
    /// Records of queues, exchanges and connections that still name the virtual host.
    pub(super) held: u32,
    /// The firehose copies the messages of the virtual host.
    pub(super) is_traced: bool,
    /// The virtual host is deleted, and being cleared away.
    pub(super) dying: bool,
    /// Everything in the deleted virtual host is deleted, too.
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
