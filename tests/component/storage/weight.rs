//! Memory of the index, by counts: the bytes of a queue, a definition and a segment, and what is freed when
//! everything is consumed.

use leveret_core::definition::{self, Definition, DestinationName};
use leveret_core::time::Now;
use leveret_storage::IndexCapacity;
use leveret_storage::{
    AppendRefused, Body, DEFINITION_BYTES, EMPTY_QUEUE_BYTES, Identity, Log, Message, Range, Record,
    Settings, Target, Targets, Urgency,
};
use leveret_test_support::random::Random;
use leveret_test_support::simulated_disk::{Mutant, SimDisk, Trouble};

use crate::sample::PLAIN;

const IDENTITY: Identity = Identity { id: *b"0123456789abcdef", secret: 0xF112 };
/// The body of a queue's message in each segment, as on a small board with 400 queues.
const BODY: [u8; 1_000] = [7; 1_000];

struct IndexWeight {
    log: Log,
    disk: SimDisk,
    random: Random,
    now: Now,
    version: u64,
    /// Next offset by queue.
    next: Vec<u64>,
}

fn name_of(queue: u64) -> String {
    format!("site.7.device.{queue:04}.commands")
}

fn definition_of(name: &str, queue: u64) -> Definition<'_> {
    Definition::Queue(definition::Queue { vhost: "/", name, incarnation: 1 + queue, ..Default::default() })
}

impl IndexWeight {
    fn new(queues: u64, segment_bytes: u32, index_bytes: usize) -> Self {
        let disk = SimDisk::new(1, Mutant::None, IDENTITY);
        disk.start(Trouble::Never);
        let settings = Settings {
            segment_bytes,
            commit_bytes: segment_bytes / 4 / 4_096 * 4_096,
            segments_max: 400,
            index_bytes,
            ..Settings::default()
        };
        let now = Now::from_ms(1);
        let log = Log::open(&mut disk.clone(), settings, IDENTITY, now).expect("it opens").0;
        let version = u64::from(log.epoch()) << 32;
        Self { log, disk, random: Random::new(9), now, version, next: vec![0; queues as usize] }
    }

