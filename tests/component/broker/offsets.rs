//! Offsets have 64 bits and advance with every message, including messages that are never written. So a busy
//! queue passes every smaller width in time. These are property tests around each width.

use crate::dead_letters::{PERSISTENT, declare, get, publish};
use crate::support::TestBroker;
use leveret_broker::Restored;
use leveret_core::command::{QueueId, Settlement};
use leveret_core::definition::{self, Definition};
use leveret_core::limits::Limits;
use leveret_core::time::Now;
use leveret_queues::{Contents, LogRead, PageInOutcome, ReadMessage};
use leveret_storage::LogEntry;
use leveret_storage::{
    AppendRefused, Body, Identity, Log, Message, Range, Record, Settings, Target, Targets, Urgency,
};
use leveret_test_support::simulated_disk::{Mutant, SimDisk, Trouble};
use proptest::prelude::*;

const IDENTITY: Identity = Identity { id: *b"0123456789abcdef", secret: 0x0FF5 };
const NOW: Now = Now::from_ms(1);
const INCARNATION: u64 = 7;

/// Integer widths at which offsets could overflow.
const WIDTHS: [u32; 6] = [16, 29, 31, 32, 48, 56];

/// Returns runs of offsets, whose distances are close to one of the widths.
fn runs() -> impl Strategy<Value = Vec<Range>> {
    let step = (0..WIDTHS.len(), -3_i64..4, 1_u64..4);
    prop::collection::vec(step, 1..6).prop_map(|steps| {
        let (mut runs, mut at) = (Vec::new(), 0);
        for (width, more, count) in steps {
            runs.push(Range { start: at, end: at + count });
            at += count + (1_u64 << WIDTHS[width]).saturating_add_signed(more);
        }
        runs.push(Range { start: at, end: at + 1 });
        runs
    })
}

fn offsets(runs: &[Range]) -> Vec<u64> {
    runs.iter().flat_map(|run| run.start..run.end).collect()
}

/// Returns a broker started with these messages of a queue in its log.
fn restored(runs: &[Range]) -> (TestBroker, QueueId) {
    let mut node =
        TestBroker::with(&Limits { unacknowledged_max: 64, connections_max: 16, ..Limits::default() });
    node.pending_writes.start(2, true, 1 << 20);
    let definition = Definition::Queue(definition::Queue {
        vhost: "/",
        name: "q",
        incarnation: INCARNATION,
        ..Default::default()
    });
    let Restored::Exists(Some(queue)) = node.broker.restore(&mut context!(node), &definition) else {
        panic!("it is taken")
    };
    let (count, next_offset) = (offsets(runs).len() as u64, runs.last().map_or(0, |run| run.end));
    let contents = Contents {
        count,
        bytes: 100 * count,
        next_offset,
        delivered_below: next_offset,
        watermark: next_offset,
    };
    node.broker.queues_mut().restore_contents(queue, &contents);
    for run in runs {
        assert!(node.broker.queues_mut().restore_messages(queue, run.start, run.end));
    }
    (node, queue)
}

/// A power cut may lose a message and keep its return count, which is stored separately. The offset is then
/// used by another message, which has not been returned.
#[test]
fn the_return_count_of_a_lost_message_does_not_apply_to_another() {
    let limits = Limits { unacknowledged_max: 64, connections_max: 16, ..Limits::default() };
    let mut node = TestBroker::with(&limits);
    node.pending_writes.start(2, true, 1 << 20);
    let limit = b"\x0cx-queue-typeS\0\0\0\x06quorum\x10x-delivery-limitb\x02";
    // The message at offset 0 was returned twice.
    let returns = b"\x0fleveret-returnsx\0\0\0\x0a\0\0\0\0\0\0\0\0\0\x02";
    let definition = Definition::Queue(definition::Queue {
        vhost: "/",
        name: "q",
        incarnation: INCARNATION,
        arguments: &[&limit[..], returns].concat(),
        ..Default::default()
    });
    let Restored::Exists(Some(queue)) = node.broker.restore(&mut context!(node), &definition) else {
        panic!("it is taken")
    };
    node.broker.queues_mut().restore_contents(queue, &Contents::default());
    node.broker.deliver(&mut context!(node), 8);
    let Some(LogEntry::Defined { key, value: Some(value), .. }) = node.pending_writes.next_entry() else {
        panic!("the next start is told, too")
    };
    let Some(Definition::Queue(definition::Queue { arguments, .. })) = Definition::parse(key, value) else {
        panic!("it is what defines the queue")
    };
    assert_eq!(arguments, limit, "nothing is said of a message any more");
    let at = node.connect();
    publish(&mut node, at, "q", PERSISTENT, "x").unwrap();
    let first = get(&mut node, at, "q").expect("it is there");
    node.settle(at, first.tag, false, Settlement::Requeue);
    node.turns(at);
    assert_eq!(node.ready(at, "q"), 1, "it came back once");
}

