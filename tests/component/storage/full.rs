//! The disk limit: the log is filled up to it, then everything is settled, in any order and with restarts.
//!
//! A run follows from a seed: `LEVERET_SEED=n` replays one, `LEVERET_SEEDS=n` runs n of them.
//!
//! # Invariants
//! - At the end one segment is left and all others are free, so publishing continues.
//! - The number of files never exceeds the limit, because settlements and copies use the space that they
//!   free. Only if the process is killed repeatedly within a few commits, there are a few more.

use std::io;
use std::os::unix::fs::PermissionsExt;

use leveret_core::time::Now;
use leveret_storage::{
    AppendRefused, Body, Disk, FileDisk, Identity, Log, Message, Range, Record, Settings, Target, Targets,
    Urgency,
};
use leveret_test_support::random::Random;
use leveret_test_support::simulated_disk::{Mutant, SimDisk, Trouble};

use crate::sample::PLAIN;

const IDENTITY: Identity = Identity { id: *b"0123456789abcdef", secret: 0xF111 };
const SEGMENT_BYTES: u32 = 64 << 10;
/// A log without progress after this many rests will never make any.
const WAITS_MAX: u32 = 1_000;

/// Seeds with which the log once made no progress until the next start. Settlements that would have emptied a
/// segment waited for a file or for the compactor, which waited for them.
const WEDGED: [u64; 9] = [174, 312, 318, 510, 534, 576, 594, 648, 666];

/// A disk whose reads fail.
struct Unreadable;

impl Disk for Unreadable {
    fn lock(&mut self) -> io::Result<()> {
        Err(io::ErrorKind::Other.into())
    }

    fn slots(&mut self) -> io::Result<Vec<u32>> {
        Err(io::ErrorKind::Other.into())
    }

    fn create(&mut self, _: u32) -> io::Result<()> {
        Err(io::ErrorKind::Other.into())
    }

    fn read(&mut self, _: u32, _: u64, _: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::Other.into())
    }

    fn write(&mut self, _: u32, _: u64, _: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::Other.into())
    }

    fn zero(&mut self, _: u32, _: u64, _: u32) -> io::Result<()> {
        Err(io::ErrorKind::Other.into())
    }

    fn sync(&mut self, _: u32) -> io::Result<()> {
        Err(io::ErrorKind::Other.into())
    }

    fn remove(&mut self, _: u32) -> io::Result<()> {
        Err(io::ErrorKind::Other.into())
    }

    fn sync_directory(&mut self) -> io::Result<()> {
        Err(io::ErrorKind::Other.into())
    }
}

struct FullLog {
    seed: u64,
    /// The world restarts when the limit is reached, and not afterwards.
    is_calm: bool,
    /// Number of reads of the compactor that will fail, also while it copies.
    reads_to_fail: u32,
    random: Random,
    disk: SimDisk,
    settings: Settings,
    log: Log,
    now: u64,
    next: Vec<u64>,
    files_max: usize,
    restarts: u64,
}

