//! As whom a connection acts.
//!
//! Why it exists: a user may be deleted while its connections are still being closed; they keep its name, and may do
//! nothing any more.
//!
//! Always true: the place of a user is that of a user who exists.

use crate::command::Name;

/// As whom a connection acts; nobody before it has logged in.
#[derive(Clone, Debug, Default)]
pub(crate) struct Identity {
    pub(super) name: Name,
    /// The user's place, while it exists.
    pub(super) user: Option<usize>,
    pub(super) is_own: bool,
}

impl Identity {
    /// One of this broker's own connections, which may do what its configuration says; its name is shown, and nothing
    /// follows from it.
    pub(crate) fn own(name: &str) -> Self {
        let mut shown = Name::new();
        for letter in name.chars() {
            if shown.push(letter).is_err() {
                break;
            }
        }
        Self { name: shown, user: None, is_own: true }
    }

    /// The name that was logged in with, also when that user is deleted.
    pub(crate) const fn name(&self) -> &Name {
        &self.name
    }

    /// The user's place, while it exists.
    pub(crate) const fn user(&self) -> Option<usize> {
        self.user
    }

    /// Whether it is one of this broker's own connections.
    #[inline]
    pub(crate) const fn is_own(&self) -> bool {
        self.is_own
    }

    /// The user in this place is deleted.
    pub(crate) fn forget_user(&mut self, user: usize) {
        self.user = self.user.filter(|own| *own != user);
    }
}
