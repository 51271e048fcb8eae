//! Stores that were spoiled in every way a card spoils them, hundreds of times.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use leveret::store::fsck::Scan;
use leveret::store::{FileDisk, Log, OpenError};
use leveret::time::Now;
use leveret::tool::inspect::{InspectError, Verdict};

use super::traffic::{Directory, IDENTITY, SEGMENT_BYTES, Traffic};
use super::{Inspected, inspected, inspected_and, soon};
use crate::sim_disk::Random;

type Files = BTreeMap<u32, Vec<u8>>;

const BLOCK: usize = 4096;
/// Who has less of a header has none; here they are shorter.
const HEADER: usize = 128;

/// Spoils a file; tells which bytes are not what they were, and whether they are gone rather than changed.
fn spoil(files: &mut Files, slot: u32, random: &mut Random) -> (Range<usize>, &'static str) {
    let bytes = files.get_mut(&slot).expect("it is a file");
    let length = bytes.len();
    let from = random.below(length as u64) as usize;
    let blocks =
        from / BLOCK * BLOCK..(from / BLOCK * BLOCK + BLOCK * (1 + random.below(6) as usize)).min(length);
    match random.below(8) {
        0..3 => {
            bytes[from] ^= 1 << random.below(8);
            (from..from + 1, "flip")
        }
        3 => {
            bytes[blocks.clone()].fill(0);
            (blocks, "zeroed")
        }
        4 => {
            bytes[blocks.clone()].iter_mut().for_each(|byte| *byte = random.below(256) as u8);
            (blocks, "garbage")
        }
        5 => {
            bytes.truncate(from);
            (from..SEGMENT_BYTES as usize, "truncated")
        }
        6 => {
            bytes.fill(0);
            (0..SEGMENT_BYTES as usize, "zeroed")
        }
        _ => {
            files.remove(&slot);
            (0..SEGMENT_BYTES as usize, "deleted")
        }
    }
}

/// Where the last commit of the newest segment begins: what erases it without a trace cannot be seen.
pub(crate) fn last_commit(traffic: &Traffic) -> (u32, usize) {
    let scan = Scan::of(&mut traffic.disk.clone()).expect("it is a store");
    let newest = scan.segments.last().expect("it has a segment");
    let mut starts = BTreeMap::new();
    let _ = scan.for_each(&mut traffic.disk.clone(), |found| {
        if found.place.segment == newest.sequence {
            starts.entry(found.commit).or_insert(found.place.at as usize - 76);
        }
        Ok::<(), ()>(())
    });
    (newest.slot, starts.last_key_value().map_or(0, |(_, start)| *start))
}

/// Drops what is set aside. Then nothing is damaged any more, not one message more is missing, and a broker
/// that starts finds the same.
fn check_dropped(directory: &Directory, found: &Inspected, what: &str) {
    let after = inspected_and(directory.path(), true).unwrap_or_else(|why| panic!("{what}: {why}"));
    let is_known = !found.report.contains("id not known");
    assert!(after.verdict != Verdict::Damaged || !is_known, "{what}\n{}", after.report);
    let again = inspected_and(directory.path(), true).unwrap_or_else(|why| panic!("{what}: {why}"));
    let keys = |inspected: &Inspected| inspected.messages.keys().copied().collect::<BTreeSet<_>>();
    let other: Vec<_> = keys(&again).symmetric_difference(&keys(found)).copied().collect();
    assert!(other.is_empty(), "{what}: {other:?} of {}\n{}", again.messages.len(), after.report);
    assert_eq!((again.verdict, &again.messages), (after.verdict, &found.messages), "{what}");
    if !is_known {
        return;
    }
    let mut disk = FileDisk::new(directory.path());
    let open = || Log::open(&mut disk, Traffic::settings(), IDENTITY, Now::from_ms(0));
    let opened = soon(open, |opened| !matches!(opened, Err(OpenError::InUse)));
    let (log, report) =
        opened.unwrap_or_else(|why| panic!("{what}: {why}\n{}\n{}", after.report, again.report));
    assert!(report.set_aside.is_empty() && report.commits_missing == 0, "{what}: {report:?}");
    let queues = log.index().queues().iter().filter(|(_, queue)| !queue.gone);
    let live = queues.flat_map(|(id, queue)| {
        queue.live_ranges().flat_map(|range| range.start..range.end).map(|offset| (*id, offset))
    });
    let live: BTreeSet<(u64, u64)> = live.collect();
    let exported: BTreeSet<(u64, u64)> = again.messages.keys().copied().collect();
    // What lies in a commit that is not whole is exported, and cut; a message with half a body is neither.
    if after.verdict == Verdict::Good && !after.report.contains("\nbodies ") {
        let other: Vec<_> = live.symmetric_difference(&exported).collect();
        assert!(other.is_empty(), "{what}: {other:?}, {} exported\n{}", exported.len(), after.report);
    }
}

