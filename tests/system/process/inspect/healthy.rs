//! Stores without damage: `inspect` finds what a start finds, and never reports damage.

use std::collections::{BTreeMap, BTreeSet};

use leveret_cli::inspect::Verdict;
use leveret_storage::{Log, Record};

use super::inspected;
use super::traffic::{Directory, Traffic};
use leveret_test_support::simulated_disk::Trouble;

/// The messages whose records can be read.
fn readable(traffic: &Traffic, log: &Log) -> Vec<(u64, u64)> {
    let mut live = BTreeSet::new();
    let walked = log.read_live(&mut traffic.disk.clone(), |record| {
        if let Record::Message(message) = record {
            live.extend(log.live_targets(message));
        }
    });
    walked.expect("the simulated disk reads");
    live.into_iter().collect()
}

#[test]
fn an_inspection_finds_what_a_start_finds_after_any_power_cut() {
    let (mut messages, mut segments) = (0, 0);
    for seed in 1..=400 {
        let (mut traffic, mut has_failed) = (Traffic::new(seed), false);
        for _ in 0..6 {
            let calls = traffic.random.below(150);
            let trouble = match traffic.random.below(5) {
                0 => Trouble::Never,
                1 => Trouble::FailedSync(calls / 3),
                _ => Trouble::Cut(calls),
            };
            has_failed |= matches!(trouble, Trouble::FailedSync(_));
            traffic.live(trouble, 300);
            if traffic.disk.is_off() || !traffic.random.once_in(3) {
                traffic.disk.power_cut();
            }
            traffic.disk.start(Trouble::Never);
            let Ok((inspected, report)) = Log::inspect(&mut traffic.disk.clone()) else { continue };
            if report.is_lost {
                // A store of the first format after a power cut may look like a damaged one.
                continue;
            }
            // Data whose sync failed may look valid to the next run and be lost after a power cut. It was written
            // again before it was relied on.
            assert!(has_failed || report.describe_damage().is_empty(), "seed {seed}: {report:?}");
            segments += inspected.index().segments().len();
            let live = Traffic::live_in(&inspected);
            assert_eq!(readable(&traffic, &inspected), live, "seed {seed}");
            let (log, _) = traffic.open().expect("a healthy disk opens");
            messages += live.len();
            assert_eq!(Traffic::live_in(&log), live, "seed {seed}");
        }
    }
    println!("{segments} segments, {messages} messages");
    assert!(segments > 2000 && messages > 10_000, "the runs do too little");
}

#[test]
fn what_is_exported_is_what_was_published_and_is_live() {
    let directory = Directory::with("healthy", &BTreeMap::new());
    for seed in 1..=20 {
        let traffic = Traffic::aged(seed, 4, 700);
        directory.fill(&traffic.files());
        let found = inspected(directory.path()).expect("it is a store");
        assert_eq!(found.verdict, Verdict::Good, "{}", found.report);
        let mut disk = traffic.disk.clone();
        let (log, _) = Log::inspect(&mut disk).expect("it is a store");
        let keys: Vec<(u64, u64)> = found.messages.keys().copied().collect();
        assert_eq!(keys, Traffic::live_in(&log), "seed {seed}");
        assert!(keys.len() > 20, "seed {seed}: {} messages", keys.len());
        for (place, message) in &found.messages {
            assert_eq!(traffic.sent.get(place), Some(message), "seed {seed}, {place:?}");
        }
        let segments = log.for_each_record(&mut disk, |_| Ok(())).expect("the simulated disk reads");
        assert_eq!(found.records, segments.iter().map(|segment| segment.records).sum::<u64>());
    }
}
