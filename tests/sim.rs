//! The whole broker on a disk that fails: thousands of runs, and mistakes that they must see.
//!
//! `leveret sim --seed N --runs M` (in builds that check themselves) runs more; a seed that fails says how.

#![cfg(debug_assertions)]

use leveret::sim::{Mutant, run, run_all};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

#[test]
fn nothing_promised_is_lost_and_nothing_settled_comes_back() {
    let seeds = number("LEVERET_SEEDS").unwrap_or(2_000);
    let first = number("LEVERET_SEED").unwrap_or(1);
    let counts = run_all(first..first + seeds, |_, _| {}).unwrap_or_else(|what| panic!("{what}"));
    println!("{seeds} seeds: {counts:?}");
    // Or a change of the broker has quietly put the runs out of work.
    assert!(counts.cuts >= 5 * seeds && counts.lives > 4 * seeds, "cut too seldom: {counts:?}");
    assert!(counts.confirmed > 200 * seeds && counts.delivered > 250 * seeds, "too little: {counts:?}");
    assert!(counts.commits > 120 * seeds && counts.reads > 40 * seeds, "the disk rests: {counts:?}");
    assert!(counts.administered > 4 * seeds, "operators rest: {counts:?}");
    assert!(counts.spilled > 20 * seeds && counts.full > seeds / 5, "too much room: {counts:?}");
}

/// Seeds that found something once, beyond those of every day.
const FOUND: [u64; 11] = [2230, 2710, 3326, 6911, 7002, 7334, 10_214, 10_766, 12_875, 14_860, 17_559];

#[test]
fn seeds_that_found_something_find_nothing_any_more() {
    for seed in FOUND {
        let complaints = run(seed, Mutant::None).complaints;
        assert!(complaints.is_empty(), "seed {seed}: {complaints:?}");
    }
}

#[test]
fn the_checks_see_every_mutant() {
    for mutant in [
        Mutant::SyncLeftOut,
        Mutant::SettlementAhead,
        Mutant::SettlementDropped,
        Mutant::NoLife,
        Mutant::LastCommitNotRewritten,
        Mutant::BlockRewritten,
    ] {
        let runs = (1..=400).map(|seed| (seed, run(seed, mutant).complaints));
        let caught = runs.into_iter().find(|(_, complaints)| !complaints.is_empty());
        if let Some((seed, complaints)) = &caught {
            println!("{mutant:?} is caught by seed {seed}: {}", complaints[0]);
        }
        assert!(caught.is_some(), "{mutant:?} is not caught");
    }
}