impl FullLog {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let disk = SimDisk::new(seed, Mutant::None, IDENTITY);
        disk.start(Trouble::Never);
        let settings = Settings {
            segment_bytes: SEGMENT_BYTES,
            commit_bytes: 12 << 10,
            segments_max: 4 + random.below(12) as u32,
            ..Settings::default()
        };
        let log = Log::open(&mut disk.clone(), settings.clone(), IDENTITY, Now::from_ms(0)).expect("opens").0;
        let next = vec![0; 1 + random.below(4) as usize];
        let is_calm = seed.is_multiple_of(2);
        let reads_to_fail = match seed % 6 {
            0 => u32::MAX,
            3 => 3,
            _ => 0,
        };
        Self {
            seed,
            is_calm,
            reads_to_fail,
            random,
            disk,
            settings,
            log,
            now: 0,
            next,
            files_max: 0,
            restarts: 0,
        }
    }

    fn now(&self) -> Now {
        Now::from_ms(self.now)
    }

    /// Does everything that the helpers do without a request. Returns whether there was anything.
    fn turn(&mut self) -> bool {
        let now = self.now();
        let mut did = false;
        if let Some(job) = self.log.next_prepare() {
            self.log.prepare_done(job.run(&mut self.disk)).expect("the disk is well");
            did = true;
        }
        if let Some(job) = self.log.next_compaction_read() {
            let fails = self.reads_to_fail > 0 && self.random.once_in(4);
            self.reads_to_fail -= u32::from(fails);
            let done = if fails { job.run(&mut Unreadable) } else { job.run(&mut self.disk) };
            self.log.compaction_read_done(done);
            did = true;
        }
        if let Some(job) = self.log.next_commit(now) {
            self.log.commit_done(job.run(&mut self.disk)).expect("the disk is well");
            did = true;
        }
        self.files_max = self.files_max.max(self.disk.slots().expect("the disk is well").len());
        did
    }

    /// Runs until nothing is left to do.
    fn rest(&mut self) {
        for turns in 0.. {
            assert!(turns < 100_000, "seed {}: the log never comes to rest", self.seed);
            if !self.turn() {
                if self.log.is_idle() || turns > 50_000 {
                    return;
                }
                self.now += 5_000;
                if !self.turn() {
                    return;
                }
            }
        }
    }

    fn publish(&mut self) -> Result<(), AppendRefused> {
        let mut targets = Vec::new();
        for queue in 0..self.next.len() {
            if targets.is_empty() && queue + 1 == self.next.len() || self.random.once_in(2) {
                targets.push(Target { queue: 1 + queue as u64, offset: self.next[queue] });
            }
        }
        let most = if self.random.once_in(5) { 4000 } else { 400 };
        let length = self.random.below(most) as usize;
        let bytes = vec![5; length];
        let body = if self.random.once_in(20) { self.chunks()? } else { Body::Inline(&bytes) };
        let message = Message { targets: Targets::List(&targets), body, ..PLAIN };
        let appended = self.log.append(&Record::Message(message), Urgency::Awaited, self.now());
        if let (Err(refused), Body::Chunked { body, .. }) = (appended, body) {
            self.log.drop_body(body);
            return Err(refused);
        }
        appended?;
        targets.iter().for_each(|target| self.next[target.queue as usize - 1] += 1);
        Ok(())
    }

    /// Writes a large body, whose message is still to come.
    fn chunks(&mut self) -> Result<Body<'static>, AppendRefused> {
        let body = self.log.take_body_id();
        for index in 0..3 {
            let record = Record::Chunk { body, index, bytes: &[6; 2000] };
            if let Err(refused) = self.log.append(&record, Urgency::Awaited, self.now()) {
                self.log.drop_body(body);
                return Err(refused);
            }
        }
        Ok(Body::Chunked { body, chunks: 3, bytes: 6000 })
    }

    /// Publishes until the limit is reached. Returns the number of messages.
    fn fill(&mut self) -> u64 {
        let (mut count, mut waits) = (0, 0);
        loop {
            match self.publish() {
                Ok(()) => (count, waits) = (count + 1, 0),
                Err(AppendRefused::CommitFull) => {
                    waits += 1;
                    assert!(
                        waits < WAITS_MAX,
                        "seed {}: what gathers is never written: {:#?}",
                        self.seed,
                        self.log
                    );
                    self.rest();
                }
                Err(AppendRefused::Disk) => {
                    self.rest();
                    if self.publish().is_err() {
                        return count;
                    }
                }
                Err(AppendRefused::TooLarge) => panic!("nothing is that large"),
            }
        }
    }

    fn live(&self) -> Vec<(u64, u64)> {
        let queues = self.log.index().queues().iter();
        let of = |queue: u64, index: &leveret_storage::QueueIndex| {
            let offsets: Vec<u64> = index.live_ranges().flat_map(|range| range.start..range.end).collect();
            offsets.into_iter().map(move |offset| (queue, offset))
        };
        queues.flat_map(|(queue, index)| of(*queue, index)).collect()
    }

    fn restart(&mut self) {
        if self.random.once_in(2) {
            self.disk.power_cut();
        }
        self.disk.start(Trouble::Never);
        self.restarts += 1;
        self.now = 0;
        let (log, report) =
            Log::open(&mut self.disk.clone(), self.settings.clone(), IDENTITY, self.now()).expect("it opens");
        assert!(report.unwritable.is_none(), "seed {}: {report:?}", self.seed);
        self.log = log;
        self.files_max = self.files_max.max(self.disk.slots().expect("the disk is well").len());
    }

    /// Settles everything, in a random order.
    fn settle_all(&mut self) {
        let restart_every = if self.is_calm { [0, 0] } else { [300, 40] }[self.random.below(2) as usize];
        let is_random = self.random.once_in(2);
        let turns_most = 2 + self.random.below(6);
        for rounds in 0.. {
            assert!(rounds < WAITS_MAX, "seed {}: what is settled is never free: {:#?}", self.seed, self.log);
            let mut live = self.live();
            if live.is_empty() {
                return;
            }
            if is_random {
                for at in (1..live.len()).rev() {
                    live.swap(at, self.random.below(at as u64 + 1) as usize);
                }
            }
            let mut is_restarted = false;
            for (queue, offset) in live {
                let range = Range { start: offset, end: offset + 1 };
                let urgency = if self.random.once_in(50) { Urgency::Awaited } else { Urgency::Lazy };
                self.log.settle(queue, range, urgency, self.now());
                if self.random.once_in(4) {
                    self.now += self.random.below(4_000);
                    for _ in 0..self.random.below(turns_most) {
                        self.turn();
                    }
                }
                if restart_every > 0 && self.random.once_in(restart_every) {
                    self.restart();
                    is_restarted = self.random.once_in(3);
                    if is_restarted {
                        break;
                    }
                }
            }
            if !is_restarted {
                self.rest();
            }
        }
    }
}

