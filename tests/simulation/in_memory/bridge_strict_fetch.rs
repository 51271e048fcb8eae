//! Random runs of a fetching bridge, with an upstream that keeps account of its deliveries.
//!
//! Messages come on two channels with interleaved frames, while the line breaks, and the upstream closes
//! channels and cancels consumers. Local queues are full, deleted, or slow to become durable. A bridge that
//! counts wrongly acknowledges messages it does not have, or receives nothing more.
//!
//! The upstream requires:
//! - Frames are valid. Nothing comes on a closed channel. No channel is opened twice or has two consumers.
//! - An acknowledged or rejected message was delivered, and was not settled before.
//! - A too large message is not acknowledged, and no other message is rejected.
//!
//! At the end all messages that are not too large are acknowledged, and are in local queues unless they were
//! removed. A removed bridge leaves nothing.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;

use leveret_amqp::{FrameKind, Method, Table, Writer};
use leveret_config::bridge::{Bridge, Destination, RefusedAction, Rule};
use leveret_storage::Settings;

use super::bridge::{ask, bridge, simulation};
use super::bridge_strict_link::{FRAME_MAX, Link, Orders, Tally, assert_nothing_stays, frames, wait};
use leveret_test_support::random::Random;
use leveret_test_support::simulated_server::{
    Simulation, content_frames, declare_with, delete, for_seeds, method_frame, purge,
};

const SEEDS: Range<u64> = 1..31;
/// The upstream's queues, whose channels are numbered from 1.
const THERE: [&str; 2] = ["there-0", "there-1"];
const PARKED: &str = "parked";
/// Local target queues in the same order, and the queue for parked messages.
const HERE: [&str; 3] = ["here-0", "here-1", PARKED];
/// Size of the largest message that the broker accepts, in bytes.
const MESSAGE_SIZE_MAX: usize = 1 << 20;
/// Bytes of a body per frame; and per frame of a too large message, whose content does not matter.
const PIECE: usize = 8_000;
const LARGE_PIECE: usize = 120_000;
/// Maximum number of deliveries on a channel at once.
const DELIVERIES_MAX: usize = 6;
/// Maximum number of turns until the upstream has nothing left.
const CALM_TURNS_MAX: u32 = 2_000;
/// Consecutive turns in which the upstream has nothing left that count as rest.
const TURNS_AT_REST: u32 = 4;
const CALM_TURN_MS: u64 = 400;
/// Turns that a removed bridge has to close its link.
const END_TURNS: u32 = 20;
const END_TURN_MS: u64 = 2_000;

fn config(seed: u64) -> Bridge {
    let random = &mut Random::of(seed, "config", &[]);
    let rule = |at: usize, refused| Rule {
        queue: THERE[at].into(),
        // A deleted queue that a rule names is declared again. Messages that an exchange does not route are
        // parked.
        to: match at {
            1 => Destination::Exchange(String::new(), Some(HERE[at].into())),
            _ => Destination::Queue(HERE[at].into()),
        },
        refused,
        is_urgent: at == 1,
    };
    let refused = random.one_of(&[RefusedAction::Reject, RefusedAction::Wait]);
    Bridge {
        forward: Vec::new(),
        fetch: vec![rule(0, RefusedAction::Park), rule(1, refused)],
        window: random.one_of(&[1, 2, 8]),
        heartbeat_s: random.one_of(&[0, 10]),
        ..bridge()
    }
}

/// The treatment of local messages and their queues.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// They stay; they are few and small enough.
    Kept,
    /// They are purged occasionally.
    Purged,
    /// They are purged, and queues are deleted or redeclared with capacity for one message.
    Deleted,
}

impl Fate {
    fn of(seed: u64) -> Self {
        match seed % 4 {
            1 => Self::Kept,
            3 => Self::Purged,
            _ => Self::Deleted,
        }
    }
}

/// A message of the upstream.
#[derive(Clone, Copy, Debug)]
struct Message {
    id: u32,
    /// Size of its body in bytes.
    size: usize,
    was_given: bool,
}

impl Message {
    const fn is_too_large(&self) -> bool {
        self.size > MESSAGE_SIZE_MAX
    }

