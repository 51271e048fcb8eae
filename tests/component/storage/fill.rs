//! The cost of a nearly full disk limit: bytes written per byte of message at 60 to 90 % of the limit.
//!
//! The bytes are counted on the simulated disk.
//!
//! There are two loads. In the first, messages are consumed in random order, the hardest case for a log. In
//! the second, some queues are not consumed for long, beside queues whose messages are consumed at once, as
//! on real boards.

use std::collections::VecDeque;

use leveret_core::time::Now;
use leveret_storage::{
    AppendRefused, Body, Identity, Log, Message, Range, Record, Settings, Target, Targets, Urgency,
};
use leveret_test_support::random::Random;
use leveret_test_support::simulated_disk::{Mutant, SimDisk, Trouble};

use crate::sample::PLAIN;

const IDENTITY: Identity = Identity { id: *b"0123456789abcdef", secret: 0xF111 };
const SEGMENT_BYTES: u32 = 1 << 20;
const SEGMENTS: u32 = 256;
const LIMIT_BYTES: u64 = SEGMENT_BYTES as u64 * SEGMENTS as u64;
const BODY: [u8; 3_600] = [7; 3_600];
/// Approximate size of a message in the log.
const MESSAGE_BYTES: u64 = 3_630;
/// Number of messages between two commits.
const BATCH: u64 = 30;
const QUEUES: u64 = 16;
/// One in this many messages goes to a queue that is not consumed for long.
const SLEEPY_ONE_IN: u64 = 5;
/// Number of messages that wait in consumed queues.
const BUSY_WAITING: usize = 200;

struct FilledLog {
    log: Log,
    disk: SimDisk,
    random: Random,
    now_ms: u64,
    /// Next offset by queue.
    next: Vec<u64>,
}

impl FilledLog {
    fn new() -> Self {
        let disk = SimDisk::new(1, Mutant::None, IDENTITY);
        disk.start(Trouble::Never);
        let settings = Settings {
            segment_bytes: SEGMENT_BYTES,
            commit_bytes: 152 << 10,
            segments_max: SEGMENTS,
            index_bytes: 4 << 20,
            ..Settings::default()
        };
        let log = Log::open(&mut disk.clone(), settings, IDENTITY, Now::from_ms(0)).expect("it opens").0;
        Self { log, disk, random: Random::new(9), now_ms: 0, next: vec![0; 2 * QUEUES as usize + 1] }
    }

    /// Does what the helpers do during one commit.
    fn turn(&mut self) {
        self.now_ms += 20;
        if let Some(job) = self.log.next_prepare() {
            self.log.prepare_done(job.run(&mut self.disk)).expect("the disk is well");
        }
        let commit = self.log.next_commit(Now::from_ms(self.now_ms));
        for _ in 0..3 {
            if let Some(job) = self.log.next_compaction_read() {
                self.log.compaction_read_done(job.run(&mut self.disk));
            }
        }
        if let Some(job) = commit {
            self.log.commit_done(job.run(&mut self.disk)).expect("the disk is well");
        }
    }

    /// Publishes one message. Returns `None` if there is no space, and none will become free.
    fn publish(&mut self, queue: u64) -> Option<(u64, u64)> {
        let offset = self.next[queue as usize];
        let record = Record::Message(Message {
            targets: Targets::List(&[Target { queue, offset }]),
            body: Body::Inline(&BODY),
            ..PLAIN
        });
        for _ in 0..5_000 {
            if self.log.should_defer(BODY.len()) {
                self.turn();
                continue;
            }
            match self.log.append(&record, Urgency::Awaited, Now::from_ms(self.now_ms)) {
                Ok(_) => {
                    self.next[queue as usize] += 1;
                    return Some((queue, offset));
                }
                Err(AppendRefused::TooLarge) => panic!("it is small"),
                Err(AppendRefused::CommitFull | AppendRefused::Disk) => self.turn(),
            }
        }
        None
    }

    fn settle(&mut self, (queue, offset): (u64, u64)) {
        let range = Range { start: offset, end: offset + 1 };
        self.log.settle(queue, range, Urgency::Lazy, Now::from_ms(self.now_ms));
    }

