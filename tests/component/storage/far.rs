//! Offsets that pass integer widths: queues begin a little below a width, and cross it with settled and
//! remaining messages. The log is compacted and restarted, and compared with a model.

use std::collections::BTreeMap;

use super::bodies::{body_of, content_of};
use leveret_core::time::Now;
use leveret_storage::{
    AppendRefused, Body, Identity, Log, Message, Range, Record, Settings, Target, Targets, Urgency,
};
use leveret_test_support::random::Random;
use leveret_test_support::simulated_disk::{Mutant, SimDisk, Trouble};

use crate::sample::PLAIN;

const IDENTITY: Identity = Identity { id: *b"0123456789abcdef", secret: 0xFA4 };
const WIDTHS: [u32; 6] = [16, 29, 31, 32, 40, 60];
/// Distance between the first offset of a queue and the width.
const BELOW: u64 = 300;
const MESSAGES: u64 = 1_800;
/// Number of messages between two starts.
const PER_LIFE: u64 = 150;
/// Maximum number of waiting messages of a queue; more are settled.
const DEPTH: usize = 60;
/// Maximum number of remaining messages; the oldest ones are settled occasionally.
const STAYING: usize = 60;

/// A queue that begins just below a width because everything before is settled.
const SETTLED: u64 = 1;
/// A queue with a delivered watermark just below a width.
const MARKED: u64 = 2;
/// Its first message stays, and all after it are settled.
const FIRST_STAYS: u64 = 3;
/// Nothing is recorded about the offsets before the first message.
const HOLE: u64 = 4;
const QUEUES: [u64; 4] = [SETTLED, MARKED, FIRST_STAYS, HOLE];

#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    /// Content by offset.
    live: BTreeMap<u64, u64>,
    next: u64,
    marked: u64,
}

struct DistantOffsets {
    random: Random,
    disk: SimDisk,
    log: Log,
    now: u64,
    content: u64,
    queues: BTreeMap<u64, Model>,
    copied: u64,
    width: u64,
}

fn open(disk: &SimDisk) -> Log {
    disk.start(Trouble::Never);
    let settings =
        Settings { segment_bytes: 64 << 10, commit_bytes: 12 << 10, segments_max: 14, ..Settings::default() };
    let (log, report) = Log::open(&mut disk.clone(), settings, IDENTITY, Now::from_ms(0)).expect("it opens");
    assert!(report.set_aside.is_empty() && report.commits_missing == 0, "{report:?}");
    log
}

impl DistantOffsets {
    fn new(bits: u32) -> Self {
        let disk = SimDisk::new(bits.into(), Mutant::None, IDENTITY);
        let log = open(&disk);
        let queues = QUEUES.map(|queue| (queue, Model::default())).into();
        let width = 1 << bits;
        Self { random: Random::new(bits.into()), disk, log, now: 0, content: 1, queues, copied: 0, width }
    }

    fn begin(&mut self) {
        let start = self.width - BELOW;
        self.settle(SETTLED, Range { start: 0, end: start });
        self.mark(MARKED, start);
        for queue in [FIRST_STAYS, HOLE] {
            self.publish(&[queue]);
        }
        self.settle(FIRST_STAYS, Range { start: 1, end: start });
        self.queues.get_mut(&HOLE).expect("it is there").next = start;
    }

    fn now(&self) -> Now {
        Now::from_ms(self.now)
    }

    /// Runs one turn of the event loop.
    fn work(&mut self) -> bool {
        let mut did = false;
        while let Some(job) = self.log.next_prepare() {
            self.log.prepare_done(job.run(&mut self.disk)).expect("the disk is well");
        }
        if let Some(job) = self.log.next_compaction_read() {
            self.log.compaction_read_done(job.run(&mut self.disk));
            did = true;
        }
        if let Some(job) = self.log.next_commit(self.now()) {
            self.log.commit_done(job.run(&mut self.disk)).expect("the disk is well");
            did = true;
        }
        self.now += 1_000;
        did
    }

    fn rest(&mut self) {
        let mut idle = 0;
        while idle < 3 {
            idle = if self.work() { 0 } else { idle + 1 };
        }
    }

