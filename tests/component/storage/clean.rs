//! The cost of compaction: bytes read, commits made, and files worn.
//!
//! Nothing else reads in these tests, so the read counter of the disk counts only the compactor.

use leveret_core::definition::ACCESS_STORED_KEY;
use leveret_core::time::Now;
use leveret_storage::{
    AppendRefused, Body, Identity, Log, Message, Range, Record, Settings, Target, Targets, Urgency,
};
use leveret_test_support::simulated_disk::{Mutant, SimDisk, Trouble};

use crate::sample::PLAIN;

const IDENTITY: Identity = Identity { id: *b"0123456789abcdef", secret: 0xC1EA };
const SEGMENT_BYTES: u32 = 1 << 20;

struct CompactedLog {
    log: Log,
    disk: SimDisk,
    now: u64,
}

impl CompactedLog {
    fn new(segments_max: u32) -> Self {
        Self::with(Settings {
            segment_bytes: SEGMENT_BYTES,
            commit_bytes: 256 << 10,
            segments_max,
            syncs_per_s: 2,
            sync_burst: 2,
            ..Settings::default()
        })
    }

    fn with(settings: Settings) -> Self {
        let disk = SimDisk::new(1, Mutant::None, IDENTITY);
        disk.start(Trouble::Never);
        let log = Log::open(&mut disk.clone(), settings, IDENTITY, Now::from_ms(0)).expect("it opens").0;
        Self { log, disk, now: 0 }
    }

    /// Does everything there is to do, and lets `ms` pass.
    fn work(&mut self, ms: u64) {
        let now = Now::from_ms(self.now);
        while let Some(job) = self.log.next_prepare() {
            self.log.prepare_done(job.run(&mut self.disk)).expect("the disk is well");
        }
        if let Some(job) = self.log.next_compaction_read() {
            self.log.compaction_read_done(job.run(&mut self.disk));
        }
        if let Some(job) = self.log.next_commit(now) {
            self.log.commit_done(job.run(&mut self.disk)).expect("the disk is well");
        }
        self.now += ms;
    }

    /// Publishes one message in a commit of its own. Returns `false` if there is no space for it.
    fn publish(&mut self, queue: u64, offset: u64, body: &[u8]) -> bool {
        let record = Record::Message(Message {
            targets: Targets::List(&[Target { queue, offset }]),
            body: Body::Inline(body),
            ..PLAIN
        });
        for _ in 0..1_000 {
            match self.log.append(&record, Urgency::Awaited, Now::from_ms(self.now)) {
                Ok(_) => {
                    self.now += 1_000;
                    self.work(0);
                    return true;
                }
                Err(AppendRefused::CommitFull | AppendRefused::Disk) => self.work(100),
                Err(refused) => panic!("{refused:?}"),
            }
        }
        false
    }

    fn settle(&mut self, queue: u64, range: Range) {
        self.log.settle(queue, range, Urgency::Lazy, Now::from_ms(self.now));
    }
}

/// Commits of one small message each: unneeded commits are not read, and others are read once.
#[test]
fn a_segment_is_read_once_to_be_copied() {
    let mut world = CompactedLog::new(8);
    let mut offset = 0;
    // One in ten stays, so that every segment must be copied eventually.
    while world.log.counters().bytes_copied < 100_000 {
        assert!(world.publish(1, offset, &[7; 100]), "there is room for more");
        if offset % 10 != 0 {
            world.settle(1, Range { start: offset, end: offset + 1 });
        } else if offset >= 10_000 {
            world.settle(1, Range { start: offset - 10_000, end: offset - 9_999 });
        }
        offset += 1;
        assert!(offset < 100_000, "nothing is ever copied");
    }
    let counters = world.log.counters();
    println!("{} bytes read to copy {}", world.disk.counts().read_bytes, counters.bytes_copied);
    assert!(counters.segments_recycled >= 3);
    let read_bytes_max = (counters.segments_recycled + 2) * u64::from(SEGMENT_BYTES) * 9 / 8;
    assert!(world.disk.counts().read_bytes <= read_bytes_max, "{counters:?}");
    let live = &world.log.index().queues()[&1];
    let is_live = |at: &u64| live.segment_of(*at).is_some();
    let kept = (offset.saturating_sub(9_000)..offset).filter(|at| at % 10 == 0);
    assert!(kept.clone().all(|at| is_live(&at)), "{:?} is lost", kept.clone().find(|at| !is_live(at)));
}

