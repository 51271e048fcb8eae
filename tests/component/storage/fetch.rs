//! The cost of reading messages back: bytes read per byte of message, counted by the calls to the disk.
//!
//! Footers and other data that is read to find a message count too.

use std::io;

use leveret_core::definition::{Definition, Retained};
use leveret_core::time::Now;
use leveret_storage::{
    AppendRefused, Body, Disk, Identity, Log, Message, Range, Record, Settings, Target, Targets, Urgency,
};
use leveret_test_support::simulated_disk::{Mutant, SimDisk, Trouble};

use crate::sample::{PLAIN, USUAL};

const IDENTITY: Identity = Identity { id: *b"0123456789abcdef", secret: 7 };
const NOW: Now = Now::from_ms(1);
const ALL: Range = Range { start: 0, end: u64::MAX };

fn settings() -> Settings {
    Settings { segments_max: 100, ..Settings::default() }
}

fn open(disk: &SimDisk) -> Log {
    disk.start(Trouble::Never);
    Log::open(&mut disk.clone(), settings(), IDENTITY, NOW).expect("it opens").0
}

fn commit(log: &mut Log, disk: &mut SimDisk) {
    while let Some(job) = log.next_prepare() {
        log.prepare_done(job.run(disk)).expect("the disk is well");
    }
    if let Some(job) = log.next_commit(NOW) {
        log.commit_done(job.run(disk)).expect("the disk is well");
    }
}

fn message<'a>(targets: &'a [Target], body: &'a [u8]) -> Record<'a> {
    Record::Message(Message { targets: Targets::List(targets), body: Body::Inline(body), ..USUAL })
}

fn publish(log: &mut Log, disk: &mut SimDisk, targets: &[Target], body: &[u8]) {
    let record = message(targets, body);
    while let Err(refused) = log.append(&record, Urgency::Awaited, NOW) {
        assert_eq!(refused, AppendRefused::CommitFull);
        commit(log, disk);
    }
}

/// Returns a log with `messages` messages of 256 bytes for each of `queues` queues, interleaved.
fn fill(queues: u64, messages: u64) -> (SimDisk, Log, u64) {
    let mut disk = SimDisk::new(1, Mutant::None, IDENTITY);
    let mut log = open(&disk);
    for offset in 0..messages {
        for queue in 1..=queues {
            publish(&mut log, &mut disk, &[Target { queue, offset }], &[7; 256]);
        }
    }
    commit(&mut log, &mut disk);
    let payload = log.counters().payload_bytes;
    (disk, log, payload)
}

/// Fetches from `start` on. Returns the number of messages, and where to continue.
fn fetch(log: &mut Log, disk: &mut SimDisk, queue: u64, start: u64, bytes_max: u32) -> (u64, u64) {
    let job = log.fetch(queue, Range { start, ..ALL }, bytes_max).expect("the buffer is free");
    let (mut count, mut next) = (0, start);
    let fetched = log.fetch_done(job.run(disk), |offset, message| {
        assert!(offset >= next && message.body == Body::Inline(&[7; 256]));
        (count, next) = (count + 1, offset + 1);
    });
    assert!(!fetched.retry && fetched.error.is_none());
    (count, fetched.through)
}

/// Drains all queues, one after the other or in turn. Returns the bytes read and the payload.
fn drain(log: &mut Log, disk: &mut SimDisk, queues: u64, messages: u64, bytes_max: u32) -> (u64, u64) {
    let before = disk.counts();
    for queue in 1..=queues {
        let (mut at, mut count) = (0, 0);
        while at < u64::MAX {
            let (came, next) = fetch(log, disk, queue, at, bytes_max);
            (at, count) = (next, count + came);
        }
        assert_eq!(count, messages, "queue {queue}");
    }
    let after = disk.counts();
    (after.read_bytes - before.read_bytes, after.reads - before.reads)
}

fn drain_in_turn(log: &mut Log, disk: &mut SimDisk, queues: u64, messages: u64, bytes_max: u32) -> u64 {
    let before = disk.counts().read_bytes;
    let mut open: Vec<(u64, u64, u64)> = (1..=queues).map(|queue| (queue, 0, 0)).collect();
    while !open.is_empty() {
        for (queue, at, count) in &mut open {
            let (came, next) = fetch(log, disk, *queue, *at, bytes_max);
            (*at, *count) = (next, *count + came);
        }
        open.retain(|(_, at, count)| *at < u64::MAX || *count != messages);
    }
    disk.counts().read_bytes - before
}

