//! The log allocates nothing in steady traffic, the change from segment to segment included: messages, their
//! settlements, commits, footers, segments that leave and are used again, reading back.
//!
//! Only the loop's thread counts; what the helpers do is theirs. `LEVERET_TRACE_ALLOCATIONS=1` says where.

use crate::counting::{self, Count};
use leveret_core::time::Now;
use leveret_storage::{Body, Identity, Log, Message, Range, Record, Settings, Target, Targets, Urgency};
use leveret_test_support::simulated_disk::{Mutant, SimDisk, Trouble};

static COUNT: Count = Count::new();

const IDENTITY: Identity = Identity { id: *b"0123456789abcdef", secret: 7 };
const NOW: Now = Now::from_ms(1);
const QUEUES: u64 = 40;
/// Messages of a queue that are not settled yet.
const DEPTH: u64 = 300;

/// Runs code of the event loop's thread.
fn looped<T>(act: impl FnOnce() -> T) -> T {
    COUNT.this_thread();
    let done = act();
    counting::stop();
    done
}

fn commit(log: &mut Log, disk: &mut SimDisk) {
    while let Some(job) = looped(|| log.next_prepare()) {
        let done = job.run(disk);
        looped(|| log.prepare_done(done)).expect("the disk is well");
    }
    if let Some(job) = looped(|| log.next_compaction_read()) {
        let done = job.run(disk);
        looped(|| log.compaction_read_done(done));
    }
    if let Some(job) = looped(|| log.next_commit(NOW)) {
        let done = job.run(disk);
        looped(|| log.commit_done(done)).expect("the disk is well");
    }
}

fn publish(log: &mut Log, disk: &mut SimDisk, offset: u64) {
    for queue in 1..=QUEUES {
        let target = [Target { queue, offset }];
        let message = Message {
            targets: Targets::List(&target),
            enqueued_ms: 1,
            expiration_ms: None,
            exchange: b"",
            key: b"a.key",
            properties: &[0x10, 0, 2],
            body: Body::Inline(&[]),
        };
        let fill = |room: &mut [u8]| room.fill(7);
        while looped(|| log.append_message(&message, 256, Urgency::Awaited, NOW, fill)).is_err() {
            commit(log, disk);
        }
    }
}

fn settle(log: &mut Log, offset: u64) {
    // One queue is acknowledged out of order, eight at a time.
    for queue in 1..=QUEUES {
        let offset = if queue == 1 { offset ^ 7 } else { offset };
        let range = Range { start: offset, end: offset + 1 };
        looped(|| log.settle(queue, range, Urgency::Lazy, NOW));
    }
}

fn fetch(log: &mut Log, disk: &mut SimDisk, queue: u64, start: u64) {
    let Some(job) = looped(|| log.fetch(queue, Range { start, end: u64::MAX }, 16 << 10)) else { return };
    let done = job.run(disk);
    let mut count = 0;
    looped(|| log.fetch_done(done, |_, _| count += 1));
    assert!(count > 0, "queue {queue} has something from {start} on");
}

#[test]
fn steady_traffic_allocates_nothing() {
    let mut disk = SimDisk::new(1, Mutant::None, IDENTITY);
    disk.start(Trouble::Never);
    let settings = Settings {
        segment_bytes: 512 << 10,
        commit_bytes: 64 << 10,
        segments_max: 40,
        ..Settings::default()
    };
    let mut log = Log::open(&mut disk.clone(), settings, IDENTITY, NOW).expect("it opens").0;
    // As in a store with users: every commit says something of them.
    let written = Record::Defined { version: 1, key: &[0, 0], value: Some(&[]) };
    log.append_reserved(&written, Urgency::Awaited, NOW).expect("there is room");
    let mut found = Vec::new();
    for round in 0..2 {
        let before = COUNT.allocations();
        let recycled = log.counters().segments_recycled;
        for step in 0..2_400_u64 {
            let offset = round * 2_400 + step;
            publish(&mut log, &mut disk, offset);
            if offset >= DEPTH {
                settle(&mut log, offset - DEPTH);
            }
            commit(&mut log, &mut disk);
            if step % 16 == 0 && offset >= DEPTH {
                fetch(&mut log, &mut disk, 2 + offset % (QUEUES - 2), offset - DEPTH / 2);
            }
        }
        let recycled = log.counters().segments_recycled - recycled;
        assert!(recycled > 40, "only {recycled} segments were used again");
        found.push(COUNT.allocations() - before);
        if std::env::var_os("LEVERET_TRACE_ALLOCATIONS").is_some() {
            eprintln!("round {round} is over");
        }
    }
    println!("allocations: {found:?}");
    assert_eq!(found[1], 0, "{found:?}");
}
