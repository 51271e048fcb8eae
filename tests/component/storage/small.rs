//! A log of small segments, for the tests of damage.

use leveret_core::time::Now;
use leveret_storage::{
    Body, Disk, Identity, Log, Message, Range, Record, Report, Settings, Target, Targets, Urgency,
};
use leveret_test_support::simulated_disk::{Mutant, SimDisk, Trouble};

use crate::sample::PLAIN;

pub(crate) const IDENTITY: Identity = Identity { id: *b"0123456789abcdef", secret: 0xDA3A6E };
pub(crate) const OTHER: Identity = Identity { id: *b"another another!", secret: 99 };
pub(crate) const NOW: Now = Now::from_ms(1);
pub(crate) const HEADER_BYTES: usize = 76;

pub(crate) fn settings() -> Settings {
    Settings { segment_bytes: 64 << 10, commit_bytes: 12 << 10, segments_max: 30, ..Settings::default() }
}

pub(crate) fn new_disk() -> SimDisk {
    let disk = SimDisk::new(1, Mutant::None, IDENTITY);
    disk.start(Trouble::Never);
    disk
}

pub(crate) fn open(disk: &SimDisk, fresh: Identity) -> (Log, Report) {
    disk.start(Trouble::Never);
    let (log, report) = Log::open(&mut disk.clone(), settings(), fresh, NOW).expect("it opens");
    assert!(report.unwritable.is_none());
    (log, report)
}

/// Publishes a message in a commit of its own. Returns the position of the commit.
pub(crate) fn publish(log: &mut Log, disk: &mut SimDisk, offset: u64) -> (u32, usize) {
    let target = [Target { queue: 1, offset }];
    let message = Message { targets: Targets::List(&target), ..PLAIN };
    while let Some(job) = log.next_prepare() {
        log.prepare_done(job.run(disk)).expect("the disk is well");
    }
    log.append(&Record::Message(message), Urgency::Awaited, NOW).expect("there is room");
    let job = log.next_commit(NOW).expect("a commit is awaited");
    log.commit_done(job.run(disk)).expect("the disk is well");
    disk.written().last().copied().expect("it was written")
}

/// Returns the offsets that can be read.
pub(crate) fn readable(log: &mut Log, disk: &mut SimDisk) -> Vec<u64> {
    let (mut found, mut at) = (Vec::new(), 0);
    while at < u64::MAX {
        let job = log.fetch(1, Range { start: at, end: u64::MAX }, 64 << 10).expect("the buffer is free");
        at = log.fetch_done(job.run(disk), |offset, _| found.push(offset)).through;
    }
    found
}

pub(crate) fn all(count: u64) -> Vec<u64> {
    (0..count).collect()
}

/// Returns the body that was sent with this offset.
pub(crate) fn body(offset: u64) -> Vec<u8> {
    vec![offset as u8; 100 + (offset * 7919 % 700) as usize]
}

pub(crate) fn turn(log: &mut Log, disk: &mut SimDisk) {
    if let Some(job) = log.next_prepare() {
        log.prepare_done(job.run(disk)).expect("the disk is well");
    }
    if let Some(job) = log.next_compaction_read() {
        log.compaction_read_done(job.run(disk));
    }
    if let Some(job) = log.next_commit(NOW) {
        log.commit_done(job.run(disk)).expect("the disk is well");
    }
}

/// Publishes ten messages in one commit, from `offset` on. Returns its position.
pub(crate) fn publish_ten(log: &mut Log, disk: &mut SimDisk, offset: u64) -> (u32, usize) {
    for offset in offset..offset + 10 {
        let target = [Target { queue: 1, offset }];
        let body = body(offset);
        let message = Message { targets: Targets::List(&target), body: Body::Inline(&body), ..PLAIN };
        log.append(&Record::Message(message), Urgency::Window, NOW).expect("there is room");
    }
    log.flush();
    let job = log.next_commit(NOW).expect("it is due");
    log.commit_done(job.run(disk)).expect("the disk is well");
    disk.written().last().copied().expect("it was written")
}

pub(crate) fn zero(disk: &mut SimDisk, slot: u32, blocks: core::ops::Range<u64>) {
    for block in blocks {
        disk.write(slot, block * 4096, &[0; 4096]).expect("the disk is well");
    }
    disk.sync(slot).expect("the disk is well");
}
