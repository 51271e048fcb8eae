//! Transactions are atomic on the disk: the power fails at every call of a transaction.

use leveret_core::batch::Batch;
use leveret_core::mem::{MessageFlags, MessageId, MessageLimits, Messages, Share};
use leveret_core::time::Now;
use leveret_storage::{CommitWriter, Identity, Log, SEGMENTS_RESERVED, Settings, Write};
use leveret_storage::{PendingWrites, Settled, Target, Urgency, is_group};
use leveret_test_support::simulated_disk::{Mutant, SimDisk, Trouble};

const IDENTITY: Identity = Identity { id: *b"0123456789abcdef", secret: 0x61_0A9 };
const NOW: Now = Now::from_ms(1);
/// The incarnations of two queues.
const INPUT: u64 = 7;
const OUTPUT: u64 = 8;
const COMMIT_BYTES: u32 = 152 << 10;
/// The keys of the definitions of a transaction.
const DEFINITIONS: [&[u8; 2]; 2] = [b"\x09a", b"\x09b"];

struct GroupedCommits {
    disk: SimDisk,
    messages: Messages,
    pending_writes: PendingWrites,
    keeper: CommitWriter,
    /// The start has found that something is missing.
    is_damaged: bool,
}

impl GroupedCommits {
    fn open(disk: &SimDisk) -> Option<Self> {
        Self::open_with(disk, SEGMENTS)
    }

    fn settings(segments_max: u32) -> Settings {
        Settings {
            segment_bytes: 512 << 10,
            commit_bytes: COMMIT_BYTES,
            segments_max,
            syncs_per_s: 0,
            ..Settings::default()
        }
    }

    fn open_with(disk: &SimDisk, segments_max: u32) -> Option<Self> {
        let settings = Self::settings(segments_max);
        let (log, report) = Log::open(&mut disk.clone(), settings, IDENTITY, NOW).ok()?;
        if report.unwritable.is_some() {
            return None;
        }
        assert_eq!(report.groups_damaged, 0);
        let mut pending_writes = PendingWrites::new(4096);
        pending_writes.start(log.epoch(), true, log.space().record_bytes_max() as u64);
        let messages = Messages::new(MessageLimits {
            messages_max: 4096,
            body_bytes_max: 16 << 20,
            assembly_bytes_max: 1 << 20,
        });
        let (keeper, is_damaged) = (CommitWriter::new(log, 4096), report.is_damaged());
        Some(Self { disk: disk.clone(), messages, pending_writes, keeper, is_damaged })
    }

    fn publish(&mut self, queue: u64, offset: u64, body_bytes: usize) -> MessageId {
        let message = self.messages.begin("", b"key", Share::Ordinary).expect("there is memory");
        self.messages
            .reserve_content(message, &[0, 0], MessageFlags::PERSISTENT, body_bytes as u32, Share::Ordinary)
            .expect("there is memory");
        self.messages.append_body(message, &vec![offset as u8; body_bytes]);
        self.messages.finish(message);
        let target = core::iter::once(Target { queue, offset });
        let _ = self.pending_writes.append(&mut self.messages, message, target, Urgency::Awaited);
        message
    }

    /// Writes until `is_done`. Returns the number of commits, or `None` if the power failed.
    fn write_until(&mut self, is_done: impl Fn(&Self) -> bool) -> Option<u32> {
        let mut commits = 0;
        while !is_done(self) {
            let Some(write) = self.keeper.next_write(&mut self.pending_writes, &mut self.messages, NOW)
            else {
                return is_done(self).then_some(commits);
            };
            commits += u32::from(matches!(write, Write::Commit(_)));
            let done = write.run(&mut self.disk);
            self.keeper.write_done(&mut self.pending_writes, &mut self.messages, done, NOW).ok()?;
        }
        Some(commits)
    }

    fn store(&mut self, batch: Batch) -> Option<u32> {
        self.write_until(|world| world.pending_writes.durable() >= batch)
    }

    fn store_all(&mut self) -> Option<u32> {
        self.keeper.close(NOW);
        self.write_until(|world| world.keeper.is_idle(&world.pending_writes))
    }

