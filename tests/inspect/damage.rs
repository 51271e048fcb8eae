//! Stores that were spoiled in every way a card spoils them, hundreds of times.

use std::collections::BTreeMap;
use std::ops::Range;

use leveret::store::look::Look;
use leveret::tool::inspect::{Trouble, Verdict};

use crate::inspected;
use crate::store_support::Random;
use crate::traffic::{Directory, SEGMENT_BYTES, Traffic};

type Files = BTreeMap<u32, Vec<u8>>;

const BLOCK: usize = 4096;
/// A header is at least this long.
const HEADER: usize = 68;

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
            (0..length, "zeroed")
        }
        _ => {
            files.remove(&slot);
            (0..length, "deleted")
        }
    }
}

/// Where the last commit of the newest segment begins: what erases it without a trace cannot be seen.
pub(crate) fn last_commit(traffic: &Traffic) -> (u32, usize) {
    let look = Look::take(&mut traffic.disk.clone()).expect("it is a store");
    let newest = look.segments.last().expect("it has a segment");
    let mut starts = BTreeMap::new();
    let _ = look.for_each(&mut traffic.disk.clone(), |found| {
        if found.place.segment == newest.sequence {
            starts.entry(found.commit).or_insert(found.place.at as usize - 76);
        }
        Ok::<(), ()>(())
    });
    (newest.slot, starts.last_key_value().map_or(0, |(_, start)| *start))
}

#[test]
fn nothing_is_altered_and_no_loss_is_kept_quiet() {
    let directory = Directory::with("damage", &BTreeMap::new());
    let (mut counts, mut runs) = (BTreeMap::<String, u64>::new(), 0);
    for seed in 1..=60 {
        let traffic = Traffic::aged(seed, 1 + seed % 4, 200 + 40 * (seed % 12));
        let files = traffic.files();
        directory.fill(&files);
        let whole = inspected(directory.path()).expect("it is a store");
        assert_eq!(whole.verdict, Verdict::Good, "seed {seed}\n{}", whole.report);
        let (newest, last) = last_commit(&traffic);
        let mut random = Random::new(seed ^ 0xDA_4A6E);
        for _ in 0..12 {
            runs += 1;
            let mut spoiled = files.clone();
            let slots: Vec<u32> = files.keys().copied().collect();
            let slot = slots[random.below(slots.len() as u64) as usize];
            let (range, how) = spoil(&mut spoiled, slot, &mut random);
            directory.fill(&spoiled);
            let what = format!("seed {seed}: slot {slot} {how} {range:?}");
            let found = match inspected(directory.path()) {
                Ok(found) => found,
                // A flipped version, or nothing left.
                Err(Trouble::Directory { .. }) => continue,
                Err(trouble) => panic!("{what}: {trouble}"),
            };
            for (place, message) in &found.messages {
                assert_eq!(traffic.sent.get(place), Some(message), "{what}: {place:?} is altered");
            }
            let is_same = found.messages == whole.messages;
            let is_erased = how != "flip" && (how != "truncated" || range.start < HEADER);
            let is_traceless = slot == newest && range.contains(&last) && is_erased;
            assert!(
                is_same || found.verdict != Verdict::Good || is_traceless,
                "{what}: {} of {} messages\n{}",
                found.messages.len(),
                whole.messages.len(),
                found.report
            );
            *counts
                .entry(format!("{how}, {:?}, {}", found.verdict, if is_same { "same" } else { "other" }))
                .or_default() += 1;
        }
    }
    println!("{runs} runs: {counts:#?}");
    assert!(runs >= 300);
}