    const fn piece(&self) -> usize {
        if self.is_too_large() { LARGE_PIECE } else { PIECE }
    }

    /// Returns its body: its number, and then bytes that match it.
    fn body(&self) -> Vec<u8> {
        let mut body = self.id.to_be_bytes().to_vec();
        body.resize(self.size, self.id as u8);
        body
    }
}

/// A request on a channel that the upstream has not answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Owed {
    Open,
    Qos,
    Consume,
    Cancel,
    Close,
}

#[derive(Default, Debug)]
struct Channel {
    /// The upstream has closed it and received no answer yet.
    is_closed: bool,
    owed: VecDeque<Owed>,
    /// The prefetch count.
    ahead: u16,
    has_consumer: bool,
    /// Unsettled delivery tags of the newest consumer.
    given: BTreeSet<u64>,
    last_tag: u64,
    /// All unsettled deliveries.
    unsettled: BTreeMap<u64, Message>,
}

impl Channel {
    fn may_deliver(&self) -> bool {
        let is_consuming = self.has_consumer && !self.is_closed && !self.owed.contains(&Owed::Consume);
        is_consuming && self.given.len() < usize::from(self.ahead)
    }

    fn settle(&mut self, tag: u64) -> Message {
        self.given.remove(&tag);
        self.unsettled.remove(&tag).unwrap_or_else(|| panic!("{tag} was not given"))
    }
}

fn consumer_tag(channel: u16) -> String {
    format!("bridge-{}", channel - 1)
}

struct Upstream {
    link: Link,
    channels: BTreeMap<u16, Channel>,
    queues: [BTreeMap<u32, Message>; 2],
    acknowledged: BTreeSet<u32>,
    rejected: u64,
    given_again: u64,
    closed_channels: u64,
    cancelled_consumers: u64,
}

impl Upstream {
    fn new(link: Link) -> Self {
        Self {
            link,
            channels: BTreeMap::new(),
            queues: Default::default(),
            acknowledged: BTreeSet::new(),
            rejected: 0,
            given_again: 0,
            closed_channels: 0,
            cancelled_consumers: 0,
        }
    }

    fn listen(&mut self, simulation: &Simulation) {
        if self.link.is_another(simulation) {
            for number in self.numbers() {
                self.take_back(number);
            }
            self.channels.clear();
        }
        let octets = self.link.read();
        for frame in frames(&octets) {
            let number = frame.header.channel;
            match frame.header.kind().expect("a known kind") {
                FrameKind::Heartbeat => assert_eq!(number, 0),
                FrameKind::Method => {
                    let method = Method::parse(frame.payload).expect("a sound method");
                    if number == 0 { self.link.hear(method) } else { self.hear(number, method) }
                }
                kind @ (FrameKind::Header | FrameKind::Body) => panic!("{kind:?} on {number}"),
            }
        }
    }

    fn channel(&mut self, number: u16) -> &mut Channel {
        self.channels.get_mut(&number).unwrap_or_else(|| panic!("channel {number} is not open"))
    }

    fn numbers(&self) -> Vec<u16> {
        self.channels.keys().copied().collect()
    }

    /// Requeues the unsettled deliveries of a channel.
    fn take_back(&mut self, number: u16) {
        let channel = self.channel(number);
        channel.given.clear();
        for message in core::mem::take(&mut channel.unsettled).into_values() {
            self.queues[usize::from(number) - 1].insert(message.id, Message { was_given: true, ..message });
        }
    }

