//! A directory that a broker writes at the same time, and a card of which some blocks cannot be read.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use leveret_cli::inspect::Verdict;
use leveret_core::definition::{self, Definition};
use leveret_core::time::Now;
use leveret_storage::{
    AppendRefused, Body, Disk, FileDisk, Log, Message, Range, Record, Target, Targets, Urgency,
};

use super::inspected;
use super::traffic::{Directory, IDENTITY, SEGMENT_BYTES, Sent, Traffic};
use leveret_test_support::built_program::patience;
use leveret_test_support::simulated_disk::SimDisk;

/// A broker's log over real files, as busy as it can be: one queue, a window of live messages.
fn write_until(
    done: &AtomicBool,
    directory: &std::path::Path,
    sent: &Mutex<BTreeMap<u64, Vec<u8>>>,
    commits: &AtomicU64,
) {
    let mut disk = FileDisk::new(directory);
    let (start, now) = (Instant::now(), Now::from_ms(0));
    let (mut log, _) = Log::open(&mut disk, Traffic::settings(), IDENTITY, now).expect("it opens");
    let queue = Definition::Queue(definition::Queue {
        vhost: "/",
        name: "queue \"1\"",
        incarnation: 1,
        ..Default::default()
    });
    let (key, value) = (queue.key(), queue.value());
    let defined = Record::Defined { version: 1, key: &key, value: Some(&value) };
    log.append(&defined, Urgency::Awaited, now).expect("there is room");
    let (mut offset, mut settled, mut window) = (0_u64, 0, 60);
    while !done.load(Ordering::Relaxed) {
        let now = Now::from_ms(start.elapsed().as_millis() as u64);
        let body = format!("body {offset} {}", "x".repeat(offset as usize % 900)).into_bytes();
        let message = Record::Message(Message {
            targets: Targets::List(&[Target { queue: 1, offset }]),
            enqueued_ms: 0,
            expiration_ms: None,
            exchange: b"amq.topic",
            key: b"k",
            properties: &[0x10, 0, 2],
            body: Body::Inline(&body),
        });
        sent.lock().expect("nobody panics with it").insert(offset, body.clone());
        match log.append(&message, Urgency::Awaited, now) {
            Ok(_) => offset += 1,
            Err(AppendRefused::CommitFull) => {}
            // Consumers continue when the disk is full.
            Err(AppendRefused::Disk) => window = 5,
            Err(AppendRefused::TooLarge) => panic!("it is small"),
        }
        if offset > settled + window {
            // Some stay longer, for the cleaner to copy.
            let keep = u64::from(settled.is_multiple_of(20));
            log.settle(1, Range { start: settled + keep, end: settled + 5 }, Urgency::Lazy, now);
            (settled, window) = (settled + 5, 60);
            if let Some(end) = settled.checked_sub(1000) {
                log.settle(1, Range { start: end.saturating_sub(20), end }, Urgency::Lazy, now);
            }
        }
        while let Some(job) = log.next_prepare() {
            log.prepare_done(job.run(&mut disk)).expect("the disk is well");
        }
        if let Some(job) = log.next_compaction_read() {
            log.compaction_read_done(job.run(&mut disk));
        }
        if let Some(job) = log.next_commit(now) {
            log.commit_done(job.run(&mut disk)).expect("the disk is well");
            commits.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Ends the writer, whatever the test comes to.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn beside_a_broker_that_writes_nothing_is_called_damaged() {
    let directory = Directory::with("live", &BTreeMap::new());
    let (done, sent, commits) = (AtomicBool::new(false), Mutex::new(BTreeMap::new()), AtomicU64::new(0));
    thread::scope(|scope| {
        scope.spawn(|| write_until(&done, directory.path(), &sent, &commits));
        let ending = Ending(&done);
        let start = Instant::now();
        let (mut runs, mut messages, mut again) = (0, 0, 0);
        // As long as it has to be for all that is wanted below, and no shorter than this.
        while start.elapsed() < Duration::from_secs(6)
            || (runs <= 3 || messages <= 50 || commits.load(Ordering::Relaxed) <= 500)
                && start.elapsed() < patience(60)
        {
            if commits.load(Ordering::Relaxed) < 50 {
                thread::sleep(Duration::from_millis(5));
                continue;
            }
            let found = inspected(directory.path()).expect("it is a store");
            assert_eq!(found.verdict, Verdict::Good, "{}", found.report);
            let me = format!("broker     process {} uses the directory", std::process::id());
            assert!(found.report.contains(&me), "{}", found.report);
            let sent = sent.lock().expect("nobody panics with it");
            for ((queue, offset), Sent { body, .. }) in &found.messages {
                assert_eq!((*queue, sent.get(offset)), (1, Some(body)), "{offset} is altered");
            }
            runs += 1;
            messages += found.messages.len();
            again +=
                u64::from(found.report.contains("recycled") || found.report.contains("were being written"));
        }
        drop(ending);
        println!("{runs} runs, {messages} messages, {again} caught something in motion, {commits:?} commits");
        assert!(runs > 3 && messages > 50 && commits.load(Ordering::Relaxed) > 500);
    });
    let names: BTreeSet<_> = std::fs::read_dir(directory.path())
        .expect("it is there")
        .map(|entry| entry.expect("it is there").file_name().to_string_lossy().into_owned())
        .filter(|name| !name.ends_with(".seg"))
        .collect();
    assert_eq!(names, BTreeSet::from(["lock".to_string(), "newest".to_string()]), "nothing is left behind");
}

/// A disk that refuses to read some blocks.
struct Worn {
    disk: SimDisk,
    refused: BTreeSet<(u32, u64)>,
}

impl Disk for Worn {
    fn lock(&mut self) -> io::Result<()> {
        panic!("a scan takes no lock")
    }

    fn slots(&mut self) -> io::Result<Vec<u32>> {
        self.disk.slots()
    }

    fn create(&mut self, _: u32) -> io::Result<()> {
        panic!("a scan writes nothing")
    }

    fn read(&mut self, slot: u32, at: u64, bytes: &mut [u8]) -> io::Result<usize> {
        let count = self.disk.read(slot, at, bytes)?;
        let mut blocks = at / 4096..=(at + count as u64).saturating_sub(1) / 4096;
        if count > 0 && blocks.any(|block| self.refused.contains(&(slot, block))) {
            return Err(io::Error::from_raw_os_error(5));
        }
        Ok(count)
    }

    fn write(&mut self, _: u32, _: u64, _: &[u8]) -> io::Result<()> {
        panic!("a scan writes nothing")
    }

    fn zero(&mut self, _: u32, _: u64, _: u32) -> io::Result<()> {
        panic!("a scan writes nothing")
    }

    fn sync(&mut self, _: u32) -> io::Result<()> {
        panic!("a scan writes nothing")
    }

    fn sync_directory(&mut self) -> io::Result<()> {
        panic!("a scan writes nothing")
    }
}

#[test]
fn unreadable_blocks_are_reported_and_skipped() {
    let mut least = u64::MAX;
    for seed in 1..=40 {
        let mut traffic = Traffic::aged(seed, 2, 600);
        let (whole, _) = Log::inspect(&mut traffic.disk.clone()).expect("it is a store");
        let total = Traffic::live_in(&whole).len() as u64;
        let slots: Vec<u32> = whole.index().segments().values().map(|segment| segment.slot).collect();
        let slot = slots[traffic.random.below(slots.len() as u64) as usize];
        let block = traffic.random.below(u64::from(SEGMENT_BYTES) / 4096);
        let refused = BTreeSet::from([(slot, block), (slot, block + 1)]);
        let mut disk = Worn { disk: traffic.disk.clone(), refused };
        let (log, report) = Log::inspect(&mut disk).expect("it is a store");
        let is_told = report.refused.iter().any(|refused| *refused == (slot, block as u32 * 4096));
        assert!(is_told, "seed {seed}: {report:?}");
        let mut left = BTreeSet::new();
        log.read_live(&mut disk, |record| {
            if let Record::Message(message) = record {
                left.extend(log.live_targets(message));
            }
        })
        .expect("it reads around them");
        least = least.min(left.len() as u64 * 100 / total);
    }
    println!("at least {least} % of the messages are left");
    assert!(least >= 50);
}
