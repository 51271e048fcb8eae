//! The records that must be copied before a segment is deleted: live messages, and all its settlements.

use std::collections::BTreeMap;

use leveret_core::time::Now;
use leveret_storage::{
    Body, Disk, Identity, Log, Message, Range, Ranges, Record, Settings, Target, Targets, Urgency,
};
use leveret_test_support::simulated_disk::{Mutant, SimDisk, Trouble};

use crate::sample::PLAIN;

const IDENTITY: Identity = Identity { id: *b"0123456789abcdef", secret: 0xCA_221ED };
const NOW: Now = Now::from_ms(1);
const SEGMENT_BYTES: u32 = 64 << 10;
const COMMIT_BYTES: u32 = 12 << 10;

fn settings(segments_max: u32) -> Settings {
    Settings {
        segment_bytes: SEGMENT_BYTES,
        commit_bytes: COMMIT_BYTES,
        segments_max,
        syncs_per_s: 0,
        ..Settings::default()
    }
}

struct RewrittenLog {
    log: Log,
    disk: SimDisk,
    segments_max: u32,
    /// The next offset of each queue.
    next: BTreeMap<u64, u64>,
}

impl RewrittenLog {
    fn new(seed: u64, segments_max: u32) -> Self {
        let disk = SimDisk::new(seed, Mutant::None, IDENTITY);
        disk.start(Trouble::Never);
        let opened = Log::open(&mut disk.clone(), settings(segments_max), IDENTITY, NOW);
        let log = opened.expect("it opens").0;
        Self { log, disk, segments_max, next: BTreeMap::new() }
    }

    /// Does what the helpers have to do, once. Returns `false` when the disk failed.
    fn turn(&mut self) -> bool {
        if let Some(job) = self.log.next_prepare()
            && self.log.prepare_done(job.run(&mut self.disk)).is_err()
        {
            return false;
        }
        if let Some(job) = self.log.next_compaction_read() {
            self.log.compaction_read_done(job.run(&mut self.disk));
        }
        let Some(job) = self.log.next_commit(NOW) else { return true };
        self.log.commit_done(job.run(&mut self.disk)).is_ok()
    }

    /// Writes everything.
    fn rest(&mut self) {
        for _ in 0..20 {
            self.log.flush();
            assert!(self.turn(), "the disk is well");
        }
    }

    fn append(&mut self, record: &Record<'_>) {
        let mut tries = 0;
        while self.log.append(record, Urgency::Window, NOW).is_err() {
            self.log.flush();
            assert!(self.turn() && tries < 1_000, "there is room");
            tries += 1;
        }
    }

    fn publish(&mut self, queues: &[u64], body: &[u8]) {
        let next = &mut self.next;
        let targets = queues.iter().map(|&queue| {
            let at = next.entry(queue).or_insert(0);
            *at += 1;
            Target { queue, offset: *at - 1 }
        });
        let targets: Vec<Target> = targets.collect();
        let message = Message { targets: Targets::List(&targets), body: Body::Inline(body), ..PLAIN };
        self.append(&Record::Message(message));
    }

    fn settle(&mut self, queue: u64, start: u64, end: u64) {
        self.log.settle(queue, Range { start, end }, Urgency::Window, NOW);
    }

    /// Publishes messages to a queue until another segment is opened.
    fn fill_segment(&mut self, queue: u64) {
        let newest = self.newest();
        while self.newest() == newest {
            self.publish(&[queue], &[7; 2_000]);
            self.rest();
        }
    }

    /// Returns the newest segment and its file.
    fn newest(&self) -> Option<(u64, u32)> {
        self.log.index().segments().iter().map(|(sequence, segment)| (*sequence, segment.slot)).next_back()
    }

    fn is_there(&self, queue: u64, offset: u64) -> bool {
        self.log.index().queues().get(&queue).is_some_and(|queue| queue.segment_of(offset).is_some())
    }

    /// Returns the log that a start finds in a copy of the disk.
    fn started(&self) -> Log {
        let mut copy = SimDisk::new(1, Mutant::None, IDENTITY);
        copy.start(Trouble::Never);
        for slot in self.disk.clone().slots().expect("the disk is well") {
            let mut bytes = vec![0; SEGMENT_BYTES as usize];
            let length = self.disk.clone().read(slot, 0, &mut bytes).expect("the disk is well");
            copy.create(slot).expect("the disk is well");
            copy.write(slot, 0, &bytes[..length]).expect("the disk is well");
            copy.sync(slot).expect("the disk is well");
        }
        copy.sync_directory().expect("the disk is well");
        let opened = Log::open(&mut copy, settings(self.segments_max), IDENTITY, NOW);
        opened.expect("it opens").0
    }
}

