//! THE BROKER'S WORST DAYS, by chance: the engine that serves in the field, sessions and all, with clients
//! that speak AMQP over connections that stall and break, on a disk that fails in every way we know. A run is
//! a seed.
//!
//! | file | what it holds |
//! |------|---------------|
//! | `run` | one life of the broker after the other on one disk |
//! | `start` | what a start finds |
//! | `life` | steps, connections, the clock, stops; who sleeps that could go on |
//! | `wind_up` | the end of a run, after which nothing may be left |
//! | `actor` | a client: what it asked for, what it hears, what it holds |
//! | `traffic` | who does what |
//! | `operator` | who changes who may do what |
//! | `harm` | what of the store damage may cost |
//! | `content` | what a message is made of |
//! | `ledger`, `fact` | what clients saw, and what follows from it |
//! | `deaths` | the same of messages that die in one queue and live on in another |
//! | `recover` | what of it a start must find |
//! | `topology` | the names they use |
//! | `plan` | what a run is made of |
//! | `bridged`, `upstream` | a bridge, and the other side of it: runs of their own |
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
mod bridged;
mod content;
mod deaths;
mod fact;
mod harm;
mod ledger;
mod life;
mod operator;
mod plan;
mod recover;
mod run;
mod start;
mod topology;
mod traffic;
mod upstream;
mod wind_up;

use core::ops::Range;
use std::collections::BTreeMap;
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use run::{Counts, Run};
use world::sim_disk::Mutant;

/// Seeds of every day.
const SEEDS: Range<u64> = 1..2_001;
/// Seeds that found something once, beyond those of every day.
pub(crate) const FOUND: [u64; 22] = [
    622,
    694,
    1_362,
    7_378,
    14_194,
    21_138,
    21_996,
    24_853,
    26_025,
    30_733,
    41_237,
    41_903,
    700_805,
    830_800,
    841_745,
    930_160,
    71_932_096,
    133_123_164,
    170_023_805,
    170_023_953,
    170_032_105,
    170_035_244,
];
/// A mistake of the disk is to be found by one of these.
const MUTANT_SEEDS: Range<u64> = 1..2_001;

/// The seeds to run: those in `LEVERET_SEED`, a number or from..to, or these.
fn seeds_or(otherwise: Range<u64>) -> Range<u64> {
    let wanted = std::env::var("LEVERET_SEED").ok().and_then(|text| {
        let (from, to) = text.split_once("..").unwrap_or((&text, ""));
        let from = from.parse().ok()?;
        Some(from..to.parse().unwrap_or(from + 1))
    });
    wanted.unwrap_or(otherwise)
}

/// Whether it shows what clients say and hear.
fn is_traced() -> bool {
    std::env::var_os("LEVERET_TRACE").is_some()
}

/// Runs one seed; what it did, or what is wrong.
fn run(seed: u64, mutant: Mutant) -> Result<Counts, String> {
    let ran = catch_unwind(AssertUnwindSafe(|| {
        let mut run = Run::new(seed, mutant);
        run.run();
        (run.counts, core::mem::take(&mut run.ledger.complaints))
    }));
    match ran {
        Ok((counts, complaints)) if complaints.is_empty() => Ok(counts),
        Ok((_, complaints)) => Err(complaints.join("\n")),
        // What it said is on standard error.
        Err(panic) => {
            let said = panic.downcast_ref::<String>().cloned();
            let said = said.or_else(|| panic.downcast_ref::<&str>().map(|text| text.to_string()));
            Err(format!("panicked: {}", said.unwrap_or_default()))
        }
    }
}

/// Walks the seeds on all processors until so many have failed; the sum of what they did, and the failures.
fn walk(seeds: Range<u64>, mutant: Mutant, failures_max: usize) -> (Counts, BTreeMap<u64, String>) {
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
                    match run(seed, mutant) {
                        Ok(counts) => {
                            let mut sum = sum.lock().expect("nobody panics with it");
                            sum.add(&counts);
                            if mutant == Mutant::None && seed.is_multiple_of(1_000) {
                                // Nobody has to watch.
                                let _ = writeln!(std::io::stderr(), "up to about seed {seed}: {:?}", *sum);
                            }
                        }
                        Err(what) => {
                            if mutant == Mutant::None {
                                // At once: a long walk may be ended before it is over.
                                let _ = writeln!(
                                    std::io::stderr(),
                                    "seed {seed} fails: {what}\n{}",
                                    replay(seed)
                                );
                            }
                            failed.lock().expect("nobody panics with it").insert(seed, what);
                        }
                    }
                }
            });
        }
    });
    let sum = sum.into_inner().expect("nobody panicked with it");
    (sum, failed.into_inner().expect("nobody panicked with it"))
}

fn replay(seed: u64) -> String {
    format!("replay with: LEVERET_SEED={seed} cargo test --profile checked --test simulator nothing")
}

#[test]
fn nothing_is_lost_altered_or_forgotten() {
    let seeds = seeds_or(SEEDS);
    let failures_max = std::env::var("LEVERET_FAILURES").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let (sum, failed) = walk(seeds.clone(), Mutant::None, failures_max);
    let failed: Vec<String> =
        failed.into_iter().map(|(seed, what)| format!("{}\n{what}", replay(seed))).collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    println!("seeds {seeds:?}: {sum:?}");
    // Or a change of the broker has quietly put the runs out of work.
    let count = seeds.end - seeds.start;
    if count >= SEEDS.end - SEEDS.start {
        sum.check_work(count);
    }
}

#[test]
fn seeds_that_found_something_find_nothing_any_more() {
    for seed in FOUND {
        let ran = run(seed, Mutant::None);
        assert!(ran.is_ok(), "{}: {ran:?}", replay(seed));
    }
}

#[test]
fn the_checks_see_every_mistake_of_the_disk() {
    for mutant in [
        Mutant::SyncLeftOut,
        Mutant::SettlementAhead,
        Mutant::SettlementDropped,
        Mutant::NoLife,
        Mutant::LastCommitNotRewritten,
        Mutant::BlockRewritten,
    ] {
        let (_, found) = walk(MUTANT_SEEDS, mutant, 1);
        let first = found.first_key_value();
        println!("{mutant:?}: {:?}", first.map(|(seed, what)| (seed, what.lines().next())));
        assert!(first.is_some(), "{mutant:?} is not found");
    }
}
