//! The records of users, virtual hosts and permissions, and what one can be allowed to do.

use core::fmt;

use ring::hmac;

use crate::command::VhostId;
use crate::password::PasswordHash;

use super::pattern::Pattern;

/// What one virtual host may have at most; `None` is without limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct VhostLimits {
    /// Queues (`max-queues`).
    pub queues_max: Option<u32>,
    /// Connections (`max-connections`).
    pub connections_max: Option<u32>,
}

/// What one user may have at most, in all virtual hosts together; `None` is without limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct UserLimits {
    /// Connections (`max-connections`).
    pub connections_max: Option<u32>,
    /// Channels (`max-channels`).
    pub channels_max: Option<u32>,
}

/// What one can be allowed to do with an exchange or a queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Right {
    /// Declare and delete.
    Configure,
    /// Publish to an exchange; bind a queue to something.
    Write,
    /// Get, consume, purge; bind something to an exchange.
    Read,
}

/// The kind of object that an operation needs a right to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Thing<'a> {
    Exchange(&'a str),
    Queue(&'a str),
}

impl<'a> Thing<'a> {
    /// The nameless exchange has a name here.
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

/// What a user may do in a virtual host.
pub(super) struct Permission {
    pub(super) user: usize,
    pub(super) vhost: VhostId,
    /// To configure, write and read.
    pub(super) patterns: [Pattern; 3],
}

/// With which keys a user may write to and read from a topic exchange.
pub(super) struct TopicPermission {
    pub(super) user: usize,
    pub(super) vhost: VhostId,
    pub(super) exchange: Box<str>,
    /// To write and read.
    pub(super) patterns: [Pattern; 2],
}

/// One user.
pub(super) struct User {
    pub(super) name: Box<str>,
    /// With commas between them.
    pub(super) tags: Box<str>,
    pub(super) hash: PasswordHash,
    /// The digest of the password, once it was found right.
    pub(super) remembered: Option<hmac::Tag>,
    /// Topic permissions it has, in all virtual hosts.
    pub(super) topics: u32,
    /// What tells it from all that had its place or its name before.
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
    /// Queues that can be found.
    pub(super) queues: u32,
    /// Records of queues, exchanges and connections that still name it.
    pub(super) held: u32,
    /// Copies are made of what is published and delivered in it.
    pub(super) is_traced: bool,
    /// It is deleted, and being cleared away.
    pub(super) dying: bool,
    /// Nothing of it can be found any more.
    pub(super) swept: bool,
}
