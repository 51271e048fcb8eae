//! Users, virtual hosts and permissions as an operator sees them, one record at a time.
//!
//! Always true: nothing is changed here; a listing goes through the places in rising order and may stop
//! between any two for any time.

use leveret_core::journal::VhostMetadata;
use leveret_core::password::PasswordHash;

use super::pattern::Pattern;
use super::records::{UserLimits, VhostLimits};
use super::state::Access;

/// A virtual host as an operator sees it.
#[derive(Clone, Copy, Debug)]
pub struct VhostView<'a> {
    /// The name of the virtual host.
    pub name: &'a str,
    /// The limits of the virtual host.
    pub limits: VhostLimits,
    /// The metadata of the virtual host.
    pub metadata: VhostMetadata<'a>,
    /// The firehose copies the messages of the virtual host.
    pub is_traced: bool,
}

/// A user as an operator sees it.
#[derive(Clone, Copy, Debug)]
pub struct UserView<'a> {
    /// The name of the user.
    pub name: &'a str,
    /// The tags of the user, with commas between them.
    pub tags: &'a str,
    /// The hash of the user's password.
    pub hash: &'a PasswordHash,
    /// The limits of the user.
    pub limits: UserLimits,
}

/// A permission as an operator sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PermissionView<'a> {
    /// The user.
    pub user: &'a str,
    /// The virtual host.
    pub vhost: &'a str,
    /// The pattern of names that may be declared and deleted.
    pub configure: &'a str,
    /// The pattern of names that may be written to.
    pub write: &'a str,
    /// The pattern of names that may be read from.
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
    /// The pattern of routing keys that may be published with.
    pub write: &'a str,
    /// The pattern of routing keys that may be bound.
    pub read: &'a str,
}

impl Access {
    /// All virtual hosts.
    pub fn vhosts(&self) -> impl Iterator<Item = VhostView<'_>> {
        (0..self.vhost_places()).filter_map(|place| self.vhost_at(place))
    }

    /// Places of virtual hosts ever used, for listing them one by one.
    pub const fn vhost_places(&self) -> usize {
        self.vhosts.places()
    }

    /// The virtual host in a place, unless it is being deleted.
    pub fn vhost_at(&self, place: usize) -> Option<VhostView<'_>> {
        let vhost = self.vhosts.get(place).filter(|vhost| !vhost.dying)?;
        let (metadata, is_traced) = (vhost.metadata(), vhost.is_traced);
        Some(VhostView { name: &vhost.name, limits: vhost.limits, metadata, is_traced })
    }

    /// All users.
    pub fn users(&self) -> impl Iterator<Item = UserView<'_>> {
        (0..self.user_places()).filter_map(|place| self.user_at(place))
    }

    /// Places of users ever used, for listing them one by one.
    pub const fn user_places(&self) -> usize {
        self.users.places()
    }

    /// The user in a place.
    pub fn user_at(&self, place: usize) -> Option<UserView<'_>> {
        let user = self.users.get(place)?;
        Some(UserView { name: user.name(), tags: user.tags(), hash: user.hash(), limits: user.limits })
    }

    /// All permissions.
    pub fn permissions(&self) -> impl Iterator<Item = PermissionView<'_>> {
        (0..self.permission_places()).filter_map(|place| self.permission_at(place))
    }

    /// Places of permissions ever used, for listing them one by one.
    pub const fn permission_places(&self) -> usize {
        self.permissions.places()
    }

    /// The permission in a place.
    pub fn permission_at(&self, place: usize) -> Option<PermissionView<'_>> {
        let permission = self.permissions.get(place)?;
        let [configure, write, read] = permission.patterns.each_ref().map(Pattern::text);
        let (user, vhost) = (self.user_name(permission.user), self.vhost_name(permission.vhost));
        Some(PermissionView { user, vhost, configure, write, read })
    }

    /// All topic permissions.
    pub fn topic_permissions(&self) -> impl Iterator<Item = TopicPermissionView<'_>> {
        (0..self.topic_permission_places()).filter_map(|place| self.topic_permission_at(place))
    }

    /// Places of topic permissions ever used, for listing them one by one.
    pub const fn topic_permission_places(&self) -> usize {
        self.topics.places()
    }

    /// The topic permission in a place.
    pub fn topic_permission_at(&self, place: usize) -> Option<TopicPermissionView<'_>> {
        let topic = self.topics.get(place)?;
        let [write, read] = topic.patterns.each_ref().map(Pattern::text);
        let (user, vhost) = (self.user_name(topic.user), self.vhost_name(topic.vhost));
        Some(TopicPermissionView { user, vhost, exchange: &topic.exchange, write, read })
    }
}
