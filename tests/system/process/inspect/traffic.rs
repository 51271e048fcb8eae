//! Stores made by random traffic over several runs, on a simulated disk that can lose power, and then as files.
//!
//! A store is a function of its seed. Every published message is remembered, so exported messages can be compared
//! with published ones.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use leveret_core::definition::{self, Definition};
use leveret_core::time::Now;
use leveret_storage::{
    AppendRefused, Body, Disk, Identity, Log, Message, Range, Record, Report, Settings, Target, Targets,
    Urgency,
};

use leveret_test_support::random::Random;
use leveret_test_support::simulated_disk::{Mutant, SimDisk, Trouble};

pub(crate) const IDENTITY: Identity = Identity { id: *b"0123456789abcdef", secret: 0x0005_EC2E_7000_0001 };
pub(crate) const SEGMENT_BYTES: u32 = 64 << 10;

/// A message as it was published.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sent {
    pub(crate) key: String,
    pub(crate) properties: Vec<u8>,
    pub(crate) body: Vec<u8>,
}

/// A store and everything that was put into it.
pub(crate) struct Traffic {
    pub(crate) random: Random,
    pub(crate) disk: SimDisk,
    log: Option<Log>,
    now: u64,
    /// The next offset of each queue.
    queues: BTreeMap<u64, u64>,
    pub(crate) sent: BTreeMap<(u64, u64), Sent>,
    count: u64,
}

impl Traffic {
    pub(crate) fn new(seed: u64) -> Self {
        let disk = SimDisk::new(seed ^ 0xD15C, Mutant::None, IDENTITY);
        let mut random = Random::new(seed);
        let queues = (1..=1 + random.below(4)).map(|queue| (queue, 0)).collect();
        Self { random, disk, log: None, now: 0, queues, sent: BTreeMap::new(), count: 0 }
    }

    /// Returns a store on which the broker has run several times. No run was cut short.
    pub(crate) fn aged(seed: u64, runs: u64, steps: u64) -> Self {
        let mut traffic = Self::new(seed);
        for _ in 0..runs {
            traffic.live(Trouble::Never, steps);
        }
        traffic
    }

    pub(crate) fn settings() -> Settings {
        Settings {
            segment_bytes: SEGMENT_BYTES,
            commit_bytes: 16 << 10,
            segments_max: 10,
            commit_window_ms: 20,
            confirm_window_ms: 5,
            settle_window_ms: 40,
            syncs_per_s: 0,
            index_bytes: 2 << 20,
            sync_burst: 10,
            ..Settings::default()
        }
    }

    /// Opens the store; it may be too full to be written.
    pub(crate) fn open(&self) -> Option<(Log, Report)> {
        Log::open(&mut self.disk.clone(), Self::settings(), IDENTITY, Now::from_ms(0)).ok()
    }

    /// One run of the broker, from its start to its end.
    pub(crate) fn live(&mut self, trouble: Trouble, steps: u64) {
        self.disk.start(trouble);
        self.now = 0;
        self.log = self.open().filter(|(_, report)| report.unwritable.is_none()).map(|(log, _)| log);
        if let Some(log) = &self.log {
            for (queue, next) in &mut self.queues {
                *next = log.index().queues().get(queue).map_or(*next, |known| known.next_offset()).max(*next);
            }
        }
        let queues: Vec<u64> = self.queues.keys().copied().collect();
        queues.into_iter().for_each(|queue| self.define_queue(queue));
        for _ in 0..steps {
            if self.log.is_none() {
                return;
            }
            self.step();
        }
        // Commits in progress are completed; gathered entries are lost with the process.
        self.commit();
        self.log = None;
    }

    fn step(&mut self) {
        self.now += self.random.below(4);
        match self.random.below(24) {
            0..12 => self.publish(),
            12 => self.publish_large(),
            13..18 => self.settle(),
            18 => self.define(),
            19 => self.clean(),
            _ => self.commit(),
        }
    }

    fn commit(&mut self) {
        let Some(log) = self.log.as_mut() else { return };
        while let Some(job) = log.next_prepare() {
            if log.prepare_done(job.run(&mut self.disk)).is_err() {
                self.log = None;
                return;
            }
        }
        if let Some(job) = log.next_commit(Now::from_ms(self.now))
            && log.commit_done(job.run(&mut self.disk)).is_err()
        {
            self.log = None;
        }
    }

    fn clean(&mut self) {
        let Some(log) = self.log.as_mut() else { return };
        if let Some(job) = log.next_compaction_read() {
            log.compaction_read_done(job.run(&mut self.disk));
        }
    }

    fn append(&mut self, record: &Record<'_>) -> Result<(), AppendRefused> {
        let now = Now::from_ms(self.now);
        match self.log.as_mut() {
            Some(log) => log.append(record, Urgency::Awaited, now).map(drop),
            None => Err(AppendRefused::Disk),
        }
    }

    fn body(&mut self, bytes: u64) -> Vec<u8> {
        let text = self.random.once_in(2);
        let letter =
            |random: &mut Random| random.below(if text { 95 } else { 256 }) as u8 + 32 * u8::from(text);
        (0..bytes).map(|_| letter(&mut self.random)).collect()
    }

    fn publish(&mut self) {
        let length = if self.random.once_in(9) { 3000 } else { self.random.below(400) };
        let body = self.body(length);
        self.publish_body(body, None);
    }

