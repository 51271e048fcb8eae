//! Users and permissions in the log: every change in two commits, each with a digest; and stores of older
//! versions.

use std::io;

use leveret_core::definition::ACCESS_STORED_KEY;
use leveret_core::definition::{self, Definition};
use leveret_core::mem::{MessageLimits, Messages};
use leveret_core::time::Now;
use leveret_storage::PendingWrites;
use leveret_storage::{
    ACCESS_SLOTS, Access, Body, CommitWriter, Disk, Identity, Log, Message, Record, Report, Settings, Target,
    Targets, Urgency, Write,
};
use leveret_test_support::simulated_disk::{Mutant, SimDisk, Trouble};

use crate::sample::PLAIN;

const IDENTITY: Identity = Identity { id: *b"0123456789abcdef", secret: 0xDA3A6E };
const NOW: Now = Now::from_ms(1);
const ALICE: &[u8] = b"\0\x02\x05alice";
const BOB: &[u8] = b"\0\x02\x03bob";

fn new_disk() -> SimDisk {
    let disk = SimDisk::new(1, Mutant::None, IDENTITY);
    disk.start(Trouble::Never);
    disk
}

fn open(disk: &SimDisk) -> (Log, Report) {
    disk.start(Trouble::Never);
    Log::open(&mut disk.clone(), settings(30), IDENTITY, NOW).expect("it opens")
}

fn settings(segments_max: u32) -> Settings {
    Settings {
        segment_bytes: 64 << 10,
        commit_bytes: 12 << 10,
        segments_max,
        syncs_per_s: 0,
        ..Settings::default()
    }
}

fn commit(log: &mut Log, disk: &mut SimDisk) {
    while let Some(job) = log.next_prepare() {
        log.prepare_done(job.run(disk)).expect("the disk is well");
    }
    let job = log.next_commit(NOW).expect("a commit is awaited");
    log.commit_done(job.run(disk)).expect("the disk is well");
}

/// Returns what the log alone contains about access.
fn access_of_log(disk: &SimDisk) -> Access {
    disk.lose_access_files();
    open(disk).1.access.access
}

/// Writes a definition without a digest in a commit of its own, like older versions. Returns its position.
fn say_as_before(log: &mut Log, disk: &mut SimDisk, version: u64, key: &[u8]) -> (u32, usize) {
    let record = Record::Defined { version, key, value: Some(b"") };
    log.append(&record, Urgency::Awaited, NOW).expect("there is room");
    commit(log, disk);
    disk.written().last().copied().expect("it was written")
}

fn flip(disk: &mut SimDisk, (slot, at): (u32, usize)) {
    let mut bytes = [0; 200];
    disk.read(slot, at as u64, &mut bytes).expect("it can be read");
    bytes[80] ^= 4;
    disk.write(slot, at as u64, &bytes).expect("it can be written");
    disk.sync(slot).expect("it can be synced");
}

#[test]
fn an_older_store_is_accepted_as_it_is_unless_it_is_damaged() {
    let mut disk = new_disk();
    let (mut log, report) = open(&disk);
    assert_eq!(report.access.access, Access::New);
    say_as_before(&mut log, &mut disk, 1, ALICE);
    drop(log);
    assert_eq!(
        open(&disk).1.access.access,
        Access::Silent,
        "the store does not record that this is complete"
    );
    let (mut log, _) = open(&disk);
    say_as_before(&mut log, &mut disk, 2, &ACCESS_STORED_KEY);
    let place = say_as_before(&mut log, &mut disk, 3, BOB);
    say_as_before(&mut log, &mut disk, 4, b"\x02\0\0");
    drop(log);
    let (log, report) = open(&disk);
    assert_eq!(report.access.access, Access::Whole);
    assert!(report.access.is_thin, "it wants to be written twice");
    drop(log);
    flip(&mut disk, place);
    assert!(matches!(access_of_log(&disk), Access::InDoubt(_)));
    assert!(matches!(access_of_log(&disk), Access::InDoubt(_)), "it is so at the next start, too");
    assert!(matches!(open(&disk).1.access.access, Access::InDoubt(_)), "and its files say so");
}

