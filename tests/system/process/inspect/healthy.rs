//! Stores that nobody spoiled: what inspect finds is what a start finds, and it is never called damaged.

use std::collections::{BTreeMap, BTreeSet};

use leveret::store::fsck::Scan;
use leveret::store::{Log, Record};
use leveret::tool::inspect::Verdict;

use super::inspected;
use super::traffic::{Directory, Traffic};
use crate::sim_disk::Trouble;

/// What a broker that starts would have.
fn live_in_log(traffic: &Traffic, log: &Log) -> Vec<(u64, u64)> {
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
fn a_look_finds_what_a_start_finds_after_any_power_cut() {
    let (mut tails, mut messages, mut segments) = (0, 0, 0);
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
            let Ok(scan) = Scan::of(&mut traffic.disk.clone()) else { continue };
            if scan.id.is_none() {
                // A first format that was cut may leave what nobody can tell from a store that was spoiled.
                continue;
            }
            // What failed to be synced may look well to the next life and be gone after a power cut. It was
            // written again before anybody built upon it.
            let damage = scan.damage.iter().filter(|damage| !has_failed || damage.messages_lost > 0);
            assert_eq!(damage.count(), 0, "seed {seed}: {:?}", scan.damage);
            assert_eq!(scan.bodies_broken, 0, "seed {seed}");
            tails += u64::from(scan.tail.is_some());
            segments += scan.segments.len();
            let (log, _) = traffic.open().expect("a healthy disk opens");
            let live = live_in_log(&traffic, &log);
            messages += live.len();
            assert_eq!(Traffic::live_in(&scan), live, "seed {seed}");
        }
    }
    println!("{tails} cut tails, {segments} segments, {messages} messages");
    assert!(tails > 50 && segments > 2000 && messages > 10_000, "the runs do too little");
}

#[test]
fn what_is_exported_is_what_was_published_and_is_live() {
    let directory = Directory::with("healthy", &BTreeMap::new());
    for seed in 1..=20 {
        let traffic = Traffic::aged(seed, 4, 700);
        directory.fill(&traffic.files());
        let found = inspected(directory.path()).expect("it is a store");
        assert_eq!(found.verdict, Verdict::Good, "{}", found.report);
        let scan = Scan::of(&mut traffic.disk.clone()).expect("it is a store");
        let keys: Vec<(u64, u64)> = found.messages.keys().copied().collect();
        assert_eq!(keys, Traffic::live_in(&scan), "seed {seed}");
        assert!(keys.len() > 20, "seed {seed}: {} messages", keys.len());
        for (place, message) in &found.messages {
            assert_eq!(traffic.sent.get(place), Some(message), "seed {seed}, {place:?}");
        }
        assert_eq!(found.records, scan.segments.iter().map(|segment| segment.records).sum::<u64>());
        let volume = scan.volume;
        let used = scan.segments.iter().map(|segment| u64::from(segment.used_bytes)).sum::<u64>();
        assert_eq!(volume.written_bytes(), used, "every byte has a name");
    }
}
