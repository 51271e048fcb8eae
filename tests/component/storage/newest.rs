//! Damage to the newest segment, which no later one describes. It can be reconstructed only from its own
//! header, from the headers of its commits, and from the header copy beside the log.

use std::collections::BTreeMap;

use leveret_core::definition::ACCESS_STORED_KEY;
use leveret_storage::{
    ACCESS_SLOTS, Access, Body, Disk, Log, Message, NEWEST_SLOT, Range, Record, Report, Target, Targets,
    Urgency,
};
use leveret_test_support::simulated_disk::{SimDisk, Trouble};

use crate::sample::PLAIN;
use crate::small::{
    HEADER_BYTES, IDENTITY, NOW, all, body, new_disk, open, publish_ten, readable, settings, turn, zero,
};

/// Position of a commit, and its first message.
type Tens = ((u32, usize), u64);

struct Store {
    disk: SimDisk,
    /// Commits of the newest segment.
    commits: Vec<Tens>,
    /// All live offsets.
    live: Vec<u64>,
    /// The header copy before the newest segment was opened.
    note_before: Vec<u8>,
}

fn commit_ten(log: &mut Log, disk: &mut SimDisk, offset: &mut u64) -> Tens {
    while let Some(job) = log.next_prepare() {
        log.prepare_done(job.run(disk)).expect("the disk is well");
    }
    let place = publish_ten(log, disk, *offset);
    *offset += 10;
    (place, *offset - 10)
}

/// Returns a log of `segments` segments, the newest one with some commits of ten messages each.
///
/// With `lasts`, the segments before are deleted, as in every store that is in use for some time.
fn store(segments: usize, lasts: bool) -> Store {
    let mut disk = new_disk();
    let (mut log, _) = open(&disk, IDENTITY);
    let (mut offset, mut start) = (0, 0);
    if lasts {
        while log.index().segments().len() < 4 {
            start = offset;
            commit_ten(&mut log, &mut disk, &mut offset);
        }
        log.settle(1, Range { start: 0, end: start }, Urgency::Awaited, NOW);
        while log.index().segments().len() > 1 {
            turn(&mut log, &mut disk);
        }
        // The first remaining message opened its segment.
        let (mut log, _) = open(&disk, IDENTITY);
        assert_eq!(readable(&mut log, &mut disk), (start..offset).collect::<Vec<_>>());
    }
    let (mut log, _) = open(&disk, IDENTITY);
    let newest = |log: &Log| log.index().segments().values().map(|segment| segment.slot).next_back();
    let mut commits: Vec<Tens> = Vec::new();
    let (mut note_before, mut of_newest) = (Vec::new(), newest(&log));
    while log.index().segments().len() < segments || commits.len() < 4 {
        let note = first_block(&mut disk, NEWEST_SLOT);
        let place = commit_ten(&mut log, &mut disk, &mut offset);
        commits.retain(|((slot, _), _)| newest(&log) == Some(*slot));
        commits.push(place);
        if newest(&log) != of_newest {
            of_newest = newest(&log);
            note_before = note;
        }
    }
    Store { disk, commits, live: (start..offset).collect(), note_before }
}

fn first_block(disk: &mut SimDisk, slot: u32) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    disk.read(slot, 0, &mut bytes).expect("the disk is well");
    bytes
}

/// Restores the old content of a block, as a card may do.
fn put_back(disk: &mut SimDisk, slot: u32, block: &[u8]) {
    disk.write(slot, 0, block).expect("the disk is well");
    disk.sync(slot).expect("the disk is well");
}

/// Flips a bit in the body of the fourth message of a commit.
fn flip_fourth(disk: &SimDisk, &((slot, at), first): &Tens) {
    let before: usize = (first..first + 3).map(|offset| body(offset).len() + 30).sum();
    disk.flip(slot, at + HEADER_BYTES + before + 60);
}

/// Checks that several starts and inspections find the same.
fn finds(case: &str, disk: &mut SimDisk, expected: &[u64]) {
    for start in 0..3 {
        let (log, report) = Log::inspect(disk).expect("it is readable");
        assert!(!report.describe_damage().is_empty(), "{case}: inspect before start {start}");
        assert_eq!(
            log.index().queues()[&1].live,
            expected.len() as u64,
            "{case}: inspect before start {start}"
        );
        let (mut log, report) = open(disk, IDENTITY);
        assert!(report.is_damaged(), "{case}: it is told by start {start}: {report:?}");
        assert_eq!(readable(&mut log, disk), expected, "{case}, start {start}");
    }
}