    /// Takes 40 messages out of one queue and publishes `bodies` to the other, as a transaction, with two definitions.
    fn transact(&mut self, inputs: &[MessageId], bodies: &[usize]) -> Batch {
        self.pending_writes.begin_group();
        for (offset, bytes) in bodies.iter().enumerate() {
            self.publish(OUTPUT, offset as u64, *bytes);
        }
        for (offset, input) in inputs.iter().enumerate() {
            let target = Target { queue: INPUT, offset: offset as u64 };
            self.pending_writes.settle(&mut self.messages, target, *input);
        }
        for key in DEFINITIONS {
            self.pending_writes.define_in_group(Box::new(*key), Some(vec![7; 3_000].into_boxed_slice()));
        }
        self.pending_writes.end_group(&mut self.messages, Urgency::Awaited)
    }

    /// Returns how many definitions of the transaction are there.
    fn defined(&self) -> usize {
        let definitions = self.keeper.log().index().definitions();
        DEFINITIONS.iter().filter(|key| definitions.contains_key(&key[..])).count()
    }

    fn live(&self, queue: u64) -> u64 {
        self.keeper.log().index().queues().get(&queue).map_or(0, |queue| queue.live)
    }

    /// Checks that every message of the output queue can be read back unchanged.
    fn check_bodies(&mut self, bodies: &[usize]) {
        let mut found = vec![0; bodies.len()];
        let mut sizes = std::collections::BTreeMap::new();
        let log = self.keeper.log();
        log.read_live(&mut self.disk, |record| match record {
            leveret_storage::Record::Message(message) => {
                for target in message.targets.iter().filter(|target| target.queue == OUTPUT) {
                    let bytes = match message.body {
                        leveret_storage::Body::Inline(bytes) => bytes.len() as u64,
                        leveret_storage::Body::Chunked { body, bytes, .. } => {
                            sizes.entry(body).or_insert((0, bytes)).1 = bytes;
                            bytes
                        }
                    };
                    found[target.offset as usize] = bytes as usize;
                }
            }
            leveret_storage::Record::Chunk { body, bytes, .. } => {
                sizes.entry(*body).or_insert((0, 0)).0 += bytes.len() as u64;
            }
            _ => {}
        })
        .expect("it can be read");
        assert_eq!(found, bodies);
        let whole = sizes.values().filter(|(_, wanted)| *wanted > 0).all(|(there, wanted)| there >= wanted);
        assert!(whole, "a large body has lost a part: {sizes:?}");
    }
}

/// Maximum number of segments of the log.
const SEGMENTS: u32 = 30;

/// Cuts the power at every call in turn, of the transaction and of the start after it.
fn at_every_cut(bodies: &[usize]) -> (u32, u32) {
    at_cuts(bodies, SEGMENTS, 1)
}

/// Cuts the power at call number `cut` while a transaction settles 40 messages and publishes these bodies.
///
/// Returns the disk, whether the transaction was answered before, and whether all of it was written.
fn cut_in_a_transaction(cut: u64, bodies: &[usize]) -> (SimDisk, bool, bool) {
    let disk = SimDisk::new(cut, Mutant::None, IDENTITY);
    disk.start(Trouble::Never);
    let mut world = GroupedCommits::open(&disk).expect("it opens");
    let inputs: Vec<MessageId> = (0..40).map(|offset| world.publish(INPUT, offset, 100)).collect();
    world.store_all().expect("the disk is well");
    disk.foresee(Trouble::Cut(cut));
    let batch = world.transact(&inputs, bodies);
    let is_answered = world.store(batch).is_some();
    let is_over = is_answered && world.store_all().is_some();
    drop(world);
    disk.power_cut();
    (disk, is_answered, is_over)
}

