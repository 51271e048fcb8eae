//! THE ROOMS ON A MESSAGE'S WAY: a package of their own, which has the ground floor and the store beside it, packages
//! each.
//!
//! Why it exists: cargo optimizes package by package, and what each message passes is not to be made as small
//! as what hardly ever runs. What is generic or says `#[inline]` is compiled where it is used. The map of the
//! house, which says what each room owns and whom it sees, is `src/lib.rs`.

#![warn(clippy::unwrap_used)]

pub mod broker;

// The ground floor, by the names that everybody has for it.
pub use leveret_base::{
    command, error, flight, journal, limits, log_limiter, mem, password, rabbitmq_version, small_file, time,
    token_bucket,
};

// The rooms that are packages of their own.
pub use leveret_session as session;
pub use leveret_store as store;
pub use leveret_wire as wire;
