//! Logins: checks of credentials, the identity of a connection, and the errors of changes by an operator.
//!
//! Password hashes are slow to compute, deliberately, so the broker never computes one. It returns
//! [`Login::Check`] for a login, the caller makes the check outside of the broker, and then passes the result
//! to [`Access::admit_checked`].
//!
//! # Invariants
//! - A client receives the same refusal for every cause, so it cannot find out which user names exist.
//! - Once a password was found correct, it is recognized without the slow hash until its user is changed. For
//!   this the broker stores a digest of the password, made with a random key of this process.

use std::rc::Rc;

use leveret_core::command::{NAME_BYTES_MAX, Name};
use leveret_core::error::{Fault, ReplyCode};
use leveret_core::password::{PasswordCheck, PasswordHash};
use leveret_storage::PendingWrites;
use ring::hmac;

use super::{Access, PasswordDigest};

/// The log text for a loopback user that connects from another machine.
const LOOPBACK_ONLY: &str = "it can only connect from this machine itself; create another user for other \
                             machines, or allow it from anywhere with loopback_users = []";

/// The result of the first step of a login.
pub(crate) enum Login {
    /// The user is logged in.
    Admitted(Identity),
    /// The password must be checked by the caller first.
    Check(Box<PasswordCheck>),
}

impl Access {
    /// Begins a login with name and password (SASL). Admits the user at once if the password was found
    /// correct before.
    ///
    /// # Errors
    /// The password is correct, but the user may not log in.
    pub(crate) fn login(
        &self,
        pending_writes: &PendingWrites,
        user: &str,
        password: &[u8],
        from_loopback: bool,
    ) -> Result<Login, Fault> {
        let check = self.password_check(user, password, from_loopback);
        if self.is_remembered(&check) {
            return self.admit(pending_writes, user, from_loopback).map(Login::Admitted);
        }
        Ok(Login::Check(Box::new(check)))
    }

    /// Returns the check that the caller must make for these credentials.
    pub fn password_check(&self, user: &str, password: &[u8], from_loopback: bool) -> PasswordCheck {
        let known = self.find_user(user);
        // A name that is too long becomes empty, and no user has an empty name.
        let name = Name::try_from(user).unwrap_or_default();
        // A loopback user that connects from another machine gets the same reply, after the same time, as
        // with a wrong password. Otherwise passwords could be tried out from another machine.
        let known = known.filter(|_| from_loopback || !self.is_loopback_user(user));
        let hash = known.map_or(PasswordHash::NoPassword, |user| self.users[user].hash);
        PasswordCheck::new(name, password, hash, from_loopback)
    }

    /// Returns whether this password was found correct before and the user was not changed since. The caller
    /// can then skip the check.
    pub fn is_remembered(&self, check: &PasswordCheck) -> bool {
        let Some(user) = self.find_user(check.user()) else { return false };
        let user = &self.users[user];
        let Some(known) = user.password_digest.filter(|_| !check.password().is_empty()) else { return false };
        let digest = self.digest(&user.name, check.password());
        *check.hash() == user.hash && leveret_core::password::equal(&digest, &known)
    }

    fn digest(&self, user: &str, password: &[u8]) -> PasswordDigest {
        let mut context = hmac::Context::with_key(&self.password_digest_key);
        debug_assert!(user.len() <= NAME_BYTES_MAX, "its length fits into a byte");
        context.update(&[user.len() as u8]);
        context.update(user.as_bytes());
        context.update(password);
        let mut digest = PasswordDigest::default();
        digest.copy_from_slice(context.sign().as_ref());
        digest
    }

    /// Completes a login after the check of its password.
    ///
    /// # Errors
    /// The password was wrong, or the user may not log in.
    pub(crate) fn admit_checked(
        &mut self,
        pending_writes: &PendingWrites,
        check: &PasswordCheck,
        is_correct: bool,
    ) -> Result<Identity, Fault> {
        self.note_check_result(check, is_correct)?;
        self.admit(pending_writes, check.user(), check.from_loopback())
    }

