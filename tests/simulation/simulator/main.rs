//! The simulator: random runs of the whole broker under faults.
//!
//! A run has the production engine with its connections, AMQP clients whose connections stall and break, and
//! a disk with all known kinds of faults. It follows from a seed. A run consists of *lives*: a life is one process of
//! the broker on that disk, from its start to its stop, a power cut or another fault.
//!
//! | file | contents |
//! |------|----------|
//! | `run` | the lives of the broker on one disk, one after the other |
//! | `start` | what a start finds on the disk |
//! | `life` | steps, connections, the clock, stops, and the check for missed wake-ups |
//! | `wind_up` | the end of a run, after which nothing may be left |
//! | `actor` | a client: its requests, what it receives, what it holds |
//! | `traffic` | the random actions of clients |
//! | `operator` | changes of users, permissions and virtual hosts |
//! | `policies` | changes of policies |
//! | `harm` | what a damage of the store may cost |
//! | `content` | properties and body of a message |
//! | `ledger`, `fact` | what clients saw, and what follows from it |
//! | `deaths` | the ledger of messages that are dead-lettered between two queues |
//! | `recover` | what a start must find |
//! | `topology` | names of queues, exchanges and bindings |
//! | `plan` | sizes, limits and faults of a run |
//! | `known.txt` | seeds that fail and are not fixed yet |
//! | `bridged`, `upstream`, `source` | separate runs of a bridge and its upstream |
//! | `mqtt`, `mqtt_client`, `mqtt_model` | separate runs of MQTT sessions |
//!
//! The checks:
//! - Everything confirmed, committed or answered survives a power cut.
//! - Durably settled messages do not come back.
//! - No message is invented, duplicated or altered.
//! - Messages of one channel arrive in order.
//! - A message that a client has had before is marked as redelivered.
//! - Confirms and delivery tags are consecutive.
//! - Transactions are atomic.
//! - Every request is answered.
//! - No client sleeps which could proceed.
//! - Pools never exceed their limits, and are empty at the end.
//! - No synced block is overwritten.
//!
//! ```text
//! LEVERET_SEED=17 cargo test --profile checked --test simulator           one seed
//! LEVERET_SEED=1..100001 cargo test --profile checked --test simulator    many seeds
//! LEVERET_CANARY=1 LEVERET_SEED=1..2001 cargo test ...                    must fail
//! ```

#![allow(unreachable_pub, reason = "its files are one program")]

mod actor;
mod bridged;
mod content;
mod deaths;
mod fact;
mod harm;
mod ledger;
mod life;
mod mqtt;
mod mqtt_client;
mod mqtt_model;
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

use leveret_test_support::simulated_disk::Mutant;
use run::{Counts, Run};

/// Seeds of the daily runs.
const SEEDS: Range<u64> = 1..201;
/// One of these seeds must detect each mistake of the disk.
const MUTANT_SEEDS: Range<u64> = 1..201;
/// Maximum number of daily seeds that may be skipped.
const KNOWN_MAX: usize = 10;
/// Seeds that fail for a known reason that is not fixed yet.
const KNOWN: &str = include_str!("known.txt");

/// Returns the seeds in [`KNOWN`].
fn known() -> BTreeSet<u64> {
    let lines = KNOWN.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let seed = |line: &str| match line.split('\t').collect::<Vec<_>>()[..] {
        [seed, commit, date, complaint] if [commit, date, complaint].iter().all(|it| !it.is_empty()) => {
            seed.parse().ok()
        }
        _ => None,
    };
    let found: BTreeSet<u64> = lines
        .map(|line| seed(line).unwrap_or_else(|| panic!("known.txt has an invalid line: {line}")))
        .collect();
    let of_every_day = found.range(SEEDS).count();
    assert!(of_every_day <= KNOWN_MAX, "{of_every_day} daily seeds are skipped: fix one first");
    found
}