    fn hear(&mut self, number: u16, method: Method<'_>) {
        if let Method::ChannelOpen {} = method {
            let channel = Channel { owed: [Owed::Open].into(), ..Channel::default() };
            assert!(self.channels.insert(number, channel).is_none(), "{number} is opened twice");
            return;
        }
        let channel = self.channel(number);
        match method {
            Method::ChannelCloseOk {} if channel.is_closed => drop(self.channels.remove(&number)),
            Method::ChannelClose { .. } if channel.is_closed => {
                self.link.say(number, &Method::ChannelCloseOk {});
            }
            // Methods that were under way when the upstream closed the channel have no effect.
            _ if channel.is_closed => {}
            Method::ChannelClose { .. } => channel.owed.push_back(Owed::Close),
            Method::BasicQos { prefetch_count, .. } => {
                channel.ahead = prefetch_count;
                channel.owed.push_back(Owed::Qos);
            }
            Method::BasicConsume { no_wait, queue, consumer_tag: tag, .. } => {
                assert_eq!((queue, tag), (THERE[usize::from(number) - 1], &*consumer_tag(number)));
                assert!(!channel.has_consumer, "two consumers on {number}");
                channel.has_consumer = true;
                channel.given.clear();
                channel.owed.extend((!no_wait).then_some(Owed::Consume));
            }
            Method::BasicCancel { no_wait, .. } => {
                channel.has_consumer = false;
                channel.owed.extend((!no_wait).then_some(Owed::Cancel));
            }
            Method::BasicAck { delivery_tag, multiple } => self.hear_ack(number, delivery_tag, multiple),
            Method::BasicReject { delivery_tag, requeue } => {
                let message = channel.settle(delivery_tag);
                assert!(message.is_too_large() && !requeue, "{message:?} was rejected");
                self.rejected += 1;
            }
            Method::ChannelFlowOk { .. } => {}
            other => panic!("{other:?} on {number}"),
        }
    }

    fn hear_ack(&mut self, number: u16, tag: u64, multiple: bool) {
        let channel = self.channel(number);
        let tags: Vec<u64> =
            if multiple { channel.unsettled.range(..=tag).map(|(tag, _)| *tag).collect() } else { vec![tag] };
        for tag in tags {
            let message = self.channel(number).settle(tag);
            assert!(!message.is_too_large(), "{message:?} was acknowledged");
            assert!(self.acknowledged.insert(message.id), "{message:?} was acknowledged twice");
        }
    }

    /// Sends some of the owed answers, or closes a channel instead.
    fn answer_some(&mut self, random: &mut Random) {
        self.link.answer(random, &[FRAME_MAX]);
        for number in self.numbers() {
            while self.owes_on(number) && random.once_in(2) {
                if random.once_in(15) {
                    self.close(number);
                } else {
                    self.answer_one(number);
                }
            }
        }
    }

    fn answer_all(&mut self, random: &mut Random) {
        self.link.answer(random, &[FRAME_MAX]);
        for number in self.numbers() {
            while self.owes_on(number) {
                self.answer_one(number);
            }
        }
    }

    fn owes_on(&self, number: u16) -> bool {
        self.channels.get(&number).is_some_and(|channel| !channel.owed.is_empty())
    }

    fn answer_one(&mut self, number: u16) {
        let consumer_tag = &*consumer_tag(number);
        let answer = match self.channel(number).owed.pop_front().expect("an answer is owed") {
            Owed::Open => Method::ChannelOpenOk {},
            Owed::Qos => Method::BasicQosOk {},
            Owed::Consume => Method::BasicConsumeOk { consumer_tag },
            Owed::Cancel => Method::BasicCancelOk { consumer_tag },
            Owed::Close => {
                self.take_back(number);
                self.channels.remove(&number);
                Method::ChannelCloseOk {}
            }
        };
        self.link.say(number, &answer);
    }

    fn close(&mut self, number: u16) {
        self.take_back(number);
        let channel = self.channel(number);
        channel.is_closed = true;
        let owed = core::mem::take(&mut channel.owed);
        let close = Method::ChannelClose { reply_code: 406, reply_text: "NO", class_id: 60, method_id: 80 };
        self.link.say(number, &close);
        if owed.contains(&Owed::Close) {
            // The bridge's own close came before, and RabbitMQ answers it nevertheless.
            self.link.say(number, &Method::ChannelCloseOk {});
        }
        self.closed_channels += 1;
    }

    /// Closes a channel or cancels its consumer, like an upstream whose queue is deleted.
    fn disturb_channels(&mut self, random: &mut Random) {
        for number in self.numbers() {
            let channel = self.channel(number);
            if channel.is_closed {
                continue;
            }
            if random.once_in(25) {
                self.close(number);
            } else if channel.has_consumer && !channel.owed.contains(&Owed::Consume) && random.once_in(25) {
                channel.has_consumer = false;
                let consumer_tag = &*consumer_tag(number);
                self.link.say(number, &Method::BasicCancel { consumer_tag, no_wait: true });
                self.cancelled_consumers += 1;
            }
        }
    }

