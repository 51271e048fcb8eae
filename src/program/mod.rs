//! Leveret, whole: the broker and its tools, under one name.
//!
//! Why it exists: cargo optimizes package by package, and the tools are made smaller than the broker; see
//! `Cargo.toml`. The map of the house is that of [`leveret_host`].

pub use leveret_host::*;
pub use leveret_tools as tool;
