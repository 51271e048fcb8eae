//! `leveret sim`: many seeds of the simulator from the command line, in builds that have it.
//!
//! Always true: it ends at the first seed that fails, with the command that runs it again.

use std::error::Error;
use std::io::{self, Write};

use leveret_broker::sim;

/// Runs so many seeds from `seed` on, each `step` behind the one before; the sum of what they did.
///
/// # Errors
/// What is wrong with the first seed that fails.
pub fn run(seed: u64, runs: u64, step: u64) -> Result<String, Box<dyn Error>> {
    let seeds = (0..runs).map(|run| seed.saturating_add(run.saturating_mul(step)));
    let mut done = 0;
    let counts = sim::run_all(seeds, |seed, counts| {
        done += 1;
        if u64::is_multiple_of(done, 1_000) {
            // Nobody has to watch.
            let _ = writeln!(io::stderr(), "up to seed {seed}: {counts:?}");
        }
    })?;
    Ok(format!("{runs} seeds from {seed} on, nothing wrong: {counts:?}\n"))
}
