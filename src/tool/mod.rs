//! WHAT THE BINARY DOES BESIDES SERVING: reading its arguments, logging, checking a configuration,
//! measuring.
//!
//! Everything here runs on behalf of a person at a prompt or of systemd, never for a peer. Always true: what
//! that person did wrong is answered with one sentence that says what to change.

pub mod args;
pub mod bench;
pub mod check;
pub mod logging;
