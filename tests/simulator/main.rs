//! THE BROKER'S WORST DAYS, by chance: the engine that serves in the field, sessions and all, with clients
//! that speak AMQP over connections that stall and break, on a disk that fails in every way we know. A run is
//! a seed.
//!
//! | file | what it holds |
//! |------|---------------|
//! | `run` | one life of the broker after the other on one disk |
//! | `start` | what a start finds |
//! | `life` | steps, connections, the clock, ends; who sleeps that could go on |
//! | `actor` | a client: what it asked for, what it hears, what it holds |
//! | `traffic` | who does what |
//! | `ledger`, `fact` | what clients saw, and what follows from it |
//! | `recover` | what of it a start must find |
//! | `topology` | the names they use |
//! | `plan` | what a run is made of |
//!
//! What is checked: what was confirmed, committed or answered is there after a power cut; what was settled
//! and is durable is gone; nothing is invented, doubled or altered; what came from one channel comes in
//! order; no message is called new that a client had; confirms and delivery tags count; transactions are
//! whole; every request gets its answer; nobody sleeps who could go on; pools are never exceeded and empty in
//! the end; no synced block is written again.
//!
//! ```text
//! LEVERET_SEED=17 cargo test --profile checked --test simulator            one seed
//! LEVERET_SEED=1..100001 cargo test --profile checked --test simulator     many
//! ```

#![allow(unreachable_pub, reason = "its files are one program")]

#[path = "../world/mod.rs"]
mod world;

mod actor;
mod fact;
mod ledger;
mod life;
mod plan;
mod recover;
mod run;
mod start;
mod topology;
mod traffic;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use run::{Counts, Run};

/// Seeds of every day.
const SEEDS: core::ops::Range<u64> = 1..1_001;

/// The seeds to run: those in `LEVERET_SEED`, a number or from..to, or those of every day.
fn seeds() -> core::ops::Range<u64> {
    let wanted = std::env::var("LEVERET_SEED").ok().and_then(|text| {
        let (from, to) = text.split_once("..").unwrap_or((&text, ""));
        let from = from.parse().ok()?;
        Some(from..to.parse().unwrap_or(from + 1))
    });
    wanted.unwrap_or(SEEDS)
}

/// Runs one seed; what it did, or what is wrong.
fn run(seed: u64) -> Result<Counts, String> {
    let replay = format!("replay with: LEVERET_SEED={seed} cargo test --profile checked --test simulator");
    let ran = catch_unwind(AssertUnwindSafe(|| {
        let mut run = Run::new(seed);
        run.run();
        (run.counts, core::mem::take(&mut run.ledger.complaints))
    }));
    match ran {
        Ok((counts, complaints)) if complaints.is_empty() => Ok(counts),
        Ok((_, complaints)) => Err(format!("{replay}\n{}", complaints.join("\n"))),
        // What it said is on standard error.
        Err(panic) => {
            let said = panic.downcast_ref::<String>().cloned();
            let said = said.or_else(|| panic.downcast_ref::<&str>().map(|text| text.to_string()));
            Err(format!("{replay}\npanicked: {}", said.unwrap_or_default()))
        }
    }
}

#[test]
fn nothing_is_lost_altered_or_forgotten() {
    let seeds = seeds();
    let failures_max = std::env::var("LEVERET_FAILURES").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let (next, failed) = (AtomicU64::new(seeds.start), Mutex::new(BTreeMap::<u64, String>::new()));
    let sum = Mutex::new(Counts::default());
    let workers = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let is_enough = failed.lock().is_ok_and(|failed| failed.len() >= failures_max);
                    if seed >= seeds.end || is_enough {
                        break;
                    }
                    match run(seed) {
                        Ok(counts) => sum.lock().expect("nobody panics with it").add(&counts),
                        Err(what) => drop(failed.lock().expect("nobody panics with it").insert(seed, what)),
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().expect("nobody panicked with it");
    assert!(failed.is_empty(), "{}", failed.into_values().collect::<Vec<_>>().join("\n"));
    println!("seeds {seeds:?}: {:?}", sum.into_inner().expect("nobody panicked with it"));
}