/// Each commit was written after the sync of the one before. So the headers of the later ones prove all but
/// the last, even if none of them is intact. The last one is like a torn commit.
#[test]
fn damage_to_every_commit_of_the_newest_segment_loses_the_damaged_messages_and_the_last_commit() {
    for (segments, lasts) in [(3, false), (1, false), (1, true), (3, true)] {
        for is_noted in [true, false] {
            let Store { mut disk, commits, live, .. } = store(segments, lasts);
            if !is_noted {
                zero(&mut disk, NEWEST_SLOT, 0..1);
            }
            // The records written at the start that opened them are damaged, too.
            let of_newest =
                disk.written().into_iter().filter(|(slot, at)| *slot == commits[0].0.0 && *at > 0);
            let places: Vec<usize> = commits.iter().map(|((_, at), _)| *at).collect();
            let others: Vec<(u32, usize)> = of_newest.filter(|(_, at)| !places.contains(at)).collect();
            let is_all = segments > 1;
            for (slot, at) in others.into_iter().filter(|_| is_all) {
                disk.flip(slot, at + 80);
            }
            commits.iter().for_each(|commit| flip_fourth(&disk, commit));
            let last = commits.last().expect("there are some").1;
            let touched: Vec<u64> = commits.iter().map(|(_, first)| first + 3).collect();
            let is_left = |offset: &u64| !touched.contains(offset) && *offset < last;
            let left: Vec<u64> = live.into_iter().filter(is_left).collect();
            finds(&format!("{segments} segments, {lasts}, {is_noted}"), &mut disk, &left);
        }
    }
}

/// Nothing names the newest segment any more, and none of its commits is intact. Their headers prove that it
/// existed.
#[test]
fn a_newest_segment_without_header_copy_and_intact_commit_is_reported() {
    let Store { mut disk, commits, live, note_before } = store(3, false);
    put_back(&mut disk, NEWEST_SLOT, &note_before);
    let ((slot, _), first) = commits[0];
    disk.flip(slot, 20);
    for block in 1..16 {
        let mut head = vec![0; 4096];
        disk.read(slot, block * 4096, &mut head).expect("the disk is well");
        if head.iter().any(|byte| *byte != 0) {
            disk.flip(slot, block as usize * 4096 + 80);
        }
    }
    let (_, report) = Log::inspect(&mut disk).expect("it is readable");
    assert!(!report.describe_damage().is_empty() && report.commits_lost_at_end > 1, "{report:?}");
    let (mut log, report) = open(&disk, IDENTITY);
    assert!(report.is_damaged(), "{report:?}");
    let found = readable(&mut log, &mut disk);
    assert_eq!(found, live.into_iter().filter(|offset| *offset < first).collect::<Vec<_>>());
}

/// A store whose newest segment is in the file of an earlier one.
struct Reused {
    disk: SimDisk,
    /// Commits of the newest segment.
    commits: Vec<Tens>,
    /// The first block of the file while it was the earlier segment.
    old_header: Vec<u8>,
    /// The header copy before the newest segment was opened.
    note_before: Vec<u8>,
    live: core::ops::Range<u64>,
}

fn store_in_used_files() -> Reused {
    let mut disk = new_disk();
    let (mut log, _) = open(&disk, IDENTITY);
    let (mut offset, mut settled, mut headers) = (0, 0, BTreeMap::new());
    let mut commits: Vec<Tens> = Vec::new();
    let (mut old, mut note, mut note_before) = (None, Vec::new(), Vec::new());
    while old.is_none() || commits.len() < 4 {
        let commit = commit_ten(&mut log, &mut disk, &mut offset);
        let slot = commit.0.0;
        if commits.first().is_none_or(|first| first.0.0 != slot) {
            commits.clear();
            old = headers.insert(slot, first_block(&mut disk, slot));
            note_before = core::mem::replace(&mut note, first_block(&mut disk, NEWEST_SLOT));
            log.settle(1, Range { start: settled, end: commit.1 }, Urgency::Awaited, NOW);
            settled = commit.1;
            (0..20).for_each(|_| turn(&mut log, &mut disk));
        }
        commits.push(commit);
    }
    let old_header = old.expect("the file was a segment before");
    Reused { disk, commits, old_header, note_before, live: settled..offset }
}

