//! `leveret-bench` measures the rate, the latency and the cost of an AMQP 0-9-1 broker.
//!
//! Publishers and consumers are threads of this process with blocking sockets. Publishers patch prepared messages, and
//! consumers check messages in the buffer they were read into, so the broker needs most of the processor time.
//!
//! # Invariants
//! - Figures are printed for a workload only after each of its messages was delivered once, complete and in order.
//! - Otherwise one sentence is printed to standard error, and the exit code is 1.
//!
//! | file         | content                                                       |
//! |--------------|---------------------------------------------------------------|
//! | `options`    | the command line and the workloads                            |
//! | `connection` | a connection to the broker                                    |
//! | `publisher`  | sends messages, at a rate or with publisher confirms          |
//! | `consumer`   | receives, checks and acknowledges messages                    |
//! | `run`        | runs one workload, and compares what was sent and received    |
//! | `report`     | the figures: as a table and a line to share, or as JSON       |

#![warn(clippy::unwrap_used)]

mod connection;
mod consumer;
mod options;
mod publisher;
mod report;
mod run;

use std::env;
use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

use leveret_core::version::set_build_version;
use options::Command;

/// A result whose error is one sentence for the user.
type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Runs the program with the arguments of this process and returns its exit code.
pub fn main(version: &'static str) -> ExitCode {
    set_build_version(version);
    let Err(error) = run_command() else { return ExitCode::SUCCESS };
    // A closed standard error leaves no place to report to.
    let _ = writeln!(io::stderr(), "{}: {error}", options::PROGRAM);
    ExitCode::FAILURE
}

fn run_command() -> Result<()> {
    let mut out = io::stdout();
    let options = match options::parse(env::args_os().skip(1))? {
        Command::Print(text) => return Ok(out.write_all(text.as_bytes())?),
        Command::Measure(options) => options,
    };
    let mut line_to_share = String::new();
    for workload in &options.workloads {
        let outcome = run::run(&options, workload)?;
        let text = match options.is_json {
            true => report::json(workload, &outcome),
            false => report::row(workload, &outcome, &mut line_to_share),
        };
        out.write_all(text.as_bytes())?;
    }
    if !options.is_json {
        writeln!(out, "{line_to_share}")?;
    }
    Ok(())
}
