//! A length without a valid checksum causes no allocation: damaged lengths are read in small steps at most.

use leveret_core::time::Now;
use leveret_storage::{
    ACCESS_SLOTS, Body, Disk, FETCH_BYTES, Identity, Log, Message, Range, Record, Settings, Target, Targets,
    Urgency,
};
use leveret_test_support::simulated_disk::{Mutant, SimDisk, Trouble};

use crate::sample::PLAIN;

const IDENTITY: Identity = Identity { id: *b"0123456789abcdef", secret: 0xC1A135 };
const SEGMENT_BYTES: u32 = 4 << 20;
const COMMIT_BYTES: u32 = 64 << 10;
/// A little more than a fetch and its widest span.
const READ_BYTES_MAX: u64 = FETCH_BYTES as u64 + (32 << 10);

fn settings(commit_bytes: u32) -> Settings {
    Settings { segment_bytes: SEGMENT_BYTES, commit_bytes, segments_max: 6, ..Settings::default() }
}

fn open(disk: &SimDisk, commit_bytes: u32) -> Log {
    disk.start(Trouble::Never);
    Log::open(&mut disk.clone(), settings(commit_bytes), IDENTITY, Now::from_ms(1)).expect("it opens").0
}

/// Does everything there is to do.
fn work(log: &mut Log, disk: &mut SimDisk, now: u64) {
    while let Some(job) = log.next_prepare() {
        log.prepare_done(job.run(disk)).expect("the disk is well");
    }
    if let Some(job) = log.next_compaction_read() {
        log.compaction_read_done(job.run(disk));
    }
    if let Some(job) = log.next_commit(Now::from_ms(now)) {
        log.commit_done(job.run(disk)).expect("the disk is well");
    }
}

fn publish(log: &mut Log, disk: &mut SimDisk, offset: u64, body: &[u8]) {
    append(log, disk, offset, body);
    work(log, disk, offset);
}

fn append(log: &mut Log, disk: &mut SimDisk, offset: u64, body: &[u8]) {
    let record = Record::Message(Message {
        targets: Targets::List(&[Target { queue: 1, offset }]),
        body: Body::Inline(body),
        ..PLAIN
    });
    for step in 0.. {
        assert!(step < 1_000, "there is no room for {offset}");
        if log.append(&record, Urgency::Awaited, Now::from_ms(offset)).is_ok() {
            return;
        }
        work(log, disk, offset);
    }
}

/// Publishes more than there is space for. Some messages of each segment stay, so that only compaction frees
/// space.
fn fill(log: &mut Log, disk: &mut SimDisk, offset: u64) {
    for more in offset..offset + 1_500 {
        publish(log, disk, more, &[7; 20_000]);
        if more % 25 != 0 {
            log.settle(1, Range { start: more, end: more + 1 }, Urgency::Lazy, Now::from_ms(more));
        }
    }
}

/// Changes the length in the commit at byte `at`.
fn claim(disk: &mut SimDisk, (slot, at): (u32, usize), bytes: u32) {
    disk.write(slot, at as u64 + 8, &bytes.to_le_bytes()).expect("it can be written");
    disk.sync(slot).expect("it can be synced");
}

/// All headers are damaged, so the owner of the files is determined from their commits; one claims 60 MB.
#[test]
fn a_start_reads_no_claimed_length_at_once() {
    let mut disk = SimDisk::new(1, Mutant::None, IDENTITY);
    let mut log = open(&disk, COMMIT_BYTES);
    (0..20).for_each(|offset| publish(&mut log, &mut disk, offset, &[7; 5000]));
    drop(log);
    let first = disk.written()[1];
    claim(&mut disk, first, 60_000_000);
    for slot in disk.slots().expect("it can be read") {
        disk.write(slot, 0, &[0xA5; 4096]).expect("it can be written");
        disk.sync(slot).expect("it can be synced");
    }
    disk.lose_access_files();
    assert!(!ACCESS_SLOTS.is_empty());
    let log = open(&disk, COMMIT_BYTES);
    assert!(log.index().queues().contains_key(&1), "its messages are served");
    let most = disk.counts().read_bytes_max;
    assert!(most <= SEGMENT_BYTES.into(), "{most} bytes were read at once");
}

/// The compactor finds commits that claim most of their segment. It reads no more than it has memory for, and
/// neither do fetches.
#[test]
fn the_compactor_reads_no_claimed_length_at_once() {
    let mut disk = SimDisk::new(1, Mutant::None, IDENTITY);
    let mut log = open(&disk, COMMIT_BYTES);
    let mut offset = 0;
    while log.index().segments().len() < 3 {
        publish(&mut log, &mut disk, offset, &[7; 20_000]);
        offset += 1;
    }
    for place in disk.written() {
        claim(&mut disk, place, 3 << 20);
    }
    disk.forget_reads();
    log.settle(1, Range { start: 20, end: offset }, Urgency::Lazy, Now::from_ms(offset));
    fill(&mut log, &mut disk, offset);
    let counts = disk.counts();
    assert!(counts.reads > 10, "the cleaner worked: {counts:?}");
    assert!(counts.read_bytes_max <= u64::from(COMMIT_BYTES).max(READ_BYTES_MAX), "{counts:?}");
}

/// The store was written with larger commits: they are valid, and their live messages are copied.
#[test]
fn the_compactor_copies_commits_larger_than_those_written_today() {
    let mut disk = SimDisk::new(1, Mutant::None, IDENTITY);
    let mut log = open(&disk, 512 << 10);
    let mut offset = 0;
    while log.index().segments().len() < 3 {
        // Many in one commit.
        (0..20).for_each(|more| append(&mut log, &mut disk, offset + more, &[7; 20_000]));
        offset += 20;
        work(&mut log, &mut disk, offset);
    }
    drop(log);
    let mut log = open(&disk, COMMIT_BYTES);
    let first = *log.index().segments().keys().next().expect("there is one");
    log.settle(1, Range { start: 3, end: offset }, Urgency::Lazy, Now::from_ms(offset));
    disk.forget_reads();
    fill(&mut log, &mut disk, offset);
    assert!(!log.index().segments().contains_key(&first), "it has left the log");
    assert!(disk.counts().read_bytes_max > COMMIT_BYTES.into(), "for a commit that is longer");
    for kept in 0..3 {
        assert!(log.index().queues()[&1].segment_of(kept).is_some(), "message {kept} is elsewhere");
    }
}