/// A card restores the old header in the file of the newest segment. The start that finds it opens the next segment
/// and is killed, perhaps between the header of that segment and the header copy.
///
/// The old header is that of an unfinished first start. The commits of the second start seem to follow it.
#[test]
fn a_newest_segment_behind_the_header_of_an_unfinished_start_is_found_after_a_killed_start() {
    for calls in 0..20 {
        let mut disk = new_disk();
        disk.start(Trouble::ReadOnly(3));
        let (_, report) = Log::open(&mut disk, settings(), IDENTITY, NOW).expect("it opens");
        assert!(report.unwritable.is_some(), "{report:?}");
        let old_header = first_block(&mut disk, 0);
        let (mut log, _) = open(&disk, IDENTITY);
        let mut offset = 0;
        let (newest, _) = commit_ten(&mut log, &mut disk, &mut offset);
        assert_eq!(newest.0, 0, "the file of the unfinished start is used again");
        assert_ne!(first_block(&mut disk, 0), old_header);
        drop(log);
        put_back(&mut disk, 0, &old_header);
        disk.start(Trouble::Kill(calls));
        drop(Log::open(&mut disk, settings(), IDENTITY, NOW));
        disk.revive();
        for start in 0..2 {
            let (mut log, _) = open(&disk, IDENTITY);
            assert_eq!(readable(&mut log, &mut disk), all(offset), "killed at call {calls}, start {start}");
        }
    }
}

/// A card restores the old header in the file of the newest segment, and loses the header copy.
#[test]
fn a_newest_segment_behind_an_old_header_is_found_without_the_header_copy() {
    let Reused { mut disk, commits, old_header, live, .. } = store_in_used_files();
    let ((slot, _), first) = commits[0];
    put_back(&mut disk, slot, &old_header);
    flip_fourth(&disk, &commits[0]);
    zero(&mut disk, NEWEST_SLOT, 0..1);
    // The position of the damaged commit in the log is unknown, so it is lost completely.
    let left: Vec<u64> = live.filter(|offset| *offset >= first + 10).collect();
    let (_, report) = Log::inspect(&mut disk).expect("it is readable");
    assert!(!report.describe_damage().is_empty(), "{report:?}");
    for start in 0..2 {
        let (mut log, report) = open(&disk, IDENTITY);
        assert!(report.is_damaged() || report.reported_damage.is_alarm(), "start {start}: {report:?}");
        assert_eq!(readable(&mut log, &mut disk), left, "start {start}");
    }
}

/// A card loses its last writes of the newest header and of the header copy, and returns the old blocks. With
/// `is_footer_lost`, it also loses the footer of the segment before.
#[test]
fn a_newest_segment_behind_an_old_header_is_found_although_the_header_copy_is_old_too() {
    for is_footer_lost in [false, true] {
        let Reused { mut disk, commits, old_header, note_before, live } = store_in_used_files();
        let ((slot, _), first) = commits[0];
        let before = u32::from_le_bytes(note_before[12..16].try_into().expect("four bytes"));
        assert_ne!(before, slot, "the header copy names the segment before");
        put_back(&mut disk, slot, &old_header);
        put_back(&mut disk, NEWEST_SLOT, &note_before);
        if is_footer_lost {
            zero(&mut disk, before, 15..16);
        }
        flip_fourth(&disk, &commits[0]);
        let left: Vec<u64> = live.filter(|offset| *offset >= first + 10).collect();
        let (_, report) = Log::inspect(&mut disk).expect("it is readable");
        assert!(!report.describe_damage().is_empty(), "{is_footer_lost}: {report:?}");
        for start in 0..2 {
            let (mut log, report) = open(&disk, IDENTITY);
            assert!(report.is_damaged() || report.reported_damage.is_alarm(), "{is_footer_lost}: {report:?}");
            assert_eq!(readable(&mut log, &mut disk), left, "{is_footer_lost}, start {start}");
        }
    }
}

/// As above, and no commit of the newest segment is intact. Their headers prove that it existed.
#[test]
fn a_newest_segment_behind_an_old_header_without_intact_commit_is_reported() {
    let Reused { mut disk, commits, old_header, note_before, .. } = store_in_used_files();
    let slot = commits[0].0.0;
    put_back(&mut disk, slot, &old_header);
    put_back(&mut disk, NEWEST_SLOT, &note_before);
    for block in 1..16 {
        disk.flip(slot, block * 4096 + 80);
    }
    let (_, report) = Log::inspect(&mut disk).expect("it is readable");
    assert!(!report.describe_damage().is_empty() && report.commits_lost_at_end > 1, "{report:?}");
    for start in 0..2 {
        let (_, report) = open(&disk, IDENTITY);
        assert!(report.is_damaged() || report.reported_damage.is_alarm(), "start {start}: {report:?}");
    }
}

