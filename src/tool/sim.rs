//! `leveret sim`: many seeds of the simulator from the command line, in builds that have it.
//!
//! Always true: it ends at the first seed that fails, with the command that runs it again.

use std::error::Error;
use std::io::{self, Write};

use crate::sim;

/// Runs so many seeds from `seed` on; the sum of what they did.
///
/// # Errors
/// What is wrong with the first seed that fails.
pub fn run(seed: u64, runs: u64) -> Result<String, Box<dyn Error>> {
    let counts = sim::run_all(seed, runs, |done, counts| {
        if done.is_multiple_of(1_000) {
            // Nobody has to watch.
            let _ = writeln!(io::stderr(), "up to seed {done}: {counts:?}");
        }
    })?;
    Ok(format!("{runs} seeds from {seed} on, nothing wrong: {counts:?}\n"))
}
