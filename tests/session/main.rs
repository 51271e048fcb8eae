//! Sessions alone: bytes in, commands out, and back.

#[macro_use]
mod support;

mod flow;
mod handshake;
mod output;
mod properties;