/// Writes a segment with one record that is still needed, by `say`, and compacts until the segment is
/// deleted. Returns the world, and the number of bytes copied.
fn cleaned(say: impl Fn(&mut RewrittenLog)) -> (RewrittenLog, u64) {
    let mut world = RewrittenLog::new(1, 10);
    say(&mut world);
    let first = world.newest().expect("there is one").0;
    world.fill_segment(8);
    let others = world.next[&8];
    world.settle(8, 0, others);
    // Some segments stay full, so that space is short.
    let mut ends = Vec::new();
    while world.log.index().segments().contains_key(&first) {
        world.fill_segment(9);
        ends.push(world.next[&9]);
        if let Some(old) = ends.len().checked_sub(6) {
            world.settle(9, 0, ends[old]);
            world.rest();
        }
        assert_eq!(world.log.unreadable_segments(), 0, "the cleaner has given up the segment");
        assert!(ends.len() < 40, "the segment never leaves");
    }
    let copied = world.log.counters().bytes_copied;
    (world, copied)
}

#[test]
fn the_chunks_of_a_body_that_is_needed_are_copied() {
    let part = |index: u32| vec![index as u8; 5_000];
    let (mut world, copied) = cleaned(|world| {
        let body = world.log.take_body_id();
        for index in 0..3 {
            world.append(&Record::Chunk { body, index, bytes: &part(index) });
        }
        let message = Message {
            targets: Targets::List(&[Target { queue: 1, offset: 0 }]),
            body: Body::Chunked { body, chunks: 3, bytes: 15_000 },
            ..PLAIN
        };
        world.append(&Record::Message(message));
        world.rest();
    });
    assert!((15_000..40_000).contains(&copied), "{copied} bytes are copied");
    world.log = world.started();
    for index in 0..3 {
        let job = world.log.fetch_chunk(1, index).expect("the buffer is free");
        let mut came = Vec::new();
        world.log.chunk_done(job.run(&mut world.disk), |bytes| {
            came.extend_from_slice(bytes.expect("it is there"))
        });
        assert_eq!(came, part(index));
    }
}

/// One copy serves all queues. A copy for only the first would cause the segment to be copied again for the
/// next.
#[test]
fn a_message_of_several_queues_is_copied_once_for_all_that_need_it() {
    let (world, copied) = cleaned(|world| {
        world.publish(&[1, 2, 3, 4], &[7; 9_000]);
        world.settle(2, 0, 1);
        world.rest();
    });
    assert!((9_000..18_000).contains(&copied), "{copied} bytes are copied");
    let log = world.started();
    let live = |queue| log.index().queues().get(&queue).map_or(0, |queue| queue.live);
    assert_eq!([1, 2, 3, 4].map(live), [1, 0, 1, 1]);
}

/// More is settled in one queue than fits into one or two commits. Whatever segments are deleted, no start at
/// any moment finds settled messages again.
///
/// That holds wherever the parts of the rewritten settlements are. The first may be in one segment and the
/// last in the next, and the first segment is deleted alone.
#[test]
fn settlements_with_more_ranges_than_a_commit_holds_are_carried_completely() {
    for (count, parts) in [(6_000, 2), (12_000, 3)] {
        is_carried_whole(count, parts);
    }
}

