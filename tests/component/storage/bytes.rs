//! The bytes that the log writes: bytes per message byte under load, and one block for a single confirm.

use leveret_core::time::Now;
use leveret_storage::{
    AppendRefused, Body, FileDisk, Identity, Log, Message, Range, Record, Settings, Target, Targets, Urgency,
};
use leveret_test_support::simulated_disk::{Mutant, SimDisk, Trouble};

use crate::sample::USUAL;
use crate::small;

const IDENTITY: Identity = Identity { id: *b"0123456789abcdef", secret: 7 };
const NOW: Now = Now::from_ms(1);

fn message<'a>(targets: &'a [Target], body: &'a [u8]) -> Record<'a> {
    Record::Message(Message { targets: Targets::List(targets), body: Body::Inline(body), ..USUAL })
}

fn sim() -> (SimDisk, Log) {
    let disk = SimDisk::new(1, Mutant::None, IDENTITY);
    disk.start(Trouble::Never);
    let (log, _) = Log::open(&mut disk.clone(), Settings::default(), IDENTITY, NOW).expect("it opens");
    (disk, log)
}

fn commit(log: &mut Log, disk: &mut SimDisk) {
    while let Some(job) = log.next_prepare() {
        log.prepare_done(job.run(disk)).expect("the disk is well");
    }
    if let Some(job) = log.next_commit(NOW) {
        log.commit_done(job.run(disk)).expect("the disk is well");
    }
}

/// Returns the bytes written per byte of message, for messages published, consumed and acknowledged over
/// several segments.
fn amplification(body_bytes: usize) -> f64 {
    let (mut disk, mut log) = sim();
    let before = disk.counts().bytes;
    let (body, mut settled) = (vec![7; body_bytes], 0);
    let messages = (24 << 20) / body_bytes as u64;
    for offset in 0..messages {
        let target = [Target { queue: 12, offset }];
        while let Err(refused) = log.append(&message(&target, &body), Urgency::Awaited, NOW) {
            assert_eq!(refused, AppendRefused::CommitFull);
            if offset > settled {
                log.settle(12, Range { start: settled, end: offset }, Urgency::Lazy, NOW);
                settled = offset;
            }
            commit(&mut log, &mut disk);
        }
    }
    (disk.counts().bytes - before) as f64 / log.counters().payload_bytes as f64
}

#[test]
fn under_load_at_most_one_point_one_five_bytes_a_byte() {
    for body_bytes in [256, 1024, 16 << 10] {
        let found = amplification(body_bytes);
        println!("{body_bytes} B: {found:.3} bytes written per byte of message");
        assert!(found <= 1.15, "{body_bytes} B: {found:.3}");
    }
}

#[test]
fn a_store_that_is_mostly_dead_takes_messages_again() {
    for (body_bytes, kept) in [(200, 20), (900, 20), (900, 400), (3000, 50)] {
        let disk = SimDisk::new(1, Mutant::None, IDENTITY);
        disk.start(Trouble::Never);
        let (segment_bytes, commit_bytes, segments_max) = (64 << 10, 16 << 10, 10);
        let settings = Settings { segment_bytes, commit_bytes, segments_max, ..Settings::default() };
        let mut disk = disk.clone();
        let (mut log, _) = Log::open(&mut disk, settings, IDENTITY, NOW).expect("it opens");
        let body = vec![7; body_bytes];
        let mut refused = 0;
        for offset in 0..6000 {
            let target = [Target { queue: 12, offset }];
            while log.append(&message(&target, &body), Urgency::Awaited, NOW).is_err() {
                refused += 1;
                assert!(refused < 100, "{body_bytes} B, one of {kept} kept: message {offset} waits for ever");
                commit(&mut log, &mut disk);
                if let Some(job) = log.next_compaction_read() {
                    log.compaction_read_done(job.run(&mut disk));
                }
            }
            refused = 0;
            // Nearly all are consumed at once; some stay for long.
            let gone = if offset % kept == 0 { offset.checked_sub(40 * kept) } else { Some(offset) };
            if let Some(start) = gone {
                log.settle(12, Range { start, end: start + 1 }, Urgency::Lazy, NOW);
            }
        }
    }
}

#[test]
fn a_lone_confirm_is_one_block_and_one_sync() {
    let (mut disk, mut log) = sim();
    commit(&mut log, &mut disk);
    let before = disk.counts();
    log.append(&message(&[Target { queue: 1, offset: 0 }], &[1; 256]), Urgency::Awaited, NOW)
        .expect("there is room");
    commit(&mut log, &mut disk);
    let after = disk.counts();
    assert_eq!(
        (after.writes - before.writes, after.bytes - before.bytes, after.syncs - before.syncs),
        (1, 4096, 1)
    );
}

#[test]
fn files_keep_committed_messages_and_lock_out_a_second_process() {
    let directory = std::env::temp_dir().join(format!("leveret-store-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("a directory can be made");
    let mut disk = FileDisk::new(&directory);
    let (mut log, report) = Log::open(&mut disk, Settings::default(), IDENTITY, NOW).expect("it opens");
    assert!(report.is_new && report.unwritable.is_none());
    let target = [Target { queue: 1, offset: 0 }];
    log.append(&message(&target, b"hello"), Urgency::Awaited, NOW).expect("there is room");
    let job = log.next_commit(NOW).expect("a commit is awaited");
    log.commit_done(job.run(&mut disk)).expect("the disk is well");
    assert!(Log::open(&mut FileDisk::new(&directory), Settings::default(), IDENTITY, NOW).is_err());
    drop(disk);
    let mut disk = FileDisk::new(&directory);
    let (log, report) = Log::open(&mut disk, Settings::default(), IDENTITY, NOW).expect("it opens again");
    assert!(!report.is_new && log.epoch() == 2 && report.set_aside.is_empty());
    let mut bodies = Vec::new();
    log.read_live(&mut disk, |record| {
        if let Record::Message(message) = record {
            bodies.push(message.body == Body::Inline(b"hello"));
        }
    })
    .expect("files read");
    // Once as it was committed, and once repeated in the second epoch.
    assert_eq!(bodies, [true, true]);
    std::fs::remove_dir_all(&directory).expect("and removed");
}

/// The number of bytes written to a card must include those before this start.
#[test]
fn written_bytes_are_counted_over_kills() {
    let mut disk = small::new_disk();
    let (mut offset, mut truly) = (0, 0);
    for run in 0..3 {
        let (mut log, _) = small::open(&disk, small::IDENTITY);
        let so_far = |log: &Log| log.counters().bytes_written + log.counters().bytes_zeroed;
        let found = log.bytes_written_total() - so_far(&log);
        // Each kill loses the count since the newest header for writes to other files.
        assert!(found <= truly && truly - found <= run * (128 << 10), "run {run}: {found} of {truly}");
        for _ in 0..100 {
            small::publish(&mut log, &mut disk, offset);
            offset += 1;
        }
        truly += so_far(&log);
        assert!(truly > (run + 1) * (300 << 10), "run {run}: so much was written: {truly}");
    }
}
