//! Access: who may log in, and who may do what.
//!
//! Virtual hosts keep names apart; users may see and change only what they have permissions for.
//!
//! | file | what |
//! |---|---|
//! | `login`, `identity` | from credentials to a user; as whom a connection acts |
//! | `vhosts`, `users` | virtual hosts, users, and their limits |
//! | `rights` | what a user may do in a virtual host, and the checks |
//! | `pattern`, `plain_pattern`, `pattern_bytes` | patterns of names; those that are names or lists of them; what they take |
//! | `views` | all of it as an operator sees it |
//! | `to_log`, `from_log` | how it outlives the broker |
//! | `state`, `records` | what is known of all of it; the records |
//! | `fault` | why a change cannot be made |
//!
//! Always true: a user without a permission for a virtual host never gets into it, and may do nothing there
//! once it is taken away; a change is made wholly or not at all, and gives the
//! [`Batch`](leveret_core::journal::Batch) that must be durable before anybody is told that it is done; whatever is
//! changed raises the revision, so nothing that a channel remembers outlives the permission it was given by.
//! Connections, shares and queues of a user or a virtual host are not known here: whoever deletes one sees to
//! them.

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
pub(super) use state::{Right, Thing};
pub(super) use users::Load;

pub use login::OperatorFault;
pub use pattern::PATTERN_BYTES_MAX;
pub use state::Access;
pub use state::{UserLimits, VHOST_METADATA_BYTES_MAX, VhostChange, VhostLimits};
pub use users::{PermissionView, TopicPermissionView, UserView, VhostView};
