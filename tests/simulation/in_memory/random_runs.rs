//! Random runs: publishers and consumers on several connections act in any order, over lines of any shape,
//! and disconnect at any time.
//!
//! Checked in every run:
//! - A confirmed message is delivered at least once. After its acknowledgement it is gone.
//! - First deliveries keep the order of their publisher, per consumer.
//! - A message is delivered as new at most once. One marked as redelivered has a reason for it.
//! - Each publish is confirmed once, on its channel (checked by the clients' checker).
//! - At the end every pool is empty.

use std::collections::{BTreeMap, VecDeque};

use leveret_amqp::Method;
use leveret_core::limits::Limits;

use leveret_test_support::random::Random;
use leveret_test_support::simulated_server::*;

const QUEUES: [&str; 3] = ["red", "green", "blue"];
const PUBLISHING: u16 = 1;
const CONSUMING: [u16; 2] = [2, 3];
const GETTING: u16 = 4;

/// One message in one queue.
type Copied = (usize, u64);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Acked {
    No,
    /// Sent on a connection that may have broken before it arrived; or another client may still read an
    /// earlier delivery.
    Perhaps,
    Surely,
}

#[derive(Clone, Debug)]
struct Fate {
    /// It certainly reached its queue.
    certain: bool,
    heard: u32,
    was_new: bool,
    acked: Acked,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Role {
    Publisher,
    Consumer,
    Both,
}

/// A client and its knowledge.
struct Player {
    client: usize,
    role: Role,
    /// Unsettled deliveries, by channel and tag.
    outstanding: BTreeMap<(u16, u64), Copied>,
    /// Queue and mode of each consumer.
    consumers: BTreeMap<(u16, String), (usize, bool)>,
    /// The last new message received from each publisher, by consumer.
    last_new: BTreeMap<(u16, String, u64), u64>,
    gets: VecDeque<(usize, bool)>,
    acked: Vec<Copied>,
    published: Vec<Copied>,
    tags: u64,
}

impl Player {
    fn take(&mut self, no_ack: bool, key: (u16, u64), copied: Copied) {
        if no_ack {
            self.acked.push(copied);
        } else {
            self.outstanding.insert(key, copied);
        }
    }
}

struct RandomRun {
    simulation: Simulation,
    random: Random,
    players: Vec<Player>,
    fates: BTreeMap<Copied, Fate>,
    next_id: u64,
    few_records: bool,
    /// Queues to which messages may have been requeued.
    disturbed: [bool; 3],
    /// Queues from which a lost client may have taken messages permanently.
    leaky: [bool; 3],
}

fn limits(seed: u64) -> Limits {
    match seed % 3 {
        // Publishers are blocked.
        0 => Limits { messages_max: 64, ..small_limits() },
        // Consumers are blocked.
        1 => Limits { unacknowledged_max: 64, ..small_limits() },
        _ => small_limits(),
    }
}

impl RandomRun {
    fn new(seed: u64) -> Self {
        let mut simulation = Simulation::new(limits(seed));
        let first = simulation.open(&[1]);
        for queue in QUEUES {
            simulation.declare(first, 1, queue);
            simulation.ask(first, 1, &bind(queue, "amq.fanout", ""));
        }
        simulation.lose(first);
        let mut run = Self {
            simulation,
            random: Random::new(seed),
            players: Vec::new(),
            fates: BTreeMap::new(),
            next_id: 0,
            few_records: limits(seed).unacknowledged_max < 100,
            disturbed: [false; 3],
            leaky: [false; 3],
        };
        for number in 0..2 + run.random.below(4) {
            run.join(number);
        }
        run
    }

    fn join(&mut self, number: u64) {
        let role = match number {
            0 => Role::Publisher,
            1 => Role::Consumer,
            _ if self.simulation.engine.messages().messages_max() < 100 => {
                self.random.one_of(&[Role::Publisher, Role::Consumer])
            }
            _ => Role::Both,
        };
        let shape = Shape {
            up_fragment: self.random.one_of(&[1, 20, 1_000, 1 << 20]),
            down_fragment: self.random.one_of(&[1, 20, 1_000, 1 << 20]),
            down_room: self.random.one_of(&[100, 5_000, 1 << 20]),
            ..Shape::WIDE
        };
        let channels = [PUBLISHING, CONSUMING[0], CONSUMING[1], GETTING];
        let client = self.simulation.open_with(Manners::default(), shape, &channels);
        self.simulation.ask(client, PUBLISHING, &Method::ConfirmSelect { no_wait: false });
        self.players.push(Player {
            client,
            role,
            outstanding: BTreeMap::new(),
            consumers: BTreeMap::new(),
            last_new: BTreeMap::new(),
            gets: VecDeque::new(),
            acked: Vec::new(),
            published: Vec::new(),
            tags: 0,
        });
    }

