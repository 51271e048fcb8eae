//! Queues with priorities, compared with a model: any order of publishing, consuming, requeuing and purging.

use std::collections::BTreeMap;

use crate::dead_letters::{BrokerRun, disk, get, message_to};
use crate::spilling::store;
use crate::support::{At, PRIORITIES, TestBroker, with_priority};
use leveret_broker::Restored;
use leveret_core::command::{
    ChannelCommand, DefinitionAnswer, DefinitionCommand, PublishAnswer, PublishCommand, Settlement,
};
use leveret_core::definition::{self, Definition};
use leveret_core::error::Fault;
use leveret_core::limits::Limits;
use leveret_queues::levels_of;
use leveret_storage::LogEntry;
use leveret_test_support::random::Random;
use leveret_test_support::simulated_disk::{SimDisk, Trouble};

/// The highest priority of [`PRIORITIES`].
const MAX: u8 = 5;
const QUEUE: &str = "q";

fn declare(node: &mut TestBroker, at: At, queue: &str, more: &[u8]) {
    let arguments = &[PRIORITIES, more].concat();
    let (passive, durable, exclusive, auto_delete) = (false, false, false, false);
    node.done(
        at,
        DefinitionCommand::QueueDeclare { queue, passive, durable, exclusive, auto_delete, arguments },
    );
}

fn send(node: &mut TestBroker, at: At, priority: Option<u8>, body: &str) -> Result<PublishAnswer, Fault> {
    send_with(node, at, &priority.map_or(vec![0, 0], with_priority), body)
}

fn send_with(node: &mut TestBroker, at: At, properties: &[u8], body: &str) -> Result<PublishAnswer, Fault> {
    let message = message_to(node, "", QUEUE, properties, body.as_bytes());
    node.ask(at, PublishCommand::Publish { message, mandatory: false })
}

/// The expected content of the queue: by priority, the highest last, each in order of arrival.
#[derive(Default)]
struct Model {
    waiting: BTreeMap<(u8, u64), String>,
    /// Delivered messages: the position of each, by tag.
    taken: BTreeMap<u64, ((u8, u64), String)>,
    sent: u64,
}

impl Model {
    fn send(&mut self, priority: Option<u8>) -> String {
        self.sent += 1;
        let (level, body) = (priority.unwrap_or(0).min(MAX), format!("{priority:?} {}", self.sent));
        self.waiting.insert((level, self.sent), body.clone());
        body
    }

    fn first(&self) -> Option<(u8, u64)> {
        let highest = self.waiting.keys().next_back()?.0;
        self.waiting.range((highest, 0)..).next().map(|(place, _)| *place)
    }

    fn take(&mut self) -> Option<((u8, u64), String)> {
        let place = self.first()?;
        self.waiting.remove_entry(&place)
    }
}

fn run(seed: u64, length_max: Option<u8>) {
    let mut random = Random::new(seed);
    let mut node = TestBroker::new(1_024);
    let at = node.connect();
    let limit = length_max.map(|max| [b"\x0cx-max-lengthb".as_slice(), &[max]].concat());
    declare(&mut node, at, QUEUE, &limit.unwrap_or_default());
    let mut model = Model::default();
    for step in 0..400 {
        match random.below(16) {
            0..=5 => {
                let priority = random.one_of(&[None, Some(0), Some(1), Some(4), Some(5), Some(9), Some(255)]);
                let body = model.send(priority);
                assert_eq!(send(&mut node, at, priority, &body), Ok(PublishAnswer::Published));
            }
            6..=10 => {
                let expected = model.take();
                let got = get(&mut node, at, QUEUE);
                let body = got.as_ref().map(|got| got.body.clone());
                assert_eq!(body, expected.as_ref().map(|(_, body)| body.clone()), "seed {seed}, step {step}");
                if let (Some(got), Some(taken)) = (got, expected) {
                    assert_eq!(got.left as usize, model.waiting.len(), "seed {seed}, step {step}");
                    model.taken.insert(got.tag, taken);
                }
            }
            11..=13 => {
                let tags: Vec<u64> = model.taken.keys().copied().collect();
                if !tags.is_empty() {
                    let tag = random.one_of(&tags);
                    let (place, body) = model.taken.remove(&tag).unwrap();
                    let settlement = random.one_of(&[Settlement::Requeue, Settlement::Ack]);
                    if settlement == Settlement::Requeue {
                        model.waiting.insert(place, body);
                    }
                    node.settle(at, tag, false, settlement);
                }
            }
            14 => {
                node.done(at, ChannelCommand::Recover);
                for (place, body) in core::mem::take(&mut model.taken).into_values() {
                    model.waiting.insert(place, body);
                }
            }
            _ if random.below(8) == 0 => {
                let count = model.waiting.len() as u32;
                assert_eq!(
                    node.ask(at, DefinitionCommand::QueuePurge { queue: QUEUE }),
                    Ok(DefinitionAnswer::QueuePurged(count)),
                    "seed {seed}, step {step}"
                );
                model.waiting.clear();
            }
            _ => {}
        }
        node.turns(at);
        while length_max.is_some_and(|max| model.waiting.len() > max.into()) {
            model.take();
        }
        assert_eq!(node.ready(at, QUEUE) as usize, model.waiting.len(), "seed {seed}, step {step}");
        assert_eq!(node.broker.queues().forgotten_queue(), None);
    }
    node.done(at, DefinitionCommand::QueueDelete { queue: QUEUE, if_unused: false, if_empty: false });
    node.done(at, ChannelCommand::Recover);
    node.turns(at);
    assert_eq!(node.broker.gauges().queues, 0, "seed {seed}: a level was left");
    assert_eq!(node.messages.messages_used(), 0, "seed {seed}: messages were left");
}