/// A commit is awaited that contains nothing, as with dead letters without capacity. Copies made meanwhile
/// are committed as usual, and not after each read.
#[test]
fn a_waiting_dead_letter_does_not_cause_a_commit_per_read() {
    let commits_of = |is_awaited: bool| {
        let mut world = CompactedLog::new(8);
        let mut offset = 0;
        // One in ten stays.
        while world.log.counters().bytes_copied == 0 {
            assert!(world.publish(1, offset, &[7; 100]), "there is room for more");
            if offset % 10 != 0 {
                world.settle(1, Range { start: offset, end: offset + 1 });
            }
            offset += 1;
        }
        let before = world.log.counters();
        for _ in 0..200 {
            if is_awaited {
                world.log.note(Urgency::Awaited, Now::from_ms(world.now));
            }
            world.work(1_000);
        }
        let after = world.log.counters();
        assert!(after.segments_recycled > before.segments_recycled, "the cleaner frees some");
        println!("{is_awaited}: {} commits", after.commits - before.commits);
        after.commits - before.commits
    };
    assert!(commits_of(true) <= commits_of(false) + 2);
}

/// The live records are at the front of their segment: nothing is read behind them.
#[test]
fn nothing_is_read_behind_the_last_live_record() {
    let mut world = CompactedLog::new(6);
    let (mut offset, mut copied) = (0, 0);
    for _ in 0..4_000 {
        // The first of each segment stays.
        let is_first = world.log.index().segments().len() as u64 > copied;
        copied = world.log.index().segments().len() as u64;
        assert!(world.publish(1, offset, &[7; 100]));
        if !is_first {
            world.settle(1, Range { start: offset, end: offset + 1 });
        }
        offset += 1;
    }
    let counters = world.log.counters();
    println!("{counters:?}");
    assert!(counters.bytes_copied > 0 && counters.segments_recycled >= 8);
    assert!(world.disk.counts().read_bytes <= counters.segments_recycled * (160 << 10), "{counters:?}");
}

/// A commit that is longer than one read, at the start of its segment and in the middle.
#[test]
fn live_messages_in_long_commits_are_copied() {
    let mut world = CompactedLog::new(8);
    let mut kept = Vec::new();
    for offset in 0..120 {
        assert!(world.publish(1, offset, &vec![offset as u8; 200_000]), "message {offset} finds no room");
        // Four fit into a segment, and in every third segment one has to be copied each time.
        if offset % 12 == 0 && kept.len() < 5 || offset % 12 == 6 && kept.len() < 9 {
            kept.push(offset);
        } else {
            world.settle(1, Range { start: offset, end: offset + 1 });
        }
    }
    let counters = world.log.counters();
    assert!(counters.bytes_copied > 5 * 200_000, "{counters:?}");
    assert!(world.log.index().segments().values().all(|segment| !segment.stuck), "something was not found");
    let live = &world.log.index().queues()[&1];
    assert!(kept.iter().all(|offset| live.segment_of(*offset).is_some()), "{kept:?}");
}

/// Commits of one block each, in which copies of longer messages leave space unused.
#[test]
fn segments_with_a_third_of_live_records_are_compacted_with_the_smallest_commits() {
    let mut world = CompactedLog::with(Settings {
        segment_bytes: 64 << 10,
        commit_bytes: 4 << 10,
        segments_max: 8,
        ..Settings::default()
    });
    let mut offset = 0;
    while world.publish(1, offset, &[7; 700]) {
        if offset % 3 != 0 {
            world.settle(1, Range { start: offset, end: offset + 1 });
        }
        offset += 1;
        assert!(offset < 10_000, "the log never gets full");
    }
    let (live, used) =
        world.log.index().segments().values().fold((0, 0), |(live, used), segment| {
            (live + segment.live_bytes, used + u64::from(segment.bytes))
        });
    println!("{live} of {used} bytes are live");
    assert!(live * 100 >= used * 33, "{live} of {used}");
}