/// Returns the mistake to use in a walk: a rare one if `LEVERET_CANARY` is set, otherwise none.
///
/// The rare mistake shows in about one of some hundred seeds, so the walk must fail. This tells whether a
/// search of several days would find anything.
fn canary() -> Mutant {
    if std::env::var_os("LEVERET_CANARY").is_some() { Mutant::SyncSeldomLeftOut } else { Mutant::None }
}

/// Returns the seeds in `LEVERET_SEED`, a number or from..to; otherwise `otherwise`.
fn seeds_or(otherwise: Range<u64>) -> Range<u64> {
    let wanted = std::env::var("LEVERET_SEED").ok().and_then(|text| {
        let (from, to) = text.split_once("..").unwrap_or((&text, ""));
        let from = from.parse().ok()?;
        Some(from..to.parse().unwrap_or(from + 1))
    });
    wanted.unwrap_or(otherwise)
}

/// Returns the number of failing seeds after which a walk stops: `LEVERET_FAILURES`, otherwise 1.
fn failures_max() -> usize {
    std::env::var("LEVERET_FAILURES").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// Returns whether the methods that clients send and receive are printed.
fn is_traced() -> bool {
    std::env::var_os("LEVERET_TRACE").is_some()
}

/// Runs one seed. Returns its counts, or its complaints.
fn run(seed: u64, mutant: Mutant) -> Result<Counts, String> {
    let ran = catch_unwind(AssertUnwindSafe(|| {
        let mut run = Run::new(seed, mutant);
        run.run();
        (run.counts, core::mem::take(&mut run.ledger.complaints))
    }));
    match ran {
        Ok((counts, complaints)) if complaints.is_empty() => Ok(counts),
        Ok((_, complaints)) => Err(complaints.join("\n")),
        // The panic message is on standard error already.
        Err(panic) => {
            let said = panic.downcast_ref::<String>().cloned();
            let said = said.or_else(|| panic.downcast_ref::<&str>().map(|text| text.to_string()));
            Err(format!("panicked: {}", said.unwrap_or_default()))
        }
    }
}

/// Runs the seeds on all processors, except `passed_over`, until `failures_max` seeds have failed.
///
/// Returns the sum of their counts, and the failures.
fn walk(
    seeds: Range<u64>,
    passed_over: &BTreeSet<u64>,
    mutant: Mutant,
    failures_max: usize,
) -> (Counts, BTreeMap<u64, String>) {
    // A search prints its findings at once, because it may be ended before it is complete.
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
                            let mut sum = sum.lock().expect("no thread panics while it holds the lock");
                            sum.add(&counts);
                            if is_search && seed.is_multiple_of(1_000) {
                                // A closed standard error does not end the walk.
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
                            failed
                                .lock()
                                .expect("no thread panics while it holds the lock")
                                .insert(seed, what);
                        }
                    }
                }
            });
        }
    });
    let sum = sum.into_inner().expect("no thread panicked while it held the lock");
    (sum, failed.into_inner().expect("no thread panicked while it held the lock"))
}

fn replay(seed: u64) -> String {
    format!("replay with: LEVERET_SEED={seed} cargo test --profile checked --test simulator nothing")
}

#[test]
fn nothing_is_lost_altered_or_forgotten() {
    let seeds = seeds_or(SEEDS);
    let failures_max = failures_max();
    // A single seed is run even if it is known to fail.
    let is_walk = seeds.end - seeds.start > 1;
    let passed_over: BTreeSet<u64> =
        known().into_iter().filter(|seed| is_walk && seeds.contains(seed)).collect();
    let (sum, failed) = walk(seeds.clone(), &passed_over, canary(), failures_max);
    let failed: Vec<String> =
        failed.into_iter().map(|(seed, what)| format!("{}\n{what}", replay(seed))).collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    println!("seeds {seeds:?}, {} of them skipped: {sum:?}", passed_over.len());
    // Otherwise a change of the broker has silently made these runs ineffective.
    let count = seeds.end - seeds.start - passed_over.len() as u64;
    if seeds.end - seeds.start >= SEEDS.end - SEEDS.start {
        sum.check_work(count);
    }
}

#[test]
fn the_checks_detect_every_disk_mutant() {
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