#[test]
fn the_highest_priority_goes_first_and_requeued_messages_return_to_their_positions() {
    for seed in 0..200 {
        run(seed, None);
    }
}

#[test]
fn the_length_limit_drops_messages_of_the_highest_priority_first() {
    for seed in 0..200 {
        run(seed, Some((seed % 12) as u8));
    }
}

/// A message is neither rejected nor lost because its priority level has no capacity.
#[test]
fn without_capacity_for_a_level_messages_wait_in_the_next_lower_one() {
    let limits = Limits { queues_max: 4, unacknowledged_max: 64, connections_max: 16, ..Limits::default() };
    let mut node = TestBroker::with(&limits);
    let at = node.connect();
    declare(&mut node, at, QUEUE, &[]);
    node.declare(at, "other", false);
    for (priority, body) in [(0, "a"), (3, "b"), (5, "c"), (2, "d"), (4, "e")] {
        assert_eq!(send(&mut node, at, Some(priority), body), Ok(PublishAnswer::Published));
    }
    let all: Vec<_> = core::iter::from_fn(|| get(&mut node, at, QUEUE)).map(|got| got.body).collect();
    assert_eq!(all, ["b", "c", "e", "a", "d"]);
    node.settle(at, 0, true, Settlement::Ack);
    node.done(at, DefinitionCommand::QueueDelete { queue: QUEUE, if_unused: false, if_empty: false });
    node.turns(at);
    node.declare(at, "another", false);
}

/// The log has no incarnations for the levels of a queue declared by a version without levels: it assigns
/// some.
#[test]
fn a_queue_of_an_older_version_has_levels_from_now_on() {
    let mut node = TestBroker::new(64);
    node.pending_writes.start(2, true, 1 << 20);
    let definition = |priorities_from| {
        Definition::Queue(definition::Queue {
            vhost: "/",
            name: QUEUE,
            incarnation: 7,
            priorities_from,
            arguments: PRIORITIES,
            ..Default::default()
        })
    };
    assert_eq!(levels_of(&definition(0)), 0..0);
    assert!(matches!(node.broker.restore(&mut context!(node), &definition(0)), Restored::Exists(Some(_))));
    let Some(LogEntry::Defined { key, value: Some(value), .. }) = node.pending_writes.next_entry() else {
        panic!("it is written down")
    };
    let Some(written @ Definition::Queue(definition::Queue { priorities_from, incarnation, .. })) =
        Definition::parse(key, value)
    else {
        panic!("it is what defines the queue")
    };
    assert_eq!((incarnation, priorities_from > 7), (7, true));
    assert_eq!(levels_of(&written), priorities_from..priorities_from + u64::from(MAX));
    assert!(
        node.pending_writes.next_version() >= priorities_from + u64::from(MAX),
        "these numbers are not used otherwise"
    );
}