#[test]
fn the_digest_reveals_missing_definitions() {
    let mut disk = new_disk();
    let (mut log, _) = open(&disk);
    let mut say = |log: &mut Log, version, key: &[u8], value: Option<&[u8]>| {
        let record = Record::Defined { version, key, value };
        log.append_reserved(&record, Urgency::Awaited, NOW).expect("there is room");
        commit(log, &mut disk);
        *disk.written().last().expect("it was written")
    };
    say(&mut log, 1, ALICE, Some(b"a"));
    say(&mut log, 2, &ACCESS_STORED_KEY, Some(b""));
    let added = say(&mut log, 3, BOB, Some(b"b"));
    let gone = say(&mut log, 4, ALICE, None);
    say(&mut log, 5, b"\x02\0\0", Some(b"something that is no access"));
    drop(log);
    assert_eq!(open(&disk).1.access.access, Access::Whole);
    for place in [added, gone] {
        flip(&mut disk, place);
        assert!(matches!(access_of_log(&disk), Access::InDoubt(_)), "{place:?}");
    }
    let (mut log, report) = open(&disk);
    assert!(matches!(report.access.access, Access::InDoubt(_)));
    let version = u64::from(log.epoch()) << 32;
    let record = Record::Defined { version: version + 1, key: &ACCESS_STORED_KEY, value: Some(b"") };
    log.append_reserved(&record, Urgency::Awaited, NOW).expect("there is room");
    commit(&mut log, &mut disk);
    drop(log);
    assert_eq!(open(&disk).1.access.access, Access::Whole, "an operator has confirmed it");
}

#[test]
fn a_change_is_durable_when_two_commits_have_it() {
    let mut disk = new_disk();
    let (log, _) = open(&disk);
    let mut messages = Messages::new(MessageLimits {
        messages_max: 10,
        body_bytes_max: 64 << 10,
        assembly_bytes_max: 64 << 10,
    });
    let mut pending_writes = PendingWrites::new(10);
    pending_writes.start(log.epoch(), true, log.space().record_bytes_max() as u64);
    let mut keeper = CommitWriter::new(log, 4096);
    let user = Definition::User(definition::User { name: "alice", hash: &[0], ..Default::default() });
    let queue =
        Definition::Queue(definition::Queue { vhost: "/", name: "q", incarnation: 7, ..Default::default() });
    for (definition, commits) in [(user, 2), (queue, 1), (user, 2)] {
        let batch = pending_writes.define(definition.key(), Some(definition.value()));
        let mut made = 0;
        while pending_writes.durable() < batch {
            let write =
                keeper.next_write(&mut pending_writes, &mut messages, NOW).expect("a commit is awaited");
            made += u32::from(matches!(write, Write::Commit(_)));
            let done = write.run(&mut disk);
            keeper.write_done(&mut pending_writes, &mut messages, done, NOW).expect("the disk is well");
        }
        assert_eq!(made, commits, "{definition:?}");
    }
    let places = &keeper.log().index().definitions()[&user.key()];
    let second = places.second().expect("it is there twice");
    assert_ne!(places.place.at / 4096, second.at / 4096, "in one block");
}

/// The header of the only segment contains the segment length. A flipped bit makes it a length that no file
/// has.
#[test]
fn no_flipped_bit_of_the_only_header_costs_a_user() {
    let mut disk = new_disk();
    let (mut log, _) = open(&disk);
    for (version, key, value) in
        [(1, ALICE, Some(b"a".as_slice())), (2, &ACCESS_STORED_KEY, Some(b"")), (3, ALICE, Some(b"a"))]
    {
        let record = Record::Defined { version, key, value };
        log.append_reserved(&record, Urgency::Awaited, NOW).expect("there is room");
        commit(&mut log, &mut disk);
    }
    drop(log);
    let slot = disk.slots().expect("it can be read")[0];
    let mut flip_bit = |at: u64, bit: u8| {
        let mut byte = [0];
        disk.read(slot, at, &mut byte).expect("it can be read");
        disk.write(slot, at, &[byte[0] ^ 1 << bit]).expect("it can be written");
        Log::read_only(&mut disk).expect("it can be read").1.access.access
    };
    for at in 0..76 {
        for bit in 0..8 {
            assert_eq!(flip_bit(at, bit), Access::Whole, "byte {at}, bit {bit}");
            assert_eq!(flip_bit(at, bit), Access::Whole, "mended");
        }
    }
}