/// Same as [`at_every_cut`] for each call whose number is a multiple of `step`. Starts may use `segments_max`
/// segments.
fn at_cuts(bodies: &[usize], segments_max: u32, step: usize) -> (u32, u32) {
    let (mut nothing, mut whole) = (0, 0);
    for cut in (0..).step_by(step) {
        let (disk, is_answered, is_over) = cut_in_a_transaction(cut, bodies);
        // The start may be cut too; the one after it must have the same result.
        disk.start(Trouble::Cut(cut % 7));
        drop(GroupedCommits::open_with(&disk, segments_max));
        disk.power_cut();
        disk.start(Trouble::Never);
        let mut world = GroupedCommits::open_with(&disk, segments_max).expect("it opens");
        let found = (world.live(INPUT), world.live(OUTPUT));
        let defined = world.defined();
        assert_eq!(defined, if found.0 == 0 { 2 } else { 0 }, "cut {cut}: definitions beside {found:?}");
        match found {
            (40, 0) => {
                assert!(!is_answered, "cut {cut}: it was told to be safe");
                nothing += 1;
            }
            (0, all) if all == bodies.len() as u64 => {
                world.check_bodies(bodies);
                whole += 1;
            }
            half => panic!("cut {cut}: half of it is there: {half:?}"),
        }
        world.store_all().expect("the disk is well");
        drop(world);
        let world = GroupedCommits::open(&disk).expect("it opens");
        assert_eq!(
            (world.live(INPUT), world.live(OUTPUT)),
            found,
            "cut {cut}: it stays so when there is room"
        );
        let left = world.keeper.log().index().queues().iter().filter(|(number, _)| is_group(**number));
        assert_eq!(left.filter(|(_, queue)| queue.live > 0).count(), 0, "it was written down for good");
        if is_over {
            return (nothing, whole);
        }
    }
    unreachable!("the last cut comes too late")
}

/// A message outside of any transaction, then a transaction in one commit with it or without, then another
/// message. One bit of the transaction's commit is flipped.
#[test]
fn a_damaged_transaction_is_complete_or_absent() {
    for place in (100..3_000).step_by(97) {
        let disk = SimDisk::new(place, Mutant::None, IDENTITY);
        disk.start(Trouble::Never);
        let mut world = GroupedCommits::open(&disk).expect("the disk is well");
        let inputs: Vec<MessageId> = (0..10).map(|offset| world.publish(INPUT, offset, 20)).collect();
        world.store_all().expect("the disk is well");
        let batch = world.transact(&inputs, &[300; 10]);
        world.store(batch).expect("the disk is well");
        let (slot, at) = disk.written().last().copied().expect("it was written");
        world.publish(OUTPUT, 100, 20);
        world.store_all().expect("the disk is well");
        disk.flip(slot, at + place as usize);
        let world = GroupedCommits::open(&disk).expect("the disk is well");
        assert!(world.is_damaged, "byte {place}: it is told");
        let found = (world.live(INPUT), world.live(OUTPUT) - 1);
        assert_eq!(found, (10, 0), "byte {place}: inputs and outputs");
    }
}

#[test]
fn a_transaction_that_fits_into_a_commit_is_in_one() {
    let (nothing, whole) = at_every_cut(&[1000; 30]);
    assert!(nothing > 1 && whole > 0, "{nothing} and {whole}");
    let disk = SimDisk::new(1, Mutant::None, IDENTITY);
    disk.start(Trouble::Never);
    let mut world = GroupedCommits::open(&disk).expect("it opens");
    let inputs: Vec<MessageId> = (0..40).map(|offset| world.publish(INPUT, offset, 100)).collect();
    world.store_all().expect("the disk is well");
    let batch = world.transact(&inputs, &[1000; 30]);
    assert_eq!(world.store(batch), Some(1), "one commit, and nothing is written twice");
}

#[test]
fn a_transaction_larger_than_a_commit_is_complete_or_absent() {
    // Once, 90 messages of 10 KB and one settlement came back as 45 messages and no settlement.
    let (nothing, whole) = at_every_cut(&[10_000; 90]);
    assert!(nothing > 10 && whole > 10, "{nothing} and {whole}");
}

/// A start without space to write anything again must not leave a part of the transaction.
#[test]
fn on_a_disk_that_is_full_a_transaction_is_complete_or_absent_too() {
    for segments_max in [3, 5] {
        let (nothing, whole) = at_cuts(&[10_000; 90], segments_max, 4);
        assert!(nothing > 4 && whole > 0, "{segments_max}: {nothing} and {whole}");
    }
    let mut bodies = vec![20_000; 20];
    bodies.extend([300_000, 100_000]);
    let (nothing, whole) = at_cuts(&bodies, 3, 4);
    assert!(nothing > 4 && whole > 0, "{nothing} and {whole}");
}

