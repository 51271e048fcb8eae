//! Who may come in, and who may do what.
//!
//! | file | what it holds |
//! |------|---------------|
//! | `login` | from credentials to a user |
//! | `vhosts` | virtual hosts: made, opened, limited, deleted |
//! | `rights` | what a user may do in a virtual host, and the checks |
//! | `pattern`, `plain_pattern` | patterns of names; those that are names or lists of them |
//! | `operator` | everything an operator can change, and the views |
//! | `kept` | how it outlives the broker |
//!
//! Always true: who has no permission for a virtual host never gets into it, and may do nothing there when
//! it is taken away; whatever is changed here raises the topology, so nothing that a channel remembers
//! outlives the permission it was given by; a user or virtual host that is deleted takes its permissions and
//! connections along.

mod kept;
mod login;
mod operator;
mod pattern;
mod plain_pattern;
mod rights;
mod vhosts;

use std::collections::VecDeque;

use ring::hmac;

use crate::command::{ConnectionId, VhostId};
use crate::error::Fault;
use crate::limits::Limits;
use crate::mem::{FifoPool, Messages, Slab};
use crate::password;

use crate::broker::holders::Held;
use crate::broker::names::IndexTable;
use crate::broker::records::Connection;
use crate::broker::routing::Kind;
use crate::broker::{Broker, Entropy};
use login::User;
use rights::{Permission, TopicPermission};
pub(super) use rights::{Right, Thing};
pub(super) use vhosts::Sweep;
use vhosts::Vhost;

pub use operator::{
    OperatorFault, PermissionView, TopicPermissionView, UserLimits, UserView, VhostLimits, VhostView,
};
pub use pattern::PATTERN_BYTES_MAX;

/// The user and the virtual host of a new store.
const GUEST: &str = "guest";
const FIRST_VHOST: &str = "/";
/// The tag of a new store's user.
const ADMINISTRATOR: &str = "administrator";

/// What exists in every virtual host before anybody declares anything: name, type, internal.
const PREDECLARED: [(&str, Kind, bool); 8] = [
    ("", Kind::Default, false),
    ("amq.direct", Kind::Direct, false),
    ("amq.fanout", Kind::Fanout, false),
    ("amq.headers", Kind::Headers, false),
    ("amq.match", Kind::Headers, false),
    ("amq.topic", Kind::Topic, false),
    ("amq.rabbitmq.trace", Kind::Topic, true),
    ("amq.rabbitmq.log", Kind::Topic, true),
];

/// Exchanges that a virtual host starts with.
pub(super) const PREDECLARED_EXCHANGES: usize = PREDECLARED.len();

/// A virtual host without its exchanges, a user, and a permission, each with the longest names.
pub(super) const VHOST_BYTES: usize =
    Slab::<Vhost>::record_bytes() + 256 + Messages::OWNER_BYTES + FifoPool::OWNER_BYTES;
pub(super) const USER_BYTES: usize = Slab::<User>::record_bytes() + 2 * 256;
pub(super) const PERMISSION_BYTES: usize = if size_of::<Permission>() > size_of::<TopicPermission>() {
    Slab::<Permission>::record_bytes() + IndexTable::ENTRY_BYTES + 256
} else {
    Slab::<TopicPermission>::record_bytes() + IndexTable::ENTRY_BYTES + 256
};

/// Users, virtual hosts, and who may do what where.
pub(super) struct Access {
    vhosts: Slab<Vhost>,
    users: Slab<User>,
    permissions: Slab<Permission>,
    permission_table: IndexTable,
    topics: Slab<TopicPermission>,
    topic_table: IndexTable,
    /// Both kinds of permissions together.
    permissions_max: usize,
    patterns_bytes: usize,
    patterns_bytes_max: usize,
    /// Users that come in from this machine only.
    loopback_users: Vec<Box<str>>,
    /// What passwords are remembered by.
    memory: hmac::Key,
    /// The log says who there is, so what a new store begins with is not to be assumed.
    is_written: bool,
    /// Why the store cannot vouch for who there is; then nobody logs in.
    doubt: Option<&'static str>,
    /// Keys of definitions that the store has and cannot read, or that belong to nobody who can be read.
    unreadable: Vec<Box<[u8]>>,
    /// At a start: something did not fit, so what seems to be missing may be that.
    lacks_room: bool,
    /// Connections to be closed by force.
    forced: VecDeque<ConnectionId>,
    /// Users there have been.
    lives: u32,
}

impl Access {
    pub(super) fn new(limits: &Limits, entropy: &mut Entropy, seed: u64) -> Self {
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
            permissions_max: permissions,
            patterns_bytes: 0,
            patterns_bytes_max: limits.patterns_bytes_max as usize,
            loopback_users: vec![GUEST.into()],
            memory: hmac::Key::new(hmac::HMAC_SHA256, &key),
            is_written: false,
            doubt: None,
            unreadable: Vec::new(),
            lacks_room: false,
            forced: VecDeque::with_capacity(limits.connections_max as usize),
            lives: 0,
        }
    }
}

