//! Users: made, found, changed, removed; from where they may come.
//!
//! Always true: a user is known by its place, and by a number that no other has had (`life`).

use leveret_core::command::NAME_BYTES_MAX;
use leveret_core::error::{Fault, ReplyCode};
use leveret_core::journal::{Batch, Journal};
use leveret_core::password::{self, PasswordHash};

use super::fault::{OperatorFault, check_name};
use super::identity::Identity;
use super::records::{User, UserLimits};
use super::state::{ADMINISTRATOR, Access, GUEST};
use crate::faults::check_changeable;

/// The most bytes of a user's tags, with the commas between them.
const TAGS_BYTES_MAX: usize = NAME_BYTES_MAX;

/// Connections and channels that a user has, in all virtual hosts together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) connections: u32,
    pub(crate) channels: u32,
}

impl Access {
    /// Sets the users that may log in from this machine only.
    pub fn set_loopback_users(&mut self, users: &[String]) {
        self.loopback_users = users.iter().map(|user| user.as_str().into()).collect();
    }

    /// Warns if guest still has the default password and may log in from anywhere; and if there is no other
    /// user although other machines are listened to.
    pub fn warn_of_guest(&self, listens_to_others: bool) {
        let is_known = |user: &User| user.name() == GUEST && *user.hash() == password::GUEST;
        let mut users = self.users.iter();
        if listens_to_others && self.is_loopback_user(GUEST) && users.all(|(_, user)| user.name() == GUEST) {
            log::info!(
                "nobody can log in from another machine yet, for guest may only from this one; make a user: \
                 leveretctl add_user NAME; leveretctl set_permissions NAME '.*' '.*' '.*'"
            );
        }
        if !self.is_loopback_user(GUEST) && self.users.iter().any(|(_, user)| is_known(user)) {
            log::warn!("guest may come in from anywhere, and everybody knows its password: give it another");
        }
    }

    pub(super) fn is_loopback_user(&self, user: &str) -> bool {
        self.loopback_users.iter().any(|other| **other == *user)
    }

    /// All users: the place of each, and its number, which no other has had.
    pub(crate) fn lives(&self) -> impl Iterator<Item = (usize, u32)> {
        self.users.iter().map(|(index, user)| (index, user.life))
    }

    /// Adds a user; `None`: there is no room for one more.
    pub(super) fn add_user(&mut self, mut user: User) -> Option<usize> {
        self.epoch += 1;
        user.life = self.epoch;
        self.users.insert(user).ok()
    }

    /// Whether a user has the tag `administrator`.
    pub fn is_administrator(&self, user: &str) -> bool {
        self.find_user(user).is_some_and(|user| self.users[user].has_tag(ADMINISTRATOR))
    }

    /// Whether messages of a connection may have another user's name in user-id.
    pub(crate) fn may_impersonate(&self, who: &Identity) -> bool {
        // Messages that a bridge forwards keep the user-id of their publisher.
        who.is_own || who.user.is_some_and(|user| self.users[user].has_tag("impersonator"))
    }

    /// Whether a user may have one more connection.
    ///
    /// # Errors
    /// The limit of the user is reached.
    pub(super) fn check_user_connections(&self, who: &Identity, load: Load) -> Result<(), Fault> {
        let Some(index) = who.user else { return Ok(()) };
        let user = &self.users[index];
        match user.limits.connections_max.filter(|limit| load.connections >= *limit) {
            None => Ok(()),
            Some(limit) => Err(Fault::connection(
                ReplyCode::NotAllowed,
                format_args!(
                    "connection refused for user '{}': user connection limit ({limit}) is reached",
                    user.name
                ),
            )),
        }
    }

    /// Whether a user may have one more channel.
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

    // ---- what an operator changes

    /// Makes a user, or gives an existing one this password and these tags (words with commas between them).
    ///
    /// # Errors
    /// The name or the tags are not valid, or there is no room.
    pub(crate) fn put_user(
        &mut self,
        journal: &mut Journal,
        name: &str,
        hash: PasswordHash,
        tags: &str,
    ) -> Result<Batch, OperatorFault> {
        check_name("user", name)?;
        let tags = checked_tags(tags)?;
        check_changeable(journal)?;
        let index = match self.find_user(name) {
            Some(index) => {
                self.users[index].set_tags(&tags);
                self.users[index].set_hash(hash);
                index
            }
            None => {
                let user = User::new(name, &tags, hash);
                self.add_user(user).ok_or(OperatorFault::NoRoom("users_max"))?
            }
        };
        Ok(self.append_user(journal, index, true))
    }

    /// Deletes a user with its permissions; gives its place, which connections must forget.
    ///
    /// # Errors
    /// There is no such user, or the store cannot be written.
    pub(crate) fn delete_user(&mut self, journal: &mut Journal, name: &str) -> Result<usize, OperatorFault> {
        let user = self.require_user(name)?;
        check_changeable(journal)?;
        self.append_user(journal, user, false);
        if self.users[user].limits != UserLimits::default() {
            self.append_user_limits(journal, user, false);
        }
        self.remove_permissions(journal, |owner, _| owner == user);
        self.users.remove(user);
        Ok(user)
    }

    /// Sets the limits of a user; connections and channels that exist stay.
    ///
    /// # Errors
    /// There is no such user, or the store has no room.
    pub fn set_user_limits(
        &mut self,
        journal: &mut Journal,
        name: &str,
        limits: UserLimits,
    ) -> Result<Batch, OperatorFault> {
        let user = self.require_user(name)?;
        check_changeable(journal)?;
        self.users[user].limits = limits;
        Ok(self.append_user_limits(journal, user, limits != UserLimits::default()))
    }

    /// Sets the tags of a user: words with commas between them.
    ///
    /// # Errors
    /// There is no such user, the tags are not valid, or the store has no room.
    pub fn set_tags(
        &mut self,
        journal: &mut Journal,
        name: &str,
        tags: &str,
    ) -> Result<Batch, OperatorFault> {
        let user = self.require_user(name)?;
        let tags = checked_tags(tags)?;
        check_changeable(journal)?;
        self.users[user].set_tags(&tags);
        Ok(self.append_user(journal, user, true))
    }

    /// Sets the password hash of a user, whose connections stay.
    ///
    /// # Errors
    /// There is no such user, or the store has no room.
    pub fn change_password_hash(
        &mut self,
        journal: &mut Journal,
        name: &str,
        hash: PasswordHash,
    ) -> Result<Batch, OperatorFault> {
        let user = self.require_user(name)?;
        check_changeable(journal)?;
        self.users[user].set_hash(hash);
        Ok(self.append_user(journal, user, true))
    }
}

/// The tags without blanks around them, and without empty ones.
fn checked_tags(tags: &str) -> Result<String, OperatorFault> {
    let words: Vec<&str> = tags.split(',').map(str::trim).filter(|tag| !tag.is_empty()).collect();
    let tags = words.join(",");
    if tags.len() > TAGS_BYTES_MAX {
        return Err(OperatorFault::BadName("user's tags", "have at most 255 bytes together"));
    }
    Ok(tags)
}
