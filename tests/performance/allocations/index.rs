//! Checks that the memory for the index of the log has a hard limit, with many queues over many segments.
//!
//! The allocator counts the heap, so an incomplete estimate is detected.

use crate::counting;
use leveret_config::{Config, Layer};
use leveret_core::limits::Limits;
use leveret_core::time::Now;
use leveret_storage::{
    AppendRefused, Body, FileDisk, Identity, Log, Message, Range, Record, Settings, Target, Targets, Urgency,
};
use leveret_test_support::built_program::TempDir;

const IDENTITY: Identity = Identity { id: *b"0123456789abcdef", secret: 0xF112 };
const QUEUES: u64 = 60;
const INDEX_BYTES: usize = 150_000;
const SEGMENTS_MAX: u32 = 1_000;

fn settings() -> Settings {
    Settings {
        segment_bytes: 64 << 10,
        commit_bytes: 12 << 10,
        segments_max: SEGMENTS_MAX,
        index_bytes: INDEX_BYTES,
        ..Settings::default()
    }
}

struct LoggedQueues {
    disk: FileDisk,
    log: Log,
    now_ms: u64,
    /// Messages published so far; they take turns on the queues.
    count: u64,
    queues: u64,
}

impl LoggedQueues {
    fn open(home: &TempDir) -> Self {
        Self::open_with(home, settings(), QUEUES)
    }

    fn open_with(home: &TempDir, settings: Settings, queues: u64) -> Self {
        let mut disk = FileDisk::new(home.path());
        let (log, _) = Log::open(&mut disk, settings, IDENTITY, Now::from_ms(0)).expect("it opens");
        Self { disk, log, now_ms: 0, count: 0, queues }
    }

    /// Until nothing is to be done any more.
    fn rest(&mut self) {
        for turn in 0..100_000 {
            let now = Now::from_ms(self.now_ms);
            let mut did = false;
            if let Some(job) = self.log.next_prepare() {
                self.log.prepare_done(job.run(&mut self.disk)).expect("the disk is well");
                did = true;
            }
            if let Some(job) = self.log.next_compaction_read() {
                self.log.compaction_read_done(job.run(&mut self.disk));
                did = true;
            }
            if let Some(job) = self.log.next_commit(now) {
                self.log.commit_done(job.run(&mut self.disk)).expect("the disk is well");
                did = true;
            }
            if !did && self.log.is_idle() {
                return;
            }
            self.now_ms += if did { 0 } else { 5_000 };
            assert!(turn < 99_999, "the log never comes to rest");
        }
    }

    fn publish(&mut self) -> Result<(), AppendRefused> {
        let to = Target { queue: 1 + self.count % self.queues, offset: self.count / self.queues };
        let message = Message {
            targets: Targets::List(&[to]),
            enqueued_ms: 0,
            expiration_ms: None,
            exchange: b"",
            key: b"key",
            properties: b"",
            body: Body::Inline(&[7; 150]),
        };
        let record = Record::Message(message);
        self.log.append(&record, Urgency::Awaited, Now::from_ms(self.now_ms))?;
        self.count += 1;
        Ok(())
    }

    /// Publishes until nothing more is taken.
    fn fill(&mut self) {
        loop {
            match self.publish() {
                Ok(()) => {}
                Err(AppendRefused::CommitFull) => self.rest(),
                Err(AppendRefused::Disk) => {
                    self.rest();
                    if self.publish() == Err(AppendRefused::Disk) {
                        return;
                    }
                }
                Err(AppendRefused::TooLarge) => panic!("nothing is that large"),
            }
        }
    }
}

#[test]
fn many_queues_over_many_segments_end_at_the_cap_and_go_on_when_they_are_consumed() {
    let home = TempDir::new("store-index");
    let mut world = LoggedQueues::open(&home);
    // Two segments sealed, so that every buffer has its size; what memory knows of them counts for nothing.
    while world.log.index().segments().len() < 3 {
        if world.publish().is_err() {
            world.rest();
        }
    }
    world.rest();
    let before = counting::held_bytes();
    world.fill();
    let (taken, segments) = (counting::held_bytes_since(before), world.log.index().segments().len());
    assert!(segments < SEGMENTS_MAX as usize / 2, "the disk was full before the index: {segments} segments");
    assert_eq!(world.log.space().room_bytes(), 0, "what waits elsewhere is told so");
    // It is weighed when a segment is opened, so that much may come on top.
    assert!(taken <= INDEX_BYTES / 5 * 6, "{taken} bytes on the heap, and the cap is {INDEX_BYTES}");
    assert!(taken >= INDEX_BYTES / 4, "{taken} bytes: far more is said to be taken than is");
    for queue in 1..=QUEUES {
        let range = Range { start: 0, end: world.count / QUEUES };
        world.log.settle(queue, range, Urgency::Awaited, Now::from_ms(world.now_ms));
    }
    world.rest();
    assert_eq!(world.publish(), Ok(()), "there is room again");
    world.rest();
    let left = counting::held_bytes_since(before);
    assert!(left < taken / 2, "{left} of {taken} bytes stayed");
    drop(world);
    // A start takes what there is, however much that is.
    assert!(LoggedQueues::open(&home).publish().is_ok());
}

