//! The first user of a new store: `default_user` and `default_pass`.
//!
//! # Invariants
//! - The two keys apply only to a new store. An existing store keeps its users.
//! - Neither `leveret check` nor any log shows the password.

use std::fmt;

use leveret_core::mem::NAME_BYTES_MAX;

use super::file::{ParseError, Readable, Value};
use toml::de::DeValue;

/// The user name and password of RabbitMQ's default user.
pub const GUEST: &str = "guest";

/// The first user of a new store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirstUser {
    /// The user name; `None`: a new store has no user.
    pub name: Option<String>,
    /// The password.
    pub password: Secret,
}

impl Default for FirstUser {
    fn default() -> Self {
        Self { name: Some(GUEST.to_string()), password: Secret(GUEST.to_string()) }
    }
}

impl FirstUser {
    /// Checks that only the user `guest` has the password `guest`.
    ///
    /// # Errors
    /// Another user has that password, for example because `default_pass` is missing.
    pub(super) fn check(&self) -> Result<(), String> {
        match (&self.name, self.password.0.as_str()) {
            (Some(name), GUEST) if name != GUEST => Err(format!(
                "default_user = {name:?} needs a default_pass other than the well-known \"guest\""
            )),
            _ => Ok(()),
        }
    }

    /// Returns the keys as lines of a configuration file, without the password.
    pub(super) fn to_toml(&self) -> Vec<String> {
        let user = self.name.as_ref().map_or_else(|| "false".to_string(), |name| format!("{name:?}"));
        let password = self.password.0 != GUEST;
        let password = password.then(|| "# default_pass is set, and not shown".to_string());
        [format!("default_user = {user}")].into_iter().chain(password).collect()
    }
}

/// A password. Its `Debug` output does not contain it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(not shown)")
    }
}

impl Readable for Secret {
    fn read(value: &Value<'_>) -> Result<Self, ParseError> {
        match value.get_ref().as_str() {
            Some("") => Err(ParseError::at(value, "it must not be empty: a login requires a password")),
            Some(text) => Ok(Self(text.to_string())),
            // The error does not quote the value, which may be the password without its quotes.
            None => Err(ParseError::at(value, "it must be a text in quotes")),
        }
    }
}

/// The value of `default_user`: a name, or `None` for `false`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserName(pub Option<String>);

impl Readable for UserName {
    fn read(value: &Value<'_>) -> Result<Self, ParseError> {
        match (value.get_ref().as_str(), value.get_ref().as_bool()) {
            (Some(name), _) if !name.is_empty() && name.len() <= NAME_BYTES_MAX => {
                Ok(Self(Some(name.to_string())))
            }
            (Some(_), _) => {
                Err(ParseError::at(value, "a user's name has 1 to 255 bytes; default_user = false for none"))
            }
            (None, Some(false)) => Ok(Self(None)),
            _ => Err(ParseError::wrong_type(value, "a name in quotes, or false")),
        }
    }
}

/// The value of `loopback_users`: users that can connect only from this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LoopbackUsers(pub(super) Vec<String>);

/// RabbitMQ's notation for an empty list. It is refused: as a user of this name, it would let guest connect from other
/// machines without saying so.
pub(super) const NO_LOOPBACK_USER: &str = "none";

/// Returns what to write instead of the notation of RabbitMQ's sysctl-style file. `users` are the loopback users that it
/// names.
#[cold]
pub(super) fn loopback_users_meant(users: &[&str]) -> String {
    match users {
        [] => "this is RabbitMQ's notation: write loopback_users = [] to let guest log in from the network; the \
               password guest is known to everybody, so change it first (leveretctl change_password guest)"
            .to_string(),
        users => format!(
            "this is RabbitMQ's notation: write loopback_users = {users:?}, the users that can log in only from this \
             machine"
        ),
    }
}

impl Readable for LoopbackUsers {
    fn read(value: &Value<'_>) -> Result<Self, ParseError> {
        match value.get_ref() {
            DeValue::Table(table) => {
                let users =
                    table.iter().filter(|(_, is_loopback)| is_loopback.get_ref().as_bool() != Some(false));
                let users: Vec<&str> = users.map(|(user, _)| &**user.get_ref()).collect();
                Err(ParseError::at(value, loopback_users_meant(&users)))
            }
            DeValue::Boolean(false) => Err(ParseError::at(value, loopback_users_meant(&[]))),
            _ => match Vec::<String>::read(value)? {
                users if users.iter().any(|user| user == NO_LOOPBACK_USER) => {
                    Err(ParseError::at(value, loopback_users_meant(&[])))
                }
                users => Ok(Self(users)),
            },
        }
    }
}
