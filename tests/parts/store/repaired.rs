//! What a repair must not cost: whatever a start before it serves, a start after it serves.

use std::collections::BTreeSet;

use crate::sample::PLAIN;
use crate::sim_disk::SimDisk;
use crate::small::{HEADER_BYTES, IDENTITY, NOW, body, new_disk, open, publish, readable, turn, zero};
use leveret_store::fsck::Scan;
use leveret_store::{Body, Log, Message, NEWEST_SLOT, Range, Record, Target, Targets, Urgency};

fn repair(disk: &SimDisk) -> Scan {
    let scan = Scan::of(&mut disk.clone()).expect("it is readable");
    scan.drop_set_aside(&mut disk.clone()).expect("the disk is well")
}

/// A commit of which nothing is lost but its checksum, and whose records leave only so many bytes of its last block:
/// the one that takes its place has no room for more than those.
#[test]
fn a_repair_keeps_the_messages_of_a_commit_that_fills_its_blocks() {
    for free in [0, 1, 3, 5, 6, 7, 8, 9, 20] {
        let mut disk = new_disk();
        let (mut log, _) = open(&disk, IDENTITY);
        publish(&mut log, &mut disk, 0);
        let target = [Target { queue: 1, offset: 1, lane: 0 }];
        let bytes = vec![7; 4096];
        let record = |length: usize| {
            let body = Body::Inline(&bytes[..length]);
            Record::Message(Message { targets: Targets::List(&target), body, ..PLAIN })
        };
        let encoded = |length: usize| {
            let mut out = Vec::new();
            record(length).encode(&mut out);
            HEADER_BYTES + out.len()
        };
        let length = (0..4096).find(|length| encoded(*length) == 4096 - free).expect("one has this length");
        log.append(&record(length), Urgency::Awaited, NOW).expect("there is room");
        turn(&mut log, &mut disk);
        let (slot, at) = disk.written().last().copied().expect("it was written");
        let mut count = 2;
        while log.index().segments().len() < 3 {
            turn(&mut log, &mut disk);
            publish(&mut log, &mut disk, count);
            count += 1;
        }
        drop(log);
        // Another one of the segment is gone altogether, so its footer is made again.
        disk.flip(slot, at + 4);
        zero(&mut disk, slot, (at as u64 / 4096 + 3)..(at as u64 / 4096 + 4));
        let (_, before) = found(&disk);
        assert!(before.contains(&1) && before.len() as u64 == count - 1, "a start serves it: {before:?}");
        let after = repair(&disk);
        let left = found(&disk).1;
        assert_eq!(left, before, "{free} bytes free: {:?}", after.damage);
        assert!(after.damage.is_empty(), "{free} bytes free: {:?}", after.damage);
    }
}

/// What is said of segments that have left: segment and commit that say so, and which.
fn said_left(disk: &SimDisk) -> Vec<(u64, u64, u64)> {
    let scan = Scan::of(&mut disk.clone()).expect("it is readable");
    let mut said = Vec::new();
    let walked = scan.for_each(&mut disk.clone(), |found| {
        if let Record::Left { segment } = found.record {
            said.push((found.place.segment, found.commit, segment));
        }
        Ok::<(), ()>(())
    });
    walked.expect("nothing ends it");
    said
}

/// What a start finds: segments, and the offsets that can be read.
fn found(disk: &SimDisk) -> (BTreeSet<u64>, Vec<u64>) {
    let disk = disk.copy();
    let (mut log, _) = open(&disk, IDENTITY);
    let segments = log.index().segments().keys().copied().collect();
    (segments, readable(&mut log, &mut disk.clone()))
}

/// A gap in a segment, and behind it one whose header is lost, where it is said that older ones have left: the repair
/// makes a header for that one, and then nobody looks for the mark in the one before.
#[test]
fn a_segment_that_is_kept_for_a_gap_before_a_lost_header_is_kept_after_the_repair() {
    let mut disk = new_disk();
    let (mut log, _) = open(&disk, IDENTITY);
    let (mut offset, mut cases) = (0, 0);
    while cases < 3 && offset < 3_000 {
        turn(&mut log, &mut disk);
        let target = [Target { queue: 1, offset, lane: 0 }];
        let body = body(offset);
        let message = Message { targets: Targets::List(&target), body: Body::Inline(&body), ..PLAIN };
        log.append(&Record::Message(message), Urgency::Awaited, NOW).expect("there is room");
        if offset > 20 && !offset.is_multiple_of(5) {
            log.settle(1, Range { start: offset - 20, end: offset - 19 }, Urgency::Window, NOW);
        }
        turn(&mut log, &mut disk);
        offset += 1;
        cases += u64::from(is_kept(&log, &disk));
    }
    assert!(cases == 3, "{cases}");
}

/// Whether this store is a case; if it is, it holds.
fn is_kept(log: &Log, disk: &SimDisk) -> bool {
    let mut newest = log.index().segments().iter().rev();
    let (Some((&last, of_last)), Some((&before, of_before))) = (newest.next(), newest.next()) else {
        return false;
    };
    let said = said_left(disk);
    if !said.iter().any(|(of, ..)| *of == last) || last != before + 1 {
        return false;
    }
    let mut damaged = disk.copy();
    zero(&mut damaged, of_last.slot, 0..1);
    zero(&mut damaged, NEWEST_SLOT, 0..1);
    // Its second commit; each has one block here.
    zero(&mut damaged, of_before.slot, 2..3);
    let (segments, live) = found(&damaged);
    let is_case = said.iter().any(|(of, _, left)| *of == last && segments.contains(left));
    if is_case {
        repair(&damaged);
        let (after, live_after) = found(&damaged);
        let lost: Vec<_> = segments.difference(&after).filter(|segment| **segment < last).collect();
        assert!(lost.is_empty(), "of {segments:?} are gone: {lost:?}; it is said {said:?}");
        assert_eq!(live_after, live);
    }
    is_case
}
