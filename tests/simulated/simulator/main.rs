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
//! | `policies` | what an operator says of queues beside their arguments |
//! | `harm` | what of the store damage may cost |
//! | `content` | what a message is made of |
//! | `ledger`, `fact` | what clients saw, and what follows from it |
//! | `deaths` | the same of messages that die in one queue and live on in another |
//! | `recover` | what of it a start must find |
//! | `topology` | the names they use |
//! | `plan` | what a run is made of |
//! | `known.txt` | seeds that fail, and are to be mended |
//! | `bridged`, `upstream`, `source` | a bridge, and the other side of it: runs of their own |
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
//! LEVERET_CANARY=1 LEVERET_SEED=1..2001 cargo test ...                     they are to fail
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
mod policies;
mod recover;
mod run;
mod source;
mod start;
mod topology;
mod traffic;
mod upstream;
mod wind_up;

use core::ops::Range;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use run::{Counts, Run};
use world::sim_disk::Mutant;

/// Seeds of every day.
const SEEDS: Range<u64> = 1..201;
/// A mistake of the disk is to be found by one of these.
const MUTANT_SEEDS: Range<u64> = 1..201;
/// Of the seeds of every day so many may be passed over.
const KNOWN_MAX: usize = 10;
/// Seeds that fail for a reason that is known and not mended yet.
const KNOWN: &str = include_str!("known.txt");

/// The seeds in [`KNOWN`].
fn known() -> BTreeSet<u64> {
    let lines = KNOWN.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let seed = |line: &str| match line.split('\t').collect::<Vec<_>>()[..] {
        [seed, commit, date, complaint] if [commit, date, complaint].iter().all(|it| !it.is_empty()) => {
            seed.parse().ok()
        }
        _ => None,
    };
    let found: BTreeSet<u64> = lines
        .map(|line| seed(line).unwrap_or_else(|| panic!("known.txt has no such lines: {line}")))
        .collect();
    let of_every_day = found.range(SEEDS).count();
    assert!(of_every_day <= KNOWN_MAX, "{of_every_day} seeds of every day are passed over: mend one first");
    found
}

/// With `LEVERET_CANARY` set, a walk has a mistake in its disk that shows in one of some hundred seeds, and
/// is to fail: so a search that goes on for days can be asked now and then whether it would find anything.
fn canary() -> Mutant {
    if std::env::var_os("LEVERET_CANARY").is_some() { Mutant::SyncSeldomLeftOut } else { Mutant::None }
}

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

/// Walks the seeds on all processors, but for those in `passed_over`, until so many have failed; the sum of
/// what they did, and the failures.
fn walk(
    seeds: Range<u64>,
    passed_over: &BTreeSet<u64>,
    mutant: Mutant,
    failures_max: usize,
) -> (Counts, BTreeMap<u64, String>) {
    // A search for something says what it finds, at once: it may be ended before it is over.
    let is_search = matches!(mutant, Mutant::None | Mutant::SyncSeldomLeftOut);
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
                    if passed_over.contains(&seed) {
                        continue;
                    }
                    match run(seed, mutant) {
                        Ok(counts) => {
                            let mut sum = sum.lock().expect("nobody panics with it");
                            sum.add(&counts);
                            if is_search && seed.is_multiple_of(1_000) {
                                // Nobody has to watch.
                                let _ = writeln!(std::io::stderr(), "up to about seed {seed}: {:?}", *sum);
                            }
                        }
                        Err(what) => {
                            if is_search {
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
    // Whoever names one seed wants to see it.
    let is_walk = seeds.end - seeds.start > 1;
    let passed_over: BTreeSet<u64> =
        known().into_iter().filter(|seed| is_walk && seeds.contains(seed)).collect();
    let (sum, failed) = walk(seeds.clone(), &passed_over, canary(), failures_max);
    let failed: Vec<String> =
        failed.into_iter().map(|(seed, what)| format!("{}\n{what}", replay(seed))).collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    println!("seeds {seeds:?}, {} of them passed over: {sum:?}", passed_over.len());
    // Or a change of the broker has quietly put the runs out of work.
    let count = seeds.end - seeds.start - passed_over.len() as u64;
    if seeds.end - seeds.start >= SEEDS.end - SEEDS.start {
        sum.check_work(count);
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
        let (_, found) = walk(MUTANT_SEEDS, &known(), mutant, 1);
        let first = found.first_key_value();
        println!("{mutant:?}: {:?}", first.map(|(seed, what)| (seed, what.lines().next())));
        assert!(first.is_some(), "{mutant:?} is not found");
    }
}
