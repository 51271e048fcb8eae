//! Versions of the format: a store of version 2 written by an older program is read. Older and newer ones are
//! refused and left unchanged.
//!
//! `formats/N.txt` is a store as a program of version N left it when it was killed (`formats/make.py`).

use std::collections::BTreeMap;

use leveret_core::definition::{self, Definition};
use leveret_core::time::Now;
use leveret_storage::{
    ACCESS_SLOTS, Body, Disk, FORMAT, FileDisk, Identity, Log, OpenError, Record, Report, Settings, Urgency,
};
use leveret_test_support::random::Random;
use leveret_test_support::simulated_disk::{Mutant, SimDisk, Trouble};
use leveret_test_support::store_formats::{Folder, ONE, TWO, files_of};

/// Key of a definition that is written to fill a segment.
const FILLING: [u8; 1] = [7];
const NOW: Now = Now::from_ms(1);
const FRESH: Identity = Identity { id: *b"0123456789abcdef", secret: 0xF0_12 };

fn settings() -> Settings {
    Settings { segment_bytes: 512 << 10, commit_bytes: 160 << 10, segments_max: 12, ..Settings::default() }
}

fn slot_of(name: &str) -> u32 {
    match name {
        "access.a" => ACCESS_SLOTS[0],
        "access.b" => ACCESS_SLOTS[1],
        _ => name.trim_end_matches(".seg").parse().expect("a slot"),
    }
}

fn disk_of(text: &str, seed: u64) -> SimDisk {
    let disk = SimDisk::new(seed, Mutant::None, FRESH);
    disk.start(Trouble::Never);
    let mut files = disk.clone();
    for (name, bytes) in files_of(text) {
        let slot = slot_of(&name);
        files.create(slot).expect("the disk is well");
        files.write(slot, 0, &bytes).expect("the disk is well");
        files.sync(slot).expect("the disk is well");
    }
    files.sync_directory().expect("the disk is well");
    disk.start(Trouble::Never);
    disk
}

fn open(disk: &SimDisk, settings: Settings) -> (Log, Report) {
    let (log, report) = Log::open(&mut disk.clone(), settings, FRESH, NOW).expect("it opens");
    assert!(!report.is_damaged() && !report.is_lost && !report.is_new, "{report:?}");
    (log, report)
}

/// Returns the whole content of a store as text.
fn contents((log, report): (&Log, &Report), disk: &SimDisk) -> Vec<String> {
    let (mut said, mut names) = (Vec::new(), BTreeMap::new());
    let mut note = |key: &[u8], value: &[u8]| {
        if *key == FILLING {
            return;
        }
        let definition = Definition::parse(key, value).expect("a definition");
        if let Definition::Queue(definition::Queue { name, incarnation, .. }) = definition {
            names.insert(incarnation, name.to_string());
        }
        said.push(definition.to_string());
    };
    report.access.definitions.iter().for_each(|it| note(&it.key, &it.value));
    let read = log.read_definitions(&mut disk.clone(), |key, value, _| note(key, value));
    assert_eq!(read.expect("the disk is well"), 0);
    let (mut messages, mut chunks) = (BTreeMap::new(), BTreeMap::new());
    let read = log.read_live(&mut disk.clone(), |record| match record {
        Record::Message(message) => {
            for (queue, offset) in log.live_targets(message) {
                let body = match message.body {
                    Body::Inline(body) => format!("{} bytes {:?}", body.len(), body[0] as char),
                    Body::Chunked { body, bytes, .. } => format!("{bytes} bytes of {}", chunks[&body]),
                };
                messages.insert((names[&queue].clone(), offset), body);
            }
        }
        Record::Chunk { body, bytes, .. } => *chunks.entry(*body).or_insert(0) += bytes.len(),
        _ => {}
    });
    read.expect("the disk is well");
    said.extend(messages.into_iter().map(|((queue, _), body)| format!("{queue}: {body}")));
    said
}

fn expected() -> Vec<String> {
    let mut said: Vec<String> = [
        "the marker that all users and permissions are stored",
        "virtual host \"/\"",
        "user \"guest\"",
        "the permissions of user \"guest\" in virtual host \"/\"",
        "exchange \"made\" in virtual host \"/\"",
        "queue \"first\" in virtual host \"/\"",
        "queue \"third\" in virtual host \"/\"",
        "queue \"second\" in virtual host \"/\"",
        "the binding from exchange \"amq.topic\" to Queue(\"first\") with key \"a.#\" in virtual host \"/\"",
    ]
    .map(String::from)
    .to_vec();
    said.extend(["first: 7 bytes 'f'"; 3].map(String::from));
    said.push("second: 100000 bytes of 100000".into());
    said.extend((0..6).map(|n| format!("second: 60001 bytes '{n}'")));
    said.push("third: 4 bytes 'l'".into());
    said
}