fn run(seed: u64) -> FullLog {
    let mut world = FullLog::new(seed);
    for round in 0..3 {
        let count = world.fill();
        let least = u64::from(world.settings.segments_max - 3) * u64::from(SEGMENT_BYTES) / 3000;
        assert!(count > least, "seed {seed}, round {round}: only {count} messages had room");
        let most = if world.is_calm { 2 } else { 30 };
        for _ in 0..world.random.below(most) {
            world.restart();
        }
        world.settle_all();
        world.rest();
        let segments = world.log.index().segments().len();
        assert_eq!(segments, 1, "seed {seed}, round {round}: {:?}", world.log.index().segments());
        assert!(world.log.space().segments_free() + 1 >= world.settings.segments_max as usize, "seed {seed}");
    }
    world
}

#[test]
fn all_that_is_settled_is_free_again() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    if let Some(seed) = number("LEVERET_SEED") {
        run(seed);
        return;
    }
    let (mut beyond, mut restarts) = (0, 0);
    let seeds = 1..=number("LEVERET_SEEDS").unwrap_or(150);
    for seed in seeds.chain(WEDGED) {
        let world = run(seed);
        let most = world.settings.segments_max as usize;
        // An unreadable segment keeps its space, whatever happens to the others.
        let more = if seed.is_multiple_of(3) { most + 3 } else { 3 * usize::from(!world.is_calm) };
        assert!(world.files_max <= most + more, "seed {seed}: too many files");
        beyond += u64::from(world.files_max > most);
        restarts += world.restarts;
    }
    println!("{restarts} restarts; {beyond} runs needed more files than the limit");
}

#[test]
fn a_lowered_limit_removes_surplus_files_at_the_next_start() {
    let home = std::env::temp_dir().join(format!("leveret-lowered-{}", std::process::id()));
    std::fs::create_dir_all(&home).expect("the temporary folder can be written");
    let files = || FileDisk::new(&home).slots().expect("it is there").len();
    let start = |segments_max: u32| {
        let settings = Settings {
            segment_bytes: SEGMENT_BYTES,
            commit_bytes: 12 << 10,
            segments_max,
            ..Settings::default()
        };
        let mut disk = FileDisk::new(&home);
        let log = Log::open(&mut disk, settings, IDENTITY, Now::from_ms(0)).expect("it opens").0;
        (disk, log)
    };
    let (mut disk, mut log) = start(20);
    let targets = [Target { queue: 1, offset: 0 }];
    for offset in 0..100_u64 {
        let message = Message {
            targets: Targets::List(&[Target { offset, ..targets[0] }]),
            body: Body::Inline(&[1; 6_000]),
            ..PLAIN
        };
        log.append(&Record::Message(message), Urgency::Awaited, Now::from_ms(0)).expect("there is room");
        while let Some(job) = log.next_prepare() {
            log.prepare_done(job.run(&mut disk)).expect("the disk is well");
        }
        let job = log.next_commit(Now::from_ms(0)).expect("one is due");
        log.commit_done(job.run(&mut disk)).expect("the disk is well");
    }
    let all = Range { start: 0, end: 100 };
    log.settle(1, all, Urgency::Awaited, Now::from_ms(0));
    while let Some(job) = log.next_commit(Now::from_ms(0)) {
        log.commit_done(job.run(&mut disk)).expect("the disk is well");
    }
    drop((disk, log));
    let before = files();
    assert!(before > 10, "{before} files");
    for entry in std::fs::read_dir(&home).expect("it is there") {
        let file = entry.and_then(|entry| entry.metadata()).expect("it is there");
        assert_eq!(file.permissions().mode() & 0o077, 0, "other users cannot read messages and hashes");
    }
    drop(start(20));
    assert_eq!(files(), before, "the limit is as it was");
    drop(start(6));
    assert!((4..=6).contains(&files()), "{} files", files());
    std::fs::remove_dir_all(&home).expect("it can go");
}