    fn step(&mut self) {
        let at = self.random.below(self.players.len() as u64) as usize;
        let role = self.players[at].role;
        match self.random.below(100) {
            0..=39 if role != Role::Consumer => self.publish(at),
            0..=9 if role != Role::Publisher => self.consume(at),
            // A get without a free record for its message is refused, which is not the subject of this test.
            10..=19 if role != Role::Publisher && !self.few_records => self.get(at),
            20..=69 if role != Role::Publisher => self.settle(at),
            70..=71 if role != Role::Publisher => self.cancel(at),
            // A publisher may be blocked, and then its close waits too.
            72 if role != Role::Publisher => self.close_channel(at),
            73 => self.vanish(at),
            74..=77 => {
                let greed = self.random.one_of(&[0, 7, 500, usize::MAX]);
                self.simulation.clients[self.players[at].client].manners.greed = greed;
            }
            78..=80 => self.rest(),
            81 => self.recover(at),
            _ => {
                for _ in 0..self.random.below(30) {
                    self.simulation.round();
                }
            }
        }
        self.listen();
    }

    fn publish(&mut self, at: usize) {
        let (client, publisher) = (self.players[at].client, self.players[at].client as u64);
        let id = self.next_id;
        self.next_id += 1;
        let queue = self.random.below(3) as usize;
        let everywhere = self.random.once_in(5);
        let mut body = [id.to_be_bytes(), publisher.to_be_bytes()].concat();
        body.resize(16 + self.random.one_of(&[0, 0, 50, 300, 9_000]), 7);
        let publish = Publish {
            exchange: if everywhere { "amq.fanout" } else { "" },
            key: QUEUES[queue],
            mandatory: self.random.once_in(2),
            ..Publish::default()
        };
        self.simulation.publish(client, PUBLISHING, publish, &body);
        for queue in if everywhere { 0..3 } else { queue..queue + 1 } {
            self.fates
                .insert((queue, id), Fate { certain: false, heard: 0, was_new: false, acked: Acked::No });
            self.players[at].published.push((queue, id));
        }
    }

    fn consume(&mut self, at: usize) {
        if self.players[at].consumers.len() > 3 {
            return;
        }
        let queue = self.random.below(3) as usize;
        let channel = self.random.one_of(&CONSUMING);
        let no_ack = self.random.once_in(4);
        let prefetch = self.random.one_of(&[0, 1, 3, 20]);
        let player = &mut self.players[at];
        player.tags += 1;
        let tag = format!("tag{}", player.tags);
        self.simulation.send(player.client, channel, &qos(prefetch));
        self.simulation.send(player.client, channel, &consume(QUEUES[queue], &tag, no_ack));
        player.consumers.insert((channel, tag), (queue, no_ack));
    }

    fn get(&mut self, at: usize) {
        let queue = self.random.below(3) as usize;
        let no_ack = self.random.once_in(3);
        let player = &mut self.players[at];
        player.gets.push_back((queue, no_ack));
        self.simulation.send(player.client, GETTING, &Method::BasicGet { queue: QUEUES[queue], no_ack });
    }

    fn settle(&mut self, at: usize) {
        let known: Vec<_> = self.players[at].outstanding.keys().copied().collect();
        if known.is_empty() {
            return;
        }
        let (channel, delivery_tag) = self.random.one_of(&known);
        let multiple = self.random.once_in(3);
        let requeue = self.random.once_in(4);
        let method = match self.random.below(3) {
            0 => Method::BasicAck { delivery_tag, multiple },
            1 if !multiple => Method::BasicReject { delivery_tag, requeue },
            _ => Method::BasicNack { delivery_tag, multiple, requeue },
        };
        let goes_back = requeue && !matches!(method, Method::BasicAck { .. });
        let client = self.players[at].client;
        self.simulation.send(client, channel, &method);
        let first = if multiple { 0 } else { delivery_tag };
        let settled: Vec<_> = self.players[at]
            .outstanding
            .range((channel, first)..=(channel, delivery_tag))
            .map(|(key, copied)| (*key, *copied))
            .collect();
        for (key, copied) in settled {
            self.players[at].outstanding.remove(&key);
            if goes_back {
                self.disturbed[copied.0] = true;
            } else {
                self.fates.get_mut(&copied).expect("heard of").acked = Acked::Perhaps;
                self.players[at].acked.push(copied);
            }
        }
    }

