//! A file system that is full for some time: everything that waits continues automatically when there is
//! space.

use std::collections::BTreeSet;
use std::io;

use leveret_core::time::Now;
use leveret_storage::{
    Body, Disk, Identity, Log, Message, Range, Record, Report, Settings, Target, Targets, Urgency, is_full,
};
use leveret_test_support::simulated_disk::{Mutant, SimDisk, Trouble};

use crate::sample::PLAIN;

const IDENTITY: Identity = Identity { id: *b"0123456789abcdef", secret: 0xF011 };
const SEGMENT_BYTES: u32 = 64 << 10;
const BODY_BYTES: usize = 3_000;
/// More calls than any test makes.
const FOR_EVER: u64 = u64::MAX;

struct SpaceTest {
    disk: SimDisk,
    log: Log,
    now_ms: u64,
    /// Number of requests for space from the file system.
    prepares: u64,
    published: u64,
}

impl SpaceTest {
    fn new(disk: SimDisk) -> Self {
        let (log, report) = open(&disk);
        assert!(report.unwritable.is_none(), "{:?}", report.unwritable);
        Self { disk, log, now_ms: 0, prepares: 0, published: 0 }
    }

    fn now(&self) -> Now {
        Now::from_ms(self.now_ms)
    }

    /// Does what the event loop does in one turn.
    fn turn(&mut self) {
        if let Some(job) = self.log.next_commit(self.now()) {
            self.log.commit_done(job.run(&mut self.disk)).expect("a full disk is no broken one");
        } else if let Some(job) = self.log.next_prepare() {
            self.prepares += 1;
            self.log.prepare_done(job.run(&mut self.disk)).expect("a full disk is no broken one");
        }
    }

    fn turns(&mut self, count: u32) {
        (0..count).for_each(|_| self.turn());
    }

    /// Lets time pass in steps of 0.1 s.
    fn pass_s(&mut self, seconds: u64) {
        for _ in 0..10 * seconds {
            self.now_ms += 100;
            self.turns(1);
        }
    }

    /// Publishes a message. Returns whether it was accepted.
    fn publish(&mut self) -> bool {
        let record = Record::Message(Message {
            targets: Targets::List(&[Target { queue: 1, offset: self.published }]),
            body: Body::Inline(&[7; BODY_BYTES]),
            ..PLAIN
        });
        let is_taken = self.log.append(&record, Urgency::Awaited, self.now()).is_ok();
        self.published += u64::from(is_taken);
        is_taken
    }

    /// Publishes until nothing more is accepted. Returns the number of messages.
    fn publish_all(&mut self) -> u64 {
        let (before, mut refused) = (self.published, 0);
        while refused < 20 {
            refused = if self.publish() { 0 } else { refused + 1 };
            self.turn();
        }
        self.published - before
    }

    fn is_all_durable(&self) -> bool {
        self.log.is_idle() && !self.log.is_postponed()
    }

    /// Returns the messages that a start finds now.
    fn found(&mut self) -> BTreeSet<u64> {
        let (log, report) = open(&self.disk);
        assert!(!report.is_damaged() && report.unwritable.is_none(), "{report:?}");
        let mut found = BTreeSet::new();
        log.read_live(&mut self.disk, |record| {
            if let Record::Message(message) = record {
                found.extend(message.targets.iter().map(|target| target.offset));
            }
        })
        .expect("it can be read");
        found
    }
}

fn open(disk: &SimDisk) -> (Log, Report) {
    let settings = Settings {
        segment_bytes: SEGMENT_BYTES,
        commit_bytes: 12 << 10,
        segments_max: 24,
        ..Settings::default()
    };
    Log::open(&mut disk.clone(), settings, IDENTITY, Now::from_ms(0)).expect("it opens")
}

fn new_disk() -> SimDisk {
    let disk = SimDisk::new(7, Mutant::None, IDENTITY);
    disk.start(Trouble::Never);
    disk
}

#[test]
fn freed_file_system_space_is_found_automatically_with_few_attempts() {
    let mut world = SpaceTest::new(new_disk());
    world.turns(20);
    world.disk.foresee(Trouble::Full(0));
    let taken = world.publish_all();
    assert!(world.log.space().is_file_system_full() && world.is_all_durable(), "{taken} were taken");
    assert!(taken > 0 && world.log.space().room_bytes() < u64::from(SEGMENT_BYTES), "there is no room");
    world.prepares = 0;
    world.pass_s(600);
    assert!((20..60).contains(&world.prepares), "asked {} times in ten minutes", world.prepares);
    assert!(world.log.ask_deadline().ms_left(world.now()).is_some_and(|ms| ms <= 30_000));
    // Space was freed outside; nothing was consumed.
    world.disk.start(Trouble::Never);
    world.pass_s(31);
    assert!(!world.log.space().is_file_system_full(), "it does not ask any more");
    assert!(world.publish_all() > taken, "it has all its room again");
    let all: BTreeSet<u64> = (0..world.published).collect();
    assert_eq!(world.found(), all);
}