/// A start whose disk fails while it finishes a transaction is served read-only: with all of the transaction
/// or nothing.
#[test]
fn a_start_that_cannot_finish_a_transaction_shows_no_part_of_it() {
    let bodies = [10_000; 90];
    let (mut nothing, mut unwritable) = (0, 0);
    for cut in (0..400).step_by(5) {
        let (disk, _, is_over) = cut_in_a_transaction(cut, &bodies);
        for syncs in 0..12 {
            let mut disk = disk.copy();
            disk.start(Trouble::FailedSync(syncs));
            let (log, report) =
                Log::open(&mut disk, GroupedCommits::settings(SEGMENTS), IDENTITY, NOW).expect("it is read");
            let live = |queue| log.index().queues().get(&queue).map_or(0, |queue| queue.live);
            let found = (live(INPUT), live(OUTPUT));
            let is_whole = found.1 == bodies.len() as u64;
            assert!(is_whole || found == (40, 0), "cut {cut}, {syncs} syncs: half of it is there: {found:?}");
            nothing += u32::from(!is_whole);
            unwritable += u32::from(report.unwritable.is_some());
        }
        if is_over {
            break;
        }
    }
    assert!(nothing > 10 && unwritable > 10, "{nothing} and {unwritable}");
}

/// A start that cannot read a part of a transaction leaves it as it is.
///
/// When it was undone at that start, a half of it that had been written separately remained. The start that
/// can read everything finishes it.
#[test]
fn a_transaction_that_is_unreadable_at_one_start_is_finished_by_a_later_one() {
    let bodies = [10_000; 90];
    let (mut left, mut ended) = (0, 0);
    for cut in (0..400).step_by(5) {
        let (disk, _, is_over) = cut_in_a_transaction(cut, &bodies);
        let written = disk.written();
        let last = written.last().copied();
        for (slot, at) in written.into_iter().filter(|place| Some(*place) != last) {
            let disk = disk.copy();
            let open = || {
                disk.start(Trouble::Never);
                Log::open(&mut disk.clone(), GroupedCommits::settings(SEGMENTS), IDENTITY, NOW)
                    .expect("it is read")
            };
            disk.refuse(slot, at);
            let (log, report) = open();
            if !report.refused.is_empty() {
                let told = report.describe_damage().join("; ");
                assert!(told.contains("refuses to read 1 block of"), "cut {cut}: {told}");
                assert!(log.is_damaged() && report.reported_damage.is_alarm(), "cut {cut}: {report:?}");
            }
            let waits = |log: &Log| {
                let queues = log.index().queues().iter();
                queues.filter(|(number, queue)| is_group(**number) && !queue.gone).count()
            };
            left += waits(&log);
            disk.relent(slot, at);
            let (log, report) = open();
            let live = |queue| log.index().queues().get(&queue).map_or(0, |queue| queue.live);
            let found = (live(INPUT), live(OUTPUT));
            assert!(
                [(40, 0), (0, 90)].contains(&found),
                "cut {cut}, byte {at} of {slot}: {found:?} {report:?}"
            );
            ended += usize::from(found.1 == 90);
        }
        if is_over {
            break;
        }
    }
    assert!(left > 10 && ended > 10, "{left} and {ended}");
}

#[test]
fn large_bodies_belong_to_their_transaction() {
    let (nothing, whole) = at_every_cut(&[100, 200_000, 100, 70_000]);
    assert!(nothing > 3 && whole > 0, "{nothing} and {whole}");
    let mut bodies = vec![20_000; 20];
    bodies.extend([300_000, 100_000]);
    let (nothing, whole) = at_every_cut(&bodies);
    assert!(nothing > 10 && whole > 10, "{nothing} and {whole}");
}

