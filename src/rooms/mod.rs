//! THE ROOMS ON A MESSAGE'S WAY, and the ground floor: a package of their own.
//!
//! Why it exists: cargo optimizes package by package, and what each message passes is not to be made as small
//! as what hardly ever runs. What is generic or says `#[inline]` is compiled where it is used. The map of the
//! house, which says what each room owns and whom it sees, is `src/lib.rs`.

#![warn(clippy::unwrap_used)]

pub mod broker;
pub mod command;
pub mod error;
pub mod flight;
pub mod journal;
pub mod limits;
pub mod log_limiter;
pub mod mem;
pub mod password;
pub mod session;
pub mod small_file;
pub mod store;
pub mod time;
pub mod wire;