    /// Returns the frames of possible deliveries. Frames of one channel stay in order.
    fn deliver(&mut self, random: &mut Random, order: Order) -> Vec<Vec<u8>> {
        let mut lines: Vec<VecDeque<Vec<u8>>> =
            self.numbers().into_iter().map(|number| self.deliver_on(number)).collect();
        let mut frames = Vec::new();
        while let Some(first) = lines.iter().position(|line| !line.is_empty()) {
            let at = match order {
                Order::OneByOne => first,
                Order::Mixed => random.below(lines.len() as u64) as usize,
            };
            frames.extend(lines[at].pop_front());
        }
        frames
    }

    fn deliver_on(&mut self, number: u16) -> VecDeque<Vec<u8>> {
        let mut octets = Vec::new();
        for _ in 0..DELIVERIES_MAX {
            if !self.channel(number).may_deliver() {
                break;
            }
            let Some((_, message)) = self.queues[usize::from(number) - 1].pop_first() else { break };
            self.given_again += u64::from(message.was_given);
            let channel = self.channel(number);
            channel.last_tag += 1;
            let delivery_tag = channel.last_tag;
            channel.given.insert(delivery_tag);
            channel.unsettled.insert(delivery_tag, message);
            let method = Method::BasicDeliver {
                consumer_tag: &consumer_tag(number),
                delivery_tag,
                redelivered: message.was_given,
                exchange: "",
                routing_key: b"k",
            };
            octets.extend(method_frame(number, &method));
            octets.extend(content_frames(number, DURABLE, &message.body(), message.piece()));
        }
        split(&octets)
    }

    /// Returns the number of messages that the bridge can accept and has not acknowledged.
    fn left(&self) -> usize {
        let queued = self.queues.iter().flat_map(BTreeMap::values);
        let given = self.channels.values().flat_map(|channel| channel.unsettled.values());
        queued.chain(given).filter(|message| !message.is_too_large()).count()
    }
}

/// The order of frames of several channels.
#[derive(Clone, Copy)]
enum Order {
    OneByOne,
    Mixed,
}

/// Properties of a persistent message (delivery mode 2).
const DURABLE: &[u8] = &[0x10, 0, 2];

/// Splits bytes into frames.
fn split(octets: &[u8]) -> VecDeque<Vec<u8>> {
    let mut left = octets;
    let mut next = |len| {
        let (frame, rest) = left.split_at(len);
        left = rest;
        frame.to_vec()
    };
    frames(octets).map(|frame| next(frame.input_len())).collect()
}

struct RandomRun {
    simulation: Simulation,
    upstream: Upstream,
    orders: Orders,
    fate: Fate,
    has_disk: bool,
    /// The client that deletes queues and consumes messages.
    client: usize,
    /// The number of the next message.
    next_id: u32,
    /// Messages that must arrive in the end.
    sound: Vec<u32>,
    /// Number of parked messages seen so far.
    parked: u64,
    /// Whether messages that an exchange does not route wait at the upstream.
    must_route: bool,
}

impl RandomRun {
    fn new(seed: u64) -> Self {
        let config = config(seed);
        let must_route = config.fetch[1].refused == RefusedAction::Wait;
        let (mut simulation, far) = simulation(config);
        let has_disk = Random::of(seed, "disk", &[]).once_in(2);
        if has_disk {
            simulation.keep_on_disk(Settings::default());
        }
        let client = simulation.open(&[1]);
        simulation.declare(client, 1, HERE[1]);
        Self {
            simulation,
            upstream: Upstream::new(Link::new(far)),
            orders: Orders::default(),
            fate: Fate::of(seed),
            has_disk,
            client,
            next_id: 1,
            sound: Vec::new(),
            parked: 0,
            must_route,
        }
    }

