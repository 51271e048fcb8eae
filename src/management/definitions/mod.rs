//! Definitions as RabbitMQ exports them: one JSON object with a list per kind of thing.
//!
//! | file | what it holds |
//! |------|---------------|
//! | `read` | a file, gone through once per kind, so that things come after what they need |
//! | `scan` | a file out of pieces of it, one thing at a time |
//! | `item`, `policy`, `tables` | one thing out of JSON; a policy; arguments |
//! | `apply` | one thing into the broker |
//! | `export` | the other way round |
//!
//! Always true: size and depth are bounded; a thing that is there already stays as it is; what we do not have
//! (most parameters, fields of other names) is told, never dropped silently; a mistake is told with
//! where it stands.

mod apply;
mod export;
mod item;
mod policy;
mod read;
mod scan;
mod tables;

pub use apply::{Applied, apply, hash_password, limits_of, user_limits_of};
pub use export::{PARTS as EXPORT, VHOST_PARTS as VHOST_EXPORT};
pub use item::{
    Item, ItemError, Limits, Parameter, Parsed, Password, UserLimits, parse, parse_fields, vhost_change,
};
pub use policy::Policy;
pub use read::{At, FILE_BYTES_MAX, ReadError, SECTIONS, read};
pub use scan::{Found, Scanner};
pub use tables::table_of;

/// What is said of a field that nobody knows.
pub fn unknown_field(name: &str) -> String {
    format!("unknown field `{name}`, which changes nothing")
}