/// Keys and values.
type Definitions = Vec<(Vec<u8>, Vec<u8>)>;

/// Returns the report, and the access definitions that can be read.
fn readable(disk: &SimDisk) -> (Report, Definitions) {
    let (log, report) = open(disk);
    let found = read((&log, &report), disk).0;
    (report, found)
}

/// Returns all access definitions, and whether the store records that they are complete.
fn read((log, report): (&Log, &Report), disk: &SimDisk) -> (Definitions, bool) {
    let of_access = report.access.definitions.iter();
    let mut found: Definitions = of_access.map(|it| (it.key.to_vec(), it.value.to_vec())).collect();
    let damaged =
        log.read_definitions(&mut disk.clone(), |key, value, _| found.push((key.to_vec(), value.to_vec())));
    assert_eq!(damaged.expect("the disk is well"), 0, "all can be read");
    assert!(found.is_sorted(), "in the order of their keys");
    let all = found.len();
    found.retain(|(key, _)| *key != ACCESS_STORED_KEY);
    let says_who_there_is = found.len() < all;
    (found, says_who_there_is)
}

#[test]
fn access_definitions_lost_by_the_log_are_restored_from_the_files_beside_it() {
    let mut disk = new_disk();
    let (mut log, _) = open(&disk);
    let mut version = 0;
    let mut places = Vec::new();
    let mut say = |log: &mut Log, disk: &mut SimDisk, key: &[u8], value: Option<&[u8]>| {
        version += 1;
        let record = Record::Defined { version, key, value };
        log.append_reserved(&record, Urgency::Awaited, NOW).expect("there is room");
        commit(log, disk);
        places.extend(disk.written().last());
    };
    say(&mut log, &mut disk, ALICE, Some(b"old"));
    say(&mut log, &mut disk, &ACCESS_STORED_KEY, Some(b""));
    say(&mut log, &mut disk, BOB, Some(b"bob"));
    say(&mut log, &mut disk, ALICE, Some(b"new"));
    say(&mut log, &mut disk, BOB, None);
    say(&mut log, &mut disk, b"\x02\0\0", Some(b"something that is no access"));
    drop(log);
    let alice = vec![(ALICE.to_vec(), b"new".to_vec())];
    // All access records from some commit on are lost, and once the whole log.
    for from in (0..places.len()).rev() {
        places[from..].iter().for_each(|place| flip(&mut disk, *place));
        let (report, mut found) = readable(&disk);
        found.retain(|(key, _)| key[0] == 0);
        assert_eq!((report.access.access, &found), (Access::Whole, &alice), "from commit {from} on");
        assert_eq!(readable(&disk).0.access.restored, [], "once is enough");
    }
    for slot in disk.slots().expect("it can be read") {
        disk.write(slot, 0, &vec![0xA5; 64 << 10]).expect("it can be written");
        disk.sync(slot).expect("it can be synced");
    }
    let (report, found) = readable(&disk);
    assert!(report.is_lost && report.is_damaged(), "{report:?}");
    assert_eq!((report.access.access, &found), (Access::Whole, &alice), "the log is lost");
    let (report, found) = readable(&disk);
    assert_eq!((report.access.access, &found), (Access::Whole, &alice), "and was begun anew");
}