#[test]
fn an_incomplete_new_file_does_not_fill_the_file_system() {
    let mut world = SpaceTest::new(new_disk());
    world.turns(20);
    world.publish_all();
    let mut world = SpaceTest::new(new_disk());
    world.disk.foresee(Trouble::Full(0));
    world.publish_all();
    let files = world.disk.slots().expect("they can be listed").len();
    world.pass_s(60);
    assert_eq!(world.disk.slots().expect("they can be listed").len(), files, "a file is left over each time");
    let mut block = [1];
    for slot in world.disk.slots().expect("they can be listed") {
        let last = u64::from(SEGMENT_BYTES) - 1;
        assert_eq!(
            world.disk.read(slot, last, &mut block).expect("it can be read"),
            1,
            "file {slot} is half made"
        );
    }
}

#[test]
fn a_commit_without_space_waits_and_is_written_once_there_is_some() {
    for after in 0..12 {
        for count in [1, 2, 5, 9] {
            let mut world = SpaceTest::new(new_disk());
            world.turns(60);
            world.disk.foresee(Trouble::NoCapacity(after, count));
            let mut refused = false;
            for _ in 0..60 {
                refused |= !world.publish() && world.log.space().is_file_system_full();
                world.turn();
            }
            world.pass_s(120);
            assert!(world.is_all_durable(), "after {after} writes, {count} of them: it never goes on");
            assert!(world.publish(), "after {after}, {count}: publishers wait for ever");
            world.pass_s(1);
            assert!(world.disk.violations().is_empty(), "{:?}", world.disk.violations());
            let all: BTreeSet<u64> = (0..world.published).collect();
            assert_eq!(world.found(), all, "after {after}, {count}");
            assert!(refused || count < 9, "after {after}, {count}: publishers were not told to wait");
        }
    }
}

#[test]
fn acknowledgements_are_recorded_from_the_reserve_while_publishers_wait() {
    let mut world = SpaceTest::new(new_disk());
    world.turns(80);
    while world.published < 10 {
        world.publish();
        world.turns(4);
    }
    let files = world.disk.slots().expect("they can be listed").len();
    // One write fails, and the next ones use the space of a deleted file.
    world.disk.foresee(Trouble::NoCapacity(0, 1));
    world.log.settle(1, Range { start: 0, end: 4 }, Urgency::Awaited, world.now());
    world.turns(2);
    assert!(world.is_all_durable(), "an acknowledgement waits although a file could be given up");
    assert_eq!(world.disk.slots().expect("they can be listed").len(), files - 1);
    assert!(
        !world.publish() && world.log.space().room_bytes() == 0,
        "publishers take the room of the reserve"
    );
    assert_eq!(world.found(), (4..10).collect(), "it was recorded");
}

#[test]
fn a_full_disk_at_a_start_is_not_a_failed_disk() {
    for after in 0..6 {
        let mut world = SpaceTest::new(new_disk());
        world.turns(20);
        world.publish_all();
        world.disk.start(Trouble::NoCapacity(after, FOR_EVER));
        let published = world.published;
        let mut next = SpaceTest::new(world.disk.clone());
        next.published = published;
        next.pass_s(10);
        assert!(next.log.space().is_file_system_full() || after > 0, "after {after} writes");
        next.log.settle(1, Range { start: 0, end: 3 }, Urgency::Awaited, next.now());
        next.pass_s(10);
        next.disk.start(Trouble::Never);
        next.pass_s(60);
        assert!(next.is_all_durable() && !next.log.has_failed(), "after {after} writes: it never goes on");
        assert_eq!(next.found(), (3..published).collect(), "after {after} writes");
    }
}

#[test]
fn a_failed_sync_is_final() {
    let mut world = SpaceTest::new(new_disk());
    world.turns(20);
    world.disk.foresee(Trouble::FailedSync(0));
    assert!(world.publish());
    let job = world.log.next_commit(world.now()).expect("a commit is awaited");
    assert!(world.log.commit_done(job.run(&mut world.disk)).is_err() && world.log.has_failed());
}

#[test]
fn an_exceeded_quota_counts_as_a_full_disk() {
    // ENOSPC, EDQUOT; EIO.
    for (errno, is_one) in [(28, true), (122, true), (5, false)] {
        assert_eq!(is_full(&io::Error::from_raw_os_error(errno)), is_one, "{errno}");
    }
}