/// A queue over sixty segments is deleted.
#[test]
fn a_deleted_deep_queue_is_freed_in_a_few_commits() {
    let mut world = CompactedLog::new(100);
    let mut offset = 0;
    while world.log.index().segments().len() < 60 {
        assert!(world.publish(1, offset, &[7; 200_000]));
        offset += 1;
    }
    world.work(10_000);
    let before = world.log.counters();
    let gone = Record::Gone { queue: 1 };
    world.log.append_reserved(&gone, Urgency::Awaited, Now::from_ms(world.now)).expect("there is room");
    for _ in 0..200 {
        world.work(100);
    }
    let after = world.log.counters();
    assert_eq!(world.log.index().segments().len(), 1, "all but the active segment have left");
    let (commits, freed) =
        (after.commits - before.commits, after.segments_recycled - before.segments_recycled);
    println!("{commits} commits freed {freed} segments");
    assert!(freed >= 59 && commits <= 4, "{commits} commits freed {freed} segments");
}

/// The segment with a user's deletion is deleted before that with the user, so the deletion is copied. It
/// must be in two commits, although nothing else is written any more.
#[test]
fn a_copied_deletion_is_in_two_commits_before_the_log_rests() {
    let alice: &[u8] = b"\0\x02\x05alice";
    let mut world = CompactedLog::new(100);
    let define = |world: &mut CompactedLog, version, key: &[u8], value: Option<&[u8]>| {
        let record = Record::Defined { version, key, value };
        world.log.append_reserved(&record, Urgency::Awaited, Now::from_ms(world.now)).expect("there is room");
        for _ in 0..3 {
            world.work(2_000);
        }
    };
    define(&mut world, 1, alice, Some(b"a"));
    define(&mut world, 2, &ACCESS_STORED_KEY, Some(b""));
    let mut offset = 0;
    let mut fill = |world: &mut CompactedLog, segments: usize| {
        while world.log.index().segments().len() < segments {
            assert!(world.publish(1, offset, &[7; 100_000]));
            offset += 1;
        }
        offset
    };
    let from = fill(&mut world, 2);
    define(&mut world, 3, alice, None);
    let place = |world: &CompactedLog| {
        let known = &world.log.index().definitions()[alice];
        (known.place.segment, known.second().map(|second| second.segment))
    };
    let first = place(&world);
    let to = fill(&mut world, 3);
    world.settle(1, Range { start: from - 1, end: to - 1 });
    for _ in 0..100 {
        world.work(1_000);
        if place(&world) != first && world.log.is_idle() {
            break;
        }
    }
    let (carried, second) = place(&world);
    assert!(carried != first.0, "it was carried along");
    assert_eq!(second, Some(carried), "twice");
}

/// Every file is used before one is used again.
#[test]
fn free_files_are_taken_in_turn() {
    let mut world = CompactedLog::new(100);
    for offset in 0..60 {
        assert!(world.publish(1, offset, &[7; 200_000]));
    }
    world.settle(1, Range { start: 0, end: 60 });
    for _ in 0..300 {
        world.work(100);
    }
    let files = world.log.space().segments_free() + 1;
    let before = world.disk.written().len();
    for offset in 60..400 {
        assert!(world.publish(1, offset, &[7; 200_000]));
        world.settle(1, Range { start: offset, end: offset + 1 });
    }
    // A header is written at the start of each file that is taken.
    let mut taken: Vec<u32> =
        world.disk.written()[before..].iter().filter(|(_, at)| *at == 0).map(|(slot, _)| *slot).collect();
    assert!(files >= 12 && taken.len() > 3 * files, "{} of {files} files taken", taken.len());
    println!("{files} files, taken {taken:?}");
    let rounds: Vec<u32> = taken.drain(..2 * files).collect();
    let mut uses = std::collections::BTreeMap::<u32, usize>::new();
    rounds.iter().for_each(|slot| *uses.entry(*slot).or_default() += 1);
    assert!(uses.values().all(|times| *times <= 3), "{uses:?}");
    assert!(uses.len() + 2 >= files, "{uses:?} of {files} files");
}