#[test]
fn ten_thousand_settlements_come_with_a_message() {
    let disk = SimDisk::new(1, Mutant::None, IDENTITY);
    disk.start(Trouble::Never);
    let mut world = GroupedCommits::open(&disk).expect("it opens");
    world.pending_writes.begin_group();
    // Every other one, so that they do not merge.
    for offset in 0..10_000 {
        world.pending_writes.settle_stored(Settled { queue: INPUT, start: 2 * offset, end: 2 * offset + 1 });
    }
    world.publish(OUTPUT, 0, 100);
    let message = world.publish(OUTPUT, 1, 100);
    let target = Target { queue: OUTPUT, offset: 1 };
    world.pending_writes.settle(&mut world.messages, target, message);
    let batch = world.pending_writes.end_group(&mut world.messages, Urgency::Awaited);
    world.store(batch).expect("the disk is well");
    assert_eq!((world.live(INPUT), world.live(OUTPUT)), (0, 1));
}

/// A settlement cannot be undone.
///
/// Before, a start without space also settled what a transaction had published, when the first half of the
/// replaced messages was settled already. Both were lost.
#[test]
fn a_replacement_settled_in_two_commits_is_never_lost_on_both_sides() {
    const INPUTS: u64 = 100;
    let (mut finished, bodies) = (0, [10_000; 90]);
    for cut in (0..).step_by(2) {
        let disk = SimDisk::new(cut, Mutant::None, IDENTITY);
        disk.start(Trouble::Never);
        let mut world = GroupedCommits::open(&disk).expect("it opens");
        for offset in 0..INPUTS {
            world.publish(INPUT, 2 * offset, 100);
        }
        world.store_all().expect("the disk is well");
        disk.foresee(Trouble::Cut(cut));
        world.pending_writes.begin_group();
        for (offset, bytes) in bodies.iter().enumerate() {
            world.publish(OUTPUT, offset as u64, *bytes);
        }
        // Every other one, so that they do not merge; those that exist come first.
        for offset in 0..40_000 {
            world.pending_writes.settle_stored(Settled {
                queue: INPUT,
                start: 2 * offset,
                end: 2 * offset + 1,
            });
        }
        let batch = world.pending_writes.end_group(&mut world.messages, Urgency::Awaited);
        let is_answered = world.store(batch).is_some();
        let is_over = is_answered && world.store_all().is_some();
        drop(world);
        for segments_max in [3, 3, SEGMENTS] {
            disk.power_cut();
            disk.start(Trouble::Never);
            let world = GroupedCommits::open_with(&disk, segments_max).expect("it opens");
            let (input, output) = (world.live(INPUT), world.live(OUTPUT));
            assert!(input == INPUTS || output == 90, "cut {cut}: {input} and {output} of both are left");
            assert!(!is_answered || (input, output) == (0, 90), "cut {cut}: it was told to be safe");
            finished += u32::from(segments_max == 3 && !is_answered && output == 90);
        }
        let mut world = GroupedCommits::open(&disk).expect("it opens");
        assert!(matches!((world.live(INPUT), world.live(OUTPUT)), (0, 90) | (INPUTS, 0)), "cut {cut}");
        world.store_all().expect("the disk is well");
        if is_over {
            assert!(finished > 0, "no cut came between the two");
            return;
        }
    }
}

/// Writes messages one by one and stops cleanly. Returns the position of every commit.
fn stopped(messages: u64) -> (SimDisk, Vec<(u32, usize)>) {
    let disk = SimDisk::new(1, Mutant::None, IDENTITY);
    disk.start(Trouble::Never);
    let mut world = GroupedCommits::open(&disk).expect("it opens");
    for offset in 0..messages {
        world.publish(OUTPUT, offset, 1000);
        world.write_until(|world| world.pending_writes.is_empty() && !world.keeper.log().is_busy());
    }
    world.store_all().expect("the disk is well");
    let places = disk.written();
    (disk, places)
}

/// Only data behind it could prove that the last commit of a store was complete.
#[test]
fn after_a_clean_stop_no_lost_message_is_taken_for_a_torn_commit() {
    let mut lost = 0;
    for messages in [1, 2, 7] {
        for place in 0..stopped(messages).1.len() {
            let (disk, places) = stopped(messages);
            let (slot, at) = places[place];
            disk.flip(slot, at + 80);
            disk.start(Trouble::Never);
            let world = GroupedCommits::open(&disk).expect("it opens");
            let live = world.live(OUTPUT);
            assert!(live == messages || world.is_damaged, "{live} of {messages} without a word, {place}");
            lost += messages - live;
        }
    }
    assert!(lost > 0, "something was lost");
}

