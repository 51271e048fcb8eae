//! The user as whom a connection acts.
//!
//! Why it exists: a user may be deleted while its connections are still being closed; such connections keep
//! its name, and may do nothing any more.
//!
//! Always true: the place of a user is that of a user who exists.

use leveret_core::command::Name;

/// The user as whom a connection acts; nobody before the login.
#[derive(Clone, Debug, Default)]
pub(crate) struct Identity {
    pub(super) name: Name,
    /// The place of the user, while the user exists.
    pub(super) user: Option<usize>,
    /// The connection is one of the broker's own.
    pub(super) is_own: bool,
}

impl Identity {
    /// The identity of one of this broker's own connections, which may do what its configuration says; the
    /// name is only shown.
    pub(crate) fn own(name: &str) -> Self {
        let mut shown = Name::new();
        for letter in name.chars() {
            if shown.push(letter).is_err() {
                break;
            }
        }
        Self { name: shown, user: None, is_own: true }
    }

    /// The name that logged in, also when that user is deleted.
    pub(crate) const fn name(&self) -> &Name {
        &self.name
    }

    /// The place of the user, while the user exists.
    pub(crate) const fn user(&self) -> Option<usize> {
        self.user
    }

    /// Whether the connection is one of this broker's own.
    #[inline]
    pub(crate) const fn is_own(&self) -> bool {
        self.is_own
    }

    /// Notes that the user in this place is deleted.
    pub(crate) fn forget_user(&mut self, user: usize) {
        self.user = self.user.filter(|own| *own != user);
    }
}