#[test]
fn a_thousand_interleaved_queues_cost_three_times_their_payload_at_most() {
    let (mut disk, mut log, payload) = fill(1000, 120);
    for restarted in [false, true] {
        for bytes_max in [4 << 10, 64 << 10] {
            let (single, reads) = drain(&mut log, &mut disk, 1000, 120, bytes_max);
            let in_turn = drain_in_turn(&mut log, &mut disk, 1000, 120, bytes_max);
            println!(
                "fetches of {bytes_max}, restarted {restarted}: {:.2} and {:.2} bytes a byte, {reads} reads",
                single as f64 / payload as f64,
                in_turn as f64 / payload as f64,
            );
            assert!(single <= 3 * payload && in_turn <= 3 * payload);
        }
        drop(log);
        log = open(&disk);
    }
}

#[test]
fn one_queue_alone_costs_about_its_payload() {
    let (mut disk, mut log, payload) = fill(1, 60_000);
    assert!(log.index().queues()[&1].runs.len() <= log.index().segments().len());
    for bytes_max in [16 << 10, 64 << 10, 128 << 10] {
        let (read, reads) = drain(&mut log, &mut disk, 1, 60_000, bytes_max);
        let ratio = read as f64 / payload as f64;
        println!("fetches of {bytes_max}: {ratio:.3} bytes read a byte, {reads} reads");
        assert!(ratio <= 1.25);
    }
}

#[test]
fn a_few_queues_cost_about_their_payload() {
    for queues in [2, 3, 8, 50] {
        let messages = 60_000 / queues;
        let (mut disk, mut log, payload) = fill(queues, messages);
        let (read, reads) = drain(&mut log, &mut disk, queues, messages, 64 << 10);
        let ratio = read as f64 / payload as f64;
        println!("{queues} queues: {ratio:.3} bytes read a byte, {reads} reads");
        assert!(ratio <= 2.4);
    }
}

#[test]
fn settled_offsets_that_were_never_written_use_no_run() {
    let mut disk = SimDisk::new(1, Mutant::None, IDENTITY);
    let mut log = open(&disk);
    for offset in 0..60_000 {
        if offset % 2 == 0 {
            publish(&mut log, &mut disk, &[Target { queue: 1, offset }], &[7; 256]);
        } else {
            log.settle(1, Range { start: offset, end: offset + 1 }, Urgency::Lazy, NOW);
        }
    }
    commit(&mut log, &mut disk);
    commit(&mut log, &mut disk);
    for restarted in [false, true] {
        let queue = &log.index().queues()[&1];
        println!(
            "restarted {restarted}: {} runs in {} segments",
            queue.runs.len(),
            log.index().segments().len()
        );
        assert!(queue.runs.len() <= 2 * log.index().segments().len() && queue.live == 30_000);
        assert_eq!(queue.live_ranges().map(|range| range.end - range.start).sum::<u64>(), 30_000);
        let (_, reads) = drain(&mut log, &mut disk, 1, 30_000, 64 << 10);
        println!("{reads} reads");
        log = open(&disk);
    }
}

#[test]
fn a_large_body_comes_back_chunk_by_chunk() {
    let mut disk = SimDisk::new(1, Mutant::None, IDENTITY);
    let mut log = open(&disk);
    let part = |index: u32| vec![index as u8; 60_000];
    let body = log.take_body_id();
    for index in 0..200 {
        let bytes = part(index);
        while log.append(&Record::Chunk { body, index, bytes: &bytes }, Urgency::Window, NOW).is_err() {
            log.flush();
            commit(&mut log, &mut disk);
        }
    }
    let message = Message {
        targets: Targets::List(&[Target { queue: 1, offset: 0 }]),
        body: Body::Chunked { body, chunks: 200, bytes: 12_000_000 },
        ..PLAIN
    };
    log.append(&Record::Message(message), Urgency::Awaited, NOW).expect("there is room");
    commit(&mut log, &mut disk);
    for _ in 0..2 {
        let before = disk.counts().read_bytes;
        for index in 0..200 {
            let job = log.fetch_chunk(body, index).expect("the buffer is free");
            assert!(log.fetch(1, ALL, 1).is_none() && log.fetch_chunk(body, 0).is_none(), "there is one");
            let done = job.run(&mut disk);
            let mut came = Vec::new();
            log.chunk_done(done, |bytes| came.extend_from_slice(bytes.expect("it is there")));
            assert_eq!(came, part(index));
        }
        assert!(disk.counts().read_bytes - before < 12_100_000);
        let job = log.fetch_chunk(body, 200).expect("the buffer is free");
        log.chunk_done(job.run(&mut disk), |bytes| assert!(bytes.is_none()));
        log = open(&disk);
    }
}