/// Returns a store whose log has lost the newest access records, or everything, while the files beside it
/// still have them; and the access definitions in these files. With `large`, they need more than one commit.
fn lossy_store(seed: u64, large: bool, is_all_lost: bool) -> (SimDisk, Definitions) {
    let mut disk = SimDisk::new(seed, Mutant::None, IDENTITY);
    let (mut log, _) = open(&disk);
    let size = if large { 3 << 10 } else { 10 };
    let old = vec![b'o'; size];
    let new = vec![b'n'; size];
    let users = [b"\0\x02\x01a", b"\0\x02\x01b", b"\0\x02\x01c", b"\0\x02\x01d", b"\0\x02\x01e"];
    let mut said: Vec<(&[u8], Option<&[u8]>)> = users.iter().map(|key| (&key[..], Some(&old[..]))).collect();
    said.extend([(BOB, Some(&b"bob"[..])), (&ACCESS_STORED_KEY[..], Some(b""))]);
    let kept = said.len();
    said.extend(users.iter().map(|key| (&key[..], Some(&new[..]))));
    said.extend([(BOB, None), (b"\x02\0\0", Some(&b"something that is no access"[..]))]);
    let mut places = Vec::new();
    for (version, (key, value)) in (1..).zip(said) {
        if places.len() == kept {
            // The files beside the log are created by a start.
            drop(log);
            log = open(&disk).0;
            places.extend(disk.written().last());
        }
        let version = u64::from(log.epoch()) << 32 | version;
        log.append_reserved(&Record::Defined { version, key, value }, Urgency::Awaited, NOW)
            .expect("there is room");
        commit(&mut log, &mut disk);
        places.extend(disk.written().last());
    }
    drop(log);
    if is_all_lost {
        for slot in disk.slots().expect("it can be read") {
            disk.write(slot, 0, &vec![0xA5; 64 << 10]).expect("it can be written");
            disk.sync(slot).expect("it can be synced");
        }
    }
    disk.sync_directory().expect("it can be synced");
    places[kept..].iter().for_each(|place| flip(&mut disk, *place));
    (disk, users.map(|key| (key.to_vec(), new.clone())).to_vec())
}

/// The log has lost the newest access records, and live messages take up all segments, or nearly all. The start that
/// restores the records uses the reserved segments, and a file beyond the limit if it needs one.
#[test]
fn lost_access_is_restored_although_no_segment_is_free() {
    let all = full_store(usize::MAX).1;
    for commits in all - 20..=all {
        let what = format!("{commits} of {all} commits");
        let (mut disk, _) = full_store(commits);
        let (log, report) = open_few(&disk);
        assert!(report.unwritable.is_none(), "{what}: {:?}", report.unwritable);
        assert_eq!(report.access.restored.len(), 1, "{what}");
        let (found, _) = read((&log, &report), &disk);
        assert_eq!(found[0], (ALICE.to_vec(), NEW_HASH.to_vec()), "{what}");
        drop(log);
        assert_eq!(open_few(&disk).1.access.restored, [], "{what}: once is enough");
        assert!(disk.slots().expect("it can be read").len() <= 5, "{what}: one file more is enough");
    }
}

const NEW_HASH: [u8; 2 << 10] = [b'n'; 2 << 10];

/// Opens a store of at most four segments.
fn open_few(disk: &SimDisk) -> (Log, Report) {
    disk.start(Trouble::Never);
    Log::open(&mut disk.clone(), settings(4), IDENTITY, NOW).expect("it opens")
}