    fn publish_large(&mut self) {
        let length = 4000 + self.random.below(9000);
        let bytes = self.body(length);
        let Some(body) = self.log.as_mut().map(Log::take_body_id) else { return };
        let mut chunks = 0;
        for part in bytes.chunks(2900) {
            if self.append(&Record::Chunk { body, index: chunks, bytes: part }).is_err() {
                if let Some(log) = self.log.as_mut() {
                    log.drop_body(body);
                }
                return;
            }
            chunks += 1;
            if self.random.once_in(3) {
                self.commit();
            }
        }
        self.publish_body(bytes, Some((body, chunks)));
    }

    fn publish_body(&mut self, body: Vec<u8>, chunked: Option<(u64, u32)>) {
        let first = self.random.below(self.queues.len() as u64) as usize;
        let more = if self.random.once_in(4) { 2 } else { 1 };
        let queues: Vec<(u64, u64)> =
            self.queues.iter().skip(first).take(more).map(|(q, o)| (*q, *o)).collect();
        let targets: Vec<Target> = queues.iter().map(|&(queue, offset)| Target { queue, offset }).collect();
        self.count += 1;
        let sent = Sent { key: format!("key.{}", self.count), properties: vec![0x10, 0, 2], body };
        let message = Message {
            targets: Targets::List(&targets),
            enqueued_ms: self.now,
            expiration_ms: None,
            exchange: b"amq.topic",
            key: sent.key.as_bytes(),
            properties: &sent.properties,
            body: match chunked {
                Some((id, chunks)) => Body::Chunked { body: id, chunks, bytes: sent.body.len() as u64 },
                None => Body::Inline(&sent.body),
            },
        };
        if self.append(&Record::Message(message)).is_ok() {
            for (queue, offset) in queues {
                self.queues.insert(queue, offset + 1);
                self.sent.insert((queue, offset), sent.clone());
            }
        }
    }

    /// Mostly the oldest, sometimes one in the middle.
    fn settle(&mut self) {
        let at = self.random.below(self.queues.len() as u64) as usize;
        let Some((&queue, &next)) = self.queues.iter().nth(at) else { return };
        let length = 1 + self.random.below(6);
        let start = if self.random.once_in(5) {
            self.random.below(next + 1)
        } else {
            let log = self.log.as_ref();
            log.and_then(|log| log.index().queues().get(&queue)).map_or(0, |known| {
                known
                    .settled
                    .iter_from(0)
                    .next()
                    .filter(|range| range.start == 0)
                    .map_or(0, |range| range.end)
            })
        };
        let (range, now) = (Range { start, end: (start + length).min(next) }, Now::from_ms(self.now));
        if let Some(log) = self.log.as_mut().filter(|_| range.start < range.end) {
            log.settle(queue, range, Urgency::Lazy, now);
        }
    }

    /// Declares a queue, once more with every call; it is called after its number.
    fn define(&mut self) {
        let at = self.random.below(self.queues.len() as u64) as usize;
        if let Some(&incarnation) = self.queues.keys().nth(at) {
            self.define_queue(incarnation);
        }
    }

    fn define_queue(&mut self, incarnation: u64) {
        self.count += 1;
        let name = format!("queue \"{incarnation}\"");
        let queue = Definition::Queue(definition::Queue {
            vhost: "/",
            name: &name,
            incarnation,
            ..Default::default()
        });
        let (version, key, value) = (self.count, queue.key(), queue.value());
        let _ = self.append(&Record::Defined { version, key: &key, value: Some(&value) });
    }

    /// The files as they lie on the disk.
    pub(crate) fn files(&self) -> BTreeMap<u32, Vec<u8>> {
        let mut disk = self.disk.clone();
        let mut files = BTreeMap::new();
        for slot in disk.slots().expect("the simulated disk reads") {
            let mut bytes = vec![0; SEGMENT_BYTES as usize];
            let length = disk.read(slot, 0, &mut bytes).expect("the simulated disk reads");
            bytes.truncate(length);
            files.insert(slot, bytes);
        }
        files
    }

    /// The messages of a log: all pairs of queue and offset.
    pub(crate) fn live_in(log: &Log) -> Vec<(u64, u64)> {
        let mut live = Vec::new();
        for (&queue, known) in log.index().queues().iter().filter(|(_, known)| !known.gone) {
            live.extend(known.live_ranges().flat_map(|range| range.start..range.end).map(|at| (queue, at)));
        }
        live
    }
}

/// A directory of its own for each store, removed in the end.
pub(crate) struct Directory(PathBuf);

impl Directory {
    pub(crate) fn with(name: &str, files: &BTreeMap<u32, Vec<u8>>) -> Self {
        let path = std::env::temp_dir().join(format!("leveret-inspect-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).expect("the temporary folder can be written");
        let directory = Self(path);
        directory.fill(files);
        directory
    }

    pub(crate) fn fill(&self, files: &BTreeMap<u32, Vec<u8>>) {
        for entry in fs::read_dir(&self.0).expect("just made") {
            let _ = fs::remove_file(entry.expect("just made").path());
        }
        for (slot, bytes) in files {
            fs::write(self.0.join(format!("{slot:08}.seg")), bytes)
                .expect("the temporary folder can be written");
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