impl Broker {
    /// What a new store begins with: `/`, and guest, who may do everything there.
    pub(super) fn begin_access(&mut self) -> Result<(), Fault> {
        let vhost = self.add_vhost(FIRST_VHOST)?;
        let user = User::new(GUEST, ADMINISTRATOR, password::GUEST);
        let Some(user) = self.add_user(user) else { return Err(self.out_of("users_max")) };
        let everything = [".*"; 3];
        self.put_permission(user, vhost, everything).map_err(|_| self.out_of("permissions_max"))
    }

    /// Users that may come in from this machine only.
    pub fn set_loopback_users(&mut self, users: &[String]) {
        self.access.loopback_users = users.iter().map(|user| user.as_str().into()).collect();
    }

    /// Says so if guest still has the password that everybody knows, and may come in from anywhere.
    pub fn warn_of_guest(&self) {
        let is_known = |user: &User| user.name() == GUEST && *user.hash() == password::GUEST;
        if !self.is_loopback_user(GUEST) && self.access.users.iter().any(|(_, user)| is_known(user)) {
            log::warn!("guest may come in from anywhere, and everybody knows its password: give it another");
        }
    }

    fn is_loopback_user(&self, user: &str) -> bool {
        self.access.loopback_users.iter().any(|other| **other == *user)
    }

    fn find_user(&self, name: &str) -> Option<usize> {
        self.access.users.iter().find(|(_, user)| user.name() == name).map(|(index, _)| index)
    }

    /// `None`: there is no room for one more.
    fn add_user(&mut self, mut user: User) -> Option<usize> {
        self.access.lives += 1;
        user.life = self.access.lives;
        let index = self.access.users.insert(user).ok()?;
        self.divide();
        Some(index)
    }

    fn remove_user(&mut self, user: usize) {
        self.access.users.remove(user);
        self.divide();
    }

    fn user_name(&self, user: usize) -> &str {
        self.access.users[user].name()
    }

    /// Asks the loop to close a connection with connection.close 320 and this reason.
    pub fn force_close(&mut self, connection: ConnectionId, reason: &str) {
        let Some(record) = self.connections.get_mut(connection.index()) else { return };
        if record.forced.is_none() && !record.dying {
            record.forced = Some(reason.into());
            self.access.forced.push_back(connection);
        }
    }

    /// The next connection that is to be closed by force, and what to tell it.
    pub fn next_forced(&mut self) -> Option<(ConnectionId, Fault)> {
        loop {
            let connection = self.access.forced.pop_front()?;
            let record = self.connections.get_mut(connection.index());
            if let Some(reason) = record.and_then(|record| record.forced.take()) {
                let code = crate::error::ReplyCode::ConnectionForced;
                return Some((connection, Fault::connection(code, format_args!("{reason}"))));
            }
        }
    }

    /// Whether a connection is to be closed by force.
    pub fn has_forced(&self) -> bool {
        !self.access.forced.is_empty()
    }

    fn force_close_all(&mut self, reason: &str, is_meant: impl Fn(&Connection) -> bool) {
        for index in 0..self.connections.places() {
            if self.connections.get(index).is_some_and(&is_meant) {
                self.force_close(ConnectionId::from_index(index), reason);
            }
        }
    }
}

fn vhost_at(index: usize) -> VhostId {
    VhostId::from_index(index)
}

/// What virtual hosts and users hold.
impl Access {
    pub(super) fn vhost_held(&self, vhost: VhostId) -> &Held {
        &self.vhosts[vhost.index()].held_of_pools
    }

    pub(super) fn vhost_held_mut(&mut self, vhost: VhostId) -> &mut Held {
        &mut self.vhosts[vhost.index()].held_of_pools
    }

    pub(super) fn user_held(&self, user: usize) -> &Held {
        &self.users[user].held
    }

    pub(super) fn user_held_mut(&mut self, user: usize) -> &mut Held {
        &mut self.users[user].held
    }

    pub(super) fn vhosts_held(&self) -> impl Iterator<Item = &Held> + Clone {
        self.vhosts.iter().map(|(_, vhost)| &vhost.held_of_pools)
    }

    pub(super) fn users_held(&self) -> impl Iterator<Item = &Held> + Clone {
        self.users.iter().map(|(_, user)| &user.held)
    }

    pub(super) fn vhost_ids(&self) -> impl Iterator<Item = VhostId> + Clone {
        self.vhosts.iter().map(|(index, _)| vhost_at(index))
    }

    /// The user that has this number, if it is still there.
    pub(super) fn user_with_life(&self, life: u32) -> Option<usize> {
        self.users.iter().find(|(_, user)| user.life == life).map(|(index, _)| index)
    }

    /// What tells a user from all that had its place or its name before.
    pub(super) fn life_of(&self, user: Option<usize>) -> u32 {
        user.map_or(0, |user| self.users[user].life)
    }

    /// What virtual hosts have of the log is counted anew.
    pub(super) fn forget_held_of_log(&mut self) {
        for index in 0..self.vhosts.places() {
            if let Some(vhost) = self.vhosts.get_mut(index) {
                vhost.held_of_pools.log_bytes = 0;
            }
        }
    }

    pub(super) fn forget_held_by_connections(&mut self) {
        for index in 0..self.vhosts.places() {
            if let Some(vhost) = self.vhosts.get_mut(index) {
                vhost.held_of_pools.forget_pinned();
            }
        }
        for index in 0..self.users.places() {
            if let Some(user) = self.users.get_mut(index) {
                user.held.forget_pinned();
            }
        }
    }
}
