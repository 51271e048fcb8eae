//! The command line: `leveretctl`, `check`, `inspect`, `restore`, and the start of the broker.
//!
//! Everything here runs for a person at a terminal, a script or systemd, never for a client. A mistake of that
//! person is answered with one sentence that says what to change.

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

/// Returns the exit code for a failed command.
pub fn exit_code(error: &(dyn Error + 'static)) -> ExitCode {
    match error.downcast_ref::<args::BadArguments>() {
        Some(bad) => ExitCode::from(bad.exit_code),
        // Other exit codes of `inspect` report what was found.
        None if error.is::<inspect::InspectError>() => ExitCode::from(inspect::CANNOT),
        None => ExitCode::FAILURE,
    }
}