/// A commit is lost in a power cut. The start that overwrites it cannot sync, the process goes on from the page cache,
/// and the next power cut brings parts of the lost commit back. Its messages have the offsets of later ones.
fn compact_with_part_of_lost_commit(is_later_damaged: bool) {
    let mut disk = new_disk();
    let (mut log, _) = open(&disk, IDENTITY);
    publish_ten(&mut log, &mut disk, 0);
    let stale: Vec<u64> = (10..16).collect();
    for offset in &stale {
        let target = [Target { queue: 1, offset: *offset }];
        let message = Message { targets: Targets::List(&target), body: Body::Inline(b"stale"), ..PLAIN };
        log.append(&Record::Message(message), Urgency::Awaited, NOW).expect("there is room");
    }
    let job = log.next_commit(NOW).expect("a commit is awaited");
    log.commit_done(job.run(&mut disk)).expect("the disk is well");
    let (slot, at) = disk.written().last().copied().expect("it was written");
    let mut lost = vec![0; 4096];
    disk.read(slot, at as u64, &mut lost).expect("the disk is well");
    zero(&mut disk, slot, at as u64 / 4096..at as u64 / 4096 + 1);
    // The first of these starts writes its commit at the same place, and the second one repeats it behind.
    for _ in 0..2 {
        log = open(&disk, IDENTITY).0;
    }
    // The copies of these messages take more than one commit, and those with the offsets of lost ones come last.
    let places = [20, 30, 10].map(|mut offset| commit_ten(&mut log, &mut disk, &mut offset));
    let mut offset = 40;
    while log.index().segments().len() < 3 {
        commit_ten(&mut log, &mut disk, &mut offset);
    }
    // One of the six records is damaged, and therefore the commit.
    disk.write(slot, at as u64, &lost).expect("the disk is well");
    disk.flip(slot, at + HEADER_BYTES + 10);
    if is_later_damaged {
        flip_fourth(&disk, &places[2]);
    }
    let (mut log, report) = open(&disk, IDENTITY);
    assert!(!report.is_damaged(), "the segment is sealed, so its commits are not read: {report:?}");
    log.settle(1, Range { start: 0, end: 10 }, Urgency::Awaited, NOW);
    log.settle(1, Range { start: 40, end: offset }, Urgency::Awaited, NOW);
    let first = log.index().segments().keys().next().copied().expect("there are segments");
    // A segment with a record that cannot be read is never removed.
    let turns_max = if is_later_damaged { offset + 2_000 } else { 10_000 };
    while log.index().segments().contains_key(&first) && offset < turns_max {
        let target = [Target { queue: 2, offset }];
        let message = Message { targets: Targets::List(&target), body: Body::Inline(&[7; 3_000]), ..PLAIN };
        // Without space, only the compactor continues.
        let _ = log.append(&Record::Message(message), Urgency::Awaited, NOW);
        (0..20).for_each(|_| turn(&mut log, &mut disk));
        offset += 1;
    }
    let mut found = Vec::new();
    let read = log.for_each_message(&mut disk, 1, |_, offset, message| {
        let Body::Inline(bytes) = message.body else { panic!("the bodies are small") };
        found.push((offset, bytes == body(offset)));
        Ok(())
    });
    read.expect("the disk is well");
    assert_eq!(log.index().segments().contains_key(&first), is_later_damaged);
    let is_left = |offset: &u64| !is_later_damaged || *offset != 13;
    assert_eq!(found, (10..40).filter(is_left).map(|offset| (offset, true)).collect::<Vec<_>>());
}

#[test]
fn the_compactor_copies_no_message_of_a_lost_commit_that_a_failed_sync_brings_back() {
    compact_with_part_of_lost_commit(false);
}

/// One of the later messages is damaged. No message of the lost commit takes its place.
#[test]
fn the_compactor_replaces_no_damaged_message_by_one_of_a_lost_commit() {
    compact_with_part_of_lost_commit(true);
}

/// The oldest segment of a log follows no other one. Its header tells that its first commit is missing.
#[test]
fn damage_to_the_first_commit_of_the_oldest_segment_loses_the_damaged_messages_and_is_reported() {
    let mut disk = new_disk();
    let (mut log, _) = open(&disk, IDENTITY);
    let mut offset = 0;
    let mut opened = commit_ten(&mut log, &mut disk, &mut offset);
    while log.index().segments().len() < 3 {
        opened = commit_ten(&mut log, &mut disk, &mut offset);
    }
    log.settle(1, Range { start: 0, end: opened.1 }, Urgency::Awaited, NOW);
    while log.index().segments().len() > 1 {
        turn(&mut log, &mut disk);
    }
    commit_ten(&mut log, &mut disk, &mut offset);
    assert_eq!(opened.0.1, 4096, "it is the first of its segment");
    for is_whole_commit in [false, true] {
        let mut disk = copy_of(&disk);
        let touched = if is_whole_commit {
            zero(&mut disk, opened.0.0, 1..2);
            opened.1..opened.1 + 10
        } else {
            flip_fourth(&disk, &opened);
            opened.1 + 3..opened.1 + 4
        };
        let left: Vec<u64> = (opened.1..offset).filter(|offset| !touched.contains(offset)).collect();
        finds(&format!("{touched:?}"), &mut disk, &left);
    }
}