    fn step(&mut self, random: &mut Random) {
        self.orders.hang_up(&self.simulation);
        if self.has_disk && random.once_in(4) {
            self.simulation.engine.platform_mut().helpers.slowness_ms = random.one_of(&[0, 10, 2_000]);
        }
        for _ in 0..random.below(8) {
            self.publish_there(random);
        }
        for _ in 0..random.below(3) {
            self.simulation.round();
        }
        self.listen();
        self.upstream.link.disturb(random);
        if self.upstream.link.is_up() {
            self.speak(random);
        }
        if random.once_in(3) {
            self.simulation.run();
            self.listen();
        }
        self.disturb_queues(random);
        if random.once_in(20) {
            self.orders.give(&mut self.simulation, random);
        }
        wait(&mut self.simulation, random);
        self.listen();
    }

    fn listen(&mut self) {
        self.upstream.listen(&self.simulation);
    }

    fn publish_there(&mut self, random: &mut Random) {
        let largest = if self.fate == Fate::Kept { 10_000 } else { 60_000 };
        let size = if random.once_in(50) {
            MESSAGE_SIZE_MAX + 1
        } else {
            random.one_of(&[4, 4, 10, 900, 9_000, largest])
        };
        let message = Message { id: self.next_id, size, was_given: false };
        self.next_id += 1;
        if !message.is_too_large() {
            self.sound.push(message.id);
        }
        self.upstream.queues[random.below(2) as usize].insert(message.id, message);
    }

    /// Lets the upstream send something.
    fn speak(&mut self, random: &mut Random) {
        self.upstream.answer_some(random);
        let order = random.one_of(&[Order::OneByOne, Order::Mixed]);
        for frame in self.upstream.deliver(random, order) {
            self.say_frame(&frame);
            if random.once_in(20) {
                self.simulation.round();
            }
            // Several of the largest messages exceed the capacity of the line.
            if frame.len() >= LARGE_PIECE {
                self.simulation.run();
            }
        }
        if random.once_in(2) {
            self.upstream.link.beat();
        }
        self.upstream.disturb_channels(random);
        if random.once_in(30) {
            self.upstream.link.lose();
        }
    }

    /// Sends a frame unless its connection has been replaced.
    fn say_frame(&mut self, frame: &[u8]) {
        if self.upstream.link.is_the_same(&self.simulation) {
            self.upstream.link.say_bytes(frame);
        }
    }

    fn disturb_queues(&mut self, random: &mut Random) {
        if !self.simulation.clients[self.client].checker.is_open(1) {
            return;
        }
        if self.fate == Fate::Deleted && random.once_in(25) {
            let queue = random.one_of(&HERE);
            self.simulation.send(self.client, 1, &delete(queue));
            if random.once_in(2) {
                self.declare_for_one(queue);
            }
        }
        if random.once_in(6) {
            self.purge();
        }
    }

    /// Declares a queue that rejects everything beyond one message.
    fn declare_for_one(&mut self, queue: &str) {
        let mut room = [0; 128];
        let mut writer = Writer::new(&mut room);
        writer
            .table(|table| {
                table.int("x-max-length", 1).and_then(|()| table.text("x-overflow", "reject-publish"))
            })
            .expect("it fits");
        // After the length of the table.
        self.send_declare(queue, Table::trusted(&writer.written()[4..]));
    }

    fn send_declare(&mut self, queue: &str, arguments: Table<'_>) {
        self.simulation.send(self.client, 1, &declare_with(queue, true, arguments));
    }

    /// Purges the local queues; otherwise there is no capacity for new messages.
    fn purge(&mut self) {
        let is_open = self.simulation.clients[self.client].checker.is_open(1);
        if self.fate == Fate::Kept || !is_open {
            return;
        }
        self.parked += u64::from(self.depth(PARKED));
        for queue in HERE {
            if self.simulation.engine.broker().queue_depth("/", queue).is_some() {
                self.simulation.send(self.client, 1, &purge(queue));
            }
        }
    }

    fn depth(&mut self, queue: &str) -> u32 {
        self.simulation.engine.broker().queue_depth("/", queue).unwrap_or(0)
    }

    fn depth_of_all(&mut self) -> usize {
        HERE.iter().map(|queue| self.depth(queue) as usize).sum()
    }

