//! Definitions survive the loss of any block, and of any full segment, because they are stored twice.
//! Retained messages are stored once.

use std::collections::{BTreeMap, BTreeSet};

use leveret_core::definition::{self, Definition};
use leveret_core::time::Now;
use leveret_storage::{
    BLOCK_BYTES, Body, Disk, Identity, Log, Message, Record, Report, Settings, Target, Targets, Urgency,
};
use leveret_test_support::simulated_disk::{Mutant, SimDisk, Trouble};

use crate::sample::PLAIN;

const IDENTITY: Identity = Identity { id: *b"0123456789abcdef", secret: 0xDEF };
const SEGMENT_BYTES: u32 = 64 << 10;

type Defined = BTreeMap<Vec<u8>, Vec<u8>>;

fn settings(segments_max: u32) -> Settings {
    Settings { segment_bytes: SEGMENT_BYTES, commit_bytes: 12 << 10, segments_max, ..Settings::default() }
}

/// A store with a log, driven like the event loop.
struct Store {
    disk: SimDisk,
    log: Log,
    now: Now,
    version: u64,
    offset: u64,
    defined: Defined,
}

impl Store {
    fn new(segments_max: u32) -> Self {
        let disk = SimDisk::new(1, Mutant::None, IDENTITY);
        disk.start(Trouble::Never);
        let now = Now::from_ms(1);
        let log = Log::open(&mut disk.clone(), settings(segments_max), IDENTITY, now).expect("it opens").0;
        let version = u64::from(log.epoch()) << 32;
        Self { disk, log, now, version, offset: 0, defined: Defined::new() }
    }

    /// Does what the event loop does until there is nothing to do and all commit windows are over.
    fn rest(&mut self) {
        let (mut idle, mut rounds) = (0, 0);
        while idle < 3 {
            rounds += 1;
            assert!(rounds < 10_000, "the log writes without end");
            self.now = Now::from_ms(self.now.as_ms() + 10_000);
            idle += 1;
            while let Some(job) = self.log.next_prepare() {
                self.log.prepare_done(job.run(&mut self.disk)).expect("the disk is well");
            }
            while let Some(job) = self.log.next_compaction_read() {
                self.log.compaction_read_done(job.run(&mut self.disk));
                idle = 0;
            }
            if let Some(job) = self.log.next_commit(self.now) {
                self.log.commit_done(job.run(&mut self.disk)).expect("the disk is well");
                idle = 0;
            }
        }
    }

    fn define(&mut self, key: &str, value: Option<&str>) {
        // The first byte marks a key that is neither access nor known here.
        self.define_key([&[0xFF], key.as_bytes()].concat(), value);
    }

    fn define_key(&mut self, key: Vec<u8>, value: Option<&str>) {
        self.version += 1;
        let record = Record::Defined { version: self.version, key: &key, value: value.map(str::as_bytes) };
        while self.log.append_reserved(&record, Urgency::Awaited, self.now).is_err() {
            self.rest();
        }
        match value {
            Some(value) => drop(self.defined.insert(key, value.as_bytes().to_vec())),
            None => drop(self.defined.remove(&key)),
        }
    }

    /// Publishes a message of 2 KB to some queues.
    fn publish(&mut self, queues: &[u64], offset: u64) {
        let targets: Vec<Target> = queues.iter().map(|queue| Target { queue: *queue, offset }).collect();
        let message = Message { targets: Targets::List(&targets), body: Body::Inline(&[7; 2_000]), ..PLAIN };
        while self.log.append(&Record::Message(message), Urgency::Awaited, self.now).is_err() {
            self.rest();
        }
    }

    /// Publishes messages of 2 KB, of which only every hundredth stays.
    fn traffic(&mut self, messages: u64) {
        for _ in 0..messages {
            self.publish(&[1], self.offset);
            if !self.offset.is_multiple_of(100) {
                let range = leveret_storage::Range { start: self.offset, end: self.offset + 1 };
                self.log.settle(1, range, Urgency::Lazy, self.now);
            }
            self.offset += 1;
        }
        self.rest();
    }

    /// Returns the content of every file.
    fn files(&self) -> Vec<(u32, Vec<u8>)> {
        let mut disk = self.disk.clone();
        let slots = disk.slots().expect("the disk is well");
        let read = |slot| {
            let mut bytes = vec![0; SEGMENT_BYTES as usize];
            disk.read(slot, 0, &mut bytes).expect("the disk is well");
            (slot, bytes)
        };
        slots.into_iter().map(read).collect()
    }
}

