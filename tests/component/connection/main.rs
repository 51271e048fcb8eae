//! Connections alone: bytes in, commands out, and back.

mod flow;
mod handshake;
mod output;
mod properties;