/// Returns a store in which Alice was changed and up to `commits_max` commits of live messages were written after
/// that, with the change damaged; and the number of these commits.
fn full_store(commits_max: usize) -> (SimDisk, usize) {
    let mut disk = new_disk();
    let (mut log, _) = open_few(&disk);
    for (version, key) in [(1, ALICE), (2, &ACCESS_STORED_KEY)] {
        let record = Record::Defined { version, key, value: Some(b"old") };
        log.append_reserved(&record, Urgency::Awaited, NOW).expect("there is room");
        commit(&mut log, &mut disk);
    }
    drop(log);
    // The files beside the log are created by a start.
    let (mut log, _) = open_few(&disk);
    let mut places = Vec::new();
    for number in [1, 2] {
        let version = u64::from(log.epoch()) << 32 | number;
        let record = Record::Defined { version, key: ALICE, value: Some(&NEW_HASH) };
        log.append_reserved(&record, Urgency::Awaited, NOW).expect("there is room");
        commit(&mut log, &mut disk);
        places.extend(disk.written().last());
    }
    let (mut commits, mut is_opened) = (0, false);
    while commits < commits_max {
        while let Some(job) = log.next_prepare() {
            log.prepare_done(job.run(&mut disk)).expect("the disk is well");
        }
        let targets = Targets::List(&[Target { queue: 1, offset: commits as u64 }]);
        let body = Body::Inline(&[7; 3 << 10]);
        let record = Record::Message(Message { targets, body, ..PLAIN });
        let is_appended = log.append_reserved(&record, Urgency::Awaited, NOW).is_ok();
        match log.next_commit(NOW) {
            Some(job) => {
                log.commit_done(job.run(&mut disk)).expect("the disk is well");
                commits += usize::from(is_appended);
            }
            // Only a start opens the last reserved segment.
            None if !core::mem::replace(&mut is_opened, true) => log = open_few(&disk).0,
            None => break,
        }
    }
    for place in places {
        flip(&mut disk, place);
        lose_footer(&mut disk, place.0);
    }
    (disk, commits)
}

/// Overwrites the footer of a segment, if it has one.
fn lose_footer(disk: &mut SimDisk, slot: u32) {
    let (at, mut block) = ((64 << 10) - 4096, [0; 4096]);
    disk.read(slot, at, &mut block).expect("it can be read");
    if block != [0; 4096] && !block.starts_with(b"LVC2") {
        disk.write(slot, at, &[0xA5; 4096]).expect("it can be written");
        disk.sync(slot).expect("it can be synced");
    }
}

/// The power fails at each call of the start that restores the lost access records to the log. Data that only
/// the files beside the log contain must not be lost.
#[test]
fn no_power_cut_while_access_is_restored_brings_back_deleted_rights() {
    let kinds = [(false, false), (true, false), (false, true), (true, true)];
    for (seed, (large, is_all_lost)) in (0..4).flat_map(|seed| kinds.map(|kind| (seed, kind))) {
        for at in 0.. {
            let (disk, users) = lossy_store(seed, large, is_all_lost);
            let what = format!("seed {seed}, large {large}, all {is_all_lost}, cut at {at}");
            disk.start(Trouble::Cut(at));
            let report = Log::open(&mut disk.clone(), settings(30), IDENTITY, NOW).map(|(_, report)| report);
            let is_whole = !disk.is_off();
            assert_eq!(is_whole, report.is_ok_and(|report| report.unwritable.is_none()), "{what}");
            disk.power_cut();
            for start in 1..3 {
                let (report, mut found) = readable(&disk);
                found.retain(|(key, _)| key[0] == 0);
                assert_eq!(report.access.access, Access::Whole, "{what}, start {start}");
                assert_eq!(found, users, "{what}, start {start}");
            }
            if is_whole {
                assert!(at > 4, "the start did something");
                break;
            }
        }
    }
}

/// The disk fails a write or a sync of that start, and works at the next one.
#[test]
fn no_disk_failure_while_access_is_restored_brings_back_deleted_rights() {
    for (at, fail) in
        (0..12).flat_map(|at| [(at, Trouble::FailedWrite(at, 1)), (at, Trouble::FailedSync(at))])
    {
        let (disk, users) = lossy_store(1, true, false);
        disk.start(fail);
        let (log, report) =
            Log::open(&mut disk.clone(), settings(30), IDENTITY, NOW).expect("it can be read");
        let is_unwritable = report.unwritable.is_some();
        if is_unwritable {
            let (mut found, says_who_there_is) = read((&log, &report), &disk);
            found.retain(|(key, _)| key[0] == 0);
            assert_eq!((report.access.access, &found), (Access::Whole, &users), "{fail:?}: by the files");
            assert!(says_who_there_is, "{fail:?}");
        }
        // The second one is that of the header copy, whose failure ends nothing.
        assert!(is_unwritable || at > 3 || at == 1, "{fail:?} was met");
        disk.power_cut();
        let (report, mut found) = readable(&disk);
        found.retain(|(key, _)| key[0] == 0);
        assert_eq!((report.access.access, found), (Access::Whole, users), "{fail:?}");
    }
}

