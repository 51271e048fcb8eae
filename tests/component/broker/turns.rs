//! Commands that arrive in one read have the same effect as one command per turn.
//!
//! Deliveries, counts and answers do not depend on how a client's bytes were split.

use std::collections::BTreeMap;

use leveret_broker::ChannelRequest;
use leveret_core::command::{
    ChannelCommand, DefinitionCommand, DeliveryKind, GetCommand, Outbox, Settlement,
};
use leveret_core::limits::Limits;

use crate::dead_letters::{declare, publish, table};
use crate::support::{At, TestBroker};
use leveret_test_support::random::Random;

const QUEUES: [&str; 4] = ["plain", "limited", "lazy", "second"];
const TAGS: [&str; 3] = ["one", "two", "three"];

/// A request of a client.
#[derive(Clone, Debug)]
enum Step {
    Publish(&'static str),
    Get(&'static str),
    Consume(usize, &'static str, &'static str, u16, bool),
    Cancel(usize, &'static str),
    Count(&'static str),
    Purge(&'static str),
    DeleteIfEmpty(&'static str),
    /// Settles one delivery of its channel, by its number among them, or all up to it.
    Settle(usize, usize, Settlement, bool),
}

fn script(random: &mut Random) -> Vec<Step> {
    let step = |random: &mut Random| {
        let (at, queue) = (random.below(3) as usize, random.one_of(&QUEUES));
        match random.below(20) {
            0..=9 => Step::Publish(queue),
            10 => Step::Get(queue),
            11 | 12 => {
                let prefetch = random.one_of(&[0, 1, 3]);
                Step::Consume(at, queue, random.one_of(&TAGS), prefetch, random.once_in(2))
            }
            13 => Step::Cancel(at, random.one_of(&TAGS)),
            14 => Step::Count(queue),
            15 => Step::Purge(queue),
            16 => Step::DeleteIfEmpty(queue),
            _ => {
                let how = random.one_of(&[Settlement::Ack, Settlement::Requeue, Settlement::Reject]);
                Step::Settle(at, random.below(4) as usize, how, random.once_in(4))
            }
        }
    };
    let count = 1 + random.below(12);
    let mut steps: Vec<_> = (0..count).map(|_| step(random)).collect();
    // Settlements come first. After a publish they only change which consumer is next, and checking that for
    // each acknowledgement would be too costly.
    steps.sort_by_key(|step| !matches!(step, Step::Settle(_, _, Settlement::Ack | Settlement::Reject, _)));
    steps
}

struct Side {
    node: TestBroker,
    channels: Vec<At>,
    /// Unsettled tags of each channel, by their bodies.
    held: Vec<BTreeMap<String, u64>>,
    published: u32,
}

impl Side {
    fn new() -> Self {
        let mut node = TestBroker::with(&Limits {
            connections_max: 16,
            queues_max: 16,
            exchanges_max: 16,
            bindings_max: 64,
            messages_max: 2_000,
            queue_entries_max: 4_000,
            unacknowledged_max: 1_000,
            body_bytes_max: 1 << 20,
            assembly_bytes_max: 1 << 19,
            message_size_max: 1 << 16,
            ..Limits::default()
        });
        let channels: Vec<_> = (0..3).map(|_| node.connect()).collect();
        let mut side = Self { node, channels, held: vec![BTreeMap::new(); 3], published: 0 };
        QUEUES.iter().for_each(|queue| side.declare(queue));
        side
    }

    fn declare(&mut self, queue: &str) {
        let limited = table(|t| {
            t.int("x-max-length", 2)?;
            t.text("x-overflow", "reject-publish")
        });
        let arguments = if queue == "limited" { &*limited } else { &[] };
        declare(&mut self.node, self.channels[0], queue, false, arguments);
    }

    /// Executes one step. Returns the answer.
    fn step(&mut self, step: &Step) -> String {
        let asker = self.channels[0];
        match *step {
            Step::Publish(queue) => {
                self.published += 1;
                let body = format!("{queue} {:05}", self.published);
                format!("{:?}", publish(&mut self.node, asker, queue, &[0, 0], &body))
            }
            Step::Get(queue) => self.ask(0, GetCommand { queue, no_ack: false }),
            Step::Consume(at, queue, tag, prefetch_count, no_ack) => {
                self.ask(at, ChannelCommand::Qos { prefetch_count, global: false });
                let consume =
                    ChannelCommand::Consume { queue, tag, no_ack, exclusive: false, arguments: &[] };
                self.ask(at, consume)
            }
            Step::Cancel(at, tag) => self.ask(at, ChannelCommand::Cancel { tag }),
            Step::Count(queue) => self.node.ready(asker, queue).to_string(),
            Step::Purge(queue) => self.ask(0, DefinitionCommand::QueuePurge { queue }),
            Step::DeleteIfEmpty(queue) => {
                let answer =
                    self.ask(0, DefinitionCommand::QueueDelete { queue, if_unused: false, if_empty: true });
                self.declare(queue);
                answer
            }
            Step::Settle(at, number, settlement, multiple) => {
                let Some((body, &delivery_tag)) = self.held[at].iter().nth(number) else {
                    return String::new();
                };
                let body = body.clone();
                if multiple && self.held[at].len() > 1 {
                    // Tags across several queues have no defined order.
                    return String::new();
                }
                self.held[at].remove(&body);
                // A no-ack delivery cannot be settled; the tag in the answer is not compared.
                let answer = self.ask(at, ChannelCommand::Settle { delivery_tag, multiple, settlement });
                answer.split('{').next().unwrap().to_owned()
            }
        }
    }

    fn ask<C: ChannelRequest<Answer: core::fmt::Debug>>(&mut self, at: usize, command: C) -> String {
        let answer = format!("{:?}", self.node.ask(self.channels[at], command));
        let jobs = &mut context!(self.node);
        self.node.broker.run_jobs(jobs);
        answer
    }

    fn deliver(&mut self) {
        self.node.broker.deliver(&mut context!(self.node), 8192);
    }

    /// Writes everything. Returns what was written, by queue.
    fn write(&mut self) -> Vec<Vec<String>> {
        let mut all = Vec::new();
        for (at, channel) in self.channels.clone().into_iter().enumerate() {
            let mut here = Vec::new();
            let mut outbox = self.node.broker.outbox(channel.connection);
            while let Some(delivery) = outbox.peek() {
                let id = delivery.message;
                let mut body = vec![0; self.node.messages.body_len(id) as usize];
                self.node.messages.read(id, &mut self.node.messages.body_cursor(id, 0), &mut body);
                let body = String::from_utf8(body).unwrap();
                let to = match delivery.kind {
                    DeliveryKind::Deliver { consumer_tag } => consumer_tag.to_owned(),
                    other => format!("{other:?}"),
                };
                here.push(format!("{body} to {to}, redelivered: {}", delivery.redelivered));
                self.held[at].insert(body, delivery.delivery_tag);
                outbox.advance();
            }
            self.node.broker.sent(&mut context!(self.node), channel.connection, here.len() as u32);
            // Messages of one queue have an order, those of several queues have none.
            here.sort_by_key(|line| line.split(' ').next().unwrap().to_owned());
            all.push(here);
        }
        all
    }
}

#[test]
fn commands_mean_the_same_in_one_turn_and_in_many() {
    for seed in 1..=600 {
        let mut random = Random::new(seed);
        let (mut together, mut apart) = (Side::new(), Side::new());
        for round in 0..12 {
            let script = script(&mut random);
            for step in &script {
                let (one, other) = (together.step(step), apart.step(step));
                assert_eq!(one, other, "seed {seed}, round {round}: {step:?} of {script:?}");
                apart.deliver();
            }
            together.deliver();
            assert_eq!(together.write(), apart.write(), "seed {seed}, round {round}: {script:?}");
            // Deliveries that became possible by writing.
            for side in [&mut together, &mut apart] {
                side.deliver();
            }
            assert_eq!(together.write(), apart.write(), "seed {seed}, round {round}, afterwards: {script:?}");
        }
    }
}

#[test]
fn a_consumer_of_a_deleted_queue_that_was_not_notified_yet_is_skipped() {
    let mut side = Side::new();
    side.step(&Step::Consume(1, "plain", "one", 10, false));
    side.step(&Step::Consume(2, "second", "two", 10, false));
    side.ask(0, DefinitionCommand::QueueDelete { queue: "plain", if_unused: false, if_empty: false });
    // A queue has a message for a consumer, so commands check for deliveries.
    side.step(&Step::Publish("second"));
    side.ask(1, ChannelCommand::Qos { prefetch_count: 3, global: true });
    side.ask(1, ChannelCommand::Qos { prefetch_count: 5, global: false });
    side.deliver();
    let written = side.write();
    assert_eq!(written[2].len(), 1, "{written:?}");
}

/// A queue with length limit 2 that drops its oldest messages still delivers as many as its consumer takes,
/// however many arrive in one read.
#[test]
fn a_burst_into_a_short_queue_is_delivered_as_far_as_the_consumer_is_ready() {
    for (prefetch, taken) in [(0, 300), (10, 10), (100, 100)] {
        let mut side = Side::new();
        let short = table(|t| t.int("x-max-length", 2));
        declare(&mut side.node, side.channels[0], "short", false, &short);
        side.step(&Step::Consume(1, "short", "one", prefetch, false));
        for _ in 0..300 {
            side.step(&Step::Publish("short"));
        }
        side.deliver();
        let written = side.write();
        assert_eq!(written[1].len(), taken, "of 300, with a prefetch of {prefetch}");
        let last = written[1].last().expect("it has some");
        assert!(last.starts_with(&format!("short {taken:05}")), "the first messages are delivered: {last}");
        let left = side.node.ready(side.channels[0], "short");
        assert_eq!(left as usize, (300 - taken).min(2), "the last two stay");
    }
}

/// A ready consumer does not let such a queue exceed its limit when more messages arrive than it receives.
#[test]
fn a_flood_does_not_make_a_short_queue_long() {
    let mut side = Side::new();
    let short = table(|t| t.int("x-max-length", 2));
    declare(&mut side.node, side.channels[0], "short", false, &short);
    side.step(&Step::Consume(1, "short", "one", 0, true));
    // Turns that deliver less than comes in.
    for _ in 0..30 {
        for _ in 0..150 {
            side.step(&Step::Publish("short"));
        }
        side.node.broker.deliver(&mut context!(side.node), 64);
        let depth = side.node.broker.queue_depth("/", "short").expect("it is there");
        assert!(depth <= 700, "{depth} messages in a queue of two");
        side.write();
    }
}