    /// Stores the digest of a password that was found correct, in a login or in a request to the management
    /// API.
    ///
    /// # Errors
    /// The password was wrong, or was changed since the check began.
    pub fn note_check_result(&mut self, check: &PasswordCheck, is_correct: bool) -> Result<(), Fault> {
        let user = self.find_user(check.user()).filter(|_| is_correct);
        // If the password was changed since the check began, the result is not valid.
        match user.filter(|user| self.users[*user].hash == *check.hash()) {
            Some(user) => {
                let digest = self.digest(check.user(), check.password());
                self.users[user].password_digest = Some(digest);
                Ok(())
            }
            None if self.is_loopback_user(check.user()) && !check.from_loopback() => {
                Err(refused(check.user(), LOOPBACK_ONLY))
            }
            None => Err(refused(check.user(), "unknown user or wrong password")),
        }
    }

    /// Logs in the user whose name is in a client certificate (SASL EXTERNAL).
    ///
    /// # Errors
    /// There is no such user, or the user may not log in.
    pub(crate) fn login_external(
        &self,
        pending_writes: &PendingWrites,
        user: &str,
        from_loopback: bool,
    ) -> Result<Identity, Fault> {
        if self.find_user(user).is_none() {
            let why = "its certificate names a user that does not exist; add_user and clear_password create one \
                       without a password";
            return Err(refused(user, why));
        }
        self.admit(pending_writes, user, from_loopback)
    }

    /// Checks whether a user with correct credentials may log in.
    ///
    /// # Errors
    /// All logins are refused, because the stored users may be wrong; or the user is a loopback user and
    /// connects from another machine.
    pub fn check_admission(
        &self,
        pending_writes: &PendingWrites,
        name: &str,
        from_loopback: bool,
    ) -> Result<(), Fault> {
        if let Some(why) = self.doubt_reason {
            let remedy = self.doubt_remedy(pending_writes);
            return Err(refused(
                name,
                &format!(
                    "all logins are refused, because users and permissions in the store may be wrong ({why}); \
                     {remedy}"
                ),
            ));
        }
        if self.is_loopback_user(name) && !from_loopback {
            return Err(refused(name, LOOPBACK_ONLY));
        }
        Ok(())
    }

    /// Returns the identity of a user, without any check.
    pub(crate) fn identity_of(&self, name: &str) -> Identity {
        let user = self.find_user(name);
        let name = user.map_or_else(|| name.into(), |user| Rc::clone(&self.users[user].name));
        Identity { name: Some(name), user, is_own: false }
    }

    fn admit(
        &self,
        pending_writes: &PendingWrites,
        name: &str,
        from_loopback: bool,
    ) -> Result<Identity, Fault> {
        self.check_admission(pending_writes, name, from_loopback)?;
        Ok(self.identity_of(name))
    }
}

/// Returns the fault of a refused login. Its text is for the log; it is not sent to the client.
fn refused(user: &str, why: &str) -> Fault {
    let mut end = user.len().min(64);
    while !user.is_char_boundary(end) {
        end -= 1;
    }
    Fault::connection(ReplyCode::AccessRefused, format_args!("user {:?}: {why}", &user[..end]))
}

/// The user of a connection. Before the login, the name is empty.
///
/// A user may be deleted while its connections are still being closed. Such connections keep the user's name
/// but have no permissions any more.
#[derive(Clone, Debug, Default)]
pub(crate) struct Identity {
    /// Shared with the record of the user, because most connections live long and a name may have 255 bytes.
    name: Option<Rc<str>>,
    /// The place of the user; `None` after the user was deleted.
    pub(super) user: Option<usize>,
    /// The connection is one of the broker's own, for example the local end of a bridge.
    pub(super) is_own: bool,
}

impl Identity {
    /// Returns the identity of one of the broker's own connections. Its permissions are not checked, because
    /// only the configuration decides what it does. The name is only for display.
    pub(crate) fn own(name: &str) -> Self {
        let mut shown = Name::new();
        for letter in name.chars() {
            if shown.push(letter).is_err() {
                break;
            }
        }
        Self { name: Some(shown.as_str().into()), user: None, is_own: true }
    }

    /// Returns the name of the user, even after the user was deleted.
    pub(crate) fn name(&self) -> &str {
        self.name.as_deref().unwrap_or_default()
    }

    /// Returns the place of the user; `None` after the user was deleted.
    pub(crate) const fn user(&self) -> Option<usize> {
        self.user
    }

    /// Returns whether the connection is one of the broker's own.
    #[inline]
    pub(crate) const fn is_own(&self) -> bool {
        self.is_own
    }

    /// Notes that the user in this place was deleted, if it is the user of this connection.
    pub(crate) fn forget_user(&mut self, user: usize) {
        self.user = self.user.filter(|own| *own != user);
    }
}