/// Returns the version of each file that is part of the log.
fn versions(disk: &SimDisk, log: &Log) -> Vec<u8> {
    let slots = log.index().segments().values().map(|segment| segment.slot);
    let mut magic = [0; 8];
    let read = |slot| {
        disk.clone().read(slot, 0, &mut magic).expect("the disk is well");
        magic[7] - b'0'
    };
    slots.map(read).collect()
}

/// Writes until another segment is opened.
fn write_on(log: &mut Log, disk: &mut SimDisk) {
    let first = log.index().segments().len();
    for number in 0.. {
        while let Some(job) = log.next_prepare() {
            log.prepare_done(job.run(disk)).expect("the disk is well");
        }
        let value = [number as u8; 30_000];
        let record = Record::Defined {
            version: (u64::from(log.epoch()) << 32) + number,
            key: &FILLING,
            value: Some(&value),
        };
        log.append_reserved(&record, Urgency::Awaited, NOW).expect("there is room");
        let job = log.next_commit(NOW).expect("a commit is awaited");
        log.commit_done(job.run(disk)).expect("the disk is well");
        if log.index().segments().len() > first {
            return;
        }
    }
}

#[test]
fn a_store_of_an_older_program_is_read_and_written_on() {
    let mut disk = disk_of(TWO, 1);
    for run in 0..3 {
        let (mut log, report) = open(&disk, settings());
        assert_eq!(report.footers_missing, 0);
        assert_eq!(contents((&log, &report), &disk), expected(), "in run {run}");
        write_on(&mut log, &mut disk);
        assert!(versions(&disk, &log).iter().all(|version| *version == FORMAT));
    }
}

#[test]
fn a_store_of_version_1_is_refused_and_left_alone() {
    let folder = Folder::new("one", ONE);
    let before = folder.files();
    let opened = Log::open(&mut FileDisk::new(&folder.0), settings(), FRESH, NOW);
    assert!(matches!(opened, Err(OpenError::OlderFormat)), "{opened:?}");
    drop(opened);
    assert!(matches!(Log::inspect(&mut FileDisk::open_read_only(&folder.0)), Err(OpenError::OlderFormat)));
    assert_eq!(folder.files(), before);
}

/// An upgraded store has segments of version 1 until they are deleted, and their headers stay in files that
/// are not reused yet.
#[test]
fn a_header_of_version_1_matters_only_in_a_segment_of_the_log() {
    let disk = disk_of(TWO, 1);
    let (mut log, _) = open(&disk, settings());
    write_on(&mut log, &mut disk.clone());
    let slots = disk.clone().slots().expect("the disk is well");
    let live: Vec<u32> = log.index().segments().values().map(|segment| segment.slot).collect();
    drop(log);
    let older = files_of(ONE).remove("00000000.seg").expect("it is there");
    let (mut refused, mut opened) = (0, 0);
    for slot in slots {
        let mut disk = disk.copy();
        disk.write(slot, 0, &older[..4096]).expect("the disk is well");
        disk.sync(slot).expect("the disk is well");
        let outcome = Log::open(&mut disk.clone(), settings(), FRESH, NOW);
        match live[..live.len() - 1].contains(&slot) {
            true => {
                assert!(matches!(outcome, Err(OpenError::OlderFormat)), "file {slot}");
                refused += 1;
            }
            false => {
                assert!(outcome.is_ok(), "file {slot}");
                opened += 1;
            }
        }
    }
    assert!(refused > 0 && opened > 0, "{refused} refused, {opened} opened");
}

#[test]
fn a_newer_version_is_refused_and_left_alone() {
    let folder = Folder::newer("newer");
    let before = folder.files();
    let opened = Log::open(&mut FileDisk::new(&folder.0), settings(), FRESH, NOW);
    assert!(matches!(opened, Err(OpenError::NewerFormat)));
    assert!(matches!(Log::inspect(&mut FileDisk::open_read_only(&folder.0)), Err(OpenError::NewerFormat)));
    assert_eq!(folder.files(), before);
}

#[test]
fn records_that_later_versions_mark_as_skippable_are_skipped() {
    let mut disk = disk_of(TWO, 1);
    let mut random = Random::new(7);
    let (mut log, _) = open(&disk, settings());
    for kind in 128..=255_u8 {
        let payload = vec![kind; random.below(200) as usize];
        let record = Record::Optional { kind, payload: &payload };
        log.append_reserved(&record, Urgency::Awaited, NOW).expect("there is room");
        if kind % 9 == 0 {
            let job = log.next_commit(NOW).expect("a commit is awaited");
            log.commit_done(job.run(&mut disk)).expect("the disk is well");
        }
    }
    write_on(&mut log, &mut disk);
    drop(log);
    let (log, report) = open(&disk, settings());
    assert_eq!(report.footers_missing, 0);
    assert_eq!(contents((&log, &report), &disk), expected());
    let (_, report) = Log::inspect(&mut disk).expect("it is readable");
    assert!(report.describe_damage().is_empty(), "{report:?}");
}