    fn recover(&mut self, at: usize) {
        let channel = self.random.one_of(&CONSUMING);
        // With nothing under way, the void tags are known: all that were received.
        self.rest_reading(at);
        self.forget_outstanding(at, channel);
        self.simulation.send(self.players[at].client, channel, &Method::BasicRecover { requeue: true });
        self.rest_reading(at);
    }

    fn cancel(&mut self, at: usize) {
        let consumers: Vec<_> = self.players[at].consumers.keys().cloned().collect();
        if consumers.is_empty() {
            return;
        }
        let (channel, tag) = consumers[self.random.below(consumers.len() as u64) as usize].clone();
        let client = self.players[at].client;
        self.simulation.send(client, channel, &Method::BasicCancel { consumer_tag: &tag, no_wait: false });
        self.rest_reading(at);
        self.players[at].consumers.remove(&(channel, tag));
    }

    fn close_channel(&mut self, at: usize) {
        let channel = self.random.one_of(&[CONSUMING[0], CONSUMING[1], GETTING]);
        let client = self.players[at].client;
        self.simulation.send(client, channel, &close_channel());
        // Before and after, because deliveries under way are received in between.
        self.forget_outstanding(at, channel);
        self.rest_reading(at);
        self.forget_outstanding(at, channel);
        if channel == GETTING {
            self.players[at].gets.clear();
        }
        let ended: Vec<_> =
            self.players[at].consumers.keys().filter(|key| key.0 == channel).cloned().collect();
        for key in ended {
            let (queue, _) = self.players[at].consumers.remove(&key).expect("just found");
            self.disturbed[queue] = true;
        }
        self.simulation.ask(client, channel, &Method::ChannelOpen {});
        self.listen();
    }

    fn forget_outstanding(&mut self, at: usize, channel: u16) {
        for (queue, _) in self.players[at].consumers.values().chain(&self.players[at].gets) {
            self.disturbed[*queue] = true;
        }
        let disturbed = &mut self.disturbed;
        self.players[at].outstanding.retain(|(on, _), (queue, _)| {
            disturbed[*queue] |= *on == channel;
            *on != channel
        });
    }

    /// Disconnects a client, in an orderly way or not, and replaces it by a new one.
    fn vanish(&mut self, at: usize) {
        let politely = self.random.once_in(2);
        if politely {
            self.rest_reading(at);
        }
        let player = self.players.swap_remove(at);
        let consumed = player.consumers.values().chain(&player.gets);
        for (queue, no_ack) in consumed {
            self.disturbed[*queue] = true;
            self.leaky[*queue] |= *no_ack;
        }
        // Acknowledgements may have been lost with the connection.
        for (queue, _) in player.outstanding.values().chain(&player.acked) {
            self.disturbed[*queue] = true;
        }
        if politely && self.random.once_in(2) {
            self.simulation.hang_up(player.client);
            self.simulation.run();
        }
        self.simulation.lose(player.client);
        self.simulation.run();
        let role = player.role as u64;
        self.join(role);
    }

    /// Lets the client read until nothing moves any more.
    fn rest_reading(&mut self, at: usize) {
        self.simulation.clients[self.players[at].client].manners.greed = usize::MAX;
        self.rest();
    }

    /// Runs until nothing moves. Then everything sent has been processed, unless a client is blocked.
    fn rest(&mut self) {
        self.simulation.run();
        self.listen();
        let greed = |player: &Player| self.simulation.clients[player.client].manners.greed;
        let somebody_sleeps = self.players.iter().any(|player| greed(player) == 0);
        for player in &mut self.players {
            let client = &self.simulation.clients[player.client];
            let waits = client.manners.greed == 0
                || client.checker.unconfirmed(PUBLISHING) > 0
                || client.checker.replies_missing() > 0;
            if waits {
                continue;
            }
            for copied in player.published.drain(..) {
                self.fates.get_mut(&copied).expect("published").certain = true;
            }
            // A client that does not read may later receive an earlier delivery of a message that another has
            // acknowledged.
            let settled = if somebody_sleeps { 0 } else { player.acked.len() };
            for copied in player.acked.drain(..settled) {
                self.fates.get_mut(&copied).expect("heard of").acked = Acked::Surely;
            }
        }
    }

