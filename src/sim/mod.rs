//! THE BROKER'S WORST DAYS, by chance: the whole broker but its sockets and threads, on a disk that fails in
//! every way we know, with clients that do anything; a run is a seed.
//!
//! | file | what it holds |
//! |------|---------------|
//! | `disk` | the simulated disk |
//! | `trouble` | what goes wrong with it at which call |
//! | `mutant` | mistakes to put in front of it |
//! | `damage` | what happens to blocks that were synced |
//! | `harm` | what of the store that may cost |
//! | `random`, `plan` | numbers from a seed, and what a run is made of |
//! | `model`, `queue`, `recover` | what must be true, and what of it a start must find |
//! | `topology`, `client`, `traffic`, `cargo`, `define` | who does what |
//! | `access` | who changes who may do what |
//! | `life` | the turn of a loop without sockets, helpers as values |
//! | `start` | what a start finds |
//! | `world` | one life after the other |
//!
//! What is checked: what was confirmed, committed or answered is there after a power cut; what was settled
//! and is durable is gone; nothing is invented, doubled or altered; the order of every queue; definitions
//! are exact; no message is called new that a client had; every confirm and every waiting publisher gets its
//! answer; pools are never exceeded and empty in the end; no synced block is written again.
//!
//! It is there only in builds that check themselves (`debug_assertions`), never in the broker that is
//! shipped.

mod access;
mod cargo;
mod client;
mod damage;
mod define;
mod disk;
mod harm;
mod life;
mod model;
mod mutant;
mod plan;
mod queue;
mod random;
mod recover;
mod start;
mod topology;
mod traffic;
mod trouble;
mod world;

use std::io::Write as _;

pub use damage::Damaged;
pub use disk::{Counts as DiskCounts, SimDisk};
pub use harm::{Harm, is_told};
pub use mutant::Mutant;
pub use random::Random;
pub use trouble::{LASTING, Trouble};
pub use world::Counts;

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// What is wrong; nothing, if all is well.
    pub complaints: Vec<String>,
    /// What it did.
    pub counts: Counts,
}

/// Runs one seed.
pub fn run(seed: u64, mutant: Mutant) -> Verdict {
    let _replay = Replay { seed };
    let mut world = world::World::new(seed, mutant);
    world.run();
    Verdict { complaints: core::mem::take(&mut world.model.complaints), counts: world.counts }
}

/// The command that runs a seed again.
pub fn replay(seed: u64) -> String {
    format!("cargo run --profile checked -- sim --seed {seed} --runs 1")
}

/// Says how to replay a run that ends by an assertion.
struct Replay {
    seed: u64,
}

impl Drop for Replay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = writeln!(std::io::stderr(), "replay: {}", replay(self.seed));
        }
    }
}

/// Runs seeds from `first` on; what they did, or what is wrong and how to see it again.
///
/// # Errors
/// The complaints of the first seed that has any.
pub fn run_all(
    seeds: impl IntoIterator<Item = u64>,
    mut progress: impl FnMut(u64, &Counts),
) -> Result<Counts, String> {
    let mut sum = Counts::default();
    for seed in seeds {
        let verdict = run(seed, Mutant::None);
        if !verdict.complaints.is_empty() {
            // First, for what is long is cut.
            return Err(format!("replay: {}\n{}", replay(seed), verdict.complaints.join("\n")));
        }
        sum.add(&verdict.counts);
        progress(seed, &sum);
    }
    Ok(sum)
}