#[test]
fn access_files_of_another_store_or_with_damage_are_ignored() {
    let mut disk = new_disk();
    let (mut log, _) = open(&disk);
    for (version, key) in [(1, ALICE), (2, ACCESS_STORED_KEY.as_slice())] {
        let record = Record::Defined { version, key, value: Some(b"") };
        log.append_reserved(&record, Urgency::Awaited, NOW).expect("there is room");
        commit(&mut log, &mut disk);
    }
    drop((log, open(&disk)));
    let slots = ACCESS_SLOTS;
    let mut copy = [0; 4096];
    assert_eq!(disk.read(slots[0], 0, &mut copy).expect("there is one"), copy.len());
    let length = usize::from(copy[12]);
    for byte in 0..length {
        let mut damaged = copy;
        damaged[byte] ^= 0x20;
        for slot in slots {
            disk.write(slot, 0, &damaged).expect("it can be written");
            disk.sync(slot).expect("it can be synced");
        }
        let (report, found) = readable(&disk);
        assert_eq!((report.access.access, found.len()), (Access::Whole, 1), "byte {byte}: the log says it");
        for slot in slots {
            let mut renewed = [0; 4096];
            disk.read(slot, 0, &mut renewed).expect("it can be read");
            assert!(renewed != damaged, "the files were made again");
        }
    }
}

/// Returns the content of both files.
fn copies(disk: &mut SimDisk) -> Vec<[u8; 4096]> {
    let mut read = |slot| {
        let mut copy = [0; 4096];
        assert_eq!(disk.read(slot, 0, &mut copy).expect("it can be read"), copy.len());
        copy
    };
    ACCESS_SLOTS.map(&mut read).to_vec()
}

fn put_copies(disk: &mut SimDisk, copies: &[[u8; 4096]]) {
    for (slot, copy) in ACCESS_SLOTS.into_iter().zip(copies) {
        disk.write(slot, 0, copy).expect("it can be written");
        disk.sync(slot).expect("it can be synced");
    }
}

/// Returns a store with the users Alice and Bob, and its log.
fn store_of_two() -> (SimDisk, Log) {
    let mut disk = new_disk();
    let (mut log, _) = open(&disk);
    for (version, key) in [(1, ALICE), (2, BOB), (3, &ACCESS_STORED_KEY[..])] {
        let record = Record::Defined { version, key, value: Some(b"") };
        log.append_reserved(&record, Urgency::Awaited, NOW).expect("there is room");
        commit(&mut log, &mut disk);
    }
    drop(log);
    let log = open(&disk).0;
    (disk, log)
}

/// Writes a change in the two commits that it needs. Returns the position of the first one.
fn change(log: &mut Log, disk: &mut SimDisk, number: u64, key: &[u8], value: Option<&[u8]>) -> (u32, usize) {
    let version = u64::from(log.epoch()) << 32 | number;
    let record = Record::Defined { version, key, value };
    log.append_reserved(&record, Urgency::Awaited, NOW).expect("there is room");
    commit(log, disk);
    let place = disk.written().last().copied().expect("it was written");
    commit(log, disk);
    place
}

fn lose_log(disk: &mut SimDisk) {
    for slot in disk.slots().expect("it can be read") {
        disk.write(slot, 0, &vec![0xA5; 64 << 10]).expect("it can be written");
        disk.sync(slot).expect("it can be synced");
    }
}

