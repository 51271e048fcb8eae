//! The store on real files with a low limit of file descriptors: few of many segments are open.
//!
//! Each case runs again alone in a process of its own, because the limit applies to the process.
//!
//! # Invariants
//! - In that process no call fails for lack of a descriptor.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use leveret_core::time::Now;
use leveret_storage::{
    AppendRefused, Body, Disk, FileDisk, Identity, Log, Message, Range, Record, Settings, Target, Targets,
    Urgency,
};

use crate::sample::PLAIN;

const IDENTITY: Identity = Identity { id: *b"0123456789abcdef", secret: 0xF11E5 };
const NOW: Now = Now::from_ms(0);
/// Set in the process with the limit.
const INSIDE: &str = "LEVERET_TEST_INSIDE";
const SEGMENTS: u32 = 400;
const QUEUE: u64 = 1;

/// Returns whether this is the process with the limit. If not, starts it and checks its result.
#[track_caller]
fn is_inside(test: &str, descriptors: usize) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let me = std::env::current_exe().expect("it runs");
    let limited = format!("ulimit -n {descriptors} && exec \"$0\" --exact files::{test} --nocapture");
    let output =
        Command::new("sh").arg("-c").arg(limited).arg(me).env(INSIDE, "1").output().expect("sh runs");
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"), "{output:?}");
    false
}

/// A folder that is removed on drop.
struct Home(PathBuf);

impl Home {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("leveret-files-{}", std::process::id()));
        fs::create_dir_all(&path).expect("the temporary folder can be written");
        Self(path)
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Returns the number of segment files that this process has open.
fn open_segments() -> usize {
    let all = fs::read_dir("/proc/self/fd").expect("there is /proc");
    let targets = all.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
    targets.filter(|target| target.extension().is_some_and(|suffix| suffix == "seg")).count()
}

/// A log with its two disks, like those of the helpers.
struct FileSet {
    log: Log,
    writes: FileDisk,
    reads: FileDisk,
    open_max: usize,
}

impl FileSet {
    fn open(home: &Path) -> Self {
        let settings = Settings {
            segment_bytes: 64 << 10,
            commit_bytes: 20 << 10,
            segments_max: SEGMENTS,
            ..Settings::default()
        };
        let mut writes = FileDisk::new(home);
        let (log, report) = Log::open(&mut writes, settings, IDENTITY, NOW).expect("it opens");
        assert!(report.unwritable.is_none() && report.set_aside.is_empty(), "{report:?}");
        Self { log, writes, reads: FileDisk::new(home), open_max: open_segments() }
    }

    /// Does everything that the helpers have to do.
    fn rest(&mut self) {
        let mut did = true;
        while core::mem::take(&mut did) {
            if let Some(job) = self.log.next_prepare() {
                self.log.prepare_done(job.run(&mut self.writes)).expect("the disk is well");
                did = true;
            }
            if let Some(job) = self.log.next_compaction_read() {
                self.log.compaction_read_done(job.run(&mut self.reads));
                did = true;
            }
            if let Some(job) = self.log.next_commit(NOW) {
                self.log.commit_done(job.run(&mut self.writes)).expect("the disk is well");
                did = true;
            }
            self.open_max = self.open_max.max(open_segments());
        }
    }

    /// Publishes up to the disk limit. Returns the number of messages.
    fn fill(&mut self) -> u64 {
        for offset in 0.. {
            let targets = [Target { queue: QUEUE, offset }];
            let message =
                Message { targets: Targets::List(&targets), body: Body::Inline(&[7; 15_000]), ..PLAIN };
            let mut appended = self.log.append(&Record::Message(message), Urgency::Awaited, NOW);
            if appended.is_err() {
                self.rest();
                appended = self.log.append(&Record::Message(message), Urgency::Awaited, NOW);
            }
            match appended {
                Ok(_) => self.rest(),
                Err(AppendRefused::Disk) => return offset,
                Err(refused) => panic!("{refused:?}"),
            }
        }
        0
    }

