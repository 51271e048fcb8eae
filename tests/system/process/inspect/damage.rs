//! Stores that were spoiled in every way a card spoils them, hundreds of times.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use leveret_cli::inspect::{InspectError, Verdict};
use leveret_core::time::Now;
use leveret_storage::{FileDisk, Log, OpenError};

use super::traffic::{Directory, IDENTITY, SEGMENT_BYTES, Traffic};
use super::{Inspected, inspected, soon};
use leveret_test_support::random::Random;

type Files = BTreeMap<u32, Vec<u8>>;

const BLOCK: usize = 4096;

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

/// Where the last commit of the newest segment begins: damage to it looks like a commit that a power cut left unfinished.
pub(crate) fn last_commit(traffic: &Traffic) -> (u32, usize) {
    let mut disk = traffic.disk.clone();
    let (log, _) = Log::inspect(&mut disk).expect("it is a store");
    let (&sequence, newest) = log.index().segments().last_key_value().expect("it has a segment");
    let mut starts = BTreeMap::new();
    let walked = log.for_each_record(&mut disk, |found| {
        if found.place.segment == sequence {
            starts.entry(found.commit).or_insert(found.place.at as usize - 76);
        }
        Ok(())
    });
    walked.expect("the simulated disk reads");
    (newest.slot, starts.last_key_value().map_or(0, |(_, start)| *start))
}

/// A start succeeds, serves nothing that was not there, and reports a loss if something is missing. An inspection before
/// it says how many of the messages that it serves cannot be read, and exports the others.
fn check_start(
    directory: &Directory,
    whole: &Inspected,
    found: &Inspected,
    (what, is_traceless): (&str, bool),
) {
    let mut disk = FileDisk::new(directory.path());
    let open = || Log::open(&mut disk, Traffic::settings(), IDENTITY, Now::from_ms(0));
    let opened = soon(open, |opened| !matches!(opened, Err(OpenError::InUse)));
    let (log, report) = opened.unwrap_or_else(|why| panic!("{what}: {why}\n{}", found.report));
    let live: BTreeSet<(u64, u64)> = Traffic::live_in(&log).into_iter().collect();
    let keys = |inspected: &Inspected| inspected.messages.keys().copied().collect::<BTreeSet<_>>();
    let is_missing = keys(whole).difference(&live).next().is_some();
    let is_told = !report.describe_damage().is_empty() || report.footers_missing > 0;
    assert!(!is_missing || is_told || is_traceless, "{what}: {report:?}\n{}", found.report);
    assert_eq!(!report.describe_damage().is_empty(), report.reported_damage.is_alarm(), "{what}");
    let exported = keys(found);
    assert!(exported.is_subset(&live), "{what}: a start serves what is exported\n{}", found.report);
    assert_eq!((live.len() - exported.len()) as u64, found.unreadable, "{what}\n{}", found.report);
}

/// Spoils a store once or more often; tells how, and whether that may have left no trace.
fn spoil_store(files: &Files, newest: (u32, usize), random: &mut Random) -> (Files, String, bool) {
    let (mut spoiled, mut what, mut is_traceless) = (files.clone(), String::new(), false);
    let times = if random.once_in(3) { 2 + random.below(2) } else { 1 };
    for _ in 0..times {
        let slots: Vec<u32> = spoiled.iter().filter(|file| !file.1.is_empty()).map(|file| *file.0).collect();
        let slot = slots[random.below(slots.len() as u64) as usize];
        let (range, how) = spoil(&mut spoiled, slot, random);
        is_traceless |= slot == newest.0 && range.end > newest.1;
        what = format!("{what} slot {slot} {how} {range:?}");
    }
    (spoiled, what, is_traceless)
}

/// `LEVERET_SEEDS=n` sets the number of stores, `LEVERET_SEED=n` selects one.
#[test]
fn nothing_is_altered_and_no_loss_is_kept_quiet() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("LEVERET_SEED") {
        Some(seed) => seed..=seed,
        None => 1..=number("LEVERET_SEEDS").unwrap_or(40),
    };
    let directory = Directory::with("damage", &BTreeMap::new());
    let (mut counts, mut runs, mut damaged) = (BTreeMap::<String, u64>::new(), 0, 0);
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
                is_same
                    || found.verdict != Verdict::Good
                    || is_traceless
                    || found.report.contains("footers    "),
                "{what}: {} of {} messages\n{}",
                found.messages.len(),
                whole.messages.len(),
                found.report
            );
            damaged += u64::from(found.verdict == Verdict::Damaged);
            check_start(&directory, &whole, &found, (&what, is_traceless));
            let became = if is_same { "same" } else { "other" };
            *counts.entry(format!("{:?}, {became}", found.verdict)).or_default() += 1;
        }
    }
    println!("{runs} stores, {damaged} damaged: {counts:?}");
    assert!(runs < 300 || damaged >= 100);
}