/// As in RabbitMQ, a quorum queue stores all its messages, whatever their `delivery_mode`.
#[test]
fn every_message_in_a_quorum_queue_is_persistent() {
    let mut node = TestBroker::new(64);
    node.pending_writes.start(2, true, 1 << 20);
    let at = node.connect();
    declare(&mut node, at, "classic", true, &[]);
    declare(&mut node, at, "quorum", true, b"\x0cx-queue-typeS\0\0\0\x06quorum");
    let waiting = |node: &TestBroker| node.pending_writes.len();
    publish(&mut node, at, "classic", &[0, 0], "x").unwrap();
    assert_eq!(waiting(&node), 0);
    publish(&mut node, at, "quorum", &[0, 0], "x").unwrap();
    assert_eq!(waiting(&node), 1);
    publish(&mut node, at, "quorum", PERSISTENT, "x").unwrap();
    assert_eq!(waiting(&node), 2);
}

/// Loads the requested messages, all of which exist. Returns the offsets whose messages were still wanted.
fn read_back(node: &mut TestBroker, fetch: &LogRead) -> Vec<u64> {
    let mut taken = Vec::new();
    for offset in fetch.start..fetch.end {
        let page = ReadMessage {
            offset,
            exchange: "",
            routing_key: b"q",
            properties: &[0, 0],
            body_len: 3,
            enqueued_ms: 0,
        };
        if let PageInOutcome::Begun(id) = node.broker.queues_mut().page_in(&mut node.messages, fetch, &page) {
            node.messages.append_body(id, b"abc");
            assert!(node.broker.queues_mut().paged_in(&mut context!(node), fetch, offset, 0, id));
            taken.push(offset);
        }
    }
    node.broker.queues_mut().end_read(fetch, fetch.end);
    taken
}

/// Returns the offsets that the journal records as settled in the queue.
fn settled(node: &mut TestBroker) -> Vec<u64> {
    let mut settled = Vec::new();
    node.pending_writes.drain_settles(|said| {
        assert_eq!(said.queue, INCARNATION);
        settled.extend(said.start..said.end);
    });
    settled.sort_unstable();
    settled
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Each message is requested, loaded, delivered and settled under its own offset, however far apart they
    /// are.
    #[test]
    fn a_queue_loads_messages_with_distant_offsets(runs in runs(), comes_back in any::<bool>()) {
        let expected = offsets(&runs);
        let (mut node, _) = restored(&runs);
        let at = node.connect();
        node.consume(at, "q");
        let (mut asked, mut delivered) = (Vec::new(), 0);
        for _ in 0..4 * expected.len() {
            delivered += node.turns(at);
            let Some(fetch) = node.broker.queues_mut().next_read(&node.messages) else { break };
            asked.extend(read_back(&mut node, &fetch));
        }
        prop_assert_eq!(&asked, &expected);
        prop_assert_eq!(delivered as usize, expected.len());
        let mut tag = delivered.into();
        if comes_back {
            node.settle(at, 0, true, Settlement::Requeue);
            prop_assert_eq!(node.turns(at), delivered);
            tag *= 2;
        }
        node.settle(at, tag, true, Settlement::Ack);
        while node.broker.run_jobs(&mut context!(node)) {}
        prop_assert_eq!(settled(&mut node), expected);
    }

    /// A store keeps exactly what is appended and not settled, also after a start.
    #[test]
    fn a_log_keeps_messages_with_distant_offsets(runs in runs(), kept in any::<u32>()) {
        let all = offsets(&runs);
        let is_kept = |at: usize| kept >> (at % 32) & 1 == 0;
        let expected: Vec<u64> = (0..all.len()).filter(|at| is_kept(*at)).map(|at| all[at]).collect();
        let mut disk = SimDisk::new(1, Mutant::None, IDENTITY);
        let mut log = open(&disk);
        for offset in &all {
            append(&mut log, &mut disk, *offset);
        }
        for (at, offset) in all.iter().enumerate().filter(|(at, _)| !is_kept(*at)) {
            log.settle(1, Range { start: *offset, end: offset + 1 }, Urgency::Lazy, NOW);
            let gap = Range { start: offset + 1, end: all.get(at + 1).map_or(offset + 1, |next| *next) };
            log.settle(1, gap, Urgency::Lazy, NOW);
        }
        for _ in 0..2 {
            log.flush();
            write(&mut log, &mut disk);
        }
        for _ in 0..2 {
            let known = &log.index().queues()[&1];
            let live: Vec<u64> = known.live_ranges().flat_map(|range| range.start..range.end).collect();
            prop_assert_eq!(&live, &expected);
            prop_assert_eq!(known.live, expected.len() as u64);
            prop_assert_eq!(found(&mut log, &mut disk), expected.clone());
            log = open(&disk);
        }
    }
}