#[test]
fn after_a_start_the_bytes_of_a_queue_are_exact() {
    let mut disk = SimDisk::new(1, Mutant::None, IDENTITY);
    let mut log = open(&disk);
    let mut expected = 0;
    for offset in 0..40_000_u64 {
        let body = vec![1; (offset * 7919 % 900) as usize];
        let target = [Target { queue: 1, offset }];
        let mut bytes = Vec::new();
        message(&target, &body).encode(&mut bytes);
        publish(&mut log, &mut disk, &target, &body);
        if offset % 5 < 2 {
            log.settle(1, Range { start: offset, end: offset + 1 }, Urgency::Lazy, NOW);
        } else {
            expected += bytes.len() as u64;
        }
    }
    let body = log.take_body_id();
    let chunk = Record::Chunk { body, index: 0, bytes: &[3; 50_000] };
    let mut bytes = Vec::new();
    chunk.encode(&mut bytes);
    log.flush();
    commit(&mut log, &mut disk);
    log.append(&chunk, Urgency::Window, NOW).expect("there is room");
    let target = [Target { queue: 1, offset: 40_000 }];
    let Record::Message(message) = message(&target, &[]) else { return };
    let large =
        Record::Message(Message { body: Body::Chunked { body, chunks: 1, bytes: 50_000 }, ..message });
    large.encode(&mut bytes);
    log.append(&large, Urgency::Awaited, NOW).expect("there is room");
    expected += bytes.len() as u64;
    commit(&mut log, &mut disk);
    let before = log.index().queues()[&1].live_bytes();
    assert!(before.abs_diff(expected) < expected / 20, "{before} is about {expected}");
    log = open(&disk);
    assert_eq!(log.index().queues()[&1].live_bytes(), expected);
    log.settle(1, ALL, Urgency::Awaited, NOW);
    commit(&mut log, &mut disk);
    assert_eq!(log.index().queues()[&1].live_bytes(), 0);
}

#[test]
fn a_footer_that_is_damaged_later_loses_no_message() {
    let (mut disk, mut log, _) = fill(3, 10_000);
    for segment in log.index().segments().values() {
        let end = u64::from(Settings::default().segment_bytes);
        disk.write(segment.slot, end - 8192, &[0x55; 8192]).expect("the disk is well");
    }
    for restarted in [false, true] {
        let (_, reads) = drain(&mut log, &mut disk, 3, 10_000, 128 << 10);
        println!("restarted {restarted}: {reads} reads");
        log = open(&disk);
    }
}

/// A disk that cannot read a range of one file.
struct Unreadable<'d>(&'d mut SimDisk, u32, core::ops::Range<u64>);

impl Disk for Unreadable<'_> {
    fn read(&mut self, slot: u32, at: u64, bytes: &mut [u8]) -> io::Result<usize> {
        if slot == self.1 && at < self.2.end && at + bytes.len() as u64 > self.2.start {
            return Err(io::Error::other("a bad page"));
        }
        self.0.read(slot, at, bytes)
    }

    fn lock(&mut self) -> io::Result<()> {
        self.0.lock()
    }

    fn slots(&mut self) -> io::Result<Vec<u32>> {
        self.0.slots()
    }

    fn create(&mut self, slot: u32) -> io::Result<()> {
        self.0.create(slot)
    }

    fn write(&mut self, slot: u32, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write(slot, at, bytes)
    }

    fn zero(&mut self, slot: u32, at: u64, bytes: u32) -> io::Result<()> {
        self.0.zero(slot, at, bytes)
    }

    fn sync(&mut self, slot: u32) -> io::Result<()> {
        self.0.sync(slot)
    }

    fn sync_directory(&mut self) -> io::Result<()> {
        self.0.sync_directory()
    }
}

