//! Limits, memory pools, errors, time and other types that several packages of Leveret share.
//!
//! This package depends on no other package of Leveret.

#![warn(clippy::unwrap_used)]

pub mod batch;
pub mod command;
pub mod definition;
pub mod error;
pub mod flight;
pub mod limits;
pub mod log_limiter;
pub mod mem;
pub mod password;
pub mod quota;
pub mod small_file;
pub mod time;
pub mod token_bucket;
pub mod topic;
pub mod version;
pub mod work;