    /// Does what the event loop does until there is nothing to do and all commit windows are over.
    fn rest(&mut self) {
        let mut idle = 0;
        while idle < 3 {
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

    fn define(&mut self, definition: &Definition<'_>) {
        self.version += 1;
        let (key, value) = (definition.key(), definition.value());
        let record = Record::Defined { version: self.version, key: &key, value: Some(&value) };
        while self.log.append_reserved(&record, Urgency::Awaited, self.now).is_err() {
            self.rest();
        }
    }

    fn declare(&mut self, queue: u64) {
        self.define(&definition_of(&name_of(queue), queue));
    }

    fn delete(&mut self, queue: u64) {
        self.version += 1;
        let (name, version) = (name_of(queue), self.version);
        let key = definition_of(&name, queue).key();
        let gone = Record::Gone { queue: 1 + queue };
        while self.log.append_reserved(&gone, Urgency::Awaited, self.now).is_err() {
            self.rest();
        }
        let record = Record::Defined { version, key: &key, value: None };
        while self.log.append_reserved(&record, Urgency::Awaited, self.now).is_err() {
            self.rest();
        }
    }

    /// Runs one turn of the event loop.
    fn step(&mut self) {
        self.now = Now::from_ms(self.now.as_ms() + 100);
        while let Some(job) = self.log.next_prepare() {
            self.log.prepare_done(job.run(&mut self.disk)).expect("the disk is well");
        }
        if let Some(job) = self.log.next_compaction_read() {
            self.log.compaction_read_done(job.run(&mut self.disk));
        }
        if let Some(job) = self.log.next_commit(self.now) {
            self.log.commit_done(job.run(&mut self.disk)).expect("the disk is well");
        }
    }

    fn bind(&mut self, queue: u64, key: u64) {
        let name = name_of(queue);
        self.define(&Definition::Binding(definition::Binding {
            vhost: "/",
            source: "amq.topic",
            destination: DestinationName::Queue(&name),
            destination_version: 1 + queue,
            routing_key: &format!("site.7.device.{queue:04}.{key}"),
            ..Default::default()
        }));
    }

    /// Publishes a message. Returns whether it was accepted.
    fn publish(&mut self, queue: u64) -> bool {
        self.publish_bytes(queue, &BODY)
    }

    fn publish_bytes(&mut self, queue: u64, body: &[u8]) -> bool {
        let to = Target { queue: 1 + queue, offset: self.next[queue as usize] };
        let record =
            Record::Message(Message { targets: Targets::List(&[to]), body: Body::Inline(body), ..PLAIN });
        for _ in 0..3 {
            match self.log.append(&record, Urgency::Awaited, self.now) {
                Ok(_) => {
                    self.next[queue as usize] += 1;
                    return true;
                }
                Err(AppendRefused::TooLarge) => panic!("it is small"),
                Err(AppendRefused::CommitFull | AppendRefused::Disk) => self.rest(),
            }
        }
        false
    }

    fn settle(&mut self, queue: u64, start: u64, end: u64) {
        self.log.settle(1 + queue, Range { start, end }, Urgency::Lazy, self.now);
    }

    fn settle_all(&mut self) {
        for queue in 0..self.next.len() as u64 {
            self.settle(queue, 0, self.next[queue as usize]);
        }
        self.rest();
    }

    /// Returns whether the index is full.
    fn is_full(&self) -> bool {
        self.log.space().index_capacity() == IndexCapacity::Exhausted
    }

    fn bytes(&self) -> f64 {
        self.log.index().bytes() as f64
    }
}

/// Returns a store with this many queues, each with four bindings.
fn declared(queues: u64, segment_bytes: u32, index_bytes: usize) -> IndexWeight {
    let mut world = IndexWeight::new(queues, segment_bytes, index_bytes);
    for queue in 0..queues {
        world.declare(queue);
        (0..4).for_each(|key| world.bind(queue, key));
    }
    world.rest();
    world
}

#[test]
fn queues_and_definitions_use_the_memory_stated_in_the_memory_table() {
    let nothing = IndexWeight::new(100, 256 << 10, 64 << 20).bytes();
    let mut world = declared(100, 256 << 10, 64 << 20);
    let definition = (world.bytes() - nothing) / 500.0;
    let before = world.bytes();
    for queue in 0..100 {
        assert!(world.publish(queue));
    }
    world.rest();
    world.settle_all();
    let queue = (world.bytes() - before) / 100.0;
    println!("{definition:.0} bytes a definition, {queue:.0} a queue that is empty again");
    // The keys of bindings are a little longer here.
    assert!(definition <= DEFINITION_BYTES as f64 + 16.0, "{definition} of {DEFINITION_BYTES} bytes");
    // Meanwhile each of its five definitions is also in a second segment.
    assert!(queue <= EMPTY_QUEUE_BYTES as f64 + 5.0 * 8.0 + 16.0, "{queue} of {EMPTY_QUEUE_BYTES} bytes");
}

#[test]
fn four_hundred_queues_block_no_publisher_however_small_the_index_is() {
    let mut world = declared(400, 1 << 20, 256 << 10);
    for n in 0..2_000 {
        assert!(world.publish(n % 400) && !world.is_full(), "at message {n}");
    }
    world.rest();
    world.settle_all();
    assert!(world.publish(0) && !world.is_full(), "everything is consumed");
}

#[test]
fn a_full_index_is_empty_again_when_everything_is_consumed() {
    let mut world = declared(200, 64 << 10, 96 << 10);
    let before = world.bytes();
    let mut n = 0;
    while !world.is_full() {
        world.publish(n % 200);
        n += 1;
        assert!(n < 200_000, "it is never full");
    }
    world.rest();
    assert!(!world.publish(0) && world.log.space().room_bytes() == 0, "publishers wait");
    let full = world.bytes();
    world.settle_all();
    assert!(world.publish(0) && !world.is_full(), "everything is consumed");
    world.settle_all();
    let left = (world.bytes() - before) / 200.0;
    println!("{left:.0} bytes a queue stay, of {:.0}", (full - before) / 200.0);
    // Less than the fixed size of a queue, and a little for the remaining segments.
    assert!(left <= EMPTY_QUEUE_BYTES as f64 + 32.0, "{left} bytes a queue stay");
}

/// Names like those of a client that declares a queue for each answer.
#[test]
fn queues_that_are_used_once_and_deleted_block_no_publisher() {
    const QUEUES: u64 = 40_000;
    let mut world = IndexWeight::new(QUEUES, 8 << 20, 1 << 20);
    let mut most = 0;
    for queue in 0..QUEUES {
        world.declare(queue);
        let is_taken = world.publish_bytes(queue, b"21.5");
        most = most.max(world.log.index().bytes());
        assert!(is_taken, "at queue {queue}, with {most} bytes");
        world.delete(queue);
        if queue % 16 == 0 {
            world.step();
        }
    }
    println!("{most} bytes at most");
    world.rest();
    assert!(most < (1 << 20) / 4 * 5, "{most} bytes");
}

/// Returns the bytes per segment for each queue with messages in it, without the segment itself.
fn bytes_of_pair(mut load: impl FnMut(&mut IndexWeight)) -> f64 {
    const QUEUES: u64 = 40;
    let mut sizes = [(0.0, 0.0); 2];
    for (at, segments) in [(0, 20), (1, 140)] {
        let mut world = IndexWeight::new(QUEUES, 400 << 10, 64 << 20);
        (0..QUEUES).for_each(|queue| world.declare(queue));
        while world.log.index().segments().len() < segments {
            (0..QUEUES).for_each(|_| load(&mut world));
        }
        world.rest();
        sizes[at] = (world.bytes(), world.log.index().segments().len() as f64);
        world.settle_all();
    }
    let [(few, from), (many, to)] = sizes;
    // The segment itself, with the positions of its footer's parts.
    let alone = 260.0;
    ((many - few) / (to - from) - alone) / QUEUES as f64
}

#[test]
fn a_queue_takes_a_byte_or_two_of_each_segment_in_order_and_some_for_each_message_left_out_of_order() {
    let in_order = {
        let mut n = 0;
        bytes_of_pair(|world| {
            n += 1;
            assert!(world.publish(n % 40));
        })
    };
    // Some messages of each queue are unacknowledged; one in five is requeued and acknowledged later.
    let mut held = Vec::new();
    let mut n = 0;
    let requeued = bytes_of_pair(|world| {
        n += 1;
        let queue = n % 40;
        let at = world.next[queue as usize];
        assert!(world.publish(queue));
        if n <= 40 || at == 0 {
            held.clear();
        }
        if at % 3 == 0 {
            held.push((queue, at));
        }
        while held.len() > 400 {
            let at = world.random.below(held.len() as u64) as usize;
            if world.random.below(5) > 0 {
                let (queue, offset) = held.swap_remove(at);
                world.settle(queue, offset, offset + 1);
            }
        }
    });
    let mut left = Vec::new();
    for keep in [2, 4, 10] {
        let mut n = 0;
        left.push(bytes_of_pair(|world| {
            n += 1;
            let queue = n % 40;
            let at = world.next[queue as usize];
            assert!(world.publish(queue));
            if world.random.below(keep) > 0 {
                world.settle(queue, at, at + 1);
            }
        }));
    }
    println!("in order {in_order:.2}, a third in no order {requeued:.2}, one in 2, 4, 10 stays {left:.2?}");
    assert!(in_order < 2.0, "{in_order} bytes in order");
    // Two or more ranges of each queue in each segment.
    assert!(requeued < 25.0, "{requeued} bytes when a third is acknowledged in no order");
    assert!(left.iter().all(|bytes| *bytes < 12.0), "{left:?} bytes when others stay");
}

/// How a deep store is drained.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Drain {
    /// One queue after the other, in order.
    OneByOne,
    /// A few messages of each queue in turn.
    InTurn,
    /// As `InTurn`, and every other message stays until the second round.
    WithHoles,
}

/// Consumers drain a thousand deep queues that are interleaved in hundreds of segments, in different orders.
/// The index never grows much.
#[test]
fn a_thousand_deep_queues_are_drained_within_the_memory_that_they_took() {
    const QUEUES: u64 = 1_000;
    const DEPTH: u64 = 60;
    // Measured: nothing at all in order, and 112 bytes for the thirty ranges of a queue with holes.
    for (drain, more_max) in
        [(Drain::OneByOne, 16e3), (Drain::InTurn, 16e3), (Drain::WithHoles, QUEUES as f64 * 160.0)]
    {
        let mut world = IndexWeight::new(QUEUES, 256 << 10, 64 << 20);
        (0..QUEUES).for_each(|queue| world.declare(queue));
        world.rest();
        let standing = world.bytes();
        for n in 0..QUEUES * DEPTH {
            assert!(world.publish(n % QUEUES), "message {n}");
        }
        world.rest();
        let (before, segments) = (world.bytes(), world.log.index().segments().len());
        assert!(segments > 200, "{segments} segments");
        let (mut most, mut count) = (before, 0_u64);
        let mut take = |world: &mut IndexWeight, queue, start, end| {
            world.settle(queue, start, end);
            count += 1;
            if count.is_multiple_of(50) {
                world.step();
                most = world.bytes().max(most);
            }
        };
        match drain {
            Drain::OneByOne => {
                for queue in 0..QUEUES {
                    (0..DEPTH / 4).for_each(|at| take(&mut world, queue, 4 * at, 4 * at + 4));
                }
            }
            Drain::InTurn => {
                for at in 0..DEPTH / 4 {
                    (0..QUEUES).for_each(|queue| take(&mut world, queue, 4 * at, 4 * at + 4));
                }
            }
            Drain::WithHoles => {
                for at in (0..DEPTH).step_by(2).chain((1..DEPTH).step_by(2)) {
                    (0..QUEUES).for_each(|queue| take(&mut world, queue, at, at + 1));
                }
            }
        }
        world.rest();
        let after = world.bytes();
        println!(
            "{drain:?}: {segments} segments, {standing} bytes stand, {before} before, {:+} at most, {after} after",
            most - before
        );
        assert!(most <= before + more_max, "{drain:?}: {most} bytes, {before} before");
        assert!(after <= standing + QUEUES as f64 * (EMPTY_QUEUE_BYTES as f64 + 32.0), "{after} bytes stay");
    }
}
