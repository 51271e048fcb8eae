//! Unreadable blocks: each costs only the data in it.

use std::collections::BTreeSet;

use leveret_core::definition::ACCESS_STORED_KEY;
use leveret_core::time::Now;
use leveret_storage::{
    Access, BLOCK_BYTES, Body, Disk, Identity, Log, Message, OpenError, Range, Record, Report, Settings,
    Target, Targets, Urgency,
};
use leveret_test_support::simulated_disk::{Mutant, SimDisk, Trouble};

use crate::sample::PLAIN;

const IDENTITY: Identity = Identity { id: *b"0123456789abcdef", secret: 0xE10 };
const NOW: Now = Now::from_ms(1);
const SEGMENT_BYTES: u32 = 64 << 10;
const ALICE: &[u8] = b"\0\x02\x05alice";
/// Messages per commit, and number of commits.
const MESSAGES: u64 = 5;
const COMMITS: u64 = 46;

fn open(disk: &SimDisk) -> (Log, Report) {
    disk.start(Trouble::Never);
    let settings = Settings {
        segment_bytes: SEGMENT_BYTES,
        commit_bytes: 12 << 10,
        segments_max: 30,
        ..Settings::default()
    };
    Log::open(&mut disk.clone(), settings, IDENTITY, NOW).expect("a bad block hides no store")
}

fn commit(log: &mut Log, disk: &mut SimDisk) {
    while let Some(job) = log.next_prepare() {
        log.prepare_done(job.run(disk)).expect("the disk is well");
    }
    let job = log.next_commit(NOW).expect("a commit is awaited");
    log.commit_done(job.run(disk)).expect("the disk is well");
}

fn publish(log: &mut Log, offset: u64) {
    let record = Record::Message(Message {
        targets: Targets::List(&[Target { queue: 1, offset }]),
        body: Body::Inline(&[offset as u8; 700]),
        ..PLAIN
    });
    log.append(&record, Urgency::Awaited, NOW).expect("there is room");
}

/// Returns a store with a user, and messages in several segments.
fn written() -> SimDisk {
    let mut disk = SimDisk::new(1, Mutant::None, IDENTITY);
    let (mut log, _) = open(&disk);
    for (version, key) in [(1, ALICE), (2, ACCESS_STORED_KEY.as_slice()), (3, ALICE)] {
        let record = Record::Defined { version, key, value: Some(b"a") };
        log.append_reserved(&record, Urgency::Awaited, NOW).expect("there is room");
        commit(&mut log, &mut disk);
    }
    for offset in 0..MESSAGES * COMMITS {
        publish(&mut log, offset);
        if offset % MESSAGES == MESSAGES - 1 {
            commit(&mut log, &mut disk);
        }
    }
    disk
}

/// Returns the offsets of readable messages, and checks their bodies.
fn served(log: &Log, disk: &SimDisk) -> BTreeSet<u64> {
    let mut found = BTreeSet::new();
    log.read_live(&mut disk.clone(), |record| {
        if let Record::Message(message) = record {
            let offset = message.targets.iter().next().expect("it has one").offset;
            assert_eq!(message.body, Body::Inline(&[offset as u8; 700]), "it is as it was");
            found.insert(offset);
        }
    })
    .expect("the rest can be read");
    found
}

/// Returns every block, by file and first byte.
fn blocks(disk: &SimDisk) -> Vec<(u32, usize)> {
    let slots = disk.clone().slots().expect("it can be read");
    let of = |slot| (0..SEGMENT_BYTES as usize).step_by(BLOCK_BYTES).map(move |at| (slot, at));
    slots.into_iter().flat_map(of).collect()
}