/// A file could neither be written nor removed for some time. It is read again when the log has lost the
/// deletion of a user that happened meanwhile.
#[test]
fn an_access_file_older_than_the_log_is_not_trusted() {
    for is_damaged in [false, true] {
        let (mut disk, mut log) = store_of_two();
        let old = copies(&mut disk);
        let gone = change(&mut log, &mut disk, 1, BOB, None);
        let new = copies(&mut disk);
        assert!(old != new, "the files follow");
        drop(log);
        if is_damaged {
            flip(&mut disk, gone);
        }
        put_copies(&mut disk, &old);
        let access = Log::read_only(&mut disk).expect("it can be read").1.access.access;
        assert_eq!(matches!(access, Access::InDoubt(_)), is_damaged, "{access:?}");
        put_copies(&mut disk, &new);
        let (report, found) = readable(&disk);
        assert_eq!(report.access.access, Access::Whole, "the newer ones vouch");
        assert_eq!(found, [(ALICE.to_vec(), Vec::new())]);
    }
    // The log has the newer changes, and the file has what the log has lost: together they are complete.
    let (mut disk, mut log) = store_of_two();
    let old = copies(&mut disk);
    let first = change(&mut log, &mut disk, 1, b"\0\x02\x05carol", Some(b""));
    change(&mut log, &mut disk, 2, b"\0\x02\x05carol", Some(b"new"));
    drop(log);
    put_copies(&mut disk, &old);
    flip(&mut disk, first);
    assert_eq!(readable(&disk).0.access.access, Access::Whole);
}

/// Both files are damaged while the broker runs: the next change writes them again, without a start.
#[test]
fn lost_access_files_are_written_again_with_the_next_change() {
    let (mut disk, mut log) = store_of_two();
    put_copies(&mut disk, &[[0; 4096]; 2]);
    change(&mut log, &mut disk, 1, b"\0\x02\x05carol", Some(b""));
    change(&mut log, &mut disk, 2, BOB, None);
    drop(log);
    lose_log(&mut disk);
    let (report, found) = readable(&disk);
    assert_eq!(report.access.access, Access::Whole, "by the files alone");
    assert_eq!(found.iter().map(|(key, _)| &key[..]).collect::<Vec<_>>(), [ALICE, b"\0\x02\x05carol"]);
}

/// The card fails the first reads of both files, and the log is damaged.
#[test]
fn occasional_read_failures_lose_no_user() {
    for count in 1..5 {
        let (mut disk, mut log) = store_of_two();
        let gone = change(&mut log, &mut disk, 1, BOB, None);
        drop(log);
        flip(&mut disk, gone);
        disk.start(Trouble::Never);
        let mut worn = Flaky { disk: disk.clone(), refused: [ACCESS_SLOTS; 5][..count].concat() };
        let (_, report) = Log::open(&mut worn, settings(30), IDENTITY, NOW).expect("it opens");
        assert_eq!(report.access.access, Access::Whole, "{count}");
        assert!(worn.refused.is_empty(), "{count}: they were refused");
    }
}

/// A disk that fails the next read of some files.
struct Flaky {
    disk: SimDisk,
    refused: Vec<u32>,
}

impl Disk for Flaky {
    fn lock(&mut self) -> io::Result<()> {
        self.disk.lock()
    }

    fn slots(&mut self) -> io::Result<Vec<u32>> {
        self.disk.slots()
    }

    fn create(&mut self, slot: u32) -> io::Result<()> {
        self.disk.create(slot)
    }

    fn read(&mut self, slot: u32, at: u64, bytes: &mut [u8]) -> io::Result<usize> {
        if let Some(refused) = self.refused.iter().position(|other| *other == slot) {
            self.refused.remove(refused);
            return Err(io::Error::from_raw_os_error(5));
        }
        self.disk.read(slot, at, bytes)
    }

    fn write(&mut self, slot: u32, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.disk.write(slot, at, bytes)
    }

    fn zero(&mut self, slot: u32, at: u64, bytes: u32) -> io::Result<()> {
        self.disk.zero(slot, at, bytes)
    }

    fn sync(&mut self, slot: u32) -> io::Result<()> {
        self.disk.sync(slot)
    }

    fn remove(&mut self, slot: u32) -> io::Result<()> {
        self.disk.remove(slot)
    }

    fn sync_directory(&mut self) -> io::Result<()> {
        self.disk.sync_directory()
    }
}

/// A permanent fault of a file, until it is created again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Wear {
    /// A sector cannot be written, and the write fails.
    Write,
    /// The sync fails, as for files written through the page cache.
    Sync,
    /// Its inode is damaged: it can neither be opened nor removed.
    Inode,
}