/// Spoils a store once or more often; tells how, and whether that may have left no trace.
fn spoil_store(files: &Files, newest: (u32, usize), random: &mut Random) -> (Files, String, bool) {
    let (mut spoiled, mut what, mut is_traceless) = (files.clone(), String::new(), false);
    let times = if random.once_in(3) { 2 + random.below(2) } else { 1 };
    for _ in 0..times {
        let slots: Vec<u32> = spoiled.iter().filter(|file| !file.1.is_empty()).map(|file| *file.0).collect();
        let slot = slots[random.below(slots.len() as u64) as usize];
        let (range, how) = spoil(&mut spoiled, slot, random);
        let is_erased = how != "flip" && (how != "truncated" || range.start < HEADER);
        is_traceless |= slot == newest.0 && range.contains(&newest.1) && is_erased;
        what = format!("{what} slot {slot} {how} {range:?}");
    }
    (spoiled, what, is_traceless)
}

/// `LEVERET_SEEDS=n` makes it so many stores, `LEVERET_SEED=n` that one alone.
#[test]
fn nothing_is_altered_and_no_loss_is_kept_quiet() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("LEVERET_SEED") {
        Some(seed) => seed..=seed,
        None => 1..=number("LEVERET_SEEDS").unwrap_or(40),
    };
    let directory = Directory::with("damage", &BTreeMap::new());
    let (mut counts, mut runs, mut dropped) = (BTreeMap::<String, u64>::new(), 0, 0);
    for seed in seeds {
        let traffic = Traffic::aged(seed, 1 + seed % 4, 200 + 40 * (seed % 12));
        let files = traffic.files();
        directory.fill(&files);
        let whole = inspected(directory.path()).expect("it is a store");
        assert_eq!(whole.verdict, Verdict::Good, "seed {seed}\n{}", whole.report);
        let newest = last_commit(&traffic);
        let mut random = Random::new(seed ^ 0xDA_4A6E);
        for _ in 0..12 {
            runs += 1;
            let (spoiled, what, is_traceless) = spoil_store(&files, newest, &mut random);
            let what = format!("seed {seed}:{what}");
            directory.fill(&spoiled);
            let found = match inspected(directory.path()) {
                Ok(found) => found,
                // A flipped version, or nothing left.
                Err(InspectError::Directory { .. }) => continue,
                Err(trouble) => panic!("{what}: {trouble}"),
            };
            for (place, message) in &found.messages {
                assert_eq!(traffic.sent.get(place), Some(message), "{what}: {place:?} is altered");
            }
            let is_same = found.messages == whole.messages;
            assert!(
                is_same || found.verdict != Verdict::Good || is_traceless,
                "{what}: {} of {} messages\n{}",
                found.messages.len(),
                whole.messages.len(),
                found.report
            );
            if found.verdict == Verdict::Damaged {
                check_dropped(&directory, &found, &what);
                dropped += 1;
            }
            let became = if is_same { "same" } else { "other" };
            *counts.entry(format!("{:?}, {became}", found.verdict)).or_default() += 1;
        }
    }
    println!("{runs} runs, {dropped} dropped: {counts:?}");
    assert!(runs < 300 || dropped >= 100);
}