/// Opens a store with these files.
fn opened(files: &[(u32, Vec<u8>)]) -> (SimDisk, Log, Report) {
    let mut disk = SimDisk::new(1, Mutant::None, IDENTITY);
    disk.start(Trouble::Never);
    for (slot, bytes) in files {
        disk.create(*slot).expect("the disk is well");
        disk.write(*slot, 0, bytes).expect("the disk is well");
        disk.sync(*slot).expect("the disk is well");
    }
    disk.sync_directory().expect("the disk is well");
    let opened = Log::open(&mut disk, settings(30), IDENTITY, Now::from_ms(1));
    let (log, report) = opened.expect("a damaged block hides no store");
    (disk, log, report)
}

/// Returns what a start finds in these files.
fn found_in(files: &[(u32, Vec<u8>)]) -> (Defined, u64, Report) {
    let (mut disk, log, report) = opened(files);
    let mut defined = Defined::new();
    let damaged = log
        .read_definitions(&mut disk, |key, value, _| drop(defined.insert(key.to_vec(), value.to_vec())))
        .expect("it can be read");
    // The state of the access definitions does not matter here.
    defined.retain(|key, _| key[0] != 0);
    (defined, damaged, report)
}

/// Compares found and expected definitions.
fn differences(found: &Defined, expected: &Defined, of: &str) {
    let text = |key: &Vec<u8>| String::from_utf8_lossy(&key[1..]).into_owned();
    let lost: Vec<_> =
        expected.keys().filter(|key| found.get(*key) != expected.get(*key)).map(text).collect();
    let back: Vec<_> = found.keys().filter(|key| !expected.contains_key(*key)).map(text).collect();
    assert!(lost.is_empty() && back.is_empty(), "{of}: lost {lost:?}, came back {back:?}");
}

/// Zeroes each block with a part of a definition, one after the other. Returns their number.
fn zero_each_block(files: &[(u32, Vec<u8>)], expected: &Defined) -> usize {
    let mut count = 0;
    for at in 0..files.len() {
        for block in (0..SEGMENT_BYTES as usize).step_by(BLOCK_BYTES) {
            if files[at].1[block..block + BLOCK_BYTES].iter().all(|byte| *byte == 0) {
                continue;
            }
            let mut damaged = files.to_vec();
            damaged[at].1[block..block + BLOCK_BYTES].fill(0);
            let (found, unread, _) = found_in(&damaged);
            let of = format!("block {block} of file {}", files[at].0);
            differences(&found, expected, &of);
            assert_eq!(unread, 0, "{of}");
            count += 1;
        }
    }
    count
}

#[test]
fn no_block_of_a_store_at_rest_takes_a_definition() {
    let mut store = Store::new(30);
    for n in 0..100 {
        store.define(&format!("queue {n}"), Some(&format!("value {n}")));
        if n % 50 == 0 {
            store.rest();
        }
    }
    for n in (0..100).step_by(7) {
        store.define(&format!("queue {n}"), (n % 2 == 0).then_some("another value"));
    }
    store.rest();
    assert_eq!(store.log.index().segments().len(), 1);
    let in_one = zero_each_block(&store.files(), &store.defined.clone());
    store.traffic(60);
    store.define("late", Some("and newer"));
    store.rest();
    let segments = store.log.index().segments().len();
    assert!(segments > 1, "{segments}");
    let in_some = zero_each_block(&store.files(), &store.defined.clone());
    assert!(in_one > 5 && in_some > in_one, "{in_one}, {in_some}");
}

#[test]
fn no_full_segment_takes_a_definition() {
    let mut store = Store::new(30);
    for n in 0..40 {
        store.define(&format!("queue {n}"), Some(&format!("value {n}")));
        store.traffic(3);
        if n % 5 == 4 {
            store.define(&format!("queue {}", n - 4), None);
        }
    }
    store.rest();
    let files = store.files();
    let segments: Vec<u32> = store.log.index().segments().values().map(|segment| segment.slot).collect();
    assert!(segments.len() > 4, "{segments:?}");
    for slot in &segments[..segments.len() - 1] {
        let mut damaged = files.clone();
        let file = damaged.iter_mut().find(|(other, _)| other == slot).expect("it is there");
        file.1[BLOCK_BYTES..].fill(0);
        let (found, _, report) = found_in(&damaged);
        differences(&found, &store.defined, &format!("file {slot}"));
        assert!(report.is_damaged());
    }
}