#[test]
fn an_unreadable_block_loses_its_commit_and_is_reported() {
    let all: BTreeSet<u64> = (0..MESSAGES * COMMITS).collect();
    let places = blocks(&written());
    assert!(places.len() > 4 * 16, "{} blocks", places.len());
    let mut lossy = 0;
    for (slot, at) in places {
        let mut disk = written();
        disk.refuse(slot, at);
        let (_, inspected) = Log::inspect(&mut disk.clone()).expect("a bad block does not end an inspection");
        let (mut log, report) = open(&disk);
        assert_eq!(report.access.access, Access::Whole, "file {slot}, byte {at}");
        let lost = &all - &served(&log, &disk);
        assert!(lost.len() as u64 <= MESSAGES, "file {slot}, byte {at}: {lost:?} are lost");
        let is_told =
            report.is_damaged() || !report.refused.is_empty() || !inspected.describe_damage().is_empty();
        assert!(lost.is_empty() || is_told, "file {slot}, byte {at}: {lost:?} are lost without a word");
        lossy += usize::from(!lost.is_empty());
        // Messages confirmed now are kept, whether or not the block becomes readable again.
        for offset in 1_000..1_020 {
            publish(&mut log, offset);
            commit(&mut log, &mut disk);
        }
        drop(log);
        for relents in [false, true, true] {
            if relents {
                disk.relent(slot, at);
            }
            let (log, report) = open(&disk);
            assert_eq!(report.access.access, Access::Whole, "file {slot}, byte {at}");
            let found = served(&log, &disk);
            let promised: Vec<u64> = (1_000..1_020).filter(|offset| !found.contains(offset)).collect();
            assert!(promised.is_empty(), "file {slot}, byte {at}, {relents}: {promised:?} were confirmed");
            let missing = &all - &found;
            assert!((&missing - &lost).is_empty(), "file {slot}, byte {at}: more is lost each time");
            assert!(missing.is_empty() || !relents, "file {slot}, byte {at}: {missing:?} were lost for good");
        }
    }
    assert!(lossy > 20, "only {lossy} blocks cost anything");
}

/// A start rewrites the access files from the log.
///
/// Data in an unreadable block would be missing in them. A later start, whose log is damaged, would take it
/// for deleted.
#[test]
fn a_temporarily_unreadable_user_exists_after_damage_too() {
    let places = blocks(&written());
    let mut refused = 0;
    for after in 0..120 {
        let disk = written();
        disk.lose_access_files();
        disk.start(Trouble::FailedRead(after, 40));
        let settings = Settings { segment_bytes: SEGMENT_BYTES, segments_max: 30, ..Settings::default() };
        let opened = Log::open(&mut disk.clone(), settings, IDENTITY, NOW);
        refused += u64::from(disk.has_failed_read());
        drop(opened);
        disk.end_failed_reads();
        for &(slot, at) in places.iter().skip(1).step_by(5) {
            disk.refuse(slot, at);
            let copy = disk.copy();
            disk.relent(slot, at);
            let (_, report) = open(&copy);
            let mut is_there = matches!(report.access.access, Access::InDoubt(_));
            is_there |= report.access.definitions.iter().any(|it| *it.key == *ALICE);
            assert!(is_there, "after {after} reads, then file {slot}, byte {at}: {:?}", report.access);
        }
    }
    assert!(refused > 20, "{refused} starts were refused something");
}

/// The last commit is permanently unreadable, so a start reads three times, and the last time counts.
///
/// In that pass the newest segment is read twice. Data that only the first read misses is written again by
/// the start, and must be reported as well.
#[test]
fn a_deleted_user_stays_deleted_although_a_read_fails_temporarily() {
    let mut disk = written();
    let (mut log, _) = open(&disk);
    for turn in 0..2 {
        let version = (u64::from(log.epoch()) << 32) + turn;
        let record = Record::Defined { version, key: ALICE, value: None };
        log.append_reserved(&record, Urgency::Awaited, NOW).expect("there is room");
        commit(&mut log, &mut disk);
    }
    drop(log);
    disk.lose_access_files();
    let (slot, at) = *disk.written().last().expect("it was written");
    let mut whole = 0;
    for (after, count) in (0..600).flat_map(|after| [(after, 1), (after, 2), (after, 3), (after, 4)]) {
        let disk = disk.copy();
        disk.refuse(slot, at);
        disk.start(Trouble::FailedRead(after, count));
        let settings = Settings { segment_bytes: SEGMENT_BYTES, segments_max: 30, ..Settings::default() };
        let Ok((_, report)) = Log::open(&mut disk.clone(), settings, IDENTITY, NOW) else { continue };
        whole += u64::from(report.access.access == Access::Whole);
        let is_there = report.access.definitions.iter().any(|it| *it.key == *ALICE);
        assert!(
            report.access.access != Access::Whole || !is_there,
            "after {after} reads {count}: {:?} {:?}",
            report.access,
            report.refused
        );
    }
    assert!(whole > 100, "{whole}");
}

