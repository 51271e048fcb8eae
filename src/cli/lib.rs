//! WHAT THE BINARY DOES BESIDES SERVING: reading its arguments, checking a configuration,
//! inspecting a data directory, speaking to a running broker.
//!
//! Everything here runs on behalf of a person at a prompt or of systemd, never for a peer. Always true: what
//! that person did wrong is answered with one sentence that says what to change.

#![warn(clippy::unwrap_used)]

mod archive;
pub mod args;
pub mod check;
pub mod ctl;
pub mod inspect;
pub mod json;
pub mod restore;
mod store_limits;

use std::error::Error;
use std::process::ExitCode;

// The rooms of the broker, by the names they have there.

/// What the program ends with when it could not do what was asked.
pub fn exit_code(error: &(dyn Error + 'static)) -> ExitCode {
    match error.downcast_ref::<args::BadArguments>() {
        Some(bad) => ExitCode::from(bad.exit_code),
        // The codes below say what was found.
        None if error.is::<inspect::InspectError>() => ExitCode::from(inspect::CANNOT),
        None => ExitCode::FAILURE,
    }
}