#[test]
fn duplicate_definitions_cost_next_to_nothing_and_are_copied_by_the_compactor() {
    let mut store = Store::new(12);
    for n in 0..150 {
        store.define(&format!("a queue with a name of some length, number {n}"), Some(&"v".repeat(60)));
    }
    store.rest();
    store.traffic(3_000);
    let files = store.files();
    let recycled = store.log.counters().segments_recycled;
    assert!(recycled > 50, "{recycled} segments were used again");
    assert!(zero_each_block(&files, &store.defined.clone()) > 20);
    let records: usize = store.defined.iter().map(|(key, value)| key.len() + value.len() + 20).sum();
    // The compactor has copied them each time their segments were deleted.
    let (payload, copied) = (store.log.counters().payload_bytes, store.log.counters().bytes_replicated);
    assert!(copied * 100 <= payload * 2, "{copied} bytes for {payload}");
    println!("{records} bytes of definitions, {payload} of messages, {copied} copied");
    assert!(payload >= 3_000 * 2_000);
}

/// Retained messages change as often as other messages, and have one copy like these.
#[test]
fn retained_messages_are_written_once_and_copied_by_the_compactor() {
    let mut store = Store::new(12);
    let key = |n: u32| {
        Definition::Retained(definition::Retained {
            vhost: "/",
            key: &n.to_string(),
            qos: 1,
            payload: &[],
            ..Default::default()
        })
        .key()
        .into_vec()
    };
    for n in 0..60 {
        store.define_key(key(n % 40), Some(&n.to_string()));
    }
    store.define_key(key(7), None);
    store.rest();
    store.traffic(3_000);
    let counters = store.log.counters();
    assert!(counters.segments_recycled > 50 && counters.bytes_replicated == 0, "{counters:?}");
    let (found, _, report) = found_in(&store.files());
    assert!(!report.is_damaged());
    assert_eq!(found, store.defined);
}

/// Names that fill more than a segment, as on the largest board. They are copied one record at a time, over
/// as many segments as necessary. Afterwards they cost next to nothing.
#[test]
fn names_that_fill_a_segment_are_stored_twice_and_cost_little() {
    let mut store = Store::new(200);
    for n in 0..250 {
        store.define(&format!("{n:0>255}"), Some(&"v".repeat(40)));
    }
    store.rest();
    let records: u64 = store.defined.iter().map(|(key, value)| (key.len() + value.len() + 20) as u64).sum();
    assert!(records > u64::from(SEGMENT_BYTES), "{records}");
    let first = store.log.counters().bytes_replicated;
    assert!(first < 3 * records, "{first} bytes for {records}");
    store.traffic(9_000);
    let counters = store.log.counters();
    let (payload, copied) = (counters.payload_bytes, counters.bytes_replicated - first);
    println!("{records} bytes of definitions, {payload} of messages, {copied} copied after {first}");
    assert!(counters.segments_recycled > 20 && copied * 100 <= payload * 2, "{copied} bytes for {payload}");
    let files = store.files();
    let segments: Vec<u32> = store.log.index().segments().values().map(|segment| segment.slot).collect();
    for slot in segments[..segments.len() - 1].iter().step_by(7) {
        let mut damaged = files.clone();
        let file = damaged.iter_mut().find(|(other, _)| other == slot).expect("it is there");
        file.1[BLOCK_BYTES..].fill(0);
        let (found, ..) = found_in(&damaged);
        differences(&found, &store.defined, &format!("file {slot}"));
    }
}

/// Definitions are in the footer as they are. A segment ends before its footer takes more than a commit's bytes of memory,
/// and if no other segment is free, it gets no footer. Neither loses a definition.
#[test]
fn a_segment_of_definitions_ends_before_its_footer_is_large() {
    for (segments_max, segments_used_min) in [(100, 12), (6, 2)] {
        let mut store = Store::new(segments_max);
        for n in 0..1_000 {
            store.define(&format!("{:0>200}", n % 250), Some(&"v".repeat(40 + n / 250)));
            if n == 249 {
                let used = store.log.index().segments().len();
                assert!(used >= segments_used_min, "{used} of {segments_max} segments");
            }
        }
        store.rest();
        let (found, damaged, _) = found_in(&store.files());
        differences(&found, &store.defined, &format!("{segments_max} segments"));
        assert_eq!(damaged, 0);
    }
}

