//! THE OPERATOR'S SIDE: what the broker is told to be, what it shows, and how it speaks with other machines.
//! A package of its own, made small.
//!
//! Why it exists: cargo optimizes package by package, and nobody's message waits for what is done here, but
//! for the ciphers, which are other people's. The map of the house is `src/lib.rs`.

#![warn(clippy::unwrap_used)]

pub mod bridge;
pub mod config;
pub mod fields;
pub mod requests;
pub mod tls;

// The rooms below, by the names they have there.
use leveret_base::{command, error, journal, limits, mem, password, small_file, time, token_bucket};
use leveret_broker as broker;
use leveret_wire as wire;