/// A get takes the last message of the highest priority, where the other messages have expired. Only the get
/// itself notices this, and the next priority may be delivered at once.
#[test]
fn a_get_that_ends_a_priority_wakes_the_consumer_of_the_next() {
    let mut node = TestBroker::new(64);
    node.pending_writes.start(100, true, u64::MAX >> 8);
    node.pending_writes.set_log_free_bytes(u64::MAX, u64::MAX, false);
    node.pending_writes.set_time(1_000);
    let at = node.connect();
    crate::dead_letters::declare(&mut node, at, QUEUE, true, PRIORITIES);
    // Delivery mode, priority, and, with the third flag, an expiration.
    send_with(&mut node, at, b"\x19\0\x02\x05\x0250", "waits for its mark").unwrap();
    store(&mut node);
    send_with(&mut node, at, b"\x18\0\x01\x05", "taken").unwrap();
    send_with(&mut node, at, b"\x19\0\x01\x05\x0250", "expires behind it").unwrap();
    send_with(&mut node, at, b"\x18\0\x01\x00", "of the next priority").unwrap();
    node.consume(at, QUEUE);
    node.broker.deliver(&mut context!(node), 64);
    assert_eq!(node.outbox_bodies(at), [""; 0], "the log does not say yet that the first may be delivered");
    node.pending_writes.set_time(2_000);
    assert_eq!(get(&mut node, at, QUEUE).expect("there is one").body, "taken");
    assert_eq!(node.broker.queues().forgotten_queue(), None);
    node.broker.deliver(&mut context!(node), 64);
    assert_eq!(node.outbox_bodies(at), ["of the next priority"]);
}

// ---- with power cuts

/// Declares a durable queue in a virtual host of its own, with a message in each of three levels.
fn stored(disk: &SimDisk) -> BrokerRun {
    let mut run = BrokerRun::begin(disk).expect("it opens");
    run.node.admit("other", "v");
    let at = run.node.connect_as("other", "v");
    let (passive, durable, exclusive, auto_delete, arguments) = (false, true, false, false, PRIORITIES);
    let queue = QUEUE;
    run.node.done(
        at,
        DefinitionCommand::QueueDeclare { queue, passive, durable, exclusive, auto_delete, arguments },
    );
    for priority in [1, 3, 5] {
        // `delivery-mode` and `priority`.
        let properties = [0x18, 0, 2, priority];
        assert_eq!(send_with(&mut run.node, at, &properties, "kept"), Ok(PublishAnswer::Published));
    }
    run.store().expect("the disk is well");
    assert_eq!(live_in_log(&mut run), [1, 1, 1], "each level is the log's by itself");
    run
}

/// Returns the number of live messages in the log for each queue that has some.
fn live_in_log(run: &mut BrokerRun) -> Vec<u64> {
    let queues = run.keeper.log_mut().index().queues();
    queues.values().filter(|queue| !queue.gone && queue.live > 0).map(|queue| queue.live).collect()
}

#[test]
fn a_virtual_host_whose_deletion_was_cut_short_takes_all_levels_with_it() {
    let disk = disk();
    let mut run = stored(&disk);
    run.node.broker.delete_vhost(&mut context!(run.node), "v").expect("it is there");
    run.store().expect("the disk is well");
    assert_eq!(live_in_log(&mut run), [1, 1, 1], "its queues are deleted step by step");
    drop(run);
    disk.power_cut();
    disk.start(Trouble::Never);
    let mut run = BrokerRun::begin(&disk).expect("it opens");
    run.store().expect("the disk is well");
    assert_eq!(live_in_log(&mut run), [] as [u64; 0]);
    assert_eq!(run.node.broker.gauges().queues, 0, "and no orphan is left");
}

#[test]
fn a_queue_left_out_by_a_start_keeps_its_levels_until_it_is_deleted() {
    let disk = disk();
    drop(stored(&disk));
    for is_deleted in [false, true] {
        let limits = Limits { queues_max: 3, connections_max: 16, ..Limits::default() };
        let mut run = BrokerRun::begin_with(&disk, &limits).expect("it opens");
        assert_eq!(run.node.broker.gauges().queues, 0, "there is room for three of four");
        if is_deleted {
            let queue = QUEUE;
            let at = run.node.connect_as("other", "v");
            run.node.done(at, DefinitionCommand::QueueDelete { queue, if_unused: false, if_empty: false });
            run.node.turns(at);
        }
        run.store().expect("the disk is well");
        assert_eq!(live_in_log(&mut run).len(), if is_deleted { 0 } else { 3 });
    }
    let mut run = BrokerRun::begin(&disk).expect("it opens");
    assert_eq!((live_in_log(&mut run), run.node.broker.gauges().queues), (vec![], 0));
}