    fn publish(&mut self, queues: &[u64]) {
        self.content += 1;
        let target = |queue: &u64| Target { queue: *queue, offset: self.queues[queue].next };
        let (targets, body): (Vec<Target>, _) = (queues.iter().map(target).collect(), body_of(self.content));
        let record =
            Record::Message(Message { targets: Targets::List(&targets), body: Body::Inline(&body), ..PLAIN });
        let mut turns = 0;
        while let Err(refused) = self.log.append(&record, Urgency::Awaited, self.now()) {
            assert!(refused != AppendRefused::TooLarge && turns < 1_000, "{refused:?}");
            self.work();
            turns += 1;
        }
        for Target { queue, offset, .. } in targets {
            let model = self.queues.get_mut(&queue).expect("it is there");
            model.live.insert(offset, self.content);
            model.next = offset + 1;
        }
    }

    fn settle(&mut self, queue: u64, range: Range) {
        self.log.settle(queue, range, Urgency::Window, self.now());
        let model = self.queues.get_mut(&queue).expect("it is there");
        model.live.retain(|offset, _| !(range.start..range.end).contains(offset));
        model.next = model.next.max(range.end);
    }

    fn mark(&mut self, queue: u64, offset: u64) {
        let record = Record::DeliveredWatermark { queue, offset };
        self.log.append_reserved(&record, Urgency::Awaited, self.now()).expect("there is room");
        let model = self.queues.get_mut(&queue).expect("it is there");
        model.marked = model.marked.max(offset);
        model.next = model.next.max(offset);
    }

    /// Publishes a message to some queues. Surplus messages are settled in any order, and one in eight stays.
    fn step(&mut self) {
        let chosen: Vec<u64> = QUEUES.into_iter().filter(|_| self.random.once_in(2)).collect();
        self.publish(if chosen.is_empty() { &QUEUES } else { &chosen });
        for queue in chosen {
            let live = self.queues[&queue].live.iter();
            let going: Vec<u64> =
                live.filter(|(_, content)| !content.is_multiple_of(8)).map(|(at, _)| *at).collect();
            if going.len() > DEPTH {
                let start = going[self.random.below(going.len() as u64 / 2) as usize];
                self.settle(queue, Range { start, end: start + 1 });
            }
            match self.random.below(60) {
                // Offsets that were never written: a hole without a record.
                0 => self.queues.get_mut(&queue).expect("it is there").next += 1 + self.random.below(5),
                1 => self.mark(queue, self.queues[&queue].next),
                2 if self.queues[&queue].live.len() > DEPTH + STAYING => {
                    let oldest: Vec<u64> =
                        self.queues[&queue].live.keys().copied().skip(1).take(12).collect();
                    if let [start, .., end] = oldest[..] {
                        self.settle(queue, Range { start, end: end + 1 });
                    }
                }
                _ => {}
            }
        }
        if self.random.once_in(6) {
            self.work();
        }
    }

    /// Compares live messages, fetched messages and the next offset with the model.
    fn check(&mut self, when: &str) {
        self.rest();
        let mut found = BTreeMap::<(u64, u64), u64>::new();
        let read = self.log.read_live(&mut self.disk.clone(), |record| {
            let Record::Message(message) = record else { return };
            let Body::Inline(bytes) = message.body else { panic!("no body is in chunks") };
            let content = content_of(bytes).expect("it is whole");
            found.extend(self.log.live_targets(message).map(|target| (target, content)));
        });
        assert!(read.is_ok());
        for queue in QUEUES {
            let model = self.queues[&queue].clone();
            let what = format!("queue {queue} at {:#x}, {when}", self.width);
            let index = &self.log.index().queues()[&queue];
            let live: Vec<u64> = index.live_ranges().flat_map(|range| range.start..range.end).collect();
            assert!(model.live.keys().eq(&live), "{what}: {live:?} are live, not {:?}", model.live.keys());
            assert_eq!(index.live, live.len() as u64, "{what}");
            assert_eq!((index.next_offset(), index.delivered_below()), (model.next, model.marked), "{what}");
            for at in &live {
                // No message is confused with another one whose offset has the same low bits.
                let aliases = WIDTHS.into_iter().flat_map(|bits| [at ^ 1 << bits, at % (1 << bits)]);
                for alias in aliases.chain([*at]) {
                    let is_live = model.live.contains_key(&alias);
                    assert_eq!(index.segment_of(alias).is_some(), is_live, "{what}: {alias}");
                }
            }
            let read = found.range((queue, 0)..=(queue, u64::MAX)).map(|((_, at), content)| (at, content));
            assert!(read.eq(&model.live), "{what}: what is read is not what is live");
            for start in [0, self.width - 1, self.width, self.width + 1] {
                let fetched = self.fetch(queue, start);
                assert!(fetched.iter().eq(model.live.range(start..)), "{what}, from {start}: {fetched:?}");
            }
        }
    }