/// Publishes to the queues in turn until this number of segments is in use. Returns the heap in use then.
fn held_with(world: &mut LoggedQueues, segments: usize) -> f64 {
    while world.log.index().segments().len() < segments {
        if world.publish().is_err() {
            world.rest();
        }
    }
    world.rest();
    counting::held_bytes() as f64
}

/// Returns the cost of a number of queues, and of each further segment, in bytes. The queues are written in turn,
/// which is the worst usual case: each segment contains something of each queue.
fn cost_of(queues: u64, segment_bytes: u32) -> (f64, f64) {
    let home = TempDir::new("store-index-pairs");
    let settings = Settings {
        segment_bytes,
        commit_bytes: 20 << 10,
        segments_max: 900,
        index_bytes: 64 << 20,
        ..settings()
    };
    let mut world = LoggedQueues::open_with(&home, settings, queues);
    world.rest();
    let before = counting::held_bytes() as f64;
    let (few, many) = (held_with(&mut world, 200), held_with(&mut world, 800));
    let segment = (many - few) / 600.0;
    (few - before - 200.0 * segment, segment)
}

/// Fills a log with messages for each of 1,000 queues, opens it again, and drains it, a few messages of each
/// queue at a time. Returns the maximum heap in use meanwhile, without that after the start.
fn drained(each: u64) -> usize {
    const COUNT: u64 = 1_000;
    let home = TempDir::new("store-drain");
    let sizes = || Settings {
        segment_bytes: 1 << 20,
        commit_bytes: 128 << 10,
        segments_max: 60,
        index_bytes: 8 << 20,
        ..settings()
    };
    let mut world = LoggedQueues::open_with(&home, sizes(), COUNT);
    while world.count < COUNT * each {
        if world.publish().is_err() {
            world.rest();
        }
    }
    world.rest();
    drop(world);
    let mut world = LoggedQueues::open_with(&home, sizes(), COUNT);
    world.rest();
    let (before, mut most, mut next) = (counting::held_bytes(), 0, vec![0; COUNT as usize]);
    while next.iter().any(|next| *next < each) {
        for (at, next) in next.iter_mut().enumerate().filter(|(_, next)| **next < each) {
            let (queue, start) = (at as u64 + 1, *next);
            let job = world.log.fetch(queue, Range { start, end: u64::MAX }, 1_500).expect("nobody reads");
            let done = job.run(&mut world.disk);
            world.log.fetch_done(done, |offset, _| {
                assert_eq!(offset, *next, "queue {queue} comes in order");
                *next += 1;
            });
            let came = Range { start, end: *next };
            world.log.settle(queue, came, Urgency::Lazy, Now::from_ms(world.now_ms));
            most = most.max(counting::held_bytes_since(before));
        }
        world.rest();
    }
    most
}

#[test]
fn a_backlog_over_a_thousand_queues_is_drained_in_memory_that_does_not_grow_with_it() {
    let (few, many) = (drained(10), drained(40));
    println!("{few} and {many} bytes");
    assert!(many < 2 * few, "{many} bytes for four times as many as took {few}");
    assert!(many < 1 << 19, "{many} bytes, of 9 MB that came");
}

/// Returns the limits of a board.
fn limits_of(board: &str) -> Limits {
    let mut flags = Layer::default();
    flags.board = Some(board.to_string());
    let mut config = Config::gather(None, flags).expect("it comes with the program");
    leveret_daemon::derive_limits(&mut config).expect("a profile is valid");
    config.limits
}

#[test]
fn a_thousand_queues_over_8_gb_fit_the_default_and_a_hundred_over_1_gb_the_smallest_router() {
    let (alone, of_one) = cost_of(1, 64 << 10);
    let (queues_alone, of_many) = cost_of(150, 64 << 10);
    let (queue, pair) = ((queues_alone - alone) / 149.0, (of_many - of_one) / 149.0);
    println!("{queue:.0} bytes a queue, {of_one:.0} a segment, {pair:.2} a queue in a segment");
    assert!(pair < 3.0, "{pair:.2} bytes for each queue in each segment");
    for (board, queues, disk_mib) in [("generic", 1_000.0, 8.0 * 1024.0), ("router-64", 100.0, 1024.0)] {
        let limits = limits_of(board);
        let segment_bytes = f64::from(limits.segment_bytes);
        let segments = disk_mib * 1024.0 * 1024.0 / segment_bytes;
        // Spans take one in 2 KiB of what the footers tell of the messages, three bytes for each of 300.
        let spans = 16.0 * segment_bytes / 300.0 * 3.0 / 2_048.0;
        let needed = queues * (queue + pair * segments) + segments * (of_one + spans);
        let most = f64::from(limits.index_bytes_max);
        println!("{board}: {needed:.0} of {most} bytes");
        assert!(needed < most, "{needed:.0} bytes do not fit into the {most} of {board}");
    }
}
