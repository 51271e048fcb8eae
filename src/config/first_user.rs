//! The first user of a new store: `default_user` and `default_pass`.
//!
//! # Invariants
//! - They apply to a new store only. A store with users keeps them.
//! - The password is shown neither by `leveret check` nor in a log.

use std::fmt;

use leveret_core::mem::NAME_BYTES_MAX;

use super::file::{Readable, Value, Wrong};

/// The well-known user, whose password is the same word.
pub const GUEST: &str = "guest";

/// The first user of a new store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirstUser {
    /// Its name; `None`: a new store has no user.
    pub name: Option<String>,
    /// Its password.
    pub password: Secret,
}

impl Default for FirstUser {
    fn default() -> Self {
        Self { name: Some(GUEST.to_string()), password: Secret(GUEST.to_string()) }
    }
}

impl FirstUser {
    /// Checks that name and password go together.
    pub(super) fn check(&self) -> Result<(), String> {
        match (&self.name, self.password.0.as_str()) {
            (Some(name), GUEST) if name != GUEST => Err(format!(
                "default_user = {name:?} takes a default_pass other than \"guest\", which everybody knows"
            )),
            _ => Ok(()),
        }
    }

    /// Formats the keys as in a file.
    pub(super) fn shown(&self) -> Vec<String> {
        let user = self.name.as_ref().map_or_else(|| "false".to_string(), |name| format!("{name:?}"));
        let password = self.password.0 != GUEST;
        let password = password.then(|| "# default_pass is set, and not shown".to_string());
        [format!("default_user = {user}")].into_iter().chain(password).collect()
    }
}

/// A text that is not shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(not shown)")
    }
}

impl Readable for Secret {
    fn read(value: &Value<'_>) -> Result<Self, Wrong> {
        match value.get_ref().as_str() {
            Some("") => Err(Wrong::value(value, "it must not be empty: nobody logs in without a password")),
            Some(text) => Ok(Self(text.to_string())),
            // The text is not repeated in the error: it may be the password.
            None => Err(Wrong::value(value, "it must be a text in quotes")),
        }
    }
}

/// The value of `default_user`: a name, or `false`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserName(pub Option<String>);

impl Readable for UserName {
    fn read(value: &Value<'_>) -> Result<Self, Wrong> {
        match (value.get_ref().as_str(), value.get_ref().as_bool()) {
            (Some(name), _) if !name.is_empty() && name.len() <= NAME_BYTES_MAX => {
                Ok(Self(Some(name.to_string())))
            }
            (Some(_), _) => {
                Err(Wrong::value(value, "a user's name has 1 to 255 bytes; default_user = false for none"))
            }
            (None, Some(false)) => Ok(Self(None)),
            _ => Err(Wrong::kind(value, "a name in quotes, or false")),
        }
    }
}