/// A large transaction is started in each of many epochs and never committed. Its written parts would fill
/// the disk if they were not reclaimed.
#[test]
fn transactions_that_were_started_and_never_committed_are_reclaimed() {
    const STARTS: u64 = 30;
    let disk = SimDisk::new(1, Mutant::None, IDENTITY);
    let mut begun = 0;
    for _ in 0..STARTS {
        disk.start(Trouble::Never);
        let mut world = GroupedCommits::open_with(&disk, 12).expect("it opens");
        assert_eq!(world.live(OUTPUT), 0, "none of it has happened");
        assert!(world.keeper.log().index().segments().len() < 10, "what is dead leaves the log");
        world.transact(&[], &[10_000; 90]);
        let before = world.keeper.log().counters().payload_bytes;
        let is_begun =
            |world: &GroupedCommits| world.keeper.log().counters().payload_bytes - before > 700_000;
        world.write_until(is_begun).expect("the disk is well");
        assert!(is_begun(&world), "there is room for it");
        begun += world.keeper.log().counters().payload_bytes - before;
        drop(world);
        disk.power_cut();
    }
    assert!(begun > 3 * 12 * (512 << 10), "{begun} bytes are too few to fill the disk");
    disk.start(Trouble::Never);
    let mut world = GroupedCommits::open_with(&disk, 12).expect("it opens");
    let batch = world.transact(&[], &[10_000; 90]);
    world.store(batch).expect("the disk is well");
    assert_eq!(world.live(OUTPUT), 90);
}

/// A transaction that exceeds the disk space waits with its written part, and does not use the reserve of the
/// compactor.
#[test]
fn an_unfinished_transaction_leaves_the_reserve_to_the_compactor() {
    const SEGMENTS: u32 = 12;
    let disk = SimDisk::new(1, Mutant::None, IDENTITY);
    disk.start(Trouble::Never);
    let mut world = GroupedCommits::open_with(&disk, SEGMENTS).expect("it opens");
    for offset in 0..80 {
        world.publish(INPUT, offset, 50_000);
    }
    world.store_all().expect("the disk is well");
    let batch = world.transact(&[], &[50_000; 60]);
    assert_eq!(world.store(batch), None, "there is no room for all of it");
    assert_eq!(world.live(OUTPUT), 0, "nothing of it has happened");
    let used = world.keeper.log().index().segments().len();
    assert!(used > 8, "some of it is begun: {used} segments");
    assert!(used <= SEGMENTS as usize - SEGMENTS_RESERVED, "{used} segments: it has the reserve");
    assert!(
        world.keeper.log().space().segments_free() <= SEGMENTS_RESERVED,
        "it takes all the room there is for it"
    );
}

/// Settlements beside a waiting transaction are written, and eventually free space for it.
#[test]
fn settlements_beside_a_waiting_transaction_are_written_and_free_its_space() {
    let disk = SimDisk::new(1, Mutant::None, IDENTITY);
    disk.start(Trouble::Never);
    let mut world = GroupedCommits::open_with(&disk, 12).expect("it opens");
    for offset in 0..80 {
        world.publish(INPUT, offset, 50_000);
    }
    world.store_all().expect("the disk is well");
    let batch = world.transact(&[], &[50_000; 30]);
    assert_eq!(world.store(batch), None, "there is no room for it");
    // A few of each segment, which free nothing, and then the rest.
    let few = (0..80).step_by(8).map(|start| (start, start + 1));
    for (settled, left) in [(few.collect::<Vec<_>>(), 70), (vec![(0, 80)], 0)] {
        assert_eq!(world.live(OUTPUT), 0, "nothing of it has happened");
        for (start, end) in settled {
            world.pending_writes.settle_stored(Settled { queue: INPUT, start, end });
        }
        world.keeper.flush(NOW);
        world.write_until(|world| world.live(INPUT) == left).expect("they are written");
    }
    world.store(batch).expect("there is room for it now");
    assert_eq!(world.live(OUTPUT), 30);
    world.check_bodies(&[50_000; 30]);
}