    /// Lets the upstream deliver everything until it has nothing left.
    fn calm_down(&mut self, random: &mut Random) {
        self.orders.hang_up(&self.simulation);
        ask(&mut self.simulation, "POST /api/ctl/bridges/plant/resume");
        self.renew_queues();
        self.simulation.engine.platform_mut().helpers.slowness_ms = 0;
        let mut turns_at_rest = 0;
        for _ in 0..CALM_TURNS_MAX {
            self.turn_calmly(CALM_TURN_MS, random);
            turns_at_rest = if self.upstream.left() == 0 { turns_at_rest + 1 } else { 0 };
            if turns_at_rest == TURNS_AT_REST {
                return;
            }
        }
        let channels = &self.upstream.channels;
        panic!(
            "it does not come to rest: {channels:?} {}",
            ask(&mut self.simulation, "GET /api/ctl/bridges")
        );
    }

    /// Replaces queues that have capacity for one message only, and the client whose channel was closed
    /// because of them.
    fn renew_queues(&mut self) {
        self.simulation.lose(self.client);
        self.simulation.run();
        self.client = self.simulation.open(&[1]);
        if self.fate == Fate::Deleted {
            for queue in HERE {
                self.simulation.send(self.client, 1, &delete(queue));
            }
            if self.must_route {
                self.send_declare(HERE[1], Table::EMPTY);
            }
        }
    }

    fn turn_calmly(&mut self, ms: u64, random: &mut Random) {
        self.upstream.link.widen();
        self.simulation.run();
        self.listen();
        if self.upstream.link.is_up() {
            self.upstream.link.beat();
            self.upstream.answer_all(random);
            self.simulation.run();
            for frame in self.upstream.deliver(random, Order::OneByOne) {
                self.say_frame(&frame);
                self.simulation.run();
            }
        }
        self.purge();
        self.simulation.pass_ms(ms);
        self.listen();
    }

    fn assert_all_have_arrived(&mut self) {
        let acknowledged = &self.upstream.acknowledged;
        let missing: Vec<&u32> = self.sound.iter().filter(|id| !acknowledged.contains(id)).collect();
        assert!(missing.is_empty(), "{missing:?} are lost");
        if self.fate == Fate::Kept {
            let (here, acknowledged) = (self.depth_of_all(), self.upstream.acknowledged.len());
            assert!(here >= acknowledged, "{here} are here of {acknowledged} that were acknowledged");
        }
    }

    fn end(&mut self, random: &mut Random) {
        self.simulation.engine.set_bridges(&[]);
        for _ in 0..END_TURNS {
            self.turn_calmly(END_TURN_MS, random);
        }
        assert_nothing_stays(&mut self.simulation, self.client);
        if !self.has_disk {
            assert_eq!(self.simulation.engine.messages().messages_used(), self.depth_of_all());
        }
    }
}

fn live(seed: u64, tally: &Tally) {
    let mut run = RandomRun::new(seed);
    let steps = 40 + Random::of(seed, "steps", &[]).below(120);
    for step in 0..steps {
        run.step(&mut Random::of(seed, "step", &[step]));
    }
    let random = &mut Random::of(seed, "calm", &[]);
    run.calm_down(random);
    run.assert_all_have_arrived();
    run.end(random);
    let upstream = &run.upstream;
    tally.add(&[
        ("messages that were acknowledged", upstream.acknowledged.len() as u64),
        ("messages that were rejected", upstream.rejected),
        ("messages that were given again", upstream.given_again),
        ("messages that were set aside", run.parked),
        ("channels that were closed", upstream.closed_channels),
        ("consumers that were cancelled", upstream.cancelled_consumers),
        ("connections that were lost", upstream.link.lost),
    ]);
}

#[test]
fn deliveries_of_a_strict_upstream_are_settled_once_and_correctly_despite_faults() {
    let tally = Tally::default();
    for_seeds("deliveries_of_a_strict_upstream", SEEDS, |seed| live(seed, &tally));
    tally.assert_in_hundred_lives(&[
        ("messages that were acknowledged", 20_000),
        ("messages that were rejected", 80),
        ("messages that were given again", 200),
        ("messages that were set aside", 400),
        ("channels that were closed", 200),
        ("consumers that were cancelled", 30),
        ("connections that were lost", 80),
    ]);
}