    /// Takes in what all clients received.
    fn listen(&mut self) {
        for at in 0..self.players.len() {
            let client = &mut self.simulation.clients[self.players[at].client];
            assert_eq!(client.closed_with, None);
            for said in core::mem::take(&mut client.heard) {
                self.hear(at, &said);
            }
        }
    }

    fn hear(&mut self, at: usize, said: &Said) {
        match said.method() {
            Method::BasicDeliver { consumer_tag, delivery_tag, redelivered, .. } => {
                let key = (said.channel, consumer_tag.to_string());
                let (queue, no_ack) = self.players[at].consumers[&key];
                let copied = self.hear_message(queue, said, redelivered, no_ack);
                if !redelivered {
                    let publisher = u64::from_be_bytes(said.body[8..16].try_into().expect("eight octets"));
                    let last = &mut self.players[at].last_new;
                    let before = last.insert((key.0, key.1, publisher), copied.1);
                    assert!(before.is_none_or(|before| before < copied.1), "{before:?} before {copied:?}");
                }
                self.players[at].take(no_ack, (said.channel, delivery_tag), copied);
            }
            Method::BasicGetOk { delivery_tag, redelivered, .. } => {
                let (queue, no_ack) = self.players[at].gets.pop_front().expect("a get was sent");
                let copied = self.hear_message(queue, said, redelivered, no_ack);
                self.players[at].take(no_ack, (said.channel, delivery_tag), copied);
            }
            Method::BasicGetEmpty {} => {
                self.players[at].gets.pop_front();
            }
            Method::ChannelClose { .. } | Method::BasicReturn { .. } | Method::BasicNack { .. } => {
                panic!("{}", said.shown())
            }
            _ => {}
        }
    }

    fn hear_message(&mut self, queue: usize, said: &Said, redelivered: bool, no_ack: bool) -> Copied {
        let id = u64::from_be_bytes(said.body[..8].try_into().expect("eight octets"));
        let copied = (queue, id);
        assert!(said.body[16..].iter().all(|octet| *octet == 7), "the body is what was published");
        let fate = self.fates.get_mut(&copied).expect("it was published to that queue");
        assert_ne!(fate.acked, Acked::Surely, "{copied:?} comes again after its acknowledgement");
        // A slow reader may receive it after the client that it was redelivered to.
        assert!(redelivered || !fate.was_new, "{copied:?} is delivered as new a second time");
        fate.was_new |= !redelivered;
        assert!(
            !redelivered || self.disturbed[queue],
            "{copied:?} is marked as redelivered without a reason"
        );
        fate.heard += 1;
        fate.certain = true;
        if no_ack {
            fate.acked = fate.acked.max(Acked::Perhaps);
        }
        copied
    }

    fn finish(mut self) {
        for at in 0..self.players.len() {
            self.simulation.clients[self.players[at].client].manners.greed = usize::MAX;
        }
        self.rest();
        self.simulation.lose_everybody();
        let heir = self.simulation.open(&[1]);
        for (queue, name) in QUEUES.into_iter().enumerate() {
            loop {
                let said = self.simulation.ask(heir, 1, &Method::BasicGet { queue: name, no_ack: true });
                let Method::BasicGetOk { redelivered, .. } = said.method() else { break };
                self.disturbed[queue] = true;
                self.hear_message(queue, &said, redelivered, true);
            }
        }
        for (copied, fate) in &self.fates {
            let is_accounted_for = fate.acked != Acked::No || !fate.certain || self.leaky[copied.0];
            assert!(is_accounted_for, "{copied:?} was confirmed and is lost: {fate:?}");
        }
        self.simulation.end(&QUEUES);
    }
}

#[test]
fn no_message_is_lost_duplicated_or_out_of_order_whatever_peers_do() {
    for_seeds("no_message_is_lost_duplicated", 0..120, |seed| {
        let mut run = RandomRun::new(seed);
        for _ in 0..300 {
            run.step();
        }
        run.finish();
    });
}

#[test]
fn a_broker_survives_any_hostile_clients() {
    for_seeds("a_broker_survives", 0..1_500, |seed| {
        let mut random = Random::new(seed);
        let octets: Vec<u8> = (0..random.below(900)).map(|_| random.below(256) as u8).collect();
        hostile::check_any_session(&octets);
    });
}