/// A full disk stops the writing of one access file, and a power cut tears the other one. Then the end of the
/// log is destroyed, including all commit headers.
#[test]
fn a_torn_access_file_still_reveals_that_the_end_of_the_log_is_lost() {
    let mut disk = new_disk();
    let say = |disk: &mut SimDisk, log: &mut Log, version: u64, key: &[u8]| {
        let version = u64::from(log.epoch()) << 32 | version;
        let record = Record::Defined { version, key, value: Some(b"") };
        log.append_reserved(&record, Urgency::Awaited, NOW).expect("there is room");
        turn(log, disk);
        disk.written().last().copied().expect("it was written")
    };
    let (mut log, _) = open(&disk, IDENTITY);
    let user = b"\0\x02\x05alice";
    say(&mut disk, &mut log, 1, user);
    say(&mut disk, &mut log, 2, &ACCESS_STORED_KEY);
    let (mut log, _) = open(&disk, IDENTITY);
    let (slot, at) = say(&mut disk, &mut log, 1, b"\0\x02\x03bob");
    say(&mut disk, &mut log, 2, user);
    drop(log);
    zero(&mut disk, slot, at as u64 / 4096..16);
    let [given_up, half_written] = ACCESS_SLOTS;
    zero(&mut disk, given_up, 0..1);
    disk.flip(half_written, 70);
    for start in 0..2 {
        let (_, report) = open(&disk, IDENTITY);
        assert!(report.is_damaged(), "start {start} tells it: {report:?}");
        assert!(matches!(report.access.access, Access::InDoubt(_)), "start {start}: {report:?}");
    }
}

/// A process is killed while it writes the deletion of a user to the access files. The next start finds the deletion in
/// the page cache. Then power fails, the log loses its end, and one of the files cannot be read any more.
#[test]
fn what_a_start_finds_in_the_access_files_survives_the_loss_of_the_log_and_of_one_file() {
    let user = b"\0\x02\x05alice";
    let mut deleted_count = 0;
    for calls in 0..12 {
        let mut disk = new_disk();
        let (mut log, _) = open(&disk, IDENTITY);
        let change_user = |log: &mut Log, version: u64, value| {
            for (version, key, value) in
                [(version, &user[..], value), (version + 1, &ACCESS_STORED_KEY, Some(&b""[..]))]
            {
                let version = u64::from(log.epoch()) << 32 | version;
                let record = Record::Defined { version, key, value };
                log.append_reserved(&record, Urgency::Awaited, NOW).expect("there is room");
            }
        };
        change_user(&mut log, 1, Some(&b""[..]));
        turn(&mut log, &mut disk);
        change_user(&mut log, 3, None);
        let (slot, at) = disk.written().last().copied().expect("the first commit was written");
        disk.foresee(Trouble::Kill(calls));
        let job = log.next_commit(NOW).expect("a commit is awaited");
        let _ = log.commit_done(job.run(&mut disk));
        disk.revive();
        let has_user = |report: &Report| report.access.definitions.iter().any(|entry| *entry.key == *user);
        let (_, report) = open(&disk, IDENTITY);
        let had_user = has_user(&report);
        deleted_count += usize::from(!had_user);
        disk.power_cut();
        zero(&mut disk, slot, at as u64 / 4096 + 1..16);
        disk.refuse(ACCESS_SLOTS[0], 0);
        let (_, report) = open(&disk, IDENTITY);
        assert_eq!(has_user(&report), had_user, "killed at {calls}: {report:?}");
    }
    assert!(deleted_count > 4, "{deleted_count}");
}

/// Returns another disk with the same files.
fn copy_of(disk: &SimDisk) -> SimDisk {
    let (mut copy, mut of) = (new_disk(), disk.clone());
    for slot in of.slots().expect("the disk is well").into_iter().chain([NEWEST_SLOT]) {
        let mut bytes = vec![0; 64 << 10];
        let length = of.read(slot, 0, &mut bytes).expect("the disk is well");
        copy.create(slot).expect("the disk is well");
        copy.write(slot, 0, &bytes[..length]).expect("the disk is well");
        copy.sync(slot).expect("the disk is well");
    }
    copy.sync_directory().expect("the disk is well");
    copy
}