/// A disk with a permanent fault of one file.
struct Worn {
    disk: SimDisk,
    file: u32,
    wear: Wear,
    is_removed: bool,
}

impl Worn {
    /// Fails if the fault affects this operation.
    fn fail_if(&self, slot: u32, wears: &[Wear]) -> io::Result<()> {
        let is_met = slot == self.file && !self.is_removed && wears.contains(&self.wear);
        let errno = if self.wear == Wear::Inode { 74 } else { 5 };
        if is_met { Err(io::Error::from_raw_os_error(errno)) } else { Ok(()) }
    }
}

impl Disk for Worn {
    fn lock(&mut self) -> io::Result<()> {
        self.disk.lock()
    }

    fn slots(&mut self) -> io::Result<Vec<u32>> {
        self.disk.slots()
    }

    fn create(&mut self, slot: u32) -> io::Result<()> {
        self.fail_if(slot, &[Wear::Inode])?;
        self.disk.create(slot)
    }

    fn read(&mut self, slot: u32, at: u64, bytes: &mut [u8]) -> io::Result<usize> {
        self.fail_if(slot, &[Wear::Inode])?;
        self.disk.read(slot, at, bytes)
    }

    fn write(&mut self, slot: u32, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.fail_if(slot, &[Wear::Write, Wear::Inode])?;
        self.disk.write(slot, at, bytes)
    }

    fn zero(&mut self, slot: u32, at: u64, bytes: u32) -> io::Result<()> {
        self.disk.zero(slot, at, bytes)
    }

    fn sync(&mut self, slot: u32) -> io::Result<()> {
        self.fail_if(slot, &[Wear::Sync, Wear::Inode])?;
        self.disk.sync(slot)
    }

    fn remove(&mut self, slot: u32) -> io::Result<()> {
        assert!(ACCESS_SLOTS.contains(&slot), "no segment is removed");
        self.fail_if(slot, &[Wear::Inode])?;
        self.is_removed |= slot == self.file;
        Ok(())
    }

    fn sync_directory(&mut self) -> io::Result<()> {
        self.disk.sync_directory()
    }
}

#[test]
fn a_permanent_fault_of_an_access_file_affects_only_that_file() {
    let wears = [Wear::Write, Wear::Sync, Wear::Inode];
    for (file, wear) in ACCESS_SLOTS.into_iter().flat_map(|file| wears.map(|wear| (file, wear))) {
        let mut disk = new_disk();
        drop(open(&disk));
        let mut worn = Worn { disk: disk.clone(), file, wear, is_removed: false };
        // It is met while the broker runs, and again by the next start.
        for run in 1..3 {
            let (mut log, report) =
                Log::open(&mut worn, settings(30), IDENTITY, NOW).expect("it can be read");
            assert!(report.unwritable.is_none(), "{wear:?}: {report:?}");
            for (version, key) in [(1, &ACCESS_STORED_KEY[..]), (2, ALICE)] {
                let version = u64::from(log.epoch()) << 32 | version;
                log.append_reserved(
                    &Record::Defined { version, key, value: Some(&[run]) },
                    Urgency::Awaited,
                    NOW,
                )
                .expect("there is room");
                let job = log.next_commit(NOW).expect("a commit is awaited");
                log.commit_done(job.run(&mut worn)).expect("the store goes on");
            }
        }
        assert_eq!(worn.is_removed, wear != Wear::Inode, "it is made anew when it can be");
        if wear == Wear::Inode {
            // The file could not be created again, so it has no content.
            let mut byte = [0];
            assert_eq!(disk.read(file, 0, &mut byte).unwrap_or(0), 0);
        }
        // The whole log is destroyed. The usable access file still has Alice.
        for slot in disk.slots().expect("it can be read") {
            disk.write(slot, 0, &vec![0xA5; 64 << 10]).expect("it can be written");
            disk.sync(slot).expect("it can be synced");
        }
        let (report, found) = readable(&disk);
        assert_eq!(report.access.access, Access::Whole, "{wear:?}");
        assert_eq!(found, [(ALICE.to_vec(), vec![2])], "{wear:?}");
    }
}
