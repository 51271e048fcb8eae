//! The program from its arguments to its end.
//!
//! Always true: what it measured is all that it prints to standard output; without a measurement there is one
//! sentence on standard error, and the exit code is 1.

use std::env;
use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

use super::measure;
use super::options::{self, Ask, PROGRAM};

/// Does what the arguments say; the code to end with.
pub fn main() -> ExitCode {
    let Err(error) = run() else { return ExitCode::SUCCESS };
    // Nobody is left to be told when standard error is closed.
    let _ = writeln!(io::stderr(), "{PROGRAM}: {error}");
    ExitCode::FAILURE
}

fn run() -> Result<(), Box<dyn Error>> {
    let said = match options::parse(env::args_os().skip(1))? {
        Ask::Help => options::help(),
        Ask::Version => format!("{PROGRAM} {}\n", env!("CARGO_PKG_VERSION")),
        Ask::Run(options) => measure::run(&options)?,
    };
    Ok(io::stdout().write_all(said.as_bytes())?)
}