/// A requeued message that waits for a free delivery is distinguished from a new one, however far apart their
/// offsets are.
#[test]
fn a_requeued_message_keeps_its_identity_while_the_queue_continues() {
    for width in WIDTHS {
        let far = 1_u64 << width;
        let runs = [Range { start: 0, end: 40 }, Range { start: far + 40, end: far + 41 }];
        let (mut node, _) = restored(&runs);
        // One connection alone may not have more than half of all deliveries, and more than half are to be
        // requeued.
        let both = [node.connect(), node.connect()];
        for at in both {
            node.consume(at, "q");
        }
        for settlement in [Settlement::Requeue, Settlement::Ack] {
            let mut delivered = 0;
            for _ in 0..100 {
                if let Some(fetch) = node.broker.queues_mut().next_read(&node.messages) {
                    read_back(&mut node, &fetch);
                }
                delivered += both.map(|at| node.turn(at)).iter().sum::<u32>();
            }
            assert_eq!(delivered, 41, "2^{width}, {settlement:?}");
            for at in both {
                node.settle(at, 0, true, settlement);
            }
            while node.broker.run_jobs(&mut context!(node)) {}
        }
        assert_eq!(settled(&mut node), offsets(&runs), "2^{width}");
    }
}

fn open(disk: &SimDisk) -> Log {
    disk.start(Trouble::Never);
    Log::open(&mut disk.clone(), Settings::default(), IDENTITY, NOW).expect("it opens").0
}

fn write(log: &mut Log, disk: &mut SimDisk) {
    while let Some(job) = log.next_prepare() {
        log.prepare_done(job.run(disk)).expect("the disk is well");
    }
    if let Some(job) = log.next_commit(NOW) {
        log.commit_done(job.run(disk)).expect("the disk is well");
    }
}

fn append(log: &mut Log, disk: &mut SimDisk, offset: u64) {
    let record = Record::Message(Message {
        targets: Targets::List(&[Target { queue: 1, offset }]),
        enqueued_ms: 1,
        expiration_ms: None,
        exchange: b"",
        key: b"q",
        properties: &[0, 0],
        body: Body::Inline(&offset.to_le_bytes()),
    });
    while let Err(refused) = log.append(&record, Urgency::Awaited, NOW) {
        assert_eq!(refused, AppendRefused::CommitFull);
        write(log, disk);
    }
}

/// Returns everything that fetches load.
fn found(log: &mut Log, disk: &mut SimDisk) -> Vec<u64> {
    let (mut found, mut at) = (Vec::new(), 0);
    while at < u64::MAX {
        let job = log.fetch(1, Range { start: at, end: u64::MAX }, 64 << 10).expect("the buffer is free");
        let fetched = log.fetch_done(job.run(disk), |offset, message| {
            assert_eq!(message.body, Body::Inline(&offset.to_le_bytes()));
            found.push(offset);
        });
        assert!(!fetched.retry && fetched.error.is_none());
        at = fetched.through;
    }
    found
}
