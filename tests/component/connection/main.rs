//! Connections alone: bytes in, commands out, and back.

#[macro_use]
mod support;

#[path = "../../support/random/mod.rs"]
mod random;

mod flow;
mod handshake;
mod output;
mod properties;
