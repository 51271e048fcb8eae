//! Who may come in, and who may do what.
//!
//! | file | what it holds |
//! |------|---------------|
//! | `login` | from credentials to a user |
//! | `vhosts` | virtual hosts: made, opened, limited, deleted |
//! | `rights` | what a user may do in a virtual host, and the checks |
//! | `pattern`, `plain_pattern` | patterns of names; those that are names or lists of them |
//! | `pattern_bytes` | what all patterns take in memory, those of policies included |
//! | `operator` | everything an operator can change, and the views |
//! | `kept` | how it outlives the broker |
//! | `state`, `records`, `users` | what is known of all of it; records; users |
//! | `fault` | why a change cannot be made |
//!
//! Always true: who has no permission for a virtual host never gets into it, and may do nothing there when
//! it is taken away; whatever is changed here raises the topology, so nothing that a channel remembers
//! outlives the permission it was given by; a user or virtual host that is deleted takes its permissions and
//! connections along.

mod fault;
mod kept;
mod login;
mod operator;
mod pattern;
mod pattern_bytes;
mod plain_pattern;
mod records;
mod rights;
mod state;
mod users;
mod vhosts;

pub(super) use pattern::Pattern;
pub(super) use pattern_bytes::PatternBytes;
pub(super) use records::{Right, Thing};
pub(super) use state::{Access, PERMISSION_BYTES, PREDECLARED_EXCHANGES, USER_BYTES, VHOST_BYTES};

pub use fault::OperatorFault;
pub use operator::{PermissionView, TopicPermissionView, UserView, VhostView};
pub use pattern::PATTERN_BYTES_MAX;
pub use records::{UserLimits, VhostLimits};
