//! Users, virtual hosts and permissions: which logins are accepted, and what each user may do.
//!
//! Virtual hosts separate names. Users may see and change only what they have permissions for.
//!
//! | file | content |
//! |---|---|
//! | `login` | from credentials to a user; the identity of a connection; why a change cannot be made |
//! | `users` | users, virtual hosts and their limits; views for operators |
//! | `rights` | permissions of a user in a virtual host, and the checks |
//! | `pattern` | patterns of names: compiled ones, plain ones, and the memory that they take |
//! | `state` | all records; writing them to the log and restoring them |
//!
//! This module does not know the connections, shares and queues of a user or a virtual host: the code that
//! deletes one handles them.
//!
//! # Invariants
//! - A user without a permission for a virtual host cannot open it, and may do nothing there once the
//!   permission is cleared.
//! - A change is made completely or not at all. It returns the [`Batch`](leveret_core::pending_writes::Batch) that
//!   must be durable before the change is acknowledged.
//! - Every change raises the revision, so nothing that a channel caches outlives the permission it was based
//!   on.

mod login;
mod pattern;
mod rights;
mod state;
#[cfg(test)]
mod tests;
mod users;

pub(super) use login::Identity;
pub(super) use login::Login;
pub(super) use login::check_name;
pub(super) use pattern::Pattern;
pub(super) use pattern::PatternBytes;
pub(super) use rights::Topic;
pub(super) use state::{
    FIRST_VHOST, PERMISSION_BYTES, PREDECLARED, PREDECLARED_EXCHANGES, USER_BYTES, VHOST_BYTES,
};
pub(super) use state::{Resource, Right};
pub(super) use users::Load;

pub use login::OperatorFault;
pub use pattern::PATTERN_BYTES_MAX;
pub use state::Access;
pub use state::{UserLimits, VHOST_METADATA_BYTES_MAX, VhostChange, VhostLimits};
pub use users::{PermissionView, TopicPermissionView, UserView, VhostView};