#[test]
fn a_page_that_cannot_be_read_costs_its_own_messages_only() {
    let (mut disk, mut log, _) = fill(1, 40_000);
    let slot = log.index().segments().values().next().expect("there are segments").slot;
    let mut disk = Unreadable(&mut disk, slot, 1_000_000..1_004_096);
    let (mut at, mut count, mut errors) = (0, 0, 0);
    while at < u64::MAX {
        let job = log.fetch(1, Range { start: at, ..ALL }, 64 << 10).expect("the buffer is free");
        let fetched = log.fetch_done(job.run(&mut disk), |_, _| count += 1);
        errors += u64::from(fetched.error.is_some());
        at = fetched.through;
    }
    println!("{count} of 40000 came, {errors} fetches met the page");
    assert!((39_980..40_000).contains(&count) && errors == 1);
}

#[test]
fn the_file_that_a_fetch_reads_is_kept_until_it_is_done() {
    let (mut disk, mut log, _) = fill(1, 20_000);
    let job = log.fetch(1, ALL, 1 << 10).expect("the buffer is free");
    log.settle(1, Range { start: 0, end: 20_000 }, Urgency::Awaited, NOW);
    for offset in 0..40_000 {
        publish(&mut log, &mut disk, &[Target { queue: 2, offset }], &[7; 256]);
    }
    commit(&mut log, &mut disk);
    let mut count = 0;
    let fetched = log.fetch_done(job.run(&mut disk), |_, _| count += 1);
    assert!(count == 3 && fetched.through == 3 && !fetched.retry);
    let slots: Vec<u32> = log.index().segments().values().map(|segment| segment.slot).collect();
    assert!(!slots.contains(&0), "the first file left the log and waits: {slots:?}");
    for offset in 40_000..120_000 {
        publish(&mut log, &mut disk, &[Target { queue: 2, offset }], &[7; 256]);
    }
    let slots: Vec<u32> = log.index().segments().values().map(|segment| segment.slot).collect();
    assert!(slots.contains(&0), "it is used again afterwards: {slots:?}");
}

/// Definitions that were written together come back with few reads. One that has changed since the read began, and one that is
/// damaged, are left out.
#[test]
fn definitions_come_back_unless_they_have_changed_or_are_damaged() {
    let mut disk = SimDisk::new(1, Mutant::None, IDENTITY);
    let mut log = open(&disk);
    let defined = |number: usize, payload: &'static [u8]| {
        let key = format!("t{number:03}");
        let retained = Retained { vhost: "/", key: &key, qos: 1, payload, ..Retained::default() };
        let definition = Definition::Retained(retained);
        (definition.key(), definition.value())
    };
    let define = |log: &mut Log, version: u64, (key, value): &(Box<[u8]>, Box<[u8]>)| {
        let record = Record::Defined { version, key, value: Some(value) };
        log.append(&record, Urgency::Awaited, NOW).expect("there is room");
    };
    let all: Vec<_> = (0..30).map(|number| defined(number, &[7; 1_000])).collect();
    for (number, definition) in all.iter().enumerate() {
        define(&mut log, number as u64 + 1, definition);
    }
    commit(&mut log, &mut disk);
    let locations: Vec<_> = all.iter().map(|(key, _)| log.location_of_definition(key).unwrap()).collect();
    assert!(locations.is_sorted() && log.location_of_definition(b"unknown").is_none());
    let fetch = |log: &mut Log| log.fetch_definitions(locations.iter().copied()).expect("the buffer is free");
    let done = |log: &mut Log, done| {
        let mut found = Vec::new();
        log.definitions_done(done, |key, value| found.push((key.into(), value.into())));
        found
    };
    let before = disk.counts().reads;
    let job = fetch(&mut log);
    assert!(log.fetch(1, ALL, 1).is_none(), "there is one buffer");
    assert!(done(&mut log, job.run(&mut disk)) == all);
    assert!(disk.counts().reads - before <= 3, "{} reads", disk.counts().reads - before);
    // The read is under way while two of them change.
    let read = fetch(&mut log).run(&mut disk);
    define(&mut log, 100, &defined(3, b"new"));
    let record = Record::Defined { version: 101, key: &all[4].0, value: None };
    log.append(&record, Urgency::Awaited, NOW).expect("there is room");
    commit(&mut log, &mut disk);
    assert!(done(&mut log, read) == [&all[..3], &all[5..]].concat());
    assert!(log.location_of_definition(&all[3].0) != Some(locations[3]));
    assert!(log.location_of_definition(&all[4].0).is_none());
    let slot = log.index().segments()[&locations[0].segment].slot;
    disk.flip(slot, locations[20].at as usize + 500);
    let job = fetch(&mut log);
    assert!(done(&mut log, job.run(&mut disk)) == [&all[..3], &all[5..20], &all[21..]].concat());
}
