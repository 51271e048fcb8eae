//! The command line: `ctl` (also installed as `leveretctl`), `check`, `inspect`, `restore`, and the start of
//! the broker.
//!
//! A mistake in arguments or configuration ends the program with an error of one sentence, which says what to
//! change.

#![warn(clippy::unwrap_used)]

mod archive;
pub mod args;
pub mod check;
pub mod completions;
pub mod ctl;
mod drop_in;
pub mod inspect;
pub mod json;
pub mod plan;
mod progress;
pub mod restore;
mod store_limits;

use std::error::Error;
use std::process::ExitCode;

/// Returns the exit code for a failed command.
pub fn exit_code(error: &(dyn Error + 'static)) -> ExitCode {
    match error.downcast_ref::<args::BadArguments>() {
        Some(bad) => ExitCode::from(bad.exit_code),
        // The other exit codes of `inspect` are its verdicts.
        None if error.is::<inspect::InspectError>() => ExitCode::from(inspect::CANNOT_INSPECT),
        None => ExitCode::FAILURE,
    }
}