fn is_carried_whole(count: u64, parts: usize) {
    // Far apart, so that each takes some bytes.
    let offset = |n: u64| n << 21;
    let mut world = RewrittenLog::new(1, 60);
    for n in 0..count {
        let target = [Target { queue: 1, offset: offset(n) }];
        world.append(&Record::Message(Message {
            targets: Targets::List(&target),
            body: Body::Inline(b""),
            ..PLAIN
        }));
    }
    world.rest();
    // The settlements are in a segment that contains nothing else of importance.
    world.fill_segment(9);
    let settled: Vec<u64> = (0..count).filter(|n| n % 2 == 1).collect();
    for n in &settled {
        world.settle(1, offset(*n), offset(*n) + 1);
    }
    world.rest();
    let ranges: Vec<Range> =
        settled.iter().map(|n| Range { start: offset(*n), end: offset(*n) + 1 }).collect();
    let mut all = Vec::new();
    Record::Settled { queue: 1, ranges: Ranges::List(&ranges) }.encode(&mut all);
    assert!(all.len() > (parts - 1) * COMMIT_BYTES as usize, "{} bytes are too few", all.len());
    let check = |world: &RewrittenLog, case: &str| {
        let log = world.started();
        let queue = &log.index().queues()[&1];
        let is_back = |n: &&u64| queue.segment_of(offset(**n)).is_some();
        assert_eq!(settled.iter().filter(is_back).count(), 0, "{case}: what was settled is back");
        assert_eq!(queue.live, count / 2, "{case}");
    };
    let mut gone = 0;
    for round in 0..60 {
        // The numbers vary, so that the rewritten settlements begin anywhere in a segment and continue in the
        // next.
        for _ in 0..7 + round * 7 % 37 {
            world.publish(&[9], &[7; 1_500]);
        }
        world.rest();
        // A deletion of a segment is trusted once another commit follows.
        check(&world, &format!("{parts} parts, round {round}, behind what has left"));
        let end = world.next[&9];
        world.settle(9, 0, end);
        world.rest();
        check(&world, &format!("{parts} parts, round {round}"));
        gone = world.log.counters().segments_recycled;
    }
    assert!(gone > 15, "only {gone} segments have left");
}

/// A commit deletes a segment and repeats its settlements, and is only in the page cache when the process is
/// killed.
///
/// The next start opens another segment, because the header of this one is damaged. Then the power fails
/// before that commit is durable. If the start has reused the file of the deleted segment, its settlements
/// are lost.
#[test]
fn a_deleted_segment_is_not_believed_before_the_deletion_is_durable() {
    let (mut tried, mut opened) = (0, 0);
    for (fill, cut) in (0..14).flat_map(|fill| (0..9).map(move |cut| (fill, cut))) {
        for seed in 1..13 {
            let Some(mut world) = killed_as_it_leaves(seed, fill) else { continue };
            tried += 1;
            let newest = world.newest();
            world.disk.revive();
            // A full segment is synced when it is sealed, and then there is no problem; a damaged one is not
            // sealed.
            world.disk.flip(newest.expect("there is one").1, 20);
            world.disk.start(Trouble::Cut(cut));
            let start = Log::open(&mut world.disk.clone(), settings(60), IDENTITY, NOW);
            drop(start);
            world.disk.power_cut();
            world.disk.start(Trouble::Never);
            let start = Log::open(&mut world.disk.clone(), settings(60), IDENTITY, NOW);
            world.log = start.expect("it opens").0;
            opened += usize::from(world.newest() > newest);
            let case = format!("{fill} commits, cut at {cut}, seed {seed}");
            assert!(!world.is_there(1, 0), "{case}: what was settled is back");
            assert!(world.is_there(1, 1), "{case}: what was not is gone");
        }
    }
    assert!(tried > 100 && opened > 20, "{tried} tried, {opened} of them opened a segment");
}

/// Kills the process between the write and the sync of the commit that deletes a segment.
///
/// The newest segment has `fill` commits before this one. Returns `None` if it has no space for them. The
/// file of the deleted segment follows that of the newest one, so a start uses it first.
fn killed_as_it_leaves(seed: u64, fill: u64) -> Option<RewrittenLog> {
    let mut world = RewrittenLog::new(seed, 60);
    // File 0 keeps a message; the message beside it is settled in another file.
    world.publish(&[1], &[7; 100]);
    world.publish(&[1], &[7; 100]);
    (0..3).for_each(|queue| world.fill_segment(20 + queue));
    // Files 2 and 1 become free in this order. The last message of each queue is in the file behind.
    for (queue, before) in [(22, 21), (21, 20)] {
        let (all, last) = (world.next[&queue], world.next[&before]);
        world.settle(queue, 0, all);
        world.settle(before, last - 1, last);
        world.rest();
    }
    while world.newest()?.1 != 2 {
        world.fill_segment(8);
    }
    world.settle(1, 0, 1);
    world.rest();
    world.fill_segment(8);
    assert_eq!(world.newest()?.1, 1, "the free files are taken in turn");
    let newest = world.newest();
    for _ in 0..fill {
        world.publish(&[9], &[7; 2_000]);
        world.log.flush();
        assert!(world.turn(), "the disk is well");
    }
    if world.newest() != newest {
        return None;
    }
    world.disk.foresee(Trouble::KillAsLeft(0));
    let all = world.next[&8];
    world.settle(8, 0, all);
    for _ in 0..10 {
        world.log.flush();
        if !world.turn() {
            return world.disk.is_killed().then_some(world);
        }
    }
    panic!("the segment does not leave")
}