/// Returns the definition of queue `n`, and the incarnation that its messages refer to.
fn queue(name: &str, n: u64) -> (Box<[u8]>, Box<[u8]>, u64) {
    let (vhost, incarnation, arguments) = ("/", (1 << 32) + 1_000_000 + n, &[][..]);
    let (auto_delete, is_rebuilt, priorities_from) = (false, false, 0);
    let definition = Definition::Queue(definition::Queue {
        vhost,
        name,
        incarnation,
        auto_delete,
        is_rebuilt,
        priorities_from,
        arguments,
    });
    (definition.key(), definition.value(), incarnation)
}

/// Each footer contains a limited number of names, and the next one continues after them. A few segments name
/// all queues.
#[test]
fn footers_name_in_turn_the_queues_that_have_messages_in_their_segments() {
    let mut store = Store::new(60);
    let names: Vec<String> = (0..6).map(|n| format!("{n:0>150}")).collect();
    let queues: Vec<_> = names.iter().zip(0..).map(|(name, n)| queue(name, n)).collect();
    for (key, value, _) in &queues {
        store.version += 1;
        let record = Record::Defined { version: store.version, key, value: Some(value) };
        store.log.append_reserved(&record, Urgency::Awaited, store.now).expect("there is room");
    }
    store.rest();
    for offset in 0..60 {
        // The last one has no messages anywhere.
        for (.., incarnation) in &queues[..5] {
            store.publish(&[*incarnation], offset);
        }
    }
    store.rest();
    assert!(store.log.index().segments().len() > 5);
    let all = queues.iter().map(|(.., incarnation)| *incarnation).collect();
    let found = store.log.read_names(&mut store.disk.clone(), &all).expect("the disk is well");
    // The definition of the last one is in a footer, too.
    let expected = queues.iter().map(|(key, _, incarnation)| (*incarnation, key.clone())).collect();
    assert_eq!(found, expected);
    // Full segments that define nothing contain a few names each, and together all five.
    let files = store.files();
    let (mut counts, mut named) = (Vec::new(), BTreeSet::new());
    for (_, bytes) in &files {
        let defines = |at: &usize| queues.iter().any(|(key, ..)| bytes[*at..].starts_with(key));
        let places: Vec<usize> = (0..bytes.len()).filter(defines).collect();
        let has_commits = places.iter().any(|at| *at < 48 << 10);
        if !places.is_empty() && !has_commits {
            counts.push(places.len());
            named.extend(places.iter().map(|at| bytes[at + 4..at + 4 + 150].to_vec()));
        }
    }
    // 512 bytes, with some 180 each.
    assert!(counts.len() > 3 && counts.iter().all(|count| *count == 2), "{counts:?}");
    assert_eq!(named.len(), 5, "{counts:?}");
}

/// Segments with the first versions of deleted definitions stay, so the deletions are written again when their own segment is
/// removed. They take more than half of what a footer can have, so two commits with them need two footers.
#[test]
fn deletions_that_fill_half_a_footer_are_not_written_without_end() {
    let mut store = Store::new(128);
    let key = |number: u32| format!("{number}{}", "-".repeat(100));
    for number in 0..60 {
        store.define(&key(number), Some("deleted later"));
        store.define(&format!("stays {number}"), Some("stays"));
    }
    store.rest();
    store.traffic(90);
    (0..60).for_each(|number| store.define(&key(number), None));
    store.rest();
    let before = store.log.counters().commits;
    for round in 0..10 {
        store.traffic(if round == 0 { 9 } else { 50 });
    }
    assert!(store.log.counters().commits - before < 1_000);
}

/// One full segment contains the deletion of a queue, others its messages. Without a copy of the deletion
/// they would come back with the loss of that segment.
#[test]
fn no_full_segment_takes_a_deletion() {
    let mut store = Store::new(60);
    for offset in 0..120 {
        // Another queue keeps the segments with the messages of the first.
        store.publish(if offset < 60 { &[1, 2] } else { &[2] }, offset);
        if offset == 75 {
            let gone = Record::Gone { queue: 1 };
            store.log.append_reserved(&gone, Urgency::Awaited, store.now).expect("there is room");
            store.rest();
        }
    }
    store.rest();
    let files = store.files();
    let segments: Vec<u32> = store.log.index().segments().values().map(|segment| segment.slot).collect();
    assert!(segments.len() > 3, "{segments:?}");
    for slot in &segments[..segments.len() - 1] {
        let mut damaged = files.clone();
        let file = damaged.iter_mut().find(|(other, _)| other == slot).expect("it is there");
        file.1[BLOCK_BYTES..].fill(0);
        let queues = opened(&damaged).1.index().queues_with_messages();
        assert!(!queues.contains(&1) && queues.contains(&2), "file {slot}: {queues:?}");
    }
}