#[test]
fn a_file_that_cannot_be_opened_loses_its_content_and_is_reported() {
    let all: BTreeSet<u64> = (0..MESSAGES * COMMITS).collect();
    let slots = written().slots().expect("it can be read");
    let (mut lossy, mut spare) = (0, 0);
    for slot in slots {
        let mut disk = written();
        let of_file = disk.written().iter().filter(|(other, _)| *other == slot).count() as u64;
        disk.lose_file(slot, true);
        let (_, inspected) = Log::inspect(&mut disk.clone()).expect("a bad file does not end an inspection");
        assert_eq!(inspected.unopened.len(), 1, "file {slot}: inspect says nothing");
        let (mut log, report) = open(&disk);
        assert_eq!(report.access.access, Access::Whole, "file {slot}");
        assert_eq!(report.unopened.len(), 1, "file {slot} is told");
        assert!(log.is_damaged() && report.unwritable.is_none(), "file {slot}");
        let lost = &all - &served(&log, &disk);
        // The last commit is repeated by each start.
        assert!(lost.len() as u64 <= of_file * MESSAGES, "file {slot}: {} are lost", lost.len());
        lossy += usize::from(!lost.is_empty());
        spare += usize::from(of_file == 0);
        for offset in 1_000..1_040 {
            publish(&mut log, offset);
            commit(&mut log, &mut disk);
        }
        drop(log);
        // Messages confirmed now are kept, whether or not the file can be opened again.
        for relents in [false, true, true] {
            disk.lose_file(slot, !relents);
            let (log, report) = open(&disk);
            assert_eq!(report.access.access, Access::Whole, "file {slot}, {relents}");
            let found = served(&log, &disk);
            let promised: Vec<u64> = (1_000..1_040).filter(|offset| !found.contains(offset)).collect();
            assert!(promised.is_empty(), "file {slot}, {relents}: {promised:?} were confirmed");
            assert!((&(&all - &found) - &lost).is_empty(), "file {slot}, {relents}: more is lost each time");
        }
    }
    assert!(lossy > 3 && spare > 0, "{lossy} files cost anything, {spare} were spare ones");
}

#[test]
fn the_newest_segment_that_cannot_be_opened_leaves_access_in_doubt_unless_the_files_vouch() {
    let newest = written().written().last().copied().expect("there were commits").0;
    let disk = written();
    disk.lose_file(newest, true);
    disk.lose_access_files();
    let (_, report) = open(&disk);
    assert!(matches!(report.access.access, Access::InDoubt(_)), "{:?}", report.access.access);
    // A spare file may have contained nothing: the newest segment that can be opened is not full.
    let disk = written();
    let all = disk.clone().slots().expect("it can be read");
    let spare = all.into_iter().find(|slot| disk.written().iter().all(|(other, _)| other != slot));
    disk.lose_file(spare.expect("one is kept ready"), true);
    disk.lose_access_files();
    let (_, report) = open(&disk);
    assert_eq!(report.access.access, Access::Whole, "nothing of it can be missing");
}

/// An unreadable store is never reported as new. Otherwise everything readable is served, and access is in
/// doubt if no record of it is left.
#[test]
fn a_disk_with_many_unreadable_blocks_is_served_as_far_as_it_can_be_read() {
    let disk = written();
    disk.lose_access_files();
    let whole = served(&Log::read_only(&mut disk.clone()).expect("it is there").0, &disk);
    let places = blocks(&disk);
    let newest = disk.written().last().copied().expect("there were commits").0;
    places.iter().filter(|(slot, _)| *slot == newest).for_each(|(slot, at)| disk.refuse(*slot, *at));
    disk.lose_access_files();
    let copy = disk.copy();
    let (log, report) = open(&copy);
    assert!(report.unwritable.is_none() && matches!(report.access.access, Access::InDoubt(_)), "{report:?}");
    assert!(report.reported_damage.is_alarm(), "{report:?}");
    let left = served(&log, &copy);
    assert!(!left.is_empty() && left.len() < whole.len() && left.is_subset(&whole), "{left:?}");
    places.iter().for_each(|(slot, at)| disk.refuse(*slot, *at));
    disk.start(Trouble::Never);
    let settings = Settings { segment_bytes: SEGMENT_BYTES, ..Settings::default() };
    let opened = Log::open(&mut disk.clone(), settings, IDENTITY, NOW);
    assert!(matches!(opened, Err(OpenError::Unreadable(_))), "{opened:?}");
}