    /// Returns the bytes written, and those of messages.
    fn bytes(&self) -> (u64, u64) {
        let counters = self.log.counters();
        (counters.bytes_written, counters.payload_bytes)
    }
}

/// The result of one load.
#[derive(Debug)]
struct Found {
    /// Bytes written per byte of message.
    amplification: f64,
    /// Share of the limit that is live messages, in percent.
    live: f64,
}

/// Keeps this share of the limit live, until three times the limit was written. `step` settles messages.
fn measure(percent: u64, mut step: impl FnMut(&mut FilledLog, u64) -> bool) -> Option<Found> {
    let mut world = FilledLog::new();
    let most = LIMIT_BYTES * percent / 100 / MESSAGE_BYTES;
    let (filled, measured) = (most + 2 * LIMIT_BYTES / MESSAGE_BYTES, 2 * LIMIT_BYTES / MESSAGE_BYTES);
    let mut before = (0, 0);
    for count in 0..filled + measured {
        if count == filled {
            before = world.bytes();
        }
        if !step(&mut world, most) {
            return None;
        }
        if count % BATCH == 0 {
            world.turn();
        }
    }
    let (written, messages) = world.bytes();
    let live: u64 = world.log.index().queues().values().map(|queue| queue.live_bytes()).sum();
    let live = live as f64 * 100.0 / LIMIT_BYTES as f64;
    let amplification = (written - before.0) as f64 / (messages - before.1) as f64;
    println!("{percent} %: live {live:.1} %, {amplification:.2} bytes written a byte");
    Some(Found { amplification, live })
}

/// Any live message may be settled next.
fn uniform(percent: u64) -> Option<Found> {
    let mut live = Vec::new();
    measure(percent, |world, most| {
        while live.len() as u64 >= most {
            let at = world.random.below(live.len() as u64) as usize;
            world.settle(live.swap_remove(at));
        }
        let queue = 1 + world.random.below(QUEUES);
        live.extend(world.publish(queue));
        world.next[queue as usize] > 0 && live.last().is_some_and(|(last, _)| *last == queue)
    })
}

/// Some queues are consumed at once. One of the others is drained occasionally.
fn sleepy(percent: u64) -> Option<Found> {
    let mut busy = VecDeque::new();
    let mut asleep: Vec<VecDeque<(u64, u64)>> = vec![VecDeque::new(); QUEUES as usize];
    let (mut waiting, mut awake) = (0, 0);
    measure(percent, |world, most| {
        let is_sleepy = world.random.once_in(SLEEPY_ONE_IN);
        if is_sleepy {
            while waiting >= most {
                match asleep[awake].pop_front() {
                    Some(message) => {
                        world.settle(message);
                        waiting -= 1;
                    }
                    None => awake = world.random.below(QUEUES) as usize,
                }
            }
        }
        while busy.len() >= BUSY_WAITING {
            let message = busy.pop_front().expect("some wait");
            world.settle(message);
        }
        let queue = world.random.below(QUEUES);
        let Some(message) = world.publish(1 + queue + if is_sleepy { QUEUES } else { 0 }) else {
            return false;
        };
        if is_sleepy {
            asleep[queue as usize].push_back(message);
            waiting += 1;
        } else {
            busy.push_back(message);
        }
        true
    })
}

/// Checks that all messages are accepted, and the amplification in hundredths.
fn judge(load: fn(u64) -> Option<Found>, most: [u64; 4]) {
    for (percent, most) in [60, 70, 80, 90].into_iter().zip(most) {
        let found = load(percent).unwrap_or_else(|| panic!("at {percent} % publishers wait for ever"));
        assert!((found.live - percent as f64).abs() < 1.0, "{percent} %: {found:?}");
        assert!(found.amplification * 100.0 <= most as f64, "{percent} %: {found:?}");
    }
}

/// Live data of a deleted segment is rewritten. The compactor takes the emptiest segment, so the cost is less
/// than `1 / (1 - live)` bytes per byte, unless the limit is nearly full.
#[test]
#[ignore = "takes a minute: tests/run --full"]
fn a_limit_full_of_messages_that_die_in_no_order_takes_more() {
    judge(uniform, [185, 250, 420, 1150]);
}

#[test]
fn idle_queues_beside_busy_ones_are_rarely_copied() {
    judge(sleepy, [150, 165, 240, 330]);
}