    fn fetch(&mut self, queue: u64, mut start: u64) -> BTreeMap<u64, u64> {
        let mut found = BTreeMap::new();
        while start < u64::MAX {
            let bytes_max = self.random.one_of(&[700, 5_000, 100_000]);
            let range = Range { start, end: u64::MAX };
            let job = self.log.fetch(queue, range, bytes_max).expect("the buffer is free");
            let fetched = self.log.fetch_done(job.run(&mut self.disk), |offset, message| {
                let Body::Inline(bytes) = message.body else { panic!("no body is in chunks") };
                assert!(found.insert(offset, content_of(bytes).expect("it is whole")).is_none(), "each once");
            });
            assert!(!fetched.retry && fetched.error.is_none() && fetched.through > start, "{fetched:?}");
            start = fetched.through;
        }
        found
    }

    fn is_crossed(&self) -> bool {
        let crosses = |live: &BTreeMap<u64, u64>| {
            live.range(1..self.width).count() > 2 && live.range(self.width..).count() > 2
        };
        self.queues.values().all(|model| crosses(&model.live))
    }

    /// Stops cleanly, or kills the process and loses what was not committed.
    fn start_again(&mut self, is_clean: bool) {
        self.copied += self.log.counters().bytes_copied;
        if is_clean {
            if let Some(job) = self.log.closing_commit(self.now()) {
                self.log.commit_done(job.run(&mut self.disk)).expect("the disk is well");
            }
        } else {
            let kept = self.queues.clone();
            self.publish(&QUEUES);
            self.settle(HOLE, Range { start: 0, end: self.width });
            self.disk.power_cut();
            self.queues = kept;
        }
        self.now = 0;
        self.log = open(&self.disk);
        for (queue, model) in &mut self.queues {
            // Holes after the last message are used again, because no client has seen these offsets.
            let next = self.log.index().queues()[queue].next_offset();
            let used = model.live.last_key_value().map_or(0, |(last, _)| last + 1).max(model.marked);
            assert!((used..=model.next).contains(&next), "queue {queue} goes on at {next}: {model:?}");
            model.next = next;
        }
    }
}

#[test]
fn offsets_cross_every_width() {
    for bits in WIDTHS {
        let mut world = DistantOffsets::new(bits);
        world.begin();
        let mut crossed = 0;
        for count in 1..=MESSAGES {
            world.step();
            if count % PER_LIFE == 0 {
                world.rest();
                let is_clean = (count / PER_LIFE).is_multiple_of(2);
                world.start_again(is_clean);
                world.check(if is_clean { "after a clean stop" } else { "after a kill" });
                crossed += u32::from(world.is_crossed());
            } else if count % 50 == 0 {
                // The log does not know a hole at the end.
                QUEUES.into_iter().for_each(|queue| world.publish(&[queue]));
                world.check("as it runs");
            }
        }
        println!("2^{bits}: {} bytes copied, {crossed} starts with messages on both sides", world.copied);
        assert!(world.copied > 20_000 && crossed >= 2, "{} copied, {crossed} starts", world.copied);
        assert!(world.queues.values().all(|model| model.next > world.width + BELOW), "it goes far beyond");
        assert!(world.disk.violations().is_empty());
    }
}