/// A file is unreadable at one start. Its content is back when it can be read again, whatever was written
/// meanwhile.
#[test]
fn a_file_that_is_unreadable_at_one_start_stays_in_the_log() {
    let all: BTreeSet<u64> = (0..MESSAGES * COMMITS).collect();
    let places = blocks(&written());
    let last = written().written().last().copied().expect("there were commits").0;
    let slots: BTreeSet<u32> = places.iter().map(|(slot, _)| *slot).filter(|slot| *slot != last).collect();
    let mut lossy = 0;
    for slot in slots {
        let mut disk = written();
        let of_file = || places.iter().filter(|(other, _)| *other == slot);
        of_file().for_each(|(_, at)| disk.refuse(slot, *at));
        let (mut log, _) = open(&disk);
        lossy += usize::from(served(&log, &disk) != all);
        for offset in 1_000..1_060 {
            publish(&mut log, offset);
            commit(&mut log, &mut disk);
        }
        drop(log);
        of_file().for_each(|(_, at)| disk.relent(slot, *at));
        let (log, _) = open(&disk);
        let found = served(&log, &disk);
        assert!(all.is_subset(&found), "file {slot}: {:?} are gone", &all - &found);
    }
    assert!(lossy > 2, "{lossy} files cost anything");
}

/// Data in an unreadable block is neither forgotten nor overwritten, however often it is requested and
/// however long the log is used. Every epoch that needs it reports it, and the first one that can read it
/// serves it.
#[test]
fn a_block_that_is_unreadable_for_years_is_kept_until_it_can_be_read() {
    let all: BTreeSet<u64> = (0..MESSAGES * COMMITS).collect();
    let mut disk = written();
    let (slot, at) = disk.written()[20];
    let (mut log, report) = open(&disk);
    assert!(report.refused.is_empty() && !log.is_damaged());
    // While the broker runs: the start did not read this block.
    disk.refuse(slot, at);
    let kept = &all - &read_back(&mut log, &mut disk);
    assert!((1..=MESSAGES).contains(&(kept.len() as u64)), "{kept:?}");
    assert!(log.has_refused_reads(), "it is told");
    let mut recycled = 0;
    for year in 0..12 {
        let first = 1_000 + year * 1_000;
        for offset in first..first + 600 {
            publish(&mut log, offset);
            if offset % MESSAGES == 0 {
                log.settle(1, Range { start: 1_000, end: offset }, Urgency::Awaited, NOW);
                commit(&mut log, &mut disk);
                if let Some(job) = log.next_compaction_read() {
                    log.compaction_read_done(job.run(&mut disk));
                }
            }
        }
        recycled += log.counters().segments_recycled;
        // A start reads footers; it cannot miss what it does not read.
        log = open(&disk).0;
        assert_eq!(read_back(&mut log, &mut disk), &all - &kept, "year {year}");
        assert!(log.has_refused_reads(), "year {year}: not a word");
    }
    assert!(recycled > 60, "only {recycled} segments were used again");
    disk.relent(slot, at);
    let (mut log, report) = open(&disk);
    assert_eq!(read_back(&mut log, &mut disk), all);
    assert!(!report.is_damaged() && report.refused.is_empty() && !log.is_damaged(), "{report:?}");
}

/// Returns the first part of the messages that can be read back at run time.
fn read_back(log: &mut Log, disk: &mut SimDisk) -> BTreeSet<u64> {
    let (mut came, mut from) = (BTreeSet::new(), 0);
    while from < MESSAGES * COMMITS {
        let all = Range { start: from, end: MESSAGES * COMMITS };
        let job = log.fetch(1, all, 64 << 10).expect("the buffer is free");
        let done = job.run(disk);
        from = log
            .fetch_done(done, |offset, _| {
                came.insert(offset);
            })
            .through;
    }
    came
}
