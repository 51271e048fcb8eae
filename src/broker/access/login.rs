//! From credentials to a user.
//!
//! Why it exists: comparing a password takes long on purpose, so the broker never does it. It answers a login
//! with [`Login::Check`], somebody takes the time elsewhere and comes back with the result. Always true: a
//! peer is told the same whatever was wrong; a password that was right is recognised at once until its user
//! changes, by a digest under a key that this process alone has.

use ring::hmac;

use leveret_core::command::{NAME_BYTES_MAX, Name};
use leveret_core::error::{Fault, ReplyCode};
use leveret_core::journal::Journal;
use leveret_core::password::{PasswordCheck, PasswordHash};

use super::identity::Identity;
use super::state::Access;

/// Why a user of [`Access::set_loopback_users`] is refused.
const LOOPBACK_ONLY: &str = "it can only connect from this machine itself; make a user of your own for other \
                             machines, or let it in from anywhere with loopback_users = []";

/// The result of a login.
pub(crate) enum Login {
    /// The user is logged in.
    Admitted(Identity),
    /// The password is to be compared first.
    Check(Box<PasswordCheck>),
}

impl Access {
    /// Logs a user in with name and password (SASL).
    ///
    /// # Errors
    /// The password was found right before, and its user may not log in.
    pub(crate) fn login(
        &self,
        journal: &Journal,
        user: &str,
        password: &[u8],
        from_loopback: bool,
    ) -> Result<Login, Fault> {
        let check = self.password_check(user, password, from_loopback);
        if self.is_remembered(&check) {
            return self.admit(journal, user, from_loopback).map(Login::Admitted);
        }
        Ok(Login::Check(Box::new(check)))
    }

    /// The check that these credentials need.
    pub fn password_check(&self, user: &str, password: &[u8], from_loopback: bool) -> PasswordCheck {
        let known = self.find_user(user);
        // No user has a name that is too long.
        let name = Name::try_from(user).unwrap_or_default();
        // A user who may not log in from there is answered, and delayed, as with a wrong password: otherwise
        // the real password could be found out from afar.
        let known = known.filter(|_| from_loopback || !self.is_loopback_user(user));
        let hash = known.map_or(PasswordHash::Nobodys, |user| self.users[user].hash);
        PasswordCheck::new(name, password, hash, from_loopback)
    }

    /// Whether this password was found right before, so that the comparison can be left out.
    pub fn is_remembered(&self, check: &PasswordCheck) -> bool {
        let Some(user) = self.find_user(check.user()) else { return false };
        let user = &self.users[user];
        let Some(tag) = user.remembered.filter(|_| !check.password().is_empty()) else { return false };
        let digest = self.digest(&user.name, check.password());
        *check.hash() == user.hash && leveret_core::password::equal(digest.as_ref(), tag.as_ref())
    }

    fn digest(&self, user: &str, password: &[u8]) -> hmac::Tag {
        let mut context = hmac::Context::with_key(&self.memory);
        debug_assert!(user.len() <= NAME_BYTES_MAX, "its length fits into a byte");
        context.update(&[user.len() as u8]);
        context.update(user.as_bytes());
        context.update(password);
        context.sign()
    }

    /// Ends a login whose password was checked.
    ///
    /// # Errors
    /// The password was wrong, or the user may not log in.
    pub(crate) fn admit_checked(
        &mut self,
        journal: &Journal,
        check: &PasswordCheck,
        is_right: bool,
    ) -> Result<Identity, Fault> {
        self.note_checked(check, is_right)?;
        self.admit(journal, check.user(), check.from_loopback())
    }

    /// Remembers a password that was right, whether a connection came with it or a request of an operator.
    ///
    /// # Errors
    /// The password was wrong, or was changed since the check began.
    pub fn note_checked(&mut self, check: &PasswordCheck, is_right: bool) -> Result<(), Fault> {
        let user = self.find_user(check.user()).filter(|_| is_right);
        // If the password was changed since the check began, the result means nothing.
        match user.filter(|user| self.users[*user].hash == *check.hash()) {
            Some(user) => {
                let digest = self.digest(check.user(), check.password());
                self.users[user].remembered = Some(digest);
                Ok(())
            }
            None if self.is_loopback_user(check.user()) && !check.from_loopback() => {
                Err(refused(check.user(), LOOPBACK_ONLY))
            }
            None => Err(refused(check.user(), "unknown user or wrong password")),
        }
    }

    /// Logs in a user for whom a client certificate vouches.
    ///
    /// # Errors
    /// There is no such user, or the user may not log in.
    pub(crate) fn login_external(
        &self,
        journal: &Journal,
        user: &str,
        from_loopback: bool,
    ) -> Result<Identity, Fault> {
        if self.find_user(user).is_none() {
            let why = "its certificate names a user that is not there; add_user and clear_password make one \
                       that needs no password";
            return Err(refused(user, why));
        }
        self.admit(journal, user, from_loopback)
    }

    /// Whether a user whose password was right may log in now.
    ///
    /// # Errors
    /// Nobody may log in, or this user not from there.
    pub fn check_admission(&self, journal: &Journal, name: &str, from_loopback: bool) -> Result<(), Fault> {
        if let Some(why) = self.doubt {
            let remedy = self.doubt_remedy(journal);
            return Err(refused(
                name,
                &format!(
                    "nobody is let in, for the store cannot vouch for its users and permissions ({why}); \
                     {remedy}"
                ),
            ));
        }
        if self.is_loopback_user(name) && !from_loopback {
            return Err(refused(name, LOOPBACK_ONLY));
        }
        Ok(())
    }

    /// Returns the identity of a user, as whom nobody is logged in by that.
    pub(crate) fn identity_of(&self, name: &str) -> Identity {
        let (name, user) = (Name::try_from(name).unwrap_or_default(), self.find_user(name));
        Identity { name, user, is_own: false }
    }

    fn admit(&self, journal: &Journal, name: &str, from_loopback: bool) -> Result<Identity, Fault> {
        self.check_admission(journal, name, from_loopback)?;
        Ok(self.identity_of(name))
    }
}

/// The refusal of a login: the log gets the reason, the peer does not.
fn refused(user: &str, why: &str) -> Fault {
    let mut end = user.len().min(64);
    while !user.is_char_boundary(end) {
        end -= 1;
    }
    Fault::connection(ReplyCode::AccessRefused, format_args!("user {:?}: {why}", &user[..end]))
}
