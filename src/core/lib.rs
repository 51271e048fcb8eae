//! THE GROUND FLOOR: what every room may use, and what sees none of them.
//!
//! Everybody calls its modules by their own names, as if they stood one floor higher: `crate::limits`, `crate::mem`.

#![warn(clippy::unwrap_used)]

pub mod command;
pub mod error;
pub mod flight;
pub mod journal;
pub mod limits;
pub mod log_limiter;
pub mod mem;
pub mod password;
pub mod small_file;
pub mod time;
pub mod token_bucket;