    /// Reads everything back. Returns the number of messages.
    fn drain(&mut self) -> u64 {
        let (mut at, mut count) = (0, 0);
        let all = |log: &Log| log.index().queues()[&QUEUE].next_offset();
        while at < all(&self.log) {
            let job =
                self.log.fetch(QUEUE, Range { start: at, end: u64::MAX }, 1 << 20).expect("one at a time");
            let fetched = self.log.fetch_done(job.run(&mut self.reads), |_, message| {
                count += u64::from(message.body == Body::Inline(&[7; 15_000]));
            });
            assert_eq!(fetched.error, None);
            at = fetched.through;
            self.open_max = self.open_max.max(open_segments());
        }
        count
    }
}

#[test]
fn hundreds_of_segments_need_few_descriptors() {
    if !is_inside("hundreds_of_segments_need_few_descriptors", 48) {
        return;
    }
    let home = Home::new();
    let mut world = FileSet::open(&home.0);
    let count = world.fill();
    assert!(fs::read_dir(&home.0).expect("it is there").count() > SEGMENTS as usize, "they are many");
    assert_eq!(world.drain(), count);
    let first_open_max = world.open_max;
    drop(world);
    let mut world = FileSet::open(&home.0);
    assert_eq!(world.drain(), count);
    world.log.settle(QUEUE, Range { start: 0, end: count }, Urgency::Awaited, NOW);
    world.rest();
    assert_eq!(world.log.index().segments().len(), 1, "all is free again");
    let most = world.open_max.max(first_open_max);
    println!("{count} messages, at most {most} segments open");
    assert!(most <= 2 * FileDisk::DESCRIPTORS_MAX, "{most} segments were open");
}

#[test]
fn a_lack_of_descriptors_is_not_a_failed_disk() {
    if !is_inside("a_lack_of_descriptors_is_not_a_failed_disk", 32) {
        return;
    }
    let home = Home::new();
    let mut disk = FileDisk::new(&home.0);
    disk.create(0).and_then(|()| disk.write(0, 0, b"kept")).and_then(|()| disk.sync(0)).expect("it is well");
    drop(disk);
    for writes in [false, true] {
        let mut others: Vec<File> = Vec::new();
        let full = loop {
            match File::open("/dev/null") {
                Ok(file) => others.push(file),
                Err(error) => break error,
            }
        };
        let mut disk = FileDisk::new(&home.0);
        let waits = thread::spawn(move || -> io::Result<usize> {
            if writes {
                disk.write(0, 4, b" again").and_then(|()| disk.sync(0))?;
                disk.sync_directory()?;
            }
            disk.read(0, 0, &mut [0; 64])
        });
        // Long enough to meet the limit. If it came later, the test would only check less.
        thread::sleep(Duration::from_millis(100));
        drop(others);
        let count = waits.join().expect("no panic").expect("it waited for a descriptor");
        assert_eq!(count, if writes { 10 } else { 4 }, "{full}");
    }
    let mut looks = FileDisk::open_read_only(&home.0);
    let _others: Vec<File> = core::iter::from_fn(|| File::open("/dev/null").ok()).collect();
    assert!(looks.read(0, 0, &mut [0; 4]).is_err(), "a reader gets the error");
}

/// Data in a file without a name is lost when the process ends.
#[test]
fn data_synced_into_a_removed_file_is_not_durable() {
    let home = Home(std::env::temp_dir().join(format!("leveret-removed-{}", std::process::id())));
    fs::create_dir_all(&home.0).expect("the temporary folder can be written");
    let mut disk = FileDisk::new(&home.0);
    disk.create(3).expect("the disk is well");
    disk.write(3, 0, &[7; 4_096]).expect("the disk is well");
    disk.sync(3).expect("it is there");
    fs::remove_file(home.0.join("00000003.seg")).expect("it is there");
    disk.write(3, 4_096, &[7; 4_096]).expect("it is open");
    let refused = disk.sync(3).expect_err("the file has no name any more");
    assert!(refused.to_string().contains("removed"), "{refused}");
}
